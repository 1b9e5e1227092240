package durablehttp

import (
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/time/rate"
)

const (
	// trips is how many requests in a row may fail before the runtime is left alone.
	trips = 5
	// never is longer than anything waits.
	never = 24 * time.Hour
	// limitedPause is how long it is left alone after a 429 that does not say.
	limitedPause = 5 * time.Second
)

// A gate decides when the runtime may be asked: at a rate, not before the time that
// it has asked for itself, and while it fails only by one request now and then, with
// pauses that grow. (gobreaker, the usual library, has one pause that does not grow,
// and cannot say when to come back, which a schedule has to know.)
type gate struct {
	rate    *rate.Limiter
	backoff *backoff.ExponentialBackOff

	failures int
	open     bool      // it fails
	probing  bool      // open, and one request is on its way
	until    time.Time // nobody asks before
}

func newGate(perSecond float64) *gate {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = time.Second, time.Minute, 2, 0.2
	return &gate{rate: rate.NewLimiter(rate.Limit(perSecond), 1), backoff: b}
}

// wait is 0 if a request may be made now, which is then counted, and else how long
// to wait at least; limited: because of the rate.
func (g *gate) wait(now time.Time) (d time.Duration, limited bool) {
	switch {
	case g.probing:
		return never, false
	case now.Before(g.until):
		return g.until.Sub(now), false
	}
	r := g.rate.ReserveN(now, 1)
	if d := r.DelayFrom(now); d > 0 {
		r.CancelAt(now)
		return d, true
	}
	g.probing = g.open
	return 0, false
}

// take notes what came of a request, and reports whether the gate has opened or shut
// to all but one.
func (g *gate) take(r reply, now time.Time) (turned bool) {
	if r.retryAfter > 0 {
		g.hold(now.Add(r.retryAfter))
	}
	switch r.outcome {
	case storeAway:
		g.probing = false
		return false
	case limited:
		g.probing = false
		if r.retryAfter == 0 {
			g.hold(now.Add(limitedPause))
		}
		return false
	case refused:
		if r.newKey {
			g.probing = false
			return false
		}
		g.failures = trips
	case unreachable, troubled:
		g.failures++
	default: // it answers
		g.failures, g.probing = 0, false
		g.backoff.Reset()
		turned, g.open = g.open, false
		return turned
	}
	if g.failures < trips || g.open && !g.probing { // those that were on their way count no more
		return false
	}
	turned, g.open, g.probing = !g.open, true, false
	g.hold(now.Add(g.backoff.NextBackOff()))
	return turned
}

func (g *gate) hold(until time.Time) {
	if until.After(g.until) {
		g.until = until
	}
}
