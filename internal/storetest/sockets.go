package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"statusrelay/internal/limit"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// shortLease lets tests see leases end.
const shortLease = 600 * time.Millisecond

// A counting is a replica's counter, which runs until it stops, dies or the test ends.
type counting struct {
	*redisstore.Sockets
	stop func() // as a replica stops
	die  func() // as one that is killed: Redis hears nothing more

	mu     sync.Mutex
	leaves map[string][]func() // guarded by mu: of each caller's sockets
}

func count(t *testing.T, addr string, lease time.Duration, change ...func(*redisstore.Options)) *counting {
	t.Helper()
	o := redisstore.Options{Addrs: []string{addr}}
	for _, f := range change {
		f(&o)
	}
	s, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &counting{Sockets: s.Sockets(redisstore.SocketsOptions{Lease: lease}), leaves: map[string][]func(){}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	closed := sync.OnceFunc(func() { _ = s.Close() })
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		closed()
	})
	c.die = func() {
		closed()
		c.stop()
	}
	t.Cleanup(c.stop)
	return c
}

// name is what Redis calls a caller's leases.
func (c *counting) name(caller string) string {
	sum := sha256.Sum256([]byte("sockets\x00" + caller))
	return "statusrelay:sockets:" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// ofCaller is one of a caller's places.
func ofCaller(caller string, most int) limit.Place {
	return limit.Place{Limit: "sockets", Of: caller, Most: most}
}

// Leave closes one of a caller's sockets.
func (c *counting) Leave(caller string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.leaves[caller]
	all[0]()
	c.leaves[caller] = all[1:]
}

// may reports whether a caller may open one more.
func (c *counting) may(t *testing.T, caller string, most int) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	leave, err := c.Enter(ctx, ofCaller(caller, most))
	if err == nil {
		c.mu.Lock()
		c.leaves[caller] = append(c.leaves[caller], leave)
		c.mu.Unlock()
	}
	var reached *limit.Error
	if err != nil && (!errors.As(err, &reached) || reached.Limit != "sockets" || reached.RetryAfter < time.Second || reached.RetryAfter > 10*time.Second) {
		t.Fatalf("enter: %v", err)
	}
	return err == nil
}

// soon waits for something to come true.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	every := time.NewTicker(5 * time.Millisecond)
	defer every.Stop()
	for !cond() {
		select {
		case <-every.C:
		case <-deadline:
			t.Fatalf("in vain: %s", what)
		}
	}
}

func socketsAreCountedTogether(t *testing.T, h Harness) {
	replicas := []*counting{count(t, h.Addr, time.Minute), count(t, h.Addr, time.Minute), count(t, h.Addr, time.Minute)}
	var all sync.WaitGroup
	var in atomic.Int32
	var each [3]atomic.Int32
	for n := range 60 {
		all.Go(func() {
			if replicas[n%3].may(t, "alice", 20) {
				in.Add(1)
				each[n%3].Add(1)
			}
		})
	}
	all.Wait()
	if in.Load() != 20 {
		t.Fatalf("three replicas let in %d, want 20", in.Load())
	}
	for i, r := range replicas {
		if r.may(t, "alice", 20) {
			t.Errorf("replica %d let in one more", i)
		}
		if !r.may(t, "bob", 20) {
			t.Errorf("replica %d let another caller pay", i)
		}
	}
	for i, r := range replicas {
		for range each[i].Load() {
			r.Leave("alice")
		}
	}
	for i := range 20 {
		soon(t, "all who left make room", func() bool { return replicas[i%2].may(t, "alice", 20) })
	}
	if replicas[2].may(t, "alice", 20) {
		t.Error("one more than there may be")
	}
	for _, r := range replicas {
		r.Leave("bob")
	}
	for i := range 20 {
		replicas[i%2].Leave("alice")
	}
	soon(t, "nothing is left in Redis", func() bool { return keysOf(t, h) == "" })
}

// keysOf is what Redis has of sockets.
func keysOf(t *testing.T, h Harness) string { return do(t, h.Addr, "KEYS", "statusrelay:sockets:*") }

func deadReplicasSocketsEnd(t *testing.T, h Harness) {
	dies, lives, late := count(t, h.Addr, shortLease), count(t, h.Addr, shortLease), count(t, h.Addr, shortLease)
	for range 3 {
		if !dies.may(t, "alice", 4) {
			t.Fatal("refused too soon")
		}
	}
	if !lives.may(t, "alice", 4) || late.may(t, "alice", 4) {
		t.Fatal("the four were not counted together")
	}
	dies.die()
	for range 3 {
		soon(t, "the leases of who died end", func() bool { return late.may(t, "alice", 4) })
	}
	over := time.Now().Add(3 * shortLease)
	soon(t, "time passes", func() bool {
		if late.may(t, "alice", 4) || lives.may(t, "alice", 4) {
			t.Fatal("the leases of who lives have ended")
		}
		return time.Now().After(over)
	})
}

// Who stops tells Redis, instead of having others wait for leases to end.
func stoppedReplicasSocketsEndAtOnce(t *testing.T, h Harness) {
	stops, stays := count(t, h.Addr, time.Hour), count(t, h.Addr, time.Hour)
	if !stops.may(t, "alice", 1) || stays.may(t, "alice", 1) {
		t.Fatal("not counted together")
	}
	stops.Leave("alice")
	stops.stop()
	if !stays.may(t, "alice", 1) {
		t.Error("the socket of who has stopped still counts")
	}
}

func anyCallerIsSafe(t *testing.T, h Harness) {
	s := count(t, h.Addr, time.Minute)
	callers := []string{
		"", "\x00", "a\x00b", "a", "b", "{a}", "}{", "*", "?", "a\r\nDEL x\r\n", "statusrelay:{orders/order-1}", "\xff\xfe", "ALICE", "alice", "alice ",
		strings.Repeat("x", 100_000), strings.Repeat("x", 100_001), "https://issuer.test\x00alice", "https://issuer.test\x00\x00alice",
	}
	for _, c := range callers {
		if !s.may(t, c, 1) {
			t.Errorf("%.20q shares with another", c)
		}
	}
	for _, c := range callers {
		if s.may(t, c, 1) {
			t.Errorf("%.20q is not counted", c)
		}
	}
	for name := range strings.FieldsSeq(do(t, h.Addr, "KEYS", "*")) {
		if !regexp.MustCompile(`^statusrelay:sockets:[A-Za-z0-9_-]{22}$`).MatchString(name) {
			t.Errorf("there is a key %q", name)
		}
	}
}

func garbageInSocketsHurtsNobody(t *testing.T, h Harness) {
	s, other := count(t, h.Addr, time.Minute), count(t, h.Addr, time.Minute)
	if !s.may(t, "alice", 3) {
		t.Fatal("refused")
	}
	key := keysOf(t, h)
	far := time.Now().Add(24 * time.Hour).UnixMilli()
	soonEnds := time.Now().Add(30 * time.Second).UnixMilli()
	for field, value := range map[string]string{
		"text": "x", "empty": "", "negative": fmt.Sprintf("%d -5", soonEnds), "fraction": fmt.Sprintf("%d 1.5", soonEnds), "endless": fmt.Sprintf("%d 1000", far),
		"huge": fmt.Sprintf("%d 99999999999999999999", soonEnds), "past": "1 1000", "words": fmt.Sprintf("%d 1 1", soonEnds),
	} {
		do(t, h.Addr, "HSET", key, field, value)
	}
	if !other.may(t, "alice", 3) {
		t.Error("what is no lease counts")
	}
	do(t, h.Addr, "HSET", key, "lease", fmt.Sprintf("%d 1", soonEnds))
	if s.may(t, "alice", 3) {
		t.Error("what is a lease does not count")
	}
	if got := do(t, h.Addr, "HLEN", key); got != "3" {
		t.Errorf("%s are left, want 3", got)
	}
	do(t, h.Addr, "DEL", key)
	do(t, h.Addr, "SET", key, "text")
	if !other.may(t, "alice", 3) {
		t.Error("refused because of what is no hash")
	}
	if got := do(t, h.Addr, "TYPE", key); got != "hash" {
		t.Errorf("it is a %s", got)
	}
}

func forgottenSocketsScript(t *testing.T, h Harness) {
	s := count(t, h.Addr, time.Minute)
	for range 2 {
		do(t, h.Addr, "SCRIPT", "FLUSH")
		if !s.may(t, "alice", 2) {
			t.Error("refused")
		}
	}
	if s.may(t, "alice", 2) {
		t.Error("not counted")
	}
}

// While Redis is away each replica counts for itself, and does not make anybody wait
// for long; then they count together again, whoever came first.
func socketsWithoutRedis(t *testing.T, h Harness) {
	a, b := count(t, h.Addr, shortLease), count(t, h.Addr, shortLease)
	if !a.may(t, "alice", 3) {
		t.Fatal("refused")
	}
	h.Real.Pause()
	for i, c := range []*counting{a, a, b, b, b} {
		if !c.may(t, "alice", 3) {
			t.Errorf("refused the socket %d without Redis", i)
		}
	}
	if a.may(t, "alice", 3) || b.may(t, "alice", 3) {
		t.Error("without Redis there is no limit at all")
	}
	h.Real.Resume()
	soon(t, "both have told Redis", func() bool { return do(t, h.Addr, "HLEN", keysOf(t, h)) == "2" })
	a.Leave("alice") // five are left, where three may be
	b.Leave("alice")
	over := time.Now().Add(2 * shortLease)
	soon(t, "time passes", func() bool {
		if a.may(t, "alice", 3) || b.may(t, "alice", 3) {
			t.Fatal("let in, although there are more than may be")
		}
		return time.Now().After(over)
	})
	h.Real.Stop()
	if !a.may(t, "alice", 3) || a.may(t, "alice", 3) {
		t.Error("a server that is down is no better than one that hangs")
	}
	a.Leave("alice")
	a.Leave("alice")
	h.Real.Start()
	soon(t, "what a new server lacks is told again", func() bool { return do(t, h.Addr, "HLEN", keysOf(t, h)) == "2" })
	if b.may(t, "alice", 3) {
		t.Error("a fourth")
	}
	a.Leave("alice")
	soon(t, "room for one", func() bool { return b.may(t, "alice", 3) })
}

// What Redis could not be told is told as soon as it listens, not when leases are renewed.
func socketsOfAReadOnlyServer(t *testing.T, h Harness) {
	s := count(t, h.Addr, time.Hour)
	if !s.may(t, "alice", 1) || !s.may(t, "bob", 2) {
		t.Fatal("refused")
	}
	h.Real.Do("REPLICAOF", "127.0.0.1", "1") // of nobody
	s.Leave("alice")
	if !s.may(t, "bob", 2) { // by the count of this replica, since Redis has refused
		t.Error("refused without Redis")
	}
	h.Real.Do("REPLICAOF", "NO", "ONE")
	soon(t, "what has changed is told", func() bool {
		name := keysOf(t, h)
		return name != "" && !strings.ContainsAny(name, " \n") && strings.HasSuffix(do(t, h.Addr, "HVALS", name), " 2")
	})
}

// A replica that Redis lets do less does not take away what others count.
func socketsUnderTooFewRights(t *testing.T, h Harness) {
	h.Real.Do("ACL", "SETUSER", "relay", "on", ">secret", "~*", "+@all", "-hgetall")
	mayNot, may := count(t, h.Addr, time.Hour, asRelay), count(t, h.Addr, time.Hour)
	if !may.may(t, "alice", 1) || !mayNot.may(t, "alice", 1) { // who may not count does so alone
		t.Error("refused")
	}
	if held := do(t, h.Addr, "HVALS", may.name("alice")); !strings.HasSuffix(held, " 1") || strings.Contains(held, "\n") {
		t.Errorf("Redis has %q, want the one that was counted", held)
	}
	mayNot.die()
	h.Real.Do("ACL", "LOG", "RESET") // it is here that something was to be refused
}

// Whoever does not wait for the answer is not counted.
func goneEntrantsAreNotCounted(t *testing.T, h Harness) {
	s := open(t, h.Addr).Sockets(redisstore.SocketsOptions{})
	ctx, leave := context.WithCancel(t.Context())
	leave()
	for range 5 {
		if _, err := s.Enter(ctx, ofCaller("alice", 1)); !errors.Is(err, status.ErrUnavailable) { // nobody runs it yet
			t.Errorf("got %v, want unavailable", err)
		}
	}
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(running) }()
	if _, err := s.Enter(t.Context(), ofCaller("alice", 1)); err != nil {
		t.Errorf("got %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := s.Enter(t.Context(), ofCaller("bob", 1)); err != nil {
		t.Errorf("after the end: got %v", err)
	}
}

// A socket takes its caller's, its tenant's and its address's place together, or none of them: who is refused by one limit
// costs nobody anything under another, on whatever replica.
func socketsTakeAllPlacesOrNone(t *testing.T, h Harness) {
	replicas := []*counting{count(t, h.Addr, time.Hour), count(t, h.Addr, time.Hour)}
	enter := func(i int, caller, tenant, address string) (leave func(), refusedBy string) {
		t.Helper()
		leave, err := replicas[i].Enter(t.Context(), limit.Place{Limit: "sockets", Of: caller, Most: 2},
			limit.Place{Limit: "tenant_sockets", Of: tenant, Most: 3}, limit.Place{Limit: "address_sockets", Of: address, Most: 4})
		var reached *limit.Error
		if err != nil && !errors.As(err, &reached) {
			t.Fatal(err)
		}
		if reached != nil {
			refusedBy = reached.Limit
		}
		return leave, refusedBy
	}
	var leaves []func()
	for i, step := range []struct{ caller, tenant, address, refusedBy string }{
		{"alice", "t", "a", ""},
		{"alice", "t", "a", ""},
		{"alice", "t", "a", "sockets"},
		{"alice", "t", "b", "sockets"},
		{"bob", "t", "a", ""},
		{"carol", "t", "a", "tenant_sockets"},
		{"carol", "t", "b", "tenant_sockets"},
		{"carol", "u", "a", ""},
		{"carol", "u", "a", "address_sockets"},
		{"dave", "v", "a", "address_sockets"},
		{"carol", "u", "b", ""}, // had a refusal cost anything, one of these three would not be there
		{"erin", "u", "b", ""},
		{"a", "sockets", "t", ""}, // a name under one limit is not that under another
	} {
		var leave func()
		var refusedBy string
		soon(t, fmt.Sprintf("step %d, %+v", i, step), func() bool { // when what a refusal had taken elsewhere has been given back
			leave, refusedBy = enter(i%2, step.caller, step.tenant, step.address)
			if refusedBy == "" && step.refusedBy != "" {
				t.Fatalf("step %d, %+v: let in", i, step)
			}
			return refusedBy == step.refusedBy
		})
		if leave != nil {
			leaves = append(leaves, leave)
		}
	}
	for _, leave := range leaves {
		leave()
	}
	soon(t, "nothing is left in Redis", func() bool { return keysOf(t, h) == "" })

	var all sync.WaitGroup // at once, by many callers of one tenant: never more, whoever comes when
	var in atomic.Int32
	for n := range 60 {
		all.Go(func() {
			if _, refusedBy := enter(n%2, fmt.Sprint("caller-", n), "t", fmt.Sprint("address-", n%30)); refusedBy == "" {
				in.Add(1)
			}
		})
	}
	all.Wait()
	if in.Load() > 3 {
		t.Errorf("two replicas let in %d of a tenant, want 3", in.Load())
	}
	for ; in.Load() < 3; in.Add(1) { // what both wanted at once and neither got is there again
		soon(t, "a place that nobody got is free", func() bool {
			_, refusedBy := enter(0, fmt.Sprint("late-", in.Load()), "t", "late")
			return refusedBy == ""
		})
	}
	if _, refusedBy := enter(1, "another", "t", "late"); refusedBy != "tenant_sockets" {
		t.Errorf("a fourth is refused by %q", refusedBy)
	}
}
