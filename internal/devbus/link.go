package devbus

import "sync/atomic"

const (
	// senderCredit is how many messages a sender may have on the way.
	senderCredit = 1000

	// turn is how many messages one link takes before another link, here or on another
	// connection, has its turn.
	turn = 64

	// maxReplies bounds answers that wait for the credit of whoever asked.
	maxReplies     = 1024
	maxReplyQueued = 8 << 20
)

// link is one end of a link. All of it is guarded by the connection's mutex.
type link interface {
	flow(flow)
	state() linkState
	release() // let go of what the link holds elsewhere
	common() *end
}

// linkState is what a flow frame says about a link.
type linkState struct {
	handle        uint32
	deliveryCount uint32
	credit        uint32
	available     uint32
	drain         bool
}

// end is what both kinds of link have.
type end struct {
	session *session
	name    string
	handle  uint32
	node    *node // nil for the ends of a request/response pair
	gone    bool  // detached by us: whatever comes before the peer's own detach is ignored
}

func (e *end) common() *end { return e }

// inLink takes what the peer sends: messages for an entity, or requests for a service.
type inLink struct {
	end
	service       service // nil: messages
	deliveryCount uint32
	credit        uint32

	// The message that is arriving.
	arriving   bool
	first      transfer
	partial    []byte
	overlength bool
}

// outLink carries messages of a store, or answers, to the peer.
type outLink struct {
	end
	store   *store
	target  string      // where answers go to, as the peer calls it
	remove  bool        // receive-and-delete
	hungry  atomic.Bool // found nothing in the store and wants to be told when there is
	replies [][]byte
	queued  int // bytes of replies

	deliveryCount uint32
	credit        uint32
	drain         bool
	tag           uint64

	taken   []delivery // to be sent
	buffer  []delivery // what taken is a part of, kept for the next time
	rest    []byte     // of the message being sent, if it needs several frames
	restTag []byte
}

// attach answers the peer's attach: with the same name and handle, or with null and a detach.
func (s *session) attach(a attach) error {
	c := s.conn
	switch {
	case s.links[a.handle] != nil:
		return problemf("amqp:session:handle-in-use", "handle %d is in use", a.handle)
	case a.handle > maxHandle || c.links >= maxLinks:
		return problemf("amqp:resource-limit-exceeded", "too many links")
	}
	l, p := s.newLink(a)
	answer := a
	answer.role = !a.role
	answer.initialCount = 0
	maxMessage := uint64(0)
	if p != nil {
		answer.source, answer.target = terminus{}, terminus{}
	} else {
		answer.source.present, answer.target.present = true, true
		if l.common().node != nil {
			maxMessage = uint64(c.bus.maxMessage)
		}
	}
	mark := c.openFrame(s.channel)
	c.out = answer.append(c.out, maxMessage)
	c.closeFrame(mark)
	if p != nil {
		s.sendDetach(a.handle, p)
		s.links[a.handle] = &inLink{end: end{session: s, name: a.name, handle: a.handle, gone: true}}
		c.links++
		return nil
	}
	s.links[a.handle] = l
	c.links++
	switch l := l.(type) {
	case *inLink:
		s.sendFlow(l)
	case *outLink:
		c.outLinks = append(c.outLinks, l)
		if l.store != nil {
			l.store.attach(l)
		}
	}
	return nil
}

// newLink decides what an attach asks for.
func (s *session) newLink(a attach) (link, *problem) {
	e := end{session: s, name: a.name, handle: a.handle}
	address := a.target.address
	if a.role == roleReceiver {
		address = a.source.address
	}
	service, n, p := s.conn.resolve(address)
	switch {
	case p != nil:
		return nil, p
	case service != nil && a.role == roleReceiver:
		return &outLink{end: e, target: a.target.address, remove: true}, nil
	case service != nil:
		return &inLink{end: e, service: service, credit: senderCredit, deliveryCount: a.initialCount}, nil
	}
	e.node = n
	switch {
	case a.role == roleSender && n.inbox == nil, a.role == roleReceiver && n.store == nil:
		return nil, problemf("amqp:not-allowed", "'%s' cannot be attached to in this direction", n.name)
	case n.subscription != nil && n.subscription.Sessions && !a.source.hasSession:
		return nil, problemf("amqp:not-allowed",
			"It is not possible for an entity that requires sessions to create a non-sessionful message receiver. '%s'", n.name)
	case a.source.hasSession:
		return nil, problemf("amqp:not-allowed", "'%s' does not have sessions", n.name)
	}
	op, right := Operation{Rule: s.conn.grant(n).rule, Entity: n.name, Name: "attach-sender"}, Send
	if a.role == roleReceiver {
		op.Name, right = "attach-receiver", Listen
	}
	p = s.conn.may(n, right)
	op.Refused = p != nil
	s.conn.bus.operations.note(op)
	switch {
	case p != nil:
		return nil, p
	case a.role == roleSender:
		return &inLink{end: e, credit: senderCredit, deliveryCount: a.initialCount}, nil
	}
	return &outLink{
		end: e, store: n.store, remove: a.hasSndMode && a.sndMode == settleSettled,
	}, nil
}

// detach ends a link as the peer wishes, or confirms that it has heard of our own detach.
func (s *session) detach(d detach) error {
	l, err := s.link(d.handle)
	if err != nil {
		return err
	}
	if !l.common().gone {
		s.confirm()
		s.drop(l)
		s.sendDetach(d.handle, nil)
	}
	delete(s.links, d.handle)
	s.conn.links--
	return nil
}

// detachWith detaches a link by our own wish.
func (s *session) detachWith(l link, p *problem) {
	if l.common().gone {
		return
	}
	s.confirm()
	s.drop(l)
	s.sendDetach(l.state().handle, p)
}

// drop forgets what a link had under way. Its locks run on.
func (s *session) drop(l link) {
	l.release()
	l.common().gone = true
	for id, h := range s.unsettled {
		if link(h.link) == l {
			delete(s.unsettled, id)
		}
	}
}

func (l *inLink) release() {
	l.session.conn.partial -= len(l.partial)
	l.partial = nil
}

func (l *inLink) state() linkState {
	return linkState{handle: l.handle, deliveryCount: l.deliveryCount, credit: l.credit}
}

// flow of a sender: it says nothing that we need, but may ask for our view.
func (l *inLink) flow(f flow) {
	if f.echo && !l.gone {
		l.session.sendFlow(l)
	}
}

func (l *inLink) transfer(t transfer, payload []byte) error {
	if l.gone {
		return nil
	}
	if !l.arriving {
		if !t.hasDeliveryID {
			return problemf("amqp:not-allowed", "transfer without a delivery-id")
		}
		l.first, l.overlength = t, false
		l.credit-- // never to 0: it is topped up below, and what comes unasked waits in the socket
		l.deliveryCount++
	}
	l.arriving = t.more && !t.aborted
	l.overlength = l.overlength || len(l.partial)+len(payload) > l.session.conn.bus.maxMessage
	if l.arriving {
		if l.overlength {
			l.release()
			return nil
		}
		l.session.conn.partial += len(payload)
		l.partial = append(l.partial, payload...)
		if l.session.conn.partial > partialLimit {
			return problemf("amqp:resource-limit-exceeded", "too many unfinished messages")
		}
		return nil
	}
	if len(l.partial) > 0 {
		l.session.conn.partial -= len(l.partial)
		payload = append(l.partial, payload...)
		l.partial = nil
	}
	if !t.aborted {
		l.received(payload, t.settled)
	}
	if l.credit <= senderCredit/2 {
		l.credit = senderCredit
		l.session.sendFlow(l)
	}
	return nil
}

// received acts on a whole message and confirms it.
func (l *inLink) received(raw []byte, settled bool) {
	s := l.session
	settled = settled || l.first.settled
	var p *problem
	lost := false
	switch {
	case l.overlength:
		p = problemf("amqp:link:message-size-exceeded", "the limit is %d bytes", s.conn.bus.maxMessage)
	case l.service != nil:
		p = l.request(raw)
	default:
		p, lost = s.conn.bus.publish(l.node, l.first.format, raw)
	}
	switch {
	case settled || lost:
	case p != nil:
		s.sendDisposition(roleReceiver, l.first.deliveryID, l.first.deliveryID, codeRejected, p)
	default:
		s.confirmLater(l.first.deliveryID, roleReceiver, codeAccepted)
	}
}

// publish stores the message or messages of one transfer. The confirmation is lost if a test
// wants it so.
func (b *Bus) publish(n *node, format uint32, raw []byte) (p *problem, lost bool) {
	if p := b.faults.rejectSend(n.name); p != nil {
		return p, false
	}
	var batch []*payload
	var err error
	if format == formatBatch {
		batch, err = parseBatch(raw)
	} else {
		var one *payload
		if one, err = parsePayload(raw); err == nil {
			batch = []*payload{one}
		}
	}
	if err != nil {
		return problemf("amqp:not-allowed", "%v", err), false
	}
	return n.inbox.publish(b.faults.duplicated(n.name, batch)), b.faults.loseSend(n.name)
}

func (l *outLink) release() {
	c := l.session.conn
	if l.store != nil {
		l.store.detach(l)
	}
	for i, other := range c.outLinks {
		if other == l {
			c.outLinks = append(c.outLinks[:i], c.outLinks[i+1:]...)
			break
		}
	}
	for _, d := range l.taken {
		if !l.remove {
			_ = l.store.settle(d.message, d.lock, settlement{kind: settleRelease}) // an expired lock is as good
		}
	}
	l.taken, l.buffer, l.rest, l.replies = nil, nil, nil, nil
}

func (l *outLink) state() linkState {
	return linkState{
		handle: l.handle, deliveryCount: l.deliveryCount, credit: l.credit,
		available: uint32(len(l.replies)), drain: l.drain,
	}
}

// flow of a receiver gives credit, counted from the deliveries that it knew of (part 2.6.7).
func (l *outLink) flow(f flow) {
	if l.gone {
		return
	}
	if f.hasLinkCredit {
		l.credit = f.deliveryCount + f.linkCredit - l.deliveryCount
		if int32(l.credit) < 0 {
			l.credit = 0
		}
	}
	l.drain = f.drain
	if f.echo && !f.drain {
		l.session.sendFlow(l)
	}
}
