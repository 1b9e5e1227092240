package shell_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/certtest"
	"statusrelay/internal/policy"
	"statusrelay/internal/shell"
)

// valid is what a program that serves on this machine is configured with.
func valid() shell.BaseConfig {
	c := shell.BaseConfig{
		Log: shell.Log{Level: "info", Format: "text"}, Auth: shell.DefaultAuth(), Policy: "policy.yaml",
		Listen: "127.0.0.1:0", PrivateListen: "127.0.0.1:0", ProxyHeaders: "x-forwarded",
	}
	c.Auth.Issuers, c.Auth.Audiences = []string{"https://issuer.example"}, []string{"statusrelay"}
	return c
}

// Tokens cross a network encrypted, unless somebody says that a proxy sees to it.
func TestW18PlainTextIsRefusedBeyondThisMachine(t *testing.T) {
	for _, c := range []struct {
		listen string
		tls    shell.TLS
		want   []string // parts of the error; none: valid
	}{
		{"127.0.0.1:8080", shell.TLS{}, nil},
		{"127.8.9.1:0", shell.TLS{}, nil},
		{"[::1]:8080", shell.TLS{}, nil},
		{"localhost:8080", shell.TLS{}, nil},
		{":8080", shell.TLS{}, []string{"listen", "tls.cert", "tls.terminated_by_proxy"}},
		{"0.0.0.0:8080", shell.TLS{}, []string{"listen"}},
		{"[::]:8080", shell.TLS{}, []string{"listen"}},
		{"10.0.0.1:8080", shell.TLS{}, []string{"listen"}},
		{"[::ffff:10.0.0.1]:8080", shell.TLS{}, []string{"listen"}},
		{"localhost.example:8080", shell.TLS{}, []string{"listen"}},
		{":8080", shell.TLS{TerminatedByProxy: true}, nil},
		{":8080", shell.TLS{Cert: "a", Key: "b"}, nil},
		{":8080", shell.TLS{Cert: "a"}, []string{"tls.key: required"}},
		{":8080", shell.TLS{Key: "b"}, []string{"tls.cert: required"}},
	} {
		config := valid()
		config.Listen, config.TLS = c.listen, c.tls
		t.Run(c.listen, func(t *testing.T) { wantMistakes(t, config.Validate(), c.want) })
	}
	config := valid()
	config.Listen, config.PrivateTLS, config.Policy, config.Log.Level = ":1", shell.KeyPair{Cert: "a"}, "", "loud"
	wantMistakes(t, config.Validate(), []string{"listen: ", "private_tls.key: ", "policy: ", "log: "}) // all at once
}

// Every file that is broken is told at once, by its section.
func TestCheckReadsEveryFile(t *testing.T) {
	dir := t.TempDir()
	pair, other := certtest.New(t).Issue("a"), certtest.New(t).Issue("b")
	c := valid()
	c.Policy = filepath.Join(dir, "policy.yaml")
	put(t, c.Policy, "version: 2")
	c.TLS, c.PrivateTLS = shell.TLS{Cert: pair.Cert, Key: other.Key}, shell.KeyPair{Cert: pair.Cert, Key: filepath.Join(dir, "nothing")}
	want := []string{"policy " + c.Policy, "tls: " + pair.Cert, "private_tls: ", "nothing"}
	wantMistakes(t, c.Check(), want)
	if _, err := shell.NewBase(t.Context(), c, shell.Given{}); err == nil {
		t.Error("it starts")
	} else {
		wantMistakes(t, err, want)
	}
	put(t, c.Policy, string(policy.Development()))
	c.TLS, c.PrivateTLS = shell.TLS{Cert: pair.Cert, Key: pair.Key}, shell.KeyPair{}
	wantMistakes(t, c.Check(), nil)
}

// served is a base whose listeners are served from.
type served struct {
	*testing.T
	*shell.Base
}

func serve(t *testing.T, c shell.BaseConfig, g shell.Given) *served {
	t.Helper()
	g.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := shell.NewBase(t.Context(), c, g)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 3)
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ready") })
	public, private := b.NewPublicServer(hello), shell.NewServer(hello, b.Log)
	go func() { ended <- b.Run(ctx) }()
	go func() { ended <- shell.Serve(public, b.Public) }()
	go func() { ended <- shell.Serve(private, b.Private) }()
	t.Cleanup(func() {
		cancel()
		public.Close()
		private.Close()
		b.Release()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return &served{t, b}
}

// hangUp asks for a look at the files until cond holds.
func (s *served) hangUp(what string, cond func() bool) {
	s.Helper()
	over, every := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer every.Stop()
	for !cond() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			s.Fatal(err)
		}
		select {
		case <-every.C:
		case <-over:
			s.Fatal("in vain: " + what)
		}
	}
}

// name is the name in the certificate that a listener shows.
func (s *served) name(l net.Listener, config *tls.Config) string {
	s.Helper()
	c, err := tls.Dial("tcp", l.Addr().String(), config)
	if err != nil {
		s.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// Both listeners speak TLS 1.2 or later and HTTP/1.1, and nothing else.
func TestW18ListenersSpeakTLS(t *testing.T) {
	authority := certtest.New(t)
	public, private := authority.Issue("public"), authority.Issue("private")
	c := valid()
	c.TLS, c.PrivateTLS = shell.TLS{Cert: public.Cert, Key: public.Key}, shell.KeyPair{Cert: private.Cert, Key: private.Key}
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, c, shell.Given{Policy: rules})
	for name, l := range map[string]net.Listener{"public": s.Public, "private": s.Private} {
		if got := s.name(l, authority.Client()); got != name {
			t.Errorf("the %s listener shows the certificate of %s", name, got)
		}
		for version, want := range map[uint16]uint16{tls.VersionTLS11: 0, tls.VersionTLS12: tls.VersionTLS12, tls.VersionTLS13: tls.VersionTLS13} {
			config := authority.Client()
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, version
			got := uint16(0)
			if conn, err := tls.Dial("tcp", l.Addr().String(), config); err == nil {
				got = conn.ConnectionState().Version
				conn.Close()
			}
			if got != want {
				t.Errorf("%s: a client of at most %s: got %x, want %x", name, tls.VersionName(version), got, want)
			}
		}
		transport := &http.Transport{TLSClientConfig: authority.Client(), ForceAttemptHTTP2: true}
		answer, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		if answer.Body.Close(); answer.ProtoMajor != 1 {
			t.Errorf("%s: it speaks %s, want HTTP/1.1", name, answer.Proto)
		}
		transport.CloseIdleConnections()
		if answer, err := http.Get("http://" + l.Addr().String() + "/"); err == nil {
			if answer.Body.Close(); answer.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: plain text is answered with %d", name, answer.StatusCode)
			}
		}
	}
	// The health check asks by TLS, and nobody but itself.
	address := s.PrivateAddr().String()
	if err := shell.Healthcheck(t.Context(), address, private.Cert); err != nil {
		t.Errorf("health check: %v", err)
	}
	for what, cert := range map[string]string{"another certificate": public.Cert, "no certificate": private.Key, "no file": private.Cert + ".x"} {
		if err := shell.Healthcheck(t.Context(), address, cert); err == nil || !strings.Contains(err.Error(), "private_") {
			t.Errorf("health check with %s: got %v", what, err)
		}
	}
	if err := shell.Healthcheck(t.Context(), address, ""); err == nil {
		t.Error("a health check in plain text succeeds")
	}
}

// A certificate is replaced while the program runs; half of a pair changes
// nothing.
func TestW18CertificateIsReplacedWhileServing(t *testing.T) {
	authority := certtest.New(t)
	pair, next := authority.Issue("first"), authority.Issue("second")
	c := valid()
	c.TLS = shell.TLS{Cert: pair.Cert, Key: pair.Key}
	c.Policy = filepath.Join(t.TempDir(), "policy.yaml")
	put(t, c.Policy, string(policy.Development()))
	s := serve(t, c, shell.Given{})
	rules := s.Policy()

	put(t, pair.Cert, next.CertText)
	s.hangUp("half a pair is noticed", func() bool { return count(t, s.Metrics, "statusrelay_reload_failures_total", "tls") > 0 })
	if got := s.name(s.Public, authority.Client()); got != "first" {
		t.Errorf("with half a pair it shows %s", got)
	}
	put(t, pair.Key, next.KeyText)
	s.hangUp("the new certificate is shown", func() bool { return s.name(s.Public, authority.Client()) == "second" })
	if n := count(t, s.Metrics, "statusrelay_reload_broken", "tls"); n != 0 {
		t.Errorf("broken is %v", n)
	}

	if s.Policy() != rules {
		t.Error("the policy is another, although its file is the same")
	}
	put(t, c.Policy, strings.Replace(string(policy.Development()), "operator", "director", 1))
	s.hangUp("the new policy is in force", func() bool { return s.Policy() != rules })
	rules = s.Policy()
	put(t, c.Policy, "version: 2\nc4n4ry: 1")
	s.hangUp("the broken policy is noticed", func() bool { return count(t, s.Metrics, "statusrelay_reload_failures_total", "policy") > 0 })
	if s.Policy() != rules {
		t.Error("a broken file has changed the policy")
	}
}

// A policy that the caller has given has no file and stays.
func TestGivenPolicyIsNotReadAgain(t *testing.T) {
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		t.Fatal(err)
	}
	c := valid()
	c.Policy = filepath.Join(t.TempDir(), "nothing")
	s := serve(t, c, shell.Given{Policy: rules})
	if s.Files.Any() {
		t.Error("files are looked at")
	}
	if s.Policy() == nil {
		t.Error("no policy")
	}
}
