package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/certtest"
	"statusrelay/internal/redisstore"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// programVariable makes this test binary the program, so that tests see what a
// shell sees.
const programVariable = "RELAY_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program is the program with arguments and nothing in its environment but env.
func program(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append([]string{programVariable + "=1"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	return cmd
}

// run runs it to its end.
func run(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := program(t, env, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// stack is a running `relay dev --ready-json`.
type stack struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout *bufio.Reader
	line   string // what it printed when everything served

	Dashboard, Relay, Notifier, ServiceBus, Topic, Subscription string
	Tokens                                                      struct{ Operator, Customer, Publisher string }
	Samples                                                     []struct{ Hub, InstanceID string }
}

func startDev(t *testing.T, args ...string) *stack {
	t.Helper()
	s := &stack{t: t, cmd: program(t, nil, append([]string{"dev", "--ready-json", "--addr", "127.0.0.1:0"}, args...)...)}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Stderr = t.Output()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stdout = bufio.NewReader(out)
	if s.line, err = s.stdout.ReadString('\n'); err != nil {
		t.Fatalf("no line: %v", err)
	}
	if err := json.Unmarshal([]byte(s.line), s); err != nil {
		t.Fatalf("%v in %s", err, s.line)
	}
	return s
}

// stop interrupts it and wants it to end well, and to have said nothing more.
func (s *stack) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		s.t.Fatal(err)
	}
	late := time.AfterFunc(5*time.Second, func() {
		s.t.Error("it did not stop within 5 s")
		_ = s.cmd.Process.Kill()
	})
	defer late.Stop()
	rest, err := io.ReadAll(s.stdout)
	if err != nil || len(rest) > 0 {
		s.t.Errorf("standard output has more than one line: %q, %v", rest, err)
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("it ended with %v, want exit code 0", err)
	}
}

func (s *stack) get(url, token string) (code int, body string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return got.StatusCode, string(text)
}

// until waits for something to come true.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	over, every := time.After(30*time.Second), time.NewTicker(20*time.Millisecond)
	defer every.Stop()
	for !cond() {
		select {
		case <-every.C:
		case <-over:
			t.Fatal("in vain: " + what)
		}
	}
}

// Two stacks run beside each other, each prints one line that says all that a
// script needs, and an interrupt ends each of them well.
func TestDevServesWhatItsOneLineSays(t *testing.T) {
	first, second := startDev(t), startDev(t, "--no-samples")
	var promised map[string]json.RawMessage
	if err := json.Unmarshal([]byte(first.line), &promised); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dashboard", "relay", "notifier", "serviceBus", "topic", "subscription", "tokens", "samples"} {
		if len(promised[name]) < 4 { // "x" and more
			t.Errorf("%s is %s", name, promised[name])
		}
	}
	if first.Relay == second.Relay || len(first.Samples) < 4 || len(second.Samples) != 0 {
		t.Errorf("got relays %s and %s, %d and %d samples", first.Relay, second.Relay, len(first.Samples), len(second.Samples))
	}
	if code, body := first.get(first.Dashboard, ""); code != http.StatusOK || !strings.Contains(strings.ToLower(body), "<!doctype html>") {
		t.Errorf("the dashboard: got %d %.100s", code, body)
	}
	own := 0 // samples that the customer may see
	for _, sample := range first.Samples {
		url := first.Relay + "/v1/hubs/" + sample.Hub + "/instances/" + sample.InstanceID
		until(t, "an operator sees "+sample.InstanceID, func() bool {
			code, _ := first.get(url, first.Tokens.Operator)
			return code == http.StatusOK
		})
		if code, body := first.get(url, first.Tokens.Customer); code == http.StatusOK {
			own++
			if strings.Contains(body, "internalCost") || strings.Contains(body, "labels") {
				t.Errorf("a customer is shown %s", body)
			}
		}
	}
	if own == 0 || own == len(first.Samples) {
		t.Errorf("the customer sees %d of %d samples, want some", own, len(first.Samples))
	}

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, second.Notifier+"/v1/updates",
		strings.NewReader(`{"hub":"demo","instanceId":"my-1","runtimeStatus":"Running","labels":{"owner":"u-1001"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+second.Tokens.Publisher)
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	got.Body.Close()
	if got.StatusCode != http.StatusAccepted {
		t.Errorf("publishing: got %d, want 202", got.StatusCode)
	}
	until(t, "the customer sees what was published", func() bool {
		code, _ := second.get(second.Relay+"/v1/hubs/demo/instances/my-1", second.Tokens.Customer)
		return code == http.StatusOK
	})
	if code, _ := first.get(first.Relay+"/v1/hubs/demo/instances/my-1", first.Tokens.Operator); code != http.StatusNotFound {
		t.Errorf("the other stack answers %d for it, want 404", code)
	}
	if code, _ := first.get(first.Relay+"/v1/hubs/demo/instances/my-1", second.Tokens.Operator); code != http.StatusUnauthorized {
		t.Errorf("the other stack's token is answered %d, want 401", code)
	}
	first.stop()
	second.stop()
}

// For people it prints lines that can be pasted, and how to take another address
// when that one is taken.
func TestDevGreetsPeople(t *testing.T) {
	cmd := program(t, nil, "dev", "--addr", "127.0.0.1:0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	greeting := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		greeting += lines.Text() + "\n"
		if strings.Contains(lines.Text(), `"type":"watch"`) {
			break
		}
	}
	for _, want := range []string{"Dashboard    http://localhost:", "export OPERATOR=ey", "curl -si http://127.0.0.1:", "If-None-Match", "Prefer: wait=30", "text/event-stream", "notifier send --hub", "wscat"} {
		if !strings.Contains(greeting, want) {
			t.Errorf("the greeting lacks %q:\n%s", want, greeting)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v, want exit code 0", err)
	}

	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	stdout, stderr, code := run(t, nil, "dev", "--ready-json", "--addr", taken.Addr().String())
	if code != 1 || !strings.Contains(stderr, "--addr") || stdout != "" {
		t.Errorf("a taken address: got code %d, %q, %q", code, stdout, stderr)
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const canary = "c4n4ry-key"

const connectionString = "STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=Endpoint=sb://ns.example.net;SharedAccessKeyName=n;SharedAccessKey=" + canary

// Everything that is wrong is said at once, by serve and check-config alike, with
// where it stands, and no secret is said.
func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	policy := write(t, "policy.yaml", "version: 1\nhubs:\n  a/b:\n    orchestrators: {}\nsurplus: 1\n")
	config := write(t, "relay.yaml", `
default_hub: a/b
drain_timeout: soon
policy: `+policy+`
redis: {addrs: [], ttl: -1h, pasword: x}
watch: {max_sockets: 0}
log: {level: loud}
private_tls: {cert: /nowhere/tls.crt}
`)
	env := []string{connectionString, "STATUSRELAY_SERVICE_BUS_NAMESPACE=ns.example.net", "STATUSRELAY_REDIS_PASSWORD=" + canary}
	for _, command := range []string{"check-config", "serve"} {
		stdout, stderr, code := run(t, env, command, "--config", config)
		if code != 1 || stdout != "" {
			t.Errorf("%s: got code %d and %q", command, code, stdout)
		}
		want := []string{
			"drain_timeout", "pasword", "default_hub", "redis.addrs", "redis.ttl", "watch.max_sockets", "log level", "auth.issuers",
			"auth.audiences", "service_bus: exactly one", "listen: :8080", "private_tls.key",
		}
		if command == "check-config" {
			want = append(want, "line 3", "surplus", "/nowhere/tls.crt")
		}
		for _, w := range want {
			if !strings.Contains(stderr, w) {
				t.Errorf("%s does not mention %s:\n%s", command, w, stderr)
			}
		}
		if strings.Contains(stderr, canary) {
			t.Errorf("%s says a secret:\n%s", command, stderr)
		}
	}
}

// The configuration in force is printed with where each value is from, and
// without secrets; a flag beats the environment, that beats the file.
func TestConfigIsPrintedWithoutSecrets(t *testing.T) {
	config := write(t, "relay.yaml", "listen: 127.0.0.1:1\nprivate_listen: 127.0.0.1:2\ndefault_hub: file\npolicy: "+
		write(t, "policy.yaml", "version: 1\nhubs: {\"*\": {orchestrators: {\"*\": {audiences: []}}}}\n")+"\n")
	env := []string{
		connectionString, "STATUSRELAY_REDIS_PASSWORD=" + canary, "STATUSRELAY_AUTH_ISSUERS=https://issuer.example",
		"STATUSRELAY_AUTH_AUDIENCES=statusrelay", "STATUSRELAY_PRIVATE_LISTEN=127.0.0.1:3", "STATUSRELAY_DEFAULT_HUB=environment",
	}
	stdout, stderr, code := run(t, env, "config", "--config", config, "--default-hub", "flag")
	if code != 0 {
		t.Errorf("got code %d: %s", code, stderr)
	}
	for _, want := range []string{"listen: 127.0.0.1:1 #", "private_listen: 127.0.0.1:3 #", "default_hub: flag #", "subscription: relay # default", "[redacted]"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("it lacks %q:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout+stderr, canary) {
		t.Errorf("a secret is printed:\n%s%s", stdout, stderr)
	}
	if stdout, stderr, code := run(t, env, "check-config", "--config", config); code != 0 || !strings.Contains(stdout, "valid") {
		t.Errorf("check-config: got code %d, %q, %q", code, stdout, stderr)
	}
	if _, stderr, code := run(t, env, "config", "--redis-password", canary); code != 1 || !strings.Contains(stderr, "unknown flag") {
		t.Errorf("a secret as a flag: got code %d, %q", code, stderr)
	}
}

// What was put before a label had an index, and an index that was lost, are put
// back by a program that knows nothing but the configuration.
func TestReindexPutsBackWhatIsMissing(t *testing.T) {
	server := storetest.StartRedis(t)
	store, err := redisstore.New(redisstore.Options{Addrs: []string{server.Addr}, IndexLabels: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var updates []*status.Update
	for _, id := range []string{"a", "b", "c"} {
		updates = append(updates, &status.Update{Hub: "h", InstanceID: id, Kind: status.KindProgress, CustomStatus: json.RawMessage(`1`), Labels: map[string]string{"owner": "u"}})
	}
	if _, errs := store.Put(t.Context(), updates); errors.Join(errs...) != nil {
		t.Fatal(errs)
	}
	const ofHub, ofOwner = "statusrelay:index:{h}", "statusrelay:index:{h/owner/u}"
	server.Do("DEL", ofHub)

	env := []string{
		connectionString, "STATUSRELAY_AUTH_ISSUERS=https://issuer.example", "STATUSRELAY_AUTH_AUDIENCES=statusrelay", "STATUSRELAY_LISTEN=127.0.0.1:0",
		"STATUSRELAY_REDIS_ADDRS=" + server.Addr,
	}
	policy := "policy: " + write(t, "policy.yaml", "version: 1\nhubs: {\"*\": {orchestrators: {\"*\": {audiences: []}}}}\n") + "\n"
	none := write(t, "none.yaml", policy+"redis: {index_labels: []}\n")
	for _, c := range []struct{ config, hub, owner string }{
		{none, "3", "0"},
		{write(t, "relay.yaml", policy), "3", "3"},
	} {
		stdout, stderr, code := run(t, env, "reindex", "--config", c.config)
		if code != 0 || !strings.Contains(stdout, "3 records") {
			t.Errorf("got code %d, %q, %q", code, stdout, stderr)
		}
		if hub, owner := server.Do("ZCARD", ofHub), server.Do("ZCARD", ofOwner); hub != c.hub || owner != c.owner {
			t.Errorf("the hub's list has %s, the owner's %s; want %s and %s", hub, owner, c.hub, c.owner)
		}
	}
	stdout, stderr, code := run(t, env, "reindex", "--config", none, "--redis-index-labels", "owner,owner")
	if code != 1 || !strings.Contains(stderr, "redis.index_labels") {
		t.Errorf("a label twice: got code %d, %q, %q", code, stdout, stderr)
	}
	server.Stop()
	if stdout, stderr, code := run(t, env, "reindex", "--config", none); code != 1 || stdout != "" || stderr == "" {
		t.Errorf("without redis: got code %d, %q, %q", code, stdout, stderr)
	}
}

// Healthcheck says by its exit code whether the replica beside it is ready.
func TestHealthcheckAsksTheReplica(t *testing.T) {
	var ready atomic.Int32
	ready.Store(http.StatusOK)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			ready.Store(http.StatusNotFound)
		}
		w.WriteHeader(int(ready.Load()))
		_, _ = io.WriteString(w, "redis does not answer\n")
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	address := "STATUSRELAY_PRIVATE_LISTEN=" + l.Addr().String()

	if _, stderr, code := run(t, []string{address}, "healthcheck"); code != 0 {
		t.Errorf("ready: got code %d, %q", code, stderr)
	}
	ready.Store(http.StatusServiceUnavailable)
	if _, stderr, code := run(t, []string{address}, "healthcheck"); code != 1 || !strings.Contains(stderr, "redis does not answer") {
		t.Errorf("not ready: got code %d, %q", code, stderr)
	}
	_ = server.Close()
	<-served
	if _, stderr, code := run(t, []string{address}, "healthcheck"); code != 1 || stderr == "" {
		t.Errorf("away: got code %d, %q", code, stderr)
	}
}

// Where the private listener speaks TLS, so does healthcheck, and believes nobody but the certificate that is configured.
func TestW18HealthcheckFollowsTLS(t *testing.T) {
	authority := certtest.New(t)
	own, other := authority.Issue("own"), authority.Issue("other")
	pair, err := tls.LoadX509KeyPair(own.Cert, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ready\n") })}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	for cert, want := range map[string]int{own.Cert: 0, other.Cert: 1, "": 1} {
		env := []string{"STATUSRELAY_PRIVATE_LISTEN=" + l.Addr().String(), "STATUSRELAY_PRIVATE_TLS_CERT=" + cert}
		if _, stderr, code := run(t, env, "healthcheck"); code != want {
			t.Errorf("%q: got code %d, want %d: %s", cert, code, want, stderr)
		}
	}
	_ = server.Close()
	<-served
}

// A program that serves, is hung up on and cannot use what it finds says nothing of its secrets: in the log at its most
// talkative, in the metrics, or in what profiles say of it. And it goes on with what it had.
func TestServingTellsNoSecret(t *testing.T) {
	dir := t.TempDir()
	pair := certtest.New(t).Issue("own")
	policy := filepath.Join(dir, "policy.yaml")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(policy, "version: 1\nhubs: {\"*\": {orchestrators: {\"*\": {audiences: [{name: c4n4ry-key, when: \"'c4n4ry-key' in claims.roles\", see: {}}]}}}}\n")
	private, redis := storetest.FreeAddr(t), storetest.StartRedis(t)
	redis.Do("CONFIG", "SET", "requirepass", "another")
	cmd := program(t, []string{
		"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=" + canary + ";UseDevelopmentEmulator=true",
		"STATUSRELAY_REDIS_PASSWORD=" + canary, "STATUSRELAY_REDIS_ADDRS=" + redis.Addr,
		"STATUSRELAY_AUTH_ISSUERS=http://127.0.0.1:1/issuer", "STATUSRELAY_AUTH_AUDIENCES=statusrelay", "STATUSRELAY_TLS_CERT=" + pair.Cert,
		"STATUSRELAY_TLS_KEY=" + pair.Key, "STATUSRELAY_POLICY=" + policy, "STATUSRELAY_DRAIN_TIMEOUT=1s",
	}, "serve", "--log-level", "debug", "--listen", "127.0.0.1:0", "--private-listen", private)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		got, err := http.Get("http://" + private + path)
		if err != nil {
			return ""
		}
		defer got.Body.Close()
		text, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	until(t, "it serves", func() bool { return read("/healthz") == "ok\n" })
	put(policy, "version: 1\n"+canary+": {")
	put(pair.Key, "-----BEGIN PRIVATE KEY-----\n"+canary+"\n")
	broken := func(kind string) bool {
		return strings.Contains(read("/metrics"), `statusrelay_reload_failures_total{file="`+kind+`"} `) &&
			!strings.Contains(read("/metrics"), `statusrelay_reload_failures_total{file="`+kind+`"} 0`)
	}
	until(t, "it has looked at its files", func() bool {
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		return broken("policy") && broken("tls")
	})
	all := ""
	for _, path := range []string{"/metrics", "/readyz", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"} {
		text := read(path)
		if text == "" {
			t.Errorf("%s is empty", path)
		}
		all += text
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	all += said.String()
	if strings.Contains(all, canary) {
		t.Errorf("a secret is told:\n%s", all)
	}
	for _, want := range []string{"line 2", "file=tls"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing says %q:\n%s", want, said.String())
		}
	}
}

// Development mode has no file to read again, and ends with its terminal.
func TestDevEndsWithItsTerminal(t *testing.T) {
	s := startDev(t, "--no-samples")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err == nil || err.Error() != "signal: hangup" {
		t.Errorf("it ended with %v", err)
	}
}
