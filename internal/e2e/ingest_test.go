package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"statusrelay/internal/notifier"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// named is an event with a name and no position.
func named(id, instance string, percent int) string {
	return fmt.Sprintf(`{"specversion":"1.0","type":"durable.status.v1","source":"/orders","id":%q,`+
		`"data":{"hub":%q,"instanceId":%q,"customStatus":{"percent":%d}}}`, id, hub, instance, percent)
}

// says is a bare update about how an instance is, without a position.
func says(instance string, s status.RuntimeStatus) string {
	return fmt.Sprintf(`{"hub":%q,"instanceId":%q,"runtimeStatus":%q,"labels":{"owner":%q}}`, hub, instance, s, owner)
}

// shared lets a notifier use the world's Redis.
func (w *world) shared(c *notifier.Config) { c.Redis.Addrs = []string{w.redis.Addr} }

// Every event goes to the topic once, though each replica gets it several times, at
// the same time and afterwards, alone and in a batch.
func TestEventGoesToTheTopicOnceWhicheverReplicaGetsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	replicas := []*replica{w.notifier(w.shared), w.notifier(w.shared)}
	const events = 60
	var sending sync.WaitGroup
	for _, n := range append(replicas, replicas...) {
		sending.Go(func() {
			for i := range events {
				body := named(fmt.Sprint(i), fmt.Sprint("i-", i), i)
				if i%3 == 0 {
					body = "[" + body + "," + named(fmt.Sprint(i), fmt.Sprint("i-", i), i) + "]"
				}
				for w.ctx.Err() == nil {
					got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(body))
					if err == nil && got.code == http.StatusAccepted {
						break
					}
					// Another has it in hand. Its Retry-After is for strangers.
					if err != nil || got.code != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
						t.Errorf("got %d %s, %v", got.code, got.body, err)
						return
					}
				}
			}
		})
	}
	sending.Wait()
	if n := w.stats().TotalEnqueued; n != events {
		t.Errorf("the topic got %d messages of %d events", n, events)
	}
	for i, n := range replicas {
		got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(named("7", "i-7", 8)))
		if err != nil || got.code != http.StatusUnprocessableEntity || !strings.Contains(string(got.body), "id: used for another event") {
			t.Errorf("replica %d: another event of a name: got %d %s, %v", i, got.code, got.body, err)
		}
	}

	// Without Redis there is nobody to ask: events are published, again if need be, and said to be.
	w.redis.Stop()
	for range 2 {
		w.post(replicas[0], named("new", "new", 1))
	}
	if n := w.stats().TotalEnqueued; n != events+2 {
		t.Errorf("without Redis the topic got %d messages, want 2 more than %d", n, events)
	}
	if n := w.metric(replicas[0], "statusrelay_claim_events_total"); n == 0 {
		t.Error("nothing is counted")
	}
	if !strings.Contains(w.logs.String(), "it is not known which events were published before") {
		t.Error("nothing is logged")
	}
}

// Callers without a counter are in the order in which the notifier got them, whichever
// replica, and however the broker delivers them; a run that begins anew is a new one.
func TestStampedUpdatesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	stamps := func(c *notifier.Config) { w.shared(c); c.Stamp = true }
	replicas := []*replica{w.notifier(stamps), w.notifier(stamps)}
	w.bus.Faults().Hold(entity)
	k := key("order-4711")
	w.post(replicas[0], says(k.InstanceID, status.Pending))
	for percent := 1; percent <= 20; percent++ {
		w.post(replicas[percent%2], named(fmt.Sprint(percent), k.InstanceID, percent))
	}
	w.post(replicas[1], says(k.InstanceID, status.Completed))
	w.until("all are stored", func() bool { return w.stats().TotalEnqueued == 22 })
	w.bus.Faults().Release(entity, func(n int) []int { // last in, first out
		order := make([]int, n)
		for i := range order {
			order[i] = n - 1 - i
		}
		return order
	})
	r := w.relay(nil)
	w.settled()
	w.shows(r, k, 20)
	if v := w.view(w.get(r, w.operator, k).body); v.RuntimeStatus != string(status.Completed) {
		t.Errorf("it is %+v", v)
	}
	w.post(replicas[0], says(k.InstanceID, status.Pending))
	w.until("a new run shows", func() bool {
		v := w.view(w.get(r, w.operator, k).body)
		return v.RuntimeStatus == string(status.Pending) && v.percent() == -1
	})
	w.post(replicas[1], fmt.Sprintf(`{"hub":%q,"instanceId":%q,"kind":"purged"}`, hub, k.InstanceID))
	w.until("it is gone", func() bool { return w.get(r, w.operator, k).code == http.StatusNotFound })

	// No update goes out without its position.
	w.redis.Stop()
	before := w.stats().TotalEnqueued
	got, err := w.do(http.MethodPost, replicas[0].base+"/v1/updates", w.publisher, strings.NewReader(says("another", status.Running)))
	if err != nil || got.code != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("without Redis: got %d %s, %v", got.code, got.body, err)
	}
	w.post(replicas[0], progress("another", 1, 1)) // which has one
	if n := w.stats().TotalEnqueued; n != before+1 {
		t.Errorf("the topic got %d messages, want the one with a position", n-before)
	}
}

// The notifier's user in deploy/redis/users.acl is enough for everything that the
// notifier does: nothing is refused to it. It can do nothing else.
func TestR2NotifierRunsUnderTheShippedACL(t *testing.T) {
	const password = "correct horse"
	w := newWorld(t, nil)
	w.asShipped(password)
	_, secret := w.secretFile(password)
	n := w.notifier(w.shared, func(c *notifier.Config) {
		c.Stamp = true
		c.Redis.Username, c.Redis.Password = storetest.ShippedNotifier, secret
	})
	w.redis.Do("HSET", "statusrelay:{"+hub+"/order-4711}", "r", `{"gen":1700000000000}`)
	for range 2 {
		w.post(n, named("1", "order-4711", 1))
		w.post(n, says("order-4711", status.Completed))
		w.redis.Do("SCRIPT", "FLUSH")
	}
	if s := w.stats(); s.TotalEnqueued != 3 {
		t.Errorf("the topic got %d messages, want one event and two updates", s.TotalEnqueued)
	}
	if got := w.redis.Do("GET", "statusrelay:stamp:{"+hub+"/order-4711}"); !strings.HasPrefix(got, "1700000000000 ") {
		t.Errorf("the stamp is %q: it cannot read the record", got)
	}
	if log := w.redis.Do("ACL", "LOG"); log != "" {
		t.Errorf("refused to the notifier:\n%s", log)
	}
	used := w.redis.Do("INFO", "commandstats")
	for _, rule := range storetest.CommandsOf(t, storetest.ShippedNotifier)[1:] { // after -@all
		if !strings.Contains(used, "\ncmdstat_"+rule[1:]+":") {
			t.Errorf("%s is not needed", rule)
		}
	}
	refuses(w, storetest.ShippedNotifier, password,
		"HSET statusrelay:{a/b} r x", "DEL statusrelay:{a/b}", "GET statusrelay:ticket:a", "SET statusrelay:index:{a} x", "SET statusrelay:sweep x",
		"PUBLISH statusrelay:{a/b} x", "SUBSCRIBE statusrelay:{a/b}", "SCAN 0", "ZADD statusrelay:index:{a} 1 b",
		"EVAL return(redis.call('HSET',KEYS[1],'r','x')) 1 statusrelay:{a/b}")
}
