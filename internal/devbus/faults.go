package devbus

import (
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Faults makes a bus fail as the real service does, for tests of those who must cope. Entities
// are named as in Stats, and "" means every one. Counts are of the next so many, per name given;
// 0 ends it. Conditions are AMQP's, such as "com.microsoft:server-busy", and "" ends it. A name
// that does not exist panics: else a slip of the pen would be a test that proves nothing.
type Faults struct {
	bus    *Bus
	refuse atomic.Bool
	armed  atomic.Bool // anything in plans: spares the rest a mutex
	skew   atomic.Int64

	mu      sync.Mutex
	plans   map[string]*plan // by lower-case entity
	tokens  int32            // status of put-token; 0: the true one
	stalled chan struct{}    // closed by Resume; nil: not stalled
}

// plan is what shall go wrong at one entity.
type plan struct {
	refuseLinks     string
	sends           countdown
	settlements     countdown
	management      countdown
	status          int32 // of the management requests counted down
	loseSends       countdown
	loseSettlements countdown
	duplicate       countdown
}

type countdown struct {
	left      int
	condition string
}

func (c *countdown) take() bool {
	if c.left == 0 {
		return false
	}
	c.left--
	return true
}

// Faults is where tests say what shall go wrong.
func (b *Bus) Faults() *Faults { return &b.faults }

func (f *Faults) plan(entity string, change func(*plan)) {
	f.named(entity)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.plans == nil {
		f.plans = make(map[string]*plan)
	}
	key := canonical(entity)
	if f.plans[key] == nil {
		f.plans[key] = &plan{}
	}
	change(f.plans[key])
	f.armed.Store(true)
}

// named gives the entity, or nil for "".
func (f *Faults) named(entity string) *node {
	if entity == "" {
		return nil
	}
	n, p := f.bus.find(entity)
	if p != nil {
		panic("devbus: " + p.description)
	}
	return n
}

// each calls look with the plans that hold for an entity until one has hit.
func (f *Faults) each(entity string, look func(*plan) bool) {
	if !f.armed.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range []string{strings.ToLower(entity), ""} {
		if p := f.plans[key]; p != nil && look(p) {
			return
		}
	}
}

// RefuseConnections closes new connections at once while on is true.
func (f *Faults) RefuseConnections(on bool) { f.refuse.Store(on) }

func (f *Faults) refusing() bool { return f.refuse.Load() }

// RefuseTokens answers put-token with an HTTP status such as 401 or 503; 0 ends it.
func (f *Faults) RefuseTokens(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens = int32(status)
}

func (f *Faults) tokenStatus() int32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tokens
}

// SkewClock sets the clock by which messages are enqueued, and that of Management, so far ahead of ours.
func (f *Faults) SkewClock(ahead time.Duration) { f.skew.Store(int64(ahead)) }

func (f *Faults) now() time.Time { return time.Now().Add(time.Duration(f.skew.Load())) }

// RefuseLinks refuses every attach to the entity or its management.
func (f *Faults) RefuseLinks(entity, condition string) {
	f.plan(entity, func(p *plan) { p.refuseLinks = condition })
}

func (f *Faults) refuseLink(entity string) (p *problem) {
	f.each(entity, func(pl *plan) bool {
		if pl.refuseLinks != "" {
			p = told(pl.refuseLinks)
		}
		return p != nil
	})
	return p
}

func told(condition string) *problem { return &problem{condition, "as told"} }

// RejectSends rejects sends to a queue or topic and stores nothing.
func (f *Faults) RejectSends(entity string, n int, condition string) {
	f.plan(entity, func(p *plan) { p.sends = countdown{n, condition} })
}

func (f *Faults) rejectSend(entity string) *problem {
	return f.rejection(entity, func(p *plan) *countdown { return &p.sends })
}

// RejectSettlements rejects settlements of an entity's messages, which stay locked.
func (f *Faults) RejectSettlements(entity string, n int, condition string) {
	f.plan(entity, func(p *plan) { p.settlements = countdown{n, condition} })
}

func (f *Faults) rejectSettlement(entity string) *problem {
	return f.rejection(entity, func(p *plan) *countdown { return &p.settlements })
}

func (f *Faults) rejection(entity string, which func(*plan) *countdown) (p *problem) {
	f.each(entity, func(pl *plan) bool {
		c := which(pl)
		if c.take() {
			p = told(c.condition)
		}
		return p != nil
	})
	return p
}

// LoseSendConfirmations stores messages without saying so: the sender waits until its context
// ends.
func (f *Faults) LoseSendConfirmations(entity string, n int) {
	f.plan(entity, func(p *plan) { p.loseSends = countdown{left: n} })
}

func (f *Faults) loseSend(entity string) bool {
	return f.hit(entity, func(p *plan) *countdown { return &p.loseSends })
}

// LoseSettlementConfirmations settles without saying so. Settlements by management request are
// always answered.
func (f *Faults) LoseSettlementConfirmations(entity string, n int) {
	f.plan(entity, func(p *plan) { p.loseSettlements = countdown{left: n} })
}

func (f *Faults) loseSettlement(entity string) bool {
	return f.hit(entity, func(p *plan) *countdown { return &p.loseSettlements })
}

func (f *Faults) hit(entity string, which func(*plan) *countdown) (hit bool) {
	f.each(entity, func(p *plan) bool {
		hit = which(p).take()
		return hit
	})
	return hit
}

// AnswerManagement answers management requests with an HTTP status and does nothing else.
func (f *Faults) AnswerManagement(entity string, n, status int) {
	f.plan(entity, func(p *plan) { p.management, p.status = countdown{left: n}, int32(status) })
}

func (f *Faults) managementStatus(entity string) (status int32) {
	f.each(entity, func(p *plan) bool {
		if p.management.take() {
			status = p.status
		}
		return status != 0
	})
	return status
}

// Duplicate stores the next n messages sent to a queue or topic twice, as when a sender that
// missed its confirmation sends again.
func (f *Faults) Duplicate(entity string, n int) {
	f.plan(entity, func(p *plan) { p.duplicate = countdown{left: n} })
}

func (f *Faults) duplicated(entity string, batch []*payload) []*payload {
	f.each(entity, func(p *plan) bool {
		var more []*payload
		for _, m := range batch {
			more = append(more, m)
			if p.duplicate.take() {
				more = append(more, m)
			}
		}
		hit := len(more) > len(batch)
		batch = more
		return hit
	})
	return batch
}

// DetachLinks detaches the links that are attached to an entity now, not those to its management,
// and says how many there were.
func (f *Faults) DetachLinks(entity, condition string) (n int) {
	only := f.named(entity)
	f.tell(func(c *conn) {
		for _, s := range c.sessions {
			for _, l := range s.links {
				e := l.common()
				if e.gone || e.node == nil || only != nil && e.node != only {
					continue
				}
				s.detachWith(l, told(condition))
				n++
			}
		}
	})
	return n
}

// EndSessions ends every session.
func (f *Faults) EndSessions(condition string) {
	f.tell(func(c *conn) {
		for _, s := range c.sessions {
			if !s.ended {
				s.endWith(told(condition))
			}
		}
	})
}

// CloseConnections ends every connection with a condition; DropConnections does it without.
func (f *Faults) CloseConnections(condition string) {
	for _, c := range f.bus.connections() {
		c.end(told(condition))
	}
}

// tell calls do for each connection that is in a state to be told something.
func (f *Faults) tell(do func(*conn)) {
	for _, c := range f.bus.connections() {
		c.mu.Lock()
		if !c.closing {
			do(c)
		}
		c.mu.Unlock()
		c.kick()
	}
}

// stores calls do for each store of an entity, locked. A topic's are those of its subscriptions.
func (f *Faults) stores(entity string, do func(*store)) {
	nodes := f.bus.nodes
	if n := f.named(entity); n != nil {
		nodes = map[string]*node{entity: n}
	}
	for _, n := range nodes {
		stores := []*store{n.store}
		if n.store == nil {
			stores = n.inbox.stores
		}
		for _, s := range stores {
			s.mu.Lock()
			do(s)
			s.mu.Unlock()
		}
	}
}

// ExpireLocks ends all locks on an entity's messages now, each counted as a failed delivery, and
// says how many there were.
func (f *Faults) ExpireLocks(entity string) (n int) {
	f.stores(entity, func(s *store) {
		n += s.endLocks(func(*message) bool { return true })
	})
	return n
}

// Activate enqueues what is scheduled at a queue or topic now, as if its time had come, and says how
// many that were.
func (f *Faults) Activate(entity string) (n int) {
	only := f.named(entity)
	for _, node := range f.bus.nodes {
		if node.inbox != nil && (only == nil || only == node) {
			n += node.inbox.activate(time.UnixMilli(math.MaxInt64)) // the last that AMQP can write
		}
	}
	return n
}

// Hold keeps back an entity's deliveries until Release.
func (f *Faults) Hold(entity string) {
	f.stores(entity, func(s *store) { s.held = true })
}

// Release delivers what Hold kept back, in another order: permute is given a number n and
// returns the numbers 0 to n-1 in any order, as rand.Perm does. Nil keeps the order.
func (f *Faults) Release(entity string, permute func(n int) []int) {
	f.stores(entity, func(s *store) {
		if permute != nil && s.held { // with all entities, a subscription comes twice
			s.reorder(permute)
		}
		s.held = false
		s.wake()
	})
}

// Reversed is a permutation for Release: last in, first out.
func Reversed(n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = n - 1 - i
	}
	return order
}

// reorder deals the active messages' ranks out anew.
func (s *store) reorder(permute func(int) []int) {
	slices.SortFunc(s.active, func(a, b *message) int { return int(a.rank - b.rank) })
	ranks := make([]int64, len(s.active))
	for i, m := range s.active {
		ranks[i] = m.rank
	}
	old := slices.Clone(s.active)
	for place, i := range permute(len(old)) {
		s.active[place] = old[i]
		s.active[place].rank = ranks[place]
	}
}

// Stall keeps connections open but silent until Resume: nothing is sent to any client.
func (f *Faults) Stall() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled == nil {
		f.stalled = make(chan struct{})
	}
}

// Resume ends Stall: what was due meanwhile is sent.
func (f *Faults) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stalled != nil {
		close(f.stalled)
		f.stalled = nil
	}
}

// waitWhileStalled holds a connection's writer back, though not beyond the connection's end.
func (f *Faults) waitWhileStalled(c *conn) {
	f.mu.Lock()
	stalled := f.stalled
	f.mu.Unlock()
	if stalled == nil {
		return
	}
	select {
	case <-stalled:
	case <-c.dead:
	}
}
