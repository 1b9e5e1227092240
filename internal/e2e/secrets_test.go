package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"statusrelay/internal/status"
)

// hiding is a policy that lets nobody see some things, and operators more than
// customers.
const hiding = `
version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - name: operator
            when: "'operator' in claims.roles"
            see: {customStatus: [/percent, /step, /internal, /items/*/sku], output: true, labels: true}
          - name: customer
            when: labels.owner == claims.sub
            see: {customStatus: [/percent, /step]}
      NobodyKnows:
        audiences: []
`

// What nobody may see never reaches Redis; what customers may not see never
// reaches a customer; and neither is in what is said of messages, in logs or in
// metrics.
func TestSecretsStayWhereTheyMay(t *testing.T) {
	const (
		forNobody    = "s3cret-nobody"    // no audience sees it
		forOperators = "s3cret-operators" // customers do not
	)
	w := newWorld(t, nil)
	w.keepRaw = true
	r := w.relay(w.policy(hiding))
	k := key("order-4711")
	operator, customer := w.watch(r, w.operator, k), w.watch(r, w.customer, k)

	custom := fmt.Sprintf(`{"percent":%%d,"step":"s","internal":{"cost":"%[2]s"},"items":[{"sku":"%[2]s","price":"%[1]s"},"%[1]s",["%[1]s"]],`+
		`"card":"%[1]s","nested":{"percent":"%[1]s","%[1]s":1},"%[1]s":true,"step ":"%[1]s"}`, forNobody, forOperators)
	update := func(sequence int, kind, members string) string {
		return fmt.Sprintf(`{"hub":%q,"instanceId":%q,"generation":%d,"sequence":%d,"kind":%q,%s,`+
			`"labels":{"owner":%q,"team":"%s-team"},"input":"%[8]s","unknown":{"a":["%[8]s"]},"%[8]s":1}`,
			hub, k.InstanceID, generation, sequence, kind, members, owner, forOperators, forNobody)
	}
	w.send(
		update(1, "progress", `"customStatus":`+fmt.Sprintf(custom, 10)),
		update(2, "progress", `"customStatus":`+fmt.Sprintf(custom, 20)),
		update(3, "lifecycle", fmt.Sprintf(`"runtimeStatus":"Failed","failure":{"type":"%[1]s","message":"%[1]s"},"output":{"for":"%[2]s"}`, forNobody, forOperators)),
		// A custom status that is no object has no members to show.
		fmt.Sprintf(`{"hub":%q,"instanceId":"text","customStatus":"%s","labels":{"owner":%q}}`, hub, forNobody, owner),
		fmt.Sprintf(`{"hub":%q,"instanceId":"list","customStatus":["%s"],"labels":{"owner":%q}}`, hub, forNobody, owner),
		fmt.Sprintf(`{"hub":%q,"instanceId":"unknown","name":"NobodyKnows","customStatus":{"percent":"%[2]s"},"output":"%[2]s","runtimeStatus":"Running"}`, hub, forNobody),
		// Poison: what is said of it is read by others than those who may see it.
		fmt.Sprintf(`{"instanceId":"%[1]s/","customStatus":"%[1]s"}`, forNobody),
		fmt.Sprintf(`{"instanceId":"i","%[1]s":{"%[1]s":"%[1]s"},"sequence":"%[1]s"}`, forNobody),
		fmt.Sprintf(`{"instanceId":"i","customStatus":{"%[1]s":1,"%[1]s":2}}`, forNobody),
		forNobody,
	)
	const poison = 4
	w.settled()
	seen := func(v *watcher) bool {
		f := v.newest[k]
		if f.Type != "status" {
			return false
		}
		s := v.view(f.Status)
		return s.percent() == 20 && s.RuntimeStatus == string(status.Failed)
	}
	operator.await("the end", seen)
	customer.await("the end", seen)

	if s := w.stats(); s.TotalDeadLettered != poison {
		t.Fatalf("got %+v, want %d dead-lettered", s, poison)
	}
	said := ""
	for _, d := range w.deadLetters(poison) {
		said += string(d.reason) + ": " + d.description + "\n"
	}
	var read strings.Builder
	for _, id := range []string{k.InstanceID, "text", "list", "unknown"} {
		got := w.get(r, w.customer, key(id))
		fmt.Fprintln(&read, got.code, got.header, string(got.body))
	}
	full := w.get(r, w.operator, k)
	metrics, err := w.do(http.MethodGet, r.private+"/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	stored := ""
	for name := range strings.Lines(w.redis.Do("KEYS", "*")) {
		name = strings.TrimSpace(name)
		read := []string{"HGETALL", name}
		if w.redis.Do("TYPE", name) == "zset" { // an index
			read = []string{"ZRANGE", name, "0", "-1"}
		}
		stored += name + "\n" + w.redis.Do(read...) + "\n"
	}
	r.stop() // so that the log is complete
	for _, place := range []struct {
		what, text string
		secrets    []string
	}{
		{"redis", stored, []string{forNobody}},
		{"an operator's frames", operator.everything(), []string{forNobody}},
		{"an operator's answer", string(full.body), []string{forNobody}},
		{"a customer's frames", customer.everything(), []string{forNobody, forOperators}},
		{"a customer's answers", read.String(), []string{forNobody, forOperators}},
		{"dead-letter descriptions", said, []string{forNobody, forOperators}},
		{"the log at level debug", w.logs.String(), []string{forNobody, forOperators}},
		{"the metrics", string(metrics.body), []string{forNobody, forOperators}},
	} {
		if place.text == "" {
			t.Errorf("%s: nothing was looked at", place.what)
		}
		for _, secret := range place.secrets {
			if i := strings.Index(place.text, secret); i >= 0 {
				t.Errorf("%s: found %s in …%s…", place.what, secret, place.text[max(0, i-100):min(len(place.text), i+100)])
			}
		}
	}
	// The places can show what they may: else nothing was tested.
	for what, text := range map[string]string{
		"redis": stored, "an operator's frames": operator.everything(), "an operator's answer": string(full.body),
	} {
		if !strings.Contains(text, forOperators) {
			t.Errorf("%s: what is for operators is not there", what)
		}
	}
}
