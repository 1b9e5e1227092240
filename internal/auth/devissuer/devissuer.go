// Package devissuer is an identity provider for development and tests. NEVER use it for anything else: whoever can
// call Token is whoever they like, nobody ever logs in, and the key lives and dies with the process.
//
// It promises only that package auth, configured as for any other issuer, accepts its tokens: a real ES256 key, a real
// discovery document and a real key set, over HTTP. It insists on a loopback URL, so that a configuration which
// reaches production fails there.
//
//	issuer, err := devissuer.New(devissuer.Options{URL: "http://localhost:8080/dev/issuer"})
//	mux.Handle("/dev/issuer/", issuer)
//	token, err := issuer.Token("alice", "statusrelay", map[string]any{"roles": []string{"operator"}}, time.Hour)
package devissuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Options configure an Issuer.
type Options struct {
	// URL is the issuer's identifier and the address under which it is served: http or https on a loopback host.
	URL string
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

// An Issuer makes tokens and serves what is needed to verify them. Its methods may be called by several goroutines at once.
type Issuer struct {
	url    string
	prefix string // path of the URL
	now    func() time.Time
	key    atomic.Pointer[jose.JSONWebKey]
}

// New returns an Issuer with a new key.
func New(o Options) (*Issuer, error) {
	u, err := url.Parse(o.URL)
	if err != nil {
		return nil, fmt.Errorf("devissuer: %w", err)
	}
	address, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() != "localhost" && (err != nil || !address.IsLoopback()) {
		return nil, fmt.Errorf("devissuer: %q is not on a loopback host, and this is for development only", o.URL)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("devissuer: %q is not the URL of an issuer", o.URL)
	}
	i := &Issuer{url: o.URL, prefix: strings.TrimSuffix(u.Path, "/"), now: o.Now}
	if i.now == nil {
		i.now = time.Now
	}
	return i, i.Rotate()
}

// Rotate replaces the key: the old one is no longer published, and what it has signed becomes worthless.
func (i *Issuer) Rotate() error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("devissuer: %w", err)
	}
	i.key.Store(&jose.JSONWebKey{Key: private, KeyID: rand.Text(), Algorithm: string(jose.ES256), Use: "sig"})
	return nil
}

// Token returns a token that is valid from now on, for a lifetime; one that is not positive makes an expired token. The claims
// are added to those that every token has, and cannot replace them.
func (i *Issuer) Token(subject, audience string, claims map[string]any, lifetime time.Duration) (string, error) {
	now := i.now()
	all := map[string]any{
		"iss": i.url, "sub": subject, "aud": audience, "jti": rand.Text(),
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(lifetime).Unix(),
	}
	for name := range claims {
		if _, ok := all[name]; ok {
			return "", fmt.Errorf("devissuer: claim %q is the issuer's to set", name)
		}
	}
	maps.Copy(all, claims)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key.Load()}, nil)
	if err != nil {
		return "", fmt.Errorf("devissuer: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		return "", fmt.Errorf("devissuer: %w", err)
	}
	return token, nil
}

// ServeHTTP serves the discovery document and the key set, with or without the path of the issuer's URL before them.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var document any
	switch strings.TrimPrefix(r.URL.Path, i.prefix) {
	case "/.well-known/openid-configuration":
		document = map[string]any{
			"issuer":                                i.url,
			"jwks_uri":                              strings.TrimSuffix(i.url, "/") + "/keys",
			"id_token_signing_alg_values_supported": []string{string(jose.ES256)},
		}
	case "/keys":
		document = jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.key.Load().Public()}}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(document) // a client that is gone needs no answer
}
