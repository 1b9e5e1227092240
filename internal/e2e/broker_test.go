package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"statusrelay/internal/dev"
	"statusrelay/internal/status"
)

// However often and in whatever way the connection to the broker is cut while
// batches are in hand, every update arrives and none is dead-lettered.
func TestCutBrokerConnectionLosesNothing(t *testing.T) {
	t.Parallel()
	bus := dev.NewBus(2*time.Second, 10)
	w := newWorld(t, bus)
	r, n := w.relay(nil), w.notifier()
	const instances, updates, publishers = 40, 60, 4
	var keys []status.Key
	for i := range instances {
		keys = append(keys, key(fmt.Sprintf("i-%d", i)))
	}
	v := w.watch(r, w.operator, keys...)

	var publishing sync.WaitGroup
	for p := range publishers {
		publishing.Go(func() {
			for u := 1; u <= updates; u++ {
				var lines strings.Builder
				for _, k := range keys[p*instances/publishers : (p+1)*instances/publishers] {
					lines.WriteString(progress(k.InstanceID, u, u) + "\n")
				}
				// An instance that gets one update ever: a lost one leaves a hole.
				lines.WriteString(progress(fmt.Sprintf("once-%d-%d", p, u), 1, 1))
				// A publisher that got no 202 tries again, as it is told to.
				for w.ctx.Err() == nil {
					got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(lines.String()))
					if err == nil && got.code == http.StatusAccepted {
						break
					}
				}
			}
		})
	}
	for i, cut := range []func(){
		bus.DropConnections,
		func() { bus.Faults().CloseConnections("amqp:connection:forced") },
		func() { bus.Faults().EndSessions("amqp:session:errant-link") },
		func() { bus.Faults().DetachLinks(entity, "com.microsoft:timeout") },
		bus.DropConnections,
	} {
		before := w.stats().Completed
		w.until("a batch is in hand", func() bool {
			s := w.stats()
			return i == 0 && s.Locked > 0 || s.Completed > before && s.Locked > 0 || s.Completed >= instances*updates
		})
		cut()
	}
	publishing.Wait()
	for _, k := range keys {
		v.sees(k, updates)
		w.shows(r, k, updates)
	}
	w.settled()
	if s := w.stats(); s.TotalDeadLettered > 0 {
		t.Errorf("in the end: %+v, want nothing dead-lettered", s)
	}
	if got, want := w.records(), instances+publishers*updates; got != want {
		t.Errorf("redis has %d records, want %d", got, want)
	}
}
