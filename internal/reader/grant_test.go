package reader_test

import (
	"testing"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// What a credential is good for comes before what the policy says, and a link is asked about no claims.
func TestU4AudienceObeysTheGrantFirst(t *testing.T) {
	p, err := policy.Parse(policy.Development())
	if err != nil {
		t.Fatal(err)
	}
	source := reader.NewSource(nil, nil, func() *policy.Policy { return p })
	r := &status.Record{Hub: "h", InstanceID: "i", Labels: map[string]string{"owner": "u-1"}}
	purged := &status.Record{Hub: "h", InstanceID: "i", Purged: true}
	operator := map[string]any{"sub": "o", "roles": []any{"operator"}}
	link := func(hub, id, audience string) *auth.Grant {
		return &auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: []string{hub}, Link: &auth.LinkGrant{Key: status.Key{Hub: hub, InstanceID: id}, Audience: audience}}
	}
	for _, c := range []struct {
		name   string
		who    auth.Principal
		record *status.Record
		want   string
	}{
		{"a token", auth.Principal{Claims: operator}, r, "operator"},
		{"a token of somebody else", auth.Principal{Claims: map[string]any{"sub": "u-2", "roles": []any{}}}, r, ""},
		{"a key to read", auth.Principal{Claims: operator, Grant: &auth.Grant{Rights: []auth.Right{auth.Read}}}, r, "operator"},
		{"a key to read this hub", auth.Principal{Claims: operator, Grant: &auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: []string{"g", "h"}}}, r, "operator"},
		{"a key to read another hub", auth.Principal{Claims: operator, Grant: &auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: []string{"g"}}}, r, ""},
		{"a key to publish", auth.Principal{Claims: operator, Grant: &auth.Grant{Rights: []auth.Right{auth.Publish}}}, r, ""},
		{"a key for nothing", auth.Principal{Claims: operator, Grant: &auth.Grant{}}, r, ""},
		{"a link", auth.Principal{Grant: link("h", "i", "customer")}, r, "customer"},
		{"a link as an operator", auth.Principal{Grant: link("h", "i", "operator")}, r, "operator"},
		{"a link to another instance", auth.Principal{Grant: link("h", "j", "customer")}, r, ""},
		{"a link to another hub", auth.Principal{Grant: link("g", "i", "customer")}, r, ""},
		{"a link to another instance, with claims", auth.Principal{Claims: operator, Grant: link("h", "j", "customer")}, r, ""},
		{"a link as nobody", auth.Principal{Claims: operator, Grant: link("h", "i", "nobody")}, r, ""},
		{"a link without rights", auth.Principal{Grant: &auth.Grant{Link: &auth.LinkGrant{Key: r.Key(), Audience: "customer"}}}, r, ""},
		{"a link to what is purged", auth.Principal{Grant: link("h", "i", "customer")}, purged, ""},
	} {
		got := ""
		if a := source.Audience(&c.who, c.record); a != nil {
			got = a.Name()
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// By a watch, or a list, a link shows no more than by name; and a key that is narrowed has what it has shown taken back.
func TestU4LinkWatchesOneInstance(t *testing.T) {
	fake(t, func(w *world) {
		w.put("a", "u-1", 10, 1)
		w.put("b", "u-1", 11, 1)
		grant := &auth.Grant{Rights: []auth.Right{auth.Read}, Link: &auth.LinkGrant{Key: key("a"), Audience: "customer"}}
		w.reader.SetPrincipal(&auth.Principal{Issuer: auth.LinkIssuer, Subject: "k/h/a", Grant: grant})
		w.reader.Watch(key("a"), reader.Terms{})
		w.reader.Watch(key("b"), reader.Terms{})
		w.wants("a 10")
		w.reader.WatchList("all", &status.Query{Hub: "h"}, 10, 0)
		w.wants("a joined all, all listed false")

		w.reader.SetPrincipal(&auth.Principal{Issuer: "api-key", Subject: "x", Claims: map[string]any{"roles": []any{"operator"}}, Grant: &auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: []string{"g"}}})
		w.reader.Reassess()
		w.wants("a 11 gone")
	})
}
