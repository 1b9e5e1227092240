package httpapi_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

const dropIn = "/runtime/webhooks/durabletask/instances/"

func TestDropInAnswersEachStatusAsDurableFunctionsDoes(t *testing.T) {
	for runtimeStatus, want := range map[status.RuntimeStatus][2]int{ // and when failures are to be 500
		status.Pending:        {202, 202},
		status.Running:        {202, 202},
		status.Suspended:      {202, 202},
		status.ContinuedAsNew: {202, 202},
		status.Completed:      {200, 200},
		status.Failed:         {200, 500},
		status.Terminated:     {200, 200},
		status.Canceled:       {200, 200},
	} {
		r := record("a")
		r.Lifecycle.RuntimeStatus = runtimeStatus
		w := newWorld(t, httpapi.Options{}, r)
		bodies := map[string]bool{}
		for i, query := range []string{"", "?returnInternalServerErrorOnFailure=true", "?returnInternalServerErrorOnFailure=TRUE", "?returninternalservererroronfailure=True"} {
			got := get(t, w.api, dropIn+"a"+query, "operator.x")
			if code := want[min(i, 1)]; got.Code != code {
				t.Errorf("%s%s: got %d, want %d", runtimeStatus, query, got.Code, code)
			}
			if running := got.Code == 202; (got.Header().Get("Location") != "") != running || (got.Header().Get("Retry-After") != "") != running {
				t.Errorf("%s: headers %v", runtimeStatus, got.Header())
			}
			if got.Header().Get("Cache-Control") != "private, no-cache" || !strings.Contains(got.Body.String(), `"runtimeStatus":"`+string(runtimeStatus)+`"`) {
				t.Errorf("%s: got %v %s", runtimeStatus, got.Header(), got.Body)
			}
			bodies[got.Body.String()] = true
		}
		if len(bodies) != 1 {
			t.Errorf("%s: the body depends on how failures are answered: %v", runtimeStatus, bodies)
		}
		for _, query := range []string{"?returnInternalServerErrorOnFailure=false", "?returnInternalServerErrorOnFailure=1", "?returnInternalServerErrorOnFailure="} {
			if got := get(t, w.api, dropIn+"a"+query, "operator.x"); got.Code != want[0] {
				t.Errorf("%s%s: got %d, want %d", runtimeStatus, query, got.Code, want[0])
			}
		}
	}
}

func TestDropInBodyAlwaysHasAllMembers(t *testing.T) {
	whole := record("a")
	whole.Generation = 0
	whole.Lifecycle = status.Lifecycle{RuntimeStatus: status.Completed, Output: json.RawMessage(`{"b":1}`), Position: status.Position{Class: status.Declared}}
	whole.CreatedTime = time.Date(2026, 1, 2, 3, 4, 5, 999_999_999, time.FixedZone("", 3600))
	whole.LastUpdatedTime = time.Date(2026, 1, 2, 23, 4, 5, 1, time.FixedZone("", -3600))
	bare := &status.Record{Hub: "orders", InstanceID: "a", Version: 1_700_000_000_999_999}
	generation := &status.Record{Hub: "orders", InstanceID: "a", Version: 1_700_000_000_999_999, Generation: 1_600_000_000_999}
	failed := record("a")
	failed.Lifecycle.RuntimeStatus, failed.Lifecycle.Failure = status.Failed, &status.Failure{Type: "X", Message: "\"broken\"\n\u2028é\x00"}
	silent := record("a")
	silent.Lifecycle.RuntimeStatus, silent.Lifecycle.Failure = status.Failed, &status.Failure{Type: "X"}
	both := record("a")
	both.Lifecycle.RuntimeStatus, both.Lifecycle.Failure, both.Lifecycle.Output = status.Failed, &status.Failure{Message: "x"}, json.RawMessage(`[1]`)
	const created = `"createdTime":"2026-11-22T05:00:00Z","lastUpdatedTime":"2026-11-22T05:12:32Z"`
	for name, tt := range map[string]struct {
		record *status.Record
		token  string
		want   string
	}{
		"whole": {whole, "operator.x", `{"name":"ProcessOrder","instanceId":"a","runtimeStatus":"Completed","input":null,"customStatus":{"internalCost":7,"percent":60},"output":{"b":1},` +
			`"createdTime":"2026-01-02T02:04:05Z","lastUpdatedTime":"2026-01-03T00:04:05Z"}`},
		"to the customer": {whole, "customer.u-1", `{"name":"ProcessOrder","instanceId":"a","runtimeStatus":"Completed","input":null,"customStatus":{"percent":60},"output":null,` +
			`"createdTime":"2026-01-02T02:04:05Z","lastUpdatedTime":"2026-01-03T00:04:05Z"}`},
		"bare": {bare, "operator.x", `{"name":"","instanceId":"a","runtimeStatus":"Running","input":null,"customStatus":null,"output":null,` +
			`"createdTime":"2023-11-14T22:13:20Z","lastUpdatedTime":"2023-11-14T22:13:20Z"}`},
		"with a generation": {generation, "operator.x", `{"name":"","instanceId":"a","runtimeStatus":"Running","input":null,"customStatus":null,"output":null,` +
			`"createdTime":"2020-09-13T12:26:40Z","lastUpdatedTime":"2023-11-14T22:13:20Z"}`},
		"failed": {failed, "operator.x", `{"name":"ProcessOrder","instanceId":"a","runtimeStatus":"Failed","input":null,"customStatus":{"internalCost":7,"percent":60},` +
			`"output":"\"broken\"\n` + "\u2028" + `é\u0000",` + created + `}`},
		"failed, to the customer": {failed, "customer.u-1", `{"name":"ProcessOrder","instanceId":"a","runtimeStatus":"Failed","input":null,"customStatus":{"percent":60},"output":null,` + created + `}`},
		"failed without a text":   {silent, "operator.x", `{"name":"ProcessOrder","instanceId":"a","runtimeStatus":"Failed","input":null,"customStatus":{"internalCost":7,"percent":60},"output":"",` + created + `}`},
		"failed with an output":   {both, "operator.x", `{"name":"ProcessOrder","instanceId":"a","runtimeStatus":"Failed","input":null,"customStatus":{"internalCost":7,"percent":60},"output":[1],` + created + `}`},
	} {
		w := newWorld(t, httpapi.Options{}, tt.record)
		if got := get(t, w.api, dropIn+"a", tt.token).Body.String(); got != tt.want+"\n" {
			t.Errorf("%s: got  %s\nwant %s", name, got, tt.want)
		}
	}
}

func TestDropInLocationIsWhereTheCallerAsked(t *testing.T) {
	r := record("a b:ü")
	const path, asked = dropIn + "a%20b:%C3%BC", "http://example.com" + dropIn + "a%20b:%C3%BC"
	w := newWorld(t, httpapi.Options{}, r)
	for query, want := range map[string]string{
		"":                "",
		"?taskHub=orders": "?taskHub=orders",
		"?taskHub=orders&connection=S&code=a%3D=": "?connection=S&taskHub=orders",
		"?code=secret":                            "",
		"?Code=secret&CODE=secret&code=secret":    "",
		"?showInput=true&showHistory=1&unknown=x": "?showHistory=1&showInput=true&unknown=x",
		"?a=%0d%0aX:y&b=%22%3E":                   "?a=%0D%0AX%3Ay&b=%22%3E",
		"?a=%zz&b=1;c=2&d=3":                      "?d=3",
		"?":                                       "",
		"?taskhub=orders":                         "?taskhub=orders",
	} {
		got := get(t, w.api, path+query, "operator.x")
		if got.Code != 202 || got.Header().Get("Location") != asked+want {
			t.Errorf("%s: got %d Location %q, want %q", query, got.Code, got.Header().Get("Location"), asked+want)
		}
	}
	for name, tt := range map[string]struct {
		change func(*http.Request)
		want   string
	}{
		"over TLS":         {func(r *http.Request) { r.TLS = &tls.ConnectionState{} }, strings.Replace(asked, "http:", "https:", 1)},
		"over a proxy's":   {func(r *http.Request) { r.URL.Scheme = "https" }, strings.Replace(asked, "http:", "https:", 1)}, // set by package shell
		"another host":     {func(r *http.Request) { r.Host = "h:8080" }, strings.Replace(asked, "example.com", "h:8080", 1)},
		"no host":          {func(r *http.Request) { r.Host = "" }, path}, // HTTP/1.0
		"forwarded":        {func(r *http.Request) { r.Header.Set("X-Forwarded-Host", "evil") }, asked},
		"forwarded scheme": {func(r *http.Request) { r.Header.Set("X-Forwarded-Proto", "https") }, asked},
	} {
		r := newRequest(http.MethodGet, path, "operator.x")
		tt.change(r)
		if got := do(t, w.api, r).Header().Get("Location"); got != tt.want {
			t.Errorf("%s: got %q, want %q", name, got, tt.want)
		}
	}
	w = newWorld(t, httpapi.Options{PublicURL: "https://public.example/prefix"}, r)
	request := newRequest(http.MethodGet, path+"?taskHub=orders", "operator.x")
	request.Host = "evil.example"
	if got := do(t, w.api, request).Header().Get("Location"); got != "https://public.example/prefix"+path+"?taskHub=orders" {
		t.Errorf("behind a prefix: got %q", got)
	}
}

func TestDropInTaskHubIsTheHub(t *testing.T) {
	elsewhere := record("b")
	elsewhere.Hub = "other"
	w := newWorld(t, httpapi.Options{}, record("a"), elsewhere)
	for path, want := range map[string]int{
		"a":                         202,
		"b":                         404,
		"b?taskHub=other":           202,
		"b?taskhub=other":           202,
		"b?TASKHUB=other":           202,
		"a?taskHub=":                202,
		"a?taskHub=orders":          202,
		"a?taskHub=a.b":             404,
		"a?taskHub=" + rep("h", 65): 404,
		"a?taskHub=%00":             404,
		"a?taskHub=Orders":          404,
		"@a":                        404,
		"a%2Fb":                     404,
		rep("a", 257):               404,
		"missing":                   404,
	} {
		if got := get(t, w.api, dropIn+path, "operator.x"); got.Code != want {
			t.Errorf("%s: got %d, want %d", path, got.Code, want)
		}
	}
	w.store.took()
	for _, path := range []string{"a?taskHub=a.b", "a?taskHub=%00", "@a", "a%2Fb"} {
		get(t, w.api, dropIn+path, "operator.x")
	}
	if n := w.store.took(); n != 0 {
		t.Errorf("the store was asked %d times for what nobody can have stored", n)
	}
	if got := get(t, w.api, dropIn+"a", "customer.u-2"); got.Code != 404 || got.Body.String() != get(t, w.api, dropIn+"missing", "customer.u-2").Body.String() {
		t.Errorf("not theirs: got %d %s", got.Code, got.Body)
	}
	wantProblem(t, "a key is no token", get(t, w.api, dropIn+"a?code=secret", ""), 401, "unauthenticated", "")
	for _, accept := range []string{"text/event-stream", "text/html", "*/*"} {
		if got := get(t, w.api, dropIn+"a", "operator.x", "Accept", accept, "If-None-Match", "*", "Prefer", "wait=30"); got.Code != 202 {
			t.Errorf("Accept %s: got %d", accept, got.Code)
		}
	}
}

func TestHostileHostBreaksNothing(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	s := serve(t, w.api, 0)
	const head = "Authorization: Bearer operator.x\r\nConnection: close\r\n\r\n"
	for _, start := range []string{
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a/../b?c#d\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a\" onload=x\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a\r\n b\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a\rX: y\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a\x00b\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a@b\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
		"GET " + dropIn + "a HTTP/1.1\r\nHost: \r\n",
		"GET " + dropIn + "a HTTP/1.0\r\n",
		"GET http://user:password@host" + dropIn + "a HTTP/1.1\r\nHost: x\r\n",
		"GET http://a\"<>b" + dropIn + "a HTTP/1.1\r\nHost: x\r\n",
		"GET http://a%0d%0aX:y" + dropIn + "a HTTP/1.1\r\nHost: x\r\n",
		"GET //evil.example" + dropIn + "a HTTP/1.1\r\nHost: x\r\n",
		"GET " + dropIn + "a?\rX:y HTTP/1.1\r\nHost: x\r\n",
	} {
		_, answer := dial(t, s, start+head)
		r, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Errorf("%q: %v", start, err)
			continue
		}
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
		location := r.Header.Get("Location")
		if r.Header.Get("X") != "" || strings.ContainsAny(location, "\"<> @\r\n") || strings.Contains(location, "evil") && r.StatusCode == 202 {
			t.Errorf("%q: got %d %v", start, r.StatusCode, r.Header)
		}
	}
}

func TestReadsHaveNoOtherMethods(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	for path, allow := range map[string]string{
		aPath: "GET, HEAD", "/v1/hubs/orders/instances/a": "GET, HEAD", "/v1/instances": "GET, HEAD", "/v1/hubs/orders/instances?id=a": "GET, HEAD",
		dropIn + "a": "GET, HEAD", "/v1/tickets": "POST",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodTrace, "PROPFIND"} {
			if strings.Contains(allow, method) {
				continue
			}
			got := do(t, w.api, newRequest(method, path, "operator.x"))
			wantProblem(t, method+" "+path, got, 405, "method-not-allowed", "")
			if a := got.Header().Get("Allow"); a != allow {
				t.Errorf("%s %s: Allow %q, want %q", method, path, a, allow)
			}
		}
	}
	for _, path := range []string{
		"/", "/v1", "/v1/", "/v1/nothing", "/v1/hubs", "/v1/hubs/orders", "/v1/instances/", "/v1/instances/a/", "/v1/instances/a/b", "/metrics",
		"/runtime", "/runtime/webhooks/durabletask/instances", dropIn + "a/raiseEvent/x", dropIn + "a/terminate", "/v1/instances/%2e%2e/x", "/V1/instances/a",
	} {
		wantProblem(t, path, get(t, w.api, path, "operator.x"), 404, "not-found", "")
	}
}

func TestRetryAfterFollowsTheInstance(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		for _, tt := range []struct {
			interval, silent time.Duration
			want             string
		}{
			{0, 0, "1"},
			{0, 700 * time.Millisecond, "1"},
			{0, 1001 * time.Millisecond, "2"},
			{300 * time.Millisecond, 0, "1"},
			{time.Second, 0, "1"},
			{time.Second + 1, 0, "2"},
			{10 * time.Second, time.Second, "10"},
			{10 * time.Second, 20 * time.Second, "20"}, // silent for longer than usual
			{59*time.Second + 1, 0, "60"},
			{time.Hour, 0, "60"},
			{0, time.Hour, "60"},
			{0, -time.Hour, "1"}, // by a clock that is behind
		} {
			r := record("a")
			r.Version, r.Interval = time.Now().Add(-tt.silent).UnixMicro(), tt.interval
			w.store.mu.Lock()
			w.store.records[r.Key()] = r
			w.store.mu.Unlock()
			for _, got := range []string{
				get(t, w.api, aPath, "operator.x").Header().Get("Retry-After"),
				get(t, w.api, aPath, "operator.x", "If-None-Match", "*").Header().Get("Retry-After"),
				get(t, w.api, "/v1/instances?id=a", "operator.x").Header().Get("Retry-After"),
				get(t, w.api, "/v1/instances", "operator.x", "If-None-Match", "*").Header().Get("Retry-After"),
				get(t, w.api, dropIn+"a", "operator.x").Header().Get("Retry-After"),
			} {
				if got != tt.want {
					t.Errorf("%s, silent for %s: got %q, want %q", tt.interval, tt.silent, got, tt.want)
				}
			}
		}
		ended := current("a")
		ended.Lifecycle.RuntimeStatus, ended.Interval = status.Completed, time.Second
		w.store.put(ended)
		for _, path := range []string{aPath, "/v1/instances?id=a", "/v1/instances", dropIn + "a"} {
			if got := get(t, w.api, path, "operator.x").Header().Get("Retry-After"); got != "" {
				t.Errorf("%s: has ended, Retry-After %q", path, got)
			}
		}
	})
}

func TestSilentInstancesAreStale(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.setPolicy(t, policyOf(strings.Replace(onlyOperators, "audiences:", "staleAfter: 60s\n        audiences:", 1)))
		r := current("a")
		w.store.put(r)
		first := get(t, w.api, aPath, "operator.x")
		after := fmt.Sprintf("%s?after=%d", aPath, r.Version)
		a := w.ask(t, after, "operator.x", "Prefer", "wait=55")
		time.Sleep(10 * time.Second)
		b := w.ask(t, after, "operator.x", "Prefer", "wait=55")
		time.Sleep(50*time.Second - time.Millisecond)
		a.want("who has waited while it was not", 304)
		if got := get(t, w.api, aPath, "operator.x", "If-None-Match", first.Header().Get("ETag")); got.Code != 304 {
			t.Errorf("just before: got %d", got.Code)
		}
		time.Sleep(time.Millisecond)
		stale := get(t, w.api, aPath, "operator.x", "If-None-Match", first.Header().Get("ETag"))
		var view struct {
			Stale   bool
			Version int64
		}
		if err := json.Unmarshal(stale.Body.Bytes(), &view); err != nil || stale.Code != 200 || !view.Stale || view.Version != r.Version+1 {
			t.Errorf("then: got %d %s", stale.Code, stale.Body)
		}
		time.Sleep(2 * time.Second)
		b.want("who waits meanwhile", 200)
		for _, path := range []string{"/v1/instances?id=a", "/v1/instances"} {
			if got := get(t, w.api, path, "operator.x").Body.String(); !strings.Contains(got, `"stale":true`) {
				t.Errorf("%s: got %s", path, got)
			}
		}
		if got := get(t, w.api, after, "operator.x"); got.Code != 200 {
			t.Errorf("after what was before: got %d", got.Code)
		}
		time.Sleep(time.Hour)
		if got := get(t, w.api, fmt.Sprintf("%s?after=%d", aPath, r.Version+1), "operator.x"); got.Code != 304 {
			t.Errorf("after that: got %d, want it to be news once", got.Code)
		}
		if got := get(t, w.api, aPath, "operator.x", "If-None-Match", stale.Header().Get("ETag")); got.Code != 304 {
			t.Errorf("with its tag: got %d", got.Code)
		}
		w.ask(t, fmt.Sprintf("%s?after=%d", aPath, r.Version+1), "operator.x", "Prefer", "wait=5").want("who waits for more", 0)
		ended := changed(current("a"), func(r *status.Record) { r.Lifecycle.RuntimeStatus = status.Completed })
		w.store.put(ended)
		synctest.Wait()
		time.Sleep(time.Hour)
		if got := get(t, w.api, aPath, "operator.x").Body.String(); strings.Contains(got, "stale") {
			t.Errorf("has ended: got %s", got)
		}
	})
}
