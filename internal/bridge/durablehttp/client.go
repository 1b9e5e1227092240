package durablehttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"statusrelay/internal/status"
)

// An outcome is what came of a request, as the metrics call it.
type outcome string

const (
	answered    outcome = "status"      // one that could be read
	absent      outcome = "absent"      // no such instance
	limited     outcome = "limited"     // 429
	refused     outcome = "refused"     // 401, 403: the key is wrong
	troubled    outcome = "error"       // any other status code
	unreachable outcome = "unreachable" // no answer, or not in time
	unreadable  outcome = "unreadable"  // an answer that is no status object
	oversized   outcome = "oversized"
	mistaken    outcome = "mistaken" // the status of another instance
	storeAway   outcome = "store"    // the runtime was not asked, since Redis could not be
)

// outcomes are all of them, so that the metrics are there before anything happens.
func outcomes() []outcome {
	return []outcome{answered, absent, limited, refused, troubled, unreachable, unreadable, oversized, mistaken, storeAway}
}

// A client asks one function app's HTTP management API.
type client struct {
	base    *url.URL // up to …/runtime/webhooks/durabletask
	query   url.Values
	http    *http.Client
	timeout time.Duration
	maxBody int64
	readKey func() (string, error)

	mu  sync.Mutex
	key string // guarded by mu
}

func newClient(o *Options) (*client, error) {
	base, err := ParseURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("URL: %w", err)
	}
	c := &client{base: base, query: url.Values{}, timeout: o.Timeout, maxBody: o.MaxBodyBytes, readKey: o.Key}
	// A redirect is no answer of this API. Whoever sends one, a proxy or a login page,
	// is not to be shown the key.
	c.http = &http.Client{Transport: o.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if o.TaskHub != "" {
		c.query.Set("taskHub", o.TaskHub)
	}
	if o.Connection != "" {
		c.query.Set("connection", o.Connection)
	}
	if c.readKey != nil {
		if c.key, err = c.readKey(); err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
	}
	return c, nil
}

// ParseURL reads the URL of the API. Its error does not quote what may hold a key.
func ParseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, errors.New("not of the form https://HOST/runtime/webhooks/durabletask")
	case u.RawQuery != "" || u.User != nil || u.Fragment != "":
		return nil, errors.New("has more than a path: the task hub, the connection and the key have settings of their own")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// An answer is what came of a request.
type reply struct {
	outcome    outcome
	retryAfter time.Duration // 0: nothing was said
	newKey     bool          // the key was refused, and there is another one by now
	next       string        // of a list: what continues it
	bad        int           // of a list: items that could not be read
}

// readable reports whether a path can end with the id: a dot segment is another path,
// to whoever reads it.
func readable(id string) bool {
	return status.ValidInstanceID(id) == nil && id != "." && id != ".."
}

// instance asks for one.
func (c *client) instance(ctx context.Context, id string, now func() time.Time) (u *status.Update, r reply) {
	query := url.Values{"showInput": {"false"}, "showHistory": {"false"}, "returnInternalServerErrorOnFailure": {"false"}}
	r = c.ask(ctx, "/instances/"+url.PathEscape(id), query, "", func(code int, _ http.Header, b io.Reader) outcome {
		switch code {
		case http.StatusOK, http.StatusAccepted, http.StatusInternalServerError:
		case http.StatusNotFound, http.StatusGone:
			return absent
		default:
			return troubled
		}
		var err error
		if u, err = newBody(b, c.maxBody).one(now()); err != nil {
			if code == http.StatusInternalServerError {
				return troubled // not that of an instance that has failed
			}
			return wrongBody(err)
		}
		if u.InstanceID != id {
			u = nil
			return mistaken
		}
		return answered
	})
	return u, r
}

// activeStates are those that a list asks for. With the filter the runtime does not
// read inputs (Azure/azure-functions-durable-extension#2447).
const activeStates = "Running,Pending,Suspended,ContinuedAsNew"

const (
	listTop = 100
	maxList = 16 << 20 // bytes of one page
)

// page asks for a page of the instances that have not ended.
func (c *client) page(ctx context.Context, continuation string, now func() time.Time) (all []*status.Update, r reply) {
	query := url.Values{"runtimeStatus": {activeStates}, "showInput": {"false"}, "top": {strconv.Itoa(listTop)}}
	var next string
	var bad int
	r = c.ask(ctx, "/instances", query, continuation, func(code int, h http.Header, b io.Reader) outcome {
		if code != http.StatusOK {
			return troubled
		}
		next = h.Get(continuationHeader)
		var err error
		bad, err = newBody(b, maxList).each(now(), func(u *status.Update) {
			if readable(u.InstanceID) { // no entity
				all = append(all, u)
			}
		})
		if err != nil {
			return wrongBody(err)
		}
		return answered
	})
	r.next, r.bad = next, bad
	return all, r
}

func wrongBody(err error) outcome {
	switch {
	case errors.Is(err, errTooLarge):
		return oversized
	case errors.Is(err, errNoStatus), errors.Is(err, status.ErrInvalid):
		return unreadable
	}
	return unreachable
}

const (
	keyHeader          = "x-functions-key"
	continuationHeader = "x-ms-continuation-token"
)

// ask makes a request and has its answer read.
func (c *client) ask(ctx context.Context, path string, query url.Values, continuation string, read func(int, http.Header, io.Reader) outcome) reply {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	for name, values := range c.query {
		query[name] = values
	}
	// The path is escaped already, and a + in it is a plus.
	target := strings.TrimRight(c.base.String(), "/") + path + "?" + query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return reply{outcome: unreachable}
	}
	c.mu.Lock()
	key := c.key
	c.mu.Unlock()
	if key != "" {
		request.Header.Set(keyHeader, key)
	}
	if continuation != "" {
		request.Header.Set(continuationHeader, continuation)
	}
	request.Header.Set("Accept", "application/json")
	answer, err := c.http.Do(request)
	if err != nil {
		return reply{outcome: unreachable}
	}
	defer answer.Body.Close()
	r := reply{}
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		r.outcome, r.newKey = refused, c.another(key)
	case http.StatusTooManyRequests:
		r.outcome, r.retryAfter = limited, retryAfter(answer.Header)
	case http.StatusServiceUnavailable:
		r.outcome, r.retryAfter = troubled, retryAfter(answer.Header)
	default:
		r.outcome = read(answer.StatusCode, answer.Header, answer.Body)
	}
	// What is left of a short answer is read, so that its connection can be used again.
	_, _ = io.CopyN(io.Discard, answer.Body, 4<<10)
	return r
}

// another reads the key again, which may have been rotated, and reports whether there
// is another now than the one that was refused.
func (c *client) another(refused string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key != refused {
		return true // somebody was faster
	}
	if c.readKey == nil {
		return false
	}
	key, err := c.readKey()
	if err != nil || key == refused {
		return false
	}
	c.key = key
	return true
}

// retryAfter reads the header, in seconds or as a date (RFC 9110 section 10.2.3).
func retryAfter(h http.Header) time.Duration {
	const most = 10 * time.Minute
	text := h.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n >= 0 {
		return min(time.Duration(min(n, int(most/time.Second)))*time.Second, most)
	}
	if t, err := http.ParseTime(text); err == nil {
		return min(max(time.Until(t), 0), most)
	}
	return 0
}
