package shell_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"statusrelay/internal/shell"
)

// seen is what a handler behind proxies sees of a request: the caller's address
// and the scheme.
func seen(t testing.TB, networks []string, headers string, r *http.Request) (address, scheme string) {
	t.Helper()
	p, err := shell.NewProxies(networks, headers)
	if err != nil {
		t.Fatal(err)
	}
	before, url := r.RemoteAddr, *r.URL
	p.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		address, scheme = r.RemoteAddr, r.URL.Scheme
	})).ServeHTTP(httptest.NewRecorder(), r)
	if r.RemoteAddr != before || *r.URL != url {
		t.Error("the server's own request was changed")
	}
	return address, scheme
}

// Whatever a caller writes, its address is the one that the nearest proxy which is
// trusted has seen. 10/8 and 2001:db8:a::/48 are trusted here, and 192.0.2.1 calls.
func TestH9OnlyTrustedProxiesAreBelieved(t *testing.T) {
	const (
		caller, direct = "192.0.2.1:0", "192.0.2.1:4711"
		proxy          = "10.0.0.1:4711"
	)
	networks := []string{"10.0.0.0/8", "2001:db8:a::/48", "203.0.113.9"}
	const x, f = "x-forwarded", "forwarded"
	type lines = []string
	for _, c := range []struct {
		what, headers, peer string
		lines               lines // name and value in turn
		address, scheme     string
	}{
		{"nobody between", x, direct, nil, direct, "http"},
		{"spoofed without a proxy", x, direct, lines{"X-Forwarded-For", "10.0.0.9", "X-Forwarded-Proto", "https", "Forwarded", "for=10.0.0.9;proto=https"}, direct, "http"},
		{"spoofed without a proxy", f, direct, lines{"X-Forwarded-For", "10.0.0.9", "X-Forwarded-Proto", "https", "Forwarded", "for=10.0.0.9;proto=https"}, direct, "http"},
		{"a proxy that says nothing", x, proxy, nil, proxy, "http"},
		{"one proxy", x, proxy, lines{"X-Forwarded-For", "192.0.2.1", "X-Forwarded-Proto", "https"}, caller, "https"},
		{"one proxy, by its address", x, "203.0.113.9:1", lines{"X-Forwarded-For", "192.0.2.1"}, caller, "http"},
		{"its neighbour", x, "203.0.113.10:1", lines{"X-Forwarded-For", "192.0.2.1"}, "203.0.113.10:1", "http"},
		{"a proxy on a socket for both", x, "[::ffff:10.0.0.1]:4711", lines{"X-Forwarded-For", "192.0.2.1"}, caller, "http"},
		{"two proxies", x, proxy, lines{"X-Forwarded-For", "192.0.2.1, 10.0.0.2", "X-Forwarded-Proto", "https"}, caller, "https"},
		{"two proxies, two lines", x, proxy, lines{"X-Forwarded-For", "192.0.2.1", "X-Forwarded-For", "10.0.0.2"}, caller, "http"},
		{"spoofed before one proxy", x, proxy, lines{"X-Forwarded-For", "198.51.100.1, 192.0.2.1"}, caller, "http"},
		{"spoofed as a proxy", x, proxy, lines{"X-Forwarded-For", "198.51.100.1, 10.0.0.7, 192.0.2.1"}, caller, "http"},
		{"spoofed on a line of its own", x, proxy, lines{"X-Forwarded-For", "198.51.100.1", "X-Forwarded-For", "192.0.2.1"}, caller, "http"},
		{"spoofed with rubbish", x, proxy, lines{"X-Forwarded-For", `"\, 192.0.2.1`}, caller, "http"},
		{"spoofed in the other header", x, proxy, lines{"X-Forwarded-For", "192.0.2.1", "Forwarded", "for=198.51.100.1;proto=https"}, caller, "http"},
		{"only the other header", x, proxy, lines{"Forwarded", "for=198.51.100.1;proto=https"}, proxy, "http"},
		{"a proxy beyond one that is not trusted", x, proxy, lines{"X-Forwarded-For", "192.0.2.1, 198.51.100.200"}, "198.51.100.200:0", "http"},
		{"all are trusted", x, proxy, lines{"X-Forwarded-For", "10.0.0.3, 10.0.0.2"}, "10.0.0.3:0", "http"},
		{"no address", x, proxy, lines{"X-Forwarded-For", "192.0.2.1, unknown"}, proxy, "http"},
		{"no address further on", x, proxy, lines{"X-Forwarded-For", "192.0.2.1, unknown, 10.0.0.2"}, "10.0.0.2:0", "http"},
		{"nothing", x, proxy, lines{"X-Forwarded-For", "192.0.2.1,"}, proxy, "http"},
		{"a port", x, proxy, lines{"X-Forwarded-For", "192.0.2.1:50123"}, caller, "http"},
		{"IPv6", x, "[2001:db8:a::1]:1", lines{"X-Forwarded-For", "2001:db8::7"}, "[2001:db8::7]:0", "http"},
		{"IPv6 with a port", x, proxy, lines{"X-Forwarded-For", "[2001:db8::7]:443"}, "[2001:db8::7]:0", "http"},
		{"IPv6 for IPv4", x, proxy, lines{"X-Forwarded-For", "::ffff:192.0.2.1"}, caller, "http"},
		{"a zone", x, proxy, lines{"X-Forwarded-For", "fe80::1%eth0"}, "[fe80::1]:0", "http"},
		{"two schemes", x, proxy, lines{"X-Forwarded-For", "192.0.2.1", "X-Forwarded-Proto", "https, http"}, caller, "http"},
		{"twice the same scheme", x, proxy, lines{"X-Forwarded-Proto", "https", "X-Forwarded-Proto", "HTTPS"}, proxy, "https"},
		{"another scheme", x, proxy, lines{"X-Forwarded-Proto", "javascript"}, proxy, "http"},

		{"one proxy", f, proxy, lines{"Forwarded", "for=192.0.2.1;proto=https;by=10.0.0.1"}, caller, "https"},
		{"as the RFC has it", f, proxy, lines{"Forwarded", `For="[2001:db8:cafe::17]:4711"; Proto=HTTPS`}, "[2001:db8:cafe::17]:0", "https"},
		{"two proxies", f, proxy, lines{"Forwarded", `for=192.0.2.1;proto=https, for="10.0.0.2:_gw";proto=http`}, caller, "https"},
		{"two proxies, one tells the scheme", f, proxy, lines{"Forwarded", `for=192.0.2.1, for=10.0.0.2;proto=https`}, caller, "https"},
		{"spoofed before one proxy", f, proxy, lines{"Forwarded", "for=198.51.100.1;proto=http, for=192.0.2.1;proto=https"}, caller, "https"},
		{"spoofed by a quote", f, proxy, lines{"Forwarded", `for="198.51.100.1, for=192.0.2.1;proto=https`}, caller, "https"},
		{"spoofed by a quote and a proxy that quotes", f, proxy, lines{"Forwarded", `for="x\, for="192.0.2.1:1"`}, caller, "http"},
		{"spoofed in the other header", f, proxy, lines{"Forwarded", "for=192.0.2.1", "X-Forwarded-For", "198.51.100.1", "X-Forwarded-Proto", "https"}, caller, "http"},
		{"only the other header", f, proxy, lines{"X-Forwarded-For", "198.51.100.1", "X-Forwarded-Proto", "https"}, proxy, "http"},
		{"unknown", f, proxy, lines{"Forwarded", "for=192.0.2.1, for=unknown;proto=https"}, proxy, "http"},
		{"hidden", f, proxy, lines{"Forwarded", "for=192.0.2.1, for=_secret"}, proxy, "http"},
		{"twice in one element", f, proxy, lines{"Forwarded", "for=192.0.2.1;for=198.51.100.1"}, proxy, "http"},
		{"no for", f, proxy, lines{"Forwarded", "for=192.0.2.1, proto=https"}, proxy, "http"},
		{"escaped", f, proxy, lines{"Forwarded", `for="192\.0.2.1";host="a,b;c\"d"`}, caller, "http"},
		{"never closed", f, proxy, lines{"Forwarded", `for="192.0.2.1`}, proxy, "http"},
	} {
		t.Run(c.headers+"/"+c.what, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodGet, "/v1/watch?x=1", nil)
			r.URL.Scheme, r.RemoteAddr = "", c.peer
			for i := 0; i < len(c.lines); i += 2 {
				r.Header.Add(c.lines[i], c.lines[i+1])
			}
			if address, scheme := seen(t, networks, c.headers, r); address != c.address || scheme != c.scheme {
				t.Errorf("got %s by %s, want %s by %s", address, scheme, c.address, c.scheme)
			}
			if address, scheme := seen(t, nil, c.headers, r); address != c.peer || scheme != "http" {
				t.Errorf("with no proxy trusted: got %s by %s", address, scheme)
			}
		})
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.TLS, r.RemoteAddr = &tls.ConnectionState{}, "@" // such as a Unix socket's
	if address, scheme := seen(t, networks, x, r); address != "@" || scheme != "https" {
		t.Errorf("TLS: got %s by %s", address, scheme)
	}
}

func TestH9MistakesAboutProxiesAreToldAtOnce(t *testing.T) {
	for _, c := range []struct {
		networks []string
		headers  string
		want     []string
	}{
		{nil, "x-forwarded", nil},
		{[]string{"10.0.0.0/8", "10.0.0.1", "::1", "2001:db8::/32"}, "forwarded", nil},
		{[]string{"10.0.0.0/33", "proxy.internal", "0.0.0.0/0", "::/0", "::ffff:10.0.0.0/104"}, "x-real-ip", []string{
			"10.0.0.0/33", "proxy.internal", "0.0.0.0/0 is everybody", "::/0 is everybody", "::ffff:10.0.0.0/104", "proxy_headers",
		}},
	} {
		config := valid()
		config.TrustedProxies, config.ProxyHeaders = c.networks, c.headers
		wantMistakes(t, config.Validate(), c.want)
	}
}

// Whatever a caller has written, what a proxy adds behind it is what counts.
func FuzzH9NothingBeforeAProxysElementCounts(f *testing.F) {
	for _, text := range []string{"", "for=1.2.3.4", `for="`, `"\`, `\`, ",", `for="a,b`, `"",`, "for=10.0.0.1;proto=http", `for="\"`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, written string) {
		for headers, line := range map[string][2]string{
			"forwarded":   {"Forwarded", `, for="[2001:db8::7]:1";proto=https`},
			"x-forwarded": {"X-Forwarded-For", ", 2001:db8::7"},
		} {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr = "10.0.0.1:1"
			r.Header.Set(line[0], written+line[1])
			if address, _ := seen(t, []string{"10.0.0.0/8"}, headers, r); address != "[2001:db8::7]:0" {
				t.Errorf("%q: got %s", written+line[1], address)
			}
			// And what is alone is an address or nothing.
			r.Header.Set(line[0], written)
			if address, _ := seen(t, []string{"10.0.0.0/8"}, headers, r); strings.TrimSpace(address) != address || address == "" {
				t.Errorf("%q: got %q", written, address)
			}
		}
	})
}
