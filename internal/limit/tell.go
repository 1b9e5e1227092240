package limit

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// A Quota is what is left to somebody under a limit. The zero Quota is that of no limit.
type Quota struct {
	limit  string
	left   int
	window time.Duration // until all is there again; or, where too little is left, until there is enough
}

// Nearest is the one of two quotas of which less is left; the first if that is the same.
func Nearest(a, b Quota) Quota {
	if a.limit == "" || b.limit != "" && b.left < a.left {
		return b
	}
	return a
}

// A Policy says how much there is under a limit. The zero Policy is that of no limit.
type Policy struct {
	limit string
	rate  Rate
}

// Policy is that of all keys.
func (b *Buckets[K]) Policy() Policy {
	if b == nil {
		return Policy{}
	}
	return Policy{b.name, b.rate}
}

// Policies tell clients of limits: in RateLimit-Policy of all that they may meet, which is the same in every answer; in RateLimit of what
// is left under one of them (draft-ietf-httpapi-ratelimit-headers-11). A client that spreads what is left over the window is never
// refused. Limits have names of letters, digits and hyphens.
type Policies struct {
	field []string // nil: there are none
}

// NewPolicies returns those that are of a limit.
func NewPolicies(all ...Policy) *Policies {
	var field []byte
	for _, p := range all {
		if p.limit == "" {
			continue
		}
		if len(field) > 0 {
			field = append(field, ", "...)
		}
		field = append(append(append(field, '"'), p.limit...), `";q=`...)
		field = strconv.AppendInt(field, int64(p.rate.Burst), 10)
		// The burst is there again after so long, of which only whole seconds can be told.
		window := max(math.Ceil(float64(p.rate.Burst)/p.rate.PerSecond), 1)
		field = strconv.AppendInt(append(field, ";w="...), int64(min(window, math.MaxInt32)), 10)
	}
	if len(field) == 0 {
		return &Policies{}
	}
	return &Policies{[]string{string(field)}}
}

// Tell sets both fields of an answer, or none if there is nothing to tell.
func (p *Policies) Tell(h http.Header, q Quota) {
	if q.limit == "" || p.field == nil {
		return
	}
	var buffer [64]byte
	field := append(append(append(buffer[:0], '"'), q.limit...), `";r=`...)
	field = strconv.AppendInt(field, int64(q.left), 10)
	field = strconv.AppendInt(append(field, ";t="...), int64(math.Ceil(q.window.Seconds())), 10)
	h["Ratelimit"] = []string{string(field)}
	h["Ratelimit-Policy"] = p.field // shared by all answers: a header's values are replaced, never modified
}

// A Place is one of those of which somebody may have only so many at a time.
type Place struct {
	Limit string // which limit that is, in a word
	Of    string // who they are; of each limit apart
	Most  int
}
