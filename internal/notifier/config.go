package notifier

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"statusrelay/internal/limit"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
)

// Config is everything that can be configured about a notifier that serves.
// Each field is a flag, an environment variable and a key of the YAML file;
// package settings says how they are named.
type Config struct {
	Listen         string        `koanf:"listen" usage:"address of the public listener"`
	PrivateListen  string        `koanf:"private_listen" usage:"address of the private listener: health, readiness, metrics, profiles"`
	Policy         string        `koanf:"policy" usage:"path of the policy file; its publishers section counts here; read again when it changes"`
	DefaultHub     string        `koanf:"default_hub" usage:"hub of updates that name none"`
	TrustedProxies []string      `koanf:"trusted_proxies" usage:"addresses and networks, such as 10.0.0.0/8, of proxies that are believed who has called them; none by default"`
	ProxyHeaders   string        `koanf:"proxy_headers" usage:"where they say it: x-forwarded (X-Forwarded-For and -Proto) or forwarded (RFC 7239); the other is never read"`
	DrainTimeout   time.Duration `koanf:"drain_timeout" usage:"time to finish what is in hand when told to stop"`
	MaxBodyBytes   int64         `koanf:"max_body_bytes" usage:"largest request body"`
	MaxUpdates     int           `koanf:"max_updates" usage:"most updates in one request"`
	MaxInFlight    int64         `koanf:"max_in_flight" usage:"bytes that all requests hold together: 32 KiB for each, 4 KiB for each update, and three times the bodies; more requests are answered 503"`
	Rate           float64       `koanf:"rate" usage:"updates per second and caller"`
	Stamp          bool          `koanf:"stamp" usage:"give generation and sequence to updates that have neither, by counters in Redis"`

	Log         shell.Log        `koanf:"log"`
	TLS         shell.TLS        `koanf:"tls"`
	PrivateTLS  shell.KeyPair    `koanf:"private_tls"`
	Auth        shell.Auth       `koanf:"auth"`
	ServiceBus  shell.ServiceBus `koanf:"service_bus"`
	Redis       shell.Redis      `koanf:"redis"` // no address: the notifier uses none
	Idempotency Idempotency      `koanf:"idempotency"`
	EventGrid   EventGrid        `koanf:"eventgrid"`
	Bridge      Bridge           `koanf:"bridge"` // no URL: there is none
	Limits      shell.Door       `koanf:"limits"`
}

// Idempotency is about CloudEvents that are sent again.
type Idempotency struct {
	TTL time.Duration `koanf:"ttl" usage:"how long a CloudEvents event (its caller, source and id) that was published is known, and accepted without being published again: by all replicas where there is Redis, else by each for the newest 65,536; 0: not at all"`
}

// EventGrid says how events of Azure Event Grid are read.
type EventGrid struct {
	Hubs         []string      `koanf:"hubs" usage:"task hubs whose hub has another name, each as TASKHUB=hub"`
	Hold         time.Duration `koanf:"hold" usage:"how long a Completed is held back in case it only means that the orchestration continues as new; 0: not at all"`
	MaxBodyBytes int64         `koanf:"max_body_bytes" usage:"largest request body; Event Grid sends up to 1 MB, and never again what is too large"`
	MaxEvents    int           `koanf:"max_events" usage:"most events in one request; Event Grid sends up to 5000, and never again what is too many"`
}

// hubs are those of task hubs whose hub has another name.
func (e EventGrid) hubs() (map[string]string, error) {
	hubs := make(map[string]string, len(e.Hubs))
	var errs []error
	for _, entry := range e.Hubs {
		task, hub, ok := strings.Cut(entry, "=")
		_, again := hubs[task]
		switch err := status.ValidHub(hub); {
		case !ok || task == "":
			errs = append(errs, fmt.Errorf("eventgrid.hubs: %q is not TASKHUB=hub", entry))
		case err != nil:
			errs = append(errs, fmt.Errorf("eventgrid.hubs: %q: %w", entry, err))
		case again:
			errs = append(errs, fmt.Errorf("eventgrid.hubs: %q is there twice", task))
		}
		hubs[task] = hub
	}
	return hubs, errors.Join(errs...)
}

func (e EventGrid) validate() error {
	_, err := e.hubs()
	errs := []error{err}
	if e.Hold < 0 {
		errs = append(errs, errors.New("eventgrid.hold: negative"))
	}
	if e.MaxBodyBytes <= 0 {
		errs = append(errs, errors.New("eventgrid.max_body_bytes: not positive"))
	}
	if e.MaxEvents <= 0 {
		errs = append(errs, errors.New("eventgrid.max_events: not positive"))
	}
	return errors.Join(errs...)
}

// Defaults is the configuration before anything is configured.
func Defaults() Config {
	return Config{
		Listen:        ":8081",
		PrivateListen: "127.0.0.1:9091",
		DefaultHub:    "default",
		ProxyHeaders:  "x-forwarded",
		DrainTimeout:  25 * time.Second,
		MaxBodyBytes:  1 << 20,
		MaxUpdates:    1000,
		MaxInFlight:   64 << 20,
		Rate:          1000,
		Log:           shell.Log{Level: "info", Format: "text"},
		Auth:          shell.DefaultAuth(),
		ServiceBus:    shell.ServiceBus{Topic: "status"},
		Redis:         shell.Redis{Prefix: "statusrelay"},
		Idempotency:   Idempotency{TTL: 24 * time.Hour},
		EventGrid:     EventGrid{Hold: 3 * time.Second, MaxBodyBytes: 2 << 20, MaxEvents: 5000},
		Bridge:        defaultBridge(),
		Limits:        shell.DefaultDoor(),
	}
}

// Validate reports every mistake, each with its key.
func (c Config) Validate() error {
	var errs []error
	if err := status.ValidHub(c.DefaultHub); err != nil {
		errs = append(errs, fmt.Errorf("default_hub: %w", err))
	}
	if c.DrainTimeout <= 0 {
		errs = append(errs, errors.New("drain_timeout: not positive"))
	}
	if c.MaxBodyBytes <= 0 {
		errs = append(errs, errors.New("max_body_bytes: not positive"))
	}
	if c.MaxUpdates <= 0 {
		errs = append(errs, errors.New("max_updates: not positive"))
	}
	if c.MaxInFlight < limit.Holds(c.MaxBodyBytes, c.MaxUpdates) {
		errs = append(errs, errors.New("max_in_flight: less than the largest request holds, of max_body_bytes with max_updates"))
	}
	if c.MaxInFlight < limit.Holds(c.EventGrid.MaxBodyBytes, c.EventGrid.MaxEvents) {
		errs = append(errs, errors.New("max_in_flight: less than the largest request holds, of eventgrid.max_body_bytes with eventgrid.max_events"))
	}
	if c.Stamp && len(c.Redis.Addrs) == 0 {
		errs = append(errs, errors.New("stamp: needs redis.addrs"))
	}
	if c.Idempotency.TTL < 0 || c.Idempotency.TTL > 0 && c.Idempotency.TTL < time.Second {
		errs = append(errs, errors.New("idempotency.ttl: neither 0 nor a second or more"))
	}
	if c.Rate <= 0 {
		errs = append(errs, errors.New("rate: not positive"))
	}
	errs = append(errs, c.Base().Validate(), c.ServiceBus.Validate(), c.Redis.Validate(), c.EventGrid.validate(), c.Limits.Validate(), c.validateBridge())
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
	return errors.Join(c.Base().Check(), err)
}
