package devbus

import (
	"strings"

	"github.com/Azure/go-amqp"
)

// service answers the requests that come over a pair of links: token negotiation ($cbs) or an
// entity's management.
type service interface {
	serve(c *conn, r request) reply
}

// request is a message to a service.
type request struct {
	*amqp.Message
	value []byte // the body's bytes, for what go-amqp's Message would lose
}

func (r request) operation() string {
	op, _ := r.ApplicationProperties["operation"].(string)
	return op
}

// reply is the answer. Services differ in how they spell the names of its status.
type reply struct {
	status      int32
	description string
	condition   string
	body        map[string]any
}

// canonical is the form in which addresses are compared. Clients write them in any case, and
// some as whole URLs.
func canonical(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		_, address, _ = strings.Cut(rest, "/")
	}
	return strings.ToLower(strings.Trim(address, "/"))
}

const managementSuffix = "/$management"

// resolve gives what is at an address: a service, or an entity that messages go to or come from.
func (c *conn) resolve(address string) (service, *node, *problem) {
	name := canonical(address)
	if name == "$cbs" {
		return tokens{}, nil, nil
	}
	entity, managed := strings.CutSuffix(name, managementSuffix)
	n, p := c.bus.find(entity)
	if p == nil {
		p = c.bus.faults.refuseLink(n.name)
	}
	if p == nil && c.grant(n).rights == 0 {
		p = problemf("amqp:unauthorized-access", "Unauthorized access. A token for '%s' is required.", n.name)
	}
	switch {
	case p != nil:
		return nil, nil, p
	case managed:
		return management{n}, nil, nil
	}
	return nil, n, nil
}

// request answers one request. The peer's requests are accepted even where the answer says no.
func (l *inLink) request(raw []byte) *problem {
	r := request{Message: &amqp.Message{}}
	for c := (cursor{b: raw}); len(c.b) > 0; {
		section := c.descriptor()
		value := c.raw()
		if c.err != nil {
			return problemf("amqp:decode-error", "%v", c.err)
		}
		if section == sectionValue {
			r.value = value
		}
	}
	if err := r.UnmarshalBinary(raw); err != nil {
		return problemf("amqp:decode-error", "%v", err)
	}
	if r.Properties == nil || r.Properties.ReplyTo == nil {
		return problemf("amqp:not-allowed", "request without a reply-to")
	}
	to := l.replyLink(*r.Properties.ReplyTo)
	if to == nil {
		return problemf("amqp:not-found", "no link for the answer")
	}
	answer := l.service.serve(l.session.conn, r)
	encoded, err := answer.encode(l.service, r.Properties.MessageID)
	if err != nil {
		return problemf("amqp:internal-error", "%v", err)
	}
	if len(to.replies) >= maxReplies || to.queued+len(encoded) > maxReplyQueued {
		return problemf("amqp:resource-limit-exceeded", "too many answers wait for credit")
	}
	to.replies = append(to.replies, encoded)
	to.queued += len(encoded)
	l.session.conn.kick()
	return nil
}

// replyLink finds the link that an answer goes to. The Go client means a link's target address
// by its reply-to, the JavaScript one means its name for $cbs.
func (l *inLink) replyLink(replyTo string) *outLink {
	var byName, bySession *outLink
	for _, o := range l.session.conn.outLinks {
		switch {
		case o.store != nil:
		case o.target == replyTo:
			return o
		case o.name == replyTo:
			byName = o
		case o.session == l.session:
			bySession = o
		}
	}
	if byName != nil {
		return byName
	}
	return bySession
}

func (a reply) encode(s service, correlation any) ([]byte, error) {
	m := amqp.Message{
		Properties: &amqp.MessageProperties{CorrelationID: correlation},
		Value:      a.body,
	}
	if a.body == nil {
		m.Value = map[string]any{} // some clients look into it unasked
	}
	if _, ok := s.(tokens); ok {
		m.ApplicationProperties = map[string]any{"status-code": a.status, "status-description": a.description}
	} else {
		m.ApplicationProperties = map[string]any{"statusCode": a.status, "statusDescription": a.description}
	}
	if a.condition != "" {
		m.ApplicationProperties["errorCondition"] = amqp.Symbol(a.condition)
	}
	return m.MarshalBinary()
}
