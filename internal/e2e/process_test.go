package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/dev"
	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// process is a program that runs as users run it.
type process struct {
	replica
	cmd    *exec.Cmd
	exited chan error // what Wait said
}

var serves = regexp.MustCompile(`msg="(?:relay|notifier) serves" listen=(\S+) private=(\S+)`)

// build builds a program as it is shipped.
func build(t testing.TB, program string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), program)
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "statusrelay/cmd/"+program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// startProcess runs the binary with a configuration of every kind: file, to which
// more can be added, environment and flags.
func (w *world) startProcess(binary, more string) *process {
	w.Helper()
	dir := w.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			w.Fatal(err)
		}
		return path
	}
	config := write("config.yaml", fmt.Sprintf(`
listen: 127.0.0.1:0
private_listen: 127.0.0.1:0
policy: %s
redis:
  addrs: [%q]
auth:
  issuers: [%q]
service_bus:
  connection_string_file: %s
%s`, write("policy.yaml", string(policy.Development())), w.redis.Addr, w.issuerURL, write("connection-string", w.serviceBus), more))
	p := &process{cmd: exec.Command(binary, "serve", "--config", config, "--drain-timeout", "8s"), exited: make(chan error, 1)}
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "STATUSRELAY_AUTH_AUDIENCES=" + audience, "STATUSRELAY_LOG_LEVEL=info"}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	said, err := p.cmd.StderrPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = p.cmd.Process.Kill() }) // unless it has ended
	addresses := make(chan []string, 1)
	go func() {
		var all bytes.Buffer
		lines := bufio.NewScanner(io.TeeReader(said, &all))
		for lines.Scan() {
			if m := serves.FindStringSubmatch(lines.Text()); m != nil {
				addresses <- m
			}
		}
		close(addresses)
		_, _ = w.logs.Write(all.Bytes()) // memory
		p.exited <- p.cmd.Wait()
	}()
	select {
	case m, ok := <-addresses:
		if !ok {
			w.Fatalf("the program ended with %v: %s", <-p.exited, w.logs.tail(20))
		}
		p.base, p.private = "http://"+m[1], "http://"+m[2]
	case <-w.ctx.Done():
		w.Fatal("the program does not serve")
	}
	w.until("the program is ready", func() bool { return w.ready(&p.replica) == http.StatusOK })
	return p
}

// ready is what the private listener says, 0 when it does not answer.
func (w *world) ready(r *replica) int {
	got, err := w.do(http.MethodGet, r.private+"/readyz", "", nil)
	if err != nil {
		return 0
	}
	return got.code
}

// A replica that is told to stop under load finishes what it has in hand, sends its
// clients away one after the other and exits with 0; one that is killed does
// none of that. Either way another replica has every update in the end, and every
// watcher that comes to it the newest.
func TestReplicaThatEndsLosesNothing(t *testing.T) {
	t.Parallel()
	binary := build(t, "relay")
	for _, end := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(end.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, dev.NewBus(2*time.Second, 10))
			first := w.startProcess(binary, "")
			const instances, sockets = 50, 30
			const once = 10 // instances a round that get one update ever: a lost one leaves a hole
			var keys []status.Key
			for i := range instances {
				keys = append(keys, key(fmt.Sprintf("i-%d", i)))
			}
			watchers := make([]*watcher, sockets)
			for i := range watchers {
				watchers[i] = w.watch(&first.replica, w.operator, keys...)
			}

			send := w.sender()
			round := 0
			publish := func() {
				round++
				var bodies [][]byte
				for _, k := range keys {
					bodies = append(bodies, []byte(progress(k.InstanceID, round, round)))
				}
				for i := range once {
					bodies = append(bodies, []byte(progress(fmt.Sprintf("once-%d-%d", round, i), 1, 1)))
				}
				send(bodies...)
			}
			for range 20 {
				publish()
			}
			w.until("it is under load", func() bool { publish(); s := w.stats(); return s.Locked > 0 && s.Completed > instances })
			if err := first.cmd.Process.Signal(end); err != nil {
				t.Fatal(err)
			}
			unready := false
			w.until("it has ended", func() bool {
				publish()
				for _, v := range watchers {
					if !unready && end == syscall.SIGTERM && v.end() != nil {
						if got := w.ready(&first.replica); got == http.StatusOK {
							t.Error("a socket was closed while the replica was ready")
						}
						unready = true
					}
				}
				return len(first.exited) > 0
			})
			err := <-first.exited
			publish()
			second := w.startProcess(binary, "")

			if end == syscall.SIGTERM {
				if err != nil {
					t.Errorf("the program ended with %v, want exit code 0", err)
				}
				wantSpreadOf1012(t, watchers)
			}
			for _, v := range watchers {
				v.await("the socket has ended", func(v *watcher) bool { return v.ended != nil })
				after := make(map[status.Key]int64)
				for k, f := range v.newest {
					after[k] = f.Version
				}
				again := w.watchAfter(&second.replica, w.operator, after, keys...)
				for _, k := range keys {
					again.sees(k, round)
				}
			}
			w.settled()
			if s, sent := w.stats(), round*(instances+once); s.TotalDeadLettered > 0 || s.Completed != int64(sent) {
				t.Errorf("in the end: %+v, want %d completed", s, sent)
			}
			if got, want := w.records(), instances+round*once; got != want {
				t.Errorf("redis has %d records, want %d", got, want)
			}
			for _, k := range keys {
				w.shows(&second.replica, k, round)
			}
		})
	}
}

func wantSpreadOf1012(t *testing.T, watchers []*watcher) {
	t.Helper()
	var first, last time.Time
	for _, v := range watchers {
		v.await("the socket has ended", func(v *watcher) bool { return v.ended != nil })
		if closed := (*websocket.CloseError)(nil); !errors.As(v.end(), &closed) || closed.Code != websocket.CloseServiceRestart {
			t.Errorf("a socket ended with %v, want 1012", v.end())
		}
		if first.IsZero() || v.endedAt.Before(first) {
			first = v.endedAt
		}
		if v.endedAt.After(last) {
			last = v.endedAt
		}
	}
	if spread := last.Sub(first); spread < time.Second {
		t.Errorf("the sockets were closed within %s, want them spread over the drain time", spread)
	}
}
