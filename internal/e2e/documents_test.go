package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"statusrelay/internal/apitest"
	"statusrelay/internal/auth"
	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/devbus"
	"statusrelay/internal/notifier"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/storetest"
	"statusrelay/schemas"
)

// openAPI is what these tests read of schemas/openapi.yaml; the comment at the
// top of schemas/source/openapi.yaml says what its extensions mean.
type openAPI struct {
	Given struct {
		Updates []json.RawMessage
	} `json:"x-given"`
	Paths map[string]map[string]*operation
}

type operation struct {
	OperationID string
	Tags        []string
	Parameters  []struct{ Name, In string }
	RequestBody struct{ Content map[string]media }
	Responses   map[string]struct {
		Content  map[string]media
		Examples map[string]example `json:"x-examples"`
	}
	Execute json.RawMessage `json:"x-execute"`
}

type media struct{ Examples map[string]example }

type example struct {
	Value   json.RawMessage
	Execute json.RawMessage `json:"x-execute"`
}

// An execution is how an example is made to happen.
type execution struct {
	As            string            `json:"as"`
	Path          string            `json:"path"`
	First         string            `json:"first"`
	Headers       map[string]string `json:"headers"`
	Body          string            `json:"body"`
	BadBody       json.RawMessage   `json:"badBody"`
	Pad           int               `json:"pad"`
	Times         int               `json:"times"`
	Together      int               `json:"together"`
	Meanwhile     json.RawMessage   `json:"meanwhile"`
	After         int               `json:"after"`
	When          string            `json:"when"`
	AnswerHeaders map[string]any    `json:"answerHeaders"`
}

// run is one example and where it stands.
type run struct {
	execution
	*operation
	method, template, mediaType string
	code                        int
	want                        json.RawMessage // nil: no content
	text                        string          // of what is no JSON
	events                      []apitest.Event // of a stream
}

// A stage has what examples are executed on.
type stage struct {
	*world
	replicas map[string]*replica // by tag and condition
	tokens   map[string]string   // by who is asking
}

// TestEveryExampleOfOpenAPIIsTrue executes all of them.
func TestEveryExampleOfOpenAPIIsTrue(t *testing.T) {
	var document openAPI
	readDocument(t, "openapi.yaml", &document)
	s := newStage(t)
	s.arrange(document)

	examples, executed, bodies := 0, 0, map[string]bool{}
	for template, item := range document.Paths {
		for method, op := range item {
			for name := range op.bodies() {
				examples++
				bodies[op.OperationID+" "+name] = true
			}
			for name, r := range op.runs(t, strings.ToUpper(method), template) {
				examples++
				delete(bodies, op.OperationID+" "+r.Body)
				t.Run(fmt.Sprintf("%s/%d/%s", op.OperationID, r.code, name), func(t *testing.T) {
					executed++
					for _, tag := range op.programs() {
						s.execute(t, r, s.replicas[tag+r.When])
					}
				})
			}
		}
	}
	for name := range bodies {
		t.Errorf("%s: no example sends this body", name)
	}
	if all := countExamples(t); examples != all || all < 80 {
		t.Errorf("the document has %d examples, of which %d were found", all, examples)
	}
	t.Logf("%d examples, %d of them answers", examples, executed)
}

// countExamples counts in another way than the test finds them.
func countExamples(t *testing.T) (n int) {
	var document map[string]any
	readDocument(t, "openapi.yaml", &document)
	var walk func(node any)
	walk = func(node any) {
		members, _ := node.(map[string]any)
		for name, member := range members {
			if of, ok := member.(map[string]any); ok && (name == "examples" || name == "x-examples") {
				n += len(of)
			} else {
				walk(member)
			}
		}
	}
	walk(document["paths"])
	return n
}

func readDocument(t testing.TB, name string, into any) {
	t.Helper()
	text, err := schemas.Documents.ReadFile(name)
	if err == nil {
		text, err = yaml.YAMLToJSON(text)
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// bodies are the examples of the request's body.
func (op *operation) bodies() map[string]example {
	all := map[string]example{}
	for _, m := range op.RequestBody.Content {
		maps.Copy(all, m.Examples)
	}
	return all
}

// programs lists who has the operation.
func (op *operation) programs() []string {
	if slices.Contains(op.Tags, "Documents") {
		return []string{"Relay", "Notifier"}
	}
	return op.Tags
}

// runs returns the examples of an operation's responses, by name.
func (op *operation) runs(t *testing.T, method, template string) map[string]run {
	t.Helper()
	all := map[string]run{}
	add := func(code int, mediaType, name string, e example) {
		r := run{operation: op, method: method, template: template, code: code, mediaType: mediaType, want: e.Value}
		full := name + " " + mediaType
		if e.Execute == nil {
			t.Errorf("%s %d: the example %s does not say how to execute it", op.OperationID, code, full)
			return
		}
		for _, text := range []json.RawMessage{op.Execute, e.Execute} {
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields()
			if err := d.Decode(&r.execution); err != nil {
				t.Fatalf("%s %d %s: x-execute: %v", op.OperationID, code, full, err)
			}
		}
		if r.BadBody != nil {
			r.Body = ""
		}
		if mediaType != "" && !strings.HasSuffix(mediaType, "json") {
			if err := json.Unmarshal(r.want, &r.text); err != nil {
				t.Fatalf("%s %d %s: %v", op.OperationID, code, full, err)
			}
		}
		if mediaType == "text/event-stream" {
			if r.events = apitest.Events([]byte(r.text + "\n")); len(r.events) == 0 {
				t.Errorf("%s %d: the example %s has no event", op.OperationID, code, full)
			}
		}
		all[fmt.Sprintf("%s (%d)", full, code)] = r
	}
	for status, response := range op.Responses {
		code, err := strconv.Atoi(status)
		if err != nil {
			t.Fatalf("%s: %v", op.OperationID, err)
		}
		if len(response.Content) == 0 && len(response.Examples) == 0 {
			t.Errorf("%s %d: no example", op.OperationID, code)
		}
		for name, e := range response.Examples {
			add(code, "", name, e)
		}
		for mediaType, m := range response.Content {
			if len(m.Examples) == 0 {
				t.Errorf("%s %d %s: no example", op.OperationID, code, mediaType)
			}
			for name, e := range m.Examples {
				add(code, mediaType, name, e)
			}
		}
	}
	return all
}

// newStage starts everything that the examples of both documents need.
func newStage(t *testing.T) *stage {
	w := newWorld(t, devbus.New(devbus.Options{
		Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}, {Name: "broken"}}}},
		Rules:  []devbus.Rule{listens()}, SharedAccessKey: devbus.DevelopmentKey,
	}))
	s := &stage{world: w, replicas: map[string]*replica{}}
	const away = "http://127.0.0.1:1/issuer" // nothing listens there
	foreign, err := devissuer.New(devissuer.Options{URL: away})
	if err != nil {
		t.Fatal(err)
	}
	token, err := foreign.Token(owner, audience, map[string]any{"roles": []string{"customer"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.tokens = map[string]string{
		"operator": w.operator, "customer": w.customer, "publisher": w.publisher, "none": "",
		"expired": w.token(owner, "customer", -time.Hour), "foreign": token,
	}
	key, forKey := apiKey(t, auth.APIKey{
		ID: "operator", Rights: []auth.Right{auth.Read, auth.Publish}, Claims: map[string]any{"roles": []any{"operator", "publisher"}},
	})
	reader, forReader := apiKey(t, auth.APIKey{ID: "reader", Rights: []auth.Right{auth.Read}})
	s.tokens["key"], s.tokens["reader"] = key, reader
	apiKeys := file(t, "keys.yaml", "keys:\n"+forKey+forReader)
	keys := func(c *relay.Config) {
		c.Auth.APIKeys = apiKeys
		c.Links.Keys = file(t, "links.yaml", "keys: [{id: 2026-01, key: "+strings.Repeat("A", 43)+"}]\n")
	}
	s.replicas["Relay"] = w.relay(nil, keys, func(c *relay.Config) { c.Auth.Issuers = append(c.Auth.Issuers, away) })
	s.replicas["Relaylimited"] = w.relay(nil, keys, func(c *relay.Config) { c.Read.MaxPerCaller = 1 })
	s.replicas["Relaythrottled"] = w.relay(nil, keys, func(c *relay.Config) { c.Limits.RequestsPerCaller, c.Limits.HandshakesPerAddress = 0.5, 0.5 })
	s.replicas["Relaybroken"] = w.relay(nil, keys, func(c *relay.Config) {
		c.Subscription = "broken" // what it cannot store, it gives back
		c.Redis.Addrs = []string{storetest.StartRedis(t, "--rename-command", "HMGET", "gone").Addr}
	})
	s.replicas["Notifier"] = w.notifier(func(c *notifier.Config) { c.Auth.Issuers, c.Auth.APIKeys = append(c.Auth.Issuers, away), apiKeys })
	s.replicas["Notifierlimited"] = w.notifier(func(c *notifier.Config) { c.Rate = 0.5 })
	s.replicas["Notifierthrottled"] = w.notifier(func(c *notifier.Config) { c.Rate, c.Limits.RequestsPerAddress = 1000, 0.5 })
	s.replicas["Notifierpowerless"] = w.notifier(func(c *notifier.Config) { c.ServiceBus.ConnectionString = settings.NewSecret(w.by(listens())) })
	s.replicas["Notifierlost"] = w.notifier(func(c *notifier.Config) { c.ServiceBus.Topic = "lost" })
	return s
}

// publish publishes an update and waits until the store has it.
func (s *stage) publish(update []byte) {
	s.Helper()
	s.post(s.replicas["Notifier"], string(update))
	s.settled()
}

// arrange makes what the examples take for given.
func (s *stage) arrange(document openAPI) {
	s.Helper()
	for _, update := range document.Given.Updates {
		s.publish(update)
	}
}

// execute makes an example happen and compares.
func (s *stage) execute(t *testing.T, r run, on *replica) {
	if on == nil {
		t.Fatalf("there is no replica of %v when %q", r.Tags, r.When)
	}
	request := s.request(t, r, on)
	var got answer
	switch {
	case r.Together > 0:
		got = s.together(t, request, r)
	default:
		for range max(r.Times, 1) {
			got = s.ask(t, request, r)
		}
	}
	asked, err := request()
	if err != nil {
		t.Fatal(err)
	}
	s.api.Response(t, asked, got.code, got.header, got.body)
	if got.code != r.code {
		t.Fatalf("got %d %s, want %d", got.code, got.body, r.code)
	}
	for name, want := range r.AnswerHeaders {
		if err := sameHeader(name, fmt.Sprint(want), got.header.Get(name)); err != nil {
			t.Error(err)
		}
	}
	if err := r.same(got); err != nil {
		t.Errorf("%v\ngot  %s\nwant %s", err, got.body, r.want)
	}
}

// request returns what makes the request, which can be made several times.
func (s *stage) request(t *testing.T, r run, on *replica) func() (*http.Request, error) {
	t.Helper()
	token, ok := s.tokens[r.As]
	if !ok {
		t.Fatalf("nobody is %q", r.As)
	}
	values := []string{}
	if r.First != "" {
		first, err := s.do(http.MethodGet, on.base+r.First, token, nil)
		if err != nil || first.code != http.StatusOK {
			t.Fatalf("first: got %d %s, %v", first.code, first.body, err)
		}
		var body struct {
			Version json.Number
			Cursor  string
		}
		_ = json.Unmarshal(first.body, &body) // documents are no JSON, and need the ETag only
		values = append(values, "{etag}", first.header.Get("ETag"), "{version}", body.Version.String(), "{cursor}", url.QueryEscape(body.Cursor))
	}
	if strings.Contains(r.Path, "{ticket}") {
		got, err := s.do(http.MethodPost, on.base+"/v1/tickets", token, nil)
		var body struct{ Ticket string }
		if err != nil || json.Unmarshal(got.body, &body) != nil || body.Ticket == "" {
			t.Fatalf("ticket: got %d %s, %v", got.code, got.body, err)
		}
		values, token = append(values, "{ticket}", url.QueryEscape(body.Ticket)), ""
	}
	if strings.Contains(r.Path, "{link}") {
		values, token = append(values, "{link}", s.link(t, r.Path, on, token)), ""
	}
	values = append(values, "{key}", s.tokens["key"])
	fill := strings.NewReplacer(values...)
	body, contentType := r.body(t)
	target := on.base + fill.Replace(r.Path)
	r.checkQuery(t, target)
	return func() (*http.Request, error) {
		q, err := http.NewRequestWithContext(s.ctx, r.method, target, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		if token != "" {
			q.Header.Set("Authorization", "Bearer "+token)
		}
		if contentType != "" {
			q.Header.Set("Content-Type", contentType)
		}
		for name, value := range r.Headers {
			if value != "" {
				q.Header.Set(name, fill.Replace(value))
			}
		}
		return q, nil
	}
}

// link is the query of a link to the instance of a path, as whose token it is
// sees it.
func (s *stage) link(t *testing.T, path string, on *replica, token string) string {
	t.Helper()
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	body := fmt.Sprintf(`{"hub":%q,"instanceId":%q}`, parts[len(parts)-3], parts[len(parts)-1])
	got, err := s.do(http.MethodPost, on.base+"/v1/links", token, strings.NewReader(body))
	var answer struct{ URL string }
	if err != nil || got.code != http.StatusCreated || json.Unmarshal(got.body, &answer) != nil {
		t.Fatalf("link: got %d %s, %v", got.code, got.body, err)
	}
	_, query, _ := strings.Cut(answer.URL, "?")
	return query
}

// body is what the request sends, and its media type.
func (r run) body(t *testing.T) (body []byte, contentType string) {
	t.Helper()
	switch {
	case r.BadBody != nil:
		body, contentType = r.BadBody, "application/json"
	case r.Body != "":
		for mediaType, m := range r.RequestBody.Content {
			e, ok := m.Examples[r.Body]
			if !ok {
				continue
			}
			body, contentType = e.Value, mediaType
			var text string
			if json.Unmarshal(e.Value, &text) == nil {
				body = []byte(text)
			}
		}
		if contentType == "" {
			t.Fatalf("there is no example %s of the request's body", r.Body)
		}
	}
	return append(body, bytes.Repeat([]byte(" "), max(0, r.Pad-len(body)))...), contentType
}

// checkQuery complains about parameters that are not documented, of a request
// that is not made to be refused.
func (r run) checkQuery(t *testing.T, target string) {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	for name := range u.Query() {
		if strings.HasPrefix(name, "label.") {
			name = "labels"
		}
		documented := false
		for _, p := range r.Parameters {
			documented = documented || p.In == "query" && p.Name == name
		}
		if !documented && r.code != http.StatusBadRequest {
			t.Errorf("the query parameter %s is not documented", name)
		}
	}
}

// ask makes a request. It reads as much of a stream as the example has, and
// publishes what is to happen meanwhile.
func (s *stage) ask(t *testing.T, request func() (*http.Request, error), r run) answer {
	q, err := request()
	if err != nil {
		t.Fatal(err)
	}
	stream := r.events != nil
	published := make(chan struct{})
	publish := func() {
		defer close(published)
		if r.Meanwhile != nil {
			s.publish(r.Meanwhile)
		}
	}
	if !stream {
		sent := make(chan struct{})
		q = q.WithContext(httptrace.WithClientTrace(q.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(sent) }}))
		go func() {
			select {
			case <-sent:
			case <-s.ctx.Done():
			}
			publish()
		}()
		defer func() { <-published }()
	}
	ctx, cancel := context.WithTimeout(q.Context(), patience)
	defer cancel()
	got, err := s.client.Do(q.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	a := answer{code: got.StatusCode, header: got.Header}
	switch {
	case got.StatusCode == http.StatusSwitchingProtocols:
	case stream && got.StatusCode == http.StatusOK:
		a.body = s.events(t, got.Body, r, publish)
	default:
		if a.body, err = io.ReadAll(got.Body); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// events reads the events that the example has.
func (s *stage) events(t *testing.T, stream io.Reader, r run, publish func()) (text []byte) {
	t.Helper()
	want := len(r.events)
	buf := make([]byte, 4096)
	for told := false; ; {
		n, err := stream.Read(buf)
		text = append(text, buf[:n]...)
		events := len(apitest.Events(text))
		if !told && events >= max(r.After, 1) {
			told = true
			publish()
		}
		if events >= want && bytes.HasPrefix(text, []byte("retry:")) {
			return text
		}
		if err != nil {
			t.Fatalf("%v after %d of %d events:\n%s", err, events, want, text)
		}
	}
}

// together makes several requests at once and returns the answer that is like
// the example. The others may be of those who wait.
func (s *stage) together(t *testing.T, request func() (*http.Request, error), r run) answer {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	answers := make(chan answer, r.Together)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	for range r.Together {
		q, err := request()
		if err != nil {
			t.Fatal(err)
		}
		asking.Go(func() {
			var a answer
			if got, err := s.client.Do(q.WithContext(ctx)); err == nil {
				a.code, a.header = got.StatusCode, got.Header
				if a.code == r.code {
					a.body, _ = io.ReadAll(got.Body) // what was not read is not as wanted
				} else {
					<-ctx.Done()
				}
				got.Body.Close()
			}
			answers <- a
		})
	}
	for range r.Together {
		if a := <-answers; a.code == r.code {
			return a
		}
	}
	t.Fatalf("none of %d requests was answered with %d", r.Together, r.code)
	return answer{}
}

// same compares an answer's body with the example.
func (r run) same(got answer) error {
	switch {
	case r.want == nil:
		return nil // apitest has seen to it that there is none
	case r.events != nil:
		want, have := r.events, apitest.Events(got.body)
		for i := range want {
			if have[i].Name != want[i].Name || (have[i].ID == "") != (want[i].ID == "") {
				return fmt.Errorf("event %d: got %s with id %q, want %s with %q", i, have[i].Name, have[i].ID, want[i].Name, want[i].ID)
			}
			if err := alike(want[i].Data, have[i].Data); err != nil {
				return fmt.Errorf("event %d, %s: %w", i, want[i].Name, err)
			}
		}
		return nil
	case r.text != "":
		if !bytes.Contains(got.body, []byte(r.text)) {
			return fmt.Errorf("not the document %q", r.text)
		}
		return nil
	}
	return alike(r.want, got.body)
}

// sameHeader compares a header with the example; those that cannot be the same
// twice by what can.
func sameHeader(name, want, got string) error {
	switch name {
	case "ETag", "Retry-After", "RateLimit": // their forms are in the document
		if got != "" {
			return nil
		}
	case "Location":
		a, _ := url.Parse(want)
		b, err := url.Parse(got)
		if err == nil && b.Host != "" && a.RequestURI() == b.RequestURI() {
			return nil
		}
	}
	if got != want {
		return fmt.Errorf("header %s: got %q, want %q", name, got, want)
	}
	return nil
}

// varying lists the members that cannot be the same twice.
var varying = []string{"version", "cursor", "ticket", "expires", "connectionId", "token", "url"}

func alike(want, got []byte) error {
	var a, b any
	if err := json.Unmarshal(want, &a); err != nil {
		return fmt.Errorf("the example: %w", err)
	}
	if err := json.Unmarshal(got, &b); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	return same("", a, b)
}

func same(at string, want, got any) error {
	switch want := want.(type) {
	case map[string]any:
		members, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("at %s: got %v, want an object", at, got)
		}
		for name := range members {
			if _, ok := want[name]; !ok {
				return fmt.Errorf("at %s/%s: the example does not have it", at, name)
			}
		}
		for name, value := range want {
			member, ok := members[name]
			switch {
			case !ok:
				return fmt.Errorf("at %s/%s: missing", at, name)
			case slices.Contains(varying, name):
				if reflect.TypeOf(value) != reflect.TypeOf(member) {
					return fmt.Errorf("at %s/%s: got %v, want something like %v", at, name, member, value)
				}
			default:
				if err := same(at+"/"+name, value, member); err != nil {
					return err
				}
			}
		}
		return nil
	case []any:
		elements, ok := got.([]any)
		if !ok || len(elements) != len(want) {
			return fmt.Errorf("at %s: got %v, want %d elements", at, got, len(want))
		}
		for i := range want {
			if err := same(at+"/"+strconv.Itoa(i), want[i], elements[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if !reflect.DeepEqual(want, got) {
		return fmt.Errorf("at %s: got %v, want %v", at, got, want)
	}
	return nil
}
