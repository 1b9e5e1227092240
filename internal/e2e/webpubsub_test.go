package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/relay"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// lifecycle is a bare update of the lifecycle of an instance that belongs to the
// customer. Members are JSON, such as "runtimeStatus":"Completed".
func lifecycle(id string, sequence int, members string) string {
	return fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"sequence":%d,"kind":"lifecycle",%s,"labels":{"owner":%q}}`,
		hub, id, generation, sequence, members, owner)
}

// A pubsub is a script that runs a client of Azure Web PubSub.
type pubsub struct{ *script }

// A groupMessage is what it is sent in a group.
type groupMessage struct {
	Group, DataType string
	SequenceID      *int64
	Data            json.RawMessage
}

// group is that of an instance.
func group(k status.Key) string { return k.Hub + "/" + k.InstanceID }

// messages are those of a group among reports.
func (p pubsub) messages(reports []report, k status.Key) (all []groupMessage) {
	p.Helper()
	for _, e := range reports {
		if e.Event != "group-message" {
			continue
		}
		var m groupMessage
		if err := json.Unmarshal(e.Message, &m); err != nil {
			p.Fatal(err)
		}
		if m.Group == group(k) {
			all = append(all, m)
		}
	}
	return all
}

// gets waits for a message of an instance after the first n reports.
func (p pubsub) gets(n int, k status.Key, what string, cond func(view, groupMessage) bool) (got groupMessage) {
	p.Helper()
	p.wait(fmt.Sprintf("a message of %s: %s", k, what), func() bool {
		for _, m := range p.messages(p.reports[n:], k) {
			if cond(p.view(m.Data), m) {
				got = m
				return true
			}
		}
		return false
	})
	return got
}

// sees waits for a message of an instance that shows a progress.
func (p pubsub) sees(n int, k status.Key, percent int) groupMessage {
	p.Helper()
	return p.gets(n, k, fmt.Sprintf("with %d", percent), func(v view, _ groupMessage) bool { return v.percent() == percent })
}

// connects waits for a connection after the first n reports.
func (p pubsub) connects(n int) report {
	p.Helper()
	e := p.await(n, "it is connected", func(e report) bool { return e.Event == "connected" })
	if e.UserID != owner || e.ConnectionID == "" {
		p.Errorf("connected as %q with id %q, want %q and some id", e.UserID, e.ConnectionID, owner)
	}
	return e
}

// forEachPubSub runs a test with the oldest and the newest of the official
// clients, each with the subprotocol that the documentation asks for, and with
// the one that the library asks for when it is told nothing.
func forEachPubSub(t *testing.T, test func(t *testing.T, start func(w *world, base, token string) pubsub)) {
	for _, library := range []string{"@azure/web-pubsub-client", "web-pubsub-client-1.0"} {
		for _, protocol := range []string{"json.webpubsub.azure.v1", ""} {
			name := strings.TrimPrefix(library, "@azure/") + "," + protocol
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, func(w *world, base, token string) pubsub {
					w.Helper()
					return pubsub{w.node("webpubsub.mjs", "LIBRARY="+library, "PROTOCOL="+protocol, "RELAY="+base, "TOKEN="+token)}
				})
			})
		}
	}
}

// A client of Azure Web PubSub that is only given another address follows
// instances as groups: it gets what there is when it joins, every newest after
// that, and nothing once it has left. It comes back by itself.
func TestWebPubSubClientFollowsInstances(t *testing.T) {
	forEachPubSub(t, func(t *testing.T, start func(*world, string, string) pubsub) {
		w := newWorld(t, nil)
		r := w.relay(nil)
		proxy := storetest.StartProxy(t, strings.TrimPrefix(r.base, "http://"))
		k, other := key("order-1"), key("order-2")
		send := w.sender()
		send([]byte(progress(k.InstanceID, 1, 10)), []byte(progress(other.InstanceID, 1, 1)))
		w.shows(r, k, 10)
		w.shows(r, other, 1)

		p := start(w, "http://"+proxy.Addr, w.customer)
		p.does("start")
		first := p.connects(0)
		p.does("joinGroup", group(k))
		got := p.sees(0, k, 10)
		if want := w.get(r, w.customer, k).body; got.DataType != "json" || got.SequenceID != nil || !sameJSON(t, got.Data, want) {
			t.Errorf("got %+v with %s, want json with %s", got, got.Data, want)
		}
		send([]byte(progress(k.InstanceID, 2, 20)))
		p.sees(0, k, 20)

		// Left, it gets nothing; what comes for another instance would come later.
		p.does("leaveGroup", group(k))
		p.does("joinGroup", group(other))
		p.sees(0, other, 1)
		left := p.soFar()
		send([]byte(progress(k.InstanceID, 3, 30)))
		w.shows(r, k, 30)
		send([]byte(progress(other.InstanceID, 2, 2)))
		p.sees(left, other, 2)
		if m := p.messages(p.since(left), k); len(m) > 0 {
			t.Errorf("after it had left: got %s", m[0].Data)
		}
		p.does("joinGroup", group(k))
		p.sees(left, k, 30)

		// Its connection is lost; what changes meanwhile is the first thing that it gets.
		lost := p.soFar()
		proxy.Cut()
		p.await(lost, "it is disconnected", func(e report) bool { return e.Event == "disconnected" })
		send([]byte(progress(k.InstanceID, 4, 40)))
		if again := p.connects(lost); again.ConnectionID == first.ConnectionID {
			t.Errorf("both connections have the id %s", again.ConnectionID)
		}
		p.sees(lost, k, 40)
		p.sees(lost, other, 2)

		// The relay goes away, and says so. The next one has what came meanwhile.
		stopped := p.soFar()
		r.stop()
		bye := p.await(stopped, "it is disconnected", func(e report) bool { return e.Event == "disconnected" })
		if text := disconnected(t, bye); text == "" {
			t.Error("the relay does not say why it disconnects")
		}
		send([]byte(progress(k.InstanceID, 5, 50)))
		r = w.relay(nil, func(c *relay.Config) { c.Listen = strings.TrimPrefix(r.base, "http://") })
		p.connects(stopped)
		p.sees(stopped, k, 50)

		// The end, and the end of that.
		send([]byte(lifecycle(k.InstanceID, 6, `"runtimeStatus":"Completed","output":{"ok":true}`)))
		done := p.gets(stopped, k, "completed", func(v view, _ groupMessage) bool { return v.RuntimeStatus == "Completed" })
		if want := w.get(r, w.customer, k).body; !sameJSON(t, done.Data, want) {
			t.Errorf("got %s, want %s", done.Data, want)
		}
		send([]byte(fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"kind":"purged"}`, hub, k.InstanceID, generation)))
		p.gets(stopped, k, "gone", func(_ view, m groupMessage) bool {
			var gone struct{ Gone bool }
			return json.Unmarshal(m.Data, &gone) == nil && gone.Gone
		})

		last := int64(0)
		for _, m := range p.messages(p.since(0), k) {
			v := w.view(m.Data)
			if v.Version < last || v.Hub != k.Hub || v.InstanceID != k.InstanceID {
				t.Errorf("got %s after version %d", m.Data, last)
			}
			last = v.Version
		}
		p.does("stop")
		p.ends()
	})
}

// A client that follows as many instances as it may, joins them all at once, and
// again when it comes back, is not too fast.
func TestWebPubSubClientRejoinsEverything(t *testing.T) {
	forEachPubSub(t, func(t *testing.T, start func(*world, string, string) pubsub) {
		w := newWorld(t, nil)
		r := w.relay(nil)
		proxy := storetest.StartProxy(t, strings.TrimPrefix(r.base, "http://"))
		keys := make([]status.Key, relay.Defaults().Watch.MaxWatches)
		publish := func(sequence int) {
			bodies := make([][]byte, len(keys))
			for i := range keys {
				keys[i] = key(fmt.Sprintf("i-%d", i))
				bodies[i] = []byte(progress(keys[i].InstanceID, sequence, sequence))
			}
			w.sender()(bodies...)
		}
		publish(1)
		p := start(w, "http://"+proxy.Addr, w.customer)
		p.does("start")
		joined := make([]func() reply, len(keys))
		for i, k := range keys {
			joined[i] = p.call("joinGroup", group(k))
		}
		for i, k := range keys {
			if got := joined[i](); got.Error != nil {
				t.Fatalf("%s: got %+v", k, *got.Error)
			}
			p.sees(0, k, 1)
		}
		if got := p.fails("joinGroup", group(key("one-too-many"))); got.Detail.Name == "" {
			t.Errorf("one more than allowed: got %+v", got)
		}
		lost := p.soFar()
		proxy.Cut()
		publish(2)
		p.connects(lost)
		for _, k := range keys {
			p.sees(lost, k, 2)
		}
		for _, e := range p.since(lost) {
			if e.Event == "rejoin-group-failed" {
				t.Errorf("rejoining %s failed", e.Group)
			}
		}
		p.does("stop")
		p.ends()
	})
}

// Whatever a client of Azure Web PubSub asks for but a group of its own is
// refused in a way that it understands, as often as it asks, and costs it
// nothing else.
func TestWebPubSubClientIsRefusedPolitely(t *testing.T) {
	forEachPubSub(t, func(t *testing.T, start func(*world, string, string) pubsub) {
		w := newWorld(t, nil)
		r := w.relay(nil)
		mine, theirs := key("mine"), key("theirs")
		w.send(strings.Replace(progress(theirs.InstanceID, 1, 1), owner, "u-1002", 1))
		w.shows(r, theirs, 1)

		p := start(w, r.base, w.customer)
		p.does("start")
		p.connects(0)
		p.does("joinGroup", group(mine))
		p.does("joinGroup", group(theirs)) // as for what does not exist: nothing comes

		// The library asks four times, a second apart.
		calls := map[string]func() reply{
			"sendToGroup": p.call("sendToGroup", group(mine), map[string]any{"percent": 99}),
			"sendEvent":   p.call("sendEvent", "terminate", map[string]any{"instanceId": mine.InstanceID}),
		}
		p.does("sendToGroup", group(mine), map[string]any{"percent": 99}, map[string]any{"fireAndForget": true}) // nobody answers, nobody minds
		for name, answered := range calls {
			got := answered()
			if got.Error == nil || got.Error.Name != "SendMessageError" || got.Error.Detail.Name != "Forbidden" || got.Error.Detail.Message == "" {
				t.Errorf("%s: got %s and the error %+v, want Forbidden", name, got.Result, got.Error)
			}
		}
		w.send(progress(mine.InstanceID, 1, 7))
		p.sees(0, mine, 7)
		for _, e := range p.since(0) {
			if e.Event == "disconnected" || e.Event == "server-message" {
				t.Errorf("got %s", e.Event)
			}
		}
		if m := p.messages(p.since(0), theirs); len(m) > 0 {
			t.Errorf("got %s of another's instance", m[0].Data)
		}
		p.does("stop")
		p.ends()
	})
}

// A call whose answer never comes would hang its caller for ever: newer clients
// have more of them than the relay knows.
func TestWebPubSubInvocationIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	p := pubsub{w.node("webpubsub.mjs", "LIBRARY=@azure/web-pubsub-client", "PROTOCOL=json.webpubsub.azure.v1", "RELAY="+r.base, "TOKEN="+w.customer)}
	p.does("start")
	if got := p.fails("invokeEvent", "terminate", map[string]any{}); got.Name != "InvocationError" || got.Detail.Name != "Forbidden" {
		t.Errorf("got %+v, want Forbidden", got)
	}
	p.does("stop")
	p.ends()
}

// A client that pings and gives up on a server that says nothing has no reason to,
// when nothing happens.
func TestWebPubSubClientStaysWhenNothingHappens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	p := pubsub{w.node("webpubsub.mjs", "LIBRARY=@azure/web-pubsub-client", "PROTOCOL=json.webpubsub.azure.v1", "RELAY="+r.base, "TOKEN="+w.customer, "TIMEOUT=6000")} // a busy machine may stand still for a while
	p.does("start")
	p.connects(0)
	w.during(9*time.Second, func() {
		if got := p.since(0); got[len(got)-1].Event != "connected" {
			t.Fatalf("got %+v", got[len(got)-1])
		}
	})
	p.does("stop")
	p.ends()
}

// A ticket is good for one connection of the client, and a client without one is
// turned away before there is a connection, or it would come back in a loop.
func TestWebPubSubClientNeedsATicket(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	p := pubsub{w.node("webpubsub.mjs", "LIBRARY=@azure/web-pubsub-client", "PROTOCOL=json.webpubsub.azure.v1", "RELAY="+r.base, "TOKEN=none")}
	if got := p.fails("start"); !strings.Contains(got.Message, "401") {
		t.Errorf("a start without a token: got %+v", got)
	}
	p.ends()
	for _, query := range []string{"", "?ticket=none"} {
		got, err := w.do(http.MethodGet, r.base+"/v1/watch"+query, "", nil, "Connection", "Upgrade", "Upgrade", "websocket",
			"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol", "json.webpubsub.azure.v1")
		if err != nil || got.code != http.StatusUnauthorized {
			t.Errorf("a handshake with %q: got %d, %v, want 401", query, got.code, err)
		}
	}
}

// disconnected is the reason that the server gave.
func disconnected(t *testing.T, e report) string {
	t.Helper()
	var frame struct{ Message string }
	if e.Message != nil {
		if err := json.Unmarshal(e.Message, &frame); err != nil {
			t.Fatal(err)
		}
	}
	return frame.Message
}
