package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// eventStream is the media type of streams.
const eventStream = "text/event-stream"

// A stream pauses before it reconnects for as long as the server says, which is different for each.
const minRetry, maxRetry = 2 * time.Second, 5 * time.Second

// maxInterval is the longest that events of an instance may be held back.
const maxInterval = time.Minute

// interval reads for how long they are to be.
func (p *params) interval() time.Duration {
	return time.Duration(p.number("minInterval", 0, maxInterval.Milliseconds(), 0)) * time.Millisecond
}

// instanceStream streams one instance: the newest status, if the client does not have it, and then whatever changes.
func (a *API) instanceStream(w *boundedWriter, r *http.Request, p *params, key status.Key, after int64) (int, error) {
	interval := p.interval()
	if last := strings.Join(r.Header.Values("Last-Event-ID"), ", "); last != "" {
		// A browser that reconnects asks for the same URL, and says in the header how far it has come since.
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 || n > status.MaxInteger {
			p.fault("Last-Event-ID", "not the id of an event of this stream")
		}
		after = max(after, n)
	}
	who, err := a.authenticateTo(w, r, p, key)
	if err != nil {
		return 0, err
	}
	return a.stream(w, r, who, func(rd *reader.Reader) {
		rd.Watch(key, reader.Terms{After: after, MinInterval: interval})
	})
}

// stream writes what a reader is told as server-sent events (WHATWG HTML, "Server-sent events") until the client goes, its
// credential expires, or the server stops.
func (a *API) stream(w http.ResponseWriter, r *http.Request, who *auth.Principal, open func(*reader.Reader)) (int, error) {
	leave, err := a.streams.enter(who)
	if err != nil {
		return 0, err
	}
	defer leave()
	s := &stream{api: a, control: http.NewResponseController(w), wake: make(chan struct{}, 1), w: w}
	h := w.Header()
	h.Set("Content-Type", eventStream)
	h.Set("Cache-Control", "private, no-cache, no-transform") // whoever compresses also collects
	h.Set("X-Accel-Buffering", "no")                          // nginx would collect
	if r.Method == http.MethodHead {
		return http.StatusOK, nil
	}
	s.reader.Open(a.o.Source, s)
	s.reader.SetPrincipal(who)
	defer s.reader.Close()
	open(&s.reader)
	s.run(r, who)
	return http.StatusOK, nil
}

// A stream is one client's.
type stream struct {
	api     *API
	reader  reader.Reader
	control *http.ResponseController
	w       http.ResponseWriter
	wake    chan struct{} // holds a token when the reader has something
	written bool          // something, that is to be flushed
}

// Wake is called by the reader.
func (s *stream) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes until the stream ends.
func (s *stream) run(r *http.Request, who *auth.Principal) {
	retry := minRetry + rand.N(maxRetry-minRetry)
	if !s.write(fmt.Appendf(nil, "retry: %d\n\n", retry.Milliseconds())) || !s.flush() {
		return
	}
	expiry := newExpiry(who)
	defer expiry.Stop()
	closing, end := s.api.closing, (<-chan time.Time)(nil)
	inForce := s.api.o.Source.Policy()
	heartbeat := time.NewTimer(s.api.heartbeat())
	defer heartbeat.Stop()
	for {
		ok := true
		select {
		case <-s.wake:
			ok = !who.Expired(time.Now()) && s.tell()
		case <-heartbeat.C:
			ok = !who.Expired(time.Now()) && s.write([]byte(":\n\n"))
		case <-closing:
			closing, end = nil, s.api.farewell()
		case <-end:
			return
		case <-expiry.C:
			return
		case <-r.Context().Done():
			return
		}
		if s.written { // not what is woken and told nothing: it may be so for ever
			s.written = false
			ok = ok && s.flush()
			heartbeat.Reset(s.api.heartbeat())
		}
		if !ok {
			return
		}
		// Not with the heartbeat only: one busy instance of several puts that off for ever.
		if p := s.api.o.Source.Policy(); p != inForce {
			inForce = p
			s.reader.Reassess()
		}
	}
}

// heartbeat is the time to the next comment.
func (a *API) heartbeat() time.Duration { return a.o.Heartbeat - rand.N(a.o.Heartbeat/4+1) }

// maxTelling is for how long events are written in one go. While a client that is slow takes one, there may be another.
const maxTelling = time.Second

// tell writes what the reader has, and reports whether the stream can go on.
func (s *stream) tell() bool {
	var e reader.Event
	for begin := time.Now(); s.reader.Next(&e); {
		if e.Kind == reader.Joined {
			continue // a stream has one list at most
		}
		if !s.write(eventOf(e)) {
			return false
		}
		s.api.metrics.events.Inc()
		if time.Since(begin) > maxTelling {
			s.Wake() // for the rest
			break
		}
	}
	return true
}

// write and flush fail when the client is gone, or does not read for too long.
func (s *stream) write(b []byte) bool {
	if err := s.control.SetWriteDeadline(time.Now().Add(s.api.o.WriteTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return false
	}
	s.written = true
	_, err := s.w.Write(b)
	return err == nil
}

func (s *stream) flush() bool { return s.control.Flush() == nil }

// eventOf returns an event as it is sent. That of a status is made once for all who are sent it.
func eventOf(e reader.Event) []byte {
	if e.Kind != reader.Status {
		return appendEvent(nil, &e)
	}
	if f, ok := e.Sight.Form(reader.ServerSentEvent); ok {
		return f.([]byte)
	}
	return e.Sight.Make(reader.ServerSentEvent, func() any { return appendEvent(nil, &e) }).([]byte)
}

func appendEvent(b []byte, e *reader.Event) []byte {
	switch e.Kind {
	case reader.Status:
		return appendText(b, "status", e.Version, e.Sight.JSON)
	case reader.Gone:
		return appendText(b, "gone", e.Version, keyOf(e))
	case reader.Left:
		return appendText(b, "left", e.Version, keyOf(e))
	default: // Listed
		return appendText(b, "listed", 0, fmt.Appendf(nil, `{"more":%t}`, e.More))
	}
}

// keyOf says which instance an event is about.
func keyOf(e *reader.Event) []byte {
	b := appendMember([]byte{'{'}, "hub", e.Key.Hub)
	b = appendMember(append(b, ','), "instanceId", e.Key.InstanceID)
	return fmt.Appendf(b, `,"version":%d}`, e.Version)
}

// appendText appends an event. What would be an end of line in the data is one to the stream too, so that it begins a
// line of data there: nothing in a status can be taken for another field.
func appendText(b []byte, name string, id int64, data []byte) []byte {
	b = append(append(b, "event: "...), name...)
	if id != 0 {
		b = strconv.AppendInt(append(b, "\nid: "...), id, 10)
	}
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	for line := range bytes.FieldsFuncSeq(data, func(r rune) bool { return r == '\n' || r == '\r' }) {
		b = append(append(b, "\ndata: "...), line...)
	}
	return append(b, "\n\n"...)
}
