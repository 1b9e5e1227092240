// Package documents serves the documents that describe the APIs, to anybody.
//
//	GET /openapi.yaml     what is answered over HTTP
//	GET /asyncapi.yaml    what is said on WebSockets
//
// It promises that they are those of this build: the tests hold the answers and
// the frames of the very same commit to them.
package documents

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"

	"statusrelay/internal/problem"
	"statusrelay/schemas"
)

// Handle has a mux serve the documents.
func Handle(mux *http.ServeMux) {
	for _, name := range []string{"openapi.yaml", "asyncapi.yaml"} {
		text, err := schemas.Documents.ReadFile(name)
		if err != nil {
			panic(err) // it is embedded under that name
		}
		mux.Handle("/"+name, serve(text))
	}
}

// serve answers with a text that never changes. It has no ranges, which
// http.ServeContent would offer: nobody reads a part of a document.
func serve(text []byte) http.Handler {
	sum := sha256.Sum256(text)
	etag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			problem.Write(w, problem.MethodNotAllowed())
			return
		}
		h.Set("ETag", etag)
		h.Set("Cache-Control", "public, max-age=300")
		h.Set("X-Content-Type-Options", "nosniff")
		if has(r.Header.Values("If-None-Match"), etag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", "application/yaml") // RFC 9512
		h.Set("Content-Length", strconv.Itoa(len(text)))
		_, _ = w.Write(text) // the client is gone: nobody is left to tell
	})
}

// has reports whether an If-None-Match field names the tag (RFC 9110 section
// 13.1.2), which has no comma in it. Proxies that compress make it a weak one.
func has(field []string, etag string) bool {
	for _, line := range field {
		for tag := range strings.SplitSeq(line, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}
