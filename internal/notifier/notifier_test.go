package notifier_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/devbus"
	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
)

// world is a notifier that runs, and the broker behind it.
type world struct {
	*testing.T
	bus   *devbus.Bus
	n     *notifier.Notifier
	url   string
	token string
	stop  func()     // tells it to stop
	ended chan error // what Run returned
}

func start(t *testing.T, drain time.Duration, change ...func(*notifier.Config, *notifier.Options)) *world {
	t.Helper()
	w := &world{T: t, bus: devbus.New(devbus.Options{Topics: []devbus.Topic{{Name: "status", Subscriptions: []devbus.Subscription{{Name: "relay"}}}}})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- w.bus.Serve(context.WithoutCancel(t.Context()), l) }()
	t.Cleanup(func() {
		if err := w.bus.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	handler := http.NewServeMux()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	issuer, err := devissuer.New(devissuer.Options{URL: server.URL + "/issuer"})
	if err != nil {
		t.Fatal(err)
	}
	handler.Handle("/issuer/", issuer)
	if w.token, err = issuer.Token("publisher-1", "statusrelay", map[string]any{"roles": []string{"publisher"}}, time.Hour); err != nil {
		t.Fatal(err)
	}
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		t.Fatal(err)
	}
	c := notifier.Defaults()
	c.Listen, c.PrivateListen, c.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", drain
	c.Auth.Issuers, c.Auth.Audiences = []string{server.URL + "/issuer"}, []string{"statusrelay"}
	c.ServiceBus.ConnectionString = settings.NewSecret(devbus.ConnectionString(l.Addr().String()))
	o := notifier.Options{Policy: rules}
	for _, f := range change {
		f(&c, &o)
	}
	if w.n, err = notifier.New(t.Context(), c, o); err != nil {
		t.Fatal(err)
	}
	w.url = "http://" + w.n.Addr().String() + "/v1/updates"
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w.stop, w.ended = cancel, make(chan error, 1)
	running := make(chan struct{})
	go func() {
		defer close(running)
		w.ended <- w.n.Run(ctx)
	}()
	t.Cleanup(func() {
		w.bus.Faults().Resume()
		cancel()
		<-running
	})
	return w
}

// post publishes one update and returns what it was answered with.
func (w *world) post(id string) string {
	r, err := http.NewRequestWithContext(w.Context(), http.MethodPost, w.url, strings.NewReader(`{"instanceId":"`+id+`","runtimeStatus":"Running"}`))
	if err != nil {
		return err.Error()
	}
	r.Header.Set("Authorization", "Bearer "+w.token)
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		return err.Error()
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(got.StatusCode, " ", strings.TrimSpace(string(body)))
}

func (w *world) enqueued() int64 {
	w.Helper()
	s, err := w.bus.Stats("status/Subscriptions/relay")
	if err != nil {
		w.Fatal(err)
	}
	return s.TotalEnqueued
}

// metric is the value of a metric without labels, -1 if there is none.
func (w *world) metric(name string) float64 {
	w.Helper()
	got, err := http.Get("http://" + w.n.PrivateAddr().String() + "/metrics")
	if err != nil {
		w.Fatal(err)
	}
	defer got.Body.Close()
	for lines := bufio.NewScanner(got.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				w.Fatal(err)
			}
			return value
		}
	}
	return -1
}

func (w *world) until(what string, cond func() bool) {
	w.Helper()
	over, every := time.After(30*time.Second), time.NewTicker(5*time.Millisecond)
	defer every.Stop()
	for !cond() {
		select {
		case <-every.C:
		case <-over:
			w.Fatal("in vain: " + what)
		}
	}
}

const accepted = `202 {"accepted":1}`

// A notifier with API keys needs no issuer: it is ready, accepts the keys, and no token.
func TestAPIKeysNeedNoIssuer(t *testing.T) {
	key, kept, err := auth.NewAPIKey(auth.APIKey{ID: "worker", Rights: []auth.Right{auth.Publish}, Claims: map[string]any{"roles": []any{"publisher"}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "keys.yaml")
	if err := os.WriteFile(file, []byte("keys:\n"+kept.Entry()), 0o600); err != nil {
		t.Fatal(err)
	}
	w := start(t, time.Second, func(c *notifier.Config, _ *notifier.Options) {
		c.Auth.Issuers, c.Auth.Audiences, c.Auth.APIKeys = nil, nil, file
	})
	ready, err := http.Get("http://" + w.n.PrivateAddr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	ready.Body.Close()
	if ready.StatusCode != http.StatusOK {
		t.Errorf("readiness: got %d", ready.StatusCode)
	}
	if got := w.post("by token"); !strings.HasPrefix(got, "401 ") {
		t.Errorf("a token: got %s", got)
	}
	w.token = key
	if got := w.post("by key"); got != accepted {
		t.Errorf("the key: got %s", got)
	}
}

// A notifier that is told to stop while a request waits for the broker is unready
// at once, answers the request, and then ends.
func TestRequestUnderWayIsAnsweredWhenStopping(t *testing.T) {
	w := start(t, 20*time.Second)
	if got := w.post("first"); got != accepted {
		t.Fatalf("got %s, want %s", got, accepted)
	}
	w.bus.Faults().Stall() // the broker stores and says nothing
	answered := make(chan string, 1)
	go func() { answered <- w.post("second") }()
	w.until("the broker has it", func() bool { return w.enqueued() == 2 })
	w.stop()
	w.until("it is unready", func() bool {
		got, err := http.Get("http://" + w.n.PrivateAddr().String() + "/readyz")
		if err != nil {
			return false
		}
		defer got.Body.Close()
		return got.StatusCode == http.StatusServiceUnavailable
	})
	select {
	case got := <-answered:
		t.Fatalf("answered %s before the broker has", got)
	case err := <-w.ended:
		t.Fatalf("ended with %v before the request was answered", err)
	default:
	}
	w.bus.Faults().Resume()
	if got := <-answered; got != accepted {
		t.Errorf("got %s, want %s", got, accepted)
	}
	if err := <-w.ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A broker that never answers does not keep a notifier from ending.
func TestSilentBrokerDoesNotKeepItFromEnding(t *testing.T) {
	w := start(t, time.Second)
	if got := w.post("first"); got != accepted {
		t.Fatalf("got %s, want %s", got, accepted)
	}
	w.bus.Faults().Stall()
	answered := make(chan string, 1)
	go func() { answered <- w.post("second") }()
	w.until("the broker has it", func() bool { return w.enqueued() == 2 })
	w.stop()
	if got := <-answered; got == accepted {
		t.Error("the request was accepted although the broker has not answered")
	}
	<-w.ended // what it could not flush is an error, or not: it ended
}

// The update of this process reaches the topic as those of others do.
func TestOwnUpdateIsPublished(t *testing.T) {
	w := start(t, time.Second)
	if err := w.n.Publish(t.Context(), &status.Update{Hub: "h", InstanceID: "i", Kind: status.KindLifecycle, RuntimeStatus: status.Running}); err != nil {
		t.Fatal(err)
	}
	if n := w.enqueued(); n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
}

// Who may publish is what the policy file says now; a broken file changes nothing.
func TestW8RightToPublishEndsWithItsRule(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil { // the notifier listens for it from New on
			t.Fatal(err)
		}
	}
	full := string(policy.Development())
	if err := os.WriteFile(path, []byte(full), 0o600); err != nil {
		t.Fatal(err)
	}
	w := start(t, time.Second, func(c *notifier.Config, o *notifier.Options) { c.Policy, o.Policy = path, nil })
	if got := w.post("first"); got != accepted {
		t.Fatalf("got %s, want %s", got, accepted)
	}
	write("version: 2")
	w.until("the broken file is noticed", func() bool {
		got, err := http.Get("http://" + w.n.PrivateAddr().String() + "/metrics")
		if err != nil {
			return false
		}
		defer got.Body.Close()
		text, err := io.ReadAll(got.Body)
		return err == nil && strings.Contains(string(text), `statusrelay_reload_failures_total{file="policy"} 1`)
	})
	if got := w.post("second"); got != accepted {
		t.Errorf("with a broken file: got %s, want %s", got, accepted)
	}
	write(strings.Replace(full, "'publisher' in claims.roles", "'nobody' in claims.roles", 1))
	w.until("the right is gone", func() bool { return strings.HasPrefix(w.post("third"), "403") })
	write(full)
	w.until("the right is back", func() bool { return w.post("fourth") == accepted })
}
