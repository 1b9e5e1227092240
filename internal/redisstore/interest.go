package redisstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

//go:embed interest.lua
var interestScript string

// MaxInterest is the longest that an instance can be wanted without being announced again.
const MaxInterest = time.Hour

// interestName is the name of the sorted set of a hub's instances that are wanted, and of its channel.
func (s *Store) interestName(hub string) string { return s.options.Prefix + ":interest:{" + hub + "}" }

// Announce says that somebody wants to know how these instances are, until that time: to whoever bridges a runtime that does
// not publish by itself. Of several announcements of an instance the one counts that ends last. At most Options.MaxInterested
// instances of a hub are wanted at a time; those leave first whose time ends first. The keys must be valid; an error
// may concern only some of them, and is a status.ErrUnavailable if they are worth announcing again.
//
// Redis measures the time, so that clocks need not agree.
func (s *Store) Announce(ctx context.Context, keys []status.Key, until time.Time) error {
	wanted := min(time.Until(until), MaxInterest)
	if wanted < time.Millisecond {
		return nil
	}
	var errs []error
	for calls := range chunks(s.announcements(keys, wanted), func(a *announcement) int { return a.size }) {
		unknown, err := s.announce(ctx, calls, "evalsha", s.interestScriptName)
		_, again := s.announce(ctx, unknown, "eval", interestScript)
		errs = append(errs, err, again)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("announce interest: %w", err)
	}
	return nil
}

// lookFor is how long an instance is wanted to which something has happened: time for another bridge to take over.
const lookFor = 2 * time.Minute

// Look has whoever bridges a hub look at instances of it now, whether they are wanted already or not.
func (s *Store) Look(ctx context.Context, keys []status.Key) error {
	if err := s.Announce(ctx, keys, time.Now().Add(lookFor)); err != nil {
		return err
	}
	ids := make(map[string][]string) // by hub
	for _, k := range keys {
		ids[k.Hub] = append(ids[k.Hub], k.InstanceID)
	}
	for hub, all := range ids {
		for some := range slices.Chunk(all, maxMembers) {
			if err := s.client.Publish(ctx, s.interestName(hub), strings.Join(some, "\n")).Err(); err != nil {
				return fmt.Errorf("announce interest: %w", classify(err))
			}
		}
	}
	return nil
}

// An announcement is one call of interest.lua.
type announcement struct {
	hub  string
	args []any // of the command, the first two left to be filled in
	size int   // bytes, about
}

// interestArgs are those of a call, but for the ids.
func (s *Store) interestArgs(hub string, wanted time.Duration) []any {
	return []any{nil, nil, 1, s.interestName(hub), MaxInterest.Milliseconds(), s.options.MaxInterested, wanted.Milliseconds()}
}

// announcements are the calls that it takes: one for each hub, more only if there are more than maxMembers instances of it.
func (s *Store) announcements(keys []status.Key, wanted time.Duration) []*announcement {
	var all []*announcement
	open := make(map[string]*announcement) // of each hub the call that still takes ids
	for _, k := range keys {
		a := open[k.Hub]
		if a == nil {
			a = &announcement{hub: k.Hub, args: s.interestArgs(k.Hub, wanted)}
			all = append(all, a)
			open[k.Hub] = a
		}
		a.args = append(a.args, k.InstanceID)
		if a.size += len(k.InstanceID) + 8; len(a.args) == 7+maxMembers {
			delete(open, k.Hub)
		}
	}
	return all
}

// announce runs the script for each call and returns those for which Redis did not know it by its name.
func (s *Store) announce(ctx context.Context, calls []*announcement, command, script string) (unknown []*announcement, err error) {
	if len(calls) == 0 {
		return nil, nil
	}
	pipe := s.client.Pipeline()
	commands := make([]*redis.Cmd, len(calls))
	for n, a := range calls {
		a.args[0], a.args[1] = command, script
		commands[n] = pipe.Do(ctx, a.args...)
	}
	_, failure := pipe.Exec(ctx)
	for n, a := range calls {
		answer, own := commands[n].Int64Slice()
		switch {
		case redis.HasErrorPrefix(own, "NOSCRIPT"):
			unknown = append(unknown, a)
		case own != nil || len(answer) != 2:
			err = answerError(false, own, failure)
		default:
			s.metrics.displaced.Add(float64(answer[1]))
			if answer[0] != 0 {
				s.distrustInterest(a.hub, int(answer[0]))
			}
		}
	}
	return unknown, err
}

// Interested returns the instances of a hub that somebody wants, those first that are wanted for the longest. What Redis has
// there is not believed: what can be no instance is taken out, and counted.
func (s *Store) Interested(ctx context.Context, hub string) (ids []string, err error) {
	ids, err = s.run(ctx, s.interestScriptName, interestScript, s.interestArgs(hub, 0)).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("read interest: %w", classify(err))
	}
	var none []any
	valid := ids[:0]
	for _, id := range ids {
		if status.ValidInstanceID(id) == nil {
			valid = append(valid, id)
		} else {
			none = append(none, id)
		}
	}
	if len(none) > 0 {
		s.distrustInterest(hub, len(none))
		if err := s.client.ZRem(ctx, s.interestName(hub), none...).Err(); err != nil {
			s.options.Logger.Debug("strange interest not taken out", "hub", hub, "error", err)
		}
	}
	return valid, nil
}

// run runs a script by its name, or as it is if Redis does not know that. The first two of the arguments are left to be filled in.
func (s *Store) run(ctx context.Context, name, script string, args []any) *redis.Cmd {
	args[0], args[1] = "evalsha", name
	c := s.client.Do(ctx, args...)
	if redis.HasErrorPrefix(c.Err(), "NOSCRIPT") {
		args[0], args[1] = "eval", script
		c = s.client.Do(ctx, args...)
	}
	return c
}

// FollowInterest has heard called with each instance of a hub that somebody comes to want, until ctx is done; then it returns
// nil. Nothing else is heard meanwhile, so heard must be fast. A subscription that is lost or falls silent is replaced. What
// is announced before it stands, or while it does not, is not heard: Interested has it.
func (s *Store) FollowInterest(ctx context.Context, hub string, heard func(id string)) error {
	// What its channel carries has the form of what an index's does.
	f := s.Follow(FollowOptions{
		Offer: func(*status.Record) {},
		Touch: func(_ status.Index, keys []status.Key) {
			for _, k := range keys {
				heard(k.InstanceID)
			}
		},
		Gap: func() {},
	})
	f.want([]string{s.interestName(hub)}, func(int) subject { return subject{index: &status.Index{Hub: hub}} })
	return f.Run(ctx)
}

// distrustInterest reports what stood in a set of what is wanted and cannot be believed.
func (s *Store) distrustInterest(hub string, parts int) {
	s.metrics.corruptIndexes.Inc()
	s.options.Logger.Warn("corrupt interest in redis", "hub", hub, "parts", parts)
}
