package notifier_test

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/notifier"
	"statusrelay/internal/settings"
)

// valid is a configuration with a bridge.
func valid() notifier.Config {
	c := notifier.Defaults()
	c.Listen, c.Policy = "127.0.0.1:0", "policy.yaml"
	c.Auth.APIKeys = "keys.yaml"
	c.ServiceBus.Namespace = "ns.servicebus.windows.net"
	c.Redis.Addrs = []string{"localhost:6379"}
	c.Bridge.URL = "https://app.example/runtime/webhooks/durabletask"
	return c
}

// Every mistake about the bridge is told at once and with its key, and none of them
// quotes a function key.
func TestMistakesAboutTheBridge(t *testing.T) {
	c := valid()
	if err := c.Validate(); err != nil {
		t.Fatalf("what is valid: %v", err)
	}
	c.Redis.Addrs = nil
	c.Bridge.URL += "?code=s3cret"
	c.Bridge.Hub = "a hub"
	c.Bridge.Labels = map[string]string{"tenant": "/a~"}
	c.Bridge.MinInterval, c.Bridge.MaxInterval, c.Bridge.TerminalInterval, c.Bridge.AbsentFor = time.Millisecond, -1, 0, 0
	c.Bridge.Silence, c.Bridge.Reconcile, c.Bridge.Timeout, c.Bridge.Discover = 0, 0, 0, time.Second
	c.Bridge.Rate, c.Bridge.Concurrency, c.Bridge.MaxBodyBytes = 0, 0, 0
	err := c.Validate()
	if err == nil {
		t.Fatal("no mistake")
	}
	for _, want := range []string{
		"bridge.url: has more than a path", "bridge.url: needs redis.addrs", "bridge.hub: ", "bridge.labels: tenant", "bridge.min_interval: ", "bridge.max_interval: ",
		"bridge.terminal_interval: ", "bridge.absent_for: ", "bridge.silence: ", "bridge.reconcile: ", "bridge.timeout: ", "bridge.discover: ",
		"bridge.rate: ", "bridge.concurrency: ", "bridge.max_body_bytes: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Errorf("it quotes the key: %v", err)
	}

	c = valid()
	c.Bridge.URL, c.Bridge.TaskHub = "", "Orders"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "bridge.url: required") {
		t.Errorf("a task hub without a URL: got %v", err)
	}
	c = valid()
	c.Bridge.MaxInterval = c.Bridge.MinInterval / 2
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "bridge.max_interval: less") {
		t.Errorf("a maximum below the minimum: got %v", err)
	}
}

// buffer is a log that several write to, while others read it: keys of issuers may still be fetched when all else has ended.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Who sends a key over a network in plain text is told so.
func TestPlainKeyIsComplainedOf(t *testing.T) {
	for url, want := range map[string]bool{
		"http://127.0.0.1:1/x": false, "http://localhost:1/x": false, "https://app.example/x": false, "http://app.example/x": true,
	} {
		var log buffer
		w := start(t, time.Second, func(c *notifier.Config, o *notifier.Options) {
			c.Redis.Addrs = []string{"127.0.0.1:1"} // where nobody is
			c.Bridge.URL, c.Bridge.Key = url, settings.NewSecret("s3cret")
			o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		})
		w.stop()
		if err := <-w.ended; err != nil {
			t.Error(err)
		}
		if got := strings.Contains(log.String(), "plain text"); got != want || strings.Contains(log.String(), "s3cret") {
			t.Errorf("%s: got %q, want a complaint: %v", url, log.String(), want)
		}
	}
}
