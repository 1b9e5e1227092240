package hub_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"statusrelay/internal/hub"
	"statusrelay/internal/status"
)

// redis is a store and its feed in memory. It pushes only what is subscribed, as Redis does, and what is put between a
// subscription and a read is both pushed and read.
type redis struct {
	mu         sync.Mutex
	hub        *hub.Hub
	records    map[status.Key]*status.Record
	subscribed map[status.Key]bool
	calls      []string         // one line per call of the hub
	away       bool             // every call fails
	deaf       bool             // nothing is pushed
	during     func(key string) // called in the middle of a read, without the lock
}

func newRedis() *redis {
	return &redis{records: map[status.Key]*status.Record{}, subscribed: map[status.Key]bool{}}
}

func (r *redis) put(id string, version int64) *status.Record {
	return r.store(&status.Record{Hub: "h", InstanceID: id, Version: version})
}

func (r *redis) store(record *status.Record) *status.Record {
	r.mu.Lock()
	r.records[record.Key()] = record
	push := r.subscribed[record.Key()] && !r.deaf
	r.mu.Unlock()
	if push {
		r.hub.Offer(record)
	}
	return record
}

func (r *redis) expire(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.records, key(id))
}

func (r *redis) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *redis) log(call string, keys []status.Key) error {
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.InstanceID
	}
	slices.Sort(ids)
	r.calls = append(r.calls, call+" "+strings.Join(ids, " "))
	if r.away {
		return fmt.Errorf("redis: %w", status.ErrUnavailable)
	}
	return nil
}

func (r *redis) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (r *redis) Subscribe(_ context.Context, keys []status.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.log("subscribe", keys); err != nil {
		return err
	}
	for _, k := range keys {
		r.subscribed[k] = true
	}
	return nil
}

func (r *redis) Unsubscribe(keys []status.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.log("unsubscribe", keys)
	for _, k := range keys {
		delete(r.subscribed, k)
	}
}

func (r *redis) Latest(_ context.Context, keys []status.Key) ([]*status.Record, error) {
	r.mu.Lock()
	err := r.log("read", keys)
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = r.records[k]
	}
	during := r.during
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if during != nil {
		during(keys[0].InstanceID)
	}
	return records, nil
}

// reader is a transport that takes what it is woken for when it is asked to.
type reader struct {
	hub.Watch
	wakes atomic.Int64
}

func (r *reader) Wake() { r.wakes.Add(1) }

// version takes what is pending: "-" nothing, "124", or "gone 125".
func (r *reader) version() string {
	s := r.Take()
	switch {
	case s == nil:
		return "-"
	case s.Gone():
		return fmt.Sprintf("gone %d", s.Version)
	}
	return fmt.Sprint(s.Version)
}

func key(id string) status.Key { return status.Key{Hub: "h", InstanceID: id} }

// world runs a hub on a fake Redis in a bubble of fake time.
func world(t *testing.T, o hub.Options, f func(h *hub.Hub, r *redis)) {
	synctest.Test(t, func(t *testing.T) {
		h, r := hub.New(o), newRedis()
		r.hub = h
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx, r, r) }()
		f(h, r)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func open(h *hub.Hub, id string) *reader {
	r := new(reader)
	h.Watch(&r.Watch, key(id), r)
	return r
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprintf("%q", got), fmt.Sprintf("%q", want); g != w {
		t.Errorf("%s: got %s, want %s", what, g, w)
	}
}

func TestLateWatcherGetsLatest(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		r.put("i", 7)
		first := open(h, "i")
		synctest.Wait()
		want(t, "first", first.version(), "7")
		second := open(h, "i")
		synctest.Wait()
		want(t, "second", second.version(), "7")
		want(t, "first is not told again", first.version(), "-")
		want(t, "calls", r.took(), []string{"subscribe i", "read i", "read i"})
	})
}

func TestSubscribesBeforeReading(t *testing.T) {
	// What is put while the read is under way is not in its answer: only a subscription that is confirmed by then
	// delivers it.
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		r.put("i", 1)
		r.set(func() {
			r.during = func(string) {
				r.set(func() { r.during = nil })
				r.put("i", 2)
			}
		})
		w := open(h, "i")
		synctest.Wait()
		want(t, "version", w.version(), "2")
		want(t, "calls", r.took(), []string{"subscribe i", "read i"})
	})
}

func TestWatchOfNothingIsToldThatThereIsNothingOnce(t *testing.T) {
	world(t, hub.Options{Refresh: time.Minute}, func(h *hub.Hub, r *redis) {
		w := open(h, "i")
		synctest.Wait()
		want(t, "first", w.version(), "gone 1")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		want(t, "after some refreshes", w.version(), "-")
		r.put("i", 1_000_000)
		want(t, "when it exists", w.version(), "1000000")
	})
}

func TestVersionsOnlyGrow(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		for _, v := range []int64{5, 3} {
			r.put("i", v)
		}
		want(t, "newest pending", w.version(), "5")
		r.put("i", 5)
		r.put("i", 4)
		want(t, "nothing new", w.version(), "-")
		want(t, "wakes", w.wakes.Load(), int64(2))
	})
}

func TestSlowReaderFindsOnlyTheNewest(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	world(t, hub.Options{Metrics: registry}, func(h *hub.Hub, r *redis) {
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		for v := range int64(100) {
			r.put("i", 10+v)
		}
		want(t, "wakes", w.wakes.Load(), int64(2))
		want(t, "version", w.version(), "109")
		want(t, "then", w.version(), "-")
		metrics := `
			# HELP statusrelay_hub_conflated_total Snapshots that a newer one replaced before their reader took them.
			# TYPE statusrelay_hub_conflated_total counter
			statusrelay_hub_conflated_total 99
			# HELP statusrelay_hub_watches Open watches of all transports.
			# TYPE statusrelay_hub_watches gauge
			statusrelay_hub_watches 1
		`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(metrics),
			"statusrelay_hub_conflated_total", "statusrelay_hub_watches"); err != nil {
			t.Error(err)
		}
	})
}

func TestExpiredRecordIsGone(t *testing.T) {
	world(t, hub.Options{Refresh: time.Minute}, func(h *hub.Hub, r *redis) {
		r.put("i", 124)
		w := open(h, "i")
		synctest.Wait()
		want(t, "shown", w.version(), "124")
		r.expire("i")
		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, "within one refresh", w.version(), "gone 125")
		h.Offer(&status.Record{Hub: "h", InstanceID: "i", Version: 124})
		want(t, "a late copy of what expired", w.version(), "-")
	})
}

func TestTombstoneIsGone(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		r.put("i", 124)
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		r.store(&status.Record{Hub: "h", InstanceID: "i", Version: 200, Purged: true})
		want(t, "purged", w.version(), "gone 200")
	})
}

func TestReadThatWasOvertakenByAPushTakesNothingBack(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		r.set(func() {
			r.during = func(string) { // the read has found nothing, and now the instance is created
				r.set(func() { r.during = nil })
				r.put("i", 7)
			}
		})
		w := open(h, "i")
		synctest.Wait()
		want(t, "version", w.version(), "7")
	})
}

func TestGapReadsEverythingAgainWithinBoundedTime(t *testing.T) {
	const instances = 2000
	registry := prometheus.NewPedanticRegistry()
	world(t, hub.Options{Refresh: time.Hour, Batch: 500, Metrics: registry}, func(h *hub.Hub, r *redis) {
		watches := make([]*reader, instances)
		for i := range watches {
			r.put(fmt.Sprint(i), 1)
			watches[i] = open(h, fmt.Sprint(i))
		}
		synctest.Wait()
		r.set(func() { r.deaf = true })
		for i := range watches {
			r.put(fmt.Sprint(i), 2)
		}
		r.took()
		h.Gap()
		synctest.Wait() // no time passes
		for i, w := range watches {
			if got := w.version(); got != "2" {
				t.Fatalf("instance %d: got %s, want 2", i, got)
			}
		}
		if got := len(r.took()); got > instances/500+1 {
			t.Errorf("%d calls for one gap", got)
		}
	})
}

func TestGapDuringTheAnswerToAGapIsAnsweredToo(t *testing.T) {
	world(t, hub.Options{Refresh: time.Hour}, func(h *hub.Hub, r *redis) {
		r.put("i", 1)
		w := open(h, "i")
		synctest.Wait()
		r.set(func() {
			r.deaf = true
			r.during = func(string) { // read already, and then a change and five gaps
				r.set(func() { r.during = nil })
				r.put("i", 2)
				for range 5 {
					h.Gap()
				}
			}
		})
		r.took()
		h.Gap()
		synctest.Wait()
		want(t, "version", w.version(), "2")
		want(t, "calls", r.took(), []string{"read i", "read i"})
	})
}

func TestRefreshBoundsALostPush(t *testing.T) {
	world(t, hub.Options{Refresh: time.Minute}, func(h *hub.Hub, r *redis) {
		r.put("i", 1)
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		r.set(func() { r.deaf = true })
		r.put("i", 2)
		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, "version", w.version(), "2")
	})
}

func TestOutageIsSurvivedAndEndsOnTheNewest(t *testing.T) {
	world(t, hub.Options{Refresh: time.Hour}, func(h *hub.Hub, r *redis) {
		old := open(h, "old")
		synctest.Wait()
		old.Take()
		r.set(func() { r.away = true })
		fresh := open(h, "fresh")
		h.Gap()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		want(t, "meanwhile", fresh.version(), "-")
		if n := len(r.took()); n > 10*60*4/5/5*4 {
			t.Errorf("%d calls in ten minutes", n)
		}
		r.set(func() {
			r.away = false
			r.records[key("fresh")] = &status.Record{Hub: "h", InstanceID: "fresh", Version: 9}
			r.records[key("old")] = &status.Record{Hub: "h", InstanceID: "old", Version: 8}
		})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want(t, "fresh", fresh.version(), "9")
		want(t, "old", old.version(), "8")
	})
}

func TestLastWatcherLeavesAndTheNextComes(t *testing.T) {
	world(t, hub.Options{Refresh: time.Minute}, func(h *hub.Hub, r *redis) {
		a, b := open(h, "i"), open(h, "i")
		synctest.Wait()
		want(t, "both", r.took(), []string{"subscribe i", "read i"})
		a.Close()
		synctest.Wait()
		want(t, "one left", r.took(), []string(nil))
		b.Close()
		synctest.Wait()
		want(t, "none left", r.took(), []string{"unsubscribe i"})
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		want(t, "nothing is read for nobody", r.took(), []string(nil))
		r.put("i", 3)
		c := open(h, "i")
		synctest.Wait()
		want(t, "next", r.took(), []string{"subscribe i", "read i"})
		want(t, "version", c.version(), "3")
		c.Close()
		d := open(h, "i") // before anybody noticed
		synctest.Wait()
		r.put("i", 4)
		want(t, "version", d.version(), "4")
	})
}

func TestClosedWatchIsNotWoken(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		ws := []*reader{open(h, "i"), open(h, "i"), open(h, "i")}
		synctest.Wait()
		for i, w := range ws {
			w.Close()
			before := w.wakes.Load()
			r.put("i", int64(10+i))
			want(t, "wakes", w.wakes.Load(), before)
			for _, other := range ws[i+1:] {
				want(t, "another watch", other.version(), fmt.Sprint(10+i))
			}
		}
	})
}

func TestAgainGivesTheSameVersionOnceMore(t *testing.T) {
	world(t, hub.Options{Refresh: time.Hour}, func(h *hub.Hub, r *redis) {
		r.put("i", 7)
		w, other := open(h, "i"), open(h, "i")
		synctest.Wait()
		w.Take()
		other.Take()
		w.Again()
		synctest.Wait()
		want(t, "again", w.version(), "7")
		want(t, "only where it was asked for", other.version(), "-")
	})
}

func TestMemoIsMadeOncePerKey(t *testing.T) {
	s := &hub.Snapshot{Version: 1}
	keys := []any{new(int), new(int), "text"}
	var made atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for i, k := range keys {
				if v := s.Make(k, func() any { made.Add(1); return i }); v != i {
					t.Errorf("got %v, want %d", v, i)
				}
			}
		})
	}
	wg.Wait()
	want(t, "made", made.Load(), int64(len(keys)))
	if v, ok := s.Load(keys[1]); v != 1 || !ok {
		t.Errorf("Load: got %v, %v", v, ok)
	}
	if _, ok := s.Load(new(int)); ok {
		t.Error("Load finds what nobody made")
	}
	allocs := testing.AllocsPerRun(100, func() { s.Load(keys[1]) })
	want(t, "allocations of Load", allocs, 0.0)
}

func TestOfferAllocatesNothingPerWatcher(t *testing.T) {
	allocs := func(watchers int) float64 {
		h := hub.New(hub.Options{})
		ws := make([]*reader, watchers)
		for i := range ws {
			ws[i] = open(h, "i")
		}
		version := int64(0)
		return testing.AllocsPerRun(10, func() {
			version++
			r := status.Record{Hub: "h", InstanceID: "i", Version: version}
			h.Offer(&r)
			for _, w := range ws {
				w.Take()
			}
		})
	}
	want(t, "a thousand watchers against one", allocs(1000), allocs(1))
}

// TestStormEndsOnTheNewest has offers, gaps, joins and leaves of a few instances meet at random, with real concurrency,
// and takes everywhere.
func TestStormEndsOnTheNewest(t *testing.T) {
	h, r := hub.New(hub.Options{Refresh: 50 * time.Millisecond, Batch: 3}), newRedis()
	r.hub = h
	ctx, cancel := context.WithCancel(t.Context())
	var run, storm sync.WaitGroup
	run.Go(func() { _ = h.Run(ctx, r, r) })

	const instances, newest = 5, 400
	var staying [instances][]*eager
	for i := range instances {
		for range 4 {
			staying[i] = append(staying[i], openEager(t, h, fmt.Sprint(i)))
		}
	}
	for i := range instances {
		id := fmt.Sprint(i)
		for start := range int64(2) { // two publishers, each in order, whose pushes overtake each other
			storm.Go(func() {
				for v := 1 + start; v <= newest; v += 2 {
					record := &status.Record{Hub: "h", InstanceID: id, Version: v}
					r.set(func() {
						if old := r.records[key(id)]; old == nil || old.Version < v {
							r.records[key(id)] = record
						}
					})
					if rand.N(20) > 0 { // else the push is lost
						h.Offer(record)
					}
				}
			})
		}
		storm.Go(func() {
			for range 100 {
				w := openEager(t, h, id)
				if rand.N(3) == 0 {
					h.Gap()
				}
				w.close()
			}
		})
	}
	storm.Wait()
	h.Gap()
	for i := range staying {
		for _, w := range staying[i] {
			w.waitFor(newest)
			w.close()
		}
	}
	cancel()
	run.Wait()
}

// eager is a transport with a goroutine of its own that takes as fast as it can, and fails the test when versions do
// not grow.
type eager struct {
	hub.Watch
	t    *testing.T
	wake chan struct{}
	stop chan struct{}
	done sync.WaitGroup
	last atomic.Int64
	grew chan struct{}
}

func (e *eager) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func openEager(t *testing.T, h *hub.Hub, id string) *eager {
	e := &eager{t: t, wake: make(chan struct{}, 1), stop: make(chan struct{}), grew: make(chan struct{}, 1)}
	e.done.Go(func() {
		for {
			select {
			case <-e.wake:
			case <-e.stop:
				return
			}
			s := e.Take()
			if s == nil {
				continue
			}
			if last := e.last.Swap(s.Version); s.Version <= last {
				e.t.Errorf("version %d after %d", s.Version, last)
			}
			select {
			case e.grew <- struct{}{}:
			default:
			}
		}
	})
	h.Watch(&e.Watch, key(id), e)
	return e
}

func (e *eager) waitFor(version int64) {
	for e.last.Load() < version {
		<-e.grew
	}
}

func (e *eager) close() {
	e.Close()
	close(e.stop)
	e.done.Wait()
}

func BenchmarkOffer1000(b *testing.B) {
	h := hub.New(hub.Options{})
	ws := make([]*reader, 1000)
	for i := range ws {
		ws[i] = open(h, "i")
	}
	b.ReportAllocs()
	version := int64(0)
	for b.Loop() {
		version++
		h.Offer(&status.Record{Hub: "h", InstanceID: "i", Version: version})
		for _, w := range ws {
			w.Take()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ws)), "ns/watcher")
}
