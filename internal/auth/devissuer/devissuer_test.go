package devissuer_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/auth/devissuer"
)

// world is an issuer behind a real socket, a verifier that knows it, and a clock for both.
type world struct {
	*devissuer.Issuer
	verifier *auth.Verifier
	fetches  *atomic.Int64
	clock    *atomic.Int64
}

func newWorld(t *testing.T, strip bool) world {
	t.Helper()
	w := world{fetches: new(atomic.Int64), clock: new(atomic.Int64)}
	w.clock.Store(time.Now().UnixNano())
	now := func() time.Time { return time.Unix(0, w.clock.Load()) }
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	url := server.URL + "/dev/issuer"
	var err error
	if w.Issuer, err = devissuer.New(devissuer.Options{URL: url, Now: now}); err != nil {
		t.Fatal(err)
	}
	handler := http.Handler(w.Issuer)
	if strip {
		handler = http.StripPrefix("/dev/issuer", handler)
	}
	mux.HandleFunc("/dev/issuer/", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/dev/issuer/keys" {
			w.fetches.Add(1)
		}
		handler.ServeHTTP(rw, r)
	})
	w.verifier, err = auth.New(auth.Options{
		Issuers: []auth.Issuer{{URL: url, Audiences: []string{"statusrelay"}}}, HTTPClient: server.Client(), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w world) token(t *testing.T, lifetime time.Duration) string {
	t.Helper()
	token, err := w.Token("alice", "statusrelay", map[string]any{"roles": []string{"operator"}}, lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokensPassTheRealVerifier(t *testing.T) {
	for _, strip := range []bool{false, true} {
		w := newWorld(t, strip)
		principal, err := w.verifier.Verify(t.Context(), w.token(t, time.Hour))
		if err != nil {
			t.Fatalf("prefix stripped: %v: %v", strip, err)
		}
		if roles, _ := principal.Claims["roles"].([]any); principal.Subject != "alice" || len(roles) != 1 || roles[0] != "operator" {
			t.Errorf("got %+v", principal)
		}
		if _, err := w.verifier.Verify(t.Context(), w.token(t, -time.Hour)); !errors.Is(err, auth.ErrExpired) {
			t.Errorf("token with a negative lifetime: %v", err)
		}
	}
}

func TestRotateRetiresTheKey(t *testing.T) {
	w := newWorld(t, false)
	old := w.token(t, time.Hour)
	if _, err := w.verifier.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := w.Rotate(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.verifier.Verify(t.Context(), w.token(t, time.Hour)); err != nil {
		t.Errorf("token of the new key: %v", err)
	}
	if n := w.fetches.Load(); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
	if _, err := w.verifier.Verify(t.Context(), old); !errors.Is(err, auth.ErrUnauthenticated) {
		t.Errorf("token of the old key, after its retirement is known: %v", err)
	}
}

func TestTokensExpireByTheClockThatIsHandedIn(t *testing.T) {
	w := newWorld(t, false)
	token := w.token(t, time.Minute)
	if _, err := w.verifier.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(int64(2 * time.Minute))
	if _, err := w.verifier.Verify(t.Context(), token); !errors.Is(err, auth.ErrExpired) {
		t.Errorf("got %v", err)
	}
	if _, err := w.verifier.Verify(t.Context(), w.token(t, time.Minute)); err != nil {
		t.Errorf("token made later: %v", err)
	}
}

func TestClaimsOfTheIssuerCannotBeReplaced(t *testing.T) {
	w := newWorld(t, false)
	for _, name := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"} {
		if _, err := w.Token("alice", "statusrelay", map[string]any{name: "x"}, time.Hour); err == nil {
			t.Errorf("%s was replaced", name)
		}
	}
}

func TestOnlyLoopback(t *testing.T) {
	for url, want := range map[string]bool{
		"http://localhost:8080/dev/issuer": true, "http://127.0.0.1:1": true, "https://[::1]:1/": true,
		"https://login.example.com": false, "http://10.0.0.1": false, "ftp://localhost": false, "localhost:8080": false,
		"http://localhost?a=b": false, "": false, "http://%zz": false,
	} {
		if _, err := devissuer.New(devissuer.Options{URL: url}); (err == nil) != want {
			t.Errorf("%q: %v; want accepted: %v", url, err, want)
		}
	}
}

func TestNothingElseIsServed(t *testing.T) {
	w := newWorld(t, false)
	for _, path := range []string{"/", "/dev/issuer/", "/dev/issuer/token", "/dev/issuer/keys/x"} {
		recorder := httptest.NewRecorder()
		w.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
		if recorder.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, recorder.Code)
		}
	}
}
