package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/functest"
	"statusrelay/internal/notifier"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

const functionKey = "s3cret-system-key"

// functions serves a function app.
func (w *world) functions(o functest.Options) (app *functest.App, url string) {
	w.Helper()
	o.Key = functionKey
	app = functest.New(o)
	server := httptest.NewServer(app)
	w.Cleanup(server.Close)
	return app, server.URL + functest.Path
}

// bridged makes a notifier bridge a hub to a function app, faster than one should.
func (w *world) bridged(url, hub string) func(*notifier.Config) {
	return func(c *notifier.Config) {
		c.Redis.Addrs = []string{w.redis.Addr}
		c.Bridge.URL, c.Bridge.Hub, c.Bridge.Key = url, hub, settings.NewSecret(functionKey)
		c.Bridge.MinInterval, c.Bridge.MaxInterval, c.Bridge.TerminalInterval = 100*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
		c.Bridge.AbsentFor, c.Bridge.Rate, c.Bridge.Concurrency = 200*time.Millisecond, 2000, 16
		c.Bridge.Timeout = time.Second
	}
}

// bridging makes a relay say what is of interest in those hubs.
func bridging(hubs ...string) func(*relay.Config) {
	return func(c *relay.Config) { c.Bridge.Hubs = hubs }
}

// tapped are the recordings of a full state after every commit, by hub, and what
// their instances must become.
func tapped(t *testing.T) (steps map[string][]functest.Step, want map[string][]expected) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(traces, "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var files map[string]struct{ Instances []expected }
	if err := json.Unmarshal(text, &files); err != nil {
		t.Fatal(err)
	}
	steps, want = map[string][]functest.Step{}, map[string][]expected{}
	for name, file := range files {
		if !strings.HasSuffix(name, "-tap.ndjson") {
			continue
		}
		recorded, err := functest.ReadRecording(filepath.Join(traces, name))
		if err != nil {
			t.Fatal(err)
		}
		hub := recorded[0].Hub
		steps[hub], want[hub] = recorded, file.Instances
	}
	if len(steps) == 0 {
		t.Fatal("no recordings")
	}
	return steps, want
}

// became checks an instance against what its recording says, as far as the HTTP API
// can tell: it has neither labels nor the type of a failure, and what had ended before it was purged
// stays readable.
func became(t *testing.T, w *world, got answer, x expected) {
	t.Helper()
	if x.Purged {
		if got.code != http.StatusNotFound && !status.RuntimeStatus(w.view(got.body).RuntimeStatus).Terminal() {
			t.Errorf("%s/%s: got %d %s, want what was purged to be gone, or to have ended", x.Hub, x.InstanceID, got.code, got.body)
		}
		return
	}
	x.Labels = nil
	if !bytes.Equal(x.Failure, nil) && string(x.Failure) != "null" {
		failure := parse[map[string]string](w, x.Failure)
		x.Failure = fmt.Appendf(nil, `{"message":%s}`, quoted(failure["message"]))
	}
	compare(t, w, got, x)
}

func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// Recordings of a real engine, replayed by a function app that nobody but the bridge
// asks, end as the engine said, whatever goes wrong on the way; who watches sees versions that
// only grow and the same end.
func TestBridgedRecordingsEndAsExpected(t *testing.T) {
	t.Parallel()
	steps, want := tapped(t)
	// Some of the requests go wrong, each in one of these ways.
	some := func(of int, ways ...functest.Fault) func(*http.Request) functest.Fault {
		return func(*http.Request) functest.Fault {
			if rand.IntN(of) > 0 {
				return functest.Fault{}
			}
			return ways[rand.IntN(len(ways))]
		}
	}
	for name, fault := range map[string]func(*http.Request) functest.Fault{
		"no fault": nil,
		"flapping": some(3, functest.Fault{Missing: true}),
		"failing": some(8, functest.Fault{Code: http.StatusInternalServerError}, functest.Fault{Code: http.StatusBadGateway}, functest.Fault{Delay: 300 * time.Millisecond},
			functest.Fault{Code: http.StatusTooManyRequests, RetryAfter: "1"}),
		"unreadable": some(2, functest.Fault{Truncated: true}, functest.Fault{Cut: true}, functest.Fault{Other: true},
			functest.Fault{HugeInput: 100 << 10}, functest.Fault{Body: "<html>Sign in</html>"}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hubs := slices.Sorted(maps.Keys(steps))
			if fault != nil {
				hubs = []string{"order", "reuse"} // the others add nothing but time
			}
			w := newWorld(t, nil)
			r := w.relay(nil, bridging(hubs...))
			var keys []status.Key
			for _, hub := range hubs {
				app, url := w.functions(functest.Options{})
				app.Break(fault)
				w.notifier(w.bridged(url, hub))
				for _, x := range want[hub] {
					keys = append(keys, status.Key{Hub: hub, InstanceID: x.InstanceID})
				}
				go replay(w, app, steps[hub])
			}
			var watchers []*watcher
			for some := range slices.Chunk(keys, 100) {
				watchers = append(watchers, w.watch(r, w.operator, some...))
			}
			for _, hub := range hubs {
				for _, x := range want[hub] {
					k := status.Key{Hub: hub, InstanceID: x.InstanceID}
					w.until(k.String()+" has ended as expected", func() bool { return settledAs(w, w.get(r, w.operator, k), x) })
					became(t, w, w.get(r, w.operator, k), x)
				}
			}
			for i, k := range keys {
				got := w.get(r, w.operator, k)
				if got.code != http.StatusOK {
					continue
				}
				watchers[i/100].await(k.String()+" is as a read gives it", func(v *watcher) bool {
					return bytes.Equal(withoutVersion(v.newest[k].Status), withoutVersion(got.body))
				})
			}
			if s := w.stats(); s.TotalDeadLettered > 0 {
				t.Errorf("%d updates were dead-lettered", s.TotalDeadLettered)
			}
			if logged := w.logs.String(); strings.Contains(logged, functionKey) {
				t.Error("the key is in the log")
			}
		})
	}
}

// replay has an app go through a recording in about two seconds.
func replay(w *world, app *functest.App, steps []functest.Step) {
	tick := time.NewTicker(2 * time.Second / time.Duration(len(steps)))
	defer tick.Stop()
	for _, s := range steps {
		select {
		case <-tick.C:
			app.Apply(s)
		case <-w.ctx.Done():
			return
		}
	}
}

// settledAs reports whether an instance shows what it must become.
func settledAs(w *world, got answer, x expected) bool {
	if got.code != http.StatusOK {
		return x.Purged
	}
	v := w.view(got.body)
	if x.Purged {
		return status.RuntimeStatus(v.RuntimeStatus).Terminal()
	}
	t := w.TB.(*testing.T)
	return v.RuntimeStatus == *x.RuntimeStatus && sameJSON(t, v.CustomStatus, x.CustomStatus)
}

// runs is an instance that runs at a function app.
func runs(app *functest.App, id string, percent int) {
	app.Set(functest.State{
		Name: "OrderFlow", InstanceID: id, RuntimeStatus: "Running", CreatedTime: time.Now(), CustomStatus: fmt.Appendf(nil, `{"percent":%d}`, percent),
		Input: json.RawMessage(`{"iban":"s3cret"}`),
	})
}

func progresses(app *functest.App, id string, percent int) {
	app.Change(id, func(s *functest.State) {
		s.LastUpdatedTime, s.CustomStatus = time.Now(), fmt.Appendf(nil, `{"percent":%d}`, percent)
	})
}

func (w *world) until404(r *replica, k status.Key) {
	w.Helper()
	w.until(k.String()+" is gone", func() bool { return w.get(r, w.operator, k).code == http.StatusNotFound })
}

// Of two notifiers one asks. When it stops the other does; nothing of that is seen by
// who watches, who is told what changes all the same.
func TestBridgeIsTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, bridging(hub))
	app, url := w.functions(functest.Options{TaskHub: "Orders"})
	first := w.notifier(w.bridged(url, hub))
	k := key("order-1")
	runs(app, k.InstanceID, 1)
	v := w.watch(r, w.operator, k)
	v.sees(k, 1)
	second := w.notifier(w.bridged(url, hub))
	before := w.view(w.get(r, w.operator, k).body).Version
	w.during(time.Second, func() {
		if w.metric(second, "statusrelay_bridge_leads") != 0 {
			t.Fatal("both bridge")
		}
	})
	first.stop()
	w.until("the other bridges", func() bool { return w.metric(second, "statusrelay_bridge_leads") == 1 })
	reads := app.Reads(k.InstanceID)
	w.until("it reads", func() bool { return app.Reads(k.InstanceID) > reads+3 })
	w.settled()
	if after := w.view(w.get(r, w.operator, k).body).Version; after != before {
		t.Errorf("version %d became %d by the takeover", before, after)
	}
	progresses(app, k.InstanceID, 2)
	v.sees(k, 2)
	if bytes.Contains(w.get(r, w.operator, k).body, []byte("s3cret")) {
		t.Error("the input is in the view")
	}
}

// Activities publish their progress through the notifier's own API, and the bridge how
// the orchestration runs: it touches nothing of theirs, and in the end the instance is
// gone when it is purged.
func TestBridgeBesideActivities(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, bridging(hub))
	app, url := w.functions(functest.Options{})
	n := w.notifier(w.bridged(url, hub))
	k := key("order-1")
	runs(app, k.InstanceID, 99)
	generation := time.Now().UnixMilli()
	report := func(percent int) {
		w.post(n, fmt.Sprintf(`{"hub":%q,"instanceId":%q,"kind":"progress","generation":%d,"sequence":%d,"runtimeStatus":"Running","customStatus":{"percent":%d}}`,
			hub, k.InstanceID, generation, percent, percent))
	}
	report(1)
	w.shows(r, k, 1)
	v := w.watch(r, w.operator, k)
	v.await("how it runs is known", func(v *watcher) bool {
		if v.newest[k].Status == nil {
			return false
		}
		s := w.view(v.newest[k].Status)
		return s.Name == "OrderFlow" && !s.Partial && s.RuntimeStatus == "Running"
	})
	for percent := 2; percent <= 50; percent++ {
		progresses(app, k.InstanceID, 99-percent)
		report(percent)
		v.sees(k, percent)
	}
	app.Change(k.InstanceID, func(s *functest.State) { s.RuntimeStatus, s.LastUpdatedTime = "Suspended", time.Now() })
	v.await("it is suspended", func(v *watcher) bool { return w.view(v.newest[k].Status).RuntimeStatus == "Suspended" })
	w.shows(r, k, 50)
	app.Purge(k.InstanceID)
	w.until404(r, k)
	if s := w.stats(); s.TotalDeadLettered > 0 {
		t.Errorf("%d updates were dead-lettered", s.TotalDeadLettered)
	}
}

// The first request for an instance that nobody has asked for yet is answered with what
// the function app has: by a GET, in a batch, and at the URL that Durable Functions has.
// What it does not have is not there.
func TestFirstUseOfBridgedInstance(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, bridging(hub), func(c *relay.Config) { c.DefaultHub, c.Bridge.FirstWait = hub, 20*time.Second })
	app, url := w.functions(functest.Options{})
	n := w.notifier(w.bridged(url, hub))
	w.until("it bridges", func() bool { return w.metric(n, "statusrelay_bridge_leads") == 1 })
	for i, id := range []string{"order 15 (copy)", "订单-2026-0042", "job+11", "100%2F"} {
		runs(app, id, i)
		ask := instanceURL(r, key(id))
		if i%2 == 1 {
			ask = statusURL(r, key(id))
		}
		got, err := w.do(http.MethodGet, ask, w.operator, nil)
		if err != nil {
			t.Fatal(err)
		}
		if v := w.view(got.body); got.code/100 != 2 || v.InstanceID != id || v.percent() != i {
			t.Errorf("%s: got %d %s", id, got.code, got.body)
		}
	}
	if n := app.Requests(); n > 500 {
		t.Errorf("%d requests at the function app", n)
	}
}

// What nobody looks at any more is not read any more.
func TestInterestEndsWithTheWatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, bridging(hub), func(c *relay.Config) { c.Bridge.Interest = time.Second })
	app, url := w.functions(functest.Options{})
	w.notifier(w.bridged(url, hub))
	k := key("order-1")
	runs(app, k.InstanceID, 1)
	v := w.watch(r, w.operator, k)
	v.sees(k, 1)
	progresses(app, k.InstanceID, 2)
	v.sees(k, 2)
	if err := v.conn.Close(); err != nil {
		t.Fatal(err)
	}
	before := app.Requests()
	last := time.Now()
	w.until("it is read no more", func() bool {
		if n := app.Requests(); n != before {
			before, last = n, time.Now()
		}
		return time.Since(last) > 3*time.Second
	})
}

// An event of Event Grid, taken by any replica, makes the one that bridges look, long before it would have; what the event says is not
// published, since what is seen says more.
func TestEventMakesTheBridgeLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, bridging(hub))
	app, url := w.functions(functest.Options{})
	rarely := func(c *notifier.Config) {
		w.bridged(url, hub)(c)
		c.Bridge.MinInterval, c.Bridge.MaxInterval, c.Bridge.TerminalInterval = time.Hour, time.Hour, time.Hour
	}
	first := w.notifier(rarely)
	w.until("it bridges", func() bool { return w.metric(first, "statusrelay_bridge_leads") == 1 })
	second := w.notifier(rarely)
	k := key("order-1")
	runs(app, k.InstanceID, 1)
	v := w.watch(r, w.operator, k)
	v.sees(k, 1)
	progresses(app, k.InstanceID, 2)
	w.deliver(second, lifecycleEvent(k.InstanceID, 1, "Failed"))
	v.sees(k, 2)
	if got := w.get(r, w.operator, k); w.view(got.body).RuntimeStatus != "Running" {
		t.Errorf("got %s, want what the function app says", got.body)
	}
	// One that nobody has asked for is read as well.
	other := key("order-2")
	runs(app, other.InstanceID, 3)
	w.deliver(second, lifecycleEvent(other.InstanceID, 1, "Running"))
	w.until("it is known", func() bool {
		return w.metric(second, "statusrelay_eventgrid_events_total") == 2 && app.Reads(other.InstanceID) > 0
	})
	w.redis.Stop()
	w.deliver(second, lifecycleEvent(k.InstanceID, 2, "Failed")) // nobody can be told
	if s := w.stats(); s.TotalEnqueued < 3 {
		t.Errorf("%d messages: the event is lost", s.TotalEnqueued)
	}
}

// A notifier that bridges needs the user that is shipped for it, and no more than that.
func TestR2BridgeRunsUnderTheShippedACL(t *testing.T) {
	const password = "correct horse"
	w := newWorld(t, nil)
	_, logIn := w.asShipped(password)
	_, secret := w.secretFile(password)
	// One that is no instance's is taken out; a script that is forgotten is sent again.
	w.redis.Do("ZADD", "statusrelay:interest:{"+hub+"}", fmt.Sprint(time.Now().Add(30*time.Second).UnixMilli()), "@none")
	r := w.relay(nil, logIn, bridging(hub))
	app, url := w.functions(functest.Options{})
	n := w.notifier(w.bridged(url, hub), func(c *notifier.Config) {
		c.Redis.Username, c.Redis.Password = storetest.ShippedBridge, secret
		c.Bridge.Silence, c.Bridge.Reconcile = 100*time.Millisecond, 100*time.Millisecond
	})
	k := key("order-1")
	runs(app, k.InstanceID, 1)
	v := w.watch(r, w.operator, k)
	v.sees(k, 1)
	w.redis.Do("SCRIPT", "FLUSH")
	w.deliver(n, lifecycleEvent("order-2", 1, "Running"))
	w.post(n, named("1", "order-3", 1))
	progresses(app, k.InstanceID, 2)
	v.sees(k, 2)
	w.redis.Do("ZADD", "statusrelay:index:{"+hub+"}", "1000000000000000", "outdated") // whom no record is of
	w.until("the outdated is gone", func() bool {
		return !strings.Contains(w.redis.Do("ZRANGE", "statusrelay:index:{"+hub+"}", "0", "-1"), "outdated")
	})
	n.stop()
	if held := w.redis.Do("GET", "statusrelay:lease:bridge%2F"+hub); held != "" {
		t.Errorf("the lease is still %s's", held)
	}
	if log := w.redis.Do("ACL", "LOG"); log != "" {
		t.Errorf("refused to the bridge:\n%s", log)
	}
	refuses(w, storetest.ShippedBridge, password,
		"HSET statusrelay:{a/b} r x", "GET statusrelay:ticket:a", "SET statusrelay:sweep x", "PUBLISH statusrelay:{a/b} x", "SUBSCRIBE statusrelay:{a/b}", "SCAN 0",
		"EVAL return(redis.call('HSET',KEYS[1],'r','x')) 1 statusrelay:{a/b}")
}
