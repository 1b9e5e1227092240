package durablehttp

import (
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// errBody says why an answer's body is of no use; it holds nothing of it.
type errBody string

func (e errBody) Error() string { return string(e) }

const (
	errTooLarge errBody = "larger than is read"
	errNoStatus errBody = "no status object"
	errOther    errBody = "the status of another instance"
)

// maxValue bounds the text of a custom status or an output that is looked at. It may
// have white space that does not count, and both together fit into a message.
const maxValue = 96 << 10

// A member is one of a status object's that counts.
type member int

const (
	memberNone member = iota
	memberInstanceID
	memberName
	memberRuntimeStatus
	memberCustomStatus
	memberOutput
	memberCreatedTime
	memberLastUpdatedTime
	memberFailure
	memberCount
)

// field names the members in an update.
var field = [memberCount]string{
	memberInstanceID: "instanceId", memberName: "name", memberRuntimeStatus: "runtimeStatus", memberCustomStatus: "customStatus",
	memberOutput: "output", memberCreatedTime: "createdTime", memberLastUpdatedTime: "lastUpdatedTime", memberFailure: "failure",
}

// memberOf reads a name in any case. Beside the HTTP API's own names those that the
// SDKs give their status objects, which functions put in front of the API may have
// serialised (durable-domain 1.1); serialized: the value is JSON in a string.
func memberOf(name string) (m member, serialized bool) {
	switch lower(name) {
	case "instanceid":
		return memberInstanceID, false
	case "name":
		return memberName, false
	case "runtimestatus":
		return memberRuntimeStatus, false
	case "customstatus":
		return memberCustomStatus, false
	case "serializedcustomstatus":
		return memberCustomStatus, true
	case "output":
		return memberOutput, false
	case "serializedoutput":
		return memberOutput, true
	case "createdtime", "createdat":
		return memberCreatedTime, false
	case "lastupdatedtime", "lastupdatedat":
		return memberLastUpdatedTime, false
	case "failuredetails":
		return memberFailure, false
	}
	return memberNone, false
}

func lower(name string) string {
	b := []byte(name)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// A body reads an answer in one pass: inputs and histories, which may be huge and
// which some runtimes send although they are told not to, are passed over.
type body struct {
	limited *io.LimitedReader
	dec     *jsontext.Decoder
}

func newBody(r io.Reader, most int64) *body {
	limited := &io.LimitedReader{R: r, N: most + 1}
	return &body{limited, jsontext.NewDecoder(limited)}
}

// wrong tells a body that is too large, or was cut off on its way, from one that
// is none.
func (b *body) wrong(err error) error {
	if _, ok := errors.AsType[errBody](err); ok {
		return err
	}
	if b.limited.N <= 0 {
		return errTooLarge
	}
	if _, ok := errors.AsType[*jsontext.SyntacticError](err); ok || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errNoStatus // the library's text quotes what it has read
	}
	return err
}

// one reads an answer that is one status object.
func (b *body) one(now time.Time) (*status.Update, error) {
	u, err := b.object(now)
	if err != nil {
		return nil, b.wrong(err)
	}
	if _, err := b.dec.ReadToken(); err != io.EOF {
		return nil, b.wrong(errNoStatus)
	}
	return u, nil
}

// each reads an answer that is an array of them, and gives each that can be read.
func (b *body) each(now time.Time, give func(*status.Update)) (bad int, err error) {
	if b.dec.PeekKind() != jsontext.KindBeginArray {
		if _, err := b.dec.ReadToken(); err != nil {
			return 0, b.wrong(err)
		}
		return 0, b.wrong(errNoStatus)
	}
	if _, err := b.dec.ReadToken(); err != nil {
		return 0, b.wrong(err)
	}
	for b.dec.PeekKind() == jsontext.KindBeginObject {
		u, err := b.object(now)
		var invalid *status.InvalidError
		switch {
		case err == nil:
			give(u)
		case errors.As(err, &invalid):
			bad++ // it was read to its end
		default:
			return bad, b.wrong(err)
		}
	}
	if b.dec.PeekKind() != jsontext.KindEndArray {
		return bad, b.wrong(errNoStatus)
	}
	return bad, nil
}

// object reads the status object that comes next. Its error is an InvalidError if
// only its content is wrong.
func (b *body) object(now time.Time) (*status.Update, error) {
	if b.dec.PeekKind() != jsontext.KindBeginObject {
		if _, err := b.dec.ReadToken(); err != nil {
			return nil, err
		}
		return nil, errNoStatus
	}
	if _, err := b.dec.ReadToken(); err != nil {
		return nil, err
	}
	var values [memberCount]jsontext.Value
	for b.dec.PeekKind() == jsontext.KindString {
		name, err := b.dec.ReadToken()
		if err != nil {
			return nil, err
		}
		m, serialized := memberOf(name.String())
		if m == memberNone || values[m] != nil {
			err = b.dec.SkipValue()
		} else {
			values[m], err = b.value(serialized)
		}
		if err != nil {
			return nil, err
		}
	}
	if _, err := b.dec.ReadToken(); err != nil {
		return nil, err
	}
	return update(&values, now)
}

func (b *body) value(serialized bool) (jsontext.Value, error) {
	v, err := b.dec.ReadValue()
	if err != nil || !serialized || v.Kind() != jsontext.KindString {
		return v.Clone(), err
	}
	if text, err := jsontext.AppendUnquote(nil, v); err == nil && jsontext.Value(text).IsValid() {
		return text, nil
	}
	return v.Clone(), nil
}

// update makes an update of a status object: it is the members of one that count,
// in a bare update's clothes, and package wire knows what they mean.
func update(values *[memberCount]jsontext.Value, now time.Time) (*status.Update, error) {
	for _, m := range []member{memberCustomStatus, memberOutput} {
		if len(values[m]) > maxValue {
			values[m] = nil
		}
	}
	details := values[memberFailure]
	values[memberFailure] = nil
	u, err := decode(values, now)
	if err != nil || u.RuntimeStatus != status.Failed || !failed(values, details) {
		return u, err
	}
	return decode(values, now)
}

func decode(values *[memberCount]jsontext.Value, now time.Time) (*status.Update, error) {
	m, err := wire.Decode(bare(values), now)
	if invalid, ok := errors.AsType[*status.InvalidError](err); ok && invalid.Field == field[memberCustomStatus] {
		// Larger or deeper than is relayed. How it runs is worth saying all the same.
		values[memberCustomStatus] = nil
		m, err = wire.Decode(bare(values), now)
	}
	if err != nil {
		return nil, err
	}
	if m.Update.RuntimeStatus == "" {
		return nil, &status.InvalidError{Reason: status.ReasonInvalid, Field: field[memberRuntimeStatus], Detail: "required"}
	}
	return &m.Update, nil
}

// bare writes a bare update.
func bare(values *[memberCount]jsontext.Value) []byte {
	text := []byte{'{'}
	for m, v := range values {
		if v == nil {
			continue
		}
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = append(append(append(append(text, '"'), field[m]...), '"', ':'), v...)
	}
	return append(text, '}')
}

// failed puts in its place why an orchestration failed, and reports whether anybody
// says it. The HTTP API has the text where others have the output; details are what
// the SDKs have besides.
func failed(values *[memberCount]jsontext.Value, details jsontext.Value) bool {
	var f struct{ ErrorType, ErrorMessage string } // in any case
	has := func(v jsontext.Value) bool { return len(v) > 0 && json.Unmarshal(v, &f) == nil && f.ErrorMessage != "" }
	if output := values[memberOutput]; !has(details) {
		if !has(output) && (len(output) == 0 || json.Unmarshal(output, &f.ErrorMessage) != nil || f.ErrorMessage == "") {
			return false
		}
		values[memberOutput] = nil
	}
	text, err := json.Marshal(status.Failure{Type: f.ErrorType, Message: f.ErrorMessage})
	values[memberFailure] = text
	return err == nil
}
