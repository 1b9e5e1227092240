package doctor

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"statusrelay/internal/servicebus"
)

const (
	fewDeliveries = 5                // below which a relay's bad minute makes dead letters
	shortLock     = 10 * time.Second // below which locks run out while a relay renews them
	shortLife     = time.Hour        // below which an outage of the relays loses updates
	longWait      = time.Minute      // beyond which nobody seems to take messages
)

// links says what became of a link to the topic: whether the credential is accepted, the topic is there, and may be sent to.
func (e *examination) links() {
	const of = "the topic, with a key (or the role Azure Service Bus Data Sender) that may send"
	switch err := e.sendErr; {
	case err == nil:
		e.ok(credential, "accepted")
		e.ok(topic, "%s is there", e.bus.Topic)
		e.ok(send, "a link for sending opens")
	case errors.Is(err, servicebus.ErrCredential):
		remedy := "the key may have been replaced, or is of a policy of another entity: copy the connection string anew; a clock that is wrong by hours has the same effect"
		if e.bus.Namespace != "" {
			remedy = "give this machine an identity (a managed one, or AZURE_CLIENT_ID and what belongs to it), and that the role Azure Service Bus Data Sender"
		}
		e.report(credential, Fail, remedy, "%v", err)
	case errors.Is(err, servicebus.ErrRight):
		e.ok(credential, "accepted")
		e.ok(topic, "%s is there", e.bus.Topic)
		e.report(send, Fail, "use "+of, "it may not send: %v", err)
	case errors.Is(err, servicebus.ErrNoEntity):
		e.skip(credential, "not checked: the broker looks for the topic first")
		e.report(topic, Fail, "create it, or set service_bus.topic to the one that there is", "%s: %v", e.bus.Topic, err)
		e.skip(send, "not checked: there is no topic")
	case errors.Is(err, servicebus.ErrDisabled):
		e.ok(credential, "accepted")
		e.report(topic, Fail, "set its status to Active", "%s: %v", e.bus.Topic, err)
		e.skip(send, "not checked: the topic is disabled")
	default:
		e.report(credential, Fail, "check what answers at that port: a broker without TLS needs UseDevelopmentEmulator=true in the connection string, and one with TLS must not have it",
			"the broker does not get so far as to look at it: %v", err)
	}
}

// subscription says whether relays find theirs.
func (e *examination) subscription() {
	name := e.bus.Subscription
	at := name + " of " + e.bus.Topic
	managed := e.subErr == nil
	switch {
	case name == "", errors.Is(e.sendErr, servicebus.ErrNoEntity):
		e.skip(subscription, "not checked: %v", e.subErr)
		return
	case isAny(e.peekErr, servicebus.ErrNoEntity) || isAny(e.subErr, servicebus.ErrNoEntity):
		e.report(subscription, Fail, "create it, or name the one that there is (--subscription; at the relays: subscription)", "%s does not exist: no relay receives anything", at)
		return
	case errors.Is(e.peekErr, servicebus.ErrDisabled), managed && !strings.EqualFold(e.sub.Status, "Active"):
		e.report(subscription, Fail, "set its status to Active", "%s is disabled: no relay receives anything", at)
	case managed, e.peekErr == nil, errors.Is(e.peekErr, servicebus.ErrSessions):
		e.ok(subscription, "%s is there", at)
	case isAny(e.peekErr, servicebus.ErrRight, servicebus.ErrCredential):
		e.skip(subscription, "not checked: needs Listen or Manage, which a publisher's key does well not to have")
	default:
		e.report(subscription, Fail, "try again; the broker may be busy", "%s: %v", at, e.peekErr)
	}
	switch {
	case managed && e.sub.Sessions, errors.Is(e.peekErr, servicebus.ErrSessions):
		e.report(sessions, Fail, "create it anew without sessions, which cannot be switched off",
			"%s requires sessions: relays cannot receive from it, and messages of publishers that set only a body have none", at)
	case managed, e.peekErr == nil:
		e.ok(sessions, "none are required")
	default:
		e.skip(sessions, "not checked: %s", why(e.peekErr, "Listen or Manage"))
	}
}

// settings says how the topic and the subscription are set up, which only the right to manage shows.
func (e *examination) settings() {
	switch err := e.topicErr; {
	case err == nil, errors.Is(err, servicebus.ErrNoEntity):
		e.ok(management, "the administration API answers")
	case isAny(err, servicebus.ErrRight, servicebus.ErrCredential):
		e.skip(management, "not checked: needs Manage, which a publisher's key does well not to have")
	default:
		e.skip(management, "not checked: %v", err)
	}
	unseen := func(err error, names ...string) {
		for _, name := range names {
			if isAny(err, servicebus.ErrRight, servicebus.ErrCredential) {
				e.skip(name, "not checked: needs Manage")
			} else {
				e.skip(name, "not checked: see above")
			}
		}
	}
	switch {
	case e.topicErr != nil:
		unseen(e.topicErr, duplicateDetection)
	case e.topic.DuplicateDetection > 0:
		e.ok(duplicateDetection, "repetitions within %v are dropped", e.topic.DuplicateDetection)
	default:
		e.ok(duplicateDetection, "none: relays drop repetitions by themselves")
	}
	if e.subErr != nil {
		unseen(e.subErr, lockDuration, maxDeliveryCount, timeToLive, forwarding, filters)
		return
	}
	s := &e.sub
	judge := func(check string, good bool, outcome Outcome, remedy, format string, args ...any) {
		if good {
			outcome, remedy = OK, ""
		}
		e.report(check, outcome, remedy, format, args...)
	}
	judge(lockDuration, s.LockDuration >= shortLock, Warn, fmt.Sprintf("at least %v, better a minute", shortLock),
		"%v: messages in a relay's hands are renewed before", s.LockDuration)
	judge(maxDeliveryCount, s.MaxDeliveryCount >= fewDeliveries, Warn, "10, which is the default, or more",
		"a message is dead-lettered after %d deliveries", s.MaxDeliveryCount)
	switch life := s.TimeToLive; {
	case life >= 365*24*time.Hour:
		e.ok(timeToLive, "messages do not expire")
	default:
		judge(timeToLive, life >= shortLife, Warn, "longer than relays may ever be away, such as a day", "messages expire after %v", life)
	}
	if s.ForwardTo == "" {
		e.ok(forwarding, "none")
	} else {
		e.report(forwarding, Fail, "switch ForwardTo off, or give relays a subscription of their own", "everything is forwarded to another entity: no relay receives anything from it")
	}
	switch everything := s.EverythingMatches; {
	case everything:
		e.ok(filters, "everything passes")
	case len(s.Filters) == 0 || !slices.ContainsFunc(s.Filters, func(f string) bool { return f != "nothing" }):
		e.report(filters, Fail, "add a rule with a true filter (1=1)", "no rule lets anything pass: no relay receives anything")
	default:
		e.report(filters, Warn, "add a rule with a true filter (1=1), unless what the others leave out is meant to be",
			"only what matches passes (%s): messages of publishers that set only a body have no properties to match", strings.Join(s.Filters, ", "))
	}
}

// contents says what is in the subscription.
func (e *examination) contents() {
	switch {
	case e.deadErr == nil && len(e.dead) > 0:
		e.report(deadLetters, Warn, "read DeadLetterReason and DeadLetterErrorDescription of each: they name the field at fault; then remove them", "%s: %s",
			atLeast(len(e.dead), e.sub.DeadLetters), reasons(e.dead))
	case e.subErr == nil && e.sub.DeadLetters > 0:
		e.report(deadLetters, Warn, "read DeadLetterReason and DeadLetterErrorDescription of each: they name the field at fault; then remove them", "%d", e.sub.DeadLetters)
	case e.deadErr == nil || e.subErr == nil:
		e.ok(deadLetters, "none")
	default:
		e.skip(deadLetters, "not checked: %s", why(e.deadErr, "Listen or Manage"))
	}
	switch ahead, _ := e.inspect.Clock(); {
	case e.peekErr != nil:
		e.skip(backlog, "not checked: %s", why(e.peekErr, "Listen"))
	case len(e.waiting) == 0:
		e.ok(backlog, "nothing waits")
	default:
		age := time.Since(e.waiting[0].EnqueuedTime.Add(-ahead)).Round(time.Second)
		count := atLeast(len(e.waiting), e.sub.Active)
		if age < longWait {
			e.ok(backlog, "%s, the oldest for %v", count, max(age, 0))
			return
		}
		e.report(backlog, Warn, "see that a relay runs, consumes this subscription, and reaches Redis (its /readyz says)", "%s, the oldest for %v: nobody takes them, or not fast enough", count, age)
	}
}

// atLeast says how many there are: those that were seen, or those that the broker counts.
func atLeast(seen, counted int) string {
	switch n := max(seen, counted); {
	case n == 1:
		return "1 message"
	case n > counted && seen == most:
		return fmt.Sprintf("at least %d messages", n)
	default:
		return fmt.Sprintf("%d messages", n)
	}
}

// reasons counts dead letters by why they are. Whoever dead-letters may write anything there.
func reasons(dead []servicebus.Peeked) string {
	const enough = 5
	counts := map[string]int{}
	for _, m := range dead {
		reason := plain(m.Reason)
		if reason == "" {
			reason = "no reason given"
		}
		if len(reason) > 60 {
			reason = strings.ToValidUTF8(reason[:60], "") + "…"
		}
		counts[reason]++
	}
	var texts []string
	for i, reason := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return counts[b] - counts[a] }) {
		if i == enough {
			texts = append(texts, "…")
			break
		}
		texts = append(texts, fmt.Sprintf("%d %s", counts[reason], reason))
	}
	return strings.Join(texts, ", ")
}
