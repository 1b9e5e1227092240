package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/gorilla/websocket"

	"statusrelay/internal/apitest"
	"statusrelay/internal/status"
)

const hub = "e2e"

// generation of the instances of these tests.
const generation = 1_700_000_000_000

func key(id string) status.Key { return status.Key{Hub: hub, InstanceID: id} }

// progress is a bare update of an instance that belongs to the customer.
func progress(id string, sequence, percent int) string {
	return fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"sequence":%d,"kind":"progress",`+
		`"customStatus":{"percent":%d,"step":"s","note":"for operators"},"labels":{"owner":%q}}`, hub, id, generation, sequence, percent, owner)
}

// An answer is what an HTTP request was answered with.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

// do makes a request. Headers are names and values in turn.
func (w *world) do(method, url, token string, body io.Reader, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(w.ctx, method, url, body)
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	got, err := w.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err == nil && strings.HasPrefix(r.URL.Path, "/v1/") { // the private listener has no document
		w.api.Response(w, r, got.StatusCode, got.Header, text)
	}
	return answer{got.StatusCode, got.Header, bytes.TrimSuffix(text, []byte("\n"))}, err // which is for terminals
}

func instanceURL(r *replica, k status.Key) string {
	return r.base + "/v1/hubs/" + k.Hub + "/instances/" + url.PathEscape(k.InstanceID)
}

// get reads the status of an instance.
func (w *world) get(r *replica, token string, k status.Key, headers ...string) answer {
	w.Helper()
	got, err := w.do(http.MethodGet, instanceURL(r, k), token, nil, headers...)
	if err != nil {
		w.Fatal(err)
	}
	return got
}

// A view is what the tests look at in one.
type view struct {
	Hub, InstanceID, Name, RuntimeStatus string
	CustomStatus                         json.RawMessage
	Output, Failure                      json.RawMessage
	Partial                              bool
	Labels                               map[string]string
	Version                              int64
}

// percent is the progress that a view shows, -1 if it shows none.
func (v view) percent() int {
	var custom struct{ Percent *int }
	if json.Unmarshal(v.CustomStatus, &custom) != nil || custom.Percent == nil {
		return -1
	}
	return *custom.Percent
}

func (w *world) view(text []byte) (v view) {
	w.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		w.Fatalf("%v in %s", err, text)
	}
	return v
}

// shows waits until a GET by the operator shows a progress.
func (w *world) shows(r *replica, k status.Key, percent int) {
	w.Helper()
	w.until(fmt.Sprintf("%s shows %d", k, percent), func() bool {
		got, err := w.do(http.MethodGet, instanceURL(r, k), w.operator, nil)
		return err == nil && got.code == http.StatusOK && w.view(got.body).percent() == percent
	})
}

// post publishes through a notifier and wants 202.
func (w *world) post(n *replica, body string) {
	w.Helper()
	got, err := w.do(http.MethodPost, n.base+"/v1/updates", w.publisher, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	if got.code != http.StatusAccepted {
		w.Fatalf("got %d %s, want 202", got.code, got.body)
	}
}

// records is how many records Redis has.
func (w *world) records() int {
	names := w.redis.Do("KEYS", "statusrelay:{*")
	return len(strings.Fields(names))
}

// metric is the sum of a metric over its labels.
func (w *world) metric(r *replica, name string) (sum float64) {
	w.Helper()
	got, err := w.do(http.MethodGet, r.private+"/metrics", "", nil)
	if err != nil {
		w.Fatal(err)
	}
	found := false
	for lines := bufio.NewScanner(bytes.NewReader(got.body)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || strings.SplitN(words[0], "{", 2)[0] != name {
			continue
		}
		value, err := strconv.ParseFloat(words[len(words)-1], 64)
		if err != nil {
			w.Fatal(err)
		}
		found = true
		sum += value
	}
	if !found {
		w.Fatalf("there is no metric %s", name)
	}
	return sum
}

// sender returns what sends bodies to the topic as an output binding does, with
// nothing but the body, through the SDK.
func (w *world) sender() (send func(bodies ...[]byte)) {
	w.Helper()
	client, err := azservicebus.NewClientFromConnectionString(w.serviceBus, nil)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = client.Close(w.ctx) }) // the test's context has ended: nothing is left to say
	to, err := client.NewSender(topic, nil)
	if err != nil {
		w.Fatal(err)
	}
	flush := func(batch *azservicebus.MessageBatch) {
		if batch.NumMessages() > 0 {
			if err := to.SendMessageBatch(w.ctx, batch, nil); err != nil {
				w.Fatal(err)
			}
		}
	}
	return func(bodies ...[]byte) {
		w.Helper()
		batch, err := to.NewMessageBatch(w.ctx, nil)
		if err != nil {
			w.Fatal(err)
		}
		for _, body := range bodies {
			m := &azservicebus.Message{Body: body}
			err := batch.AddMessage(m, nil)
			if errors.Is(err, azservicebus.ErrMessageTooLarge) {
				flush(batch)
				if batch, err = to.NewMessageBatch(w.ctx, nil); err != nil {
					w.Fatal(err)
				}
				if err = batch.AddMessage(m, nil); errors.Is(err, azservicebus.ErrMessageTooLarge) {
					err = to.SendMessage(w.ctx, m, nil) // alone it has no envelope around it
				}
			}
			if err != nil {
				w.Fatal(err)
			}
		}
		flush(batch)
	}
}

// send sends bodies with a sender of their own.
func (w *world) send(bodies ...string) {
	w.Helper()
	raw := make([][]byte, len(bodies))
	for i, b := range bodies {
		raw[i] = []byte(b)
	}
	w.sender()(raw...)
}

// A deadLetter is a message that was refused.
type deadLetter struct {
	body        string
	reason      status.Reason
	description string
	deliveries  uint32
}

// deadLetters takes n messages out of the dead-letter queue.
func (w *world) deadLetters(n int) (all []deadLetter) {
	w.Helper()
	client, err := azservicebus.NewClientFromConnectionString(w.serviceBus, nil)
	if err != nil {
		w.Fatal(err)
	}
	defer client.Close(w.ctx)
	from, err := client.NewReceiverForSubscription(topic, subscription, &azservicebus.ReceiverOptions{
		SubQueue: azservicebus.SubQueueDeadLetter, ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete,
	})
	if err != nil {
		w.Fatal(err)
	}
	for len(all) < n {
		got, err := from.ReceiveMessages(w.ctx, n-len(all), nil)
		if err != nil {
			w.Fatalf("got %d of %d dead letters: %v", len(all), n, err)
		}
		for _, m := range got {
			d := deadLetter{body: string(m.Body), deliveries: m.DeliveryCount}
			if m.DeadLetterReason != nil {
				d.reason = status.Reason(*m.DeadLetterReason)
			}
			if m.DeadLetterErrorDescription != nil {
				d.description = *m.DeadLetterErrorDescription
			}
			all = append(all, d)
		}
	}
	return all
}

// A frame is one from the relay.
type frame struct {
	Type, Ref, Hub, InstanceID, Title string
	Version                           int64
	Status                            json.RawMessage
}

// A watcher is a WebSocket client. It fails its test when the versions of an
// instance do not grow.
type watcher struct {
	*world
	conn *websocket.Conn

	mu      sync.Mutex
	changed chan struct{}        // closed at the next frame
	newest  map[status.Key]frame // status or gone
	frames  int                  // status and gone
	raw     strings.Builder      // all that it was sent, when the world keeps that
	each    func([]byte)         // is given every frame, if there is one
	ended   error                // why there are no more frames
	endedAt time.Time
}

// watch opens a socket and watches instances on it.
func (w *world) watch(r *replica, token string, keys ...status.Key) *watcher {
	w.Helper()
	return w.watchAfter(r, token, nil, keys...)
}

// watchAfter is watch by a client that has the versions of after already.
func (w *world) watchAfter(r *replica, token string, after map[status.Key]int64, keys ...status.Key) *watcher {
	w.Helper()
	v := w.dial(r, token)
	instances := make([]map[string]any, len(keys))
	for i, k := range keys {
		instances[i] = map[string]any{"hub": k.Hub, "instanceId": k.InstanceID, "after": after[k]}
	}
	watch := map[string]any{"type": "watch", "ref": "1", "instances": instances}
	if err := v.conn.WriteJSON(watch); err != nil {
		w.Fatal(err)
	}
	return v
}

func (w *world) dial(r *replica, token string) *watcher {
	w.Helper()
	dialer := websocket.Dialer{Subprotocols: []string{"status.v1.json"}, TLSClientConfig: w.tls}
	conn, _, err := dialer.DialContext(w.ctx, "ws"+strings.TrimPrefix(r.base, "http")+"/v1/watch",
		http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		w.Fatal(err)
	}
	v := &watcher{world: w, conn: conn, changed: make(chan struct{}), newest: make(map[status.Key]frame)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		v.read()
	}()
	w.Cleanup(func() {
		_ = conn.Close()
		<-read
	})
	return v
}

func (v *watcher) read() {
	for {
		_, text, err := v.conn.ReadMessage()
		v.mu.Lock()
		if err == nil {
			err = v.accept(text)
		}
		if v.ended = err; err != nil {
			v.endedAt = time.Now()
		}
		close(v.changed)
		v.changed = make(chan struct{})
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (v *watcher) accept(text []byte) error {
	if v.keepRaw {
		v.raw.Write(text)
	}
	if v.each != nil {
		v.each(text)
	}
	if err := v.api.CheckFrame("status.v1.json", apitest.Server, text); err != nil {
		return fmt.Errorf("not as asyncapi.yaml has it: %w in %s", err, text)
	}
	var f frame
	if err := json.Unmarshal(text, &f); err != nil {
		return fmt.Errorf("%w in %s", err, text)
	}
	switch f.Type {
	case "status", "gone":
		k := status.Key{Hub: f.Hub, InstanceID: f.InstanceID}
		if old := v.newest[k].Version; f.Version <= old {
			v.Errorf("%s: version %d after %d", k, f.Version, old)
		}
		v.newest[k] = f
		v.frames++
	case "problem":
		return fmt.Errorf("a problem: %s", text)
	}
	return nil
}

// await waits until what the watcher has been sent satisfies a condition.
func (v *watcher) await(what string, cond func(*watcher) bool) {
	v.Helper()
	for {
		v.mu.Lock()
		ok, changed, ended := cond(v), v.changed, v.ended
		v.mu.Unlock()
		if ok {
			return
		}
		if ended != nil {
			v.Fatalf("in vain: %s; the socket has ended: %v", what, ended)
		}
		select {
		case <-changed:
		case <-v.ctx.Done():
			v.mu.Lock()
			defer v.mu.Unlock()
			v.Fatalf("in vain: %s; %d frames, the last are %.2000s; the subscription: %+v", what, v.frames, fmt.Sprint(v.newest), v.stats())
		}
	}
}

// sees waits until the watcher's newest frame of an instance shows a progress.
func (v *watcher) sees(k status.Key, percent int) {
	v.Helper()
	v.await(fmt.Sprintf("a frame of %s with %d", k, percent), func(v *watcher) bool {
		f := v.newest[k]
		return f.Type == "status" && v.view(f.Status).percent() == percent
	})
}

// last returns the newest frame of an instance.
func (v *watcher) last(k status.Key) frame {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.newest[k]
}

// end returns why there are no more frames, nil while there may be.
func (v *watcher) end() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ended
}

// everything returns all that the watcher was sent.
func (v *watcher) everything() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.raw.String()
}
