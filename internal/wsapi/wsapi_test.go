package wsapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/apitest"
	"statusrelay/internal/status"
	"statusrelay/internal/wsapi"
)

func TestFramesAreTheProtocols(t *testing.T) {
	documents := apitest.New(t)
	synctest.Test(t, func(t *testing.T) {
		w := start(t, newPipes(), wsapi.Options{DefaultHub: "main"})
		defer w.end()
		r := percent("i\"1", "alice", 124, 7)
		r.Hub = "h"
		w.put(r)
		conn, _, err := w.handshake(bearer("alice~3600"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		expires := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		exchange := []struct{ send, want string }{
			{"", `{"type":"welcome","expires":"` + expires + `","limits":{"watches":100,"instancesPerFrame":100,"frameBytes":16384,"framesPerSecond":20,"pingSeconds":25}}`},
			{
				`{"type":"watch","ref":"1\"","instances":[{"hub":"h","instanceId":"i\"1","after":123},{"instanceId":"j"}],"more":[{}]}`,
				`{"type":"watching","ref":"1\"","instances":[{"hub":"h","instanceId":"i\"1"},{"hub":"main","instanceId":"j"}]}`,
			},
			{"", `{"type":"status","hub":"h","instanceId":"i\"1","version":124,"status":{"hub":"h","instanceId":"i\"1","runtimeStatus":"Running","customStatus":{"percent":7},"version":124}}`},
			{
				`{"type":"unwatch","ref":"2","instances":[{"instanceId":"j"}]}`,
				`{"type":"unwatched","ref":"2","instances":[{"hub":"main","instanceId":"j"}]}`,
			},
			{
				`{"type":"unwatch","instances":[{"instanceId":"j"}]}`,
				`{"type":"unwatched","instances":[{"hub":"main","instanceId":"j"}]}`,
			},
			{
				`{"type":"auth","ref":"3","token":"alice"}`,
				`{"type":"welcome","ref":"3","limits":{"watches":100,"instancesPerFrame":100,"frameBytes":16384,"framesPerSecond":20,"pingSeconds":25}}`,
			},
			{
				`{"type":"wait","ref":"4"}`,
				`{"type":"problem","ref":"4","status":400,"title":"The request is not valid.","field":"type","detail":"not one of auth, watch, unwatch"}`,
			},
			{"purge", `{"type":"gone","hub":"h","instanceId":"i\"1","version":125}`},
		}
		for _, e := range exchange {
			switch e.send {
			case "":
			case "purge":
				w.put(&status.Record{Hub: "h", InstanceID: "i\"1", Version: 125, Purged: true})
			default:
				if err := conn.WriteMessage(websocket.TextMessage, []byte(e.send)); err != nil {
					t.Fatal(err)
				}
			}
			kind, got, err := conn.ReadMessage()
			documents.Frame(t, wsapi.Subprotocol, apitest.Server, got)
			if err != nil || kind != websocket.TextMessage || string(got) != e.want {
				t.Fatalf("after %q\ngot  %s %v\nwant %s", e.send, got, err, e.want)
			}
		}
	})
}

func TestWaysToAuthenticate(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 1, 7))
		for name, open := range map[string]func() *client{
			"Authorization": func() *client { return w.open(bearer("alice")) },
			"subprotocol":   func() *client { return w.open(subprotocol("alice")) },
			"first frame": func() *client {
				c := w.open(nil)
				c.send(`{"type":"auth","token":"alice"}`)
				return c
			},
			"first frame with subprotocol": func() *client {
				c := w.open(http.Header{"Sec-WebSocket-Protocol": {"status.v1.json"}})
				c.send(`{"type":"auth","token":"alice"}`)
				return c
			},
		} {
			c := open()
			c.wants("welcome")
			c.watch("i")
			c.wants("watching i", `status i 1 {"percent":7}`)
			want := ""
			if strings.Contains(name, "subprotocol") {
				want = "status.v1.json"
			}
			if got := strings.Join(c.answer.Header.Values("Sec-WebSocket-Protocol"), ","); got != want {
				t.Errorf("%s: answered subprotocol %q, want %q", name, got, want)
			}
		}
	})
}

func TestRefusedHandshakes(t *testing.T) {
	with := func(h http.Header, more ...string) http.Header {
		h = h.Clone()
		for i := 0; i < len(more); i += 2 {
			h.Add(more[i], more[i+1])
		}
		return h
	}
	alice := bearer("alice")
	tests := []struct {
		name   string
		header http.Header
		status int
	}{
		{"forged token", bearer("forged"), 401},
		{"forged token in the subprotocol", subprotocol("forged"), 401},
		{"expired token", bearer("expired"), 401},
		{"banned", bearer("banned"), 403},
		{"keys away", bearer("down"), 503},
		{"unknown error", bearer("broken"), 500},
		{"two headers", with(alice, "Authorization", "Bearer bob"), 401},
		{"a header and a subprotocol", with(subprotocol("bob"), "Authorization", "Bearer alice"), 401},
		{"two tokens in the subprotocol", http.Header{"Sec-WebSocket-Protocol": {"status.v1.json, bearer.YQ, bearer.Yg"}}, 401},
		{"two tokens in two lines", http.Header{"Sec-WebSocket-Protocol": {"status.v1.json, bearer.YQ", "bearer.Yg"}}, 401},
		{"no base64url", http.Header{"Sec-WebSocket-Protocol": {"status.v1.json, bearer.a+b"}}, 401},
		{"empty token", http.Header{"Sec-WebSocket-Protocol": {"status.v1.json, bearer."}}, 401},
		{"another subprotocol", with(alice, "Sec-WebSocket-Protocol", "status.v2.json"), 400},
		{"a token and no subprotocol", http.Header{"Sec-WebSocket-Protocol": {"bearer.YQ"}}, 400},
		{"another site", with(alice, "Origin", "https://evil.test"), 403},
		{"null", with(alice, "Origin", "null"), 403},
		{"listed as a prefix", with(alice, "Origin", "https://good.test.evil.test"), 403},
		{"listed in the path", with(alice, "Origin", "https://evil.test/good.test"), 403},
		{"another scheme", with(alice, "Origin", "http://good.test"), 403},
		{"another port", with(alice, "Origin", "https://good.test:8443"), 403},
		{"another case", with(alice, "Origin", "https://GOOD.test"), 403},
		{"two origins", with(alice, "Origin", "https://good.test", "Origin", "https://good.test"), 403},
		{"the same host", with(alice, "Origin", "http://relay.test"), 403},
		{"an empty origin", with(alice, "Origin", ""), 403},
		{"listed", with(alice, "Origin", "https://good.test"), 101},
		{"listed too", with(alice, "Origin", "http://localhost:8080"), 101},
	}
	fake(t, wsapi.Options{Origins: []string{"https://good.test", "http://localhost:8080"}}, func(t *testing.T, w *world) {
		for _, tt := range tests {
			conn, answer, err := w.handshake(tt.header)
			if err == nil {
				conn.Close()
			}
			if answer == nil || answer.StatusCode != tt.status {
				t.Errorf("%s: got %v, %v, want %d", tt.name, answer, err, tt.status)
				continue
			}
			if tt.status == 101 {
				continue
			}
			if got := answer.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("%s: content type %q", tt.name, got)
			}
			if b := body(answer); strings.Contains(b, "secret") || strings.Contains(b, "evil") {
				t.Errorf("%s: says too much: %s", tt.name, b)
			}
		}
	})
}

func TestPlainRequestIsToldToUpgrade(t *testing.T) {
	w := start(t, newLoopback(t), wsapi.Options{})
	defer w.end()
	for _, tt := range []struct {
		method string
		header http.Header
		status int
	}{
		{"GET", nil, http.StatusUpgradeRequired},
		{"POST", http.Header{"Connection": {"upgrade"}, "Upgrade": {"websocket"}}, http.StatusMethodNotAllowed},
		{"GET", http.Header{"Connection": {"upgrade"}, "Upgrade": {"websocket"}, "Sec-WebSocket-Version": {"12"}}, http.StatusBadRequest},
	} {
		r, err := http.NewRequest(tt.method, "http://"+w.network.Addr().String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = tt.header
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != tt.status {
			t.Errorf("%s %v: got %d, want %d", tt.method, tt.header, answer.StatusCode, tt.status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestFirstTokenRefusedClosesTheSocket(t *testing.T) {
	for token, want := range map[string][]string{
		"forged":  {"problem 401", "close 4401"},
		"expired": {"problem 401", "close 4401"},
		"banned":  {"problem 403", "close 4403"},
		"down":    {"problem 503", "close 1013"},
		"broken":  {"problem 500", "close 1011"},
	} {
		fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
			c := w.open(nil)
			c.send(`{"type":"auth","token":"` + token + `"}`)
			c.wants(want...)
		})
	}
}

func TestNothingBeforeAuth(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.open(nil)
		c.idle()
		c.watch("i")
		c.wants("problem 401", "close 4401")
	})
}

func TestNoAuthInTimeCloses4408(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.open(nil)
		time.Sleep(4 * time.Second)
		c.idle()
		time.Sleep(2 * time.Second)
		c.wants("close 4408")
	})
}

func TestExpiryCloses4401AndNothingIsPushedAfterIt(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		time.Sleep(500 * time.Millisecond) // so that the sweep comes half a second after the expiry
		w.put(percent("i", "alice", 1, 1))
		pushed, idle := w.as("alice~10"), w.as("alice~10")
		pushed.watch("i")
		pushed.wants("watching i", `status i 1 {"percent":1}`)
		time.Sleep(10*time.Second - time.Millisecond)
		w.put(percent("i", "alice", 2, 2))
		pushed.wants(`status i 2 {"percent":2}`)
		time.Sleep(time.Millisecond)
		w.put(percent("i", "alice", 3, 3))
		pushed.wants("close 4401")
		time.Sleep(time.Second)
		idle.wants("close 4401")
	})
}

func TestRefreshKeepsTheSocketOpen(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice~10")
		time.Sleep(9 * time.Second)
		c.send(`{"type":"auth","ref":"r","token":"alice~100"}`)
		c.wants("welcome ref=r")
		time.Sleep(90 * time.Second)
		c.idle()
		time.Sleep(11 * time.Second)
		c.wants("close 4401")
	})
}

func TestRefreshWithABadTokenChangesNothing(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice~60")
		for _, token := range []string{"forged", "down", "expired"} {
			c.send(`{"type":"auth","token":"` + token + `"}`)
			if got := c.next(); !strings.HasPrefix(got, "problem") {
				t.Errorf("%s: got %s", token, got)
			}
		}
		c.watch("i")
		c.wants("watching i")
	})
}

func TestRefreshAsSomebodyElseIsRefusedAndCloses(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.send(`{"type":"auth","token":"bob"}`)
		c.wants("problem 403", "close 4403")
	})
}

func TestRefreshWithNarrowerRightsTakesEffectAtOnce(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("mine", "alice", 10, 1))
		w.put(percent("other", "bob", 10, 2))
		c := w.as("alice+operator")
		c.watch("other")
		c.wants("watching other", `status other 10 {"percent":2,"secret":"of bob at 10"}`)
		c.watch("mine")
		c.wants("watching mine", `status mine 10 {"percent":1,"secret":"of alice at 10"}`)
		c.send(`{"type":"auth","token":"alice"}`)
		c.wants("welcome")
		events := map[string]bool{c.next(): true, c.next(): true}
		if !events["gone other 11"] || !events[`status mine 11 {"percent":1}`] {
			t.Errorf("got %v", events)
		}
		w.put(percent("other", "bob", 20, 3))
		c.idle()
		c.send(`{"type":"auth","token":"alice+operator"}`)
		c.wants("welcome")
		events = map[string]bool{c.next(): true, c.next(): true}
		if !events[`status other 20 {"percent":3,"secret":"of bob at 20"}`] || !events[`status mine 12 {"percent":1,"secret":"of alice at 10"}`] {
			t.Errorf("got %v", events)
		}
	})
}

func TestAfterDecidesWhetherTheCurrentStatusIsSent(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 124, 1))
		c := w.as("alice")
		c.watch("i@123")
		c.wants("watching i", `status i 124 {"percent":1}`)
		c.watch("i@124")
		c.wants("watching i")
		c.idle()
		c.watch("i@5")
		c.wants("watching i", `status i 124 {"percent":1}`)
		c.watch("i")
		c.wants("watching i", `status i 124 {"percent":1}`)
		c.watch("i@124")
		c.wants("watching i")
		w.put(percent("i", "alice", 125, 2))
		c.wants(`status i 125 {"percent":2}`)
		c.idle()
	})
}

func TestLateWatcherGetsLatest(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		early, late := w.as("alice"), w.as("alice")
		early.watch("i")
		early.wants("watching i")
		early.idle()
		for v := range 5 {
			w.put(percent("i", "alice", int64(10+v), v))
			early.wants(fmt.Sprintf(`status i %d {"percent":%d}`, 10+v, v))
		}
		late.watch("i")
		late.wants("watching i", `status i 14 {"percent":4}`)
		early.idle()
	})
}

func TestUnknownAndNotYoursLookAlike(t *testing.T) {
	for _, after := range []string{"", "@1", "@10", "@99"} {
		transcript := func(prepare func(*world)) []string {
			var events []string
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				prepare(w)
				c := w.as("alice")
				c.watch("i" + after)
				synctest.Wait()
				w.put(percent("k", "alice", 30, 1))
				time.Sleep(5 * time.Minute)
				c.unwatch("i")
				synctest.Wait()
				for len(c.events) > 0 {
					events = append(events, <-c.events)
				}
			})
			return events
		}
		unknown := transcript(func(*world) {})
		for name, prepare := range map[string]func(*world){
			"not yours": func(w *world) { w.put(percent("i", "bob", 10, 1)) },
			"purged":    func(w *world) { w.put(&status.Record{Hub: "default", InstanceID: "i", Version: 10, Purged: true}) },
		} {
			if got := transcript(prepare); fmt.Sprint(got) != fmt.Sprint(unknown) {
				t.Errorf("after %q: unknown %q, %s %q", after, unknown, name, got)
			}
		}
	}
}

func TestWhoComesBackForWhatIsGoneIsToldSo(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("theirs", "bob", 10, 1))
		c := w.as("alice")
		for _, id := range []string{"unknown", "theirs"} {
			c.watch(id + "@10")
			c.wants("watching "+id, "gone "+id+" 11")
		}
		c.watch("unknown")
		c.wants("watching unknown")
		c.idle()
	})
}

func TestWatcherIsToldWhenItExistsAndWhenItBecomesTheirs(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watch("i")
		c.wants("watching i")
		c.idle()
		w.put(with(percent("i", "", 10, 1), func(r *status.Record) { r.Labels = nil }))
		c.idle()
		w.put(percent("i", "alice", 11, 1))
		c.wants(`status i 11 {"percent":1}`)
	})
}

func TestWhatIsNoLongerThereOrYoursIsGone(t *testing.T) {
	for name, tt := range map[string]struct {
		take func(w *world)
		want string
	}{
		"purged": {func(w *world) { w.put(&status.Record{Hub: "default", InstanceID: "i", Version: 20, Purged: true}) }, "gone i 20"},
		"expired": {func(w *world) {
			w.expire(status.Key{Hub: "default", InstanceID: "i"})
			time.Sleep(time.Minute)
		}, "gone i 11"},
		"given to somebody else": {func(w *world) { w.put(percent("i", "bob", 20, 2)) }, "gone i 11"},
		"labels in conflict": {func(w *world) {
			w.put(with(percent("i", "", 20, 2), func(r *status.Record) { r.Labels, r.Conflicts = nil, []string{"owner"} }))
		}, "gone i 11"},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				w.put(percent("i", "alice", 10, 1))
				c := w.as("alice")
				c.watch("i")
				c.wants("watching i", `status i 10 {"percent":1}`)
				tt.take(w)
				c.wants(tt.want)
				time.Sleep(5 * time.Minute)
				c.idle()
				w.put(percent("i", "alice", 30, 3))
				c.wants(`status i 30 {"percent":3}`)
			})
		})
	}
}

func TestChangeOfHiddenFieldsWakesNobodyWhoCannotSeeThem(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(instance("i", "alice", 1, `{"percent":1,"secret":1}`))
		customer, resumed, operator := w.as("alice"), w.as("alice"), w.as("bob+operator")
		customer.watch("i")
		customer.wants("watching i", `status i 1 {"percent":1}`)
		resumed.watch("i@1")
		resumed.wants("watching i")
		resumed.idle() // it is known now what the client has
		operator.watch("i")
		operator.wants("watching i", `status i 1 {"percent":1,"secret":1}`)
		w.put(instance("i", "alice", 2, `{"percent":1,"secret":2}`))
		operator.wants(`status i 2 {"percent":1,"secret":2}`)
		customer.idle()
		resumed.idle()
		w.put(instance("i", "alice", 3, `{"percent":2,"secret":2}`))
		customer.wants(`status i 3 {"percent":2}`)
		resumed.wants(`status i 3 {"percent":2}`)
	})
}

func TestPolicyChangeTakesEffectOnOpenWatches(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(instance("i", "alice", 10, `{"percent":1,"step":"a"}`))
		customer, operator := w.as("alice"), w.as("bob+operator")
		customer.watch("i")
		customer.wants("watching i", `status i 10 {"percent":1,"step":"a"}`)
		operator.watch("i")
		operator.wants("watching i", `status i 10 {"percent":1,"step":"a"}`)

		w.policy.Store(development(t, "- /step\n", "\n"))
		time.Sleep(2 * time.Second)
		customer.wants(`status i 11 {"percent":1}`)
		operator.idle()

		w.policy.Store(development(t, "labels.owner == claims.sub", "labels.tenant == claims.tenant"))
		time.Sleep(2 * time.Second)
		customer.wants("gone i 12")
		operator.idle()

		w.policy.Store(development(t))
		time.Sleep(2 * time.Second)
		customer.wants(`status i 13 {"percent":1,"step":"a"}`)
		w.put(instance("i", "alice", 20, `{"percent":2,"step":"b"}`))
		customer.wants(`status i 20 {"percent":2,"step":"b"}`)
	})
}

func TestUnwatchedIsNotSentAnyMore(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watch("i", "j", "k")
		c.wants("watching i j k")
		c.unwatch("j", "never")
		c.wants("unwatched j never")
		c.unwatch("i")
		c.wants("unwatched i")
		for _, id := range []string{"i", "j", "k"} {
			w.put(percent(id, "alice", 10, 1))
		}
		c.wants(`status k 10 {"percent":1}`)
		c.idle()
	})
}

func TestFrameThatIsNotUTF8Closes1007(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.send("{\"type\":\"watch\",\"ref\":\"\xff\",\"instances\":[{\"instanceId\":\"i\"}]}")
		c.wants("close 1007")
	})
}

func TestMisuse(t *testing.T) {
	text := func(frame string) func(*client) { return func(c *client) { c.send(frame) } }
	for name, send := range map[string]func(*client){
		"no JSON":            text(`{"type":`),
		"two documents":      text(`{"type":"watch","instances":[{"instanceId":"i"}]}{}`),
		"an array":           text(`[]`),
		"null":               text(`null`),
		"nothing":            text(``),
		"duplicate names":    text(`{"type":"watch","type":"watch","instances":[{"instanceId":"i"}]}`),
		"lone surrogate":     text(`{"type":"watch","instances":[{"instanceId":"\ud800"}]}`),
		"deep nesting":       text(`{"type":"watch","x":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `,"instances":[{"instanceId":"i"}]}`),
		"unknown type":       text(`{"type":"subscribe"}`),
		"type in capitals":   text(`{"type":"WATCH","instances":[{"instanceId":"i"}]}`),
		"no instances":       text(`{"type":"watch","instances":[]}`),
		"101 instances":      text(`{"type":"unwatch","instances":[` + strings.Repeat(`{"instanceId":"i"},`, 100) + `{"instanceId":"i"}]}`),
		"bad hub":            text(`{"type":"watch","instances":[{"hub":"a b","instanceId":"i"}]}`),
		"bad id":             text(`{"type":"watch","instances":[{"instanceId":"a/b"}]}`),
		"no id":              text(`{"type":"watch","instances":[{}]}`),
		"NUL":                text(`{"type":"watch","instances":[{"instanceId":"\u0000"}]}`),
		"negative after":     text(`{"type":"watch","instances":[{"instanceId":"i","after":-1}]}`),
		"after of 2^53":      text(`{"type":"watch","instances":[{"instanceId":"i","after":9007199254740992}]}`),
		"after of 1e999":     text(`{"type":"watch","instances":[{"instanceId":"i","after":1e999}]}`),
		"after as a string":  text(`{"type":"watch","instances":[{"instanceId":"i","after":"1"}]}`),
		"long ref":           text(`{"type":"watch","ref":"` + strings.Repeat("x", 129) + `","instances":[{"instanceId":"i"}]}`),
		"auth without token": text(`{"type":"auth"}`),
		"binary": func(c *client) {
			_ = c.conn.WriteMessage(websocket.BinaryMessage, []byte(`{"type":"watch","instances":[{"instanceId":"i"}]}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				c := w.as("alice")
				for range 2 {
					send(c)
					c.wants("problem 400")
				}
				c.watch("ok") // two are forgiven
				c.wants("watching ok")
				for range 3 {
					send(c)
					c.wants("problem 400")
				}
				c.wants("close 4409")
			})
		})
	}
}

func TestProblemEchoesTheRef(t *testing.T) {
	fake(t, wsapi.Options{MaxWatches: 1}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.send(`{"type":"watch","ref":"a","instances":[{"instanceId":""}]}`)
		c.wants("problem ref=a 400")
		c.send(`{"type":"watch","ref":"b","instances":[{"instanceId":"i"},{"instanceId":"j"}]}`)
		c.wants("problem ref=b 429")
	})
}

func TestTooManyWatchesAreRefusedTogether(t *testing.T) {
	fake(t, wsapi.Options{MaxWatches: 3}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watch("a", "b", "a")
		c.wants("watching a b a")
		c.watch("c", "d")
		c.wants("problem 429")
		c.watch("c", "a")
		c.wants("watching c a")
		c.watch("d")
		c.wants("problem 429")
		c.unwatch("b")
		c.wants("unwatched b")
		c.watch("d")
		c.wants("watching d")
		for _, id := range []string{"a", "b", "c", "d"} {
			w.put(percent(id, "alice", 10, 1))
		}
		got := map[string]bool{c.next(): true, c.next(): true, c.next(): true}
		for _, id := range []string{"a", "c", "d"} {
			if !got[fmt.Sprintf(`status %s 10 {"percent":1}`, id)] {
				t.Errorf("%s: got %v", id, got)
			}
		}
		c.idle()
	})
}

func TestTooManyFramesClose4429(t *testing.T) {
	flood := map[string]func(c *client){
		"frames": func(c *client) { c.unwatch("i") },
		"pings":  func(c *client) { _ = c.conn.WriteControl(websocket.PingMessage, nil, time.Time{}) },
		"pongs":  func(c *client) { _ = c.conn.WriteControl(websocket.PongMessage, nil, time.Time{}) },
	}
	for name, send := range flood {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{FramesPerSecond: 5, MaxWatches: 10}, func(t *testing.T, w *world) {
				c := w.as("alice")
				for range 100 { // within the limit, for as long as one likes
					send(c)
					time.Sleep(time.Second / 5)
				}
				synctest.Wait()
				for len(c.events) > 0 {
					c.wants("unwatched i")
				}
				for range 21 {
					send(c)
				}
				for {
					e := c.next()
					if e == "close 4429" {
						return
					}
					if e != "unwatched i" {
						t.Fatalf("got %q", e)
					}
				}
			})
		})
	}
}

func TestTooBigFrameCloses1009(t *testing.T) {
	fragments := func(n, size int) func(c *client) {
		return func(c *client) {
			m, err := c.conn.NextWriter(websocket.TextMessage)
			if err != nil {
				return
			}
			for range n {
				_, _ = m.Write(make([]byte, size)) // larger than the client's buffer: a fragment of its own
			}
			_ = m.Close()
		}
	}
	for name, tt := range map[string]struct {
		auth bool
		send func(c *client)
	}{
		"before auth": {false, func(c *client) { c.send(strings.Repeat(" ", 9<<10)) }},
		"after auth":  {true, func(c *client) { c.send(strings.Repeat(" ", 17<<10)) }},
		"fragments":   {true, fragments(100, 5000)},
		"announced": {true, func(c *client) { // 2^62 bytes
			_, _ = c.conn.NetConn().Write([]byte{0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
		}},
		"announced more than there can be": {true, func(c *client) {
			_, _ = c.conn.NetConn().Write([]byte{0x81, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, newLoopback(t), wsapi.Options{})
			defer w.end()
			c := w.open(nil)
			if tt.auth {
				c.send(`{"type":"auth","token":"alice"}`)
				c.wants("welcome")
			}
			tt.send(c)
			c.wants("close 1009")
		})
	}
}

func TestLargestFrameIsRead(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		frame := `{"type":"watch","instances":[{"instanceId":"i"}]}`
		c.send(strings.Repeat(" ", 16<<10-len(frame)) + frame)
		c.wants("watching i")
	})
}

func TestBreachOfTheWebSocketProtocolCloses1002(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"unmasked":          {0x81, 0x02, '{', '}'},
		"reserved bit":      {0xc1, 0x82, 0, 0, 0, 0, '{', '}'},
		"reserved opcode":   {0x83, 0x80, 0, 0, 0, 0},
		"split ping":        {0x09, 0x80, 0, 0, 0, 0},
		"lone continuation": {0x80, 0x80, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, newLoopback(t), wsapi.Options{})
			defer w.end()
			c := w.as("alice")
			if _, err := c.conn.NetConn().Write(bytes); err != nil {
				t.Fatal(err)
			}
			c.wants("close 1002")
		})
	}
}

func TestRedisAwaySocketsStayAndEndOnTheNewest(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("i", "alice", 1, 1))
		c := w.as("alice")
		c.watch("i")
		c.wants("watching i", `status i 1 {"percent":1}`)
		w.setAway(true)
		c.watch("j")
		c.wants("watching j")
		time.Sleep(10 * time.Minute)
		c.idle()
		w.put(percent("i", "alice", 2, 2))
		w.put(percent("j", "alice", 3, 3))
		w.setAway(false)
		w.hub.Gap()
		time.Sleep(10 * time.Second)
		got := map[string]bool{c.next(): true, c.next(): true}
		if !got[`status i 2 {"percent":2}`] || !got[`status j 3 {"percent":3}`] {
			t.Errorf("got %v", got)
		}
	})
}

func TestSilentClientIsCutOff(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		polite := w.as("alice")
		silent := w.as("alice", func(conn *websocket.Conn) {
			conn.SetPingHandler(func(string) error { return nil })
		})
		time.Sleep(37 * time.Second)
		silent.wants("cut off")
		time.Sleep(10 * time.Minute)
		polite.idle()
	})
}

func TestPingsAreRegularAndNotInStep(t *testing.T) {
	fake(t, wsapi.Options{PingInterval: 40 * time.Second}, func(t *testing.T, w *world) {
		const clients = 20
		var mu sync.Mutex
		second := map[int64]int{}
		begin := time.Now()
		pings := make([]atomic.Int64, clients)
		for i := range pings {
			w.as("alice", func(conn *websocket.Conn) {
				pong := conn.PingHandler()
				conn.SetPingHandler(func(s string) error {
					pings[i].Add(1)
					mu.Lock()
					second[int64(time.Since(begin).Seconds())]++
					mu.Unlock()
					return pong(s)
				})
			})
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		for i := range pings {
			if n := pings[i].Load(); n < 600/41 || n > 600/29 {
				t.Errorf("client %d: %d pings in ten minutes", i, n)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for s, n := range second {
			if n > clients/2 {
				t.Errorf("%d pings in second %d", n, s)
			}
		}
	})
}

func TestPingOfTheClientIsAnswered(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		pong := make(chan string, 1)
		c := w.as("alice", func(conn *websocket.Conn) {
			conn.SetPongHandler(func(s string) error { pong <- s; return nil })
		})
		if err := c.conn.WriteControl(websocket.PingMessage, []byte("hello"), time.Time{}); err != nil {
			t.Fatal(err)
		}
		if got := <-pong; got != "hello" {
			t.Errorf("got %q", got)
		}
	})
}

func TestClientThatLeavesIsForgotten(t *testing.T) {
	fake(t, wsapi.Options{MaxSockets: 1}, func(t *testing.T, w *world) {
		for range 3 {
			c := w.as("alice")
			c.watch("i")
			c.wants("watching i")
			c.close()
			c.wants("close 1000")
			synctest.Wait()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.subscribed) != 0 {
			t.Errorf("still subscribed: %v", w.subscribed)
		}
	})
}

func TestLimitsOfSockets(t *testing.T) {
	fake(t, wsapi.Options{MaxSockets: 3, MaxUnauthenticated: 1}, func(t *testing.T, w *world) {
		refused := func(h http.Header) {
			t.Helper()
			_, answer, err := w.handshake(h)
			if err == nil || answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
				t.Errorf("got %v, %v", answer, err)
			}
		}
		anonymous := w.open(nil)
		refused(nil)
		anonymous.send(`{"type":"auth","token":"alice"}`)
		anonymous.wants("welcome")
		w.open(nil)
		refused(nil)
		third := w.as("alice")
		refused(bearer("alice"))
		third.close()
		third.wants("close 1000")
		synctest.Wait()
		refused(nil)
		w.as("alice")
	})
}

func TestPanicEndsItsSocketOnly(t *testing.T) {
	for name, provoke := range map[string]func(w *world, c *client){
		"of the reader": func(_ *world, c *client) { c.send(`{"type":"auth","token":"panic"}`) },
		"of the drain": func(w *world, _ *client) {
			r := percent("i", "alice", 5, 5)
			r.Version = 5
			w.policy.Store(nil)
			w.put(r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				victim, other := w.as("alice"), w.as("alice")
				victim.watch("i")
				victim.wants("watching i")
				synctest.Wait()
				provoke(w, victim)
				victim.wants("close 1011")
				w.policy.Store(development(t))
				other.watch("i")
				other.wants("watching i")
				w.put(percent("i", "alice", 6, 6))
				if got := other.next(); !strings.HasPrefix(got, "status i ") {
					t.Errorf("got %s", got)
				}
			})
		})
	}
}

func TestShutdownSpreadsItsClosesOverTheDrainPeriod(t *testing.T) {
	fake(t, wsapi.Options{DrainPeriod: 10 * time.Second}, func(t *testing.T, w *world) {
		const clients = 20
		begin := time.Now()
		closed := make(chan time.Duration, clients)
		for range clients {
			c := w.as("alice")
			c.watch("i")
			c.wants("watching i")
			w.clients.Go(func() {
				c.wants("close 1012")
				closed <- time.Since(begin)
			})
		}
		if err := w.server.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		seconds := map[time.Duration]int{}
		for range clients {
			seconds[(<-closed).Truncate(time.Second)]++
		}
		if len(seconds) < 9 {
			t.Errorf("closes per second: %v", seconds)
		}
		if _, answer, err := w.handshake(bearer("alice")); err == nil || answer.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("a handshake afterwards: %v, %v", answer, err)
		}
	})
}

func TestShutdownKeepsToItsDeadline(t *testing.T) {
	fake(t, wsapi.Options{DrainPeriod: time.Hour}, func(t *testing.T, w *world) {
		polite := w.as("alice")
		conn, _, err := w.handshake(bearer("alice")) // never reads
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
		defer cancel()
		begin := time.Now()
		if err := w.server.Shutdown(ctx); err != context.DeadlineExceeded {
			t.Errorf("Shutdown: %v", err)
		}
		if took := time.Since(begin); took > 6*time.Second {
			t.Errorf("took %v", took)
		}
		polite.wants("close 1012")
	})
}

func TestAnswersThatNobodyReadsAreBoundedAndCutOff(t *testing.T) {
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = strings.Repeat("x", 90) + fmt.Sprint(i)
	}
	flood := func(t *testing.T, w *world) *websocket.Conn {
		conn, _, err := w.handshake(bearer("alice"))
		if err != nil {
			t.Fatal(err)
		}
		for range 50 { // answers of 13 KB
			_ = conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"unwatch","instances":[`+list(ids)+`]}`))
		}
		return conn
	}
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		conn := flood(t, w)
		defer conn.Close()
		answers := 0
		for {
			_, answer, err := conn.ReadMessage()
			if err != nil {
				if !websocket.IsCloseError(err, 4429) {
					t.Errorf("got %v", err)
				}
				break
			}
			answers += len(answer)
		}
		if answers > 3*64<<10 { // those that are being written, those that wait, and the one too much
			t.Errorf("%d bytes of answers were kept", answers)
		}
	})
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		conn := flood(t, w)
		defer conn.Close()
		time.Sleep(12 * time.Second)
		if _, err := conn.NetConn().Write([]byte{0}); err == nil {
			t.Error("still open")
		}
	})
}

func TestCausesAreNotShown(t *testing.T) {
	fake(t, wsapi.Options{Logger: slog.New(slog.DiscardHandler)}, func(t *testing.T, w *world) {
		for _, token := range []string{"forged", "expired", "banned", "down", "broken", "panic"} {
			conn, _, err := w.handshake(nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"auth","token":"`+token+`"}`)); err != nil {
				t.Fatal(err)
			}
			for {
				_, frame, err := conn.ReadMessage()
				if strings.Contains(string(frame), "secret") || err != nil && strings.Contains(err.Error(), "secret") {
					t.Errorf("%s: %s %v", token, frame, err)
				}
				if err != nil {
					break
				}
			}
			conn.Close()
		}
	})
}

func TestSilenceIsToldOnce(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.policy.Store(development(t, "# staleAfter: 15m", "staleAfter: 15m"))
		now := time.Now().UnixMicro()
		w.put(percent("i", "alice", now, 1))
		conn, _, err := w.handshake(bearer("alice"))
		if err != nil {
			t.Fatal(err)
		}
		c := w.client(conn, nil)
		c.wants("welcome")
		c.watch("i")
		c.wants("watching i", fmt.Sprintf(`status i %d {"percent":1}`, now))
		time.Sleep(14 * time.Minute)
		c.idle()
		time.Sleep(61 * time.Second)
		c.wants(fmt.Sprintf(`status i %d {"percent":1} stale`, now+1))
		c.send(`{"type":"auth","token":"alice"}`)
		c.wants("welcome")
		time.Sleep(time.Hour)
		c.idle()
		now = time.Now().UnixMicro()
		w.put(percent("i", "alice", now, 1))
		c.wants(fmt.Sprintf(`status i %d {"percent":1}`, now))
		w.put(ended(percent("i", "alice", now+1, 1)))
		c.wants(fmt.Sprintf(`status i %d {"percent":1}`, now+1))
		time.Sleep(time.Hour)
		c.idle()
	})
}
