package notifier

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// sendBatch is how many updates are handed to the broker at once.
const sendBatch = 500

// A Sender publishes updates from a command line: every document is judged by
// itself, and what is refused is reported and does not stop the rest.
type Sender struct {
	Publisher  *servicebus.Publisher
	DefaultHub string // of updates that name none

	// Refused is told of every update that was not published: its number,
	// counted from 1, and why.
	Refused func(number int, err error)
	// Progress is told after each batch how many were sent and refused so far.
	Progress func(sent, refused int)
	// Single, if there is one, wants the updates of one instance: those of others than the first are refused. It is told which that is
	// before anything is published, and its error ends the sender.
	Single func(context.Context, status.Key) error

	single        status.Key
	sent, refused int
	failed        error // the broker is away or does not let us
	numbers       []int // of the messages that wait
	waiting       []wire.Message
}

// Lines publishes the updates of an NDJSON stream: one document a line, blank
// lines skipped. It returns how many the broker has accepted and how many were
// refused; err says why it stopped before the end of the stream.
func (s *Sender) Lines(ctx context.Context, in io.Reader) (sent, refused int, err error) {
	r := bufio.NewReaderSize(in, wire.MaxMessageBytes+1)
	for number := 1; err == nil && s.failed == nil; number++ {
		var line []byte
		line, err = r.ReadSlice('\n')
		tooLong := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) { // skip the rest of the line
			_, err = r.ReadSlice('\n')
		}
		switch line = bytes.TrimSpace(line); {
		case tooLong:
			s.refuse(number, &status.InvalidError{Reason: status.ReasonTooLarge, Detail: fmt.Sprintf("longer than %d bytes", wire.MaxMessageBytes)})
		case len(line) > 0:
			s.add(ctx, number, line)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	s.flush(ctx)
	return s.sent, s.refused, errors.Join(err, s.failed)
}

// Documents publishes updates that are already in hand.
func (s *Sender) Documents(ctx context.Context, documents [][]byte) (sent, refused int, err error) {
	for i, d := range documents {
		if s.failed == nil {
			s.add(ctx, i+1, d)
		}
	}
	s.flush(ctx)
	return s.sent, s.refused, s.failed
}

func (s *Sender) add(ctx context.Context, number int, document []byte) {
	m, err := wire.Decode(document, time.Now())
	if err != nil {
		s.refuse(number, err)
		return
	}
	if m.Update.Hub == "" {
		m.Update.Hub = s.DefaultHub
	}
	switch key := m.Update.Key(); {
	case s.Single == nil || key == s.single:
	case s.single == status.Key{}:
		if s.single, s.failed = key, s.Single(ctx, key); s.failed != nil {
			return
		}
	default:
		s.refuse(number, &status.InvalidError{Reason: status.ReasonInvalid, Field: "instanceId", Detail: "another instance than the first, and one is watched"})
		return
	}
	s.waiting, s.numbers = append(s.waiting, m), append(s.numbers, number)
	if len(s.waiting) == sendBatch {
		s.flush(ctx)
	}
}

func (s *Sender) refuse(number int, err error) {
	s.refused++
	s.Refused(number, err)
}

// flush publishes what waits. What is no fault of an update ends the sender:
// it would befall all that follow.
func (s *Sender) flush(ctx context.Context) {
	if s.failed != nil || len(s.waiting) == 0 {
		return
	}
	for i, err := range Send(ctx, s.Publisher, s.waiting) {
		switch {
		case err == nil:
			s.sent++
		case errors.Is(err, status.ErrInvalid):
			s.refuse(s.numbers[i], err)
		case s.failed == nil:
			s.failed = fmt.Errorf("stopped at update %d: %w", s.numbers[i], err)
		}
	}
	s.waiting, s.numbers = s.waiting[:0], s.numbers[:0]
	s.Progress(s.sent, s.refused)
}
