// Package dev is everything on this machine: a Service Bus endpoint, Redis, an
// identity provider, sample orchestrations, a notifier and a relay, in one
// process. It needs no cloud, no container and no configuration.
//
// The relay and the notifier are the real ones and speak to the other parts
// over loopback sockets: only addresses differ from production. It is for
// people who try the product and for end-to-end tests; it keeps nothing and
// protects nothing.
//
//	stack, err := dev.New(ctx, dev.Options{Addr: "127.0.0.1:0"})
//	err = stack.Run(ctx, func(info dev.Info) { … })
package dev

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/alicebob/miniredis/v2"
	"golang.org/x/sync/errgroup"

	"statusrelay/internal/auth"
	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/devbus"
	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
	"statusrelay/internal/web"
)

const (
	topic           = "status"
	subscription    = "relay"
	audience        = "statusrelay"
	customerSubject = "u-1001"
	tokenLifetime   = 24 * time.Hour
	issuerPath      = "/dev/issuer"
)

// Options of a Stack. The zero value is a stack with samples on free ports.
type Options struct {
	Addr string // of the dashboard and the relay; default 127.0.0.1:0, a free port
	// Fixed prefers the ports that documents name for the notifier (8081) and
	// the Service Bus endpoint (5672). What is taken is replaced by a free one.
	Fixed     bool
	NoSamples bool
	Pace      time.Duration // of one step of a sample, about; default 700 ms
	Logger    *slog.Logger  // nil: discard

	// RedisAddr is a Redis to use. Default: an in-process one.
	RedisAddr string
	// Bus is the Service Bus endpoint to serve, so that a test can make it fail.
	// It has the topic "status" with the subscription "relay". Default: a new one.
	Bus *devbus.Bus
}

// Info says how to reach a stack that serves. Its JSON is what scripts read.
type Info struct {
	Dashboard    string   `json:"dashboard"`
	Relay        string   `json:"relay"`
	Notifier     string   `json:"notifier"`
	ServiceBus   string   `json:"serviceBus"` // connection string
	Topic        string   `json:"topic"`
	Subscription string   `json:"subscription"`
	Tokens       Tokens   `json:"tokens"`
	Samples      []Sample `json:"samples"`

	// RelayPrivate and NotifierPrivate serve health, metrics and profiles.
	RelayPrivate    string `json:"relayPrivate"`
	NotifierPrivate string `json:"notifierPrivate"`
}

// Tokens are bearer tokens of the three roles of the development policy.
type Tokens struct {
	Operator  string `json:"operator"`
	Customer  string `json:"customer"`
	Publisher string `json:"publisher"`
}

// Stack is everything on this machine.
type Stack struct {
	log         *slog.Logger
	info        Info
	bus         *devbus.Bus
	busListener net.Listener
	redis       *miniredis.Miniredis // nil when another Redis is used
	relay       *relay.Relay
	notifier    *notifier.Notifier
	samples     bool
	pace        time.Duration
}

// NewBus returns the endpoint that a stack has by default.
func NewBus(lock time.Duration, maxDeliveryCount int) *devbus.Bus {
	return devbus.New(devbus.Options{Topics: []devbus.Topic{{
		Name: topic,
		Subscriptions: []devbus.Subscription{
			{Name: subscription, LockDuration: lock, MaxDeliveryCount: maxDeliveryCount},
		},
	}}})
}

// New binds every port and starts only the in-process Redis.
func New(ctx context.Context, o Options) (_ *Stack, err error) {
	s := &Stack{log: o.Logger, bus: o.Bus, samples: !o.NoSamples, pace: o.Pace}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.pace == 0 {
		s.pace = 700 * time.Millisecond
	}
	if s.bus == nil {
		s.bus = NewBus(0, 0)
	}
	if s.busListener, err = listen(ctx, "service bus", o.Fixed, "5672"); err != nil {
		return nil, err
	}
	if o.RedisAddr == "" {
		if s.redis, err = miniredis.Run(); err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		o.RedisAddr = s.redis.Addr()
	}
	public, err := shell.Listen(ctx, "addr", o.Addr)
	if err != nil {
		return nil, err
	}
	address := reachable(public.Addr())
	base := "http://" + address
	issuer, err := devissuer.New(devissuer.Options{URL: base + issuerPath})
	if err != nil {
		_ = public.Close() // not yet anybody's: the relay closes it from here on
		return nil, err
	}
	if err := s.describe(issuer, base); err != nil {
		_ = public.Close()
		return nil, err
	}
	return s, s.build(ctx, o, public, issuer)
}

// build makes the relay and the notifier.
func (s *Stack) build(ctx context.Context, o Options, public net.Listener, issuer http.Handler) error {
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		_ = public.Close()
		return fmt.Errorf("development policy: %w", err)
	}
	signIn := shell.DefaultAuth()
	signIn.Issuers, signIn.Audiences = []string{s.info.Relay + issuerPath}, []string{audience}
	connect := shell.ServiceBus{ConnectionString: settings.NewSecret(s.info.ServiceBus), Topic: topic}

	rc := relay.Defaults()
	rc.PrivateListen, rc.Auth, rc.ServiceBus, rc.Subscription = "127.0.0.1:0", signIn, connect, subscription
	rc.Redis.Addrs, rc.DrainTimeout = []string{o.RedisAddr}, time.Second
	rc.Origins = []string{s.info.Dashboard, s.info.Relay}
	pages := http.NewServeMux()
	pages.Handle(issuerPath+"/", http.StripPrefix(issuerPath, issuer))
	pages.HandleFunc("GET /dev/session.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		_ = json.NewEncoder(w).Encode(s.info) // the browser is gone: nobody is left to tell
	})
	pages.Handle("/", web.Handler())
	s.relay, err = relay.New(ctx, rc, relay.Options{
		Listener: public, Policy: rules, Links: links(), Pages: pages, Logger: s.log.With("program", "relay"),
	})
	if err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	nc := notifier.Defaults()
	nc.PrivateListen, nc.Auth, nc.ServiceBus = "127.0.0.1:0", signIn, connect
	nc.Redis.Addrs = []string{o.RedisAddr}
	ingest, err := listen(ctx, "notifier", o.Fixed, "8081")
	if err != nil {
		return err
	}
	nc.DrainTimeout = time.Second
	s.notifier, err = notifier.New(ctx, nc, notifier.Options{Listener: ingest, Policy: rules, Logger: s.log.With("program", "notifier")})
	if err != nil {
		return fmt.Errorf("notifier: %w", err)
	}
	s.info.Notifier = "http://" + s.notifier.Addr().String()
	s.info.RelayPrivate = "http://" + s.relay.PrivateAddr().String()
	s.info.NotifierPrivate = "http://" + s.notifier.PrivateAddr().String()
	return nil
}

// links are signed by a key that nobody else has, and that is gone at the end.
func links() *auth.Links {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	l := auth.NewLinks(auth.LinkOptions{})
	l.SetKeys([]auth.LinkKey{{ID: "development", Secret: secret}})
	return l
}

// listen binds the port that is preferred, if it is fixed and free, or any.
func listen(ctx context.Context, what string, fixed bool, port string) (net.Listener, error) {
	if fixed {
		if l, err := shell.Listen(ctx, what, "127.0.0.1:"+port); err == nil {
			return l, nil
		}
	}
	return shell.Listen(ctx, what, "127.0.0.1:0")
}

// describe fills in what is known before anything runs.
func (s *Stack) describe(issuer *devissuer.Issuer, base string) error {
	s.info = Info{
		Dashboard: base, Relay: base, ServiceBus: devbus.ConnectionString(s.busListener.Addr().String()),
		Topic: topic, Subscription: subscription, Samples: []Sample{},
	}
	if host, port, err := net.SplitHostPort(base[len("http://"):]); err == nil && host == "127.0.0.1" {
		s.info.Dashboard = "http://localhost:" + port // the same, as people type it
	}
	if s.samples {
		s.info.Samples = sampleInstances()
	}
	for _, who := range []struct {
		token         *string
		subject, role string
	}{
		{&s.info.Tokens.Operator, "operator-1", "operator"},
		{&s.info.Tokens.Customer, customerSubject, "customer"},
		{&s.info.Tokens.Publisher, "publisher-1", "publisher"},
	} {
		var err error
		*who.token, err = issuer.Token(who.subject, audience, map[string]any{"roles": []string{who.role}}, tokenLifetime)
		if err != nil {
			return fmt.Errorf("token of %s: %w", who.role, err)
		}
	}
	return nil
}

// reachable is the address at which this machine reaches a listener.
func reachable(a net.Addr) string {
	host, port, err := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return a.String()
}

// Info says how to reach the stack.
func (s *Stack) Info() Info { return s.info }

// Bus is the Service Bus endpoint.
func (s *Stack) Bus() *devbus.Bus { return s.bus }

// Publish publishes an update as an orchestration would.
func (s *Stack) Publish(ctx context.Context, u *status.Update) error {
	return s.notifier.Publish(ctx, u)
}

// Run serves until ctx ends, calls ready once when everything serves, and stops
// in order: samples, notifier, relay, Service Bus, Redis.
func (s *Stack) Run(ctx context.Context, ready func(Info)) error {
	defer s.release()
	under, stopUnder := context.WithCancel(context.WithoutCancel(ctx)) // what the programs stand on ends last
	defer stopUnder()
	var base, programs errgroup.Group
	base.Go(func() error { return s.bus.Serve(under, s.busListener) })
	if s.redis != nil {
		base.Go(func() error { s.age(under); return nil })
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	run := func(name string, f func(context.Context) error) {
		programs.Go(func() error {
			err := f(ctx)
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			cancel(err) // one that ends takes the others along
			return err
		})
	}
	run("relay", s.relay.Run)
	run("notifier", s.notifier.Run)
	programs.Go(func() error { return s.play(ctx, ready) })
	err := programs.Wait()
	stopUnder()
	if e := base.Wait(); err == nil {
		err = e
	}
	return err
}

// play reports that everything serves, then plays the samples.
func (s *Stack) play(ctx context.Context, ready func(Info)) error {
	for _, wait := range []func(context.Context) error{s.relay.WaitReady, s.notifier.WaitReady} {
		if wait(ctx) != nil {
			return nil // stopped before everything served: who stopped it says why
		}
	}
	if ready != nil {
		ready(s.info)
	}
	if s.samples {
		playSamples(ctx, s.pace, s.Publish)
	}
	return nil
}

// age lets time pass in the in-process Redis, which has no clock for expiry.
func (s *Stack) age(ctx context.Context) {
	const step = time.Second
	t := time.NewTicker(step)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.redis.FastForward(step)
		}
	}
}

func (s *Stack) release() {
	if s.busListener != nil {
		_ = s.busListener.Close() // closed by Serve, if that ran
	}
	_ = s.bus.Close()
	if s.redis != nil {
		s.redis.Close()
	}
}
