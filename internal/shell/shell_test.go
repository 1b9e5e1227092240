package shell_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/policy"
	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
)

func TestServiceBusWantsOneWayIn(t *testing.T) {
	secret := settings.NewSecret("Endpoint=sb://ns.example.net;SharedAccessKeyName=n;SharedAccessKey=k")
	for _, c := range []struct {
		config shell.ServiceBus
		want   []string // parts of the error; none: valid
	}{
		{shell.ServiceBus{ConnectionString: secret, Topic: "status"}, nil},
		{shell.ServiceBus{Namespace: "ns.example.net", Topic: "status"}, nil},
		{shell.ServiceBus{Topic: "status"}, []string{"exactly one"}},
		{shell.ServiceBus{ConnectionString: secret, Namespace: "ns.example.net"}, []string{"exactly one", "topic"}},
	} {
		wantMistakes(t, c.config.Validate(), c.want)
	}
}

// A connection string that is none is a mistake before it is used, which names the setting and nothing of what it holds.
func TestServiceBusWantsAConnectionStringOfItsForm(t *testing.T) {
	const canary = "c4n4ry-key"
	for _, text := range []string{
		canary, "SharedAccessKey=" + canary, "Endpoint=sb://ns.example.net;SharedAccessKey=" + canary,
		"Endpoint=sb://ns.example.net/;SharedAccessKeyName=" + canary, "Endpoint=" + canary + ";SharedAccessKeyName=n",
		"Endpoint=sb://ns.example.net;SharedAccessKeyName=n;SharedAccessKey", "Endpoint sb://ns.example.net;SharedAccessKeyName=n;SharedAccessKey=" + canary,
	} {
		err := shell.ServiceBus{ConnectionString: settings.NewSecret(text), Topic: "status"}.Validate()
		wantMistakes(t, err, []string{"service_bus.connection_string: not of the form"})
		if err != nil && strings.Contains(err.Error(), canary) {
			t.Errorf("%q: the key is said: %v", text, err)
		}
	}
}

func TestAuthWantsIssuersAndAudiences(t *testing.T) {
	for _, c := range []struct {
		change func(*shell.Auth)
		want   []string
	}{
		{func(*shell.Auth) {}, nil},
		{func(a *shell.Auth) { a.Issuers, a.EntraTenant = nil, "11111111-2222-3333-4444-555555555555" }, nil},
		{func(a *shell.Auth) { a.Issuers, a.Audiences = nil, nil }, []string{"auth.issuers", "auth.audiences", "auth.entra_tenant", "auth.issuers_file", "auth.api_keys"}},
		{func(a *shell.Auth) { a.Audiences = nil }, []string{"auth.audiences"}},
		{func(a *shell.Auth) { a.Audiences, a.IssuersFile, a.APIKeys = nil, "issuers.yaml", "keys.yaml" }, []string{"auth.audiences"}},
		{func(a *shell.Auth) {
			a.Issuers, a.EntraTenant, a.Audiences, a.IssuersFile = nil, "11111111-2222-3333-4444-555555555555", nil, "issuers.yaml"
		}, []string{"auth.audiences"}},
		{func(a *shell.Auth) { a.Issuers, a.Audiences, a.IssuersFile = nil, nil, "issuers.yaml" }, nil},
		{func(a *shell.Auth) { a.Issuers, a.Audiences, a.APIKeys = nil, nil, "keys.yaml" }, nil},
		{func(a *shell.Auth) { a.Issuers, a.Audiences, a.APIKeys, a.ClockSkew = nil, nil, "keys.yaml", time.Hour }, []string{"ClockSkew"}},
		{func(a *shell.Auth) { a.Issuers = append(a.Issuers, a.Issuers...) }, []string{"https://issuer.example", "twice"}},
		{func(a *shell.Auth) { a.Algorithms = []string{"HS256"} }, []string{"HS256"}},
		{func(a *shell.Auth) { a.ClockSkew = time.Hour }, []string{"auth"}},
	} {
		a := shell.DefaultAuth()
		a.Issuers, a.Audiences = []string{"https://issuer.example"}, []string{"statusrelay"}
		c.change(&a)
		wantMistakes(t, a.Validate(), c.want)
	}
}

func wantMistakes(t *testing.T, err error, want []string) {
	t.Helper()
	if (err == nil) != (want == nil) {
		t.Errorf("got %v, want %q", err, want)
	}
	for _, part := range want {
		if !strings.Contains(fmt.Sprint(err), part) {
			t.Errorf("got %v, want %q", err, part)
		}
	}
}

func TestPolicyFileIsNamedInItsMistakes(t *testing.T) {
	c := valid()
	c.Policy = filepath.Join(t.TempDir(), "policy.yaml")
	wantMistakes(t, c.Check(), []string{c.Policy})
	put(t, c.Policy, "version: 2")
	wantMistakes(t, c.Check(), []string{"policy " + c.Policy, "line 1"})
	put(t, c.Policy, string(policy.Development()))
	wantMistakes(t, c.Check(), nil)
}

func TestTakenAddressIsNamedByItsKey(t *testing.T) {
	l, err := shell.Listen(t.Context(), "listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := shell.Listen(t.Context(), "private_listen", l.Addr().String()); err == nil || !strings.HasPrefix(err.Error(), "private_listen: ") {
		t.Errorf("got %v", err)
	}
}

// pipe is a listener of one connection in memory.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipe) Close() error   { close(p.done); return nil }
func (p *pipe) Addr() net.Addr { return &net.TCPAddr{} }

// A client that sends its request too slowly is cut off, however slowly it sends.
func TestSlowRequestIsCutOff(t *testing.T) {
	for name, request := range map[string]string{
		"Header": "GET / HTTP/1.1\r\nHost: h\r\nX-Slow: ",
		"Body":   "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				read := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
				server := shell.NewServer(http.HandlerFunc(read), slog.New(slog.DiscardHandler))
				l := &pipe{make(chan net.Conn, 1), make(chan struct{})}
				served := make(chan error, 1)
				go func() { served <- shell.Serve(server, l) }()
				client, remote := net.Pipe()
				l.conns <- remote
				go func() { _, _ = io.Copy(io.Discard, client) }()
				if _, err := io.WriteString(client, request); err != nil {
					t.Fatal(err)
				}
				sent := 0
				for ; sent < 120; sent++ {
					if _, err := io.WriteString(client, "x"); err != nil {
						break
					}
					<-time.After(time.Second)
				}
				if sent == 120 {
					t.Error("after two minutes the client is still served")
				}
				client.Close()
				if err := shell.Drain(t.Context(), server); err != nil {
					t.Error(err)
				}
				if err := <-served; err != nil {
					t.Errorf("Serve: %v", err)
				}
			})
		})
	}
}

// Draining waits for requests under way as long as it may, then cuts them off.
func TestDrainWaitsAndThenCutsOff(t *testing.T) {
	for _, c := range []struct {
		work time.Duration
		ends bool
	}{{2 * time.Second, true}, {time.Hour, false}} {
		synctest.Test(t, func(t *testing.T) {
			begun := make(chan struct{})
			server := shell.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(begun)
				select {
				case <-time.After(c.work):
					_, _ = io.WriteString(w, "done")
				case <-r.Context().Done():
				}
			}), slog.New(slog.DiscardHandler))
			l := &pipe{make(chan net.Conn, 1), make(chan struct{})}
			served := make(chan error, 1)
			go func() { served <- shell.Serve(server, l) }()
			client, remote := net.Pipe()
			defer client.Close()
			l.conns <- remote
			if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			answered := make(chan error, 1)
			go func() {
				_, err := http.ReadResponse(bufio.NewReader(client), nil)
				answered <- err
			}()
			<-begun
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := shell.Drain(ctx, server); err != nil {
				t.Errorf("Drain: %v", err)
			}
			if err := <-answered; (err == nil) != c.ends {
				t.Errorf("a request of %s was answered with error %v", c.work, err)
			}
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

// The address that a listener was given is one to bind; healthcheck finds the
// address to ask.
func TestHealthcheckAsksThisMachine(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ready") })}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{":" + port, "0.0.0.0:" + port, "[::]:" + port, "127.0.0.1:" + port} {
		if err := shell.Healthcheck(t.Context(), address, ""); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := shell.Healthcheck(t.Context(), "nothing", ""); err == nil || !strings.Contains(err.Error(), "private_listen") {
		t.Errorf("no address: got %v", err)
	}
	server.Close()
	<-served
}
