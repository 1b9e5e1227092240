package httpapi

import (
	"iter"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"statusrelay/internal/status"
)

// params are the parameters of a request's query. Reading one notes what is wrong with it, and so may whoever finds the request
// wrong elsewhere; err says the first mistake.
// What nobody has read is unknown: a caller that misspells a filter must not be answered as if there were none.
type params struct {
	values url.Values
	read   map[string]bool
	wrong  error
}

func parseParams(r *http.Request) *params {
	if r.URL.RawQuery == "" {
		return new(params) // as most requests have none
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	p := &params{values: values, read: map[string]bool{}}
	if err != nil {
		p.fault("", "the query is not well formed")
	}
	return p
}

// refuse notes a mistake, if it is one.
func (p *params) refuse(err error) {
	if p.wrong == nil {
		p.wrong = err
	}
}

func (p *params) fault(name, detail string) { p.refuse(invalid(bounded(name), detail)) }

// has reports whether a parameter is there, without reading it.
func (p *params) has(name string) bool { return len(p.values[name]) > 0 }

// all returns every value of a parameter.
func (p *params) all(name string) []string {
	if p.values != nil {
		p.read[name] = true
	}
	return p.values[name]
}

// text returns the only value of a parameter, "" if it is not there.
func (p *params) text(name string) string {
	values := p.all(name)
	switch len(values) {
	case 0:
		return ""
	case 1:
		return values[0]
	}
	p.fault(name, "more than once")
	return ""
}

// number returns the only value of a parameter as an integer in a range, or what stands for one that is not there.
func (p *params) number(name string, from, to, absent int64) int64 {
	text := p.text(name)
	if !p.has(name) {
		return absent
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < from || n > to {
		p.fault(name, "not an integer from "+strconv.FormatInt(from, 10)+" to "+strconv.FormatInt(to, 10))
		return absent
	}
	return n
}

// err is the first mistake, one of which is a parameter that nobody has read.
func (p *params) err() error {
	if p.wrong != nil {
		return p.wrong
	}
	var unknown []string
	for name := range p.values {
		if !p.read[name] {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return invalid(bounded(slices.Min(unknown)), "not a parameter of this resource")
}

// bounded shortens what a caller has sent, which may be long, before it is sent back.
func bounded(text string) string {
	const most = 64
	text = strings.ToValidUTF8(text, "\uFFFD")
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return text
}

// query reads which instances are to be listed.
func (p *params) query(hub string) *status.Query {
	q := &status.Query{Hub: hub, Name: p.text("name")}
	for _, list := range p.all("runtimeStatus") {
		for text := range strings.SplitSeq(list, ",") {
			known, ok := status.ParseRuntimeStatus(strings.TrimSpace(text))
			if !ok {
				p.fault("runtimeStatus", "not a runtime status")
			}
			q.RuntimeStatus = append(q.RuntimeStatus, known)
		}
	}
	slices.Sort(q.RuntimeStatus)
	q.RuntimeStatus = slices.Compact(q.RuntimeStatus)
	for name := range p.values {
		if label, ok := strings.CutPrefix(name, "label."); ok {
			if q.Labels == nil {
				q.Labels = map[string]string{}
			}
			q.Labels[label] = p.text(name)
		}
	}
	p.refuse(q.Validate())
	return q
}

// prefersWait is how long the caller would wait (RFC 7240 section 4.3), 0 if they say nothing that can be honoured: a
// preference is no demand. Of several the first counts.
func prefersWait(h http.Header, most time.Duration) time.Duration {
	for _, line := range h.Values("Prefer") {
		for preference := range splitAtCommas(line) {
			preference, _, _ = strings.Cut(preference, ";") // its parameters
			name, value, _ := strings.Cut(preference, "=")
			if strings.EqualFold(strings.TrimSpace(name), "wait") {
				return time.Duration(min(wholeSeconds(strings.TrimSpace(value)), uint64(most/time.Second))) * time.Second
			}
		}
	}
	return 0
}

// wholeSeconds reads digits, which may be quoted. What is out of range is the greatest there is, and what is none is 0.
func wholeSeconds(text string) uint64 {
	if len(text) > 1 && text[0] == '"' && text[len(text)-1] == '"' {
		text = text[1 : len(text)-1]
	}
	if strings.Trim(text, "0123456789") != "" {
		return 0
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// splitAtCommas splits a field that is a list at the commas that stand in no quoted string (RFC 9110 section 5.6.4).
func splitAtCommas(field string) iter.Seq[string] {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(field); i++ {
			switch c := field[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case c == ',' && !quoted:
				if !yield(field[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(field[start:])
	}
}

// wantsStream reports whether the caller asks for an event stream, as EventSource does, and would not rather have JSON
// (RFC 9110 section 12.5.1).
func wantsStream(r *http.Request) bool {
	var stream, json float64
	for _, line := range r.Header.Values("Accept") {
		for media := range splitAtCommas(line) {
			switch name, p, err := mime.ParseMediaType(media); {
			case err != nil:
			case name == eventStream:
				stream = quality(p)
			case name == "application/json":
				json = quality(p)
			}
		}
	}
	return stream > 0 && stream >= json
}

// quality is how much a media type is wanted, 0 if it is not.
func quality(parameters map[string]string) float64 {
	text, ok := parameters["q"]
	if !ok {
		return 1
	}
	q, err := strconv.ParseFloat(text, 64)
	if err != nil || !(q >= 0 && q <= 1) { // nor is it NaN
		return 0
	}
	return q
}

// entityTags are the tags of If-None-Match, weakly compared (RFC 9110 section 8.8.3.2).
type entityTags struct {
	any  bool
	tags []string // without W/
}

// parseEntityTags reads If-None-Match. Entity tags contain no comma here, so that splitting at commas finds ours
// wherever it stands. "*" beside tags is a contradiction.
func parseEntityTags(h http.Header) (t entityTags, err error) {
	for _, line := range h.Values("If-None-Match") {
		for tag := range strings.SplitSeq(line, ",") {
			switch tag = strings.TrimSpace(tag); tag {
			case "":
			case "*":
				t.any = true
			default:
				t.tags = append(t.tags, strings.TrimPrefix(tag, "W/"))
			}
		}
	}
	if t.any && len(t.tags) > 0 {
		return t, invalid("If-None-Match", "* beside entity tags")
	}
	return t, nil
}

// conditional reports whether there are any.
func (t *entityTags) conditional() bool { return t.any || len(t.tags) > 0 }

// match reports whether one of them is the tag, or all are meant.
func (t *entityTags) match(etag string) bool { return t.any || t.has(etag) }

func (t *entityTags) has(etag string) bool {
	return slices.Contains(t.tags, strings.TrimPrefix(etag, "W/"))
}
