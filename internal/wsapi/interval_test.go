package wsapi_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/wsapi"
)

// watchEvery watches instances with a minimum interval in milliseconds.
func (c *client) watchEvery(interval int, instances ...string) {
	c.send(fmt.Sprintf(`{"type":"watch","minInterval":%d,"instances":[%s]}`, interval, list(instances)))
}

func TestMinIntervalTellsAtMostOneStatusPerIntervalAndEndsOnTheNewest(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 1, 0))
		c, quick := w.as("alice"), w.as("alice")
		c.watchEvery(500, "i")
		c.wants("watching i", `status i 1 {"percent":0}`)
		quick.watch("i")
		quick.wants("watching i", `status i 1 {"percent":0}`)
		var last time.Time
		statuses, n, told := 0, 0, ""
		look := func() {
			synctest.Wait()
			for len(c.events) > 0 {
				if told = c.next(); told != fmt.Sprintf(`status i %d {"percent":%d}`, 10+n, n) {
					t.Errorf("told %s, but the newest is %d", told, n)
				}
				if since := time.Since(last); since < 500*time.Millisecond {
					t.Errorf("told again after %v", since)
				}
				last = time.Now()
				statuses++
			}
		}
		for ms := range 10_000 {
			time.Sleep(time.Millisecond)
			look()
			if ms%7 == 0 {
				n++
				w.put(percent("i", "alice", int64(10+n), n))
				look()
				quick.wants(fmt.Sprintf(`status i %d {"percent":%d}`, 10+n, n))
			}
		}
		if statuses < 19 || statuses > 20 {
			t.Errorf("%d statuses in ten seconds", statuses)
		}
		time.Sleep(500 * time.Millisecond)
		look()
		if want := fmt.Sprintf(`status i %d {"percent":%d}`, 10+n, n); told != want {
			t.Errorf("ended on %s, want %s", told, want)
		}
		time.Sleep(time.Minute)
		c.idle()
		w.put(percent("i", "alice", 5000, 1)) // after a long silence: at once
		c.wants(`status i 5000 {"percent":1}`)
	})
}

func TestMinIntervalsOfSeveralWatchesAreTheirOwn(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watchEvery(1000, "a")
		c.watchEvery(3000, "b")
		c.watchEvery(0, "c")
		c.wants("watching a", "watching b", "watching c")
		version := int64(10)
		counts := map[string]int{}
		for range 600 { // for a minute
			version++
			for _, id := range []string{"a", "b", "c"} {
				w.put(percent(id, "alice", version, int(version)))
			}
			synctest.Wait()
			for len(c.events) > 0 {
				counts[strings.Fields(c.next())[1]]++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if counts["a"] != 60 || counts["b"] != 20 || counts["c"] != 600 {
			t.Errorf("statuses: %v, want 60, 20 and 600", counts)
		}
	})
}

func TestBadNewsDoesNotWaitForTheMinInterval(t *testing.T) {
	for name, tt := range map[string]struct {
		take func(w *world, c *client)
		want []string
	}{
		"purged":               {func(w *world, _ *client) { w.put(purged("i", 20)) }, []string{"gone i 20"}},
		"changed, then purged": {func(w *world, _ *client) { w.put(percent("i", "bob", 19, 2)); w.put(purged("i", 20)) }, []string{"gone i 20"}},
		"token":                {func(_ *world, c *client) { c.send(`{"type":"auth","token":"bob"}`) }, []string{"welcome", "gone i 11"}},
		"changed, then token": {func(w *world, c *client) {
			w.put(percent("i", "alice", 19, 2))
			synctest.Wait()
			c.send(`{"type":"auth","token":"bob"}`)
		}, []string{"welcome", "gone i 11"}},
		"policy": {func(w *world, _ *client) {
			w.policy.Store(development(w.TB, "'operator' in claims.roles", "'admin' in claims.roles"))
			time.Sleep(2 * time.Second)
		}, []string{"gone i 11"}},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				w.put(percent("i", "alice", 10, 1))
				c := w.as("bob+operator")
				c.watchEvery(60_000, "i")
				c.wants("watching i", `status i 10 {"percent":1,"secret":"of alice at 10"}`)
				begin := time.Now()
				tt.take(w, c)
				c.wants(tt.want...)
				if took := time.Since(begin); took > 2*time.Second {
					t.Errorf("told after %v", took)
				}
				c.idle()
			})
		})
	}
}

func TestMinIntervalHoldsBackWhatARefreshShows(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 10, 1))
		c := w.as("alice")
		c.watchEvery(10_000, "i")
		c.wants("watching i", `status i 10 {"percent":1}`)
		w.put(percent("i", "alice", 20, 2))
		c.send(`{"type":"auth","token":"alice+operator"}`)
		c.wants("welcome")
		time.Sleep(9 * time.Second)
		c.idle()
		w.put(percent("i", "alice", 30, 3))
		c.idle()
		time.Sleep(2 * time.Second)
		c.wants(`status i 30 {"percent":3,"secret":"of alice at 30"}`)
		c.idle()
	})
}

func TestWatchingAgainEndsTheMinInterval(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 10, 1))
		c := w.as("alice")
		c.watchEvery(60_000, "i")
		c.wants("watching i", `status i 10 {"percent":1}`)
		w.put(percent("i", "alice", 20, 2))
		c.idle()
		c.watch("i@10")
		c.wants("watching i", `status i 20 {"percent":2}`)
		w.put(percent("i", "alice", 30, 3))
		c.wants(`status i 30 {"percent":3}`)
		c.watchEvery(60_000, "i@30")
		c.wants("watching i")
		synctest.Wait()                     // the answer precedes the watch
		w.put(percent("i", "alice", 40, 4)) // the first
		c.wants(`status i 40 {"percent":4}`)
		w.put(percent("i", "alice", 50, 5))
		synctest.Wait()
		c.unwatch("i")
		c.wants("unwatched i")
		time.Sleep(2 * time.Minute)
		c.idle()
	})
}

func TestMinIntervalOfAList(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("a", "alice", 10, 1))
		c := w.as("alice")
		c.watchList("mine", mine, `,"minInterval":10000`)
		c.wants("watching mine", "joined mine a", `status a 10 {"percent":1}`, "listed mine")
		w.put(percent("a", "alice", 20, 2))
		w.put(percent("b", "alice", 21, 1))
		c.wants("joined mine b", `status b 21 {"percent":1}`)
		w.put(ended(percent("a", "alice", 30, 3)))
		time.Sleep(9 * time.Second)
		c.idle()
		time.Sleep(time.Second)
		c.wants(`status a 30 {"percent":3}`, "left mine a 30")
		// By name too, and the shortest counts.
		c.watchEvery(1000, "b@21")
		c.wants("watching b")
		synctest.Wait() // the answer precedes the watch
		w.put(percent("b", "alice", 40, 2))
		c.wants(`status b 40 {"percent":2}`)
		w.put(percent("b", "alice", 41, 3))
		time.Sleep(999 * time.Millisecond)
		c.idle()
		time.Sleep(time.Millisecond)
		c.wants(`status b 41 {"percent":3}`)
		c.unwatch("b")
		c.wants("unwatched b")
		w.put(percent("b", "alice", 50, 4))
		time.Sleep(9 * time.Second)
		c.idle()
		time.Sleep(time.Second)
		c.wants(`status b 50 {"percent":4}`)
	})
}

func TestMinIntervalsAreCounted(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	fake(t, wsapi.Options{Metrics: registry}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 10, 1))
		c := w.as("alice")
		c.watchEvery(1000, "i")
		c.wants("watching i", `status i 10 {"percent":1}`)
		c.watchList("mine", mine)
		c.wants("watching mine", "joined mine i", "listed mine")
		c.unwatchList("mine")
		c.wants("unwatched mine")
		c.watchList("other", mine, `,"minInterval":1000`)
		c.wants("watching other", "joined other i", "listed other")
		time.Sleep(time.Second)
		for n := range 100 {
			w.put(percent("i", "alice", int64(20+n), n))
			synctest.Wait()
		}
		c.wants(`status i 20 {"percent":0}`)
		w.put(percent("i", "alice", 200, 99))
		time.Sleep(time.Second)
		c.wants(`status i 200 {"percent":99}`)
		time.Sleep(time.Second)
		w.put(percent("i", "alice", 201, 99))
		synctest.Wait()
		for name, want := range map[string]float64{
			"statusrelay_wsapi_held_total":      1,
			"statusrelay_hub_conflated_total":   99, // of the 100 that followed the first of the interval
			"statusrelay_wsapi_unchanged_total": 3,  // two when lists took what the client had, and the last
			"statusrelay_hub_lists":             1,
		} {
			if got := gathered(t, registry, name); got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
	})
}

// TestSlowSocketSkipsVersionsAndEndsOnTheNewest has a client that reads nothing while there are 1,000 versions.
func TestSlowSocketSkipsVersionsAndEndsOnTheNewest(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	fake(t, wsapi.Options{Metrics: registry}, func(t *testing.T, w *world) {
		conn, answer, err := w.handshake(bearer("alice"))
		if err != nil {
			t.Fatal(err)
		}
		w.put(percent("i", "alice", 9, 0))
		slow := &client{t: t, conn: conn, answer: answer, events: make(chan string, 10_000)}
		slow.watch("i")
		synctest.Wait() // its welcome is being written, and does not fit anywhere: the network has no buffer
		const versions = 1000
		for n := range versions {
			w.put(percent("i", "alice", int64(10+n), n))
			synctest.Wait()
		}
		if got := gathered(t, registry, "statusrelay_hub_conflated_total"); got != versions {
			t.Errorf("%v versions were replaced by a newer one, want %d", got, versions)
		}
		w.clients.Go(slow.read)
		slow.wants("welcome", "watching i", `status i 1009 {"percent":999}`)
		time.Sleep(time.Minute)
		slow.idle()
		if got := gathered(t, registry, "statusrelay_wsapi_frames_sent_total"); got != 3 {
			t.Errorf("%v frames were sent, want 3", got)
		}
	})
}

// gathered is the value of a metric without labels.
func gathered(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
