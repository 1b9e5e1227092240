package shell

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/settings"
)

// Redis says where Redis is.
type Redis struct {
	Addrs      []string        `koanf:"addrs" usage:"addresses: one of a server, several of a cluster, or Sentinels with a master name"`
	Cluster    bool            `koanf:"cluster" usage:"the single address is a cluster's, as on Azure Managed Redis"`
	MasterName string          `koanf:"master_name" usage:"name of the master that the Sentinels watch"`
	Username   string          `koanf:"username" usage:"user name (Redis ACL)"`
	Password   settings.Secret `koanf:"password" usage:"password"`
	TLS        bool            `koanf:"tls" usage:"use TLS, verified with the system's roots unless redis.ca is set"`
	CA         string          `koanf:"ca" usage:"path of the authorities (PEM) that alone may vouch for Redis"`
	Cert       string          `koanf:"cert" usage:"path of the certificate (PEM) that Redis is shown; read again when it changes"`
	Key        string          `koanf:"key" usage:"path of its private key (PEM)"`
	ServerName string          `koanf:"tls_server_name" usage:"name that the certificate of Redis must have; default: the host of its address"`
	DB         int             `koanf:"db" usage:"database number; 0 on a cluster"`
	Prefix     string          `koanf:"prefix" usage:"prefix of every key and channel"`
}

func (c Redis) pair() KeyPair { return KeyPair{Cert: c.Cert, Key: c.Key} }

// Validate reports every mistake, each with its key. That there is no Redis is none.
func (c Redis) Validate() error {
	var errs []error
	for n, address := range c.Addrs { // not quoted: whoever writes a URL may put a password into it
		if _, _, err := net.SplitHostPort(address); strings.Contains(address, "@") || err != nil && !strings.HasPrefix(address, "/") {
			errs = append(errs, fmt.Errorf("redis.addrs: number %d is not of the form host:port", n+1))
		}
	}
	for _, s := range []struct{ key, value string }{
		{"redis.ca", c.CA}, {"redis.cert", c.Cert}, {"redis.key", c.Key}, {"redis.tls_server_name", c.ServerName},
	} {
		if s.value != "" && !c.TLS {
			errs = append(errs, fmt.Errorf("%s: needs redis.tls", s.key)) // who sets it believes that TLS is used
		}
	}
	return errors.Join(append(errs, c.pair().Validate("redis"))...)
}

// Options reads the files that are named, and returns every mistake in them.
func (c Redis) Options(f *Files, log *slog.Logger, metrics prometheus.Registerer) (redisstore.Options, error) {
	o := redisstore.Options{
		Addrs: c.Addrs, Cluster: c.Cluster, MasterName: c.MasterName, Username: c.Username, Password: c.Password.Reveal(), DB: c.DB,
		Prefix: c.Prefix, Logger: log, Metrics: metrics,
	}
	if c.Password.FromFile() {
		o.Credentials = c.credentials
	}
	if !c.TLS {
		return o, nil
	}
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	var errs []error
	if c.CA != "" {
		o.TLS.RootCAs = x509.NewCertPool()
		if text, err := os.ReadFile(c.CA); err != nil {
			errs = append(errs, fmt.Errorf("redis.ca: %w", err))
		} else if !o.TLS.RootCAs.AppendCertsFromPEM(text) {
			errs = append(errs, fmt.Errorf("redis.ca: %s: no certificate", c.CA))
		}
	}
	if c.pair().Given() {
		pair, err := LoadPair(f, "redis", c.pair())
		errs = append(errs, err)
		o.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.Value(), nil }
	}
	return o, errors.Join(errs...)
}

// credentials reads the password again for each new connection, so that a file
// that is replaced needs no restart. A file that cannot be read is an outage of
// Redis: the next connection may find it.
func (c Redis) credentials(context.Context) (username, password string, err error) {
	if password, err = c.Password.Current(); err != nil {
		return "", "", fmt.Errorf("redis.password_file: %w", err)
	}
	return c.Username, password, nil
}
