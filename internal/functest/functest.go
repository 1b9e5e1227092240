// Package functest is a function app as far as the HTTP management API of Durable
// Functions can be read: a stand-in for tests and benchmarks, since no Functions host
// runs here. It answers as the extension's HttpApiHandler does (durable-domain 1.1 and
// 1.2): status codes, Location with the key in it, Retry-After, times of whole seconds,
// lists by pages. It breaks in the ways of [Fault], and replays recordings of a real
// engine.
//
//	app := functest.New(functest.Options{Key: "secret"})
//	server := httptest.NewServer(app)
//	app.Set(functest.State{InstanceID: "order-1", RuntimeStatus: "Running", CreatedTime: now})
package functest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Path is where the API is.
const Path = "/runtime/webhooks/durabletask"

// Clothes are the forms in which a status object comes.
type Clothes int

const (
	Extension Clothes = iota // the HTTP API's own
	Python                   // a function that serialises what azure-functions-durable gives it
	InProcess                // one that serialises the object of the C# in-process SDK
	Isolated                 // one that serialises the object of the .NET isolated SDK
)

// Options configure an App.
type Options struct {
	Key     string // "": none is asked for
	TaskHub string // that it has; requests for another find nothing. "": any
	Clothes Clothes
}

// State is what the runtime knows of an instance.
type State struct {
	Name, InstanceID, RuntimeStatus string
	Input, CustomStatus, Output     json.RawMessage
	CreatedTime, LastUpdatedTime    time.Time

	generation, sequence int64 // of a recording
}

// A Fault is a way in which a request goes wrong; the zero one is none.
type Fault struct {
	Delay      time.Duration // before anything
	Late       time.Duration // after the answer was made, before it is sent
	Code       int           // answered instead, without a body
	RetryAfter string        // with it
	Body       string        // answered instead of JSON, with 200
	Missing    bool          // 404, although it is there
	Truncated  bool          // half of the answer, as if that were all
	Cut        bool          // half of it, and the connection is closed
	HugeInput  int           // bytes of input, which nobody asked for
	Other      bool          // the status of another instance
}

// App is a function app. It is safe for concurrent use.
type App struct {
	o Options

	mu        sync.Mutex
	instances map[string]State          // guarded by mu
	fault     func(*http.Request) Fault // guarded by mu; nil: none
	requests  int                       // guarded by mu
	reads     map[string]int            // guarded by mu: by instance
	lists     int                       // guarded by mu
	now, most int                       // guarded by mu: requests at a time
	seen      func(*http.Request)       // guarded by mu
}

// New returns an app without instances.
func New(o Options) *App {
	return &App{o: o, instances: map[string]State{}, reads: map[string]int{}}
}

// Set puts an instance where it is.
func (a *App) Set(s State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s.LastUpdatedTime = cmp.Or(s.LastUpdatedTime, s.CreatedTime)
	a.instances[s.InstanceID] = s
}

// Change changes one that is there.
func (a *App) Change(id string, change func(*State)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.instances[id]
	if !ok {
		panic("functest: no instance " + id)
	}
	change(&s)
	a.instances[id] = s
}

// Purge deletes an instance.
func (a *App) Purge(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.instances, id)
}

// State is what the app has of an instance.
func (a *App) State(id string) (State, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.instances[id]
	return s, ok
}

// Break makes requests go wrong as f says; nil: none does.
func (a *App) Break(f func(*http.Request) Fault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fault = f
}

// Watch has f called with each request. It must not call the app.
func (a *App) Watch(f func(*http.Request)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = f
}

// Requests is how many there were.
func (a *App) Requests() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests
}

// Reads is how many there were for one instance.
func (a *App) Reads(id string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reads[id]
}

// Lists is how many pages of lists were asked for.
func (a *App) Lists() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lists
}

// Most is how many there were at a time.
func (a *App) Most() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.most
}

// ServeHTTP answers a request as the extension does.
func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.requests++
	a.now++
	a.most = max(a.most, a.now)
	if a.seen != nil {
		a.seen(r)
	}
	var f Fault
	if a.fault != nil {
		f = a.fault(r)
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.now--
	}()
	if !pause(r, f.Delay) {
		return
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	switch {
	case f.Code != 0:
		w.WriteHeader(f.Code)
		return
	case f.Body != "":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, f.Body)
		return
	case a.o.Key != "" && r.Header.Get("x-functions-key") != a.o.Key && r.URL.Query().Get("code") != a.o.Key:
		w.WriteHeader(http.StatusUnauthorized)
		return
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.EscapedPath(), Path+"/instances")
	id, err := url.PathUnescape(strings.TrimPrefix(rest, "/"))
	switch {
	case !ok || err != nil:
		w.WriteHeader(http.StatusNotFound)
	case rest == "":
		a.list(w, r, f)
	default:
		a.one(w, r, id, f)
	}
}

// pause waits and reports whether the client has, too.
func pause(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func (a *App) foreign(r *http.Request) bool {
	hub := r.URL.Query().Get("taskHub")
	return a.o.TaskHub != "" && hub != "" && hub != a.o.TaskHub
}

func (a *App) one(w http.ResponseWriter, r *http.Request, id string, f Fault) {
	a.mu.Lock()
	a.reads[id]++
	s, ok := a.instances[id]
	a.mu.Unlock()
	if !ok || f.Missing || a.foreign(r) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if f.Other {
		s.InstanceID += "-other"
	}
	query := r.URL.Query()
	code := http.StatusOK
	switch s.RuntimeStatus {
	case "Running", "Pending", "ContinuedAsNew", "Suspended":
		code = http.StatusAccepted
		self := url.Values{"taskHub": {cmp.Or(a.o.TaskHub, "TestHub")}, "connection": {"Storage"}, "code": {a.o.Key}}
		w.Header().Set("Location", "http://"+r.Host+Path+"/instances/"+url.PathEscape(s.InstanceID)+"?"+self.Encode())
		w.Header().Set("Retry-After", "5")
	case "Failed":
		if query.Get("returnInternalServerErrorOnFailure") == "true" {
			code = http.StatusInternalServerError
		}
	}
	a.write(w, r, code, a.object(s, !strings.EqualFold(query.Get("showInput"), "false"), f.HugeInput), f)
}

func (a *App) list(w http.ResponseWriter, r *http.Request, f Fault) {
	query := r.URL.Query()
	top, err := strconv.Atoi(cmp.Or(query.Get("top"), "100"))
	if err != nil || top <= 0 {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	var states []string // those that are not known are passed over, and so may be the whole filter
	for _, s := range strings.Split(query.Get("runtimeStatus"), ",") {
		if slices.Contains([]string{"Running", "Completed", "ContinuedAsNew", "Failed", "Canceled", "Terminated", "Pending", "Suspended"}, s) {
			states = append(states, s)
		}
	}
	after := r.Header.Get("x-ms-continuation-token")
	showInput := !strings.EqualFold(query.Get("showInput"), "false") || len(states) == 0
	body := []byte{'['}
	a.mu.Lock()
	a.lists++
	n, last := 0, ""
	for _, id := range slices.Sorted(maps.Keys(a.instances)) {
		s := a.instances[id]
		if id <= after || a.foreign(r) || len(states) > 0 && !slices.Contains(states, s.RuntimeStatus) {
			continue
		}
		if n == top {
			w.Header().Set("x-ms-continuation-token", last)
			break
		}
		if n > 0 {
			body = append(body, ',')
		}
		body = append(body, a.object(s, showInput, f.HugeInput)...)
		n, last = n+1, id
	}
	a.mu.Unlock()
	a.write(w, r, http.StatusOK, append(body, ']'), f)
}

func (a *App) write(w http.ResponseWriter, r *http.Request, code int, body []byte, f Fault) {
	if !pause(r, f.Late) {
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	switch {
	case f.Truncated:
		body = body[:len(body)/2]
	case f.Cut:
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		body = body[:len(body)/2]
	}
	w.WriteHeader(code)
	_, _ = w.Write(body)
	if f.Cut {
		_ = http.NewResponseController(w).Flush() // or nothing of it is sent
		panic(http.ErrAbortHandler)
	}
}

// numbers are the runtime statuses of the SDKs' enumerations.
func number(runtimeStatus string) int {
	return slices.Index([]string{"Running", "Completed", "ContinuedAsNew", "Failed", "Canceled", "Terminated", "Pending", "Suspended"}, runtimeStatus)
}

// object writes a status object.
func (a *App) object(s State, showInput bool, huge int) []byte {
	value := func(v json.RawMessage) string {
		if v == nil {
			return "null"
		}
		return string(v)
	}
	text := func(s string) string {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	serialized := func(v json.RawMessage) string {
		if v == nil {
			return "null"
		}
		return text(string(v))
	}
	input := "null"
	switch {
	case huge > 0:
		input = `{"big":[` + strings.Repeat(`"0123456789abcdef",`, huge/19) + `1]}`
	case showInput:
		input = value(s.Input)
	}
	created, changed := s.CreatedTime.UTC(), s.LastUpdatedTime.UTC()
	switch a.o.Clothes {
	case Python:
		const form = "2006-01-02T15:04:05+00:00"
		return fmt.Appendf(nil, `{"name":%s,"instanceId":%s,"runtimeStatus":%s,"customStatus":%s,"output":%s,"createdTime":%q,"lastUpdatedTime":%q}`,
			text(s.Name), text(s.InstanceID), text(s.RuntimeStatus), value(s.CustomStatus), value(s.Output), created.Format(form), changed.Format(form))
	case InProcess:
		const form = "2006-01-02T15:04:05.0000000Z"
		return fmt.Appendf(nil, `{"Name":%s,"InstanceId":%s,"CreatedTime":%q,"LastUpdatedTime":%q,"Input":%s,"Output":%s,"RuntimeStatus":%d,"CustomStatus":%s,"History":null}`,
			text(s.Name), text(s.InstanceID), created.Format(form), changed.Format(form), input, value(s.Output), number(s.RuntimeStatus), value(s.CustomStatus))
	case Isolated:
		const form = "2006-01-02T15:04:05.0000000+00:00"
		return fmt.Appendf(nil, `{"name":%s,"instanceId":%s,"runtimeStatus":%d,"createdAt":%q,"lastUpdatedAt":%q,"serializedInput":null,"serializedOutput":%s,"serializedCustomStatus":%s}`,
			text(s.Name), text(s.InstanceID), number(s.RuntimeStatus), created.Format(form), changed.Format(form), serialized(s.Output), serialized(s.CustomStatus))
	default:
		const form = "2006-01-02T15:04:05Z"
		return fmt.Appendf(nil, `{"name":%s,"instanceId":%s,"runtimeStatus":%s,"input":%s,"customStatus":%s,"output":%s,"createdTime":%q,"lastUpdatedTime":%q}`,
			text(s.Name), text(s.InstanceID), text(s.RuntimeStatus), input, value(s.CustomStatus), value(s.Output), created.Format(form), changed.Format(form))
	}
}

// RoundTrip answers without a network, for tests with a clock of their own.
func (a *App) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	cut := false
	func() {
		defer func() {
			if p := recover(); p == http.ErrAbortHandler { //nolint:errorlint // that is what is compared
				cut = true
			} else if p != nil {
				panic(p)
			}
		}()
		a.ServeHTTP(w, r)
	}()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	answer := w.Result()
	answer.Request = r
	if cut {
		answer.Body = io.NopCloser(io.MultiReader(answer.Body, broken{}))
	}
	return answer, nil
}

// broken is a connection that was closed too early.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
