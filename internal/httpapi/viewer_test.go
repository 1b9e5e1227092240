package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A viewer is a client with an event stream. It gets what is flushed, and may stop reading.
type viewer struct {
	t     testing.TB
	r     *http.Request
	leave context.CancelFunc
	done  chan struct{}

	mu       sync.Mutex
	header   http.Header
	code     int
	buffered []byte
	got      []byte // what has been flushed
	taken    int    // how many events have been taken
	deadline time.Time
	deaf     chan struct{} // closed when it reads again; nil: it reads
	slow     time.Duration // for every write

	unchecked bool // what it views is not even JSON
}

func (w *world) view(t testing.TB, path, token string, header ...string) *viewer {
	ctx, leave := context.WithCancel(t.Context())
	v := &viewer{t: t, leave: leave, done: make(chan struct{}), header: http.Header{}}
	v.r = newRequest(http.MethodGet, path, token, append(header, "Accept", "text/event-stream")...).WithContext(ctx)
	go func() {
		defer close(v.done)
		w.api.ServeHTTP(v, v.r)
	}()
	t.Cleanup(func() {
		leave()
		<-v.done
		v.answer()
	})
	return v
}

func (v *viewer) Header() http.Header { return v.header }

func (v *viewer) WriteHeader(code int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.code = code
}

func (v *viewer) Write(b []byte) (int, error) {
	v.mu.Lock()
	if v.code == 0 {
		v.code = http.StatusOK
	}
	deaf, deadline, slow := v.deaf, v.deadline, v.slow
	v.mu.Unlock()
	time.Sleep(slow)
	if deaf != nil {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case <-deaf:
		case <-timer.C:
			return 0, os.ErrDeadlineExceeded
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.buffered = append(v.buffered, b...)
	return len(b), nil
}

func (v *viewer) Flush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.got, v.buffered = append(v.got, v.buffered...), nil
}

func (v *viewer) SetWriteDeadline(at time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.deadline = at
	return nil
}

// stop stops reading, until go on is called.
func (v *viewer) stop() (goOn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	deaf := make(chan struct{})
	v.deaf = deaf
	return func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.deaf = nil
		close(deaf)
	}
}

// slowDown has every write take that long.
func (v *viewer) slowDown(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.slow = d
}

// answer is the answer so far.
func (v *viewer) answer() *httptest.ResponseRecorder {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	w := httptest.NewRecorder()
	maps.Copy(w.Header(), v.header)
	w.WriteHeader(v.code)
	_, _ = w.Write(slices.Concat(v.got, v.buffered))
	if !v.unchecked {
		check(v.t, v.r, w)
	}
	return w
}

// ended reports whether the stream has, once everything in the bubble has come to rest.
func (v *viewer) ended() bool {
	synctest.Wait()
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// bytes is all that has come.
func (v *viewer) bytes() []byte {
	synctest.Wait()
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.got)
}

// take returns the events that have come since the last time.
func (v *viewer) take() []event {
	s := parseStream(v.bytes())
	events := s.events[v.taken:]
	v.taken = len(s.events)
	return events
}

// want holds the events since the last time to "status a 124", "gone a 125", "left …", "listed true".
func (v *viewer) want(what string, want ...string) {
	v.t.Helper()
	got := []string{}
	for _, e := range v.take() {
		got = append(got, e.String())
	}
	if !slices.Equal(got, want) {
		v.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// wantSet is want of what comes in no particular order.
func (v *viewer) wantSet(what string, want ...string) {
	v.t.Helper()
	got := []string{}
	for _, e := range v.take() {
		got = append(got, e.String())
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		v.t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// An event as a browser dispatches it.
type event struct{ name, id, data string }

func (e event) String() string {
	var of struct {
		InstanceID string
		Version    int64
		More       *bool
	}
	if err := json.Unmarshal([]byte(e.data), &of); err != nil {
		return fmt.Sprintf("%s with %q", e.name, e.data)
	}
	if of.More != nil {
		return fmt.Sprintf("%s %t", e.name, *of.More)
	}
	if id := strconv.FormatInt(of.Version, 10); e.id != id {
		return fmt.Sprintf("%s %s %d under the id %q", e.name, of.InstanceID, of.Version, e.id)
	}
	return fmt.Sprintf("%s %s %d", e.name, of.InstanceID, of.Version)
}

// eventStream is what a browser makes of a stream.
type eventStream struct {
	events   []event
	comments int
	retry    time.Duration
	unknown  []string // fields that there are none of
}

// parseStream reads a stream as WHATWG HTML 9.2.6 has it ("Interpreting an event stream").
func parseStream(b []byte) (s eventStream) {
	text := strings.TrimPrefix(string(b), "\uFEFF")
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
	lines := strings.Split(text, "\n")
	var name, id string
	var data strings.Builder
	for _, line := range lines[:len(lines)-1] { // the last has no end yet
		if line == "" {
			if data.Len() > 0 {
				s.events = append(s.events, event{name, id, strings.TrimSuffix(data.String(), "\n")})
			}
			name = ""
			data.Reset()
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "":
			s.comments++
		case "event":
			name = value
		case "data":
			data.WriteString(value + "\n")
		case "id":
			if !strings.Contains(value, "\x00") {
				id = value
			}
		case "retry":
			if n, err := strconv.ParseUint(value, 10, 31); err == nil {
				s.retry = time.Duration(n) * time.Millisecond
			}
		default:
			s.unknown = append(s.unknown, field)
		}
	}
	return s
}
