package redisstore

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

// Latest returns the records of instances, index by index: nil where there is
// none, or none to be believed. A tombstone is a record with Purged. It is all
// or nothing: an error comes without records.
func (s *Store) Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error) {
	if len(keys) != 1 {
		return s.readLatest(ctx, keys)
	}
	r, err := s.reads.latest(ctx, keys[0])
	if err != nil {
		return nil, err
	}
	return []*status.Record{r}, nil
}

func (s *Store) readLatest(ctx context.Context, keys []status.Key) ([]*status.Record, error) {
	if len(keys) == 1 {
		return s.latestOne(ctx, keys[0])
	}
	records := make([]*status.Record, 0, len(keys))
	for chunk := range slices.Chunk(keys, maxCommands) {
		pipe := s.client.Pipeline()
		commands := make([]*redis.SliceCmd, len(chunk))
		for i, k := range chunk {
			commands[i] = pipe.HMGet(ctx, s.name(k), "v", "i", "r")
		}
		_, failure := pipe.Exec(ctx)
		for i, k := range chunk {
			r, err := s.record(k, commands[i], failure)
			if err != nil {
				return nil, err
			}
			records = append(records, r)
		}
	}
	return records, nil
}

// latestOne is readLatest for one: a pipeline of one costs more.
func (s *Store) latestOne(ctx context.Context, k status.Key) ([]*status.Record, error) {
	r, err := s.record(k, s.client.HMGet(ctx, s.name(k), "v", "i", "r"), nil)
	if err != nil {
		return nil, err
	}
	return []*status.Record{r}, nil
}

// record makes sense of an answer; failure is that of its pipeline as a whole.
func (s *Store) record(k status.Key, answer *redis.SliceCmd, failure error) (*status.Record, error) {
	fields, err := answer.Result()
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		s.distrust(k, err)
		return nil, nil
	}
	if err := answerError(fields != nil, err, failure); err != nil {
		return nil, fmt.Errorf("read %s: %w", k, err)
	}
	if len(fields) != 3 {
		s.distrust(k, fmt.Errorf("%d fields", len(fields)))
		return nil, nil
	}
	return s.believe(k, fields[0], fields[2], interval(fields[1])), nil
}

// state makes sense of the fields v, s and r of an instance's hash.
func (s *Store) state(key status.Key, fields []any) state {
	if len(fields) != 3 {
		s.distrust(key, fmt.Errorf("%d fields", len(fields)))
		return state{}
	}
	stamp, _ := fields[1].(string)
	return state{s.believe(key, fields[0], fields[2], notRead), stamp}
}

// notRead stands for an interval that nobody asked for.
const notRead = time.Duration(-1)

// interval makes sense of the field i of an instance's hash: 0 unless it is one.
func interval(field any) time.Duration {
	text, _ := field.(string)
	micros, err := strconv.ParseInt(text, 10, 64)
	if err != nil || micros < 0 || micros > status.MaxInteger {
		return 0
	}
	return time.Duration(micros) * time.Microsecond
}

// believe makes sense of the fields v and r of an instance's hash, beside what
// its field i says. It is nil if there is no record, or none to be believed.
func (s *Store) believe(key status.Key, v, r any, interval time.Duration) *status.Record {
	version, _ := v.(string)
	stored, ok := r.(string)
	if !ok {
		return nil
	}
	record, err := (*status.Record)(nil), error(nil)
	if m, ok := s.decoded.Get(key); ok && m.version == version && m.stored == stored {
		if interval == notRead || interval == m.record.Interval {
			return m.record
		}
		again := *m.record
		record = &again
	} else if record, err = decode(key, version, stored); err != nil {
		s.distrust(key, err)
		return nil
	}
	record.Interval = max(interval, 0)
	if len(stored) <= maxMemo {
		s.decoded.Add(key, memo{version, stored, record})
	}
	return record
}

// distrust reports a record that cannot be believed.
func (s *Store) distrust(key status.Key, err error) {
	s.metrics.corrupt.Inc()
	s.options.Logger.Warn("corrupt record in redis", "hub", key.Hub, "instanceId", key.InstanceID, "error", err)
}

// A memo is a record beside the text that it was decoded from. What is read
// often is decoded once; a text that differs in one byte is decoded again, so
// that a memo is never more than that.
type memo struct {
	version, stored string
	record          *status.Record
}

// The memos of a Store take some 16 MiB at most.
const (
	maxMemos = 2048
	maxMemo  = 4 << 10 // bytes of the text
)
