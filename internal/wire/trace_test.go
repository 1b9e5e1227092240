package wire_test

import (
	"strings"
	"testing"

	"statusrelay/internal/wire"
)

// Only what the specification allows is passed on: a trace is made of headers that
// anybody may send.
func TestTraceIsPassedOnOnlyIfWellFormed(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, bad := range []string{
		"", "x", parent + "-x", parent[:54], strings.ToUpper(parent), "ff" + parent[2:], strings.Replace(parent, "-", "_", 1),
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
		parent[:53] + "\r\n", "é" + parent[2:],
	} {
		if p, s := wire.Trace(bad, "a=1"); p != "" || s != "" {
			t.Errorf("%q: got %q and %q", bad, p, s)
		}
	}
	for _, good := range []string{"", "a=1", "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7", "1@a=x y", "a=1,,b=2", strings.Repeat("a=1,", 31) + "a=1", "a=" + strings.Repeat("x", 510)} {
		if p, s := wire.Trace(parent, good); p != parent || s != good {
			t.Errorf("%q: got %q and %q", good, p, s)
		}
	}
	for _, bad := range []string{"a", "=1", "a=", "A=1", "a b=1", "a$b=1", "a=1=2", "a=\x00", "a=é", "a=1\r\nb=2", strings.Repeat("a=1,", 32) + "a=1", "a=" + strings.Repeat("x", 511)} {
		if p, s := wire.Trace(parent, bad); p != parent || s != "" {
			t.Errorf("%q: got %q and %q", bad, p, s)
		}
	}
}
