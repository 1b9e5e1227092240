package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/goccy/go-yaml"

	"statusrelay/internal/devbus"
	"statusrelay/internal/status"
	"statusrelay/internal/wire"
)

// A kit is one of examples, to be run by a stand-in of the Functions host in kits/.
// A run is one orchestration, replayed from the start at each step, in a process
// that is told by its environment what to do:
//
//	NAME, INSTANCE, INPUT  the orchestrator's name, instance id and input
//	START                  first reading of the orchestration's clock, in unix ms
//	PUBLISH                the activity that is called for PublishStatus: itself, or the one with the output binding
//	REPEAT                 not empty: every activity runs twice, since the host died before it knew
//	UNREACHABLE            how many calls of PublishStatus fail
//
// and prints, one JSON object per line, the messages that the stand-in of an SDK
// or a binding was given (see message), and at last what became of it (see outcome).
type kit struct {
	command []string
	env     []string
}

func csharpKit(w *world) kit {
	made := filepath.Join(w.TempDir(), "kit.exe")
	w.builds("mcs", slices.Concat([]string{"-langversion:7.2", "-warnaserror", "-out:" + made, "kits/Host.cs"}, sources(w, inExamples(w, "csharp"), ".cs"))...)
	return kit{command: []string{w.program("mono"), made}}
}

func javaKit(w *world) kit {
	made := w.TempDir()
	w.builds("javac", slices.Concat([]string{"-Xlint:all,-serial", "-Werror", "-encoding", "UTF-8", "-d", made},
		sources(w, "kits/java", ".java"), sources(w, inExamples(w, "java/src/main/java"), ".java"))...)
	return kit{command: []string{w.program("java"), "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", made, "host.Host"}}
}

func javascriptKit(w *world) kit {
	modules, err := filepath.Abs(filepath.Join(clients, "node_modules"))
	if err != nil {
		w.Fatal(err)
	}
	return kit{
		command: []string{w.program("node"), "kits/host.cjs"},
		env:     []string{"APP=" + inExamples(w, "javascript/src/functions/orders.js"), "NODE_PATH=" + modules},
	}
}

func pythonKit(w *world) kit {
	return kit{
		command: []string{w.program("python3"), "kits/host.py"},
		env:     []string{"APP=" + inExamples(w, "python/function_app.py"), "INGEST="},
	}
}

// inExamples is the path of something in the examples.
func inExamples(w *world, path string) string {
	w.Helper()
	path, err := filepath.Abs(filepath.Join("../../examples", path))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		w.Fatal(err)
	}
	return path
}

// builds runs a compiler.
func (w *world) builds(compiler string, args ...string) {
	w.Helper()
	if out, err := exec.CommandContext(w.ctx, w.program(compiler), args...).CombinedOutput(); err != nil {
		w.Fatalf("%v: %s", err, out)
	}
}

// sources lists the files of a kind below a directory.
func sources(w *world, root, kind string) (all []string) {
	w.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "obj" {
			return fs.SkipDir // of somebody who has built the kit
		}
		if filepath.Ext(path) == kind {
			all = append(all, path)
		}
		return err
	})
	if err != nil || len(all) == 0 {
		w.Fatalf("%d files in %s: %v", len(all), root, err)
	}
	return all
}

// An order is an orchestration of a kit, and what happens to it.
type order struct {
	instance        string
	declined        bool // its card is
	binding, repeat bool
	unreachable     int
	misconfigured   bool // no SDK can connect
}

// A message is what a kit sends. Without the SDK it is a body.
type message struct {
	Body, MessageID, SessionID, Subject, ContentType string
	Properties                                       map[string]string
}

// An outcome is how an orchestration ended, in the eyes of the host.
type outcome struct {
	Ended        string // Completed or Failed
	Error        string
	Output       json.RawMessage
	CustomStatus json.RawMessage
	Episodes     int // how often the orchestrator ran, from its start

	generation int64 // what it had to be
}

const kitHub = "orders" // in every kit's host.json

func kitKey(id string) status.Key { return status.Key{Hub: kitHub, InstanceID: id} }

// newKitWorld is a world in which a second subscription keeps what is sent.
func newKitWorld(t *testing.T) *world {
	return newWorld(t, devbus.New(devbus.Options{Topics: []devbus.Topic{{
		Name: topic, Subscriptions: []devbus.Subscription{{Name: subscription}, {Name: "copy"}},
	}}}))
}

// runs runs an orchestration of a kit to its end and hands its messages to Service Bus.
func (w *world) runs(k kit, o order) (end outcome) {
	w.Helper()
	card := "4711"
	if o.declined {
		card = "declined"
	}
	input, err := json.Marshal(map[string]any{"card": card, "items": []string{"lamp", "rug", "chair"}, "owner": owner, "tenant": "contoso"})
	if err != nil {
		w.Fatal(err)
	}
	end.generation = time.Now().Add(-time.Minute).UnixMilli()
	serviceBus := w.serviceBus
	if o.misconfigured {
		serviceBus = "nonsense"
	}
	publish := "PublishStatus"
	if o.binding {
		publish = "PublishStatusByBinding"
	}
	flag := map[bool]string{true: "yes"}
	cmd := exec.CommandContext(w.ctx, k.command[0], k.command[1:]...)
	cmd.Env = slices.Concat([]string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=Asia/Tokyo", "ServiceBus=" + serviceBus,
		"NAME=OrderFulfilment", "INSTANCE=" + o.instance, "INPUT=" + string(input), "START=" + strconv.FormatInt(end.generation, 10),
		"PUBLISH=" + publish, "REPEAT=" + flag[o.repeat], "UNREACHABLE=" + strconv.Itoa(o.unreachable),
	}, k.env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complained strings.Builder
	cmd.Stderr = &complained
	out, err := cmd.Output()
	if err != nil {
		w.Fatalf("%v: %s%s", err, out, complained.String())
	}
	lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
	for _, line := range lines[:len(lines)-1] {
		if err := w.publish(parse[message](w, line)); err != nil {
			w.Fatal(err)
		}
	}
	last := parse[outcome](w, lines[len(lines)-1])
	last.generation = end.generation
	if last.Ended == "" {
		w.Fatalf("it did not end: %s%s", out, complained.String())
	}
	return last
}

// publish sends a message as an SDK or a binding would.
func (w *world) publish(m message) error {
	given := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	properties := make(map[string]any)
	for name, value := range m.Properties {
		properties[name] = value
	}
	client, err := azservicebus.NewClientFromConnectionString(w.serviceBus, nil)
	if err != nil {
		return err
	}
	defer client.Close(w.ctx)
	to, err := client.NewSender(topic, nil)
	if err != nil {
		return err
	}
	return to.SendMessage(w.ctx, &azservicebus.Message{
		Body: []byte(m.Body), MessageID: given(m.MessageID), SessionID: given(m.SessionID), Subject: given(m.Subject),
		ContentType: given(m.ContentType), ApplicationProperties: properties,
	}, nil)
}

// copies takes what has been sent out of the other subscription.
func (w *world) copies() (all []*azservicebus.ReceivedMessage) {
	w.Helper()
	held, err := w.bus.Stats(topic + "/Subscriptions/copy")
	if err != nil {
		w.Fatal(err)
	}
	client, err := azservicebus.NewClientFromConnectionString(w.serviceBus, nil)
	if err != nil {
		w.Fatal(err)
	}
	defer client.Close(w.ctx)
	from, err := client.NewReceiverForSubscription(topic, "copy", &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	if err != nil {
		w.Fatal(err)
	}
	for len(all) < held.Active {
		some, err := from.ReceiveMessages(w.ctx, held.Active-len(all), nil)
		if err != nil {
			w.Fatal(err)
		}
		all = append(all, some...)
	}
	return all
}

// A said is what an update says, but for the time.
type said struct {
	generation, sequence int64
	kind                 status.Kind
	runtimeStatus        status.RuntimeStatus
	customStatus         string
}

// says reads messages, each by its body alone.
func (w *world) says(messages []*azservicebus.ReceivedMessage) (all []said) {
	w.Helper()
	for _, m := range messages {
		got, err := wire.Decode(m.Body, time.Now())
		if err != nil {
			w.Fatalf("%v: %s", err, m.Body)
		}
		u := got.Update
		if u.Generation == nil || u.Sequence == nil || u.Name != "OrderFulfilment" || u.Hub != kitHub || u.LastUpdatedTime.IsZero() ||
			!maps.Equal(u.Labels, map[string]string{"owner": owner, "tenant": "contoso"}) {
			w.Errorf("something is missing in %s", m.Body)
			continue
		}
		if want := fmt.Sprintf("%s/%d/%s/%d", u.Key(), *u.Generation, u.Kind, *u.Sequence); got.ID != want || got.Source == "" {
			w.Errorf("got the event %q of %q, want %q", got.ID, got.Source, want)
		}
		all = append(all, said{*u.Generation, *u.Sequence, u.Kind, u.RuntimeStatus, string(u.CustomStatus)})
	}
	return all
}

// wholeOrder is what is said of an order that completes, in this order.
func wholeOrder(generation int64) []said {
	return []said{
		{generation, 1000, status.KindSnapshot, status.Running, `{"percent":10,"step":"charge"}`},
		{generation, 2000, status.KindProgress, "", `{"percent":40,"step":"pack"}`},
		{generation, 3001, status.KindProgress, "", `{"percent":56,"step":"pack"}`},
		{generation, 3002, status.KindProgress, "", `{"percent":73,"step":"pack"}`},
		{generation, 3003, status.KindProgress, "", `{"percent":90,"step":"pack"}`},
		{generation, 4000, status.KindSnapshot, status.Completed, `{"percent":100,"step":"done"}`},
	}
}

// recordEnds waits until a record is as the orchestrator said at last, and returns it.
func (w *world) recordEnds(r *replica, k status.Key, want status.RuntimeStatus) (v view) {
	w.Helper()
	w.until(fmt.Sprintf("%s is %s", k, want), func() bool {
		got := w.get(r, w.operator, k)
		if got.code != http.StatusOK {
			return false
		}
		v = w.view(got.body)
		return v.RuntimeStatus == string(want)
	})
	return v
}

// What the kits of examples publish is right: however often an orchestrator is
// replayed and an activity is repeated, and whatever way the messages take.
func TestKits(t *testing.T) {
	for name, ready := range map[string]func(*world) kit{
		"csharp": csharpKit, "java": javaKit, "javascript": javascriptKit, "python": pythonKit,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := ready(&world{TB: t, ctx: t.Context()})
			for name, test := range map[string]func(*world, *replica, kit){
				"TellsAnOrderToItsEnd":       kitTellsAnOrderToItsEnd,
				"RepeatsItsPositions":        kitRepeatsItsPositions,
				"TellsAFailureAndRaisesIt":   kitTellsAFailureAndRaisesIt,
				"IsRightByTheBodyAlone":      kitIsRightByTheBodyAlone,
				"TriesAgain":                 kitTriesAgain,
				"GoesOnWhenNobodyCanBeTold":  kitGoesOnWhenNobodyCanBeTold,
				"FitsIdsIntoWhatABrokerTake": kitFitsIDsIntoWhatABrokerTakes,
			} {
				t.Run(name, func(t *testing.T) {
					w := newKitWorld(t)
					test(w, w.relay(nil), k)
				})
			}
		})
	}
}

// An order is told from the first report to the last, which says Completed, and its
// owner follows it on a socket. The orchestrator ran from its start at every step.
func kitTellsAnOrderToItsEnd(w *world, r *replica, k kit) {
	key := kitKey("order-1")
	watcher := w.watch(r, w.customer, key)
	end := w.runs(k, order{instance: key.InstanceID})
	if end.Ended != "Completed" || !strings.Contains(string(end.Output), "parcel of 3") || end.Episodes < 6 ||
		!jsonEqual(end.CustomStatus, `{"percent":100,"step":"done"}`) {
		w.Errorf("the orchestration: got %+v", end)
	}
	watcher.sees(key, 100)
	v := w.recordEnds(r, key, status.Completed)
	if v.Name != "OrderFulfilment" || v.Partial || !jsonEqual(v.CustomStatus, `{"percent":100,"step":"done"}`) ||
		!jsonEqual(v.Output, `{"parcel":"parcel of 3"}`) || v.Labels["owner"] != owner || v.Labels["tenant"] != "contoso" {
		w.Errorf("the record: got %+v", v)
	}
	if f := watcher.last(key); w.view(f.Status).RuntimeStatus != "Completed" {
		w.Errorf("the owner's last frame: got %s", f.Status)
	}
	if got := w.get(r, w.token("somebody", "customer", time.Hour), key); got.code != http.StatusNotFound {
		w.Errorf("somebody else: got %d, want 404", got.code)
	}

	messages := w.copies()
	if got, want := w.says(messages), wholeOrder(end.generation); !slices.Equal(got, want) {
		w.Errorf("got\n%v, want\n%v", got, want)
	}
	for _, m := range messages {
		u, _ := wire.Decode(m.Body, time.Now())
		if m.MessageID != u.ID || m.SessionID == nil || *m.SessionID != key.String() || m.Subject == nil || *m.Subject != wire.Type ||
			m.ContentType == nil || *m.ContentType != "application/cloudevents+json" ||
			m.ApplicationProperties["hub"] != kitHub || m.ApplicationProperties["name"] != "OrderFulfilment" {
			w.Errorf("around %s: got %+v", m.Body, m)
		}
	}
}

// Activities that run twice say the same at the same positions, and the record is
// the same, in whatever order all that arrives.
func kitRepeatsItsPositions(w *world, r *replica, k kit) {
	key := kitKey("order-1")
	end := w.runs(k, order{instance: key.InstanceID, repeat: true})
	w.settled()
	before := w.recordEnds(r, key, status.Completed)
	messages := w.copies()
	got, want := w.says(messages), wholeOrder(end.generation)
	if len(got) != 2*len(want) {
		w.Errorf("got %d messages, want each twice", len(got))
	}
	for _, s := range want {
		if n := len(slices.DeleteFunc(slices.Clone(got), func(g said) bool { return g != s })); n != 2 {
			w.Errorf("got %v %d times, want it twice, in\n%v", s, n, got)
		}
	}

	// The same again, last first, as of another instance.
	again := kitKey("order-2")
	slices.Reverse(messages)
	var bodies [][]byte
	for _, m := range messages {
		u, err := wire.Decode(m.Body, time.Now())
		if err != nil {
			w.Fatal(err)
		}
		bodies = append(bodies, m.Body)
		u.Update.InstanceID, u.ID = again.InstanceID, ""
		bodies = append(bodies, wire.Encode(u, time.Now()))
	}
	w.sender()(bodies...)
	w.settled()
	for _, key := range []status.Key{key, again} {
		after := w.recordEnds(r, key, status.Completed)
		if !bytes.Equal(after.CustomStatus, before.CustomStatus) || !bytes.Equal(after.Output, before.Output) || after.Partial {
			w.Errorf("%s: got %+v, want as before %+v", key, after, before)
		}
	}
	if after := w.recordEnds(r, key, status.Completed); after.Version != before.Version {
		w.Errorf("what was known already made version %d of %d", after.Version, before.Version)
	}
}

// A step that fails is told, with what was reached before, and fails the orchestration.
func kitTellsAFailureAndRaisesIt(w *world, r *replica, k kit) {
	key := kitKey("order-1")
	end := w.runs(k, order{instance: key.InstanceID, declined: true})
	if end.Ended != "Failed" || !strings.Contains(end.Error, "card declined") {
		w.Errorf("the orchestration: got %+v", end)
	}
	v := w.recordEnds(r, key, status.Failed)
	if v.percent() != 10 || !strings.Contains(string(v.Failure), "card declined") || len(v.Output) > 0 {
		w.Errorf("the record: got %+v with %s", v, v.Failure)
	}
	want := append(wholeOrder(end.generation)[:1], said{end.generation, 2000, status.KindLifecycle, status.Failed, ""})
	if got := w.says(w.copies()); !slices.Equal(got, want) {
		w.Errorf("got\n%v, want\n%v", got, want)
	}
}

// An output binding sends the body alone, and that is enough.
func kitIsRightByTheBodyAlone(w *world, r *replica, k kit) {
	key := kitKey("order-1")
	end := w.runs(k, order{instance: key.InstanceID, binding: true})
	v := w.recordEnds(r, key, status.Completed)
	if end.Ended != "Completed" || v.percent() != 100 || v.Partial || v.Labels["owner"] != owner {
		w.Errorf("got %+v and %+v", end, v)
	}
	bare := 0
	for _, m := range w.copies() {
		if m.SessionID == nil && m.Subject == nil && m.ContentType == nil && len(m.ApplicationProperties) == 0 {
			bare++
		}
	}
	if bare != 3 {
		w.Errorf("%d messages are a body alone, want those of PublishStatus", bare)
	}
}

// A report that fails is tried again, at the same position.
func kitTriesAgain(w *world, r *replica, k kit) {
	key := kitKey("order-1")
	end := w.runs(k, order{instance: key.InstanceID, unreachable: 2})
	w.recordEnds(r, key, status.Completed)
	if got, want := w.says(w.copies()), wholeOrder(end.generation); end.Ended != "Completed" || !slices.Equal(got, want) {
		w.Errorf("it ended with %+v: got\n%v, want\n%v", end, got, want)
	}
}

// Reports and ticks that never get through neither fail an order nor hide why one failed.
func kitGoesOnWhenNobodyCanBeTold(w *world, _ *replica, k kit) {
	if end := w.runs(k, order{instance: "order-1", misconfigured: true}); end.Ended != "Completed" || !strings.Contains(string(end.Output), "parcel of 3") {
		w.Errorf("got %+v", end)
	}
	if end := w.runs(k, order{instance: "order-2", misconfigured: true, declined: true}); end.Ended != "Failed" || !strings.Contains(end.Error, "card declined") {
		w.Errorf("got %+v", end)
	}
	if n := len(w.copies()); n != 0 {
		w.Errorf("%d messages got through", n)
	}
}

// Instance ids may be longer than the broker's, and hold what JSON escapes.
func kitFitsIDsIntoWhatABrokerTakes(w *world, r *replica, k kit) {
	key := kitKey(`Größe "17" <b>&'+` + strings.Repeat("订", 239))
	end := w.runs(k, order{instance: key.InstanceID})
	w.recordEnds(r, key, status.Completed)
	messages := w.copies()
	if got, want := w.says(messages), wholeOrder(end.generation); !slices.Equal(got, want) {
		w.Errorf("got\n%v, want\n%v", got, want)
	}
	for _, m := range messages {
		u, _ := wire.Decode(m.Body, time.Now())
		if m.MessageID != fit(u.ID) || m.SessionID == nil || *m.SessionID != fit(key.String()) {
			w.Errorf("got the ids %q and %v, want hashes of %q and %q", m.MessageID, m.SessionID, u.ID, key)
		}
	}
}

// Python can post to the notifier instead, which sets around a body what the SDK's
// users set themselves.
func TestKitPostsToTheNotifier(t *testing.T) {
	t.Parallel()
	w := newKitWorld(t)
	r, n := w.relay(nil), w.notifier()
	ingest := pythonKit(w)
	ingest.env = append(ingest.env, "INGEST=yes", "STATUSRELAY_NOTIFIER="+n.base, "STATUSRELAY_TOKEN="+w.publisher)
	kitTellsAnOrderToItsEnd(w, r, ingest)
	kitFitsIDsIntoWhatABrokerTakes(w, r, ingest)

	n.stop()
	ingest.env[len(ingest.env)-1] = "STATUSRELAY_TOKEN=" + w.customer
	kitGoesOnWhenNobodyCanBeTold(w, r, ingest)
	m := w.notifier()
	ingest.env[len(ingest.env)-2] = "STATUSRELAY_NOTIFIER=" + m.base // which refuses the customer
	kitGoesOnWhenNobodyCanBeTold(w, r, ingest)
}

// A Dapr Workflow publishes through its sidecar, which adds to the event what it
// always adds, and sets of what is around it what the workflow says.
func TestDaprWorkflowPublishesThroughItsSidecar(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*world, *replica, kit){
		"IsTold":                   daprIsTold,
		"RepeatsItsPositions":      kitRepeatsItsPositions,
		"TellsAFailureAndRaisesIt": kitTellsAFailureAndRaisesIt,
		"TriesAgain":               kitTriesAgain,
		"GoesOnWhenNobodyCanBeTold": func(w *world, r *replica, k kit) {
			k.env = append(k.env, "DAPR_HTTP_PORT=1")
			kitGoesOnWhenNobodyCanBeTold(w, r, k)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newKitWorld(t)
			_, port, err := net.SplitHostPort(w.sidecar())
			if err != nil {
				t.Fatal(err)
			}
			test(w, w.relay(nil), kit{
				command: []string{w.program("python3"), "kits/host.py"},
				env:     []string{"APP=" + inExamples(w, "dapr/workflow.py"), "INGEST=", "DAPR_HTTP_PORT=" + port},
			})
		})
	}
}

func daprIsTold(w *world, r *replica, k kit) {
	key := kitKey(`Größe "17" & Co+` + strings.Repeat("订", 239))
	watcher := w.watch(r, w.customer, key)
	end := w.runs(k, order{instance: key.InstanceID})
	watcher.sees(key, 100)
	v := w.recordEnds(r, key, status.Completed)
	if end.Ended != "Completed" || v.Partial || !jsonEqual(v.Output, `{"parcel":"parcel of 3"}`) {
		w.Errorf("got %+v and %+v", end, v)
	}
	messages := w.copies()
	if got, want := w.says(messages), wholeOrder(end.generation); !slices.Equal(got, want) {
		w.Errorf("got\n%v, want\n%v", got, want)
	}
	for _, m := range messages {
		u, _ := wire.Decode(m.Body, time.Now())
		if m.MessageID != fit(u.ID) || m.SessionID == nil || *m.SessionID != fit(key.String()) || u.Traceparent == "" {
			w.Errorf("got %+v", m)
		}
	}
}

// sidecar serves Dapr's HTTP API of publishing, with the component of the example.
func (w *world) sidecar() (addr string) {
	w.Helper()
	text, err := os.ReadFile(inExamples(w, "dapr/statusrelay.yaml"))
	if err != nil {
		w.Fatal(err)
	}
	var component struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			Type, Version string
			Metadata      []struct{ Name, Value string }
		}
		Scopes []string
	}
	if err := yaml.UnmarshalWithOptions(text, &component, yaml.Strict()); err != nil {
		w.Fatal(err)
	}
	if component.APIVersion != "dapr.io/v1alpha1" || component.Kind != "Component" || component.Spec.Type != "pubsub.azure.servicebus.topics" ||
		component.Spec.Version != "v1" || len(component.Scopes) == 0 {
		w.Fatalf("got the component %+v", component)
	}
	for _, m := range component.Spec.Metadata {
		if !slices.Contains([]string{"namespaceName", "disableEntityManagement"}, m.Name) || m.Value == "" {
			w.Fatalf("Dapr knows no %q", m.Name)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var event map[string]any
		if r.Method != http.MethodPost || r.URL.Path != "/v1.0/publish/"+component.Metadata.Name+"/"+topic ||
			r.Header.Get("Content-Type") != "application/cloudevents+json" || json.NewDecoder(r.Body).Decode(&event) != nil {
			http.Error(rw, "", http.StatusBadRequest)
			return
		}
		trace := "00-113ad9c4e42b27583ae98ba698d54255-e3743e35ff56f219-01"
		maps.Copy(event, map[string]any{
			"pubsubname": component.Metadata.Name, "topic": topic, "traceid": trace, "traceparent": trace, "tracestate": "",
		})
		body, err := json.Marshal(event)
		if err == nil {
			q := r.URL.Query()
			err = w.publish(message{Body: string(body), MessageID: q.Get("metadata.MessageId"), SessionID: q.Get("metadata.SessionId")})
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		rw.WriteHeader(http.StatusNoContent)
	}))
	w.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// What stands beside the code of a kit can be read, and agrees with it.
func TestKitSettings(t *testing.T) {
	w := &world{TB: t, ctx: t.Context()}
	read := func(path string) []byte {
		text, err := os.ReadFile(inExamples(w, path))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for name, runtime := range map[string]string{"csharp": "dotnet-isolated", "java": "java", "javascript": "node", "python": "python"} {
		host := parse[struct {
			Version    string
			Extensions struct{ DurableTask struct{ HubName string } }
		}](w, read(name+"/host.json"))
		if host.Version != "2.0" || host.Extensions.DurableTask.HubName != kitHub {
			t.Errorf("%s: host.json says %+v", name, host)
		}
		settings := parse[struct{ Values map[string]string }](w, read(name+"/local.settings.template.json"))
		if want := map[string]string{
			"FUNCTIONS_WORKER_RUNTIME": runtime, "AzureWebJobsStorage": "UseDevelopmentStorage=true",
			"ServiceBus__fullyQualifiedNamespace": "YOUR-NAMESPACE.servicebus.windows.net",
		}; !maps.Equal(settings.Values, want) {
			t.Errorf("%s: got the settings %v, want %v", name, settings.Values, want)
		}
	}
	for _, path := range []string{"csharp/Kit.csproj", "java/pom.xml"} {
		if err := xml.Unmarshal(read(path), new(struct{})); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}

	// The JavaScript kit asks for what it was run with.
	asked := parse[struct{ Dependencies map[string]string }](w, read("javascript/package.json")).Dependencies
	for module, want := range asked {
		text, err := os.ReadFile(filepath.Join(clients, "node_modules", module, "package.json"))
		if module == "@azure/identity" && errors.Is(err, fs.ErrNotExist) {
			continue // nobody here would know it
		}
		if err != nil {
			t.Fatal(err)
		}
		major, _, _ := strings.Cut(strings.TrimPrefix(want, "^"), ".")
		if got := parse[struct{ Version string }](w, text).Version; !strings.HasPrefix(got, major+".") {
			t.Errorf("it asks for %s %s and was run with %s", module, want, got)
		}
	}
}

// fit is what takes the place of an id that is too long for a broker.
func fit(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}

func jsonEqual(got json.RawMessage, want string) bool {
	var a, b any
	return json.Unmarshal(got, &a) == nil && json.Unmarshal([]byte(want), &b) == nil && fmt.Sprint(a) == fmt.Sprint(b)
}
