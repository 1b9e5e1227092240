package wsapi_test

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"

	"statusrelay/internal/wsapi"
)

func deflated(t testing.TB, text io.Reader) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{0, 0, 0xff, 0xff}) // RFC 7692 section 7.2.1
}

// masked is a frame of a client with RSV1 set.
func masked(payload []byte) []byte {
	frame := []byte{0xc1}
	if len(payload) < 126 {
		frame = append(frame, 0x80|byte(len(payload)))
	} else {
		frame = binary.BigEndian.AppendUint64(append(frame, 0xff), uint64(len(payload)))
	}
	return append(append(frame, 0, 0, 0, 0), payload...) // masked with zeros
}

// zeros is that many bytes.
type zeros struct{ left int }

func (z *zeros) Read(p []byte) (int, error) {
	n := min(z.left, len(p))
	clear(p[:n])
	if z.left -= n; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func compressing(w *world, token string) *client {
	w.Helper()
	conn, answer, err := w.handshakeWith("", websocket.Dialer{EnableCompression: true}, bearer(token))
	if err != nil {
		w.Fatal(err)
	}
	if got := answer.Header.Get("Sec-WebSocket-Extensions"); !strings.HasPrefix(got, "permessage-deflate") {
		w.Fatalf("extensions: %q", got)
	}
	c := w.client(conn, answer)
	c.wants("welcome")
	return c
}

func TestCompressionIsNegotiated(t *testing.T) {
	const accepted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	for _, on := range []bool{false, true} {
		fake(t, wsapi.Options{Compression: on}, func(t *testing.T, w *world) {
			for offer, want := range map[string]string{
				"": "", "permessage-deflate": accepted, "permessage-deflate; client_max_window_bits": accepted, "x-webkit-deflate-frame": "",
				"permessage-deflate; server_max_window_bits=10":                     "", // nobody can compress for that
				"permessage-deflate; server_max_window_bits=10, permessage-deflate": accepted,
			} {
				if !on {
					want = ""
				}
				h := bearer("alice")
				if offer != "" {
					h["Sec-Websocket-Extensions"] = []string{offer}
				}
				got := rawHandshake(t, w, h)
				if got != want {
					t.Errorf("compression %t, %q: got %q, want %q", on, offer, got, want)
				}
			}
		})
	}
}

// rawHandshake returns the extensions that are agreed upon: the client's library sends and understands those of its own only.
func rawHandshake(t *testing.T, w *world, h http.Header) string {
	t.Helper()
	conn, err := w.network.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, err := http.NewRequest("GET", "http://relay.test/v1/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = h
	for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="} {
		r.Header.Set(name, value)
	}
	if err := r.Write(conn); err != nil {
		t.Fatal(err)
	}
	var answer []byte
	for !bytes.Contains(answer, []byte("\r\n\r\n")) {
		b := make([]byte, 4096)
		n, err := conn.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		answer = append(answer, b[:n]...)
	}
	for line := range strings.SplitSeq(string(answer), "\r\n") {
		if value, ok := strings.CutPrefix(line, "Sec-WebSocket-Extensions: "); ok {
			return value
		}
	}
	return ""
}

func TestCompressedFramesAreReadAndWritten(t *testing.T) {
	fake(t, wsapi.Options{Compression: true}, func(t *testing.T, w *world) {
		ballast := strings.Repeat("x", 10_000)
		w.put(instance("i", "alice", 10, `{"step":"`+ballast+`"}`))
		plain, small := w.as("alice"), compressing(w, "alice")
		for _, c := range []*client{plain, small} {
			c.watch("i")
			c.wants("watching i", `status i 10 {"step":"`+ballast+`"}`)
			w.put(percent("j", "alice", 10, 1))
			c.watch("j")
			c.wants("watching j", `status j 10 {"percent":1}`)
		}
		frame := `{"type":"watch","instances":[{"instanceId":"k"}]}`
		small.send(strings.Repeat(" ", 16<<10-len(frame)) + frame) // the largest there may be
		small.wants("watching k")
		small.send(strings.Repeat(" ", 16<<10-len(frame)+1) + frame)
		small.wants("close 1009")
	})
}

func TestBombIsNotUnpacked(t *testing.T) {
	const size, limit = 32 << 20, 64 << 10
	bomb := masked(deflated(t, &zeros{size}))
	if len(bomb) >= limit {
		t.Fatalf("a bomb of %d bytes", len(bomb))
	}
	w := start(t, newLoopback(t), wsapi.Options{Compression: true, MaxFrameBytes: limit})
	defer w.end()
	c := compressing(w, "alice")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := c.conn.NetConn().Write(bomb); err != nil {
		t.Fatal(err)
	}
	c.wants("close 1009")
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("%d bytes were allocated", grown)
	}
}

func TestWhatCannotBeDecompressedCloses1007(t *testing.T) {
	text := []byte(`{"type":"watch","instances":[{"instanceId":"` + strings.Repeat("abcdefgh", 10) + `"}]}`)
	good := deflated(t, bytes.NewReader(text))
	for name, payload := range map[string][]byte{
		"no block type": {0x07, 0xff, 0xff}, "no lengths": {0x01, 0x05, 0x00, 0x00, 0x00, 1, 2, 3}, "noise": bytes.Repeat([]byte{0xed, 0xfd, 0x35}, 40),
		"cut": good[:len(good)/2],
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, newLoopback(t), wsapi.Options{Compression: true})
			defer w.end()
			c := compressing(w, "alice")
			if _, err := c.conn.NetConn().Write(masked(payload)); err != nil {
				t.Fatal(err)
			}
			switch e := c.next(); e {
			case "close 1007":
			case "problem 400": // what is cut off may still be something
				if name != "cut" {
					t.Errorf("got %s", e)
				}
			default:
				t.Errorf("got %s", e)
			}
		})
	}
	t.Run("compressed though it is off", func(t *testing.T) {
		w := start(t, newLoopback(t), wsapi.Options{})
		defer w.end()
		c := w.as("alice")
		if _, err := c.conn.NetConn().Write(masked(good)); err != nil {
			t.Fatal(err)
		}
		c.wants("close 1002")
	})
}

// TestFrameIsCompressedOnceForAll counts the memory that is allocated while many sockets are sent the same: what is framed and
// compressed is written to memory first.
func TestFrameIsCompressedOnceForAll(t *testing.T) {
	const watchers, versions = 200, 10
	noise := make([]byte, 16<<10)
	for i := range noise {
		noise[i] = "0123456789abcdef"[rand.N(16)]
	}
	w := start(t, newLoopback(t), wsapi.Options{Compression: true})
	defer w.end()
	version := int64(1000)
	cost := func(compression bool) (allocated uint64, received int64) {
		var bytes atomic.Int64
		var arrived, left sync.WaitGroup // a version at all of them; all of them
		id := fmt.Sprint(compression)
		conns := make([]*websocket.Conn, watchers)
		for i := range conns {
			conn, _, err := w.handshakeWith("", websocket.Dialer{EnableCompression: compression}, bearer("alice"))
			if err != nil {
				t.Fatal(err)
			}
			conns[i] = conn
			if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"watch","instances":[{"instanceId":"`+id+`"}]}`)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, _, err := conn.ReadMessage(); err != nil {
					t.Fatal(err)
				}
			}
			left.Go(func() { // reads frames, and does not decompress them
				r := bufio.NewReaderSize(conn.NetConn(), 32<<10)
				for range versions {
					for final := false; !final; { // the library breaks up what it compresses
						h, err := r.Peek(4)
						if err != nil {
							t.Error(err)
							return
						}
						header, size := 2, int(h[1])
						if size == 126 {
							header, size = 4, int(binary.BigEndian.Uint16(h[2:]))
						}
						if opcode := h[0] & 0xf; opcode == websocket.TextMessage && h[0]&0x40 != 0 != compression {
							t.Errorf("a frame that begins with %x", h)
						}
						final = h[0]&0x80 != 0
						n, err := r.Discard(header + size)
						if err != nil {
							t.Error(err)
							return
						}
						bytes.Add(int64(n))
					}
					arrived.Done()
				}
			})
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for n := range versions {
			version++
			arrived.Add(watchers)
			w.put(instance(id, "alice", version, fmt.Sprintf(`{"percent":%d,"step":%q}`, n, noise)))
			arrived.Wait()
		}
		runtime.ReadMemStats(&after)
		left.Wait()
		for _, conn := range conns {
			conn.Close()
		}
		return after.TotalAlloc - before.TotalAlloc, bytes.Load()
	}
	plain, whole := cost(false)
	compressed, small := cost(true)
	if small > whole*2/3 {
		t.Errorf("%d bytes were compressed to %d", whole, small)
	}
	// The compressor itself takes more than a megabyte, and there may have to be a new one for each version.
	for what, allocated := range map[string]uint64{"plain": plain, "compressed": compressed - min(compressed, versions*1300<<10)} {
		if perFrame := allocated / (watchers * versions); perFrame > 4<<10 {
			t.Errorf("%s: %d bytes were allocated for a frame and client", what, perFrame)
		}
	}
}
