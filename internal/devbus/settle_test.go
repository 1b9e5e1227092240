package devbus_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
)

func TestMessageAbandonedTooOftenIsDeadLettered(t *testing.T) {
	h := start(t, standard()) // three deliveries at most
	h.send(h.sender(queue), "x")
	r := h.receiver(nil)
	for want := uint32(1); want <= 3; want++ {
		m := h.one(r)
		if m.DeliveryCount != want {
			t.Errorf("delivery count %d, want %d", m.DeliveryCount, want)
		}
		h.must(r.AbandonMessage(h.ctx, m, nil))
	}
	dlq := h.receiver(&azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
	m := h.one(dlq)
	if *m.DeadLetterReason != "MaxDeliveryCountExceeded" || *m.SequenceNumber != 1 {
		t.Errorf("got %+v", m)
	}
}

func TestDeadLettersAreNotCounted(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "x")
	r := h.receiver(nil)
	h.must(r.DeadLetterMessage(h.ctx, h.one(r), nil))
	dlq := h.receiver(&azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
	for range 5 {
		m := h.one(dlq)
		if m.DeliveryCount != 1 {
			t.Errorf("delivery count %d", m.DeliveryCount)
		}
		h.must(dlq.AbandonMessage(h.ctx, m, nil))
	}
}

func TestReleasedMessageIsNotCounted(t *testing.T) {
	h := start(t, standard())
	r := h.receiver(nil)
	// Credit for ten messages stays on the link, and the client's releaser sends back what comes.
	h.send(h.sender(queue), "first")
	if ms, err := r.ReceiveMessages(h.ctx, 10, nil); err != nil || len(ms) != 1 {
		t.Fatalf("got %d messages, %v", len(ms), err)
	}
	h.send(h.sender(queue), "second")
	m := h.one(r)
	if string(m.Body) != "second" || m.DeliveryCount != 1 {
		t.Errorf("got %q, delivery count %d", m.Body, m.DeliveryCount)
	}
}

func TestReceiveAndDeleteForgetsAtOnce(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "a", "b")
	r := h.receiver(&azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	h.receive(r, 2)
	if s := h.stats(queue); s.Completed != 2 || s.Active+s.Locked != 0 {
		t.Errorf("%+v", s)
	}
}

func TestMoreMessagesThanASessionsWindowArrive(t *testing.T) {
	h := start(t, standard())
	const n = 12000 // the window is 5000 in either direction
	fill(h, h.sender(queue), n)
	r := h.receiver(&azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	var last int64
	for range n / 4000 {
		for _, m := range h.receive(r, 4000) {
			if *m.SequenceNumber != last+1 {
				t.Fatalf("message %d after %d", *m.SequenceNumber, last)
			}
			last = *m.SequenceNumber
		}
	}
}

func TestMoreSendsThanASessionsWindowAreTaken(t *testing.T) {
	h := start(t, standard())
	s := h.sender(topic)
	const n = 6000
	next := make(chan int)
	done := make(chan error, 64)
	for range cap(done) {
		go func() {
			var first error
			for i := range next {
				if err := s.SendMessage(h.ctx, &azservicebus.Message{Body: fmt.Append(nil, i)}, nil); err != nil && first == nil {
					first = err
				}
			}
			done <- first
		}()
	}
	for i := range n {
		next <- i
	}
	close(next)
	for range cap(done) {
		h.must(<-done)
	}
	if s := h.stats(topic + "/subscriptions/" + second); s.Active != n {
		t.Errorf("%+v", s)
	}
}

func TestLargeMessageTravelsInSeveralFrames(t *testing.T) {
	h := start(t, standard())
	want := strings.Repeat("0123456789", 25000)
	h.send(h.sender(queue), want, "small", want)
	r := h.receiver(nil)
	for i, m := range h.receive(r, 3) {
		if i == 1 && string(m.Body) != "small" || i != 1 && string(m.Body) != want {
			t.Errorf("message %d: %d bytes", i, len(m.Body))
		}
		h.must(r.CompleteMessage(h.ctx, m, nil))
	}
}

func TestMessageBeyondTheLimitIsRefused(t *testing.T) {
	o := standard()
	o.MaxMessageBytes = 10000
	h := start(t, o)
	s := h.sender(queue)
	err := s.SendMessage(h.ctx, &azservicebus.Message{Body: make([]byte, 10001)}, nil)
	if err != azservicebus.ErrMessageTooLarge {
		t.Errorf("got %v", err)
	}
	b, err := s.NewMessageBatch(h.ctx, nil)
	h.must(err)
	if err := b.AddMessage(&azservicebus.Message{Body: make([]byte, 10001)}, nil); err != azservicebus.ErrMessageTooLarge {
		t.Errorf("batch: got %v", err)
	}
	h.send(s, "small")
}

func TestFullEntityRefusesSendsUntilThereIsRoom(t *testing.T) {
	o := standard()
	o.MaxEntityBytes = 4000
	h := start(t, o)
	s := h.sender(topic)
	large := &azservicebus.Message{Body: make([]byte, 3000)}
	h.must(s.SendMessage(h.ctx, large, nil))
	err := s.SendMessage(h.ctx, large, nil)
	if err == nil || !strings.Contains(err.Error(), "amqp:resource-limit-exceeded") {
		t.Fatalf("got %v", err)
	}
	// Room in one of two subscriptions is not enough, and nothing is stored in either.
	a, b := h.subscriber(subscription, nil), h.subscriber(second, nil)
	h.must(a.CompleteMessage(h.ctx, h.one(a), nil))
	if err := s.SendMessage(h.ctx, large, nil); err == nil {
		t.Error("sent beyond the limit")
	}
	// A dead letter takes room as before.
	h.must(b.DeadLetterMessage(h.ctx, h.one(b), nil))
	if err := s.SendMessage(h.ctx, large, nil); err == nil {
		t.Error("sent beyond the limit of dead letters")
	}
	dlq := h.subscriber(second, &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
	h.must(dlq.CompleteMessage(h.ctx, h.one(dlq), nil))
	h.must(s.SendMessage(h.ctx, large, nil))
	if got := h.stats(topic + "/Subscriptions/" + subscription); got.TotalEnqueued != 2 {
		t.Errorf("%+v", got)
	}
}

func TestDeferredMessageComesBackOnlyByItsNumber(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "later", "now")
	r := h.receiver(nil)
	m := h.one(r)
	number := *m.SequenceNumber
	h.must(r.DeferMessage(h.ctx, m, &azservicebus.DeferMessageOptions{PropertiesToModify: map[string]any{"why": "early"}}))
	if m := h.one(r); string(m.Body) != "now" {
		t.Fatalf("got %q", m.Body)
	}
	if s := h.stats(queue); s.Deferred != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := r.ReceiveDeferredMessages(h.ctx, []int64{77}, nil); err == nil {
		t.Error("received an unknown number")
	}
	ms, err := r.ReceiveDeferredMessages(h.ctx, []int64{number}, nil)
	h.must(err)
	if len(ms) != 1 || string(ms[0].Body) != "later" || ms[0].State != azservicebus.MessageStateDeferred ||
		ms[0].ApplicationProperties["why"] != "early" {
		t.Fatalf("got %+v", ms)
	}
	// Abandoned, it stays deferred.
	h.must(r.AbandonMessage(h.ctx, ms[0], nil))
	if s := h.stats(queue); s.Deferred != 1 || s.Active != 0 {
		t.Errorf("%+v", s)
	}
	ms, err = r.ReceiveDeferredMessages(h.ctx, []int64{number}, nil)
	h.must(err)
	h.must(r.CompleteMessage(h.ctx, ms[0], nil))
	if s := h.stats(queue); s.Deferred != 0 || s.Completed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestDeferredMessagesCanBeReceivedAndDeleted(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "a", "b")
	r := h.receiver(nil)
	for _, m := range h.receive(r, 2) {
		h.must(r.DeferMessage(h.ctx, m, nil))
	}
	deleter := h.receiver(&azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	ms, err := deleter.ReceiveDeferredMessages(h.ctx, []int64{2, 1}, nil)
	h.must(err)
	if len(ms) != 2 || string(ms[0].Body) != "b" || string(ms[1].Body) != "a" {
		t.Errorf("got %d messages", len(ms))
	}
	if s := h.stats(queue); s.Deferred != 0 || s.Completed != 2 {
		t.Errorf("%+v", s)
	}
}

func TestPeekShowsMessagesInEveryState(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "gone", "locked", "deferred", "active")
	r := h.receiver(nil)
	ms := h.receive(r, 3)
	h.must(r.CompleteMessage(h.ctx, ms[0], nil))
	h.must(r.DeferMessage(h.ctx, ms[2], nil))
	peeker := h.receiver(nil)
	var got []string
	for {
		ms, err := peeker.PeekMessages(h.ctx, 2, nil)
		h.must(err)
		if len(ms) == 0 {
			break
		}
		for _, m := range ms {
			got = append(got, fmt.Sprint(string(m.Body), m.State))
		}
	}
	if want := []string{"locked0", "deferred1", "active0"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMessageIsSettledOnlyOnce(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "x")
	a, b := h.receiver(nil), h.receiver(nil)
	m := h.one(a)
	h.must(b.CompleteMessage(h.ctx, &azservicebus.ReceivedMessage{LockToken: m.LockToken}, nil))
	if err := a.CompleteMessage(h.ctx, m, nil); code(err) != azservicebus.CodeLockLost {
		t.Errorf("got %v", err)
	}
	if err := b.RenewMessageLock(h.ctx, m, nil); code(err) != azservicebus.CodeLockLost {
		t.Errorf("renew: got %v", err)
	}
}

// Settlement by token is what the relay falls back on: see what every outcome does.
func TestEveryOutcomeWorksByLockToken(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "complete", "abandon", "defer", "dead")
	r := h.receiver(nil)
	for _, m := range h.receive(r, 4) {
		byToken := &azservicebus.ReceivedMessage{LockToken: m.LockToken}
		switch string(m.Body) {
		case "complete":
			h.must(r.CompleteMessage(h.ctx, byToken, nil))
		case "abandon":
			h.must(r.AbandonMessage(h.ctx, byToken, &azservicebus.AbandonMessageOptions{
				PropertiesToModify: map[string]any{"tried": int64(1)},
			}))
		case "defer":
			h.must(r.DeferMessage(h.ctx, byToken, nil))
		case "dead":
			h.must(r.DeadLetterMessage(h.ctx, byToken, &azservicebus.DeadLetterOptions{
				Reason: ptr("bad"), ErrorDescription: ptr("why"),
			}))
		}
	}
	if s := h.stats(queue); s.Completed != 1 || s.Active != 1 || s.Deferred != 1 || s.DeadLettered != 1 || s.Locked != 0 {
		t.Errorf("%+v", s)
	}
	if m := h.one(r); m.DeliveryCount != 2 || m.ApplicationProperties["tried"] != int64(1) {
		t.Errorf("got %+v", m)
	}
	dead := h.one(h.receiver(&azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter}))
	if *dead.DeadLetterReason != "bad" || *dead.DeadLetterErrorDescription != "why" {
		t.Errorf("got %+v", dead)
	}
}

func TestCompetingReceiversShareAndNeverDouble(t *testing.T) {
	h := start(t, standard())
	const n = 400
	a, b := h.receiver(nil), h.receiver(nil)
	counts := make(chan map[string]int, 2)
	ctx, cancel := context.WithCancel(h.ctx)
	for _, r := range []*azservicebus.Receiver{a, b} {
		go func() {
			got := make(map[string]int)
			defer func() { counts <- got }()
			for {
				ms, err := r.ReceiveMessages(ctx, 10, nil)
				if err != nil {
					return
				}
				for _, m := range ms {
					got[string(m.Body)]++
					if err := r.CompleteMessage(h.ctx, m, nil); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	s := h.sender(queue)
	for i := range n {
		h.send(s, fmt.Sprint(i))
	}
	waitUntil(t, func() bool { return h.stats(queue).Completed == n })
	cancel()
	x, y := <-counts, <-counts
	for k, c := range y {
		x[k] += c
	}
	if len(x) != n {
		t.Errorf("%d different messages, want %d", len(x), n)
	}
	for k, c := range x {
		if c != 1 {
			t.Errorf("message %s came %d times", k, c)
		}
	}
}

// waitUntil polls, for what happens in another goroutine or process of events.
func waitUntil(t testing.TB, done func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("waited in vain")
		}
	}
}

func TestMissingEntityIsNotFound(t *testing.T) {
	h := start(t, standard())
	s := h.sender("nowhere")
	if err := s.SendMessage(h.ctx, &azservicebus.Message{}, nil); code(err) != azservicebus.CodeNotFound {
		t.Errorf("got %v", err)
	}
	if _, err := h.bus.Stats("nowhere"); err == nil {
		t.Error("statistics of nothing")
	}
}

func TestTokensAreCheckedWhenAKeyIsSet(t *testing.T) {
	for _, c := range []struct {
		key  string
		want azservicebus.Code
	}{{devbus.DevelopmentKey, ""}, {"another", azservicebus.CodeUnauthorizedAccess}} {
		o := standard()
		o.SharedAccessKey = c.key
		h := start(t, o)
		err := h.sender(topic).SendMessage(h.ctx, &azservicebus.Message{}, nil)
		if code(err) != c.want || c.want == "" && err != nil {
			t.Errorf("key %q: got %v", c.key, err)
		}
	}
}

func TestSchedulingByManagementRequestIsRefusedAtOnce(t *testing.T) {
	h := start(t, standard())
	_, err := h.sender(queue).ScheduleMessages(h.ctx, []*azservicebus.Message{{}}, time.Now().Add(time.Hour), nil)
	if code(err) != azservicebus.CodeNotFound {
		t.Errorf("got %v", err)
	}
}

// schedule sends messages that are due after a while.
func (h *harness) schedule(s *azservicebus.Sender, wait time.Duration, bodies ...string) {
	h.t.Helper()
	due := time.Now().Add(wait)
	for _, b := range bodies {
		h.must(s.SendMessage(h.ctx, &azservicebus.Message{Body: []byte(b), ScheduledEnqueueTime: &due}, nil))
	}
}

func TestScheduledMessagesAreActivatedInOrderWhenATestSaysSo(t *testing.T) {
	h := start(t, standard())
	s := h.sender(topic)
	h.schedule(s, 2*time.Hour, "last")
	h.schedule(s, time.Hour, "first", "second")
	h.send(s, "now")
	if st := h.stats(topic); st.Scheduled != 3 || st.TotalEnqueued != 1 {
		t.Errorf("the topic: %+v", st)
	}
	if n := h.bus.Faults().Activate(topic); n != 3 {
		t.Errorf("%d messages activated, want 3", n)
	}
	for _, name := range []string{subscription, second} {
		for i, want := range []string{"now", "first", "second", "last"} {
			m := h.one(h.subscriber(name, &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete}))
			if string(m.Body) != want || *m.SequenceNumber != int64(i+1) || *m.EnqueuedSequenceNumber != int64(i+1) {
				t.Errorf("%s: got %q, number %d, %d at the topic, want %q, %d", name, m.Body, *m.SequenceNumber, *m.EnqueuedSequenceNumber, want, i+1)
			}
		}
	}
	if st := h.stats(topic); st.Scheduled != 0 || st.TotalEnqueued != 4 {
		t.Errorf("the topic in the end: %+v", st)
	}
}

func TestScheduledMessagesTakeUpRoom(t *testing.T) {
	o := standard()
	o.MaxEntityBytes = 2000
	h := start(t, o)
	s := h.sender(topic)
	h.schedule(s, time.Hour, string(make([]byte, 1200)))
	due := time.Now().Add(time.Hour)
	err := s.SendMessage(h.ctx, &azservicebus.Message{Body: make([]byte, 1200), ScheduledEnqueueTime: &due}, nil)
	if err == nil || !strings.Contains(err.Error(), "amqp:resource-limit-exceeded") {
		t.Errorf("got %v, want no room", err)
	}
}

func TestSessionReceiverIsRefusedAtOnce(t *testing.T) {
	h := start(t, standard())
	_, err := h.client().AcceptSessionForQueue(h.ctx, queue, "s", nil)
	if err == nil || !strings.Contains(err.Error(), "amqp:not-allowed") {
		t.Errorf("got %v", err)
	}
}
