package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/relay"
	"statusrelay/internal/status"
)

// A fakeBridge fetches what relays want of the hub of these tests from a runtime in memory, and publishes it.
type fakeBridge struct {
	*world
	store *redisstore.Store
	wants chan string

	mu      sync.Mutex
	runtime map[string]string // guarded by mu: updates by instance
	reads   map[string]int    // guarded by mu: how often an instance was asked for
}

// bridge starts one, and returns when it hears what is wanted.
func (w *world) bridge(runtime map[string]string) *fakeBridge {
	w.Helper()
	store, err := redisstore.New(redisstore.Options{Addrs: []string{w.redis.Addr}})
	if err != nil {
		w.Fatal(err)
	}
	b := &fakeBridge{world: w, store: store, wants: make(chan string, 1000), runtime: runtime, reads: map[string]int{}}
	send := w.sender()
	ctx, cancel := context.WithCancel(w.ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = store.FollowInterest(ctx, hub, func(id string) { b.wants <- id }) })
	running.Go(func() {
		for {
			select {
			case id := <-b.wants:
				if update := b.read(id); update != "" {
					send([]byte(update))
				}
			case <-ctx.Done():
				return
			}
		}
	})
	w.Cleanup(func() {
		cancel()
		running.Wait()
		_ = store.Close()
	})
	n := 0
	w.until("the bridge hears", func() bool {
		n++
		if err := store.Announce(w.ctx, []status.Key{key(fmt.Sprint("probe-", n))}, time.Now().Add(time.Second)); err != nil {
			w.Fatal(err)
		}
		return b.heard("probe-")
	})
	return b
}

func (b *fakeBridge) read(id string) (update string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads[id]++
	return b.runtime[id]
}

// heard reports whether an instance was asked for whose id begins like this.
func (b *fakeBridge) heard(prefix string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.reads {
		if strings.HasPrefix(id, prefix) {
			return true
		}
	}
	return false
}

func (b *fakeBridge) wanted(id string) bool {
	ids, err := b.store.Interested(b.ctx, hub)
	return err == nil && slices.Contains(ids, id) // the store may be away
}

// bridgedBy configures a relay with that time for a first use.
func bridgedBy(firstWait, interest time.Duration) func(*relay.Config) {
	return func(c *relay.Config) {
		c.Bridge.Hubs, c.Bridge.FirstWait, c.Bridge.Interest = []string{hub}, firstWait, interest
	}
}

// What only the runtime knows is answered as what the relay has, on every path that answers once.
func TestColdInstanceIsAnsweredAtItsFirstUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	patient, hasty := w.relay(nil, bridgedBy(patience-time.Second, time.Minute)), w.relay(nil, bridgedBy(300*time.Millisecond, time.Minute))
	b := w.bridge(map[string]string{
		"cold": progress("cold", 1, 10), "dropped-in": progress("dropped-in", 1, 20), "b1": progress("b1", 1, 30), "b2": progress("b2", 1, 40),
		"theirs": strings.Replace(progress("theirs", 1, 50), owner, "u-2", 1), "streamed": progress("streamed", 1, 60), "watched": progress("watched", 1, 70),
	})
	got := w.get(patient, w.customer, key("cold"))
	if got.code != http.StatusOK || w.view(got.body).percent() != 10 {
		t.Errorf("GET: got %d %s", got.code, got.body)
	}
	got, err := w.do(http.MethodGet, patient.base+"/runtime/webhooks/durabletask/instances/dropped-in?taskHub="+hub, w.customer, nil)
	if err != nil || got.code != http.StatusAccepted || !strings.Contains(string(got.body), `"percent":20`) {
		t.Errorf("the drop-in URL: got %d %s, %v", got.code, got.body, err)
	}
	got, err = w.do(http.MethodGet, patient.base+"/v1/hubs/"+hub+"/instances?id=b1&id=cold&id=b2", w.customer, nil)
	if err != nil || got.code != http.StatusOK || strings.Contains(string(got.body), `"status":404`) || strings.Count(string(got.body), `"percent"`) != 3 {
		t.Errorf("a batch: got %d %s, %v", got.code, got.body, err)
	}
	if e, ok := w.stream(hasty, w.customer, "/streamed").next(); !ok || !strings.Contains(string(e.data), `"percent":60`) {
		t.Errorf("a stream: got %s", e.data)
	}
	w.watch(hasty, w.customer, key("watched")).sees(key("watched"), 70)

	for _, id := range []string{"theirs", "nobody"} {
		if got := w.get(hasty, w.customer, key(id)); got.code != http.StatusNotFound {
			t.Errorf("%s: got %d %s", id, got.code, got.body)
		}
		w.until("it was fetched", func() bool { return b.heard(id) })
	}
	w.shows(hasty, key("theirs"), 50)
	if found := w.metric(patient, "statusrelay_httpapi_first_reads_total"); found != 4 {
		t.Errorf("counted %v first uses, want 4", found)
	}
}

// An instance is of interest for as long as it is watched on any replica, whatever becomes of Redis, and a while longer.
func TestInterestLastsAsLongAsWatchesDo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const interest = 6 * time.Second
	one, two := w.relay(nil, bridgedBy(0, interest)), w.relay(nil, bridgedBy(0, interest))
	b := w.bridge(nil)
	w.send(progress("watched", 1, 1), progress("read", 1, 1))
	w.shows(one, key("watched"), 1)
	w.shows(one, key("read"), 1)

	socket := w.watch(one, w.customer, key("watched"))
	stream := w.stream(two, w.customer, "/watched")
	w.until("what is watched is wanted", func() bool { return b.wanted("watched") })
	w.until("what was read is wanted", func() bool { return b.wanted("read") })
	w.until("what was read is wanted no more", func() bool { return !b.wanted("read") })
	if !b.wanted("watched") {
		t.Error("what is watched is wanted no more")
	}
	socket.conn.Close()
	w.during(interest, func() {
		if !b.wanted("watched") {
			t.Fatal("what another replica's client watches is wanted no more")
		}
	})
	w.redis.Stop()
	w.redis.Start()
	w.until("what is watched is wanted by an empty Redis", func() bool { return b.wanted("watched") })
	stream.cancel()
	w.until("what nobody watches is wanted no more", func() bool { return !b.wanted("watched") })
}

// Who makes ids up has few of them fetched.
func TestInventedInstancesAreFetchedAtALimitedRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, bridgedBy(0, time.Hour), func(c *relay.Config) { c.Limits.FirstReads = 2 })
	b := w.bridge(nil)
	const asked = 200
	for n := range asked {
		w.get(r, w.customer, key(fmt.Sprint("invented-", n)))
	}
	w.get(r, w.operator, key("another-caller"))
	w.until("another caller's is fetched", func() bool { return b.heard("another-caller") })
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.reads); n > asked/2 {
		t.Errorf("%d were fetched", n)
	}
}

func TestWithoutABridgeNothingIsAnnounced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Bridge.Hubs = []string{"another"} })
	v := w.watch(r, w.customer, key("watched"))
	w.send(progress("watched", 1, 1))
	v.sees(key("watched"), 1)
	w.get(r, w.customer, key("watched"))
	w.get(r, w.customer, key("unknown"))
	if keys := w.redis.Do("KEYS", "statusrelay:interest:*"); keys != "" {
		t.Errorf("there is %q", keys)
	}
}
