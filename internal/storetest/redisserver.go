package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Redis is a real redis-server of one test, on a loopback port of its own,
// without persistence: Stop loses everything, as a failover to an empty node
// would. The test's end ends it.
type Redis struct {
	// Addr is host:port. It stays the same when the server is started again.
	Addr string

	t    testing.TB
	dir  string
	args []string

	mu     sync.Mutex
	server *exec.Cmd // guarded by mu; nil while stopped
	output *bytes.Buffer
}

// StartRedis starts a redis-server and waits until it serves. Arguments are
// appended to its command line. Where redis-server is not installed the test
// fails: a contract that is only checked on some machines is none.
func StartRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("redis-server is not installed: `make test` installs it (on Debian: apt-get install redis-server)")
	}
	r := &Redis{t: t, dir: t.TempDir(), args: args}
	t.Cleanup(r.Stop)
	// The port is free when it is chosen, but another process may be faster.
	var err error
	for range 5 {
		r.Addr = FreeAddr(t)
		if err = r.start(); err == nil {
			return r
		}
	}
	t.Fatal(err)
	return nil
}

// Start starts the server again after Stop, on the same address and empty.
func (r *Redis) Start() {
	r.t.Helper()
	if err := r.start(); err != nil {
		r.t.Fatal(err)
	}
}

// Stop kills the server: no farewell to its clients, all data lost.
func (r *Redis) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return
	}
	_ = r.server.Process.Kill() // it may have ended by itself
	_ = r.server.Wait()         // says that it was killed
	r.server = nil
}

// Pause freezes the server: its sockets stay open and nothing answers.
func (r *Redis) Pause() { r.signal(syscall.SIGSTOP) }

// Resume lets a frozen server go on.
func (r *Redis) Resume() { r.signal(syscall.SIGCONT) }

// Do sends one command on a connection of its own and returns the answer as Redis
// wrote it: for arranging and looking, without any client library.
func (r *Redis) Do(words ...string) string {
	r.t.Helper()
	answer, err := Do(r.Addr, words...)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer
}

func (r *Redis) signal(s syscall.Signal) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		r.t.Fatal("redis-server is stopped")
	}
	if err := r.server.Process.Signal(s); err != nil {
		r.t.Fatalf("%v redis-server: %v", s, err)
	}
}

func (r *Redis) start() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		return errors.New("redis-server is already started")
	}
	host, port, err := net.SplitHostPort(r.Addr)
	if err != nil {
		return err
	}
	args := append([]string{
		"--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", r.dir, "--daemonize", "no",
	}, r.args...)
	server := exec.Command("redis-server", args...)
	r.output = &bytes.Buffer{}
	server.Stdout, server.Stderr = r.output, r.output
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	if err := server.Start(); err != nil {
		return fmt.Errorf("start redis-server: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for every := time.NewTicker(5 * time.Millisecond); ; {
		if answer, err := Do(r.Addr, "INFO", "server"); err == nil && strings.Contains(answer, fmt.Sprintf("process_id:%d\r", server.Process.Pid)) {
			every.Stop()
			r.server = server
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			every.Stop()
			_ = server.Process.Kill()
			_ = server.Wait()
			return fmt.Errorf("redis-server at %s does not serve: %s", r.Addr, r.output)
		}
	}
}

// FreeAddr is a loopback host:port that nobody listened on a moment ago.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
