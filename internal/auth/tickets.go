package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/status"
)

// MaxTicketLifetime is the longest that a ticket may be good for: it travels in a URL, and URLs are logged.
const MaxTicketLifetime = 30 * time.Second

const (
	ticketPrefix = "srt_" // so that scanners for secrets, and people, know one when they see it
	ticketBytes  = 32     // of randomness: nobody guesses one, and no two are equal
	maxOrigin    = 512    // bytes; a host name has 253 at most
	// maxTicketPayload is above what the claims of the largest token need.
	maxTicketPayload = 4 * MaxToken
)

// A TicketStore keeps tickets where all replicas find them.
type TicketStore interface {
	// SaveTicket keeps a payload under an id for that long, at least a millisecond.
	SaveTicket(ctx context.Context, id string, payload []byte, ttl time.Duration) error
	// TakeTicket returns the payload and removes it, in one step: of any number of callers at any number of replicas one
	// gets it. What is not there, or no longer, is a status.ErrNotFound.
	TakeTicket(ctx context.Context, id string) ([]byte, error)
}

// TicketOptions configure Tickets. Only Store is required.
type TicketOptions struct {
	Store TicketStore

	// APIKeys are those whose holders may have tickets, too. Default: none.
	APIKeys *APIKeys

	// Lifetime is how long a ticket is good for. Default, and most, MaxTicketLifetime.
	Lifetime time.Duration

	// Now is the clock. Default time.Now.
	Now func() time.Time

	// Refusals counts the tickets that are refused. Default: nobody does.
	Refusals *Refusals

	// Logger is told of stored tickets that cannot be read, never what is in them. Default: nobody is.
	Logger *slog.Logger
}

// Tickets stand for a token, once, where a token cannot be sent: a browser that opens a WebSocket or an EventSource
// can set no header, and a token must not stand in a URL. Its methods may be called by several goroutines at once.
//
// A ticket is bound to its principal, and to the origin that it was issued to. One that was issued to no origin, since
// a backend asked for it in the name of a page that it serves, is good from everywhere: bound to its principal only.
type Tickets struct {
	store    TicketStore
	apiKeys  *APIKeys // nil: none
	lifetime time.Duration
	now      func() time.Time
	refused  *Refusals
	log      *slog.Logger
}

// NewTickets returns Tickets. It starts nothing and asks nobody.
func NewTickets(o TicketOptions) *Tickets {
	if o.Lifetime <= 0 || o.Lifetime > MaxTicketLifetime {
		o.Lifetime = MaxTicketLifetime
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tickets{o.Store, o.APIKeys, o.Lifetime, o.Now, o.Refusals, o.Logger}
}

// ticketed is what is stored of a ticket. Times are unix microseconds.
type ticketed struct {
	Issuer  string         `json:"issuer"`
	Subject string         `json:"subject"`
	Claims  jsontext.Value `json:"claims,omitzero"`
	Expires int64          `json:"expires,omitzero"` // when the principal does; 0: never
	Origin  string         `json:"origin,omitzero"`
	Until   int64          `json:"until"` // when the ticket stops being good, should the store forget to drop it

	// APIKey is of the ticket of an API key, of which nothing else is kept than this print and its id, the subject: what
	// it is good for is what the file says when the ticket is used, and nothing once the key is withdrawn.
	APIKey string `json:"apiKey,omitzero"`
}

// Issue returns a ticket for the principal, and when it stops being good: with the principal, if that is sooner. origin
// is where it is to be used from, as Origin has it; "" is everywhere.
//
// Errors wrap ErrExpired when the principal is no longer good, ErrForbidden when nothing can stand for its credential, as for a
// signed link, status.ErrInvalid when the origin cannot be one, and what the store says: status.ErrUnavailable when it is away.
func (t *Tickets) Issue(ctx context.Context, who *Principal, origin string) (ticket string, expires time.Time, err error) {
	if len(origin) > maxOrigin {
		return "", time.Time{}, fmt.Errorf("%w: origin of more than %d bytes", status.ErrInvalid, maxOrigin)
	}
	now := t.now()
	left := t.lifetime
	if !who.Expires.IsZero() {
		left = min(left, who.Expires.Sub(now))
	}
	if left < time.Millisecond || who.Expired(now) { // which is as short as the store's can be
		return "", time.Time{}, ErrExpired
	}
	expires = now.Add(left).UTC().Truncate(time.Microsecond)

	stored := ticketed{Issuer: who.Issuer, Subject: who.Subject, Origin: origin, Until: expires.UnixMicro()}
	if !who.Expires.IsZero() {
		stored.Expires = who.Expires.UnixMicro()
	}
	switch {
	case who.Grant == nil:
	case t.apiKeys != nil && who.Issuer == APIKeyIssuer:
		if stored.APIKey = t.apiKeys.print(who); stored.APIKey == "" {
			return "", time.Time{}, ErrExpired // withdrawn just now
		}
	default: // stored without its grant it would be good for more
		return "", time.Time{}, fmt.Errorf("%w: no ticket for this kind of credential", ErrForbidden)
	}
	if who.Claims != nil && who.Grant == nil {
		if stored.Claims, err = json.Marshal(who.Claims, json.WithMarshalers(json.MarshalToFunc(writeFloat))); err != nil {
			return "", time.Time{}, fmt.Errorf("encode claims: %w", err)
		}
	}
	payload, err := json.Marshal(stored)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("encode ticket: %w", err)
	}
	if len(payload) > maxTicketPayload {
		return "", time.Time{}, fmt.Errorf("claims of more than %d bytes", maxTicketPayload)
	}

	var random [ticketBytes]byte
	rand.Read(random[:]) // never fails
	ticket = ticketPrefix + base64.RawURLEncoding.EncodeToString(random[:])
	if err := t.store.SaveTicket(ctx, ticketID(ticket), payload, left); err != nil {
		return "", time.Time{}, fmt.Errorf("save ticket: %w", err)
	}
	return ticket, expires, nil
}

// Redeem returns the principal that a ticket was issued to, with the expiry of the token, so that what is opened
// by the ticket closes with the token. Whatever comes of it, the ticket is used up, unless the store was not reached.
// origin is that of the request, as Origin has it.
//
// A ticket that is malformed, unknown, used, too old, or of another origin is an ErrUnauthenticated. Else errors wrap
// what the store says: status.ErrUnavailable when it is away.
func (t *Tickets) Redeem(ctx context.Context, ticket, origin string) (*Principal, error) {
	random, ok := strings.CutPrefix(ticket, ticketPrefix)
	if !ok || len(random) != base64.RawURLEncoding.EncodedLen(ticketBytes) || !consistsOf(random, "-_") {
		return nil, t.refused.refuse(kindTicket, reasonMalformed, "not a ticket")
	}
	payload, err := t.store.TakeTicket(ctx, ticketID(ticket))
	switch {
	case errors.Is(err, status.ErrNotFound):
		return nil, t.refused.refuse(kindTicket, reasonUnknown, "ticket unknown, used or too old")
	case err != nil:
		return nil, fmt.Errorf("take ticket: %w", err)
	}
	stored, who, ok := readTicket(payload)
	if ok && stored.APIKey != "" {
		if who = t.apiKeys.printed(stored.Subject, stored.APIKey); who == nil {
			return nil, t.refused.refuse(kindTicket, reasonWithdrawn, "the API key that the ticket was issued to is withdrawn")
		}
	}
	if !ok {
		// What the decoder has to say may quote the claims.
		t.log.WarnContext(ctx, "a stored ticket cannot be read", slog.Int("bytes", len(payload)))
		return nil, t.refused.refuse(kindTicket, reasonUnreadable, "the stored ticket cannot be read")
	}
	switch now := t.now(); {
	case stored.Origin != "" && origin != stored.Origin && origin != SameOrigin:
		return nil, t.refused.refuse(kindTicket, reasonOrigin, "the ticket was issued to another origin")
	case !now.Before(time.UnixMicro(stored.Until)), who.Expired(now):
		return nil, t.refused.refuse(kindTicket, reasonExpired, "ticket unknown, used or too old")
	}
	return who, nil
}

// readTicket decodes what the store has, which is believed to be ours but not to be right.
func readTicket(payload []byte) (stored ticketed, who *Principal, ok bool) {
	if len(payload) > maxTicketPayload {
		return stored, nil, false
	}
	if err := json.Unmarshal(payload, &stored); err != nil || stored.Issuer == "" || stored.Subject == "" {
		return stored, nil, false
	}
	if (stored.Issuer == APIKeyIssuer) != (stored.APIKey != "") || stored.Issuer == LinkIssuer {
		return stored, nil, false // none of ours: it would be good for more than its credential
	}
	who = &Principal{Issuer: stored.Issuer, Subject: stored.Subject}
	if stored.Claims != nil {
		claims, err := decodeClaims(stored.Claims)
		if err != nil {
			return stored, nil, false
		}
		who.Claims = claims
	}
	if stored.Expires != 0 {
		who.Expires = time.UnixMicro(stored.Expires).UTC()
	}
	return stored, who, true
}

// ticketID names a ticket to the store, so that who reads the store cannot use what is there.
func ticketID(ticket string) string {
	sum := sha256.Sum256([]byte(ticket))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// writeFloat writes a number so that decodeClaims reads a float64 again, also where it is a whole one.
func writeFloat(e *jsontext.Encoder, f float64) error {
	return e.WriteValue(strconv.AppendFloat(nil, f, 'e', -1, 64))
}

// SameOrigin stands for the origin of a page that asks where it came from itself: no header says which that is.
const SameOrigin = "same-origin"

// Origin returns where the page comes from that sends a request: its Origin header, or "" when no page sends it.
//
// A browser leaves the header off a GET to the page's own origin, an EventSource's included (Fetch, "append a request
// Origin header"), but says Sec-Fetch-Site: same-origin, which no script can: that is SameOrigin. It suits
// every ticket, since what could lie about it could as well lie about Origin.
func Origin(r *http.Request) string {
	origins := r.Header.Values("Origin")
	if len(origins) == 0 && r.Header.Get("Sec-Fetch-Site") == SameOrigin {
		return SameOrigin
	}
	return strings.Join(origins, ", ") // several are none that a ticket has
}
