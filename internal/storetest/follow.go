package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// follower is a running Follower and what it was given.
type follower struct {
	*redisstore.Follower
	t    testing.TB
	gaps atomic.Int64

	mu     sync.Mutex
	offers int                           // guarded by mu
	newest map[status.Key]*status.Record // guarded by mu

	touched map[status.Index][]string // guarded by mu; ids, as often as they were told
	largest int                       // guarded by mu; instances in one Touch
}

// follow runs a Follower that probes often, until the test ends.
func follow(t testing.TB, s *redisstore.Store) *follower {
	t.Helper()
	f := &follower{t: t, newest: make(map[status.Key]*status.Record), touched: make(map[status.Index][]string)}
	f.Follower = s.Follow(redisstore.FollowOptions{
		Offer: func(r *status.Record) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.offers++
			if old := f.newest[r.Key()]; old == nil || old.Version < r.Version {
				f.newest[r.Key()] = r
			}
		},
		Touch: func(i status.Index, keys []status.Key) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.largest = max(f.largest, len(keys))
			for _, k := range keys {
				f.touched[i] = append(f.touched[i], k.InstanceID)
			}
		},
		Gap:           func() { f.gaps.Add(1) },
		ProbeInterval: 20 * time.Millisecond,
		ProbeTimeout:  500 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if f.Ready() {
			t.Error("ready after the end")
		}
	})
	return f
}

func (f *follower) subscribe(keys ...status.Key) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	if err := f.Subscribe(ctx, keys); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follower) subscribeLists(indexes ...status.Index) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	if err := f.SubscribeLists(ctx, indexes); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follower) clearTouched() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.touched)
}

func (f *follower) largestTouch() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.largest
}

// wantTouched waits until an index was touched by all of these instances, and
// wants no others.
func (f *follower) wantTouched(i status.Index, ids ...string) {
	f.t.Helper()
	want := slices.Sorted(slices.Values(ids))
	var got []string
	eventually(f.t, fmt.Sprintf("%+v touched", i), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		got = slices.Compact(slices.Sorted(slices.Values(f.touched[i])))
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		f.t.Errorf("%+v: touched by %q, want %q", i, got, want)
	}
}

// custom is the newest custom status that was offered of an instance.
func (f *follower) custom(k status.Key) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.newest[k]; r != nil {
		return string(r.Progress.CustomStatus)
	}
	return ""
}

// want waits for a custom status to be offered.
func (f *follower) want(k status.Key, custom string) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("%s offered with %s", k, custom), func() bool { return f.custom(k) == custom })
}

func (f *follower) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.offers
}

// restored waits until the subscription stands again after n gaps or more.
func (f *follower) restored(n int64) {
	f.t.Helper()
	eventually(f.t, "gap reported and ready", func() bool { return f.gaps.Load() >= n && f.Ready() })
}

func followerGetsPuts(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	eventually(t, "ready", f.Ready)
	f.subscribe(order)
	f.subscribe(order, order)
	put(t, open(t, h.Addr), progress(order, 1, 1))
	f.want(order, `{"percent":1}`)
	put(t, s, progress(order, 2, 2), lifecycle(order, 2, status.Completed))
	f.want(order, `{"percent":2}`)

	f.mu.Lock()
	got := f.newest[order]
	f.mu.Unlock()
	if stored := latest(t, s, order); got.Version != stored.Version || text(t, got) != text(t, stored) {
		t.Errorf("got  %d %s\nwant %d %s", got.Version, text(t, got), stored.Version, text(t, stored))
	}
	if n := f.count(); n != 2 {
		t.Errorf("got %d offers, want 2", n)
	}
	if n := f.gaps.Load(); n != 0 {
		t.Errorf("got %d gaps without a fault", n)
	}
	// What readers cannot see is not published.
	put(t, s, progress(order, 3, 2))
	put(t, s, progress(order, 4, 4))
	f.want(order, `{"percent":4}`)
	if n := f.count(); n != 3 {
		t.Errorf("got %d offers, want 3", n)
	}
}

func unsubscribedGetsNothing(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	overtaken(t, s)
	other := status.Key{Hub: "orders", InstanceID: "order-2"}
	f.subscribe(order, other)
	f.Unsubscribe([]status.Key{order})
	f.Unsubscribe([]status.Key{order, {Hub: "never", InstanceID: "subscribed"}})
	put(t, s, progress(order, 1, 1), progress(other, 1, 1))
	f.want(other, `{"percent":1}`)
	if got := f.custom(order); got != "" {
		t.Errorf("got %s of what was unsubscribed", got)
	}
	eventually(t, "the channel is left", func() bool { return subscribers(t, h, order) == "0" })
}

// overtaken unsubscribes from an instance while its next message has arrived and
// waits to be received.
func overtaken(t *testing.T, s *redisstore.Store) {
	t.Helper()
	k := status.Key{Hub: "orders", InstanceID: "overtaken"}
	entered, leave := make(chan struct{}), make(chan struct{})
	var offers atomic.Int64
	f := s.Follow(redisstore.FollowOptions{Gap: func() {}, Offer: func(r *status.Record) {
		if r.Key() == k && offers.Add(1) == 1 {
			close(entered)
			<-leave
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = f.Run(ctx) })
	if err := f.Subscribe(ctx, []status.Key{k}); err != nil {
		t.Fatal(err)
	}
	put(t, s, progress(k, 1, 1))
	<-entered
	put(t, s, progress(k, 2, 2))
	f.Unsubscribe([]status.Key{k})
	close(leave)
	if err := f.Subscribe(ctx, []status.Key{order}); err != nil { // confirmed after the second message
		t.Fatal(err)
	}
	if n := offers.Load(); n != 1 {
		t.Errorf("got %d offers, want the one before unsubscribing", n)
	}
	cancel()
	running.Wait()
}

// subscribers is how many connections Redis delivers an instance to.
func subscribers(t testing.TB, h Harness, k status.Key) string {
	t.Helper()
	_, n, _ := strings.Cut(do(t, h.Addr, "PUBSUB", "NUMSUB", redisName(k)), "\n")
	return n
}

func lastWishWins(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	p := StartProxy(t, h.Addr)
	f := follow(t, open(t, p.Addr))
	other := status.Key{Hub: "orders", InstanceID: "order-2"}
	for round := range 30 {
		var racing sync.WaitGroup
		for range 4 {
			racing.Go(func() {
				for range 10 {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					if err := f.Subscribe(ctx, []status.Key{order, other}); errors.Is(err, status.ErrUnavailable) {
						t.Error(err)
					}
					cancel()
					f.Unsubscribe([]status.Key{order, other})
				}
			})
		}
		if round%10 == 9 {
			p.Cut()
		}
		racing.Wait()
		f.subscribe(order)
		put(t, s, progress(order, int64(round), round))
		f.want(order, fmt.Sprintf(`{"percent":%d}`, round))
	}
	eventually(t, "only the wanted channel is held", func() bool {
		return subscribers(t, h, order) == "1" && subscribers(t, h, other) == "0"
	})
}

func thousandsComeBack(t *testing.T, h Harness) {
	const n = 2300 // more than one command takes
	s := open(t, h.Addr)
	p := StartProxy(t, h.Addr)
	f := follow(t, open(t, p.Addr))
	keys := make([]status.Key, n)
	updates := make([]*status.Update, n)
	for i := range keys {
		keys[i] = status.Key{Hub: "orders", InstanceID: fmt.Sprint("order-", i)}
	}
	var group sync.WaitGroup
	for part := range 23 { // many callers at once
		group.Go(func() {
			if err := f.Subscribe(t.Context(), keys[part*100:(part+1)*100]); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for round := range 2 {
		for i, k := range keys {
			updates[i] = progress(k, int64(round), round)
		}
		put(t, s, updates...)
		for _, k := range keys {
			f.want(k, fmt.Sprintf(`{"percent":%d}`, round))
		}
		if round == 0 {
			p.Cut()
			f.restored(1)
		}
	}
}

func cutConnection(t *testing.T, h Harness) {
	p := StartProxy(t, h.Addr)
	f := follow(t, open(t, p.Addr))
	f.subscribe(order)
	for i := range int64(3) {
		p.Cut()
		f.restored(i + 1)
		put(t, open(t, h.Addr), progress(order, i, int(i)))
		f.want(order, fmt.Sprintf(`{"percent":%d}`, i))
	}
	if n := p.Subscribers(); n != 4 {
		t.Errorf("got %d subscribed connections, want 4: one, and one more after each cut", n)
	}
}

func deafSubscription(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	p := StartProxy(t, h.Addr)
	registry := prometheus.NewRegistry()
	f := follow(t, open(t, p.Addr, func(o *redisstore.Options) { o.Metrics = registry }))
	f.subscribe(order)
	eventually(t, "ready", f.Ready)
	if n := p.MuteSubscribers(); n != 1 {
		t.Fatalf("muted %d connections, want 1", n)
	}
	put(t, s, progress(order, 1, 1)) // into the void
	eventually(t, "not ready while deaf, or healed", func() bool { return !f.Ready() || f.gaps.Load() > 0 })
	f.restored(1)
	if got := f.custom(order); got != "" {
		t.Errorf("got %s through a deaf connection", got)
	}
	if r := latest(t, s, order); r == nil {
		t.Error("a read after the gap misses what was put")
	}
	put(t, s, progress(order, 2, 2))
	f.want(order, `{"percent":2}`)
	for _, name := range []string{"deaf", "gaps"} {
		if n := counted(t, registry, "statusrelay_redisstore_follow_"+name+"_total"); n != 1 {
			t.Errorf("counted %v %s, want 1", n, name)
		}
	}
}

// counted is the value of a counter.
func counted(t testing.TB, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("nothing is counted as %s", name)
	return 0
}

func unreadableMessage(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	put(t, s, progress(order, 1, 1))
	f.subscribe(order)
	for _, payload := range []string{"", "\n", "5", "5\n{", "x\n{}", "5\n" + `{"hub":"orders","id":"order-2"}`} {
		f.mu.Lock()
		delete(f.newest, order)
		f.mu.Unlock()
		do(t, h.Addr, "PUBLISH", redisName(order), payload)
		f.want(order, `{"percent":1}`)
	}
	if n := f.gaps.Load(); n != 0 {
		t.Errorf("got %d gaps: one instance's message concerns no other", n)
	}
}

func subscribeWaits(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	idle := s.Follow(redisstore.FollowOptions{Offer: func(*status.Record) {}, Gap: func() {}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := idle.Subscribe(ctx, []status.Key{order}); !errors.Is(err, status.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want unavailable", err)
	}
	if idle.Ready() {
		t.Error("ready without a connection")
	}

	// Unsubscribing ends the wait of who subscribed.
	result := make(chan error, 1)
	go func() { result <- idle.Subscribe(t.Context(), []status.Key{order}) }()
	eventually(t, "the overtaken call returns", func() bool {
		idle.Unsubscribe([]status.Key{order})
		return len(result) == 1
	})
	if err := <-result; err == nil {
		t.Error("got no error although nothing is subscribed")
	}
}

func restartedServer(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	f.subscribe(order)
	put(t, s, progress(order, 1, 1))
	f.want(order, `{"percent":1}`)
	before := latest(t, s, order).Version
	h.Real.Stop()
	unavailable(t, s)
	eventually(t, "not ready", func() bool { return !f.Ready() })
	h.Real.Start()
	f.restored(1)
	put(t, s, progress(order, 2, 2))
	f.want(order, `{"percent":2}`)
	if after := latest(t, s, order).Version; after <= before {
		t.Errorf("version %d after %d", after, before)
	}
}

func killedConnection(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	f.subscribe(order)
	if n := h.Real.Do("CLIENT", "KILL", "TYPE", "pubsub"); n != "1" {
		t.Fatalf("killed %s connections, want 1", n)
	}
	f.restored(1)
	put(t, s, progress(order, 1, 1))
	f.want(order, `{"percent":1}`)
}

func frozenServer(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	f.subscribe(order)
	eventually(t, "ready", f.Ready)
	h.Real.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, errs := s.Put(ctx, []*status.Update{progress(order, 1, 1)}); !errors.Is(errs[0], status.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", errs[0])
	}
	eventually(t, "not ready", func() bool { return !f.Ready() })
	h.Real.Resume()
	eventually(t, "ready again", f.Ready)
	put(t, s, progress(order, 2, 2))
	f.want(order, `{"percent":2}`)
}

func replicaIsUnavailable(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, progress(order, 1, 1))
	h.Real.Do("REPLICAOF", "127.0.0.1", "1") // of nobody: it keeps its data and refuses writes
	unwritable(t, s)
	if r := latest(t, s, order); r == nil {
		t.Error("a replica cannot be read")
	}
	h.Real.Do("REPLICAOF", "NO", "ONE")
	put(t, s, progress(order, 2, 2))
}

func fullServer(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, progress(order, 1, 1))
	h.Real.Do("CONFIG", "SET", "maxmemory", "1")
	unwritable(t, s)
	h.Real.Do("CONFIG", "SET", "maxmemory", "0")
	put(t, s, progress(order, 2, 2))
}

// A password that was changed on the server first must cost no message.
func passwordIsUnavailable(t *testing.T, h Harness) {
	h.Real.Do("CONFIG", "SET", "requirepass", "secret")
	unavailable(t, open(t, h.Addr))
	unavailable(t, open(t, h.Addr, func(o *redisstore.Options) { o.Password = "old" }))
	put(t, open(t, h.Addr, func(o *redisstore.Options) { o.Password = "secret" }), progress(order, 1, 1))
}
