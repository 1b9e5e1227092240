package hub_test

import (
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/hub"
	"statusrelay/internal/status"
)

// What is wanted is told once, when the first one wants it, and is there for as long as somebody does.
func TestWantedIsWhatSomebodyWants(t *testing.T) {
	var told []string
	o := hub.Options{Wanted: func(k status.Key) { told = append(told, k.InstanceID) }}
	world(t, o, func(h *hub.Hub, r *redis) {
		wanted := func(what string, want ...string) {
			t.Helper()
			all := maps.Collect(h.Wanted)
			var got []string
			for k, exists := range all {
				if exists {
					got = append(got, k.InstanceID+" exists")
				} else {
					got = append(got, k.InstanceID)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", what, got, want)
			}
		}
		r.put("a", 1)
		a1, a2, b, quiet := open(h, "a"), open(h, "a"), open(h, "b"), open(h, "c")
		wanted("none has said so")
		a1.Want(true)
		a1.Want(true)
		a2.Want(true)
		b.Want(true)
		quiet.Want(false)
		want(t, "told", told, []string{"a", "b"})
		synctest.Wait()
		wanted("two", "a exists", "b")
		for range h.Wanted {
			break // and everything goes on
		}
		r.expire("a")
		r.put("b", 2)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		wanted("one has expired, the other appeared", "a", "b exists")
		a1.Close()
		wanted("another watch", "a", "b exists")
		a2.Want(false)
		b.Close()
		wanted("nobody is left")
		a2.Want(true)
		want(t, "told", told, []string{"a", "b", "a"})
		for _, w := range []*reader{a2, quiet} {
			w.Close()
		}
		wanted("all closed")
	})
}

func TestWithoutAnybodyToTellNothingIsWanted(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, _ *redis) {
		w := open(h, "a")
		w.Want(true)
		if len(maps.Collect(h.Wanted)) != 0 {
			t.Error("something is wanted")
		}
		w.Close()
	})
}
