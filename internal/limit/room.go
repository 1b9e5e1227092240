package ingestapi

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/status"
)

// What a request holds, in bytes. TestMemoryIsBoundedWhileTheBrokerStalls measures it.
const (
	requestCost = 32 << 10 // a connection and its buffers, goroutines
	updateCost  = 4 << 10  // an update as it is decoded and waits for the broker, beside its text
	textCost    = 3        // each byte: as it is read, decoded, and encoded
)

// Holds is what a request holds that has a body of so many bytes and so many updates.
func Holds(bytes int64, updates int) int64 {
	return requestCost + textCost*bytes + int64(updates)*updateCost
}

// errNoRoom is why a request is refused that would need more than there is.
var errNoRoom = fmt.Errorf("too much is in hand: %w", status.ErrUnavailable)

// room bounds what all requests hold together, from their first byte on until they are
// answered: while the broker does not answer, that is all that they are.
type room struct {
	most    int64
	held    atomic.Int64
	refused prometheus.Counter
}

func newRoom(most int64) *room {
	return &room{most: most, refused: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "statusrelay_ingestapi_no_room_total",
		Help: "Requests refused because those in hand hold as much as they may.",
	})}
}

func (r *room) gauge() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "statusrelay_ingestapi_in_flight_bytes",
		Help: "What the requests in hand hold, about.",
	}, func() float64 { return float64(r.held.Load()) })
}

// share is what one request holds. It is its goroutine's.
type share struct {
	room *room
	held int64
}

func (r *room) enter() *share { return &share{room: r} }

// leave gives back what is held.
func (s *share) leave() { s.room.held.Add(-s.held) }

// take holds so much more, or nothing and returns errNoRoom.
func (s *share) take(n int64) error {
	if s.room.held.Add(n) > s.room.most {
		s.room.held.Add(-n)
		s.room.refused.Inc()
		return errNoRoom
	}
	s.held += n
	return nil
}

// updates holds what becomes of a body that was read.
func (s *share) updates(bytes, n int) error {
	return s.take((textCost-1)*int64(bytes) + int64(n)*updateCost)
}

// reader holds what is read of a body, and the request's own cost with its first byte.
// What only was announced holds nothing: else a few who are slow would keep out all.
func (s *share) reader(body io.Reader) io.Reader { return &held{body, s} }

type held struct {
	body  io.Reader
	share *share
}

func (h *held) Read(p []byte) (int, error) {
	if h.share.held == 0 {
		if err := h.share.take(requestCost); err != nil {
			return 0, err
		}
	}
	n, err := h.body.Read(p)
	if full := h.share.take(int64(n)); full != nil {
		return 0, full
	}
	return n, err
}
