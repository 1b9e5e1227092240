package statusrelay

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
)

const (
	eventType = "durable.status.v1"
	mediaType = "application/cloudevents+json"
)

// An event is an update as it travels: CloudEvents 1.0, structured JSON.
type event struct {
	index  int    // among those that Publish was given
	update Update // complete
	key    string // hub/instanceId
	id     string // of the CloudEvent, the same for the same position: whoever sends it how often, it is one event
	body   []byte
}

type envelope struct {
	SpecVersion     string    `json:"specversion"`
	Type            string    `json:"type"`
	Source          string    `json:"source"`
	Subject         string    `json:"subject"`
	ID              string    `json:"id"`
	Time            time.Time `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	Traceparent     string    `json:"traceparent,omitzero"`
	Data            *Update   `json:"data"`
}

// events encodes updates, or says what is wrong with any of them. Sender is the last part of their source.
func events(updates []Update, sender string, now time.Time) ([]event, error) {
	all := make([]event, len(updates))
	var errs []error
	for i := range updates {
		e := &all[i]
		e.index, e.update = i, updates[i]
		u := &e.update
		if invalid := u.complete(now); invalid != nil {
			invalid.Index = i
			errs = append(errs, invalid)
			continue
		}
		e.key = u.Hub + "/" + u.InstanceID
		e.id = eventID(e.key, u)
		var err error
		e.body, err = json.Marshal(&envelope{
			SpecVersion: "1.0", Type: eventType, Source: "/hubs/" + u.Hub + "/" + sender, Subject: u.InstanceID, ID: e.id,
			Time: now.UTC(), DataContentType: "application/json", Traceparent: u.Traceparent, Data: u,
		}, json.Deterministic(true))
		if err != nil {
			errs = append(errs, fmt.Errorf("update %d: %w", i, err))
		}
	}
	return all, errors.Join(errs...)
}

// eventID is hub/instanceId/generation/kind/sequence. Its last part is random if the update does not declare both: two such updates
// may say different things.
func eventID(key string, u *Update) string {
	generation, last := "-", rand.Text()
	if u.Generation != 0 {
		generation = strconv.FormatInt(u.Generation, 10)
		if u.Sequence != 0 {
			last = strconv.FormatInt(u.Sequence, 10)
		}
	}
	return key + "/" + generation + "/" + string(u.Kind) + "/" + last
}
