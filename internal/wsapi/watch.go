package wsapi

import (
	"hash/maphash"
	"slices"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
)

// A watch is one instance that a socket watches.
type watch struct {
	hub.Watch
	socket *socket // set once

	next   *watch // guarded by socket.mu: the next in the ring of those that were woken, nil if it is not in there
	closed bool   // guarded by socket.mu

	// owned by the drain
	judged bool   // the client's after has been compared with what there is
	shown  bool   // the client has a view, and must be told when it is gone
	sent   int64  // the highest version that the client has
	digest uint64 // of the view that it has

	// The last decision and what it depended on, owned by the drain.
	audience  *policy.Audience
	policy    *policy.Policy
	principal *auth.Principal
	scope     uint64
}

// watchList holds the watches of a socket. Most sockets have one.
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

func (l *watchList) len() int {
	if l.first == nil {
		return len(l.more)
	}
	return len(l.more) + 1
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

// watch opens a watch on each instance. One that there is already is replaced, so that the client is sent the
// current status if it is newer than what the client says it has.
func (s *socket) watch(r request) {
	added := 0
	for i := range r.Instances {
		k := r.Instances[i].key()
		again := slices.ContainsFunc(r.Instances[:i], func(in instance) bool { return in.key() == k })
		if !again && s.watches.find(k) == nil {
			added++
		}
	}
	if s.watches.len()+added > s.server.o.MaxWatches {
		s.answer(websocket.TextMessage, problemFrame(problem.TooMany(0), r.Ref))
		return
	}
	s.answer(websocket.TextMessage, listFrame(typeWatching, r.Ref, r.Instances))
	for i := range r.Instances {
		in := &r.Instances[i]
		s.closeWatch(in.key())
		w := &watch{socket: s, sent: in.After}
		// The hub first: it gives the watch its key. It is woken at the earliest when Run has read.
		s.server.o.Hub.Watch(&w.Watch, in.key(), w)
		s.mu.Lock()
		s.watches.put(w.Key(), w)
		s.mu.Unlock()
	}
}

func (s *socket) unwatch(r request) {
	for i := range r.Instances {
		s.closeWatch(r.Instances[i].key())
	}
	s.answer(websocket.TextMessage, listFrame(typeUnwatched, r.Ref, r.Instances))
}

// closeWatch closes the watch of an instance if there is one. Frames of it that have not been started are not
// written any more.
func (s *socket) closeWatch(k status.Key) {
	w := s.watches.find(k)
	if w == nil {
		return
	}
	s.mu.Lock()
	w.closed = true
	s.watches.remove(k)
	s.mu.Unlock()
	w.Close()
}

// reassess has the rights of all watches decided again, by the policy and the token in force.
func (s *socket) reassess() {
	s.mu.Lock()
	watches := slices.Collect(s.watches.all)
	s.mu.Unlock()
	for _, w := range watches { // the hub must not be called under mu
		w.Again()
	}
}

// Wake is called by the hub.
func (w *watch) Wake() {
	s := w.socket
	s.mu.Lock()
	if w.next == nil {
		if s.woken == nil {
			w.next = w
		} else {
			w.next, s.woken.next = s.woken.next, w
		}
		s.woken = w
	}
	s.startAndUnlock()
}

// deliver writes what is pending, if the client may see it and does not have it; or returns it to be written, if it
// is the same for others. It reports false when the socket cannot be written to.
func (w *watch) deliver(now time.Time) (shared *websocket.PreparedMessage, ok bool) {
	snapshot := w.Take()
	if snapshot == nil {
		return nil, true
	}
	s := w.socket
	// Only after Take: Again counts on it.
	who := s.principal.Load()
	if who.Expired(now) {
		s.fail(closeExpired)
		return nil, true
	}
	first := !w.judged
	w.judged = true
	a := w.decide(s.server.o.Policy(), who, snapshot)
	if a == nil {
		return nil, w.takeBack(snapshot, first)
	}
	f := s.server.frame(snapshot, a)
	switch {
	case first && snapshot.Version <= w.sent:
		w.shown, w.digest = true, f.digest
		return nil, true
	case w.shown && w.digest == f.digest:
		s.server.metrics.unchanged.Inc()
		return nil, true
	}
	w.shown, w.digest = true, f.digest
	if snapshot.Version > w.sent {
		w.sent = snapshot.Version
		return f.prepared, true
	}
	// The same version looks different, or can be seen again, because the client's rights have changed. It would take a
	// version that it has already for an old one.
	w.sent++
	return nil, s.write(websocket.TextMessage, statusFrame(w.Key(), w.sent, a.View(snapshot.Record).JSON))
}

// takeBack tells a client that has a view that there is none any more. One that says that it has one is told the same of
// what never existed and of what it may not see, in the same words.
func (w *watch) takeBack(snapshot *hub.Snapshot, first bool) bool {
	if !w.shown && !(first && w.sent > 0) {
		return true
	}
	w.sent++
	if w.shown && snapshot.Gone() {
		w.sent = max(w.sent, snapshot.Version)
	}
	w.shown, w.digest = false, 0
	return w.socket.write(websocket.TextMessage, goneFrame(w.Key(), w.sent))
}

// decide returns the audience that may see the snapshot, or nil. A decision is kept for as long as nothing changes that
// it depends on.
func (w *watch) decide(p *policy.Policy, who *auth.Principal, snapshot *hub.Snapshot) *policy.Audience {
	if snapshot.Gone() {
		return nil
	}
	scope := w.socket.server.scope(snapshot)
	if w.policy != p || w.principal != who || w.scope != scope {
		w.audience = p.Audience(who.Claims, snapshot.Record)
		w.policy, w.principal, w.scope = p, who, scope
	}
	return w.audience
}

// scopeKey is the key of a snapshot's memo for its scope.
type scopeKey struct{}

// scope returns a hash of all that the snapshot has to do with rights, keyed with a secret of this process: a watch
// keeps eight bytes instead of the labels.
func (s *Server) scope(snapshot *hub.Snapshot) uint64 {
	v, ok := snapshot.Load(scopeKey{})
	if !ok {
		v = snapshot.Make(scopeKey{}, func() any { return maphash.String(s.seed, policy.Scope(snapshot.Record)) })
	}
	return v.(uint64)
}

// A frame is a version as one audience sees it, encoded once for all of them.
type frame struct {
	prepared *websocket.PreparedMessage
	digest   uint64 // of the view without its version
}

// frame returns the frame of a snapshot for an audience, which is its key in the snapshot's memo.
func (s *Server) frame(snapshot *hub.Snapshot, a *policy.Audience) *frame {
	v, ok := snapshot.Load(a)
	if !ok {
		v = snapshot.Make(a, func() any {
			view := a.View(snapshot.Record)
			prepared, err := websocket.NewPreparedMessage(websocket.TextMessage,
				statusFrame(snapshot.Record.Key(), snapshot.Version, view.JSON))
			if err != nil {
				panic(err) // it writes to memory
			}
			return &frame{prepared, maphash.String(s.seed, view.ETag)}
		})
	}
	return v.(*frame)
}
