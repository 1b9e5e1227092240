package wire_test

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

func decode(t *testing.T, body string) wire.Message {
	t.Helper()
	m, err := wire.Decode([]byte(body), now)
	if err != nil {
		t.Fatalf("%v in %.200s", err, body)
	}
	return m
}

// update decodes a bare update with these further members.
func update(t *testing.T, members string) status.Update {
	t.Helper()
	return decode(t, `{"instanceId":"i",`+members+`}`).Update
}

func refuse(t *testing.T, body string, reason status.Reason, field string) {
	t.Helper()
	_, err := wire.Decode([]byte(body), now)
	if err == nil {
		t.Fatalf("accepted %.200s", body)
	}
	if got := refusal(t, err); got.Reason != reason || got.Field != field {
		t.Errorf("got %s about %q (%v), want %s about %q: %.200s", got.Reason, got.Field, got, reason, field, body)
	}
}

func TestContentDecidesTheForm(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, c := range []struct{ name, body, hub, id, source, traceparent string }{
		{"cloudevents", `{"specversion":"1.0","type":"durable.status.v1","id":"e1","source":"/s","traceparent":"` + trace + `","data":{"instanceId":"i","hub":"in"}}`, "in", "e1", "/s", trace},
		{"data first", `{"data":{"hub":"in","instanceId":"i"},"id":"e1","hub":"out"}`, "in", "e1", "", ""},
		{"another type", `{"type":"com.dapr.event.sent","data":{"instanceId":"i","hub":"in"},"id":"e1"}`, "in", "e1", "", ""},
		{"bare", `{"instanceId":"i","hub":"out"}`, "out", "", "", ""},
		{"bare beside data", `{"data":{"instanceId":"x","hub":"in"},"instanceId":"i","hub":"out","id":"e1","type":"durable.status.v1"}`, "out", "", "", ""},
		{"bad trace", `{"data":{"instanceId":"i"},"traceparent":"` + strings.ToUpper(trace) + `"}`, "", "", "", ""},
		{"long attributes", `{"data":{"instanceId":"i"},"id":"` + strings.Repeat("x", wire.MaxAttribute+1) + `","source":"` + strings.Repeat("x", wire.MaxAttribute) + `"}`, "", "", strings.Repeat("x", wire.MaxAttribute), ""},
	} {
		m := decode(t, c.body)
		if m.Update.InstanceID != "i" || m.Update.Hub != c.hub || m.ID != c.id || m.Source != c.source || m.Traceparent != c.traceparent {
			t.Errorf("%s: got %+v", c.name, m)
		}
	}
}

func TestKindDefaultsToTheLanesThatArePresent(t *testing.T) {
	for members, want := range map[string]status.Kind{
		`"customStatus":1,"runtimeStatus":"Running"`:    status.KindSnapshot,
		`"customStatus":null,"runtimeStatus":"Running"`: status.KindSnapshot,
		`"customStatus":1`:    status.KindProgress,
		`"customStatus":null`: status.KindProgress,
		`"customStatus":1,"runtimeStatus":null,"kind":null`: status.KindProgress,
		`"runtimeStatus":6`:                   status.KindLifecycle,
		`"labels":{}`:                         status.KindSnapshot,
		`"kind":"lifecycle","customStatus":1`: status.KindLifecycle,
		`"kind":"\u0070rogress"`:              status.KindProgress,
	} {
		if got := update(t, members).Kind; got != want {
			t.Errorf("%s: got %q, want %q", members, got, want)
		}
	}
}

func TestRuntimeStatusIsReadAsTextAndNumber(t *testing.T) {
	for raw, want := range map[string]status.RuntimeStatus{
		`"running"`: status.Running, `0`: status.Running, `"0"`: status.Running, `2.0`: status.ContinuedAsNew, `7`: status.Suspended,
		`"ORCHESTRATION_STATUS_CONTINUED_AS_NEW"`: status.ContinuedAsNew, `null`: "",
	} {
		if got := update(t, `"runtimeStatus":`+raw).RuntimeStatus; got != want {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}

func TestNullClearsCustomStatusAndIsAbsentElsewhere(t *testing.T) {
	got := update(t, `"hub":null,"name":null,"generation":null,"sequence":null,"kind":null,"runtimeStatus":null,"output":null,"failure":null,"createdTime":null,"parentInstanceId":null,"labels":null,"customStatus":null`)
	want := status.Update{InstanceID: "i", Kind: status.KindProgress, CustomStatus: []byte("null")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := update(t, `"labels":{}`); got.CustomStatus != nil {
		t.Errorf("got customStatus %s where there is none", got.CustomStatus)
	}
}

func TestIntegersAreReadByValue(t *testing.T) {
	for raw, want := range map[string]int64{
		`0`: 0, `-0`: 0, `-0.0e5`: 0, `0e-99999999999999999999`: 0, `1795329321692`: 1795329321692, `1.0`: 1, `1e3`: 1000, `1.5E+1`: 15, `120e-1`: 12,
		`9007199254740991`: 1<<53 - 1, `9007199254740991.00`: 1<<53 - 1, `0.0000009007199254740991e22`: 1<<53 - 1,
		`9007199254740.991e3`: 1<<53 - 1,
	} {
		if got := update(t, `"sequence":`+raw).Sequence; got == nil || *got != want {
			t.Errorf("%s: got %v, want %d", raw, got, want)
		}
	}
	for _, raw := range []string{`-1`, `0.5`, `1e-1`, `9007199254740991.5`, `1.00000000000000000001`, `1e16`, `12e300`, `1e-99999999999999999999`, `"1"`, `true`} {
		refuse(t, `{"instanceId":"i","sequence":`+raw+`}`, status.ReasonInvalid, "sequence")
	}
}

func TestGenerationMayLeadTheClockByTenMinutes(t *testing.T) {
	lead := now.Add(status.GenerationLead).UnixMilli()
	update(t, fmt.Sprintf(`"generation":%d`, lead))
	refuse(t, fmt.Sprintf(`{"instanceId":"i","generation":%d}`, lead+1), status.ReasonInvalid, "generation")
}

func TestTimesBecomeUTC(t *testing.T) {
	for text, want := range map[string]string{
		"2026-11-22T06:35:26":                 "2026-11-22T06:35:26Z",
		"2026-11-22t06:35:26.5z":              "2026-11-22T06:35:26.5Z",
		"2026-11-22T06:35:26.000000001Z":      "2026-11-22T06:35:26.000000001Z",
		"2026-11-22T06:35:26.9272868":         "2026-11-22T06:35:26.9272868Z",
		"2026-11-22T06:35:26+05:30":           "2026-11-22T01:05:26Z",
		"2026-12-31T23:35:26.25-07:00":        "2027-01-01T06:35:26.25Z",
		"2026-11-22T06:35:26-00:00":           "2026-11-22T06:35:26Z",
		"0001-01-01T00:00:00":                 "0001-01-01T00:00:00Z", // .NET's unset time is Go's
		"9999-12-31T23:59:59.9999999":         "9999-12-31T23:59:59.9999999Z",
		"2024-02-29T23:59:59+23:59":           "2024-02-29T00:00:59Z",
		`2026\u002d11-22T06:35:26\u002B01:00`: "2026-11-22T05:35:26Z",
	} {
		got := update(t, `"lastUpdatedTime":"`+text+`"`).LastUpdatedTime
		if got.Format(time.RFC3339Nano) != want || got.Location() != time.UTC {
			t.Errorf("%s: got %v, want %s", text, got, want)
		}
	}
	_, err := wire.Decode([]byte(`{"instanceId":"i","createdTime":"2016-12-31T23:59:60Z"}`), now)
	if err == nil || !strings.Contains(err.Error(), "leap second") {
		t.Errorf("a leap second: got %v", err)
	}
}

func TestValuesBecomeCanonical(t *testing.T) {
	for raw, want := range map[string]string{
		` { "b" : 1 , "a" : [ 1 , { } ] } `:                     `{"a":[1,{}],"b":1}`,
		`{"a":1,"b":{"d":1,"c":2}}`:                             `{"a":1,"b":{"c":2,"d":1}}`,
		`{"b":{"x":1},"a":{"y":1}}`:                             `{"a":{"y":1},"b":{"x":1}}`,
		`[{"b":1},{"a":1}]`:                                     `[{"b":1},{"a":1}]`,
		`{"\uffee":1,"🚚":2}`:                                    "{\"🚚\":2,\"\uffee\":1}", // by UTF-16, not by UTF-8
		"{\"\uffee\":1,\"🚚\":2}":                                "{\"🚚\":2,\"\uffee\":1}",
		`{"\u0062":1,"a":2}`:                                    `{"a":2,"b":1}`,
		`{"a":1,"":2}`:                                          `{"":2,"a":1}`,
		`"\u0041\/\u2028\u0001\n"`:                              "\"A/\u2028\\u0001\\n\"",
		`[12345678901234567890,1.50,1E2,-0]`:                    `[12345678901234567890,1.50,1E2,-0]`,
		`{"aa":1,"a":2}`:                                        `{"a":2,"aa":1}`,
		`["a:b",{"c":"d"},"b"]`:                                 `["a:b",{"c":"d"},"b"]`,
		strings.Repeat("[", 32) + "0" + strings.Repeat("]", 32): strings.Repeat("[", 32) + "0" + strings.Repeat("]", 32),
	} {
		u := update(t, `"customStatus":`+raw+`,"output":`+raw)
		if string(u.CustomStatus) != want || string(u.Output) != want {
			t.Errorf("%s:\ngot  %s and %s\nwant %s", raw, u.CustomStatus, u.Output, want)
		}
	}
}

// text returns a JSON string that takes n bytes.
func text(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }

func TestSizesAreJudgedInCanonicalForm(t *testing.T) {
	u := update(t, `"customStatus":`+strings.Repeat(" ", 1000)+text(status.MaxCustomStatus))
	if len(u.CustomStatus) != status.MaxCustomStatus {
		t.Errorf("got customStatus of %d bytes", len(u.CustomStatus))
	}
	refuse(t, `{"instanceId":"i","customStatus":`+text(status.MaxCustomStatus+1)+`}`, status.ReasonInvalid, "customStatus")

	head, tail := `{"instanceId":"i","x":`, `}`
	decode(t, head+text(wire.MaxMessageBytes-len(head)-len(tail))+tail)
	refuse(t, head+text(wire.MaxMessageBytes-len(head)-len(tail)+1)+tail, status.ReasonTooLarge, "")
}

func TestLargeOutputCostsOnlyItself(t *testing.T) {
	u := update(t, `"runtimeStatus":"Completed","output":`+text(status.MaxOutput))
	if len(u.Output) != status.MaxOutput {
		t.Errorf("got output of %d bytes, want %d", len(u.Output), status.MaxOutput)
	}
	for _, output := range []string{text(status.MaxOutput + 1), strings.Repeat("[", 33) + strings.Repeat("]", 33)} {
		u := update(t, `"runtimeStatus":"Completed","output":`+output)
		if u.RuntimeStatus != status.Completed || u.Output != nil {
			t.Errorf("got %q with output of %d bytes, want Completed without", u.RuntimeStatus, len(u.Output))
		}
	}
}

func TestLongFailureIsCutAtTheEndOfACharacter(t *testing.T) {
	for message, want := range map[string]int{
		strings.Repeat("x", status.MaxFailure):       status.MaxFailure,
		strings.Repeat("x", status.MaxFailure+1):     status.MaxFailure,
		"x" + strings.Repeat("é", status.MaxFailure): status.MaxFailure - 1,
		strings.Repeat("🚚", status.MaxFailure/4+1):   status.MaxFailure,
	} {
		u := update(t, `"runtimeStatus":"Failed","failure":{"message":"`+message+`","type":"`+strings.Repeat("ü", status.MaxFailureType+1)+`"}`)
		if got := u.Failure.Message; len(got) != want || !strings.HasPrefix(message, got) {
			t.Errorf("got message of %d bytes, want the first %d", len(got), want)
		}
		if want := strings.Repeat("ü", status.MaxFailureType); u.Failure.Type != want {
			t.Errorf("got type of %d bytes, want %d", len(u.Failure.Type), len(want))
		}
	}
	if u := update(t, `"runtimeStatus":"Failed","failure":{"message":null,"stack":"x"}`); u.Failure != nil {
		t.Errorf("got %+v for a failure that says nothing", u.Failure)
	}
}

func TestDeepNestingIsRefusedWithoutHarm(t *testing.T) {
	const open, shut = "[", "]"
	for _, n := range []int{33, 9_000, 20_000, 130_000} {
		body := `{"instanceId":"i","customStatus":` + strings.Repeat(open, n) + strings.Repeat(shut, n) + `}`
		if _, err := wire.Decode([]byte(body), now); err == nil {
			t.Errorf("accepted customStatus nested %d deep", n)
		}
	}
	refuse(t, strings.Repeat(open, wire.MaxMessageBytes), status.ReasonMalformed, "")
}

func TestUpdateSharesNothingWithTheBody(t *testing.T) {
	for name, body := range examples(t, "good") {
		m, err := wire.Decode(body, now)
		if err != nil {
			t.Fatal(err)
		}
		again, err := wire.Decode(bytes.Clone(body), now)
		if err != nil {
			t.Fatal(err)
		}
		for i := range body {
			body[i] = '#'
		}
		if !reflect.DeepEqual(m, again) {
			t.Errorf("%s: an update changed with its body", name)
		}
	}
}

func TestErrorsHoldNothingOfTheMessage(t *testing.T) {
	for _, body := range []string{
		`s3cret`, `{"s3cret`, `{"s3cret":s3cret}`, `{"s3cret":1,"s3cret":2}`, `{"instanceId":"s3cret\x"}`, "{\"s3cret\":\"s3cret\xff\"}",
		`{"instanceId":"i","labels":{"s3cret":"s3cret","s3cret":""}}`, `{"instanceId":"i"} s3cret`, `{"s3cret":{"s3cret":[1e999]}}`,
		`{"instanceId":"i","customStatus":{"s3cret":1,"\u00733cret":2}}`, `"s3cret"`, `["s3cret"]`,
		`{"instanceId":"s3cret/"}`, `{"instanceId":"i","labels":{"s3cret":1}}`, `{"instanceId":"i","labels":{"s3cret":"` + strings.Repeat("s3cret", 99) + `"}}`,
		`{"instanceId":"i","runtimeStatus":"s3cret"}`, `{"instanceId":"i","createdTime":"s3cret"}`, `{"instanceId":"i","kind":"s3cret"}`, `{"instanceId":"i","hub":"s3cret!"}`,
	} {
		_, err := wire.Decode([]byte(body), now)
		if err == nil {
			t.Errorf("accepted %s", body)
			continue
		}
		if got := refusal(t, err).Error(); strings.Contains(got, "s3cret") || got == "" {
			t.Errorf("%s: got error %q", body, got)
		}
	}
}

func TestDecodeMayRunInParallel(t *testing.T) {
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := range 200 {
				id := fmt.Sprintf("%d-%d", worker, i)
				m, err := wire.Decode([]byte(`{"instanceId":"`+id+`","customStatus":{"b":"`+id+`","a":1}}`), now)
				if err != nil || m.Update.InstanceID != id || string(m.Update.CustomStatus) != `{"a":1,"b":"`+id+`"}` {
					t.Errorf("got %+v, %v for %s", m.Update, err, id)
					return
				}
				if _, err := wire.Decode([]byte(`{"instanceId":"`+id), now); err == nil {
					t.Error("accepted half a document")
				}
			}
		})
	}
	group.Wait()
}
