package wsapi_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/wsapi"
)

// FuzzClientFrame sends a frame to a real socket. Whatever it is, it is answered with JSON and the next frame with what is
// due to it, or the socket is closed with a code that says why; the server lives on.
func FuzzClientFrame(f *testing.F) {
	for _, seed := range []string{
		`{"type":"watch","ref":"1","instances":[{"hub":"h","instanceId":"i","after":123}]}`,
		`{"type":"unwatch","ref":"2","instances":[{"instanceId":"i"},{"instanceId":"ä€"}]}`,
		`{"type":"auth","token":"alice"}`, `{"type":"auth","token":"bob"}`, `{"type":"auth","token":"panic"}`,
		`{"type":"watch","type":"watch"}`, `{"type":"watch","instances":[{"instanceId":"\ud800"}]}`, `[[[[[[[[[[]]]]]]]]]]`,
		`{"type":"watch","instances":[{"instanceId":"i","after":1e999}]}`, "\xff", `null`, ``,
		`{"type":"watch","minInterval":500,"instances":[{"instanceId":"i"}]}`, `{"type":"unwatch","list":"l"}`,
		`{"type":"watch","list":"l","query":{"hub":"h","name":"n","runtimeStatus":["Running"],"labels":{"owner":"alice"},"limit":50},"minInterval":1}`,
		`{"type":"watch","list":"l","query":{"x":1}}`, `{"type":"watch","list":"l","query":null}`,
	} {
		f.Add(true, []byte(seed))
		f.Add(false, []byte(seed))
	}
	w := start(f, newLoopback(f), wsapi.Options{FramesPerSecond: 1_000_000})
	f.Cleanup(w.end)
	f.Fuzz(func(t *testing.T, text bool, frame []byte) {
		conn, _, err := w.handshake(bearer("alice"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = conn.NetConn().(*net.TCPConn).SetLinger(0) // so that a long run does not use up the ports
			conn.Close()
		}()
		kind := websocket.BinaryMessage
		if text {
			kind = websocket.TextMessage
		}
		_ = conn.WriteMessage(kind, frame)
		_ = conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"unwatch","ref":"next","instances":[{"instanceId":"n"}]}`))
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for {
			_, answer, err := conn.ReadMessage()
			if ce := (*websocket.CloseError)(nil); errors.As(err, &ce) {
				switch ce.Code {
				case websocket.CloseInvalidFramePayloadData, websocket.CloseMessageTooBig, websocket.CloseInternalServerErr, 4401, 4403, 4429:
					return
				}
			}
			if err != nil {
				t.Fatalf("%q: %v", frame, err)
			}
			var a struct{ Type, Ref string }
			if err := json.Unmarshal(answer, &a); err != nil || a.Type == "" {
				t.Fatalf("%q was answered with %q: %v", frame, answer, err)
			}
			if fmt.Sprint(a.Type, a.Ref) == "unwatchednext" {
				return
			}
		}
	})
}

// FuzzWebPubSubFrame does the same for clients of Azure Web PubSub: whatever a frame is, it does not hinder the next one, and an
// ackId that can be understood is answered once.
func FuzzWebPubSubFrame(f *testing.F) {
	for _, seed := range []string{
		`{"type":"joinGroup","group":"h/i","ackId":1}`, `{"type":"leaveGroup","group":"h/i","ackId":18446744073709551615}`,
		`{"type":"sendToGroup","group":"h/i","noEcho":true,"dataType":"json","data":[[{}]],"ackId":1}`, `{"type":"event","event":"e","ackId":1e3}`,
		`{"type":"ping"}`, `{"type":"sequenceAck","sequenceId":1}`, `{"type":"invoke","invocationId":"\ud83d\ude00"}`, `{"type":"invoke","invocationId":"\ud800"}`,
		`{"type":"sendToGroup","stream":{"streamId":"s"}}`, `{"type":"sendToGroup","stream":{"streamId":{}}}`, `{"ackId":-0}`, "\xff", `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	w := start(f, newLoopback(f), wsapi.Options{FramesPerSecond: 1_000_000})
	f.Cleanup(w.end)
	f.Fuzz(func(t *testing.T, frame []byte) {
		conn, _, err := w.handshake(pubsub("alice"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = conn.NetConn().(*net.TCPConn).SetLinger(0)
			conn.Close()
		}()
		_ = conn.WriteMessage(websocket.TextMessage, frame)
		_ = conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"joinGroup","group":"next/next","ackId":77777}`))
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for answers := 0; ; answers++ {
			_, answer, err := conn.ReadMessage()
			if ce := (*websocket.CloseError)(nil); errors.As(err, &ce) && (ce.Code == websocket.CloseInvalidFramePayloadData || ce.Code == websocket.CloseMessageTooBig) {
				return
			}
			if err != nil {
				t.Fatalf("%q: %v", frame, err)
			}
			var a struct {
				Type  string
				AckID json.RawMessage
			}
			if err := json.Unmarshal(answer, &a); err != nil || a.Type == "" {
				t.Fatalf("%q was answered with %q: %v", frame, answer, err)
			}
			if string(a.AckID) == "77777" && answers >= 1 {
				return
			}
			if answers > 3 {
				t.Fatalf("%q was answered more than once", frame)
			}
		}
	})
}
