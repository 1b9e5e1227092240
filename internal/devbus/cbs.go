package devbus

import (
	"strings"
	"time"
)

// tokens is the $cbs node: clients put a token there for each entity before they attach to it,
// and learn there whether the entity exists.
type tokens struct{}

func (tokens) serve(c *conn, r request) reply {
	if op := r.operation(); op != "put-token" {
		return reply{status: 400, description: "unknown operation"}
	}
	if status := c.bus.faults.tokenStatus(); status != 0 {
		return reply{status: status, description: "as told"}
	}
	audience, _ := r.ApplicationProperties["name"].(string)
	n, p := c.bus.find(strings.TrimSuffix(canonical(audience), managementSuffix))
	if p != nil {
		return reply{status: 404, description: p.description, condition: p.condition}
	}
	op := Operation{Entity: n.name, Name: r.operation()}
	if !c.bus.open() {
		token, _ := r.Value.(string)
		g, err := c.bus.authorize(token, audience, n, time.Now())
		if err != nil {
			op.Refused = true
			c.bus.operations.note(op)
			return reply{status: 401, description: err.Error(), condition: "amqp:unauthorized-access"}
		}
		op.Rule = g.rule
		c.granted[n] = g
	}
	c.bus.operations.note(op)
	return reply{status: 202, description: "Accepted"}
}
