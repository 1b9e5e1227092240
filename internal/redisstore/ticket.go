package redisstore

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

// SaveTicket keeps a ticket until it is taken, or has lived for ttl, which is a
// millisecond or more. An id that is in use is a status.ErrUnavailable: another
// one will do.
func (s *Store) SaveTicket(ctx context.Context, id string, payload []byte, ttl time.Duration) error {
	if ttl < time.Millisecond {
		return fmt.Errorf("save ticket: ttl is %s, less than a millisecond", ttl)
	}
	saved, err := s.client.SetNX(ctx, s.ticketName(id), payload, ttl).Result()
	if err != nil {
		return fmt.Errorf("save ticket: %w", classify(err))
	}
	if !saved {
		// Or this very call has saved it, and the answer was lost on the way.
		return fmt.Errorf("save ticket: %w: its id is in use", status.ErrUnavailable)
	}
	return nil
}

// TakeTicket returns what was kept under an id, once: of all who take it, on any
// replica, one gets it. The others get a status.ErrNotFound, as for one that never
// was or has expired.
func (s *Store) TakeTicket(ctx context.Context, id string) ([]byte, error) {
	// Not GETDEL: Redis 6.0 has none.
	tx, name := s.client.TxPipeline(), s.ticketName(id)
	got, gone := tx.Get(ctx, name), tx.Del(ctx, name)
	_, failure := tx.Exec(ctx)
	payload, err := got.Bytes()
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		s.options.Logger.Warn("corrupt ticket in redis", "error", err)
		err = redis.Nil
	}
	if errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("take ticket: %w", status.ErrNotFound)
	}
	if err := answerError(gone.Val() > 0, err, failure); err != nil {
		return nil, fmt.Errorf("take ticket: %w", err)
	}
	return payload, nil
}

// ticketName is the name of a ticket's value. It has no brace, and so is never
// that of an instance or an index.
func (s *Store) ticketName(id string) string {
	return s.options.Prefix + ":ticket:" + url.PathEscape(id)
}
