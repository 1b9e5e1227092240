package status

import (
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of an update (the contract that schemas/status-update.schema.json
// states for publishers). Text is counted in Unicode code points, as JSON
// Schema counts it; JSON values in bytes of their canonical form.
const (
	MaxInstanceID   = 256
	MaxHub          = 64
	MaxName         = 256
	MaxID           = 256 // executionId, parentInstanceId, rootInstanceId
	MaxLabels       = 16
	MaxLabelKey     = 64
	MaxLabelValue   = 256
	MaxCustomStatus = 64 << 10
	MaxOutput       = 64 << 10
	MaxFailureType  = 256
	MaxFailure      = 16 << 10 // failure.message, in bytes of UTF-8
	MaxDepth        = 32       // nesting of customStatus and output
	MaxInteger      = 1<<53 - 1
	// MaxRecordLabels bounds what the labels of many updates add up to.
	MaxRecordLabels = 64
	// MaxOtherNames bounds the names of an instance besides the one that is shown. So
	// many are too many: nobody may read it.
	MaxOtherNames = 3

	// GenerationLead is how far a generation may lie in the future. One that is
	// stamped further ahead would make all later executions look old.
	GenerationLead = 10 * time.Minute
)

// Validate reports the first field that breaks a rule of the update contract,
// as an *InvalidError. An empty hub is valid: readers have a default.
// Validate does not look into JSON values; whoever decodes them bounds them.
func (u *Update) Validate(now time.Time) error {
	if u.Hub != "" {
		if err := ValidHub(u.Hub); err != nil {
			return err
		}
	}
	if err := ValidInstanceID(u.InstanceID); err != nil {
		return err
	}
	if u.Generation != nil {
		g := *u.Generation
		if g < 0 || g > MaxInteger {
			return invalid("generation", "not an integer from 0 to 2^53-1")
		}
		if g > now.Add(GenerationLead).UnixMilli() {
			return invalid("generation", "more than %s ahead of the clock", GenerationLead)
		}
	}
	if u.Sequence != nil && (*u.Sequence < 0 || *u.Sequence > MaxInteger) {
		return invalid("sequence", "not an integer from 0 to 2^53-1")
	}
	switch u.Kind {
	case KindSnapshot, KindProgress, KindLifecycle:
	case KindPurged:
		if u.Generation == nil {
			return invalid("generation", "required when kind is purged")
		}
	default:
		return invalid("kind", "not one of snapshot, progress, lifecycle, purged")
	}
	if u.RuntimeStatus != "" {
		if _, ok := ParseRuntimeStatus(string(u.RuntimeStatus)); !ok {
			return invalid("runtimeStatus", "not a runtime status")
		}
	}
	if len(u.CustomStatus) > MaxCustomStatus {
		return invalid("customStatus", "larger than %d bytes", MaxCustomStatus)
	}
	if len(u.Output) > MaxOutput {
		return invalid("output", "larger than %d bytes", MaxOutput)
	}
	if f := u.Failure; f != nil {
		if utf8.RuneCountInString(f.Type) > MaxFailureType {
			return invalid("failure.type", "longer than %d characters", MaxFailureType)
		}
		if len(f.Message) > MaxFailure {
			return invalid("failure.message", "larger than %d bytes", MaxFailure)
		}
	}
	for _, t := range []struct {
		field, text string
		limit       int
	}{
		{"name", u.Name, MaxName},
		{"executionId", u.ExecutionID, MaxID},
		{"parentInstanceId", u.ParentInstanceID, MaxID},
		{"rootInstanceId", u.RootInstanceID, MaxID},
	} {
		if utf8.RuneCountInString(t.text) > t.limit {
			return invalid(t.field, "longer than %d characters", t.limit)
		}
	}
	return validLabels(u.Labels)
}

func validLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return invalid("labels", "more than %d", MaxLabels)
	}
	for k, v := range labels {
		if n := utf8.RuneCountInString(k); n == 0 || n > MaxLabelKey {
			return invalid("labels", "a name is not 1 to %d characters long", MaxLabelKey)
		}
		if utf8.RuneCountInString(v) > MaxLabelValue {
			return invalid("labels", "a value is longer than %d characters", MaxLabelValue)
		}
	}
	return nil
}

// ValidHub reports what is wrong with a hub name: 1 to 64 of A-Z a-z 0-9 _ -.
func ValidHub(hub string) error {
	if hub == "" || len(hub) > MaxHub {
		return invalid("hub", "not 1 to %d characters long", MaxHub)
	}
	for i := 0; i < len(hub); i++ {
		switch c := hub[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return invalid("hub", "a character that is none of A-Z a-z 0-9 _ -")
		}
	}
	return nil
}

// ValidInstanceID reports what is wrong with an instance id: 1 to 256
// characters, none of / \ ? # and none that a reader cannot see (control,
// bidirectional, zero-width), not starting with @ (which Durable Functions
// keeps for entities).
func ValidInstanceID(id string) error {
	const field = "instanceId"
	if id == "" {
		return invalid(field, "required")
	}
	if !utf8.ValidString(id) {
		return invalid(field, "not valid UTF-8")
	}
	if utf8.RuneCountInString(id) > MaxInstanceID {
		return invalid(field, "longer than %d characters", MaxInstanceID)
	}
	if id[0] == '@' {
		return invalid(field, "starts with @")
	}
	for _, r := range id {
		switch {
		case r == '/' || r == '\\' || r == '?' || r == '#':
			return invalid(field, "contains one of / \\ ? #")
		case invisible(r):
			return invalid(field, "contains a control, bidirectional or zero-width character")
		}
	}
	return nil
}

// invisible reports characters that make two different ids look the same:
// categories Cc, Cf (which has the bidirectional controls and zero-width
// joiners), Zl and Zp.
func invisible(r rune) bool {
	if r < 0x80 {
		return r < 0x20 || r == 0x7f // most ids; runs for every message
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}

// ParseRuntimeStatus reads a runtime status in any case (ASCII), with or without
// the protocol's ORCHESTRATION_STATUS_ prefix (behind which alone CONTINUED_AS_NEW
// is spelled with underscores), or as its number 0 to 7 in the engine's protocol.
func ParseRuntimeStatus(s string) (RuntimeStatus, bool) {
	if len(s) == 1 && '0' <= s[0] && int(s[0]-'0') < len(runtimeStatuses) {
		return runtimeStatuses[s[0]-'0'], true
	}
	const prefix = "ORCHESTRATION_STATUS_"
	if len(s) > len(prefix) && equalFoldASCII(s[:len(prefix)], prefix) {
		s = s[len(prefix):]
		if equalFoldASCII(s, "CONTINUED_AS_NEW") {
			return ContinuedAsNew, true
		}
	}
	for _, rs := range runtimeStatuses {
		if equalFoldASCII(s, string(rs)) {
			return rs, true
		}
	}
	return "", false
}

// equalFoldASCII is strings.EqualFold without Unicode's foldings: a long s or a
// Kelvin sign in a status is a mistake, and the schema says so too.
func equalFoldASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
