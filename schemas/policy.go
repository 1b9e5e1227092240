package schemas

import _ "embed"

// Policy is the JSON Schema of the policy file.
//
//go:embed policy.schema.json
var Policy []byte
