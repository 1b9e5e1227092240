package servicebus

import (
	"context"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"golang.org/x/sync/errgroup"
)

const (
	// settleTimeout is below the 3.2 s after which the SDK would try a settlement again at the earliest. Its second try is
	// worse than none: it finds a message that the broker refused to settle marked as settled and reports success, and on a broken
	// connection it tears down the one that came after.
	settleTimeout = 2 * time.Second

	// reconnectWait is how long a settlement waits for a connection before it is given up.
	reconnectWait = 15 * time.Second

	renewTimeout = 5 * time.Second
	renewers     = 32 // renewals of one batch on their way at the same time

	// maxDescription is Service Bus's limit for a dead-letter description, in characters.
	maxDescription = 4096
)

type outcome uint8

const (
	complete outcome = iota
	deadLetter
	abandon
	hold
)

type verdict struct {
	outcome             outcome
	reason, description string // of deadLetter
}

// tell settles a message over the link it came on, or by lock token when m has nothing else.
func (v *verdict) tell(ctx context.Context, end *azservicebus.Receiver, m *azservicebus.ReceivedMessage) error {
	switch v.outcome {
	case complete:
		return end.CompleteMessage(ctx, m, nil)
	case deadLetter:
		return end.DeadLetterMessage(ctx, m, &azservicebus.DeadLetterOptions{Reason: &v.reason, ErrorDescription: &v.description})
	default:
		return end.AbandonMessage(ctx, m, nil)
	}
}

// settle tells the broker the verdict and lets go of the message, whatever the broker says.
func (r *run) settle(m *message) {
	defer r.done(m)
	err := r.overLink(m)
	if err != nil && !lockLost(err) {
		err = r.byToken(m)
	}
	switch {
	case err == nil:
		r.count(m)
	case lockLost(err):
		r.m.lockLost.Inc()
	case r.work.Err() != nil:
		r.m.left.Inc()
	default:
		r.m.settleFailures.Inc()
		r.o.Logger.Warn("service bus: message not settled", "messageId", m.received.MessageID, "error", err)
	}
}

func (r *run) count(m *message) {
	switch m.verdict.outcome {
	case complete:
		r.m.completed.Inc()
	case deadLetter:
		r.m.deadLettered.WithLabelValues(m.verdict.reason).Inc()
	default:
		r.m.abandoned.Inc()
	}
	if t := m.received.EnqueuedTime; t != nil {
		r.m.latency.Observe(r.o.Now().Sub(*t).Seconds())
	}
}

func (r *run) overLink(m *message) error {
	b := m.batch
	if b.broken.Load() {
		return errLinkLost
	}
	ctx, cancel := context.WithTimeout(b.line.ctx, settleTimeout)
	defer cancel()
	err := m.verdict.tell(ctx, b.line.end, m.received)
	if err != nil && !lockLost(err) {
		b.broken.Store(true)
	}
	return err
}

// byToken settles over the management link of whatever line is up: a lock belongs to the message and survives its link.
func (r *run) byToken(m *message) error {
	ctx, cancel := context.WithTimeout(r.work, reconnectWait)
	defer cancel()
	l, err := r.lines.get(ctx)
	if err != nil {
		return err
	}
	telling, cancelTelling := context.WithTimeout(ctx, settleTimeout)
	defer cancelTelling()
	err = m.verdict.tell(telling, l.end, &azservicebus.ReceivedMessage{LockToken: m.received.LockToken})
	// Running out of time says nothing about the line: the SDK hides a refusal that way as well.
	if err != nil && telling.Err() == nil && !answered(err) {
		r.lines.lose(l, err)
	}
	return err
}

// keep renews the locks of what is in hand of a batch until nothing is.
func (r *run) keep(b *batch) {
	until := make([]time.Time, 0, len(b.messages))
	for i := range b.messages {
		if t := b.messages[i].received.LockedUntil; t != nil {
			until = append(until, *t)
		}
	}
	timer := time.NewTimer(r.renewIn(until))
	defer timer.Stop()
	for {
		select {
		case <-b.done:
			return
		case <-r.work.Done():
			return
		case <-timer.C:
			timer.Reset(r.renewIn(r.renew(b)))
		}
	}
}

// renewIn says when to renew: half-way to the end of the first lock. What it says is bounded, because the ends are told by the
// broker's clock and this one may differ: at most 10 s, and 2.5 s (half of the shortest lock there is) when the lock seems to be over
// already. Whether it is, the broker decides.
func (r *run) renewIn(until []time.Time) time.Duration {
	left := 20 * time.Second
	now := r.o.Now()
	for _, t := range until {
		left = min(left, t.Sub(now))
	}
	if left <= 0 {
		left = 5 * time.Second
	}
	return max(left/2, 100*time.Millisecond)
}

// renew renews the locks of a batch's messages that are in hand, and lets go of those that have none any more. It returns when
// the locks end.
func (r *run) renew(b *batch) (until []time.Time) {
	ends := make([]time.Time, len(b.messages))
	var group errgroup.Group
	group.SetLimit(renewers)
	for i := range b.messages {
		m := &b.messages[i]
		if m.state.Load() != inHand {
			continue
		}
		group.Go(func() error {
			ends[i] = r.renewOne(m)
			return nil
		})
	}
	_ = group.Wait() // they return no errors
	for _, t := range ends {
		if !t.IsZero() {
			until = append(until, t)
		}
	}
	return until
}

// renewOne returns when the message's lock ends: never when that is of no interest any more.
func (r *run) renewOne(m *message) (until time.Time) {
	ctx, cancel := context.WithTimeout(r.work, renewTimeout)
	defer cancel()
	l, err := r.lines.get(ctx)
	if err != nil {
		return *orZero(m.received.LockedUntil)
	}
	target := m.received
	if l != m.batch.line {
		// Requests that name a link keep it from being detached as idle; this one's is gone.
		target = &azservicebus.ReceivedMessage{LockToken: m.received.LockToken}
	}
	err = l.end.RenewMessageLock(ctx, target, nil)
	switch {
	case err == nil:
		m.received.LockedUntil = target.LockedUntil
	case lockLost(err):
		if m.state.CompareAndSwap(inHand, lost) {
			r.m.lockLost.Inc()
			r.done(m)
		}
		return time.Time{}
	case r.work.Err() == nil && !answered(err):
		r.lines.lose(l, errors.Join(errRenewal, err))
	}
	return *orZero(m.received.LockedUntil)
}

var errRenewal = errors.New("a lock could not be renewed")

func orZero(t *time.Time) *time.Time {
	if t == nil {
		return &time.Time{}
	}
	return t
}

// cut shortens text to at most n bytes, and so at most n characters, without splitting one.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
