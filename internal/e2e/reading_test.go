package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// A stream is a client of server-sent events.
type stream struct {
	*world
	events chan event
	cancel context.CancelFunc
}

type event struct {
	name, id string
	data     []byte
}

// stream opens a stream below a replica's /v1/hubs/{hub}/instances.
func (w *world) stream(r *replica, token, path string, headers ...string) *stream {
	w.Helper()
	ctx, cancel := context.WithCancel(w.ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/v1/hubs/"+hub+"/instances"+path, nil)
	if err != nil {
		w.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Accept", "text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	answer, err := (&http.Client{Transport: w.client.Transport}).Do(request) // which has no patience to lose
	if err != nil {
		w.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		w.Fatalf("a stream was answered with %d %v", answer.StatusCode, answer.Header)
	}
	s := &stream{world: w, events: make(chan event, 10_000), cancel: cancel}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(s.events)
		defer answer.Body.Close()
		s.read(answer.Body)
	}()
	w.Cleanup(func() {
		cancel()
		<-read
	})
	return s
}

func (s *stream) read(body io.Reader) {
	var e event
	for lines := bufio.NewScanner(body); lines.Scan(); {
		switch name, value, _ := strings.Cut(lines.Text(), ": "); name {
		case "event":
			e.name = value
		case "id":
			e.id = value
		case "data":
			e.data = append(e.data, value...)
		case "":
			if e.name != "" {
				s.events <- e
			}
			e = event{}
		}
	}
}

// next returns the next event; ok is false at the end of the stream.
func (s *stream) next() (e event, ok bool) {
	s.Helper()
	select {
	case e, ok = <-s.events:
		return e, ok
	case <-s.ctx.Done():
		s.Fatal("waited in vain for an event")
		return event{}, false
	}
}

// A client that goes from one replica to the other, and from GET to socket to stream to long-poll, with nothing but the version
// that it has, is shown every version once, in order, and ends on the newest.
func TestHandingOverMissesNothingAndShowsNothingTwice(t *testing.T) {
	const updates = 400
	w := newWorld(t, nil)
	replicas := []*replica{w.relay(nil), w.relay(nil)}
	k := key("order-4711")
	send := w.sender()
	send([]byte(progress(k.InstanceID, 1, 1)))
	w.shows(replicas[0], k, 1)
	// Some at each step: all would be through before every way was taken.
	next := make(chan struct{}, updates)
	more := func() {
		for range 15 {
			select {
			case next <- struct{}{}:
			default:
			}
		}
	}
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := 2; i <= updates; i++ {
			<-next
			send([]byte(progress(k.InstanceID, i, i)))
		}
	})
	defer publishing.Wait()
	defer close(next)

	has := int64(0)
	shown, ways := 0, map[string]int{}
	take := func(way string, version int64, text []byte) {
		v := w.view(text)
		if version <= has || v.Version != version {
			t.Fatalf("%s: version %d (in the view %d) after %d", way, version, v.Version, has)
		}
		if p := v.percent(); p <= shown {
			t.Fatalf("%s: version %d shows %d after %d", way, version, p, shown)
		}
		has, shown = version, v.percent()
		ways[way]++
	}
	for turn := 0; shown < updates; turn++ {
		r := replicas[turn%2]
		more()
		switch turn / 2 % 4 {
		case 0:
			got, err := w.do(http.MethodGet, instanceURL(r, k)+"?after="+strconv.FormatInt(has, 10), w.customer, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.code == http.StatusOK {
				take("GET", w.view(got.body).Version, got.body)
			}
		case 1:
			before := has
			v := w.watchAfter(r, w.customer, map[status.Key]int64{k: has}, k)
			v.await("a frame", func(v *watcher) bool { return v.newest[k].Version > before })
			f := v.last(k)
			_ = v.conn.Close()
			take("socket", f.Version, f.Status)
		case 2:
			s := w.stream(r, w.customer, "/"+k.InstanceID, "Last-Event-ID", strconv.FormatInt(has, 10))
			for range 3 {
				more()
				e, ok := s.next()
				if !ok {
					t.Fatal("the stream ended")
				}
				id, _ := strconv.ParseInt(e.id, 10, 64)
				if take("stream", id, e.data); shown == updates {
					break
				}
			}
			s.cancel()
		case 3:
			got, err := w.do(http.MethodGet, instanceURL(r, k)+"?after="+strconv.FormatInt(has, 10), w.customer, nil, "Prefer", "wait=5")
			if err != nil {
				t.Fatal(err)
			}
			if got.code != http.StatusOK {
				t.Fatalf("a long-poll was answered with %d %v", got.code, got.header)
			}
			take("long-poll", w.view(got.body).Version, got.body)
		}
		if shown == updates {
			break
		}
	}
	for _, way := range []string{"socket", "stream", "long-poll"} {
		if ways[way] == 0 {
			t.Errorf("nothing came by %s: %v", way, ways)
		}
	}
}

// listFrames reads the frames of a list on a socket: who is in it at the end.
type listFrames struct {
	mu      sync.Mutex
	members map[string]string // id → runtime status
	listed  int
}

// A list that is watched at one replica has what appears, changes and leaves, whichever replica consumes the updates; also
// when Redis cuts the subscription meanwhile.
func TestListIsFollowedAcrossReplicas(t *testing.T) {
	w := newWorld(t, nil)
	a, b := w.relay(nil), w.relay(nil)
	update := func(id, who, runtimeStatus string, sequence int) string {
		return fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"sequence":%d,"runtimeStatus":%q,"labels":{"owner":%q}}`,
			hub, id, generation, sequence, runtimeStatus, who)
	}
	send := w.sender()
	var first [][]byte
	for i := range 10 {
		first = append(first, []byte(update(fmt.Sprintf("early-%d", i), owner, "Running", 1)), []byte(update(fmt.Sprintf("other-%d", i), "u-2", "Running", 1)))
	}
	send(first...)
	w.settled()

	v := w.dial(a, w.customer)
	l := &listFrames{members: map[string]string{}}
	v.mu.Lock()
	v.each = l.take
	v.mu.Unlock()
	if err := v.conn.WriteMessage(1, []byte(`{"type":"watch","list":"mine","query":{"hub":"`+hub+`","labels":{"owner":"`+owner+`"},"runtimeStatus":["Running","Suspended"],"limit":60}}`)); err != nil {
		t.Fatal(err)
	}
	s := w.stream(b, w.customer, "?label.owner="+owner+"&runtimeStatus=Running&runtimeStatus=Suspended")
	streamed := map[string]string{}
	v.await("the list is told", func(*watcher) bool { return l.has(1, 10) })

	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range 40 {
			send([]byte(update(fmt.Sprintf("late-%d", i), owner, "Running", 1)), []byte(update(fmt.Sprintf("late-%d", i), owner, "Suspended", 2)))
			if i%2 == 0 {
				send([]byte(update(fmt.Sprintf("late-%d", i), owner, "Completed", 3)))
			}
			if i == 20 {
				w.redis.Do("CLIENT", "KILL", "TYPE", "pubsub")
			}
		}
		send([]byte(update("early-0", owner, "Failed", 2)), []byte(update("early-1", "u-2", "Running", 2))) // the second gives the owner two values
	})
	publishing.Wait()
	w.settled()
	want := []string{}
	for i := 2; i < 10; i++ {
		want = append(want, fmt.Sprintf("early-%d Running", i))
	}
	for i := 1; i < 40; i += 2 {
		want = append(want, fmt.Sprintf("late-%d Suspended", i))
	}
	slices.Sort(want)
	v.await("the socket's list is right", func(*watcher) bool { return slices.Equal(l.now(), want) })
	for !slices.Equal(sorted(streamed), want) {
		e, ok := s.next()
		if !ok {
			t.Fatalf("the stream ended; it has %v", sorted(streamed))
		}
		apply(streamed, e.name, w.view(e.data))
	}
	// And that is what a reader of the whole list gets.
	var got []string
	for cursor := ""; ; {
		answer, err := w.do(http.MethodGet, b.base+"/v1/hubs/"+hub+"/instances?runtimeStatus=Running,Suspended&limit=7&label.owner="+owner+"&cursor="+url.QueryEscape(cursor), w.customer, nil)
		if err != nil || answer.code != http.StatusOK {
			t.Fatal(err, answer.code, string(answer.body))
		}
		var page struct {
			Instances []view
			Cursor    string
		}
		if err := json.Unmarshal(answer.body, &page); err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Instances {
			got = append(got, v.InstanceID+" "+v.RuntimeStatus)
		}
		if cursor = page.Cursor; cursor == "" {
			break
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func apply(members map[string]string, kind string, v view) {
	switch kind {
	case "status":
		members[v.InstanceID] = v.RuntimeStatus
	case "left", "gone":
		delete(members, v.InstanceID)
	}
}

func sorted(members map[string]string) []string {
	all := []string{}
	for id, runtimeStatus := range members {
		all = append(all, id+" "+runtimeStatus)
	}
	slices.Sort(all)
	return all
}

func (l *listFrames) take(text []byte) {
	var f struct {
		Type, InstanceID string
		Status           struct{ RuntimeStatus string }
	}
	if json.Unmarshal(text, &f) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.Type == "listed" {
		l.listed++
	}
	apply(l.members, f.Type, view{InstanceID: f.InstanceID, RuntimeStatus: f.Status.RuntimeStatus})
}

func (l *listFrames) has(listed, members int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.listed >= listed && len(l.members) == members
}

func (l *listFrames) now() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return sorted(l.members)
}

// An instance that is silent for longer than its hub's limit is stale: told once to who watches, and shown with the same
// version by every replica to who asks. The next update makes it fresh.
func TestSilenceIsToldOnce(t *testing.T) {
	w := newWorld(t, nil)
	rules := strings.Replace(string(policy.Development()), "\n    orchestrators:", "\n    staleAfter: 2s\n    orchestrators:", 1)
	a, b := w.relay(w.policy(rules)), w.relay(w.policy(rules))
	k, ended := key("silent"), key("ended")
	w.send(progress(k.InstanceID, 1, 10), strings.Replace(progress(ended.InstanceID, 1, 10), `"kind":"progress"`, `"runtimeStatus":"Completed"`, 1))
	v := w.watch(a, w.customer, k, ended)
	v.sees(k, 10)
	v.sees(ended, 10)
	fresh := v.last(k).Version
	v.await("the silence", func(v *watcher) bool { return strings.Contains(string(v.newest[k].Status), `"stale":true`) })
	stale := v.last(k)
	for i, r := range []*replica{a, b} {
		got := w.get(r, w.customer, k)
		if string(got.body) != string(stale.Status) {
			t.Errorf("replica %d answers %s, the frame has %s", i, got.body, stale.Status)
		}
		again := w.get(r, w.customer, k, "If-None-Match", got.header.Get("ETag"))
		if again.code != http.StatusNotModified {
			t.Errorf("replica %d: asked again: %d", i, again.code)
		}
	}
	if stale.Version != fresh+1 {
		t.Errorf("stale at version %d, fresh at %d", stale.Version, fresh)
	}
	// Who comes now, with either version, is told once.
	late := w.watchAfter(b, w.customer, map[status.Key]int64{k: fresh}, k)
	late.await("the silence", func(v *watcher) bool { return v.newest[k].Version == stale.Version })
	knows := w.watchAfter(b, w.customer, map[status.Key]int64{k: stale.Version}, k)
	w.send(progress(k.InstanceID, 2, 11))
	for _, v := range []*watcher{v, late, knows} {
		v.sees(k, 11)
		if f := v.last(k); strings.Contains(string(f.Status), "stale") || f.Version <= stale.Version {
			t.Errorf("after an update: %d %s", f.Version, f.Status)
		}
	}
	for i, c := range []struct {
		v      *watcher
		frames int
	}{{v, 4}, {late, 2}, {knows, 1}} {
		c.v.mu.Lock()
		if c.v.frames != c.frames {
			t.Errorf("watcher %d was sent %d frames, want %d", i, c.v.frames, c.frames)
		}
		c.v.mu.Unlock()
	}
}

// A relay that stops answers those who wait, and ends streams; they go on at another replica with what they have.
func TestStoppingRelayAnswersThoseWhoWait(t *testing.T) {
	w := newWorld(t, nil)
	a, b := w.relay(nil), w.relay(nil)
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(a, k, 10)
	tag := w.get(a, w.customer, k).header.Get("ETag")
	s := w.stream(a, w.customer, "/"+k.InstanceID)
	e, _ := s.next()
	type result struct {
		answer
		error
	}
	polled := make(chan result, 1)
	go func() {
		got, err := w.do(http.MethodGet, instanceURL(a, k), w.customer, nil, "If-None-Match", tag, "Prefer", "wait=9")
		polled <- result{got, err}
	}()
	w.until("the relay holds both", func() bool {
		return w.metric(a, "statusrelay_httpapi_waiting") == 1 && w.metric(a, "statusrelay_httpapi_streams") == 1
	})
	a.stop()
	got := <-polled
	if got.error != nil || got.code != http.StatusNotModified {
		t.Fatalf("the long-poll got %v, %d", got.error, got.code)
	}
	if _, ok := s.next(); ok {
		t.Error("the stream goes on")
	}
	again := w.stream(b, w.customer, "/"+k.InstanceID, "Last-Event-ID", e.id)
	w.send(progress(k.InstanceID, 2, 11))
	if e, _ := again.next(); w.view(e.data).percent() != 11 {
		t.Errorf("resumed with %s %s", e.id, e.data)
	}
}

// A long-poll and a stream outlive an outage of Redis, and what was changed meanwhile reaches them.
func TestWhoWaitsOutlivesAnOutageOfRedis(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil)
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	tag := w.get(r, w.customer, k).header.Get("ETag")
	s := w.stream(r, w.customer, "/"+k.InstanceID)
	if e, _ := s.next(); w.view(e.data).percent() != 10 {
		t.Fatalf("got %s", e.data)
	}
	polled := make(chan error, 1)
	go func() {
		for { // the client's patience is shorter than an outage may be
			got, err := w.do(http.MethodGet, instanceURL(r, k), w.customer, nil, "If-None-Match", tag, "Prefer", "wait=8")
			switch {
			case err != nil:
				polled <- err
				return
			case got.code == http.StatusOK:
				if w.view(got.body).percent() != 11 {
					err = fmt.Errorf("got %s", got.body)
				}
				polled <- err
				return
			case got.code != http.StatusNotModified && got.code != http.StatusServiceUnavailable:
				polled <- errors.New(string(got.body))
				return
			}
		}
	}()
	w.until("it waits", func() bool { return w.metric(r, "statusrelay_httpapi_waiting") == 1 })
	w.redis.Pause()
	w.send(progress(k.InstanceID, 2, 11))
	w.during(5*time.Second, func() {})
	w.redis.Resume()
	if err := <-polled; err != nil {
		t.Error(err)
	}
	for {
		e, ok := s.next()
		if !ok {
			t.Fatal("the stream ended")
		}
		if e.name == "status" && w.view(e.data).percent() == 11 {
			break
		}
	}
}
