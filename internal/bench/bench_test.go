package bench_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"

	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/dev"
	"statusrelay/internal/devbus"
	"statusrelay/internal/policy"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/shell"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
	"statusrelay/internal/wire"
)

const (
	topic        = "status"
	subscription = "relay"
	audience     = "statusrelay"
)

// roleVariable makes this test binary one of the processes of a benchmark; it
// serves until its standard input ends, after it has written its address.
const roleVariable = "STATUSRELAY_BENCH_ROLE"

// setup is what a child process is told, as JSON in setupVariable.
type setup struct{ Bus, Redis, Issuer, Functions string }

const setupVariable = "STATUSRELAY_BENCH_SETUP"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	var s setup
	if text := os.Getenv(setupVariable); text != "" {
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			panic(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
	if err := map[string]func(context.Context, setup) error{
		"bus": serveBus, "floor": serveFloor, "relay": serveRelay, "functions": serveFunctions, "notifier": serveNotifier,
	}[role](ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
}

func serveBus(ctx context.Context, _ setup) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return devbus.New(devbus.Options{
		Topics:         []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}}}},
		MaxEntityBytes: 1 << 30,
	}).Serve(ctx, l)
}

// serveFloor is the least that answers a GET from Redis: net/http, one HGET,
// the stored text as it is. It knows no rights, no filter and no views.
func serveFloor(ctx context.Context, s setup) error {
	client := redis.NewClient(&redis.Options{Addr: s.Redis})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/hubs/{hub}/instances/{id}", func(w http.ResponseWriter, r *http.Request) {
		text, err := client.HGet(r.Context(), "floor:"+r.PathValue("id"), "r").Bytes()
		if err != nil {
			http.Error(w, "", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(text)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	server := &http.Server{Handler: mux}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	_ = server.Serve(l)
	return nil
}

func serveRelay(ctx context.Context, s setup) error {
	r, err := newRelay(ctx, s)
	if err != nil {
		return err
	}
	fmt.Println(r.Addr(), r.PrivateAddr())
	return r.Run(ctx)
}

// newRelay is a relay as production has it, but for addresses.
func newRelay(ctx context.Context, s setup) (*relay.Relay, error) {
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		return nil, err
	}
	c := relay.Defaults()
	c.Listen, c.PrivateListen = "127.0.0.1:0", "127.0.0.1:0"
	c.Log.Level = "error"
	c.Auth.Issuers, c.Auth.Audiences = []string{s.Issuer}, []string{audience}
	c.ServiceBus.ConnectionString, c.ServiceBus.Topic, c.Subscription = settings.NewSecret(devbus.ConnectionString(s.Bus)), topic, subscription
	c.Redis.Addrs = []string{s.Redis}
	c.DrainTimeout = time.Second
	c.Bridge.Hubs = []string{bridgedHub}
	c.Read.MaxPerCaller, c.Watch.MaxWatches = c.Read.MaxStreams, 1000 // the benchmarks are one caller
	c.Limits = relay.Limits{                                          // so are these: they cost what they cost, and nothing reaches them
		RequestsPerCaller: 1e9, Door: shell.Door{RequestsPerAddress: 1e9, FailuresPerAddress: 1e9}, HandshakesPerAddress: 1e9, Handshakes: 1e9, SocketsPerCaller: 1e9,
	}
	return relay.New(ctx, c, relay.Options{Policy: rules})
}

// process is a child of this test binary.
type process struct {
	addr    string
	private string // where its metrics are, if it has any
	pid     int
}

func spawn(b *testing.B, role string, s setup) process {
	b.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, setupVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatalf("%s: %v", role, err)
	}
	addr, private, _ := strings.Cut(strings.TrimSpace(line), " ")
	return process{addr, private, cmd.Process.Pid}
}

// cpu is the processor time that a process's threads have used so far.
func (p process) cpu(b *testing.B) time.Duration {
	b.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid))
	if err != nil || len(threads) == 0 {
		b.Fatalf("no threads of process %d: %v", p.pid, err)
	}
	var sum time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		onCPU, _, _ := strings.Cut(string(text), " ") // nanoseconds, the first of three
		n, err := strconv.ParseInt(onCPU, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(n)
	}
	return sum
}

// ownCPU is the processor time that this process has used so far.
func ownCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// identity serves an issuer and returns its URL and an operator's token.
func identity(b *testing.B) (url, token string) {
	b.Helper()
	var issuer *devissuer.Issuer
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { issuer.ServeHTTP(w, r) }))
	b.Cleanup(server.Close)
	var err error
	if issuer, err = devissuer.New(devissuer.Options{URL: server.URL}); err != nil {
		b.Fatal(err)
	}
	token, err = issuer.Token("operator-1", audience, map[string]any{"roles": []string{"operator"}}, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	return server.URL, token
}

// update is a typical one, about 600 bytes as an event.
func update(instance int, sequence int64) *status.Update {
	generation := int64(1795324351806)
	return &status.Update{
		Hub: "orders", InstanceID: fmt.Sprintf("order-%d", instance), Name: "ProcessOrder", Kind: status.KindProgress,
		Generation: &generation, Sequence: &sequence, RuntimeStatus: status.Running,
		CustomStatus: json.RawMessage(fmt.Sprintf(`{"message":"Packing two parcels","percent":%d,"step":"pack"}`, sequence%100)),
		CreatedTime:  time.UnixMilli(generation).UTC(), LastUpdatedTime: time.UnixMilli(generation + sequence).UTC(),
		Labels: map[string]string{"owner": "u-123", "tenant": "contoso"},
	}
}

// publish puts n updates of a thousand instances on the topic, in turn.
func publish(b *testing.B, bus string, n int) {
	b.Helper()
	client, err := azservicebus.NewClientFromConnectionString(devbus.ConnectionString(bus), nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	defer func() { _ = client.Close(context.WithoutCancel(ctx)) }()
	sender, err := client.NewSender(topic, nil)
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; i < n; {
		batch, err := sender.NewMessageBatch(ctx, nil)
		if err != nil {
			b.Fatal(err)
		}
		for ; i < n; i++ {
			body := wire.Encode(wire.Message{Update: *update(i%1000, int64(i))}, time.UnixMilli(1795324351806))
			if batch.AddMessage(&azservicebus.Message{Body: body}, nil) != nil {
				break // full
			}
		}
		if err := sender.SendMessageBatch(ctx, batch, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIngest is a message's way from the subscription through merge and
// Redis to its settlement, beside the SDK doing nothing but receive and complete.
func BenchmarkIngest(b *testing.B) {
	b.Run("sdk", func(b *testing.B) {
		bus := spawn(b, "bus", setup{})
		publish(b, bus.addr, b.N)
		client, err := azservicebus.NewClientFromConnectionString(devbus.ConnectionString(bus.addr), nil)
		if err != nil {
			b.Fatal(err)
		}
		receiver, err := client.NewReceiverForSubscription(topic, subscription, nil)
		if err != nil {
			b.Fatal(err)
		}
		const settlers, most = 256, 500
		work := make(chan *azservicebus.ReceivedMessage, 4*most)
		var wg sync.WaitGroup
		report := measure(b)
		for range settlers {
			wg.Go(func() {
				for m := range work {
					if err := receiver.CompleteMessage(b.Context(), m, nil); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for n := 0; n < b.N; {
			messages, err := receiver.ReceiveMessages(b.Context(), most, &azservicebus.ReceiveMessagesOptions{TimeAfterFirstMessage: time.Millisecond})
			if err != nil {
				b.Fatal(err)
			}
			n += len(messages)
			for _, m := range messages {
				work <- m
			}
		}
		close(work)
		wg.Wait()
		report()
		_ = client.Close(context.WithoutCancel(b.Context()))
	})
	b.Run("relay", func(b *testing.B) {
		bus, store := spawn(b, "bus", setup{}), storetest.StartRedis(b)
		issuer, _ := identity(b)
		publish(b, bus.addr, b.N)
		ctx, cancel := context.WithCancel(b.Context())
		r, err := newRelay(ctx, setup{Bus: bus.addr, Redis: store.Addr, Issuer: issuer})
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error, 1)
		report := measure(b)
		go func() { done <- r.Run(ctx) }()
		for completed(b, r) < float64(b.N) {
			select {
			case err := <-done:
				b.Fatal(err)
			case <-time.After(25 * time.Millisecond):
			}
		}
		report()
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
}

// completed is how many messages a relay says that it has completed.
func completed(b *testing.B, r *relay.Relay) float64 {
	return metric(b, r.PrivateAddr().String(), "statusrelay_servicebus_completed_total ")
}

// metric is what a relay at a private address says of a metric; its name ends with a space.
func metric(b *testing.B, private, name string) float64 {
	b.Helper()
	answer, err := http.Get("http://" + private + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// measure starts measuring this process; what it returns reports.
func measure(b *testing.B) (report func()) {
	b.ResetTimer()
	cpu, start := ownCPU(b), time.Now()
	return func() {
		b.StopTimer()
		b.ReportMetric(float64((ownCPU(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/msg")
		b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "msg/s")
	}
}

// BenchmarkPublishToFrame is the time from publishing an update until a watcher
// has its frame, one at a time, through every part and a real Redis.
func BenchmarkPublishToFrame(b *testing.B) {
	store := storetest.StartRedis(b)
	stack, err := dev.New(b.Context(), dev.Options{NoSamples: true, RedisAddr: store.Addr})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ready, done := make(chan dev.Info, 1), make(chan error, 1)
	go func() { done <- stack.Run(ctx, func(i dev.Info) { ready <- i }) }()
	info := <-ready
	defer func() { cancel(); <-done }()
	header := http.Header{"Authorization": {"Bearer " + info.Tokens.Operator}}
	dialer := websocket.Dialer{Subprotocols: []string{"status.v1.json"}}
	socket, _, err := dialer.DialContext(ctx, strings.Replace(info.Relay, "http", "ws", 1)+"/v1/watch", header)
	if err != nil {
		b.Fatal(err)
	}
	defer socket.Close()
	if err := socket.WriteMessage(websocket.TextMessage, []byte(`{"type":"watch","instances":[{"hub":"orders","instanceId":"order-1"}]}`)); err != nil {
		b.Fatal(err)
	}
	next := func(kind string) {
		for {
			var frame struct{ Type string }
			if err := socket.ReadJSON(&frame); err != nil {
				b.Fatal(err)
			}
			if frame.Type == kind {
				return
			}
		}
	}
	next("watching")
	took := make([]time.Duration, b.N)
	b.ResetTimer()
	for i := range b.N {
		start := time.Now()
		if err := stack.Publish(ctx, update(1, int64(i+1))); err != nil {
			b.Fatal(err)
		}
		next("status")
		took[i] = time.Since(start)
	}
	b.StopTimer()
	slices.Sort(took)
	for name, share := range map[string]float64{"p50-ms": .5, "p99-ms": .99} {
		b.ReportMetric(float64(took[int(share*float64(len(took)-1))].Microseconds())/1000, name)
	}
}
