package redisstore

import (
	"context"
	_ "embed"
	"fmt"

	"statusrelay/internal/claim"
)

//go:embed claims.lua
var claimsScript string

// Swap makes the store the memory of a claim.Ledger, for all who share this Redis. It
// asks for all in one round trip.
func (s *Store) Swap(ctx context.Context, swaps []*claim.Swap) {
	calls := make([]*call, len(swaps))
	for i, w := range swaps {
		calls[i] = &call{keys: []string{s.eventName(w.Name)}, args: []any{w.Text, w.Mine, w.Life.Milliseconds()}}
	}
	s.runAll(ctx, claimsScript, calls)
	for i, c := range calls {
		found, ok := c.answer.(string)
		if w := swaps[i]; c.err != nil {
			w.Err = fmt.Errorf("claim an event: %w", c.err)
		} else if w.Found = found; !ok {
			w.Err = fmt.Errorf("claims.lua answered %T", c.answer)
		}
	}
}

// eventName is the name of what is known of an event. It has no brace, and so is never
// that of an instance or an index.
func (s *Store) eventName(name string) string { return s.options.Prefix + ":event:" + name }
