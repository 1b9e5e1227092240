package httpapi

import (
	"net/http"
	"net/netip"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
)

// The limits, as metrics and the log call them.
const (
	limitCaller   = "caller"
	limitAddress  = "address"
	limitFailures = "failures"
	limitWaiting  = "waiting"
	limitStreams  = "streams"
)

// What requests cost. Most cost one: one record is read, or none.
const (
	requestCost   = 1
	listCost      = 10 // up to maxEntries entries of an index are looked at
	idsForOneCost = 10 // of a batch
)

// batchCost is what a request costs that names n instances.
func batchCost(n int) int { return max((n+idsForOneCost-1)/idsForOneCost, requestCost) }

// A caller is who asks, whatever token they show.
type caller struct{ issuer, subject string }

func callerOf(who *auth.Principal) caller { return caller{who.Issuer, who.Subject} }

// rates bounds how fast requests may come.
type rates struct {
	callers   *limit.Buckets[caller]
	addresses *limit.Buckets[netip.Addr]
	failures  *limit.Buckets[netip.Addr]
}

// admit charges the address for a request, before it is known who asks. Those from an address from which too many credentials
// proved nothing are refused whatever they show: a guess that is answered is what slowing down is about.
func (r *rates) admit(from netip.Addr, now time.Time) error {
	if wait := r.failures.Wait(from, now); wait > 0 {
		return &limit.Error{Limit: limitFailures, RetryAfter: limit.Scattered(wait)}
	}
	if wait := r.addresses.Take(from, requestCost, now); wait > 0 {
		return &limit.Error{Limit: limitAddress, RetryAfter: limit.Scattered(wait)}
	}
	return nil
}

// charge charges the caller for all that a request costs: a part of it would be lost if the rest were not there.
func (r *rates) charge(who *auth.Principal, cost int) error {
	if wait := r.callers.Take(callerOf(who), cost, time.Now()); wait > 0 {
		return &limit.Error{Limit: limitCaller, RetryAfter: wait}
	}
	return nil
}

// bearer says who asks, by a bearer token, and charges them.
func (a *API) bearer(r *http.Request, cost int) (*auth.Principal, error) {
	who, err := auth.Authenticate(r, a.o.Verify)
	if err != nil {
		return nil, err
	}
	return who, a.rates.charge(who, cost)
}
