package limit_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/limit"
)

func TestBurstThenRate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[string](limit.Rate{PerSecond: 2, Burst: 3})
	for i := range 3 {
		if wait := b.Take("a", 1, now); wait != 0 {
			t.Errorf("%d at once: wait %s", i+1, wait)
		}
	}
	if wait := b.Take("a", 1, now); wait != 500*time.Millisecond {
		t.Errorf("the fourth: got %s, want 500ms", wait)
	}
	if wait := b.Take("a", 3, now); wait != 1500*time.Millisecond {
		t.Errorf("three more: got %s, want 1.5s", wait)
	}
	if wait := b.Take("b", 3, now); wait != 0 {
		t.Errorf("another: wait %s", wait)
	}
	now = now.Add(1500 * time.Millisecond) // being refused has cost nothing
	if wait := b.Take("a", 3, now); wait != 0 {
		t.Errorf("later: wait %s", wait)
	}
	if wait := b.Take("a", 100, now.Add(time.Hour)); wait != 0 {
		t.Errorf("more than the burst: wait %s", wait)
	}
	if wait := b.Take("a", 1, now.Add(time.Hour)); wait != 500*time.Millisecond {
		t.Errorf("after more than the burst: got %s, want 500ms", wait)
	}
}

func TestH8WhoObeysIsLetIn(t *testing.T) {
	for _, r := range []limit.Rate{limit.PerSecond(0.3), limit.PerSecond(1), limit.PerSecond(7), limit.PerSecond(1e6), {PerSecond: 3, Burst: 50}} {
		now := time.Unix(1_700_000_000, 0)
		b := limit.New[int](r)
		refused := 0
		for i := range 10_000 {
			cost := 1 + i%7
			wait := b.Take(0, cost, now)
			if wait > 0 {
				refused++
				now = now.Add(wait)
				if again := b.Take(0, cost, now); again != 0 {
					t.Fatalf("%+v: refused for %s, and then for %s", r, wait, again)
				}
			}
		}
		if refused == 0 && r.PerSecond < 1e6 {
			t.Errorf("%+v: nobody was refused", r)
		}
	}
}

func TestNoRateIsNoLimit(t *testing.T) {
	var now time.Time
	for _, r := range []limit.Rate{{}, {Burst: 3}, {PerSecond: -1}} {
		b := limit.New[string](r)
		b.Charge("a", now)
		if b != nil || b.Take("a", 1_000_000, now) != 0 || b.Wait("a", now) != 0 {
			t.Errorf("%+v is a limit", r)
		}
	}
}

// What is charged afterwards, by many at once, has to be made up for.
func TestDebtIsPaid(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[string](limit.Rate{PerSecond: 10, Burst: 10})
	if wait := b.Wait("a", now); wait != 0 {
		t.Errorf("unknown: wait %s", wait)
	}
	for range 9 {
		b.Charge("a", now)
	}
	if wait := b.Wait("a", now); wait != 0 {
		t.Errorf("one is left: wait %s", wait)
	}
	for range 21 {
		b.Charge("a", now)
	}
	if wait := b.Wait("a", now); wait != 2100*time.Millisecond {
		t.Errorf("got %s, want 2.1s", wait)
	}
	if wait := b.Wait("a", now.Add(2100*time.Millisecond)); wait != 0 {
		t.Errorf("paid: wait %s", wait)
	}
	if wait := b.Wait("b", now); wait != 0 {
		t.Errorf("another: wait %s", wait)
	}
}

// Those who are here stay remembered, however many come and go.
func TestManyKeysAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[int](limit.Rate{PerSecond: 0.001, Burst: 1})
	if b.Take(-1, 1, now) != 0 {
		t.Fatal("the first was refused")
	}
	again := 0
	for i := range 200_000 {
		if b.Take(i, 1, now) != 0 {
			t.Fatalf("%d was refused", i)
		}
		if i%1000 == 0 && b.Take(-1, 1, now) == 0 {
			again++
		}
	}
	if again > 0 {
		t.Errorf("who is always here was forgotten %d times", again)
	}
	if b.Take(0, 1, now) != 0 {
		t.Error("who has not been here for 200,000 others is remembered: nothing bounds them")
	}
}

func TestBucketsAreExactForManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := limit.New[string](limit.Rate{PerSecond: 1, Burst: 100})
		var let atomic.Int32
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if b.Take("a", 1, time.Now()) == 0 {
					let.Add(1)
				}
			})
		}
		all.Wait()
		if let.Load() != 100 {
			t.Errorf("let in %d, want 100", let.Load())
		}
	})
}

func TestScatteredNeverIsEarlier(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		got := limit.Scattered(10 * time.Second)
		if got < 10*time.Second || got >= 20*time.Second {
			t.Errorf("got %s", got)
		}
		seen[got] = true
	}
	if len(seen) < 50 {
		t.Errorf("only %d different waits", len(seen))
	}
}

func TestAddressIsWhatOneClientHas(t *testing.T) {
	for remote, want := range map[string]netip.Addr{
		"192.0.2.1:1234":            netip.MustParseAddr("192.0.2.1"),
		"192.0.2.1":                 netip.MustParseAddr("192.0.2.1"),
		"[::ffff:192.0.2.1]:1":      netip.MustParseAddr("192.0.2.1"),
		"[2001:db8:1:2:3:4:5:6]:80": netip.MustParseAddr("2001:db8:1:2::"),
		"[fe80::1%eth0]:80":         netip.MustParseAddr("fe80::"),
		"[::1]:80":                  netip.MustParseAddr("::"),
		"pipe":                      {},
		"@":                         {},
		"":                          {},
		"[bad]:x":                   {},
	} {
		if got := limit.Address(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("%q: got %v, want %v", remote, got, want)
		}
	}
}

func TestTakeAllocatesNothing(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[string](limit.Rate{PerSecond: 1, Burst: 1})
	b.Take("a", 1, now)
	if n := testing.AllocsPerRun(100, func() { b.Take("a", 1, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTake(b *testing.B) {
	buckets := limit.New[string](limit.PerSecond(1000))
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		buckets.Take(names[i%len(names)], 1, time.Now())
	}
}
