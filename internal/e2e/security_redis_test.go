package e2e_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"statusrelay/internal/redisstore"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
	"statusrelay/internal/status"
	"statusrelay/internal/storetest"
)

// secretFile writes a secret as an operator would.
func (w *world) secretFile(text string) (path string, secret settings.Secret) {
	w.Helper()
	path = filepath.Join(w.TempDir(), "secret")
	w.writeSecret(path, text)
	secret, err := settings.ReadSecret(path)
	if err != nil {
		w.Fatal(err)
	}
	return path, secret
}

// writeSecret replaces a file in one step.
func (w *world) writeSecret(path, text string) {
	w.Helper()
	if err := os.WriteFile(path+".new", []byte(text+"\n"), 0o600); err != nil {
		w.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		w.Fatal(err)
	}
}

// asShipped replaces this world's Redis by one with the users of
// deploy/redis/users.acl, and returns what logs in as the relay's.
func (w *world) asShipped(password string) (path string, logIn func(*relay.Config)) {
	w.Helper()
	w.redis.Stop()
	w.redis = storetest.StartRedisAsShipped(w, password, true)
	server := w.redis
	w.Cleanup(func() {
		if log, err := storetest.Do(server.Addr, "ACL", "LOG"); err == nil && log != "" {
			w.Logf("what Redis refused:\n%s", log) // shown with -v, and of a test that failed
		}
	})
	path, secret := w.secretFile(password)
	return path, func(c *relay.Config) {
		c.Redis.Username, c.Redis.Password = storetest.ShippedUser, secret
	}
}

// The user in deploy/redis/users.acl is enough for everything that the relay does:
// nothing is refused to it. It is enough for nothing else.
func TestR2RelayRunsUnderTheShippedACL(t *testing.T) {
	const password = "correct horse"
	w := newWorld(t, nil)
	_, logIn := w.asShipped(password)
	var config relay.Config
	r, n := w.relay(nil, logIn, func(c *relay.Config) { config = *c }), w.notifier()
	k := key("order-4711")
	socket := w.watch(r, w.customer, k)
	single, list := w.stream(r, w.customer, "/"+k.InstanceID), w.stream(r, w.customer, "")

	for version := 1; version <= 3; version++ { // written, merged with what is cached, and listed anew
		w.post(n, progress(k.InstanceID, version, version*10))
		socket.sees(k, version*10)
		w.shows(r, k, version*10)
	}
	w.post(n, progress("order-4712", 1, 5))
	w.shows(r, key("order-4712"), 5)
	for _, s := range []*stream{single, list} {
		for e, ok := s.next(); e.name != "status" || !strings.Contains(string(e.data), `"percent":30`); e, ok = s.next() {
			if !ok {
				t.Fatal("a stream ended")
			}
		}
	}
	for _, query := range []string{"", "?label.owner=" + owner, "?runtimeStatus=Running", "?id=order-4711&id=order-4712"} {
		got, err := w.do(http.MethodGet, r.base+"/v1/hubs/"+hub+"/instances"+query, w.customer, nil)
		if err != nil || got.code != http.StatusOK || query != "?runtimeStatus=Running" && !strings.Contains(string(got.body), "order-4712") {
			t.Errorf("list %s: got %d %s, %v", query, got.code, got.body, err)
		}
	}
	got, err := w.do(http.MethodPost, r.base+"/v1/tickets", w.customer, nil)
	var answer struct{ Ticket string }
	if err != nil || json.Unmarshal(got.body, &answer) != nil || answer.Ticket == "" {
		t.Fatalf("a ticket: got %d %s, %v", got.code, got.body, err)
	}
	for _, want := range []int{http.StatusOK, http.StatusUnauthorized} {
		if got := w.feed(instanceURL(r, k)+"?ticket="+url.QueryEscape(answer.Ticket), "").code; got != want {
			t.Errorf("with a ticket: got %d, want %d", got, want)
		}
	}
	w.redis.Do("DEL", "statusrelay:index:{"+hub+"}")
	if n, err := relay.Reindex(w.ctx, config, io.Discard, nil); err != nil || n != 2 {
		t.Errorf("reindexed %d, %v, want 2", n, err)
	}
	w.redis.Do("DEL", "statusrelay:{"+hub+"/order-4712}")
	store, err := redisstore.New(redisstore.Options{
		Addrs: []string{w.redis.Addr}, Username: storetest.ShippedUser, Password: password, SweepInterval: 64 * time.Millisecond, TerminalTTL: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	w.until("it is swept, by one in its turn", func() bool {
		if _, err := store.SweepIndexes(w.ctx); err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(w.redis.Do("ZRANGE", "statusrelay:index:{"+hub+"}", "0", "-1"), "order-4712")
	})
	w.until("the subscription comes back", func() bool { return w.redis.Do("CLIENT", "KILL", "TYPE", "pubsub") != "0" })
	w.post(n, progress(k.InstanceID, 9, 90))
	socket.sees(k, 90)
	if log := w.redis.Do("ACL", "LOG"); log != "" {
		t.Errorf("refused to the relay:\n%s", log)
	}

	list.cancel()                                           // nobody wants that list any more
	for _, rule := range storetest.ShippedCommands(t)[1:] { // after -@all
		if rule == "+hdel" || rule == "+zremrangebyrank" {
			continue // the lease of a replica that has died is what takes it, and more interest than there may be; the contract has both
		}
		w.until(rule+" is needed", func() bool {
			return strings.Contains(w.redis.Do("INFO", "commandstats"), "\ncmdstat_"+rule[1:]+":")
		})
	}

	refuses(w, storetest.ShippedUser, password)
	if anybody := redis.NewClient(&redis.Options{Addr: w.redis.Addr, MaxRetries: -1}); anybody.Ping(w.ctx).Err() == nil {
		t.Error("Redis answers who has not logged in")
	}
}

// denied is how Redis refuses a command, and one in a script.
var denied = regexp.MustCompile(`NOPERM|ACL failure|user executing the script can't`)

// refuses wants what nobody needs to be refused to a user, and more that this one does not.
func refuses(w *world, name, password string, more ...string) {
	w.Helper()
	user := redis.NewClient(&redis.Options{
		Addr: w.redis.Addr, Username: name, Password: password, MaxRetries: -1, DisableIdentity: true, Protocol: 2,
	})
	defer user.Close()
	w.redis.Do("SET", "another:secret", "x")
	for _, command := range append(more,
		"FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG GET *", "CONFIG SET dir /tmp", "ACL LIST", "ACL WHOAMI", "ACL SETUSER relay allkeys", "LATENCY LATEST",
		"SHUTDOWN NOSAVE", "REPLICAOF NO ONE", "SAVE", "MONITOR", "CLIENT LIST", "CLIENT KILL TYPE pubsub", "MODULE LIST", "INFO", "SLOWLOG GET",
		"SCRIPT FLUSH", "FUNCTION FLUSH", "MIGRATE h 1 k 0 1", "DUMP statusrelay:a", "SORT statusrelay:a", "SELECT 1", "SWAPDB 0 1", "RANDOMKEY",
		"PSUBSCRIBE *", "PSUBSCRIBE statusrelay:*", "GET another:secret", "SET another:key x", "DEL another:secret", "HMGET another:secret a",
		"GET statusrelay-other:a", "PUBLISH another x", "SUBSCRIBE another", "GETDEL statusrelay:a", "RENAME statusrelay:a another:a",
		"COPY another:secret statusrelay:a", "EVAL return(redis.call('GET','another:secret')) 0",
		"EVAL return(redis.call('GET',KEYS[1])) 1 another:secret", "EVAL return(redis.call('KEYS','*')) 0", "EVAL return(redis.call('FLUSHALL')) 0",
		"EVAL return(redis.call('PUBLISH','another','x')) 0",
	) {
		var words []any
		for _, word := range strings.Fields(command) {
			words = append(words, word)
		}
		if err := user.Do(w.ctx, words...).Err(); err == nil || !denied.MatchString(err.Error()) {
			w.Errorf("%s: got %v, want it refused", command, err)
		}
	}
	if got := w.redis.Do("GET", "another:secret"); got != "x" {
		w.Errorf("another's key is %q now", got)
	}
}

// The shipped file says the same with its comments, included in redis.conf, and
// without them, as an ACL file.
func TestR2ShippedACLLoadsEitherWay(t *testing.T) {
	const password = "p"
	included, file := storetest.StartRedisAsShipped(t, password, true), storetest.StartRedisAsShipped(t, password, false)
	rules := func(r *storetest.Redis, user string) []string { // in no order: Redis has none
		words := strings.Fields(r.Do("ACL", "GETUSER", user))
		slices.Sort(words)
		return words
	}
	for _, user := range []string{storetest.ShippedUser, storetest.ShippedNotifier, storetest.ShippedBridge} {
		if got, want := rules(included, user), rules(file, user); !slices.Equal(got, want) || len(got) == 0 {
			t.Errorf("%s: got %q included and %q as an ACL file", user, got, want)
		}
	}
	for _, r := range []*storetest.Redis{included, file} {
		if got := r.Do("ACL", "GETUSER", "default"); !strings.HasPrefix(got, "flags\noff") || !strings.Contains(got, "\ncommands\n-@all\n") {
			t.Errorf("the default user is\n%s", got)
		}
	}
}

// A password that is rotated in Redis and in its file is used without a restart.
// In between, whichever comes first, Redis counts as away: nothing is lost.
func TestU8RedisPasswordRotatesWithItsFile(t *testing.T) {
	w := newWorld(t, nil)
	path, logIn := w.asShipped("old")
	r, n := w.relay(nil, logIn), w.notifier()
	k := key("order-4711")
	socket := w.watch(r, w.operator, k)
	w.post(n, progress(k.InstanceID, 1, 10))
	socket.sees(k, 10)

	for round, change := range []func(){
		func() { w.redis.Do("ACL", "SETUSER", storetest.ShippedUser, "resetpass", ">new"); w.kill() },
		func() { w.writeSecret(path, "new") },
		func() { w.writeSecret(path, "newest"); w.kill() },
		func() { w.redis.Do("ACL", "SETUSER", storetest.ShippedUser, "resetpass", ">newest") },
		func() { _ = os.Remove(path); w.kill() }, // no file: the next one may be there
		func() { w.writeSecret(path, "newest") },
	} {
		change()
		percent := 20 + round
		w.post(n, progress(k.InstanceID, 2+round, percent))
		if round%2 == 0 {
			w.until("the relay is not ready", func() bool { return w.ready(r) == http.StatusServiceUnavailable })
			if got := w.get(r, w.operator, k); got.code != http.StatusServiceUnavailable {
				t.Errorf("round %d: a read meanwhile: got %d %s", round, got.code, got.body)
			}
			continue
		}
		socket.sees(k, percent)
		w.shows(r, k, percent)
		w.until("the relay is ready", func() bool { return w.ready(r) == http.StatusOK })
	}
	if err := socket.end(); err != nil {
		t.Errorf("the socket ended with %v", err)
	}
	w.settled()
	if s := w.stats(); s.TotalDeadLettered > 0 {
		t.Errorf("in the end: %+v", s)
	}
	for _, password := range []string{"old", "newest"} {
		if strings.Contains(w.logs.String(), password+"\n") || strings.Contains(w.logs.String(), ">"+password) {
			t.Error("a password is in the log")
		}
	}
}

// kill ends every connection to Redis that is not the one that says so.
func (w *world) kill() {
	w.Helper()
	w.redis.Do("CLIENT", "KILL", "TYPE", "pubsub")
	w.redis.Do("CLIENT", "KILL", "TYPE", "normal")
}

// An id that is a pattern, a path, a hash tag, a separator or Lua elsewhere is one
// name in Redis, and what is kept below it is one instance of one hub.
func TestR1HostileIDsStayInTheirKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	r := w.relay(nil)
	var keys []status.Key
	for _, id := range []string{
		"a", "A", "*", "a*", "?", "[a]", "[^a]*", "{a}", "}a{", "{}", "}", "{", "a}b", "{" + hub, "a}:{" + hub, "a:b", "sweep", "index:{" + hub + "}", "ticket:a",
		"statusrelay:{" + hub + ":i}", "..", "%2e%2e", "%7Ba%7D", "%", "%00", "a%2Fb", "a b", "a  b", "a\u00a0b", "a;b", "a|b", "a'b", `"}`, "$1", "$(id)", "`id`",
		"';return 1--", `"]] redis.call("FLUSHALL") --[["`, "KEYS[1]", "ARGV[1]", "日本語", "😀", "é", "e\u0301", "~", "^", "-1", "0", "null", strings.Repeat("*", 256),
	} {
		if status.ValidInstanceID(id) != nil {
			continue // refused at the door: schemas/examples/bad
		}
		keys = append(keys, status.Key{Hub: hub, InstanceID: id}, status.Key{Hub: "other", InstanceID: id})
	}
	if len(keys) < 50 {
		t.Fatalf("only %d ids are valid", len(keys)/2)
	}
	half := len(keys) / 2
	sockets := []*watcher{w.watch(r, w.operator, keys[:half]...), w.watch(r, w.operator, keys[half:]...)}
	var bodies []string
	for i, k := range keys {
		text, err := json.Marshal(k.InstanceID)
		if err != nil {
			t.Fatal(err)
		}
		body := strings.Replace(progress("ID", 1, i), `"ID"`, string(text), 1)
		bodies = append(bodies, strings.Replace(body, `"`+hub+`"`, `"`+k.Hub+`"`, 1))
	}
	w.send(bodies[0])
	sockets[0].sees(keys[0], 0)
	w.settled() // it is in its lists too
	known := w.scripts()
	w.send(bodies[1:]...)
	var want []string
	for i, k := range keys {
		sockets[i/half].sees(k, i)
		if k.InstanceID != ".." { // which a path cannot have
			if got := w.get(r, w.operator, k); got.code != http.StatusOK || w.view(got.body).percent() != i {
				t.Errorf("%q: got %d %s, want %d", k, got.code, got.body, i)
			}
		}
		got, err := w.do(http.MethodGet, r.base+"/v1/hubs/"+k.Hub+"/instances?id="+url.QueryEscape(k.InstanceID), w.operator, nil)
		var found struct{ Instances []view }
		if err != nil || json.Unmarshal(got.body, &found) != nil || len(found.Instances) != 1 {
			t.Errorf("%q: got %d %s, %v", k, got.code, got.body, err)
		} else if v := found.Instances[0]; v.Hub != k.Hub || v.InstanceID != k.InstanceID || v.percent() != i {
			t.Errorf("%q: got %+v, want %d", k, v, i)
		}
		want = append(want, "statusrelay:{"+k.Hub+"/"+url.PathEscape(k.InstanceID)+"}")
	}
	var records []string
	for name := range strings.SplitSeq(w.redis.Do("KEYS", "*"), "\n") {
		if strings.HasPrefix(name, "statusrelay:{") {
			records = append(records, name)
		} else if !strings.HasPrefix(name, "statusrelay:index:{"+hub) && !strings.HasPrefix(name, "statusrelay:index:{other") &&
			!strings.HasPrefix(name, "statusrelay:sockets:") { // which are of callers
			t.Errorf("there is a key %q", name)
		}
	}
	slices.Sort(records)
	slices.Sort(want)
	if !slices.Equal(records, want) {
		t.Errorf("got records\n%q\nwant\n%q", records, want)
	}
	// R4: what differs from instance to instance is KEYS and ARGV; else each would be a script of its own.
	if got := w.scripts(); got != known || known == "" {
		t.Errorf("redis knew %s scripts after the first instance, and %s after all", known, got)
	}
}

// scripts is how many Redis knows.
func (w *world) scripts() string {
	w.Helper()
	_, rest, _ := strings.Cut(w.redis.Do("INFO", "memory"), "number_of_cached_scripts:")
	n, _, _ := strings.Cut(rest, "\r")
	return n
}
