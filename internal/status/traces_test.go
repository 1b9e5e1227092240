package status_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// expected is what a recording says that an instance must have become
// (testdata/traces/README.md).
type expected struct {
	Hub, InstanceID, Name         string
	Generation                    int64
	Purged                        bool
	RuntimeStatus                 *string
	CustomStatus, Output, Failure any
	Partial, Terminal             *bool
	Labels                        map[string]string
	LabelConflicts                []string
}

// recordings returns the updates of every recording and what they must become.
func recordings(t testing.TB) (map[string][]status.Update, map[string][]expected) {
	t.Helper()
	text, err := os.ReadFile("testdata/traces/expected.json")
	if err != nil {
		t.Fatal(err)
	}
	var files map[string]struct {
		Lines     int
		Instances []expected
	}
	exact(t, text, &files)
	updates, want := make(map[string][]status.Update), make(map[string][]expected)
	for name, file := range files {
		lines, err := os.ReadFile(filepath.Join("testdata/traces", name))
		if err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(bytes.NewReader(lines))
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			m, err := wire.Decode(sc.Bytes(), time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
			if err != nil {
				t.Fatalf("%s: %v in %s", name, err, sc.Bytes())
			}
			updates[name] = append(updates[name], m.Update)
		}
		if len(updates[name]) != file.Lines {
			t.Fatalf("%s: read %d updates, want %d", name, len(updates[name]), file.Lines)
		}
		want[name] = file.Instances
	}
	return updates, want
}

// sameJSON compares values as decoded by exact: numbers by what they are worth,
// not by how they are spelt.
func sameJSON(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		x, okX := new(big.Rat).SetString(a.String())
		y, okY := new(big.Rat).SetString(b.String())
		return ok && okX && okY && x.Cmp(y) == 0
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, sameJSON)
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, sameJSON)
	}
	return a == b
}

// exact decodes JSON without rounding its numbers.
func exact(t testing.TB, text []byte, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		t.Fatal(err)
	}
}

// Real orchestrations end as their engine said, whatever the order and the
// duplication of delivery.
func TestRecordingsEndAsExpectedInAnyOrder(t *testing.T) {
	updates, want := recordings(t)
	for name := range updates {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 7))
			reversed := slices.Clone(updates[name])
			slices.Reverse(reversed)
			orders := [][]status.Update{updates[name], reversed}
			for range 10 {
				orders = append(orders, shuffled(rng, updates[name]))
			}
			for i, order := range orders {
				records := make(map[status.Key]*status.Record)
				for j := range order {
					u := &order[j]
					records[u.Key()], _ = status.Merge(records[u.Key()], u)
				}
				if len(records) != len(want[name]) {
					t.Fatalf("order %d: %d instances, want %d", i, len(records), len(want[name]))
				}
				for _, w := range want[name] {
					compare(t, records[status.Key{Hub: w.Hub, InstanceID: w.InstanceID}], w)
				}
			}
		})
	}
}

func compare(t *testing.T, r *status.Record, w expected) {
	t.Helper()
	if r == nil {
		t.Fatalf("%s: no record", w.InstanceID)
	}
	fail := func(what string, got, want any) {
		t.Helper()
		t.Errorf("%s: %s: got %v, want %v", w.InstanceID, what, got, want)
	}
	if r.Generation != w.Generation {
		fail("generation", r.Generation, w.Generation)
	}
	if r.Purged != w.Purged {
		fail("purged", r.Purged, w.Purged)
	}
	if r.Purged {
		return
	}
	if r.Name != w.Name {
		fail("name", r.Name, w.Name)
	}
	if string(r.RuntimeStatus()) != *w.RuntimeStatus {
		fail("runtimeStatus", r.RuntimeStatus(), *w.RuntimeStatus)
	}
	if r.Partial() != *w.Partial {
		fail("partial", r.Partial(), *w.Partial)
	}
	if r.Terminal() != *w.Terminal {
		fail("terminal", r.Terminal(), *w.Terminal)
	}
	for _, v := range []struct {
		what string
		got  json.RawMessage
		want any
	}{
		{"customStatus", r.Progress.CustomStatus, w.CustomStatus},
		{"output", r.Lifecycle.Output, w.Output},
	} {
		var got any
		if v.got != nil {
			exact(t, v.got, &got)
		}
		if !sameJSON(got, v.want) {
			fail(v.what, string(v.got), v.want)
		}
	}
	var failure any
	if r.Lifecycle.Failure != nil {
		failure = map[string]any{"type": r.Lifecycle.Failure.Type, "message": r.Lifecycle.Failure.Message}
	}
	if !sameJSON(failure, w.Failure) {
		fail("failure", failure, w.Failure)
	}
	if !maps.Equal(r.Labels, w.Labels) {
		fail("labels", r.Labels, w.Labels)
	}
	if !slices.Equal(r.Conflicts, w.LabelConflicts) {
		fail("label conflicts", r.Conflicts, w.LabelConflicts)
	}
}
