package httpapi

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/hub"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// instance answers with the caller's view of one instance: at once, when it has changed, or as a stream.
func (a *API) instance(w *boundedWriter, r *http.Request) (int, error) {
	p := parseParams(r)
	after := p.number("after", 0, status.MaxInteger, 0)
	key := a.key(r, p)
	if wantsStream(r) {
		return a.instanceStream(w, r, p, key, after)
	}
	who, err := a.authenticateTo(w, r, p, key)
	if err != nil {
		return 0, err
	}
	tags, err := parseEntityTags(r.Header)
	if err != nil {
		return 0, err
	}
	if p.has("after") && tags.conditional() {
		return 0, invalid("after", "not together with If-None-Match")
	}
	record, audience, err := a.find(w, r, who, key)
	if err != nil {
		return 0, err
	}
	s := seen{record, audience.View(record)}
	if !tags.match(s.view.ETag) && record.Version > after {
		return a.respond(w, s, "")
	}
	wait := prefersWait(r.Header, a.o.MaxWait)
	if wait == 0 || a.stops() {
		return a.notModified(w, s, "")
	}
	return a.await(w, r, who, known{s, tags, after}, wait)
}

// A seen is a record as a caller sees it.
type seen struct {
	record *status.Record
	view   policy.View
}

// see returns what a caller sees of a record. What they may not see is an ErrNotFound, as if it did not exist.
func (a *API) see(who *auth.Principal, r *status.Record) (seen, error) {
	audience := a.audience(who, r)
	if audience == nil {
		return seen{}, status.ErrNotFound
	}
	return seen{r, audience.View(r)}, nil
}

func (a *API) respond(w http.ResponseWriter, s seen, preference string) (int, error) {
	a.describe(w.Header(), s, preference)
	return writeJSON(w, http.StatusOK, s.view.JSON), nil
}

func (a *API) notModified(w http.ResponseWriter, s seen, preference string) (int, error) {
	a.describe(w.Header(), s, preference)
	w.WriteHeader(http.StatusNotModified)
	return http.StatusNotModified, nil
}

// describe sets the headers of a view.
func (a *API) describe(h http.Header, s seen, preference string) {
	h.Set("ETag", s.view.ETag)
	h.Set("Cache-Control", "private, no-cache")
	if preference != "" {
		h.Set("Preference-Applied", preference)
	}
	if after := a.retryAfter(s.record, time.Now()); after > 0 {
		h.Set("Retry-After", seconds(after))
	}
}

// retryAfter is when to ask again: when the next change is to be expected from those before, or, of an instance that has
// been silent for longer than that, after as long a time again. An ended one need not be asked again.
func (a *API) retryAfter(r *status.Record, now time.Time) time.Duration {
	if r.Terminal() {
		return 0
	}
	return min(max(r.Interval, now.Sub(r.Changed()), a.o.RetryMin), a.o.RetryMax)
}

// seconds is a duration as Retry-After has it.
func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

// writeJSON writes a body, with the end of line that people who read it in terminals want.
func writeJSON(w http.ResponseWriter, code int, body []byte) int {
	body = append(slices.Clip(body), '\n') // in an array of its own: others may read, and answer with, the same
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, _ = w.Write(body) //nolint:gosec // G705: it is JSON, and says so, under nosniff; and the client may be gone
	return code
}

// known is what a caller has: a view, or one of those with the tags, or all up to a version.
type known struct {
	seen
	tags  entityTags
	after int64
}

// news reports whether that is not what the caller has.
func (k *known) news(s seen) bool {
	return s.view.ETag != k.view.ETag && !k.tags.has(s.view.ETag) && s.record.Version > k.after
}

// await answers when the caller's view is no longer the one that they have, or when they have waited long enough. Meanwhile
// the store is not asked: the hub tells what changes.
//
// The server's deadline for reading a request is left alone, here and by streams: net/http lifts it when there is no body. When
// there is one, the server reads it before it answers, and who keeps it back would keep the connection.
func (a *API) await(w http.ResponseWriter, r *http.Request, who *auth.Principal, has known, wait time.Duration) (int, error) {
	leave, err := a.waiting.enter(who)
	if err != nil {
		return 0, err
	}
	defer leave()
	preference := "wait=" + seconds(wait)
	var c cell
	c.wake = make(chan struct{}, 1)
	a.o.Source.Hub().Watch(&c.Watch, has.record.Key(), &c)
	defer c.Close()
	c.Want(true)

	v := a.newVigil(who, wait)
	defer v.stop()
	for {
		over, err := v.next(r.Context(), c.wake)
		switch {
		case err != nil:
			return 0, err
		case over:
			return a.conclude(w, who, &has, preference)
		}
		snapshot := c.Take()
		switch {
		case snapshot == nil:
			continue
		case snapshot.Gone():
			return 0, status.ErrNotFound
		}
		audience := a.o.Source.Audience(who, snapshot.Record)
		if audience == nil {
			return 0, status.ErrNotFound
		}
		now := seen{snapshot.Record, a.o.Source.Sight(snapshot, audience).View}
		if has.news(now) {
			return a.respond(w, now, preference)
		}
		has.seen = now
	}
}

// conclude answers who has waited long enough. No version tells that the policy has changed meanwhile.
func (a *API) conclude(w http.ResponseWriter, who *auth.Principal, has *known, preference string) (int, error) {
	now, err := a.see(who, a.aged(has.record))
	switch {
	case err != nil:
		return 0, err
	case has.news(now):
		return a.respond(w, now, preference)
	}
	return a.notModified(w, now, preference)
}

// A cell is a watch whose reader is a request.
type cell struct {
	hub.Watch
	wake chan struct{}
}

// Wake is called by the hub.
func (c *cell) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// newExpiry returns a timer that fires when a principal's credential is no longer good.
func newExpiry(who *auth.Principal) *time.Timer {
	if who.Expires.IsZero() {
		t := time.NewTimer(0)
		t.Stop() // and never fires (Go 1.23)
		return t
	}
	return time.NewTimer(time.Until(who.Expires))
}
