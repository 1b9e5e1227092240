package statusrelay_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	statusrelay "statusrelay/clients/go"
)

// Each update of a call is checked before anything is sent, and what is wrong is said without a value of it.
func TestInvalidUpdateIsRefusedBeforeAnythingIsSent(t *testing.T) {
	deep := func(n int) json.RawMessage {
		return json.RawMessage(strings.Repeat("[", n) + strings.Repeat("]", n))
	}
	labels := map[string]string{}
	for i := range 17 {
		labels[fmt.Sprint(i)] = ""
	}
	now := time.Now()
	for _, tt := range []struct {
		change func(*statusrelay.Update)
		want   string
	}{
		{func(u *statusrelay.Update) { u.InstanceID = "" }, "instanceId: required"},
		{func(u *statusrelay.Update) { u.InstanceID = "@counter@1" }, "instanceId: starts with @"},
		{func(u *statusrelay.Update) { u.InstanceID = "a/b" }, `instanceId: contains one of / \ ? #`},
		{func(u *statusrelay.Update) { u.InstanceID = "a\u200bb" }, "instanceId: contains a control, bidirectional or zero-width character"},
		{func(u *statusrelay.Update) { u.InstanceID = strings.Repeat("é", 257) }, "instanceId: longer than 256 characters"},
		{func(u *statusrelay.Update) { u.InstanceID = "a\xff" }, "instanceId: not valid UTF-8"},
		{func(u *statusrelay.Update) { u.Hub = "a b" }, "hub: a character that is none of A-Z a-z 0-9 _ -"},
		{func(u *statusrelay.Update) { u.Hub = strings.Repeat("h", 65) }, "hub: not 1 to 64 characters long"},
		{func(u *statusrelay.Update) { u.Name = strings.Repeat("n", 257) }, "name: longer than 256 characters"},
		{func(u *statusrelay.Update) { u.Generation = -1 }, "generation: not from 1 to 2^53-1"},
		{func(u *statusrelay.Update) { u.Generation = now.UnixMicro() }, "generation: more than 10m0s ahead of the clock; it is in milliseconds"},
		{func(u *statusrelay.Update) { u.Sequence = 1 << 53 }, "sequence: not from 1 to 2^53-1, or a tick that is not from 1 to 999"},
		{func(u *statusrelay.Update) { u.Position = u.Tick(1000) }, "sequence: not from 1 to 2^53-1, or a tick that is not from 1 to 999"},
		{func(u *statusrelay.Update) { u.Kind = "other" }, "kind: not one of snapshot, progress, lifecycle, purged"},
		{func(u *statusrelay.Update) { u.Kind = statusrelay.KindPurged }, "generation: required when kind is purged"},
		{func(u *statusrelay.Update) { u.RuntimeStatus = "running" }, "runtimeStatus: not a runtime status"},
		{func(u *statusrelay.Update) { u.CustomStatus = strings.Repeat("x", 64<<10) }, "customStatus: larger than 65536 bytes"},
		{func(u *statusrelay.Update) { u.CustomStatus = deep(33) }, "customStatus: nested deeper than 32"},
		{func(u *statusrelay.Update) { u.CustomStatus = math.NaN() }, "customStatus: cannot be encoded as I-JSON (RFC 7493)"},
		{func(u *statusrelay.Update) { u.CustomStatus = json.RawMessage(`{"a":1,"\u0061":2}`) }, "customStatus: cannot be encoded as I-JSON (RFC 7493)"},
		{func(u *statusrelay.Update) { u.CustomStatus = json.RawMessage(`{"a":[1e999]}`) }, "customStatus: a number beyond the range of a double"},
		{func(u *statusrelay.Update) { u.Output = func() {} }, "output: cannot be encoded as I-JSON (RFC 7493)"},
		{func(u *statusrelay.Update) { u.CreatedTime = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "createdTime: outside the years 1 to 9999"},
		{func(u *statusrelay.Update) { u.OccurredTime = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC) }, "occurredTime: outside the years 1 to 9999"},
		{func(u *statusrelay.Update) { u.ParentInstanceID = strings.Repeat("n", 257) }, "parentInstanceId: longer than 256 characters"},
		{func(u *statusrelay.Update) { u.Labels = labels }, "labels: more than 16"},
		{func(u *statusrelay.Update) { u.Labels = map[string]string{"": ""} }, "labels: a name is not 1 to 64 characters of UTF-8"},
		{func(u *statusrelay.Update) { u.Labels = map[string]string{"a": strings.Repeat("v", 257)} }, "labels: a value is longer than 256 characters"},
		{func(u *statusrelay.Update) { u.Traceparent = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01" }, "traceparent: not a W3C trace context"},
	} {
		s := &scripted{}
		updates := several("a", "b", "c")
		tt.change(&updates[1])
		err := notifier(t, s, nil).Publish(t.Context(), updates...)
		if invalid := (*statusrelay.InvalidError)(nil); !errors.As(err, &invalid) || invalid.Index != 1 || err.Error() != "update 1: "+tt.want || len(s.bodies) != 0 {
			t.Errorf("got %v and %d requests, want %s", err, len(s.bodies), tt.want)
		}
	}
	// All of them are named.
	err := notifier(t, &scripted{}, nil).Publish(t.Context(), several("", "b", "@")...)
	if got, want := fmt.Sprint(err), "update 0: instanceId: required\nupdate 2: instanceId: starts with @"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// published is the update as it was sent.
func published(t *testing.T, u statusrelay.Update) map[string]json.RawMessage {
	t.Helper()
	s := &scripted{}
	if err := notifier(t, s, nil).Publish(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	var events []struct{ Data map[string]json.RawMessage }
	if err := json.Unmarshal(s.bodies[0], &events); err != nil {
		t.Fatal(err)
	}
	return events[0].Data
}

func TestWhatMayBeCutIsCut(t *testing.T) {
	got := published(t, statusrelay.Update{
		InstanceID: "i", RuntimeStatus: statusrelay.Failed, Output: strings.Repeat("x", 65<<10),
		Failure: &statusrelay.Failure{Type: strings.Repeat("t", 300), Message: strings.Repeat("é", 9000) + "\xff"},
	})
	var f statusrelay.Failure
	if err := json.Unmarshal(got["failure"], &f); err != nil || len(f.Type) != 256 || len(f.Message) != 16<<10 {
		t.Errorf("%v: %d, %d", err, len(f.Type), len(f.Message))
	}
	if got["output"] != nil || string(got["runtimeStatus"]) != `"Failed"` {
		t.Errorf("got %.100s", got)
	}
}

func TestCustomStatusIsAbsentOrClearedOrThere(t *testing.T) {
	for _, tt := range []struct {
		value any
		want  string
	}{
		{nil, ""},
		{statusrelay.Cleared, "null"},
		{map[string]any(nil), "null"},
		{0, "0"},
		{"", `""`},
		{[]byte("ab"), `"YWI="`},
		{struct {
			B int `json:"b"`
			A int `json:"a"`
		}{2, 1}, `{"a":1,"b":2}`},
	} {
		if got := string(published(t, statusrelay.Update{InstanceID: "i", CustomStatus: tt.value})["customStatus"]); got != tt.want {
			t.Errorf("%#v: got %s, want %s", tt.value, got, tt.want)
		}
	}
}

func TestKindFollowsTheFields(t *testing.T) {
	for _, tt := range []struct {
		u    statusrelay.Update
		want string
	}{
		{statusrelay.Update{CustomStatus: 1}, "progress"},
		{statusrelay.Update{RuntimeStatus: statusrelay.Running}, "lifecycle"},
		{statusrelay.Update{CustomStatus: 1, RuntimeStatus: statusrelay.Running}, "snapshot"},
		{statusrelay.Update{}, "snapshot"},
		{statusrelay.Update{Kind: statusrelay.KindProgress, RuntimeStatus: statusrelay.Running}, "progress"},
	} {
		tt.u.InstanceID = "i"
		if got := string(published(t, tt.u)["kind"]); got != `"`+tt.want+`"` {
			t.Errorf("%+v: got %s, want %s", tt.u, got, tt.want)
		}
	}
}

// However often an orchestrator is replayed, its calls have the same positions, and each activity has 999 of its own before the next.
func TestPositionsAreReplaySafeAndGrow(t *testing.T) {
	started := time.UnixMilli(1795329321692)
	var first []statusrelay.Position
	for replay := range 3 {
		execution := statusrelay.Started(started)
		for call := range 3 {
			p := execution.Next()
			if replay == 0 {
				first = append(first, p)
			}
			if p != first[call] {
				t.Errorf("replay %d, call %d: got %v, want %v", replay, call, p, first[call])
			}
		}
	}
	last := int64(0)
	for _, p := range first {
		for _, q := range []statusrelay.Position{p, p.Tick(1), p.Tick(2), p.Tick(999)} {
			if q.Sequence <= last || q.Generation != 1795329321692 {
				t.Errorf("%v is not behind %d", q, last)
			}
			last = q.Sequence
		}
	}
	// Handed on as JSON, an execution goes on counting.
	execution := statusrelay.Started(started)
	execution.Next()
	text, err := json.Marshal(execution)
	if err != nil {
		t.Fatal(err)
	}
	var next statusrelay.Execution
	if err := json.Unmarshal(text, &next); err != nil || next.Next() != first[1] {
		t.Errorf("%v: %s", err, text)
	}
	if got, want := execution.At(time.UnixMicro(1795329321692123)), (statusrelay.Position{Generation: 1795329321692, Sequence: 1795329321692123}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
