// Package httpapi serves statuses over HTTP: from the store to those who ask, from the hub to those who wait.
//
//	GET  /v1/hubs/{hub}/instances/{instanceId}    one instance, at once; or when it changes (Prefer: wait); or as a stream
//	GET  /v1/hubs/{hub}/instances?id=a&id=b       several; or as a stream
//	GET  /v1/hubs/{hub}/instances?label.x=y&…     those that the caller may read; or as a stream, as they come and go
//	GET  /v1/instances…                           the same on the default hub
//	POST /v1/tickets                              a ticket for a WebSocket or a stream that can set no header
//	POST /v1/links                                a signed link to one instance, as the caller sees it
//	GET  /runtime/webhooks/durabletask/instances/{instanceId}   as Durable Functions' own status URL answers
//
// It promises that a caller sees the views of their audiences and nothing else, on every path, and that an instance they
// may not see is answered exactly like one that does not exist. Answers carry an ETag of what the caller sees, so that
// If-None-Match is answered with 304 until that changes (RFC 9110 section 13.1.2), and may be kept but not used unasked
// (Cache-Control: private, no-cache). While an instance runs, Retry-After follows the rate at which it really changes.
// What a caller does not see of a bridged hub is wanted, and waited for, for a moment, whether it exists or not.
// Who waits costs the store nothing and is bounded in number, per caller and in all. Who asks too fast is told when to come
// back, and is let in then; others are served meanwhile. Errors are problem+json (package problem).
//
// Use:
//
//	a := httpapi.New(httpapi.Options{Verify: verifier.Verify, Source: source, Store: store, Tickets: tickets})
//	mux.Handle("/v1/", a)
//	…
//	a.Shutdown(10 * time.Second) // those who wait are answered, at random points of that time
package httpapi

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/problem"
	"statusrelay/internal/reader"
	"statusrelay/internal/status"
)

// readTimeout bounds how long the store may take. One that hangs is answered as one that is away: whoever is told 503 comes
// back, whoever waits piles up.
const readTimeout = 3 * time.Second

// Store is where statuses are read.
type Store interface {
	// Latest returns one record per key, nil where there is none.
	Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error)
	// List looks at n entries of the query's index behind a place, and returns those that the query selects.
	List(ctx context.Context, q *status.Query, from status.Cursor, n int) (status.Page, error)
}

// Options of an API. Verify, Source and Store are required.
type Options struct {
	Verify  func(ctx context.Context, token string) (*auth.Principal, error)
	Source  *reader.Source // has the hub, and the policy in force, which may change between requests
	Store   Store
	Tickets *auth.Tickets // nil: there are none
	Links   *auth.Links   // nil: none are accepted, and none signed

	DefaultHub string // of paths that name none. Default "default"
	// PublicURL is what callers see in front of the path: scheme, host, and prefix if there is one. Default: the
	// request's host, with http unless the connection itself is TLS.
	PublicURL string

	MaxWait      time.Duration // the longest long-poll. Default 55 s, below what most proxies allow
	MaxWaiting   int           // long-polls, and first uses, at a time. Default 10,000
	MaxStreams   int           // event streams at a time. Default 10,000
	MaxPerCaller int           // of each of both. Default 1,000

	// PerCaller bounds the requests of one caller. A list costs ten, a request that names several instances one for ten of them,
	// whether at once or as a stream. Default: no limit
	PerCaller limit.Rate
	// PerTenant bounds the requests of all callers of a tenant, which TenantClaim of their tokens names, if it is a text. Default: no limit
	PerTenant   limit.Rate
	TenantClaim string
	// PerAddress bounds the requests from one address, whoever sends them. Default: no limit
	PerAddress limit.Rate
	// Failures bounds the credentials from one address that prove nothing. While there are too many, nothing from there is let in,
	// so that guessing is slow. It is shared by all who authenticate. Default: no limit
	Failures *limit.Buckets[netip.Addr]

	// Interest is told what is wanted of bridged hubs. Default: no hub is bridged
	Interest Interest
	// FirstWait is how long what a caller does not see is waited for, of a bridged hub, before it is not there. Default: not at all
	FirstWait time.Duration
	// FirstReads bounds how many of those one caller may have fetched. Default: no limit
	FirstReads limit.Rate

	RetryMin, RetryMax time.Duration // bounds of Retry-After. Default 1 s, 1 min

	Heartbeat    time.Duration // between comments in a stream at most; up to a quarter shorter at random. Default 15 s
	WriteTimeout time.Duration // to write what a stream has, or an answer. Default 10 s

	Logger  *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: counted nowhere visible
}

// An API is the handler of all paths of the public listener but the WebSocket's.
type API struct {
	o       Options
	mux     *http.ServeMux
	metrics *metrics
	rates   rates
	firsts  *limit.Buckets[party]
	waiting *places // for long-polls, and for first uses
	streams *places // for event streams
	closing chan struct{}
	end     time.Time // by which those who wait are answered; written before closing is closed
}

// New returns an API that serves until it is shut down.
func New(o Options) *API {
	defaultTo(&o.DefaultHub, "default")
	defaultTo(&o.MaxWait, 55*time.Second)
	defaultTo(&o.MaxWaiting, 10_000)
	defaultTo(&o.MaxStreams, 10_000)
	defaultTo(&o.MaxPerCaller, 1000)
	defaultTo(&o.RetryMin, time.Second)
	defaultTo(&o.RetryMax, time.Minute)
	defaultTo(&o.Heartbeat, 15*time.Second)
	defaultTo(&o.WriteTimeout, 10*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a := &API{o: o, mux: http.NewServeMux(), metrics: newMetrics(o.Metrics), closing: make(chan struct{})}
	a.rates = newRates(&o)
	a.firsts = limit.New[party]("first", o.FirstReads)
	a.waiting = newPlaces(limitWaiting, o.MaxWaiting, o.MaxPerCaller, a.metrics.waiting)
	a.streams = newPlaces(limitStreams, o.MaxStreams, o.MaxPerCaller, a.metrics.streams)
	read := []string{http.MethodGet, http.MethodHead}
	a.mux.Handle("/v1/hubs/{hub}/instances/{instanceId}", a.handle(a.instance, read...))
	a.mux.Handle("/v1/instances/{instanceId}", a.handle(a.instance, read...))
	a.mux.Handle("/v1/hubs/{hub}/instances", a.handle(a.instances, read...))
	a.mux.Handle("/v1/instances", a.handle(a.instances, read...))
	a.mux.Handle("/runtime/webhooks/durabletask/instances/{instanceId}", a.handle(a.durable, read...))
	if o.Tickets != nil {
		a.mux.Handle("/v1/tickets", a.handle(a.ticket, http.MethodPost))
	}
	if o.Links != nil {
		a.mux.Handle("/v1/links", a.handle(a.createLink, http.MethodPost))
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { problem.Write(w, problem.NoResource()) })
	return a
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// ServeHTTP answers a request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// Shutdown has everyone who waits answered, and every stream ended, at random points of a period: not all of them should come
// back at once. It does not wait. Requests that come later are answered and do not wait. It must be called once at most.
func (a *API) Shutdown(period time.Duration) {
	a.end = time.Now().Add(period)
	close(a.closing)
}

// stops reports whether Shutdown has been called.
func (a *API) stops() bool {
	select {
	case <-a.closing:
		return true
	default:
		return false
	}
}

// farewell tells, once Shutdown has been called, when to send away one of those who wait.
func (a *API) farewell() <-chan time.Time {
	return time.After(rand.N(max(time.Until(a.end), 0) + 1))
}

// An answer writes the answer to a request and returns its status; or an error, which is answered by the table of package
// problem.
type answer func(w *boundedWriter, r *http.Request) (code int, err error)

// handle turns an answer into a handler of the methods that there are.
func (a *API) handle(f answer, methods ...string) http.Handler {
	return http.HandlerFunc(func(to http.ResponseWriter, r *http.Request) {
		start := time.Now()
		w := &boundedWriter{ResponseWriter: to, timeout: a.o.WriteTimeout}
		h := w.Header()
		h.Add("Vary", "Authorization, Accept") // beside what CORS has set
		h.Set("X-Content-Type-Options", "nosniff")
		from := limit.Address(r)
		code, err := http.StatusMethodNotAllowed, error(nil)
		if !slices.Contains(methods, r.Method) {
			h.Set("Allow", strings.Join(methods, ", "))
			problem.Write(w, problem.MethodNotAllowed())
		} else if w.quota, err = a.rates.door.Admit(from, start); err == nil {
			code, err = f(w, r)
		}
		if auth.IsGuess(err) {
			a.rates.door.Failed(from, time.Now())
		}
		if err != nil {
			code = a.fail(w, r, err)
		}
		a.metrics.requests.WithLabelValues(w.kind(), strconv.Itoa(code)).Observe(time.Since(start).Seconds())
	})
}

// A boundedWriter bounds the time in which an answer must be read. The server bounds none, because of streams, which do so
// themselves.
type boundedWriter struct {
	http.ResponseWriter
	timeout time.Duration
	quota   limit.Quota // what is left to who asks
	first   bool        // it was waited for a first use
}

// kind tells what took the time of an answer: the relay, or the wait for a change, or for a bridge.
func (w *boundedWriter) kind() string {
	switch h := w.Header(); {
	case h.Get("Content-Type") == eventStream:
		return "stream"
	case h.Get("Preference-Applied") != "":
		return "wait"
	case w.first:
		return "first"
	default:
		return "read"
	}
}

// minRate is what a client must be able to read, in bytes per second, if an answer is long.
const minRate = 64 << 10

// WriteHeader begins an answer that is written at once.
func (w *boundedWriter) WriteHeader(code int) {
	length, _ := strconv.Atoi(w.Header().Get("Content-Length"))
	deadline := time.Now().Add(w.timeout + time.Duration(length)*time.Second/minRate)
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(deadline) // fails where there is none
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w *boundedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// callerLeft is the status under which requests are counted whose callers did not stay for the answer: nginx's.
const callerLeft = 499

// fail answers an error: the caller is told its kind, the log its cause.
func (a *API) fail(w *boundedWriter, r *http.Request, err error) int {
	if r.Context().Err() != nil {
		problem.Write(w, problem.Of(status.ErrUnavailable)) // to who has only stopped sending
		return callerLeft
	}
	p := problem.Of(err)
	if reached := (*limit.Error)(nil); errors.As(err, &reached) {
		a.metrics.limited.WithLabelValues(reached.Limit).Inc()
	}
	switch {
	case p.Status == http.StatusInternalServerError:
		a.o.Logger.ErrorContext(r.Context(), "request", "path", r.Pattern, "error", err)
	default:
		a.o.Logger.DebugContext(r.Context(), "request", "path", r.Pattern, "error", err)
	}
	w.Header().Del("Retry-After")
	a.rates.told.Tell(w.Header(), w.quota)
	problem.Write(w, p)
	return p.Status
}

// authenticate says who asks, by a bearer token, or for a stream by a ticket; or what is wrong with the request, all parameters
// of which must have been read. Whoever shows no good token is not told what else is wrong. A ticket is used up by being looked
// at: that comes last. Whoever it is, is charged what the request costs.
func (a *API) authenticate(w *boundedWriter, r *http.Request, p *params, cost int) (*auth.Principal, error) {
	if err := refuseLink(p.values); err != nil {
		return nil, err
	}
	ticket := p.text("ticket")
	if !p.has("ticket") {
		who, err := a.bearer(w, r, cost)
		if err != nil {
			return nil, err
		}
		return who, p.err()
	}
	switch {
	case !wantsStream(r):
		p.fault("ticket", "only for a stream (Accept: text/event-stream) and for /v1/watch")
	case len(r.Header.Values("Authorization")) > 0:
		p.fault("ticket", "not together with an Authorization header")
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	if a.o.Tickets == nil {
		return nil, auth.ErrUnauthenticated
	}
	ctx, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	who, err := a.o.Tickets.Redeem(ctx, ticket, auth.Origin(r))
	if err != nil {
		return nil, err
	}
	return who, a.rates.charge(w, who, cost)
}

// authenticatePost says who asks for a credential that is weaker than their own: by a bearer token, and without parameters.
func (a *API) authenticatePost(w *boundedWriter, r *http.Request) (*auth.Principal, error) {
	p := parseParams(r)
	if err := refuseLink(p.values); err != nil {
		return nil, err
	}
	who, err := a.bearer(w, r, requestCost)
	if err != nil {
		return nil, err
	}
	return who, p.err()
}

// hub is the hub of the path.
func (a *API) hub(r *http.Request, p *params) string {
	hub := r.PathValue("hub")
	if hub == "" {
		hub = a.o.DefaultHub
	}
	p.refuse(status.ValidHub(hub))
	return hub
}

// key is the instance of the path.
func (a *API) key(r *http.Request, p *params) status.Key {
	k := status.Key{Hub: a.hub(r, p), InstanceID: r.PathValue("instanceId")}
	p.refuse(status.ValidInstanceID(k.InstanceID))
	return k
}

func invalid(field, detail string) error {
	return &status.InvalidError{Reason: status.ReasonInvalid, Field: field, Detail: detail}
}
