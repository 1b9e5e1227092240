package httpapi

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
)

// places bounds how many requests wait at a time, for each caller and in all.
type places struct {
	limit               string // what a limit.Error calls it
	most, mostPerCaller int
	taken               prometheus.Gauge

	mu      sync.Mutex
	count   int           // guarded by mu
	callers map[party]int // guarded by mu: how many of each wait
}

func newPlaces(name string, most, mostPerCaller int, taken prometheus.Gauge) *places {
	return &places{limit: name, most: most, mostPerCaller: mostPerCaller, taken: taken, callers: map[party]int{}}
}

// enter takes a place, or fails with a limit.Error.
func (p *places) enter(who *auth.Principal) (leave func(), err error) {
	c := callerOf(who)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count >= p.most || p.callers[c] >= p.mostPerCaller {
		return nil, &limit.Error{Limit: p.limit, RetryAfter: limit.Scattered(time.Second)}
	}
	p.count++
	p.callers[c]++
	p.taken.Inc()
	return func() { p.leave(c) }, nil
}

func (p *places) leave(c party) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count--
	if p.callers[c]--; p.callers[c] == 0 {
		delete(p.callers, c)
	}
	p.taken.Dec()
}
