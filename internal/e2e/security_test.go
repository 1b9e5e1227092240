package e2e_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/apitest"
	"statusrelay/internal/relay"
)

// The tests of security_*_test.go attack programs that run, over their sockets. docs/security.md says which item of the
// checklist each of them proves.

// An identity is a key as whoever signs with it has it.
type identity struct {
	id  string
	key crypto.Signer // ECDSA P-256 or RSA
}

func newIdentity(t testing.TB, id string) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{id, key}
}

// oneRSAKey is made once: it takes its time.
var oneRSAKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newRSAIdentity(t testing.TB, id string) *identity {
	t.Helper()
	key, err := oneRSAKey()
	if err != nil {
		t.Fatal(err)
	}
	return &identity{id, key}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// jwk is the public key as an issuer publishes it.
func (k *identity) jwk() map[string]any {
	if public, ok := k.key.Public().(*rsa.PublicKey); ok {
		return map[string]any{"kty": "RSA", "n": b64(public.N.Bytes()), "e": "AQAB", "kid": k.id, "use": "sig"}
	}
	public := k.key.Public().(*ecdsa.PublicKey)
	return map[string]any{
		"kty": "EC", "crv": "P-256", "kid": k.id, "use": "sig",
		"x": b64(public.X.FillBytes(make([]byte, 32))), "y": b64(public.Y.FillBytes(make([]byte, 32))), //nolint:staticcheck // JWK has the coordinates
	}
}

// alg is the algorithm that the key is for.
func (k *identity) alg() string {
	if _, ok := k.key.(*rsa.PrivateKey); ok {
		return "RS256"
	}
	return "ES256"
}

// sign returns a token with any header and claims. Whatever its alg says, it is signed as the key can, or as HS256 with a secret.
func (k *identity) sign(t testing.TB, header, claims map[string]any, secret ...byte) string {
	t.Helper()
	encode := func(value any) string {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return b64(text)
	}
	input := encode(header) + "." + encode(claims)
	digest := sha256.Sum256([]byte(input))
	if len(secret) > 0 {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(input))
		return input + "." + b64(mac.Sum(nil))
	}
	if private, ok := k.key.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return input + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	signature, err := k.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return input + "." + b64(signature)
}

// A provider is an identity provider that does what a test wants of it.
type provider struct {
	*world
	url string

	mu      sync.Mutex
	keys    []*identity                                   // guarded by mu; published
	instead func(rw http.ResponseWriter, r *http.Request) // guarded by mu; serves the keys in its own way, if it is there
	extra   map[string]any                                // guarded by mu; members of every published key

	fetches atomic.Int64 // of keys
}

// provider starts one with a key.
func (w *world) provider() *provider {
	w.Helper()
	p := &provider{world: w, keys: []*identity{newIdentity(w, "first")}}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	w.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	p.url = server.URL
	mux.HandleFunc("/.well-known/openid-configuration", func(rw http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(rw).Encode(map[string]string{"issuer": p.url, "jwks_uri": p.url + "/keys"})
	})
	mux.HandleFunc("/keys", func(rw http.ResponseWriter, r *http.Request) {
		p.fetches.Add(1)
		p.mu.Lock()
		instead := p.instead
		set := []any{}
		for _, k := range p.keys {
			jwk := k.jwk()
			maps.Copy(jwk, p.extra)
			set = append(set, jwk)
		}
		p.mu.Unlock()
		if instead != nil {
			instead(rw, r)
			return
		}
		_ = json.NewEncoder(rw).Encode(map[string]any{"keys": set})
	})
	return p
}

// publish replaces the keys.
func (p *provider) publish(keys ...*identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

// serve has the keys served in another way.
func (p *provider) serve(instead func(rw http.ResponseWriter, r *http.Request)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.instead = instead
}

// key is the first that it publishes.
func (p *provider) key() *identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.keys[0]
}

// claims are those of a good token, changed; nil takes one away.
func (p *provider) claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	return changed(map[string]any{
		"iss": p.url, "sub": "operator-1", "aud": audience, "roles": []string{"operator"}, "exp": now + 3600, "nbf": now, "iat": now,
	}, changes)
}

// header is that of a good token by a key, changed; nil takes a parameter away.
func (k *identity) header(changes map[string]any) map[string]any {
	return changed(map[string]any{"alg": k.alg(), "typ": "JWT", "kid": k.id}, changes)
}

func changed(members, changes map[string]any) map[string]any {
	maps.Copy(members, changes)
	maps.DeleteFunc(members, func(_ string, value any) bool { return value == nil })
	return members
}

// token is a good one with some claims changed.
func (p *provider) token(claims map[string]any) string {
	k := p.key()
	return k.sign(p, k.header(nil), p.claims(claims))
}

// trusts has a relay trust providers, beside the issuer of its world.
func trusts(providers ...*provider) func(*relay.Config) {
	return func(c *relay.Config) {
		for _, p := range providers {
			c.Auth.Issuers = append(c.Auth.Issuers, p.url)
		}
	}
}

// accepts is how a replica answers a read with a token: 404, of something that is not there, if the token is good.
func (w *world) accepts(r *replica, token string) int {
	w.Helper()
	return w.get(r, token, key("there-is-none")).code
}

// A client is a plain WebSocket that tells every frame and how it ended.
type client struct {
	*world
	conn   *websocket.Conn
	answer *http.Response
}

// handshake tries to open a socket; the answer is there whether or not it succeeds.
func (w *world) handshake(r *replica, query string, header http.Header, subprotocols ...string) (*client, answer) {
	w.Helper()
	dialer := websocket.Dialer{Subprotocols: subprotocols, HandshakeTimeout: patience}
	ctx, cancel := context.WithTimeout(w.ctx, 2*patience)
	defer cancel()
	conn, got, err := dialer.DialContext(ctx, "ws"+strings.TrimPrefix(r.base, "http")+"/v1/watch"+query, header)
	if got == nil {
		w.Fatalf("a handshake was not answered: %v", err)
	}
	text := make([]byte, 64<<10)
	n := 0
	if conn == nil {
		n, _ = got.Body.Read(text) // gorilla has read it already
	} else {
		w.Cleanup(func() { _ = conn.Close() })
	}
	return &client{w, conn, got}, answer{got.StatusCode, got.Header, text[:n]}
}

// socket opens a socket with a token, or without one if it is empty.
func (w *world) socket(r *replica, token string) *client {
	w.Helper()
	header := http.Header{}
	if token != "" {
		header = bearer(token)
	}
	c, got := w.handshake(r, "", header, "status.v1.json")
	if got.code != http.StatusSwitchingProtocols {
		w.Fatalf("a handshake was answered with %d %s", got.code, got.body)
	}
	if token != "" {
		c.wants("welcome")
	}
	return c
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// send writes a text frame.
func (c *client) send(text string) {
	c.Helper()
	if err := c.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		c.Fatal(err)
	}
}

// raw writes bytes below the protocol.
func (c *client) raw(b ...byte) {
	c.Helper()
	if _, err := c.conn.NetConn().Write(b); err != nil {
		c.Fatal(err)
	}
}

// next returns the next frame and its text, or the close frame with which the relay ended the socket: one that says no more than it may.
func (c *client) next() (frame, string, *websocket.CloseError) {
	c.Helper()
	if err := c.conn.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
		c.Fatal(err)
	}
	_, text, err := c.conn.ReadMessage()
	if closed := (*websocket.CloseError)(nil); errors.As(err, &closed) {
		c.saysLittle(closed.Text)
		return frame{}, "", closed
	}
	if err != nil {
		c.Fatalf("a socket broke: %v", err)
	}
	if err := c.api.CheckFrame("status.v1.json", apitest.Server, text); err != nil {
		c.Errorf("not as asyncapi.yaml has it: %v in %s", err, text)
	}
	return parse[frame](c.world, text), string(text), nil
}

// wants wants a frame of a type next.
func (c *client) wants(kind string) (f frame, text string) {
	c.Helper()
	f, text, closed := c.next()
	if closed != nil || f.Type != kind {
		c.Fatalf("got %s and %v, want %s", text, closed, kind)
	}
	return f, text
}

// closes wants the socket to be closed with a code, whatever frames come before. It returns those.
func (c *client) closes(what string, codes ...int) (before string) {
	c.Helper()
	for {
		_, text, closed := c.next()
		if closed == nil {
			before += text
			continue
		}
		for _, code := range codes {
			if closed.Code == code {
				return before
			}
		}
		c.Errorf("%s: closed with %d %s, want %v", what, closed.Code, closed.Text, codes)
		return before
	}
}

// saysLittle wants a close reason to fit its frame (RFC 6455, section 5.5) and to say nothing of the inside.
func (w *world) saysLittle(text string) {
	w.Helper()
	if len(text) > 123 {
		w.Errorf("a reason of %d bytes", len(text))
	}
	w.tellsNothing("a close reason", text)
}

// tellsNothing wants a text to have nothing of the inside in it.
func (w *world) tellsNothing(what, text string) {
	w.Helper()
	low := strings.ToLower(text)
	for _, inside := range []string{
		"goroutine", "redis", "amqp", "servicebus", "sharedaccess", "panic", ".go:", "jose", "json:", "127.0.0.1", "connection refused",
		"eof", "github.com", "statusrelay/", "wsapi", "dial tcp", "i/o timeout",
	} {
		if strings.Contains(low, inside) {
			w.Errorf("%s tells of %q: %.300s", what, inside, text)
		}
	}
}
