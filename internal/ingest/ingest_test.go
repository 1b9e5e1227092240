package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/ingest"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

const rules = `
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - name: anyone
            when: "true"
            see: {customStatus: [/percent]}
`

// store remembers what is put and answers by instance id.
type store struct {
	put      []status.Update
	outcomes map[string]status.Outcome
	errs     map[string]error
}

func (s *store) Put(_ context.Context, updates []*status.Update) ([]status.Outcome, []error) {
	outcomes, errs := make([]status.Outcome, len(updates)), make([]error, len(updates))
	for i, u := range updates {
		s.put = append(s.put, *u)
		outcomes[i], errs[i] = s.outcomes[u.InstanceID], s.errs[u.InstanceID]
	}
	return outcomes, errs
}

// world is an Ingester and what it writes to.
type world struct {
	*ingest.Ingester
	store   store
	metrics *prometheus.Registry
	log     bytes.Buffer
}

func newWorld(t *testing.T, change ...func(*ingest.Options)) *world {
	t.Helper()
	p, err := policy.Parse([]byte(rules))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{metrics: prometheus.NewRegistry()}
	o := ingest.Options{
		Store: &w.store, Policy: func() *policy.Policy { return p }, Metrics: w.metrics,
		Logger: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	w.Ingester = ingest.New(o)
	return w
}

func (w *world) handle(bodies ...string) []error {
	batch := make([]ingest.Message, len(bodies))
	for i, b := range bodies {
		batch[i] = ingest.Message{Body: []byte(b), Sequence: int64(100 + i)}
	}
	return w.Handle(context.Background(), batch)
}

// counted returns how many updates had an outcome.
func (w *world) counted(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name = l.GetValue()
			}
			if v := m.GetCounter().GetValue(); v > 0 {
				got[name] = v
			}
		}
	}
	return got
}

// Each message has a verdict of its own: what cannot be read is invalid, what the
// store says of the others is theirs.
func TestEachMessageHasAVerdictOfItsOwn(t *testing.T) {
	broken := errors.New("broken")
	w := newWorld(t)
	w.store.errs = map[string]error{"away": fmt.Errorf("put: %w", status.ErrUnavailable), "broken": broken}
	w.store.outcomes = map[string]status.Outcome{"good": {Changed: true, Visible: true}, "moved": {Changed: true}, "again": {Duplicates: 1}}
	got := w.handle(`{"instanceId":"good"}`, `poison`, `{"instanceId":"away"}`, `{"instanceId":"broken"}`, `{"instanceId":"a/b"}`, `{"instanceId":"moved"}`,
		`{"instanceId":"again"}`, `{"instanceId":"old"}`)
	for i, want := range []error{nil, status.ErrInvalid, status.ErrUnavailable, broken, status.ErrInvalid, nil, nil, nil} {
		if !errors.Is(got[i], want) || (want == nil) != (got[i] == nil) {
			t.Errorf("message %d: got %v, want %v", i, got[i], want)
		}
	}
	var invalid *status.InvalidError
	if !errors.As(got[4], &invalid) || invalid.Reason != status.ReasonInvalid || invalid.Field != "instanceId" {
		t.Errorf("got %v, want one about instanceId", got[4])
	}
	if len(w.store.put) != 6 {
		t.Errorf("%d updates were put, want 6", len(w.store.put))
	}
	// What is unavailable is not over yet, and counts when it is.
	if got, want := w.counted(t), map[string]float64{"visible": 1, "refused": 2, "failed": 1, "hidden": 1, "duplicate": 1, "stale": 1}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}

// A batch of nothing but poison does not bother the store.
func TestPoisonDoesNotReachTheStore(t *testing.T) {
	w := newWorld(t)
	if got := w.handle("poison", "", "[]"); len(got) != 3 || got[0] == nil || got[1] == nil || got[2] == nil {
		t.Errorf("got %v, want three errors", got)
	}
	if got := w.handle(); len(got) != 0 || w.store.put != nil {
		t.Errorf("got %v and %v put, want nothing", got, w.store.put)
	}
}

// Only what the policy lets through is put, by the policy of the moment.
func TestOnlyWhatThePolicyPassesIsPut(t *testing.T) {
	current, err := policy.Parse([]byte(rules))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(o *ingest.Options) { o.Policy = func() *policy.Policy { return current } })
	const body = `{"instanceId":"a","customStatus":{"percent":1,"secret":"s3cret"},"runtimeStatus":"Failed","output":"s3cret","failure":{"message":"s3cret"},"s3cret":1}`
	w.handle(body)
	if got := fmt.Sprintf("%+v", w.store.put); strings.Contains(got, "s3cret") || string(w.store.put[0].CustomStatus) != `{"percent":1}` {
		t.Errorf("put %s", got)
	}
	if current, err = policy.Parse([]byte(strings.Replace(rules, "/percent", "/secret", 1))); err != nil {
		t.Fatal(err)
	}
	w.handle(body)
	if got := string(w.store.put[1].CustomStatus); got != `{"secret":"s3cret"}` {
		t.Errorf("under another policy: put %s", got)
	}
}

// The broker's number and the default hub are filled in.
func TestUpdateGetsItsBrokerSequenceAndHub(t *testing.T) {
	w := newWorld(t, func(o *ingest.Options) { o.DefaultHub = "mine" })
	w.handle(`{"instanceId":"a"}`, `poison`, `{"hub":"theirs","instanceId":"a"}`)
	if got := w.store.put; len(got) != 2 || got[0].Hub != "mine" || got[0].Broker != 100 || got[1].Hub != "theirs" || got[1].Broker != 102 {
		t.Errorf("put %+v", got)
	}
	w = newWorld(t)
	w.handle(`{"instanceId":"a"}`)
	if got := w.store.put[0].Hub; got != "default" {
		t.Errorf("without a default: put to hub %q", got)
	}
}

// How far ahead a generation may be goes by the clock that was handed in.
func TestGenerationIsBoundedByTheClock(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	w := newWorld(t, func(o *ingest.Options) { o.Now = func() time.Time { return now } })
	body := func(g time.Time) string { return fmt.Sprintf(`{"instanceId":"a","generation":%d}`, g.UnixMilli()) }
	got := w.handle(body(now.Add(status.GenerationLead)), body(now.Add(status.GenerationLead+time.Millisecond)))
	if got[0] != nil || !errors.Is(got[1], status.ErrInvalid) {
		t.Errorf("got %v, want the second refused", got)
	}
}

// Two publishers that disagree about when an execution started are a likely
// mistake: it is counted and logged, without anything of the update but its place.
func TestSuspectedClashIsReported(t *testing.T) {
	w := newWorld(t)
	w.store.outcomes = map[string]status.Outcome{"a": {StaleLanes: 1, SuspectedClash: true}}
	w.handle(`{"instanceId":"a","generation":1700000000000,"runtimeStatus":"Running","labels":{"owner":"s3cret"}}`)
	if got := w.counted(t)["statusrelay_ingest_suspected_clashes_total"]; got != 1 {
		t.Errorf("counted %v, want 1", got)
	}
	if log := w.log.String(); !strings.Contains(log, "instanceId=a") || strings.Contains(log, "s3cret") {
		t.Errorf("logged %s", log)
	}
}
