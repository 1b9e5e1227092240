package servicebus

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"golang.org/x/sync/semaphore"

	"statusrelay/internal/status"
)

const (
	// afterFirst is how long a batch waits for company after its first message. Batches of a busy entity fill without
	// waiting; the SDK's 20 ms would only slow a trickle down.
	afterFirst = time.Millisecond

	// wary is how long messages are received one by one after one of them made the SDK panic: longer than the longest lock
	// (5 minutes), so that those that were in one batch with it do not share its fate a second time.
	wary = 6 * time.Minute
)

// Message is what Handle is given.
type Message struct {
	Body          []byte
	ID            string
	Sequence      int64 // the topic's or queue's own number of the message (EnqueuedSequenceNumber)
	DeliveryCount uint32
	EnqueuedTime  time.Time
	ContentType   string
	Subject       string
	Traceparent   string
}

// Handle processes a batch and returns one error per message, which decides what becomes of it:
//
//	nil                     completed
//	status.ErrInvalid       dead-lettered, with the reason and the text of the *status.InvalidError
//	status.ErrUnavailable   kept, its lock renewed, and given to Handle again until that changes; nothing else is handled meanwhile
//	anything else           given back after a pause, which counts as a failed delivery
//
// Its context outlives that of Run by Options.DrainTimeout. Handle is not called concurrently.
type Handle func(ctx context.Context, batch []Message) []error

// Receiver takes the messages of one subscription or queue.
type Receiver struct {
	o     Options
	m     *receiverMetrics
	lines *lines[*azservicebus.Receiver]
}

// NewReceiver checks the options, all of them, and starts nothing.
func NewReceiver(o Options) (*Receiver, error) {
	if err := o.check(true); err != nil {
		return nil, err
	}
	r := &Receiver{o: o}
	var err error
	if r.m, err = newReceiverMetrics(o.Metrics); err != nil {
		return nil, fmt.Errorf("servicebus receiver metrics: %w", err)
	}
	r.lines, err = newLines(&r.o, r.attach, r.m.connections.Inc)
	return r, err
}

// attach makes a receiver and its links. The SDK makes links with the first call that needs them; renewing a lock that does
// not exist is one that needs them, is answered with lock-lost, and touches no message.
func (r *Receiver) attach(ctx context.Context, client *azservicebus.Client) (end *azservicebus.Receiver, err error) {
	if r.o.Queue != "" {
		end, err = client.NewReceiverForQueue(r.o.Queue, nil)
	} else {
		end, err = client.NewReceiverForSubscription(r.o.Topic, r.o.Subscription, nil)
	}
	if err != nil {
		return nil, err
	}
	err = end.RenewMessageLock(ctx, &azservicebus.ReceivedMessage{}, nil)
	if err == nil || lockLost(err) || answered(err) && !denied(err) {
		return end, nil
	}
	return nil, err
}

// Ready reports whether the link to the broker stands.
func (r *Receiver) Ready() bool { return r.lines.health() == nil }

// Err says why the receiver is not ready; nil when it is.
func (r *Receiver) Err() error { return r.lines.health() }

// Run receives until ctx ends, then finishes what is in hand within Options.DrainTimeout and closes the connection. It returns
// nil: no trouble with the broker ends it, and Ready and Err tell of it. It can be called once.
func (r *Receiver) Run(ctx context.Context, handle Handle) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	grace := time.AfterFunc(math.MaxInt64, cancel)
	defer grace.Stop()
	defer context.AfterFunc(ctx, func() { grace.Reset(r.o.DrainTimeout) })()
	// Settlements that are under way when time is up end with their line.
	defer context.AfterFunc(work, func() {
		if l := r.lines.current.Load(); l != nil {
			r.lines.lose(l, errStopped)
		}
	})()

	run := &run{
		Receiver: r, ctx: ctx, work: work, handle: handle,
		room:    semaphore.NewWeighted(int64(r.o.MaxInHand)),
		batches: make(chan *batch),
		settled: make(chan *message, r.o.MaxInHand), // never blocks: it has room for all that is in hand
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		run.all()
	}()
	select {
	case <-finished:
	case <-work.Done():
		// Time is up. What is left are calls of the SDK, and not all of them heed their context when a connection is lost
		// under them: they are waited for, but not for ever.
		select {
		case <-finished:
		case <-time.After(2 * closeTimeout):
			r.o.Logger.Warn("service bus: stopped without waiting for calls that do not return")
		}
	}
	r.lines.stop()
	return nil
}

// all receives, handles and settles until nothing is in hand any more.
func (r *run) all() {
	var receiving, settling sync.WaitGroup
	receiving.Go(r.receive)
	for range r.o.Settlers {
		settling.Go(func() {
			for m := range r.settled {
				r.settle(m)
			}
		})
	}
	for b := range r.batches {
		r.process(b)
	}
	receiving.Wait()
	r.pausing.Wait()
	close(r.settled)
	settling.Wait()
	r.keeping.Wait()
}

// run is what one Run shares between its goroutines.
type run struct {
	*Receiver
	ctx    context.Context // ends when no more is to be received
	work   context.Context // ends when what is in hand must be left
	handle Handle

	room    *semaphore.Weighted // of MaxInHand messages
	batches chan *batch         // from receive to process, so that one is received while another is handled
	settled chan *message       // from process to the settlers: their verdict is known
	pausing sync.WaitGroup      // messages that wait before they are abandoned
	keeping sync.WaitGroup      // batches whose locks are kept
}

// batch is what one call of ReceiveMessages gave.
type batch struct {
	line     *line[*azservicebus.Receiver]
	messages []message
	left     atomic.Int64  // messages in hand
	done     chan struct{} // closed when none is left
	broken   atomic.Bool   // settling over its link failed: the others need not try
}

// message is in hand until its state says otherwise.
type message struct {
	batch    *batch
	received *azservicebus.ReceivedMessage
	state    atomic.Uint32
	verdict  verdict // set once, before it goes to the settlers
}

const (
	inHand  uint32 = iota // received, its lock kept
	decided               // with the settlers
	lost                  // its lock is: nothing to be done with it any more
)

// receive takes batches until ctx ends.
func (r *run) receive() {
	defer close(r.batches)
	var wariness time.Time
	for r.ctx.Err() == nil {
		l, err := r.lines.get(r.ctx)
		if err != nil {
			continue // get has its own back-off
		}
		n := r.o.MaxBatch
		if time.Now().Before(wariness) {
			n = 1
		}
		if r.room.Acquire(r.ctx, int64(n)) != nil {
			return
		}
		got, err := receiveMessages(r.ctx, l.end, n)
		r.room.Release(int64(n - len(got)))
		switch {
		case len(got) > 0:
			l.proven.Store(true)
			r.batches <- r.take(l, got)
		case r.ctx.Err() != nil:
			return
		default:
			if errors.Is(err, errPanicked) {
				wariness = time.Now().Add(wary)
			}
			if err == nil {
				err = errLinkLost
			}
			r.lines.lose(l, err)
		}
	}
}

var errPanicked = errors.New("the SDK cannot read a message")

// receiveMessages is the SDK's, whose panic on a message with a property of the wrong type (a number as DeadLetterReason, say)
// is turned into an error: the broker dead-letters that message when its deliveries are used up.
func receiveMessages(ctx context.Context, from *azservicebus.Receiver, n int) (got []*azservicebus.ReceivedMessage, err error) {
	defer func() {
		if p := recover(); p != nil {
			got, err = nil, fmt.Errorf("%w: %v", errPanicked, p)
		}
	}()
	return from.ReceiveMessages(ctx, n, &azservicebus.ReceiveMessagesOptions{TimeAfterFirstMessage: afterFirst})
}

// take makes a batch of what was received and keeps its locks.
func (r *run) take(l *line[*azservicebus.Receiver], got []*azservicebus.ReceivedMessage) *batch {
	b := &batch{line: l, messages: make([]message, len(got)), done: make(chan struct{})}
	b.left.Store(int64(len(got)))
	for i, m := range got {
		b.messages[i].batch, b.messages[i].received = b, m
	}
	r.m.received.Add(float64(len(got)))
	r.m.inHand.Add(float64(len(got)))
	r.keeping.Go(func() { r.keep(b) })
	return b
}

// done lets go of a message.
func (r *run) done(m *message) {
	r.m.inHand.Dec()
	r.room.Release(1)
	if m.batch.left.Add(-1) == 0 {
		close(m.batch.done)
	}
}

// process has a batch handled and gives each message its verdict. While handling is unavailable it stays here, and nothing
// more is taken: receive can have one more batch in hand, which it cannot pass on.
func (r *run) process(b *batch) {
	waiting := make([]*message, len(b.messages))
	for i := range b.messages {
		waiting[i] = &b.messages[i]
	}
	hold := jittered(200*time.Millisecond, 5*time.Second)
	for len(waiting) > 0 {
		waiting = r.attempt(waiting)
		if len(waiting) == 0 {
			return
		}
		r.m.held.Add(float64(len(waiting)))
		if !sleep(r.ctx, hold.NextBackOff()) {
			for _, m := range waiting {
				r.leave(m)
			}
			return
		}
		waiting = stillInHand(waiting)
	}
}

func stillInHand(ms []*message) []*message {
	kept := ms[:0]
	for _, m := range ms {
		if m.state.Load() == inHand {
			kept = append(kept, m)
		}
	}
	return kept
}

// attempt has messages handled once and returns those for which it was unavailable.
func (r *run) attempt(ms []*message) (unavailable []*message) {
	in := make([]Message, len(ms))
	for i, m := range ms {
		in[i] = export(m.received)
	}
	errs := r.handle(r.work, in)
	if len(errs) != len(ms) {
		err := fmt.Errorf("handle returned %d errors for %d messages", len(errs), len(ms))
		errs = make([]error, len(ms))
		for i := range errs {
			errs[i] = err
		}
	}
	for i, m := range ms {
		v := verdictOf(errs[i])
		switch {
		case v.outcome == hold:
			unavailable = append(unavailable, m)
		case v.outcome == abandon && r.work.Err() != nil:
			r.leave(m) // it was told to stop, which is no fault of the message
		case v.outcome == abandon:
			r.o.Logger.Error("service bus: message given back", "messageId", m.received.MessageID,
				"deliveryCount", m.received.DeliveryCount, "error", errs[i])
			r.pausing.Go(func() {
				sleep(r.ctx, time.Duration((0.5+rand.Float64())*float64(r.o.AbandonDelay)))
				r.decide(m, v)
			})
		default:
			r.decide(m, v)
		}
	}
	return unavailable
}

// decide passes a message on to the settlers.
func (r *run) decide(m *message, v verdict) {
	m.verdict = v
	if m.state.CompareAndSwap(inHand, decided) {
		r.settled <- m
	}
}

// leave lets go of a message without a word to the broker, which redelivers it when its lock ends.
func (r *run) leave(m *message) {
	if m.state.CompareAndSwap(inHand, decided) {
		r.m.left.Inc()
		r.done(m)
	}
}

// export gives Handle's form of a message.
func export(m *azservicebus.ReceivedMessage) Message {
	out := Message{Body: body(m), ID: m.MessageID, DeliveryCount: m.DeliveryCount}
	if m.SequenceNumber != nil {
		out.Sequence = *m.SequenceNumber
	}
	// A subscription's messages keep the topic's number here, the same for all its subscriptions; a queue's can have 0.
	if n := m.EnqueuedSequenceNumber; n != nil && *n != 0 {
		out.Sequence = *n
	}
	if m.EnqueuedTime != nil {
		out.EnqueuedTime = *m.EnqueuedTime
	}
	if m.ContentType != nil {
		out.ContentType = *m.ContentType
	}
	if m.Subject != nil {
		out.Subject = *m.Subject
	}
	out.Traceparent, _ = m.ApplicationProperties["traceparent"].(string)
	return out
}

// body gives the bytes of a message whatever section a publisher's client put them in.
func body(m *azservicebus.ReceivedMessage) []byte {
	if m.Body != nil || m.RawAMQPMessage == nil {
		return m.Body
	}
	raw := m.RawAMQPMessage.Body
	switch v := raw.Value.(type) {
	case string:
		return []byte(v)
	case []byte:
		return v
	}
	var all []byte
	for _, part := range raw.Data {
		all = append(all, part...)
	}
	return all
}

// verdictOf is the table from kind of error to settlement (STYLE, Errors).
func verdictOf(err error) verdict {
	var invalid *status.InvalidError
	switch {
	case err == nil:
		return verdict{outcome: complete}
	case errors.As(err, &invalid):
		return verdict{deadLetter, string(invalid.Reason), cut(invalid.Error(), maxDescription)}
	case errors.Is(err, status.ErrInvalid):
		return verdict{deadLetter, string(status.ReasonInvalid), ""} // its text may quote the message
	case errors.Is(err, status.ErrUnavailable):
		return verdict{outcome: hold}
	default:
		return verdict{outcome: abandon}
	}
}
