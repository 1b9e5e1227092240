package wsapi

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
)

// tokenPrefix marks the entry beside the subprotocols in which browsers, which can set no header, pass their token. It is
// never echoed.
const tokenPrefix = "bearer."

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
	from := limit.Address(r)
	if err := s.knock(from, time.Now()); err != nil {
		s.refuseFor(w, r, err)
		return
	}
	if err := s.checkOrigin(r.Header["Origin"]); err != nil {
		s.refuseFor(w, r, err)
		return
	}
	h, err := s.readHandshake(r)
	if err != nil {
		s.refuseFor(w, r, err)
		return
	}
	who, err := s.authenticate(r, h)
	if err != nil {
		s.refuseFor(w, r, err)
		return
	}
	leave, err := s.admit(r.Context(), from, who)
	if err != nil {
		s.refuseFor(w, r, err)
		return
	}
	var answer http.Header
	if h.subprotocol != "" {
		answer = http.Header{"Sec-Websocket-Protocol": {h.subprotocol}}
	}
	upgrader := s.upgrader
	upgrader.EnableCompression = s.o.Compression && deflates(r.Header.Values("Sec-WebSocket-Extensions"))
	conn, err := upgrader.Upgrade(w, r, answer)
	if err != nil {
		s.release(who, leave)
		s.log.DebugContext(r.Context(), "websocket handshake", "error", err)
		return
	}
	s.open(conn, from, h.dialect, who, leave)
}

// authenticate returns who sends a handshake, or nil if a later frame may say so. It uses up a ticket.
func (s *Server) authenticate(r *http.Request, h handshake) (*auth.Principal, error) {
	ctx, cancel := context.WithTimeout(r.Context(), s.o.AuthTimeout)
	defer cancel()
	switch {
	case h.hasTicket:
		return s.o.Redeem(ctx, h.ticket, r.Header.Get("Origin"))
	case h.token != "":
		return s.o.Verify(ctx, h.token)
	case !h.dialect.lateAuth():
		return nil, auth.ErrMissing
	}
	return nil, nil
}

// checkOrigin refuses browsers that were led here by somebody else's page (CWE-1385). Who sends no Origin is no
// browser, and no cookie ever authenticates here.
func (s *Server) checkOrigin(origins []string) error {
	if len(origins) == 0 || len(origins) == 1 && slices.Contains(s.o.Origins, origins[0]) {
		return nil
	}
	return fmt.Errorf("origin: %w", auth.ErrForbidden)
}

// A handshake is what a client says in its own.
type handshake struct {
	subprotocol string // to be echoed; "": none was offered
	dialect     dialect
	token       string // "": none
	ticket      string
	hasTicket   bool
}

// readHandshake reads a handshake. One that presents more than one credential presents none.
func (s *Server) readHandshake(r *http.Request) (h handshake, err error) {
	if err := h.readQuery(r.URL.RawQuery); err != nil {
		return h, err
	}
	if h.hasTicket && s.o.Redeem == nil {
		return h, invalid("ticket", "not accepted here")
	}
	token, _, err := auth.Bearer(r)
	if err != nil {
		return h, err
	}
	h.token = token
	offered := false
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			offered = true
			if err := h.readSubprotocol(strings.TrimSpace(name)); err != nil {
				return h, err
			}
		}
	}
	switch {
	case h.token != "" && h.hasTicket:
		return h, fmt.Errorf("%w: a ticket beside a token", auth.ErrUnauthenticated)
	case h.dialect != nil:
	case offered:
		return h, invalid("Sec-WebSocket-Protocol", "does not offer "+Subprotocol+" or "+WebPubSub)
	default:
		h.dialect = statusDialect{}
	}
	return h, nil
}

// recovery are the parameters that clients of Azure Web PubSub add to come back to a connection. Here there is none to
// come back to, which they notice by the welcome.
var recovery = [...]string{"awps_connection_id", "awps_reconnection_token"}

// readQuery reads the parameters. Those that are not known are refused: one that is misspelt would be missed.
func (h *handshake) readQuery(query string) error {
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return invalid("", "the query is not well formed")
	}
	for _, name := range slices.Sorted(maps.Keys(parameters)) {
		switch values := parameters[name]; {
		case slices.Contains(recovery[:], name):
		case name != "ticket":
			return invalid(name, "not a parameter of this resource")
		case len(values) > 1:
			return invalid(name, "more than one")
		default:
			h.ticket, h.hasTicket = values[0], true
		}
	}
	return nil
}

// readSubprotocol reads one of the subprotocols that are offered. The first that is known is spoken.
func (h *handshake) readSubprotocol(name string) error {
	encoded, isToken := strings.CutPrefix(name, tokenPrefix)
	switch {
	case isToken && h.token != "":
		return fmt.Errorf("%w: more than one token", auth.ErrUnauthenticated)
	case isToken:
		decoded, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
		if err != nil || len(decoded) == 0 {
			return fmt.Errorf("%w: the subprotocol's token is not base64url", auth.ErrUnauthenticated)
		}
		h.token = string(decoded)
	case h.dialect == nil:
		if h.dialect = dialectOf(name); h.dialect != nil {
			h.subprotocol = name
		}
	}
	return nil
}

// deflates reports whether a client offers to compress (RFC 7692) in a way that suits: the library's window is 32 KiB, and
// is forgotten after each message.
func deflates(extensions []string) bool {
	for _, line := range extensions {
		for extension := range strings.SplitSeq(line, ",") {
			name, parameters, _ := strings.Cut(extension, ";")
			if strings.TrimSpace(name) == "permessage-deflate" && !strings.Contains(parameters, "server_max_window_bits") {
				return true
			}
		}
	}
	return false
}

// admit counts a socket in, before the handshake is answered. What it returns beside an error is for release.
func (s *Server) admit(ctx context.Context, from netip.Addr, who *auth.Principal) (leave func(), err error) {
	if err := s.place(who); err != nil {
		return nil, err
	}
	if leave, err = s.enter(ctx, &from, who); err != nil {
		s.displace(who)
		return nil, err
	}
	return leave, nil
}

// place takes one of this server's places.
func (s *Server) place(who *auth.Principal) error {
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
func (s *Server) release(who *auth.Principal, leave func()) {
	if leave != nil {
		leave()
	}
	s.displace(who)
}

// displace undoes place.
func (s *Server) displace(who *auth.Principal) {
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
func (s *Server) open(conn *websocket.Conn, from netip.Addr, d dialect, who *auth.Principal, leave func()) {
	now := time.Now()
	so := &socket{server: s, conn: conn, dialect: d, leaves: leave, due: now.Add(s.pingPause()).UnixNano()}
	if who == nil {
		so.due = now.Add(s.o.AuthTimeout).UnixNano()
	}
	so.reader.Open(s.o.Source, so)
	so.limitFrames()
	conn.SetPingHandler(so.pinged)
	conn.SetPongHandler(so.ponged)
	_ = conn.SetReadDeadline(now.Add(s.silence())) // fails on a closed connection, as the read will
	if who != nil {
		so.enter(who, "")
	}
	s.mu.Lock()
	so.index = int32(len(s.sockets)) // MaxSockets is far below 2^31
	s.sockets = append(s.sockets, so)
	if who == nil {
		s.origins[so] = from
	}
	closing := s.closing
	s.mu.Unlock()
	s.metrics.sockets.Inc()
	s.metrics.opened.WithLabelValues(cmp.Or(conn.Subprotocol(), Subprotocol)).Inc()
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
	delete(s.origins, so)
	s.mu.Unlock()
	s.metrics.sockets.Dec()
	s.release(so.reader.Principal(), so.leaves)
}

// refuseFor answers a handshake by the kind of error. The client is told the kind, the log the cause.
func (s *Server) refuseFor(w http.ResponseWriter, r *http.Request, err error) {
	s.log.DebugContext(r.Context(), "websocket handshake refused", "error", err)
	s.noted(limit.Address(r), err)
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
