package auth

import "errors"

// IsGuess reports whether an error says that a credential was shown that proves nothing. One that was good once is no guess, and
// neither is none.
func IsGuess(err error) bool {
	return errors.Is(err, ErrUnauthenticated) && !errors.Is(err, ErrMissing) && !errors.Is(err, ErrExpired)
}
