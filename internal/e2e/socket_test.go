package e2e_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/relay"
)

// One client that never reads costs a hundred others nothing, costs the replica
// next to no memory, and is cut off.
func TestStuckClientDelaysNobody(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil, func(c *relay.Config) {
		c.Watch.WriteTimeout, c.Watch.PingInterval = time.Second, time.Minute // pings have a deadline as well
	})
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 0))
	w.shows(r, k, 0)

	// The stuck one is an operator: its frames are large, those of the others small.
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(4 << 10)
		}
		return c, err
	}}
	stuck, _, err := dialer.DialContext(w.ctx, "ws"+strings.TrimPrefix(r.base, "http")+"/v1/watch", http.Header{"Authorization": {"Bearer " + w.operator}})
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	if err := stuck.WriteJSON(map[string]any{"type": "watch", "instances": []any{map[string]any{"hub": k.Hub, "instanceId": k.InstanceID}}}); err != nil {
		t.Fatal(err)
	}
	readers := make([]*watcher, 100)
	for i := range readers {
		readers[i] = w.watch(r, w.customer, k)
		readers[i].sees(k, 0)
	}

	const updates, size = 200, 60_000 // more than the sockets' buffers take
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	note := strings.Repeat("n", size)
	send := w.sender()
	for n := 1; n <= updates; n++ {
		send([]byte(strings.Replace(progress(k.InstanceID, n+1, n), "for operators", note, 1)))
		readers[0].sees(k, n) // else updates are merged before anybody sees them
	}
	for _, v := range readers {
		v.sees(k, updates)
	}
	w.until("the stuck client is cut off", func() bool { return w.metric(r, "statusrelay_wsapi_writes_failed_total") == 1 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > updates*size/3 {
		t.Errorf("after %d bytes of frames that nobody read, the heap is %d bytes larger", updates*size, grown)
	}
	if got := w.metric(r, "statusrelay_wsapi_sockets"); got != float64(len(readers)) {
		t.Errorf("%v sockets are open, want %d", got, len(readers))
	}
	for _, v := range readers {
		if err := v.end(); err != nil {
			t.Fatalf("a socket that was read ended: %v", err)
		}
	}
}

// A socket ends with its token, unless its client sends a newer one in time.
func TestSocketEndsWithItsToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	const skew = time.Second
	r := w.relay(nil, func(c *relay.Config) { c.Auth.ClockSkew = skew })
	k := key("order-4711")
	brief := w.token("operator-1", "operator", 2*time.Second)
	ends, renewed := w.watch(r, brief, k), w.watch(r, brief, k)
	if err := renewed.conn.WriteJSON(map[string]string{"type": "auth", "token": w.operator}); err != nil {
		t.Fatal(err)
	}
	w.send(progress(k.InstanceID, 1, 1))
	ends.sees(k, 1)

	ends.await("the socket is closed", func(v *watcher) bool { return v.ended != nil || w.ctx.Err() != nil })
	if closed := (*websocket.CloseError)(nil); !errors.As(ends.end(), &closed) || closed.Code != 4401 {
		t.Errorf("the socket ended with %v, want 4401", ends.end())
	}
	if got := w.get(r, brief, k); got.code != http.StatusUnauthorized || !strings.Contains(string(got.body), "token-expired") {
		t.Errorf("a read with the same token: got %d %s", got.code, got.body)
	}
	w.send(progress(k.InstanceID, 2, 2))
	renewed.sees(k, 2)
	if f := ends.last(k); w.view(f.Status).percent() != 1 {
		t.Errorf("the socket whose token has expired was sent %s", f.Status)
	}
}
