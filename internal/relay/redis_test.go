package relay_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/certtest"
	"statusrelay/internal/relay"
	"statusrelay/internal/storetest"
)

// reaches reports whether a program with that configuration can use Redis.
func reaches(t *testing.T, c relay.Redis) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	config := relay.Defaults()
	config.Redis = c
	_, err := relay.Reindex(ctx, config, io.Discard, nil)
	return err
}

// Redis is believed by the authority that is configured and by its name, and is
// shown a certificate if it wants one.
func TestRedisIsReachedByTLS(t *testing.T) {
	authority, stranger := certtest.New(t), certtest.New(t)
	server, client := authority.Issue("redis.internal"), authority.Issue("relay")
	listen := func(clients string) string {
		address := storetest.FreeAddr(t)
		storetest.StartRedis(t, "--tls-port", address[strings.LastIndex(address, ":")+1:], "--tls-auth-clients", clients,
			"--tls-cert-file", server.Cert, "--tls-key-file", server.Key, "--tls-ca-cert-file", authority.Path)
		return address
	}
	open, demanding := listen("no"), listen("yes")
	foreign := stranger.Issue("relay")
	for name, c := range map[string]struct {
		addr   string
		change func(*relay.Redis)
		want   string // part of the error; "": it works
	}{
		"its authority":      {open, func(*relay.Redis) {}, ""},
		"another authority":  {open, func(c *relay.Redis) { c.CA = stranger.Path }, "certificate"},
		"the system's roots": {open, func(c *relay.Redis) { c.CA = "" }, "certificate"},
		"plain text":         {open, func(c *relay.Redis) { c.TLS, c.CA = false, "" }, "unavailable"},
		"its name":           {open, func(c *relay.Redis) { c.ServerName = "redis.internal" }, ""},
		"another name":       {open, func(c *relay.Redis) { c.ServerName = "other.internal" }, "other.internal"},
		"no certificate":     {demanding, func(*relay.Redis) {}, "unavailable"},
		"a certificate":      {demanding, func(c *relay.Redis) { c.Cert, c.Key = client.Cert, client.Key }, ""},
		"a foreign one":      {demanding, func(c *relay.Redis) { c.Cert, c.Key = foreign.Cert, foreign.Key }, "unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			config := relay.Defaults().Redis
			config.Addrs, config.TLS, config.CA = []string{c.addr}, true, authority.Path
			c.change(&config)
			if err := reaches(t, config); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// An address is one, and is not repeated when it is none: it may be a URL with a
// password.
func TestRedisAddressIsNoURL(t *testing.T) {
	for address, valid := range map[string]bool{
		"127.0.0.1:6379": true, "redis:6379": true, "[::1]:6379": true, "/run/redis.sock": true,
		"redis://u:c4n4ry@redis:6379": false, "c4n4ry@redis:6379": false, "redis": false,
	} {
		c := relay.Defaults()
		c.Redis.Addrs = []string{address}
		if said := c.Validate().Error(); strings.Contains(said, "redis.addrs") == valid || strings.Contains(said, "c4n4ry") {
			t.Errorf("%s: got %s", address, said)
		}
	}
}

// What is said about TLS where none is used, and halves, are mistakes; so is a file
// that has nothing of what it should.
func TestMistakesAboutRedisAreToldAtOnce(t *testing.T) {
	c := relay.Defaults()
	c.Redis.CA, c.Redis.Cert, c.Redis.ServerName = "/nowhere/ca.crt", "/nowhere/tls.crt", "n"
	c.Redis.TTL, c.Redis.TerminalTTL, c.Redis.Addrs = 0, 0, nil
	for _, want := range []string{
		"redis.ca: needs", "redis.cert: needs", "redis.tls_server_name: needs", "redis.key: required", "redis.ttl", "redis.terminal_ttl", "redis.addrs",
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	pair := certtest.New(t).Issue("a")
	c.Redis.TLS, c.Redis.CA, c.Redis.Cert, c.Redis.Key = true, empty, pair.Cert, "/nowhere/tls.key"
	for _, want := range []string{"redis.ca: " + empty, "/nowhere/tls.key"} {
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
