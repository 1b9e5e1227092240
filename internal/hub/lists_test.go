package hub_test

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"statusrelay/internal/hub"
	"statusrelay/internal/status"
)

// shelf is a store with indexes, and their feed, in memory.
type shelf struct {
	*redis
	lists   *hub.Lists
	indexes map[status.Index]bool // guarded by redis.mu
	delay   time.Duration         // of a look at an index; set before there is a list
}

func (s *shelf) SubscribeLists(_ context.Context, indexes []status.Index) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.log("subscribe", named(indexes)); err != nil {
		return err
	}
	for _, in := range indexes {
		s.indexes[in] = true
	}
	return nil
}

func (s *shelf) UnsubscribeLists(indexes []status.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.log("unsubscribe", named(indexes))
	for _, in := range indexes {
		delete(s.indexes, in)
	}
}

func named(indexes []status.Index) (keys []status.Key) {
	for _, in := range indexes {
		keys = append(keys, status.Key{InstanceID: cmp.Or(in.Value, "all")})
	}
	return keys
}

func (s *shelf) List(_ context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error) {
	time.Sleep(s.delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.log("list", nil); err != nil {
		return status.Page{}, err
	}
	var entries []*status.Record
	for _, r := range s.records {
		if slices.Contains(r.Indexes([]string{"owner"}), q.Index([]string{"owner"})) && (from.Version == 0 || r.Version < from.Version) {
			entries = append(entries, r)
		}
	}
	slices.SortFunc(entries, func(a, b *status.Record) int { return cmp.Compare(b.Version, a.Version) })
	var page status.Page
	for i, r := range entries {
		if i == n {
			return page, nil
		}
		page.Next = status.Cursor{Version: r.Version, Ties: 1}
		if q.Match(r) {
			page.Records = append(page.Records, r)
		}
	}
	page.Next = status.Cursor{}
	return page, nil
}

// owned puts an instance that belongs to somebody, and tells it.
func (s *shelf) owned(id, owner string, version int64) {
	r := &status.Record{Hub: "h", InstanceID: id, Version: version, Labels: map[string]string{"owner": owner}}
	s.mu.Lock()
	s.records[r.Key()] = r
	deaf := s.deaf
	s.mu.Unlock()
	if !deaf {
		for _, in := range r.Indexes([]string{"owner"}) {
			s.lists.Touch(in, []status.Key{r.Key()})
		}
	}
}

// finder is a reader of a list that admits what does not begin with "x".
type finder struct {
	caller string
	mu     sync.Mutex
	found  []string
}

func (f *finder) MaySelect() bool { return true }

func (f *finder) Caller() string { return f.caller }

func (f *finder) Wants(status.Key) bool { return true }

func (f *finder) Admits(r *status.Record) bool { return !strings.HasPrefix(r.InstanceID, "x") }

func (f *finder) Offer(keys []status.Key, whole, more bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for _, k := range keys {
		ids = append(ids, k.InstanceID)
	}
	if !whole {
		slices.Sort(ids)
	}
	f.found = append(f.found, fmt.Sprintf("%s whole=%t more=%t", strings.Join(ids, " "), whole, more))
}

// took is what was found since it was asked last.
func (f *finder) took() string {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	found := f.found
	f.found = nil
	return strings.Join(found, "; ")
}

func shelves(t *testing.T, o hub.ListOptions, f func(s *shelf)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Labels = []string{"owner"}
		s := &shelf{redis: newRedis(), lists: hub.NewLists(o), indexes: map[status.Index]bool{}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.lists.Run(ctx, s, s) }()
		f(s)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func of(owner string) *status.Query {
	return &status.Query{Hub: "h", Labels: map[string]string{"owner": owner}}
}

func TestListFindsWhatThereIsAndWhatAppears(t *testing.T) {
	shelves(t, hub.ListOptions{}, func(s *shelf) {
		s.owned("a", "alice", 10)
		s.owned("b", "bob", 11)
		s.owned("xc", "alice", 12)
		s.owned("d", "alice", 13)
		f := &finder{}
		l := s.lists.Watch(of("alice"), 10, f)
		want(t, "at first", f.took(), "d a whole=true more=false")
		want(t, "calls", s.took(), []string{"subscribe alice", "list "})
		time.Sleep(time.Second)
		s.owned("e", "alice", 20)
		s.owned("xf", "alice", 21)
		s.owned("g", "bob", 22)
		time.Sleep(time.Second)
		want(t, "what appears", f.took(), "e whole=false more=false")
		all := &finder{}
		m := s.lists.Watch(&status.Query{Hub: "h"}, 2, all)
		want(t, "of the hub", all.took(), "g e whole=true more=true")
		l.Close()
		m.Close()
		time.Sleep(time.Second)
		s.took()
		s.owned("h", "alice", 30)
		time.Sleep(time.Hour)
		want(t, "after it is closed", f.took()+all.took(), "")
		want(t, "calls", s.took(), []string(nil))
	})
}

func TestManyTouchesAreReadTogether(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	shelves(t, hub.ListOptions{Pace: 50 * time.Millisecond, Metrics: registry}, func(s *shelf) {
		first, second := &finder{}, &finder{}
		s.lists.Watch(of("alice"), 100, first)
		s.lists.Watch(of("alice"), 100, second)
		first.took()
		s.took()
		for n := range 10_000 { // in a second
			s.owned(fmt.Sprint(n%7), "alice", int64(100+n))
			if n%10 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(time.Second)
		first.took()
		second.took()
		calls := s.took()
		if len(calls) > 25 {
			t.Errorf("%d calls for a second of changes", len(calls))
		}
		for _, c := range calls {
			if !strings.HasPrefix(c, "read ") {
				t.Errorf("%s", c)
			}
		}
		metrics := `
			# HELP statusrelay_hub_lists Queries that are watched, by all transports.
			# TYPE statusrelay_hub_lists gauge
			statusrelay_hub_lists 2
		`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(metrics), "statusrelay_hub_lists"); err != nil {
			t.Error(err)
		}
		for n := range 10_000 { // too many different ones to be remembered
			s.owned(fmt.Sprintf("n%d", n), "alice", int64(100_000+n))
		}
		time.Sleep(time.Second)
		if got := first.took(); !strings.Contains(got, "whole=true more=true") {
			t.Errorf("got %.100s", got)
		}
	})
}

func TestGapReadsListsAgain(t *testing.T) {
	shelves(t, hub.ListOptions{Refresh: time.Hour}, func(s *shelf) {
		f := &finder{}
		s.lists.Watch(of("alice"), 10, f)
		want(t, "at first", f.took(), " whole=true more=false")
		s.set(func() { s.deaf = true })
		s.owned("a", "alice", 10)
		time.Sleep(time.Minute)
		want(t, "nobody knows", f.took(), "")
		s.lists.Gap()
		time.Sleep(time.Second)
		want(t, "after the gap", f.took(), "a whole=true more=false")
		s.owned("b", "alice", 11)
		time.Sleep(time.Hour)
		want(t, "in any case once in a while", f.took(), "b a whole=true more=false")
	})
}

func TestListsSurviveAnOutage(t *testing.T) {
	shelves(t, hub.ListOptions{Refresh: time.Hour}, func(s *shelf) {
		old := &finder{}
		s.lists.Watch(of("alice"), 10, old)
		old.took()
		s.set(func() { s.away = true })
		fresh := &finder{}
		s.lists.Watch(of("bob"), 10, fresh)
		s.owned("a", "alice", 10)
		s.owned("b", "bob", 11)
		time.Sleep(5 * time.Minute)
		want(t, "meanwhile", old.took()+fresh.took(), "")
		if n := len(s.took()); n > 200 {
			t.Errorf("%d calls in five minutes", n)
		}
		s.set(func() { s.away = false })
		time.Sleep(10 * time.Second)
		want(t, "old", old.took(), "a whole=false more=false")
		want(t, "fresh", strings.Contains(fresh.took(), "b whole=true more=false"), true)
	})
}

// Lists are read one after the other. Who has a thousand of them does not keep others waiting, and is not forgotten either.
func TestCallersTakeTurns(t *testing.T) {
	shelves(t, hub.ListOptions{Refresh: time.Hour}, func(s *shelf) {
		s.delay = 30 * time.Millisecond
		greedy := make([]*finder, 1000)
		for i := range greedy {
			greedy[i] = &finder{caller: "greedy"}
			s.lists.Watch(of(fmt.Sprint("g", i%2)), 10, greedy[i])
		}
		time.Sleep(time.Second)
		for range 3 {
			modest := []*finder{{caller: "modest"}, {caller: "modest"}}
			for _, f := range modest {
				s.lists.Watch(of("alice"), 10, f)
			}
			time.Sleep(time.Second)
			for _, f := range modest {
				want(t, "who has two", f.took(), " whole=true more=false")
			}
		}
		time.Sleep(2 * time.Minute)
		for _, f := range greedy {
			want(t, "who has many", f.took(), " whole=true more=false")
		}
	})
}

func TestListOfWhatIsRareIsGivenUp(t *testing.T) {
	shelves(t, hub.ListOptions{}, func(s *shelf) {
		for n := range 2500 {
			s.records[key(fmt.Sprint(n))] = &status.Record{Hub: "h", InstanceID: fmt.Sprint(n), Version: int64(10 + n)}
		}
		f := &finder{}
		s.lists.Watch(&status.Query{Hub: "h", Name: "rare"}, 10, f)
		want(t, "found", f.took(), " whole=true more=true")
		if n := len(s.took()); n > 12 {
			t.Errorf("%d calls", n)
		}
	})
}
