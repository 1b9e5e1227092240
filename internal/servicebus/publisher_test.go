package servicebus_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
)

func hashed(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// publisher makes one that is closed with the test.
func (w *world) publisher(o servicebus.Options) *servicebus.Publisher {
	w.Helper()
	p, err := servicebus.NewPublisher(o)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.Close(ctx)
	})
	return p
}

// outgoing is progress number n of an instance.
func outgoing(instance string, n int64) servicebus.Outgoing {
	return servicebus.Outgoing{
		Update: &status.Update{Hub: "h", InstanceID: instance, Generation: ptr(int64(7)), Sequence: &n, Kind: status.KindProgress},
		Body:   fmt.Appendf(nil, "%s %d", instance, n),
	}
}

func several(instance string, n int) (out []servicebus.Outgoing) {
	for i := range n {
		out = append(out, outgoing(instance, int64(i)))
	}
	return out
}

func wantAllNil(t testing.TB, errs []error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Errorf("Publish: %v", err)
	}
}

func TestPublishedMessagesSayWhatTheyAreAbout(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		long := strings.Repeat("i", 200)
		updates := []*status.Update{
			{Hub: "h", InstanceID: "i", Name: "Order", Generation: ptr(int64(7)), Sequence: ptr(int64(9)), Kind: status.KindLifecycle, RuntimeStatus: status.Running},
			{Hub: "h", InstanceID: long, Generation: ptr(int64(7)), Sequence: ptr(int64(9)), Kind: status.KindProgress},
			{Hub: "h", InstanceID: "i", Generation: ptr(int64(7)), Kind: status.KindProgress},
			{Hub: "h", InstanceID: "i", Generation: ptr(int64(7)), Kind: status.KindProgress},
			{Hub: "h", InstanceID: "i", Sequence: ptr(int64(9)), Kind: status.KindProgress},
		}
		var got []*azservicebus.ReceivedMessage
		for _, u := range updates {
			wantAllNil(t, p.Publish(w.ctx, []servicebus.Outgoing{{Update: u, Body: []byte("{}"), Traceparent: "00-a-b-01", Tracestate: "a=1"}}))
			got = append(got, w.stored(from, 1)...)
		}

		m := got[0]
		if m.MessageID != "h/i/7/lifecycle/9" || *m.SessionID != "h/i" || *m.Subject != "durable.status.v1" ||
			*m.ContentType != "application/cloudevents+json" || string(m.Body) != "{}" {
			t.Errorf("got id %q, session %q, subject %q, content type %q, body %q",
				m.MessageID, *m.SessionID, *m.Subject, *m.ContentType, m.Body)
		}
		want := "map[Diagnostic-Id:00-a-b-01 hub:h name:Order runtimeStatus:Running traceparent:00-a-b-01 tracestate:a=1]"
		if got := fmt.Sprint(m.ApplicationProperties); got != want {
			t.Errorf("properties: got %s, want %s", got, want)
		}
		if got, want := fmt.Sprint(got[2].ApplicationProperties), "map[Diagnostic-Id:00-a-b-01 hub:h traceparent:00-a-b-01 tracestate:a=1]"; got != want {
			t.Errorf("properties: got %s, want %s", got, want)
		}
		// sha256 of h/iii…/7/progress/9 and of h/iii…
		if m := got[1]; m.MessageID != hashed("h/"+long+"/7/progress/9") || *m.SessionID != hashed("h/"+long) {
			t.Errorf("long ids: got %q and %q", m.MessageID, *m.SessionID)
		}
		ids := map[string]bool{}
		for _, m := range got[2:] {
			ids[m.MessageID] = len(m.MessageID) == 36
		}
		if len(ids) != 3 {
			t.Errorf("updates without a full position share ids: %v", ids)
		}
		wantAllNil(t, p.Publish(w.ctx, []servicebus.Outgoing{{Update: updates[0], Body: []byte("{}"), ID: "an event"}}))
		if m := w.stored(from, 1)[0]; m.MessageID != "an event" {
			t.Errorf("an update with a name has the message id %q", m.MessageID)
		}
	})
}

func TestIDsOfUpTo128CharactersAreNotHashed(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		id := strings.Repeat("é", 126) // with "h/" before it 128 characters, and more bytes
		wantAllNil(t, p.Publish(w.ctx, several(id, 1)))
		if got := *w.stored(from, 1)[0].SessionID; got != "h/"+id {
			t.Errorf("session id is %q", got)
		}
	})
}

func TestConcurrentPublishesAreSentTogether(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		if err := p.Connect(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.bus.Faults().Stall() // so that all wait for the first ones' confirmations
		var calling sync.WaitGroup
		for i := range 1000 {
			calling.Go(func() { wantAllNil(t, p.Publish(w.ctx, several(fmt.Sprint("i", i), 1))) })
		}
		synctest.Wait()
		w.bus.Faults().Resume()
		calling.Wait()
		if n := w.stats(from).TotalEnqueued; n != 1000 {
			t.Errorf("%d stored", n)
		}
		// Four lanes, each of which sends what came first and then the rest.
		if n := w.metric("publish_batch_messages"); n > 12 {
			t.Errorf("sent in %v batches", n)
		}
		w.wantMetrics(map[string]float64{"published_total": 1000, "publisher_connections_total": 1})
	})
}

func TestUpdateForLaterIsStoredAtOnceAndDeliveredThen(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		began := time.Now()
		out := several("i", 3)
		out[1].At = began.Add(3*time.Second + time.Millisecond)
		wantAllNil(t, p.Publish(w.ctx, out))
		if now, later := w.stats(from).TotalEnqueued, w.stats(topic).Scheduled; now != 2 || later != 1 {
			t.Errorf("%d stored for now and %d for later, want 2 and 1", now, later)
		}
		got := w.stored(from, 3)
		m := got[2]
		if d := m.EnqueuedTime.Sub(began); string(m.Body) != "i 1" || d < 3*time.Second || d > 3100*time.Millisecond {
			t.Errorf("got %q after %v, want the one for later after 3 s", m.Body, d)
		}
	})
}

// What is for later neither shares a batch with others nor waits in their lanes: while several
// times are sent one by one, an update of now is sent at once.
func TestUpdatesForLaterDelayNoOther(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		if err := p.Connect(w.ctx); err != nil {
			t.Fatal(err)
		}
		out := several("i", 20)
		for i := range out {
			out[i].At = time.Now().Add(time.Duration(i/2+1) * time.Hour) // ten times, two of each
		}
		w.bus.Faults().Stall()
		var calling sync.WaitGroup
		calling.Go(func() { wantAllNil(t, p.Publish(w.ctx, out)) })
		synctest.Wait()
		calling.Go(func() { wantAllNil(t, p.Publish(w.ctx, several("i", 1))) })
		synctest.Wait()
		if now, later := w.stats(from).TotalEnqueued, w.stats(topic).Scheduled; now != 1 || later != 2 {
			t.Errorf("%d stored for now and %d for later, want 1, and the first 2", now, later)
		}
		w.bus.Faults().Resume()
		calling.Wait()
		if n := w.stats(topic).Scheduled; n != 20 {
			t.Errorf("%d stored for later, want 20", n)
		}
		if n := w.metric("publish_batch_messages"); n != 11 {
			t.Errorf("sent in %v batches, want one for each time", n)
		}
	})
}

func TestLoneUpdateIsSentAtOnce(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		if err := p.Connect(w.ctx); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		wantAllNil(t, p.Publish(w.ctx, several("i", 1)))
		if d := time.Since(began); d != 0 {
			t.Errorf("it waited for %v", d)
		}
	})
}

func TestLargePublishIsSplitBySize(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		out := several("i", 40)
		for i := range out {
			out[i].Body = bytes.Repeat([]byte("x"), 50_000)
		}
		wantAllNil(t, p.Publish(w.ctx, out))
		if n := w.stats(from).TotalEnqueued; n != 40 {
			t.Errorf("%d stored", n)
		}
		if n := w.metric("publish_batch_messages"); n != 8 {
			t.Errorf("sent in %v batches, want 8 of 5 messages", n)
		}
	})
}

func TestTooLargeUpdateIsInvalidAndHarmsNoOther(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		out := several("i", 5)
		out[2].Body = make([]byte, 300_000)
		for i, err := range p.Publish(w.ctx, out) {
			var invalid *status.InvalidError
			if i == 2 {
				if !errors.As(err, &invalid) || invalid.Reason != status.ReasonTooLarge {
					t.Errorf("the large one: %v", err)
				}
			} else if err != nil {
				t.Errorf("number %d: %v", i, err)
			}
		}
		w.wantMetrics(map[string]float64{"published_total": 4, "publish_failures_total/invalid": 1})
	})
}

// A message that fits alone may not fit into a batch, which repeats its properties.
func TestLargestMessageThatTheLinkTakesIsSent(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		out := several("i", 3)
		out[1].Body = make([]byte, 262144-200)
		wantAllNil(t, p.Publish(w.ctx, out))
	})
}

func TestBatchThatTheBrokerFindsTooLargeIsHalved(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		w.bus.Faults().RejectSends(topic, 3, "amqp:link:message-size-exceeded")
		wantAllNil(t, p.Publish(w.ctx, several("i", 100)))
		wantInOrder(w, 100)
	})
}

// wantInOrder checks that progress 0 to n-1 of instance i is stored in order, repetitions aside.
func wantInOrder(w *world, n int64) {
	w.Helper()
	var next int64
	for _, m := range w.stored(from, int(w.stats(from).TotalEnqueued)) {
		var i int64
		if _, err := fmt.Sscanf(string(m.Body), "i %d", &i); err != nil {
			w.Fatal(err)
		}
		if i > next {
			w.Errorf("number %d is stored before number %d", i, next)
		}
		next = max(next, i+1)
	}
	if next != n {
		w.Errorf("%d stored, want %d", next, n)
	}
}

func TestUpdatesOfOneInstanceStayInOrder(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		w.cut = func(n int) int {
			if n < 10 {
				return 40 + n // writes; making the links takes most of them
			}
			return 0
		}
		p := w.publisher(w.options())
		var calls []chan []error
		for i := range 50 {
			errs := make(chan []error, 1)
			calls = append(calls, errs)
			go func() { errs <- p.Publish(w.ctx, several("i", 100*(i+1))[100*i:]) }()
			synctest.Wait() // Publish was called: its place is taken
			if i%5 == 4 {
				for _, errs := range calls {
					wantAllNil(t, <-errs)
				}
				calls = nil
			}
		}
		wantInOrder(w, 5000)
		if w.connections() < 3 {
			t.Errorf("%d connections: none was cut", w.connections())
		}
	})
}

// Surprise 4: senders stick.
func TestPublisherRecoversFromEveryDetachment(t *testing.T) {
	for _, condition := range detachments {
		t.Run(condition, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				p := w.publisher(w.options())
				wantAllNil(t, p.Publish(w.ctx, several("before", 1)))
				if n := w.bus.Faults().DetachLinks(topic, condition); n != 1 {
					t.Fatalf("DetachLinks = %d", n)
				}
				wantAllNil(t, p.Publish(w.ctx, several("after", 1)))
				if n := w.stats(from).TotalEnqueued; n != 2 {
					t.Errorf("%d stored, want 2", n)
				}
				if !p.Ready() {
					t.Errorf("not ready: %v", p.Err())
				}
			})
		})
	}
}

func TestThrottledSendIsTriedAgain(t *testing.T) {
	for _, condition := range []string{"com.microsoft:server-busy", "com.microsoft:timeout", "amqp:internal-error", "x:unknown"} {
		t.Run(condition, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				p := w.publisher(w.options())
				w.bus.Faults().RejectSends(topic, 3, condition)
				wantAllNil(t, p.Publish(w.ctx, several("i", 1)))
			})
		})
	}
}

func TestSendsThatFailForLongAreUnavailable(t *testing.T) {
	for name, fault := range map[string]func(w *world){
		"busy":       func(w *world) { w.bus.Faults().RejectSends(topic, 1000, "com.microsoft:server-busy") },
		"full":       func(w *world) { w.bus.Faults().RejectSends(topic, 1000, "amqp:resource-limit-exceeded") },
		"silent":     func(w *world) { w.bus.Faults().Stall() },
		"away":       func(w *world) { w.bus.Faults().RefuseConnections(true); w.bus.DropConnections() },
		"no link":    func(w *world) { w.bus.Faults().RefuseLinks(topic, "amqp:internal-error"); w.bus.DropConnections() },
		"no tokens":  func(w *world) { w.bus.Faults().RefuseTokens(503); w.bus.DropConnections() },
		"unanswered": func(w *world) { w.bus.Faults().LoseSendConfirmations(topic, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				p := w.publisher(w.options())
				if err := p.Connect(w.ctx); err != nil {
					t.Fatal(err)
				}
				fault(w)
				began := time.Now()
				for _, err := range p.Publish(w.ctx, several("i", 3)) {
					if !errors.Is(err, status.ErrUnavailable) {
						t.Errorf("got %v, want unavailable", err)
					}
				}
				if d := time.Since(began); d > 11*time.Second {
					t.Errorf("it took %v, want SendTimeout at most", d)
				}
				w.wantMetrics(map[string]float64{"publish_failures_total/unavailable": 3})

				f := w.bus.Faults()
				f.RejectSends(topic, 0, "")
				f.LoseSendConfirmations(topic, 0)
				f.RefuseConnections(false)
				f.RefuseLinks(topic, "")
				f.RefuseTokens(0)
				f.Resume()
				w.until("available again", func() bool { return p.Publish(w.ctx, several("i", 1))[0] == nil })
			})
		})
	}
}

// The SDK renews tokens in the background, every five minutes, without a pause between attempts if its retries are switched
// off: then this test never ends.
func TestIdlePublisherDoesNotCallABrokerThatIsAwayInALoop(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		if err := p.Connect(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.bus.Faults().RefuseConnections(true)
		w.bus.DropConnections()
		before := w.connections()
		<-time.After(6 * time.Minute)
		if n := w.connections() - before; n == 0 || n > 600 {
			t.Errorf("%d connections in the minute after the tokens were due", n)
		}
		w.bus.Faults().RefuseConnections(false)
		wantAllNil(t, p.Publish(w.ctx, several("i", 1)))
	})
}

func TestMissingEntityAndRightsAreSaid(t *testing.T) {
	for name, c := range map[string]struct {
		fault  func(f *devbus.Faults)
		want   string
		rights bool // are what is lacking
	}{
		"missing":  {func(f *devbus.Faults) { f.RefuseTokens(404) }, "topic status does not exist", false},
		"token":    {func(f *devbus.Faults) { f.RefuseTokens(401) }, "no right to use topic status", true},
		"claim":    {func(f *devbus.Faults) { f.RefuseLinks(topic, "amqp:unauthorized-access") }, "no right to use topic status", true},
		"disabled": {func(f *devbus.Faults) { f.RefuseLinks(topic, "com.microsoft:entity-disabled") }, "topic status is disabled", false},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, devbus.Options{}, func(w *world) {
				c.fault(w.bus.Faults())
				p := w.publisher(w.options())
				for what, err := range map[string]error{
					"Connect": p.Connect(w.ctx), "Publish": p.Publish(w.ctx, several("i", 1))[0], "Err": p.Err(),
				} {
					if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, status.ErrUnavailable) {
						t.Errorf("%s: got %v, want %q and not unavailable", what, err, c.want)
					}
					if errors.Is(err, status.ErrMayNotPublish) != (c.rights && what != "Err") {
						t.Errorf("%s: got %v", what, err)
					}
				}
				if p.Ready() {
					t.Error("ready")
				}
			})
		})
	}
}

// Surprise 10: what was sent without a confirmation may have been stored. Sent again it has the same id.
func TestSendWithoutConfirmationIsRepeatedWithTheSameID(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		w.bus.Faults().LoseSendConfirmations(topic, 1)
		out := several("i", 1)
		out[0].Update.Sequence = nil // a random id
		wantAllNil(t, p.Publish(w.ctx, out))
		got := w.stored(from, 2)
		if got[0].MessageID != got[1].MessageID {
			t.Errorf("ids %q and %q", got[0].MessageID, got[1].MessageID)
		}
	})
}

func TestPublishEndsWithItsContext(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		if err := p.Connect(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.bus.Faults().Stall()
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		began := time.Now()
		err := p.Publish(ctx, several("i", 1))[0]
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		// What nobody waits for any more and was not sent yet is not sent at all.
		err = p.Publish(ctx, several("i", 1))[0]
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		w.bus.Faults().Resume()
		wantAllNil(t, p.Publish(w.ctx, several("i", 1)))
		if n := w.stats(from).TotalEnqueued; n != 2 {
			t.Errorf("%d stored, want 2", n)
		}
	})
}

func TestQueueOfThePublisherIsBounded(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		o := w.options()
		o.MaxQueuedBytes = 20 + 3<<10 // three messages with bodies of 20 bytes together
		p := w.publisher(o)
		out := several("i", 3) // of 3 bytes each
		out[1].Body = make([]byte, 15)
		errs := p.Publish(w.ctx, out)
		if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], status.ErrUnavailable) {
			t.Errorf("got %v", errs)
		}
		wantAllNil(t, p.Publish(w.ctx, several("i", 3)))
	})
}

// Who is refused is told when to come back: at once after a mishap, later by a broker that throttles, and when the next
// connection is tried by one that is away.
func TestRetryAfterFollowsTheBroker(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		w.bus.Faults().RejectSends(topic, 1000, "com.microsoft:server-busy")
		if err := p.Publish(w.ctx, several("i", 1))[0]; !errors.Is(err, status.ErrUnavailable) || p.RetryAfter() != 10*time.Second {
			t.Errorf("throttled: got %v, and to come back after %v", err, p.RetryAfter())
		}
		w.bus.Faults().RejectSends(topic, 0, "")
		wantAllNil(t, p.Publish(w.ctx, several("i", 1)))
		if d := p.RetryAfter(); d != time.Second {
			t.Errorf("no longer throttled: come back after %v", d)
		}
		w.bus.Faults().RefuseConnections(true)
		w.bus.DropConnections()
		longest := time.Duration(0)
		for range 5 {
			if err := p.Publish(w.ctx, several("i", 1))[0]; !errors.Is(err, status.ErrUnavailable) {
				t.Fatalf("away: got %v", err)
			}
			longest = max(longest, p.RetryAfter())
		}
		if longest < 2*time.Second || longest > 15*time.Second {
			t.Errorf("away: come back after %v", longest)
		}
	})
}

func TestCloseSendsWhatWasTaken(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		errs := make(chan []error)
		go func() { errs <- p.Publish(w.ctx, several("i", 100)) }()
		synctest.Wait()
		if err := p.Close(w.ctx); err != nil {
			t.Error(err)
		}
		wantAllNil(t, <-errs)
		if err := p.Publish(w.ctx, several("i", 1))[0]; !errors.Is(err, status.ErrUnavailable) {
			t.Errorf("after Close: %v", err)
		}
	})
}

func TestCloseGivesUpWithItsContext(t *testing.T) {
	inWorld(t, devbus.Options{}, func(w *world) {
		p := w.publisher(w.options())
		if err := p.Connect(w.ctx); err != nil {
			t.Fatal(err)
		}
		w.bus.Faults().Stall()
		defer w.bus.Faults().Resume()
		errs := make(chan []error, 1)
		go func() { errs <- p.Publish(w.ctx, several("i", 1)) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		began := time.Now()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 6*time.Second {
			t.Errorf("Close: %v after %v", err, time.Since(began))
		}
		if err := (<-errs)[0]; !errors.Is(err, status.ErrUnavailable) {
			t.Errorf("Publish: %v", err)
		}
	})
}

func TestConnectionStringIsNeverLogged(t *testing.T) {
	inWorld(t, devbus.Options{SharedAccessKey: "another"}, func(w *world) {
		var log bytes.Buffer
		o := w.options()
		o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		p := w.publisher(o)
		err := p.Connect(w.ctx)
		if err == nil || !strings.Contains(err.Error(), "no right") {
			t.Errorf("Connect with the wrong key: %v", err)
		}
		if text := log.String() + fmt.Sprint(err); log.Len() == 0 || strings.Contains(text, devbus.DevelopmentKey) || strings.Contains(text, "sig=") {
			t.Errorf("log and error: %s", text)
		}
	})
}

func TestPublisherOptionsAreCheckedAllAtOnce(t *testing.T) {
	_, err := servicebus.NewPublisher(servicebus.Options{Subscription: "s", Lanes: -1, SendTimeout: -1, Namespace: "a/b", ConnectionString: "x"})
	for _, want := range []string{"ConnectionString, Namespace", "Topic, Queue", "Subscription", "Lanes", "SendTimeout", "Namespace: not"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not mention %s: %v", want, err)
		}
	}
}
