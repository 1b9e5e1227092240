package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

// link is the path of an instance with a link to it in its query.
func (w *world) link(t testing.TB, hub, id, audience string, life time.Duration) string {
	t.Helper()
	k := status.Key{Hub: hub, InstanceID: id}
	s, err := w.links.Sign(k, audience, time.Now().Add(life))
	if err != nil {
		t.Fatal(err)
	}
	return s.Path(k)
}

// key makes an API key with that right and role.
func (w *world) key(t testing.TB, right auth.Right, role string, hubs ...string) string {
	t.Helper()
	text, kept, err := auth.NewAPIKey(auth.APIKey{ID: "k", Rights: []auth.Right{right}, Hubs: hubs, Claims: map[string]any{"roles": []any{role}}})
	if err != nil {
		t.Fatal(err)
	}
	w.keys.SetKeys([]auth.APIKey{kept})
	return text
}

// postLink asks for a link.
func (w *world) postLink(t testing.TB, token, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := newRequest(http.MethodPost, "/v1/links", token)
	r.Body, r.ContentLength = http.NoBody, 0
	if body != "" {
		q := httptest.NewRequest(http.MethodPost, "/v1/links", strings.NewReader(body))
		q.Header = r.Header
		r = q
	}
	return do(t, w.api, r)
}

// TestU4LinkOpensOneInstanceAsOneAudience, without any token, on each form of its URL.
func TestU4LinkOpensOneInstanceAsOneAudience(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"), record("b c"))
	for audience, token := range map[string]string{"operator": "operator.x", "customer": "customer.u-1"} {
		full := w.link(t, "orders", "a", audience, time.Hour)
		_, query, _ := strings.Cut(full, "?")
		want := get(t, w.api, "/v1/instances/a", token)
		for _, path := range []string{full, "/v1/instances/a?" + query, full + "&after=1"} {
			got := get(t, w.api, path, "")
			if got.Code != 200 || got.Body.String() != want.Body.String() || got.Header().Get("ETag") != want.Header().Get("ETag") {
				t.Errorf("%s: %s: got %d %s, want %s", audience, path, got.Code, got.Body, want.Body)
			}
		}
		if got := get(t, w.api, full, "", "If-None-Match", want.Header().Get("ETag")); got.Code != 304 {
			t.Errorf("If-None-Match: got %d", got.Code)
		}
		if got := do(t, w.api, newRequest(http.MethodHead, full, "")); got.Code != 200 {
			t.Errorf("HEAD: got %d", got.Code)
		}
		want = get(t, w.api, dropIn+"a", token)
		for _, path := range []string{dropIn + "a?" + query, dropIn + "a?taskHub=orders&showInput=true&" + query} {
			got := get(t, w.api, path, "")
			if got.Code != 202 || got.Body.String() != want.Body.String() {
				t.Errorf("%s: %s: got %d %s, want %s", audience, path, got.Code, got.Body, want.Body)
			}
			again, err := url.Parse(got.Header().Get("Location"))
			if err != nil {
				t.Fatal(err)
			}
			if got := get(t, w.api, again.RequestURI(), ""); got.Code != 202 {
				t.Errorf("the Location %s: got %d", again, got.Code)
			}
		}
	}
	if got := get(t, w.api, w.link(t, "orders", "b c", "customer", time.Hour), ""); got.Code != 200 {
		t.Errorf("an id with a space: got %d %s", got.Code, got.Body)
	}
	for path, name := range map[string]string{
		w.link(t, "orders", "missing", "operator", time.Hour): "no such instance",
		w.link(t, "orders", "a", "auditor", time.Hour):        "no such audience",
		w.link(t, "elsewhere", "a", "operator", time.Hour):    "another hub",
	} {
		wantProblem(t, name, get(t, w.api, path, ""), 404, "not-found", "")
	}
}

// TestU1NoOtherByteOfTheURLIsSigned changes each byte of a link's URL, and each parameter.
func TestU1NoOtherByteOfTheURLIsSigned(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"), record("b"), record("A"))
	elsewhere := record("a")
	elsewhere.Hub = "ordert"
	w.store.records[elsewhere.Key()] = elsewhere
	good := w.link(t, "orders", "a", "customer", time.Hour)
	want := get(t, w.api, good, "").Body.String()
	tried := map[int]int{}
	ask := func(target string) {
		t.Helper()
		u, err := url.ParseRequestURI(target)
		if err != nil || target == good || u.Path == "" || u.Path[0] != '/' {
			return
		}
		r := newRequest(http.MethodGet, "/", "")
		r.URL, r.RequestURI = u, target
		got := httptest.NewRecorder()
		w.api.ServeHTTP(got, r)
		tried[got.Code]++
		switch got.Code {
		case 400, 401, 404, 301, 307:
		default:
			t.Errorf("%s: got %d %s", target, got.Code, got.Body)
		}
		if strings.Contains(got.Body.String(), "instanceId") || strings.Contains(got.Body.String(), want) {
			t.Errorf("%s: shows %s", target, got.Body)
		}
	}
	for i := range good {
		for _, b := range []byte("abABz019-_.~/?&=%+; \x00\n\xff") {
			ask(good[:i] + string([]byte{b}) + good[i+1:])
		}
		ask(good[:i] + good[i+1:])
		if good[i] != '&' { // twice it says the same
			ask(good[:i] + good[i:i+1] + good[i:])
		}
	}
	u, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for name := range q {
		for _, value := range []string{"", "x", q.Get(name) + " ", q.Get(name) + "\x00", strings.ToUpper(q.Get(name)), "operator", "0", strings.Repeat("9", 5000)} {
			if value == q.Get(name) {
				continue
			}
			changed := u.Query()
			changed.Set(name, value)
			ask(u.Path + "?" + changed.Encode())
		}
		without := u.Query()
		without.Del(name)
		ask(u.Path + "?" + without.Encode())
		twice := u.Query()
		twice.Add(name, q.Get(name))
		ask(u.Path + "?" + twice.Encode())
	}
	for _, path := range []string{"/v1/instances/b?", "/v1/hubs/ordert/instances/a?", "/v1/instances/A?", "/v1/hubs/Orders/instances/a?", dropIn + "b?", dropIn + "a?taskHub=ordert&"} {
		ask(path + u.RawQuery)
	}
	if tried[401] < 500 || tried[400] == 0 {
		t.Errorf("got %v: this test does not try what it should", tried)
	}
}

// TestU2LinkNeedsAnExpiry: one without, or with one that is past, too far away, or in another form, is as good as none. All
// are answered alike.
func TestU2LinkNeedsAnExpiry(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	long := auth.NewLinks(auth.LinkOptions{MaxLife: auth.MaxLinkLife})
	long.SetKeys([]auth.LinkKey{{ID: "k1", Secret: []byte("0123456789abcdef0123456789abcdef")}})
	k := status.Key{Hub: "orders", InstanceID: "a"}
	tooLong, err := long.Sign(k, "customer", time.Now().Add(25*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	past := auth.NewLinks(auth.LinkOptions{Now: func() time.Time { return time.Now().Add(-2 * time.Hour) }})
	past.SetKeys([]auth.LinkKey{{ID: "k1", Secret: []byte("0123456789abcdef0123456789abcdef")}})
	expired, err := past.Sign(k, "customer", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	good := w.link(t, "orders", "a", "customer", time.Hour)
	q, err := url.ParseQuery(good[strings.Index(good, "?")+1:])
	if err != nil {
		t.Fatal(err)
	}
	without := url.Values{}
	for name := range q {
		if name != auth.LinkExpires {
			without.Set(name, q.Get(name))
		}
	}
	wrong := url.Values{}
	for name := range q {
		wrong.Set(name, q.Get(name))
	}
	wrong.Set(auth.LinkSignature, strings.Repeat("A", 43))
	var first *httptest.ResponseRecorder
	for name, path := range map[string]string{
		"no expiry": "/v1/instances/a?" + without.Encode(), "expired": expired.Path(k), "too long": tooLong.Path(k),
		"wrong signature": "/v1/instances/a?" + wrong.Encode(), "another instance": strings.Replace(good, "/a?", "/b?", 1), "another hub": strings.Replace(good, "orders", "other", 1),
		"only an expiry": "/v1/instances/a?link.exp=" + strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10),
	} {
		got := get(t, w.api, path, "")
		wantProblem(t, name, got, 401, "unauthenticated", "")
		if first == nil {
			first = got
		}
		if got.Body.String() != first.Body.String() || fmt.Sprint(got.Header()) != fmt.Sprint(first.Header()) {
			t.Errorf("%s: got %v %s, which is not how others are answered: %v %s", name, got.Header(), got.Body, first.Header(), first.Body)
		}
	}
}

// TestU4LinkOpensNothingElse: no list, no batch, no ticket, no other link, and nothing together with another credential.
func TestU4LinkOpensNothingElse(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	full := w.link(t, "orders", "a", "operator", time.Hour)
	_, query, _ := strings.Cut(full, "?")
	ticket := func() string {
		r := do(t, w.api, newRequest(http.MethodPost, "/v1/tickets", "operator.x"))
		var got struct{ Ticket string }
		if err := json.Unmarshal(r.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return got.Ticket
	}()
	for _, token := range []string{"", "operator.x"} {
		for _, target := range []string{
			"GET /v1/instances?", "GET /v1/hubs/orders/instances?", "GET /v1/hubs/orders/instances?id=a&", "GET /v1/instances?id=a&", "GET /v1/instances?label.owner=u-1&",
			"POST /v1/tickets?", "POST /v1/links?",
		} {
			method, path, _ := strings.Cut(target, " ")
			for _, accept := range []string{"application/json", "text/event-stream"} {
				got := do(t, w.api, newRequest(method, path+query, token, "Accept", accept))
				wantProblem(t, target+" "+accept, got, 400, "invalid", auth.LinkSignature)
			}
		}
	}
	for _, path := range []string{full, dropIn + "a?" + query} {
		wantProblem(t, "with a token", get(t, w.api, path, "operator.x"), 400, "invalid", auth.LinkSignature)
		wantProblem(t, "with a bad token", get(t, w.api, path, "rubbish"), 400, "invalid", auth.LinkSignature)
	}
	wantProblem(t, "with a ticket", get(t, w.api, full+"&ticket="+ticket, "", "Accept", "text/event-stream"), 400, "invalid", "ticket")
	wantProblem(t, "a bad one with a ticket", get(t, w.api, "/v1/instances/a?link.sig=x&ticket="+ticket, "", "Accept", "text/event-stream"), 400, "invalid", "ticket")
	wantProblem(t, "with a parameter that is not known", get(t, w.api, full+"&fields=x", ""), 400, "invalid", "fields")
	wantProblem(t, "with one more of its own", get(t, w.api, full+"&link.x=1", ""), 400, "invalid", "link.x")
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		if got := do(t, w.api, newRequest(method, full, "")); got.Code != 405 {
			t.Errorf("%s: got %d", method, got.Code)
		}
	}
	// The one that does nothing with them does not accept them as a token either.
	wantProblem(t, "as a token", get(t, w.api, "/v1/instances/a", query), 401, "unauthenticated", "")

	none := newWorld(t, httpapi.Options{}, record("a"))
	none.links.SetKeys(nil)
	wantProblem(t, "where there are no keys", get(t, none.api, full, ""), 401, "unauthenticated", "")
	wantProblem(t, "signing where there are no keys", none.postLink(t, "operator.x", `{"instanceId":"a"}`), 503, "unavailable", "")
}

// TestU4LinkStreamsAndWaits as a token does, and ends with its expiry, or when its key is taken out.
func TestU4LinkStreamsAndWaits(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		_ = get(t, w.api, aPath, "operator.x")
		path := w.link(t, "orders", "a", "customer", time.Minute)
		v := w.view(t, path, "")
		if v.ended() {
			t.Fatalf("got %s", v.answer().Body)
		}
		r := current("a")
		v.take()
		w.store.put(changed(r, custom(`{"percent":61}`)))
		v.want("a change", "status a "+strconv.FormatInt(r.Version+1, 10))
		etag := get(t, w.api, path, "").Header().Get("ETag")
		waiting := w.ask(t, path, "", "If-None-Match", etag, "Prefer", "wait=30")
		waiting.want("nothing new", 0)
		w.store.put(changed(changed(r, custom(``)), custom(`{"percent":62}`)))
		waiting.want("a change", 200)
		time.Sleep(time.Minute)
		if !v.ended() {
			t.Error("the stream goes on when the link has expired")
		}

		path = w.link(t, "orders", "a", "customer", time.Hour)
		v = w.view(t, path, "")
		etag = get(t, w.api, path, "").Header().Get("ETag")
		waiting = w.ask(t, path, "", "If-None-Match", etag, "Prefer", "wait=30")
		waiting.want("nothing new", 0)
		if v.ended() {
			t.Fatal("the stream has ended")
		}
		w.links.SetKeys([]auth.LinkKey{{ID: "k2", Secret: []byte("0123456789abcdef0123456789abcdef")}})
		wantProblem(t, "a key that was taken out", get(t, w.api, path, ""), 401, "unauthenticated", "")
		time.Sleep(15 * time.Second)
		if !v.ended() {
			t.Error("the stream goes on 15 s after the key was taken out")
		}
		time.Sleep(15 * time.Second)
		waiting.want("the key was taken out", 401)
	})
}

// TestU6WithdrawnKeyEndsStreamsAndWaits, and nothing that changes afterwards is told.
func TestU6WithdrawnKeyEndsStreamsAndWaits(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		r := current("a")
		w.store.put(r)
		text := w.key(t, auth.Read, "operator")
		etag := get(t, w.api, aPath, text).Header().Get("ETag")
		quiet, busy := w.view(t, aPath, text), w.view(t, "/v1/instances", text)
		silent, news := w.ask(t, aPath, text, "If-None-Match", etag, "Prefer", "wait=20"), w.ask(t, "/v1/instances/a", text, "If-None-Match", etag, "Prefer", "wait=50")
		silent.want("nothing new", 0)
		quiet.take()
		busy.take()
		w.keys.SetKeys(nil)
		wantProblem(t, "withdrawn", get(t, w.api, aPath, text), 401, "unauthenticated", "")
		time.Sleep(15 * time.Second)
		if !quiet.ended() || !busy.ended() {
			t.Error("a stream goes on 15 s after its key was withdrawn")
		}
		time.Sleep(5 * time.Second)
		silent.want("waited in vain", 401)
		w.store.put(changed(r, custom(`{"percent":99}`)))
		news.want("news", 401)
		if strings.Contains(news.w.Body.String(), "99") {
			t.Errorf("it is told %s", news.w.Body)
		}
		quiet.want("the quiet one")
		busy.want("the busy one")
	})
}

// TestU6APIKeyReadsWhatItIsGoodFor, on every path.
func TestU6APIKeyReadsWhatItIsGoodFor(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	for _, c := range []struct {
		name string
		key  func() string
		sees bool
	}{
		{"reads all", func() string { return w.key(t, auth.Read, "operator") }, true},
		{"reads this hub", func() string { return w.key(t, auth.Read, "operator", "orders") }, true},
		{"reads another hub", func() string { return w.key(t, auth.Read, "operator", "payments") }, false},
		{"publishes", func() string { return w.key(t, auth.Publish, "operator") }, false},
		{"has no role", func() string { return w.key(t, auth.Read, "none") }, false},
	} {
		text := c.key()
		code, listed := map[bool]int{true: 200, false: 404}[c.sees], map[bool]string{true: `"instanceId":"a","name"`, false: `{"instances":[]}`}[c.sees]
		if got := get(t, w.api, aPath, text); got.Code != code {
			t.Errorf("%s: got %d %s", c.name, got.Code, got.Body)
		}
		if got := get(t, w.api, "/v1/instances", text); got.Code != 200 || !strings.Contains(got.Body.String(), listed) {
			t.Errorf("%s: the list: got %d %s", c.name, got.Code, got.Body)
		}
		if got := get(t, w.api, "/v1/instances?id=a", text); strings.Contains(got.Body.String(), "runtimeStatus") != c.sees {
			t.Errorf("%s: the batch: got %d %s", c.name, got.Code, got.Body)
		}
		if got := w.postLink(t, text, `{"instanceId":"a"}`); (got.Code == 201) != c.sees {
			t.Errorf("%s: a link: got %d %s", c.name, got.Code, got.Body)
		}
		durable := map[bool]int{true: 202, false: 404}[c.sees]
		for name, r := range map[string]*http.Request{
			"Authorization":   newRequest(http.MethodGet, dropIn+"a", text),
			"x-functions-key": newRequest(http.MethodGet, dropIn+"a", "", "x-functions-key", text),
			"code":            newRequest(http.MethodGet, dropIn+"a?taskHub=orders&code="+text, ""),
			"Code":            newRequest(http.MethodGet, dropIn+"a?Code="+text, ""),
			"both":            newRequest(http.MethodGet, dropIn+"a?code=abcdef", "", "x-functions-key", text),
		} {
			got := do(t, w.api, r)
			if got.Code != durable {
				t.Errorf("%s: the drop-in URL, %s: got %d %s, want %d", c.name, name, got.Code, got.Body, durable)
			}
			if echoed, should := strings.Contains(got.Header().Get("Location"), text), strings.EqualFold(name, "code") && c.sees; echoed != should {
				t.Errorf("%s: %s: Location %q", c.name, name, got.Header().Get("Location"))
			}
		}
	}
	text := w.key(t, auth.Read, "operator")
	for name, r := range map[string]*http.Request{
		"code elsewhere":            newRequest(http.MethodGet, aPath+"?code="+text, ""),
		"x-functions-key elsewhere": newRequest(http.MethodGet, aPath, "", "x-functions-key", text),
		"a wrong key as code":       newRequest(http.MethodGet, dropIn+"a?code="+text[:len(text)-1], ""),
		"two keys":                  newRequest(http.MethodGet, dropIn+"a", "", "x-functions-key", text, "x-functions-key", text),
		"a token as code":           newRequest(http.MethodGet, dropIn+"a?code=operator.x", ""),
		"a bad token beside a key":  newRequest(http.MethodGet, dropIn+"a?code="+text, "rubbish"),
	} {
		got := do(t, w.api, r)
		wantProblem(t, name, got, 401, "unauthenticated", "")
		if strings.Contains(got.Body.String()+fmt.Sprint(got.Header()), text[8:30]) {
			t.Errorf("%s: the answer has the key in it: %v %s", name, got.Header(), got.Body)
		}
	}
	// Who shows a token is who it says, whatever key is still in the URL.
	if got := get(t, w.api, dropIn+"a?code="+text, "customer.u-1"); got.Code != 202 || strings.Contains(got.Body.String(), "internalCost") || strings.Contains(got.Header().Get("Location"), "code") {
		t.Errorf("a token beside a key: got %d %v %s", got.Code, got.Header(), got.Body)
	}
}

// TestLinkIsForWhatItsCallerSees: as their own audience, for as long as they say, and not longer than the relay allows.
func TestLinkIsForWhatItsCallerSees(t *testing.T) {
	w := newWorld(t, httpapi.Options{PublicURL: "https://status.example/s"}, record("a"), record("b ü"))
	for _, c := range []struct {
		token, body, id, audience string
		life                      time.Duration
	}{
		{"customer.u-1", `{"instanceId":"a"}`, "a", "customer", time.Hour},
		{"operator.x", `{"hub":"orders","instanceId":"b ü","expiresIn":"24h"}`, "b ü", "operator", 24 * time.Hour},
		{"customer.u-1", `{"expiresIn":"1m","instanceId":"a","hub":""}`, "a", "customer", time.Minute},
		{"customer.u-1.30", `{"instanceId":"a","expiresIn":"90m0s"}`, "a", "customer", 90 * time.Minute},
	} {
		got := w.postLink(t, c.token, c.body)
		var answer struct {
			URL     string
			Expires time.Time
		}
		if err := json.Unmarshal(got.Body.Bytes(), &answer); err != nil || got.Code != 201 || got.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got %d %v %s", c.body, got.Code, got.Header(), got.Body)
			continue
		}
		u, err := url.Parse(answer.URL)
		if err != nil {
			t.Fatal(err)
		}
		if u.Host != "status.example" || u.Path != "/s/v1/hubs/orders/instances/"+c.id || u.Query().Get(auth.LinkAudience) != c.audience ||
			u.Query().Get(auth.LinkExpires) != strconv.FormatInt(answer.Expires.Unix(), 10) {
			t.Errorf("%s: got %s", c.body, answer.URL)
		}
		if left := time.Until(answer.Expires); left > c.life || left < c.life-10*time.Second {
			t.Errorf("%s: it is good for %v", c.body, left)
		}
		theirs, opened := get(t, w.api, strings.ReplaceAll("/v1/instances/"+url.PathEscape(c.id), "\n", ""), c.token), get(t, w.api, strings.TrimPrefix(u.RequestURI(), "/s"), "")
		if opened.Code != 200 || opened.Body.String() != theirs.Body.String() {
			t.Errorf("%s: it opens %d %s, want %s", c.body, opened.Code, opened.Body, theirs.Body)
		}
	}
	for _, c := range []struct {
		name, token, body string
		code              int
		slug, field       string
	}{
		{"no token", "", `{"instanceId":"a"}`, 401, "unauthenticated", ""},
		{"expired", "expired", `{"instanceId":"a"}`, 401, "token-expired", ""},
		{"not theirs", "customer.u-2", `{"instanceId":"a"}`, 404, "not-found", ""},
		{"not there", "operator.x", `{"instanceId":"c"}`, 404, "not-found", ""},
		{"another hub", "operator.x", `{"instanceId":"a","hub":"other"}`, 404, "not-found", ""},
		{"no body", "operator.x", ``, 400, "invalid", ""},
		{"no object", "operator.x", `[]`, 400, "invalid", ""},
		{"no JSON", "operator.x", `{"instanceId":"a"`, 400, "invalid", ""},
		{"more", "operator.x", `{"instanceId":"a"} {}`, 400, "invalid", ""},
		{"a member twice", "operator.x", `{"instanceId":"a","instanceId":"b"}`, 400, "invalid", ""},
		{"another audience", "operator.x", `{"instanceId":"a","audience":"operator"}`, 400, "invalid", "audience"},
		{"no id", "operator.x", `{}`, 400, "invalid", "instanceId"},
		{"bad id", "operator.x", `{"instanceId":"a/b"}`, 400, "invalid", "instanceId"},
		{"no text", "operator.x", `{"instanceId":7}`, 400, "invalid", "instanceId"},
		{"bad hub", "operator.x", `{"instanceId":"a","hub":"a.b"}`, 400, "invalid", "hub"},
		{"too short", "operator.x", `{"instanceId":"a","expiresIn":"59s"}`, 400, "invalid", "expiresIn"},
		{"too long", "operator.x", `{"instanceId":"a","expiresIn":"24h0m1s"}`, 400, "invalid", "expiresIn"},
		{"negative", "operator.x", `{"instanceId":"a","expiresIn":"-1h"}`, 400, "invalid", "expiresIn"},
		{"no duration", "operator.x", `{"instanceId":"a","expiresIn":"soon"}`, 400, "invalid", "expiresIn"},
		{"a number", "operator.x", `{"instanceId":"a","expiresIn":3600}`, 400, "invalid", "expiresIn"},
		{"too large", "operator.x", `{"instanceId":"` + strings.Repeat("a", 5000) + `"}`, 413, "too-large", ""},
	} {
		wantProblem(t, c.name, w.postLink(t, c.token, c.body), c.code, c.slug, c.field)
	}
	wantProblem(t, "a parameter", do(t, w.api, newRequest(http.MethodPost, "/v1/links?hub=orders", "operator.x")), 400, "invalid", "hub")
	if got := get(t, w.api, "/v1/links", "operator.x"); got.Code != 405 || got.Header().Get("Allow") != "POST" {
		t.Errorf("GET: got %d %v", got.Code, got.Header())
	}
	w.store.fail(status.ErrUnavailable)
	wantProblem(t, "redis away", w.postLink(t, "operator.x", `{"instanceId":"a"}`), 503, "unavailable", "")
}
