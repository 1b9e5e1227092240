package ingestapi

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxCallers bounds how many callers are remembered. When more come, those that
// have their full burst again are forgotten, which changes nothing for them;
// when none has, all are.
const maxCallers = 10_000

// limiter gives each caller a rate of updates.
type limiter struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	callers map[string]*rate.Limiter // guarded by mu
}

func newLimiter(perSecond float64, burst int) *limiter {
	return &limiter{rate: rate.Limit(perSecond), burst: burst, callers: make(map[string]*rate.Limiter)}
}

// take takes n updates from the caller's rate, or returns how long to wait.
// A request that is larger than the burst is admitted when the burst is full:
// no waiting would ever make room for it.
func (l *limiter) take(caller string, n int, now time.Time) (wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.callers[caller]
	if c == nil {
		if len(l.callers) >= maxCallers {
			l.forget(now)
		}
		c = rate.NewLimiter(l.rate, l.burst)
		l.callers[caller] = c
	}
	r := c.ReserveN(now, min(n, l.burst))
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func (l *limiter) forget(now time.Time) {
	for name, c := range l.callers {
		if c.TokensAt(now) >= float64(l.burst) {
			delete(l.callers, name)
		}
	}
	if len(l.callers) >= maxCallers {
		clear(l.callers)
	}
}
