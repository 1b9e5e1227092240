package devbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Constructors of AMQP 1.0 part 1.6.
const (
	ctorDescribed  = 0x00
	ctorNull       = 0x40
	ctorTrue       = 0x41
	ctorFalse      = 0x42
	ctorUint0      = 0x43
	ctorUlong0     = 0x44
	ctorList0      = 0x45
	ctorUbyte      = 0x50
	ctorByte       = 0x51
	ctorSmallUint  = 0x52
	ctorSmallUlong = 0x53
	ctorSmallInt   = 0x54
	ctorSmallLong  = 0x55
	ctorBool       = 0x56
	ctorUshort     = 0x60
	ctorShort      = 0x61
	ctorUint       = 0x70
	ctorInt        = 0x71
	ctorFloat      = 0x72
	ctorChar       = 0x73
	ctorDecimal32  = 0x74
	ctorUlong      = 0x80
	ctorLong       = 0x81
	ctorDouble     = 0x82
	ctorTimestamp  = 0x83
	ctorDecimal64  = 0x84
	ctorDecimal128 = 0x94
	ctorUUID       = 0x98
	ctorBinary8    = 0xa0
	ctorString8    = 0xa1
	ctorSymbol8    = 0xa3
	ctorBinary32   = 0xb0
	ctorString32   = 0xb1
	ctorSymbol32   = 0xb3
	ctorList8      = 0xc0
	ctorMap8       = 0xc1
	ctorList32     = 0xd0
	ctorMap32      = 0xd1
	ctorArray8     = 0xe0
	ctorArray32    = 0xf0
)

const (
	// maxElements is the longest list, map or array that go-amqp decodes; a longer one
	// would end the connection of whoever receives it.
	maxElements = 65536
	maxNesting  = 32
)

var (
	errShort   = errors.New("value runs past the end")
	errNesting = errors.New("value is nested too deeply")
)

// token is one primitive value or one compound's frame. Of a compound, data holds the
// elements and count says how many there are.
type token struct {
	ctor  byte
	data  []byte
	count int
}

// cursor reads values from front to back. The first error sticks, and from then on
// everything reads as zero, so that callers look at err once.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.b = nil
}

func (c *cursor) bytes(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.fail(errShort)
		return nil
	}
	b := c.b[:n:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) byte() byte {
	if len(c.b) == 0 {
		c.fail(errShort)
		return 0
	}
	b := c.b[0]
	c.b = c.b[1:]
	return b
}

// size reads a length of one byte or four.
func (c *cursor) size(wide bool) int {
	if !wide {
		return int(c.byte())
	}
	b := c.bytes(4)
	if b == nil {
		return 0
	}
	return int(binary.BigEndian.Uint32(b))
}

// fixedWidth gives the size of a value that has no length of its own.
func fixedWidth(ctor byte) (width int, ok bool) {
	switch ctor {
	case ctorNull, ctorTrue, ctorFalse, ctorUint0, ctorUlong0, ctorList0:
		return 0, true
	case ctorUbyte, ctorByte, ctorSmallUint, ctorSmallUlong, ctorSmallInt, ctorSmallLong, ctorBool:
		return 1, true
	case ctorUshort, ctorShort:
		return 2, true
	case ctorUint, ctorInt, ctorFloat, ctorChar, ctorDecimal32:
		return 4, true
	case ctorUlong, ctorLong, ctorDouble, ctorTimestamp, ctorDecimal64:
		return 8, true
	case ctorDecimal128, ctorUUID:
		return 16, true
	}
	return 0, false
}

// token reads anything but a described value. The elements of a compound are not looked at.
func (c *cursor) token() token { return c.tokenOf(c.byte()) }

func (c *cursor) tokenOf(ctor byte) token {
	if w, ok := fixedWidth(ctor); ok {
		return token{ctor: ctor, data: c.bytes(w)}
	}
	wide := ctor&0x10 != 0
	switch ctor {
	case ctorBinary8, ctorString8, ctorSymbol8, ctorBinary32, ctorString32, ctorSymbol32:
		return token{ctor: ctor, data: c.bytes(c.size(wide))}
	case ctorList8, ctorMap8, ctorArray8, ctorList32, ctorMap32, ctorArray32:
		in := cursor{b: c.bytes(c.size(wide))}
		count := in.size(wide)
		if in.err != nil {
			c.fail(in.err)
		}
		if count > maxElements {
			c.fail(fmt.Errorf("%d elements, at most %d are taken", count, maxElements))
		}
		if c.err != nil {
			return token{}
		}
		return token{ctor: ctor, data: in.b, count: count}
	}
	c.fail(fmt.Errorf("unknown constructor %#02x", ctor))
	return token{}
}

// skip reads one value and checks it in full: what passes here can be decoded by every
// client that the bytes are handed on to.
func (c *cursor) skip() { c.check(maxNesting) }

// raw is skip, giving the bytes that were read.
func (c *cursor) raw() []byte {
	before := c.b
	c.skip()
	if c.err != nil {
		return nil
	}
	n := len(before) - len(c.b)
	return before[:n:n]
}

func (c *cursor) check(depth int) {
	if depth == 0 {
		c.fail(errNesting)
		return
	}
	ctor := c.byte()
	if c.err != nil {
		return
	}
	if ctor == ctorDescribed {
		c.check(depth - 1)
		c.check(depth - 1)
		return
	}
	c.checkElement(ctor, depth)
}

// checkElement checks a value whose constructor has been read already.
func (c *cursor) checkElement(ctor byte, depth int) {
	t := c.tokenOf(ctor)
	in := cursor{b: t.data}
	switch t.ctor {
	case ctorString8, ctorString32:
		if !utf8.Valid(t.data) {
			c.fail(errors.New("string is not UTF-8"))
		}
		return
	case ctorList8, ctorList32:
		for range t.count {
			in.check(depth - 1)
			if in.err != nil {
				break
			}
		}
	case ctorMap8, ctorMap32:
		in.checkMap(t.count, depth)
	case ctorArray8, ctorArray32:
		in.checkArray(t.count, depth)
	default:
		return
	}
	if in.err != nil {
		c.fail(in.err)
	} else if len(in.b) != 0 {
		c.fail(errors.New("compound is longer than its elements"))
	}
}

// checkMap takes only keys that a Go map can have too: go-amqp panics on others.
func (c *cursor) checkMap(count, depth int) {
	if count%2 != 0 {
		c.fail(errors.New("map with a key that has no value"))
		return
	}
	for range count / 2 {
		if c.err != nil {
			return
		}
		if len(c.b) > 0 {
			switch ctor := c.b[0]; ctor {
			case ctorString8, ctorString32, ctorSymbol8, ctorSymbol32:
			default:
				if _, ok := fixedWidth(ctor); !ok || ctor == ctorList0 {
					c.fail(fmt.Errorf("constructor %#02x in a map's key", ctor))
					return
				}
			}
		}
		c.check(depth - 1)
		c.check(depth - 1)
	}
}

func (c *cursor) checkArray(count, depth int) {
	ctor := c.byte()
	if ctor == ctorDescribed && c.err == nil {
		c.check(depth - 1)
		ctor = c.byte()
	}
	if ctor == ctorDescribed {
		c.fail(errors.New("array of twice described values"))
	}
	if depth <= 1 {
		c.fail(errNesting)
	}
	for range count {
		if c.err != nil {
			return
		}
		c.checkElement(ctor, depth-1)
	}
}

// descriptor reads the descriptor of a described value; only numeric ones are known.
func (c *cursor) descriptor() uint64 {
	if c.byte() != ctorDescribed {
		c.fail(errors.New("value is not described"))
		return 0
	}
	switch t := c.token(); t.ctor {
	case ctorUlong0:
		return 0
	case ctorSmallUlong, ctorUlong:
		return unsigned(t.data)
	}
	c.fail(errors.New("descriptor is not an unsigned long"))
	return 0
}

// fields reads a described list and gives a cursor over its elements.
func (c *cursor) fields() fields {
	t := c.token()
	if c.err == nil && t.ctor != ctorList0 && t.ctor != ctorList8 && t.ctor != ctorList32 {
		c.fail(fmt.Errorf("constructor %#02x where a list is wanted", t.ctor))
	}
	if c.err != nil {
		return fields{cursor: cursor{err: c.err}}
	}
	return fields{cursor: cursor{b: t.data}, left: t.count}
}

// fields walks the elements of a performative. Absent and null are the same: ok is false.
type fields struct {
	cursor
	left int
}

func (f *fields) next() (t token, ok bool) {
	if f.left == 0 || f.err != nil {
		return token{}, false
	}
	f.left--
	t = f.token()
	return t, f.err == nil && t.ctor != ctorNull
}

// value gives the next element's own bytes, described or not; nil when absent or null.
func (f *fields) value() []byte {
	if f.left == 0 || f.err != nil {
		return nil
	}
	f.left--
	b := f.raw()
	if len(b) == 1 && b[0] == ctorNull {
		return nil
	}
	return b
}

func (f *fields) mismatch(t token, want string) {
	f.fail(fmt.Errorf("constructor %#02x where %s is wanted", t.ctor, want))
}

func (f *fields) uint() (uint32, bool) {
	t, ok := f.next()
	if !ok {
		return 0, false
	}
	switch t.ctor {
	case ctorUint0, ctorSmallUint, ctorUint:
		return uint32(unsigned(t.data)), true
	}
	f.mismatch(t, "uint")
	return 0, false
}

func (f *fields) ushort() (uint16, bool) {
	t, ok := f.next()
	if !ok {
		return 0, false
	}
	if t.ctor != ctorUshort {
		f.mismatch(t, "ushort")
		return 0, false
	}
	return uint16(unsigned(t.data)), true
}

func (f *fields) ubyte() (uint8, bool) {
	t, ok := f.next()
	if !ok {
		return 0, false
	}
	if t.ctor != ctorUbyte {
		f.mismatch(t, "ubyte")
		return 0, false
	}
	return t.data[0], true
}

func (f *fields) bool() bool {
	t, ok := f.next()
	if !ok {
		return false
	}
	switch t.ctor {
	case ctorTrue, ctorFalse, ctorBool:
		return t.truth()
	}
	f.mismatch(t, "boolean")
	return false
}

func (f *fields) string() string {
	t, ok := f.next()
	if !ok {
		return ""
	}
	switch t.ctor {
	case ctorString8, ctorString32:
		if utf8.Valid(t.data) {
			return string(t.data)
		}
	}
	f.mismatch(t, "string")
	return ""
}

func (f *fields) symbol() string {
	t, ok := f.next()
	if !ok {
		return ""
	}
	if t.ctor != ctorSymbol8 && t.ctor != ctorSymbol32 {
		f.mismatch(t, "symbol")
		return ""
	}
	return string(t.data)
}

// binary gives bytes of the frame itself: valid only until the next one is read.
func (f *fields) binary() []byte {
	t, ok := f.next()
	if !ok {
		return nil
	}
	if t.ctor != ctorBinary8 && t.ctor != ctorBinary32 {
		f.mismatch(t, "binary")
		return nil
	}
	return t.data
}

func (t token) truth() bool {
	return t.ctor == ctorTrue || t.ctor == ctorBool && t.data[0] != 0
}

func unsigned(b []byte) uint64 {
	var v uint64
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return v
}
