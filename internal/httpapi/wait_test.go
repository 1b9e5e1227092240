package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

const aPath = "/v1/instances/a"

// etag is the tag of what a caller sees of instance a.
func (w *world) etag(t testing.TB, token string) string {
	t.Helper()
	return get(t, w.api, aPath, token).Header().Get("ETag")
}

func TestWaitIsAnsweredAsSoonAsTheCallersViewChanges(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		start := time.Now()
		etag := w.etag(t, "customer.u-1")
		for _, known := range []string{etag, "*", ""} {
			path, header := aPath, []string{"Prefer", "wait=30"}
			if known != "" {
				header = append(header, "If-None-Match", known)
			} else {
				path = fmt.Sprintf("%s?after=%d", aPath, r.Version)
			}
			a := w.ask(t, path, "customer.u-1", header...)
			a.want("nothing has changed", 0)
			time.Sleep(5 * time.Second)
			r = changed(r, custom(`{"percent":60,"internalCost":8}`))
			w.store.put(r)
			a.want("a field that the caller does not see has changed", 0)
			time.Sleep(5 * time.Second)
			r = changed(r, custom(fmt.Sprintf(`{"percent":60,"message":"%d"}`, r.Version)))
			w.store.put(r)
			a.want("a field that the caller sees has changed", 200)
			if !strings.Contains(a.w.Body.String(), fmt.Sprintf(`"version":%d`, r.Version)) {
				t.Errorf("got %s, want version %d", a.w.Body, r.Version)
			}
			if got := a.w.Header().Get("Preference-Applied"); got != "wait=30" {
				t.Errorf("Preference-Applied %q", got)
			}
			if got := a.w.Header().Get("ETag"); got == etag || got != w.etag(t, "customer.u-1") {
				t.Errorf("ETag %q", got)
			}
			// Who has another version still has the same view.
			r = changed(r, custom(`{"percent":60}`))
			w.store.put(r)
		}
		if took := time.Since(start); took != 30*time.Second {
			t.Errorf("took %s", took)
		}
		if n := w.metric(t, "hub_watches", ""); n != 0 {
			t.Errorf("%v watches are left", n)
		}
	})
}

func TestWaitEndsWithNotModified(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		a := w.ask(t, aPath, "operator.x", "If-None-Match", w.etag(t, "operator.x"), "Prefer", "wait=7")
		time.Sleep(7*time.Second - 1)
		a.want("before the end", 0)
		time.Sleep(time.Nanosecond)
		a.want("at the end", 304)
		if got := a.w.Header().Get("Preference-Applied"); got != "wait=7" {
			t.Errorf("Preference-Applied %q", got)
		}
		if got := a.w.Header().Get("Retry-After"); got != "7" {
			t.Errorf("Retry-After %q of who has been silent for 7 s", got)
		}
	})
}

func TestWaitIsReadAsRFC7240HasIt(t *testing.T) {
	const most = "wait=55"
	for field, want := range map[string]string{
		`wait=3`:                               "wait=3",
		`WAIT=3`:                               "wait=3",
		`wait="3"`:                             "wait=3",
		`wait = 3`:                             "wait=3",
		"  wait=3\t":                           "wait=3",
		`wait=003`:                             "wait=3",
		`respond-async, wait=3`:                "wait=3",
		`respond-async,wait=3;foo=bar, x`:      "wait=3",
		`wait=3; foo="a,b;c"`:                  "wait=3",
		`return=minimal;wait=9, wait=3`:        "wait=3", // that one is a parameter of another preference
		`wait=3, wait=9`:                       "wait=3",
		`wait=3` + "\n" + `wait=9`:             "wait=3", // two fields
		`respond-async` + "\n" + `wait=3`:      "wait=3",
		`x="a, wait=9", wait=3`:                "wait=3", // and that one a text
		`x="a\", wait=9", wait=3`:              "wait=3",
		`,, wait=3,`:                           "wait=3",
		`wait=55`:                              most,
		`wait=56`:                              most,
		`wait=9223372036854775807`:             most,
		`wait=99999999999999999999`:            most,
		`wait=1` + strings.Repeat("0", 30):     most,
		`wait=` + strings.Repeat("9", 100_000): most,
		`wait=0`:                               "",
		`wait=0, wait=3`:                       "",
		`wait=-1`:                              "",
		`wait=+3`:                              "",
		`wait=3.5`:                             "",
		`wait=1e3`:                             "",
		`wait=0x10`:                            "",
		`wait=1_0`:                             "",
		`wait=soon`:                            "",
		`wait=99999999999999999999x`:           "",
		`wait=soon, wait=3`:                    "", // the first counts
		`wait`:                                 "",
		`wait=`:                                "",
		`wait=""`:                              "",
		`wait="`:                               "",
		`wait="3`:                              "",
		`wait=3"`:                              "",
		`wait=٣`:                               "",
		`waiting=3`:                            "",
		`x="wait=3"`:                           "",
		`x="a, wait=3, b`:                      "", // a text that does not end
		``:                                     "",
	} {
		t.Run(field[:min(len(field), 40)], func(t *testing.T) {
			bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
				w.store.put(current("a"))
				header := []string{"If-None-Match", w.etag(t, "operator.x")}
				for line := range strings.SplitSeq(field, "\n") {
					header = append(header, "Prefer", line)
				}
				a := w.ask(t, aPath, "operator.x", header...)
				time.Sleep(time.Hour)
				a.want("long after", 304)
				if got := a.w.Header().Get("Preference-Applied"); got != want {
					t.Errorf("Preference-Applied %q, want %q", got, want)
				}
			})
		})
	}
}

func TestWaitWithoutAValidatorIsAnsweredAtOnce(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		for _, header := range [][]string{nil, {"If-None-Match", `"x"`}, {"If-None-Match", ","}} {
			a := w.ask(t, aPath, "operator.x", append(header, "Prefer", "wait=30")...)
			a.want(fmt.Sprint(header), 200)
			if got := a.w.Header().Get("Preference-Applied"); got != "" {
				t.Errorf("Preference-Applied %q of who has not waited", got)
			}
		}
		w.ask(t, fmt.Sprintf("%s?after=%d", aPath, r.Version-1), "operator.x", "Prefer", "wait=30").want("an older version", 200)
		w.ask(t, "/v1/instances/b", "operator.x", "If-None-Match", "*", "Prefer", "wait=30").want("absent", 404)
		w.ask(t, aPath, "customer.u-2", "If-None-Match", "*", "Prefer", "wait=30").want("not theirs", 404)
	})
}

func TestAfterAnswersOnlyWhatIsNewer(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		for after, want := range map[int64]int{0: 200, 1: 200, r.Version - 1: 200, r.Version: 304, r.Version + 1: 304, status.MaxInteger: 304} {
			if got := get(t, w.api, fmt.Sprintf("%s?after=%d", aPath, after), "operator.x").Code; got != want {
				t.Errorf("after=%d: got %d, want %d", after, got, want)
			}
		}
		a := w.ask(t, fmt.Sprintf("%s?after=%d", aPath, r.Version+1), "operator.x", "Prefer", "wait=30")
		a.want("at first", 0)
		r = changed(r, custom(`{"percent":61}`))
		w.store.put(r)
		a.want("changed, to what the caller has from another replica", 0)
		r = changed(r, custom(`{"percent":62}`))
		w.store.put(r)
		a.want("changed again", 200)
	})
}

func TestWhatIsGoneWhileWaitingIsNotFound(t *testing.T) {
	for name, lose := range map[string]func(w *world, r *status.Record){
		"purged": func(w *world, r *status.Record) { w.store.put(changed(r, func(r *status.Record) { r.Purged = true })) },
		"owner changes": func(w *world, r *status.Record) {
			w.store.put(changed(r, func(r *status.Record) { r.Labels["owner"] = "u-2" }))
		},
		"labels differ": func(w *world, r *status.Record) { w.store.put(changed(r, func(r *status.Record) { r.Labels = nil })) },
		"another policy": func(w *world, r *status.Record) {
			w.setPolicy(t, policyOf(onlyOperators))
			w.store.put(changed(r, custom(`1`)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
				r := current("a")
				w.store.put(r)
				absent := get(t, w.api, "/v1/instances/b", "customer.u-1")
				a := w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=30")
				a.want("at first", 0)
				lose(w, r)
				a.want("then", 404)
				if a.w.Body.String() != absent.Body.String() || fmt.Sprint(a.w.Header()) != fmt.Sprint(absent.Header()) {
					t.Errorf("got %v %s\nwant %v %s", a.w.Header(), a.w.Body, absent.Header(), absent.Body)
				}
			})
		})
	}
	t.Run("expired", func(t *testing.T) {
		bubble(t, httpapi.Options{MaxWait: 5 * time.Minute}, func(t *testing.T, w *world) {
			w.store.put(current("a"))
			a := w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=300")
			a.want("at first", 0)
			w.store.mu.Lock()
			clear(w.store.records)
			w.store.mu.Unlock()
			time.Sleep(2 * time.Minute) // the hub reads again
			a.want("then", 404)
		})
	})
	t.Run("another policy and no change", func(t *testing.T) {
		bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
			w.store.put(current("a"))
			a := w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=30")
			a.want("at first", 0)
			w.setPolicy(t, policyOf(onlyOperators))
			time.Sleep(30 * time.Second)
			a.want("at the end", 404)
		})
	})
}

func TestWhatAPolicyShowsMeanwhileIsNewsAtTheEnd(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		a := w.ask(t, aPath, "customer.u-1", "If-None-Match", "*", "Prefer", "wait=30")
		a.want("at first", 0)
		w.setPolicy(t, policyOf(strings.Replace(onlyOperators, "'operator' in", "'customer' in", 1)))
		time.Sleep(30 * time.Second)
		a.want("at the end", 200)
		if !strings.Contains(a.w.Body.String(), "internalCost") {
			t.Errorf("got %s", a.w.Body)
		}
	})
}

func TestWaitEndsWithTheToken(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		a := w.ask(t, aPath, "customer.u-1.10", "If-None-Match", "*", "Prefer", "wait=30")
		time.Sleep(10*time.Second - 1)
		a.want("while it is good", 0)
		time.Sleep(time.Nanosecond)
		a.want("when it is no more", 401)
		wantProblem(t, "expired", a.w, 401, "token-expired", "")
	})
}

func TestWhoWaitsCostsTheStoreNothing(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		etag := w.etag(t, "operator.x")
		w.store.took()
		a := w.ask(t, aPath, "operator.x", "If-None-Match", etag, "Prefer", "wait=30")
		a.want("at first", 0)
		if n := w.store.took(); n != 2 {
			t.Errorf("the store was asked %d times, want once by the request and once by the hub", n)
		}
		for i := range 20 {
			time.Sleep(time.Second)
			r = changed(r, func(r *status.Record) { r.Generation += int64(i) })
			w.store.put(r)
		}
		a.want("unseen changes later", 0)
		if n := w.store.took(); n > 1 { // the hub's refresh, once a minute
			t.Errorf("the store was asked %d times while nothing was to be told", n)
		}
	})
}

func TestWaitOutlivesAStoreThatIsAway(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		a := w.ask(t, aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=30")
		a.want("at first", 0)
		w.store.fail(status.ErrUnavailable)
		time.Sleep(29 * time.Second)
		a.want("while it is away", 0)
		w.store.fail(nil)
		w.store.put(changed(r, custom(`1`)))
		a.want("when it is back", 200)
	})
}

func TestWaitingIsBoundedPerCallerAndInAll(t *testing.T) {
	bubble(t, httpapi.Options{MaxWaiting: 5, MaxPerCaller: 2}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		wait := func(subject string) *asked {
			return w.ask(t, aPath, "operator."+subject, "If-None-Match", "*", "Prefer", "wait=30")
		}
		first, second := wait("x"), wait("x")
		first.want("first", 0)
		second.want("second", 0)
		third := wait("x")
		third.want("third of a caller", 429)
		wantProblem(t, "third of a caller", third.w, 429, "too-many", "")
		if n, err := strconv.Atoi(third.w.Header().Get("Retry-After")); err != nil || n < 1 || n > 5 {
			t.Errorf("Retry-After %q", third.w.Header().Get("Retry-After"))
		}
		wait("y").want("another caller", 0)
		first.leave()
		first.code()
		wait("x").want("when one has left", 0)
		wait("x").want("and one more", 429)
		wait("y").want("another caller", 0)
		wait("z").want("the last place", 0)
		wait("z").want("none is left", 429)
		if n := w.metric(t, "httpapi_waiting", ""); n != 5 {
			t.Errorf("waiting is %v", n)
		}
		if get(t, w.api, aPath, "operator.x").Code != 200 || get(t, w.api, aPath, "operator.x", "If-None-Match", "*").Code != 304 {
			t.Error("who does not wait is refused")
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		wait("x").want("when all have been answered", 0)
	})
}

func TestWhoLeavesIsNoFailureOfOurs(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		a := w.ask(t, aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=30")
		a.want("at first", 0)
		a.leave()
		a.want("to whoever may still read", 503)
		w.store.hang(true)
		a = w.ask(t, aPath, "operator.x")
		synctest.Wait()
		a.leave()
		a.code()
		if n, m := w.metric(t, "httpapi_request_seconds", "499"), w.metric(t, "httpapi_request_seconds", "500"); n != 2 || m != 0 {
			t.Errorf("%v counted as 499 and %v as 500", n, m)
		}
		w.store.hang(false)
		if n := w.metric(t, "hub_watches", "") + w.metric(t, "httpapi_waiting", ""); n != 0 {
			t.Errorf("%v watches and places are left", n)
		}
	})
}

func TestShutdownAnswersWhoWaitsOverItsPeriod(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		etag := w.etag(t, "operator.x")
		var waiting []*asked
		for range 100 {
			waiting = append(waiting, w.ask(t, aPath, "operator.x", "If-None-Match", etag, "Prefer", "wait=30"))
		}
		short := w.ask(t, aPath, "operator.y", "If-None-Match", etag, "Prefer", "wait=11")
		synctest.Wait()
		time.Sleep(10 * time.Second)
		w.api.Shutdown(10 * time.Second)
		w.ask(t, aPath, "operator.z", "If-None-Match", etag, "Prefer", "wait=30").want("one that comes later", 304)
		answered := func() (n int) {
			for _, a := range waiting {
				if a.code() == 304 {
					n++
				}
			}
			return n
		}
		var spread []int
		for range 10 {
			spread = append(spread, answered())
			time.Sleep(time.Second)
			short.want("one that wanted to wait for a second more only", 304)
		}
		if n := answered(); n != 100 {
			t.Errorf("%d were answered within the period", n)
		}
		if spread[0] > 10 || spread[5] < 25 || spread[5] > 75 {
			t.Errorf("answered by second: %v", spread)
		}
	})
}

// serve has an API served as the roots do it, but for the time to read a request.
func serve(t *testing.T, h http.Handler, readTimeout time.Duration) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ReadTimeout = readTimeout
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// dial opens a connection and sends what stands there.
func dial(t *testing.T, s *httptest.Server, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func TestWaitOutlivesTheServersReadTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, httpapi.Options{MaxWait: time.Second}, record("a"))
	s := serve(t, w.api, 100*time.Millisecond)
	for range 2 { // the second on the same connection
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+aPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Authorization": {"Bearer operator.x"}, "If-None-Match": {"*"}, "Prefer": {"wait=1"}}
		start := time.Now()
		answer, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if took := time.Since(start); answer.StatusCode != 304 || took < time.Second {
			t.Errorf("got %d after %s", answer.StatusCode, took)
		}
	}
}

func TestWhoKeepsABodyBackCannotKeepTheConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, httpapi.Options{MaxWait: time.Second}, record("a"))
	s := serve(t, w.api, 100*time.Millisecond)
	for _, accept := range []string{"application/json", "text/event-stream"} {
		_, answer := dial(t, s, "GET "+aPath+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator.x.1\r\nAccept: "+accept+
			"\r\nIf-None-Match: *\r\nPrefer: wait=1\r\nContent-Length: 5\r\n\r\n")
		if _, err := io.Copy(io.Discard, answer); err != nil {
			t.Errorf("%s: the connection is still open: %v", accept, err)
		}
	}
}

func TestClosedConnectionFreesItsPlace(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	s := serve(t, w.api, 0)
	c, _ := dial(t, s, "GET "+aPath+" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator.x\r\nIf-None-Match: *\r\nPrefer: wait=50\r\n\r\n")
	w.until(t, "httpapi_waiting", 1)
	_ = c.Close()
	w.until(t, "httpapi_waiting", 0)
	w.until(t, "hub_watches", 0)
}

// until waits for a metric to have a value.
func (w *world) until(t *testing.T, name string, value float64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for w.metric(t, name, "") != value {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s is %v, want %v", name, w.metric(t, name, ""), value)
		}
	}
}

func TestHeadWaitsAsGetDoes(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		start := time.Now()
		got := do(t, w.api, newRequest(http.MethodHead, aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=3"))
		if took := time.Since(start); got.Code != 304 || took != 3*time.Second {
			t.Errorf("got %d after %s", got.Code, took)
		}
	})
}

func TestManyWhoSeeTheSameAreAnsweredAtOnce(t *testing.T) {
	w := newWorld(t, httpapi.Options{MaxPerCaller: 200}, record("a"))
	var answering sync.WaitGroup
	for range 50 {
		answering.Go(func() {
			got := get(t, w.api, aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=50")
			if got.Code != 200 || !strings.Contains(got.Body.String(), `"percent":61`) {
				t.Errorf("got %d %s", got.Code, got.Body)
			}
		})
	}
	w.until(t, "httpapi_waiting", 50)
	w.until(t, "hub_watches", 50)
	w.store.put(changed(record("a"), custom(`{"percent":61}`)))
	answering.Wait()
}

func TestContradictingValidatorsAreRefused(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	etag := w.etag(t, "operator.x")
	for name, tt := range map[string]struct {
		query string
		tags  []string
		field string
	}{
		"after and If-None-Match":  {"?after=1", []string{`"x"`}, "after"},
		"after=0 and *":            {"?after=0", []string{"*"}, "after"},
		"* beside a tag":           {"", []string{"*, " + etag}, "If-None-Match"},
		"* beside a tag, in two":   {"", []string{"*", etag}, "If-None-Match"},
		"after twice":              {"?after=1&after=1", nil, "after"},
		"after is text":            {"?after=x", nil, "after"},
		"after is empty":           {"?after=", nil, "after"},
		"after is negative":        {"?after=-1", nil, "after"},
		"after is no integer":      {"?after=1.5", nil, "after"},
		"after above 2^53-1":       {"?after=9007199254740992", nil, "after"},
		"after above 2^64":         {"?after=1" + strings.Repeat("0", 40), nil, "after"},
		"after in capital letters": {"?After=1", nil, "After"},
	} {
		var header []string
		for _, tag := range tt.tags {
			header = append(header, "If-None-Match", tag)
		}
		wantProblem(t, name, get(t, w.api, aPath+tt.query, "operator.x", header...), 400, "invalid", tt.field)
	}
	for name, tt := range map[string]struct {
		tags []string
		code int
	}{
		"unquoted":          {[]string{strings.Trim(strings.TrimPrefix(etag, "W/"), `"`)}, 200},
		"half quoted":       {[]string{strings.TrimSuffix(etag, `"`)}, 200},
		"w in small":        {[]string{"w" + strings.TrimPrefix(etag, "W")}, 200},
		"empty":             {[]string{""}, 200},
		"commas":            {[]string{",,,"}, 200},
		"empty tag":         {[]string{`""`}, 200},
		"* in quotes":       {[]string{`"*"`}, 200},
		"* twice":           {[]string{"*, *"}, 304},
		"ours behind many":  {[]string{strings.Repeat(`"x", `, 1000) + etag}, 304},
		"ours without room": {[]string{`"x",` + etag + `,"y"`}, 304},
	} {
		var header []string
		for _, tag := range tt.tags {
			header = append(header, "If-None-Match", tag)
		}
		if got := get(t, w.api, aPath, "operator.x", header...).Code; got != tt.code {
			t.Errorf("%s: got %d, want %d", name, got, tt.code)
		}
	}
}
