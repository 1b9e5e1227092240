package hub_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/hub"
	"statusrelay/internal/status"
)

// silentFor returns a hub's rule: instances are stale after that long.
func silentFor(limit time.Duration) func(*status.Record) time.Duration {
	return func(*status.Record) time.Duration { return limit }
}

// at returns a record that changed at that time, as the store stamps it.
func at(id string, t time.Time) *status.Record {
	return &status.Record{Hub: "h", InstanceID: id, Version: t.UnixMicro(), Lifecycle: status.Lifecycle{
		Position: status.Position{Class: status.Declared}, RuntimeStatus: status.Running,
	}}
}

// seen takes what is pending: "-" nothing, else how it looks, with the version relative to a time.
func (r *reader) seen(since time.Time) string {
	s := r.Take()
	switch {
	case s == nil:
		return "-"
	case s.Gone():
		return "gone"
	}
	state := "fresh"
	if s.Record.Stale {
		state = "stale"
	}
	if s.Record.Version != s.Version {
		state += ", of another version"
	}
	return fmt.Sprintf("%s +%d", state, s.Version-since.UnixMicro())
}

func TestSilenceIsToldOnceWithinASecond(t *testing.T) {
	// Whatever the period in which everything is read again.
	for _, refresh := range []time.Duration{time.Minute, 5 * time.Hour} {
		world(t, hub.Options{Refresh: refresh, StaleAfter: silentFor(10 * time.Minute)}, func(h *hub.Hub, r *redis) {
			begin := time.Now()
			r.store(at("i", begin))
			w, other := open(h, "i"), open(h, "other")
			synctest.Wait()
			want(t, "at first", w.seen(begin), "fresh +0")
			other.Take()
			time.Sleep(10*time.Minute - time.Millisecond)
			synctest.Wait()
			want(t, "just before", w.seen(begin), "-")
			time.Sleep(time.Second + time.Millisecond)
			synctest.Wait()
			want(t, "just after", w.seen(begin), "stale +1")
			late := open(h, "i")
			synctest.Wait()
			want(t, "who comes late", late.seen(begin), "stale +1")
			for range 3 {
				h.Gap()
				w.Again()
				synctest.Wait()
				want(t, "once more, since it was asked for", w.seen(begin), "stale +1")
				time.Sleep(20 * time.Minute)
				synctest.Wait()
				want(t, "nothing is told twice", w.seen(begin), "-")
				want(t, "nor to others", late.seen(begin), "-")
			}
			now := time.Now()
			r.store(at("i", now))
			want(t, "an update", w.seen(now), "fresh +0")
			time.Sleep(11 * time.Minute)
			synctest.Wait()
			want(t, "silent again", w.seen(now), "stale +1")
			want(t, "what does not exist", other.version(), "-")
		})
	}
}

func TestUpdatesKeepAnInstanceFresh(t *testing.T) {
	world(t, hub.Options{StaleAfter: silentFor(time.Minute)}, func(h *hub.Hub, r *redis) {
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		for range 100 {
			now := time.Now()
			r.store(at("i", now))
			want(t, "an update", w.seen(now), "fresh +0")
			time.Sleep(59 * time.Second)
			synctest.Wait()
			want(t, "before the next", w.seen(now), "-")
		}
	})
}

func TestEndedInstanceIsNeverStale(t *testing.T) {
	world(t, hub.Options{StaleAfter: silentFor(time.Minute)}, func(h *hub.Hub, r *redis) {
		begin := time.Now()
		r.store(at("i", begin))
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		time.Sleep(30 * time.Second)
		now := time.Now()
		record := at("i", now)
		record.Lifecycle.RuntimeStatus = status.Completed
		r.store(record)
		want(t, "the end", w.seen(now), "fresh +0")
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		want(t, "hours later", w.seen(now), "-")
	})
}

func TestOnlyWhatHasALimitBecomesStale(t *testing.T) {
	limits := map[string]time.Duration{"quick": time.Minute, "slow": time.Hour, "patient": 0}
	world(t, hub.Options{StaleAfter: func(r *status.Record) time.Duration { return limits[r.InstanceID] }}, func(h *hub.Hub, r *redis) {
		begin := time.Now()
		watches := map[string]*reader{}
		for id := range limits {
			r.store(at(id, begin))
			watches[id] = open(h, id)
			synctest.Wait()
			watches[id].Take()
		}
		time.Sleep(62 * time.Second)
		synctest.Wait()
		want(t, "quick", watches["quick"].seen(begin), "stale +1")
		want(t, "slow", watches["slow"].seen(begin), "-")
		time.Sleep(time.Hour)
		synctest.Wait()
		want(t, "slow, later", watches["slow"].seen(begin), "stale +1")
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		want(t, "patient", watches["patient"].seen(begin), "-")
		want(t, "quick, later", watches["quick"].seen(begin), "-")
	})
}

func TestSilenceDuringAnOutageIsToldAfterIt(t *testing.T) {
	world(t, hub.Options{StaleAfter: silentFor(time.Minute)}, func(h *hub.Hub, r *redis) {
		begin := time.Now()
		r.store(at("i", begin))
		w := open(h, "i")
		synctest.Wait()
		w.Take()
		r.set(func() { r.away = true })
		time.Sleep(10 * time.Minute)
		want(t, "nobody knows", w.seen(begin), "-")
		r.set(func() { r.away = false })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		want(t, "after it", w.seen(begin), "stale +1")
	})
}

func TestAgainGivesNothingOlder(t *testing.T) {
	world(t, hub.Options{Refresh: time.Hour}, func(h *hub.Hub, r *redis) {
		r.put("i", 7)
		w := open(h, "i")
		synctest.Wait()
		want(t, "at first", w.version(), "7")
		r.set(func() {
			r.during = func(string) {
				h.Offer(&status.Record{Hub: "h", InstanceID: "i", Version: 6}) // a push that was late
				want(t, "what is older", w.version(), "-")
			}
		})
		w.Again()
		synctest.Wait()
		want(t, "again", w.version(), "7")
		want(t, "once", w.version(), "-")
	})
}

func TestEndIsTellingEvenWhoLetsTheRestWait(t *testing.T) {
	world(t, hub.Options{}, func(h *hub.Hub, r *redis) {
		r.put("i", 7)
		w := open(h, "i")
		synctest.Wait()
		r.put("i", 8)
		want(t, "wakes", w.wakes.Load(), int64(1))
		want(t, "ending", w.Ending(), false)
		r.store(&status.Record{Hub: "h", InstanceID: "i", Version: 9, Purged: true})
		want(t, "wakes", w.wakes.Load(), int64(2))
		want(t, "ending", w.Ending(), true)
		want(t, "version", w.version(), "gone 9")
		want(t, "ending", w.Ending(), false)
	})
}
