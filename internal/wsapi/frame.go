package wsapi

import (
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/auth"
	"statusrelay/internal/problem"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// The types of frames.
const (
	typeAuth      = "auth"
	typeWatch     = "watch"
	typeUnwatch   = "unwatch"
	typeWatching  = "watching"
	typeUnwatched = "unwatched"
)

// A request is a frame from a client. Members that are not listed are ignored.
type request struct {
	Type        string     `json:"type"`
	Ref         string     `json:"ref"`   // echoed in the answer
	Token       string     `json:"token"` // auth
	Instances   []instance `json:"instances"`
	List        string     `json:"list"`        // the client's name for a list, instead of instances
	Query       query      `json:"query"`       // what the list has
	MinInterval int64      `json:"minInterval"` // milliseconds
}

// A query is what a list has. Members that are not listed are refused: one that is misspelt would select too much.
type query struct {
	Hub           string            `json:"hub"`
	Name          string            `json:"name"`
	RuntimeStatus []string          `json:"runtimeStatus"`
	Labels        map[string]string `json:"labels"`
	Limit         int               `json:"limit"`
	Unknown       jsontext.Value    `json:",embed"`
}

func (q *query) query() *status.Query {
	s := &status.Query{Hub: q.Hub, Name: q.Name, Labels: q.Labels}
	for _, text := range q.RuntimeStatus {
		known, ok := status.ParseRuntimeStatus(text)
		if !ok {
			known = status.RuntimeStatus(text) // Validate says so
		}
		if !slices.Contains(s.RuntimeStatus, known) {
			s.RuntimeStatus = append(s.RuntimeStatus, known)
		}
	}
	return s
}

type instance struct {
	Hub        string `json:"hub"`
	InstanceID string `json:"instanceId"`
	After      int64  `json:"after"` // the newest version that the client has
}

func (i *instance) key() status.Key { return status.Key{Hub: i.Hub, InstanceID: i.InstanceID} }

const (
	maxRef      = 128    // bytes
	maxList     = 64     // bytes of a list's name
	maxInterval = 60_000 // milliseconds
	maxDepth    = 8      // of nested values in a frame: three are needed, and the parser recurses into what it ignores

	// defaultLimit is how many instances a list has unless the client says.
	defaultLimit = 50
)

func invalid(field, detail string) error {
	return &status.InvalidError{Reason: status.ReasonInvalid, Field: field, Detail: detail}
}

// decode reads a frame and fills in the default hub. Duplicate names and invalid UTF-8 are errors. The request is good for
// its Ref even when there is an error, which is always an InvalidError.
func decode(frame []byte, defaultHub string) (request, error) {
	var r request
	if depth(frame) > maxDepth {
		return r, invalid("", "nested too deeply")
	}
	err := json.Unmarshal(frame, &r)
	if len(r.Ref) > maxRef {
		r.Ref = ""
		return r, invalid("ref", "longer than "+strconv.Itoa(maxRef)+" bytes")
	}
	if err != nil {
		return r, &status.InvalidError{Reason: status.ReasonMalformed, Detail: "not a JSON object of this protocol"}
	}
	switch r.Type {
	case typeAuth:
		if r.Token == "" {
			return r, invalid("token", "required")
		}
		return r, nil
	case typeWatch, typeUnwatch:
	default:
		return r, invalid("type", "not one of auth, watch, unwatch")
	}
	if r.MinInterval < 0 || r.MinInterval > maxInterval {
		return r, invalid("minInterval", "not 0 to "+strconv.Itoa(maxInterval))
	}
	if r.List != "" {
		return r, r.checkList(defaultHub)
	}
	if n := len(r.Instances); n == 0 || n > maxInstances {
		return r, invalid("instances", "not 1 to "+strconv.Itoa(maxInstances))
	}
	for i := range r.Instances {
		in := &r.Instances[i]
		if in.Hub == "" || in.Hub == defaultHub {
			in.Hub = defaultHub // the same string for all watches
		}
		if err := status.ValidHub(in.Hub); err != nil {
			return r, err
		}
		if err := status.ValidInstanceID(in.InstanceID); err != nil {
			return r, err
		}
		if in.After < 0 || in.After > status.MaxInteger {
			return r, invalid("after", "not an integer from 0 to 2^53-1")
		}
	}
	return r, nil
}

// checkList checks a request for a list and fills in what it leaves out.
func (r *request) checkList(defaultHub string) error {
	switch q := &r.Query; {
	case len(r.List) > maxList:
		return invalid("list", "longer than "+strconv.Itoa(maxList)+" bytes")
	case len(r.Instances) > 0:
		return invalid("instances", "beside a list")
	case r.Type == typeUnwatch:
		return nil
	case len(q.Unknown) > 2: // {}
		return invalid("query", "a member that is none of hub, name, runtimeStatus, labels, limit")
	case q.Limit < 0 || q.Limit > maxInstances:
		return invalid("query.limit", "not 1 to "+strconv.Itoa(maxInstances))
	default:
		if q.Limit == 0 {
			q.Limit = defaultLimit
		}
		if q.Hub == "" {
			q.Hub = defaultHub
		}
		return q.query().Validate()
	}
}

// depth returns how deeply a JSON text is nested. What it returns for other texts does not matter.
func depth(text []byte) int {
	deepest, open, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			open++
			deepest = max(deepest, open)
		case c == '}' || c == ']':
			open--
		}
	}
	return deepest
}

// The frames to clients. Their strings have been decoded from JSON, or validated as UTF-8.

func appendString(b []byte, s string) []byte {
	b, _ = jsontext.AppendQuote(b, s) // fails for invalid UTF-8 only
	return b
}

func appendKey(b []byte, k status.Key) []byte {
	b = appendString(append(b, `"hub":`...), k.Hub)
	return appendString(append(b, `,"instanceId":`...), k.InstanceID)
}

func appendRef(b []byte, ref string) []byte {
	if ref == "" {
		return b
	}
	return appendString(append(b, `,"ref":`...), ref)
}

// appendOf appends the beginning of a frame about an instance, which lacks its end.
func appendOf(b []byte, kind string, k status.Key, version int64) []byte {
	b = appendString(append(b, `{"type":`...), kind)
	b = appendKey(append(b, ','), k)
	return strconv.AppendInt(append(b, `,"version":`...), version, 10)
}

// eventFrame is what a client is told.
func eventFrame(e *reader.Event) []byte {
	switch e.Kind {
	case reader.Status:
		return statusFrame(e.Key, e.Version, e.Sight.JSON)
	case reader.Gone:
		return append(appendOf(nil, "gone", e.Key, e.Version), '}')
	case reader.Joined:
		b := appendString([]byte(`{"type":"joined","list":`), e.List)
		return append(appendKey(append(b, ','), e.Key), '}')
	case reader.Left:
		b := appendString(append(appendOf(nil, "left", e.Key, e.Version), `,"list":`...), e.List)
		return append(b, '}')
	default: // Listed
		b := appendString([]byte(`{"type":"listed","list":`), e.List)
		return append(strconv.AppendBool(append(b, `,"more":`...), e.More), '}')
	}
}

func statusFrame(k status.Key, version int64, view []byte) []byte {
	b := make([]byte, 0, len(`{"type":"status","hub":"","instanceId":"","version":9007199254740991,"status":}`)+
		len(k.Hub)+len(k.InstanceID)+len(view)+16)
	b = appendOf(b, "status", k, version)
	return append(append(append(b, `,"status":`...), view...), '}')
}

func (s *Server) welcomeFrame(who *auth.Principal, ref string) []byte {
	b := appendRef([]byte(`{"type":"welcome"`), ref)
	if !who.Expires.IsZero() {
		b = append(b, `,"expires":"`...)
		b = who.Expires.UTC().AppendFormat(b, time.RFC3339)
		b = append(b, '"')
	}
	member := func(before string, n int) {
		b = strconv.AppendInt(append(b, before...), int64(n), 10)
	}
	member(`,"limits":{"watches":`, s.o.MaxWatches)
	member(`,"instancesPerFrame":`, maxInstances)
	member(`,"frameBytes":`, s.o.MaxFrameBytes)
	member(`,"framesPerSecond":`, s.o.FramesPerSecond)
	member(`,"pingSeconds":`, int(s.o.PingInterval/time.Second))
	return append(b, `}}`...)
}

// answer is the frame that answers watch and unwatch.
func (r *request) answer(kind string) []byte {
	b := appendRef(appendString([]byte(`{"type":`), kind), r.Ref)
	if r.List != "" {
		return append(appendString(append(b, `,"list":`...), r.List), '}')
	}
	b = append(b, `,"instances":[`...)
	for i := range r.Instances {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendKey(append(b, '{'), r.Instances[i].key()), '}')
	}
	return append(b, `]}`...)
}

func problemFrame(p problem.Problem, ref string) []byte {
	b := appendRef([]byte(`{"type":"problem"`), ref)
	b = strconv.AppendInt(append(b, `,"status":`...), int64(p.Status), 10)
	b = appendString(append(b, `,"title":`...), p.Title)
	if p.Field != "" {
		b = appendString(append(b, `,"field":`...), p.Field)
	}
	if p.Detail != "" {
		b = appendString(append(b, `,"detail":`...), p.Detail)
	}
	return append(b, '}')
}
