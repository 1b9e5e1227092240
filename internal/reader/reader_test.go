package reader_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// redis is a store, with one index, and its feed, in memory.
type redis struct {
	mu      sync.Mutex
	records map[status.Key]*status.Record
}

func (*redis) Subscribe(context.Context, []status.Key) error        { return nil }
func (*redis) Unsubscribe([]status.Key)                             {}
func (*redis) SubscribeLists(context.Context, []status.Index) error { return nil }
func (*redis) UnsubscribeLists([]status.Index)                      {}

func (r *redis) Latest(_ context.Context, keys []status.Key) ([]*status.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = r.records[k]
	}
	return records, nil
}

func (r *redis) List(_ context.Context, q *status.Query, _ status.Cursor, _ int) (status.Page, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var page status.Page
	for _, record := range r.records {
		if q.Match(record) {
			page.Records = append(page.Records, record)
		}
	}
	return page, nil
}

// world is a hub, its lists, and one reader of them that nobody takes from unless it is asked to.
type world struct {
	testing.TB
	redis
	hub    *hub.Hub
	lists  *hub.Lists
	source *reader.Source
	policy atomic.Pointer[policy.Policy]
	reader reader.Reader

	wakes, unchanged, held atomic.Int64
}

func (w *world) Wake()      { w.wakes.Add(1) }
func (w *world) Unchanged() { w.unchanged.Add(1) }
func (w *world) Held()      { w.held.Add(1) }

func fake(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{TB: t, hub: hub.New(hub.Options{}), lists: hub.NewLists(hub.ListOptions{})}
		w.records = map[status.Key]*status.Record{}
		w.obey(string(policy.Development()))
		w.source = reader.NewSource(w.hub, w.lists, w.policy.Load)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = w.hub.Run(ctx, w, w) })
		running.Go(func() { _ = w.lists.Run(ctx, w, w) })
		w.reader.Open(w.source, w)
		w.is("alice")
		f(w)
		w.reader.Close()
		stop()
		running.Wait()
	})
}

func (w *world) obey(file string) {
	w.Helper()
	p, err := policy.Parse([]byte(file))
	if err != nil {
		w.Fatal(err)
	}
	w.policy.Store(p)
}

func (w *world) is(subject string, roles ...any) {
	w.reader.SetPrincipal(&auth.Principal{Issuer: "test", Subject: subject, Claims: map[string]any{"sub": subject, "roles": roles}})
	w.reader.Reassess()
}

func key(id string) status.Key { return status.Key{Hub: "h", InstanceID: id} }

func (w *world) put(id, owner string, version int64, percent int) {
	w.store(&status.Record{
		Hub: "h", InstanceID: id, Version: version, Labels: map[string]string{"owner": owner},
		Lifecycle: status.Lifecycle{Position: status.Position{Class: status.Declared}, RuntimeStatus: status.Running},
		Progress:  status.Progress{CustomStatus: json.RawMessage(fmt.Sprintf(`{"percent":%d,"secret":%d}`, percent, version))},
	})
}

func (w *world) store(r *status.Record) {
	w.mu.Lock()
	w.records[r.Key()] = r
	w.mu.Unlock()
	w.hub.Offer(r)
	w.lists.Touch(status.Index{Hub: "h"}, []status.Key{r.Key()})
}

// next takes the next event. To look at a list, or a watch of one, may have the hub read once more.
func (w *world) next(e *reader.Event) bool {
	for range 3 {
		synctest.Wait()
		if w.reader.Next(e) {
			return true
		}
	}
	return false
}

// told takes all that there is, in few words.
func (w *world) told() string {
	w.Helper()
	var words []string
	for e := (reader.Event{}); w.next(&e); {
		words = append(words, short(&e))
	}
	return strings.Join(words, ", ")
}

func short(e *reader.Event) string {
	switch e.Kind {
	case reader.Status:
		if !strings.Contains(string(e.Sight.JSON), fmt.Sprintf(`"version":%d`, e.Version)) {
			return fmt.Sprintf("%s %d, but %s", e.Key.InstanceID, e.Version, e.Sight.JSON)
		}
		return fmt.Sprintf("%s %d", e.Key.InstanceID, e.Version)
	case reader.Gone:
		return fmt.Sprintf("%s %d gone", e.Key.InstanceID, e.Version)
	case reader.Joined:
		return fmt.Sprintf("%s joined %s", e.Key.InstanceID, e.List)
	case reader.Left:
		return fmt.Sprintf("%s %d left %s", e.Key.InstanceID, e.Version, e.List)
	default:
		return fmt.Sprintf("%s listed %t", e.List, e.More)
	}
}

func (w *world) wants(want string) {
	w.Helper()
	if got := w.told(); got != want {
		w.Errorf("got %q, want %q", got, want)
	}
}

func TestReaderIsToldTheNewestOfEach(t *testing.T) {
	fake(t, func(w *world) {
		w.reader.Watch(key("a"), reader.Terms{})
		w.reader.Watch(key("b"), reader.Terms{After: 20})
		w.put("b", "alice", 20, 1)
		w.wants("")
		for n := range 10 {
			w.put("a", "alice", int64(30+n), n)
		}
		w.put("b", "alice", 40, 2)
		w.wants("a 39, b 40")
		w.put("a", "alice", 50, 9) // looks the same
		w.wants("")
		w.store(&status.Record{Hub: "h", InstanceID: "a", Version: 60, Purged: true})
		w.put("b", "bob", 61, 3)
		w.wants("a 60 gone, b 41 gone")
		if w.unchanged.Load() != 1 {
			t.Errorf("%d unchanged, want 1", w.unchanged.Load())
		}
	})
}

func TestLastEventSaysSo(t *testing.T) {
	fake(t, func(w *world) {
		for _, id := range []string{"a", "b", "c"} {
			w.put(id, "alice", 10, 1)
			w.reader.Watch(key(id), reader.Terms{})
		}
		synctest.Wait()
		for i := range 3 {
			var e reader.Event
			if !w.reader.Next(&e) || e.Last != (i == 2) {
				t.Errorf("event %d: %s, last %t", i, short(&e), e.Last)
			}
		}
		wakes := w.wakes.Load()
		w.put("a", "alice", 20, 2)
		if w.wakes.Load() == wakes {
			t.Error("not woken after the last one")
		}
	})
}

func TestPausedReaderTellsNothing(t *testing.T) {
	fake(t, func(w *world) {
		w.put("a", "alice", 10, 1)
		w.reader.Pause()
		w.reader.Watch(key("a"), reader.Terms{})
		w.reader.Pause()
		w.wants("")
		w.reader.WatchList("l", &status.Query{Hub: "h"}, 10, 0)
		w.wants("")
		w.reader.Resume()
		w.wants("")
		w.reader.Resume()
		got := w.told()
		time.Sleep(time.Second)
		got += ", " + w.told()
		for _, want := range []string{"a 10", "a joined l", "l listed false"} {
			if strings.Count(got, want) != 1 {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	})
}

// TestNothingIsToldOfWhatWasTakenBack has events wait in the reader, and what they are about closed.
func TestNothingIsToldOfWhatWasTakenBack(t *testing.T) {
	// first lets everything be looked at, and takes the first event only.
	first := func(w *world, want string) {
		w.Helper()
		var e reader.Event
		if !w.next(&e) || short(&e) != want {
			w.Errorf("got %s, want %s", short(&e), want)
		}
	}
	mine := &status.Query{Hub: "h", RuntimeStatus: []status.RuntimeStatus{status.Running}}
	t.Run("list closed", func(t *testing.T) {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			w.reader.WatchList("l", mine, 10, 0)
			first(w, "a joined l") // and its status waits
			w.reader.UnwatchList("l")
			w.wants("")
		})
	})
	t.Run("list closed, and watched by name", func(t *testing.T) {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			w.reader.WatchList("l", mine, 10, 0)
			first(w, "a joined l")
			w.reader.Watch(key("a"), reader.Terms{})
			w.reader.UnwatchList("l")
			w.wants("a 10")
		})
	})
	t.Run("list left, then closed", func(t *testing.T) {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			w.reader.WatchList("l", mine, 10, 0)
			w.wants("a joined l, a 10, l listed false")
			w.put("b", "alice", 11, 1)
			time.Sleep(time.Second)
			w.wants("b joined l, b 11")
			r := *w.records[key("a")]
			r.Version, r.Lifecycle.RuntimeStatus = 20, status.Completed
			w.store(&r)
			first(w, "a 20") // and that it has left waits
			w.reader.UnwatchList("l")
			w.wants("")
		})
	})
	t.Run("other lists are not concerned", func(t *testing.T) {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			w.reader.WatchList("l", mine, 10, 0)
			w.wants("a joined l, a 10, l listed false")
			r := *w.records[key("a")]
			r.Version, r.Lifecycle.RuntimeStatus = 20, status.Completed
			w.reader.WatchList("m", &status.Query{Hub: "none"}, 10, 0)
			time.Sleep(time.Second)
			w.wants("m listed false")
			w.store(&r)
			first(w, "a 20")
			w.reader.UnwatchList("m")
			w.reader.Unwatch(key("a"))
			w.wants("a 20 left l")
		})
	})
	t.Run("minimum interval", func(t *testing.T) {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			w.reader.Watch(key("a"), reader.Terms{MinInterval: time.Second})
			w.wants("a 10")
			w.put("a", "alice", 20, 2)
			w.wants("")
			w.reader.Unwatch(key("a"))
			time.Sleep(time.Minute)
			w.wants("")
			if w.held.Load() != 1 {
				t.Errorf("held %d times, want 1", w.held.Load())
			}
		})
	})
}

func TestWhatNoLongerFitsNeverJoins(t *testing.T) {
	fake(t, func(w *world) {
		w.put("a", "alice", 10, 1)
		w.reader.WatchList("l", &status.Query{Hub: "h", RuntimeStatus: []status.RuntimeStatus{status.Running}}, 10, 0)
		synctest.Wait() // found, and not looked at
		r := *w.records[key("a")]
		r.Version, r.Lifecycle.RuntimeStatus = 20, status.Completed
		w.store(&r)
		w.wants("l listed false")
	})
}

func TestShortestIntervalCounts(t *testing.T) {
	for _, tt := range []struct {
		name  time.Duration // -1: not watched by name
		lists []time.Duration
		want  time.Duration
	}{
		{-1, []time.Duration{10 * time.Second}, 10 * time.Second},
		{-1, []time.Duration{10 * time.Second, 5 * time.Second}, 5 * time.Second},
		{-1, []time.Duration{10 * time.Second, 0}, 0},
		{7 * time.Second, []time.Duration{10 * time.Second}, 7 * time.Second},
		{7 * time.Second, []time.Duration{3 * time.Second, 10 * time.Second}, 3 * time.Second},
		{0, []time.Duration{10 * time.Second}, 0},
		{7 * time.Second, nil, 7 * time.Second},
	} {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			if tt.name >= 0 {
				w.reader.Watch(key("a"), reader.Terms{MinInterval: tt.name})
			}
			for i, interval := range tt.lists {
				w.reader.WatchList(fmt.Sprint(i), &status.Query{Hub: "h"}, 10, interval)
			}
			for range 10 {
				time.Sleep(time.Minute)
				w.told()
			}
			w.put("a", "alice", 20, 2)
			w.wants("a 20")
			w.put("a", "alice", 30, 3)
			if tt.want > 0 {
				time.Sleep(tt.want - time.Millisecond)
				w.wants("")
				time.Sleep(time.Millisecond)
			}
			w.wants("a 30")
		})
	}
}

func TestSightAndItsFormsAreMadeOnce(t *testing.T) {
	fake(t, func(w *world) {
		w.put("a", "alice", 10, 1)
		var other reader.Reader
		other.Open(w.source, w)
		other.SetPrincipal(&auth.Principal{Issuer: "test", Subject: "alice", Claims: map[string]any{"sub": "alice", "roles": []any{}}})
		defer other.Close()
		w.reader.Watch(key("a"), reader.Terms{})
		other.Watch(key("a"), reader.Terms{})
		synctest.Wait()
		w.put("a", "alice", 20, 2) // one snapshot for both
		var e, f reader.Event
		if !w.reader.Next(&e) || !other.Next(&f) || e.Sight != f.Sight {
			t.Fatalf("got %v and %v", e, f)
		}
		made := 0
		for _, s := range []*reader.Sight{e.Sight, f.Sight} {
			if got := s.Make(reader.StatusFrame, func() any { made++; return "frame" }); got != "frame" {
				t.Errorf("made %v", got)
			}
			if got, ok := s.Form(reader.StatusFrame); got != "frame" || !ok {
				t.Errorf("has %v", got)
			}
		}
		if _, ok := e.Sight.Form(reader.WebPubSubFrame); made != 1 || ok {
			t.Errorf("made %d times, and another form: %t", made, ok)
		}
	})
}

func TestStatusAllocatesNothingPerReader(t *testing.T) {
	h := hub.New(hub.Options{})
	p, err := policy.Parse(policy.Development())
	if err != nil {
		t.Fatal(err)
	}
	s := reader.NewSource(h, nil, func() *policy.Policy { return p })
	w := &world{TB: t}
	who := &auth.Principal{Issuer: "test", Subject: "alice", Claims: map[string]any{"sub": "alice", "roles": []any{}}}
	readers := make([]reader.Reader, 1000)
	for i := range readers {
		readers[i].Open(s, w)
		readers[i].SetPrincipal(who)
		readers[i].Watch(key("a"), reader.Terms{})
	}
	version := int64(0)
	allocs := testing.AllocsPerRun(10, func() {
		version++
		h.Offer(&status.Record{
			Hub: "h", InstanceID: "a", Version: version, Labels: map[string]string{"owner": "alice"},
			Progress: status.Progress{CustomStatus: json.RawMessage(fmt.Sprintf(`{"percent":%d}`, version))},
		})
		var e reader.Event
		for i := range readers {
			if !readers[i].Next(&e) {
				t.Fatal("nothing")
			}
		}
	})
	if allocs > 100 {
		t.Errorf("%v allocations for a version and 1,000 readers", allocs)
	}
}

func TestWhatComesBackWhileItLeavesIsNotMissed(t *testing.T) {
	for _, limit := range []int{10, 1} {
		fake(t, func(w *world) {
			w.put("a", "alice", 10, 1)
			w.reader.WatchList("l", &status.Query{Hub: "h", RuntimeStatus: []status.RuntimeStatus{status.Running}}, limit, 0)
			w.wants("a joined l, a 10, l listed false")
			time.Sleep(time.Second)
			r := *w.records[key("a")]
			r.Version, r.Lifecycle.RuntimeStatus = 15, status.Completed
			w.hub.Offer(&r)
			w.mu.Lock()
			back := r
			back.Version, back.Lifecycle.RuntimeStatus = 20, status.Running
			w.records[key("a")] = &back
			w.mu.Unlock()
			w.lists.Touch(status.Index{Hub: "h"}, []status.Key{key("a")}) // overtakes the push
			time.Sleep(time.Second)
			w.wants("a 15, a 15 left l, a joined l, a 20")
		})
	}
}

func TestListOfTheSameNameReplaces(t *testing.T) {
	fake(t, func(w *world) {
		w.put("a", "alice", 10, 1)
		w.reader.WatchList("l", &status.Query{Hub: "h"}, 10, 0)
		w.wants("a joined l, a 10, l listed false")
		w.reader.WatchList("l", &status.Query{Hub: "none"}, 10, 0)
		time.Sleep(time.Second)
		w.wants("l listed false")
		w.put("a", "alice", 20, 2)
		time.Sleep(time.Second)
		w.wants("")
		if n := w.reader.Watches(); n != 10 {
			t.Errorf("%d watches, want 10", n)
		}
	})
}
