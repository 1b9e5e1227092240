package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"time"

	"statusrelay/internal/servicebus"
)

// connection checks what needs no network.
func (e *examination) connection() (at servicebus.Endpoint, ok bool) {
	at, err := e.bus.Endpoint()
	if err == nil {
		e.inspect, err = servicebus.NewInspector(e.bus)
	}
	if err != nil {
		e.report(connection, Fail, "copy the connection string anew from the namespace's or the topic's shared access policies, without spaces or line ends in it", "%v", err)
		return at, false
	}
	by := "a shared access key"
	if e.bus.Namespace != "" {
		by = "the default Azure credential"
	}
	if at.Entity != "" && !strings.EqualFold(at.Entity, e.bus.Topic) {
		e.report(connection, Warn, "use a key of topic "+e.bus.Topic+", or of the namespace", "the connection string is for %s, and the topic is %s", at.Entity, e.bus.Topic)
		return at, true
	}
	e.ok(connection, "%s, by %s", net.JoinHostPort(at.Host, at.Port), by)
	return at, true
}

// network checks the way to the namespace.
func (e *examination) network(ctx context.Context, at servicebus.Endpoint) bool {
	ctx, cancel := context.WithTimeout(ctx, e.o.StepTimeout)
	defer cancel()
	if net.ParseIP(at.Host) != nil {
		e.ok(dns, "%s is an address", at.Host)
	} else if addresses, err := net.DefaultResolver.LookupHost(ctx, at.Host); err == nil {
		e.ok(dns, "%s is %s", at.Host, strings.Join(addresses, ", "))
	} else {
		e.report(dns, Fail, "check the name of the namespace; with a private endpoint, this machine's DNS must know the private zone", "%s: %s", at.Host, lookupTrouble(err))
		return false
	}

	began := time.Now()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(at.Host, at.Port))
	if err != nil {
		e.report(tcp, Fail, "let this machine out to port "+at.Port+", and in through the namespace's firewall, virtual network rules or private endpoint", "%v", err)
		return false
	}
	defer conn.Close()
	e.ok(tcp, "port %s answers after %v", at.Port, time.Since(began).Round(time.Millisecond))

	if !at.TLS {
		e.skip(secure, "not checked: an emulator has none (UseDevelopmentEmulator)")
		return true
	}
	secured := tls.Client(conn, &tls.Config{ServerName: at.Host, MinVersion: tls.VersionTLS12})
	if err := secured.HandshakeContext(ctx); err != nil {
		detail, remedy := tlsTrouble(err)
		e.report(secure, Fail, remedy, "%s: %v", detail, err)
		return false
	}
	e.ok(secure, "%s, certificate good until %s", tls.VersionName(secured.ConnectionState().Version),
		secured.ConnectionState().PeerCertificates[0].NotAfter.Format(time.DateOnly))
	return true
}

func lookupTrouble(err error) string {
	var failed *net.DNSError
	if errors.As(err, &failed) && failed.IsNotFound {
		return "no such host"
	}
	return err.Error()
}

// tlsTrouble says what a failed handshake means.
func tlsTrouble(err error) (detail, remedy string) {
	switch {
	case errors.As(err, new(x509.UnknownAuthorityError)):
		return "the certificate is of an authority that this machine does not trust",
			"something on the way, such as a proxy that inspects TLS, may present its own: trust its authority (SSL_CERT_FILE), or let this connection pass"
	case errors.As(err, new(x509.HostnameError)):
		return "the certificate is for another name", "use the namespace's own name in the connection string, not an address or an alias"
	case errors.As(err, new(x509.CertificateInvalidError)):
		return "the certificate is not valid", "check this machine's clock, and who presents that certificate"
	case errors.As(err, new(*net.OpError)), errors.As(err, new(tls.RecordHeaderError)), errors.Is(err, net.ErrClosed), strings.HasSuffix(err.Error(), "EOF"):
		return "what answers there does not speak TLS", "of an emulator, say UseDevelopmentEmulator=true in the connection string; else check the port"
	}
	return "no TLS connection", "check what is between this machine and the namespace"
}
