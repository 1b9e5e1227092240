package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"statusrelay/internal/auth"
	"statusrelay/internal/notifier"
)

// What a publisher's headers say is in each of the messages that a request makes. One that is no trace context is in none of them: a
// request of a thousand updates would become thirty megabytes.
func TestB3HeadersDoNotSwellMessages(t *testing.T) {
	t.Parallel()
	const most = 2 << 10 // bytes of a message about updates as small as these
	w := newKitWorld(t)
	n := w.notifier()
	for path, body := range map[string]string{
		"/v1/updates":   "[" + progress("a", 1, 40) + "," + progress("b", 1, 40) + "]",
		"/v1/eventgrid": "[" + lifecycleEvent("a", 1, "Running") + "," + lifecycleEvent("b", 1, "Running") + "]",
	} {
		for _, trace := range []string{strings.Repeat("x", 30<<10), strings.Repeat("0", 55), "00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01"} {
			got, err := w.do(http.MethodPost, n.base+path, w.publisher, strings.NewReader(body), "Traceparent", trace)
			if err != nil {
				t.Fatal(err)
			}
			if got.code/100 != 2 {
				t.Fatalf("%s: got %d %s", path, got.code, got.body)
			}
			sent := w.copies()
			if len(sent) != 2 {
				t.Errorf("%s: %d messages, want 2", path, len(sent))
			}
			for _, m := range sent {
				if said := m.ApplicationProperties["traceparent"]; said != nil || len(m.Body) > most {
					t.Errorf("%s: a message of %d bytes with the trace context %.60q", path, len(m.Body), said)
				}
			}
		}
	}
}

// Event Grid's handshakes say yes in the name of who shows the credential: to have events delivered here from wherever they say, and to
// give back what they sent. They say it to those who may publish, and nobody else; and call nobody back.
func TestB3HandshakesAreForPublishersOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	called := make(chan string, 10)
	callback := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { called <- r.URL.String() }))
	defer callback.Close()
	roles := map[string]any{"roles": []any{"publisher"}}
	reads, readsEntry := apiKey(t, auth.APIKey{ID: "reads", Rights: []auth.Right{auth.Read}, Claims: roles})
	nobody, nobodyEntry := apiKey(t, auth.APIKey{ID: "nobody", Rights: []auth.Right{auth.Publish}})
	writes, writesEntry := apiKey(t, auth.APIKey{ID: "writes", Rights: []auth.Right{auth.Publish}, Hubs: []string{hub}, Claims: roles})
	path := file(t, "keys.yaml", "keys:\n"+readsEntry+nobodyEntry+writesEntry)
	n := w.notifier(func(c *notifier.Config) { c.Auth.APIKeys = path })
	const code = "c0d3"
	validation := `[{"id":"1","eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"` + code + `","validationUrl":"` + callback.URL + `"}}]`
	for _, c := range []struct {
		who, credential string
		want            int
	}{
		{"a publisher", w.publisher, http.StatusOK},
		{"a key that may publish", writes, http.StatusOK},
		{"a customer", w.customer, http.StatusForbidden},
		{"an operator", w.operator, http.StatusForbidden},
		{"a key for reading", reads, http.StatusForbidden},
		{"a key of whom the policy knows nothing", nobody, http.StatusForbidden},
		{"nobody", "", http.StatusUnauthorized},
	} {
		for method, body := range map[string]string{http.MethodOptions: "", http.MethodPost: validation} {
			got, err := w.do(method, n.base+"/v1/eventgrid", c.credential, strings.NewReader(body), "Aeg-Event-Type", "SubscriptionValidation",
				"WebHook-Request-Origin", "evil.example", "WebHook-Request-Callback", callback.URL)
			if err != nil {
				t.Fatal(err)
			}
			permitted := got.header.Get("WebHook-Allowed-Origin") != "" || strings.Contains(string(got.body), code)
			if got.code != c.want || permitted != (c.want == http.StatusOK) {
				t.Errorf("%s: %s was answered with %d %v %s, want %d", c.who, method, got.code, got.header, got.body, c.want)
			}
		}
	}
	n.stop() // nothing is under way any more
	select {
	case url := <-called:
		t.Errorf("called back: %s", url)
	default:
	}
}
