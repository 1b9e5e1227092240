package e2e_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"statusrelay/internal/status"
)

// An update that is posted to the notifier is what every reader gets, each with
// the fields that its audience may see, on every path.
func TestUpdateReachesEveryReader(t *testing.T) {
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.notifier()
	k := key("order-4711")
	operator, customer := w.watch(r, w.operator, k), w.watch(r, w.customer, k)

	w.post(n, progress(k.InstanceID, 1, 40))
	operator.sees(k, 40)
	customer.sees(k, 40)

	full, own := w.get(r, w.operator, k), w.get(r, w.customer, k)
	for who, c := range map[string]struct {
		got     answer
		watcher *watcher
		custom  string
		labels  bool
	}{
		"operator": {full, operator, `{"note":"for operators","percent":40,"step":"s"}`, true},
		"customer": {own, customer, `{"percent":40,"step":"s"}`, false},
	} {
		if c.got.code != http.StatusOK {
			t.Fatalf("%s: got %d, want 200", who, c.got.code)
		}
		v := w.view(c.got.body)
		if string(v.CustomStatus) != c.custom {
			t.Errorf("%s: got custom status %s, want %s", who, v.CustomStatus, c.custom)
		}
		if (v.Labels != nil) != c.labels {
			t.Errorf("%s: got labels %v", who, v.Labels)
		}
		if f := c.watcher.last(k); !bytes.Equal(f.Status, c.got.body) || f.Version != v.Version {
			t.Errorf("%s: the frame has version %d and %s, the answer %s", who, f.Version, f.Status, c.got.body)
		}
		if cache := c.got.header.Get("Cache-Control"); cache != "private, no-cache" {
			t.Errorf("%s: got Cache-Control %q", who, cache)
		}
	}
	if full.header.Get("ETag") == own.header.Get("ETag") {
		t.Error("different views have one entity tag")
	}
}

// A reader that has the newest is told so with 304, and with 200 once there is
// something new.
func TestReaderWithTheNewestIsTold304(t *testing.T) {
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.notifier()
	k := key("order-4711")
	w.post(n, progress(k.InstanceID, 1, 40))
	w.shows(r, k, 40)
	tag := w.get(r, w.customer, k).header.Get("ETag")

	got := w.get(r, w.customer, k, "If-None-Match", tag)
	if got.code != http.StatusNotModified || len(got.body) > 0 || got.header.Get("ETag") != tag {
		t.Errorf("got %d with %q and tag %s, want 304 with nothing and %s", got.code, got.body, got.header.Get("ETag"), tag)
	}
	w.post(n, progress(k.InstanceID, 2, 41))
	w.shows(r, k, 41)
	if got := w.get(r, w.customer, k, "If-None-Match", tag); got.code != http.StatusOK || got.header.Get("ETag") == tag {
		t.Errorf("after a change: got %d with tag %s, want 200 with another", got.code, got.header.Get("ETag"))
	}
	// What only operators see is no news to a customer.
	tag = w.get(r, w.customer, k).header.Get("ETag")
	w.post(n, strings.Replace(progress(k.InstanceID, 3, 41), "for operators", "also for operators", 1))
	w.until("the operator sees the note", func() bool {
		return strings.Contains(string(w.get(r, w.operator, k).body), "also for operators")
	})
	if got := w.get(r, w.customer, k, "If-None-Match", tag); got.code != http.StatusNotModified {
		t.Errorf("after a change that the customer cannot see: got %d, want 304", got.code)
	}
}

// What a caller may not see and what does not exist are one answer, byte by byte,
// and one silence on a socket.
func TestNotYoursIsNotThere(t *testing.T) {
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.notifier()
	theirs, nobodys, mine := key("theirs"), key("nobodys"), key("mine")
	customer := w.watch(r, w.customer, theirs, nobodys, mine)
	w.post(n, strings.Replace(progress(theirs.InstanceID, 1, 40), owner, "u-1002", 1))
	w.shows(r, theirs, 40)

	wire := func(k status.Key) string {
		got := w.get(r, w.customer, k)
		got.header.Del("Date")
		return fmt.Sprintf("%d %v %s", got.code, got.header, got.body)
	}
	if got, want := wire(theirs), wire(nobodys); got != want || !strings.HasPrefix(want, "404 ") {
		t.Errorf("got\n%s\nfor another's and\n%s\nfor nothing, want the same 404", got, want)
	}
	w.post(n, progress(mine.InstanceID, 1, 7))
	customer.sees(mine, 7) // pushes come in order: one of the others would be here by now
	if f := customer.last(theirs); f.Type != "" {
		t.Errorf("the customer was sent %+v of another's instance", f)
	}
}
