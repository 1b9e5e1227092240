package devbus

import (
	"encoding/binary"
	"slices"
)

// transferOverhead is more than a transfer frame has beside its payload: frame header, handle,
// delivery-id, a tag of 16 bytes, format and flags.
const transferOverhead = 96

// pump sends what is there within the peer's credit and window, at most one turn of it. It
// says whether it sent anything.
func (l *outLink) pump() bool {
	s := l.session
	switch {
	case l.gone || s.outgoingWindow == 0:
		return false
	case len(l.rest) > 0:
		l.sendRest()
		return true
	case l.store == nil:
		return l.pumpReply()
	case len(l.taken) == 0 && !l.takeMore():
		return false
	}
	for len(l.taken) > 0 && len(l.rest) == 0 && s.outgoingWindow > 0 {
		l.deliver(&l.taken[0])
		l.taken[0] = delivery{}
		l.taken = l.taken[1:]
	}
	return true
}

// takeMore fetches messages to deliver, or shows that there is none.
func (l *outLink) takeMore() bool {
	s := l.session
	if l.credit == 0 {
		return false
	}
	if len(s.unsettled) >= maxUnsettled {
		s.detachWith(l, problemf("amqp:link:detach-forced", "%d deliveries are unsettled", len(s.unsettled)))
		return true
	}
	n := int(min(l.credit, turn))
	l.hungry.Store(true) // before looking: who enqueues later finds it set
	l.taken = l.store.take(l.buffer[:0], n, l.remove)
	l.buffer = l.taken
	if len(l.taken) == n {
		l.hungry.Store(false)
	}
	if len(l.taken) == 0 && l.drain {
		l.deliveryCount += l.credit
		l.credit = 0
		s.sendFlow(l)
		l.drain = false
		return true
	}
	return len(l.taken) > 0
}

func (l *outLink) deliver(d *delivery) {
	s, c := l.session, l.session.conn
	tag := d.token[:]
	if l.remove {
		tag = l.nextTag()
	} else {
		s.unsettled[s.nextDelivery] = handed{link: l, message: d.message, lock: d.lock}
	}
	mark := c.openFrame(s.channel)
	c.out = appendTransfer(c.out, l.handle, s.nextDelivery, tag, l.remove, false)
	payload := len(c.out)
	c.out = d.append(c.out)
	if len(c.out)-mark <= c.maxFrame {
		c.closeFrame(mark)
		l.count()
		s.nextDelivery++
		return
	}
	l.rest, l.restTag = slices.Clone(c.out[payload:]), slices.Clone(tag)
	c.out = c.out[:mark]
	l.sendRest()
}

// pumpReply sends one answer of a service.
func (l *outLink) pumpReply() bool {
	if l.credit == 0 || len(l.replies) == 0 {
		return false
	}
	l.rest, l.restTag = l.replies[0], l.nextTag()
	l.queued -= len(l.rest)
	l.replies[0] = nil
	l.replies = l.replies[1:]
	l.sendRest()
	return true
}

// sendRest sends the current message in as many frames as it takes and the window allows.
func (l *outLink) sendRest() {
	s, c := l.session, l.session.conn
	for len(l.rest) > 0 && s.outgoingWindow > 0 {
		n := min(len(l.rest), c.maxFrame-transferOverhead)
		more := n < len(l.rest)
		mark := c.openFrame(s.channel)
		c.out = appendTransfer(c.out, l.handle, s.nextDelivery, l.restTag, l.remove, more)
		c.out = append(c.out, l.rest[:n]...)
		c.closeFrame(mark)
		l.rest = l.rest[n:]
		if more {
			s.nextOutgoing++
			s.outgoingWindow--
			continue
		}
		l.rest = nil
		l.count()
		s.nextDelivery++
	}
}

// count notes the last frame of a delivery.
func (l *outLink) count() {
	l.session.nextOutgoing++
	l.session.outgoingWindow--
	l.deliveryCount++
	if l.credit > 0 {
		l.credit--
	}
}

// nextTag names a delivery that has no lock. The client refuses a delivery without a tag.
func (l *outLink) nextTag() []byte {
	l.tag++
	return binary.BigEndian.AppendUint64(nil, l.tag)
}

func appendTransfer(b []byte, handle, deliveryID uint32, tag []byte, settled, more bool) []byte {
	b, mark := openDescribed(b, codeTransfer)
	b = appendUint(b, handle)
	b = appendUint(b, deliveryID)
	b = append(append(b, ctorBinary8, byte(len(tag))), tag...)
	b = appendUint(b, 0) // message-format
	b = appendBool(b, settled)
	b = appendBool(b, more)
	return closeCompound(b, mark, 6)
}
