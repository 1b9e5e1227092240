package redisstore

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// A call is one call of a script.
type call struct {
	keys []string
	args []any

	answer any
	err    error
}

// runAll calls a script once for each, all in one pipeline: for calls that are few or small.
func (s *Store) runAll(ctx context.Context, script string, calls []*call) {
	unknown := s.runAs(ctx, "evalsha", scriptName(script), calls)
	s.runAs(ctx, "eval", script, unknown)
}

// runAs returns the calls for which Redis did not know the script by its name, as
// after a restart or a failover.
func (s *Store) runAs(ctx context.Context, command, script string, calls []*call) (unknown []*call) {
	if len(calls) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	commands := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		words := make([]any, 0, 3+len(c.keys)+len(c.args))
		words = append(words, command, script, len(c.keys))
		for _, key := range c.keys {
			words = append(words, key)
		}
		commands[i] = pipe.Do(ctx, append(words, c.args...)...)
	}
	_, failure := pipe.Exec(ctx)
	for i, c := range calls {
		answer, err := commands[i].Result()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			unknown = append(unknown, c)
			continue
		}
		c.answer, c.err = answer, answerError(answer != nil, err, failure)
	}
	return unknown
}
