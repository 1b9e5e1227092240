package auth_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
)

func TestVerifyReturnsWhomTheTokenNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		now := time.Now()
		principal, err := v.Verify(t.Context(), p.token(map[string]any{
			"aud": []string{"them", "us too"}, "roles": []string{"operator"}, "big": int64(9007199254740993), "half": 0.5,
			"nested": map[string]any{"n": []int{1}}, "nbf": float64(now.Unix()) - 0.5,
		}))
		if err != nil {
			t.Fatal(err)
		}
		want := &auth.Principal{
			Issuer: issuerURL, Subject: "subject-of-the-token", Expires: now.Add(time.Hour + 30*time.Second).UTC(),
			Claims: map[string]any{
				"iss": issuerURL, "sub": "subject-of-the-token", "aud": []any{"them", "us too"},
				"exp": now.Add(time.Hour).Unix(), "nbf": float64(now.Unix()) - 0.5, "iat": now.Unix(),
				"roles": []any{"operator"}, "big": int64(9007199254740993), "half": 0.5, "nested": map[string]any{"n": []any{int64(1)}},
			},
		}
		if !reflect.DeepEqual(principal, want) {
			t.Errorf("got  %v\nwant %v", principal, want)
		}
	})
}

func TestEveryConfiguredAlgorithmWorks(t *testing.T) {
	p := newProvider(t)
	p.issuers[0].Algorithms = []string{"RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"}
	keys := []*signingKey{
		newKey(rsaKey(), "1", "RS256"), newKey(rsaKey(), "2", "RS512"), newKey(rsaKey(), "3", "PS256"),
		newKey(p256(), "4", "ES256"), newKey(p384(), "5", "ES384"), newKey(edwards(), "6", "EdDSA"),
	}
	p.publish(keys...)
	v := p.verifier()
	for _, k := range keys {
		if _, err := v.Verify(t.Context(), p.sign(k, nil, nil)); err != nil {
			t.Errorf("%s: %v", k.alg, err)
		}
	}
}

func TestHostileTokensAreRefused(t *testing.T) {
	p := newProvider(t)
	v := p.verifier()
	attacker := newKey(p256(), "ec", "ES256")
	stranger := newKey(p256(), "stranger", "ES256")
	good := p.token(nil)
	parts := strings.Split(good, ".")
	raw := func(k *signingKey, header, payload string) string {
		return compact(k, k.alg, []byte(header), []byte(payload))
	}
	jsonOf := func(value any) string { return string(must(json.Marshal(value))) }
	goodHeader := jsonOf(header(p.ec, nil))
	headers := func(changes map[string]any) string { return p.sign(p.ec, changes, nil) }
	// The payload of a good token, with more written before its end.
	claimsAnd := func(more string) string {
		return strings.TrimSuffix(jsonOf(p.claims(nil)), "}") + more + "}"
	}
	hour := time.Hour
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }

	for _, test := range []struct {
		name  string
		token string
		want  string // in the error, so that each token is refused for its own fault
	}{
		{"alg none", p.sign(p.rsa, map[string]any{"alg": "none"}, nil), "algorithm is none that can be configured"},
		{"alg None", p.sign(p.rsa, map[string]any{"alg": "None"}, nil), "algorithm is none that can be configured"},
		{"alg none with a good signature", raw(p.ec, jsonOf(header(p.ec, map[string]any{"alg": "none"})), jsonOf(p.claims(nil))), "algorithm is none that can be configured"},
		{"no alg", headers(map[string]any{"alg": nil}), "algorithm is none that can be configured"},
		{"empty alg", headers(map[string]any{"alg": ""}), "algorithm is none that can be configured"},
		{"alg is a number", headers(map[string]any{"alg": 256}), "algorithm is none that can be configured"},
		{"HS256 with the public key as secret", p.sign(p.rsa, map[string]any{"alg": "HS256"}, nil), "algorithm is none that can be configured"},
		{"alg not configured though the key fits", p.sign(p.rsa, map[string]any{"alg": "RS512"}, nil), "algorithm RS512 is not configured"},
		{"another alg not configured though the key fits", p.sign(p.rsa, map[string]any{"alg": "PS256"}, nil), "algorithm PS256 is not configured"},
		{"alg of another type than the key", p.sign(p.ec, map[string]any{"kid": "rsa"}, nil), "did not make the signature"},

		{"no signature", parts[0] + "." + parts[1] + ".", "did not make the signature"},
		{"signature of another token", parts[0] + "." + parts[1] + "." + strings.Split(p.token(map[string]any{"sub": "x"}), ".")[2], "did not make the signature"},
		{"claims of another token", parts[0] + "." + strings.Split(p.token(map[string]any{"sub": "x"}), ".")[1] + "." + parts[2], "did not make the signature"},
		{"signed by somebody else", p.sign(attacker, nil, nil), "did not make the signature"},

		{"unknown kid", p.sign(stranger, nil, nil), `has no key "stranger"`},
		{"kid is a path", headers(map[string]any{"kid": "../../../dev/null"}), `has no key "../../../dev/null"`},
		{"kid is a URL", headers(map[string]any{"kid": "https://evil.example.com/key"}), "has no key"},
		{"kid is SQL", headers(map[string]any{"kid": "' UNION SELECT 1 --"}), "has no key"},
		{"kid is long", headers(map[string]any{"kid": strings.Repeat("k", 257)}), "key id of more than"},
		{"kid is a number", headers(map[string]any{"kid": 1}), "not a compact JWS"},
		{"no kid, and two keys", headers(map[string]any{"kid": nil}), "no key id, and"},
		{"kid of another key", p.sign(p.ec, map[string]any{"kid": "rsa", "alg": "ES256"}, nil), "did not make the signature"},

		{"key in the header", p.sign(stranger, map[string]any{"jwk": stranger.public}, nil), "has no key"},
		{"key in the header, kid of a good one", p.sign(attacker, map[string]any{"jwk": attacker.public}, nil), "did not make the signature"},
		{"key's URL in the header", p.sign(attacker, map[string]any{"jku": "https://evil.example.com/keys"}, nil), "did not make the signature"},
		{"certificate's URL in the header", p.sign(attacker, map[string]any{"x5u": "https://evil.example.com/cert"}, nil), "did not make the signature"},
		{"certificate in the header", p.sign(attacker, map[string]any{"x5c": []string{}}, nil), "did not make the signature"},
		{"crit", headers(map[string]any{"crit": []string{"exp"}, "exp": 1}), "demands extensions"},
		{"crit of what the library knows", headers(map[string]any{"crit": []string{"b64"}, "b64": true}), "demands extensions"},
		{"empty crit", headers(map[string]any{"crit": []string{}}), "demands extensions"},
		{"b64", headers(map[string]any{"b64": false}), "demands an unencoded payload"},

		{"iss of nobody", p.token(map[string]any{"iss": "https://evil.example.com"}), `issuer "https://evil.example.com" is not one we know`},
		{"long iss", p.token(map[string]any{"iss": strings.Repeat("i", 1000)}), "not an issuer we know"},
		{"iss without its slash", p.token(map[string]any{"iss": strings.TrimSuffix(issuerURL, "/")}), "is not one we know"},
		{"iss in capitals", p.token(map[string]any{"iss": strings.ToUpper(issuerURL)}), "is not one we know"},
		{"no iss", p.token(map[string]any{"iss": nil}), "is not one we know"},
		{"iss is an array", p.token(map[string]any{"iss": []string{issuerURL}}), "is not one we know"},

		{"aud of somebody else", p.token(map[string]any{"aud": "them"}), "for somebody else"},
		{"aud almost ours", p.token(map[string]any{"aud": "US"}), "for somebody else"},
		{"aud has nobody", p.token(map[string]any{"aud": []string{}}), "for somebody else"},
		{"aud has no strings", p.token(map[string]any{"aud": []any{"us", 1}}), "not an array of strings"},
		{"no aud", p.token(map[string]any{"aud": nil}), "no aud"},
		{"aud is a number", p.token(map[string]any{"aud": 1}), "no aud"},
		{"aud is an object", p.token(map[string]any{"aud": map[string]any{"us": 1}}), "no aud"},

		{"no sub", p.token(map[string]any{"sub": nil}), "no sub"},
		{"empty sub", p.token(map[string]any{"sub": ""}), "no sub"},
		{"sub is a number", p.token(map[string]any{"sub": 1}), "no sub"},

		{"expired", p.token(map[string]any{"exp": at(-hour)}), "token expired"},
		{"expired in 1970", p.token(map[string]any{"exp": 0}), "token expired"},
		{"no exp", p.token(map[string]any{"exp": nil}), "no exp"},
		{"exp is null", raw(p.ec, goodHeader, strings.Replace(claimsAnd(""), fmt.Sprint(`"exp":`, p.claims(nil)["exp"]), `"exp":null`, 1)), "no exp"},
		{"exp is a string", p.token(map[string]any{"exp": fmt.Sprint(at(hour))}), "no exp"},
		{"exp is negative", p.token(map[string]any{"exp": -1}), "no exp"},
		{"exp is in milliseconds", p.token(map[string]any{"exp": time.Now().Add(hour).UnixMilli()}), "no exp"},
		{"exp is endless", p.token(map[string]any{"exp": 1e300}), "no exp"},
		{"not yet valid", p.token(map[string]any{"nbf": at(hour)}), "not valid yet"},
		{"no nbf", p.token(map[string]any{"nbf": nil}), "no nbf"},
		{"nbf is a string", p.token(map[string]any{"nbf": "0"}), "no nbf"},
		{"nbf is negative", p.token(map[string]any{"nbf": -0.5}), "no nbf"},
		{"from the future", p.token(map[string]any{"iat": at(hour)}), "from the future"},
		{"iat is a string", p.token(map[string]any{"iat": "0"}), "iat is not a time"},

		{"a claim twice", raw(p.ec, goodHeader, claimsAnd(`,"aud":"us"`)), "different names"},
		{"a claim twice, escaped", raw(p.ec, goodHeader, claimsAnd(`,"\u0061ud":"us"`)), "different names"},
		{"a claim twice, further in", raw(p.ec, goodHeader, claimsAnd(`,"a":[{"b":1,"b":1}]`)), "different names"},
		{"a header twice", raw(p.ec, strings.Replace(goodHeader, "{", `{"alg":"ES256",`, 1), claimsAnd("")), "not a compact JWS"},
		{"more than one object", raw(p.ec, goodHeader, claimsAnd("")+"{}"), "one JSON object"},
		{"garbage after the claims", raw(p.ec, goodHeader, claimsAnd("")+"x"), "one JSON object"},
		{"claims are an array", raw(p.ec, goodHeader, "["+claimsAnd("")+"]"), "one JSON object"},
		{"claims are null", raw(p.ec, goodHeader, "null"), "one JSON object"},
		{"no claims", raw(p.ec, goodHeader, ""), "one JSON object"},
		{"claims are not UTF-8", raw(p.ec, goodHeader, claimsAnd(",\"a\":\"\xff\"")), "one JSON object"},
		{"claims are deep", raw(p.ec, goodHeader, claimsAnd(`,"a":`+strings.Repeat("[", 5000))), "one JSON object"},
		{"a number too large to be exact", raw(p.ec, goodHeader, claimsAnd(`,"a":9223372036854775808`)), "too large"},
		{"a number too large at all, further in", raw(p.ec, goodHeader, claimsAnd(`,"a":[{"b":1e999}]`)), "too large"},

		{"too large", p.token(map[string]any{"a": strings.Repeat("a", auth.MaxToken)}), "more than 16384 bytes"},
		{"empty", "", "not a compact JWS"},
		{"two parts", parts[0] + "." + parts[1], "not a compact JWS"},
		{"four parts", good + "." + parts[2], "not a compact JWS"},
		{"encrypted", good + ".a.b", "not a compact JWS"},
		{"JSON serialization", jsonOf(map[string]any{"protected": parts[0], "payload": parts[1], "signature": parts[2]}), "not a compact JWS"},
		{"space before it", " " + good, "not a compact JWS"},
		{"newline inside", good[:20] + "\n" + good[20:], "not a compact JWS"},
		{"standard base64", base64.StdEncoding.EncodeToString([]byte(`{"alg": "ES256"}`)) + "." + parts[1] + "." + parts[2], "not a compact JWS"},
		{"not base64", "a.b.c", "not a compact JWS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			principal, err := v.Verify(t.Context(), test.token)
			if principal != nil || !errors.Is(err, auth.ErrUnauthenticated) {
				t.Fatalf("got %v, %v; want ErrUnauthenticated", principal, err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want it to say %q", err, test.want)
			}
			if errors.Is(err, auth.ErrExpired) != strings.HasPrefix(test.name, "expired") {
				t.Errorf("got %q: ErrExpired or not, wrongly", err)
			}
			for _, secret := range append(strings.Split(test.token, "."), "subject-of-the-token", "them") {
				if len(secret) > 2 && strings.Contains(err.Error(), secret) {
					t.Errorf("error %q repeats %q of the token", err, secret)
				}
			}
		})
	}
	if got := strings.Join(p.hosts(), " "); got != "keys.example.com login.example.com" {
		t.Errorf("asked %s", got)
	}
	if _, err := v.Verify(t.Context(), good); err != nil {
		t.Errorf("and the good token: %v", err)
	}
}

func TestNotBeforeMayBeOptional(t *testing.T) {
	p := newProvider(t)
	p.issuers[0].OptionalNotBefore = true
	v := p.verifier()
	if _, err := v.Verify(t.Context(), p.token(map[string]any{"nbf": nil, "iat": nil})); err != nil {
		t.Error(err)
	}
	for _, nbf := range []any{"0", time.Now().Add(time.Hour).Unix()} {
		if _, err := v.Verify(t.Context(), p.token(map[string]any{"nbf": nbf})); !errors.Is(err, auth.ErrUnauthenticated) {
			t.Errorf("nbf %v: %v", nbf, err)
		}
	}
}

func TestClockSkewIsAllowedAndNoMore(t *testing.T) {
	for _, skew := range []time.Duration{0, time.Minute} { // 0 is the default of 30 s
		synctest.Test(t, func(t *testing.T) {
			p := newProvider(t)
			o := p.options()
			o.ClockSkew = skew
			v, err := auth.New(o)
			if err != nil {
				t.Fatal(err)
			}
			allowed := skew
			if skew == 0 {
				allowed = 30 * time.Second
			}
			now := time.Now()
			for _, test := range []struct {
				claim string
				at    time.Duration
				want  bool
			}{
				{"exp", -allowed, false},
				{"exp", -allowed + time.Second, true},
				{"exp", -allowed - time.Second, false},
				{"nbf", allowed, true},
				{"nbf", allowed + time.Second, false},
				{"nbf", allowed - time.Second, true},
				{"iat", allowed, true},
				{"iat", allowed + time.Second, false},
				{"iat", allowed - time.Second, true},
			} {
				principal, err := v.Verify(t.Context(), p.token(map[string]any{test.claim: now.Add(test.at).Unix()}))
				if (err == nil) != test.want {
					t.Errorf("%s %v from now, %v allowed: %v; want accepted: %v", test.claim, test.at, allowed, err, test.want)
				}
				if principal != nil && principal.Expired(now) {
					t.Errorf("%s %v from now: accepted, but expired", test.claim, test.at)
				}
			}
		})
	}
}

func TestTokensKeepTheirPrincipalWhileRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		token := p.token(map[string]any{"exp": time.Now().Add(11 * time.Minute).Unix()})
		first, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		for range 11 { // beyond two refreshes of the keys
			again, err := v.Verify(t.Context(), token)
			if err != nil || again != first {
				t.Fatalf("got %p, %v; want %p", again, err, first)
			}
			time.Sleep(time.Minute)
		}
		time.Sleep(30*time.Second - 1)
		if again, err := v.Verify(t.Context(), token); err != nil || again != first {
			t.Errorf("just before it expires: %p, %v; want %p", again, err, first)
		}
		time.Sleep(time.Nanosecond)
		for range 2 {
			if _, err := v.Verify(t.Context(), token); !errors.Is(err, auth.ErrExpired) {
				t.Errorf("remembered token after it expired: %v; want ErrExpired", err)
			}
		}
		if !first.Expired(time.Now()) {
			t.Error("the principal does not expire with its token")
		}
	})
}

func TestMemoryOfTokensIsBounded(t *testing.T) {
	p := newProvider(t)
	o := p.options()
	o.CacheSize = 2
	v, err := auth.New(o)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(token string) *auth.Principal {
		t.Helper()
		principal, err := v.Verify(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		return principal
	}
	a, b, c := p.token(map[string]any{"sub": "a"}), p.token(map[string]any{"sub": "b"}), p.token(map[string]any{"sub": "c"})
	firstA, firstB := verify(a), verify(b)
	if verify(a) != firstA {
		t.Error("a was forgotten with room for two")
	}
	verify(c)
	if verify(a) != firstA {
		t.Error("a was forgotten though it was used last but one")
	}
	if verify(b) == firstB {
		t.Error("three are remembered with room for two")
	}
}

func TestRememberedTokenCostsNoAllocation(t *testing.T) {
	p := newProvider(t)
	v := p.verifier()
	token := p.token(map[string]any{"long": strings.Repeat("x", 8<<10)})
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(ctx, token); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestKeyOfOneIssuerNeverServesAnother(t *testing.T) {
	const other = "https://other.example.com"
	p := newProvider(t)
	p.issuers[0].JWKSURL = "https://login.example.com/keys"
	p.issuers = append(p.issuers, auth.Issuer{URL: other, JWKSURL: other + "/keys", Audiences: []string{"us"}})
	ours, theirs := newKey(p256(), "same", "ES256"), newKey(p256(), "same", "ES256")
	set := func(k *signingKey) []byte { return must(json.Marshal(map[string]any{"keys": []any{k.public}})) }
	p.serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Host == "other.example.com" {
			_, _ = w.Write(set(theirs))
			return
		}
		_, _ = w.Write(set(ours))
	})
	v := p.verifier()
	for _, test := range []struct {
		key  *signingKey
		iss  string
		want bool
	}{{ours, issuerURL, true}, {theirs, other, true}, {ours, other, false}, {theirs, issuerURL, false}} {
		if _, err := v.Verify(t.Context(), p.sign(test.key, nil, map[string]any{"iss": test.iss})); (err == nil) != test.want {
			t.Errorf("key of the other: %v, iss %s: %v; want accepted: %v", test.key == theirs, test.iss, err, test.want)
		}
	}
}

func TestUnusableKeysAreIgnored(t *testing.T) {
	k := newKey(p256(), "k", "ES256")
	long := new(big.Int).Lsh(big.NewInt(1), 16384)
	for _, test := range []struct {
		name string
		key  *signingKey
		want bool
	}{
		{"as it should be", k, true},
		{"no use", k.with("use", nil), true},
		{"its alg", k.with("alg", "ES256"), true},
		{"for signatures", k.with("key_ops", []string{"verify"}), true},
		{"bad certificate", k.with("x5c", []string{"?"}).with("x5t", "?"), true},
		{"for encryption", k.with("use", "enc"), false},
		{"not for signatures", k.with("key_ops", []string{"deriveKey"}), false},
		{"use in capitals", k.with("use", "SIG"), false},
		{"another alg", k.with("alg", "ECDH-ES"), false},
		{"another alg of the family", k.with("alg", "ES384"), false},
		{"private", k.with("d", b64(must(k.private.(interface{ Bytes() ([]byte, error) }).Bytes()))), false},
		{"off the curve", k.with("x", k.public["y"]), false},
		{"of another type", k.with("kty", "RSA"), false},
		{"of no type", k.with("kty", nil), false},
		{"malformed use", k.with("use", 1), false},
		{"malformed ops", k.with("key_ops", "verify"), false},
		{"long id", k.with("kid", strings.Repeat("k", 257)), false},
		{"short RSA", newKey(shortKey(), "k", "RS256"), false},
		{"endless RSA", newKey(rsaKey(), "k", "RS256").with("n", b64(long.Bytes())), false},
		{"RSA", newKey(rsaKey(), "k", "RS256"), true},
		{"RSA for another alg", newKey(rsaKey(), "k", "RS256").with("alg", "RS512"), false},
		{"curve that does not fit", newKey(p384(), "k", "ES384"), false},
		{"alg not configured", newKey(edwards(), "k", "EdDSA"), false},
	} {
		p := newProvider(t)
		second := newKey(p256(), "second", "ES256")
		p.publish(test.key, second)
		v := p.verifier()
		if _, err := v.Verify(t.Context(), p.sign(test.key, nil, nil)); (err == nil) != test.want {
			t.Errorf("%s: %v; want accepted: %v", test.name, err, test.want)
		}
		// Neither does it stand in the way of others: without it the second is the only one.
		if _, err := v.Verify(t.Context(), p.sign(second, map[string]any{"kid": nil}, nil)); (err == nil) == test.want {
			t.Errorf("%s: token without kid: %v", test.name, err)
		}
	}
}

func TestSymmetricKeyInASetIsNoKey(t *testing.T) {
	p := newProvider(t)
	p.publishRaw([]byte(`{"keys":[{"kty":"oct","kid":"ec","k":"c2VjcmV0","use":"sig"}]}`))
	if _, err := p.verifier().Verify(t.Context(), p.token(nil)); !errors.Is(err, auth.ErrUnauthenticated) {
		t.Errorf("got %v", err)
	}
}

func TestKeysMayShareAnID(t *testing.T) {
	p := newProvider(t)
	keys := []*signingKey{newKey(p256(), "k", "ES256"), newKey(p256(), "k", "ES256"), newKey(rsaKey(), "k", "RS256")}
	p.publish(keys...)
	v := p.verifier()
	for i, k := range keys {
		if _, err := v.Verify(t.Context(), p.sign(k, nil, nil)); err != nil {
			t.Errorf("key %d: %v", i, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	p := newProvider(f)
	v := p.verifier()
	claims := string(must(json.Marshal(p.claims(nil))))
	head := string(must(json.Marshal(header(p.ec, nil))))
	f.Add(head, claims)
	f.Add(`{"alg":"none"}`, claims)
	f.Add(`{"alg":"ES256","kid":"ec","crit":["b64"],"b64":false}`, claims)
	f.Add(head, `{"iss":"`+issuerURL+`","aud":["us",1],"exp":1e400,"sub":null}`)
	f.Add(head, strings.Replace(claims, "{", `{"a":[[{"b":-1.5e3}]],`, 1))
	f.Fuzz(func(t *testing.T, head, claims string) {
		token := compact(p.ec, "ES256", []byte(head), []byte(claims)) // a right signature, so that the claims are looked at
		principal, err := v.Verify(t.Context(), token)
		if (principal == nil) == (err == nil) {
			t.Fatalf("got %v, %v", principal, err)
		}
		if err != nil && !errors.Is(err, auth.ErrUnauthenticated) {
			t.Fatalf("got %v for a matter of the token", err)
		}
		if err == nil && (principal.Issuer != issuerURL || principal.Subject == "" || principal.Expired(time.Now())) {
			t.Fatalf("accepted %v", principal)
		}
		if _, err := v.Verify(t.Context(), head+claims); !errors.Is(err, auth.ErrUnauthenticated) {
			t.Fatalf("unsigned: %v", err)
		}
	})
}

// entraClaims are those of a user's version 2 access token, as many and as long as Entra makes them.
func entraClaims(n int) map[string]any {
	id := fmt.Sprintf("%08d-1111-2222-3333-444444444444", n)
	return map[string]any{
		"aio": strings.Repeat("A", 80), "azp": id, "azpacr": "0", "name": "Somebody Or Other", "oid": id,
		"preferred_username": fmt.Sprintf("somebody%d@example.com", n), "rh": strings.Repeat("0", 60), "scp": "Status.Read",
		"roles": []string{"Status.Read.All"}, "sub": strings.Repeat("s", 35) + fmt.Sprintf("%08d", n), "tid": "11111111-1111-1111-1111-111111111111",
		"uti": strings.Repeat("u", 22), "ver": "2.0", "sid": id,
	}
}

func BenchmarkVerifyRemembered(b *testing.B) {
	p := newProvider(b)
	v := p.verifier()
	token := p.sign(p.rsa, nil, entraClaims(1))
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(ctx, token); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifyFirst is what a token costs when it is seen for the first time.
func BenchmarkVerifyFirst(b *testing.B) {
	for _, alg := range []string{"RS256", "ES256"} {
		b.Run(alg, func(b *testing.B) {
			p := newProvider(b)
			k := map[string]*signingKey{"RS256": p.rsa, "ES256": p.ec}[alg]
			o := p.options()
			o.CacheSize = 1
			v, err := auth.New(o)
			if err != nil {
				b.Fatal(err)
			}
			tokens := [2]string{p.sign(k, nil, entraClaims(1)), p.sign(k, nil, entraClaims(2))} // each makes the other forgotten
			ctx := b.Context()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := v.Verify(ctx, tokens[i%2]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRefuseUnknownKey is what each token of a flood costs.
func BenchmarkRefuseUnknownKey(b *testing.B) {
	p := newProvider(b)
	v := p.verifier()
	token := p.sign(newKey(p256(), "stranger", "ES256"), nil, entraClaims(1))
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(ctx, token); err == nil {
			b.Fatal("accepted")
		}
	}
}

// BenchmarkMemoryOfPrincipals reports what a remembered token holds on to, principal and cache together.
func BenchmarkMemoryOfPrincipals(b *testing.B) {
	const count = 4096
	p := newProvider(b)
	tokens := make([]string, count)
	for i := range tokens {
		tokens[i] = p.sign(p.ec, nil, entraClaims(i))
	}
	for b.Loop() {
		v := p.verifier()
		before := heap()
		for _, token := range tokens {
			if _, err := v.Verify(b.Context(), token); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/count, "B/principal")
		if _, err := v.Verify(b.Context(), tokens[0]); err != nil { // and keeps them alive until here
			b.Fatal(err)
		}
	}
}
