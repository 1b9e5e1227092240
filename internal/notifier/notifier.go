// Package notifier is the publishing side: it takes updates in over HTTP, or reads
// them from a function app that does not publish by itself, stamps what the broker
// can use (message id, session id, properties, trace) and publishes them to the topic.
//
// New binds the ports and starts nothing; Run serves until its context ends and
// then stops in order: unready, bridge no more, drain HTTP, flush what the publisher holds.
package notifier

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"statusrelay/internal/bridge/durablehttp"
	"statusrelay/internal/bridge/eventgrid"
	"statusrelay/internal/claim"
	"statusrelay/internal/documents"
	"statusrelay/internal/ingestapi"
	"statusrelay/internal/limit"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
	"statusrelay/internal/telemetry"
	"statusrelay/internal/wire"
)

// Options are what a caller in this process may hand in beside the
// configuration. The zero value is what cmd/notifier uses.
type Options = shell.Given

// Notifier is one replica.
type Notifier struct {
	*shell.Base
	config    Config
	publisher *servicebus.Publisher
	store     *redisstore.Store   // nil: without Redis
	bridge    *durablehttp.Bridge // nil: there is none
	public    *http.Server
	admin     *http.Server
	stopping  atomic.Bool
}

// New builds a replica from a valid configuration and binds its ports.
func New(ctx context.Context, c Config, o Options) (*Notifier, error) {
	base, err := shell.NewBase(ctx, c.Base(), o)
	if err != nil {
		return nil, err
	}
	n := &Notifier{Base: base, config: c}
	if err := n.connect(); err != nil {
		n.release()
		return nil, err
	}
	n.publisher, err = servicebus.NewPublisher(servicebus.Options{
		ConnectionString: c.ServiceBus.ConnectionString.Reveal(), Reread: c.ServiceBus.Reread(), Namespace: c.ServiceBus.Namespace,
		Topic: c.ServiceBus.Topic, Logger: n.Log, Metrics: n.Metrics,
	})
	if err != nil {
		n.release()
		return nil, fmt.Errorf("service bus: %w", err)
	}
	if n.bridge, err = n.newBridge(); err != nil {
		n.release()
		return nil, err
	}
	door := limit.NewDoor(limit.PerSecond(c.Limits.RequestsPerAddress), limit.NewFailures(limit.PerSecond(c.Limits.FailuresPerAddress)))
	room := limit.NewRoom(c.MaxInFlight, n.Metrics)
	ingest := ingestapi.Options{
		Verify: n.Verify, Policy: n.Policy, Publish: n.publish, RetryAfter: n.publisher.RetryAfter,
		DefaultHub: c.DefaultHub, MaxBodyBytes: c.MaxBodyBytes, MaxUpdates: c.MaxUpdates, Rate: c.Rate,
		Door: door, Room: room, Logger: n.Log, Metrics: n.Metrics,
	}
	if ingest.Claims, err = n.claims(); err != nil {
		n.release()
		return nil, err
	}
	if c.Stamp {
		ingest.Stamp = n.store.Stamp
	}
	mux := http.NewServeMux()
	mux.Handle("/", ingestapi.New(ingest))
	hubs, err := c.EventGrid.hubs()
	if err != nil {
		n.release()
		return nil, err
	}
	events := eventgrid.Options{
		Verify: n.Verify, Policy: n.Policy, Publish: n.publishEvents, Hubs: hubs, Hold: c.EventGrid.Hold,
		MaxBodyBytes: c.EventGrid.MaxBodyBytes, MaxEvents: c.EventGrid.MaxEvents, Rate: c.Rate,
		Door: door, Room: room, Logger: n.Log, Metrics: n.Metrics,
	}
	if n.bridge != nil {
		events.Look, events.LookHub = n.look, n.bridge.Hub()
	}
	mux.Handle("/v1/eventgrid", eventgrid.New(events))
	documents.Handle(mux)
	n.public = n.NewPublicServer(mux)
	n.admin = shell.NewServer(telemetry.Private(n.Metrics, n.ready), n.Log)
	return n, nil
}

// connect makes the client of Redis, where there is one.
func (n *Notifier) connect() error {
	if len(n.config.Redis.Addrs) == 0 {
		return nil
	}
	o, err := n.config.Redis.Options(n.Files, n.Log, n.Metrics)
	if err != nil {
		return err
	}
	if n.store, err = redisstore.New(o); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	return nil
}

// claims makes what knows which events were published: all replicas together where
// there is Redis, else each by itself. Nil: nobody knows.
func (n *Notifier) claims() (*claim.Ledger, error) {
	o := claim.Options{TTL: n.config.Idempotency.TTL, Logger: n.Log, Metrics: n.Metrics}
	if o.TTL == 0 {
		return nil, nil
	}
	if o.Memory = claim.NewLocal(nil); n.store != nil {
		o.Memory = n.store
	}
	return claim.NewLedger(o)
}

// release gives back what New has taken.
func (n *Notifier) release() {
	if n.store != nil {
		if err := n.store.Close(); err != nil {
			n.Log.Warn("closing redis", "error", err)
		}
	}
	n.Release()
}

// Publish publishes one update of this process.
func (n *Notifier) Publish(ctx context.Context, u *status.Update) error {
	return Send(ctx, n.publisher, []wire.Message{{Update: *u}})[0]
}

func (n *Notifier) publish(ctx context.Context, messages []ingestapi.Message) []error {
	now := time.Now()
	out := make([]servicebus.Outgoing, len(messages))
	for i := range messages {
		out[i] = outgoing(&messages[i].Message, now)
		out[i].ID = messages[i].MessageID
	}
	return n.publisher.Publish(ctx, out)
}

// Send encodes messages in the form that statusrelay itself publishes and hands
// them to the broker; it returns an error for each, nil when the broker has it.
func Send(ctx context.Context, p *servicebus.Publisher, messages []wire.Message) []error {
	now := time.Now()
	out := make([]servicebus.Outgoing, len(messages))
	for i := range messages {
		out[i] = outgoing(&messages[i], now)
	}
	return p.Publish(ctx, out)
}

func outgoing(m *wire.Message, now time.Time) servicebus.Outgoing {
	return servicebus.Outgoing{Update: &m.Update, Body: wire.Encode(*m, now), Traceparent: m.Traceparent, Tracestate: m.Tracestate}
}

// publishEvents is publish for what Event Grid has brought, of which some is for
// later.
func (n *Notifier) publishEvents(ctx context.Context, messages []eventgrid.Message) []error {
	now := time.Now()
	out := make([]servicebus.Outgoing, len(messages))
	for i := range messages {
		out[i] = outgoing(&messages[i].Message, now)
		out[i].At = messages[i].At
	}
	return n.publisher.Publish(ctx, out)
}

// Run serves until ctx ends or a part fails.
func (n *Notifier) Run(ctx context.Context) error {
	defer n.release()
	live, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, live := errgroup.WithContext(live)
	parts.Go(func() error { return n.Base.Run(live) })
	parts.Go(func() error { return n.Verifier.Run(live) })
	parts.Go(func() error { return shell.Serve(n.public, n.Public) })
	parts.Go(func() error { return shell.Serve(n.admin, n.Private) })
	bridging, stopBridging := context.WithCancel(live)
	defer stopBridging()
	bridged := make(chan struct{})
	parts.Go(func() error {
		defer close(bridged)
		if n.bridge == nil {
			return nil
		}
		return n.bridge.Run(bridging)
	})
	n.Log.Info("notifier serves", "listen", n.Addr().String(), "private", n.PrivateAddr().String(), "version", telemetry.Version())
	select {
	case <-ctx.Done():
	case <-live.Done(): // a part failed
	}
	n.stopping.Store(true)
	stopBridging()
	<-bridged // it publishes no more
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
