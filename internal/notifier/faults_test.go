package notifier_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/claim"
	"statusrelay/internal/devbus"
	"statusrelay/internal/ingestapi"
	"statusrelay/internal/limit"
	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/wire"
)

const from = "status/Subscriptions/relay"

// chain is a handler, a publisher and a broker in a bubble of their own time.
type chain struct {
	*testing.T
	ctx     context.Context
	bus     *devbus.Bus
	handler http.Handler
	cut     atomic.Int64 // after how many writes the next connections break; below 1: they do not
}

func inChain(t *testing.T, test func(c *chain)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := &chain{T: t, ctx: ctx, bus: devbus.New(devbus.Options{Topics: []devbus.Topic{{Name: "status", Subscriptions: []devbus.Subscription{{Name: "relay"}}}}})}
		publisher, err := servicebus.NewPublisher(c.options())
		if err != nil {
			t.Fatal(err)
		}
		ledger, err := claim.NewLedger(claim.Options{Memory: claim.NewLocal(nil)})
		if err != nil {
			t.Fatal(err)
		}
		rules, err := policy.Parse(policy.Development())
		if err != nil {
			t.Fatal(err)
		}
		c.handler = ingestapi.New(ingestapi.Options{
			Verify: func(context.Context, string) (*auth.Principal, error) {
				return &auth.Principal{Subject: "p", Claims: map[string]any{"roles": []any{"publisher"}}}, nil
			},
			Policy: func() *policy.Policy { return rules }, Claims: ledger, RetryAfter: publisher.RetryAfter, Rate: 1e9,
			Publish: func(ctx context.Context, messages []ingestapi.Message) []error {
				plain := make([]wire.Message, len(messages))
				for i := range messages {
					plain[i] = messages[i].Message
				}
				return notifier.Send(ctx, publisher, plain)
			},
		})
		defer func() {
			if err := publisher.Close(ctx); err != nil {
				t.Errorf("closing the publisher: %v", err)
			}
			cancel()
			if err := c.bus.Close(); err != nil {
				t.Errorf("closing the bus: %v", err)
			}
			<-time.After(10 * time.Minute) // the SDK's goroutines that renew tokens, see package servicebus
		}()
		test(c)
	})
}

func (c *chain) options() servicebus.Options {
	return servicebus.Options{
		ConnectionString: devbus.ConnectionString("bus.test"), Topic: "status",
		NewConn: func(context.Context) (net.Conn, error) {
			client, server := net.Pipe()
			go c.bus.ServeConn(context.WithoutCancel(c.ctx), server)
			w := &breaking{Conn: client}
			w.left.Store(c.cut.Load())
			return w, nil
		},
	}
}

// breaking is a connection that breaks after so many writes.
type breaking struct {
	net.Conn
	left atomic.Int64
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.left.Add(-1) == 0 {
		b.Close()
	}
	return b.Conn.Write(p)
}

// post sends a batch and returns which of it were accepted. Nothing else than accepted
// and 503 is an answer, and 503 says when to come back.
func (c *chain) post(instances []string) (accepted map[string]bool) {
	c.Helper()
	var events []string
	for _, i := range instances {
		events = append(events, `{"id":"`+i+`","source":"/","data":{"hub":"h","instanceId":"`+i+`","customStatus":"`+strings.Repeat("x", 3000)+`"}}`)
	}
	r := httptest.NewRequest(http.MethodPost, "/v1/updates", strings.NewReader("["+strings.Join(events, ",")+"]"))
	r.Header.Set("Authorization", "Bearer x")
	w := httptest.NewRecorder()
	c.handler.ServeHTTP(w, r)
	var answer struct{ Items []struct{ Status int } }
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		c.Errorf("%v in %s", err, w.Body)
	}
	accepted = map[string]bool{}
	again := false
	for n, i := range instances {
		code := w.Code
		if len(answer.Items) > 0 {
			code = answer.Items[n].Status
		}
		switch accepted[i] = code == http.StatusAccepted; code {
		case http.StatusAccepted:
		case http.StatusServiceUnavailable:
			again = true
		default:
			c.Errorf("%s: got %d", i, code)
		}
	}
	if again != (w.Header().Get("Retry-After") != "") {
		c.Errorf("got %d with Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	return accepted
}

// stored is how often each instance is in the subscription, which it empties.
func (c *chain) stored() map[string]int {
	c.Helper()
	c.cut.Store(0)
	o := c.options()
	o.Subscription = "relay"
	receiver, err := servicebus.NewReceiver(o)
	if err != nil {
		c.Fatal(err)
	}
	s, err := c.bus.Stats(from)
	if err != nil {
		c.Fatal(err)
	}
	got, left := map[string]int{}, s.Active+s.Locked
	if left == 0 {
		return got
	}
	ctx, cancel := context.WithCancel(c.ctx)
	var mu sync.Mutex
	err = receiver.Run(ctx, func(_ context.Context, batch []servicebus.Message) []error {
		mu.Lock()
		defer mu.Unlock()
		for _, m := range batch {
			decoded, err := wire.Decode(m.Body, time.Now())
			if err != nil {
				c.Error(err)
			}
			got[decoded.Update.InstanceID]++
		}
		if left -= len(batch); left == 0 {
			cancel()
		}
		return make([]error, len(batch))
	})
	if err != nil {
		c.Error(err)
	}
	return got
}

// Whatever happens to the broker in the middle of batches, nothing that was accepted
// is missing on the topic, though each event is sent once; and when all that was not
// accepted is sent again as it is, nothing at all is missing.
func TestNothingAcceptedIsMissing(t *testing.T) {
	for name, fault := range map[string]func(c *chain){
		"throttled": func(c *chain) { c.bus.Faults().RejectSends("status", 15, "com.microsoft:server-busy") },
		"stalled": func(c *chain) {
			c.bus.Faults().Stall()
			time.AfterFunc(30*time.Second, c.bus.Faults().Resume)
		},
		"away": func(c *chain) {
			c.bus.Faults().RefuseConnections(true)
			c.bus.DropConnections()
			time.AfterFunc(30*time.Second, func() { c.bus.Faults().RefuseConnections(false) })
		},
		"cut in the middle": func(c *chain) {
			c.cut.Store(40) // making the links takes most of them
			c.bus.DropConnections()
		},
		"confirmations lost": func(c *chain) { c.bus.Faults().LoseSendConfirmations("status", 9) },
		"links detached":     func(c *chain) { c.bus.Faults().DetachLinks("status", "com.microsoft:timeout") },
		"full":               func(c *chain) { c.bus.Faults().RejectSends("status", 7, "amqp:resource-limit-exceeded") },
	} {
		t.Run(name, func(t *testing.T) {
			inChain(t, func(c *chain) {
				c.post([]string{"before"})
				fault(c)
				const publishers, batches, size = 4, 5, 40
				var mu sync.Mutex
				accepted := map[string]bool{}
				var again [][]string
				var publishing sync.WaitGroup
				for p := range publishers {
					publishing.Go(func() {
						for b := range batches {
							var instances []string
							for i := range size {
								instances = append(instances, fmt.Sprintf("i-%d-%d-%d", p, b, i))
							}
							got := c.post(instances)
							mu.Lock()
							again = append(again, nil)
							for _, i := range instances {
								if accepted[i] = got[i]; !got[i] {
									again[len(again)-1] = append(again[len(again)-1], i)
								}
							}
							mu.Unlock()
						}
					})
				}
				publishing.Wait()
				got, refused := c.stored(), 0
				for i, ok := range accepted {
					if ok && got[i] == 0 {
						t.Errorf("%s was accepted and is missing", i)
					}
					if !ok {
						refused++
					}
				}
				t.Logf("%d of %d accepted at first, %d stored", len(accepted)-refused, len(accepted), len(got))
				for _, instances := range again {
					for len(instances) > 0 {
						<-time.After(time.Second)
						ok := c.post(instances)
						instances = without(instances, ok)
					}
				}
				for i, n := range c.stored() {
					got[i] += n
				}
				if want := publishers*batches*size + 1; len(got) != want {
					t.Errorf("in the end %d of %d are stored", len(got), want)
				}
			})
		})
	}
}

// without leaves those that were not accepted.
func without(instances []string, accepted map[string]bool) (left []string) {
	for _, i := range instances {
		if !accepted[i] {
			left = append(left, i)
		}
	}
	return left
}

// A thousand requests at the same time, while the broker does not answer, cost no more than
// they may; those beyond that are refused at once, and there is room again when it answers.
func TestMemoryIsBoundedWhileTheBrokerStalls(t *testing.T) {
	line := func(id, size int) string {
		return fmt.Sprintf(`{"hub":"h","instanceId":"i-%d","customStatus":"%s"}`+"\n", id, strings.Repeat("x", size))
	}
	bodies := map[string]string{"one large update": line(1, 60_000), "many small updates": "", "one small update": line(1, 10)}
	for i := range 200 {
		bodies["many small updates"] += line(i, 10)
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			const most, requests = 16 << 20, 1000
			w := start(t, time.Second, func(c *notifier.Config, _ *notifier.Options) { c.MaxInFlight, c.Rate = most, 1e9 })
			if got := w.post("first"); got != accepted {
				t.Fatalf("got %s", got)
			}
			w.bus.Faults().Stall()
			before := heap()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: requests}}
			defer client.CloseIdleConnections()
			codes := make(chan int, requests)
			for range requests {
				go func() {
					r, err := http.NewRequestWithContext(w.Context(), http.MethodPost, w.url, strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					r.Header.Set("Authorization", "Bearer "+w.token)
					got, err := client.Do(r)
					if err != nil { // a machine that is slow enough closes some
						codes <- 0
						return
					}
					got.Body.Close()
					codes <- got.StatusCode
				}()
			}
			inHand := 0
			w.until("all are refused or in hand", func() bool {
				inHand = int(w.metric("statusrelay_limit_in_flight_bytes")) / int(limit.Holds(int64(len(body)), strings.Count(body, "\n")))
				return len(codes)+inHand >= requests
			})
			grown := heap() - before
			t.Logf("%d in hand, %d refused; the heap has grown by %d MiB of %d that they may hold", inHand, len(codes), grown>>20, most>>20)
			const clients = requests * 48 << 10 // the other ends are in this process too
			if grown > most+clients {
				t.Errorf("the heap has grown by %d bytes", grown)
			}
			w.bus.Faults().Resume()
			for range requests {
				if code := <-codes; code != 0 && code != http.StatusAccepted && code != http.StatusServiceUnavailable {
					t.Errorf("got %d", code)
				}
			}
			w.until("it has room again", func() bool { return w.post("last") == accepted })
		})
	}
}

// heap is what is in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
