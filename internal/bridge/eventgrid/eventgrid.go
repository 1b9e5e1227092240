// Package eventgrid takes the lifecycle events that Durable Functions publishes to Azure Event Grid and hands them to the
// broker as updates.
//
//	POST    /v1/eventgrid    events, in Event Grid's schema or as CloudEvents; and Event Grid's validation handshake
//	OPTIONS /v1/eventgrid    the validation handshake of CloudEvents webhooks
//
// It promises that
//
//   - nobody is answered but who may publish: a handshake proves who owns an endpoint, and nothing about who calls it;
//   - 200 means that the broker has every event that is one of ours and good; what can never succeed is counted and costs its
//     neighbours nothing, and what may succeed later is answered so that Event Grid comes back with it;
//   - an event speaks of the lifecycle alone, and its place in it is the time at which it happened: repetitions, and events
//     that overtake each other, are settled where updates are merged;
//   - a Completed that continuing as new sends by mistake is not shown if what follows it arrives within [Options.Hold]. It is the
//     broker that holds it back: nothing is kept here, and nothing lost with this process.
//
// The reason that events have is dropped: it is text of an operator or of an exception, which no policy filters.
package eventgrid

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/policy"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// A Message is one for the broker, which delivers it at a time, or at once if that is zero.
type Message struct {
	wire.Message
	At time.Time
}

// Publish hands messages to the broker and returns, index by index, nil for those that it has accepted.
type Publish func(ctx context.Context, messages []Message) []error

// Options of the handler. Verify, Policy and Publish are required.
type Options struct {
	Verify  func(ctx context.Context, credential string) (*auth.Principal, error)
	Policy  func() *policy.Policy
	Publish Publish

	// Look, if there is one, has a bridge look at instances of LookHub, which sees more than an event says. Events of that hub are
	// published only if it fails.
	Look    func(ctx context.Context, keys []status.Key) error
	LookHub string

	Hubs         map[string]string // by task hub, where the names differ
	Hold         time.Duration     // how long a Completed is held back; 0: not at all
	MaxBodyBytes int64             // 0: 2 MiB, twice what Event Grid sends at most
	MaxEvents    int               // in one request; 0: 5000, what Event Grid sends at most
	Rate         float64           // events per second and caller; 0: 1000
	Door         *limit.Door       // bounds what comes from one address, here and wherever else it is; nil: no limit
	Room         *limit.Room       // bounds what all requests hold together, here and wherever else it is; nil: 64 MiB, here
	Logger       *slog.Logger
	Metrics      prometheus.Registerer
	Now          func() time.Time // nil: time.Now
}

type api struct {
	Options
	callers *limit.Buckets[string]
	events  *prometheus.CounterVec
	limited *prometheus.CounterVec
	told    *limit.Policies
}

// publishTimeout is how long the broker may take: Event Grid waits for 30 s.
const publishTimeout = 20 * time.Second

// limitEvents is the limit besides those of a limit.Door, as metrics call it.
const limitEvents = "events"

// New returns the handler.
func New(o Options) http.Handler {
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 2 << 20
	}
	if o.MaxEvents == 0 {
		o.MaxEvents = 5000
	}
	if o.Rate == 0 {
		o.Rate = 1000
	}
	if o.Door == nil {
		o.Door = limit.Open()
	}
	if o.Room == nil {
		o.Room = limit.NewRoom(64<<20, nil)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &api{Options: o, callers: limit.New[string](limitEvents, limit.PerSecond(o.Rate)), events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "statusrelay_eventgrid_events_total",
		Help: "Events by what became of them: published, held (published for later), looked (left to a bridge), ignored (not of an orchestration), " +
			"invalid, forbidden, failed (the broker has not taken it, and Event Grid will bring it again).",
	}, []string{"outcome"})}
	a.limited = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "statusrelay_eventgrid_limited_total",
		Help: "Requests answered 429, by the limit that was reached: events (of a caller), address, failures (too many bad credentials from an address).",
	}, []string{"limit"})
	a.told = limit.NewPolicies(a.callers.Policy(), a.Door.Policy())
	for _, name := range []string{limitEvents, limit.OfAddress, limit.OfFailures} {
		a.limited.WithLabelValues(name) // there from the start: an alert can ask for its rate
	}
	if o.Metrics != nil {
		o.Metrics.MustRegister(a.events, a.limited)
	}
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost && r.Method != http.MethodOptions {
		w.Header().Set("Allow", allowed)
		problem.Write(w, problem.MethodNotAllowed())
		return
	}
	from := limit.Address(r)
	quota, err := a.Door.Admit(from, a.Now())
	a.told.Tell(w.Header(), quota)
	var who *auth.Principal
	if err == nil {
		who, err = a.authenticate(r)
	}
	if auth.IsGuess(err) {
		a.Door.Failed(from, a.Now())
	}
	switch {
	case err != nil:
		a.refuse(w, r, err)
	case r.Method == http.MethodOptions:
		a.permit(w, r)
	default:
		a.post(w, r, who, quota)
	}
}

const allowed = "OPTIONS, POST"

// authenticate returns who calls, and that they may publish somewhere at least. A webhook's caller shows a token or an API key in the
// Authorization header, or a key where Azure Functions take one: Event Grid is given a URL, and may be unable to send a header
// with the handshake. A token has no business in a URL.
func (a *api) authenticate(r *http.Request) (*auth.Principal, error) {
	credential, ok, err := auth.Bearer(r)
	if err != nil {
		return nil, err
	}
	for _, key := range append(r.Header.Values("X-Functions-Key"), r.URL.Query()["code"]...) {
		if ok {
			return nil, fmt.Errorf("%w: more than one credential", auth.ErrUnauthenticated)
		}
		if !auth.IsAPIKey(key) {
			return nil, fmt.Errorf("%w: not an API key, where only one may be", auth.ErrUnauthenticated)
		}
		credential, ok = key, true
	}
	if !ok {
		return nil, auth.ErrMissing
	}
	who, err := a.Verify(r.Context(), credential)
	if err != nil {
		return nil, err
	}
	var hubs []string
	if g := who.Grant; g != nil {
		if hubs = g.Hubs; !slices.Contains(g.Rights, auth.Publish) {
			return nil, auth.ErrForbidden
		}
	}
	if !a.Policy().MayPublishSomewhere(who.Claims, hubs) {
		return nil, auth.ErrForbidden
	}
	return who, nil
}

// permit answers the handshake of CloudEvents webhooks ("HTTP 1.1 Web Hooks for Event Delivery", section 4). Whoever shows a credential
// may send from wherever they say.
func (a *api) permit(w http.ResponseWriter, r *http.Request) {
	origin := r.Header.Get("WebHook-Request-Origin")
	if origin == "" {
		problem.Write(w, problem.Invalid(http.StatusBadRequest, "WebHook-Request-Origin", "required"))
		return
	}
	h := w.Header()
	h.Set("Allow", allowed)
	h.Set("Cache-Control", "no-store")
	h.Set("WebHook-Allowed-Origin", origin)
	if r.Header.Get("WebHook-Request-Rate") != "" { // requests per minute, of which each has an event at least
		h.Set("WebHook-Allowed-Rate", strconv.FormatInt(max(int64(a.Rate*60), 1), 10))
	}
	w.WriteHeader(http.StatusOK)
}

func (a *api) post(w http.ResponseWriter, r *http.Request, who *auth.Principal, address limit.Quota) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		w.Header().Set("Accept-Encoding", "identity")
		problem.Write(w, problem.UnsupportedEncoding())
		return
	}
	share := a.Room.Enter()
	defer share.Leave()
	body, err := io.ReadAll(share.Reader(http.MaxBytesReader(w, r.Body, a.MaxBodyBytes)))
	if err != nil {
		if errors.Is(err, limit.ErrNoRoom) {
			a.refuse(w, r, err)
			return
		}
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			problem.Write(w, problem.TooLarge(a.MaxBodyBytes))
			return
		}
		problem.Write(w, problem.Invalid(http.StatusBadRequest, "", "the body ended early"))
		return
	}
	events, err := split(r.Header, body)
	if err == nil && len(events) <= a.MaxEvents {
		err = share.Updates(len(body), len(events))
	}
	switch {
	case err != nil:
		a.refuse(w, r, err)
		return
	case len(events) > a.MaxEvents:
		p := problem.TooLarge(0)
		p.Detail = fmt.Sprintf("the limit is %d events in one request", a.MaxEvents)
		problem.Write(w, p)
		return
	case strings.EqualFold(r.Header.Get("Aeg-Event-Type"), "SubscriptionValidation"):
		a.validate(w, r, events)
		return
	}
	quota, err := a.callers.Take(who.Issuer+" "+who.Subject, len(events), a.Now())
	if err == nil {
		quota = limit.Nearest(quota, address)
	}
	a.told.Tell(w.Header(), quota)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	t := a.publish(r, who, events)
	a.count(t)
	a.answer(w, r, t)
}

// validate answers Event Grid's own handshake ("Endpoint validation with Event Grid event schema").
func (a *api) validate(w http.ResponseWriter, r *http.Request, events []event) {
	code, err := validationCode(events)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	writeJSON(w, struct {
		Response string `json:"validationResponse"`
	}{code})
}

// A tally says what became of the events of a request.
type tally struct {
	Published int `json:"published"`
	Held      int `json:"held"`
	Looked    int `json:"looked"`
	Ignored   int `json:"ignored"`
	Invalid   int `json:"invalid"`
	Forbidden int `json:"forbidden"`

	failed  int
	refusal error // why the first invalid or forbidden one was refused
	failure error // why the first failed one was not taken
}

func (t *tally) refuse(err error) {
	if errors.Is(err, auth.ErrForbidden) {
		t.Forbidden++
	} else {
		t.Invalid++
	}
	if t.refusal == nil {
		t.refusal = err
	}
}

// publish judges every event by itself and publishes the good ones.
func (a *api) publish(r *http.Request, who *auth.Principal, events []event) (t tally) {
	now, rules := a.Now(), a.Policy()
	parent, state := wire.Trace(r.Header.Get("Traceparent"), strings.Join(r.Header.Values("Tracestate"), ","))
	messages := make([]Message, 0, len(events))
	var bridged []Message
	var keys []status.Key // of bridged
	for _, e := range events {
		u, err := e.update(a.Hubs, now)
		switch {
		case err != nil:
			t.refuse(err)
			continue
		case u == nil:
			t.Ignored++
			continue
		case !who.May(auth.Publish, u.Hub) || !rules.MayPublish(who.Claims, u.Hub, nil):
			t.refuse(auth.ErrForbidden)
			continue
		}
		m := Message{Message: wire.Message{
			Update: *u, ID: e.id(), Source: "/hubs/" + u.Hub + "/eventgrid", Traceparent: parent, Tracestate: state,
		}}
		if u.RuntimeStatus == status.Completed && a.Hold > 0 {
			m.At = now.Add(a.Hold)
		}
		if a.Look != nil && u.Hub == a.LookHub {
			bridged, keys = append(bridged, m), append(keys, u.Key())
		} else {
			messages = append(messages, m)
		}
	}
	if len(keys) > 0 {
		if err := a.Look(r.Context(), keys); err == nil {
			t.Looked = len(keys)
		} else {
			a.Logger.WarnContext(r.Context(), "no bridge could be told of events: they are published as they are", "error", err)
			messages = append(messages, bridged...)
		}
	}
	if len(messages) == 0 {
		return t
	}
	ctx, cancel := context.WithTimeout(r.Context(), publishTimeout)
	defer cancel()
	for i, err := range a.Publish(ctx, messages) {
		switch {
		case errors.Is(err, status.ErrInvalid):
			t.refuse(err)
		case err != nil:
			if t.failed++; t.failure == nil {
				t.failure = err
			}
		case messages[i].At.IsZero():
			t.Published++
		default:
			t.Held++
		}
	}
	return t
}

func (a *api) count(t tally) {
	for outcome, n := range map[string]int{
		"published": t.Published, "held": t.Held, "looked": t.Looked, "ignored": t.Ignored,
		"invalid": t.Invalid, "forbidden": t.Forbidden, "failed": t.failed,
	} {
		a.events.WithLabelValues(outcome).Add(float64(n))
	}
}

// answer says 200 unless Event Grid is to bring all of them again, or nothing of it could be used: 400 and 403 end in its dead letters.
func (a *api) answer(w http.ResponseWriter, r *http.Request, t tally) {
	if t.refusal != nil {
		a.Logger.WarnContext(r.Context(), "events refused", "invalid", t.Invalid, "forbidden", t.Forbidden, "first", t.refusal)
	}
	switch {
	case t.failure != nil:
		a.Logger.ErrorContext(r.Context(), "publishing events", "failed", t.failed, "error", t.failure)
		problem.Write(w, problem.Of(status.ErrUnavailable)) // whatever it is, it is no fault of the events
	case t.refusal == nil || t.Published+t.Held+t.Looked+t.Ignored > 0:
		writeJSON(w, t)
	case t.Forbidden > 0:
		problem.Write(w, problem.Of(auth.ErrForbidden))
	default:
		problem.Write(w, problem.Of(t.refusal))
	}
}

// refuse answers a request that failed as a whole.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problem.Of(err)
	if p.Status == http.StatusInternalServerError {
		a.Logger.ErrorContext(r.Context(), "request", "error", err)
	}
	if reached := (*limit.Error)(nil); errors.As(err, &reached) {
		a.limited.WithLabelValues(reached.Limit).Inc()
	}
	problem.Write(w, p)
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil { // ints and strings: cannot happen
		body = []byte(`{}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff") // a handshake gives back what it was given
	_, _ = w.Write(append(body, '\n'))         // the client is gone: nobody is left to tell
}
