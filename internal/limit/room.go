package limit

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/status"
)

// What a request that publishes holds, in bytes. TestMemoryIsBoundedWhileTheBrokerStalls of package notifier measures it.
const (
	requestCost = 32 << 10 // a connection and its buffers, goroutines
	updateCost  = 4 << 10  // an update as it is decoded and waits for the broker, beside its text
	textCost    = 3        // each byte: as it is read, decoded, and encoded
)

// Holds is what a request holds that has a body of so many bytes and so many updates.
func Holds(bytes int64, updates int) int64 {
	return requestCost + textCost*bytes + int64(updates)*updateCost
}

// ErrNoRoom is why a request is refused that would need more than there is.
var ErrNoRoom = fmt.Errorf("too much is in hand: %w", status.ErrUnavailable)

// A Room bounds what all requests hold together, from their first byte on until they are
// answered: while the broker does not answer, that is all that they are.
type Room struct {
	most    int64
	held    atomic.Int64
	refused prometheus.Counter
}

// NewRoom returns a room for so many bytes. Its metrics are counted nowhere visible if there is no registerer.
func NewRoom(most int64, metrics prometheus.Registerer) *Room {
	r := &Room{most: most, refused: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "statusrelay_limit_no_room_total",
		Help: "Requests refused because those in hand hold as much as they may.",
	})}
	if metrics != nil {
		metrics.MustRegister(r.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "statusrelay_limit_in_flight_bytes",
			Help: "What the requests in hand hold, about.",
		}, func() float64 { return float64(r.held.Load()) }))
	}
	return r
}

// A Share is what one request holds of a room. It is its goroutine's.
type Share struct {
	room *Room
	held int64
}

// Enter returns the share of a request, which holds nothing yet and must leave in the end.
func (r *Room) Enter() *Share { return &Share{room: r} }

// Leave gives back what is held.
func (s *Share) Leave() { s.room.held.Add(-s.held) }

// take holds so much more, or nothing and returns ErrNoRoom.
func (s *Share) take(n int64) error {
	if s.room.held.Add(n) > s.room.most {
		s.room.held.Add(-n)
		s.room.refused.Inc()
		return ErrNoRoom
	}
	s.held += n
	return nil
}

// Updates holds what becomes of a body that was read, or fails with ErrNoRoom.
func (s *Share) Updates(bytes, n int) error {
	return s.take((textCost-1)*int64(bytes) + int64(n)*updateCost)
}

// Reader holds what is read of a body, and the request's own cost with its first byte.
// What only was announced holds nothing: else a few who are slow would keep out all. Reading fails with
// ErrNoRoom.
func (s *Share) Reader(body io.Reader) io.Reader { return &held{body, s} }

type held struct {
	body  io.Reader
	share *Share
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
