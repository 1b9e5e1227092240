// Package durabletask_test runs the programs of this folder as their users do, beside `relay dev`, and holds what the relay says of each instance
// against what the engine says.
package durabletask_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/microsoft/durabletask-go/backend/sqlite"

	statusrelay "statusrelay/clients/go"
	"statusrelay/examples/durabletask/demo"
	"statusrelay/examples/durabletask/shop"
	"statusrelay/examples/durabletask/statustap"
)

// dev is everything on this machine, as `relay dev --ready-json` describes it.
type dev struct {
	Relay      string
	Notifier   string
	ServiceBus string
	Tokens     struct{ Operator, Publisher string }
}

func build(ctx context.Context, t *testing.T, dir, program string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, program)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v: %s", program, err, out)
	}
	return path
}

func startDev(ctx context.Context, t *testing.T) (d dev) {
	t.Helper()
	cmd := exec.Command(build(ctx, t, "../..", "./cmd/relay"), "dev", "--addr", "127.0.0.1:0", "--no-samples", "--ready-json")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a killed test leaves none behind
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("relay dev ended with %v: %s", err, said.String())
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// view is what the relay says of an instance.
type view struct {
	Name          string
	RuntimeStatus string
	CustomStatus  any
	Output        any
	Failure       struct{ Message string }
	Partial       bool
	Labels        map[string]string
}

// differs says in what the relay's view of an instance is not the engine's, "" for nothing.
func (d dev) differs(ctx context.Context, hub string, want demo.Instance) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, d.Relay+"/v1/hubs/"+hub+"/instances/"+url.PathEscape(want.ID), nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+d.Tokens.Operator)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if gone := response.StatusCode == http.StatusNotFound; gone || want.Purged {
		if gone != want.Purged {
			return fmt.Sprintf("the relay answers %d", response.StatusCode), nil
		}
		return "", nil
	}
	var got view
	if err := json.Unmarshal(body, &got); err != nil {
		return "", fmt.Errorf("%d %s: %w", response.StatusCode, body, err)
	}
	status := "ORCHESTRATION_STATUS_" + strings.ToUpper(got.RuntimeStatus)
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"name", got.Name, want.Name},
		{"runtime status", status, want.RuntimeStatus},
		{"custom status", got.CustomStatus, parse(want.CustomStatus)},
		{"output", got.Output, parse(want.Output)},
		{"failure", got.Failure.Message, want.Failure},
		{"partial", got.Partial, false},
		{"owner", got.Labels["owner"], want.Owner},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			return fmt.Sprintf("%s is %v, the engine says %v", c.what, c.got, c.want), nil
		}
	}
	return "", nil
}

func parse(text string) (v any) {
	if json.Unmarshal([]byte(text), &v) != nil {
		return nil
	}
	return v
}

// agrees waits until the relay says what the engine says, of every instance.
func (d dev) agrees(ctx context.Context, t *testing.T, hub string, all []demo.Instance) {
	t.Helper()
	if len(all) < 10 {
		t.Fatalf("%d instances ran", len(all))
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for _, i := range all {
		for last := ""; ; {
			difference, err := d.differs(ctx, hub, i)
			if err == nil && difference == "" {
				break
			}
			if err == nil {
				last = difference
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %s (%v)", i.ID, last, err)
			case <-again.C:
			}
		}
	}
}

// Both programs, over both ways that updates can take, and then in any order.
func TestRelaySaysWhatTheEngineSays(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	d := startDev(ctx, t)
	programs := map[string]string{"tap": build(ctx, t, ".", "./tap"), "activities": build(ctx, t, ".", "./activities")}
	for _, tt := range []struct {
		hub, program string
		args         []string
	}{
		{"tap", "tap", nil},
		{"tap-http", "tap", []string{"-notifier", d.Notifier}},
		{"activities", "activities", nil},
		{"activities-http", "activities", []string{"-notifier", d.Notifier}},
		{"tap", "activities", nil}, // with the same ids again
	} {
		t.Run(tt.program+" in "+tt.hub, func(t *testing.T) {
			cmd := exec.CommandContext(ctx, programs[tt.program], append(tt.args, "-hub", tt.hub, "-json", "-pace", "30ms")...)
			cmd.Env = []string{"STATUSRELAY_SERVICE_BUS_CONNECTION_STRING=" + d.ServiceBus, "PUBLISHER=" + d.Tokens.Publisher}
			var said bytes.Buffer
			cmd.Stderr = &said
			out, err := cmd.Output()
			if err != nil || strings.Contains(said.String(), "not published") {
				t.Fatalf("%v: %s", err, said.String())
			}
			var all []demo.Instance
			for lines := json.NewDecoder(bytes.NewReader(out)); lines.More(); {
				var i demo.Instance
				if err := lines.Decode(&i); err != nil {
					t.Fatal(err)
				}
				if tt.program == "activities" {
					i = asReported(t, i)
				}
				all = append(all, i)
			}
			d.agrees(ctx, t, tt.hub, all)
		})
	}
	for name, lifecycleOnly := range map[string]bool{"tap": false, "activities": true} {
		t.Run(name+", in any order and twice", func(t *testing.T) { d.shuffled(ctx, t, name+"-shuffled", lifecycleOnly) })
	}
}

// asReported is what activities make of what the engine says: the one that was at work when its order was terminated went on to its last tick,
// further than the last checkpoint.
func asReported(t *testing.T, i demo.Instance) demo.Instance {
	t.Helper()
	if i.ID != "order-stopped" {
		return i
	}
	var s shop.Status
	if err := json.Unmarshal([]byte(i.CustomStatus), &s); err != nil {
		t.Fatal(err)
	}
	s.Percent += 15
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	i.CustomStatus = string(text)
	return i
}

// shuffled plays with a publisher that keeps all updates, and publishes them when nothing is as it was: workers overtake each other, brokers
// deliver twice, publishers try again. The relay ends where the engine did.
func (d dev) shuffled(ctx context.Context, t *testing.T, hub string, lifecycleOnly bool) {
	notifier, err := statusrelay.NewNotifier(statusrelay.NotifierOptions{URL: d.Notifier, APIKey: d.Tokens.Publisher})
	if err != nil {
		t.Fatal(err)
	}
	defer notifier.Close(ctx)
	var mu sync.Mutex
	var updates []statusrelay.Update
	collect := func(_ context.Context, some ...statusrelay.Update) error {
		mu.Lock()
		defer mu.Unlock()
		updates = append(append(updates, some...), some...)
		return nil
	}
	report := shop.Silent
	if lifecycleOnly {
		report = func(ctx context.Context, w shop.Work, at statusrelay.Position, s shop.Status) {
			_ = collect(ctx, statusrelay.Update{Hub: hub, InstanceID: w.InstanceID, Position: at, CustomStatus: s}) // cannot fail
		}
	}
	o := demo.Options{Hub: hub, Count: 3, Pace: 20 * time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	tapped := &statustap.Tap{
		Backend: sqlite.NewSqliteBackend(sqlite.NewSqliteOptions(""), demo.Quiet()),
		Hub:     hub, Publish: collect, Labels: shop.Labels, Log: o.Log, LifecycleOnly: lifecycleOnly,
	}
	all, err := demo.Run(ctx, o, tapped, shop.Activity(report))
	if err != nil {
		t.Fatal(err)
	}
	if lifecycleOnly {
		for i := range all {
			all[i] = asReported(t, all[i])
		}
	}
	rand.Shuffle(len(updates), func(i, j int) { updates[i], updates[j] = updates[j], updates[i] })
	for len(updates) > 0 {
		n := min(1+rand.IntN(50), len(updates))
		if err := notifier.Publish(ctx, updates[:n]...); err != nil {
			t.Fatal(err)
		}
		updates = updates[n:]
	}
	d.agrees(ctx, t, hub, all)
}
