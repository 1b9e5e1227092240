package ingestapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/claim"
	"statusrelay/internal/policy"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

const (
	// publishTimeout is how long the broker may take. It is less than programs get to
	// stop, so that every request is answered.
	publishTimeout = 20 * time.Second
	// settleTimeout is how long it may take to write down what became of events, whether
	// or not the caller still waits.
	settleTimeout = 2 * time.Second
)

// An entry is one update of a request on its way.
type entry struct {
	message Message
	event   *claim.Event // nil: it has no name
	twin    *entry       // the same event, earlier in this request: what becomes of it becomes of this

	done   bool // published, or refused
	err    error
	detail string // for the caller, beside what the kind of the error says
}

func (e *entry) finish(err error, detail string) { e.done, e.err, e.detail = true, err, detail }

// publish judges every document by itself and publishes the good ones.
func (a *api) publish(r *http.Request, who *auth.Principal, documents [][]byte) []item {
	entries := make([]entry, len(documents))
	now, rules := a.Now(), a.Policy()
	parent, state := wire.Trace(r.Header.Get("Traceparent"), strings.Join(r.Header.Values("Tracestate"), ","))
	for i, document := range documents {
		e := &entries[i]
		if err := a.judge(e, who, rules, document, now); err != nil {
			e.finish(err, "")
		} else if e.message.Traceparent == "" {
			e.message.Traceparent, e.message.Tracestate = parent, state
		}
	}
	events := a.take(r.Context(), entries)
	a.stamp(r.Context(), entries)
	a.send(r.Context(), entries)
	if len(events) > 0 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), settleTimeout)
		defer cancel()
		a.Claims.Settle(ctx, events)
	}
	items := make([]item, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.twin != nil {
			e.err, e.detail = e.twin.err, e.twin.detail
		}
		if e.err != nil {
			items[i] = a.refused(r.Context(), i, e)
		} else {
			items[i] = item{Index: i, Status: http.StatusAccepted, Title: "Accepted"}
		}
	}
	return items
}

// judge decodes a document into an entry and says what is wrong with it.
func (a *api) judge(e *entry, who *auth.Principal, rules *policy.Policy, document []byte, now time.Time) error {
	decode := wire.Decode
	if a.Stamp != nil {
		decode = wire.DecodeUnstamped
	}
	m, err := decode(document, now)
	if err != nil {
		return err
	}
	u := &m.Update
	if u.Hub == "" {
		u.Hub = a.DefaultHub
	}
	if !who.May(auth.Publish, u.Hub) || !rules.MayPublish(who.Claims, u.Hub, u.Labels) {
		return auth.ErrForbidden
	}
	if m.ID != "" && m.Source != "" { // CloudEvents 1.0 section 3.1.1: together they name an event
		content := wire.Encode(wire.Message{Update: *u, ID: "-", Source: "-"}, time.Time{})
		id := m.ID
		if u.Generation != nil && u.Sequence != nil {
			// An activity that is retried says something else at the same position, and so under an id that is made of it.
			// Which of the two counts is for the merge to decide: here they are two events.
			id += string(content)
		}
		e.event = claim.Of(who.Issuer, who.Subject, m.Source, id, content)
		if u.Generation == nil || u.Sequence == nil {
			e.message.MessageID = e.event.MessageID()
		}
	}
	e.message.Message = m
	return nil
}

// take finishes the entries that are known, and returns the events that it has asked for.
func (a *api) take(ctx context.Context, entries []entry) (events []*claim.Event) {
	if a.Claims == nil {
		return nil
	}
	asked := map[string]*entry{}
	for i := range entries {
		e := &entries[i]
		if e.done || e.event == nil {
			continue
		}
		switch first := asked[e.event.Name]; {
		case first == nil:
			asked[e.event.Name] = e
			events = append(events, e.event)
		case first.event.Content == e.event.Content:
			e.done, e.twin = true, first
		default:
			e.finish(usedBefore(), "")
		}
	}
	a.Claims.Take(ctx, events)
	for _, e := range asked {
		switch e.event.Verdict {
		case claim.Published:
			e.finish(nil, "")
		case claim.Busy:
			e.finish(status.ErrUnavailable, "id: the same event is being published by another request")
		case claim.Other:
			e.finish(usedBefore(), "")
		}
	}
	return events
}

// usedBefore is what a publisher hears that gives every event the same id: it would
// lose all but the first.
func usedBefore() error {
	return &status.InvalidError{Reason: status.ReasonInvalid, Field: "id", Detail: "used for another event of this source"}
}

// stamp gives positions to updates that have none, the same as before to an event that
// was tried before.
func (a *api) stamp(ctx context.Context, entries []entry) {
	if a.Stamp == nil {
		return
	}
	var bare []*entry
	var updates []*status.Update
	for i := range entries {
		e := &entries[i]
		u := &e.message.Update
		if e.done || u.Generation != nil || u.Sequence != nil {
			continue
		}
		if e.event != nil && e.event.Stamp != nil {
			stamp := *e.event.Stamp
			u.Generation, u.Sequence = &stamp.Generation, &stamp.Sequence
			continue
		}
		bare, updates = append(bare, e), append(updates, u)
	}
	if len(bare) == 0 {
		return
	}
	for i, err := range a.Stamp(ctx, updates) {
		e := bare[i]
		if err != nil {
			e.finish(fmt.Errorf("stamp: %w", err), "it has no position, and none can be given now")
		} else if e.event != nil {
			e.event.Stamp = &claim.Stamp{Generation: *updates[i].Generation, Sequence: *updates[i].Sequence}
		}
	}
}

// send publishes what is left.
func (a *api) send(ctx context.Context, entries []entry) {
	var sent []*entry
	var messages []Message
	for i := range entries {
		if e := &entries[i]; !e.done {
			sent, messages = append(sent, e), append(messages, e.message)
		}
	}
	if len(sent) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	told := false
	for i, err := range a.Publish(ctx, messages) {
		e := sent[i]
		if errors.Is(err, status.ErrMayNotPublish) && !told {
			told = true // once is enough: it befalls all of them
			a.Logger.ErrorContext(ctx, "the notifier is not allowed to publish", "error", err)
		}
		e.finish(err, "")
		if e.event != nil {
			e.event.Published = err == nil
		}
	}
}

func (a *api) refused(ctx context.Context, index int, e *entry) item {
	p := problem.Of(e.err)
	if p.Status == http.StatusInternalServerError {
		a.Logger.ErrorContext(ctx, "publishing", "error", e.err)
	}
	if p.Status == http.StatusBadRequest {
		p.Status = http.StatusUnprocessableEntity // readable, but not valid
	}
	detail := p.Detail
	if p.Field != "" {
		detail = p.Field + ": " + detail
	}
	if e.detail != "" {
		detail = e.detail
	}
	return item{Index: index, Status: p.Status, Title: p.Title, Detail: detail, cause: e.err}
}
