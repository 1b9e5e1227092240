package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"statusrelay/internal/status"
)

const (
	fetchTimeout  = 5 * time.Second // for everything that one fetch of keys needs
	maxResponse   = 1 << 20         // bytes, of a key set or a discovery document
	maxKeys       = 50
	maxKeyID      = 256       // bytes
	minRSA        = 2048      // bits; more than 16384 are refused by go-jose
	discoveryLife = time.Hour // how long the answer to "where are your keys" is believed

	// A token of an unknown key makes us look for new keys, but not within this time of the last such look:
	// at most two in 30 s, and a new key is found within half of that.
	unknownPause = 15 * time.Second
	// After a fetch that failed the next one waits, less long while there is no key to work with.
	failurePause = 15 * time.Second
	emptyPause   = 5 * time.Second
)

// A key is a public key of an issuer. It keeps its identity from fetch to fetch for as long as the issuer publishes it.
type key struct {
	id     string
	alg    string // what it is for; any that fits when empty
	issuer string // Entra's addition to RFC 7517
	public any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
	print  string // RFC 7638 thumbprint
	source *source

	retired atomic.Bool // the issuer no longer publishes it
}

// fits reports whether signatures of an algorithm can be the key's. Nothing fits a private or symmetric key that an issuer
// publishes by mistake.
func (k *key) fits(alg string) bool {
	if k.alg != "" && k.alg != alg {
		return false
	}
	switch public := k.public.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		switch public.Curve {
		case elliptic.P256():
			return alg == string(jose.ES256)
		case elliptic.P384():
			return alg == string(jose.ES384)
		case elliptic.P521():
			return alg == string(jose.ES512)
		}
	case ed25519.PublicKey:
		return alg == string(jose.EdDSA)
	}
	return false
}

// A keySet is what is known of an issuer's keys at one moment. Immutable, but for the keys' retirement.
type keySet struct {
	keys    []*key
	fetched time.Time // when the fetch that found them began; zero: there was none yet
	tried   time.Time // when the last fetch began
	probed  time.Time // when the last fetch on account of an unknown key began
	failure error     // why the last fetch found nothing; nil if it did
}

// A source is an issuer's keys: fetched when needed, by one at a time, whoever else is waiting for them.
type source struct {
	Issuer
	refresh time.Duration
	grace   time.Duration
	client  *http.Client
	now     func() time.Time
	log     *slog.Logger
	fetches [2]prometheus.Counter // failed, succeeded

	set    atomic.Pointer[keySet]
	flight singleflight.Group

	// Owned by the flight.
	discovered string // where the discovery document says the keys are
	learned    time.Time
}

// usable reports whether the set's keys may verify anything.
func (s *source) usable(set *keySet, now time.Time) bool {
	return !set.fetched.IsZero() && now.Sub(set.fetched) < s.grace
}

// due returns when keys of the given age are to be fetched again.
func (s *source) due(set *keySet, now time.Time, age time.Duration) time.Time {
	switch {
	case set.failure == nil:
		return set.fetched.Add(age)
	case s.usable(set, now):
		return set.tried.Add(failurePause)
	default:
		return set.tried.Add(emptyPause)
	}
}

// current returns keys that were the issuer's less than s.refresh ago, or, while its endpoint is down, less than s.grace ago.
// The error wraps status.ErrUnavailable.
func (s *source) current(ctx context.Context, now time.Time) (*keySet, error) {
	set := s.set.Load()
	if !now.Before(s.due(set, now, s.refresh)) {
		if set.failure != nil && s.usable(set, now) {
			s.begin(ctx, set, false) // nobody waits for an endpoint that is likely still down
		} else {
			var err error
			if set, err = s.renew(ctx, set, false); err != nil {
				return nil, err
			}
		}
	}
	if !s.usable(set, now) {
		return nil, fmt.Errorf("%w: keys of issuer %q: %w", status.ErrUnavailable, s.URL, set.failure)
	}
	return set, nil
}

// newer returns a set that may hold a key that seen does not, if it is time to look for one.
func (s *source) newer(ctx context.Context, seen *keySet, now time.Time) (*keySet, error) {
	if now.Sub(seen.probed) < unknownPause || seen.failure != nil && now.Sub(seen.tried) < failurePause {
		return seen, nil
	}
	return s.renew(ctx, seen, true)
}

// renew replaces the set, unless somebody else did since it was seen, and returns the new one. It fails only when ctx ends first.
func (s *source) renew(ctx context.Context, seen *keySet, unknown bool) (*keySet, error) {
	select {
	case result := <-s.begin(ctx, seen, unknown):
		return result.Val.(*keySet), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: waiting for keys of issuer %q: %w", status.ErrUnavailable, s.URL, ctx.Err())
	}
}

// begin starts what renew waits for. The fetch belongs to all who wait and so outlives any of them; it ends by itself
// after fetchTimeout.
func (s *source) begin(ctx context.Context, seen *keySet, unknown bool) <-chan singleflight.Result {
	return s.flight.DoChan("", func() (any, error) {
		if set := s.set.Load(); set != seen {
			return set, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()

		set := &keySet{keys: seen.keys, fetched: seen.fetched, probed: seen.probed, tried: s.now()}
		if unknown {
			set.probed = set.tried
		}
		found, ignored, err := s.fetch(ctx)
		if err != nil {
			s.fetches[0].Inc()
			s.log.WarnContext(ctx, "keys not fetched", "issuer", s.URL, "error", err, "last", seen.fetched)
			set.failure = err
		} else {
			s.fetches[1].Inc()
			set.keys, set.fetched = s.adopt(ctx, seen, found, ignored), set.tried
		}
		s.set.Store(set)
		return set, nil
	})
}

// adopt returns the keys that were found, where possible as those that were seen before, and retires the others.
func (s *source) adopt(ctx context.Context, seen *keySet, found []*key, ignored []error) []*key {
	same := func(a, b *key) bool {
		return a.id == b.id && a.alg == b.alg && a.issuer == b.issuer && a.print == b.print
	}
	changed := seen.fetched.IsZero()
	for i, k := range found {
		if at := slices.IndexFunc(seen.keys, func(old *key) bool { return same(old, k) }); at >= 0 {
			found[i] = seen.keys[at]
		} else {
			changed = true
		}
	}
	for _, k := range seen.keys {
		if !slices.Contains(found, k) {
			k.retired.Store(true)
			changed = true
		}
	}
	if changed {
		ids := make([]string, len(found))
		for i, k := range found {
			ids[i] = k.id
		}
		s.log.InfoContext(ctx, "keys changed", "issuer", s.URL, "keys", ids, "ignored", errors.Join(ignored...))
	}
	return found
}

// run keeps the keys younger than s.refresh until ctx ends.
func (s *source) run(ctx context.Context) {
	for {
		set, now := s.set.Load(), s.now()
		if wait := s.due(set, now, s.refresh/5*4).Sub(now); wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		} else if _, err := s.renew(ctx, set, false); err != nil {
			return
		}
	}
}

// fetch returns the keys that the issuer publishes and can be used, and why others cannot.
func (s *source) fetch(ctx context.Context) (keys []*key, ignored []error, err error) {
	location, err := s.locate(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("discovery: %w", err)
	}
	body, err := s.get(ctx, location)
	if err == nil {
		keys, ignored, err = s.parse(body)
	}
	if err != nil {
		s.discovered = "" // it may have moved
		return nil, nil, fmt.Errorf("key set: %w", err)
	}
	return keys, ignored, nil
}

// locate returns where the keys are: as configured, else as the issuer's discovery document says.
func (s *source) locate(ctx context.Context) (string, error) {
	if s.JWKSURL != "" {
		return s.JWKSURL, nil
	}
	if s.discovered != "" && s.now().Sub(s.learned) < discoveryLife {
		return s.discovered, nil
	}
	body, err := s.get(ctx, strings.TrimSuffix(s.URL, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return "", err
	}
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return "", err
	}
	if document.Issuer != s.URL {
		return "", fmt.Errorf("the document is that of issuer %q", document.Issuer)
	}
	issuer, err := url.Parse(s.URL)
	if err != nil {
		return "", err
	}
	// A remote issuer must not send us to this machine's own plain ports.
	if err := checkEndpoint(document.JWKSURI, loopback(issuer.Hostname())); err != nil {
		return "", fmt.Errorf("jwks_uri: %w", err)
	}
	s.discovered, s.learned = document.JWKSURI, s.now()
	return s.discovered, nil
}

func (s *source) get(ctx context.Context, location string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", location, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxResponse+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxResponse {
		return nil, fmt.Errorf("%s answered more than %d bytes", location, maxResponse)
	}
	return body, nil
}

// stayOnHost is the redirect policy for everything that is fetched.
func stayOnHost(next *http.Request, before []*http.Request) error {
	if len(before) > 3 {
		return errors.New("too many redirects")
	}
	if first := before[0].URL; next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
		return errors.New("redirected to another host")
	}
	return nil
}

// parse reads a JWK set (RFC 7517). One key that cannot be used does not spoil the others.
func (s *source) parse(body []byte) (keys []*key, ignored []error, err error) {
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &document); err != nil {
		return nil, nil, err
	}
	if document.Keys == nil {
		return nil, nil, errors.New("not a JWK set")
	}
	if len(document.Keys) > maxKeys {
		return nil, nil, fmt.Errorf("%d keys, more than %d", len(document.Keys), maxKeys)
	}
	for i, raw := range document.Keys {
		k, err := s.parseKey(raw)
		if err != nil {
			ignored = append(ignored, fmt.Errorf("keys[%d]: %w", i, err))
			continue
		}
		keys = append(keys, k)
	}
	return keys, ignored, nil
}

func (s *source) parseKey(raw json.RawMessage) (*key, error) {
	var members map[string]*json.RawMessage // by value it would be encoded as bytes
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, err
	}
	// Certificates prove nothing here, and one that this machine cannot parse must not cost us its key.
	for _, name := range []string{"x5c", "x5u", "x5t", "x5t#S256"} {
		delete(members, name)
	}
	bare, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	var parsed jose.JSONWebKey
	if err := parsed.UnmarshalJSON(bare); err != nil {
		return nil, err
	}
	var more struct {
		Issuer string   `json:"issuer"`
		Ops    []string `json:"key_ops"`
	}
	if err := json.Unmarshal(bare, &more); err != nil {
		return nil, err
	}
	switch {
	case parsed.Use != "" && parsed.Use != "sig", more.Ops != nil && !slices.Contains(more.Ops, "verify"):
		return nil, errors.New("not for signatures")
	case len(parsed.KeyID) > maxKeyID:
		return nil, fmt.Errorf("key id of more than %d bytes", maxKeyID)
	}
	if public, ok := parsed.Key.(*rsa.PublicKey); ok {
		if bits := public.N.BitLen(); bits < minRSA {
			return nil, fmt.Errorf("RSA key of %d bits, less than %d", bits, minRSA)
		}
	}
	k := &key{id: parsed.KeyID, alg: parsed.Algorithm, issuer: more.Issuer, public: parsed.Key, source: s}
	if !slices.ContainsFunc(s.Algorithms, k.fits) {
		return nil, errors.New("fits none of the configured algorithms")
	}
	thumbprint, err := parsed.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	k.print = string(thumbprint)
	return k, nil
}
