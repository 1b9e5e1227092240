package wsapi

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
)

// The limits, as metrics and the log call them. Those of package redisstore's Sockets count as sockets.
const (
	limitAddress    = "address"
	limitHandshakes = "handshakes"
	limitFailures   = "failures"
	limitSockets    = "sockets"
)

// knock charges for a handshake, before it is known who sends it. One address cannot use up what there is for all.
func (s *Server) knock(from netip.Addr, now time.Time) error {
	if wait := s.o.Failures.Wait(from, now); wait > 0 {
		return &limit.Error{Limit: limitFailures, RetryAfter: limit.Scattered(wait)}
	}
	if wait := s.handshakes.perAddress.Take(from, 1, now); wait > 0 {
		return &limit.Error{Limit: limitAddress, RetryAfter: limit.Scattered(wait)}
	}
	if wait := s.handshakes.inAll.Take(struct{}{}, 1, now); wait > 0 {
		return &limit.Error{Limit: limitHandshakes, RetryAfter: limit.Scattered(wait)}
	}
	return nil
}

// enter counts a socket of the caller, wherever the others are.
func (s *Server) enter(ctx context.Context, who *auth.Principal) error {
	if !s.counts() {
		return nil
	}
	return s.o.Sockets.Enter(ctx, callerOf(who), s.o.MaxSocketsPerCaller)
}

// leave undoes enter.
func (s *Server) leave(who *auth.Principal) {
	if s.counts() {
		s.o.Sockets.Leave(callerOf(who))
	}
}

func (s *Server) counts() bool { return s.o.Sockets != nil && s.o.MaxSocketsPerCaller > 0 }

// callerOf names who has a socket, whatever token they show. Neither part contains a NUL that could move from one to the other:
// issuers are configured.
func callerOf(who *auth.Principal) string { return who.Issuer + "\x00" + who.Subject }

// noted counts an error that is about a limit, or is to count against one.
func (s *Server) noted(from netip.Addr, err error) {
	if reached := (*limit.Error)(nil); errors.As(err, &reached) {
		s.metrics.limited.WithLabelValues(reached.Limit).Inc()
	}
	if auth.IsGuess(err) {
		s.o.Failures.Charge(from, time.Now())
	}
}
