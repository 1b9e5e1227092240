package main

import (
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
)

// What `key new` prints can be added to the file, and is then the key of it.
func TestU6KeyNewPrintsAKeyAndItsEntry(t *testing.T) {
	stdout, stderr, code := run(t, nil, "key", "new", "--id", "orders-portal", "--rights", "read,publish", "--hubs", "orders,null",
		"--claims", `{"roles":["operator"],"level":3}`, "--expires", "2999-01-31T00:00:00Z")
	if code != 0 || stderr != "" {
		t.Fatalf("got code %d, %q", code, stderr)
	}
	key, entry, _ := strings.Cut(stdout, "\n")
	kept, err := auth.ParseAPIKeys([]byte("keys:\n" + entry))
	if err != nil {
		t.Fatalf("%v in\n%s", err, entry)
	}
	keys := auth.NewAPIKeys(auth.APIKeyOptions{})
	keys.SetKeys(kept)
	who, err := keys.Verify(key)
	if err != nil {
		t.Fatal(err)
	}
	if who.Subject != "orders-portal" || !who.May(auth.Publish, "null") || who.May(auth.Read, "payments") || who.Claims["level"] != int64(3) || who.Expires.Year() != 2999 {
		t.Errorf("got %+v, %+v", who, who.Grant)
	}
	if again, _, _ := run(t, nil, "key", "new", "--id", "orders-portal"); !strings.HasPrefix(again, "srk_orders-portal_") || strings.HasPrefix(again, key) {
		t.Errorf("a second key: got %q", again)
	}
	stdout, stderr, code = run(t, nil, "key", "new", "--id", "a", "--claims", "[]", "--rights", "write", "--hubs", "a/b", "--expires", "tomorrow")
	if code != 1 || stdout != "" {
		t.Errorf("mistakes: got code %d, %q", code, stdout)
	}
	for _, want := range []string{"--claims", "--expires", "not a right", "hub: "} {
		if !strings.Contains(stderr, want) {
			t.Errorf("it does not mention %q:\n%s", want, stderr)
		}
	}
	if stdout, stderr, code := run(t, nil, "key", "new"); code != 1 || stdout != "" || !strings.Contains(stderr, "an id is") {
		t.Errorf("without an id: got code %d, %q, %q", code, stdout, stderr)
	}
}

// A link is signed without anything but the file of keys, by the first of them, and never says a key.
func TestU2LinkIsSignedOffline(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	file := write(t, "links.yaml", "keys:\n  - id: new\n    key: "+secret+"\n  - id: old\n    key: "+strings.Repeat("A", 43)+"\n")
	args := []string{"link", "--keys", file, "--hub", "orders", "--audience", "customer"}
	stdout, stderr, code := run(t, nil, append(args, "--url", "https://status.example/s", "--id", "order 4711", "--expires-in", "90m")...)
	u, err := url.Parse(strings.TrimSpace(stdout))
	if code != 0 || err != nil {
		t.Fatalf("got code %d, %q, %v", code, stderr, err)
	}
	q := u.Query()
	signed := auth.SignedLink{Audience: q.Get(auth.LinkAudience), Expires: q.Get(auth.LinkExpires), KeyID: q.Get(auth.LinkKeyID), Signature: q.Get(auth.LinkSignature)}
	if u.Scheme+u.Host+u.Path != "httpsstatus.example/s/v1/hubs/orders/instances/order 4711" || signed.KeyID != "new" {
		t.Errorf("got %s", stdout)
	}
	links := auth.NewLinks(auth.LinkOptions{})
	links.SetKeys([]auth.LinkKey{{ID: "new", Secret: []byte("0123456789abcdef0123456789abcdef")}})
	who, err := links.Verify(status.Key{Hub: "orders", InstanceID: "order 4711"}, signed)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(who.Expires); left < 80*time.Minute || left > 90*time.Minute {
		t.Errorf("it is good for %v more, want 90m", left)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no keys":     {[]string{"link", "--id", "a"}, "--keys"},
		"no file":     {[]string{"link", "--keys", file + "x", "--id", "a"}, "links.keys"},
		"bad file":    {[]string{"link", "--keys", write(t, "bad.yaml", "keys: [{id: a, key: "+secret[:30]+"}]"), "--id", "a"}, "column 21: not base64"},
		"none":        {[]string{"link", "--keys", write(t, "none.yaml", "keys: []"), "--id", "a", "--audience", "a"}, "no key"},
		"no id":       {args, "instanceId"},
		"too long":    {append(args, "--id", "a", "--expires-in", "721h"), "at most"},
		"past":        {append(args, "--id", "a", "--expires-in", "-1s"), "at most"},
		"bad id":      {append(args, "--id", "a/b"), "instanceId"},
		"no audience": {[]string{"link", "--keys", file, "--id", "a"}, "audience"},
	} {
		stdout, stderr, code := run(t, nil, c.args...)
		if code != 1 || stdout != "" || !strings.Contains(stderr, c.want) || strings.Contains(stderr, secret[:16]) {
			t.Errorf("%s: got code %d, %q, %q; want %q", name, code, stdout, stderr, c.want)
		}
	}
}

// A replica does not start with files of keys that it cannot use, and check-config says all that is wrong with them.
func TestU6FilesOfKeysAreChecked(t *testing.T) {
	policy := write(t, "policy.yaml", "version: 1\nhubs: {\"*\": {orchestrators: {\"*\": {audiences: []}}}}\n")
	good := "policy: " + policy + "\nlisten: 127.0.0.1:0\nprivate_listen: 127.0.0.1:0\n"
	env := []string{connectionString, "STATUSRELAY_AUTH_ISSUERS=https://issuer.example", "STATUSRELAY_AUTH_AUDIENCES=statusrelay"}
	keys := write(t, "keys.yaml", "keys: [{id: a, key: "+canary+", rights: [all]}]\n")
	links := write(t, "links.yaml", "keys: [{id: a, key: "+canary+"}, {id: a, key_file: missing}]\n")
	config := write(t, "relay.yaml", good+"auth: {api_keys: "+keys+"}\nlinks: {keys: "+links+"}\n")
	for command, want := range map[string][]string{
		"check-config": {"auth.api_keys " + keys + ": line 1, column 8: hash missing", "key is not known", "not a right", "links.keys " + links + ": line 1, column 21: not base64", "the id of another", "no such file"},
		"serve":        {"auth.api_keys"},
	} {
		stdout, stderr, code := run(t, env, command, "--config", config)
		if code != 1 || stdout != "" || strings.Contains(stderr, canary) {
			t.Errorf("%s: got code %d, %q, %q", command, code, stdout, stderr)
		}
		for _, w := range want {
			if !strings.Contains(stderr, w) {
				t.Errorf("%s does not mention %q:\n%s", command, w, stderr)
			}
		}
	}
	for _, life := range []string{"59s", "721h"} {
		if _, stderr, code := run(t, env, "check-config", "--config", write(t, "relay.yaml", good+"links: {max_life: "+life+"}\n")); code != 1 || !strings.Contains(stderr, "links.max_life") {
			t.Errorf("%s: got code %d, %q", life, code, stderr)
		}
	}
}

// The file of issuers is a setting like any other, and needs neither other issuers nor auth.audiences.
func TestFileOfIssuersIsChecked(t *testing.T) {
	policy := write(t, "policy.yaml", "version: 1\nhubs: {\"*\": {orchestrators: {\"*\": {audiences: []}}}}\n")
	good := "policy: " + policy + "\nlisten: 127.0.0.1:0\nprivate_listen: 127.0.0.1:0\n"
	issuers := write(t, "issuers.yaml", "issuers: [{url: https://issuer.example, audiences: [statusrelay]}]\n")
	bad := write(t, "bad.yaml", "issuers: [{url: https://issuer.example, audience: ["+canary+"]}]\n")
	for name, c := range map[string]struct {
		env, yaml string
		args      []string
		want      string // empty: valid
	}{
		"variable":   {env: "STATUSRELAY_AUTH_ISSUERS_FILE=" + issuers},
		"flag":       {args: []string{"--auth-issuers-file", issuers}},
		"key":        {yaml: "auth: {issuers_file: " + issuers + "}\n"},
		"bad":        {env: "STATUSRELAY_AUTH_ISSUERS_FILE=" + bad, want: "auth.issuers_file " + bad + ": line 1, column 11: audiences missing"},
		"the same":   {env: "STATUSRELAY_AUTH_ISSUERS_FILE=" + issuers, yaml: "auth: {issuers: [https://issuer.example], audiences: [a]}\n", want: "configured elsewhere"},
		"not at all": {want: "auth.issuers: required"},
	} {
		args := append([]string{"check-config", "--config", write(t, "relay.yaml", good+c.yaml)}, c.args...)
		_, stderr, code := run(t, []string{connectionString, c.env}, args...)
		if (code == 0) != (c.want == "") || !strings.Contains(stderr, c.want) || strings.Contains(stderr, canary) {
			t.Errorf("%s: got code %d, %q; want %q", name, code, stderr, c.want)
		}
	}
}
