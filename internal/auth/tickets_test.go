package auth_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
)

const portal = "https://portal.example.com"

// A ticketStore keeps tickets in this process, as the contract asks, and remembers what it was asked.
type ticketStore struct {
	mu       sync.Mutex
	tickets  map[string]ticketEntry
	taken    int           // calls of TakeTicket
	ttl      time.Duration // of the last ticket
	err      error         // instead of an answer
	sluggish bool          // forgets to drop what is too old
}

type ticketEntry struct {
	payload []byte
	until   time.Time
}

func (s *ticketStore) SaveTicket(_ context.Context, id string, payload []byte, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.tickets == nil {
		s.tickets = make(map[string]ticketEntry)
	}
	s.tickets[id] = ticketEntry{bytes.Clone(payload), time.Now().Add(ttl)}
	s.ttl = ttl
	return nil
}

func (s *ticketStore) TakeTicket(_ context.Context, id string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
	if s.err != nil {
		return nil, s.err
	}
	e, ok := s.tickets[id]
	delete(s.tickets, id)
	if !ok || !s.sluggish && !time.Now().Before(e.until) {
		return nil, fmt.Errorf("ticket: %w", status.ErrNotFound)
	}
	return e.payload, nil
}

// replace puts another payload in the place of the only ticket's.
func (s *ticketStore) replace(payload []byte) {
	for id, e := range s.tickets {
		s.tickets[id] = ticketEntry{payload, e.until}
	}
}

// somebody returns a principal as a token of an hour makes one.
func somebody() *auth.Principal {
	return &auth.Principal{
		Issuer: issuerURL, Subject: "u-1", Claims: map[string]any{"iss": issuerURL, "sub": "u-1"},
		Expires: time.Now().Add(time.Hour).UTC().Truncate(time.Millisecond),
	}
}

func issue(t testing.TB, tickets *auth.Tickets, who *auth.Principal, origin string) string {
	t.Helper()
	ticket, _, err := tickets.Issue(t.Context(), who, origin)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// refused reports whether an error is the plain refusal of a ticket, and does not repeat it.
func refused(err error, ticket string) bool {
	random := strings.TrimPrefix(ticket, "srt_")
	return errors.Is(err, auth.ErrUnauthenticated) && !errors.Is(err, status.ErrUnavailable) && !errors.Is(err, status.ErrNotFound) &&
		(random == "" || !strings.Contains(err.Error(), random))
}

// TestTicketNamesThePrincipalOfItsToken: the same claims, with the same types, and the token's own expiry.
func TestTicketNamesThePrincipalOfItsToken(t *testing.T) {
	p := newProvider(t)
	verified, err := p.verifier().Verify(t.Context(), p.token(map[string]any{
		"aud": []string{"them", "us"}, "roles": []string{"operator"}, "big": int64(math.MaxInt64), "exp": float64(time.Now().Unix()) + 600.25,
	}))
	if err != nil {
		t.Fatal(err)
	}
	for name, who := range map[string]*auth.Principal{
		"of a token": verified,
		"every type": {
			Issuer: "i", Subject: "s", Expires: verified.Expires,
			Claims: map[string]any{
				"least": int64(math.MinInt64), "exact": int64(9007199254740993), "zero": int64(0), "one": int64(1),
				"whole": 1.0, "nought": 0.0, "half": 0.5, "huge": math.MaxFloat64, "tiny": math.SmallestNonzeroFloat64, "like exact": 9007199254740992.0,
				"text": "a\"\\\x00<&>\u2028\U0001F600\ufffd", "": "", "null": nil, "yes": true, "no": false, "claims": "x",
				"list": []any{int64(1), 1.0, "1", nil, []any{}}, "map": map[string]any{"n": int64(1), "f": 1.0, "m": map[string]any{}},
			},
		},
		"no claims":     {Issuer: "keys", Subject: "s", Expires: verified.Expires},
		"empty claims":  {Issuer: "keys", Subject: "s", Claims: map[string]any{}},
		"never expires": {Issuer: "keys", Subject: "\U0001F600\u202e"},
		"for ever":      {Issuer: "i", Subject: "s", Expires: time.Unix(253402300799, 0).Add(30 * time.Second).UTC()},
	} {
		t.Run(name, func(t *testing.T) {
			tickets := auth.NewTickets(auth.TicketOptions{Store: new(ticketStore)})
			got, err := tickets.Redeem(t.Context(), issue(t, tickets, who, portal), portal)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, who) {
				t.Errorf("\n got %#v\nwant %#v", got, who)
			}
		})
	}
}

func TestTicketIsGoodOnce(t *testing.T) {
	store := new(ticketStore)
	// Two replicas.
	tickets := []*auth.Tickets{auth.NewTickets(auth.TicketOptions{Store: store}), auth.NewTickets(auth.TicketOptions{Store: store})}
	ticket := issue(t, tickets[0], somebody(), portal)
	var running sync.WaitGroup
	var good atomic.Int32
	start := make(chan struct{})
	for i := range 100 {
		running.Go(func() {
			<-start
			who, err := tickets[i%2].Redeem(t.Context(), ticket, portal)
			switch {
			case err == nil && who.Subject == "u-1":
				good.Add(1)
			case !refused(err, ticket):
				t.Errorf("%v, %v", who, err)
			}
		})
	}
	close(start)
	running.Wait()
	if good.Load() != 1 {
		t.Errorf("good %d times", good.Load())
	}
}

func TestTicketsAreSecretsThatTheStoreDoesNotKnow(t *testing.T) {
	store := new(ticketStore)
	tickets := auth.NewTickets(auth.TicketOptions{Store: store})
	seen := map[string]bool{}
	for range 100 {
		ticket := issue(t, tickets, somebody(), portal)
		if !regexp.MustCompile(`^srt_[A-Za-z0-9_-]{43}$`).MatchString(ticket) || seen[ticket] {
			t.Errorf("ticket %q", ticket)
		}
		seen[ticket] = true
		sum := sha256.Sum256([]byte(ticket))
		stored, ok := store.tickets[b64(sum[:])]
		if !ok || bytes.Contains(stored.payload, []byte(ticket[4:])) {
			t.Errorf("%q is stored as %s", ticket, stored.payload)
		}
	}
}

func TestTicketEndsWithItsLifetimeOrItsPrincipal(t *testing.T) {
	for _, c := range []struct {
		name            string
		lifetime, token time.Duration
		want            time.Duration
	}{
		{"default", 0, time.Hour, 30 * time.Second},
		{"shorter", 10 * time.Second, time.Hour, 10 * time.Second},
		{"too long", time.Minute, time.Hour, 30 * time.Second},
		{"negative", -time.Minute, time.Hour, 30 * time.Second},
		{"an old token", 0, 7*time.Second + 250*time.Millisecond, 7*time.Second + 250*time.Millisecond},
		{"a token's last moment", 0, time.Millisecond, time.Millisecond},
		{"a token without end", 0, 0, 30 * time.Second},
	} {
		for _, sluggish := range []bool{false, true} { // whether the store ends it or Redeem does
			t.Run(fmt.Sprintf("%s, sluggish %v", c.name, sluggish), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					store := &ticketStore{sluggish: sluggish}
					tickets := auth.NewTickets(auth.TicketOptions{Store: store, Lifetime: c.lifetime})
					who := somebody()
					who.Expires = time.Now().Add(c.token).UTC()
					if c.token == 0 {
						who.Expires = time.Time{}
					}
					first, expires, err := tickets.Issue(t.Context(), who, "")
					if err != nil {
						t.Fatal(err)
					}
					if got := time.Until(expires); got != c.want || store.ttl != c.want {
						t.Errorf("a ticket for %v, stored for %v, want %v", got, store.ttl, c.want)
					}
					second := issue(t, tickets, who, "")
					time.Sleep(c.want - time.Microsecond)
					if got, err := tickets.Redeem(t.Context(), first, ""); err != nil || !got.Expires.Equal(who.Expires) {
						t.Errorf("just before its end: %v, %v; want the expiry of the token, %v", got, err, who.Expires)
					}
					time.Sleep(time.Microsecond)
					if got, err := tickets.Redeem(t.Context(), second, ""); !refused(err, second) {
						t.Errorf("at its end: %v, %v", got, err)
					}
				})
			})
		}
	}
}

func TestExpiredPrincipalGetsNoTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(ticketStore)
		tickets := auth.NewTickets(auth.TicketOptions{Store: store})
		for _, ago := range []time.Duration{0, time.Nanosecond, time.Hour, -time.Millisecond + 1} {
			who := somebody()
			who.Expires = time.Now().Add(-ago)
			if ticket, _, err := tickets.Issue(t.Context(), who, ""); !errors.Is(err, auth.ErrExpired) || ticket != "" {
				t.Errorf("expired %v ago: %q, %v", ago, ticket, err)
			}
		}
		if len(store.tickets) > 0 {
			t.Errorf("%d stored", len(store.tickets))
		}
	})
}

func TestTicketIsBoundToItsOrigin(t *testing.T) {
	for _, c := range []struct {
		issued, used string
		want         bool
	}{
		{portal, portal, true},
		{portal, "https://evil.example.com", false},
		{portal, "http://portal.example.com", false},
		{portal, "https://portal.example.com:8443", false},
		{portal, "https://portal.example.com.evil.example", false},
		{portal, "HTTPS://PORTAL.EXAMPLE.COM", false}, // browsers write them in one way
		{portal, "null", false},
		{portal, "", false},
		{portal, auth.SameOrigin, true},
		{"null", portal, false},
		{"", portal, true}, // a backend's, for a page of its own
		{"", "null", true},
		{"", "", true},
	} {
		tickets := auth.NewTickets(auth.TicketOptions{Store: new(ticketStore)})
		ticket := issue(t, tickets, somebody(), c.issued)
		_, err := tickets.Redeem(t.Context(), ticket, c.used)
		if (err == nil) != c.want || err != nil && !refused(err, ticket) {
			t.Errorf("issued to %q, used by %q: %v, want good: %v", c.issued, c.used, err, c.want)
		}
		if _, err := tickets.Redeem(t.Context(), ticket, c.issued); !refused(err, ticket) {
			t.Errorf("issued to %q: used by %q it is good again: %v", c.issued, c.used, err)
		}
	}
	tickets := auth.NewTickets(auth.TicketOptions{Store: new(ticketStore)})
	if _, _, err := tickets.Issue(t.Context(), somebody(), strings.Repeat("o", 513)); !errors.Is(err, status.ErrInvalid) {
		t.Errorf("an origin of 513 bytes: %v", err)
	}
}

func TestMalformedTicketsDoNotReachTheStore(t *testing.T) {
	store := new(ticketStore)
	tickets := auth.NewTickets(auth.TicketOptions{Store: store})
	good := issue(t, tickets, somebody(), "")
	for _, ticket := range []string{
		"", "srt_", good[4:], good[:46], good + "A", good + "=", "SRT_" + good[4:], "srt-" + good[4:], " " + good, good + "\n",
		good[:46] + "=", good[:46] + "+", good[:46] + "/", good[:46] + ".", good[:46] + "\x00", good[:45] + "é", good + good,
		"srt_" + strings.Repeat("A", 1<<20), strings.Repeat("A", 47),
	} {
		if who, err := tickets.Redeem(t.Context(), ticket, ""); !refused(err, ticket) {
			t.Errorf("%.60q: %v, %v", ticket, who, err)
		}
	}
	if store.taken != 0 {
		t.Errorf("the store was asked %d times", store.taken)
	}
	unknown := good[:4] + strings.Repeat("A", 43)
	if who, err := tickets.Redeem(t.Context(), unknown, ""); !refused(err, unknown) || store.taken != 1 {
		t.Errorf("unknown: %v, %v after %d questions", who, err, store.taken)
	}
	if _, err := tickets.Redeem(t.Context(), good, ""); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

// TestTicketsOutliveTheStoresAbsence: a ticket that could not be looked up was not refused.
func TestTicketsOutliveTheStoresAbsence(t *testing.T) {
	away, broken := fmt.Errorf("redis: %w", status.ErrUnavailable), errors.New("WRONGTYPE")
	store := new(ticketStore)
	tickets := auth.NewTickets(auth.TicketOptions{Store: store})
	ticket := issue(t, tickets, somebody(), "")
	for _, store.err = range []error{away, broken, context.Canceled} {
		if got, _, err := tickets.Issue(t.Context(), somebody(), ""); !errors.Is(err, store.err) || got != "" {
			t.Errorf("issued %q, %v; want %v", got, err, store.err)
		}
		_, err := tickets.Redeem(t.Context(), ticket, "")
		if !errors.Is(err, store.err) || errors.Is(err, auth.ErrUnauthenticated) || errors.Is(err, status.ErrUnavailable) != (store.err == away) {
			t.Errorf("redeemed: %v; want %v", err, store.err)
		}
		if strings.Contains(err.Error(), ticket[4:]) {
			t.Errorf("the error repeats the ticket: %v", err)
		}
	}
	store.err = nil
	if _, err := tickets.Redeem(t.Context(), ticket, ""); err != nil {
		t.Error(err)
	}
}

func TestStoredTicketsAreNotTrusted(t *testing.T) {
	var log bytes.Buffer
	store := new(ticketStore)
	tickets := auth.NewTickets(auth.TicketOptions{Store: store, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	until := fmt.Sprintf(`,"until":%d`, time.Now().Add(time.Minute).UnixMicro())
	for name, payload := range map[string]string{
		"nothing":              ``,
		"null":                 `null`,
		"no JSON":              `hunter2`,
		"cut off":              `{"issuer":"hunter2","subject":"hunter2"`,
		"a list":               `["hunter2"]`,
		"two":                  `{"issuer":"hunter2","subject":"s"` + until + `} {}`,
		"no issuer":            `{"subject":"hunter2"` + until + `}`,
		"no subject":           `{"issuer":"hunter2"` + until + `}`,
		"another case":         `{"Issuer":"hunter2","Subject":"s"` + until + `}`,
		"a name twice":         `{"issuer":"hunter2","issuer":"i","subject":"s"` + until + `}`,
		"a claim twice":        `{"issuer":"i","subject":"s","claims":{"a":"hunter2","a":2}` + until + `}`,
		"claims that are none": `{"issuer":"i","subject":"s","claims":["hunter2"]` + until + `}`,
		"null claims":          `{"issuer":"i","subject":"hunter2","claims":null` + until + `}`,
		"a number too large":   `{"issuer":"i","subject":"s","claims":{"hunter2":18446744073709551616}` + until + `}`,
		"times in words":       `{"issuer":"i","subject":"s","until":"hunter2"}`,
		"no UTF-8":             "{\"issuer\":\"hunter2\xff\",\"subject\":\"s\"" + until + `}`,
		"too large":            `{"issuer":"i","subject":"s","claims":{"a":"` + strings.Repeat("hunter2", 10000) + `"}` + until + `}`,
	} {
		log.Reset()
		ticket := issue(t, tickets, somebody(), "")
		store.replace([]byte(payload))
		who, err := tickets.Redeem(t.Context(), ticket, "")
		if !refused(err, ticket) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, %v", name, who, err)
		}
		if strings.Count(log.String(), "level=WARN") != 1 || strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), ticket[4:]) {
			t.Errorf("%s: logged %s", name, &log)
		}
	}

	// These can be read, and are of no use.
	for name, payload := range map[string]string{
		"no end":               `{"issuer":"i","subject":"s"}`,
		"an end long ago":      `{"issuer":"i","subject":"s","until":1}`,
		"a token of long ago":  `{"issuer":"i","subject":"s","expires":1` + until + `}`,
		"another origin's":     `{"issuer":"i","subject":"s","origin":"x"` + until + `}`,
		"an end before itself": `{"issuer":"i","subject":"s","until":-9223372036854775808}`,
	} {
		ticket := issue(t, tickets, somebody(), "")
		store.replace([]byte(payload))
		if who, err := tickets.Redeem(t.Context(), ticket, ""); !refused(err, ticket) {
			t.Errorf("%s: %v, %v", name, who, err)
		}
	}

	// This one is as it should be: the others differ from it in their fault alone.
	ticket := issue(t, tickets, somebody(), "")
	store.replace([]byte(`{"issuer":"i","subject":"s","claims":{"a":1},"of a later version":true` + until + `}`))
	if who, err := tickets.Redeem(t.Context(), ticket, ""); err != nil || who.Claims["a"] != int64(1) {
		t.Errorf("a good one: %v, %v", who, err)
	}
}

func TestClaimsThatNoTokenHasGetNoTicket(t *testing.T) {
	tickets := auth.NewTickets(auth.TicketOptions{Store: new(ticketStore)})
	for name, value := range map[string]any{
		"too large": strings.Repeat("x", 4*auth.MaxToken), "no number": math.NaN(), "no JSON": make(chan int),
	} {
		who := somebody()
		who.Claims = map[string]any{"a": value}
		if ticket, _, err := tickets.Issue(t.Context(), who, ""); err == nil || ticket != "" {
			t.Errorf("%s: %q, %v", name, ticket, err)
		}
	}
}

func TestLargestTokenFitsATicket(t *testing.T) {
	who := somebody()
	list := make([]any, auth.MaxToken*3/4/4) // "1.0," in the token
	for i := range list {
		list[i] = 1.0
	}
	who.Claims = map[string]any{"a": list}
	tickets := auth.NewTickets(auth.TicketOptions{Store: new(ticketStore)})
	if got, err := tickets.Redeem(t.Context(), issue(t, tickets, who, ""), ""); err != nil || !reflect.DeepEqual(got, who) {
		t.Errorf("%v", err)
	}
}

func TestOrigin(t *testing.T) {
	for _, c := range []struct {
		origins []string
		site    string
		want    string
	}{
		{nil, "", ""},
		{nil, "cross-site", ""},
		{nil, "same-site", ""},
		{nil, "none", ""},
		{nil, "same-origin", auth.SameOrigin},
		{[]string{portal}, "", portal},
		{[]string{portal}, "same-origin", portal},
		{[]string{"null"}, "cross-site", "null"},
		{[]string{portal, "https://evil.example.com"}, "", portal + ", https://evil.example.com"},
	} {
		r := &http.Request{Header: http.Header{"Origin": c.origins}}
		if c.site != "" {
			r.Header.Set("Sec-Fetch-Site", c.site)
		}
		if got := auth.Origin(r); got != c.want {
			t.Errorf("Origin %q, Sec-Fetch-Site %q: %q, want %q", c.origins, c.site, got, c.want)
		}
	}
}

// FuzzStoredTicket holds that whatever the store gives back is refused or names somebody, for as long as it is good.
func FuzzStoredTicket(f *testing.F) {
	store := new(ticketStore)
	issue(f, auth.NewTickets(auth.TicketOptions{Store: store}), somebody(), portal)
	for _, e := range store.tickets {
		f.Add(e.payload)
	}
	f.Add([]byte(`{"issuer":"i","subject":"s","claims":{"a":[1,1.5,-0]},"expires":99999999999999999,"until":99999999999999999}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		store := new(ticketStore)
		tickets := auth.NewTickets(auth.TicketOptions{Store: store})
		ticket := issue(t, tickets, somebody(), "")
		store.replace(payload)
		who, err := tickets.Redeem(t.Context(), ticket, portal)
		if err != nil {
			if !refused(err, ticket) {
				t.Errorf("%v", err)
			}
			return
		}
		if who.Issuer == "" || who.Subject == "" || who.Expired(time.Now()) {
			t.Errorf("%#v", who)
		}
		if again, err := tickets.Redeem(t.Context(), issue(t, tickets, who, ""), ""); err != nil || !reflect.DeepEqual(again, who) {
			t.Errorf("\n got %#v, %v\nwant %#v", again, err, who)
		}
	})
}

func BenchmarkTicket(b *testing.B) {
	tickets := auth.NewTickets(auth.TicketOptions{Store: new(ticketStore)})
	who := somebody()
	who.Claims["roles"] = []any{"customer", "reader"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tickets.Redeem(b.Context(), issue(b, tickets, who, portal), portal); err != nil {
			b.Fatal(err)
		}
	}
}
