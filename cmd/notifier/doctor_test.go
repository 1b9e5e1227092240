package main

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"statusrelay/internal/certtest"
	"statusrelay/internal/devbus"
	"statusrelay/internal/doctor"
)

// The whole way, as a shell sees it: a report to read, or one for programs, and an exit code.
func TestDoctorFollowsTheWayOfAnUpdate(t *testing.T) {
	s, env := startStack(t)
	stdout, stderr, code := run(t, env, "", "doctor")
	for _, want := range []string{"ok    configuration        valid for sending", "\nok    send                 ", "\nok    relay                the probe was there ", "\nok    cleanup "} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if code != 0 || stderr != "" {
		t.Errorf("got code %d, %q", code, stderr)
	}
	stdout, stderr, code = run(t, env, "", "doctor", "--output", "json", "--service-bus-topic", "other")
	var report struct {
		OK     bool
		Checks []doctor.Finding
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 1 || report.OK || len(report.Checks) != 25 || !strings.Contains(stderr, "1 of 25 checks have failed") {
		t.Errorf("got %v, code %d, %q\n%s", err, code, stderr, stdout)
	}
	for _, f := range report.Checks {
		if (f.Outcome == doctor.Fail) != (f.Check == "topic") {
			t.Errorf("got %+v", f)
		}
	}
	before, err := s.Bus().Stats(topic)
	if err != nil {
		t.Fatal(err)
	}
	if stdout, _, code := run(t, env, "", "doctor", "--no-probe", "--subscription", "nobody"); code != 1 || !strings.Contains(stdout, "fail  subscription") {
		t.Errorf("got code %d\n%s", code, stdout)
	}
	if after, err := s.Bus().Stats(topic); err != nil || after.TotalEnqueued != before.TotalEnqueued {
		t.Errorf("it has sent something: %+v, %v", after, err)
	}
}

// Mistakes of the configuration are a finding like others, and no secret is said.
func TestDoctorTellsMistakes(t *testing.T) {
	for name, c := range map[string]struct {
		env  []string
		args []string
		want string
	}{
		"Nothing":     {nil, nil, "service_bus: exactly one is required"},
		"NotANumber":  {[]string{"STATUSRELAY_RATE=many"}, nil, "rate (STATUSRELAY_RATE)"},
		"NoURL":       {nil, []string{"--relay", "status.example.com"}, "relay: not a URL"},
		"NoHub":       {nil, []string{"--hub", "a/b"}, "hub"},
		"NoLabel":     {nil, []string{"--label", "=x"}, "labels"},
		"BrokenBus":   {[]string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=c4n4ry"}, nil, "service_bus.connection_string: not of the form"},
		"Management":  {[]string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + devbus.ConnectionString("127.0.0.1:1")}, []string{"--management", "nowhere"}, "Management: not a URL"},
		"ServeOnly":   {[]string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + devbus.ConnectionString("127.0.0.1:1")}, []string{"--policy", "/nowhere"}, "auth.issuers"},
		"TokenTwice":  {[]string{"STATUSRELAY_RELAY_TOKEN=c4n4ry"}, []string{"--relay-token-file", "/nowhere"}, "relay_token: given twice"},
		"NoTokenFile": {nil, []string{"--relay-token-file", "/nowhere"}, "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, stderr, code := run(t, c.env, "", append([]string{"doctor"}, c.args...)...)
			if code != 1 || !strings.Contains(stdout, c.want) || !strings.Contains(stderr, "failed") {
				t.Errorf("got code %d, %q\n%s", code, stderr, stdout)
			}
			if strings.Contains(stdout+stderr, "c4n4ry") || strings.Contains(stdout+stderr, devbus.DevelopmentKey) {
				t.Errorf("a secret is said: %q\n%s", stderr, stdout)
			}
		})
	}
}

// The certificate must be trusted, and of the name that was asked for.
func TestDoctorJudgesTheCertificate(t *testing.T) {
	authority := certtest.New(t)
	pair := authority.Issue("server") // for 127.0.0.1
	certificate, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	bus := devbus.New(devbus.Options{Topics: []devbus.Topic{{Name: topic}}})
	go bus.Serve(t.Context(), l)
	t.Cleanup(func() { bus.Close() })
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ host, trusted, want string }{
		{"127.0.0.1", authority.Path, "ok    tls                  TLS 1.3, certificate good until"},
		{"127.0.0.1", empty, "fail  tls                  the certificate is of an authority that this machine does not trust"},
		{"localhost", authority.Path, "fail  tls                  the certificate is for another name"},
	} {
		stdout, _, _ := run(t, []string{
			"SSL_CERT_FILE=" + c.trusted, "SSL_CERT_DIR=/nowhere",
			"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=Endpoint=sb://" + c.host + ":" + port + ";SharedAccessKeyName=n;SharedAccessKey=k",
		}, "", "doctor", "--no-probe")
		if !strings.Contains(stdout, c.want) {
			t.Errorf("%s: no %q in\n%s", c.host, c.want, stdout)
		}
	}
}
