package devbus_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
)

// inBubble runs a test on a fake clock, with clients over net.Pipe. The bubble also proves that
// no goroutine outlives Close.
func inBubble(t *testing.T, o devbus.Options, test func(h *harness)) {
	synctest.Test(t, func(t *testing.T) {
		h := &harness{t: t, bus: devbus.New(o), ctx: t.Context()}
		var serving sync.WaitGroup
		h.dial = func(context.Context, azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
			ours, theirs := net.Pipe()
			serving.Go(func() {
				if err := h.bus.ServeConn(context.Background(), ours); err != nil {
					t.Errorf("ServeConn: %v", err)
				}
			})
			return theirs, nil
		}
		test(h)
		h.hangUp()
		h.bus.Close()
		serving.Wait()
	})
}

func TestExpiredLockReturnsTheMessageWithACount(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "a", "b")
		r := h.receiver(nil)
		first := h.one(r)
		begin := time.Now()
		h.one(r) // b
		second := h.receive(r, 2)
		if d := time.Since(begin); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("came back after %v", d)
		}
		for i, want := range []string{"a", "b"} { // in their old order
			if m := second[i]; string(m.Body) != want || m.DeliveryCount != 2 {
				t.Errorf("got %q, delivery count %d", m.Body, m.DeliveryCount)
			}
		}
		if err := r.CompleteMessage(h.ctx, first, nil); code(err) != azservicebus.CodeLockLost {
			t.Errorf("completing under an expired lock: %v", err)
		}
		h.must(r.CompleteMessage(h.ctx, second[0], nil))
		if s := h.stats(queue); s.LocksExpired != 2 || s.Completed != 1 || s.Locked != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestEachLockExpiresInItsOwnTime(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "a", "b")
		r := h.receiver(nil)
		h.one(r)
		<-time.After(30 * time.Second)
		h.one(r)
		for _, want := range []struct {
			wait    time.Duration
			expired int64
		}{{29 * time.Second, 0}, {2 * time.Second, 1}, {28 * time.Second, 1}, {2 * time.Second, 2}} {
			<-time.After(want.wait)
			synctest.Wait()
			if s := h.stats(queue); s.LocksExpired != want.expired {
				t.Errorf("%d locks expired, want %d", s.LocksExpired, want.expired)
			}
		}
	})
}

func TestRenewedLockHoldsOn(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "renewed", "not renewed")
		r := h.receiver(nil)
		ms := h.receive(r, 2)
		for range 10 {
			<-time.After(50 * time.Second)
			h.must(r.RenewMessageLock(h.ctx, ms[0], nil))
			if d := time.Until(*ms[0].LockedUntil).Round(time.Second); d != time.Minute {
				t.Errorf("renewed for %v", d)
			}
		}
		h.must(r.CompleteMessage(h.ctx, ms[0], nil))
		if err := r.RenewMessageLock(h.ctx, ms[1], nil); code(err) != azservicebus.CodeLockLost {
			t.Errorf("renewing an expired lock: %v", err)
		}
	})
}

func TestMessageWhoseLockExpiresTooOftenIsDeadLettered(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		h.send(h.sender(queue), "x")
		r := h.receiver(nil)
		for range 3 {
			h.one(r)
		}
		dlq := h.receiver(&azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter})
		if m := h.one(dlq); *m.DeadLetterReason != "MaxDeliveryCountExceeded" {
			t.Errorf("got %+v", m)
		}
	})
}

func TestLockDurationIsTheEntitysOwn(t *testing.T) {
	o := devbus.Options{Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{
		{Name: subscription, LockDuration: 5 * time.Second},
	}}}}
	inBubble(t, o, func(h *harness) {
		h.send(h.sender(topic), "x")
		r := h.subscriber(subscription, nil)
		h.one(r)
		begin := time.Now()
		h.one(r)
		if d := time.Since(begin); d < 5*time.Second-time.Second || d > 6*time.Second {
			t.Errorf("came back after %v", d)
		}
	})
}

func TestScheduledMessageComesInItsTime(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		s := h.sender(queue)
		begin := time.Now()
		h.schedule(s, time.Minute, "later")
		h.schedule(s, 3*time.Second, "soon", "soon, too")
		h.schedule(s, -time.Hour, "at once")
		h.send(s, "now")
		batch, err := s.NewMessageBatch(h.ctx, nil)
		h.must(err)
		due := begin.Add(10 * time.Second)
		h.must(batch.AddMessage(&azservicebus.Message{Body: []byte("in a batch"), ScheduledEnqueueTime: &due}, nil))
		h.must(batch.AddMessage(&azservicebus.Message{Body: []byte("beside it")}, nil))
		h.must(s.SendMessageBatch(h.ctx, batch, nil))
		r := h.receiver(nil)
		for i, want := range []struct {
			body  string
			after time.Duration
		}{
			{"at once", 0},
			{"now", 0},
			{"beside it", 0},
			{"soon", 3 * time.Second},
			{"soon, too", 3 * time.Second},
			{"in a batch", 10 * time.Second},
			{"later", time.Minute},
		} {
			m := h.one(r)
			if string(m.Body) != want.body || *m.SequenceNumber != int64(i+1) {
				t.Errorf("got %q with number %d, want %q, %d", m.Body, *m.SequenceNumber, want.body, i+1)
			}
			for name, at := range map[string]time.Time{"received": time.Now(), "enqueued": *m.EnqueuedTime} {
				if d := at.Sub(begin); d < want.after || d > want.after+2*time.Second {
					t.Errorf("%q: %s after %v, want %v", m.Body, name, d, want.after)
				}
			}
			h.must(r.CompleteMessage(h.ctx, m, nil))
		}
		if st := h.stats(queue); st.Scheduled != 0 || st.Completed != 7 {
			t.Errorf("in the end: %+v", st)
		}
		h.schedule(s, time.Hour, "left") // no goroutine and no timer outlives Close
	})
}

func TestIdleConnectionStays(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		dials, dial := 0, h.dial
		h.dial = func(ctx context.Context, a azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
			dials++
			return dial(ctx, a)
		}
		s := h.sender(queue)
		h.send(s, "x")
		<-time.After(time.Hour)
		h.send(s, "y")
		if dials != 1 {
			t.Errorf("%d connections, want 1", dials)
		}
	})
}

func TestSilentPeerIsDropped(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		for _, said := range [][]byte{nil, handshake} {
			ours, theirs := net.Pipe()
			ended := make(chan error, 1)
			go func() { ended <- h.bus.ServeConn(h.ctx, ours) }()
			go discard(theirs)
			theirs.Write(said)
			begin := time.Now()
			err := <-ended
			if d := time.Since(begin); err == nil || d > 5*time.Minute {
				t.Errorf("after %d bytes: ended with %v after %v", len(said), err, d)
			}
		}
	})
}

func TestPeerThatDoesNotReadIsDropped(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		ours, theirs := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- h.bus.ServeConn(h.ctx, ours) }()
		var stop sync.WaitGroup
		stop.Go(func() { theirs.Write(handshake) })
		begin := time.Now()
		<-ended
		if d := time.Since(begin); d > time.Minute {
			t.Errorf("ended after %v", d)
		}
		theirs.Close()
		stop.Wait()
	})
}

func TestEndedContextEndsTheConnection(t *testing.T) {
	inBubble(t, standard(), func(h *harness) {
		ctx, cancel := context.WithCancel(h.ctx)
		ours, theirs := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- h.bus.ServeConn(ctx, ours) }()
		go theirs.Write(handshake)
		go discard(theirs)
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
