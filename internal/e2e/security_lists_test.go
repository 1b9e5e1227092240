package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// A caller who has hundreds of lists read, each of them in vain among thousands of instances that are not theirs, keeps nobody else
// waiting for as long as that takes.
func TestH7CallerWithManyListsKeepsNobodyWaiting(t *testing.T) {
	t.Parallel()
	const instances, sockets, lists = 2000, 6, 100 // which is what a socket may have
	w := newWorld(t, nil)
	r := w.relay(nil)
	bodies := make([][]byte, instances)
	for i := range bodies {
		bodies[i] = []byte(strings.Replace(progress(fmt.Sprintf("theirs-%d", i), 1, 40), owner, "u-2", 1))
	}
	w.sender()(bodies...)
	w.until("all are stored", func() bool { return w.records() >= instances })
	for range sockets {
		c := w.socket(r, w.customer)
		for i := range lists {
			c.send(fmt.Sprintf(`{"type":"watch","list":"l%d","query":{"hub":%q,"limit":1}}`, i, hub))
		}
		for watching := 0; watching < lists; {
			f, _, closed := c.next()
			if closed != nil {
				t.Fatal(closed)
			}
			if f.Type == "watching" { // and not what some of them were told already
				watching++
			}
		}
	}
	read := func() float64 { return w.metric(r, "statusrelay_hub_list_reads_total") }
	before := read()
	s := w.stream(r, w.operator, "?limit=1")
	for {
		if e, ok := s.next(); !ok {
			t.Fatal("the stream ended")
		} else if e.name == "listed" {
			break
		}
	}
	if n := (read() - before) / instances; n > sockets*lists/4 {
		t.Errorf("an operator's list came after %.0f of those of a customer", n)
	}
}

// Who selects by a label that they do not see, and by a value that is not their own, is answered as if there were no such value: however many
// instances have it, which the store is not asked.
func TestH1NoFilterTellsHowMuchOthersHave(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	bodies := [][]byte{[]byte(progress("mine", 1, 7))}
	for i := range 2100 { // more than a list of either kind looks at
		bodies = append(bodies, []byte(strings.Replace(progress(fmt.Sprintf("theirs-%d", i), 1, 40), owner, "u-2", 1)))
	}
	w.sender()(bodies...)
	w.until("all are stored", func() bool { return w.records() >= len(bodies) })
	list := func(query string) string {
		return w.request(r, http.MethodGet, "/v1/hubs/"+hub+"/instances"+query, w.customer)
	}
	listed := func(query string) string {
		s := w.stream(r, w.customer, query)
		defer s.cancel()
		for told := ""; ; {
			e, ok := s.next()
			if told += fmt.Sprintf("%s %s\n", e.name, e.data); !ok || e.name == "listed" {
				return told
			}
		}
	}
	read := w.metric(r, "statusrelay_hub_list_reads_total")
	for _, name := range []string{"", "&name=x", "&runtimeStatus=Running"} {
		theirs, nobodys := "?label.owner=u-2"+name, "?label.owner=u-3"+name
		if got, want := list(theirs), list(nobodys); got != want {
			t.Errorf("%s is answered with %s, and what is nobody's with %s", theirs, got, want)
		}
		if got, want := listed(theirs), listed(nobodys); got != want {
			t.Errorf("%s is streamed as %s, and what is nobody's as %s", theirs, got, want)
		}
	}
	if n := w.metric(r, "statusrelay_hub_list_reads_total") - read; n != 0 {
		t.Errorf("%.0f instances were read for it", n)
	}
	own := "?label.owner=" + owner
	if got, streamed := list(own), listed(own); !strings.Contains(got, `"mine"`) || !strings.Contains(streamed, `"mine"`) {
		t.Errorf("%s is answered with %s and streamed as %s", own, got, streamed)
	}
	if got := w.request(r, http.MethodGet, "/v1/hubs/"+hub+"/instances?label.owner=u-2", w.operator); !strings.Contains(got, `"theirs-`) {
		t.Errorf("an operator is answered with %s", got)
	}
}

// Whoever may publish to a hub cannot choose who reads an instance of somebody else's, by a name that others may read: it is for those
// who may read it under each of its names.
func TestH1AnotherNameOpensNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(w.policy(`
version: 1
hubs:
  ` + hub + `:
    orchestrators:
      Orders:
        audiences:
          - {name: operators, when: "'operator' in claims.roles", see: {customStatus: [/percent, /iban]}}
      Promotions:
        audiences:
          - {name: everybody, when: "true", see: {customStatus: all}}
`))
	n := w.notifier()
	say := func(id, name, rest string) {
		w.post(n, fmt.Sprintf(`{"hub":%q,"instanceId":%q,"name":%q,"generation":1700000000000%s}`, hub, id, name, rest))
	}
	say("o-1", "Orders", `,"sequence":1,"customStatus":{"percent":40,"iban":"c4n4ry"}`)
	say("p-1", "Promotions", `,"sequence":1,"customStatus":{"percent":1}`)
	w.settled()
	v := w.watch(r, w.customer, key("o-1"), key("p-1"))
	v.sees(key("p-1"), 1)
	say("o-1", "Promotions", `,"labels":{"owner":"u-1001"}`)
	say("p-1", "Promotions", `,"sequence":2,"customStatus":{"percent":2}`)
	w.settled()
	v.sees(key("p-1"), 2)
	if got := w.get(r, w.customer, key("o-1")); got.code != http.StatusNotFound {
		t.Errorf("a customer got %d %s", got.code, got.body)
	}
	if said := v.everything(); strings.Contains(said, "c4n4ry") || strings.Contains(said, `"o-1","version"`) {
		t.Errorf("a customer was told %s", said)
	}
	got := w.get(r, w.operator, key("o-1"))
	if view := w.view(got.body); got.code != http.StatusOK || view.percent() != 40 || view.Name != "Promotions" {
		t.Errorf("an operator got %d %s, want the greater of the names", got.code, got.body)
	}
}
