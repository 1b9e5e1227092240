package auth_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// newAPIKey makes a key of an id for reading, with changes to what is kept of it.
func newAPIKey(t testing.TB, id string, change ...func(*auth.APIKey)) (string, auth.APIKey) {
	t.Helper()
	k := auth.APIKey{ID: id, Rights: []auth.Right{auth.Read}}
	for _, f := range change {
		f(&k)
	}
	key, kept, err := auth.NewAPIKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return key, kept
}

// held returns API keys of what a file has that is written from them.
func held(t testing.TB, keys ...auth.APIKey) *auth.APIKeys {
	t.Helper()
	a := auth.NewAPIKeys(auth.APIKeyOptions{})
	a.SetKeys(reread(t, keys...))
	return a
}

// reread returns keys as they come out of a file.
func reread(t testing.TB, keys ...auth.APIKey) []auth.APIKey {
	t.Helper()
	file := "keys:\n"
	for _, k := range keys {
		file += k.Entry()
	}
	if len(keys) == 0 {
		file = "keys: []\n"
	}
	read, err := auth.ParseAPIKeys([]byte(file))
	if err != nil {
		t.Fatalf("%v in\n%s", err, file)
	}
	return read
}

// wantRefused holds an error to a plain refusal, that does not repeat a secret.
func wantRefused(t testing.TB, what string, who *auth.Principal, err error, secrets ...string) {
	t.Helper()
	if who != nil || !errors.Is(err, auth.ErrUnauthenticated) || errors.Is(err, auth.ErrExpired) {
		t.Errorf("%s: got %v, %v; want a refusal", what, who, err)
	}
	for _, secret := range secrets {
		if secret != "" && strings.Contains(fmt.Sprint(err), secret) {
			t.Errorf("%s: the error has %q in it: %v", what, secret, err)
		}
	}
}

// TestU6APIKeyNamesItsPrincipal: what the file says of it, and the same principal every time.
func TestU6APIKeyNamesItsPrincipal(t *testing.T) {
	expires := time.Date(2999, 1, 2, 3, 4, 5, 0, time.UTC)
	text, k := newAPIKey(t, "orders.portal_1", func(k *auth.APIKey) {
		k.Rights, k.Hubs, k.Expires = []auth.Right{auth.Read, auth.Publish}, []string{"orders", "null"}, expires
		k.Claims = map[string]any{"roles": []any{"operator"}, "level": int64(math.MaxInt64), "share": float64(1), "none": nil, "x": map[string]any{"y\u2028z: #": true}, "day": "2026-01-02"}
	})
	if !auth.IsAPIKey(text) || !strings.HasPrefix(text, "srk_orders.portal_1_") || len(text) != len("srk_orders.portal_1_")+43 {
		t.Errorf("the key has another form: %d characters", len(text))
	}
	keys := held(t, k)
	who, err := keys.Verify(text)
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{"sub": "orders.portal_1"}
	for name, value := range k.Claims {
		claims[name] = value
	}
	if who.Issuer != "api-key" || who.Subject != "orders.portal_1" || !who.Expires.Equal(expires) || !reflect.DeepEqual(who.Claims, claims) {
		t.Errorf("got %+v", who)
	}
	if want := (&auth.Grant{Rights: k.Rights, Hubs: k.Hubs}); !reflect.DeepEqual(who.Grant, want) {
		t.Errorf("got grant %+v, want %+v", who.Grant, want)
	}
	if again, err := keys.Verify(text); again != who || err != nil {
		t.Errorf("a second time: got %p, %v; want %p", again, err, who)
	}
	// CEL sees an integer as one.
	p, err := policy.Parse([]byte(`version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - name: a
            when: claims.level == 9223372036854775807 && claims.share == 1.0 && 'operator' in claims.roles && claims.sub == 'orders.portal_1'
            see: {}
`))
	if err != nil {
		t.Fatal(err)
	}
	if p.Audience(who.Claims, &status.Record{Hub: "h", InstanceID: "i"}) == nil {
		t.Error("a condition does not see the claims as those of a token")
	}
}

func TestAPIKeyMayNameAnotherSubjectInItsClaims(t *testing.T) {
	text, k := newAPIKey(t, "batch", func(k *auth.APIKey) { k.Claims = map[string]any{"sub": "u-1"} })
	who, err := held(t, k).Verify(text)
	if err != nil || who.Subject != "batch" || who.Claims["sub"] != "u-1" {
		t.Errorf("got %+v, %v", who, err)
	}
}

// TestU6OnlyTheWholeKeyIsAccepted changes every character of a key, and its ends.
func TestU6OnlyTheWholeKeyIsAccepted(t *testing.T) {
	text, k := newAPIKey(t, "a")
	other, o := newAPIKey(t, "b")
	keys := held(t, k, o)
	secret := text[len(text)-43:]
	for i := range text {
		for _, c := range []byte("A_-z9.\x00\xff") {
			if text[i] == c {
				continue
			}
			changed := text[:i] + string(c) + text[i+1:]
			who, err := keys.Verify(changed)
			wantRefused(t, fmt.Sprintf("character %d as %q", i, c), who, err, secret, changed)
		}
	}
	for _, bad := range []string{
		"", "srk_", "srk__", "srk_a", "srk_a_", "srk__" + secret, "srk_" + secret, text + "A", text[:len(text)-1], " " + text, text + "\n",
		"srk_b_" + secret, "srk_a_" + other[len(other)-43:], "SRK_a_" + secret, "srk_" + strings.Repeat("a", 65) + "_" + secret, strings.Repeat("srk_a_", 10_000),
		"srk_a_" + base64.RawURLEncoding.EncodeToString(k.Hash[:]), "srk_none_" + secret, "srk_none_" + strings.Repeat("A", 43),
	} {
		who, err := keys.Verify(bad)
		wantRefused(t, fmt.Sprintf("%.80q", bad), who, err, secret)
	}
	if _, err := auth.NewAPIKeys(auth.APIKeyOptions{}).Verify(text); !errors.Is(err, auth.ErrUnauthenticated) {
		t.Errorf("without any key: got %v", err)
	}
}

func TestU6APIKeyExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text, k := newAPIKey(t, "a", func(k *auth.APIKey) { k.Expires = time.Now().Add(time.Hour) })
		keys := held(t, k)
		who, err := keys.Verify(text)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour - time.Nanosecond)
		if _, err := keys.Verify(text); err != nil || who.Expired(time.Now()) {
			t.Errorf("before: got %v", err)
		}
		time.Sleep(time.Nanosecond)
		if _, err := keys.Verify(text); !errors.Is(err, auth.ErrExpired) || !who.Expired(time.Now()) {
			t.Errorf("after: got %v", err)
		}
		wrong := text[:len(text)-3] + "..."
		if _, err := keys.Verify(wrong); errors.Is(err, auth.ErrExpired) {
			t.Error("who does not have the key is told that it has expired")
		}
	})
}

// TestU6WithdrawnAPIKeyEndsWhatItHasOpened: a later file counts at once, for principals that are out there too; what it
// leaves as it is goes on.
func TestU6WithdrawnAPIKeyEndsWhatItHasOpened(t *testing.T) {
	stay, s := newAPIKey(t, "stays")
	for name, change := range map[string]func(*auth.APIKey){
		"taken out":      nil,
		"another hash":   func(k *auth.APIKey) { k.Hash = sha256.Sum256([]byte("x")) },
		"another claim":  func(k *auth.APIKey) { k.Claims = map[string]any{"roles": []any{"customer"}} },
		"no claims":      func(k *auth.APIKey) { k.Claims = nil },
		"another right":  func(k *auth.APIKey) { k.Rights = []auth.Right{auth.Publish} },
		"more rights":    func(k *auth.APIKey) { k.Rights = []auth.Right{auth.Read, auth.Publish} },
		"another hub":    func(k *auth.APIKey) { k.Hubs = []string{"payments"} },
		"all hubs":       func(k *auth.APIKey) { k.Hubs = nil },
		"another expiry": func(k *auth.APIKey) { k.Expires = time.Now().Add(time.Hour).Truncate(time.Second) },
	} {
		text, k := newAPIKey(t, "goes", func(k *auth.APIKey) {
			k.Hubs, k.Claims = []string{"orders"}, map[string]any{"roles": []any{"operator"}, "n": int64(1)}
		})
		keys := held(t, k, s)
		goes, err := keys.Verify(text)
		if err != nil {
			t.Fatal(err)
		}
		stays, err := keys.Verify(stay)
		if err != nil {
			t.Fatal(err)
		}
		keys.SetKeys(reread(t, s, k)) // in another order
		if again, err := keys.Verify(text); again != goes || err != nil || goes.Expired(time.Now()) {
			t.Errorf("%s: the same file again: got %v", name, err)
		}
		next := []auth.APIKey{s}
		if change != nil {
			change(&k)
			next = append(next, k)
		}
		keys.SetKeys(reread(t, next...))
		if !goes.Expired(time.Now()) {
			t.Errorf("%s: its principal is still good", name)
		}
		if again, err := keys.Verify(stay); again != stays || err != nil || stays.Expired(time.Now()) {
			t.Errorf("%s: another key suffers: %v", name, err)
		}
		now, err := keys.Verify(text)
		if gone := change == nil || name == "another hash"; gone != (err != nil) || now == goes {
			t.Errorf("%s: got %v, %v", name, now, err)
		}
	}
}

// TestU3APIKeysAreReplacedUnderLoad: keys that stay never fail meanwhile, and one that is gone fails from then on.
func TestU3APIKeysAreReplacedUnderLoad(t *testing.T) {
	stay, s := newAPIKey(t, "stays")
	text, k := newAPIKey(t, "rotates")
	keys := held(t, s, k)
	var running sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if who, err := keys.Verify(stay); err != nil || who.Expired(time.Now()) {
					t.Errorf("a key that stays: %v", err)
					return
				}
			}
		})
	}
	for range 100 {
		keys.SetKeys(reread(t, s, k))
		if _, err := keys.Verify(text); err != nil {
			t.Fatal(err)
		}
		keys.SetKeys(reread(t, s))
		if _, err := keys.Verify(text); err == nil {
			t.Fatal("a key that was taken out is accepted")
		}
	}
	close(stop)
	running.Wait()
}

// TestU6FileOfAPIKeysIsReadWithEveryMistake: each with its place, and no value of the file, which may be a key.
func TestU6FileOfAPIKeysIsReadWithEveryMistake(t *testing.T) {
	text, k := newAPIKey(t, "a")
	hash := "sha256:" + base64.RawURLEncoding.EncodeToString(k.Hash[:])
	good := "id: x, rights: [read], hash: " + hash
	for _, test := range []struct {
		file string
		want []string // the places, and parts of the texts
	}{
		{"", []string{"line 1, column 1: the file is empty"}},
		{"# nothing\n", []string{"the file is empty"}},
		{"{}", []string{"line 1, column 1: keys missing"}},
		{"[]", []string{"line 1, column 1: a list where a mapping belongs"}},
		{"keys: [", []string{"not YAML"}},
		{"keys: []\n---\nkeys: []\n", []string{"more than one YAML document"}},
		{"keys: {}", []string{"line 1, column 7: a mapping where a list belongs"}},
		{"keys: []\nsurplus: 1\n", []string{"line 2, column 1: surplus is not known here"}},
		{"keys: []\nkeys: []\n", []string{"line 2, column 1: a second time"}},
		{"keys: [1, null]", []string{"column 8: a number where a mapping belongs", "column 11: nothing where a mapping belongs"}},
		{"keys: [{}]", []string{"id missing", "hash missing", "rights missing"}},
		{"keys: [{" + good + ", key: " + text + "}]", []string{"key is not known here"}}, // no keys as they are
		{"keys: [{" + good + ", " + text + ": 1}]", []string{"this is not known here"}},
		{"keys: [{id: x, rights: [read], hash: " + text + "}]", []string{"not sha256:"}},
		{"keys: [{id: x, rights: [read], hash: sha256:" + text[len(text)-42:] + "}]", []string{"not sha256:"}},
		{"keys: [{id: x, rights: [read], hash: sha256:" + strings.Repeat("B", 43) + "}]", []string{"not sha256:"}}, // bits that say nothing
		{"keys:\n- {" + good + "}\n- {" + good + "}\n", []string{"line 3, column 8: the id of another", "the hash of another"}},
		{"keys: [{id: 7, rights: read, hash: [x], hubs: 1, claims: [], expires: 5}]", []string{
			"column 13: a number where a text", "column 24: a text where a list", "column 36: a list where a text", "column 47: a number where a list",
			"column 58: a list where a mapping", "column 71: a number where a text",
		}},
		{"keys: [{id: 'a b', rights: [], hash: " + hash + "}]", []string{"an id is 1 to 64", "no right"}},
		{"keys: [{id: " + strings.Repeat("a", 65) + ", rights: [write, read, read, 1], hash: " + hash + "}]", []string{"an id is 1 to 64", "not a right", "a second time", "a number where"}},
		{"keys: [{" + good + ", hubs: [], expires: tomorrow}]", []string{"no hub", "not a time"}},
		{"keys: [{" + good + ", hubs: [a/b, c, c, '*'], expires: 2027-01-01}]", []string{"column 97: hub: a character", "a second time", "column 108: hub: a character", "not a time"}},
		{"keys: [{" + good + ", claims: {a: 9223372036854775808, b: .nan, c: .inf, 1: x, d: !!binary aaaa, e: 1e999}}]", []string{
			"too large", "too large, or none", "a number where a text", "a tag where", "too large, or none",
		}},
		{"keys: [{" + good + ", claims: {a: {b: 1, b: 2}}}]", []string{"a second time"}},
		{"x: &x {a: 1}\nkeys: [{" + good + ", claims: {<<: *x, b: *x}}]", []string{"x is not known", "<< where a text", "an alias where a claim"}},
		{"keys: [*nothing]", []string{"not YAML"}},
		{"keys: []" + strings.Repeat(" ", 4<<20), []string{"larger than"}},
		{"keys: [" + strings.Repeat("1,", 10_001) + "]", []string{"more than 10000 keys"}},
	} {
		keys, err := auth.ParseAPIKeys([]byte(test.file))
		var mistakes *auth.FileError
		if keys != nil || !errors.As(err, &mistakes) {
			t.Errorf("%.100q: got %d keys, %v", test.file, len(keys), err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%.200q: got\n%v\nwant %q", test.file, err, want)
			}
		}
		if len(mistakes.Mistakes) != len(test.want) {
			t.Errorf("%.200q: got %d mistakes, want %d:\n%v", test.file, len(mistakes.Mistakes), len(test.want), err)
		}
		if strings.Contains(err.Error(), text[len(text)-42:]) {
			t.Errorf("the error says a key: %v", err)
		}
	}
}

func TestNewAPIKeyNamesEveryMistake(t *testing.T) {
	for _, test := range []struct {
		key  auth.APIKey
		want []string
	}{
		{auth.APIKey{ID: "a b", Rights: []auth.Right{auth.Read}}, []string{"an id is"}},
		{auth.APIKey{ID: "a", Rights: []auth.Right{"write"}, Hubs: []string{"a/b"}}, []string{"not a right", "hub: a character"}},
		{auth.APIKey{ID: "a"}, []string{"no right"}},
		{auth.APIKey{ID: "a", Rights: []auth.Right{auth.Read}, Claims: map[string]any{"a": math.NaN()}}, []string{"mapping"}},
		{auth.APIKey{ID: "a", Rights: []auth.Right{auth.Read}, Claims: map[string]any{"a": 1}}, []string{"claims"}}, // no int64
		{auth.APIKey{ID: "a", Rights: []auth.Right{auth.Read}, Expires: time.Unix(1, 1)}, []string{"expiry"}},
	} {
		text, _, err := auth.NewAPIKey(test.key)
		if text != "" || err == nil {
			t.Errorf("%+v: got a key, or no error", test.key)
		}
		for _, want := range test.want {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%+v: got %v, want %q", test.key, err, want)
			}
		}
	}
}

// TestU6NoTwoKeysAreEqual, and what is kept of one does not have it in it.
func TestU6KeptIsAHashOnly(t *testing.T) {
	first, kept := newAPIKey(t, "a")
	second, _ := newAPIKey(t, "a")
	if first == second {
		t.Error("two keys are equal")
	}
	if entry := kept.Entry(); strings.Contains(entry, first[len(first)-43:]) || strings.Contains(fmt.Sprintf("%+v", kept), first[len(first)-43:]) {
		t.Errorf("the key is in its entry:\n%s", entry)
	}
}

// TestCredentialsTellKeysFromTokens by their prefix.
func TestCredentialsTellKeysFromTokens(t *testing.T) {
	p := newProvider(t)
	text, k := newAPIKey(t, "a")
	c := auth.Credentials{Tokens: p.verifier(), APIKeys: held(t, k)}
	if who, err := c.Verify(t.Context(), text); err != nil || who.Issuer != auth.APIKeyIssuer {
		t.Errorf("a key: got %v, %v", who, err)
	}
	if who, err := c.Verify(t.Context(), p.token(nil)); err != nil || who.Issuer == auth.APIKeyIssuer || who.Grant != nil {
		t.Errorf("a token: got %v, %v", who, err)
	}
	c.APIKeys = nil
	who, err := c.Verify(t.Context(), text)
	wantRefused(t, "a key where there are none", who, err, text)
}

func TestGrantNarrowsWhatACredentialIsGoodFor(t *testing.T) {
	for _, test := range []struct {
		grant *auth.Grant
		right auth.Right
		hub   string
		want  bool
	}{
		{nil, auth.Publish, "a", true},
		{&auth.Grant{}, auth.Read, "a", false},
		{&auth.Grant{Rights: []auth.Right{auth.Read}}, auth.Read, "a", true},
		{&auth.Grant{Rights: []auth.Right{auth.Read}}, auth.Publish, "a", false},
		{&auth.Grant{Rights: []auth.Right{auth.Read, auth.Publish}, Hubs: []string{"a"}}, auth.Publish, "a", true},
		{&auth.Grant{Rights: []auth.Right{auth.Read, auth.Publish}, Hubs: []string{"a"}}, auth.Publish, "A", false},
		{&auth.Grant{Rights: []auth.Right{auth.Read}, Hubs: []string{"a"}}, auth.Read, "", false},
	} {
		if got := (&auth.Principal{Grant: test.grant}).May(test.right, test.hub); got != test.want {
			t.Errorf("%+v: %s in %q: got %v", test.grant, test.right, test.hub, got)
		}
	}
}

// TestTicketOfAnAPIKeyIsGoodForWhatTheKeyIs: it names the very principal, whose grant it cannot lose, and ends with it.
func TestTicketOfAnAPIKeyIsGoodForWhatTheKeyIs(t *testing.T) {
	text, k := newAPIKey(t, "a", func(k *auth.APIKey) { k.Hubs = []string{"orders"} })
	keys := held(t, k)
	store := &ticketStore{}
	tickets := auth.NewTickets(auth.TicketOptions{Store: store, APIKeys: keys})
	who, err := keys.Verify(text)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tickets.Redeem(t.Context(), issue(t, tickets, who, ""), ""); got != who || err != nil {
		t.Errorf("got %+v, %v; want %+v", got, err, who)
	}
	ticket := issue(t, tickets, who, "")
	for id := range store.tickets {
		if payload := string(store.tickets[id].payload); strings.Contains(payload, text[len(text)-43:]) || strings.Contains(payload, base64.RawURLEncoding.EncodeToString(k.Hash[:])) {
			t.Errorf("the store is told of the key: %s", payload)
		}
	}
	namesake, other := newAPIKey(t, "a")
	stranger, err := held(t, other).Verify(namesake)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := tickets.Issue(t.Context(), stranger, ""); !errors.Is(err, auth.ErrUnauthenticated) {
		t.Errorf("a ticket for another key of that id: got %v", err)
	}
	keys.SetKeys([]auth.APIKey{other})
	got, err := tickets.Redeem(t.Context(), ticket, "")
	wantRefused(t, "the ticket of a key that was replaced", got, err, ticket)
	if _, _, err := tickets.Issue(t.Context(), who, ""); !errors.Is(err, auth.ErrExpired) {
		t.Errorf("a ticket for a key that was replaced: got %v", err)
	}
}

// TestNoTicketIsGoodForMoreThanItsCredential: where there is none that keeps the grant, there is none.
func TestNoTicketIsGoodForMoreThanItsCredential(t *testing.T) {
	text, k := newAPIKey(t, "a")
	who, err := held(t, k).Verify(text)
	if err != nil {
		t.Fatal(err)
	}
	store := &ticketStore{}
	tickets := auth.NewTickets(auth.TicketOptions{Store: store})
	for _, who := range []*auth.Principal{who, {Issuer: auth.LinkIssuer, Subject: "x", Grant: &auth.Grant{Rights: []auth.Right{auth.Read}}}} {
		if ticket, _, err := tickets.Issue(t.Context(), who, ""); ticket != "" || !errors.Is(err, auth.ErrForbidden) {
			t.Errorf("%s: got a ticket, or %v", who.Issuer, err)
		}
	}
	until := time.Now().Add(time.Minute).UnixMicro()
	for _, payload := range []string{
		`{"issuer":"api-key","subject":"a","until":%d}`, `{"issuer":"link","subject":"a","until":%d}`,
		`{"issuer":"api-key","subject":"a","apiKey":"x","until":%d}`, `{"issuer":"` + issuerURL + `","subject":"a","apiKey":"x","until":%d}`,
	} {
		ticket := issue(t, tickets, somebody(), "")
		store.replace(fmt.Appendf(nil, payload, until))
		got, err := tickets.Redeem(t.Context(), ticket, "")
		wantRefused(t, payload, got, err, ticket)
	}
}

func FuzzParseAPIKeys(f *testing.F) {
	f.Add([]byte("keys:\n- {id: a, rights: [read, publish], hubs: [b], claims: {c: [1, 2.5, true, null, {d: e}]}, expires: 2027-01-01T00:00:00Z, hash: sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA}\n"))
	f.Add([]byte("keys: [&a [*a], <<: !!x y]\n--- |\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		keys, err := auth.ParseAPIKeys(file)
		var mistakes *auth.FileError
		if (err != nil) != errors.As(err, &mistakes) || err != nil && keys != nil {
			t.Fatalf("got %v, %v", keys, err)
		}
		if err == nil {
			auth.NewAPIKeys(auth.APIKeyOptions{}).SetKeys(keys)
		}
	})
}
