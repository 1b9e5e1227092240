package shell

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// The headers in which proxies tell of their callers. Only one kind is read: a
// proxy that writes the one hands on the other as whoever called it has made it up.
const (
	headersXForwarded = "x-forwarded" // X-Forwarded-For, X-Forwarded-Proto
	headersForwarded  = "forwarded"   // RFC 7239
)

// Proxies says whose word about their callers counts.
type Proxies struct {
	networks []netip.Prefix
	headers  string
}

// NewProxies takes addresses and networks, and which headers they write; or
// returns every mistake.
func NewProxies(networks []string, headers string) (*Proxies, error) {
	p := &Proxies{headers: headers}
	var errs []error
	for _, text := range networks {
		network, err := netip.ParsePrefix(text)
		if address, e := netip.ParseAddr(text); e == nil {
			network, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("trusted_proxies: %q is no address and no network such as 10.0.0.0/8", text))
		case network.Bits() == 0:
			errs = append(errs, fmt.Errorf("trusted_proxies: %s is everybody, who could then pretend to be anybody", text))
		case network.Addr().Is4In6():
			errs = append(errs, fmt.Errorf("trusted_proxies: %s is an IPv4 network, which is to be written as one", text))
		}
		p.networks = append(p.networks, network)
	}
	if headers != headersXForwarded && headers != headersForwarded {
		errs = append(errs, fmt.Errorf("proxy_headers: %q: not %s or %s", headers, headersXForwarded, headersForwarded))
	}
	return p, errors.Join(errs...)
}

func (p *Proxies) trusts(a netip.Addr) bool {
	return slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// Handler tells h who has really called. r.RemoteAddr is the caller's address,
// with port 0 when a proxy tells it; r.URL.Scheme, which servers leave empty, is
// http or https, as the caller has it.
//
// Of the addresses on the way the caller's is the nearest that is no trusted
// proxy's: everything farther is what that caller says. Where a trusted proxy
// tells none, or what is none, the caller is the last that is known.
func (p *Proxies) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := *r.URL
		r = r.WithContext(r.Context()) // a copy: the server's own request is not to be changed
		r.URL, u.Scheme = &u, "http"
		if r.TLS != nil {
			u.Scheme = "https"
		}
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && p.trusts(plain(peer.Addr())) {
			caller, scheme := p.caller(plain(peer.Addr()), r.Header)
			if caller != plain(peer.Addr()) {
				r.RemoteAddr = net.JoinHostPort(caller.String(), "0")
			}
			if scheme != "" {
				u.Scheme = scheme
			}
		}
		h.ServeHTTP(w, r)
	})
}

// plain makes one address of all its forms.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// caller walks from a proxy that is trusted towards who called it. Scheme is ""
// if nobody tells.
func (p *Proxies) caller(at netip.Addr, h http.Header) (caller netip.Addr, scheme string) {
	name, read := "X-Forwarded-For", func(e string) (string, string) { return strings.TrimSpace(e), "" }
	if p.headers == headersForwarded {
		name, read = "Forwarded", forwarded
	} else {
		scheme = agreed(h.Values("X-Forwarded-Proto"))
	}
	for rest := strings.Join(h.Values(name), ","); rest != "" && p.trusts(at); {
		var last string
		rest, last = cutLast(rest) // each proxy adds one element, at the end
		node, proto := read(last)
		next, ok := address(node)
		if !ok {
			break
		}
		if at = next; proto != "" {
			scheme = proto
		}
	}
	return at, scheme
}

// agreed is the scheme that every value of X-Forwarded-Proto has. Of a list
// nobody knows whose the parts are.
func agreed(values []string) (scheme string) {
	for _, v := range values {
		if v = schemeOf(v); v == "" || scheme != "" && scheme != v {
			return ""
		}
		scheme = v
	}
	return scheme
}

// schemeOf is http or https, or "" for what is neither.
func schemeOf(text string) string {
	if s := strings.ToLower(strings.TrimSpace(text)); s == "http" || s == "https" {
		return s
	}
	return ""
}

// cutLast cuts the last element off a list, at the last comma that is in no quoted
// string as seen from the end: what a caller has begun to quote and did not
// finish cannot swallow what a proxy has added behind it.
func cutLast(list string) (rest, last string) {
	quoted := false
	for i := len(list) - 1; i >= 0; i-- {
		switch {
		case list[i] == '"' && !escaped(list[:i]):
			quoted = !quoted
		case list[i] == ',' && !quoted:
			return list[:i], list[i+1:]
		}
	}
	return "", list
}

// escaped reports whether what follows a text has a backslash before it that
// counts.
func escaped(before string) bool {
	return (len(before)-len(strings.TrimRight(before, `\`)))%2 == 1
}

// forwarded reads for and proto of an element of Forwarded (RFC 7239, section 4);
// node is "" if for is absent or the element is malformed.
func forwarded(element string) (node, proto string) {
	seen := map[string]string{}
	for element = strings.TrimSpace(element); element != ""; {
		name, rest, ok := strings.Cut(element, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if _, again := seen[name]; !ok || again {
			return "", ""
		}
		if seen[name], element, ok = value(rest); !ok {
			return "", ""
		}
	}
	return seen["for"], schemeOf(seen["proto"])
}

// value reads a token or a quoted string and the semicolon behind it.
func value(text string) (v, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		v, rest, _ = strings.Cut(text, ";")
		v = strings.TrimSpace(v)
		return v, strings.TrimSpace(rest), v != "" && !strings.ContainsAny(v, "\"\\ ,=")
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			rest = strings.TrimSpace(text[i+1:])
			if rest == "" {
				return b.String(), "", true
			}
			rest, ok = strings.CutPrefix(rest, ";")
			return b.String(), strings.TrimSpace(rest), ok
		case c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false // never closed
}

// address reads the address of a node: with or without a port, which some
// gateways add to X-Forwarded-For as well, and with or without the brackets of
// IPv6. Names, such as RFC 7239's "unknown" and "_hidden", are none.
func address(node string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(node, "["); ok {
		if node, _, ok = strings.Cut(inner, "]"); !ok {
			return netip.Addr{}, false
		}
	} else if host, _, ok := strings.Cut(node, ":"); ok && strings.Count(node, ":") == 1 {
		node = host
	}
	a, err := netip.ParseAddr(node)
	return plain(a), err == nil
}
