package devbus_test

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus/admin"

	"statusrelay/internal/devbus"
)

// administrate is the SDK's client of Management, with a rule's key.
func administrate(t *testing.T, bus *devbus.Bus, r devbus.Rule) (*admin.Client, *httptest.Server) {
	t.Helper()
	server := httptest.NewTLSServer(bus.Management()) // the client knows no other
	t.Cleanup(server.Close)
	c, err := admin.NewClientFromConnectionString(r.ConnectionString(server.Listener.Addr().String()), &admin.ClientOptions{
		ClientOptions: azcore.ClientOptions{Transport: server.Client(), Retry: policy.RetryOptions{MaxRetries: -1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, server
}

func shown[T any](v *T) (zero T) {
	if v == nil {
		return zero
	}
	return *v
}

// The administration client reads entities as they were described, and as they are now.
func TestManagementDescribesEntities(t *testing.T) {
	o := standard()
	o.Topics[0].DuplicateDetection = 90 * time.Minute
	o.Topics[0].Subscriptions[1] = devbus.Subscription{
		Name: second, LockDuration: 30 * time.Second, MaxDeliveryCount: 3, Sessions: true, TimeToLive: 36 * time.Hour, ForwardTo: "elsewhere",
		Filters: []devbus.Filter{{Type: "SqlFilter", Text: "hub = 'a&b'"}, {Type: "CorrelationFilter", Text: "s"}, {Type: "FalseFilter"}},
	}
	h := start(t, o)
	c, _ := administrate(t, h.bus, devbus.Rule{Name: "any", Key: "thing"})
	of, err := c.GetTopic(h.ctx, topic, nil)
	if err != nil || of == nil || of.TopicName != topic || !shown(of.RequiresDuplicateDetection) || shown(of.DuplicateDetectionHistoryTimeWindow) != "P0DT1H30M0S" ||
		shown(of.Status) != admin.EntityStatusActive || shown(of.MaxMessageSizeInKilobytes) != 256 {
		t.Errorf("the topic: got %+v, %v", of, err)
	}
	sub, err := c.GetSubscription(h.ctx, topic, second, nil)
	if err != nil || sub == nil || shown(sub.LockDuration) != "P0DT0H0M30S" || shown(sub.MaxDeliveryCount) != 3 || !shown(sub.RequiresSession) ||
		shown(sub.DefaultMessageTimeToLive) != "P1DT12H0M0S" || shown(sub.ForwardTo) != "elsewhere" {
		t.Errorf("the subscription: got %+v, %v", sub, err)
	}
	if sub, err = c.GetSubscription(h.ctx, strings.ToUpper(topic), subscription, nil); err != nil || sub == nil || shown(sub.RequiresSession) || shown(sub.ForwardTo) != "" ||
		shown(sub.MaxDeliveryCount) != 10 || !strings.HasPrefix(shown(sub.DefaultMessageTimeToLive), "P10675199D") {
		t.Errorf("the other: got %+v, %v", sub, err)
	}
	var filters []admin.RuleFilter
	for pager := c.NewListRulesPager(topic, second, &admin.ListRulesOptions{MaxPageSize: 100}); pager.More(); {
		page, err := pager.NextPage(h.ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Rules {
			filters = append(filters, r.Filter)
		}
	}
	if len(filters) != 3 || filters[0].(*admin.SQLFilter).Expression != "hub = 'a&b'" || shown(filters[1].(*admin.CorrelationFilter).Subject) != "s" {
		t.Errorf("filters: got %v", filters)
	}

	h.bus.Faults().RefuseLinks(topic, "com.microsoft:entity-disabled")
	if of, err = c.GetTopic(h.ctx, topic, nil); err != nil || shown(of.Status) != admin.EntityStatusDisabled {
		t.Errorf("switched off: got %+v, %v", of, err)
	}
}

func TestManagementCountsMessages(t *testing.T) {
	h := start(t, standard())
	c, _ := administrate(t, h.bus, devbus.Rule{Name: "any", Key: "thing"})
	client := h.client()
	to, err := client.NewSender(topic, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := to.SendMessage(h.ctx, &azservicebus.Message{Body: []byte("x")}, nil); err != nil {
			t.Fatal(err)
		}
	}
	later := time.Now().Add(time.Hour)
	if err := to.SendMessage(h.ctx, &azservicebus.Message{Body: []byte("x"), ScheduledEnqueueTime: &later}, nil); err != nil {
		t.Fatal(err)
	}
	from, err := client.NewReceiverForSubscription(topic, subscription, nil)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := from.ReceiveMessages(h.ctx, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := from.DeadLetterMessage(h.ctx, messages[0], nil); err != nil {
		t.Fatal(err)
	}
	got, err := c.GetSubscriptionRuntimeProperties(h.ctx, topic, subscription, nil)
	if err != nil || got == nil || got.ActiveMessageCount != 2 || got.DeadLetterMessageCount != 1 || got.TotalMessageCount != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	if of, err := c.GetTopicRuntimeProperties(h.ctx, topic, nil); err != nil || of.ScheduledMessageCount != 1 || of.SubscriptionCount != 2 {
		t.Errorf("the topic: got %+v, %v", of, err)
	}
}

// What is not there is told as the service does: a topic by a list of nothing, a subscription by 404. The client makes nil of both.
func TestManagementKnowsNoOthers(t *testing.T) {
	h := start(t, standard())
	c, server := administrate(t, h.bus, devbus.Rule{Name: "any", Key: "thing"})
	if of, err := c.GetTopic(h.ctx, "other", nil); err != nil || of != nil {
		t.Errorf("a topic: got %+v, %v", of, err)
	}
	if of, err := c.GetSubscription(h.ctx, topic, "other", nil); err != nil || of != nil {
		t.Errorf("a subscription: got %+v, %v", of, err)
	}
	answer, err := server.Client().Post(server.URL+"/"+topic, "application/xml", strings.NewReader("<entry/>"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != 405 {
		t.Errorf("a change is answered with %d", answer.StatusCode)
	}
}

func TestManagementWantsTheRightToManage(t *testing.T) {
	rules := map[string]devbus.Rule{
		"manage":    {Name: "manage", Key: "k1", Rights: devbus.Manage},
		"of topic":  {Name: "topic", Key: "k2", Entity: topic, Rights: devbus.Manage},
		"of queue":  {Name: "queue", Key: "k3", Entity: queue, Rights: devbus.Manage},
		"both":      {Name: "both", Key: "k4", Rights: devbus.Listen | devbus.Send},
		"wrong key": {Name: "wrong", Key: "k5", Rights: devbus.Manage},
	}
	o := standard()
	for _, r := range rules {
		o.Rules = append(o.Rules, r)
	}
	h := start(t, o)
	for name, want := range map[string]string{
		"manage": "", "of topic": "", "of queue": "InvalidSignature", "both": "Manage,EntityRead claims required", "wrong key": "InvalidSignature",
	} {
		r := rules[name]
		if name == "wrong key" {
			r.Key = "another"
		}
		c, _ := administrate(t, h.bus, r)
		of, err := c.GetSubscription(h.ctx, topic, subscription, nil)
		var refused *azcore.ResponseError
		switch {
		case want == "" && (err != nil || of == nil):
			t.Errorf("%s: got %+v, %v", name, of, err)
		case want != "" && (!errors.As(err, &refused) || refused.StatusCode != 401 || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

// A receiver that names no session is refused by an entity that has them.
func TestSessionsRefuseOtherReceivers(t *testing.T) {
	o := standard()
	o.Topics[0].Subscriptions[0].Sessions = true
	h := start(t, o)
	if received, _ := h.receiveAs(h.client()); received == nil || !strings.Contains(received.Error(), "requires sessions") {
		t.Errorf("got %v", received)
	}
}

func TestSkewedClockIsThatOfMessagesAndManagement(t *testing.T) {
	const ahead = 3 * time.Hour
	h := start(t, standard())
	h.bus.Faults().SkewClock(ahead)
	client := h.client()
	if err := h.sendAs(client); err != nil {
		t.Fatal(err)
	}
	from, err := client.NewReceiverForSubscription(topic, subscription, nil)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := from.PeekMessages(h.ctx, 1, nil)
	if err != nil || len(messages) != 1 {
		t.Fatalf("got %d messages, %v", len(messages), err)
	}
	_, server := administrate(t, h.bus, devbus.Rule{Name: "any", Key: "thing"})
	answer, err := server.Client().Get(server.URL + "/" + topic)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	date, err := time.Parse(time.RFC1123, answer.Header.Get("Date"))
	for what, at := range map[string]time.Time{"message": *messages[0].EnqueuedTime, "date": date} {
		if off := time.Until(at) - ahead; err != nil || off.Abs() > time.Minute {
			t.Errorf("%s: it is off by %v, %v", what, off, err)
		}
	}
}
