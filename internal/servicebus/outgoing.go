package servicebus

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf16"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/google/uuid"

	"statusrelay/internal/status"
)

const (
	subject     = "durable.status.v1" // the CloudEvents type
	contentType = "application/cloudevents+json"

	// scheduleStep is what times are rounded up to, so that messages of about the same time share a batch.
	scheduleStep = 100 * time.Millisecond

	// maxID is Service Bus's limit for message and session ids, in UTF-16 code units.
	maxID = 128
)

// envelope puts around a body what a subscription's rules, duplicate detection, sessions and traces go by.
func envelope(out *Outgoing) *azservicebus.Message {
	u := out.Update
	properties := map[string]any{"hub": u.Hub}
	for name, value := range map[string]string{
		"name": u.Name, "runtimeStatus": string(u.RuntimeStatus),
		// Azure's SDKs go by Diagnostic-Id, which is a traceparent too, others by the names of the specification.
		"traceparent": out.Traceparent, "Diagnostic-Id": out.Traceparent, "tracestate": out.Tracestate,
	} {
		if value != "" {
			properties[name] = value
		}
	}
	var at *time.Time
	if !out.At.IsZero() {
		at = ptr(out.At.Add(scheduleStep - 1).Truncate(scheduleStep))
	}
	return &azservicebus.Message{
		ScheduledEnqueueTime:  at,
		MessageID:             ptr(cmp.Or(out.ID, messageID(u))),
		SessionID:             ptr(short(u.Key().String())),
		Subject:               ptr(subject),
		ContentType:           ptr(contentType),
		ApplicationProperties: properties,
		Body:                  out.Body,
	}
}

// messageID is hub/instance/generation/kind/sequence, the same for the same update whoever sends it how often, so that the broker's duplicate
// detection can drop repetitions. Without a sequence, or without the generation that it counts in, the same words can be
// news (Running, again, after a rewind), and the id is random.
func messageID(u *status.Update) string {
	if u.Generation == nil || u.Sequence == nil {
		return uuid.NewString()
	}
	return short(u.Key().String() + "/" + strconv.FormatInt(*u.Generation, 10) + "/" + string(u.Kind) + "/" + strconv.FormatInt(*u.Sequence, 10))
}

// short gives an id that the broker takes: the hex SHA-256 of one that is too long.
func short(id string) string {
	if len(id) <= maxID || len(utf16.Encode([]rune(id))) <= maxID {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}

func ptr[T any](v T) *T { return &v }
