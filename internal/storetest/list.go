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
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

// The indexes of most tests here.
var (
	ofHub   = status.Index{Hub: "orders"}
	ofAlice = status.Index{Hub: "orders", Label: "owner", Value: "alice"}
	ofBob   = status.Index{Hub: "orders", Label: "owner", Value: "bob"}
)

// indexName is the name of an index's set and channel, as the package comment of
// redisstore promises it for a label and a value that need no escape.
func indexName(i status.Index) string {
	if i.Label == "" {
		return "statusrelay:index:{" + i.Hub + "}"
	}
	return "statusrelay:index:{" + i.Hub + "/" + i.Label + "/" + i.Value + "}"
}

// queryOf selects what an index holds.
func queryOf(i status.Index) *status.Query {
	q := &status.Query{Hub: i.Hub}
	if i.Label != "" {
		q.Labels = map[string]string{i.Label: i.Value}
	}
	return q
}

// owned says how far somebody's instance is.
func owned(id, owner string, sequence int64) *status.Update {
	u := progress(status.Key{Hub: "orders", InstanceID: id}, sequence, int(sequence))
	u.Labels = map[string]string{"owner": owner}
	return u
}

// newer is the same in a later generation.
func newer(u *status.Update, by int64) *status.Update {
	*u.Generation += by
	return u
}

// pages lists all that a query selects, n members of the index a page.
func pages(t testing.TB, s *redisstore.Store, q *status.Query, n int) []*status.Record {
	t.Helper()
	var all []*status.Record
	for at, round := (status.Cursor{}), 0; ; round++ {
		page, err := s.List(t.Context(), q, at, n)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Records) != len(page.After) || len(page.Records) > n {
			t.Fatalf("got %d records with %d places on a page of %d", len(page.Records), len(page.After), n)
		}
		all = append(all, page.Records...)
		if at = page.Next; at == (status.Cursor{}) {
			return all
		}
		if round > 20_000 {
			t.Fatal("the list has no end")
		}
	}
}

func idsOf(records []*status.Record) []string {
	ids := make([]string, len(records))
	for i, r := range records {
		ids[i] = r.InstanceID
	}
	return ids
}

// wantList checks what a list has, in its order.
func wantList(t testing.TB, s *redisstore.Store, i status.Index, ids ...string) {
	t.Helper()
	for _, n := range []int{1, 2, 100} {
		if got := idsOf(pages(t, s, queryOf(i), n)); !slices.Equal(got, ids) {
			t.Errorf("%+v by %d: got %q, want %q", i, n, got, ids)
		}
	}
}

// members is what an index holds.
func members(t testing.TB, h Harness, i status.Index) []string {
	t.Helper()
	answer := do(t, h.Addr, "ZRANGE", indexName(i), "0", "-1")
	if answer == "" {
		return nil
	}
	return strings.Split(answer, "\n")
}

func wantMembers(t testing.TB, h Harness, i status.Index, ids ...string) {
	t.Helper()
	got := members(t, h, i)
	slices.Sort(got)
	slices.Sort(ids)
	if !slices.Equal(got, ids) {
		t.Errorf("%+v holds %q, want %q", i, got, ids)
	}
}

func intervalIsTheMean(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, progress(order, 1, 1))
	if r := latest(t, s, order); r.Interval != 0 {
		t.Errorf("got %s after one change", r.Interval)
	}
	first := latest(t, s, order).Version
	put(t, s, progress(order, 2, 2))
	second := latest(t, s, order)
	mean := second.Version - first
	if got := second.Interval.Microseconds(); got != mean {
		t.Errorf("got %d µs after two changes, want %d", got, mean)
	}
	// A position alone is no change, a new generation is one like any other.
	put(t, s, progress(order, 3, 2))
	put(t, s, newer(progress(order, 1, 1), 1))
	third := latest(t, s, order)
	if got, want := third.Interval.Microseconds(), (3*mean+third.Version-second.Version)/4; got != want {
		t.Errorf("got %d µs after three changes, want %d", got, want)
	}
	for _, c := range []struct {
		field string
		want  time.Duration
	}{
		{"9007199254740991", 9007199254740991 * time.Microsecond},
		{"", 0},
		{"-1", 0},
		{"1.5", 0},
		{"soon", 0},
		{"9007199254740992", 0},
		{"1e300", 0},
		{"inf", 0},
		{"nan", 0},
	} {
		do(t, h.Addr, "HSET", redisName(order), "i", c.field)
		for range 2 { // decoded, and remembered
			if r := latest(t, s, order); r == nil || r.Interval != c.want || r.Version != third.Version {
				t.Errorf("interval %q: got %+v, want %s", c.field, r, c.want)
			}
		}
		if r := latest(t, open(t, h.Addr), order); r == nil || r.Interval != c.want {
			t.Errorf("interval %q: got %+v, want %s", c.field, r, c.want)
		}
	}
	before := latest(t, s, order)
	put(t, s, newer(progress(order, 2, 2), 1))
	if after := latest(t, s, order); after.Interval.Microseconds() != after.Version-before.Version {
		t.Errorf("got %s, want the last interval: the mean was none", after.Interval)
	}
}

func newestChangeFirst(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	for n, id := range []string{"a", "b", "c", "d"} {
		put(t, s, owned(id, []string{"alice", "bob"}[n%2], 1))
	}
	wantList(t, s, ofHub, "d", "c", "b", "a")
	put(t, s, owned("b", "bob", 2))
	wantList(t, s, ofHub, "b", "d", "c", "a")
	wantList(t, s, ofBob, "b", "d")
	wantList(t, s, ofAlice, "c", "a")
	wantList(t, s, status.Index{Hub: "other"})

	put(t, s, lifecycle(status.Key{Hub: "orders", InstanceID: "d"}, 1, status.Completed))
	q := queryOf(ofBob)
	q.RuntimeStatus = []status.RuntimeStatus{status.Completed}
	if got := idsOf(pages(t, s, q, 1)); !slices.Equal(got, []string{"d"}) {
		t.Errorf("got %q, want what has ended", got)
	}
	// Of a label that has no index, the hub's index is looked through.
	u := owned("e", "bob", 1)
	u.Labels["color"] = "red"
	put(t, s, u)
	q = &status.Query{Hub: "orders", Labels: map[string]string{"color": "red"}}
	if got := idsOf(pages(t, s, q, 2)); !slices.Equal(got, []string{"e"}) {
		t.Errorf("got %q, want the red one", got)
	}
	page, err := s.List(t.Context(), q, status.Cursor{}, 3)
	if err != nil || len(page.Records) != 1 || page.Next.Version == 0 || page.After[0].Version != page.Records[0].Version {
		t.Errorf("got %+v, %v", page, err)
	}
	for _, c := range []struct {
		from status.Cursor
		n    int
	}{{status.Cursor{Version: -1}, 1}, {status.Cursor{Version: 1 << 53}, 1}, {status.Cursor{Version: 1, Ties: -1}, 1}, {status.Cursor{Ties: 1}, 1}, {status.Cursor{}, 0}} {
		if _, err := s.List(t.Context(), q, c.from, c.n); !errors.Is(err, status.ErrInvalid) {
			t.Errorf("%+v: got %v, want invalid", c, err)
		}
	}
}

func tiesAreAllListed(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	var want []string
	now := micros(t, h)
	for n := range 23 {
		id, version := fmt.Sprintf("i-%02d", n), strconv.FormatInt(now+int64(n/7), 10)
		put(t, s, owned(id, "alice", 1))
		do(t, h.Addr, "HSET", redisName(status.Key{Hub: "orders", InstanceID: id}), "v", version)
		do(t, h.Addr, "ZADD", indexName(ofAlice), version, id)
		want = append(want, id)
	}
	slices.Reverse(want)
	for n := 1; n < 25; n++ {
		if got := idsOf(pages(t, s, queryOf(ofAlice), n)); !slices.Equal(got, want) {
			t.Errorf("by %d: got %q, want %q", n, got, want)
		}
	}
	// The place behind a record is where the next page goes on, wherever it is.
	whole, err := s.List(t.Context(), queryOf(ofAlice), status.Cursor{}, 100)
	if err != nil {
		t.Fatal(err)
	}
	for n, at := range whole.After {
		page, err := s.List(t.Context(), queryOf(ofAlice), at, 100)
		if err != nil || !slices.Equal(idsOf(page.Records), want[n+1:]) {
			t.Errorf("behind %d: got %q, %v", n, idsOf(page.Records), err)
		}
	}
	// Who is gone is not counted among those to skip.
	for _, id := range []string{"i-20", "i-19", "i-16"} {
		do(t, h.Addr, "DEL", redisName(status.Key{Hub: "orders", InstanceID: id}))
		want = slices.DeleteFunc(want, func(have string) bool { return have == id })
	}
	if got := idsOf(pages(t, s, queryOf(ofAlice), 3)); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func thousandsArePaged(t *testing.T, h Harness) {
	const total = 10_000
	s := open(t, h.Addr)
	r := rand.New(rand.NewPCG(1, 2))
	owners := make(map[string]int)
	for range total / 1000 {
		var batch []*status.Update
		for range 1000 {
			owner := fmt.Sprint("owner-", r.IntN(3))
			batch = append(batch, owned(fmt.Sprintf("i-%05d", len(batch)+1000*owners["batches"]), owner, 1))
			owners[owner]++
		}
		owners["batches"]++
		put(t, s, batch...)
	}
	check := func(q *status.Query, n, want int) {
		t.Helper()
		all, last := pages(t, s, q, n), int64(1<<53)
		seen := make(map[string]bool)
		for _, r := range all {
			if r.Version > last || seen[r.InstanceID] {
				t.Fatalf("%s at %d after %d, seen before: %v", r.InstanceID, r.Version, last, seen[r.InstanceID])
			}
			last, seen[r.InstanceID] = r.Version, true
		}
		if len(seen) != want {
			t.Errorf("by %d: got %d, want %d", n, len(seen), want)
		}
	}
	check(queryOf(ofHub), 100, total)
	check(queryOf(ofHub), 333, total)
	check(queryOf(status.Index{Hub: "orders", Label: "owner", Value: "owner-1"}), 77, owners["owner-1"])
}

func whoLeavesAnIndexIsGone(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	purge := func(id string, g int64) *status.Update {
		u := newer(progress(status.Key{Hub: "orders", InstanceID: id}, 1, 1), g)
		u.Kind, u.CustomStatus = status.KindPurged, nil
		return u
	}
	for _, by := range []*redisstore.Store{s, open(t, h.Addr)} { // one remembers what was before, one reads it
		do(t, h.Addr, "FLUSHALL")
		put(t, s, owned("replaced", "alice", 1), owned("disputed", "alice", 1), owned("purged", "alice", 1), owned("stays", "alice", 1), owned("again", "alice", 1))
		put(t, by,
			newer(owned("replaced", "bob", 1), 1), owned("disputed", "bob", 2), purge("purged", 0),
			newer(owned("again", "bob", 1), 1), newer(owned("again", "alice", 1), 2))
		wantMembers(t, h, ofAlice, "stays", "again")
		wantMembers(t, h, ofBob, "replaced")
		wantMembers(t, h, ofHub, "replaced", "disputed", "stays", "again")
		wantList(t, s, ofAlice, "again", "stays")
		wantList(t, s, ofHub, "again", "disputed", "replaced", "stays")
		put(t, by, newer(owned("purged", "bob", 1), 1))
		wantMembers(t, h, ofBob, "replaced", "purged")
		if n := do(t, h.Addr, "EXISTS", indexName(status.Index{Hub: "orders", Label: "tenant"})); n != "0" {
			t.Error("there is an index of a value that nobody has")
		}
	}
	// A tombstone whose hub's index was not written, and which nobody remembers.
	do(t, h.Addr, "ZADD", indexName(ofHub), "5", "purged")
	put(t, s, purge("purged", 2))
	do(t, h.Addr, "ZADD", indexName(ofHub), "5", "purged")
	put(t, open(t, h.Addr), purge("purged", 2))
	if slices.Contains(members(t, h, ofHub), "purged") {
		t.Error("a duplicate of the purge left the instance in the index")
	}
}

func indexesLive(t *testing.T, h Harness) {
	for _, c := range [][2]time.Duration{{time.Hour, time.Minute}, {time.Minute, time.Hour}} {
		do(t, h.Addr, "FLUSHALL")
		s := open(t, h.Addr, func(o *redisstore.Options) { o.TTL, o.TerminalTTL = c[0], c[1] })
		put(t, s, owned("a", "alice", 1))
		for _, i := range []status.Index{ofHub, ofAlice} {
			ms, err := strconv.ParseInt(do(t, h.Addr, "PTTL", indexName(i)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if lives := time.Duration(ms) * time.Millisecond; lives < time.Hour || lives > time.Hour+time.Hour/8 {
				t.Errorf("%+v lives %s, want an hour and not an eighth longer", i, lives)
			}
		}
		// It lives as long again when less is left than its member's record lives, and
		// not for every version.
		sequence := int64(1)
		for _, left := range []string{"3610000", "3590000", "persist"} {
			words := []string{"PEXPIRE", indexName(ofAlice), left}
			if left == "persist" {
				words = []string{"PERSIST", indexName(ofAlice)}
			}
			do(t, h.Addr, words...)
			sequence++
			put(t, s, owned("a", "alice", sequence))
			ms, err := strconv.ParseInt(do(t, h.Addr, "PTTL", indexName(ofAlice)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if lives := time.Duration(ms) * time.Millisecond; lives < time.Hour || (lives < time.Hour+10*time.Second) != (left == "3610000") && lives != time.Hour+10*time.Second {
				t.Errorf("lives %s after %s ms", lives, left)
			}
		}
	}

	// Members older than any record are dropped when it comes to live longer.
	s := open(t, h.Addr, func(o *redisstore.Options) { o.TTL, o.TerminalTTL = time.Minute, time.Hour })
	do(t, h.Addr, "FLUSHALL")
	now := micros(t, h)
	do(t, h.Addr, "ZADD", indexName(ofHub),
		strconv.FormatInt(now-time.Hour.Microseconds()-1, 10), "old", strconv.FormatInt(now-50*time.Minute.Microseconds(), 10), "young")
	put(t, s, owned("a", "alice", 1))
	wantMembers(t, h, ofHub, "a", "young")
	// Of the others, whoever finds them without a record drops them.
	wantList(t, s, ofHub, "a")
	wantMembers(t, h, ofHub, "a")
}

func lostIndexIsRebuilt(t *testing.T, h Harness) {
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.IndexLabels = []string{}; o.Metrics = registry })
	var want []string
	for n := range 500 {
		id := fmt.Sprintf("i %03d{%%}", n) // one that needs an escape
		put(t, s, owned(id, []string{"alice", "bob"}[n%2], 1))
		want = append(want, id)
	}
	slices.Reverse(want)
	purged := progress(status.Key{Hub: "orders", InstanceID: "purged"}, 1, 1)
	purged.Kind, purged.CustomStatus = status.KindPurged, nil
	put(t, s, purged)
	if n := do(t, h.Addr, "EXISTS", indexName(ofAlice)); n != "0" {
		t.Fatal("there is an index of a label that has none")
	}
	do(t, h.Addr, "DEL", indexName(ofHub))
	// What is no instance of ours is left alone.
	do(t, h.Addr, "HSET", "statusrelay:{orders", "v", "1")
	do(t, h.Addr, "HSET", "statusrelay:{orders/%zz}", "v", "1")
	do(t, h.Addr, "HSET", "statusrelay:{orders/%69%20000%7B%25%7D}", "v", "1") // another spelling of the first
	do(t, h.Addr, "SET", "statusrelay:{orders/text}", "1")
	do(t, h.Addr, "HSET", "statusrelay2:{orders/x}", "v", "1", "s", "1", "r", `{"hub":"orders","id":"x"}`)
	do(t, h.Addr, "HSET", redisName(status.Key{Hub: "orders", InstanceID: "corrupt"}), "v", "1", "s", "1", "r", `{`)

	labelled := open(t, h.Addr) // by default there is an index of owners
	f := follow(t, labelled)
	f.subscribeLists(ofHub)
	for range 2 {
		told := 0
		n, err := labelled.Reindex(t.Context(), func(n int) { told = n })
		if err != nil || n != len(want)+1 || told != n {
			t.Fatalf("got %d, %v and was told of %d, want %d", n, err, told, len(want)+1)
		}
		wantMembers(t, h, ofHub, slices.Clone(want)...)
		if got := idsOf(pages(t, s, queryOf(ofHub), 100)); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if got := len(members(t, h, ofAlice)); got != 250 {
			t.Errorf("got %d of alice, want 250", got)
		}
	}
	f.wantTouched(ofHub, want...)
	if _, err := labelled.Reindex(t.Context(), nil); err != nil {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Reindex(gone, nil); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("got %v, want unavailable", err)
	}
}

// A glob in the prefix is a text like any other.
func prefixIsNoPattern(t *testing.T, h Harness) {
	prefix := `a*[b]?\`
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Prefix = prefix })
	other := open(t, h.Addr, func(o *redisstore.Options) { o.Prefix = `axb?\` })
	put(t, s, owned("a", "alice", 1))
	put(t, other, owned("b", "alice", 1))
	do(t, h.Addr, "DEL", prefix+":index:{orders}")
	if n, err := s.Reindex(t.Context(), nil); err != nil || n != 1 {
		t.Fatalf("got %d, %v, want 1", n, err)
	}
	wantList(t, s, ofHub, "a")
	wantList(t, other, ofHub, "b")
	for _, p := range []string{prefix, `axb?\`} {
		do(t, h.Addr, "ZADD", p+":index:{orders}", "5", "gone")
	}
	if n, err := s.SweepIndexes(t.Context()); err != nil || n != 1 {
		t.Fatalf("swept %d, %v, want 1", n, err)
	}
}

func garbageInAnIndex(t *testing.T, h Harness) {
	registry := prometheus.NewRegistry()
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Metrics = registry })
	corrupt := func() float64 { return counted(t, registry, "statusrelay_redisstore_corrupt_indexes_total") }
	put(t, s, owned("a", "alice", 1), owned("b", "alice", 1))
	name, now := indexName(ofAlice), micros(t, h)
	at := func(ago int64) string { return strconv.FormatInt(now-ago, 10) }
	do(t, h.Addr, "ZADD", name,
		at(-9), "", at(-8), "@x", at(-7), "x/y", at(-6), "x\ny", at(-5), "\xff", at(-4), strings.Repeat("x", 257),
		"inf", "above", "-inf", "below", "9007199254740992", "inexact", "0", "zero", "-5", "negative",
		"1.5", "fraction", at(-3), "nobody")
	wantList(t, s, ofAlice, "b", "a")
	if corrupt() == 0 {
		t.Error("nothing is counted as corrupt")
	}
	// What no list looks at is dropped when the index is to live longer.
	do(t, h.Addr, "PEXPIRE", name, "600000")
	put(t, s, owned("c", "alice", 1))
	wantMembers(t, h, ofAlice, "a", "b", "c")
	wantList(t, s, ofAlice, "c", "b", "a")

	// Members of other instances, of tombstones and of records not to be believed.
	put(t, s, owned("bobs", "bob", 1), newer(owned("purged", "alice", 1), 0), owned("corrupt", "alice", 1))
	purge := owned("purged", "alice", 2)
	purge.Kind, purge.CustomStatus = status.KindPurged, nil
	put(t, s, purge)
	do(t, h.Addr, "HSET", redisName(status.Key{Hub: "orders", InstanceID: "corrupt"}), "r", "{")
	do(t, h.Addr, "ZADD", name, at(-90), "bobs", at(-91), "purged")
	wantList(t, s, ofAlice, "c", "b", "a")
	wantMembers(t, h, ofAlice, "a", "b", "c")
	wantMembers(t, h, ofBob, "bobs")

	// Scores that are not the record's version: too small, too great, beyond all.
	version := strconv.FormatInt(latest(t, s, status.Key{Hub: "orders", InstanceID: "a"}).Version, 10)
	for _, score := range []string{at(1_000_000), at(-1_000_000), at(-1_000_000) + ".5", version + ".5", "9007199254740991", "5"} {
		do(t, h.Addr, "ZADD", name, score, "a")
		pages(t, s, queryOf(ofAlice), 2)
		if got := do(t, h.Addr, "ZSCORE", name, "a"); got != version {
			t.Errorf("score %s: got %s after a list, want %s", score, got, version)
		}
		wantList(t, s, ofAlice, "c", "b", "a")
	}
	do(t, h.Addr, "ZADD", name, "inf", "a", "inf", "b")
	put(t, s, owned("a", "alice", 2))
	if got, want := do(t, h.Addr, "ZSCORE", name, "a"), latest(t, s, status.Key{Hub: "orders", InstanceID: "a"}).Version; got != fmt.Sprint(want) {
		t.Errorf("got score %s, want %d", got, want)
	}

	// Another type: counts as empty, and is replaced.
	before := corrupt()
	do(t, h.Addr, "DEL", name)
	do(t, h.Addr, "SET", name, "a string")
	wantList(t, s, ofAlice)
	if corrupt() == before {
		t.Error("an index of another type is not counted")
	}
	put(t, s, owned("a", "alice", 3), owned("c", "alice", 3))
	wantMembers(t, h, ofAlice, "a", "c")
}

// Whoever wrote the record and not yet the index will find it done, and say
// nothing.
func correctionsPublish(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, owned("a", "alice", 1), owned("b", "alice", 1))
	f := follow(t, s)
	f.subscribeLists(ofAlice)
	do(t, h.Addr, "ZADD", indexName(ofAlice), "77", "a")
	do(t, h.Addr, "DEL", redisName(status.Key{Hub: "orders", InstanceID: "b"}))
	pages(t, s, queryOf(ofAlice), 100)
	f.wantTouched(ofAlice, "a", "b")
	wantMembers(t, h, ofAlice, "a")
}

// A crash between record and index is repaired when the message comes again.
func redeliveryIndexes(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	for _, by := range []*redisstore.Store{s, open(t, h.Addr)} {
		put(t, s, owned("a", "alice", 2))
		do(t, h.Addr, "DEL", indexName(ofHub), indexName(ofAlice))
		for _, u := range []*status.Update{owned("a", "alice", 2), owned("a", "alice", 1)} { // a duplicate, a stale one
			do(t, h.Addr, "DEL", indexName(ofAlice))
			put(t, by, u)
			wantList(t, s, ofAlice, "a")
			wantList(t, s, ofHub, "a")
		}
	}
}

func lostIndexAnswer(t *testing.T, h Harness) {
	p := StartProxy(t, h.Addr)
	s := open(t, p.Addr)
	put(t, s, owned("a", "alice", 1))
	p.LoseAnswer(indexName(ofAlice))
	put(t, s, owned("a", "alice", 2), owned("b", "bob", 1))
	wantList(t, s, ofAlice, "a")
	wantList(t, s, ofHub, "b", "a")
}

func scoresNeverSink(t *testing.T, h Harness) {
	const writers, rounds, instances = 4, 60, 5
	var stores [writers]*redisstore.Store
	for w := range stores {
		stores[w] = open(t, h.Addr, func(o *redisstore.Options) { o.CacheBytes = []int{0, -1}[w%2] })
	}
	done := make(chan struct{})
	var watching, writing sync.WaitGroup
	watching.Go(func() {
		last := make(map[string]int64)
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
			}
			answer, err := Do(h.Addr, "ZRANGE", indexName(ofHub), "0", "-1", "WITHSCORES")
			if err != nil {
				t.Error(err)
				return
			}
			fields := strings.Fields(answer)
			for n := 0; n+1 < len(fields); n += 2 {
				score, _ := strconv.ParseInt(fields[n+1], 10, 64)
				if score < last[fields[n]] {
					t.Errorf("%s sank from %d to %d", fields[n], last[fields[n]], score)
				}
				last[fields[n]] = score
			}
		}
	})
	for w, s := range stores {
		writing.Go(func() {
			for n := range rounds {
				var batch []*status.Update
				for i := range instances {
					// Owners come and go with the generations.
					batch = append(batch, newer(owned(fmt.Sprint("i-", i), []string{"alice", "bob"}[n/7%2], int64(n*writers+w)), int64(n/7)))
				}
				_, errs := s.Put(t.Context(), batch)
				if err := errors.Join(errs...); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	close(done)
	watching.Wait()
	for i := range instances {
		k := status.Key{Hub: "orders", InstanceID: fmt.Sprint("i-", i)}
		r := latest(t, stores[0], k)
		for _, index := range r.Indexes([]string{"owner"}) {
			if score := do(t, h.Addr, "ZSCORE", indexName(index), k.InstanceID); score != fmt.Sprint(r.Version) {
				t.Errorf("%s in %+v: score %s, want %d", k, index, score, r.Version)
			}
		}
	}
}

func anyLabelIsSafe(t *testing.T, h Harness) {
	odd := []string{"", " ", "a", "a/b", "{", "}", "{}", "%", "%2F", "/", "a:b", "a\nb", "\x00", "日本", "*", strings.Repeat("界", 64)}
	labels := odd[1:]
	s := open(t, h.Addr, func(o *redisstore.Options) { o.IndexLabels = labels })
	f := follow(t, s)
	var all []status.Index
	for n, value := range odd {
		u := progress(status.Key{Hub: "orders", InstanceID: fmt.Sprint("i-", n)}, 1, 1)
		u.Labels = make(map[string]string)
		for _, name := range labels {
			u.Labels[name] = value
			all = append(all, status.Index{Hub: "orders", Label: name, Value: value})
		}
		if n == 0 {
			f.subscribeLists(all...)
		}
		put(t, s, u)
	}
	for _, i := range all {
		want := fmt.Sprint("i-", slices.Index(odd, i.Value))
		if got := idsOf(pages(t, s, queryOf(i), 10)); i.Label == labels[0] && !slices.Equal(got, []string{want}) {
			t.Errorf("%+v: got %q, want %q", i, got, want)
		}
		if i.Value == odd[0] {
			f.wantTouched(i, want)
		}
	}
	names := strings.Split(do(t, h.Addr, "KEYS", "statusrelay:index:*"), "\n")
	if want := len(odd)*len(labels) + 1; len(names) != want {
		t.Errorf("got %d indexes, want %d", len(names), want)
	}
	for _, name := range names {
		if strings.Count(name, "{") != 1 || strings.Count(name, "}") != 1 || !strings.HasSuffix(name, "}") {
			t.Errorf("%s is not one hash tag", name)
		}
	}
}

func touchTellsOfEveryChange(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	f.subscribeLists(ofHub, ofAlice, ofAlice)
	steps := []struct {
		updates    []*status.Update
		hub, alice []string
	}{
		{[]*status.Update{owned("a", "alice", 1), owned("b", "bob", 1), owned("a", "alice", 2)}, []string{"a", "b"}, []string{"a"}},
		{[]*status.Update{owned("a", "alice", 3)}, []string{"a"}, []string{"a"}},
		{[]*status.Update{owned("a", "bob", 4)}, []string{"a"}, []string{"a"}}, // left: in conflict
		{[]*status.Update{newer(owned("a", "alice", 1), 1)}, []string{"a"}, []string{"a"}},
		{[]*status.Update{newer(owned("a", "carol", 1), 2)}, []string{"a"}, []string{"a"}},
		{[]*status.Update{newer(owned("a", "carol", 2), 2)}, []string{"a"}, nil},
		{[]*status.Update{newer(owned("a", "carol", 2), 2)}, nil, nil}, // a duplicate
	}
	for n, step := range steps {
		f.clearTouched()
		put(t, s, step.updates...)
		put(t, s, owned(fmt.Sprint("marker-", n), "alice", 1))
		f.wantTouched(ofHub, append(step.hub, fmt.Sprint("marker-", n))...)
		f.wantTouched(ofAlice, append(step.alice, fmt.Sprint("marker-", n))...)
	}
	// A duplicate in the same batch hides nobody's change.
	put(t, s, newer(owned("a", "carol", 2), 2), owned("fresh", "alice", 1))
	eventually(t, "the hub's list is touched by who is new", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return slices.Contains(f.touched[ofHub], "fresh")
	})
	// Messages are of bounded size, whatever the batch.
	f.clearTouched()
	var batch []*status.Update
	var ids []string
	for n := range 1000 {
		ids = append(ids, fmt.Sprint("i-", n))
		batch = append(batch, owned(ids[n], "alice", 1))
	}
	put(t, s, batch...)
	f.wantTouched(ofHub, ids...)
	if n := f.largestTouch(); n > 128 {
		t.Errorf("a message named %d instances", n)
	}
	f.UnsubscribeLists([]status.Index{ofAlice, ofBob})
	eventually(t, "the channel is left", func() bool {
		_, n, _ := strings.Cut(do(t, h.Addr, "PUBSUB", "NUMSUB", indexName(ofAlice)), "\n")
		return n == "0"
	})
	f.clearTouched()
	put(t, s, owned("last", "alice", 1))
	f.wantTouched(ofHub, "last")
	f.wantTouched(ofAlice)
	// Who is told of nothing subscribes all the same.
	deaf := s.Follow(redisstore.FollowOptions{Offer: func(*status.Record) {}, Gap: func() {}})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = deaf.Run(ctx) })
	if err := deaf.SubscribeLists(ctx, []status.Index{ofHub}); err != nil {
		t.Error(err)
	}
	put(t, s, owned("last", "alice", 2))
	f.wantTouched(ofHub, "last")
	cancel()
	running.Wait()
}

func gapsCoverLists(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	p := StartProxy(t, h.Addr)
	f := follow(t, open(t, p.Addr))
	f.subscribeLists(ofAlice)
	f.subscribe(order)
	p.Cut()
	f.restored(1)
	put(t, s, owned("a", "alice", 1), progress(order, 1, 1))
	f.wantTouched(ofAlice, "a")
	f.want(order, `{"percent":1}`)
	for n, payload := range []string{"", "\n", "a\n", "@x", "x/y", "a\nb/c", "\xff", strings.Repeat("a\n", 128) + "a"} {
		do(t, h.Addr, "PUBLISH", indexName(ofAlice), payload)
		f.restored(int64(n) + 2)
	}
	f.clearTouched()
	do(t, h.Addr, "PUBLISH", indexName(ofAlice), strings.Repeat("a\n", 127)+"a")
	f.wantTouched(ofAlice, "a")
}

func indexScriptForgotten(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	for n := range int64(3) {
		put(t, s, owned("a", "alice", n), owned("b", "bob", n))
		wantList(t, s, ofAlice, "a")
		do(t, h.Addr, "SCRIPT", "FLUSH")
	}
}

func ticketsAreTakenOnce(t *testing.T, h Harness) {
	s, other := open(t, h.Addr), open(t, h.Addr)
	if _, err := s.TakeTicket(t.Context(), "none"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("got %v, want not found", err)
	}
	for _, id := range []string{"a", "a/b", "{}", "日本 %"} {
		payload := []byte("who\x00 " + id)
		if err := s.SaveTicket(t.Context(), id, payload, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := other.SaveTicket(t.Context(), id, []byte("mallory"), time.Minute); !errors.Is(err, status.ErrUnavailable) {
			t.Errorf("got %v for an id in use, want unavailable", err)
		}
		var taking sync.WaitGroup
		got := make(chan string, 20)
		for n := range cap(got) {
			taking.Go(func() {
				switch taken, err := []*redisstore.Store{s, other}[n%2].TakeTicket(t.Context(), id); {
				case err == nil:
					got <- string(taken)
				case !errors.Is(err, status.ErrNotFound):
					t.Error(err)
				}
			})
		}
		taking.Wait()
		if len(got) != 1 || <-got != string(payload) {
			t.Errorf("%q was taken by %d, or is another's", id, len(got)+1)
		}
	}
	if err := s.SaveTicket(t.Context(), "a", nil, 0); err == nil {
		t.Error("a ticket that lives for ever was saved")
	}
	if err := s.SaveTicket(t.Context(), "brief", []byte("x"), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	if ms, err := strconv.Atoi(do(t, h.Addr, "PTTL", "statusrelay:ticket:brief")); err != nil || ms <= 0 || ms > 30_000 {
		t.Errorf("lives %d ms, %v", ms, err)
	}
	do(t, h.Addr, "HSET", "statusrelay:ticket:hash", "a", "b")
	if _, err := s.TakeTicket(t.Context(), "hash"); !errors.Is(err, status.ErrNotFound) {
		t.Errorf("got %v for what is no ticket, want not found", err)
	}
}

// What is allowed to a user of Redis who is to run the relay: these commands, on
// its keys and channels.
func ordinaryCommandsSuffice(t *testing.T, h Harness) {
	h.Real.Do(append([]string{"ACL", "SETUSER", "relay", "on", ">secret", "~statusrelay:*", "&statusrelay:*"}, strings.Fields(
		"+hello +client|setname +ping +hmget +hset +hgetall +hdel +pexpire +publish +subscribe +unsubscribe +eval +evalsha +time"+
			" +pttl +zscore +zadd +zrem +zremrangebyscore +zremrangebyrank +zrevrangebyscore +del +scan +get +set +multi +exec")...)...)
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Username, o.Password = "relay", "secret" })
	f := follow(t, s)
	f.subscribe(order)
	f.subscribeLists(ofHub)
	put(t, s, owned("a", "alice", 1), progress(order, 1, 1))
	put(t, s, newer(owned("a", "bob", 1), 1))
	f.want(order, `{"percent":1}`)
	f.wantTouched(ofHub, "a", order.InstanceID)
	h.Real.Do("SET", indexName(ofAlice), "x")
	put(t, s, owned("b", "alice", 1))
	h.Real.Do("DEL", redisName(status.Key{Hub: "orders", InstanceID: "b"}))
	h.Real.Do("ZADD", indexName(ofAlice), "5", "@")
	wantList(t, s, ofAlice)
	wantMembers(t, h, ofAlice)
	if n, err := s.Reindex(t.Context(), nil); err != nil || n != 2 {
		t.Errorf("got %d, %v", n, err)
	}
	h.Real.Do("ZADD", indexName(ofBob), "5", "nobody", "6", "@")
	if n, err := s.SweepIndexes(t.Context()); err != nil || n != 2 {
		t.Errorf("swept %d, %v, want 2", n, err)
	}
	if err := s.SaveTicket(t.Context(), "a", []byte("x"), time.Minute); err != nil {
		t.Error(err)
	}
	if _, err := s.TakeTicket(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	eventually(t, "ready", f.Ready)

	do(t, h.Addr, "SET", wantedName("orders"), "text")
	e := listen(t, s, "orders")
	announce(t, s, time.Minute, "orders", "a")
	do(t, h.Addr, "ZADD", wantedName("orders"), fmt.Sprint(time.Now().Add(time.Minute).UnixMilli()), "@")
	if !slices.Contains(interested(t, s, "orders"), "a") {
		t.Error("what was announced is not wanted")
	}
	eventually(t, "heard", func() bool { return e.heard("a") == 1 })
	for n, holder := range []string{"a", "a", "b"} {
		if leased(t, s, "bridge", holder, time.Minute) != (n < 2) {
			t.Errorf("the lease that %s asks for as number %d", holder, n)
		}
	}
	if err := s.Release(t.Context(), "bridge", "a"); err != nil {
		t.Error(err)
	}

	sockets, other := count(t, h.Addr, time.Hour, asRelay), count(t, h.Addr, time.Hour)
	do(t, h.Addr, "SET", sockets.name("alice"), "text")
	if !sockets.may(t, "alice", 1) || other.may(t, "alice", 1) {
		t.Error("sockets are not counted together")
	}
}

// asRelay logs in as the user of that name.
func asRelay(o *redisstore.Options) { o.Username, o.Password = "relay", "secret" }

// An index that cannot be written leaves its update undone: it comes again.
func unwritableIndex(t *testing.T, h Harness) {
	h.Real.Do("ACL", "SETUSER", "relay", "on", ">secret", "~statusrelay:{*", "~statusrelay:index:{orders}", "&*", "+@all")
	s := open(t, h.Addr, func(o *redisstore.Options) { o.Username, o.Password = "relay", "secret" })
	out, errs := s.Put(t.Context(), []*status.Update{owned("a", "alice", 1), progress(order, 1, 1), owned("b", "bob", 1)})
	for _, n := range []int{0, 2} {
		if !errors.Is(errs[n], status.ErrUnavailable) || out[n] != (status.Outcome{}) {
			t.Errorf("got %+v, %v, want nothing and unavailable", out[n], errs[n])
		}
	}
	if errs[1] != nil {
		t.Errorf("got %v for who is in no such index", errs[1])
	}
	h.Real.Do("ACL", "SETUSER", "relay", "allkeys")
	if out := put(t, s, owned("a", "alice", 1)); out[0].Changed {
		t.Errorf("got %+v, want no change: the record was written", out[0])
	}
	wantList(t, s, ofAlice, "a")
}
