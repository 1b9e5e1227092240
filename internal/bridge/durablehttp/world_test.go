package durablehttp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/bridge/durablehttp"
	"statusrelay/internal/functest"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

const (
	hub = "orders"
	key = "s3cret-system-key"
)

// world is a function app and what stands behind the bridge, all in a bubble of
// testing/synctest: hours pass in no time.
type world struct {
	*testing.T
	app *functest.App

	mu        sync.Mutex
	records   map[string]*status.Record
	interest  map[string]time.Time
	heard     map[*func(string)]bool
	leases    map[string]held
	published []status.Update
	away      bool                 // the store
	lost      bool                 // what is published reaches no store
	refuse    bool                 // nothing can be published
	filter    func(*status.Update) // the relay's policy
}

type held struct {
	holder string
	until  time.Time
}

// bubble runs a test in a bubble.
func bubble(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(&world{
			T: t, app: functest.New(functest.Options{Key: key, TaskHub: "Orders"}), records: map[string]*status.Record{},
			interest: map[string]time.Time{}, heard: map[*func(string)]bool{}, leases: map[string]held{},
		})
	})
}

// bridge starts one and returns how to stop it.
func (w *world) bridge(change ...func(*durablehttp.Options)) (stop func()) {
	w.Helper()
	o := durablehttp.Options{
		URL: "http://app.example" + functest.Path, Hub: hub, TaskHub: "Orders", Connection: "Storage",
		Key:      func() (string, error) { return key, nil },
		Interest: w, Records: w, Lock: w, Publish: w.publish, Transport: w.app, Metrics: prometheus.NewRegistry(),
	}
	for _, f := range change {
		f(&o)
	}
	b, err := durablehttp.New(o)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("Run: %v", err)
		}
	})
	w.Cleanup(stop)
	return stop
}

// after lets time pass, and everything happen that it brings.
func (w *world) after(d time.Duration) {
	time.Sleep(d) // in the bubble
	synctest.Wait()
}

// runs is an instance that runs since now.
func (w *world) runs(id, custom string) {
	now := time.Now()
	w.app.Set(functest.State{Name: "ProcessOrder", InstanceID: id, RuntimeStatus: "Running", CustomStatus: raw(custom), CreatedTime: now, Input: raw(`"s3cret-input"`)})
}

func raw(text string) json.RawMessage {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

// progresses changes the custom status of an instance at the runtime.
func (w *world) progresses(id, custom string) {
	w.app.Change(id, func(s *functest.State) { s.CustomStatus, s.LastUpdatedTime = raw(custom), time.Now() })
}

// becomes changes the runtime status.
func (w *world) becomes(id, runtimeStatus, output string) {
	w.app.Change(id, func(s *functest.State) {
		s.RuntimeStatus, s.Output, s.LastUpdatedTime = runtimeStatus, raw(output), time.Now()
	})
}

// wants makes instances of interest for as long as the test lasts.
func (w *world) wants(ids ...string) { w.wantsFor(24*time.Hour, ids...) }

func (w *world) wantsFor(d time.Duration, ids ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		w.interest[id] = time.Now().Add(d)
		for f := range w.heard {
			(*f)(id)
		}
	}
}

// record is what is stored of an instance.
func (w *world) record(id string) *status.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.records[id]
}

// shows checks what is stored of an instance, and returns it.
func (w *world) shows(id string, runtimeStatus status.RuntimeStatus, custom string) *status.Record {
	w.Helper()
	r := w.record(id)
	switch {
	case r == nil:
		w.Errorf("%s: there is no record", id)
		return &status.Record{}
	case r.Purged:
		w.Errorf("%s: it is purged", id)
	case r.RuntimeStatus() != runtimeStatus || string(r.Progress.CustomStatus) != custom:
		w.Errorf("%s: got %s with %s, want %s with %s", id, r.RuntimeStatus(), r.Progress.CustomStatus, runtimeStatus, custom)
	}
	return r
}

// said is how many updates were published.
func (w *world) said() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.published)
}

// put merges an update of another publisher.
func (w *world) put(u status.Update) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.merge(u)
}

func (w *world) merge(u status.Update) {
	u.Hub = hub
	if err := u.Validate(time.Now()); err != nil {
		w.Errorf("an invalid update: %v", err)
		return
	}
	if w.filter != nil {
		w.filter(&u)
	}
	r, out := status.Merge(w.records[u.InstanceID], &u)
	if out.Visible {
		next := *r
		next.Version = max(r.Version+1, time.Now().UnixMicro())
		r = &next
	}
	w.records[u.InstanceID] = r
}

// loses empties the store.
func (w *world) loses() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.records)
}

func (w *world) publish(_ context.Context, messages []wire.Message) []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	errs := make([]error, len(messages))
	for i, m := range messages {
		if w.refuse {
			errs[i] = status.ErrUnavailable
			continue
		}
		got, err := wire.Decode(wire.Encode(m, time.Now()), time.Now())
		if err != nil {
			w.Errorf("what was published cannot be read: %v", err)
			continue
		}
		w.published = append(w.published, got.Update)
		if !w.lost {
			w.merge(got.Update)
		}
	}
	return errs
}

var errAway = fmt.Errorf("the store: %w", status.ErrUnavailable)

func (w *world) Interested(_ context.Context, h string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return nil, errAway
	}
	if h != hub {
		return nil, errors.New("another hub")
	}
	maps.DeleteFunc(w.interest, func(_ string, until time.Time) bool { return !time.Now().Before(until) })
	return slices.Sorted(maps.Keys(w.interest)), nil
}

func (w *world) FollowInterest(ctx context.Context, _ string, heard func(string)) error {
	w.mu.Lock()
	w.heard[&heard] = true
	w.mu.Unlock()
	<-ctx.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.heard, &heard)
	return nil
}

func (w *world) Latest(_ context.Context, keys []status.Key) ([]*status.Record, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return nil, errAway
	}
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = w.records[k.InstanceID]
	}
	return records, nil
}

func (w *world) List(_ context.Context, q *status.Query, from status.Cursor, n int) (page status.Page, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return status.Page{}, errAway
	}
	all := slices.SortedFunc(maps.Values(w.records), func(a, b *status.Record) int { return int(b.Version - a.Version) })
	looked := 0
	for _, r := range all {
		if r.Version >= from.Version {
			continue
		}
		if looked++; looked > n {
			break
		}
		page.Next = status.Cursor{Version: r.Version}
		if q.Match(r) {
			page.Records = append(page.Records, r)
		}
	}
	if looked <= n {
		page.Next = status.Cursor{}
	}
	return page, nil
}

func (w *world) Lease(_ context.Context, name, holder string, ttl time.Duration) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.away {
		return false, errAway
	}
	if h, ok := w.leases[name]; ok && h.holder != holder && time.Now().Before(h.until) {
		return false, nil
	}
	w.leases[name] = held{holder, time.Now().Add(ttl)}
	return true, nil
}

func (w *world) Release(_ context.Context, name, holder string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leases[name].holder == holder {
		delete(w.leases, name)
	}
	return nil
}

// always is a lock that everybody has.
type always struct{}

func (always) Lease(context.Context, string, string, time.Duration) (bool, error) { return true, nil }
func (always) Release(context.Context, string, string) error                      { return nil }
