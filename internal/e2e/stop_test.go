package e2e_test

import (
	"errors"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/dev"
	"statusrelay/internal/storetest"
)

// A replica that is told to stop while Redis is away gives back what it holds,
// still sends its clients away properly, and ends in time; another one stores
// what was given back when Redis is there again.
func TestReplicaStopsWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ begin, end func(*storetest.Redis) }{
		"Stopped": {(*storetest.Redis).Stop, (*storetest.Redis).Start},
		"Frozen":  {(*storetest.Redis).Pause, (*storetest.Redis).Resume},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dev.NewBus(2*time.Second, 10))
			r := w.relay(nil)
			k := key("order-4711")
			v := w.watch(r, w.operator, k)
			w.send(progress(k.InstanceID, 1, 1))
			v.sees(k, 1)
			w.settled()

			fault.begin(w.redis)
			w.send(progress(k.InstanceID, 2, 2))
			w.until("the message is in hand", func() bool { return w.stats().Locked == 1 })
			r.stop()
			v.await("the socket has ended", func(v *watcher) bool { return v.ended != nil })
			if closed := (*websocket.CloseError)(nil); !errors.As(v.end(), &closed) || closed.Code != websocket.CloseServiceRestart {
				t.Errorf("the socket ended with %v, want 1012", v.end())
			}

			fault.end(w.redis)
			second := w.relay(nil)
			w.shows(second, k, 2)
			w.settled()
			if s := w.stats(); s.TotalDeadLettered > 0 || s.Completed != 2 {
				t.Errorf("in the end: %+v, want 2 completed", s)
			}
		})
	}
}
