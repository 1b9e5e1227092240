package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"statusrelay/internal/status"
)

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// errUnsubscribed is what a Subscribe returns that an Unsubscribe overtook.
var errUnsubscribed = errors.New("unsubscribed meanwhile")

// FollowOptions configure a Follower.
type FollowOptions struct {
	// Offer is given each record that is published. Nothing else is received
	// meanwhile, so it must be fast. Two goroutines may call it at a time.
	// Required.
	Offer func(*status.Record)
	// Touch is given the instances that entered an index, left it or changed in it,
	// in the way that Offer is given records. Default: nobody is told.
	Touch func(status.Index, []status.Key)
	// Gap is called when records may have been missed and the subscription
	// stands again: from now on a read of what is subscribed misses nothing. A
	// message about an index that cannot be read counts as a gap, because nobody
	// knows which instances it was to name. It must not block. Two goroutines may
	// call it at a time. Required.
	Gap func()

	// ProbeInterval is the pause between two probes. Default 2 s.
	ProbeInterval time.Duration
	// ProbeTimeout is how long a probe may take from being published to being
	// received. Default 5 s.
	ProbeTimeout time.Duration
}

// Follower receives what is put for the instances, and what changes in the
// indexes, that are subscribed to.
// Nothing happens unless Run runs; the other methods may be called at any time
// from any goroutine.
//
// It uses plain channels, which a Cluster broadcasts to all of its nodes.
type Follower struct {
	store   *Store
	options FollowOptions
	probe   string // name of the channel that only this Follower uses
	ready   atomic.Bool
	wake    chan struct{} // has a token when moves or doubts were added

	mu     sync.Mutex
	topics map[string]*topic   // guarded by mu; by channel, all that are wanted or on the connection
	moves  map[string]struct{} // guarded by mu; channels whose topic may need a command
	doubts map[string]struct{} // guarded by mu; channels that carried an unreadable message
}

// topic is one channel. All of it is guarded by the Follower's mu.
type topic struct {
	subject
	wanted   bool    // the last wish
	on       bool    // the last command sent on this connection was SUBSCRIBE
	inFlight int     // commands that Redis has not confirmed
	waits    []*wait // for the topic to be live
}

// subject is what a channel is about.
type subject struct {
	key   status.Key    // the instance, unless
	index *status.Index // this is not nil
}

// live: Redis has confirmed that what is wanted is delivered.
func (t *topic) live() bool { return t.wanted && t.on && t.inFlight == 0 }

// idle: the connection knows nothing of the topic.
func (t *topic) idle() bool { return !t.on && t.inFlight == 0 }

// wait is somebody waiting for topics to be live. All but done is guarded by the
// Follower's mu.
type wait struct {
	left int
	err  error
	done chan struct{} // closed when left is 0
}

// settle tells those who wait for the topic that it is live, or why never.
func (t *topic) settle(err error) {
	for _, w := range t.waits {
		if err != nil {
			w.err = err
		}
		if w.left--; w.left == 0 {
			close(w.done)
		}
	}
	t.waits = nil
}

func (t *topic) forget(w *wait) {
	t.waits = slices.DeleteFunc(t.waits, func(other *wait) bool { return other == w })
}

// Follow returns a Follower that has no subscriptions yet.
func (s *Store) Follow(o FollowOptions) *Follower {
	if o.ProbeInterval <= 0 {
		o.ProbeInterval = 2 * time.Second
	}
	if o.ProbeTimeout <= 0 {
		o.ProbeTimeout = 5 * time.Second
	}
	return &Follower{
		store:   s,
		options: o,
		probe:   s.options.Prefix + ":probe:" + rand.Text(),
		wake:    make(chan struct{}, 1),
		topics:  make(map[string]*topic),
		moves:   make(map[string]struct{}),
		doubts:  make(map[string]struct{}),
	}
}

// Ready reports whether the subscription stands and delivered the last probe.
func (f *Follower) Ready() bool { return f.ready.Load() }

// Subscribe asks for the records of instances and returns when Redis has
// confirmed all of them: a read after it misses nothing. Subscribing again
// changes nothing. While Redis is away it waits for as long as the context
// allows; the error is then a status.ErrUnavailable and the instances stay
// asked for until they are unsubscribed.
func (f *Follower) Subscribe(ctx context.Context, keys []status.Key) error {
	return f.subscribe(ctx, f.names(keys), func(i int) subject { return subject{key: keys[i]} })
}

// SubscribeLists asks for what changes in indexes, as Subscribe asks for records.
func (f *Follower) SubscribeLists(ctx context.Context, indexes []status.Index) error {
	return f.subscribe(ctx, f.indexNames(indexes), func(i int) subject {
		index := indexes[i]
		return subject{index: &index}
	})
}

// subscribe asks for channels; subjectOf says what each is about.
func (f *Follower) subscribe(ctx context.Context, names []string, subjectOf func(int) subject) error {
	w := f.want(names, subjectOf)
	f.nudge()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range names {
		if t := f.topics[name]; t != nil {
			t.forget(w)
		}
	}
	return fmt.Errorf("subscribe: %w: %w", status.ErrUnavailable, ctx.Err())
}

// want notes the wish and returns what its caller has to wait for.
func (f *Follower) want(names []string, subjectOf func(int) subject) *wait {
	w := &wait{done: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, name := range names {
		t := f.topics[name]
		if t == nil {
			t = &topic{subject: subjectOf(i)}
			f.topics[name] = t
		}
		t.wanted = true
		if !t.live() {
			f.moves[name] = struct{}{}
			t.waits = append(t.waits, w)
			w.left++
		}
	}
	if w.left == 0 {
		close(w.done)
	}
	return w
}

// Unsubscribe takes back what Subscribe asked for and does not wait. An offer
// that is under way may still arrive.
func (f *Follower) Unsubscribe(keys []status.Key) { f.unsubscribe(f.names(keys)) }

// UnsubscribeLists takes back what SubscribeLists asked for.
func (f *Follower) UnsubscribeLists(indexes []status.Index) { f.unsubscribe(f.indexNames(indexes)) }

func (f *Follower) unsubscribe(names []string) {
	f.mu.Lock()
	for _, name := range names {
		t := f.topics[name]
		if t == nil {
			continue
		}
		t.wanted = false
		t.settle(errUnsubscribed)
		if t.idle() {
			delete(f.topics, name)
		} else {
			f.moves[name] = struct{}{}
		}
	}
	f.mu.Unlock()
	f.nudge()
}

func (f *Follower) names(keys []status.Key) []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = f.store.name(k)
	}
	return names
}

func (f *Follower) indexNames(indexes []status.Index) []string {
	names := make([]string, len(indexes))
	for n, i := range indexes {
		names[n] = f.store.indexName(i)
	}
	return names
}

func (f *Follower) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run receives until the context is done, and then returns nil. Connections that
// break or fall silent are replaced.
func (f *Follower) Run(ctx context.Context) error {
	log := f.store.options.Logger
	backoff := minBackoff
	for connected := false; ; {
		s := &session{Follower: f, gap: connected}
		err := s.run(ctx)
		f.ready.Store(false)
		f.disconnected(s.restore)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errDeaf) {
			f.store.metrics.deaf.Inc()
		}
		if s.connected {
			connected = true
			log.Warn("redis subscription lost", "error", err)
		} else {
			log.Debug("redis subscription not possible", "error", err)
		}
		if s.restored {
			backoff = minBackoff
		}
		// Half of the pause is random: replicas that lost the same server must
		// not come back to the next one in step.
		pause := time.NewTimer(backoff/2 + mathrand.N(backoff/2))
		backoff = min(2*backoff, maxBackoff)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// disconnected forgets what was true of a connection; restore is the wait of its
// session.
func (f *Follower) disconnected(restore *wait) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.moves)
	clear(f.doubts) // the gap covers them
	for name, t := range f.topics {
		if !t.wanted {
			delete(f.topics, name)
			continue
		}
		t.on, t.inFlight = false, 0
		t.forget(restore)
		f.moves[name] = struct{}{}
	}
}
