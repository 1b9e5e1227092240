package devbus

import (
	"encoding/binary"
	"math"
	"time"
)

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, ctorTrue)
	}
	return append(b, ctorFalse)
}

func appendUint(b []byte, v uint32) []byte {
	switch {
	case v == 0:
		return append(b, ctorUint0)
	case v <= math.MaxUint8:
		return append(b, ctorSmallUint, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, ctorUint), v)
}

func appendUlong(b []byte, v uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, ctorUlong), v)
}

func appendUshort(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(append(b, ctorUshort), v)
}

func appendUbyte(b []byte, v uint8) []byte { return append(b, ctorUbyte, v) }

func appendInt(b []byte, v int32) []byte {
	return binary.BigEndian.AppendUint32(append(b, ctorInt), uint32(v))
}

func appendLong(b []byte, v int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, ctorLong), uint64(v))
}

func appendTimestamp(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(append(b, ctorTimestamp), uint64(t.UnixMilli()))
}

func appendUUID(b []byte, u [16]byte) []byte { return append(append(b, ctorUUID), u[:]...) }

func appendString(b []byte, s string) []byte { return appendVariable(b, ctorString8, s) }
func appendSymbol(b []byte, s string) []byte { return appendVariable(b, ctorSymbol8, s) }

// appendVariable writes s in its short form, or the long one, whose constructor is 0x10 further.
func appendVariable(b []byte, ctor byte, s string) []byte {
	if len(s) <= math.MaxUint8 {
		b = append(b, ctor, byte(len(s)))
	} else {
		b = binary.BigEndian.AppendUint32(append(b, ctor+0x10), uint32(len(s)))
	}
	return append(b, s...)
}

// openCompound starts a list32 or map32 whose size and count closeCompound fills in.
func openCompound(b []byte, ctor byte) (_ []byte, mark int) {
	b = append(b, ctor, 0, 0, 0, 0, 0, 0, 0, 0)
	return b, len(b)
}

func closeCompound(b []byte, mark, count int) []byte {
	binary.BigEndian.PutUint32(b[mark-8:], uint32(len(b)-mark+4))
	binary.BigEndian.PutUint32(b[mark-4:], uint32(count))
	return b
}

// openDescribed starts a described list. The client takes no other form of descriptor than
// this one.
func openDescribed(b []byte, code byte) (_ []byte, mark int) {
	return openCompound(append(b, ctorDescribed, ctorSmallUlong, code), ctorList32)
}
