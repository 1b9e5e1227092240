package shell

import (
	"errors"
	"fmt"
	"math"
)

// Door bounds what comes from one address, before it is known who sends it. Rates
// are per second, after a burst of two seconds' worth, and of this replica alone.
type Door struct {
	RequestsPerAddress float64 `koanf:"requests_per_address" usage:"HTTP requests per second from one address (of IPv6, a /64); 0: any number"`
	FailuresPerAddress float64 `koanf:"failures_per_address" usage:"credentials per second from one address that prove nothing; while there are more, nobody from there is let in; 0: any number"`
}

// DefaultDoor keeps a client that ran away from taking the replica with it, and is
// beyond what honest ones do: behind a proxy that is not trusted all have one address.
func DefaultDoor() Door { return Door{RequestsPerAddress: 50_000, FailuresPerAddress: 500} }

// Validate reports every mistake, each with its key.
func (d Door) Validate() error {
	return errors.Join(Limit("limits.requests_per_address", d.RequestsPerAddress), Limit("limits.failures_per_address", d.FailuresPerAddress))
}

// Limit reports what is wrong with a limit: a number, of which 0 is none.
func Limit(key string, value float64) error {
	if value < 0 || math.IsNaN(value) || math.IsInf(value, 0) {
		return fmt.Errorf("%s: not 0 or more", key)
	}
	return nil
}
