// Package wire turns every accepted form of a message into a status.Update and
// an update into the form that is sent. It knows what the bytes mean and nothing
// of how they travel.
//
// It promises that
//
//   - the content alone decides which form a message has (see [Decode]);
//   - an accepted update satisfies [status.Update.Validate] and its JSON values are
//     canonical, so that packages behind it may compare them byte by byte;
//   - a refused message is refused with a [*status.InvalidError] whose text names
//     the field and the rule and holds nothing of the message;
//   - what it accepts is what schemas/status-message.schema.json accepts, but for
//     the rules that JSON Schema cannot state (they are listed there).
//
// A program that takes requests cuts them with [Split] and decodes each document
// by itself; a program that takes broker messages calls [Decode]; a program that
// sends calls [Encode].
package wire

import "statusrelay/internal/status"

// Limits of a message. Those of an update's fields are in package status.
const (
	// MaxMessageBytes bounds one message as it arrives, envelope and white
	// space included.
	MaxMessageBytes = 256 << 10
	// MaxBatch bounds the documents of one request body.
	MaxBatch = 10_000
	// MaxAttribute bounds, in bytes, the envelope attributes that are kept. A
	// longer one is treated as absent.
	MaxAttribute = 2048
)

// Type is the CloudEvents type of the messages that Encode writes.
const Type = "durable.status.v1"

// Message is an update with what its envelope said besides. A bare update has no
// envelope: the other fields are "".
type Message struct {
	Update status.Update

	ID          string // CloudEvents id
	Source      string // CloudEvents source
	Traceparent string // W3C trace context, well-formed or ""
	Tracestate  string // the same; "" without a Traceparent
}

// invalid says which rule a field breaks.
func invalid(field, detail string) error {
	return &status.InvalidError{Reason: status.ReasonInvalid, Field: field, Detail: detail}
}
