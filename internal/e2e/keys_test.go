package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"statusrelay/internal/auth"
	"statusrelay/internal/notifier"
	"statusrelay/internal/relay"
	"statusrelay/schemas"
)

// file writes a file and returns its path.
func file(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	replace(t, path, text)
	return path
}

// replace puts a file in the place of another, in one step.
func replace(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// apiKey makes an API key, and the entry of the file for it.
func apiKey(t testing.TB, k auth.APIKey) (text, entry string) {
	t.Helper()
	text, kept, err := auth.NewAPIKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return text, kept.Entry()
}

// A key is accepted wherever a token is, for what it is good for; what it has opened ends within 30 s after it was taken out of
// the file, and no part of it is in any log.
func TestU6APIKeyIsRevokedWithoutARestart(t *testing.T) {
	t.Parallel()
	const bound = 30 * time.Second // the promise, with the configuration as it is by default
	w := newWorld(t, nil)
	operator := map[string]any{"roles": []any{"operator", "publisher"}}
	reads, readsEntry := apiKey(t, auth.APIKey{ID: "reads", Rights: []auth.Right{auth.Read}, Claims: operator})
	writes, writesEntry := apiKey(t, auth.APIKey{ID: "writes", Rights: []auth.Right{auth.Publish}, Hubs: []string{hub}, Claims: operator})
	path := file(t, "keys.yaml", "keys:\n"+readsEntry+writesEntry)
	r := w.relay(nil, func(c *relay.Config) { c.Auth.APIKeys = path })
	n := w.notifier(func(c *notifier.Config) { c.Auth.APIKeys = path })

	publish := func(key, body string) int {
		t.Helper()
		got, err := w.do(http.MethodPost, n.base+"/v1/updates", key, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return got.code
	}
	k := key("order-4711")
	if code := publish(writes, progress(k.InstanceID, 1, 10)); code != http.StatusAccepted {
		t.Fatalf("publishing: got %d", code)
	}
	if code := publish(writes, `{"hub":"another","instanceId":"a"}`); code != http.StatusForbidden {
		t.Errorf("publishing to another hub: got %d", code)
	}
	if code := publish(reads, progress(k.InstanceID, 2, 11)); code != http.StatusForbidden {
		t.Errorf("publishing with a key to read: got %d", code)
	}
	w.shows(r, k, 10)
	socket, stream := w.watch(r, reads, k), w.stream(r, reads, "/"+k.InstanceID)
	socket.sees(k, 10)
	if e, ok := stream.next(); !ok || e.name != "status" {
		t.Fatalf("the stream has %s %s", e.name, e.data)
	}
	if got := w.get(r, writes, k); got.code != http.StatusNotFound {
		t.Errorf("reading with a key to publish: got %d", got.code)
	}

	replace(t, path, "keys:\n"+readsEntry+strings.Replace(writesEntry, "sha256:", reads, 1))
	w.until("the broken file is noticed", func() bool { return w.metric(r, "statusrelay_reload_failures_total") == 1 })
	if got := w.get(r, reads, k); got.code != http.StatusOK {
		t.Errorf("with a broken file: got %d", got.code)
	}

	replace(t, path, "keys:\n"+writesEntry)
	late := time.AfterFunc(bound, func() { t.Error("after 30 s the key is still told") })
	w.until("the socket is closed", func() bool { return socket.end() != nil })
	if closed := (*websocket.CloseError)(nil); !errors.As(socket.end(), &closed) || closed.Code != 4401 {
		t.Errorf("the socket ended with %v, want 4401", socket.end())
	}
	for {
		if _, ok := stream.next(); !ok {
			break
		}
	}
	late.Stop()
	if got := w.get(r, reads, k); got.code != http.StatusUnauthorized {
		t.Errorf("a read with the key: got %d", got.code)
	}
	for _, secret := range []string{reads, writes} {
		if strings.Contains(w.logs.String(), secret[len(secret)-43:]) {
			t.Error("a key is in the log")
		}
	}
}

// Link keys rotate while links are used: none fails that should not, and those of the old key do when it is taken out.
func TestU3LinkKeysRotateWithoutARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	first, second := base64.StdEncoding.EncodeToString([]byte("c4n4ry-first-c4n4ry-first-c4n4ry")), base64.StdEncoding.EncodeToString([]byte("c4n4ry-second-c4n4ry-second-c4n4"))
	entry := func(id, key string) string { return "- {id: " + id + ", key: " + key + "}\n" }
	path := file(t, "links.yaml", "keys:\n"+entry("one", first))
	r := w.relay(nil, func(c *relay.Config) { c.Links.Keys = path })
	k := key("order-4711")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	link := func() (target, signer string) {
		t.Helper()
		got, err := w.do(http.MethodPost, r.base+"/v1/links", w.customer, strings.NewReader(`{"hub":"`+k.Hub+`","instanceId":"`+k.InstanceID+`"}`))
		var answer struct{ URL string }
		if err != nil || got.code != http.StatusCreated || json.Unmarshal(got.body, &answer) != nil {
			t.Fatalf("got %d %s, %v", got.code, got.body, err)
		}
		u, err := url.Parse(answer.URL)
		if err != nil {
			t.Fatal(err)
		}
		return answer.URL, u.Query().Get(auth.LinkKeyID)
	}
	opens := func(target string) int {
		t.Helper()
		got, err := w.do(http.MethodGet, target, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		return got.code
	}
	old, _ := link()
	if strings.Contains(string(w.get(r, w.customer, k).body), "for operators") || opens(old) != http.StatusOK {
		t.Fatal("the link does not open what it should")
	}
	replace(t, path, "keys:\n"+entry("two", second)+entry("one", first))
	var fresh string
	w.until("the new key signs", func() bool {
		if code := opens(old); code != http.StatusOK {
			t.Fatalf("the old link meanwhile: got %d", code)
		}
		target, signer := link()
		if code := opens(target); code != http.StatusOK {
			t.Fatalf("a link of key %s: got %d", signer, code)
		}
		fresh = target
		return signer == "two"
	})
	replace(t, path, "keys:\n"+entry("two", second))
	w.until("the old key is refused", func() bool {
		if code := opens(fresh); code != http.StatusOK {
			t.Fatalf("the new link: got %d", code)
		}
		return opens(old) == http.StatusUnauthorized
	})
	u, err := url.Parse(fresh)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{first, second, "c4n4ry", u.Query().Get(auth.LinkSignature)} {
		if strings.Contains(w.logs.String(), secret) {
			t.Error("a key or a signature is in the log")
		}
	}
}

// What docs/links.md has in JavaScript signs as the vectors say, and what it signs opens what it should.
func TestU1JavaScriptOfTheDocumentSignsLinks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	document, err := os.ReadFile("../../docs/links.md")
	if err != nil {
		t.Fatal(err)
	}
	code := regexp.MustCompile("(?s)```js\n(.*?)```").FindSubmatch(document)
	if code == nil {
		t.Fatal("there is no JavaScript")
	}
	text, err := schemas.Examples.ReadFile("examples/links.json")
	if err != nil {
		t.Fatal(err)
	}
	var known struct {
		Vectors []struct {
			Key, KeyID, PathAndQuery string
		}
	}
	if err := json.Unmarshal(text, &known); err != nil || len(known.Vectors) < 4 {
		t.Fatalf("%d vectors, %v", len(known.Vectors), err)
	}
	sign := func(arguments string) string {
		t.Helper()
		script := file(t, "links.mjs", string(code[1])+"\nfor (const v of "+arguments+")\n"+
			"  console.log(statusLink('', v.keyId, v.key, v.hub, v.instanceId, v.audience, v.expires));\n")
		out, err := exec.CommandContext(w.ctx, w.program("node"), script).Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return strings.TrimSuffix(string(out), "\n")
	}
	lines := strings.Split(sign("("+string(text)+").vectors"), "\n")
	for i, v := range known.Vectors {
		// Which of the characters that need no encoding are encoded is a matter of taste.
		got, errGot := url.Parse(lines[i])
		want, errWant := url.Parse(v.PathAndQuery)
		if errGot != nil || errWant != nil || got.Path != want.Path || got.Query().Encode() != want.Query().Encode() {
			t.Errorf("got  %s\nwant %s", lines[i], v.PathAndQuery)
		}
	}

	v := known.Vectors[0]
	r := w.relay(nil, func(c *relay.Config) {
		c.Links.Keys = file(t, "links.yaml", "keys: [{id: '"+v.KeyID+"', key_file: secret}]\n")
		replace(t, filepath.Join(filepath.Dir(c.Links.Keys), "secret"), v.Key+"\n")
	})
	k := key("Bestellung-Größe 17")
	w.send(progress(k.InstanceID, 1, 10))
	w.shows(r, k, 10)
	arguments, err := json.Marshal([]map[string]any{{
		"key": v.Key, "keyId": v.KeyID, "hub": k.Hub, "instanceId": k.InstanceID, "audience": "customer", "expires": time.Now().Add(time.Hour).Unix(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.do(http.MethodGet, r.base+sign(string(arguments)), "", nil)
	if err != nil || got.code != http.StatusOK || string(got.body) != string(w.get(r, w.customer, k).body) {
		t.Errorf("the link opens %d %s, %v", got.code, got.body, err)
	}
}

// Refused keys, links and tickets are counted where they are shown, by whatever way, and are in no label.
func TestU6RefusedCredentialsAreCounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	stranger, _ := apiKey(t, auth.APIKey{ID: "stranger", Rights: []auth.Right{auth.Read}})
	_, entry := apiKey(t, auth.APIKey{ID: "known", Rights: []auth.Right{auth.Read}})
	path := file(t, "keys.yaml", "keys:\n"+entry)
	r := w.relay(nil, func(c *relay.Config) {
		c.Auth.APIKeys = path
		c.Links.Keys = file(t, "links.yaml", "keys: [{id: one, key: "+strings.Repeat("A", 43)+"}]\n")
	})
	n := w.notifier()
	refuses := func(url, credential string) {
		t.Helper()
		got, err := w.do(http.MethodGet, url, credential, nil, "Accept", "text/event-stream")
		if err != nil || got.code != http.StatusUnauthorized {
			t.Errorf("got %d, %v, want 401", got.code, err)
		}
	}
	k := instanceURL(r, key("i"))
	refuses(k, stranger)
	refuses(k, "srk_rubbish")
	refuses(k+"?link.aud=customer&link.exp=1&link.kid=one&link.sig="+strings.Repeat("A", 43), "")
	refuses(k+"?ticket=srt_"+strings.Repeat("A", 43), "")
	if _, got := w.handshake(r, "?ticket=rubbish", nil, "status.v1.json"); got.code != http.StatusUnauthorized {
		t.Errorf("a socket: got %d", got.code)
	}
	if got, err := w.do(http.MethodPost, n.base+"/v1/updates", stranger, strings.NewReader(progress("i", 1, 1))); err != nil || got.code != http.StatusUnauthorized {
		t.Errorf("publishing: got %d, %v", got.code, err)
	}
	if got := w.metric(r, "statusrelay_auth_refused_total"); got != 5 {
		t.Errorf("the relay counted %v, want 5", got)
	}
	if got := w.metric(n, "statusrelay_auth_refused_total"); got != 1 {
		t.Errorf("the notifier counted %v, want 1", got)
	}
	for _, base := range []string{r.private, n.private} {
		got, err := w.do(http.MethodGet, base+"/metrics", "", nil)
		if err != nil || strings.Contains(string(got.body), "stranger") || strings.Contains(string(got.body), "rubbish") {
			t.Errorf("something of a credential is in the metrics, or %v", err)
		}
	}
}
