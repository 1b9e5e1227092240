package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"statusrelay/internal/devbus"
	"statusrelay/internal/servicebus"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// What clients/go sends to Service Bus is byte for byte what the notifier would, and so are the properties around it: of every good
// example and of every recorded update. The module imports nothing of the relay and the relay nothing of it, so that a program
// of its own does the sending.
func TestGoClientSendsWhatTheNotifierSends(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	program := buildGoClient(ctx, t, "./internal/replay")
	updates := corpus(t)
	var lines []string
	for _, m := range updates {
		lines = append(lines, string(input(t, m)))
	}
	theirs, ours := "status", "notifier"
	bus := devbus.New(devbus.Options{Queues: []devbus.Queue{{Name: theirs}, {Name: ours}}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving := make(chan error, 1)
	go func() { serving <- bus.Serve(ctx, l) }()
	defer func() {
		bus.Close()
		if err := <-serving; err != nil {
			t.Error(err)
		}
	}()
	connection := devbus.ConnectionString(l.Addr().String())

	replay := func(updates string, args ...string) error {
		client := exec.CommandContext(ctx, program, args...)
		client.Stdin, client.Env = strings.NewReader(updates), []string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + connection}
		out, err := client.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	half := len(updates) / 2
	for _, err := range []error{
		replay(strings.Join(lines[:half], "\n")),
		replay(strings.Join(lines[half:], "\n"), "lend"), // a sender to the publisher
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := receive(ctx, t, connection, theirs, len(updates))

	publisher, err := servicebus.NewPublisher(servicebus.Options{ConnectionString: connection, Queue: ours, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	out := make([]servicebus.Outgoing, len(updates))
	for i := range updates {
		var event struct {
			ID   string
			Time time.Time
		}
		if err := json.Unmarshal(got[i].Body, &event); err != nil {
			t.Fatal(err)
		}
		m := updates[i]
		if u := &m.Update; u.Generation == nil || u.Sequence == nil {
			m.ID = event.ID // random in both
		}
		out[i] = servicebus.Outgoing{Update: &updates[i].Update, Body: wire.Encode(m, event.Time), Traceparent: m.Traceparent}
	}
	for i, err := range publisher.Publish(ctx, out) {
		if err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
	}
	if err := publisher.Close(ctx); err != nil {
		t.Error(err)
	}
	differ := 0
	for i, want := range receive(ctx, t, connection, ours, len(updates)) {
		if u := &updates[i].Update; u.Generation == nil || u.Sequence == nil {
			if got[i].MessageID == "" || got[i].MessageID == want.MessageID {
				t.Errorf("update %d: message id %q, want a random one", i, got[i].MessageID)
			}
			want.MessageID = got[i].MessageID
		}
		if g, w := envelopeOf(got[i]), envelopeOf(want); !reflect.DeepEqual(g, w) {
			if differ++; differ < 4 {
				t.Errorf("update %d:\ngot  %+v\nwant %+v", i, g, w)
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d of %d messages differ", differ, len(updates))
	}
}

// The client's example brings an order to its end, over both ways that updates can take.
func TestGoClientExampleIsSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.notifier()
	program := buildGoClient(w.ctx, t, "./example")
	for id, args := range map[string][]string{"by-bus": nil, "by-http": {"-notifier", n.base}} {
		example := exec.CommandContext(w.ctx, program, append(args, "-id", id, "-pace", "1ms")...)
		example.Env = []string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + w.serviceBus, "PUBLISHER=" + w.publisher}
		if out, err := example.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", id, err, out)
		}
		k := status.Key{Hub: "demo", InstanceID: id}
		w.until(id+" is completed", func() bool {
			body := string(w.get(r, w.operator, k).body)
			return strings.Contains(body, `"runtimeStatus":"Completed"`) && strings.Contains(body, `"customStatus":{"percent":100,"step":"done"}`)
		})
	}
}

// buildGoClient makes a program of clients/go.
func buildGoClient(ctx context.Context, t *testing.T, dir string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "program")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, dir)
	build.Dir = "../../clients/go"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program
}

// corpus is all that the examples and the recordings say. What the client always adds is there, and positions start at 1.
func corpus(t *testing.T) (all []wire.Message) {
	t.Helper()
	documents, _ := recordings(t)
	files, err := filepath.Glob("../../schemas/examples/good/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, text)
	}
	one := int64(1)
	for _, document := range documents {
		m, err := wire.Decode(document, time.Now())
		if err != nil {
			t.Fatalf("%.100s: %v", document, err)
		}
		m.ID, m.Source = "", ""
		u := &m.Update
		if u.LastUpdatedTime.IsZero() {
			u.LastUpdatedTime = time.Date(2026, 11, 22, 6, 35, 21, 0, time.UTC)
		}
		for _, n := range []**int64{&u.Generation, &u.Sequence} {
			if *n != nil && **n == 0 {
				*n = &one
			}
		}
		all = append(all, m)
	}
	return all
}

// input is an update as the program reads it. Its traceparent travels beside it.
func input(t *testing.T, m wire.Message) []byte {
	t.Helper()
	var event struct{ Data map[string]json.RawMessage }
	if err := json.Unmarshal(wire.Encode(m, time.Now()), &event); err != nil {
		t.Fatal(err)
	}
	if m.Traceparent != "" {
		event.Data["traceparent"] = json.RawMessage(`"` + m.Traceparent + `"`)
	}
	line, err := json.Marshal(event.Data)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// envelopeOf is what must be equal.
func envelopeOf(m *azservicebus.ReceivedMessage) map[string]any {
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	return map[string]any{
		"body": string(m.Body), "id": m.MessageID, "session": text(m.SessionID), "subject": text(m.Subject),
		"contentType": text(m.ContentType), "properties": m.ApplicationProperties,
	}
}

// receive takes so many messages off a queue.
func receive(ctx context.Context, t *testing.T, connection, queue string, n int) (got []*azservicebus.ReceivedMessage) {
	t.Helper()
	client, err := azservicebus.NewClientFromConnectionString(connection, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(context.WithoutCancel(ctx))
	r, err := client.NewReceiverForQueue(queue, &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	if err != nil {
		t.Fatal(err)
	}
	for len(got) < n {
		some, err := r.ReceiveMessages(ctx, n-len(got), nil)
		if err != nil {
			t.Fatalf("%s: after %d of %d: %v", queue, len(got), n, err)
		}
		got = append(got, some...)
	}
	return got
}
