package wire_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

const ndjson = "application/x-ndjson"

func TestSplitCutsByContent(t *testing.T) {
	for _, c := range []struct {
		name, mediaType, body string
		want                  []string
	}{
		{"object", "application/json", `{"a":1}`, []string{`{"a":1}`}},
		{"object in white space", "", " \r\n{\"a\":\n1}\n ", []string{"{\"a\":\n1}"}},
		{"object called lines", ndjson, "{\"a\":\n1}\n", []string{"{\"a\":\n1}"}},
		{"scalar", "", `7`, []string{`7`}},
		{"array", "application/json", `[ {"a":1} , 2 ,[3]]`, []string{`{"a":1}`, `2`, `[3]`}},
		{"batch", "application/cloudevents-batch+json; charset=utf-8", "[\n{\"a\":1},\n{}\n]\n", []string{`{"a":1}`, `{}`}},
		{"array called lines", ndjson, `[{},{}]`, []string{`{}`, `{}`}},
		{"array called one object", "application/json", `[{}]`, []string{`{}`}},
		{"lines", ndjson, "{\"a\":1}\n{\"a\":2}\n", []string{`{"a":1}`, `{"a":2}`}},
		{"lines called JSON", "application/json", "{\"a\":1}\n{\"a\":2}", []string{`{"a":1}`, `{"a":2}`}},
		{"blank lines and carriage returns", "", "\r\n\n{}\r\n \t\r\n{}\r\n\n", []string{`{}`, `{}`}},
		{"line separators within", "", "{\"a\":\"\u2028\"}\n{\"b\":\"\u0085\"}\n", []string{"{\"a\":\"\u2028\"}", "{\"b\":\"\u0085\"}"}},
		{"a broken line amid others", "", "{}\n{\"a\n{}\n", []string{`{}`, `{"a`, `{}`}},
		{"two on a later line", "", "{}\n{}{}\n", []string{`{}`, `{}{}`}},
		{"a broken first line", ndjson + ";charset=utf-8", "{\"a\n{}\n", []string{`{"a`, `{}`}},
		{"lines of arrays", "", "[{}]\n[{}]\n", []string{`[{}]`, `[{}]`}},
		{"no I-JSON in an array", "", "[{\"a\":1,\"a\":2},\"\xff\",{}]", []string{`{"a":1,"a":2}`, "\"\xff\"", `{}`}},
	} {
		documents, err := wire.Split(c.mediaType, []byte(c.body))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var got []string
		for _, d := range documents {
			got = append(got, string(d))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestSplitRefusesWhatHasNoDocuments(t *testing.T) {
	for _, c := range []struct {
		name, mediaType, body string
		reason                status.Reason
	}{
		{"nothing", "", "", status.ReasonMalformed},
		{"white space", ndjson, " \n\r\n", status.ReasonMalformed},
		{"an empty batch", "application/cloudevents-batch+json", " [ ] ", status.ReasonNoUpdate},
		{"an array that does not end", "", `[{},`, status.ReasonMalformed},
		{"an array with more behind", "", `[{}] x`, status.ReasonMalformed},
		{"two objects on one line", "", `{}{}`, status.ReasonMalformed},
		{"a broken first line of JSON", "application/json", "{\"a\n{}\n", status.ReasonMalformed},
		{"text", "text/plain", "s3cret", status.ReasonMalformed},
		{"too many in an array", "", "[" + strings.Repeat("0,", wire.MaxBatch) + "0]", status.ReasonTooLarge},
		{"too many lines", "", strings.Repeat("0\n", wire.MaxBatch+1), status.ReasonTooLarge},
		{"deep nesting", "", strings.Repeat("[", 1<<20), status.ReasonMalformed},
	} {
		documents, err := wire.Split(c.mediaType, []byte(c.body))
		if err == nil {
			t.Errorf("%s: got %d documents", c.name, len(documents))
			continue
		}
		if got := refusal(t, err); got.Reason != c.reason || strings.Contains(got.Error(), "s3cret") {
			t.Errorf("%s: got %s (%v), want %s", c.name, got.Reason, got, c.reason)
		}
	}
	for _, body := range []string{"[" + strings.Repeat("0,", wire.MaxBatch-1) + "0]", strings.Repeat("0\n", wire.MaxBatch)} {
		documents, err := wire.Split("", []byte(body))
		if err != nil || len(documents) != wire.MaxBatch {
			t.Errorf("got %d documents, %v, want %d", len(documents), err, wire.MaxBatch)
		}
	}
}

func TestPoisonInABatchCostsOnlyItself(t *testing.T) {
	documents, err := wire.Split("", []byte(`[{"instanceId":"a"},{"instanceId":"b","instanceId":"c"},{"instanceId":"d"}]`))
	if err != nil {
		t.Fatal(err)
	}
	for i, wantOK := range []bool{true, false, true} {
		if _, err := wire.Decode(documents[i], now); (err == nil) != wantOK {
			t.Errorf("document %d: got %v", i, err)
		}
	}
}

func FuzzSplit(f *testing.F) {
	var all []byte
	for _, directory := range []string{"good", "bad", "malformed"} {
		for _, body := range examples(f, directory) {
			f.Add(ndjson, body)
			if line := bytes.ReplaceAll(body, []byte{'\n'}, nil); len(all) < 4096 {
				all = append(append(all, line...), '\n')
			}
		}
	}
	f.Add("", all)
	f.Add("application/json", []byte(`[{"instanceId":"a"},{"instanceId":"b"}]`))
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		documents, err := wire.Split(mediaType, body)
		if err != nil {
			refusal(t, err)
			return
		}
		if n := len(documents); n == 0 || n > wire.MaxBatch {
			t.Fatalf("got %d documents", n)
		}
		rest := body
		for _, d := range documents {
			if len(d) == 0 {
				t.Fatalf("an empty document in %q", body)
			}
			at := bytes.Index(rest, d)
			if at < 0 {
				t.Fatalf("%q is no part of %q, in order", d, body)
			}
			rest = rest[at+len(d):]
			if cap(d) != len(d) {
				t.Fatal("appending to a document would write into the next")
			}
			if _, err := wire.Decode(d, now); err != nil {
				refusal(t, err)
			}
		}
	})
}
