package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"statusrelay/internal/dev"
	"statusrelay/internal/relay"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// On this bus, whatever spends its deliveries instead of holding its messages has
// none left after lock × deliveries.
const (
	lock       = 2500 * time.Millisecond
	deliveries = 3
	outage     = lock*deliveries + time.Second
)

// While Redis is away, read-only or frozen for longer than all deliveries of a
// message would last, nothing is dead-lettered and sockets stay; when it is back,
// though empty, every update is in it and every watcher has the newest.
func TestRedisOutageLosesNothing(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct {
		begin, end func(*storetest.Redis)
		reads      int // what a GET is answered meanwhile
	}{
		"Stopped":  {(*storetest.Redis).Stop, (*storetest.Redis).Start, http.StatusServiceUnavailable},
		"Frozen":   {(*storetest.Redis).Pause, (*storetest.Redis).Resume, http.StatusServiceUnavailable},
		"ReadOnly": {becomeReplica, becomePrimary, http.StatusOK},
		"TooFewReplicas": {
			func(r *storetest.Redis) { r.Do("CONFIG", "SET", "min-replicas-to-write", "1") },
			func(r *storetest.Redis) { r.Do("CONFIG", "SET", "min-replicas-to-write", "0") },
			http.StatusOK,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dev.NewBus(lock, deliveries))
			r := w.relay(nil)
			send := w.sender()
			const instances, updates = 20, 5
			var keys []status.Key
			for i := range instances {
				keys = append(keys, key(fmt.Sprintf("i-%d", i)))
			}
			round := func(n int) (bodies [][]byte) {
				for _, k := range keys {
					bodies = append(bodies, []byte(progress(k.InstanceID, n, n)))
				}
				return bodies
			}
			operator, customer := w.watch(r, w.operator, keys...), w.watch(r, w.customer, keys...)
			send(round(1)...)
			for _, k := range keys {
				operator.sees(k, 1)
				customer.sees(k, 1)
			}
			w.settled()

			fault.begin(w.redis)
			read := make(chan struct{})
			go func() {
				defer close(read)
				got, err := w.do(http.MethodGet, instanceURL(r, keys[0]), w.operator, nil)
				switch {
				case err != nil:
					t.Errorf("a read meanwhile: %v", err)
				case got.code != fault.reads:
					t.Errorf("a read meanwhile: got %d %s, want %d", got.code, got.body, fault.reads)
				case got.code == http.StatusServiceUnavailable:
					if n, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || n < 1 {
						t.Errorf("a read meanwhile: got Retry-After %q", got.header.Get("Retry-After"))
					}
				}
			}()
			n := 1
			w.during(outage, func() {
				if n < updates {
					n++
					send(round(n)...)
				}
				if s := w.stats(); s.TotalDeadLettered > 0 || s.Completed > instances {
					t.Fatalf("meanwhile: %+v", s)
				}
				if err := operator.end(); err != nil {
					t.Fatalf("meanwhile a socket ended: %v", err)
				}
			})
			<-read
			fault.end(w.redis)

			for _, k := range keys {
				operator.sees(k, updates)
				customer.sees(k, updates)
				w.shows(r, k, updates)
			}
			w.settled()
			if s := w.stats(); s.TotalDeadLettered > 0 || s.Completed != instances*updates {
				t.Errorf("in the end: %+v, want %d completed", s, instances*updates)
			} else if s.LocksExpired > instances { // a machine that stands still may cost a batch its locks
				t.Errorf("in the end: %+v, want the locks kept", s)
			}
		})
	}
}

func becomeReplica(r *storetest.Redis) { r.Do("REPLICAOF", "127.0.0.1", "1") } // of nobody
func becomePrimary(r *storetest.Redis) { r.Do("REPLICAOF", "NO", "ONE") }

// What is put while the subscription is broken is read when it stands again.
func TestBrokenSubscriptionStrandsNoWatcher(t *testing.T) {
	w := newWorld(t, nil)
	r := w.relay(nil)
	send := w.sender()
	k := key("order-4711")
	v := w.watch(r, w.operator, k)
	send([]byte(progress(k.InstanceID, 1, 1)))
	v.sees(k, 1)
	for n := 2; n <= 6; n++ {
		w.until("the subscription is killed", func() bool { return w.redis.Do("CLIENT", "KILL", "TYPE", "pubsub") != "0" })
		send([]byte(progress(k.InstanceID, n, n)))
		v.sees(k, n)
	}
	if err := v.end(); err != nil {
		t.Errorf("the socket ended: %v", err)
	}
}

// A subscription that stays open and delivers nothing is found out, and what was
// missed is read.
func TestDeafSubscriptionStrandsNoWatcher(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	proxy := storetest.StartProxy(t, w.redis.Addr)
	r := w.relay(nil, func(c *relay.Config) { c.Redis.Addrs = []string{proxy.Addr} })
	k := key("order-4711")
	v := w.watch(r, w.operator, k)
	w.send(progress(k.InstanceID, 1, 1))
	v.sees(k, 1)

	if n := proxy.MuteSubscribers(); n != 1 {
		t.Fatalf("%d subscriptions are deaf, want 1", n)
	}
	w.send(progress(k.InstanceID, 2, 2))
	w.shows(r, k, 2)
	v.sees(k, 2)
	// The hub's own refresh may have read that one before the probe found out.
	w.until("the deaf subscription is found out", func() bool {
		return w.metric(r, "statusrelay_redisstore_follow_deaf_total") == 1
	})
	w.send(progress(k.InstanceID, 3, 3))
	v.sees(k, 3)
}
