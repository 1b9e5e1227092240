package redisstore_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// lifetime is long enough for these versions not to be old.
const lifetime = "4000000000000"

// scripts are index.lua as each server runs it, and as a server before Redis 7
// would.
func scripts(t testing.TB) map[string]struct{ addr, script string } {
	text, err := os.ReadFile("index.lua")
	if err != nil {
		t.Fatal(err)
	}
	script, server := string(text), storetest.StartRedis(t).Addr
	before7 := strings.ReplaceAll(script, "redis.REDIS_VERSION_NUM", "nil")
	if before7 == script {
		t.Fatal("the script asks for no version")
	}
	return map[string]struct{ addr, script string }{
		"miniredis":      {miniredis.RunT(t).Addr(), script},
		"redis":          {server, script},
		"redis before 7": {server, before7},
	}
}

// Writers tell an index what they did in an order of their own: who leaves late
// must not take away who has entered again.
func TestIndexIsToldInAnyOrder(t *testing.T) {
	const name = "statusrelay:index:{h}"
	for server, s := range scripts(t) {
		tell := func(versions ...int64) string {
			t.Helper()
			if _, err := storetest.Do(s.addr, "DEL", name); err != nil {
				t.Fatal(err)
			}
			for _, v := range versions {
				if _, err := storetest.Do(s.addr, "EVAL", s.script, "1", name, lifetime, "i", fmt.Sprint(v)); err != nil {
					t.Fatal(err)
				}
			}
			score, err := storetest.Do(s.addr, "ZSCORE", name, "i")
			if err != nil {
				t.Fatal(err)
			}
			return score
		}
		for _, c := range []struct {
			versions []int64
			want     string
		}{
			{[]int64{10, -20, 30}, "30"},
			{[]int64{10, 30, -20}, "30"},
			{[]int64{-20, 10, 30}, "30"},
			{[]int64{-20, 30, 10}, "30"},
			{[]int64{30, -20, 10}, "30"},
			{[]int64{30, 10, -20}, "30"},
			{[]int64{10, -20}, ""},
			{[]int64{-20}, ""},
			{[]int64{10, 20, -20}, ""},
		} {
			if got := tell(c.versions...); got != c.want {
				t.Errorf("%s: %d: got score %q, want %q", server, c.versions, got, c.want)
			}
		}
	}
}

// Newer servers go a shorter way to the same end.
func TestIndexIsTheSameOnAllServers(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	all := scripts(t)
	for n := range 300 {
		if n%20 == 0 { // whatever somebody has left there
			for server, s := range all {
				name := "index of " + server
				for _, words := range [][]string{{"DEL", name}, {"ZADD", name, "inf", "a", "1.5", "b", "-7", "c", "9007199254740992", "d", "9007199254740991", "e"}, {"SET", name, "x"}}[:1+n/20%3] {
					if _, err := storetest.Do(s.addr, words...); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		var pairs []string
		for _, i := range r.Perm(8)[:1+r.IntN(4)] { // an instance once in a call
			version := r.IntN(40) + 1
			if r.IntN(8) == 0 {
				version = -version
			}
			pairs = append(pairs, string(rune('a'+i)), fmt.Sprint(version))
		}
		var want string
		for server, s := range all {
			name := "index of " + server
			if _, err := storetest.Do(s.addr, append([]string{"EVAL", s.script, "1", name, lifetime}, pairs...)...); err != nil {
				t.Fatal(err)
			}
			got, err := storetest.Do(s.addr, "ZRANGE", name, "0", "-1", "WITHSCORES")
			if err != nil {
				t.Fatal(err)
			}
			if want == "" {
				want = got
			}
			if got != want {
				t.Fatalf("%s, told %q: got %q, want %q as elsewhere", server, pairs, got, want)
			}
			if ms, err := storetest.Do(s.addr, "PTTL", name); err != nil || got != "" && len(ms) < len(lifetime) {
				t.Fatalf("%s, told %q: lives %s ms, %v", server, pairs, ms, err)
			}
		}
	}
}

// One that nobody lets expire is found by whoever goes up in it, though not all do.
func TestIndexLivesByWhoeverGoesUp(t *testing.T) {
	const name = "statusrelay:index:{h}"
	for server, s := range scripts(t) {
		for _, pairs := range [][]string{{"b", "60"}, {"a", "50", "b", "60"}, {"a", "40", "b", "60", "c", "-60"}} {
			for _, words := range [][]string{{"DEL", name}, {"ZADD", name, "50", "a", "50", "b", "50", "c"}} {
				if _, err := storetest.Do(s.addr, words...); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := storetest.Do(s.addr, append([]string{"EVAL", s.script, "1", name, lifetime}, pairs...)...); err != nil {
				t.Fatal(err)
			}
			if ms, err := storetest.Do(s.addr, "PTTL", name); err != nil || len(ms) < len(lifetime) {
				t.Errorf("%s, told %q: lives %s ms, %v", server, pairs, ms, err)
			}
		}
	}
}

// What stands in an index must never fail a list, nor keep an instance out of
// it.
func FuzzIndexMember(f *testing.F) {
	f.Add("i", 5.0)
	f.Add("j\n", math.Inf(1))
	f.Add("", -1.5)
	f.Add("0", 1801439850948199.2) // ahead of the clock, and no version
	f.Add("\xff", float64(1<<53))
	server := miniredis.RunT(f)
	s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr()}})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	f.Fuzz(func(t *testing.T, member string, score float64) {
		if math.IsNaN(score) {
			t.Skip("no score")
		}
		server.FlushAll()
		if _, err := server.ZAdd("statusrelay:index:{h}", score, member); err != nil {
			t.Fatal(err)
		}
		q := &status.Query{Hub: "h"}
		if page, err := s.List(t.Context(), q, status.Cursor{}, 10); err != nil || len(page.Records) != 0 {
			t.Fatalf("got %+v, %v of no records", page, err)
		}
		if _, err := server.ZAdd("statusrelay:index:{h}", score, "i"); err != nil {
			t.Fatal(err)
		}
		u := &status.Update{Hub: "h", InstanceID: "i", Kind: status.KindLifecycle, RuntimeStatus: status.Running}
		if _, errs := s.Put(t.Context(), []*status.Update{u}); errs[0] != nil {
			t.Fatal(errs[0])
		}
		if _, err := s.List(t.Context(), q, status.Cursor{}, 10); err != nil { // corrects what is not
			t.Fatal(err)
		}
		page, err := s.List(t.Context(), q, status.Cursor{}, 10)
		if err != nil || len(page.Records) != 1 || page.After[0].Version != page.Records[0].Version {
			t.Fatalf("got %+v, %v", page, err)
		}
	})
}
