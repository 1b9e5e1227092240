package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// A Sender is one of the two ends of a socket.
type Sender string

// The senders.
const (
	Client Sender = "client"
	Server Sender = "server"
)

type channel struct {
	subprotocol string
	from        Sender
}

type message struct {
	name, kind string // kind: the constant of its member "type"
	schema     *jsonschema.Schema
}

func readAsyncAPI() (map[channel][]message, error) {
	text, err := read("asyncapi.yaml")
	if err != nil {
		return nil, err
	}
	if text, err = yaml.YAMLToJSON(text); err != nil {
		return nil, err
	}
	var document struct {
		Channels map[string]struct {
			Title    string
			Messages map[string]reference
		}
		Operations map[string]struct {
			Action   string
			Channel  reference
			Messages []reference
		}
		Components struct {
			Messages map[string]struct {
				Payload struct {
					Properties struct{ Type struct{ Const string } }
				}
			}
		}
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	const url = "urn:asyncapi"
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft7) // AsyncAPI's own schemas are a superset of it
	compiler.AssertFormat()
	whole, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	closeSchemas(whole)
	if err := compiler.AddResource(url, whole); err != nil {
		return nil, err
	}
	frames := map[channel][]message{}
	for _, name := range slices.Sorted(maps.Keys(document.Operations)) {
		operation := document.Operations[name]
		of := document.Channels[operation.Channel.last()]
		from := Server
		if operation.Action == "receive" { // by the application that is described, which is the relay
			from = Client
		}
		for _, ref := range operation.Messages {
			m := of.Messages[ref.last()].last()
			schema, err := compiler.Compile(url + "#/components/messages/" + m + "/payload")
			if err != nil {
				return nil, fmt.Errorf("message %s of operation %s: %w", m, name, err)
			}
			at := channel{of.Title, from}
			frames[at] = append(frames[at], message{m, document.Components.Messages[m].Payload.Properties.Type.Const, schema})
		}
	}
	return frames, nil
}

type reference struct {
	Ref string `json:"$ref"`
}

func (r reference) last() string { return r.Ref[strings.LastIndexByte(r.Ref, '/')+1:] }

// closeSchemas forbids the members that an object's schema does not list.
func closeSchemas(node any) {
	switch node := node.(type) {
	case map[string]any:
		_, lists := node["properties"].(map[string]any)
		if _, open := node["additionalProperties"]; lists && !open && node["type"] == "object" {
			node["additionalProperties"] = false
		}
		for _, member := range node {
			closeSchemas(member)
		}
	case []any:
		for _, element := range node {
			closeSchemas(element)
		}
	}
}

// Frame holds a frame to the document: it must be exactly one of the messages
// that this end says in this subprotocol.
func (a *API) Frame(t testing.TB, subprotocol string, from Sender, frame []byte) {
	t.Helper()
	if err := a.CheckFrame(subprotocol, from, frame); err != nil {
		t.Errorf("the %s said, in %s, what is not as asyncapi.yaml has it: %v\n%.2000s", from, subprotocol, err, frame)
	}
}

// CheckFrame returns what is wrong with a frame.
func (a *API) CheckFrame(subprotocol string, from Sender, frame []byte) error {
	messages := a.frames[channel{subprotocol, from}]
	if len(messages) == 0 {
		return errors.New("no such subprotocol is documented")
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(frame))
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	members, _ := value.(map[string]any)
	var matching []string
	var errs []error
	for _, m := range messages {
		err := m.schema.Validate(value)
		switch {
		case err == nil:
			matching = append(matching, m.name)
		case members["type"] == m.kind:
			errs = append(errs, fmt.Errorf("not the message %s: %w", m.name, explain(err)))
		}
	}
	switch {
	case len(matching) == 1:
		return nil
	case len(matching) > 1:
		return fmt.Errorf("it is more than one message: %s", strings.Join(matching, ", "))
	case len(errs) == 0:
		return fmt.Errorf("there is no message of type %v", members["type"])
	}
	return errors.Join(errs...)
}
