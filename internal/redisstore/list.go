package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

// List looks at up to n members of the narrowest index that holds what the query
// selects, those behind a place, and returns the records that the query selects,
// newest change first. A page may therefore be short, even empty, and have more
// behind it. It takes two round trips, and a third where the index does not say
// what the records say: then it is corrected. A cursor that no page has given is
// a status.ErrInvalid.
func (s *Store) List(ctx context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error) {
	if from.Version < 0 || from.Version > status.MaxInteger || from.Ties < 0 || from.Version == 0 && from.Ties > 0 || n <= 0 {
		return status.Page{}, fmt.Errorf("list: %w: no place in a list", status.ErrInvalid)
	}
	l := &listing{store: s, index: q.Index(s.options.IndexLabels)}
	if err := l.look(ctx, from, n); err != nil {
		return status.Page{}, fmt.Errorf("list: %w", err)
	}
	if err := l.read(ctx); err != nil {
		return status.Page{}, fmt.Errorf("list: %w", err)
	}
	corrected := l.correct(ctx)

	page, at := status.Page{}, from
	for _, e := range l.entries {
		at = e.behind(at, corrected)
		if e.record != nil && q.Match(e.record) {
			page.Records, page.After = append(page.Records, e.record), append(page.After, at)
		}
	}
	if l.found == n {
		page.Next = at
	}
	return page, nil
}

// listing is one List under way.
type listing struct {
	store   *Store
	index   status.Index
	found   int // members that the index answered with
	entries []entry
}

// entry is one member of an index.
type entry struct {
	id     string
	valid  bool           // the id
	score  int64          // rounded down
	exact  bool           // the score is an integer, as every version
	record *status.Record // nil: none that belongs to the index
	stays  bool           // where it stands is right
}

// behind is the place behind an entry, if at is the one before it.
func (e *entry) behind(at status.Cursor, corrected bool) status.Cursor {
	if e.score != at.Version {
		at = status.Cursor{Version: e.score}
	}
	// What stands there no more is not to be skipped by who comes back.
	if e.exact && (e.stays || !corrected) {
		at.Ties++
	}
	return at
}

// look asks the index.
func (l *listing) look(ctx context.Context, from status.Cursor, n int) error {
	if from.Version == 0 {
		from.Version = status.MaxInteger
	}
	return l.hear(l.ask(ctx, l.store.client, from, n), nil)
}

// ask asks the index for members behind a place that has a version. Only scores
// that are versions are looked at.
func (l *listing) ask(ctx context.Context, c redis.Cmdable, from status.Cursor, n int) *redis.ZSliceCmd {
	// Not ZRANGE: Redis 6.0 has no REV for scores.
	return c.ZRevRangeByScoreWithScores(ctx, l.store.indexName(l.index), &redis.ZRangeBy{
		Max: fmt.Sprint(from.Version), Min: "1", Offset: int64(from.Ties), Count: int64(n),
	})
}

// hear makes entries of what the index answered; failure is that of the pipeline.
func (l *listing) hear(command *redis.ZSliceCmd, failure error) error {
	answer, err := command.Result()
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		l.store.distrustIndex(l.index, err)
		l.found, l.entries = 0, nil
		return nil
	}
	if err := answerError(answer != nil, err, failure); err != nil {
		return err
	}
	l.found = len(answer)
	l.entries = make([]entry, len(answer))
	for i, z := range answer {
		id, _ := z.Member.(string)
		score := math.Floor(z.Score)
		l.entries[i] = entry{id: id, valid: status.ValidInstanceID(id) == nil, score: int64(score), exact: score == z.Score}
	}
	return nil
}

// read reads the records of the entries.
func (l *listing) read(ctx context.Context) error {
	keys := make([]status.Key, 0, len(l.entries))
	for _, e := range l.entries {
		if e.valid {
			keys = append(keys, status.Key{Hub: l.index.Hub, InstanceID: e.id})
		}
	}
	if len(keys) == 0 {
		return nil
	}
	records, err := l.store.readLatest(ctx, keys)
	if err != nil {
		return err
	}
	for i := range l.entries {
		e := &l.entries[i]
		if !e.valid {
			continue
		}
		r := records[0]
		records = records[1:]
		if r != nil && slices.Contains(r.Indexes(l.store.options.IndexLabels), l.index) {
			e.record, e.stays = r, e.exact && r.Version == e.score
		}
	}
	return nil
}

// correct makes the index say what the records say, wherever it is still as it
// was seen, and reports whether it does so now. What is corrected is published
// like any change: whoever puts the record at this moment finds it done, and says
// nothing.
func (l *listing) correct(ctx context.Context) bool {
	r := l.store.revise()
	none := l.amend(r)
	if len(r.calls) > 0 {
		l.store.metrics.corrections.Inc()
	}
	if err := errors.Join(l.store.dropMembers(ctx, l.index, none), r.apply(ctx)[l.index]); err != nil {
		l.store.options.Logger.Debug("index not corrected", "hub", l.index.Hub, "label", l.index.Label, "error", err)
		return false
	}
	return true
}

// amend adds to r what the entries' records say, and returns the members that
// are no instances.
func (l *listing) amend(r *revision) (none []any) {
	for _, e := range l.entries {
		seen := e.score
		if !e.exact {
			seen++
		}
		switch {
		case e.stays:
		case !e.valid:
			none = append(none, e.id)
		case e.record == nil:
			r.tell(l.index, newMember(e.id, -seen))
		case e.record.Version < seen: // what was seen goes first
			r.tell(l.index, newMember(e.id, -seen))
			r.tell(l.index, newMember(e.id, e.record.Version))
		default:
			r.tell(l.index, newMember(e.id, e.record.Version))
		}
	}
	return none
}

// dropMembers takes out what is no instance.
func (s *Store) dropMembers(ctx context.Context, i status.Index, none []any) error {
	if len(none) == 0 {
		return nil
	}
	s.distrustIndex(i, fmt.Errorf("%d members are no instances", len(none)))
	return classify(s.client.ZRem(ctx, s.indexName(i), none...).Err())
}
