package notifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"statusrelay/internal/bridge/durablehttp"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// Bridge says which function app is read, and how often. Without a URL none is.
type Bridge struct {
	URL        string          `koanf:"url" usage:"URL of the Durable Functions HTTP API that is read, up to …/runtime/webhooks/durabletask; empty: none is"`
	Hub        string          `koanf:"hub" usage:"hub that its instances belong to; default: default_hub"`
	TaskHub    string          `koanf:"task_hub" usage:"task hub that the function app is asked about; default: its own"`
	Connection string          `koanf:"connection" usage:"name of the function app's setting that has the connection string of the task hub's storage; default: its own"`
	Key        settings.Secret `koanf:"key" usage:"system key of the Durable Task extension, sent as x-functions-key; read again when it is refused"`

	Labels        map[string]string `koanf:"labels" usage:"labels of its instances: name: text, or name: a JSON Pointer into the custom status, which starts with /"`
	LifecycleOnly bool              `koanf:"lifecycle_only" usage:"publish how instances run, and leave custom statuses to activities that publish themselves"`

	MinInterval      time.Duration `koanf:"min_interval" usage:"time between reads of an instance that has just changed, at least 100ms"`
	MaxInterval      time.Duration `koanf:"max_interval" usage:"time between reads of one that does not change"`
	TerminalInterval time.Duration `koanf:"terminal_interval" usage:"time between reads of one that has ended while it is still looked at: it may be rewound, or its id used again"`
	AbsentFor        time.Duration `koanf:"absent_for" usage:"longest time between reads of one that does not exist"`
	Silence          time.Duration `koanf:"silence" usage:"time without a change after which one that has not ended is read although nobody looks at it"`
	Reconcile        time.Duration `koanf:"reconcile" usage:"time between searches for such"`
	Discover         time.Duration `koanf:"discover" usage:"time between lists of all that runs, at least 30s, each of which may make the function app read its whole table; 0: never"`

	Rate         float64       `koanf:"rate" usage:"most requests per second to the function app, whatever is looked at"`
	Concurrency  int           `koanf:"concurrency" usage:"most requests to it at a time"`
	Timeout      time.Duration `koanf:"timeout" usage:"time that it has for one"`
	MaxBodyBytes int64         `koanf:"max_body_bytes" usage:"largest answer that is read; some function apps send inputs although they are asked not to"`
}

// defaultBridge is a bridge to nowhere.
func defaultBridge() Bridge {
	return Bridge{
		MinInterval: time.Second, MaxInterval: 15 * time.Second, TerminalInterval: time.Minute, AbsentFor: 30 * time.Second,
		Silence: 5 * time.Minute, Reconcile: time.Minute, Rate: 20, Concurrency: 8, Timeout: 10 * time.Second, MaxBodyBytes: 4 << 20,
	}
}

// leastDiscover keeps discovery from being polling: a list may be a scan of all
// instances that there ever were.
const leastDiscover = 30 * time.Second

// validateBridge reports every mistake, each with its key.
func (c Config) validateBridge() error {
	b := c.Bridge
	var errs []error
	wrong := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("bridge."+key+": "+format, args...))
	}
	if b.URL != "" {
		if _, err := durablehttp.ParseURL(b.URL); err != nil {
			wrong("url", "%w", err)
		}
		if len(c.Redis.Addrs) == 0 {
			wrong("url", "needs redis.addrs, where relays say what is looked at")
		}
	} else if b.Hub != "" || b.TaskHub != "" || b.Connection != "" || !b.Key.IsZero() || len(b.Labels) > 0 || b.Discover != 0 {
		wrong("url", "required by the other settings of the bridge")
	}
	if b.Hub != "" {
		if err := status.ValidHub(b.Hub); err != nil {
			wrong("hub", "%w", err)
		}
	}
	if err := durablehttp.Labels(b.Labels).Validate(); err != nil {
		wrong("labels", "%w", err)
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"max_interval", b.MaxInterval},
		{"terminal_interval", b.TerminalInterval},
		{"absent_for", b.AbsentFor},
		{"silence", b.Silence},
		{"reconcile", b.Reconcile},
		{"timeout", b.Timeout},
	} {
		if d.value <= 0 {
			wrong(d.key, "not positive")
		}
	}
	if b.MinInterval < durablehttp.LeastInterval {
		wrong("min_interval", "less than %s", durablehttp.LeastInterval)
	}
	if b.MaxInterval > 0 && b.MaxInterval < b.MinInterval {
		wrong("max_interval", "less than bridge.min_interval")
	}
	if b.Discover != 0 && b.Discover < leastDiscover {
		wrong("discover", "neither 0 nor at least %s", leastDiscover)
	}
	if b.Rate <= 0 {
		wrong("rate", "not positive")
	}
	if b.Concurrency <= 0 {
		wrong("concurrency", "not positive")
	}
	if b.MaxBodyBytes <= 0 {
		wrong("max_body_bytes", "not positive")
	}
	return errors.Join(errs...)
}

// newBridge makes the bridge that is configured; nil: none is.
func (n *Notifier) newBridge() (*durablehttp.Bridge, error) {
	b := n.config.Bridge
	if b.URL == "" {
		return nil, nil
	}
	o := durablehttp.Options{
		URL: b.URL, Hub: b.Hub, TaskHub: b.TaskHub, Connection: b.Connection,
		Labels: b.Labels, LifecycleOnly: b.LifecycleOnly,
		MinInterval: b.MinInterval, MaxInterval: b.MaxInterval, TerminalInterval: b.TerminalInterval, AbsentFor: b.AbsentFor,
		Silence: b.Silence, Reconcile: b.Reconcile, Discover: b.Discover,
		Rate: b.Rate, Concurrency: b.Concurrency, Timeout: b.Timeout, MaxBodyBytes: b.MaxBodyBytes,
		Interest: n.store, Records: n.store, Lock: n.store, Logger: n.Log, Metrics: n.Metrics,
	}
	o.Publish = func(ctx context.Context, messages []wire.Message) []error { return Send(ctx, n.publisher, messages) }
	if o.Hub == "" {
		o.Hub = n.config.DefaultHub
	}
	if !b.Key.IsZero() {
		o.Key = b.Key.Current
		warnOfPlainKey(n.Log, b.URL)
	}
	return durablehttp.New(o)
}

// look has the replica that bridges look at instances now.
func (n *Notifier) look(ctx context.Context, keys []status.Key) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return n.store.Look(ctx, keys)
}

// warnOfPlainKey complains of a key that opens every operation on every instance and
// goes over a network in plain text.
func warnOfPlainKey(log *slog.Logger, text string) {
	u, err := durablehttp.ParseURL(text)
	if err != nil || u.Scheme != "http" || u.Hostname() == "localhost" {
		return
	}
	if ip := net.ParseIP(u.Hostname()); ip == nil || !ip.IsLoopback() {
		log.Warn("bridge.url is no https: bridge.key goes to it in plain text", "host", u.Host)
	}
}
