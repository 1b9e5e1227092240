package wire_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"testing"
	"time"

	"statusrelay/internal/wire"

	"github.com/go-json-experiment/json/jsontext"
)

var typical = []byte(`{"specversion":"1.0","type":"durable.status.v1","source":"/hubs/documents/tap","subject":"BATCH-4711","id":"documents/BATCH-4711/1795329326923/snapshot/3","time":"2026-11-22T06:35:26.927688407Z","datacontenttype":"application/json","data":{"hub":"documents","instanceId":"BATCH-4711","name":"DocumentBatch","generation":1795329326923,"sequence":3,"kind":"snapshot","runtimeStatus":"Running","customStatus":{"file":"inv-1-0001.pdf","of":300,"percent":0.3,"step":1},"createdTime":"2026-11-22T06:35:26.923907627Z","lastUpdatedTime":"2026-11-22T06:35:26.92728688Z","executionId":"297a4020-e824-48a3-a99e-ac43f7383167","labels":{"owner":"u-1002","tenant":"fabrikam"}}}`)

var now = time.Date(2026, 11, 22, 7, 0, 0, 0, time.UTC)

func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct {
		name string
		body []byte
	}{
		{"canonical", typical}, // as Encode writes it
		{"foreign", bytes.Replace(typical, []byte(`"of":300,"percent":0.3`), []byte(`"percent":0.3,"of":300`), 1)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.body)))
			for b.Loop() {
				if _, err := wire.Decode(c.body, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	// The floor: reading the same tokens and doing nothing with them.
	b.Run("tokens", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(typical)))
		var dec jsontext.Decoder
		for b.Loop() {
			dec.Reset(bytes.NewBuffer(typical))
			for {
				if _, err := dec.ReadToken(); err == io.EOF {
					break
				} else if err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	// What it costs elsewhere: the standard library, without any of the rules.
	b.Run("encoding-json", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(typical)))
		for b.Loop() {
			var v struct {
				ID, Source string
				Data       struct {
					Hub, InstanceID, Name, Kind, RuntimeStatus, ExecutionID string
					Generation, Sequence                                    int64
					CustomStatus                                            json.RawMessage
					CreatedTime, LastUpdatedTime                            time.Time
					Labels                                                  map[string]string
				}
			}
			if err := json.Unmarshal(typical, &v); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	m, err := wire.Decode(typical, now)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		wire.Encode(m, now)
	}
}

func TestEncodeWritesWhatTheRecordingsHold(t *testing.T) {
	body, err := os.ReadFile("testdata/recorded.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	documents, err := wire.Split("", body)
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range documents {
		m, err := wire.Decode(document, now)
		if err != nil {
			t.Errorf("%v in %s", err, document)
			continue
		}
		when := eventTime(t, document)
		got, want := wire.Encode(m, when), shortestStrings(t, document)
		if !bytes.Equal(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// shortestStrings undoes the escapes that the recorder made for HTML.
func shortestStrings(t *testing.T, document []byte) []byte {
	t.Helper()
	v, err := jsontext.AppendFormat(nil, document)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func eventTime(t *testing.T, event []byte) time.Time {
	t.Helper()
	_, rest, _ := bytes.Cut(event, []byte(`"time":"`))
	text, _, _ := bytes.Cut(rest, []byte{'"'})
	when, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		t.Fatal(err)
	}
	return when
}
