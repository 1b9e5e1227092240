package redisstore

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"time"
)

//go:embed lease.lua
var leaseScript string

// Lease takes the lease of a name for its holder, or renews it, and reports whether it is theirs until ttl has passed. Of all
// who ask one has it; the others ask again. It spares work that need not be done twice, and is no lock: where Redis fails
// over, two may hold it for as long as it lasts.
func (s *Store) Lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	if ttl < time.Millisecond {
		return false, fmt.Errorf("lease %q: ttl is %s, less than a millisecond", name, ttl)
	}
	return s.lease(ctx, name, holder, ttl)
}

// Release gives a lease back before its time, if the holder has it.
func (s *Store) Release(ctx context.Context, name, holder string) error {
	_, err := s.lease(ctx, name, holder, 0)
	return err
}

func (s *Store) lease(ctx context.Context, name, holder string, ttl time.Duration) (bool, error) {
	// The name has no brace in Redis, and so is never that of an instance or an index.
	key := s.options.Prefix + ":lease:" + url.PathEscape(name)
	n, err := s.run(ctx, s.leaseScriptName, leaseScript, []any{nil, nil, 1, key, holder, ttl.Milliseconds()}).Int()
	if err != nil {
		return false, fmt.Errorf("lease %q: %w", name, classify(err))
	}
	return n == 1, nil
}
