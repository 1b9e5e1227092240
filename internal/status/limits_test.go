package status_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/status"
)

func TestValidateNamesTheFieldOutOfRange(t *testing.T) {
	now := epoch
	repeat := strings.Repeat
	many := func(n int) map[string]string {
		labels := make(map[string]string)
		for i := range n {
			labels[repeat("k", i+1)] = ""
		}
		return labels
	}
	tests := []struct {
		name  string
		edit  func(*status.Update)
		field string // "" = valid
	}{
		{"least", func(*status.Update) {}, ""},
		{"no instance id", func(u *status.Update) { u.InstanceID = "" }, "instanceId"},
		{"longest instance id", func(u *status.Update) { u.InstanceID = repeat("订", 256) }, ""},
		{"instance id too long", func(u *status.Update) { u.InstanceID = repeat("a", 257) }, "instanceId"},
		{"entity", func(u *status.Update) { u.InstanceID = "@counter@1" }, "instanceId"},
		{"at sign inside", func(u *status.Update) { u.InstanceID = "a@b" }, ""},
		{"slash", func(u *status.Update) { u.InstanceID = "a/b" }, "instanceId"},
		{"backslash", func(u *status.Update) { u.InstanceID = `a\b` }, "instanceId"},
		{"question mark", func(u *status.Update) { u.InstanceID = "a?b" }, "instanceId"},
		{"hash", func(u *status.Update) { u.InstanceID = "a#b" }, "instanceId"},
		{"control", func(u *status.Update) { u.InstanceID = "a\tb" }, "instanceId"},
		{"C1 control", func(u *status.Update) { u.InstanceID = "a\u0085b" }, "instanceId"},
		{"right-to-left override", func(u *status.Update) { u.InstanceID = "a\u202eb" }, "instanceId"},
		{"isolate", func(u *status.Update) { u.InstanceID = "a\u2066b" }, "instanceId"},
		{"Arabic letter mark", func(u *status.Update) { u.InstanceID = "a\u061cb" }, "instanceId"},
		{"zero-width space", func(u *status.Update) { u.InstanceID = "a\u200bb" }, "instanceId"},
		{"byte order mark", func(u *status.Update) { u.InstanceID = "\ufeffa" }, "instanceId"},
		{"invalid UTF-8", func(u *status.Update) { u.InstanceID = "a\xff" }, "instanceId"},
		{"spaces and punctuation", func(u *status.Update) { u.InstanceID = "order 15 (copy){%7B}:;'&=+,~" }, ""},
		{"longest hub", func(u *status.Update) { u.Hub = repeat("h", 64) }, ""},
		{"hub too long", func(u *status.Update) { u.Hub = repeat("h", 65) }, "hub"},
		{"hub with a dot", func(u *status.Update) { u.Hub = "a.b" }, "hub"},
		{"name too long", func(u *status.Update) { u.Name = repeat("n", 257) }, "name"},
		{"execution id too long", func(u *status.Update) { u.ExecutionID = repeat("n", 257) }, "executionId"},
		{"parent id too long", func(u *status.Update) { u.ParentInstanceID = repeat("n", 257) }, "parentInstanceId"},
		{"root id too long", func(u *status.Update) { u.RootInstanceID = repeat("n", 257) }, "rootInstanceId"},
		{"negative generation", func(u *status.Update) { u.Generation = ptr(-1) }, "generation"},
		{"generation of 2^53", func(u *status.Update) { u.Generation = ptr(1 << 53) }, "generation"},
		{"generation ten minutes ahead", func(u *status.Update) { u.Generation = ptr(now.Add(10 * time.Minute).UnixMilli()) }, ""},
		{"generation further ahead", func(u *status.Update) { u.Generation = ptr(now.Add(10*time.Minute).UnixMilli() + 1) }, "generation"},
		{"negative sequence", func(u *status.Update) { u.Sequence = ptr(-1) }, "sequence"},
		{"greatest sequence", func(u *status.Update) { u.Sequence = ptr(1<<53 - 1) }, ""},
		{"sequence of 2^53", func(u *status.Update) { u.Sequence = ptr(1 << 53) }, "sequence"},
		{"unknown kind", func(u *status.Update) { u.Kind = "event" }, "kind"},
		{"purge without a generation", func(u *status.Update) { u.Kind = status.KindPurged }, "generation"},
		{"unknown runtime status", func(u *status.Update) { u.RuntimeStatus = "Paused" }, "runtimeStatus"},
		{"largest custom status", func(u *status.Update) { u.CustomStatus = json.RawMessage(repeat("1", 64<<10)) }, ""},
		{"custom status too large", func(u *status.Update) { u.CustomStatus = json.RawMessage(repeat("1", 64<<10+1)) }, "customStatus"},
		{"output too large", func(u *status.Update) { u.Output = json.RawMessage(repeat("1", 64<<10+1)) }, "output"},
		{"failure type too long", func(u *status.Update) { u.Failure = &status.Failure{Type: repeat("t", 257)} }, "failure.type"},
		{"failure message too large", func(u *status.Update) { u.Failure = &status.Failure{Message: repeat("m", 16<<10+1)} }, "failure.message"},
		{"sixteen labels", func(u *status.Update) { u.Labels = many(16) }, ""},
		{"seventeen labels", func(u *status.Update) { u.Labels = many(17) }, "labels"},
		{"empty label name", func(u *status.Update) { u.Labels = map[string]string{"": "x"} }, "labels"},
		{"label name too long", func(u *status.Update) { u.Labels = map[string]string{repeat("k", 65): "x"} }, "labels"},
		{"label value too long", func(u *status.Update) { u.Labels = map[string]string{"k": repeat("v", 257)} }, "labels"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u := status.Update{InstanceID: "i", Kind: status.KindSnapshot}
			tt.edit(&u)
			err := u.Validate(now)
			if tt.field == "" {
				if err != nil {
					t.Fatalf("got %v, want it valid", err)
				}
				return
			}
			var invalid *status.InvalidError
			if !errors.As(err, &invalid) || !errors.Is(err, status.ErrInvalid) || invalid.Field != tt.field {
				t.Fatalf("got %v, want an InvalidError about %s", err, tt.field)
			}
		})
	}
}

func TestParseRuntimeStatusReadsEveryForm(t *testing.T) {
	for text, want := range map[string]status.RuntimeStatus{
		"Running": status.Running, "running": status.Running, "COMPLETED": status.Completed,
		"ORCHESTRATION_STATUS_CONTINUED_AS_NEW": status.ContinuedAsNew, "orchestration_status_terminated": status.Terminated,
		"ContinuedAsNew": status.ContinuedAsNew, "0": status.Running, "6": status.Pending, "7": status.Suspended,
		"8": "", "-1": "", "00": "", "": "", "Paused": "", "ORCHESTRATION_STATUS_": "", "CONTINUED_AS_NEW": "",
		"ORCHESTRATION_STATUS_ContinuedAsNew": status.ContinuedAsNew, "ORCHESTRATION_STATUS_R_UNNING": "", "ORCHESTRATION_STATUS_0": "",
		"\u017fuspended": "", // a long s folds to s in Unicode, not here
	} {
		got, ok := status.ParseRuntimeStatus(text)
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, ok, want)
		}
	}
}
