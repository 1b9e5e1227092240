package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/httpapi"
	"statusrelay/internal/status"
)

// at returns a record of a version, with a percentage that customers of the owner see.
func at(id string, version int64, percent int) *status.Record {
	r := record(id)
	r.Version = version
	r.Progress.CustomStatus = json.RawMessage(fmt.Sprintf(`{"internalCost":%d,"percent":%d}`, version, percent))
	return r
}

func TestStreamBeginsAtOnceAlsoWhenThereIsNothing(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		retries := map[time.Duration]bool{}
		for path, token := range map[string]string{
			aPath:                             "customer.u-2",
			"/v1/instances/b":                 "operator.x",
			"/v1/hubs/other/instances/b":      "operator.x",
			"/v1/instances?id=a&id=b":         "customer.u-2",
			"/v1/instances?label.owner=u-2":   "customer.u-2",
			"/v1/hubs/orders/instances?id=b":  "operator.x",
			"/v1/instances/b?minInterval=100": "operator.x",
		} {
			v := w.view(t, path, token)
			s := parseStream(v.bytes())
			if s.retry < 2*time.Second || s.retry > 5*time.Second {
				t.Errorf("%s: retry %s", path, s.retry)
			}
			retries[s.retry] = true
			h := v.answer().Header()
			if h.Get("Content-Type") != "text/event-stream" || h.Get("X-Accel-Buffering") != "no" || v.answer().Code != 200 {
				t.Errorf("%s: headers %v", path, h)
			}
			if strings.Contains(path, "label") {
				v.want("a list of nothing", "listed false")
			} else {
				v.want(path)
			}
		}
		if len(retries) < 3 {
			t.Errorf("all come back after %v", retries)
		}
	})
}

func TestStreamTellsWhatItsAudienceSees(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		v, o := w.view(t, aPath, "customer.u-1"), w.view(t, aPath, "operator.x")
		v.want("while there is nothing")
		w.store.put(at("a", 100, 1))
		v.want("when it appears", "status a 100")
		o.want("when it appears", "status a 100")
		w.store.put(at("a", 101, 1))
		v.want("when what they do not see changes")
		o.want("when what they see changes", "status a 101")
		w.store.put(at("a", 102, 2))
		events := v.take()
		if body := strings.TrimSpace(get(t, w.api, aPath, "customer.u-1").Body.String()); len(events) != 1 || events[0].data != body {
			t.Errorf("got %v, want what GET says: %s", events, body)
		}
		w.store.put(at("a", 101, 7))
		v.want("an older version")
		w.store.put(changed(at("a", 102, 2), func(r *status.Record) { r.Lifecycle.RuntimeStatus = status.Completed }))
		v.want("when it has ended", "status a 103")
		w.store.put(changed(at("a", 103, 2), func(r *status.Record) { r.Purged = true }))
		v.want("when it is purged", "gone a 104")
		time.Sleep(time.Hour)
		if v.ended() {
			t.Error("the stream has ended with its instance")
		}
		v.take()
		w.store.put(at("a", 200, 3))
		v.want("when it is there again", "status a 200")
		w.store.put(changed(at("a", 200, 3), func(r *status.Record) { r.Labels["owner"] = "u-2" }))
		v.want("when it is another's", "gone a 201")
		o.take()
		if n := w.metric(t, "httpapi_events_sent_total", ""); n != 13 {
			t.Errorf("%v events are counted", n)
		}
	})
}

func TestEventsAreAsDocumented(t *testing.T) {
	for _, id := range []string{"a", `q"uo'te`, "Größe & 订单 <b>", "a:b, c", "{}"} {
		bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
			w.store.put(at(id, 100, 1))
			one, list := w.view(t, "/v1/instances/"+url.PathEscape(id), "operator.x"), w.view(t, "/v1/instances?name=ProcessOrder", "operator.x")
			time.Sleep(100 * time.Millisecond)
			w.store.put(changed(at(id, 100, 1), func(r *status.Record) { r.Name = "Other" }))
			time.Sleep(100 * time.Millisecond)
			w.store.put(changed(at(id, 101, 1), func(r *status.Record) { r.Purged = true }))
			synctest.Wait()
			key := func(version int) string {
				quoted, _ := jsontext.AppendQuote(nil, id)
				return fmt.Sprintf(`{"hub":"orders","instanceId":%s,"version":%d}`, quoted, version)
			}
			events := append(one.take()[2:], list.take()[1:]...)
			events = slices.DeleteFunc(events, func(e event) bool { return e.name == "status" })
			want := []event{{"gone", "102", key(102)}, {"listed", "100", `{"more":false}`}, {"left", "101", key(101)}}
			if !slices.Equal(events, want) {
				t.Errorf("got  %q\nwant %q", events, want)
			}
		})
	}
}

func TestStreamResumesBehindWhatTheClientHas(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		for _, tt := range []struct{ query, last, want string }{
			{"", "", "status a 100"},
			{"", "99", "status a 100"},
			{"", "100", ""},
			{"", "101", ""}, // from a replica that knows more
			{"?after=99", "", "status a 100"},
			{"?after=100", "", ""},
			{"?after=0", "", "status a 100"},
			{"?after=90", "99", "status a 100"},
			{"?after=90", "100", ""}, // a browser comes back to the URL that it had
			{"?after=100", "90", ""},
			{"?after=100", "0", ""},
			{"?after=100", "100", ""},
		} {
			var header []string
			if tt.last != "" {
				header = []string{"Last-Event-ID", tt.last}
			}
			v := w.view(t, aPath+tt.query, "operator.x", header...)
			if tt.want == "" {
				v.want(fmt.Sprint(tt))
			} else {
				v.want(fmt.Sprint(tt), tt.want)
			}
		}
		v := w.view(t, aPath, "operator.x", "Last-Event-ID", "100")
		w.store.put(at("a", 101, 2))
		v.want("what comes next", "status a 101")
		// What never was and what may not be seen are told alike.
		w.view(t, aPath, "customer.u-2", "Last-Event-ID", "100").want("not theirs", "gone a 101")
		w.view(t, "/v1/instances/b", "customer.u-2", "Last-Event-ID", "100").want("not there", "gone b 101")
	})
}

func TestBadStreamRequestsAreRefused(t *testing.T) {
	w := newWorld(t, httpapi.Options{}, record("a"))
	for name, tt := range map[string]struct {
		path, field string
		header      []string
	}{
		"id is text":                {aPath, "Last-Event-ID", []string{"Last-Event-ID", "x"}},
		"id is negative":            {aPath, "Last-Event-ID", []string{"Last-Event-ID", "-1"}},
		"id above 2^53-1":           {aPath, "Last-Event-ID", []string{"Last-Event-ID", "9007199254740992"}},
		"two ids":                   {aPath, "Last-Event-ID", []string{"Last-Event-ID", "1", "Last-Event-ID", "2"}},
		"after is text":             {aPath + "?after=x", "after", nil},
		"minInterval is text":       {aPath + "?minInterval=x", "minInterval", nil},
		"minInterval is negative":   {aPath + "?minInterval=-1", "minInterval", nil},
		"minInterval of an hour":    {aPath + "?minInterval=3600000", "minInterval", nil},
		"minInterval twice":         {aPath + "?minInterval=1&minInterval=1", "minInterval", nil},
		"unknown":                   {aPath + "?x=1", "x", nil},
		"bad id":                    {"/v1/instances/@a", "instanceId", nil},
		"bad hub":                   {"/v1/hubs/a.b/instances/a", "hub", nil},
		"bad hub of several":        {"/v1/hubs/a.b/instances?id=a", "hub", nil},
		"bad hub of a list":         {"/v1/hubs/a.b/instances", "hub", nil},
		"one bad id of several":     {"/v1/instances?id=a&id=@b", "id", nil},
		"too many":                  {"/v1/instances?id=" + strings.Repeat("a&id=", 100), "id", nil},
		"after of several":          {"/v1/instances?id=a&after=1", "after", nil},
		"cursor of a list":          {"/v1/instances?cursor=x", "cursor", nil},
		"limit of a list":           {"/v1/instances?limit=101", "limit", nil},
		"runtimeStatus of a list":   {"/v1/instances?runtimeStatus=x", "runtimeStatus", nil},
		"bad escape":                {aPath + "?after=%zz", "", nil},
		"semicolon":                 {aPath + "?after=1;x=2", "", nil},
		"minInterval of a list":     {"/v1/instances?minInterval=x", "minInterval", nil},
		"minInterval of several":    {"/v1/instances?id=a&minInterval=x", "minInterval", nil},
		"an empty name of a label":  {"/v1/instances?label.=x", "labels", nil},
		"an empty name":             {aPath + "?=x", "", nil},
		"Last-Event-ID as a query":  {aPath + "?lastEventId=1", "lastEventId", nil},
		"a ticket beside the token": {aPath + "?ticket=x", "ticket", nil},
	} {
		got := get(t, w.api, tt.path, "operator.x", append(tt.header, "Accept", "text/event-stream")...)
		wantProblem(t, name, got, 400, "invalid", tt.field)
	}
	stream := []string{"Accept", "text/event-stream"}
	wantProblem(t, "no token", get(t, w.api, aPath+"?x=1", "", stream...), 401, "unauthenticated", "")
	wantProblem(t, "expired", get(t, w.api, aPath, "expired", stream...), 401, "token-expired", "")
}

func TestWhoAsksForAStreamGetsOne(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(current("a"))
		for accept, want := range map[string]bool{
			"text/event-stream":                               true,
			"TEXT/Event-Stream":                               true,
			"text/event-stream; charset=utf-8":                true,
			"text/event-stream;q=0.5":                         true,
			"application/json, text/event-stream":             true,
			"application/json;q=0.5,text/event-stream;q=0.8":  true,
			"application/json\ntext/event-stream":             true,
			"application/json, text/event-stream;q=0.5":       false,
			"text/event-stream;q=0":                           false,
			"text/event-stream;q=0.000":                       false,
			"text/event-stream;q=x":                           false,
			"text/event-stream;q=NaN":                         false,
			"text/event-stream;q=0.5, application/json;q=0.6": false,
			"text/event-streams":                              false,
			"text/*":                                          false,
			"*/*":                                             false,
			"":                                                false,
			`application/x;a="text/event-stream"`:             false,
		} {
			r := newRequest(http.MethodHead, aPath, "operator.x")
			for line := range strings.SplitSeq(accept, "\n") {
				r.Header.Add("Accept", line)
			}
			if got := do(t, w.api, r).Header().Get("Content-Type") == "text/event-stream"; got != want {
				t.Errorf("Accept %q: stream %t, want %t", accept, got, want)
			}
		}
	})
}

func TestStreamBeats(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		v := w.view(t, aPath, "operator.x")
		for i := range 10 {
			before := parseStream(v.bytes()).comments
			time.Sleep(15*time.Second*3/4 - time.Millisecond)
			if n := parseStream(v.bytes()).comments; n != before && i == 0 {
				t.Errorf("a comment after less than three quarters of the time")
			}
			time.Sleep(15 * time.Second / 4)
			if n := parseStream(v.bytes()).comments; n == before {
				t.Errorf("no comment within 15 s")
			}
		}
		v.want("beside", "status a 100")
	})
}

func TestStreamBeatsThoughWhatChangesIsNotTold(t *testing.T) {
	for name, query := range map[string]string{"hidden": "", "held back": "?minInterval=60000"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
				w.store.put(at("a", 100, 1))
				v := w.view(t, aPath+query, "customer.u-1")
				v.bytes()
				for i := range int64(30) {
					time.Sleep(time.Second)
					percent := 1
					if name == "held back" {
						percent = int(i)
					}
					w.store.put(at("a", 101+i, percent))
				}
				if n := parseStream(v.bytes()).comments; n < 2 {
					t.Errorf("%d comments in 30 s", n)
				}
			})
		})
	}
}

func TestSlowStreamOfABusyInstanceEndsWithTheTokenAndTheServer(t *testing.T) {
	for name, token := range map[string]string{"token": "operator.x.20", "server": "operator.x"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
				w.store.put(at("a", 100, 1))
				v := w.view(t, aPath, token)
				v.bytes()
				v.slowDown(5 * time.Second) // about as slow as one can be
				if name == "server" {
					w.api.Shutdown(20 * time.Second)
				}
				for i := range int64(120) {
					w.store.put(at("a", 101+i, int(i)))
					time.Sleep(time.Second)
				}
				if !v.ended() {
					t.Error("the stream goes on")
				}
			})
		})
	}
}

func TestStreamKeepsItsInterval(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		for _, path := range []string{aPath + "?", "/v1/instances?id=a&", "/v1/instances?label.owner=u-1&"} {
			w.store.put(at("a", 100, 1))
			v := w.view(t, path+"minInterval=1000", "operator.x")
			time.Sleep(100 * time.Millisecond)
			v.take()
			begin := time.Now()
			for i := range int64(100) {
				w.store.put(at("a", 101+i, int(i)))
				time.Sleep(10 * time.Millisecond)
			}
			if n := len(v.take()); n > 2 {
				t.Errorf("%s: %d events in %s", path, n, time.Since(begin))
			}
			time.Sleep(time.Second)
			events := v.take()
			if len(events) != 1 || events[0].String() != "status a 200" {
				t.Errorf("%s: got %v, want the newest", path, events)
			}
			w.store.mu.Lock()
			clear(w.store.records)
			w.store.mu.Unlock()
			v.leave()
			synctest.Wait()
		}
	})
}

func TestStreamOfSeveralTellsOfEach(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		w.store.put(at("b", 200, 1))
		other := at("c", 300, 1)
		other.Labels["owner"] = "u-2"
		w.store.put(other)
		v := w.view(t, "/v1/instances?id=b&id=a&id=c&id=d&id=a", "customer.u-1", "Last-Event-ID", "200")
		v.wantSet("at first all that there is, whatever the client has", "status a 100", "status b 200")
		w.store.put(at("a", 101, 1))
		v.want("hidden")
		w.store.put(at("a", 102, 2))
		v.want("one changes", "status a 102")
		w.store.put(at("d", 400, 2))
		v.want("one appears", "status d 400")
		w.store.put(changed(other, custom(`{"percent":9}`)))
		v.want("not theirs")
		var ids, want []string
		for i := range 100 {
			id := fmt.Sprint("many-", i)
			w.store.put(at(id, 500, 1))
			ids, want = append(ids, "id="+id), append(want, "status "+id+" 500")
		}
		w.view(t, "/v1/instances?"+strings.Join(ids, "&"), "operator.x").wantSet("a hundred", want...)
	})
}

func TestStreamOfAListFollowsIt(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		pace := func() { time.Sleep(100 * time.Millisecond) } // of the hub's lists
		other := at("other", 300, 1)
		other.Labels["owner"] = "u-2"
		for _, r := range []*status.Record{at("a", 100, 1), at("b", 101, 1), other} {
			w.store.put(r)
		}
		v := w.view(t, "/v1/instances?label.owner=u-1&runtimeStatus=Running,Pending", "customer.u-1")
		pace()
		events := v.take()
		if len(events) != 3 || events[2].String() != "listed false" || events[2].id != events[1].id {
			t.Errorf("at first: %v", events)
		}
		w.store.put(at("c", 102, 1))
		pace()
		v.want("one appears", "status c 102")
		w.store.put(at("c", 103, 1))
		pace()
		v.want("hidden")
		w.store.put(at("c", 104, 2))
		pace()
		v.want("one changes", "status c 104")
		w.store.put(changed(at("c", 104, 2), func(r *status.Record) { r.Lifecycle.RuntimeStatus = status.Completed }))
		pace()
		v.want("one is selected no more", "status c 105", "left c 105")
		w.store.put(changed(at("b", 105, 2), func(r *status.Record) { r.Purged = true }))
		pace()
		v.want("one is purged", "gone b 106")
		w.store.put(changed(at("a", 106, 2), func(r *status.Record) { r.Labels["owner"] = "u-2" }))
		pace()
		v.want("one is theirs no more", "gone a 101")
		w.store.put(at("a", 300, 2))
		pace()
		v.want("and theirs again", "status a 300")

		for i := range 10 {
			w.store.put(at(fmt.Sprint("more-", i), 400, 1))
		}
		few := w.view(t, "/v1/instances?limit=3", "operator.x")
		pace()
		if events := few.take(); len(events) != 4 || events[3].String() != "listed true" {
			t.Errorf("more than the limit: %v", events)
		}
		guess := w.view(t, "/v1/instances?label.owner=u-2", "customer.u-1")
		pace()
		guess.want("by a label that is not theirs to ask for", "listed false")
	})
}

func TestStreamEndsWithTheToken(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		for _, path := range []string{aPath, "/v1/instances?id=a", "/v1/instances"} {
			v := w.view(t, path, "operator.x.20")
			time.Sleep(20*time.Second - 1)
			if v.ended() {
				t.Errorf("%s: ended before", path)
			}
			time.Sleep(time.Nanosecond)
			if !v.ended() {
				t.Errorf("%s: has not ended", path)
			}
		}
	})
}

func TestNothingIsBegunForATokenThatHasExpired(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		version := int64(100)
		for range 30 { // which of two things that have happened is looked at first is left to chance
			w.store.put(at("a", version, int(version)))
			v := w.view(t, aPath, "operator.x.10", "Last-Event-ID", fmt.Sprint(version))
			v.want("at first")
			time.Sleep(9 * time.Second)
			v.slowDown(5 * time.Second)
			w.store.put(at("a", version+1, 1))
			synctest.Wait()
			w.store.put(at("a", version+2, 2))
			time.Sleep(time.Minute)
			v.want("what was being written", fmt.Sprint("status a ", version+1))
			version += 2
		}
	})
}

func TestRightsThatAPolicyTakesAreGoneWithinAHeartbeat(t *testing.T) {
	for name, busy := range map[string]bool{"quiet": false, "busy": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
				w.store.put(at("a", 100, 1))
				mine := at("busy", 1000, 1)
				mine.Name = "Busy"
				w.store.put(mine)
				v := w.view(t, "/v1/instances?id=a&id=busy", "customer.u-1")
				v.wantSet("at first", "status a 100", "status busy 1000")
				// Only busy ones may be seen from now on.
				w.setPolicy(t, policyOf(onlyOperators)+`      Busy:
        audiences:
          - name: customer
            when: labels.owner == claims.sub
            see: {customStatus: all}
`)
				for i := range 15 {
					if busy {
						mine = changed(mine, custom(fmt.Sprintf(`{"percent":%d}`, i)))
						w.store.put(mine)
					}
					time.Sleep(time.Second)
				}
				var gone []string
				for _, e := range v.take() {
					if e.name == "gone" {
						gone = append(gone, e.String())
					}
				}
				if fmt.Sprint(gone) != "[gone a 101]" {
					t.Errorf("got %v", gone)
				}
			})
		})
	}
}

func TestSlowStreamGetsTheNewestOnly(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		v := w.view(t, aPath, "operator.x")
		v.want("at first", "status a 100")
		goOn := v.stop()
		for i := range int64(50) {
			w.store.put(at("a", 101+i, int(i)))
			synctest.Wait()
		}
		time.Sleep(9 * time.Second)
		goOn()
		v.want("what was being written, and the newest", "status a 101", "status a 150")
	})
}

func TestStreamThatCannotBeWrittenEndsAndFreesItsPlace(t *testing.T) {
	bubble(t, httpapi.Options{MaxPerCaller: 1}, func(t *testing.T, w *world) {
		for name, write := range map[string]func(i int64){
			"a status":  func(i int64) { w.store.put(at("a", 100+i, int(i))) },
			"a comment": func(int64) { time.Sleep(15 * time.Second) },
		} {
			v := w.view(t, aPath, "operator.x")
			v.take()
			goOn := v.stop()
			write(1)
			time.Sleep(10*time.Second - time.Millisecond)
			if name == "a status" && v.ended() {
				t.Errorf("%s: ended before the time to write", name)
			}
			time.Sleep(time.Millisecond)
			if !v.ended() {
				t.Errorf("%s: has not ended", name)
			}
			if n := w.metric(t, "hub_watches", "") + w.metric(t, "httpapi_streams", ""); n != 0 {
				t.Errorf("%s: %v watches and places are left", name, n)
			}
			goOn()
		}
		v := w.view(t, aPath, "operator.x")
		if v.bytes(); v.answer().Code != 200 {
			t.Errorf("got %d, want the place", v.answer().Code)
		}
	})
}

func TestStreamsAreBoundedPerCallerAndInAll(t *testing.T) {
	bubble(t, httpapi.Options{MaxStreams: 5, MaxPerCaller: 2}, func(t *testing.T, w *world) {
		paths := []string{aPath, "/v1/instances?id=a", "/v1/instances"}
		view := func(what, subject string, code int) *viewer {
			v := w.view(t, paths[0], "operator."+subject)
			paths = append(paths[1:], paths[0])
			v.bytes()
			if got := v.answer().Code; got != code {
				t.Errorf("%s: got %d, want %d", what, got, code)
			}
			if code == 429 {
				wantProblem(t, what, v.answer(), 429, "too-many", "")
			}
			return v
		}
		first := view("first", "x", 200)
		view("second", "x", 200)
		view("third of a caller", "x", 429)
		view("another caller", "y", 200)
		first.leave()
		first.ended()
		view("when one has left", "x", 200)
		view("and one more", "x", 429)
		view("another caller", "y", 200)
		view("the last place", "z", 200)
		view("none is left", "z", 429)
		if n := w.metric(t, "httpapi_streams", ""); n != 5 {
			t.Errorf("%v streams are counted", n)
		}
		w.store.put(current("a"))
		w.ask(t, aPath, "operator.x", "If-None-Match", "*", "Prefer", "wait=1").want("who waits has places of their own", 0)
	})
}

func TestShutdownEndsStreamsOverItsPeriod(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		var all []*viewer
		for range 99 {
			all = append(all, w.view(t, aPath, "operator.x"))
		}
		synctest.Wait()
		w.api.Shutdown(10 * time.Second)
		time.Sleep(7 * time.Second)
		late := w.view(t, aPath, "operator.x")
		late.want("one that comes later", "status a 100")
		ended := 0
		for _, v := range all {
			if v.ended() {
				ended++
			}
		}
		if ended < 45 || ended > 95 {
			t.Errorf("%d of 99 have ended after seven tenths of the period", ended)
		}
		time.Sleep(3 * time.Second)
		for _, v := range append(all, late) {
			if !v.ended() {
				t.Fatal("a stream has not ended in the period")
			}
		}
	})
}

func TestWhoLeavesAStreamLeavesNothing(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.store.put(at("a", 100, 1))
		for _, path := range []string{aPath, "/v1/instances?id=a&id=b&id=c", "/v1/instances?minInterval=1000"} {
			v := w.view(t, path, "operator.x")
			time.Sleep(100 * time.Millisecond)
			if n := w.metric(t, "hub_watches", ""); n == 0 {
				t.Errorf("%s: nothing is watched", path)
			}
			v.leave()
			if !v.ended() {
				t.Errorf("%s: the stream goes on", path)
			}
			if n := w.metric(t, "hub_watches", "") + w.metric(t, "hub_lists", "") + w.metric(t, "httpapi_streams", ""); n != 0 {
				t.Errorf("%s: %v watches, lists and places are left", path, n)
			}
		}
	})
}

func TestSilenceIsAnEvent(t *testing.T) {
	bubble(t, httpapi.Options{}, func(t *testing.T, w *world) {
		w.setPolicy(t, policyOf(strings.Replace(onlyOperators, "audiences:", "staleAfter: 60s\n        audiences:", 1)))
		r := current("a")
		w.store.put(r)
		v := w.view(t, aPath, "operator.x")
		v.want("at first", fmt.Sprint("status a ", r.Version))
		time.Sleep(62 * time.Second)
		events := v.take()
		if len(events) != 1 || events[0].String() != fmt.Sprint("status a ", r.Version+1) || !strings.Contains(events[0].data, `"stale":true`) {
			t.Errorf("got %v", events)
		}
		time.Sleep(time.Hour)
		v.want("once")
		w.view(t, aPath, "operator.x", "Last-Event-ID", fmt.Sprint(r.Version+1)).want("who knows")
	})
}

// hostile are custom statuses as only a hostile Redis could have them, and some that anybody may have.
func hostile() []string {
	return []string{
		"{\"percent\":1,\n\n\"message\":\"x\"\n}\n\n",
		"{\"percent\":1,\r\"message\":\"x\"}\r\r",
		"{\"percent\":1,\r\n\r\n\"message\":\"x\"}\r\n",
		"\n\r\n\r{\r\n\r}",
		"{\"percent\":1}\n\nevent: gone\ndata: {}\n\n",
		"{}\nid: 7\nretry: 1\n:\n\n",
		`{"message":"\n\ndata: x\r\n\r\nevent: gone\u0000\u2028\u2029\u0085"}`,
		"{\"message\":\"\u2028\u2029\u0085\uFEFF\"}",
		"{\"message\":\"a\x00b\"}",
		"\uFEFF{}", "", "\n", "\r", "\r\n", " ", ":", "data", "data:", "{", "\xff\xfe",
	}
}

func FuzzEventStream(f *testing.F) {
	for _, text := range hostile() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" {
			return // no view says nothing, where a value should be
		}
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, httpapi.Options{})
			r := changed(at("a", 99, 1), custom(text))
			w.store.put(r)
			v := w.view(t, aPath, "operator.x") // who sees it as it is
			v.unchecked = !json.Valid([]byte(text))
			stream := v.bytes()
			v.leave()
			v.ended()
			s := parseStream(stream)
			if bytes.ContainsRune(stream, '\r') || len(s.unknown) > 0 || s.comments > 0 || s.retry < 2*time.Second || len(s.events) != 1 {
				t.Fatalf("got %+v\nof %q", s, stream)
			}
			answer := httptest.NewRecorder() // not checked: it need not be JSON
			w.api.ServeHTTP(answer, newRequest(http.MethodGet, aPath, "operator.x"))
			want := strings.TrimSuffix(answer.Body.String(), "\n")
			lines := strings.FieldsFunc(want, func(r rune) bool { return r == '\n' || r == '\r' })
			if e := s.events[0]; e.name != "status" || e.id != "100" || e.data != strings.Join(lines, "\n") {
				t.Fatalf("got %+v\nwant %q", e, want)
			}
			if !json.Valid([]byte(want)) {
				return
			}
			var got, original any
			if json.Unmarshal([]byte(s.events[0].data), &got) != nil || json.Unmarshal([]byte(want), &original) != nil || fmt.Sprint(got) != fmt.Sprint(original) {
				t.Fatalf("got %q, want %q", s.events[0].data, want)
			}
		})
	})
}

func TestStreamOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, httpapi.Options{Heartbeat: 50 * time.Millisecond}, at("a", 100, 1))
	s := serve(t, w.api, 100*time.Millisecond)
	const head = "Host: x\r\nAccept: text/event-stream\r\nAuthorization: Bearer operator.x.1\r\n\r\n"
	t.Run("HTTP/1.0", func(t *testing.T) {
		_, answer := dial(t, s, "GET "+aPath+" HTTP/1.0\r\n"+head)
		all, err := io.ReadAll(answer)
		if err != nil {
			t.Fatal(err)
		}
		header, body, _ := bytes.Cut(all, []byte("\r\n\r\n"))
		if bytes.Contains(header, []byte("chunked")) {
			t.Errorf("chunked, to who does not know that:\n%s", header)
		}
		if s := parseStream(body); len(s.events) != 1 || s.comments < 3 || len(s.unknown) > 0 {
			t.Errorf("got %+v", s)
		}
	})
	t.Run("HEAD", func(t *testing.T) {
		_, answer := dial(t, s, "HEAD "+aPath+" HTTP/1.1\r\n"+head+"GET "+aPath+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		all, err := io.ReadAll(answer)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(all); !strings.HasPrefix(got, "HTTP/1.1 200") || !strings.Contains(got, "text/event-stream") ||
			!strings.Contains(got, "HTTP/1.1 401") || strings.Contains(got, "retry:") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("outlives the time to read a request", func(t *testing.T) {
		_, answer := dial(t, s, "GET "+aPath+" HTTP/1.1\r\n"+head)
		response, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		start := time.Now()
		body, err := io.ReadAll(response.Body)
		if err != nil || time.Since(start) < 900*time.Millisecond {
			t.Errorf("ended after %s: %v", time.Since(start), err)
		}
		if s := parseStream(body); s.comments < 5 {
			t.Errorf("%d comments", s.comments)
		}
	})
}

func TestStreamOfWhoDoesNotReadEnds(t *testing.T) {
	w := newWorld(t, httpapi.Options{WriteTimeout: 100 * time.Millisecond, Heartbeat: 10 * time.Millisecond}, at("a", 100, 1))
	s := serve(t, w.api, 0)
	dial(t, s, "GET "+aPath+" HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nAuthorization: Bearer operator.x\r\n\r\n")
	w.until(t, "hub_watches", 1)
	// What a socket buffers is some MiB.
	filler := strings.Repeat("x", 1<<20)
	for version := int64(101); w.metric(t, "httpapi_streams", "") > 0; version++ {
		w.store.put(changed(at("a", version, 1), custom(fmt.Sprintf(`"%d%s"`, version, filler))))
		if version > 5000 {
			t.Fatal("the stream goes on")
		}
	}
	w.until(t, "hub_watches", 0)
}
