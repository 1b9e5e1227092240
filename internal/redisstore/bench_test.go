package redisstore_test

import (
	"encoding/json"
	"fmt"
	"syscall"
	"testing"
	"time"

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
		if _, err := fmt.Sscanf(after(r.Do("INFO", "cpu"), field.name), "%f", field.to); err != nil {
			b.Fatal(err)
		}
	}
	return time.Duration((sys + user) * float64(time.Second))
}

func after(s, mark string) string {
	for i := 0; i+len(mark) <= len(s); i++ {
		if s[i:i+len(mark)] == mark {
			return s[i+len(mark):]
		}
	}
	return ""
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

// The write path's share of Redis: batches of 100 updates of 100 instances.
func BenchmarkPut100DistinctRealRedis(b *testing.B) {
	for _, c := range []struct {
		name  string
		bytes int
	}{{"Remembered", 0}, {"Read", -1}} {
		b.Run(c.name, func(b *testing.B) {
			server := storetest.StartRedis(b)
			store, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}, CacheBytes: c.bytes})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			batch := make([]*status.Update, 100)
			sequence := int64(0)
			put := func() {
				sequence++
				for i := range batch {
					batch[i] = update(i, sequence)
				}
				b.StartTimer()
				_, errs := store.Put(b.Context(), batch)
				b.StopTimer()
				for _, err := range errs {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			put()
			b.ReportAllocs()
			b.ResetTimer()
			b.StopTimer()
			client, redis := cpu(b), serverCPU(b, server)
			for range b.N {
				put()
			}
			n := float64(b.N * len(batch))
			b.ReportMetric(float64((cpu(b)-client).Microseconds())/n, "client-µs/update")
			b.ReportMetric(float64((serverCPU(b, server)-redis).Microseconds())/n, "redis-µs/update")
		})
	}
}
