package auth_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/auth"
)

func TestBearer(t *testing.T) {
	for _, test := range []struct {
		headers []string
		token   string
		ok      bool
		bad     bool
	}{
		{headers: nil},
		{headers: []string{"Bearer a.b-c_d~e+f/g="}, token: "a.b-c_d~e+f/g=", ok: true},
		{headers: []string{"bearer abc"}, token: "abc", ok: true},
		{headers: []string{"BEARER   abc"}, token: "abc", ok: true},
		{headers: []string{"Basic YTpi"}},
		{headers: []string{"Bearerabc"}},
		{headers: []string{""}, bad: true},
		{headers: []string{" abc"}, bad: true},
		{headers: []string{"Bearer"}, bad: true},
		{headers: []string{"Bearer "}, bad: true},
		{headers: []string{"Bearer a b"}, bad: true},
		{headers: []string{"Bearer a, Bearer b"}, bad: true},
		{headers: []string{"Bearer \ta"}, bad: true},
		{headers: []string{"Bearer a\u00e9"}, bad: true},
		{headers: []string{"Bearer a", "Bearer a"}, bad: true},
		{headers: []string{"Basic a", "Bearer a"}, bad: true},
	} {
		r := &http.Request{Header: http.Header{}}
		if test.headers != nil {
			r.Header["Authorization"] = test.headers
		}
		token, ok, err := auth.Bearer(r)
		if token != test.token || ok != test.ok || errors.Is(err, auth.ErrUnauthenticated) != test.bad || (err != nil) != test.bad {
			t.Errorf("Bearer(%q) = %q, %v, %v; want %q, %v, refused: %v", test.headers, token, ok, err, test.token, test.ok, test.bad)
		}
	}
}

func TestExpiredTellsAnOldTokenFromABadOne(t *testing.T) {
	if !errors.Is(auth.ErrExpired, auth.ErrUnauthenticated) {
		t.Error("ErrExpired is not an ErrUnauthenticated")
	}
	if errors.Is(auth.ErrUnauthenticated, auth.ErrExpired) || errors.Is(auth.ErrForbidden, auth.ErrUnauthenticated) {
		t.Error("the kinds are not distinct")
	}
}

func TestPrincipalExpires(t *testing.T) {
	at := time.Unix(1000, 0)
	p := &auth.Principal{Expires: at}
	if p.Expired(at.Add(-1)) || !p.Expired(at) {
		t.Error("want expired from Expires on, and not before")
	}
	if (&auth.Principal{}).Expired(at) {
		t.Error("a principal without an expiry has expired")
	}
}

func TestNewNamesEveryMistake(t *testing.T) {
	audiences := []string{"us"}
	for _, test := range []struct {
		options auth.Options
		want    []string
	}{
		{auth.Options{}, []string{"Issuers: there is none"}},
		{
			auth.Options{
				ClockSkew: 61 * time.Second, KeyRefresh: time.Second, KeyGrace: time.Millisecond, CacheSize: -1,
				Issuers: []auth.Issuer{
					{},
					{URL: "http://login.example.com", JWKSURL: "ftp://login.example.com/keys", Audiences: []string{""}},
					{URL: "https://u:secret@login.example.com", Audiences: audiences},
					{URL: "https://login.example.com?x#y", Audiences: audiences, Algorithms: []string{"RS256", "HS256", "none", ""}},
					{URL: "http://localhost:1", Audiences: audiences},
					{URL: "http://localhost:1", Audiences: audiences},
					{URL: "http://%zzsecret", Audiences: audiences},
				},
			},
			[]string{
				"ClockSkew: 1m1s", "KeyRefresh: 1s", "KeyGrace: 1ms", "CacheSize: -1",
				"Issuers[0]: URL: not an absolute URL", "Audiences: there is none",
				"Issuers[1]: URL: neither https", "JWKSURL: neither https", "Audiences: one is empty",
				"Issuers[2]: URL: holds credentials",
				"Issuers[3]: URL: an issuer has no query", `Algorithms: "HS256"`, `Algorithms: "none"`, `Algorithms: ""`,
				`Issuers[5]: URL "http://localhost:1" is there twice`,
				"Issuers[6]: URL: not a URL",
			},
		},
	} {
		_, err := auth.New(test.options)
		if err == nil {
			t.Errorf("New(%+v) accepts that", test.options)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("New's error lacks %q:\n%v", want, err)
			}
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("New's error repeats a password:\n%v", err)
		}
	}
}

func TestLoopbackIssuersMayBePlain(t *testing.T) {
	for _, host := range []string{"localhost", "127.0.0.1", "127.9.9.9", "[::1]"} {
		_, err := auth.New(auth.Options{Issuers: []auth.Issuer{{URL: "http://" + host + ":8080/x", Audiences: []string{"us"}}}})
		if err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, host := range []string{"localhost.example.com", "127.0.0.1.example.com", "10.0.0.1", "[::2]", "0.0.0.0"} {
		_, err := auth.New(auth.Options{Issuers: []auth.Issuer{{URL: "http://" + host + ":8080/x", Audiences: []string{"us"}}}})
		if err == nil {
			t.Errorf("%s is taken for this machine", host)
		}
	}
}

func TestOptionsAreCopied(t *testing.T) {
	p := newProvider(t)
	o := p.options()
	v, err := auth.New(o)
	if err != nil {
		t.Fatal(err)
	}
	o.Issuers[0].Audiences[0], o.Issuers[0].URL = "changed", "changed"
	if _, err := v.Verify(t.Context(), p.token(nil)); err != nil {
		t.Error(err)
	}
}

func TestEntraAcceptsBothVersionsOfItsTokens(t *testing.T) {
	const tenant, other = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
	const client, uri = "33333333-3333-3333-3333-333333333333", "api://statusrelay"
	v1 := func(tenant string) string { return "https://sts.windows.net/" + tenant + "/" }
	v2 := func(tenant string) string { return "https://login.microsoftonline.com/" + tenant + "/v2.0" }

	// The issuer that the key names, as found in Entra's sets: nothing, with a place for the tenant, or of one tenant.
	for keyIssuer, foreign := range map[string]bool{
		"":                 false,
		v2("{tenantid}"):   false,
		v1("{tenantid}"):   false,
		v2(tenant):         false,
		v2(other):          true,
		"https://evil.com": true,
	} {
		p := newProvider(t)
		p.issuers = auth.Entra(tenant, client, uri)
		p.publish(p.rsa.with("issuer", keyIssuer))
		v := p.verifier()
		for _, iss := range []string{v1(tenant), v2(tenant), v1(other), v2(other)} {
			for _, aud := range []string{client, uri, "somebody else"} {
				for _, right := range []string{"scp", "roles", "idtyp"} {
					for _, tid := range []string{tenant, other} {
						value := any("Status.Read")
						if right == "roles" {
							value = []string{"Status.Read.All"}
						}
						token := p.sign(p.rsa, nil, map[string]any{"iss": iss, "aud": aud, "tid": tid, right: value, "oid": "o"})
						want := !foreign && (iss == v1(tenant) || iss == v2(tenant)) && aud != "somebody else" && right != "idtyp" &&
							(tid == tenant || !strings.Contains(keyIssuer, "{"))
						_, err := v.Verify(t.Context(), token)
						if (err == nil) != want {
							t.Errorf("key of %q, iss %s, aud %s, tid %s with %s: %v; want accepted: %v", keyIssuer, iss, aud, tid, right, err, want)
						}
					}
				}
			}
		}
		if !slices.Equal(p.hosts(), []string{"login.microsoftonline.com"}) {
			t.Errorf("asked %q for keys", p.hosts())
		}
	}
}

func TestClaimsThatListNothingGrantNothing(t *testing.T) {
	p := newProvider(t)
	p.issuers[0].RequireOneOf = []string{"scp", "roles"}
	v := p.verifier()
	for _, test := range []struct {
		name  string
		value any
		want  bool
	}{
		{"scp", "", false},
		{"scp", " ", false},
		{"scp", 1, false},
		{"scp", nil, false},
		{"roles", []string{}, false},
		{"roles", map[string]any{"a": 1}, false},
		{"scope", "read", false},
		{"scp", "read", true},
		{"roles", []string{"reader"}, true},
	} {
		if _, err := v.Verify(t.Context(), p.token(map[string]any{test.name: test.value})); (err == nil) != test.want {
			t.Errorf("%s %v: %v; want accepted: %v", test.name, test.value, err, test.want)
		}
	}
}

func ExampleEntra() {
	for _, issuer := range auth.Entra("11111111-1111-1111-1111-111111111111", "api://statusrelay") {
		fmt.Println(issuer.URL)
	}
	// Output:
	// https://sts.windows.net/11111111-1111-1111-1111-111111111111/
	// https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111/v2.0
}
