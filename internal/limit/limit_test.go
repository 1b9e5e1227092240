package limit_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/limit"
)

// take is how long who takes has to wait.
func take[K comparable](b *limit.Buckets[K], key K, n int, now time.Time) time.Duration {
	_, err := b.Take(key, n, now)
	return waitOf(err)
}

// check is how long who would take one has to wait.
func check[K comparable](b *limit.Buckets[K], key K, now time.Time) time.Duration {
	_, err := b.Check(key, 1, now)
	return waitOf(err)
}

func waitOf(err error) time.Duration {
	if reached := (*limit.Error)(nil); errors.As(err, &reached) {
		return reached.RetryAfter
	}
	return 0
}

func TestBurstThenRate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[string]("x", limit.Rate{PerSecond: 2, Burst: 3})
	for i := range 3 {
		if wait := take(b, "a", 1, now); wait != 0 {
			t.Errorf("%d at once: wait %s", i+1, wait)
		}
	}
	if wait := take(b, "a", 1, now); wait != 500*time.Millisecond {
		t.Errorf("the fourth: got %s, want 500ms", wait)
	}
	if wait := take(b, "a", 3, now); wait != 1500*time.Millisecond {
		t.Errorf("three more: got %s, want 1.5s", wait)
	}
	if wait := take(b, "b", 3, now); wait != 0 {
		t.Errorf("another: wait %s", wait)
	}
	now = now.Add(1500 * time.Millisecond) // being refused has cost nothing
	if wait := take(b, "a", 3, now); wait != 0 {
		t.Errorf("later: wait %s", wait)
	}
	if wait := take(b, "a", 100, now.Add(time.Hour)); wait != 0 {
		t.Errorf("more than the burst: wait %s", wait)
	}
	if wait := take(b, "a", 1, now.Add(time.Hour)); wait != 500*time.Millisecond {
		t.Errorf("after more than the burst: got %s, want 500ms", wait)
	}
}

func TestH8WhoObeysIsLetIn(t *testing.T) {
	for _, r := range []limit.Rate{limit.PerSecond(0.3), limit.PerSecond(1), limit.PerSecond(7), limit.PerSecond(1e6), {PerSecond: 3, Burst: 50}} {
		now := time.Unix(1_700_000_000, 0)
		b := limit.New[int]("x", r)
		refused := 0
		for i := range 10_000 {
			cost := 1 + i%7
			wait := take(b, 0, cost, now)
			if wait > 0 {
				refused++
				now = now.Add(wait)
				if again := take(b, 0, cost, now); again != 0 {
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
		b := limit.New[string]("x", r)
		b.Charge("a", now)
		if b != nil || take(b, "a", 1_000_000, now) != 0 || check(b, "a", now) != 0 {
			t.Errorf("%+v is a limit", r)
		}
	}
}

// What is charged afterwards, by many at once, has to be made up for.
func TestDebtIsPaid(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[string]("x", limit.Rate{PerSecond: 10, Burst: 10})
	if wait := check(b, "a", now); wait != 0 {
		t.Errorf("unknown: wait %s", wait)
	}
	for range 9 {
		b.Charge("a", now)
	}
	if wait := check(b, "a", now); wait != 0 {
		t.Errorf("one is left: wait %s", wait)
	}
	for range 21 {
		b.Charge("a", now)
	}
	if wait := check(b, "a", now); wait != 2100*time.Millisecond {
		t.Errorf("got %s, want 2.1s", wait)
	}
	if wait := check(b, "a", now.Add(2100*time.Millisecond)); wait != 0 {
		t.Errorf("paid: wait %s", wait)
	}
	if wait := check(b, "b", now); wait != 0 {
		t.Errorf("another: wait %s", wait)
	}
}

// Those who are here stay remembered, however many come and go.
func TestManyKeysAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.New[int]("x", limit.Rate{PerSecond: 0.001, Burst: 1})
	if take(b, -1, 1, now) != 0 {
		t.Fatal("the first was refused")
	}
	again := 0
	for i := range 200_000 {
		if take(b, i, 1, now) != 0 {
			t.Fatalf("%d was refused", i)
		}
		if i%1000 == 0 && take(b, -1, 1, now) == 0 {
			again++
		}
	}
	if again > 0 {
		t.Errorf("who is always here was forgotten %d times", again)
	}
	if take(b, 0, 1, now) != 0 {
		t.Error("who has not been here for 200,000 others is remembered: nothing bounds them")
	}
}

func TestBucketsAreExactForManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := limit.New[string]("x", limit.Rate{PerSecond: 1, Burst: 100})
		var let atomic.Int32
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if take(b, "a", 1, time.Now()) == 0 {
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
	b := limit.New[string]("x", limit.Rate{PerSecond: 1, Burst: 1000})
	take(b, "a", 1, now)
	if n := testing.AllocsPerRun(100, func() { _, _ = b.Take("a", 1, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTake(b *testing.B) {
	buckets := limit.New[string]("x", limit.PerSecond(1000))
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, _ = buckets.Take(names[i%len(names)], 1, time.Now())
	}
}

// Whoever is refused together with others is told to come back at a time of their own, never too early.
func TestSharedBucketsScatterThoseWhomTheyRefuse(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b := limit.NewShared[string]("x", limit.Rate{PerSecond: 0.1, Burst: 1})
	take(b, "a", 1, now)
	seen := map[time.Duration]bool{}
	for range 50 {
		for _, wait := range []time.Duration{take(b, "a", 1, now), check(b, "a", now)} {
			if wait < 10*time.Second || wait >= 20*time.Second {
				t.Errorf("got %s, want 10 to 20 s", wait)
			}
			seen[wait] = true
		}
	}
	if len(seen) < 50 {
		t.Errorf("only %d different waits", len(seen))
	}
}

// Failures are of all doors together, and shut them before anything is charged to the address.
func TestDoorIsShutByFailures(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	failures := limit.NewFailures(limit.Rate{PerSecond: 1, Burst: 2})
	one, other := limit.NewDoor(limit.Rate{PerSecond: 1, Burst: 3}, failures), limit.NewDoor(limit.Rate{}, failures)
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	admit := func(d *limit.Door, from netip.Addr) string {
		_, err := d.Admit(from, now)
		if reached := (*limit.Error)(nil); errors.As(err, &reached) {
			return reached.Limit
		}
		return ""
	}
	for range 2 {
		if got := admit(one, here); got != "" {
			t.Errorf("refused by %s", got)
		}
		one.Failed(here, now)
	}
	for range 5 {
		if a, b := admit(one, here), admit(other, here); a != limit.OfFailures || b != limit.OfFailures {
			t.Errorf("after too many failures: refused by %q and %q", a, b)
		}
	}
	if got := admit(one, there); got != "" {
		t.Errorf("another address is refused by %s", got)
	}
	now = now.Add(time.Second)
	if got := admit(one, here); got != "" {
		t.Errorf("later: refused by %s", got)
	}
	for range 3 {
		admit(one, here)
	}
	if got := admit(one, here); got != limit.OfAddress {
		t.Errorf("beyond its rate: refused by %q", got)
	}
}

// The fields have the form of draft-ietf-httpapi-ratelimit-headers-11, and whoever spreads what is left over the window is never refused.
func TestH8QuotasAreTold(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	callers, tenants := limit.New[string]("caller", limit.Rate{PerSecond: 2, Burst: 10}), limit.NewShared[string]("tenant", limit.PerSecond(1e12))
	slow, none := limit.New[string]("slow", limit.Rate{PerSecond: 0.3, Burst: 1}), limit.New[string]("none", limit.Rate{})
	told := limit.NewPolicies(none.Policy(), callers.Policy(), tenants.Policy(), slow.Policy())
	fields := func(q limit.Quota) string {
		h := http.Header{}
		told.Tell(h, q)
		return h.Get("RateLimit")
	}
	h := http.Header{}
	quota, err := callers.Take("a", 3, now)
	if told.Tell(h, quota); err != nil || h.Get("RateLimit-Policy") != `"caller";q=10;w=5, "tenant";q=2147483647;w=1, "slow";q=1;w=4` {
		t.Errorf("got %v, %v", h, err)
	}
	if got := h.Get("RateLimit"); got != `"caller";r=7;t=2` {
		t.Errorf("got %s", got)
	}
	if quota, err = callers.Take("a", 8, now); err == nil || fields(quota) != `"caller";r=0;t=1` {
		t.Errorf("refused: got %s, %v", fields(quota), err)
	}
	all, _ := tenants.Take("t", 1, now)
	if got := fields(limit.Nearest(all, quota)); got != `"caller";r=0;t=1` {
		t.Errorf("the nearest of two: got %s", got)
	}
	if got := fields(limit.Nearest(limit.Quota{}, all)); !strings.HasPrefix(got, `"tenant";r=`) {
		t.Errorf("the nearest of one: got %s", got)
	}
	unlimited, err := none.Take("a", 1, now)
	if err != nil || fields(unlimited) != "" || fields(limit.Nearest(unlimited, unlimited)) != "" {
		t.Errorf("no limit is told of: %s, %v", fields(unlimited), err)
	}
	limit.NewPolicies(none.Policy()).Tell(h, quota) // replaces nothing
	if h.Get("RateLimit") == "" {
		t.Error("where there is no policy, what is there is taken away")
	}
	for i := range 1000 { // a client that goes by what it is told
		quota, err := callers.Take("b", 1+i%3, now)
		if err != nil {
			t.Fatalf("request %d of a client that spreads what is left: %v", i, err)
		}
		var left, window int
		if _, err := fmt.Sscanf(fields(quota), `"caller";r=%d;t=%d`, &left, &window); err != nil {
			t.Fatal(err)
		}
		now = now.Add(3 * time.Duration(window) * time.Second / time.Duration(max(left, 1)))
	}
}
