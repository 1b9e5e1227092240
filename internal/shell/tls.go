package shell

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
)

// TLS says how the public listener is protected.
type TLS struct {
	Cert              string `koanf:"cert" usage:"path of the public listener's certificate and its chain (PEM); read again when it changes"`
	Key               string `koanf:"key" usage:"path of the certificate's private key (PEM)"`
	TerminatedByProxy bool   `koanf:"terminated_by_proxy" usage:"serve in plain text on an address that is not loopback: whatever is in front ends TLS, and nobody else reaches it"`
}

func (t TLS) pair() KeyPair { return KeyPair{t.Cert, t.Key} }

// KeyPair names the files of a certificate and its key.
type KeyPair struct {
	Cert string `koanf:"cert" usage:"path of the private listener's certificate and its chain (PEM); read again when it changes"`
	Key  string `koanf:"key" usage:"path of the certificate's private key (PEM)"`
}

// Given reports whether there is one.
func (p KeyPair) Given() bool { return p != KeyPair{} }

// Validate reports what is wrong with the settings of a section, not with the
// files.
func (p KeyPair) Validate(section string) error {
	switch {
	case p.Given() && p.Key == "":
		return fmt.Errorf("%s.key: required with %[1]s.cert", section)
	case p.Given() && p.Cert == "":
		return fmt.Errorf("%s.cert: required with %[1]s.key", section)
	}
	return nil
}

// LoadPair reads a certificate and its key, again when either changes. Of a pair
// that is written one after the other the half is no pair, and changes nothing.
func LoadPair(f *Files, kind string, p KeyPair) (*Loaded[*tls.Certificate], error) {
	return Load(f, kind, func(open Open) (*tls.Certificate, error) {
		cert, err := open(p.Cert)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		key, err := open(p.Key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%s: %s and %s: %w", kind, p.Cert, p.Key, pairError{err})
		}
		return &pair, nil
	})
}

// pairError is an error of crypto/tls, which quotes neither certificate nor key.
type pairError struct{ error }

func (e pairError) Discreet() string { return e.Error() }

// protect puts TLS over a listener, with whatever certificate is in force when a
// connection is made.
//
// HTTP/1.1 is all that is spoken: a WebSocket begins as its upgrade, and gorilla
// knows no other way (RFC 8441 is that of HTTP/2). A browser that was offered
// both would open its streams with HTTP/2 and then its socket on a second
// connection; this way there is one protocol with one set of deadlines.
func protect(l net.Listener, pair *Loaded[*tls.Certificate]) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12, // and 1.3 for whoever can; the suites of 1.2 are those that Go keeps up to date
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return pair.Value(), nil
		},
	})
}

// plainly reports that tokens would cross a network as they are.
func plainly(address string, t TLS) error {
	if t.pair().Given() || t.TerminatedByProxy {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil // binding it says what is wrong
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("listen: %s is not a loopback address, and without TLS tokens could be read on their way: "+
		"set tls.cert and tls.key, or tls.terminated_by_proxy if a proxy ends TLS and nobody else reaches this address", address)
}

// onlyThis returns a configuration of a client that talks to no server but the
// one with the first certificate in a file. Names and dates do not count: a
// program asks itself, by an address that its certificate need not have.
func onlyThis(path string) (*tls.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	for block != nil && block.Type != "CERTIFICATE" { // a file may have the key first
		block, rest = pem.Decode(rest)
	}
	if block == nil {
		return nil, fmt.Errorf("%s: no certificate", path)
	}
	want, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection demands one certificate, which is more than any authority says
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 || !s.PeerCertificates[0].Equal(want) {
				return errors.New("the server has another certificate than the configured one")
			}
			return nil
		},
	}, nil
}
