package servicebus_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
)

// serveVariable makes this test binary a bus that serves on a loopback port until its standard input ends, so that the
// processor time of a benchmark is the client's alone.
const serveVariable = "SERVICEBUS_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveVariable) == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	devbus.New(devbus.Options{
		Topics:         []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}}}},
		MaxEntityBytes: 1 << 30,
	}).Serve(ctx, l)
}

// busProcess starts one and gives its connection string.
func busProcess(b *testing.B) string {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveVariable+"=1")
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
	b.Cleanup(func() { stdin.Close(); cmd.Wait() })
	addr, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return devbus.ConnectionString(strings.TrimSpace(addr))
}

// fill puts n messages of 512 bytes into the topic.
func fill(b *testing.B, connection string, n int) {
	b.Helper()
	client, err := azservicebus.NewClientFromConnectionString(connection, nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	defer client.Close(ctx)
	sender, err := client.NewSender(topic, nil)
	if err != nil {
		b.Fatal(err)
	}
	m := &azservicebus.Message{Body: bytes.Repeat([]byte("x"), 512), ApplicationProperties: map[string]any{"hub": "h", "name": "Order"}}
	for n > 0 {
		batch, err := sender.NewMessageBatch(ctx, nil)
		if err != nil {
			b.Fatal(err)
		}
		for n > 0 && batch.AddMessage(m, nil) == nil {
			n--
		}
		if err := sender.SendMessageBatch(ctx, batch, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// cost reports processor time per message since it was called.
func cost(b *testing.B) (report func()) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, began := cpu(), time.Now()
	return func() {
		b.ReportMetric(float64((cpu()-before).Nanoseconds())/1000/float64(b.N), "cpu-µs/msg")
		b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "msg/s")
	}
}

// BenchmarkSDKReceiveComplete is the floor: nothing but receive and complete, as well as the SDK can.
func BenchmarkSDKReceiveComplete(b *testing.B) {
	connection := busProcess(b)
	fill(b, connection, b.N)
	client, err := azservicebus.NewClientFromConnectionString(connection, nil)
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	defer client.Close(ctx)
	receiver, err := client.NewReceiverForSubscription(topic, subscription, nil)
	if err != nil {
		b.Fatal(err)
	}
	jobs := make(chan *azservicebus.ReceivedMessage, 500)
	var settling sync.WaitGroup
	for range 512 {
		settling.Go(func() {
			for m := range jobs {
				if err := receiver.CompleteMessage(ctx, m, nil); err != nil {
					b.Error(err)
				}
			}
		})
	}
	report := cost(b)
	for left := b.N; left > 0; {
		got, err := receiver.ReceiveMessages(ctx, min(left, 500), nil)
		if err != nil {
			b.Fatal(err)
		}
		for _, m := range got {
			jobs <- m
		}
		left -= len(got)
	}
	close(jobs)
	settling.Wait()
	report()
}

// BenchmarkReceiver is the receiver with a Handle that does nothing.
func BenchmarkReceiver(b *testing.B) {
	connection := busProcess(b)
	fill(b, connection, b.N)
	r, err := servicebus.NewReceiver(servicebus.Options{ConnectionString: connection, Topic: topic, Subscription: subscription})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var handled atomic.Int64
	report := cost(b)
	err = r.Run(ctx, func(_ context.Context, batch []servicebus.Message) []error {
		if handled.Add(int64(len(batch))) == int64(b.N) {
			cancel() // Run ends when all is settled
		}
		return make([]error, len(batch))
	})
	if err != nil {
		b.Fatal(err)
	}
	report()
}

// BenchmarkPublish is as many callers as there are, each with one update at a time.
func BenchmarkPublish(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			p, err := servicebus.NewPublisher(servicebus.Options{ConnectionString: busProcess(b), Topic: topic})
			if err != nil {
				b.Fatal(err)
			}
			ctx := b.Context()
			defer p.Close(ctx)
			if err := p.Connect(ctx); err != nil {
				b.Fatal(err)
			}
			body := bytes.Repeat([]byte("x"), 512)
			var next atomic.Int64
			var calling sync.WaitGroup
			report := cost(b)
			for range callers {
				calling.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						u := &status.Update{Hub: "h", InstanceID: fmt.Sprint("i", n%1000), Generation: ptr(int64(1)), Sequence: &n, Kind: status.KindProgress}
						if err := p.Publish(ctx, []servicebus.Outgoing{{Update: u, Body: body}})[0]; err != nil {
							b.Error(err)
						}
					}
				})
			}
			calling.Wait()
			report()
		})
	}
}

func ptr[T any](v T) *T { return &v }
