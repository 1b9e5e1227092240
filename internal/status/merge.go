package status

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"
)

// clashWindowMillis is how much older than the record's a lifecycle update's
// generation may be to suggest that two publishers took different clock readings for the start of
// one execution, instead of one of them reporting an execution that was replaced.
const clashWindowMillis = 10_000

// Outcome says what a merge did.
type Outcome struct {
	// Changed: the record differs and must be stored. Visible: what a reader
	// could be shown differs, so that the version grows and watchers are told.
	// A change that is not visible only moves positions.
	Changed, Visible bool

	// StaleGeneration: the update belongs to an older execution, or to one that
	// was purged. StaleLanes counts the lanes for which something newer was
	// already said, Duplicates those that were said before in the same words.
	StaleGeneration        bool
	StaleLanes, Duplicates int

	// SuspectedClash: a lifecycle update was stale by a few seconds of
	// generation only; two publishers probably disagree about when the
	// execution started, and the record will never show how it ended.
	SuspectedClash bool
}

// Merge folds an update into a record and returns the result; r, which may be
// nil when nothing is stored, is not modified and is returned itself when
// nothing changed. The update must be valid (Update.Validate) and of the same
// instance.
//
// This is the only statement of the rule (DESIGN 2.2). For updates that declare
// generation and sequence it is commutative, associative and idempotent.
func Merge(r *Record, u *Update) (*Record, Outcome) {
	var out Outcome
	if r == nil {
		r = &Record{Hub: u.Hub, InstanceID: u.InstanceID}
		out.Changed, out.Visible = true, true
	}
	generation := r.Generation
	if u.Generation != nil {
		generation = *u.Generation
	}

	switch {
	case u.precedes(generation):
		out.StaleGeneration = true
		return r, out
	case generation < r.Generation:
		out.StaleGeneration = true
		out.SuspectedClash = u.speaksLifecycle() && r.Generation-generation <= clashWindowMillis
		return r, out
	case generation > r.Generation:
		// Nothing is carried over, labels included: the id may belong to
		// somebody else now.
		r = &Record{Hub: u.Hub, InstanceID: u.InstanceID, Generation: generation, Version: r.Version}
		out.Changed, out.Visible = true, true
	case r.Purged:
		out.StaleGeneration = true
		return r, out
	}

	if u.Kind == KindPurged {
		out.Changed, out.Visible = true, true
		return &Record{Hub: r.Hub, InstanceID: r.InstanceID, Generation: generation, Purged: true, Version: r.Version}, out
	}

	next := *r
	next.mergeLifecycle(u, &out)
	next.mergeProgress(u, &out)
	if next.mergeShown(u) {
		out.Changed, out.Visible = true, true
	}
	if next.mergeLabels(u.Labels) {
		out.Changed, out.Visible = true, true
	}
	if !out.Changed {
		return r, out
	}
	return &next, out
}

// precedes: the update leaves its generation open, and says that what it tells of happened before an execution
// began, so that it is about another one. Without this the end of an execution, when it comes late, would be the end of the one that
// has continued it as new. A time in whole seconds may have been cut off there, and counts to the end of its second.
func (u *Update) precedes(generation int64) bool {
	at := u.OccurredTime
	if generation == 0 || u.Generation != nil || at.IsZero() {
		return false
	}
	if at.Nanosecond() == 0 {
		at = at.Add(time.Second - 1)
	}
	return at.UnixMilli() < generation
}

// speaksLifecycle: the field is there, and it is meant. Activities always say
// Running, also when the orchestration has ended: a progress update is not
// believed.
func (u *Update) speaksLifecycle() bool { return u.RuntimeStatus != "" && u.Kind != KindProgress }

// speaksProgress: the field is there, whatever the kind.
func (u *Update) speaksProgress() bool { return u.CustomStatus != nil }

func (u *Update) position() Position {
	if u.Sequence != nil {
		return Position{Declared, *u.Sequence}
	}
	return Position{Broker, u.Broker}
}

func (r *Record) mergeLifecycle(u *Update, out *Outcome) {
	if !u.speaksLifecycle() {
		return
	}
	old := r.Lifecycle
	said := Lifecycle{u.position(), u.LastUpdatedTime, u.RuntimeStatus, u.Output, u.Failure}
	if old.Position.Class == Broker && said.Position.Class == Broker &&
		old.RuntimeStatus.Terminal() && !said.RuntimeStatus.Terminal() {
		out.StaleLanes++ // the broker's order does not prove a rewind
		return
	}
	content := compareLifecycle(said, old)
	if out.accept(compareLane(said.Position, old.Position, said.Time, old.Time, content), content) {
		r.Lifecycle = said
	}
}

func (r *Record) mergeProgress(u *Update, out *Outcome) {
	if !u.speaksProgress() {
		return
	}
	old := r.Progress
	said := Progress{u.position(), u.LastUpdatedTime, u.CustomStatus}
	content := bytes.Compare(said.CustomStatus, old.CustomStatus)
	if out.accept(compareLane(said.Position, old.Position, said.Time, old.Time, content), content) {
		r.Progress = said
	}
}

// accept records in the outcome that a lane's value compared so with what is
// stored, and reports whether it replaces it. Each lane is the maximum of all
// that was said in it, in the total order of compareLane: that is what makes the
// merge independent of arrival order.
func (o *Outcome) accept(order, content int) bool {
	switch {
	case order > 0:
		o.Changed = true
		o.Visible = o.Visible || content != 0
		return true
	case content == 0:
		o.Duplicates++
	default:
		o.StaleLanes++
	}
	return false
}

// compareLane orders what was said in one lane: position first, then, for an
// activity that was retried with the same position, the later report, then
// the greater content.
func compareLane(a, b Position, at, bt time.Time, content int) int {
	if c := cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(a.N, b.N)); c != 0 {
		return c
	}
	return cmp.Or(at.Compare(bt), content)
}

func compareLifecycle(a, b Lifecycle) int {
	var af, bf Failure
	if a.Failure != nil {
		af = *a.Failure
	}
	if b.Failure != nil {
		bf = *b.Failure
	}
	return cmp.Or(
		cmp.Compare(a.RuntimeStatus, b.RuntimeStatus),
		bytes.Compare(a.Output, b.Output),
		cmp.Compare(af.Type, bf.Type),
		cmp.Compare(af.Message, bf.Message),
	)
}

// mergeShown folds in the fields that are shown but order nothing.
func (r *Record) mergeShown(u *Update) (changed bool) {
	if !u.CreatedTime.IsZero() && (r.CreatedTime.IsZero() || u.CreatedTime.Before(r.CreatedTime)) {
		r.CreatedTime, changed = u.CreatedTime, true
	}
	if u.LastUpdatedTime.After(r.LastUpdatedTime) {
		r.LastUpdatedTime, changed = u.LastUpdatedTime, true
	}
	for _, f := range []struct {
		have *string
		said string
	}{
		{&r.ExecutionID, u.ExecutionID},
		{&r.ParentInstanceID, u.ParentInstanceID},
		{&r.RootInstanceID, u.RootInstanceID},
	} {
		if f.said > *f.have {
			*f.have, changed = f.said, true
		}
	}
	return r.mergeName(u.Name) || changed
}

// mergeName shows the greater of two names and keeps the other: what was published under the one is not for whoever may read the
// other alone.
func (r *Record) mergeName(said string) (changed bool) {
	switch {
	case said == "" || said == r.Name || slices.Contains(r.OtherNames, said):
		return false
	case r.Name == "":
		r.Name = said
		return true
	}
	names := append([]string{r.Name, said}, r.OtherNames...)
	slices.Sort(names)
	slices.Reverse(names)
	others := names[1:min(len(names), 1+MaxOtherNames)]
	changed = r.Name != names[0] || !slices.Equal(r.OtherNames, others)
	r.Name, r.OtherNames = names[0], others
	return changed
}

// mergeLabels folds labels in. A name that is given two values within a
// generation is in conflict from then on: "first wins" and "last wins" would
// both let the order of arrival decide who may read.
func (r *Record) mergeLabels(said map[string]string) (changed bool) {
	labels, conflicts := r.Labels, r.Conflicts
	for name, value := range said {
		have, known := labels[name]
		at, inConflict := slices.BinarySearch(conflicts, name)
		if inConflict || known && have == value {
			continue
		}
		if !changed {
			labels, changed = maps.Clone(labels), true
			if labels == nil {
				labels = make(map[string]string, len(said))
			}
		}
		if known {
			delete(labels, name)
			conflicts = slices.Insert(slices.Clone(conflicts), at, name)
		} else {
			labels[name] = value
		}
	}
	if !changed {
		return false
	}
	return r.setLabels(labels, conflicts)
}

// setLabels keeps the MaxRecordLabels least names of both kinds, which is what
// any order of merging the same updates ends in, and reports whether that
// differs from what the record had.
func (r *Record) setLabels(labels map[string]string, conflicts []string) bool {
	if excess := len(labels) + len(conflicts) - MaxRecordLabels; excess > 0 {
		names := slices.AppendSeq(slices.Clone(conflicts), maps.Keys(labels))
		slices.Sort(names)
		for _, name := range names[MaxRecordLabels:] {
			delete(labels, name)
		}
		conflicts = slices.DeleteFunc(slices.Clone(conflicts), func(name string) bool {
			return name >= names[MaxRecordLabels]
		})
		if maps.Equal(labels, r.Labels) && slices.Equal(conflicts, r.Conflicts) {
			return false
		}
	}
	r.Labels, r.Conflicts = labels, conflicts
	return true
}
