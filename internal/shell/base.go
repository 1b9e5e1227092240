package shell

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/telemetry"
)

// Given are parts that a caller in this process hands in, instead of having
// them made from the configuration. The zero value is what programs use.
type Given struct {
	Listener net.Listener   // the public listener; nil: the address is bound
	Policy   *policy.Policy // nil: the file is read
	Logger   *slog.Logger   // nil: one to standard error
}

// BaseConfig is the part of a program's configuration that makes a Base.
type BaseConfig struct {
	Log                           Log
	Auth                          Auth
	Policy, Listen, PrivateListen string
}

// Base is what both programs stand on.
type Base struct {
	Log      *slog.Logger
	Metrics  *prometheus.Registry
	Verifier *auth.Verifier
	Public   net.Listener
	Private  net.Listener

	policy *policy.Policy
}

// NewBase makes a Base and binds its ports. On an error it has released what it
// took, the given listener included.
func NewBase(ctx context.Context, c BaseConfig, g Given) (_ *Base, err error) {
	b := &Base{Log: g.Logger, Metrics: telemetry.NewRegistry(), Public: g.Listener, policy: g.Policy}
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
	if b.policy == nil {
		if b.policy, err = Policy(c.Policy); err != nil {
			return nil, err
		}
	}
	b.policy = b.policy.WithLogger(b.Log)
	if b.Verifier, err = c.Auth.Verifier(b.Log, b.Metrics); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if b.Public == nil {
		if b.Public, err = Listen(ctx, "listen", c.Listen); err != nil {
			return nil, err
		}
	}
	b.Private, err = Listen(ctx, "private_listen", c.PrivateListen)
	return b, err
}

// Policy is the policy in force.
func (b *Base) Policy() *policy.Policy { return b.policy }

// Addr is the address of the public listener.
func (b *Base) Addr() net.Addr { return b.Public.Addr() }

// PrivateAddr is the address of the private listener.
func (b *Base) PrivateAddr() net.Addr { return b.Private.Addr() }

// Release closes the listeners. Those that were served from are closed already.
func (b *Base) Release() {
	for _, l := range []net.Listener{b.Public, b.Private} {
		if l == nil {
			continue
		}
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			b.Log.Warn("closing a listener", "error", err)
		}
	}
}
