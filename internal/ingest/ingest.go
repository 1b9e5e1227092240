// Package ingest is the relay's write path: what a broker delivered is decoded,
// validated, filtered and put into the store.
//
// It promises that only what the policy lets through reaches the store, and
// that each message gets a verdict of its own: one poisonous message never
// affects its neighbours. It keeps nothing between calls and is safe for
// concurrent use.
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// Store is where updates go: one outcome and one error for each of them.
type Store interface {
	Put(ctx context.Context, updates []*status.Update) ([]status.Outcome, []error)
}

// Options of an Ingester. Store and Policy are required.
type Options struct {
	Store      Store
	Policy     func() *policy.Policy // the policy in force; may change between calls
	DefaultHub string                // of updates that name none; "default" when empty
	Logger     *slog.Logger          // nil: discard
	Metrics    prometheus.Registerer // nil: counted, but not shown
	Now        func() time.Time      // nil: time.Now
}

// Ingester puts updates into a store.
type Ingester struct {
	store      Store
	policy     func() *policy.Policy
	defaultHub string
	log        *slog.Logger
	now        func() time.Time
	updates    *prometheus.CounterVec
	clashes    prometheus.Counter
	warn       rate.Sometimes // of a suspected clash: one publisher's mistake befalls every update of its
}

// New returns an Ingester.
func New(o Options) *Ingester {
	in := &Ingester{
		warn:  rate.Sometimes{First: 1, Interval: time.Minute},
		store: o.Store, policy: o.Policy, defaultHub: o.DefaultHub, log: o.Logger, now: o.Now,
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "statusrelay_ingest_updates_total",
			Help: "Updates by what became of them: visible, hidden (a position moved), duplicate, stale, refused, failed.",
		}, []string{"outcome"}),
		clashes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "statusrelay_ingest_suspected_clashes_total",
			Help: "Lifecycle updates that were stale by seconds of generation: two publishers probably disagree about when the execution started.",
		}),
	}
	if in.defaultHub == "" {
		in.defaultHub = "default"
	}
	if in.log == nil {
		in.log = slog.New(slog.DiscardHandler)
	}
	if in.now == nil {
		in.now = time.Now
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(in.updates, in.clashes)
	}
	return in
}

// Message is one message as the broker delivered it. Sequence is the broker's
// own number of it, which orders updates that declare no position.
type Message struct {
	Body     []byte
	Sequence int64
}

// Handle puts a batch and returns a verdict for each message: nil (stored, or
// known to be stale), a *status.InvalidError (it can never be stored), an
// ErrUnavailable (try again later), or anything else (internal).
func (in *Ingester) Handle(ctx context.Context, batch []Message) []error {
	verdicts := make([]error, len(batch))
	decoded := make([]wire.Message, len(batch))
	updates := make([]*status.Update, 0, len(batch))
	index := make([]int, 0, len(batch)) // of each update's message
	now, p := in.now(), in.policy()
	for i, m := range batch {
		var err error
		if decoded[i], err = wire.Decode(m.Body, now); err != nil {
			verdicts[i] = err
			in.updates.WithLabelValues("refused").Inc()
			continue
		}
		u := &decoded[i].Update
		u.Broker = m.Sequence
		if u.Hub == "" {
			u.Hub = in.defaultHub
		}
		p.Filter(u)
		updates, index = append(updates, u), append(index, i)
	}
	if len(updates) == 0 {
		return verdicts
	}
	outcomes, errs := in.store.Put(ctx, updates)
	for j, u := range updates {
		verdicts[index[j]] = errs[j]
		in.count(u, outcomes[j], errs[j])
	}
	return verdicts
}

func (in *Ingester) count(u *status.Update, out status.Outcome, err error) {
	outcome := "stale"
	switch {
	case errors.Is(err, status.ErrUnavailable):
		return // it is not over yet
	case err != nil:
		outcome = "failed"
	case out.Visible:
		outcome = "visible"
	case out.Changed:
		outcome = "hidden"
	case out.Duplicates > 0 && out.StaleLanes == 0:
		outcome = "duplicate"
	}
	in.updates.WithLabelValues(outcome).Inc()
	if out.SuspectedClash {
		in.clashes.Inc()
		in.warn.Do(func() {
			in.log.Warn("lifecycle update is older than its record by seconds of generation: do two publishers take different clock readings for the start of an execution?",
				"hub", u.Hub, "instanceId", u.InstanceID, "generation", *u.Generation)
		})
	}
}
