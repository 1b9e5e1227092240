package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// wantedName is the name of a hub's set of what is wanted, and of its channel.
func wantedName(hub string) string { return "statusrelay:interest:{" + hub + "}" }

func keysIn(hub string, ids ...string) []status.Key {
	keys := make([]status.Key, len(ids))
	for n, id := range ids {
		keys[n] = status.Key{Hub: hub, InstanceID: id}
	}
	return keys
}

func announce(t *testing.T, s *redisstore.Store, lasts time.Duration, hub string, ids ...string) {
	t.Helper()
	if err := s.Announce(t.Context(), keysIn(hub, ids...), time.Now().Add(lasts)); err != nil {
		t.Fatal(err)
	}
}

func interested(t *testing.T, s *redisstore.Store, hub string) []string {
	t.Helper()
	ids, err := s.Interested(t.Context(), hub)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func wantInterested(t *testing.T, s *redisstore.Store, hub string, want ...string) {
	t.Helper()
	if got := interested(t, s, hub); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("in %s are wanted %q, want %q", hub, got, want)
	}
}

// An ear hears what comes to be wanted.
type ear struct {
	mu  sync.Mutex
	ids []string // guarded by mu
}

// listen follows what is wanted of a hub, and hears already when it returns.
func listen(t *testing.T, s *redisstore.Store, hub string) *ear {
	t.Helper()
	e := &ear{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.FollowInterest(ctx, hub, e.hear); err != nil {
			t.Errorf("follow: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	e.hears(t, s, hub)
	return e
}

func (e *ear) hear(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ids = append(e.ids, id)
}

func (e *ear) heard(id string) (times int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, other := range e.ids {
		if other == id {
			times++
		}
	}
	return times
}

// hears waits until what is announced is heard (again).
func (e *ear) hears(t *testing.T, s *redisstore.Store, hub string) {
	t.Helper()
	eventually(t, "what is announced is heard", func() bool {
		id := "probe-" + strconv.FormatUint(rand.Uint64(), 36)
		if s.Announce(t.Context(), keysIn(hub, id), time.Now().Add(time.Second)) != nil {
			return false
		}
		late := time.After(200 * time.Millisecond)
		for e.heard(id) == 0 {
			select {
			case <-late:
				return false
			case <-time.After(time.Millisecond):
			}
		}
		return true
	})
}

func announcedAreInterested(t *testing.T, h Harness) {
	a, b, bridge := open(t, h.Addr), open(t, h.Addr), open(t, h.Addr)
	wantInterested(t, bridge, "orders")
	announce(t, a, time.Minute, "orders", "1", "2")
	announce(t, b, 10*time.Minute, "orders", "2", "3")
	announce(t, b, time.Minute, "returns", "9")
	announce(t, b, -time.Minute, "orders", "past")
	wantInterested(t, bridge, "orders", "1", "2", "3")
	wantInterested(t, bridge, "returns", "9")
	if ids := interested(t, bridge, "orders"); ids[2] != "1" {
		t.Errorf("got %q, want those first that are wanted for the longest", ids)
	}
	if lives, err := strconv.Atoi(do(t, h.Addr, "PTTL", wantedName("orders"))); err != nil || lives < 9*60_000 || lives > 10*60_000 {
		t.Errorf("the set lives for %d ms, %v, want about as long as its last member", lives, err)
	}
}

func interestEnds(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	announce(t, s, 300*time.Millisecond, "orders", "short")
	announce(t, s, time.Hour, "orders", "long")
	wantInterested(t, s, "orders", "short", "long")
	eventually(t, "the short one's time has passed", func() bool { return len(interested(t, s, "orders")) == 1 })
	wantInterested(t, s, "orders", "long")
	if n := do(t, h.Addr, "ZCARD", wantedName("orders")); n != "1" {
		t.Errorf("%s members are left, want 1", n)
	}
}

// Who wants it for the longest counts, in whatever order they say so.
func longestInterestCounts(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	ends := func() float64 {
		score, err := strconv.ParseFloat(do(t, h.Addr, "ZSCORE", wantedName("orders"), "1"), 64)
		if err != nil {
			t.Fatal(err)
		}
		return score
	}
	announce(t, s, 10*time.Minute, "orders", "1")
	first := ends()
	announce(t, s, time.Minute, "orders", "1", "2")
	if got := ends(); got != first {
		t.Errorf("ends at %.0f, want still %.0f", got, first)
	}
	announce(t, s, 20*time.Minute, "orders", "1")
	if got := ends(); got < first+9*60_000 {
		t.Errorf("ends at %.0f, want ten minutes after %.0f", got, first)
	}
	announce(t, s, 1000*time.Hour, "orders", "1")
	if got, most := ends(), float64(time.Now().Add(2*redisstore.MaxInterest).UnixMilli()); got > most {
		t.Errorf("ends at %.0f, want before %.0f", got, most)
	}
}

func newInterestIsHeard(t *testing.T, h Harness) {
	s, other := open(t, h.Addr), open(t, h.Addr)
	e, elsewhere := listen(t, open(t, h.Addr), "orders"), listen(t, open(t, h.Addr), "returns")
	announce(t, s, 500*time.Millisecond, "orders", "1")
	eventually(t, "heard", func() bool { return e.heard("1") == 1 })
	announce(t, other, 500*time.Millisecond, "orders", "1", "2")
	eventually(t, "heard", func() bool { return e.heard("2") == 1 })
	if n := e.heard("1"); n != 1 {
		t.Errorf("heard %d times of who was wanted already", n)
	}
	eventually(t, "the time passes", func() bool { return !slices.Contains(interested(t, s, "orders"), "1") })
	announce(t, s, time.Minute, "orders", "1")
	eventually(t, "heard again", func() bool { return e.heard("1") == 2 })
	if n := elsewhere.heard("1") + elsewhere.heard("2"); n != 0 {
		t.Errorf("another hub's follower heard %d", n)
	}
}

// Those leave a full set first whose time ends first.
func interestIsBounded(t *testing.T, h Harness) {
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.MaxInterested, o.Metrics = 3, registry })
	e := listen(t, s, "orders")
	do(t, h.Addr, "DEL", wantedName("orders"))
	announce(t, s, 3*time.Minute, "orders", "c")
	announce(t, s, 1*time.Minute, "orders", "a")
	announce(t, s, 4*time.Minute, "orders", "d")
	announce(t, s, 2*time.Minute, "orders", "b")
	wantInterested(t, s, "orders", "b", "c", "d")
	many := make([]string, 500)
	for n := range many {
		many[n] = fmt.Sprint("flood-", n)
	}
	announce(t, s, time.Minute, "orders", many...)
	wantInterested(t, s, "orders", "b", "c", "d")
	eventually(t, "even who has no room is heard once", func() bool { return e.heard("flood-499") == 1 })
	if n := counted(t, registry, "statusrelay_redisstore_interest_displaced_total"); n != 501 {
		t.Errorf("counted %v that had to leave, want 501", n)
	}
}

func thousandsAreAnnounced(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	e := listen(t, open(t, h.Addr), "orders")
	var keys []status.Key
	for n := range 3000 {
		keys = append(keys, status.Key{Hub: []string{"orders", "returns"}[n%2], InstanceID: fmt.Sprintf("%d-%s", n, strings.Repeat("é", 100))})
	}
	if err := s.Announce(t.Context(), keys, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := map[status.Key]bool{}
	for _, hub := range []string{"orders", "returns"} {
		for _, id := range interested(t, s, hub) {
			got[status.Key{Hub: hub, InstanceID: id}] = true
		}
	}
	for _, k := range keys {
		if !got[k] {
			t.Fatalf("%s is not wanted", k)
		}
	}
	for n := 0; n < len(keys); n += 2 {
		eventually(t, "each is heard", func() bool { return e.heard(keys[n].InstanceID) == 1 })
	}
}

func anyWantedIDIsSafe(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	e := listen(t, open(t, h.Addr), "orders")
	do(t, h.Addr, "DEL", wantedName("orders"))
	ids := []string{"{a}", "}{", "*", "a b", "a\u00a0b", "-5", "+inf", "(1", "%2F", "日本", `"'`, "LIMIT", strings.Repeat("x", status.MaxInstanceID)}
	announce(t, s, time.Minute, "orders", ids...)
	wantInterested(t, s, "orders", ids...)
	for _, id := range ids {
		eventually(t, "heard", func() bool { return e.heard(id) == 1 })
	}
	if keys := do(t, h.Addr, "KEYS", "*"); keys != wantedName("orders") {
		t.Errorf("there are the keys %q", keys)
	}
}

func garbageInInterestHurtsNobody(t *testing.T, h Harness) {
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Metrics, o.MaxInterested = registry, 50 })
	corrupt := func() float64 { return counted(t, registry, "statusrelay_redisstore_corrupt_indexes_total") }
	e := listen(t, s, "orders")
	name := wantedName("orders")
	do(t, h.Addr, "DEL", name)
	announce(t, s, time.Minute, "orders", "a")
	soon := strconv.FormatInt(time.Now().Add(30*time.Second).UnixMilli(), 10)
	do(t, h.Addr, "ZADD", name,
		soon, "", soon, "@x", soon, "x/y", soon, "x\ny", soon, "\xff", soon, strings.Repeat("x", 257), soon+".5", "b",
		"inf", "above", "-inf", "below", "9007199254740993", "far", "0", "zero", "-5", "negative")
	wantInterested(t, s, "orders", "a", "b")
	if corrupt() != 1 {
		t.Errorf("counted %v times, want 1", corrupt())
	}
	if n := do(t, h.Addr, "ZCARD", name); n != "2" {
		t.Errorf("%s are left, want 2", n)
	}
	// What would never end does not push out what is wanted.
	for n := range 60 {
		do(t, h.Addr, "ZADD", name, "inf", fmt.Sprint("endless-", n))
	}
	announce(t, s, time.Minute, "orders", "c")
	wantInterested(t, s, "orders", "a", "b", "c")
	if corrupt() != 2 {
		t.Errorf("counted %v times, want 2", corrupt())
	}
	// Another type: counts as empty, and is replaced.
	do(t, h.Addr, "DEL", name)
	do(t, h.Addr, "SET", name, "text")
	wantInterested(t, s, "orders")
	do(t, h.Addr, "SET", name, "text")
	announce(t, s, time.Minute, "orders", "d")
	wantInterested(t, s, "orders", "d")
	// Messages.
	for _, m := range []string{"", "x/y", "x\n@y", "\xff", strings.Repeat("x\n", 1000)} {
		do(t, h.Addr, "PUBLISH", name, m)
	}
	announce(t, s, time.Minute, "orders", "last")
	eventually(t, "who follows hears on", func() bool { return e.heard("last") == 1 })
	for _, id := range []string{"", "x", "x/y"} {
		if e.heard(id) != 0 {
			t.Errorf("heard %q", id)
		}
	}
}

func forgottenInterestScripts(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	for n := range 2 {
		do(t, h.Addr, "SCRIPT", "FLUSH")
		announce(t, s, time.Minute, "orders", fmt.Sprint(n))
		do(t, h.Addr, "SCRIPT", "FLUSH")
		if got := len(interested(t, s, "orders")); got != n+1 {
			t.Errorf("%d are wanted, want %d", got, n+1)
		}
		do(t, h.Addr, "SCRIPT", "FLUSH")
		if !leased(t, s, "bridge", "a", time.Minute) {
			t.Error("not leased")
		}
	}
}

// Who follows hears on after every kind of loss, and what was not heard is read.
func lostInterestIsRead(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	p := StartProxy(t, h.Addr)
	e := listen(t, open(t, p.Addr), "orders")
	for lost, lose := range map[string]func(){"cut": p.Cut, "deaf": func() { p.MuteSubscribers() }} {
		lose()
		announce(t, s, time.Minute, "orders", lost)
		e.hears(t, s, "orders")
		if !slices.Contains(interested(t, s, "orders"), lost) {
			t.Errorf("what was announced while it was %s is not wanted", lost)
		}
	}
}

func restartedServerIsAnnouncedTo(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	e := listen(t, open(t, h.Addr), "orders")
	announce(t, s, time.Minute, "orders", "1")
	eventually(t, "heard", func() bool { return e.heard("1") == 1 })
	h.Real.Stop()
	if err := s.Announce(t.Context(), keysIn("orders", "2"), time.Now().Add(time.Minute)); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	h.Real.Start()
	e.hears(t, s, "orders")
	announce(t, s, time.Minute, "orders", "1", "2")
	eventually(t, "what a new server has never heard of is heard", func() bool { return e.heard("1") == 2 && e.heard("2") == 1 })
}

func leased(t *testing.T, s *redisstore.Store, name, holder string, ttl time.Duration) bool {
	t.Helper()
	mine, err := s.Lease(t.Context(), name, holder, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return mine
}

func oneHolderOfALease(t *testing.T, h Harness) {
	a, b := open(t, h.Addr), open(t, h.Addr)
	if !leased(t, a, "bridge/orders", "a", time.Minute) || leased(t, b, "bridge/orders", "b", time.Minute) {
		t.Fatal("want one holder")
	}
	if !leased(t, b, "bridge/returns", "b", time.Minute) {
		t.Error("another name has the same holder")
	}
	if !leased(t, a, "bridge/orders", "a", time.Hour) || leased(t, b, "bridge/orders", "b", time.Minute) {
		t.Error("the holder cannot renew it")
	}
	if lives, err := strconv.Atoi(do(t, h.Addr, "PTTL", "statusrelay:lease:bridge%2Forders")); err != nil || lives < 59*60_000 {
		t.Errorf("it lasts for %d ms, %v, want an hour", lives, err)
	}
	if err := b.Release(t.Context(), "bridge/orders", "b"); err != nil || leased(t, b, "bridge/orders", "b", time.Minute) {
		t.Errorf("somebody else has given it back: %v", err)
	}
	if err := a.Release(t.Context(), "bridge/orders", "a"); err != nil || !leased(t, b, "bridge/orders", "b", time.Minute) {
		t.Errorf("it was not given back: %v", err)
	}
	if _, err := a.Lease(t.Context(), "x", "a", 0); err == nil {
		t.Error("a lease for no time")
	}
}

func leasesEnd(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	if !leased(t, s, "bridge", "dies", 100*time.Millisecond) {
		t.Fatal("not leased")
	}
	if h.Pass != nil {
		h.Pass(time.Second)
	}
	eventually(t, "the lease of who died ends", func() bool { return leased(t, s, "bridge", "heir", time.Minute) })
	if leased(t, s, "bridge", "dies", time.Minute) {
		t.Error("it comes back")
	}
}

func contendersOfALease(t *testing.T, h Harness) {
	var all sync.WaitGroup
	var holders atomic.Int32
	for n := range 20 {
		s := open(t, h.Addr)
		all.Go(func() {
			if mine, err := s.Lease(t.Context(), "bridge", fmt.Sprint(n), time.Minute); err != nil {
				t.Error(err)
			} else if mine {
				holders.Add(1)
			}
		})
	}
	all.Wait()
	if n := holders.Load(); n != 1 {
		t.Errorf("%d hold it, want one", n)
	}
}

func garbageInALease(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	for what, words := range map[string][]string{
		"what never ends": {"SET", "statusrelay:lease:bridge", "x"},
		"another type":    {"HSET", "statusrelay:lease:bridge", "x", "y"},
	} {
		do(t, h.Addr, "DEL", "statusrelay:lease:bridge")
		do(t, h.Addr, words...)
		if !leased(t, s, "bridge", "a", time.Minute) || leased(t, s, "bridge", "b", time.Minute) {
			t.Errorf("%s keeps the lease from everybody", what)
		}
	}
}
