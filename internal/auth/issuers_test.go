package auth_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
)

func issuersOf(t testing.TB, file string) []auth.Issuer {
	t.Helper()
	issuers, err := auth.ParseIssuers([]byte(file), nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, file)
	}
	return issuers
}

func TestIssuersAreReadFromTheirFile(t *testing.T) {
	got := issuersOf(t, `
issuers:
  - url: https://login.example.com/tenant/
    audiences: [us, us too]
    algorithms: [PS256, EdDSA]
    jwks_url: https://keys.example.com/keys
    require_one_of: [scp, roles]
    optional_not_before: true
  - url: http://127.0.0.1:8080/realm
    audiences: ["2027-01-01"]
    optional_not_before: false
`)
	want := []auth.Issuer{
		{
			URL: "https://login.example.com/tenant/", Audiences: []string{"us", "us too"}, Algorithms: []string{"PS256", "EdDSA"},
			JWKSURL: "https://keys.example.com/keys", RequireOneOf: []string{"scp", "roles"}, OptionalNotBefore: true,
		},
		{URL: "http://127.0.0.1:8080/realm", Audiences: []string{"2027-01-01"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The example of the document is a good file, and shows every member.
func TestDocumentedIssuersAreGood(t *testing.T) {
	document, err := os.ReadFile("../../docs/authentication.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(document), "\n```yaml\n")
	file, _, _ := strings.Cut(rest, "\n```")
	all := auth.Issuer{}
	for _, is := range issuersOf(t, file) {
		all.Algorithms, all.JWKSURL = append(all.Algorithms, is.Algorithms...), all.JWKSURL+is.JWKSURL
		all.RequireOneOf, all.OptionalNotBefore = append(all.RequireOneOf, is.RequireOneOf...), all.OptionalNotBefore || is.OptionalNotBefore
	}
	if all.Algorithms == nil || all.JWKSURL == "" || all.RequireOneOf == nil || !all.OptionalNotBefore {
		t.Errorf("the example shows only %+v", all)
	}
}

func TestIssuersFileHasEveryMistakeNamed(t *testing.T) {
	const good = "url: https://a.example, audiences: [us]"
	for _, test := range []struct {
		file string
		want []string // each in one mistake
	}{
		{"", []string{"line 1, column 1: the file is empty: it begins with 'issuers:'"}},
		{"issuers: []", []string{"no issuer"}},
		{"keys: []", []string{"keys is not known here: what is, is issuers", "issuers missing here"}},
		{"issuers: {" + good + "}", []string{"column 10: a mapping where a list belongs"}},
		{"issuers: [https://a.example]", []string{"a text where a mapping belongs"}},
		{"issuers: [{}]", []string{"url missing here", "audiences missing here"}},
		{"issuers:\n- {" + good + "}\n- {" + good + ", issuer: x}\n", []string{"line 3, column 9: the URL of another issuer", "line 3, column 45: issuer is not known here"}},
		{"issuers: [{" + good + ", url: x}]", []string{"a second time in this mapping"}},
		{"issuers: [{" + good + "}]\nissuers: []", []string{"line 2, column 1: a second time in this mapping"}},
		{"issuers: [{" + good + "}]\n--- {}", []string{"more than one YAML document"}},
		{"issuers: [{url: https://elsewhere.example, audiences: [us]}]", []string{"column 17: an issuer that is configured elsewhere"}},
		{"issuers: [{url: 1, audiences: us, algorithms: RS256, jwks_url: [x], require_one_of: {a: b}, optional_not_before: yes}]", []string{
			"column 17: a number where a text", "column 31: a text where a list", "column 47: a text where a list",
			"column 64: a list where a text", "column 85: a mapping where a list", "column 114: a text where true or false",
		}},
		{"issuers: [{url: https://a.example, audiences: [], algorithms: [], require_one_of: []}]", []string{"column 47: nothing in", "column 63: nothing in", "column 83: nothing in"}},
		{"issuers: [{url: https://a.example, audiences: ['', us, us, 1], algorithms: [HS256, none, RS256, RS256], require_one_of: ['']}]", []string{
			"an empty text", "a second time", "a number where a text", "column 77: not one of", "column 84: not one of", "a second time", "an empty text",
		}},
		{"issuers: [{url: http://a.example, audiences: [us], jwks_url: 'http://10.0.0.1/c4n4ry'}]", []string{"column 17: neither https", "column 62: neither https"}},
		{"issuers: [{url: 'https://a.example?c4n4ry', audiences: [us], jwks_url: 'https://u:c4n4ry@a.example'}]", []string{"no query", "credentials"}},
		{"issuers: [{" + good + ", optional_not_before: 1}, {url: '', audiences: [us]}]", []string{"a number where true or false", "not an absolute URL"}},
	} {
		issuers, err := auth.ParseIssuers([]byte(test.file), []auth.Issuer{{URL: "https://elsewhere.example"}})
		var mistakes *auth.FileError
		if issuers != nil || !errors.As(err, &mistakes) {
			t.Errorf("%.100q: got %v, %v", test.file, issuers, err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got\n%v\nwant %q", test.file, err, want)
			}
		}
		if len(mistakes.Mistakes) != len(test.want) {
			t.Errorf("%q: got %d mistakes, want %d:\n%v", test.file, len(mistakes.Mistakes), len(test.want), err)
		}
		if strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%q: the error quotes the file: %v", test.file, err)
		}
	}
}

// Two issuers that differ in everything: what one allows, the other does not.
func TestIssuersShareNothing(t *testing.T) {
	p := newProvider(t)
	const a, b = "https://a.example", "https://b.example/realm"
	p.issuers = issuersOf(t, `
issuers:
  - {url: `+a+`, audiences: [for-a], require_one_of: [scp, roles]}
  - {url: `+b+`, audiences: [for-b], algorithms: [PS256], jwks_url: https://keys.example.com/b, optional_not_before: true}
`)
	keyA, keyB := newKey(p256(), "same", "ES256"), newKey(rsaKey(), "same", "PS256")
	p.serve(func(w http.ResponseWriter, r *http.Request) {
		answers := map[string]any{
			"https://a.example/.well-known/openid-configuration": map[string]string{"issuer": a, "jwks_uri": "https://a.example/keys"},
			"https://a.example/keys":                             map[string]any{"keys": []any{keyA.public}},
			"https://keys.example.com/b":                         map[string]any{"keys": []any{keyB.public}},
		}
		_ = json.NewEncoder(w).Encode(answers[r.URL.String()])
	})
	v := p.verifier()
	accepted := 0
	for _, iss := range []string{a, b} {
		for _, key := range []*signingKey{keyA, keyB, {private: keyB.private, alg: "RS256", public: keyB.public}} {
			for _, aud := range []string{"for-a", "for-b"} {
				for _, scope := range []any{"read", nil} {
					for _, nbf := range []any{time.Now().Unix(), nil} {
						_, err := v.Verify(t.Context(), p.sign(key, nil, map[string]any{"iss": iss, "aud": aud, "scp": scope, "nbf": nbf}))
						want := iss == a && key == keyA && aud == "for-a" && scope != nil && nbf != nil ||
							iss == b && key == keyB && aud == "for-b"
						if (err == nil) != want || err != nil && !errors.Is(err, auth.ErrUnauthenticated) {
							t.Errorf("%s, %s, for %s, scope %v, nbf %v: %v; want accepted: %v", iss, key.alg, aud, scope, nbf, err, want)
						}
						if err == nil {
							accepted++
						}
					}
				}
			}
		}
	}
	if accepted != 5 {
		t.Errorf("%d are accepted, want 5", accepted)
	}
}

// A further tenant is an issuer like any other, and its keys name either of its two issuers.
func TestEntraTenantMayBeAnIssuerOfTheFile(t *testing.T) {
	const tenant, other = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
	v1 := func(tenant string) string { return "https://sts.windows.net/" + tenant + "/" }
	v2 := func(tenant string) string { return "https://login.microsoftonline.com/" + tenant + "/v2.0" }
	for keyIssuer, want := range map[string]bool{
		"": true, v1("{tenantid}"): true, v2("{tenantid}"): true, v1(tenant): true, v2(tenant): true,
		v1(other): false, v2(other): false, "https://login.microsoftonline.com/" + tenant: false,
	} {
		for _, url := range []string{v1(tenant), v2(tenant)} {
			p := newProvider(t)
			p.issuers = issuersOf(t, "issuers: [{url: '"+url+"', audiences: [us], algorithms: [RS256], jwks_url: https://keys.example.com/k, require_one_of: [scp, roles]}]")
			p.publish(p.rsa.with("issuer", keyIssuer))
			v := p.verifier()
			claims := map[string]any{"iss": url, "tid": tenant, "scp": "Status.Read"}
			if _, err := v.Verify(t.Context(), p.sign(p.rsa, nil, claims)); (err == nil) != want {
				t.Errorf("%s, key of %q: %v; want accepted: %v", url, keyIssuer, err, want)
			}
			claims["scp"] = nil // an ID token
			refuses(t, v, p.sign(p.rsa, nil, claims), "without scp and roles")
		}
	}
}

// Where API keys alone are accepted there is nothing to wait for, and every token is refused, the same as a bad one.
func TestWithoutIssuersEveryTokenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		o := p.options()
		o.Issuers = nil
		if _, err := auth.New(o); err == nil {
			t.Error("nobody said that there need not be one")
		}
		o.NoIssuers = true
		v, err := auth.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- v.Run(ctx) }()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("Run returns %v before it is told to", err)
		default:
		}
		if err := v.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
		text, k := newAPIKey(t, "a")
		c := auth.Credentials{Tokens: v, APIKeys: held(t, k)}
		for _, token := range []string{p.token(nil), p.token(map[string]any{"iss": nil}), p.token(map[string]any{"iss": ""}), p.token(map[string]any{"exp": 0}), "x", ""} {
			who, err := c.Verify(t.Context(), token)
			wantRefused(t, fmt.Sprintf("%.20q", token), who, err)
		}
		if who, err := c.Verify(t.Context(), text); err != nil || who.Subject != "a" {
			t.Errorf("the API key: %v, %v", who, err)
		}
		if n := p.requests(); n != 0 {
			t.Errorf("%d requests", n)
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// What is good in the file is good for New.
func FuzzParseIssuers(f *testing.F) {
	f.Add([]byte("issuers:\n- {url: https://a.example, audiences: [us], algorithms: [RS256], jwks_url: https://b.example, require_one_of: [scp], optional_not_before: true}\n"))
	f.Add([]byte("issuers: [&a [*a], <<: !!x y]\n--- |\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		issuers, err := auth.ParseIssuers(file, nil)
		var mistakes *auth.FileError
		if (err != nil) != errors.As(err, &mistakes) || (err == nil) != (len(issuers) > 0) {
			t.Fatalf("got %v, %v", issuers, err)
		}
		if err == nil {
			if _, err := auth.New(auth.Options{Issuers: issuers}); err != nil {
				t.Error(err)
			}
		}
	})
}
