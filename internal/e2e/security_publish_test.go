package e2e_test

import (
	"net/http"
	"strings"
	"testing"
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
