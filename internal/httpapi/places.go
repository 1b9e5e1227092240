package httpapi

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
)

// places bounds how many requests wait at a time, for each caller and in all.
type places struct {
	most, mostPerCaller int
	taken               prometheus.Gauge

	mu      sync.Mutex
	count   int            // guarded by mu
	callers map[caller]int // guarded by mu: how many of each wait
}

// A caller is who waits, whatever token they show.
type caller struct{ issuer, subject string }

func newPlaces(most, mostPerCaller int, taken prometheus.Gauge) *places {
	return &places{most: most, mostPerCaller: mostPerCaller, taken: taken, callers: map[caller]int{}}
}

// fullError says that no place is left, and when to try again.
type fullError struct{ retryAfter time.Duration }

func (e *fullError) Error() string {
	return fmt.Sprintf("too many wait: try again in %s", e.retryAfter)
}

// enter takes a place, or fails with a fullError.
func (p *places) enter(who *auth.Principal) (leave func(), err error) {
	c := caller{who.Issuer, who.Subject}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count >= p.most || p.callers[c] >= p.mostPerCaller {
		return nil, &fullError{time.Second + rand.N(4*time.Second)} // not all at the same time
	}
	p.count++
	p.callers[c]++
	p.taken.Inc()
	return func() { p.leave(c) }, nil
}

func (p *places) leave(c caller) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count--
	if p.callers[c]--; p.callers[c] == 0 {
		delete(p.callers, c)
	}
	p.taken.Dec()
}
