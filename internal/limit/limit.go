// Package limit bounds how fast each of many callers may go.
//
// It promises that one caller's haste costs another nothing; that a caller who is refused and comes back when told to is let
// in; and that its memory is bounded, whatever callers call themselves. A limit is of this process: a caller of two replicas
// may go twice as fast.
//
// Use:
//
//	callers := limit.New[string](limit.PerSecond(1000))
//	if wait := callers.Take(name, 1, time.Now()); wait > 0 {
//		return &limit.Error{Limit: "caller", RetryAfter: wait}
//	}
package limit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"
)

// maxKeys bounds how many keys are remembered, some 250 bytes each. Beyond it, those are forgotten that have not been here for
// the longest time. That gives them a full bucket, which they have again anyhow unless that many others came while theirs filled:
// two seconds, as a rule.
const maxKeys = 1 << 16

// A Rate is so many per second in the long run, and so many at once. Without PerSecond there is no limit.
type Rate struct {
	PerSecond float64
	Burst     int // default: those of two seconds
}

// PerSecond is a rate with the default burst.
func PerSecond(n float64) Rate { return Rate{PerSecond: n} }

// Buckets are a token bucket for each key. A nil one has no limit.
type Buckets[K comparable] struct {
	rate  Rate
	byKey *lru.Cache[K, *rate.Limiter]
}

// New returns buckets, all of them full; or nil, if the rate is no limit.
func New[K comparable](r Rate) *Buckets[K] {
	if r.PerSecond <= 0 {
		return nil
	}
	if r.Burst <= 0 {
		r.Burst = max(int(min(2*r.PerSecond, math.MaxInt32)), 1)
	}
	byKey, err := lru.New[K, *rate.Limiter](maxKeys)
	if err != nil {
		panic(err) // of a size that is not positive
	}
	return &Buckets[K]{rate: r, byKey: byKey}
}

func (b *Buckets[K]) of(key K) *rate.Limiter {
	if l, ok := b.byKey.Get(key); ok {
		return l
	}
	fresh := rate.NewLimiter(rate.Limit(b.rate.PerSecond), b.rate.Burst)
	if l, ok, _ := b.byKey.PeekOrAdd(key, fresh); ok {
		return l // somebody was faster
	}
	return fresh
}

// Take takes n tokens from a key's bucket, and returns 0; or it takes none, and returns how long it takes until there are as
// many. More than the burst is let in when the bucket is full: no waiting would ever make room for it.
func (b *Buckets[K]) Take(key K, n int, now time.Time) (wait time.Duration) {
	if b == nil {
		return 0
	}
	l := b.of(key)
	n = min(n, b.rate.Burst)
	if l.AllowN(now, n) {
		return 0
	}
	return b.until(l, n, now)
}

// Charge takes a token that may not be there: the bucket then owes it.
func (b *Buckets[K]) Charge(key K, now time.Time) {
	if b != nil {
		b.of(key).ReserveN(now, 1)
	}
}

// Wait is how long it takes until a key's bucket has a token; 0: it has one. It takes none.
func (b *Buckets[K]) Wait(key K, now time.Time) time.Duration {
	if b == nil {
		return 0
	}
	l, ok := b.byKey.Get(key)
	if !ok || l.TokensAt(now) >= 1 {
		return 0
	}
	return b.until(l, 1, now)
}

// until is when there will be n tokens, and not now, since whoever asks was refused.
func (b *Buckets[K]) until(l *rate.Limiter, n int, now time.Time) time.Duration {
	missing := float64(n) - l.TokensAt(now)
	return max(time.Duration(missing/b.rate.PerSecond*float64(time.Second)), 1)
}

// An Error says that a limit is reached, and when to come back.
type Error struct {
	Limit      string // which one, in a word, for metrics and the log
	RetryAfter time.Duration
}

func (e *Error) Error() string {
	return fmt.Sprintf("limit of %s: try again in %s", e.Limit, e.RetryAfter)
}

// Scattered adds up to as much again to a wait, and four seconds at least: for limits that many share, who should not all come back at
// once.
func Scattered(wait time.Duration) time.Duration {
	return wait + rand.N(max(wait, 4*time.Second))
}

// Address is where a request comes from, as limits count it: the client's address, or of IPv6 the network of 64 bits, of which
// every household has one at least. What is not an IP address is the zero Addr, for all.
func Address(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	if a = a.Unmap().WithZone(""); a.Is6() {
		network, _ := a.Prefix(64) // 64 is no more than 128
		a = network.Addr()
	}
	return a
}
