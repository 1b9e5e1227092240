package problem_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/problem"
	"statusrelay/internal/status"
)

func TestEachKindOfErrorHasItsAnswer(t *testing.T) {
	tests := []struct {
		err    error
		status int
		slug   string
		header string // one that must be set
	}{
		{status.ErrInvalid, 400, "invalid", ""},
		{&status.InvalidError{Reason: status.ReasonInvalid, Field: "hub", Detail: "too long"}, 400, "invalid", ""},
		{&status.InvalidError{Reason: status.ReasonTooLarge, Detail: "too long"}, 413, "too-large", ""},
		{status.ErrNotFound, 404, "not-found", ""},
		{auth.ErrUnauthenticated, 401, "unauthenticated", "WWW-Authenticate"},
		{auth.ErrExpired, 401, "token-expired", "WWW-Authenticate"},
		{auth.ErrForbidden, 403, "forbidden", ""},
		{status.ErrUnavailable, 503, "unavailable", "Retry-After"},
		{status.ErrMayNotPublish, 503, "may-not-publish", "Retry-After"},
		{&limit.Error{Limit: "secret", RetryAfter: time.Second}, 429, "too-many", "Retry-After"},
		{errors.New("a secret"), 500, "internal", ""},
	}
	for _, tt := range tests {
		for _, err := range []error{tt.err, fmt.Errorf("doing a secret thing: %w", tt.err)} {
			w := httptest.NewRecorder()
			problem.Write(w, problem.Of(err))
			var body struct {
				Type   string
				Title  string
				Status int
			}
			if e := json.Unmarshal(w.Body.Bytes(), &body); e != nil {
				t.Fatalf("%v: %v", err, e)
			}
			if w.Code != tt.status || body.Status != tt.status || body.Type != "urn:statusrelay:problem:"+tt.slug || body.Title == "" {
				t.Errorf("%v: got %d %s, want %d %s", err, w.Code, w.Body, tt.status, tt.slug)
			}
			if tt.header != "" && w.Header().Get(tt.header) == "" {
				t.Errorf("%v: no %s", err, tt.header)
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("%v: the cause is shown: %s", err, w.Body)
			}
		}
	}
}

func TestInvalidNamesTheField(t *testing.T) {
	p := problem.Of(fmt.Errorf("decoding: %w", &status.InvalidError{Reason: status.ReasonInvalid, Field: "hub", Detail: "too long"}))
	if p.Field != "hub" || p.Detail != "too long" {
		t.Errorf("got %+v", p)
	}
}

func TestRetryAfterIsRoundedUp(t *testing.T) {
	w := httptest.NewRecorder()
	problem.Write(w, problem.TooMany(1200*time.Millisecond))
	if got := w.Header().Get("Retry-After"); got != "2" {
		t.Errorf("got %q, want 2", got)
	}
}
