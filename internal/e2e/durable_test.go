package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"statusrelay/internal/relay"
	"statusrelay/internal/status"
)

// statusURL is the URL of an instance where Durable Functions has it.
func statusURL(r *replica, k status.Key) string {
	return r.base + "/runtime/webhooks/durabletask/instances/" + url.PathEscape(k.InstanceID) + "?taskHub=" + k.Hub
}

// A durableStatus is what the client of Durable Functions makes of an answer.
type durableStatus struct {
	Name, InstanceID, RuntimeStatus      string
	CreatedTime, LastUpdatedTime         string
	Input, Output, CustomStatus, History json.RawMessage
}

// A waited is what an HTTP function answers that waits for an orchestration.
type waited struct {
	Status  int
	Headers map[string]string
	Body    json.RawMessage
}

func parse[T any](w *world, text json.RawMessage) (v T) {
	w.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		w.Fatalf("%v in %s", err, text)
	}
	return v
}

// forEachBinding runs a test with the client of Durable Functions as the two
// kinds of hosts set it up. The base has no hub in it: that is the default one.
func forEachBinding(t *testing.T, test func(w *world, r *replica, client *script)) {
	for _, binding := range []string{"templates", "base"} {
		t.Run(binding, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			r := w.relay(nil, func(c *relay.Config) { c.DefaultHub = hub })
			client := w.node("durable.mjs", "BINDING="+binding, "RELAY="+r.base, "TASK_HUB="+hub, "TOKEN="+w.operator)
			test(w, r, client)
			client.ends()
		})
	}
}

// The client of Durable Functions that is only given another address polls an
// orchestration until it has ended, and reads what it would read from the
// function app.
func TestDurableClientWaitsForTheEnd(t *testing.T) {
	forEachBinding(t, func(w *world, r *replica, client *script) {
		send := w.sender()
		full := func(id, members string) []byte {
			return fmt.Appendf(nil, `{"hub":%q,"instanceId":%q,"generation":%d,"sequence":1,"kind":"snapshot","name":"OrderFlow",`+
				`"createdTime":"2026-01-02T03:04:05.678Z","lastUpdatedTime":"2026-01-02T03:04:06.9Z",%s}`, hub, id, generation, members)
		}
		k := key("order-1")
		send(full(k.InstanceID, `"runtimeStatus":"Running","customStatus":{"percent":40}`))
		w.shows(r, k, 40)

		for _, options := range []map[string]any{{}, {"showInput": false}, {"showInput": true, "showHistory": true, "showHistoryOutput": true}} {
			got := parse[durableStatus](w, client.does("getStatus", k.InstanceID, options))
			if got.Name != "OrderFlow" || got.InstanceID != k.InstanceID || got.RuntimeStatus != "Running" || string(got.CustomStatus) != `{"percent":40}` ||
				got.CreatedTime != "2026-01-02T03:04:05.000Z" || got.LastUpdatedTime != "2026-01-02T03:04:06.000Z" ||
				string(got.Input) != "null" || string(got.Output) != "null" || got.History != nil {
				w.Errorf("getStatus with %v: got %+v", options, got)
			}
		}

		// It runs longer than the function is ready to wait.
		brief := map[string]int{"timeoutInMilliseconds": 50, "retryIntervalInMilliseconds": 20}
		if got := parse[waited](w, client.does("waitForCompletion", k.InstanceID, brief)); got.Status != http.StatusAccepted {
			w.Errorf("while it runs: got %+v, want 202", got)
		}
		// It ends while the function waits.
		long := map[string]int{"timeoutInMilliseconds": int(deadline.Milliseconds()), "retryIntervalInMilliseconds": 20}
		answered := client.call("waitForCompletion", k.InstanceID, long)
		client.does("getStatus", k.InstanceID, map[string]any{}) // sent after the first of those
		send([]byte(lifecycle(k.InstanceID, 2, `"runtimeStatus":"Completed","output":{"total":[1,"€"]}`)))
		end := answered()
		if end.Error != nil {
			w.Fatalf("the wait ended with %+v", *end.Error)
		}
		if got := parse[waited](w, end.Result); got.Status != http.StatusOK || string(got.Body) != `{"total":[1,"€"]}` {
			w.Errorf("at the end: got %d with %s, want 200 with the output", got.Status, got.Body)
		}

		// The other ends.
		for runtimeStatus, want := range map[string]int{"Failed": http.StatusInternalServerError, "Terminated": http.StatusOK, "Canceled": http.StatusOK} {
			id := "order-" + runtimeStatus
			send(full(id, fmt.Sprintf(`"runtimeStatus":%q,"customStatus":{"percent":50},"output":"why"`, runtimeStatus)))
			w.shows(r, key(id), 50)
			got := parse[waited](w, client.does("waitForCompletion", id, long))
			if s := parse[durableStatus](w, got.Body); got.Status != want || s.RuntimeStatus != runtimeStatus || string(s.Output) != `"why"` {
				w.Errorf("%s: got %d with %s, want %d", runtimeStatus, got.Status, got.Body, want)
			}
		}
	})
}

// What the function app always knows and an update need not say, the client
// insists on.
func TestDurableClientReadsWhatIsIncomplete(t *testing.T) {
	forEachBinding(t, func(w *world, r *replica, client *script) {
		w.send(
			progress("progress", 1, 1),
			lifecycle("lifecycle", 1, `"runtimeStatus":"Suspended"`),
			fmt.Sprintf(`{"hub":%q,"instanceId":"bare: é 1","customStatus":null}`, hub),
		)
		for id, want := range map[string]string{"progress": "Running", "lifecycle": "Suspended", "bare: é 1": "Running"} {
			w.until(id+" is known", func() bool { return w.get(r, w.operator, key(id)).code == http.StatusOK })
			got := parse[durableStatus](w, client.does("getStatus", id))
			if got.InstanceID != id || got.RuntimeStatus != want {
				w.Errorf("%s: got %+v, want it to be %s", id, got, want)
			}
			if got.CreatedTime < "2023" || got.LastUpdatedTime < got.CreatedTime { // when nobody has said
				w.Errorf("%s: got the times %s and %s", id, got.CreatedTime, got.LastUpdatedTime)
			}
		}
	})
}

// What does not exist is what the client calls unknown. What the client could do
// to an orchestration at the function app is not to be had here, and it is not
// told that it was done.
func TestDurableClientCanOnlyRead(t *testing.T) {
	forEachBinding(t, func(w *world, r *replica, client *script) {
		if got := client.fails("getStatus", "nobodys"); !strings.Contains(got.Message, "HTTP 404") {
			w.Errorf("getStatus of nothing: got %q", got.Message)
		}
		k := key("order-1")
		w.send(progress(k.InstanceID, 1, 1))
		w.shows(r, k, 1)
		before := w.get(r, w.operator, k)
		for _, call := range [][]any{{"terminate", k.InstanceID, "because"}, {"raiseEvent", k.InstanceID, "Approved", true}, {"purge", k.InstanceID}} {
			client.fails(call[0].(string), call[1:]...)
		}
		if after := w.get(r, w.operator, k); string(after.body) != string(before.body) {
			w.Errorf("it was %s and is %s", before.body, after.body)
		}
	})
}

// A script that knows the HTTP API of Durable Functions alone follows Location as
// often as Retry-After says until the answer is not 202.
func TestShellPollsUntilTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	w.program("curl")
	k := key("order 1%2B")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)

	first, err := w.do(http.MethodGet, statusURL(r, k)+"&code=not-a-key&showHistory=true", w.customer, nil)
	if err != nil {
		t.Fatal(err)
	}
	if after, err := strconv.Atoi(first.header.Get("Retry-After")); first.code != http.StatusAccepted || err != nil || after < 1 {
		t.Errorf("got %d with Retry-After %q, want 202 with seconds", first.code, first.header.Get("Retry-After"))
	}
	next, err := url.Parse(first.header.Get("Location"))
	if err != nil || "http://"+next.Host != r.base || next.Query().Get("taskHub") != hub || next.Query().Has("code") {
		t.Errorf("got Location %q, %v, want the same instance of the same hub, and no key", first.header.Get("Location"), err)
	}

	poll := exec.CommandContext(w.ctx, "bash", filepath.Join(clients, "poll.sh"), statusURL(r, k))
	poll.Env = []string{"PATH=" + os.Getenv("PATH"), "TOKEN=" + w.customer}
	poll.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var complained strings.Builder
	poll.Stderr = &complained
	out, err := poll.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := poll.Start(); err != nil {
		t.Fatal(err)
	}
	var answers []string
	for lines := bufio.NewScanner(out); lines.Scan(); answers = append(answers, lines.Text()) {
		if len(answers) == 0 {
			w.send(lifecycle(k.InstanceID, 2, `"runtimeStatus":"Completed"`))
		}
	}
	if err := poll.Wait(); err != nil || len(answers) < 2 {
		t.Fatalf("%d answers, then %v: %s", len(answers), err, complained.String())
	}
	for i, line := range answers {
		code, body, _ := strings.Cut(line, " ")
		got := parse[durableStatus](w, json.RawMessage(body))
		wantCode, want := "202", "Running"
		if i == len(answers)-1 {
			wantCode, want = "200", "Completed"
		}
		if code != wantCode || got.RuntimeStatus != want || got.InstanceID != k.InstanceID {
			t.Errorf("answer %d of %d: got %s, want %s and %s", i+1, len(answers), line, wantCode, want)
		}
	}
}

// A Failed one is 200 or 500, as the caller asks.
func TestFailedIs500ForWhoAsksForThat(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	k := key("order-1")
	w.send(progress(k.InstanceID, 1, 10), lifecycle(k.InstanceID, 2, `"runtimeStatus":"Failed"`))
	w.until("it has failed", func() bool { return w.view(w.get(r, w.operator, k).body).RuntimeStatus == "Failed" })
	var bodies [2]string
	for i, c := range []struct {
		query string
		want  int
	}{{"", http.StatusOK}, {"&returnInternalServerErrorOnFailure=true", http.StatusInternalServerError}} {
		got, err := w.do(http.MethodGet, statusURL(r, k)+c.query, w.operator, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.code != c.want || got.header.Get("Location") != "" || got.header.Get("Retry-After") != "" {
			t.Errorf("with %q: got %d with %v, want %d", c.query, got.code, got.header, c.want)
		}
		bodies[i] = string(got.body)
	}
	if bodies[0] != bodies[1] {
		t.Errorf("got %s and %s, want one body", bodies[0], bodies[1])
	}
}
