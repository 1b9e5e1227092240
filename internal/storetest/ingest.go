package storetest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/claim"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// take takes an event through a replica, and returns it with its verdict.
func take(t *testing.T, l *claim.Ledger, id, content string) *claim.Event {
	t.Helper()
	e := claim.Of("issuer", "subject", "/source", id, []byte(content))
	l.Take(t.Context(), []*claim.Event{e})
	return e
}

func ledger(t *testing.T, s *redisstore.Store) *claim.Ledger {
	t.Helper()
	l, err := claim.NewLedger(claim.Options{Memory: s, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Whatever one replica knows of an event, all know.
func eventIsClaimedOnce(t *testing.T, h Harness) {
	a, b := ledger(t, open(t, h.Addr)), ledger(t, open(t, h.Addr))
	var mine []*claim.Event
	for i := range 500 {
		mine = append(mine, claim.Of("issuer", "subject", "/source", fmt.Sprint(i), []byte("a")))
	}
	a.Take(t.Context(), mine)
	for i, e := range mine {
		if e.Verdict != claim.Free {
			t.Fatalf("event %d is %s", i, e.Verdict)
		}
		e.Published = i > 0
	}
	mine[0].Stamp = &claim.Stamp{Generation: 5, Sequence: 7}
	if got := take(t, b, "1", "a").Verdict; got != claim.Busy {
		t.Errorf("taken elsewhere: got %s", got)
	}
	a.Settle(t.Context(), mine)
	for id, want := range map[string]claim.Verdict{"1": claim.Published, "499": claim.Published, "500": claim.Free} {
		if got := take(t, b, id, "a").Verdict; got != want {
			t.Errorf("event %s: got %s, want %s", id, got, want)
		}
	}
	if got := take(t, b, "1", "b").Verdict; got != claim.Other {
		t.Errorf("other content: got %s", got)
	}
	if again := take(t, b, "0", "a"); again.Verdict != claim.Free || again.Stamp == nil || *again.Stamp != *mine[0].Stamp {
		t.Errorf("after a failure: got %s with the stamp %v", again.Verdict, again.Stamp)
	}
	for id, want := range map[string]time.Duration{"0": 30 * time.Second, "1": time.Hour} {
		name := "statusrelay:event:" + claim.Of("issuer", "subject", "/source", id, nil).Name
		if left := ttl(t, h, name); left <= want-20*time.Second || left > want {
			t.Errorf("event %s lives for %s, want %s", id, left, want)
		}
	}
}

func ttl(t *testing.T, h Harness, name string) time.Duration {
	t.Helper()
	left, err := time.ParseDuration(do(t, h.Addr, "PTTL", name) + "ms")
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func garbageInClaims(t *testing.T, h Harness) {
	l := ledger(t, open(t, h.Addr))
	name := "statusrelay:event:" + claim.Of("issuer", "subject", "/source", "1", nil).Name
	for _, arrange := range [][]string{
		{"SET", name, ""}, {"SET", name, "x"}, {"SET", name, "\x00"}, {"SET", name, "a"}, {"RPUSH", name, "a"}, {"HSET", name, "a", "b"},
	} {
		do(t, h.Addr, "DEL", name)
		do(t, h.Addr, arrange...)
		e := take(t, l, "1", "a")
		if e.Verdict != claim.Free {
			t.Errorf("%q: got %s", arrange, e.Verdict)
		}
		e.Published = true
		l.Settle(t.Context(), []*claim.Event{e})
		if got := take(t, l, "1", "a").Verdict; got != claim.Published {
			t.Errorf("%q: then got %s", arrange, got)
		}
	}
}

// said is an update that says how an instance is, without a position.
func said(k status.Key, s status.RuntimeStatus) *status.Update {
	return &status.Update{Hub: k.Hub, InstanceID: k.InstanceID, Kind: status.KindLifecycle, RuntimeStatus: s}
}

// soFar is one that says how far, without a position.
func soFar(k status.Key, percent int) *status.Update {
	u := progress(k, 0, percent)
	u.Generation, u.Sequence = nil, nil
	return u
}

func purge(k status.Key) *status.Update {
	return &status.Update{Hub: k.Hub, InstanceID: k.InstanceID, Kind: status.KindPurged}
}

func stamp(t *testing.T, s *redisstore.Store, updates ...*status.Update) {
	t.Helper()
	for i, err := range s.Stamp(t.Context(), updates) {
		if err != nil || updates[i].Generation == nil || updates[i].Sequence == nil {
			t.Fatalf("stamp %d: %v", i, err)
		}
	}
}

// Of all replicas and batches, an instance's later stamp is the higher; its first
// is the clock of the server.
func stampsGrow(t *testing.T, h Harness) {
	a, b := open(t, h.Addr), open(t, h.Addr)
	other := status.Key{Hub: "orders", InstanceID: "ü}{%/" + strings.Repeat("x", 40)}
	before := time.Now().Add(-time.Minute)
	var last, first *status.Update
	for _, s := range []*redisstore.Store{a, b, a, b} {
		batch := []*status.Update{soFar(order, 1), soFar(other, 1), said(order, status.Running), soFar(order, 2), soFar(order, 3)}
		stamp(t, s, batch...)
		for _, u := range []*status.Update{batch[0], batch[2], batch[3], batch[4]} {
			if first == nil {
				first = u
			} else if *u.Sequence <= *last.Sequence || *u.Generation != *first.Generation {
				t.Errorf("got %d/%d after %d/%d", *u.Generation, *u.Sequence, *last.Generation, *last.Sequence)
			}
			last = u
		}
	}
	for _, at := range []time.Time{time.UnixMilli(*first.Generation), time.UnixMicro(*first.Sequence)} {
		if at.Before(before) || at.After(before.Add(2*time.Minute)) {
			t.Errorf("the first stamp is of %s", at)
		}
	}
	if left, want := ttl(t, h, "statusrelay:stamp:{orders/order-1}"), 7*24*time.Hour*9/8; left < want-time.Minute || left > want {
		t.Errorf("it lives for %s, want %s", left, want)
	}
	// A clock that went back, or a counter of somebody else.
	ahead := time.Now().Add(time.Hour).UnixMicro()
	do(t, h.Addr, "SET", "statusrelay:stamp:{orders/order-1}", fmt.Sprintf("%d %d -", *first.Generation, ahead))
	u := soFar(order, 4)
	if stamp(t, a, u); *u.Sequence != ahead+1 {
		t.Errorf("got %d after %d", *u.Sequence, ahead)
	}
}

// A run begins with Pending when the one before has ended, and with any status that
// goes on after a purge. Nothing else begins one.
func stampedRuns(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	generation, record := int64(0), (*status.Record)(nil)
	say := func(what string, u *status.Update, begins bool) {
		t.Helper()
		stamp(t, s, u)
		if newer := *u.Generation > generation; newer != begins || *u.Generation < generation {
			t.Errorf("%s: got generation %d after %d", what, *u.Generation, generation)
		}
		generation = *u.Generation
		if err := u.Validate(time.Now()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		record, _ = status.Merge(record, u)
	}
	shows := func(want status.RuntimeStatus) {
		t.Helper()
		if record.Lifecycle.RuntimeStatus != want || record.Purged {
			t.Errorf("the record shows %+v, want %s", record, want)
		}
	}
	say("first", said(order, status.Pending), true)
	say("pending again", said(order, status.Pending), false)
	say("running", said(order, status.Running), false)
	say("progress", soFar(order, 50), false)
	say("completed", said(order, status.Completed), false)
	say("rewound", said(order, status.Running), false)
	shows(status.Running)
	say("failed", said(order, status.Failed), false)
	liar := soFar(order, 60)
	liar.RuntimeStatus = status.Pending // of an activity, which is not believed
	say("late progress", liar, false)
	say("a second run", said(order, status.Pending), true)
	shows(status.Pending)
	if record.Progress.CustomStatus != nil {
		t.Error("the second run has the progress of the first")
	}
	say("ends", said(order, status.Terminated), false)
	say("purged", purge(order), false)
	if !record.Purged {
		t.Error("it is not purged")
	}
	say("purged again", purge(order), false)
	say("late end", said(order, status.Completed), false)
	say("late progress", soFar(order, 70), false)
	if !record.Purged {
		t.Error("what came late brought it back")
	}
	say("a third run", said(order, status.Running), true)
	shows(status.Running)
	batch := []*status.Update{said(order, status.Completed), said(order, status.Pending), said(order, status.Completed), said(order, status.Pending)}
	stamp(t, s, batch...)
	for i := range 3 {
		if a, b := *batch[i].Generation, *batch[i+1].Generation; (b > a) != (i != 1) {
			t.Errorf("in one batch: got generation %d after %d", b, a)
		}
	}
}

// Who has no stamp yet goes on with what the record says, whoever has declared it.
func stampsGoOnFromTheRecord(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	for name, c := range map[string]struct {
		record []*status.Update
		next   *status.Update
		begins bool
	}{
		"Running":         {[]*status.Update{lifecycle(order, 1, status.Running)}, soFar(order, 1), false},
		"RunningToEnd":    {[]*status.Update{lifecycle(order, 1, status.Running)}, said(order, status.Completed), false},
		"PendingTwice":    {[]*status.Update{lifecycle(order, 1, status.Pending)}, said(order, status.Pending), false},
		"EndedRewound":    {[]*status.Update{lifecycle(order, 1, status.Completed)}, said(order, status.Running), false},
		"EndedAndBegun":   {[]*status.Update{lifecycle(order, 1, status.Completed)}, said(order, status.Pending), true},
		"Purged":          {[]*status.Update{purged(order)}, said(order, status.Running), true},
		"ToBePurged":      {[]*status.Update{lifecycle(order, 1, status.Completed)}, purge(order), false},
		"OnlyProgress":    {[]*status.Update{progress(order, 1, 1)}, soFar(order, 2), false},
		"EndThenProgress": {[]*status.Update{lifecycle(order, 1, status.Failed)}, soFar(order, 2), false},
	} {
		do(t, h.Addr, "FLUSHALL")
		put(t, s, c.record...)
		u := c.next
		if stamp(t, s, u); *u.Generation == generation == c.begins || *u.Generation < generation {
			t.Errorf("%s: got generation %d, the record has %d", name, *u.Generation, generation)
		}
		if out := put(t, s, u); !out[0].Changed {
			t.Errorf("%s: the stamped update does nothing: %+v", name, out[0])
		}
	}
	// A record of which nobody has declared the generation.
	do(t, h.Addr, "FLUSHALL")
	bare := said(order, status.Running)
	bare.Broker = 7
	put(t, s, bare)
	u := soFar(order, 1)
	if stamp(t, s, u); *u.Generation != 0 {
		t.Errorf("got generation %d, the record has none", *u.Generation)
	}
}

func purged(k status.Key) *status.Update {
	g := generation
	u := purge(k)
	u.Generation = &g
	return u
}

func garbageInStamps(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	const name = "statusrelay:stamp:{orders/order-1}"
	far := time.Now().Add(time.Hour).UnixMilli()
	begun := time.Now().Add(-time.Minute).UnixMilli()
	for _, text := range []string{
		"", "x", "1 2", "1 2 z", "-1 2 -", "1.5 2 -", "1 2 - ", "99999999999999999999 1 -", fmt.Sprintf("%d 1 -", far), "\x00",
		fmt.Sprintf("%d 9007199254740991 -", begun), fmt.Sprintf("%d 99999999999999999999999 -", begun),
	} {
		do(t, h.Addr, "SET", name, text)
		u := soFar(order, 1)
		stamp(t, s, u)
		if err := u.Validate(time.Now()); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if *u.Generation < begun || *u.Sequence < 1000*begun {
			t.Errorf("%q: got %d/%d", text, *u.Generation, *u.Sequence)
		}
	}
	for _, record := range []string{"x", "[]", "7", `{"gen":"x"}`, `{"gen":-1}`, `{"gen":1e300}`, fmt.Sprintf(`{"gen":%d}`, far), `{"lifecycle":7}`, strings.Repeat("[", 2000)} {
		do(t, h.Addr, "DEL", name)
		do(t, h.Addr, "HSET", redisName(order), "r", record)
		u := soFar(order, 1)
		stamp(t, s, u)
		if err := u.Validate(time.Now()); err != nil {
			t.Errorf("%q: %v", record, err)
		}
	}
	do(t, h.Addr, "DEL", name, redisName(order))
	do(t, h.Addr, "RPUSH", name, "x")
	do(t, h.Addr, "SET", redisName(order), "x")
	stamp(t, s, soFar(order, 1))
}

func forgottenIngestScripts(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	l := ledger(t, s)
	for i := range 2 {
		do(t, h.Addr, "SCRIPT", "FLUSH")
		stamp(t, s, soFar(order, 1), soFar(status.Key{Hub: "orders", InstanceID: "b"}, 1))
		do(t, h.Addr, "SCRIPT", "FLUSH")
		if got := take(t, l, fmt.Sprint(i), "a").Verdict; got != claim.Free {
			t.Errorf("got %s", got)
		}
	}
}

// A command that is sent again, since its answer was lost, gives other stamps, and no
// other run; and it is the same attempt that has an event.
func lostStampAnswer(t *testing.T, h Harness) {
	proxy := StartProxy(t, h.Addr)
	s := open(t, proxy.Addr)
	l := ledger(t, s)
	batch := []*status.Update{said(order, status.Completed), said(order, status.Pending)}
	stamp(t, s, said(order, status.Running)) // the scripts are known
	take(t, l, "0", "a")
	proxy.LoseAnswer("evalsha")
	stamp(t, s, batch...)
	next := soFar(order, 1)
	stamp(t, s, next)
	if got := []int64{*batch[0].Sequence, *batch[1].Sequence, *next.Sequence}; !slices.IsSorted(got) || *next.Generation != *batch[1].Generation {
		t.Errorf("got sequences %d and generation %d after %d", got, *next.Generation, *batch[1].Generation)
	}
	proxy.LoseAnswer("evalsha")
	if got := take(t, l, "1", "a").Verdict; got != claim.Free {
		t.Errorf("got %s", got)
	}
}
