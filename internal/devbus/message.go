package devbus

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// Sections of a message, AMQP 1.0 part 3.2.
const (
	sectionHeader              = 0x70
	sectionDeliveryAnnotations = 0x71
	sectionMessageAnnotations  = 0x72
	sectionProperties          = 0x73
	sectionApplication         = 0x74
	sectionData                = 0x75
	sectionSequence            = 0x76
	sectionValue               = 0x77
	sectionFooter              = 0x78
)

// formatBatch marks a transfer whose data sections are messages themselves.
const formatBatch = 0x80013700

// messageOverhead is what a stored message is charged beyond its own bytes, so that empty
// messages fill an entity too.
const messageOverhead = 256

// payload is what a sender sent. It is never changed, so that all subscriptions share one.
type payload struct {
	durable     bool
	priority    uint8
	hasPriority bool
	ttl         uint32 // ms
	hasTTL      bool
	due         time.Time // when it is to be enqueued; zero: at once

	// annotations are the sender's, as map elements, annotationCount keys and values in all.
	annotations     []byte
	annotationCount int

	// tail is everything from the properties on as the sender encoded it, so that receivers get
	// the sender's own types: properties up to applicationAt, application-properties up to
	// bodyAt, then body and footer.
	tail          []byte
	applicationAt int
	bodyAt        int
}

func (p *payload) size() int64 {
	return int64(len(p.tail) + len(p.annotations) + messageOverhead)
}

// parsePayload checks a message and copies what is kept of it.
func parsePayload(raw []byte) (*payload, error) {
	p := &payload{}
	var properties, application, body []byte
	c := cursor{b: raw}
	last := uint64(0)
	for len(c.b) > 0 {
		rest := c.b
		section := c.descriptor()
		at := c.b
		value := c.raw()
		if c.err != nil {
			return nil, c.err
		}
		if err := checkOrder(last, section); err != nil {
			return nil, err
		}
		last = section
		whole := rest[:len(rest)-len(c.b)]
		var err error
		switch section {
		case sectionHeader:
			err = p.readHeader(value)
		case sectionMessageAnnotations:
			p.readAnnotations(value)
		case sectionProperties:
			properties, err = checkProperties(whole, at)
		case sectionApplication:
			application = whole
			err = checkTextKeys(value)
		case sectionData, sectionSequence, sectionValue, sectionFooter:
			err = checkBody(section, value)
			if body == nil {
				body = rest // body and footer end the message
			}
		}
		if err != nil {
			return nil, err
		}
	}
	if properties == nil {
		properties = withMessageID(nil)
	}
	p.tail = make([]byte, 0, len(properties)+len(application)+len(body))
	p.tail = append(p.tail, properties...)
	p.applicationAt = len(p.tail)
	p.tail = append(p.tail, application...)
	p.bodyAt = len(p.tail)
	p.tail = append(p.tail, body...)
	return p, nil
}

func checkOrder(last, section uint64) error {
	switch {
	case section < sectionHeader || section > sectionFooter:
		return fmt.Errorf("unknown message section %#x", section)
	case section == last && (section == sectionData || section == sectionSequence):
		return nil
	case section <= last:
		return errors.New("message sections out of order")
	case last >= sectionData && section <= sectionValue:
		return errors.New("message with two kinds of body")
	}
	return nil
}

func checkBody(section uint64, value []byte) error {
	c := cursor{b: value}
	switch section {
	case sectionData:
		if t := c.token(); t.ctor != ctorBinary8 && t.ctor != ctorBinary32 {
			return errors.New("data section is not binary")
		}
	case sectionSequence:
		if f := c.fields(); f.err != nil {
			return f.err
		}
	case sectionFooter:
		if t := c.token(); t.ctor != ctorMap8 && t.ctor != ctorMap32 {
			return errors.New("footer is not a map")
		}
	}
	return nil
}

func (p *payload) readHeader(value []byte) error {
	c := cursor{b: value}
	f := c.fields()
	p.durable = f.bool()
	p.priority, p.hasPriority = f.ubyte()
	p.ttl, p.hasTTL = f.uint()
	return f.err
}

// annotationTypes are those that the client takes in one type only and otherwise panics.
// What the bus writes itself has none: it is dropped from what a sender sends.
var annotationTypes = map[string]func(ctor byte) bool{
	"x-opt-sequence-number":         func(byte) bool { return false },
	"x-opt-enqueued-time":           func(byte) bool { return false },
	"x-opt-locked-until":            func(byte) bool { return false },
	"x-opt-enqueue-sequence-number": func(byte) bool { return false },
	"x-opt-message-state":           func(byte) bool { return false },
	"x-opt-partition-key":           isTextOrNull,
	"x-opt-deadletter-source":       isTextOrNull,
	"x-opt-scheduled-enqueue-time":  func(c byte) bool { return c == ctorTimestamp },
}

func isTextOrNull(ctor byte) bool {
	return ctor == ctorString8 || ctor == ctorString32 || ctor == ctorNull
}

func (p *payload) readAnnotations(value []byte) {
	for _, a := range decodePairs(value) {
		if a.key == "x-opt-scheduled-enqueue-time" && a.value[0] == ctorTimestamp {
			p.due = time.UnixMilli(int64(binary.BigEndian.Uint64(a.value[1:])))
		}
		if allowed, known := annotationTypes[a.key]; known && !allowed(a.value[0]) {
			continue
		}
		p.annotations = append(appendSymbol(p.annotations, a.key), a.value...)
		p.annotationCount += 2
	}
}

// propertyTypes are the constructors of the properties section's fields, part 3.2.4: a client
// that is given another type drops its connection.
var propertyTypes = [...]string{
	"\x44\x53\x80\x98\xa0\xb0\xa1\xb1", // message-id
	"\xa0\xb0",                         // user-id
	"\xa1\xb1",                         // to
	"\xa1\xb1",                         // subject
	"\xa1\xb1",                         // reply-to
	"\x44\x53\x80\x98\xa0\xb0\xa1\xb1", // correlation-id
	"\xa3\xb3",                         // content-type
	"\xa3\xb3",                         // content-encoding
	"\x83",                             // absolute-expiry-time
	"\x83",                             // creation-time
	"\xa1\xb1",                         // group-id
	"\x43\x52\x70",                     // group-sequence
	"\xa1\xb1",                         // reply-to-group-id
}

// checkProperties gives the section, with a message id if the sender gave none.
func checkProperties(whole, value []byte) ([]byte, error) {
	c := cursor{b: value}
	f := c.fields()
	if f.left > len(propertyTypes) {
		return nil, errors.New("too many properties")
	}
	rest := f
	anonymous := true
	for i := 0; f.left > 0; i++ {
		t, ok := f.next()
		if !ok {
			continue
		}
		known := false
		for j := range len(propertyTypes[i]) {
			known = known || propertyTypes[i][j] == t.ctor
		}
		if !known {
			return nil, fmt.Errorf("constructor %#02x in property %d", t.ctor, i)
		}
		anonymous = anonymous && i != 0
	}
	if f.err != nil {
		return nil, f.err
	}
	if !anonymous {
		return whole, nil
	}
	return withMessageID(&rest), nil
}

// withMessageID writes a properties section with a fresh id in front of the given others.
func withMessageID(f *fields) []byte {
	var id [16]byte
	rand.Read(id[:])
	b, mark := openDescribed(nil, sectionProperties)
	b = appendString(b, hex.EncodeToString(id[:]))
	n := 1
	if f != nil {
		n = max(f.left, 1)
		f.value() // the null in its place
		b = append(b, f.b...)
	}
	return closeCompound(b, mark, n)
}

func checkTextKeys(value []byte) error {
	c := cursor{b: value}
	t := c.token()
	if t.ctor != ctorMap8 && t.ctor != ctorMap32 {
		return errors.New("application-properties are not a map")
	}
	in := cursor{b: t.data}
	for range t.count / 2 {
		if k := in.token(); k.ctor != ctorString8 && k.ctor != ctorString32 {
			return errors.New("application-property with a key that is no string")
		}
		in.skip()
	}
	return nil
}

// parseBatch gives the messages within a transfer of formatBatch.
func parseBatch(raw []byte) (batch []*payload, err error) {
	c := cursor{b: raw}
	for len(c.b) > 0 {
		section := c.descriptor()
		value := c.raw()
		if c.err != nil {
			return nil, c.err
		}
		if section != sectionData {
			continue // the first message's sections, repeated for brokers that partition
		}
		in := cursor{b: value}
		t := in.token()
		if t.ctor != ctorBinary8 && t.ctor != ctorBinary32 {
			return nil, errors.New("data section is not binary")
		}
		p, err := parsePayload(t.data)
		if err != nil {
			return nil, fmt.Errorf("message %d of a batch: %w", len(batch), err)
		}
		batch = append(batch, p)
	}
	return batch, nil
}

// merged is p with application-properties added or replaced.
func (p *payload) merged(changes []pair) *payload {
	if len(changes) == 0 {
		return p
	}
	var pairs []pair
	if p.applicationAt < p.bodyAt {
		c := cursor{b: p.tail[p.applicationAt:p.bodyAt]}
		c.descriptor()
		pairs = decodePairs(c.b)
	}
	for _, change := range changes {
		at := len(pairs)
		for i := range pairs {
			if pairs[i].key == change.key {
				at = i
			}
		}
		if at == len(pairs) {
			pairs = append(pairs, pair{})
		}
		pairs[at] = change
	}
	q := *p
	q.tail = append([]byte(nil), p.tail[:p.applicationAt]...)
	q.tail = append(q.tail, ctorDescribed, ctorSmallUlong, sectionApplication)
	var mark int
	q.tail, mark = openCompound(q.tail, ctorMap32)
	for _, kv := range pairs {
		q.tail = append(appendString(q.tail, kv.key), kv.value...)
	}
	q.tail = closeCompound(q.tail, mark, 2*len(pairs))
	q.bodyAt = len(q.tail)
	q.tail = append(q.tail, p.tail[p.bodyAt:]...)
	return &q
}

// lockToken is a lock's name as the client reads it from a delivery tag.
type lockToken [16]byte

// swapped turns the memory order of a .NET Guid, which a delivery tag has, into that of
// RFC 4122, which management requests have, and back.
func (t lockToken) swapped() lockToken {
	t[0], t[1], t[2], t[3] = t[3], t[2], t[1], t[0]
	t[4], t[5] = t[5], t[4]
	t[6], t[7] = t[7], t[6]
	return t
}

// delivery is a message as it stood when it was handed out: safe to read without its store.
type delivery struct {
	message    *message
	payload    *payload
	sequence   int64
	topicSeq   int64
	enqueued   time.Time
	count      uint32
	deferred   bool
	lock       uint64
	token      lockToken
	until      time.Time // when the lock ends; zero without one
	tokenInMap bool      // say the lock token in a delivery annotation: there is no tag
}

// append encodes the message for a receiver.
func (d *delivery) append(b []byte) []byte {
	p := d.payload
	b, mark := openDescribed(b, sectionHeader)
	b = appendBool(b, p.durable)
	if p.hasPriority {
		b = appendUbyte(b, p.priority)
	} else {
		b = append(b, ctorNull)
	}
	if p.hasTTL {
		b = appendUint(b, p.ttl)
	} else {
		b = append(b, ctorNull)
	}
	b = append(b, ctorNull) // first-acquirer
	b = appendUint(b, d.count)
	b = closeCompound(b, mark, 5)

	if d.tokenInMap {
		b = append(b, ctorDescribed, ctorSmallUlong, sectionDeliveryAnnotations)
		b, mark = openCompound(b, ctorMap32)
		b = appendSymbol(b, "x-opt-lock-token")
		b = appendUUID(b, d.token.swapped())
		b = closeCompound(b, mark, 2)
	}

	b = append(b, ctorDescribed, ctorSmallUlong, sectionMessageAnnotations)
	b, mark = openCompound(b, ctorMap32)
	b = append(b, p.annotations...)
	n := p.annotationCount + 6
	b = appendLong(appendSymbol(b, "x-opt-sequence-number"), d.sequence)
	b = appendTimestamp(appendSymbol(b, "x-opt-enqueued-time"), d.enqueued)
	b = appendLong(appendSymbol(b, "x-opt-enqueue-sequence-number"), d.topicSeq)
	if !d.until.IsZero() {
		b = appendTimestamp(appendSymbol(b, "x-opt-locked-until"), d.until)
		n += 2
	}
	if d.deferred {
		b = appendInt(appendSymbol(b, "x-opt-message-state"), 1)
		n += 2
	}
	b = closeCompound(b, mark, n)
	return append(b, p.tail...)
}

func (t *lockToken) set(prefix [8]byte, lock uint64) {
	copy(t[:8], prefix[:])
	binary.BigEndian.PutUint64(t[8:], lock)
}

func (t lockToken) split() (prefix [8]byte, lock uint64) {
	return [8]byte(t[:8]), binary.BigEndian.Uint64(t[8:])
}
