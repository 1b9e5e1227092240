package bench_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/devbus"
	"statusrelay/internal/functest"
	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/settings"
	"statusrelay/internal/storetest"
)

// bridgedHub is the hub that the benchmarks bridge.
const bridgedHub = "functions"

// serveFunctions is a function app: its API, and beside it /start?n=&every= for
// instances that change in that interval, and /requests, how many there were.
func serveFunctions(ctx context.Context, _ setup) error {
	app := functest.New(functest.Options{})
	mux := http.NewServeMux()
	mux.Handle(functest.Path+"/", app)
	mux.HandleFunc("/requests", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, app.Requests()) })
	mux.HandleFunc("/start", func(_ http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.FormValue("n"))
		every, _ := time.ParseDuration(r.FormValue("every"))
		for i := range n {
			id := bridgedID(i)
			app.Set(functest.State{Name: "ProcessOrder", InstanceID: id, RuntimeStatus: "Running", CreatedTime: time.Now(), CustomStatus: []byte(`{"at":0}`)})
			if every > 0 {
				go change(ctx, app, id, every)
			}
		}
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

func bridgedID(i int) string { return fmt.Sprintf("order-%d", i) }

// change changes an instance at times whose distances have that mean.
func change(ctx context.Context, app *functest.App, id string, every time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(rand.ExpFloat64() * float64(every))):
		}
		app.Change(id, func(s *functest.State) {
			now := time.Now()
			s.LastUpdatedTime, s.CustomStatus = now, fmt.Appendf(nil, `{"at":%d}`, now.UnixMicro())
		})
	}
}

// serveNotifier is a notifier that bridges the function app at s.Functions, with the
// default rates and intervals.
func serveNotifier(ctx context.Context, s setup) error {
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		return err
	}
	c := notifier.Defaults()
	c.Listen, c.PrivateListen, c.Log.Level = "127.0.0.1:0", "127.0.0.1:0", "error"
	c.Auth.Issuers, c.Auth.Audiences = []string{s.Issuer}, []string{audience}
	c.ServiceBus.ConnectionString, c.ServiceBus.Topic = settings.NewSecret(devbus.ConnectionString(s.Bus)), topic
	c.Redis.Addrs, c.DrainTimeout = []string{s.Redis}, time.Second
	c.Bridge.URL, c.Bridge.Hub = "http://"+s.Functions+functest.Path, bridgedHub
	n, err := notifier.New(ctx, c, notifier.Options{Policy: rules})
	if err != nil {
		return err
	}
	fmt.Println(n.Addr(), n.PrivateAddr())
	return n.Run(ctx)
}

// lookOn is for how long each of these benchmarks is looked at: a minute, whatever
// -benchtime says, after it has settled.
const (
	settling = 15 * time.Second
	lookOn   = time.Minute
)

// BenchmarkPollers is what it costs a function app to be asked by a thousand
// dashboards itself, each every 5 s, as Durable Functions tells them to; and how late
// they see a change.
func BenchmarkPollers(b *testing.B) {
	const dashboards, instances, interval = 1000, 100, 5 * time.Second
	functions := spawn(b, "functions", setup{})
	ask(b, functions, fmt.Sprintf("/start?n=%d&every=%s", instances, 10*time.Second))
	ctx, cancel := context.WithCancel(b.Context())
	var delays delays
	var all sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: dashboards}}
	for i := range dashboards {
		all.Go(func() {
			tick := time.NewTimer(rand.N(interval))
			var last int64
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				tick.Reset(interval)
				answer, err := client.Get("http://" + functions.addr + functest.Path + "/instances/" + bridgedID(i%instances) + "?showInput=false")
				if err != nil {
					b.Error(err)
					return
				}
				var s struct{ CustomStatus struct{ At int64 } }
				err = json.NewDecoder(answer.Body).Decode(&s)
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if at := s.CustomStatus.At; err == nil && at != last {
					if last != 0 {
						delays.add(at)
					}
					last = at
				}
			}
		})
	}
	b.ResetTimer()
	watch(b, functions, &delays)
	cancel()
	all.Wait()
}

// BenchmarkBridge is what the same dashboards cost it through notifier and relay.
func BenchmarkBridge(b *testing.B) {
	for _, every := range []time.Duration{time.Second, 5 * time.Second, 10 * time.Second, time.Minute, 0} {
		b.Run("change="+cmp.Or(strings.TrimPrefix(every.String(), "0s"), "never"), func(b *testing.B) { bridge(b, 1000, 1, 100, every) })
	}
	b.Run("instances=10000", func(b *testing.B) { bridge(b, 100, 100, 10_000, 10*time.Second) })
}

func bridge(b *testing.B, dashboards, each, instances int, every time.Duration) {
	bus, store, functions := spawn(b, "bus", setup{}), storetest.StartRedis(b), spawn(b, "functions", setup{})
	issuer, token := identity(b)
	ask(b, functions, fmt.Sprintf("/start?n=%d&every=%s", instances, every))
	s := setup{Bus: bus.addr, Redis: store.Addr, Issuer: issuer, Functions: functions.addr}
	relay, bridge := spawn(b, "relay", s), spawn(b, "notifier", s)
	var delays delays
	var all sync.WaitGroup
	sockets := make([]*websocket.Conn, dashboards)
	for i := range sockets {
		dialer := websocket.Dialer{Subprotocols: []string{"status.v1.json"}}
		socket, _, err := dialer.DialContext(b.Context(), "ws://"+relay.addr+"/v1/watch", http.Header{"Authorization": {"Bearer " + token}})
		if err != nil {
			b.Fatal(err)
		}
		sockets[i] = socket
		var ids []string
		for n := range each {
			ids = append(ids, fmt.Sprintf(`{"hub":%q,"instanceId":%q}`, bridgedHub, bridgedID((i*each+n)%instances)))
		}
		if err := socket.WriteMessage(websocket.TextMessage, []byte(`{"type":"watch","instances":[`+strings.Join(ids, ",")+`]}`)); err != nil {
			b.Fatal(err)
		}
		all.Go(func() {
			first := map[string]bool{}
			for {
				var frame struct {
					Type, InstanceID string
					Status           struct{ CustomStatus struct{ At int64 } }
				}
				if socket.ReadJSON(&frame) != nil {
					return
				}
				if frame.Type == "status" && first[frame.InstanceID] {
					delays.add(frame.Status.CustomStatus.At)
				}
				first[frame.InstanceID] = true
			}
		})
	}
	b.ResetTimer()
	used := bridge.cpu(b)
	watch(b, functions, &delays)
	b.ReportMetric(float64((bridge.cpu(b)-used).Milliseconds())/float64((settling+lookOn).Minutes()), "notifier-cpu-ms/min")
	for _, s := range sockets {
		_ = s.Close()
	}
	all.Wait()
}

// watch looks on and reports.
func watch(b *testing.B, functions process, delays *delays) {
	wait(b, settling)
	before := requests(b, functions)
	delays.reset()
	wait(b, lookOn)
	b.ReportMetric(float64(requests(b, functions)-before)/lookOn.Minutes(), "requests/min")
	delays.report(b)
}

func wait(b *testing.B, d time.Duration) {
	b.Helper()
	select {
	case <-time.After(d):
	case <-b.Context().Done():
		b.Fatal("told to stop")
	}
}

func requests(b *testing.B, functions process) int {
	b.Helper()
	n, err := strconv.Atoi(ask(b, functions, "/requests"))
	if err != nil {
		b.Fatal(err)
	}
	return n
}

func ask(b *testing.B, p process, path string) string {
	b.Helper()
	answer, err := http.Get("http://" + p.addr + path)
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

// delays are the times from a change until a dashboard has it.
type delays struct {
	mu  sync.Mutex
	all []time.Duration
}

func (d *delays) add(at int64) {
	took := time.Since(time.UnixMicro(at))
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, took)
}

func (d *delays) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = nil
}

func (d *delays) report(b *testing.B) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.all) == 0 {
		return
	}
	slices.Sort(d.all)
	b.ReportMetric(float64(len(d.all)), "changes-seen")
	for name, share := range map[string]float64{"p50-ms": .5, "p99-ms": .99} {
		b.ReportMetric(float64(d.all[int(share*float64(len(d.all)-1))].Milliseconds()), name)
	}
}
