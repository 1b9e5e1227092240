// Package durablehttp watches the orchestrations of a function app from outside: it
// reads the status of those that somebody is interested in from the HTTP management
// API of Durable Functions and publishes what has changed, each once, however many
// people look on.
//
// It promises:
//
//   - The function app is asked at most at [Options.Rate] with [Options.Concurrency]
//     requests at a time, whatever is of interest, and not at all for what is not,
//     but for what has been silent for too long and what discovery finds. While it
//     fails it is asked now and then only; when it says Retry-After it is left alone.
//   - One replica bridges a hub. Another takes over when its lease ends.
//   - What could not be read changes nothing: an answer that is cut off, of another
//     instance, or no status at all, is counted and that is it.
//   - Only changes are published, in positions of their own (position.go): a lane that
//     another publishes stays that one's, and neither a restart, nor a takeover, nor
//     two bridges at once, make a reader's status go back.
//   - The key of the function app goes into one header of its own requests, and into
//     no URL, log, error or metric.
//
// It knows neither Redis nor Service Bus:
//
//	b, err := durablehttp.New(durablehttp.Options{URL: url, Hub: "orders", Interest: store, Records: store, Lock: store, Publish: publish})
//	err = b.Run(ctx)
package durablehttp

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// Interest is who wants to know what.
type Interest interface {
	// Interested are the instances of a hub that are of interest now.
	Interested(ctx context.Context, hub string) ([]string, error)
	// FollowInterest tells of new ones at once, until ctx ends. It may miss some.
	FollowInterest(ctx context.Context, hub string, heard func(id string)) error
}

// Records are what is stored.
type Records interface {
	Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error)
	List(ctx context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error)
}

// Lock lets one holder at a time have a name, until a time to live has passed since
// it was last asked for.
type Lock interface {
	Lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error)
	Release(ctx context.Context, name, holder string) error
}

// Options configure a Bridge. URL, Hub and the parts are required.
type Options struct {
	URL        string                 // of the API, up to …/runtime/webhooks/durabletask
	Hub        string                 // to which its instances belong here
	TaskHub    string                 // what the runtime calls it; "": its default
	Connection string                 // name of the setting with the storage's connection string; "": its default
	Key        func() (string, error) // the system key, asked for again when it was refused; nil: none is needed

	Labels        Labels
	LifecycleOnly bool // custom statuses are not published: activities do that

	MinInterval      time.Duration // between reads of an instance that changes; default 1 s
	MaxInterval      time.Duration // of one that does not; default 15 s
	TerminalInterval time.Duration // of one that has ended; default 1 min
	AbsentFor        time.Duration // of one that does not exist, at last; default 30 s
	Silence          time.Duration // after which what has not ended is read, of interest or not; default 5 min
	Reconcile        time.Duration // how often such are looked for; default 1 min
	Discover         time.Duration // how often all that runs is listed; 0: never

	Rate         float64       // requests per second; default 20
	Concurrency  int           // requests at a time; default 8
	Timeout      time.Duration // of a request; default 10 s
	MaxBodyBytes int64         // of an answer; default 4 MiB

	Interest Interest
	Records  Records
	Lock     Lock
	// Publish returns an error for each message, nil when the broker has it.
	Publish func(context.Context, []wire.Message) []error

	Transport http.RoundTripper     // default: one of its own
	Logger    *slog.Logger          // default: discarded
	Metrics   prometheus.Registerer // default: counted nowhere visible
}

func (o *Options) fill() error {
	var errs []error
	for _, d := range []struct {
		name     string
		value    *time.Duration
		standard time.Duration
	}{
		{"MinInterval", &o.MinInterval, time.Second},
		{"MaxInterval", &o.MaxInterval, 15 * time.Second},
		{"TerminalInterval", &o.TerminalInterval, time.Minute},
		{"AbsentFor", &o.AbsentFor, 30 * time.Second},
		{"Silence", &o.Silence, 5 * time.Minute},
		{"Reconcile", &o.Reconcile, time.Minute},
		{"Timeout", &o.Timeout, 10 * time.Second},
	} {
		if *d.value = cmp.Or(*d.value, d.standard); *d.value < 0 {
			errs = append(errs, fmt.Errorf("%s: negative", d.name))
		}
	}
	o.Rate, o.Concurrency, o.MaxBodyBytes = cmp.Or(o.Rate, 20), cmp.Or(o.Concurrency, 8), cmp.Or(o.MaxBodyBytes, 4<<20)
	if o.Rate < 0 || o.Concurrency < 0 || o.MaxBodyBytes < 0 || o.Discover < 0 {
		errs = append(errs, errors.New("one of Rate, Concurrency, MaxBodyBytes and Discover is negative"))
	}
	if o.MinInterval < LeastInterval || o.MaxInterval < o.MinInterval {
		errs = append(errs, fmt.Errorf("MinInterval: below %s, or above MaxInterval", LeastInterval))
	}
	if err := status.ValidHub(o.Hub); err != nil {
		errs = append(errs, err)
	}
	if err := o.Labels.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("Labels: %w", err))
	}
	if o.Interest == nil || o.Records == nil || o.Lock == nil || o.Publish == nil {
		errs = append(errs, errors.New("Interest, Records, Lock, Publish: all are required"))
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost, t.ResponseHeaderTimeout = o.Concurrency, o.Timeout
		o.Transport = t
	}
	return errors.Join(errs...)
}

// LeastInterval is the least MinInterval. It leaves the bridge's clock, which counts
// in steps of 66 ms, behind the real one.
const LeastInterval = 100 * time.Millisecond

// Bridge bridges one hub to one function app.
type Bridge struct {
	o      Options
	client *client
	m      *metrics
	lock   string // its name
	holder string
}

// New checks the options, all of them, and starts nothing.
func New(o Options) (*Bridge, error) {
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	c, err := newClient(&o)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("bridge metrics: %w", err)
	}
	return &Bridge{o: o, client: c, m: m, lock: "bridge/" + o.Hub, holder: rand.Text()}, nil
}

// Hub is the hub that is bridged.
func (b *Bridge) Hub() string { return b.o.Hub }

const (
	// lease is how long a replica that has died still counts as the one that bridges.
	lease = 15 * time.Second
	// renewal is how often it says that it has not, and others ask.
	renewal = lease / 3
)

// Run bridges until ctx ends, whenever this replica is the one to do it.
func (b *Bridge) Run(ctx context.Context) error {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	failing := false
	for ctx.Err() == nil {
		asked := time.Now()
		got, err := b.lease(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			b.o.Logger.Warn("the bridge cannot ask whose turn it is", "hub", b.o.Hub, "error", err)
		}
		failing = err != nil
		if got && err == nil {
			b.lead(ctx, asked)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

func (b *Bridge) lease(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, renewal)
	defer cancel()
	return b.o.Lock.Lease(ctx, b.lock, b.holder, lease)
}

// lead bridges for as long as this replica has the lease, which it got at a time.
// Whatever it learns meanwhile it forgets in the end: the next time, another may
// have said something else.
func (b *Bridge) lead(ctx context.Context, since time.Time) {
	b.o.Logger.Info("this replica bridges the hub", "hub", b.o.Hub)
	b.m.leads.Set(1)
	term, cancel := context.WithCancel(ctx)
	t := newTerm(b)
	var parts sync.WaitGroup
	parts.Go(func() {
		defer cancel()
		b.keep(term, since)
	})
	parts.Go(func() { t.follow(term) })
	parts.Go(func() { t.look(term) })
	parts.Go(func() { t.reconcile(term) })
	t.run(term)
	cancel()
	parts.Wait()
	b.m.leads.Set(0)
	b.m.instances.Set(0)
	if ctx.Err() != nil { // told to stop: others need not wait until the lease ends
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := b.o.Lock.Release(last, b.lock, b.holder); err != nil {
			b.o.Logger.Debug("the bridge's lease ends by itself", "hub", b.o.Hub, "error", err)
		}
		return
	}
	b.o.Logger.Warn("this replica bridges the hub no more", "hub", b.o.Hub)
}

// keep renews the lease until it is lost, or may be.
func (b *Bridge) keep(ctx context.Context, renewed time.Time) {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked := time.Now()
		got, err := b.lease(ctx)
		switch {
		case err == nil && got:
			renewed = asked
		case err == nil, time.Since(renewed) >= lease-renewal:
			return
		}
	}
}
