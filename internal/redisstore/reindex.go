package redisstore

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/status"
)

// scanCount is how many keys one SCAN looks at, and about how many records are
// in memory at a time.
const scanCount = 128

// Reindex brings the indexes up to date with every record that Redis holds, and
// returns how many those are: after an index was lost, or for labels that were
// not indexed before. It may run as often as anybody likes and beside any number
// of writers; what it adds is published, so that those who follow a list see it.
// What an index holds too much it leaves to List and Sweep. progress, unless nil, is told
// now and then how many records are done.
//
// Keys are scanned, which takes Redis some time in all but never long at once.
// In a Cluster that moves slots meanwhile, some may be missed.
func (s *Store) Reindex(ctx context.Context, progress func(n int)) (int, error) {
	servers, err := s.masters(ctx)
	if err != nil {
		return 0, fmt.Errorf("reindex: %w", classify(err))
	}
	total := 0
	for _, server := range servers {
		for cursor := uint64(0); ; {
			names, next, err := server.Scan(ctx, cursor, s.pattern(":{*"), scanCount).Result()
			if err != nil {
				return total, fmt.Errorf("reindex: scan: %w", classify(err))
			}
			n, err := s.reindex(ctx, names)
			if err != nil {
				return total, fmt.Errorf("reindex: %w", err)
			}
			if total += n; n > 0 && progress != nil {
				progress(total)
			}
			if cursor = next; cursor == 0 {
				break
			}
		}
	}
	return total, nil
}

// masters returns the servers that have all keys between them.
func (s *Store) masters(ctx context.Context) ([]redis.Cmdable, error) {
	cluster, ok := s.client.(*redis.ClusterClient)
	if !ok {
		return []redis.Cmdable{s.client}, nil
	}
	var mu sync.Mutex
	var all []redis.Cmdable
	err := cluster.ForEachMaster(ctx, func(_ context.Context, server *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, server)
		return nil
	})
	return all, err
}

// pattern matches the names that begin with the prefix and go on as it says.
func (s *Store) pattern(rest string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s.options.Prefix) + rest
}

// reindex indexes the instances whose hashes have these names, and returns how
// many have a record.
func (s *Store) reindex(ctx context.Context, names []string) (int, error) {
	var keys []status.Key
	for _, name := range names {
		if k, ok := s.key(name); ok {
			keys = append(keys, k)
		}
	}
	records, err := s.readLatest(ctx, keys)
	if err != nil {
		return 0, err
	}
	n, r := 0, s.revise()
	for _, record := range records {
		if record != nil {
			n++
			r.move(record, record)
		}
	}
	for _, err := range r.apply(ctx) {
		return 0, err
	}
	return n, nil
}

// key is the instance whose hash has a name.
func (s *Store) key(name string) (status.Key, bool) {
	tag, ok := strings.CutPrefix(name, s.options.Prefix+":{")
	hub, escaped, _ := strings.Cut(strings.TrimSuffix(tag, "}"), "/")
	id, err := url.PathUnescape(escaped)
	k := status.Key{Hub: hub, InstanceID: id}
	return k, ok && err == nil && s.name(k) == name
}
