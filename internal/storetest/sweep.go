package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// sweep sweeps once and wants that many members removed.
func sweep(t testing.TB, s *redisstore.Store, want int) {
	t.Helper()
	if n, err := s.SweepIndexes(t.Context()); err != nil || n != want {
		t.Fatalf("swept %d, %v, want %d", n, err, want)
	}
}

// sweeping runs stores' Sweep until the test ends.
func sweeping(t testing.TB, stores ...*redisstore.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, s := range stores {
		running.Go(func() {
			if err := s.Sweep(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); running.Wait() })
}

// swept is how often a store's turn to sweep came to a result.
func swept(t testing.TB, r *prometheus.Registry, result string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "statusrelay_redisstore_sweeps_total" && m.GetLabel()[0].GetValue() == result {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no sweeps are counted as %s", result)
	return 0
}

// ended says that somebody's instance has ended.
func ended(id, owner string) *status.Update {
	u := owned(id, owner, 9)
	u.Kind, u.RuntimeStatus = status.KindSnapshot, status.Completed
	return u
}

func expiredLeaveTheirIndexes(t *testing.T, h Harness) {
	const lives = 30 * time.Millisecond
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.TerminalTTL, o.Metrics = lives, registry })
	var batch []*status.Update
	var bobs, alices []string
	for n := range 300 { // more than one step looks at
		id := fmt.Sprintf("i %03d{%%}", n) // one that needs an escape
		if n%3 == 0 {
			bobs, batch = append(bobs, id), append(batch, owned(id, "bob", 1))
		} else {
			alices, batch = append(alices, id), append(batch, ended(id, "alice"))
		}
	}
	put(t, s, batch...)
	put(t, s, ended("again", "alice"))
	name, last := redisName(status.Key{Hub: "orders", InstanceID: "again"}), micros(t, h)
	if h.Pass != nil {
		h.Pass(lives)
	}
	eventually(t, "the ended have expired", func() bool {
		return do(t, h.Addr, "EXISTS", name) == "0" && micros(t, h) > last+lives.Microseconds()
	})
	if got := len(members(t, h, ofAlice)); got != len(alices)+1 {
		t.Fatalf("alice's index holds %d before the sweep, want %d", got, len(alices)+1)
	}
	put(t, s, newer(owned("again", "alice", 1), 1))
	f := follow(t, s)
	f.subscribeLists(ofAlice)

	sweep(t, s, 2*len(alices))
	wantMembers(t, h, ofAlice, "again")
	wantMembers(t, h, ofBob, slices.Clone(bobs)...)
	wantMembers(t, h, ofHub, append(slices.Clone(bobs), "again")...)
	f.wantTouched(ofAlice, alices...)
	if n := counted(t, registry, "statusrelay_redisstore_swept_members_total"); n != float64(2*len(alices)) {
		t.Errorf("counted %v, want %d", n, 2*len(alices))
	}
	sweep(t, s, 0)
}

func onlyTheExpiredAreSwept(t *testing.T, h Harness) {
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Metrics = registry })
	now := micros(t, h)
	old := strconv.FormatInt(now-(25*time.Hour).Microseconds(), 10)
	young := strconv.FormatInt(now-(23*time.Hour).Microseconds(), 10)

	// Many with the same score, of which every fifth is alive.
	words := []string{"ZADD", indexName(ofAlice)}
	var alive []string
	var batch []*status.Update
	for n := range 400 {
		id := fmt.Sprintf("i-%03d", n)
		words = append(words, old, id)
		if n%5 == 0 {
			alive, batch = append(alive, id), append(batch, owned(id, "alice", 1))
		}
	}
	put(t, s, batch...)
	do(t, h.Addr, words...)
	sweep(t, s, 320)
	wantMembers(t, h, ofAlice, slices.Clone(alive)...)

	words = []string{"ZADD", indexName(ofAlice)}
	for n := range 100 {
		words = append(words, old, fmt.Sprint("gone-", n), old+".5", alive[n%len(alive)])
	}
	do(t, h.Addr, words...)
	sweep(t, s, 100)

	// Scores that are no version, and members that are no instance.
	do(t, h.Addr, "DEL", indexName(ofAlice))
	do(t, h.Addr, "ZADD", indexName(ofAlice),
		"1.5", "fraction", old+".5", "fraction-2", old+".5", alive[0], old+".5", alive[1], "1", "first", old, "@x", old, "x/y", old, "\xff", old, "",
		young, "young", "0", "zero", "-5", "negative", "-inf", "below", "inf", "above", "9007199254740991", "ahead")
	sweep(t, s, 7)
	wantMembers(t, h, ofAlice, alive[0], alive[1], "young", "zero", "negative", "below", "above", "ahead")

	// What is no record does not keep anybody.
	do(t, h.Addr, "SET", redisName(status.Key{Hub: "orders", InstanceID: "text"}), "x")
	do(t, h.Addr, "HSET", redisName(status.Key{Hub: "orders", InstanceID: "hash"}), "r", "x")
	do(t, h.Addr, "ZADD", indexName(ofBob), old, "text", old, "hash")
	sweep(t, s, 2)

	// What is no index is left alone, and keeps nobody else in one.
	strange := []string{"statusrelay:index:{orders", "statusrelay:index:{orders/owner/%61lice}", "statusrelay:index:{orders/owner/%zz}", "statusrelay2:index:{orders}"}
	for _, name := range strange {
		do(t, h.Addr, "ZADD", name, old, "nobody")
	}
	do(t, h.Addr, "SET", indexName(status.Index{Hub: "orders", Label: "owner", Value: "text"}), "x")
	words = []string{"EXISTS"}
	for n := range 200 { // more than fit into one step
		i := status.Index{Hub: "orders", Label: "owner", Value: fmt.Sprint("owner-", n)}
		words = append(words, indexName(i))
		do(t, h.Addr, "ZADD", indexName(i), old, "a", old, "b")
	}
	before := counted(t, registry, "statusrelay_redisstore_corrupt_indexes_total")
	sweep(t, s, 400)
	if n := do(t, h.Addr, words...); n != "0" {
		t.Errorf("%s indexes are left of which all members have expired", n)
	}
	if n := do(t, h.Addr, append([]string{"EXISTS"}, strange...)...); n != fmt.Sprint(len(strange)) {
		t.Errorf("%s are left of %d that are no indexes", n, len(strange))
	}
	if counted(t, registry, "statusrelay_redisstore_corrupt_indexes_total") == before {
		t.Error("an index of another type is not counted")
	}

	// Where running instances live no longer than ended ones, they count.
	brief := open(t, h.Addr, func(o *redisstore.Options) { o.TTL = time.Hour })
	do(t, h.Addr, "ZADD", indexName(ofBob), young, "young")
	sweep(t, s, 0)
	sweep(t, brief, 2) // alice's too
	eternal := open(t, h.Addr, func(o *redisstore.Options) { o.TTL, o.TerminalTTL = 1<<63-1, 1<<63-1 })
	sweep(t, eternal, 0)
}

// Between what a sweep has seen and what it does about it, anybody may write.
func whoEntersAgainIsNotSwept(t *testing.T, h Harness) {
	p := StartProxy(t, h.Addr)
	sweeper, s := open(t, p.Addr), open(t, h.Addr)
	put(t, s, owned("other", "bob", 1)) // the script is known
	do(t, h.Addr, "ZADD", indexName(ofAlice), "5", "a", "6", "b")
	held := false
	p.HoldUp("evalsha", func() {
		held = true
		wantMembers(t, h, ofAlice, "a", "b")
		put(t, s, owned("a", "alice", 1))
	})
	if _, err := sweeper.SweepIndexes(t.Context()); err != nil || !held {
		t.Fatalf("held up: %v, %v", held, err)
	}
	wantMembers(t, h, ofAlice, "a")
	wantList(t, s, ofAlice, "a")
}

func oneOfAllSweeps(t *testing.T, h Harness) {
	const interval = 5 * time.Second
	do(t, h.Addr, "ZADD", indexName(ofHub), "5", "gone")
	registries := []*prometheus.Registry{prometheus.NewRegistry(), prometheus.NewRegistry(), prometheus.NewRegistry()}
	total := func(result string) (sum float64) {
		for _, r := range registries {
			sum += swept(t, r, result)
		}
		return sum
	}
	var stores []*redisstore.Store
	for _, r := range registries {
		stores = append(stores, open(t, h.Addr, func(o *redisstore.Options) { o.Metrics, o.SweepInterval = r, interval }))
	}
	if ms := do(t, h.Addr, "PTTL", "statusrelay:sweep"); ms != "-2" {
		t.Errorf("the turn is taken before anybody runs: %s", ms)
	}
	sweeping(t, stores...)
	eventually(t, "all had their turn", func() bool { return total("done")+total("left") == 3 })
	if total("done") != 1 {
		t.Errorf("%v sweeps, want one of all", total("done"))
	}
	wantMembers(t, h, ofHub)
	if ms, err := strconv.Atoi(do(t, h.Addr, "PTTL", "statusrelay:sweep")); err != nil || ms <= 0 || ms > 5000 {
		t.Errorf("the turn lasts %d ms, %v", ms, err)
	}
	// In the next interval there is another one.
	do(t, h.Addr, "ZADD", indexName(ofHub), "5", "gone")
	if h.Pass != nil {
		h.Pass(interval)
	}
	eventually(t, "swept again", func() bool { return total("done") == 2 && len(members(t, h, ofHub)) == 0 })
	if total("failed") != 0 {
		t.Errorf("%v failed", total("failed"))
	}
}

func sweepsThatFail(t *testing.T, h Harness) {
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Metrics, o.SweepInterval = registry, 20*time.Millisecond })
	do(t, h.Addr, "ZADD", indexName(ofHub), "5", "gone")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := s.SweepIndexes(gone); !errors.Is(err, status.ErrUnavailable) || n != 0 {
		t.Errorf("got %d, %v, want unavailable", n, err)
	}
	h.Real.Stop()
	if _, err := s.SweepIndexes(t.Context()); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
	sweeping(t, s)
	eventually(t, "failed more than once", func() bool { return swept(t, registry, "failed") > 1 })
	h.Real.Start()
	do(t, h.Addr, "ZADD", indexName(ofHub), "5", "gone")
	eventually(t, "swept", func() bool { return len(members(t, h, ofHub)) == 0 })
}
