package wsapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/apitest"
	"statusrelay/internal/wsapi"
)

// shortPubsub says a frame of Web PubSub in few words.
func shortPubsub(frame []byte) string {
	var f struct {
		Type, Event, Message, Group string
		AckID                       json.RawMessage
		Success                     bool
		Error                       struct{ Name string }
		Data                        struct {
			Gone         bool
			Version      int64
			CustomStatus json.RawMessage
		}
	}
	if err := json.Unmarshal(frame, &f); err != nil {
		return "not JSON: " + string(frame)
	}
	words := []string{f.Type}
	switch f.Type {
	case "system":
		words = append(words, f.Event)
		if f.Message != "" {
			words = append(words, "("+f.Message+")")
		}
	case "ack":
		words = append(words, string(f.AckID))
		if !f.Success {
			words = append(words, f.Error.Name)
		}
	case "message":
		words = append(words, f.Group, fmt.Sprint(f.Data.Version))
		if f.Data.Gone {
			words = append(words, "gone")
		} else {
			words = append(words, string(f.Data.CustomStatus))
		}
	}
	return strings.Join(words, " ")
}

// pubsub is the handshake of a client of Azure Web PubSub, but that its ticket is a token.
func pubsub(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}, "Sec-Websocket-Protocol": {"json.webpubsub.azure.v1"}}
}

// pubsubAs opens a socket of Web PubSub and takes the welcome.
func (w *world) pubsubAs(token string) *client {
	w.Helper()
	c := w.open(pubsub(token))
	c.wants("system connected")
	return c
}

func (c *client) join(id, group string) {
	c.send(fmt.Sprintf(`{"type":"joinGroup","group":%q,"ackId":%s}`, group, id))
}

func (c *client) leave(id, group string) {
	c.send(fmt.Sprintf(`{"type":"leaveGroup","group":%q,"ackId":%s}`, group, id))
}

func TestWebPubSubFramesAreAzures(t *testing.T) {
	documents := apitest.New(t)
	for _, protocol := range []string{"json.webpubsub.azure.v1", "json.reliable.webpubsub.azure.v1"} {
		fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
			r := percent("i\"1", "alice", 124, 7)
			r.Hub = "h"
			w.put(r)
			h := pubsub("alice")
			h.Set("Sec-WebSocket-Protocol", protocol)
			conn, answer, err := w.handshake(h)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := answer.Header.Values("Sec-WebSocket-Protocol"); len(got) != 1 || got[0] != protocol {
				t.Errorf("answered subprotocol %q, want %q", got, protocol)
			}
			_, welcome, err := conn.ReadMessage()
			documents.Frame(t, wsapi.WebPubSub, apitest.Server, welcome)
			var connected map[string]string
			if err != nil || json.Unmarshal(welcome, &connected) != nil || len(connected) != 4 ||
				connected["type"] != "system" || connected["event"] != "connected" || connected["userId"] != "alice" || len(connected["connectionId"]) < 20 {
				t.Errorf("welcome: %s %v", welcome, err)
			}
			exchange := []struct{ send, want string }{
				{`{"type":"joinGroup","group":"h/i\"1","ackId":1}`, `{"type":"ack","ackId":1,"success":true}`},
				{"", `{"type":"message","from":"group","group":"h/i\"1","dataType":"json","data":{"hub":"h","instanceId":"i\"1","runtimeStatus":"Running","customStatus":{"percent":7},"version":124}}`},
				{`{"type":"joinGroup","group":"h","ackId":2}`, `{"type":"ack","ackId":2,"success":false,"error":{"name":"BadRequest","message":"The request is not valid. group: not a hub, a slash and an instance id"}}`},
				{
					`{"type":"sendToGroup","group":"h/i","noEcho":true,"dataType":"json","data":{"ackId":[[[[[[[[[[[[7]]]]]]]]]]]]},"ackId":18446744073709551615}`,
					`{"type":"ack","ackId":18446744073709551615,"success":false,"error":{"name":"Forbidden","message":"You may not do this."}}`,
				},
				{`{"type":"ping"}`, `{"type":"pong"}`},
				{
					`{"type":"invoke","invocationId":"\"x","target":"event","event":"e"}`,
					`{"type":"invokeResponse","invocationId":"\"x","success":false,"error":{"name":"Forbidden","message":"You may not do this."}}`,
				},
				{
					`{"type":"sendToGroup","group":"h/i","noEcho":true,"stream":{"streamId":"s","idleTimeoutMs":1}}`,
					`{"type":"streamClosed","streamId":"s","error":{"name":"Forbidden","message":"You may not do this."}}`,
				},
				{"refresh", `{"type":"message","from":"group","group":"h/i\"1","dataType":"json","data":{"hub":"h","instanceId":"i\"1","runtimeStatus":"Running","customStatus":{},"version":125}}`},
				{"purge", `{"type":"message","from":"group","group":"h/i\"1","dataType":"json","data":{"hub":"h","instanceId":"i\"1","version":130,"gone":true}}`},
				{`{"type":"leaveGroup","group":"h/i\"1","ackId":3}`, `{"type":"ack","ackId":3,"success":true}`},
			}
			for _, e := range exchange {
				switch e.send {
				case "":
				case "refresh": // the same version looks different
					w.policy.Store(development(t, "- /percent\n", "\n"))
				case "purge":
					gone := purged("i\"1", 130)
					gone.Hub = "h"
					w.put(gone)
				default:
					if err := conn.WriteMessage(websocket.TextMessage, []byte(e.send)); err != nil {
						t.Fatal(err)
					}
				}
				kind, got, err := conn.ReadMessage()
				documents.Frame(t, wsapi.WebPubSub, apitest.Server, got)
				if err != nil || kind != websocket.TextMessage || string(got) != e.want {
					t.Fatalf("after %q\ngot  %s %v\nwant %s", e.send, got, err, e.want)
				}
			}
		})
	}
}

func TestWebPubSubGroupIsAnInstance(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 10, 1))
		w.put(percent("theirs", "bob", 11, 1))
		c := w.pubsubAs("alice")
		c.join("1", "default/i")
		c.wants("ack 1", `message default/i 10 {"percent":1}`)
		c.join("2", "default/theirs")
		c.join("3", "default/later")
		c.wants("ack 2", "ack 3")
		c.join("4", "default/i") // once more
		c.wants("ack 4", `message default/i 10 {"percent":1}`)
		w.put(percent("i", "alice", 20, 2))
		w.put(percent("theirs", "bob", 21, 2))
		w.put(percent("later", "alice", 22, 3))
		c.wantsInAnyOrder(`message default/i 20 {"percent":2}`, `message default/later 22 {"percent":3}`)
		w.put(percent("i", "bob", 23, 2))
		c.wants("message default/i 21 gone")
		c.leave("5", "default/later")
		c.leave("6", "default/never")
		c.wants("ack 5", "ack 6")
		w.put(percent("later", "alice", 30, 3))
		time.Sleep(time.Minute)
		c.idle()
	})
}

func TestWebPubSubAnswersWhateverWaitsForOne(t *testing.T) {
	fake(t, wsapi.Options{MaxWatches: 2}, func(t *testing.T, w *world) {
		c := w.pubsubAs("alice")
		for frame, want := range map[string]string{
			`{"type":"joinGroup","group":"a","ackId":1}`:                           "ack 1 BadRequest",
			`{"type":"joinGroup","group":"/a","ackId":2}`:                          "ack 2 BadRequest",
			`{"type":"joinGroup","group":"h/","ackId":3}`:                          "ack 3 BadRequest",
			`{"type":"joinGroup","group":"h/a/b","ackId":4}`:                       "ack 4 BadRequest",
			`{"type":"joinGroup","group":"h h/a","ackId":5}`:                       "ack 5 BadRequest",
			`{"type":"joinGroup","group":7,"ackId":6}`:                             "ack 6 BadRequest",
			`{"type":"joinGroup","ackId":7}`:                                       "ack 7 BadRequest",
			`{"type":"joinGroup","group":"h/@a","ackId":8}`:                        "ack 8 BadRequest",
			`{"type":"leaveGroup","group":"a","ackId":9}`:                          "ack 9 BadRequest",
			`{"type":"event","event":"e","ackId":10,"dataType":"text","data":"x"}`: "ack 10 Forbidden",
			`{"type":"setGroupState","group":"h/a","ackId":11,"state":{}}`:         "ack 11 Forbidden",
			`{"type":"whatComesNext","ackId":12}`:                                  "ack 12 Forbidden",
			`{"ackId":13,"group":{},"type":"joinGroup"}`:                           "ack 13 BadRequest",
			`{"type":"sendToGroup","group":"h/a","ackId":14,"dataType":"json","data":` + strings.Repeat("[", 60) + strings.Repeat("]", 60) + `}`: "ack 14 Forbidden",
		} {
			for range 5 { // no strikes
				c.send(frame)
				c.wants(want)
			}
			time.Sleep(time.Second)
		}
		for _, silent := range []string{
			`{"type":"sequenceAck","sequenceId":0}`, `{"type":"sendToGroup","group":"h/a","dataType":"text","data":"x"}`, `{"type":"event","event":"e"}`,
			`{"type":"cancelInvocation","invocationId":"x"}`, `{"type":"streamData","streamId":"s"}`, `{"type":"streamEnd","streamId":"s"}`, `{"type":"unknown"}`,
			`{"type":"event","event":"e","ackId":"1"}`, `{"type":"event","event":"e","ackId":123456789012345678901234567890}`, `{"type":"joinGroup","group":"none"}`,
		} {
			for range 5 {
				c.send(silent)
			}
			c.idle()
			time.Sleep(time.Second)
		}
		c.join("1", "h/a")
		c.join("2", "h/b")
		c.join("3", "h/c")
		c.join("4", "h/a")
		c.wants("ack 1", "ack 2", "ack 3 TooManyRequests", "ack 4")
		c.leave("5", "h/a")
		c.join("6", "h/c")
		c.wants("ack 5", "ack 6")
	})
}

func TestWebPubSubMisuseIsDisconnected(t *testing.T) {
	for name, frame := range map[string]string{
		"no JSON": `{`, "no object": `[]`, "no type": `{"ackId":1}`, "twice": `{"type":"ping","type":"ping"}`,
		"nested": `{"type":"event","data":` + strings.Repeat("[", 70) + strings.Repeat("]", 70) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				c := w.pubsubAs("alice")
				for range 2 {
					c.send(frame)
				}
				c.send(`{"type":"ping"}`)
				c.wants("pong")
				for range 3 {
					c.send(frame)
				}
				c.wants("system disconnected (protocol misuse)", "close 4409")
			})
		})
	}
}

func TestWebPubSubIsToldWhyItIsDisconnected(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		expiring, staying := w.pubsubAs("alice~10"), w.pubsubAs("alice")
		time.Sleep(11 * time.Second)
		expiring.wants("system disconnected (token expired)", "close 4401")
		if err := w.server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		staying.wants("system disconnected (restarting)", "close 1012")
	})
}

func TestWebPubSubMustAuthenticateInTheHandshake(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		for token, want := range map[string]int{"": 401, "forged": 401, "banned": 403, "down": 503} {
			h := pubsub(token)
			if token == "" {
				h.Del("Authorization")
			}
			if _, answer, err := w.handshake(h); err == nil || answer.StatusCode != want {
				t.Errorf("%q: got %v, %v, want %d", token, answer, err, want)
			}
		}
	})
}

func TestFirstKnownSubprotocolIsSpoken(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		for offer, want := range map[string]string{
			"protobuf.webpubsub.azure.v1, json.webpubsub.azure.v1, status.v1.json":              "json.webpubsub.azure.v1",
			"json.reliable.webpubsub.azure.v1,json.webpubsub.azure.v1":                          "json.reliable.webpubsub.azure.v1",
			"x, status.v1.json, json.webpubsub.azure.v1":                                        "status.v1.json",
			"protobuf.webpubsub.azure.v1, protobuf.reliable.webpubsub.azure.v1, status.v2.json": "",
		} {
			h := bearer("alice")
			h.Set("Sec-WebSocket-Protocol", offer)
			conn, answer, err := w.handshake(h)
			if err == nil {
				conn.Close()
			}
			if got := answer.Header.Get("Sec-WebSocket-Protocol"); got != want || (want == "") != (answer.StatusCode == 400) {
				t.Errorf("%s: got %d %q, want %q", offer, answer.StatusCode, got, want)
			}
		}
	})
}

// TestWebPubSubClientThatComesBackIsNotPunished rejoins all that a client may have at once, and more, as a client does that
// has lost its connection.
func TestWebPubSubClientThatComesBackIsNotPunished(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.pubsubAs("alice")
		begin := time.Now()
		for i := range 100 {
			c.join(fmt.Sprint(i+1), fmt.Sprintf("default/%d", i))
		}
		for i := range 100 {
			c.wants(fmt.Sprintf("ack %d", i+1))
		}
		if took := time.Since(begin); took > 0 {
			t.Errorf("100 groups took %v", took)
		}
		for i := range 300 { // more than it may: it has to wait, and goes on
			c.join(fmt.Sprint(i+1), fmt.Sprintf("default/%d", i))
		}
		for i := range 300 {
			want := fmt.Sprintf("ack %d", i+1)
			if i >= 100 {
				want += " TooManyRequests"
			}
			c.wants(want)
		}
		if took := time.Since(begin); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("300 more took %v, at 20 a second", took)
		}
		time.Sleep(time.Minute) // its pongs do it no harm
		c.idle()
	})
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.pubsubAs("alice")
		for range 300 {
			_ = c.conn.WriteControl(websocket.PingMessage, nil, time.Time{})
		}
		c.wants("system disconnected (too many frames)", "close 4429")
	})
}

func TestNothingFollowsTheAckOfALeave(t *testing.T) {
	fake(t, wsapi.Options{FramesPerSecond: 1000}, func(t *testing.T, w *world) {
		c := w.pubsubAs("alice")
		for n := range 200 {
			c.join("1", "default/i")
			w.put(percent("i", "alice", int64(10+2*n), n))
			c.wants("ack 1")
			w.clients.Go(func() { w.put(percent("i", "alice", int64(11+2*n), n+1)) })
			c.leave("2", "default/i")
			for e := ""; e != "ack 2"; e = c.next() {
			}
			synctest.Wait()
			c.idle()
			time.Sleep(10 * time.Millisecond)
		}
	})
}
