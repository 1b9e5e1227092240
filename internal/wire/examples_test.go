package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
	"statusrelay/schemas"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const (
	messageSchema = "urn:statusrelay:schema:status-message:v1"
	sentSchema    = "urn:statusrelay:schema:status-event:v1#/$defs/sent"
)

func compile(t testing.TB, id string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	names, err := fs.Glob(schemas.Schemas, "status-*.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := schemas.Schemas.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := c.AddResource(document.(map[string]any)["$id"].(string), document); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	s, err := c.Compile(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// judge returns what the schema says about a document that the decoder took for
// JSON.
func judge(t testing.TB, s *jsonschema.Schema, document []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatalf("not JSON for the schema: %v: %s", err, document)
	}
	return s.Validate(v)
}

// beyondSchema names the rule that JSON Schema cannot state and an error is
// about, "" if it is about another. These are all of them.
func beyondSchema(err *status.InvalidError) string {
	switch {
	case err.Reason == status.ReasonTooLarge:
		return "size of the message"
	case err.Reason == status.ReasonMalformed && strings.HasPrefix(err.Detail, "a number"):
		return "numbers"
	case err.Reason == status.ReasonMalformed:
		return "I-JSON"
	case err.Field == "customStatus" && strings.HasPrefix(err.Detail, "larger"):
		return "size"
	case err.Field == "customStatus" && strings.HasPrefix(err.Detail, "nested"):
		return "depth"
	case err.Field == "generation" && strings.HasPrefix(err.Detail, "more than"):
		return "the clock"
	}
	return ""
}

func refusal(t testing.TB, err error) *status.InvalidError {
	t.Helper()
	var invalid *status.InvalidError
	if !errors.As(err, &invalid) || !errors.Is(err, status.ErrInvalid) {
		t.Fatalf("got error %v (%T), want a *status.InvalidError", err, err)
	}
	return invalid
}

func examples(t testing.TB, directory string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	names, err := fs.Glob(schemas.Examples, path.Join("examples", directory, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		body, err := schemas.Examples.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[path.Join(directory, path.Base(name))] = body
	}
	if len(files) == 0 {
		t.Fatalf("no examples in %s", directory)
	}
	return files
}

// refused is a row of examples/refused.json.
type refused struct {
	Reason       status.Reason `json:"reason"`
	Field        string        `json:"field"`
	BeyondSchema string        `json:"beyondSchema"`
}

func refusals(t testing.TB) map[string]refused {
	t.Helper()
	text, err := schemas.Examples.ReadFile("examples/refused.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows map[string]refused
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	return rows
}

func TestGoodExamplesAreAccepted(t *testing.T) {
	message, sent := compile(t, messageSchema), compile(t, sentSchema)
	for name, body := range examples(t, "good") {
		m, err := wire.Decode(body, now)
		if err != nil {
			t.Errorf("%s: decoder: %v", name, err)
			continue
		}
		if err := judge(t, message, body); err != nil {
			t.Errorf("%s: schema: %v", name, err)
		}
		if err := judge(t, sent, wire.Encode(m, now)); err != nil {
			t.Errorf("%s: schema of what is sent: %v", name, err)
		}
	}
}

func TestBadExamplesAreRefusedForTheirReason(t *testing.T) {
	message := compile(t, messageSchema)
	rows := refusals(t)
	bad, malformed := examples(t, "bad"), examples(t, "malformed")
	for name, body := range bad {
		want := rows[name]
		_, err := wire.Decode(body, now)
		if err == nil {
			t.Errorf("%s: decoder accepts it", name)
			continue
		}
		got := refusal(t, err)
		if got.Reason != want.Reason || got.Field != want.Field {
			t.Errorf("%s: decoder: got %s about %q (%v), want %s about %q", name, got.Reason, got.Field, got, want.Reason, want.Field)
		}
		accepted := judge(t, message, body) == nil
		if accepted != (want.BeyondSchema != "") {
			t.Errorf("%s: schema accepts it: %v, beyond schema: %q", name, accepted, want.BeyondSchema)
		}
		if accepted && beyondSchema(got) != want.BeyondSchema {
			t.Errorf("%s: got %q beyond the schema (%v), want %q", name, beyondSchema(got), got, want.BeyondSchema)
		}
	}
	for name, body := range malformed {
		_, err := wire.Decode(body, now)
		if err == nil {
			t.Errorf("%s: decoder accepts it", name)
			continue
		}
		if got := refusal(t, err); got.Reason != rows[name].Reason || got.Field != rows[name].Field {
			t.Errorf("%s: got %s about %q (%v), want %s", name, got.Reason, got.Field, got, rows[name].Reason)
		}
	}
	for name := range rows {
		if bad[name] == nil && malformed[name] == nil && name != "malformed/empty.json" {
			t.Errorf("%s: listed, but not there", name)
		}
	}
}

// oddValues are put in the place of every field.
var oddValues = []string{
	`null`, `true`, `false`, `0`, `-0`, `-1`, `7`, `8`, `1.0`, `1e3`, `1.5`, `1e-400`, `1e999`, `9007199254740991`, `9007199254740992`,
	`""`, `"x"`, `"7"`, `"Running"`, `"running "`, `"purged"`, `"s3cret/s3cret"`, `"@s3cret"`, `"s3cret\u0000"`, `"\u200bs3cret"`,
	`"2026-11-22T06:35:26"`, `"2026-02-29T06:35:26Z"`, `"0001-01-01T06:35:26+01:00"`, `"0000-12-31T23:59:59Z"`,
	`{}`, `[]`, `["s3cret"]`, `{"s3cret":"s3cret"}`, `{"s3cret":null}`, `{"instanceId":"s3cret"}`, `{"type":7,"message":"s3cret"}`,
	`"` + strings.Repeat("é", 256) + `"`, `"` + strings.Repeat("é", 257) + `"`,
	strings.Repeat("[", 32) + strings.Repeat("]", 32), strings.Repeat("[", 33) + strings.Repeat("]", 33),
}

func TestDecoderAndSchemaAgreeOnChangedExamples(t *testing.T) {
	message := compile(t, messageSchema)
	seen := make(map[string]bool)
	beyond := make(map[string]int)
	check := func(name string, document any) {
		body, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(body)] {
			return
		}
		seen[string(body)] = true
		agree(t, message, name, body, beyond)
	}
	good := examples(t, "good")
	for _, name := range []string{"form-1-traceparent", "form-2-dapr", "form-3-full", "all-null", "kind-purged"} {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(good["good/"+name+".json"]))
		if err != nil {
			t.Fatal(err)
		}
		object := v.(map[string]any)
		change(object, func() { check(name, object) })
		if data, ok := object["data"].(map[string]any); ok {
			change(data, func() { check(name, object) })
		}
	}
	t.Logf("%d documents, refused for rules beyond the schema: %v", len(seen), beyond)
	for _, rule := range []string{"numbers", "depth", "the clock"} {
		if beyond[rule] == 0 {
			t.Errorf("no document broke the rule about %s", rule)
		}
	}
}

// change calls check once for each change of one member of an object.
func change(object map[string]any, check func()) {
	names := slices.Collect(maps.Keys(object))
	names = append(names, "kind", "runtimeStatus", "createdTime", "labels", "failure", "instanceId", "specversion", "data", "s3cret")
	for _, name := range names {
		old, there := object[name]
		delete(object, name)
		check()
		for _, odd := range oddValues {
			object[name] = json.RawMessage(odd)
			check()
		}
		delete(object, name)
		if there {
			object[name] = old
		}
	}
}

// hugeExponent finds numbers that the schema's library would write out.
var hugeExponent = regexp.MustCompile(`[eE][+-]?[0-9]{4}`)

// agree checks everything that holds for any input at all.
func agree(t testing.TB, message *jsonschema.Schema, name string, body []byte, beyond map[string]int) {
	t.Helper()
	m, err := wire.Decode(body, now)
	if err != nil {
		got := refusal(t, err)
		if strings.Contains(got.Error(), "s3cret") {
			t.Errorf("%s: error %q holds a part of %s", name, got, body)
		}
		rule := beyondSchema(got)
		beyond[rule]++
		if rule == "" && !hugeExponent.Match(body) && judge(t, message, body) == nil {
			t.Errorf("%s: only the schema accepts %s: %v", name, body, err)
		}
		return
	}
	if err := m.Update.Validate(now); err != nil {
		t.Errorf("%s: accepted %s, but %v", name, body, err)
	}
	if !hugeExponent.Match(body) {
		if err := judge(t, message, body); err != nil {
			t.Errorf("%s: only the decoder accepts %s: %v", name, body, err)
		}
	}
	encoded := wire.Encode(m, now)
	again, err := wire.Decode(encoded, now)
	if err != nil {
		if len(encoded) > wire.MaxMessageBytes {
			return
		}
		t.Fatalf("%s: %v in %s, encoded from %s", name, err, encoded, body)
	}
	if m.ID == "" {
		again.ID = ""
	}
	if m.Source == "" {
		again.Source = ""
	}
	if !reflect.DeepEqual(again, m) {
		t.Errorf("%s: round trip of %s\ngot  %+v\nwant %+v", name, body, again, m)
	}
}

func FuzzDecode(f *testing.F) {
	for _, directory := range []string{"good", "bad", "malformed"} {
		for _, body := range examples(f, directory) {
			f.Add(body)
		}
	}
	message := compile(f, messageSchema)
	f.Fuzz(func(t *testing.T, body []byte) {
		agree(t, message, "fuzz", body, make(map[string]int))
	})
}
