package interest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/interest"
	"statusrelay/internal/status"
)

// A world is an Interest that runs in a test's bubble, with a store and watches in memory.
type world struct {
	*interest.Interest
	registry *prometheus.Registry

	mu      sync.Mutex
	ends    map[status.Key]time.Time // guarded by mu, like the others: what the store knows
	told    map[status.Key]int       // how often it was told
	calls   []int                    // how many instances each call had
	away    error                    // what the store answers
	hangs   bool                     // it does not
	watched map[status.Key]bool
}

func start(t *testing.T, change ...func(*interest.Options)) *world {
	w := &world{
		registry: prometheus.NewRegistry(),
		ends:     map[status.Key]time.Time{}, told: map[status.Key]int{}, watched: map[status.Key]bool{},
	}
	o := interest.Options{Hubs: []string{"h"}, Metrics: w.registry}
	for _, f := range change {
		f(&o)
	}
	w.Interest = interest.New(o)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx, w, w.all); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	time.Sleep(100 * time.Millisecond)
	return w
}

func (w *world) all(yield func(status.Key, bool) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, exists := range w.watched {
		if !yield(k, exists) {
			return
		}
	}
}

func (w *world) Announce(ctx context.Context, keys []status.Key, until time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hangs {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return ctx.Err()
	}
	if w.away != nil {
		return w.away
	}
	w.calls = append(w.calls, len(keys))
	for _, k := range keys {
		w.told[k]++
		if until.After(w.ends[k]) {
			w.ends[k] = until
		}
	}
	return nil
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// wanted reports whether the store takes an instance for wanted now.
func (w *world) wanted(k status.Key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Before(w.ends[k])
}

func (w *world) times(k status.Key) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told[k]
}

func (w *world) counted(t *testing.T, name string) int {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "statusrelay_interest_"+name+"_total" {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	t.Fatalf("there is no metric of %s", name)
	return 0
}

func key(id string) status.Key { return status.Key{Hub: "h", InstanceID: id} }

// after lets time pass in a bubble.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestNewInterestIsAnnouncedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.Want(key("a"), true)
		synctest.Wait()
		if !w.wanted(key("a")) {
			t.Error("the first one waits")
		}
		for n := range 500 {
			w.Want(key(fmt.Sprint(n)), n%2 == 0)
		}
		after(50 * time.Millisecond)
		for n := range 500 {
			if !w.wanted(key(fmt.Sprint(n))) {
				t.Fatalf("%d is not announced after 50 ms", n)
			}
		}
		if !slices.Equal(w.calls, []int{1, 250, 250}) {
			t.Errorf("the calls had %v instances, want what came together in one for those that exist, and one for the others", w.calls)
		}
		if n := w.counted(t, "announced"); n != 501 {
			t.Errorf("counted %d, want 501", n)
		}
	})
}

func TestManyAreAnnouncedInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		for n := range 5000 {
			w.Want(key(fmt.Sprint(n)), true)
		}
		after(time.Second)
		for n := range 5000 {
			if w.times(key(fmt.Sprint(n))) != 1 {
				t.Fatalf("%d is announced %d times, want once", n, w.times(key(fmt.Sprint(n))))
			}
		}
		if most := slices.Max(w.calls); most > 1000 {
			t.Errorf("a call had %d", most)
		}
	})
}

// Whoever polls keeps an instance wanted, at the cost of one announcement in a third of the period, whatever they do.
func TestInstanceIsAnnouncedOncePerThird(t *testing.T) {
	for _, exists := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t)
			for n := range 600 {
				w.Want(key("a"), exists)
				after(time.Second)
				if got, most := w.times(key("a")), n/20+1; got > most || !w.wanted(key("a")) {
					t.Fatalf("after %d s: announced %d times, want at most %d; wanted: %t", n+1, got, most, w.wanted(key("a")))
				}
			}
			after(time.Minute)
			if w.wanted(key("a")) {
				t.Error("still wanted a minute later")
			}
		})
	}
}

func TestWatchedIsWantedUntilItIsNot(t *testing.T) {
	for _, exists := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t)
			w.set(func() { w.watched[key("a")] = exists })
			w.Opened(key("a"))
			for n := range 300 {
				after(2 * time.Second)
				if !w.wanted(key("a")) {
					t.Fatalf("not wanted any more after %d s", 2*n)
				}
			}
			if n := w.times(key("a")); n > 31 {
				t.Errorf("announced %d times in 10 minutes, want one in 20 s", n)
			}
			w.set(func() { clear(w.watched) })
			after(time.Minute)
			if w.wanted(key("a")) {
				t.Error("still wanted a minute after the last watch")
			}
		})
	}
}

// What may be an invention ends sooner than anything that exists, however lately that was announced.
func TestInventionsEndFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.set(func() { w.watched[key("real")] = true })
		for n := range 600 {
			w.Want(key(fmt.Sprint("invented-", n)), false)
			after(time.Second)
			if n < 6 {
				continue // until the first lap
			}
			w.set(func() {
				if exists, invented := w.ends[key("real")], w.ends[key(fmt.Sprint("invented-", n))]; !invented.Before(exists) {
					t.Fatalf("after %d s: what is invented is wanted until %s, what exists until %s", n, invented, exists)
				}
			})
		}
	})
}

func TestInterestWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		w.set(func() { w.away = errors.New("away") })
		w.Want(key("old"), true)
		after(50 * time.Second)
		w.Want(key("a"), true)
		w.Want(key("b"), false)
		after(15 * time.Second)
		if n := w.counted(t, "failures"); n < 5 || n > 40 {
			t.Errorf("%d tries failed, want some, and not a storm of them", n)
		}
		w.set(func() { w.away, w.hangs = nil, true })
		asked := time.Now()
		w.Want(key("c"), true)
		if time.Since(asked) != 0 {
			t.Error("who asks waits for the store")
		}
		after(10 * time.Second)
		w.set(func() { w.hangs = false })
		after(10 * time.Second)
		for _, id := range []string{"a", "b", "c"} {
			if w.times(key(id)) != 1 {
				t.Errorf("%s is announced %d times, want once", id, w.times(key(id)))
			}
		}
		if n := w.times(key("old")); n != 0 {
			t.Errorf("announced %d times what nobody has wanted for longer than it counts", n)
		}
		if n := w.counted(t, "dropped"); n != 1 {
			t.Errorf("counted %d dropped, want 1", n)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, func(o *interest.Options) { o.Most = 100 })
		for n := range 150 {
			w.Want(key(fmt.Sprint("invented-", n)), false)
		}
		for n := range 70 {
			w.Want(key(fmt.Sprint("real-", n)), true)
		}
		after(time.Second)
		if w.times(key("invented-49"))+w.times(key("invented-50"))*10+w.times(key("real-49"))*100+w.times(key("real-50"))*1000 != 101 {
			t.Error("not half of the room is for what is invented, and the rest for what exists")
		}
		if len(w.told) != 100 || w.counted(t, "dropped") != 120 {
			t.Errorf("announced %d, dropped %d, want 100 and 120", len(w.told), w.counted(t, "dropped"))
		}
		after(30 * time.Second)
		w.Want(key("later"), false)
		after(time.Second)
		if w.times(key("later")) != 1 {
			t.Error("no room is made by what nobody wants any more")
		}
	})
}

func TestOnlyBridgedHubsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		other := status.Key{Hub: "other", InstanceID: "a"}
		w.set(func() { w.watched[other] = true })
		w.Want(other, true)
		w.Opened(other)
		after(time.Minute)
		if w.times(other) != 0 || w.Bridged("other") || !w.Bridged("h") {
			t.Error("a hub that is not bridged counts, or one that is does not")
		}
		var none *interest.Interest
		if none.Want(key("a"), true); none.Bridged("h") {
			t.Error("without an Interest a hub is bridged")
		}
	})
}

// Most requests are for what was announced lately.
func BenchmarkWant(b *testing.B) {
	i := interest.New(interest.Options{Hubs: []string{"h"}})
	k := key("a")
	b.ReportAllocs()
	for b.Loop() {
		i.Want(k, true)
	}
}
