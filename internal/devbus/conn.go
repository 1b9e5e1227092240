package devbus

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
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

var (
	headerSASL = [8]byte{'A', 'M', 'Q', 'P', 3, 1, 0, 0}
	headerAMQP = [8]byte{'A', 'M', 'Q', 'P', 0, 1, 0, 0}
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
	partial  int            // bytes of messages that have arrived in part
	granted  map[*node]bool // entities that a valid token was put for
	outLinks []*outLink     // those to deliver to, the next to be served first
	waiting  []*session     // those with confirmations to send
}

func newConn(b *Bus, nc net.Conn) *conn {
	c := &conn{
		bus: b, nc: nc, in: bufio.NewReaderSize(nc, maxFrameSize),
		wake: make(chan struct{}, 1), dead: make(chan struct{}),
		sessions: make(map[uint16]*session), granted: make(map[*node]bool),
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

// frame is one frame of AMQP. The body belongs to the reader's buffer: it is good until the
// next frame is read.
type frame struct {
	channel uint16
	body    []byte
}

const (
	frameAMQP = 0
	frameSASL = 1
)

// readFrame reads one frame of the given kind.
func readFrame(r *bufio.Reader, kind byte) (f frame, err error) {
	head, err := r.Peek(8)
	if err != nil {
		if len(head) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return f, err
	}
	size, offset := binary.BigEndian.Uint32(head), 4*int(head[4])
	if size > maxFrameSize || offset < 8 || int(size) < offset || head[5] != kind {
		return f, problemf("amqp:connection:framing-error", "malformed frame header % x", head)
	}
	f.channel = binary.BigEndian.Uint16(head[6:])
	whole, err := r.Peek(int(size))
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return f, err
	}
	f.body = whole[offset:]
	_, err = r.Discard(int(size))
	return f, err
}

// frameReady says whether the next frame can be read without waiting for the peer.
func frameReady(r *bufio.Reader) bool {
	if r.Buffered() < 8 {
		return false
	}
	head, _ := r.Peek(4)
	return uint64(r.Buffered()) >= uint64(binary.BigEndian.Uint32(head))
}

func (c *conn) handshake() error {
	c.nc.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := c.expectHeader(headerSASL); err != nil {
		return err
	}
	b := append([]byte(nil), headerSASL[:]...)
	b = appendSASL(b, func(b []byte) []byte {
		b, mark := openDescribed(b, codeSASLMechanisms)
		// The others are what clients for other languages want; nobody's word is checked before
		// its token is.
		b = append(b, ctorArray8, 0, 3, ctorSymbol8)
		array := len(b)
		for _, m := range []string{"ANONYMOUS", "EXTERNAL", "MSSBCBS"} {
			b = append(append(b, byte(len(m))), m...)
		}
		b[array-3] = byte(len(b) - array + 2)
		return closeCompound(b, mark, 1)
	})
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	f, err := readFrame(c.in, frameSASL)
	if err != nil {
		return err
	}
	body := cursor{b: f.body}
	if code := body.descriptor(); body.err != nil || code != codeSASLInit {
		return errors.New("no sasl-init")
	}
	b = appendSASL(nil, func(b []byte) []byte {
		b, mark := openDescribed(b, codeSASLOutcome)
		return closeCompound(appendUbyte(b, 0), mark, 1)
	})
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	if err := c.expectHeader(headerAMQP); err != nil {
		return err
	}
	if _, err := c.nc.Write(headerAMQP[:]); err != nil {
		return err
	}
	if err := c.exchangeOpen(); err != nil {
		return err
	}
	c.nc.SetDeadline(time.Time{})
	return nil
}

func appendSASL(b []byte, body func([]byte) []byte) []byte {
	at := len(b)
	b = body(append(b, 0, 0, 0, 0, 2, frameSASL, 0, 0))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

func (c *conn) expectHeader(want [8]byte) error {
	var got [8]byte
	if _, err := io.ReadFull(c.in, got[:]); err != nil {
		return err
	}
	if got != want {
		c.nc.Write(want[:]) // part 2.2: say what would have been right, then close
		return fmt.Errorf("protocol header % x", got)
	}
	return nil
}

func (c *conn) exchangeOpen() error {
	f, err := readFrame(c.in, frameAMQP)
	if err != nil {
		return err
	}
	body := cursor{b: f.body}
	if code := body.descriptor(); body.err != nil || code != codeOpen {
		return errors.New("no open")
	}
	peer, err := decodeOpen(body.fields())
	if err != nil {
		return err
	}
	beat := heartbeat
	if idle := time.Duration(peer.idleTimeout) * time.Millisecond; idle > 0 {
		beat = max(min(beat, idle/2), 50*time.Millisecond)
	}
	id := make([]byte, 16)
	rand.Read(id)
	c.mu.Lock()
	c.beat = beat
	c.maxFrame = int(min(peer.maxFrameSize, maxFrameSize))
	mark := c.openFrame(0)
	c.out = open{
		containerID: "devbus-" + hex.EncodeToString(id), maxFrameSize: maxFrameSize,
		channelMax: min(maxChannel, peer.channelMax), idleTimeout: uint32(idleTimeout / time.Millisecond),
	}.append(c.out)
	c.closeFrame(mark)
	c.mu.Unlock()
	c.kick()
	return nil
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
