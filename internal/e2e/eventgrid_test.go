package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/devbus"
	"statusrelay/internal/notifier"
	"statusrelay/internal/status"
)

// lifecycleEvent is what Durable Functions says of an instance at a second of the
// story that it is in.
func lifecycleEvent(id string, second int, runtimeStatus string) string {
	return fmt.Sprintf(`{"id":"%s-%d","topic":"/t","subject":"durable/orchestrator/%s","eventType":"orchestratorEvent","eventTime":"%s","dataVersion":"1.0",`+
		`"metadataVersion":"1","data":{"hubName":%q,"functionName":"Eternal","instanceId":%q,"reason":"","runtimeStatus":%q}}`,
		id, second, runtimeStatus, storyTime(second), hub, id, runtimeStatus)
}

func storyTime(second int) string {
	return time.Date(2026, 1, 2, 3, 4, second, 649_206_800, time.UTC).Format(time.RFC3339Nano)
}

// deliver brings events as Event Grid does, and wants 200.
func (w *world) deliver(n *replica, events ...string) {
	w.Helper()
	got, err := w.do(http.MethodPost, n.base+"/v1/eventgrid", w.publisher, strings.NewReader("["+strings.Join(events, ",")+"]"), "Aeg-Event-Type", "Notification")
	if err != nil {
		w.Fatal(err)
	}
	if got.code != http.StatusOK {
		w.Fatalf("got %d %s, want 200", got.code, got.body)
	}
}

func (w *world) scheduled() int {
	w.Helper()
	s, err := w.bus.Stats(topic)
	if err != nil {
		w.Fatal(err)
	}
	return s.Scheduled
}

// shown is what a watcher was shown of each instance, frame by frame: its runtime
// status and when that was.
func (v *watcher) shown() map[status.Key][]string {
	v.Helper()
	all := map[status.Key][]string{}
	for frames := json.NewDecoder(strings.NewReader(v.everything())); ; {
		var f frame
		if err := frames.Decode(&f); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			v.Fatal(err)
		}
		if f.Type == "status" {
			var s struct{ RuntimeStatus, LastUpdatedTime string }
			if err := json.Unmarshal(f.Status, &s); err != nil {
				v.Fatal(err)
			}
			k := status.Key{Hub: f.Hub, InstanceID: f.InstanceID}
			all[k] = append(all[k], s.RuntimeStatus+" "+s.LastUpdatedTime)
		}
	}
}

// permutations are all orders of 0 to n-1.
func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var all [][]int
	for _, p := range permutations(n - 1) {
		for at := range n {
			all = append(all, slices.Insert(slices.Clone(p), at, n-1))
		}
	}
	return all
}

// Continuing as new says Completed every time, and then Running again. In whatever order its events
// come, and however often, a watcher sees Completed once: at the end. The broker delivers what it held
// back in any order, too, and every other instance has activities, which know when the last execution began:
// its generation replaces all that was said of the others, the Running that a Completed had come before included.
func TestContinuingAsNewIsNeverShownAsCompleted(t *testing.T) {
	t.Parallel()
	said := []string{"Running", "Completed", "Running", "Completed"}
	last := len(said) - 1
	for name, order := range map[string]func(int) []int{"InOrder": nil, "Reversed": devbus.Reversed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.keepRaw = true
			r, n := w.relay(nil), w.notifier(func(c *notifier.Config) { c.EventGrid.Hold = time.Hour }) // until this test says so
			var keys []status.Key
			turns := make([][]string, len(said))
			for _, order := range permutations(len(said)) {
				for late := range said { // what comes twice comes again so many turns later
					k := key(fmt.Sprintf("eternal-%d", len(keys)))
					keys = append(keys, k)
					for turn, second := range order {
						e := lifecycleEvent(k.InstanceID, second, said[second])
						turns[turn] = append(turns[turn], e)
						again := min(turn+late, len(turns)-1)
						turns[again] = append(turns[again], e)
					}
				}
			}
			v := w.watch(r, w.operator, keys...)
			for _, events := range turns {
				w.deliver(n, events...)
			}
			v.await("the last Running of each is shown", func(v *watcher) bool {
				for _, f := range v.newest {
					if !strings.Contains(string(f.Status), storyTime(last-1)) {
						return false
					}
				}
				return len(v.newest) == len(keys)
			})
			began := time.Date(2026, 1, 2, 3, 4, last-1, 0, time.UTC).UnixMilli()
			var reports []string
			for i := 0; i < len(keys); i += 2 {
				reports = append(reports, fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"sequence":1,"kind":"progress","customStatus":{"percent":1}}`,
					hub, keys[i].InstanceID, began))
			}
			w.post(n, "["+strings.Join(reports, ",")+"]")
			w.settled()
			w.bus.Faults().Hold(entity)
			if n := w.bus.Faults().Activate(topic); n != 4*len(keys) {
				t.Errorf("%d messages were held back, want two of each Completed of %d instances", n, len(keys))
			}
			w.bus.Faults().Release(entity, order)
			v.await("everything is shown as completed", func(v *watcher) bool {
				for _, f := range v.newest {
					if w.view(f.Status).RuntimeStatus != "Completed" {
						return false
					}
				}
				return true
			})
			w.settled()
			end := "Completed " + storyTime(last)
			for k, states := range v.shown() {
				for i, state := range states {
					if final := i == len(states)-1; final != strings.HasPrefix(state, "Completed") || final && state != end {
						t.Errorf("%s: a watcher was shown %q, want one Completed, %q", k, states, end)
						break
					}
				}
			}
			if s := w.stats(); s.TotalDeadLettered > 0 {
				t.Errorf("in the end: %+v, want nothing dead-lettered", s)
			}
		})
	}
}

// What was accepted is shown when its time has come, also when the notifier has been killed meanwhile.
func TestHeldBackEventOutlivesTheNotifier(t *testing.T) {
	t.Parallel()
	binary := build(t, "notifier")
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.startProcess(binary, "eventgrid: {hold: 1h}\n")
	k := key("short")
	v := w.watch(r, w.operator, k)
	w.deliver(&n.replica, lifecycleEvent(k.InstanceID, 1, "Running"))
	v.await("it runs", func(v *watcher) bool { return v.newest[k].Type == "status" })
	w.deliver(&n.replica, lifecycleEvent(k.InstanceID, 2, "Completed"))
	if err := n.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-n.exited
	if got := w.scheduled(); got != 1 {
		t.Errorf("the broker holds %d messages, want 1", got)
	}
	w.settled()
	if got := w.view(v.last(k).Status); got.RuntimeStatus != "Running" {
		t.Errorf("before its time: %+v", got)
	}
	w.bus.Faults().Activate(topic)
	v.await("it is completed", func(v *watcher) bool { return w.view(v.newest[k].Status).RuntimeStatus == "Completed" })
}

// The journey of one subscription: a key in the URL, both handshakes, activities that report progress under a generation
// beside it, and an end that comes by itself when the hold is over. The key is in no log.
func TestEventGridTellsTheLifecycleBesideActivities(t *testing.T) {
	t.Parallel()
	secret, entry := apiKey(t, auth.APIKey{ID: "eventgrid", Rights: []auth.Right{auth.Publish}, Hubs: []string{hub}, Claims: map[string]any{"roles": []any{"publisher"}}})
	w := newWorld(t, nil)
	r, n := w.relay(nil), w.notifier(func(c *notifier.Config) {
		c.EventGrid.Hold, c.EventGrid.Hubs, c.Auth.APIKeys = 10*time.Millisecond, []string{"TheTaskHub=" + hub}, file(t, "keys.yaml", "keys:\n"+entry)
	})
	url := n.base + "/v1/eventgrid?code=" + secret
	ask := func(method, body string, want int, headers ...string) answer {
		t.Helper()
		got, err := w.do(method, url, "", strings.NewReader(body), headers...)
		if err != nil {
			t.Fatal(err)
		}
		if got.code != want || strings.Contains(string(got.body), secret) {
			t.Errorf("%s: got %d %s, want %d", method, got.code, got.body, want)
		}
		return got
	}
	if got := ask(http.MethodOptions, "", http.StatusOK, "WebHook-Request-Origin", "eventgrid.azure.net"); got.header.Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" {
		t.Errorf("got %v", got.header)
	}
	ask(http.MethodPost, `[{"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"c-1"}}]`, http.StatusOK,
		"Aeg-Event-Type", "SubscriptionValidation")

	k := key("order-1")
	v := w.watch(r, w.operator, k)
	event := func(second int, runtimeStatus string) string {
		return strings.Replace(lifecycleEvent(k.InstanceID, second, runtimeStatus), `"hubName":"`+hub+`"`, `"hubName":"TheTaskHub"`, 1)
	}
	w.post(n, progress(k.InstanceID, 1, 40))
	v.sees(k, 40)
	ask(http.MethodPost, "["+event(1, "Running")+"]", http.StatusOK)
	v.await("it is known to run", func(v *watcher) bool { return !w.view(v.newest[k].Status).Partial })
	ask(http.MethodPost, "["+event(2, "Completed")+"]", http.StatusOK)
	v.await("it is completed", func(v *watcher) bool { return w.view(v.newest[k].Status).RuntimeStatus == "Completed" })
	ask(http.MethodPost, "["+event(1, "Running")+"]", http.StatusOK) // brought again
	w.post(n, progress(k.InstanceID, 2, 100))
	v.sees(k, 100)
	if got := w.view(v.last(k).Status); got.RuntimeStatus != "Completed" || got.Name != "Eternal" || got.Labels["owner"] != owner {
		t.Errorf("in the end: %+v", got)
	}

	ask(http.MethodPost, "nothing", http.StatusBadRequest)
	ask(http.MethodPost, "["+event(3, "Sleeping")+"]", http.StatusBadRequest)
	ask(http.MethodPost, strings.Replace(lifecycleEvent("x", 1, "Running"), `"hubName":"`+hub+`"`, `"hubName":"other"`, 1), http.StatusForbidden)
	ask(http.MethodPut, "", http.StatusMethodNotAllowed)
	if _, err := w.do(http.MethodPost, n.base+"/v1/eventgrid/more?code="+secret, "", nil); err != nil {
		t.Error(err)
	}
	if said := w.logs.String(); !strings.Contains(said, "events refused") || strings.Contains(said, secret) || strings.Contains(said, secret[len(secret)-20:]) {
		t.Errorf("the log does not speak of what was refused, or has the key in it:\n%s", said)
	}
}
