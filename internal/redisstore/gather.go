package redisstore

import (
	"context"
	"fmt"
	"sync"

	"statusrelay/internal/status"
)

// gatherers is how many pipelines of gathered reads are on their way at most.
const gatherers = 2

// gather joins reads of single instances that are asked for at the same time
// into pipelines, which cost Redis and this process a fraction of reads that go
// alone. A lone one does not wait: whoever finds less than gatherers at work
// reads, for itself and for all who wait by then.
type gather struct {
	store *Store

	mu       sync.Mutex
	waiting  []*lookup // guarded by mu
	working  int       // guarded by mu: at most gatherers
	closed   bool      // guarded by mu
	handedOn sync.WaitGroup
}

// lookup is one read. Its result is written before done is closed.
type lookup struct {
	key    status.Key
	record *status.Record
	err    error
	done   chan struct{}
}

// latest reads one instance. It returns within ioTimeout, or when ctx is done
// if somebody else reads.
func (g *gather) latest(ctx context.Context, key status.Key) (*status.Record, error) {
	l := &lookup{key: key, done: make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, l)
	reads := g.working < gatherers
	if reads {
		g.working++
	}
	g.mu.Unlock()
	if reads {
		g.work()
	}
	select {
	case <-l.done:
		return l.record, l.err
	case <-ctx.Done():
		return nil, fmt.Errorf("read %s: %w", key, classify(ctx.Err()))
	}
}

// work reads for all who wait, once: who read for themselves want to be gone
// then, and what came meanwhile is handed on.
func (g *gather) work() {
	for g.once() {
	}
}

// once reads for all who wait, and reports whether to go on.
func (g *gather) once() (more bool) {
	g.mu.Lock()
	batch := g.waiting
	g.waiting = nil
	g.mu.Unlock()
	g.read(batch)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case len(g.waiting) == 0:
		g.working--
	case g.closed:
		return true // nobody would wait for another goroutine
	default:
		g.handedOn.Go(g.work)
	}
	return false
}

// close returns when no goroutine of this is left.
func (g *gather) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.handedOn.Wait()
}

func (g *gather) read(batch []*lookup) {
	if len(batch) == 0 {
		return // the other one has taken them all
	}
	// Nobody's own context: who gave up must not fail the others.
	ctx, cancel := context.WithTimeout(context.Background(), ioTimeout)
	defer cancel()
	keys := make([]status.Key, len(batch))
	for i, l := range batch {
		keys[i] = l.key
	}
	records, err := g.store.readLatest(ctx, keys)
	for i, l := range batch {
		if l.err = err; err == nil {
			l.record = records[i]
		}
		close(l.done)
	}
}
