package storetest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// Do sends one command to the Redis at addr, on a connection of its own, and
// returns the answer: a string or number as it is, an array's items one a line,
// nothing for nil. An error reply is an error. It exists so that tests arrange
// and inspect Redis without the client that is under test.
//
// Where the server has the user of Administrator, that is who sends the command:
// the users that a test is about may then have no such rights.
func Do(addr string, words ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command("AUTH", administrator, "any")+command(words...)); err != nil {
		return "", err
	}
	r := bufio.NewReader(conn)
	if _, err := reply(r); err != nil && !strings.HasPrefix(err.Error(), "redis: ") { // no such user: as the default one
		return "", err
	}
	return reply(r)
}

const administrator = "storetest"

// Administrator are the arguments of redis-server that make the user of Do.
func Administrator() []string {
	return []string{"--user", administrator, "on", "nopass", "allkeys", "allchannels", "allcommands"}
}

// command encodes a command as an array of bulk strings.
func command(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b.String()
}

// reply reads one RESP2 value.
func reply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return "", fmt.Errorf("empty reply line")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', ':':
		return rest, nil
	case '-':
		return "", fmt.Errorf("redis: %s", rest)
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return "", err
	}
	if kind == '$' {
		body := make([]byte, n+2)
		if _, err := io.ReadFull(r, body); err != nil {
			return "", err
		}
		return string(body[:n]), nil
	}
	items := make([]string, n)
	for i := range items {
		if items[i], err = reply(r); err != nil {
			return "", err
		}
	}
	return strings.Join(items, "\n"), nil
}
