package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

// ticket gets one; header holds names and values in turn.
func (w *world) ticket(t testing.TB, token string, header ...string) string {
	t.Helper()
	got := do(t, w.api, newRequest(http.MethodPost, "/v1/tickets", token, header...))
	var body struct {
		Ticket  string
		Expires time.Time
	}
	if err := json.Unmarshal(got.Body.Bytes(), &body); err != nil || got.Code != 201 || body.Ticket == "" {
		t.Fatalf("got %d %s", got.Code, got.Body)
	}
	if left := time.Until(body.Expires); left <= 0 || left > 30*time.Second {
		t.Errorf("expires in %s", left)
	}
	if cc := got.Header().Get("Cache-Control"); cc != "no-store" {
		t.Errorf("Cache-Control %q", cc)
	}
	return body.Ticket
}

func TestTicketOpensOneStream(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		for _, tt := range []struct {
			name         string
			issued, used []string
			good         bool
		}{
			{"by a backend", nil, nil, true},
			{"by a backend, for a page", nil, []string{"Origin", "https://a.example"}, true},
			{"by a page", []string{"Origin", "https://a.example"}, []string{"Origin", "https://a.example"}, true},
			{"by a page of our own origin", []string{"Origin", "https://a.example"}, []string{"Sec-Fetch-Site", "same-origin"}, true},
			{"by another page", []string{"Origin", "https://a.example"}, []string{"Origin", "https://b.example"}, false},
			{"by no page", []string{"Origin", "https://a.example"}, nil, false},
		} {
			for _, path := range []string{aPath + "?ticket=", "/v1/instances?id=a&ticket=", "/v1/instances?label.owner=u-1&ticket=", "/v1/hubs/orders/instances/a?minInterval=1&ticket="} {
				path += w.ticket(t, "customer.u-1.100", tt.issued...)
				v := w.view(t, path, "", tt.used...)
				time.Sleep(100 * time.Millisecond)
				if v.bytes(); (v.answer().Code == 200) != tt.good {
					t.Errorf("%s: got %d", tt.name, v.answer().Code)
				}
				if tt.good && !slices.ContainsFunc(v.take(), func(e event) bool { return e.String() == "status a 100" }) {
					t.Errorf("%s: %s says nothing", tt.name, path)
				}
				again := w.view(t, path, "", tt.used...)
				again.bytes()
				wantProblem(t, tt.name+", again", again.answer(), 401, "unauthenticated", "")
				v.leave()
				v.ended()
			}
		}
	})
}

func TestStreamOfATicketEndsWithItsToken(t *testing.T) {
	bubble(t, httpapi.Options{MaxPerCaller: 1}, func(t *testing.T, w *world) {
		v := w.view(t, aPath+"?ticket="+w.ticket(t, "customer.u-1.60"), "")
		time.Sleep(60*time.Second - time.Millisecond)
		if v.ended() {
			t.Error("ended with the ticket")
		}
		other := w.view(t, aPath, "customer.u-1")
		if other.bytes(); other.answer().Code != 429 {
			t.Errorf("got %d, want the ticket's stream to count for its caller", other.answer().Code)
		}
		time.Sleep(time.Millisecond)
		if !v.ended() {
			t.Error("goes on without its token")
		}
		ticket := w.ticket(t, "customer.u-1")
		time.Sleep(30 * time.Second)
		late := w.view(t, aPath+"?ticket="+ticket, "")
		late.bytes()
		wantProblem(t, "too late", late.answer(), 401, "unauthenticated", "")
	})
}

func TestMistakesDoNotUseUpATicket(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		ticket := w.ticket(t, "customer.u-1")
		stream := []string{"Accept", "text/event-stream"}
		for path, field := range map[string]string{
			aPath + "?x=1":                         "x",
			aPath + "?after=x":                     "after",
			aPath + "?minInterval=x":               "minInterval",
			aPath + "?ticket=" + ticket:            "ticket", // a second time
			"/v1/instances/@a?":                    "instanceId",
			"/v1/hubs/a.b/instances/a?":            "hub",
			"/v1/hubs/a.b/instances?id=a":          "hub",
			"/v1/instances?id=@a":                  "id",
			"/v1/instances?limit=0":                "limit",
			"/v1/instances?label.=0":               "labels",
			"/v1/instances?id=" + rep("&id=", 100): "id",
		} {
			wantProblem(t, path, get(t, w.api, path+"&ticket="+ticket, "", stream...), 400, "invalid", field)
		}
		path := aPath + "?ticket=" + ticket
		wantProblem(t, "no stream", get(t, w.api, path, ""), 400, "invalid", "ticket")
		wantProblem(t, "no stream of several", get(t, w.api, "/v1/instances?id=a&ticket="+ticket, ""), 400, "invalid", "ticket")
		wantProblem(t, "no stream of a list", get(t, w.api, "/v1/instances?ticket="+ticket, ""), 400, "invalid", "ticket")
		wantProblem(t, "beside a token", get(t, w.api, path, "customer.u-1", stream...), 400, "invalid", "ticket")
		wantProblem(t, "beside another scheme", get(t, w.api, path, "", append(stream, "Authorization", "Basic eDp5")...), 400, "invalid", "ticket")
		wantProblem(t, "bad Last-Event-ID", get(t, w.api, path, "", append(stream, "Last-Event-ID", "x")...), 400, "invalid", "Last-Event-ID")
		wantProblem(t, "in a durable URL", get(t, w.api, dropIn+"a?ticket="+ticket, "", stream...), 401, "unauthenticated", "")
		w.store.fail(status.ErrUnavailable)
		wantProblem(t, "store away", get(t, w.api, path, "", stream...), 503, "unavailable", "")
		w.store.fail(nil)
		v := w.view(t, path, "")
		v.want("after all that", "status a 100")
	})
}

func TestWhatIsNoTicketOpensNothing(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	for _, ticket := range []string{"", "x", "srt_", "srt_" + rep("A", 43), "srt_" + rep("A", 42) + "é", rep("A", 20_000), "\r\n", w.ticket(t, "operator.x")[1:]} {
		got := get(t, w.api, aPath+"?ticket="+url.QueryEscape(ticket), "", "Accept", "text/event-stream")
		wantProblem(t, fmt.Sprintf("%.20q", ticket), got, 401, "unauthenticated", "")
	}
}

func TestTicketsAreForWhoShowsAToken(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	post := func(path, token string, header ...string) *http.Request {
		return newRequest(http.MethodPost, path, token, header...)
	}
	wantProblem(t, "no token", do(t, w.api, post("/v1/tickets", "")), 401, "unauthenticated", "")
	wantProblem(t, "expired", do(t, w.api, post("/v1/tickets", "expired")), 401, "token-expired", "")
	wantProblem(t, "a ticket", do(t, w.api, post("/v1/tickets?ticket="+w.ticket(t, "operator.x"), "")), 401, "unauthenticated", "")
	wantProblem(t, "a parameter", do(t, w.api, post("/v1/tickets?ticket=x", "operator.x")), 400, "invalid", "ticket")
	wantProblem(t, "a long origin", do(t, w.api, post("/v1/tickets", "operator.x", "Origin", "https://"+rep("a", 600))), 400, "invalid", "")
	r := post("/v1/tickets", "operator.x")
	r.Body = http.NoBody
	if got := do(t, w.api, r); got.Code != 201 || !strings.Contains(got.Body.String(), `Z"`) {
		t.Errorf("got %d %s", got.Code, got.Body)
	}
}

func TestStoreThatIsAwayOrHangsIsUnavailable(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		ticket := w.ticket(t, "operator.x")
		requests := map[string]func() *http.Request{
			"one":  func() *http.Request { return newRequest("GET", aPath, "operator.x") },
			"HEAD": func() *http.Request { return newRequest("HEAD", aPath, "operator.x") },
			"who waits": func() *http.Request {
				return newRequest("GET", aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=30")
			},
			"several":    func() *http.Request { return newRequest("GET", "/v1/instances?id=a&id=b", "operator.x") },
			"list":       func() *http.Request { return newRequest("GET", "/v1/instances", "operator.x") },
			"drop-in":    func() *http.Request { return newRequest("GET", dropIn+"a", "operator.x") },
			"new ticket": func() *http.Request { return newRequest("POST", "/v1/tickets", "operator.x") },
			"ticket": func() *http.Request {
				return newRequest("GET", aPath+"?ticket="+ticket, "", "Accept", "text/event-stream")
			},
		}
		for name, request := range requests {
			start := time.Now()
			w.store.fail(fmt.Errorf("dial tcp: %w", status.ErrUnavailable))
			wantProblem(t, name+", away", do(t, w.api, request()), 503, "unavailable", "")
			w.store.fail(nil)
			if took := time.Since(start); took != 0 {
				t.Errorf("%s, away: took %s", name, took)
			}
			w.store.hang(true)
			wantProblem(t, name+", hangs", do(t, w.api, request()), 503, "unavailable", "")
			w.store.hang(false)
			if took := time.Since(start); took != 3*time.Second {
				t.Errorf("%s, hangs: took %s", name, took)
			}
		}
		// A stream opens all the same, and says what there is when it is known.
		w.store.fail(status.ErrUnavailable)
		v := w.view(t, aPath, "operator.x")
		time.Sleep(time.Minute)
		v.want("while it is away")
		w.store.fail(nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if events := v.take(); len(events) != 1 {
			t.Errorf("when it is back: %v", events)
		}
	})
}
