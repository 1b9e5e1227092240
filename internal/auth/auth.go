// Package auth answers one question: who is asking?
//
// It turns the bearer token (JWT, RFC 7519) or the API key of a request or a socket into a [*Principal], and so does it with
// the single-use ticket that stands for one where a browser can set no header, and with a signed link to one instance. What
// a principal may see is not decided here but in package policy; a [Grant] says how much of that its credential is good for.
//
// It promises that
//
//   - algorithms, issuers and audiences come from the configuration, and nothing that decides how a token is
//     verified comes from the token (RFC 8725): its alg and kid only select among what the issuer's own key set and
//     the configuration allow; jwk, jku, x5u and x5c are never used; a crit header is refused;
//   - a key of one issuer never verifies a token of another;
//   - while an issuer's key endpoint answers, a key that it has withdrawn stops working within [Options.KeyRefresh],
//     for remembered tokens too, and a new one works within 30 s, also while somebody floods the verifier with tokens
//     of unknown keys, which costs the issuer at most two fetches in 30 s;
//   - while the endpoint is down the known keys keep working for [Options.KeyGrace], and not longer;
//   - no error contains a token, or any part of one but its issuer, key id and algorithm; none contains a ticket;
//   - a token that was verified before costs one hash and no allocation, and all who hold it share one Principal
//     (about 2.4 kB with the claims of an Entra user, the memory of the token included);
//   - a ticket is good once, at one replica, for at most [MaxTicketLifetime] and no longer than its token, and names the
//     very principal that it was issued to; whoever reads the store finds no ticket there;
//   - API keys are kept as hashes; one that is taken out of the file, or changed there, stops working with the next reading,
//     for what is open in its name, too;
//   - a link opens one instance as one audience sees it, for reading, until it expires, which it must and soon enough; one whose
//     key is taken out of the file is no longer good, and what it has opened closes.
//
// Use:
//
//	verifier, err := auth.New(auth.Options{Issuers: auth.Entra(tenant, "api://statusrelay")})
//	go verifier.Run(ctx) // optional: fetches keys before a request needs them
//	…
//	token, ok, err := auth.Bearer(request)
//	principal, err := verifier.Verify(ctx, token)
//	…
//	keys := auth.NewAPIKeys(auth.APIKeyOptions{})
//	keys.SetKeys(parsed) // again whenever the file changes
//	credentials := auth.Credentials{Tokens: verifier, APIKeys: keys}
//	principal, err = credentials.Verify(ctx, tokenOrKey)
//	…
//	links := auth.NewLinks(auth.LinkOptions{})
//	links.SetKeys(parsedLinkKeys)
//	link, err := links.Sign(instance, "customer", expires)
//	principal, err = links.Verify(instance, link)
//	…
//	tickets := auth.NewTickets(auth.TicketOptions{Store: store})
//	ticket, expires, err := tickets.Issue(ctx, principal, auth.Origin(request))
//	principal, err = tickets.Redeem(ctx, ticket, auth.Origin(laterRequest))
//
// An error wraps [ErrUnauthenticated] when the credential is at fault ([ErrExpired] when all that is wrong with it is its
// age), and status.ErrUnavailable when the issuer's keys, or the tickets, cannot be had, so that nobody can tell.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"statusrelay/internal/status"
)

// The kinds of refusal. The caller is told the kind, the log the whole error.
var (
	// ErrUnauthenticated says that there is no credential, or one that proves nothing.
	ErrUnauthenticated = errors.New("unauthenticated")
	// ErrExpired is the ErrUnauthenticated of a token that was good once: its holder should get a new one.
	ErrExpired = fmt.Errorf("%w: token expired", ErrUnauthenticated)
	// ErrMissing is the ErrUnauthenticated of a request without any credential.
	ErrMissing = fmt.Errorf("%w: no credential", ErrUnauthenticated)
	// ErrForbidden says that it is known who asks, and that they may not.
	ErrForbidden = errors.New("forbidden")
)

// A Principal is who is asking. It is shared between requests and sockets: never modify it, its claims included.
//
// Issuer and Subject together name the principal. For a token they are its iss and sub; other kinds of credential
// name an issuer of their own, which is never a URL, and may have neither claims nor an expiry.
type Principal struct {
	Issuer  string
	Subject string

	// Claims are all claims of the token, as decoded from JSON: an integer is an int64, any other number a float64.
	Claims map[string]any

	// Expires is when the credential stops being accepted: what is open in its name must be closed then.
	// For a token that is its exp plus the allowed clock skew, exactly the instant from which Verify refuses it.
	// Zero means never.
	Expires time.Time

	// Grant is what the credential is good for, however much the policy would allow. Nil: for whatever that allows.
	Grant *Grant

	withdrawn *atomic.Bool // of the key behind the credential, shared by all its principals; nil: there is no such key
}

// Expired reports whether the principal's credential is no longer good: too old, or of a key that has been withdrawn.
func (p *Principal) Expired(now time.Time) bool {
	return !p.Expires.IsZero() && !now.Before(p.Expires) || p.withdrawn != nil && p.withdrawn.Load()
}

// May reports whether the credential is good for something in a hub. What the policy says of it is another question, and
// both must be answered with yes.
func (p *Principal) May(right Right, hub string) bool {
	g := p.Grant
	return g == nil || slices.Contains(g.Rights, right) && (len(g.Hubs) == 0 || slices.Contains(g.Hubs, hub))
}

// Text is a claim that is a text, else "".
func (p *Principal) Text(claim string) string {
	text, _ := p.Claims[claim].(string)
	return text
}

// A Right is something that a credential may be good for.
type Right string

// The rights that there are.
const (
	Read    Right = "read"    // to read, list and watch
	Publish Right = "publish" // to publish updates
)

// A Grant narrows what a credential is good for.
type Grant struct {
	Rights []Right
	Hubs   []string   // empty: all
	Link   *LinkGrant // of a signed link; nil of everything else
}

// A LinkGrant is what a signed link opens: one instance, as one audience sees it, whatever the policy says of claims.
type LinkGrant struct {
	Key      status.Key
	Audience string
}

// Authenticate returns who sends a request, by its bearer token. A request without one is an ErrMissing.
func Authenticate(r *http.Request, verify func(context.Context, string) (*Principal, error)) (*Principal, error) {
	token, ok, err := Bearer(r)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, ErrMissing
	}
	return verify(r.Context(), token)
}

// Bearer returns the token of the request's Authorization header (RFC 6750, section 2.1). ok is false when there is
// no such header, or one of another scheme. Two headers, or one that breaks the syntax, are an ErrUnauthenticated:
// what one hop would read differently from the next is not read at all.
func Bearer(r *http.Request) (token string, ok bool, err error) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", false, nil
	}
	if len(values) > 1 {
		return "", false, refusal("%d Authorization headers", len(values))
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if scheme == "" {
		return "", false, refusal("the Authorization header names no scheme")
	}
	if !strings.EqualFold(scheme, "Bearer") {
		return "", false, nil
	}
	token = strings.TrimLeft(token, " ")
	if !consistsOf(token, "-._~+/=") {
		return "", false, refusal("the Authorization header is not 'Bearer' and one token")
	}
	return token, true, nil
}

// consistsOf reports whether s is not empty and has only ASCII letters, digits and the bytes of others.
func consistsOf(s, others string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte(others, c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

// refusal returns an ErrUnauthenticated with its cause. No argument may come from a token, except a bounded issuer or
// key id.
func refusal(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnauthenticated}, args...)...)
}
