package dev_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/dev"
	"statusrelay/internal/storetest"
)

// start runs a stack until the returned function is called.
func start(t *testing.T, o dev.Options) (info dev.Info, stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	stack, err := dev.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan dev.Info, 1)
	ended := make(chan error, 1)
	go func() { ended <- stack.Run(ctx, func(i dev.Info) { ready <- i }) }()
	stop = func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	select {
	case info = <-ready:
	case err := <-ended:
		t.Fatalf("the stack ended with %v before it was ready", err)
	}
	return info, stop
}

func get(t *testing.T, url, token string) (code int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	got, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return got.StatusCode, string(text)
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	over, every := time.After(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer every.Stop()
	for !cond() {
		select {
		case <-every.C:
		case <-over:
			t.Fatal("in vain: " + what)
		}
	}
}

// The samples play to their ends and over again, and customers see their own only,
// without what is not for them.
func TestSamplesPlayForEver(t *testing.T) {
	info, stop := start(t, dev.Options{Pace: 3 * time.Millisecond})
	defer stop()
	if len(info.Samples) < 4 {
		t.Fatalf("%d samples, want at least 4", len(info.Samples))
	}
	for _, s := range info.Samples {
		url := info.Relay + "/v1/hubs/" + s.Hub + "/instances/" + s.InstanceID
		ends, over := map[string]bool{}, false
		until(t, s.InstanceID+" ends and starts again", func() bool {
			code, body := get(t, url, info.Tokens.Operator)
			if code != http.StatusOK {
				return false
			}
			var v struct{ RuntimeStatus string }
			if err := json.Unmarshal([]byte(body), &v); err != nil {
				t.Fatal(err)
			}
			if v.RuntimeStatus == "Completed" || v.RuntimeStatus == "Failed" {
				ends[v.RuntimeStatus] = true
			} else if len(ends) > 0 {
				over = true
			}
			if _, seen := get(t, url, info.Tokens.Customer); strings.Contains(seen, "internal") || strings.Contains(seen, "apiKey") || strings.Contains(seen, "DE89") {
				t.Errorf("a customer is shown %s", seen)
			}
			return over
		})
		if s.InstanceID == "payment-1138" && !ends["Failed"] {
			t.Errorf("%s ended as %v, want it to fail", s.InstanceID, ends)
		}
	}
}

// What the browser asks for is what the stack says of itself.
func TestSessionTellsTheBrowser(t *testing.T) {
	info, stop := start(t, dev.Options{NoSamples: true})
	defer stop()
	code, body := get(t, info.Relay+"/dev/session.json", "")
	var told dev.Info
	if err := json.Unmarshal([]byte(body), &told); err != nil || code != http.StatusOK {
		t.Fatalf("got %d %s: %v", code, body, err)
	}
	if told.Tokens != info.Tokens || told.Relay != info.Relay || told.Samples == nil {
		t.Errorf("got %+v, want %+v", told, info)
	}
	for _, private := range []string{info.RelayPrivate, info.NotifierPrivate} {
		if code, body := get(t, private+"/readyz", ""); code != http.StatusOK {
			t.Errorf("%s: got %d %s", private, code, body)
		}
	}
}

// A Redis that exists is used instead of the one in the process, and keeps what was
// put when the stack has gone.
func TestGivenRedisIsUsed(t *testing.T) {
	redis := storetest.StartRedis(t)
	info, stop := start(t, dev.Options{Pace: 3 * time.Millisecond, RedisAddr: redis.Addr})
	until(t, "a record", func() bool { return redis.Do("DBSIZE") != "0" })
	stop()
	if redis.Do("DBSIZE") == "0" || len(info.Samples) == 0 {
		t.Error("nothing was left in the Redis")
	}
}

// What was bound is free again when the stack has ended, and when it could not be
// made.
func TestPortsAreReleased(t *testing.T) {
	info, stop := start(t, dev.Options{NoSamples: true})
	addr := strings.TrimPrefix(info.Relay, "http://")
	if _, err := dev.New(t.Context(), dev.Options{Addr: addr}); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("a taken address: got %v", err)
	}
	stop()
	for _, a := range []string{info.Relay, info.Notifier, info.RelayPrivate, info.NotifierPrivate} {
		l, err := net.Listen("tcp", strings.TrimPrefix(a, "http://"))
		if err != nil {
			t.Errorf("%s is still bound: %v", a, err)
			continue
		}
		l.Close()
	}
}

// A stack that is told to stop before it serves stops, and is not ready.
func TestStackStopsBeforeItServes(t *testing.T) {
	stack, err := dev.New(t.Context(), dev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("told to stop"))
	if err := stack.Run(ctx, func(dev.Info) { t.Error("it says that it is ready") }); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// What the relay has beyond reading is there without a file, too.
func TestLinksAreSigned(t *testing.T) {
	info, stop := start(t, dev.Options{Pace: 20 * time.Millisecond})
	defer stop()
	sample := info.Samples[0]
	var link struct{ URL string }
	for link.URL == "" { // until the sample has begun
		body := `{"hub":"` + sample.Hub + `","instanceId":"` + sample.InstanceID + `","expiresIn":"5m"}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, info.Relay+"/v1/links", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+info.Tokens.Operator)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		err = json.NewDecoder(answer.Body).Decode(&link)
		answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusCreated && answer.StatusCode != http.StatusNotFound {
			t.Fatalf("answered %d, %v", answer.StatusCode, err)
		}
	}
	if code, body := get(t, link.URL, ""); code != http.StatusOK || !strings.Contains(body, sample.InstanceID) {
		t.Errorf("the link was answered %d %s", code, body)
	}
}
