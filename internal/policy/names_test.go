package policy_test

import (
	"encoding/json"
	"testing"

	"statusrelay/internal/status"
)

const namesFile = `
version: 1
hubs:
  h:
    orchestrators:
      Orders:
        audiences:
          - {name: staff, when: "claims.role == 'staff'", see: {customStatus: [/percent, /iban, /items/*/sku], output: true, labels: true}}
          - {name: owner, when: labels.owner == claims.sub, see: {customStatus: [/percent]}}
      Promotions:
        audiences:
          - {name: everybody, when: "true", see: {customStatus: all, output: true, failure: true}}
      Secrets:
        audiences:
          - {name: owner, when: "claims.role == 'auditor'", see: {customStatus: all}}
      "*":
        audiences:
          - {name: everybody, when: "true", see: {customStatus: [/percent, /items/*/price, /items/0/sku]}}
`

// Whoever can publish could else choose who reads, by another name for somebody else's instance: it is for those who
// are admitted under each of its names, and they see what they would see under all.
func TestInstanceOfSeveralNamesIsForThoseWhoMayReadUnderEach(t *testing.T) {
	p := parse(t, namesFile)
	staff, owner, nobody := map[string]any{"role": "staff"}, map[string]any{"sub": "u-1"}, map[string]any{"sub": "u-2"}
	record := func(names ...string) *status.Record {
		r := &status.Record{Hub: "h", InstanceID: "i", Name: names[0], OtherNames: names[1:], Labels: map[string]string{"owner": "u-1"}, Version: 1}
		r.Progress.CustomStatus = json.RawMessage(`{"percent":1,"iban":"X","items":[{"sku":"s","price":2},{"sku":"t","price":3}]}`)
		r.Lifecycle.Output = json.RawMessage(`"out"`)
		return r
	}
	type seen struct{ custom, output string }
	for name, c := range map[string]struct {
		record *status.Record
		claims map[string]any
		want   *seen
	}{
		"one name":                       {record("Orders"), staff, &seen{`{"percent":1,"iban":"X","items":[{"sku":"s"},{"sku":"t"}]}`, `"out"`}},
		"the lesser name guards":         {record("Promotions", "Orders"), nobody, nil},
		"and narrows":                    {record("Promotions", "Orders"), owner, &seen{`{"percent":1}`, ``}},
		"what both see":                  {record("Promotions", "Orders"), staff, &seen{`{"percent":1,"iban":"X","items":[{"sku":"s"},{"sku":"t"}]}`, `"out"`}},
		"fields of both":                 {record("Unknown", "Orders"), staff, &seen{`{"percent":1,"items":[{"sku":"s"},{}]}`, ``}},
		"three names":                    {record("Unknown", "Promotions", "Orders"), owner, &seen{`{"percent":1}`, ``}},
		"names of one rule are one":      {record("Unknown", "Other"), nobody, &seen{`{"percent":1,"items":[{"sku":"s","price":2},{"price":3}]}`, ``}},
		"a name that admits nobody here": {record("Secrets", "Orders"), staff, nil},
		"too many names":                 {record("Unknown", "Other", "Others", "Another"), nobody, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := p.Audience(c.claims, c.record)
			if (a != nil) != (c.want != nil) {
				t.Fatalf("got audience %v", a)
			}
			if a == nil {
				return
			}
			if again := p.Audience(c.claims, c.record); again != a {
				t.Error("the audience is another one each time: nothing could be encoded once for many")
			}
			custom, output, _ := a.Values(c.record)
			if string(custom) != c.want.custom || string(output) != c.want.output {
				t.Errorf("got %s and output %s, want %s and %s", custom, output, c.want.custom, c.want.output)
			}
			var view struct{ CustomStatus json.RawMessage }
			if err := json.Unmarshal(a.View(c.record).JSON, &view); err != nil || string(view.CustomStatus) != c.want.custom {
				t.Errorf("the view has %s (%v), want %s", view.CustomStatus, err, c.want.custom)
			}
		})
	}
	// A link grants an audience by its name: there must be one under each.
	for name, want := range map[string]bool{"owner": false, "everybody": false} {
		if got := p.Named(record("Promotions", "Orders"), name); (got != nil) != want {
			t.Errorf("a link for %s opens it: %v", name, got)
		}
	}
	if a := p.Named(record("Secrets", "Orders"), "owner"); a == nil {
		t.Error("a link for the owner does not open what has an owner under each name")
	} else if custom, _, _ := a.Values(record("Secrets", "Orders")); string(custom) != `{"percent":1}` {
		t.Errorf("and shows %s", custom)
	}
}
