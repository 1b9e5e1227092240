package devbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DevelopmentKeyName and DevelopmentKey are the credentials in every ConnectionString.
const (
	DevelopmentKeyName = "RootManageSharedAccessKey"
	DevelopmentKey     = "devbus-development-key"
)

// maxConnections bounds the memory that connections take: each has a read buffer of one frame.
const maxConnections = 1024

// Options say what exists. Entities cannot be added later.
type Options struct {
	Queues []Queue
	Topics []Topic

	// MaxMessageBytes is the largest message, or batch, that is taken. Default 262144.
	MaxMessageBytes int

	// MaxEntityBytes is how much a queue or a subscription holds, its dead letters included; a
	// send beyond it is refused with amqp:resource-limit-exceeded. Default 64 MiB.
	MaxEntityBytes int64

	// Rules, if there are any, are whose keys must have signed the tokens of those who connect, and
	// what these may do. Default: any token is taken, for anything.
	Rules []Rule

	// SharedAccessKey, if set, is the key of one more rule, DevelopmentKeyName, with every right in
	// the namespace; DevelopmentKey is what ConnectionString tells clients.
	SharedAccessKey string

	// Logger hears about connections that end in an error. Default: nobody does.
	Logger *slog.Logger
}

// Queue is a queue and, below Name/$DeadLetterQueue, its dead letters.
type Queue struct {
	Name             string
	LockDuration     time.Duration // default 1 minute
	MaxDeliveryCount int           // default 10
}

// Topic hands a copy of each message to each of its subscriptions.
type Topic struct {
	Name          string
	Subscriptions []Subscription

	DuplicateDetection time.Duration // the window that Management tells of; nothing is dropped. 0: none
}

// Subscription is received from as TOPIC/Subscriptions/NAME.
type Subscription struct {
	Name             string
	LockDuration     time.Duration // default 1 minute
	MaxDeliveryCount int           // default 10
	Sessions         bool          // receivers that name no session are refused, and so are the others: there are none

	// What Management tells of it, and nothing here goes by.

	TimeToLive time.Duration // of messages; default: for ever
	ForwardTo  string        // default: nowhere
	Filters    []Filter      // default: one that lets everything pass
}

// Filter is a rule of a subscription.
type Filter struct {
	Type string // TrueFilter, FalseFilter, SqlFilter or CorrelationFilter
	Text string // the expression, or the subject to be equal to
}

// Stats counts the messages of a queue, a subscription or a dead-letter queue. A topic knows
// Scheduled and TotalEnqueued only.
type Stats struct {
	Scheduled    int // to be enqueued later; not yet in any subscription of a topic
	Active       int // to be delivered
	Locked       int
	Deferred     int
	DeadLettered int // in the dead-letter queue at present

	TotalEnqueued     int64
	Completed         int64 // or received and deleted
	Abandoned         int64
	LocksExpired      int64
	TotalDeadLettered int64
}

// ErrClosed is returned for connections offered to a bus that was closed.
var ErrClosed = errors.New("devbus: closed")

// ErrUnknownEntity is returned for names that Options do not have.
var ErrUnknownEntity = errors.New("devbus: unknown entity")

// Bus is one Service Bus namespace.
type Bus struct {
	maxMessage int
	rules      []Rule // set once; none: any token is taken
	log        *slog.Logger
	nodes      map[string]*node // by lower-case address; set once
	faults     Faults
	operations operations

	mu     sync.Mutex
	conns  map[*conn]struct{}
	closed bool
	done   chan struct{} // closed by Close
	active sync.WaitGroup
}

// node is one address: what can be sent to, received from, or both.
type node struct {
	name  string
	inbox *inbox
	store *store

	topic        *Topic // as it was described; nil: it is none
	subscription *Subscription
}

// inbox is where senders put messages: a topic, or a queue, which is its own only subscription.
type inbox struct {
	name   string
	topic  bool
	stores []*store         // set once
	clock  func() time.Time // by which messages are enqueued

	mu       sync.Mutex // one batch at a time, so that all stores have room or none takes it
	sequence int64
	waiting  []*payload  // scheduled, the next to be enqueued first
	timer    *time.Timer // of the next one; nil: none waits
	closed   bool
}

// New makes the namespace. Nothing runs until Serve or ServeConn. It panics when two entities
// share a name, or one has none.
func New(o Options) *Bus {
	b := &Bus{
		maxMessage: cmp.Or(o.MaxMessageBytes, 262144),
		rules:      slices.Clone(o.Rules),
		log:        o.Logger,
		nodes:      make(map[string]*node),
		conns:      make(map[*conn]struct{}),
		done:       make(chan struct{}),
	}
	b.faults.bus = b
	if o.SharedAccessKey != "" {
		b.rules = append(b.rules, Rule{Name: DevelopmentKeyName, Key: o.SharedAccessKey, Rights: Manage})
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	room := cmp.Or(o.MaxEntityBytes, 64<<20)
	for _, q := range o.Queues {
		s := b.addStore(q.Name, q.LockDuration, q.MaxDeliveryCount, room)
		b.nodes[strings.ToLower(q.Name)].inbox = &inbox{name: q.Name, clock: b.faults.now, stores: []*store{s}}
	}
	for _, t := range o.Topics {
		in := &inbox{name: t.Name, topic: true, clock: b.faults.now}
		b.add(&node{name: t.Name, inbox: in, topic: &t})
		for _, sub := range t.Subscriptions {
			name := t.Name + "/Subscriptions/" + sub.Name
			in.stores = append(in.stores, b.addStore(name, sub.LockDuration, sub.MaxDeliveryCount, room))
			b.nodes[strings.ToLower(name)].subscription = &sub
		}
	}
	return b
}

func (b *Bus) add(n *node) {
	key := strings.ToLower(n.name)
	if key == "" || strings.HasSuffix(key, "/") || b.nodes[key] != nil {
		panic(fmt.Sprintf("devbus: entity name %q is empty or taken", n.name))
	}
	b.nodes[key] = n
}

func (b *Bus) addStore(name string, lock time.Duration, maxDelivery int, room int64) *store {
	budget := new(atomic.Int64)
	budget.Store(room)
	lock, maxDelivery = cmp.Or(lock, time.Minute), cmp.Or(maxDelivery, 10)
	dead := newStore(name+"/$DeadLetterQueue", lock, maxDelivery, budget, nil)
	s := newStore(name, lock, maxDelivery, budget, dead)
	b.add(&node{name: name, store: s})
	b.add(&node{name: dead.name, store: dead})
	return s
}

// find gives the entity at an address.
func (b *Bus) find(address string) (*node, *problem) {
	n := b.nodes[canonical(address)]
	if n == nil {
		return nil, problemf("amqp:not-found", "The messaging entity '%.300s' could not be found.", address)
	}
	return n, nil
}

// Stats counts the messages of "queue", "topic", "topic/Subscriptions/name" or one of these
// with /$DeadLetterQueue behind it, in any case.
func (b *Bus) Stats(entity string) (Stats, error) {
	n, p := b.find(entity)
	if p != nil {
		return Stats{}, fmt.Errorf("%w: %s", ErrUnknownEntity, entity)
	}
	if n.inbox == nil {
		return n.store.stats(), nil
	}
	n.inbox.mu.Lock()
	defer n.inbox.mu.Unlock()
	st := Stats{TotalEnqueued: n.inbox.sequence}
	if n.store != nil {
		st = n.store.stats()
	}
	st.Scheduled = len(n.inbox.waiting)
	return st, nil
}

// publish stores a batch in every subscription, or refuses it whole. What is scheduled has its room
// there from now on.
func (in *inbox) publish(batch []*payload) *problem {
	var size int64
	for _, p := range batch {
		size += p.size()
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, s := range in.stores {
		if s.budget.Load() < size {
			return errFull(s.name)
		}
	}
	for _, s := range in.stores {
		s.budget.Add(-size)
	}
	now := time.Now()
	active := make([]*payload, 0, len(batch))
	for _, p := range batch {
		if p.due.After(now) {
			in.schedule(p)
		} else {
			active = append(active, p)
		}
	}
	in.enqueue(active)
	return nil
}

// enqueue makes messages active in every subscription.
func (in *inbox) enqueue(batch []*payload) {
	now := in.clock()
	var first int64
	if in.topic {
		first = in.sequence + 1
	}
	for _, s := range in.stores {
		s.enqueue(batch, first, now)
	}
	in.sequence += int64(len(batch))
}

// schedule puts a message behind those that are due no later.
func (in *inbox) schedule(p *payload) {
	at, _ := slices.BinarySearchFunc(in.waiting, p.due, func(other *payload, due time.Time) int {
		if other.due.After(due) {
			return 1
		}
		return -1
	})
	in.waiting = slices.Insert(in.waiting, at, p)
	if at == 0 {
		in.wait()
	}
}

// wait sets the timer to when the next message is due.
func (in *inbox) wait() {
	if in.timer != nil {
		in.timer.Stop()
		in.timer = nil
	}
	if len(in.waiting) > 0 && !in.closed {
		in.timer = time.AfterFunc(time.Until(in.waiting[0].due), func() { in.activate(time.Now()) })
	}
}

// activate enqueues what is due by then and says how many that were.
func (in *inbox) activate(by time.Time) (n int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for n < len(in.waiting) && !in.waiting[n].due.After(by) {
		n++
	}
	in.enqueue(in.waiting[:n])
	in.waiting = slices.Delete(in.waiting, 0, n)
	in.wait()
	return n
}

// close stops the timer: what waits, waits.
func (in *inbox) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.wait()
}

func errFull(name string) *problem {
	return problemf("amqp:resource-limit-exceeded", "The maximum size of entity '%s' has been reached.", name)
}

// ConnectionString is what a client on this machine needs to reach a bus that serves addr.
func ConnectionString(addr string) string {
	return Rule{Name: DevelopmentKeyName, Key: DevelopmentKey}.ConnectionString(addr)
}

// Serve accepts connections until ctx ends, Close is called or the listener breaks. It closes
// the listener and its connections and returns when all their goroutines have ended: nil unless
// the listener broke.
func (b *Bus) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	serving.Go(func() {
		select {
		case <-ctx.Done():
		case <-b.done:
			cancel()
		}
		l.Close()
	})
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		serving.Go(func() {
			if err := b.ServeConn(ctx, nc); err != nil {
				b.log.Warn("devbus connection", "remote", nc.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// ServeConn speaks to one client over any connection, which it closes. It returns when the
// client closes, ctx ends or Close is called, then with nil, or on a broken protocol.
func (b *Bus) ServeConn(ctx context.Context, nc net.Conn) error {
	c := newConn(b, nc)
	if err := b.register(c); err != nil {
		nc.Close()
		return err
	}
	defer b.forget(c)
	stop := context.AfterFunc(ctx, c.shutdown)
	defer stop()
	return c.serve()
}

func (b *Bus) register(c *conn) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return ErrClosed
	case len(b.conns) >= maxConnections:
		return errors.New("devbus: too many connections")
	case b.faults.refusing():
		return errors.New("devbus: refusing connections, as told")
	}
	b.conns[c] = struct{}{}
	b.active.Add(1)
	return nil
}

func (b *Bus) forget(c *conn) {
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
	b.active.Done()
}

// connections gives those that are open now.
func (b *Bus) connections() []*conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	open := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		open = append(open, c)
	}
	return open
}

// DropConnections breaks every connection at once, without a word of AMQP.
func (b *Bus) DropConnections() {
	for _, c := range b.connections() {
		c.drop()
	}
}

// Close ends every connection and waits for their goroutines. Stats still answer.
func (b *Bus) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.done)
	}
	b.mu.Unlock()
	for _, c := range b.connections() {
		c.shutdown()
	}
	b.active.Wait()
	for _, n := range b.nodes {
		if n.inbox != nil {
			n.inbox.close()
		}
		if n.store != nil {
			n.store.close()
		}
	}
	return nil
}
