package redisstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/status"
)

// encode returns the stored form of a record: the one that its JSON tags
// describe, written by hand because it is the hottest code of the write path,
// and because omitempty of encoding/json/v2 would drop a custom status that was
// cleared (`null`).
func encode(r *status.Record) ([]byte, error) {
	e := encoder{buf: make([]byte, 0, 384+len(r.Progress.CustomStatus)+len(r.Lifecycle.Output))}
	e.begin('{')
	e.text("hub", r.Hub)
	e.text("id", r.InstanceID)
	e.textIf("name", r.Name)
	if len(r.OtherNames) > 0 {
		e.open("otherNames", '[')
		for _, name := range r.OtherNames {
			e.comma()
			e.quote(name)
		}
		e.close(']')
	}
	e.integerIf("gen", r.Generation)
	if r.Purged {
		e.raw("purged", "true")
	}
	if l := &r.Lifecycle; l.Position != (status.Position{}) || !l.Time.IsZero() || l.RuntimeStatus != "" || l.Output != nil || l.Failure != nil {
		e.open("lifecycle", '{')
		e.position(l.Position)
		e.time("t", l.Time)
		e.textIf("status", string(l.RuntimeStatus))
		e.value("output", l.Output)
		if f := l.Failure; f != nil {
			e.open("failure", '{')
			e.textIf("type", f.Type)
			e.textIf("message", f.Message)
			e.close('}')
		}
		e.close('}')
	}
	if p := &r.Progress; p.Position != (status.Position{}) || !p.Time.IsZero() || p.CustomStatus != nil {
		e.open("progress", '{')
		e.position(p.Position)
		e.time("t", p.Time)
		e.value("custom", p.CustomStatus)
		e.close('}')
	}
	e.time("created", r.CreatedTime)
	e.time("updated", r.LastUpdatedTime)
	e.textIf("execution", r.ExecutionID)
	e.textIf("parent", r.ParentInstanceID)
	e.textIf("root", r.RootInstanceID)
	if len(r.Labels) > 0 {
		e.open("labels", '{')
		for name, value := range r.Labels {
			e.text(name, value)
		}
		e.close('}')
	}
	if len(r.Conflicts) > 0 {
		e.open("conflicts", '[')
		for _, name := range r.Conflicts {
			e.comma()
			e.quote(name)
		}
		e.close(']')
	}
	e.close('}')
	if e.err != nil {
		return nil, fmt.Errorf("encode record: %w", e.err)
	}
	return e.buf, nil
}

// encoder appends JSON and keeps the first error.
type encoder struct {
	buf []byte
	err error
}

func (e *encoder) begin(bracket byte) { e.buf = append(e.buf, bracket) }

func (e *encoder) close(bracket byte) { e.buf = append(e.buf, bracket) }

func (e *encoder) open(name string, bracket byte) {
	e.name(name)
	e.begin(bracket)
}

func (e *encoder) comma() {
	if last := e.buf[len(e.buf)-1]; last != '{' && last != '[' {
		e.buf = append(e.buf, ',')
	}
}

func (e *encoder) name(name string) {
	e.comma()
	e.quote(name)
	e.buf = append(e.buf, ':')
}

func (e *encoder) quote(s string) {
	buf, err := jsontext.AppendQuote(e.buf, s)
	e.buf, e.err = buf, cmp.Or(e.err, err)
}

func (e *encoder) raw(name, value string) {
	e.name(name)
	e.buf = append(e.buf, value...)
}

func (e *encoder) text(name, value string) {
	e.name(name)
	e.quote(value)
}

func (e *encoder) textIf(name, value string) {
	if value != "" {
		e.text(name, value)
	}
}

func (e *encoder) integerIf(name string, n int64) {
	if n != 0 {
		e.name(name)
		e.buf = strconv.AppendInt(e.buf, n, 10)
	}
}

func (e *encoder) value(name string, v []byte) {
	if v != nil {
		e.name(name)
		e.buf = append(e.buf, v...)
	}
}

func (e *encoder) time(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	e.name(name)
	e.buf = append(e.buf, '"')
	buf, err := t.AppendText(e.buf)
	e.buf, e.err = append(buf, '"'), cmp.Or(e.err, err)
}

func (e *encoder) position(p status.Position) {
	if p == (status.Position{}) {
		return
	}
	e.open("p", '{')
	e.integerIf("c", int64(p.Class))
	e.integerIf("n", p.N)
	e.close('}')
}

// decode reads the record of an instance as it was stored, with its version.
// What Redis holds may have been written by anybody, so it refuses what this
// program would not have written. Unknown members it ignores: during an upgrade
// a newer replica may know more.
func decode(key status.Key, version, stored string) (*status.Record, error) {
	if stored == tooLarge || version == tooLarge {
		return nil, errTooLarge
	}
	v, err := strconv.ParseInt(version, 10, 64)
	if err != nil || v <= 0 || v > status.MaxInteger {
		return nil, errors.New("version is not an integer from 1 to 2^53-1")
	}
	r := &status.Record{Version: v}
	if err := json.Unmarshal([]byte(stored), r); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	if r.Key() != key {
		return nil, errors.New("record of another instance")
	}
	return r, check(r)
}

// check refuses what would break the merge or a reader.
//
// A custom status may be longer than an update's: a filter puts null in the
// place of array elements that nobody may see, which makes [1,1,…] up to two and a
// half times as long.
func check(r *status.Record) error {
	const maxCustomStatus = 3 * status.MaxCustomStatus
	if r.Generation < 0 || r.Generation > status.MaxInteger {
		return errors.New("generation is out of range")
	}
	for _, p := range [...]status.Position{r.Lifecycle.Position, r.Progress.Position} {
		if p.Class > status.Declared || p.Class == status.Declared && (p.N < 0 || p.N > status.MaxInteger) {
			return errors.New("position is out of range")
		}
	}
	if s := r.Lifecycle.RuntimeStatus; s != "" {
		if known, ok := status.ParseRuntimeStatus(string(s)); !ok || known != s {
			return errors.New("unknown runtime status")
		}
	}
	if len(r.Progress.CustomStatus) > maxCustomStatus || len(r.Lifecycle.Output) > status.MaxOutput {
		return errors.New("a JSON value is too large")
	}
	if len(r.Labels)+len(r.Conflicts) > status.MaxRecordLabels {
		return errors.New("too many labels")
	}
	if len(r.OtherNames) > status.MaxOtherNames {
		return errors.New("too many names")
	}
	for i, name := range append([]string{r.Name}, r.OtherNames...)[1:] {
		if name == "" || i == 0 && name >= r.Name || i > 0 && name >= r.OtherNames[i-1] {
			return errors.New("names are not sorted")
		}
	}
	if !slices.IsSorted(r.Conflicts) {
		return errors.New("conflicts are not sorted")
	}
	for _, name := range r.Conflicts {
		if _, both := r.Labels[name]; both {
			return errors.New("a label has a value and a conflict")
		}
	}
	return nil
}
