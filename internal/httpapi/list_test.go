package httpapi_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

// many is the answer with several instances.
type many struct {
	Instances []struct {
		InstanceID string
		Version    int64
		Status     int
	}
	Cursor string
}

func manyOf(t testing.TB, w *httptest.ResponseRecorder) (m many) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil || w.Code != 200 || m.Instances == nil {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	return m
}

// String is "a b:404 c …", with … if there is a cursor.
func (m many) String() string {
	var b strings.Builder
	for i, in := range m.Instances {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(in.InstanceID)
		if in.Status != 0 {
			fmt.Fprintf(&b, ":%d", in.Status)
		}
	}
	if m.Cursor != "" {
		b.WriteString(" …")
	}
	return b.String()
}

func owned(id, owner string, version int64) *status.Record {
	r := at(id, version, 1)
	r.Labels["owner"] = owner
	return r
}

func TestBatchAnswersInTheOrderAskedEachOnce(t *testing.T) {
	purged := at("purged", 1, 1)
	purged.Purged = true
	w := newWorld(t, httpapi.Options{}, at("a", 100, 1), at("b", 200, 1), owned("other", "u-2", 300), purged)
	long := strings.Repeat("l", 257)
	for query, want := range map[string]string{
		"id=a":                      "a",
		"id=b&id=a":                 "b a",
		"id=a&id=b&id=a&id=a":       "a b",
		"id=no&id=b":                "no:404 b",
		"id=other&id=purged&id=a":   "other:404 purged:404 a",
		"id=":                       ":400",
		"id=@x&id=a&id=x%2Fy":       "@x:400 a x/y:400",
		"id=@x&id=@x&id=@y":         "@x:400 @y:400",
		"id=a%00b&id=%0d%0aX:%20y":  "a\x00b:400 \r\nX: y:400",
		"id=%ff&id=a":               "\uFFFD:400 a",
		"id=" + long + "&id=a":      strings.Repeat("l", 64) + "…:400 a",
		"id=%E2%80%AEa":             "\u202ea:400",
		"id=a+b&id=a%2Bb&id=a,b":    "a b:404 a+b:404 a,b:404",
		"id=%22%7D%5D&id=%3Cb%3E&":  `"}]:404 <b>:404`,
		"&&id=a&":                   "a",
		"id=a" + rep("&id=a", 99):   "a",
		"id=@a" + rep("&id=@a", 99): "@a:400",
	} {
		w.store.took()
		got := get(t, w.api, "/v1/instances?"+query, "customer.u-1")
		if m := manyOf(t, got); m.String() != want {
			t.Errorf("%.60s: got %q, want %q", query, m, want)
		}
		if n := w.store.took(); n != 1 {
			t.Errorf("%.60s: the store was asked %d times", query, n)
		}
	}
	if got := manyOf(t, get(t, w.api, "/v1/hubs/elsewhere/instances?id=a", "operator.x")).String(); got != "a:404" {
		t.Errorf("another hub: got %q", got)
	}
}

func rep(s string, n int) string { return strings.Repeat(s, n) }

func TestBatchItemsAreTheViewsOfTheirCaller(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, at("a", 100, 1))
	for _, token := range []string{"operator.x", "customer.u-1"} {
		one := strings.TrimSpace(get(t, w.api, aPath, token).Body.String())
		if got := get(t, w.api, "/v1/instances?id=a", token).Body.String(); got != `{"instances":[`+one+"]}\n" {
			t.Errorf("%s: got %s", token, got)
		}
	}
	// Not theirs and not there.
	var answers []string
	for _, id := range []string{"a", "b"} {
		got := get(t, w.api, "/v1/instances?id="+id, "customer.u-2")
		got.Header().Del("ETag") // of another id
		answers = append(answers, strings.ReplaceAll(got.Body.String(), `"`+id+`"`, "x")+fmt.Sprint(got.Header()))
	}
	if answers[0] != answers[1] {
		t.Errorf("not theirs: %s\nnot there:  %s", answers[0], answers[1])
	}
}

func TestBatchIsNotModifiedUntilAViewChanges(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, at("a", 100, 1), at("b", 200, 1))
	const path = "/v1/instances?id=a&id=b&id=c&id=@d"
	etag := get(t, w.api, path, "customer.u-1").Header().Get("ETag")
	step := func(what, token string, code int) {
		t.Helper()
		got := get(t, w.api, path, token, "If-None-Match", etag)
		if got.Code != code {
			t.Errorf("%s: got %d, want %d", what, got.Code, code)
		}
		if code == 200 {
			etag = got.Header().Get("ETag")
		}
	}
	step("at first", "customer.u-1", 304)
	w.store.put(at("b", 201, 1))
	step("hidden", "customer.u-1", 304)
	w.store.put(at("b", 202, 2))
	step("one changes", "customer.u-1", 200)
	step("then", "customer.u-1", 304)
	w.store.put(at("c", 300, 2))
	step("one appears", "customer.u-1", 200)
	w.store.put(owned("a", "u-2", 101))
	step("one is theirs no more", "customer.u-1", 200)
	step("another audience", "operator.x", 200)
	seen := map[string]string{}
	for _, p := range []string{"id=a&id=b", "id=b&id=a", "id=a", "id=a&id=nothing", "id=nothing", "id=@a", "id=@a&id=@b"} {
		tag := get(t, w.api, "/v1/instances?"+p, "operator.x").Header().Get("ETag")
		if seen[tag] != "" {
			t.Errorf("%s has the tag of %s", p, seen[tag])
		}
		seen[tag] = p
	}
	if got := get(t, w.api, path, "operator.x", "If-None-Match", "*").Code; got != 304 {
		t.Errorf("*: got %d", got)
	}
	wantProblem(t, "* beside a tag", get(t, w.api, path, "operator.x", "If-None-Match", `*, "x"`), 400, "invalid", "If-None-Match")
}

func TestBadQueriesAreRefused(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	long := strings.Repeat("é", 10_000)
	for query, field := range map[string]string{
		"?id=a" + rep("&id=a", 100):         "id",
		"?id=a" + rep("&id=a", 9999):        "id",
		"?id=a&limit=3":                     "limit",
		"?id=a&after=3":                     "after",
		"?id=a&cursor=x":                    "cursor",
		"?id=a&label.owner=x":               "label.owner",
		"?id=a&minInterval=1":               "minInterval",
		"?id=a&ticket=x":                    "ticket",
		"?id=%zz":                           "",
		"?id=a;b":                           "",
		"?id=a&x%=1":                        "",
		"?ID=a":                             "ID",
		"?z=1&b=1&y=1":                      "b",
		"?" + long + "=1":                   strings.Repeat("é", 64) + "…",
		"?%ff%0d%0a=1":                      "\uFFFD\r\n",
		"?ticket=":                          "ticket",
		"?ticket=a&ticket=b":                "ticket",
		"?cursor=a&cursor=b":                "cursor",
		"?limit=0":                          "limit",
		"?limit=101":                        "limit",
		"?limit=-1":                         "limit",
		"?limit=":                           "limit",
		"?limit=1e1":                        "limit",
		"?limit=99999999999999999999":       "limit",
		"?limit=1&limit=1":                  "limit",
		"?name=a&name=a":                    "name",
		"?name=" + strings.Repeat("n", 257): "name",
		"?runtimeStatus=":                   "runtimeStatus",
		"?runtimeStatus=Running,":           "runtimeStatus",
		"?runtimeStatus=Running,Runs":       "runtimeStatus",
		"?runtimeStatus=8":                  "runtimeStatus",
		"?runtimeStatus=Running;Failed":     "",
		"?label.=x":                         "labels",
		"?label." + long + "=1":             "labels",
		"?label.a=" + long:                  "labels",
		"?label." + long + "=1&label." + long + "=2": "label." + strings.Repeat("é", 58) + "…",
		"?label.a=1&label.a=1":                       "label.a",
		"?label=1":                                   "label",
		"?labels.a=1":                                "labels.a",
		"?Label.a=1":                                 "Label.a",
		"?label.a=1&label.b=1&label.c=1&label.d=1&label.e=1&label.f=1&label.g=1&label.h=1&label.i=1": "labels",
		"?minInterval=1": "minInterval",
	} {
		w.store.took()
		got := get(t, w.api, "/v1/instances"+query, "operator.x")
		wantProblem(t, query[:min(len(query), 60)], got, 400, "invalid", field)
		if n := w.store.took(); n != 0 {
			t.Errorf("%.60s: the store was asked", query)
		}
		if field != "ticket" {
			wantProblem(t, "without a token", get(t, w.api, "/v1/instances"+query, ""), 401, "unauthenticated", "")
		}
	}
	wantProblem(t, "a bad hub", get(t, w.api, "/v1/hubs/a.b/instances", "operator.x"), 400, "invalid", "hub")
	wantProblem(t, "a bad hub", get(t, w.api, "/v1/hubs/a.b/instances?id=a", "operator.x"), 400, "invalid", "hub")
	wantProblem(t, "a bad hub and no token", get(t, w.api, "/v1/hubs/a.b/instances?id=a", ""), 401, "unauthenticated", "")
}

func TestListSelectsWhatTheCallerMayReadNewestFirst(t *testing.T) {
	ended := at("ended", 130, 1)
	ended.Lifecycle.RuntimeStatus = status.Failed
	named := at("named", 140, 1)
	named.Name = "Größe, & Co"
	odd := at("odd", 150, 1)
	odd.Labels = map[string]string{"owner": "u-1", "a.b": "c.d", "größe": "ü=&", "empty": "", " ": "x"}
	elsewhere := at("elsewhere", 160, 1)
	elsewhere.Hub = "other"
	purged := at("purged", 170, 1)
	purged.Purged = true
	torn := at("torn", 180, 1)
	torn.Labels, torn.Conflicts = map[string]string{}, []string{"owner"}
	w := newWorld(t, httpapi.Options{}, at("a", 100, 1), at("b", 110, 1), owned("other", "u-2", 120), ended, named, odd, elsewhere, purged, torn)
	for query, want := range map[string][2]string{ // to the operator, and to the customer
		"":                        {"torn odd named ended other b a", "odd named ended b a"},
		"?limit=2":                {"torn odd …", "odd named …"},
		"?limit=5":                {"torn odd named ended other …", "odd named ended b a"},
		"?limit=7":                {"torn odd named ended other b a", "odd named ended b a"},
		"?runtimeStatus=Failed":   {"ended", "ended"},
		"?runtimeStatus=failed,5": {"ended", "ended"},
		"?runtimeStatus=Failed&runtimeStatus=Running,Running&limit=100": {"torn odd named ended other b a", "odd named ended b a"},
		"?runtimeStatus=Completed":                                      {"", ""},
		"?name=Gr%C3%B6%C3%9Fe,+%26+Co":                                 {"named", "named"},
		"?name=":                                                        {"torn odd named ended other b a", "odd named ended b a"},
		"?name=groesse":                                                 {"", ""},
		"?label.owner=u-1":                                              {"odd named ended b a", "odd named ended b a"},
		"?label.owner=u-2":                                              {"other", ""},
		"?label.owner=u-1&runtimeStatus=Failed":                         {"ended", "ended"},
		"?label.a.b=c.d":                                                {"odd", ""}, // it is theirs to read, but not to ask for by that
		"?label.gr%C3%B6%C3%9Fe=%C3%BC%3D%26":                           {"odd", ""},
		"?label.empty=":                                                 {"odd", ""},
		"?label.%20=x":                                                  {"odd", ""},
		"?label.none=":                                                  {"", ""},
		"?label.owner=u-1&label.a.b=c.d":                                {"odd", ""},
		"?label.owner=*":                                                {"", ""},
		"?label.owner=u-1%00":                                           {"", ""},
		"?label.owner=%ff":                                              {"", ""},
		"?label.owner=customer":                                         {"", ""}, // a claim of theirs, and no owner
		"?cursor=":                                                      {"torn odd named ended other b a", "odd named ended b a"},
		"?limit=1&runtimeStatus=Failed":                                 {"ended", "ended"},
		"?limit=100&name=ProcessOrder&label.owner=u-1":                  {"odd ended b a", "odd ended b a"},
	} {
		for i, token := range []string{"operator.x", "customer.u-1"} {
			if got := manyOf(t, get(t, w.api, "/v1/instances"+query, token)).String(); got != want[i] {
				t.Errorf("%s: %s: got %q, want %q", token, query, got, want[i])
			}
		}
	}
	if got := manyOf(t, get(t, w.api, "/v1/hubs/other/instances", "operator.x")).String(); got != "elsewhere" {
		t.Errorf("another hub: got %q", got)
	}
	if got := manyOf(t, get(t, w.api, "/v1/instances", "customer.nobody")).String(); got != "" {
		t.Errorf("who may read nothing: got %q", got)
	}
}

func TestListIsNotModifiedUntilAViewChanges(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, at("a", 100, 1), at("b", 200, 1))
	etag := get(t, w.api, "/v1/instances", "customer.u-1").Header().Get("ETag")
	again := func() int { return get(t, w.api, "/v1/instances", "customer.u-1", "If-None-Match", etag).Code }
	if again() != 304 {
		t.Error("at first")
	}
	w.store.put(at("b", 201, 1))
	if again() != 304 {
		t.Error("hidden")
	}
	w.store.put(owned("c", "u-2", 300))
	if again() != 304 {
		t.Error("not theirs")
	}
	w.store.put(at("b", 202, 2))
	if again() != 200 {
		t.Error("one changes")
	}
}

func TestListIsNotModifiedByWhatTheCallerDoesNotSee(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, at("a", 100, 1), at("b", 200, 1), at("c", 50, 1))
	const path = "/v1/instances?limit=1"
	first := get(t, w.api, path, "customer.u-1")
	etag, cursor := first.Header().Get("ETag"), manyOf(t, first).Cursor
	w.store.put(at("b", 201, 1))
	if got := get(t, w.api, path, "customer.u-1", "If-None-Match", etag); got.Code != 304 {
		t.Errorf("a hidden field of the last one has changed: got %d", got.Code)
	}
	if got := manyOf(t, get(t, w.api, path+"&cursor="+cursor, "customer.u-1")).String(); got != "a …" {
		t.Errorf("with the cursor from before: got %q", got)
	}
	w.store.mu.Lock()
	delete(w.store.records, at("a", 1, 1).Key())
	delete(w.store.records, at("c", 1, 1).Key())
	w.store.mu.Unlock()
	if got := get(t, w.api, path, "customer.u-1", "If-None-Match", etag); got.Code != 200 {
		t.Errorf("there are no more behind: got %d", got.Code)
	}
}

// pages follows the cursors of a list, and returns all ids and how many pages there were, at most.
func (w *world) pages(t testing.TB, path, token string, most int) (ids []string, pages int) {
	t.Helper()
	cursor := ""
	for {
		u := path
		if cursor != "" {
			u += "&cursor=" + url.QueryEscape(cursor)
		}
		m := manyOf(t, get(t, w.api, u, token))
		for _, in := range m.Instances {
			ids = append(ids, in.InstanceID)
		}
		if pages++; pages > most {
			t.Fatalf("%s: more than %d pages", path, most)
		}
		if cursor = m.Cursor; cursor == "" {
			return ids, pages
		}
	}
}

func TestPagesHaveEveryInstanceOnce(t *testing.T) {
	const instances = 2500
	w := newWorld(t, httpapi.Options{})
	var want []string
	for i := range instances {
		owner := "u-1"
		if i%7 == 0 {
			owner = "u-2"
		}
		r := owned(fmt.Sprintf("i-%04d", i), owner, int64(1000-i/250)) // 250 at a time
		w.store.records[r.Key()] = r
		want = append(want, r.InstanceID)
	}
	for _, limit := range []int{100, 99, 50, 7} {
		ids, _ := w.pages(t, fmt.Sprintf("/v1/instances?limit=%d", limit), "operator.x", instances)
		if !slices.Equal(ids, want) {
			t.Errorf("limit %d: %d instances in another order, twice or not at all", limit, len(ids))
		}
	}
	ids, _ := w.pages(t, "/v1/instances?limit=13", "customer.u-2", instances)
	if len(ids) != 358 || !slices.IsSorted(ids) {
		t.Errorf("got %d of one in seven", len(ids))
	}
	ids, pages := w.pages(t, "/v1/instances?limit=100", "customer.nobody", 10)
	if len(ids) != 0 || pages != 3 {
		t.Errorf("of nothing that may be read: %d on %d pages", len(ids), pages)
	}
	ids, pages = w.pages(t, "/v1/instances?runtimeStatus=Failed", "operator.x", 10)
	if len(ids) != 0 || pages != 3 {
		t.Errorf("of nothing that is selected: %d on %d pages", len(ids), pages)
	}
}

func TestPageIsBoundedInWhatItAsksTheStore(t *testing.T) {
	w := newWorld(t, httpapi.Options{})
	for i := range 3000 {
		r := owned(fmt.Sprint("i-", i), "u-2", int64(1000+i))
		w.store.records[r.Key()] = r
	}
	w.store.took()
	m := manyOf(t, get(t, w.api, "/v1/instances", "customer.u-1"))
	if n := w.store.took(); m.String() != " …" || n != 5 {
		t.Errorf("got %q after %d calls", m, n)
	}
}

func TestCursorOfAnotherListIsRefused(t *testing.T) {
	w := newWorld(t, httpapi.Options{})
	for i := range 9 {
		for _, hub := range []string{"orders", "other"} {
			r := at(fmt.Sprint("i-", i), int64(1_700_000_000_000_000+i/3), 1)
			r.Hub = hub
			w.store.records[r.Key()] = r
		}
	}
	const list = "limit=1&label.owner=u-1&runtimeStatus=Running,Pending&name=ProcessOrder"
	cursor := manyOf(t, get(t, w.api, "/v1/instances?"+list, "operator.x")).Cursor
	use := func(path, query, token, cursor string) *httptest.ResponseRecorder {
		return get(t, w.api, path+"?"+query+"&cursor="+url.QueryEscape(cursor), token)
	}
	for name, got := range map[string]*httptest.ResponseRecorder{
		"the same":           use("/v1/instances", list, "operator.x", cursor),
		"the hub by name":    use("/v1/hubs/orders/instances", list, "operator.x", cursor),
		"another order":      use("/v1/instances", "name=ProcessOrder&limit=1&runtimeStatus=Pending&runtimeStatus=running,Running&label.owner=u-1", "operator.x", cursor),
		"another limit":      use("/v1/instances", strings.Replace(list, "limit=1", "limit=5", 1), "operator.x", cursor),
		"their other rights": use("/v1/instances", list, "customer.x", cursor),
	} {
		if got.Code != 200 {
			t.Errorf("%s: got %d %s", name, got.Code, got.Body)
		}
	}
	for name, got := range map[string]*httptest.ResponseRecorder{
		"another caller":        use("/v1/instances", list, "operator.y", cursor),
		"another hub":           use("/v1/hubs/other/instances", list, "operator.x", cursor),
		"another label's value": use("/v1/instances", strings.Replace(list, "u-1", "u-2", 1), "operator.x", cursor),
		"another label":         use("/v1/instances", strings.Replace(list, "owner", "ownes", 1), "operator.x", cursor),
		"one label more":        use("/v1/instances", list+"&label.a=b", "operator.x", cursor),
		"no label":              use("/v1/instances", "limit=1&runtimeStatus=Running,Pending&name=ProcessOrder", "operator.x", cursor),
		"another status":        use("/v1/instances", strings.Replace(list, "Pending", "Failed", 1), "operator.x", cursor),
		"another name":          use("/v1/instances", strings.Replace(list, "Process", "process", 1), "operator.x", cursor),
		"no filter":             use("/v1/instances", "", "operator.x", cursor),
		"extended":              use("/v1/instances", list, "operator.x", cursor+"A"),
		"extended by a byte":    use("/v1/instances", list, "operator.x", cursor+"AA"),
		"twice":                 use("/v1/instances", list, "operator.x", cursor+cursor),
		"padded":                use("/v1/instances", list, "operator.x", cursor+"="),
		"broken into lines":     use("/v1/instances", list, "operator.x", cursor[:4]+"\n"+cursor[4:]),
		"text":                  use("/v1/instances", list, "operator.x", "next"),
		"a space":               use("/v1/instances", list, "operator.x", " "),
		"very long":             use("/v1/instances", list, "operator.x", strings.Repeat("A", 20_000)),
		"zeros":                 use("/v1/instances", list, "operator.x", strings.Repeat("A", 16)),
	} {
		wantProblem(t, name, got, 400, "invalid", "cursor")
	}
	for n := 1; n < len(cursor); n++ {
		wantProblem(t, fmt.Sprint("first ", n), use("/v1/instances", list, "operator.x", cursor[:n]), 400, "invalid", "cursor")
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(raw) {
		flipped := slices.Clone(raw)
		flipped[bit/8] ^= 1 << (bit % 8)
		got := use("/v1/instances", list, "operator.x", base64.RawURLEncoding.EncodeToString(flipped))
		wantProblem(t, fmt.Sprint("bit ", bit), got, 400, "invalid", "cursor")
	}
	for i := range cursor { // the last character has bits that mean nothing
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
			if other := cursor[:i] + string(c) + cursor[i+1:]; other != cursor {
				wantProblem(t, other, use("/v1/instances", list, "operator.x", other), 400, "invalid", "cursor")
			}
		}
	}
}

func TestRetryAfterOfSeveralIsTheLeast(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		ended := current("ended")
		ended.Lifecycle.RuntimeStatus = status.Completed
		for i, r := range []*status.Record{current("slow"), current("slower"), ended} {
			r := changed(r, func(r *status.Record) {})
			r.Interval = []time.Duration{30, 40, 0}[i] * time.Second
			w.store.put(r)
		}
		for path, want := range map[string]string{
			"?id=slow&id=slower":                    "30",
			"?id=slower&id=slow&id=ended&id=x":      "30",
			"?id=slower":                            "40",
			"?id=ended":                             "",
			"?id=ended&id=x":                        "",
			"":                                      "30",
			"?runtimeStatus=Completed":              "",
			"?limit=1&runtimeStatus=Running,Failed": "40",
			"?name=x":                               "",
		} {
			if path == "?limit=1&runtimeStatus=Running,Failed" {
				r := current("slower")
				r.Version, r.Interval = r.Version+10, 40*time.Second
				w.store.put(r)
			}
			got := get(t, w.api, "/v1/instances"+path, "operator.x")
			again := get(t, w.api, "/v1/instances"+path, "operator.x", "If-None-Match", got.Header().Get("ETag"))
			if got.Header().Get("Retry-After") != want || again.Code != 304 || again.Header().Get("Retry-After") != want {
				t.Errorf("%s: Retry-After %q, then %d %q, want %q", path, got.Header().Get("Retry-After"), again.Code, again.Header().Get("Retry-After"), want)
			}
		}
	})
}

func FuzzCursor(f *testing.F) {
	w := newWorld(f, httpapi.Options{})
	given := map[string]bool{"": true}
	for i := range 9 {
		r := at(fmt.Sprint("i-", i), int64(1_700_000_000_000_000+i/3), 1)
		w.store.records[r.Key()] = r
	}
	for cursor := ""; ; {
		m := manyOf(f, get(f, w.api, "/v1/instances?limit=1&cursor="+cursor, "operator.x"))
		if cursor = m.Cursor; cursor == "" {
			break
		}
		given[cursor] = true
		f.Add(cursor)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		got := get(t, w.api, "/v1/instances?limit=1&cursor="+url.QueryEscape(cursor), "operator.x")
		if given[cursor] {
			manyOf(t, got)
			return
		}
		wantProblem(t, strconv.Quote(cursor), got, 400, "invalid", "cursor")
	})
}

// FuzzQuery has any query of any resource answered by a view, or by what is wrong with it.
func FuzzQuery(f *testing.F) {
	for _, query := range []string{"id=a&id=b", "label.owner=u-1&limit=3&runtimeStatus=Running,5&name=x", "cursor=x", "after=1", "label.=", "a;b", "%zz", "taskHub=x"} {
		f.Add(query, `W/"x"`, "wait=0")
	}
	w := newWorld(f, httpapi.Options{}, at("a", 100, 1))
	f.Fuzz(func(t *testing.T, query, match, accept string) {
		for _, path := range []string{"/v1/instances", aPath, "/runtime/webhooks/durabletask/instances/a"} {
			r := newRequest("GET", path, "operator.x", "If-None-Match", match, "Accept", accept)
			r.URL.RawQuery = query
			if strings.Contains(strings.ToLower(accept), "event-stream") {
				r.Method = "HEAD"
			}
			switch got := do(t, w.api, r); got.Code {
			case 200, 202, 304, 400, 401, 404:
			default:
				t.Errorf("%s: got %d %s", path, got.Code, got.Body)
			}
		}
	})
}
