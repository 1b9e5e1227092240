package shop

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/microsoft/durabletask-go/task"

	statusrelay "statusrelay/clients/go"
)

// Work is the input of the activity that all steps are. An activity cannot ask the engine whose it is: it is told.
type Work struct {
	InstanceID   string               `json:"instanceId"`
	Orchestrator string               `json:"orchestrator"`
	Owner        string               `json:"owner"`
	Position     statusrelay.Position `json:"position"` // of this call
	Clock        bool                 `json:"clock,omitempty"`

	Status Status        `json:"status"` // as it begins
	Until  int           `json:"until"`  // percent that it comes to
	Takes  time.Duration `json:"takes"`
	Fails  string        `json:"fails,omitempty"`
	Parts  int           `json:"parts,omitempty"` // it is one of so many that run at once
}

// Report takes progress from within an activity. It has no error: no work stops because its status cannot be told.
type Report func(ctx context.Context, w Work, p statusrelay.Position, s Status)

// Silent is for programs in which the custom status says it all.
func Silent(context.Context, Work, statusrelay.Position, Status) {}

// Activity works, which is to say that it lets time pass, and reports how far it is.
func Activity(report Report) task.Activity {
	parts := counter{done: map[run]int{}}
	return func(ctx task.ActivityContext) (any, error) {
		const ticks = 4
		var w Work
		if err := ctx.GetInput(&w); err != nil {
			return nil, err
		}
		for k := range ticks {
			s, p := w.Status, w.Position // the first is the call's own position
			if k > 0 {
				p = p.Tick(k)
				s.Percent += k * (w.Until - s.Percent) / ticks
			}
			if w.Clock {
				p = now(w)
			}
			// What is already said is not repeated, and parts speak when they are done.
			if w.Parts == 0 && (k == 0 || s != w.Status) {
				report(ctx.Context(), w, p, s)
			}
			if err := pass(ctx.Context(), w.Takes/ticks); err != nil {
				return nil, err
			}
		}
		if w.Parts > 0 {
			p, done := parts.add(w)
			report(ctx.Context(), w, p, partsDone(done, w.Parts))
		}
		if w.Fails != "" {
			return nil, errors.New(w.Fails)
		}
		return nil, nil
	}
}

// now is the position of what has no counter of its own.
func now(w Work) statusrelay.Position {
	return statusrelay.Execution{Generation: w.Position.Generation}.At(time.Now())
}

// counter counts the parts of each execution that are done. It is this process's: activities on several machines would count in a database.
type counter struct {
	mu   sync.Mutex
	done map[run]int
	last int64 // sequence that was given away: two parts can be done in one microsecond
}

type run struct {
	instanceID string
	generation int64
}

// add counts one more. The position is taken together with the count, so that a higher count has the later one.
func (c *counter) add(w Work) (p statusrelay.Position, done int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p = now(w)
	p.Sequence = max(p.Sequence, c.last+1)
	c.last = p.Sequence
	r := run{w.InstanceID, w.Position.Generation}
	c.done[r] = min(c.done[r]+1, w.Parts) // an activity may run twice
	return p, c.done[r]
}

// pass lets time pass.
func pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
