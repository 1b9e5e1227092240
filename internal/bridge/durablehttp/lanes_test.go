package durablehttp_test

import (
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"statusrelay/internal/bridge/durablehttp"
	"statusrelay/internal/functest"
	"statusrelay/internal/status"
)

// others is what another publisher says of an instance that runs, in microseconds as
// the kits do.
func (w *world) others(id string, kind status.Kind, generation int64, runtimeStatus status.RuntimeStatus, custom string) {
	s := time.Now().UnixMicro()
	w.put(status.Update{InstanceID: id, Generation: &generation, Sequence: &s, Kind: kind, RuntimeStatus: runtimeStatus, CustomStatus: raw(custom), LastUpdatedTime: time.Now()})
}

// An instance that leaves sight for a moment is not purged; one that is gone is, but
// not when it had ended: then its last status stays readable.
func TestPurge(t *testing.T) {
	bubble(t, func(w *world) {
		for _, id := range []string{"flapping", "gone", "ended"} {
			w.runs(id, "1")
		}
		w.becomes("ended", "Completed", "")
		w.wants("flapping", "gone", "ended")
		w.bridge()
		w.after(20 * time.Second)
		n := 0
		w.app.Break(func(r *http.Request) functest.Fault { // two of three times
			if r.URL.Path == functest.Path+"/instances/flapping" {
				n++
				return functest.Fault{Missing: n%3 != 0}
			}
			return functest.Fault{}
		})
		w.app.Purge("gone")
		w.app.Purge("ended")
		generation := w.record("gone").Generation
		w.after(10 * time.Minute)
		w.shows("flapping", status.Running, "1")
		w.shows("ended", status.Completed, "1")
		if r := w.record("gone"); !r.Purged || r.Generation != generation {
			w.Errorf("what is gone: got %+v", r)
		}
		if n := w.said(); n != 4 {
			w.Errorf("%d updates, want 3 and a purge", n)
		}
	})
}

// An instance that no bridge has ever seen at the runtime is not purged for not being
// there: the runtime may be another than the one that publishes.
func TestWhatWasNeverSeenIsNotPurged(t *testing.T) {
	bubble(t, func(w *world) {
		w.others("order-1", status.KindSnapshot, time.Now().UnixMilli(), status.Running, "1")
		w.wants("order-1")
		w.bridge()
		w.after(10 * time.Minute)
		w.shows("order-1", status.Running, "1")
	})
}

// An id that is used again is another execution, whether it was purged in between or
// not, and even within the same second.
func TestIDIsUsedAgain(t *testing.T) {
	for name, test := range map[string]struct {
		purge bool
		later time.Duration
	}{
		"replaced":                {false, 10 * time.Second},
		"purged":                  {true, 30 * time.Second},
		"replaced in that second": {false, 300 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.runs("order-1", `{"percent":90}`)
				w.wants("order-1")
				w.bridge()
				w.after(200 * time.Millisecond)
				before := w.shows("order-1", status.Running, `{"percent":90}`)
				if test.purge {
					w.app.Purge("order-1")
				}
				w.after(test.later)
				if test.purge && !w.record("order-1").Purged {
					w.Error("it is not purged")
				}
				w.runs("order-1", "")
				w.after(20 * time.Second)
				r := w.record("order-1")
				want := ""
				if r.Generation == before.Generation {
					want = "null" // nothing tells it from the first, but for what it says
				}
				w.shows("order-1", status.Running, want)
				if test.later >= time.Second && r.Generation <= before.Generation {
					w.Errorf("generation %d, before %d", r.Generation, before.Generation)
				}
			})
		})
	}
}

// An id that is purged by another publisher and started again within that second is
// there again.
func TestIDIsUsedAgainInTheSecondOfItsPurge(t *testing.T) {
	bubble(t, func(w *world) {
		g := time.Now().UnixMilli() + 400
		w.after(500 * time.Millisecond)
		w.put(status.Update{InstanceID: "order-1", Kind: status.KindPurged, Generation: &g})
		w.runs("order-1", "2") // whose second has begun before g
		w.wants("order-1")
		w.bridge()
		w.after(time.Second)
		w.shows("order-1", status.Running, "2")
	})
}

// The runtime still shows the execution before: that is not how the new one, of which
// its starter has told, has ended.
func TestAnswerAboutAnOlderExecutionIsNoNews(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.becomes("order-1", "Completed", "")
		w.after(time.Minute)
		w.others("order-1", status.KindLifecycle, time.Now().UnixMilli(), status.Pending, "")
		w.wants("order-1")
		w.bridge()
		w.after(5 * time.Second)
		w.shows("order-1", status.Pending, "")
		w.runs("order-1", "2")
		w.after(30 * time.Second)
		w.shows("order-1", status.Running, "2")
	})
}

// A failed orchestration that is rewound runs again.
func TestRewind(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.becomes("order-1", "Failed", `"broke"`)
		w.wants("order-1")
		w.bridge()
		w.after(5 * time.Second)
		w.shows("order-1", status.Failed, "1")
		w.becomes("order-1", "Pending", "")
		w.after(70 * time.Second)
		if r := w.shows("order-1", status.Pending, "1"); r.Lifecycle.Failure != nil {
			w.Errorf("the failure is still there: %+v", r.Lifecycle)
		}
		w.becomes("order-1", "Completed", "")
		w.after(20 * time.Second)
		w.shows("order-1", status.Completed, "1")
	})
}

// A custom status that is cleared is cleared; one that there never was is nothing to say,
// so that the lane is free for whoever reports progress.
func TestClearedAndAbsentCustomStatus(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("cleared", "1")
		w.runs("never", "")
		w.wants("cleared", "never")
		w.bridge()
		w.after(time.Second)
		w.progresses("cleared", "null")
		w.after(20 * time.Second)
		w.shows("cleared", status.Running, "null")
		if r := w.shows("never", status.Running, ""); r.Progress.Position != (status.Position{}) {
			w.Errorf("got %+v", r.Progress)
		}
	})
}

// Progress that activities report is theirs: the bridge adds how the orchestration
// runs, and adopts their generation.
func TestForeignProgressIsNotTouched(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", `"built-in"`)
		generation := time.Now().Add(321 * time.Millisecond).UnixMilli() // of its first episode
		w.after(time.Second)
		w.others("order-1", status.KindProgress, generation, "", "1")
		w.wants("order-1")
		w.bridge()
		for i := 2; i < 60; i++ {
			w.after(3 * time.Second)
			custom := string(rune('0' + i%10))
			w.others("order-1", status.KindProgress, generation, status.Running, custom)
			w.progresses("order-1", `"built-in `+custom+`"`)
			w.after(700 * time.Millisecond)
			if r := w.shows("order-1", status.Running, custom); r.Partial() || r.Generation != generation {
				w.Fatalf("got %+v", r)
			}
		}
		w.becomes("order-1", "Completed", "")
		w.after(30 * time.Second)
		w.shows("order-1", status.Completed, "9")
	})
}

// With LifecycleOnly even the first custom status is left to others.
func TestLifecycleOnly(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		w.bridge(func(o *durablehttp.Options) { o.LifecycleOnly = true })
		w.after(time.Second)
		w.shows("order-1", status.Running, "")
		n := int64(1)
		g := w.record("order-1").Generation
		w.put(status.Update{InstanceID: "order-1", Generation: &g, Sequence: &n, Kind: status.KindProgress, CustomStatus: raw("7")})
		w.progresses("order-1", "2")
		w.after(30 * time.Second)
		w.shows("order-1", status.Running, "7")
	})
}

// A lifecycle that another reports is that one's too, until it has been silent for long
// about an end.
func TestForeignLifecycleIsOnlyEnded(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "")
		g := time.Now().UnixMilli()
		w.after(time.Second)
		w.others("order-1", status.KindSnapshot, g, status.Suspended, "1")
		w.wants("order-1")
		w.bridge()
		w.after(10 * time.Minute)
		w.shows("order-1", status.Suspended, "1") // whatever the runtime says
		w.others("order-1", status.KindProgress, g, "", "2")
		w.becomes("order-1", "Completed", `"x"`)
		w.after(4 * time.Minute)
		w.shows("order-1", status.Suspended, "2")
		w.after(3 * time.Minute)
		if r := w.shows("order-1", status.Completed, "2"); string(r.Lifecycle.Output) != `"x"` {
			w.Errorf("got %+v", r.Lifecycle)
		}
	})
}

// A publisher that declares no generation keeps its record, labels included.
func TestUndeclaredGenerationIsLeftAlone(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "")
		w.put(status.Update{InstanceID: "order-1", Broker: 7, Kind: status.KindProgress, CustomStatus: raw("1"), Labels: map[string]string{"owner": "u-1"}})
		w.wants("order-1")
		w.bridge()
		w.after(time.Second)
		if r := w.shows("order-1", status.Running, "1"); r.Partial() || r.Labels["owner"] != "u-1" || r.Generation != 0 {
			w.Errorf("got %+v", r)
		}
		w.after(time.Minute) // the same id, another execution
		w.runs("order-1", "2")
		w.after(30 * time.Second)
		if r := w.shows("order-1", status.Running, "2"); len(r.Labels) > 0 {
			w.Errorf("the labels of another execution are still there: %+v", r)
		}
	})
}

// A bridge that is started again publishes nothing that a reader would see, and
// goes on from where the other was.
func TestRestartIsNotSeen(t *testing.T) {
	for name, filter := range map[string]func(*status.Update){
		"everything is stored": nil,
		"the policy filters":   func(u *status.Update) { u.CustomStatus, u.Output = raw(`{}`), nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.filter = filter
				w.runs("order-1", `{"percent":1}`)
				w.runs("order-2", `{"percent":1}`)
				w.becomes("order-2", "Completed", `"x"`)
				w.wants("order-1", "order-2")
				stop := w.bridge()
				w.after(time.Minute)
				stop()
				before := []int64{w.record("order-1").Version, w.record("order-2").Version}
				said := w.said()
				w.bridge()
				w.after(2 * time.Minute)
				if now := []int64{w.record("order-1").Version, w.record("order-2").Version}; now[0] != before[0] || now[1] != before[1] {
					w.Errorf("versions %v became %v", before, now)
				}
				if n := w.said() - said; filter == nil && n != 0 || n > 2 {
					w.Errorf("%d updates after a restart", n)
				}
				w.becomes("order-1", "Completed", "")
				w.after(20 * time.Second)
				if got := w.record("order-1").RuntimeStatus(); got != status.Completed {
					w.Errorf("got %s", got)
				}
			})
		})
	}
}

// Of two replicas one bridges, and when it dies the other does, which tells what has
// changed meanwhile; at once if the first was told to stop.
func TestTakeover(t *testing.T) {
	bubble(t, func(w *world) {
		var asked [2]atomic.Int64
		replica := func(n int) func(*durablehttp.Options) {
			return func(o *durablehttp.Options) {
				o.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
					asked[n].Add(1)
					return w.app.RoundTrip(r)
				})
			}
		}
		w.runs("order-1", "1")
		w.wants("order-1")
		stop := w.bridge(replica(0))
		w.after(time.Second)
		w.bridge(replica(1))
		w.after(10 * time.Minute)
		if asked[1].Load() != 0 || asked[0].Load() == 0 {
			w.Errorf("%d and %d requests, want only the first to ask", asked[0].Load(), asked[1].Load())
		}
		w.progresses("order-1", "2")
		stop()
		w.after(6 * time.Second)
		w.shows("order-1", status.Running, "2")
		// The second loses its lease to one that never asks.
		w.mu.Lock()
		w.leases["bridge/"+hub] = held{"a third", time.Now().Add(5 * time.Minute)}
		w.mu.Unlock()
		w.after(6 * time.Second)
		before := asked[1].Load()
		w.progresses("order-1", "3")
		w.after(4 * time.Minute)
		if asked[1].Load() != before {
			w.Error("it asks although it has lost its lease")
		}
		w.after(time.Minute)
		w.shows("order-1", status.Running, "3")
	})
}

// What another bridge has said meanwhile does not hide what is so now.
func TestTwoBridgesAtOnce(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		w.bridge()
		w.bridge(func(o *durablehttp.Options) { o.Lock = always{} })
		for i := range 100 {
			w.progresses("order-1", string(rune('0'+i%2)))
			w.after(time.Duration(500+37*i) * time.Millisecond)
		}
		w.after(20 * time.Second)
		w.shows("order-1", status.Running, "1")
		before := w.record("order-1").Version
		w.after(5 * time.Minute)
		if got := w.record("order-1").Version; got != before {
			w.Errorf("version %d became %d although nothing changed", before, got)
		}
	})
}

// A record that is lost comes back although nothing has changed; while nothing of what
// is published arrives, it is published again rarely.
func TestLossIsRepaired(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		w.bridge()
		w.after(5 * time.Minute)
		w.loses()
		w.after(20 * time.Second)
		w.shows("order-1", status.Running, "1")

		w.mu.Lock()
		w.lost = true
		w.mu.Unlock()
		before := w.said()
		w.progresses("order-1", "2")
		w.after(time.Hour)
		if n := w.said() - before; n < 3 || n > 20 {
			w.Errorf("published %d times in an hour in which nothing arrived", n)
		}
		w.mu.Lock()
		w.lost = false
		w.mu.Unlock()
		w.after(6 * time.Minute)
		w.shows("order-1", status.Running, "2")
	})
}

// What is published again while it is on its way was not forgotten: the newest counts.
func TestNewsWhileOnItsWay(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", `"a"`)
		w.wants("order-1")
		w.bridge()
		w.after(time.Second)
		w.mu.Lock()
		w.lost = true // for now
		w.mu.Unlock()
		w.progresses("order-1", `"b"`)
		w.after(4 * time.Second)
		w.progresses("order-1", `"a"`)
		w.after(4 * time.Second)
		w.mu.Lock()
		w.lost = false
		for _, u := range slices.Backward(w.published) { // all of it arrives, the newest first
			w.merge(u)
		}
		w.mu.Unlock()
		w.shows("order-1", status.Running, `"a"`)
	})
}

// Labels are the configured ones, and those of the custom status: before any filter.
func TestLabels(t *testing.T) {
	bubble(t, func(w *world) {
		w.filter = func(u *status.Update) {
			if u.CustomStatus != nil {
				u.CustomStatus = raw(`{}`)
			}
		}
		w.runs("order-1", `{"tenant":{"id":"contoso"},"a/b":[{"n":17}],"flag":true}`)
		w.wants("order-1")
		w.bridge(func(o *durablehttp.Options) {
			o.Labels = durablehttp.Labels{"app": "orders", "tenant": "/tenant/id", "n": "/a~1b/0/n", "none": "/x/y", "flag": "/flag", "index": "/a~1b/00/n"}
		})
		w.after(time.Second)
		r := w.record("order-1")
		if len(r.Labels) != 3 || r.Labels["app"] != "orders" || r.Labels["tenant"] != "contoso" || r.Labels["n"] != "17" {
			w.Errorf("got %v", r.Labels)
		}
		w.progresses("order-1", `{"tenant":{"id":"fabrikam"}}`) // who changes it lets nobody in
		w.after(20 * time.Second)
		if r := w.record("order-1"); len(r.Conflicts) != 1 || r.Conflicts[0] != "tenant" {
			w.Errorf("got %v with conflicts %v", r.Labels, r.Conflicts)
		}
	})
}

// Labels are added where others publish both lanes and know of none.
func TestLabelsBesideForeignLanes(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "")
		w.others("order-1", status.KindSnapshot, time.Now().UnixMilli(), status.Running, "1")
		w.wants("order-1")
		w.bridge(func(o *durablehttp.Options) { o.Labels = durablehttp.Labels{"app": "orders"} })
		w.after(5 * time.Minute)
		if r := w.shows("order-1", status.Running, "1"); r.Labels["app"] != "orders" || w.said() != 1 {
			w.Errorf("got %v after %d updates", r.Labels, w.said())
		}
	})
}
