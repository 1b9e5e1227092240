package redisstore_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"statusrelay/internal/redisstore"
)

// A said is a connection on which all has been said already.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func bulk(text string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(text), text) }

// However a stream is cut into reads, what is too large is replaced and everything else is as it was.
func TestR3LargeValuesAreReadPast(t *testing.T) {
	large, larger := strings.Repeat("$9\r\n", redisstore.MaxValue/4)+"x", strings.Repeat("l", 3*redisstore.MaxValue)
	fits := strings.Repeat("f", redisstore.MaxValue)
	const standIn = "$1\r\n\x18\r\n"
	for name, c := range map[string]struct{ stream, want string }{
		"a value":           {bulk("v"), bulk("v")},
		"none":              {"$-1\r\n+OK\r\n", "$-1\r\n+OK\r\n"},
		"an empty one":      {bulk("") + ":1\r\n", bulk("") + ":1\r\n"},
		"one that looks so": {bulk("$99999999\r\n"), bulk("$99999999\r\n")},
		"a line that does":  {"+$99999999\r\n-ERR $99999999\r\n", "+$99999999\r\n-ERR $99999999\r\n"},
		"the largest":       {bulk(fits) + bulk("v"), bulk(fits) + bulk("v")},
		"too large":         {"*3\r\n" + bulk("a") + bulk(large) + bulk("b") + "*-1\r\n", "*3\r\n" + bulk("a") + standIn + bulk("b") + "*-1\r\n"},
		"many too large":    {bulk(large) + bulk(larger) + bulk(large), standIn + standIn + standIn},
		"verbatim":          {strings.Replace(bulk(large), "$", "=", 1) + bulk("v"), standIn + bulk("v")},
		"cut off":           {bulk(large)[:100], standIn},
	} {
		for size, cut := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "halved": iotest.HalfReader, "bytes": iotest.OneByteReader, "with its end": iotest.DataErrReader,
		} {
			got, err := io.ReadAll(redisstore.Bounded(said{Reader: cut(strings.NewReader(c.stream))}))
			if err != nil || string(got) != c.want {
				t.Errorf("%s, %s: got %d bytes that begin with %.60q, %v, want %d with %.60q", name, size, len(got), got, err, len(c.want), c.want)
			}
		}
	}
	_, err := io.ReadAll(redisstore.Bounded(said{Reader: strings.NewReader("$" + strings.Repeat("1", 100) + "\r\n")}))
	if err != nil {
		t.Errorf("a length that is none, in one read: %v", err)
	}
	if _, err = io.ReadAll(redisstore.Bounded(said{Reader: iotest.OneByteReader(strings.NewReader("$" + strings.Repeat("1", 100)))})); err == nil {
		t.Error("a length without an end is waited for")
	}
}

// FuzzBoundedConn: whatever comes, what is handed on does not depend on how it was cut, and nothing that is small enough is changed.
func FuzzBoundedConn(f *testing.F) {
	f.Add([]byte("*2\r\n$1\r\na\r\n$-1\r\n"), uint8(1))
	f.Add([]byte("$2000000\r\nabc"), uint8(3))
	f.Add([]byte("$9223372036854775807\r\nabc\r\n"), uint8(5))
	f.Add([]byte("+OK\r\n:1\r\n=5\r\ntxt:a\r\n"), uint8(2))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		whole, wholeErr := io.ReadAll(redisstore.Bounded(said{Reader: bytes.NewReader(stream)}))
		cut, cutErr := io.ReadAll(redisstore.Bounded(said{Reader: &pieces{stream, max(int(size), 1)}}))
		if wholeErr == nil && cutErr == nil && !bytes.Equal(whole, cut) {
			t.Errorf("got %q at once and %q in pieces of %d", whole, cut, size)
		}
		if len(whole) > len(stream) && wholeErr == nil {
			t.Errorf("%d bytes became %d", len(stream), len(whole))
		}
	})
}

// pieces reads so many bytes at a time.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(p.size, len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}
