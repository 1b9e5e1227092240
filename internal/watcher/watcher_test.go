package watcher_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"statusrelay/internal/status"
	"statusrelay/internal/watcher"
)

const canary = "c4n4ry-token"

// A relay of tests answers its requests in turn, the last of its answers again and again, on the clock of a bubble.
type relay struct {
	answers []http.HandlerFunc

	mu   sync.Mutex
	seen []request
}

// A request is what was asked, and when, from the start on.
type request struct {
	at          time.Duration
	path, after string
	token       string
}

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// follow runs test in a bubble, with options whose relay gives the answers.
func follow(t *testing.T, answers []http.HandlerFunc, test func(t *testing.T, o watcher.Options, r *relay)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, start := &relay{answers: answers}, time.Now()
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			r.mu.Lock()
			r.seen = append(r.seen, request{time.Since(start), q.URL.EscapedPath(), q.Header.Get("Last-Event-ID"), q.Header.Get("Authorization")})
			answer := r.answers[min(len(r.seen), len(r.answers))-1]
			r.mu.Unlock()
			answer(w, q)
		})}
		go server.Serve(l)
		transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			l.conns <- theirs
			return ours, nil
		}}
		defer transport.CloseIdleConnections()
		defer server.Close()
		test(t, watcher.Options{
			Relay: "http://relay/behind/", Key: status.Key{Hub: "h", InstanceID: "i ü%"},
			Token: func() (string, error) { return canary, nil }, Transport: transport,
		}, r)
	})
}

// run follows to the end that done says, and returns what was heard.
func run(t *testing.T, o watcher.Options, enough func(watcher.Change) bool) (heard []string, err error) {
	t.Helper()
	w, err := watcher.New(o)
	if err != nil {
		t.Fatal(err)
	}
	err = w.Follow(t.Context(), func(c watcher.Change) bool {
		if what := string(c.RuntimeStatus); c.Gone {
			heard = append(heard, fmt.Sprint(c.Version, " gone"))
		} else {
			heard = append(heard, fmt.Sprint(c.Version, " ", what))
		}
		return !enough(c)
	})
	if err != nil && strings.Contains(err.Error(), canary) {
		t.Errorf("the token is in %q", err)
	}
	return heard, err
}

func ended(c watcher.Change) bool { return c.Ended() }

// events answers with a stream and ends it, after having waited for the client if hold is set.
func events(hold bool, lines ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, line := range lines {
			fmt.Fprint(w, line+"\n\n")
		}
		w.(http.Flusher).Flush()
		if hold {
			<-r.Context().Done()
		}
	}
}

func event(version int, state string) string {
	return fmt.Sprintf("event: status\nid: %d\ndata: {\"version\":%d,\ndata: \"runtimeStatus\":%q}", version, version, state)
}

func answer(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(code)
		fmt.Fprint(w, `{"title":"No.","detail":"because\u001b[2J"}`)
	}
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// Each change is told once, in the order of versions, whatever the streams repeat, and the next stream begins where the last has ended.
func TestEachChangeIsToldOnce(t *testing.T) {
	follow(t, []http.HandlerFunc{
		events(false, "retry: 3000", ":", event(5, "Running"), event(5, "Running"), event(4, "Pending"), "event: listed\ndata: {}"),
		events(true, event(5, "Running"), event(9, "Suspended"), event(12, "Completed"), event(13, "Running")),
	}, func(t *testing.T, o watcher.Options, r *relay) {
		heard, err := run(t, o, ended)
		same(t, "heard", heard, "5 Running", "9 Suspended", "12 Completed")
		if err != nil {
			t.Error(err)
		}
		want := []request{{0, "/behind/v1/hubs/h/instances/i%20%C3%BC%25", "", "Bearer " + canary}, {3 * time.Second, "/behind/v1/hubs/h/instances/i%20%C3%BC%25", "5", "Bearer " + canary}}
		if !slices.Equal(r.seen, want) {
			t.Errorf("asked %v, want %v", r.seen, want)
		}
	})
}

func TestWhatTheCallerKnowsIsNotTold(t *testing.T) {
	follow(t, []http.HandlerFunc{events(true, event(5, "Completed"), event(6, "Running"), "event: gone\nid: 7\ndata: {\"version\":7}")},
		func(t *testing.T, o watcher.Options, r *relay) {
			o.After = 5
			heard, err := run(t, o, ended)
			same(t, "heard", heard, "6 Running", "7 gone")
			if err != nil || r.seen[0].after != "5" {
				t.Errorf("got %v after having asked %v", err, r.seen)
			}
		})
}

// What passes is waited out: for as long as the answer says, in seconds or as a date, and longer each time where it does not.
func TestWhatPassesIsWaitedOut(t *testing.T) {
	follow(t, []http.HandlerFunc{
		answer(503, "Retry-After", "20"),
		func(w http.ResponseWriter, r *http.Request) {
			answer(429, "Retry-After", time.Now().Add(15*time.Second).UTC().Format(http.TimeFormat))(w, r)
		},
		answer(502), answer(404), answer(500), events(true, event(1, "Failed")),
	}, func(t *testing.T, o watcher.Options, r *relay) {
		var causes []string
		o.Trouble = func(cause error, _ time.Duration) { causes = append(causes, cause.Error()) }
		heard, err := run(t, o, ended)
		same(t, "heard", heard, "1 Failed")
		if err != nil || len(r.seen) != 6 {
			t.Fatalf("got %v after %v", err, r.seen)
		}
		for i, least := range []time.Duration{20 * time.Second, 14 * time.Second, time.Second, 2 * time.Second, 4 * time.Second} {
			if pause := r.seen[i+1].at - r.seen[i].at; pause < least || pause > least+12*time.Second {
				t.Errorf("after request %d it paused for %v, want %v or somewhat more", i, pause, least)
			}
		}
		if !strings.Contains(causes[0], "503") || !strings.Contains(causes[3], "404: No. (because\ufffd[2J)") {
			t.Errorf("trouble: %q", causes)
		}
	})
}

// An instance that the relay does not know, in whichever way it says so, is waited for, but not for ever.
func TestUnknownInstanceIsGivenUpAfterAWhile(t *testing.T) {
	for name, first := range map[string]http.HandlerFunc{"NotFound": answer(404), "Silence": events(true, ":")} {
		t.Run(name, func(t *testing.T) {
			follow(t, []http.HandlerFunc{first}, func(t *testing.T, o watcher.Options, _ *relay) {
				o.Patience = 40 * time.Second
				start := time.Now()
				heard, err := run(t, o, ended)
				if took := time.Since(start); !errors.Is(err, watcher.ErrGivenUp) || len(heard) > 0 || took > 40*time.Second || took < 20*time.Second {
					t.Errorf("got %v and %q after %v", err, heard, took)
				}
				if !strings.Contains(err.Error(), "no such") && !strings.Contains(err.Error(), "404") {
					t.Errorf("it does not say why: %v", err)
				}
			})
		})
	}
}

// A relay that goes away is waited for, each time anew; one that stays away is given up.
func TestRelayMayBeAwayForAWhileEachTime(t *testing.T) {
	away := answer(503, "Retry-After", "25")
	follow(t, []http.HandlerFunc{
		events(false, event(1, "Running")), away, events(false, ":"), away, events(false, event(2, "Running")), away, away, away,
	}, func(t *testing.T, o watcher.Options, r *relay) {
		heard, err := run(t, o, ended)
		same(t, "heard", heard, "1 Running", "2 Running")
		if !errors.Is(err, watcher.ErrGivenUp) || !strings.Contains(err.Error(), "503") || len(r.seen) != 8 {
			t.Errorf("got %v after %d requests", err, len(r.seen))
		}
	})
}

// Once the relay is back there is no hurry: a stream that has nothing to tell is good for as long as it lasts. And a relay that has
// told of something was well: the next pause is short again.
func TestRelayThatIsBackIsTrusted(t *testing.T) {
	answers := []http.HandlerFunc{events(false, event(1, "Running")), func(w http.ResponseWriter, r *http.Request) {
		for range 10 {
			events(false, ":")(w, r)
			<-time.After(30 * time.Second)
		}
		events(false, event(2, "Running"))(w, r)
	}}
	for version := 3; version < 12; version++ {
		answers = append(answers, events(false, event(version, "Running")))
	}
	follow(t, append(answers, events(true, event(12, "Completed"))), func(t *testing.T, o watcher.Options, r *relay) {
		o.Trouble = func(_ error, pause time.Duration) {
			if pause > time.Second {
				t.Errorf("a pause of %v", pause)
			}
		}
		heard, err := run(t, o, ended)
		if err != nil || len(heard) != 12 {
			t.Errorf("got %v, %q", err, heard)
		}
	})
}

// A stream on which nothing comes, not even a comment, is made anew.
func TestSilentStreamIsMadeAnew(t *testing.T) {
	follow(t, []http.HandlerFunc{
		func(w http.ResponseWriter, r *http.Request) {
			events(false, event(1, "Running"))(w, r)
			for range 3 {
				<-time.After(50 * time.Second)
				fmt.Fprint(w, ":\n\n")
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		},
		events(true, event(2, "Canceled")),
	}, func(t *testing.T, o watcher.Options, r *relay) {
		heard, err := run(t, o, ended)
		same(t, "heard", heard, "1 Running", "2 Canceled")
		if at := r.seen[1].at.Round(time.Second); err != nil || at < 210*time.Second || at > 212*time.Second {
			t.Errorf("got %v, made anew after %v", err, at)
		}
	})
}

// What trying again would not change is told at once, in words.
func TestWhatDoesNotPassIsToldAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"Unauthenticated": {answer(401), "401: No."},
		"Forbidden":       {answer(403), "403: No."},
		"NotImplemented":  {answer(501), "501"},
		"Redirect":        {answer(302, "Location", "https://login.example/"), "redirects elsewhere"},
		"Page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<p>sign in")
		}, `"text/html"`},
	} {
		t.Run(name, func(t *testing.T) {
			follow(t, []http.HandlerFunc{c.answer}, func(t *testing.T, o watcher.Options, r *relay) {
				_, err := run(t, o, ended)
				if !errors.As(err, new(*watcher.RefusedError)) || !strings.Contains(err.Error(), c.want) || len(r.seen) != 1 {
					t.Errorf("got %v after %d requests, want %q", err, len(r.seen), c.want)
				}
			})
		})
	}
}

// The token is asked for with each connection: it may have been replaced. One that cannot be had now may be had later.
func TestTokenIsAskedForAnew(t *testing.T) {
	follow(t, []http.HandlerFunc{events(false, event(1, "Running")), events(true, event(2, "Completed"))}, func(t *testing.T, o watcher.Options, r *relay) {
		tokens := []string{"first", "", "second"}
		o.Token = func() (string, error) {
			token := tokens[0]
			if tokens = tokens[1:]; token == "" {
				return "", errors.New("it is being replaced")
			}
			return token, nil
		}
		if _, err := run(t, o, ended); err != nil || r.seen[0].token != "Bearer first" || r.seen[1].token != "Bearer second" {
			t.Errorf("got %v, asked %v", err, r.seen)
		}
	})
}

// A relay that sends what it should not costs a bounded amount, and a new stream.
func TestNonsenseEndsTheStream(t *testing.T) {
	huge := "data: " + strings.Repeat("x", 5<<20)
	lines := strings.Repeat("data: "+strings.Repeat("x", 1<<20)+"\n", 6)
	follow(t, []http.HandlerFunc{
		events(false, event(1, "Running")), events(true, "event: status\ndata: {"), events(true, "event: gone\ndata: {}"), events(true, huge), events(true, lines),
		events(true, event(2, "Terminated")),
	}, func(t *testing.T, o watcher.Options, r *relay) {
		heard, err := run(t, o, ended)
		same(t, "heard", heard, "1 Running", "2 Terminated")
		if err != nil || len(r.seen) != 6 || r.seen[5].at > 30*time.Second { // and not when they have gone silent
			t.Errorf("got %v after %v", err, r.seen)
		}
	})
}

func TestFollowingEndsWithItsContext(t *testing.T) {
	follow(t, []http.HandlerFunc{events(true, event(1, "Running"))}, func(t *testing.T, o watcher.Options, _ *relay) {
		o.Silence = time.Hour
		w, err := watcher.New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := w.Follow(ctx, func(watcher.Change) bool { return true }); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLatestAsksOnce(t *testing.T) {
	view := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"version":7,"runtimeStatus":"Completed"}`)
	}
	follow(t, []http.HandlerFunc{view, answer(404), answer(503), answer(403)}, func(t *testing.T, o watcher.Options, r *relay) {
		w, err := watcher.New(o)
		if err != nil {
			t.Fatal(err)
		}
		if c, ok, err := w.Latest(t.Context()); err != nil || !ok || c.Version != 7 || !c.Ended() {
			t.Errorf("got %+v, %t, %v", c, ok, err)
		}
		if _, ok, err := w.Latest(t.Context()); err != nil || ok {
			t.Errorf("got %t, %v of none", ok, err)
		}
		for _, passes := range []bool{true, false} {
			var refused *watcher.RefusedError
			if _, _, err := w.Latest(t.Context()); !errors.As(err, &refused) || refused.Passes != passes {
				t.Errorf("got %v, want one that passes: %t", err, passes)
			}
		}
	})
}

func TestRelayMustBeAURL(t *testing.T) {
	for _, relay := range []string{"", "status.example.com", "ftp://a", "https://", "https://u:p@a", "https://a?x=1", "https://a#b", "https://a\x7f"} {
		if _, err := watcher.New(watcher.Options{Relay: relay}); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: got %v", relay, err)
		}
	}
}
