package limit

import (
	"net/netip"
	"time"
)

// The limits of a Door.
const (
	OfAddress  = "address"  // what comes from one address
	OfFailures = "failures" // credentials from one address that prove nothing
)

// A Door is what requests pass before it is known who sends them. Those from an address from which too many credentials proved nothing
// are refused whatever they show: a guess that is answered is what slowing down is about.
type Door struct {
	addresses, failures *Buckets[netip.Addr]
}

// Open is a door without limits.
func Open() *Door { return &Door{} }

// NewDoor returns a door with a rate for each address. Failures, of NewFailures, are those of all doors that have the same.
func NewDoor(perAddress Rate, failures *Buckets[netip.Addr]) *Door {
	return &Door{NewShared[netip.Addr](OfAddress, perAddress), failures}
}

// NewFailures returns the buckets of credentials that prove nothing, by address.
func NewFailures(r Rate) *Buckets[netip.Addr] { return NewShared[netip.Addr](OfFailures, r) }

// Admit charges the address for a request. How much guessing there may be is no quota, and told nobody.
func (d *Door) Admit(from netip.Addr, now time.Time) (Quota, error) {
	if _, err := d.failures.Check(from, 1, now); err != nil {
		return Quota{}, err
	}
	return d.addresses.Take(from, 1, now)
}

// Failed charges the address for a credential that proved nothing.
func (d *Door) Failed(from netip.Addr, now time.Time) { d.failures.Charge(from, now) }

// Policy is that of the rate for each address.
func (d *Door) Policy() Policy { return d.addresses.Policy() }
