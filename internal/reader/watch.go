package reader

import (
	"slices"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
)

// A watch is one instance that a client watches. There may be tens of thousands in a process, of which most are idle.
type watch struct {
	hub.Watch
	reader *Reader // set once

	next *watch // guarded by reader.mu: the next in the ring of those that were woken, nil if it is not in there

	// owned by Next
	sent   int64  // the highest version that the client has
	digest uint64 // of the view that it has

	// The last decision and what it depended on, owned by Next.
	audience  *policy.Audience
	policy    *policy.Policy
	principal *auth.Principal
	scope     uint64

	extra *extra // nil of a watch by name without terms

	closed bool // guarded by reader.mu
	judged bool // owned by Next: the client's after has been compared with what there is
	shown  bool // owned by Next: the client has a view, and must be told when it is gone
}

// extra is what only some watches have.
type extra struct {
	interval time.Duration // set once

	// owned by Next
	last  time.Time   // when the client was told last
	timer *time.Timer // wakes the watch when it may be told again; nil: none has been needed

	// written under editing and mu, read under either
	members []membership // the lists that have the instance; replaced, not modified, but for joined
	named   bool         // it is watched by name as well
}

// A membership says that a list has the instance of a watch.
type membership struct {
	list   *list
	joined bool // owned by Next: the client has been told
}

// named and memberships need editing or mu.
func (w *watch) named() bool { return w.extra == nil || w.extra.named }

func (w *watch) memberships() []membership {
	if w.extra == nil {
		return nil
	}
	return w.extra.members
}

// isIn needs editing or mu.
func (w *watch) isIn(l *list) bool {
	return slices.ContainsFunc(w.memberships(), func(m membership) bool { return m.list == l })
}

// end closes a watch that is marked as closed. It needs editing.
func (w *watch) end() {
	w.Close()
	if w.extra != nil {
		w.reader.mu.Lock()
		timer := w.extra.timer
		w.reader.mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
	}
}

// Wake is called by the hub.
func (w *watch) Wake() {
	r := w.reader
	r.mu.Lock()
	if r.closed || w.closed || w.next != nil {
		r.mu.Unlock()
		return
	}
	if r.woken == nil {
		w.next = w
	} else {
		w.next, r.woken.next = r.woken.next, w
	}
	r.woken = w
	r.mu.Unlock()
	r.sink.Wake()
}

// takeWithTerms is what Next does for a watch with terms or in lists. It leaves all that is to be told in later.
func (w *watch) takeWithTerms() {
	if w.early() {
		return
	}
	if snapshot := w.Take(); snapshot != nil {
		var e Event
		ok := w.judge(snapshot, &e)
		w.settle(snapshot, &e, ok)
	}
}

// judge compares what there is with what the client has, and reports whether it is to be told something.
func (w *watch) judge(snapshot *hub.Snapshot, e *Event) bool {
	first := !w.judged
	w.judged = true
	// Only after Take: Again counts on it.
	a := w.decide(w.reader.source.policy(), w.reader.principal.Load(), snapshot)
	if a == nil {
		return w.takeBack(snapshot, first, e)
	}
	sight := w.reader.source.Sight(snapshot, a)
	same := w.shown && w.digest == sight.digest
	known := first && snapshot.Version <= w.sent
	w.shown, w.digest = true, sight.digest
	if same || known {
		return false
	}
	// The same version may look different, or be seen again, because the client's rights have changed. It would take a
	// version that it has already for an old one.
	own := snapshot.Version <= w.sent
	if own {
		w.sent++
	} else {
		w.sent = snapshot.Version
	}
	*e = Event{Kind: Status, Key: w.Key(), Version: w.sent, Sight: sight, Own: own}
	return true
}

// takeBack tells a client that has a view that there is none any more. One that says that it has one is told the same of
// what never existed and of what it may not see, in the same words.
func (w *watch) takeBack(snapshot *hub.Snapshot, first bool, e *Event) bool {
	if !w.shown && !(first && w.sent > 0) {
		return false
	}
	w.sent++
	if w.shown && snapshot.Gone() {
		w.sent = max(w.sent, snapshot.Version)
	}
	w.shown, w.digest = false, 0
	*e = Event{Kind: Gone, Key: w.Key(), Version: w.sent}
	return true
}

// decide returns the audience that may see the snapshot, or nil. A decision is kept for as long as nothing changes that
// it depends on.
func (w *watch) decide(p *policy.Policy, who *auth.Principal, snapshot *hub.Snapshot) *policy.Audience {
	if snapshot.Gone() {
		return nil
	}
	scope := w.reader.source.scope(snapshot)
	if w.policy != p || w.principal != who || w.scope != scope {
		w.audience = p.Audience(who.Claims, snapshot.Record)
		w.policy, w.principal, w.scope = p, who, scope
	}
	return w.audience
}

// early reports whether the client was told too recently, and then has the watch woken when it may be told again.
func (w *watch) early() bool {
	x := w.extra
	if x.interval == 0 || x.last.IsZero() {
		return false
	}
	left := x.interval - time.Since(x.last)
	if left <= 0 {
		return false
	}
	r := w.reader
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case w.closed:
	case x.timer == nil:
		x.timer = time.AfterFunc(left, w.Wake)
	default:
		x.timer.Reset(left)
	}
	return true
}

// settle says what an event of a watch with terms, or in lists, means to them. It leaves all that is to be told to Next.
func (w *watch) settle(snapshot *hub.Snapshot, e *Event, ok bool) {
	r := w.reader
	if ok && e.Kind == Status {
		w.extra.last = time.Now()
	}
	r.editing.Lock()
	defer r.editing.Unlock()
	if w.closed {
		return // what was found is not wanted any more
	}
	for i, m := range w.memberships() {
		if w.shown && !m.joined {
			w.extra.members[i].joined = true
			r.later = append(r.later, Event{Kind: Joined, Key: w.Key(), List: m.list.name})
		}
	}
	if ok {
		r.later = append(r.later, *e)
	}
	for _, m := range w.memberships() {
		if !w.shown || !m.list.query.Match(snapshot.Record) || !m.list.maySelect(w.audience) {
			r.leave(m.list, w)
			if w.shown {
				r.later = append(r.later, Event{Kind: Left, Key: w.Key(), Version: w.sent, List: m.list.name})
			}
		}
		r.arrived(m.list, w.Key())
	}
}
