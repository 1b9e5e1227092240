package eventgrid_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/apitest"
	"statusrelay/internal/auth"
	"statusrelay/internal/bridge/eventgrid"
	"statusrelay/internal/limit"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// publishers may publish to any hub, the team to its own hub only.
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
`

// now is the clock of these tests.
func now() time.Time { return time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC) }

const key = "srk_webhook_aSecretThatMustNeverBeLogged"

// api is a handler whose broker remembers what it was given. Tokens are the names
// of their callers.
type api struct {
	http.Handler
	published []eventgrid.Message
	refuse    func(m eventgrid.Message) error // what the broker says; nil: it takes all
	log       bytes.Buffer
	metrics   *prometheus.Registry
}

// readDocuments reads what every answer is held to.
var (
	readDocuments = sync.OnceValues(apitest.Read)
	readRules     = sync.OnceValues(func() (*policy.Policy, error) { return policy.Parse([]byte(rules)) })
)

func newAPI(t testing.TB, change ...func(*eventgrid.Options)) *api {
	t.Helper()
	p, err := readRules()
	if err != nil {
		t.Fatal(err)
	}
	a := &api{metrics: prometheus.NewRegistry()}
	o := eventgrid.Options{
		Verify: verify,
		Policy: func() *policy.Policy { return p },
		Publish: func(_ context.Context, messages []eventgrid.Message) []error {
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
		Hubs: map[string]string{"OrdersTaskHub": "orders", "No Hub!": "mapped"}, Hold: 3 * time.Second,
		Logger: slog.New(slog.NewTextHandler(&a.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Metrics: a.metrics, Now: now,
	}
	for _, f := range change {
		f(&o)
	}
	documents, err := readDocuments()
	if err != nil {
		t.Fatal(err)
	}
	a.Handler = documents.Handler(t, eventgrid.New(o))
	return a
}

func verify(_ context.Context, credential string) (*auth.Principal, error) {
	who := func(roles ...any) *auth.Principal {
		return &auth.Principal{Subject: credential, Claims: map[string]any{"sub": credential, "roles": roles}}
	}
	switch credential {
	case "expired":
		return nil, fmt.Errorf("token: %w", auth.ErrExpired)
	case "rubbish", "srk_rubbish":
		return nil, fmt.Errorf("token: %w", auth.ErrUnauthenticated)
	case "keys-away":
		return nil, fmt.Errorf("keys: %w", status.ErrUnavailable)
	case "publisher":
		return who("publisher"), nil
	case key, "srk_team":
		p := who("publisher")
		p.Grant = &auth.Grant{Rights: []auth.Right{auth.Publish}}
		if credential == "srk_team" {
			p.Grant.Hubs = []string{"team"}
		}
		return p, nil
	case "srk_reader":
		p := who("publisher")
		p.Grant = &auth.Grant{Rights: []auth.Right{auth.Read}}
		return p, nil
	}
	return who(), nil
}

// ask makes a request as a caller ("": without a token). Headers are names and values in turn.
func (a *api) ask(method, caller, target, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if caller != "" {
		r.Header.Set("Authorization", "Bearer "+caller)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w
}

func (a *api) post(caller, body string, headers ...string) *httptest.ResponseRecorder {
	return a.ask(http.MethodPost, caller, "/v1/eventgrid", body, headers...)
}

const (
	running = `{"hubName":"OrdersTaskHub","functionName":"Order","instanceId":"o-1","reason":"","runtimeStatus":"Running"}`
	at      = "2026-01-02T03:04:05.6492068Z"
)

// event is one in Event Grid's schema.
func event(data string) string {
	return `{"id":"e-1","topic":"/t","subject":"durable/orchestrator/Running","eventType":"orchestratorEvent","eventTime":"` + at +
		`","dataVersion":"1.0","metadataVersion":"1","data":` + data + `}`
}

// with is the data of an event with another value of a field.
func with(field, value string) string {
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(running), &fields); err != nil {
		panic(err)
	}
	fields[field] = value
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// counts is the answer that events of a request were dealt with, without those of which there are none.
func counts(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	if w.Code != http.StatusOK {
		return fmt.Sprintf("%d %s", w.Code, w.Body)
	}
	got := map[string]int{}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}
	maps.DeleteFunc(got, func(_ string, n int) bool { return n == 0 })
	return fmt.Sprint(got)[len("map"):]
}

// outcomes is what the metric counts, without zeros.
func (a *api) outcomes(t testing.TB) string {
	t.Helper()
	families, err := a.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if n := int(m.GetCounter().GetValue()); n > 0 {
				got[m.GetLabel()[0].GetValue()] = n
			}
		}
	}
	return fmt.Sprint(got)[len("map"):]
}

// Whatever form an event comes in, it is the same update: of the lifecycle, at the time of the event.
func TestEveryFormOfAnEventIsTaken(t *testing.T) {
	cloud := `{"specversion":"1.0","id":"e-1","source":"/t","type":"orchestratorEvent","time":"` + at + `","data":` + running + `}`
	binary := []string{"Ce-Specversion", "1.0", "Ce-Id", "e-1", "Ce-Source", "/t", "Ce-Type", "orchestratorEvent", "Ce-Time", at}
	for name, c := range map[string]struct {
		body    string
		n       int
		headers []string
	}{
		"EventGrid":          {"[" + event(running) + "]", 1, []string{"Content-Type", "application/json", "Aeg-Event-Type", "Notification"}},
		"EventGridSeveral":   {"[" + event(running) + "," + event(running) + "]", 2, nil},
		"EventGridSingle":    {event(running), 1, nil},
		"CloudEvent":         {cloud, 1, []string{"Content-Type", "application/cloudevents+json; charset=utf-8"}},
		"CloudEventsBatch":   {"[" + cloud + "," + cloud + "]", 2, []string{"Content-Type", "application/cloudevents-batch+json"}},
		"CloudEventInBinary": {running, 1, append([]string{"Content-Type", "application/json"}, binary...)},
		"Mixed":              {"[" + cloud + "," + event(running) + "]", 2, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			if got, want := counts(t, a.post("publisher", c.body, c.headers...)), fmt.Sprintf("[published:%d]", c.n); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			for _, m := range a.published {
				u := m.Update
				if u.Hub != "orders" || u.InstanceID != "o-1" || u.Name != "Order" || u.Kind != status.KindLifecycle || u.RuntimeStatus != status.Running ||
					u.Generation != nil || u.Sequence == nil || *u.Sequence != 1767323045649206 || u.CustomStatus != nil || u.Output != nil || u.Failure != nil ||
					!u.LastUpdatedTime.Equal(time.Date(2026, 1, 2, 3, 4, 5, 649206800, time.UTC)) {
					t.Errorf("published %+v", u)
				}
				if m.ID != "e-1" || m.Source != "/hubs/orders/eventgrid" || !m.At.IsZero() {
					t.Errorf("published with id %q, source %q, at %v", m.ID, m.Source, m.At)
				}
			}
		})
	}
}

func TestOnlyCompletedIsHeldBack(t *testing.T) {
	for said, held := range map[string]bool{
		"Running": false, "Completed": true, "Failed": false, "Terminated": false, "Pending": false, "Suspended": false, "Canceled": false, "ContinuedAsNew": false,
	} {
		a := newAPI(t)
		w := a.post("publisher", event(with("runtimeStatus", said)))
		if len(a.published) != 1 || string(a.published[0].Update.RuntimeStatus) != said {
			t.Errorf("%s: published %+v", said, a.published)
			continue
		}
		want := time.Time{}
		if held {
			want = now().Add(3 * time.Second)
		}
		if got := a.published[0].At; !got.Equal(want) || strings.Contains(counts(t, w), "held") != held {
			t.Errorf("%s: published for %v with %s, want %v", said, got, w.Body, want)
		}
	}
	a := newAPI(t, func(o *eventgrid.Options) { o.Hold = 0 })
	a.post("publisher", event(with("runtimeStatus", "Completed")))
	if len(a.published) != 1 || !a.published[0].At.IsZero() {
		t.Errorf("without a hold: published %+v", a.published)
	}
}

// The reason that somebody gave for terminating is not for everybody who may see the status.
func TestReasonIsDropped(t *testing.T) {
	a := newAPI(t)
	a.post("publisher", event(`{"hubName":"h","functionName":"f","instanceId":"i","reason":"a secret reason","runtimeStatus":"Terminated"}`))
	if got := fmt.Sprintf("%+v", a.published); len(a.published) != 1 || strings.Contains(got, "secret") {
		t.Errorf("published %s", got)
	}
}

// What is not about an orchestration is accepted, since Event Grid would bring it again, and counted.
func TestEventsOfOthersAreIgnored(t *testing.T) {
	for name, body := range map[string]string{
		"Entity":              event(with("instanceId", "@counter@a")),
		"AnotherType":         `{"eventType":"Microsoft.Storage.BlobCreated","data":{"url":7}}`,
		"AnotherCloudEvent":   `{"specversion":"1.0","type":"com.example.other"}`,
		"SubscriptionDeleted": `[{"eventType":"Microsoft.EventGrid.SubscriptionDeletedEvent","data":{}}]`,
		"HandshakeUnasked":    `[{"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"c"}}]`,
	} {
		a := newAPI(t)
		if got := counts(t, a.post("publisher", body)); got != "[ignored:1]" || len(a.published) > 0 || a.outcomes(t) != got {
			t.Errorf("%s: got %s, counted %s, published %v", name, got, a.outcomes(t), a.published)
		}
	}
	a := newAPI(t)
	if got := counts(t, a.post("publisher", "\x00 no JSON", "Ce-Specversion", "1.0", "Ce-Type", "com.example.other")); got != "[ignored:1]" {
		t.Errorf("another CloudEvent in binary mode: got %s", got)
	}
}

// Each mistake is a 400 that names the field, and nothing of what it says.
func TestInvalidEventIsRefused(t *testing.T) {
	replaced := func(old, by string) string { return strings.Replace(event(running), old, by, 1) }
	for name, c := range map[string]struct{ body, field string }{
		"Empty":            {"", ""},
		"NoJSON":           {"secret", ""},
		"NoEvents":         {"[]", ""},
		"NotAnObject":      {`["secret"]`, ""},
		"NoType":           {`[{"data":{"instanceId":"secret"}}]`, "eventType"},
		"NoCloudEventType": {`{"specversion":"1.0","data":{}}`, "type"},
		"TypeOfAnotherType": {
			`[{"eventType":7}]`, "",
		},
		"TwoTypes":         {replaced(`"id":"e-1"`, `"eventType":"secret"`), ""},
		"NoData":           {`[{"eventType":"orchestratorEvent","eventTime":"` + at + `"}]`, "data"},
		"DataOfAnother":    {event(`"secret"`), "data"},
		"DataTwice":        {event(`{"hubName":"h","hubName":"secret"}`), ""},
		"NullData":         {event(`null`), "data.hubName"},
		"NoTime":           {replaced(at, ""), "eventTime"},
		"BadTime":          {replaced(at, "secret"), "eventTime"},
		"LongAgo":          {replaced(at, "1969-12-31T23:59:59Z"), "eventTime"},
		"FarAhead":         {replaced(at, "2026-01-02T04:10:01Z"), "eventTime"},
		"FarAheadInCloud":  {`{"specversion":"1.0","type":"orchestratorEvent","time":"2099-01-01T00:00:00Z","data":` + running + `}`, "time"},
		"NoHub":            {event(with("hubName", "")), "data.hubName"},
		"BadHub":           {event(with("hubName", "secret hub")), "data.hubName"},
		"LongHub":          {event(with("hubName", strings.Repeat("h", 65))), "data.hubName"},
		"NoInstance":       {event(with("instanceId", "")), "instanceId"},
		"BadInstance":      {event(with("instanceId", "secret/1")), "instanceId"},
		"LongName":         {event(with("functionName", strings.Repeat("secret", 50))), "name"},
		"NoStatus":         {event(with("runtimeStatus", "")), "data.runtimeStatus"},
		"UnknownStatus":    {event(with("runtimeStatus", "secret")), "data.runtimeStatus"},
		"InvalidUTF8":      {event(with("functionName", "x") + "\xff"), ""},
		"InvalidUTF8Value": {replaced("Order", "\xff"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			w := a.post("publisher", c.body)
			var got struct{ Type, Field string }
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if w.Code != http.StatusBadRequest || got.Type != "urn:statusrelay:problem:invalid" || got.Field != c.field {
				t.Errorf("got %d %s, want 400 of %q", w.Code, w.Body, c.field)
			}
			if len(a.published) > 0 || strings.Contains(w.Body.String()+a.log.String(), "secret") {
				t.Errorf("published %v; answered %s; logged %s", a.published, w.Body, &a.log)
			}
		})
	}
}

// One bad event costs its neighbours nothing, and does not have them all brought again.
func TestBadEventAmongGoodOnesCostsThemNothing(t *testing.T) {
	a := newAPI(t)
	body := "[" + strings.Join([]string{
		event(running), event(with("runtimeStatus", "secret")), `"secret"`, event(with("instanceId", "@e@k")), event(with("instanceId", "o-2")),
	}, ",") + "]"
	if got := counts(t, a.post("publisher", body)); got != "[ignored:1 invalid:2 published:2]" || a.outcomes(t) != got {
		t.Errorf("got %s, counted %s", got, a.outcomes(t))
	}
	if len(a.published) != 2 || a.published[1].Update.InstanceID != "o-2" {
		t.Errorf("published %+v", a.published)
	}
	if log := a.log.String(); !strings.Contains(log, "invalid=2") || !strings.Contains(log, "data.runtimeStatus: not a runtime status") || strings.Contains(log, "secret") {
		t.Errorf("logged %s", log)
	}
	a = newAPI(t) // nor does one that the broker never takes
	a.refuse = func(m eventgrid.Message) error {
		if m.Update.InstanceID == "o-2" {
			return &status.InvalidError{Reason: status.ReasonTooLarge}
		}
		return nil
	}
	if got := counts(t, a.post("publisher", body)); got != "[ignored:1 invalid:3 published:1]" {
		t.Errorf("got %s", got)
	}
}

// What the broker has not taken is brought again, and all with it: repetitions are merged away.
func TestEventsThatTheBrokerHasNotTakenAreAskedForAgain(t *testing.T) {
	for name, failure := range map[string]error{
		"Unavailable": fmt.Errorf("broker: %w", status.ErrUnavailable), "NoTopic": errors.New("a secret cause"),
	} {
		a := newAPI(t)
		a.refuse = func(m eventgrid.Message) error {
			if m.Update.InstanceID == "o-2" {
				return failure
			}
			return nil
		}
		w := a.post("publisher", "["+event(running)+","+event(with("instanceId", "o-2"))+"]")
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: got %d %s, Retry-After %q", name, w.Code, w.Body, w.Header().Get("Retry-After"))
		}
		if got := a.outcomes(t); got != "[failed:1 published:1]" {
			t.Errorf("%s: counted %s", name, got)
		}
	}
}

func TestWhoeverMayNotPublishIsRefused(t *testing.T) {
	good := "[" + event(running) + "]"
	for name, c := range map[string]struct {
		caller, target string
		headers        []string
		code           int
	}{
		"Token":               {"publisher", "", nil, 200},
		"KeyAsToken":          {key, "", nil, 200},
		"KeyInQuery":          {"", "?code=" + key, nil, 200},
		"KeyInHeader":         {"", "", []string{"X-Functions-Key", key}, 200},
		"AnotherScheme":       {"", "?code=" + key, []string{"Authorization", "Basic dTpw"}, 200},
		"Nothing":             {"", "", nil, 401},
		"EmptyCode":           {"", "?code=", nil, 401},
		"TokenInQuery":        {"", "?code=publisher", nil, 401},
		"TokenInHeader":       {"", "", []string{"X-Functions-Key", "publisher"}, 401},
		"Expired":             {"expired", "", nil, 401},
		"Rubbish":             {"rubbish", "", nil, 401},
		"RubbishKey":          {"", "?code=srk_rubbish", nil, 401},
		"Two":                 {"publisher", "?code=" + key, nil, 401},
		"TwoKeys":             {"", "?code=" + key + "&code=srk_team", nil, 401},
		"KeyInBoth":           {"", "?code=" + key, []string{"X-Functions-Key", key}, 401},
		"NotAPublisher":       {"somebody", "", nil, 403},
		"KeyForReading":       {"", "?code=srk_reader", nil, 403},
		"KeyOfAnotherHub":     {"", "?code=srk_team", nil, 403},
		"PublisherOfAnother":  {"team", "", nil, 403},
		"IssuerDoesNotAnswer": {"keys-away", "", nil, 503},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t)
			w := a.ask(http.MethodPost, c.caller, "/v1/eventgrid"+c.target, good, c.headers...)
			if w.Code != c.code || len(a.published) != map[bool]int{true: 1}[c.code == 200] {
				t.Errorf("got %d %s, published %v, want %d", w.Code, w.Body, a.published, c.code)
			}
			if (c.code == 401) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Errorf("got WWW-Authenticate %q", w.Header().Get("WWW-Authenticate"))
			}
			if strings.Contains(w.Body.String()+a.log.String(), "srk_") {
				t.Errorf("a key is in the answer or the log: %s %s", w.Body, &a.log)
			}
		})
	}
}

// An event of a hub that the caller may not publish to costs those of others nothing.
func TestForbiddenHubCostsOthersNothing(t *testing.T) {
	a := newAPI(t)
	body := "[" + event(with("hubName", "team")) + "," + event(running) + "]"
	if got := counts(t, a.post("team", body)); got != "[forbidden:1 published:1]" || a.outcomes(t) != got {
		t.Errorf("got %s, counted %s", got, a.outcomes(t))
	}
	if len(a.published) != 1 || a.published[0].Update.Hub != "team" {
		t.Errorf("published %+v", a.published)
	}
}

func TestTaskHubsHaveTheirNameUnlessMapped(t *testing.T) {
	for task, want := range map[string]string{"OrdersTaskHub": "orders", "No Hub!": "mapped", "orderstaskhub": "orderstaskhub", "Other": "Other"} {
		a := newAPI(t)
		a.post("publisher", event(with("hubName", task)))
		if len(a.published) != 1 || a.published[0].Update.Hub != want {
			t.Errorf("%s: published %+v, want hub %s", task, a.published, want)
		}
	}
}

// Where a bridge looks at the instance itself, an event only says that there is something to see.
func TestBridgeLooksInsteadOfPublishing(t *testing.T) {
	var looked []string
	var away error
	a := newAPI(t, func(o *eventgrid.Options) {
		o.LookHub = "orders"
		o.Look = func(_ context.Context, keys []status.Key) error {
			for _, k := range keys {
				looked = append(looked, k.String())
			}
			return away
		}
	})
	body := "[" + event(running) + "," + event(with("runtimeStatus", "Completed")) + "," + event(with("hubName", "other")) + "," +
		event(with("instanceId", "@e@k")) + "," + event(with("runtimeStatus", "Sleeping")) + "]"
	if got := counts(t, a.post("publisher", body)); got != "[ignored:1 invalid:1 looked:2 published:1]" || a.outcomes(t) != got {
		t.Errorf("got %s, counted %s", got, a.outcomes(t))
	}
	if want := []string{"orders/o-1", "orders/o-1"}; !slices.Equal(looked, want) {
		t.Errorf("looked at %v, want %v", looked, want)
	}
	away = errors.New("away")
	if got := counts(t, a.post("publisher", body)); got != "[held:1 ignored:1 invalid:1 published:2]" {
		t.Errorf("while nobody can be told: got %s", got)
	}
	looked = nil
	if w := a.post("somebody", event(running)); w.Code != http.StatusForbidden || looked != nil {
		t.Errorf("got %d, and looked at %v for somebody who may not publish", w.Code, looked)
	}
}

func TestHandshakeOfEventGridIsAnswered(t *testing.T) {
	const handshake = `[{"id":"1","topic":"/t","subject":"","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"` + at +
		`","dataVersion":"2","metadataVersion":"1","data":{"validationCode":"512D38B6-<b>","validationUrl":"https://validate.example"}}]`
	header := []string{"aeg-event-type", "SubscriptionValidation"}
	for name, c := range map[string]struct {
		caller, body string
		code         int
	}{
		"Asked":       {"publisher", handshake, 200},
		"Nobody":      {"", handshake, 401},
		"Reader":      {"srk_reader", handshake, 403},
		"Two":         {"publisher", "[" + handshake[1:len(handshake)-1] + "," + handshake[1:], 400},
		"AnotherType": {"publisher", "[" + event(running) + "]", 400},
		"NoCode":      {"publisher", strings.Replace(handshake, "validationCode", "code", 1), 400},
		"LongCode":    {"publisher", strings.Replace(handshake, "512D38B6", strings.Repeat("x", 2000), 1), 400},
		"NoData":      {"publisher", `[{"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent"}]`, 400},
	} {
		a := newAPI(t)
		w := a.post(c.caller, c.body, header...)
		if w.Code != c.code || len(a.published) > 0 {
			t.Errorf("%s: got %d %s, want %d; published %v", name, w.Code, w.Body, c.code, a.published)
		}
		var got map[string]string
		if c.code == 200 && (json.Unmarshal(w.Body.Bytes(), &got) != nil || len(got) != 1 || got["validationResponse"] != "512D38B6-<b>") {
			t.Errorf("got %s", w.Body)
		}
	}
}

func TestHandshakeOfCloudEventsIsAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		caller, target string
		headers        []string
		code           int
		origin, rate   string
	}{
		"Asked":     {"publisher", "", []string{"WebHook-Request-Origin", "eventgrid.azure.net"}, 200, "eventgrid.azure.net", ""},
		"WithRate":  {"", "?code=" + key, []string{"WebHook-Request-Origin", "eventgrid.azure.net", "WebHook-Request-Rate", "120"}, 200, "eventgrid.azure.net", "600"},
		"NoOrigin":  {"publisher", "", nil, 400, "", ""},
		"Nobody":    {"", "", []string{"WebHook-Request-Origin", "eventgrid.azure.net"}, 401, "", ""},
		"KeyToRead": {"", "?code=srk_reader", []string{"WebHook-Request-Origin", "eventgrid.azure.net"}, 403, "", ""},
	} {
		a := newAPI(t, func(o *eventgrid.Options) { o.Rate = 10 })
		w := a.ask(http.MethodOptions, c.caller, "/v1/eventgrid"+c.target, "", c.headers...)
		if w.Code != c.code || w.Header().Get("WebHook-Allowed-Origin") != c.origin || w.Header().Get("WebHook-Allowed-Rate") != c.rate {
			t.Errorf("%s: got %d %v, want %d for %q at %q", name, w.Code, w.Header(), c.code, c.origin, c.rate)
		}
	}
}

func TestOnlyPostAndOptionsAreTaken(t *testing.T) {
	a := newAPI(t)
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		if w := a.ask(method, "publisher", "/v1/eventgrid", ""); w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "OPTIONS, POST" {
			t.Errorf("%s: got %d, Allow %q", method, w.Code, w.Header().Get("Allow"))
		}
	}
}

func TestSizesAndRatesAreBounded(t *testing.T) {
	several := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat(event(running)+",", n), ",") + "]" }
	large := strings.Repeat(" ", 2<<20)
	for name, c := range map[string]struct {
		body    string
		change  func(*eventgrid.Options)
		headers []string
		code    int
	}{
		"Most":             {several(3), func(o *eventgrid.Options) { o.MaxEvents = 3 }, nil, 200},
		"TooMany":          {several(4), func(o *eventgrid.Options) { o.MaxEvents = 3 }, nil, 413},
		"TooManyByDefault": {"[" + strings.Repeat("0,", 5000) + "0]", func(*eventgrid.Options) {}, nil, 413},
		"Largest":          {event(running) + large[len(event(running)):], func(*eventgrid.Options) {}, nil, 200},
		"TooLarge":         {event(running) + large, func(*eventgrid.Options) {}, nil, 413},
		"TooLargeAsTold":   {several(1), func(o *eventgrid.Options) { o.MaxBodyBytes = 100 }, nil, 413},
		"TooLargeInBinary": {several(1), func(o *eventgrid.Options) { o.MaxBodyBytes = 100 }, []string{"Ce-Specversion", "1.0", "Ce-Type", "other"}, 413},
		"Compressed":       {several(1), func(*eventgrid.Options) {}, []string{"Content-Encoding", "gzip"}, 415},
	} {
		a := newAPI(t, c.change)
		if w := a.post("publisher", c.body, c.headers...); w.Code != c.code || (c.code == 200) != (len(a.published) > 0) {
			t.Errorf("%s: got %d %.200s with %d published, want %d", name, w.Code, w.Body, len(a.published), c.code)
		}
	}
	a := newAPI(t, func(o *eventgrid.Options) { o.Rate = 2 })
	if w := a.post("publisher", several(4)); w.Code != http.StatusOK {
		t.Errorf("the first: got %d %s", w.Code, w.Body)
	}
	if w := a.post("publisher", several(1)); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("the next: got %d %s, Retry-After %q", w.Code, w.Body, w.Header().Get("Retry-After"))
	}
	if w := a.post("team", "["+event(with("hubName", "team"))+"]"); w.Code != http.StatusOK {
		t.Errorf("another caller: got %d %s", w.Code, w.Body)
	}
}

// Whoever floods from one address, or guesses there, is refused before anything else, whatever they show and ask for; and by the same
// door as elsewhere.
func TestH7DoorIsPassedFirst(t *testing.T) {
	door := limit.NewDoor(limit.Rate{PerSecond: 1, Burst: 3}, limit.NewFailures(limit.Rate{PerSecond: 1, Burst: 1}))
	a := newAPI(t, func(o *eventgrid.Options) { o.Door = door })
	body := "[" + event(running) + "]"
	if w := a.post("publisher", body); w.Code != http.StatusOK || w.Header().Get("RateLimit") != `"address";r=2;t=1` {
		t.Errorf("the first: got %d, told %q", w.Code, w.Header().Get("RateLimit"))
	}
	if w := a.post("rubbish", body); w.Code != http.StatusUnauthorized {
		t.Errorf("a guess: got %d", w.Code)
	}
	if w := a.post("publisher", body); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("after a guess: got %d %v", w.Code, w.Header())
	}
	if _, err := door.Admit(limit.Address(httptest.NewRequest(http.MethodGet, "/", nil)), now()); err == nil {
		t.Error("elsewhere the same address is let in")
	}
	only := newAPI(t, func(o *eventgrid.Options) { o.Door = limit.NewDoor(limit.Rate{PerSecond: 1, Burst: 1}, nil) })
	for i, want := range []int{http.StatusOK, http.StatusTooManyRequests} {
		if w := only.post("publisher", body); w.Code != want {
			t.Errorf("request %d from an address: got %d, want %d", i, w.Code, want)
		}
	}
	if len(a.published)+len(only.published) != 2 {
		t.Errorf("published %d and %d, want one each", len(a.published), len(only.published))
	}
}

// Whatever arrives, what is published is valid and of the lifecycle, and the answer is a documented one.
func FuzzAnyBodyEndsInValidUpdatesOrARefusal(f *testing.F) {
	for _, body := range []string{
		"", "[]", "{}", "[" + event(running) + "]", event(running), "[" + event(with("runtimeStatus", "Completed")) + ",{}]", running,
		`{"specversion":"1.0","id":"1","source":"/t","type":"orchestratorEvent","time":"` + at + `","data":` + running + `}`,
		`[{"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"c"}}]`,
		event(with("instanceId", "@e@k")), event(with("hubName", "No Hub!")), `[{"eventType":"orchestratorEvent","eventTime":"9999-12-31T23:59:59-23:59","data":{}}]`,
	} {
		f.Add(body, "", "", "")
		f.Add(body, "SubscriptionValidation", "", "")
		f.Add(body, "", "1.0", at)
	}
	f.Fuzz(func(t *testing.T, body, kind, version, at string) {
		a := newAPI(t)
		w := a.post("publisher", body, "Aeg-Event-Type", kind, "Ce-Specversion", version, "Ce-Type", "orchestratorEvent", "Ce-Time", at)
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest && w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
		for _, m := range a.published {
			u := m.Update
			if err := errors.Join(u.Validate(now()), status.ValidHub(u.Hub)); err != nil {
				t.Errorf("published %+v: %v", u, err)
			}
			if u.Kind != status.KindLifecycle || u.RuntimeStatus == "" || u.Sequence == nil || u.Generation != nil || u.CustomStatus != nil {
				t.Errorf("published %+v", u)
			}
			if u.RuntimeStatus == status.Completed == m.At.IsZero() {
				t.Errorf("%s for %v", u.RuntimeStatus, m.At)
			}
		}
	})
}

// What is in hand has the bounds that all ways to publish share, and a broker that says nothing is not waited for: Event Grid
// brings the events again.
func TestStalledBrokerHoldsNoMoreThanThereIsRoomFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := "[" + event(running) + "]"
		a := newAPI(t, func(o *eventgrid.Options) {
			o.Room = limit.NewRoom(2*limit.Holds(int64(len(body)), 1), nil)
			o.Publish = func(ctx context.Context, messages []eventgrid.Message) []error {
				<-ctx.Done()
				return []error{fmt.Errorf("%w: %w", status.ErrUnavailable, ctx.Err())}
			}
		})
		began, answers := time.Now(), make(chan *httptest.ResponseRecorder, 2)
		for range 2 {
			go func() { answers <- a.post("publisher", body) }()
		}
		synctest.Wait()
		if w := a.post("publisher", body); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || time.Since(began) != 0 {
			t.Errorf("beyond: got %d with Retry-After %q after %s", w.Code, w.Header().Get("Retry-After"), time.Since(began))
		}
		for range 2 {
			if w := <-answers; w.Code != http.StatusServiceUnavailable {
				t.Errorf("in hand: got %d", w.Code)
			}
		}
		if d := time.Since(began); d != 20*time.Second {
			t.Errorf("it took %s", d)
		}
	})
}
