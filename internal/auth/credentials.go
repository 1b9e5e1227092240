package auth

import "context"

// Credentials are all that may stand where a bearer token does: tokens, and API keys.
type Credentials struct {
	Tokens  *Verifier
	APIKeys *APIKeys // nil: there are none

	Refusals *Refusals // counts API keys where there are none; nil: nobody does
}

// Verify returns the principal of a token, as Verifier.Verify, or of an API key, as APIKeys.Verify.
func (c *Credentials) Verify(ctx context.Context, credential string) (*Principal, error) {
	switch {
	case !IsAPIKey(credential):
		return c.Tokens.Verify(ctx, credential)
	case c.APIKeys == nil:
		return nil, c.Refusals.refuse(kindAPIKey, reasonUnaccepted, "there are no API keys here")
	}
	return c.APIKeys.Verify(credential)
}
