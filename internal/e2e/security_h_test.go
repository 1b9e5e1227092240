package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/dev"
	"statusrelay/internal/relay"
)

// hiddenWorld has a relay, one instance of the customer's, and one of somebody else's. What does not exist has an id as long.
func hiddenWorld(t testing.TB, change ...func(*relay.Config)) (w *world, r *replica) {
	w = newWorld(t, nil)
	r = w.relay(nil, change...)
	w.send(strings.Replace(progress("theirs", 1, 40), owner, "u-2", 1), progress("mine", 1, 7))
	w.shows(r, key("theirs"), 40)
	w.shows(r, key("mine"), 7)
	return w, r
}

// timeless takes what depends on when an answer was given out of its header.
func timeless(h http.Header) {
	h.Del("Date")
	h.Del("RateLimit")
}

// request makes one, and returns all of the answer but when it was.
func (w *world) request(r *replica, method, path, token string, headers ...string) string {
	w.Helper()
	got, err := w.do(method, r.base+path, token, nil, headers...)
	if err != nil {
		w.Fatal(err)
	}
	timeless(got.header)
	return fmt.Sprintf("%d %v %s", got.code, got.header, got.body)
}

// What is another's and what is nobody's are the same bytes and headers, by every way of asking.
func TestH1NotYoursIsNotThereOnEveryPath(t *testing.T) {
	t.Parallel()
	w, r := hiddenWorld(t, func(c *relay.Config) { c.Read.Heartbeat = 500 * time.Millisecond })
	notYoursIsNotThere(t, w, r)
}

// So they are where a bridge is asked for both.
func TestH1NotYoursIsNotThereInABridgedHub(t *testing.T) {
	t.Parallel()
	w, r := hiddenWorld(t, func(c *relay.Config) { c.Read.Heartbeat = 500 * time.Millisecond }, bridgedBy(200*time.Millisecond, time.Minute))
	notYoursIsNotThere(t, w, r)
}

func notYoursIsNotThere(t *testing.T, w *world, r *replica) {
	instances := "/v1/hubs/" + hub + "/instances"
	version := w.view(w.get(r, w.operator, key("theirs")).body).Version
	for what, ask := range map[string]func(id string) string{
		"GET":  func(id string) string { return w.request(r, http.MethodGet, instances+"/"+id, w.customer) },
		"HEAD": func(id string) string { return w.request(r, http.MethodHead, instances+"/"+id, w.customer) },
		"If-None-Match: *": func(id string) string {
			return w.request(r, http.MethodGet, instances+"/"+id, w.customer, "If-None-Match", "*")
		},
		"a long-poll": func(id string) string {
			return w.request(r, http.MethodGet, instances+"/"+id, w.customer, "If-None-Match", `"x"`, "Prefer", "wait=5")
		},
		"after": func(id string) string {
			return w.request(r, http.MethodGet, fmt.Sprintf("%s/%s?after=%d", instances, id, version), w.customer, "Prefer", "wait=5")
		},
		"the default hub": func(id string) string { return w.request(r, http.MethodGet, "/v1/instances/"+id, w.customer) },
		"the drop-in": func(id string) string {
			return w.request(r, http.MethodGet, "/runtime/webhooks/durabletask/instances/"+id+"?taskHub="+hub, w.customer)
		},
		"the drop-in, failures": func(id string) string {
			return w.request(r, http.MethodGet, "/runtime/webhooks/durabletask/instances/"+id+"?returnInternalServerErrorOnFailure=true&taskHub="+hub, w.customer)
		},
		"a batch": func(id string) string {
			return tagless(w.request(r, http.MethodGet, instances+"?id="+id+"&id=mine", w.customer))
		},
		"a batch of one": func(id string) string {
			return tagless(w.request(r, http.MethodGet, instances+"?id="+id, w.customer))
		},
		"another method": func(id string) string { return w.request(r, http.MethodDelete, instances+"/"+id, w.customer) },
		"no token":       func(id string) string { return w.request(r, http.MethodGet, instances+"/"+id, "") },
		"a stream":       func(id string) string { return w.streamed(r, instances+"/"+id, w.customer) },
		"a stream that resumes": func(id string) string {
			return w.streamed(r, instances+"/"+id, w.customer, "Last-Event-ID", fmt.Sprint(version-1))
		},
		"a stream of a batch": func(id string) string { return w.streamed(r, instances+"?id="+id+"&id=mine", w.customer) },
		"a socket": func(id string) string {
			return w.framed(r, 3, "status.v1.json", `{"type":"watch","ref":"1","instances":[{"hub":"e2e","instanceId":"`+id+`"}]}`, `{"type":"watch","ref":"2","instances":[{"hub":"e2e","instanceId":"mine"}]}`)
		},
		"a socket that resumes": func(id string) string {
			return w.framed(r, 4, "status.v1.json", fmt.Sprintf(`{"type":"watch","ref":"1","instances":[{"hub":"e2e","instanceId":%q,"after":%d}]}`, id, version-1), `{"type":"watch","ref":"2","instances":[{"hub":"e2e","instanceId":"mine"}]}`)
		},
		"Web PubSub": func(id string) string {
			return w.framed(r, 3, "json.webpubsub.azure.v1", `{"type":"joinGroup","ackId":1,"group":"e2e/`+id+`"}`, `{"type":"joinGroup","ackId":2,"group":"e2e/mine"}`)
		},
		"Web PubSub, sending": func(id string) string {
			return w.framed(r, 3, "json.webpubsub.azure.v1", `{"type":"sendToGroup","ackId":1,"group":"e2e/`+id+`","dataType":"text","data":"x"}`, `{"type":"joinGroup","ackId":2,"group":"e2e/mine"}`)
		},
	} {
		theirs := strings.ReplaceAll(ask("theirs"), "theirs", "ID")
		nobodys := strings.ReplaceAll(ask("nobody"), "nobody", "ID")
		if theirs != nobodys {
			t.Errorf("%s: got\n%s\nfor another's and\n%s\nfor nobody's", what, theirs, nobodys)
		}
	}
	// The tag of a batch is of the ids too: of one id it is the same before and after something of another's has it.
	before := w.request(r, http.MethodGet, instances+"?id=later&id=mine", w.customer)
	w.send(strings.Replace(progress("later", 1, 41), owner, "u-2", 1))
	w.shows(r, key("later"), 41)
	if after := w.request(r, http.MethodGet, instances+"?id=later&id=mine", w.customer); quiet(after) != quiet(before) {
		t.Errorf("a batch: got\n%s\nbefore another's was there and\n%s\nthen", before, after)
	}
	// A list by the label that only another has is as empty as one by a label that nobody has.
	for _, path := range []string{"?label.owner=%s", "?label.owner=%s&runtimeStatus=Running&limit=1", "?label.owner=%s&name=X"} {
		theirs := strings.ReplaceAll(w.request(r, http.MethodGet, instances+fmt.Sprintf(path, "u-2"), w.customer), "u-2", "ID")
		nobodys := strings.ReplaceAll(w.request(r, http.MethodGet, instances+fmt.Sprintf(path, "u-0"), w.customer), "u-0", "ID")
		if theirs != nobodys {
			t.Errorf("a list: got\n%s\nby another's label and\n%s\nby nobody's", theirs, nobodys)
		}
	}
}

// tagless is an answer without its entity tag.
func tagless(text string) string {
	return regexp.MustCompile(`Etag:\[[^]]*\]`).ReplaceAllString(text, "Etag")
}

// quiet is an answer without what tells when an instance last changed, hidden changes included: docs/threat-model.md.
func quiet(text string) string {
	return regexp.MustCompile(`Retry-After:\[\d+\]|"lastUpdatedTime":"[^"]*"`).ReplaceAllString(text, "")
}

// streamed is what a stream begins with: up to its second heartbeat.
func (w *world) streamed(r *replica, path, token string, headers ...string) string {
	w.Helper()
	q, err := http.NewRequestWithContext(w.ctx, http.MethodGet, r.base+path, nil)
	if err != nil {
		w.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+token)
	q.Header.Set("Accept", "text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	got, err := w.client.Do(q)
	if err != nil {
		w.Fatal(err)
	}
	defer got.Body.Close()
	timeless(got.Header)
	said := fmt.Sprintf("%d %v\n", got.StatusCode, got.Header)
	beats := 0
	for lines := bufio.NewScanner(got.Body); beats < 2 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), ":") {
			beats++
		}
		said += lines.Text() + "\n"
	}
	return regexp.MustCompile(`retry: \d+`).ReplaceAllString(said, "retry: N") // which differs so that not all come back at once
}

// framed is what a socket is sent from its first request until what its second, about an instance of the caller's own, leads to: so
// many frames at least. Answers and pushes overtake each other, so they are put in an order.
func (w *world) framed(r *replica, least int, subprotocol, first, second string) string {
	w.Helper()
	c, got := w.handshake(r, "", bearer(w.customer), subprotocol)
	if got.code != http.StatusSwitchingProtocols {
		w.Fatalf("a handshake got %d", got.code)
	}
	defer c.conn.Close()
	if _, _, err := c.conn.ReadMessage(); err != nil { // welcome
		w.Fatal(err)
	}
	c.send(first)
	c.send(second)
	var said []string
	own := regexp.MustCompile(`"instanceId":"mine","runtimeStatus"`)
	for seen := false; !seen || len(said) < least; {
		_ = c.conn.SetReadDeadline(time.Now().Add(patience))
		_, text, err := c.conn.ReadMessage()
		if err != nil {
			w.Fatalf("%v after %s", err, said)
		}
		said, seen = append(said, string(text)), seen || own.Match(text)
	}
	slices.Sort(said)
	return strings.Join(said, "\n")
}

// BenchmarkH1NotYours reports how long a read of another's instance takes, and one of nobody's: the two medians, and their ratio.
// It asserts nothing, since a machine under load decides what it measures; docs/security.md has what it said.
func BenchmarkH1NotYours(b *testing.B) {
	w, r := hiddenWorld(b)
	took := map[string][]time.Duration{}
	for b.Loop() {
		for _, id := range []string{"theirs", "nobody"} {
			begun := time.Now()
			if got := w.get(r, w.customer, key(id)); got.code != http.StatusNotFound {
				b.Fatalf("%s: got %d", id, got.code)
			}
			took[id] = append(took[id], time.Since(begun))
		}
	}
	median := func(id string) float64 {
		slices.Sort(took[id])
		return float64(took[id][len(took[id])/2].Nanoseconds())
	}
	b.ReportMetric(median("theirs"), "ns-another's")
	b.ReportMetric(median("nobody"), "ns-nobody's")
	b.ReportMetric(median("theirs")/median("nobody"), "ratio")
}

// No answer may be kept by a shared cache, errors included; and one that is there gives nobody another's.
func TestH2AnswersAreTheirCallersOwn(t *testing.T) {
	t.Parallel()
	w, r := hiddenWorld(t, func(c *relay.Config) { c.Origins = []string{portal} })
	mine := "/v1/hubs/" + hub + "/instances/mine"
	tag := w.get(r, w.customer, key("mine")).header.Get("ETag")
	for _, c := range []struct {
		method, path, token string
		headers             []string
		want                int
	}{
		{http.MethodGet, mine, w.customer, nil, 200},
		{http.MethodGet, mine, w.customer, []string{"Origin", portal}, 200},
		{http.MethodGet, mine, w.customer, []string{"If-None-Match", tag}, 304},
		{http.MethodGet, mine, w.customer, []string{"If-None-Match", tag, "Prefer", "wait=1"}, 304},
		{http.MethodHead, mine, w.customer, nil, 200},
		{http.MethodGet, mine, "", nil, 401},
		{http.MethodGet, mine, "forged", nil, 401},
		{http.MethodGet, mine + "?x=1", w.customer, nil, 400},
		{http.MethodGet, "/v1/hubs/" + hub + "/instances/theirs", w.customer, nil, 404},
		{http.MethodGet, "/v1/hubs/" + hub + "/instances?id=mine", w.customer, nil, 200},
		{http.MethodGet, "/v1/hubs/" + hub + "/instances", w.customer, nil, 200},
		{http.MethodGet, "/v1/instances", w.customer, nil, 200},
		{http.MethodGet, "/runtime/webhooks/durabletask/instances/mine?taskHub=" + hub, w.customer, nil, 202},
		{http.MethodPost, "/v1/tickets", w.customer, nil, 201},
		{http.MethodPost, "/v1/tickets", "", nil, 401},
		{http.MethodPut, mine, w.customer, nil, 405},
	} {
		got, err := w.do(c.method, r.base+c.path, c.token, nil, c.headers...)
		if err != nil {
			t.Fatal(err)
		}
		cache, vary := got.header.Get("Cache-Control"), strings.Join(got.header.Values("Vary"), ", ")
		if got.code != c.want || !strings.Contains(cache, "private, no-cache") && !strings.Contains(cache, "no-store") {
			t.Errorf("%s %s: got %d with Cache-Control %q", c.method, c.path, got.code, cache)
		}
		for _, name := range []string{"Authorization", "Accept", "Origin"} {
			if !strings.Contains(vary, name) {
				t.Errorf("%s %s: got Vary %q, want %s in it", c.method, c.path, vary, name)
			}
		}
		if got.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: no nosniff", c.method, c.path)
		}
	}
	kept, err := os.MkdirTemp("", "cache") //nolint:usetesting // whose folder only this user can enter: workers of nginx are others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(kept)
	if err := os.Chmod(kept, 0o777); err != nil {
		t.Fatal(err)
	}
	proxied := &replica{base: w.nginx(r, `
	proxy_cache_path `+kept+` keys_zone=all:1m;
	proxy_cache all;
	proxy_cache_key $uri$is_args$args;
	add_header X-Cache $upstream_cache_status always;`)}
	get := func(token string) answer {
		q, err := http.NewRequestWithContext(w.ctx, http.MethodGet, instanceURL(proxied, key("mine")), nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			q.Header.Set("Authorization", "Bearer "+token)
		}
		got, err := w.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		text, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{got.StatusCode, got.Header, text}
	}
	full := get(w.operator)
	if full.code != http.StatusOK || full.header.Get("X-Cache") != "MISS" {
		t.Fatalf("by way of a cache: got %d with %v", full.code, full.header)
	}
	for range 2 {
		own := get(w.customer)
		if own.code != http.StatusOK || own.header.Get("X-Cache") != "MISS" || strings.Contains(string(own.body), "for operators") {
			t.Errorf("the customer got %s from the cache: %s", own.header.Get("X-Cache"), own.body)
		}
		if got := get(w.token("u-2", "customer", time.Hour)); got.code != http.StatusNotFound {
			t.Errorf("somebody else got %d", got.code)
		}
		if got := get(""); got.code != http.StatusUnauthorized {
			t.Errorf("nobody got %d", got.code)
		}
	}
}

// A change of what a caller does not see changes no entity tag of theirs and wakes them nowhere.
func TestH3HiddenChangeIsNoNewsAnywhere(t *testing.T) {
	t.Parallel()
	w, r := hiddenWorld(t)
	other := w.relay(nil)
	instances := "/v1/hubs/" + hub + "/instances"
	paths := []string{instances + "/mine", instances + "?id=mine&id=theirs", instances + "?label.owner=" + owner, instances}
	tags, theirs := map[string]string{}, map[string]string{}
	tag := func(r *replica, path, token string) string {
		got, err := w.do(http.MethodGet, r.base+path, token, nil)
		if err != nil || got.code != http.StatusOK || got.header.Get("ETag") == "" {
			t.Fatal(path, got.code, got.header, err)
		}
		return got.header.Get("ETag")
	}
	for _, path := range paths {
		tags[path], theirs[path] = tag(r, path, w.customer), tag(r, path, w.operator)
		if tags[path] == theirs[path] {
			t.Errorf("%s: two audiences have one entity tag", path)
		}
	}
	dropIn := "/runtime/webhooks/durabletask/instances/mine?taskHub=" + hub
	compatible := w.request(r, http.MethodGet, dropIn, w.customer)
	watching := w.watch(r, w.customer, key("mine"))
	watching.sees(key("mine"), 7)
	listing := w.socket(r, w.customer)
	listing.send(`{"type":"watch","list":"mine","query":{"hub":"e2e"}}`)
	listing.wants("watching")
	listing.wants("joined")
	listing.wants("status")
	listing.wants("listed")
	one := w.feed(r.base+instances+"/mine", w.customer)
	one.sees(key("mine"), 7)
	all := w.feed(r.base+instances+"?label.owner="+owner, w.customer)
	all.await("the list is told", func() bool { return len(all.events) > 0 && all.events[len(all.events)-1].Type == "listed" })
	polled := make(chan int, len(paths))
	for _, path := range paths[:1] {
		go func() {
			got, err := w.do(http.MethodGet, r.base+path, w.customer, nil, "If-None-Match", tags[path], "Prefer", "wait=4")
			if err != nil {
				t.Error(err)
			}
			polled <- got.code
		}()
	}
	w.until("it waits", func() bool { return w.metric(r, "statusrelay_httpapi_waiting") == 1 })

	hidden := strings.Replace(progress("mine", 2, 7), "for operators", "another note for operators", 1)
	w.send(hidden)
	w.until("operators see it everywhere", func() bool {
		for _, r := range []*replica{r, other} {
			if !strings.Contains(string(w.get(r, w.operator, key("mine")).body), "another note") {
				return false
			}
		}
		return true
	})
	if got := <-polled; got != http.StatusNotModified {
		t.Errorf("a long-poll ended with %d, want 304", got)
	}
	for _, path := range paths {
		for i, r := range []*replica{r, other} {
			got, err := w.do(http.MethodGet, r.base+path, w.customer, nil, "If-None-Match", tags[path])
			if err != nil || got.code != http.StatusNotModified {
				t.Errorf("%s at replica %d: got %d, %v, want 304", path, i, got.code, err)
			}
			if tag(r, path, w.operator) == theirs[path] {
				t.Errorf("%s at replica %d: operators have the old entity tag", path, i)
			}
		}
	}
	if got := w.request(r, http.MethodGet, dropIn, w.customer); quiet(got) != quiet(compatible) {
		t.Errorf("the drop-in has\n%s\nthen\n%s", compatible, got)
	}
	// The next change that they see is the first that comes, by every way.
	w.send(progress("mine", 3, 8))
	watching.sees(key("mine"), 8)
	if watching.mu.Lock(); watching.frames != 2 {
		t.Errorf("a socket was sent %d frames, want 2", watching.frames)
	}
	watching.mu.Unlock()
	if f, text := listing.wants("status"); f.Status == nil || w.view(f.Status).percent() != 8 {
		t.Errorf("a list was told %s", text)
	}
	for what, s := range map[string]*feed{"a stream": one, "a list's stream": all} {
		s.sees(key("mine"), 8)
		events, _ := s.all()
		n := 0
		for _, e := range events {
			if e.Type == "status" {
				n++
			}
		}
		if n != 2 {
			t.Errorf("%s has %v, want 2 statuses", what, events)
		}
	}
}

// Pages of listed origins may read, and no others are told that they may.
func TestH4CORSMatrix(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Origins = []string{portal} })
	none, patterns := w.relay(nil), w.relay(nil, func(c *relay.Config) { c.Origins = []string{"*.test", "https://*", "h*"} }) // which are no origins
	ask := func(r *replica, method, origin string, headers ...string) answer {
		t.Helper()
		q, err := http.NewRequestWithContext(w.ctx, method, instanceURL(r, key("i")), nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Origin", origin)
		for i := 0; i < len(headers); i += 2 {
			q.Header.Set(headers[i], headers[i+1])
		}
		got, err := w.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		text, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{got.StatusCode, got.Header, text}
	}
	preflight := []string{"Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization,if-none-match"}
	for _, origin := range []string{
		"https://evil.test", "null", portal + ".evil.test", "https://evil-portal.example", "http://portal.example", portal + ":8443",
		"https://evil.test/portal.example", portal + "/", "*", portal + "%00.evil.test", strings.ToUpper(portal),
	} {
		for _, got := range []answer{
			ask(r, http.MethodOptions, origin, preflight...), ask(r, http.MethodGet, origin, "Authorization", "Bearer "+w.operator),
			ask(none, http.MethodOptions, origin, preflight...), ask(none, http.MethodGet, origin, "Authorization", "Bearer "+w.operator),
			ask(patterns, http.MethodOptions, origin, preflight...), ask(patterns, http.MethodGet, origin, "Authorization", "Bearer "+w.operator),
		} {
			for name := range got.header {
				if strings.HasPrefix(name, "Access-Control-Allow") {
					t.Errorf("%s is answered with %s: %s", origin, name, got.header.Get(name))
				}
			}
		}
	}
	got := ask(r, http.MethodOptions, portal, preflight...)
	if got.header.Get("Access-Control-Allow-Origin") != portal || got.header.Get("Access-Control-Max-Age") == "" || got.header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("a preflight got %d %v", got.code, got.header)
	}
	if got := ask(none, http.MethodOptions, portal, preflight...); got.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("where none is listed: %v", got.header)
	}
	for _, method := range []string{"DELETE", "PUT", "PATCH"} {
		if got := ask(r, http.MethodOptions, portal, "Access-Control-Request-Method", method); got.header.Get("Access-Control-Allow-Methods") != "" {
			t.Errorf("%s is allowed: %v", method, got.header)
		}
	}
	got = ask(r, http.MethodGet, portal, "Authorization", "Bearer "+w.operator)
	exposed := got.header.Get("Access-Control-Expose-Headers")
	for _, name := range []string{"ETag", "Retry-After", "Location"} {
		if !strings.Contains(strings.ToLower(exposed), strings.ToLower(name)) {
			t.Errorf("%s is not exposed: %q", name, exposed)
		}
	}
}

// exchange sends a request as it is written, and returns what comes back.
func (w *world) exchange(r *replica, text string) string {
	w.Helper()
	conn := w.tcp(r)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	if _, err := io.WriteString(conn, text); err != nil {
		w.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil && len(got) == 0 {
		w.Fatalf("%q: %v", text[:min(len(text), 60)], err)
	}
	return string(got)
}

// Whatever goes wrong is said as a problem of a known kind, with nothing of the inside and nothing that was not said by who asks.
func TestH5ProblemsSayNothingOfTheInside(t *testing.T) {
	t.Parallel()
	w, r := hiddenWorld(t)
	n := w.notifier()
	kinds := map[string]bool{}
	look := func(what string, got answer) {
		t.Helper()
		w.tellsNothing(what, string(got.body))
		if strings.Contains(string(got.body), "theirs") {
			t.Errorf("%s: tells of another's: %s", what, got.body)
		}
		for name, values := range got.header {
			w.tellsNothing(what+" in "+name, strings.Join(values, " "))
		}
		if got.code < 400 || len(got.body) == 0 {
			return
		}
		p := parse[struct {
			Type, Title string
			Status      int
		}](w, got.body)
		if got.header.Get("Content-Type") != "application/problem+json" || p.Status != got.code || p.Title == "" || !strings.HasPrefix(p.Type, "urn:statusrelay:problem:") && p.Type != "about:blank" {
			t.Errorf("%s: got %s %s", what, got.header.Get("Content-Type"), got.body)
		}
		kinds[p.Type] = true
	}
	instances := "/v1/hubs/" + hub + "/instances"
	all := func(phase string) {
		for _, path := range []string{
			instances + "/mine", instances + "/theirs", instances + "/a%20b%2Fc", instances + "/%00", instances + "/" + strings.Repeat("x", 300),
			instances + "?id=mine&after=1", instances + "?limit=0", instances + "?limit=x", instances + "?cursor=AAAA", instances + "?runtimeStatus=No",
			instances + "?%zz", instances + "/mine?after=x", instances + "/mine?ticket=x", "/v1/hubs/a%7Db/instances/i", "/v1/nothing", "/nothing", "/v1/watch",
			"/v1/watch?x=1", "/runtime/webhooks/durabletask/instances/theirs?taskHub=" + hub, "/runtime/nothing", "/v1/tickets",
		} {
			for _, token := range []string{w.customer, "forged", ""} {
				q, err := http.NewRequestWithContext(w.ctx, http.MethodGet, r.base+path, nil)
				if err != nil {
					continue // not a path that this client can write
				}
				if token != "" {
					q.Header.Set("Authorization", "Bearer "+token)
				}
				got, err := w.client.Do(q)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(got.Body)
				got.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				look(phase+" "+path, answer{got.StatusCode, got.Header, text})
			}
		}
		for what, body := range map[string]string{"no JSON": `{`, "an unknown field": `{"instanceId":"i","x":1}`, "no update": `{"instanceId":"i"}`, "a bad id": `{"instanceId":"a/b","customStatus":1}`} {
			got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			look(phase+" publishing "+what, got)
			if got, err = w.do(http.MethodPost, n.base+"/v1/updates", w.customer, strings.NewReader(body)); err != nil {
				t.Fatal(err)
			}
			look(phase+" publishing without the right "+what, got)
		}
	}
	all("in peace:")
	w.redis.Stop()
	all("without redis:")
	w.redis.Start()
	for _, want := range []string{"not-found", "unauthenticated", "invalid", "unavailable"} {
		if !strings.Contains(strings.Join(slices.Collect(maps.Keys(kinds)), " "), want) {
			t.Errorf("no problem was %s: %v", want, kinds)
		}
	}
}

// Names that could mean something else further on are refused, and reach nothing.
func TestH6PathsAreReadOnceAndStrictly(t *testing.T) {
	t.Parallel()
	w, r := hiddenWorld(t)
	reads := func() string {
		for line := range strings.Lines(w.redis.Do("INFO", "commandstats")) {
			if calls, ok := strings.CutPrefix(line, "cmdstat_hmget:calls="); ok {
				calls, _, _ = strings.Cut(calls, ",")
				return calls
			}
		}
		return "none"
	}
	before := reads()
	for _, id := range []string{
		"%2e%2e%2fmine", "..%2fmine", "a%2fb", "a%5cb", "%00", "a%00b", "a%0d%0ab", "a%0ab", "a%09b", "%7f", "a%c2%80b", // control
		"a%e2%80%aeb", "a%e2%80%8bb", "a%e2%81%a6b", "a%ef%bb%bfb", "a%e2%80%8db", // bidi, zero width
		"%ff", "%c0%ae", "a%ed%a0%80b", // not UTF-8
		"a%3fb", "a%23b", "%40entity", "%2540x%252f%00", strings.Repeat("x", 257), strings.Repeat("x", 10<<10), strings.Repeat("%e2%82%ac", 257), "%", "%zz",
	} {
		for _, path := range []string{
			"/v1/hubs/" + hub + "/instances/" + id, "/v1/instances/" + id, "/runtime/webhooks/durabletask/instances/" + id, "/v1/hubs/" + id + "/instances/mine",
		} {
			got := w.exchange(r, "GET "+path+" HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nAuthorization: Bearer "+w.customer+"\r\n\r\n")
			code := strings.TrimPrefix(got, "HTTP/1.1 ")
			if !strings.HasPrefix(code, "400") && !strings.HasPrefix(code, "404") {
				t.Errorf("%.80s: got %.100s", path, got)
			}
		}
	}
	// An id that was encoded twice is another id, and none that exists.
	got := w.exchange(r, "GET /v1/hubs/e2e/instances/%256dine HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nAuthorization: Bearer "+w.customer+"\r\n\r\n")
	after := reads()
	if !strings.HasPrefix(got, "HTTP/1.1 404") {
		t.Errorf("encoded twice: got %.100s", got)
	}
	if before == "none" || after == before {
		t.Errorf("reads went from %s to %s: that last one should be one", before, after)
	}
	// All that came before it was none: once more, between two looks.
	before = reads()
	for _, id := range []string{"a%2fb", "%00", "a%e2%80%aeb", "%ff", strings.Repeat("x", 257)} {
		w.exchange(r, "GET /v1/hubs/e2e/instances/"+id+" HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nAuthorization: Bearer "+w.customer+"\r\n\r\n")
	}
	if after := reads(); after != before {
		t.Errorf("ids that break the rules were looked up: %s reads, then %s", before, after)
	}
	for what, text := range map[string]string{
		"dots":            "GET /v1/hubs/e2e/instances/../../../metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n",
		"two slashes":     "GET //v1//hubs/e2e/instances/mine HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n",
		"two lengths":     "POST /v1/tickets HTTP/1.1\r\nHost: relay\r\nContent-Length: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxx",
		"length and more": "POST /v1/tickets HTTP/1.1\r\nHost: relay\r\nContent-Length: 4\r\nTransfer-Encoding: chunked, identity\r\nConnection: close\r\n\r\n0\r\n\r\n",
		"no host":         "GET /v1/hubs/e2e/instances/mine HTTP/1.1\r\nConnection: close\r\n\r\n",
		"a bare CR":       "GET /v1/hubs/e2e/instances/mine HTTP/1.1\r\nHost: relay\rX: y\r\nConnection: close\r\n\r\n",
		"32 KB of header": "GET /v1/hubs/e2e/instances/mine HTTP/1.1\r\nHost: relay\r\nX: " + strings.Repeat("x", 64<<10) + "\r\nConnection: close\r\n\r\n",
		"a NUL in it":     "GET /v1/hubs/e2e/instances/mine HTTP/1.1\r\nHost: relay\r\nX: a\x00b\r\nConnection: close\r\n\r\n",
	} {
		if got := w.exchange(r, text); strings.HasPrefix(got, "HTTP/1.1 2") {
			t.Errorf("%s: got %.100s", what, got)
		}
	}
}

// What is for operators of the relay is not on the listener that the world reaches, and pages may do nothing that they need not.
func TestH10NothingPrivateIsPublic(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.notifier()
	for _, base := range []string{r.base, n.base} {
		for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/vars", "/healthz", "/readyz", "/debug", "//metrics", "/v1/../metrics"} {
			got, err := w.do(http.MethodGet, base+path, w.operator, nil)
			if err != nil || got.code != http.StatusNotFound {
				t.Errorf("%s: got %d, %v, want 404", path, got.code, err)
			}
		}
	}
	s, err := dev.New(w.ctx, dev.Options{NoSamples: true})
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan dev.Info, 1)
	w.run(func(ctx context.Context) error { return s.Run(ctx, func(i dev.Info) { ready <- i }) })
	info := <-ready
	got, err := w.do(http.MethodGet, info.Relay+"/", "", nil)
	if err != nil || got.code != http.StatusOK {
		t.Fatalf("the page: got %d, %v", got.code, err)
	}
	for name, values := range map[string][]string{
		"Content-Security-Policy": {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"},
		"X-Content-Type-Options":  {"nosniff"},
		"Referrer-Policy":         {"no-referrer"},
	} {
		for _, value := range values {
			if !strings.Contains(got.header.Get(name), value) {
				t.Errorf("the page has %s: %q, want %s in it", name, got.header.Get(name), value)
			}
		}
	}
	if policy := got.header.Get("Content-Security-Policy"); strings.Contains(policy, "unsafe") {
		t.Errorf("the page may run anything: %s", policy)
	}
}

// An event has the text of a status as it is, and no text ends it.
func TestH11TextCannotEndAnEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	k := key("order-4711")
	s := w.feed(instanceURL(r, k), w.customer)
	quoted, err := json.Marshal(awkward)
	if err != nil {
		t.Fatal(err)
	}
	w.send(strings.Replace(progress(k.InstanceID, 1, 40), `"step":"s"`, `"step":`+string(quoted), 1))
	s.sees(k, 40)
	w.send(progress(k.InstanceID, 2, 41))
	s.sees(k, 41)
	events, _ := s.all()
	if len(events) != 2 {
		t.Fatalf("got %d events, want 2: %v", len(events), events)
	}
	custom := parse[struct{ Step string }](w, w.view([]byte(events[0].Data)).CustomStatus)
	if custom.Step != awkward {
		t.Errorf("got %q, want %q", custom.Step, awkward)
	}
}
