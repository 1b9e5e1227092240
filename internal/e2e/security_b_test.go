package e2e_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
)

// What Redis holds is not believed: garbage is as if nothing were there, is counted, and harms nothing else.
func TestR3GarbageInRedisIsAMiss(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.keepRaw = true
	r := w.relay(nil)
	w.send(progress("good", 1, 40), progress("model", 1, 1))
	w.shows(r, key("good"), 40)
	w.shows(r, key("model"), 1)
	name := func(id string) string { return "statusrelay:{e2e/" + id + "}" }
	model := strings.TrimSpace(w.redis.Do("HGET", name("model"), "r"))
	as := func(id string, changes ...string) string {
		return strings.NewReplacer(changes...).Replace(strings.Replace(model, `"id":"model"`, `"id":"`+id+`"`, 1))
	}
	hash := func(id, version, record string) func() {
		return func() { w.redis.Do("HSET", name(id), "v", version, "s", version, "r", record) }
	}
	garbage := map[string]func(){
		"text":       func() { w.redis.Do("SET", name("text"), "x") },
		"list":       func() { w.redis.Do("RPUSH", name("list"), "x") },
		"set":        func() { w.redis.Do("SADD", name("set"), "x") },
		"noversion":  func() { w.redis.Do("HSET", name("noversion"), "r", as("noversion")) },
		"word":       hash("word", "one", as("word")),
		"negative":   hash("negative", "-1", as("negative")),
		"zero":       hash("zero", "0", as("zero")),
		"future":     hash("future", "9007199254740992", as("future")),
		"float":      hash("float", "1e3", as("float")),
		"notjson":    hash("notjson", "5", "\x00\xff{"),
		"array":      hash("array", "5", "[]"),
		"empty":      hash("empty", "5", ""),
		"deep":       hash("deep", "5", strings.Repeat(`{"a":`, 50_000)),
		"another":    hash("another", "5", model),
		"badstatus":  hash("badstatus", "5", strings.Replace(as("badstatus"), `"progress"`, `"lifecycle":{"p":{"n":1},"status":"Hacked"},"progress"`, 1)),
		"large":      hash("large", "5", strings.Replace(as("large"), `"note":"`, `"note":"`+strings.Repeat("x", 1<<20), 1)),
		"huge":       hash("huge", "5", strings.Repeat("x", 32<<20)),
		"generation": hash("generation", "5", strings.Replace(as("generation"), fmt.Sprint(generation), "99999999999999999", 1)),
	}
	if !strings.Contains(model, `"id":"model"`) || !strings.Contains(model, `"note":"`) {
		t.Fatalf("a record is %s", model)
	}
	var keys []status.Key
	for id, write := range garbage {
		write()
		keys = append(keys, key(id))
	}
	v := w.watch(r, w.operator, append(keys, key("good"))...)
	v.sees(key("good"), 40)
	counted := w.metric(r, "statusrelay_redisstore_corrupt_records_total")
	for id := range garbage {
		got := w.get(r, w.operator, key(id))
		if got.code != http.StatusNotFound {
			t.Errorf("%s: got %d %.200s, want 404", id, got.code, got.body)
		}
		w.redis.Do("PUBLISH", name(id), "9007199254740992\n"+model) // and what is told of it
		w.redis.Do("PUBLISH", name(id), "garbage")
		w.redis.Do("PUBLISH", name(id), strings.Repeat("x", 1<<20))
	}
	if got := w.metric(r, "statusrelay_redisstore_corrupt_records_total"); got < counted+float64(len(garbage)-2) {
		t.Errorf("%v corrupt records were counted after %v, by %d kinds", got, counted, len(garbage))
	}
	// Indexes too.
	w.redis.Do("ZADD", "statusrelay:{e2e}", "1", "x\x00y", "2", "../z")
	if got, err := w.do(http.MethodGet, r.base+"/v1/hubs/e2e/instances", w.operator, nil); err != nil || got.code != http.StatusOK || !strings.Contains(string(got.body), `"good"`) {
		t.Errorf("a list: got %d %.300s, %v", got.code, got.body, err)
	}
	w.send(progress("good", 2, 41))
	v.sees(key("good"), 41)
	for _, k := range keys {
		if f := v.last(k); f.Type == "status" {
			t.Errorf("%s: a socket was told %.200s", k, f.Status)
		}
	}
	if got := w.ready(r); got != http.StatusOK {
		t.Errorf("readiness is %d", got)
	}
	// The next update of such an instance puts it right where that is a hash.
	w.send(progress("notjson", 3, 50), progress("future", 3, 51))
	w.shows(r, key("notjson"), 50)
	w.shows(r, key("future"), 51)
}

// Who may publish to one hub cannot publish to another, nor for another's label: the message's own words give no right.
func TestB3MessageClaimsNoOtherHub(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	rules := strings.Replace(string(policy.Development()), `  - when: "'publisher' in claims.roles"
    hubs: ["*"]`, `  - when: "'publisher' in claims.roles"
    hubs: [e2e]
  - when: labels.owner == claims.sub
    hubs: [own]`, 1)
	n, err := notifier.New(w.ctx, func() notifier.Config {
		c := notifier.Defaults()
		c.Listen, c.PrivateListen, c.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", time.Second
		c.Auth = w.auth()
		c.ServiceBus.ConnectionString = settings.NewSecret(w.serviceBus)
		return c
	}(), notifier.Options{Policy: w.policy(rules), Logger: w.logs.logger()})
	if err != nil {
		t.Fatal(err)
	}
	w.run(n.Run)
	base := "http://" + n.Addr().String()
	of := func(hubName, who string) string {
		return strings.NewReplacer(`"hub":"e2e"`, `"hub":"`+hubName+`"`, owner, who).Replace(progress("i", 1, 1))
	}
	for _, c := range []struct {
		what, token, body string
		want              int
	}{
		{"its own hub", w.publisher, of("e2e", owner), 202},
		{"another hub", w.publisher, of("orders", owner), 403},
		{"the default hub, by saying none", w.publisher, strings.Replace(of("e2e", owner), `"hub":"e2e",`, "", 1), 403},
		{"another hub behind its own", w.publisher, "[" + of("e2e", owner) + "," + of("orders", owner) + "]", 207},
		{"an owner of their own", w.customer, of("own", owner), 202},
		{"an owner of another's", w.customer, of("own", "u-2"), 403},
		{"a reader of all", w.operator, of("e2e", owner), 403},
	} {
		got, err := w.do(http.MethodPost, base+"/v1/updates", c.token, strings.NewReader(c.body))
		if err != nil || got.code != c.want {
			t.Errorf("%s: got %d %s, %v, want %d", c.what, got.code, got.body, err, c.want)
		}
	}
	if s := w.stats(); s.Active != 3 {
		t.Errorf("the bus has %+v, want the three that were allowed", s)
	}
}

// A field that a reader's audience may not see is on no path, in no form: neither answered, nor pushed, nor logged, nor counted.
func TestB4HiddenFieldsAreOnNoPath(t *testing.T) {
	t.Parallel()
	const forNobody, forOperators = "s3cret-nobody", "s3cret-operators"
	w := newWorld(t, nil)
	w.keepRaw = true
	r, n := w.relay(w.policy(hiding)), w.notifier()
	ids := []string{"running", "failed", "done"}
	var keys []status.Key
	for _, id := range ids {
		keys = append(keys, key(id))
	}
	instances := r.base + "/v1/hubs/" + hub + "/instances"
	read := map[string]*strings.Builder{"customer": {}, "operator": {}}
	tokens := map[string]string{"customer": w.customer, "operator": w.operator}
	watchers, streams := map[string]*watcher{}, map[string][]*feed{}
	pubsubs, lists := map[string]*client{}, map[string]*client{}
	polled := make(chan string, 8)
	update := func(id string, sequence int, kind, members string) string {
		return fmt.Sprintf(`{"hub":%q,"instanceId":%q,"name":"Order","generation":%d,"sequence":%d,"kind":%q,%s,"labels":{"owner":%q,"team":"%s-team"},"input":"%[8]s"}`,
			hub, id, generation, sequence, kind, members, owner, forOperators)
	}
	custom := func(percent int) string {
		return fmt.Sprintf(`"customStatus":{"percent":%d,"step":"s","internal":"%s","card":"%s"}`, percent, forOperators, forNobody)
	}
	for i := range ids {
		w.post(n, update(ids[i], 1, "progress", custom(10)))
		w.until("it is there", func() bool { return w.get(r, w.operator, keys[i]).code == http.StatusOK })
	}
	for who, token := range tokens {
		watchers[who] = w.watch(r, token, keys...)
		streams[who] = []*feed{w.feed(instances+"/running", token), w.feed(instances+"?id=running&id=failed&id=done", token), w.feed(instances, token)}
		c, _ := w.handshake(r, "", bearer(token), "json.webpubsub.azure.v1")
		for _, id := range ids {
			c.send(`{"type":"joinGroup","group":"e2e/` + id + `"}`)
		}
		pubsubs[who] = c
		lists[who] = w.socket(r, token)
		lists[who].send(`{"type":"watch","list":"all","query":{"hub":"e2e"}}`)
		tag := w.get(r, token, keys[0]).header.Get("ETag")
		go func() {
			got, err := w.do(http.MethodGet, instanceURL(r, keys[0]), token, nil, "If-None-Match", tag, "Prefer", "wait=8")
			polled <- fmt.Sprintln(who, got.code, got.header, string(got.body), err)
		}()
	}
	w.until("both wait", func() bool { return w.metric(r, "statusrelay_httpapi_waiting") == 2 })
	for _, id := range ids {
		w.post(n, update(id, 2, "progress", custom(20)))
		end := map[string]string{"failed": `"runtimeStatus":"Failed","failure":{"type":"%[1]s","message":"%[1]s"}`, "done": `"runtimeStatus":"Completed","output":{"for":"%[2]s"}`}[id]
		if end != "" {
			w.post(n, update(id, 3, "lifecycle", strings.NewReplacer("%[1]s", forNobody, "%[2]s", forOperators).Replace(end)))
		}
	}
	for range 2 {
		who, text, _ := strings.Cut(<-polled, " ")
		fmt.Fprintln(read[who], text)
	}
	for who, token := range tokens {
		for _, k := range keys {
			watchers[who].sees(k, 20)
		}
		streams[who][0].sees(keys[0], 20)
		for _, s := range streams[who][1:] {
			for _, k := range keys {
				s.sees(k, 20)
			}
		}
		for _, path := range []string{
			"/v1/hubs/e2e/instances?id=running&id=failed&id=done", "/v1/hubs/e2e/instances", "/v1/hubs/e2e/instances?runtimeStatus=Failed", "/v1/hubs/e2e/instances?name=Order&limit=1",
			"/v1/hubs/e2e/instances?label.team=" + forOperators + "-team", "/v1/hubs/e2e/instances?label.card=" + "x", "/v1/hubs/e2e/instances/failed?x=1",
			"/runtime/webhooks/durabletask/instances/running?taskHub=e2e&showInput=true&showHistory=true&showHistoryOutput=true",
			"/runtime/webhooks/durabletask/instances/failed?taskHub=e2e&returnInternalServerErrorOnFailure=true", "/runtime/webhooks/durabletask/instances/done?taskHub=e2e&showInput=true",
		} {
			got, err := w.do(http.MethodGet, r.base+path, token, nil)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(read[who], path[:min(len(path), 20)], got.code, got.header, string(got.body))
			if tag := got.header.Get("ETag"); tag != "" {
				again, err := w.do(http.MethodGet, r.base+path, token, nil, "If-None-Match", tag)
				if err != nil || len(again.body) > 0 && again.code == http.StatusNotModified {
					t.Fatal(again.code, err)
				}
				fmt.Fprintln(read[who], again.code, again.header, string(again.body))
			}
		}
		for _, k := range keys {
			got := w.get(r, token, k)
			fmt.Fprintln(read[who], got.code, got.header, string(got.body))
		}
		fmt.Fprintln(read[who], watchers[who].everything())
		for _, s := range streams[who] {
			events, _ := s.all()
			fmt.Fprintln(read[who], events)
		}
		for what, c := range map[string]*client{"Web PubSub": pubsubs[who], "a list": lists[who]} {
			seen := ""
			for _, id := range ids {
				for !strings.Contains(seen, id+`","name":"Order"`) || !strings.Contains(seen[strings.LastIndex(seen, id+`","name":"Order"`):], `"percent":20`) {
					_ = c.conn.SetReadDeadline(time.Now().Add(2 * patience))
					_, text, err := c.conn.ReadMessage()
					if err != nil {
						t.Fatalf("%s of the %s: %v after %s", what, who, err, seen)
					}
					seen += string(text) + "\n"
				}
			}
			fmt.Fprintln(read[who], seen)
		}
	}
	metrics, err := w.do(http.MethodGet, r.private+"/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	n.stop()
	for what, c := range map[string]struct {
		text    string
		secrets []string
	}{
		"the customer's":  {strings.ReplaceAll(read["customer"].String(), "label.team="+forOperators, ""), []string{forNobody, forOperators}},
		"the operator's":  {read["operator"].String(), []string{forNobody}},
		"the log's":       {w.logs.String(), []string{forNobody, forOperators}},
		"the metrics'":    {string(metrics.body), []string{forNobody, forOperators}},
		"what is logged,": {w.logs.String(), []string{`"percent"`}},
	} {
		for _, secret := range c.secrets {
			if i := strings.Index(c.text, secret); i >= 0 {
				t.Errorf("%s: found %s in …%s…", what, secret, c.text[max(0, i-200):min(len(c.text), i+50)])
			}
		}
	}
	if !strings.Contains(read["operator"].String(), forOperators) {
		t.Error("what is for operators is not there: nothing was tested")
	}
}

// What is said of poison fits the broker, whatever the poison, and has nothing of it.
func TestB6DeadLetterDescriptionsAreShortAndClean(t *testing.T) {
	t.Parallel()
	const secret = "s3cret"
	w := newWorld(t, nil)
	w.relay(nil)
	long := strings.Repeat(secret, 10_000)
	bodies := []string{
		long, `{"` + long + `":1}`, `{"instanceId":"` + long + `","customStatus":1}`, `{"instanceId":"i","hub":"` + long + `","customStatus":1}`,
		`{"instanceId":"i","customStatus":` + strings.Repeat(`{"`+secret+`":`, 5000) + `1` + strings.Repeat("}", 5000) + `}`,
		`{"instanceId":"i","runtimeStatus":"` + long + `"}`, `{"instanceId":"i","labels":{"` + long + `":"x"},"customStatus":1}`,
		`{"instanceId":"i","customStatus":{"` + long + `":1,"` + long + `":2}}`, `{"specversion":"1.0","type":"` + long + `","source":"x","id":"1","data":{}}`,
		`<` + long + `>`, "\x00" + long,
	}
	w.send(bodies...)
	w.settled()
	for _, d := range w.deadLetters(len(bodies)) {
		if len(d.description) > 1024 || d.description == "" || len(d.reason) > 64 {
			t.Errorf("%.40q: a description of %d bytes: %.200s", d.body, len(d.description), d.description)
		}
		if strings.Contains(string(d.reason)+d.description, secret) {
			t.Errorf("%.40q: is described by itself: %.200s", d.body, d.description)
		}
	}
}

// peak is the most memory that a process has had, in bytes.
func (p *process) peak(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kilobytes int64
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}

// A value that is as large as Redis can hold is a miss like any other garbage, and costs the relay no memory, whoever asks for it, and
// however many do. Its neighbours are read, and the next update puts it right.
func TestR3HugestValueCostsNoMemory(t *testing.T) {
	t.Parallel()
	const size, most = 512 << 20, 64 << 20
	w := newWorld(t, nil)
	p := w.startProcess(build(t, "relay"), "")
	w.send(progress("good", 1, 40), progress("huge", 1, 1))
	w.shows(&p.replica, key("good"), 40)
	w.shows(&p.replica, key("huge"), 1)
	conn, err := net.Dial("tcp", w.redis.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	name := "statusrelay:{e2e/huge}"
	if _, err := fmt.Fprintf(conn, "*4\r\n$4\r\nHSET\r\n$%d\r\n%s\r\n$1\r\nr\r\n$%d\r\n", len(name), name, size); err != nil {
		t.Fatal(err)
	}
	for chunk, left := bytes.Repeat([]byte("x"), 1<<20), size; left > 0; left -= len(chunk) {
		if _, err := conn.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	answer := make([]byte, 16)
	if _, err := fmt.Fprint(conn, "\r\n"); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(answer); err != nil || string(answer[:n]) != ":0\r\n" {
		t.Fatalf("redis answered %q, %v", answer[:n], err)
	}
	before := p.peak(t)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			w.until("it is a miss", func() bool { // and 503 while Redis takes longer than the relay waits
				return w.get(&p.replica, w.operator, key("huge")).code == http.StatusNotFound
			})
		})
	}
	all.Wait()
	w.until("its neighbour is read with it", func() bool {
		got, err := w.do(http.MethodGet, p.base+"/v1/hubs/e2e/instances?id=huge&id=good", w.operator, nil)
		return err == nil && got.code == http.StatusOK && strings.Count(string(got.body), `"version"`) == 1 && strings.Contains(string(got.body), `"percent":40`)
	})
	if w.metric(&p.replica, "statusrelay_redisstore_corrupt_records_total") < 2 {
		t.Error("it was not counted")
	}
	w.watch(&p.replica, w.operator, key("huge"), key("good")).sees(key("good"), 40)
	w.send(progress("huge", 2, 50))
	w.shows(&p.replica, key("huge"), 50)
	if grown := p.peak(t) - before; grown > most {
		t.Errorf("the relay took %d MB more", grown>>20)
	}
	t.Logf("a value of %d MB: at most %d MB before, %d MB then", size>>20, before>>20, p.peak(t)>>20)
}
