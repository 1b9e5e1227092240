package redisstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/limit"
)

//go:embed sockets.lua
var socketsScript string

// socketsTimeout is how long Redis may take to count. Who waits for it is a client
// in its handshake, and there is an answer without Redis.
const socketsTimeout = time.Second

const (
	// socketsPause is how long Redis is left alone when it did not answer: meanwhile
	// nobody waits for it.
	socketsPause = 2 * time.Second
	// maxDue bounds how many holders are remembered who have left while Redis does
	// not answer. What it is not told ends with its lease.
	maxDue = 1 << 16
	// maxPlaces bounds how many places one socket takes.
	maxPlaces = 3
)

// SocketsOptions configure Sockets.
type SocketsOptions struct {
	// Lease is how long a replica's sockets count without being renewed, which
	// happens three times as often. Default 1 minute.
	Lease time.Duration
}

// Sockets counts the sockets of callers, and of whatever else has only so many
// places, on all replicas: a replica asks Redis before it opens one, tells it soon
// when one has closed, and renews all of its counts in intervals, so that those of
// a replica that died end with their lease. One goroutine asks for all who wait, in
// one pipeline. A socket takes all of its places, or none: what Redis has counted for
// one that is refused elsewhere is given back with the next round trip.
//
// While Redis does not answer, a replica lets in as many as there are places in
// all: for that time the limit is one of each replica. When Redis is back it is
// told what came of it.
type Sockets struct {
	store   *Store
	lease   time.Duration
	replica string // its name in Redis
	script  string // of sockets.lua, for EVALSHA
	wake    chan struct{}

	mu       sync.Mutex
	held     map[holderID]int      // guarded by mu: what this replica has, without those whose count is zero
	due      map[holderID]struct{} // guarded by mu: what Redis is to be told
	entering []*entrance           // guarded by mu: who waits, in the order in which they came
	alone    time.Time             // guarded by mu: until when Redis is not to be asked
	ended    bool                  // guarded by mu: nobody asks Redis any more

	failing bool // owned by Run: Redis did not answer the last time
}

// A holderID is a hash of who has a place, and under which limit: names have any
// length and any content, and Redis need not know them.
type holderID [16]byte

func holderIDOf(p limit.Place) holderID {
	sum := sha256.Sum256([]byte(p.Limit + "\x00" + p.Of))
	return holderID(sum[:len(holderID{})])
}

// A demand is one place that a socket is to take.
type demand struct {
	holder holderID
	most   int
	limit  string
}

// An entrance is one socket that is to be counted.
type entrance struct {
	demands []demand
	answer  chan error // has room for one
	gone    bool       // guarded by mu: nobody waits for the answer
}

// Sockets returns a counter that has counted nothing yet.
func (s *Store) Sockets(o SocketsOptions) *Sockets {
	if o.Lease == 0 {
		o.Lease = time.Minute
	}
	return &Sockets{
		store: s, lease: o.Lease, replica: rand.Text(), script: scriptName(socketsScript),
		wake: make(chan struct{}, 1),
		held: make(map[holderID]int), due: make(map[holderID]struct{}),
	}
}

// Enter counts one more socket in each of the places, three at most, and returns what
// undoes that, which does not wait. Or it returns a limit.Error when one of them has
// as many as there may be, and a status.ErrUnavailable when ctx ends before that is
// known; then it has counted nothing. Run must be running.
func (s *Sockets) Enter(ctx context.Context, places ...limit.Place) (leave func(), err error) {
	if len(places) > maxPlaces {
		return nil, fmt.Errorf("count a socket: %d places", len(places))
	}
	e := &entrance{demands: make([]demand, len(places)), answer: make(chan error, 1)}
	for i, p := range places {
		e.demands[i] = demand{holderIDOf(p), p.Most, p.Limit}
	}
	s.mu.Lock()
	if s.ended || time.Now().Before(s.alone) || s.full(e) != "" {
		err = s.enterHere(e)
		s.mu.Unlock()
	} else {
		s.entering = append(s.entering, e)
		s.mu.Unlock()
		s.nudge()
		err = s.wait(ctx, e)
	}
	if err != nil {
		return nil, err
	}
	var held [maxPlaces]holderID // which is all that a socket has to remember
	for i, d := range e.demands {
		held[i] = d.holder
	}
	n := len(e.demands)
	return func() { s.leave(held[:n]) }, nil
}

// wait waits for the answer to an entrance.
func (s *Sockets) wait(ctx context.Context, e *entrance) error {
	select {
	case err := <-e.answer:
		return err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case err := <-e.answer:
		return err
	default:
		e.gone = true
		return fmt.Errorf("count a socket: %w", classify(ctx.Err()))
	}
}

// full names the first limit that this replica alone has reached, or "". It needs mu.
func (s *Sockets) full(e *entrance) string {
	for _, d := range e.demands {
		if s.held[d.holder] >= d.most {
			return d.limit
		}
	}
	return ""
}

// enterHere counts without asking Redis. It needs mu.
func (s *Sockets) enterHere(e *entrance) error {
	if full := s.full(e); full != "" {
		return tooManySockets(full)
	}
	s.store.metrics.unshared.Inc()
	for _, d := range e.demands {
		s.held[d.holder]++
		s.owe(d.holder)
	}
	return nil
}

func tooManySockets(name string) error {
	return &limit.Error{Limit: name, RetryAfter: limit.Scattered(time.Second)}
}

// owe has Redis told of a count. It needs mu.
func (s *Sockets) owe(id holderID) {
	if s.held[id] > 0 || len(s.due) < maxDue {
		s.due[id] = struct{}{}
	}
}

// leave counts one less of each.
func (s *Sockets) leave(holders []holderID) {
	s.mu.Lock()
	for _, id := range holders {
		if s.held[id]--; s.held[id] <= 0 {
			delete(s.held, id)
		}
		s.owe(id)
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *Sockets) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run asks and tells Redis until the context is done, and then returns nil, when
// it has told Redis of those who had left by then.
func (s *Sockets) Run(ctx context.Context) error {
	renewal := s.lease / 3
	tick := time.NewTicker(min(renewal, time.Second))
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), socketsTimeout)
			defer cancel()
			s.askAgain()
			s.pass(last)
			s.end()
			return nil
		case <-s.wake:
		case now := <-tick.C:
			if now.Sub(renewed) >= renewal {
				s.renew()
				renewed = now
			}
		}
		s.pass(ctx)
	}
}

// renew has Redis told of everything again.
func (s *Sockets) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.held {
		s.due[id] = struct{}{}
	}
}

// askAgain has Redis asked even if it has not answered.
func (s *Sockets) askAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alone = time.Time{}
}

// end lets those who wait, and all who come, be counted here only.
func (s *Sockets) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.admitAll()
}

// admitAll lets in who waits, as far as this replica can tell. It needs mu.
func (s *Sockets) admitAll() {
	for _, e := range s.entering {
		s.answerHere(e)
	}
	s.entering = nil
}

// answerHere answers without Redis. It needs mu.
func (s *Sockets) answerHere(e *entrance) {
	if !e.gone {
		e.answer <- s.enterHere(e)
	}
}

// A count is what Redis is told of one holder, and asked.
type count struct {
	id         holderID
	have       int
	want, most int
	granted    int // of those, how many are left to give
	err        error
}

// A round is what is sent to Redis in one pipeline.
type round struct {
	counts   []*count
	byHolder map[holderID]*count
	entering []*entrance // for whom it asks
}

// of is the count of a holder in a round. It needs the mu of the sockets.
func (r *round) of(s *Sockets, id holderID) *count {
	c := r.byHolder[id]
	if c == nil {
		c = &count{id: id, have: s.held[id]}
		r.counts, r.byHolder[id] = append(r.counts, c), c
		delete(s.due, id)
	}
	return c
}

// pass asks for all who wait and tells all that is due, in pipelines of bounded size.
// Nobody else raises counts meanwhile.
func (s *Sockets) pass(ctx context.Context) {
	for {
		r := s.next()
		if len(r.counts) == 0 {
			return
		}
		unknown := s.send(ctx, r.counts, "evalsha", s.script)
		s.send(ctx, unknown, "eval", socketsScript)
		err := s.settle(r)
		if err != nil && !s.failing && ctx.Err() == nil {
			s.store.options.Logger.Warn("sockets are not counted across replicas", "error", err)
		}
		s.failing = err != nil
	}
}

// next takes what is to be sent, those who wait first.
func (s *Sockets) next() *round {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &round{byHolder: make(map[holderID]*count)}
	if time.Now().Before(s.alone) {
		return r
	}
	n := 0
	for ; n < len(s.entering) && len(r.counts)+maxPlaces <= maxCommands; n++ {
		for _, d := range s.entering[n].demands {
			c := r.of(s, d.holder)
			c.want, c.most = c.want+1, d.most
		}
	}
	if r.entering = s.entering[:n:n]; n == len(s.entering) {
		s.entering = nil
	} else {
		s.entering = s.entering[n:]
	}
	for id := range s.due {
		if len(r.counts) == maxCommands {
			break
		}
		r.of(s, id)
	}
	return r
}

// send runs the script for each and returns those for which Redis did not know it
// by its name.
func (s *Sockets) send(ctx context.Context, counts []*count, command, script string) (unknown []*count) {
	if len(counts) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, socketsTimeout)
	defer cancel()
	pipe := s.store.client.Pipeline()
	commands := make([]*redis.Cmd, len(counts))
	for i, c := range counts {
		commands[i] = pipe.Do(ctx, command, script, 1, s.name(c.id), s.replica, c.have, c.want, c.most, s.lease.Milliseconds())
	}
	_, failure := pipe.Exec(ctx)
	for i, c := range counts {
		answer, err := commands[i].Result()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			unknown = append(unknown, c)
			continue
		}
		granted, isNumber := answer.(int64)
		c.granted, c.err = int(granted), answerError(isNumber, err, failure)
	}
	return unknown
}

// settle takes what Redis has answered, and returns the error for which it is not
// to be asked for a while.
func (s *Sockets) settle(r *round) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range r.counts {
		if c.err != nil {
			err = c.err
			s.owe(c.id)
		}
	}
	for _, e := range r.entering {
		s.admit(r, e)
	}
	for _, c := range r.counts {
		if c.granted > 0 { // for those who are gone, or were refused a place elsewhere
			s.owe(c.id)
		}
	}
	if err != nil {
		s.alone = time.Now().Add(socketsPause)
		s.admitAll()
	}
	return err
}

// admit lets a socket in if Redis has counted it in all of its places. It needs mu.
func (s *Sockets) admit(r *round, e *entrance) {
	if e.gone {
		return
	}
	for _, d := range e.demands {
		switch c := r.byHolder[d.holder]; {
		case c.err != nil:
			s.answerHere(e)
			return
		case c.granted <= 0:
			e.answer <- tooManySockets(d.limit)
			return
		}
	}
	for _, d := range e.demands {
		r.byHolder[d.holder].granted--
		s.held[d.holder]++
	}
	e.answer <- nil
}

// name is the name of a holder's leases. It has no brace, and so is never that of an
// instance or an index.
func (s *Sockets) name(id holderID) string {
	return s.store.options.Prefix + ":sockets:" + base64.RawURLEncoding.EncodeToString(id[:])
}
