package e2e_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
	"statusrelay/internal/notifier"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
)

// The rules that deploy/README.md has operators make on the topic.
func listens() devbus.Rule {
	return devbus.Rule{Name: "relay-listens", Key: "listens", Entity: topic, Rights: devbus.Listen}
}

func sends() devbus.Rule {
	return devbus.Rule{Name: "notifier-sends", Key: "sends", Entity: topic, Rights: devbus.Send}
}

// newRuledWorld has a bus with these two rules, and one for the test itself.
func newRuledWorld(t *testing.T, lock time.Duration) *world {
	t.Helper()
	return newWorld(t, devbus.New(devbus.Options{
		Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription, LockDuration: lock}}}},
		Rules:  []devbus.Rule{listens(), sends()}, SharedAccessKey: devbus.DevelopmentKey,
	}))
}

// by is the connection string of a rule, as the portal shows it.
func (w *world) by(r devbus.Rule) string {
	rest, _ := strings.CutPrefix(w.serviceBus, "Endpoint=sb://")
	addr, _, _ := strings.Cut(rest, ";")
	return r.ConnectionString(addr)
}

// asked wants a rule to have been used for these operations, perhaps for one more, and
// for no others, none of which was refused.
func (w *world) asked(rule string, perhaps devbus.Operation, always ...devbus.Operation) {
	w.Helper()
	all := w.bus.Operations()
	perhaps.Rule = rule
	delete(all, perhaps)
	for _, op := range always {
		op.Rule = rule
		if all[op] == 0 {
			w.Errorf("%s was not used for %s at %s", rule, op.Name, op.Entity)
		}
		delete(all, op)
	}
	for op, n := range all {
		if op.Rule == rule || op.Refused {
			w.Errorf("%d times: %+v", n, op)
		}
	}
}

// unauthorized wants the broker to have refused something for lack of a right.
func (w *world) unauthorized(what string, err error) {
	w.Helper()
	var refused *azservicebus.Error
	if !errors.As(err, &refused) || refused.Code != azservicebus.CodeUnauthorizedAccess {
		w.Errorf("%s: got %v, want it refused", what, err)
	}
}

// The relay needs the right Listen on its topic, for all that it does there: it
// receives, settles, and renews locks. Of the broker's management it asks for nothing
// but these locks, and with its key nobody can send.
func TestB1RelayListensOnly(t *testing.T) {
	t.Parallel()
	w := newRuledWorld(t, 1500*time.Millisecond)
	r := w.relay(nil, func(c *relay.Config) { c.ServiceBus.ConnectionString = settings.NewSecret(w.by(listens())) })
	k := key("order-4711")
	socket := w.watch(r, w.customer, k)
	w.send(progress(k.InstanceID, 1, 10), "poison")
	socket.sees(k, 10)
	w.until("the poison is dead-lettered", func() bool { return w.stats().TotalDeadLettered == 1 })

	w.redis.Pause() // what is in hand is held meanwhile
	w.send(progress(k.InstanceID, 2, 20))
	renewal := devbus.Operation{Rule: listens().Name, Entity: entity, Name: "com.microsoft:renew-lock"}
	w.until("its lock is renewed", func() bool { return w.bus.Operations()[renewal] > 0 })
	w.redis.Resume()
	socket.sees(k, 20)
	w.bus.DropConnections()
	w.send(progress(k.InstanceID, 3, 30))
	socket.sees(k, 30)
	w.settled()
	// What a connection that was lost has received is settled on the next one, by its lock.
	w.asked(listens().Name, devbus.Operation{Entity: entity, Name: "com.microsoft:update-disposition"},
		devbus.Operation{Entity: entity, Name: "put-token"}, devbus.Operation{Entity: entity, Name: "attach-receiver"}, renewal)

	client, err := azservicebus.NewClientFromConnectionString(w.by(listens()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(w.ctx)
	to, err := client.NewSender(topic, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.unauthorized("sending with the relay's key", to.SendMessage(w.ctx, &azservicebus.Message{Body: []byte(progress("x", 1, 1))}, nil))
}

// The notifier needs the right Send on its topic and asks for nothing else; with its
// key nobody can receive.
func TestB1NotifierSendsOnly(t *testing.T) {
	t.Parallel()
	w := newRuledWorld(t, 0)
	r := w.relay(nil, func(c *relay.Config) { c.ServiceBus.ConnectionString = settings.NewSecret(w.by(listens())) })
	n := w.notifier(func(c *notifier.Config) { c.ServiceBus.ConnectionString = settings.NewSecret(w.by(sends())) })
	w.until("the notifier is ready", func() bool { return w.ready(n) == http.StatusOK })
	k := key("order-4711")
	w.post(n, progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	w.bus.DropConnections()
	w.until("it is sent again", func() bool { // whoever gets no 202 tries again
		got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(progress(k.InstanceID, 2, 20)))
		return err == nil && got.code == http.StatusAccepted
	})
	w.shows(r, k, 20)
	w.asked(sends().Name, devbus.Operation{}, devbus.Operation{Entity: topic, Name: "put-token"}, devbus.Operation{Entity: topic, Name: "attach-sender"})

	client, err := azservicebus.NewClientFromConnectionString(w.by(sends()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(w.ctx)
	from, err := client.NewReceiverForSubscription(topic, subscription, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = from.ReceiveMessages(w.ctx, 1, nil)
	w.unauthorized("receiving with the notifier's key", err)
	_, err = from.PeekMessages(w.ctx, 1, nil)
	w.unauthorized("peeking with the notifier's key", err)
}

// A program whose rule lacks the right is not ready and names the right in its log,
// without the key.
func TestB1LackingRightsAreNamed(t *testing.T) {
	t.Parallel()
	w := newRuledWorld(t, 0)
	n := w.notifier(func(c *notifier.Config) { c.ServiceBus.ConnectionString = settings.NewSecret(w.by(listens())) })
	got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(progress("a", 1, 1)))
	if err != nil || got.code != http.StatusServiceUnavailable || !strings.Contains(string(got.body), "The notifier is not allowed to publish.") {
		t.Errorf("an update: got %d %s, %v, want 503 that says why", got.code, got.body, err)
	}
	w.until("the log names what is missing", func() bool {
		_, line, _ := strings.Cut(w.logs.String(), `msg="the notifier is not allowed to publish"`)
		line, _, _ = strings.Cut(line, "\n")
		return strings.Contains(line, "no right to use topic status") && strings.Contains(line, "'Send' claim(s) are required")
	})
	if got := w.ready(n); got != http.StatusServiceUnavailable {
		t.Errorf("readiness is %d", got)
	}
	if strings.Contains(w.logs.String(), "SharedAccessKey="+listens().Key) {
		t.Error("the key is in the log")
	}
}

// A connection string that is replaced in its file is used for the next connection,
// without a restart. One that is none keeps the relay waiting for the next, and is
// in no log.
func TestU8ServiceBusKeyRotatesWithItsFile(t *testing.T) {
	t.Parallel()
	first, second := listens(), listens()
	second.Name, second.Key = "relay-listens-2", "listens too"
	w := newWorld(t, devbus.New(devbus.Options{
		Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}}}},
		Rules:  []devbus.Rule{first, second}, SharedAccessKey: devbus.DevelopmentKey,
	}))
	path, secret := w.secretFile(w.by(first))
	r := w.relay(nil, func(c *relay.Config) { c.ServiceBus.ConnectionString = secret })
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)

	w.writeSecret(path, "SharedAccessKey=canary")
	w.bus.DropConnections()
	w.until("the log says what is wrong", func() bool { return strings.Contains(w.logs.String(), "ConnectionString: not of the form") })
	w.send(progress(k.InstanceID, 2, 20))
	w.until("the relay is not ready", func() bool { return w.ready(r) == http.StatusServiceUnavailable })
	w.writeSecret(path, w.by(second))
	w.shows(r, k, 20)
	if w.bus.Operations()[devbus.Operation{Rule: second.Name, Entity: entity, Name: "attach-receiver"}] == 0 {
		t.Error("the second key was not used")
	}
	if s := w.logs.String(); strings.Contains(s, "canary") || strings.Contains(s, "SharedAccessKey="+first.Key) {
		t.Error("a key is in the log")
	}
}
