package policy_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// admitting returns a policy whose only audience has this condition.
func admitting(t testing.TB, when string) *policy.Policy {
	t.Helper()
	quoted, err := json.Marshal(when)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, fmt.Sprintf(`
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - { name: them, when: %s, see: { customStatus: all, labels: true } }
`, quoted))
}

func parse(t testing.TB, file string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(file))
	if err != nil {
		t.Fatalf("parse policy: %v\n%s", err, file)
	}
	return p
}

// TestConflictingLabelGrantsNobody (promise 2, DESIGN 2.2 rule 7) holds for
// every way in which a condition can touch a label: whatever the answer would
// be with either value, or without the label, two values deny it, unless the
// condition holds without asking.
func TestConflictingLabelGrantsNobody(t *testing.T) {
	claims := map[string]any{
		"sub": "u-1", "key": "owner", "keys": []any{"owner"}, "roles": []any{"operator"},
		"wanted": map[string]any{"owner": "u-1"}, "pattern": "u-.*",
	}
	clean := &status.Record{Hub: "h", InstanceID: "i", Labels: map[string]string{"tenant": "t-1"}}
	torn := &status.Record{Hub: "h", InstanceID: "i", Labels: map[string]string{"tenant": "t-1"}, Conflicts: []string{"owner", "region"}}

	for _, c := range []struct {
		when string
		// without: the owner label is absent; conflict: it has two values.
		without, conflict bool
	}{
		{`labels.owner == claims.sub`, false, false},
		{`labels['owner'] == claims.sub`, false, false},
		{`.labels.owner == claims.sub`, false, false},
		{`labels.owner != claims.sub`, false, false},
		{`!(labels.owner == claims.sub)`, false, false},
		{`labels.owner != ''`, false, false},
		{`labels.owner.startsWith('')`, false, false},
		{`labels.owner.matches('.*')`, false, false},
		{`labels.owner in ['', 'u-1', 'u-2']`, false, false},
		{`labels.owner == labels.owner`, false, false},
		{`size(labels.owner) >= 0`, false, false},
		{`has(labels.owner)`, false, false},
		{`!has(labels.owner)`, true, false},
		{`!has(labels.owner) || labels.owner == claims.sub`, true, false},
		{`has(labels.owner) ? labels.owner == claims.sub : true`, true, false},
		{`has(labels.owner) ? true : true`, true, false}, // does not look at the branches: fails closed
		{`'owner' in labels`, false, false},
		{`!('owner' in labels)`, true, false},
		{`size(labels) == 1`, true, false},
		{`labels == {'tenant': 't-1'}`, true, false},
		{`labels != {}`, true, false},
		{`{'tenant': 't-1'} == labels`, true, false},
		{`labels in [{'tenant': 't-1'}]`, true, false},
		{`dyn(labels) == dyn({'tenant': 't-1'})`, true, false},
		{`[labels][0].tenant == 't-1'`, true, false},
		{`{'l': labels}.l.tenant == 't-1'`, true, false},
		{`!has({'l': labels}.l.owner)`, true, false},
		{`[labels].all(l, !has(l.owner))`, true, false},
		{`[labels].all(labels, !has(labels.owner))`, true, false},
		{`[labels].map(l, l)[0].tenant == 't-1'`, true, false},
		{`labels.all(k, k != 'owner')`, true, false},
		{`labels.exists_one(k, k == 'tenant')`, true, false},
		{`!labels.exists(k, k == 'owner')`, true, false},
		{`labels.filter(k, k == 'owner') == []`, true, false},
		{`labels.map(k, labels[k]) == ['t-1']`, true, false},
		{`labels[claims.key] == claims.sub`, false, false},
		{`!(claims.key in labels)`, true, false},
		{`claims.keys.all(k, !(k in labels))`, true, false},
		{`claims.keys.exists(k, labels[k] == claims.sub)`, false, false},
		{`claims.keys.exists(k, labels[k] != claims.sub)`, false, false},
		{`claims.wanted.all(k, labels[k] == claims.wanted[k])`, false, false},
		{`(true ? labels : {'owner': ''}).owner != 'x'`, false, false},
		{`!has((true ? labels : {'owner': ''}).owner)`, true, false},
		{`!has((has(labels.tenant) ? labels : {'owner': ''}).owner)`, true, false},
		{`!has((has(labels.owner) ? {'owner': ''} : labels).owner)`, true, false},
		{`(has(labels.tenant) ? labels : {'owner': ''}) == {'tenant': 't-1'}`, true, false},
		{`labels[has(labels.owner) ? 'owner' : 'tenant'] == 't-1'`, true, false},
		{`labels[(true ? claims : {'key': 'tenant'}).key] != 'x'`, false, false},
		{`labels[labels.tenant == 't-1' ? 'owner' : 'tenant'] != 'x'`, false, false},
		{`type(labels.owner) == string`, false, false},
		{`type(labels) == map`, true, false},
		{`string(labels.owner) != 'x'`, false, false},
		{`'%s'.format([labels]) != ''`, true, false},

		// The answer does not hang on the owner.
		{`true`, true, true},
		{`'operator' in claims.roles`, true, true},
		{`'operator' in claims.roles || labels.owner == claims.sub`, true, true},
		{`labels.owner == claims.sub || 'operator' in claims.roles`, true, true},
		{`labels.owner != claims.sub || 'operator' in claims.roles`, true, true},
		{`labels.tenant == 't-1'`, true, true},
		{`has(labels.tenant) && labels.tenant == 't-1'`, true, true},
		{`(has(labels.tenant) ? labels : {'owner': ''}).tenant == 't-1'`, true, true},
		{`['a'].all(labels, labels == 'a')`, true, true}, // another variable of that name

		// It does, though something else holds.
		{`labels.tenant == 't-1' && labels.owner == claims.sub`, false, false},
		{`labels.tenant == 't-1' && !has(labels.owner)`, true, false},
		{`labels.owner == claims.sub && 'operator' in claims.roles`, false, false},
		{`labels.owner == claims.sub || 'nobody' in claims.roles`, false, false},
		{`!has(labels.owner) && !has(labels.region)`, true, false},

		// An error never grants, with or without a conflict.
		{`claims.missing == labels.owner`, false, false},
		{`claims.missing == 'x' || labels.owner == claims.sub`, false, false},
		{`!(claims.missing == 'x')`, false, false},
		{`claims.missing != 'x'`, false, false},
		{`labels.nothing != 'x'`, false, false},
		{`'operator' in claims.sub`, false, false},
		{`1 / 0 == 1`, false, false},
	} {
		t.Run(c.when, func(t *testing.T) {
			p := admitting(t, c.when)
			if got := p.Audience(claims, clean) != nil; got != c.without {
				t.Errorf("without the label: admitted %v, want %v", got, c.without)
			}
			if got := p.Audience(claims, torn) != nil; got != c.conflict {
				t.Errorf("with two values: admitted %v, want %v", got, c.conflict)
			}
		})
	}
}
