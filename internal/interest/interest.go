// Package interest says which instances somebody wants who uses this replica, to whoever bridges a runtime that does not publish
// by itself: such a bridge reads what is wanted, and nothing else.
//
// It promises that
//
//   - what comes to be wanted is announced at once, or within 50 ms when much is, and what is watched is announced again for as
//     long as it is;
//   - an instance is announced once in a third of the time that an announcement counts, however often it is asked for;
//   - while the store is away, announcements wait, for as long as they would count; nobody who asks ever waits for one;
//   - its memory is bounded: what there is no room for is counted, and comes again when somebody asks again.
//
// Use:
//
//	i := interest.New(interest.Options{Hubs: []string{"orders"}})
//	h := hub.New(hub.Options{Wanted: i.Opened})
//	go i.Run(ctx, store, h.Wanted)
//	…
//	if i.Bridged(key.Hub) {
//		i.Want(key, true)
//	}
package interest

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/status"
)

// A Store passes on what is wanted.
type Store interface {
	// Announce says that instances are wanted until a time.
	Announce(ctx context.Context, keys []status.Key, until time.Time) error
}

// Options of an Interest.
type Options struct {
	// Hubs are those that are bridged. Of others nothing is announced.
	Hubs []string
	// Period is how long an announcement counts. Default 1 minute.
	Period time.Duration
	// Most is how many instances are remembered, some 200 bytes each without their names; of those that are not known to exist
	// half as many. Default 65,536.
	Most int

	Logger  *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: counted nowhere visible
}

const (
	pause     = 50 * time.Millisecond // between announcements
	maxPause  = 5 * time.Second       // while they fail
	batch     = 1000                  // instances in one
	timeout   = 3 * time.Second       // of one
	laps      = 12                    // times per period that what is watched is looked at
	perPeriod = 3                     // times that an instance is announced
)

// An Interest is what is wanted here. It is safe for concurrent use.
type Interest struct {
	options Options
	hubs    map[string]bool // set once
	metrics metrics
	wake    chan struct{} // holds a token when something is due

	mu    sync.Mutex
	known map[status.Key]wish // guarded by mu: what was announced lately, or is due
	due   []status.Key        // guarded by mu: what is to be announced, each once
}

// A wish is what is remembered of an instance.
type wish struct {
	due    bool      // it is to be announced; else it has been
	exists bool      // it did when somebody asked for it
	at     time.Time // when somebody asked for it: of what was announced, the last one before that
}

// New returns an Interest in which nothing is wanted yet.
func New(o Options) *Interest {
	if o.Period <= 0 {
		o.Period = time.Minute
	}
	if o.Most <= 0 {
		o.Most = 1 << 16
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	i := &Interest{
		options: o, hubs: make(map[string]bool), metrics: newMetrics(o.Metrics), wake: make(chan struct{}, 1),
		known: make(map[status.Key]wish),
	}
	for _, h := range o.Hubs {
		i.hubs[h] = true
	}
	return i
}

// Bridged reports whether instances of a hub can be fetched. It is false of a nil Interest.
func (i *Interest) Bridged(hub string) bool { return i != nil && i.hubs[hub] }

// Want says that somebody wants an instance, of which they know that it exists, or not.
func (i *Interest) Want(k status.Key, exists bool) {
	if !i.Bridged(k.Hub) {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	w, ok := i.known[k]
	switch {
	case ok && w.due: // those who ask last
	case ok && i.counts(w, perPeriod):
		return
	case !ok && len(i.known) >= i.room(exists):
		i.metrics.dropped.Inc()
		return
	default:
		i.due = append(i.due, k)
		i.nudge()
	}
	i.known[k] = wish{due: true, exists: exists || w.due && w.exists, at: time.Now()}
}

// room is how many there may be before one more: half of it is for those that exist, whatever somebody invents.
func (i *Interest) room(exists bool) int {
	if exists {
		return i.options.Most
	}
	return i.options.Most / 2
}

// Opened is Want of what has just come to be watched: whether it exists is found out meanwhile.
func (i *Interest) Opened(k status.Key) { i.Want(k, false) }

// Run announces until ctx is done, and then returns nil. watched are the instances that are wanted for as long as they are in
// there, and whether they exist.
func (i *Interest) Run(ctx context.Context, store Store, watched iter.Seq2[status.Key, bool]) error {
	lap := time.NewTimer(i.lap())
	defer lap.Stop()
	pausing := time.NewTimer(0)
	defer pausing.Stop()
	wake, wait := (chan struct{})(nil), pause
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-lap.C:
			i.renew(watched)
			lap.Reset(i.lap())
			continue
		case <-pausing.C:
			wake = i.wake
			continue
		case <-wake:
		}
		err := i.announce(ctx, store)
		switch {
		case err == nil:
			wait = pause
		case ctx.Err() != nil:
			return nil
		default:
			if wait == pause {
				i.options.Logger.WarnContext(ctx, "what is wanted cannot be announced", "error", err)
			}
			i.metrics.failures.Inc()
			wait = min(2*wait, maxPause)
		}
		wake = nil
		pausing.Reset(wait - rand.N(wait/4))
	}
}

// renew wants what is watched once more, and forgets what nobody has wanted for so long that it would be announced again.
func (i *Interest) renew(watched iter.Seq2[status.Key, bool]) {
	i.mu.Lock()
	for k, w := range i.known {
		if !w.due && !i.counts(w, perPeriod) {
			delete(i.known, k)
		}
	}
	i.mu.Unlock()
	watched(func(k status.Key, exists bool) bool {
		i.Want(k, exists)
		return true
	})
}

// counts reports whether a wish is younger than a part of the period.
func (i *Interest) counts(w wish, part time.Duration) bool {
	return time.Since(w.at) < i.options.Period/part
}

// announce announces what is due, a batch at most. What fails stays due.
func (i *Interest) announce(ctx context.Context, store Store) error {
	existing, others := i.take()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	now := time.Now()
	// What is not known to exist counts for half as long, which is still until it is announced again: where there is no room
	// for all, those leave first that may be inventions.
	err := i.tell(ctx, store, existing, now.Add(i.options.Period))
	return errors.Join(err, i.tell(ctx, store, others, now.Add(i.options.Period/2)))
}

// take takes what is due, apart by whether it exists, but for that of which the time has passed.
func (i *Interest) take() (existing, others []status.Key) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := min(len(i.due), batch)
	for _, k := range i.due[:n] {
		switch w := i.known[k]; {
		case !i.counts(w, 1):
			delete(i.known, k)
			i.metrics.dropped.Inc()
		case w.exists:
			existing = append(existing, k)
		default:
			others = append(others, k)
		}
	}
	if i.due = i.due[n:]; len(i.due) == 0 {
		i.due = nil
	} else {
		i.nudge()
	}
	return existing, others
}

// tell announces instances until a time.
func (i *Interest) tell(ctx context.Context, store Store, keys []status.Key, until time.Time) error {
	if len(keys) == 0 {
		return nil
	}
	err := store.Announce(ctx, keys, until)
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		i.due = append(i.due, keys...)
		i.nudge()
		return err
	}
	i.metrics.announced.Add(float64(len(keys)))
	for _, k := range keys {
		w := i.known[k]
		w.due = false
		i.known[k] = w
	}
	return nil
}

func (i *Interest) nudge() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// lap is the time until what is watched is looked at again: replicas that started together do not do so in step.
func (i *Interest) lap() time.Duration {
	d := i.options.Period / laps
	return d - rand.N(d/4+1)
}
