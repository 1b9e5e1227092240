package httpapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/limit"
)

// from has a request come from an address.
func from(address string, r *http.Request) *http.Request {
	r.RemoteAddr = address
	return r
}

// retryAfter is what an answer says of when to come back.
func retryAfter(t testing.TB, h http.Header) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(h.Get("Retry-After") + "s")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestH7CallerWhoAsksTooFastCostsOthersNothing(t *testing.T) {
	bubble(t, httpapi.Options{PerCaller: limit.Rate{PerSecond: 10, Burst: 20}}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		for range 20 {
			if got := get(t, w.api, aPath, "operator.x"); got.Code != 200 {
				t.Fatalf("within the burst: got %d %s", got.Code, got.Body)
			}
		}
		w.store.took()
		for _, path := range []string{aPath, "/v1/hubs/orders/instances?id=a", "/v1/hubs/orders/instances", "/runtime/webhooks/durabletask/instances/a?taskHub=orders"} {
			wantProblem(t, path, get(t, w.api, path, "operator.x"), 429, "too-many", "")
		}
		wantProblem(t, "stream", get(t, w.api, aPath, "operator.x", "Accept", "text/event-stream"), 429, "too-many", "")
		wantProblem(t, "ticket", do(t, w.api, newRequest(http.MethodPost, "/v1/tickets", "operator.x")), 429, "too-many", "")
		wantProblem(t, "another token of the same caller", get(t, w.api, aPath, "customer.x.60"), 429, "too-many", "")
		if n := w.store.took(); n != 0 {
			t.Errorf("who is refused has cost the store %d calls", n)
		}
		if got := get(t, w.api, aPath, "operator.y"); got.Code != 200 {
			t.Errorf("another caller: got %d %s", got.Code, got.Body)
		}
		if n := w.metric(t, "httpapi_limited_total", "caller"); n != 7 {
			t.Errorf("counted %v, want 7", n)
		}
	})
}

// Whoever streams by a ticket is the caller that it was issued to.
func TestTicketIsChargedToItsCaller(t *testing.T) {
	bubble(t, httpapi.Options{PerCaller: limit.Rate{PerSecond: 0.05, Burst: 3}}, func(t *testing.T, w *world) {
		ticket, another := w.ticket(t, "operator.x"), w.ticket(t, "operator.x")
		v := w.view(t, aPath+"?ticket="+ticket, "")
		v.bytes()
		if got := v.answer().Code; got != 200 {
			t.Errorf("got %d", got)
		}
		late := w.view(t, aPath+"?ticket="+another, "")
		late.bytes()
		wantProblem(t, "the fourth", late.answer(), 429, "too-many", "")
	})
}

func TestH8ObeyingClientIsNotRefusedAgain(t *testing.T) {
	bubble(t, httpapi.Options{PerCaller: limit.Rate{PerSecond: 3, Burst: 20}}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		refused := 0
		for i := range 300 {
			path := aPath
			if i%5 == 0 {
				path = "/v1/hubs/orders/instances"
			}
			got := get(t, w.api, path, "operator.x")
			if got.Code == 429 {
				refused++
				time.Sleep(retryAfter(t, got.Header())) // fake time
				got = get(t, w.api, path, "operator.x")
			}
			if got.Code != 200 {
				t.Fatalf("request %d: got %d %s", i, got.Code, got.Body)
			}
		}
		if refused == 0 {
			t.Error("nothing was refused")
		}
	})
}

func TestRequestsCostWhatTheyTake(t *testing.T) {
	ids := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "&id=i%d", i)
		}
		return "/v1/hubs/orders/instances?" + b.String()[1:]
	}
	for _, tt := range []struct {
		path   string
		accept string
		cost   int
	}{
		{aPath, "", 1},
		{aPath, "text/event-stream", 1},
		{"/v1/hubs/orders/instances", "", 10},
		{"/v1/hubs/orders/instances", "text/event-stream", 10},
		{ids(1), "", 1},
		{ids(10), "", 1},
		{ids(11), "", 2},
		{ids(100), "", 10},
		{ids(100), "text/event-stream", 10},
		{ids(101), "", 11}, // it is refused, after it was read
		{aPath + "?nonsense=1", "", 1},
	} {
		bubble(t, httpapi.Options{PerCaller: limit.Rate{PerSecond: 0.05, Burst: 60}}, func(t *testing.T, w *world) {
			w.store.put(current("a"))
			a := w.ask(t, tt.path, "operator.x", "Accept", tt.accept)
			synctest.Wait()
			a.leave()
			<-a.done
			left := 0
			for get(t, w.api, aPath, "operator.x").Code == 200 {
				left++
			}
			if left != 60-tt.cost {
				t.Errorf("%.50s %s: cost %d, want %d", tt.path, tt.accept, 60-left, tt.cost)
			}
		})
	}
}

// All callers of a tenant share what there is. Who is refused by it has paid nothing of their own; who has no tenant has no limit by it.
func TestW9TenantIsLimited(t *testing.T) {
	o := httpapi.Options{PerCaller: limit.Rate{PerSecond: 1, Burst: 12}, PerTenant: limit.Rate{PerSecond: 10, Burst: 20}, TenantClaim: "tenant"}
	bubble(t, o, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		read := func(who, path string) *httptest.ResponseRecorder { return get(t, w.api, path, who) }
		const list = "/v1/hubs/orders/instances"
		for _, who := range []string{"operator.x~acme", "operator.y~acme"} {
			if got := read(who, list); got.Code != 200 {
				t.Fatalf("%s: got %d", who, got.Code)
			}
		}
		refused := read("operator.z~acme", list)
		wantProblem(t, "a third of the tenant", refused, 429, "too-many", "")
		if got := refused.Header().Get("RateLimit"); !strings.HasPrefix(got, `"tenant";r=0;t=`) {
			t.Errorf("told %s", got)
		}
		wantProblem(t, "a read of theirs", read("operator.z~acme", aPath), 429, "too-many", "")
		for _, who := range []string{"operator.v~other", "operator.w"} {
			if got := read(who, list); got.Code != 200 {
				t.Errorf("%s: got %d", who, got.Code)
			}
		}
		time.Sleep(retryAfter(t, refused.Header())) // fake time
		if got := read("operator.z~acme", list); got.Code != 200 || got.Header().Get("RateLimit") != `"caller";r=2;t=10` {
			t.Errorf("who came back: got %d, told %s: a refusal has cost something", got.Code, got.Header().Get("RateLimit"))
		}
		if n := w.metric(t, "httpapi_limited_total", "tenant"); n != 2 {
			t.Errorf("counted %v, want 2", n)
		}
		if got := read("operator.w", aPath).Header().Get("RateLimit-Policy"); got != `"caller";q=12;w=12, "tenant";q=20;w=2` {
			t.Errorf("told of %s", got)
		}
	})
}

// Answers of every kind tell what is left, and a client that goes by it is not refused.
func TestH8QuotaIsTold(t *testing.T) {
	bubble(t, httpapi.Options{PerCaller: limit.Rate{PerSecond: 2, Burst: 20}, PerAddress: limit.Rate{PerSecond: 100, Burst: 400}}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		tag := get(t, w.api, aPath, "operator.x").Header().Get("ETag")
		for _, c := range []struct {
			path, token, want string
			code              int
			headers           []string
		}{
			{aPath, "operator.x", `"caller";r=18;t=1`, 304, []string{"If-None-Match", tag}},
			{"/v1/hubs/orders/instances/none", "operator.x", `"caller";r=17;t=2`, 404, nil},
			{aPath + "?x=1", "operator.x", `"caller";r=16;t=2`, 400, nil},
			{"/v1/hubs/orders/instances", "operator.x", `"caller";r=6;t=7`, 200, nil},
			{"/v1/hubs/orders/instances", "operator.x", `"caller";r=0;t=2`, 429, nil},
			{aPath, "rubbish", `"address";r=393;t=1`, 401, nil},
		} {
			got := get(t, w.api, c.path, c.token, c.headers...)
			if told := got.Header().Get("RateLimit"); got.Code != c.code || told != c.want {
				t.Errorf("%s: got %d, told %s, want %d and %s", c.path, got.Code, told, c.code, c.want)
			}
			if got := got.Header().Get("RateLimit-Policy"); got != `"caller";q=20;w=10, "address";q=400;w=4` {
				t.Errorf("%s: told of %s", c.path, got)
			}
		}
		v := w.view(t, aPath, "operator.x")
		v.bytes()
		if got := v.answer(); got.Code != 200 || got.Header().Get("RateLimit") != `"caller";r=5;t=8` {
			t.Errorf("a stream: got %d, told %s", got.Code, got.Header().Get("RateLimit"))
		}
		for i := range 200 {
			got := get(t, w.api, aPath, "operator.y")
			var left, window int
			if _, err := fmt.Sscanf(got.Header().Get("RateLimit"), `"caller";r=%d;t=%d`, &left, &window); err != nil || got.Code != 200 {
				t.Fatalf("request %d of who goes by it: got %d, %v", i, got.Code, err)
			}
			time.Sleep(time.Duration(window) * time.Second / time.Duration(max(left, 1))) // fake time
		}
	})
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		if h := get(t, w.api, aPath, "operator.x").Header(); h.Get("RateLimit")+h.Get("RateLimit-Policy") != "" {
			t.Errorf("without limits: %v", h)
		}
	})
}

// Whoever floods from one address is refused before a token is looked at; neighbours in one's own network of IPv6 are the same.
func TestH7AddressIsLimitedBeforeAuthentication(t *testing.T) {
	bubble(t, httpapi.Options{PerAddress: limit.Rate{PerSecond: 1, Burst: 3}}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		for i, token := range []string{"", "expired", "operator.x"} {
			if got := do(t, w.api, from(fmt.Sprintf("192.0.2.1:%d", i), newRequest("GET", aPath, token))); got.Code == 429 {
				t.Errorf("%q: got %d", token, got.Code)
			}
		}
		for _, token := range []string{"", "rubbish", "operator.x", "operator.y"} {
			wantProblem(t, token, do(t, w.api, from("192.0.2.1:99", newRequest("GET", aPath, token))), 429, "too-many", "")
		}
		if got := do(t, w.api, from("192.0.2.2:99", newRequest("GET", aPath, "operator.x"))); got.Code != 200 {
			t.Errorf("another address: got %d %s", got.Code, got.Body)
		}
		for i := range 3 {
			if got := do(t, w.api, from(fmt.Sprintf("[2001:db8::%d]:1", i), newRequest("GET", aPath, "operator.x"))); got.Code != 200 {
				t.Errorf("IPv6: got %d %s", got.Code, got.Body)
			}
		}
		wantProblem(t, "IPv6", do(t, w.api, from("[2001:db8::ffff]:1", newRequest("GET", aPath, "operator.x"))), 429, "too-many", "")
		if n := w.metric(t, "httpapi_limited_total", "address"); n != 5 {
			t.Errorf("counted %v, want 6", n)
		}
	})
}

func TestGuessingIsSlowedDown(t *testing.T) {
	for name, guess := range map[string]*http.Request{
		"token":  newRequest("GET", aPath, "rubbish"),
		"ticket": newRequest("GET", aPath+"?ticket=rubbish", "", "Accept", "text/event-stream"),
		"header": newRequest("GET", aPath, "", "Authorization", "Bearer a b"),
	} {
		failures := limit.NewFailures(limit.Rate{PerSecond: 1, Burst: 5})
		bubble(t, httpapi.Options{Failures: failures}, func(t *testing.T, w *world) {
			w.store.put(current("a"))
			guess := guess.Clone(t.Context())
			for _, harmless := range []string{"", "expired", "operator.x"} {
				for range 20 {
					if got := get(t, w.api, aPath, harmless); got.Code == 429 {
						t.Fatalf("%s: %q: got 429", name, harmless)
					}
				}
			}
			for range 5 {
				if got := do(t, w.api, guess); got.Code != 401 {
					t.Errorf("%s: got %d %s", name, got.Code, got.Body)
				}
			}
			refused := do(t, w.api, guess)
			wantProblem(t, name, refused, 429, "too-many", "")
			wantProblem(t, "whatever it shows", get(t, w.api, aPath, "operator.x"), 429, "too-many", "")
			if got := do(t, w.api, from("198.51.100.7:1", newRequest("GET", aPath, "operator.x"))); got.Code != 200 {
				t.Errorf("another address: got %d %s", got.Code, got.Body)
			}
			time.Sleep(retryAfter(t, refused.Header())) // fake time
			if got := get(t, w.api, aPath, "operator.x"); got.Code != 200 {
				t.Errorf("%s: who came back: got %d %s", name, got.Code, got.Body)
			}
			if n := w.metric(t, "httpapi_limited_total", "failures"); n != 2 {
				t.Errorf("%s: counted %v, want 2", name, n)
			}
		})
	}
}

// BenchmarkUnchanged is what a read that finds nothing new of one instance costs beside the store and the network, without limits and with those that a caller and an
// address have by default, of which each answer tells.
func BenchmarkUnchanged(b *testing.B) {
	for name, o := range map[string]httpapi.Options{
		"unlimited": {}, "limited": {PerCaller: limit.PerSecond(1e9), PerAddress: limit.PerSecond(1e9)},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, o, current("a"))
			request := newRequest(http.MethodGet, aPath, "operator.x")
			tag := get(b, w.api, aPath, "operator.x").Header().Get("ETag")
			request.Header.Set("If-None-Match", tag)
			b.ReportAllocs()
			for b.Loop() {
				recorder := httptest.NewRecorder()
				if w.api.ServeHTTP(recorder, request); recorder.Code != http.StatusNotModified {
					b.Fatal(recorder.Code)
				}
			}
		})
	}
}
