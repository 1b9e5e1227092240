// Package relay is the serving side: it wires the broker's subscription to the
// store and the store to readers and watchers.
//
// New binds the ports and starts nothing; Run serves until its context ends and
// then stops in order: unready, stop receiving and settle what is in hand,
// drain HTTP, close sockets, close Redis.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rs/cors"
	"golang.org/x/sync/errgroup"

	"statusrelay/internal/auth"
	"statusrelay/internal/documents"
	"statusrelay/internal/httpapi"
	"statusrelay/internal/hub"
	"statusrelay/internal/ingest"
	"statusrelay/internal/interest"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
	"statusrelay/internal/telemetry"
	"statusrelay/internal/wsapi"
)

// Options are what a caller in this process may hand in beside the
// configuration. The zero value is what cmd/relay uses.
type Options struct {
	Listener net.Listener   // the public listener; nil: Config.Listen is bound
	Policy   *policy.Policy // nil: Config.Policy is read, again when it changes
	Links    *auth.Links    // nil: Config.Links.Keys is read, again when it changes
	Pages    http.Handler   // serves what is not below /v1/; nil: nothing is there
	Logger   *slog.Logger   // nil: as Config.Log says, to standard error
}

// Relay is one replica.
type Relay struct {
	*shell.Base
	config   Config
	store    *redisstore.Store
	follower *redisstore.Follower
	hub      *hub.Hub
	lists    *hub.Lists
	interest *interest.Interest // nil: no hub is bridged
	api      *httpapi.API
	sockets  *wsapi.Server
	counter  *redisstore.Sockets // nil: nobody counts them
	receiver *servicebus.Receiver
	ingester *ingest.Ingester
	public   *http.Server
	admin    *http.Server

	stopping atomic.Bool
}

// New builds a replica from a valid configuration and binds its ports.
func New(ctx context.Context, c Config, o Options) (*Relay, error) {
	base, err := shell.NewBase(ctx, c.Base(), shell.Given{Listener: o.Listener, Policy: o.Policy, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	r := &Relay{Base: base, config: c}
	if err := r.parts(o.Links); err != nil {
		r.release()
		return nil, err
	}
	r.public = r.NewPublicServer(r.routes(o.Pages))
	r.admin = shell.NewServer(telemetry.Private(r.Metrics, r.ready), r.Log)
	return r, nil
}

// parts builds everything between the broker and the handlers.
func (r *Relay) parts(links *auth.Links) (err error) {
	c := r.config
	connect, err := c.Redis.Options(r.Files, r.Log, r.Metrics)
	if err != nil {
		return err
	}
	if r.store, err = redisstore.New(connect); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	r.receiver, err = servicebus.NewReceiver(servicebus.Options{
		ConnectionString: c.ServiceBus.ConnectionString.Reveal(), Reread: c.ServiceBus.Reread(), Namespace: c.ServiceBus.Namespace,
		Topic: c.ServiceBus.Topic, Subscription: c.Subscription, Logger: r.Log, Metrics: r.Metrics,
		DrainTimeout: c.DrainTimeout / 2, // the other half is for requests and sockets, whatever hangs here
	})
	if err != nil {
		return fmt.Errorf("service bus: %w", err)
	}
	r.ingester = ingest.New(ingest.Options{
		Store: r.store, Policy: r.Policy, DefaultHub: c.DefaultHub, Logger: r.Log, Metrics: r.Metrics,
	})
	if links == nil {
		if links, err = c.Links.load(r.Files, r.Refusals); err != nil {
			return err
		}
	}
	r.watching(links)
	return nil
}

// watching builds what tells readers.
func (r *Relay) watching(links *auth.Links) {
	c := r.config
	watching := hub.Options{
		StaleAfter: func(record *status.Record) time.Duration { return r.Policy().StaleAfter(record) },
		Logger:     r.Log, Metrics: r.Metrics,
	}
	if len(c.Bridge.Hubs) > 0 {
		r.interest = interest.New(interest.Options{Hubs: c.Bridge.Hubs, Period: c.Bridge.Interest, Logger: r.Log, Metrics: r.Metrics})
		watching.Wanted = r.interest.Opened
	}
	r.hub = hub.New(watching)
	r.lists = hub.NewLists(hub.ListOptions{Labels: c.Redis.IndexLabels, Logger: r.Log, Metrics: r.Metrics})
	r.follower = r.store.Follow(redisstore.FollowOptions{
		Offer: r.hub.Offer, Touch: r.lists.Touch,
		Gap: func() {
			r.hub.Gap()
			r.lists.Gap()
		},
	})
	source := reader.NewSource(r.hub, r.lists, r.Policy)
	tickets := auth.NewTickets(auth.TicketOptions{Store: r.store, APIKeys: r.APIKeys, Refusals: r.Refusals, Logger: r.Log})
	api := httpapi.Options{
		Verify: r.Verify, Source: source, Store: r.store, Tickets: tickets, Links: links,
		DefaultHub: c.DefaultHub, PublicURL: c.PublicURL,
		MaxWait: c.Read.MaxWait, MaxWaiting: c.Read.MaxWaiting, MaxStreams: c.Read.MaxStreams, MaxPerCaller: c.Read.MaxPerCaller,
		RetryMin: c.Read.RetryMin, RetryMax: c.Read.RetryMax, Heartbeat: c.Read.Heartbeat, WriteTimeout: c.Watch.WriteTimeout,
		FirstWait: c.Bridge.FirstWait, Interest: r.interest,
		Logger: r.Log, Metrics: r.Metrics,
	}
	sockets := wsapi.Options{
		Verify: r.Verify, Redeem: tickets.Redeem, Source: source, DefaultHub: c.DefaultHub, Origins: c.Origins,
		Compression: c.Watch.Compression, MaxSockets: c.Watch.MaxSockets, MaxWatches: c.Watch.MaxWatches,
		PingInterval: c.Watch.PingInterval, WriteTimeout: c.Watch.WriteTimeout, DrainPeriod: c.DrainTimeout,
		Logger: r.Log, Metrics: r.Metrics,
	}
	r.limited(&api, &sockets)
	r.api, r.sockets = httpapi.New(api), wsapi.New(sockets)
}

// routes is what the public listener serves.
func (r *Relay) routes(pages http.Handler) http.Handler {
	var api http.Handler = r.api
	if origins := r.config.Origins; len(origins) > 0 {
		api = cors.New(cors.Options{
			// Not AllowedOrigins, in which * stands for anything, and cases are one.
			AllowOriginFunc: func(origin string) bool { return slices.Contains(origins, origin) },
			AllowedMethods:  []string{http.MethodGet, http.MethodHead, http.MethodPost},
			AllowedHeaders:  []string{"Authorization", "Content-Type", "If-None-Match", "Prefer", "Last-Event-ID", "Traceparent"},
			ExposedHeaders:  []string{"ETag", "Location", "Retry-After", "Preference-Applied", "RateLimit", "RateLimit-Policy"},
			MaxAge:          600,
		}).Handler(api)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/watch", r.sockets)
	mux.Handle("/v1/", api)
	mux.Handle("/runtime/", api)
	documents.Handle(mux)
	if pages == nil {
		pages = api // which says that there is nothing
	}
	mux.Handle("/", pages)
	return mux
}

// Run serves until ctx ends or a part fails.
func (r *Relay) Run(ctx context.Context) error {
	defer r.release()
	// Parts live on while those before them in the order stop: only the
	// receiver hears of ctx.
	live, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, live := errgroup.WithContext(live)
	parts.Go(func() error { return r.Base.Run(live) })
	parts.Go(func() error { return r.Verifier.Run(live) })
	parts.Go(func() error { return r.follower.Run(live) })
	parts.Go(func() error { return r.hub.Run(live, r.follower, r.store) })
	parts.Go(func() error { return r.lists.Run(live, r.follower, r.store) })
	parts.Go(func() error { return r.sockets.Run(live) })
	parts.Go(func() error { return r.store.Sweep(live) })
	if r.interest != nil {
		parts.Go(func() error { return r.interest.Run(live, r.store, r.hub.Wanted) })
	}
	if r.counter != nil {
		parts.Go(func() error { return r.counter.Run(live) })
	}
	parts.Go(func() error { return shell.Serve(r.public, r.Public) })
	parts.Go(func() error { return shell.Serve(r.admin, r.Private) })

	receiving, stopReceiving := context.WithCancel(live)
	defer stopReceiving()
	received := make(chan struct{})
	parts.Go(func() error {
		defer close(received)
		return r.receiver.Run(receiving, r.ingest)
	})

	r.Log.Info("relay serves", "listen", r.Addr().String(), "private", r.PrivateAddr().String(), "version", telemetry.Version())
	select {
	case <-ctx.Done():
	case <-live.Done(): // a part failed
	}
	r.stopping.Store(true)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.config.DrainTimeout)
	defer cancel()
	stopReceiving()
	<-received // bounded by the receiver's own drain time
	r.api.Shutdown(r.spread(drain))
	err := errors.Join(
		shell.Drain(drain, r.public),
		closeSockets(drain, r.sockets),
		shell.Drain(drain, r.admin),
	)
	stop()
	return errors.Join(parts.Wait(), err)
}

// spread is the time over which those who wait are sent away: half of what is left, since the sockets come after them.
func (r *Relay) spread(drain context.Context) time.Duration {
	deadline, _ := drain.Deadline()
	return max(time.Until(deadline)/2, 0)
}

// closeSockets closes every socket; those whose client did not answer in time
// are cut off, which is no failure of stopping.
func closeSockets(ctx context.Context, s *wsapi.Server) error {
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// ingest hands a batch of the receiver to the write path.
func (r *Relay) ingest(ctx context.Context, batch []servicebus.Message) []error {
	messages := make([]ingest.Message, len(batch))
	for i, m := range batch {
		messages[i] = ingest.Message{Body: m.Body, Sequence: m.Sequence}
	}
	return r.ingester.Handle(ctx, messages)
}

// ready says why this replica should get no requests, or nil.
func (r *Relay) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	switch err := r.store.Ping(ctx); {
	case r.stopping.Load():
		return errors.New("stopping")
	case err != nil:
		return errors.New("redis does not answer")
	case !r.follower.Ready():
		return errors.New("the redis subscription does not deliver")
	case !r.receiver.Ready():
		return errors.New("the service bus subscription is not attached")
	case r.APIKeys != nil || r.config.Links.Keys != "": // there are callers who need no issuer
		return nil
	}
	if err := r.Verifier.Ready(); err != nil {
		return fmt.Errorf("no token can be verified: %w", err)
	}
	return nil
}

// WaitReady returns when the replica is ready, or the error of ctx when that
// ends first.
func (r *Relay) WaitReady(ctx context.Context) error { return shell.WaitReady(ctx, r.ready) }

// release frees what New took and Run did not come to use.
func (r *Relay) release() {
	r.Release()
	if r.store != nil {
		if err := r.store.Close(); err != nil {
			r.Log.Warn("closing redis", "error", err)
		}
	}
}
