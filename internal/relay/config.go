package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
)

// Config is everything that can be configured about a relay. Each field is a
// flag, an environment variable and a key of the YAML file; package settings
// says how they are named.
type Config struct {
	Listen         string        `koanf:"listen" usage:"address of the public listener"`
	PrivateListen  string        `koanf:"private_listen" usage:"address of the private listener: health, readiness, metrics, profiles"`
	Policy         string        `koanf:"policy" usage:"path of the policy file; read again when it changes"`
	DefaultHub     string        `koanf:"default_hub" usage:"hub of updates and requests that name none"`
	Origins        []string      `koanf:"origins" usage:"web origins whose pages may read and watch, such as https://portal.example; none by default"`
	PublicURL      string        `koanf:"public_url" usage:"what callers see in front of every path, such as https://api.example/status; default: the request's host"`
	TrustedProxies []string      `koanf:"trusted_proxies" usage:"addresses and networks, such as 10.0.0.0/8, of proxies that are believed who has called them; none by default"`
	ProxyHeaders   string        `koanf:"proxy_headers" usage:"where they say it: x-forwarded (X-Forwarded-For and -Proto) or forwarded (RFC 7239); the other is never read"`
	DrainTimeout   time.Duration `koanf:"drain_timeout" usage:"time to settle, answer and close sockets when told to stop"`

	Log          shell.Log        `koanf:"log"`
	TLS          shell.TLS        `koanf:"tls"`
	PrivateTLS   shell.KeyPair    `koanf:"private_tls"`
	Auth         shell.Auth       `koanf:"auth"`
	ServiceBus   shell.ServiceBus `koanf:"service_bus"`
	Subscription string           `koanf:"subscription" usage:"the topic's subscription, which all replicas share"`
	Redis        Redis            `koanf:"redis"`
	Watch        Watch            `koanf:"watch"`
	Read         Read             `koanf:"read"`
	Links        Links            `koanf:"links"`
	Bridge       Bridge           `koanf:"bridge"`
	Limits       Limits           `koanf:"limits"`
}

// Links says who signs links to the status of one instance.
type Links struct {
	Keys    string        `koanf:"keys" usage:"path of the file of keys that sign and verify links (docs/links.md); read again when it changes; without it there are no links"`
	MaxLife time.Duration `koanf:"max_life" usage:"how long a link may be good for, whoever signed it; at most 720h"`
}

// load returns the links, nil when there are none.
func (l Links) load(f *shell.Files, refused *auth.Refusals) (*auth.Links, error) {
	if l.Keys == "" {
		return nil, nil
	}
	return shell.LoadLinks(f, l.Keys, auth.LinkOptions{MaxLife: l.MaxLife, Refusals: refused})
}

// Watch bounds what WebSocket clients may do.
type Watch struct {
	MaxSockets   int           `koanf:"max_sockets" usage:"sockets that this replica holds"`
	MaxWatches   int           `koanf:"max_watches" usage:"instances watched on one socket"`
	PingInterval time.Duration `koanf:"ping_interval" usage:"time between pings; below the idle limit of every proxy on the way"`
	WriteTimeout time.Duration `koanf:"write_timeout" usage:"time for one write before a client counts as stuck"`
	Compression  bool          `koanf:"compression" usage:"offer permessage-deflate; not where a status mixes secrets with text that others choose"`
}

// Read bounds what HTTP clients may do, and says how often they should.
type Read struct {
	MaxWait      time.Duration `koanf:"max_wait" usage:"longest long-poll (Prefer: wait); below the idle limit of every proxy on the way"`
	MaxWaiting   int           `koanf:"max_waiting" usage:"long-polls, and requests that wait for a bridge, that this replica holds"`
	MaxStreams   int           `koanf:"max_streams" usage:"event streams that this replica holds"`
	MaxPerCaller int           `koanf:"max_per_caller" usage:"the same, and event streams, that this replica holds for one caller"`
	RetryMin     time.Duration `koanf:"retry_min" usage:"least Retry-After while an instance runs"`
	RetryMax     time.Duration `koanf:"retry_max" usage:"greatest Retry-After while an instance runs"`
	Heartbeat    time.Duration `koanf:"heartbeat" usage:"time between comments in an event stream; below the idle limit of every proxy on the way"`
}

// Bridge says what to let a bridge fetch, which watches a runtime that does not publish by itself.
type Bridge struct {
	Hubs      []string      `koanf:"hubs" usage:"hubs of which a bridge (notifier, bridge.url) fetches what somebody here wants; none by default"`
	FirstWait time.Duration `koanf:"first_wait" usage:"how long a request for what is not there, or not for the caller, waits for a bridge to fetch it; 0: not at all"`
	Interest  time.Duration `koanf:"interest" usage:"how long an instance is of interest after somebody has asked for it, or watched it; at most 1h"`
}

// maxFirstWait is short of what callers and proxies wait for an answer.
const maxFirstWait = 30 * time.Second

// mistakes are those of the bridge.
func (b Bridge) mistakes() (errs []error) {
	for i, hub := range b.Hubs {
		if err := status.ValidHub(hub); err != nil {
			errs = append(errs, fmt.Errorf("bridge.hubs: %w", err))
		} else if slices.Contains(b.Hubs[:i], hub) {
			errs = append(errs, fmt.Errorf("bridge.hubs: %s more than once", hub))
		}
	}
	if b.FirstWait < 0 || b.FirstWait > maxFirstWait {
		errs = append(errs, fmt.Errorf("bridge.first_wait: not between 0s and %s", maxFirstWait))
	}
	if b.Interest < minInterest || b.Interest > redisstore.MaxInterest {
		errs = append(errs, fmt.Errorf("bridge.interest: not between %s and %s", minInterest, redisstore.MaxInterest))
	}
	return errs
}

// minInterest leaves a bridge that misses what is announced the time to read what is wanted.
const minInterest = 5 * time.Second

// Defaults is the configuration before anything is configured.
func Defaults() Config {
	return Config{
		Listen:        ":8080",
		PrivateListen: "127.0.0.1:9090",
		DefaultHub:    "default",
		ProxyHeaders:  "x-forwarded",
		DrainTimeout:  25 * time.Second,
		Log:           shell.Log{Level: "info", Format: "text"},
		Auth:          shell.DefaultAuth(),
		ServiceBus:    shell.ServiceBus{Topic: "status"},
		Subscription:  "relay",
		Redis: Redis{
			Redis:       shell.Redis{Addrs: []string{"127.0.0.1:6379"}, Prefix: "statusrelay"},
			IndexLabels: []string{"owner", "tenant"}, TTL: 7 * 24 * time.Hour, TerminalTTL: 24 * time.Hour,
		},
		Watch: Watch{
			MaxSockets: 50_000, MaxWatches: 100,
			PingInterval: 25 * time.Second, WriteTimeout: 10 * time.Second,
		},
		Read: Read{
			MaxWait: 55 * time.Second, MaxWaiting: 10_000, MaxStreams: 10_000, MaxPerCaller: 1000,
			RetryMin: time.Second, RetryMax: time.Minute, Heartbeat: 15 * time.Second,
		},
		Links:  Links{MaxLife: auth.DefaultLinkLife},
		Bridge: Bridge{FirstWait: 2 * time.Second, Interest: time.Minute},
		Limits: defaultLimits(),
	}
}

// Validate reports every mistake, each with its key.
func (c Config) Validate() error {
	var errs []error
	positive := func(key string, value int64) {
		if value <= 0 {
			errs = append(errs, fmt.Errorf("%s: not positive", key))
		}
	}
	if err := status.ValidHub(c.DefaultHub); err != nil {
		errs = append(errs, fmt.Errorf("default_hub: %w", err))
	}
	errs = append(errs, c.Redis.Validate())
	if c.Subscription == "" {
		errs = append(errs, errors.New("subscription: required"))
	}
	positive("drain_timeout", int64(c.DrainTimeout))
	positive("watch.max_sockets", int64(c.Watch.MaxSockets))
	positive("watch.max_watches", int64(c.Watch.MaxWatches))
	positive("watch.ping_interval", int64(c.Watch.PingInterval))
	positive("watch.write_timeout", int64(c.Watch.WriteTimeout))
	positive("read.max_waiting", int64(c.Read.MaxWaiting))
	positive("read.max_streams", int64(c.Read.MaxStreams))
	positive("read.max_per_caller", int64(c.Read.MaxPerCaller))
	positive("read.retry_min", int64(c.Read.RetryMin))
	positive("read.heartbeat", int64(c.Read.Heartbeat))
	if c.Read.Heartbeat > 25*time.Second {
		errs = append(errs, errors.New("read.heartbeat: more than 25s: a stream notices with it that rights were taken away"))
	}
	if c.Read.MaxWait < time.Second {
		errs = append(errs, errors.New("read.max_wait: less than a second"))
	}
	if c.Read.RetryMax < c.Read.RetryMin {
		errs = append(errs, errors.New("read.retry_max: less than read.retry_min"))
	}
	if c.Links.MaxLife < time.Minute || c.Links.MaxLife > auth.MaxLinkLife {
		errs = append(errs, fmt.Errorf("links.max_life: not between 1m and %.0fh", auth.MaxLinkLife.Hours()))
	}
	if err := validBase(c.PublicURL); err != nil {
		errs = append(errs, fmt.Errorf("public_url: %w", err))
	}
	errs = append(errs, c.Bridge.mistakes()...)
	errs = append(errs, c.Limits.mistakes()...)
	errs = append(errs, c.Base().Validate(), c.ServiceBus.Validate())
	return errors.Join(errs...)
}

// Base is the part that both programs have.
func (c Config) Base() shell.BaseConfig {
	return shell.BaseConfig{
		Log: c.Log, Auth: c.Auth, Policy: c.Policy, Listen: c.Listen, PrivateListen: c.PrivateListen,
		TLS: c.TLS, PrivateTLS: c.PrivateTLS, TrustedProxies: c.TrustedProxies, ProxyHeaders: c.ProxyHeaders,
	}
}

// Check reads every file that is named and reports every mistake in them.
func (c Config) Check() error {
	log := slog.New(slog.DiscardHandler)
	_, err := c.Redis.Options(shell.NewFiles(log, nil), log, nil)
	_, linksErr := c.Links.load(shell.NewFiles(log, nil), nil)
	return errors.Join(c.Base().Check(), err, linksErr)
}

// validBase reports what is wrong with a URL that paths are put behind.
func validBase(base string) error {
	if base == "" {
		return nil
	}
	u, err := url.Parse(base)
	switch {
	case err != nil:
		return errors.New("not a URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return errors.New("not http:// or https:// and a host")
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.HasSuffix(base, "/"):
		return errors.New("more than scheme, host and path, or a slash at the end")
	}
	return nil
}
