package auth_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"statusrelay/internal/auth"
)

// Made once: RSA keys take their time.
var (
	rsaKey   = sync.OnceValue(func() crypto.Signer { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	shortKey = sync.OnceValue(func() crypto.Signer { return must(rsa.GenerateKey(rand.Reader, 1024)) })
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func p256() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }
func p384() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) }
func edwards() crypto.Signer {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return must(private, err)
}

// A signingKey is a key as its owner has it.
type signingKey struct {
	private crypto.Signer
	alg     string         // of the tokens that it signs
	public  map[string]any // JWK
}

func newKey(private crypto.Signer, id, alg string) *signingKey {
	k := &signingKey{private: private, alg: alg}
	raw := must(json.Marshal(jose.JSONWebKey{Key: private.Public(), KeyID: id, Use: "sig"}))
	if err := json.Unmarshal(raw, &k.public); err != nil {
		panic(err)
	}
	return k
}

// with returns the key, published with another member; "" and nil leave it out.
func (k *signingKey) with(member string, value any) *signingKey {
	changed := &signingKey{private: k.private, alg: k.alg, public: maps.Clone(k.public)}
	changed.public[member] = value
	if value == nil || value == "" {
		delete(changed.public, member)
	}
	return changed
}

// signature makes one of any algorithm, fitting or not.
func signature(k *signingKey, alg, input string) []byte {
	digest := sha256.Sum256([]byte(input))
	switch alg {
	case "RS256":
		return must(k.private.Sign(rand.Reader, digest[:], crypto.SHA256))
	case "PS256":
		return must(k.private.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}))
	case "RS512":
		long := sha512.Sum512([]byte(input))
		return must(k.private.Sign(rand.Reader, long[:], crypto.SHA512))
	case "ES256", "ES384":
		hash := digest[:]
		if alg == "ES384" {
			long := sha512.Sum384([]byte(input))
			hash = long[:]
		}
		private := k.private.(*ecdsa.PrivateKey)
		r, s, err := ecdsa.Sign(rand.Reader, private, hash)
		if err != nil {
			panic(err)
		}
		size := private.Params().BitSize / 8
		return append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case "EdDSA":
		return must(k.private.Sign(rand.Reader, []byte(input), crypto.Hash(0)))
	case "HS256": // with the public key, which everybody knows, as the secret
		mac := hmac.New(sha256.New, must(json.Marshal(k.public)))
		mac.Write([]byte(input))
		return mac.Sum(nil)
	}
	return nil
}

func b64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

// compact signs any header and payload.
func compact(k *signingKey, alg string, header, payload []byte) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(signature(k, alg, input))
}

// A provider is an identity provider and the network between it and the verifier, which counts what passes.
type provider struct {
	t       testing.TB
	issuers []auth.Issuer
	now     func() time.Time
	rsa, ec *signingKey // the keys that it publishes at first

	mu      sync.Mutex
	set     []byte
	asked   []string                                     // URLs
	instead func(w http.ResponseWriter, r *http.Request) // serves in its place
}

const issuerURL = "https://login.example.com/tenant/"

func newProvider(t testing.TB) *provider {
	p := &provider{
		t:       t,
		issuers: []auth.Issuer{{URL: issuerURL, Audiences: []string{"us", "us too"}}},
		now:     time.Now,
		rsa:     newKey(rsaKey(), "rsa", "RS256"),
		ec:      newKey(p256(), "ec", "ES256"),
	}
	p.publish(p.rsa, p.ec)
	return p
}

// publish replaces the key set.
func (p *provider) publish(keys ...*signingKey) {
	publics := make([]any, len(keys))
	for i, k := range keys {
		publics[i] = k.public
	}
	p.publishRaw(must(json.Marshal(map[string]any{"keys": publics})))
}

func (p *provider) publishRaw(set []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set = set
}

// serve replaces the provider's answers; nil brings them back.
func (p *provider) serve(instead func(w http.ResponseWriter, r *http.Request)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.instead = instead
}

func (p *provider) goDown() {
	p.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
}

// RoundTrip is the network: every host is the provider.
func (p *provider) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	p.asked = append(p.asked, r.URL.String())
	handle, set := p.instead, p.set
	p.mu.Unlock()
	if handle == nil {
		handle = func(w http.ResponseWriter, _ *http.Request) {
			if r.URL.Path == "/tenant/.well-known/openid-configuration" {
				_ = json.NewEncoder(w).Encode(map[string]string{"issuer": issuerURL, "jwks_uri": "https://keys.example.com/keys"})
				return
			}
			_, _ = w.Write(set)
		}
	}
	w := httptest.NewRecorder()
	handle(w, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	response := w.Result()
	response.Request = r
	return response, nil
}

// fetches is how often the keys, and not the discovery document, were asked for.
func (p *provider) fetches() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, url := range p.asked {
		if url != issuerURL+".well-known/openid-configuration" {
			n++
		}
	}
	return n
}

// requests is how often anything was asked for.
func (p *provider) requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.asked)
}

// hosts are those that were asked.
func (p *provider) hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	hosts := make(map[string]bool)
	for _, url := range p.asked {
		hosts[must(http.NewRequest("GET", url, nil)).URL.Host] = true
	}
	return slices.Sorted(maps.Keys(hosts))
}

func (p *provider) options() auth.Options {
	return auth.Options{
		Issuers:    p.issuers,
		HTTPClient: &http.Client{Transport: p},
		Now:        p.now,
	}
}

func (p *provider) verifier() *auth.Verifier {
	p.t.Helper()
	v, err := auth.New(p.options())
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// claims returns those of a good token, changed; nil takes one away.
func (p *provider) claims(changes map[string]any) map[string]any {
	now := p.now()
	claims := map[string]any{
		"iss": issuerURL, "sub": "subject-of-the-token", "aud": "us",
		"exp": now.Add(time.Hour).Unix(), "nbf": now.Unix(), "iat": now.Unix(),
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	return claims
}

// header returns the one of a good token, changed; nil takes a parameter away.
func header(k *signingKey, changes map[string]any) map[string]any {
	header := map[string]any{"alg": k.alg, "typ": "JWT", "kid": k.public["kid"]}
	maps.Copy(header, changes)
	maps.DeleteFunc(header, func(_ string, value any) bool { return value == nil })
	return header
}

// sign returns a token whose header and claims differ from those of a good one by changes. It is signed as its alg says.
func (p *provider) sign(k *signingKey, headers, claims map[string]any) string {
	h := header(k, headers)
	alg, _ := h["alg"].(string)
	return compact(k, alg, must(json.Marshal(h)), must(json.Marshal(p.claims(claims))))
}

// token returns a good token with some claims changed.
func (p *provider) token(claims map[string]any) string { return p.sign(p.ec, nil, claims) }

// heap returns the bytes in use, garbage excluded.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
