package watcher

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"statusrelay/internal/status"
)

const (
	minPause, maxPause = 500 * time.Millisecond, 30 * time.Second // between two connections
	maxEvent           = 4 << 20                                  // bytes: custom status and output have their limits, and names
)

// Follow tells heard of each change until that returns false, when it returns nil. Else it returns a *RefusedError, another error
// that trying again would not change, an ErrGivenUp, or the error of ctx.
func (w *Watcher) Follow(ctx context.Context, heard func(Change) bool) error {
	following, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	f := &follower{
		w: w, heard: heard, after: w.o.After, cause: w.silent(), lost: true,
		patience: time.AfterFunc(w.o.Patience, func() { giveUp(ErrGivenUp) }),
		pause:    backoff.NewExponentialBackOff(),
	}
	defer f.patience.Stop()
	f.pause.InitialInterval, f.pause.MaxInterval, f.pause.Multiplier = minPause, maxPause, 2
	for {
		least, err := f.connect(following)
		var final *finalError
		switch {
		case f.done:
			return nil
		case errors.As(err, &final):
			return final.error
		case ctx.Err() != nil:
			return ctx.Err()
		case following.Err() == nil:
			f.cause = err
			if !f.lost {
				f.lost = true
				f.patience.Reset(w.o.Patience)
			}
			pause := max(f.pause.NextBackOff(), least)
			w.o.Trouble(err, pause)
			if sleep(following, pause) {
				continue
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w after %v: %w", ErrGivenUp, w.o.Patience, f.cause)
	}
}

// A follower is one Follow, all of it its goroutine's.
type follower struct {
	w     *Watcher
	heard func(Change) bool
	done  bool // heard has enough

	after int64 // the newest version that was told
	known bool  // the relay has told of the instance

	patience *time.Timer // runs while lost
	lost     bool        // there is no stream, or none on which the instance was ever told of
	cause    error       // why, as far as is known
	pause    *backoff.ExponentialBackOff
}

// A finalError is one that trying again would not change.
type finalError struct{ error }

// silent is what it means that a stream has told of nothing.
func (w *Watcher) silent() error {
	if w.o.After > 0 {
		return errNothingNewer
	}
	return ErrUnknown
}

// found notes that all is well.
func (f *follower) found() {
	f.patience.Stop()
	f.lost = false
}

// connect follows one stream to its end, and says for how long not to come back at least.
func (f *follower) connect(ctx context.Context) (least time.Duration, err error) {
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)
	watchdog := time.AfterFunc(answerTimeout, func() { hangUp(errors.New("no answer")) })
	defer watchdog.Stop()
	answer, err := f.w.ask(ctx, "text/event-stream", f.after)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if errors.As(err, new(*tls.CertificateVerificationError)) {
			err = &finalError{err}
		}
		return 0, err
	}
	defer answer.Body.Close()
	media, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if answer.StatusCode != http.StatusOK || media != "text/event-stream" {
		refused := refusal(answer)
		if !refused.Passes {
			return 0, &finalError{refused}
		}
		return retryAfter(answer.Header), refused
	}
	if f.known {
		f.found()
	} else {
		f.cause = f.w.silent()
	}
	return f.read(answer, func() { watchdog.Reset(f.w.o.Silence) })
}

// read reads a stream (WHATWG HTML, "Server-sent events") to its end.
func (f *follower) read(answer *http.Response, alive func()) (retry time.Duration, err error) {
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, maxEvent)
	var name string
	var data []byte
	for alive(); lines.Scan(); alive() {
		line := lines.Text()
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if len(data) > 0 {
				if err := f.event(name, data[:len(data)-1]); err != nil || f.done {
					return retry, err
				}
			}
			name, data = "", nil
		case field == "event":
			name = value
		case field == "data":
			if data = append(append(data, value...), '\n'); len(data) > maxEvent {
				return retry, bufio.ErrTooLong
			}
		case field == "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
				retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
	if err := lines.Err(); err != nil {
		return retry, fmt.Errorf("the stream broke off: %w", err)
	}
	return retry, errors.New("the relay has ended the stream")
}

// event tells of one event, unless it is none or says nothing new.
func (f *follower) event(name string, data []byte) error {
	if name != "status" && name != "gone" {
		return nil
	}
	c, err := f.w.change(name, data)
	if err != nil {
		return err
	}
	f.pause.Reset()
	f.known = true
	f.found()
	if c.Version <= f.after {
		return nil
	}
	f.after = c.Version
	f.done = !f.heard(c)
	return nil
}

// change reads a view, or the end of one.
func (w *Watcher) change(name string, data []byte) (Change, error) {
	var view struct {
		Version       int64                `json:"version"`
		RuntimeStatus status.RuntimeStatus `json:"runtimeStatus"`
	}
	if err := json.Unmarshal(data, &view); err != nil || view.Version <= 0 {
		return Change{}, errors.New("the relay sends what is no status")
	}
	c := Change{Key: w.o.Key, Version: view.Version, Gone: name == "gone"}
	if !c.Gone {
		c.RuntimeStatus, c.View = view.RuntimeStatus, data
	}
	return c, nil
}

// sleep waits and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
