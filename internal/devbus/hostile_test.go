package devbus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"

	"statusrelay/internal/devbus"
)

// What a client says before its first session, written by hand.
var (
	openFrame = frame(0, list(0x10, str("peer"), null, []byte{0x70, 0, 1, 0, 0}))
	handshake = bytes.Join([][]byte{
		[]byte("AMQP\x03\x01\x00\x00"),
		{0, 0, 0, 25, 2, 1, 0, 0, 0, 0x53, 0x41, 0xc0, 12, 1, 0xa3, 9, 'A', 'N', 'O', 'N', 'Y', 'M', 'O', 'U', 'S'},
		[]byte("AMQP\x00\x01\x00\x00"),
		openFrame,
	}, nil)
	beginFrame = frame(0, list(0x11, null, uint32v(0), uint32v(5000), uint32v(5000)))
	closeFrame = frame(0, list(0x18))
	null       = []byte{0x40}
)

func uint32v(v uint32) []byte { return binary.BigEndian.AppendUint32([]byte{0x70}, v) }
func str(s string) []byte     { return append([]byte{0xa1, byte(len(s))}, s...) }
func boolean(v bool) []byte {
	if v {
		return []byte{0x41}
	}
	return []byte{0x42}
}

// list is a described list32.
func list(code byte, elements ...[]byte) []byte {
	all := bytes.Join(elements, nil)
	b := []byte{0, 0x53, code, 0xd0}
	b = binary.BigEndian.AppendUint32(b, uint32(len(all)+4))
	b = binary.BigEndian.AppendUint32(b, uint32(len(elements)))
	return append(b, all...)
}

func frame(channel uint16, body ...[]byte) []byte {
	all := bytes.Join(body, nil)
	b := binary.BigEndian.AppendUint32(nil, uint32(len(all)+8))
	b = append(b, 2, 0, byte(channel>>8), byte(channel))
	return append(b, all...)
}

// attachFrame attaches to a queue, as its sender (role false) or receiver.
func attachFrame(handle uint32, role bool) []byte {
	return frame(0, list(0x12, str("link"), uint32v(handle), boolean(role), null, null,
		list(0x28, str(queue)), list(0x29, str(queue)), null, null, uint32v(0)))
}

// transferFrame sends a payload; message-format 0, unsettled.
func transferFrame(handle, id uint32, more bool, payload []byte) []byte {
	return frame(0, list(0x14, uint32v(handle), uint32v(id), []byte{0xa0, 1, 1}, uint32v(0), boolean(false), boolean(more)), payload)
}

func discard(r io.Reader) { io.Copy(io.Discard, r) }

// converse says something to the bus and waits for the end of the connection. A peer that hangs
// up does so with the last byte; else it is for the bus to end it.
func converse(bus *devbus.Bus, said []byte, hangUp bool) error {
	ours, theirs := net.Pipe()
	var peer sync.WaitGroup
	peer.Go(func() { discard(theirs) })
	peer.Go(func() {
		theirs.Write(said)
		if hangUp {
			theirs.Close()
		}
	})
	err := bus.ServeConn(context.Background(), ours)
	theirs.Close()
	peer.Wait()
	return err
}

func TestBrokenPeerLosesItsConnectionAndNobodyElseDoes(t *testing.T) {
	h := start(t, standard())
	s, r := h.sender(queue), h.receiver(nil)
	h.send(s, "before")
	opened := func(frames ...[]byte) []byte {
		return append(bytes.Clone(handshake), bytes.Join(append([][]byte{beginFrame}, frames...), nil)...)
	}
	sending := attachFrame(0, false)
	deep := bytes.Repeat([]byte{0xc0, 200, 1}, 100)
	for name, said := range map[string][]byte{
		"HTTP":                     []byte("GET / HTTP/1.1\r\n\r\n"),
		"TLS":                      {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3},
		"no SASL":                  []byte("AMQP\x00\x01\x00\x00"),
		"frame below its header":   append(bytes.Clone(handshake), 0, 0, 0, 4, 2, 0, 0, 0),
		"frame too large":          append(bytes.Clone(handshake), 0x7f, 0xff, 0xff, 0xff, 2, 0, 0, 0),
		"offset beyond the frame":  append(bytes.Clone(handshake), 0, 0, 0, 8, 3, 0, 0, 0),
		"offset within the header": append(bytes.Clone(handshake), 0, 0, 0, 8, 1, 0, 0, 0),
		"SASL frame late":          append(bytes.Clone(handshake), 0, 0, 0, 8, 2, 1, 0, 0),
		"second open":              opened(openFrame),
		"no session":               opened(frame(7, list(0x13))),
		"session twice":            opened(beginFrame),
		"channel too high":         opened(frame(5000, list(0x11, null, uint32v(0), uint32v(1), uint32v(1)))),
		"unknown performative":     opened(frame(0, list(0x19))),
		"not described":            opened(frame(0, []byte{0x45})),
		"deep nesting":             opened(frame(0, list(0x12, str("l"), uint32v(0), boolean(true), null, null, deep))),
		"huge count":               opened(frame(0, []byte{0, 0x53, 0x12, 0xd0, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xff, 0x40})),
		"list without a handle":    opened(frame(0, list(0x12, str("l")))),
		"wrong type":               opened(frame(0, list(0x12, uint32v(1), uint32v(1)))),
		"handle too high":          opened(attachFrame(256, true)),
		"handle twice":             opened(sending, sending),
		"transfer without a link":  opened(transferFrame(3, 0, false, nil)),
		"transfer to a receiver":   opened(attachFrame(0, true), transferFrame(0, 0, false, nil)),
		"transfer without an id":   opened(sending, frame(0, list(0x14, uint32v(0)))),
		"unknown state":            opened(frame(0, list(0x15, boolean(true), uint32v(0), null, null, list(0x34)))),
		"endless disposition":      opened(frame(0, list(0x15, boolean(true), uint32v(0), uint32v(1<<31)))),
	} {
		if err := converse(h.bus, said, name == "TLS"); err == nil {
			t.Errorf("%s: the connection ended as if nothing had been wrong", name)
		}
	}
	h.send(s, "after")
	for _, m := range h.receive(r, 2) {
		h.must(r.CompleteMessage(h.ctx, m, nil))
	}
}

func TestUnfinishedMessagesAreBounded(t *testing.T) {
	bus := devbus.New(standard())
	said := append(bytes.Clone(handshake), beginFrame...)
	for handle := range uint32(200) {
		said = append(said, attachFrame(handle, false)...)
		for range 4 {
			said = append(said, transferFrame(handle, handle, true, make([]byte, 60000))...)
		}
	}
	var p interface{ Error() string }
	if err := converse(bus, said, true); !errors.As(err, &p) || !bytes.Contains([]byte(p.Error()), []byte("unfinished")) {
		t.Errorf("got %v", err)
	}
}

func TestMalformedMessageIsRefusedAndKeptFromReceivers(t *testing.T) {
	bus := devbus.New(standard())
	section := func(code byte, value ...byte) []byte { return append([]byte{0, 0x53, code}, value...) }
	said := append(bytes.Clone(handshake), beginFrame...)
	said = append(said, attachFrame(0, false)...)
	for i, m := range [][]byte{
		{1, 2, 3},
		section(0x75, 0x40),    // data that is no binary
		section(0x79, 0xa0, 0), // unknown section
		append(section(0x75, 0xa0, 0), section(0x74, 0xc1, 1, 0)...), // out of order
		append(section(0x75, 0xa0, 0), section(0x77, 0x40)...),       // two bodies
		section(0x73, 0xc0, 3, 1, 0x50, 1),                           // message-id of type ubyte
		section(0x74, 0xc1, 4, 2, 0x50, 1, 0x40),                     // application-property without a name
		section(0x74, 0xc1, 2, 1, 0x40),                              // key without a value
		section(0x72, 0xc1, 5, 2, 0xa0, 1, 1, 0x40),                  // a key that no Go map can have
		section(0x77, 0xa1, 1, 0xff),                                 // not UTF-8
		append(section(0x77), bytes.Repeat([]byte{0xc0, 250, 1}, 80)...),
	} {
		said = append(said, transferFrame(0, uint32(i), false, m)...)
	}
	good := section(0x75, 0xa0, 1, 'x')
	said = append(said, transferFrame(0, 100, false, good)...)
	if err := converse(bus, append(said, closeFrame...), false); err != nil {
		t.Error(err)
	}
	if s, _ := bus.Stats(queue); s.TotalEnqueued != 1 {
		t.Errorf("%+v", s)
	}
}

// The client panics on annotations of another type than it expects.
func TestAnnotationsThatWouldCrashTheClientAreDropped(t *testing.T) {
	h := start(t, standard())
	m := amqp.Message{
		Annotations: amqp.Annotations{
			"x-opt-sequence-number": "text", "x-opt-locked-until": "text", "x-opt-enqueued-time": int64(1),
			"x-opt-enqueue-sequence-number": true, "x-opt-partition-key": int64(1), "x-opt-deadletter-source": int64(1),
			"x-opt-scheduled-enqueue-time": "text", "x-opt-message-state": "text", "mine": "kept",
		},
		Data: [][]byte{[]byte("x")},
	}
	raw, err := m.MarshalBinary()
	h.must(err)
	said := append(bytes.Clone(handshake), beginFrame...)
	said = append(said, attachFrame(0, false)...)
	said = append(said, transferFrame(0, 0, false, raw)...)
	h.must(converse(h.bus, append(said, closeFrame...), false))
	got := h.one(h.receiver(nil))
	if *got.SequenceNumber != 1 || got.PartitionKey != nil || got.RawAMQPMessage.MessageAnnotations["mine"] != "kept" {
		t.Errorf("got %+v", got)
	}
}

// answers gives what the bus says to a peer up to the close.
func answers(t *testing.T, bus *devbus.Bus, frames ...[]byte) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- bus.ServeConn(t.Context(), ours) }()
	go theirs.Write(bytes.Join(append(append([][]byte{handshake, beginFrame}, frames...), closeFrame), nil))
	all, err := io.ReadAll(theirs)
	if err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	return all
}

// The Go client would refuse to send it: others may not.
func TestMessageBeyondTheLimitIsRefusedByTheBusToo(t *testing.T) {
	bus := devbus.New(standard())
	frames := [][]byte{attachFrame(0, false)}
	for i := range 6 {
		frames = append(frames, transferFrame(0, 0, i < 5, make([]byte, 60000)))
	}
	frames = append(frames, transferFrame(0, 1, false, []byte{0, 0x53, 0x75, 0xa0, 1, 'x'}))
	if said := answers(t, bus, frames...); !bytes.Contains(said, []byte("amqp:link:message-size-exceeded")) {
		t.Errorf("%q", said)
	}
	if s, _ := bus.Stats(queue); s.TotalEnqueued != 1 {
		t.Errorf("%+v", s)
	}
}

func TestLinkWithoutATokenIsRefusedWhenAKeyIsSet(t *testing.T) {
	o := standard()
	o.SharedAccessKey = devbus.DevelopmentKey
	for _, receiver := range []bool{false, true} {
		said := answers(t, devbus.New(o), attachFrame(0, receiver))
		if !bytes.Contains(said, []byte("amqp:unauthorized-access")) {
			t.Errorf("%q", said)
		}
	}
}

func TestNestingAndCountsAreLimited(t *testing.T) {
	// Both would be well-formed without the limits.
	deep := null
	for range 100 {
		b := binary.BigEndian.AppendUint32([]byte{0xd0}, uint32(len(deep)+4))
		deep = append(binary.BigEndian.AppendUint32(b, 1), deep...)
	}
	long := binary.BigEndian.AppendUint32([]byte{0xf0, 0, 0, 0, 5}, 65537)
	long = append(long, 0x40)
	for _, value := range [][]byte{deep, long} {
		raw := append([]byte{0, 0x53, 0x77}, value...)
		if _, err := devbus.Redeliver(raw); err == nil {
			t.Errorf("% x was taken", raw)
		}
	}
}

func TestNoFrameIsLargerThanThePeerTakes(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), string(make([]byte, 200000)))
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- h.bus.ServeConn(h.ctx, ours) }()
	var peer sync.WaitGroup
	var said []byte
	peer.Go(func() { said, _ = io.ReadAll(theirs) })
	flow := frame(0, list(0x13, uint32v(0), uint32v(100), uint32v(0), uint32v(5000), uint32v(0), uint32v(0), uint32v(1)))
	_, err := theirs.Write(bytes.Join([][]byte{handshake, beginFrame, attachFrame(0, true), flow}, nil))
	h.must(err)
	waitUntil(t, func() bool { return h.stats(queue).Locked == 1 })
	_, err = theirs.Write(closeFrame)
	h.must(err)
	h.must(<-served)
	peer.Wait()
	if got := bytes.Count(said, []byte{0, 0x53, 0x14}); got != 4 {
		t.Errorf("%d frames, want 4", got)
	}
}

func TestWindowOfASessionIsReopenedAtHalf(t *testing.T) {
	frames := [][]byte{attachFrame(0, false)}
	for range 2600 {
		frames = append(frames, transferFrame(0, 0, true, nil))
	}
	said := answers(t, devbus.New(standard()), frames...)
	if got := bytes.Count(said, []byte{0, 0x53, 0x13}); got != 2 { // the first gives credit
		t.Errorf("%d flows, want 2", got)
	}
}

func TestWindowOfThePeerIsKeptTo(t *testing.T) {
	h := start(t, standard())
	fill(h, h.sender(queue), 50)
	flow := func(seen, window uint32) []byte {
		return frame(0, list(0x13, uint32v(seen), uint32v(window), uint32v(0), uint32v(5000), uint32v(0), uint32v(0), uint32v(100)))
	}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- h.bus.ServeConn(h.ctx, ours) }()
	var peer sync.WaitGroup
	var said []byte
	peer.Go(func() { said, _ = io.ReadAll(theirs) })
	_, err := theirs.Write(bytes.Join([][]byte{handshake, beginFrame, attachFrame(0, true), flow(0, 10)}, nil))
	h.must(err)
	waitUntil(t, func() bool { return h.stats(queue).Locked >= 10 })
	_, err = theirs.Write(closeFrame)
	h.must(err)
	h.must(<-served)
	peer.Wait()
	if got := bytes.Count(said, []byte{0, 0x53, 0x14}); got > 10 {
		t.Errorf("%d transfers in a window of 10", got)
	}
}

func TestPeerThatNeverSettlesIsDetached(t *testing.T) {
	o := standard()
	o.Queues[0].LockDuration = time.Hour
	o.MaxEntityBytes = 1 << 30
	h := start(t, o)
	const most, n = 65536, 65600
	s := h.sender(queue)
	b, err := s.NewMessageBatch(h.ctx, nil)
	h.must(err)
	for range n / 100 {
		h.must(b.AddMessage(&azservicebus.Message{}, nil))
	}
	for range 100 {
		h.must(s.SendMessageBatch(h.ctx, b, nil))
	}
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- h.bus.ServeConn(h.ctx, ours) }()
	go discard(theirs)
	flow := frame(0, list(0x13, uint32v(0), uint32v(1<<20), uint32v(0), uint32v(5000), uint32v(0), uint32v(0), uint32v(1<<20)))
	_, err = theirs.Write(bytes.Join([][]byte{handshake, beginFrame, attachFrame(0, true), flow}, nil))
	h.must(err)
	waitUntil(t, func() bool { return h.stats(queue).Locked >= most })
	if m := h.one(h.receiver(nil)); *m.SequenceNumber != most+1 {
		t.Errorf("the next one went on to %d", *m.SequenceNumber)
	}
	_, err = theirs.Write(closeFrame)
	h.must(err)
	h.must(<-served)
}

// A peer that asks and asks and never reads the answers: what it may make the bus remember is
// bounded, and so is for how long.
func TestPeerThatNeverReadsAnswersIsHeldBack(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		ours, theirs := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- h.bus.ServeConn(h.ctx, ours) }()
		var answers sync.WaitGroup
		answers.Go(func() { io.CopyN(io.Discard, theirs, 89) }) // what precedes the open
		_, err := theirs.Write(handshake)
		h.must(err)
		_, err = theirs.Write(beginFrame)
		h.must(err)
		echo := bytes.Repeat(frame(0, list(0x13, uint32v(0), uint32v(5000), uint32v(0), uint32v(5000),
			null, null, null, null, null, boolean(true))), 1000)
		asked := 0
		for {
			n, err := theirs.Write(echo)
			asked += n
			if err != nil {
				break
			}
			if asked > 32<<20 {
				t.Fatal("no end of answers that nobody reads")
			}
		}
		<-ended
		theirs.Close()
		answers.Wait()
	})
}

// recorder keeps what a client says.
type recorder struct {
	net.Conn
	mu   sync.Mutex
	said []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	r.said = append(r.said, b...)
	r.mu.Unlock()
	return r.Conn.Write(b)
}

// FuzzFrames says anything at all to the bus, beginning with what the real client said in a
// session with sends, batches, settlements and management requests.
func FuzzFrames(f *testing.F) {
	f.Add(handshake)
	for _, said := range conversations(f) {
		f.Add(said)
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		bus := devbus.New(standard())
		defer bus.Close()
		converse(bus, said, true)
	})
}

// conversations records the real client at work.
func conversations(t testing.TB) (all [][]byte) {
	h := start(t, standard())
	var recorders []*recorder
	h.dial = func(ctx context.Context, _ azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", h.addr)
		if err != nil {
			return nil, err
		}
		recorders = append(recorders, &recorder{Conn: c})
		return recorders[len(recorders)-1], nil
	}
	s, r := h.sender(queue), h.receiver(nil)
	h.send(s, "a", "b", "c", "d")
	fill(h, s, 3)
	ms := h.receive(r, 7)
	h.must(r.RenewMessageLock(h.ctx, ms[0], nil))
	h.must(r.CompleteMessage(h.ctx, ms[0], nil))
	h.must(r.AbandonMessage(h.ctx, ms[1], &azservicebus.AbandonMessageOptions{PropertiesToModify: map[string]any{"a": 1}}))
	h.must(r.DeadLetterMessage(h.ctx, ms[2], &azservicebus.DeadLetterOptions{Reason: ptr("r"), ErrorDescription: ptr("d")}))
	h.must(r.DeferMessage(h.ctx, ms[3], nil))
	_, err := r.ReceiveDeferredMessages(h.ctx, []int64{*ms[3].SequenceNumber}, nil)
	h.must(err)
	_, err = r.PeekMessages(h.ctx, 5, nil)
	h.must(err)
	h.must(r.CompleteMessage(h.ctx, &azservicebus.ReceivedMessage{LockToken: ms[4].LockToken}, nil))
	h.must(r.Close(h.ctx))
	for _, rec := range recorders {
		rec.mu.Lock()
		all = append(all, bytes.Clone(rec.said))
		rec.mu.Unlock()
	}
	return all
}
