package redisstore_test

import (
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// Writers tell an index what they did in an order of their own: who leaves late
// must not take away who has entered again.
func TestIndexIsToldInAnyOrder(t *testing.T) {
	script, err := os.ReadFile("index.lua")
	if err != nil {
		t.Fatal(err)
	}
	const name = "statusrelay:index:{h}"
	for server, addr := range map[string]string{"miniredis": miniredis.RunT(t).Addr(), "redis": storetest.StartRedis(t).Addr} {
		tell := func(versions ...int64) string {
			t.Helper()
			if _, err := storetest.Do(addr, "DEL", name); err != nil {
				t.Fatal(err)
			}
			for _, v := range versions {
				// They live long enough for these versions not to be old.
				if _, err := storetest.Do(addr, "EVAL", string(script), "1", name, "4000000000000", "i", fmt.Sprint(v)); err != nil {
					t.Fatal(err)
				}
			}
			score, err := storetest.Do(addr, "ZSCORE", name, "i")
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
			{[]int64{10, 20, -20}, ""},
		} {
			if got := tell(c.versions...); got != c.want {
				t.Errorf("%s: %d: got score %q, want %q", server, c.versions, got, c.want)
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
