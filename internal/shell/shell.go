// Package shell is what the two programs share as programs: sections of their
// configuration, how those become parts, files that are read again when they
// change, and listeners and HTTP servers that speak TLS, know who has really
// called, and cannot be held open by a slow client.
package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/settings"
	"statusrelay/internal/telemetry"
)

// Log says what is logged, to standard error.
type Log struct {
	Level  string `koanf:"level" usage:"least level that is logged: debug, info, warn, error"`
	Format string `koanf:"format" usage:"form of the log: text or json"`
}

// Validate reports what is wrong.
func (l Log) Validate() error {
	if _, err := telemetry.NewLogger(io.Discard, l.Level, l.Format); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// Auth says whose tokens are accepted.
type Auth struct {
	Issuers           []string      `koanf:"issuers" usage:"issuers whose tokens are accepted, each exactly as in the token's iss"`
	EntraTenant       string        `koanf:"entra_tenant" usage:"Microsoft Entra tenant (GUID): accepts its version 1 and version 2 tokens"`
	IssuersFile       string        `koanf:"issuers_file" usage:"path of the file of further issuers, each with audiences, algorithms and rules of its own; read at the start only"`
	Audiences         []string      `koanf:"audiences" usage:"what the aud of a token must name, unless its issuer is from the file: this service"`
	Algorithms        []string      `koanf:"algorithms" usage:"signature algorithms of the tokens of auth.issuers, asymmetric ones only"`
	OptionalNotBefore bool          `koanf:"optional_not_before" usage:"accept tokens of auth.issuers without nbf, which several providers leave out"`
	ClockSkew         time.Duration `koanf:"clock_skew" usage:"by how much an issuer's clock may differ, at most 1m"`
	KeyGrace          time.Duration `koanf:"key_grace" usage:"how long known keys keep working while an issuer's endpoint is down"`
	APIKeys           string        `koanf:"api_keys" usage:"path of the file of API keys, which are accepted where tokens are; read again when it changes"`
}

// DefaultAuth is Auth without the parts that have no default.
func DefaultAuth() Auth {
	return Auth{Algorithms: []string{"RS256", "ES256"}, ClockSkew: 30 * time.Second, KeyGrace: 24 * time.Hour}
}

// configured are the issuers without those of the file.
func (a Auth) configured() (issuers []auth.Issuer) {
	for _, url := range a.Issuers {
		issuers = append(issuers, auth.Issuer{
			URL: url, Audiences: a.Audiences, Algorithms: a.Algorithms, OptionalNotBefore: a.OptionalNotBefore,
		})
	}
	if a.EntraTenant != "" {
		issuers = append(issuers, auth.Entra(a.EntraTenant, a.Audiences...)...)
	}
	return issuers
}

// all are the issuers with those of the file. That is no file to be read again: the
// counters of an issuer, and what fetches its keys, are there from the start.
func (a Auth) all() ([]auth.Issuer, error) {
	issuers := a.configured()
	if a.IssuersFile == "" {
		return issuers, nil
	}
	text, err := os.ReadFile(a.IssuersFile)
	if err != nil {
		return nil, fmt.Errorf("auth.issuers_file: %w", err)
	}
	further, err := auth.ParseIssuers(text, issuers)
	if err != nil {
		return nil, fmt.Errorf("auth.issuers_file %s: %w", a.IssuersFile, err)
	}
	return append(issuers, further...), nil
}

// options are those of the verifier of the issuers' tokens.
func (a Auth) options(issuers []auth.Issuer) auth.Options {
	return auth.Options{
		Issuers: issuers, NoIssuers: a.APIKeys != "", ClockSkew: a.ClockSkew, KeyGrace: a.KeyGrace,
	}
}

// TryIssuers fetches the keys of every issuer, and names those whose keys cannot be had.
func (a Auth) TryIssuers(ctx context.Context) (tried []string, err error) {
	issuers, err := a.all()
	if err != nil || len(issuers) == 0 {
		return nil, err
	}
	for _, issuer := range issuers {
		tried = append(tried, issuer.URL)
	}
	v, err := auth.New(a.options(issuers))
	if err != nil {
		return tried, fmt.Errorf("auth: %w", err)
	}
	return tried, v.Fetch(ctx)
}

// Validate reports every mistake but those in files.
func (a Auth) Validate() error {
	o := a.options(a.configured())
	switch {
	case len(o.Issuers) > 0 && len(a.Audiences) == 0:
		return errors.New("auth.audiences: required with auth.issuers and auth.entra_tenant")
	case len(o.Issuers) == 0 && a.IssuersFile == "" && a.APIKeys == "":
		return errors.New("auth.issuers: required, with auth.audiences, unless auth.entra_tenant, auth.issuers_file or auth.api_keys is set")
	}
	o.NoIssuers = true // here
	if _, err := auth.New(o); err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	return nil
}

// ServiceBus says which namespace to use.
type ServiceBus struct {
	ConnectionString settings.Secret `koanf:"connection_string" usage:"connection string of the Service Bus namespace"`
	Namespace        string          `koanf:"namespace" usage:"fully qualified namespace, used with the default Azure credential instead of a connection string"`
	Topic            string          `koanf:"topic" usage:"topic of status updates"`
}

// Reread gives the connection string that its file holds by then; it is nil where
// none came from a file.
func (s ServiceBus) Reread() func() (string, error) {
	if !s.ConnectionString.FromFile() {
		return nil
	}
	return s.ConnectionString.Current
}

// Validate reports every mistake.
func (s ServiceBus) Validate() error {
	var errs []error
	if (s.ConnectionString.Reveal() == "") == (s.Namespace == "") {
		errs = append(errs, errors.New("service_bus: exactly one is required: a connection string (STATUSRELAY_SERVICE_BUS_CONNECTION_STRING, or service_bus.connection_string_file), or service_bus.namespace"))
	}
	if secret := s.ConnectionString.Reveal(); secret != "" {
		if err := servicebus.CheckConnectionString(secret); err != nil {
			errs = append(errs, fmt.Errorf("service_bus.connection_string: %w", err))
		}
	}
	if s.Topic == "" {
		errs = append(errs, errors.New("service_bus.topic: required"))
	}
	return errors.Join(errs...)
}

// policyError tells where a policy is wrong without quoting it: conditions name
// customers.
type policyError struct{ error }

func (e policyError) Unwrap() error { return e.error }

func (e policyError) Discreet() string {
	var places []string
	if wrong, ok := errors.AsType[*policy.ParseError](e.error); ok {
		const enough = 10 // for a line of a log
		for i, m := range wrong.Mistakes {
			if i == enough {
				places = append(places, fmt.Sprintf("and %d more", len(wrong.Mistakes)-enough))
				break
			}
			places = append(places, fmt.Sprintf("line %d, column %d", m.Line, m.Column))
		}
	}
	return strings.Join(places, "; ")
}

// Listen binds a TCP address.
func Listen(ctx context.Context, field, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", field, err)
	}
	return l, nil
}

// NewServer returns a server with deadlines for everything that a client may
// delay. There is none for the answer: a stream lasts as long as its watcher,
// and whoever writes one sets a deadline for each write.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10, // a token of 16 KiB and the rest
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Serve serves until Shutdown and hides that this is how it ended.
func Serve(s *http.Server, l net.Listener) error {
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Drain waits for the requests under way. Those that have not ended when ctx
// ends are cut off, which is no failure of stopping.
func Drain(ctx context.Context, s *http.Server) error {
	err := s.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return s.Close()
	}
	return err
}

// WaitReady asks until ready returns nil, or ctx ends, whose error it returns.
func WaitReady(ctx context.Context, ready func(context.Context) error) error {
	const pause = 20 * time.Millisecond
	t := time.NewTicker(pause)
	defer t.Stop()
	for ready(ctx) != nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
	return ctx.Err()
}

// Healthcheck asks the private listener at that address whether its program is
// ready. With the path of a certificate it asks by TLS, and whoever has that one.
func Healthcheck(ctx context.Context, address, cert string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("private_listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	client, scheme := &http.Client{Timeout: 3 * time.Second}, "http"
	if cert != "" {
		config, err := onlyThis(cert)
		if err != nil {
			return fmt.Errorf("private_tls.cert: %w", err)
		}
		client.Transport, scheme = &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, "https"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("private_listen %s: %w", address, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		reason, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		return fmt.Errorf("not ready: %s", bytes.TrimSpace(reason))
	}
	return nil
}
