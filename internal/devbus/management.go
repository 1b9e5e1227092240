package devbus

import (
	"strings"
	"time"

	"github.com/Azure/go-amqp"
)

const (
	// Bounds of what one management request gives back.
	maxPeeked     = 250
	maxPeekedSize = 4 << 20
	maxTokens     = 1024
)

// management is the $management node of an entity.
type management struct{ node *node }

func (m management) serve(c *conn, r request) reply {
	if status := c.bus.faults.managementStatus(m.node.name); status != 0 {
		return reply{status: status, description: "as told"}
	}
	body, _ := r.Value.(map[string]any)
	op, _ := strings.CutPrefix(r.operation(), "com.microsoft:")
	asked := Operation{Rule: c.grant(m.node).rule, Entity: m.node.name, Name: r.operation()}
	if p := c.may(m.node, Listen); p != nil { // none of those below takes another right
		asked.Refused = true
		c.bus.operations.note(asked)
		return reply{status: 401, description: p.description, condition: p.condition}
	}
	c.bus.operations.note(asked)
	if s := m.node.store; s != nil {
		switch op {
		case "renew-lock":
			return renewLocks(s, body)
		case "peek-message":
			return peek(s, body)
		case "receive-by-sequence-number":
			return receiveDeferred(s, body)
		case "update-disposition":
			return updateDisposition(c, s, body, r.value)
		}
	}
	// The client takes a 404 as final; it would answer others with reconnecting for a minute.
	return reply{status: 404, description: "devbus does not know this operation here: " + op}
}

func invalid(what string) reply { return reply{status: 404, description: "no valid " + what} }

func refused(p *problem) reply {
	status := int32(404)
	switch p.condition {
	case errLockLost.condition:
		status = 410
	case "amqp:resource-limit-exceeded":
		status = 403
	}
	return reply{status: status, description: p.description, condition: p.condition}
}

func renewLocks(s *store, body map[string]any) reply {
	tokens := lockTokens(body)
	if tokens == nil {
		return invalid("lock-tokens")
	}
	expirations := make([]time.Time, 0, len(tokens))
	for _, t := range tokens {
		until, p := s.renew(t)
		if p != nil {
			return refused(p)
		}
		expirations = append(expirations, until)
	}
	return reply{status: 200, description: "OK", body: map[string]any{"expirations": expirations}}
}

// updateDisposition settles by lock token. The changed properties are read from the raw body,
// where they still have their types.
func updateDisposition(c *conn, s *store, body map[string]any, raw []byte) reply {
	tokens := lockTokens(body)
	if tokens == nil {
		return invalid("lock-tokens")
	}
	var to settlement
	for _, p := range decodePairs(raw) {
		switch p.key {
		case "properties-to-modify":
			to.changes = append(to.changes, decodePairs(p.value)...)
		case "deadletter-reason":
			to.changes = append(to.changes, pair{"DeadLetterReason", p.value})
		case "deadletter-description":
			to.changes = append(to.changes, pair{"DeadLetterErrorDescription", p.value})
		}
	}
	to.changes = keepable(to.changes)
	switch status, _ := body["disposition-status"].(string); status {
	case "completed":
		to = settlement{kind: settleComplete}
	case "abandoned":
		to.kind = settleAbandon
	case "suspended":
		to.kind = settleDeadLetter
	case "defered", "deferred":
		to.kind = settleDefer
	default:
		return invalid("disposition-status")
	}
	if p := c.bus.faults.rejectSettlement(s.name); p != nil {
		return refused(p)
	}
	for _, t := range tokens {
		if p := s.settleToken(t, to); p != nil {
			return refused(p)
		}
	}
	return reply{status: 200, description: "OK"}
}

func peek(s *store, body map[string]any) reply {
	from, ok := integer(body["from-sequence-number"])
	if !ok {
		return invalid("from-sequence-number")
	}
	n, ok := integer(body["message-count"])
	if !ok || n < 1 {
		return invalid("message-count")
	}
	return listed(s.peek(from, int(min(n, maxPeeked))), 204)
}

func receiveDeferred(s *store, body map[string]any) reply {
	var numbers []int64
	switch v := body["sequence-numbers"].(type) {
	case []int64:
		numbers = v
	case []any:
		for _, e := range v {
			if n, ok := integer(e); ok {
				numbers = append(numbers, n)
			}
		}
	}
	if len(numbers) == 0 || len(numbers) > maxPeeked {
		return invalid("sequence-numbers")
	}
	mode, _ := integer(body["receiver-settle-mode"])
	found, p := s.takeDeferred(numbers, mode != settleSecond)
	if p != nil {
		return refused(p)
	}
	return listed(found, 404)
}

// listed encodes messages as far as maxPeekedSize goes; empty is the status of none.
func listed(found []delivery, empty int32) reply {
	var list []any
	size := 0
	for i := range found {
		d := &found[i]
		encoded := d.append(nil)
		if size += len(encoded); size > maxPeekedSize && i > 0 && !d.tokenInMap {
			break // a page; the rest is in the next
		}
		entry := map[string]any{"message": encoded}
		if d.tokenInMap {
			entry["lock-token"] = amqp.UUID(d.token.swapped())
		}
		list = append(list, entry)
	}
	if len(list) == 0 {
		return reply{status: empty, description: "no messages"}
	}
	return reply{status: 200, description: "OK", body: map[string]any{"messages": list}}
}

func lockTokens(body map[string]any) (tokens []lockToken) {
	switch v := body["lock-tokens"].(type) {
	case []amqp.UUID:
		for _, u := range v {
			tokens = append(tokens, lockToken(u).swapped())
		}
	case []any:
		for _, e := range v {
			if u, ok := e.(amqp.UUID); ok {
				tokens = append(tokens, lockToken(u).swapped())
			}
		}
	}
	if len(tokens) > maxTokens {
		return nil
	}
	return tokens
}

func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case int32:
		return int64(v), true
	case uint32:
		return int64(v), true
	}
	return 0, false
}
