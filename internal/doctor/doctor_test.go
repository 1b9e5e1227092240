package doctor_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/certtest"
	"statusrelay/internal/dev"
	"statusrelay/internal/devbus"
	"statusrelay/internal/doctor"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
)

const (
	topic        = "status"
	subscription = "relay"
	entity       = topic + "/Subscriptions/" + subscription
	canary       = "c4n4ry"
)

// world is a namespace, its administration API, and what the doctor is told.
type world struct {
	*testing.T
	bus     *devbus.Bus
	addr    string
	options doctor.Options

	found map[string]doctor.Finding
}

// newWorld serves a namespace, with the rules of three keys.
func newWorld(t *testing.T, change func(*devbus.Options)) *world {
	t.Helper()
	return newWorldOver(t, change, func(l net.Listener) net.Listener { return l })
}

func newWorldOver(t *testing.T, change func(*devbus.Options), over func(net.Listener) net.Listener) *world {
	t.Helper()
	o := devbus.Options{Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}}}}}
	for _, r := range []devbus.Rights{devbus.Listen, devbus.Send, devbus.Manage} {
		o.Rules = append(o.Rules, rule(r))
	}
	if change != nil {
		change(&o)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, bus: devbus.New(o), addr: l.Addr().String()}
	served := make(chan error, 1)
	go func() { served <- w.bus.Serve(context.WithoutCancel(t.Context()), over(l)) }()
	t.Cleanup(func() {
		w.bus.Faults().Resume()
		w.bus.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	api := httptest.NewServer(w.bus.Management())
	t.Cleanup(api.Close)
	w.options = doctor.Options{
		ServiceBus: servicebus.Options{Topic: topic, Subscription: subscription, Management: api.URL},
		Hub:        "default", StepTimeout: 5 * time.Second, Wait: 300 * time.Millisecond,
	}
	w.as(devbus.Manage)
	return w
}

func rule(r devbus.Rights) devbus.Rule {
	return devbus.Rule{Name: "may-" + r.String(), Key: canary + r.String(), Rights: r}
}

// as gives the doctor the key of a rule.
func (w *world) as(r devbus.Rights) {
	w.options.ServiceBus.ConnectionString = rule(r).ConnectionString(w.addr)
}

// run examines, and holds what is true of every examination.
func (w *world) run() {
	w.Helper()
	documented, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		w.Fatal(err)
	}
	findings := doctor.Run(w.Context(), w.options)
	w.found = map[string]doctor.Finding{}
	failed := false
	for _, f := range findings {
		if _, twice := w.found[f.Check]; twice {
			w.Errorf("%s is reported twice", f.Check)
		}
		w.found[f.Check] = f
		failed = failed || f.Outcome == doctor.Fail
		needsRemedy := f.Outcome == doctor.Fail || f.Outcome == doctor.Warn
		if f.Detail == "" || needsRemedy != (f.Remedy != "") || strings.ContainsAny(f.Detail+f.Remedy, "\n\r\x1b") {
			w.Errorf("%+v", f)
		}
		if strings.Contains(fmt.Sprint(f), canary) {
			w.Errorf("a secret is said: %+v", f)
		}
		if !strings.Contains(string(documented), "### `"+f.Check+"`") {
			w.Errorf("docs/doctor.md does not have %s", f.Check)
		}
	}
	if doctor.Healthy(findings) == failed {
		w.Errorf("healthy: %t", !failed)
	}
	if len(findings) != 22 {
		w.Errorf("%d findings, want 22 whatever happens", len(findings))
	}
}

// wants compares findings: "check outcome" or "check outcome text that is in it".
func (w *world) wants(all ...string) {
	w.Helper()
	for _, want := range all {
		words := strings.SplitN(want, " ", 3)
		f := w.found[words[0]]
		if string(f.Outcome) != words[1] || len(words) > 2 && !strings.Contains(f.Detail, words[2]) {
			w.Errorf("got %+v, want %s", f, want)
		}
	}
}

// allOthers wants an outcome of all checks but these.
func (w *world) allOthers(outcome doctor.Outcome, but ...string) {
	w.Helper()
others:
	for name, f := range w.found {
		for _, b := range but {
			if name == b {
				continue others
			}
		}
		if f.Outcome != outcome {
			w.Errorf("got %+v, want %s", f, outcome)
		}
	}
}

func (w *world) stats(of string) devbus.Stats {
	w.Helper()
	s, err := w.bus.Stats(of)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// relay starts a relay that consumes the namespace, or another if it is told to, and returns how to reach it.
func (w *world) relay(bus *devbus.Bus) dev.Info {
	w.Helper()
	stack, err := dev.New(w.Context(), dev.Options{NoSamples: true, Bus: bus})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	ended, ready := make(chan error, 1), make(chan dev.Info, 1)
	go func() { ended <- stack.Run(ctx, func(i dev.Info) { ready <- i }) }()
	w.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Error(err)
		}
	})
	select {
	case info := <-ready:
		w.options.Relay, w.options.Token = info.Relay, token(info.Tokens.Operator)
		return info
	case err := <-ended:
		w.Fatal(err)
	}
	return dev.Info{}
}

func token(t string) func() (string, error) { return func() (string, error) { return t, nil } }

// withDevelopmentKey lets a stack of package dev use the namespace.
func withDevelopmentKey(o *devbus.Options) { o.SharedAccessKey = devbus.DevelopmentKey }

// Where all is well everything is checked, the probe arrives, and nothing of it stays.
func TestAllIsWell(t *testing.T) {
	w := newWorld(t, withDevelopmentKey)
	info := w.relay(w.bus)
	w.options.Wait = 20 * time.Second
	var told []doctor.Finding
	w.options.Report = func(f doctor.Finding) { told = append(told, f) }
	w.run()
	w.allOthers(doctor.OK, "tls")
	w.wants("tls skip emulator", "time-to-live ok do not expire", "duplicate-detection ok none", "relay ok was there", "cleanup ok no longer shows it")
	if len(told) != len(w.found) {
		t.Errorf("%d findings were told, of %d", len(told), len(w.found))
	}
	if s := w.stats(entity); s.TotalEnqueued != 2 || s.DeadLettered != 0 {
		t.Errorf("the subscription: %+v", s)
	}
	list, err := http.NewRequestWithContext(t.Context(), http.MethodGet, info.Relay+"/v1/hubs/default/instances", nil)
	if err != nil {
		t.Fatal(err)
	}
	list.Header.Set("Authorization", "Bearer "+info.Tokens.Operator)
	answer, err := http.DefaultClient.Do(list)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body := make([]byte, 1000)
	n, _ := answer.Body.Read(body)
	if answer.StatusCode != 200 || strings.Contains(string(body[:n]), "doctor-") {
		t.Errorf("the relay still lists %s", body[:n])
	}
}

func TestCredentials(t *testing.T) {
	for name, c := range map[string]struct {
		connection func(addr string) string
		wants      []string
	}{
		"WrongKey": {
			func(addr string) string {
				return devbus.Rule{Name: "may-Send", Key: canary + "wrong"}.ConnectionString(addr)
			},
			[]string{"connection ok", "tcp ok", "credential fail InvalidSignature", "topic skip", "send skip", "subscription skip", "probe skip nothing can be sent", "clock skip"},
		},
		"UnknownPolicy": {
			func(addr string) string { return devbus.Rule{Name: "nobody", Key: canary}.ConnectionString(addr) },
			[]string{"credential fail"},
		},
		"ListenOnly": {
			func(addr string) string { return rule(devbus.Listen).ConnectionString(addr) },
			[]string{
				"credential ok", "topic ok", "send fail may not send", "subscription ok", "sessions ok", "management skip needs Manage",
				"lock-duration skip needs Manage", "filters skip needs Manage", "dead-letters ok", "backlog ok", "probe skip", "cleanup skip",
			},
		},
		"SendOnly": {
			func(addr string) string { return rule(devbus.Send).ConnectionString(addr) },
			[]string{
				"credential ok", "send ok", "subscription skip needs Listen or Manage", "sessions skip needs Listen or Manage", "duplicate-detection skip needs Manage",
				"dead-letters skip needs Listen or Manage", "backlog skip needs Listen", "probe ok", "clock ok administration API", "relay skip no relay is named", "cleanup ok purge",
			},
		},
		"OfAnotherTopic": {
			func(addr string) string { return rule(devbus.Manage).ConnectionString(addr) + ";EntityPath=other" },
			[]string{"connection warn is for other, and the topic is status", "credential ok"},
		},
		"NoConnectionString": {func(string) string { return "Endpoint=sb://" + canary }, []string{"connection fail not of the form", "dns skip see above", "cleanup skip see above"}},
		"WithSpace":          {func(addr string) string { return rule(devbus.Send).ConnectionString(addr) + "; EntityPath=x" }, []string{"credential ok"}},
		"NoHost": {
			func(string) string { return "Endpoint=sb://:5671;SharedAccessKeyName=n;SharedAccessKey=" + canary }, []string{"connection fail no host"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.options.ServiceBus.ConnectionString = c.connection(w.addr)
			w.run()
			w.wants(c.wants...)
		})
	}
}

func TestNetwork(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue("server")
	certificate, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	secure := func(l net.Listener) net.Listener {
		return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	}
	plain := func(l net.Listener) net.Listener { return l }
	withoutEmulator := func(s string) string { return strings.Replace(s, ";UseDevelopmentEmulator=true", "", 1) }
	for name, c := range map[string]struct {
		over   func(net.Listener) net.Listener
		change func(w *world, connection string) string
		wants  []string
	}{
		"UnknownHost": {
			plain, func(_ *world, _ string) string { return rule(devbus.Send).ConnectionString("namespace.invalid:5672") },
			[]string{"dns fail namespace.invalid", "tcp skip see above"},
		},
		"ClosedPort": {
			plain, func(w *world, s string) string { return strings.Replace(s, w.addr, "127.0.0.1:1", 1) },
			[]string{"dns ok", "tcp fail refused", "credential skip"},
		},
		"TLSOfAnEmulator": {
			plain, func(_ *world, s string) string { return withoutEmulator(s) },
			[]string{"tcp ok", "tls fail does not speak TLS", "credential skip"},
		},
		"UntrustedAuthority": {
			secure, func(_ *world, s string) string { return withoutEmulator(s) },
			[]string{"tls fail authority that this machine does not trust", "credential skip"},
		},
		"EmulatorOverTLS": {
			secure, func(_ *world, s string) string { return s },
			[]string{"tls skip", "credential fail does not get so far", "topic skip", "probe skip"},
		},
		"SilentBroker": {
			plain, func(w *world, s string) string {
				w.bus.Faults().Stall()
				w.options.StepTimeout = 500 * time.Millisecond
				return s
			},
			[]string{"tcp ok", "credential fail no answer in time", "subscription skip", "backlog skip"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldOver(t, nil, c.over)
			w.options.ServiceBus.ConnectionString = c.change(w, w.options.ServiceBus.ConnectionString)
			w.run()
			w.wants(c.wants...)
		})
	}
}

func TestEntities(t *testing.T) {
	sub := func(change func(*devbus.Subscription)) func(*devbus.Options) {
		return func(o *devbus.Options) { change(&o.Topics[0].Subscriptions[0]) }
	}
	for name, c := range map[string]struct {
		bus     func(*devbus.Options)
		prepare func(*world)
		wants   []string
	}{
		"NoTopic": {
			nil, func(w *world) { w.options.ServiceBus.Topic = "other" },
			[]string{"credential skip", "topic fail other: does not exist", "send skip", "subscription skip there is no topic", "management ok", "probe skip"},
		},
		"DisabledTopic": {
			nil, func(w *world) { w.bus.Faults().RefuseLinks(topic, "com.microsoft:entity-disabled") },
			[]string{"credential ok", "topic fail disabled", "send skip", "subscription ok", "probe skip"},
		},
		"NoSubscription": {
			nil, func(w *world) { w.options.ServiceBus.Subscription = "other" },
			[]string{"topic ok", "subscription fail other of status does not exist", "sessions skip", "filters skip", "probe ok"},
		},
		"NoSubscriptionByListening": {
			nil, func(w *world) { w.options.ServiceBus.Subscription = "other"; w.as(devbus.Listen) },
			[]string{"subscription fail does not exist"},
		},
		"DisabledSubscription": {
			nil, func(w *world) { w.bus.Faults().RefuseLinks(entity, "com.microsoft:entity-disabled") },
			[]string{"topic ok", "subscription fail disabled"},
		},
		"DisabledSubscriptionByListening": {
			nil, func(w *world) {
				w.bus.Faults().RefuseLinks(entity, "com.microsoft:entity-disabled")
				w.as(devbus.Listen)
			},
			[]string{"subscription fail disabled", "management skip"},
		},
		"BusySubscription": {
			nil, func(w *world) {
				w.bus.Faults().AnswerManagement(entity, 1000, 503)
				w.as(devbus.Listen)
			},
			[]string{"subscription fail"},
		},
		"NoSubscriptionNamed": {
			nil, func(w *world) { w.options.ServiceBus.Subscription = "" },
			[]string{"subscription skip no subscription is named", "duplicate-detection ok", "filters skip", "backlog skip", "clock ok"},
		},
		"Sessions": {
			sub(func(s *devbus.Subscription) { s.Sessions = true }), nil,
			[]string{"subscription ok", "sessions fail requires sessions", "lock-duration ok", "backlog skip"},
		},
		"SessionsByListening": {
			sub(func(s *devbus.Subscription) { s.Sessions = true }), func(w *world) { w.as(devbus.Listen) },
			[]string{"subscription ok", "sessions fail requires sessions"},
		},
		"DuplicateDetection": {
			func(o *devbus.Options) { o.Topics[0].DuplicateDetection = 90 * time.Minute }, nil,
			[]string{"duplicate-detection ok within 1h30m0s"},
		},
		"ShortLock":     {sub(func(s *devbus.Subscription) { s.LockDuration = 5 * time.Second }), nil, []string{"lock-duration warn 5s"}},
		"FewDeliveries": {sub(func(s *devbus.Subscription) { s.MaxDeliveryCount = 2 }), nil, []string{"max-delivery-count warn 2 deliveries"}},
		"ShortLife":     {sub(func(s *devbus.Subscription) { s.TimeToLive = 90 * time.Second }), nil, []string{"time-to-live warn 1m30s"}},
		"LongLife":      {sub(func(s *devbus.Subscription) { s.TimeToLive = 50 * time.Hour }), nil, []string{"time-to-live ok 50h0m0s"}},
		"Forwarding":    {sub(func(s *devbus.Subscription) { s.ForwardTo = "elsewhere" }), nil, []string{"forwarding fail forwarded"}},
		"NothingPasses": {sub(func(s *devbus.Subscription) { s.Filters = []devbus.Filter{{Type: "FalseFilter"}} }), nil, []string{"filters fail no rule"}},
		"NoRule":        {sub(func(s *devbus.Subscription) { s.Filters = []devbus.Filter{} }), nil, []string{"filters fail no rule"}},
		"SomePass": {
			sub(func(s *devbus.Subscription) {
				s.Filters = []devbus.Filter{{Type: "SqlFilter", Text: canary}, {Type: "CorrelationFilter", Text: canary}}
			}),
			nil,
			[]string{"filters warn only what matches passes (SQL, correlation)"},
		},
		"EverythingPassesAmongOthers": {
			sub(func(s *devbus.Subscription) {
				s.Filters = []devbus.Filter{{Type: "CorrelationFilter", Text: "x"}, {Type: "SqlFilter", Text: "1 = 1"}}
			}),
			nil,
			[]string{"filters ok"},
		},
		"DeadLetters": {
			nil, func(w *world) { w.deadLetter(3, "Invalid\x1b[2J"); w.deadLetter(1, "") },
			[]string{"dead-letters warn 4 messages: 3 Invalid\ufffd[2J, 1 no reason given", "backlog ok nothing waits"},
		},
		"NoAdministration": {
			nil, func(w *world) { w.options.ServiceBus.Management = "http://127.0.0.1:1" },
			[]string{"management skip 127.0.0.1:1", "filters skip see above", "subscription ok", "dead-letters ok", "probe ok", "clock ok"},
		},
		"StrangeAdministration": {
			nil, func(w *world) {
				s := httptest.NewServer(http.HandlerFunc(func(a http.ResponseWriter, _ *http.Request) {
					http.Error(a, "<html>", http.StatusBadGateway)
				}))
				w.Cleanup(s.Close)
				w.options.ServiceBus.Management = s.URL
			},
			[]string{"management skip answers 502"},
		},
		"Backlog": {
			nil, func(w *world) {
				w.bus.Faults().SkewClock(-2 * time.Hour)
				w.send(3)
				w.bus.Faults().SkewClock(0)
			},
			[]string{"backlog warn 3 messages, the oldest for 2h0m"},
		},
		"YoungBacklogByAnotherClock": {
			nil, func(w *world) {
				w.bus.Faults().SkewClock(-2 * time.Hour)
				w.send(1)
			},
			[]string{"backlog ok 1 message,", "clock fail"},
		},
		"YoungBacklog": {nil, func(w *world) { w.send(2) }, []string{"backlog ok 2 messages, the oldest for"}},
		"FullTopic": {
			nil, func(w *world) { w.bus.Faults().RejectSends(topic, 1000, "amqp:resource-limit-exceeded") },
			[]string{"send ok", "probe fail resource-limit-exceeded", "cleanup warn could not be purged", "relay skip"},
		},
		"NoProbe": {
			nil, func(w *world) { w.options.NoProbe = true },
			[]string{"probe skip", "clock ok administration API", "relay skip", "cleanup skip"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.bus)
			if c.prepare != nil {
				c.prepare(w)
			}
			before := w.stats(topic).TotalEnqueued
			w.run()
			w.wants(c.wants...)
			if sent := w.stats(topic).TotalEnqueued - before; w.found["probe"].Outcome == doctor.Skip && sent != 0 {
				t.Errorf("%d messages were sent", sent)
			}
		})
	}
}

// publisher sends to the world's topic.
func (w *world) send(n int) {
	w.Helper()
	p, err := servicebus.NewPublisher(servicebus.Options{ConnectionString: rule(devbus.Manage).ConnectionString(w.addr), Topic: topic})
	if err != nil {
		w.Fatal(err)
	}
	for i := range n {
		u := &status.Update{Hub: "h", InstanceID: fmt.Sprint(i)}
		if err := p.Publish(w.Context(), []servicebus.Outgoing{{Update: u, Body: []byte("x")}})[0]; err != nil {
			w.Fatal(err)
		}
	}
	if err := p.Close(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// deadLetter sends messages and dead-letters them.
func (w *world) deadLetter(n int, reason status.Reason) {
	w.Helper()
	w.send(n)
	w.consume(n, &status.InvalidError{Reason: reason, Detail: "too odd"})
}

// consume takes n messages out of the subscription, or dead-letters them.
func (w *world) consume(n int, outcome error) {
	w.Helper()
	r, err := servicebus.NewReceiver(servicebus.Options{
		ConnectionString: rule(devbus.Manage).ConnectionString(w.addr), Topic: topic, Subscription: subscription,
	})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	err = r.Run(ctx, func(_ context.Context, batch []servicebus.Message) []error {
		errs := make([]error, len(batch))
		for i := range errs {
			errs[i] = outcome
		}
		if n -= len(batch); n <= 0 {
			cancel()
		}
		return errs
	})
	if err != nil {
		w.Error(err)
	}
}

// This machine's clock is judged by the time that the broker puts on the probe, or, where that cannot be seen, by the administration API.
func TestClock(t *testing.T) {
	for name, c := range map[string]struct {
		ahead  time.Duration // of the broker's
		rights devbus.Rights
		want   string
	}{
		"FarBehind":          {time.Hour, devbus.Manage, "clock fail this machine is 1h0m0s behind the broker"},
		"FarAhead":           {-time.Hour, devbus.Manage, "clock fail ahead of the broker"},
		"SomewhatBehind":     {time.Minute, devbus.Manage, "clock warn this machine is 1m0s behind the broker"},
		"Right":              {time.Second, devbus.Manage, "clock ok"},
		"FarAheadForSenders": {-time.Hour, devbus.Send, "clock fail ahead of the administration API"},
		"BehindForSenders":   {time.Minute, devbus.Send, "clock warn behind the administration API"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.bus.Faults().SkewClock(c.ahead)
			w.as(c.rights)
			w.run()
			w.wants(c.want)
		})
	}
	w := newWorld(t, nil)
	w.options.ServiceBus.Management = "http://127.0.0.1:1"
	w.as(devbus.Send)
	w.run()
	w.wants("clock skip no administration API answers")
}

// Why a probe does not arrive is told as far as it can be.
func TestProbeThatDoesNotArrive(t *testing.T) {
	t.Run("NobodyConsumes", func(t *testing.T) {
		w := newWorld(t, withDevelopmentKey)
		w.relay(w.bus)
		w.bus.Faults().Hold(entity) // as if no relay took any
		w.run()
		w.wants("relay fail still waits in the subscription", "cleanup ok the purge of the probe is published")
	})
	t.Run("NobodyConsumesAndThatCannotBeSeen", func(t *testing.T) {
		w := newWorld(t, withDevelopmentKey)
		w.relay(w.bus)
		w.bus.Faults().Hold(entity)
		w.as(devbus.Send)
		w.run()
		w.wants("relay fail needs Listen to tell")
	})
	t.Run("PolicyHides", func(t *testing.T) {
		w := newWorld(t, withDevelopmentKey)
		w.options.Token = token(w.relay(w.bus).Tokens.Customer)
		w.run()
		w.wants("relay warn the policy hides it", "cleanup ok")
		w.options.Labels, w.options.Wait = map[string]string{"owner": "u-1001"}, 20*time.Second
		w.run()
		w.wants("relay ok", "cleanup ok no longer shows it")
	})
	t.Run("DeadLettered", func(t *testing.T) {
		w := newWorld(t, nil)
		w.relay(nil) // of another namespace
		consumed := make(chan struct{})
		go func() {
			defer close(consumed)
			w.consume(2, &status.InvalidError{Reason: status.ReasonInvalid, Field: "generation", Detail: "too odd"})
		}()
		w.options.Wait = 2 * time.Second
		w.run()
		<-consumed
		w.wants("relay fail dead-lettered with reason Invalid: generation: too odd")
	})
	t.Run("RelayRefuses", func(t *testing.T) {
		w := newWorld(t, withDevelopmentKey)
		w.relay(w.bus)
		w.options.Token = token(canary)
		w.run()
		w.wants("relay fail the relay answers 401", "cleanup ok the purge")
		w.options.Token = nil
		w.run()
		w.wants("relay fail the relay answers 401")
	})
	t.Run("NoRelayThere", func(t *testing.T) {
		w := newWorld(t, nil)
		w.options.Relay = "http://127.0.0.1:1"
		w.run()
		w.wants("relay fail refused")
		s := httptest.NewServer(http.NotFoundHandler())
		defer s.Close()
		w.options.Relay = s.URL
		w.run()
		w.wants("relay fail 404")
		w.options.Relay = "ftp://" + w.addr
		w.run()
		w.wants("relay fail not a URL")
	})
	t.Run("RelayForbids", func(t *testing.T) {
		w := newWorld(t, nil)
		code := 403
		s := httptest.NewServer(http.HandlerFunc(func(a http.ResponseWriter, _ *http.Request) { a.WriteHeader(code) }))
		defer s.Close()
		w.options.Relay = s.URL
		w.run()
		w.wants("relay fail 403")
		code = 503
		w.run()
		w.wants("relay fail 503")
	})
}

// Whatever happens to the doctor once the probe is on its way, it is taken back.
func TestProbeIsTakenBackWhateverHappens(t *testing.T) {
	w := newWorld(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.options.Relay = "http://127.0.0.1:1"
	w.options.Report = func(f doctor.Finding) {
		if f.Check == "probe" {
			cancel()
		}
	}
	doctor.Run(ctx, w.options)
	if n := w.stats(topic).TotalEnqueued; n != 2 {
		t.Errorf("%d messages were sent, want the probe and its purge", n)
	}
}

func TestProbeThatStaysIsTold(t *testing.T) {
	w := newWorld(t, withDevelopmentKey)
	w.relay(w.bus)
	w.options.Wait = 3 * time.Second
	w.options.Report = func(f doctor.Finding) {
		if f.Check == "relay" {
			w.bus.Faults().Hold(entity)
		}
	}
	w.run()
	w.wants("relay ok", "cleanup warn still shows the probe")
}
