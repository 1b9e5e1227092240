package e2e_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/notifier"
	"statusrelay/internal/relay"
	"statusrelay/internal/shell"
)

// neighbour is another address of this machine.
const neighbour = "127.0.0.2"

// handshakeFrom opens a socket from an address, or returns the answer of who refuses.
func (w *world) handshakeFrom(r *replica, token, address string) (*websocket.Conn, *http.Response) {
	w.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{"status.v1.json"}, NetDialContext: from(address)}
	conn, answer, err := dialer.DialContext(w.ctx, "ws"+strings.TrimPrefix(r.base, "http")+"/v1/watch", http.Header{"Authorization": {"Bearer " + token}})
	if err == nil {
		w.Cleanup(func() { _ = conn.Close() })
		return conn, answer
	}
	if answer == nil {
		w.Fatal(err)
	}
	return nil, answer
}

// from dials from an address of this machine.
func from(address string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext
}

// opens fails the test unless a socket is opened.
func (w *world) opens(what string, r *replica, token, address string) *websocket.Conn {
	w.Helper()
	conn, answer := w.handshakeFrom(r, token, address)
	if conn == nil {
		w.Fatalf("%s: got %d", what, answer.StatusCode)
	}
	return conn
}

// refuses fails the test unless a handshake is answered 429, and returns when to come back.
func (w *world) refuses(what string, r *replica, token, address string) time.Duration {
	w.Helper()
	conn, answer := w.handshakeFrom(r, token, address)
	if conn != nil || answer.StatusCode != http.StatusTooManyRequests {
		w.Fatalf("%s: got %d, want 429", what, answer.StatusCode)
	}
	return w.pause(answer.Header)
}

// pause is Retry-After.
func (w *world) pause(h http.Header) time.Duration {
	w.Helper()
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 1 {
		w.Fatalf("Retry-After: %q", h.Get("Retry-After"))
	}
	return time.Duration(seconds) * time.Second
}

// obey waits as long as a client was told to.
func (w *world) obey(d time.Duration) {
	w.Helper()
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
		w.Fatal("the test's deadline")
	}
}

const here = "127.0.0.1"

func TestW9SocketsPerCallerAcrossReplicas(t *testing.T) {
	w := newWorld(t, nil)
	few := func(c *relay.Config) { c.Limits.SocketsPerCaller = 4 }
	replicas := []*replica{w.relay(nil, few), w.relay(nil, few)}

	var mu sync.Mutex
	var open []*websocket.Conn
	var all sync.WaitGroup
	for i := range 12 { // at once, and on both
		all.Go(func() {
			conn, answer := w.handshakeFrom(replicas[i%2], w.customer, here)
			if conn == nil {
				if answer.StatusCode != http.StatusTooManyRequests {
					t.Errorf("got %d, want 429", answer.StatusCode)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			open = append(open, conn)
		})
	}
	all.Wait()
	if len(open) != 4 {
		t.Fatalf("two replicas opened %d sockets, want 4", len(open))
	}
	another := w.token(owner, "customer", 2*time.Hour)
	for _, r := range replicas {
		w.refuses("another token of the same caller", r, another, neighbour)
		w.opens("another caller", r, w.operator, here)
		if got := w.get(r, w.customer, key("none")); got.code != http.StatusNotFound {
			t.Errorf("reading: got %d", got.code)
		}
	}
	for range 3 { // one leaves, one comes, wherever
		_ = open[0].Close()
		open = open[1:]
		w.until("there is room for one", func() bool {
			conn, _ := w.handshakeFrom(replicas[len(open)%2], w.customer, here)
			return conn != nil
		})
	}
	w.refuses("one too many", replicas[0], w.customer, here)
	if n := w.metric(replicas[0], "statusrelay_wsapi_limited_total"); n < 2 {
		t.Errorf("counted %v", n)
	}

	// A replica that stops takes its sockets with it.
	for range 2 {
		w.opens("within the limit", replicas[0], w.operator, here)
	}
	w.refuses("one too many", replicas[1], w.operator, here)
	replicas[0].stop()
	for range 3 {
		w.opens("in the place of one that was closed", replicas[1], w.operator, here)
	}
	w.refuses("one too many", replicas[1], w.operator, here)
}

// ofTenant is a token with a tenant.
func (w *world) ofTenant(subject, tenant string) string {
	w.Helper()
	token, err := w.issuer.Token(subject, audience, map[string]any{"roles": []string{"customer"}, "tid": tenant}, time.Hour)
	if err != nil {
		w.Fatal(err)
	}
	return token
}

// All callers of a tenant share its sockets, wherever they are; another issuer's tenant of that name is another tenant.
func TestW9SocketsPerTenantAcrossReplicas(t *testing.T) {
	w := newWorld(t, nil)
	other := w.provider()
	few := func(c *relay.Config) { c.Limits.SocketsPerTenant = 3 }
	replicas := []*replica{w.relay(nil, few, trusts(other)), w.relay(nil, few, trusts(other))}
	first := w.opens("one", replicas[0], w.ofTenant("u-1", "acme"), here)
	w.opens("two", replicas[1], w.ofTenant("u-2", "acme"), here)
	w.opens("three", replicas[0], w.ofTenant("u-3", "acme"), neighbour)
	for i, r := range replicas {
		w.refuses("a fourth of the tenant", r, w.ofTenant("u-4", "acme"), here)
		w.opens("another tenant", r, w.ofTenant("u-5", "other"), here)
		w.opens("who has none", r, w.customer, here)
		w.opens("another issuer's", r, other.token(map[string]any{"tid": "acme"}), here)
		if n := w.metric(replicas[i], "statusrelay_wsapi_limited_total"); n != 1 {
			t.Errorf("replica %d counted %v refusals, want 1", i, n)
		}
	}
	_ = first.Close()
	w.until("there is room for one", func() bool {
		conn, _ := w.handshakeFrom(replicas[1], w.ofTenant("u-4", "acme"), here)
		return conn != nil
	})
	w.refuses("one too many", replicas[0], w.ofTenant("u-5", "acme"), here)
}

// An address has so many sockets on all replicas, whoever opens them, and also while it is not known who does.
func TestW9SocketsPerAddressAcrossReplicas(t *testing.T) {
	w := newWorld(t, nil)
	few := func(c *relay.Config) { c.Limits.SocketsPerAddress = 3 }
	replicas := []*replica{w.relay(nil, few), w.relay(nil, few)}
	w.opens("one", replicas[0], w.customer, here)
	w.opens("two", replicas[1], w.operator, here)
	late := w.socket(replicas[0], "") // from here, and does not say who it is
	for _, r := range replicas {
		w.refuses("a fourth from the address", r, w.customer, here)
		w.opens("from elsewhere", r, w.customer, neighbour)
	}
	late.send(`{"type":"auth","token":"` + w.customer + `"}`)
	late.wants("welcome") // which is no further one
	_ = late.conn.Close()
	w.until("there is room for one", func() bool {
		conn, _ := w.handshakeFrom(replicas[1], w.customer, here)
		return conn != nil
	})
	w.refuses("one too many", replicas[0], w.customer, here)
}

// All callers of a tenant share its rate; others have theirs.
func TestW9RequestsPerTenant(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.RequestsPerTenant = 1 }) // two at once
	ask := func(token string) answer { return w.get(r, token, key("none")) }
	for i := range 2 {
		if got := ask(w.ofTenant("u-"+strconv.Itoa(i), "acme")); got.code != http.StatusNotFound {
			t.Fatalf("within the burst: got %d", got.code)
		}
	}
	refused := ask(w.ofTenant("u-3", "acme"))
	if refused.code != http.StatusTooManyRequests || !strings.HasPrefix(refused.header.Get("RateLimit"), `"tenant";r=0;t=`) {
		t.Errorf("a third of the tenant: got %d with %q, want 429", refused.code, refused.header.Get("RateLimit"))
	}
	for _, token := range []string{w.ofTenant("u-4", "other"), w.customer} {
		if got := ask(token); got.code != http.StatusNotFound {
			t.Errorf("another: got %d", got.code)
		}
	}
	w.obey(w.pause(refused.header))
	if got := ask(w.ofTenant("u-3", "acme")); got.code != http.StatusNotFound {
		t.Errorf("who has waited: got %d", got.code)
	}
}

func TestW9HandshakeRate(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.HandshakesPerAddress = 0.5 }) // one at once
	w.opens("the first", r, w.customer, neighbour)
	wait := w.refuses("the second", r, w.customer, neighbour)
	w.refuses("whoever it is", r, w.operator, neighbour)
	w.opens("from elsewhere", r, w.operator, here)
	if got := w.get(r, w.customer, key("none")); got.code != http.StatusNotFound {
		t.Errorf("reading: got %d", got.code)
	}
	w.obey(wait)
	w.opens("who has waited", r, w.customer, neighbour)
}

func TestH7CallerWhoFloodsCostsOthersNothing(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.RequestsPerCaller = 20 })
	url := instanceURL(r, key("none"))
	var all sync.WaitGroup
	var mu sync.Mutex
	flood := map[int]int{}
	ctx, stop := context.WithCancel(w.ctx)
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				got, err := w.do(http.MethodGet, url, w.customer, nil)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				flood[got.code]++
				mu.Unlock()
			}
		})
	}
	for range 30 { // within what the operator may
		got, err := w.do(http.MethodGet, url, w.operator, nil)
		if err != nil || got.code != http.StatusNotFound {
			t.Errorf("another caller: got %d, %v", got.code, err)
		}
	}
	w.until("the flood is refused", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return flood[http.StatusTooManyRequests] >= 100
	})
	stop()
	all.Wait()
	if n := float64(flood[http.StatusTooManyRequests]); w.metric(r, "statusrelay_httpapi_limited_total") != n || len(flood) != 2 {
		t.Errorf("counted %v of %v", w.metric(r, "statusrelay_httpapi_limited_total"), flood)
	}
}

func TestH8ObeyingClientIsNotRefusedAgain(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.RequestsPerCaller = 5 })
	refused := 0
	for i := 0; refused < 3; i++ {
		url := instanceURL(r, key("none"))
		want := http.StatusNotFound
		if i%4 == 3 {
			url, want = r.base+"/v1/hubs/"+hub+"/instances", http.StatusOK
		}
		ask := func() answer {
			got, err := w.do(http.MethodGet, url, w.customer, nil)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		got := ask()
		if got.code == http.StatusTooManyRequests {
			refused++
			w.obey(w.pause(got.header))
			got = ask()
		}
		if got.code != want {
			t.Fatalf("got %d %s, want %d", got.code, got.body, want)
		}
	}
}

// A client that goes by RateLimit is never refused: it spreads what is left over the time that it is told. A page may read it, too.
func TestH8ClientThatGoesByItsQuotaIsNotRefused(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.RequestsPerCaller, c.Origins = 10, []string{portal} })
	for i := range 60 {
		got, err := w.do(http.MethodGet, instanceURL(r, key("none")), w.customer, nil, "Origin", portal)
		if err != nil || got.code != http.StatusNotFound || got.header.Get("RateLimit-Policy") != `"caller";q=20;w=2, "address";q=100000;w=2` {
			t.Fatalf("request %d: got %d of %q, %v", i, got.code, got.header.Get("RateLimit-Policy"), err)
		}
		var left, window int
		if _, err := fmt.Sscanf(got.header.Get("RateLimit"), `"caller";r=%d;t=%d`, &left, &window); err != nil {
			t.Fatalf("%q: %v", got.header.Get("RateLimit"), err)
		}
		if exposed := strings.ToLower(got.header.Get("Access-Control-Expose-Headers")); !strings.Contains(exposed, "ratelimit,") || !strings.Contains(exposed, "ratelimit-policy") {
			t.Fatalf("a page may read %s", exposed)
		}
		if left <= 5 { // else at once
			w.obey(time.Duration(window) * time.Second / time.Duration(left+1))
		}
	}
}

// A guess costs on whatever path, and only where it comes from.
func TestGuessingIsSlowedDownWhereItComesFrom(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.FailuresPerAddress = 0.5 }) // one at once
	for _, path := range []string{"socket", "request"} {
		ask := func(token string) *http.Response {
			return w.askFrom(neighbour, http.MethodGet, instanceURL(r, key("none")), token, "")
		}
		if path == "socket" {
			if _, got := w.handshakeFrom(r, "rubbish", neighbour); got.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: got %d", path, got.StatusCode)
			}
		} else if got := ask("rubbish"); got.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: got %d", path, got.StatusCode)
		}
		w.refuses("a guess by "+path, r, w.customer, neighbour)
		got := ask(w.customer)
		if got.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%s: got %d, want 429", path, got.StatusCode)
		}
		w.opens("from elsewhere", r, w.customer, here)
		if got := w.get(r, w.customer, key("none")); got.code != http.StatusNotFound {
			t.Errorf("from elsewhere: got %d", got.code)
		}
		w.obey(w.pause(got.Header))
		if got := ask(w.customer); got.StatusCode != http.StatusNotFound {
			t.Errorf("%s: who has waited: got %d", path, got.StatusCode)
		}
	}
}

// askFrom makes a request from an address of this machine.
func (w *world) askFrom(address, method, url, token, body string) *http.Response {
	w.Helper()
	q, err := http.NewRequestWithContext(w.ctx, method, url, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+token)
	client := http.Client{Transport: &http.Transport{DialContext: from(address), DisableKeepAlives: true}, Timeout: patience}
	got, err := client.Do(q)
	if err != nil {
		w.Fatal(err)
	}
	_ = got.Body.Close()
	return got
}

// The notifier has the same door as the relay: a flood, and guesses, cost where they come from and nobody else, whoever it is; who
// waits as long as told is let in.
func TestNotifierSlowsDownWhereItComesFrom(t *testing.T) {
	for what, c := range map[string]struct {
		limits shell.Door
		token  string // of the first request
		code   int    // of its answer
	}{
		"a flood": {shell.Door{RequestsPerAddress: 0.5}, "", http.StatusAccepted}, // one at once
		"a guess": {shell.Door{FailuresPerAddress: 0.5}, "rubbish", http.StatusUnauthorized},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			n := w.notifier(func(config *notifier.Config) { config.Limits = c.limits })
			ask := func(address, token string) *http.Response {
				return w.askFrom(address, http.MethodPost, n.base+"/v1/updates", token, progress("i", 1, 1))
			}
			if c.token == "" {
				c.token = w.publisher
			}
			if got := ask(neighbour, c.token); got.StatusCode != c.code {
				t.Fatalf("the first: got %d, want %d", got.StatusCode, c.code)
			}
			var wait time.Duration
			for _, token := range []string{w.publisher, w.customer, "rubbish"} {
				got := ask(neighbour, token)
				if got.StatusCode != http.StatusTooManyRequests {
					t.Fatalf("the next: got %d, want 429", got.StatusCode)
				}
				wait = w.pause(got.Header)
			}
			if got := ask(here, w.publisher); got.StatusCode != http.StatusAccepted {
				t.Errorf("from elsewhere: got %d", got.StatusCode)
			}
			w.obey(wait)
			if got := ask(neighbour, w.publisher); got.StatusCode != http.StatusAccepted {
				t.Errorf("who has waited: got %d", got.StatusCode)
			}
			if n := w.metric(n, "statusrelay_ingestapi_limited_total"); n != 3 {
				t.Errorf("counted %v, want 3", n)
			}
		})
	}
}
