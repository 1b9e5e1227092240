package devbus_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
)

const (
	queue        = "jobs"
	topic        = "status"
	subscription = "relay"
	second       = "audit"
)

func standard() devbus.Options {
	return devbus.Options{
		Queues: []devbus.Queue{{Name: queue, MaxDeliveryCount: 3}},
		Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{
			{Name: subscription}, {Name: second},
		}}},
	}
}

// harness is a bus and clients for it: over TCP, or whatever dial gives.
type harness struct {
	t    testing.TB
	bus  *devbus.Bus
	addr string
	ctx  context.Context
	dial func(context.Context, azservicebus.NewWebSocketConnArgs) (net.Conn, error)

	clients []*azservicebus.Client
}

func start(t testing.TB, o devbus.Options) *harness {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, bus: devbus.New(o), addr: l.Addr().String()}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	h.ctx = ctx
	served := make(chan error, 1)
	go func() { served <- h.bus.Serve(context.WithoutCancel(ctx), l) }()
	t.Cleanup(func() {
		h.hangUp()
		cancel()
		h.bus.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return h
}

func (h *harness) client() *azservicebus.Client {
	h.t.Helper()
	c, err := azservicebus.NewClientFromConnectionString(devbus.ConnectionString(cmp.Or(h.addr, "in-memory")), &azservicebus.ClientOptions{
		NewWebSocketConn: h.dial,
		RetryOptions:     azservicebus.RetryOptions{RetryDelay: 10 * time.Millisecond, MaxRetryDelay: 100 * time.Millisecond},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.clients = append(h.clients, c)
	return c
}

// hangUp closes the clients: before the bus, or they would try to connect again.
func (h *harness) hangUp() {
	for _, c := range h.clients {
		c.Close(context.Background())
	}
}

func (h *harness) sender(entity string) *azservicebus.Sender {
	h.t.Helper()
	s, err := h.client().NewSender(entity, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *harness) receiver(o *azservicebus.ReceiverOptions) *azservicebus.Receiver {
	h.t.Helper()
	r, err := h.client().NewReceiverForQueue(queue, o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *harness) subscriber(name string, o *azservicebus.ReceiverOptions) *azservicebus.Receiver {
	h.t.Helper()
	r, err := h.client().NewReceiverForSubscription(topic, name, o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *harness) send(s *azservicebus.Sender, bodies ...string) {
	h.t.Helper()
	for _, b := range bodies {
		if err := s.SendMessage(h.ctx, &azservicebus.Message{Body: []byte(b)}, nil); err != nil {
			h.t.Fatalf("send %q: %v", b, err)
		}
	}
}

// receive takes exactly n messages, in however many calls.
func (h *harness) receive(r *azservicebus.Receiver, n int) []*azservicebus.ReceivedMessage {
	h.t.Helper()
	var got []*azservicebus.ReceivedMessage
	for len(got) < n {
		ms, err := r.ReceiveMessages(h.ctx, n-len(got), nil)
		if err != nil {
			h.t.Fatalf("receive: %v after %d messages", err, len(got))
		}
		got = append(got, ms...)
	}
	return got
}

func (h *harness) one(r *azservicebus.Receiver) *azservicebus.ReceivedMessage {
	h.t.Helper()
	return h.receive(r, 1)[0]
}

func (h *harness) stats(entity string) devbus.Stats {
	h.t.Helper()
	s, err := h.bus.Stats(entity)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func code(err error) azservicebus.Code {
	var e *azservicebus.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestSentMessageArrivesWithAllItsParts(t *testing.T) {
	h := start(t, standard())
	sent := &azservicebus.Message{
		Body: []byte(`{"a":1}`), MessageID: ptr("m1"), Subject: ptr("s"), CorrelationID: ptr("c"),
		ContentType: ptr("application/json"), To: ptr("to"), ReplyTo: ptr("rt"), PartitionKey: ptr("pk"),
		TimeToLive: ptr(time.Hour),
		ApplicationProperties: map[string]any{
			"int": int64(-5), "float": 1.5, "bool": true, "text": "é", "bytes": []byte{1},
			"byte": int8(3), "uint": uint32(7), "time": time.UnixMilli(1700000000123).UTC(),
		},
	}
	h.must(h.sender(queue).SendMessage(h.ctx, sent, nil))
	m := h.one(h.receiver(nil))
	if string(m.Body) != string(sent.Body) || m.MessageID != "m1" || *m.Subject != "s" || *m.CorrelationID != "c" ||
		*m.ContentType != "application/json" || *m.To != "to" || *m.ReplyTo != "rt" || *m.PartitionKey != "pk" ||
		*m.TimeToLive != time.Hour {
		t.Errorf("got %+v", m)
	}
	if got, want := fmt.Sprint(m.ApplicationProperties), fmt.Sprint(sent.ApplicationProperties); got != want {
		t.Errorf("application properties: got %s, want %s", got, want)
	}
	if *m.SequenceNumber != 1 || m.DeliveryCount != 1 || m.State != azservicebus.MessageStateActive {
		t.Errorf("sequence %d, count %d, state %d", *m.SequenceNumber, m.DeliveryCount, m.State)
	}
	if d := m.LockedUntil.Sub(*m.EnqueuedTime); d < time.Minute {
		t.Errorf("locked for %v", d)
	}
}

func ptr[T any](v T) *T { return &v }

func TestEverySubscriptionGetsItsCopy(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(topic), "a", "b")
	for _, name := range []string{subscription, second} {
		r := h.subscriber(name, nil)
		for i, m := range h.receive(r, 2) {
			if want := string(rune('a' + i)); string(m.Body) != want {
				t.Errorf("%s: got %q, want %q", name, m.Body, want)
			}
			h.must(r.CompleteMessage(h.ctx, m, nil))
		}
		if s := h.stats("STATUS/subscriptions/" + name); s.Completed != 2 || s.Active+s.Locked != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func TestBatchIsUnpacked(t *testing.T) {
	h := start(t, standard())
	s := h.sender(topic)
	b, err := s.NewMessageBatch(h.ctx, nil)
	h.must(err)
	const n = 50
	for i := range n {
		h.must(b.AddMessage(&azservicebus.Message{Body: fmt.Append(nil, i)}, nil))
	}
	h.must(s.SendMessageBatch(h.ctx, b, nil))
	for i, m := range h.receive(h.subscriber(subscription, nil), n) {
		if string(m.Body) != fmt.Sprint(i) || m.MessageID == "" {
			t.Errorf("message %d: body %q, id %q", i, m.Body, m.MessageID)
		}
	}
}

func TestMessageWithoutIDGetsOne(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "x")
	if m := h.one(h.receiver(nil)); len(m.MessageID) != 32 {
		t.Errorf("id %q", m.MessageID)
	}
}

func TestAbandonedMessageReturnsWithACountAndChangedProperties(t *testing.T) {
	h := start(t, standard())
	s, r := h.sender(queue), h.receiver(nil)
	h.must(s.SendMessage(h.ctx, &azservicebus.Message{ApplicationProperties: map[string]any{"keep": "1", "change": "1"}}, nil))
	m := h.one(r)
	h.must(r.AbandonMessage(h.ctx, m, &azservicebus.AbandonMessageOptions{
		PropertiesToModify: map[string]any{"change": int64(2), "add": true},
	}))
	m = h.one(r)
	if m.DeliveryCount != 2 {
		t.Errorf("delivery count %d", m.DeliveryCount)
	}
	if got, want := fmt.Sprint(m.ApplicationProperties), "map[add:true change:2 keep:1]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	h.must(r.CompleteMessage(h.ctx, m, nil))
}

func TestDeadLetteredMessageCarriesItsReason(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "bad")
	r := h.receiver(nil)
	h.must(r.DeadLetterMessage(h.ctx, h.one(r), &azservicebus.DeadLetterOptions{
		Reason: ptr("invalid"), ErrorDescription: ptr("no instance"), PropertiesToModify: map[string]any{"by": "me"},
	}))
	if s := h.stats(queue); s.DeadLettered != 1 || s.Locked != 0 {
		t.Errorf("%+v", s)
	}
	dlq := h.receiver(&azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
	m := h.one(dlq)
	if *m.DeadLetterReason != "invalid" || *m.DeadLetterErrorDescription != "no instance" ||
		m.ApplicationProperties["by"] != "me" || string(m.Body) != "bad" || *m.SequenceNumber != 1 {
		t.Errorf("got %+v", m)
	}
	h.must(dlq.CompleteMessage(h.ctx, m, nil))
}

func TestRenewedLockOutlivesItsFirstTerm(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "x")
	r := h.receiver(nil)
	m := h.one(r)
	before := *m.LockedUntil
	h.must(r.RenewMessageLock(h.ctx, m, nil))
	if m.LockedUntil.Before(before) {
		t.Errorf("locked until %v, before %v", m.LockedUntil, before)
	}
	h.must(r.CompleteMessage(h.ctx, m, nil))
}

func TestManySettlementsAtOnceAreAllConfirmed(t *testing.T) {
	h := start(t, standard())
	s, r := h.sender(queue), h.receiver(nil)
	const n = 1000
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := s.SendMessage(h.ctx, &azservicebus.Message{Body: fmt.Append(nil, i)}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, m := range h.receive(r, n) {
		wg.Go(func() {
			if err := r.CompleteMessage(h.ctx, m, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := h.stats(queue); s.Completed != n || s.Locked != 0 {
		t.Errorf("%+v", s)
	}
}

func roomy() devbus.Options {
	o := standard()
	o.MaxEntityBytes = 4 << 30
	return o
}
