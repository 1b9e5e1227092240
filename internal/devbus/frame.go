package devbus

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

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
