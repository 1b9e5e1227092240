// Package redisstore keeps the record of every instance in Redis.
//
// It promises:
//
//   - Put merges with status.Merge and writes, expires and publishes in one step
//     of the server (put.lua), guarded by what was merged from: any number of
//     replicas may write at once, and a crash cannot lose a push. An instance's
//     versions only grow, even when its record expires or is lost.
//   - Every instance is in the index of its hub and of each indexed label's value,
//     in the order of the last change, by the time that Put returns. Members that
//     are outdated, as after a crash, are found out by List and corrected; those
//     whose record has expired are taken out by Sweep, whether anybody lists them
//     or not; what is missing, as after the loss of an index, is put back by the next update of the
//     instance, or by Reindex.
//   - Latest, List and Follow take what Redis holds for untrusted input. A record that
//     cannot be believed is counted and logged, counts as absent, and is replaced
//     by the next update.
//   - Follow notices a subscription that broke or fell silent, subscribes again
//     and reports the gap.
//   - Sockets counts the sockets of each caller, tenant and address on all replicas.
//     Those of a replica that died count no longer than a minute; while Redis is away
//     each replica counts for itself.
//   - Announce and Interested have all replicas tell all bridges which instances
//     somebody wants: a bounded number, each for a bounded time.
//   - Swap is a memory of events for package claim, and Stamp gives positions to updates
//     that have none: both are shared by all replicas, and one round trip for a batch.
//   - Whatever may succeed later is an error that wraps status.ErrUnavailable.
//
// Use:
//
//	store, err := redisstore.New(redisstore.Options{Addrs: []string{"localhost:6379"}})
//	outcomes, errs := store.Put(ctx, updates)
//	records, err := store.Latest(ctx, keys)
//	page, err := store.List(ctx, &query, status.Cursor{}, 50)
//	go store.Sweep(ctx)
//	sockets := store.Sockets(redisstore.SocketsOptions{})
//	go sockets.Run(ctx)
//	leave, err := sockets.Enter(ctx, limit.Place{Limit: "sockets", Of: caller, Most: 1000})
//	err = store.Announce(ctx, keys, time.Now().Add(time.Minute))
//	ids, err := store.Interested(ctx, hub)
//	mine, err := store.Lease(ctx, "bridge", replica, time.Minute)
//	follower := store.Follow(redisstore.FollowOptions{Offer: hub.Offer, Gap: hub.Gap})
//	go follower.Run(ctx)
//	err = follower.Subscribe(ctx, keys)
//
// One hash per instance is named {prefix}:{hub/id}, the id percent-encoded and
// the braces literal, so that any id is safe and a Cluster keeps an instance in
// one slot. An index is a sorted set named {prefix}:index:{hub} or
// {prefix}:index:{hub/label/value}, with label and value encoded in the same way.
// The instances of a hub that somebody wants are a sorted set {prefix}:interest:{hub}.
// The channel of each has the same name. Tickets are {prefix}:ticket:id, leases
// {prefix}:lease:name;
// {prefix}:sockets:hash are the leases of the sockets of a caller, a tenant or an address,
// {prefix}:event:hash is what is known of an event, {prefix}:stamp:{hub/id} the last position that was given, and
// {prefix}:sweep says that the indexes were swept in this interval. It works with Redis 6 and newer: standalone, Sentinel, Cluster.
package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"statusrelay/internal/status"
)

const (
	dialTimeout = 2 * time.Second
	ioTimeout   = 3 * time.Second
)

// Options configure a Store.
type Options struct {
	// Addrs are host:port, or paths of Unix sockets. One is a standalone server,
	// several are nodes of a Cluster; with MasterName they are Sentinels. Required.
	Addrs []string
	// MasterName is the Sentinels' name of the primary. Default: no Sentinel.
	MasterName string
	// Cluster says that a single address is a Cluster's.
	Cluster bool

	Username, Password string
	// Credentials, when set, gives user name and password for each new
	// connection, instead of Username and Password.
	Credentials func(context.Context) (username, password string, err error)

	SentinelUsername, SentinelPassword string

	TLS *tls.Config // default: plain text
	DB  int         // not with Cluster

	// Prefix begins every key and channel. Default "statusrelay".
	Prefix string
	// PoolSize bounds the connections to each node. Default 10 per CPU.
	PoolSize int

	// TTL is how long a record outlives its last change. Default 7 days.
	TTL time.Duration
	// TerminalTTL is the same for a record that is terminal or a tombstone.
	// Default 24 hours.
	TerminalTTL time.Duration

	// IndexLabels names the labels by each value of which the instances are listed,
	// so that a List by one of them looks at no others. An instance costs each of
	// them one member of a sorted set. Default owner, tenant; empty but not nil: none.
	IndexLabels []string

	// SweepInterval is how often the indexes are swept, by one of all replicas that
	// run Sweep. Default 1 hour.
	SweepInterval time.Duration

	// MaxInterested bounds how many instances of a hub are wanted at a time
	// (Announce). Default 20,000.
	MaxInterested int

	// CacheBytes bounds the memory for records that this process wrote last and
	// need not be read again before the next update is merged into them.
	// Default 32 MiB; negative: none.
	CacheBytes int

	Metrics prometheus.Registerer // default: counted nowhere visible
	Logger  *slog.Logger          // default: discarded
}

func (o *Options) fill() error {
	if len(o.Addrs) == 0 {
		return errors.New("no address")
	}
	if len(o.Addrs) > 1 && o.MasterName == "" {
		o.Cluster = true
	}
	if o.Cluster && (o.MasterName != "" || o.DB != 0) {
		return errors.New("a cluster has neither a master name nor a database")
	}
	if o.Prefix == "" {
		o.Prefix = "statusrelay"
	}
	if strings.ContainsAny(o.Prefix, "{}") {
		return errors.New("prefix contains a brace")
	}
	if o.DB != 0 {
		// Channels know no databases: without its number, two deployments that
		// differ in nothing else would receive each other's records.
		o.Prefix += "@" + strconv.Itoa(o.DB)
	}
	for _, d := range []struct {
		name     string
		value    *time.Duration
		standard time.Duration
	}{{"ttl", &o.TTL, 7 * 24 * time.Hour}, {"terminal ttl", &o.TerminalTTL, 24 * time.Hour}, {"sweep interval", &o.SweepInterval, time.Hour}} {
		if *d.value == 0 {
			*d.value = d.standard
		}
		if *d.value < time.Millisecond {
			return fmt.Errorf("%s is %s, less than a millisecond", d.name, *d.value)
		}
	}
	if o.IndexLabels == nil {
		o.IndexLabels = []string{"owner", "tenant"}
	}
	if err := checkIndexLabels(o.IndexLabels); err != nil {
		return err
	}
	if o.MaxInterested == 0 {
		o.MaxInterested = 20_000
	}
	if o.MaxInterested < 0 {
		return errors.New("max interested is negative")
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Store is the records in Redis. It is safe for concurrent use.
type Store struct {
	options Options
	client  redis.UniversalClient
	metrics metrics
	cache   *cache
	reads   gather
	decoded *lru.Cache[status.Key, memo]

	putName, indexScriptName            string // of put.lua and index.lua, for EVALSHA
	interestScriptName, leaseScriptName string // the same of interest.lua and lease.lua
}

// New returns a Store. It does not connect: Redis may come up later.
func New(o Options) (*Store, error) {
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	m, err := newMetrics(o.Metrics)
	if err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	decoded, err := lru.New[status.Key, memo](maxMemos)
	if err != nil {
		return nil, fmt.Errorf("redis store: %w", err)
	}
	s := &Store{
		options: o,
		client:  newClient(&o),
		metrics: m,
		cache:   newCache(o.CacheBytes),
		decoded: decoded,

		putName: scriptName(putScript), indexScriptName: scriptName(indexScript),
		interestScriptName: scriptName(interestScript), leaseScriptName: scriptName(leaseScript),
	}
	s.reads.store = s
	return s, nil
}

func newClient(o *Options) redis.UniversalClient {
	// The library writes to standard error, and knows no other way than one
	// global. Whatever it says there reaches us as an error too.
	redis.SetLogger(&logging.VoidLogger{})
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:                      o.Addrs,
		MasterName:                 o.MasterName,
		IsClusterMode:              o.Cluster,
		Username:                   o.Username,
		Password:                   o.Password,
		CredentialsProviderContext: o.Credentials,
		SentinelUsername:           o.SentinelUsername,
		SentinelPassword:           o.SentinelPassword,
		DB:                         o.DB,
		ClientName:                 "statusrelay",
		DisableIdentity:            true, // one more command to be allowed, of which servers before 7.2 know nothing
		Dialer:                     dialer(o.TLS),
		TLSConfig:                  o.TLS, // a Cluster asks it which of a node's ports to use

		PoolSize:              o.PoolSize,
		DialTimeout:           dialTimeout,
		ReadTimeout:           ioTimeout,
		WriteTimeout:          ioTimeout,
		ContextTimeoutEnabled: true,
		// Whoever calls knows how to wait; here only a connection that went
		// stale in the pool is worth a second try. A write that is sent twice
		// changes nothing the second time.
		MaxRetries:    2,
		DialerRetries: 1,

		// Nothing here needs what RESP3 adds, and its push messages cost a look
		// before every reply.
		Protocol: 2,
		// Hand-overs announced by the server would move a subscription to
		// another connection unseen.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// dialer replaces go-redis' because that ignores the context while it shakes
// hands for TLS, because a session of the Follower must not dial twice, and because
// go-redis would take values of any size.
func dialer(config *tls.Config) func(context.Context, string, string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: dialTimeout}
	dial := plain.DialContext
	if config != nil {
		dial = (&tls.Dialer{NetDialer: plain, Config: config}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if err := mayDial(ctx); err != nil {
			return nil, err
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return bounded(conn), nil
	}
}

// Ping reports whether Redis answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping redis: %w", classify(err))
	}
	return nil
}

// Close closes all connections. Calls that are under way fail.
func (s *Store) Close() error {
	err := s.client.Close()
	s.reads.close()
	if err != nil {
		return fmt.Errorf("close redis: %w", err)
	}
	return nil
}

// name is the name of the instance's hash and of its channel.
func (s *Store) name(k status.Key) string {
	return s.options.Prefix + ":{" + k.Hub + "/" + url.PathEscape(k.InstanceID) + "}"
}
