package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// clients has the scripts of clients that others wrote, and those clients.
const clients = "clients"

// A script is a client in a process of its own, driven line by line:
// clients/driver.mjs says how.
type script struct {
	*world
	name string
	in   io.WriteCloser
	done chan struct{} // closed when it has ended

	mu      sync.Mutex
	calls   int           // guarded by mu
	replies map[int]reply // guarded by mu
	reports []report      // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced with each line
	ended   error         // guarded by mu; what Wait said, nil if with 0
	over    bool          // guarded by mu; it has ended
	said    bytes.Buffer  // owned by the process until it has ended; its standard error
}

// A report is what a client says by itself.
type report struct {
	Event string

	// Of @azure/web-pubsub-client.
	UserID, ConnectionID, Group string
	Message                     json.RawMessage
}

type reply struct {
	ID     int
	Result json.RawMessage
	Error  *foreignError
}

// A foreignError is an error of a client.
type foreignError struct {
	Name, Message string
	Detail        struct{ Name, Message string }
}

// program is the path of a program that make test installs.
func (w *world) program(name string) string {
	w.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		w.Fatalf("%s is not installed: make test installs it, or names the package that has it", name)
	}
	return path
}

// node starts a script with what it finds in its environment, NAME=VALUE.
func (w *world) node(name string, env ...string) *script {
	w.Helper()
	node := w.program("node")
	if _, err := os.Stat(filepath.Join(clients, "node_modules")); err != nil {
		w.Fatalf("the clients of internal/e2e/clients are not installed: make test does it with npm ci (%v)", err)
	}
	cmd := exec.CommandContext(w.ctx, node, name)
	cmd.Dir = clients
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	s := &script{world: w, name: name, done: make(chan struct{}), replies: make(map[int]reply), changed: make(chan struct{})}
	cmd.Stderr = &s.said
	in, err := cmd.StdinPipe()
	if err != nil {
		w.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	s.in = in
	go func() {
		defer close(s.done)
		s.read(out)
		err := cmd.Wait()
		s.change(func() { s.over, s.ended = true, err })
	}()
	w.Cleanup(func() {
		_ = in.Close() // it has ended, or ends now
		_ = cmd.Process.Kill()
		<-s.done
	})
	return s
}

func (s *script) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			report
			reply
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			s.Errorf("%s: %v in %s", s.name, err, lines.Bytes())
			continue
		}
		s.change(func() {
			if line.Event != "" {
				s.reports = append(s.reports, line.report)
			} else {
				s.replies[line.ID] = line.reply
			}
		})
	}
	if err := lines.Err(); err != nil {
		s.Errorf("%s: %v", s.name, err)
	}
}

func (s *script) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// wait waits until the script has said what satisfies a condition, which is asked
// while nothing changes.
func (s *script) wait(what string, cond func() bool) {
	s.Helper()
	look := func() (ok, over bool, changed chan struct{}, ended error) {
		s.mu.Lock()
		defer s.mu.Unlock() // also when cond ends the test
		return cond(), s.over, s.changed, s.ended
	}
	for {
		ok, over, changed, ended := look()
		if ok {
			return
		}
		if over {
			s.Fatalf("%s: in vain: %s; it has ended with %v: %s", s.name, what, ended, s.said.String())
		}
		select {
		case <-changed:
		case <-s.ctx.Done():
			s.mu.Lock()
			defer s.mu.Unlock()
			s.Fatalf("%s: in vain: %s; it said %s", s.name, what, s.tail())
		}
	}
}

// tail is the end of what was reported.
func (s *script) tail() string {
	var b strings.Builder
	for _, e := range s.reports[max(0, len(s.reports)-10):] {
		fmt.Fprintf(&b, "\n%s %s %.500s", e.Event, e.Group, e.Message)
	}
	return b.String()
}

// call starts a call, and returns what waits for its answer.
func (s *script) call(name string, args ...any) (answered func() reply) {
	s.Helper()
	if args == nil {
		args = []any{}
	}
	s.mu.Lock()
	s.calls++
	id := s.calls
	s.mu.Unlock()
	line, err := json.Marshal(map[string]any{"id": id, "call": name, "args": args})
	if err != nil {
		s.Fatal(err)
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		s.Fatalf("%s: %v", s.name, err)
	}
	return func() (r reply) {
		s.Helper()
		s.wait(fmt.Sprintf("an answer to %s", line), func() (ok bool) { r, ok = s.replies[id]; return ok })
		return r
	}
}

// does makes a call and wants it to succeed.
func (s *script) does(name string, args ...any) json.RawMessage {
	s.Helper()
	r := s.call(name, args...)()
	if r.Error != nil {
		s.Fatalf("%s: %s(%v): got the error %+v", s.name, name, args, *r.Error)
	}
	return r.Result
}

// fails makes a call and wants an error.
func (s *script) fails(name string, args ...any) foreignError {
	s.Helper()
	r := s.call(name, args...)()
	if r.Error == nil {
		s.Fatalf("%s: %s(%v): got %s, want an error", s.name, name, args, r.Result)
	}
	return *r.Error
}

// soFar is how many reports there have been.
func (s *script) soFar() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.reports)
}

// await waits for a report after the first n.
func (s *script) await(n int, what string, cond func(report) bool) (found report) {
	s.Helper()
	s.wait(what, func() bool {
		for _, e := range s.reports[n:] {
			if cond(e) {
				found = e
				return true
			}
		}
		return false
	})
	return found
}

// since returns the reports after the first n.
func (s *script) since(n int) []report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]report(nil), s.reports[n:]...)
}

// ends tells the script that there is no more, and wants it to exit with 0.
func (s *script) ends() {
	s.Helper()
	if err := s.in.Close(); err != nil {
		s.Fatal(err)
	}
	s.wait("it ends", func() bool { return s.over })
	if s.ended != nil {
		s.Errorf("%s ended with %v: %s", s.name, s.ended, s.said.String())
	}
}
