package statusrelay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	// One request holds at most so much: half of what a notifier takes by default.
	maxRequestUpdates = 500
	maxRequestBytes   = 512 << 10

	minPause, maxPause = 200 * time.Millisecond, 5 * time.Second
)

// NotifierOptions say where the notifier is and who asks. URL, and APIKey or Token, are required.
type NotifierOptions struct {
	URL string // of the notifier, such as https://notifier.example

	APIKey string
	// Token gives the bearer token for each request. It is for the caller to keep tokens until they expire.
	Token func(context.Context) (string, error)

	// Patience is how long an update is tried again while the notifier cannot be reached, asks for patience (429 and 503, with
	// Retry-After) or fails (other 5xx); ctx may end it sooner. Default 30 s; negative: not at all.
	Patience time.Duration
	Client   *http.Client // default: one with a timeout of 30 s for each request

	Name string           // of this publisher, the last part of the events' source /hubs/{hub}/{name}; default "publisher"
	Now  func() time.Time // the clock that stamps updates; default time.Now
}

// Notifier publishes over HTTP (POST /v1/updates). It can be used concurrently.
type Notifier struct {
	o   NotifierOptions
	url string
	own *http.Transport // nil when the client was given
}

// RefusedError is the notifier's last word about an update.
type RefusedError struct {
	Index  int    // of the update among those that Publish was given; -1: all of them, as when the credential is not good
	Status int    // of HTTP
	Title  string // what kind of refusal that is
	Detail string // the field and the rule, where there is one
}

func (e *RefusedError) Error() string {
	text := fmt.Sprintf("update %d: %d %s", e.Index, e.Status, e.Title)
	if e.Index < 0 {
		text = fmt.Sprintf("all updates: %d %s", e.Status, e.Title)
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	return text
}

// NewNotifier checks the options.
func NewNotifier(o NotifierOptions) (*Notifier, error) {
	o.Name, o.Patience = cmp.Or(o.Name, "publisher"), cmp.Or(o.Patience, 30*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	n := &Notifier{}
	if o.Client == nil {
		n.own = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second}
		o.Client = &http.Client{Transport: n.own, Timeout: 30 * time.Second}
	}
	base, err := url.Parse(o.URL)
	switch {
	case err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" || base.User != nil: // err may quote a secret
		return nil, errors.New("notifier options: URL: not of the form https://HOST")
	case (o.APIKey == "") == (o.Token == nil):
		return nil, errors.New("notifier options: APIKey, Token: exactly one is required")
	}
	if rule := checkHub(o.Name); rule != "" {
		return nil, fmt.Errorf("notifier options: Name: %s", rule)
	}
	n.o, n.url = o, base.JoinPath("v1", "updates").String()
	return n, nil
}

// Publish sends updates and returns when the broker behind the notifier has stored them all. See the package about its errors, which
// are joined: some updates may be refused, and the others stored all the same.
func (n *Notifier) Publish(ctx context.Context, updates ...Update) error {
	all, err := events(updates, n.o.Name, n.o.Now())
	if err != nil {
		return err
	}
	var errs []error
	for len(all) > 0 {
		size, count := 0, 0
		for count < len(all) && count < maxRequestUpdates && (count == 0 || size+len(all[count].body) < maxRequestBytes) {
			size += len(all[count].body) + 1
			count++
		}
		errs = append(errs, n.deliver(ctx, all[:count])...)
		all = all[count:]
	}
	return errors.Join(errs...)
}

// Close closes idle connections, unless the client was given.
func (n *Notifier) Close(context.Context) error {
	if n.own != nil {
		n.own.CloseIdleConnections()
	}
	return nil
}

// deliver sends what fits in one request, again and again while that makes sense.
func (n *Notifier) deliver(ctx context.Context, pending []event) (errs []error) {
	patience := time.Now().Add(n.o.Patience)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		a := n.post(ctx, pending)
		errs = append(errs, a.refused...)
		switch {
		case a.tooLarge && len(pending) > 1: // this notifier takes less at once
			half := len(pending) / 2
			return append(append(errs, n.deliver(ctx, pending[:half])...), n.deliver(ctx, pending[half:])...)
		case len(a.again) == 0:
			return errs
		}
		pending = a.again
		wait := max(a.retryAfter, pause/2+rand.N(pause/2))
		if time.Now().Add(wait).After(patience) || !sleep(ctx, wait) {
			return append(errs, fmt.Errorf("notifier: %d updates were not taken: %w", len(pending), cmp.Or(ctx.Err(), a.err)))
		}
	}
}

// answer is what became of a request.
type answer struct {
	refused    []error
	again      []event // what may be taken later, and
	err        error   // why it was not
	retryAfter time.Duration
	tooLarge   bool
}

// report is what an answer of the notifier says: accepted, problem+json (RFC 9457), or items.
type report struct {
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Items  []struct {
		Index  int    `json:"index"`
		Status int    `json:"status"`
		Title  string `json:"title"`
		Detail string `json:"detail"`
	} `json:"items"`
}

// post makes one request.
func (n *Notifier) post(ctx context.Context, some []event) answer {
	body := []byte{'['}
	for i := range some {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, some[i].body...)
	}
	body = append(body, ']')
	credential := n.o.APIKey
	if n.o.Token != nil {
		var err error
		if credential, err = n.o.Token(ctx); err != nil {
			return answer{refused: []error{fmt.Errorf("notifier: token: %w", err)}}
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url, bytes.NewReader(body))
	if err != nil {
		return answer{refused: []error{fmt.Errorf("notifier: %w", err)}}
	}
	request.Header.Set("Authorization", "Bearer "+credential)
	request.Header.Set("Content-Type", "application/cloudevents-batch+json")
	response, err := n.o.Client.Do(request)
	if err != nil {
		return answer{again: some, err: err}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return answer{again: some, err: err}
	}
	return read(response, text, some)
}

// read finds out what became of each of the events of a request.
func read(response *http.Response, text []byte, some []event) (a answer) {
	status := response.StatusCode
	if status == http.StatusAccepted {
		return a
	}
	var r report
	if json.Unmarshal(text, &r) != nil || r.Title == "" {
		r.Title = http.StatusText(status) // an answer of something in between
	}
	a.retryAfter = retryAfter(response.Header)
	a.tooLarge = status == http.StatusRequestEntityTooLarge
	switch {
	case len(r.Items) > 0:
		for _, item := range r.Items {
			switch {
			case item.Status == http.StatusAccepted || item.Index < 0 || item.Index >= len(some):
			case passes(item.Status):
				a.again = append(a.again, some[item.Index])
				a.err = &RefusedError{some[item.Index].index, item.Status, item.Title, item.Detail}
			default:
				a.refused = append(a.refused, &RefusedError{some[item.Index].index, item.Status, item.Title, item.Detail})
			}
		}
		a.tooLarge = false // each has its own answer
	case a.tooLarge && len(some) > 1:
	case passes(status):
		a.again, a.err = some, fmt.Errorf("%d %s", status, r.Title)
	case len(some) == 1:
		a.refused = []error{&RefusedError{some[0].index, status, r.Title, r.Detail}}
	default:
		a.refused = []error{&RefusedError{-1, status, r.Title, r.Detail}}
	}
	return a
}

// passes reports whether a status may be another one later.
func passes(status int) bool {
	return status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

// retryAfter reads the header in both of its forms (RFC 9110, 10.2.3).
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseInt(text, 10, 32); err == nil {
		return time.Duration(max(seconds, 0)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return time.Until(at)
	}
	return 0
}

// sleep waits, and reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
