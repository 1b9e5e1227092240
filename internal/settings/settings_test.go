package settings_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"statusrelay/internal/settings"
)

type issuer struct {
	URL string        `koanf:"url"`
	TTL time.Duration `koanf:"ttl"`
}

// Pool is embedded: its settings are those of the struct around it.
type Pool struct {
	DB    int     `koanf:"db" usage:"database number"`
	Ratio float64 `koanf:"ratio" usage:"share | of the pool"`
}

type config struct {
	Level slog.Level `koanf:"level" usage:"lowest level that is logged"`
	Redis struct {
		Addrs       []string      `koanf:"addrs" usage:"host:port of each server"`
		DialTimeout time.Duration `koanf:"dial_timeout" usage:"longest time to connect"`
		Pool
		TLS      bool            `koanf:"tls" usage:"encrypt"`
		Password settings.Secret `koanf:"password" usage:"password"`
	} `koanf:"redis"`
	Body    settings.Bytes    `koanf:"body" usage:"largest body"`
	Topic   string            `koanf:"topic" usage:"name of the topic"`
	Small   uint8             `koanf:"small" usage:"a small number"`
	Labels  map[string]string `koanf:"labels" usage:"fixed labels"`
	Issuers []issuer          `koanf:"issuers" usage:"trusted issuers"`
	Token   settings.Secret   `koanf:"token" usage:"token"`
}

func (c *config) Validate() error {
	var errs []error
	if c.Topic == "" {
		errs = append(errs, errors.New("topic: required"))
	}
	if c.Redis.DialTimeout <= 0 {
		errs = append(errs, errors.New("redis.dial_timeout: must be positive"))
	}
	return errors.Join(errs...)
}

func defaults() config {
	var c config
	c.Topic, c.Body = "status", 256*settings.KiB
	c.Redis.Addrs, c.Redis.DialTimeout = []string{"one:1", "two:2"}, 5*time.Second
	c.Labels, c.Issuers = map[string]string{"env": "dev"}, []issuer{}
	return c
}

// load runs a command line the way a program does.
func load(t *testing.T, args ...string) (config, *settings.Set[config], error) {
	t.Helper()
	var (
		cfg config
		set *settings.Set[config]
		err error
	)
	cmd := &cobra.Command{Use: "relay", SilenceUsage: true, SilenceErrors: true, Run: func(*cobra.Command, []string) {
		cfg, err = set.Load()
	}}
	set = settings.Bind(cmd, defaults())
	cmd.SetArgs(args)
	if parse := cmd.Execute(); parse != nil {
		t.Fatalf("command line %q: %v", args, parse)
	}
	return cfg, set, err
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	type env map[string]string
	tests := []struct {
		name string
		file string
		env  env
		args []string
		got  func(config) any
		want any
	}{
		{"default", "", nil, nil, func(c config) any { return c.Redis.DialTimeout }, 5 * time.Second},
		{"file", "redis: {dial_timeout: 1m}", nil, nil, func(c config) any { return c.Redis.DialTimeout }, time.Minute},
		{
			"environment", "redis: {dial_timeout: 1m}",
			env{"STATUSRELAY_REDIS_DIAL_TIMEOUT": "2m"},
			nil,
			func(c config) any { return c.Redis.DialTimeout }, 2 * time.Minute,
		},
		{
			"flag", "redis: {dial_timeout: 1m}",
			env{"STATUSRELAY_REDIS_DIAL_TIMEOUT": "2m"},
			[]string{"--redis-dial-timeout=3m"},
			func(c config) any { return c.Redis.DialTimeout }, 3 * time.Minute,
		},
		{"empty variable is none", "topic: a", env{"STATUSRELAY_TOPIC": ""}, nil, func(c config) any { return c.Topic }, "a"},
		{"null in the file is none", "topic: ", nil, nil, func(c config) any { return c.Topic }, "status"},
		{"section without keys", "redis: ", nil, nil, func(c config) any { return c.Redis.DialTimeout }, 5 * time.Second},
		{"shorter list replaces", "redis: {addrs: [x:1]}", nil, nil, func(c config) any { return c.Redis.Addrs }, []string{"x:1"}},
		{"empty list replaces", "redis: {addrs: []}", nil, nil, func(c config) any { return c.Redis.Addrs }, []string{}},
		{"list in a variable", "", env{"STATUSRELAY_REDIS_ADDRS": "x:1, y:2"}, nil, func(c config) any { return c.Redis.Addrs }, []string{"x:1", "y:2"}},
		{"list in flags", "", nil, []string{"--redis-addrs=x:1,y:2", "--redis-addrs=z:3"}, func(c config) any { return c.Redis.Addrs }, []string{"x:1", "y:2", "z:3"}},
		{"empty list in a flag", "", nil, []string{"--redis-addrs="}, func(c config) any { return c.Redis.Addrs }, []string{}},
		{"map with a dot in a key", "labels: {a.b: c}", nil, nil, func(c config) any { return c.Labels }, map[string]string{"a.b": "c"}},
		{"map replaces", "labels: {a: b}", nil, nil, func(c config) any { return c.Labels }, map[string]string{"a": "b"}},
		{"list of structs", "issuers: [{url: u, ttl: 1s}]", nil, nil, func(c config) any { return c.Issuers }, []issuer{{"u", time.Second}}},
		{"bool flag without value", "", nil, []string{"--redis-tls"}, func(c config) any { return c.Redis.TLS }, true},
		{"bool in a variable", "", env{"STATUSRELAY_REDIS_TLS": "true"}, nil, func(c config) any { return c.Redis.TLS }, true},
		{"bool in the file", "redis: {tls: true}", nil, nil, func(c config) any { return c.Redis.TLS }, true},
		{"int", "redis: {db: 7}", nil, nil, func(c config) any { return c.Redis.DB }, 7},
		{"negative int", "redis: {db: -7}", nil, nil, func(c config) any { return c.Redis.DB }, -7},
		{"float", "redis: {ratio: 0.25}", nil, nil, func(c config) any { return c.Redis.Ratio }, 0.25},
		{"text unmarshaler", "level: warn", nil, nil, func(c config) any { return c.Level }, slog.LevelWarn},
		{"size", "body: 1MiB", nil, nil, func(c config) any { return c.Body }, settings.MiB},
		{"size as a number", "body: 1024", nil, nil, func(c config) any { return c.Body }, settings.KiB},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			args := tt.args
			if path := write(t, "relay.yaml", tt.file); i%2 == 0 {
				args = append(args, "--config", path)
			} else {
				t.Setenv("STATUSRELAY_CONFIG", path)
			}
			cfg, _, err := load(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.got(cfg); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %#v, want %#v", got, tt.want)
			}
		})
	}
}

func TestAllMistakesAreReportedAtOnceWithTheirOrigin(t *testing.T) {
	path := write(t, "relay.yaml", `
toppic: x
Topic: case counts
topic: 5
small: 300
redis:
  adrs: [x]
  ratio: lots
  db: 1.5
issuers: [{url: u, tll: 1s}]
token: s3cret
redis.tls: true
`)
	t.Setenv("STATUSRELAY_REDIS_DIAL_TIMEOUT", "5")
	t.Setenv("STATUSRELAY_LEVEL", "loud")
	t.Setenv("STATUSRELAY_REDIS_PASSWORD", "s3cret")
	t.Setenv("STATUSRELAY_REDIS_PASSWORD_FILE", path)
	_, _, err := load(t, "--config", path, "--redis-tls=maybe", "--body=much")
	if err == nil {
		t.Fatal("no error")
	}
	got := strings.Split(err.Error(), "\n")
	want := []string{
		`redis.password: given twice, by STATUSRELAY_REDIS_PASSWORD and by STATUSRELAY_REDIS_PASSWORD_FILE`,
		`token (FILE): a secret does not belong in the file: set STATUSRELAY_TOKEN, or name a file in token_file`,
		`toppic (FILE): unknown setting`,
		`Topic (FILE): unknown setting`,
		`redis.tls (FILE): unknown setting`,
		`redis.adrs (FILE): unknown setting`,
		`issuers[0] (FILE): has invalid keys: tll`,
		`topic (FILE): want text (in quotes if it looks like something else), have "5"`,
		`small (FILE): want a whole number, have "300"`,
		`redis.ratio (FILE): want a number, have "lots"`,
		`redis.db (FILE): want a whole number, have "1.5"`,
		`redis.dial_timeout (STATUSRELAY_REDIS_DIAL_TIMEOUT): want a duration with its unit, such as "30s", have "5"`,
		`level (STATUSRELAY_LEVEL): slog: level string "loud": unknown name`,
		`redis.tls (--redis-tls): want true or false, have "maybe"`,
		`body (--body): want a size such as "256KiB", have "much"`,
	}
	for _, line := range want {
		line = strings.ReplaceAll(line, "FILE)", path+")")
		if strings.Contains(line, "PASSWORD") {
			line = strings.ReplaceAll(line, path+")", "FILE)")
		}
		found := false
		for i, g := range got {
			if g == line {
				got = append(got[:i], got[i+1:]...)
				found = true
				break
			}
		}
		if !found {
			t.Errorf("not reported: %s", line)
		}
	}
	for _, line := range got {
		t.Errorf("reported besides: %s", line)
	}
}

func TestValidateIsAskedTooAndDoesNotRepeatWhatCouldNotBeRead(t *testing.T) {
	tests := []struct {
		name, file string
		want       []string
	}{
		{"both of validate", "topic: ''\nredis: {dial_timeout: 0s}", []string{"topic: required", "redis.dial_timeout: must be positive"}},
		{"unreadable keeps its default", "redis: {dial_timeout: -5}", []string{`redis.dial_timeout (FILE): want a duration with its unit, such as "30s", have "-5"`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, "relay.yaml", tt.file)
			_, _, err := load(t, "--config", path)
			if err == nil {
				t.Fatal("no error")
			}
			if got, want := err.Error(), strings.ReplaceAll(strings.Join(tt.want, "\n"), "FILE", path); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestUnreadableFileIsAMistakeThatShowsNothingOfIt(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"broken", "token: [s3cret", "line 1: did not find expected"},
		{"duplicate", "token: s3cret\ntoken: s3cret\n", "line 2: mapping key \"token\" already defined"},
		{"list", "- s3cret\n", "line 1: cannot unmarshal !!seq"},
		{"section is none", "redis: s3cret\n", "redis ("},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := load(t, "--config", write(t, "relay.yaml", tt.content))
			if err == nil {
				t.Fatal("no error")
			}
			if got := err.Error(); !strings.Contains(got, tt.want) || strings.Contains(got, "s3cret") {
				t.Errorf("got %q, want one that has %q and not the value", got, tt.want)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		_, _, err := load(t, "--config", filepath.Join(t.TempDir(), "none.yaml"))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}
