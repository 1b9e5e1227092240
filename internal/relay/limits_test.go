package relay_test

import (
	"math"
	"strings"
	"testing"

	"statusrelay/internal/relay"
)

func TestLimitsAreChecked(t *testing.T) {
	c := relay.Defaults()
	for key, wrong := range map[string]func(*relay.Limits){
		"requests_per_caller":    func(l *relay.Limits) { l.RequestsPerCaller = -1 },
		"requests_per_address":   func(l *relay.Limits) { l.RequestsPerAddress = math.NaN() },
		"failures_per_address":   func(l *relay.Limits) { l.FailuresPerAddress = math.Inf(1) },
		"first_reads":            func(l *relay.Limits) { l.FirstReads = -1 },
		"handshakes_per_address": func(l *relay.Limits) { l.HandshakesPerAddress = -0.1 },
		"handshakes":             func(l *relay.Limits) { l.Handshakes = -1 },
		"sockets_per_caller":     func(l *relay.Limits) { l.SocketsPerCaller = -1 },
		"requests_per_tenant":    func(l *relay.Limits) { l.RequestsPerTenant = -1 },
		"sockets_per_tenant":     func(l *relay.Limits) { l.SocketsPerTenant = -1 },
		"sockets_per_address":    func(l *relay.Limits) { l.SocketsPerAddress = -1 },
	} {
		c.Limits = relay.Limits{} // none is a choice
		if err := c.Validate(); strings.Contains(err.Error(), "limits.") {
			t.Errorf("without limits: %v", err)
		}
		wrong(&c.Limits)
		if err := c.Validate(); !strings.Contains(err.Error(), "limits."+key+": ") || strings.Count(err.Error(), "limits.") != 1 {
			t.Errorf("%s: got %v", key, err)
		}
	}
	for _, l := range []relay.Limits{{RequestsPerTenant: 1}, {SocketsPerTenant: 1}} {
		c.Limits = l
		if err := c.Validate(); !strings.Contains(err.Error(), "limits.tenant_claim: required") {
			t.Errorf("%+v: got %v", l, err)
		}
	}
}
