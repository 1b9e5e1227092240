package httpapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/httpapi"
	"statusrelay/internal/interest"
	"statusrelay/internal/limit"
	"statusrelay/internal/status"
)

// wishes are what is wanted of the hub orders, which is bridged.
type wishes struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (*wishes) Bridged(hub string) bool { return hub == "orders" }

func (w *wishes) Want(k status.Key, exists bool) {
	if exists {
		w.add(k.String() + " exists")
	} else {
		w.add(k.String())
	}
}

func (w *wishes) watched(k status.Key) { w.add(k.String() + " watched") }

func (w *wishes) add(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, text)
}

// took returns what was wanted since the last time.
func (w *wishes) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.all
	w.all = nil
	return all
}

func (w *wishes) want(t *testing.T, what string, all ...string) {
	t.Helper()
	if got := w.took(); !slices.Equal(got, all) {
		t.Errorf("%s: wanted are %q, want %q", what, got, all)
	}
}

// bridged runs a test in a world in which the hub orders is bridged, and waits 2 s for a first use.
func bridged(t *testing.T, o httpapi.Options, f func(t *testing.T, w *world, wished *wishes)) {
	t.Helper()
	wished := new(wishes)
	o.Interest, o.FirstWait = wished, 2*time.Second
	bubble(t, o, func(t *testing.T, w *world) { f(t, w, wished) })
}

func TestFirstUseWaitsUntilTheInstanceAppears(t *testing.T) {
	for name, c := range map[string]struct {
		path   string
		header []string
		want   int
	}{
		"GET":              {"/v1/instances/a", nil, 200},
		"GET with its hub": {"/v1/hubs/orders/instances/a", nil, 200},
		"conditional":      {"/v1/instances/a", []string{"If-None-Match", "*"}, 304},
		"drop-in":          {dropIn + "a", nil, 202},
		"batch":            {"/v1/instances?id=a", nil, 200},
	} {
		t.Run(name, func(t *testing.T) {
			bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
				a := w.ask(t, c.path, "customer.u-1", c.header...)
				a.want("at first", 0)
				wished.want(t, "at first", "orders/a", "orders/a watched")
				time.Sleep(time.Second)
				w.store.put(changed(current("a"), func(r *status.Record) { r.Labels = nil }))
				a.want("there, and not yet theirs", 0)
				w.store.put(changed(current("b"), func(r *status.Record) { r.Version++ }))
				a.want("another one", 0)
				w.store.put(changed(current("a"), func(r *status.Record) { r.Version++ }))
				a.want("theirs", c.want)
				direct := get(t, w.api, c.path, "customer.u-1", c.header...)
				if a.w.Body.String() != direct.Body.String() || fmt.Sprint(a.w.Header()) != fmt.Sprint(direct.Header()) {
					t.Errorf("got %v %s\nas it is answered at once: %v %s", a.w.Header(), a.w.Body, direct.Header(), direct.Body)
				}
				wished.want(t, "what is seen at once", "orders/a exists")
				if n := w.metric(t, "hub_watches", "") + w.metric(t, "httpapi_waiting", ""); n != 0 {
					t.Errorf("%v watches and places are left", n)
				}
				if n := w.metric(t, "httpapi_request_seconds", "first"); n != 1 {
					t.Errorf("counted %v that took the time of a first use, want 1", n)
				}
				if n := w.metric(t, "httpapi_first_reads_total", "found"); n != 1 {
					t.Errorf("counted %v found, want 1", n)
				}
			})
		})
	}
}

// What there is not, what is not theirs, and what is purged take the same way, the same time, and end in the same words.
func TestH1FirstUseTellsNothingOfWhatIsNotSeen(t *testing.T) {
	for name, path := range map[string]string{"GET": "/v1/instances/%s", "drop-in": dropIn + "%s", "batch": "/v1/instances?id=%s"} {
		for _, header := range [][]string{nil, {"If-None-Match", "*", "Prefer", "wait=30"}} {
			t.Run(name+fmt.Sprint(header), func(t *testing.T) {
				answers := map[string]string{}
				bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
					busy, purged := current("busy"), current("gone")
					purged.Purged = true
					w.store.put(current("theirs"))
					w.store.put(purged)
					for _, id := range []string{"none", "theirs", "busy", "gone", "late"} {
						a, start := w.ask(t, fmt.Sprintf(path, id), "customer.u-2", header...), time.Now()
						a.want(id+" at first", 0)
						for a.code() == 0 {
							time.Sleep(100 * time.Millisecond)
							switch id {
							case "busy": // changes all the time
								busy = changed(busy, custom(fmt.Sprintf(`{"percent":%d}`, time.Since(start).Milliseconds())))
								w.store.put(busy)
							case "late": // appears, and is somebody else's
								w.store.put(changed(current("late"), custom(`1`)))
							}
						}
						if took := time.Since(start); took != 2*time.Second {
							t.Errorf("%s: took %s", id, took)
						}
						wished.want(t, id, "orders/"+id, "orders/"+id+" watched")
						h := a.w.Header()
						h.Del("ETag") // of a batch, in which the id is
						h.Del("Content-Length")
						answers[id] = fmt.Sprint(a.w.Code, h, strings.ReplaceAll(a.w.Body.String(), id, "ID"))
					}
				})
				for id, got := range answers {
					if got != answers["none"] {
						t.Errorf("%s: got %s\nwant %s", id, got, answers["none"])
					}
				}
			})
		}
	}
}

func TestFirstUseOfABatchIsOneWait(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
		w.store.put(current("a"))
		path := "/v1/instances?id=b&id=a&id=@&id=c&id=b"
		a, start := w.ask(t, path, "customer.u-1"), time.Now()
		a.want("at first", 0)
		wished.want(t, "those that are not seen", "orders/a exists", "orders/b", "orders/c", "orders/b watched", "orders/c watched")
		w.store.put(current("c"))
		a.want("one of two", 0)
		w.store.put(current("b"))
		a.want("both", 200)
		if took := time.Since(start); took != 0 || strings.Contains(a.w.Body.String(), `"status":404`) {
			t.Errorf("took %s: %s", took, a.w.Body)
		}
		order := []string{`"instanceId":"b"`, `"instanceId":"a"`, `"instanceId":"@"`, `"instanceId":"c"`}
		for at, rest := 0, a.w.Body.String(); at < len(order); at++ {
			_, after, ok := strings.Cut(rest, order[at])
			if !ok {
				t.Fatalf("%s does not come in its place: %s", order[at], a.w.Body)
			}
			rest = after
		}

		a, start = w.ask(t, "/v1/instances?id=a&id=d&id=e", "customer.u-1"), time.Now()
		a.want("at first", 0)
		time.Sleep(time.Second)
		w.store.put(current("e"))
		a.want("one of two", 0)
		time.Sleep(time.Second)
		a.want("at the end", 200)
		if body := a.w.Body.String(); time.Since(start) != 2*time.Second || strings.Count(body, `"status":404`) != 1 || !strings.Contains(body, `{"instanceId":"d","status":404}`) {
			t.Errorf("took %s: %s", time.Since(start), body)
		}
	})
}

// Other hubs, other methods, and what is seen, are answered as ever.
func TestWithoutAFirstUseNobodyWaits(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
		elsewhere := current("a")
		elsewhere.Hub = "elsewhere"
		w.store.put(elsewhere)
		w.store.put(current("a"))
		for path, code := range map[string]int{
			"/v1/hubs/elsewhere/instances/b": 404, "/v1/hubs/elsewhere/instances/a": 200, dropIn + "b?taskHub=elsewhere": 404,
			"/v1/hubs/elsewhere/instances?id=a&id=b": 200, "/v1/instances?label.owner=u-1": 200, "/v1/instances/@b": 400, dropIn + "@b": 404,
			"/v1/instances?id=@b": 200,
		} {
			w.ask(t, path, "customer.u-1").want(path, code)
			wished.want(t, path)
		}
		w.ask(t, "/v1/instances/b", "").want("nobody", 401)
		w.ask(t, "/v1/instances/b?x=y", "customer.u-1").want("a mistake", 400)
		w.ask(t, "/v1/instances/b?after=1", "customer.u-1", "If-None-Match", "*").want("another one", 400)
		wished.want(t, "those")
		w.store.fail(status.ErrUnavailable)
		w.ask(t, "/v1/instances/b", "customer.u-1").want("without Redis", 503)
		w.store.fail(nil)
		wished.want(t, "without Redis")
		w.api.Shutdown(time.Minute)
		w.ask(t, "/v1/instances/b", "customer.u-1").want("while it stops", 404)
		wished.want(t, "while it stops", "orders/b")
	})
	wished := new(wishes)
	bubble(t, httpapi.Options{Interest: wished}, func(t *testing.T, w *world) {
		w.ask(t, "/v1/instances/b", "customer.u-1").want("who does not wait at all", 404)
		wished.want(t, "is wanted all the same", "orders/b")
	})
}

// A credential that is good for no reading there is no reason to fetch anything.
func TestFirstUseNeedsARight(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
		token := w.key(t, auth.Read, "operator", "elsewhere")
		for _, path := range []string{"/v1/instances/b", dropIn + "b", "/v1/instances?id=b&id=c"} {
			a := w.ask(t, path, token)
			if a.code() == 0 {
				t.Errorf("%s: waits", path)
			}
			wished.want(t, path)
		}
		if n := w.metric(t, "httpapi_first_reads_total", "refused"); n != 4 {
			t.Errorf("counted %v refused, want 4", n)
		}
		a := w.ask(t, w.link(t, "orders", "b", "customer", time.Hour), "")
		a.want("a link", 0)
		wished.want(t, "a link", "orders/b", "orders/b watched")
		w.store.put(current("b"))
		a.want("a link", 200)
	})
}

// Each unknown id costs the runtime a read: who asks for too many gets the plain answer, and nobody hears of those.
func TestFirstReadsAreLimited(t *testing.T) {
	bridged(t, httpapi.Options{FirstReads: limit.Rate{PerSecond: 2, Burst: 4}}, func(t *testing.T, w *world, wished *wishes) {
		for n := range 4 {
			w.ask(t, fmt.Sprintf("/v1/instances/n-%d", n), "customer.u-1").want("the first ones", 0)
		}
		if got := len(wished.took()); got != 8 {
			t.Errorf("wanted %d, want 4, each by its request and its watch", got)
		}
		for _, path := range []string{"/v1/instances/n-9", dropIn + "n-9", "/v1/instances/a"} {
			w.ask(t, path, "customer.u-1").want("one more", 404)
			wished.want(t, "one more")
		}
		w.ask(t, "/v1/instances/n-9", "customer.u-3").want("another caller", 0)
		wished.took()
		time.Sleep(2 * time.Second)
		ids := make([]string, 100)
		for n := range ids {
			ids[n] = fmt.Sprint("id=m-", n)
		}
		a := w.ask(t, "/v1/instances?"+strings.Join(ids, "&"), "customer.u-1")
		a.want("a batch", 0)
		wished.want(t, "of a batch as many as there may be", "orders/m-0", "orders/m-1", "orders/m-2", "orders/m-3",
			"orders/m-0 watched", "orders/m-1 watched", "orders/m-2 watched", "orders/m-3 watched")
		time.Sleep(2 * time.Second)
		a.want("a batch", 200)
		if n := w.metric(t, "httpapi_first_reads_total", "refused"); n != 3+96 {
			t.Errorf("counted %v refused, want 99", n)
		}
		w.store.put(current("a"))
		w.ask(t, "/v1/instances/a", "customer.u-1").want("what is seen costs nothing", 200)
	})
}

// Those who wait are counted with the long-polls. Without a place the answer is the plain one; what is wanted is fetched.
func TestFirstUseTakesAPlace(t *testing.T) {
	bridged(t, httpapi.Options{MaxPerCaller: 2, MaxWaiting: 3}, func(t *testing.T, w *world, wished *wishes) {
		w.store.put(current("a"))
		w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=30").want("a long-poll", 0)
		w.ask(t, "/v1/instances/b", "customer.u-1").want("a first use", 0)
		wished.took()
		w.ask(t, "/v1/instances/c", "customer.u-1").want("one more of the caller", 404)
		wished.want(t, "one more", "orders/c")
		w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=30").want("a long-poll more", 429)
		w.ask(t, "/v1/instances/c", "customer.u-2").want("another caller", 0)
		w.ask(t, "/v1/instances/c", "customer.u-3").want("the fourth of all", 404)
	})
}

func TestFirstUseEndsLikeALongPoll(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, _ *wishes) {
		expires := w.ask(t, "/v1/instances/b", "customer.u-1.1")
		withdrawn := w.ask(t, "/v1/instances/b", w.key(t, auth.Read, "operator"))
		leaves := w.ask(t, "/v1/instances/b", "customer.u-1")
		stays := w.ask(t, "/v1/instances/b", "customer.u-1")
		expires.want("at first", 0)
		withdrawn.want("at first", 0)
		w.keys.SetKeys(nil)
		leaves.leave()
		leaves.code()
		if n := w.metric(t, "httpapi_request_seconds", "499"); n != 1 {
			t.Errorf("counted %v that left, want 1", n)
		}
		time.Sleep(time.Second)
		expires.want("when it has expired", 401)
		wantProblem(t, "expired", expires.w, 401, "token-expired", "")
		time.Sleep(time.Second)
		withdrawn.want("at the end", 401)
		stays.want("at the end", 404)

		again := w.ask(t, "/v1/instances/b", "customer.u-1")
		again.want("once more", 0)
		w.api.Shutdown(time.Second)
		time.Sleep(time.Second + 1)
		again.want("when it stops", 404)
		if n := w.metric(t, "hub_watches", "") + w.metric(t, "httpapi_waiting", ""); n != 0 {
			t.Errorf("%v watches and places are left", n)
		}
		synctest.Wait()
	})
}

func TestFirstUseByHead(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
		r, start := newRequest(http.MethodHead, "/v1/instances/b", "customer.u-1"), time.Now()
		if got := do(t, w.api, r).Code; got != 404 || time.Since(start) != 2*time.Second {
			t.Errorf("got %d after %s", got, time.Since(start))
		}
		wished.want(t, "by HEAD", "orders/b", "orders/b watched")
	})
}

func TestLongPollWantsItsInstanceMeanwhile(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
		w.store.put(current("a"))
		w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=30").want("at first", 0)
		wished.want(t, "waiting", "orders/a exists", "orders/a watched")
	})
}

// Streams wait anyhow; what they watch is wanted at once.
func TestStreamWantsItsInstances(t *testing.T) {
	bridged(t, httpapi.Options{}, func(t *testing.T, w *world, wished *wishes) {
		for path, want := range map[string][]string{
			"/v1/instances/b":         {"orders/b watched"},
			"/v1/instances?id=c&id=d": {"orders/c watched", "orders/d watched"},
			"/v1/instances":           nil,
		} {
			a := w.ask(t, path, "customer.u-1", "Accept", "text/event-stream")
			synctest.Wait()
			wished.want(t, path, want...)
			a.leave()
			a.code()
		}
		w.ask(t, "/v1/instances", "customer.u-1", "Accept", "text/event-stream")
		synctest.Wait()
		w.store.put(current("e"))
		time.Sleep(5 * time.Second)
		wished.want(t, "a list's", "orders/e watched")
	})
}

// A GET of what is seen must not cost more because hubs are bridged.
func BenchmarkGet(b *testing.B) {
	for name, o := range map[string]httpapi.Options{
		"no bridge":   {},
		"another hub": {Interest: interest.New(interest.Options{Hubs: []string{"another"}})},
		"bridged":     {Interest: interest.New(interest.Options{Hubs: []string{"orders"}})},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, o, record("a"))
			r := newRequest(http.MethodGet, aPath, "customer.u-1")
			b.ReportAllocs()
			for b.Loop() {
				answer := httptest.NewRecorder()
				if w.api.ServeHTTP(answer, r); answer.Code != http.StatusOK {
					b.Fatalf("got %d", answer.Code)
				}
			}
		})
	}
}
