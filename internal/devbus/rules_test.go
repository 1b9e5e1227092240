package devbus_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
)

// as is a client with a connection string.
func (h *harness) as(connection string) *azservicebus.Client {
	h.t.Helper()
	c, err := azservicebus.NewClientFromConnectionString(connection, &azservicebus.ClientOptions{
		RetryOptions: azservicebus.RetryOptions{MaxRetries: 1, RetryDelay: 10 * time.Millisecond},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.clients = append(h.clients, c)
	return c
}

// sendAs is what becomes of a message that a client sends to the topic.
func (h *harness) sendAs(c *azservicebus.Client) error {
	h.t.Helper()
	to, err := c.NewSender(topic, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return to.SendMessage(h.ctx, &azservicebus.Message{Body: []byte("x")}, nil)
}

// receiveAs is what becomes of receiving one with a client, and of renewing its lock.
func (h *harness) receiveAs(c *azservicebus.Client) (received, renewed error) {
	h.t.Helper()
	from, err := c.NewReceiverForSubscription(topic, subscription, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	messages, err := from.ReceiveMessages(h.ctx, 1, nil)
	if err != nil {
		_, renewed = from.PeekMessages(h.ctx, 1, nil) // there is nothing to renew
		return err, renewed
	}
	return nil, from.RenewMessageLock(h.ctx, messages[0], nil)
}

func TestRuleAllowsItsRightsAndNoOthers(t *testing.T) {
	rules := map[string]devbus.Rule{
		"listen": {Name: "listen", Key: "k1", Entity: topic, Rights: devbus.Listen},
		"send":   {Name: "send", Key: "k2", Entity: topic, Rights: devbus.Send},
		"both":   {Name: "both", Key: "k3", Entity: topic, Rights: devbus.Listen | devbus.Send},
		"manage": {Name: "manage", Key: "k4", Rights: devbus.Manage},
		"other":  {Name: "other", Key: "k5", Entity: queue, Rights: devbus.Manage},
		"prefix": {Name: "prefix", Key: "k6", Entity: topic[:3], Rights: devbus.Manage},
	}
	o := standard()
	for _, r := range rules {
		o.Rules = append(o.Rules, r)
	}
	for name, c := range map[string]struct{ send, listen bool }{
		"listen": {false, true}, "send": {true, false}, "both": {true, true}, "manage": {true, true}, "other": {}, "prefix": {},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, o)
			client := h.as(rules[name].ConnectionString(h.addr))
			check := func(what string, allowed bool, err error) {
				t.Helper()
				if allowed && err != nil || !allowed && code(err) != azservicebus.CodeUnauthorizedAccess {
					t.Errorf("%s: got %v, want allowed: %t", what, err, allowed)
				}
			}
			check("send", c.send, h.sendAs(client))
			if !c.send {
				if err := h.sendAs(h.as(rules["manage"].ConnectionString(h.addr))); err != nil {
					t.Fatal(err)
				}
			}
			received, renewed := h.receiveAs(h.as(rules[name].ConnectionString(h.addr)))
			check("receive", c.listen, received)
			check("renew or peek", c.listen, renewed)

			asked := h.bus.Operations()
			for op := range asked {
				switch {
				case op.Rule == "manage" && name != "manage":
				case op.Name == "attach-sender" && op.Refused == c.send, op.Name == "attach-receiver" && op.Refused == c.listen,
					strings.HasPrefix(op.Name, "com.microsoft:") && op.Refused == c.listen:
					t.Errorf("counted %+v", op)
				}
			}
			if c.listen && asked[devbus.Operation{Rule: name, Entity: topic + "/Subscriptions/" + subscription, Name: "com.microsoft:renew-lock"}] != 1 {
				t.Errorf("no renewal among %+v", asked)
			}
		})
	}
}

func TestTokenIsTakenAsItWasSigned(t *testing.T) {
	rule := devbus.Rule{Name: "send", Key: "k", Entity: topic, Rights: devbus.Send}
	o := standard()
	o.Rules = []devbus.Rule{rule}
	type token struct{ resource, expiry, key, name string }
	for name, c := range map[string]struct {
		change func(*token)
		after  func(string) string
		taken  bool
	}{
		"as it should be":   {func(*token) {}, nil, true},
		"for what is above": {func(k *token) { k.resource = strings.TrimSuffix(k.resource, "/"+topic) }, nil, true},
		"expired":           {func(k *token) { k.expiry = fmt.Sprint(time.Now().Unix()) }, nil, false},
		"no expiry":         {func(k *token) { k.expiry = "never" }, nil, false},
		"for something else": {func(k *token) {
			k.resource = strings.TrimSuffix(k.resource, topic) + queue
		}, nil, false},
		"for another host": {func(k *token) { k.resource = "sb://elsewhere/" + topic }, nil, false},
		"another key":      {func(k *token) { k.key = "x" }, nil, false},
		"another name":     {func(k *token) { k.name = "listen" }, nil, false},
		"longer than signed": {func(*token) {}, func(s string) string {
			return strings.Replace(s, "&se=", "&se=1", 1)
		}, false},
		"for more than signed": {func(*token) {}, func(s string) string {
			return strings.Replace(s, "%2f"+topic, "", 1)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, o)
			k := token{"amqp://" + h.addr + "/" + topic, fmt.Sprint(time.Now().Add(time.Hour).Unix()), rule.Key, rule.Name}
			c.change(&k)
			resource := strings.ToLower(url.QueryEscape(k.resource))
			mac := hmac.New(sha256.New, []byte(k.key))
			mac.Write([]byte(resource + "\n" + k.expiry))
			text := fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%s&skn=%s", resource,
				url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), k.expiry, k.name)
			if c.after != nil {
				changed := c.after(text)
				if changed == text {
					t.Fatal("nothing was changed")
				}
				text = changed
			}
			err := h.sendAs(h.as("Endpoint=sb://" + h.addr + ";SharedAccessSignature=" + text + ";UseDevelopmentEmulator=true"))
			if c.taken && err != nil || !c.taken && code(err) != azservicebus.CodeUnauthorizedAccess {
				t.Errorf("got %v, want taken: %t", err, c.taken)
			}
		})
	}
}
