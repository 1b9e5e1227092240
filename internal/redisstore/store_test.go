package redisstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
)

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	addr := []string{"127.0.0.1:1"}
	registry := prometheus.NewRegistry()
	s, err := redisstore.New(redisstore.Options{Addrs: addr, Metrics: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, o := range map[string]redisstore.Options{
		"no address":             {},
		"negative ttl":           {Addrs: addr, TTL: -1},
		"ttl below 1 ms":         {Addrs: addr, TTL: time.Microsecond},
		"negative terminal ttl":  {Addrs: addr, TerminalTTL: -time.Hour},
		"negative sweeps":        {Addrs: addr, SweepInterval: -time.Hour},
		"brace in prefix":        {Addrs: addr, Prefix: "a{b"},
		"cluster with database":  {Addrs: addr, Cluster: true, DB: 1},
		"nodes with database":    {Addrs: append(addr, addr...), DB: 1},
		"cluster with sentinels": {Addrs: addr, Cluster: true, MasterName: "m"},
		"metrics twice":          {Addrs: addr, Metrics: registry},
	} {
		if s, err := redisstore.New(o); err == nil {
			t.Errorf("%s: accepted", name)
			_ = s.Close()
		}
	}
}

func TestRepliesThatMayPassAreUnavailable(t *testing.T) {
	for reply, want := range map[string]bool{
		"LOADING Redis is loading the dataset in memory":                        true,
		"READONLY You can't write against a read only replica.":                 true,
		"MASTERDOWN Link with MASTER is down":                                   true,
		"CLUSTERDOWN The cluster is down":                                       true,
		"TRYAGAIN Multiple keys request during rehashing of slot":               true,
		"NOREPLICAS Not enough good replicas to write.":                         true,
		"MISCONF Redis is configured to save RDB snapshots":                     true,
		"OOM command not allowed when used memory > 'maxmemory'.":               true,
		"BUSY Redis is busy running a script.":                                  true,
		"NOAUTH Authentication required.":                                       true,
		"WRONGPASS invalid username-password pair":                              true,
		"NOPERM this user has no permissions to run the 'evalsha' command":      true,
		"ERR max number of clients reached":                                     true,
		"ERR Error running script (call to f_1): @user_script:1: -READONLY You": true,
		"ERR Error running script (call to f_1): @user_script:1: -OOM command":  true,
		"ERR unknown command":                                                   false,
		"ERR the value READONLY is unknown":                                     false,
		"WRONGTYPE Operation against a key":                                     false,
		"ERR Error running script: attempt to compare a value":                  false,
	} {
		server := miniredis.RunT(t)
		s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr()}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ping(t.Context()); err != nil { // connected: the reply is a command's
			t.Fatal(err)
		}
		server.SetError(reply)
		_, errs := s.Put(t.Context(), []*status.Update{update(1, 1)})
		if errs[0] == nil || errors.Is(errs[0], status.ErrUnavailable) != want {
			t.Errorf("%s: got %v, want unavailable: %v", reply, errs[0], want)
		}
		_ = s.Close()
	}
}

func TestDatabasesDoNotShareChannels(t *testing.T) {
	server := miniredis.RunT(t)
	for db, want := range map[int]string{0: "statusrelay:{orders/order-000001}", 3: "statusrelay@3:{orders/order-000001}"} {
		s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr()}, DB: db})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, errs := s.Put(t.Context(), []*status.Update{update(1, 1)}); errs[0] != nil {
			t.Fatal(errs[0])
		}
		if keys := server.DB(db).Keys(); !slices.Contains(keys, want) {
			t.Errorf("database %d: got %q, want %q", db, keys, want)
		}
	}
}

// Every field of a record must survive the store, in the form that its tags
// describe.
func TestStoredFormIsThatOfTheTags(t *testing.T) {
	server := miniredis.RunT(t)
	s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key := status.Key{Hub: "h", InstanceID: "i"}
	for _, want := range []status.Record{
		{Hub: "h", InstanceID: "i", Version: 1},
		{Hub: "h", InstanceID: "i", Version: 2, Purged: true, Generation: 5},
		{
			Hub: "h", InstanceID: "i", Version: 1<<53 - 1, Name: "n\"\u2028", Generation: 1<<53 - 1,
			Lifecycle: status.Lifecycle{
				Position: status.Position{Class: status.Broker, N: -1 << 63}, Time: time.Unix(1, 1).UTC(),
				RuntimeStatus: status.ContinuedAsNew, Output: json.RawMessage(`{"a":[1e400,12345678901234567890]}`),
				Failure: &status.Failure{Type: "t", Message: "m"},
			},
			Progress: status.Progress{
				Position: status.Position{Class: status.Declared, N: 1<<53 - 1}, Time: time.Unix(2, 0).UTC(),
				CustomStatus: json.RawMessage(`null`),
			},
			CreatedTime: time.Unix(3, 0).UTC(), LastUpdatedTime: time.Unix(4, 999_999_999).UTC(),
			ExecutionID: "e", ParentInstanceID: "p", RootInstanceID: "r",
			OtherNames: []string{"b", "a"},
			Labels:     map[string]string{"": "", "a": "b"}, Conflicts: []string{"c", "d"},
		},
	} {
		form, err := json.Marshal(&want)
		if err != nil {
			t.Fatal(err)
		}
		server.FlushAll()
		server.HSet("statusrelay:{h/i}", "v", jsonNumber(t, want.Version), "s", "7", "r", string(form))
		got, err := s.Latest(t.Context(), []status.Key{key})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got[0], &want) {
			t.Errorf("read\ngot  %+v\nwant %+v", got[0], want)
		}
		// A label more makes the store write the record again.
		if want.Purged {
			continue
		}
		more := &status.Update{Hub: "h", InstanceID: "i", Kind: status.KindSnapshot, Labels: map[string]string{"z": "z"}}
		if _, errs := s.Put(t.Context(), []*status.Update{more}); errs[0] != nil {
			t.Fatal(errs[0])
		}
		merged, _ := status.Merge(&want, more)
		form, err = json.Marshal(merged)
		if err != nil {
			t.Fatal(err)
		}
		if stored := server.HGet("statusrelay:{h/i}", "r"); !sameJSON(t, stored, string(form)) {
			t.Errorf("wrote\ngot  %s\nwant %s", stored, form)
		}
	}
}

func jsonNumber(t *testing.T, n int64) string {
	t.Helper()
	b, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sameJSON compares without losing digits.
func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	parse := func(s string) (v any) {
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	return reflect.DeepEqual(parse(a), parse(b))
}

// What Redis holds must never crash a reader, and what is believed must be
// mergeable and storable.
func FuzzStoredRecord(f *testing.F) {
	f.Add("5", `{"hub":"h","id":"i","gen":1,"lifecycle":{"p":{"c":1,"n":2},"status":"Running"},"progress":{"custom":{"a":1}},"labels":{"a":"b"},"conflicts":["c"]}`)
	f.Add("x", `{"hub":"h","id":"i","purged":true}`)
	f.Add("9007199254740991", `{"hub":"h","id":"i","created":"2024-01-01T00:00:00Z"}`)
	server := miniredis.RunT(f)
	s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr()}, CacheBytes: -1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	key := status.Key{Hub: "h", InstanceID: "i"}
	f.Fuzz(func(t *testing.T, version, stored string) {
		server.FlushAll()
		server.HSet("statusrelay:{h/i}", "v", version, "s", "1", "r", stored)
		before, err := s.Latest(t.Context(), []status.Key{key})
		if err != nil {
			t.Fatal(err)
		}
		if r := before[0]; r != nil && (r.Key() != key || r.Version <= 0 || r.Version > status.MaxInteger) {
			t.Fatalf("believed %+v", r)
		}
		generation := int64(status.MaxInteger)
		u := &status.Update{Hub: "h", InstanceID: "i", Kind: status.KindProgress, Generation: &generation, CustomStatus: json.RawMessage(`1`)}
		if _, errs := s.Put(t.Context(), []*status.Update{u}); errs[0] != nil {
			t.Fatal(errs[0])
		}
		after, err := s.Latest(t.Context(), []status.Key{key})
		if err != nil || after[0] == nil {
			t.Fatalf("got %+v, %v after a put", after, err)
		}
	})
}

// Reads that come together are sent together: each gets its own, none an older
// one than before, and one whose caller has gone fails nobody else's.
func TestReadsAtTheSameTimeGetTheirOwn(t *testing.T) {
	server := miniredis.RunT(t)
	s, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const instances, readers, reads = 7, 40, 100
	put := func(i, n int) {
		generation, sequence := int64(1), int64(n)
		_, errs := s.Put(t.Context(), []*status.Update{{
			Hub: "h", InstanceID: fmt.Sprint(i), Kind: status.KindProgress, Generation: &generation, Sequence: &sequence,
			CustomStatus: json.RawMessage(fmt.Sprint(n)),
		}})
		if errs[0] != nil {
			t.Error(errs[0])
		}
	}
	for i := range instances {
		put(i, 1)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range 200 {
			put(n%instances, n+2)
		}
	})
	for reader := range readers {
		wg.Go(func() {
			newest := make(map[int]int64)
			for n := range reads {
				i := (reader + n) % instances
				if n%10 == 0 {
					_, _ = s.Latest(gone, []status.Key{{Hub: "h", InstanceID: fmt.Sprint(i)}})
				}
				records, err := s.Latest(t.Context(), []status.Key{{Hub: "h", InstanceID: fmt.Sprint(i)}})
				if err != nil || records[0] == nil {
					t.Errorf("instance %d: got %v, %v", i, records, err)
					return
				}
				r := records[0]
				if r.InstanceID != fmt.Sprint(i) || r.Version < newest[i] {
					t.Errorf("instance %d: got %s at %d after %d", i, r.InstanceID, r.Version, newest[i])
				}
				newest[i] = r.Version
			}
		})
	}
	wg.Wait()
}
