package e2e_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"statusrelay/internal/relay"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// page is what a portal would have: it gets a ticket, follows, and when the
// stream breaks does the same again, since a ticket is good for one stream. It
// resumes after what it has where RESUMES says so.
const page = `<!doctype html><title>portal</title><script>
const relay = "RELAY", token = "TOKEN", path = "PATH", resumes = RESUMES;
const seen = [];
let opened = 0, after = "", source;
async function follow() {
  try {
    const url = new URL(path, relay);
    const answer = await fetch(relay + "/v1/tickets", {method: "POST", headers: {Authorization: "Bearer " + token}});
    url.searchParams.set("ticket", (await answer.json()).ticket);
    if (resumes && after) url.searchParams.set("after", after);
    source = new EventSource(url);
  } catch {
    return setTimeout(follow, 50);
  }
  source.onopen = () => { opened++ };
  for (const type of ["status", "gone"]) {
    source.addEventListener(type, (event) => {
      seen.push({type, id: event.lastEventId, data: event.data});
      after = event.lastEventId;
    });
  }
  source.onmessage = (event) => { seen.push({type: "message", id: event.lastEventId, data: event.data}) };
  source.onerror = () => { source.close(); setTimeout(follow, 50) };
}
follow();
</script>`

// A seen is an event that a page has seen.
type seen struct{ Type, ID, Data string }

// A tab is a page in a real browser.
type tab struct {
	*world
	ctx context.Context
}

// open opens the page at an origin of its own, and starts a relay that allows
// that, behind a proxy that can cut. The page's path is on that.
func (w *world) open(path string, resumes bool) (r *replica, proxy *storetest.Proxy, p tab) {
	w.Helper()
	portal := httptest.NewUnstartedServer(nil)
	w.Cleanup(portal.Close)
	origin := "http://" + portal.Listener.Addr().String()
	r = w.relay(nil, func(c *relay.Config) { c.Origins = []string{origin} })
	proxy = storetest.StartProxy(w, strings.TrimPrefix(r.base, "http://"))
	text := strings.NewReplacer("RELAY", "http://"+proxy.Addr, "TOKEN", w.customer, "PATH", path, "RESUMES", fmt.Sprint(resumes)).Replace(page)
	portal.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(rw, text) // the browser is gone: nobody is left to tell
	})
	portal.Start()

	p = tab{w, w.browser()}
	if err := chromedp.Do(p.ctx, chromedp.Navigate(origin)); err != nil {
		w.Fatal(err)
	}
	return r, proxy, p
}

// browser returns a real one.
func (w *world) browser() context.Context {
	w.Helper()
	var path string
	for _, name := range []string{"google-chrome", "chromium-browser", "chromium"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
		}
	}
	if path == "" {
		w.Fatal("chromium is not installed: make test installs it")
	}
	ctx, cancel := chromedp.NewExecAllocator(w.ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true))...)
	w.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	w.Cleanup(cancel)
	return ctx
}

// until waits for a JavaScript expression to hold, and returns what was seen by then.
func (p tab) until(expression string) (all []seen) {
	p.Helper()
	err := chromedp.Do(p.ctx, chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(deadline)))
	text, e := chromedp.Run(p.ctx, chromedp.Evaluate[string](`JSON.stringify(seen)`))
	if err := errors.Join(err, e); err != nil {
		p.Fatalf("in vain: %s: %v; seen: %s", expression, err, text)
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		p.Fatal(err)
	}
	return all
}

// shows is an expression for the newest event of an instance showing a progress.
func shows(id string, percent int) string {
	return fmt.Sprintf(`seen.some(({type, data}) => type === "status" && JSON.parse(data).instanceId === %q && JSON.parse(data).customStatus?.percent === %d)`, id, percent)
}

// awkward is text that would end a line, an event or a connection, if it were
// written as it is.
const awkward = "CR\rLF\nCRLF\r\nNUL\x00 data: x\n\nevent: gone\nid: 1\ndata: {}\n\n: \u2028\u2029\ufeff 😀 </script>"

// A page with the browser's own EventSource sees an instance's every newest
// status, whatever text it has. When its connection is cut it resumes with a new
// ticket after what it has, and sees nothing twice.
func TestBrowserFollowsAndResumes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	k := key("order-1")
	r, proxy, p := w.open("/v1/hubs/"+k.Hub+"/instances/"+k.InstanceID, true)
	text, err := json.Marshal(awkward)
	if err != nil {
		t.Fatal(err)
	}
	send := w.sender()
	send([]byte(strings.Replace(progress(k.InstanceID, 1, 10), `"step":"s"`, `"step":"s","message":`+string(text), 1)))
	all := p.until(shows(k.InstanceID, 10))
	got := w.get(r, w.customer, k)
	if !sameJSON(t, json.RawMessage(all[0].Data), got.body) {
		t.Errorf("the event has %s, the answer %s", all[0].Data, got.body)
	}
	var custom struct{ Message string }
	if err := json.Unmarshal(w.view([]byte(all[0].Data)).CustomStatus, &custom); err != nil || custom.Message != awkward {
		t.Errorf("got the text %q, %v, want %q", custom.Message, err, awkward)
	}

	send([]byte(progress(k.InstanceID, 2, 20)))
	p.until(shows(k.InstanceID, 20))
	proxy.Cut()
	send([]byte(progress(k.InstanceID, 3, 30)))
	p.until(shows(k.InstanceID, 30) + ` && opened >= 2`)
	proxy.Cut() // with nothing new
	p.until(`opened >= 3`)
	send([]byte(progress(k.InstanceID, 4, 40)))
	all = p.until(shows(k.InstanceID, 40))

	var percents []int
	last := int64(0)
	for _, e := range all {
		v := w.view([]byte(e.Data))
		percents = append(percents, v.percent())
		if e.Type != "status" || e.ID != fmt.Sprint(v.Version) || v.Version <= last {
			t.Errorf("got the event %+v after version %d", e, last)
		}
		last = v.Version
	}
	if want := []int{10, 20, 30, 40}; !slices.Equal(percents, want) {
		t.Errorf("got %v, want %v", percents, want)
	}
	send([]byte(fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"kind":"purged"}`, hub, k.InstanceID, generation)))
	p.until(`seen.at(-1).type === "gone"`)
}

// One stream has several instances, those too that appear later. After a cut all
// that there is comes again.
func TestBrowserFollowsSeveralOnOneStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a, b, theirs := key("a"), key("b"), key("theirs")
	_, proxy, p := w.open("/v1/hubs/"+hub+"/instances?id=a&id=b&id=theirs", false)
	send := w.sender()
	send([]byte(progress(a.InstanceID, 1, 10)), []byte(strings.Replace(progress(theirs.InstanceID, 1, 10), owner, "u-1002", 1)))
	p.until(shows("a", 10))
	send([]byte(progress(b.InstanceID, 1, 11)))
	p.until(shows("b", 11))
	send([]byte(progress(a.InstanceID, 2, 20)))
	before := len(p.until(shows("a", 20)))

	proxy.Cut()
	all := p.until(fmt.Sprintf(`seen.length >= %d`, before+2))
	for id, want := range map[string]int{"a": 20, "b": 11} {
		if !slices.ContainsFunc(all[before:], func(e seen) bool {
			v := w.view([]byte(e.Data))
			return v.InstanceID == id && v.percent() == want
		}) {
			t.Errorf("after the cut: got %+v, want %s with %d", all[before:], id, want)
		}
	}
	for _, e := range all {
		if e.Type != "status" || w.view([]byte(e.Data)).InstanceID == theirs.InstanceID {
			t.Errorf("got %+v", e)
		}
	}
}

// A ticket is for one stream, and for pages of the origin that asked for it.
func TestTicketIsForOneStreamOfOneOrigin(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const portal, other = "https://portal.example", "https://other.example"
	r := w.relay(nil, func(c *relay.Config) { c.Origins = []string{portal, other} })
	k := key("order-1")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	ticket := func() string {
		got, err := w.do(http.MethodPost, r.base+"/v1/tickets", w.customer, nil, "Origin", portal)
		if err != nil || got.code != http.StatusCreated {
			t.Fatalf("a ticket: got %d %s, %v", got.code, got.body, err)
		}
		return parse[struct{ Ticket string }](w, got.body).Ticket
	}
	use := func(ticket, origin string) int {
		return w.feed(instanceURL(r, k)+"?ticket="+ticket, "", "Origin", origin).code
	}
	mine := ticket()
	for _, c := range []struct {
		what, ticket, origin string
		want                 int
	}{
		{"at another origin", ticket(), other, http.StatusUnauthorized},
		{"at its own", mine, portal, http.StatusOK},
		{"again", mine, portal, http.StatusUnauthorized},
	} {
		if got := use(c.ticket, c.origin); got != c.want {
			t.Errorf("%s: got %d, want %d", c.what, got, c.want)
		}
	}
}

// A feed is a client of server-sent events that looks at how they come: through
// proxies, with comments, and what is refused.
type feed struct {
	*world
	code   int
	header http.Header

	mu       sync.Mutex
	events   []seen        // guarded by mu
	comments int           // guarded by mu
	ended    error         // guarded by mu
	changed  chan struct{} // guarded by mu; closed and replaced with each of them
}

// feed asks for events. Headers are names and values in turn.
func (w *world) feed(url, token string, headers ...string) *feed {
	w.Helper()
	transport := new(http.Transport)
	ctx, cancel := context.WithCancel(w.ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		w.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	r.Header.Set("Accept-Encoding", "gzip") // set by hand, so that it stays in sight
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answered := time.AfterFunc(patience, cancel)
	got, err := transport.RoundTrip(r)
	if err != nil {
		cancel()
		w.Fatalf("no answer: %v", err)
	}
	answered.Stop()
	s := &feed{world: w, code: got.StatusCode, header: got.Header, changed: make(chan struct{})}
	read := make(chan struct{})
	go func() {
		defer close(read)
		s.read(got)
	}()
	w.Cleanup(func() {
		cancel()
		<-read
		_ = got.Body.Close()
		transport.CloseIdleConnections()
	})
	return s
}

func (s *feed) read(r *http.Response) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			s.change(func() { s.ended = err })
			return
		}
		body = z
	}
	var e seen
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		s.change(func() {
			switch {
			case lines.Text() == "":
				if e.Data != "" {
					s.events = append(s.events, e)
				}
				e = seen{}
			case field == "":
				s.comments++
			case field == "event":
				e.Type = value
			case field == "id":
				e.ID = value
			case field == "data":
				e.Data += value
			}
		})
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	s.change(func() { s.ended = err })
}

func (s *feed) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until what came satisfies a condition.
func (s *feed) await(what string, cond func() bool) {
	s.Helper()
	look := func() (ok bool, changed chan struct{}, ended error) {
		s.mu.Lock()
		defer s.mu.Unlock() // also when cond ends the test
		return cond(), s.changed, s.ended
	}
	for {
		ok, changed, ended := look()
		switch {
		case ok:
			return
		case ended != nil:
			s.Fatalf("in vain: %s; the stream has ended: %v", what, ended)
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.Fatalf("in vain: %s; %d comments came, and %+v", what, s.comments, s.events)
		}
	}
}

// all returns what has come: events, and how many comments.
func (s *feed) all() (events []seen, comments int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events), s.comments
}

// sees waits for an event that shows a progress.
func (s *feed) sees(k status.Key, percent int) {
	s.Helper()
	s.await(fmt.Sprintf("an event of %s with %d", k, percent), func() bool {
		return slices.ContainsFunc(s.events, func(e seen) bool {
			v := s.view([]byte(e.Data))
			return e.Type == "status" && v.InstanceID == k.InstanceID && v.percent() == percent
		})
	})
}

// A stream of a list has its members: those that there are, then that these are
// all, then those that appear, and which are none any more.
func TestStreamOfAListFollowsItsMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	a, b, theirs := key("a"), key("b"), key("theirs")
	send := w.sender()
	send([]byte(progress(a.InstanceID, 1, 10)), []byte(strings.Replace(progress(theirs.InstanceID, 1, 10), owner, "u-1002", 1)))
	w.shows(r, a, 10)
	w.shows(r, theirs, 10)
	s := w.feed(r.base+"/v1/hubs/"+hub+"/instances?runtimeStatus=Running,Suspended&label.owner="+owner, w.customer)
	if s.code != http.StatusOK {
		t.Fatalf("got %d with %v", s.code, s.header)
	}
	s.await("that is all", func() bool {
		return slices.ContainsFunc(s.events, func(e seen) bool { return e.Type == "listed" && e.Data == `{"more":false}` })
	})
	s.sees(a, 10) // which came before
	if events, _ := s.all(); events[0].Type != "status" {
		t.Errorf("first came %+v, want the member", events[0])
	}
	send([]byte(progress(b.InstanceID, 1, 11)))
	s.sees(b, 11)
	send([]byte(lifecycle(a.InstanceID, 2, `"runtimeStatus":"Completed"`)))
	s.await("a has left", func() bool { return s.events[len(s.events)-1].Type == "left" })
	events, _ := s.all()
	n := len(events)
	last, left := w.view([]byte(events[n-2].Data)), w.view([]byte(events[n-1].Data))
	if left.InstanceID != a.InstanceID || left.Version == 0 || last.InstanceID != a.InstanceID || last.RuntimeStatus != "Completed" {
		t.Errorf("got %+v, want a's end and that it left", events)
	}
	for _, e := range events {
		if strings.Contains(e.Data, theirs.InstanceID) {
			t.Errorf("got %+v of another's instance", e)
		}
	}
}

// nginx starts one in front of a replica, as Debian configures it but for
// compression, which is on for everything. Settings are more of its configuration.
func (w *world) nginx(r *replica, settings string) (base string) {
	w.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not on everybody's path
	}
	if _, err := os.Stat(program); err != nil {
		w.Fatal("nginx is not installed: make test installs it, or names the package that has it")
	}
	// nginx cannot say which port it got. It takes over a socket that is open as it
	// does from its predecessor in an upgrade.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		w.Fatal(err)
	}
	defer socket.Close()
	defer l.Close() // what is open from here on is nginx's
	dir := w.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	err = os.WriteFile(config, fmt.Appendf(nil, `
daemon off;
worker_processes 1;
error_log stderr;
pid nginx.pid;
events {}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	gzip on;
	gzip_proxied any;
	gzip_min_length 0;
	gzip_types text/event-stream application/json;
	proxy_buffering on;
	%s
	server {
		listen %s;
		location / { proxy_pass %s; }
	}
}
`, settings, l.Addr(), r.base), 0o600)
	if err != nil {
		w.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-c", config, "-e", "stderr")
	cmd.Env = []string{"NGINX=3;"}
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = w.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // a killed test leaves none behind, nor its worker
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			w.Errorf("nginx ended with %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

// A reverse proxy that buffers and compresses what passes delays no event: the
// answer tells it not to.
func TestEventsPassAProxyThatBuffers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	proxied := &replica{base: w.nginx(r, "")}
	k := key("order-1")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	s := w.feed(instanceURL(proxied, k), w.customer)
	if s.code != http.StatusOK || s.header.Get("Content-Encoding") != "gzip" || !strings.HasPrefix(s.header.Get("Server"), "nginx") {
		t.Fatalf("got %d with %v, want a compressed stream from nginx", s.code, s.header)
	}
	s.sees(k, 10)
	w.send(progress(k.InstanceID, 2, 20))
	s.sees(k, 20)
	w.send(lifecycle(k.InstanceID, 3, `"runtimeStatus":"Completed"`))
	s.await("it has completed", func() bool { return strings.Contains(s.events[len(s.events)-1].Data, "Completed") })
	if _, comments := s.all(); comments > 0 {
		t.Errorf("%d heartbeats came: they may have pushed the events through", comments)
	}
}

// A stream on which nothing happens outlives the time after which a proxy gives
// up on a silent server.
func TestHeartbeatsKeepAStreamThroughAProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Read.Heartbeat = 500 * time.Millisecond })
	proxied := &replica{base: w.nginx(r, "proxy_read_timeout 6s;")} // a busy machine may stand still for a while
	k := key("order-1")
	s := w.feed(instanceURL(proxied, k), w.customer)
	s.await("twenty heartbeats", func() bool { return s.comments >= 20 }) // for eight seconds of silence
	w.send(progress(k.InstanceID, 1, 10))
	s.sees(k, 10)
}
