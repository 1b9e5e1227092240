package servicebus_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
)

func TestHandledMessagesAreCompleted(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(1200)...)
		var h recorder
		r, stop := w.receive(w.options(), h.handle)
		w.untilCompleted(1200)
		if !r.Ready() || r.Err() != nil {
			t.Errorf("Ready() = %v, Err() = %v while running", r.Ready(), r.Err())
		}
		stop()
		if r.Ready() || r.Err() == nil {
			t.Errorf("Ready() = %v, Err() = %v after Run", r.Ready(), r.Err())
		}
		if got := len(h.bodies()); got != 1200 {
			t.Errorf("handled %d messages, want 1200", got)
		}
		w.wantMetrics(map[string]float64{
			"received_total": 1200, "completed_total": 1200, "settle_seconds": 1200, "in_hand_messages": 0,
			"receiver_connections_total": 1, "settle_failures_total": 0, "lock_lost_total": 0,
		})
	})
}

func TestQueueIsReceivedFrom(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.sendMessages(queue, &azservicebus.Message{Body: []byte("job")})
		o := w.options()
		o.Topic, o.Subscription, o.Queue = "", "", queue
		var h recorder
		w.receive(o, h.handle)
		w.until("job completed", func() bool { return w.stats(queue).Completed == 1 })
	})
}

func TestHandleSeesWhatTheBrokerSays(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.sendMessages(topic, &azservicebus.Message{
			Body: []byte("{}"), MessageID: ptr("id"), Subject: ptr("s"), ContentType: ptr("c"),
			ApplicationProperties: map[string]any{"traceparent": "00-1-2-00"},
		}, &azservicebus.Message{Body: []byte("second")})
		var got []servicebus.Message
		now := time.Now()
		_, stop := w.receive(w.options(), func(_ context.Context, batch []servicebus.Message) []error {
			got = append(got, batch...)
			return make([]error, len(batch))
		})
		w.untilCompleted(2)
		stop()
		if d := now.Sub(got[0].EnqueuedTime); d < 0 || d > time.Second {
			t.Errorf("EnqueuedTime is %v before now", d)
		}
		got[0].EnqueuedTime = time.Time{}
		want := servicebus.Message{
			Body: []byte("{}"), ID: "id", Sequence: 1, DeliveryCount: 1, ContentType: "c", Subject: "s", Traceparent: "00-1-2-00",
		}
		if fmt.Sprint(got[0]) != fmt.Sprint(want) {
			t.Errorf("first message: got %+v, want %+v", got[0], want)
		}
		if got[1].Sequence != 2 {
			t.Errorf("second message has sequence %d, want the topic's, 2", got[1].Sequence)
		}
	})
}

// Publishers that are no Service Bus SDK put the body into other sections.
func TestBodyIsReadFromEverySection(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		c := w.client()
		s, err := c.NewSender(topic, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range []azservicebus.AMQPAnnotatedMessageBody{
			{Value: "text"}, {Value: []byte("bytes")}, {Data: [][]byte{[]byte("in "), []byte("parts")}},
		} {
			if err := s.SendAMQPAnnotatedMessage(w.ctx, &azservicebus.AMQPAnnotatedMessage{Body: b}, nil); err != nil {
				t.Fatal(err)
			}
		}
		c.Close(w.ctx)
		var h recorder
		_, stop := w.receive(w.options(), h.handle)
		w.untilCompleted(3)
		stop()
		if got, want := h.bodies(), []string{"text", "bytes", "in parts"}; !slices.Equal(got, want) {
			t.Errorf("got bodies %q, want %q", got, want)
		}
	})
}

func TestPoisonIsDeadLetteredAmidGoodOnes(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("good0", "bad", "good1", "long", "wrapped", "nameless", "good2")
		h := recorder{answer: func(body string) error {
			invalid := &status.InvalidError{Reason: status.ReasonInvalid, Field: "hub", Detail: "not a hub"}
			switch body {
			case "bad":
				return invalid
			case "long":
				return &status.InvalidError{Reason: status.ReasonMalformed, Detail: strings.Repeat("é", 4000)}
			case "wrapped":
				return fmt.Errorf("message %q: %w", body, invalid)
			case "nameless":
				return fmt.Errorf("%w: %s", status.ErrInvalid, body)
			}
			return nil
		}}
		_, stop := w.receive(w.options(), h.handle)
		w.untilCompleted(3)
		w.until("four dead letters", func() bool { return w.stats(from).DeadLettered == 4 })
		stop()
		got := make(map[string]string)
		for _, m := range w.stored(deadLetters, 4) {
			got[string(m.Body)] = *m.DeadLetterReason + "|" + *m.DeadLetterErrorDescription
		}
		want := map[string]string{
			"bad":      "Invalid|hub: not a hub",
			"long":     "Malformed|" + strings.Repeat("é", 2048),
			"wrapped":  "Invalid|hub: not a hub",
			"nameless": "Invalid|",
		}
		if !maps.Equal(got, want) {
			t.Errorf("dead letters: got %q, want %q", got, want)
		}
		w.wantMetrics(map[string]float64{
			"dead_lettered_total/Invalid": 3, "dead_lettered_total/Malformed": 1, "completed_total": 3, "abandoned_total": 0,
		})
	})
}

func TestFailedMessageIsGivenBackAfterAPause(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("good", "bad")
		var tries []time.Time
		h := recorder{answer: func(body string) error {
			if body == "bad" {
				tries = append(tries, time.Now())
				return errInternal
			}
			return nil
		}}
		_, stop := w.receive(w.options(), h.handle)
		w.until("bad one dead-lettered by the broker", func() bool { return w.stats(from).DeadLettered == 1 })
		stop()
		if len(tries) != 10 {
			t.Errorf("tried %d times, want the entity's 10", len(tries))
		}
		for i := range tries[1:] {
			if pause := tries[i+1].Sub(tries[i]); pause < time.Second/2 || pause > 2*time.Second {
				t.Errorf("pause %d is %v, want 0.5 to 1.5 s", i, pause)
			}
		}
		w.wantMetrics(map[string]float64{"abandoned_total": 10, "completed_total": 1})
	})
}

func TestWrongNumberOfAnswersCompletesNothing(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("a", "b")
		var calls atomic.Int64
		w.receive(w.options(), func(_ context.Context, batch []servicebus.Message) []error {
			if calls.Add(1) == 1 {
				return nil
			}
			return make([]error, len(batch))
		})
		w.untilCompleted(2)
		w.wantMetrics(map[string]float64{"abandoned_total": 2})
	})
}

// The promise of DESIGN 2.4, 3: an outage of any length dead-letters nothing.
func TestUnavailabilityHoldsMessagesAndSpendsNoDeliveries(t *testing.T) {
	const lock, deliveries = 5 * time.Second, 3
	inWorld(t, devbus.Options{Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{
		{Name: subscription, LockDuration: lock, MaxDeliveryCount: deliveries},
	}}}}, func(w *world) {
		w.send(numbered(20)...)
		var away atomic.Bool
		away.Store(true)
		h := recorder{answer: func(string) error {
			if away.Load() {
				return fmt.Errorf("redis: %w", status.ErrUnavailable)
			}
			return nil
		}}
		o := w.options()
		o.MaxBatch = 5
		w.receive(o, h.handle)
		<-time.After(10 * lock * deliveries)
		synctest.Wait()

		first := make(map[string]bool)
		for _, body := range h.bodies() {
			first[body] = true
		}
		if len(first) != 5 {
			t.Errorf("%d messages were handled while the first 5 were held", len(first))
		}
		if locked := w.stats(from).Locked; locked > 10 {
			t.Errorf("%d messages are locked, want the batch that is held and at most one more", locked)
		}
		if w.metric("held_total") < 5 {
			t.Errorf("held_total = %v", w.metric("held_total"))
		}
		away.Store(false)
		w.untilCompleted(20)
		got := w.stats(from)
		if got.DeadLettered != 0 || got.LocksExpired != 0 || got.Abandoned != 0 {
			t.Errorf("deliveries were spent: %+v", got)
		}
		for _, body := range numbered(20) {
			if n := h.deliveries(body); n != 1 {
				t.Errorf("%s was delivered %d times, want once", body, n)
			}
		}
	})
}

func TestOnlyUnavailableMessagesAreHandledAgain(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("a", "b", "c")
		var bs int
		h := recorder{answer: func(body string) error {
			if body == "b" {
				if bs++; bs < 3 {
					return status.ErrUnavailable
				}
			}
			return nil
		}}
		_, stop := w.receive(w.options(), h.handle)
		w.untilCompleted(3)
		stop()
		if got, want := h.bodies(), []string{"a", "b", "c", "b", "b"}; !slices.Equal(got, want) {
			t.Errorf("handled %q, want %q", got, want)
		}
	})
}

func TestHeldMessageWhoseLockIsLostIsDropped(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("a")
		var away atomic.Bool
		away.Store(true)
		h := recorder{answer: func(string) error {
			if away.Load() {
				return status.ErrUnavailable
			}
			return nil
		}}
		w.receive(w.options(), h.handle)
		w.until("held", func() bool { return w.metric("held_total") > 0 })
		if n := w.bus.Faults().ExpireLocks(from); n != 1 {
			t.Fatalf("ExpireLocks = %d", n)
		}
		w.until("lock found lost", func() bool { return w.metric("lock_lost_total") > 0 })
		away.Store(false)
		w.untilCompleted(1)
		if n := h.deliveries("a"); n != 2 {
			t.Errorf("completed as delivery %d, want 2", n)
		}
		w.wantMetrics(map[string]float64{"completed_total": 1, "lock_lost_total": 1, "in_hand_messages": 0})
	})
}

func TestSlowHandlingKeepsItsLocks(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("slow")
		w.receive(w.options(), func(_ context.Context, batch []servicebus.Message) []error {
			<-time.After(10 * time.Minute)
			return make([]error, len(batch))
		})
		w.untilCompleted(1)
		if n := w.stats(from).LocksExpired; n != 0 {
			t.Errorf("%d locks expired", n)
		}
	})
}

// The clocks of broker and relay may differ by more than a lock lasts.
func TestLocksAreKeptWhateverTheClockSays(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				w.send("slow")
				o := w.options()
				o.Now = func() time.Time { return time.Now().Add(skew) }
				w.receive(o, func(_ context.Context, batch []servicebus.Message) []error {
					<-time.After(5 * time.Minute)
					return make([]error, len(batch))
				})
				w.untilCompleted(1)
				if n := w.stats(from).LocksExpired; n != 0 {
					t.Errorf("%d locks expired", n)
				}
			})
		})
	}
}

func TestThrottledRenewalIsTriedAgainOnTheSameConnection(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("slow")
		w.receive(w.options(), func(_ context.Context, batch []servicebus.Message) []error {
			w.bus.Faults().AnswerManagement(from, 3, 503)
			<-time.After(3 * time.Minute)
			return make([]error, len(batch))
		})
		w.untilCompleted(1)
		if n := w.stats(from).LocksExpired; n != 0 {
			t.Errorf("%d locks expired", n)
		}
		w.wantMetrics(map[string]float64{"receiver_connections_total": 1})
	})
}

func TestNextBatchIsReceivedWhileOneIsHandled(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(4)...)
		o := w.options()
		o.MaxBatch = 2
		open := make(chan struct{})
		w.receive(o, func(_ context.Context, batch []servicebus.Message) []error {
			<-open
			return make([]error, len(batch))
		})
		w.until("two batches in hand", func() bool { return w.metric("in_hand_messages") == 4 })
		close(open)
		w.untilCompleted(4)
	})
}

func TestNoMoreThanMaxInHandIsReceived(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(100)...)
		o := w.options()
		o.MaxBatch, o.MaxInHand, o.AbandonDelay = 5, 20, time.Hour
		h := recorder{answer: func(string) error { return errInternal }}
		_, stop := w.receive(o, h.handle)
		<-time.After(time.Minute)
		synctest.Wait()
		if n := w.stats(from).Locked; n != 20 {
			t.Errorf("%d messages are locked, want 20", n)
		}
		stop()
		if n := w.stats(from).Locked; n != 0 {
			t.Errorf("%d messages are locked after shutdown, want those in the pause given back", n)
		}
	})
}

// In the bubble time passes only while everybody waits, so this is no race against the clock: the SDK's default would
// show as 20 ms.
func TestLoneMessageIsNotDelayed(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.receive(w.options(), func(_ context.Context, batch []servicebus.Message) []error {
			if late := time.Since(batch[0].EnqueuedTime); late > 2*time.Millisecond {
				t.Errorf("handled %v after it was sent", late)
			}
			return make([]error, len(batch))
		})
		for i := range 5 {
			w.send("m")
			w.untilCompleted(int64(i + 1))
		}
	})
}

func TestLinksAreMadeBeforeTheFirstMessage(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		r, _ := w.receive(w.options(), (&recorder{}).handle)
		w.until("ready", r.Ready)
		if n := w.connections(); n != 1 {
			t.Errorf("%d connections", n)
		}
	})
}

// Surprise 1 of the SDK: settling a message after its connection was lost fails for 50 s and tears down the next connection.
func TestSettlingAfterALostConnectionUsesTheNext(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(100)...)
		h := recorder{answer: func(body string) error {
			switch body {
			case "m0":
				w.bus.DropConnections()
				<-time.After(time.Millisecond) // until everybody knows
			case "m50":
				return &status.InvalidError{Reason: status.ReasonInvalid, Detail: "bad"}
			}
			return nil
		}}
		began := time.Now()
		w.receive(w.options(), h.handle)
		w.untilCompleted(99)
		w.until("m50 dead-lettered", func() bool { return w.stats(from).DeadLettered == 1 })
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("it took %v", d)
		}
		if got := len(h.bodies()); got != 100 {
			t.Errorf("handled %d messages, want each of 100 once", got)
		}
		w.wantMetrics(map[string]float64{"completed_total": 99, "receiver_connections_total": 2, "settle_failures_total": 0})
	})
}

func TestConnectionCutWhileSettlingLosesNothing(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(300)...)
		var h recorder
		o := w.options()
		o.MaxBatch, o.Settlers = 100, 4
		w.cut = func(int) int { return 150 } // writes: in the midst of the dispositions
		w.receive(o, h.handle)
		w.untilCompleted(300)
		if got := w.stats(from); got.DeadLettered != 0 {
			t.Errorf("dead-lettered: %+v", got)
		}
		if w.connections() < 2 {
			t.Error("the connection was never cut")
		}
	})
}

// Surprise 2: the SDK's second try at a settlement that the broker refused reports success and settles nothing.
func TestRefusedSettlementIsNotTakenForSuccess(t *testing.T) {
	for _, condition := range []string{"com.microsoft:server-busy", "com.microsoft:timeout", "amqp:internal-error", "x:unknown"} {
		t.Run(condition, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				w.send("m")
				w.bus.Faults().RejectSettlements(from, 1, condition)
				var h recorder
				_, stop := w.receive(w.options(), h.handle)
				w.until("message let go", func() bool { return len(h.bodies()) > 0 && w.metric("in_hand_messages") == 0 })
				stop()
				if got := w.stats(from); got.Completed != 1 || got.Locked != 0 {
					t.Errorf("the bus: %+v", got)
				}
				w.wantMetrics(map[string]float64{"completed_total": 1})
			})
		})
	}
}

func TestSettlementWithoutConfirmationIsNotWaitedForLong(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("m")
		w.bus.Faults().LoseSettlementConfirmations(from, 1)
		w.receive(w.options(), (&recorder{}).handle)
		w.untilCompleted(1)
		w.until("message let go", func() bool { return w.metric("lock_lost_total") == 1 })
		w.wantMetrics(map[string]float64{"in_hand_messages": 0, "settle_failures_total": 0})
	})
}

func TestSettlementThatStaysRefusedIsLeftToRedelivery(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send("m")
		w.bus.Faults().RejectSettlements(from, 1, "com.microsoft:server-busy")
		w.bus.Faults().AnswerManagement(from, 1000, 503)
		var h recorder
		w.receive(w.options(), h.handle)
		w.until("given up", func() bool { return w.metric("settle_failures_total") == 1 })
		w.bus.Faults().AnswerManagement(from, 0, 0)
		w.untilCompleted(1)
		if n := h.deliveries("m"); n != 2 {
			t.Errorf("completed as delivery %d, want 2", n)
		}
	})
}

// detachments are the conditions of the SDK's table, one of each row and those that it does not know.
var detachments = []string{
	"", "amqp:link:detach-forced", "amqp:link:transfer-limit-exceeded", "amqp:internal-error", "amqp:connection:forced",
	"amqp:unauthorized-access", "amqp:not-found", "amqp:not-allowed", "amqp:resource-limit-exceeded",
	"com.microsoft:entity-disabled", "com.microsoft:session-cannot-be-locked", "com.microsoft:message-lock-lost",
	"amqp:link:message-size-exceeded", "x:unknown",
	// Surprise 3: with these the SDK's ReceiveMessages returns (nil, nil) at once for ever, and its Sender fails for ever.
	"com.microsoft:server-busy", "com.microsoft:timeout", "com.microsoft:operation-cancelled",
}

func TestReceiverRecoversFromEveryDetachment(t *testing.T) {
	for _, condition := range detachments {
		t.Run(condition, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				w.send("before")
				var h recorder
				r, _ := w.receive(w.options(), h.handle)
				w.untilCompleted(1)
				if n := w.bus.Faults().DetachLinks(from, condition); n != 1 {
					t.Fatalf("DetachLinks = %d", n)
				}
				w.send("after")
				w.untilCompleted(2)
				if !r.Ready() {
					t.Errorf("not ready: %v", r.Err())
				}
				if n := w.connections(); n != 2 {
					t.Errorf("%d connections, want 2", n)
				}
			})
		})
	}
}

// Surprise 6: nothing in the SDK waits between attempts.
func TestReceiverBacksOffWhileTheBrokerRefusesLinks(t *testing.T) {
	for _, condition := range []string{"amqp:internal-error", "com.microsoft:server-busy", "amqp:unauthorized-access"} {
		t.Run(condition, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				w.bus.Faults().RefuseLinks(from, condition)
				r, _ := w.receive(w.options(), (&recorder{}).handle)
				<-time.After(10 * time.Minute)
				synctest.Wait()
				if n := w.connections(); n < 30 || n > 300 {
					t.Errorf("%d connections in ten minutes, want one or two in every 5 to 15 s", n)
				}
				if r.Ready() {
					t.Error("ready without a link")
				}
				w.bus.Faults().RefuseLinks(from, "")
				w.send("m")
				w.untilCompleted(1)
			})
		})
	}
}

func TestBackOffStartsAnewOnceALineHasWorked(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.bus.Faults().RefuseLinks(from, "amqp:internal-error")
		w.receive(w.options(), (&recorder{}).handle)
		<-time.After(10 * time.Minute)
		w.bus.Faults().RefuseLinks(from, "")
		w.send("m")
		w.untilCompleted(1)
		began := time.Now()
		w.bus.DropConnections()
		w.send("m")
		w.untilCompleted(2)
		if d := time.Since(began); d > time.Second {
			t.Errorf("it took %v to reconnect", d)
		}
	})
}

func TestReceiverBacksOffWhileTheBrokerDetachesEveryLink(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		var h recorder
		w.receive(w.options(), h.handle)
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
			w.bus.Faults().DetachLinks(from, "amqp:internal-error")
		}
		if n := w.connections(); n < 30 || n > 150 {
			t.Errorf("%d connections in ten minutes, want one in every 5 to 15 s", n)
		}
		w.send("m")
		w.untilCompleted(1)
	})
}

func TestReceiverSaysWhyItIsNotReady(t *testing.T) {
	for tokens, want := range map[int]string{
		404: "subscription relay of topic status does not exist",
		401: "no right to use subscription relay of topic status",
	} {
		t.Run(fmt.Sprint(tokens), func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				w.bus.Faults().RefuseTokens(tokens)
				r, _ := w.receive(w.options(), (&recorder{}).handle)
				w.until("an attempt", func() bool { return w.connections() > 1 })
				if err := r.Err(); err == nil || !strings.HasPrefix(err.Error(), want) {
					t.Errorf("Err() = %v, want %s", err, want)
				}
				w.bus.Faults().RefuseTokens(0)
				w.until("ready", r.Ready)
			})
		})
	}
}

func TestOutageOfTheBrokerIsSurvived(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(10)...)
		var first sync.Once
		h := recorder{answer: func(string) error {
			first.Do(func() {
				w.bus.Faults().RefuseConnections(true)
				w.bus.DropConnections()
				<-time.After(time.Millisecond) // until everybody knows
			})
			return nil
		}}
		w.receive(w.options(), h.handle)
		<-time.After(5 * time.Minute)
		w.bus.Faults().RefuseConnections(false)
		w.untilCompleted(10) // their locks are over: redelivered
		w.until("nothing in hand", func() bool { return w.metric("in_hand_messages") == 0 })
	})
}

func TestManyMessagesSurviveRandomDrops(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		const n = 10_000
		random := rand.New(rand.NewPCG(1, 2))
		w.send(numbered(n)...)
		handled := make(map[string]bool)
		w.cut = func(int) int { return 50 + random.IntN(1000) }
		_, stop := w.receive(w.options(), func(_ context.Context, batch []servicebus.Message) []error {
			for _, m := range batch {
				handled[string(m.Body)] = true
			}
			return make([]error, len(batch))
		})
		w.untilCompleted(n)
		stop()
		if got := w.stats(from); got.DeadLettered != 0 || got.Completed != n || got.Active+got.Locked != 0 {
			t.Errorf("the bus: %+v", got)
		}
		if len(handled) != n {
			t.Errorf("handled %d different messages, want %d", len(handled), n)
		}
		if w.connections() < 10 {
			t.Errorf("only %d connections", w.connections())
		}
	})
}

// Section 9 of what is known about the SDK: it panics on annotations and properties of the wrong type, and any publisher
// can set DeadLetterReason.
func TestMessageThatTheSDKCannotReadHarmsNoOther(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		ms := []*azservicebus.Message{{Body: []byte("poison"), ApplicationProperties: map[string]any{"DeadLetterReason": 5}}}
		for _, body := range numbered(50) {
			ms = append(ms, &azservicebus.Message{Body: []byte(body)})
		}
		w.sendMessages(topic, ms...)
		var h recorder
		w.receive(w.options(), h.handle)
		w.untilCompleted(50)
		w.until("poison dead-lettered", func() bool { return w.stats(from).DeadLettered == 1 })
		for _, body := range numbered(50) {
			if n := h.deliveries(body); n > 3 {
				t.Errorf("%s was completed as delivery %d", body, n)
			}
		}
	})
}

func TestShutdownFinishesWhatIsInHand(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(40)...)
		o := w.options()
		o.MaxBatch = 10
		open := make(chan struct{})
		var live atomic.Bool
		r, err := servicebus.NewReceiver(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(w.ctx)
		ended := make(chan error, 1)
		go func() {
			ended <- r.Run(ctx, func(ctx context.Context, batch []servicebus.Message) []error {
				<-open
				live.Store(ctx.Err() == nil)
				return make([]error, len(batch))
			})
		}()
		w.until("two batches in hand", func() bool { return w.metric("in_hand_messages") == 20 })
		cancel()
		synctest.Wait()
		close(open)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if !live.Load() {
			t.Error("handled with a context that had ended")
		}
		got := w.stats(from)
		if got.Completed != 20 || got.Locked != 0 {
			t.Errorf("after shutdown: %+v, want 20 completed and none locked", got)
		}
	})
}

func TestShutdownGivesUpAfterDrainTimeout(t *testing.T) {
	for name, stuck := range map[string]func(w *world) servicebus.Handle{
		"handle": func(*world) servicebus.Handle {
			return func(ctx context.Context, batch []servicebus.Message) []error {
				<-ctx.Done()
				errs := make([]error, len(batch))
				for i := range errs {
					errs[i] = ctx.Err()
				}
				return errs
			}
		},
		"settlement": func(w *world) servicebus.Handle {
			return func(_ context.Context, batch []servicebus.Message) []error {
				w.bus.Faults().Stall()
				return make([]error, len(batch))
			}
		},
		"unavailable": func(*world) servicebus.Handle {
			return func(_ context.Context, batch []servicebus.Message) []error {
				errs := make([]error, len(batch))
				for i := range errs {
					errs[i] = status.ErrUnavailable
				}
				return errs
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				defer w.bus.Faults().Resume()
				w.send(numbered(10)...)
				o := w.options()
				o.DrainTimeout = 5 * time.Second
				_, stop := w.receive(o, stuck(w))
				w.until("in hand", func() bool { return w.metric("in_hand_messages") == 10 })
				began := time.Now()
				stop()
				if d := time.Since(began); d > o.DrainTimeout+5*time.Second {
					t.Errorf("Run took %v to end", d)
				}
				w.wantMetrics(map[string]float64{"in_hand_messages": 0, "dead_lettered_total/Invalid": 0, "abandoned_total": 0})
				if n := w.stats(from).DeadLettered; n != 0 {
					t.Errorf("%d dead-lettered", n)
				}
			})
		})
	}
}

func TestUnfinishedMessagesAreRedeliveredAfterShutdown(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.send(numbered(10)...)
		o := w.options()
		h := recorder{answer: func(string) error { return status.ErrUnavailable }}
		_, stop := w.receive(o, h.handle)
		w.until("held", func() bool { return w.metric("held_total") > 0 })
		stop()
		w.wantMetrics(map[string]float64{"left_total": 10})
		o.Metrics = nil
		w.receive(o, (&recorder{}).handle)
		w.untilCompleted(10)
	})
}

func TestReceiverOptionsAreCheckedAllAtOnce(t *testing.T) {
	_, err := servicebus.NewReceiver(servicebus.Options{
		Topic: "t", Queue: "q", Settlers: -1, MaxBatch: 6000, MaxInHand: 10,
	})
	for _, want := range []string{"ConnectionString, Namespace", "Topic, Queue", "Subscription", "Settlers", "MaxBatch", "MaxInHand"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %s: %v", want, err)
		}
	}
}

func TestConnectionStringIsInNoError(t *testing.T) {
	for _, wrong := range []string{
		"SECRET", "Endpoint=sb://h;SharedAccessKeyName=n;SECRET",
		"Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=SECRET;UseDevelopmentEmulator=SECRET",
		"Endpoint=http://SECRET@h;SharedAccessKeyName=n;SharedAccessKey=SECRET;UseDevelopmentEmulator=true",
	} {
		o := servicebus.Options{ConnectionString: wrong, Topic: "t", Subscription: "s"}
		_, err1 := servicebus.NewReceiver(o)
		_, err2 := servicebus.NewPublisher(o)
		for _, err := range []error{err1, err2} {
			if err == nil || strings.Contains(err.Error(), "SECRET") {
				t.Errorf("error is %v", err)
			}
		}
	}
}

func TestNamespaceIsAcceptedWithoutCredentialsInReach(t *testing.T) {
	o := servicebus.Options{Namespace: "ns.servicebus.windows.net", Topic: "t", Subscription: "s"}
	if _, err := servicebus.NewReceiver(o); err != nil {
		t.Error(err)
	}
	o.Namespace = "sb://ns.servicebus.windows.net/"
	if _, err := servicebus.NewReceiver(o); err == nil {
		t.Error("a URL was accepted as namespace")
	}
}
