package status

import (
	"encoding/json"
	"time"
)

// Class says whose numbering a position belongs to. A greater class wins
// whatever the numbers are.
type Class uint8

const (
	Unset    Class = iota // nobody spoke for the lane yet
	Broker                // the broker's enqueued sequence number
	Declared              // the publisher's own sequence
)

// Position is where in the order of its lane a value stands.
type Position struct {
	Class Class `json:"c,omitempty"`
	N     int64 `json:"n,omitempty"`
}

// Lifecycle is the lane that says whether an orchestration runs and how it
// ended: one value, replaced as a whole.
type Lifecycle struct {
	Position      Position        `json:"p,omitzero"`
	Time          time.Time       `json:"t,omitzero"` // lastUpdatedTime of the update that said it; breaks ties
	RuntimeStatus RuntimeStatus   `json:"status,omitempty"`
	Output        json.RawMessage `json:"output,omitempty"`
	Failure       *Failure        `json:"failure,omitempty"`
}

// Progress is the lane that says how far it is.
type Progress struct {
	Position     Position        `json:"p,omitzero"`
	Time         time.Time       `json:"t,omitzero"`
	CustomStatus json.RawMessage `json:"custom,omitempty"` // nil or `null`: none
}

// Record is what all updates of one instance merge into. Records are immutable
// once they are shared: Merge returns a new one.
//
// Its JSON form is what the store keeps; it is no wire format for clients.
type Record struct {
	Hub        string `json:"hub"`
	InstanceID string `json:"id"`
	Name       string `json:"name,omitempty"`
	// OtherNames are those that publishers gave besides, which are lesser. The greatest
	// first, MaxOtherNames at most. Who reads must be allowed to under each.
	OtherNames []string `json:"otherNames,omitempty"`

	// Generation is the start of the execution that the record is about, in
	// unix milliseconds; 0 while no publisher has said.
	Generation int64 `json:"gen,omitempty"`
	// Purged marks a tombstone: readers see no instance, and updates of this
	// generation and older ones no longer count.
	Purged bool `json:"purged,omitempty"`

	Lifecycle Lifecycle `json:"lifecycle,omitzero"`
	Progress  Progress  `json:"progress,omitzero"`

	CreatedTime     time.Time `json:"created,omitzero"`
	LastUpdatedTime time.Time `json:"updated,omitzero"`

	ExecutionID      string `json:"execution,omitempty"`
	ParentInstanceID string `json:"parent,omitempty"`
	RootInstanceID   string `json:"root,omitempty"`

	// Labels are those that were given one value only. Conflicts names those
	// that were given two: they grant nobody access. Sorted.
	Labels    map[string]string `json:"labels,omitempty"`
	Conflicts []string          `json:"conflicts,omitempty"`

	// Version counts visible changes and is the only order behind the store.
	// The store assigns it: max(previous + 1, microseconds of its clock).
	Version int64 `json:"-"`
	// Interval is the mean time between the last changes that readers could see;
	// 0 while there was but one. The store keeps it.
	Interval time.Duration `json:"-"`
	// Stale says that the instance has been silent for longer than its hub's
	// limit (Aged). It is computed by whoever reads and never stored.
	Stale bool `json:"-"`
}

// Key names the instance.
func (r *Record) Key() Key { return Key{r.Hub, r.InstanceID} }

// RuntimeStatus is what to show: Running when nobody spoke for the lifecycle.
func (r *Record) RuntimeStatus() RuntimeStatus {
	if r.Partial() {
		return Running
	}
	return r.Lifecycle.RuntimeStatus
}

// Partial reports whether nobody spoke for the lifecycle lane yet, so that the
// shown runtime status is an assumption.
func (r *Record) Partial() bool { return r.Lifecycle.Position.Class == Unset }

// Terminal reports whether the orchestration has ended or is gone.
func (r *Record) Terminal() bool { return r.Purged || r.Lifecycle.RuntimeStatus.Terminal() }
