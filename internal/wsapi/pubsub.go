package wsapi

import (
	"crypto/rand"
	"net/http"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/problem"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// pubsubDialect is json.webpubsub.azure.v1, as far as the clients of Azure Web PubSub need it to follow groups: a group is an
// instance, "hub/instanceId". Nothing can be sent to one. The reliable protocol is the same to a client that is given nothing
// to recover by.
//
// Those clients wait for ever for an answer that does not come, ask again when they are refused, and come back at once when
// they are closed, whatever the code. So whatever can be answered is, once, and counts as no mistake.
type pubsubDialect struct{}

func (pubsubDialect) form() reader.Form { return reader.WebPubSubFrame }
func (pubsubDialect) lateAuth() bool    { return false }
func (pubsubDialect) patient() bool     { return true }

// refusal: there is no frame for it.
func (pubsubDialect) refusal(problem.Problem, string) []byte { return nil }

// A pubsubRequest is a frame from a client, of which only the members that are needed are looked at: the clients may send
// frames that are not known here, and do wait for their answers.
type pubsubRequest struct {
	Type         string
	Group        string
	AckID        []byte // as it is to be echoed; nil: no answer is wanted
	InvocationID string
	StreamID     string // of what begins a stream
}

const (
	maxPubsubDepth = 64 // of nested values in a frame: data that is sent is refused, and to be answered
	maxAckID       = 20 // digits of 2^64
)

// decodePubsub reads a frame. Members of another type than expected are taken for absent.
func decodePubsub(frame []byte) (r pubsubRequest, err error) {
	if depth(frame) > maxPubsubDepth {
		return r, invalid("", "nested too deeply")
	}
	var members struct {
		Type         jsontext.Value `json:"type"`
		Group        jsontext.Value `json:"group"`
		AckID        jsontext.Value `json:"ackId"`
		InvocationID jsontext.Value `json:"invocationId"`
		Stream       jsontext.Value `json:"stream"`
	}
	if err := json.Unmarshal(frame, &members); err != nil {
		return r, &status.InvalidError{Reason: status.ReasonMalformed, Detail: "not a JSON object of this protocol"}
	}
	r = pubsubRequest{Type: text(members.Type), Group: text(members.Group), InvocationID: text(members.InvocationID)}
	if r.Type == "" {
		return r, invalid("type", "required")
	}
	if n := len(members.AckID); n > 0 && n <= maxAckID && members.AckID.Kind() == '0' {
		r.AckID = members.AckID
	}
	if members.Stream.Kind() == '{' {
		var stream struct {
			ID jsontext.Value `json:"streamId"`
		}
		if json.Unmarshal(members.Stream, &stream) == nil {
			r.StreamID = text(stream.ID)
		}
	}
	return r, nil
}

// text returns the string that a JSON value is, or "".
func text(v jsontext.Value) string {
	if v.Kind() != '"' {
		return ""
	}
	b, err := jsontext.AppendUnquote(nil, v)
	if err != nil {
		return ""
	}
	return string(b)
}

// key reads the name of a group: a hub, a slash, and an instance's id, which has none. Nothing is encoded.
func (r *pubsubRequest) key(defaultHub string) (status.Key, error) {
	hub, id, ok := strings.Cut(r.Group, "/")
	if !ok {
		return status.Key{}, invalid("group", "not a hub, a slash and an instance id")
	}
	if hub == defaultHub {
		hub = defaultHub // the same string for all watches
	}
	if err := status.ValidHub(hub); err != nil {
		return status.Key{}, err
	}
	return status.Key{Hub: hub, InstanceID: id}, status.ValidInstanceID(id)
}

func (d pubsubDialect) obey(s *socket, frame []byte) (ref string, err error) {
	r, err := decodePubsub(frame)
	if err != nil {
		return "", err
	}
	switch r.Type {
	case "ping":
		s.answer(websocket.TextMessage, []byte(`{"type":"pong"}`))
	case "joinGroup":
		d.join(s, &r)
	case "leaveGroup":
		k, err := r.key(s.server.o.DefaultHub)
		if err != nil {
			r.ack(s, problem.Of(err))
			break
		}
		s.reader.Unwatch(k)
		r.ack(s, problem.Problem{})
	default:
		r.refuse(s)
	}
	return "", nil
}

// join watches an instance. Joining once more is allowed, and tells the status again: the client forgets nothing that it has.
func (d pubsubDialect) join(s *socket, r *pubsubRequest) {
	k, err := r.key(s.server.o.DefaultHub)
	switch {
	case err != nil:
		r.ack(s, problem.Of(err))
	case !s.reader.Has(k) && s.reader.Watches() >= s.server.o.MaxWatches:
		r.ack(s, problem.TooMany(0))
	default:
		s.reader.Unwatch(k) // or it would be told twice
		if r.AckID != nil {
			s.answerBefore(r.ackFrame(problem.Problem{}))
		}
		s.reader.Watch(k, reader.Terms{})
	}
}

// refuse answers what cannot be done here: by what its sender waits for, whatever it is.
func (r *pubsubRequest) refuse(s *socket) {
	p := problem.Of(auth.ErrForbidden)
	var b []byte
	switch {
	case r.AckID != nil:
		r.ack(s, p)
		return
	case r.Type == "invoke" && r.InvocationID != "":
		b = appendString([]byte(`{"type":"invokeResponse","invocationId":`), r.InvocationID)
		b = append(b, `,"success":false`...)
	case r.StreamID != "":
		b = appendString([]byte(`{"type":"streamClosed","streamId":`), r.StreamID)
	default:
		return // sequenceAck, cancelInvocation, what is sent without waiting for an answer, and what is not known
	}
	s.answer(websocket.TextMessage, append(appendError(b, p), '}'))
}

// ack answers a frame that wants to be: that it is done, or the problem with it.
func (r *pubsubRequest) ack(s *socket, p problem.Problem) {
	if r.AckID != nil {
		s.answer(websocket.TextMessage, r.ackFrame(p))
	}
}

func (r *pubsubRequest) ackFrame(p problem.Problem) []byte {
	b := append([]byte(`{"type":"ack","ackId":`), r.AckID...)
	b = strconv.AppendBool(append(b, `,"success":`...), p.Status == 0)
	if p.Status != 0 {
		b = appendError(b, p)
	}
	return append(b, '}')
}

// appendError appends a problem as Azure says it, with its names where it has one.
func appendError(b []byte, p problem.Problem) []byte {
	name := "InternalServerError"
	switch p.Status {
	case http.StatusBadRequest:
		name = "BadRequest"
	case http.StatusForbidden:
		name = "Forbidden"
	case http.StatusTooManyRequests:
		name = "TooManyRequests"
	}
	message := p.Title
	if p.Detail != "" {
		message += " " + p.Field + ": " + p.Detail
	}
	b = append(append(append(b, `,"error":{"name":"`...), name...), '"')
	return append(appendString(append(b, `,"message":`...), message), '}')
}

func (pubsubDialect) welcome(_ *Server, who *auth.Principal, _ string) []byte {
	b := appendString([]byte(`{"type":"system","event":"connected","userId":`), who.Subject)
	return append(appendString(append(b, `,"connectionId":`...), rand.Text()), '}')
}

func (pubsubDialect) farewell(c *closure) []byte {
	return append(appendString([]byte(`{"type":"system","event":"disconnected","message":`), c.reason), '}')
}

func (pubsubDialect) event(e *reader.Event) []byte {
	b := append([]byte(`{"type":"message","from":"group","group":`), groupOf(e.Key)...)
	b = append(b, `,"dataType":"json","data":`...)
	if e.Kind == reader.Status {
		b = append(b, e.Sight.JSON...)
	} else { // Gone: there are no lists here
		b = appendKey(append(b, '{'), e.Key)
		b = strconv.AppendInt(append(b, `,"version":`...), e.Version, 10)
		b = append(b, `,"gone":true}`...)
	}
	return append(b, '}')
}

func groupOf(k status.Key) []byte { return appendString(nil, k.Hub+"/"+k.InstanceID) }
