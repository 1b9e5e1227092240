package devbus

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"
)

var (
	headerSASL = [8]byte{'A', 'M', 'Q', 'P', 3, 1, 0, 0}
	headerAMQP = [8]byte{'A', 'M', 'Q', 'P', 0, 1, 0, 0}
)

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
		_, _ = c.nc.Write(want[:]) // part 2.2: say what would have been right, then close, heard or not
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
