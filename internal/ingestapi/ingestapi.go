// Package ingestapi takes updates in over HTTP and hands them to the broker.
//
//	POST /v1/updates    one update, a JSON array, a CloudEvents event or batch, or NDJSON
//
// It promises that 202 means the broker has them all, that every refused
// update is named with its index and what is wrong with it, that one refused
// update does not keep its neighbours from being published, and that a caller
// publishes only where the policy says so. A CloudEvents event that the broker has
// is accepted again without being published again. Bodies, batches, rates and what
// is in hand have limits; who asks too fast is told when to come back, and costs others
// nothing.
package ingestapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/claim"
	"statusrelay/internal/limit"
	"statusrelay/internal/policy"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// A Message is what is to be published.
type Message struct {
	wire.Message

	// MessageID is the broker's name for an event that has a name and no position of
	// its own; "" if the position names it.
	MessageID string
}

// Publish hands messages to the broker and returns, index by index, nil for
// those that it has accepted.
type Publish func(ctx context.Context, messages []Message) []error

// Options of the handler. Verify, Policy and Publish are required.
type Options struct {
	Verify  func(ctx context.Context, token string) (*auth.Principal, error)
	Policy  func() *policy.Policy
	Publish Publish
	// RetryAfter says when to publish again what Publish found status.ErrUnavailable. Default: after a second.
	RetryAfter func() time.Duration

	// Claims knows which events were published. Default: none is known, each is published as often as it comes.
	Claims *claim.Ledger
	// Stamp gives generation and sequence to updates that have neither, and returns an error for each
	// that got none. Default: they stay without.
	Stamp func(ctx context.Context, updates []*status.Update) []error

	DefaultHub   string  // of updates that name none; "default" when empty
	MaxBodyBytes int64   // 0: 1 MiB
	MaxUpdates   int     // in one request; 0: 1000
	Rate         float64 // updates per second and caller; 0: 1000
	Burst        int     // updates at once and caller; 0: twice the rate

	// Door bounds what comes from one address, here and wherever else it is. Default: no limit
	Door *limit.Door
	// Room bounds what all requests hold together, here and wherever else it is; more are refused. Default: 64 MiB, here.
	Room *limit.Room

	Logger  *slog.Logger
	Metrics prometheus.Registerer
	Now     func() time.Time // nil: time.Now
}

// limitUpdates is the limit besides those of a limit.Door, as metrics and answers call it.
const limitUpdates = "updates"

type api struct {
	Options
	callers *limit.Buckets[string]
	told    *limit.Policies
	updates *prometheus.CounterVec
	limited *prometheus.CounterVec
}

// New returns the handler.
func New(o Options) http.Handler {
	if o.RetryAfter == nil {
		o.RetryAfter = func() time.Duration { return time.Second }
	}
	if o.DefaultHub == "" {
		o.DefaultHub = "default"
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 1 << 20
	}
	if o.MaxUpdates == 0 {
		o.MaxUpdates = 1000
	}
	if o.Room == nil {
		o.Room = limit.NewRoom(64<<20, nil)
	}
	if o.Rate == 0 {
		o.Rate = 1000
	}
	if o.Door == nil {
		o.Door = limit.Open()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &api{
		Options: o,
		callers: limit.New[string](limitUpdates, limit.Rate{PerSecond: o.Rate, Burst: o.Burst}),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "statusrelay_ingestapi_updates_total",
			Help: "Updates by the status that they were answered with.",
		}, []string{"code"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "statusrelay_ingestapi_limited_total",
			Help: "Requests answered 429, by the limit that was reached: updates (of a caller), address, failures (too many bad credentials from an address).",
		}, []string{"limit"}),
	}
	a.told = limit.NewPolicies(a.callers.Policy(), a.Door.Policy())
	for _, name := range []string{limitUpdates, limit.OfAddress, limit.OfFailures} {
		a.limited.WithLabelValues(name) // there from the start: an alert can ask for its rate
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(a.updates, a.limited)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/updates", a.serve)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { problem.Write(w, problem.NoResource()) })
	return mux
}

// An item says what became of one update of a request.
type item struct {
	Index  int    `json:"index"`
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail,omitempty"`

	cause error
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		problem.Write(w, problem.MethodNotAllowed())
		return
	}
	from := limit.Address(r)
	quota, err := a.Door.Admit(from, a.Now())
	a.told.Tell(w.Header(), quota)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	who, err := auth.Authenticate(r, a.Verify)
	if err != nil {
		if auth.IsGuess(err) {
			a.Door.Failed(from, a.Now())
		}
		a.refuse(w, r, err)
		return
	}
	if encoded(r.Header) {
		w.Header().Set("Accept-Encoding", "identity")
		problem.Write(w, problem.UnsupportedEncoding())
		return
	}
	share := a.Room.Enter()
	defer share.Leave()
	body, err := io.ReadAll(share.Reader(http.MaxBytesReader(w, r.Body, a.MaxBodyBytes)))
	if err != nil {
		a.refuse(w, r, unread(err, a.MaxBodyBytes))
		return
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		mediaType = "" // content decides, the type only helps
	}
	documents, err := wire.Split(mediaType, body)
	if err == nil && len(documents) > a.MaxUpdates {
		err = tooLarge("the limit is %d updates in one request", a.MaxUpdates)
	}
	if err == nil {
		err = share.Updates(len(body), len(documents))
	}
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	updates, err := a.callers.Take(who.Issuer+" "+who.Subject, len(documents), a.Now())
	if err != nil {
		a.told.Tell(w.Header(), updates)
		a.refuse(w, r, err)
		return
	}
	a.told.Tell(w.Header(), limit.Nearest(updates, quota))
	a.answer(w, a.publish(r, who, documents))
}

// encoded reports whether a body is in a content encoding. There may be several, in
// one header or in several.
func encoded(h http.Header) bool {
	for _, value := range h.Values("Content-Encoding") {
		if value = strings.TrimSpace(value); value != "" && !strings.EqualFold(value, "identity") {
			return true
		}
	}
	return false
}

// unread says why a body could not be read.
func unread(err error, limit int64) error {
	beyond := (*http.MaxBytesError)(nil)
	switch {
	case errors.As(err, &beyond):
		return tooLarge("the limit is %d bytes", limit)
	case errors.Is(err, status.ErrUnavailable):
		return err
	}
	return &status.InvalidError{Reason: status.ReasonMalformed, Detail: "the body ended early"}
}

func tooLarge(format string, limit any) error {
	return &status.InvalidError{Reason: status.ReasonTooLarge, Detail: fmt.Sprintf(format, limit)}
}

// refuse answers a request that failed as a whole.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problem.Of(err)
	if p.Status == http.StatusInternalServerError {
		a.Logger.ErrorContext(r.Context(), "request", "error", err)
	}
	if errors.Is(err, limit.ErrNoRoom) {
		p.RetryAfter = a.retryAfter()
	}
	if reached := (*limit.Error)(nil); errors.As(err, &reached) {
		a.limited.WithLabelValues(reached.Limit).Inc()
	}
	problem.Write(w, p)
}

// answer says what became of all: 202 when the broker has them all, 207 when it
// has some, else the status they share. When they share none it is 503 if sending
// all of them again makes sense, or else 422.
func (a *api) answer(w http.ResponseWriter, items []item) {
	accepted, shared, again := 0, items[0].Status, false
	for _, it := range items {
		again = again || it.Status == http.StatusServiceUnavailable
		a.updates.WithLabelValues(strconv.Itoa(it.Status)).Inc()
		if it.Status == http.StatusAccepted {
			accepted++
		}
		if it.Status != shared {
			shared = http.StatusUnprocessableEntity
		}
	}
	if again && accepted == 0 {
		shared = http.StatusServiceUnavailable
	}
	switch accepted {
	case len(items):
		writeJSON(w, http.StatusAccepted, struct {
			Accepted int `json:"accepted"`
		}{accepted})
	case 0:
		a.refuseAll(w, shared, items)
	default:
		if again {
			w.Header().Set("Retry-After", seconds(a.retryAfter()))
		}
		writeJSON(w, http.StatusMultiStatus, struct {
			Accepted int    `json:"accepted"`
			Items    []item `json:"items"`
		}{accepted, items})
	}
}

// refuseAll answers a request of which nothing was published.
func (a *api) refuseAll(w http.ResponseWriter, code int, items []item) {
	var p problem.Problem
	switch code {
	case http.StatusForbidden, http.StatusServiceUnavailable, http.StatusInternalServerError:
		cause := items[slices.IndexFunc(items, func(it item) bool { return it.Status == code })].cause
		p = problem.Of(cause)
		if errors.Is(cause, status.ErrUnavailable) {
			p.RetryAfter = a.retryAfter()
		}
	case http.StatusRequestEntityTooLarge:
		p = problem.TooLarge(wire.MaxMessageBytes)
	default:
		p = problem.Invalid(http.StatusUnprocessableEntity, "", "")
	}
	for _, it := range items {
		if it.Status == code || code == http.StatusUnprocessableEntity {
			p.Detail = it.Detail
			break
		}
	}
	if len(items) > 1 {
		p.Items = items
	}
	problem.Write(w, p)
}

// retryAfter is when to send again what was not published. Those who wait for the same
// broker should not all come back at once.
func (a *api) retryAfter() time.Duration { return limit.Scattered(a.RetryAfter()) }

func seconds(d time.Duration) string { return strconv.Itoa(int(math.Ceil(d.Seconds()))) }

func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // ints and strings: cannot happen
		body = []byte(`{}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client is gone: nobody is left to tell
}
