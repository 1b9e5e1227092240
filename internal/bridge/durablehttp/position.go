package durablehttp

import (
	"bytes"
	"crypto/sha256"
	"hash/fnv"
	"strconv"
	"time"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// A sequence of the bridge is the time of the request in unix microseconds, as the
// kits advise for publishers without a counter, so that it can be compared with
// theirs. Its last markBits bits are no clock but a signature: a hash of what they
// are the last bits of. So what stands in a record tells whose it is, to every
// replica, after every restart, and without anything that could get lost by itself.
const (
	markBits = 16
	markStep = 1 << markBits // µs: 66 ms, the finest step of the bridge's clock
	// leastMicros is what a clock says at least (1998): smaller sequences are counters.
	leastMicros = 9e14
)

// mark signs a sequence: its last bits give way to the signature.
func mark(key status.Key, generation, n int64) int64 {
	n &^= markStep - 1
	h := fnv.New64a()
	_, _ = h.Write(strconv.AppendInt([]byte(key.String()+"\x00"), generation, 10)) // which cannot fail
	_, _ = h.Write(strconv.AppendInt([]byte{0}, n, 10))
	sum := h.Sum64()
	return n | int64((sum^sum>>32)&(markStep-1))
}

// ours reports whether a lane's value was said by a bridge. Another publisher that
// counts in microseconds has this signature once in 65,536 sequences, and would have to
// round its time to whole seconds besides, as the runtime does and the kits do not.
func ours(key status.Key, generation int64, p status.Position, t time.Time) bool {
	return p.Class == status.Declared && p.N >= leastMicros && p.N == mark(key, generation, p.N) && !t.IsZero() && t.Nanosecond() == 0
}

// A said is what this process has published last about an instance, or has found
// to be said already.
type said struct {
	asked               time.Time // when the request was made that it came from; zero: nothing is known
	sum                 [sha256.Size]byte
	lifecycle, progress int64 // sequences; 0: nothing was said in that lane
	// again is when it is said again although nothing is new, if by then it cannot
	// be found in the record; pause is how long that was.
	again time.Time
	pause time.Duration
}

// What was published and does not appear may be on its way, for as long as the relay
// is away. It is said again, ever more rarely.
const (
	leastPause = 10 * time.Second
	mostPause  = 5 * time.Minute
)

// arrived reports whether the record has what was said, or something newer.
func (s *said) arrived(r *status.Record) bool {
	return r != nil && r.Lifecycle.Position.N >= s.lifecycle && r.Progress.Position.N >= s.progress
}

// stands reports whether the record has exactly what was said.
func (s *said) stands(r *status.Record) bool {
	return s.arrived(r) && (s.lifecycle == 0 || r.Lifecycle.Position.N == s.lifecycle) && (s.progress == 0 || r.Progress.Position.N == s.progress)
}

// A finding is one answer of the runtime, and what was known when it was asked.
type finding struct {
	key     status.Key
	record  *status.Record // the stored one; nil: none
	update  *status.Update // what the runtime says, without a position
	started time.Time      // of the request
	said    said
}

// rules are what the bridge may say.
type rules struct {
	silence       time.Duration
	lifecycleOnly bool
}

// judge says what is to be published, and what will then have been said; nil when
// there is nothing to publish.
//
// Lanes that others speak for are theirs: the bridge speaks for one that nobody
// has spoken for yet, or that was last spoken for by a bridge. Of another's lifecycle
// it only says that it has ended, when that one has been silent about it.
func (f *finding) judge(o rules, now time.Time) (*status.Update, said) {
	execution, ok := f.execution()
	if !ok || f.said.asked.After(f.started) { // a list may take longer than a request that was made after it
		return nil, f.said
	}
	u := *f.update
	u.Generation = execution.generation
	u.LastUpdatedTime = u.LastUpdatedTime.Truncate(time.Second) // for ours
	if u.LastUpdatedTime.IsZero() {
		u.LastUpdatedTime = f.started.UTC().Truncate(time.Second)
	}
	r := f.record
	if r == nil || execution.fresh {
		r = &status.Record{Hub: f.key.Hub, InstanceID: f.key.InstanceID}
	}
	lifecycle, progress := f.lanes(r, o, now)
	last := f.last(r, lifecycle, progress)
	if last > status.MaxInteger-2*markStep { // nothing is above it
		return nil, f.said
	}
	restrict(&u, lifecycle, progress)
	if u.RuntimeStatus == "" && u.CustomStatus == nil && labelled(r, u.Labels) {
		return nil, f.said
	}

	next := said{asked: f.started, sum: sum(u)}
	known := !f.said.asked.IsZero()
	onItsWay := known && !f.said.arrived(f.record)
	switch {
	case !onItsWay && !execution.fresh && f.record != nil && says(r, &u, lifecycle, progress):
		if lifecycle {
			next.lifecycle = r.Lifecycle.Position.N
		}
		if progress {
			next.progress = r.Progress.Position.N
		}
		return nil, next
	case known && next.sum == f.said.sum && (f.said.stands(f.record) || onItsWay && now.Before(f.said.again)):
		return nil, f.said
	}
	next.pause = leastPause
	if known && next.sum == f.said.sum && onItsWay {
		next.pause = min(2*f.said.pause, mostPause)
	}
	next.again = now.Add(next.pause)
	n := f.sequence(u.Generation, last)
	u.Sequence = &n
	if lifecycle {
		next.lifecycle = n
	}
	if progress {
		next.progress = n
	}
	return &u, next
}

// last is the last sequence of the lanes that are spoken for, in the record or on its way there.
func (f *finding) last(r *status.Record, lifecycle, progress bool) (n int64) {
	if lifecycle && r.Lifecycle.Position.Class == status.Declared {
		n = r.Lifecycle.Position.N
	}
	if progress && r.Progress.Position.Class == status.Declared {
		n = max(n, r.Progress.Position.N)
	}
	if r == f.record {
		n = max(n, f.said.lifecycle, f.said.progress)
	}
	return n
}

// sequence is the finding's: the time of the request, or behind last if the clock was
// set back since, or another's is ahead.
func (f *finding) sequence(generation *int64, last int64) int64 {
	var g int64 // as a record has it when nobody has said
	if generation != nil {
		g = *generation
	}
	if n := mark(f.key, g, f.started.UnixMicro()); n > last {
		return n
	}
	return mark(f.key, g, last+markStep)
}

// An execution is the one that an answer is about.
type execution struct {
	generation *int64 // nil: nobody knows
	fresh      bool   // another than the record's: nothing of that counts
}

// execution finds out which execution the answer is about; not ok: an older one
// than the record's, of which there is nothing to say.
//
// The runtime tells only the second in which it was created. What the record has is
// finer and is kept, unless the runtime's is clearly another.
func (f *finding) execution() (e execution, ok bool) {
	const second = 1000 // ms
	r, created := f.record, int64(0)
	if !f.update.CreatedTime.IsZero() {
		created = f.update.CreatedTime.UnixMilli()
	}
	switch {
	case created < 0:
		return execution{}, false
	case r == nil && created == 0:
		return execution{fresh: true}, true
	case r == nil:
		return execution{&created, true}, true
	case r.Purged && created+second <= r.Generation:
		return execution{}, false
	case r.Purged: // it was started again, maybe within the second
		created = max(created, r.Generation+1)
		return execution{&created, true}, true
	}
	known := r.Generation
	if known == 0 && !r.CreatedTime.IsZero() {
		known = r.CreatedTime.UnixMilli()
	}
	if created >= known+second && known > 0 {
		return execution{&created, true}, true
	}
	if changed := f.update.LastUpdatedTime; !changed.IsZero() && changed.UnixMilli()+second <= r.Generation {
		return execution{}, false // it has not heard of the execution that the record is about
	}
	if r.Generation == 0 {
		return execution{}, true
	}
	return execution{generation: &r.Generation}, true
}

// lanes says for which the bridge speaks.
func (f *finding) lanes(r *status.Record, o rules, now time.Time) (lifecycle, progress bool) {
	const unset = status.Unset
	l, p := r.Lifecycle, r.Progress
	lifecycle = l.Position.Class == unset || ours(f.key, r.Generation, l.Position, l.Time) ||
		f.update.RuntimeStatus.Terminal() && !l.RuntimeStatus.Terminal() && now.Sub(r.Changed()) >= o.silence
	switch {
	case f.update.CustomStatus == nil || o.lifecycleOnly:
	case p.Position.Class == unset:
		// Nothing to clear. Whoever reports progress from activities leaves the built-in
		// custom status empty: the lane is free for that one.
		progress = string(f.update.CustomStatus) != "null"
	default:
		progress = ours(f.key, r.Generation, p.Position, p.Time)
	}
	return lifecycle, progress
}

// restrict leaves of an update what is said of its lanes.
func restrict(u *status.Update, lifecycle, progress bool) {
	if !lifecycle {
		u.RuntimeStatus, u.Output, u.Failure = "", nil, nil
	}
	if !progress {
		u.CustomStatus = nil
	}
	switch {
	case lifecycle && !progress:
		u.Kind = status.KindLifecycle
	case progress && !lifecycle:
		u.Kind = status.KindProgress
	default:
		u.Kind = status.KindSnapshot
	}
}

// says reports whether the record says already what the update does. What a policy
// has filtered away makes it say less, and the update is then published although it
// changes nothing.
func says(r *status.Record, u *status.Update, lifecycle, progress bool) bool {
	if u.Name != "" && u.Name != r.Name || !labelled(r, u.Labels) {
		return false
	}
	if l := r.Lifecycle; lifecycle && (l.RuntimeStatus != u.RuntimeStatus || !bytes.Equal(l.Output, u.Output) || !sameFailure(l.Failure, u.Failure)) {
		return false
	}
	return !progress || bytes.Equal(r.Progress.CustomStatus, u.CustomStatus)
}

func sameFailure(a, b *status.Failure) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// labelled reports whether the record has these labels, or disagreement about them.
func labelled(r *status.Record, labels map[string]string) bool {
	for name, value := range labels {
		if have, ok := r.Labels[name]; ok && have == value {
			continue
		}
		conflict := false
		for _, c := range r.Conflicts {
			conflict = conflict || c == name
		}
		if !conflict {
			return false
		}
	}
	return true
}

// sum identifies what an update says, whenever it says it.
func sum(u status.Update) [sha256.Size]byte {
	u.LastUpdatedTime = time.Time{}
	return sha256.Sum256(wire.Encode(wire.Message{Update: u, ID: "-"}, time.Time{}))
}

// purge is the update that says that the instance of a record is gone.
func purge(r *status.Record) *status.Update {
	return &status.Update{Hub: r.Hub, InstanceID: r.InstanceID, Kind: status.KindPurged, Generation: &r.Generation}
}
