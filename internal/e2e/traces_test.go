package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"maps"
	"math/big"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"statusrelay/internal/status"
)

const traces = "../status/testdata/traces"

// expected is what a recording says that an instance must have become
// (README.md beside the recordings).
type expected struct {
	Hub, InstanceID, Name         string
	Purged                        bool
	RuntimeStatus                 *string
	CustomStatus, Output, Failure json.RawMessage
	Partial                       bool
	Labels                        map[string]string
}

var generationMember = regexp.MustCompile(`"generation": ?(\d{13})`)

// recordings returns the messages of all recordings and what they must become.
// Where the clock says that they are yet to come, they are moved to the past.
func recordings(t *testing.T) (messages [][]byte, want []expected) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(traces, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var files map[string]struct {
		Lines     int
		Instances []expected
	}
	if err := json.Unmarshal(text, &files); err != nil {
		t.Fatal(err)
	}
	var newest int64
	for name, file := range files {
		lines, err := os.ReadFile(filepath.Join(traces, name))
		if err != nil {
			t.Fatal(err)
		}
		before := len(messages)
		sc := bufio.NewScanner(bytes.NewReader(lines))
		for sc.Buffer(nil, 1<<20); sc.Scan(); {
			messages = append(messages, bytes.Clone(sc.Bytes()))
			for _, g := range generationMember.FindAllSubmatch(sc.Bytes(), -1) {
				n, _ := strconv.ParseInt(string(g[1]), 10, 64) // 13 digits
				newest = max(newest, n)
			}
		}
		if got := len(messages) - before; got != file.Lines {
			t.Fatalf("%s: read %d messages, want %d", name, got, file.Lines)
		}
		want = append(want, file.Instances...)
	}
	if ahead := newest - time.Now().UnixMilli(); ahead > 0 {
		for i, m := range messages {
			messages[i] = generationMember.ReplaceAllFunc(m, func(g []byte) []byte {
				n, _ := strconv.ParseInt(string(generationMember.FindSubmatch(g)[1]), 10, 64)
				return strconv.AppendInt([]byte(`"generation":`), n-ahead, 10)
			})
		}
	}
	return messages, want
}

// Recordings of a real engine, all at once, in any order, each message twice and
// consumed by two replicas, end as the engine said; who watches sees versions that
// only grow and end on what a read gives.
func TestRecordingsEndAsExpectedThroughTwoReplicas(t *testing.T) {
	messages, want := recordings(t)
	w := newWorld(t, nil)
	replicas := []*replica{w.relay(nil), w.relay(nil)}

	// As many instances as a few sockets may watch, on both replicas.
	const perSocket = 100
	rng := rand.New(rand.NewPCG(1, 7))
	rng.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
	var watchers []*watcher
	watched := make(map[*watcher][]status.Key)
	for some := range slices.Chunk(want, perSocket) {
		var keys []status.Key
		for _, x := range some {
			keys = append(keys, status.Key{Hub: x.Hub, InstanceID: x.InstanceID})
		}
		v := w.watch(replicas[len(watchers)%2], w.operator, keys...)
		watchers, watched[v] = append(watchers, v), keys
	}

	twice := slices.Concat(messages, messages)
	rng.Shuffle(len(twice), func(i, j int) { twice[i], twice[j] = twice[j], twice[i] })
	w.sender()(twice...)
	w.settled()
	if s := w.stats(); s.Completed != int64(len(twice)) || s.TotalDeadLettered != 0 {
		t.Errorf("%d messages ended as %+v, want all completed", len(twice), s)
	}
	shares := []float64{}
	for _, r := range replicas {
		shares = append(shares, w.metric(r, "statusrelay_ingest_updates_total"))
	}
	if slices.Min(shares) == 0 {
		t.Errorf("the replicas took %v messages, want some for each", shares)
	}

	for i, x := range want {
		compare(t, w, w.get(replicas[i%2], w.operator, status.Key{Hub: x.Hub, InstanceID: x.InstanceID}), x)
	}
	for i, v := range watchers {
		for _, k := range watched[v] {
			got := w.get(replicas[(i+1)%2], w.operator, k) // the other one
			if got.code != http.StatusOK {
				v.await(k.String()+" is gone or was never there", func(v *watcher) bool { return v.newest[k].Type != "status" })
				continue
			}
			newest := w.view(got.body).Version
			v.await(k.String()+" is as a read gives it", func(v *watcher) bool {
				f := v.newest[k]
				return f.Version <= newest && bytes.Equal(withoutVersion(f.Status), withoutVersion(got.body))
			})
		}
	}
}

var versionMember = regexp.MustCompile(`"version":\d{16},?`)

// withoutVersion is a view but for its version: what changed and changed back
// before the watcher was sent it is a newer version of the same, and no news.
func withoutVersion(view []byte) []byte { return versionMember.ReplaceAll(view, nil) }

func compare(t *testing.T, w *world, got answer, want expected) {
	t.Helper()
	if want.Purged {
		if got.code != http.StatusNotFound {
			t.Errorf("%s/%s: got %d, want 404 for what was purged", want.Hub, want.InstanceID, got.code)
		}
		return
	}
	if got.code != http.StatusOK {
		t.Errorf("%s/%s: got %d, want 200", want.Hub, want.InstanceID, got.code)
		return
	}
	v := w.view(got.body)
	for _, c := range []struct {
		what      string
		same      bool
		got, want any
	}{
		{"name", v.Name == want.Name, v.Name, want.Name},
		{"runtimeStatus", v.RuntimeStatus == *want.RuntimeStatus, v.RuntimeStatus, *want.RuntimeStatus},
		{"partial", v.Partial == want.Partial, v.Partial, want.Partial},
		{"labels", maps.Equal(v.Labels, want.Labels), v.Labels, want.Labels},
		{"customStatus", sameJSON(t, v.CustomStatus, want.CustomStatus), string(v.CustomStatus), string(want.CustomStatus)},
		{"output", sameJSON(t, v.Output, want.Output), string(v.Output), string(want.Output)},
		{"failure", sameJSON(t, v.Failure, want.Failure), string(v.Failure), string(want.Failure)},
	} {
		if !c.same {
			t.Errorf("%s/%s: %s: got %.500v, want %.500v", want.Hub, want.InstanceID, c.what, c.got, c.want)
		}
	}
}

// sameJSON compares values, numbers by what they are worth and not by how they
// are spelt; absent is null.
func sameJSON(t *testing.T, a, b json.RawMessage) bool {
	t.Helper()
	value := func(text json.RawMessage) (v any) {
		if text == nil {
			return nil
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	return sameValue(value(a), value(b))
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		x, okX := new(big.Rat).SetString(a.String())
		y, okY := new(big.Rat).SetString(b.String())
		return ok && okX && okY && x.Cmp(y) == 0
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, sameValue)
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, sameValue)
	}
	return a == b
}
