// Package status is the domain: what a publisher says about an orchestration
// (Update), what all of it together means (Record), what is valid, and how one
// merges into the other (Record.Merge).
//
// It promises that for updates which declare their position the merge is
// commutative, associative and idempotent: any order, any duplication and any
// number of replicas end in the same record. It knows no wire, no store, no
// clock and no policy; everything else in this module imports it and it imports
// nothing.
package status

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The three kinds of error that cross package borders. Everything else is
// internal: logged in full, shown to nobody.
var (
	// ErrInvalid marks input that can never succeed, however often it is tried.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound marks an instance that is not there, or not for this caller.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable marks a part that is away for now; the same call may
	// succeed later.
	ErrUnavailable = errors.New("unavailable")
	// ErrMayNotPublish marks a broker that does not let this program publish. It stays so until somebody has given it
	// the right.
	ErrMayNotPublish = errors.New("no right to publish")
)

// Reason is one of a short fixed list of words that say why a message was
// refused. It becomes the dead-letter reason and a metric's label, so it never
// contains anything of the message.
type Reason string

const (
	ReasonTooLarge  Reason = "TooLarge"  // the message exceeds a size limit
	ReasonMalformed Reason = "Malformed" // not one well-formed I-JSON document (RFC 7493)
	ReasonNoUpdate  Reason = "NoUpdate"  // well-formed, but none of the accepted forms
	ReasonInvalid   Reason = "Invalid"   // an update with a field out of its range
)

// InvalidError says what is wrong with an update. Its text names the field and
// the rule and never contains a value from the message. It is an ErrInvalid.
type InvalidError struct {
	Reason Reason
	Field  string // path of the field, "" for the message as a whole
	Detail string // the rule that is broken, in lower case
}

func (e *InvalidError) Error() string {
	if e.Field == "" {
		return e.Detail
	}
	return e.Field + ": " + e.Detail
}

// Is makes errors.Is(err, ErrInvalid) hold.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// invalid returns an InvalidError about one field.
func invalid(field, format string, args ...any) error {
	return &InvalidError{Reason: ReasonInvalid, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Key names an instance: ids are unique within a hub (a task hub).
type Key struct {
	Hub        string
	InstanceID string
}

func (k Key) String() string { return k.Hub + "/" + k.InstanceID }

// Kind says what an update is about.
type Kind string

const (
	KindSnapshot  Kind = "snapshot"  // both lanes
	KindProgress  Kind = "progress"  // custom status; a runtime status beside it is not believed
	KindLifecycle Kind = "lifecycle" // runtime status, output, failure; a custom status beside them counts
	KindPurged    Kind = "purged"    // the instance was deleted
)

// RuntimeStatus is Durable Functions' runtime status; "" is absent.
type RuntimeStatus string

const (
	Pending        RuntimeStatus = "Pending"
	Running        RuntimeStatus = "Running"
	Completed      RuntimeStatus = "Completed"
	Failed         RuntimeStatus = "Failed"
	Canceled       RuntimeStatus = "Canceled"
	Terminated     RuntimeStatus = "Terminated"
	Suspended      RuntimeStatus = "Suspended"
	ContinuedAsNew RuntimeStatus = "ContinuedAsNew"
)

// runtimeStatuses lists all of them at the index that the engine's protocol
// gives them (microsoft/durabletask-protobuf, OrchestrationStatus).
var runtimeStatuses = [...]RuntimeStatus{
	Running, Completed, ContinuedAsNew, Failed, Canceled, Terminated, Pending, Suspended,
}

// Terminal reports whether an orchestration in this state has ended.
func (s RuntimeStatus) Terminal() bool {
	switch s {
	case Completed, Failed, Canceled, Terminated:
		return true
	}
	return false
}

// Failure is why an orchestration failed.
type Failure struct {
	Type    string `json:"type,omitempty"`
	Message string `json:"message,omitempty"`
}

// Update is one message about one instance. Absent fields have their zero
// value; only CustomStatus, Generation and Sequence tell absent from empty.
//
// JSON values (CustomStatus, Output) are canonical: no white space, names sorted
// as RFC 8785 sorts them, numbers as the publisher wrote them (a 64-bit integer
// must not lose its last digits). Package wire makes them so; Merge compares
// them byte by byte.
type Update struct {
	Hub        string // "" until the reader fills in its default hub
	InstanceID string
	Name       string // orchestrator name

	Generation *int64 // start of this execution in unix milliseconds; nil: the current one
	Sequence   *int64 // position within (instance, generation, lane); nil: broker order
	Broker     int64  // the broker's enqueued sequence number; set by who received it

	Kind          Kind
	RuntimeStatus RuntimeStatus   // "" = absent
	CustomStatus  json.RawMessage // nil = absent, `null` = cleared
	Output        json.RawMessage // nil = absent
	Failure       *Failure

	CreatedTime     time.Time
	LastUpdatedTime time.Time
	OccurredTime    time.Time // when what it tells of happened: without a generation, in no execution that began later; zero = in the current one

	ExecutionID      string
	ParentInstanceID string
	RootInstanceID   string

	Labels map[string]string
}

// Key names the instance that the update is about.
func (u *Update) Key() Key { return Key{u.Hub, u.InstanceID} }
