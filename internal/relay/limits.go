package relay

import (
	"errors"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/limit"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/shell"
	"statusrelay/internal/wsapi"
)

// Limits bounds how fast clients may come, and how many sockets one may have. Rates
// are per second, after a burst of two seconds' worth, and of this replica alone.
type Limits struct {
	RequestsPerCaller float64 `koanf:"requests_per_caller" usage:"HTTP requests per second of one caller; a list counts as ten, one that names several instances as one for ten of them; 0: any number"`
	RequestsPerTenant float64 `koanf:"requests_per_tenant" usage:"HTTP requests per second of all callers of one tenant together, which count as those of one caller; 0: any number"`
	shell.Door
	FirstReads           float64 `koanf:"first_reads" usage:"instances per second of bridged hubs that one caller may have fetched who does not see them; of more nobody hears; 0: any number"`
	HandshakesPerAddress float64 `koanf:"handshakes_per_address" usage:"WebSocket handshakes per second from one address (of IPv6, a /64); 0: any number"`
	Handshakes           float64 `koanf:"handshakes" usage:"WebSocket handshakes per second in all; 0: any number"`
	SocketsPerCaller     int     `koanf:"sockets_per_caller" usage:"sockets of one caller on all replicas together, or on each while Redis does not answer; 0: any number"`
	SocketsPerTenant     int     `koanf:"sockets_per_tenant" usage:"sockets of all callers of one tenant together, on all replicas; 0: any number"`
	SocketsPerAddress    int     `koanf:"sockets_per_address" usage:"sockets from one address (of IPv6, a /64), on all replicas; 0: any number"`
	TenantClaim          string  `koanf:"tenant_claim" usage:"claim that names the tenant of a caller, who has none if it is no text; the tenants of two issuers are two"`
}

// defaultLimits keep a client that ran away from taking the replica with it, and are beyond what one honest caller does: behind
// a proxy that is not trusted all callers have one address, and a backend reads for many people with one token. How large a tenant
// is, and how many sockets an honest address has, nobody can tell beforehand: all callers may be of one, or behind one. These are for
// operators to set.
func defaultLimits() Limits {
	return Limits{
		RequestsPerCaller: 20_000, Door: shell.DefaultDoor(), FirstReads: 10,
		HandshakesPerAddress: 10_000, Handshakes: 20_000, SocketsPerCaller: 20_000,
		TenantClaim: "tid",
	}
}

// mistakes are those of the limits.
func (l Limits) mistakes() []error {
	errs := []error{
		l.Door.Validate(),
		shell.Limit("limits.requests_per_caller", l.RequestsPerCaller),
		shell.Limit("limits.first_reads", l.FirstReads),
		shell.Limit("limits.requests_per_tenant", l.RequestsPerTenant),
		shell.Limit("limits.handshakes_per_address", l.HandshakesPerAddress),
		shell.Limit("limits.handshakes", l.Handshakes),
		shell.Limit("limits.sockets_per_caller", float64(l.SocketsPerCaller)),
		shell.Limit("limits.sockets_per_tenant", float64(l.SocketsPerTenant)),
		shell.Limit("limits.sockets_per_address", float64(l.SocketsPerAddress)),
	}
	if l.TenantClaim == "" && (l.RequestsPerTenant > 0 || l.SocketsPerTenant > 0) {
		errs = append(errs, errors.New("limits.tenant_claim: required with limits.requests_per_tenant and limits.sockets_per_tenant"))
	}
	return errs
}

// limited adds the limits to what the edges are told.
func (r *Relay) limited(api *httpapi.Options, sockets *wsapi.Options) {
	l := r.config.Limits
	failures := limit.NewFailures(limit.PerSecond(l.FailuresPerAddress))
	api.PerCaller, api.PerTenant, api.TenantClaim = limit.PerSecond(l.RequestsPerCaller), limit.PerSecond(l.RequestsPerTenant), l.TenantClaim
	api.PerAddress, api.Failures = limit.PerSecond(l.RequestsPerAddress), failures
	api.FirstReads = limit.PerSecond(l.FirstReads)
	sockets.HandshakesPerAddress, sockets.Handshakes = limit.PerSecond(l.HandshakesPerAddress), limit.PerSecond(l.Handshakes)
	sockets.Failures, sockets.TenantClaim = failures, l.TenantClaim
	sockets.MaxSocketsPerCaller, sockets.MaxSocketsPerTenant, sockets.MaxSocketsPerAddress = l.SocketsPerCaller, l.SocketsPerTenant, l.SocketsPerAddress
	if l.SocketsPerCaller > 0 || l.SocketsPerTenant > 0 || l.SocketsPerAddress > 0 {
		r.counter = r.store.Sockets(redisstore.SocketsOptions{})
		sockets.Sockets = r.counter
	}
}
