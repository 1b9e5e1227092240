package wsapi_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
	"statusrelay/internal/wsapi"
)

// The benchmarks of this file compare the server with a floor: a gorilla server that does nothing but broadcast a
// prepared frame, tuned as far as gorilla can be (shared write buffers, small read buffers, no writer goroutine while
// there is nothing to write). Server and clients share the machine, so the server is a process of its own, whose
// memory and CPU time are the figures; rates are not. One iteration takes seconds, and floor and relay alternate.
//
//	go test -run - -bench 'Idle|Fanout' -count 3 ./internal/wsapi
//
// STATUSRELAY_BENCH_PROFILE names a directory for profiles of the server.

// benchServer is the environment variable that makes this binary the server of a benchmark.
const benchServer = "STATUSRELAY_BENCH_SERVER"

func TestMain(m *testing.M) {
	if kind := os.Getenv(benchServer); kind != "" {
		serveBenchmark(kind)
		return
	}
	os.Exit(m.Run())
}

// broadcaster is what is compared.
type broadcaster interface {
	http.Handler
	broadcast(n int) // a new version of instance "i" for all who watch it
}

// serveBenchmark says its address, and then obeys one command per line of its standard input.
func serveBenchmark(kind string) {
	var b broadcaster
	switch kind {
	case "relay":
		b = newRelayBench()
	case "floor":
		b = newFloor()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { panic(http.Serve(l, b)) }()
	fmt.Println(l.Addr())
	stopProfile, version := func() {}, 0
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		command, argument, _ := strings.Cut(in.Text(), " ")
		switch command {
		case "gc":
			runtime.GC()
			fmt.Println()
		case "rss": // KiB
			statm, err := os.ReadFile("/proc/self/statm")
			if err != nil {
				panic(err)
			}
			pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
			if err != nil {
				panic(err)
			}
			fmt.Println(pages * os.Getpagesize() / 1024)
		case "cpu": // microseconds
			var u syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
				panic(err)
			}
			fmt.Println((u.Utime.Nano() + u.Stime.Nano()) / 1000)
		case "broadcast": // so many, 50 per second
			n, err := strconv.Atoi(argument)
			if err != nil {
				panic(err)
			}
			tick := time.NewTicker(time.Second / 50)
			for range n {
				version++
				b.broadcast(version)
				<-tick.C
			}
			tick.Stop()
			fmt.Println()
		case "profile":
			f, err := os.Create(argument + "/" + kind + ".cpu")
			if err != nil {
				panic(err)
			}
			if err := pprof.StartCPUProfile(f); err != nil {
				panic(err)
			}
			stopProfile = func() {
				pprof.StopCPUProfile()
				h, err := os.Create(argument + "/" + kind + ".heap")
				if err != nil {
					panic(err)
				}
				runtime.GC()
				if err := pprof.WriteHeapProfile(h); err != nil {
					panic(err)
				}
				h.Close()
				f.Close()
			}
			fmt.Println()
		case "profiled":
			stopProfile()
			fmt.Println()
		}
	}
}

// floor is the least that a server can do.
type floor struct {
	audience *policy.Audience // makes its frames as large as those of the server
	mu       sync.Mutex
	conns    []*floorConn
}

type floorConn struct {
	conn    *websocket.Conn
	mu      sync.Mutex
	pending *websocket.PreparedMessage
	writing bool
}

var floorPool sync.Pool

func newFloor() *floor {
	p := development(new(testing.B))
	return &floor{audience: p.Audience(map[string]any{"sub": "alice", "roles": []any{}}, percent("i", "alice", 1, 1))}
}

func (f *floor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{ReadBufferSize: 256, WriteBufferSize: 1 << 10, WriteBufferPool: &floorPool}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	c := &floorConn{conn: conn}
	f.mu.Lock()
	f.conns = append(f.conns, c)
	f.mu.Unlock()
	go func() {
		for {
			if _, _, err := conn.NextReader(); err != nil {
				return
			}
		}
	}()
}

func (f *floor) broadcast(n int) {
	r := percent("i", "alice", int64(1_000_000+n), n)
	frame := fmt.Appendf(nil, `{"type":"status","hub":"default","instanceId":"i","version":%d,"status":%s}`, r.Version, f.audience.View(r).JSON)
	m, err := websocket.NewPreparedMessage(websocket.TextMessage, frame)
	if err != nil {
		panic(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.mu.Lock()
		c.pending = m
		start := !c.writing
		c.writing = true
		c.mu.Unlock()
		if start {
			go c.drain()
		}
	}
}

func (c *floorConn) drain() {
	for {
		c.mu.Lock()
		m := c.pending
		c.pending = nil
		c.writing = m != nil
		c.mu.Unlock()
		if m == nil {
			return
		}
		if c.conn.WritePreparedMessage(m) != nil {
			c.conn.Close()
		}
	}
}

// relayBench is the server with its hub, on a store in which every instance exists and takes no memory.
type relayBench struct {
	*wsapi.Server
	hub *hub.Hub
}

func newRelayBench() *relayBench {
	p := development(new(testing.B))
	h := hub.New(hub.Options{})
	s := wsapi.New(wsapi.Options{Verify: verifier(), Source: reader.NewSource(h, nil, func() *policy.Policy { return p }), PingInterval: 10 * time.Second})
	go func() { _ = h.Run(context.Background(), boundless{}, boundless{}) }()
	go func() { _ = s.Run(context.Background()) }()
	return &relayBench{s, h}
}

func (b *relayBench) broadcast(n int) {
	b.hub.Offer(percent("i", "alice", int64(1_000_000+n), n))
}

// verifier returns one principal for all sockets that come with the same token, as auth.Verifier does.
func verifier() func(context.Context, string) (*auth.Principal, error) {
	var remembered sync.Map
	return func(_ context.Context, token string) (*auth.Principal, error) {
		sub, _, _ := strings.Cut(token, ".")
		who, ok := remembered.Load(token)
		if !ok {
			who, _ = remembered.LoadOrStore(strings.Clone(token), &auth.Principal{
				Issuer: "https://login.test/", Subject: sub, Expires: time.Now().Add(time.Hour),
				Claims: map[string]any{"sub": sub, "roles": []any{"customer"}},
			})
		}
		return who.(*auth.Principal), nil
	}
}

type boundless struct{}

func (boundless) Subscribe(context.Context, []status.Key) error { return nil }
func (boundless) Unsubscribe([]status.Key)                      {}
func (boundless) Latest(_ context.Context, keys []status.Key) ([]*status.Record, error) {
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = percent(k.InstanceID, "alice", 7, 7)
	}
	return records, nil
}

// child is a server in a process of its own.
type child struct {
	b      *testing.B
	kind   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	addr   string
	conns  []net.Conn
	frames atomic.Int64 // received by all clients
	read   sync.WaitGroup
}

func startChild(b *testing.B, kind string) *child {
	c := &child{b: b, kind: kind, cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), benchServer+"="+kind)
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	c.in, c.out = in, bufio.NewScanner(out)
	c.out.Scan()
	c.addr = c.out.Text()
	return c
}

func (c *child) do(command string) int {
	c.b.Helper()
	if _, err := io.WriteString(c.in, command+"\n"); err != nil {
		c.b.Fatal(err)
	}
	if !c.out.Scan() {
		c.b.Fatalf("%s: the server is gone", c.kind)
	}
	n, _ := strconv.Atoi(c.out.Text())
	return n
}

func (c *child) stop() {
	c.in.Close()
	_ = c.cmd.Wait()
	for _, conn := range c.conns {
		if conn != nil {
			conn.Close()
		}
	}
	c.read.Wait()
}

// connect opens n sockets, each of which watches the instance that is named, or one of its own, and has its status.
func (c *child) connect(n int, instance string) {
	c.conns = make([]net.Conn, n)
	var workers sync.WaitGroup
	work := make(chan int)
	for range 16 {
		workers.Go(func() {
			for i := range work {
				id := instance
				if id == "" {
					id = fmt.Sprintf("8f14e45fceea4671a5a36dedd4b%05x", i)
				}
				c.conns[i] = c.open("alice", id)
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	workers.Wait()
}

func (c *child) open(token, id string) net.Conn {
	d := websocket.Dialer{ReadBufferSize: 256, WriteBufferSize: 256}
	conn, _, err := d.Dial("ws://"+c.addr, bearer(token))
	if err != nil {
		c.b.Error(err)
		return nil
	}
	if c.kind == "floor" {
		return conn.NetConn()
	}
	if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"watch","instances":[{"instanceId":"`+id+`"}]}`)); err != nil {
		c.b.Error(err)
	}
	for _, want := range []string{"welcome", "watching", "status"} {
		_, frame, err := conn.ReadMessage()
		if err != nil || !strings.HasPrefix(string(frame), `{"type":"`+want) {
			c.b.Errorf("got %s %v, want %s", frame, err, want)
		}
	}
	return conn.NetConn()
}

// pong answers one ping on every socket: an idle socket is one that has.
func (c *child) pong() {
	if c.kind == "floor" {
		return
	}
	for _, conn := range c.conns {
		var ping [2]byte
		if _, err := io.ReadFull(conn, ping[:]); err != nil || ping != [2]byte{0x89, 0} {
			c.b.Errorf("got %x %v, want a ping", ping, err)
			return
		}
		if _, err := conn.Write([]byte{0x8a, 0x80, 1, 2, 3, 4}); err != nil {
			c.b.Error(err)
		}
	}
}

// count counts the frames that come, with as little work as there can be: it shares the machine with the server.
func (c *child) count() {
	for _, conn := range c.conns {
		c.read.Go(func() {
			r := bufio.NewReaderSize(conn, 1<<10)
			for {
				h, err := r.Peek(4)
				if err != nil {
					return
				}
				header, size := 2, int(h[1])
				if size == 126 {
					header, size = 4, int(binary.BigEndian.Uint16(h[2:]))
				}
				if _, err := r.Discard(header + size); err != nil {
					return
				}
				c.frames.Add(1)
			}
		})
	}
}

// profile makes the server write profiles if that is wanted.
func (c *child) profile(command string) {
	if dir := os.Getenv("STATUSRELAY_BENCH_PROFILE"); dir != "" {
		c.do(strings.TrimSpace(command + " " + dir))
	}
}

// BenchmarkIdleWatcher reports the memory of a server per socket with one watch, of 10,000.
func BenchmarkIdleWatcher(b *testing.B) {
	const sockets = 10_000
	figure := map[string]float64{}
	for b.Loop() {
		for _, kind := range []string{"floor", "relay"} {
			func() {
				c := startChild(b, kind)
				defer c.stop()
				before := c.do("rss")
				c.profile("profile")
				c.connect(sockets, "")
				figure[kind] += float64(c.do("rss")-before) / sockets
				c.pong()
				c.do("gc")
				figure[kind+" after GC"] += float64(c.do("rss")-before) / sockets
				c.profile("profiled")
			}()
		}
	}
	n := float64(b.N)
	b.ReportMetric(figure["relay"]/n, "KiB/watcher")
	b.ReportMetric(figure["floor"]/n, "floor-KiB/watcher")
	b.ReportMetric(figure["relay after GC"]/n, "KiB-after-ping-and-GC/watcher")
	b.ReportMetric(figure["floor after GC"]/n, "floor-KiB-after-ping-and-GC/watcher")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkFanout reports the CPU time of a server per frame that it delivers: 1,000 watchers of one instance, 50 updates
// per second, for six seconds in all.
func BenchmarkFanout(b *testing.B) {
	const watchers, updates = 1000, 150
	figure := map[string]float64{}
	for b.Loop() {
		for _, kind := range []string{"floor", "relay", "relay", "floor"} {
			func() {
				c := startChild(b, kind)
				defer c.stop()
				c.connect(watchers, "i")
				c.count()
				c.do("broadcast 25") // warm
				c.do("gc")
				c.profile("profile")
				frames, cpu := c.frames.Load(), c.do("cpu")
				c.do(fmt.Sprintf("broadcast %d", updates))
				time.Sleep(200 * time.Millisecond) // what is on its way
				delivered := float64(c.frames.Load() - frames)
				figure[kind] += float64(c.do("cpu")-cpu) / delivered
				figure[kind+" delivered"] += delivered / (watchers * updates) // less than 1 on a busy machine: newest only
				c.profile("profiled")
			}()
		}
	}
	n := 2 * float64(b.N)
	b.ReportMetric(figure["relay"]/n, "µs-CPU/frame")
	b.ReportMetric(figure["floor"]/n, "floor-µs-CPU/frame")
	b.ReportMetric(figure["relay"]/figure["floor"], "×floor")
	b.ReportMetric(figure["relay delivered"]/n, "delivered/due")
	b.ReportMetric(figure["floor delivered"]/n, "floor-delivered/due")
	b.ReportMetric(0, "ns/op")
}
