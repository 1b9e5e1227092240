// Package wsapi pushes statuses over WebSocket: the protocols status.v1.json and json.webpubsub.azure.v1 of docs/protocol.md.
//
//	GET /v1/watch
//
// It promises that
//
//   - a client is sent views of the instances it watches, as its audience sees them and nothing else: rights are decided
//     for every version, by the policy and the token in force at that moment. What does not exist and what the client may
//     not see look alike, and what it may not see any longer is gone;
//   - the versions that a watch is sent only grow and end on the newest, and a change that its audience cannot see wakes
//     nobody;
//   - a client that is slow, stuck or silent costs one pending version per watch, delays nobody, and is closed when it misses
//     a deadline; everything it can send is limited in size, number and rate;
//   - handshakes have rates, for each address and in all, and a caller, a tenant and an address have so many sockets at most,
//     whichever replicas they are on; who is refused is told when to come back, and costs others nothing;
//   - a socket is closed when its token expires, and when the server stops: then at a random point of the time that
//     there is, so that not all clients come back at once.
//
// An idle socket has one goroutine, blocked in a read on a minimal stack, and neither a timer nor a write buffer. A
// goroutine that writes exists only while there is something to write, and a frame is encoded once for all who see the same.
//
// Use:
//
//	s := wsapi.New(wsapi.Options{Verify: verifier.Verify, Source: source})
//	mux.Handle("GET /v1/watch", s)
//	go s.Run(ctx)      // pings, deadlines, expiry, changes of policy
//	…
//	s.Shutdown(ctx)    // http.Server.Shutdown knows nothing of these sockets
package wsapi

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/reader"
)

// Options of a Server. Verify and Source are required.
type Options struct {
	Verify func(ctx context.Context, token string) (*auth.Principal, error)
	Source *reader.Source // a change of its policy takes effect on open watches within about a second

	// Redeem returns who was given a ticket, once. origin is where the handshake's page comes from, "" if it is no page's. Default: tickets are
	// refused
	Redeem func(ctx context.Context, ticket, origin string) (*auth.Principal, error)

	// Compression lets clients compress, and compresses what they are sent if they offer to: permessage-deflate, RFC 7692. It saves
	// traffic, and costs about 45 KiB for each client that is in the middle of a frame. Default off
	Compression bool

	DefaultHub string   // of instances that name none. Default "default"
	Origins    []string // that browsers may come from, each exactly as in the Origin header. Default none

	MaxSockets         int // Default 50,000
	MaxUnauthenticated int // sockets that have not said yet who they are. Default 1,000
	MaxWatches         int // on one socket, those that its lists may have included. Default 100
	MaxFrameBytes      int // of one frame from a client, decompressed. Default 16 KiB; 8 KiB at most until it is known who sends it
	FramesPerSecond    int // from one client, pings and pongs included, after a burst of MaxWatches and two seconds. Default 20

	// Sockets counts sockets, on all replicas, for the three limits that follow. Default: there are none
	Sockets Counter
	// MaxSocketsPerCaller, and the others, bound the sockets of one caller, of all callers of a tenant, which TenantClaim of their
	// tokens names if it is a text, and from one address. Default: no limit
	MaxSocketsPerCaller, MaxSocketsPerTenant, MaxSocketsPerAddress int
	TenantClaim                                                    string
	// Handshakes bounds those that come, from one address and in all. Default: no limit
	HandshakesPerAddress, Handshakes limit.Rate
	// Failures bounds the credentials from one address that prove nothing: see httpapi. Default: no limit
	Failures *limit.Buckets[netip.Addr]

	HandshakeTimeout time.Duration // to write the answer to the handshake. Default 5 s
	AuthTimeout      time.Duration // from the handshake to the auth frame, and for verifying a token. Default 5 s
	PingInterval     time.Duration // between pings at most; up to a quarter shorter at random. Default 25 s
	PongTimeout      time.Duration // from a ping to its pong. Default 10 s
	WriteTimeout     time.Duration // to write one frame. Default 10 s
	CloseTimeout     time.Duration // from our close frame to the client's. Default 2 s
	DrainPeriod      time.Duration // over which Shutdown spreads its closes, if its context leaves that much. Default 10 s

	Logger  *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: counted nowhere visible
}

// A Counter counts sockets.
type Counter interface {
	// Enter counts one more in each of the places, and returns what undoes that; or a limit.Error if in one of them are as many as
	// there may be.
	Enter(ctx context.Context, places ...limit.Place) (leave func(), err error)
}

const (
	// maxInstances is how many instances one frame may name.
	maxInstances = 100
	// maxUnauthenticatedFrame is what an auth frame must fit in, in bytes.
	maxUnauthenticatedFrame = 8 << 10
	// maxAnswers is how many bytes of answers may wait for a client that asks and does not read.
	maxAnswers = 64 << 10
	// answerCost is what an answer counts besides its bytes.
	answerCost = 64
	// sweepInterval is how exact expiry, the time to authenticate and pings are.
	sweepInterval = time.Second
	// readBuffer and writeBuffer are the sizes of buffers in bytes. Every socket has the one; the others are shared, and
	// a frame that does not fit is written with one system call all the same.
	readBuffer  = 128
	writeBuffer = 1 << 10
)

// A Server is a handler of WebSocket handshakes and owns the sockets that come of them.
type Server struct {
	o        Options
	upgrader websocket.Upgrader
	log      *slog.Logger
	metrics  *metrics
	buffers  sync.Pool // of *bytes.Buffer: frames from clients

	// goroutines counts those of all sockets, plus one per admitted socket, so that it is never waited for and raised
	// from zero at the same time.
	goroutines sync.WaitGroup

	door       *limit.Door
	handshakes *limit.Buckets[struct{}]

	mu              sync.Mutex
	sockets         []*socket // guarded by mu: each knows its index
	admitted        int       // guarded by mu: sockets and handshakes under way
	unauthenticated int       // guarded by mu: those of them that have no principal
	closing         bool      // guarded by mu

	// origins says where the sockets come from that have no principal: a failure to get one counts there. Guarded by mu
	origins map[*socket]netip.Addr
}

// New returns a server without sockets.
func New(o Options) *Server {
	defaultTo(&o.DefaultHub, "default")
	defaultTo(&o.MaxSockets, 50_000)
	defaultTo(&o.MaxUnauthenticated, 1000)
	defaultTo(&o.MaxWatches, 100)
	defaultTo(&o.MaxFrameBytes, 16<<10)
	defaultTo(&o.FramesPerSecond, 20)
	defaultTo(&o.HandshakeTimeout, 5*time.Second)
	defaultTo(&o.AuthTimeout, 5*time.Second)
	defaultTo(&o.PingInterval, 25*time.Second)
	defaultTo(&o.PongTimeout, 10*time.Second)
	defaultTo(&o.WriteTimeout, 10*time.Second)
	defaultTo(&o.CloseTimeout, 2*time.Second)
	defaultTo(&o.DrainPeriod, 10*time.Second)
	s := &Server{
		o:       o,
		log:     o.Logger,
		metrics: newMetrics(o.Metrics),
		origins: make(map[*socket]netip.Addr),

		door:       limit.NewDoor(o.HandshakesPerAddress, o.Failures),
		handshakes: limit.NewShared[struct{}](limitHandshakes, o.Handshakes),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.buffers.New = func() any { return new(bytes.Buffer) }
	s.upgrader = websocket.Upgrader{
		HandshakeTimeout: o.HandshakeTimeout,
		ReadBufferSize:   readBuffer,
		WriteBufferSize:  writeBuffer,
		WriteBufferPool:  new(sync.Pool),
		CheckOrigin:      func(*http.Request) bool { return true }, // ServeHTTP has
		Error:            s.refuseHandshake,
	}
	return s
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Run does for all sockets what depends on time: pings, the deadline to authenticate, the expiry of tokens; and has
// their rights decided again when the policy has changed. It returns nil when ctx is done.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	inForce := s.o.Source.Policy()
	var sockets []*socket
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		// Whoever is not in this copy came after the policy was looked at or has gone.
		now, p := time.Now(), s.o.Source.Policy()
		s.mu.Lock()
		sockets = append(sockets[:0], s.sockets...)
		s.mu.Unlock()
		for _, so := range sockets {
			so.sweep(now)
			if p != inForce {
				so.reader.Reassess()
			}
		}
		inForce = p
		clear(sockets)
	}
}

// Shutdown refuses new sockets, closes all others with 1012 at random points of the drain period, and waits until they are
// gone. If ctx ends before, it cuts them off and returns the error of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	sockets := slices.Clone(s.sockets)
	s.mu.Unlock()

	period := s.o.DrainPeriod
	if deadline, ok := ctx.Deadline(); ok {
		period = max(0, min(period, time.Until(deadline)-2*s.o.CloseTimeout))
	}
	rand.Shuffle(len(sockets), func(i, j int) { sockets[i], sockets[j] = sockets[j], sockets[i] })
	start := time.Now()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for i, so := range sockets {
		pause.Reset(time.Until(start.Add(period * time.Duration(i) / time.Duration(len(sockets)))))
		select {
		case <-pause.C:
			so.fail(closeRestart)
		case <-ctx.Done():
		}
	}

	gone := make(chan struct{})
	go func() {
		s.goroutines.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	sockets = slices.Clone(s.sockets)
	s.mu.Unlock()
	for _, so := range sockets {
		so.conn.Close()
	}
	<-gone
	return ctx.Err()
}
