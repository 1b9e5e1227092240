package reader_test

import (
	"testing"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// Only what a credential is good for is wanted; what it comes to be good for later is wanted from then on.
func TestWatchWantsWhatItsCredentialIsGoodFor(t *testing.T) {
	i := key("i")
	rights := func(hubs ...string) *auth.Grant { return &auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: hubs} }
	link := func(k status.Key) *auth.Grant {
		return &auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: []string{k.Hub}, Link: &auth.LinkGrant{Key: k, Audience: "customer"}}
	}
	for _, c := range []struct {
		name  string
		grant *auth.Grant
		want  bool
	}{
		{"a token", nil, true},
		{"a key to read", rights(), true},
		{"a key to read this hub", rights("h"), true},
		{"a key to read another hub", rights("g"), false},
		{"a key to publish", &auth.Grant{Rights: []auth.Right{auth.Publish}}, false},
		{"a link", link(i), true},
		{"a link to another instance", link(key("j")), false},
	} {
		told := 0
		h := hub.New(hub.Options{Wanted: func(status.Key) { told++ }})
		var r reader.Reader
		p, err := policy.Parse(policy.Development())
		if err != nil {
			t.Fatal(err)
		}
		r.Open(reader.NewSource(h, nil, func() *policy.Policy { return p }), &world{TB: t})
		r.SetPrincipal(&auth.Principal{Grant: c.grant})
		r.Watch(i, reader.Terms{})
		if got := told == 1; got != c.want {
			t.Errorf("%s: wanted: %t, want %t", c.name, got, c.want)
		}
		r.SetPrincipal(&auth.Principal{})
		r.Reassess()
		if told != 1 {
			t.Errorf("%s: told %d times, although it may now", c.name, told)
		}
		r.Close()
		for k := range h.Wanted {
			t.Errorf("%s: %s is wanted by nobody", c.name, k)
		}
	}
}
