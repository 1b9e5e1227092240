package servicebus

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"

	"statusrelay/internal/status"
)

const (
	maxSendMessages = 500 // in one batch; more save nothing
	sendAttempts    = 4   // of one batch, within Options.SendTimeout

	// messageOverhead is what a message that waits costs beside its body.
	messageOverhead = 1 << 10

	// busyPause is how long Service Bus wants to be left alone by those whom it throttles.
	busyPause = 10 * time.Second
)

// Outgoing is an update to be published and its encoded form, which the publisher does not look into.
type Outgoing struct {
	Update      *status.Update
	Body        []byte // a CloudEvent, as wire.Encode makes it
	Traceparent string // W3C Trace Context, "" for none
	Tracestate  string
	// At is when the broker is to deliver it: it stores it at once and keeps it back until then, or up to a tenth of a second longer.
	// Zero: without delay.
	At time.Time

	// ID is the message's, of at most 128 characters, for an update that has a name by which to know it again and no
	// position of its own. Default: made of the position.
	ID string
}

// Publisher sends updates to one topic or queue.
type Publisher struct {
	// set once
	o     Options
	m     *publisherMetrics
	lines *lines[*azservicebus.Sender]
	seed  maphash.Seed
	work  context.Context // of all sends; ends when Close runs out of time
	stop  context.CancelFunc

	busy atomic.Int64 // until when the broker wants to be left alone, in unix ns; 0: it does not

	mu      sync.Mutex
	closed  bool
	queued  int64          // bytes of messages in all lanes
	lanes   []lane         // the last one has what is scheduled, whose order is that of its times: it delays nobody
	sending sync.WaitGroup // a goroutine per lane that has something to send
}

// lane is a queue of messages of which one batch at a time is on its way, while the next gathers: nothing waits when there is
// nothing to wait for, and batches grow with the load. What is in one lane stays in order.
type lane struct {
	pending []*item
	busy    bool
}

// item is a message on its way through a lane.
type item struct {
	message *azservicebus.Message
	size    int64
	call    *call
	index   int // in call.errs
}

// call is one call of Publish.
type call struct {
	ctx context.Context

	mu   sync.Mutex
	errs []error
	left int
	over bool          // Publish has returned
	done chan struct{} // closed when left is 0
}

func (it *item) finish(err error) {
	c := it.call
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.errs[it.index] = err
	if c.left--; c.left == 0 {
		close(c.done)
	}
}

// NewPublisher checks the options, all of them, and starts nothing. Close must be called in the end.
func NewPublisher(o Options) (*Publisher, error) {
	if err := o.check(false); err != nil {
		return nil, err
	}
	o.Subscription = "" // a receiver's
	p := &Publisher{o: o, seed: maphash.MakeSeed(), lanes: make([]lane, o.Lanes+1)}
	var err error
	if p.m, err = newPublisherMetrics(o.Metrics); err != nil {
		return nil, fmt.Errorf("servicebus publisher metrics: %w", err)
	}
	if p.lines, err = newLines(&p.o, p.attach, p.m.connections.Inc); err != nil {
		return nil, err
	}
	p.work, p.stop = context.WithCancel(context.Background())
	return p, nil
}

// attach makes a sender and its links, which the SDK makes with the first call that needs them, such as asking how large a
// batch may be.
func (p *Publisher) attach(ctx context.Context, client *azservicebus.Client) (*azservicebus.Sender, error) {
	entity := p.o.Topic
	if entity == "" {
		entity = p.o.Queue
	}
	sender, err := client.NewSender(entity, nil)
	if err != nil {
		return nil, err
	}
	_, err = sender.NewMessageBatch(ctx, nil)
	return sender, err
}

// Connect makes the connection now, which takes some 15 round trips, and says what is wrong if it cannot be made: an entity that does
// not exist, missing rights, or a broker that is away (status.ErrUnavailable). Publish makes it by itself otherwise.
func (p *Publisher) Connect(ctx context.Context) error {
	if _, err := p.lines.get(ctx); err != nil {
		return refusal(err)
	}
	return nil
}

// Ready reports whether the link to the broker stands.
func (p *Publisher) Ready() bool { return p.lines.health() == nil }

// Err says why the publisher is not ready; nil when it is.
func (p *Publisher) Err() error { return p.lines.health() }

// RetryAfter says when it makes sense to publish again, for those whose updates were refused as status.ErrUnavailable: what a
// broker that throttles asks for, or when the next connection is tried, and a second at least.
func (p *Publisher) RetryAfter() time.Duration {
	wait := time.Until(time.Unix(0, p.busy.Load()))
	if !p.Ready() {
		wait = max(wait, p.lines.pause())
	}
	return max(wait, time.Second)
}

// Publish sends updates and returns when the broker has stored or refused each, or ctx ends; one error per update. What the
// broker can never take is a status.ErrInvalid, what it cannot take now a status.ErrUnavailable; an entity that is missing or
// not ours to use is neither. An update whose error is not ErrInvalid may have been stored.
//
// Publish can be called concurrently: what comes together is sent together.
func (p *Publisher) Publish(ctx context.Context, out []Outgoing) []error {
	c := &call{ctx: ctx, errs: make([]error, len(out)), left: len(out), done: make(chan struct{})}
	if len(out) == 0 {
		return c.errs
	}
	items := make([]*item, len(out))
	for i := range out {
		c.errs[i] = errPending
		items[i] = &item{message: envelope(&out[i]), size: int64(len(out[i].Body)) + messageOverhead, call: c, index: i}
	}
	p.enqueue(items)
	select {
	case <-c.done:
	case <-ctx.Done():
		c.giveUp(ctx.Err())
	}
	for _, err := range c.errs {
		p.count(err)
	}
	return c.errs
}

// giveUp gives every message without an answer an error: the caller has stopped waiting.
func (c *call) giveUp(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for i, err := range c.errs {
		if errors.Is(err, errPending) {
			c.errs[i] = fmt.Errorf("%w: %w", errPending, cause)
		}
	}
}

// errPending is the outcome of a message while there is none.
var errPending = fmt.Errorf("the broker has not answered yet: %w", status.ErrUnavailable)

func (p *Publisher) count(err error) {
	switch {
	case err == nil:
		p.m.published.Inc()
	case errors.Is(err, status.ErrInvalid):
		p.m.failed.WithLabelValues("invalid").Inc()
	case errors.Is(err, status.ErrMayNotPublish):
		p.m.failed.WithLabelValues("unauthorized").Inc()
	case errors.Is(err, status.ErrUnavailable):
		p.m.failed.WithLabelValues("unavailable").Inc()
	default:
		p.m.failed.WithLabelValues("other").Inc()
	}
}

// enqueue puts items in their instances' lanes and sees to it that the lanes move.
func (p *Publisher) enqueue(items []*item) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range items {
		switch {
		case p.closed:
			it.finish(fmt.Errorf("publisher closed: %w", status.ErrUnavailable))
			continue
		case p.queued+it.size > p.o.MaxQueuedBytes:
			it.finish(fmt.Errorf("too much waits to be published: %w", status.ErrUnavailable))
			continue
		}
		p.queued += it.size
		l := p.lane(it.message)
		l.pending = append(l.pending, it)
		if !l.busy {
			l.busy = true
			p.sending.Go(func() { p.run(l) })
		}
	}
}

func (p *Publisher) lane(m *azservicebus.Message) *lane {
	last := len(p.lanes) - 1
	if m.ScheduledEnqueueTime != nil {
		return &p.lanes[last]
	}
	return &p.lanes[maphash.String(p.seed, *m.SessionID)%uint64(last)]
}

// run sends what is in a lane until nothing is.
func (p *Publisher) run(l *lane) {
	for {
		p.mu.Lock()
		items := l.pending
		l.pending = nil
		l.busy = len(items) > 0
		p.mu.Unlock()
		if len(items) == 0 {
			return
		}
		p.send(items)
	}
}

// send sends items in order, in as few batches as they fit in, and finishes each.
func (p *Publisher) send(items []*item) {
	for len(items) > 0 {
		if err := items[0].call.ctx.Err(); err != nil {
			p.finish(items[:1], err) // nobody waits any more
			items = items[1:]
			continue
		}
		n, err := p.sendSome(together(items))
		p.finish(items[:n], err)
		items = items[n:]
	}
}

// together returns the first items that may share a batch: those for the same time. A batch has what its first message says of that
// around it, and whether a broker goes by it or by what each says is written nowhere.
func together(items []*item) []*item {
	n := 1
	for n < min(len(items), maxSendMessages) && sameTime(items[0].message.ScheduledEnqueueTime, items[n].message.ScheduledEnqueueTime) {
		n++
	}
	return items[:n]
}

func sameTime(a, b *time.Time) bool { return a == b || a != nil && b != nil && a.Equal(*b) }

// finish tells those who wait for items what has become of them. Their room is free by then: whoever publishes again at
// once must not find it taken by what is done.
func (p *Publisher) finish(items []*item, err error) {
	p.mu.Lock()
	for _, it := range items {
		p.queued -= it.size
	}
	p.mu.Unlock()
	for _, it := range items {
		it.finish(err)
	}
}

// sendSome sends the first items together, as many as fit, trying again while that makes sense, and says how many the outcome
// is about.
func (p *Publisher) sendSome(items []*item) (n int, err error) {
	ctx, cancel := context.WithTimeout(p.work, p.o.SendTimeout)
	defer cancel()
	again := jittered(100*time.Millisecond, 2*time.Second)
	doubted := false
	for attempt := 1; ; attempt++ {
		n, final, err := p.try(ctx, items)
		switch {
		case err == nil:
			return n, nil
		case tooLarge(err) && n > 1:
			items = items[:n/2] // the broker thinks less of it than the SDK
			attempt--
			continue
		case tooLarge(err) && (final || doubted):
			return n, &status.InvalidError{Reason: status.ReasonTooLarge, Detail: "larger than the broker accepts"}
		case final || attempt == sendAttempts || !sleep(ctx, again.NextBackOff()):
			return n, refusal(err)
		}
		doubted = tooLarge(err)
	}
}

// try sends once and says whether the error is final. One that came with the end of the link never is: what is true of the
// entity shows when the next link is made.
func (p *Publisher) try(ctx context.Context, items []*item) (n int, final bool, err error) {
	l, err := p.lines.get(ctx)
	if err != nil {
		return len(items), denied(err), err
	}
	// Long enough for a slow broker, short enough for a second try when a confirmation was lost.
	ctx, cancel := context.WithTimeout(ctx, p.o.SendTimeout/2)
	defer cancel()
	n, err = sendBatch(ctx, l.end, items)
	if condition(err) == serverBusy {
		p.busy.Store(time.Now().Add(busyPause).UnixNano())
	}
	switch {
	case err == nil:
		l.proven.Store(true)
		p.busy.Store(0)
		p.m.batch.Observe(float64(n))
		return n, false, nil
	case tooLarge(err) && (n > 1 || !fits(ctx, l.end, items[0])):
		return n, true, err
	case answered(err):
		return n, denied(err) || condition(err) == amqp.ErrCondResourceLimitExceeded, explain(err, p.o.entity())
	}
	p.lines.lose(l, err)
	return n, false, explain(err, p.o.entity())
}

// fits reports whether the link announced room for a message: if so, and it is too large, the link was detached as if one had been.
func fits(ctx context.Context, on *azservicebus.Sender, it *item) bool {
	batch, err := on.NewMessageBatch(ctx, nil)
	return err == nil && batch.AddMessage(it.message, nil) == nil
}

// refusal gives an error its kind: unavailable, unless it will not change by itself.
func refusal(err error) error {
	switch {
	case unauthorized(err):
		return fmt.Errorf("service bus: %w: %w", status.ErrMayNotPublish, err)
	case denied(err):
		return fmt.Errorf("service bus: %w", err)
	}
	return fmt.Errorf("service bus: %w: %w", status.ErrUnavailable, err)
}

// sendBatch sends as many of the items as fit in one batch, at least one, and says how many that were.
func sendBatch(ctx context.Context, to *azservicebus.Sender, items []*item) (n int, err error) {
	if len(items) > 1 {
		batch, err := to.NewMessageBatch(ctx, nil)
		if err != nil {
			return len(items), err
		}
		for _, it := range items {
			if err := batch.AddMessage(it.message, nil); errors.Is(err, azservicebus.ErrMessageTooLarge) {
				break
			} else if err != nil {
				return max(n, 1), err
			}
			n++
		}
		if n > 1 {
			return n, to.SendMessageBatch(ctx, batch, nil)
		}
	}
	// Alone it has no envelope around it and can be larger.
	return 1, to.SendMessage(ctx, items[0].message, nil)
}

// Close refuses further updates, waits until those that were taken are sent, or ctx ends, and closes the connection.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	sent := make(chan struct{})
	go func() { p.sending.Wait(); close(sent) }()
	var err error
	select {
	case <-sent:
	case <-ctx.Done():
		err = fmt.Errorf("publisher closed before everything was sent: %w", ctx.Err())
		p.stop()
		<-sent
	}
	p.stop()
	p.lines.stop()
	return err
}
