package auth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"unique"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"statusrelay/internal/status"
)

// MaxToken is the size in bytes above which a token is refused unread. Entra's stay below a few KiB, as do proxies' limits for a header.
const MaxToken = 16 << 10

// A Verifier verifies tokens. Its methods may be called by several goroutines at once.
type Verifier struct {
	sources map[string]*source // by issuer
	skew    time.Duration
	now     func() time.Time
	known   *lru.Cache[[sha256.Size]byte, verified] // by hash of the token, which is not kept itself
	results struct{ remembered, verified, expired, refused, unavailable prometheus.Counter }
}

// verified is what is remembered of a token: for as long as it has not expired and its issuer publishes the key.
type verified struct {
	principal *Principal
	key       *key
}

// New returns a Verifier, or an error that names every mistake in the options. It starts nothing and asks nobody:
// keys are fetched when a token first needs them, or by Run.
func New(o Options) (*Verifier, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("auth options: %w", err)
	}
	known, err := lru.New[[sha256.Size]byte, verified](o.CacheSize)
	if err != nil {
		return nil, fmt.Errorf("auth options: CacheSize: %w", err)
	}
	v := &Verifier{sources: make(map[string]*source), skew: o.ClockSkew, now: o.Now, known: known}

	factory := promauto.With(o.Metrics)
	results := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "statusrelay_auth_tokens_total",
		Help: "Tokens by what came of them; remembered ones were verified before.",
	}, []string{"result"})
	v.results.remembered = results.WithLabelValues("remembered")
	v.results.verified = results.WithLabelValues("verified")
	v.results.expired = results.WithLabelValues("expired")
	v.results.refused = results.WithLabelValues("refused")
	v.results.unavailable = results.WithLabelValues("unavailable")
	fetches := factory.NewCounterVec(prometheus.CounterOpts{
		Name: "statusrelay_auth_key_fetches_total",
		Help: "Fetches of an issuer's keys.",
	}, []string{"issuer", "result"})

	client := *o.HTTPClient
	client.CheckRedirect = stayOnHost
	for _, issuer := range o.Issuers {
		s := &source{
			Issuer: issuer, refresh: o.KeyRefresh, grace: o.KeyGrace,
			client: &client, now: o.Now, log: o.Logger,
			fetches: [2]prometheus.Counter{
				fetches.WithLabelValues(issuer.URL, "failed"), fetches.WithLabelValues(issuer.URL, "succeeded"),
			},
		}
		s.set.Store(&keySet{})
		v.sources[issuer.URL] = s
	}
	return v, nil
}

// Run fetches every issuer's keys now and then before they are due, so that no request has to wait for them. It returns nil
// when ctx ends, and not before, with or without issuers.
func (v *Verifier) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, s := range v.sources {
		running.Go(func() { s.run(ctx) })
	}
	<-ctx.Done()
	running.Wait()
	return nil
}

// Fetch fetches the keys of every issuer of which they are not at hand, and names each issuer whose keys cannot be had, in an
// error that wraps status.ErrUnavailable.
func (v *Verifier) Fetch(ctx context.Context) error {
	sources := slices.Collect(maps.Values(v.sources))
	errs := make([]error, len(sources))
	var fetching sync.WaitGroup
	for i, s := range sources {
		fetching.Go(func() { _, errs[i] = s.current(ctx, v.now()) })
	}
	fetching.Wait()
	return errors.Join(errs...)
}

// Ready is nil while the keys of any issuer are at hand, and where there is no issuer. Otherwise it names every issuer and why
// there are none, in an error that wraps status.ErrUnavailable. It asks nobody, and so makes sense while Run runs.
func (v *Verifier) Ready() error {
	var missing []error
	now := v.now()
	for _, s := range v.sources {
		set := s.set.Load()
		if s.usable(set, now) {
			return nil
		}
		cause := set.failure
		if cause == nil {
			cause = errors.New("not fetched yet")
		}
		missing = append(missing, fmt.Errorf("%w: keys of issuer %q: %w", status.ErrUnavailable, s.URL, cause))
	}
	return errors.Join(missing...)
}

// Verify returns the principal whom a token names. Every call with the same token returns the same principal while it
// is remembered.
//
// Errors wrap ErrUnauthenticated, or status.ErrUnavailable when the issuer's keys cannot be had; a token that
// merely is too old is an ErrExpired.
func (v *Verifier) Verify(ctx context.Context, token string) (*Principal, error) {
	principal, err := v.verify(ctx, token)
	switch {
	case err == nil: // counted where it is known how
	case errors.Is(err, ErrExpired):
		v.results.expired.Inc()
	case errors.Is(err, ErrUnauthenticated):
		v.results.refused.Inc()
	default:
		v.results.unavailable.Inc()
	}
	return principal, err
}

func (v *Verifier) verify(ctx context.Context, token string) (*Principal, error) {
	if len(token) > MaxToken {
		return nil, refusal("token of more than %d bytes", MaxToken)
	}
	now := v.now()
	sum := hashOf(token)
	if known, ok := v.known.Get(sum); ok {
		if known.principal.Expired(now) {
			v.known.Remove(sum)
			return nil, ErrExpired
		}
		if _, err := known.key.source.current(ctx, now); err != nil {
			return nil, err
		}
		if !known.key.retired.Load() {
			v.results.remembered.Inc()
			return known.principal, nil
		}
		v.known.Remove(sum) // and see whether another key fits
	}

	signed, claims, err := parse(token)
	if err != nil {
		return nil, err
	}
	issuer, _ := claims["iss"].(string)
	s, ok := v.sources[issuer]
	if !ok {
		if len(issuer) > maxKeyID {
			return nil, refusal("not an issuer we know")
		}
		return nil, refusal("issuer %q is not one we know", issuer)
	}
	key, err := s.keyOf(ctx, signed, now)
	if err != nil {
		return nil, err
	}
	principal, err := v.accept(s, key, claims, now)
	if err != nil {
		return nil, err
	}
	v.results.verified.Inc()
	entry := verified{principal, key}
	// Whoever verified the same token at the same time: both use the one that was first.
	if first, ok, _ := v.known.PeekOrAdd(sum, entry); ok {
		if first.key == key {
			return first.principal, nil
		}
		v.known.Add(sum, entry)
	}
	return principal, nil
}

// hashOf returns the SHA-256 of a token, read in pieces because its conversion to bytes would allocate all of it.
func hashOf(token string) (sum [sha256.Size]byte) {
	h := sha256.New()
	var piece [512]byte
	for len(token) > 0 {
		n := copy(piece[:], token)
		h.Write(piece[:n])
		token = token[n:]
	}
	h.Sum(sum[:0])
	return sum
}

// parse takes a token apart. Nothing that it returns is verified.
func parse(token string) (*jose.JSONWebSignature, map[string]any, error) {
	// The errors of the JSON and JOSE decoders quote what they read: they must not get out.
	if !consistsOf(token, "-_.") {
		return nil, nil, refusal("not a compact JWS")
	}
	signed, err := jose.ParseSignedCompact(token, algorithms())
	if err != nil {
		return nil, nil, refusal("not a compact JWS, or its algorithm is none that can be configured")
	}
	header := signed.Signatures[0].Protected
	if _, ok := header.ExtraHeaders["crit"]; ok {
		return nil, nil, refusal("the token demands extensions (crit)") // RFC 7515, section 4.1.11: we know none
	}
	if _, ok := header.ExtraHeaders["b64"]; ok {
		return nil, nil, refusal("the token demands an unencoded payload") // RFC 7797, section 7: not for a JWT
	}
	if len(header.KeyID) > maxKeyID {
		return nil, nil, refusal("key id of more than %d bytes", maxKeyID)
	}
	claims, err := decodeClaims(signed.UnsafePayloadWithoutVerification())
	if err != nil {
		return nil, nil, err
	}
	return signed, claims, nil
}

func decodeClaims(payload []byte) (map[string]any, error) {
	errSyntax := refusal("the claims are not one JSON object with different names in it")
	if !utf8.Valid(payload) {
		return nil, errSyntax
	}
	decoder := json.NewDecoder(bytes.NewReader(payload)) // refuses duplicate names, on every level
	decoder.SetNumberType(json.UnmarshalJSONNumber)
	var claims map[string]any
	if err := decoder.Decode(&claims); err != nil || claims == nil {
		return nil, errSyntax
	}
	if err := decoder.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errSyntax
	}
	compact := make(map[string]any, len(claims))
	for name, value := range claims {
		value, err := exact(value)
		if err != nil {
			return nil, err
		}
		// All tokens of an issuer have the same names in them: keep each once.
		compact[unique.Make(name).Value()] = value
	}
	return compact, nil
}

// exact replaces the numbers in a JSON value: by int64 when they are written as integers, else by float64. An integer that int64
// cannot hold is refused, because rounding would make different identifiers equal.
func exact(value any) (any, error) {
	var err error
	switch value := value.(type) {
	case json.Number:
		if integer, err := strconv.ParseInt(string(value), 10, 64); err == nil {
			return integer, nil
		}
		float, err := strconv.ParseFloat(string(value), 64)
		if err != nil || !strings.ContainsAny(string(value), ".eE") {
			return nil, refusal("a claim holds a number that is too large")
		}
		return float, nil
	case []any:
		for i := range value {
			if value[i], err = exact(value[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for name := range value {
			if value[name], err = exact(value[name]); err != nil {
				return nil, err
			}
		}
	}
	return value, nil
}

// keyOf returns the key of the issuer that signed the token.
func (s *source) keyOf(ctx context.Context, signed *jose.JSONWebSignature, now time.Time) (*key, error) {
	header := signed.Signatures[0].Protected
	if !slices.Contains(s.Algorithms, header.Algorithm) {
		return nil, refusal("algorithm %s is not configured for issuer %q", header.Algorithm, s.URL)
	}
	set, err := s.current(ctx, now)
	if err != nil {
		return nil, err
	}
	k, known := set.verify(signed)
	if !known {
		if set, err = s.newer(ctx, set, now); err != nil {
			return nil, err
		}
		k, known = set.verify(signed)
	}
	switch {
	case k != nil:
		return k, nil
	case header.KeyID == "" && len(set.keys) != 1:
		return nil, refusal("no key id, and issuer %q has %d keys", s.URL, len(set.keys))
	case !known:
		return nil, refusal("issuer %q has no key %q", s.URL, header.KeyID)
	default:
		return nil, refusal("key %q of issuer %q did not make the signature", header.KeyID, s.URL)
	}
}

// verify returns the key in the set that signed the token, or nil. known is false when a newer set may have it: when no key has
// the id that the token names, or when it names none.
func (ks *keySet) verify(signed *jose.JSONWebSignature) (signer *key, known bool) {
	header := signed.Signatures[0].Protected
	if header.KeyID == "" && len(ks.keys) != 1 {
		return nil, len(ks.keys) > 1
	}
	for _, k := range ks.keys {
		if header.KeyID != "" && k.id != header.KeyID {
			continue
		}
		known = header.KeyID != ""
		if !k.fits(header.Algorithm) {
			continue
		}
		if _, err := signed.Verify(k.public); err == nil {
			return k, true
		}
	}
	return nil, known
}

// accept returns the principal of claims that the key has signed.
func (v *Verifier) accept(s *source, k *key, claims map[string]any, now time.Time) (*Principal, error) {
	if k.issuer != "" {
		tenant, _ := claims["tid"].(string)
		if !slices.Contains(s.KeyIssuers, strings.ReplaceAll(k.issuer, "{tenantid}", tenant)) {
			return nil, refusal("key %q is not one for issuer %q", k.id, s.URL)
		}
	}
	if err := s.checkAudience(claims); err != nil {
		return nil, err
	}
	subject, _ := claims["sub"].(string)
	if subject == "" {
		return nil, refusal("no sub")
	}
	if len(s.RequireOneOf) > 0 && !slices.ContainsFunc(s.RequireOneOf, func(name string) bool { return filled(claims[name]) }) {
		return nil, refusal("none of the claims %q", s.RequireOneOf)
	}

	expires, ok := instant(claims["exp"])
	if !ok {
		return nil, refusal("no exp, or not a time")
	}
	if value, present := claims["nbf"]; present || !s.OptionalNotBefore {
		from, ok := instant(value)
		if !ok {
			return nil, refusal("no nbf, or not a time")
		}
		if now.Before(from.Add(-v.skew)) {
			return nil, refusal("the token is not valid yet")
		}
	}
	if value, present := claims["iat"]; present {
		issued, ok := instant(value)
		if !ok {
			return nil, refusal("iat is not a time")
		}
		if now.Before(issued.Add(-v.skew)) {
			return nil, refusal("the token is from the future")
		}
	}
	claims["iss"] = s.URL // the same string for all
	principal := &Principal{Issuer: s.URL, Subject: subject, Claims: claims, Expires: expires.Add(v.skew)}
	if principal.Expired(now) {
		return nil, ErrExpired
	}
	return principal, nil
}

// checkAudience wants one of the audiences in aud, which is a string or an array of strings (RFC 7519, section 4.1.3).
func (s *source) checkAudience(claims map[string]any) error {
	ours := false
	switch aud := claims["aud"].(type) {
	case string:
		ours = slices.Contains(s.Audiences, aud)
	case []any:
		for _, value := range aud {
			name, ok := value.(string)
			if !ok {
				return refusal("aud is not an array of strings")
			}
			ours = ours || slices.Contains(s.Audiences, name)
		}
	default:
		return refusal("no aud, or not a string")
	}
	if !ours {
		return refusal("the token is for somebody else (aud)")
	}
	return nil
}

// filled reports whether a claim that lists something lists anything.
func filled(claim any) bool {
	switch claim := claim.(type) {
	case string:
		return strings.TrimSpace(claim) != ""
	case []any:
		return len(claim) > 0
	}
	return false
}

// instant reads a NumericDate (RFC 7519, section 2) up to the year 9999.
func instant(claim any) (time.Time, bool) {
	const end = 253402300800
	switch seconds := claim.(type) {
	case int64:
		return time.Unix(seconds, 0).UTC(), seconds >= 0 && seconds < end
	case float64:
		return time.UnixMilli(int64(seconds * 1000)).UTC(), seconds >= 0 && seconds < end
	}
	return time.Time{}, false
}
