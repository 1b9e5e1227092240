package redisstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

// Latest returns the records of instances, index by index: nil where there is
// none, or none to be believed. A tombstone is a record with Purged. It is all
// or nothing: an error comes without records.
func (s *Store) Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error) {
	records := make([]*status.Record, 0, len(keys))
	for chunk := range slices.Chunk(keys, maxCommands) {
		pipe := s.client.Pipeline()
		commands := make([]*redis.SliceCmd, len(chunk))
		for i, k := range chunk {
			commands[i] = pipe.HMGet(ctx, s.name(k), "v", "s", "r")
		}
		_, failure := pipe.Exec(ctx)
		for i, k := range chunk {
			fields, err := commands[i].Result()
			if redis.HasErrorPrefix(err, "WRONGTYPE") {
				s.distrust(k, err)
				records = append(records, nil)
				continue
			}
			if err := answerError(fields != nil, err, failure); err != nil {
				return nil, fmt.Errorf("read %s: %w", k, err)
			}
			records = append(records, s.state(k, fields).record)
		}
	}
	return records, nil
}

// state makes sense of the fields v, s and r of an instance's hash.
func (s *Store) state(key status.Key, fields []any) state {
	if len(fields) != 3 {
		s.distrust(key, fmt.Errorf("%d fields", len(fields)))
		return state{}
	}
	version, _ := fields[0].(string)
	stamp, _ := fields[1].(string)
	stored, ok := fields[2].(string)
	if !ok {
		return state{stamp: stamp}
	}
	r, err := decode(key, version, stored)
	if err != nil {
		s.distrust(key, err)
		return state{stamp: stamp}
	}
	return state{r, stamp}
}

// distrust reports a record that cannot be believed.
func (s *Store) distrust(key status.Key, err error) {
	s.metrics.corrupt.Inc()
	s.options.Logger.Warn("corrupt record in redis", "hub", key.Hub, "instanceId", key.InstanceID, "error", err)
}
