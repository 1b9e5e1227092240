package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"statusrelay/internal/devbus"
	"statusrelay/internal/status"
)

// canary is in every poisonous message and must be in nothing that is said of it.
const canary = "c4n4ry"

// bare is an update with members besides its instance id.
func bare(members string) string { return fmt.Sprintf(`{"instanceId":"%s-1",%s}`, canary, members) }

// Each poisonous message is dead-lettered by itself, at its first delivery, with
// a reason from the list and a description that names the field and holds nothing
// of the message; its neighbours do not notice.
func TestPoisonIsDeadLetteredAmidGoodMessages(t *testing.T) {
	long := func(n int) string { return canary + strings.Repeat("x", n) }
	deep := strings.Repeat("[", 40) + `"` + canary + `"` + strings.Repeat("]", 40)
	poison := []struct {
		body   string
		reason status.Reason
		field  string
	}{
		{canary, status.ReasonMalformed, ""},
		{`{"instanceId":"` + canary, status.ReasonMalformed, ""},
		{bare(`"customStatus":"` + canary + "\xff\""), status.ReasonMalformed, ""},
		{bare(`"customStatus":{"` + canary + `":1,"` + canary + `":2}`), status.ReasonMalformed, ""},
		{bare(`"hub":"a","hub":"` + canary + `"`), status.ReasonMalformed, ""},
		{bare(`"customStatus":1e999`), status.ReasonMalformed, "customStatus"},
		{bare(`"sequence":1e999`), status.ReasonMalformed, "sequence"},
		{strings.Repeat("[", 20_000) + canary, status.ReasonMalformed, ""},
		{`["` + canary + `"]`, status.ReasonNoUpdate, ""},
		{`"` + canary + `"`, status.ReasonNoUpdate, ""},
		{`{"` + canary + `":1}`, status.ReasonNoUpdate, ""},
		{`{"specversion":"1.0","type":"` + canary + `","data":{"id":"` + canary + `"}}`, status.ReasonNoUpdate, "data"},
		{`{"specversion":"1.0","type":"` + canary + `","data":"` + canary + `"}`, status.ReasonNoUpdate, "data"},
		{`{"specversion":"1.0","instanceId":"` + canary + `"}`, status.ReasonNoUpdate, "instanceId"},
		{bare(`"customStatus":"` + long(1<<20) + `"`), status.ReasonTooLarge, ""},
		{bare(`"customStatus":"` + long(250_000) + `"`), status.ReasonInvalid, "customStatus"},
		{bare(`"customStatus":` + deep), status.ReasonInvalid, "customStatus"},
		{`{"instanceId":"` + long(256) + `"}`, status.ReasonInvalid, "instanceId"},
		{`{"instanceId":"` + canary + `/x"}`, status.ReasonInvalid, "instanceId"},
		{`{"instanceId":"@` + canary + `"}`, status.ReasonInvalid, "instanceId"},
		{`{"instanceId":"` + canary + "\u202e" + `"}`, status.ReasonInvalid, "instanceId"},
		{bare(`"hub":"` + canary + `/x"`), status.ReasonInvalid, "hub"},
		{bare(`"hub":"` + long(64) + `"`), status.ReasonInvalid, "hub"},
		{bare(`"name":"` + long(256) + `"`), status.ReasonInvalid, "name"},
		{bare(`"generation":-1`), status.ReasonInvalid, "generation"},
		{bare(`"generation":9007199254740992`), status.ReasonInvalid, "generation"},
		{bare(`"generation":9007199254740991`), status.ReasonInvalid, "generation"}, // the year 287396
		{bare(`"generation":1.5`), status.ReasonInvalid, "generation"},
		{bare(`"generation":"` + canary + `"`), status.ReasonInvalid, "generation"},
		{bare(`"sequence":-1`), status.ReasonInvalid, "sequence"},
		{bare(`"sequence":9007199254740992`), status.ReasonInvalid, "sequence"},
		{bare(`"kind":"` + canary + `"`), status.ReasonInvalid, "kind"},
		{bare(`"kind":"purged"`), status.ReasonInvalid, "generation"},
		{bare(`"runtimeStatus":"` + canary + `"`), status.ReasonInvalid, "runtimeStatus"},
		{bare(`"runtimeStatus":8`), status.ReasonInvalid, "runtimeStatus"},
		{bare(`"failure":"` + canary + `"`), status.ReasonInvalid, "failure"},
		{bare(`"failure":{"type":["` + canary + `"]}`), status.ReasonInvalid, "failure.type"},
		{bare(`"failure":{"message":{"a":"` + canary + `"}}`), status.ReasonInvalid, "failure.message"},
		{bare(`"createdTime":"` + canary + `"`), status.ReasonInvalid, "createdTime"},
		{bare(`"lastUpdatedTime":"2026-13-01T00:00:00Z"`), status.ReasonInvalid, "lastUpdatedTime"},
		{bare(`"executionId":"` + long(256) + `"`), status.ReasonInvalid, "executionId"},
		{bare(`"parentInstanceId":"` + long(256) + `"`), status.ReasonInvalid, "parentInstanceId"},
		{bare(`"rootInstanceId":"` + long(256) + `"`), status.ReasonInvalid, "rootInstanceId"},
		{bare(`"labels":["` + canary + `"]`), status.ReasonInvalid, "labels"},
		{bare(`"labels":{"` + canary + `":1}`), status.ReasonInvalid, "labels"},
		{bare(`"labels":{"` + long(64) + `":"x"}`), status.ReasonInvalid, "labels"},
		{bare(`"labels":{"x":"` + long(256) + `"}`), status.ReasonInvalid, "labels"},
		{bare(`"labels":{` + strings.Join(labels(17), ",") + `}`), status.ReasonInvalid, "labels"},
	}
	bodies := make(map[string]int) // index in poison
	var all []string
	for i, p := range poison {
		bodies[p.body] = i
		// A neighbour that moves one instance on, and one of an instance of its own.
		all = append(all, p.body, progress("shared", i+1, i+1), progress(fmt.Sprintf("own-%d", i), 1, i))
	}
	all = append(all, "") // a message without a body

	// A premium namespace lets messages of more than 256 KiB through.
	w := newWorld(t, devbus.New(devbus.Options{MaxMessageBytes: 2 << 20, Topics: []devbus.Topic{{
		Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}},
	}}}))
	r := w.relay(nil)
	w.send(all...)
	w.settled()

	dead := len(poison) + 1
	if s := w.stats(); s.TotalDeadLettered != int64(dead) || s.Completed != int64(2*len(poison)) || s.Abandoned+s.LocksExpired > 0 {
		t.Fatalf("got %+v, want %d dead-lettered, %d completed, and no delivery spent", s, dead, 2*len(poison))
	}
	w.shows(r, key("shared"), len(poison))
	for i := range poison {
		if got := w.get(r, w.operator, key(fmt.Sprintf("own-%d", i))); got.code != http.StatusOK || w.view(got.body).percent() != i {
			t.Errorf("the neighbour of poison %d: got %d %s", i, got.code, got.body)
		}
	}
	for _, d := range w.deadLetters(dead) {
		if d.deliveries > 1 {
			t.Errorf("%.100q: delivered %d times", d.body, d.deliveries)
		}
		if d.body == "" {
			if d.reason != status.ReasonMalformed || d.description == "" {
				t.Errorf("without a body: got %s: %s", d.reason, d.description)
			}
			continue
		}
		i, ok := bodies[d.body]
		if !ok {
			t.Errorf("%.100q was sent by nobody", d.body)
			continue
		}
		p := poison[i]
		delete(bodies, d.body)
		if d.reason != p.reason || !strings.Contains(d.description, p.field) || d.description == "" {
			t.Errorf("%.100q: got %s: %s, want %s about %q", d.body, d.reason, d.description, p.reason, p.field)
		}
		if strings.Contains(strings.ToLower(d.description), canary) {
			t.Errorf("%.100q: the description has some of it: %s", d.body, d.description)
		}
	}
	if strings.Contains(w.logs.String(), canary) {
		t.Error("the log has some of a poisonous message")
	}
	if strings.Contains(w.redis.Do("KEYS", "*"), canary) {
		t.Error("redis has some of a poisonous message")
	}
}

func labels(n int) (members []string) {
	for i := range n {
		members = append(members, fmt.Sprintf(`"l%d":"%s"`, i, canary))
	}
	return members
}

// Every example of a bad message is dead-lettered with a reason from the list.
func TestEveryBadExampleIsDeadLettered(t *testing.T) {
	files, err := filepath.Glob("../../schemas/examples/bad/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	w := newWorld(t, nil)
	w.relay(nil)
	names := make(map[string]string)
	var bodies []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		names[string(text)] = filepath.Base(f)
		bodies = append(bodies, string(text))
	}
	w.send(bodies...)
	w.settled()
	if s := w.stats(); s.Completed != 0 || s.TotalDeadLettered != int64(len(files)) {
		t.Errorf("%d bad examples ended as %+v, want all dead-lettered", len(files), s)
	}
	reasons := []status.Reason{status.ReasonMalformed, status.ReasonNoUpdate, status.ReasonTooLarge, status.ReasonInvalid}
	for _, d := range w.deadLetters(int(w.stats().TotalDeadLettered)) {
		if !slices.Contains(reasons, d.reason) || d.description == "" {
			t.Errorf("%s: got reason %q: %q", names[d.body], d.reason, d.description)
		}
	}
}
