package auth_test

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
)

// Every way in which a key, a link or a ticket is refused is counted under its own reason, all of them from the start; what is good is not
// counted, and what is refused is in no label.
func TestRefusalsAreCountedByReason(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	refusals := auth.NewRefusals(registry)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	refuse := func(who *auth.Principal, err error) {
		t.Helper()
		if who != nil || err == nil {
			t.Errorf("%v was let in", who)
		}
	}

	keys := auth.NewAPIKeys(auth.APIKeyOptions{Now: clock, Refusals: refusals})
	good, kept, err := auth.NewAPIKey(auth.APIKey{ID: "a", Rights: []auth.Right{auth.Read}, Expires: now.Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	keys.SetKeys([]auth.APIKey{kept})
	if _, err := keys.Verify(good); err != nil {
		t.Fatal(err)
	}
	refuse(keys.Verify("srk_rubbish"))
	refuse(keys.Verify(good[:len(good)-1] + map[bool]string{true: "A", false: "E"}[good[len(good)-1] != 'A']))
	refuse((&auth.Credentials{Refusals: refusals}).Verify(t.Context(), good))

	links := auth.NewLinks(auth.LinkOptions{Now: clock, Refusals: refusals})
	links.SetKeys([]auth.LinkKey{{ID: "k", Secret: []byte(strings.Repeat("k", 32))}})
	long := auth.NewLinks(auth.LinkOptions{Now: clock, MaxLife: auth.MaxLinkLife})
	long.SetKeys([]auth.LinkKey{{ID: "k", Secret: []byte(strings.Repeat("k", 32))}})
	instance := status.Key{Hub: "orders", InstanceID: "i"}
	sign := func(l *auth.Links, life time.Duration) auth.SignedLink {
		s, err := l.Sign(instance, "customer", now.Add(life))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	link, tooLong := sign(links, time.Minute), sign(long, 48*time.Hour)
	if _, err := links.Verify(instance, link); err != nil {
		t.Fatal(err)
	}
	refuse(links.Verify(instance, auth.SignedLink{}))
	undated := link
	undated.Expires = "+1"
	refuse(links.Verify(instance, undated))
	refuse(links.Verify(status.Key{Hub: "orders", InstanceID: "j"}, link))
	refuse(links.Verify(instance, tooLong))

	store := &ticketStore{sluggish: true}
	tickets := auth.NewTickets(auth.TicketOptions{Store: store, APIKeys: keys, Now: clock, Refusals: refusals})
	issue := func(who *auth.Principal) string {
		ticket, _, err := tickets.Issue(t.Context(), who, portal)
		if err != nil {
			t.Fatal(err)
		}
		return ticket
	}
	who := &auth.Principal{Issuer: "https://issuer.example", Subject: "u-1"}
	used := issue(who)
	if _, err := tickets.Redeem(t.Context(), used, portal); err != nil {
		t.Fatal(err)
	}
	refuse(tickets.Redeem(t.Context(), used, portal))
	refuse(tickets.Redeem(t.Context(), "srt_rubbish", portal))
	refuse(tickets.Redeem(t.Context(), issue(who), "https://evil.example"))
	unreadable := issue(who)
	store.replace([]byte("{"))
	refuse(tickets.Redeem(t.Context(), unreadable, portal))
	holder, err := keys.Verify(good)
	if err != nil {
		t.Fatal(err)
	}
	withdrawn, old := issue(holder), issue(who)
	now = now.Add(2 * time.Hour)
	refuse(keys.Verify(good))
	refuse(links.Verify(instance, link))
	refuse(tickets.Redeem(t.Context(), old, portal))
	keys.SetKeys(nil)
	refuse(tickets.Redeem(t.Context(), withdrawn, portal))

	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP statusrelay_auth_refused_total API keys, links and tickets that were refused, by kind and reason.
# TYPE statusrelay_auth_refused_total counter
statusrelay_auth_refused_total{kind="api_key",reason="expired"} 1
statusrelay_auth_refused_total{kind="api_key",reason="malformed"} 1
statusrelay_auth_refused_total{kind="api_key",reason="unaccepted"} 1
statusrelay_auth_refused_total{kind="api_key",reason="unknown"} 1
statusrelay_auth_refused_total{kind="link",reason="expired"} 1
statusrelay_auth_refused_total{kind="link",reason="malformed"} 2
statusrelay_auth_refused_total{kind="link",reason="signature"} 1
statusrelay_auth_refused_total{kind="link",reason="too_long"} 1
statusrelay_auth_refused_total{kind="ticket",reason="expired"} 1
statusrelay_auth_refused_total{kind="ticket",reason="malformed"} 1
statusrelay_auth_refused_total{kind="ticket",reason="origin"} 1
statusrelay_auth_refused_total{kind="ticket",reason="unknown"} 1
statusrelay_auth_refused_total{kind="ticket",reason="unreadable"} 1
statusrelay_auth_refused_total{kind="ticket",reason="withdrawn"} 1
`)); err != nil {
		t.Error(err)
	}
}
