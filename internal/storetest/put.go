package storetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/claim"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

func putIsLatest(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	if r := latest(t, s, order); r != nil {
		t.Fatalf("got %+v before anything was put", r)
	}
	u := progress(order, 7, 40)
	u.Kind, u.RuntimeStatus, u.Name = status.KindSnapshot, status.Failed, "Process “Order”"
	u.Output, u.Failure = json.RawMessage(`null`), &status.Failure{Type: "E", Message: "line\nline"}
	u.CreatedTime, u.LastUpdatedTime = time.UnixMilli(1).UTC(), time.Unix(2, 3).UTC()
	u.ExecutionID, u.ParentInstanceID, u.RootInstanceID = "e", "p", "r"
	u.Labels = map[string]string{"owner": "alice", "tenant": "<north>"}
	conflict := progress(order, 8, 41)
	conflict.Labels = map[string]string{"owner": "mallory"}
	absent := status.Key{Hub: order.Hub, InstanceID: "nobody"}
	put(t, s, u, conflict)

	want, _ := status.Merge(nil, u)
	want, _ = status.Merge(want, conflict)
	records, err := s.Latest(t.Context(), []status.Key{absent, order, order})
	if err != nil {
		t.Fatal(err)
	}
	if records[0] != nil {
		t.Errorf("got %+v for an instance that does not exist", records[0])
	}
	for _, r := range records[1:] {
		if got, want := text(t, r), text(t, want); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}

	purge := lifecycle(order, 0, "")
	purge.Kind = status.KindPurged
	put(t, s, purge)
	if r := latest(t, s, order); r == nil || !r.Purged || r.Version <= records[1].Version {
		t.Errorf("got %+v, want a tombstone with a greater version than %d", r, records[1].Version)
	}
}

func versionGrows(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	last := micros(t, h) - 1
	for i := range 20 {
		if i == 10 { // lost, as when it expires or the server fails over
			do(t, h.Addr, "DEL", redisName(order))
		}
		put(t, s, progress(order, int64(i), i))
		r := latest(t, s, order)
		if r.Version <= last {
			t.Fatalf("change %d: version %d after %d", i, r.Version, last)
		}
		if r.Version > status.MaxInteger {
			t.Fatalf("version %d is not below 2^53", r.Version)
		}
		last = r.Version
	}
	if now := micros(t, h); last > now {
		t.Errorf("version %d is ahead of the clock %d", last, now)
	}
}

// micros is the server's clock.
func micros(t testing.TB, h Harness) int64 {
	t.Helper()
	seconds, micros, _ := strings.Cut(do(t, h.Addr, "TIME"), "\n")
	a, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	b, err := strconv.ParseInt(micros, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return a*1_000_000 + b
}

func versionOutgrowsClock(t *testing.T, h Harness) {
	for _, bytes := range []int{0, -1} {
		s := open(t, h.Addr, func(o *redisstore.Options) { o.CacheBytes = bytes })
		do(t, h.Addr, "FLUSHALL")
		put(t, s, progress(order, 1, 1))
		ahead := micros(t, h) + int64(time.Hour/time.Microsecond)
		text := strconv.FormatInt(ahead, 10)
		do(t, h.Addr, "HSET", redisName(order), "v", text, "s", text)
		put(t, s, progress(order, 2, 2))
		put(t, s, progress(order, 3, 3))
		if r := latest(t, s, order); r.Version != ahead+2 {
			t.Errorf("version %d, want %d", r.Version, ahead+2)
		}
	}
}

func positionAlone(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, progress(order, 1, 1))
	before := latest(t, s, order)
	out := put(t, s, progress(order, 5, 1))
	if out[0] != (status.Outcome{Changed: true}) {
		t.Fatalf("got %+v, want changed and not visible", out[0])
	}
	if r := latest(t, s, order); r.Version != before.Version || r.Progress.Position.N != 5 {
		t.Errorf("got version %d and position %d, want %d and 5", r.Version, r.Progress.Position.N, before.Version)
	}
	if out := put(t, open(t, h.Addr), progress(order, 4, 99)); out[0].StaleLanes != 1 {
		t.Errorf("got %+v for what came before the position, want it stale", out[0])
	}
	put(t, s, progress(order, 6, 2))
	if r := latest(t, s, order); r.Version <= before.Version {
		t.Errorf("version %d after %d", r.Version, before.Version)
	}
}

func duplicatesChangeNothing(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	cleared := progress(order, 2, 0)
	cleared.CustomStatus = json.RawMessage(`null`)
	first := []*status.Update{progress(order, 1, 1), lifecycle(order, 1, status.Running), cleared}
	put(t, s, first...)
	before := do(t, h.Addr, "HGETALL", redisName(order))
	for _, s := range []*redisstore.Store{s, open(t, h.Addr)} {
		for _, u := range first {
			if out := put(t, s, u); out[0].Changed {
				t.Errorf("got %+v, want no change", out[0])
			}
		}
	}
	if after := do(t, h.Addr, "HGETALL", redisName(order)); after != before {
		t.Errorf("got %s\nwant %s", after, before)
	}
}

// A message may be completed only when Redis has it, and this process'
// memory of what it wrote is not Redis.
func lostRecordIsWrittenAgain(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, progress(order, 1, 1))
	do(t, h.Addr, "DEL", redisName(order))
	put(t, s, progress(order, 1, 1))
	if r := latest(t, s, order); r == nil {
		t.Error("the record is gone")
	}
}

func batchIsOneWrite(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	f := follow(t, s)
	f.subscribe(order)
	out := put(t, s, progress(order, 1, 1), lifecycle(order, 1, status.Running), progress(order, 3, 3), progress(order, 2, 2))
	if out[3].StaleLanes != 1 || !out[2].Visible {
		t.Errorf("got %+v", out)
	}
	f.want(order, `{"percent":3}`)
	if n := f.count(); n != 1 {
		t.Errorf("got %d offers, want one", n)
	}
}

// Each update is put once, by one of the writers: none may be lost to another
// writer's older reading.
func concurrentWritersAgree(t *testing.T, h Harness) {
	const writers = 6
	r := rand.New(rand.NewPCG(1, 2))
	keys := []status.Key{order, {Hub: "orders", InstanceID: "order-2"}, {Hub: "other", InstanceID: "order-1"}}
	want := make(map[status.Key]*status.Record)
	var parts [writers][]*status.Update
	for i := range 100 * writers {
		k := keys[r.IntN(len(keys))]
		u := randomUpdate(r, k)
		if i%2 == 0 { // one that leaves a trace of its own, whatever else is said
			u = lifecycle(k, int64(i), status.Running)
			*u.Generation += 2
			u.Labels = map[string]string{"n" + strconv.Itoa(i%60): strconv.Itoa(i % 7)}
		}
		parts[i%writers] = append(parts[i%writers], u)
		want[k], _ = status.Merge(want[k], u)
	}
	var group sync.WaitGroup
	for w, part := range parts {
		s := open(t, h.Addr, func(o *redisstore.Options) { o.CacheBytes = []int{0, -1}[w%2] })
		r := rand.New(rand.NewPCG(3, uint64(w)))
		r.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
		group.Go(func() {
			for len(part) > 0 {
				n := min(len(part), 1+r.IntN(5))
				_, errs := s.Put(t.Context(), part[:n])
				if err := errors.Join(errs...); err != nil {
					t.Error(err)
				}
				part = part[n:]
			}
		})
	}
	group.Wait()
	s := open(t, h.Addr)
	for k, w := range want {
		if got, want := text(t, latest(t, s, k)), text(t, w); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", k, got, want)
		}
	}
}

// randomUpdate declares its position: of such updates the order is to be irrelevant.
func randomUpdate(r *rand.Rand, k status.Key) *status.Update {
	g, n := generation+int64(r.IntN(3)), int64(r.IntN(8))
	u := &status.Update{
		Hub: k.Hub, InstanceID: k.InstanceID, Generation: &g, Sequence: &n,
		LastUpdatedTime: time.Unix(int64(r.IntN(4)), 0).UTC(),
	}
	switch r.IntN(8) {
	case 0:
		u.Kind = status.KindPurged
		g = generation + int64(r.IntN(2)) // the last generation lives
	case 1, 2:
		u.Kind, u.RuntimeStatus = status.KindLifecycle, []status.RuntimeStatus{status.Running, status.Completed, status.Failed}[r.IntN(3)]
	default:
		u.Kind, u.CustomStatus = status.KindProgress, json.RawMessage(strconv.Itoa(r.IntN(5)))
	}
	if r.IntN(3) == 0 {
		u.Labels = map[string]string{"owner": "alice", "n" + strconv.Itoa(r.IntN(3)): strconv.Itoa(r.IntN(2))}
	}
	return u
}

func lostAnswerIsHarmless(t *testing.T, h Harness) {
	direct := open(t, h.Addr)
	put(t, direct, progress(order, 0, 0)) // the server knows the script
	f := follow(t, direct)
	f.subscribe(order)
	p := StartProxy(t, h.Addr)
	p.LoseAnswer("evalsha")
	s := open(t, p.Addr)
	put(t, s, progress(order, 1, 1))
	f.want(order, `{"percent":1}`)
	put(t, s, progress(order, 2, 2))
	f.want(order, `{"percent":2}`)
	if n := f.count(); n != 2 {
		t.Errorf("got %d offers, want 2: one write each", n)
	}
}

func forgottenScript(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	put(t, s, progress(order, 1, 1))
	do(t, h.Addr, "SCRIPT", "FLUSH")
	put(t, s, progress(order, 2, 2))
	if r := latest(t, s, order); string(r.Progress.CustomStatus) != `{"percent":2}` {
		t.Errorf("got %s", r.Progress.CustomStatus)
	}
}

func recordsLive(t *testing.T, h Harness) {
	const ttl, terminal = time.Hour, time.Minute
	s := open(t, h.Addr, func(o *redisstore.Options) { o.TTL, o.TerminalTTL = ttl, terminal })
	purge := lifecycle(order, 0, "")
	purge.Kind = status.KindPurged
	for _, c := range []struct {
		name   string
		update *status.Update
		want   time.Duration
	}{
		{"first", progress(order, 1, 1), ttl},
		{"visible", progress(order, 2, 2), ttl},
		{"position alone", progress(order, 3, 2), ttl},
		{"terminal", lifecycle(order, 1, status.Completed), terminal},
		{"rewound", lifecycle(order, 2, status.Running), ttl},
		{"purged", purge, terminal},
	} {
		if do(t, h.Addr, "EXISTS", redisName(order)) == "1" {
			do(t, h.Addr, "PEXPIRE", redisName(order), "5000")
		}
		put(t, s, c.update)
		got, err := strconv.Atoi(do(t, h.Addr, "PTTL", redisName(order)))
		if err != nil {
			t.Fatal(err)
		}
		if ms := int(c.want.Milliseconds()); got > ms || got < ms-30_000 {
			t.Errorf("%s: lives %d ms, want %d", c.name, got, ms)
		}
	}
}

func anyIDIsSafe(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	ids := []string{
		"a", "A", "a ", " a", "a}", "{a", "{a}", "}{", "{", "}", "a%20", "a%2520", "a b", "a+b", "a:b", "a*", "a[b]", "'", `"`,
		"%", "%%", "%7B", "日本語", "日本", "\u00e9", "e\u0301", "🙂", "a\u00a0", strings.Repeat("x", 256), strings.Repeat("界", 256),
		strings.Repeat("x", 255) + "}", "order-1", "orders}", "a&b=c", "a;b", "a|b", "a^b", "~", "a,b", "$(a)", "`a`", "nil", "probe",
	}
	var keys []status.Key
	var updates []*status.Update
	for i, id := range ids {
		if err := status.ValidInstanceID(id); err != nil {
			t.Fatal(err)
		}
		for j, hub := range []string{"a", "orders"} {
			k := status.Key{Hub: hub, InstanceID: id}
			keys = append(keys, k)
			updates = append(updates, progress(k, 1, 2*i+j))
		}
	}
	f := follow(t, s)
	f.subscribe(keys...)
	put(t, s, updates...)
	records, err := s.Latest(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range records {
		want := fmt.Sprintf(`{"percent":%d}`, i)
		if r == nil || r.Key() != keys[i] || string(r.Progress.CustomStatus) != want {
			t.Errorf("%q: got %+v, want %s", keys[i], r, want)
		}
		f.want(keys[i], want)
	}
	if n := f.count(); n != len(keys) {
		t.Errorf("got %d offers, want %d", n, len(keys))
	}
	for _, name := range strings.Split(do(t, h.Addr, "KEYS", "*"), "\n") {
		if strings.Count(name, "{") != 1 || strings.Count(name, "}") != 1 || !strings.HasSuffix(name, "}") {
			t.Errorf("%s is not one hash tag", name)
		}
	}
}

func corruptRecord(t *testing.T, h Harness) {
	name := redisName(order)
	good := `{"hub":"orders","id":"order-1","gen":` + strconv.FormatInt(generation, 10)
	for _, c := range []struct {
		name   string
		fields []string
	}{
		{"no JSON", []string{"r", "{"}},
		{"no object", []string{"r", "[]"}},
		{"null", []string{"r", "null"}},
		{"duplicate name", []string{"r", good + `,"gen":1}`}},
		{"invalid UTF-8", []string{"r", good + ",\"name\":\"\xff\"}"}},
		{"trailing data", []string{"r", good + `}{}`}},
		{"another instance", []string{"r", `{"hub":"orders","id":"order-2"}`}},
		{"another hub", []string{"r", `{"hub":"other","id":"order-1"}`}},
		{"negative generation", []string{"r", `{"hub":"orders","id":"order-1","gen":-1}`}},
		{"generation from 2^53", []string{"r", `{"hub":"orders","id":"order-1","gen":9007199254740992}`}},
		{"unknown class", []string{"r", good + `,"progress":{"p":{"c":3,"n":1}}}`}},
		{"sequence from 2^53", []string{"r", good + `,"progress":{"p":{"c":2,"n":9007199254740992}}}`}},
		{"negative sequence", []string{"r", good + `,"lifecycle":{"p":{"c":2,"n":-1}}}`}},
		{"unknown status", []string{"r", good + `,"lifecycle":{"status":"Sleeping"}}`}},
		{"status in another case", []string{"r", good + `,"lifecycle":{"status":"running"}}`}},
		{"large custom status", []string{"r", good + `,"progress":{"custom":"` + strings.Repeat("x", 3*status.MaxCustomStatus) + `"}}`}},
		{"large output", []string{"r", good + `,"lifecycle":{"output":"` + strings.Repeat("x", status.MaxOutput) + `"}}`}},
		{"many labels", []string{"r", good + `,"conflicts":["` + manyNames(status.MaxRecordLabels+1) + `"]}`}},
		{"unsorted conflicts", []string{"r", good + `,"conflicts":["b","a"]}`}},
		{"label and conflict", []string{"r", good + `,"labels":{"a":"1"},"conflicts":["a"]}`}},
		{"no version", []string{"v", ""}},
		{"version in words", []string{"v", "one"}},
		{"version 0", []string{"v", "0"}},
		{"version from 2^53", []string{"v", "9007199254740992"}},
		{"version 1e300", []string{"v", "1e300", "s", "1e300"}},
		{"version inf", []string{"v", "inf", "s", "nan"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, bytes := range []int{0, -1} {
				do(t, h.Addr, "FLUSHALL")
				s := open(t, h.Addr, func(o *redisstore.Options) { o.CacheBytes = bytes })
				put(t, s, progress(order, 1, 1))
				before := latest(t, s, order)
				do(t, h.Addr, append([]string{"HSET", name}, c.fields...)...)
				if r := latest(t, s, order); r != nil {
					t.Errorf("got %+v, want none", r)
				}
				put(t, s, progress(order, 2, 2))
				r := latest(t, s, order)
				if r == nil || string(r.Progress.CustomStatus) != `{"percent":2}` {
					t.Fatalf("got %+v after the next update", r)
				}
				if r.Version <= before.Version || r.Version > micros(t, h) {
					t.Errorf("got version %d, want one after %d and not after the clock", r.Version, before.Version)
				}
			}
		})
	}
	t.Run("unknown member is ignored", func(t *testing.T) {
		do(t, h.Addr, "FLUSHALL")
		s := open(t, h.Addr)
		do(t, h.Addr, "HSET", name, "v", "5", "s", "5", "r", good+`,"mood":{"good":1}}`)
		if r := latest(t, s, order); r == nil || r.Version != 5 || r.Generation != generation {
			t.Errorf("got %+v", r)
		}
	})
}

func manyNames(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%04d", i)
	}
	return strings.Join(names, `","`)
}

func wrongType(t *testing.T, h Harness) {
	s := open(t, h.Addr)
	other := status.Key{Hub: "orders", InstanceID: "order-2"}
	do(t, h.Addr, "SET", redisName(order), "a string")
	for range 2 { // read first, then remembered
		_, errs := s.Put(t.Context(), []*status.Update{progress(other, 1, 1), progress(order, 1, 1), progress(other, 2, 2)})
		if errs[0] != nil || errs[2] != nil {
			t.Errorf("got %v and %v for the other instance", errs[0], errs[2])
		}
		if errs[1] == nil || errors.Is(errs[1], status.ErrUnavailable) {
			t.Errorf("got %v, want an error that waiting does not heal", errs[1])
		}
	}
	records, err := s.Latest(t.Context(), []status.Key{order, other})
	if err != nil {
		t.Fatal(err)
	}
	if records[0] != nil || records[1] == nil {
		t.Errorf("got %+v and %+v, want none and one", records[0], records[1])
	}
}

func absentServer(t *testing.T, _ Harness) {
	unavailable(t, open(t, FreeAddr(t)))
}

// unavailable checks that a store says so in every way.
func unavailable(t *testing.T, s *redisstore.Store) {
	t.Helper()
	unwritable(t, s)
	if _, err := s.Latest(t.Context(), []status.Key{order}); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("latest: got %v, want unavailable", err)
	}
	if _, err := s.List(t.Context(), queryOf(ofHub), status.Cursor{}, 10); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("list: got %v, want unavailable", err)
	}
	if _, err := s.Reindex(t.Context(), nil); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("reindex: got %v, want unavailable", err)
	}
	if err := s.Ping(t.Context()); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("ping: got %v, want unavailable", err)
	}
	if err := s.Announce(t.Context(), []status.Key{order}, time.Now().Add(time.Minute)); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("announce: got %v, want unavailable", err)
	}
	if _, err := s.Interested(t.Context(), order.Hub); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("interested: got %v, want unavailable", err)
	}
	if mine, err := s.Lease(t.Context(), "bridge", "a", time.Minute); mine || !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("lease: got %v, %v, want unavailable", mine, err)
	}
}

func unwritable(t *testing.T, s *redisstore.Store) {
	t.Helper()
	out, errs := s.Put(t.Context(), []*status.Update{progress(order, 1000, 1), lifecycle(order, 1000, status.Running)})
	for i, err := range errs {
		if !errors.Is(err, status.ErrUnavailable) || out[i] != (status.Outcome{}) {
			t.Errorf("put: got %+v and %v, want nothing and unavailable", out[i], err)
		}
	}
	if err := s.SaveTicket(t.Context(), "a", []byte("x"), time.Minute); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("save ticket: got %v, want unavailable", err)
	}
	if _, err := s.TakeTicket(t.Context(), "a"); !errors.Is(err, status.ErrUnavailable) {
		t.Errorf("take ticket: got %v, want unavailable", err)
	}
	u := said(order, status.Running)
	if err := s.Stamp(t.Context(), []*status.Update{u})[0]; !errors.Is(err, status.ErrUnavailable) || u.Generation != nil || u.Sequence != nil {
		t.Errorf("stamp: got %v, want unavailable and no position", err)
	}
	w := &claim.Swap{Name: "a", Text: "p a 1", Life: time.Minute}
	if s.Swap(t.Context(), []*claim.Swap{w}); !errors.Is(w.Err, status.ErrUnavailable) {
		t.Errorf("claim: got %v, want unavailable", w.Err)
	}
}
