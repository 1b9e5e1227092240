package claim

import (
	"context"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// maxLocal bounds how many events a process remembers by itself, some 300 bytes each:
// the newest.
const maxLocal = 1 << 16

// Local is a memory of this process alone.
type Local struct {
	now func() time.Time

	mu    sync.Mutex
	texts *lru.Cache[string, kept] // guarded by mu: reading and writing are one step
}

// kept is a text and when it is forgotten. The expirable cache of the library has one
// lifetime for all, and a goroutine that nobody can end.
type kept struct {
	text  string
	until time.Time
}

// NewLocal returns an empty memory. now may be nil: time.Now.
func NewLocal(now func() time.Time) *Local {
	if now == nil {
		now = time.Now
	}
	texts, err := lru.New[string, kept](maxLocal)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	return &Local{now: now, texts: texts}
}

// Swap is Memory's. It has no errors.
func (l *Local) Swap(_ context.Context, swaps []*Swap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for _, s := range swaps {
		if k, ok := l.texts.Get(s.Name); ok && now.Before(k.until) {
			s.Found = k.text
		}
		if !Holds(s.Found, s.Mine) {
			l.texts.Add(s.Name, kept{s.Text, now.Add(s.Life)})
		}
	}
}
