package redisstore

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

//go:embed index.lua
var indexScript string

const (
	// maxMembers bounds what one call of index.lua takes, and with it a message
	// on an index's channel: 128 KiB when all ids are as long as they may be.
	maxMembers = 128

	maxIndexLabels = 16
)

// indexName is the name of an index's sorted set and of its channel.
func (s *Store) indexName(i status.Index) string {
	name := s.options.Prefix + ":index:{" + i.Hub
	if i.Label != "" {
		name += "/" + url.PathEscape(i.Label) + "/" + url.PathEscape(i.Value)
	}
	return name + "}"
}

// index is the index whose sorted set has a name.
func (s *Store) index(name string) (status.Index, bool) {
	tag, ok := strings.CutPrefix(name, s.options.Prefix+":index:{")
	hub, rest, _ := strings.Cut(strings.TrimSuffix(tag, "}"), "/")
	label, value, _ := strings.Cut(rest, "/")
	i := status.Index{Hub: hub}
	var errs [2]error
	i.Label, errs[0] = url.PathUnescape(label)
	i.Value, errs[1] = url.PathUnescape(value)
	return i, ok && errs == [2]error{} && s.indexName(i) == name
}

// checkIndexLabels refuses what is no name of a label.
func checkIndexLabels(names []string) error {
	if len(names) > maxIndexLabels {
		return fmt.Errorf("more than %d indexed labels", maxIndexLabels)
	}
	for n, name := range names {
		if name == "" || slices.Contains(names[:n], name) {
			return fmt.Errorf("indexed label %q is empty or repeated", name)
		}
	}
	return nil
}

// revision collects what is to change in indexes: one call of index.lua for each
// index, more only if it has more than maxMembers members to bring up to date.
type revision struct {
	store  *Store
	calls  []*revise
	byName map[status.Index]*revise // of each index the call that still takes members
}

// revise is one call of index.lua.
type revise struct {
	index   status.Index
	members int
	size    int   // bytes, about
	args    []any // of the command, the first two left to be filled in
}

// member is an instance as index.lua is told of it. The values are boxed once,
// however many indexes it is in.
type member struct {
	id, version any
	size        int
}

func newMember(id string, version int64) member { return member{id, version, len(id) + 16} }

// headWords are the words of index.lua's call before its pairs.
const headWords = 5

func (s *Store) revise() *revision {
	return &revision{store: s, byName: make(map[status.Index]*revise)}
}

// tell adds that an instance belongs to an index, or has left it if the
// member's version is negative.
func (r *revision) tell(i status.Index, m member) {
	c := r.byName[i]
	if c == nil || c.members == maxMembers {
		c = &revise{index: i, args: make([]any, headWords, headWords+2)}
		c.args[2], c.args[3], c.args[4] = 1, r.store.indexName(i), max(r.store.options.TTL, r.store.options.TerminalTTL).Milliseconds()
		r.byName[i] = c
		r.calls = append(r.calls, c)
	}
	c.members++
	c.size += m.size
	c.args = append(c.args, m.id, m.version)
}

// move adds that an instance's record, which was before, is after now.
func (r *revision) move(before, after *status.Record) {
	if after.Version <= 0 {
		return
	}
	labels := r.store.options.IndexLabels
	indexes := after.Indexes(labels)
	here := newMember(after.InstanceID, after.Version)
	for _, i := range indexes {
		r.tell(i, here)
	}
	if before == after && !after.Purged {
		return
	}
	left := before.Indexes(labels)
	if after.Purged && len(left) == 0 {
		left = []status.Index{{Hub: after.Hub}} // the only one that is known
	}
	for _, i := range left {
		if !slices.Contains(indexes, i) {
			r.tell(i, newMember(after.InstanceID, -after.Version))
		}
	}
}

// apply carries out what was collected and returns the error of each index that
// could not be written. Whatever it is, it is a status.ErrUnavailable: what the
// indexes are to say stands in the records, and can be said again.
func (r *revision) apply(ctx context.Context) map[status.Index]error {
	failed := make(map[status.Index]error)
	for calls := range chunks(r.calls, func(c *revise) int { return c.size }) {
		unknown := r.send(ctx, calls, failed, "evalsha", r.store.indexScriptName)
		r.send(ctx, unknown, failed, "eval", indexScript)
	}
	return failed
}

// send runs the script for each call and returns those for which Redis did not
// know it by its name.
func (r *revision) send(ctx context.Context, calls []*revise, failed map[status.Index]error, command, script string) (unknown []*revise) {
	if len(calls) == 0 {
		return nil
	}
	pipe := r.store.client.Pipeline()
	commands := make([]*redis.Cmd, len(calls))
	for n, c := range calls {
		c.args[0], c.args[1] = command, script
		commands[n] = pipe.Do(ctx, c.args...)
	}
	_, failure := pipe.Exec(ctx)
	for n, c := range calls {
		answer, err := commands[n].Result()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			unknown = append(unknown, c)
			continue
		}
		if err := answerError(answer != nil, err, failure); err != nil {
			if !errors.Is(err, status.ErrUnavailable) {
				err = fmt.Errorf("%w: %w", status.ErrUnavailable, err)
			}
			failed[c.index] = fmt.Errorf("index: %w", err)
		} else if strange, _ := answer.(int64); strange != 0 {
			r.store.distrustIndex(c.index, fmt.Errorf("%d parts replaced or dropped", strange))
		}
	}
	return unknown
}

// indexAll brings the indexes up to date that the jobs' instances belong to or
// have left. An instance of which nothing changed counts too: whoever stored
// its record may not have come this far.
func (s *Store) indexAll(ctx context.Context, jobs []*job) {
	r := s.revise()
	for _, j := range jobs {
		if j.err == nil {
			r.move(j.before, j.merged)
		}
	}
	failed := r.apply(ctx)
	if len(failed) == 0 {
		return
	}
	for _, j := range jobs {
		if j.err != nil {
			continue
		}
		for _, i := range append(j.merged.Indexes(s.options.IndexLabels), append(j.before.Indexes(s.options.IndexLabels), status.Index{Hub: j.key.Hub})...) {
			if err := failed[i]; err != nil {
				j.fail(err)
				break
			}
		}
	}
}

// distrustIndex reports what stood in an index and cannot be believed.
func (s *Store) distrustIndex(i status.Index, err error) {
	s.metrics.corruptIndexes.Inc()
	s.options.Logger.Warn("corrupt index in redis", "hub", i.Hub, "label", i.Label, "error", err)
}

// parseTouched reads a message of an index's channel.
func parseTouched(i status.Index, payload string) ([]status.Key, error) {
	ids := strings.SplitN(payload, "\n", maxMembers+1)
	if len(ids) > maxMembers {
		return nil, errors.New("more than " + strconv.Itoa(maxMembers) + " instances")
	}
	keys := make([]status.Key, len(ids))
	for n, id := range ids {
		if err := status.ValidInstanceID(id); err != nil {
			return nil, err
		}
		keys[n] = status.Key{Hub: i.Hub, InstanceID: id}
	}
	return keys, nil
}
