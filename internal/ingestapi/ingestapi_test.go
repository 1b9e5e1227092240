package ingestapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/apitest"
	"statusrelay/internal/auth"
	"statusrelay/internal/ingestapi"
	"statusrelay/internal/limit"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// publishers may publish to any hub, the team to its own hub only and the owner
// only what is labelled as theirs.
const rules = `
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences: []
publishers:
  - when: "'publisher' in claims.roles"
    hubs: ["*"]
  - when: claims.sub == 'team'
    hubs: [team]
  - when: labels.owner == claims.sub
    hubs: [shared]
`

// api is a handler whose broker remembers what it was given. Tokens are the names
// of their callers.
type api struct {
	http.Handler
	published []ingestapi.Message
	refuse    func(m ingestapi.Message) error // what the broker says; nil: it takes all
}

// readDocuments reads what every answer is held to.
var readDocuments = sync.OnceValues(apitest.Read)

func newAPI(t testing.TB, change ...func(*ingestapi.Options)) *api {
	t.Helper()
	p, err := policy.Parse([]byte(rules))
	if err != nil {
		t.Fatal(err)
	}
	a := &api{}
	o := ingestapi.Options{
		Verify: verify,
		Policy: func() *policy.Policy { return p },
		Publish: func(_ context.Context, messages []ingestapi.Message) []error {
			errs := make([]error, len(messages))
			for i, m := range messages {
				if a.refuse != nil {
					errs[i] = a.refuse(m)
				}
				if errs[i] == nil {
					a.published = append(a.published, m)
				}
			}
			return errs
		},
	}
	for _, f := range change {
		f(&o)
	}
	documents, err := readDocuments()
	if err != nil {
		t.Fatal(err)
	}
	a.Handler = documents.Handler(t, ingestapi.New(o))
	return a
}

func verify(_ context.Context, token string) (*auth.Principal, error) {
	switch token {
	case "expired":
		return nil, fmt.Errorf("token: %w", auth.ErrExpired)
	case "unknown-issuer":
		return nil, fmt.Errorf("token: %w", auth.ErrUnauthenticated)
	case "keys-away":
		return nil, fmt.Errorf("keys: %w", status.ErrUnavailable)
	case "broken":
		return nil, errors.New("a secret cause")
	case "publisher":
		return &auth.Principal{Subject: token, Claims: map[string]any{"sub": token, "roles": []any{"publisher"}}}, nil
	}
	return &auth.Principal{Subject: token, Claims: map[string]any{"sub": token, "roles": []any{}}}, nil
}

// post makes a request as a caller. Headers are names and values in turn.
func (a *api) post(caller, body string, headers ...string) *httptest.ResponseRecorder {
	return a.postFrom("192.0.2.1:1234", caller, body, headers...)
}

// postFrom makes one from an address.
func (a *api) postFrom(address, caller, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/v1/updates", strings.NewReader(body))
	r.RemoteAddr = address
	r.Header.Set("Authorization", "Bearer "+caller)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

// ids returns the instances that were published, in order.
func (a *api) ids() (ids []string) {
	for _, m := range a.published {
		ids = append(ids, m.Update.Hub+"/"+m.Update.InstanceID)
	}
	return ids
}

// An outcome is the body of any answer.
type outcome struct {
	Accepted            int
	Type, Title, Detail string
	Field               string
	Status              int
	Items               []struct {
		Index, Status int
		Title, Detail string
	}
}

func read(t *testing.T, w *httptest.ResponseRecorder) (o outcome) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &o); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	return o
}

// Each form of a body is taken, whatever its media type says.
func TestEveryFormOfABodyIsTaken(t *testing.T) {
	bare := func(id string) string { return `{"instanceId":"` + id + `","runtimeStatus":"Running"}` }
	event := func(id string) string {
		return `{"specversion":"1.0","type":"durable.status.v1","source":"/t","id":"` + id + `","data":` + bare(id) + `}`
	}
	for name, c := range map[string]struct {
		body, mediaType string
		want            []string
	}{
		"Bare":               {bare("a"), "application/json", []string{"default/a"}},
		"BareWithoutType":    {bare("a"), "", []string{"default/a"}},
		"BareWithWrongType":  {bare("a"), "application/cloudevents-batch+json", []string{"default/a"}},
		"BareWithBrokenType": {bare("a"), ";;;", []string{"default/a"}},
		"Array":              {"[" + bare("a") + ", " + bare("b") + "]", "application/json", []string{"default/a", "default/b"}},
		"Event":              {event("a"), "application/cloudevents+json", []string{"default/a"}},
		"EventBatch":         {"[" + event("a") + "," + event("b") + "]", "application/cloudevents-batch+json", []string{"default/a", "default/b"}},
		"Lines":              {bare("a") + "\n" + event("b") + "\r\n\n" + bare("c"), "application/x-ndjson", []string{"default/a", "default/b", "default/c"}},
		"LinesAsJSON":        {bare("a") + "\n" + bare("b") + "\n", "application/json", []string{"default/a", "default/b"}},
		"OneLine":            {bare("a") + "\n", "application/x-ndjson", []string{"default/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			w := a.post("publisher", c.body, "Content-Type", c.mediaType)
			if w.Code != http.StatusAccepted || read(t, w).Accepted != len(c.want) {
				t.Errorf("got %d %s, want 202 and %d accepted", w.Code, w.Body, len(c.want))
			}
			if got := a.ids(); !slices.Equal(got, c.want) {
				t.Errorf("published %v, want %v", got, c.want)
			}
		})
	}
}

// What is wrong with a request as a whole is one answer, and nothing of it is
// published.
func TestRequestIsRefusedAsAWhole(t *testing.T) {
	const good = `{"hub":"team","instanceId":"a","runtimeStatus":"Running"}`
	for name, c := range map[string]struct {
		caller, body string
		code         int
		kind         string // the last part of the problem's type
	}{
		"Nothing":          {"publisher", "", 400, "invalid"},
		"WhiteSpace":       {"publisher", " \n\n ", 400, "invalid"},
		"NoJSON":           {"publisher", "percent=40", 400, "invalid"},
		"CutOff":           {"publisher", good[:20], 400, "invalid"},
		"EmptyArray":       {"publisher", "[]", 400, "invalid"},
		"TwoOnOneLine":     {"publisher", good + good, 400, "invalid"},
		"Expired":          {"expired", good, 401, "token-expired"},
		"UnknownIssuer":    {"unknown-issuer", good, 401, "unauthenticated"},
		"NoPublisher":      {"nobody", good, 403, "forbidden"},
		"AnotherHub":       {"team", strings.Replace(good, "team", "other", 1), 403, "forbidden"},
		"AnothersLabel":    {"u-1", `{"hub":"shared","instanceId":"a","labels":{"owner":"u-2"}}`, 403, "forbidden"},
		"Invalid":          {"publisher", `{"instanceId":"a/b"}`, 422, "invalid"},
		"NoUpdate":         {"publisher", `{"id":1}`, 422, "invalid"},
		"DuplicateName":    {"publisher", `{"instanceId":"a","instanceId":"b"}`, 422, "invalid"},
		"InvalidUTF8":      {"publisher", "{\"instanceId\":\"a\xff\"}", 422, "invalid"},
		"HugeNumber":       {"publisher", `{"instanceId":"a","customStatus":1e999}`, 422, "invalid"},
		"TooDeep":          {"publisher", `{"instanceId":"a","customStatus":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`, 422, "invalid"},
		"AllInvalid":       {"publisher", `[{"id":1},{"instanceId":"a","sequence":-1}]`, 422, "invalid"},
		"LargeUpdate":      {"publisher", `{"instanceId":"a","output":"` + strings.Repeat("x", 300<<10) + `"}`, 413, "too-large"},
		"LargeBody":        {"publisher", `{"instanceId":"a","output":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "too-large"},
		"TooManyUpdates":   {"publisher", strings.Repeat(`{"instanceId":"a"}`+"\n", 1001), 413, "too-large"},
		"BrokenVerifier":   {"broken", good, 500, "internal"},
		"NoKeysToVerifyBy": {"keys-away", good, 503, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			w := a.post(c.caller, c.body)
			got := read(t, w)
			if w.Code != c.code || got.Status != c.code || got.Type != "urn:statusrelay:problem:"+c.kind {
				t.Errorf("got %d %s, want %d %s", w.Code, w.Body, c.code, c.kind)
			}
			if mediaType := w.Header().Get("Content-Type"); mediaType != "application/problem+json" {
				t.Errorf("got Content-Type %s", mediaType)
			}
			if len(a.published) > 0 {
				t.Errorf("published %v all the same", a.ids())
			}
			if (c.code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Errorf("got WWW-Authenticate %q", w.Header().Get("WWW-Authenticate"))
			}
			if strings.Contains(w.Body.String(), "secret cause") {
				t.Errorf("the caller is told the cause: %s", w.Body)
			}
		})
	}
}

func TestCallerWithoutATokenIsToldSo(t *testing.T) {
	a := newAPI(t)
	for _, header := range []string{"", "Basic dTpw", "Bearer", "Bearer a b"} {
		r := httptest.NewRequest(http.MethodPost, "/v1/updates", strings.NewReader(`{"instanceId":"a"}`))
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "" {
			t.Errorf("%q: got %d with WWW-Authenticate %q, want 401 with one", header, w.Code, w.Header().Get("WWW-Authenticate"))
		}
	}
}

func TestOnlyPostIsTaken(t *testing.T) {
	a := newAPI(t)
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		r := httptest.NewRequest(method, "/v1/updates", nil)
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != http.MethodPost {
			t.Errorf("%s: got %d, Allow %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/other", nil))
	if w.Code != http.StatusNotFound || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("another path: got %d %s", w.Code, w.Body)
	}
}

// One refused update is named with its index and what is wrong with it; the
// others are published.
func TestRefusedUpdateDoesNotCostItsNeighbours(t *testing.T) {
	a := newAPI(t)
	a.refuse = func(m ingestapi.Message) error {
		switch m.Update.InstanceID {
		case "broker-away":
			return fmt.Errorf("send: %w", status.ErrUnavailable)
		case "broker-broken":
			return errors.New("a secret cause")
		case "broker-limit":
			return &status.InvalidError{Reason: status.ReasonTooLarge, Detail: "larger than the broker accepts"}
		}
		return nil
	}
	w := a.post("team", `[
		{"hub":"team","instanceId":"first"},
		{"hub":"team","instanceId":"a","sequence":-1},
		{"hub":"other","instanceId":"a"},
		{"nothing":1},
		7,
		{"hub":"team","instanceId":"broker-away"},
		{"hub":"team","instanceId":"broker-broken"},
		{"hub":"team","instanceId":"broker-limit"},
		{"hub":"team","instanceId":"last"}
	]`)
	if w.Code != http.StatusMultiStatus {
		t.Fatalf("got %d %s, want 207", w.Code, w.Body)
	}
	if got, want := a.ids(), []string{"team/first", "team/last"}; !slices.Equal(got, want) {
		t.Errorf("published %v, want %v", got, want)
	}
	got := read(t, w)
	if got.Accepted != 2 {
		t.Errorf("accepted %d, want 2", got.Accepted)
	}
	want := []struct {
		code   int
		detail string
	}{{202, ""}, {422, "sequence: not an integer"}, {403, ""}, {422, "neither"}, {422, "not a JSON object"}, {503, ""}, {500, ""}, {413, "broker accepts"}, {202, ""}}
	if len(got.Items) != len(want) {
		t.Fatalf("got %d items, want %d", len(got.Items), len(want))
	}
	for i, it := range got.Items {
		if it.Index != i || it.Status != want[i].code || it.Title == "" || !strings.Contains(it.Detail, want[i].detail) {
			t.Errorf("item %d: got %+v, want %d %q", i, it, want[i].code, want[i].detail)
		}
	}
	if strings.Contains(w.Body.String(), "secret cause") {
		t.Errorf("the caller is told the cause: %s", w.Body)
	}
}

// A broker that is away is told as 503 with a time to come back, for one update
// and for many.
// A key publishes where it is good for and the policy agrees: neither is enough.
func TestU6KeyPublishesWhereGrantAndPolicyAgree(t *testing.T) {
	keys := auth.NewAPIKeys(auth.APIKeyOptions{})
	var kept []auth.APIKey
	text := map[string]string{}
	for id, k := range map[string]auth.APIKey{
		"any-hub":   {Rights: []auth.Right{auth.Publish}, Claims: map[string]any{"roles": []any{"publisher"}}},
		"one-hub":   {Rights: []auth.Right{auth.Publish}, Hubs: []string{"orders"}, Claims: map[string]any{"roles": []any{"publisher"}}},
		"no-role":   {Rights: []auth.Right{auth.Publish}, Claims: map[string]any{"roles": []any{}}},
		"no-claims": {Rights: []auth.Right{auth.Publish}},
		"reads":     {Rights: []auth.Right{auth.Read}, Claims: map[string]any{"roles": []any{"publisher"}}},
		"team":      {Rights: []auth.Right{auth.Publish}},
		"owner":     {Rights: []auth.Right{auth.Publish, auth.Read}, Claims: map[string]any{"sub": "u-1"}},
	} {
		k.ID = id
		key, k, err := auth.NewAPIKey(k)
		if err != nil {
			t.Fatal(err)
		}
		text[id], kept = key, append(kept, k)
	}
	keys.SetKeys(kept)
	credentials := auth.Credentials{APIKeys: keys}
	for _, c := range []struct {
		key, update string
		want        int
	}{
		{"any-hub", `{"hub":"payments","instanceId":"i","runtimeStatus":"Running"}`, 202},
		{"one-hub", `{"hub":"orders","instanceId":"i","runtimeStatus":"Running"}`, 202},
		{"one-hub", `{"hub":"payments","instanceId":"i","runtimeStatus":"Running"}`, 403},
		{"one-hub", `{"hub":"Orders","instanceId":"i","runtimeStatus":"Running"}`, 403},
		{"one-hub", `{"instanceId":"i","runtimeStatus":"Running"}`, 403}, // the default hub
		{"no-role", `{"hub":"orders","instanceId":"i","runtimeStatus":"Running"}`, 403},
		{"no-claims", `{"hub":"orders","instanceId":"i","runtimeStatus":"Running"}`, 403},
		{"reads", `{"hub":"orders","instanceId":"i","runtimeStatus":"Running"}`, 403},
		{"team", `{"hub":"team","instanceId":"i","runtimeStatus":"Running"}`, 202},
		{"team", `{"hub":"shared","instanceId":"i","runtimeStatus":"Running","labels":{"owner":"u-1"}}`, 403},
		{"owner", `{"hub":"shared","instanceId":"i","runtimeStatus":"Running","labels":{"owner":"u-1"}}`, 202},
		{"owner", `{"hub":"shared","instanceId":"i","runtimeStatus":"Running","labels":{"owner":"u-2"}}`, 403},
	} {
		a := newAPI(t, func(o *ingestapi.Options) { o.Verify = credentials.Verify })
		w := a.post(text[c.key], c.update)
		if w.Code != c.want || (len(a.published) == 1) != (c.want == 202) {
			t.Errorf("%s: %s: got %d %s, want %d", c.key, c.update, w.Code, w.Body, c.want)
		}
	}
	a := newAPI(t, func(o *ingestapi.Options) { o.Verify = credentials.Verify })
	w := a.post(text["one-hub"], `[{"hub":"payments","instanceId":"a","runtimeStatus":"Running"},{"hub":"orders","instanceId":"b","runtimeStatus":"Running"}]`)
	if got := a.ids(); w.Code != http.StatusMultiStatus || !slices.Equal(got, []string{"orders/b"}) {
		t.Errorf("one of two: got %d and published %q", w.Code, got)
	}
	keys.SetKeys(nil)
	if w := a.post(text["any-hub"], `{"instanceId":"i"}`); w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), text["any-hub"][12:]) {
		t.Errorf("a key that was withdrawn: got %d %s", w.Code, w.Body)
	}
}

func TestBrokerAwayIs503(t *testing.T) {
	a := newAPI(t)
	a.refuse = func(ingestapi.Message) error { return fmt.Errorf("send: %w", status.ErrUnavailable) }
	for _, body := range []string{`{"instanceId":"a"}`, `[{"instanceId":"a"},{"instanceId":"b"}]`} {
		w := a.post("publisher", body)
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Errorf("got %d with Retry-After %q, want 503 with one", w.Code, w.Header().Get("Retry-After"))
		}
	}
}

// A notifier that lacks the right says so, with 503, and once a request in the log; what else is wrong with an update keeps its answer.
func TestNotifierWithoutTheRightSaysSo(t *testing.T) {
	var log strings.Builder
	a := newAPI(t, func(o *ingestapi.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	a.refuse = func(ingestapi.Message) error { return fmt.Errorf("send: %w: a secret cause", status.ErrMayNotPublish) }
	for _, body := range []string{`{"instanceId":"a"}`, `[{"instanceId":"a"},{"instanceId":"b"}]`} {
		log.Reset()
		w := a.post("publisher", body)
		if got := read(t, w); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "60" || got.Type != "urn:statusrelay:problem:may-not-publish" {
			t.Errorf("got %d %s with Retry-After %q", w.Code, w.Body, w.Header().Get("Retry-After"))
		}
		if strings.Contains(w.Body.String(), "secret") || strings.Count(log.String(), "a secret cause") != 1 || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("answered %s and logged\n%s", w.Body, log.String())
		}
	}
	w := a.post("publisher", `[{"instanceId":"a"},{"nothing":1}]`)
	if got := read(t, w); w.Code != http.StatusServiceUnavailable || got.Items[0].Status != 503 || got.Items[0].Title != "The notifier is not allowed to publish." || got.Items[1].Status != 422 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

// A caller beyond its rate is told when to come back, costs others nothing, and
// is served then.
func TestRateIsPerCaller(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a := newAPI(t, func(o *ingestapi.Options) {
		o.Rate, o.Burst, o.Now = 1, 3, func() time.Time { return now }
	})
	const three = `[{"hub":"team","instanceId":"a"},{"hub":"team","instanceId":"b"},{"hub":"team","instanceId":"c"}]`
	if w := a.post("publisher", three); w.Code != http.StatusAccepted {
		t.Fatalf("got %d, want 202", w.Code)
	}
	w := a.post("publisher", three)
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "3" {
		t.Errorf("got %d with Retry-After %q, want 429 with 3", w.Code, w.Header().Get("Retry-After"))
	}
	if w := a.post("team", three); w.Code != http.StatusAccepted {
		t.Errorf("another caller: got %d, want 202", w.Code)
	}
	now = now.Add(3 * time.Second)
	if w := a.post("publisher", three); w.Code != http.StatusAccepted {
		t.Errorf("3 s later: got %d, want 202", w.Code)
	}
	// What can never fit the burst is let in when the burst is full.
	now = now.Add(time.Hour)
	if w := a.post("publisher", strings.Repeat(`{"instanceId":"a"}`+"\n", 50)); w.Code != http.StatusAccepted {
		t.Errorf("more than the burst: got %d, want 202", w.Code)
	}
}

// The configured limits are the limits.
func TestLimitsAreConfigurable(t *testing.T) {
	registry := prometheus.NewRegistry()
	a := newAPI(t, func(o *ingestapi.Options) {
		o.MaxBodyBytes, o.MaxUpdates, o.DefaultHub, o.Metrics = 200, 2, "mine", registry
	})
	if w := a.post("publisher", strings.Repeat(" ", 200)+`{"instanceId":"a"}`); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("a body of more than 200 bytes: got %d, want 413", w.Code)
	}
	if w := a.post("publisher", strings.Repeat(`{"instanceId":"a"}`+"\n", 3)); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("three updates: got %d, want 413", w.Code)
	}
	a.post("publisher", `{"instanceId":"a"}`)
	if got, want := a.ids(), []string{"mine/a"}; !slices.Equal(got, want) {
		t.Errorf("published %v, want %v", got, want)
	}
	if n := counted(t, registry, "updates_total", "202"); n != 1 {
		t.Errorf("counted %v updates, want 1", n)
	}
}

// counted is the value of a counter with a label's value.
func counted(t *testing.T, registry *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "statusrelay_ingestapi_"+name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no %s of %s", name, label)
	return 0
}

// Whoever floods from one address is refused before a token is looked at, whoever they are, and is let in when told to come back.
func TestH7AddressIsLimitedBeforeAuthentication(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	registry := prometheus.NewRegistry()
	a := newAPI(t, func(o *ingestapi.Options) {
		o.Door, o.Metrics, o.Now = limit.NewDoor(limit.Rate{PerSecond: 1, Burst: 2}, nil), registry, func() time.Time { return now }
	})
	post := func(caller, address string) *httptest.ResponseRecorder {
		return a.postFrom(address, caller, `{"hub":"team","instanceId":"a"}`)
	}
	for _, caller := range []string{"publisher", "unknown-issuer"} {
		if w := post(caller, "192.0.2.1:1"); w.Code == http.StatusTooManyRequests {
			t.Errorf("%s: got %d", caller, w.Code)
		}
	}
	for _, caller := range []string{"publisher", "team", "unknown-issuer"} {
		if w := post(caller, "192.0.2.1:2"); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: got %d with Retry-After %q, want 429 with one", caller, w.Code, w.Header().Get("Retry-After"))
		}
	}
	if w := post("publisher", "192.0.2.2:1"); w.Code != http.StatusAccepted {
		t.Errorf("from elsewhere: got %d", w.Code)
	}
	refused := post("publisher", "192.0.2.1:3")
	wait, err := time.ParseDuration(refused.Header().Get("Retry-After") + "s")
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(wait)
	if w := post("publisher", "192.0.2.1:4"); w.Code != http.StatusAccepted {
		t.Errorf("who has waited: got %d", w.Code)
	}
	if n := counted(t, registry, "limited_total", "address"); n != 4 {
		t.Errorf("counted %v, want 4", n)
	}
}

// While too many credentials from an address prove nothing, nobody from there is let in. One that is too old, or none, is no guess.
func TestGuessingIsSlowedDown(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	registry := prometheus.NewRegistry()
	a := newAPI(t, func(o *ingestapi.Options) {
		o.Door, o.Metrics, o.Now = limit.NewDoor(limit.Rate{}, limit.NewFailures(limit.Rate{PerSecond: 1, Burst: 3})), registry, func() time.Time { return now }
	})
	post := func(caller, address string) int {
		return a.postFrom(address, caller, `{"hub":"team","instanceId":"a"}`).Code
	}
	for range 10 {
		if got := post("expired", "192.0.2.1:1"); got != http.StatusUnauthorized {
			t.Fatalf("got %d", got)
		}
	}
	for range 3 {
		if got := post("unknown-issuer", "192.0.2.1:1"); got != http.StatusUnauthorized {
			t.Fatalf("got %d", got)
		}
	}
	for _, caller := range []string{"unknown-issuer", "publisher"} {
		if got := post(caller, "192.0.2.1:1"); got != http.StatusTooManyRequests {
			t.Errorf("%s: got %d, want 429", caller, got)
		}
	}
	if got := post("publisher", "192.0.2.2:1"); got != http.StatusAccepted {
		t.Errorf("from elsewhere: got %d", got)
	}
	now = now.Add(time.Second)
	if got := post("publisher", "192.0.2.1:1"); got != http.StatusAccepted {
		t.Errorf("a second later: got %d", got)
	}
	if n := counted(t, registry, "limited_total", "failures"); n != 2 {
		t.Errorf("counted %v, want 2", n)
	}
}

// Every answer to who is known tells what is left of the rate that is nearest to its end.
func TestH8QuotaIsTold(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	a := newAPI(t, func(o *ingestapi.Options) {
		o.Rate, o.Burst, o.Door, o.Now = 2, 10, limit.NewDoor(limit.Rate{PerSecond: 1, Burst: 6}, nil), func() time.Time { return now }
	})
	for _, c := range []struct{ caller, body, want string }{
		{"publisher", `{"instanceId":"a"}`, `"address";r=5;t=1`},
		{"publisher", strings.Repeat(`{"instanceId":"a"}`+"\n", 5), `"updates";r=4;t=3`},
		{"publisher", strings.Repeat(`{"instanceId":"a"}`+"\n", 5), `"updates";r=0;t=1`}, // refused
		{"unknown-issuer", "", `"address";r=2;t=4`},
		{"publisher", "rubbish", `"address";r=1;t=5`},
	} {
		h := a.post(c.caller, c.body).Header()
		if got, policy := h.Get("RateLimit"), h.Get("RateLimit-Policy"); got != c.want || policy != `"updates";q=10;w=5, "address";q=6;w=6` {
			t.Errorf("%s: got %s of %s, want %s", c.body, got, policy, c.want)
		}
	}
}
