package devbus

import (
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

const (
	atomNamespace     = "http://www.w3.org/2005/Atom"
	busNamespace      = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
	countsNamespace   = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
	instanceNamespace = "http://www.w3.org/2001/XMLSchema-instance"

	forever = "P10675199DT2H48M5.4775807S" // .NET's greatest time span
)

// Management is the administration API: Atom over HTTP, as azservicebus/admin reads a topic, a
// subscription and its rules. The real one is at https://NAMESPACE/, that of the emulator at
// http://HOST:5300/. What is told of an entity is how it is now: how many messages it has, and
// whether Faults has switched it off. With rules, the right to Manage is needed.
func (b *Bus) Management() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", b.faults.now().UTC().Format(http.TimeFormat))
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			refuseAdmin(w, http.StatusMethodNotAllowed, "devbus reads only.")
			return
		}
		path, rules := strings.CutSuffix(canonical(r.URL.Path), "/rules")
		n, p := b.find(path)
		if p != nil {
			n = &node{name: path}
		}
		op := Operation{Entity: n.name, Name: "admin-" + strings.ToLower(r.Method)}
		if !b.open() {
			g, err := b.authorize(r.Header.Get("Authorization"), "https://"+r.Host+r.URL.RequestURI(), n, time.Now())
			if err == nil && g.rights&Manage != Manage {
				err = errors.New("Manage,EntityRead claims required for this operation.")
			}
			op.Rule, op.Refused = g.rule, err != nil
			if err != nil {
				b.operations.note(op)
				refuseAdmin(w, http.StatusUnauthorized, err.Error())
				return
			}
		}
		b.operations.note(op)
		switch {
		case rules && n.subscription != nil:
			writeXML(w, http.StatusOK, b.describeRules(r, n))
		case !rules && n.subscription != nil:
			writeXML(w, http.StatusOK, entryOf(r, n.subscription.Name, &content{Subscription: b.describeSubscription(n)}))
		case !rules && n.topic != nil:
			writeXML(w, http.StatusOK, entryOf(r, n.topic.Name, &content{Topic: b.describeTopic(n)}))
		case strings.Contains(path, "/subscriptions/"):
			refuseAdmin(w, http.StatusNotFound, fmt.Sprintf("Entity '%.300s' was not found.", path))
		default: // what is no entity is the list of those that the public may see: none
			writeXML(w, http.StatusOK, feed{Space: atomNamespace, Title: "Publicly Listed Services"})
		}
	})
}

func refuseAdmin(w http.ResponseWriter, code int, detail string) {
	writeXML(w, code, struct {
		XMLName xml.Name `xml:"Error"`
		Code    int
		Detail  string
	}{Code: code, Detail: detail})
}

func writeXML(w http.ResponseWriter, code int, v any) {
	body, err := xml.Marshal(v)
	if err != nil { // strings and numbers: cannot happen
		code, body = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/atom+xml;type=entry;charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client is gone: nobody is left to tell
}

type (
	feed struct {
		XMLName xml.Name `xml:"feed"`
		Space   string   `xml:"xmlns,attr"`
		Title   string   `xml:"title"`
		Entries []entry  `xml:"entry"`
	}
	entry struct {
		XMLName xml.Name `xml:"entry"`
		Space   string   `xml:"xmlns,attr"`
		ID      string   `xml:"id"`
		Title   string   `xml:"title"`
		Content *content `xml:"content"`
	}
	content struct {
		Type         string                   `xml:"type,attr"`
		Topic        *topicDescription        `xml:"TopicDescription"`
		Subscription *subscriptionDescription `xml:"SubscriptionDescription"`
		Rule         *ruleDescription         `xml:"RuleDescription"`
	}
	// The order of elements is the service's, whose parsers go by it.
	topicDescription struct {
		Space                               string `xml:"xmlns,attr"`
		DefaultMessageTimeToLive            string
		RequiresDuplicateDetection          bool
		DuplicateDetectionHistoryTimeWindow string
		EnableBatchedOperations             bool
		Status                              string
		CreatedAt, UpdatedAt, AccessedAt    string
		SupportOrdering                     bool
		CountDetails                        counts
		SubscriptionCount                   int
		MaxMessageSizeInKilobytes           int
	}
	subscriptionDescription struct {
		Space                            string `xml:"xmlns,attr"`
		LockDuration                     string
		RequiresSession                  bool
		DefaultMessageTimeToLive         string
		DeadLetteringOnMessageExpiration bool
		MessageCount                     int
		MaxDeliveryCount                 int
		EnableBatchedOperations          bool
		Status                           string
		ForwardTo                        string `xml:",omitempty"`
		CreatedAt, UpdatedAt, AccessedAt string
		CountDetails                     counts
	}
	counts struct {
		Space                          string `xml:"xmlns:d2p1,attr"`
		ActiveMessageCount             int    `xml:"d2p1:ActiveMessageCount"`
		DeadLetterMessageCount         int    `xml:"d2p1:DeadLetterMessageCount"`
		ScheduledMessageCount          int    `xml:"d2p1:ScheduledMessageCount"`
		TransferMessageCount           int    `xml:"d2p1:TransferMessageCount"`
		TransferDeadLetterMessageCount int    `xml:"d2p1:TransferDeadLetterMessageCount"`
	}
	ruleDescription struct {
		Space    string `xml:"xmlns,attr"`
		Instance string `xml:"xmlns:i,attr"`
		Filter   filterDescription
		Action   typed
		Name     string
	}
	typed struct {
		Type string `xml:"i:type,attr"`
	}
	filterDescription struct {
		typed
		SQLExpression string `xml:"SqlExpression,omitempty"`
		Label         string `xml:",omitempty"`
	}
)

func entryOf(r *http.Request, title string, c *content) entry {
	c.Type = "application/xml"
	return entry{Space: atomNamespace, ID: "https://" + r.Host + r.URL.RequestURI(), Title: title, Content: c}
}

// noTime is how the service tells a time that there is none of.
const noTime = "0001-01-01T00:00:00"

func (b *Bus) state(n *node) string {
	if p := b.faults.refuseLink(n.name); p != nil && p.condition == "com.microsoft:entity-disabled" {
		return "Disabled"
	}
	return "Active"
}

func (b *Bus) describeTopic(n *node) *topicDescription {
	n.inbox.mu.Lock()
	scheduled := len(n.inbox.waiting)
	n.inbox.mu.Unlock()
	const window = 10 * time.Minute // the service's default, detected or not
	return &topicDescription{
		Space: busNamespace, DefaultMessageTimeToLive: forever, Status: b.state(n), EnableBatchedOperations: true, SupportOrdering: true,
		RequiresDuplicateDetection:          n.topic.DuplicateDetection > 0,
		DuplicateDetectionHistoryTimeWindow: isoDuration(cmp.Or(n.topic.DuplicateDetection, window)),
		CreatedAt:                           noTime, UpdatedAt: noTime, AccessedAt: noTime, CountDetails: counts{Space: countsNamespace, ScheduledMessageCount: scheduled},
		SubscriptionCount: len(n.topic.Subscriptions), MaxMessageSizeInKilobytes: b.maxMessage >> 10,
	}
}

func (b *Bus) describeSubscription(n *node) *subscriptionDescription {
	stats, s := n.store.stats(), n.subscription
	waiting := stats.Active + stats.Locked + stats.Deferred
	return &subscriptionDescription{
		Space: busNamespace, LockDuration: isoDuration(n.store.lockDuration), RequiresSession: s.Sessions,
		DefaultMessageTimeToLive: isoDuration(s.TimeToLive), MessageCount: waiting + stats.DeadLettered,
		MaxDeliveryCount: int(n.store.maxDelivery), EnableBatchedOperations: true, Status: b.state(n), ForwardTo: s.ForwardTo,
		CreatedAt: noTime, UpdatedAt: noTime, AccessedAt: noTime,
		CountDetails: counts{Space: countsNamespace, ActiveMessageCount: waiting, DeadLetterMessageCount: stats.DeadLettered},
	}
}

func (b *Bus) describeRules(r *http.Request, n *node) feed {
	filters := n.subscription.Filters
	if filters == nil {
		filters = []Filter{{Type: "TrueFilter", Text: "1=1"}}
	}
	f := feed{Space: atomNamespace, Title: "Rules"}
	for i, of := range filters {
		rule := &ruleDescription{
			Space: busNamespace, Instance: instanceNamespace, Name: fmt.Sprintf("rule-%d", i), Action: typed{"EmptyRuleAction"},
			Filter: filterDescription{typed: typed{of.Type}},
		}
		if of.Type == "CorrelationFilter" {
			rule.Filter.Label = of.Text
		} else {
			rule.Filter.SQLExpression = of.Text
		}
		f.Entries = append(f.Entries, entryOf(r, rule.Name, &content{Rule: rule}))
	}
	return f
}

// isoDuration writes a time span as XML has it; 0 is for ever.
func isoDuration(d time.Duration) string {
	if d == 0 {
		return forever
	}
	const day = 24 * time.Hour
	return fmt.Sprintf("P%dDT%dH%dM%gS", d/day, d%day/time.Hour, d%time.Hour/time.Minute, (d % time.Minute).Seconds())
}
