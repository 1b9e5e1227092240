package e2e_test

import (
	"bufio"
	"bytes"
	"compress/flate"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/relay"
	"statusrelay/internal/status"
)

const portal = "https://portal.example"

// Who opens a socket from a page must come from a listed origin, to the last byte.
func TestW1OriginMatrix(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	listed := w.relay(nil, func(c *relay.Config) { c.Origins = []string{portal, "http://localhost:8080"} })
	none := w.relay(nil)
	for _, c := range []struct {
		what    string
		origins []string
		want    int
	}{
		{"listed", []string{portal}, 101},
		{"listed, with a port", []string{"http://localhost:8080"}, 101},
		{"unlisted", []string{"https://evil.test"}, 403},
		{"null", []string{"null"}, 403},
		{"empty", []string{""}, 403},
		{"listed as a prefix", []string{portal + ".evil.test"}, 403},
		{"listed as a suffix", []string{"https://evil-portal.example"}, 403},
		{"a subdomain", []string{"https://a.portal.example"}, 403},
		{"listed in the path", []string{"https://evil.test/portal.example"}, 403},
		{"listed as a user", []string{"https://portal.example@evil.test"}, 403},
		{"another scheme", []string{"http://portal.example"}, 403},
		{"another port", []string{portal + ":8443"}, 403},
		{"the default port, said", []string{portal + ":443"}, 403},
		{"another case", []string{"https://Portal.example"}, 403},
		{"a slash", []string{portal + "/"}, 403},
		{"a dot", []string{portal + "."}, 403},
		{"two, both listed", []string{portal, portal}, 403},
		{"two, one listed", []string{portal, "https://evil.test"}, 403},
		{"two in one line", []string{portal + ", https://evil.test"}, 403},
		{"the relay's own", []string{listed.base}, 403},
		{"a wildcard", []string{"*"}, 403},
	} {
		header := bearer(w.operator)
		header["Origin"] = c.origins
		if _, got := w.handshake(listed, "", header, "status.v1.json"); got.code != c.want {
			t.Errorf("%s: got %d, want %d", c.what, got.code, c.want)
		}
		if _, got := w.handshake(none, "", header, "status.v1.json"); got.code != 403 {
			t.Errorf("%s, where none is listed: got %d, want 403", c.what, got.code)
		}
	}
}

// A cookie is no credential: a program without a token is refused, whatever else it sends.
func TestW2CookiesAreNoCredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Origins = []string{portal} })
	for _, name := range []string{"Authorization", "token", "access_token", "session", "mercureAuthorization"} {
		cookie := http.Header{"Cookie": {name + "=" + w.operator}}
		c, got := w.handshake(r, "", cookie, "status.v1.json")
		if got.code == http.StatusSwitchingProtocols { // for an auth frame, which it may still send: the cookie has opened nothing
			c.send(`{"type":"watch","instances":[{"hub":"e2e","instanceId":"i"}]}`)
			c.closes("cookie "+name, 4401)
		}
		if _, got := w.handshake(r, "", cookie, "json.webpubsub.azure.v1"); got.code != http.StatusUnauthorized {
			t.Errorf("cookie %s on Web PubSub: got %d, want 401", name, got.code)
		}
		answer, err := w.do(http.MethodGet, instanceURL(r, key("i")), "", nil, "Cookie", cookie.Get("Cookie"))
		if err != nil || answer.code != http.StatusUnauthorized {
			t.Errorf("cookie %s on a read: got %d, %v, want 401", name, answer.code, err)
		}
		if answer.header.Get("Set-Cookie") != "" {
			t.Error("a cookie is set")
		}
	}
	if _, got := w.handshake(r, "?access_token="+w.operator, nil, "status.v1.json"); got.code != http.StatusBadRequest {
		t.Errorf("a token in the query: got %d, want 400", got.code)
	}
}

// Who shows no credential gets no socket, or one that is small, few and soon closed.
func TestW3NobodyKeepsASocketWithoutSayingWho(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	for what, c := range map[string]struct {
		header       http.Header
		subprotocols []string
	}{
		"a forged token":                {bearer("forged"), []string{"status.v1.json"}},
		"a forged token, subprotocol":   {nil, []string{"status.v1.json", "bearer." + b64([]byte("forged"))}},
		"no token on Web PubSub":        {nil, []string{"json.webpubsub.azure.v1"}},
		"two tokens":                    {nil, []string{"status.v1.json", "bearer." + b64([]byte(w.operator)), "bearer." + b64([]byte(w.customer))}},
		"a header and a subprotocol":    {bearer(w.operator), []string{"status.v1.json", "bearer." + b64([]byte(w.customer))}},
		"the token as it is, not coded": {nil, []string{"status.v1.json", "bearer." + w.operator}},
	} {
		_, got := w.handshake(r, "", c.header, c.subprotocols...)
		if got.code != http.StatusUnauthorized || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: got %d %s, want a 401 problem", what, got.code, got.header.Get("Content-Type"))
		}
		if echoed := got.header.Get("Sec-Websocket-Protocol"); strings.Contains(echoed, "bearer") {
			t.Errorf("%s: the token is echoed", what)
		}
	}
	// More than may wait to say who they are: the others are refused, who has a token is not.
	const waiting, more = 1000, 100
	var refused atomic.Int64
	var opened sync.WaitGroup
	clients := make([]*client, waiting+more)
	for turn := range 8 {
		opened.Go(func() {
			for i := turn; i < len(clients); i += 8 {
				c, got := w.handshake(r, "", nil, "status.v1.json")
				switch got.code {
				case http.StatusSwitchingProtocols:
					clients[i] = c
				case http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					t.Errorf("got %d", got.code)
				}
			}
		})
	}
	opened.Wait()
	if got := w.metric(r, "statusrelay_wsapi_sockets"); got > waiting {
		t.Errorf("%v sockets of nobody", got)
	}
	w.socket(r, w.operator)
	for _, c := range clients {
		if c != nil {
			c.closes("no auth frame", 4408)
		}
	}
	w.until("only the operator's is left", func() bool { return w.metric(r, "statusrelay_wsapi_sockets") == 1 })
	t.Logf("%d of %d were refused", refused.Load(), len(clients))
}

// A frame is bounded before it is read, more tightly from who has not said who they are.
func TestW4FramesAreBounded(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil)
	large := func(n int) func(*client) { return func(c *client) { c.send(strings.Repeat(" ", n)) } }
	fragments := func(c *client) {
		m, err := c.conn.NextWriter(websocket.TextMessage)
		if err != nil {
			return
		}
		for range 100 {
			_, _ = m.Write(make([]byte, 5000))
		}
		_ = m.Close()
	}
	huge := []byte{0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}     // announces 2^62 bytes
	negative := []byte{0x81, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4} // and 2^63 and more, which no frame may
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, c := range []struct {
		what, token string
		send        func(*client)
	}{
		{"9 KiB before auth", "", large(9 << 10)},
		{"100 fragments before auth", "", fragments},
		{"2^62 bytes before auth", "", func(c *client) { c.raw(huge...) }},
		{"17 KiB", w.operator, large(17 << 10)},
		{"100 fragments", w.operator, fragments},
		{"2^62 bytes", w.operator, func(c *client) { c.raw(huge...) }},
		{"2^64-1 bytes", w.operator, func(c *client) { c.raw(negative...) }},
	} {
		s := w.socket(r, c.token)
		c.send(s)
		s.closes(c.what, websocket.CloseMessageTooBig)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
		t.Errorf("all this took %d bytes", took)
	}
}

// What is compressed is bounded as it unpacks; nothing is compressed unless that is configured.
func TestW5BombIsNotUnpacked(t *testing.T) {
	w := newWorld(t, nil)
	plain := w.relay(nil)
	packed := w.relay(nil, func(c *relay.Config) { c.Watch.Compression = true })
	dial := func(r *replica) (*client, *http.Response) {
		dialer := websocket.Dialer{Subprotocols: []string{"status.v1.json"}, EnableCompression: true}
		conn, got, err := dialer.DialContext(w.ctx, "ws"+strings.TrimPrefix(r.base, "http")+"/v1/watch", bearer(w.operator))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return &client{w, conn, got}, got
	}
	if _, got := dial(plain); got.Header.Get("Sec-Websocket-Extensions") != "" {
		t.Errorf("by default %q is agreed", got.Header.Get("Sec-Websocket-Extensions"))
	}
	if _, got := dial(packed); !strings.Contains(got.Header.Get("Sec-Websocket-Extensions"), "permessage-deflate") {
		t.Fatal("compression is not agreed")
	}
	for _, size := range []int{8 << 20, 32 << 20} { // the one fits in a frame as it is sent, the other does not
		c, _ := dial(packed)
		c.wants("welcome")
		frame := deflated(t, size)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		c.raw(frame...)
		c.closes(fmt.Sprintf("%d zeros in %d bytes", size, len(frame)), websocket.CloseMessageTooBig)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 2<<20 {
			t.Errorf("%d zeros took %d bytes", size, took)
		}
	}
}

// deflated is a compressed text frame (RFC 7692) of that many zeros.
func deflated(t *testing.T, size int) []byte {
	t.Helper()
	var packed bytes.Buffer
	z, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := z.Flush(); err != nil {
		t.Fatal(err)
	}
	payload := bytes.TrimSuffix(packed.Bytes(), []byte{0, 0, 0xff, 0xff})
	header := []byte{0xc1, 0xfe, byte(len(payload) >> 8), byte(len(payload)), 0, 0, 0, 0}
	if len(payload) > 0xffff {
		t.Fatalf("%d bytes", len(payload))
	}
	return append(header, payload...)
}

// A socket stays that of whom it was opened for: nobody else's token renews it.
func TestW6RefreshIsForTheSamePrincipal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	r := w.relay(nil, trusts(p))
	k := key("order-4711")
	w.send(strings.Replace(progress(k.InstanceID, 1, 40), owner, "u-2", 1))
	w.shows(r, k, 40)
	for what, token := range map[string]string{
		"another subject":                      w.token("u-2", "customer", time.Hour),
		"the same subject of another provider": p.token(map[string]any{"sub": owner}),
	} {
		c := w.socket(r, w.customer)
		text, err := json.Marshal(map[string]string{"type": "auth", "token": token})
		if err != nil {
			t.Fatal(err)
		}
		c.send(string(text))
		c.send(`{"type":"watch","instances":[{"hub":"e2e","instanceId":"order-4711"}]}`)
		if before := c.closes(what, 4403); strings.Contains(before, `"status":{`) {
			t.Errorf("%s: was sent %s", what, before)
		}
	}
	// Fewer rights in a new token end what the old one showed.
	wide := w.token("u-3", "operator", time.Hour)
	c := w.socket(r, wide)
	c.send(`{"type":"watch","instances":[{"hub":"e2e","instanceId":"order-4711"}]}`)
	c.wants("watching")
	c.wants("status")
	text, err := json.Marshal(map[string]string{"type": "auth", "token": w.token("u-3", "customer", time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	c.send(string(text))
	c.wants("welcome")
	c.wants("gone")
}

// What one caller has does not help another: not a version, not an event id, not an entity tag, not a cursor, and one foreign
// instance among a caller's own is nothing, without harm to the others.
func TestW7EverythingIsAuthorisedForItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	theirs, mine, nobodys := key("theirs"), key("mine"), key("nobodys")
	other := w.token("u-2", "customer", time.Hour)
	w.send(strings.Replace(progress(theirs.InstanceID, 1, 40), owner, "u-2", 1), progress(mine.InstanceID, 1, 7))
	w.shows(r, theirs, 40)
	w.shows(r, mine, 7)
	held := w.get(r, other, theirs)
	version := w.view(held.body).Version

	v := w.watch(r, w.customer, theirs, mine)
	v.sees(mine, 7)
	// Who comes back for what is not there is told that it is gone, at the version that they named; for this one too.
	var resumed []*watcher
	for _, after := range []int64{1, version - 1, version, version + 1} {
		again := w.watchAfter(r, w.customer, map[status.Key]int64{theirs: after, nobodys: after}, theirs, nobodys, mine)
		again.sees(mine, 7)
		again.await("both are told", func(v *watcher) bool { return v.newest[theirs].Type != "" && v.newest[nobodys].Type != "" })
		a, b := again.last(theirs), again.last(nobodys)
		if a.Type != "gone" || a.Type != b.Type || a.Version != b.Version || a.Status != nil {
			t.Errorf("after %d: was sent %+v of another's instance, %+v of nobody's", after, a, b)
		}
		resumed = append(resumed, again)
	}
	if got := w.get(r, w.customer, theirs, "If-None-Match", held.header.Get("ETag")); got.code != http.StatusNotFound {
		t.Errorf("with the owner's entity tag: got %d, want 404", got.code)
	}
	after, err := w.do(http.MethodGet, fmt.Sprintf("%s?after=%d", instanceURL(r, theirs), version), w.customer, nil, "Prefer", "wait=5")
	if err != nil || after.code != http.StatusNotFound {
		t.Errorf("after the owner's version: got %d, %v, want 404 at once", after.code, err)
	}
	s := w.feed(instanceURL(r, theirs), w.customer, "Last-Event-ID", fmt.Sprint(version-1))
	batch, err := w.do(http.MethodGet, r.base+"/v1/hubs/"+hub+"/instances?id=theirs&id=mine&id=nobodys", w.customer, nil)
	if err != nil || !strings.HasPrefix(string(batch.body), `{"instances":[{"instanceId":"theirs","status":404},{`) {
		t.Errorf("a batch: got %s, %v", batch.body, err)
	}
	list, err := w.do(http.MethodGet, r.base+"/v1/hubs/"+hub+"/instances?label.owner=u-2&limit=1", other, nil)
	if err != nil || list.code != http.StatusOK {
		t.Fatal(err, list.code)
	}
	w.send(strings.Replace(progress("theirs-too", 1, 41), owner, "u-2", 1))
	w.shows(r, key("theirs-too"), 41)
	first, err := w.do(http.MethodGet, r.base+"/v1/hubs/"+hub+"/instances?label.owner=u-2&limit=1", other, nil)
	cursor := parse[struct{ Cursor string }](w, first.body).Cursor
	if err != nil || cursor == "" {
		t.Fatalf("no cursor in %s, %v", first.body, err)
	}
	stolen, err := w.do(http.MethodGet, r.base+"/v1/hubs/"+hub+"/instances?label.owner=u-2&limit=1&cursor="+cursor, w.customer, nil)
	if err != nil || stolen.code != http.StatusBadRequest || strings.Contains(string(stolen.body), "theirs") {
		t.Errorf("another's cursor: got %d %s, %v, want 400", stolen.code, stolen.body, err)
	}
	// The next change of both: what is the caller's own comes, so the other would have come before it.
	w.send(strings.Replace(progress(theirs.InstanceID, 2, 50), owner, "u-2", 1))
	w.shows(r, theirs, 50)
	w.send(progress(mine.InstanceID, 2, 8))
	v.sees(mine, 8)
	if f := v.last(theirs); f.Type != "" {
		t.Errorf("was sent %+v", f)
	}
	for _, again := range resumed {
		again.sees(mine, 8)
		if f := again.last(theirs); f.Type != "gone" {
			t.Errorf("was sent %+v", f)
		}
	}
	for _, e := range func() []seen { events, _ := s.all(); return events }() {
		if e.Type != "gone" {
			t.Errorf("a stream of another's instance has %v", e)
		}
	}
}

// tcp opens a connection to a replica's public listener.
func (w *world) tcp(r *replica) net.Conn {
	w.Helper()
	conn, err := new(net.Dialer).DialContext(w.ctx, "tcp", strings.TrimPrefix(r.base, "http://"))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Whoever dawdles over a header, a handshake or a frame is cut off, by the hundred.
func TestW10DawdlersAreCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Watch.PingInterval = 2 * time.Second })
	begun := time.Now()
	const each = 300
	ended := make(chan string, 4*each)
	// ends waits until the relay has closed a connection, while one byte a second is sent.
	ends := func(what string, conn net.Conn, drip string) {
		stop := make(chan struct{})
		go func() {
			every := time.NewTicker(time.Second)
			defer every.Stop()
			for i := 0; ; i++ {
				select {
				case <-every.C:
					if drip != "" {
						if _, err := io.WriteString(conn, drip[i%len(drip):i%len(drip)+1]); err != nil {
							return
						}
					}
				case <-stop:
					return
				}
			}
		}()
		defer close(stop)
		_ = conn.SetReadDeadline(time.Now().Add(deadline))
		_, err := io.Copy(io.Discard, conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			what += " was not cut off"
		}
		ended <- what
	}
	for range each {
		slow := w.tcp(r)
		if _, err := io.WriteString(slow, "GET /v1/watch HTTP/1.1\r\nHost: relay\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		go ends("a slow header", slow, "a")
		go ends("a silent connection", w.tcp(r), "")
	}
	half := w.socket(r, w.operator)
	half.raw(0x81, 0xfe, 0x01) // the beginning of a frame's header
	go ends("half a header of a frame", half.conn.NetConn(), "")
	body := w.socket(r, w.operator)
	body.raw(0x81, 0x8a, 1, 2, 3, 4, 'x')
	go ends("half a frame", body.conn.NetConn(), "")
	// Meanwhile others are served.
	k := key("order-4711")
	v := w.watch(r, w.customer, k)
	w.send(progress(k.InstanceID, 1, 1))
	v.sees(k, 1)
	seen := map[string]int{}
	for range 2*each + 2 {
		select {
		case what := <-ended:
			seen[what]++
		case <-w.ctx.Done():
			t.Fatalf("cut off: %v", seen)
		}
	}
	for what := range seen {
		if strings.Contains(what, "not") {
			t.Errorf("%d times %s", seen[what], what)
		}
	}
	w.send(progress(k.InstanceID, 2, 2))
	v.sees(k, 2)
	t.Logf("all cut off after %s: %v", time.Since(begun), seen)
}

// Who does not answer pings is cut off, and nothing of them is left.
func TestW11SilentPeersAreCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Watch.PingInterval = time.Second })
	k := key("order-4711")
	polite := w.watch(r, w.customer, k)
	const silent = 50
	for range silent {
		w.socket(r, w.operator) // never read again: no pong
	}
	w.until("they are open", func() bool { return w.metric(r, "statusrelay_wsapi_sockets") == silent+1 })
	files := openFiles(t)
	w.until("only who answers is left", func() bool { return w.metric(r, "statusrelay_wsapi_sockets") == 1 })
	w.until("the relay's files are closed", func() bool { return openFiles(t) <= files-silent })
	w.send(progress(k.InstanceID, 1, 1))
	polite.sees(k, 1)
	if d := relay.Defaults().Watch.PingInterval; d <= 0 || d >= 4*time.Minute {
		t.Errorf("by default pings come every %s: proxies give up after four minutes", d)
	}
}

// openFiles is how many files this process has open, both ends of its connections included.
func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// A hundred clients that do not read a byte hold up neither each other's writers nor who reads.
func TestW12StuckSocketsDelayNobody(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) { c.Watch.WriteTimeout, c.Watch.PingInterval = 2*time.Second, time.Minute })
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 0))
	w.shows(r, k, 0)
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return c, err
	}}
	const stuck = 100
	for range stuck {
		conn, _, err := dialer.DialContext(w.ctx, "ws"+strings.TrimPrefix(r.base, "http")+"/v1/watch", bearer(w.operator))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.WriteJSON(map[string]any{"type": "watch", "instances": []any{map[string]any{"hub": k.Hub, "instanceId": k.InstanceID}}}); err != nil {
			t.Fatal(err)
		}
	}
	reader := w.watch(r, w.customer, k)
	reader.sees(k, 0)
	note := strings.Repeat("n", 60_000)
	send := w.sender()
	n := 0
	w.until("those who do not read are cut off", func() bool { // once the buffers of the network are full
		n++
		send([]byte(strings.Replace(progress(k.InstanceID, n+1, n), "for operators", note, 1)))
		reader.sees(k, n) // each one, although nobody before it in any order reads
		return n%10 == 0 && w.metric(r, "statusrelay_wsapi_sockets") == 1
	})
	if err := reader.end(); err != nil {
		t.Errorf("the one that reads has ended: %v", err)
	}
}

// Whatever a client sends as a frame, it is told in the words of the protocol, and the relay goes on.
func TestW13HostileFramesGetAStableError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	watch := func(more string) string {
		return `{"type":"watch","instances":[{"hub":"e2e","instanceId":"i"` + more + `}]}`
	}
	for what, text := range map[string]string{
		"nothing":               ``,
		"no JSON":               `{"type":`,
		"two documents":         watch("") + `{}`,
		"an array":              `[]`,
		"null":                  `null`,
		"a number":              `1e999`,
		"an unknown type":       `{"type":"subscribe"}`,
		"type in capitals":      `{"type":"WATCH","instances":[{"instanceId":"i"}]}`,
		"type is a number":      `{"type":1}`,
		"type is an object":     `{"type":{"a":1}}`,
		"duplicate names":       `{"type":"watch","type":"watch","instances":[{"instanceId":"i"}]}`,
		"duplicate names below": `{"type":"watch","instances":[{"instanceId":"i","instanceId":"j"}]}`,
		"nesting of 7,000":      `{"type":"watch","x":` + strings.Repeat("[", 7000) + strings.Repeat("]", 7000) + `}`,
		"open nesting":          strings.Repeat(`{"a":`, 2000),
		"a huge number":         watch(`,"after":1e999`),
		"a number of 10 KB":     watch(`,"after":` + strings.Repeat("9", 10_000)),
		"negative":              watch(`,"after":-1`),
		"2^53":                  watch(`,"after":9007199254740992`),
		"a fraction":            watch(`,"after":1.5`),
		"NaN":                   watch(`,"after":NaN`),
		"NUL":                   `{"type":"watch","instances":[{"instanceId":"\u0000"}]}`,
		"lone surrogate":        `{"type":"watch","instances":[{"instanceId":"\ud800"}]}`,
		"bidi":                  `{"type":"watch","instances":[{"instanceId":"a\u202eb"}]}`,
		"a path":                `{"type":"watch","instances":[{"instanceId":"../x"}]}`,
		"no id":                 `{"type":"watch","instances":[{}]}`,
		"no instances":          `{"type":"watch","instances":[]}`,
		"101 instances":         `{"type":"watch","instances":[` + strings.Repeat(`{"instanceId":"i"},`, 100) + `{"instanceId":"i"}]}`,
		"a hub with a brace":    `{"type":"watch","instances":[{"hub":"a}b","instanceId":"i"}]}`,
		"a hub with a glob":     `{"type":"watch","instances":[{"hub":"*","instanceId":"i"}]}`,
		"a comment":             `{"type":"watch"/**/,"instances":[{"instanceId":"i"}]}`,
		"a trailing comma":      `{"type":"watch","instances":[{"instanceId":"i"}],}`,
	} {
		c := w.socket(r, w.customer)
		for range 6 {
			if c.conn.WriteMessage(websocket.TextMessage, []byte(text)) != nil {
				break // who goes on like that is sent away
			}
		}
		problems := 0
		for {
			f, said, closed := c.next()
			if closed != nil {
				if problems < 2 || closed.Code != 4409 {
					t.Errorf("%s: closed with %d after %d problems", what, closed.Code, problems)
				}
				break
			}
			problems++
			w.tellsNothing(what, said)
			if f.Type != "problem" || !strings.Contains(said, `"status":400`) {
				t.Errorf("%s: got %s", what, said)
			}
		}
	}
	c := w.socket(r, w.customer)
	if err := c.conn.WriteMessage(websocket.BinaryMessage, []byte(watch(""))); err != nil {
		t.Fatal(err)
	}
	c.wants("problem")
	c = w.socket(r, w.customer)
	c.send("{\"type\":\"watch\",\"ref\":\"\xff\",\"instances\":[{\"instanceId\":\"i\"}]}")
	c.closes("not UTF-8", websocket.CloseInvalidFramePayloadData)
	if got := w.metric(r, "statusrelay_wsapi_sockets"); got > 2 {
		t.Errorf("%v sockets are left", got)
	}
}

// What breaks RFC 6455 ends the connection as that says.
func TestW14BreachesOfRFC6455AreClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	masked := func(first byte, payload ...byte) []byte { // with a mask of zeros
		return append([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	}
	long := append([]byte{0x89, 0xfe, 0, 126, 0, 0, 0, 0}, make([]byte, 126)...)
	const breach = websocket.CloseProtocolError
	for what, c := range map[string]struct {
		bytes []byte
		codes []int
	}{
		"not masked (5.1)":                      {[]byte{0x81, 0x02, '{', '}'}, []int{breach}},
		"RSV1 without compression (5.2)":        {masked(0xc1, '{', '}'), []int{breach}},
		"RSV2 (5.2)":                            {masked(0xa1, '{', '}'), []int{breach}},
		"RSV3 (5.2)":                            {masked(0x91, '{', '}'), []int{breach}},
		"reserved opcode 3 (5.2)":               {masked(0x83), []int{breach}},
		"reserved opcode 7 (5.2)":               {masked(0x87), []int{breach}},
		"reserved control opcode 11 (5.2)":      {masked(0x8b), []int{breach}},
		"reserved control opcode 15 (5.2)":      {masked(0x8f), []int{breach}},
		"ping of 126 bytes (5.5)":               {long, []int{breach}},
		"split ping (5.5)":                      {masked(0x09), []int{breach}},
		"split close (5.5)":                     {masked(0x08), []int{breach}},
		"continuation of nothing (5.4)":         {masked(0x80), []int{breach}},
		"text within a fragmented text (5.4)":   {append(masked(0x01, '{'), masked(0x81, '}')...), []int{breach}},
		"binary within a fragmented text (5.4)": {append(masked(0x01, '{'), masked(0x82, '}')...), []int{breach}},
		"close with one byte (5.5.1)":           {masked(0x88, 3), []int{breach, websocket.CloseNoStatusReceived}}, // gorilla's is lenient: it ends all the same
		"close with code 0 (7.4)":               {masked(0x88, 0, 0), []int{breach}},
		"close with code 999 (7.4)":             {masked(0x88, 0x03, 0xe7), []int{breach}},
		"close with code 1004 (7.4)":            {masked(0x88, 0x03, 0xec), []int{breach}},
		"close with code 1005 (7.4)":            {masked(0x88, 0x03, 0xed), []int{breach}},
		"close with code 1006 (7.4)":            {masked(0x88, 0x03, 0xee), []int{breach}},
		"close with code 1015 (7.4)":            {masked(0x88, 0x03, 0xf7), []int{breach}},
		"close whose reason is not UTF-8":       {masked(0x88, 0x03, 0xe8, 0xff), []int{breach, websocket.CloseInvalidFramePayloadData}},
		"text that is not UTF-8 (8.1)":          {masked(0x81, 0xff, 0xfe), []int{websocket.CloseInvalidFramePayloadData}},
		"text cut within a character (8.1)":     {masked(0x81, 0xe2, 0x82), []int{websocket.CloseInvalidFramePayloadData}},
		"close with 1000 is answered (5.5.1)":   {masked(0x88, 0x03, 0xe8), []int{1000}},
		"close with 4999 is answered (7.4.2)":   {masked(0x88, 0x13, 0x87), []int{4999, 1000}},
		"close with nothing is answered":        {masked(0x88), []int{websocket.CloseNoStatusReceived, 1000}},
	} {
		s := w.socket(r, w.customer)
		s.raw(c.bytes...)
		s.closes(what, c.codes...)
	}
	// And what is allowed works: fragments, with a ping between them.
	s := w.socket(r, w.customer)
	ponged := make(chan string, 1)
	s.conn.SetPongHandler(func(text string) error { ponged <- text; return nil })
	text := `{"type":"watch","instances":[{"hub":"e2e","instanceId":"i"}]}`
	s.raw(masked(0x01, []byte(text[:10])...)...)
	s.raw(masked(0x89, 'h', 'i')...)
	s.raw(masked(0x00)...)
	s.raw(masked(0x80, []byte(text[10:])...)...)
	s.wants("watching")
	if got := <-ponged; got != "hi" {
		t.Errorf("a ping was answered with %q", got)
	}
}

// Under random changes of a thousand instances, half of them of one customer and half of another's, no byte of the one's
// reaches the other, by any way of reading.
func TestW15NothingLeaksBetweenCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.keepRaw = true
	const instances, updates = 1000, 6000
	owners := []string{"u-1", "u-2"}
	tokens := []string{w.token("u-1", "customer", time.Hour), w.token("u-2", "customer", time.Hour)}
	marker := func(i int) string { return "marker-of-" + owners[i] }
	id := func(i int) string { return fmt.Sprintf("i-%d", i) }
	replicas := []*replica{w.relay(nil), w.relay(nil)}
	update := func(i, n int) []byte {
		return []byte(fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"sequence":%d,"kind":"progress","customStatus":{"percent":%d,"step":%q},"labels":{"owner":%q}}`,
			hub, id(i), generation, n, n, marker(i%2), owners[i%2]))
	}
	sockets := make([][]*watcher, 2)
	streams := make([]*feed, 2)
	for who := range owners {
		for i := 0; i < instances; i += 100 {
			var keys []status.Key
			for n := range 100 { // everybody asks for everything
				keys = append(keys, key(id(i+n)))
			}
			sockets[who] = append(sockets[who], w.watch(replicas[i/100%2], tokens[who], keys...))
		}
		streams[who] = w.feed(replicas[who].base+"/v1/hubs/"+hub+"/instances?label.owner="+owners[who], tokens[who])
	}
	send := w.sender()
	random := rand.New(rand.NewPCG(4711, 0))
	var read [2]bytes.Buffer
	newest := map[int]int{}
	for n := 1; n <= updates; {
		var batch [][]byte
		for range 200 {
			i := random.IntN(instances)
			batch = append(batch, update(i, n))
			newest[i] = n
			n++
		}
		send(batch...)
		for who := range owners {
			ids := ""
			for range 20 {
				ids += "&id=" + id(random.IntN(instances))
			}
			for _, query := range []string{"?" + ids[1:], "?limit=20", "?label.owner=" + owners[1-who]} {
				got, err := w.do(http.MethodGet, replicas[n/200%2].base+"/v1/hubs/"+hub+"/instances"+query, tokens[who], nil)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(&read[who], got.header, string(got.body))
			}
			got := w.get(replicas[who], tokens[who], key(id(random.IntN(instances))))
			fmt.Fprintln(&read[who], got.header, string(got.body))
		}
	}
	for i, n := range newest {
		sockets[i%2][i/100].sees(key(id(i)), n)
	}
	for who := range owners {
		sent := ""
		for _, v := range sockets[who] {
			sent += v.everything()
		}
		events, _ := streams[who].all()
		for what, text := range map[string]string{"sockets": sent, "reads": read[who].String(), "the stream": fmt.Sprint(events)} {
			if strings.Contains(text, marker(1-who)) {
				t.Errorf("%s of %s have what is the other's", what, owners[who])
			}
			if !strings.Contains(text, marker(who)) {
				t.Errorf("%s of %s have nothing of their own: nothing was tested", what, owners[who])
			}
		}
	}
}

// However a socket ends, its close frame is short and says nothing of the inside. The other tests hold every one to that; here
// are those that come of faults behind the relay.
func TestW16CloseReasonsSayLittle(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.provider()
	p.serve(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusBadGateway) })
	r := w.relay(nil, trusts(p))
	auth := func(token string) string { return `{"type":"auth","token":"` + token + `"}` }
	c := w.socket(r, "")
	c.send(auth(p.token(nil)))
	w.tellsNothing("a problem", c.closes("the issuer is down", 1013))
	c = w.socket(r, "")
	c.send(auth("forged"))
	w.tellsNothing("a problem", c.closes("a forged token", 4401))
	c = w.socket(r, w.operator)
	for range 2000 {
		if c.conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"unwatch","instances":[{"instanceId":"i"}]}`)) != nil {
			break
		}
	}
	w.tellsNothing("a problem", c.closes("too many frames", 4429))
	c = w.socket(r, w.operator)
	w.redis.Pause() // and watch while the store hangs
	c.send(`{"type":"watch","instances":[{"hub":"e2e","instanceId":"i"}]}`)
	c.wants("watching")
	ticket, got := w.handshake(r, "?ticket="+strings.Repeat("A", 43), nil, "status.v1.json")
	if got.code == http.StatusSwitchingProtocols {
		t.Error("a ticket that nobody has looked up opened a socket")
		_ = ticket.conn.Close()
	}
	w.tellsNothing("a refused handshake", string(got.body))
	w.redis.Resume()
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	w.tellsNothing("frames", c.closes("the relay stops", websocket.CloseServiceRestart))
	<-stopped
}

// A ticket opens one socket, however many try it at once, at whichever replica; for the page that asked for it; within half
// a minute.
func TestW17TicketOpensOneSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	origins := func(c *relay.Config) { c.Origins = []string{portal, "https://other.example"} }
	replicas := []*replica{w.relay(nil, origins), w.relay(nil, origins)}
	ticket := func() string {
		got, err := w.do(http.MethodPost, replicas[0].base+"/v1/tickets", w.customer, nil, "Origin", portal)
		if err != nil || got.code != http.StatusCreated {
			t.Fatalf("a ticket: got %d, %v", got.code, err)
		}
		issued := parse[struct {
			Ticket  string
			Expires time.Time
		}](w, got.body)
		if left := time.Until(issued.Expires); left > 30*time.Second+time.Second {
			t.Errorf("it is good for %s", left)
		}
		return issued.Ticket
	}
	at := func(origin string) http.Header { return http.Header{"Origin": {origin}} }
	for range 5 {
		text := ticket()
		var opened, refused atomic.Int64
		var racing sync.WaitGroup
		for i := range 100 {
			racing.Go(func() {
				_, got := w.handshake(replicas[i%2], "?ticket="+text, at(portal), "status.v1.json")
				switch got.code {
				case http.StatusSwitchingProtocols:
					opened.Add(1)
				case http.StatusUnauthorized:
					refused.Add(1)
				}
			})
		}
		racing.Wait()
		if opened.Load() != 1 || refused.Load() != 99 {
			t.Errorf("%d sockets, %d refused with 401, want 1 and 99", opened.Load(), refused.Load())
		}
	}
	for what, c := range map[string]struct {
		origin string
		want   int
	}{
		"another listed page": {"https://other.example", http.StatusUnauthorized},
		"an unlisted page":    {"https://evil.test", http.StatusForbidden},
	} {
		if _, got := w.handshake(replicas[1], "?ticket="+ticket(), at(c.origin), "status.v1.json"); got.code != c.want {
			t.Errorf("%s: got %d, want %d", what, got.code, c.want)
		}
	}
	if _, got := w.handshake(replicas[1], "?ticket="+ticket(), nil, "status.v1.json"); got.code != http.StatusUnauthorized {
		t.Errorf("a program with a page's ticket: got %d, want 401", got.code)
	}
	if stored := w.redis.Do("KEYS", "*"); strings.Contains(stored, ticket()) {
		t.Error("redis has tickets as they are")
	}
	both := bearer(w.customer)
	both.Set("Origin", portal)
	if _, got := w.handshake(replicas[0], "?ticket="+ticket(), both, "status.v1.json"); got.code != http.StatusUnauthorized {
		t.Errorf("a ticket beside a token: got %d, want 401", got.code)
	}
	for _, path := range []string{"/v1/instances/i", "/v1/hubs/e2e/instances", "/runtime/webhooks/durabletask/instances/i"} {
		got, err := http.Get(replicas[0].base + path + "?ticket=" + ticket())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = bufio.NewReader(got.Body).Discard(1)
		got.Body.Close()
		if got.StatusCode == http.StatusOK || got.StatusCode == http.StatusNotFound {
			t.Errorf("%s: a ticket was taken: %d", path, got.StatusCode)
		}
	}
}
