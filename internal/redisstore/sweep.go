package redisstore

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

const (
	// sweepScan is how many keys one SCAN of a sweep looks at. Most are records,
	// which the server passes over: it takes some 0.4 ms.
	sweepScan = 1000
	// sweepMembers is about how many members are looked at in one step.
	sweepMembers = maxCommands
	// sweepPause comes after each step, so that a sweep takes a few percent of the
	// server's time at most, however much it finds.
	sweepPause = 10 * time.Millisecond
)

// What became of a replica's turn to sweep.
const (
	sweepDone   = "done"
	sweepFailed = "failed"
	sweepLeft   = "left"
)

// Sweep sweeps the indexes once per interval until the context is done, and then
// returns nil. Of all replicas that run it one does the work; the others try
// again in the next interval, and so does whoever failed.
func (s *Store) Sweep(ctx context.Context) error {
	// Not at once: a process that starts has more urgent things to ask. Those that
	// started together do not come together.
	interval := s.options.SweepInterval
	wait := interval/64 + mathrand.N(interval/64+1)
	for pause(ctx, wait) == nil {
		result, err := s.sweepInTurn(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.options.Logger.Warn("indexes not swept", "error", err)
		}
		s.metrics.sweeps.WithLabelValues(result).Inc()
		wait = interval + mathrand.N(interval/8+1)
	}
	return nil
}

// sweepInTurn sweeps unless somebody did so in this interval. Whoever does not
// get through leaves the rest to the next turn: what it has done stays done.
func (s *Store) sweepInTurn(ctx context.Context) (result string, err error) {
	mine, err := s.client.SetNX(ctx, s.options.Prefix+":sweep", "", s.options.SweepInterval).Result()
	if err != nil {
		return sweepFailed, classify(err)
	}
	if !mine {
		return sweepLeft, nil
	}
	start := time.Now()
	removed, err := s.SweepIndexes(ctx)
	if err != nil {
		return sweepFailed, err
	}
	s.options.Logger.Info("indexes swept", "removed", removed, "seconds", time.Since(start).Seconds())
	return sweepDone, nil
}

// SweepIndexes takes those members out of all indexes whose records have
// expired, and returns how many they are; who follows a list is told. Only List
// would find them else, and only where somebody looks: an index lives as long as
// its newest member, and the records of ended instances for a short time only.
// It may run beside any number of writers: who has entered again stays.
//
// It looks at members that have not changed for as long as the shortest-lived
// record lives, in steps with pauses: for the indexes with a million such
// members, which are all still alive, that is some two minutes. In a Cluster that
// moves slots meanwhile, some may be missed.
func (s *Store) SweepIndexes(ctx context.Context) (removed int, err error) {
	servers, err := s.masters(ctx)
	if err != nil {
		return 0, fmt.Errorf("sweep: %w", classify(err))
	}
	for _, server := range servers {
		// Versions are of the servers' clocks, not of ours.
		now, err := server.Time(ctx).Result()
		if err != nil {
			return removed, fmt.Errorf("sweep: time: %w", classify(err))
		}
		newest := now.Add(-min(s.options.TTL, s.options.TerminalTTL)).UnixMicro()
		for cursor := uint64(0); ; {
			names, next, err := server.Scan(ctx, cursor, s.pattern(":index:{*"), sweepScan).Result()
			if err != nil {
				return removed, fmt.Errorf("sweep: scan: %w", classify(err))
			}
			for some := range slices.Chunk(names, maxCommands) {
				n, err := s.sweep(ctx, some, newest)
				removed += n
				if err != nil {
					return removed, fmt.Errorf("sweep: %w", err)
				}
			}
			if cursor = next; cursor == 0 {
				break
			}
			if err := pause(ctx, sweepPause); err != nil {
				return removed, fmt.Errorf("sweep: %w", err)
			}
		}
	}
	return removed, nil
}

// walk is the way through the members of one index, from the newest that may
// have expired to the oldest.
type walk struct {
	listing
	at status.Cursor
}

// sweep takes out of the indexes of these names whoever has expired.
func (s *Store) sweep(ctx context.Context, names []string, newest int64) (removed int, err error) {
	var walks []*walk
	for _, name := range names {
		if i, ok := s.index(name); ok {
			walks = append(walks, &walk{listing{store: s, index: i}, status.Cursor{Version: newest}})
		}
	}
	for len(walks) > 0 {
		share := max(sweepMembers/len(walks), 1)
		n, err := s.step(ctx, walks, share)
		removed += n
		s.metrics.swept.Add(float64(n))
		if err != nil {
			return removed, err
		}
		walks = slices.DeleteFunc(walks, func(w *walk) bool { return w.found < share })
		if err := pause(ctx, sweepPause); err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// step looks at the next n members of each index.
func (s *Store) step(ctx context.Context, walks []*walk, n int) (removed int, err error) {
	pipe := s.client.Pipeline()
	asked := make([]*redis.ZSliceCmd, len(walks))
	for i, w := range walks {
		asked[i] = w.ask(ctx, pipe, w.at, n)
	}
	_, failure := pipe.Exec(ctx)
	for i, w := range walks {
		if err := w.hear(asked[i], failure); err != nil {
			return 0, err
		}
	}
	if err := s.seek(ctx, walks); err != nil {
		return 0, err
	}
	r := s.revise()
	for _, w := range walks {
		none := w.amend(r)
		if err := s.dropMembers(ctx, w.index, none); err != nil {
			return removed, err
		}
		removed += len(none)
	}
	told := 0
	for _, c := range r.calls {
		told += c.members
	}
	for _, err := range r.apply(ctx) {
		return removed, err
	}
	for _, w := range walks {
		for i := range w.entries {
			w.at = w.entries[i].behind(w.at, true)
		}
	}
	return removed + told, nil
}

// seek finds out which of the entries have a record. What else it says does not
// matter here: a version costs less to read than a record.
func (s *Store) seek(ctx context.Context, walks []*walk) error {
	var sought []*entry
	var answers []*redis.SliceCmd
	pipe := s.client.Pipeline()
	for _, w := range walks {
		for i := range w.entries {
			if e := &w.entries[i]; e.valid {
				sought = append(sought, e)
				// Not EXISTS: what is no record does not count.
				answers = append(answers, pipe.HMGet(ctx, s.name(status.Key{Hub: w.index.Hub, InstanceID: e.id}), "v"))
			}
		}
	}
	if len(sought) == 0 {
		return nil
	}
	_, failure := pipe.Exec(ctx)
	for i, e := range sought {
		fields, err := answers[i].Result()
		if redis.HasErrorPrefix(err, "WRONGTYPE") {
			continue
		}
		if err := answerError(fields != nil, err, failure); err != nil {
			return err
		}
		e.stays = len(fields) == 1 && fields[0] != nil
	}
	return nil
}

// pause waits, or returns the error of ctx if that ends first.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return classify(ctx.Err())
	}
}
