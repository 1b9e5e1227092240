package httpapi_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"statusrelay/internal/apitest"
	"statusrelay/internal/auth"
	"statusrelay/internal/httpapi"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// verify takes "ROLE.SUBJECT" for a token, or "ROLE.SUBJECT.30" for one that is good for 30 s more, or "ROLE.SUBJECT~TENANT".
func verify(_ context.Context, token string) (*auth.Principal, error) {
	role, subject, ok := strings.Cut(token, ".")
	switch {
	case token == "expired":
		return nil, auth.ErrExpired
	case !ok:
		return nil, auth.ErrUnauthenticated
	}
	subject, tenant, _ := strings.Cut(subject, "~")
	subject, seconds, _ := strings.Cut(subject, ".")
	who := &auth.Principal{Issuer: "test", Subject: subject, Claims: map[string]any{"sub": subject, "roles": []any{role}}}
	if tenant != "" {
		who.Claims["tenant"] = tenant
	}
	if n, err := strconv.Atoi(seconds); err == nil {
		who.Expires = time.Now().Add(time.Duration(n) * time.Second)
	}
	return who, nil
}

var readDocuments = sync.OnceValues(apitest.Read)

// check holds an answer to what is true of all of them, and to the OpenAPI document. Every answer of every test comes by here.
func check(t testing.TB, r *http.Request, w *httptest.ResponseRecorder) {
	t.Helper()
	documents, err := readDocuments()
	if err != nil {
		t.Fatal(err)
	}
	if body := w.Body.Bytes(); r.Method == http.MethodHead {
		documents.Response(t, r, w.Code, w.Header(), nil) // the server leaves it out, a recorder does not
	} else {
		documents.Response(t, r, w.Code, w.Header(), body)
	}
	h, body, what := w.Header(), w.Body.Bytes(), r.Method+" "+r.URL.RequestURI()
	if len(what) > 200 {
		what = what[:200] + "…"
	}
	for name, want := range map[string]bool{
		"Cache-Control":    true,
		"ETag":             w.Code == http.StatusNotModified,
		"Retry-After":      w.Code == http.StatusServiceUnavailable || w.Code == http.StatusTooManyRequests || w.Code == http.StatusAccepted,
		"Www-Authenticate": w.Code == http.StatusUnauthorized,
		"Allow":            w.Code == http.StatusMethodNotAllowed,
		"Location":         w.Code == http.StatusAccepted,
	} {
		if want && len(h.Values(name)) != 1 {
			t.Errorf("%s: %d with %s %q", what, w.Code, name, h.Values(name))
		}
	}
	if h.Get("Set-Cookie") != "" || h.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v", what, h)
	}
	if after := h.Get("Retry-After"); after != "" {
		if n, err := strconv.Atoi(after); err != nil || n < 1 || n > 60 {
			t.Errorf("%s: Retry-After %q", what, after)
		}
	}
	for name, values := range h {
		if slices.ContainsFunc(values, func(v string) bool { return strings.ContainsAny(v, "\r\n\x00") }) {
			t.Errorf("%s: %s breaks out: %q", what, name, values)
		}
	}
	switch media := h.Get("Content-Type"); {
	case w.Code == http.StatusNotModified:
		if len(body) > 0 || media != "" {
			t.Errorf("%s: 304 with %q %q", what, media, body)
		}
	case media == "text/event-stream":
		if cc := h.Get("Cache-Control"); cc != "private, no-cache, no-transform" || w.Code != 200 {
			t.Errorf("%s: %d, Cache-Control %q", what, w.Code, cc)
		}
	case media == "application/problem+json":
		checkProblem(t, what, w)
	case media == "application/json":
		if !json.Valid(body) || body[len(body)-1] != '\n' || h.Get("Content-Length") != strconv.Itoa(len(body)) {
			t.Errorf("%s: Content-Length %s of %q", what, h.Get("Content-Length"), body)
		}
	default:
		t.Errorf("%s: %d Content-Type %q", what, w.Code, media)
	}
	noResource := w.Code == http.StatusNotFound && bytes.Contains(body, []byte("no such resource"))
	if vary := strings.Join(h.Values("Vary"), ", "); !noResource && (!strings.Contains(vary, "Authorization") || !strings.Contains(vary, "Accept")) {
		t.Errorf("%s: Vary %q", what, vary)
	}
}

func checkProblem(t testing.TB, what string, w *httptest.ResponseRecorder) {
	t.Helper()
	var p struct {
		Type, Title string
		Status      int
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Status != w.Code || p.Title == "" ||
		!strings.HasPrefix(p.Type, "urn:statusrelay:problem:") || w.Code < 400 || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("%s: %d %v %s", what, w.Code, w.Header(), w.Body)
	}
	for _, secret := range []string{"goroutine", "redis", "internal/", "a secret", "dial"} {
		if strings.Contains(w.Body.String(), secret) {
			t.Errorf("%s: the answer tells of %s: %s", what, secret, w.Body)
		}
	}
	if w.Body.Len() > 1000 {
		t.Errorf("%s: a problem of %d bytes", what, w.Body.Len())
	}
}

// wantProblem holds an answer to one of the problems that there are. field "*" is whatever it is.
func wantProblem(t testing.TB, what string, w *httptest.ResponseRecorder, code int, slug, field string) {
	t.Helper()
	var p struct{ Type, Field string }
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != code || p.Type != "urn:statusrelay:problem:"+slug {
		t.Errorf("%s: got %d %s, want %d %s", what, w.Code, w.Body, code, slug)
	}
	if field != "*" && p.Field != field {
		t.Errorf("%s: got field %q, want %q", what, p.Field, field)
	}
}

// newRequest returns a request; header holds names and values in turn.
func newRequest(method, path, token string, header ...string) *http.Request {
	r := httptest.NewRequest(method, path, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// do has a request answered.
func do(t testing.TB, h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	check(t, r, w)
	return w
}

func get(t testing.TB, h http.Handler, path, token string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	return do(t, h, newRequest(http.MethodGet, path, token, header...))
}

// An asked is a request under way, whose answer may take time.
type asked struct {
	t     testing.TB
	r     *http.Request
	w     *httptest.ResponseRecorder
	leave context.CancelFunc // as a client that closes its connection does
	done  chan struct{}
}

func (w *world) ask(t testing.TB, path, token string, header ...string) *asked {
	ctx, leave := context.WithCancel(t.Context())
	a := &asked{t, newRequest(http.MethodGet, path, token, header...).WithContext(ctx), httptest.NewRecorder(), leave, make(chan struct{})}
	go func() {
		defer close(a.done)
		w.api.ServeHTTP(a.w, a.r)
	}()
	t.Cleanup(func() {
		leave()
		<-a.done
	})
	return a
}

// code is the status of the answer, 0 while there is none, once everything in the bubble has come to rest.
func (a *asked) code() int {
	a.t.Helper()
	synctest.Wait()
	select {
	case <-a.done:
		check(a.t, a.r, a.w)
		return a.w.Code
	default:
		return 0
	}
}

// want waits until the answer is due and holds its status to what it should be.
func (a *asked) want(what string, code int) {
	a.t.Helper()
	if got := a.code(); got != code {
		a.t.Errorf("%s: got %d %s, want %d", what, got, a.w.Body, code)
	}
}

// store is records by key, or an error for all. It tells the hub and the lists what is put.
type store struct {
	mu      sync.Mutex
	records map[status.Key]*status.Record
	err     error
	hangs   bool // calls return when their context ends
	calls   int
	offer   func(*status.Record)
	touch   func(status.Index, []status.Key)
}

func (s *store) put(r *status.Record) {
	s.mu.Lock()
	s.records[r.Key()] = r
	s.mu.Unlock()
	s.offer(r)
	for _, index := range r.Indexes([]string{"owner"}) {
		s.touch(index, []status.Key{r.Key()})
	}
}

// took returns how often the store was asked since the last time.
func (s *store) took() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = 0
	return calls
}

// fail has all calls fail from now on, with nil no more.
func (s *store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *store) hang(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangs = yes
}

// call begins a call, which holds mu until done is called. It hangs if that is what calls do.
func (s *store) call(ctx context.Context) (done func(), err error) {
	s.mu.Lock()
	s.calls++
	if s.hangs {
		s.mu.Unlock()
		<-ctx.Done()
		return func() {}, fmt.Errorf("%w: %w", status.ErrUnavailable, ctx.Err()) // as redisstore does
	}
	return s.mu.Unlock, s.err
}

func (s *store) Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error) {
	done, err := s.call(ctx)
	defer done()
	if err != nil {
		return nil, err
	}
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = s.records[k]
	}
	return records, nil
}

// List orders by version, as the real one does, and looks at n entries.
func (s *store) List(ctx context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error) {
	done, err := s.call(ctx)
	defer done()
	if err != nil {
		return status.Page{}, err
	}
	all := slices.SortedFunc(maps.Values(s.records), func(a, b *status.Record) int {
		return cmp.Or(cmp.Compare(b.Version, a.Version), cmp.Compare(a.InstanceID, b.InstanceID))
	})
	var page status.Page
	looked, at := 0, status.Cursor{}
	for _, r := range all {
		if at.Version != r.Version {
			at = status.Cursor{Version: r.Version}
		}
		at.Ties++
		if from.Version != 0 && (r.Version > from.Version || r.Version == from.Version && at.Ties <= from.Ties) {
			continue
		}
		if looked == n {
			return page, nil
		}
		looked++
		page.Next = at
		if q.Match(r) {
			page.Records, page.After = append(page.Records, r), append(page.After, at)
		}
	}
	page.Next = status.Cursor{}
	return page, nil
}

func (s *store) Subscribe(context.Context, []status.Key) error        { return nil }
func (s *store) Unsubscribe([]status.Key)                             {}
func (s *store) SubscribeLists(context.Context, []status.Index) error { return nil }
func (s *store) UnsubscribeLists([]status.Index)                      {}

// ticketStore keeps tickets in memory.
type ticketStore struct {
	mu      sync.Mutex
	tickets map[string][]byte
	store   *store // fails and hangs as this one does
}

func (s *ticketStore) SaveTicket(ctx context.Context, id string, payload []byte, _ time.Duration) error {
	done, err := s.store.call(ctx)
	defer done()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets[id] = payload
	return nil
}

func (s *ticketStore) TakeTicket(ctx context.Context, id string) ([]byte, error) {
	done, err := s.store.call(ctx)
	defer done()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	payload, ok := s.tickets[id]
	if !ok {
		return nil, status.ErrNotFound
	}
	delete(s.tickets, id)
	return payload, nil
}

// newAPI returns an API on the development policy, with a hub and lists that run until the test ends.
func newAPI(t testing.TB, records ...*status.Record) (*httpapi.API, *store) {
	t.Helper()
	w := newWorld(t, httpapi.Options{}, records...)
	return w.api, w.store
}

type world struct {
	api     *httpapi.API
	store   *store
	links   *auth.Links
	keys    *auth.APIKeys
	policy  atomic.Pointer[policy.Policy]
	metrics *prometheus.Registry
}

func newWorld(t testing.TB, o httpapi.Options, records ...*status.Record) *world {
	t.Helper()
	w := &world{store: &store{records: make(map[status.Key]*status.Record)}, metrics: prometheus.NewPedanticRegistry()}
	w.policy.Store(parsed(t, string(policy.Development())))
	for _, r := range records {
		w.store.records[r.Key()] = r
	}
	watching := hub.Options{
		StaleAfter: func(r *status.Record) time.Duration { return w.policy.Load().StaleAfter(r) }, Metrics: w.metrics,
	}
	if wishes, ok := o.Interest.(*wishes); ok {
		watching.Wanted = wishes.watched
	}
	h := hub.New(watching)
	lists := hub.NewLists(hub.ListOptions{Labels: []string{"owner"}, Metrics: w.metrics})
	w.store.offer, w.store.touch = h.Offer, lists.Touch
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = h.Run(ctx, w.store, w.store) })
	running.Go(func() { _ = lists.Run(ctx, w.store, w.store) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	w.links, w.keys = auth.NewLinks(auth.LinkOptions{}), auth.NewAPIKeys(auth.APIKeyOptions{})
	w.links.SetKeys([]auth.LinkKey{{ID: "k1", Secret: []byte("0123456789abcdef0123456789abcdef")}})
	o.Verify = func(ctx context.Context, credential string) (*auth.Principal, error) {
		if auth.IsAPIKey(credential) {
			return w.keys.Verify(credential)
		}
		return verify(ctx, credential)
	}
	o.Store, o.DefaultHub, o.Metrics, o.Links = w.store, "orders", w.metrics, w.links
	o.Source = reader.NewSource(h, lists, w.policy.Load)
	o.Tickets = auth.NewTickets(auth.TicketOptions{APIKeys: w.keys, Store: &ticketStore{tickets: map[string][]byte{}, store: w.store}})
	w.api = httpapi.New(o)
	return w
}

// bubble runs a test in a world in a bubble of fake time.
func bubble(t *testing.T, o httpapi.Options, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newWorld(t, o)) })
}

// policyOf is a policy file that says this of everything.
func policyOf(rule string) string {
	return "version: 1\nhubs:\n  '*':\n    orchestrators:\n      '*':\n" + rule
}

const onlyOperators = `        audiences:
          - name: operator
            when: "'operator' in claims.roles"
            see: {customStatus: all, output: true, failure: true, labels: true}
`

// setPolicy puts a policy in force, without telling anyone.
func (w *world) setPolicy(t testing.TB, file string) { w.policy.Store(parsed(t, file)) }

// metric is the value of a metric, or of the count of a histogram, with that label's value if one is given.
func (w *world) metric(t testing.TB, name, label string) (value float64) {
	t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "statusrelay_"+name && (label == "" || slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetValue() == label })) {
				value += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return value
}

func parsed(t testing.TB, file string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// changed returns a copy of a record, one version newer, with a change.
func changed(r *status.Record, change func(*status.Record)) *status.Record {
	next := *r
	next.Labels, next.Version = maps.Clone(r.Labels), r.Version+1
	change(&next)
	return &next
}

// custom returns a change of the custom status.
func custom(text string) func(*status.Record) {
	return func(r *status.Record) { r.Progress.CustomStatus = json.RawMessage(text) }
}

// current returns a record that has changed now.
func current(id string) *status.Record {
	r := record(id)
	r.Version = time.Now().UnixMicro()
	return r
}
