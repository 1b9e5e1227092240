package redisstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/limit"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// cpu is what this process has used, user and system.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func serverCPU(b *testing.B, r *storetest.Redis) time.Duration {
	var sys, user float64
	for _, field := range []struct {
		name string
		to   *float64
	}{{"used_cpu_sys:", &sys}, {"used_cpu_user:", &user}} {
		_, value, _ := strings.Cut(r.Do("INFO", "cpu"), field.name)
		if _, err := fmt.Sscanf(value, "%f", field.to); err != nil {
			b.Fatal(err)
		}
	}
	return time.Duration((sys + user) * float64(time.Second))
}

func update(instance int, sequence int64) *status.Update {
	generation := int64(1_700_000_000_000)
	return &status.Update{
		Hub: "orders", InstanceID: fmt.Sprintf("order-%06d", instance), Name: "ProcessOrder",
		Generation: &generation, Sequence: &sequence,
		Kind: status.KindSnapshot, RuntimeStatus: status.Running,
		CustomStatus:    json.RawMessage(fmt.Sprintf(`{"message":"Charging the card","percent":%d,"step":"payment","detail":{"attempt":1,"provider":"acme"}}`, sequence%100)),
		CreatedTime:     time.UnixMilli(generation).UTC(),
		LastUpdatedTime: time.UnixMilli(generation + sequence).UTC(),
		Labels:          map[string]string{"owner": "alice", "tenant": "north"},
	}
}

// Reading and making sense of records: what a GET, and a re-read after a gap, cost.
func BenchmarkLatest(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			server := storetest.StartRedis(b)
			store, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			keys, batch := make([]status.Key, n), make([]*status.Update, n)
			for i := range keys {
				batch[i] = update(i, 1)
				keys[i] = batch[i].Key()
			}
			if _, errs := store.Put(b.Context(), batch); errors.Join(errs...) != nil {
				b.Fatal(errs)
			}
			b.ReportAllocs()
			b.ResetTimer()
			client, redis := cpu(b), serverCPU(b, server)
			for range b.N {
				if _, err := store.Latest(b.Context(), keys); err != nil {
					b.Fatal(err)
				}
			}
			report(b, b.N*n, cpu(b)-client, serverCPU(b, server)-redis, "record")
		})
	}
}

// A page of the list of 10,000 instances, at its beginning and behind 9,000.
func BenchmarkList50(b *testing.B) {
	server := storetest.StartRedis(b)
	store, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	const size = 50
	var places []status.Cursor
	for n := range 10_000 / 100 {
		batch := make([]*status.Update, 100)
		for i := range batch {
			batch[i] = update(100*n+i, 1)
		}
		if _, errs := store.Put(b.Context(), batch); errors.Join(errs...) != nil {
			b.Fatal(errs)
		}
	}
	q := &status.Query{Hub: "orders", Labels: map[string]string{"owner": "alice"}}
	for at := (status.Cursor{}); len(places) <= 9000/size; {
		places = append(places, at)
		page, err := store.List(b.Context(), q, at, size)
		if err != nil {
			b.Fatal(err)
		}
		at = page.Next
	}
	for _, c := range []struct {
		name string
		at   status.Cursor
	}{{"First", places[0]}, {"Behind9000", places[9000/size]}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			client, redis := cpu(b), serverCPU(b, server)
			for range b.N {
				if page, err := store.List(b.Context(), q, c.at, size); err != nil || len(page.Records) != size {
					b.Fatal(len(page.Records), err)
				}
			}
			report(b, b.N, cpu(b)-client, serverCPU(b, server)-redis, "page")
		})
	}
}

// A sweep through 10,000 members that are all still alive, most of whose time is
// its pauses.
func BenchmarkSweep10000(b *testing.B) {
	server := storetest.StartRedis(b)
	store, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}, IndexLabels: []string{}, TerminalTTL: time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	const members = 10_000
	for n := range members / 100 {
		batch := make([]*status.Update, 100)
		for i := range batch {
			batch[i] = update(100*n+i, 1)
		}
		if _, errs := store.Put(b.Context(), batch); errors.Join(errs...) != nil {
			b.Fatal(errs)
		}
	}
	b.ResetTimer()
	client, redis := cpu(b), serverCPU(b, server)
	for range b.N {
		if n, err := store.SweepIndexes(b.Context()); err != nil || n != 0 {
			b.Fatal(n, err)
		}
	}
	report(b, b.N*members, cpu(b)-client, serverCPU(b, server)-redis, "member")
}

func report(b *testing.B, n int, client, redis time.Duration, of string) {
	b.ReportMetric(float64(client.Microseconds())/float64(n), "client-µs/"+of)
	b.ReportMetric(float64(redis.Microseconds())/float64(n), "redis-µs/"+of)
}

// The write path's share of Redis: batches of 100 updates of 100 instances. All
// are in their hub's index. An index by label is one call more for each value
// in a batch: one when all have the same, 100 when all differ.
func BenchmarkPut100DistinctRealRedis(b *testing.B) {
	for _, c := range []struct {
		name   string
		bytes  int
		labels []string
		owners int
	}{
		{"Remembered", 0, []string{}, 1},
		{"Read", -1, []string{}, 1},
		{"OneOwner", 0, []string{"owner"}, 1},
		{"DistinctOwners", 0, []string{"owner"}, 100},
		{"DefaultLabels", 0, nil, 100},
	} {
		b.Run(c.name, func(b *testing.B) {
			server := storetest.StartRedis(b)
			store, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}, CacheBytes: c.bytes, IndexLabels: c.labels})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			const size, variants = 100, 64
			var batches [variants][]*status.Update
			for i := range batches {
				for j := range size {
					u := update(j, int64(i))
					u.Labels["owner"] = fmt.Sprint("owner-", j%c.owners)
					batches[i] = append(batches[i], u)
				}
			}
			put := func(n int) {
				for i, u := range batches[n%variants] {
					*u.Sequence = int64(n)
					u.LastUpdatedTime = u.CreatedTime.Add(time.Duration(n*size+i) * time.Millisecond)
				}
				_, errs := store.Put(b.Context(), batches[n%variants])
				for _, err := range errs {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			put(0)
			b.ReportAllocs()
			b.ResetTimer()
			client, redis := cpu(b), serverCPU(b, server)
			for n := range b.N {
				put(n + 1)
			}
			report(b, b.N*size, cpu(b)-client, serverCPU(b, server)-redis, "update")
		})
	}
}

// BenchmarkSocketsEnter is what counting one socket costs, alone and with many handshakes at once, on a real server.
func BenchmarkSocketsEnter(b *testing.B) {
	for _, handshakes := range []int{1, 256} {
		b.Run(strconv.Itoa(handshakes), func(b *testing.B) {
			s, err := redisstore.New(redisstore.Options{Addrs: []string{storetest.StartRedis(b).Addr}})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			sockets := s.Sockets(redisstore.SocketsOptions{})
			place := func(caller string) limit.Place { return limit.Place{Limit: "sockets", Of: caller, Most: 1000} }
			ctx, stop := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() { ended <- sockets.Run(ctx) }()
			b.SetParallelism(max(handshakes/runtime.GOMAXPROCS(0), 1))
			if handshakes == 1 {
				for i := 0; b.Loop(); i++ {
					if _, err := sockets.Enter(ctx, place(strconv.Itoa(i))); err != nil {
						b.Fatal(err)
					}
				}
			} else {
				var callers atomic.Int64
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := sockets.Enter(ctx, place(strconv.FormatInt(callers.Add(1), 10))); err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.StopTimer()
			stop()
			if err := <-ended; err != nil {
				b.Fatal(err)
			}
		})
	}
}
