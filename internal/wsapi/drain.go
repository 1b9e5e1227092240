package wsapi

import (
	"errors"
	"time"

	"github.com/gorilla/websocket"
)

// answer has a frame written before any status. A client that makes the server answer more than it reads is closed.
func (s *socket) answer(kind int, frame []byte) {
	s.mu.Lock()
	if s.ended || s.closing != nil {
		s.mu.Unlock()
		return
	}
	s.answers = append(s.answers, answer{kind, frame})
	if s.waiting += int32(len(frame)) + answerCost; s.waiting > maxAnswers {
		s.closing = closeUnread
	}
	s.startAndUnlock()
}

// fail has the socket closed. The first closure stands.
func (s *socket) fail(c *closure) {
	s.mu.Lock()
	if s.closing == nil {
		s.closing = c
	}
	s.startAndUnlock()
}

// startAndUnlock starts a drain if there is none. It needs mu, and unlocks it.
func (s *socket) startAndUnlock() {
	start := !s.writing && !s.ended
	if start {
		s.writing = true
		// While the reader has not ended there is a count of its own, so that this is never raised from zero.
		s.server.goroutines.Add(1)
	}
	s.mu.Unlock()
	if start {
		go s.drain()
	}
}

// drain writes all that is to be written: answers in order, then the newest version of each watch that has one. It
// is the only writer of data frames, and ends when there is nothing left; after an error, or the close frame, it leaves
// writing set, so that there is no other.
func (s *socket) drain() {
	defer func() {
		if cause := recover(); cause != nil {
			s.contain(cause)
		}
		s.server.goroutines.Done()
	}()
	for {
		s.mu.Lock()
		switch {
		case s.ended:
			s.mu.Unlock()
			return
		case len(s.answers) > 0:
			answers := s.answers
			s.answers, s.waiting = nil, 0
			s.mu.Unlock()
			for _, a := range answers {
				if !s.write(a.kind, a.frame) {
					return
				}
			}
		case s.closing != nil:
			message := websocket.FormatCloseMessage(int(s.closing.code), s.closing.reason)
			s.mu.Unlock()
			// The client has some time to say the same. Setting a deadline fails on a closed connection, as the read does.
			if s.write(websocket.CloseMessage, message) {
				_ = s.conn.SetReadDeadline(time.Now().Add(s.server.o.CloseTimeout))
			}
			return
		case s.pingDue:
			s.pingDue = false
			s.mu.Unlock()
			if !s.write(websocket.PingMessage, nil) {
				return
			}
		case s.woken != nil:
			w := s.woken.next
			if s.woken.next = w.next; s.woken == w {
				s.woken = nil
			}
			w.next = nil
			closed := w.closed
			s.mu.Unlock()
			if !closed && !w.deliver(time.Now()) {
				return
			}
		default:
			s.writing = false
			s.mu.Unlock()
			return
		}
	}
}

// write writes a frame to this client alone. Like all that write, it reports whether the socket can still be written to.
func (s *socket) write(kind int, frame []byte) bool {
	deadline := time.Now().Add(s.server.o.WriteTimeout)
	if kind != websocket.TextMessage {
		return s.wrote(s.conn.WriteControl(kind, frame, deadline))
	}
	_ = s.conn.SetWriteDeadline(deadline) // cannot fail: it sets a field
	s.server.metrics.sent.Inc()
	return s.wrote(s.conn.WriteMessage(kind, frame))
}

// writePrepared writes a frame that is shared with others.
func (s *socket) writePrepared(now time.Time, frame *websocket.PreparedMessage) bool {
	_ = s.conn.SetWriteDeadline(now.Add(s.server.o.WriteTimeout)) // cannot fail: it sets a field
	s.server.metrics.sent.Inc()
	return s.wrote(s.conn.WritePreparedMessage(frame))
}

// wrote ends the connection, and with it the reader, after an error: a frame may have been written in part.
func (s *socket) wrote(err error) bool {
	if err == nil {
		return true
	}
	if !errors.Is(err, websocket.ErrCloseSent) { // else the reader is about to end
		s.server.metrics.broken.Inc()
		s.conn.Close()
	}
	return false
}
