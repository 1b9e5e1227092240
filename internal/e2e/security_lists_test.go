package e2e_test

import (
	"fmt"
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
