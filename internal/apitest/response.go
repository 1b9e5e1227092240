package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// transport lists the headers that belong to HTTP and not to an operation. CORS
// adds its own.
var transport = []string{"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding"}

func readOpenAPI() (*openapi3.T, error) {
	text, err := read("openapi.yaml")
	if err != nil {
		return nil, err
	}
	document, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	for _, s := range document.Components.Schemas {
		closeObject(s.Value)
	}
	return document, document.Validate(context.Background(), openapi3.EnableSchemaFormatValidation())
}

// closeObject forbids the members that an object's schema does not list. Schemas
// within schemas have names (spectral.yaml), so that all have their turn.
func closeObject(s *openapi3.Schema) {
	if len(s.Properties) > 0 && s.AdditionalProperties.Has == nil && s.AdditionalProperties.Schema == nil {
		no := false
		s.AdditionalProperties.Has = &no
	}
	if s.Type == nil && len(s.OneOf)+len(s.AnyOf)+len(s.AllOf) == 0 {
		s.Nullable = true // OpenAPI 3.0.3: what has no type may be null
	}
}

// Response holds an answer to the document. The request needs its method and
// path only.
func (a *API) Response(t testing.TB, r *http.Request, code int, header http.Header, body []byte) {
	t.Helper()
	if err := a.CheckResponse(r, code, header, body); err != nil {
		t.Errorf("%s %s was answered %d, which is not as openapi.yaml has it:\n%v\nheader %v\n%.2000s", r.Method, r.URL.Path, code, err, header, body)
	}
}

// Handler is a handler whose answers are all held to the document, once they are
// complete: streams are not for it.
func (a *API) Handler(t testing.TB, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Helper()
		recorded := httptest.NewRecorder()
		h.ServeHTTP(recorded, r)
		a.Response(t, r, recorded.Code, recorded.Header(), recorded.Body.Bytes())
		maps.Copy(w.Header(), recorded.Header())
		w.WriteHeader(recorded.Code)
		_, _ = w.Write(recorded.Body.Bytes()) // the client is gone: nobody is left to tell
	})
}

// CheckResponse returns all that is wrong with an answer.
func (a *API) CheckResponse(r *http.Request, code int, header http.Header, body []byte) error {
	template, item := a.find(r.URL.EscapedPath())
	if item == nil {
		return a.undocumented(http.StatusNotFound, code, body)
	}
	head := r.Method == http.MethodHead
	operation := item.GetOperation(r.Method)
	if operation == nil && head {
		operation = item.Get
	}
	if operation == nil {
		if header.Get("Allow") == "" {
			return fmt.Errorf("%s has no method %s, and no Allow says which it has", template, r.Method)
		}
		return a.undocumented(http.StatusMethodNotAllowed, code, body)
	}
	response := operation.Responses.Value(strconv.Itoa(code))
	if response == nil {
		return fmt.Errorf("%s: the status %d is not documented", operation.OperationID, code)
	}
	return errors.Join(
		checkHeaders(response.Value.Headers, header),
		a.checkContent(response.Value.Content, code, header.Get("Content-Type"), body, head),
	)
}

// find returns the item of a path. Templates stand for whole segments; a path
// that is there as it is goes first.
func (a *API) find(path string) (template string, item *openapi3.PathItem) {
	if item := a.document.Paths.Value(path); item != nil {
		return path, item
	}
	segments := strings.Split(path, "/")
	for template, item := range a.document.Paths.Map() {
		parts := strings.Split(template, "/")
		if len(parts) == len(segments) && match(parts, segments) {
			return template, item
		}
	}
	return "", nil
}

func match(parts, segments []string) bool {
	for i, part := range parts {
		if part != segments[i] && !(strings.HasPrefix(part, "{") && segments[i] != "") {
			return false
		}
	}
	return true
}

// undocumented checks the answer to what the document does not have.
func (a *API) undocumented(want, code int, body []byte) error {
	if code != want {
		return fmt.Errorf("neither path nor method are documented, and the status is not %d", want)
	}
	return a.checkJSON(a.document.Components.Schemas["Problem"], code, body)
}

func checkHeaders(documented openapi3.Headers, got http.Header) error {
	var errs []error
	known := map[string]bool{}
	for name, h := range documented {
		canonical := http.CanonicalHeaderKey(name)
		known[canonical] = true
		values := got.Values(canonical)
		switch {
		case len(values) > 0:
			if err := checkHeader(h.Value.Schema.Value, strings.Join(values, ", ")); err != nil {
				errs = append(errs, fmt.Errorf("header %s: %q: %w", name, values, err))
			}
		case h.Value.Required:
			errs = append(errs, fmt.Errorf("header %s: missing", name))
		}
	}
	for name := range got {
		if !known[name] && !slices.Contains(transport, name) && !strings.HasPrefix(name, "Access-Control-") {
			errs = append(errs, fmt.Errorf("header %s: not documented", name))
		}
	}
	return errors.Join(errs...)
}

func checkHeader(s *openapi3.Schema, text string) error {
	var value any = text
	if s.Type.Is("integer") {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return errors.New("not an integer")
		}
		value = float64(n)
	}
	return explain(s.VisitJSON(value, openapi3.EnableFormatValidation()))
}

func (a *API) checkContent(documented openapi3.Content, code int, contentType string, body []byte, head bool) error {
	if len(documented) == 0 || head && len(body) == 0 {
		if len(body) > 0 {
			return errors.New("there is a body, and none is documented")
		}
		return nil
	}
	if head {
		return errors.New("HEAD is answered with a body")
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("Content-Type %q: %w", contentType, err)
	}
	media := documented[mediaType]
	switch {
	case media == nil:
		return fmt.Errorf("the media type %s is not documented", mediaType)
	case mediaType == "text/event-stream":
		return a.checkEvents(media.Extensions["x-events"], body)
	case strings.HasSuffix(mediaType, "json"):
		return a.checkJSON(media.Schema, code, body)
	}
	return explain(media.Schema.Value.VisitJSON(string(body)))
}

func (a *API) checkJSON(s *openapi3.SchemaRef, code int, body []byte) error {
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	err := explain(s.Value.VisitJSON(value, openapi3.MultiErrors(), openapi3.VisitAsResponse(), openapi3.EnableFormatValidation()))
	if members, ok := value.(map[string]any); ok && s.Ref == "#/components/schemas/Problem" && members["status"] != float64(code) {
		err = errors.Join(err, fmt.Errorf("at /status: not %d, the status of the answer", code))
	}
	return err
}

// An Event is one of a stream (HTML, section 9.2). What only sets the time to
// come back, and comments, are none.
type Event struct {
	Name, ID string
	Data     []byte
}

// Events parses the complete events of a stream, of which more may come.
func Events(stream []byte) (events []Event) {
	for {
		block, rest, complete := bytes.Cut(stream, []byte("\n\n"))
		if !complete {
			return events
		}
		stream = rest
		var e Event
		for line := range strings.SplitSeq(string(block), "\n") {
			name, value, _ := strings.Cut(line, ":")
			value = strings.TrimPrefix(value, " ")
			switch name {
			case "event":
				e.Name = value
			case "id":
				e.ID = value
			case "data":
				e.Data = append(append(e.Data, value...), '\n')
			}
		}
		if e.Data != nil {
			e.Data = bytes.TrimSuffix(e.Data, []byte("\n"))
			events = append(events, e)
		}
	}
}

func (a *API) checkEvents(documented any, stream []byte) error {
	known, ok := documented.(map[string]any)
	if !ok {
		return errors.New("the document has no x-events")
	}
	var errs []error
	if !bytes.HasPrefix(stream, []byte("retry: ")) {
		errs = append(errs, errors.New("the stream does not begin with retry"))
	}
	for i, e := range Events(stream) {
		of, _ := known[e.Name].(map[string]any)
		ref, _ := of["$ref"].(string)
		s := a.document.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
		if s == nil {
			errs = append(errs, fmt.Errorf("event %d: the name %q is not documented", i, e.Name))
			continue
		}
		if err := a.checkJSON(s, 0, e.Data); err != nil {
			errs = append(errs, fmt.Errorf("event %d, %s: %w", i, e.Name, err))
		}
		var data struct{ Version json.Number }
		if json.Unmarshal(e.Data, &data) == nil && e.ID != data.Version.String() {
			errs = append(errs, fmt.Errorf("event %d, %s: id %q is not the version %s", i, e.Name, e.ID, data.Version))
		}
	}
	return errors.Join(errs...)
}
