package redisstore

import (
	"context"
	"crypto/sha1" // names scripts in Redis' protocol, protects nothing
	_ "embed"
	"encoding/hex"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

//go:embed put.lua
var putScript string

// scriptName is what EVALSHA calls a script.
func scriptName(script string) string {
	sum := sha1.Sum([]byte(script))
	return hex.EncodeToString(sum[:])
}

const (
	// maxTries bounds how often one Put merges an instance again because another
	// writer was faster. In each round one of the writers wins, so that only
	// that many writers of one instance at the same time can exhaust it.
	maxTries = 32

	// A pipeline is written before its answers are read, so these bound what is
	// in flight, here and in Redis' buffers.
	maxCommands = 128
	maxBytes    = 1 << 20
)

// state is what Redis holds of one instance, as far as we know.
type state struct {
	record *status.Record // nil: none
	stamp  string         // token of the compare-and-set; "": none
}

// job is one instance's part of a Put.
type job struct {
	key     status.Key
	name    string
	updates []*status.Update
	indexes []int // of updates in the call's
	err     error

	from     state
	source   source
	before   *status.Record // what was merged from, by whoever did so last
	merged   *status.Record
	stored   []byte // merged, encoded
	outcomes []status.Outcome
	changed  bool
	visible  bool
}

// source says where a job's state is from.
type source uint8

const (
	unread  source = iota
	guessed        // from the cache: good enough for a guarded write, not for leaving one out
	read           // from Redis
	settled        // the job is done
)

// Put merges updates into the records of their instances and stores what
// changed, several updates of one instance in their order and in one write. It
// returns what each update did and its error, index by index. One instance's
// error does not touch the others.
//
// The updates must be valid and have their hub. After an error an update may
// have been stored all the same; putting it again changes nothing then.
func (s *Store) Put(ctx context.Context, updates []*status.Update) ([]status.Outcome, []error) {
	jobs := s.jobs(updates)
	s.cache.recall(jobs)
	open := jobs
	for try := 0; len(open) > 0; try++ {
		if try == maxTries {
			for _, j := range open {
				j.fail(fmt.Errorf("%w: %d other writes came first", status.ErrUnavailable, maxTries))
			}
			break
		}
		s.readAll(ctx, open)
		for _, j := range open {
			j.merge()
		}
		s.writeAll(ctx, open)
		open = unsettled(open)
	}
	s.indexAll(ctx, jobs)
	s.cache.keep(jobs)

	outcomes, errs := make([]status.Outcome, len(updates)), make([]error, len(updates))
	for _, j := range jobs {
		var err error
		if j.err != nil {
			err = fmt.Errorf("put %s: %w", j.key, j.err)
		}
		for n, i := range j.indexes {
			if errs[i] = err; err == nil {
				outcomes[i] = j.outcomes[n]
			}
		}
	}
	return outcomes, errs
}

// jobs groups updates by instance.
func (s *Store) jobs(updates []*status.Update) []*job {
	jobs := make([]*job, 0, len(updates))
	byKey := make(map[status.Key]*job, len(updates))
	for i, u := range updates {
		j := byKey[u.Key()]
		if j == nil {
			j = &job{key: u.Key(), name: s.name(u.Key())}
			byKey[j.key] = j
			jobs = append(jobs, j)
		}
		j.updates, j.indexes = append(j.updates, u), append(j.indexes, i)
	}
	return jobs
}

func unsettled(jobs []*job) []*job {
	var open []*job
	for _, j := range jobs {
		if j.source != settled {
			open = append(open, j)
		}
	}
	return open
}

func (j *job) fail(err error) { j.err, j.source = err, settled }

// merge folds the job's updates into the record that its state has.
func (j *job) merge() {
	if j.source == settled {
		return
	}
	j.before, j.merged, j.changed, j.visible = j.from.record, j.from.record, false, false
	j.outcomes = make([]status.Outcome, len(j.updates))
	for i, u := range j.updates {
		j.merged, j.outcomes[i] = status.Merge(j.merged, u)
		j.changed = j.changed || j.outcomes[i].Changed
		j.visible = j.visible || j.outcomes[i].Visible
	}
	switch {
	case j.changed:
		var err error
		if j.stored, err = encode(j.merged); err != nil {
			j.fail(err)
		}
	case j.source == guessed:
		// Redis may have lost what we remember: nothing counts as said before
		// on the word of a cache.
		j.source = unread
	default:
		j.source = settled
	}
}

// readAll reads the state of the jobs that have none.
func (s *Store) readAll(ctx context.Context, jobs []*job) {
	var reads []*job
	for _, j := range jobs {
		if j.source == unread {
			reads = append(reads, j)
		}
	}
	for chunk := range chunks(reads, (*job).size) {
		pipe := s.client.Pipeline()
		commands := make([]*redis.SliceCmd, len(chunk))
		for i, j := range chunk {
			commands[i] = pipe.HMGet(ctx, j.name, "v", "s", "r")
		}
		_, failure := pipe.Exec(ctx)
		for i, j := range chunk {
			fields, err := commands[i].Result()
			if err := answerError(fields != nil, err, failure); err != nil {
				j.fail(err)
				continue
			}
			j.from, j.source = s.state(j.key, fields), read
		}
	}
}

// writeAll stores what the jobs merged. Those that another writer overtook stay
// open, with the state that is stored now.
func (s *Store) writeAll(ctx context.Context, jobs []*job) {
	var writes []*job
	for _, j := range jobs {
		if j.source != settled && j.changed {
			writes = append(writes, j)
		}
	}
	for chunk := range chunks(writes, (*job).size) {
		unknown := s.write(ctx, chunk, "evalsha", s.putName)
		s.write(ctx, unknown, "eval", putScript)
	}
}

// write runs the script for each job and returns those for which Redis did not
// know it by its name, as after a restart or a failover.
func (s *Store) write(ctx context.Context, jobs []*job, command, script string) (unknown []*job) {
	if len(jobs) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	commands := make([]*redis.Cmd, len(jobs))
	for i, j := range jobs {
		visible := ""
		if j.visible {
			visible = "1"
		}
		commands[i] = pipe.Do(ctx, command, script, 1, j.name, j.from.stamp, j.stored, s.ttl(j.merged).Milliseconds(), visible)
	}
	_, failure := pipe.Exec(ctx)
	for i, j := range jobs {
		answer, err := commands[i].Result()
		if redis.HasErrorPrefix(err, "NOSCRIPT") {
			unknown = append(unknown, j)
			continue
		}
		if err := answerError(answer != nil, err, failure); err != nil {
			j.fail(err)
			continue
		}
		s.answered(j, answer)
	}
	return unknown
}

// answered takes what put.lua said about a job.
func (s *Store) answered(j *job, answer any) {
	switch answer := answer.(type) {
	case int64:
		if j.visible {
			j.merged.Version = answer
		}
		j.from, j.source = state{j.merged, strconv.FormatInt(answer, 10)}, settled
	case []any:
		s.metrics.conflicts.Inc()
		j.from, j.source = s.state(j.key, answer), read
	default:
		j.fail(fmt.Errorf("put.lua answered %T", answer))
	}
}

// ttl is how long a record lives after this change.
func (s *Store) ttl(r *status.Record) time.Duration {
	if r.Terminal() {
		return s.options.TerminalTTL
	}
	return s.options.TTL
}

func (j *job) size() int { return len(j.stored) }

// chunks cuts what is to be sent into pipelines of bounded size.
func chunks[T any](all []T, size func(T) int) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		for len(all) > 0 {
			n, sum := 0, 0
			for n < len(all) && n < maxCommands && (n == 0 || sum+size(all[n]) <= maxBytes) {
				sum += size(all[n])
				n++
			}
			if !yield(all[:n]) {
				return
			}
			all = all[n:]
		}
	}
}
