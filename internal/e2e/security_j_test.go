package e2e_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/notifier"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
)

// A door is a place where a token is shown.
type door struct {
	name  string
	knock func(token string) (code int) // 401 is also for a socket that is closed with 4401
}

// doors are all places of a relay and a notifier where a token is shown.
func (w *world) doors(r, n *replica) []door {
	request := func(method, url string) func(string) int {
		return func(token string) int {
			// Not by do: a token in a header may be anything.
			q, err := http.NewRequestWithContext(w.ctx, method, url, strings.NewReader("{}"))
			if err != nil {
				w.Fatal(err)
			}
			q.Header.Set("Authorization", "Bearer "+token)
			got, err := w.client.Do(q)
			if err != nil {
				w.Fatal(err)
			}
			defer got.Body.Close()
			text, err := io.ReadAll(got.Body)
			if err != nil {
				w.Fatal(err)
			}
			w.tellsNothing(url, string(text))
			return got.StatusCode
		}
	}
	return []door{
		{"a read", request(http.MethodGet, instanceURL(r, key("i")))},
		{"the drop-in", request(http.MethodGet, r.base+"/runtime/webhooks/durabletask/instances/i?taskHub="+hub)},
		{"a ticket", request(http.MethodPost, r.base+"/v1/tickets")},
		{"publishing", request(http.MethodPost, n.base+"/v1/updates")},
		{"a handshake", func(token string) int {
			_, got := w.handshake(r, "", bearer(token), "status.v1.json")
			return got.code
		}},
		{"a subprotocol", func(token string) int {
			_, got := w.handshake(r, "", nil, "status.v1.json", "bearer."+b64([]byte(token)))
			return got.code
		}},
		{"an auth frame", func(token string) int {
			c := w.socket(r, "")
			text, err := json.Marshal(map[string]string{"type": "auth", "token": token})
			if err != nil {
				w.Fatal(err)
			}
			c.send(string(text))
			for {
				f, _, closed := c.next()
				switch {
				case f.Type == "welcome":
					return http.StatusSwitchingProtocols
				case closed != nil && closed.Code == 4401, closed != nil && closed.Code == websocket.CloseMessageTooBig:
					return http.StatusUnauthorized
				case closed != nil:
					w.Fatalf("closed with %v", closed)
				}
			}
		}},
	}
}

// What a token says of its algorithm decides nothing: not at any door.
func TestJ1AlgorithmsComeFromTheConfiguration(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	k, second := newRSAIdentity(t, "rsa"), newIdentity(t, "ec")
	p.publish(k, second)
	r := w.relay(nil, trusts(p))
	n := w.notifier()
	public, err := x509.MarshalPKIXPublicKey(k.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(k.jwk())
	if err != nil {
		t.Fatal(err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	alg := func(name any, secret ...byte) string {
		return k.sign(t, k.header(map[string]any{"alg": name}), p.claims(nil), secret...)
	}
	bare := func(name string) string {
		parts := strings.Split(alg(name), ".")
		return parts[0] + "." + parts[1] + "."
	}
	if got := w.accepts(r, p.token(nil)); got != http.StatusNotFound {
		t.Fatalf("a good token was answered with %d", got)
	}
	for name, token := range map[string]string{
		"none":                        bare("none"),
		"None":                        bare("None"),
		"nOnE with a signature":       alg("nOnE"),
		"no alg":                      alg(nil),
		"empty":                       alg(""),
		"unknown":                     alg("XS256"),
		"a number":                    alg(256),
		"HS256 with the key as PEM":   alg("HS256", block...),
		"HS256 with the key as DER":   alg("HS256", public...),
		"HS256 with the key as JWK":   alg("HS256", jwk...),
		"HS512":                       alg("HS512", block...),
		"RS512, which is not allowed": alg("RS512"),
		"PS256, which is not allowed": alg("PS256"),
		"ES256 with the RSA key":      alg("ES256"),
		"the other key's id":          second.sign(t, second.header(map[string]any{"kid": "rsa"}), p.claims(nil)),
	} {
		for _, d := range w.doors(r, n) {
			if d.name == "publishing" { // by an issuer that the notifier does not know would prove nothing
				continue
			}
			if got := d.knock(token); got != http.StatusUnauthorized {
				t.Errorf("%s at %s: got %d, want 401", name, d.name, got)
			}
		}
	}
	for _, algorithm := range []string{"HS256", "none", ""} {
		c := relay.Defaults()
		c.Auth = w.auth()
		c.Auth.Algorithms = []string{algorithm}
		if err := c.Auth.Validate(); err == nil {
			t.Errorf("algorithm %q can be configured", algorithm)
		}
	}
}

// Keys and addresses of keys in a token are not used, and its key id selects among the issuer's keys and does nothing else.
func TestJ2NothingInATokenLeadsToAKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	r := w.relay(nil, trusts(p))
	n := w.notifier(func(c *notifier.Config) { c.Auth.Issuers = append(c.Auth.Issuers, p.url) })
	attacker := newIdentity(t, "attacker")
	var asked atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_ = json.NewEncoder(rw).Encode(map[string]any{"keys": []any{attacker.jwk()}})
	}))
	defer trap.Close()
	if got := w.accepts(r, p.token(nil)); got != http.StatusNotFound {
		t.Fatalf("a good token was answered with %d", got)
	}
	good := p.key()
	by := func(k *identity, changes map[string]any) string { return k.sign(t, k.header(changes), p.claims(nil)) }
	for name, token := range map[string]string{
		"jwk":                       by(attacker, map[string]any{"jwk": attacker.jwk()}),
		"jwk with a known kid":      by(attacker, map[string]any{"jwk": attacker.jwk(), "kid": good.id}),
		"jku":                       by(attacker, map[string]any{"jku": trap.URL + "/keys"}),
		"jku with a known kid":      by(attacker, map[string]any{"jku": trap.URL + "/keys", "kid": good.id}),
		"x5u":                       by(attacker, map[string]any{"x5u": trap.URL + "/cert", "kid": good.id}),
		"x5c":                       by(attacker, map[string]any{"x5c": []string{"MIIB"}, "kid": good.id}),
		"crit":                      by(good, map[string]any{"crit": []string{"exp"}, "exp": 1}),
		"crit of something unknown": by(good, map[string]any{"crit": []string{"urn:x"}, "urn:x": true}),
		"b64":                       by(good, map[string]any{"b64": false, "crit": []string{"b64"}}),
		"kid is a path":             by(good, map[string]any{"kid": "../../../../../dev/null"}),
		"kid is a file":             by(good, map[string]any{"kid": "file:///etc/passwd"}),
		"kid is SQL":                by(good, map[string]any{"kid": "first' OR '1'='1"}),
		"kid is a URL":              by(attacker, map[string]any{"kid": trap.URL + "/keys"}),
		"kid has a NUL":             by(good, map[string]any{"kid": "first\x00"}),
		"kid of 10 KB":              by(good, map[string]any{"kid": strings.Repeat("k", 10<<10)}),
		"kid of 14 KB":              by(good, map[string]any{"kid": strings.Repeat("k", 14<<10)}),
	} {
		for _, d := range w.doors(r, n) {
			if got := d.knock(token); got != http.StatusUnauthorized && got != http.StatusRequestHeaderFieldsTooLarge && (got != http.StatusBadRequest || len(token) < 4<<10) {
				t.Errorf("%s at %s: got %d, want 401", name, d.name, got)
			}
		}
	}
	if got := asked.Load(); got != 0 {
		t.Errorf("the attacker's server was asked %d times", got)
	}
	if got := w.accepts(r, p.token(nil)); got != http.StatusNotFound {
		t.Errorf("after all that a good token was answered with %d", got)
	}
}

// A key of one issuer signs for no other, and a key that says whose it is signs for nobody else.
func TestJ3KeyOfOneIssuerServesNoOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a, b := w.provider(), w.provider()
	a.publish(newIdentity(t, "of-a"))
	b.publish(newIdentity(t, "of-b"))
	foreign := w.provider()
	foreign.extra = map[string]any{"issuer": a.url}
	r := w.relay(nil, trusts(a, b, foreign))
	ofA, ofB := a.key(), b.key()
	for _, c := range []struct {
		what, token string
		want        int
	}{
		{"a by a", a.token(nil), http.StatusNotFound},
		{"b by b", b.token(nil), http.StatusNotFound},
		{"a by b", ofB.sign(t, ofB.header(nil), a.claims(nil)), http.StatusUnauthorized},
		{"b by a", ofA.sign(t, ofA.header(nil), b.claims(nil)), http.StatusUnauthorized},
		{"a by b, with a's kid", ofB.sign(t, ofB.header(map[string]any{"kid": "of-a"}), a.claims(nil)), http.StatusUnauthorized},
		{"b by a, with b's kid", ofA.sign(t, ofA.header(map[string]any{"kid": "of-b"}), b.claims(nil)), http.StatusUnauthorized},
		{"a key that is another issuer's by its own word", foreign.token(nil), http.StatusUnauthorized},
	} {
		if got := w.accepts(r, c.token); got != c.want {
			t.Errorf("%s: got %d, want %d", c.what, got, c.want)
		}
	}
}

// Who issued a token, for whom, and when it is good are read exactly. The clocks may differ by what is configured, and not more.
func TestJ4IssuerAudienceAndTimesAreExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	r := w.relay(nil, trusts(p), func(c *relay.Config) { c.Auth.ClockSkew = time.Minute })
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	const yes, no = http.StatusNotFound, http.StatusUnauthorized
	const within, beyond = 45 * time.Second, 61 * time.Second // the exact second is looked at with a clock in hand: internal/auth
	for _, c := range []struct {
		claim string
		value any
		want  int
	}{
		{"exp", at(-within), yes},
		{"exp", at(-beyond), no},
		{"exp", nil, no},
		{"exp", fmt.Sprint(at(time.Hour)), no},
		{"exp", time.Now().Add(time.Hour).UnixMilli(), no},
		{"nbf", at(within), yes},
		{"nbf", at(beyond + 30*time.Second), no},
		{"nbf", nil, no},
		{"iat", at(within), yes},
		{"iat", at(beyond + 30*time.Second), no},
		{"iss", nil, no},
		{"iss", p.url + "/", no},
		{"iss", strings.ToUpper(p.url), no},
		{"iss", []string{p.url}, no},
		{"aud", nil, no},
		{"aud", "somebody-else", no},
		{"aud", audience + "/", no},
		{"aud", strings.ToUpper(audience), no},
		{"aud", []string{"somebody-else", audience}, yes},
		{"aud", []string{}, no},
		{"aud", map[string]any{audience: 1}, no},
		{"sub", nil, no},
		{"sub", "", no},
	} {
		if got := w.accepts(r, p.token(map[string]any{c.claim: c.value})); got != c.want {
			t.Errorf("%s %v: got %d, want %d", c.claim, c.value, got, c.want)
		}
	}
	// A socket ends by the same clock: the token that a read takes for half a minute more opens one as well.
	w.socket(r, p.token(map[string]any{"exp": at(-30 * time.Second)}))
	a := w.auth()
	a.ClockSkew = 61 * time.Second
	if err := a.Validate(); err == nil {
		t.Error("more than a minute can be configured")
	}
}

// Tokens that a provider in wide use issues are taken, those for another service are not, and what they open depends on who
// they are for.
func TestJ4TokensOfARealProvider(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	foreign := w.node("issuer.mjs", "SUBJECTS=operator-1,customer-1")
	url := parse[string](w, foreign.does("issuer"))
	const uri = "urn:example:statusrelay" // it wants a URI
	r := w.relay(nil, func(c *relay.Config) {
		c.Auth.Issuers, c.Auth.Audiences, c.Auth.OptionalNotBefore = []string{url}, []string{uri}, true
	})
	k := key("order-4711")
	w.send(strings.Replace(progress(k.InstanceID, 1, 40), owner, "customer-1", 1))
	operator := parse[string](w, foreign.does("token", "operator-1", uri))
	w.until("the operator reads it", func() bool { return w.get(r, operator, k).code == http.StatusOK })
	customer := w.get(r, parse[string](w, foreign.does("token", "customer-1", uri)), k)
	if text := string(customer.body); customer.code != http.StatusOK || !strings.Contains(text, `"percent":40`) || strings.Contains(text, "for operators") {
		t.Errorf("the customer got %d %s", customer.code, text)
	}
	if got := w.get(r, operator, k); !strings.Contains(string(got.body), "for operators") {
		t.Errorf("the operator got %s", got.body)
	}
	w.socket(r, operator)
	other := parse[string](w, foreign.does("token", "operator-1", "urn:example:another"))
	if got := w.get(r, other, k); got.code != http.StatusUnauthorized {
		t.Errorf("a token for another service: got %d, want 401", got.code)
	}
	if _, got := w.handshake(r, "", bearer(other), "status.v1.json"); got.code != http.StatusUnauthorized {
		t.Errorf("a handshake with it: got %d, want 401", got.code)
	}
	if got := w.get(r, w.operator, k); got.code != http.StatusUnauthorized {
		t.Errorf("a token of an issuer that is not trusted here: got %d, want 401", got.code)
	}
	foreign.ends()
}

// entra is a policy for tokens as Entra issues them.
const entra = `
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - name: app
            when: "claims.idtyp == 'app' && 'Status.Read.All' in claims.roles"
            see: {customStatus: all, labels: true}
          - name: user
            when: "claims.scp.split(' ').exists(s, s == 'Status.Read') && labels.tenant == claims.tid && labels.owner == claims.oid"
            see: {customStatus: [/percent]}
          - name: team
            when: "claims.scp.split(' ').exists(s, s == 'Status.Read') && labels.team in claims.groups"
            see: {customStatus: [/percent]}
          - name: outsiders
            when: "!('insiders' in claims.groups) && labels.team == 'public'"
            see: {customStatus: [/percent]}
`

// entraWorld has a relay with that policy and an instance that belongs to oid o-1 of tenant t-1, and to team g-1.
func entraWorld(t *testing.T) (w *world, p *provider, r *replica, see func(claims map[string]any) string) {
	w = newWorld(t, nil)
	p = w.provider()
	r = w.relay(w.policy(entra), trusts(p))
	k := key("order-4711")
	w.send(fmt.Sprintf(`{"hub":%q,"instanceId":%q,"customStatus":{"percent":7,"note":"all"},"labels":{"tenant":"t-1","owner":"o-1","team":"g-1"}}`, hub, k.InstanceID))
	see = func(claims map[string]any) string {
		w.Helper()
		got := w.get(r, p.token(claims), k)
		switch {
		case got.code == http.StatusNotFound:
			return "nothing"
		case got.code != http.StatusOK:
			return fmt.Sprint(got.code)
		case strings.Contains(string(got.body), "note"):
			return "all"
		default:
			return "some"
		}
	}
	w.until("it is there", func() bool {
		return see(map[string]any{"idtyp": "app", "roles": []string{"Status.Read.All"}}) == "all"
	})
	return w, p, r, see
}

// An application's role in a user's token gives no right of an application; a scope is a whole word.
func TestJ6UsersAndApplicationsAreTold(t *testing.T) {
	t.Parallel()
	_, _, _, see := entraWorld(t)
	user := func(changes map[string]any) map[string]any {
		return changed(map[string]any{"tid": "t-1", "oid": "o-1", "scp": "openid Status.Read", "roles": nil}, changes)
	}
	for _, c := range []struct {
		what   string
		claims map[string]any
		want   string
	}{
		{"its owner", user(nil), "some"},
		{"its owner with an application's role", user(map[string]any{"roles": []string{"Status.Read.All"}}), "some"},
		{"another user with an application's role", user(map[string]any{"oid": "o-2", "roles": []string{"Status.Read.All"}}), "nothing"},
		{"an application without a role", map[string]any{"idtyp": "app", "oid": "o-1", "tid": "t-1", "roles": []string{}}, "nothing"},
		{"an application with another role", map[string]any{"idtyp": "app", "roles": []string{"Status.Read.AllButOne"}}, "nothing"},
		{"an application whose role is text", map[string]any{"idtyp": "app", "roles": "Status.Read.All"}, "nothing"},
		{"a longer scope", user(map[string]any{"scp": "Status.ReadWrite"}), "nothing"},
		{"a scope that ends in it", user(map[string]any{"scp": "Not.Status.Read"}), "nothing"},
		{"no scope", user(map[string]any{"scp": nil}), "nothing"},
	} {
		if got := see(c.claims); got != c.want {
			t.Errorf("%s sees %s, want %s", c.what, got, c.want)
		}
	}
}

// An instance belongs to an object of a tenant: nothing that a person can choose makes them its owner.
func TestJ7OwnershipIsOfAnObjectInATenant(t *testing.T) {
	t.Parallel()
	_, _, _, see := entraWorld(t)
	for _, name := range []string{"email", "upn", "preferred_username", "unique_name", "name", "nickname", "sub"} {
		if got := see(map[string]any{"tid": "t-1", "oid": "o-2", "scp": "Status.Read", "roles": nil, name: "o-1"}); got != "nothing" {
			t.Errorf("with the owner's id as %s: sees %s", name, got)
		}
	}
	if got := see(map[string]any{"tid": "t-2", "oid": "o-1", "scp": "Status.Read", "roles": nil}); got != "nothing" {
		t.Errorf("the same object id in another tenant sees %s", got)
	}
}

// Groups that did not fit the token are no groups, neither where one is wanted nor where one is excluded.
func TestJ14GroupsThatAreNotListedGrantNothing(t *testing.T) {
	t.Parallel()
	w, p, r, see := entraWorld(t)
	user := func(changes map[string]any) map[string]any {
		return changed(map[string]any{"tid": "t-9", "oid": "o-9", "scp": "Status.Read", "roles": nil}, changes)
	}
	overage := user(map[string]any{
		"_claim_names":   map[string]any{"groups": "src1"},
		"_claim_sources": map[string]any{"src1": map[string]any{"endpoint": "https://graph.example/users/o-9/getMemberObjects"}},
	})
	for what, c := range map[string]struct {
		claims map[string]any
		want   string
	}{
		"a member":      {user(map[string]any{"groups": []string{"g-0", "g-1"}}), "some"},
		"no member":     {user(map[string]any{"groups": []string{"g-0"}}), "nothing"},
		"overage":       {overage, "nothing"},
		"hasgroups":     {user(map[string]any{"hasgroups": true}), "nothing"},
		"no groups":     {user(nil), "nothing"},
		"groups a text": {user(map[string]any{"groups": "g-1"}), "nothing"},
	} {
		if got := see(c.claims); got != c.want {
			t.Errorf("%s: sees %s, want %s", what, got, c.want)
		}
	}
	public := key("public")
	w.send(fmt.Sprintf(`{"hub":%q,"instanceId":%q,"customStatus":{"percent":7},"labels":{"team":"public"}}`, hub, public.InstanceID))
	w.until("who is in other groups sees it", func() bool {
		return w.get(r, p.token(user(map[string]any{"groups": []string{"g-0"}})), public).code == http.StatusOK
	})
	if got := w.get(r, p.token(overage), public); got.code != http.StatusNotFound {
		t.Errorf("whose groups nobody knows is taken for an outsider: %d", got.code)
	}
}

// Whatever an issuer's key endpoint does to those who ask it, they are done in bounded time and memory, and the keys that
// they have go on working.
func TestJ9HostileKeyEndpointsHarmNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	var trapped, written atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { trapped.Add(1) }))
	defer trap.Close()
	otherHost := strings.Replace(trap.URL, "127.0.0.1", "localhost", 1)
	left := make(chan string, 10)
	many := make([]any, 10_000)
	for i := range many {
		many[i] = newIdentity(t, fmt.Sprint("many-", i)).jwk()
	}
	hostile := map[string]func(http.ResponseWriter, *http.Request){
		"endless": func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(rw, `{"keys":[`)
			block := []byte(strings.Repeat(" ", 64<<10))
			for range 100 << 20 / len(block) {
				n, err := rw.Write(block)
				if written.Add(int64(n)); err != nil {
					break
				}
			}
			left <- "endless"
		},
		"silent": func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(rw).Flush()
			select {
			case <-r.Context().Done():
				left <- "silent"
			case <-w.ctx.Done():
			}
		},
		"slow": func(rw http.ResponseWriter, r *http.Request) {
			every := time.NewTicker(100 * time.Millisecond)
			defer every.Stop()
			for {
				select {
				case <-every.C:
					_, _ = io.WriteString(rw, " ")
					_ = http.NewResponseController(rw).Flush()
				case <-r.Context().Done():
					left <- "slow"
					return
				case <-w.ctx.Done():
					return
				}
			}
		},
		"10,000 keys": func(rw http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(rw).Encode(map[string]any{"keys": many})
		},
		"2,000 keys": func(rw http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(rw).Encode(map[string]any{"keys": many[:2000]})
		}, // in a size that is read
		"redirects": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, otherHost+"/keys", http.StatusFound)
		},
		"metadata": func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, "http://169.254.169.254/keys", http.StatusFound)
		},
		"in circles": func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/keys", http.StatusFound) },
		"not JSON":   func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "<html>") },
		"deep": func(rw http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(rw, `{"keys":`+strings.Repeat("[", 500_000))
		},
		"gone":       func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusGone) },
		"breaks off": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"half a reply": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(rw, `{"keys":[`)
		},
	}
	providers := map[string]*provider{}
	var all []*provider
	for name := range hostile {
		providers[name] = w.provider()
		all = append(all, providers[name])
	}
	r := w.relay(nil, trusts(all...))
	good := map[string]string{}
	for name, p := range providers {
		good[name] = p.token(nil)
		if got := w.accepts(r, good[name]); got != http.StatusNotFound {
			t.Fatalf("%s: while it behaves: got %d", name, got)
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var asking sync.WaitGroup
	for name, p := range providers {
		p.serve(hostile[name])
		asking.Go(func() { // a token of a key that may be new makes the relay look
			k := newIdentity(t, "unknown")
			got, err := w.do(http.MethodGet, instanceURL(r, key("i")), k.sign(t, k.header(nil), p.claims(nil)), nil)
			if err != nil || got.code != http.StatusUnauthorized && got.code != http.StatusServiceUnavailable {
				t.Errorf("%s: an unknown key: got %d, %v", name, got.code, err)
			}
		})
	}
	asking.Wait()
	for range 3 { // those that hold on to who asks are left
		select {
		case <-left:
		case <-w.ctx.Done():
			t.Fatal("an endpoint is still being read")
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
	for name, p := range providers {
		if p.fetches.Load() < 2 {
			t.Errorf("%s: it was not asked", name)
		}
		if got := w.accepts(r, good[name]); got != http.StatusNotFound {
			t.Errorf("%s: a token seen before: got %d", name, got)
		}
		if got := w.accepts(r, p.token(map[string]any{"jti": "new"})); got != http.StatusNotFound {
			t.Errorf("%s: a token by a key that is known: got %d", name, got)
		}
	}
	if got := trapped.Load(); got != 0 {
		t.Errorf("another host was asked %d times", got)
	}
	if got := written.Load(); got > 16<<20 { // what is read, and what sockets hold
		t.Errorf("%d bytes of an endless answer were taken", got)
	}
}

// Ten thousand tokens of unknown keys cost the issuer two requests in half a minute, delay nobody else, and do not keep a new
// key out.
func TestJ10UnknownKidFloodCostsTwoFetches(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	// Without the limit of bad credentials from one address: a flood may come from many.
	r := w.relay(nil, trusts(p), func(c *relay.Config) { c.Limits.FailuresPerAddress = 0 })
	old := p.token(nil)
	if got := w.accepts(r, old); got != http.StatusNotFound {
		t.Fatalf("a good token was answered with %d", got)
	}
	known := p.fetches.Load()
	transport := &http.Transport{MaxIdleConnsPerHost: 8}
	flooder := &http.Client{Transport: transport, Timeout: patience}
	defer transport.CloseIdleConnections()
	k := newIdentity(t, "attacker")
	const tokens = 10_000
	var flooding sync.WaitGroup
	var sent atomic.Int64
	ask := func(kid string) error {
		q, err := http.NewRequestWithContext(w.ctx, http.MethodGet, instanceURL(r, key("i")), nil)
		if err != nil {
			return err
		}
		q.Header.Set("Authorization", "Bearer "+k.sign(t, k.header(map[string]any{"kid": kid}), p.claims(nil)))
		got, err := flooder.Do(q)
		if err != nil {
			return err
		}
		defer got.Body.Close()
		if _, err := io.Copy(io.Discard, got.Body); err != nil {
			return err
		}
		if got.StatusCode != http.StatusUnauthorized && got.StatusCode != http.StatusTooManyRequests {
			return fmt.Errorf("kid %s: got %d", kid, got.StatusCode)
		}
		return nil
	}
	begun := time.Now()
	var stop atomic.Bool
	for i := range 4 {
		flooding.Go(func() {
			for n := 0; !stop.Load() && w.ctx.Err() == nil; n++ {
				if err := ask(fmt.Sprintf("unknown-%d-%d", i, n)); err != nil {
					t.Error(err)
					return
				}
				sent.Add(1)
			}
		})
	}
	w.until("ten thousand were refused", func() bool { return sent.Load() >= tokens || t.Failed() })
	fetched, took := p.fetches.Load()-known, time.Since(begun)
	if most := 1 + int64(took/(15*time.Second)); fetched > most {
		t.Errorf("%d tokens in %s cost %d fetches, want %d at most", sent.Load(), took, fetched, most)
	}
	// J11: rotation works while it goes on.
	fresh := newIdentity(t, "second")
	p.publish(fresh)
	rotated := time.Now()
	token := p.token(nil)
	w.until("a token of the new key is taken", func() bool {
		if got := w.accepts(r, w.operator); got != http.StatusNotFound {
			t.Errorf("meanwhile another issuer's token got %d", got)
		}
		return w.accepts(r, token) == http.StatusNotFound
	})
	stop.Store(true)
	flooding.Wait()
	took = time.Since(begun)
	t.Logf("%d tokens of unknown keys in %s; the new key worked after %s, with %d fetches in all", sent.Load(), took, time.Since(rotated), p.fetches.Load()-known)
	if fetched, most := p.fetches.Load()-known, 2+int64(took/(15*time.Second)); fetched > most {
		t.Errorf("%d fetches in %s, want %d at most", fetched, took, most)
	}
	if got := w.accepts(r, old); got != http.StatusUnauthorized { // J12: what the issuer has withdrawn
		t.Errorf("a token of the withdrawn key got %d, want 401", got)
	}
}

// While an issuer does not answer, the keys that are known work; who shows a token of one whose keys are not known is told to
// come back, and opens nothing.
func TestJ13IssuerThatIsDownFailsClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	// Nobody listens where the other is.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	never := &provider{world: w, url: "http://" + l.Addr().String(), keys: []*identity{newIdentity(t, "first")}}
	r := w.relay(nil, trusts(p, never))
	known := p.token(nil)
	if got := w.accepts(r, known); got != http.StatusNotFound {
		t.Fatalf("a good token was answered with %d", got)
	}
	p.serve(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusBadGateway) })
	k := newIdentity(t, "unknown")
	for what, c := range map[string]struct {
		token string
		codes []int
	}{
		"a token seen before":                        {known, []int{http.StatusNotFound}},
		"a token of a known key":                     {p.token(map[string]any{"jti": "2"}), []int{http.StatusNotFound}},
		"a token of another key":                     {k.sign(t, k.header(nil), p.claims(nil)), []int{http.StatusUnauthorized, http.StatusServiceUnavailable}},
		"of an issuer that never answered":           {never.token(nil), []int{http.StatusServiceUnavailable}},
		"of the issuer that never answered, forged":  {k.sign(t, k.header(nil), never.claims(nil)), []int{http.StatusServiceUnavailable}},
		"of the issuer that never answered, expired": {never.token(map[string]any{"exp": 1}), []int{http.StatusServiceUnavailable, http.StatusUnauthorized}},
	} {
		got := w.get(r, c.token, key("i"))
		ok := false
		for _, code := range c.codes {
			ok = ok || got.code == code
		}
		if !ok {
			t.Errorf("%s: got %d, want one of %d", what, got.code, c.codes)
		}
		if got.code == http.StatusServiceUnavailable && got.header.Get("Retry-After") == "" {
			t.Errorf("%s: not told when to come back", what)
		}
		w.tellsNothing(what, string(got.body))
	}
	if _, got := w.handshake(r, "", bearer(never.token(nil)), "status.v1.json"); got.code != http.StatusServiceUnavailable {
		t.Errorf("a handshake got %d, want 503", got.code)
	}
	// A replica that can verify nobody's token is not ready, and says why, until its issuer is back.
	back := w.provider()
	back.serve(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusBadGateway) })
	c := relay.Defaults()
	c.Listen, c.PrivateListen, c.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", 5*time.Second
	c.Auth, c.Redis.Addrs, c.Subscription = w.auth(), []string{w.redis.Addr}, subscription
	c.Auth.Issuers, c.ServiceBus.ConnectionString = []string{back.url}, settings.NewSecret(w.serviceBus)
	alone, err := relay.New(w.ctx, c, relay.Options{Policy: w.policy(hiding), Logger: w.logs.logger()})
	if err != nil {
		t.Fatal(err)
	}
	w.run(alone.Run)
	readiness := func() (int, string) {
		got, err := w.do(http.MethodGet, "http://"+alone.PrivateAddr().String()+"/readyz", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return got.code, string(got.body)
	}
	w.until("it says that it has no keys", func() bool {
		code, text := readiness()
		return code == http.StatusServiceUnavailable && strings.Contains(text, "no token can be verified") && strings.Contains(text, back.url) && strings.Contains(text, "502")
	})
	back.serve(nil)
	w.until("it is ready", func() bool { code, _ := readiness(); return code == http.StatusOK })
}
