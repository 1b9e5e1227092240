package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/apitest"
	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/dev"
	"statusrelay/internal/devbus"
	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
	"statusrelay/internal/storetest"
)

const (
	topic        = "status"
	subscription = "relay"
	entity       = topic + "/Subscriptions/" + subscription // as devbus names it
	audience     = "statusrelay"
	owner        = "u-1001" // the customer, by its subject and by the owner label of its instances

	deadline = 60 * time.Second // of a test
	patience = 10 * time.Second // of a caller, with one request
)

// world is what replicas stand on, for one test.
type world struct {
	testing.TB
	ctx context.Context // ends at the test's deadline

	bus        *devbus.Bus
	serviceBus string // connection string
	redis      *storetest.Redis
	issuer     *devissuer.Issuer
	issuerURL  string
	client     *http.Client
	tls        *tls.Config // of clients, if a replica speaks TLS
	logs       *logs       // of every replica in this process, at level debug

	operator, customer, publisher string // tokens

	api *apitest.API // what every answer and frame is held to

	keepRaw bool // watchers keep all that they are sent
}

// readDocuments reads the documents once.
var readDocuments = sync.OnceValues(apitest.Read)

// newWorld makes a world with the bus, or one with the default locks if it is nil.
func newWorld(t testing.TB, bus *devbus.Bus) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	w := &world{TB: t, ctx: ctx, bus: bus, redis: storetest.StartRedis(t), logs: new(logs), client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: patience,
	}}
	t.Cleanup(w.client.CloseIdleConnections)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the log:\n%s", w.logs.tail(60))
		}
	})
	var err error
	if w.api, err = readDocuments(); err != nil {
		t.Fatal(err)
	}
	if w.bus == nil {
		w.bus = dev.NewBus(0, 0)
	}
	w.serveBus()

	handler := http.NewServeMux()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	w.issuerURL = server.URL + "/issuer"
	if w.issuer, err = devissuer.New(devissuer.Options{URL: w.issuerURL}); err != nil {
		t.Fatal(err)
	}
	handler.Handle("/issuer/", w.issuer)
	w.operator, w.customer, w.publisher = w.token("operator-1", "operator", time.Hour), w.token(owner, "customer", time.Hour),
		w.token("publisher-1", "publisher", time.Hour)
	return w
}

func (w *world) serveBus() {
	w.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	w.serviceBus = devbus.ConnectionString(l.Addr().String())
	serving := make(chan error, 1)
	go func() { serving <- w.bus.Serve(context.WithoutCancel(w.ctx), l) }()
	w.Cleanup(func() {
		if err := w.bus.Close(); err != nil {
			w.Error(err)
		}
		if err := <-serving; err != nil {
			w.Error(err)
		}
	})
}

// token is a token of this world's issuer.
func (w *world) token(subject, role string, lifetime time.Duration) string {
	w.Helper()
	token, err := w.issuer.Token(subject, audience, map[string]any{"roles": []string{role}}, lifetime)
	if err != nil {
		w.Fatal(err)
	}
	return token
}

// auth is how a replica is told of this world's issuer.
func (w *world) auth() shell.Auth {
	a := shell.DefaultAuth()
	a.Issuers, a.Audiences = []string{w.issuerURL}, []string{audience}
	return a
}

// replica is a relay or notifier in this process.
type replica struct {
	base, private string // URLs of its listeners
	stop          func() // tells it to stop and waits until it has
}

// relay starts a replica of the relay and waits until it is ready. It has the
// policy of development mode unless another, or a file, is given.
func (w *world) relay(rules *policy.Policy, change ...func(*relay.Config)) *replica {
	w.Helper()
	c := relay.Defaults()
	c.Listen, c.PrivateListen, c.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", 5*time.Second
	c.Auth, c.Redis.Addrs = w.auth(), []string{w.redis.Addr}
	c.ServiceBus.ConnectionString, c.Subscription = settings.NewSecret(w.serviceBus), subscription
	for _, f := range change {
		f(&c)
	}
	if rules == nil && c.Policy == "" {
		rules = w.policy(string(policy.Development()))
	}
	r, err := relay.New(w.ctx, c, relay.Options{Policy: rules, Logger: w.logs.logger().With("program", "relay")})
	if err != nil {
		w.Fatal(err)
	}
	scheme := "http://"
	if c.TLS.Cert != "" {
		scheme = "https://"
	}
	started := &replica{base: scheme + r.Addr().String(), private: "http://" + r.PrivateAddr().String(), stop: w.run(r.Run)}
	if err := r.WaitReady(w.ctx); err != nil {
		w.Fatalf("the relay does not get ready: %v", err)
	}
	return started
}

// notifier starts a replica of the notifier.
func (w *world) notifier(change ...func(*notifier.Config)) *replica {
	w.Helper()
	c := notifier.Defaults()
	c.Listen, c.PrivateListen, c.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", 5*time.Second
	c.Auth, c.ServiceBus.ConnectionString = w.auth(), settings.NewSecret(w.serviceBus)
	c.Rate = 100_000
	for _, f := range change {
		f(&c)
	}
	n, err := notifier.New(w.ctx, c, notifier.Options{
		Policy: w.policy(string(policy.Development())), Logger: w.logs.logger().With("program", "notifier"),
	})
	if err != nil {
		w.Fatal(err)
	}
	return &replica{base: "http://" + n.Addr().String(), private: "http://" + n.PrivateAddr().String(), stop: w.run(n.Run)}
}

// run runs a program until the returned function is called, or the test ends.
func (w *world) run(program func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.ctx))
	ended := make(chan error, 1)
	go func() { ended <- program(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				w.Errorf("a program ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			stacks := make([]byte, 1<<20)
			w.Errorf("a program does not stop; all goroutines:\n%s", stacks[:runtime.Stack(stacks, true)])
		}
	})
	w.Cleanup(stop)
	return stop
}

func (w *world) policy(text string) *policy.Policy {
	w.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) stats() devbus.Stats {
	w.Helper()
	s, err := w.bus.Stats(entity)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// until waits for something to come true.
func (w *world) until(what string, cond func() bool) {
	w.Helper()
	every := time.NewTicker(5 * time.Millisecond)
	defer every.Stop()
	for !cond() {
		select {
		case <-every.C:
		case <-w.ctx.Done():
			w.Fatalf("in vain: %s; the subscription: %+v", what, w.stats())
		}
	}
}

// during keeps a fault up for a time that the test is about, and holds what must be true meanwhile.
func (w *world) during(d time.Duration, check func()) {
	w.Helper()
	over := time.After(d)
	every := time.NewTicker(50 * time.Millisecond)
	defer every.Stop()
	for {
		check()
		select {
		case <-every.C:
		case <-over:
			return
		case <-w.ctx.Done():
			w.Fatal("the test's deadline")
		}
	}
}

// settled waits until nothing is left in the subscription.
func (w *world) settled() {
	w.Helper()
	w.until("everything settled", func() bool { s := w.stats(); return s.Active+s.Locked == 0 })
}

// logs is what the replicas log.
type logs struct {
	json bool // as programs write it if they are told to

	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) logger() *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelDebug}
	if l.json {
		return slog.New(slog.NewJSONHandler(l, o))
	}
	return slog.New(slog.NewTextHandler(l, o))
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// tail is the end of the log without what is for debugging.
func (l *logs) tail(n int) string {
	lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(l.String()), "\n"), func(line string) bool {
		return strings.Contains(line, "level=DEBUG")
	})
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
