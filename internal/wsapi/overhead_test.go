package wsapi_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/wsapi"
)

// nowhere is a connection to a client that watches one instance, and does nothing with what it is sent.
type nowhere struct {
	said    chan []byte
	rest    []byte
	writes  *atomic.Int64
	late    chan struct{} // a read is cut short, as net/http does to hand over a connection
	closed  chan struct{}
	closing sync.Once
}

func (n *nowhere) Read(p []byte) (int, error) {
	if len(n.rest) == 0 {
		select {
		case n.rest = <-n.said:
		case <-n.late:
			return 0, os.ErrDeadlineExceeded
		case <-n.closed:
			return 0, io.EOF
		}
	}
	c := copy(p, n.rest)
	n.rest = n.rest[c:]
	return c, nil
}

func (n *nowhere) Write(p []byte) (int, error) { n.writes.Add(1); return len(p), nil }
func (n *nowhere) Close() error                { n.closing.Do(func() { close(n.closed) }); return nil }
func (n *nowhere) LocalAddr() net.Addr         { return &net.TCPAddr{} }
func (n *nowhere) RemoteAddr() net.Addr        { return &net.TCPAddr{} }
func (n *nowhere) SetDeadline(time.Time) error { return nil }

func (n *nowhere) SetWriteDeadline(time.Time) error { return nil }

func (n *nowhere) SetReadDeadline(t time.Time) error {
	if !t.IsZero() && t.Before(time.Now()) {
		n.late <- struct{}{}
	}
	return nil
}

// BenchmarkFanoutWithoutNetwork is what there is in a fan-out beside the system calls, of which the floor has its own share:
// 1,000 watchers of one instance, one iteration is one update.
func BenchmarkFanoutWithoutNetwork(b *testing.B) {
	const watchers = 1000
	for _, kind := range []string{"floor", "relay"} {
		b.Run(kind, func(b *testing.B) {
			var server broadcaster
			if kind == "floor" {
				server = newFloor()
			} else {
				p := development(b)
				h := hub.New(hub.Options{})
				s := wsapi.New(wsapi.Options{Verify: verifier(), Source: reader.NewSource(h, nil, func() *policy.Policy { return p })})
				ctx, stop := context.WithCancel(context.Background())
				defer stop()
				go func() { _ = h.Run(ctx, boundless{}, boundless{}) }()
				server = &relayBench{s, h}
			}
			said := "GET /v1/watch HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer alice\r\n\r\n"
			watch := `{"type":"watch","instances":[{"instanceId":"i"}]}`
			watch = string([]byte{0x81, 0x80 | byte(len(watch)), 0, 0, 0, 0}) + watch
			var writes atomic.Int64
			network := newPipes()
			s := http.Server{Handler: server}
			go func() { _ = s.Serve(network) }()
			defer s.Close()
			per := int64(1)
			if kind == "relay" {
				per = 4 // with the welcome, and the answer, and the first status
			}
			for i := range watchers {
				c := &nowhere{said: make(chan []byte, 2), writes: &writes, late: make(chan struct{}, 1), closed: make(chan struct{})}
				defer c.Close()
				network.accept <- c
				c.said <- []byte(said)
				first := int64(i)*per + min(per, 2)
				waitFor(&writes, first) // the handshake is answered; what comes with it would be lost
				if kind == "relay" {
					c.said <- []byte(watch)
					waitFor(&writes, first+2)
				}
			}
			due := writes.Load()
			n := 0
			b.ResetTimer()
			for b.Loop() {
				n++
				server.broadcast(n)
				due += watchers
				waitFor(&writes, due)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/watchers, "ns/frame")
		})
	}
}

func waitFor(n *atomic.Int64, want int64) {
	for n.Load() < want {
		runtime.Gosched()
	}
}
