package devbus

import (
	"errors"
	"fmt"
)

// Descriptors of AMQP 1.0 parts 2.7, 3.4, 3.5 and 5.3.
const (
	codeOpen           = 0x10
	codeBegin          = 0x11
	codeAttach         = 0x12
	codeFlow           = 0x13
	codeTransfer       = 0x14
	codeDisposition    = 0x15
	codeDetach         = 0x16
	codeEnd            = 0x17
	codeClose          = 0x18
	codeError          = 0x1d
	codeReceived       = 0x23
	codeAccepted       = 0x24
	codeRejected       = 0x25
	codeReleased       = 0x26
	codeModified       = 0x27
	codeSource         = 0x28
	codeTarget         = 0x29
	codeSASLMechanisms = 0x40
	codeSASLInit       = 0x41
	codeSASLOutcome    = 0x44
)

// Roles: which end of its link a peer speaks for.
const (
	roleSender   = false
	roleReceiver = true
)

const (
	settleSettled = 1 // snd-settle-mode
	settleSecond  = 1 // rcv-settle-mode
)

// problem is an AMQP error: what a peer is told when it is refused something.
type problem struct {
	condition   string
	description string
}

func (p *problem) Error() string { return p.condition + ": " + p.description }

func problemf(condition, format string, args ...any) *problem {
	return &problem{condition: condition, description: fmt.Sprintf(format, args...)}
}

type open struct {
	containerID  string
	maxFrameSize uint32
	channelMax   uint16
	idleTimeout  uint32 // ms
}

type begin struct {
	nextOutgoingID uint32
	incomingWindow uint32
}

// terminus is what matters here of a source or a target.
type terminus struct {
	present    bool
	address    string
	hasSession bool // the source asks for a session
}

type attach struct {
	name         string
	handle       uint32
	role         bool
	sndMode      uint8
	hasSndMode   bool
	rcvMode      uint8
	hasRcvMode   bool
	source       terminus
	target       terminus
	initialCount uint32
}

type flow struct {
	nextIncomingID    uint32
	hasNextIncomingID bool
	incomingWindow    uint32
	handle            uint32
	hasHandle         bool
	deliveryCount     uint32
	linkCredit        uint32
	hasLinkCredit     bool
	drain             bool
	echo              bool
}

type transfer struct {
	handle        uint32
	deliveryID    uint32
	hasDeliveryID bool
	format        uint32
	settled       bool
	more          bool
	aborted       bool
}

type disposition struct {
	role    bool
	first   uint32
	last    uint32
	settled bool
	outcome outcome
}

// outcome is a delivery state. The maps are raw and belong to the frame they came in.
type outcome struct {
	code              byte // 0: none given
	condition         string
	info              []byte // rejected: the error's info map
	undeliverableHere bool
	annotations       []byte // modified: what to merge into the message
}

type detach struct {
	handle uint32
	closed bool
}

func decodeOpen(f fields) (o open, err error) {
	o.containerID = f.string()
	f.string() // hostname
	var ok bool
	if o.maxFrameSize, ok = f.uint(); !ok {
		o.maxFrameSize = 1<<32 - 1
	}
	if o.channelMax, ok = f.ushort(); !ok {
		o.channelMax = 1<<16 - 1
	}
	o.idleTimeout, _ = f.uint()
	if o.maxFrameSize < minFrameSize {
		f.fail(fmt.Errorf("max-frame-size %d is below %d", o.maxFrameSize, minFrameSize))
	}
	return o, f.err
}

func decodeBegin(f fields) (b begin, err error) {
	f.ushort() // remote-channel: only answers have one
	b.nextOutgoingID, _ = f.uint()
	b.incomingWindow, _ = f.uint()
	return b, f.err
}

func decodeAttach(f fields) (a attach, err error) {
	a.name = f.string()
	a.handle = f.required("handle")
	a.role = f.bool()
	a.sndMode, a.hasSndMode = f.ubyte()
	a.rcvMode, a.hasRcvMode = f.ubyte()
	a.source = decodeTerminus(&f, codeSource)
	a.target = decodeTerminus(&f, codeTarget)
	f.value() // unsettled
	f.bool()  // incomplete-unsettled
	a.initialCount, _ = f.uint()
	return a, f.err
}

func (f *fields) required(name string) uint32 {
	v, ok := f.uint()
	if !ok {
		f.fail(fmt.Errorf("%s is missing", name))
	}
	return v
}

// decodeTerminus reads a source or target. Filters other than a session's are dropped, and the
// answer's source, which names none, says so.
func decodeTerminus(f *fields, code uint64) (t terminus) {
	raw := f.value()
	if raw == nil {
		return t
	}
	c := cursor{b: raw}
	if c.descriptor() != code {
		f.fail(errors.New("unknown kind of source or target"))
		return t
	}
	in := c.fields()
	t.present = true
	if address, ok := in.next(); ok {
		if address.ctor != ctorString8 && address.ctor != ctorString32 {
			in.mismatch(address, "an address")
		}
		t.address = string(address.data)
	}
	if code == codeSource {
		for range 6 { // durable … distribution-mode, of which none changes anything here
			in.value()
		}
		for _, p := range decodePairs(in.value()) {
			t.hasSession = t.hasSession || p.key == "com.microsoft:session-filter"
		}
	}
	if in.err != nil {
		f.fail(in.err)
	}
	return t
}

func decodeFlow(f fields) (l flow, err error) {
	l.nextIncomingID, l.hasNextIncomingID = f.uint()
	l.incomingWindow, _ = f.uint()
	f.uint() // next-outgoing-id
	f.uint() // outgoing-window
	l.handle, l.hasHandle = f.uint()
	l.deliveryCount, _ = f.uint()
	l.linkCredit, l.hasLinkCredit = f.uint()
	f.uint() // available
	l.drain = f.bool()
	l.echo = f.bool()
	return l, f.err
}

func decodeTransfer(f fields) (t transfer, err error) {
	t.handle = f.required("handle")
	t.deliveryID, t.hasDeliveryID = f.uint()
	f.binary() // delivery-tag: deliveries are told apart by id
	t.format, _ = f.uint()
	t.settled = f.bool()
	t.more = f.bool()
	f.ubyte() // rcv-settle-mode
	f.value() // state
	f.bool()  // resume
	t.aborted = f.bool()
	return t, f.err
}

func decodeDisposition(f fields) (d disposition, err error) {
	d.role = f.bool()
	d.first = f.required("first")
	var ok bool
	if d.last, ok = f.uint(); !ok {
		d.last = d.first
	}
	d.settled = f.bool()
	if raw := f.value(); raw != nil {
		d.outcome, err = decodeOutcome(raw)
	}
	if f.err != nil {
		err = f.err
	}
	return d, err
}

func decodeOutcome(raw []byte) (o outcome, err error) {
	c := cursor{b: raw}
	code := c.descriptor()
	f := c.fields()
	switch code {
	case codeAccepted, codeReleased, codeReceived:
	case codeRejected:
		if raw := f.value(); raw != nil {
			c := cursor{b: raw}
			if c.descriptor() != codeError {
				return o, errors.New("rejected with something other than an error")
			}
			e := c.fields()
			o.condition = e.symbol()
			e.value() // description
			o.info = e.value()
			if e.err != nil {
				return o, e.err
			}
		}
	case codeModified:
		f.bool() // delivery-failed: the service counts every abandon, whatever is said here
		o.undeliverableHere = f.bool()
		o.annotations = f.value()
	default:
		return o, fmt.Errorf("unknown delivery state %#x", code)
	}
	o.code = byte(code)
	if c.err != nil {
		return o, c.err
	}
	return o, f.err
}

func decodeDetach(f fields) (d detach, err error) {
	d.handle = f.required("handle")
	d.closed = f.bool()
	return d, f.err
}

// pair is one entry of a map with textual keys. The value is raw.
type pair struct {
	key   string
	value []byte
}

// decodePairs reads a map and passes over keys that are not text. The bytes have been checked
// before: what is not a map has no pairs.
func decodePairs(raw []byte) (pairs []pair) {
	if len(raw) == 0 || raw[0] == ctorDescribed {
		return nil
	}
	c := cursor{b: raw}
	t := c.token()
	if t.ctor != ctorMap8 && t.ctor != ctorMap32 {
		return nil
	}
	in := cursor{b: t.data}
	for range t.count / 2 {
		key := in.token()
		value := in.raw()
		if in.err != nil {
			return nil
		}
		switch key.ctor {
		case ctorString8, ctorString32, ctorSymbol8, ctorSymbol32:
			pairs = append(pairs, pair{string(key.data), value})
		}
	}
	return pairs
}

func (o open) append(b []byte) []byte {
	b, mark := openDescribed(b, codeOpen)
	b = appendString(b, o.containerID)
	b = append(b, ctorNull)
	b = appendUint(b, o.maxFrameSize)
	b = appendUshort(b, o.channelMax)
	b = appendUint(b, o.idleTimeout)
	return closeCompound(b, mark, 5)
}

func appendBegin(b []byte, remoteChannel uint16, window uint32) []byte {
	b, mark := openDescribed(b, codeBegin)
	b = appendUshort(b, remoteChannel)
	b = appendUint(b, 0) // next-outgoing-id
	b = appendUint(b, window)
	b = appendUint(b, window)
	b = appendUint(b, maxHandle)
	return closeCompound(b, mark, 5)
}

func (t terminus) append(b []byte, code byte) []byte {
	if !t.present {
		return append(b, ctorNull)
	}
	b, mark := openDescribed(b, code)
	if t.address == "" {
		b = append(b, ctorNull)
	} else {
		b = appendString(b, t.address)
	}
	return closeCompound(b, mark, 1)
}

// append writes the answer to an attach of the peer: maxMessage 0 announces none.
func (a attach) append(b []byte, maxMessage uint64) []byte {
	b, mark := openDescribed(b, codeAttach)
	b = appendString(b, a.name)
	b = appendUint(b, a.handle)
	b = appendBool(b, a.role)
	for _, m := range []struct {
		mode uint8
		has  bool
	}{{a.sndMode, a.hasSndMode}, {a.rcvMode, a.hasRcvMode}} {
		if m.has {
			b = appendUbyte(b, m.mode)
		} else {
			b = append(b, ctorNull)
		}
	}
	b = a.source.append(b, codeSource)
	b = a.target.append(b, codeTarget)
	b = append(b, ctorNull, ctorFalse) // unsettled, incomplete-unsettled
	if a.role == roleSender {
		b = appendUint(b, a.initialCount)
	} else {
		b = append(b, ctorNull)
	}
	if maxMessage > 0 {
		b = appendUlong(b, maxMessage)
	} else {
		b = append(b, ctorNull)
	}
	return closeCompound(b, mark, 11)
}

func appendDetach(b []byte, handle uint32, p *problem) []byte {
	b, mark := openDescribed(b, codeDetach)
	b = appendUint(b, handle)
	b = append(b, ctorTrue) // the client takes no other detach than a closing one
	b = appendProblem(b, p)
	return closeCompound(b, mark, 3)
}

// appendEnding writes an end or a close.
func appendEnding(b []byte, code byte, p *problem) []byte {
	b, mark := openDescribed(b, code)
	b = appendProblem(b, p)
	return closeCompound(b, mark, 1)
}

func appendProblem(b []byte, p *problem) []byte {
	if p == nil {
		return append(b, ctorNull)
	}
	b, mark := openDescribed(b, codeError)
	b = appendSymbol(b, p.condition)
	b = appendString(b, p.description)
	return closeCompound(b, mark, 2)
}

// appendDisposition confirms deliveries first to last. A problem goes with codeRejected only.
func appendDisposition(b []byte, role bool, first, last uint32, code byte, p *problem) []byte {
	b, mark := openDescribed(b, codeDisposition)
	b = appendBool(b, role)
	b = appendUint(b, first)
	b = appendUint(b, last)
	b = append(b, ctorTrue) // settled
	b, state := openDescribed(b, code)
	n := 0
	if p != nil {
		b = appendProblem(b, p)
		n = 1
	}
	b = closeCompound(b, state, n)
	return closeCompound(b, mark, 5)
}
