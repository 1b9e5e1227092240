// Package httpapi serves statuses over HTTP, from the store.
//
//	GET /v1/hubs/{hub}/instances/{instanceId}
//	GET /v1/instances/{instanceId}                the same on the default hub
//
// It promises that a caller sees the view of their audience and nothing else,
// and that an instance they may not see is answered exactly like one that does
// not exist. The answer carries an ETag of what this audience sees, so that
// If-None-Match is answered with 304 until that changes (RFC 9110 section
// 13.1.2), and may be kept but not used unasked (Cache-Control: private,
// no-cache). Errors are problem+json (package problem).
//
// New returns the handler; it keeps no state of its own.
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/auth"
	"statusrelay/internal/policy"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
)

// readTimeout bounds how long the store may take. One that hangs is answered as
// one that is away: whoever is told 503 comes back, whoever waits piles up.
const readTimeout = 3 * time.Second

// Store is where statuses are read: nil where there is none, index by index.
type Store interface {
	Latest(ctx context.Context, keys []status.Key) ([]*status.Record, error)
}

// Options of the handler. Verify, Policy and Store are required.
type Options struct {
	Verify     func(ctx context.Context, token string) (*auth.Principal, error)
	Policy     func() *policy.Policy // the policy in force; may change between requests
	Store      Store
	DefaultHub string                // of paths that name none; "default" when empty
	Logger     *slog.Logger          // nil: discard
	Metrics    prometheus.Registerer // nil: counted, but not shown
}

type api struct {
	Options
	requests *prometheus.HistogramVec
}

// New returns the handler of all paths below /v1/ that are not the watch.
func New(o Options) http.Handler {
	if o.DefaultHub == "" {
		o.DefaultHub = "default"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	a := &api{Options: o, requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "statusrelay_httpapi_request_seconds",
		Help:    "Time to answer, by status.",
		Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .1, .5, 2.5},
	}, []string{"code"})}
	if o.Metrics != nil {
		o.Metrics.MustRegister(a.requests)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/hubs/{hub}/instances/{instanceId}", a.handle(a.instance))
	mux.Handle("/v1/instances/{instanceId}", a.handle(a.instance))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { problem.Write(w, problem.NoResource()) })
	return mux
}

// handle turns a function that answers or fails into a handler. It returns the
// status it answered with, or an error that is answered by the table.
func (a *api) handle(answer func(http.ResponseWriter, *http.Request) (int, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		h := w.Header()
		h.Add("Vary", "Authorization, Accept") // beside what CORS has set
		h.Set("X-Content-Type-Options", "nosniff")
		code, err := http.StatusMethodNotAllowed, error(nil)
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			code, err = answer(w, r)
		} else {
			h.Set("Allow", "GET, HEAD")
			problem.Write(w, problem.MethodNotAllowed())
		}
		if err != nil {
			p := problem.Of(err)
			code = p.Status
			switch {
			case errors.Is(err, context.Canceled) && r.Context().Err() != nil: // the caller left
			case code == http.StatusInternalServerError:
				a.Logger.ErrorContext(r.Context(), "request", "path", r.Pattern, "error", err)
			default:
				a.Logger.DebugContext(r.Context(), "request", "path", r.Pattern, "error", err)
			}
			problem.Write(w, p)
		}
		a.requests.WithLabelValues(strconv.Itoa(code)).Observe(time.Since(start).Seconds())
	})
}

// key reads the instance from the path.
func (a *api) key(r *http.Request) (status.Key, error) {
	k := status.Key{Hub: r.PathValue("hub"), InstanceID: r.PathValue("instanceId")}
	if k.Hub == "" {
		k.Hub = a.DefaultHub
	}
	if err := status.ValidHub(k.Hub); err != nil {
		return k, err
	}
	return k, status.ValidInstanceID(k.InstanceID)
}

// instance answers with the caller's view of one instance.
func (a *api) instance(w http.ResponseWriter, r *http.Request) (int, error) {
	who, err := auth.Authenticate(r, a.Verify)
	if err != nil {
		return 0, err
	}
	key, err := a.key(r)
	if err != nil {
		return 0, err
	}
	reading, cancel := context.WithTimeout(r.Context(), readTimeout)
	defer cancel()
	records, err := a.Store.Latest(reading, []status.Key{key})
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", key, err)
	}
	record := records[0]
	if record == nil || record.Purged {
		return 0, status.ErrNotFound
	}
	audience := a.Policy().Audience(who.Claims, record)
	if audience == nil {
		return 0, status.ErrNotFound // as if it did not exist
	}
	view := audience.View(record)
	h := w.Header()
	h.Set("ETag", view.ETag)
	h.Set("Cache-Control", "private, no-cache")
	if matches(r.Header.Values("If-None-Match"), view.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return http.StatusNotModified, nil
	}
	body := append(view.JSON, '\n') // people read it in terminals
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // the client is gone: nobody is left to tell
	return http.StatusOK, nil
}

// matches reports whether an If-None-Match field names the tag, by weak
// comparison (RFC 9110 section 8.8.3.2). Entity tags contain no comma here, so
// that splitting at commas finds ours wherever it stands.
func matches(field []string, etag string) bool {
	etag = strings.TrimPrefix(etag, "W/")
	for _, line := range field {
		for tag := range strings.SplitSeq(line, ",") {
			tag = strings.TrimSpace(tag)
			if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}
