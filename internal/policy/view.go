package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/status"
)

// View is a record as one audience sees it.
type View struct {
	// JSON is one object (DESIGN 4, "The view").
	JSON []byte
	// ETag is a validator, as the header has it (RFC 9110, section 8.8.3). It
	// does not cover the version, so that a change which the audience cannot
	// see leaves it alone; that is what makes it a weak one.
	ETag string
}

// etagBytes is how much of the SHA-256 an ETag has: two contents of one
// instance meet by chance once in 2^48 contents.
const etagBytes = 12

// View encodes what the audience may see of a record. The record must be none
// for which Audience answers nil; of a tombstone there is no view, only the
// zero one. JSON values in the record must be valid, as status.Update has them.
func (a *Audience) View(r *status.Record) View {
	if r.Purged {
		return View{}
	}
	p := a.projectors.borrow()
	defer a.projectors.giveBack(p)
	custom := a.customStatus(r, p)
	output := r.Lifecycle.Output
	if !a.sees.output {
		output = nil
	}

	// One allocation in the usual case; failure and labels may need another.
	const fixed = len(`{"hub":"","instanceId":"","name":"","runtimeStatus":"ContinuedAsNew","customStatus":,` +
		`"createdTime":"2006-01-02T15:04:05.999999999Z","lastUpdatedTime":"2006-01-02T15:04:05.999999999Z",` +
		`"version":9007199254740991,"output":,"partial":true,"stale":true}`)
	b := make([]byte, 0, fixed+len(r.Hub)+len(r.InstanceID)+len(r.Name)+len(custom)+len(output)+64)

	b = appendString(append(b, `{"hub":`...), r.Hub)
	b = appendString(append(b, `,"instanceId":`...), r.InstanceID)
	if r.Name != "" {
		b = appendString(append(b, `,"name":`...), r.Name)
	}
	b = appendString(append(b, `,"runtimeStatus":`...), string(r.RuntimeStatus()))
	b = append(append(b, `,"customStatus":`...), custom...)
	b = appendTime(b, `,"createdTime":`, r.CreatedTime)
	b = appendTime(b, `,"lastUpdatedTime":`, r.LastUpdatedTime)
	at := len(b)
	if output != nil {
		b = append(append(b, `,"output":`...), output...)
	}
	if a.sees.failure && r.Lifecycle.Failure != nil {
		b = appendFailure(b, r.Lifecycle.Failure)
	}
	if r.Partial() {
		b = append(b, `,"partial":true`...)
	}
	if r.Stale {
		b = append(b, `,"stale":true`...)
	}
	if a.sees.labels && len(r.Labels) > 0 {
		b = appendLabels(b, r.Labels)
	}
	b = append(b, '}')

	etag := etagOf(b)
	var version [len(`,"version":`) + 20]byte
	b = slices.Insert(b, at, strconv.AppendInt(append(version[:0], `,"version":`...), r.Version, 10)...)
	return View{b, etag}
}

// customStatus is what the audience may see of the custom status, null if that is nothing. It may be the projector's.
func (a *Audience) customStatus(r *status.Record, p *projector) []byte {
	custom := []byte(r.Progress.CustomStatus)
	if custom == nil {
		return []byte("null")
	}
	if !a.sees.customStatus.sees() {
		custom = p.project(a.sees.customStatus, custom)
	}
	for _, f := range a.also {
		if !f.sees() {
			custom = p.project(f, bytes.Clone(custom)) // which may be the projector's
		}
	}
	return custom
}

// Values returns what the audience may see of a record, for forms other than View's: its custom status, null if that is
// nothing; its output and its failure, nil if it has none or the audience may not see it.
func (a *Audience) Values(r *status.Record) (custom, output []byte, failure *status.Failure) {
	p := a.projectors.borrow()
	custom = bytes.Clone(a.customStatus(r, p))
	a.projectors.giveBack(p)
	if a.sees.output {
		output = r.Lifecycle.Output
	}
	if a.sees.failure {
		failure = r.Lifecycle.Failure
	}
	return custom, output, failure
}

func etagOf(content []byte) string {
	sum := sha256.Sum256(content)
	var buf [len(`W/""`) + (etagBytes*8+5)/6]byte
	b := append(buf[:0], `W/"`...)
	b = base64.RawURLEncoding.AppendEncode(b, sum[:etagBytes])
	return string(append(b, '"'))
}

func appendFailure(b []byte, f *status.Failure) []byte {
	b = append(b, `,"failure":{`...)
	if f.Type != "" {
		b = appendString(append(b, `"type":`...), f.Type)
	}
	if f.Message != "" {
		if f.Type != "" {
			b = append(b, ',')
		}
		b = appendString(append(b, `"message":`...), f.Message)
	}
	return append(b, '}')
}

func appendLabels(b []byte, labels map[string]string) []byte {
	var names [status.MaxRecordLabels]string
	sorted := slices.AppendSeq(names[:0], maps.Keys(labels))
	slices.Sort(sorted)
	b = append(b, `,"labels":`...)
	for i, name := range sorted {
		b = append(b, "{,"[min(i, 1)])
		b = appendString(b, name)
		b = appendString(append(b, ':'), labels[name])
	}
	return append(b, '}')
}

// appendTime appends a member with a time in RFC 3339, or nothing when the time
// is unknown.
func appendTime(b []byte, member string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(append(b, member...), '"')
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"')
}

// appendString appends s as a JSON string. What is no UTF-8 becomes U+FFFD,
// which is the only thing AppendQuote has to complain of.
func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s)
	return b
}
