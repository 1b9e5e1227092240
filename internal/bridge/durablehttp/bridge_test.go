package durablehttp_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"statusrelay/internal/bridge/durablehttp"
	"statusrelay/internal/functest"
	"statusrelay/internal/status"
)

// What somebody wants to know is read at once and whenever it changes, and what
// nobody does is not asked for.
func TestWhatIsOfInterestIsReadAndNothingElse(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", `{"percent":10}`)
		w.runs("order-2", `{"percent":10}`)
		w.bridge()
		w.after(time.Minute)
		if n := w.app.Requests(); n != 0 {
			w.Errorf("%d requests while nobody is interested", n)
		}
		w.wants("order-1")
		w.after(100 * time.Millisecond)
		r := w.shows("order-1", status.Running, `{"percent":10}`)
		if r.Name != "ProcessOrder" || r.Generation == 0 || r.Generation != r.CreatedTime.UnixMilli() {
			w.Errorf("got %+v", r)
		}
		w.after(time.Minute)
		w.progresses("order-1", `{"percent":20}`)
		w.after(20 * time.Second)
		w.shows("order-1", status.Running, `{"percent":20}`)
		w.progresses("order-1", `{"percent":30}`)
		w.after(12 * time.Second) // it is read more often since it changed
		w.shows("order-1", status.Running, `{"percent":30}`)
		w.becomes("order-1", "Completed", `{"total":3}`)
		w.after(20 * time.Second)
		if r := w.shows("order-1", status.Completed, `{"percent":30}`); string(r.Lifecycle.Output) != `{"total":3}` {
			w.Errorf("got the output %s", r.Lifecycle.Output)
		}
		if n := w.app.Reads("order-2"); n != 0 {
			w.Errorf("order-2 was read %d times", n)
		}
		if n := w.said(); n != 4 {
			w.Errorf("%d updates, want 4", n)
		}
	})
}

// An instance is read ever more rarely while it does not change, hardly when it has
// ended, and no more when nobody is interested.
func TestWhatDoesNotChangeIsReadRarely(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "")
		w.bridge()
		w.wants("order-1")
		w.after(time.Minute)
		before := w.app.Reads("order-1")
		w.after(10 * time.Minute)
		if n := w.app.Reads("order-1") - before; n < 35 || n > 46 { // one in 15 s
			w.Errorf("%d reads in 10 minutes without a change, want about 40", n)
		}
		w.becomes("order-1", "Completed", "")
		w.after(20 * time.Second)
		before = w.app.Reads("order-1")
		w.after(10 * time.Minute)
		if n := w.app.Reads("order-1") - before; n < 8 || n > 12 { // one a minute
			w.Errorf("%d reads in 10 minutes after the end, want about 10", n)
		}
		if n := w.said(); n != 2 {
			w.Errorf("%d updates, want 2", n)
		}
		w.wantsFor(0, "order-1")
		w.after(15 * time.Second)
		before = w.app.Requests()
		w.after(time.Hour)
		if n := w.app.Requests() - before; n != 0 {
			w.Errorf("%d requests although nobody is interested", n)
		}
	})
}

// However many are of interest, the function app is asked at the rate and by as many
// requests at a time as configured; everything is read in turn.
func TestRateHoldsWithTenThousandInstances(t *testing.T) {
	bubble(t, func(w *world) {
		const instances, rate = 10_000, 20
		ids := make([]string, instances)
		for i := range ids {
			ids[i] = fmt.Sprintf("order-%d", i)
			w.runs(ids[i], "")
		}
		w.app.Break(func(*http.Request) functest.Fault { return functest.Fault{Delay: 300 * time.Millisecond} })
		w.bridge()
		w.wants(ids...)
		for range 20 {
			before := w.app.Requests()
			w.after(time.Minute)
			if n := w.app.Requests() - before; n > 60*rate+1 || n < 60*rate-60 {
				w.Errorf("%d requests in a minute, want at most %d and hardly less", n, 60*rate)
			}
		}
		unread := 0
		for _, id := range ids {
			if w.app.Reads(id) == 0 {
				unread++
			}
		}
		if unread > 0 {
			w.Errorf("%d instances were not read in 20 minutes", unread)
		}
		// Who comes now need not wait for the others.
		w.runs("order-new", "")
		w.wants("order-new")
		w.after(time.Second)
		if w.app.Reads("order-new") == 0 {
			w.Error("a new instance was not read within a second")
		}
	})
}

// A function app that is slow has as many requests at a time as configured, and no more.
func TestConcurrencyHolds(t *testing.T) {
	bubble(t, func(w *world) {
		for i := range 100 {
			w.runs(fmt.Sprintf("order-%d", i), "")
			w.wants(fmt.Sprintf("order-%d", i))
		}
		w.app.Break(func(*http.Request) functest.Fault { return functest.Fault{Delay: 5 * time.Second} })
		w.bridge()
		w.after(5 * time.Minute)
		if n := w.app.Most(); n != 8 {
			w.Errorf("%d requests at a time, want 8", n)
		}
	})
}

// A flood of new instances does not stop those that are known.
func TestNewInstancesDoNotStopTheOthers(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "")
		w.bridge()
		w.wants("order-1")
		w.after(time.Minute)
		before := w.app.Reads("order-1")
		var flood []string
		for i := range 5000 {
			flood = append(flood, fmt.Sprintf("nothing-%d", i))
		}
		w.wants(flood...)
		w.after(2 * time.Minute)
		if n := w.app.Reads("order-1") - before; n < 6 {
			w.Errorf("%d reads in two minutes of a flood, want about 8", n)
		}
	})
}

// What does not exist is asked for ever more rarely, and is there soon when it is
// started.
func TestUnknownInstance(t *testing.T) {
	bubble(t, func(w *world) {
		w.bridge()
		w.wants("order-1")
		w.after(3 * time.Second)
		w.runs("order-1", "1")
		w.after(5 * time.Second)
		w.shows("order-1", status.Running, "1")
		w.wants("order-2")
		w.after(2 * time.Minute)
		before := w.app.Reads("order-2")
		w.after(10 * time.Minute)
		if n := w.app.Reads("order-2") - before; n > 23 { // one in 30 s
			w.Errorf("%d reads in 10 minutes of what does not exist, want about 20", n)
		}
		if r := w.record("order-2"); r != nil {
			w.Errorf("there is a record of what does not exist: %+v", r)
		}
	})
}

// When the function app says when to come back it is left alone until then.
func TestRetryAfterIsHonoured(t *testing.T) {
	for code, least := range map[int]time.Duration{http.StatusTooManyRequests: 40 * time.Second, http.StatusServiceUnavailable: 40 * time.Second} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			bubble(t, func(w *world) {
				for i := range 50 {
					w.runs(fmt.Sprintf("order-%d", i), "")
					w.wants(fmt.Sprintf("order-%d", i))
				}
				w.app.Break(func(*http.Request) functest.Fault { return functest.Fault{Code: code, RetryAfter: "40"} })
				w.bridge()
				w.after(time.Second)
				before := w.app.Requests()
				if before == 0 || before > 8 {
					w.Errorf("%d requests before it was heard, want 1 to 8", before)
				}
				w.after(least - 2*time.Second)
				if n := w.app.Requests(); n != before {
					w.Errorf("%d requests although it said Retry-After: 40", n-before)
				}
				w.app.Break(nil)
				w.after(time.Minute)
				w.shows("order-49", status.Running, "")
			})
		})
	}
}

// A function app that fails is asked by one request now and then, ever more rarely, and
// everything goes on when it answers again.
func TestFailingAppIsSpared(t *testing.T) {
	for name, fault := range map[string]functest.Fault{
		"500":  {Code: http.StatusInternalServerError},
		"502":  {Code: http.StatusBadGateway},
		"503":  {Code: http.StatusServiceUnavailable},
		"hung": {Delay: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				for i := range 1000 {
					w.runs(fmt.Sprintf("order-%d", i), "")
					w.wants(fmt.Sprintf("order-%d", i))
				}
				w.bridge()
				w.after(2 * time.Minute)
				w.app.Break(func(*http.Request) functest.Fault { return fault })
				w.after(time.Minute)
				before := w.app.Requests()
				w.after(10 * time.Minute)
				if n := w.app.Requests() - before; n > 20 || n < 5 {
					w.Errorf("%d requests in 10 minutes of failure, want about 10", n)
				}
				before = w.app.Requests()
				w.app.Break(nil)
				w.progresses("order-7", "7")
				w.after(3 * time.Minute)
				w.shows("order-7", status.Running, "7")
				if n := w.app.Requests() - before; n < 1000 {
					w.Errorf("%d requests in 3 minutes after it answers again", n)
				}
			})
		})
	}
}

// Whatever comes instead of a status changes nothing, and the next answer counts.
func TestWhatCannotBeReadChangesNothing(t *testing.T) {
	other := func(s string) functest.Fault { return functest.Fault{Body: s} }
	object := func(members string) functest.Fault {
		return other(`{"instanceId":"order-1","name":"n","createdTime":"2000-01-01T00:00:00Z",` + members + `}`)
	}
	for name, fault := range map[string]functest.Fault{
		"truncated":                   {Truncated: true},
		"cut off":                     {Cut: true},
		"another instance":            {Other: true},
		"larger than is read":         {HugeInput: 5 << 20},
		"login page":                  other("<html><body>Sign in</body></html>"),
		"array":                       other("[]"),
		"null":                        other("null"),
		"two documents":               other(`{"instanceId":"order-1","runtimeStatus":"Failed"} {}`),
		"no runtime status":           object(`"customStatus":9`),
		"empty runtime status":        object(`"runtimeStatus":""`),
		"unknown runtime status":      object(`"runtimeStatus":-1`),
		"runtime status of no kind":   object(`"runtimeStatus":"Paused"`),
		"runtime status of that type": object(`"runtimeStatus":["Failed"]`),
		"time of no kind":             object(`"runtimeStatus":"Failed","lastUpdatedTime":"yesterday"`),
		"name of that type":           other(`{"instanceId":"order-1","name":7,"runtimeStatus":"Failed"}`),
		"no id":                       other(`{"name":"n","runtimeStatus":"Failed"}`),
		"duplicate name":              object(`"runtimeStatus":"Failed","runtimeStatus":"Running"`),
		"redirect":                    {Code: http.StatusFound},
		"server error":                {Code: http.StatusInternalServerError},
		"not modified":                {Code: http.StatusNotModified},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.runs("order-1", "1")
				w.wants("order-1")
				w.bridge()
				w.after(time.Second)
				before := *w.shows("order-1", status.Running, "1")
				w.app.Break(func(*http.Request) functest.Fault { return fault })
				w.progresses("order-1", "2")
				w.after(5 * time.Minute)
				if r := w.record("order-1"); r.Version != before.Version || w.said() != 1 {
					w.Errorf("it changed to %+v", r)
				}
				w.app.Break(nil)
				w.after(2 * time.Minute)
				w.shows("order-1", status.Running, "2")
			})
		})
	}
}

// An input that is sent although it was not asked for is passed over.
func TestHugeInputIsPassedOver(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.app.Break(func(*http.Request) functest.Fault { return functest.Fault{HugeInput: 3 << 20} })
		w.wants("order-1")
		w.bridge()
		w.after(time.Second)
		w.shows("order-1", status.Running, "1")
	})
}

// The same status in the clothes of every SDK is the same status.
func TestEveryFormOfStatusIsRead(t *testing.T) {
	for name, clothes := range map[string]functest.Clothes{
		"extension": functest.Extension, "Python": functest.Python, "C# in-process": functest.InProcess, ".NET isolated": functest.Isolated,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.app = functest.New(functest.Options{Key: key, Clothes: clothes})
				w.runs("order-1", `{"b":[1,"é"],"a":12345678901234567890}`)
				w.wants("order-1")
				w.bridge(func(o *durablehttp.Options) { o.Transport = w.app })
				w.after(time.Second)
				r := w.shows("order-1", status.Running, `{"a":12345678901234567890,"b":[1,"é"]}`)
				state, _ := w.app.State("order-1")
				if r.Name != "ProcessOrder" || !r.CreatedTime.Equal(state.CreatedTime.Truncate(time.Second)) || !r.LastUpdatedTime.Equal(state.LastUpdatedTime.Truncate(time.Second)) {
					w.Errorf("got %+v", r)
				}
				w.becomes("order-1", "Failed", `"it broke"`)
				w.after(20 * time.Second)
				r = w.shows("order-1", status.Failed, `{"a":12345678901234567890,"b":[1,"é"]}`)
				if r.Lifecycle.Failure == nil || r.Lifecycle.Failure.Message != "it broke" || r.Lifecycle.Output != nil {
					w.Errorf("got %+v", r.Lifecycle)
				}
			})
		})
	}
}

// A failed instance that comes with 500 has failed; 500 alone is trouble.
func TestFailedInstanceWith500(t *testing.T) {
	bubble(t, func(w *world) {
		w.wants("order-1")
		w.bridge(func(o *durablehttp.Options) { o.Transport = withCode{w.app, http.StatusInternalServerError} })
		w.runs("order-1", "1")
		w.becomes("order-1", "Failed", `{"ErrorType":"T","ErrorMessage":"it broke"}`)
		w.after(5 * time.Second)
		r := w.shows("order-1", status.Failed, "1")
		if r.Lifecycle.Failure == nil || *r.Lifecycle.Failure != (status.Failure{Type: "T", Message: "it broke"}) {
			w.Errorf("got %+v", r.Lifecycle.Failure)
		}
	})
}

// withCode answers with another status code.
type withCode struct {
	http.RoundTripper
	code int
}

func (c withCode) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.StatusCode = c.code
	}
	return answer, err
}

// A custom status that is larger or deeper than is relayed costs only itself.
func TestHowItRunsIsSaidWithoutItsCustomStatus(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("large", `"`+strings.Repeat("x", 70<<10)+`"`)
		w.runs("larger", `"`+strings.Repeat("x", 300<<10)+`"`)
		w.runs("deep", strings.Repeat("[", 40)+strings.Repeat("]", 40))
		w.runs("output", `1`)
		w.becomes("output", "Completed", `"`+strings.Repeat("x", 300<<10)+`"`)
		w.wants("large", "larger", "deep", "output")
		w.bridge()
		w.after(2 * time.Second)
		w.shows("large", status.Running, "")
		w.shows("larger", status.Running, "")
		w.shows("deep", status.Running, "")
		w.shows("output", status.Completed, "1")
	})
}

// The request has what the runtime needs: the id escaped, the task hub, the connection;
// inputs are not asked for. The key is in its header and nowhere else.
func TestRequest(t *testing.T) {
	bubble(t, func(w *world) {
		ids := []string{"order 15 (copy)", "订单-2026-0042", "job+11", "job=12", "job&16", "tenant:contoso:9", "100%", "..a", "it's;,~"}
		for _, id := range ids {
			w.runs(id, "")
		}
		w.app.Watch(func(r *http.Request) {
			q := r.URL.Query()
			if q.Get("taskHub") != "Orders" || q.Get("connection") != "Storage" || q.Get("showInput") != "false" || q.Get("showHistory") != "false" ||
				q.Get("returnInternalServerErrorOnFailure") != "false" || r.Header.Get("x-functions-key") != key || strings.Contains(r.URL.String(), key) {
				w.Errorf("request %s with %v", r.URL, r.Header)
			}
		})
		w.wants(ids...)
		w.wants(".", "..", "@counter@1", "a/b") // which have no URL, or are no orchestrations
		w.bridge()
		w.after(5 * time.Second)
		for _, id := range ids {
			w.shows(id, status.Running, "")
		}
		for _, id := range []string{".", "..", "@counter@1", "a/b"} {
			if w.app.Reads(id) > 0 {
				w.Errorf("%s was asked for", id)
			}
		}
		if n := w.app.Requests(); n > 4*len(ids) {
			w.Errorf("%d requests", n)
		}
	})
}

// A key that is refused is read again; until there is another the runtime is hardly
// asked, and the key is never shown to whoever the runtime redirects to.
func TestKeyIsRotated(t *testing.T) {
	bubble(t, func(w *world) {
		var now atomic.Value
		now.Store("old")
		w.runs("order-1", "1")
		w.wants("order-1")
		w.bridge(func(o *durablehttp.Options) {
			o.Key = func() (string, error) {
				if now.Load() == "" {
					return "", errors.New("no such file")
				}
				return now.Load().(string), nil
			}
		})
		now.Store("")
		for i := range 100 {
			w.wants(fmt.Sprintf("order-%d", i))
		}
		w.after(time.Second / 2)
		if n := w.app.Requests(); n > 2 {
			w.Errorf("%d requests at once with a key that is refused", n)
		}
		w.after(10 * time.Minute)
		if n := w.app.Requests(); n > 20 {
			w.Errorf("%d requests with a key that is refused", n)
		}
		if r := w.record("order-1"); r != nil {
			w.Errorf("got %+v", r)
		}
		now.Store(key)
		w.after(2 * time.Minute)
		w.shows("order-1", status.Running, "1")
	})
}

func TestRedirectIsNotFollowed(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		var asked, elsewhere atomic.Int64
		w.bridge(func(o *durablehttp.Options) {
			o.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
				asked.Add(1)
				if r.URL.Host != "app.example" {
					elsewhere.Add(1)
				}
				return &http.Response{StatusCode: http.StatusTemporaryRedirect, Header: http.Header{"Location": {"http://elsewhere.example/"}}, Body: http.NoBody, Request: r}, nil
			})
		})
		w.after(time.Minute)
		if asked.Load() == 0 || elsewhere.Load() != 0 {
			w.Errorf("%d requests, %d of them elsewhere", asked.Load(), elsewhere.Load())
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// While the store is away nothing is asked or published; then everything goes on.
func TestStoreAway(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		w.bridge()
		w.after(time.Second)
		set := func(away bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.away = away
		}
		set(true)
		w.after(time.Second)
		before := w.app.Requests()
		w.progresses("order-1", "2")
		w.after(10 * time.Minute)
		if n := w.app.Requests() - before; n > 1 {
			w.Errorf("%d requests without a store", n)
		}
		set(false)
		w.after(30 * time.Second)
		w.shows("order-1", status.Running, "2")
	})
}

// What could not be published is published later.
func TestBrokerAway(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		w.refuse = true
		w.bridge()
		w.after(time.Minute)
		if n := w.said(); n != 0 {
			w.Errorf("%d updates", n)
		}
		w.mu.Lock()
		w.refuse = false
		w.mu.Unlock()
		w.after(20 * time.Second)
		w.shows("order-1", status.Running, "1")
	})
}

// What has been silent for too long is read although nobody is interested, but only
// part of the rate is spent on it.
func TestSilentInstancesAreReconciled(t *testing.T) {
	bubble(t, func(w *world) {
		const many = 2000
		for i := range many {
			id := fmt.Sprintf("order-%d", i)
			w.runs(id, "1")
			g, s := time.Now().UnixMilli(), int64(1)
			w.put(status.Update{InstanceID: id, Generation: &g, Sequence: &s, Kind: status.KindSnapshot, RuntimeStatus: status.Running, CustomStatus: raw("1")})
			w.becomes(id, "Completed", "")
			w.after(time.Millisecond)
		}
		w.bridge()
		w.after(4 * time.Minute)
		if n := w.app.Requests(); n != 0 {
			w.Errorf("%d requests before they are silent for long", n)
		}
		before := w.app.Requests()
		w.after(4 * time.Minute)
		if n := w.app.Requests() - before; n > 4*300 {
			w.Errorf("%d requests in 4 minutes, more than a quarter of the rate", n)
		}
		w.after(12 * time.Minute)
		for i := range many {
			if r := w.record(fmt.Sprintf("order-%d", i)); r.RuntimeStatus() != status.Completed {
				w.Fatalf("order-%d is %s", i, r.RuntimeStatus())
			}
		}
	})
}

// Discovery finds what runs, by pages, without anybody's interest, and how it ends.
func TestDiscovery(t *testing.T) {
	bubble(t, func(w *world) {
		for i := range 250 {
			w.runs(fmt.Sprintf("order-%03d", i), "1")
		}
		w.runs("done", "")
		w.becomes("done", "Completed", "")
		w.app.Set(functest.State{InstanceID: "@entity@1", RuntimeStatus: "Running", CreatedTime: time.Now()})
		w.bridge(func(o *durablehttp.Options) { o.Discover, o.Silence = 30*time.Second, time.Hour })
		w.after(5 * time.Second)
		for i := range 250 {
			w.shows(fmt.Sprintf("order-%03d", i), status.Running, "1")
		}
		if r := w.record("done"); r != nil || w.record("@entity@1") != nil || w.app.Lists() != 3 {
			w.Errorf("got %+v by %d pages, want 3", r, w.app.Lists())
		}
		if n := w.app.Requests(); n != 3 {
			w.Errorf("%d requests, want the 3 pages", n)
		}
		said := w.said()
		w.after(5 * time.Minute)
		if n := w.said() - said; n != 0 {
			w.Errorf("%d updates although nothing changed", n)
		}
		w.progresses("order-007", "2")
		w.becomes("order-008", "Completed", `"x"`)
		w.app.Purge("order-009")
		w.after(time.Minute)
		w.shows("order-007", status.Running, "2")
		w.shows("order-008", status.Completed, "1")
		w.after(time.Minute)
		if n := w.app.Reads("order-008"); n != 1 {
			w.Errorf("what had ended was read %d times, want once", n)
		}
	})
}

// A list that takes long does not undo what a read has found meanwhile.
func TestLateListIsNoNews(t *testing.T) {
	bubble(t, func(w *world) {
		w.runs("order-1", "1")
		w.wants("order-1")
		w.app.Break(func(r *http.Request) functest.Fault {
			if r.URL.Path == functest.Path+"/instances" {
				return functest.Fault{Late: 9 * time.Second}
			}
			return functest.Fault{}
		})
		w.bridge(func(o *durablehttp.Options) { o.Discover, o.MaxInterval = 30*time.Second, 2*time.Second })
		for i := range 90 {
			w.progresses("order-1", fmt.Sprint(10+i))
			w.after(2500 * time.Millisecond)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		last := ""
		for _, u := range w.published[1:] {
			if got := string(u.CustomStatus); got < last {
				w.Errorf("%s was published after %s", got, last)
			} else {
				last = got
			}
		}
	})
}

// Without discovery no list is ever asked for.
func TestNoDiscoveryByDefault(t *testing.T) {
	bubble(t, func(w *world) {
		w.bridge()
		w.after(time.Hour)
		if n := w.app.Lists(); n != 0 {
			w.Errorf("%d lists", n)
		}
	})
}

// Options are checked, all of them.
func TestOptionsAreChecked(t *testing.T) {
	_, err := durablehttp.New(durablehttp.Options{
		URL: "http://app.example/x?code=" + key, Hub: "a b", Rate: -1, MinInterval: time.Millisecond,
		Labels: durablehttp.Labels{"tenant": "/a~", "": "x", "owner": ""},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"hub: ", "Rate", "MinInterval", "Labels", "tenant", "owner", "Interest"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not mentioned in %v", want, err)
		}
	}
	for text, good := range map[string]bool{
		"https://app.example/runtime/webhooks/durabletask": true, "http://127.0.0.1:7071/runtime/webhooks/durabletask/": true,
		"app.example": false, "ftp://app.example": false, "https://app.example/?code=" + key: false, "https://u:" + key + "@app.example": false, "": false,
	} {
		_, err := durablehttp.ParseURL(text)
		if (err == nil) != good || err != nil && strings.Contains(err.Error(), key) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}
