package wire

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"

	"statusrelay/internal/status"

	"github.com/go-json-experiment/json/jsontext"
)

// Encode writes a message as CloudEvents 1.0 structured JSON. Its update must be
// valid and its JSON values canonical, as Decode makes them; now is the time of
// the event. Decode returns an equal message, but for Update.Broker, which the
// receiver sets.
//
// An empty ID becomes hub/instanceId/generation/kind/sequence, which a broker may
// use to drop duplicates. The last part is random if the update does not declare
// both generation and sequence: two such updates may say different things. An
// empty Source becomes /hubs/{hub}/notifier.
//
// The envelope may carry a message that was accepted near [MaxMessageBytes]
// beyond it; whoever sends it finds out.
func Encode(m Message, now time.Time) []byte {
	u := &m.Update
	if m.ID == "" {
		m.ID = eventID(u)
	}
	if m.Source == "" {
		m.Source = "/hubs/" + u.Hub + "/notifier"
	}
	w := writer(make([]byte, 0, 768+len(u.CustomStatus)+len(u.Output)))
	w = append(w, `{"specversion":"1.0","type":"`+Type+`"`...)
	w.text("source", m.Source)
	w.text("subject", u.InstanceID)
	w.text("id", m.ID)
	w.time("time", now)
	w = append(w, `,"datacontenttype":"application/json"`...)
	w.optional("traceparent", m.Traceparent)
	w.optional("tracestate", m.Tracestate)
	w = append(w, `,"data":`...)
	w.update(u)
	w = append(w, '}')
	return w
}

func eventID(u *status.Update) string {
	generation, last := "-", ""
	if u.Generation != nil {
		generation = strconv.FormatInt(*u.Generation, 10)
		if u.Sequence != nil {
			last = strconv.FormatInt(*u.Sequence, 10)
		}
	}
	if last == "" {
		last = rand.Text()
	}
	return u.Hub + "/" + u.InstanceID + "/" + generation + "/" + string(u.Kind) + "/" + last
}

// writer appends the members of JSON objects. Names are literals of this file
// that need no escape.
type writer []byte

// name starts a member.
func (w *writer) name(name string) {
	if last := (*w)[len(*w)-1]; last != '{' {
		*w = append(*w, ',')
	}
	*w = append(*w, '"')
	*w = append(*w, name...)
	*w = append(*w, '"', ':')
}

// quote appends a string. Invalid UTF-8, which a valid update does not have,
// becomes U+FFFD.
func (w *writer) quote(text string) {
	*w, _ = jsontext.AppendQuote([]byte(*w), text)
}

func (w *writer) text(name, text string) {
	w.name(name)
	w.quote(text)
}

func (w *writer) optional(name, text string) {
	if text != "" {
		w.text(name, text)
	}
}

func (w *writer) integer(name string, n *int64) {
	if n != nil {
		w.name(name)
		*w = strconv.AppendInt(*w, *n, 10)
	}
}

func (w *writer) raw(name string, v json.RawMessage) {
	if v != nil {
		w.name(name)
		*w = append(*w, v...)
	}
}

func (w *writer) time(name string, t time.Time) {
	if t.IsZero() {
		return
	}
	w.name(name)
	*w = append(*w, '"')
	*w = t.UTC().AppendFormat(*w, time.RFC3339Nano)
	*w = append(*w, '"')
}

func (w *writer) update(u *status.Update) {
	*w = append(*w, '{')
	w.optional("hub", u.Hub)
	w.text("instanceId", u.InstanceID)
	w.optional("name", u.Name)
	w.integer("generation", u.Generation)
	w.integer("sequence", u.Sequence)
	w.optional("kind", string(u.Kind))
	w.optional("runtimeStatus", string(u.RuntimeStatus))
	w.raw("customStatus", u.CustomStatus)
	w.raw("output", u.Output)
	if f := u.Failure; f != nil {
		w.name("failure")
		*w = append(*w, '{')
		w.optional("type", f.Type)
		w.optional("message", f.Message)
		*w = append(*w, '}')
	}
	w.time("createdTime", u.CreatedTime)
	w.time("lastUpdatedTime", u.LastUpdatedTime)
	w.time("occurredTime", u.OccurredTime)
	w.optional("executionId", u.ExecutionID)
	w.optional("parentInstanceId", u.ParentInstanceID)
	w.optional("rootInstanceId", u.RootInstanceID)
	if len(u.Labels) > 0 {
		w.name("labels")
		*w = append(*w, '{')
		for _, key := range slices.Sorted(maps.Keys(u.Labels)) {
			if last := (*w)[len(*w)-1]; last != '{' {
				*w = append(*w, ',')
			}
			w.quote(key)
			*w = append(*w, ':')
			w.quote(u.Labels[key])
		}
		*w = append(*w, '}')
	}
	*w = append(*w, '}')
}
