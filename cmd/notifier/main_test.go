package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// programVariable makes this test binary the program, so that tests see what a
// shell sees.
const programVariable = "NOTIFIER_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// run runs the program to its end with nothing in its environment but env.
func run(t *testing.T, env []string, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append([]string{programVariable + "=1"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

const (
	topic        = "status"
	subscription = "relay"
)

// broker serves a topic and returns how to reach it, as the environment has it.
func broker(t *testing.T) (bus *devbus.Bus, env []string, connection string) {
	t.Helper()
	bus = devbus.New(devbus.Options{Topics: []devbus.Topic{{Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}}}}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- bus.Serve(context.WithoutCancel(t.Context()), l) }()
	t.Cleanup(func() {
		if err := bus.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	connection = devbus.ConnectionString(l.Addr().String())
	return bus, []string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + connection}, connection
}

// received takes n messages out of the subscription.
func received(t *testing.T, connection string, n int) (all []servicebus.Message) {
	t.Helper()
	from, err := servicebus.NewReceiver(servicebus.Options{ConnectionString: connection, Topic: topic, Subscription: subscription})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err = from.Run(ctx, func(_ context.Context, batch []servicebus.Message) []error {
		if all = append(all, batch...); len(all) >= n {
			cancel()
		}
		return make([]error, len(batch))
	})
	if err != nil || len(all) != n {
		t.Fatalf("received %d of %d: %v", len(all), n, err)
	}
	return all
}

func decode(t *testing.T, m servicebus.Message) *status.Update {
	t.Helper()
	got, err := wire.Decode(m.Body, time.Now())
	if err != nil {
		t.Fatalf("%v in %s", err, m.Body)
	}
	return &got.Update
}

func total(t *testing.T, bus *devbus.Bus) int64 {
	t.Helper()
	s, err := bus.Stats(topic + "/Subscriptions/" + subscription)
	if err != nil {
		t.Fatal(err)
	}
	return s.TotalEnqueued
}

// Each flag becomes its field, and the message has what the broker goes by.
func TestSendMakesAnUpdateOfFlags(t *testing.T) {
	_, env, connection := broker(t)
	_, stderr, code := run(t, env, "", "send", "--hub", "orders", "--id", "order-4711", "--name", "OrderFulfilment", "--kind", "lifecycle",
		"--status", "failed", "--custom", `{"percent":40}`, "--output", `{"ok":false}`, "--failure-type", "Declined", "--failure-message", "no",
		"--generation", "1700000000000", "--sequence", "7", "--label", "owner=u-1001", "--label", "tenant=contoso")
	if code != 0 || !strings.Contains(stderr, "1 published, 0 refused") {
		t.Fatalf("got code %d, %q", code, stderr)
	}
	m := received(t, connection, 1)[0]
	u := decode(t, m)
	if got, want := fmt.Sprint(u.Key(), u.Name, u.Kind, u.RuntimeStatus, string(u.CustomStatus), string(u.Output), *u.Failure, *u.Generation, *u.Sequence, u.Labels),
		fmt.Sprint("orders/order-4711", "OrderFulfilment", status.KindLifecycle, status.Failed, `{"percent":40}`, `{"ok":false}`,
			status.Failure{Type: "Declined", Message: "no"}, 1700000000000, 7, map[string]string{"owner": "u-1001", "tenant": "contoso"}); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if u.LastUpdatedTime.IsZero() {
		t.Error("the update does not say when it was made")
	}
	if m.ID != "orders/order-4711/1700000000000/lifecycle/7" || m.Subject != "durable.status.v1" || m.ContentType != "application/cloudevents+json" {
		t.Errorf("got message %+v", m)
	}
}

// Arguments and lines are updates in any accepted form; each is judged by itself,
// and the exit code says whether any was refused.
func TestSendReportsWhatIsRefused(t *testing.T) {
	long := `{"instanceId":"long","output":"` + strings.Repeat("x", 300<<10) + `"}`
	lines := strings.Join([]string{
		`{"instanceId":"a","runtimeStatus":"Running"}`,
		`not json c4n4ry`,
		``,
		`{"specversion":"1.0","type":"durable.status.v1","source":"/t","id":"1","data":{"hub":"h","instanceId":"b"}}`,
		`{"instanceId":"c4n4ry/"}`,
		long,
		"{\"instanceId\":\"\xff\"}",
		`{"instanceId":"c","sequence":-1}`,
		`{"instanceId":"d"}`, // without an end of line
	}, "\n")
	bus, env, connection := broker(t)
	stdout, stderr, code := run(t, env, lines, "send")
	if code != 1 || stdout != "" {
		t.Errorf("got code %d and %q on standard output", code, stdout)
	}
	for _, want := range []string{
		"refused update 2: ", "refused update 5: ", "instanceId", "refused update 6: ", "262144 bytes", "refused update 7: ", "UTF-8",
		"refused update 8: ", "sequence", "3 published, 5 refused\n",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	if n := strings.Count(stderr, "refused update"); n != 5 {
		t.Errorf("%d refusals are reported, want 5:\n%s", n, stderr)
	}
	if strings.Contains(stderr, "c4n4ry") || strings.Contains(stderr, devbus.DevelopmentKey) || strings.ContainsAny(stderr, "\x1b\r") {
		t.Errorf("the report has what it should not:\n%q", stderr)
	}
	if n := total(t, bus); n != 3 {
		t.Fatalf("%d messages were published, want 3", n)
	}
	var ids []string
	for _, m := range received(t, connection, 3) {
		ids = append(ids, decode(t, m).Key().String())
	}
	slices.Sort(ids)
	if want := []string{"default/a", "default/d", "h/b"}; !slices.Equal(ids, want) {
		t.Errorf("published %v, want %v", ids, want)
	}

	_, stderr, code = run(t, env, "", "send", "--default-hub", "mine", `{"instanceId":"e"}`, `{"instanceId":""}`, `{"instanceId":"f"}`)
	if code != 1 || !strings.Contains(stderr, "refused update 2: ") || !strings.Contains(stderr, "2 published, 1 refused") {
		t.Errorf("arguments: got code %d, %q", code, stderr)
	}
	for _, m := range received(t, connection, 2) {
		if u := decode(t, m); u.Hub != "mine" {
			t.Errorf("published to hub %s, want mine", u.Hub)
		}
	}
	if _, stderr, code := run(t, env, "\n\n", "send"); code != 0 || !strings.Contains(stderr, "0 published, 0 refused") {
		t.Errorf("nothing to send: got code %d, %q", code, stderr)
	}
}

// Thousands of lines are all there, an instance's in their order.
func TestSendKeepsTheOrderOfAnInstance(t *testing.T) {
	const n, instances = 3000, 3
	var lines strings.Builder
	for i := range n {
		fmt.Fprintf(&lines, "{\"instanceId\":\"i-%d\",\"customStatus\":%d}\n", i%instances, i)
	}
	_, env, connection := broker(t)
	if _, stderr, code := run(t, env, lines.String(), "send"); code != 0 || !strings.Contains(stderr, fmt.Sprintf("%d published, 0 refused", n)) {
		t.Fatalf("got code %d, %q", code, stderr)
	}
	stored := received(t, connection, n)
	slices.SortFunc(stored, func(a, b servicebus.Message) int { return cmp.Compare(a.Sequence, b.Sequence) })
	last := make(map[string]int)
	for _, m := range stored {
		u := decode(t, m)
		var i int
		if err := json.Unmarshal(u.CustomStatus, &i); err != nil {
			t.Fatal(err)
		}
		if before, ok := last[u.InstanceID]; ok && i <= before {
			t.Fatalf("%s: %d after %d", u.InstanceID, i, before)
		}
		last[u.InstanceID] = i
	}
}

// What keeps everything from being sent is said, all of it, and no secret is.
func TestSendSaysWhyItCannot(t *testing.T) {
	const canary = "c4n4ry-key"
	_, env, _ := broker(t)
	nowhere := []string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=" + canary + ";UseDevelopmentEmulator=true"}
	for name, c := range map[string]struct {
		env  []string
		args []string
		want []string
	}{
		"NoConnection":       {nil, []string{"--service-bus-topic", "", "--id", "a"}, []string{"connection_string", "service_bus.topic"}},
		"BrokenConnection":   {[]string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + canary}, []string{"--id", "a"}, []string{"service_bus.connection_string: not of the form"}},
		"SecretAsFlag":       {env, []string{"--service-bus-connection-string", canary}, []string{"unknown flag"}},
		"FlagsAndArguments":  {env, []string{"--id", "a", `{"instanceId":"b"}`}, []string{"one of the two"}},
		"NoJSON":             {env, []string{"--id", "a", "--custom", "40%", "--output", "{"}, []string{"--custom", "--output"}},
		"NoInstance":         {env, []string{"--status", "Running"}, []string{"--id: required"}},
		"TopicThatIsNotHere": {env, []string{"--service-bus-topic", "other", "--id", "a"}, []string{"stopped at update 1: ", "other"}},
		"BrokerAway":         {nowhere, []string{"--id", "a"}, []string{"stopped at update 1: "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, stderr, code := run(t, c.env, "", append([]string{"send"}, c.args...)...)
			if code != 1 {
				t.Errorf("got code %d, want 1: %q", code, stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("no %q in %q", want, stderr)
				}
			}
			if strings.Contains(stderr, canary) && name != "SecretAsFlag" {
				t.Errorf("a secret is said: %q", stderr)
			}
		})
	}
}

// Every mistake of the configuration is reported at once, without secrets.
func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	const canary = "c4n4ry-key"
	env := []string{
		"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + canary, "STATUSRELAY_SERVICE_BUS_NAMESPACE=ns.example.net",
		"STATUSRELAY_RATE=0", "STATUSRELAY_MAX_UPDATES=many", "STATUSRELAY_DEFAULT_HUB=a/b",
	}
	for _, command := range []string{"check-config", "serve"} {
		_, stderr, code := run(t, env, "", command, "--max-body-bytes", "-1", "--drain-timeout", "0s")
		if code != 1 {
			t.Errorf("%s: got code %d", command, code)
		}
		for _, want := range []string{"rate", "max_updates", "default_hub", "max_body_bytes", "drain_timeout", "policy", "auth.issuers", "auth.audiences", "service_bus: exactly one", "service_bus.connection_string: not of the form"} {
			if !strings.Contains(strings.ToLower(stderr), want) {
				t.Errorf("%s does not mention %s:\n%s", command, want, stderr)
			}
		}
		if strings.Contains(stderr, canary) {
			t.Errorf("%s says a secret:\n%s", command, stderr)
		}
	}
	stdout, stderr, code := run(t, env, "", "config")
	if code != 1 || !strings.Contains(stdout, "[redacted]") || strings.Contains(stdout+stderr, canary) {
		t.Errorf("config: got code %d\n%s\n%s", code, stdout, stderr)
	}
}
