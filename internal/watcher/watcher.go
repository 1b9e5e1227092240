// Package watcher is a client of the relay: it follows one instance over an
// event stream, for as long as it takes.
//
// It promises that versions only grow, whichever replica answers; that what
// passes (a replica that stops, a network that is away, 429, 503, an instance
// that is not there yet) is waited out, not longer than Options.Patience and
// not sooner than the relay says; and that what does not pass is told at once.
// No error contains the token.
//
//	w, err := watcher.New(watcher.Options{Relay: "https://status.example", Key: key, Token: secret.Current})
//	err = w.Follow(ctx, func(c watcher.Change) bool { …; return !c.Ended() })
package watcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"statusrelay/internal/status"
)

const (
	answerTimeout = 30 * time.Second // for the head of an answer
	maxProblem    = 64 << 10         // bytes read of an answer that refuses
)

// Options say what to follow.
type Options struct {
	Relay string                 // base URL, with the path of whatever is in front
	Key   status.Key             // the hub may not be empty
	Token func() (string, error) // a bearer token or API key, asked for with each connection; nil: none

	// After is the newest version that the caller knows: only newer ones are told.
	After int64
	// Patience is how long to go on, each time, while the relay cannot be reached or has never told of the instance. Default 1 min.
	Patience time.Duration
	// Silence is how long a stream may say nothing, comments included, before it counts as broken. Default 1 min.
	Silence time.Duration
	// Transport makes the requests. Default: as http.DefaultTransport.
	Transport http.RoundTripper
	// Trouble is told why a connection was lost or not made, and of the pause before the next. Nil: nobody is.
	Trouble func(cause error, pause time.Duration)
}

// A Change is a status, or the end of being shown one.
type Change struct {
	Key     status.Key
	Version int64
	Gone    bool // purged, expired, or no longer the caller's to see

	RuntimeStatus status.RuntimeStatus
	View          json.RawMessage // as the relay sent it; nil when gone
}

// Ended reports that nothing more is to be expected.
func (c *Change) Ended() bool { return c.Gone || c.RuntimeStatus.Terminal() }

// ErrGivenUp is the error of a Follow that has run out of patience. It wraps the last cause.
var ErrGivenUp = errors.New("given up")

// ErrUnknown is the cause of giving up when the relay has never told of the instance: there is none, or it is not the caller's.
var ErrUnknown = errors.New("the relay knows no such instance, or does not show it to the holder of this token")

// errNothingNewer is what it says to a caller who knows the instance.
var errNothingNewer = errors.New("the relay tells of nothing newer")

// A RefusedError is an answer that is none of those that were hoped for.
type RefusedError struct {
	Status int    // of HTTP
	Reason string // in the relay's words, or ours
	Passes bool   // trying again may change it
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the relay answers %d: %s", e.Status, e.Reason)
}

// Watcher follows one instance.
type Watcher struct {
	o      Options
	url    string
	client *http.Client
}

// New checks the options.
func New(o Options) (*Watcher, error) {
	base, err := url.Parse(strings.TrimRight(o.Relay, "/"))
	switch {
	case err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "":
		return nil, errors.New("relay: not a URL such as https://status.example.com")
	case base.User != nil || base.RawQuery != "" || base.Fragment != "":
		return nil, errors.New("relay: a URL without user, query and fragment")
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Silence == 0 {
		o.Silence = time.Minute
	}
	if o.Trouble == nil {
		o.Trouble = func(error, time.Duration) {}
	}
	at := base.String() + "/v1/hubs/" + url.PathEscape(o.Key.Hub) + "/instances/" + url.PathEscape(o.Key.InstanceID)
	// What is not the relay, such as a page to sign in on, is not followed to.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Watcher{o: o, url: at, client: &http.Client{Transport: o.Transport, CheckRedirect: stay}}, nil
}

// Latest asks once. ok is false where the relay answers 404: there is no such instance, or none that the token's holder may see.
func (w *Watcher) Latest(ctx context.Context) (c Change, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, err := w.ask(ctx, "application/json", 0)
	if err != nil {
		return Change{}, false, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
		body, err := io.ReadAll(io.LimitReader(answer.Body, maxEvent))
		if err == nil {
			c, err = w.change("status", body)
		}
		return c, err == nil, err
	case http.StatusNotFound:
		return Change{}, false, nil
	}
	return Change{}, false, refusal(answer)
}

// ask sends one request.
func (w *Watcher) ask(ctx context.Context, accept string, after int64) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", accept)
	if after > 0 {
		r.Header.Set("Last-Event-ID", strconv.FormatInt(after, 10))
	}
	if w.o.Token != nil {
		token, err := w.o.Token()
		if err != nil {
			return nil, fmt.Errorf("token: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return w.client.Do(r)
}

// refusal reads why an answer is none of those that were hoped for.
func refusal(answer *http.Response) *RefusedError {
	e := &RefusedError{Status: answer.StatusCode, Reason: http.StatusText(answer.StatusCode), Passes: passes(answer.StatusCode)}
	media, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	switch {
	case answer.StatusCode < 300:
		e.Reason = fmt.Sprintf("with %q, not what was asked for: is there a relay at that URL?", printable(media))
	case answer.StatusCode < 400:
		e.Reason = "redirects elsewhere, which is not followed"
	case strings.HasSuffix(media, "json"):
		var p struct{ Title, Detail string }
		body, err := io.ReadAll(io.LimitReader(answer.Body, maxProblem))
		if err != nil || json.Unmarshal(body, &p) != nil || p.Title == "" {
			break
		}
		if e.Reason = printable(p.Title); p.Detail != "" {
			e.Reason += " (" + printable(p.Detail) + ")"
		}
	}
	return e
}

// printable makes what others wrote fit for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\ufffd'
	}, s)
	const enough = 300
	if len(s) > enough {
		s = strings.ToValidUTF8(s[:enough], "") + "…"
	}
	return s
}

// passes reports whether an answer is one that trying again may change.
func passes(code int) bool {
	switch code {
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return code >= 500 && code != http.StatusNotImplemented
}

// retryAfter is how long the relay, or what is in front of it, wants to be left alone.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}
