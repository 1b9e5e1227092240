package wsapi_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/wsapi"
)

// TestStuckClientDelaysNobody has one client that never reads, with a large status, among a hundred that do.
func TestStuckClientDelaysNobody(t *testing.T) {
	w := start(t, newLoopback(t), wsapi.Options{WriteTimeout: time.Hour})
	stuck, _, err := w.handshake(bearer("bob+operator"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.end()
	defer stuck.Close()
	_ = stuck.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
	if err := stuck.WriteMessage(websocket.TextMessage, []byte(`{"type":"watch","instances":[{"instanceId":"i"}]}`)); err != nil {
		t.Fatal(err)
	}
	good := make([]*client, 100)
	for i := range good {
		good[i] = w.as("alice")
		good[i].watch("i")
		good[i].wants("watching i")
	}
	ballast := strings.Repeat("x", 60<<10)
	const updates = 200 // 12 MiB: more than the kernel keeps for a client that does not read
	for n := range updates {
		w.put(instance("i", "alice", int64(100+n), fmt.Sprintf(`{"percent":%d,"ballast":%q}`, n, ballast)))
		if n%10 == 9 {
			for _, c := range good {
				for want := fmt.Sprintf(`status i %d {"percent":%d}`, 100+n, n); c.next() != want; {
				}
			}
		}
	}
}

// TestStuckClientIsCutOffAndItsMemoryFreed has a hundred clients that never read.
func TestStuckClientIsCutOffAndItsMemoryFreed(t *testing.T) {
	w := start(t, newLoopback(t), wsapi.Options{WriteTimeout: 100 * time.Millisecond, CloseTimeout: 100 * time.Millisecond})
	defer w.end()
	goroutines := runtime.NumGoroutine()
	for i := range 100 {
		conn, _, err := w.handshake(bearer("bob+operator"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.NetConn().(*net.TCPConn).SetReadBuffer(4 << 10)
		if err := conn.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"type":"watch","instances":[{"instanceId":"%d"}]}`, i%10)); err != nil {
			t.Fatal(err)
		}
	}
	ballast := strings.Repeat("x", 60<<10)
	for n := 0; ; n++ {
		w.mu.Lock()
		left := len(w.subscribed)
		w.mu.Unlock()
		if left == 0 && n > 100 {
			break
		}
		for i := range 10 {
			w.put(instance(fmt.Sprint(i), "alice", int64(100+n), fmt.Sprintf(`{"n":%d,"ballast":%q}`, n, ballast)))
		}
		runtime.Gosched()
	}
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 })
}

// waitUntil waits until what must happen has happened, and gives up after a time in which it must have on any machine.
func waitUntil(t *testing.T, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); !happened(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen")
		}
	}
}

// TestStorm has publishers, gaps, joins, leaves, refreshes and policy changes meet over real sockets. Versions that a
// client is sent only grow and end on the newest, and no client is ever sent what belongs to somebody else.
func TestStorm(t *testing.T) {
	w := start(t, newLoopback(t), wsapi.Options{FramesPerSecond: 1_000_000})
	defer w.end()
	const instances, updates, newest = 8, 150, 10_000 // half of the instances are alice's, half are bob's
	owner := func(i int) string { return []string{"alice", "bob"}[i%2] }

	var storm sync.WaitGroup
	stop := make(chan struct{})
	clients := make([]*checker, 20)
	for i := range clients {
		clients[i] = newChecker(w, []string{"alice", "bob", "carol+operator", "dave"}[i%4])
		storm.Go(func() { clients[i].churn(stop, instances) })
	}
	var publishers sync.WaitGroup
	for i := range instances {
		for p := range 2 { // in each other's way
			publishers.Go(func() {
				for n := range updates {
					w.put(percent(fmt.Sprint(i), owner(i), int64(1000+2*n+p), n))
					if n%10 == 0 {
						w.hub.Gap()
					}
					if n%50 == 0 {
						w.policy.Store(development(t))
					}
					runtime.Gosched()
				}
			})
		}
	}
	publishers.Wait()
	close(stop)
	storm.Wait()
	for i := range instances {
		w.put(percent(fmt.Sprint(i), owner(i), newest, 100))
	}
	for _, c := range clients {
		c.watchAll(instances)
		for i := range instances {
			if c.mayRead(owner(i)) {
				waitUntil(t, func() bool { return c.version(fmt.Sprint(i)) >= newest })
			} else if v := c.version(fmt.Sprint(i)); v != 0 {
				t.Errorf("%s has version %d of an instance of %s", c.token, v, owner(i))
			}
		}
		c.close()
	}
}

// checker is a client of the storm that checks whatever it is sent.
type checker struct {
	token    string
	conn     *websocket.Conn
	w        *world
	answered chan struct{} // one per answer
	leaving  atomic.Bool

	mu       sync.Mutex
	versions map[string]int64 // the newest it was ever sent
	last     map[string]int64 // the one it was sent last since it began to watch
}

func newChecker(w *world, token string) *checker {
	conn, _, err := w.handshake(bearer(token))
	if err != nil {
		w.Fatal(err)
	}
	c := &checker{
		token: token, conn: conn, w: w, answered: make(chan struct{}, 1),
		versions: map[string]int64{}, last: map[string]int64{},
	}
	w.clients.Go(c.read)
	<-c.answered // the welcome
	return c
}

func (c *checker) mayRead(owner string) bool {
	return c.token == owner || strings.HasSuffix(c.token, "+operator")
}

func (c *checker) version(id string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.versions[id]
}

func (c *checker) close() {
	c.leaving.Store(true)
	c.conn.Close()
}

func (c *checker) read() {
	defer close(c.answered)
	for {
		_, b, err := c.conn.ReadMessage()
		if err != nil {
			if !c.leaving.Load() {
				c.w.Errorf("%s: %v", c.token, err)
			}
			return
		}
		var f struct {
			Type, InstanceID string
			Version          int64
			Instances        []struct{ InstanceID string }
		}
		if err := json.Unmarshal(b, &f); err != nil {
			c.w.Errorf("%s: %v", b, err)
		}
		for _, other := range []string{"alice", "bob"} {
			if strings.Contains(string(b), "secret") && !strings.HasSuffix(c.token, "+operator") || f.Type == "status" && strings.Contains(string(b), "of "+other) && !c.mayRead(other) {
				c.w.Errorf("%s was sent %s", c.token, b)
			}
		}
		c.mu.Lock()
		switch f.Type {
		case "watching":
			for _, in := range f.Instances {
				delete(c.last, in.InstanceID)
			}
		case "status", "gone":
			if last := c.last[f.InstanceID]; f.Version <= last {
				c.w.Errorf("%s: version %d of %s after %d", c.token, f.Version, f.InstanceID, last)
			}
			c.last[f.InstanceID] = f.Version
			c.versions[f.InstanceID] = max(c.versions[f.InstanceID], f.Version)
		}
		c.mu.Unlock()
		if f.Type != "status" && f.Type != "gone" {
			c.answered <- struct{}{}
		}
	}
}

// send sends a frame and waits for its answer.
func (c *checker) send(frame string) {
	if err := c.conn.WriteMessage(websocket.TextMessage, []byte(frame)); err != nil {
		c.w.Errorf("%s: %v", c.token, err)
	}
	<-c.answered
}

// watch watches with what it has, as clients that reconnect do, or with nothing.
func (c *checker) watch(id string) {
	c.mu.Lock()
	after := c.versions[id]
	if rand.N(4) == 0 {
		after = 0
	}
	c.mu.Unlock()
	c.send(fmt.Sprintf(`{"type":"watch","instances":[{"instanceId":%q,"after":%d}]}`, id, after))
}

func (c *checker) watchAll(instances int) {
	for i := range instances {
		c.watch(fmt.Sprint(i))
	}
}

// churn joins, leaves and refreshes at random.
func (c *checker) churn(stop chan struct{}, instances int) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		id := fmt.Sprint(rand.N(instances))
		switch rand.N(10) {
		case 0, 1, 2:
			c.send(fmt.Sprintf(`{"type":"unwatch","instances":[{"instanceId":%q}]}`, id))
		case 3:
			c.send(fmt.Sprintf(`{"type":"auth","token":%q}`, c.token))
		default:
			c.watch(id)
		}
		runtime.Gosched()
	}
}
