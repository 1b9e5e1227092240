package hub

import (
	"sync"
	"sync/atomic"

	"statusrelay/internal/status"
)

// A Sink is told that its watch has something pending, once, until it is taken; and once more when that turns out to be the
// end of the instance.
type Sink interface {
	// Wake must not block and must not use the hub: it is called for one watch after the other while their
	// instance is locked.
	Wake()
}

// A Watch is one reader's interest in one instance: a cell with the newest snapshot that the reader has not taken yet.
// It belongs to the transport, usually as a field of what the transport keeps per watch. The zero Watch is closed.
type Watch struct {
	sink Sink // set by Hub.Watch

	instance   *instance // set by Hub.Watch
	next, prev *Watch    // guarded by instance.mu

	pending atomic.Pointer[Snapshot]
	taken   atomic.Int64 // twice the version of what was taken last, less one if that is to be given again

	wants bool // guarded by instance.mu
}

// Key names the watched instance.
func (w *Watch) Key() status.Key { return w.instance.key }

// Take returns the newest snapshot that was offered and not taken yet, or nil. Calls must not be concurrent.
func (w *Watch) Take() *Snapshot {
	s := w.pending.Swap(nil)
	if s == nil || 2*s.Version <= w.taken.Load() {
		return nil // an offer that looked at taken just before it was raised
	}
	w.taken.Store(2 * s.Version)
	return s
}

// Ending reports whether what is pending says that the instance is gone.
func (w *Watch) Ending() bool {
	s := w.pending.Load()
	return s != nil && s.Gone()
}

// Again has the state of the instance read and given to this watch once more, though its version be the same:
// what the reader may see of it has changed. Whoever takes a snapshot after Again was called must judge it by the new rights.
func (w *Watch) Again() {
	if taken := w.taken.Load(); taken%2 == 0 && taken > 0 {
		w.taken.CompareAndSwap(taken, taken-1) // fails if something newer is taken now, which is judged by the new rights
	}
	w.instance.hub.look(w.instance)
}

// Want says whether whoever has the watch wants the instance, and would be shown it for all that is known without it. A new
// watch wants nothing.
func (w *Watch) Want(wants bool) {
	in := w.instance
	told := in.hub.options.Wanted
	if told == nil {
		return
	}
	in.mu.Lock()
	first := false
	if w.wants != wants {
		w.wants = wants
		in.count(wants)
		first = wants && in.wanting == 1
	}
	in.mu.Unlock()
	if first {
		told(in.key)
	}
}

// count counts a watch that comes to want the instance, or does not any more. It needs mu.
func (in *instance) count(wants bool) {
	if wants {
		in.wanting++
	} else {
		in.wanting--
	}
}

// Close ends the watch. When it has returned, the sink is not woken any more. A closed watch cannot be opened again.
func (w *Watch) Close() {
	in := w.instance
	in.mu.Lock()
	in.unlink(w)
	if w.wants {
		in.count(false)
	}
	empty := in.first == nil
	in.mu.Unlock()
	in.hub.metrics.watches.Dec()
	if empty {
		in.hub.look(in)
	}
}

// offer keeps s if it is newer than everything so far, and reports whether that replaced a snapshot that nobody has
// taken.
func (w *Watch) offer(s *Snapshot) (conflated bool) {
	for {
		p := w.pending.Load()
		if p != nil && p.Version >= s.Version || w.taken.Load() >= 2*s.Version {
			return false
		}
		if w.pending.CompareAndSwap(p, s) {
			if p == nil || s.Gone() { // the end is told also to who lets what is pending wait
				w.sink.Wake()
			}
			return p != nil
		}
	}
}

// A Snapshot is one version of an instance, shared by all who watch it. It is immutable, but for a memo of what was
// derived from it.
type Snapshot struct {
	// Record is nil when there is none (any more), and may be a tombstone.
	Record *status.Record
	// Version orders the snapshots of an instance. Without a record it is the hub's own.
	Version int64

	memo atomic.Pointer[memo]
}

// Gone reports whether there is nothing to see.
func (s *Snapshot) Gone() bool { return s.Record == nil || s.Record.Purged }

// memo is a list: it has one entry per audience at most, and those are few.
type memo struct {
	key   any
	once  sync.Once
	done  atomic.Bool
	value any // set before done
	next  *memo
}

// Load returns what Make has made for the key. It allocates nothing if the key is a pointer.
func (s *Snapshot) Load(key any) (value any, ok bool) {
	for m := s.memo.Load(); m != nil; m = m.next {
		if m.key == key && m.done.Load() {
			return m.value, true
		}
	}
	return nil, false
}

// Make returns the value for the key and calls create for it once, however many ask at the same time. key must be
// comparable.
func (s *Snapshot) Make(key any, create func() any) any {
	m := s.entry(key)
	m.once.Do(func() {
		m.value = create()
		m.done.Store(true)
	})
	return m.value
}

func (s *Snapshot) entry(key any) *memo {
	var fresh *memo
	for {
		first := s.memo.Load()
		for m := first; m != nil; m = m.next {
			if m.key == key {
				return m
			}
		}
		if fresh == nil {
			fresh = &memo{key: key}
		}
		fresh.next = first
		if s.memo.CompareAndSwap(first, fresh) {
			return fresh
		}
	}
}
