package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/dev"
	"statusrelay/internal/status"
)

// startStack runs everything but samples, and returns the environment with which the program reaches it, as an operator.
func startStack(t *testing.T) (s *dev.Stack, env []string) {
	t.Helper()
	s, err := dev.New(t.Context(), dev.Options{NoSamples: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended, ready := make(chan error, 1), make(chan dev.Info, 1)
	go func() { ended <- s.Run(ctx, func(i dev.Info) { ready <- i }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case info := <-ready:
		return s, []string{
			"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + info.ServiceBus, "STATUSRELAY_RELAY=" + info.Relay,
			"STATUSRELAY_RELAY_TOKEN=" + info.Tokens.Operator,
		}
	case err := <-ended:
		t.Fatal(err)
	}
	return nil, nil
}

// A running program, whose results are read line by line.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout *bufio.Scanner
	stderr bytes.Buffer
}

func start(t *testing.T, env []string, args ...string) *running {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	r := &running{t: t, cmd: exec.CommandContext(ctx, os.Args[0], args...)}
	r.cmd.Env = append([]string{programVariable + "=1"}, env...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r.cmd.Stderr = &r.stderr
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.stdout = bufio.NewScanner(out)
	return r
}

// next is the next line that it prints.
func (r *running) next() string {
	r.t.Helper()
	if !r.stdout.Scan() {
		_ = r.cmd.Wait()
		r.t.Fatalf("it ended instead of printing a line, with %v: %s", r.cmd.ProcessState, r.stderr.String())
	}
	return r.stdout.Text()
}

// end waits for its end and returns the exit code and what it printed besides.
func (r *running) end() (rest []string, stderr string, code int) {
	for r.stdout.Scan() {
		rest = append(rest, r.stdout.Text())
	}
	_ = r.cmd.Wait()
	return rest, r.stderr.String(), r.cmd.ProcessState.ExitCode()
}

func publishTo(t *testing.T, s *dev.Stack, u status.Update) {
	t.Helper()
	u.Hub = "default"
	if u.Kind == "" {
		u.Kind = status.KindSnapshot
	}
	if err := s.Publish(t.Context(), &u); err != nil {
		t.Fatal(err)
	}
}

// frame is a line of JSON that the program prints.
type frame struct {
	Type, Hub, InstanceID, Reason, Field, Detail, Error string
	Index, Accepted, Refused                            int
	Version                                             int64
	Status                                              struct {
		RuntimeStatus status.RuntimeStatus
		CustomStatus  json.RawMessage
	}
}

func parse(t *testing.T, line string) (f frame) {
	t.Helper()
	if err := json.Unmarshal([]byte(line), &f); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	return f
}

// What is sent is followed until it ends, and the exit code says how.
func TestSendWatchesToTheEnd(t *testing.T) {
	s, env := startStack(t)
	for state, want := range map[status.RuntimeStatus]int{status.Completed: 0, status.Failed: 3, status.Terminated: 4, status.Canceled: 5} {
		t.Run(string(state), func(t *testing.T) {
			id := "order-" + string(state)
			r := start(t, env, "send", "--id", id, "--status", "Running", "--custom", `{"percent":1}`, "--watch", "--output", "json")
			if f := parse(t, r.next()); f.Type != "sent" || f.Accepted != 1 || f.Refused != 0 {
				t.Errorf("got %+v", f)
			}
			first := parse(t, r.next())
			if first.Type != "status" || first.Hub != "default" || first.InstanceID != id || first.Status.RuntimeStatus != status.Running ||
				string(first.Status.CustomStatus) != `{"percent":1}` || first.Version == 0 {
				t.Errorf("got %+v", first)
			}
			publishTo(t, s, status.Update{InstanceID: id, Kind: status.KindProgress, CustomStatus: json.RawMessage(`{"percent":50}`)})
			if f := parse(t, r.next()); string(f.Status.CustomStatus) != `{"percent":50}` || f.Version <= first.Version {
				t.Errorf("got %+v after %+v", f, first)
			}
			publishTo(t, s, status.Update{InstanceID: id, Kind: status.KindLifecycle, RuntimeStatus: state})
			if f := parse(t, r.next()); f.Status.RuntimeStatus != state {
				t.Errorf("got %+v", f)
			}
			rest, stderr, code := r.end()
			if code != want || len(rest) > 0 || want != 0 != strings.Contains(stderr, "has ended as "+string(state)) {
				t.Errorf("got code %d, %q, %q; want code %d", code, rest, stderr, want)
			}
		})
	}
}

// How an instance had ended before is not how it ends now.
func TestEndBeforeTheUpdateIsNotItsEnd(t *testing.T) {
	s, env := startStack(t)
	if _, stderr, code := run(t, env, "", "send", "--id", "again", "--status", "Failed", "--generation", "1000", "--watch"); code != 3 {
		t.Fatalf("got code %d, %q", code, stderr)
	}
	r := start(t, env, "send", "--id", "again", "--status", "Running", "--generation", "2000", "--watch")
	if line := r.next(); !strings.Contains(line, " default/again Running") {
		t.Errorf("got %q", line)
	}
	generation := int64(2000)
	publishTo(t, s, status.Update{InstanceID: "again", Kind: status.KindPurged, Generation: &generation})
	if rest, stderr, code := r.end(); code != 6 || !slices.Equal(rest, []string{"default/again is gone"}) {
		t.Errorf("got code %d, %q, %q", code, rest, stderr)
	}
	// An update that changes nothing is no end either.
	const once = `{"instanceId":"once","runtimeStatus":"Completed"}`
	if _, stderr, code := run(t, env, "", "send", "--watch", once); code != 0 {
		t.Errorf("got code %d, %q", code, stderr)
	}
	_, stderr, code := run(t, env, "", "send", "--watch", "--patience", "500ms", once)
	if code != 2 || !strings.Contains(stderr, "nothing newer") {
		t.Errorf("got code %d, %q", code, stderr)
	}
}

// One instance is watched, and a text on one line has nothing in it that a terminal obeys.
func TestWatchPrintsALineForEachChange(t *testing.T) {
	s, env := startStack(t)
	publishTo(t, s, status.Update{
		InstanceID: "done", RuntimeStatus: status.Failed, CustomStatus: json.RawMessage(`{"step":"ü` + "\u009b31m\u202e" + `"}`), Output: json.RawMessage(`[1]`),
		Failure: &status.Failure{Type: "Declined", Message: "no"}, LastUpdatedTime: time.Unix(1_700_000_000, 0),
	})
	stdout, stderr, code := run(t, env, "", "watch", "done")
	want := `2023-11-14T22:13:20Z default/done Failed {"step":"ü\u009b31m\u202e"} output=[1] failure={"type":"Declined","message":"no"}` + "\n"
	if code != 3 || stdout != want {
		t.Errorf("got code %d, %q, %q; want %q", code, stdout, stderr, want)
	}
	publishTo(t, s, status.Update{InstanceID: "runs", RuntimeStatus: status.Running})
	stdout, stderr, code = run(t, env, "", "watch", "--hub", "default", "runs", "--timeout", "1s", "--output", "json")
	if f := parse(t, stdout); code != 7 || f.Status.RuntimeStatus != status.Running || !strings.Contains(stderr, "has not ended within 1s") {
		t.Errorf("got code %d, %q, %q", code, stdout, stderr)
	}
}

// What cannot be followed is told by a code of its own, and nothing is published where the relay does not say how it stands.
func TestWhatCannotBeFollowedIsTold(t *testing.T) {
	s, env := startStack(t)
	without := slices.DeleteFunc(slices.Clone(env), func(v string) bool { return strings.HasPrefix(v, "STATUSRELAY_RELAY_TOKEN=") })
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("c4n4ry\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env  []string
		args []string
		code int
		want string
	}{
		"NoToken":       {without, []string{"send", "--id", "a", "--watch"}, 2, "nothing was published: the relay answers 401"},
		"WrongToken":    {without, []string{"send", "--id", "a", "--watch", "--relay-token-file", file}, 2, "401: A valid bearer token"},
		"WatchRefused":  {without, []string{"watch", "a", "--relay-token-file", file}, 2, "401: A valid bearer token"},
		"SendRelayAway": {env, []string{"send", "--id", "a", "--watch", "--relay", "http://127.0.0.1:1"}, 2, "nothing was published: "},
		"NoRelay":       {env[:1], []string{"send", "--id", "a", "--watch"}, 1, "relay: not a URL"},
		"NoInstance":    {env, []string{"watch", "nobody", "--patience", "300ms"}, 2, "no such instance"},
		"RelayAway":     {env, []string{"watch", "a", "--relay", "http://127.0.0.1:1", "--patience", "300ms"}, 2, "refused"},
		"NoArgument":    {env, []string{"watch"}, 1, "accepts 1 arg"},
		"NoInstanceID":  {env, []string{"watch", "a/b", "--hub", "c d"}, 1, "instanceId"},
		"TokenAsFlag":   {env, []string{"watch", "a", "--relay-token", "c4n4ry"}, 1, "unknown flag"},
		"UnknownForm":   {env, []string{"watch", "a", "--output", "xml"}, 1, "want text or json"},
		"NothingToSend": {env, []string{"send", "--watch"}, 1, "nothing was published"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := run(t, c.env, "", c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) || stdout != "" {
				t.Errorf("got code %d, %q, %q; want code %d, %q", code, stdout, stderr, c.code, c.want)
			}
			if strings.Contains(stderr, "c4n4ry") && name != "TokenAsFlag" {
				t.Errorf("the token is said: %q", stderr)
			}
		})
	}
	if stats, err := s.Bus().Stats(topic); err != nil || stats.TotalEnqueued != 0 {
		t.Errorf("%d messages, %v", stats.TotalEnqueued, err)
	}
}

// Updates of a second instance are refused where one is watched, and results are machine-readable.
func TestOnlyOneInstanceIsWatched(t *testing.T) {
	s, env := startStack(t)
	stdout, stderr, code := run(t, env, "{\"instanceId\":\"one\",\"runtimeStatus\":\"Completed\"}\n\n{\"instanceId\":\"two\"}\n{\"instanceId\":\"c4n4ry/\"}\n{\"instanceId\":\"one\",\"customStatus\":1}\n",
		"send", "--watch", "--output", "json")
	var frames []string
	for line := range strings.Lines(stdout) {
		f := parse(t, line)
		frames = append(frames, strings.TrimSpace(fmt.Sprintf("%s %d %d %d %s %s", f.Type, f.Index, f.Accepted, f.Refused, f.Reason, f.Field)))
	}
	if want := []string{"refused 2 0 0 Invalid instanceId", "refused 3 0 0 Invalid instanceId", "sent 0 2 2"}; code != 1 || !slices.Equal(frames, want) {
		t.Errorf("got code %d, %q, %q; want %q", code, frames, stderr, want)
	}
	if stats, err := s.Bus().Stats(topic); err != nil || stats.TotalEnqueued != 2 {
		t.Errorf("%d messages, %v", stats.TotalEnqueued, err)
	}
	if strings.Contains(stdout+stderr, "c4n4ry") {
		t.Errorf("the payload is said: %q %q", stdout, stderr)
	}
	// The words text and json are the form, and everything else is the orchestration's output, as it always was.
	stdout, _, code = run(t, env, "", "send", "--id", "three", "--status", "Completed", "--output", `{"ok":true}`, "--output", "json", "--watch")
	if lines := strings.Split(stdout, "\n"); code != 0 || len(lines) != 3 || !strings.Contains(lines[1], `"output":{"ok":true}`) {
		t.Errorf("got code %d, %q", code, stdout)
	}
	nowhere := []string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=c4n4ry;UseDevelopmentEmulator=true"}
	stdout, stderr, code = run(t, nowhere, "", "send", "--id", "a", "--output", "json")
	if f := parse(t, stdout); code != 1 || f.Type != "sent" || f.Accepted != 0 || f.Error == "" || strings.Contains(stdout+stderr, "c4n4ry") {
		t.Errorf("got code %d, %q", code, stdout)
	}
}

// The shell completes commands and the values of flags.
func TestShellsComplete(t *testing.T) {
	for _, c := range []struct{ words, want string }{
		{"wat", "watch"},
		{"send --kind ", "snapshot progress lifecycle purged"},
		{"send --status ", "Pending Running Completed Failed Canceled Terminated Suspended ContinuedAsNew"},
		{"send --output ", "text json"},
		{"watch --output ", "text json"},
		{"send ", ""},
		{"watch ", ""},
	} {
		words := strings.Split(c.words, " ")
		stdout, stderr, code := run(t, nil, "", append([]string{"__complete"}, words...)...)
		var got []string
		for line := range strings.Lines(stdout) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
			if strings.HasPrefix(word, ":") {
				if word != ":4" { // no files
					t.Errorf("%q: directive %s", c.words, word)
				}
				break
			}
			got = append(got, word)
		}
		if want := strings.Fields(c.want); code != 0 || !slices.Equal(got, want) {
			t.Errorf("%q: got %q, %q, code %d; want %q", c.words, got, stderr, code, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if stdout, stderr, code := run(t, nil, "", "completion", shell); code != 0 || !strings.Contains(stdout, "__complete") {
			t.Errorf("%s: got code %d, %q", shell, code, stderr)
		}
	}
	if stdout, _, _ := run(t, nil, "", "send", "--help"); !strings.Contains(stdout, "notifier completion --help") {
		t.Error("the help does not tell of completion")
	}
}
