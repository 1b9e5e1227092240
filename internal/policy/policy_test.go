package policy_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// operator and customer are callers as development mode has them.
var (
	operator  = map[string]any{"sub": "op", "roles": []any{"operator"}}
	customer  = map[string]any{"sub": "u-1001", "roles": []any{"customer"}}
	publisher = map[string]any{"sub": "pub", "roles": []any{"publisher"}}
)

func development(t testing.TB) *policy.Policy { return parse(t, string(policy.Development())) }

func name(a *policy.Audience) string {
	if a == nil {
		return ""
	}
	return a.Name()
}

// A link names an audience of the record's own rule, whatever its condition
// says, and none of another's.
func TestNamedFindsTheAudienceOfTheRecordsRule(t *testing.T) {
	p := parse(t, `version: 1
hubs:
  orders:
    orchestrators:
      "*":
        audiences:
          - {name: customer, when: labels.owner == claims.sub, see: {customStatus: [/percent]}}
          - {name: nobody, when: "false", see: {}}
      Payment:
        audiences:
          - {name: auditor, when: "true", see: {customStatus: all}}
`)
	for _, c := range []struct {
		record status.Record
		name   string
		want   string
	}{
		{status.Record{Hub: "orders", InstanceID: "i"}, "customer", "customer"},
		{status.Record{Hub: "orders", InstanceID: "i", Name: "Order", Conflicts: []string{"owner"}}, "nobody", "nobody"},
		{status.Record{Hub: "orders", InstanceID: "i", Name: "Payment"}, "auditor", "auditor"},
		{status.Record{Hub: "orders", InstanceID: "i", Name: "Payment"}, "customer", ""},
		{status.Record{Hub: "orders", InstanceID: "i"}, "auditor", ""},
		{status.Record{Hub: "orders", InstanceID: "i"}, "Customer", ""},
		{status.Record{Hub: "orders", InstanceID: "i"}, "", ""},
		{status.Record{Hub: "another", InstanceID: "i"}, "customer", ""},
		{status.Record{Hub: "orders", InstanceID: "i", Purged: true}, "customer", ""},
	} {
		if got := name(p.Named(&c.record, c.name)); got != c.want {
			t.Errorf("%+v: audience %q: got %q", c.record, c.name, got)
		}
	}
	r := &status.Record{Hub: "orders", InstanceID: "i", Labels: map[string]string{"owner": "u-1"}}
	if p.Named(r, "customer") != p.Audience(map[string]any{"sub": "u-1"}, r) {
		t.Error("an audience by name is not the one by claims: views would be made twice")
	}
}

func TestDevelopmentPolicy(t *testing.T) {
	p := development(t)
	own := &status.Record{Hub: "h", InstanceID: "i", Labels: map[string]string{"owner": "u-1001"}}
	other := &status.Record{Hub: "x", InstanceID: "i", Name: "N", Labels: map[string]string{"owner": "u-1002"}}
	for _, c := range []struct {
		who        string
		claims     map[string]any
		own, other string
		publish    bool
	}{
		{"operator", operator, "operator", "operator", false},
		{"customer", customer, "customer", "", false},
		{"publisher", publisher, "", "", true},
		{"nobody", map[string]any{}, "", "", false},
		{"nil claims", nil, "", "", false},
		{"an operator that is only called so", map[string]any{"sub": "s", "roles": "operator"}, "", "", false},
	} {
		if got := name(p.Audience(c.claims, own)); got != c.own {
			t.Errorf("%s of own instance: %q, want %q", c.who, got, c.own)
		}
		if got := name(p.Audience(c.claims, other)); got != c.other {
			t.Errorf("%s of another's: %q, want %q", c.who, got, c.other)
		}
		if got := p.MayPublish(c.claims, "h", nil); got != c.publish {
			t.Errorf("%s may publish: %v, want %v", c.who, got, c.publish)
		}
	}
}

func TestMostSpecificSectionHoldsAlone(t *testing.T) {
	section := func(audience string) string {
		return fmt.Sprintf(`{audiences: [{name: %s, when: "true", see: {customStatus: [/%[1]s]}}]}`, audience)
	}
	p := parse(t, `
version: 1
hubs:
  orders:
    orchestrators:
      Order: `+section("orders-Order")+`
      "*": `+section("orders-any")+`
  payments:
    orchestrators:
      Payment: `+section("payments-Payment")+`
  closed:
    orchestrators:
      "*": {audiences: []}
  "*":
    orchestrators:
      Order: `+section("any-Order")+`
      "*": `+section("any-any")+`
`)
	for _, c := range []struct{ hub, name, want string }{
		{"orders", "Order", "orders-Order"},
		{"orders", "Other", "orders-any"},
		{"orders", "", "orders-any"},
		{"orders", "order", "orders-any"}, // names are compared exactly
		{"payments", "Payment", "payments-Payment"},
		{"payments", "Order", ""}, // a listed hub does not fall back on "*"
		{"payments", "", ""},
		{"closed", "Order", ""},
		{"other", "Order", "any-Order"},
		{"other", "Other", "any-any"},
		{"other", "", "any-any"},
		{"", "", "any-any"},
		{"Orders", "Order", "any-Order"},
		{"*", "*", "any-any"},
	} {
		r := &status.Record{Hub: c.hub, InstanceID: "i", Name: c.name}
		if got := name(p.Audience(nil, r)); got != c.want {
			t.Errorf("hub %q, orchestrator %q: audience %q, want %q", c.hub, c.name, got, c.want)
		}
		u := &status.Update{Hub: c.hub, Name: c.name, CustomStatus: json.RawMessage(
			`{"any-Order":1,"any-any":1,"orders-Order":1,"orders-any":1,"payments-Payment":1}`)}
		p.Filter(u)
		want := "{}"
		if c.want != "" {
			want = fmt.Sprintf(`{%q:1}`, c.want)
		}
		if string(u.CustomStatus) != want {
			t.Errorf("hub %q, orchestrator %q: filter keeps %s, want %s", c.hub, c.name, u.CustomStatus, want)
		}
	}
}

func TestFirstAudienceThatAdmitsDecides(t *testing.T) {
	p := parse(t, `
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - {name: broken, when: claims.no.such == 1, see: {}}
          - {name: first, when: claims.n >= 2.0, see: {customStatus: [/a]}}
          - {name: second, when: claims.n >= 1.0, see: {customStatus: all}}
`)
	r := &status.Record{Hub: "h", InstanceID: "i"}
	for n, want := range map[float64]string{0: "", 1: "second", 2: "first", 3: "first"} {
		a := p.Audience(map[string]any{"n": n}, r)
		if got := name(a); got != want {
			t.Errorf("n = %v: audience %q, want %q", n, got, want)
		}
		if b := p.Audience(map[string]any{"n": n}, r); a != b {
			t.Errorf("n = %v: the audience has two addresses", n)
		}
	}
}

func TestOrchestratorsLimitGoesBeforeItsHubs(t *testing.T) {
	p := parse(t, `
version: 1
hubs:
  orders:
    staleAfter: 15m
    orchestrators:
      Order: {audiences: []}
      Approval: {staleAfter: 24h, audiences: []}
      Eternal: {staleAfter: never, audiences: []}
      "*": {staleAfter: 1s, audiences: []}
  payments:
    orchestrators:
      Payment: {staleAfter: 1h30m, audiences: []}
      Refund: {audiences: []}
  never:
    staleAfter: never
    orchestrators:
      Order: {audiences: []}
      Short: {staleAfter: 90s, audiences: []}
  "*":
    staleAfter: 8760h
    orchestrators:
      "*": {audiences: []}
`)
	for _, c := range []struct {
		hub, name string
		want      time.Duration
	}{
		{"orders", "Order", 15 * time.Minute},
		{"orders", "Approval", 24 * time.Hour},
		{"orders", "Eternal", 0},
		{"orders", "Other", time.Second},
		{"orders", "", time.Second}, // without a name: entry "*"
		{"payments", "Payment", 90 * time.Minute},
		{"payments", "Refund", 0}, // a listed hub takes nothing from "*"
		{"payments", "", 0},       // nor has it an entry "*"
		{"never", "Order", 0},
		{"never", "Short", 90 * time.Second},
		{"other", "Order", 8760 * time.Hour},
		{"other", "", 8760 * time.Hour},
	} {
		if got := p.StaleAfter(&status.Record{Hub: c.hub, InstanceID: "i", Name: c.name}); got != c.want {
			t.Errorf("hub %q, orchestrator %q: stale after %v, want %v", c.hub, c.name, got, c.want)
		}
	}
	if got := development(t).StaleAfter(full()); got != 0 {
		t.Errorf("stale after %v where the file says nothing", got)
	}
}

// TestFilterIsNoOracleForHiddenLabels: who does not see labels may not find out
// what they are by asking for each value in turn.
func TestFilterIsNoOracleForHiddenLabels(t *testing.T) {
	sees, doesNot := seeing(t, `{labels: true}`), seeing(t, `{customStatus: all, output: true, failure: true}`)
	claims := map[string]any{
		"sub": "u-1001", "regions": []any{"eu-west", int64(7), nil, []any{"deep"}, map[string]any{"a": "deep"}},
		"n": int64(7), "half": 0.5, "admin": true, "nothing": nil, "org": map[string]any{"team": "deep"}, "scp": "Read Write",
	}
	for value, own := range map[string]bool{
		"u-1001":  true,
		"eu-west": true,
		"U-1001":  false,
		"u-1002":  false,
		"u-100":   false,
		"sub":     false, // a claim's name
		"7":       false, // a number is no text
		"0.5":     false,
		"true":    false,
		"":        false,
		"deep":    false, // only the top level is theirs for certain
		"Read":    false, // part of a text
	} {
		if got := doesNot.MaySelectBy(claims, "owner", value); got != own {
			t.Errorf("who does not see labels may select by %q: %v, want %v", value, got, own)
		}
		if !sees.MaySelectBy(claims, "owner", value) || !sees.MaySelectBy(nil, "owner", value) {
			t.Errorf("who sees labels may not select by %q", value)
		}
		if doesNot.MaySelectBy(nil, "owner", value) {
			t.Errorf("who has no claims may select by %q", value)
		}
	}
}

// A query is worth looking for as soon as the caller might be shown anything by it, whatever labels there are; and where they
// cannot, it is not, so that nothing tells how much others have.
func TestQueryIsLookedForIfItCouldSelectAnything(t *testing.T) {
	claims := map[string]any{"sub": "u-1", "roles": []any{"support"}, "region": "eu", "tid": "t-1"}
	labels := []map[string]string{
		nil, {"owner": "u-1"}, {"owner": "u-2"}, {"owner": "u-2", "region": "eu"}, {"owner": "t-1", "region": "us"}, {"region": "eu", "x": "1"},
	}
	for condition, may := range map[string]bool{
		"true":                                                       true,
		"labels.owner == claims.sub":                                 true,
		"labels.owner == claims.missing":                             false,
		"'operator' in claims.roles":                                 false,
		"'support' in claims.roles":                                  true,
		"claims.missing || has(labels.x)":                            true,
		"has(labels.x) || claims.missing":                            true,
		"has(labels.x) && claims.missing":                            true, // false where there is none
		"'operator' in claims.roles && has(labels.x)":                false,
		"has(claims.missing) && labels.owner == claims.missing":      false,
		"labels.exists(k, labels[k] == claims.sub)":                  true,
		"size(labels) == 0":                                          true,
		"claims.region in labels && labels[claims.region] == 'x'":    true,
		"has(labels.region) ? labels.region == claims.region : true": true,
	} {
		for _, see := range []string{"{labels: true}", "{customStatus: all}"} {
			p := parse(t, "version: 1\nhubs: {h: {orchestrators: {'*': {audiences: [{name: a, when: \""+condition+"\", see: "+see+"}]}}}}")
			if got := p.MaySelect(claims, &status.Query{Hub: "h"}); got != may {
				t.Errorf("%s: %v, want %v", condition, got, may)
			}
			if p.MaySelect(claims, &status.Query{Hub: "other"}) {
				t.Errorf("%s: a hub that nothing is said of may be selected from", condition)
			}
			for _, has := range labels {
				r := &status.Record{Hub: "h", InstanceID: "i", Name: "n", Labels: has}
				a := p.Audience(claims, r)
				for name, value := range has {
					for _, q := range []*status.Query{{Hub: "h", Labels: map[string]string{name: value}}, {Hub: "h", Name: "n", Labels: has}} {
						selected := a != nil
						for label, value := range q.Labels {
							selected = selected && a.MaySelectBy(claims, label, value)
						}
						if selected && !p.MaySelect(claims, q) {
							t.Errorf("%s, %s: %v would be selected, and is not looked for", condition, see, has)
						}
					}
				}
			}
		}
	}
	hidden := parse(t, "version: 1\nhubs: {h: {orchestrators: {'*': {audiences: [{name: a, when: \"labels.owner == claims.sub\", see: {customStatus: all}}]}}}}")
	if hidden.MaySelect(claims, &status.Query{Hub: "h", Labels: map[string]string{"owner": "u-2"}}) {
		t.Error("another's label is looked for")
	}
}

func TestFilterKeepsTheUnionOfAllAudiences(t *testing.T) {
	const in = `{"a":{"x":1,"y":2},"b":3,"c":[{"d":4,"e":5}]}`
	audiences := func(see ...string) string {
		var b strings.Builder
		b.WriteString("version: 1\nhubs: {'*': {orchestrators: {'*': {audiences: [")
		for i, s := range see {
			fmt.Fprintf(&b, "{name: a%d, when: 'false', see: %s},", i, s)
		}
		b.WriteString("]}}}}")
		return b.String()
	}
	for _, c := range []struct {
		file, custom    string
		output, failure bool
	}{
		{audiences(), `{}`, false, false},
		{audiences(`{labels: true}`), `{}`, false, false},
		{audiences(`{customStatus: []}`), `{}`, false, false},
		{audiences(`{customStatus: [/b]}`), `{"b":3}`, false, false},
		{audiences(`{customStatus: [/b]}`, `{customStatus: [/c/*/d]}`), `{"b":3,"c":[{"d":4}]}`, false, false},
		{audiences(`{customStatus: [/a/x]}`, `{customStatus: [/a/y], output: true}`), `{"a":{"x":1,"y":2}}`, true, false},
		{audiences(`{customStatus: [/a]}`, `{customStatus: all, failure: true}`), in, false, true},
		{audiences(`{output: true}`, `{failure: true}`), `{}`, true, true},
	} {
		p := parse(t, c.file)
		shared := json.RawMessage(in)
		u := &status.Update{
			Hub: "h", CustomStatus: shared, Output: json.RawMessage(`1`), Failure: &status.Failure{},
			Labels: map[string]string{"owner": "u"},
		}
		p.Filter(u)
		if string(u.CustomStatus) != c.custom {
			t.Errorf("%s: custom status %s, want %s", c.file, u.CustomStatus, c.custom)
		}
		if got := u.Output != nil; got != c.output {
			t.Errorf("%s: output kept: %v, want %v", c.file, got, c.output)
		}
		if got := u.Failure != nil; got != c.failure {
			t.Errorf("%s: failure kept: %v, want %v", c.file, got, c.failure)
		}
		if u.Labels["owner"] != "u" {
			t.Errorf("%s: labels are gone, on which access depends", c.file)
		}
		if string(shared) != in {
			t.Errorf("%s: the filter wrote into the update's bytes: %s", c.file, shared)
		}
	}
}

// TestFilteredUpdateStillSpeaksForItsLane: if it did not, a value that nobody
// may see would leave the one before it on show.
func TestFilteredUpdateStillSpeaksForItsLane(t *testing.T) {
	p := parse(t, `{version: 1, hubs: {"*": {orchestrators: {"*": {audiences: [{name: a, when: "true", see: {customStatus: [/percent]}}]}}}}}`)
	for in, want := range map[string]string{
		`{"percent":5}`: `{"percent":5}`,
		`{"secret":5}`:  `{}`,
		`{}`:            `{}`,
		`"text"`:        `null`,
		`[1]`:           `null`,
		`null`:          `null`,
		`0`:             `null`,
		``:              ``, // absent stays absent
	} {
		u := &status.Update{Hub: "h"}
		if in != "" {
			u.CustomStatus = json.RawMessage(in)
		}
		p.Filter(u)
		if string(u.CustomStatus) != want || (u.CustomStatus == nil) != (in == "") {
			t.Errorf("filtering %s: %s, want %s", in, u.CustomStatus, want)
		}
	}
}

// recorded is what recordings of a real engine have of an update.
type recorded struct {
	Hub, InstanceID, Name string
	Kind                  status.Kind
	RuntimeStatus         status.RuntimeStatus
	CustomStatus, Output  json.RawMessage
	Failure               *status.Failure
	Labels                map[string]string
}

// recordings returns updates whose every field that a customer may not see has
// something in it that must not leave, with those secrets.
func recordings(t *testing.T) (updates []*status.Update, secrets []string) {
	t.Helper()
	f, err := os.Open("testdata/secrets.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var event struct{ Data json.RawMessage }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatal(err)
		}
		var r recorded
		if err := json.Unmarshal(event.Data, &r); err != nil {
			t.Fatal(err)
		}
		u := &status.Update{
			Hub: r.Hub, InstanceID: r.InstanceID, Name: r.Name, Kind: r.Kind, RuntimeStatus: r.RuntimeStatus,
			CustomStatus: r.CustomStatus, Output: r.Output, Failure: r.Failure, Labels: r.Labels,
		}
		if bytes.Contains(event.Data, []byte(`"customStatus":null`)) {
			u.CustomStatus = json.RawMessage("null")
		}
		updates = append(updates, u)
		secrets = collect(secrets, decode(t, event.Data))
		if r.Failure != nil {
			secrets = append(secrets, r.Failure.Message)
		}
	}
	slices.Sort(secrets)
	return updates, slices.Compact(secrets)
}

// collect appends the values of the members that a customer must not see.
func collect(secrets []string, v any) []string {
	switch v := v.(type) {
	case map[string]any:
		for key, below := range v {
			switch key {
			case "email", "iban", "internalCost", "approverNotes", "apiKey", "passport":
				secrets = append(secrets, fmt.Sprint(below))
			}
			secrets = collect(secrets, below)
		}
	case []any:
		for _, below := range v {
			secrets = collect(secrets, below)
		}
	}
	return secrets
}

// TestOnlyWhatTheAudienceMaySeeReachesIt (promise 2, second half).
func TestOnlyWhatTheAudienceMaySeeReachesIt(t *testing.T) {
	p := development(t)
	updates, secrets := recordings(t)
	if len(updates) < 15 || len(secrets) < 25 {
		t.Fatalf("%d updates with %d secrets: too few to mean anything", len(updates), len(secrets))
	}
	passed := map[string]bool{}
	for _, u := range updates {
		claims := map[string]any{"sub": u.Labels["owner"], "roles": []any{"customer"}}
		a := p.Audience(claims, record(u))
		if name(a) != "customer" {
			t.Fatalf("audience of %s is %q", u.Key(), name(a))
		}
		view := a.View(record(u)).JSON
		for _, secret := range secrets {
			if bytes.Contains(view, []byte(secret)) {
				t.Errorf("the customer's view of %s has the secret %q: %s", u.Key(), secret, view)
			}
		}
		var got map[string]any
		if err := json.Unmarshal(view, &got); err != nil {
			t.Fatal(err)
		}
		for field := range got {
			if !slices.Contains([]string{"hub", "instanceId", "name", "runtimeStatus", "customStatus", "version", "partial"}, field) {
				t.Errorf("the customer's view of %s has %q", u.Key(), field)
			}
		}
		custom, _ := got["customStatus"].(map[string]any)
		for field := range custom {
			passed[field] = true
		}
		everything := p.Audience(operator, record(u)).View(record(u)).JSON
		if custom := record(u).Progress.CustomStatus; !bytes.Contains(everything, custom) {
			t.Errorf("the operator's view of %s lacks %s: %s", u.Key(), custom, everything)
		}
	}
	if len(passed) != 3 || !passed["percent"] || !passed["step"] || !passed["message"] {
		t.Errorf("the customer saw %v, want percent, step and message", passed)
	}
}

// TestOnlyWhatTheFilterPassedIsStored (promise 2, first half).
func TestOnlyWhatTheFilterPassedIsStored(t *testing.T) {
	const operatorSees = "customStatus: all\n              output: true\n              failure: true"
	p := parse(t, strings.Replace(string(policy.Development()), operatorSees, "customStatus: [/orderNo, /details/items/*/sku]", 1))
	updates, secrets := recordings(t)
	var all strings.Builder
	for _, u := range updates {
		p.Filter(u)
		stored := encode(t, record(u))
		all.WriteString(stored)
		for _, secret := range secrets {
			if strings.Contains(stored, secret) {
				t.Errorf("the stored record of %s has the secret %q: %s", u.Key(), secret, stored)
			}
		}
	}
	for _, want := range []string{`"orderNo":9007199254740993`, `"items":[{"sku":"SKU-08969"},{"sku":"SKU-63269"}]`, `"percent":50`} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("the filter removed %s, which an audience may see", want)
		}
	}
}

func TestPublishers(t *testing.T) {
	p := parse(t, `
version: 1
hubs: {"*": {orchestrators: {"*": {audiences: []}}}}
publishers:
  - {when: claims.admin == true, hubs: ["*"]}
  - {when: "'orders' in claims.apps", hubs: [orders, refunds]}
  - {when: labels.tenant == claims.tenant, hubs: [tenants]}
`)
	for _, c := range []struct {
		claims map[string]any
		hub    string
		labels map[string]string
		want   bool
	}{
		{map[string]any{"admin": true}, "anything", nil, true},
		{map[string]any{"admin": "true"}, "anything", nil, false},
		{map[string]any{"apps": []any{"orders"}}, "orders", nil, true},
		{map[string]any{"apps": []any{"orders"}}, "refunds", nil, true},
		{map[string]any{"apps": []any{"orders"}}, "payments", nil, false},
		{map[string]any{"apps": []any{"orders"}}, "*", nil, false},
		{map[string]any{"tenant": "t-1"}, "tenants", map[string]string{"tenant": "t-1"}, true},
		{map[string]any{"tenant": "t-1"}, "tenants", map[string]string{"tenant": "t-2"}, false},
		{map[string]any{"tenant": "t-1"}, "tenants", nil, false},
		{nil, "orders", nil, false},
	} {
		if got := p.MayPublish(c.claims, c.hub, c.labels); got != c.want {
			t.Errorf("%v may publish %v to %s: %v, want %v", c.claims, c.labels, c.hub, got, c.want)
		}
	}
	none := parse(t, `{version: 1, hubs: {"*": {orchestrators: {"*": {audiences: []}}}}}`)
	if none.MayPublish(map[string]any{"admin": true}, "h", nil) {
		t.Error("a policy without publishers lets somebody publish")
	}
}

func TestScopeTellsApartWhatAudiencesDependOn(t *testing.T) {
	base := status.Record{Hub: "h", Name: "n", Labels: map[string]string{"a": "1", "b": "2"}, Conflicts: []string{"c"}}
	vary := func(change func(*status.Record)) *status.Record {
		r := base
		change(&r)
		return &r
	}
	scopes := map[string]string{}
	for what, r := range map[string]*status.Record{
		"base":                vary(func(*status.Record) {}),
		"hub":                 vary(func(r *status.Record) { r.Hub = "H" }),
		"name":                vary(func(r *status.Record) { r.Name = "N" }),
		"another name":        vary(func(r *status.Record) { r.OtherNames = []string{"m"} }),
		"other names":         vary(func(r *status.Record) { r.OtherNames = []string{"m", "l"} }),
		"no name":             vary(func(r *status.Record) { r.Name = "" }),
		"hub and name shift":  vary(func(r *status.Record) { r.Hub, r.Name = "hn", "" }),
		"no labels":           vary(func(r *status.Record) { r.Labels = nil }),
		"one label":           vary(func(r *status.Record) { r.Labels = map[string]string{"a": "1"} }),
		"values swapped":      vary(func(r *status.Record) { r.Labels = map[string]string{"a": "2", "b": "1"} }),
		"label shift":         vary(func(r *status.Record) { r.Labels = map[string]string{"a1": "", "b": "2"} }),
		"no conflicts":        vary(func(r *status.Record) { r.Conflicts = nil }),
		"other conflict":      vary(func(r *status.Record) { r.Conflicts = []string{"d"} }),
		"conflicts shift":     vary(func(r *status.Record) { r.Conflicts = []string{"c", ""} }),
		"label not conflict":  vary(func(r *status.Record) { r.Labels, r.Conflicts = map[string]string{"a": "1"}, []string{"b", "2", "c"} }),
		"labels in conflict":  vary(func(r *status.Record) { r.Labels, r.Conflicts = nil, []string{"a", "b", "c"} }),
		"tombstone":           vary(func(r *status.Record) { r.Purged = true }),
		"tombstone, no label": vary(func(r *status.Record) { r.Purged, r.Labels = true, nil }),
	} {
		s := policy.Scope(r)
		if other, taken := scopes[s]; taken {
			t.Errorf("%q and %q have one scope", what, other)
		}
		scopes[s] = what
	}
	same := vary(func(r *status.Record) {
		r.InstanceID, r.Version, r.Generation = "other", 9, 7
		r.Labels = map[string]string{"b": "2", "a": "1"}
		r.Progress.CustomStatus = json.RawMessage(`1`)
	})
	if policy.Scope(same) != policy.Scope(&base) {
		t.Error("the scope depends on what no condition can see")
	}
}

func TestUndecidedConditionsAreLoggedByNameOnly(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p := parse(t, `
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - {name: by-key, when: "labels[claims.key] == 'x'", see: {}}
          - {name: by-owner, when: labels.owner == claims.sub, see: {}}
publishers:
  - {when: claims.missing == claims.sub, hubs: ["*"]}
`)
	q := p.WithLogger(logger)
	r := &status.Record{Hub: "h", InstanceID: "i", Name: "N", Conflicts: []string{"owner"}}
	claims := map[string]any{"sub": "secret-sub", "key": "secret-key"}
	if a := q.Audience(claims, r); a != nil {
		t.Errorf("admitted as %s", a.Name())
	}
	q.MayPublish(claims, "h", nil)
	for _, want := range []string{"audience=by-key", "audience=by-owner", "two values", "hub=h", "orchestrator=N", "publisher="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, &log)
		}
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log has values of claims:\n%s", &log)
	}

	r.Conflicts, r.Labels = nil, map[string]string{"owner": "secret-sub"}
	if a, b := p.Audience(claims, r), q.Audience(claims, r); a == nil || a != b {
		t.Errorf("the logging policy has its own audiences: %p, %p", a, b)
	}
}

func TestCostlyConditionAdmitsNobody(t *testing.T) {
	p := admitting(t, `claims.list.all(x, claims.list.all(y, x == y))`)
	r := &status.Record{Hub: "h", InstanceID: "i"}
	few, many := make([]any, 10), make([]any, 2000)
	for _, list := range [][]any{few, many} {
		for i := range list {
			list[i] = "same"
		}
	}
	if p.Audience(map[string]any{"list": few}, r) == nil {
		t.Error("not admitted although the condition holds at little cost")
	}
	if p.Audience(map[string]any{"list": many}, r) != nil {
		t.Error("admitted although the condition costs millions of steps")
	}
	roles := admitting(t, `claims.roles.exists(r, r.startsWith('status-') && r.endsWith('-reader'))`)
	for i := range many {
		many[i] = fmt.Sprintf("some-longish-role-name-of-a-directory-%d", i)
	}
	many[len(many)-1] = "status-x-reader"
	if roles.Audience(map[string]any{"roles": many[1000:]}, r) == nil {
		t.Error("not admitted: a thousand roles are too many")
	}
}

// TestPolicyIsSharedByManyGoroutines means something under the race detector.
func TestPolicyIsSharedByManyGoroutines(t *testing.T) {
	p := development(t)
	updates, _ := recordings(t)
	want := make([]policy.View, len(updates))
	for i, u := range updates {
		r := record(u)
		want[i] = p.Audience(map[string]any{"sub": u.Labels["owner"]}, r).View(r)
	}
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 20 {
				for i, u := range updates {
					filtered := *u
					p.Filter(&filtered)
					r := record(&filtered)
					r.Conflicts = []string{"region"}
					a := p.Audience(map[string]any{"sub": u.Labels["owner"]}, r)
					if a == nil {
						t.Errorf("%s: not admitted", u.Key())
						return
					}
					if got := a.View(r); !bytes.Equal(got.JSON, want[i].JSON) || got.ETag != want[i].ETag {
						t.Errorf("%s: %s, want %s", u.Key(), got.JSON, want[i].JSON)
					}
				}
			}
		})
	}
	running.Wait()
}
