package documents_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"statusrelay/internal/apitest"
	"statusrelay/internal/documents"
	"statusrelay/schemas"
)

func ask(method, path string, header ...string) (*http.Request, *httptest.ResponseRecorder) {
	mux := http.NewServeMux()
	documents.Handle(mux)
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return r, w
}

func TestDocumentsAreThoseOfThisBuild(t *testing.T) {
	api := apitest.New(t)
	for _, name := range []string{"openapi.yaml", "asyncapi.yaml"} {
		want, err := schemas.Documents.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		r, w := ask(http.MethodGet, "/"+name)
		if w.Code != http.StatusOK || w.Body.String() != string(want) || w.Header().Get("Content-Type") != "application/yaml" {
			t.Errorf("%s: got %d %v and %d bytes", name, w.Code, w.Header(), w.Body.Len())
		}
		api.Response(t, r, w.Code, w.Header(), w.Body.Bytes())
	}
}

func TestDocumentsAreSentOnce(t *testing.T) {
	api := apitest.New(t)
	_, first := ask(http.MethodGet, "/openapi.yaml")
	etag := first.Header().Get("ETag")
	if _, other := ask(http.MethodGet, "/asyncapi.yaml"); other.Header().Get("ETag") == etag {
		t.Error("both documents have the same ETag")
	}
	for field, code := range map[string]int{
		etag: 304, "W/" + etag: 304, `"x", ` + etag: 304, "*": 304, `"x"`: 200, strings.Trim(etag, `"`): 200,
	} {
		r, w := ask(http.MethodGet, "/openapi.yaml", "If-None-Match", field)
		if w.Code != code || w.Header().Get("ETag") != etag {
			t.Errorf("If-None-Match %s: got %d, want %d", field, w.Code, code)
		}
		api.Response(t, r, w.Code, w.Header(), w.Body.Bytes())
	}
}

func TestDocumentsAreOnlyRead(t *testing.T) {
	r, w := ask(http.MethodPut, "/openapi.yaml")
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("got %d, want 405", w.Code)
	}
	apitest.New(t).Response(t, r, w.Code, w.Header(), w.Body.Bytes())
}
