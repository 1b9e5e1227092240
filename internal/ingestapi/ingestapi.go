// Package ingestapi takes updates in over HTTP and hands them to the broker.
//
//	POST /v1/updates    one update, a JSON array, a CloudEvents event or batch, or NDJSON
//
// It promises that 202 means the broker has them all, that every refused
// update is named with its index and what is wrong with it, that one refused
// update does not keep its neighbours from being published, and that a caller
// publishes only where the policy says so. Bodies, batches and rates have
// limits.
package ingestapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/policy"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// Publish hands messages to the broker and returns, index by index, nil for
// those that it has accepted.
type Publish func(ctx context.Context, messages []wire.Message) []error

// Options of the handler. Verify, Policy and Publish are required.
type Options struct {
	Verify  func(ctx context.Context, token string) (*auth.Principal, error)
	Policy  func() *policy.Policy
	Publish Publish

	DefaultHub   string  // of updates that name none; "default" when empty
	MaxBodyBytes int64   // 0: 1 MiB
	MaxUpdates   int     // in one request; 0: 1000
	Rate         float64 // updates per second and caller; 0: 1000
	Burst        int     // updates at once and caller; 0: twice the rate
	Logger       *slog.Logger
	Metrics      prometheus.Registerer
	Now          func() time.Time // nil: time.Now
}

type api struct {
	Options
	callers *limit.Buckets[string]
	updates *prometheus.CounterVec
}

// New returns the handler.
func New(o Options) http.Handler {
	if o.DefaultHub == "" {
		o.DefaultHub = "default"
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 1 << 20
	}
	if o.MaxUpdates == 0 {
		o.MaxUpdates = 1000
	}
	if o.Rate == 0 {
		o.Rate = 1000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	a := &api{Options: o, callers: limit.New[string](limit.Rate{PerSecond: o.Rate, Burst: o.Burst}), updates: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "statusrelay_ingestapi_updates_total",
		Help: "Updates by the status that they were answered with.",
	}, []string{"code"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(a.updates)
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
}

func (a *api) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		problem.Write(w, problem.MethodNotAllowed())
		return
	}
	who, err := auth.Authenticate(r, a.Verify)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		w.Header().Set("Accept-Encoding", "identity")
		problem.Write(w, problem.UnsupportedEncoding())
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.MaxBodyBytes))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			problem.Write(w, problem.TooLarge(a.MaxBodyBytes))
			return
		}
		problem.Write(w, problem.Invalid(http.StatusBadRequest, "", "the body ended early"))
		return
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		mediaType = "" // content decides, the type only helps
	}
	documents, err := wire.Split(mediaType, body)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	if len(documents) > a.MaxUpdates {
		p := problem.TooLarge(0)
		p.Detail = fmt.Sprintf("the limit is %d updates in one request", a.MaxUpdates)
		problem.Write(w, p)
		return
	}
	if wait := a.callers.Take(who.Issuer+" "+who.Subject, len(documents), a.Now()); wait > 0 {
		problem.Write(w, problem.TooMany(wait))
		return
	}
	a.answer(w, a.publish(r, who, documents))
}

// refuse answers a request that failed as a whole.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := problem.Of(err)
	if p.Status == http.StatusInternalServerError {
		a.Logger.ErrorContext(r.Context(), "request", "error", err)
	}
	problem.Write(w, p)
}

// publish judges every document by itself and publishes the good ones.
func (a *api) publish(r *http.Request, who *auth.Principal, documents [][]byte) []item {
	items := make([]item, len(documents))
	messages := make([]wire.Message, 0, len(documents))
	index := make([]int, 0, len(documents)) // of each message's document
	now, p := a.Now(), a.Policy()
	for i, document := range documents {
		m, err := wire.Decode(document, now)
		if err == nil {
			if m.Update.Hub == "" {
				m.Update.Hub = a.DefaultHub
			}
			if !who.May(auth.Publish, m.Update.Hub) || !p.MayPublish(who.Claims, m.Update.Hub, m.Update.Labels) {
				err = auth.ErrForbidden
			}
		}
		if err != nil {
			items[i] = a.refused(r.Context(), i, err)
			continue
		}
		if m.Traceparent == "" {
			m.Traceparent = r.Header.Get("Traceparent")
		}
		messages, index = append(messages, m), append(index, i)
	}
	if len(messages) == 0 {
		return items
	}
	for j, err := range a.Publish(r.Context(), messages) {
		i := index[j]
		if err != nil {
			items[i] = a.refused(r.Context(), i, err)
			continue
		}
		items[i] = item{Index: i, Status: http.StatusAccepted, Title: "Accepted"}
	}
	return items
}

func (a *api) refused(ctx context.Context, index int, err error) item {
	p := problem.Of(err)
	if p.Status == http.StatusInternalServerError {
		a.Logger.ErrorContext(ctx, "publishing", "error", err)
	}
	if p.Status == http.StatusBadRequest {
		p.Status = http.StatusUnprocessableEntity // readable, but not valid
	}
	detail := p.Detail
	if p.Field != "" {
		detail = p.Field + ": " + detail
	}
	return item{Index: index, Status: p.Status, Title: p.Title, Detail: detail}
}

// answer says what became of all: 202 when the broker has them all, 207 when it
// has some, else the status they share, or 422.
func (a *api) answer(w http.ResponseWriter, items []item) {
	accepted, shared := 0, items[0].Status
	for _, it := range items {
		a.updates.WithLabelValues(strconv.Itoa(it.Status)).Inc()
		if it.Status == http.StatusAccepted {
			accepted++
		}
		if it.Status != shared {
			shared = http.StatusUnprocessableEntity
		}
	}
	switch accepted {
	case len(items):
		writeJSON(w, http.StatusAccepted, struct {
			Accepted int `json:"accepted"`
		}{accepted})
	case 0:
		a.refuseAll(w, shared, items)
	default:
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
	case http.StatusForbidden:
		p = problem.Of(auth.ErrForbidden)
	case http.StatusServiceUnavailable:
		p = problem.Of(status.ErrUnavailable)
	case http.StatusInternalServerError:
		p = problem.Of(nil)
	case http.StatusRequestEntityTooLarge:
		p = problem.TooLarge(wire.MaxMessageBytes)
	default:
		p = problem.Invalid(http.StatusUnprocessableEntity, "", "")
	}
	p.Detail = items[0].Detail
	if len(items) > 1 {
		p.Items = items
	}
	problem.Write(w, p)
}

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
