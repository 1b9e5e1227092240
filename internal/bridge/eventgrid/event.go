package eventgrid

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

const (
	orchestratorEvent = "orchestratorEvent"
	validationEvent   = "Microsoft.EventGrid.SubscriptionValidationEvent"

	maxValidationCode = 1024 // bytes; Event Grid's have 36
)

// An event is one of Event Grid's schema, or a CloudEvent.
type event struct {
	members
	err error // why there are no members
}

// members are those of both schemas that matter here.
type members struct {
	ID   string         `json:"id"`
	Data jsontext.Value `json:"data"`

	EventType string `json:"eventType"`
	EventTime string `json:"eventTime"`

	SpecVersion string `json:"specversion"`
	Type        string `json:"type"`
	Time        string `json:"time"`
}

// split reads the events of a request: an array of them or one, in either schema, or a CloudEvent whose attributes are headers
// ("HTTP Protocol Binding for CloudEvents", section 3.1). What the body is decides, not its media type. An event that cannot be read
// costs the others nothing.
func split(h http.Header, body []byte) ([]event, error) {
	if version := h.Get("Ce-Specversion"); version != "" {
		return []event{{members: members{
			ID: h.Get("Ce-Id"), SpecVersion: version, Type: h.Get("Ce-Type"), Time: h.Get("Ce-Time"), Data: body,
		}}}, nil
	}
	documents, err := wire.Split("application/json", body)
	if err != nil {
		return nil, err
	}
	events := make([]event, len(documents))
	for i, d := range documents {
		e := &events[i]
		if json.Unmarshal(d, &e.members) != nil {
			e.members, e.err = members{}, invalid("", "not an event: an object, without members that are there twice, or of another type")
		}
	}
	return events, nil
}

func invalid(field, detail string) error {
	return &status.InvalidError{Reason: status.ReasonInvalid, Field: field, Detail: detail}
}

// kind is the event's type, with its time and the names that its schema has for both.
func (e *event) kind() (name, at, nameField, atField string) {
	if e.SpecVersion != "" {
		return e.Type, e.Time, "type", "time"
	}
	return e.EventType, e.EventTime, "eventType", "eventTime"
}

// id is the event's, if it is one that an envelope can have.
func (e *event) id() string {
	if len(e.ID) > wire.MaxAttribute {
		return ""
	}
	return e.ID
}

// lifecycle is what Durable Functions says in an event. There is a reason besides, which is not read.
type lifecycle struct {
	HubName       string `json:"hubName"`
	FunctionName  string `json:"functionName"`
	InstanceID    string `json:"instanceId"`
	RuntimeStatus string `json:"runtimeStatus"`
}

// update is what an event says, as an update; nil if it is none of an orchestration. Its position is the time at which the event
// happened; its generation is open, since an event does not have one.
func (e *event) update(hubs map[string]string, now time.Time) (*status.Update, error) {
	if e.err != nil {
		return nil, e.err
	}
	kind, text, kindField, timeField := e.kind()
	switch kind {
	case orchestratorEvent:
	case "":
		return nil, invalid(kindField, "required")
	default:
		return nil, nil
	}
	var said lifecycle
	if json.Unmarshal(e.Data, &said) != nil {
		return nil, invalid("data", "not the object of an orchestrator event")
	}
	if len(said.InstanceID) > 0 && said.InstanceID[0] == '@' {
		return nil, nil // an entity
	}
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil || at.Unix() < 0:
		return nil, invalid(timeField, "not an RFC 3339 time since 1970")
	case at.After(now.Add(status.GenerationLead)): // all that follows would look older
		return nil, invalid(timeField, "more than "+status.GenerationLead.String()+" ahead of the clock")
	}
	hub, mapped := hubs[said.HubName]
	if !mapped {
		hub = said.HubName
	}
	if status.ValidHub(hub) != nil {
		return nil, invalid("data.hubName", "neither the name of a hub nor one that stands for another")
	}
	runtimeStatus, ok := status.ParseRuntimeStatus(said.RuntimeStatus)
	if !ok {
		return nil, invalid("data.runtimeStatus", "not a runtime status")
	}
	position := at.UnixMicro()
	u := &status.Update{
		Hub: hub, InstanceID: said.InstanceID, Name: said.FunctionName, Sequence: &position,
		Kind: status.KindLifecycle, RuntimeStatus: runtimeStatus, LastUpdatedTime: at.UTC(), OccurredTime: at.UTC(),
	}
	if err := u.Validate(now); err != nil {
		return nil, err
	}
	return u, nil
}

// validationCode is what a handshake asks to be answered with.
func validationCode(events []event) (string, error) {
	if len(events) != 1 || events[0].EventType != validationEvent {
		return "", invalid("eventType", "not one "+validationEvent)
	}
	var data struct {
		Code string `json:"validationCode"`
	}
	if json.Unmarshal(events[0].Data, &data) != nil || data.Code == "" || len(data.Code) > maxValidationCode {
		return "", invalid("data.validationCode", "required")
	}
	return data.Code, nil
}
