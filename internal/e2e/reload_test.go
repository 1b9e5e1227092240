package e2e_test

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/certtest"
	"statusrelay/internal/policy"
	"statusrelay/internal/relay"
	"statusrelay/internal/shell"
)

// What a policy file takes away stops on sockets and streams that are open, and for reads, within 30 s; what it gives back
// comes back. A file that is broken changes nothing.
func TestW8TakingARightAwayEndsDelivery(t *testing.T) {
	t.Parallel()
	const bound = 30 * time.Second // the promise, with the configuration as it is by default
	w := newWorld(t, nil)
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	full := string(policy.Development())
	write(full)
	r := w.relay(nil, func(c *relay.Config) { c.Policy = path })
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	own, operator := w.watch(r, w.customer, k), w.watch(r, w.operator, k)
	s := w.stream(r, w.customer, "/"+k.InstanceID)
	sees := func(percent int) {
		t.Helper()
		own.sees(k, percent)
		operator.sees(k, percent)
		if e, ok := s.next(); !ok || e.name != "status" || w.view(e.data).percent() != percent {
			t.Fatalf("the stream has %s %s, want %d", e.name, e.data, percent)
		}
		if got := w.get(r, w.customer, k); got.code != http.StatusOK {
			t.Fatalf("a read is answered with %d", got.code)
		}
	}
	sees(10)

	write("version: 1\nhubs: {c4n4ry")
	w.until("the broken file is noticed", func() bool { return w.metric(r, "statusrelay_reload_failures_total") == 1 })
	w.send(progress(k.InstanceID, 2, 11))
	sees(11)
	if strings.Contains(w.logs.String(), "c4n4ry") || w.metric(r, "statusrelay_reload_broken") != 1 {
		t.Error("the log quotes the policy, or nothing says that it is broken")
	}

	write(strings.Replace(full, "labels.owner == claims.sub", "labels.owner == claims.nobody", 1))
	late := time.AfterFunc(bound, func() { t.Error("after 30 s the customer is still told") })
	own.await("the socket is told that it is gone", func(v *watcher) bool { return v.newest[k].Type == "gone" })
	if e, ok := s.next(); !ok || e.name != "gone" {
		t.Errorf("the stream has %s %s, want gone", e.name, e.data)
	}
	late.Stop()
	if got := w.get(r, w.customer, k); got.code != http.StatusNotFound {
		t.Errorf("a read is answered with %d, want 404", got.code)
	}
	w.send(progress(k.InstanceID, 3, 12))
	operator.sees(k, 12)
	w.during(500*time.Millisecond, func() {
		if f := own.last(k); f.Type != "gone" || len(s.events) > 0 {
			t.Fatalf("the customer is told: %s %s, %d events", f.Type, f.Status, len(s.events))
		}
	})

	write(full)
	sees(12)
	if got := w.metric(r, "statusrelay_reloads_total"); got != 2 {
		t.Errorf("%v reloads, want 2", got)
	}
}

// Reads, sockets and streams work over TLS, and those that are open outlive the certificate that they began with.
func TestW18EverythingWorksOverTLS(t *testing.T) {
	t.Parallel()
	authority := certtest.New(t)
	pair, next := authority.Issue("first"), authority.Issue("second")
	w := newWorld(t, nil)
	w.tls = authority.Client()
	w.client.Transport = &http.Transport{TLSClientConfig: w.tls, ForceAttemptHTTP2: true}
	r := w.relay(nil, func(c *relay.Config) { c.TLS = shell.TLS{Cert: pair.Cert, Key: pair.Key} })
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	v := w.watch(r, w.customer, k)
	s := w.stream(r, w.customer, "/"+k.InstanceID)
	sees := func(v *watcher, percent int) {
		t.Helper()
		v.sees(k, percent)
		if e, ok := s.next(); !ok || w.view(e.data).percent() != percent {
			t.Fatalf("the stream has %s %s, want %d", e.name, e.data, percent)
		}
	}
	sees(v, 10)
	for path, text := range map[string]string{pair.Cert: next.CertText, pair.Key: next.KeyText} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.until("the new certificate is shown", func() bool {
		c, err := tls.Dial("tcp", strings.TrimPrefix(r.base, "https://"), w.tls)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName == "second"
	})
	w.send(progress(k.InstanceID, 2, 11))
	sees(v, 11)
	w.watch(r, w.customer, k).sees(k, 11)
}
