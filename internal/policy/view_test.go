package policy_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"testing"
	"time"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// full returns a record that has something everywhere.
func full() *status.Record {
	return &status.Record{
		Hub: "orders", InstanceID: "order 4711", Name: "Order", Generation: 1, Version: 1795329321010561,
		Lifecycle: status.Lifecycle{
			Position: status.Position{Class: status.Declared, N: 7}, RuntimeStatus: status.Failed,
			Output: json.RawMessage(`{"total":1.50}`), Failure: &status.Failure{Type: "Oops", Message: "no \"luck\""},
		},
		Progress: status.Progress{
			Position:     status.Position{Class: status.Declared, N: 9},
			CustomStatus: json.RawMessage(`{"orderNo":9007199254740993,"percent":50,"secret":"s"}`),
		},
		CreatedTime:     time.Date(2026, 11, 22, 7, 35, 21, 9489409, time.FixedZone("", 3600)),
		LastUpdatedTime: time.Date(2026, 11, 22, 6, 35, 22, 0, time.UTC),
		ExecutionID:     "e", ParentInstanceID: "p", RootInstanceID: "r",
		Labels:    map[string]string{"tenant": "t-1", "region": "eu"},
		Conflicts: []string{"owner"},
	}
}

// seeing returns an audience that sees this.
func seeing(t testing.TB, see string) *policy.Audience {
	t.Helper()
	p := parse(t, `{version: 1, hubs: {"*": {orchestrators: {"*": {audiences: [{name: a, when: "true", see: `+see+`}]}}}}}`)
	return p.Audience(nil, &status.Record{})
}

const all = `{customStatus: all, output: true, failure: true, labels: true}`

func TestViewIsTheDocumentedObject(t *testing.T) {
	const head = `{"hub":"orders","instanceId":"order 4711","name":"Order","runtimeStatus":"Failed","customStatus":`
	const times = `,"createdTime":"2026-11-22T06:35:21.009489409Z","lastUpdatedTime":"2026-11-22T06:35:22Z","version":1795329321010561`
	change := func(f func(*status.Record)) *status.Record {
		r := full()
		f(r)
		return r
	}
	for _, c := range []struct {
		name, see string
		record    *status.Record
		want      string
	}{
		{"everything", all, full(), head + `{"orderNo":9007199254740993,"percent":50,"secret":"s"}` + times +
			`,"output":{"total":1.50},"failure":{"type":"Oops","message":"no \"luck\""},"labels":{"region":"eu","tenant":"t-1"}}`},
		{"nothing", `{}`, full(), head + `{}` + times + `}`},
		{"pointers", `{customStatus: [/percent]}`, full(), head + `{"percent":50}` + times + `}`},
		{"output alone", `{output: true}`, full(), head + `{}` + times + `,"output":{"total":1.50}}`},
		{"failure alone", `{failure: true}`, full(), head + `{}` + times + `,"failure":{"type":"Oops","message":"no \"luck\""}}`},
		{"labels alone", `{labels: true}`, full(), head + `{}` + times + `,"labels":{"region":"eu","tenant":"t-1"}}`},
		{
			"nothing there", all, &status.Record{Hub: "h", InstanceID: "i", Version: 1},
			`{"hub":"h","instanceId":"i","runtimeStatus":"Running","customStatus":null,"version":1,"partial":true}`,
		},
		{
			"silent", `{}`, &status.Record{Hub: "h", InstanceID: "i", Version: 2, Stale: true},
			`{"hub":"h","instanceId":"i","runtimeStatus":"Running","customStatus":null,"version":2,"partial":true,"stale":true}`,
		},
		{
			"silent and labelled", `{labels: true}`, change(func(r *status.Record) { r.Stale = true }),
			head + `{}` + times + `,"stale":true,"labels":{"region":"eu","tenant":"t-1"}}`,
		},
		{
			"cleared", `{customStatus: [/percent]}`, change(func(r *status.Record) { r.Progress.CustomStatus = json.RawMessage("null") }),
			head + `null` + times + `}`,
		},
		{
			"text where pointers go", `{customStatus: [/percent]}`, change(func(r *status.Record) { r.Progress.CustomStatus = json.RawMessage(`"secret"`) }),
			head + `null` + times + `}`,
		},
		{
			"halves of a failure", `{failure: true}`, change(func(r *status.Record) { r.Lifecycle.Failure = &status.Failure{Message: "m"} }),
			head + `{}` + times + `,"failure":{"message":"m"}}`,
		},
		{
			"an empty failure", `{failure: true}`, change(func(r *status.Record) { r.Lifecycle.Failure = &status.Failure{} }),
			head + `{}` + times + `,"failure":{}}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := seeing(t, c.see).View(c.record)
			if string(got.JSON) != c.want {
				t.Errorf("\n got %s\nwant %s", got.JSON, c.want)
			}
		})
	}
}

func TestViewIsJSONWhateverTheTexts(t *testing.T) {
	a := seeing(t, all)
	r := full()
	for _, text := range []string{"\x00\x1f", "\"\\", "\xff\xfe broken", "\u2028</script>", "\U0001F600", "\u202e"} {
		r.InstanceID, r.Name, r.Labels = text, text, map[string]string{text: text}
		r.Lifecycle.Failure = &status.Failure{Type: text, Message: text}
		if got := a.View(r); !json.Valid(got.JSON) {
			t.Errorf("%q: no JSON: %s", text, got.JSON)
		}
	}
}

func TestETagFollowsWhatTheAudienceSees(t *testing.T) {
	everything, percent := seeing(t, all), seeing(t, `{customStatus: [/percent]}`)
	if a, b := everything.View(full()).ETag, percent.View(full()).ETag; a == b {
		t.Errorf("two audiences that see different things have one ETag %s", a)
	}
	for _, c := range []struct {
		name                string
		change              func(*status.Record)
		everything, percent bool // the ETag differs
	}{
		{"nothing", func(*status.Record) {}, false, false},
		{"version", func(r *status.Record) { r.Version++ }, false, false},
		{"positions", func(r *status.Record) { r.Progress.Position.N++; r.Generation++ }, false, false},
		{"conflicts", func(r *status.Record) { r.Conflicts = nil }, false, false},
		{"secret", func(r *status.Record) { r.Progress.CustomStatus = json.RawMessage(`{"percent":50,"secret":"t"}`) }, true, false},
		{"percent", func(r *status.Record) { r.Progress.CustomStatus = json.RawMessage(`{"percent":51,"secret":"s"}`) }, true, true},
		{"output", func(r *status.Record) { r.Lifecycle.Output = nil }, true, false},
		{"labels", func(r *status.Record) { r.Labels = nil }, true, false},
		{"status", func(r *status.Record) { r.Lifecycle.RuntimeStatus = status.Running }, true, true},
		{"time", func(r *status.Record) { r.LastUpdatedTime = r.LastUpdatedTime.Add(1) }, true, true},
		{"name", func(r *status.Record) { r.Name = "Other" }, true, true},
		{"silence", func(r *status.Record) { r.Stale = true }, true, true},
	} {
		r := full()
		c.change(r)
		if got := everything.View(r).ETag != everything.View(full()).ETag; got != c.everything {
			t.Errorf("%s: the ETag of who sees everything changes: %v, want %v", c.name, got, c.everything)
		}
		if got := percent.View(r).ETag != percent.View(full()).ETag; got != c.percent {
			t.Errorf("%s: the ETag of who sees the percentage changes: %v, want %v", c.name, got, c.percent)
		}
	}
	// entity-tag = DQUOTE *etagc DQUOTE, not weak
	if tag := everything.View(full()).ETag; !regexp.MustCompile(`^W/"[A-Za-z0-9_-]{16}"$`).MatchString(tag) {
		t.Errorf("ETag %s", tag)
	}
}

func TestTombstoneHasNoAudienceAndNoView(t *testing.T) {
	p := development(t)
	r := full()
	if p.Audience(operator, r) == nil {
		t.Fatal("the operator is not admitted to the record itself")
	}
	a := p.Audience(operator, r)
	r.Purged = true
	if got := p.Audience(operator, r); got != nil {
		t.Errorf("audience %s of a tombstone", got.Name())
	}
	if v := a.View(r); v.JSON != nil || v.ETag != "" {
		t.Errorf("view of a tombstone: %s %s", v.JSON, v.ETag)
	}
}

func TestViewsDoNotShareBytes(t *testing.T) {
	a, r := seeing(t, all), full()
	first := a.View(r)
	want := bytes.Clone(first.JSON)
	second := a.View(r)
	for i := range second.JSON {
		second.JSON[i] = 'x'
	}
	if !bytes.Equal(first.JSON, want) {
		t.Error("writing into one view changes another")
	}
	if string(r.Progress.CustomStatus) != string(full().Progress.CustomStatus) {
		t.Error("writing into a view changes the record")
	}
}

// sized returns a record whose custom status is about n bytes.
func sized(n int) *status.Record {
	r := full()
	var b bytes.Buffer
	b.WriteString(`{"details":{"items":[`)
	for b.Len() < n-100 {
		b.WriteString(`{"internalCost":12.5,"price":19.99,"sku":"SKU-41128"},`)
	}
	b.Truncate(b.Len() - 1)
	b.WriteString(`]},"message":"Reserving stock","percent":40,"step":"reserve-stock"}`)
	r.Progress.CustomStatus = b.Bytes()
	r.Lifecycle.Output, r.Lifecycle.Failure = nil, nil
	r.Lifecycle.RuntimeStatus = status.Running
	return r
}

func BenchmarkView(b *testing.B) {
	for _, c := range []struct {
		name, see string
		size      int
	}{
		{"all-500B", `{customStatus: all, output: true, failure: true}`, 300}, // with what is around it
		{"all-500B-labels", all, 300},
		{"pointers-500B", `{customStatus: [/percent, /step, /message]}`, 300},
		{"wildcard-500B", `{customStatus: [/details/items/*/sku]}`, 300},
		{"pointers-16KiB", `{customStatus: [/percent, /step, /message]}`, 16 << 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			a, r := seeing(b, c.see), sized(c.size)
			b.SetBytes(int64(len(r.Progress.CustomStatus)))
			b.ReportAllocs()
			for b.Loop() {
				a.View(r)
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	p := parse(b, `{version: 1, hubs: {"*": {orchestrators: {"*": {audiences: [
		{name: a, when: "true", see: {customStatus: [/percent, /step, /message]}}]}}}}}`)
	r := sized(300)
	b.ReportAllocs()
	for b.Loop() {
		u := status.Update{Hub: "h", CustomStatus: r.Progress.CustomStatus}
		p.Filter(&u)
	}
}

func BenchmarkAudience(b *testing.B) {
	p := development(b)
	r := full()
	r.Labels, r.Conflicts = map[string]string{"owner": "u-1001"}, nil
	torn := full()
	for _, c := range []struct {
		name   string
		claims map[string]any
		record *status.Record
	}{
		{"operator", operator, r},
		{"customer", customer, r},
		{"conflict", customer, torn},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Audience(c.claims, c.record)
			}
		})
	}
}

func BenchmarkScope(b *testing.B) {
	r := full()
	b.ReportAllocs()
	for b.Loop() {
		policy.Scope(r)
	}
}
