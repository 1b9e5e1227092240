package wsapi

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/problem"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// A closure is why the server closes a socket: a code (RFC 6455 section 7.4, and those from 4400 on as HTTP has them), and
// a fixed sentence.
type closure struct {
	code   uint16
	reason string
}

// The closures are never modified.
var (
	closeNotText         = &closure{websocket.CloseInvalidFramePayloadData, "not UTF-8"}
	closeNotDeflated     = &closure{websocket.CloseInvalidFramePayloadData, "not DEFLATE"}
	closeTooBig          = &closure{websocket.CloseMessageTooBig, "frame too big"}
	closeInternal        = &closure{websocket.CloseInternalServerErr, "internal error"}
	closeRestart         = &closure{websocket.CloseServiceRestart, "restarting"}
	closeLater           = &closure{websocket.CloseTryAgainLater, "unavailable for now"}
	closeUnauthenticated = &closure{4401, "a valid token is required"}
	closeExpired         = &closure{4401, "token expired"}
	closeForbidden       = &closure{4403, "forbidden"}
	closeLate            = &closure{4408, "no auth in time"}
	closeMisuse          = &closure{4409, "protocol misuse"}
	closeTooMuch         = &closure{4429, "too many frames"}
	closeUnread          = &closure{4429, "answers are not read"}
	closeCrowded         = &closure{4429, "too many sockets"}
)

// maxStrikes is how many bad frames in a row end a socket.
const maxStrikes = 3

// A socket is one client. Its methods are called by the reader: a goroutine that blocks in a read for most of its life; by
// the drain: a goroutine that is there while something is to be written; by the server's sweep; and, through
// the watches, by the hub.
//
// There may be tens of thousands, of which most are idle: what is not needed then is allocated when it is, and the order of
// the fields leaves no holes.
type socket struct {
	server *Server         // set once
	conn   *websocket.Conn // set once

	dialect dialect // set once

	leaves func() // owned by the reader: has its places counted as free; nil: none was counted

	reader reader.Reader // its principal is nil until it is known who this is

	began  atomic.Int64 // when the drain began the write of a data frame that it is in, else 0; unix nanoseconds
	due    int64        // owned by the sweep: when to ping, at first when to be authenticated; unix nanoseconds
	credit int64        // owned by the reader: unix nanoseconds until which its frames are paid for
	index  int32        // guarded by server.mu

	waiting int32       // guarded by mu: bytes of answers
	heard   atomic.Bool // a pong has come since the last sweep
	strikes uint8       // owned by the reader: bad frames in a row
	writing bool        // guarded by mu: there is a drain, or must never be one again
	pingDue bool        // guarded by mu
	ended   bool        // guarded by mu: the reader has ended
	pending bool        // guarded by mu: the watches have something
	more    bool        // owned by the drain: they may have more

	mu      sync.Mutex
	closing *closure // guarded by mu; not nil: what is to be written last
	answers []answer // guarded by mu: to be written before anything else
}

// An answer is a frame that a client has asked for.
type answer struct {
	kind   int
	frame  []byte
	before bool // what the client is told of what it asked for; the reader is paused until it is written
}

// enter lets the principal in, or replaces it by one with a newer token.
func (s *socket) enter(who *auth.Principal, ref string) {
	s.reader.SetPrincipal(who)
	s.limitFrames()
	s.answer(websocket.TextMessage, s.dialect.welcome(s.server, who, ref))
}

// read waits for a frame, and leaves the next one to a goroutine with a fresh stack. While it waits, all frames from here
// down have to fit in the smallest stack there is, 2 KiB; so nothing else is on it, and what gorilla calls for pings and pongs
// does next to nothing. Handling a frame makes a stack several times as large, which would never shrink again.
func (s *socket) read() {
	defer s.leave()
	kind, r, err := s.conn.NextReader()
	s.receive(kind, r, err)
}

func (s *socket) receive(kind int, r io.Reader, err error) {
	if err != nil {
		s.end(err)
		return
	}
	// The first byte is there: now is the time for a buffer.
	frame := s.server.buffers.Get().(*bytes.Buffer)
	defer s.server.buffers.Put(frame)
	frame.Reset()
	if err := s.readFrame(frame, r); err != nil {
		s.end(err)
		return
	}
	pause := s.handle(kind, frame.Bytes())
	s.server.goroutines.Add(1)
	if pause > 0 {
		time.AfterFunc(pause, s.read)
	} else {
		go s.read()
	}
}

// frameLimit is what a frame of the client must fit in, in bytes.
func (s *socket) frameLimit() int {
	if s.reader.Principal() == nil {
		return min(s.server.o.MaxFrameBytes, maxUnauthenticatedFrame)
	}
	return s.server.o.MaxFrameBytes
}

// limitFrames tells the connection, which counts bytes as they come. What cannot be compressed becomes a little larger: by five
// bytes for a block, of which some libraries make many.
func (s *socket) limitFrames() {
	limit := s.frameLimit()
	if s.server.o.Compression {
		limit += limit/256 + 64
	}
	s.conn.SetReadLimit(int64(limit))
}

// readFrame reads a frame, and no more of one that is compressed than it may be.
func (s *socket) readFrame(frame *bytes.Buffer, r io.Reader) error {
	if !s.server.o.Compression {
		_, err := frame.ReadFrom(r)
		return err
	}
	limit := s.frameLimit()
	_, err := frame.ReadFrom(io.LimitReader(r, int64(limit)+1))
	if err == nil && frame.Len() > limit {
		return websocket.ErrReadLimit
	}
	return err
}

// leave ends a goroutine that reads.
func (s *socket) leave() {
	defer s.server.goroutines.Done()
	if cause := recover(); cause != nil && s.contain(cause) {
		s.server.goroutines.Add(1)
		go s.read() // to find the connection closed, and end
	}
}

// end is the end of the reader, and of the socket.
func (s *socket) end(err error) {
	switch {
	case errors.Is(err, websocket.ErrReadLimit):
		s.fail(closeTooBig)
	case undeflatable(err):
		s.fail(closeNotDeflated)
	}
	if !gone(err) {
		// A connection that is closed with unread bytes is reset, and the client may never see our close frame.
		_ = s.conn.NetConn().SetReadDeadline(time.Now().Add(s.server.o.CloseTimeout))
		_, _ = io.CopyN(io.Discard, s.conn.NetConn(), 1<<20)
	}
	s.mu.Lock()
	s.ended = true
	closing := s.closing
	s.answers = nil
	s.mu.Unlock()
	s.reader.Close()
	s.conn.Close()
	s.server.remove(s)
	code := 0
	if closing != nil {
		code = int(closing.code)
	}
	s.server.metrics.closed.WithLabelValues(strconv.Itoa(code)).Inc()
	s.server.log.Debug("websocket closed", "code", code, "error", err)
}

// undeflatable reports whether a frame could not be decompressed.
func undeflatable(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.As(err, &corrupt) || errors.Is(err, io.ErrUnexpectedEOF)
}

// gone reports whether the client has left, so that nothing can be lost on the way to it.
func gone(err error) bool {
	var ne net.Error
	var ce *websocket.CloseError
	return errors.As(err, &ne) || errors.As(err, &ce) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}

// contain keeps a panic to this socket, and reports whether the reader has still to be ended.
func (s *socket) contain(cause any) bool {
	s.server.log.Error("panic in a websocket", "panic", cause, "stack", string(debug.Stack()))
	message := websocket.FormatCloseMessage(int(closeInternal.code), closeInternal.reason)
	_ = s.conn.WriteControl(websocket.CloseMessage, message, time.Now().Add(time.Second))
	s.conn.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closing = closeInternal
	return !s.ended
}

// allow charges the client for one frame (GCRA: credit is when it will be even). A client that is to be treated with patience is
// closed only when it has sent as much once more, and nothing else is read before the pause.
func (s *socket) allow() (pause time.Duration, ok bool) {
	s.server.metrics.received.Inc()
	now := time.Now().UnixNano()
	price := int64(time.Second) / int64(s.server.o.FramesPerSecond)
	burst := int64(s.server.o.MaxWatches+2*s.server.o.FramesPerSecond) * price
	s.credit = max(s.credit, now) + price
	over := s.credit - now - burst
	if over > 0 && !s.dialect.patient() || over > burst {
		s.fail(closeTooMuch)
		return 0, false
	}
	return time.Duration(over), true
}

// pinged has the drain answer: a write needs a larger stack than the reader has, and there is one writer.
func (s *socket) pinged(data string) error {
	if _, ok := s.allow(); ok {
		s.answer(websocket.PongMessage, []byte(data))
	}
	return nil
}

// ponged has the next sweep renew the read deadline.
func (s *socket) ponged(string) error {
	if _, ok := s.allow(); ok {
		s.heard.Store(true)
	}
	return nil
}

// silence is for how long nothing may be heard of a client.
func (s *Server) silence() time.Duration {
	return s.o.PingInterval + sweepInterval + s.o.PongTimeout
}

// pingPause is the time to the next ping.
func (s *Server) pingPause() time.Duration {
	return s.o.PingInterval - rand.N(s.o.PingInterval/4+1)
}

// sweep does what is due. It keeps the deadlines of writes, too: one of its own for each frame would cost a
// twentieth of what writing it costs.
func (s *socket) sweep(now time.Time) {
	who := s.reader.Principal()
	if who != nil && who.Expired(now) {
		s.fail(closeExpired)
	}
	s.mu.Lock()
	if s.heard.Swap(false) && s.closing == nil { // else the deadline is that of the client's close frame
		_ = s.conn.SetReadDeadline(now.Add(s.server.silence())) // fails on a closed connection, as the read does
	}
	s.mu.Unlock()
	if began := s.began.Load(); began != 0 && now.UnixNano()-began >= int64(s.server.o.WriteTimeout) {
		s.conn.Close() // the write fails, and so does the read
	}
	if now.UnixNano() < s.due {
		return
	}
	s.due = now.Add(s.server.pingPause()).UnixNano()
	if who == nil {
		s.fail(closeLate)
		return
	}
	s.mu.Lock()
	s.pingDue = true
	s.startAndUnlock()
}

// handle answers a data frame, and returns how long to wait before the next one is read.
func (s *socket) handle(kind int, frame []byte) (pause time.Duration) {
	s.mu.Lock()
	closing := s.closing != nil
	s.mu.Unlock()
	if closing {
		return 0
	}
	pause, ok := s.allow()
	switch {
	case !ok:
	case kind != websocket.TextMessage:
		s.misuse(invalid("", "not a text frame"), "")
	case !utf8.Valid(frame):
		s.fail(closeNotText) // RFC 6455 section 8.1
	default:
		if ref, err := s.dialect.obey(s, frame); err != nil {
			s.misuse(err, ref)
		} else {
			s.strikes = 0
		}
	}
	return pause
}

func (s *socket) problem(err error, ref string) {
	if frame := s.dialect.refusal(problem.Of(err), ref); frame != nil {
		s.answer(websocket.TextMessage, frame)
	}
}

// misuse answers a frame that can never succeed.
func (s *socket) misuse(err error, ref string) {
	s.problem(err, ref)
	if s.strikes++; s.strikes >= maxStrikes {
		s.fail(closeMisuse)
	}
}

// auth takes the first token, or a newer one of the same principal.
func (s *socket) auth(r request) {
	ctx, cancel := context.WithTimeout(context.Background(), s.server.o.AuthTimeout)
	defer cancel()
	who, err := s.server.o.Verify(ctx, r.Token)
	old := s.reader.Principal()
	if err == nil && old == nil {
		var leave func()
		leave, err = s.server.enter(ctx, nil, who)
		s.leaves = both(s.leaves, leave)
	}
	switch {
	case err != nil:
		s.server.log.Debug("websocket token", "error", err)
		if old == nil {
			s.server.noted(s.server.origin(s), err)
		}
		s.problem(err, r.Ref)
		if old == nil {
			s.fail(closureOf(err))
		}
	case old == nil:
		s.enter(who, r.Ref)
		s.server.authenticated(s)
	case who.Issuer != old.Issuer || who.Subject != old.Subject:
		s.problem(fmt.Errorf("another principal: %w", auth.ErrForbidden), r.Ref)
		s.fail(closeForbidden)
	default:
		s.enter(who, r.Ref)
		s.reader.Reassess()
	}
}

func (s *Server) authenticated(so *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unauthenticated--
	delete(s.origins, so)
}

// origin is where a socket comes from that has no principal.
func (s *Server) origin(so *socket) netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.origins[so]
}

// closureOf is the table from kind of error to the closing of a socket whose first token is refused.
func closureOf(err error) *closure {
	var reached *limit.Error
	switch {
	case errors.As(err, &reached):
		return closeCrowded
	case errors.Is(err, auth.ErrExpired):
		return closeExpired
	case errors.Is(err, auth.ErrUnauthenticated):
		return closeUnauthenticated
	case errors.Is(err, auth.ErrForbidden):
		return closeForbidden
	case errors.Is(err, status.ErrUnavailable):
		return closeLater
	}
	return closeInternal
}
