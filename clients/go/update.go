package statusrelay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// Update is one message about one instance. Only InstanceID is required. Its JSON is the one that relays and notifiers read
// (schemas/status-update.schema.json).
type Update struct {
	// Hub is the name space of instance ids (task hub): 1 to 64 of A-Z a-z 0-9 _ -. Default: the relay's.
	Hub string `json:"hub,omitzero"`
	// InstanceID has 1 to 256 characters, none of / \ ? #, none that cannot be seen, and does not start with @.
	InstanceID string `json:"instanceId"`
	// Name is the orchestrator's, at most 256 characters. The relay's policy goes by it.
	Name string `json:"name,omitzero"`
	Position
	// Kind by default: KindProgress if only CustomStatus is there, KindLifecycle if only RuntimeStatus is, else KindSnapshot.
	Kind          Kind          `json:"kind,omitzero"`
	RuntimeStatus RuntimeStatus `json:"runtimeStatus,omitzero"`
	// CustomStatus is whatever encoding/json takes, at most 64 KiB and 32 levels of it. nil leaves what is there; what encodes as null
	// clears it, such as [Cleared].
	CustomStatus any `json:"customStatus,omitzero"`
	// Output is the result, of the same size. A larger one is left out: that the orchestration ended is worth more.
	Output any `json:"output,omitzero"`
	// Failure is why it failed.
	Failure *Failure `json:"failure,omitzero"`

	// These are shown and order nothing.
	CreatedTime     time.Time `json:"createdTime,omitzero"`
	LastUpdatedTime time.Time `json:"lastUpdatedTime,omitzero"` // default: when it is published
	// OccurredTime is when what the update tells of happened, for who knows that but no generation: what happened before the current
	// execution began is not about it. It is not shown.
	OccurredTime     time.Time `json:"occurredTime,omitzero"`
	ExecutionID      string    `json:"executionId,omitzero"`
	ParentInstanceID string    `json:"parentInstanceId,omitzero"`
	RootInstanceID   string    `json:"rootInstanceId,omitzero"`

	// Labels are what rights and lists go by, such as owner and tenant: at most 16, names of up to 64 characters, values of up
	// to 256. All updates of an execution must agree on them: two values for one label let nobody in.
	Labels map[string]string `json:"labels,omitempty"`

	// Traceparent is a W3C trace context; it travels beside the update.
	Traceparent string `json:"-"`
}

// Cleared as CustomStatus takes the custom status away.
const Cleared = cleared("null")

type cleared string

// MarshalJSON makes it null.
func (c cleared) MarshalJSON() ([]byte, error) { return []byte(c), nil }

// Kind says what an update is about.
type Kind string

const (
	KindSnapshot  Kind = "snapshot"
	KindProgress  Kind = "progress"  // its RuntimeStatus is not believed
	KindLifecycle Kind = "lifecycle" // its CustomStatus counts, if there is one
	KindPurged    Kind = "purged"    // the instance was deleted; needs Generation
)

// RuntimeStatus is the state of an orchestration.
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

// Failure is why an orchestration failed. Texts are cut to 256 characters and 16 KiB.
type Failure struct {
	Type    string `json:"type,omitzero"`
	Message string `json:"message,omitzero"`
}

// InvalidError says which field of an update breaks a rule.
type InvalidError struct {
	Index int    // of the update among those that Publish was given
	Field string // as in JSON
	Rule  string // that it breaks; holds nothing of the update
	Err   error  // why it could not be encoded, else nil; not a part of the text, since it may quote the value
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("update %d: %s: %s", e.Index, e.Field, e.Rule)
}

func (e *InvalidError) Unwrap() error { return e.Err }

const (
	maxValue    = 64 << 10 // of customStatus and output, in bytes of their canonical form
	maxDepth    = 32
	maxFailure  = 16 << 10
	maxName     = 256 // characters; ids and failure.type, too
	maxLabels   = 16
	maxLabelKey = 64
	// lead is how far a generation may lie ahead of the clock: it would make all later executions look old.
	lead = 10 * time.Minute
)

// complete fills in defaults, makes values canonical, leaves out or cuts what may be, and reports the first rule that the rest breaks.
func (u *Update) complete(now time.Time) *InvalidError {
	if u.LastUpdatedTime.IsZero() {
		u.LastUpdatedTime = now
	}
	u.CreatedTime, u.LastUpdatedTime, u.OccurredTime = u.CreatedTime.UTC(), u.LastUpdatedTime.UTC(), u.OccurredTime.UTC()
	if f := u.Failure; f != nil {
		u.Failure = &Failure{cutRunes(valid(f.Type), maxName), cutBytes(valid(f.Message), maxFailure)}
	}
	for _, v := range []struct {
		field string
		value *any
	}{{"customStatus", &u.CustomStatus}, {"output", &u.Output}} {
		if *v.value == nil {
			continue
		}
		text, depth, err := canonical(*v.value)
		if err != nil {
			err.Field = v.field
			return err
		}
		*v.value = text
		switch big := len(text) > maxValue; {
		case v.field == "output" && (big || depth > maxDepth || string(text) == "null"):
			*v.value = nil
		case big:
			return broken(v.field, "larger than %d bytes", maxValue)
		case depth > maxDepth:
			return broken(v.field, "nested deeper than %d", maxDepth)
		}
	}
	if u.Kind == "" {
		u.Kind = KindSnapshot
		switch {
		case u.CustomStatus != nil && u.RuntimeStatus == "":
			u.Kind = KindProgress
		case u.CustomStatus == nil && u.RuntimeStatus != "":
			u.Kind = KindLifecycle
		}
	}
	return u.check(now)
}

// check reports the first rule that a field breaks.
func (u *Update) check(now time.Time) *InvalidError {
	if rule := checkHub(u.Hub); u.Hub != "" && rule != "" {
		return broken("hub", "%s", rule)
	}
	if rule := checkID(u.InstanceID); rule != "" {
		return broken("instanceId", "%s", rule)
	}
	switch {
	case u.Generation < 0 || u.Generation > maxInteger:
		return broken("generation", "not from 1 to 2^53-1")
	case u.Generation > now.Add(lead).UnixMilli():
		return broken("generation", "more than %s ahead of the clock; it is in milliseconds", lead)
	case u.Sequence < 0 || u.Sequence > maxInteger:
		return broken("sequence", "not from 1 to 2^53-1, or a tick that is not from 1 to %d", ticks-1)
	case u.Kind == KindPurged && u.Generation == 0:
		return broken("generation", "required when kind is purged")
	}
	switch u.Kind {
	case KindSnapshot, KindProgress, KindLifecycle, KindPurged:
	default:
		return broken("kind", "not one of snapshot, progress, lifecycle, purged")
	}
	switch u.RuntimeStatus {
	case "", Pending, Running, Completed, Failed, Canceled, Terminated, Suspended, ContinuedAsNew:
	default:
		return broken("runtimeStatus", "not a runtime status")
	}
	for _, t := range []struct{ field, text string }{
		{"name", u.Name},
		{"executionId", u.ExecutionID},
		{"parentInstanceId", u.ParentInstanceID},
		{"rootInstanceId", u.RootInstanceID},
	} {
		if rule := checkText(t.text, maxName); rule != "" {
			return broken(t.field, "%s", rule)
		}
	}
	for _, t := range []struct {
		field string
		time  time.Time
	}{{"createdTime", u.CreatedTime}, {"lastUpdatedTime", u.LastUpdatedTime}, {"occurredTime", u.OccurredTime}} {
		if y := t.time.Year(); y < 1 || y > 9999 {
			return broken(t.field, "outside the years 1 to 9999")
		}
	}
	if u.Traceparent != "" && !isTraceparent(u.Traceparent) {
		return broken("traceparent", "not a W3C trace context")
	}
	return u.checkLabels()
}

func (u *Update) checkLabels() *InvalidError {
	if len(u.Labels) > maxLabels {
		return broken("labels", "more than %d", maxLabels)
	}
	for name, value := range u.Labels {
		if rule := checkText(name, maxLabelKey); name == "" || rule != "" {
			return broken("labels", "a name is not 1 to %d characters of UTF-8", maxLabelKey)
		}
		if rule := checkText(value, maxName); rule != "" {
			return broken("labels", "a value is %s", rule)
		}
	}
	return nil
}

func broken(field, rule string, args ...any) *InvalidError {
	return &InvalidError{Field: field, Rule: fmt.Sprintf(rule, args...)}
}

func checkHub(hub string) string {
	if len(hub) < 1 || len(hub) > 64 {
		return "not 1 to 64 characters long"
	}
	for _, c := range hub {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return "a character that is none of A-Z a-z 0-9 _ -"
		}
	}
	return ""
}

func checkID(id string) string {
	if id == "" {
		return "required"
	}
	if id[0] == '@' {
		return "starts with @" // which Durable Functions keeps for entities
	}
	for _, c := range id {
		switch {
		case strings.ContainsRune(`/\?#`, c):
			return `contains one of / \ ? #`
		case unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp):
			return "contains a control, bidirectional or zero-width character"
		}
	}
	return checkText(id, 256)
}

func checkText(text string, limit int) string {
	switch {
	case !utf8.ValidString(text):
		return "not valid UTF-8"
	case utf8.RuneCountInString(text) > limit:
		return fmt.Sprintf("longer than %d characters", limit)
	}
	return ""
}

// isTraceparent reports whether a text has the form of version-traceid-parentid-flags, in lower-case hex.
func isTraceparent(text string) bool {
	const form = "00-00000000000000000000000000000000-0000000000000000-00"
	if len(text) != len(form) {
		return false
	}
	for i := range len(form) {
		if c := text[i]; form[i] == '-' && c != '-' || form[i] != '-' && !strings.ContainsRune("0123456789abcdef", rune(c)) {
			return false
		}
	}
	return true
}

// canonical encodes a value as encoding/json does, without white space, names in order, strings in their shortest form and numbers as they are:
// so the relay keeps it, and limits count it.
func canonical(v any) (text jsontext.Value, depth int, invalid *InvalidError) {
	raw, err := json.Marshal(v)
	if err == nil {
		text, err = jsontext.AppendFormat(nil, raw, jsontext.ReorderRawObjects(true))
	}
	if err != nil {
		return nil, 0, &InvalidError{Rule: "cannot be encoded as I-JSON (RFC 7493)", Err: err}
	}
	d := jsontext.NewDecoder(bytes.NewReader(text))
	for {
		token, err := d.ReadToken()
		if err == io.EOF {
			return text, depth, nil
		}
		if err != nil {
			return nil, 0, &InvalidError{Rule: "cannot be encoded as I-JSON (RFC 7493)", Err: err}
		}
		depth = max(depth, d.StackDepth())
		if token.Kind() == jsontext.KindNumber {
			if _, err := strconv.ParseFloat(token.String(), 64); err != nil {
				return nil, 0, broken("", "a number beyond the range of a double")
			}
		}
	}
}

func valid(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// cutBytes returns at most the first n bytes of a text, ending with a whole character.
func cutBytes(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// cutRunes returns at most the first n characters of a text.
func cutRunes(text string, n int) string {
	for i := range text {
		if n == 0 {
			return text[:i]
		}
		n--
	}
	return text
}
