package servicebus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
)

const (
	topic        = "status"
	subscription = "relay"
	from         = topic + "/Subscriptions/" + subscription
	deadLetters  = from + "/$DeadLetterQueue"
	queue        = "jobs"
)

// world is a bus in a bubble of its own time (testing/synctest): the SDK's delays of seconds and locks of a minute cost
// nothing, and only the broker, the SDK and the code under test can make time pass.
type world struct {
	*testing.T
	ctx     context.Context
	bus     *devbus.Bus
	metrics *prometheus.Registry

	cut func(n int) int // after how many writes connection n (0, 1, …) breaks; set before the first

	mu    sync.Mutex
	dials int
}

func inWorld(t *testing.T, o devbus.Options, test func(w *world)) {
	t.Helper()
	if o.Topics == nil {
		o.Topics = []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}}}}
		o.Queues = []devbus.Queue{{Name: queue}}
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{T: t, ctx: ctx, bus: devbus.New(o), metrics: prometheus.NewRegistry()}
		defer func() {
			cancel()
			if err := w.bus.Close(); err != nil {
				t.Errorf("closing the bus: %v", err)
			}
			// Two of the SDK's calls that find a link lost at the same time make it twice, and the goroutines that renew
			// the first one's tokens outlive its client until they are due, after five minutes.
			<-time.After(10 * time.Minute)
		}()
		test(w)
	})
}

// wire is the client's end of a connection that breaks after so many writes, unless they start below 1.
type wire struct {
	net.Conn
	left atomic.Int64
}

func (c *wire) Write(b []byte) (int, error) {
	if c.left.Add(-1) == 0 {
		c.Close()
	}
	return c.Conn.Write(b)
}

func (w *world) dial(context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	go w.bus.ServeConn(context.WithoutCancel(w.ctx), server)
	c := &wire{Conn: client}
	w.mu.Lock() // the SDK dials from any goroutine
	defer w.mu.Unlock()
	if w.cut != nil {
		c.left.Store(int64(w.cut(w.dials)))
	}
	w.dials++
	return c, nil
}

// connections counts those made so far.
func (w *world) connections() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials
}

func (w *world) options() servicebus.Options {
	return servicebus.Options{
		ConnectionString: devbus.ConnectionString("bus.test"),
		Topic:            topic, Subscription: subscription,
		NewConn: w.dial, Metrics: w.metrics,
	}
}

// receive runs a receiver until the returned function is called, or the test ends.
func (w *world) receive(o servicebus.Options, handle servicebus.Handle) (r *servicebus.Receiver, stop func()) {
	w.Helper()
	r, err := servicebus.NewReceiver(o)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, handle) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.Errorf("Run: %v", err)
		}
	})
	w.Cleanup(stop)
	return r, stop
}

// client is a bare SDK client of the bus.
func (w *world) client() *azservicebus.Client {
	w.Helper()
	c, err := azservicebus.NewClientFromConnectionString(devbus.ConnectionString("bus.test"), &azservicebus.ClientOptions{
		NewWebSocketConn: func(ctx context.Context, _ azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
			client, server := net.Pipe()
			go w.bus.ServeConn(context.WithoutCancel(w.ctx), server)
			return client, nil
		},
	})
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// send stores messages with these bodies.
func (w *world) send(bodies ...string) {
	w.Helper()
	var ms []*azservicebus.Message
	for _, b := range bodies {
		ms = append(ms, &azservicebus.Message{Body: []byte(b)})
	}
	w.sendMessages(topic, ms...)
}

func (w *world) sendMessages(entity string, ms ...*azservicebus.Message) {
	w.Helper()
	c := w.client()
	defer c.Close(w.ctx)
	s, err := c.NewSender(entity, nil)
	if err != nil {
		w.Fatal(err)
	}
	for len(ms) > 0 {
		b, err := s.NewMessageBatch(w.ctx, nil)
		if err != nil {
			w.Fatal(err)
		}
		for len(ms) > 0 && b.AddMessage(ms[0], nil) == nil {
			ms = ms[1:]
		}
		if err := s.SendMessageBatch(w.ctx, b, nil); err != nil {
			w.Fatal(err)
		}
	}
}

// stored takes everything out of an entity.
func (w *world) stored(entity string, n int) (all []*azservicebus.ReceivedMessage) {
	w.Helper()
	c := w.client()
	defer c.Close(w.ctx)
	o := &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete}
	if strings.HasSuffix(entity, "/$DeadLetterQueue") {
		o.SubQueue = azservicebus.SubQueueDeadLetter
	}
	r, err := c.NewReceiverForSubscription(topic, subscription, o)
	if err != nil {
		w.Fatal(err)
	}
	for len(all) < n {
		ms, err := r.ReceiveMessages(w.ctx, n-len(all), nil)
		if err != nil {
			w.Fatal(err)
		}
		all = append(all, ms...)
	}
	return all
}

func (w *world) stats(entity string) devbus.Stats {
	w.Helper()
	s, err := w.bus.Stats(entity)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// until waits, in the bubble's time, for something to come true.
func (w *world) until(what string, cond func() bool) {
	w.Helper()
	for step := time.Millisecond; step < time.Hour; step += step / 50 { // for two days
		synctest.Wait()
		if cond() {
			return
		}
		<-time.After(step)
	}
	w.Fatalf("in vain: %s; the bus: %+v", what, w.stats(from))
}

// untilCompleted waits until the subscription has settled n messages by completing them.
func (w *world) untilCompleted(n int64) {
	w.Helper()
	w.until(fmt.Sprintf("%d completed", n), func() bool { return w.stats(from).Completed >= n })
}

// metric gives a metric's value, its labels' values after a slash: "dead_lettered_total/Invalid".
func (w *world) metric(name string) (value float64) {
	w.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			full := strings.TrimPrefix(f.GetName(), "statusrelay_servicebus_")
			for _, l := range m.GetLabel() {
				full += "/" + l.GetValue()
			}
			if full != name {
				continue
			}
			switch f.GetType() {
			case dto.MetricType_COUNTER:
				return m.GetCounter().GetValue()
			case dto.MetricType_GAUGE:
				return m.GetGauge().GetValue()
			case dto.MetricType_HISTOGRAM:
				return float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}

func (w *world) wantMetrics(want map[string]float64) {
	w.Helper()
	for name, v := range want {
		if got := w.metric(name); got != v {
			w.Errorf("%s = %v, want %v", name, got, v)
		}
	}
}

// recorder is a Handle that remembers what it was given and answers by body.
type recorder struct {
	mu     sync.Mutex
	answer func(body string) error // nil: always nil
	seen   []string
	counts map[string]uint32 // delivery counts seen last
}

func (h *recorder) handle(_ context.Context, batch []servicebus.Message) []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := make([]error, len(batch))
	for i, m := range batch {
		h.seen = append(h.seen, string(m.Body))
		if h.counts == nil {
			h.counts = make(map[string]uint32)
		}
		h.counts[string(m.Body)] = m.DeliveryCount
		if h.answer != nil {
			errs[i] = h.answer(string(m.Body))
		}
	}
	return errs
}

func (h *recorder) bodies() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen)
}

func (h *recorder) deliveries(body string) uint32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[body]
}

func numbered(n int) (bodies []string) {
	for i := range n {
		bodies = append(bodies, fmt.Sprint("m", i))
	}
	return bodies
}

var errInternal = errors.New("a bug")
