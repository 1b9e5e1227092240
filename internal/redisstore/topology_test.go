package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/claim"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// inbox follows a store and keeps the newest sequence offered per instance.
type inbox struct {
	*redisstore.Follower
	gaps chan struct{} // one token from the first gap on

	mu      sync.Mutex
	newest  map[status.Key]int64 // guarded by mu
	touched map[string]int       // guarded by mu; by owner, how often
}

func follow(t *testing.T, s *redisstore.Store) *inbox {
	t.Helper()
	in := &inbox{gaps: make(chan struct{}, 1), newest: make(map[status.Key]int64), touched: make(map[string]int)}
	in.Follower = s.Follow(redisstore.FollowOptions{
		Offer: func(r *status.Record) {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.newest[r.Key()] = max(in.newest[r.Key()], r.Progress.Position.N)
		},
		Touch: func(i status.Index, keys []status.Key) {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.touched[i.Value] += len(keys)
		},
		Gap: func() {
			select {
			case in.gaps <- struct{}{}:
			default:
			}
		},
		ProbeInterval: 50 * time.Millisecond,
		ProbeTimeout:  time.Second,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = in.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return in
}

func (in *inbox) got(keys []status.Key, sequence int64) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, k := range keys {
		if in.newest[k] != sequence {
			return false
		}
	}
	return true
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for !ok() {
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatalf("still not: %s", what)
		}
	}
}

// owners of instances: enough that their indexes are all over a Cluster.
const owners = 20

// instances returns updates of some instances and their keys.
func instances(n int, sequence int64) (updates []*status.Update, keys []status.Key) {
	for i := range n {
		u := update(i, sequence)
		u.Labels["owner"] = fmt.Sprint("owner-", i%owners)
		updates, keys = append(updates, u), append(keys, u.Key())
	}
	return updates, keys
}

// exchange puts updates of instances all over the store and wants them read and
// followed.
func exchange(t *testing.T, s *redisstore.Store, in *inbox, sequence int64) {
	t.Helper()
	updates, keys := instances(60, sequence)
	if err := in.Subscribe(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
	_, errs := s.Put(t.Context(), updates)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	records, err := s.Latest(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range records {
		if r == nil || r.Key() != keys[i] || r.Progress.Position.N != sequence {
			t.Fatalf("%s: got %+v", keys[i], r)
		}
	}
	eventually(t, "all offered", func() bool { return in.got(keys, sequence) })
}

// lists wants what exchange has put in its owners' lists and in the hub's.
func lists(t *testing.T, s *redisstore.Store) {
	t.Helper()
	check := func(q *status.Query, want int) {
		t.Helper()
		page, err := s.List(t.Context(), q, status.Cursor{}, 100)
		if err != nil || len(page.Records) != want {
			t.Errorf("%v: got %d, %v, want %d", q.Labels, len(page.Records), err, want)
		}
	}
	check(&status.Query{Hub: "orders"}, 60)
	for n := range owners {
		check(&status.Query{Hub: "orders", Labels: map[string]string{"owner": fmt.Sprint("owner-", n)}}, 60/owners)
	}
}

// listsFollowed subscribes to the owners' lists, puts, and wants to be told of it.
func listsFollowed(t *testing.T, s *redisstore.Store, in *inbox, sequence int64) {
	t.Helper()
	var indexes []status.Index
	for n := range owners {
		indexes = append(indexes, status.Index{Hub: "orders", Label: "owner", Value: fmt.Sprint("owner-", n)})
	}
	if err := in.SubscribeLists(t.Context(), indexes); err != nil {
		t.Fatal(err)
	}
	in.mu.Lock()
	clear(in.touched)
	in.mu.Unlock()
	exchange(t, s, in, sequence)
	eventually(t, "all touched", func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		for _, i := range indexes {
			// What was published before the subscription may still come from another node.
			if in.touched[i.Value] < 60/owners {
				return false
			}
		}
		return true
	})
}

// It takes the commands of deploy/redis/users.acl and those that it names for a Cluster.
func TestClusterSpreadsInstances(t *testing.T) {
	users := slices.Concat(storetest.Administrator(), []string{"--user", "default", "on", "nopass", "~statusrelay:*", "resetchannels", "&statusrelay:*"},
		storetest.ShippedCommands(t), []string{"+cluster|slots", "+command", "+asking"})
	var nodes []*storetest.Redis
	for range 2 {
		_, bus, _ := net.SplitHostPort(storetest.FreeAddr(t))
		nodes = append(nodes, storetest.StartRedis(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", bus}, users...)...))
	}
	nodes[0].Do("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
	nodes[1].Do("CLUSTER", "ADDSLOTSRANGE", "8192", "16383")
	nodes[1].Do("CLUSTER", "SET-CONFIG-EPOCH", "2")
	host, port, _ := net.SplitHostPort(nodes[0].Addr)
	nodes[1].Do("CLUSTER", "MEET", host, port, busPort(t, nodes[0]))
	for _, n := range nodes {
		eventually(t, "cluster formed", func() bool {
			info := n.Do("CLUSTER", "INFO")
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:2")
		})
	}
	sequence := int64(0)
	for name, o := range map[string]redisstore.Options{
		"all nodes": {Addrs: []string{nodes[0].Addr, nodes[1].Addr}},
		"one node":  {Addrs: []string{nodes[1].Addr}, Cluster: true},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := redisstore.New(o)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			in := follow(t, s)
			for range 3 {
				sequence++
				exchange(t, s, in, sequence)
			}
			lists(t, s)
			announced(t, s)
			sequence++
			listsFollowed(t, s, in, sequence)
			eventually(t, "ready", in.Ready)
			stampsAndClaims(t, s)

			// Every node has instances; Reindex finds them all.
			for n := range owners {
				name := fmt.Sprintf("statusrelay:index:{orders/owner/owner-%d}", n)
				for _, node := range nodes { // the other one says MOVED
					_, _ = storetest.Do(node.Addr, "DEL", name)
				}
			}
			if n, err := s.Reindex(t.Context(), nil); err != nil || n != 60 {
				t.Errorf("reindexed %d, %v, want 60", n, err)
			}
			lists(t, s)
			sweep(t, o, nodes)
		})
	}
	for _, n := range nodes {
		if log := n.Do("ACL", "LOG"); log != "" {
			t.Errorf("refused:\n%s", log)
		}
		names := n.Do("KEYS", "*")
		if !strings.Contains(names, "statusrelay:{") {
			t.Error("a node has no instance: the hash tag is the same for all")
		}
		if !strings.Contains(names, "statusrelay:index:{orders/owner/") {
			t.Error("a node has no index: the hash tag is the same for all")
		}
	}
}

// announced wants what is announced, of hubs all over the store, to be wanted, and a lease to have one holder.
func announced(t *testing.T, s *redisstore.Store) {
	t.Helper()
	var keys []status.Key
	for n := range owners {
		keys = append(keys, status.Key{Hub: fmt.Sprint("hub-", n), InstanceID: "1"})
	}
	if err := s.Announce(t.Context(), keys, time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if ids, err := s.Interested(t.Context(), k.Hub); err != nil || !slices.Equal(ids, []string{"1"}) {
			t.Errorf("%s: got %q, %v", k.Hub, ids, err)
		}
		for holder, want := range map[string]bool{k.Hub: true, "another": false} {
			if _, err := s.Lease(t.Context(), k.Hub, k.Hub, time.Minute); err != nil {
				t.Error(err)
			}
			if mine, err := s.Lease(t.Context(), k.Hub, holder, time.Minute); err != nil || mine != want {
				t.Errorf("%s: got %t, %v, want %t", holder, mine, err, want)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan string, 1)
	go func() {
		_ = s.FollowInterest(ctx, "followed", func(id string) {
			select {
			case heard <- id:
			default:
			}
		})
	}()
	n := 0
	eventually(t, "what is announced is heard", func() bool {
		n++
		_ = s.Announce(t.Context(), []status.Key{{Hub: "followed", InstanceID: fmt.Sprint(n)}}, time.Now().Add(time.Minute)) // or the next one
		return len(heard) > 0
	})
}

// sweep wants those out of all indexes whose records have gone, wherever either is.
func sweep(t *testing.T, o redisstore.Options, nodes []*storetest.Redis) {
	t.Helper()
	members := func() (n int) {
		for _, node := range nodes {
			for _, name := range strings.Fields(node.Do("KEYS", "statusrelay:index:*")) {
				n += len(strings.Fields(node.Do("ZRANGE", name, "0", "-1")))
			}
		}
		return n
	}
	o.TerminalTTL = time.Millisecond // then these are old enough
	s, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, keys := instances(60, 1)
	for _, k := range keys[:owners/2] {
		for _, node := range nodes {
			_, _ = storetest.Do(node.Addr, "DEL", "statusrelay:{"+k.Hub+"/"+k.InstanceID+"}")
		}
	}
	before, gone := members(), 3*owners/2 // each is in its hub's index, its owner's and its tenant's
	if n, err := s.SweepIndexes(t.Context()); err != nil || n != gone || members() != before-gone {
		t.Errorf("swept %d, %v, and of %d are left %d, want %d less", n, err, before, members(), gone)
	}
}

// stampsAndClaims asks for so many that every node is asked.
func stampsAndClaims(t *testing.T, s *redisstore.Store) {
	t.Helper()
	ledger, err := claim.NewLedger(claim.Options{Memory: s})
	if err != nil {
		t.Fatal(err)
	}
	var updates []*status.Update
	var events []*claim.Event
	for n := range 50 {
		updates = append(updates, &status.Update{Hub: "orders", InstanceID: fmt.Sprint("stamped-", n), Kind: status.KindProgress})
		events = append(events, claim.Of(t.Name(), "", "/", fmt.Sprint(n), nil))
	}
	if err := errors.Join(s.Stamp(t.Context(), updates)...); err != nil {
		t.Error(err)
	}
	ledger.Take(t.Context(), events)
	for _, e := range events {
		if e.Verdict != claim.Free {
			t.Errorf("an event is %s", e.Verdict)
		}
	}
}

// busPort reads a node's cluster bus port from its own line: id addr@bus,…
func busPort(t *testing.T, r *storetest.Redis) string {
	t.Helper()
	_, rest, _ := strings.Cut(r.Do("CLUSTER", "NODES"), "@")
	port, _, _ := strings.Cut(rest, " ")
	port, _, _ = strings.Cut(port, ",")
	return port
}

func TestSentinelFailoverIsAGap(t *testing.T) {
	primary, replica := storetest.StartRedis(t), storetest.StartRedis(t)
	host, port, _ := net.SplitHostPort(primary.Addr)
	replica.Do("REPLICAOF", host, port)
	sentinel := startSentinel(t, host, port)
	s, err := redisstore.New(redisstore.Options{Addrs: []string{sentinel}, MasterName: "main"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in := follow(t, s)
	exchange(t, s, in, 1)
	eventually(t, "the sentinel knows the replica in sync", func() bool {
		answer, err := storetest.Do(sentinel, "SENTINEL", "REPLICAS", "main")
		return err == nil && strings.Contains(answer, "master-link-status\nok") && replica.Do("DBSIZE") == fmt.Sprint(60+owners+2)
	})
	eventually(t, "the failover is accepted", func() bool {
		_, err := storetest.Do(sentinel, "SENTINEL", "FAILOVER", "main")
		return err == nil
	})
	eventually(t, "the replica is promoted", func() bool {
		answer, err := storetest.Do(replica.Addr, "INFO", "replication") // it drops its clients on the way
		return err == nil && strings.Contains(answer, "role:master")
	})
	select {
	case <-in.gaps:
	case <-time.After(60 * time.Second):
		t.Fatal("no gap")
	}
	updates, _ := instances(1, 2)
	eventually(t, "written to the new primary", func() bool {
		_, errs := s.Put(t.Context(), updates)
		if errs[0] != nil && !errors.Is(errs[0], status.ErrUnavailable) {
			t.Fatal(errs[0])
		}
		return errs[0] == nil
	})
	listsFollowed(t, s, in, 3)
	announced(t, s)
	if _, err := s.Reindex(t.Context(), nil); err != nil { // what was written last before the failover may be lost
		t.Error(err)
	}
	lists(t, s)
}

// startSentinel returns the address of a sentinel that watches a primary.
func startSentinel(t *testing.T, host, port string) string {
	t.Helper()
	addr := storetest.FreeAddr(t)
	_, own, _ := net.SplitHostPort(addr)
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("bind 127.0.0.1\nport %s\nsentinel monitor main %s %s 1\nsentinel down-after-milliseconds main 2000\n", own, host, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("redis-server", config, "--sentinel")
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	eventually(t, "sentinel serves", func() bool {
		_, err := storetest.Do(addr, "PING")
		return err == nil
	})
	return addr
}
