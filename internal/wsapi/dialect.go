package wsapi

import (
	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/problem"
	"statusrelay/internal/reader"
)

// A dialect is a subprotocol: how what a client asks for and what it is told look on the wire. All else is the same for all
// sockets. Frames are JSON texts; nil is none.
type dialect interface {
	// obey does what a frame asks for. An error says that it is not one of the dialect's frames, and ref what the answer to
	// it refers to.
	obey(s *socket, frame []byte) (ref string, err error)

	welcome(s *Server, who *auth.Principal, ref string) []byte // follows authentication
	refusal(p problem.Problem, ref string) []byte              // answers a frame that obey gives an error for
	event(e *reader.Event) []byte                              // is what a client is told
	farewell(c *closure) []byte                                // precedes a close frame of the server

	// form is that of the frame of a status, which is kept for all that speak the dialect.
	form() reader.Form
	// lateAuth says that a client may authenticate by its first frame.
	lateAuth() bool
	// patient says that a client that sends too much is not closed, but read more slowly: it would come back at once.
	patient() bool
}

// The names of the dialects.
const (
	Subprotocol       = "status.v1.json"
	WebPubSub         = "json.webpubsub.azure.v1"
	ReliableWebPubSub = "json.reliable.webpubsub.azure.v1" // the same: it is up to the server what it offers to recover
)

// dialectOf returns the dialect of a name, or nil.
func dialectOf(name string) dialect {
	switch name {
	case Subprotocol:
		return statusDialect{}
	case WebPubSub, ReliableWebPubSub:
		return pubsubDialect{}
	}
	return nil
}

// A sharedFrame is written to many sockets, and framed, and compressed, once for all of them.
type sharedFrame struct {
	*websocket.PreparedMessage
	large bool // worth compressing
}

// minCompressed is the size in bytes from which a frame is compressed: below, little is saved beside the headers of its packet.
const minCompressed = 512

// share encodes the frame of a status, once for all who are sent it in a dialect.
func share(d dialect, e reader.Event) *sharedFrame {
	return e.Sight.Make(d.form(), func() any {
		frame := d.event(&e)
		m, err := websocket.NewPreparedMessage(websocket.TextMessage, frame)
		if err != nil {
			panic(err) // it writes to memory
		}
		return &sharedFrame{m, len(frame) >= minCompressed}
	}).(*sharedFrame)
}

// statusDialect is status.v1.json.
type statusDialect struct{}

func (statusDialect) form() reader.Form                            { return reader.StatusFrame }
func (statusDialect) lateAuth() bool                               { return true }
func (statusDialect) patient() bool                                { return false }
func (statusDialect) refusal(p problem.Problem, ref string) []byte { return problemFrame(p, ref) }
func (statusDialect) event(e *reader.Event) []byte                 { return eventFrame(e) }
func (statusDialect) farewell(*closure) []byte                     { return nil }

func (statusDialect) welcome(s *Server, who *auth.Principal, ref string) []byte {
	return s.welcomeFrame(who, ref)
}

func (statusDialect) obey(s *socket, frame []byte) (ref string, err error) {
	r, err := decode(frame, s.server.o.DefaultHub)
	switch {
	case s.reader.Principal() == nil && r.Type != typeAuth:
		s.problem(auth.ErrUnauthenticated, r.Ref)
		s.fail(closeUnauthenticated)
		return "", nil
	case err != nil:
		return r.Ref, err
	}
	switch r.Type {
	case typeAuth:
		s.auth(r)
	case typeWatch:
		s.watch(r)
	case typeUnwatch:
		s.unwatch(r)
	}
	return "", nil
}
