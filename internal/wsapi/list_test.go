package wsapi_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/apitest"
	"statusrelay/internal/status"
	"statusrelay/internal/wsapi"
)

// mine selects what is alice's and runs.
const mine = `{"runtimeStatus":["Running"],"labels":{"owner":"alice"}}`

func TestListFramesAreTheProtocols(t *testing.T) {
	documents := apitest.New(t)
	fake(t, wsapi.Options{DefaultHub: "main"}, func(t *testing.T, w *world) {
		member := percent("i", "alice", 124, 7)
		member.Hub = "h"
		w.put(member)
		conn, _, err := w.handshake(bearer("alice"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _, _ = conn.ReadMessage() // the welcome
		steps := []struct {
			do   func()
			want []string
		}{
			{
				func() {
					_ = conn.WriteMessage(1, []byte(`{"type":"watch","ref":"1","list":"mine","query":{"hub":"h","name":"","runtimeStatus":["running",1],"labels":{"owner":"alice"},"limit":50}}`))
				},
				[]string{`{"type":"problem","ref":"1","status":400,"title":"The request is not valid.","detail":"not a JSON object of this protocol"}`},
			},
			{
				func() {
					_ = conn.WriteMessage(1, []byte(`{"type":"watch","ref":"1","list":"mine","query":{"hub":"h","runtimeStatus":["running"],"labels":{"owner":"alice"},"limit":50}}`))
				},
				[]string{
					`{"type":"watching","ref":"1","list":"mine"}`,
					`{"type":"joined","list":"mine","hub":"h","instanceId":"i"}`,
					`{"type":"status","hub":"h","instanceId":"i","version":124,"status":{"hub":"h","instanceId":"i","runtimeStatus":"Running","customStatus":{"percent":7},"version":124}}`,
					`{"type":"listed","list":"mine","more":false}`,
				},
			},
			{
				func() { w.put(with(ended(percent("i", "alice", 130, 7)), func(r *status.Record) { r.Hub = "h" })) },
				[]string{
					`{"type":"status","hub":"h","instanceId":"i","version":130,"status":{"hub":"h","instanceId":"i","runtimeStatus":"Completed","customStatus":{"percent":7},"version":130}}`,
					`{"type":"left","hub":"h","instanceId":"i","version":130,"list":"mine"}`,
				},
			},
			{
				func() { _ = conn.WriteMessage(1, []byte(`{"type":"unwatch","ref":"2","list":"mine"}`)) },
				[]string{`{"type":"unwatched","ref":"2","list":"mine"}`},
			},
		}
		for i, step := range steps {
			step.do()
			for _, want := range step.want {
				_, got, err := conn.ReadMessage()
				documents.Frame(t, wsapi.Subprotocol, apitest.Server, got)
				if err != nil || string(got) != want {
					t.Fatalf("step %d\ngot  %s %v\nwant %s", i, got, err, want)
				}
			}
		}
	})
}

func TestListTellsWhatAppearsChangesAndLeaves(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("a", "alice", 10, 1))
		w.put(percent("b", "bob", 11, 1))
		w.put(ended(percent("c", "alice", 12, 1)))
		c := w.as("alice")
		c.watchList("mine", mine)
		c.wants("watching mine", "joined mine a", `status a 10 {"percent":1}`, "listed mine")
		w.put(percent("d", "alice", 20, 2))
		c.wants("joined mine d", `status d 20 {"percent":2}`)
		w.put(percent("a", "alice", 21, 3))
		c.wants(`status a 21 {"percent":3}`)
		w.put(percent("e", "bob", 22, 1))
		time.Sleep(time.Minute)
		c.idle()
		w.put(ended(percent("a", "alice", 30, 100)))
		c.wants(`status a 30 {"percent":100}`, "left mine a 30")
		w.put(percent("a", "alice", 31, 100)) // rewound
		c.wants("joined mine a", `status a 31 {"percent":100}`)
		w.put(percent("c", "alice", 32, 5))
		c.wants("joined mine c", `status c 32 {"percent":5}`)
		time.Sleep(10 * time.Minute)
		c.idle()
	})
}

func TestListMemberThatIsGoneIsToldSo(t *testing.T) {
	for name, tt := range map[string]struct {
		take func(w *world)
		want string
	}{
		"purged":                 {func(w *world) { w.put(purged("a", 20)) }, "gone a 20"},
		"expired":                {func(w *world) { w.expire(status.Key{Hub: "default", InstanceID: "a"}); time.Sleep(time.Minute) }, "gone a 11"},
		"given to somebody else": {func(w *world) { w.put(percent("a", "bob", 20, 2)) }, "gone a 11"},
		"labels in conflict": {func(w *world) {
			w.put(with(percent("a", "", 20, 2), func(r *status.Record) { r.Labels, r.Conflicts = nil, []string{"owner"} }))
		}, "gone a 11"},
		"policy": {func(w *world) {
			w.policy.Store(development(w.TB, "labels.owner == claims.sub", "labels.tenant == claims.tenant"))
			time.Sleep(2 * time.Second)
			w.policy.Store(development(w.TB))
			time.Sleep(2 * time.Second)
			w.put(purged("b", 20)) // and no other
		}, "gone a 11"},
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				w.put(percent("a", "alice", 10, 1))
				c := w.as("alice")
				c.watchList("mine", mine)
				c.wants("watching mine", "joined mine a", `status a 10 {"percent":1}`, "listed mine")
				tt.take(w)
				c.wants(tt.want)
				if name == "policy" { // it came back with it
					c.wants("joined mine a", `status a 10 {"percent":1}`)
				}
				time.Sleep(5 * time.Minute)
				c.idle()
				w.put(percent("a", "alice", 30, 3))
				if name != "policy" {
					c.wants("joined mine a")
				}
				c.wants(`status a 30 {"percent":3}`)
				c.idle()
			})
		})
	}
}

func TestListFollowsTheRightsOfTheToken(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("a", "alice", 10, 1))
		w.put(percent("b", "bob", 11, 1))
		c := w.as("alice+operator")
		c.watchList("all", `{}`)
		c.wants("watching all")
		c.wantsInAnyOrder("joined all a", "joined all b", `status a 10 {"percent":1,"secret":"of alice at 10"}`, `status b 11 {"percent":1,"secret":"of bob at 11"}`)
		c.wants("listed all")
		c.send(`{"type":"auth","token":"alice"}`)
		c.wants("welcome")
		c.wantsInAnyOrder("gone b 12", `status a 11 {"percent":1}`)
		w.put(percent("b", "bob", 20, 2))
		time.Sleep(time.Minute)
		c.idle()
		c.send(`{"type":"auth","token":"alice+operator"}`)
		c.wants("welcome")
		c.wantsInAnyOrder("joined all b", `status b 20 {"percent":2,"secret":"of bob at 20"}`, `status a 12 {"percent":1,"secret":"of alice at 10"}`)
		time.Sleep(time.Minute)
		c.idle()
	})
}

func TestListDoesNotTellTheLabelsThatItsReaderDoesNotSee(t *testing.T) {
	labelled := func(id, tenant string, version int64) *status.Record {
		return with(percent(id, "alice", version, 1), func(r *status.Record) { r.Labels["tenant"] = tenant })
	}
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(labelled("a", "t-1", 10))
		customer, operator := w.as("alice"), w.as("olga+operator")
		for _, c := range []*client{customer, operator} {
			c.watchList("guess", `{"labels":{"tenant":"t-1"}}`)
			c.wants("watching guess")
		}
		customer.wants("listed guess")
		operator.wants("joined guess a", `status a 10 {"percent":1,"secret":"of alice at 10"}`, "listed guess")
		w.put(labelled("z", "t-1", 9))
		operator.wants("joined guess z", `status z 9 {"percent":1,"secret":"of alice at 9"}`)
		customer.watchList("more", `{"labels":{"tenant":"t-1"},"limit":1}`)
		customer.wants("watching more", "listed more") // not that there are more
		w.put(purged("z", 10))
		operator.wants("gone z 10")
		w.put(labelled("b", "t-1", 11))
		operator.wants("joined guess b", `status b 11 {"percent":1,"secret":"of alice at 11"}`)
		// What they see of labels changes.
		customer.watch("a")
		customer.wants("watching a", `status a 10 {"percent":1}`)
		time.Sleep(time.Minute)
		customer.idle()
		w.policy.Store(development(t, "labels: true", "labels: false"))
		time.Sleep(2 * time.Second)
		operator.wantsInAnyOrder(`status a 11 {"percent":1,"secret":"of alice at 10"}`, "left guess a 11",
			`status b 12 {"percent":1,"secret":"of alice at 11"}`, "left guess b 12") // without the labels
		w.put(labelled("c", "t-1", 13))
		time.Sleep(time.Minute)
		operator.idle()
		w.policy.Store(development(t))
		time.Sleep(2 * time.Second)
		for range 6 {
			if e := operator.next(); !strings.HasPrefix(e, "joined guess ") && !strings.HasPrefix(e, "status ") {
				t.Errorf("got %s", e)
			}
		}
		operator.idle()
		customer.idle()
	})
}

func TestListIsListedOnceWhenAllIsTold(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watchList("empty", `{"labels":{"owner":"alice"}}`)
		c.wants("watching empty", "listed empty")
		var want []string
		for i := range 30 {
			w.put(percent(fmt.Sprint(i), "alice", int64(100+i), 1))
			want = append(want, fmt.Sprintf("joined empty %d", i), fmt.Sprintf(`status %d %d {"percent":1}`, i, 100+i))
		}
		c.wantsInAnyOrder(want...)
		for i := range want {
			want[i] = strings.Replace(want[i], "empty", "full", 1)
		}
		fresh := w.as("alice")
		fresh.watchList("full", `{"labels":{"owner":"alice"}}`)
		fresh.wants("watching full")
		fresh.wantsInAnyOrder(want...)
		fresh.wants("listed full")
		for range 3 {
			w.hub.Gap()
			w.queries.Gap()
			time.Sleep(time.Minute)
		}
		fresh.idle()
		c.idle()
	})
}

func TestListHasItsLimitAndIsFilledUp(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		for i := range 5 {
			w.put(percent(string(rune('a'+i)), "alice", int64(10+i), 1))
		}
		c := w.as("alice")
		c.watchList("mine", `{"runtimeStatus":["Running"],"labels":{"owner":"alice"},"limit":3}`)
		c.wants("watching mine")
		c.wantsInAnyOrder("joined mine e", "joined mine d", "joined mine c", `status c 12 {"percent":1}`, `status d 13 {"percent":1}`, `status e 14 {"percent":1}`)
		c.wants("listed mine more")
		w.put(percent("a", "alice", 20, 2)) // there is no room
		time.Sleep(time.Minute)
		c.idle()
		w.put(ended(percent("d", "alice", 21, 3)))
		c.wants(`status d 21 {"percent":3}`, "left mine d 21", "joined mine a", `status a 20 {"percent":2}`)
		w.put(purged("e", 22))
		c.wants("gone e 22")
		c.wantsInAnyOrder("joined mine b", `status b 11 {"percent":1}`, "listed mine")
		time.Sleep(time.Minute)
		c.idle()
		w.put(percent("f", "alice", 30, 1))
		c.wants("listed mine more")
		c.idle()
	})
}

func TestInstanceWatchedInSeveralWaysIsToldOnce(t *testing.T) {
	const all = `{"labels":{"owner":"alice"},"limit":10}`
	type way struct{ open, close func(c *client) }
	ways := map[string]way{
		"name": {
			func(c *client) { c.watch("a"); c.wants("watching a") },
			func(c *client) { c.unwatch("a"); c.wants("unwatched a") },
		},
	}
	for _, name := range []string{"x", "y"} {
		ways[name] = way{
			func(c *client) { c.watchList(name, all); c.wants("watching " + name) },
			func(c *client) { c.unwatchList(name); c.wants("unwatched " + name) },
		}
	}
	orders := [][]string{{"name", "x", "y"}, {"name", "y", "x"}, {"x", "name", "y"}, {"x", "y", "name"}, {"y", "x", "name"}, {"y", "name", "x"}}
	for _, opened := range orders {
		for _, closed := range orders {
			fake(t, wsapi.Options{FramesPerSecond: 1000}, func(t *testing.T, w *world) {
				w.put(percent("a", "alice", 10, 1))
				c := w.as("alice")
				told := false
				for _, name := range opened {
					ways[name].open(c)
					if name != "name" {
						c.wants("joined " + name + " a")
					}
					if !told || name == "name" { // who asks by name without after has nothing
						c.wants(`status a 10 {"percent":1}`)
					}
					told = true
					if name != "name" {
						c.wants("listed " + name)
					}
					c.idle()
				}
				w.put(percent("a", "alice", 20, 2))
				c.wants(`status a 20 {"percent":2}`)
				for i, name := range closed {
					c.idle()
					ways[name].close(c)
					version := int64(30 + i)
					w.put(percent("a", "alice", version, int(version)))
					if i < 2 {
						c.wants(fmt.Sprintf(`status a %d {"percent":%d}`, version, version))
					}
				}
				time.Sleep(time.Minute)
				c.idle()
				w.mu.Lock()
				defer w.mu.Unlock()
				if len(w.subscribed)+len(w.indexes) > 0 {
					t.Errorf("still subscribed: %v %v", w.subscribed, w.indexes)
				}
			})
		}
	}
}

func TestListMemberWatchedByNameToo(t *testing.T) {
	setUp := func(t *testing.T, f func(w *world, c *client)) {
		fake(t, wsapi.Options{}, func(_ *testing.T, w *world) {
			w.put(percent("a", "alice", 10, 1))
			c := w.as("alice")
			c.watchList("mine", mine)
			c.wants("watching mine", "joined mine a", `status a 10 {"percent":1}`, "listed mine")
			f(w, c)
		})
	}
	t.Run("is left, and watched on", func(t *testing.T) {
		setUp(t, func(w *world, c *client) {
			c.watch("a@10")
			c.wants("watching a")
			w.put(ended(percent("a", "alice", 20, 2)))
			c.wants(`status a 20 {"percent":2}`, "left mine a 20")
			w.put(ended(percent("a", "alice", 21, 3)))
			c.wants(`status a 21 {"percent":3}`)
			c.idle()
		})
	})
	t.Run("continues from the after that is given", func(t *testing.T) {
		setUp(t, func(w *world, c *client) {
			c.watch("a@10")
			c.wants("watching a")
			c.idle()
			c.watch("a@9")
			c.wants("watching a", `status a 10 {"percent":1}`)
			c.idle()
		})
	})
	t.Run("is gone for both", func(t *testing.T) {
		setUp(t, func(w *world, c *client) {
			c.watch("a")
			c.wants("watching a", `status a 10 {"percent":1}`)
			w.put(purged("a", 30))
			c.wants("gone a 30")
			w.put(percent("a", "alice", 40, 1))
			c.wantsInAnyOrder("joined mine a", `status a 40 {"percent":1}`)
			c.idle()
		})
	})
	t.Run("is gone between", func(t *testing.T) {
		setUp(t, func(w *world, c *client) {
			w.setAway(true)
			w.put(purged("a", 30))
			c.watch("a")
			c.wants("watching a")
			w.setAway(false)
			w.hub.Gap()
			time.Sleep(time.Minute)
			c.wants("gone a 30")
			c.idle()
		})
	})
	t.Run("left both", func(t *testing.T) {
		setUp(t, func(w *world, c *client) {
			c.watch("a@10")
			c.wants("watching a")
			c.unwatchList("mine")
			c.wants("unwatched mine")
			w.put(percent("a", "alice", 20, 2))
			c.wants(`status a 20 {"percent":2}`)
			c.unwatch("a")
			c.wants("unwatched a")
			w.put(percent("a", "alice", 30, 2))
			time.Sleep(time.Minute)
			c.idle()
		})
	})
}

func TestListOfTheSameNameReplaces(t *testing.T) {
	fake(t, wsapi.Options{MaxWatches: 100}, func(t *testing.T, w *world) {
		w.put(percent("a", "alice", 10, 1))
		w.put(ended(percent("b", "alice", 11, 1)))
		c := w.as("alice")
		c.watchList("l", `{"runtimeStatus":["Running"],"labels":{"owner":"alice"},"limit":100}`)
		c.wants("watching l", "joined l a", `status a 10 {"percent":1}`, "listed l")
		c.watchList("l", `{"runtimeStatus":["Completed"],"labels":{"owner":"alice"},"limit":100}`)
		c.wants("watching l", "joined l b", `status b 11 {"percent":1}`, "listed l")
		w.put(percent("a", "alice", 20, 2))
		time.Sleep(time.Minute)
		c.idle()
		w.put(ended(percent("a", "alice", 30, 2)))
		c.wants("joined l a", `status a 30 {"percent":2}`)
		c.idle()
	})
}

func TestListsCountAmongTheWatchesByTheirLimits(t *testing.T) {
	fake(t, wsapi.Options{MaxWatches: 10}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watchList("l", `{}`) // 50
		c.wants("problem 429")
		c.watchList("l", `{"limit":8}`)
		c.wants("watching l", "listed l")
		c.watch("a", "b", "c")
		c.wants("problem 429")
		c.watch("a", "b")
		c.wants("watching a b")
		c.watchList("m", `{"limit":1}`)
		c.wants("problem 429")
		c.watchList("l", `{"limit":9}`)
		c.wants("problem 429")
		c.watchList("l", `{"limit":7}`)
		c.wants("watching l", "listed l")
		c.watchList("m", `{"limit":1}`)
		c.wants("watching m", "listed m")
		c.unwatchList("l")
		c.wants("unwatched l")
		c.watch("c", "d", "e", "f", "g", "h", "i")
		c.wants("watching c d e f g h i")
		c.watch("j")
		c.wants("problem 429")
	})
}

func TestRedisAwayListsStayAndAreReadAgain(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("a", "alice", 10, 1))
		c := w.as("alice")
		c.watchList("mine", mine)
		c.wants("watching mine", "joined mine a", `status a 10 {"percent":1}`, "listed mine")
		w.setAway(true)
		c.watchList("other", `{"labels":{"owner":"alice"},"limit":5}`)
		c.wants("watching other")
		w.put(ended(percent("a", "alice", 20, 2)))
		w.put(percent("b", "alice", 21, 3))
		time.Sleep(10 * time.Minute)
		c.idle()
		w.setAway(false)
		w.hub.Gap()
		w.queries.Gap()
		time.Sleep(10 * time.Second)
		got := map[string]bool{}
		for len(c.events) > 0 {
			got[c.next()] = true
		}
		for _, want := range []string{
			`status a 20 {"percent":2}`, "left mine a 20", "joined other a",
			"joined mine b", "joined other b", `status b 21 {"percent":3}`, "listed other",
		} {
			if !got[want] {
				t.Errorf("got %v, want %s", got, want)
			}
		}
		time.Sleep(10 * time.Minute)
		c.idle()
	})
}

func TestManyTouchesAreFewReads(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		c := w.as("alice")
		c.watchList("mine", `{"labels":{"owner":"alice"},"limit":10}`)
		c.wants("watching mine", "listed mine")
		w.mu.Lock()
		before := w.lists
		w.mu.Unlock()
		for n := range 10_000 {
			w.put(percent(fmt.Sprint(n%2500), "alice", int64(100+n), n))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		w.mu.Lock()
		read := w.lists - before
		w.mu.Unlock()
		if read > 5 {
			t.Errorf("the list was read %d times", read)
		}
		members := map[string]bool{}
		for len(c.events) > 0 {
			words := strings.Fields(c.next())
			if words[0] == "joined" {
				members[words[2]] = true
			}
		}
		if len(members) != 10 {
			t.Errorf("%d members", len(members))
		}
	})
}

func TestMalformedLists(t *testing.T) {
	for name, frame := range map[string]string{
		"long name":         `{"type":"watch","list":"` + strings.Repeat("x", 65) + `","query":{}}`,
		"instances beside":  `{"type":"watch","list":"l","instances":[{"instanceId":"i"}]}`,
		"no name":           `{"type":"watch","list":"","query":{}}`,
		"name of a number":  `{"type":"watch","list":1,"query":{}}`,
		"unknown member":    `{"type":"watch","list":"l","query":{"runtimestatus":["Running"]}}`,
		"query of a list":   `{"type":"watch","list":"l","query":[]}`,
		"bad hub":           `{"type":"watch","list":"l","query":{"hub":"a b"}}`,
		"unknown status":    `{"type":"watch","list":"l","query":{"runtimeStatus":["Walking"]}}`,
		"status as a text":  `{"type":"watch","list":"l","query":{"runtimeStatus":"Running"}}`,
		"negative limit":    `{"type":"watch","list":"l","query":{"limit":-1}}`,
		"limit of 101":      `{"type":"watch","list":"l","query":{"limit":101}}`,
		"limit of 1.5":      `{"type":"watch","list":"l","query":{"limit":1.5}}`,
		"long orchestrator": `{"type":"watch","list":"l","query":{"name":"` + strings.Repeat("x", 257) + `"}}`,
		"label of a number": `{"type":"watch","list":"l","query":{"labels":{"owner":1}}}`,
		"empty label":       `{"type":"watch","list":"l","query":{"labels":{"":"x"}}}`,
		"long label":        `{"type":"watch","list":"l","query":{"labels":{"owner":"` + strings.Repeat("x", 257) + `"}}}`,
		"nine labels":       `{"type":"watch","list":"l","query":{"labels":{"a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":""}}}`,
		"label twice":       `{"type":"watch","list":"l","query":{"labels":{"a":"","a":""}}}`,
		"interval negative": `{"type":"watch","list":"l","query":{},"minInterval":-1}`,
		"interval of hours": `{"type":"watch","instances":[{"instanceId":"i"}],"minInterval":60001}`,
		"interval as text":  `{"type":"watch","instances":[{"instanceId":"i"}],"minInterval":"1"}`,
		"interval of 0.5":   `{"type":"watch","instances":[{"instanceId":"i"}],"minInterval":0.5}`,
		"unwatch both":      `{"type":"unwatch","list":"l","instances":[{"instanceId":"i"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
				c := w.as("alice")
				for range 3 {
					c.send(frame)
					c.wants("problem 400")
				}
				c.wants("close 4409")
			})
		})
	}
}

func TestClosedSocketLeavesNoList(t *testing.T) {
	fake(t, wsapi.Options{}, func(t *testing.T, w *world) {
		w.put(percent("a", "alice", 10, 1))
		c := w.as("alice")
		c.watchList("mine", mine, `,"minInterval":60000`)
		c.watchList("all", `{}`)
		c.wants("watching mine")
		synctest.Wait()
		w.put(percent("a", "alice", 20, 1)) // held back
		c.close()
		synctest.Wait()
		time.Sleep(time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.subscribed)+len(w.indexes) > 0 {
			t.Errorf("still subscribed: %v %v", w.subscribed, w.indexes)
		}
	})
}

// TestListStorm has instances come, change hands, end and go while clients open, replace and close lists, watch by name,
// renew their tokens and leave. Then every client that opens a list has exactly what is its own.
func TestListStorm(t *testing.T) {
	w := start(t, newLoopback(t), wsapi.Options{FramesPerSecond: 1_000_000})
	defer w.end()
	const instances = 12
	var version sync.Mutex
	next := int64(1000)
	change := func() {
		version.Lock()
		next++
		v := next
		version.Unlock()
		id := fmt.Sprint(rand.N(instances))
		record := percent(id, []string{"alice", "bob"}[rand.N(2)], v, int(v))
		switch rand.N(6) {
		case 0:
			record = ended(record)
		case 1:
			record = purged(id, v)
		}
		w.put(record)
	}
	ctx, stop := context.WithCancel(t.Context())
	var publishers, storm sync.WaitGroup
	for range 2 {
		publishers.Go(func() {
			for ctx.Err() == nil {
				change()
				if rand.N(50) == 0 {
					w.hub.Gap()
					w.queries.Gap()
				}
				if rand.N(200) == 0 {
					w.policy.Store(development(t))
				}
				runtime.Gosched()
			}
		})
	}
	for i := range 8 {
		token := []string{"alice", "bob", "carol+operator", "dave"}[i%4]
		storm.Go(func() {
			for range 10 {
				c := w.open(bearer(token))
				for range 20 {
					name := []string{"x", "y"}[rand.N(2)]
					id := fmt.Sprint(rand.N(instances))
					switch rand.N(7) {
					case 0:
						c.watchList(name, `{"runtimeStatus":["Running"],"limit":5}`, `,"minInterval":1`)
					case 1:
						c.watchList(name, `{"labels":{"owner":"alice"},"limit":20}`)
					case 2:
						c.unwatchList(name)
					case 3:
						c.watch(id)
					case 4:
						c.unwatch(id)
					case 5:
						c.send(fmt.Sprintf(`{"type":"auth","token":%q}`, token))
					default:
						runtime.Gosched()
					}
				}
				if rand.N(2) == 0 {
					c.close()
				} else {
					c.conn.Close()
				}
				for e := range c.events {
					if strings.HasPrefix(e, "problem") {
						t.Errorf("%s: %s", token, e)
					}
					if strings.HasPrefix(e, "close") || e == "cut off" || strings.HasPrefix(e, "write") {
						break
					}
				}
			}
		})
	}
	storm.Wait()
	stop()
	publishers.Wait()

	for _, token := range []string{"alice", "bob", "carol+operator", "dave"} {
		var want []string
		for k, r := range w.records {
			if !r.Purged && !r.Terminal() && (r.Labels["owner"] == token || strings.HasSuffix(token, "+operator")) {
				want = append(want, k.InstanceID)
			}
		}
		c := w.as(token)
		c.watchList("mine", `{"runtimeStatus":["Running"]}`)
		c.wants("watching mine")
		var got []string
		for e := c.next(); e != "listed mine"; e = c.next() {
			if id, ok := strings.CutPrefix(e, "joined mine "); ok {
				got = append(got, id)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", token, got, want)
		}
		c.close()
	}
}
