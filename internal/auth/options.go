package auth

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// Options configure a Verifier. Only Issuers is required, or NoIssuers.
type Options struct {
	// Issuers are the identity providers whose tokens are accepted.
	Issuers []Issuer

	// NoIssuers allows Issuers to be empty, where other credentials than tokens are accepted: every token is refused then.
	// It has to be said, since a list that was lost on the way is empty, too.
	NoIssuers bool

	// ClockSkew is by how much this clock and an issuer's may differ: a token is accepted that much before its nbf
	// and after its exp. Default 30 s, at most 60 s.
	ClockSkew time.Duration

	// KeyRefresh is the age at which an issuer's keys are fetched again, and so the longest time for which a
	// withdrawn key still works. Default 5 min, at least 30 s.
	KeyRefresh time.Duration

	// KeyGrace is how long the keys of the last successful fetch work when no later fetch succeeds.
	// Default 24 h, at least KeyRefresh.
	KeyGrace time.Duration

	// CacheSize is how many verified tokens are remembered, so that a token's signature is checked once and all
	// requests and sockets with one token share one Principal. Default 16384.
	CacheSize int

	// HTTPClient fetches discovery documents and keys. Its redirect policy is replaced by one that stays on the
	// host. Default: a client with http.DefaultTransport.
	HTTPClient *http.Client

	// Now is the clock. Default time.Now.
	Now func() time.Time

	// Metrics is where the counters are registered. Default: nowhere.
	Metrics prometheus.Registerer

	// Logger is told when an issuer's keys change and when they cannot be fetched. Default: nobody is.
	Logger *slog.Logger
}

// An Issuer is an identity provider whose tokens are accepted.
type Issuer struct {
	// URL is the issuer's identifier. A token's iss must equal it to the last byte, trailing slash included.
	// It must be https, or http on a loopback host.
	URL string

	// Audiences are the identifiers of this service: a token's aud must name one of them. At least one.
	Audiences []string

	// Algorithms may sign the issuer's tokens: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA.
	// Default RS256 and ES256.
	Algorithms []string

	// JWKSURL is where the issuer's keys are. Default: as the issuer's discovery document says
	// (OpenID Connect Discovery 1.0). It must be https, or http on a loopback host.
	JWKSURL string

	// KeyIssuers are what the "issuer" member that Entra adds to its keys may say, once the token's tid has taken the
	// place of a "{tenantid}" in it. Keys without that member are not affected. Default: URL; if that is one of the two
	// issuers of an Entra tenant, both, since they share their keys and a key names one of the two.
	KeyIssuers []string

	// RequireOneOf names claims of which a token must have one that is not empty. With Entra, "scp" and "roles" tell an
	// access token from an ID token for the same audience. Default: none is required.
	RequireOneOf []string

	// OptionalNotBefore accepts tokens without nbf, which several providers leave out. Default: nbf is required.
	OptionalNotBefore bool
}

// Entra returns the two issuers of a Microsoft Entra tenant in the global cloud, because which version of token arrives depends on how
// the API is registered and not on us. The tenant must be its GUID, since that is what tokens carry; audiences are the
// API's client id (version 2, and version 1 if so registered) and its application id URI (version 1).
func Entra(tenant string, audiences ...string) []Issuer {
	url1, url2 := entraURLs(tenant)
	v1 := Issuer{
		URL:          url1,
		JWKSURL:      "https://login.microsoftonline.com/" + tenant + "/discovery/keys",
		Audiences:    audiences,
		Algorithms:   []string{"RS256"},
		RequireOneOf: []string{"scp", "roles"},
	}
	v2 := v1
	v2.URL = url2
	v2.JWKSURL = "https://login.microsoftonline.com/" + tenant + "/discovery/v2.0/keys"
	return []Issuer{v1, v2}
}

// entraURLs are the issuers of the version 1 and the version 2 tokens of a tenant.
func entraURLs(tenant string) (v1, v2 string) {
	return "https://sts.windows.net/" + tenant + "/", "https://login.microsoftonline.com/" + tenant + "/v2.0"
}

// keyIssuers are the issuers that the keys of an issuer may name, by its URL.
func keyIssuers(url string) []string {
	for segment := range strings.SplitSeq(url, "/") { // one of them is the tenant
		if v1, v2 := entraURLs(segment); segment != "" && (url == v1 || url == v2) {
			return []string{v1, v2}
		}
	}
	return []string{url}
}

// algorithms are all that can be configured. Symmetric ones and "none" have no place where keys are public.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{
		jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
		jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
	}
}

// withDefaults returns the options with every default filled in and nothing shared with the caller, or all that is wrong with them.
func (o Options) withDefaults() (Options, error) {
	var wrong []error
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }

	duration := func(name string, d *time.Duration, otherwise, least, most time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
		if *d < least || *d > most {
			complain("%s: %v is not between %v and %v", name, *d, least, most)
		}
	}
	const year = 365 * 24 * time.Hour
	duration("ClockSkew", &o.ClockSkew, 30*time.Second, 0, 60*time.Second)
	duration("KeyRefresh", &o.KeyRefresh, 5*time.Minute, 30*time.Second, year)
	duration("KeyGrace", &o.KeyGrace, max(24*time.Hour, o.KeyRefresh), o.KeyRefresh, year)
	if o.CacheSize == 0 {
		o.CacheSize = 16384
	}
	if o.CacheSize < 0 {
		complain("CacheSize: %d is negative", o.CacheSize)
	}
	if o.HTTPClient == nil {
		o.HTTPClient = &http.Client{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}

	if len(o.Issuers) == 0 && !o.NoIssuers {
		complain("Issuers: there is none")
	}
	seen := make(map[string]bool)
	o.Issuers = slices.Clone(o.Issuers)
	for i := range o.Issuers {
		issuer, err := o.Issuers[i].withDefaults()
		if err != nil {
			complain("Issuers[%d]: %w", i, err)
		}
		if seen[issuer.URL] {
			complain("Issuers[%d]: URL %q is there twice", i, issuer.URL)
		}
		seen[issuer.URL] = true
		o.Issuers[i] = issuer
	}
	return o, errors.Join(wrong...)
}

func (is Issuer) withDefaults() (Issuer, error) {
	var wrong []error
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }

	if err := checkIssuer(is.URL); err != nil {
		complain("URL: %w", err)
	}
	if is.JWKSURL != "" {
		if err := checkEndpoint(is.JWKSURL, true); err != nil {
			complain("JWKSURL: %w", err)
		}
	}

	is.Audiences = slices.Clone(is.Audiences)
	if len(is.Audiences) == 0 {
		complain("Audiences: there is none")
	}
	if slices.Contains(is.Audiences, "") {
		complain("Audiences: one is empty")
	}

	is.Algorithms = slices.Clone(is.Algorithms)
	if len(is.Algorithms) == 0 {
		is.Algorithms = []string{string(jose.RS256), string(jose.ES256)}
	}
	for _, name := range is.Algorithms {
		if err := checkAlgorithm(name); err != nil {
			complain("Algorithms: %q is %w", name, err)
		}
	}

	is.KeyIssuers = slices.Clone(is.KeyIssuers)
	if len(is.KeyIssuers) == 0 {
		is.KeyIssuers = keyIssuers(is.URL)
	}
	is.RequireOneOf = slices.Clone(is.RequireOneOf)
	return is, errors.Join(wrong...)
}

// checkIssuer says what is wrong with the URL of an issuer.
func checkIssuer(raw string) error {
	if err := checkEndpoint(raw, true); err != nil {
		return err
	}
	if strings.ContainsAny(raw, "?#") {
		return errors.New("an issuer has no query and no fragment")
	}
	return nil
}

func checkAlgorithm(name string) error {
	if !slices.Contains(algorithms(), jose.SignatureAlgorithm(name)) {
		return fmt.Errorf("not one of %v", algorithms())
	}
	return nil
}

// checkEndpoint says what is wrong with fetching keys from a URL. plain allows http, but to this machine only.
func checkEndpoint(raw string, plain bool) error {
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("not a URL") // the parser's error repeats its input, which may hold a password
	}
	switch {
	case u.Host == "":
		return errors.New("not an absolute URL")
	case u.User != nil:
		return errors.New("holds credentials")
	case u.Scheme == "https", plain && u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	default:
		return errors.New("neither https nor http on a loopback host")
	}
}

func loopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.IsLoopback()
}
