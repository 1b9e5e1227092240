package e2e_test

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/relay"
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

// A guess costs on whatever path, and only where it comes from.
func TestGuessingIsSlowedDownWhereItComesFrom(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Limits.FailuresPerAddress = 0.5 }) // one at once
	for _, path := range []string{"socket", "request"} {
		client := http.Client{Transport: &http.Transport{DialContext: from(neighbour), DisableKeepAlives: true}, Timeout: patience}
		ask := func(token string) *http.Response {
			q, err := http.NewRequestWithContext(w.ctx, http.MethodGet, instanceURL(r, key("none")), nil)
			if err != nil {
				t.Fatal(err)
			}
			q.Header.Set("Authorization", "Bearer "+token)
			got, err := client.Do(q)
			if err != nil {
				t.Fatal(err)
			}
			_ = got.Body.Close()
			return got
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
