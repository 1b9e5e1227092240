package auth_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"statusrelay/internal/auth"
	"statusrelay/internal/status"
)

// accepts, refuses and lacksKeys fail the test unless the verifier does so.

func accepts(t *testing.T, v *auth.Verifier, token, when string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

func refuses(t *testing.T, v *auth.Verifier, token, when string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, auth.ErrUnauthenticated) || errors.Is(err, status.ErrUnavailable) {
		t.Errorf("%s: got %v, want ErrUnauthenticated", when, err)
	}
}

func lacksKeys(t *testing.T, v *auth.Verifier, token, when string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, status.ErrUnavailable) || errors.Is(err, auth.ErrUnauthenticated) {
		t.Errorf("%s: got %v, want ErrUnavailable", when, err)
	}
}

func TestNewAsksNobody(t *testing.T) {
	p := newProvider(t)
	p.verifier()
	if n := len(p.hosts()); n != 0 {
		t.Errorf("asked %d hosts", n)
	}
}

func TestNewKeyIsFoundAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		accepts(t, v, p.token(nil), "at first")
		added := newKey(p256(), "added", "ES256")
		p.publish(p.rsa, p.ec, added)
		accepts(t, v, p.sign(added, nil, nil), "token of a key published after the last fetch")
		if n := p.fetches(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
}

func TestFloodOfUnknownKeysCostsTwoFetchesIn30s(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		good := p.token(nil)
		accepts(t, v, good, "at first")
		stranger := newKey(p256(), "", "ES256")
		before := p.fetches()
		for i := range 300 { // 30 s
			for j := range 3 {
				refuses(t, v, p.sign(stranger, map[string]any{"kid": fmt.Sprint(i, j)}, nil), "flood")
			}
			accepts(t, v, good, "during the flood")
			time.Sleep(100 * time.Millisecond)
		}
		if n := p.fetches() - before; n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
}

func TestRotationWorksWithin30sDuringAFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		accepts(t, v, p.token(nil), "at first")
		stranger := newKey(p256(), "stranger", "ES256")
		flood := p.sign(stranger, nil, nil)
		refuses(t, v, flood, "flood")
		added := newKey(p256(), "added", "ES256")
		p.publish(p.ec, added)
		start, token := time.Now(), p.sign(added, nil, nil)
		for {
			refuses(t, v, flood, "flood")
			if _, err := v.Verify(t.Context(), token); err == nil {
				break
			}
			if time.Since(start) > 30*time.Second {
				t.Fatal("the new key is not known after 30 s")
			}
			time.Sleep(time.Second)
		}
	})
}

func TestFloodWhileTheEndpointIsDownDoesNotHammerIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		accepts(t, v, p.token(nil), "at first")
		p.goDown()
		before := p.requests()
		stranger := newKey(p256(), "stranger", "ES256")
		for range 30 {
			refuses(t, v, p.sign(stranger, nil, nil), "unknown key while others are known")
			time.Sleep(time.Second)
		}
		if n := p.requests() - before; n != 2 {
			t.Errorf("%d requests in 30 s, want 2", n)
		}
	})
}

func TestRetiredKeyStopsWorkingWithinTheRefreshInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		remembered, fresh := p.token(nil), p.token(map[string]any{"sub": "other"})
		accepts(t, v, remembered, "at first")
		stays := p.sign(p.rsa, nil, nil)
		accepts(t, v, stays, "at first")
		p.publish(p.rsa)
		time.Sleep(5*time.Minute - 1)
		accepts(t, v, remembered, "before the interval is over")
		time.Sleep(time.Nanosecond)
		refuses(t, v, remembered, "remembered token of a retired key")
		refuses(t, v, fresh, "new token of a retired key")
		accepts(t, v, stays, "token of the key that stays")
	})
}

func TestUseDoesNotProlongARetiredKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		token := p.token(nil)
		accepts(t, v, token, "at first")
		p.publish()
		for start := time.Now(); time.Since(start) < 5*time.Minute; time.Sleep(time.Second) {
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatalf("refused after %v: %v", time.Since(start), err)
			}
		}
		refuses(t, v, token, "after the interval")
	})
}

func TestKeyReplacedUnderItsOldIDStopsWorking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		old := p.token(nil)
		accepts(t, v, old, "at first")
		replaced := newKey(p256(), "ec", "ES256")
		p.publish(replaced)
		time.Sleep(5 * time.Minute)
		refuses(t, v, old, "token of the replaced key")
		accepts(t, v, p.sign(replaced, nil, nil), "token of the key in its place")
	})
}

func TestKeyPublishedForAnotherPurposeIsAnotherKey(t *testing.T) {
	for name, change := range map[string]func(*signingKey) *signingKey{
		"algorithm": func(k *signingKey) *signingKey { return k.with("alg", "RS512") },
		"issuer":    func(k *signingKey) *signingKey { return k.with("issuer", "https://other.example.com") },
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newProvider(t)
			p.issuers[0].Algorithms = []string{"RS256", "RS512"}
			k := p.rsa.with("alg", "RS256")
			p.publish(k)
			v := p.verifier()
			token := p.sign(k, nil, nil)
			accepts(t, v, token, "at first")
			refuses(t, v, p.sign(k, map[string]any{"alg": "RS512"}, nil), "token of an algorithm that the key is not for")
			p.publish(change(k))
			time.Sleep(5 * time.Minute)
			refuses(t, v, token, "after a change of the key's "+name)
		})
	}
}

func TestOnlyKeyNeedsNoID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		anonymous := newKey(p256(), "", "ES256")
		p.publish()
		v := p.verifier()
		refuses(t, v, p.sign(anonymous, map[string]any{"kid": nil}, nil), "no key")
		time.Sleep(15 * time.Second)
		p.publish(anonymous)
		accepts(t, v, p.sign(anonymous, map[string]any{"kid": nil}, nil), "token and key without id")
		time.Sleep(15 * time.Second)
		refuses(t, v, p.sign(anonymous, map[string]any{"kid": "x"}, nil), "token that names another key")
		time.Sleep(15 * time.Second)
		next := newKey(p256(), "", "ES256")
		p.publish(next)
		accepts(t, v, p.sign(next, map[string]any{"kid": nil}, nil), "token of the key that took its place")
		p.publish(next, newKey(p256(), "", "ES256"))
		time.Sleep(5 * time.Minute)
		refuses(t, v, p.sign(next, map[string]any{"kid": nil}, nil), "token without id, two keys")
	})
}

func TestKnownKeysOutliveTheirEndpointForTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		o := p.options()
		o.KeyGrace = time.Hour
		v, err := auth.New(o)
		if err != nil {
			t.Fatal(err)
		}
		day := map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()}
		remembered := p.token(day)
		accepts(t, v, remembered, "at first")
		p.goDown()
		time.Sleep(time.Hour - 1)
		accepts(t, v, remembered, "remembered token at the end of the grace")
		synctest.Wait()
		accepts(t, v, p.sign(p.rsa, nil, day), "new token at the end of the grace")
		refuses(t, v, p.token(map[string]any{"aud": "them"}), "bad token while the endpoint is down")
		time.Sleep(time.Nanosecond)
		lacksKeys(t, v, remembered, "remembered token after the grace")
		lacksKeys(t, v, p.token(nil), "new token after the grace")
		refuses(t, v, p.token(map[string]any{"iss": "x"}), "token of nobody's after the grace")
		p.serve(nil)
		time.Sleep(15 * time.Second)
		accepts(t, v, remembered, "remembered token when the endpoint is back")
		accepts(t, v, p.token(nil), "new token when the endpoint is back")
	})
}

func TestNoKeysAtAllIsUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		p.goDown()
		for range 15 {
			lacksKeys(t, v, p.token(nil), "endpoint down from the start")
			time.Sleep(time.Second)
		}
		if n := p.requests(); n != 3 {
			t.Errorf("asked %d times in 15 s, want 3", n)
		}
		if err := v.Ready(); !errors.Is(err, status.ErrUnavailable) || !strings.Contains(err.Error(), issuerURL) || !strings.Contains(err.Error(), "502") {
			t.Errorf("Ready does not name the issuer and the cause: %v", err)
		}
		p.serve(nil)
		time.Sleep(5 * time.Second)
		accepts(t, v, p.token(nil), "endpoint back")
		if err := v.Ready(); err != nil {
			t.Errorf("Ready: %v", err)
		}
	})
}

func TestNobodyWaitsForAnEndpointKnownToBeDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		token := p.token(nil)
		accepts(t, v, token, "at first")
		p.serve(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		time.Sleep(5 * time.Minute)
		start := time.Now()
		accepts(t, v, token, "the one that notices")
		if waited := time.Since(start); waited != 5*time.Second {
			t.Errorf("a fetch gives up after %v, want 5 s", waited)
		}
		start = time.Now()
		for range 60 {
			before := time.Now()
			accepts(t, v, token, "afterwards")
			if waited := time.Since(before); waited != 0 {
				t.Errorf("waited %v, %v later", waited, before.Sub(start))
			}
			time.Sleep(time.Second)
		}
		if n := p.requests(); n != 7 { // two at first, one that is noticed, one every 15 s
			t.Errorf("asked %d times, want 7", n)
		}
	})
}

func TestConcurrentFetchesAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		p.issuers[0].JWKSURL = "https://login.example.com/keys"
		release := make(chan struct{})
		set := p.set
		p.serve(func(w http.ResponseWriter, _ *http.Request) { <-release; _, _ = w.Write(set) })
		v := p.verifier()
		var callers sync.WaitGroup
		var accepted atomic.Int64
		for range 100 {
			token := p.token(nil)
			callers.Go(func() {
				if _, err := v.Verify(t.Context(), token); err == nil {
					accepted.Add(1)
				}
			})
		}
		synctest.Wait()
		close(release)
		callers.Wait()
		if n := accepted.Load(); n != 100 || p.fetches() != 1 {
			t.Errorf("%d of 100 accepted after %d fetches, want all after 1", n, p.fetches())
		}
	})
}

func TestFetchThatSomebodyElseHasJustMadeIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		token := p.token(nil)
		var v *auth.Verifier
		var looking atomic.Bool
		// Between the look at the keys and the decision to fetch them, somebody else fetches them.
		p.now = func() time.Time {
			if looking.CompareAndSwap(true, false) {
				accepts(t, v, token, "somebody else")
			}
			return time.Now()
		}
		v = p.verifier()
		ctx, stop := context.WithCancel(t.Context())
		looking.Store(true)
		var running sync.WaitGroup
		running.Go(func() { _ = v.Run(ctx) })
		synctest.Wait()
		stop()
		running.Wait()
		if n := p.fetches(); looking.Load() || n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

func TestCallerWhoLeavesDoesNotFailTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		p.issuers[0].JWKSURL = "https://login.example.com/keys"
		release := make(chan struct{})
		set := p.set
		p.serve(func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
				_, _ = w.Write(set)
			case <-r.Context().Done():
			}
		})
		v := p.verifier()
		ctx, leave := context.WithCancel(t.Context())
		left, stayed := make(chan error, 1), make(chan error, 1)
		token := p.token(nil)
		go func() { _, err := v.Verify(ctx, token); left <- err }()
		synctest.Wait() // the one who leaves has begun the fetch
		go func() { _, err := v.Verify(t.Context(), token); stayed <- err }()
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) || !errors.Is(err, status.ErrUnavailable) {
			t.Errorf("the one who left got %v", err)
		}
		close(release)
		if err := <-stayed; err != nil {
			t.Errorf("the one who stayed got %v", err)
		}
	})
}

func TestBadAnswersLeaveTheOldKeys(t *testing.T) {
	many := make([]any, 51)
	for i := range many {
		many[i] = newKey(p256(), fmt.Sprint(i), "ES256").public
	}
	write := func(body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	for name, instead := range map[string]func(http.ResponseWriter, *http.Request){
		"an error":         func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"not modified":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		"nothing":          write(""),
		"HTML":             write("<html>"),
		"not a set":        write("{}"),
		"no array":         write(`{"keys":null}`),
		"keys twice":       write(`{"keys":[],"keys":[]}`),
		"too many keys":    write(string(must(json.Marshal(map[string]any{"keys": many})))),
		"too many bytes":   write(`{"keys":[]}` + strings.Repeat(" ", 1<<20)),
		"silence":          func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"endless redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) },
		"redirect elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://169.254.169.254/metadata", http.StatusFound)
		},
		"redirect to plain http": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://login.example.com/keys", http.StatusFound)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProvider(t)
				p.issuers[0].JWKSURL = "https://login.example.com/keys"
				var log bytes.Buffer
				o := p.options()
				o.Logger = slog.New(slog.NewTextHandler(&log, nil))
				v, err := auth.New(o)
				if err != nil {
					t.Fatal(err)
				}
				token := p.token(nil)
				accepts(t, v, token, "at first")
				p.serve(instead)
				time.Sleep(5 * time.Minute)
				accepts(t, v, token, "with the old keys")
				if !strings.Contains(log.String(), "keys not fetched") {
					t.Errorf("that was believed; log: %s", &log)
				}
				for _, url := range p.asked {
					if !strings.HasPrefix(url, "https://login.example.com/") {
						t.Errorf("asked %s", url)
					}
				}
				if n := p.fetches(); n > 6 {
					t.Errorf("followed %d redirects", n)
				}
			})
		})
	}
}

// endless is a body that never ends, and a transport that answers with it.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) { e.read.Add(int64(len(p))); return len(p), nil }
func (e *endless) Close() error               { return nil }
func (e *endless) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: e, Request: r}, nil
}

func TestAnswersAreReadUpToTheirLimit(t *testing.T) {
	p := newProvider(t)
	answer := new(endless)
	o := p.options()
	o.HTTPClient = &http.Client{Transport: answer}
	v, err := auth.New(o)
	if err != nil {
		t.Fatal(err)
	}
	lacksKeys(t, v, p.token(nil), "endless answer")
	if n := answer.read.Load(); n > 1<<20+1 {
		t.Errorf("read %d bytes", n)
	}
}

func TestRedirectOnTheHostIsFollowed(t *testing.T) {
	p := newProvider(t)
	p.issuers[0].JWKSURL = "https://login.example.com/keys"
	set := p.set
	p.serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		_, _ = w.Write(set)
	})
	accepts(t, p.verifier(), p.token(nil), "after a redirect")
}

func TestFiftyKeysAreNotTooMany(t *testing.T) {
	p := newProvider(t)
	keys := make([]*signingKey, 50)
	for i := range keys {
		keys[i] = newKey(p256(), fmt.Sprint(i), "ES256")
	}
	p.publish(keys...)
	accepts(t, p.verifier(), p.sign(keys[49], nil, nil), "the fiftieth key")
}

func TestDiscoveryIsNotTrustedBlindly(t *testing.T) {
	for _, test := range []struct {
		issuer, document string
		want             bool
	}{
		{issuerURL, `{"issuer":"` + issuerURL + `","jwks_uri":"https://elsewhere.example.com/keys"}`, true},
		{issuerURL, `{"issuer":"https://evil.example.com","jwks_uri":"https://login.example.com/keys"}`, false},
		{issuerURL, `{"jwks_uri":"https://login.example.com/keys"}`, false},
		{issuerURL, `{"issuer":"` + issuerURL + `"}`, false},
		{issuerURL, `{"issuer":"` + issuerURL + `","jwks_uri":"http://login.example.com/keys"}`, false},
		{issuerURL, `{"issuer":"` + issuerURL + `","jwks_uri":"http://127.0.0.1:6379/keys"}`, false},
		{issuerURL, `{"issuer":"` + issuerURL + `","jwks_uri":"file:///etc/passwd"}`, false},
		{issuerURL, `not JSON`, false},
		{"http://localhost:1/x", `{"issuer":"http://localhost:1/x","jwks_uri":"http://localhost:1/keys"}`, true},
	} {
		p := newProvider(t)
		p.issuers[0].URL = test.issuer
		set := p.set
		p.serve(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/.well-known/openid-configuration") {
				_, _ = w.Write([]byte(test.document))
				return
			}
			_, _ = w.Write(set)
		})
		_, err := p.verifier().Verify(t.Context(), p.token(map[string]any{"iss": test.issuer}))
		if (err == nil) != test.want || err != nil && !errors.Is(err, status.ErrUnavailable) {
			t.Errorf("%s: %v; want accepted: %v", test.document, err, test.want)
		}
	}
}

func TestDiscoveryIsAskedAgainWhenTheKeysHaveMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		accepts(t, v, p.token(nil), "at first")
		set := p.set
		p.serve(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/tenant/.well-known/openid-configuration":
				_, _ = w.Write([]byte(`{"issuer":"` + issuerURL + `","jwks_uri":"https://moved.example.com/moved"}`))
			case "/moved":
				_, _ = w.Write(set)
			default:
				w.WriteHeader(http.StatusNotFound)
			}
		})
		time.Sleep(5 * time.Minute)
		accepts(t, v, p.token(nil), "while the old address fails")
		time.Sleep(15 * time.Second)
		accepts(t, v, p.token(nil), "again")
		synctest.Wait()
		if got := strings.Join(p.hosts(), " "); !strings.Contains(got, "moved.example.com") {
			t.Errorf("asked only %s", got)
		}
		// An address that still answers is looked up again within the hour.
		discoveries := func() (n int) {
			for _, url := range p.asked {
				if strings.HasSuffix(url, "openid-configuration") {
					n++
				}
			}
			return n
		}
		before := discoveries()
		for range 15 {
			time.Sleep(5 * time.Minute)
			accepts(t, v, p.token(nil), "later")
		}
		if n := discoveries() - before; n != 1 {
			t.Errorf("looked up %d times in 75 minutes, want 1", n)
		}
	})
}

func TestFetchNamesTheIssuersWhoseKeysCannotBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		if err := v.Fetch(t.Context()); err != nil || v.Ready() != nil {
			t.Errorf("got %v, and Ready says %v", err, v.Ready())
		}
		p.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
		v = p.verifier()
		start := time.Now()
		if err := v.Fetch(t.Context()); !errors.Is(err, status.ErrUnavailable) || !strings.Contains(err.Error(), "issuer") || time.Since(start) > 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestRunFetchesBeforeAnybodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		if err := v.Ready(); !errors.Is(err, status.ErrUnavailable) {
			t.Errorf("Ready before any fetch: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		synctest.Wait()
		if err := v.Ready(); err != nil {
			t.Errorf("Ready while Run runs: %v", err)
		}
		token := p.token(map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()})
		// Nobody has to wait, not even for a provider that needs a while to answer.
		set := p.set
		p.serve(func(w http.ResponseWriter, r *http.Request) { time.Sleep(3 * time.Second); _, _ = w.Write(set) })
		for range 3600 {
			start := time.Now()
			accepts(t, v, token, "while Run runs")
			if waited := time.Since(start); waited != 0 {
				t.Fatalf("waited %v", waited)
			}
			time.Sleep(time.Second)
		}
		if n := p.fetches(); n < 12 || n > 16 {
			t.Errorf("%d fetches in an hour, want one every four minutes", n)
		}
		p.goDown()
		before := p.requests()
		time.Sleep(10 * time.Minute)
		if n := p.requests() - before; n < 20 || n > 41 {
			t.Errorf("%d fetches in 10 minutes of failure, want one every 15 s", n)
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestChangesOfKeysAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		p.publish(p.rsa, p.ec, newKey(shortKey(), "short", "RS256"))
		var log bytes.Buffer
		o := p.options()
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		v, err := auth.New(o)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			accepts(t, v, p.token(nil), "unchanged")
			time.Sleep(5 * time.Minute)
		}
		if n := strings.Count(log.String(), "keys changed"); n != 1 || !strings.Contains(log.String(), "RSA key of 1024 bits") {
			t.Errorf("want one line that says what is ignored and why, got\n%s", &log)
		}
		log.Reset()
		p.publish(p.ec)
		accepts(t, v, p.token(nil), "fewer keys")
		if !strings.Contains(log.String(), "keys=[ec]") {
			t.Errorf("want the keys that are left, got\n%s", &log)
		}
	})
}

func TestResultsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		registry := prometheus.NewPedanticRegistry()
		o := p.options()
		o.Metrics = registry
		v, err := auth.New(o)
		if err != nil {
			t.Fatal(err)
		}
		p.goDown()
		lacksKeys(t, v, p.token(nil), "no keys")
		p.serve(nil)
		time.Sleep(5 * time.Second)
		token := p.token(nil)
		accepts(t, v, token, "first")
		accepts(t, v, token, "second")
		accepts(t, v, token, "third")
		refuses(t, v, "x", "garbage")
		refuses(t, v, p.token(map[string]any{"exp": 0}), "expired")
		want := `
# HELP statusrelay_auth_key_fetches_total Fetches of an issuer's keys.
# TYPE statusrelay_auth_key_fetches_total counter
statusrelay_auth_key_fetches_total{issuer="https://login.example.com/tenant/",result="failed"} 1
statusrelay_auth_key_fetches_total{issuer="https://login.example.com/tenant/",result="succeeded"} 1
# HELP statusrelay_auth_tokens_total Tokens by what came of them; remembered ones were verified before.
# TYPE statusrelay_auth_tokens_total counter
statusrelay_auth_tokens_total{result="expired"} 1
statusrelay_auth_tokens_total{result="refused"} 1
statusrelay_auth_tokens_total{result="remembered"} 2
statusrelay_auth_tokens_total{result="unavailable"} 1
statusrelay_auth_tokens_total{result="verified"} 1
`
		if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	})
}

// Many verify while keys come and go: a token is accepted exactly as long as its key may be.
func TestVerifyingDuringRotations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProvider(t)
		v := p.verifier()
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = v.Run(ctx) })

		stays := p.sign(p.ec, nil, map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()})
		first, err := v.Verify(ctx, stays)
		if err != nil {
			t.Fatal(err)
		}
		var current atomic.Pointer[string]
		current.Store(&stays)
		for range 8 {
			running.Go(func() {
				for ctx.Err() == nil {
					if principal, err := v.Verify(t.Context(), stays); err != nil || principal != first {
						t.Errorf("token of the key that stays: %p, %v; want %p", principal, err, first)
					}
					if _, err := v.Verify(t.Context(), *current.Load()); err != nil {
						t.Errorf("token of the current key: %v", err)
					}
					time.Sleep(time.Second)
				}
			})
		}
		var gone []string
		old := p.rsa
		for i := range 5 {
			k := newKey(p256(), fmt.Sprint("rotated", i), "ES256")
			p.publish(p.ec, old, k)
			time.Sleep(30 * time.Second)
			token := p.sign(k, nil, map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()})
			gone = append(gone, *current.Swap(&token))
			time.Sleep(2 * time.Second) // until nobody uses the old one any more
			p.publish(p.ec, k)
			time.Sleep(10 * time.Minute)
			old = k
		}
		stop()
		running.Wait()
		for i, token := range gone[1:] {
			refuses(t, v, token, fmt.Sprint("token of key ", i, ", long gone"))
		}
	})
}
