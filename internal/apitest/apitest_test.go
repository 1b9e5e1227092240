package apitest_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"statusrelay/internal/apitest"
	"statusrelay/schemas"
)

// An answer to GET /v1/instances/a that is as documented. Tests change it.
type answer struct {
	method, path string
	code         int
	header       http.Header
	body         string
}

const view = `{"hub":"h","instanceId":"a","runtimeStatus":"Running","customStatus":null,"version":7}`

func good() answer {
	return answer{
		method: "GET", path: "/v1/instances/a", code: 200, body: view,
		header: http.Header{
			"Cache-Control": {"private, no-cache"}, "Vary": {"Origin", "Authorization, Accept"}, "X-Content-Type-Options": {"nosniff"},
			"Etag": {`W/"AAAAAAAAAAAAAAAA"`}, "Retry-After": {"3"}, "Content-Type": {"application/json"}, "Access-Control-Allow-Origin": {"x"},
		},
	}
}

func (a answer) problem(code int, body string) answer {
	a.code, a.body = code, body
	a.header.Del("ETag")
	a.header.Set("Cache-Control", "no-store")
	a.header.Set("Content-Type", "application/problem+json")
	a.header.Del("Retry-After")
	return a
}

func (a answer) events(stream string) answer {
	a.header.Del("ETag")
	a.header.Set("Content-Type", "text/event-stream")
	a.body = stream
	return a
}

func TestWhatIsDocumentedPasses(t *testing.T) {
	api := apitest.New(t)
	head := good()
	head.method, head.body = "HEAD", ""
	notModified := good()
	notModified.code, notModified.body = 304, ""
	missing := good().problem(404, `{"type":"urn:statusrelay:problem:not-found","title":"t","status":404}`)
	nowhere := missing
	nowhere.path = "/v2/nowhere"
	method := good().problem(405, `{"type":"urn:statusrelay:problem:method-not-allowed","title":"t","status":405}`)
	method.method = "DELETE"
	method.header.Set("Allow", "GET, HEAD")
	for name, a := range map[string]answer{
		"view": good(), "head": head, "304": notModified, "404": missing, "no such path": nowhere, "no such method": method,
		"stream": good().events("retry: 1000\n\n: heartbeat\n\nevent: status\nid: 7\ndata: " + view + "\n\nevent: gone\nid: 8\ndata: {\"hub\":\"h\",\"instanceId\":\"a\",\"version\":8}\n\n"),
	} {
		if err := api.CheckResponse(httptest.NewRequest(a.method, a.path, nil), a.code, a.header, []byte(a.body)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatIsNotDocumentedFailsAndIsNamed(t *testing.T) {
	api := apitest.New(t)
	with := func(change func(*answer)) answer {
		a := good()
		change(&a)
		return a
	}
	problem := `{"type":"urn:statusrelay:problem:not-found","title":"t","status":404}`
	for want, a := range map[string]answer{
		"the status 418 is not documented":     with(func(a *answer) { a.code = 418 }),
		"header X-Powered-By: not documented":  with(func(a *answer) { a.header.Set("X-Powered-By", "x") }),
		"header Cache-Control: missing":        with(func(a *answer) { a.header.Del("Cache-Control") }),
		`header Cache-Control: ["public"]`:     with(func(a *answer) { a.header.Set("Cache-Control", "public") }),
		`header ETag: ["7"]`:                   with(func(a *answer) { a.header.Set("ETag", "7") }),
		`header Retry-After: ["soon"]`:         with(func(a *answer) { a.header.Set("Retry-After", "soon") }),
		`header Retry-After: ["0"]`:            with(func(a *answer) { a.header.Set("Retry-After", "0") }),
		`header Vary: ["Accept"]`:              with(func(a *answer) { a.header.Set("Vary", "Accept") }),
		"media type text/plain":                with(func(a *answer) { a.header.Set("Content-Type", "text/plain") }),
		"Content-Type":                         with(func(a *answer) { a.header.Del("Content-Type") }),
		"not JSON":                             with(func(a *answer) { a.body = view + "}" }),
		"input":                                with(func(a *answer) { a.body = strings.Replace(view, `{`, `{"input":1,`, 1) }),
		"at /version":                          with(func(a *answer) { a.body = strings.Replace(view, `7`, `"7"`, 1) }),
		"at /runtimeStatus":                    with(func(a *answer) { a.body = strings.Replace(view, `Running`, `running`, 1) }),
		"customStatus":                         with(func(a *answer) { a.body = strings.Replace(view, `"customStatus":null,`, ``, 1) }),
		"at /createdTime":                      with(func(a *answer) { a.body = strings.Replace(view, `{`, `{"createdTime":"2026-01-02T03:04:05+01:00",`, 1) }),
		"HEAD is answered with a body":         with(func(a *answer) { a.method = "HEAD" }),
		"none is documented":                   with(func(a *answer) { a.code = 304 }),
		"at /type":                             good().problem(404, strings.Replace(problem, "not-found", "lost", 1)),
		"at /status: not 404":                  good().problem(404, strings.Replace(problem, "404", "400", 1)),
		"no Allow":                             with(func(a *answer) { a.method = "PUT" }),
		"the status is not 404":                with(func(a *answer) { a.path = "/v1/nowhere" }),
		"does not begin with retry":            good().events("event: gone\nid: 8\ndata: {\"hub\":\"h\",\"instanceId\":\"a\",\"version\":8}\n\n"),
		`the name "progress" is not`:           good().events("retry: 1\n\nevent: progress\nid: 8\ndata: {}\n\n"),
		`id "9" is not the version 8`:          good().events("retry: 1\n\nevent: gone\nid: 9\ndata: {\"hub\":\"h\",\"instanceId\":\"a\",\"version\":8}\n\n"),
		"event 0, status: at /runtimeStatus":   good().events("retry: 1\n\nevent: status\nid: 7\ndata: " + strings.Replace(view, "Running", "x", 1) + "\n\n"),
		`event 0: the name "left" is not docu`: good().events("retry: 1\n\nevent: left\nid: 7\ndata: {}\n\n"), // of one instance
	} {
		err := api.CheckResponse(httptest.NewRequest(a.method, a.path, nil), a.code, a.header, []byte(a.body))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that names %s", err, want)
		}
	}
}

func TestFramesAreExactlyOneMessage(t *testing.T) {
	api := apitest.New(t)
	const status, azure = "status.v1.json", "json.webpubsub.azure.v1"
	for _, tt := range []struct {
		subprotocol string
		from        apitest.Sender
		frame, want string // "" for none
	}{
		{status, apitest.Server, `{"type":"status","hub":"h","instanceId":"a","version":7,"status":` + view + `}`, ""},
		{status, apitest.Server, `{"type":"left","list":"mine","hub":"h","instanceId":"a","version":7}`, ""},
		{status, apitest.Client, `{"type":"watch","instances":[{"instanceId":"a"}]}`, ""},
		{status, apitest.Client, `{"type":"watch","list":"mine"}`, ""},
		{azure, apitest.Server, `{"type":"ack","ackId":1,"success":true}`, ""},
		{azure, apitest.Server, `{"type":"message","from":"group","group":"h/a","dataType":"json","data":` + view + `}`, ""},

		{status, apitest.Server, `{"type":"status","hub":"h","instanceId":"a","version":7,"status":` + strings.Replace(view, `{`, `{"input":1,`, 1) + `}`, "input"},
		{status, apitest.Server, `{"type":"status","hub":"h","instanceId":"a","version":7,"status":` + strings.Replace(view, `Running`, `x`, 1) + `}`, "/status/runtimeStatus"},
		{status, apitest.Server, `{"type":"gone","hub":"h","instanceId":"a"}`, "version"},
		{status, apitest.Server, `{"type":"gone","hub":"h","instanceId":"a","version":7,"why":"x"}`, "why"},
		{status, apitest.Server, `{"type":"watch","list":"mine"}`, "no message of type watch"},
		{status, apitest.Server, `{"type":"bye"}`, "no message of type bye"},
		{status, apitest.Server, `{"type":"gone"`, "not JSON"},
		{status, apitest.Client, `{"type":"watch","list":"mine","instances":[{"instanceId":"a"}]}`, "not the message watchList"},
		{azure, apitest.Server, `{"type":"ack","ackId":1,"success":false}`, "error"},
		{azure, apitest.Server, `{"type":"gone","hub":"h","instanceId":"a","version":7}`, "no message of type gone"},
		{"status.v2.json", apitest.Server, `{}`, "no such subprotocol"},
	} {
		err := api.CheckFrame(tt.subprotocol, tt.from, []byte(tt.frame))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want an error that names %q", tt.frame, err, tt.want)
		}
	}
}

// Both documents describe the view. The one in AsyncAPI may not go its own way.
func TestViewIsTheSameInBothDocuments(t *testing.T) {
	type object struct {
		Required   []string
		Properties map[string]any
	}
	var views [2]object
	for i, name := range []string{"openapi.yaml", "asyncapi.yaml"} {
		text, err := schemas.Documents.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var document struct {
			Components struct {
				Schemas struct {
					View object `yaml:"View"`
				}
			}
		}
		if err := yaml.Unmarshal(text, &document); err != nil {
			t.Fatal(err)
		}
		views[i] = document.Components.Schemas.View
		for member, schema := range views[i].Properties {
			views[i].Properties[member] = forms(schema)
		}
	}
	got, _ := json.Marshal(views[1])
	if want, _ := json.Marshal(views[0]); string(got) != string(want) || len(views[0].Properties) < 8 {
		t.Errorf("asyncapi.yaml has %s\nopenapi.yaml has %s", got, want)
	}
}

// forms is a schema as far as both dialects write it alike.
func forms(schema any) any {
	members, _ := schema.(map[string]any)
	if ref, ok := members["$ref"].(string); ok && !strings.HasSuffix(ref, "/AnyValue") && !strings.HasSuffix(ref, "/Labels") {
		return ref
	}
	return map[string]any{"enum": members["enum"]}
}
