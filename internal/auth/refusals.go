package auth

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// The kinds of credential besides tokens, and why they are refused, as metrics call them.
const (
	kindAPIKey = "api_key"
	kindLink   = "link"
	kindTicket = "ticket"

	reasonMalformed  = "malformed"
	reasonUnaccepted = "unaccepted" // there are none of that kind here
	reasonUnknown    = "unknown"    // withdrawn or wrong; of a ticket: used
	reasonExpired    = "expired"
	reasonSignature  = "signature"  // none by a key that we have
	reasonTooLong    = "too_long"   // good for longer than any may be
	reasonOrigin     = "origin"     // issued to another
	reasonWithdrawn  = "withdrawn"  // the API key behind it
	reasonUnreadable = "unreadable" // what the store has of it
)

// Refusals count the credentials that were refused, but for tokens, which their Verifier counts. A nil one counts nothing.
type Refusals struct {
	total *prometheus.CounterVec
}

// NewRefusals returns counters that are registered with r, which may be nil.
func NewRefusals(r prometheus.Registerer) *Refusals {
	total := promauto.With(r).NewCounterVec(prometheus.CounterOpts{
		Name: "statusrelay_auth_refused_total",
		Help: "API keys, links and tickets that were refused, by kind and reason.",
	}, []string{"kind", "reason"})
	for kind, reasons := range map[string][]string{ // there from the start: an alert can ask for their rate
		kindAPIKey: {reasonMalformed, reasonUnaccepted, reasonUnknown, reasonExpired},
		kindLink:   {reasonMalformed, reasonSignature, reasonExpired, reasonTooLong},
		kindTicket: {reasonMalformed, reasonUnknown, reasonUnreadable, reasonOrigin, reasonWithdrawn, reasonExpired},
	} {
		for _, reason := range reasons {
			total.WithLabelValues(kind, reason)
		}
	}
	return &Refusals{total}
}

func (r *Refusals) count(kind, reason string) {
	if r != nil {
		r.total.WithLabelValues(kind, reason).Inc()
	}
}

// refuse counts, and returns the refusal with its cause, in which nothing is of the credential.
func (r *Refusals) refuse(kind, reason, cause string) error {
	r.count(kind, reason)
	return refusal("%s", cause)
}
