package wsapi_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
	"statusrelay/internal/wsapi"
)

// redis is a store and its feed in memory.
type redis struct {
	mu         sync.Mutex
	offer      func(*status.Record)
	touch      func(status.Index, []status.Key)
	records    map[status.Key]*status.Record
	subscribed map[status.Key]bool
	indexes    map[status.Index]bool // that are subscribed
	away       bool
	lists      int // that have been read as a whole
}

// labels are those that have an index.
func labels() []string { return []string{"owner"} }

func (r *redis) put(record *status.Record) {
	r.mu.Lock()
	old := r.records[record.Key()]
	if old == nil || old.Version < record.Version {
		r.records[record.Key()] = record
	}
	push := r.subscribed[record.Key()] && !r.away
	var touched []status.Index
	for _, in := range append(old.Indexes(labels()), record.Indexes(labels())...) {
		if r.indexes[in] && !r.away && !slices.Contains(touched, in) {
			touched = append(touched, in)
		}
	}
	r.mu.Unlock()
	if push {
		r.offer(record)
	}
	for _, in := range touched {
		r.touch(in, []status.Key{record.Key()})
	}
}

func (r *redis) SubscribeLists(_ context.Context, indexes []status.Index) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return status.ErrUnavailable
	}
	for _, in := range indexes {
		r.indexes[in] = true
	}
	return nil
}

func (r *redis) UnsubscribeLists(indexes []status.Index) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, in := range indexes {
		delete(r.indexes, in)
	}
}

func (r *redis) List(_ context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return status.Page{}, status.ErrUnavailable
	}
	if from == (status.Cursor{}) {
		r.lists++
	}
	var entries []*status.Record
	for _, record := range r.records {
		if slices.Contains(record.Indexes(labels()), q.Index(labels())) {
			entries = append(entries, record)
		}
	}
	slices.SortFunc(entries, func(a, b *status.Record) int {
		return cmp.Or(cmp.Compare(b.Version, a.Version), cmp.Compare(a.InstanceID, b.InstanceID))
	})
	var page status.Page
	place, looked := status.Cursor{}, 0
	for _, record := range entries {
		if record.Version == place.Version {
			place.Ties++
		} else {
			place = status.Cursor{Version: record.Version, Ties: 1}
		}
		if from.Version != 0 && (place.Version > from.Version || place.Version == from.Version && place.Ties <= from.Ties) {
			continue
		}
		if looked == n {
			return page, nil
		}
		looked++
		page.Next = place
		if q.Match(record) {
			page.Records, page.After = append(page.Records, record), append(page.After, place)
		}
	}
	page.Next = status.Cursor{}
	return page, nil
}

func (r *redis) expire(k status.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.records, k)
}

func (r *redis) setAway(away bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = away
}

func (r *redis) Subscribe(_ context.Context, keys []status.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return status.ErrUnavailable
	}
	for _, k := range keys {
		r.subscribed[k] = true
	}
	return nil
}

func (r *redis) Unsubscribe(keys []status.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range keys {
		delete(r.subscribed, k)
	}
}

func (r *redis) Latest(_ context.Context, keys []status.Key) ([]*status.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away {
		return nil, status.ErrUnavailable
	}
	records := make([]*status.Record, len(keys))
	for i, k := range keys {
		records[i] = r.records[k]
	}
	return records, nil
}

// verify reads tokens like "alice", "alice+operator" and "alice~60", which expires a minute after it was made.
func verify(_ context.Context, token string) (*auth.Principal, error) {
	switch token {
	case "expired":
		return nil, fmt.Errorf("secret cause: %w", auth.ErrExpired)
	case "forged":
		return nil, fmt.Errorf("secret cause: %w", auth.ErrUnauthenticated)
	case "banned":
		return nil, fmt.Errorf("secret cause: %w", auth.ErrForbidden)
	case "down":
		return nil, fmt.Errorf("secret cause: %w", status.ErrUnavailable)
	case "broken":
		return nil, errors.New("secret cause")
	case "panic":
		panic("secret cause")
	}
	token, seconds, expires := strings.Cut(token, "~")
	sub, role, _ := strings.Cut(token, "+")
	p := &auth.Principal{Issuer: "test", Subject: sub, Claims: map[string]any{"sub": sub, "roles": []any{role}}}
	if expires {
		n, err := strconv.Atoi(seconds)
		if err != nil {
			return nil, auth.ErrUnauthenticated
		}
		p.Expires = time.Now().Add(time.Duration(n) * time.Second)
	}
	return p, nil
}

// development is the policy of development mode: an operator sees everything, a customer some fields of what has the
// owner's label. edit replaces parts of it.
func development(t testing.TB, edit ...string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(strings.NewReplacer(edit...).Replace(string(policy.Development()))))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// world is a server of sockets with a hub, on a network of its own.
type world struct {
	testing.TB
	*redis
	hub     *hub.Hub
	queries *hub.Lists
	server  *wsapi.Server
	policy  atomic.Pointer[policy.Policy]
	network network
	clients sync.WaitGroup
	stop    context.CancelFunc
	running sync.WaitGroup
	http    http.Server
}

// network is what a world needs of package net: real, or in memory so that time can be faked.
type network interface {
	net.Listener
	dial() (net.Conn, error)
}

func start(t testing.TB, n network, o wsapi.Options) *world {
	w := &world{TB: t, network: n}
	w.redis = &redis{records: map[status.Key]*status.Record{}, subscribed: map[status.Key]bool{}, indexes: map[status.Index]bool{}}
	w.policy.Store(development(t))
	w.hub = hub.New(hub.Options{
		StaleAfter: func(r *status.Record) time.Duration {
			if p := w.policy.Load(); p != nil { // some tests take it away
				return p.StaleAfter(r)
			}
			return 0
		},
		Metrics: o.Metrics,
	})
	w.queries = hub.NewLists(hub.ListOptions{Labels: labels(), Metrics: o.Metrics})
	w.offer, w.touch = w.hub.Offer, w.queries.Touch
	o.Source = reader.NewSource(w.hub, w.queries, w.policy.Load)
	if o.Verify == nil {
		o.Verify = verify
	}
	w.server = wsapi.New(o)
	w.http.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if address := r.Header.Get("Test-Address"); address != "" {
			r.RemoteAddr = address
		}
		w.server.ServeHTTP(rw, r)
	})
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.running.Go(func() { _ = w.hub.Run(ctx, w.redis, w.redis) })
	w.running.Go(func() { _ = w.queries.Run(ctx, w.redis, w.redis) })
	w.running.Go(func() { _ = w.server.Run(ctx) })
	w.running.Go(func() { _ = w.http.Serve(n) })
	return w
}

// end stops everything and waits for it.
func (w *world) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_ = w.server.Shutdown(ctx)
	w.http.Close()
	w.clients.Wait()
	w.stop()
	w.running.Wait()
}

// fake runs f in a world in a bubble of fake time. It fails if a goroutine is left over.
func fake(t *testing.T, o wsapi.Options, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newPipes(), o)
		defer w.end()
		synctest.Wait() // until all that runs has seen the policy in force
		f(t, w)
	})
}

// pipes is a network in memory.
type pipes struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{accept: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }
func (p *pipes) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.accept <- server:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// loopback is the real network.
type loopback struct{ net.Listener }

func newLoopback(t testing.TB) loopback {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return loopback{l}
}

func (l loopback) dial() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }

// client is a WebSocket client that reads all the time.
type client struct {
	t      testing.TB
	conn   *websocket.Conn
	answer *http.Response
	events chan string // one line per frame, in short, and a last one about the end
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func subprotocol(token string) http.Header {
	return http.Header{"Sec-WebSocket-Protocol": {"status.v1.json, bearer." + base64.RawURLEncoding.EncodeToString([]byte(token))}}
}

// handshake returns the connection, or the answer of a server that refuses.
func (w *world) handshake(h http.Header) (*websocket.Conn, *http.Response, error) {
	return w.handshakeWith("", websocket.Dialer{}, h)
}

func (w *world) handshakeWith(query string, d websocket.Dialer, h http.Header) (*websocket.Conn, *http.Response, error) {
	d.NetDial = func(string, string) (net.Conn, error) { return w.network.dial() }
	return d.Dial("ws://relay.test/v1/watch"+query, h)
}

// open opens a socket, prepares the connection, and starts to read.
func (w *world) open(h http.Header, prepare ...func(*websocket.Conn)) *client {
	w.Helper()
	conn, answer, err := w.handshake(h)
	if err != nil {
		w.Fatalf("handshake: %v (%v)", err, answer)
	}
	return w.client(conn, answer, prepare...)
}

// client starts to read from a connection.
func (w *world) client(conn *websocket.Conn, answer *http.Response, prepare ...func(*websocket.Conn)) *client {
	for _, f := range prepare {
		f(conn)
	}
	c := &client{t: w, conn: conn, answer: answer, events: make(chan string, 10_000)}
	w.clients.Go(c.read)
	return c
}

// as opens a socket for whom the token names and takes the welcome.
func (w *world) as(token string, prepare ...func(*websocket.Conn)) *client {
	w.Helper()
	c := w.open(bearer(token), prepare...)
	c.wants("welcome")
	return c
}

func (c *client) read() {
	defer c.conn.Close()
	for {
		_, frame, err := c.conn.ReadMessage()
		if err != nil {
			var ce *websocket.CloseError
			if errors.As(err, &ce) && ce.Code != websocket.CloseAbnormalClosure {
				c.events <- fmt.Sprintf("close %d", ce.Code)
			} else {
				c.events <- "cut off"
			}
			return
		}
		c.events <- short(frame)
	}
}

// short says a frame in few words.
func short(frame []byte) string {
	var f struct {
		Type, Ref, Hub, InstanceID, Title string
		List, Field                       string
		More                              bool
		Status                            json.RawMessage
		Version                           int64
		Instances                         []struct{ Hub, InstanceID string }
	}
	if err := json.Unmarshal(frame, &f); err != nil {
		return "not JSON: " + string(frame)
	}
	words := []string{f.Type}
	if f.Ref != "" {
		words = append(words, "ref="+f.Ref)
	}
	for _, i := range f.Instances {
		words = append(words, i.InstanceID)
	}
	if f.List != "" {
		words = append(words, f.List)
	}
	if f.InstanceID != "" {
		words = append(words, f.InstanceID)
	}
	if f.Version != 0 {
		words = append(words, fmt.Sprint(f.Version))
	}
	switch f.Type {
	case "listed":
		if f.More {
			words = append(words, "more")
		}
	case "message", "ack", "system", "pong":
		return shortPubsub(frame)
	case "status":
		var view struct {
			CustomStatus json.RawMessage
			Stale        bool
		}
		_ = json.Unmarshal(f.Status, &view)
		words = append(words, string(view.CustomStatus))
		if view.Stale {
			words = append(words, "stale")
		}
	case "problem":
		words = append(words, string(f.Status))
	}
	return strings.Join(words, " ")
}

// next returns the next event.
func (c *client) next() string {
	c.t.Helper()
	select {
	case e := <-c.events:
		return e
	case <-time.After(time.Minute):
		c.t.Fatal("nothing came")
		return ""
	}
}

// wants fails the test unless these are the next events.
func (c *client) wants(events ...string) {
	c.t.Helper()
	for _, want := range events {
		if got := c.next(); got != want {
			c.t.Fatalf("got %q, want %q", got, want)
		}
	}
}

// wantsInAnyOrder fails the test unless these are the next events, in whatever order.
func (c *client) wantsInAnyOrder(events ...string) {
	c.t.Helper()
	var got []string
	for range events {
		got = append(got, c.next())
	}
	slices.Sort(got)
	slices.Sort(events)
	if !slices.Equal(got, events) {
		c.t.Fatalf("got %q, want %q", got, events)
	}
}

// idle fails the test if anything is coming that is not waited for. It needs fake time.
func (c *client) idle() {
	c.t.Helper()
	synctest.Wait()
	select {
	case e := <-c.events:
		c.t.Fatalf("got %q, want nothing", e)
	default:
	}
}

// close leaves as a browser does.
func (c *client) close() {
	_ = c.conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
}

func (c *client) send(frame string) {
	if err := c.conn.WriteMessage(websocket.TextMessage, []byte(frame)); err != nil {
		c.events <- "write: " + err.Error()
	}
}

// watch sends a watch frame for "i" or "i@124", where 124 is what the client has.
func (c *client) watch(instances ...string) {
	c.send(`{"type":"watch","instances":[` + list(instances) + `]}`)
}

func (c *client) unwatch(instances ...string) {
	c.send(`{"type":"unwatch","instances":[` + list(instances) + `]}`)
}

// watchList sends a watch frame for what a query selects.
func (c *client) watchList(name, query string, more ...string) {
	c.send(fmt.Sprintf(`{"type":"watch","list":%q,"query":%s%s}`, name, query, strings.Join(more, "")))
}

func (c *client) unwatchList(name string) { c.send(fmt.Sprintf(`{"type":"unwatch","list":%q}`, name)) }

func list(instances []string) string {
	items := make([]string, len(instances))
	for i, in := range instances {
		id, after, ok := strings.Cut(in, "@")
		if ok {
			after = `,"after":` + after
		}
		items[i] = fmt.Sprintf(`{"instanceId":%q%s}`, id, after)
	}
	return strings.Join(items, ",")
}

// instance returns a record of the default hub, with a custom status that customers may see in part.
func instance(id, owner string, version int64, custom string) *status.Record {
	return &status.Record{
		Hub: "default", InstanceID: id, Version: version,
		Labels:    map[string]string{"owner": owner},
		Lifecycle: status.Lifecycle{Position: status.Position{Class: status.Declared}, RuntimeStatus: status.Running},
		Progress:  status.Progress{CustomStatus: json.RawMessage(custom)},
	}
}

// percent returns a record whose visible part is the percentage.
func percent(id, owner string, version int64, n int) *status.Record {
	return instance(id, owner, version, fmt.Sprintf(`{"percent":%d,"secret":"of %s at %d"}`, n, owner, version))
}

func with(r *status.Record, change func(*status.Record)) *status.Record {
	r.Labels = maps.Clone(r.Labels)
	r.Conflicts = slices.Clone(r.Conflicts)
	change(r)
	return r
}

func body(r *http.Response) string {
	b, _ := io.ReadAll(r.Body)
	return string(bytes.TrimSpace(b))
}

// ended returns a record of an instance that has completed.
func ended(r *status.Record) *status.Record {
	return with(r, func(r *status.Record) { r.Lifecycle.RuntimeStatus = status.Completed })
}

func purged(id string, version int64) *status.Record {
	return &status.Record{Hub: "default", InstanceID: id, Version: version, Purged: true}
}
