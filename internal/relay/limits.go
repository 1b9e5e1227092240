package relay

import (
	"fmt"
	"math"
	"net/netip"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/limit"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/wsapi"
)

// Limits bounds how fast clients may come, and how many sockets one may have. Rates
// are per second, after a burst of two seconds' worth, and of this replica alone.
type Limits struct {
	RequestsPerCaller    float64 `koanf:"requests_per_caller" usage:"HTTP requests per second of one caller; a list counts as ten, one that names several instances as one for ten of them; 0: any number"`
	RequestsPerAddress   float64 `koanf:"requests_per_address" usage:"HTTP requests per second from one address (of IPv6, a /64); 0: any number"`
	FailuresPerAddress   float64 `koanf:"failures_per_address" usage:"credentials per second from one address that prove nothing; while there are more, nobody from there is let in; 0: any number"`
	FirstReads           float64 `koanf:"first_reads" usage:"instances per second of bridged hubs that one caller may have fetched who does not see them; of more nobody hears; 0: any number"`
	HandshakesPerAddress float64 `koanf:"handshakes_per_address" usage:"WebSocket handshakes per second from one address (of IPv6, a /64); 0: any number"`
	Handshakes           float64 `koanf:"handshakes" usage:"WebSocket handshakes per second in all; 0: any number"`
	SocketsPerCaller     int     `koanf:"sockets_per_caller" usage:"sockets of one caller on all replicas together, or on each while Redis does not answer; 0: any number"`
}

// defaultLimits keep a client that ran away from taking the replica with it, and are beyond what one honest caller does: behind
// a proxy that is not trusted all callers have one address, and a backend reads for many people with one token.
func defaultLimits() Limits {
	return Limits{
		RequestsPerCaller: 20_000, RequestsPerAddress: 50_000, FailuresPerAddress: 500, FirstReads: 10,
		HandshakesPerAddress: 10_000, Handshakes: 20_000, SocketsPerCaller: 20_000,
	}
}

// mistakes are those of the limits.
func (l Limits) mistakes() (errs []error) {
	for _, rate := range []struct {
		key   string
		value float64
	}{
		{"requests_per_caller", l.RequestsPerCaller},
		{"requests_per_address", l.RequestsPerAddress},
		{"failures_per_address", l.FailuresPerAddress},
		{"first_reads", l.FirstReads},
		{"handshakes_per_address", l.HandshakesPerAddress},
		{"handshakes", l.Handshakes},
		{"sockets_per_caller", float64(l.SocketsPerCaller)},
	} {
		if rate.value < 0 || math.IsNaN(rate.value) || math.IsInf(rate.value, 0) {
			errs = append(errs, fmt.Errorf("limits.%s: not 0 or more", rate.key))
		}
	}
	return errs
}

// limited adds the limits to what the edges are told.
func (r *Relay) limited(api *httpapi.Options, sockets *wsapi.Options) {
	l := r.config.Limits
	failures := limit.New[netip.Addr](limit.PerSecond(l.FailuresPerAddress))
	api.PerCaller, api.PerAddress, api.Failures = limit.PerSecond(l.RequestsPerCaller), limit.PerSecond(l.RequestsPerAddress), failures
	api.FirstReads = limit.PerSecond(l.FirstReads)
	sockets.HandshakesPerAddress, sockets.Handshakes = limit.PerSecond(l.HandshakesPerAddress), limit.PerSecond(l.Handshakes)
	sockets.Failures = failures
	if l.SocketsPerCaller > 0 {
		r.counter = r.store.Sockets(redisstore.SocketsOptions{})
		sockets.Sockets, sockets.MaxSocketsPerCaller = r.counter, l.SocketsPerCaller
	}
}
