package wsapi

import (
	"errors"
	"time"

	"github.com/gorilla/websocket"
)

// answer has a frame written before any status that is not being written already. A client that makes the server answer
// more than it reads is closed.
func (s *socket) answer(kind int, frame []byte) { s.answerWith(answer{kind: kind, frame: frame}) }

// answerBefore has a frame written before anything that the reader is going to find.
func (s *socket) answerBefore(frame []byte) {
	s.reader.Pause()
	s.answerWith(answer{websocket.TextMessage, frame, true})
}

func (s *socket) answerWith(a answer) {
	s.mu.Lock()
	if s.ended || s.closing != nil {
		s.mu.Unlock()
		return
	}
	s.answers = append(s.answers, a)
	if s.waiting += int32(len(a.frame)) + answerCost; s.waiting > maxAnswers {
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

// Unchanged and Held are called by the reader, for the metrics.
func (s *socket) Unchanged() { s.server.metrics.unchanged.Inc() }
func (s *socket) Held()      { s.server.metrics.held.Inc() }

// Wake is called by the reader: its watches have something.
func (s *socket) Wake() {
	s.mu.Lock()
	s.pending = true
	s.startAndUnlock()
}

// drain writes all that is to be written: answers in order, then the newest version of each watch that has one. It
// is the only writer, and ends when there is nothing left; after an error, or the close frame, it leaves writing set,
// so that there is no other.
//
// What is on its stack while it writes a status fits in the smallest there is, 2 KiB: growing one costs more than all
// else but the system call.
func (s *socket) drain() {
	defer s.leaveDrain()
	for {
		frame, now, more := s.advance()
		if frame != nil {
			more = s.writePrepared(now, frame)
		}
		if !more {
			return
		}
	}
}

func (s *socket) leaveDrain() {
	defer s.server.goroutines.Done()
	if cause := recover(); cause != nil {
		s.contain(cause)
	}
}

// advance finds what is to be written next, and writes it unless it is a frame that is shared with others, which it
// returns. There is no more when there is nothing left, or the socket cannot be written to.
func (s *socket) advance() (shared *sharedFrame, now time.Time, more bool) {
	s.mu.Lock()
	switch {
	case s.ended:
		s.mu.Unlock()
		return nil, now, false
	case len(s.answers) > 0:
		answers := s.answers
		s.answers, s.waiting = nil, 0
		s.mu.Unlock()
		for _, a := range answers {
			if !s.write(a.kind, a.frame) {
				return nil, now, false
			}
			if a.before {
				s.reader.Resume()
				s.more = true
			}
		}
		return nil, now, true
	case s.closing != nil:
		closing := s.closing
		s.mu.Unlock()
		if last := s.dialect.farewell(closing); last != nil && !s.write(websocket.TextMessage, last) {
			return nil, now, false
		}
		message := websocket.FormatCloseMessage(int(closing.code), closing.reason)
		// The client has some time to say the same. Setting a deadline fails on a closed connection, as the read does.
		if s.write(websocket.CloseMessage, message) {
			_ = s.conn.SetReadDeadline(time.Now().Add(s.server.o.CloseTimeout))
		}
		return nil, now, false
	case s.pingDue:
		s.pingDue = false
		s.mu.Unlock()
		return nil, now, s.write(websocket.PingMessage, nil)
	case s.pending || s.more:
		s.pending = false // before the reader is asked: what comes meanwhile sets it again
		s.mu.Unlock()
		now = time.Now()
		shared, more = s.deliver(now)
		return shared, now, more
	default:
		s.writing = false
		s.mu.Unlock()
		return nil, now, false
	}
}

// write writes a frame to this client alone. Like all that write, it reports whether the socket can still be written to.
func (s *socket) write(kind int, frame []byte) bool {
	now := time.Now()
	if kind != websocket.TextMessage {
		return s.wrote(s.conn.WriteControl(kind, frame, now.Add(s.server.o.WriteTimeout)))
	}
	s.began.Store(now.UnixNano())
	s.conn.EnableWriteCompression(false) // nobody else is sent it
	err := s.conn.WriteMessage(kind, frame)
	s.began.Store(0)
	s.server.metrics.sent.Inc()
	return s.wrote(err)
}

// writePrepared writes a frame that is shared with others.
func (s *socket) writePrepared(now time.Time, frame *sharedFrame) bool {
	s.began.Store(now.UnixNano())
	s.conn.EnableWriteCompression(frame.large)
	err := s.conn.WritePreparedMessage(frame.PreparedMessage)
	s.began.Store(0)
	s.server.metrics.sent.Inc()
	return s.wrote(err)
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
