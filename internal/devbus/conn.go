package devbus

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a connection. A peer that goes beyond one of them loses it.
const (
	minFrameSize = 512 // AMQP 1.0 part 2.7.1
	maxFrameSize = 65536
	maxChannel   = 4999 // as many sessions as the service allows, less one
	maxHandle    = 255  // links in a session
	maxLinks     = 8192 // in a connection
	window       = 5000 // transfers in flight in a session

	// partialLimit bounds the bytes of messages that have arrived in part, over all links.
	partialLimit = 16 << 20

	// Deliveries wait while deliverBelow bytes are to be written, and the reader waits at
	// readBelow: a peer that does not read cannot make us remember more than that.
	deliverBelow = 256 << 10
	readBelow    = 4 << 20
	kickAt       = 16 << 10
)

const (
	handshakeTimeout = 20 * time.Second
	writeTimeout     = 30 * time.Second
	farewellTimeout  = time.Second
	idleTimeout      = 120 * time.Second // what we announce: half of what we allow
	heartbeat        = 15 * time.Second
)

// emptyFrame keeps a connection alive.
var emptyFrame = []byte{0, 0, 0, 8, 2, 0, 0, 0}

// conn is one client's connection: a reader that acts on what arrives and a writer that sends
// what is due, deliveries included, both under mu. No other goroutine writes.
type conn struct {
	bus *Bus
	nc  net.Conn
	in  *bufio.Reader // owned by the reader

	maxFrame int           // the peer's; set by the handshake
	beat     time.Duration // how often the peer must hear from us; set by the handshake

	wake chan struct{} // tells the writer to look again
	dead chan struct{} // closed when the reader has ended
	quit atomic.Bool   // the end is our wish: what the sockets say from here on is no error

	mu       sync.Mutex
	drained  sync.Cond // the writer has taken out
	out      []byte
	closing  bool // out ends with a close: nothing may follow
	sessions map[uint16]*session
	links    int
	partial  int             // bytes of messages that have arrived in part
	granted  map[*node]grant // by entity that a valid token was put for
	outLinks []*outLink      // those to deliver to, the next to be served first
	waiting  []*session      // those with confirmations to send
}

func newConn(b *Bus, nc net.Conn) *conn {
	c := &conn{
		bus: b, nc: nc, in: bufio.NewReaderSize(nc, maxFrameSize),
		wake: make(chan struct{}, 1), dead: make(chan struct{}),
		sessions: make(map[uint16]*session), granted: make(map[*node]grant),
	}
	c.drained.L = &c.mu
	return c
}

// kick makes the writer look for something to send. It never blocks.
func (c *conn) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// shutdown says goodbye and closes, within farewellTimeout.
func (c *conn) shutdown() {
	c.end(&problem{"amqp:connection:forced", "devbus is closing"})
}

func (c *conn) end(p *problem) {
	c.quit.Store(true)
	c.mu.Lock()
	c.closeWith(p)
	c.mu.Unlock()
	time.AfterFunc(farewellTimeout, func() { c.nc.Close() })
}

// closeWith makes close the last frame that is written.
func (c *conn) closeWith(p *problem) {
	if c.closing {
		return
	}
	if c.maxFrame > 0 { // else there has been no open that a close could end
		mark := c.openFrame(0)
		c.out = appendEnding(c.out, codeClose, p)
		c.closeFrame(mark)
	}
	c.closing = true
	c.kick()
}

func (c *conn) drop() {
	c.quit.Store(true)
	if tcp, ok := c.nc.(*net.TCPConn); ok {
		tcp.SetLinger(0) // the peer sees a reset
	}
	c.nc.Close()
}

func (c *conn) serve() error {
	err := c.handshake()
	if err != nil {
		c.nc.Close()
		return c.verdict(fmt.Errorf("handshake: %w", err))
	}
	var writer sync.WaitGroup
	writer.Go(c.write)
	err = c.read()

	c.mu.Lock()
	for _, s := range c.sessions {
		s.close()
	}
	if p := (*problem)(nil); errors.As(err, &p) {
		c.closeWith(p)
	} else {
		c.closeWith(nil)
	}
	c.mu.Unlock()
	close(c.dead)
	farewell := time.AfterFunc(farewellTimeout, func() { c.nc.Close() })
	writer.Wait()
	farewell.Stop()
	return c.verdict(err)
}

// verdict tells a broken connection from one that ended.
func (c *conn) verdict(err error) error {
	if c.quit.Load() || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// openFrame starts a frame in out; closeFrame fills in its size.
func (c *conn) openFrame(channel uint16) (mark int) {
	mark = len(c.out)
	c.out = append(c.out, 0, 0, 0, 0, 2, frameAMQP, byte(channel>>8), byte(channel))
	return mark
}

func (c *conn) closeFrame(mark int) {
	binary.BigEndian.PutUint32(c.out[mark:], uint32(len(c.out)-mark))
}

// write sends what others put into out and the deliveries that links have credit for.
func (c *conn) write() {
	defer func() {
		c.nc.Close()
		c.mu.Lock()
		c.closing = true
		c.drained.Broadcast()
		c.mu.Unlock()
	}()
	beat := time.NewTicker(c.beat)
	defer beat.Stop()
	var spare []byte
	for {
		c.mu.Lock()
		if !c.closing {
			c.pump()
		}
		batch, last := c.out, c.closing
		c.out = spare[:0]
		c.drained.Broadcast()
		c.mu.Unlock()

		c.bus.faults.waitWhileStalled(c)
		if len(batch) > 0 {
			timeout := writeTimeout
			if last {
				timeout = farewellTimeout
			}
			c.nc.SetWriteDeadline(time.Now().Add(timeout))
			if _, err := c.nc.Write(batch); err != nil {
				return
			}
		}
		if last {
			return
		}
		spare = batch
		if cap(spare) > 2*deliverBelow {
			spare = nil
		}
		if len(batch) > 0 {
			continue // there may be more by now
		}
		select {
		case <-c.wake:
		case <-beat.C:
			c.mu.Lock()
			if !c.closing {
				c.out = append(c.out, emptyFrame...)
			}
			c.mu.Unlock()
		case <-c.dead:
		}
	}
}

// pump writes deliveries until links run out of credit, of messages or of room in out. They take
// turns.
func (c *conn) pump() {
	for idle := 0; idle < len(c.outLinks) && len(c.out) < deliverBelow; idle++ {
		l := c.outLinks[0]
		copy(c.outLinks, c.outLinks[1:])
		c.outLinks[len(c.outLinks)-1] = l
		if l.pump() {
			idle = -1
		}
	}
}

// read acts on the peer's frames until the connection ends.
func (c *conn) read() error {
	var deadline time.Time
	for {
		if !frameReady(c.in) {
			c.settleUp()
			if now := time.Now(); deadline.Sub(now) < 2*idleTimeout-heartbeat {
				deadline = now.Add(2 * idleTimeout)
				c.nc.SetReadDeadline(deadline)
			}
		}
		f, err := readFrame(c.in, frameAMQP)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return problemf("amqp:resource-limit-exceeded", "nothing heard for %v", 2*idleTimeout)
			}
			return err
		}
		if len(f.body) == 0 {
			continue
		}
		c.mu.Lock()
		if c.closing { // only the peer's own close matters now
			c.mu.Unlock()
			if f.body[0] == ctorDescribed && len(f.body) > 2 && f.body[2] == codeClose {
				return nil
			}
			continue
		}
		done, err := c.handle(f)
		if len(c.out) > kickAt {
			c.kick()
		}
		for len(c.out) > readBelow && !c.closing {
			c.drained.Wait()
		}
		c.mu.Unlock()
		if err != nil || done {
			return err
		}
	}
}

// settleUp sends the confirmations that were collected while frames kept coming.
func (c *conn) settleUp() {
	c.mu.Lock()
	if !c.closing {
		for _, s := range c.waiting {
			s.confirm()
			s.waiting = false
		}
		clear(c.waiting)
		c.waiting = c.waiting[:0]
	}
	c.mu.Unlock()
	c.kick()
}

// handle acts on one frame. Every breach of protocol ends the connection and nothing else.
func (c *conn) handle(f frame) (done bool, err error) {
	body := cursor{b: f.body}
	code := body.descriptor()
	list := body.fields()
	if body.err != nil {
		return false, problemf("amqp:decode-error", "%v", body.err)
	}
	switch code {
	case codeClose:
		return true, nil
	case codeBegin:
		err = c.begin(f.channel, list)
	default:
		s := c.sessions[f.channel]
		if s == nil {
			return false, problemf("amqp:not-allowed", "frame %#x on channel %d, which has no session", code, f.channel)
		}
		err = s.handle(code, list, body.b)
	}
	if err == nil {
		return false, nil
	}
	if p := (*problem)(nil); !errors.As(err, &p) {
		err = problemf("amqp:decode-error", "frame %#x: %v", code, err)
	}
	return false, err
}

func (c *conn) begin(channel uint16, list fields) error {
	b, err := decodeBegin(list)
	if err != nil {
		return err
	}
	if c.sessions[channel] != nil || channel > maxChannel {
		return problemf("amqp:not-allowed", "channel %d is taken or too high", channel)
	}
	s := newSession(c, channel, b)
	c.sessions[channel] = s
	mark := c.openFrame(channel)
	c.out = appendBegin(c.out, channel, window)
	c.closeFrame(mark)
	return nil
}
