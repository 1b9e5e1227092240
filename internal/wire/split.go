package wire

import (
	"bytes"
	"fmt"
	"io"
	"mime"

	"statusrelay/internal/status"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Split cuts a request body into the documents of its updates, at most
// [MaxBatch]. They are parts of body and were not decoded: each is to be judged
// by itself, so that one mistake does not cost the others. Errors are
// *status.InvalidError and mean that nothing of the body can be used.
//
// Content decides, mediaType (which may be "") helps:
//
//   - one array is a batch, of CloudEvents or of bare updates;
//   - one other value is a single document;
//   - several lines are NDJSON if the first is a value by itself, or if the media
//     type says so. Lines end with \n; a \r before it and blank lines are skipped.
func Split(mediaType string, body []byte) ([][]byte, error) {
	first, rest, err := firstValue(body)
	switch {
	case err == io.EOF:
		return nil, &status.InvalidError{Reason: status.ReasonMalformed, Detail: "empty"}
	case err == nil && len(bytes.TrimLeft(rest, space)) == 0:
		if first[0] == '[' {
			return elements(first)
		}
		return [][]byte{first}, nil
	case isLines(mediaType), err == nil && endsLine(rest):
		return lines(body)
	case err == nil:
		return nil, &status.InvalidError{Reason: status.ReasonMalformed, Detail: "more than one JSON document on one line"}
	}
	return nil, &status.InvalidError{Reason: status.ReasonMalformed, Detail: "neither JSON nor lines of JSON"}
}

// space is JSON's white space (RFC 8259, section 2).
const space = " \t\r\n"

// lenient finds where documents end and leaves it to Decode what is wrong with
// them.
var lenient = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

func firstValue(body []byte) (first, rest []byte, err error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), lenient)
	v, err := dec.ReadValue()
	if err != nil {
		return nil, nil, err
	}
	end := dec.InputOffset()
	return body[end-int64(len(v)) : end : end], body[end:], nil
}

// isLines reports whether a media type means NDJSON.
func isLines(mediaType string) bool {
	name, _, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return false
	}
	switch name {
	case "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines":
		return true
	}
	return false
}

// endsLine reports whether only white space stands before the end of the line.
func endsLine(rest []byte) bool {
	line, _, found := bytes.Cut(rest, []byte{'\n'})
	return found && len(bytes.TrimLeft(line, space)) == 0
}

func lines(body []byte) ([][]byte, error) {
	var documents [][]byte
	for line := range bytes.Lines(body) {
		line = bytes.Trim(line, space)
		if len(line) == 0 {
			continue
		}
		if len(documents) == MaxBatch {
			return nil, tooMany()
		}
		documents = append(documents, line[:len(line):len(line)])
	}
	return documents, nil
}

// elements cuts an array that firstValue has read.
func elements(array []byte) ([][]byte, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(array), lenient)
	_, err := dec.ReadToken()
	var documents [][]byte
	for err == nil && dec.PeekKind() != jsontext.KindEndArray {
		if len(documents) == MaxBatch {
			return nil, tooMany()
		}
		var v jsontext.Value
		v, err = dec.ReadValue()
		end := dec.InputOffset()
		documents = append(documents, array[end-int64(len(v)):end:end])
	}
	if err != nil {
		panic("wire: an array that was read cannot be read again: " + err.Error())
	}
	if len(documents) == 0 {
		return nil, noUpdate("", "an empty batch")
	}
	return documents, nil
}

func tooMany() error {
	return &status.InvalidError{
		Reason: status.ReasonTooLarge,
		Detail: fmt.Sprintf("more than %d documents in one body", MaxBatch),
	}
}
