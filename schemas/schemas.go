// Package schemas holds the contracts of statusrelay's formats, and examples
// of what they mean. They are files, so that programs in other languages can
// use them, and embedded, so that this module's tests read the very same ones.
//
//   - status-message.schema.json: whatever is accepted as a message; what JSON Schema
//     cannot state about it is listed in its description.
//   - status-update.schema.json, status-event.schema.json: its two parts, the bare
//     update and the update in an envelope.
//   - policy.schema.json: the policy file (docs/policy.md).
//   - openapi.yaml: what is answered over HTTP, in the form that API Management imports;
//     generated from source/openapi.yaml, which says what its x- members mean.
//   - asyncapi.yaml: what is said on WebSockets.
//   - examples/good: messages that are accepted.
//   - examples/bad: JSON documents that are refused, each for one reason, which is
//     its name; examples/malformed: bytes that are no I-JSON document.
//   - examples/refused.json: by path, the reason and the field that a refusal must
//     name. "beyondSchema" marks the documents that the schema accepts, and says
//     which of the rules that it cannot state they break.
//   - examples/links.json: signed links, and what is signed (docs/links.md).
package schemas

import "embed"

// Schemas are the schema documents.
//
//go:embed *.json
var Schemas embed.FS

// Documents are openapi.yaml and asyncapi.yaml.
//
//go:embed openapi.yaml asyncapi.yaml
var Documents embed.FS

// Examples are the examples, below "examples". A program that does not use them
// does not contain them.
//
//go:embed examples
var Examples embed.FS
