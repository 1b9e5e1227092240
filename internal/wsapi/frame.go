package wsapi

import (
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/auth"
	"statusrelay/internal/problem"
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
	Type      string     `json:"type"`
	Ref       string     `json:"ref"`   // echoed in the answer
	Token     string     `json:"token"` // auth
	Instances []instance `json:"instances"`
}

type instance struct {
	Hub        string `json:"hub"`
	InstanceID string `json:"instanceId"`
	After      int64  `json:"after"` // the newest version that the client has
}

func (i *instance) key() status.Key { return status.Key{Hub: i.Hub, InstanceID: i.InstanceID} }

const (
	maxRef   = 128 // bytes
	maxDepth = 8   // of nested values in a frame: two are needed, and the parser recurses into what it ignores
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

func statusFrame(k status.Key, version int64, view []byte) []byte {
	b := make([]byte, 0, len(`{"type":"status","hub":"","instanceId":"","version":9007199254740991,"status":}`)+
		len(k.Hub)+len(k.InstanceID)+len(view)+16)
	b = appendOf(b, "status", k, version)
	return append(append(append(b, `,"status":`...), view...), '}')
}

func goneFrame(k status.Key, version int64) []byte {
	return append(appendOf(nil, "gone", k, version), '}')
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

// listFrame answers watch and unwatch.
func listFrame(kind, ref string, instances []instance) []byte {
	b := appendRef(appendString([]byte(`{"type":`), kind), ref)
	b = append(b, `,"instances":[`...)
	for i := range instances {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendKey(append(b, '{'), instances[i].key()), '}')
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
