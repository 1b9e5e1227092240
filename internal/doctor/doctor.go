// Package doctor finds out what keeps updates from arriving: it follows the
// way of one from the configuration over the namespace, its topic and its
// subscription to a relay that shows it, and says at each step what is wrong
// and what to do.
//
// It promises to change nothing but by its probe, an instance of its own that
// it purges, to go on past what is wrong as far as that makes sense, and to
// say no secret. What it cannot look at is reported as not checked.
//
//	findings := doctor.Run(ctx, doctor.Options{ServiceBus: options, Hub: "default", Relay: url, Token: secret.Current})
//	ok := doctor.Healthy(findings)
//
// docs/doctor.md lists what it can find.
package doctor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
)

// Outcome is how a check has ended.
type Outcome string

// The outcomes that there are.
const (
	OK   Outcome = "ok"
	Warn Outcome = "warn" // it works, and should be looked at
	Fail Outcome = "fail"
	Skip Outcome = "skip" // not checked
)

// A Finding is what a check has found.
type Finding struct {
	Check   string  `json:"check"`
	Outcome Outcome `json:"outcome"`
	Detail  string  `json:"detail"`
	Remedy  string  `json:"remedy,omitempty"`
}

// Healthy reports that no check has failed.
func Healthy(findings []Finding) bool {
	return !slices.ContainsFunc(findings, func(f Finding) bool { return f.Outcome == Fail })
}

// Options say what to look at.
type Options struct {
	// ServiceBus is as a publisher has it, with the Subscription that relays share ("": it is not looked at) and Management.
	ServiceBus servicebus.Options

	// Hub, Name and Labels are those of the probe, as far as who may see it depends on them.
	Hub, Name string
	Labels    map[string]string
	NoProbe   bool // publish nothing

	Relay string                 // URL of a relay; "": none is asked
	Token func() (string, error) // for the relay; nil: none
	Wait  time.Duration          // for the probe to arrive; default 15 s

	StepTimeout time.Duration // for each question to the broker; default 15 s

	Report func(Finding) // is told of each finding as it is made; nil: nobody is
}

// most is how many messages are peeked at.
const most = 1000

// Run makes all checks.
func Run(ctx context.Context, o Options) []Finding {
	if o.Wait == 0 {
		o.Wait = 15 * time.Second
	}
	if o.StepTimeout == 0 {
		o.StepTimeout = 15 * time.Second
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails
	e := &examination{
		o: o, bus: o.ServiceBus, probe: status.Key{Hub: o.Hub, InstanceID: "doctor-" + hex.EncodeToString(id)},
	}
	if at, ok := e.connection(); ok && e.network(ctx, at) {
		e.look(ctx)
		e.links()
		if !e.unusable() {
			e.subscription()
			e.settings()
			e.contents()
		}
		e.try(ctx)
	}
	for _, name := range checks {
		if !slices.ContainsFunc(e.findings, func(f Finding) bool { return f.Check == name }) {
			e.skip(name, "not checked: see above")
		}
	}
	return e.findings
}

// The checks of Run, in their order.
const (
	connection         = "connection"
	dns                = "dns"
	tcp                = "tcp"
	secure             = "tls"
	credential         = "credential"
	topic              = "topic"
	send               = "send"
	subscription       = "subscription"
	sessions           = "sessions"
	management         = "management"
	duplicateDetection = "duplicate-detection"
	lockDuration       = "lock-duration"
	maxDeliveryCount   = "max-delivery-count"
	timeToLive         = "time-to-live"
	forwarding         = "forwarding"
	filters            = "filters"
	deadLetters        = "dead-letters"
	backlog            = "backlog"
	probing            = "probe"
	clock              = "clock"
	arrival            = "relay"
	cleanup            = "cleanup"
)

var checks = []string{
	connection, dns, tcp, secure, credential, topic, send, subscription, sessions, management, duplicateDetection, lockDuration, maxDeliveryCount,
	timeToLive, forwarding, filters, deadLetters, backlog, probing, clock, arrival, cleanup,
}

// An examination is one Run.
type examination struct {
	o        Options
	bus      servicebus.Options
	inspect  *servicebus.Inspector
	probe    status.Key
	findings []Finding

	// What look has seen: each with the reason why not.
	sendErr, peekErr, deadErr, topicErr, subErr error

	waiting, dead []servicebus.Peeked // up to most of each
	topic         servicebus.TopicProperties
	sub           servicebus.SubscriptionProperties
}

func (e *examination) report(check string, outcome Outcome, remedy, format string, args ...any) {
	f := Finding{Check: check, Outcome: outcome, Detail: plain(fmt.Sprintf(format, args...)), Remedy: remedy}
	e.findings = append(e.findings, f)
	if e.o.Report != nil {
		e.o.Report(f)
	}
}

func (e *examination) ok(check, format string, args ...any) { e.report(check, OK, "", format, args...) }

func (e *examination) skip(check, format string, args ...any) {
	e.report(check, Skip, "", format, args...)
}

// plain is a text on one line without what a terminal might obey: brokers and relays have a say in it.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return '\ufffd'
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// look asks the broker everything that needs no message.
func (e *examination) look(ctx context.Context) {
	step := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, e.o.StepTimeout)
		defer cancel()
		return do(ctx)
	}
	e.sendErr = step(e.inspect.MaySend)
	if e.unusable() {
		return
	}
	e.topicErr = step(func(ctx context.Context) (err error) { e.topic, err = e.inspect.Topic(ctx); return err })
	switch {
	case errors.Is(e.sendErr, servicebus.ErrNoEntity):
		e.subErr = errors.New("there is no topic")
	case e.bus.Subscription == "":
		e.subErr = errors.New("no subscription is named (--subscription)")
	}
	if e.subErr != nil {
		e.peekErr, e.deadErr = e.subErr, e.subErr
		return
	}
	e.subErr = step(func(ctx context.Context) (err error) { e.sub, err = e.inspect.Subscription(ctx); return err })
	e.peekErr = step(func(ctx context.Context) (err error) { e.waiting, err = e.inspect.Peek(ctx, false, most); return err })
	e.deadErr = step(func(ctx context.Context) (err error) { e.dead, err = e.inspect.Peek(ctx, true, most); return err })
}

// unusable reports that there is no connection on which anything else could be asked.
func (e *examination) unusable() bool {
	return e.sendErr != nil && !isAny(e.sendErr, servicebus.ErrRight, servicebus.ErrNoEntity, servicebus.ErrDisabled)
}

// why is why something was not checked, for lack of a right or else.
func why(err error, right string) string {
	if isAny(err, servicebus.ErrRight, servicebus.ErrCredential) {
		return "needs " + right
	}
	return err.Error()
}

func isAny(err error, kinds ...error) bool {
	return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
}
