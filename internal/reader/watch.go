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
	// owned by Next
	last time.Time     // when the client was told last; zero: it is to be told at once
	held *hub.Snapshot // taken, and not told yet

	// guarded by mu
	timer     *time.Timer // wakes the watch when the client may be told again; nil: none has been needed
	urgent    bool        // rights have changed: what the client may not see any more is taken back at once
	restarted bool        // the client has asked once more, and has
	after     int64       // this

	// written under editing and mu, read under either
	members  []membership  // the lists that have the instance; replaced, not modified, but for joined
	named    bool          // it is watched by name as well,
	interval time.Duration // with this interval
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

// lookAgain has Next look at the watch once more: at what waits already, of which the hub does not wake it, and at what
// the hub reads.
func (w *watch) lookAgain() {
	w.Again()
	w.Wake()
}

// takeWithTerms is what Next does for a watch with terms or in lists. It leaves all that is to be told in later.
func (w *watch) takeWithTerms() {
	left, urgent := w.left()
	if left > 0 && !urgent && !w.Ending() {
		w.hold(left, w.extra.held)
		return
	}
	snapshot := w.Take()
	if snapshot == nil {
		snapshot = w.extra.held
	}
	if snapshot == nil {
		return
	}
	w.extra.held = nil
	w.refresh() // only after Take: Again counts on it
	if left > 0 && w.extra.last.IsZero() {
		left = 0
	}
	if left > 0 && w.decide(w.reader.source.policy(), w.reader.principal.Load(), snapshot) != nil {
		w.hold(left, snapshot)
		return
	}
	var e Event
	ok := w.judge(snapshot, &e)
	w.settle(snapshot, &e, ok)
}

// left is for how long the client is not to be told of the instance, and whether there is a reason to look all the same.
func (w *watch) left() (left time.Duration, urgent bool) {
	r, x := w.reader, w.extra
	r.mu.Lock()
	defer r.mu.Unlock()
	if x.restarted || x.last.IsZero() {
		return 0, false
	}
	interval := x.interval
	for i, m := range x.members {
		if terms := m.list.terms.MinInterval; i == 0 && !x.named || terms < interval {
			interval = terms
		}
	}
	return max(0, interval-time.Since(x.last)), x.urgent
}

// refresh takes note of what has been asked of the watch since it was looked at.
func (w *watch) refresh() {
	r, x := w.reader, w.extra
	r.mu.Lock()
	defer r.mu.Unlock()
	x.urgent = false
	if x.restarted {
		x.restarted = false
		w.judged, w.sent, w.digest, x.last = false, x.after, 0, time.Time{}
	}
}

// hold keeps a snapshot, if it has been taken, and has the watch woken when the client may be told.
func (w *watch) hold(left time.Duration, taken *hub.Snapshot) {
	r, x := w.reader, w.extra
	x.held = taken
	if c, ok := r.sink.(Counter); ok {
		c.Held()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case w.closed:
	case x.timer == nil:
		x.timer = time.AfterFunc(left, w.Wake)
	default:
		x.timer.Reset(left)
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
		if c, ok := w.reader.sink.(Counter); ok && same {
			c.Unchanged()
		}
		return false
	}
	if snapshot.Version > w.sent {
		w.sent = snapshot.Version
	} else {
		// The same version looks different, or is seen again, because the client's rights have changed. It would take a
		// version that it has already for an old one.
		w.sent++
		sight = sightAt(w.sent, snapshot, a)
	}
	*e = Event{Kind: Status, Key: w.Key(), Version: w.sent, Sight: sight}
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
		w.audience = audience(p, who, snapshot.Record)
		w.policy, w.principal, w.scope = p, who, scope
	}
	return w.audience
}

// settle says what an event of a watch with terms, or in lists, means to them. It leaves all that is to be told to Next.
func (w *watch) settle(snapshot *hub.Snapshot, e *Event, ok bool) {
	r, x := w.reader, w.extra
	r.editing.Lock()
	defer r.editing.Unlock()
	if w.closed {
		return // what was found is not wanted any more
	}
	wanted := x.named
	var left []*list
	for i, m := range x.members {
		fits := w.shown && m.list.query.Match(snapshot.Record) && w.audience.MaySelectByAll(r.principal.Load().Claims, m.list.query.Labels)
		wanted = wanted || fits || m.joined
		switch {
		case fits && !m.joined:
			x.members[i].joined = true
			r.tell(Event{Kind: Joined, Key: w.Key(), List: m.list.name})
		case !fits:
			left = append(left, m.list)
		}
	}
	// What a list has found, and does not fit any more when it is looked at, the client has never heard of.
	if ok && wanted {
		r.tell(*e)
		if e.Kind == Status {
			x.last = time.Now()
		}
	}
	for _, m := range x.members {
		if slices.Contains(left, m.list) {
			if w.shown && m.joined {
				r.tell(Event{Kind: Left, Key: w.Key(), Version: w.sent, List: m.list.name})
			}
			r.leave(m.list, w)
		}
		r.arrived(m.list, w.Key())
	}
}
