package relay

import (
	"errors"
	"fmt"
	"time"

	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
)

// Config is everything that can be configured about a relay. Each field is a
// flag, an environment variable and a key of the YAML file; package settings
// says how they are named.
type Config struct {
	Listen        string        `koanf:"listen" usage:"address of the public listener"`
	PrivateListen string        `koanf:"private_listen" usage:"address of the private listener: health, readiness, metrics, profiles"`
	Policy        string        `koanf:"policy" usage:"path of the policy file"`
	DefaultHub    string        `koanf:"default_hub" usage:"hub of updates and requests that name none"`
	Origins       []string      `koanf:"origins" usage:"web origins whose pages may read and watch, such as https://portal.example; none by default"`
	DrainTimeout  time.Duration `koanf:"drain_timeout" usage:"time to settle, answer and close sockets when told to stop"`

	Log          shell.Log        `koanf:"log"`
	Auth         shell.Auth       `koanf:"auth"`
	ServiceBus   shell.ServiceBus `koanf:"service_bus"`
	Subscription string           `koanf:"subscription" usage:"the topic's subscription, which all replicas share"`
	Redis        Redis            `koanf:"redis"`
	Watch        Watch            `koanf:"watch"`
}

// Redis says where records are kept.
type Redis struct {
	Addrs       []string        `koanf:"addrs" usage:"addresses: one of a server, several of a cluster, or Sentinels with a master name"`
	Cluster     bool            `koanf:"cluster" usage:"the single address is a cluster's, as on Azure Managed Redis"`
	MasterName  string          `koanf:"master_name" usage:"name of the master that the Sentinels watch"`
	Username    string          `koanf:"username" usage:"user name (Redis ACL)"`
	Password    settings.Secret `koanf:"password" usage:"password"`
	TLS         bool            `koanf:"tls" usage:"use TLS, verified with the system's roots"`
	DB          int             `koanf:"db" usage:"database number; 0 on a cluster"`
	Prefix      string          `koanf:"prefix" usage:"prefix of every key and channel"`
	TTL         time.Duration   `koanf:"ttl" usage:"how long a record is kept after its last change"`
	TerminalTTL time.Duration   `koanf:"terminal_ttl" usage:"how long it is kept when its orchestration has ended"`
}

// Watch bounds what WebSocket clients may do.
type Watch struct {
	MaxSockets   int           `koanf:"max_sockets" usage:"sockets that this replica holds"`
	MaxWatches   int           `koanf:"max_watches" usage:"instances watched on one socket"`
	PingInterval time.Duration `koanf:"ping_interval" usage:"time between pings; below the idle limit of every proxy on the way"`
	WriteTimeout time.Duration `koanf:"write_timeout" usage:"time for one write before a client counts as stuck"`
}

// Defaults is the configuration before anything is configured.
func Defaults() Config {
	return Config{
		Listen:        ":8080",
		PrivateListen: "127.0.0.1:9090",
		DefaultHub:    "default",
		DrainTimeout:  25 * time.Second,
		Log:           shell.Log{Level: "info", Format: "text"},
		Auth:          shell.DefaultAuth(),
		ServiceBus:    shell.ServiceBus{Topic: "status"},
		Subscription:  "relay",
		Redis: Redis{
			Addrs:  []string{"127.0.0.1:6379"},
			Prefix: "statusrelay",
			TTL:    7 * 24 * time.Hour, TerminalTTL: 24 * time.Hour,
		},
		Watch: Watch{
			MaxSockets: 50_000, MaxWatches: 100,
			PingInterval: 25 * time.Second, WriteTimeout: 10 * time.Second,
		},
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
	if c.Policy == "" {
		errs = append(errs, errors.New("policy: required"))
	}
	if len(c.Redis.Addrs) == 0 {
		errs = append(errs, errors.New("redis.addrs: required"))
	}
	if c.Subscription == "" {
		errs = append(errs, errors.New("subscription: required"))
	}
	positive("drain_timeout", int64(c.DrainTimeout))
	positive("redis.ttl", int64(c.Redis.TTL))
	positive("redis.terminal_ttl", int64(c.Redis.TerminalTTL))
	positive("watch.max_sockets", int64(c.Watch.MaxSockets))
	positive("watch.max_watches", int64(c.Watch.MaxWatches))
	positive("watch.ping_interval", int64(c.Watch.PingInterval))
	positive("watch.write_timeout", int64(c.Watch.WriteTimeout))
	errs = append(errs, c.Auth.Validate(), c.ServiceBus.Validate(), c.Log.Validate())
	return errors.Join(errs...)
}
