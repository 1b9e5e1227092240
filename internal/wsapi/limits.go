package wsapi

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
)

// The limits besides those of a limit.Door, as metrics and the log call them.
const (
	limitHandshakes     = "handshakes"
	limitSockets        = "sockets"
	limitTenantSockets  = "tenant_sockets"
	limitAddressSockets = "address_sockets"
)

// knock charges for a handshake, before it is known who sends it. One address cannot use up what there is for all.
func (s *Server) knock(from netip.Addr, now time.Time) error {
	if _, err := s.door.Admit(from, now); err != nil {
		return err
	}
	_, err := s.handshakes.Take(struct{}{}, 1, now)
	return err
}

// enter counts a socket of who has it, wherever the others are. It returns what undoes that, nil if there is nothing to undo. Those
// from an address are counted from the handshake on, those of a caller and their tenant as soon as it is known who they are.
func (s *Server) enter(ctx context.Context, from *netip.Addr, who *auth.Principal) (leave func(), err error) {
	if s.o.Sockets == nil {
		return nil, nil
	}
	var places []limit.Place
	if from != nil && s.o.MaxSocketsPerAddress > 0 {
		places = append(places, limit.Place{Limit: limitAddressSockets, Of: from.String(), Most: s.o.MaxSocketsPerAddress})
	}
	if who != nil && s.o.MaxSocketsPerCaller > 0 {
		places = append(places, limit.Place{Limit: limitSockets, Of: callerOf(who), Most: s.o.MaxSocketsPerCaller})
	}
	if who != nil && s.o.MaxSocketsPerTenant > 0 {
		if tenant := who.Text(s.o.TenantClaim); tenant != "" {
			places = append(places, limit.Place{Limit: limitTenantSockets, Of: named(who.Issuer, tenant), Most: s.o.MaxSocketsPerTenant})
		}
	}
	if len(places) == 0 {
		return nil, nil
	}
	return s.o.Sockets.Enter(ctx, places...)
}

// both does what each of two does, nil being nothing.
func both(a, b func()) func() {
	if a == nil {
		return b
	}
	if b == nil {
		return a
	}
	return func() {
		a()
		b()
	}
}

// callerOf names who has a socket, whatever token they show.
func callerOf(who *auth.Principal) string { return named(who.Issuer, who.Subject) }

// named is the name of something of an issuer's. Issuers are configured, so that no NUL could move from the one part to the other.
func named(issuer, name string) string { return issuer + "\x00" + name }

// noted counts an error that is about a limit, or is to count against one.
func (s *Server) noted(from netip.Addr, err error) {
	if reached := (*limit.Error)(nil); errors.As(err, &reached) {
		s.metrics.limited.WithLabelValues(reached.Limit).Inc()
	}
	if auth.IsGuess(err) {
		s.door.Failed(from, time.Now())
	}
}
