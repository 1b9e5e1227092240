package httpapi_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

func record(id string) *status.Record {
	return &status.Record{
		Hub: "orders", InstanceID: id, Name: "ProcessOrder", Generation: 1,
		Lifecycle: status.Lifecycle{Position: status.Position{Class: status.Declared, N: 1}, RuntimeStatus: status.Running},
		Progress: status.Progress{
			Position: status.Position{Class: status.Declared, N: 1}, CustomStatus: json.RawMessage(`{"internalCost":7,"percent":60}`),
		},
		CreatedTime: time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC),
		Labels:      map[string]string{"owner": "u-1"}, Version: 1795324352990114,
	}
}

func TestCallerSeesTheViewOfTheirAudience(t *testing.T) {
	h, _ := newAPI(t, record("a"))
	for token, want := range map[string]string{
		"operator.x":   `{"internalCost":7,"percent":60}`,
		"customer.u-1": `{"percent":60}`,
	} {
		w := get(t, h, "/v1/hubs/orders/instances/a", token)
		var view struct {
			Hub, InstanceID, RuntimeStatus string
			CustomStatus                   json.RawMessage
			Version                        int64
		}
		if err := json.Unmarshal(w.Body.Bytes(), &view); err != nil {
			t.Fatalf("%s: %v in %s", token, err, w.Body)
		}
		if w.Code != 200 || view.InstanceID != "a" || view.Hub != "orders" || view.RuntimeStatus != "Running" ||
			string(view.CustomStatus) != want || view.Version != 1795324352990114 {
			t.Errorf("%s: got %d %s", token, w.Code, w.Body)
		}
		if cc := w.Header().Get("Cache-Control"); cc != "private, no-cache" {
			t.Errorf("%s: Cache-Control %q", token, cc)
		}
		if vary := w.Header().Get("Vary"); !strings.Contains(vary, "Authorization") {
			t.Errorf("%s: Vary %q", token, vary)
		}
	}
}

func TestPathWithoutHubMeansTheDefaultHub(t *testing.T) {
	h, _ := newAPI(t, record("a"))
	if w := get(t, h, "/v1/instances/a", "operator.x"); w.Code != 200 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

func TestNotYoursIsAnsweredLikeNotThere(t *testing.T) {
	conflicting := record("conflicting")
	conflicting.Labels, conflicting.Conflicts = nil, []string{"owner"}
	h, _ := newAPI(t, record("a"), conflicting, &status.Record{Hub: "orders", InstanceID: "purged", Purged: true, Version: 1})
	want := get(t, h, "/v1/instances/missing", "customer.u-2")
	if want.Code != 404 {
		t.Fatalf("got %d", want.Code)
	}
	for id, token := range map[string]string{"a": "customer.u-2", "conflicting": "customer.u-1", "purged": "operator.x"} {
		got := get(t, h, "/v1/instances/"+id, token)
		if got.Code != want.Code || got.Body.String() != want.Body.String() || fmt.Sprint(got.Header()) != fmt.Sprint(want.Header()) {
			t.Errorf("%s: got %d %v %s\nwant %d %v %s", id, got.Code, got.Header(), got.Body, want.Code, want.Header(), want.Body)
		}
	}
}

func TestETagAnswersNotModifiedUntilTheViewChanges(t *testing.T) {
	r := record("a")
	h, s := newAPI(t, r)
	etag := get(t, h, "/v1/instances/a", "customer.u-1").Header().Get("ETag")
	for _, field := range []string{etag, strings.TrimPrefix(etag, "W/"), `"x", ` + etag, "*"} {
		w := get(t, h, "/v1/instances/a", "customer.u-1", "If-None-Match", field)
		if w.Code != 304 || w.Body.Len() > 0 || w.Header().Get("ETag") != etag {
			t.Errorf("If-None-Match %s: got %d %s", field, w.Code, w.Body)
		}
	}
	if w := get(t, h, "/v1/instances/a", "customer.u-1", "If-None-Match", `"x"`, "If-None-Match", etag); w.Code != 304 {
		t.Errorf("two fields: got %d", w.Code)
	}
	hidden := *r
	hidden.Progress.CustomStatus, hidden.Version = json.RawMessage(`{"internalCost":8,"percent":60}`), r.Version+1
	s.records[r.Key()] = &hidden
	if w := get(t, h, "/v1/instances/a", "customer.u-1", "If-None-Match", etag); w.Code != 304 {
		t.Errorf("a hidden field changed: got %d, want 304 for who may not see it", w.Code)
	}
	if w := get(t, h, "/v1/instances/a", "operator.x", "If-None-Match", etag); w.Code != 200 {
		t.Errorf("another audience's tag: got %d, want 200", w.Code)
	}
	shown := hidden
	shown.Progress.CustomStatus, shown.Version = json.RawMessage(`{"percent":61}`), r.Version+2
	s.records[r.Key()] = &shown
	if w := get(t, h, "/v1/instances/a", "customer.u-1", "If-None-Match", etag); w.Code != 200 || w.Header().Get("ETag") == etag {
		t.Errorf("a shown field changed: got %d", w.Code)
	}
}

func TestBadRequestsGetTheirProblem(t *testing.T) {
	h, s := newAPI(t, record("a"))
	tests := []struct {
		name, path, token string
		code              int
		slug              string
	}{
		{"no token", "/v1/instances/a", "", 401, "unauthenticated"},
		{"bad token", "/v1/instances/a", "rubbish", 401, "unauthenticated"},
		{"expired token", "/v1/instances/a", "expired", 401, "token-expired"},
		{"hub out of range", "/v1/hubs/a.b/instances/a", "operator.x", 400, "invalid"},
		{"id with a slash", "/v1/instances/" + url.PathEscape("a/b"), "operator.x", 400, "invalid"},
		{"id with a control character", "/v1/instances/a%00b", "operator.x", 400, "invalid"},
		{"id that is not UTF-8", "/v1/instances/a%ff", "operator.x", 400, "invalid"},
		{"id too long", "/v1/instances/" + strings.Repeat("a", 257), "operator.x", 400, "invalid"},
		{"entity", "/v1/instances/@a", "operator.x", 400, "invalid"},
		{"unknown path", "/v1/nothing", "operator.x", 404, "not-found"},
	}
	for _, tt := range tests {
		wantProblem(t, tt.name, get(t, h, tt.path, tt.token), tt.code, tt.slug, "*")
	}
	two := httptest.NewRequest(http.MethodGet, "/v1/instances/a", nil)
	two.Header["Authorization"] = []string{"Bearer operator.x", "Bearer operator.x"}
	wantProblem(t, "two Authorization headers", do(t, h, two), 401, "unauthenticated", "")

	s.err = fmt.Errorf("dial: %w", status.ErrUnavailable)
	wantProblem(t, "redis away", get(t, h, "/v1/instances/a", "operator.x"), 503, "unavailable", "")
	s.err = errors.New("a secret")
	wantProblem(t, "a mistake of ours", get(t, h, "/v1/instances/a", "operator.x"), 500, "internal", "")
}

func TestEveryValidIDCanBeAskedFor(t *testing.T) {
	for _, id := range []string{"Bestellung-Größe-17", "订单-2026-0042", "tenant:contoso:9", "a 15 (copy)", "a%2Fb", "a+b=c,d;e'f&g", "{tag}~._-"} {
		h, _ := newAPI(t, record(id))
		if w := get(t, h, "/v1/instances/"+url.PathEscape(id), "operator.x"); w.Code != 200 {
			t.Errorf("%q: got %d %s", id, w.Code, w.Body)
		}
	}
}

func TestHeadHasHeadersOnly(t *testing.T) {
	h, _ := newAPI(t, record("a"))
	srv := httptest.NewServer(h)
	defer srv.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, srv.URL+"/v1/instances/a", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer operator.x")
	answer, err := srv.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != 200 || answer.Header.Get("ETag") == "" || answer.ContentLength <= 0 {
		t.Errorf("got %d %v", answer.StatusCode, answer.Header)
	}
}

// untilWhen is a response that knows by when it must be written.
type untilWhen struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (u *untilWhen) SetWriteDeadline(at time.Time) error {
	u.deadline = at
	return nil
}

func TestAnswersMustBeReadInTime(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		big := current("big")
		big.Progress.CustomStatus = json.RawMessage(`"` + strings.Repeat("x", 64<<10) + `"`)
		w.store.put(big)
		for path, least := range map[string]time.Duration{
			aPath:                    10 * time.Second,
			"/v1/instances/b":        10 * time.Second,
			"/v1/instances?id=a":     10 * time.Second,
			"/v1/instances?x":        10 * time.Second,
			"/v1/instances/big":      11 * time.Second, // at 64 KiB/s
			"/v1/instances?id=big":   11 * time.Second,
			"/v1/instances?limit=99": 11 * time.Second,
		} {
			u := &untilWhen{ResponseRecorder: httptest.NewRecorder()}
			r := newRequest(http.MethodGet, path, "operator.x")
			w.api.ServeHTTP(u, r)
			check(t, r, u.ResponseRecorder)
			if left := time.Until(u.deadline); left < least || left > least+100*time.Millisecond {
				t.Errorf("%s: must be read within %s, want %s", path, left, least)
			}
		}
		u := &untilWhen{ResponseRecorder: httptest.NewRecorder()}
		w.api.ServeHTTP(u, newRequest(http.MethodGet, aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=30"))
		if left := time.Until(u.deadline); left != 10*time.Second || u.Code != 304 {
			t.Errorf("%d, must be read within %s of the end of the wait", u.Code, left)
		}
	})
}
