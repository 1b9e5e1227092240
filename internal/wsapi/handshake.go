package wsapi

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
)

// Subprotocol is the name of the protocol. tokenPrefix marks the entry beside it in which browsers, which can set no
// header, pass their token. It is never echoed.
const (
	Subprotocol = "status.v1.json"
	tokenPrefix = "bearer."
)

// ServeHTTP answers a handshake. It returns as soon as that is done: the socket goes on without it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !websocket.IsWebSocketUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		s.refuse(w, problem.Problem{
			Type:   "urn:statusrelay:problem:upgrade-required",
			Title:  "This resource is a WebSocket.",
			Status: http.StatusUpgradeRequired,
		})
		return
	}
	if err := s.checkOrigin(r.Header["Origin"]); err != nil {
		s.refuseFor(w, r, err)
		return
	}
	header, token, err := credentials(r)
	if err != nil {
		s.refuseFor(w, r, err)
		return
	}
	var who *auth.Principal
	if token != "" {
		if who, err = s.o.Verify(r.Context(), token); err != nil {
			s.refuseFor(w, r, err)
			return
		}
	}
	if err := s.admit(who); err != nil {
		s.refuseFor(w, r, err)
		return
	}
	conn, err := s.upgrader.Upgrade(w, r, header)
	if err != nil {
		s.release(who)
		s.log.DebugContext(r.Context(), "websocket handshake", "error", err)
		return
	}
	s.open(conn, who)
}

// checkOrigin refuses browsers that were led here by somebody else's page (CWE-1385). Who sends no Origin is no
// browser, and no cookie ever authenticates here.
func (s *Server) checkOrigin(origins []string) error {
	if len(origins) == 0 || len(origins) == 1 && slices.Contains(s.o.Origins, origins[0]) {
		return nil
	}
	return fmt.Errorf("origin: %w", auth.ErrForbidden)
}

// credentials reads the token of a handshake, "" if there is none, and the header that answers the subprotocols it offers.
func credentials(r *http.Request) (answer http.Header, token string, err error) {
	token, _, err = auth.Bearer(r)
	if err != nil {
		return nil, "", err
	}
	offered, supported := false, false
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.TrimSpace(name)
			offered = true
			encoded, isToken := strings.CutPrefix(name, tokenPrefix)
			switch {
			case isToken && token != "":
				return nil, "", fmt.Errorf("%w: more than one token", auth.ErrUnauthenticated)
			case isToken:
				decoded, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
				if err != nil || len(decoded) == 0 {
					return nil, "", fmt.Errorf("%w: the subprotocol's token is not base64url", auth.ErrUnauthenticated)
				}
				token = string(decoded)
			case name == Subprotocol:
				supported = true
			}
		}
	}
	if offered && !supported {
		return nil, "", &status.InvalidError{Reason: status.ReasonInvalid, Field: "Sec-WebSocket-Protocol", Detail: "does not offer " + Subprotocol}
	}
	if offered {
		answer = http.Header{"Sec-Websocket-Protocol": {Subprotocol}}
	}
	return answer, token, nil
}

// admit counts a socket in, before the handshake is answered.
func (s *Server) admit(who *auth.Principal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return fmt.Errorf("shutting down: %w", status.ErrUnavailable)
	case s.admitted >= s.o.MaxSockets:
		return fmt.Errorf("%d sockets: %w", s.admitted, status.ErrUnavailable)
	case who == nil && s.unauthenticated >= s.o.MaxUnauthenticated:
		return fmt.Errorf("%d sockets that have not authenticated: %w", s.unauthenticated, status.ErrUnavailable)
	}
	s.goroutines.Add(1)
	s.admitted++
	if who == nil {
		s.unauthenticated++
	}
	return nil
}

// release undoes admit.
func (s *Server) release(who *auth.Principal) {
	s.mu.Lock()
	s.admitted--
	if who == nil {
		s.unauthenticated--
	}
	s.mu.Unlock()
	s.goroutines.Done()
}

// open makes a socket of a connection and starts to read from it, in a goroutine of its own: the one of the HTTP server
// has grown a stack, and holds the request and its buffers until the handler returns.
func (s *Server) open(conn *websocket.Conn, who *auth.Principal) {
	now := time.Now()
	so := &socket{server: s, conn: conn, due: now.Add(s.pingPause()).UnixNano()}
	if who == nil {
		so.due = now.Add(s.o.AuthTimeout).UnixNano()
	}
	so.reader.Open(s.o.Source, so)
	conn.SetReadLimit(int64(min(s.o.MaxFrameBytes, maxUnauthenticatedFrame)))
	conn.SetPingHandler(so.pinged)
	conn.SetPongHandler(so.ponged)
	_ = conn.SetReadDeadline(now.Add(s.silence())) // fails on a closed connection, as the read will
	if who != nil {
		so.enter(who, "")
	}
	s.mu.Lock()
	so.index = int32(len(s.sockets)) // MaxSockets is far below 2^31
	s.sockets = append(s.sockets, so)
	closing := s.closing
	s.mu.Unlock()
	s.metrics.sockets.Inc()
	if closing {
		so.fail(closeRestart)
	}
	s.goroutines.Add(1)
	go so.read()
}

// remove forgets a socket whose reader has ended.
func (s *Server) remove(so *socket) {
	s.mu.Lock()
	last := s.sockets[len(s.sockets)-1]
	s.sockets[so.index], last.index = last, so.index
	s.sockets[len(s.sockets)-1] = nil
	s.sockets = s.sockets[:len(s.sockets)-1]
	s.mu.Unlock()
	s.metrics.sockets.Dec()
	s.release(so.reader.Principal())
}

// refuseFor answers a handshake by the kind of error. The client is told the kind, the log the cause.
func (s *Server) refuseFor(w http.ResponseWriter, r *http.Request, err error) {
	s.log.DebugContext(r.Context(), "websocket handshake refused", "error", err)
	s.refuse(w, problem.Of(err))
}

func (s *Server) refuse(w http.ResponseWriter, p problem.Problem) {
	s.metrics.refused.WithLabelValues(strconv.Itoa(p.Status)).Inc()
	problem.Write(w, p)
}

// refuseHandshake answers what gorilla finds wrong with a handshake. Its sentences contain nothing of the request.
func (s *Server) refuseHandshake(w http.ResponseWriter, _ *http.Request, code int, reason error) {
	p := problem.Invalid(code, "", reason.Error())
	switch he := (websocket.HandshakeError{}); {
	case code == http.StatusMethodNotAllowed:
		p = problem.MethodNotAllowed()
	case code >= 500 || !errors.As(reason, &he):
		p = problem.Of(reason)
	}
	w.Header().Set("Sec-Websocket-Version", "13")
	s.refuse(w, p)
}
