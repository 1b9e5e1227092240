package devbus

import (
	"crypto/rand"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

type messageState uint8

const (
	stateActive messageState = iota
	stateLocked
	stateDeferred
	stateGone
)

// message is one entry of a store and guarded by that store's mutex.
type message struct {
	payload  *payload
	sequence int64
	topicSeq int64 // sequence number at the topic, or the entity's own
	rank     int64 // the order of delivery: the sequence number, unless a test changed it
	enqueued time.Time
	count    uint32 // deliveries that failed
	state    messageState
	deferred bool // goes back to deferred, not to active, when its lock ends

	lock       uint64 // 0: not locked
	until      time.Time
	prev, next *message // neighbours in the order in which locks end
}

// store holds the messages of one queue, subscription or dead-letter queue.
//
// Locks last equally long, so that the list of locked messages in order of locking is also the
// order in which locks end: one timer per store, no cost per message.
type store struct {
	name         string
	lockDuration time.Duration
	maxDelivery  uint32
	dead         *store        // nil: this is a dead-letter queue itself
	budget       *atomic.Int64 // bytes left, shared with the dead-letter queue
	prefix       [8]byte       // first half of every lock token given out here

	mu        sync.Mutex
	sequence  int64
	all       []*message // by sequence number, gone ones among them
	gone      int        // in all
	active    rankHeap
	locks     map[uint64]*message
	lastLock  uint64
	locked    message // sentinel of the ring of locked messages
	deferred  int
	held      bool // deliver nothing for now
	closed    bool
	timer     *time.Timer // set while there are locks
	consumers map[*outLink]struct{}
	counts    Stats
}

func newStore(name string, lock time.Duration, maxDelivery int, budget *atomic.Int64, dead *store) *store {
	s := &store{
		name: name, lockDuration: lock, maxDelivery: uint32(maxDelivery), dead: dead, budget: budget,
		locks: make(map[uint64]*message), consumers: make(map[*outLink]struct{}),
	}
	rand.Read(s.prefix[:])
	s.locked.prev, s.locked.next = &s.locked, &s.locked
	return s
}

// close stops the timer: nothing expires any more.
func (s *store) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

// enqueue adds messages that the budget has been charged for. topicSeq is the first one's number
// at its topic; 0 when there is none.
func (s *store) enqueue(batch []*payload, topicSeq int64, now time.Time) {
	s.mu.Lock()
	for i, p := range batch {
		s.sequence++
		m := &message{payload: p, sequence: s.sequence, topicSeq: s.sequence, rank: s.sequence, enqueued: now}
		if topicSeq != 0 {
			m.topicSeq = topicSeq + int64(i)
		}
		s.all = append(s.all, m)
		s.active.push(m)
	}
	s.counts.TotalEnqueued += int64(len(batch))
	s.wake()
	s.mu.Unlock()
}

// adopt takes a message over from the queue whose dead letters are kept here. It keeps its
// sequence number and the time it was enqueued.
func (s *store) adopt(m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.state, m.deferred = stateActive, false
	at := len(s.all)
	if at > 0 && s.all[at-1].sequence >= m.sequence {
		at = s.search(m.sequence)
	}
	s.all = slices.Insert(s.all, at, m)
	s.active.push(m)
	s.counts.TotalEnqueued++
	s.wake()
}

// search gives the index of the first message numbered n or higher.
func (s *store) search(n int64) int {
	return sort.Search(len(s.all), func(i int) bool { return s.all[i].sequence >= n })
}

// wake tells the links that found nothing the last time. It never blocks.
func (s *store) wake() {
	for l := range s.consumers {
		if l.hungry.Swap(false) {
			l.session.conn.kick()
		}
	}
}

func (s *store) attach(l *outLink) {
	s.mu.Lock()
	s.consumers[l] = struct{}{}
	s.mu.Unlock()
}

func (s *store) detach(l *outLink) {
	s.mu.Lock()
	delete(s.consumers, l)
	s.mu.Unlock()
}

// take hands out up to n messages, locked, or with remove for good.
func (s *store) take(to []delivery, n int, remove bool) []delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		return to
	}
	now := time.Now()
	for ; n > 0 && len(s.active) > 0; n-- {
		to = append(to, s.hand(s.active.pop(), remove, now))
	}
	return to
}

// hand gives out one message that is in none of the lists.
func (s *store) hand(m *message, remove bool, now time.Time) delivery {
	d := m.snapshot()
	if remove {
		s.remove(m)
		s.counts.Completed++
		return d
	}
	s.lastLock++
	m.state, m.lock = stateLocked, s.lastLock
	s.locks[m.lock] = m
	s.extend(m, now)
	d.lock, d.until = m.lock, m.until
	d.token.set(s.prefix, m.lock)
	return d
}

func (m *message) snapshot() delivery {
	return delivery{
		message: m, payload: m.payload, sequence: m.sequence, topicSeq: m.topicSeq,
		enqueued: m.enqueued, count: m.count, deferred: m.deferred || m.state == stateDeferred,
	}
}

// extend puts the message's lock at the end of those that run.
func (s *store) extend(m *message, now time.Time) {
	m.unlink()
	m.until = now.Add(s.lockDuration)
	last := s.locked.prev
	m.prev, m.next = last, &s.locked
	last.next, s.locked.prev = m, m
	if s.timer == nil && !s.closed {
		s.timer = time.AfterFunc(s.lockDuration, s.expire)
	}
}

func (m *message) unlink() {
	if m.next != nil {
		m.prev.next, m.next.prev = m.next, m.prev
		m.prev, m.next = nil, nil
	}
}

// expire ends the locks whose time is up and sleeps until the next one's.
func (s *store) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = nil
	if s.closed {
		return
	}
	now := time.Now()
	s.endLocks(func(m *message) bool { return !m.until.After(now) })
	if first := s.locked.next; first != &s.locked {
		s.timer = time.AfterFunc(first.until.Sub(now), s.expire)
	}
}

// endLocks ends locks from the oldest on while due says so.
func (s *store) endLocks(due func(*message) bool) (ended int) {
	for m := s.locked.next; m != &s.locked && due(m); m = s.locked.next {
		s.unlock(m)
		s.putBack(m, true)
		s.counts.LocksExpired++
		ended++
	}
	s.wake()
	return ended
}

func (s *store) unlock(m *message) {
	delete(s.locks, m.lock)
	m.unlink()
	m.lock = 0
}

// putBack makes a message that was unlocked available where it was before. A failed delivery
// counts, though never in a dead-letter queue.
func (s *store) putBack(m *message, failed bool) {
	if failed && s.dead != nil {
		m.count++
		if m.count >= s.maxDelivery {
			s.bury(m, "MaxDeliveryCountExceeded",
				"Message could not be consumed after the maximum number of delivery attempts.")
			return
		}
	}
	if m.deferred {
		m.state = stateDeferred
		s.deferred++
		return
	}
	m.state = stateActive
	s.active.push(m)
}

// bury moves a message to the dead-letter queue.
func (s *store) bury(m *message, reason, description string) {
	s.rewrite(m, []pair{
		{"DeadLetterReason", appendString(nil, reason)},
		{"DeadLetterErrorDescription", appendString(nil, description)},
	})
	s.buryAsIs(m)
}

func (s *store) buryAsIs(m *message) {
	s.counts.TotalDeadLettered++
	moved := *m
	moved.prev, moved.next, moved.rank = nil, nil, m.sequence
	s.budget.Add(-m.payload.size()) // remove gives it back
	s.remove(m)
	s.dead.adopt(&moved)
}

func (s *store) rewrite(m *message, changes []pair) {
	before := m.payload.size()
	m.payload = m.payload.merged(changes)
	s.budget.Add(before - m.payload.size())
}

// remove forgets a message that is in none of the lists any more.
func (s *store) remove(m *message) {
	s.budget.Add(m.payload.size())
	m.state, m.payload = stateGone, nil
	s.gone++
	if s.gone > 64 && s.gone > len(s.all)/2 {
		s.all = slices.DeleteFunc(s.all, func(m *message) bool { return m.state == stateGone })
		s.gone = 0
	}
}

// settlement is what a receiver decided about a message.
type settlement struct {
	kind    settlementKind
	changes []pair // to the application-properties
}

type settlementKind uint8

const (
	settleComplete settlementKind = iota
	settleAbandon
	settleRelease
	settleDefer
	settleDeadLetter
)

var errLockLost = &problem{
	condition: "com.microsoft:message-lock-lost",
	description: "The lock supplied is invalid. Either the lock expired, or the message has already been " +
		"removed from the queue.",
}

// settle ends the lock that a delivery gave.
func (s *store) settle(m *message, lock uint64, to settlement) *problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.lock != lock || !m.until.After(time.Now()) {
		return errLockLost
	}
	return s.finish(m, to)
}

// settleToken is settle by the lock's name: it needs no link and outlives connections.
func (s *store) settleToken(token lockToken, to settlement) *problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.byToken(token)
	if m == nil {
		return errLockLost
	}
	return s.finish(m, to)
}

// renew prolongs a lock and says until when.
func (s *store) renew(token lockToken) (time.Time, *problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.byToken(token)
	if m == nil {
		return time.Time{}, errLockLost
	}
	s.extend(m, time.Now())
	return m.until, nil
}

func (s *store) byToken(token lockToken) *message {
	prefix, lock := token.split()
	m := s.locks[lock]
	if prefix != s.prefix || m == nil || !m.until.After(time.Now()) {
		return nil
	}
	return m
}

func (s *store) finish(m *message, to settlement) *problem {
	if to.kind == settleDeadLetter && s.dead == nil {
		return problemf("amqp:not-allowed", "a message of a dead-letter queue cannot be dead-lettered")
	}
	if changed := m.payload.merged(to.changes); changed.size()-m.payload.size() > max(s.budget.Load(), 0) {
		return errFull(s.name)
	}
	s.unlock(m)
	s.rewrite(m, to.changes)
	switch to.kind {
	case settleComplete:
		s.remove(m)
		s.counts.Completed++
	case settleAbandon:
		s.counts.Abandoned++
		s.putBack(m, true)
	case settleRelease:
		s.putBack(m, false)
	case settleDefer:
		m.deferred = true
		s.putBack(m, false)
	case settleDeadLetter:
		s.buryAsIs(m)
	}
	s.wake()
	return nil
}

// peek gives up to n messages from a sequence number on, whatever their state.
func (s *store) peek(from int64, n int) (found []delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := s.search(from); i < len(s.all) && len(found) < n; i++ {
		if m := s.all[i]; m.state != stateGone {
			found = append(found, m.snapshot())
		}
	}
	return found
}

// takeDeferred hands out deferred messages by their sequence numbers: all of them or none.
func (s *store) takeDeferred(numbers []int64, remove bool) ([]delivery, *problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*message
	for _, n := range numbers {
		i := s.search(n)
		for i < len(s.all) && s.all[i].sequence == n && s.all[i].state != stateDeferred {
			i++ // a duplicate number is possible among the gone
		}
		if i == len(s.all) || s.all[i].sequence != n || slices.Contains(found, s.all[i]) {
			return nil, problemf("com.microsoft:message-not-found", "no deferred message is numbered %d", n)
		}
		found = append(found, s.all[i])
	}
	now := time.Now()
	deliveries := make([]delivery, 0, len(found))
	for _, m := range found {
		s.deferred--
		d := s.hand(m, remove, now)
		d.tokenInMap = !remove
		deliveries = append(deliveries, d)
	}
	return deliveries, nil
}

func (s *store) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.counts
	st.Active, st.Locked, st.Deferred = len(s.active), len(s.locks), s.deferred
	if s.dead != nil {
		d := s.dead.stats()
		st.DeadLettered = d.Active + d.Locked + d.Deferred
	}
	return st
}

// rankHeap is a binary heap of messages, lowest rank first.
type rankHeap []*message

func (h *rankHeap) push(m *message) {
	q := append(*h, m)
	for i := len(q) - 1; i > 0; {
		parent := (i - 1) / 2
		if q[parent].rank <= q[i].rank {
			break
		}
		q[parent], q[i] = q[i], q[parent]
		i = parent
	}
	*h = q
}

func (h *rankHeap) pop() *message {
	q := *h
	top, last := q[0], len(q)-1
	q[0], q[last] = q[last], nil
	q = q[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= len(q) {
			break
		}
		if child+1 < len(q) && q[child+1].rank < q[child].rank {
			child++
		}
		if q[i].rank <= q[child].rank {
			break
		}
		q[i], q[child] = q[child], q[i]
		i = child
	}
	*h = q
	return top
}
