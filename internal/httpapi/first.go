package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// Interest says which instances somebody wants to whoever bridges their hub: has a runtime that does not publish asked how they are.
type Interest interface {
	Bridged(hub string) bool
	// Want says that somebody wants an instance, and that it exists, or may. It does not block.
	Want(k status.Key, exists bool)
}

// bridged reports whether instances of a hub can be fetched.
func (a *API) bridged(hub string) bool { return a.o.Interest != nil && a.o.Interest.Bridged(hub) }

// find returns an instance, which may be stale, and the audience as which somebody may see it. What there is not, or what they may
// not see, is an ErrNotFound; of a bridged hub, when it has not appeared in the time of a first use.
func (a *API) find(w http.ResponseWriter, r *http.Request, who *auth.Principal, key status.Key) (*status.Record, *policy.Audience, error) {
	record, err := a.latest(r.Context(), key)
	if err != nil {
		return nil, nil, err
	}
	audience := a.audience(who, record)
	if a.bridged(key.Hub) {
		if audience == nil {
			found, err := a.first(w, r, who, []status.Key{key})
			if err != nil {
				return nil, nil, err
			}
			record = found[0]
			audience = a.audience(who, record)
		} else {
			a.o.Interest.Want(key, true)
		}
	}
	if audience == nil {
		return nil, nil, status.ErrNotFound
	}
	return record, audience, nil
}

// latest reads one instance, nil when there is none. It is stale if it has been silent for too long.
func (a *API) latest(ctx context.Context, key status.Key) (*status.Record, error) {
	reading, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	records, err := a.o.Store.Latest(reading, []status.Key{key})
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	return a.aged(records[0]), nil
}

// aged returns the record, stale if it is; nil if there is none.
func (a *API) aged(r *status.Record) *status.Record {
	if r == nil || r.Purged {
		return nil
	}
	return r.Aged(a.o.Source.Policy().StaleAfter(r), time.Now())
}

// audience is nil when somebody sees nothing, for whatever reason.
func (a *API) audience(who *auth.Principal, r *status.Record) *policy.Audience {
	if r == nil {
		return nil
	}
	return a.o.Source.Audience(who, r)
}

// What became of a first use, for the metrics.
const (
	firstFound   = "found"
	firstMissing = "missing"
	firstRefused = "refused"
)

// first says that instances of a bridged hub are wanted of which the caller sees nothing, waits until all of them have been fetched and
// they do, for a bounded time, and returns those, nil in place of the others. What exists and is not for the caller is asked for and
// waited for like what does not: how long it takes tells nothing. Each costs the runtime a read, so that a caller may ask for some
// in a second; more are not there, and nobody hears of them.
func (a *API) first(w http.ResponseWriter, r *http.Request, who *auth.Principal, keys []status.Key) ([]*status.Record, error) {
	found := make([]*status.Record, len(keys))
	var places []int // in found
	for i, k := range keys {
		if !reader.MayAsk(who, k) {
			continue
		}
		if _, err := a.firsts.Take(callerOf(who), 1, time.Now()); err == nil {
			a.o.Interest.Want(k, false)
			places = append(places, i)
		}
	}
	a.metrics.firsts.WithLabelValues(firstRefused).Add(float64(len(keys) - len(places)))
	if len(places) == 0 {
		return found, nil
	}
	n := 0
	defer func() {
		a.metrics.firsts.WithLabelValues(firstFound).Add(float64(n))
		a.metrics.firsts.WithLabelValues(firstMissing).Add(float64(len(places) - n))
	}()
	if a.o.FirstWait == 0 || a.stops() {
		return found, nil
	}
	leave, err := a.waiting.enter(who)
	if err != nil {
		return found, nil //nolint:nilerr // it is fetched all the same, and there when the caller comes again
	}
	defer leave()
	w.(*boundedWriter).first = true

	wake := make(chan struct{}, 1)
	cells := make([]cell, len(places))
	for i, place := range places {
		c := &cells[i]
		c.wake = wake
		a.o.Source.Hub().Watch(&c.Watch, keys[place], c)
		defer c.Close()
		c.Want(true)
	}
	v := a.newVigil(who, a.o.FirstWait)
	defer v.stop()
	for {
		if over, err := v.next(r.Context(), wake); err != nil || over {
			return found, err
		}
		for i, place := range places {
			s := cells[i].Take()
			if s == nil || s.Gone() || found[place] != nil || a.audience(who, s.Record) == nil {
				continue
			}
			found[place] = s.Record
			if n++; n == len(places) {
				return found, nil
			}
		}
	}
}

// A vigil is the time for which a request waits.
type vigil struct {
	who     *auth.Principal
	timeout *time.Timer
	expiry  *time.Timer
	api     *API
	closing <-chan struct{}
	end     <-chan time.Time // nil until the server stops
}

func (a *API) newVigil(who *auth.Principal, wait time.Duration) *vigil {
	return &vigil{who: who, timeout: time.NewTimer(wait), expiry: newExpiry(who), api: a, closing: a.closing}
}

func (v *vigil) stop() {
	v.timeout.Stop()
	v.expiry.Stop()
}

// next waits for the request to be woken, or reports that its time is over. It is an error that the credential is no longer good, or
// that the caller has left.
func (v *vigil) next(ctx context.Context, wake <-chan struct{}) (over bool, err error) {
	for {
		select {
		case <-wake:
		case <-v.timeout.C:
			over = true
		case <-v.end:
			over = true
		case <-v.closing:
			v.closing, v.end = nil, v.api.farewell()
			continue
		case <-v.expiry.C:
			return false, auth.ErrExpired
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if v.who.Expired(time.Now()) { // of a key that was withdrawn: no timer tells of that
			return false, auth.ErrExpired
		}
		return over, nil
	}
}
