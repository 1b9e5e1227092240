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
	// maxDue bounds how many callers are remembered who have left while Redis does not
	// answer. What it is not told ends with its lease.
	maxDue = 1 << 16
)

// SocketsOptions configure Sockets.
type SocketsOptions struct {
	// Lease is how long a replica's sockets count without being renewed, which
	// happens three times as often. Default 1 minute.
	Lease time.Duration
}

// Sockets counts the sockets of each caller on all replicas: a replica asks Redis
// before it opens one, tells it soon when one has closed, and renews all of its
// counts in intervals, so that those of a replica that died end with their lease.
// One goroutine asks for all who wait, in one pipeline.
//
// While Redis does not answer, a replica lets in as many as a caller may have in
// all: for that time the limit is one of each replica. When Redis is back it is
// told what came of it.
type Sockets struct {
	store   *Store
	lease   time.Duration
	replica string // its name in Redis
	script  string // of sockets.lua, for EVALSHA
	wake    chan struct{}

	mu       sync.Mutex
	held     map[callerID]int         // guarded by mu: what this replica has, without those whose count is zero
	due      map[callerID]struct{}    // guarded by mu: what Redis is to be told
	entering map[callerID][]*entrance // guarded by mu: who waits
	alone    time.Time                // guarded by mu: until when Redis is not to be asked
	ended    bool                     // guarded by mu: nobody asks Redis any more

	failing bool // owned by Run: Redis did not answer the last time
}

// A callerID is a hash of a caller's name: names have any length and any content,
// and Redis need not know them.
type callerID [16]byte

func callerIDOf(caller string) callerID {
	sum := sha256.Sum256([]byte(caller))
	return callerID(sum[:len(callerID{})])
}

// An entrance is one socket that is to be counted.
type entrance struct {
	most   int
	answer chan error // has room for one
	gone   bool       // guarded by mu: nobody waits for the answer
}

// Sockets returns a counter that has counted nothing yet.
func (s *Store) Sockets(o SocketsOptions) *Sockets {
	if o.Lease == 0 {
		o.Lease = time.Minute
	}
	return &Sockets{
		store: s, lease: o.Lease, replica: rand.Text(), script: scriptName(socketsScript),
		wake: make(chan struct{}, 1),
		held: make(map[callerID]int), due: make(map[callerID]struct{}), entering: make(map[callerID][]*entrance),
	}
}

// Enter counts one more socket of a caller, or returns a limit.Error when there
// are as many as there may be, and a status.ErrUnavailable when ctx ends before
// that is known. Run must be running.
func (s *Sockets) Enter(ctx context.Context, caller string, most int) error {
	id, e := callerIDOf(caller), &entrance{most: most, answer: make(chan error, 1)}
	s.mu.Lock()
	if s.ended || time.Now().Before(s.alone) || s.held[id] >= most {
		err := s.enterHere(id, most)
		s.mu.Unlock()
		return err
	}
	s.entering[id] = append(s.entering[id], e)
	s.mu.Unlock()
	s.nudge()
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

// enterHere counts without asking Redis. It needs mu.
func (s *Sockets) enterHere(id callerID, most int) error {
	if s.held[id] >= most {
		return &limit.Error{Limit: "sockets", RetryAfter: limit.Scattered(time.Second)}
	}
	s.store.metrics.unshared.Inc()
	s.held[id]++
	s.owe(id)
	return nil
}

// owe has Redis told of a count. It needs mu.
func (s *Sockets) owe(id callerID) {
	if s.held[id] > 0 || len(s.due) < maxDue {
		s.due[id] = struct{}{}
	}
}

// Leave undoes an Enter. It does not wait.
func (s *Sockets) Leave(caller string) {
	id := callerIDOf(caller)
	s.mu.Lock()
	if s.held[id]--; s.held[id] <= 0 {
		delete(s.held, id)
	}
	s.owe(id)
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
	for id, all := range s.entering {
		s.answerHere(id, all)
	}
	clear(s.entering)
}

// answerHere answers without Redis. It needs mu.
func (s *Sockets) answerHere(id callerID, all []*entrance) {
	for _, e := range all {
		if !e.gone {
			e.answer <- s.enterHere(id, e.most)
		}
	}
}

// A count is what Redis is told of one caller, and asked.
type count struct {
	id       callerID
	have     int
	entering []*entrance
	granted  int
	err      error
}

// pass asks for all who wait and tells all that is due, in pipelines of bounded size.
// Nobody else raises counts meanwhile.
func (s *Sockets) pass(ctx context.Context) {
	for {
		counts := s.next()
		if len(counts) == 0 {
			return
		}
		unknown := s.send(ctx, counts, "evalsha", s.script)
		s.send(ctx, unknown, "eval", socketsScript)
		err := s.settle(counts)
		if err != nil && !s.failing && ctx.Err() == nil {
			s.store.options.Logger.Warn("sockets are not counted across replicas", "error", err)
		}
		s.failing = err != nil
	}
}

// next takes what is to be sent, those who wait first.
func (s *Sockets) next() []*count {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.alone) {
		return nil
	}
	var counts []*count
	for id, all := range s.entering {
		if len(counts) == maxCommands {
			return counts
		}
		counts = append(counts, &count{id: id, have: s.held[id], entering: all})
		delete(s.entering, id)
		delete(s.due, id)
	}
	for id := range s.due {
		if len(counts) == maxCommands {
			break
		}
		counts = append(counts, &count{id: id, have: s.held[id]})
		delete(s.due, id)
	}
	return counts
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
		most := 0
		if len(c.entering) > 0 {
			most = c.entering[0].most
		}
		commands[i] = pipe.Do(ctx, command, script, 1, s.name(c.id), s.replica, c.have, len(c.entering), most, s.lease.Milliseconds())
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
func (s *Sockets) settle(counts []*count) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range counts {
		if c.err == nil {
			s.admit(c)
			continue
		}
		err = c.err
		s.answerHere(c.id, c.entering)
		s.owe(c.id)
	}
	if err != nil {
		s.alone = time.Now().Add(socketsPause)
		s.admitAll()
	}
	return err
}

// admit lets in as many as Redis has counted, in the order in which they came. It
// needs mu.
func (s *Sockets) admit(c *count) {
	left := c.granted
	for _, e := range c.entering {
		switch {
		case e.gone:
		case left > 0:
			left--
			s.held[c.id]++
			e.answer <- nil
		default:
			e.answer <- &limit.Error{Limit: "sockets", RetryAfter: limit.Scattered(time.Second)}
		}
	}
	if left > 0 { // for those who are gone
		s.owe(c.id)
	}
}

// name is the name of a caller's leases. It has no brace, and so is never that of an
// instance or an index.
func (s *Sockets) name(id callerID) string {
	return s.store.options.Prefix + ":sockets:" + base64.RawURLEncoding.EncodeToString(id[:])
}
