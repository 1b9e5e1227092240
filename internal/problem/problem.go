// Package problem writes errors over HTTP as RFC 9457 problem details.
//
// It holds the one table from kind of error to answer (Of). A caller sees the
// fixed sentence of the kind; the cause goes to the log of whoever handled the
// error. Only an InvalidError adds its own text, which by its contract names a
// field and a rule and nothing else.
//
//	problem.Write(w, problem.Of(err))
package problem

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/limit"
	"statusrelay/internal/status"
)

// MediaType of the answer (RFC 9457 section 3).
const MediaType = "application/problem+json"

// A Problem is one answer. Type is stable: clients may compare it.
type Problem struct {
	Type   string `json:"type"`             // urn:statusrelay:problem:…
	Title  string `json:"title"`            // the fixed sentence of the type
	Status int    `json:"status"`           // the HTTP status
	Detail string `json:"detail,omitempty"` // what about this occurrence
	Field  string `json:"field,omitempty"`  // the field or parameter at fault

	Items any `json:"items,omitempty"` // what became of each part of a batch

	// RetryAfter becomes the header of that name, in whole seconds rounded up; 0: none.
	RetryAfter time.Duration `json:"-"`
	// Challenge becomes WWW-Authenticate (RFC 6750 section 3).
	Challenge string `json:"-"`
}

func named(slug string, code int, title string) Problem {
	return Problem{Type: "urn:statusrelay:problem:" + slug, Title: title, Status: code}
}

// MethodNotAllowed says that the resource exists, without that method.
func MethodNotAllowed() Problem {
	return named("method-not-allowed", http.StatusMethodNotAllowed, "This resource does not have that method.")
}

// NoResource says that nothing is at that path.
func NoResource() Problem {
	return named("not-found", http.StatusNotFound, "There is no such resource.")
}

// UnsupportedEncoding says that the body's Content-Encoding is not understood.
func UnsupportedEncoding() Problem {
	return named("unsupported-encoding", http.StatusUnsupportedMediaType, "The request's content encoding is not supported.")
}

// TooLarge says that the request's body exceeds the limit, in bytes.
func TooLarge(limit int64) Problem {
	p := named("too-large", http.StatusRequestEntityTooLarge, "The request is too large.")
	p.Detail = "the limit is " + strconv.FormatInt(limit, 10) + " bytes"
	return p
}

// TooMany says that a rate or count limit is reached.
func TooMany(retryAfter time.Duration) Problem {
	p := named("too-many", http.StatusTooManyRequests, "Too many requests.")
	p.RetryAfter = retryAfter
	return p
}

// Invalid says that a parameter or field breaks a rule.
func Invalid(code int, field, detail string) Problem {
	p := named("invalid", code, "The request is not valid.")
	p.Field, p.Detail = field, detail
	return p
}

// Of is the table from kind of error to answer.
func Of(err error) Problem {
	var invalid *status.InvalidError
	var reached *limit.Error
	switch {
	case errors.As(err, &reached):
		return TooMany(reached.RetryAfter)
	case errors.As(err, &invalid):
		if invalid.Reason == status.ReasonTooLarge {
			p := named("too-large", http.StatusRequestEntityTooLarge, "The request is too large.")
			p.Detail = invalid.Detail
			return p
		}
		return Invalid(http.StatusBadRequest, invalid.Field, invalid.Detail)
	case errors.Is(err, status.ErrInvalid):
		return Invalid(http.StatusBadRequest, "", "")
	case errors.Is(err, status.ErrNotFound):
		return named("not-found", http.StatusNotFound, "There is no such instance.")
	case errors.Is(err, auth.ErrExpired):
		p := named("token-expired", http.StatusUnauthorized, "The token has expired.")
		p.Challenge = `Bearer error="invalid_token", error_description="expired"`
		return p
	case errors.Is(err, auth.ErrUnauthenticated):
		p := named("unauthenticated", http.StatusUnauthorized, "A valid bearer token is required.")
		p.Challenge = `Bearer error="invalid_token"`
		if errors.Is(err, auth.ErrMissing) {
			p.Challenge = "Bearer" // RFC 6750 section 3.1: no error code for who did not try
		}
		return p
	case errors.Is(err, auth.ErrForbidden):
		return named("forbidden", http.StatusForbidden, "You may not do this.")
	case errors.Is(err, status.ErrMayNotPublish):
		p := named("may-not-publish", http.StatusServiceUnavailable, "The notifier is not allowed to publish.")
		p.RetryAfter = time.Minute // somebody has to give it the right
		return p
	case errors.Is(err, status.ErrUnavailable):
		p := named("unavailable", http.StatusServiceUnavailable, "The service is unavailable for now.")
		p.RetryAfter = time.Second
		return p
	default:
		return named("internal", http.StatusInternalServerError, "Something went wrong here.")
	}
}

// Write answers with the problem. Problems are never cached.
func Write(w http.ResponseWriter, p Problem) {
	body, err := json.Marshal(p)
	if err != nil { // strings and an int: cannot happen
		body = []byte(`{}`)
	}
	h := w.Header()
	h.Set("Content-Type", MediaType)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Del("ETag")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.RetryAfter.Seconds()))))
	}
	if p.Challenge != "" {
		h.Set("WWW-Authenticate", p.Challenge)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // the client is gone: nobody is left to tell
}
