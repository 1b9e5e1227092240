package httpapi

import (
	"net/http"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
)

// The limits besides those of a limit.Door, as metrics and the log call them.
const (
	limitCaller  = "caller"
	limitTenant  = "tenant"
	limitWaiting = "waiting"
	limitStreams = "streams"
)

// What requests cost. Most cost one: one record is read, or none.
const (
	requestCost   = 1
	listCost      = 10 // up to maxEntries entries of an index are looked at
	idsForOneCost = 10 // of a batch
)

// batchCost is what a request costs that names n instances.
func batchCost(n int) int { return max((n+idsForOneCost-1)/idsForOneCost, requestCost) }

// A party is who asks, whatever token they show, or whose they are. Issuers do not share what they name.
type party struct{ issuer, name string }

func callerOf(who *auth.Principal) party { return party{who.Issuer, who.Subject} }

// rates bounds how fast requests may come.
type rates struct {
	door        *limit.Door
	callers     *limit.Buckets[party]
	tenants     *limit.Buckets[party]
	tenantClaim string
	told        *limit.Policies
}

func newRates(o *Options) rates {
	r := rates{
		door: limit.NewDoor(o.PerAddress, o.Failures), callers: limit.New[party](limitCaller, o.PerCaller),
		tenants: limit.NewShared[party](limitTenant, o.PerTenant), tenantClaim: o.TenantClaim,
	}
	r.told = limit.NewPolicies(r.callers.Policy(), r.tenants.Policy(), r.door.Policy())
	return r
}

// charge charges the caller and their tenant for all that a request costs: a part of it would be lost if the rest were not there.
func (r *rates) charge(w *boundedWriter, who *auth.Principal, cost int) error {
	now := time.Now()
	tenant := party{who.Issuer, who.Text(r.tenantClaim)}
	if tenant.name != "" {
		if quota, err := r.tenants.Check(tenant, cost, now); err != nil { // else it would cost the caller something
			w.quota = quota
			return err
		}
	}
	quota, err := r.callers.Take(callerOf(who), cost, now)
	if err == nil && tenant.name != "" {
		var all limit.Quota
		all, err = r.tenants.Take(tenant, cost, now)
		quota = limit.Nearest(quota, all)
	}
	if err != nil {
		w.quota = quota
		return err
	}
	w.quota = limit.Nearest(quota, w.quota)
	r.told.Tell(w.Header(), w.quota)
	return nil
}

// bearer says who asks, by a bearer token, and charges them.
func (a *API) bearer(w *boundedWriter, r *http.Request, cost int) (*auth.Principal, error) {
	who, err := auth.Authenticate(r, a.o.Verify)
	if err != nil {
		return nil, err
	}
	return who, a.rates.charge(w, who, cost)
}
