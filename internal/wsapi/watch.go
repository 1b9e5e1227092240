package wsapi

import (
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/problem"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// watch opens what the client asks for: a watch on each instance, or a list. What there is already is replaced, so that the
// client is sent the current status if it is newer than what the client says it has.
func (s *socket) watch(r request) {
	added := r.Query.Limit - s.reader.ListLimit(r.List)
	if r.List == "" {
		added = s.additional(r.Instances)
	}
	if s.reader.Watches()+added > s.server.o.MaxWatches {
		s.answer(websocket.TextMessage, problemFrame(problem.TooMany(0), r.Ref))
		return
	}
	// Nothing of what is replaced may follow the answer, nor anything else precede it.
	s.stop(r)
	s.answerBefore(r.answer(typeWatching))
	interval := time.Duration(r.MinInterval) * time.Millisecond
	if r.List != "" {
		s.reader.WatchList(r.List, r.Query.query(), r.Query.Limit, interval)
		return
	}
	for i := range r.Instances {
		in := &r.Instances[i]
		s.reader.Watch(in.key(), reader.Terms{After: in.After, MinInterval: interval})
	}
}

// additional counts the instances that the client does not watch by name.
func (s *socket) additional(instances []instance) int {
	added := make(map[status.Key]struct{}, len(instances))
	for i := range instances {
		if k := instances[i].key(); !s.reader.Has(k) {
			added[k] = struct{}{}
		}
	}
	return len(added)
}

func (s *socket) unwatch(r request) {
	s.stop(r)
	s.answer(websocket.TextMessage, r.answer(typeUnwatched))
}

// stop ends the list, or the watches by name, that a request is about.
func (s *socket) stop(r request) {
	if r.List != "" {
		s.reader.UnwatchList(r.List)
	}
	for i := range r.Instances {
		s.reader.Unwatch(r.Instances[i].key())
	}
}

// deliver writes what the client is told next, if anything; or returns it to be written, if it is the same for others. It
// reports false when the socket cannot be written to.
func (s *socket) deliver(now time.Time) (shared *sharedFrame, ok bool) {
	if s.reader.Principal().Expired(now) {
		s.fail(closeExpired)
		return nil, true
	}
	var e reader.Event
	if !s.reader.Next(&e) {
		s.more = false
		return nil, true
	}
	s.more = !e.Last
	if e.Kind != reader.Status {
		return nil, s.writeEvent(e)
	}
	if f, ok := e.Sight.Form(s.dialect.form()); ok {
		return f.(*sharedFrame), true
	}
	return share(s.dialect, e), true
}

// writeEvent writes what only this client is told. It is not inlined, and has a copy: the event would escape, and
// deliver allocate it for every frame.
//
//go:noinline
func (s *socket) writeEvent(e reader.Event) bool {
	return s.write(websocket.TextMessage, s.dialect.event(&e))
}
