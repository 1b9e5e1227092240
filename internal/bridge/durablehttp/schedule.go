package durablehttp

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// maxInstances bounds what is known at a time: what is of interest, what is listed
// and what has been silent for too long. More have to wait until others leave.
const maxInstances = 50_000

// An instance is one that the bridge reads again and again.
type instance struct {
	id       string
	interval time.Duration // 0: it was never read
	due      time.Time
	queue    *byDue    // that it is in; nil: none
	place    int       // in the queue
	wanted   time.Time // when it was last said to be of interest; zero: it is not
	once     bool      // it is to be read once, wanted or not
	listed   int       // the round of discovery that has it; 0: none
	reading  bool

	unknown  bool      // neither the runtime nor the store had it the last time
	seen     bool      // the runtime had it
	misses   int       // since then, in a row
	missedAt time.Time // the first of them
}

// needed reports whether there is any reason to know it.
func (i *instance) needed() bool { return !i.wanted.IsZero() || i.once || i.listed > 0 || i.reading }

// A schedule has all instances, and says which is read next: those first that nobody
// has read yet, in the order in which they came, since somebody waits for them; then
// those that exist, and last those that do not. But each gets its part of the rate,
// so that a flood of one kind does not stop the others.
type schedule struct {
	all     map[string]*instance
	fresh   []*instance // never read; some have left since
	known   byDue
	unknown byDue
	turn    int
}

func newSchedule() *schedule { return &schedule{all: map[string]*instance{}} }

// want notes that an instance is of interest, and reports whether there is room for it.
func (s *schedule) want(id string, now time.Time) bool {
	i := s.add(id)
	if i == nil {
		return false
	}
	fresh := i.wanted.IsZero() && i.interval == 0 && !i.reading
	i.wanted = now
	switch {
	case fresh:
		s.rest(i)
		i.due, i.once = now, false
		s.fresh = append(s.fresh, i)
	case i.queue == nil && !i.reading && i.interval > 0: // it was only listed
		s.put(i, now)
	}
	return true
}

// hurry has an instance that is known read at once, and soon again: something has happened to it, or will in a moment.
func (s *schedule) hurry(id string, now time.Time) {
	i := s.all[id]
	if i == nil || s.waiting(i) {
		return // it comes as soon as it can
	}
	i.interval = 0
	if i.queue != nil {
		s.put(i, now)
	}
}

// readOnce has an instance read soon, whether it is of interest or not.
func (s *schedule) readOnce(id string, now time.Time) bool {
	i := s.add(id)
	if i == nil {
		return false
	}
	if i.wanted.IsZero() && !i.once && !i.reading {
		i.once = true
		s.put(i, now)
	}
	return true
}

func (s *schedule) add(id string) *instance {
	i := s.all[id]
	if i == nil && len(s.all) < maxInstances {
		i = &instance{id: id}
		s.all[id] = i
	}
	return i
}

// put has it read at a time.
func (s *schedule) put(i *instance, due time.Time) {
	s.rest(i)
	i.due, i.queue = due, &s.known
	if i.unknown {
		i.queue = &s.unknown
	}
	heap.Push(i.queue, i)
}

// tidy forgets an instance that is not needed, and reports whether it did.
func (s *schedule) tidy(i *instance) bool {
	if i.needed() {
		return false
	}
	s.rest(i)
	delete(s.all, i.id)
	return true
}

// rest takes an instance out of what is read without forgetting it.
func (s *schedule) rest(i *instance) {
	if i.queue != nil {
		heap.Remove(i.queue, i.place)
	}
}

// next is the instance to be read now, which stays where it is until it is taken; or
// nil, and how long there will be none.
func (s *schedule) next(now time.Time) (i *instance, wait time.Duration) {
	for len(s.fresh) > 0 && !s.waiting(s.fresh[0]) {
		s.fresh = s.fresh[1:]
	}
	var fresh *instance
	if len(s.fresh) > 0 {
		fresh = s.fresh[0]
	}
	known, untilKnown := s.known.next(now)
	unknown, untilUnknown := s.unknown.next(now)
	order := [...]*instance{fresh, known, unknown}
	switch s.turn % 8 {
	case 3, 5:
		order = [...]*instance{known, fresh, unknown}
	case 7:
		order = [...]*instance{unknown, fresh, known}
	}
	for _, i := range order {
		if i != nil {
			return i, 0
		}
	}
	return nil, min(untilKnown, untilUnknown)
}

// waiting reports whether an entry of fresh still stands for something.
func (s *schedule) waiting(i *instance) bool {
	return s.all[i.id] == i && i.interval == 0 && !i.wanted.IsZero() && !i.reading && i.queue == nil
}

// take takes what next gave.
func (s *schedule) take(i *instance) {
	s.turn++
	s.rest(i)
	if len(s.fresh) > 0 && s.fresh[0] == i {
		s.fresh = s.fresh[1:]
	}
	i.reading, i.once = true, false
}

// jittered spreads what would else come together: up to a tenth less or more.
func jittered(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}

// byDue is a heap.
type byDue []*instance

// next is the first if it is due; else nil, and in what time.
func (h byDue) next(now time.Time) (i *instance, wait time.Duration) {
	switch {
	case len(h) == 0:
		return nil, never
	case h[0].due.After(now):
		return nil, h[0].due.Sub(now)
	}
	return h[0], 0
}

func (h byDue) Len() int           { return len(h) }
func (h byDue) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h byDue) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *byDue) Push(x any) {
	i := x.(*instance)
	i.place = len(*h)
	*h = append(*h, i)
}

func (h *byDue) Pop() any {
	old := *h
	i := old[len(old)-1]
	i.queue = nil
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return i
}
