// Package limit bounds how fast each of many callers may go.
//
// It promises that one caller's haste costs another nothing; that a caller who is refused and comes back when told to is let
// in; and that its memory is bounded, whatever callers call themselves. A limit is of this process: a caller of two replicas
// may go twice as fast.
//
// Use:
//
//	door := limit.NewDoor(limit.PerSecond(50_000), failures) // for everybody, before it is known who asks
//	quota, err := door.Admit(limit.Address(request), time.Now())
//	…
//	callers := limit.New[string]("caller", limit.PerSecond(1000))
//	quota, err = callers.Take(name, 1, time.Now())
//	…
//	told := limit.NewPolicies(door.Policy(), callers.Policy())
//	told.Tell(w.Header(), quota) // the fields RateLimit and RateLimit-Policy
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
	name   string
	rate   Rate
	shared bool
	byKey  *lru.Cache[K, *rate.Limiter]
}

// New returns buckets, all of them full; or nil, if the rate is no limit. The name is that of the limit, for its Error and its Quota.
func New[K comparable](name string, r Rate) *Buckets[K] {
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
	return &Buckets[K]{name: name, rate: r, byKey: byKey}
}

// NewShared is New for keys that many have together: those who are refused are told to come back at different times.
func NewShared[K comparable](name string, r Rate) *Buckets[K] {
	b := New[K](name, r)
	if b != nil {
		b.shared = true
	}
	return b
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

// Take takes n tokens from a key's bucket, and returns what is left there; or it takes none, and returns an Error that says how long it
// takes until there are as many. More than the burst is let in when the bucket is full: no waiting would ever make room for it.
func (b *Buckets[K]) Take(key K, n int, now time.Time) (Quota, error) {
	if b == nil {
		return Quota{}, nil
	}
	l := b.of(key)
	n = min(n, b.rate.Burst)
	if !l.AllowN(now, n) {
		return b.refuse(l, n, now)
	}
	left := max(l.TokensAt(now), 0)
	return Quota{b.name, int(left), time.Duration((float64(b.rate.Burst) - left) / b.rate.PerSecond * float64(time.Second))}, nil
}

// Check is a Take that takes nothing.
func (b *Buckets[K]) Check(key K, n int, now time.Time) (Quota, error) {
	if b == nil {
		return Quota{}, nil
	}
	l, ok := b.byKey.Get(key)
	if n = min(n, b.rate.Burst); !ok || l.TokensAt(now) >= float64(n) {
		return Quota{}, nil
	}
	return b.refuse(l, n, now)
}

// refuse says when there will be n tokens: and not now, since whoever asks was refused.
func (b *Buckets[K]) refuse(l *rate.Limiter, n int, now time.Time) (Quota, error) {
	missing := float64(n) - l.TokensAt(now)
	wait := max(time.Duration(missing/b.rate.PerSecond*float64(time.Second)), 1)
	if b.shared {
		wait = Scattered(wait)
	}
	return Quota{b.name, 0, wait}, &Error{Limit: b.name, RetryAfter: wait}
}

// Charge takes a token that may not be there: the bucket then owes it.
func (b *Buckets[K]) Charge(key K, now time.Time) {
	if b != nil {
		b.of(key).ReserveN(now, 1)
	}
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
