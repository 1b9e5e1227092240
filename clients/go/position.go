package statusrelay

import "time"

// ticks is how many positions an activity has for itself.
const ticks = 1000

// maxInteger is the largest number that JavaScript and Redis still count exactly: 2^53-1.
const maxInteger = 1<<53 - 1

// Position is where an update stands among those of its instance. The zero Position declares nothing: the broker's order counts.
// Its JSON is small, so that orchestrators can hand it to activities.
type Position struct {
	Generation int64 `json:"generation,omitzero"` // start of the execution in unix milliseconds; 0: the current one
	Sequence   int64 `json:"sequence,omitzero"`   // from 1 to 2^53-1, growing within the generation; 0: the broker's order
}

// Tick is the k-th position, from 1 to 999, behind that of an activity's call and before that of the next. Beyond that Publish
// refuses it: what ticks without end takes the clock ([Execution.At]).
func (p Position) Tick(k int) Position {
	if k < 1 || k >= ticks {
		return Position{p.Generation, -1}
	}
	p.Sequence += int64(k)
	return p
}

// Execution is one run of an orchestration, and counts positions within it. An orchestrator keeps it in a local variable, so that each
// replay counts from the start again. Handed on with continue-as-new it keeps the instance in one generation, and its
// progress in view; a new one starts afresh.
type Execution struct {
	Generation int64 `json:"generation"` // its start in unix milliseconds
	Calls      int64 `json:"calls"`      // how many positions it has given away
}

// Started is the execution that began at a time: in an orchestrator, its deterministic clock on the first line.
func Started(at time.Time) Execution { return Execution{Generation: at.UnixMilli()} }

// Next is the position of the next activity call: 1000, 2000, …
func (e *Execution) Next() Position {
	e.Calls++
	return Position{e.Generation, e.Calls * ticks}
}

// At is the position of what is reported at a time, for those who have no counter: unix microseconds. It is not for orchestrator code,
// unless the time comes from its deterministic clock.
func (e Execution) At(t time.Time) Position { return Position{e.Generation, t.UnixMicro()} }
