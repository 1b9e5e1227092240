package httpapi

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// durable answers as the status URL that Durable Functions has built in, so that what polls that one needs another host
// only (Microsoft, "HTTP API reference for Durable Functions", get instance status): 202 with Location and Retry-After while
// it runs, 200 when it has ended. It has neither input nor history; that they are asked for is no mistake, and nor is any
// parameter that is not known here, since the built-in one ignores those too.
func (a *API) durable(w *boundedWriter, r *http.Request) (int, error) {
	query := durableQuery(r.URL.Query())
	key := status.Key{Hub: a.o.DefaultHub, InstanceID: r.PathValue("instanceId")}
	if hub := query.text("taskHub"); hub != "" {
		key.Hub = hub
	}
	who, err := a.authenticateDurable(r, query, key)
	if err == nil {
		err = a.rates.charge(w, who, requestCost)
	}
	if err != nil {
		return 0, err
	}
	if status.ValidHub(key.Hub) != nil || status.ValidInstanceID(key.InstanceID) != nil {
		return 0, status.ErrNotFound // which is what clients of the built-in one understand
	}
	record, audience, err := a.find(w, r, who, key)
	if err != nil {
		return 0, err
	}
	h := w.Header()
	h.Set("Cache-Control", "private, no-cache")
	code := http.StatusOK
	switch {
	case !record.Terminal():
		code = http.StatusAccepted
		h.Set("Location", a.location(r, query))
		h.Set("Retry-After", seconds(a.retryAfter(record, time.Now())))
	case record.RuntimeStatus() == status.Failed && strings.EqualFold(query.text("returnInternalServerErrorOnFailure"), "true"):
		code = http.StatusInternalServerError
	}
	return writeJSON(w, code, durableStatus(audience, record)), nil
}

// functionKeyHeader is where clients of the built-in URL send their key, if not in the parameter code.
const functionKeyHeader = "X-Functions-Key"

// authenticateDurable says who asks, by a bearer token, by a link, or by an API key in a place where clients of the built-in
// URL have a function key. What is no API key there is one of those, which means nothing here, whatever else is shown.
func (a *API) authenticateDurable(r *http.Request, query durableQuery, key status.Key) (*auth.Principal, error) {
	if isLink(url.Values(query)) {
		return a.verifyLink(r, &params{values: url.Values(query), read: map[string]bool{}}, key)
	}
	if functionKey := functionKey(r, query); len(r.Header.Values("Authorization")) == 0 && auth.IsAPIKey(functionKey) {
		return a.o.Verify(r.Context(), functionKey)
	}
	return auth.Authenticate(r, a.o.Verify)
}

// functionKey is the key that a client of the built-in URL sends; "" if there is none, or more than one.
func functionKey(r *http.Request, query durableQuery) string {
	switch headers := r.Header.Values(functionKeyHeader); len(headers) {
	case 0:
		return query.text("code")
	case 1:
		return headers[0]
	}
	return ""
}

// A durableQuery has parameters whose names are matched in any case, as the built-in URL's are.
type durableQuery url.Values

// text is the first value of a parameter, "" if there is none.
func (q durableQuery) text(name string) string {
	for _, n := range slices.Sorted(maps.Keys(q)) {
		if strings.EqualFold(n, name) {
			return q[n][0]
		}
	}
	return ""
}

// location is the URL that the caller has asked for. A function key, which existing callers send and nobody here wants, is
// not sent back; an API key in its place is, and so is a link, without which the URL would open nothing.
func (a *API) location(r *http.Request, query durableQuery) string {
	if len(r.Header.Values("Authorization")) > 0 || !auth.IsAPIKey(query.text("code")) {
		maps.DeleteFunc(query, func(name string, _ []string) bool { return strings.EqualFold(name, "code") })
	}
	u := a.base(r) + r.URL.EscapedPath()
	if encoded := url.Values(query).Encode(); encoded != "" {
		u += "?" + encoded
	}
	return u
}

// base is what the caller sees in front of every path; "" if that is not known.
func (a *API) base(r *http.Request) string {
	base := a.o.PublicURL
	if base == "" && plainHost(r.Host) { // else the path will do (RFC 9110 section 10.2.2)
		scheme := "http"
		if r.TLS != nil || r.URL.Scheme == "https" { // as a proxy that is trusted says
			scheme = "https"
		}
		base = scheme + "://" + r.Host
	}
	return base
}

// plainHost reports whether that is a host, and a port perhaps. net/http lets more pass, which callers may take for more.
func plainHost(host string) bool {
	return host != "" && strings.Trim(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]") == ""
}

// durableStatus is a view in the form of Durable Functions' status object: every member is always there, as its clients
// insist, and times have whole seconds.
func durableStatus(audience *policy.Audience, r *status.Record) []byte {
	created, changed := r.CreatedTime, r.LastUpdatedTime
	if changed.IsZero() {
		changed = r.Changed()
	}
	if created.IsZero() && r.Generation > 0 {
		created = time.UnixMilli(r.Generation)
	}
	if created.IsZero() {
		created = changed
	}
	custom, output, failure := audience.Values(r)
	if output == nil {
		output = []byte("null")
		if failure != nil { // that is where the built-in one has the text
			output, _ = jsontext.AppendQuote(nil, failure.Message)
		}
	}
	b := appendMember([]byte{'{'}, "name", r.Name)
	b = appendMember(append(b, ','), "instanceId", r.InstanceID)
	b = appendMember(append(b, ','), "runtimeStatus", string(r.RuntimeStatus()))
	b = append(append(b, `,"input":null,"customStatus":`...), custom...)
	b = append(append(b, `,"output":`...), output...)
	b = appendMember(append(b, ','), "createdTime", durableTime(created))
	b = appendMember(append(b, ','), "lastUpdatedTime", durableTime(changed))
	return append(b, '}')
}

func durableTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func appendMember(b []byte, name, value string) []byte {
	b, _ = jsontext.AppendQuote(b, name) // what is no UTF-8 becomes U+FFFD, and that is all it can complain of
	b, _ = jsontext.AppendQuote(append(b, ':'), value)
	return b
}
