// Package reader decides what one client is told next.
//
// A [Reader] is the watches of one client, whatever the transport: instances by name, and lists of what a query selects. It
// knows what the client has seen, and who the client is; the transport asks it for one [Event] after the other, and writes
// them.
//
// It promises that
//
//   - a client is told what its audience may see and nothing else: rights are decided for every version, by the policy and
//     the principal in force at that moment. What does not exist and what the client may not see look alike, and what it may
//     not see any longer is gone;
//   - the versions that it is told of an instance only grow and end on the newest, and a change that its audience cannot see
//     is no event;
//   - a client that does not take its events costs one pending version per watch, and delays nobody;
//   - what many see alike is made once for all of them ([Sight]).
//
// Use:
//
//	source := reader.NewSource(h, lists, policy)
//	r.Open(source, sink, principal)      // r is a field of what the transport keeps per client
//	r.Watch(key, reader.Terms{After: 123})
//	…                                    // sink.Wake: there is something
//	for r.Next(&event) { … }
//	r.Close()
package reader

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// A Source is what all readers of a hub have in common, whatever their transport: two sources of one hub would not understand
// each other's sights.
type Source struct {
	hub    *hub.Hub
	lists  *hub.Lists
	policy func() *policy.Policy
	seed   maphash.Seed
}

// NewSource returns a source of readers. The policy may change at any time; readers notice with every version, and when they
// are asked to [Reader.Reassess].
func NewSource(h *hub.Hub, lists *hub.Lists, p func() *policy.Policy) *Source {
	return &Source{hub: h, lists: lists, policy: p, seed: maphash.MakeSeed()}
}

// Hub is where instances are watched.
func (s *Source) Hub() *hub.Hub { return s.hub }

// Policy is the policy in force.
func (s *Source) Policy() *policy.Policy { return s.policy() }

// Audience returns the audience as which somebody may see a record, or nil: exactly as if there were no record. It is the one
// place where that is decided: first by what their credential is good for, then by the policy in force.
func (s *Source) Audience(who *auth.Principal, r *status.Record) *policy.Audience {
	return audience(s.policy(), who, r)
}

// MayAsk reports whether somebody may see an instance, as far as that is known without a record: by what their credential is good
// for. Only who may is a reason to fetch it.
func MayAsk(who *auth.Principal, k status.Key) bool {
	return who.May(auth.Read, k.Hub) && (who.Grant == nil || who.Grant.Link == nil || who.Grant.Link.Key == k)
}

func audience(p *policy.Policy, who *auth.Principal, r *status.Record) *policy.Audience {
	switch {
	case !who.May(auth.Read, r.Hub):
		return nil
	case who.Grant == nil || who.Grant.Link == nil:
		return p.Audience(who.Claims, r)
	case who.Grant.Link.Key != r.Key():
		return nil
	}
	return p.Named(r, who.Grant.Link.Audience)
}

// MaySelect reports whether somebody may be shown anything that a query selects. Where they may not, the store is not asked:
// what it takes to find nothing would tell them how much there is.
func (s *Source) MaySelect(who *auth.Principal, q *status.Query) bool {
	if g := who.Grant; g != nil && g.Link != nil {
		return true // it is the instance that decides
	}
	return who.May(auth.Read, q.Hub) && s.policy().MaySelect(who.Claims, q)
}

// A Sink is told that its reader has events.
type Sink interface {
	// Wake must not block and must not use the reader.
	Wake()
}

// A Counter is a Sink that wants to know what Next spares its client, to count it.
type Counter interface {
	Unchanged() // a version that looks the same to the client
	Held()      // a status waits, since the client was told of its instance too recently
}

// Kind says what an event is about.
type Kind uint8

// The kinds of events.
const (
	Status Kind = iota // a new version of an instance
	Gone               // an instance that the client has is purged, expired or no longer to be seen
	Joined             // an instance has come into a list
	Left               // an instance that the client has is in a list no longer, though it may be seen
	Listed             // all that was in a list when the client asked has been told
)

// An Event is what to tell the client next.
type Event struct {
	Kind    Kind
	Key     status.Key // not of Listed
	Version int64      // of Status, Gone, Left
	Sight   *Sight     // of Status: what the client sees
	List    string     // of Joined, Left and Listed
	More    bool       // of Listed: the query selects more than the limit
	Last    bool       // there was nothing else when this was found: unless the sink is woken, Next need not be asked
}

// Terms are what a client asks of a watch. Of an instance that is watched in several ways the shortest interval counts.
type Terms struct {
	After       int64         // the newest version that the client has; 0: none
	MinInterval time.Duration // at most one status per instance in this time, ending on the newest; 0: as they come
}

// A Reader is one client's watches. It must not be copied once it is open. Next is called by one goroutine at a time; the other
// methods by any, but for Open and Close.
type Reader struct {
	source *Source // set by Open
	sink   Sink    // set by Open

	principal atomic.Pointer[auth.Principal]

	// editing is held while watches and lists are opened and closed. The hub is never called under mu, since it calls back.
	editing sync.Mutex

	mu      sync.Mutex
	woken   *watch           // guarded by mu: the last of a ring of the watches that have something pending
	watches watchList        // written under editing and mu, read under either
	lists   map[string]*list // the same; nil until there is one
	ready   []*list          // guarded by mu: those that have found something
	later   []Event          // guarded by mu: to be told before anything else
	paused  int32            // guarded by mu: how often Pause was called, and Resume was not
	closed  bool             // guarded by mu
}

// Open makes the reader ready for its first watch.
func (r *Reader) Open(s *Source, sink Sink) { r.source, r.sink = s, sink }

// SetPrincipal says who the client is, before its first watch and whenever that changes; Reassess follows.
func (r *Reader) SetPrincipal(who *auth.Principal) { r.principal.Store(who) }

// Principal is who the client is; nil while that is not known.
func (r *Reader) Principal() *auth.Principal { return r.principal.Load() }

// Close closes all watches. Nothing is woken any more when it has returned.
func (r *Reader) Close() {
	r.editing.Lock()
	defer r.editing.Unlock()
	r.mu.Lock()
	r.closed = true
	watches, lists := r.watches, r.lists
	r.watches, r.lists, r.woken, r.ready, r.later = watchList{}, nil, nil, nil, nil
	for w := range watches.all {
		w.closed = true
	}
	r.mu.Unlock()
	for w := range watches.all {
		w.end()
	}
	for _, l := range lists {
		l.found.Close()
	}
}

// Watches says how many instances the client may come to watch: those by name, and as many as its lists may have.
func (r *Reader) Watches() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for w := range r.watches.all {
		if w.named() {
			n++
		}
	}
	for _, l := range r.lists {
		n += l.limit
	}
	return n
}

// Has reports whether the client watches an instance by name.
func (r *Reader) Has(k status.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.watches.find(k)
	return w != nil && w.named()
}

// Watch opens a watch on an instance. One that there is already is replaced, so that the client is told the current status
// if it is newer than what the client says it has.
func (r *Reader) Watch(k status.Key, t Terms) {
	r.editing.Lock()
	defer r.editing.Unlock()
	if old := r.watches.find(k); old != nil {
		if r.restart(old, t) {
			return
		}
		r.drop(old)
		r.takeBack(k)
	}
	w := &watch{reader: r, sent: t.After}
	if t.MinInterval > 0 {
		w.extra = &extra{interval: t.MinInterval, named: true}
	}
	r.add(k, w)
}

// restart makes the watch of an instance that lists have go on as if it had been opened by name. It is the same watch, so
// that the client is told when what the lists have shown it is gone.
func (r *Reader) restart(w *watch, t Terms) bool {
	if len(w.memberships()) == 0 {
		return false
	}
	r.takeBack(w.Key())
	r.mu.Lock()
	x := w.extra
	x.named, x.interval, x.restarted, x.after = true, t.MinInterval, true, t.After
	r.mu.Unlock()
	w.lookAgain()
	return true
}

// Unwatch closes the watch of an instance. Versions of it that have not been taken are not told any more, unless a list
// has it.
func (r *Reader) Unwatch(k status.Key) {
	r.editing.Lock()
	defer r.editing.Unlock()
	w := r.watches.find(k)
	switch {
	case w == nil || !w.named():
	case len(w.memberships()) > 0:
		r.mu.Lock()
		w.extra.named = false
		r.mu.Unlock()
	default:
		r.drop(w)
		r.takeBack(k)
	}
}

// takeBack has what is still to be told of instances that are not watched any more not told, unless they are said to have
// left a list: the client is to know how they looked then. It needs editing.
func (r *Reader) takeBack(keys ...status.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var left []status.Key
	for i := range r.later {
		if r.later[i].Kind == Left {
			left = append(left, r.later[i].Key)
		}
	}
	r.later = slices.DeleteFunc(r.later, func(e Event) bool {
		return (e.Kind == Status || e.Kind == Gone && r.watches.find(e.Key) == nil) && slices.Contains(keys, e.Key) && !slices.Contains(left, e.Key)
	})
}

// tell has the client told, before anything else that Next finds.
func (r *Reader) tell(events ...Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.later = append(r.later, events...)
	}
}

// add opens a watch. It needs editing.
func (r *Reader) add(k status.Key, w *watch) {
	// The hub first: it gives the watch its key. It is woken at the earliest when the hub has read.
	r.source.hub.Watch(&w.Watch, k, w)
	w.Want(MayAsk(r.principal.Load(), k))
	r.mu.Lock()
	r.watches.put(k, w)
	r.mu.Unlock()
}

// drop closes a watch. It needs editing.
func (r *Reader) drop(w *watch) {
	r.mu.Lock()
	w.closed = true
	r.watches.remove(w.Key())
	r.mu.Unlock()
	w.end()
}

// Reassess has the rights of everything decided again, by the policy and the principal in force.
func (r *Reader) Reassess() {
	r.editing.Lock()
	defer r.editing.Unlock()
	for w := range r.watches.all {
		w.Want(MayAsk(r.principal.Load(), w.Key()))
		if w.extra == nil {
			w.Again()
			continue
		}
		r.mu.Lock()
		w.extra.urgent = true
		r.mu.Unlock()
		w.lookAgain()
	}
	for _, l := range r.lists {
		l.found.Again()
	}
}

// Next finds what to tell the client next, and reports whether there is anything. It is called for every frame of every
// client: what is on the stack, copied or allocated here counts.
func (r *Reader) Next(e *Event) bool {
	for {
		r.mu.Lock()
		w := r.pop()
		last := r.woken == nil // the rest is not there when a watch is popped
		r.mu.Unlock()
		switch {
		case w == nil:
			event, more := r.next(e)
			if event || !more {
				return event
			}
		case w.extra != nil:
			w.takeWithTerms()
		default:
			if snapshot := w.Take(); snapshot != nil && w.judge(snapshot, e) {
				e.Last = last
				return true
			}
		}
	}
}

// Pause has Next find nothing until Resume has been called as often, after which it is to be asked once more: so a
// transport can write that something is watched before anything of it, whenever that is written.
func (r *Reader) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused++
}

// Resume ends a pause.
func (r *Reader) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused--
}

// pop returns a watch that has something pending, if there is nothing to be done before it. It needs mu.
func (r *Reader) pop() *watch {
	if r.closed || r.paused > 0 || len(r.later) > 0 || len(r.ready) > 0 {
		return nil
	}
	for r.woken != nil {
		w := r.woken.next
		if r.woken.next = w.next; r.woken == w {
			r.woken = nil
		}
		w.next = nil
		if !w.closed {
			return w
		}
	}
	return nil
}

// next does what Next does when there is no watch: it returns an event that is there already, or sees to a list that has found
// something, after which there may be more.
func (r *Reader) next(e *Event) (event, more bool) {
	r.mu.Lock()
	switch {
	case r.closed, r.paused > 0:
	case len(r.later) > 0:
		*e = r.later[0]
		if r.later = r.later[1:]; len(r.later) == 0 {
			r.later = nil
		}
		event = true
	case len(r.ready) > 0:
		l := r.ready[0]
		if r.ready = r.ready[1:]; len(r.ready) == 0 {
			r.ready = nil
		}
		r.mu.Unlock()
		r.admit(l)
		return false, true
	}
	// A watch may have been woken since Next has looked; it wakes the sink, too.
	r.mu.Unlock()
	return event, false
}

// watchList holds the watches of a reader. Most readers have one.
type watchList struct {
	first *watch
	more  map[status.Key]*watch // nil until there is a second one
}

func (l *watchList) find(k status.Key) *watch {
	if l.first != nil && l.first.Key() == k {
		return l.first
	}
	return l.more[k]
}

// put adds a watch for an instance that is not in the list.
func (l *watchList) put(k status.Key, w *watch) {
	switch {
	case l.first == nil:
		l.first = w
	case l.more == nil:
		l.more = map[status.Key]*watch{k: w}
	default:
		l.more[k] = w
	}
}

func (l *watchList) remove(k status.Key) {
	if l.first != nil && l.first.Key() == k {
		l.first = nil
	} else {
		delete(l.more, k)
	}
}

func (l *watchList) all(yield func(*watch) bool) {
	if l.first != nil && !yield(l.first) {
		return
	}
	for _, w := range l.more {
		if !yield(w) {
			return
		}
	}
}
