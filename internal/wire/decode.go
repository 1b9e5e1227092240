package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"statusrelay/internal/status"

	"github.com/go-json-experiment/json/jsontext"
)

// Decode reads one message in any accepted form and validates it; now bounds its
// generation. Every error is a *status.InvalidError.
//
// The form is decided by content:
//
//  1. An object with instanceId is a bare update.
//  2. Any other object whose data is an object with instanceId is an envelope,
//     whatever its type says: CloudEvents 1.0 as [Encode] writes it, Dapr's, or
//     another.
//
// CloudEvents attributes are lower-case, so an object with instanceId and
// specversion is neither; it is refused, lest two readers take it for different
// things.
//
// The document must be I-JSON (RFC 7493): valid UTF-8, no unpaired surrogates, no name
// twice in one object however it is escaped and however deep, no number
// beyond a double. Numbers are otherwise kept as they were written.
//
// A null field is an absent one, with two exceptions: customStatus, which null
// clears, and instanceId, which is required. Fields that are not known are
// ignored. Output and failure never cost a lifecycle update: an output beyond
// [status.MaxOutput] or [status.MaxDepth] is dropped, the texts of a failure are
// cut to their limits.
func Decode(body []byte, now time.Time) (Message, error) {
	m, err := decode(body)
	if err == nil {
		err = m.Update.Validate(now)
	}
	if err != nil {
		return Message{}, err
	}
	return m, nil
}

// DecodeUnstamped is Decode for who gives positions to updates that have neither
// generation nor sequence: a purge may come without the generation that it needs in
// the end.
func DecodeUnstamped(body []byte, now time.Time) (Message, error) {
	m, err := decode(body)
	if err != nil {
		return Message{}, err
	}
	valid := m.Update
	if valid.Generation == nil && valid.Sequence == nil {
		valid.Generation = new(int64)
	}
	if err := valid.Validate(now); err != nil {
		return Message{}, err
	}
	return m, nil
}

// decode reads a message and leaves it to Validate what its fields may say.
func decode(body []byte) (Message, error) {
	if len(body) > MaxMessageBytes {
		return Message{}, &status.InvalidError{
			Reason: status.ReasonTooLarge,
			Detail: fmt.Sprintf("larger than %d bytes", MaxMessageBytes),
		}
	}
	p := parsers.Get().(*parser)
	defer parsers.Put(p)
	p.reset(body)
	var top, data object
	if err := p.document(&top, &data); err != nil {
		return Message{}, err
	}

	var m Message
	update := &top
	switch {
	case top.raw[fieldInstanceID] != nil && top.raw[fieldSpecVersion] != nil:
		return Message{}, noUpdate("instanceId", "beside specversion: neither an envelope nor a bare update")
	case top.raw[fieldInstanceID] != nil:
	case data.raw[fieldInstanceID] != nil:
		update = &data
		m.ID = attribute(top.raw[fieldID])
		m.Source = attribute(top.raw[fieldSource])
		m.Traceparent, m.Tracestate = Trace(attribute(top.raw[fieldTraceparent]), attribute(top.raw[fieldTracestate]))
	case top.raw[fieldData] != nil:
		return Message{}, noUpdate("data", "not an object with instanceId")
	default:
		return Message{}, noUpdate("", "neither instanceId nor data")
	}
	if err := update.decode(&m.Update); err != nil {
		return Message{}, err
	}
	return m, nil
}

func noUpdate(field, detail string) error {
	return &status.InvalidError{Reason: status.ReasonNoUpdate, Field: field, Detail: detail}
}

// field is a name that means something, in an update or in an envelope.
type field int

const (
	fieldUnknown field = iota
	fieldInstanceID
	fieldHub
	fieldName
	fieldGeneration
	fieldSequence
	fieldKind
	fieldRuntimeStatus
	fieldCustomStatus
	fieldOutput
	fieldFailure
	fieldCreatedTime
	fieldLastUpdatedTime
	fieldOccurredTime
	fieldExecutionID
	fieldParentInstanceID
	fieldRootInstanceID
	fieldLabels
	// Of an envelope only.
	fieldData
	fieldSpecVersion
	fieldID
	fieldSource
	fieldTraceparent
	fieldTracestate
	fieldCount
)

var fieldNames = [fieldCount]string{
	fieldInstanceID:       "instanceId",
	fieldHub:              "hub",
	fieldName:             "name",
	fieldGeneration:       "generation",
	fieldSequence:         "sequence",
	fieldKind:             "kind",
	fieldRuntimeStatus:    "runtimeStatus",
	fieldCustomStatus:     "customStatus",
	fieldOutput:           "output",
	fieldFailure:          "failure",
	fieldCreatedTime:      "createdTime",
	fieldLastUpdatedTime:  "lastUpdatedTime",
	fieldOccurredTime:     "occurredTime",
	fieldExecutionID:      "executionId",
	fieldParentInstanceID: "parentInstanceId",
	fieldRootInstanceID:   "rootInstanceId",
	fieldLabels:           "labels",
	fieldData:             "data",
	fieldSpecVersion:      "specversion",
	fieldID:               "id",
	fieldSource:           "source",
	fieldTraceparent:      "traceparent",
	fieldTracestate:       "tracestate",
}

// fieldOf is the inverse of fieldNames; a switch, because it runs for every name
// of every message.
func fieldOf(name []byte) field {
	switch string(name) {
	case "instanceId":
		return fieldInstanceID
	case "hub":
		return fieldHub
	case "name":
		return fieldName
	case "generation":
		return fieldGeneration
	case "sequence":
		return fieldSequence
	case "kind":
		return fieldKind
	case "runtimeStatus":
		return fieldRuntimeStatus
	case "customStatus":
		return fieldCustomStatus
	case "output":
		return fieldOutput
	case "failure":
		return fieldFailure
	case "createdTime":
		return fieldCreatedTime
	case "lastUpdatedTime":
		return fieldLastUpdatedTime
	case "occurredTime":
		return fieldOccurredTime
	case "executionId":
		return fieldExecutionID
	case "parentInstanceId":
		return fieldParentInstanceID
	case "rootInstanceId":
		return fieldRootInstanceID
	case "labels":
		return fieldLabels
	case "data":
		return fieldData
	case "specversion":
		return fieldSpecVersion
	case "id":
		return fieldID
	case "source":
		return fieldSource
	case "traceparent":
		return fieldTraceparent
	case "tracestate":
		return fieldTracestate
	}
	return fieldUnknown
}

// object is a JSON object whose fields were found but not yet judged: whether it
// is an update is known only when its enclosing document has been read to the
// end.
type object struct {
	raw                      [fieldCount][]byte // as written; nil = absent
	customShape, outputShape shape
	// Read on the way, because they are objects themselves.
	labels  map[string]string
	failure *status.Failure
	err     error // the first mistake in labels or failure
}

// objectSeen stands for a value that was read member by member.
var objectSeen = []byte("{}")

// parser reads one document in one pass and checks that it is I-JSON.
type parser struct {
	body []byte
	buf  bytes.Buffer // jsontext reads a bytes.Buffer in place
	dec  jsontext.Decoder
}

var parsers = sync.Pool{New: func() any { return new(parser) }}

func (p *parser) reset(body []byte) {
	p.body = body
	p.buf = *bytes.NewBuffer(body)
	p.dec.Reset(&p.buf)
}

// document reads the body into top and, if top has data that is an object, that
// into data.
func (p *parser) document(top, data *object) error {
	isObject := p.dec.PeekKind() == jsontext.KindBeginObject
	var err error
	if isObject {
		err = p.object(top, data)
	} else {
		_, _, err = p.value(fieldUnknown)
	}
	if err != nil {
		return err
	}
	if _, err := p.dec.ReadToken(); err != io.EOF {
		return p.malformed(err)
	}
	if !isObject {
		if body := bytes.TrimLeft(p.body, " \t\r\n"); len(body) > 0 && body[0] == '"' {
			return noUpdate("", "a JSON string, not an object: was it encoded twice?")
		}
		return noUpdate("", "not a JSON object")
	}
	return nil
}

// object reads the object that comes next into o. If it has data that is an
// object, that goes into data, unless data is nil.
func (p *parser) object(o, data *object) error {
	return p.members(func(name []byte) error {
		f := fieldOf(name)
		switch f {
		case fieldData, fieldLabels, fieldFailure:
			if p.dec.PeekKind() != jsontext.KindBeginObject || f == fieldData && data == nil {
				break
			}
			o.raw[f] = objectSeen
			switch f {
			case fieldLabels:
				return p.labels(o)
			case fieldFailure:
				return p.failure(o)
			}
			return p.object(data, nil)
		}
		raw, s, err := p.value(f)
		o.raw[f] = raw
		switch f {
		case fieldCustomStatus:
			o.customShape = s
		case fieldOutput:
			o.outputShape = s
		}
		return err
	})
}

func (p *parser) labels(o *object) error {
	return p.members(func(name []byte) error {
		key := string(name)
		raw, _, err := p.value(fieldLabels)
		if err != nil {
			return err
		}
		if raw[0] != '"' {
			o.reject(invalid("labels", "a value is not a string"))
			return nil
		}
		if o.labels == nil {
			o.labels = make(map[string]string)
		}
		o.labels[key] = string(unquote(raw))
		return nil
	})
}

func (p *parser) failure(o *object) error {
	var failure status.Failure
	err := p.members(func(name []byte) error {
		var text *string
		var path string
		switch string(name) {
		case "type":
			text, path = &failure.Type, "failure.type"
		case "message":
			text, path = &failure.Message, "failure.message"
		}
		raw, _, err := p.value(fieldFailure)
		switch {
		case err != nil:
			return err
		case text == nil || isNull(raw):
		case raw[0] != '"':
			o.reject(invalid(path, "not a string"))
		default:
			*text = string(unquote(raw))
		}
		return nil
	})
	failure.Type = cutRunes(failure.Type, status.MaxFailureType)
	failure.Message = cutBytes(failure.Message, status.MaxFailure)
	if failure != (status.Failure{}) {
		o.failure = &failure
	}
	return err
}

// members reads the object that comes next, calling member behind each name; it
// must read the value. The name is unquoted and valid until then.
func (p *parser) members(member func(name []byte) error) error {
	if _, err := p.dec.ReadToken(); err != nil {
		return p.malformed(err)
	}
	for p.dec.PeekKind() == jsontext.KindString {
		name, err := p.dec.ReadValue()
		if err != nil {
			return p.malformed(err)
		}
		if err := member(unquote(name)); err != nil {
			return err
		}
	}
	if _, err := p.dec.ReadToken(); err != nil {
		return p.malformed(err)
	}
	return nil
}

// value reads the value that comes next, as a part of the body.
func (p *parser) value(f field) (raw []byte, s shape, err error) {
	v, err := p.dec.ReadValue()
	if err != nil {
		return nil, shape{}, p.malformed(err)
	}
	end := int(p.dec.InputOffset())
	raw = p.body[end-len(v) : end : end] // v itself is good until the next read only
	s = inspect(raw)
	if !s.doubles {
		return nil, shape{}, &status.InvalidError{
			Reason: status.ReasonMalformed,
			Field:  fieldNames[f],
			Detail: "a number beyond the range of a double",
		}
	}
	return raw, s, nil
}

// malformed says in what way the body is no I-JSON document. The library's own
// text is not used: it quotes the body.
func (p *parser) malformed(err error) error {
	detail := "not one well-formed JSON document"
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		detail = "a name occurs twice in one object"
	case err == io.EOF:
		return &status.InvalidError{Reason: status.ReasonMalformed, Detail: "empty"}
	case !utf8.Valid(p.body):
		detail = "not valid UTF-8"
	}
	var syntactic *jsontext.SyntacticError
	if errors.As(err, &syntactic) {
		detail = fmt.Sprintf("%s, at byte %d", detail, syntactic.ByteOffset)
	}
	return &status.InvalidError{Reason: status.ReasonMalformed, Detail: detail}
}

// reject keeps the first mistake.
func (o *object) reject(err error) {
	if o.err == nil {
		o.err = err
	}
}

// decode reads an update out of its raw fields. What it accepts still has to be
// validated.
func (o *object) decode(u *status.Update) error {
	u.InstanceID = o.text(fieldInstanceID)
	u.Hub = o.text(fieldHub)
	if u.Hub == "" && o.has(fieldHub) {
		o.reject(status.ValidHub("")) // absent is valid, empty is not
	}
	u.Name = o.text(fieldName)
	u.ExecutionID = o.text(fieldExecutionID)
	u.ParentInstanceID = o.text(fieldParentInstanceID)
	u.RootInstanceID = o.text(fieldRootInstanceID)
	u.Generation = o.integer(fieldGeneration)
	u.Sequence = o.integer(fieldSequence)
	u.CreatedTime = o.time(fieldCreatedTime)
	u.LastUpdatedTime = o.time(fieldLastUpdatedTime)
	u.OccurredTime = o.time(fieldOccurredTime)
	u.RuntimeStatus = o.runtimeStatus()
	u.CustomStatus = o.customStatus()
	u.Output = o.output()
	if o.has(fieldFailure) && o.raw[fieldFailure][0] != '{' {
		o.reject(invalid("failure", "not an object"))
	}
	u.Failure = o.failure
	if o.has(fieldLabels) && o.raw[fieldLabels][0] != '{' {
		o.reject(invalid("labels", "not an object"))
	}
	u.Labels = o.labels
	u.Kind = o.kind()
	if u.Kind == "" {
		u.Kind = defaultKind(u)
	}
	return o.err
}

// defaultKind names the lanes whose field is present. An update without either
// carries labels and shown fields only, which any kind may.
func defaultKind(u *status.Update) status.Kind {
	switch {
	case u.CustomStatus != nil && u.RuntimeStatus == "":
		return status.KindProgress
	case u.CustomStatus == nil && u.RuntimeStatus != "":
		return status.KindLifecycle
	}
	return status.KindSnapshot
}

// has reports whether a field is there and not null.
func (o *object) has(f field) bool { return o.raw[f] != nil && !isNull(o.raw[f]) }

func isNull(raw []byte) bool { return raw[0] == 'n' }

// bytes returns the text of a string field, nil if it is absent.
func (o *object) bytes(f field) []byte {
	if !o.has(f) {
		return nil
	}
	if o.raw[f][0] != '"' {
		o.reject(invalid(fieldNames[f], "not a string"))
		return nil
	}
	return unquote(o.raw[f])
}

func (o *object) text(f field) string { return string(o.bytes(f)) }

func (o *object) integer(f field) *int64 {
	if !o.has(f) {
		return nil
	}
	n, ok := parseInteger(o.raw[f])
	if !ok {
		o.reject(invalid(fieldNames[f], "not an integer from 0 to 2^53-1"))
		return nil
	}
	return &n
}

func (o *object) time(f field) time.Time {
	text := o.bytes(f)
	if text == nil {
		return time.Time{}
	}
	t, mistake := parseTime(text)
	if mistake != "" {
		o.reject(invalid(fieldNames[f], mistake))
	}
	return t
}

func (o *object) kind() status.Kind {
	if !o.has(fieldKind) {
		return ""
	}
	switch string(o.bytes(fieldKind)) {
	case string(status.KindSnapshot):
		return status.KindSnapshot
	case string(status.KindProgress):
		return status.KindProgress
	case string(status.KindLifecycle):
		return status.KindLifecycle
	case string(status.KindPurged):
		return status.KindPurged
	}
	o.reject(invalid("kind", "not one of snapshot, progress, lifecycle, purged"))
	return ""
}

func (o *object) runtimeStatus() status.RuntimeStatus {
	if !o.has(fieldRuntimeStatus) {
		return ""
	}
	raw := o.raw[fieldRuntimeStatus]
	var s status.RuntimeStatus
	var ok bool
	if raw[0] == '"' {
		s, ok = status.ParseRuntimeStatus(string(unquote(raw)))
	} else if n, isInteger := parseInteger(raw); isInteger && 0 <= n && n <= 9 {
		s, ok = status.ParseRuntimeStatus(string(rune('0' + n)))
	}
	if !ok {
		o.reject(invalid("runtimeStatus", "not a runtime status"))
	}
	return s
}

func (o *object) customStatus() json.RawMessage {
	const f = fieldCustomStatus
	if o.raw[f] == nil {
		return nil
	}
	if o.customShape.depth > status.MaxDepth {
		o.reject(invalid("customStatus", fmt.Sprintf("nested deeper than %d", status.MaxDepth)))
		return nil
	}
	return canonical(o.raw[f], o.customShape) // Validate judges its size
}

// output returns nil for one that is too large or too deep: the end of an
// orchestration is worth more than its result.
func (o *object) output() json.RawMessage {
	if !o.has(fieldOutput) || o.outputShape.depth > status.MaxDepth {
		return nil
	}
	if v := canonical(o.raw[fieldOutput], o.outputShape); len(v) <= status.MaxOutput {
		return v
	}
	return nil
}

// attribute returns an envelope's string attribute. The envelope is only a help:
// what is not usable is not there.
func attribute(raw []byte) string {
	if len(raw) == 0 || raw[0] != '"' {
		return ""
	}
	if text := unquote(raw); len(text) <= MaxAttribute {
		return string(text)
	}
	return ""
}
