package settings_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"statusrelay/internal/settings"
)

func TestPrintShowsEveryValueWithItsOriginAndNoSecret(t *testing.T) {
	password := write(t, "password", value)
	path := write(t, "relay.yaml", "redis: {addrs: [x:1], tls: true}\nissuers: [{url: 'a: b', ttl: 90s}]\n")
	t.Setenv("STATUSRELAY_TOKEN", value)
	t.Setenv("STATUSRELAY_BODY", "1024")
	cfg, set, err := load(t, "--config", path, "--redis-password-file", password, "--topic", "#1")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := set.Print(&b, cfg); err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer("FILE", path, "PASSWORD", password).Replace(`level: INFO # default
redis:
  addrs: ['x:1'] # FILE
  dial_timeout: 5s # default
  db: 0 # default
  ratio: 0 # default
  tls: true # FILE
  password_file: PASSWORD # --redis-password-file
body: 1KiB # STATUSRELAY_BODY
topic: '#1' # --topic
small: 0 # default
labels: {env: dev} # default
issuers: [{url: 'a: b', ttl: 1m30s}] # FILE
# token: [redacted] # STATUSRELAY_TOKEN
`)
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPrintedConfigurationLoadsAgainAsTheSame(t *testing.T) {
	password := write(t, "password", value)
	first, set, err := load(t, "--redis-password-file", password, "--redis-addrs=[::1]:1,b: c", "--body=3MiB", "--level=debug+1", "--topic= # x", "--redis-ratio=1e-9")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := set.Print(&b, first); err != nil {
		t.Fatal(err)
	}
	again, _, err := load(t, "--config", write(t, "relay.yaml", b.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	if !reflect.DeepEqual(again, first) {
		t.Errorf("got %+v\nwant %+v\nfrom\n%s", again, first, b.String())
	}
}

func TestMarkdownListsEverySetting(t *testing.T) {
	want := "" +
		"| key | flag | environment | default | meaning |\n" +
		"| --- | --- | --- | --- | --- |\n" +
		"| `level` | `--level` | `STATUSRELAY_LEVEL` | `INFO` | lowest level that is logged |\n" +
		"| `redis.addrs` | `--redis-addrs` | `STATUSRELAY_REDIS_ADDRS` | `one:1,two:2` | host:port of each server |\n" +
		"| `redis.dial_timeout` | `--redis-dial-timeout` | `STATUSRELAY_REDIS_DIAL_TIMEOUT` | `5s` | longest time to connect |\n" +
		"| `redis.db` | `--redis-db` | `STATUSRELAY_REDIS_DB` | `0` | database number |\n" +
		"| `redis.ratio` | `--redis-ratio` | `STATUSRELAY_REDIS_RATIO` | `0` | share \\| of the pool |\n" +
		"| `redis.tls` | `--redis-tls` | `STATUSRELAY_REDIS_TLS` | `false` | encrypt |\n" +
		"| `redis.password_file` | `--redis-password-file` | `STATUSRELAY_REDIS_PASSWORD` or `STATUSRELAY_REDIS_PASSWORD_FILE` |  | file with the password |\n" +
		"| `body` | `--body` | `STATUSRELAY_BODY` | `256KiB` | largest body |\n" +
		"| `topic` | `--topic` | `STATUSRELAY_TOPIC` | `status` | name of the topic |\n" +
		"| `small` | `--small` | `STATUSRELAY_SMALL` | `0` | a small number |\n" +
		"| `labels` |  |  | `{env: dev}` | fixed labels |\n" +
		"| `issuers` |  |  | `[]` | trusted issuers |\n" +
		"| `token_file` | `--token-file` | `STATUSRELAY_TOKEN` or `STATUSRELAY_TOKEN_FILE` |  | file with the token |\n"
	if got := settings.Markdown(defaults()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestHelpShowsDefaultAndVariable(t *testing.T) {
	cmd := &cobra.Command{Use: "relay"}
	settings.Bind(cmd, defaults())
	got := strings.Join(strings.Fields(cmd.Flags().FlagUsages()), " ")
	for _, want := range []string{
		"--redis-dial-timeout duration longest time to connect [STATUSRELAY_REDIS_DIAL_TIMEOUT] (default 5s)",
		"--redis-tls encrypt [STATUSRELAY_REDIS_TLS]",
		"--redis-password-file file file with the password [STATUSRELAY_REDIS_PASSWORD_FILE]",
		"--config string YAML file with settings [STATUSRELAY_CONFIG]",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	for _, never := range []string{"--token ", "--redis-password ", "--labels", "--issuers"} {
		if strings.Contains(got, never) {
			t.Errorf("%q in %q", never, got)
		}
	}
}

func TestBindPanicsOnAStructThatBreaksTheRules(t *testing.T) {
	tests := []struct {
		name string
		bind func(*cobra.Command)
	}{
		{"no key", func(c *cobra.Command) { settings.Bind(c, struct{ A string }{}) }},
		{"no usage", func(c *cobra.Command) {
			settings.Bind(c, struct {
				A string `koanf:"a"`
			}{})
		}},
		{"one flag twice", func(c *cobra.Command) {
			settings.Bind(c, struct {
				A struct {
					B string `koanf:"b" usage:"x"`
				} `koanf:"a"`
				AB string `koanf:"a_b" usage:"x"`
			}{})
		}},
		{"takes --config", func(c *cobra.Command) {
			settings.Bind(c, struct {
				A string `koanf:"config" usage:"x"`
			}{})
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("did not panic")
				}
			}()
			tt.bind(&cobra.Command{})
		})
	}
}

func TestSizeIsReadAsItIsWritten(t *testing.T) {
	tests := []struct {
		text  string
		size  settings.Bytes
		again string
	}{
		{"0", 0, "0"},
		{"1", 1, "1B"},
		{"1023B", 1023, "1023B"},
		{" 256 KiB ", 256 * settings.KiB, "256KiB"},
		{"1024KiB", settings.MiB, "1MiB"},
		{"8589934591GiB", 8589934591 * settings.GiB, "8589934591GiB"},
	}
	for _, tt := range tests {
		var b settings.Bytes
		if err := b.UnmarshalText([]byte(tt.text)); err != nil || b != tt.size || b.String() != tt.again {
			t.Errorf("%q: got %d, %q, %v, want %d, %q", tt.text, b, b, err, tt.size, tt.again)
		}
	}
	for _, text := range []string{"", "-1", "1.5KiB", "1KB", "KiB", "8589934592GiB", "99999999999999999999"} {
		var b settings.Bytes
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken as %d", text, b)
		}
	}
}
