// Package hub knows who in this process watches which instance, and tells them when its status changes.
//
// A status is state, not a stream: a watch is a cell that keeps the newest version it has been offered, and nothing
// else. There is no queue anywhere, so a reader that is slow, stuck or gone costs one pending pointer and delays
// nobody. An idle watch holds no record at all.
//
// It promises that
//
//   - the versions that a watch is given only grow, whatever the order of the offers, and end on the newest;
//   - a watch is told the state of its instance soon after it was opened, also when there is none, and nothing that
//     happens in between is missed: the hub subscribes first, then reads, and offers both;
//   - after a [Hub.Gap], and in any case once in every [Options.Refresh], every watched instance is read again, so
//     that a lost push and a record that expired are noticed;
//   - an instance that has been silent for longer than its limit is told to be stale, once, within about a second;
//   - it knows which of the watched instances somebody wants who may see them, for whoever would have to fetch them;
//   - an offer allocates nothing per watch, and nothing is written to any socket under one of its locks.
//
// [Lists] does the same for queries: it tells a reader which instances the query selects, as they appear.
//
// Use:
//
//	h := hub.New(hub.Options{})
//	go h.Run(ctx, follower, store) // follower calls h.Offer and h.Gap
//	…
//	h.Watch(&w, key, sink)         // w is a field of what the transport keeps per watch
//	…                              // sink.Wake: something is pending
//	if s := w.Take(); s != nil { … }
//	w.Close()
package hub

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/status"
)

// A Feed delivers the changes of the instances that it is asked for, to [Hub.Offer]. Its methods are called by
// [Hub.Run] only, never concurrently, and are idempotent.
type Feed interface {
	// Subscribe returns when a read that starts now misses no change of these instances.
	Subscribe(ctx context.Context, keys []status.Key) error
	Unsubscribe(keys []status.Key)
}

// A Store has the newest record of every instance.
type Store interface {
	// Latest returns one record per key, nil where there is none.
	Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error)
}

// Options of a Hub. The zero value is ready for use.
type Options struct {
	// Refresh is the period in which every watched instance is read again although nobody missed anything. It
	// bounds for how long an expired record or a push that was lost goes unnoticed. Default 1 minute.
	Refresh time.Duration
	// Timeout of one call to the feed or the store. Default 5 seconds.
	Timeout time.Duration
	// Batch is the largest number of instances in one such call. Default 500.
	Batch int
	// StaleAfter is for how long an instance may be silent before it is stale, 0 for ever. Default: for ever.
	StaleAfter func(*status.Record) time.Duration
	// Wanted is told of each instance that comes to be wanted (Watch.Want). It must not block and must not use the hub.
	// Default: nobody is told, and nothing is wanted.
	Wanted func(status.Key)

	Logger  *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: counted nowhere visible
}

// shardCount is a power of two, large enough that offers and joins rarely meet in one shard, and the number of slices in
// which a refresh is spread over its period.
const shardCount = 64

// A Hub is safe for concurrent use.
type Hub struct {
	options Options
	log     *slog.Logger
	metrics *metrics
	seed    maphash.Seed

	shards [shardCount]shard

	kick chan struct{} // wakes Run; holds at most one token
	gap  atomic.Bool   // changes may have been missed since the last lap began

	mu    sync.Mutex
	queue []*instance // guarded by mu: instances that Run has to look at, each at most once
}

type shard struct {
	mu        sync.RWMutex
	instances map[status.Key]*instance // guarded by mu

	// staleAt is no later than the first staleAt of an instance, in microseconds; 0: none.
	staleAt atomic.Int64
}

// expect lowers staleAt to a time at which an instance may become stale.
func (s *shard) expect(at int64) {
	for {
		have := s.staleAt.Load()
		if have != 0 && have <= at || s.staleAt.CompareAndSwap(have, at) {
			return
		}
	}
}

// An instance is what the hub keeps of an instance that is watched here.
type instance struct {
	hub *Hub
	key status.Key

	// owned by Run
	asked bool // the feed has been asked for it
	live  bool // the feed has confirmed it

	queued bool // guarded by hub.mu

	// guarded by mu, which is held while watches are woken: waking never blocks
	mu      sync.Mutex
	gone    bool   // version is the hub's own way to say that the record is no longer there
	version int64  // highest that was offered
	staleAt int64  // when that version becomes stale, in unix microseconds; 0: never, or it is known
	first   *Watch // list of watches, linked by next and prev
	wanting int    // how many of them want it
}

// New returns a hub without watches.
func New(o Options) *Hub {
	if o.Refresh <= 0 {
		o.Refresh = time.Minute
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Batch <= 0 {
		o.Batch = 500
	}
	if o.StaleAfter == nil {
		o.StaleAfter = func(*status.Record) time.Duration { return 0 }
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{
		options: o,
		log:     log,
		metrics: newMetrics(o.Metrics),
		seed:    maphash.MakeSeed(),
		kick:    make(chan struct{}, 1),
	}
	for i := range h.shards {
		h.shards[i].instances = make(map[status.Key]*instance)
	}
	return h
}

func (h *Hub) shard(key status.Key) *shard {
	return &h.shards[maphash.String(h.seed, key.InstanceID)%shardCount]
}

// Watch opens w, a zero Watch, on an instance: sink is woken soon with the state that the instance has now, and then
// whenever it changes, until w is closed.
func (h *Hub) Watch(w *Watch, key status.Key, sink Sink) {
	w.sink = sink
	s := h.shard(key)
	s.mu.Lock()
	in := s.instances[key]
	if in == nil {
		in = &instance{hub: h, key: key}
		s.instances[key] = in
		h.metrics.instances.Inc()
	}
	// Under both locks, so that Run cannot find the instance unwatched in between and forget it.
	in.mu.Lock()
	in.link(w)
	in.mu.Unlock()
	s.mu.Unlock()
	h.metrics.watches.Inc()
	h.look(in)
}

// Wanted yields all instances that are wanted here, and whether they are known to exist. What yield does must not block and
// must not use the hub.
func (h *Hub) Wanted(yield func(k status.Key, exists bool) bool) {
	for i := range h.shards {
		if !h.shards[i].wanted(yield) {
			return
		}
	}
}

func (s *shard) wanted(yield func(status.Key, bool) bool) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for k, in := range s.instances {
		in.mu.Lock()
		wanted, exists := in.wanting > 0, in.version > 0 && !in.gone
		in.mu.Unlock()
		if wanted && !yield(k, exists) {
			return false
		}
	}
	return true
}

// Offer gives a record to the watches of its instance. Those that know a newer version keep it.
func (h *Hub) Offer(r *status.Record) {
	s := h.shard(r.Key())
	s.mu.RLock()
	in := s.instances[r.Key()]
	s.mu.RUnlock()
	if in != nil {
		in.offer(r)
	}
}

// Gap says that changes may have been missed: every watched instance is read again. Gaps that come while that is going on
// are answered together by one further round.
func (h *Hub) Gap() {
	h.metrics.gaps.Inc()
	h.gap.Store(true)
	h.wake()
}

// look makes Run look at an instance.
func (h *Hub) look(in *instance) {
	h.mu.Lock()
	if !in.queued {
		in.queued = true
		h.queue = append(h.queue, in)
	}
	h.mu.Unlock()
	h.wake()
}

func (h *Hub) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

func (in *instance) link(w *Watch) {
	w.instance = in
	w.next = in.first
	if in.first != nil {
		in.first.prev = w
	}
	in.first = w
}

func (in *instance) unlink(w *Watch) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		in.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
}

func (in *instance) offer(r *status.Record) {
	h := in.hub
	h.metrics.offers.Inc()
	limit, staleAt := h.options.StaleAfter(r), int64(0)
	if limit > 0 {
		if r = r.Aged(limit, time.Now()); !r.Stale && !r.Terminal() {
			staleAt = r.StaleAt(limit).UnixMicro()
		}
	}
	in.mu.Lock()
	if r.Version > in.version {
		in.version, in.gone, in.staleAt = r.Version, false, staleAt
	}
	in.broadcast(&Snapshot{Record: r, Version: r.Version})
	in.mu.Unlock()
	if staleAt != 0 {
		h.shard(in.key).expect(staleAt)
	}
}

// none says that a read has found no record. known is the version that had been offered when that read began: if
// another one has been offered since, the instance was written after it was read, and the read says nothing.
func (in *instance) none(known int64) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.version != known {
		return
	}
	if !in.gone {
		// The store has no version for what is not there. Whatever comes next will have one that is
		// greater still: versions are microseconds of the store's clock.
		in.version, in.gone, in.staleAt = in.version+1, true, 0
	}
	in.broadcast(&Snapshot{Version: in.version})
}

// broadcast offers to all watches of the instance. It needs in.mu.
func (in *instance) broadcast(s *Snapshot) {
	conflated := 0
	for w := in.first; w != nil; w = w.next {
		if w.offer(s) {
			conflated++
		}
	}
	if conflated > 0 {
		in.hub.metrics.conflated.Add(float64(conflated))
	}
}

// errShort is a fault of the store that would otherwise mix up instances.
var errShort = errors.New("the store did not answer for every key")
