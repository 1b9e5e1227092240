package wsapi_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/limit"
	"statusrelay/internal/wsapi"
)

// census counts sockets in this process.
type census struct {
	mu    sync.Mutex
	count map[string]int // by limit and name
	err   error          // of the next Enter
}

func (c *census) Enter(_ context.Context, places ...limit.Place) (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.err; err != nil {
		c.err = nil
		return nil, err
	}
	for _, p := range places {
		if c.count[p.Limit+" "+p.Of] >= p.Most {
			return nil, &limit.Error{Limit: p.Limit, RetryAfter: 3 * time.Second}
		}
	}
	for _, p := range places {
		c.count[p.Limit+" "+p.Of]++
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range places {
			c.count[p.Limit+" "+p.Of]--
		}
	}, nil
}

// of is how many sockets of a caller are counted, once everything has come to rest.
func (c *census) of(subject string) int { return c.under("sockets test\x00" + subject) }

// under is how many are counted under a limit and a name.
func (c *census) under(name string) int {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[name]
}

// at is the header of a handshake from an address.
func at(address string, h http.Header) http.Header {
	h = h.Clone()
	h.Set("Test-Address", address)
	return h
}

// refused fails the test unless a handshake is answered 429 with Retry-After, which it returns.
func (w *world) refused(what string, h http.Header) time.Duration {
	w.Helper()
	_, answer, err := w.handshake(h)
	if err == nil || answer == nil || answer.StatusCode != http.StatusTooManyRequests {
		w.Fatalf("%s: got %v, %v, want 429", what, answer, err)
	}
	if text := body(answer); !strings.Contains(text, "urn:statusrelay:problem:too-many") || answer.Header.Get("Content-Type") != "application/problem+json" {
		w.Errorf("%s: got %s", what, text)
	}
	seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
	if err != nil || seconds < 1 {
		w.Errorf("%s: Retry-After %q", what, answer.Header.Get("Retry-After"))
	}
	return time.Duration(seconds) * time.Second
}

func limited(t testing.TB, metrics *prometheus.Registry, name string) (value float64) {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "statusrelay_wsapi_limited_total" && m.Label[0].GetValue() == name {
				value += m.GetCounter().GetValue()
			}
		}
	}
	return value
}

func TestW9HandshakesFromOneAddressHaveARate(t *testing.T) {
	metrics := prometheus.NewRegistry()
	o := wsapi.Options{HandshakesPerAddress: limit.Rate{PerSecond: 1, Burst: 3}, Handshakes: limit.Rate{PerSecond: 1, Burst: 5}, Metrics: metrics}
	fake(t, o, func(t *testing.T, w *world) {
		for range 3 {
			w.open(at("192.0.2.1:1", bearer("alice"))).wants("welcome")
		}
		var pauses []time.Duration
		for range 20 {
			pauses = append(pauses, w.refused("the fourth", at("192.0.2.1:2", bearer("bob"))))
		}
		scattered := false
		for _, p := range pauses {
			scattered = scattered || p != pauses[0]
		}
		if !scattered {
			t.Errorf("all are to come back at once: %v", pauses)
		}
		w.refused("before authentication", at("192.0.2.1:2", bearer("forged")))
		// Those who were refused have not used up what there is for all.
		w.open(at("192.0.2.2:1", bearer("alice"))).wants("welcome")
		w.open(at("192.0.2.3:1", bearer("alice"))).wants("welcome")
		w.refused("the sixth of all", at("192.0.2.4:1", bearer("alice")))
		time.Sleep(10 * time.Second) // fake time
		w.open(at("192.0.2.1:3", bearer("alice"))).wants("welcome")
		if a, all := limited(t, metrics, "address"), limited(t, metrics, "handshakes"); a != 21 || all != 1 {
			t.Errorf("counted %v and %v, want 21 and 1", a, all)
		}
	})
}

func TestW9SocketsOfACallerAreBounded(t *testing.T) {
	metrics := prometheus.NewRegistry()
	counted := &census{count: map[string]int{}}
	o := wsapi.Options{Sockets: counted, MaxSocketsPerCaller: 2, Metrics: metrics}
	fake(t, o, func(t *testing.T, w *world) {
		first := w.as("alice")
		second := w.open(http.Header{}) // says who it is later
		second.send(`{"type":"auth","token":"alice+operator"}`)
		second.wants("welcome")
		w.refused("a third, of another token", bearer("alice~600"))
		third := w.open(http.Header{})
		third.send(`{"type":"auth","token":"alice","ref":"1"}`)
		third.wants("problem ref=1 429", "close 4429")
		w.as("bob")
		if n := counted.of("alice"); n != 2 {
			t.Errorf("counted %d, want 2", n)
		}
		first.send(`{"type":"auth","token":"alice~600"}`) // a newer token is the same socket's
		first.wants("welcome")
		if n := counted.of("alice"); n != 2 {
			t.Errorf("counted %d, want 2", n)
		}
		second.close()
		if n := counted.of("alice"); n != 1 {
			t.Errorf("one has left: counted %d, want 1", n)
		}
		w.as("alice")
		if n := limited(t, metrics, "sockets"); n != 2 {
			t.Errorf("counted %v refusals, want 2", n)
		}
		w.end()
		if a, b := counted.of("alice"), counted.of("bob"); a != 0 || b != 0 {
			t.Errorf("all have left: counted %d and %d", a, b)
		}
	})
}

// Those of a tenant, and those from an address, share what there is, whoever they are; a socket counts where it was let in, also
// when a newer token names another tenant.
func TestW9SocketsOfATenantAndAnAddressAreBounded(t *testing.T) {
	metrics := prometheus.NewRegistry()
	counted := &census{count: map[string]int{}}
	o := wsapi.Options{Sockets: counted, MaxSocketsPerTenant: 2, MaxSocketsPerAddress: 3, TenantClaim: "sub", Metrics: metrics}
	fake(t, o, func(t *testing.T, w *world) {
		here, there := func(h http.Header) http.Header { return at("192.0.2.1:1", h) }, func(h http.Header) http.Header { return at("192.0.2.2:1", h) }
		first := w.open(here(bearer("alice")))
		first.wants("welcome")
		second := w.open(here(http.Header{})) // says who it is later, and counts for its address until then
		if n := counted.under("address_sockets 192.0.2.1"); n != 2 {
			t.Errorf("counted %d from the address, want 2", n)
		}
		second.send(`{"type":"auth","token":"alice+operator"}`)
		second.wants("welcome")
		w.refused("a third of the tenant", there(bearer("alice")))
		w.open(here(bearer("bob"))).wants("welcome")
		w.refused("a fourth from the address", here(bearer("carol")))
		w.refused("also if it does not say who it is", here(http.Header{}))
		third := w.open(there(http.Header{}))
		third.send(`{"type":"auth","token":"alice","ref":"1"}`)
		third.wants("problem ref=1 429", "close 4429")
		w.open(there(bearer("carol"))).wants("welcome")
		second.close()
		first.close()
		if tenant, address := counted.under("tenant_sockets test\x00alice"), counted.under("address_sockets 192.0.2.1"); tenant != 0 || address != 1 {
			t.Errorf("two have left: counted %d and %d, want 0 and 1", tenant, address)
		}
		w.open(here(bearer("alice"))).wants("welcome")
		if a, b := limited(t, metrics, "tenant_sockets"), limited(t, metrics, "address_sockets"); a != 2 || b != 2 {
			t.Errorf("counted %v and %v refusals, want 2 and 2", a, b)
		}
		w.end()
		for name, n := range counted.count {
			if n != 0 {
				t.Errorf("all have left: counted %d under %q", n, name)
			}
		}
	})
}

// What goes wrong on the way leaves nothing counted, here or there.
func TestRefusedSocketIsNotCounted(t *testing.T) {
	counted := &census{count: map[string]int{}}
	fake(t, wsapi.Options{Sockets: counted, MaxSocketsPerCaller: 2, MaxSockets: 1}, func(t *testing.T, w *world) {
		counted.err = errors.New("secret cause")
		if _, answer, err := w.handshake(bearer("alice")); err == nil || answer.StatusCode != 500 || strings.Contains(body(answer), "secret") {
			t.Errorf("got %v, %v", answer, err)
		}
		counted.err = &limit.Error{Limit: "sockets", RetryAfter: time.Second}
		w.refused("once", bearer("alice"))
		r := httptest.NewRequest(http.MethodGet, "/v1/watch", nil)
		r.Header = bearer("alice")
		for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
			r.Header.Set(name, value)
		}
		recorder := httptest.NewRecorder() // is no connection that could be taken over
		if w.server.ServeHTTP(recorder, r); recorder.Code != 500 {
			t.Errorf("got %d", recorder.Code)
		}
		c := w.as("alice")
		if _, answer, err := w.handshake(bearer("bob")); err == nil || answer.StatusCode != 503 {
			t.Errorf("got %v, %v", answer, err)
		}
		if a, b := counted.of("alice"), counted.of("bob"); a != 1 || b != 0 {
			t.Errorf("counted %d and %d", a, b)
		}
		c.close()
		if n := counted.of("alice"); n != 0 {
			t.Errorf("counted %d", n)
		}
	})
}

func TestGuessingOverWebSocketIsSlowedDown(t *testing.T) {
	failures := limit.NewFailures(limit.Rate{PerSecond: 1, Burst: 4})
	issued := &tickets{used: map[string]bool{}}
	metrics := prometheus.NewRegistry()
	fake(t, wsapi.Options{Failures: failures, Redeem: issued.redeem, Metrics: metrics}, func(t *testing.T, w *world) {
		here := func(h http.Header) http.Header { return at("192.0.2.1:1", h) }
		for range 10 {
			if _, answer, _ := w.handshake(here(bearer("expired"))); answer.StatusCode != 401 {
				t.Fatalf("got %d", answer.StatusCode)
			}
		}
		if _, answer, _ := w.handshake(here(bearer("forged"))); answer.StatusCode != 401 {
			t.Errorf("got %d", answer.StatusCode)
		}
		if _, answer, _ := w.handshake(here(subprotocol("forged"))); answer.StatusCode != 401 {
			t.Errorf("got %d", answer.StatusCode)
		}
		for range 2 {
			c := w.open(here(http.Header{}))
			c.send(`{"type":"auth","token":"forged"}`)
			c.wants("problem 401", "close 4401")
		}
		wait := w.refused("whatever it shows", here(bearer("alice")))
		w.open(at("192.0.2.2:1", bearer("alice"))).wants("welcome")
		time.Sleep(wait) // fake time
		w.open(here(bearer("alice"))).wants("welcome")
		if n := limited(t, metrics, "failures"); n != 1 {
			t.Errorf("counted %v, want 1", n)
		}
	})
}
