package notifier

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

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
	Rate           float64       `koanf:"rate" usage:"updates per second and caller"`

	Log        shell.Log        `koanf:"log"`
	TLS        shell.TLS        `koanf:"tls"`
	PrivateTLS shell.KeyPair    `koanf:"private_tls"`
	Auth       shell.Auth       `koanf:"auth"`
	ServiceBus shell.ServiceBus `koanf:"service_bus"`
	Redis      shell.Redis      `koanf:"redis"` // no address: the notifier uses none
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
		Rate:          1000,
		Log:           shell.Log{Level: "info", Format: "text"},
		Auth:          shell.DefaultAuth(),
		ServiceBus:    shell.ServiceBus{Topic: "status"},
		Redis:         shell.Redis{Prefix: "statusrelay"},
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
	if c.Rate <= 0 {
		errs = append(errs, errors.New("rate: not positive"))
	}
	errs = append(errs, c.Base().Validate(), c.ServiceBus.Validate(), c.Redis.Validate())
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
