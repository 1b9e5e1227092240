package policy_test

import (
	"maps"
	"os"
	"strings"
	"testing"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// documented returns the first complete file below a heading of docs/policy.md.
func documented(t *testing.T, heading string) *policy.Policy {
	t.Helper()
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "\n### "+heading+"\n")
	if !ok {
		t.Fatalf("there is no %q", heading)
	}
	_, rest, _ = strings.Cut(rest, "\n```yaml\n")
	file, _, _ := strings.Cut(rest, "\n```")
	return parse(t, file)
}

func audience(p *policy.Policy, claims map[string]any, labels map[string]string) string {
	if a := p.Audience(claims, &status.Record{Hub: "orders", Name: "OrderFulfilment", InstanceID: "i", Labels: labels}); a != nil {
		return a.Name()
	}
	return ""
}

const (
	tenant, otherTenant = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
	victim, attacker    = "aaaaaaaa-0000-0000-0000-000000000001", "bbbbbbbb-0000-0000-0000-000000000002"
)

// TestJ6UserWithAnAppRoleIsNoApp: a role that has the name of an app role, a scope that begins like one.
func TestJ6UserWithAnAppRoleIsNoApp(t *testing.T) {
	p := documented(t, "Microsoft Entra: users, apps and owners")
	roles := []any{"Status.Read.All", "Status.Publish"}
	for _, c := range []struct {
		what     string
		claims   map[string]any // beside tid and oid of the owner
		audience string
		publish  bool
	}{
		{"an app", map[string]any{"idtyp": "app", "roles": roles}, "service", true},
		{"an app without roles", map[string]any{"idtyp": "app"}, "", false},
		{"an app with another role", map[string]any{"idtyp": "app", "roles": []any{"Status.Read"}}, "", false},
		{"an app whose role is a text", map[string]any{"idtyp": "app", "roles": "Status.Read.All"}, "", false},
		{"the owner with app roles", map[string]any{"idtyp": "user", "roles": roles, "scp": "Status.Read"}, "owner", false},
		{"the owner with app roles, unmarked", map[string]any{"roles": roles, "scp": "Status.Read"}, "owner", false},
		{"app roles alone, unmarked", map[string]any{"roles": roles}, "", false},
		{"the owner with two scopes", map[string]any{"scp": "openid Status.Read"}, "owner", false},
		{"the owner with a longer scope", map[string]any{"scp": "Status.Read.Nothing"}, "", false},
		{"the owner without a scope", map[string]any{}, "", false},
	} {
		claims := map[string]any{"tid": tenant, "oid": victim}
		maps.Copy(claims, c.claims)
		if got := audience(p, claims, map[string]string{"tenant": tenant, "owner": victim}); got != c.audience {
			t.Errorf("%s: got audience %q, want %q", c.what, got, c.audience)
		}
		if got := p.MayPublish(claims, "orders", nil); got != c.publish {
			t.Errorf("%s: may publish: %v, want %v", c.what, got, c.publish)
		}
	}
}

// TestJ7OwnerIsTenantAndObject: a token with everything of the victim's but those does not own.
func TestJ7OwnerIsTenantAndObject(t *testing.T) {
	p := documented(t, "Microsoft Entra: users, apps and owners")
	labels := map[string]string{"tenant": tenant, "owner": victim}
	const address = "victim@example.com"
	for _, c := range []struct {
		tid, oid any
		want     string
	}{{tenant, victim, "owner"}, {tenant, attacker, ""}, {otherTenant, victim, ""}, {nil, victim, ""}, {tenant, nil, ""}} {
		claims := map[string]any{
			"tid": c.tid, "oid": c.oid, "scp": "Status.Read", "sub": victim,
			"email": address, "upn": address, "preferred_username": address, "unique_name": address, "name": "Victim",
		}
		maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
		if got := audience(p, claims, labels); got != c.want {
			t.Errorf("tid %v, oid %v: got audience %q, want %q", c.tid, c.oid, got, c.want)
		}
		for _, of := range []string{address, "Victim"} {
			if got := audience(p, claims, map[string]string{"tenant": tenant, "owner": of}); got != "" {
				t.Errorf("tid %v, oid %v: owns what is labelled %s", c.tid, c.oid, of)
			}
		}
	}
}

// TestClaimsCountForTheirIssuerOnly: what one issuer says makes nobody somebody of another's.
func TestClaimsCountForTheirIssuerOnly(t *testing.T) {
	p := documented(t, "Several issuers")
	const ours, theirs = "https://login.example.com/", "https://keycloak.partner.example/realms/shop"
	for _, c := range []struct {
		iss  any
		want string
	}{{ours, "operator"}, {theirs, "partner"}, {"https://keycloak.partner.example/realms/other", ""}, {nil, ""}} {
		claims := map[string]any{"iss": c.iss, "sub": "u-1001", "roles": []any{"status-operator"}}
		maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
		if got := audience(p, claims, map[string]string{"partner": "shop", "owner": "u-1001"}); got != c.want {
			t.Errorf("issuer %v: got audience %q, want %q", c.iss, got, c.want)
		}
	}
}
