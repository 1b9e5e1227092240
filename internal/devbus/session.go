package devbus

import (
	"errors"
	"slices"
)

const (
	// confirmAtOnce is how many deliveries one disposition confirms at most: the client's work
	// on a range grows with its square.
	confirmAtOnce = 64

	// maxUnsettled is how many deliveries of a session may be unsettled. Locks that ran out are
	// among them until the client says something, so a client that drops messages gets there.
	maxUnsettled = 65536
)

// session is guarded by its connection's mutex, like its links.
type session struct {
	conn    *conn
	channel uint16
	links   map[uint32]link // by handle: ours and the peer's are the same

	nextIncoming   uint32 // transfer-id that the peer uses next
	incomingWindow uint32 // transfers that the peer may still send
	nextOutgoing   uint32
	outgoingWindow uint32 // transfers that we may still send

	nextDelivery uint32
	unsettled    map[uint32]handed // by delivery-id

	pending     []uint32 // deliveries to be confirmed …
	pendingRole bool     // … as this
	pendingCode byte     // … with this state
	waiting     bool     // listed in conn.waiting
	ended       bool     // by us: whatever comes before the peer's own end is ignored
}

// handed is a delivery that the peer has yet to settle.
type handed struct {
	link    *outLink
	message *message
	lock    uint64
}

func newSession(c *conn, channel uint16, b begin) *session {
	return &session{
		conn: c, channel: channel, links: make(map[uint32]link), unsettled: make(map[uint32]handed),
		nextIncoming: b.nextOutgoingID, incomingWindow: window, outgoingWindow: b.incomingWindow,
	}
}

func (s *session) handle(code uint64, list fields, payload []byte) error {
	if s.ended && code != codeEnd {
		return nil
	}
	switch code {
	case codeAttach:
		a, err := decodeAttach(list)
		if err != nil {
			return err
		}
		return s.attach(a)
	case codeFlow:
		f, err := decodeFlow(list)
		if err != nil {
			return err
		}
		return s.flow(f)
	case codeTransfer:
		t, err := decodeTransfer(list)
		if err != nil {
			return err
		}
		return s.transfer(t, payload)
	case codeDisposition:
		d, err := decodeDisposition(list)
		if err != nil {
			return err
		}
		return s.disposition(d)
	case codeDetach:
		d, err := decodeDetach(list)
		if err != nil {
			return err
		}
		return s.detach(d)
	case codeEnd:
		if !s.ended {
			s.endWith(nil)
		}
		delete(s.conn.sessions, s.channel)
		return nil
	}
	return problemf("amqp:not-implemented", "unknown performative %#x", code)
}

// close lets go of the links; the session is not used any more.
func (s *session) close() {
	for _, l := range s.links {
		l.release()
	}
	s.conn.links -= len(s.links)
	clear(s.links)
	clear(s.unsettled)
	s.pending = nil
	s.ended = true
}

// endWith sends our end. After it nothing may be sent on the channel.
func (s *session) endWith(p *problem) {
	s.confirm()
	s.close()
	mark := s.conn.openFrame(s.channel)
	s.conn.out = appendEnding(s.conn.out, codeEnd, p)
	s.conn.closeFrame(mark)
}

func (s *session) link(handle uint32) (link, error) {
	l := s.links[handle]
	if l == nil {
		return nil, problemf("amqp:session:unattached-handle", "handle %d is not attached", handle)
	}
	return l, nil
}

func (s *session) flow(f flow) error {
	// What the peer had seen when it wrote this, and so how much more it takes (part 2.5.6).
	seen := uint32(0)
	if f.hasNextIncomingID {
		seen = f.nextIncomingID
	}
	s.outgoingWindow = seen + f.incomingWindow - s.nextOutgoing
	if int32(s.outgoingWindow) < 0 {
		s.outgoingWindow = 0
	}
	if !f.hasHandle {
		if f.echo {
			s.sendFlow(nil)
		}
		s.conn.kick()
		return nil
	}
	l, err := s.link(f.handle)
	if err != nil {
		return err
	}
	l.flow(f)
	s.conn.kick()
	return nil
}

// sendFlow tells the peer our windows and, with a link, that link's state.
func (s *session) sendFlow(l link) {
	s.incomingWindow = window
	mark := s.conn.openFrame(s.channel)
	b, list := openDescribed(s.conn.out, codeFlow)
	b = appendUint(b, s.nextIncoming)
	b = appendUint(b, window)
	b = appendUint(b, s.nextOutgoing)
	b = appendUint(b, window)
	n := 4
	if l != nil {
		st := l.state()
		b = appendUint(b, st.handle)
		b = appendUint(b, st.deliveryCount)
		b = appendUint(b, st.credit)
		b = appendUint(b, st.available)
		b = appendBool(b, st.drain)
		n = 9
	}
	s.conn.out = closeCompound(b, list, n)
	s.conn.closeFrame(mark)
}

func (s *session) transfer(t transfer, payload []byte) error {
	s.nextIncoming++
	s.incomingWindow-- // never to 0, like the credit of links
	if s.incomingWindow <= window/2 {
		s.sendFlow(nil)
	}
	l, err := s.link(t.handle)
	if err != nil {
		return err
	}
	in, ok := l.(*inLink)
	if !ok {
		return problemf("amqp:not-allowed", "transfer on a link that the peer receives from")
	}
	return in.transfer(t, payload)
}

// disposition settles what we delivered. Answers to what the peer delivered are of no interest.
func (s *session) disposition(d disposition) error {
	if d.role != roleReceiver {
		return nil
	}
	if d.last-d.first > maxUnsettled {
		return problemf("amqp:not-allowed", "disposition of %d deliveries", d.last-d.first+1)
	}
	for id := d.first; ; id++ {
		if h, ok := s.unsettled[id]; ok {
			if err := s.settle(id, h, d); err != nil {
				return err
			}
		}
		if id == d.last {
			return nil
		}
	}
}

func (s *session) settle(id uint32, h handed, d disposition) error {
	if d.outcome.code == codeReceived || d.outcome.code == 0 && !d.settled {
		return nil // no decision yet
	}
	delete(s.unsettled, id)
	store := h.link.store
	faults := &s.conn.bus.faults
	if p := faults.rejectSettlement(store.name); p != nil {
		s.confirmRejected(id, d.settled, p)
		return nil
	}
	to, err := d.outcome.settlement()
	if err != nil {
		return err
	}
	if p := store.settle(h.message, h.lock, to); p != nil {
		s.confirmRejected(id, d.settled, p)
		return nil
	}
	if !d.settled && !faults.loseSettlement(store.name) {
		s.confirmLater(id, roleSender, d.outcome.code)
	}
	return nil
}

// settlement says what a state means at the service, which counts as abandoned or deferred what
// AMQP calls modified.
func (o outcome) settlement() (settlement, error) {
	switch o.code {
	case codeAccepted:
		return settlement{kind: settleComplete}, nil
	case codeReleased, 0:
		return settlement{kind: settleRelease}, nil
	case codeModified:
		kind := settleAbandon
		if o.undeliverableHere {
			kind = settleDefer
		}
		return settlement{kind: kind, changes: keepable(decodePairs(o.annotations))}, nil
	case codeRejected:
		return settlement{kind: settleDeadLetter, changes: keepable(decodePairs(o.info))}, nil
	}
	return settlement{}, errors.New("state is no outcome")
}

// keepable copies property changes out of their frame. The client panics on a dead-letter reason
// that is no string, so that such a one is left out.
func keepable(pairs []pair) []pair {
	pairs = slices.DeleteFunc(pairs, func(p pair) bool {
		reserved := p.key == "DeadLetterReason" || p.key == "DeadLetterErrorDescription"
		return reserved && !isTextOrNull(p.value[0])
	})
	for i := range pairs {
		pairs[i].value = slices.Clone(pairs[i].value)
	}
	return pairs
}

func (s *session) confirmRejected(id uint32, settled bool, p *problem) {
	if settled {
		return // the peer has forgotten the delivery
	}
	s.sendDisposition(roleSender, id, id, codeRejected, p)
}

// confirmLater collects confirmations, so that one disposition can speak for many.
func (s *session) confirmLater(id uint32, role bool, code byte) {
	if len(s.pending) == confirmAtOnce || len(s.pending) > 0 && (role != s.pendingRole || code != s.pendingCode) {
		s.confirm()
	}
	s.pending = append(s.pending, id)
	s.pendingRole, s.pendingCode = role, code
	if !s.waiting {
		s.waiting = true
		s.conn.waiting = append(s.conn.waiting, s)
	}
}

// confirm sends the collected confirmations, each run of ids as one disposition. They can have
// come in any order.
func (s *session) confirm() {
	slices.SortFunc(s.pending, func(a, b uint32) int { return int(int32(a - b)) }) // serial numbers
	for i := 0; i < len(s.pending); {
		j := i + 1
		for j < len(s.pending) && s.pending[j] == s.pending[j-1]+1 {
			j++
		}
		s.sendDisposition(s.pendingRole, s.pending[i], s.pending[j-1], s.pendingCode, nil)
		i = j
	}
	s.pending = s.pending[:0]
}

func (s *session) sendDisposition(role bool, first, last uint32, code byte, p *problem) {
	mark := s.conn.openFrame(s.channel)
	s.conn.out = appendDisposition(s.conn.out, role, first, last, code, p)
	s.conn.closeFrame(mark)
}

func (s *session) sendDetach(handle uint32, p *problem) {
	mark := s.conn.openFrame(s.channel)
	s.conn.out = appendDetach(s.conn.out, handle, p)
	s.conn.closeFrame(mark)
}
