// Package notifier is the publishing side: it takes updates in over HTTP,
// stamps what the broker can use (message id, session id, properties, trace)
// and publishes them to the topic.
//
// New binds the ports and starts nothing; Run serves until its context ends and
// then stops in order: unready, drain HTTP, flush what the publisher holds.
package notifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"statusrelay/internal/auth"
	"statusrelay/internal/ingestapi"
	"statusrelay/internal/policy"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
	"statusrelay/internal/telemetry"
	"statusrelay/internal/wire"
)

// Options are what a caller in this process may hand in beside the
// configuration. The zero value is what cmd/notifier uses.
type Options struct {
	Listener net.Listener   // the public listener; nil: Config.Listen is bound
	Policy   *policy.Policy // nil: Config.Policy is read
	Logger   *slog.Logger   // nil: as Config.Log says, to standard error
}

// Notifier is one replica.
type Notifier struct {
	config    Config
	log       *slog.Logger
	listener  net.Listener // public
	private   net.Listener
	verifier  *auth.Verifier
	publisher *servicebus.Publisher
	public    *http.Server
	admin     *http.Server
	stopping  atomic.Bool
}

// New builds a replica from a valid configuration and binds its ports.
func New(ctx context.Context, c Config, o Options) (_ *Notifier, err error) {
	n := &Notifier{config: c, log: o.Logger, listener: o.Listener}
	defer func() {
		if err != nil {
			n.release()
		}
	}()
	if n.log == nil {
		if n.log, err = telemetry.NewLogger(os.Stderr, c.Log.Level, c.Log.Format); err != nil {
			return nil, err
		}
	}
	rules := o.Policy
	if rules == nil {
		if rules, err = shell.Policy(c.Policy); err != nil {
			return nil, err
		}
	}
	rules = rules.WithLogger(n.log)
	metrics := telemetry.NewRegistry()
	if n.verifier, err = c.Auth.Verifier(n.log, metrics); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	n.publisher, err = servicebus.NewPublisher(servicebus.Options{
		ConnectionString: c.ServiceBus.ConnectionString.Reveal(), Namespace: c.ServiceBus.Namespace,
		Topic: c.ServiceBus.Topic, Logger: n.log, Metrics: metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("service bus: %w", err)
	}
	if n.listener == nil {
		if n.listener, err = shell.Listen(ctx, "listen", c.Listen); err != nil {
			return nil, err
		}
	}
	if n.private, err = shell.Listen(ctx, "private_listen", c.PrivateListen); err != nil {
		return nil, err
	}
	n.public = shell.NewServer(ingestapi.New(ingestapi.Options{
		Verify: n.verifier.Verify, Policy: func() *policy.Policy { return rules }, Publish: n.publish,
		DefaultHub: c.DefaultHub, MaxBodyBytes: c.MaxBodyBytes, MaxUpdates: c.MaxUpdates, Rate: c.Rate,
		Logger: n.log, Metrics: metrics,
	}), n.log)
	n.admin = shell.NewServer(telemetry.Private(metrics, n.ready), n.log)
	return n, nil
}

// Addr is the address of the public listener.
func (n *Notifier) Addr() net.Addr { return n.listener.Addr() }

// PrivateAddr is the address of the private listener.
func (n *Notifier) PrivateAddr() net.Addr { return n.private.Addr() }

// Publish publishes one update of this process.
func (n *Notifier) Publish(ctx context.Context, u *status.Update) error {
	return n.publish(ctx, []wire.Message{{Update: *u}})[0]
}

func (n *Notifier) publish(ctx context.Context, messages []wire.Message) []error {
	return Send(ctx, n.publisher, messages)
}

// Send encodes messages in the form that statusrelay itself publishes and hands
// them to the broker; it returns an error for each, nil when the broker has it.
func Send(ctx context.Context, p *servicebus.Publisher, messages []wire.Message) []error {
	now := time.Now()
	out := make([]servicebus.Outgoing, len(messages))
	for i := range messages {
		m := &messages[i]
		out[i] = servicebus.Outgoing{Update: &m.Update, Body: wire.Encode(*m, now), Traceparent: m.Traceparent}
	}
	return p.Publish(ctx, out)
}

// Run serves until ctx ends or a part fails.
func (n *Notifier) Run(ctx context.Context) error {
	defer n.release()
	live, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, live := errgroup.WithContext(live)
	parts.Go(func() error { return n.verifier.Run(live) })
	parts.Go(func() error { return shell.Serve(n.public, n.listener) })
	parts.Go(func() error { return shell.Serve(n.admin, n.private) })
	n.log.Info("notifier serves", "listen", n.Addr().String(), "private", n.PrivateAddr().String(), "version", telemetry.Version())
	select {
	case <-ctx.Done():
	case <-live.Done(): // a part failed
	}
	n.stopping.Store(true)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.config.DrainTimeout)
	defer cancel()
	err := errors.Join(
		shell.Drain(drain, n.public),
		n.publisher.Close(drain),
		shell.Drain(drain, n.admin),
	)
	stop()
	return errors.Join(parts.Wait(), err)
}

// ready says why this replica should get no requests, or nil. Asking makes the
// connection to the broker when there is none: a replica that gets no requests
// until it is ready would otherwise never be.
func (n *Notifier) ready(ctx context.Context) error {
	if n.stopping.Load() {
		return errors.New("stopping")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := n.publisher.Connect(ctx); err != nil {
		return errors.New("the service bus topic cannot be reached")
	}
	return nil
}

// WaitReady returns when the replica is ready, or the error of ctx when that
// ends first.
func (n *Notifier) WaitReady(ctx context.Context) error { return shell.WaitReady(ctx, n.ready) }

func (n *Notifier) release() {
	for _, l := range []net.Listener{n.listener, n.private} {
		if l != nil {
			_ = l.Close() // closed by its server, if that ran
		}
	}
}
