package status

import (
	"slices"
	"time"
	"unicode/utf8"
)

// MaxQueryLabels bounds the labels that a query names.
const MaxQueryLabels = 8

// A Query selects instances of one hub: those that have the name, one of the
// runtime statuses and every label. What is empty selects all.
type Query struct {
	Hub           string
	Name          string
	RuntimeStatus []RuntimeStatus
	Labels        map[string]string
}

// Validate reports the first part that can match nothing, as an *InvalidError.
func (q *Query) Validate() error {
	if err := ValidHub(q.Hub); err != nil {
		return err
	}
	if utf8.RuneCountInString(q.Name) > MaxName {
		return invalid("name", "longer than %d characters", MaxName)
	}
	for _, s := range q.RuntimeStatus {
		if known, ok := ParseRuntimeStatus(string(s)); !ok || known != s {
			return invalid("runtimeStatus", "not a runtime status")
		}
	}
	if len(q.Labels) > MaxQueryLabels {
		return invalid("labels", "more than %d", MaxQueryLabels)
	}
	return validLabels(q.Labels)
}

// Match reports whether the query selects a record. A label in conflict has no
// value, so that nothing selects by it.
func (q *Query) Match(r *Record) bool {
	if r.Purged || r.Hub != q.Hub || q.Name != "" && r.Name != q.Name {
		return false
	}
	if len(q.RuntimeStatus) > 0 && !slices.Contains(q.RuntimeStatus, r.RuntimeStatus()) {
		return false
	}
	for name, value := range q.Labels {
		if have, ok := r.Labels[name]; !ok || have != value {
			return false
		}
	}
	return true
}

// Index returns the narrowest of the indexes that hold all that the query
// selects, when these labels are indexed: the one of the first of them that the
// query names, or else its hub's.
func (q *Query) Index(indexed []string) Index {
	for _, name := range indexed {
		if value, ok := q.Labels[name]; ok {
			return Index{Hub: q.Hub, Label: name, Value: value}
		}
	}
	return Index{Hub: q.Hub}
}

// An Index names a set of instances that the store keeps in the order of their
// last change: all of a hub, or with a Label those of which it has the value.
type Index struct{ Hub, Label, Value string }

// Indexes returns the indexes that a record belongs to when these labels are
// indexed: none for a tombstone.
func (r *Record) Indexes(indexed []string) []Index {
	if r == nil || r.Purged {
		return nil
	}
	indexes := make([]Index, 1, 1+len(indexed))
	indexes[0] = Index{Hub: r.Hub}
	for _, name := range indexed {
		if value, ok := r.Labels[name]; ok {
			indexes = append(indexes, Index{Hub: r.Hub, Label: name, Value: value})
		}
	}
	return indexes
}

// A Cursor is a place in an index, newest change first: behind Ties of the
// instances whose last change has that version, and behind all newer ones. The
// zero Cursor is the beginning.
type Cursor struct {
	Version int64
	Ties    int
}

// A Page is part of what a query selects, newest change first.
type Page struct {
	Records []*Record
	After   []Cursor // after[i] is the place behind Records[i]
	Next    Cursor   // the place behind all that was looked at; zero: there is no more
}

// Aged returns the record as it is at a time: one that has not ended and has
// not changed for the limit or longer is Stale, and counts as one version newer,
// so that everyone behind the store takes it for the news that it is. No limit
// (0) makes nothing stale.
func (r *Record) Aged(limit time.Duration, now time.Time) *Record {
	if limit <= 0 || r.Stale || r.Terminal() || now.Before(r.StaleAt(limit)) {
		return r
	}
	aged := *r
	aged.Stale, aged.Version = true, r.Version+1
	return &aged
}

// StaleAt is when the record becomes stale unless it changes or ends before.
func (r *Record) StaleAt(limit time.Duration) time.Time { return r.Changed().Add(limit) }

// Changed is when a reader could last see a change, by the store's clock:
// versions are its microseconds.
func (r *Record) Changed() time.Time { return time.UnixMicro(r.Version) }
