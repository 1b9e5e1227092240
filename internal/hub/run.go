package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"statusrelay/internal/status"
)

// Pauses after a call that failed: the first one, doubled up to the last one. Each is shortened at random, so that
// replicas do not come back in step.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// ageInterval is how exact it is when something becomes stale.
const ageInterval = time.Second

// Run keeps the watched instances subscribed and read, until ctx is done; then it returns nil. It is the only caller of
// feed and store. When they fail it pauses and tries again, for as long as it takes; watches stay open.
func (h *Hub) Run(ctx context.Context, feed Feed, store Store) error {
	r := &runner{Hub: h, feed: feed, store: store}
	r.tick = time.NewTimer(r.period())
	defer r.tick.Stop()
	ages := time.NewTicker(ageInterval)
	defer ages.Stop()
	r.ages = ages.C
	for ctx.Err() == nil {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			h.metrics.failures.Inc()
			h.log.WarnContext(ctx, "reading watched instances", "error", err)
			r.pause(ctx)
		}
	}
	return nil
}

// runner is the state of one Run. Nothing of it is shared.
type runner struct {
	*Hub
	feed  Feed
	store Store
	tick  *time.Timer
	ages  <-chan time.Time
	pauses

	// The lap that reads everything again goes round the shards and has no end and no beginning: a gap makes
	// all of them due, a tick one.
	cursor int         // the next shard
	due    int         // how many shards, from the cursor on, are to be read
	rest   []*instance // of the shards before the cursor, what is still to be read

	keys   []status.Key
	known  []int64
	asking []*instance
}

// period of ticks: one shard each.
func (r *runner) period() time.Duration {
	return jitter(r.options.Refresh / shardCount)
}

// jitter returns a duration between three and four quarters of d.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/4+1)
}

// pauses are those between calls that fail.
type pauses struct {
	wait time.Duration // the last one, 0 after a call that did not fail
}

func (p *pauses) pause(ctx context.Context) {
	p.wait = min(max(2*p.wait, firstPause), lastPause)
	t := time.NewTimer(jitter(p.wait))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// step waits until there is something to do and does a bounded piece of it. New watches and re-reading take turns, so
// that neither a storm of the one nor a long lap of the other starves the rest.
func (r *runner) step(ctx context.Context) error {
	if r.gap.Swap(false) {
		r.due = shardCount
	}
	select {
	case <-r.tick.C:
		r.ticked()
	case <-r.ages:
		r.age()
	default:
	}
	batch := r.dequeue()
	if len(batch) == 0 && len(r.rest) == 0 && r.due == 0 {
		select {
		case <-r.kick:
		case <-r.tick.C:
			r.ticked()
		case <-r.ages:
			r.age()
		case <-ctx.Done():
		}
		return nil
	}
	if len(batch) > 0 {
		if err := r.admit(ctx, batch); err != nil {
			return err
		}
	}
	if err := r.reread(ctx); err != nil {
		return err
	}
	r.wait = 0
	return nil
}

// ticked makes one more shard due.
func (r *runner) ticked() {
	r.tick.Reset(r.period())
	r.due = max(r.due, 1)
}

// age looks at what has become stale.
func (r *runner) age() {
	now := time.Now().UnixMicro()
	for i := range r.shards {
		s := &r.shards[i]
		if at := s.staleAt.Load(); at == 0 || at > now {
			continue
		}
		s.staleAt.Store(0) // before the instances are looked at: an offer from now on lowers it again
		s.mu.RLock()
		for _, in := range s.instances {
			in.mu.Lock()
			at := in.staleAt
			if at != 0 && at <= now {
				in.staleAt = 0 // it is read, and offered with its age
			}
			in.mu.Unlock()
			switch {
			case at == 0:
			case at <= now:
				r.look(in)
			default:
				s.expect(at)
			}
		}
		s.mu.RUnlock()
	}
}

// dequeue takes the instances that somebody wants to be looked at, up to a batch.
func (r *runner) dequeue() []*instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.queue), r.options.Batch)
	batch := r.queue[:n:n]
	r.queue = r.queue[n:]
	if len(r.queue) == 0 {
		r.queue = nil // release what a storm has made it grow to
	}
	for _, in := range batch {
		in.queued = false
	}
	return batch
}

// admit forgets the instances that nobody watches any more, subscribes those that are new, and reads all others. As
// one goroutine does all of it, a watch that is opened while its instance is being forgotten finds either the old one
// or a new one, which is subscribed after the old one was unsubscribed.
func (r *runner) admit(ctx context.Context, batch []*instance) error {
	watched := batch[:0]
	asking := r.asking[:0]
	var forgotten []status.Key
	for _, in := range batch {
		switch {
		case r.forget(in):
			if in.asked {
				in.asked, in.live = false, false
				forgotten = append(forgotten, in.key)
			}
			continue
		case !in.live:
			asking = append(asking, in)
		}
		watched = append(watched, in)
	}
	r.asking = asking
	if len(forgotten) > 0 {
		r.feed.Unsubscribe(forgotten)
	}
	if err := r.subscribe(ctx, asking); err != nil {
		r.again(watched)
		return err
	}
	if err := r.read(ctx, watched); err != nil {
		r.again(watched)
		return err
	}
	return nil
}

// forget removes an instance that nobody watches.
func (r *runner) forget(in *instance) bool {
	s := r.shard(in.key)
	s.mu.Lock()
	defer s.mu.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.first != nil {
		return false
	}
	// It may be in the queue twice in a row, and have a successor of the same name by then.
	if s.instances[in.key] == in {
		delete(s.instances, in.key)
		r.metrics.instances.Dec()
	}
	return true
}

// again puts instances back, behind all others.
func (r *runner) again(batch []*instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, in := range batch {
		if !in.queued {
			in.queued = true
			r.queue = append(r.queue, in)
		}
	}
}

func (r *runner) subscribe(ctx context.Context, batch []*instance) error {
	if len(batch) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	keys := make([]status.Key, len(batch)) // the feed may keep them
	for i, in := range batch {
		in.asked = true
		keys[i] = in.key
	}
	if err := r.feed.Subscribe(ctx, keys); err != nil {
		return fmt.Errorf("subscribe to %d instances: %w", len(keys), err)
	}
	for _, in := range batch {
		in.live = true
	}
	return nil
}

// read offers what the store has for these instances.
func (r *runner) read(ctx context.Context, batch []*instance) error {
	if len(batch) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	r.keys, r.known = r.keys[:0], r.known[:0]
	for _, in := range batch {
		in.mu.Lock()
		known := in.version
		in.mu.Unlock()
		r.keys, r.known = append(r.keys, in.key), append(r.known, known)
	}
	records, err := r.store.Latest(ctx, r.keys)
	if err == nil && len(records) != len(r.keys) {
		err = errShort
	}
	if err != nil {
		return fmt.Errorf("read %d instances: %w", len(r.keys), err)
	}
	r.metrics.reads.Add(float64(len(r.keys)))
	for i, in := range batch {
		if records[i] != nil {
			in.offer(records[i])
		} else {
			in.none(r.known[i])
		}
	}
	return nil
}

// reread reads a batch of what is due to be read again.
func (r *runner) reread(ctx context.Context) error {
	for len(r.rest) < r.options.Batch && r.due > 0 {
		s := &r.shards[r.cursor]
		r.cursor = (r.cursor + 1) % shardCount
		r.due--
		s.mu.RLock()
		for _, in := range s.instances {
			if in.live { // others are in the queue, and read after they are subscribed
				r.rest = append(r.rest, in)
			}
		}
		s.mu.RUnlock()
	}
	n := min(len(r.rest), r.options.Batch)
	if err := r.read(ctx, r.rest[:n]); err != nil {
		return err
	}
	r.rest = r.rest[n:]
	if len(r.rest) == 0 {
		r.rest = nil
	}
	return nil
}
