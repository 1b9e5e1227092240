package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
)

// No secret is in what is logged at level debug, in metrics, or in what callers are told: wherever it was put, right or wrong,
// and whatever is down.
func TestU5SecretsAreSaidNowhere(t *testing.T) {
	t.Parallel()
	const canary = "c4n4ry-"
	w := newWorld(t, nil)
	w.redis.Do("ACL", "SETUSER", "relay", "on", ">"+canary+"redis", "~*", "&*", "+@all")
	signed := strings.Replace(w.serviceBus, "devbus-development-key", canary+"bus", 1)
	configured := func(c *relay.Config) {
		c.Redis.Username, c.Redis.Password = "relay", settings.NewSecret(canary+"redis")
		c.ServiceBus.ConnectionString = settings.NewSecret(signed)
		c.Origins = []string{portal}
	}
	r := w.relay(nil, configured)
	n := w.notifier()
	if !strings.Contains(signed, canary) {
		t.Fatal("the connection string has no canary")
	}
	k := key("order-4711")
	w.post(n, progress(k.InstanceID, 1, 40))
	w.shows(r, k, 40)

	// A replica that has a wrong password, beside the good one, says what is wrong.
	c := relay.Defaults()
	c.Listen, c.PrivateListen, c.DrainTimeout = "127.0.0.1:0", "127.0.0.1:0", time.Second
	c.Auth, c.Redis.Addrs, c.Subscription = w.auth(), []string{w.redis.Addr}, subscription
	configured(&c)
	c.Redis.Password = settings.NewSecret(canary + "wrong")
	wrong, err := relay.New(w.ctx, c, relay.Options{Policy: w.policy(hiding), Logger: w.logs.logger()})
	if err != nil {
		t.Fatal(err)
	}
	stop := w.run(wrong.Run)
	w.until("it says that Redis refuses it", func() bool { return strings.Contains(w.logs.String(), "WRONGPASS") })

	var told bytes.Buffer
	secrets := []string{canary, "devbus-development-key", w.operator, w.customer, w.publisher}
	for _, token := range []string{w.operator, w.customer, w.publisher} {
		secrets = append(secrets, strings.Split(token, ".")[2], b64([]byte(token)))
	}
	ask := func(method, url, body string, headers ...string) {
		t.Helper()
		q, err := http.NewRequestWithContext(w.ctx, method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			q.Header.Add(headers[i], headers[i+1])
		}
		got, err := w.client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Body.Close()
		text, err := io.ReadAll(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&told, got.StatusCode, got.Header, string(text))
	}
	claimed := b64([]byte(`{"alg":"ES256","kid":"k"}`)) + "." + b64([]byte(`{"iss":"`+w.issuerURL+`","sub":"`+canary+`sub"}`)) + "." + b64([]byte(canary))
	secrets = append(secrets, strings.Split(claimed, ".")[1], strings.Split(claimed, ".")[2])
	ticket := func() string {
		got, err := w.do(http.MethodPost, r.base+"/v1/tickets", w.customer, nil)
		if err != nil {
			t.Fatal(err)
		}
		issued := parse[struct{ Ticket string }](w, got.body).Ticket
		secrets = append(secrets, issued)
		return issued
	}
	everywhere := func() {
		for _, credential := range []string{canary + "token", claimed, w.operator, w.operator[:len(w.operator)-4] + "AAAA", "srk_x_" + canary, strings.Repeat(canary, 3000)} {
			for _, scheme := range []string{"Bearer ", "bearer  ", "Basic ", "DPoP ", "", "Bearer x "} {
				if len(credential) < 20_000 {
					ask(http.MethodGet, instanceURL(r, k), "", "Authorization", scheme+credential)
				}
			}
			if len(credential) > 10_000 {
				continue
			}
			ask(http.MethodPost, n.base+"/v1/updates", progress("i", 1, 1), "Authorization", "Bearer "+credential)
			ask(http.MethodPost, n.base+"/v1/updates", "{", "Authorization", "Bearer "+credential)
			ask(http.MethodPost, r.base+"/v1/tickets", "", "Authorization", "Bearer "+credential)
			ask(http.MethodGet, instanceURL(r, k), "", "Authorization", "Bearer x", "Authorization", "Bearer "+credential)
			ask(http.MethodGet, instanceURL(r, k), "", "Cookie", "session="+credential, "X-Functions-Key", credential, "X-Api-Key", credential, "Proxy-Authorization", "Bearer "+credential, "Referer", "https://x/?token="+credential)
			for _, parameter := range []string{"ticket", "token", "access_token", "code", "sig", "link.sig"} {
				ask(http.MethodGet, instanceURL(r, k)+"?"+parameter+"="+credential, "")
				ask(http.MethodGet, instanceURL(r, k)+"?"+parameter+"="+credential, "", "Accept", "text/event-stream")
				ask(http.MethodGet, r.base+"/runtime/webhooks/durabletask/instances/i?"+parameter+"="+credential, "")
				_, got := w.handshake(r, "?"+parameter+"="+credential, nil, "status.v1.json")
				fmt.Fprintln(&told, got.header, string(got.body))
			}
			for _, subprotocols := range [][]string{
				{"status.v1.json", "bearer." + b64([]byte(credential))},
				{"status.v1.json", "bearer." + credential},
				{"bearer." + b64([]byte(credential))},
				{credential},
				{"status.v1.json", "bearer." + b64([]byte(credential)), "bearer." + b64([]byte(credential))},
			} {
				_, got := w.handshake(r, "", http.Header{"Origin": {portal}}, subprotocols...)
				fmt.Fprintln(&told, got.header, string(got.body))
			}
			for _, text := range []string{`{"type":"auth","token":%q}`, `{"type":"auth","ref":"r","token":[%q]}`, `{"type":"watch","token":%q}`, `{"type":"auth","token":%q`} {
				s := w.socket(r, "")
				s.send(fmt.Sprintf(text, credential))
				_, said, closed := s.next()
				fmt.Fprintln(&told, said, closed)
				_ = s.conn.Close()
			}
		}
	}
	everywhere()
	used := ticket()
	for range 2 {
		_, got := w.handshake(r, "?ticket="+used, nil, "status.v1.json")
		fmt.Fprintln(&told, got.header, string(got.body))
	}
	left := ticket()
	w.redis.Stop()
	_, got := w.handshake(r, "?ticket="+left, nil, "status.v1.json")
	fmt.Fprintln(&told, got.header, string(got.body))
	everywhere() // while redis is down
	w.bus.DropConnections()
	w.redis.Start()
	metrics := ""
	for _, base := range []string{r.private, n.private, "http://" + wrong.PrivateAddr().String()} {
		for _, path := range []string{"/metrics", "/readyz", "/debug/pprof/cmdline"} {
			got, err := w.do(http.MethodGet, base+path, "", nil)
			if err != nil {
				t.Fatal(err)
			}
			metrics += string(got.body)
		}
	}
	stop()
	r.stop()
	n.stop()
	for place, text := range map[string]string{"the log at level debug": w.logs.String(), "what callers are told": told.String(), "the private listener": metrics} {
		if len(text) < 1000 {
			t.Errorf("%s: only %q was looked at", place, text)
		}
		for _, secret := range secrets {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s: found %.20s… in …%s…", place, secret, text[max(0, i-150):min(len(text), i+50)])
			}
		}
	}
}

// Nothing that comes from outside makes a line of the log, or changes one: each is one JSON object, or one line of text.
func TestU7LogLinesCannotBeForged(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"json", "text"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil)
			w.logs.json = form == "json"
			p := w.provider()
			r := w.relay(nil, trusts(p))
			const forged = "x\r\n{\"level\":\"INFO\",\"msg\":\"forged\"}\ntime=2026-01-01T00:00:00Z level=INFO msg=forged\n\x1b[31mred\x1b[0m\u2028\u202e\x00\x07\""
			quoted, err := json.Marshal(forged)
			if err != nil {
				t.Fatal(err)
			}
			w.send(
				`{"instanceId":`+string(quoted)+`,"customStatus":1}`,
				`{"instanceId":"i",`+string(quoted)+`:1}`,
				`{"instanceId":"i","hub":`+string(quoted)+`,"customStatus":1}`,
				`{"instanceId":"good","hub":"e2e","name":`+string(quoted)+`,"customStatus":`+string(quoted)+`,"labels":{"owner":"u-1001","a\n":`+string(quoted)+`}}`,
				forged,
			)
			w.settled()
			for _, token := range []string{
				p.key().sign(t, p.key().header(map[string]any{"kid": forged}), p.claims(nil)), p.key().sign(t, p.key().header(map[string]any{"alg": forged}), p.claims(nil)),
				p.token(map[string]any{"iss": forged}), p.token(map[string]any{"sub": forged}), p.token(map[string]any{"aud": forged}),
			} {
				w.get(r, token, key("good"))
				c := w.socket(r, "")
				c.send(`{"type":"auth","ref":` + string(quoted) + `,"token":"` + token + `"}`)
				c.next()
			}
			for _, id := range []string{"%0d%0a" + "msg=forged", "%1b%5b31m", "a%22b%0aforged"} {
				w.exchange(r, "GET /v1/hubs/e2e/instances/"+id+" HTTP/1.1\r\nHost: relay\r\nConnection: close\r\nUser-Agent: a\tb\x1b[31m\r\nAuthorization: Bearer "+w.customer+"\r\n\r\n")
			}
			w.redis.Do("HSET", "statusrelay:{e2e/corrupt}", "v", forged, "r", forged)
			w.get(r, w.customer, key("corrupt"))
			p.serve(func(rw http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(rw, `{"keys":[{"kty":"EC","kid":`+string(quoted)+`}]}`)
			})
			w.get(r, newIdentity(t, "other").sign(t, map[string]any{"alg": "ES256", "kid": "other"}, p.claims(nil)), key("good"))
			r.stop()
			text := w.logs.String()
			if !strings.Contains(text, "forged") {
				t.Error("nothing of it was logged: nothing was tested")
			}
			line := regexp.MustCompile(`^time=\S+ level=(DEBUG|INFO|WARN|ERROR) msg=`)
			for _, l := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
				var entry struct{ Time, Level, Msg string }
				if form == "json" {
					if err := json.Unmarshal([]byte(l), &entry); err != nil || entry.Level == "" || entry.Msg == "forged" {
						t.Errorf("%v: %.300q", err, l)
					}
				} else if !line.MatchString(l) || strings.Contains(l, " msg=forged") && !strings.Contains(l, `\n`) || strings.Contains(l[:60], "msg=forged") {
					t.Errorf("%.300q", l)
				}
				if i := strings.IndexFunc(l, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0x202e && form == "text" }); i >= 0 {
					t.Errorf("a control character in %.300q", l)
				}
			}
		})
	}
}

// A program has its secrets from files and variables, and so is neither its command line nor what it says of its configuration.
func TestU8SecretsAreInNoCommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.startProcess(build(w, "relay"), "")
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid))
	if err != nil || len(line) == 0 {
		t.Fatal(err)
	}
	for _, secret := range []string{"devbus-development-key", "SharedAccessKey"} {
		if bytes.Contains(line, []byte(secret)) {
			t.Errorf("%q has a secret", line)
		}
	}
	for _, flag := range []string{"--redis-password", "--service-bus-connection-string"} {
		out, err := exec.CommandContext(w.ctx, p.cmd.Path, "serve", flag, "x").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "unknown flag") {
			t.Errorf("%s is taken: %v, %s", flag, err, out)
		}
	}
}

// The program connects to Redis, the bus and the issuer, and to nobody else.
func TestS5SpeaksToItsPartsOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	p := w.startProcess(build(w, "relay"), "")
	port := func(address string) string { return address[strings.LastIndex(address, ":")+1:] }
	known := map[string]string{
		port(w.redis.Addr): "redis", port(strings.Split(strings.TrimPrefix(w.serviceBus, "Endpoint=sb://"), ";")[0]): "the bus",
		port(strings.TrimSuffix(w.issuerURL, "/issuer")): "the issuer",
	}
	own := []string{port(p.base), port(p.private)}
	k := key("order-4711")
	v := w.watch(&p.replica, w.customer, k)
	seen := map[string]bool{}
	n := 0
	w.during(3*time.Second, func() {
		n++
		w.send(progress(k.InstanceID, n, n))
		v.sees(k, n)
		for _, c := range connections(t, p.cmd.Process.Pid) {
			if slices.Contains(own, c.local) { // somebody has called it
				continue
			}
			if known[c.remote] == "" || c.host != "0100007F" {
				t.Errorf("it is connected to %s:%s", c.host, c.remote)
			}
			seen[known[c.remote]] = true
		}
	})
	if !seen["redis"] || !seen["the bus"] {
		t.Errorf("only connections to %v were seen: nothing was tested", seen)
	}
}

// A connection is one of TCP: ports, and the remote host as the kernel writes it.
type connection struct{ local, host, remote string }

// connections are those of a process, and what else is open towards somewhere.
func connections(t *testing.T, pid int) (all []connection) {
	t.Helper()
	sockets := map[string]bool{}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, f.Name())); err == nil && strings.HasPrefix(to, "socket:[") {
			sockets[strings.Trim(strings.TrimPrefix(to, "socket:"), "[]")] = true
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			continue
		}
		for l := range strings.Lines(string(text)) {
			words := strings.Fields(l)
			if len(words) < 10 || !sockets[words[9]] || words[3] == "0A" { // which listens
				continue
			}
			_, local, _ := strings.Cut(words[1], ":")
			host, remote, _ := strings.Cut(words[2], ":")
			if table == "tcp6" && strings.HasPrefix(host, "0000000000000000FFFF0000") {
				host = strings.TrimPrefix(host, "0000000000000000FFFF0000")
			}
			all = append(all, connection{decimal(local), host, decimal(remote)})
		}
	}
	return all
}

func decimal(hex string) string {
	n := 0
	_, _ = fmt.Sscanf(hex, "%X", &n)
	return fmt.Sprint(n)
}

// A key of links that was put where the path of its file belongs is said neither at the start nor when the file is read again.
func TestU5KeyInThePlaceOfItsPathIsNotSaid(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	secret := b64([]byte("c4n4ry, 32 bytes and some of it."))
	path := file(t, "links.yaml", "keys: [{id: good, key: '"+secret+"'}]\n")
	r := w.relay(nil, func(c *relay.Config) { c.Links.Keys = path })
	replace(t, path, "keys: [{id: bad, key_file: '"+secret+"'}]\n")
	w.until("the log says that the file cannot be used", func() bool { return strings.Contains(w.logs.String(), "line 1, column 28") })
	r.stop()
	if said := w.logs.String(); strings.Contains(said, secret) || !strings.Contains(said, path) {
		t.Errorf("the log says\n%s", said)
	}
	c := relay.Defaults()
	c.Links.Keys = path
	if err := c.Check(); err == nil || !strings.Contains(err.Error(), "links.yaml: line 1, column 28: no such file") || strings.Contains(err.Error(), secret) {
		t.Errorf("got %v", err)
	}
}
