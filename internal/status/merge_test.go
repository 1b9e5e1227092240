package status_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"statusrelay/internal/status"
)

var epoch = time.Date(2026, 11, 22, 6, 0, 0, 0, time.UTC)

func ptr(n int64) *int64 { return &n }

// fold merges updates into an empty record, in the order given.
func fold(updates ...status.Update) *status.Record {
	var r *status.Record
	for i := range updates {
		r, _ = status.Merge(r, &updates[i])
	}
	return r
}

// text is a record in a form that shows a difference.
func text(r *status.Record) string {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// randomUpdates are declared updates of one instance from a small world, so
// that equal positions, conflicting labels and purges meet often.
func randomUpdates(rng *rand.Rand) []status.Update {
	pick := func(values ...string) string { return values[rng.IntN(len(values))] }
	updates := make([]status.Update, 1+rng.IntN(8))
	for i := range updates {
		u := status.Update{
			Hub: "h", InstanceID: "i",
			Generation: ptr(int64(rng.IntN(3))), Sequence: ptr(int64(rng.IntN(4))),
			Kind:        []status.Kind{status.KindSnapshot, status.KindProgress, status.KindLifecycle, status.KindPurged}[min(rng.IntN(10)/3, 3)],
			Name:        pick("", "A", "A", "B", "C", "D", "E"),
			ExecutionID: pick("", "x", "y"),
		}
		if rng.IntN(4) > 0 {
			u.RuntimeStatus = status.RuntimeStatus(pick("Running", "Failed", "Completed"))
			u.Output = json.RawMessage(pick(`1`, `2`))
		}
		if u.RuntimeStatus == status.Failed && rng.IntN(2) == 0 {
			u.Failure = &status.Failure{Message: pick("m", "n")}
		}
		if rng.IntN(4) > 0 {
			u.CustomStatus = json.RawMessage(pick(`null`, `1`, `{"a":1}`))
		}
		if rng.IntN(3) > 0 {
			u.LastUpdatedTime = epoch.Add(time.Duration(rng.IntN(3)) * time.Second)
			u.CreatedTime = epoch.Add(-time.Duration(rng.IntN(3)) * time.Second)
		}
		if n := rng.IntN(3); n > 0 {
			u.Labels = map[string]string{"owner": pick("a", "a", "b")}
			if n > 1 {
				u.Labels["tenant"] = pick("t", "u")
			}
		}
		updates[i] = u
	}
	return updates
}

// shuffled returns the updates in another order with some of them repeated.
func shuffled(rng *rand.Rand, updates []status.Update) []status.Update {
	order := append([]status.Update(nil), updates...)
	for range rng.IntN(len(updates) + 1) {
		order = append(order, updates[rng.IntN(len(updates))])
	}
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// Any order and any duplication of declared updates end in one record.
func TestDeclaredUpdatesMergeInAnyOrder(t *testing.T) {
	const sets, orders = 3000, 8 // 24,000 ways
	for seed := range uint64(sets) {
		rng := rand.New(rand.NewPCG(seed, 1))
		updates := randomUpdates(rng)
		want := text(fold(updates...))
		for range orders {
			order := shuffled(rng, updates)
			if got := text(fold(order...)); got != want {
				t.Fatalf("seed %d: another order ends elsewhere\n got  %s\n want %s\n order %+v", seed, got, want, order)
			}
		}
	}
}

// Merging all updates again changes nothing, and every merge says truly whether
// it changed the record.
func TestMergeIsIdempotentAndOutcomeIsTrue(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		var r *status.Record
		updates := shuffled(rng, randomUpdates(rng))
		for i := range updates {
			before := r
			var out status.Outcome
			r, out = status.Merge(r, &updates[i])
			if before != nil && out.Changed != (text(before) != text(r)) {
				t.Fatalf("seed %d: outcome %+v, but %s became %s", seed, out, text(before), text(r))
			}
			if out.Visible && !out.Changed {
				t.Fatalf("seed %d: visible without a change: %+v", seed, out)
			}
		}
		for i := range updates {
			if _, out := status.Merge(r, &updates[i]); out.Changed {
				t.Fatalf("seed %d: %+v changed the record that it is already part of: %s", seed, updates[i], text(r))
			}
		}
	}
}

// The update handed to Merge and the record stay as they were: records are
// shared between goroutines.
func TestMergeModifiesNothing(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var r *status.Record
		for _, u := range shuffled(rng, randomUpdates(rng)) {
			record, update := text(r), fmt.Sprintf("%+v", u)
			next, _ := status.Merge(r, &u)
			if text(r) != record {
				t.Fatalf("seed %d: merge modified the record %s into %s", seed, record, text(r))
			}
			if fmt.Sprintf("%+v", u) != update {
				t.Fatalf("seed %d: merge modified the update %s into %+v", seed, update, u)
			}
			r = next
		}
	}
}

func TestMergeRules(t *testing.T) {
	up := func(edit func(*status.Update)) status.Update {
		u := status.Update{Hub: "h", InstanceID: "i", Kind: status.KindSnapshot, Generation: ptr(100), Sequence: ptr(1)}
		edit(&u)
		return u
	}
	running := up(func(u *status.Update) { u.RuntimeStatus = status.Running })
	broker := func(n int64, s status.RuntimeStatus) status.Update {
		return up(func(u *status.Update) { u.Generation, u.Sequence, u.Broker, u.RuntimeStatus = nil, nil, n, s })
	}
	epoch := epoch.Add(600 * time.Millisecond)
	began := up(func(u *status.Update) { u.Generation, u.RuntimeStatus = ptr(epoch.UnixMilli()), status.Running })
	open := func(position int64, at time.Duration) status.Update { // what happened then, of an open generation
		return up(func(u *status.Update) {
			u.Generation, u.Sequence, u.RuntimeStatus, u.Name, u.OccurredTime = nil, ptr(position), status.Completed, "N", epoch.Add(at)
		})
	}
	tests := []struct {
		name    string
		updates []status.Update
		check   func(*status.Record) bool
	}{
		{"absent generation means the stored one", []status.Update{running, up(func(u *status.Update) {
			u.Generation, u.CustomStatus = nil, json.RawMessage(`1`)
		})}, func(r *status.Record) bool { return r.Generation == 100 && string(r.Progress.CustomStatus) == "1" }},
		{"newer generation replaces the record, labels included", []status.Update{
			up(func(u *status.Update) {
				u.CustomStatus, u.Labels = json.RawMessage(`1`), map[string]string{"owner": "a"}
			}),
			up(func(u *status.Update) { u.Generation, u.RuntimeStatus = ptr(101), status.Pending }),
		}, func(r *status.Record) bool {
			return r.Generation == 101 && r.Progress.CustomStatus == nil && r.Labels == nil
		}},
		{"the greatest name is shown and the others are kept", []status.Update{
			up(func(u *status.Update) { u.Name = "B" }), up(func(u *status.Update) { u.Name = "C" }),
			up(func(u *status.Update) { u.Name = "A" }), up(func(u *status.Update) { u.Name = "B" }),
		}, func(r *status.Record) bool { return r.Name == "C" && slices.Equal(r.OtherNames, []string{"B", "A"}) }},
		{"a newer generation has its own names", []status.Update{
			up(func(u *status.Update) { u.Name = "B" }), up(func(u *status.Update) { u.Name = "C" }),
			up(func(u *status.Update) { u.Generation, u.Name = ptr(101), "A" }),
		}, func(r *status.Record) bool { return r.Name == "A" && r.OtherNames == nil }},
		{"older generation is dropped, labels included", []status.Update{running, up(func(u *status.Update) {
			u.Generation, u.Labels = ptr(99), map[string]string{"owner": "a"}
		})}, func(r *status.Record) bool { return r.Labels == nil }},
		{"an open generation is none that began after what happened", []status.Update{
			began, open(9, -time.Millisecond), open(8, -time.Hour),
		}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Running && r.Name == "" }},
		{"an open generation is one that had begun", []status.Update{
			began, open(9, 0),
		}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Completed }},
		{"a time in whole seconds counts to their end", []status.Update{
			began, open(9, -epoch.Sub(epoch.Truncate(time.Second))),
		}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Completed }},
		{"and not longer", []status.Update{
			began, open(9, -epoch.Sub(epoch.Truncate(time.Second))-time.Second),
		}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Running }},
		{"the time that is shown says nothing of executions", []status.Update{began, up(func(u *status.Update) {
			u.Generation, u.Sequence, u.RuntimeStatus, u.LastUpdatedTime = nil, ptr(9), status.Completed, epoch.Add(-time.Hour)
		})}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Completed }},
		{"a generation that is given is believed, whenever it occurred", []status.Update{began, up(func(u *status.Update) {
			u.Generation, u.Sequence, u.RuntimeStatus, u.OccurredTime = ptr(epoch.UnixMilli()), ptr(9), status.Completed, epoch.Add(-time.Hour)
		})}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Completed }},
		{"a progress update's runtime status is not believed", []status.Update{up(func(u *status.Update) {
			u.Kind, u.RuntimeStatus, u.CustomStatus = status.KindProgress, status.Completed, json.RawMessage(`1`)
		})}, func(r *status.Record) bool {
			return r.Partial() && r.RuntimeStatus() == status.Running && !r.Terminal()
		}},
		{"a custom status counts whatever the kind", []status.Update{up(func(u *status.Update) {
			u.Kind, u.RuntimeStatus, u.CustomStatus = status.KindLifecycle, status.Completed, json.RawMessage(`1`)
		})}, func(r *status.Record) bool {
			return r.RuntimeStatus() == status.Completed && string(r.Progress.CustomStatus) == "1"
		}},
		{"an absent field neither clears nor moves its lane", []status.Update{
			up(func(u *status.Update) { u.CustomStatus = json.RawMessage(`1`) }),
			up(func(u *status.Update) { u.Sequence, u.RuntimeStatus = ptr(9), status.Running }),
			up(func(u *status.Update) { u.Sequence, u.CustomStatus = ptr(5), json.RawMessage(`2`) }),
		}, func(r *status.Record) bool { return string(r.Progress.CustomStatus) == "2" }},
		{"null clears", []status.Update{
			up(func(u *status.Update) { u.CustomStatus = json.RawMessage(`1`) }),
			up(func(u *status.Update) { u.Sequence, u.CustomStatus = ptr(2), json.RawMessage(`null`) }),
		}, func(r *status.Record) bool { return string(r.Progress.CustomStatus) == "null" }},
		{
			"declared beats broker",
			[]status.Update{running, broker(1<<40, status.Failed)},
			func(r *status.Record) bool { return r.RuntimeStatus() == status.Running },
		},
		{"declared replaces broker", []status.Update{broker(1<<40, status.Failed), up(func(u *status.Update) {
			u.Generation, u.RuntimeStatus = nil, status.Running
		})}, func(r *status.Record) bool { return r.RuntimeStatus() == status.Running }},
		{
			"broker order is the order",
			[]status.Update{broker(2, status.Suspended), broker(1, status.Running)},
			func(r *status.Record) bool { return r.RuntimeStatus() == status.Suspended },
		},
		{
			"a terminal state is sticky in broker order",
			[]status.Update{broker(1, status.Failed), broker(2, status.Running)},
			func(r *status.Record) bool { return r.RuntimeStatus() == status.Failed },
		},
		{"a declared rewind is believed", []status.Update{
			up(func(u *status.Update) { u.RuntimeStatus, u.Failure = status.Failed, &status.Failure{Message: "m"} }),
			up(func(u *status.Update) { u.Sequence, u.RuntimeStatus = ptr(2), status.Running }),
		}, func(r *status.Record) bool {
			return r.RuntimeStatus() == status.Running && r.Lifecycle.Failure == nil
		}},
		{"a purge beats any position of its generation", []status.Update{
			up(func(u *status.Update) { u.Kind = status.KindPurged }),
			up(func(u *status.Update) { u.Sequence, u.RuntimeStatus = ptr(1<<50), status.Running }),
			broker(1<<40, status.Running),
		}, func(r *status.Record) bool { return r.Purged && r.Terminal() }},
		{"a purge of an older execution is dropped", []status.Update{running, up(func(u *status.Update) {
			u.Kind, u.Generation = status.KindPurged, ptr(99)
		})}, func(r *status.Record) bool { return !r.Purged }},
		{"labels count when the lanes are stale", []status.Update{
			up(func(u *status.Update) { u.Sequence, u.RuntimeStatus = ptr(5), status.Running }),
			up(func(u *status.Update) { u.RuntimeStatus, u.Labels = status.Pending, map[string]string{"owner": "a"} }),
		}, func(r *status.Record) bool {
			return r.Labels["owner"] == "a" && r.RuntimeStatus() == status.Running
		}},
		{"two values for a label make a conflict for good", []status.Update{
			up(func(u *status.Update) { u.Labels = map[string]string{"owner": "a", "tenant": "t"} }),
			up(func(u *status.Update) { u.Labels = map[string]string{"owner": "b"} }),
			up(func(u *status.Update) { u.Labels = map[string]string{"owner": "a"} }),
		}, func(r *status.Record) bool {
			return reflect.DeepEqual(r.Labels, map[string]string{"tenant": "t"}) && reflect.DeepEqual(r.Conflicts, []string{"owner"})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r := fold(tt.updates...); !tt.check(r) {
				t.Errorf("got %s", text(r))
			}
		})
	}
}

// What is older than the execution is stale, and no sign that publishers disagree about when it began.
func TestOutcomeOfWhatPrecedesTheExecution(t *testing.T) {
	r := fold(status.Update{Hub: "h", InstanceID: "i", Kind: status.KindProgress, Generation: ptr(epoch.UnixMilli()), Sequence: ptr(1), CustomStatus: json.RawMessage(`1`)})
	_, out := status.Merge(r, &status.Update{
		Hub: "h", InstanceID: "i", Kind: status.KindLifecycle, Sequence: ptr(1), RuntimeStatus: status.Completed, OccurredTime: epoch.Add(-time.Second - 1),
	})
	if want := (status.Outcome{StaleGeneration: true}); out != want {
		t.Errorf("got %+v, want %+v", out, want)
	}
}

func TestOutcomeTellsStaleFromDuplicate(t *testing.T) {
	u := status.Update{
		Hub: "h", InstanceID: "i", Kind: status.KindSnapshot, Generation: ptr(100_000), Sequence: ptr(5),
		RuntimeStatus: status.Running, CustomStatus: json.RawMessage(`1`),
	}
	r := fold(u)
	if _, out := status.Merge(r, &u); out != (status.Outcome{Duplicates: 2}) {
		t.Errorf("the same again: got %+v", out)
	}
	older := u
	older.Sequence, older.RuntimeStatus, older.CustomStatus = ptr(4), status.Pending, json.RawMessage(`0`)
	if _, out := status.Merge(r, &older); out != (status.Outcome{StaleLanes: 2}) {
		t.Errorf("an older one: got %+v", out)
	}
	moved := u
	moved.Sequence = ptr(6)
	if _, out := status.Merge(r, &moved); out != (status.Outcome{Changed: true}) {
		t.Errorf("the same words at a later position: got %+v", out)
	}
	clash := u
	clash.Kind, clash.Generation = status.KindLifecycle, ptr(98_000)
	if _, out := status.Merge(r, &clash); out != (status.Outcome{StaleGeneration: true, SuspectedClash: true}) {
		t.Errorf("two seconds of generation apart: got %+v", out)
	}
	clash.Generation = ptr(10_000)
	if _, out := status.Merge(r, &clash); out != (status.Outcome{StaleGeneration: true}) {
		t.Errorf("another execution: got %+v", out)
	}
}

// The labels of a record stay bounded, and which are kept does not depend on
// the order in which they came.
func TestRecordLabelsAreBounded(t *testing.T) {
	var updates []status.Update
	for i := range 20 {
		labels := make(map[string]string)
		for j := range status.MaxLabels {
			labels[fmt.Sprintf("l%03d", i*7+j)] = fmt.Sprint(i % 3)
		}
		updates = append(updates, status.Update{Hub: "h", InstanceID: "i", Kind: status.KindSnapshot, Generation: ptr(1), Labels: labels})
	}
	r := fold(updates...)
	if got := len(r.Labels) + len(r.Conflicts); got != status.MaxRecordLabels {
		t.Fatalf("got %d labels, want %d", got, status.MaxRecordLabels)
	}
	rng := rand.New(rand.NewPCG(1, 4))
	for range 200 {
		if got := fold(shuffled(rng, updates)...); text(got) != text(r) {
			t.Fatalf("another order keeps other labels\n got  %s\n want %s", text(got), text(r))
		}
	}
}

// FuzzMergeOrder lets the fuzzer look for a set of updates whose order matters.
func FuzzMergeOrder(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, set, order uint64) {
		updates := randomUpdates(rand.New(rand.NewPCG(set, 5)))
		want, got := text(fold(updates...)), text(fold(shuffled(rand.New(rand.NewPCG(order, 6)), updates)...))
		if got != want {
			t.Fatalf("another order ends elsewhere\n got  %s\n want %s", got, want)
		}
	})
}

func BenchmarkMerge(b *testing.B) {
	u := status.Update{
		Hub: "orders", InstanceID: "order-4711", Name: "ProcessOrder", Kind: status.KindProgress,
		Generation: ptr(1795324351806), RuntimeStatus: status.Running, CustomStatus: json.RawMessage(`{"percent":60}`),
		CreatedTime: epoch, LastUpdatedTime: epoch, Labels: map[string]string{"tenant": "contoso", "owner": "u-123"},
	}
	var r *status.Record
	b.ReportAllocs()
	for i := range int64(b.N) {
		u.Sequence = &i
		r, _ = status.Merge(r, &u)
	}
}
