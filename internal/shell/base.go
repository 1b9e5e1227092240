package shell

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/telemetry"
)

// Given are parts that a caller in this process hands in, instead of having
// them made from the configuration. The zero value is what programs use.
type Given struct {
	Listener net.Listener   // the public listener; nil: the address is bound
	Policy   *policy.Policy // nil: the file is read, again when it changes
	Logger   *slog.Logger   // nil: one to standard error
}

// BaseConfig is the part of a program's configuration that makes a Base.
type BaseConfig struct {
	Log                           Log
	Auth                          Auth
	Policy, Listen, PrivateListen string
	TLS                           TLS
	PrivateTLS                    KeyPair
	TrustedProxies                []string
	ProxyHeaders                  string
}

// Validate reports every mistake, each with its key.
func (c BaseConfig) Validate() error {
	_, err := NewProxies(c.TrustedProxies, c.ProxyHeaders)
	errs := []error{
		err, plainly(c.Listen, c.TLS), c.TLS.pair().Validate("tls"), c.PrivateTLS.Validate("private_tls"), c.Auth.Validate(), c.Log.Validate(),
	}
	if c.Policy == "" {
		errs = append(errs, errors.New("policy: required: the path of the policy file"))
	}
	return errors.Join(errs...)
}

// Check reads every file that is named and reports every mistake in them.
func (c BaseConfig) Check() error {
	log := slog.New(slog.DiscardHandler)
	_, err := c.load(NewFiles(log, nil), log, c.Policy != "", nil)
	return err
}

// loaded are the files of a BaseConfig; nil: there is none.
type loaded struct {
	policy             *Loaded[*policy.Policy]
	public, privateTLS *Loaded[*tls.Certificate]
	apiKeys            *auth.APIKeys
	issuers            []auth.Issuer // with those that no file has
}

// load reads them all, so that every mistake in them is told at once.
func (c BaseConfig) load(f *Files, log *slog.Logger, withPolicy bool, refused *auth.Refusals) (l loaded, err error) {
	var errs [5]error
	if withPolicy {
		l.policy, errs[0] = LoadFile(f, "policy", c.Policy, func(text []byte) (*policy.Policy, error) {
			p, err := policy.Parse(text)
			if err != nil {
				return nil, policyError{err}
			}
			return p.WithLogger(log), nil
		})
	}
	if pair := c.TLS.pair(); pair.Given() {
		l.public, errs[1] = LoadPair(f, "tls", pair)
	}
	if c.PrivateTLS.Given() {
		l.privateTLS, errs[2] = LoadPair(f, "private_tls", c.PrivateTLS)
	}
	if c.Auth.APIKeys != "" {
		l.apiKeys, errs[3] = LoadAPIKeys(f, c.Auth.APIKeys, auth.APIKeyOptions{Refusals: refused})
	}
	l.issuers, errs[4] = c.Auth.all()
	return l, errors.Join(errs[:]...)
}

// Base is what both programs stand on.
type Base struct {
	Log      *slog.Logger
	Metrics  *prometheus.Registry
	Files    *Files
	Verifier *auth.Verifier
	APIKeys  *auth.APIKeys  // nil: there are none
	Refusals *auth.Refusals // counts credentials that are no tokens
	Public   net.Listener
	Private  net.Listener

	policy  *Loaded[*policy.Policy]
	proxies *Proxies
	again   chan os.Signal // SIGHUP, which may come before Run
}

// NewBase makes a Base and binds its ports. On an error it has released what it
// took, the given listener included.
func NewBase(ctx context.Context, c BaseConfig, g Given) (_ *Base, err error) {
	b := &Base{Log: g.Logger, Metrics: telemetry.NewRegistry(), Public: g.Listener, again: make(chan os.Signal, 1)}
	defer func() {
		if err != nil {
			b.Release()
		}
	}()
	if b.Log == nil {
		if b.Log, err = telemetry.NewLogger(os.Stderr, c.Log.Level, c.Log.Format); err != nil {
			return nil, err
		}
	}
	if b.proxies, err = NewProxies(c.TrustedProxies, c.ProxyHeaders); err != nil {
		return nil, err
	}
	b.Files, b.Refusals = NewFiles(b.Log, b.Metrics), auth.NewRefusals(b.Metrics)
	files, err := c.load(b.Files, b.Log, g.Policy == nil, b.Refusals)
	if err != nil {
		return nil, err
	}
	if b.Files.Any() { // else SIGHUP does what it always does: a program on a terminal ends with it
		signal.Notify(b.again, syscall.SIGHUP)
	}
	b.APIKeys = files.apiKeys
	if b.policy = files.policy; g.Policy != nil {
		b.policy = Fixed(g.Policy.WithLogger(b.Log))
	}
	o := c.Auth.options(files.issuers)
	o.Logger, o.Metrics = b.Log, b.Metrics
	if b.Verifier, err = auth.New(o); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	return b, b.listen(ctx, c, files)
}

// listen binds the ports that were not given.
func (b *Base) listen(ctx context.Context, c BaseConfig, files loaded) (err error) {
	if b.Public == nil {
		if b.Public, err = Listen(ctx, "listen", c.Listen); err != nil {
			return err
		}
	}
	if files.public != nil {
		b.Public = protect(b.Public, files.public)
	}
	if b.Private, err = Listen(ctx, "private_listen", c.PrivateListen); err != nil {
		return err
	}
	if files.privateTLS != nil {
		b.Private = protect(b.Private, files.privateTLS)
	}
	return nil
}

// Run keeps what was read from files up to date until ctx ends.
func (b *Base) Run(ctx context.Context) error { return b.Files.Run(ctx, b.again) }

// Verify says whose token or API key that is.
func (b *Base) Verify(ctx context.Context, credential string) (*auth.Principal, error) {
	c := auth.Credentials{Tokens: b.Verifier, APIKeys: b.APIKeys, Refusals: b.Refusals}
	return c.Verify(ctx, credential)
}

// Policy is the policy in force: another one when its file has changed.
func (b *Base) Policy() *policy.Policy { return b.policy.Value() }

// NewPublicServer returns the server of the public listener, whose handler is told
// who has really called, as Proxies.Handler says.
func (b *Base) NewPublicServer(h http.Handler) *http.Server {
	return NewServer(b.proxies.Handler(h), b.Log)
}

// Addr is the address of the public listener.
func (b *Base) Addr() net.Addr { return b.Public.Addr() }

// PrivateAddr is the address of the private listener.
func (b *Base) PrivateAddr() net.Addr { return b.Private.Addr() }

// Release closes the listeners, of which those that were served from are closed
// already, and leaves SIGHUP to others.
func (b *Base) Release() {
	signal.Stop(b.again)
	for _, l := range []net.Listener{b.Public, b.Private} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			b.Log.Warn("closing a listener", "error", err)
		}
	}
}
