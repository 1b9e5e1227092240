package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/apitest"
)

// asyncAPI is what these tests read of schemas/asyncapi.yaml; the comment at its
// top says what its extensions mean.
type asyncAPI struct {
	Channels map[string]struct {
		Title         string
		Messages      map[string]struct{}
		Conversations []conversation `json:"x-conversations"`
	}
	Components struct {
		Messages map[string]struct {
			Examples []struct {
				Name    string
				Payload json.RawMessage
			}
		}
	}
}

type conversation struct {
	Summary string            `json:"summary"`
	As      string            `json:"as"`
	TokenOf string            `json:"tokenOf"`
	Steps   []json.RawMessage `json:"steps"`
}

// A step is one of its members.
type step struct {
	Send    string          `json:"send"`
	SendBad json.RawMessage `json:"sendBad"`
	Receive any             `json:"receive"`
	Publish json.RawMessage `json:"publish"`
	Stop    bool            `json:"stop"`
	Close   int             `json:"close"`
}

// TestEveryExampleOfAsyncAPIIsTrue has all of them said.
func TestEveryExampleOfAsyncAPIIsTrue(t *testing.T) {
	var document asyncAPI
	readDocument(t, "asyncapi.yaml", &document)
	var given openAPI
	readDocument(t, "openapi.yaml", &given)
	s := newStage(t)
	s.arrange(given)

	examples, unsaid := map[string]json.RawMessage{}, map[string]bool{}
	for name, m := range document.Components.Messages {
		if len(m.Examples) == 0 {
			t.Errorf("the message %s has no example", name)
		}
		for _, e := range m.Examples {
			examples[name+"/"+e.Name], unsaid[name+"/"+e.Name] = e.Payload, true
		}
	}
	if len(examples) < 30 {
		t.Fatalf("found only %d examples", len(examples))
	}
	for _, channel := range document.Channels {
		for _, c := range channel.Conversations {
			t.Run(channel.Title+"/"+c.Summary, func(t *testing.T) {
				p := &play{stage: s, T: t, subprotocol: channel.Title, conversation: c, examples: examples}
				p.perform(func(said string) { delete(unsaid, said) })
			})
		}
	}
	for name := range unsaid {
		t.Errorf("%s: no conversation came to it", name)
	}
	t.Logf("%d examples", len(examples))
}

// play is one conversation under way.
type play struct {
	*stage
	*testing.T
	conversation
	subprotocol string
	examples    map[string]json.RawMessage
	on          *replica
	conn        *websocket.Conn
}

func (p *play) perform(said func(example string)) {
	p.on = p.replicas["Relay"]
	steps := make([]step, len(p.Steps))
	for i, text := range p.Steps {
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&steps[i]); err != nil {
			p.T.Fatalf("step %d: %v", i, err)
		}
		if steps[i].Stop {
			p.on = p.relay(nil) // one of its own
		}
	}
	p.dial()
	for i, st := range steps {
		if err := p.step(st, said); err != nil {
			p.T.Fatalf("step %d, %s: %v", i, p.Steps[i], err)
		}
	}
}

func (p *play) dial() {
	header := http.Header{}
	if token := p.tokens[p.As]; token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	dialer := websocket.Dialer{Subprotocols: []string{p.subprotocol}}
	conn, answer, err := dialer.DialContext(p.ctx, "ws"+strings.TrimPrefix(p.on.base, "http")+"/v1/watch", header)
	if err != nil {
		p.T.Fatalf("%v: %+v", err, answer)
	}
	p.conn = conn
	p.T.Cleanup(func() { _ = conn.Close() })
	if conn.Subprotocol() != p.subprotocol {
		p.T.Fatalf("got the subprotocol %q", conn.Subprotocol())
	}
}

func (p *play) step(s step, said func(string)) error {
	switch {
	case s.Send != "":
		frame, ok := p.examples[s.Send]
		if !ok {
			return errors.New("no such example")
		}
		if token := p.tokens[p.TokenOf]; token != "" {
			frame = withToken(frame, token)
		}
		p.api.Frame(p.T, p.subprotocol, apitest.Client, frame)
		said(s.Send)
		return p.conn.WriteMessage(websocket.TextMessage, frame)
	case s.SendBad != nil:
		if p.api.CheckFrame(p.subprotocol, apitest.Client, s.SendBad) == nil {
			return errors.New("that frame is as documented")
		}
		return p.conn.WriteMessage(websocket.TextMessage, s.SendBad)
	case s.Receive != nil:
		return p.receive(s.Receive, said)
	case s.Publish != nil:
		p.publish(s.Publish)
		return nil
	case s.Stop:
		go p.on.stop()
		return nil
	}
	_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	_, frame, err := p.conn.ReadMessage()
	if closed := (*websocket.CloseError)(nil); !errors.As(err, &closed) || closed.Code != s.Close {
		return fmt.Errorf("got %s, %w", frame, err)
	}
	return nil
}

// receive wants an example, or several in any order.
func (p *play) receive(names any, said func(string)) error {
	var wanted []string
	switch names := names.(type) {
	case string:
		wanted = []string{names}
	case []any:
		for _, name := range names {
			wanted = append(wanted, fmt.Sprint(name))
		}
	}
	for len(wanted) > 0 {
		_ = p.conn.SetReadDeadline(time.Now().Add(patience))
		_, frame, err := p.conn.ReadMessage()
		if err != nil {
			return err
		}
		p.api.Frame(p.T, p.subprotocol, apitest.Server, frame)
		var errs []error
		i := slices.IndexFunc(wanted, func(name string) bool {
			want, ok := p.examples[name]
			if !ok {
				errs = append(errs, fmt.Errorf("no such example: %s", name))
				return false
			}
			err := alike(want, frame)
			errs = append(errs, err)
			return err == nil
		})
		if i < 0 {
			return fmt.Errorf("got %s\n%w", frame, errors.Join(errs...))
		}
		said(wanted[i])
		wanted = slices.Delete(wanted, i, i+1)
	}
	return nil
}

// withToken puts a token in the place of the example's.
func withToken(frame json.RawMessage, token string) json.RawMessage {
	var members map[string]any
	if json.Unmarshal(frame, &members) != nil || members["token"] == nil {
		return frame
	}
	members["token"] = token
	frame, _ = json.Marshal(members) // it was JSON
	return frame
}
