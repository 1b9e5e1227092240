package bench_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/redis/go-redis/v9"

	"statusrelay/internal/devbus"
	"statusrelay/internal/storetest"
	"statusrelay/internal/wire"
)

// BenchmarkGet is a GET that is answered with 200, and one that is answered with 304, beside the least that answers one
// from Redis over HTTP, and beside a loop in one process that asks Redis and does nothing else.
func BenchmarkGet(b *testing.B) {
	const instances, callers = 100, 32
	w := newReading(b)
	publish(b, w.bus.addr, instances)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	get := func(p process, i int, etag string) (code int, tag string, body []byte) {
		request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, w.url(p, i%instances), nil)
		if err != nil {
			b.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+w.token)
		if etag != "" {
			request.Header.Set("If-None-Match", etag)
		}
		answer, err := client.Do(request)
		if err != nil {
			b.Error(err)
			return 0, "", nil
		}
		defer answer.Body.Close()
		body, _ = io.ReadAll(answer.Body)
		return answer.StatusCode, answer.Header.Get("ETag"), body
	}
	plain := redis.NewClient(&redis.Options{Addr: w.store, PoolSize: callers})
	var etags [instances]string
	for i := range instances { // the floor gets the same bytes
		var code int
		var body []byte
		for code != http.StatusOK {
			code, etags[i], body = get(w.relay, i, "")
		}
		if err := plain.HSet(b.Context(), fmt.Sprintf("floor:order-%d", i), "r", body).Err(); err != nil {
			b.Fatal(err)
		}
	}
	floor := spawn(b, "floor", w.setup)
	contenders := []struct {
		name string
		cpu  func() time.Duration
		ask  func(n int) bool
	}{
		{"redis", func() time.Duration { return ownCPU(b) }, func(n int) bool {
			return plain.HGet(b.Context(), fmt.Sprintf("floor:order-%d", n%instances), "r").Err() == nil
		}},
		{"floor", func() time.Duration { return floor.cpu(b) }, func(n int) bool {
			code, _, _ := get(floor, n, "")
			return code == http.StatusOK
		}},
		{"200", func() time.Duration { return w.relay.cpu(b) }, func(n int) bool {
			code, _, _ := get(w.relay, n, "")
			return code == http.StatusOK
		}},
		{"304", func() time.Duration { return w.relay.cpu(b) }, func(n int) bool {
			code, _, _ := get(w.relay, n, etags[n%instances])
			return code == http.StatusNotModified
		}},
	}
	// In turn, a slice at a time, so that a machine that is slower for a while is so for all.
	const slice = 2000
	used, took := make([]time.Duration, len(contenders)), make([]time.Duration, len(contenders))
	b.ResetTimer()
	for from := 0; from < b.N; from += slice {
		for i, c := range contenders {
			cpu, start := c.cpu(), time.Now()
			var wg sync.WaitGroup
			for caller := range callers {
				wg.Go(func() {
					for n := from + caller; n < min(from+slice, b.N); n += callers {
						if !c.ask(n) {
							b.Errorf("%s: not answered as it should be", c.name)
							return
						}
					}
				})
			}
			wg.Wait()
			used[i] += c.cpu() - cpu
			took[i] += time.Since(start)
		}
	}
	b.StopTimer()
	b.ReportMetric(0, "ns/op") // of all together: says nothing
	for i, c := range contenders {
		b.ReportMetric(float64(used[i].Nanoseconds())/1000/float64(b.N), c.name+"-cpu-µs/get")
		b.ReportMetric(float64(b.N)/took[i].Seconds(), c.name+"-get/s")
	}
	b.ReportMetric(used[2].Seconds()/used[1].Seconds(), "200/floor-cpu")
	b.ReportMetric(used[3].Seconds()/used[1].Seconds(), "304/floor-cpu")
}

// reading is a relay with all that it needs, in processes of their own.
type reading struct {
	setup
	bus, relay process
	store      string
	token      string
}

func newReading(b *testing.B) *reading {
	b.Helper()
	store := storetest.StartRedis(b)
	w := &reading{bus: spawn(b, "bus", setup{}), store: store.Addr}
	issuer, token := identity(b)
	w.token, w.setup = token, setup{Bus: w.bus.addr, Redis: store.Addr, Issuer: issuer}
	w.relay = spawn(b, "relay", w.setup)
	return w
}

func (w *reading) url(p process, i int) string {
	return fmt.Sprintf("http://%s/v1/hubs/orders/instances/order-%d", p.addr, i)
}

// BenchmarkHeld is the memory of a relay for each request that waits: b.N of them, each for an instance of its own.
func BenchmarkHeld(b *testing.B) {
	for _, kind := range []struct{ name, header, first string }{
		{"long-poll", "If-None-Match: *\r\nPrefer: wait=55\r\n", ""},
		{"stream", "Accept: text/event-stream\r\n", "event: status"},
	} {
		b.Run(kind.name, func(b *testing.B) {
			raiseFiles(b)
			w := newReading(b)
			publish(b, w.bus.addr, 1000)
			waitFor(b, func() bool { return w.status(b, 999) == http.StatusOK })
			before := w.relay.rss(b)
			var conns []net.Conn
			defer func() {
				for _, c := range conns {
					_ = c.Close()
				}
			}()
			for i := range b.N {
				c, err := net.Dial("tcp", w.relay.addr)
				if err != nil {
					b.Fatal(err)
				}
				conns = append(conns, c)
				fmt.Fprintf(c, "GET /v1/hubs/orders/instances/order-%d HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\n%s\r\n", i%1000, w.token, kind.header)
				if kind.first != "" && i%100 == 0 { // now and then all are caught up with
					for r := bufio.NewReader(c); ; {
						line, err := r.ReadString('\n')
						if err != nil {
							b.Fatal(err)
						}
						if strings.HasPrefix(line, kind.first) {
							break
						}
					}
				}
			}
			waitFor(b, func() bool { return w.held(b) == b.N })
			kib := float64(w.relay.rss(b)-before) / 1024 / float64(b.N)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(kib, "KiB/request")
			b.ReportMetric(1024*1024/kib, "requests/GiB")
		})
	}
}

// BenchmarkListWatch is what an update costs a relay when nobody watches a list, when one does that has the instance, and
// when many do: a hub of a thousand instances whose lists have fifty each.
func BenchmarkListWatch(b *testing.B) {
	for _, lists := range []int{0, 1, 100} {
		b.Run(strconv.Itoa(lists), func(b *testing.B) {
			w := newReading(b)
			publish(b, w.bus.addr, 1000)
			waitFor(b, func() bool { return w.status(b, 999) == http.StatusOK })
			for range lists {
				request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+w.relay.addr+"/v1/hubs/orders/instances?label.owner=u-123", nil)
				if err != nil {
					b.Fatal(err)
				}
				request.Header.Set("Authorization", "Bearer "+w.token)
				request.Header.Set("Accept", "text/event-stream")
				answer, err := http.DefaultClient.Do(request)
				if err != nil {
					b.Fatal(err)
				}
				defer answer.Body.Close()
				lines := bufio.NewScanner(answer.Body)
				for lines.Scan() && lines.Text() != "event: listed" {
				}
				go func() { _, _ = io.Copy(io.Discard, answer.Body) }()
			}
			used, before, start := w.relay.cpu(b), w.completed(b), time.Now()
			b.ResetTimer()
			publishPaced(b, w.bus.addr, b.N)
			waitFor(b, func() bool { return w.completed(b)-before >= float64(b.N) })
			b.StopTimer()
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64((w.relay.cpu(b)-used).Microseconds())/float64(b.N), "relay-cpu-µs/update")
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "update/s")
		})
	}
}

// publishPaced publishes about a thousand updates per second, as many orchestrations would: one after the other.
func publishPaced(b *testing.B, bus string, n int) {
	b.Helper()
	client, err := azservicebus.NewClientFromConnectionString(devbus.ConnectionString(bus), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close(b.Context()) }()
	sender, err := client.NewSender(topic, nil)
	if err != nil {
		b.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < n; {
		batch, err := sender.NewMessageBatch(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		for range min(10, n-i) {
			body := wire.Encode(wire.Message{Update: *update(i%1000, int64(1000+i))}, time.UnixMilli(1795324351806))
			if err := batch.AddMessage(&azservicebus.Message{Body: body}, nil); err != nil {
				b.Fatal(err)
			}
			i++
		}
		if err := sender.SendMessageBatch(b.Context(), batch, nil); err != nil {
			b.Fatal(err)
		}
		<-tick.C
	}
}

func waitFor(b *testing.B, done func() bool) {
	b.Helper()
	for start := time.Now(); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			b.Fatal("waited for too long")
		}
	}
}

// status is what a GET of an instance is answered with.
func (w *reading) status(b *testing.B, i int) int {
	b.Helper()
	request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, w.url(w.relay, i), nil)
	if err != nil {
		b.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+w.token)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		b.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// held is how many requests the relay says that it holds.
func (w *reading) held(b *testing.B) int {
	return int(w.metric(b, "statusrelay_httpapi_waiting ") + w.metric(b, "statusrelay_httpapi_streams "))
}

func (w *reading) completed(b *testing.B) float64 {
	return w.metric(b, "statusrelay_servicebus_completed_total ")
}

func (w *reading) metric(b *testing.B, name string) float64 { return metric(b, w.relay.private, name) }

// rss is a process' resident memory in bytes.
func (p process) rss(b *testing.B) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid))
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// raiseFiles raises the limit of open files, for this process and its children, as far as it may.
func raiseFiles(b *testing.B) {
	b.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
}
