package redisstore

import (
	"bytes"
	"errors"
	"net"
	"strconv"
	"syscall"
)

// maxValue bounds one value that is read from Redis, in bytes: twice what the
// largest record takes. Whoever may write there can make it 512 MiB, and go-redis
// would hold all of it, for every reader at once.
const maxValue = 1 << 20

// tooLarge stands for a value of more than maxValue. No record, and nothing else
// that is kept in Redis, looks like it.
const tooLarge = "\x18"

var errTooLarge = errors.New("larger than anything that is kept here")

// A boundedConn is a connection to Redis on which every value above maxValue is read
// past, and replaced by tooLarge: what asks for it finds nothing that it could
// believe. It costs a look at the length of each value. The protocol is RESP 2 or 3.
type boundedConn struct {
	net.Conn

	// owned by who reads
	pass, drop int64  // bytes of a value: still to be handed on, or to be read past
	inLine     bool   // within a line that announces no value
	pending    []byte // to be handed on before anything else is read
}

// bounded bounds the values that are read from a connection.
func bounded(conn net.Conn) net.Conn {
	c := &boundedConn{Conn: conn}
	if raw, ok := conn.(syscall.Conn); ok { // by which go-redis finds out about stale ones
		return struct {
			*boundedConn
			syscall.Conn
		}{c, raw}
	}
	return c
}

func (c *boundedConn) Read(p []byte) (int, error) {
	for {
		if len(c.pending) > 0 {
			n := copy(p, c.pending)
			c.pending = c.pending[n:]
			return n, nil
		}
		if c.drop > 0 {
			n, err := c.Conn.Read(p[:min(int64(len(p)), c.drop)])
			c.drop -= int64(n)
			if err != nil {
				return 0, err
			}
			continue
		}
		n, err := c.Conn.Read(p)
		if n > 0 { // an error beside that comes again
			n, err = c.filter(p[:n])
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// filter takes out of b what is not to be handed on, and returns how much is left.
func (c *boundedConn) filter(b []byte) (int, error) {
	for at := 0; at < len(b); {
		switch {
		case c.pass > 0:
			n := min(c.pass, int64(len(b)-at))
			c.pass -= n
			at += int(n)
			continue
		case !c.inLine && (b[at] == '$' || b[at] == '=' || b[at] == '!'):
		default:
			end := bytes.IndexByte(b[at:], '\n')
			if c.inLine = end < 0; c.inLine {
				return len(b), nil
			}
			at += end + 1
			continue
		}
		end := bytes.IndexByte(b[at:], '\n')
		if end < 0 { // the rest of the line is on its way
			line, err := c.rest(b[at:])
			c.pending = line
			if size := valueSize(line); size > maxValue {
				c.drop, c.pending = size+2, []byte(standIn)
			} else {
				c.pass = max(size+2, 0)
			}
			return at, err
		}
		size := valueSize(b[at : at+end+1])
		rest := at + end + 1
		if size <= maxValue {
			c.pass = max(size+2, 0)
			at = rest
			continue
		}
		here := min(size+2, int64(len(b)-rest))
		c.drop = size + 2 - here
		at += copy(b[at:], standIn) // which is shorter than the line
		b = b[:at+copy(b[at:], b[rest+int(here):])]
	}
	return len(b), nil
}

// standIn is what is handed on instead of a value, with the line that announces it.
const standIn = "$1\r\n" + tooLarge + "\r\n"

// rest reads the line that begins so to its end.
func (c *boundedConn) rest(begin []byte) ([]byte, error) {
	const maxLine = 32 // more than any length has
	line := append(make([]byte, 0, maxLine), begin[:min(len(begin), maxLine)]...)
	for len(line) < maxLine && line[len(line)-1] != '\n' {
		n, err := c.Conn.Read(line[len(line) : len(line)+1])
		line = line[:len(line)+n]
		if err != nil {
			return line, err
		}
	}
	if len(line) == maxLine {
		return line, errors.New("redis announced a value without a length")
	}
	return line, nil
}

// valueSize is the length that a line announces: -2 if it is none, after which
// nothing is to be handed on as a value.
func valueSize(line []byte) int64 {
	size, err := strconv.ParseInt(string(bytes.TrimRight(line[1:], "\r\n")), 10, 64)
	if err != nil || size < 0 { // -1 is null
		return -2
	}
	return min(size, 1<<60) // room for what is added to it
}
