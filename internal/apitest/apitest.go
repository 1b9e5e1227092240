// Package apitest holds answers and frames to the documents that describe them,
// schemas/openapi.yaml and schemas/asyncapi.yaml. It is for tests only.
//
// Clients must ignore members that they do not know, so that ours may be added;
// the documents leave all objects open for that. Here they are closed: what we
// send is documented, to the last header and member, or the test fails.
//
//	api := apitest.New(t)
//	api.Response(t, request, recorder.Code, recorder.Header(), recorder.Body.Bytes())
//	api.Frame(t, "status.v1.json", apitest.Server, frame)
//
// Beside what is documented, a path that is not may be answered with 404, and a
// method that is not with 405.
package apitest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"statusrelay/schemas"
)

// API is both documents, read. It can be used by several goroutines at once.
type API struct {
	document *openapi3.T
	frames   map[channel][]message
}

// New is Read for one test.
func New(t testing.TB) *API {
	t.Helper()
	a, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Read reads the documents, which takes a tenth of a second: where many tests
// need them, they share what it returns.
func Read() (*API, error) {
	document, err := readOpenAPI()
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	frames, err := readAsyncAPI()
	if err != nil {
		return nil, fmt.Errorf("asyncapi.yaml: %w", err)
	}
	return &API{document, frames}, nil
}

func read(name string) ([]byte, error) {
	text, err := schemas.Documents.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("reading: %w", err)
	}
	return text, nil
}

// explain names the place in a JSON document that an error of a schema is about.
func explain(err error) error {
	var many openapi3.MultiError
	if errors.As(err, &many) {
		list := make([]error, len(many))
		for i := range many {
			list[i] = explain(many[i])
		}
		return errors.Join(list...)
	}
	if bad := (*openapi3.SchemaError)(nil); errors.As(err, &bad) {
		if bad.Origin != nil { // the one of a part says more
			if part := (*openapi3.SchemaError)(nil); errors.As(bad.Origin, &part) {
				return explain(bad.Origin)
			}
		}
		return fmt.Errorf("%s: %s", pointer(bad.JSONPointer()), bad.Reason)
	}
	if bad := (*jsonschema.ValidationError)(nil); errors.As(err, &bad) {
		return errors.New(bad.Error())
	}
	return err
}

func pointer(path []string) (text string) {
	for _, name := range path {
		text += "/" + name
	}
	return "at " + text
}
