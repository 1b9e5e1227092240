package devbus_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
)

func bodies(ms []*azservicebus.ReceivedMessage) (all []string) {
	for _, m := range ms {
		all = append(all, string(m.Body))
	}
	return all
}

func TestSettlingByTokenSurvivesALostConnection(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "x")
		r := h.receiver(nil)
		m := h.one(r)
		h.bus.DropConnections()
		h.must(r.CompleteMessage(h.ctx, &azservicebus.ReceivedMessage{LockToken: m.LockToken}, nil))
		if s := h.stats(queue); s.Completed != 1 || s.Locked != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestClientsRecoverFromEveryWayOfLosingTheBus(t *testing.T) {
	h := start(t, standard())
	f := h.bus.Faults()
	s, r := h.sender(queue), h.receiver(nil)
	h.send(s, "first")
	h.must(r.CompleteMessage(h.ctx, h.one(r), nil))
	for _, fault := range []struct {
		name   string
		strike func()
	}{
		{"connections dropped", h.bus.DropConnections},
		{"connections closed", func() { f.CloseConnections("amqp:connection:forced") }},
		{"sessions ended", func() { f.EndSessions("amqp:internal-error") }},
		{"links detached", func() {
			if n := f.DetachLinks(queue, "amqp:link:detach-forced"); n != 2 {
				t.Errorf("detached %d links, want 2", n)
			}
		}},
		{"all links detached", func() { f.DetachLinks("", "amqp:internal-error") }},
		{"connections refused for a while", func() {
			f.RefuseConnections(true)
			h.bus.DropConnections()
			time.AfterFunc(50*time.Millisecond, func() { f.RefuseConnections(false) })
		}},
		{"links refused for a while", func() {
			f.RefuseLinks(queue, "amqp:internal-error")
			h.bus.DropConnections()
			time.AfterFunc(50*time.Millisecond, func() { f.RefuseLinks(queue, "") })
		}},
		{"tokens refused for a while", func() {
			f.RefuseTokens(503)
			h.bus.DropConnections()
			time.AfterFunc(50*time.Millisecond, func() { f.RefuseTokens(0) })
		}},
		{"silence for a while", func() {
			f.Stall()
			time.AfterFunc(50*time.Millisecond, f.Resume)
		}},
	} {
		t.Log(fault.name)
		fault.strike()
		h.send(s, fault.name)
		m := h.one(r)
		if string(m.Body) != fault.name {
			t.Errorf("%s: got %q", fault.name, m.Body)
		}
		h.must(r.CompleteMessage(h.ctx, m, nil))
	}
}

func TestRejectedSendStoresNothing(t *testing.T) {
	h := start(t, standard())
	s := h.sender(queue)
	h.send(s, "before")
	h.bus.Faults().RejectSends(queue, 1, "amqp:unauthorized-access")
	if err := s.SendMessage(h.ctx, &azservicebus.Message{}, nil); code(err) != azservicebus.CodeUnauthorizedAccess {
		t.Errorf("got %v", err)
	}
	h.send(s, "after")
	if st := h.stats(queue); st.TotalEnqueued != 2 {
		t.Errorf("%+v", st)
	}
}

// What the client does here is a trap for whoever takes its nil for an answer.
func TestRejectedSettlementCanReadAsSuccess(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "x")
		r := h.receiver(nil)
		m := h.one(r)
		h.bus.Faults().RejectSettlements(queue, 1, "com.microsoft:server-busy")
		h.must(r.CompleteMessage(h.ctx, m, nil))
		if s := h.stats(queue); s.Completed != 0 || s.Locked != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestLostConfirmationsHideWhatWasDone(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		s, r := h.sender(queue), h.receiver(nil)
		h.bus.Faults().LoseSendConfirmations(queue, 1)
		ctx, cancel := context.WithTimeout(h.ctx, time.Second)
		defer cancel()
		if err := s.SendMessage(ctx, &azservicebus.Message{}, nil); err == nil {
			t.Error("the send was confirmed")
		}
		if st := h.stats(queue); st.TotalEnqueued != 1 {
			t.Errorf("%+v", st)
		}
		h.bus.Faults().LoseSettlementConfirmations(queue, 1)
		m := h.one(r)
		ctx, cancel = context.WithTimeout(h.ctx, time.Second)
		defer cancel()
		if err := r.CompleteMessage(ctx, m, nil); err == nil {
			t.Error("the settlement was confirmed")
		}
		if st := h.stats(queue); st.Completed != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestManagementAnswersAsTold(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "x")
	r := h.receiver(nil)
	m := h.one(r)
	h.bus.Faults().AnswerManagement(queue, 1, 410)
	if err := r.RenewMessageLock(h.ctx, m, nil); code(err) != azservicebus.CodeLockLost {
		t.Errorf("got %v", err)
	}
	h.must(r.RenewMessageLock(h.ctx, m, nil))
}

func TestDuplicatedMessagesComeTwice(t *testing.T) {
	h := start(t, standard())
	h.bus.Faults().Duplicate(topic, 2)
	h.send(h.sender(topic), "a", "b", "c")
	got := bodies(h.receive(h.subscriber(subscription, nil), 5))
	if want := []string{"a", "a", "b", "b", "c"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestHeldMessagesAreReleasedInTheOrderAskedFor(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.bus.Faults().Hold(queue)
		h.send(h.sender(queue), "a", "b", "c", "d")
		r := h.receiver(nil)
		received := make(chan []string)
		go func() { received <- bodies(h.receive(r, 4)) }()
		synctest.Wait()
		if st := h.stats(queue); st.Active != 4 {
			t.Errorf("while held: %+v", st)
		}
		h.bus.Faults().Release(queue, devbus.Reversed)
		got := <-received
		if want := []string{"d", "c", "b", "a"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		// The order belongs to the messages: it is the same when they come again.
		got = bodies(h.receive(r, 4))
		if want := []string{"d", "c", "b", "a"}; !slices.Equal(got, want) {
			t.Errorf("again: got %v, want %v", got, want)
		}
	})
}

func TestLocksExpireWhenTold(t *testing.T) {
	h := start(t, standard())
	h.send(h.sender(queue), "a", "b")
	r := h.receiver(nil)
	ms := h.receive(r, 2)
	if n := h.bus.Faults().ExpireLocks(queue); n != 2 {
		t.Errorf("%d locks, want 2", n)
	}
	for _, m := range ms {
		if err := r.CompleteMessage(h.ctx, m, nil); code(err) != azservicebus.CodeLockLost {
			t.Errorf("got %v", err)
		}
	}
	if m := h.one(r); m.DeliveryCount != 2 {
		t.Errorf("delivery count %d", m.DeliveryCount)
	}
}

// A link detached with a retryable condition is one that the client never recovers from: the
// relay has to notice.
func TestReceiverDetachedAsBusyIsDeaf(t *testing.T) {
	h := start(t, standard())
	s, r := h.sender(queue), h.receiver(nil)
	h.send(s, "x")
	h.must(r.CompleteMessage(h.ctx, h.one(r), nil))
	h.bus.Faults().DetachLinks(queue, "com.microsoft:server-busy")
	h.send(h.sender(queue), "y")
	for range 3 {
		if ms, err := r.ReceiveMessages(h.ctx, 1, nil); err != nil || len(ms) != 0 {
			t.Errorf("got %d messages, %v", len(ms), err)
		}
	}
	if m := h.one(h.receiver(nil)); string(m.Body) != "y" {
		t.Errorf("got %q", m.Body)
	}
}

func TestStalledBusEndsWhenClosed(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "x")
		h.bus.Faults().Stall()
	})
}

func TestFaultsAtUnknownEntitiesPanic(t *testing.T) {
	f := devbus.New(standard()).Faults()
	for name, fault := range map[string]func(){
		"plan":  func() { f.RejectSends("nowhere", 1, "x") },
		"links": func() { f.DetachLinks("nowhere", "x") },
		"store": func() { f.Hold("nowhere") },
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, "nowhere") {
					t.Errorf("%s: recovered %s", name, got)
				}
			}()
			fault()
		}()
	}
}

func TestClosedBusTakesNoConnections(t *testing.T) {
	bus := devbus.New(standard())
	bus.Close()
	bus.Close()
	if err := converse(bus, handshake, false); err != devbus.ErrClosed {
		t.Errorf("got %v", err)
	}
}

func TestCloseLeavesNoGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	h := start(t, standard())
	h.send(h.sender(queue), "x")
	h.one(h.receiver(nil))
	silent, err := net.Dial("tcp", h.addr)
	h.must(err)
	defer silent.Close()
	h.hangUp()
	h.bus.Close()
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= before })
}
