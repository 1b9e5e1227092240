package auth_test

import (
	"errors"
	"fmt"
	"testing"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
)

func TestOnlyWhatProvesNothingIsAGuess(t *testing.T) {
	for err, want := range map[error]bool{
		auth.ErrUnauthenticated: true, auth.ErrExpired: false, auth.ErrMissing: false, auth.ErrForbidden: false,
		status.ErrUnavailable: false, errors.New("other"): false,
	} {
		for _, err := range []error{err, fmt.Errorf("wrapped: %w", err)} {
			if got := auth.IsGuess(err); got != want {
				t.Errorf("%v: got %v", err, got)
			}
		}
	}
	if auth.IsGuess(nil) {
		t.Error("no error is a guess")
	}
}
