package httpapi_test

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// store is records by key, or an error for all. It tells the hub and the lists what is put.
type store struct {
	mu      sync.Mutex
	records map[status.Key]*status.Record
	err     error
	calls   int
	offer   func(*status.Record)
	touch   func(status.Index, []status.Key)
}

func (s *store) put(r *status.Record) {
	s.mu.Lock()
	s.records[r.Key()] = r
	s.mu.Unlock()
	s.offer(r)
	for _, index := range r.Indexes([]string{"owner"}) {
		s.touch(index, []status.Key{r.Key()})
	}
}

// took returns how often the store was asked since the last time.
func (s *store) took() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = 0
	return calls
}

func (s *store) Latest(_ context.Context, keys []status.Key) ([]*status.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = s.records[k]
	}
	return records, s.err
}

// List orders by version, as the real one does, and looks at n entries.
func (s *store) List(_ context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	all := slices.SortedFunc(maps.Values(s.records), func(a, b *status.Record) int {
		return cmp.Or(cmp.Compare(b.Version, a.Version), cmp.Compare(a.InstanceID, b.InstanceID))
	})
	var page status.Page
	looked, at := 0, status.Cursor{}
	for _, r := range all {
		if at.Version != r.Version {
			at = status.Cursor{Version: r.Version}
		}
		at.Ties++
		if from.Version != 0 && (r.Version > from.Version || r.Version == from.Version && at.Ties <= from.Ties) {
			continue
		}
		if looked == n {
			return page, s.err
		}
		looked++
		page.Next = at
		if q.Match(r) {
			page.Records, page.After = append(page.Records, r), append(page.After, at)
		}
	}
	page.Next = status.Cursor{}
	return page, s.err
}

func (s *store) Subscribe(context.Context, []status.Key) error        { return nil }
func (s *store) Unsubscribe([]status.Key)                             {}
func (s *store) SubscribeLists(context.Context, []status.Index) error { return nil }
func (s *store) UnsubscribeLists([]status.Index)                      {}

// newAPI returns an API on the development policy, with a hub and lists that run until the test ends.
func newAPI(t testing.TB, records ...*status.Record) (*httpapi.API, *store) {
	t.Helper()
	w := newWorld(t, httpapi.Options{}, records...)
	return w.api, w.store
}

type world struct {
	api    *httpapi.API
	store  *store
	policy atomic.Pointer[policy.Policy]
	end    func()
}

func newWorld(t testing.TB, o httpapi.Options, records ...*status.Record) *world {
	t.Helper()
	w := &world{store: &store{records: make(map[status.Key]*status.Record)}}
	w.policy.Store(parsed(t, string(policy.Development())))
	for _, r := range records {
		w.store.records[r.Key()] = r
	}
	h := hub.New(hub.Options{})
	lists := hub.NewLists(hub.ListOptions{Labels: []string{"owner"}})
	w.store.offer, w.store.touch = h.Offer, lists.Touch
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = h.Run(ctx, w.store, w.store) })
	running.Go(func() { _ = lists.Run(ctx, w.store, w.store) })
	w.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(w.end)
	o.Verify, o.Store, o.DefaultHub = verify, w.store, "orders"
	o.Source = reader.NewSource(h, lists, w.policy.Load)
	w.api = httpapi.New(o)
	return w
}

func parsed(t testing.TB, file string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
