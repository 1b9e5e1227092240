package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
	"statusrelay/internal/watcher"
	"statusrelay/internal/wire"
)

const (
	someSkew = 30 * time.Second // what issuers' and relays' clocks are forgiven by default
	muchSkew = 5 * time.Minute  // half of what a generation may lie ahead before its update is dead-lettered
)

// try publishes the probe, waits for it at the relay, and takes it back.
func (e *examination) try(ctx context.Context) {
	switch {
	case e.o.NoProbe:
		e.skip(probing, "not checked: it was not to be sent (--no-probe)")
	case e.sendErr != nil:
		e.skip(probing, "not checked: nothing can be sent")
	}
	if e.o.NoProbe || e.sendErr != nil {
		e.time(nil)
		if e.o.Relay == "" {
			e.skip(arrival, "not checked: no relay is named (--relay)")
		}
		return
	}
	publisher, err := servicebus.NewPublisher(e.bus)
	if err != nil {
		e.report(probing, Fail, "see connection", "%v", err)
		return
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.o.StepTimeout)
		defer cancel()
		_ = publisher.Close(ctx) // what was to be sent has been
	}()
	began := time.Now()
	err = e.publish(ctx, publisher, 1, status.KindLifecycle)
	span := [2]time.Time{began, time.Now()}
	if err != nil {
		e.report(probing, Fail, "try again; if it stays so, see whether the topic is full (its size, and that of its subscriptions)", "%v", err)
		e.time(nil)
	} else {
		e.ok(probing, "%s was published in %v", e.probe, span[1].Sub(span[0]).Round(time.Millisecond))
		e.time(e.enqueued(ctx, span))
	}
	seen := int64(0)
	switch {
	case e.o.Relay == "":
		e.skip(arrival, "not checked: no relay is named (--relay)")
	case err == nil:
		seen = e.arrives(ctx, span[0])
	}
	e.takeBack(context.WithoutCancel(ctx), publisher, seen) // whatever has happened: it may have been stored
}

// publish publishes an update of the probe. Its generation is the first that there can be: nothing here depends on clocks.
func (e *examination) publish(ctx context.Context, to *servicebus.Publisher, sequence int64, kind status.Kind) error {
	generation := int64(1)
	u := &status.Update{
		Hub: e.probe.Hub, InstanceID: e.probe.InstanceID, Name: e.o.Name, Labels: e.o.Labels,
		Generation: &generation, Sequence: &sequence, Kind: kind, LastUpdatedTime: time.Now().UTC(),
	}
	if kind == status.KindLifecycle {
		u.RuntimeStatus = status.Running
	}
	ctx, cancel := context.WithTimeout(ctx, e.o.StepTimeout)
	defer cancel()
	return to.Publish(ctx, []servicebus.Outgoing{{Update: u, Body: wire.Encode(wire.Message{Update: *u}, time.Now())}})[0]
}

// enqueued is how far the broker's clock is ahead, by the time that it has put on the probe; nil where that cannot be seen any more.
func (e *examination) enqueued(ctx context.Context, sent [2]time.Time) *time.Duration {
	if e.peekErr != nil {
		return nil
	}
	m, found := e.find(ctx, false)
	if !found {
		return nil
	}
	var ahead time.Duration
	switch at := m.EnqueuedTime; {
	case at.Before(sent[0].Truncate(time.Millisecond)): // of which the broker's times are
		ahead = at.Sub(sent[0])
	case at.After(sent[1]):
		ahead = at.Sub(sent[1])
	}
	return &ahead
}

// find looks for the probe where it waits, or among the dead letters.
func (e *examination) find(ctx context.Context, deadLetters bool) (servicebus.Peeked, bool) {
	ctx, cancel := context.WithTimeout(ctx, e.o.StepTimeout)
	defer cancel()
	messages, err := e.inspect.Peek(ctx, deadLetters, most)
	if err != nil {
		return servicebus.Peeked{}, false
	}
	i := slices.IndexFunc(messages, func(m servicebus.Peeked) bool { return strings.HasPrefix(m.ID, e.probe.String()+"/") })
	if i < 0 {
		return servicebus.Peeked{}, false
	}
	return messages[i], true
}

// time says what is wrong with this machine's clock, by the probe or else by the administration API.
func (e *examination) time(byProbe *time.Duration) {
	ahead, known := e.inspect.Clock()
	by := "the administration API"
	if byProbe != nil {
		ahead, known, by = *byProbe, true, "the broker"
	}
	direction := "ahead of"
	if ahead > 0 {
		direction = "behind"
	}
	const remedy = "synchronise this machine's clock (NTP): updates whose generation lies 10 minutes ahead are dead-lettered, and tokens are signed for two hours"
	switch off := ahead.Abs().Round(time.Second); {
	case !known:
		e.skip(clock, "not checked: the probe was gone before it could be looked at, or needs Listen, and no administration API answers")
	case off > muchSkew:
		e.report(clock, Fail, remedy, "this machine is %v %s %s", off, direction, by)
	case off > someSkew:
		e.report(clock, Warn, remedy, "this machine is %v %s %s", off, direction, by)
	default:
		e.ok(clock, "within %v of %s", someSkew, by)
	}
}

// watcher follows the probe.
func (e *examination) watcher(after int64) (*watcher.Watcher, error) {
	return watcher.New(watcher.Options{Relay: e.o.Relay, Token: e.o.Token, Key: e.probe, After: after, Patience: e.o.Wait})
}

// arrives waits until the relay shows the probe, and returns the version in which it did; 0: it did not.
func (e *examination) arrives(ctx context.Context, sent time.Time) (version int64) {
	w, err := e.watcher(0)
	if err == nil {
		err = w.Follow(ctx, func(c watcher.Change) bool { version = c.Version; return false })
	}
	var refused *watcher.RefusedError
	switch {
	case err == nil:
		e.ok(arrival, "the probe was there %v after it was sent", time.Since(sent).Round(time.Millisecond))
		return version
	case errors.As(err, &refused):
		remedy := "check the URL"
		switch code := refused.Status; {
		case code == 401:
			remedy = "get a token that the relay accepts (auth.issuers, auth.audiences, its age), or an API key of its file"
		case code == 403:
			remedy = "use a credential with the right to read hub " + e.probe.Hub
		case code == 429, code >= 500:
			remedy = "see what the relay's /readyz and log say"
		}
		e.report(arrival, Fail, remedy, "%v", err)
	case !errors.Is(err, watcher.ErrGivenUp):
		e.report(arrival, Fail, "check the URL", "%v", err)
	case !errors.Is(err, watcher.ErrUnknown):
		e.report(arrival, Fail, "check the URL, and that this machine reaches it", "%v", err)
	default:
		e.missing(ctx)
	}
	return 0
}

// missing says where a probe is that the relay does not show.
func (e *examination) missing(ctx context.Context) {
	const hidden = "use a token whose holder an audience of the policy admits for this hub and name (docs/policy.md), or give the probe what it goes by: --name, --label owner=SUBJECT"
	late := fmt.Sprintf("the relay does not show the probe within %v", e.o.Wait)
	if e.peekErr != nil {
		e.report(arrival, Fail, "see that a relay runs, consumes this topic and reaches Redis (its /readyz says); else "+hidden,
			"%s: either none takes it from the topic, or the policy hides it from this token; which of the two needs Listen to tell", late)
		return
	}
	if m, found := e.find(ctx, true); found {
		e.report(arrival, Fail, "see what the description says; a clock that is wrong, or a relay of another version, may be the cause",
			"%s: it was dead-lettered with reason %s: %s", late, m.Reason, m.Description)
		return
	}
	if _, found := e.find(ctx, false); found || len(e.waiting) == most {
		e.report(arrival, Fail, "see that a relay runs, consumes subscription "+e.bus.Subscription+", and reaches Redis (its /readyz says)",
			"%s: it still waits in the subscription", late)
		return
	}
	e.report(arrival, Warn, hidden+"; or see whether whoever takes messages from this subscription is the relay that was asked",
		"%s, and yet it was taken from the subscription: the policy hides it from the holder of this token, who is told the same as of an instance that does not exist", late)
}

// takeBack purges the probe, and waits until the relay no longer shows it if it did in some version.
func (e *examination) takeBack(ctx context.Context, to *servicebus.Publisher, seen int64) {
	const remedy = "it expires by itself (redis.ttl of the relay); or send: notifier send --hub %s --id %s --kind purged --generation 1"
	if err := e.publish(ctx, to, 2, status.KindPurged); err != nil {
		e.report(cleanup, Warn, fmt.Sprintf(remedy, e.probe.Hub, e.probe.InstanceID), "the probe could not be purged: %v", err)
		return
	}
	if seen == 0 {
		e.ok(cleanup, "the purge of the probe is published")
		return
	}
	gone := false
	w, err := e.watcher(seen)
	if err == nil {
		err = w.Follow(ctx, func(c watcher.Change) bool { gone = c.Gone; return !gone })
	}
	if err != nil || !gone {
		e.report(cleanup, Warn, fmt.Sprintf(remedy, e.probe.Hub, e.probe.InstanceID), "the relay still shows the probe: %v", err)
		return
	}
	e.ok(cleanup, "the probe is purged, and the relay no longer shows it")
}
