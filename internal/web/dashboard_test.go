package web_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"statusrelay/internal/dev"
	"statusrelay/internal/web"
)

const deadline = 60 * time.Second // of a whole test: a browser takes its time on a busy machine

// stack runs everything until stop is called.
func stack(t *testing.T, addr string) (info dev.Info, stop func()) {
	t.Helper()
	s, err := dev.New(t.Context(), dev.Options{Addr: addr, Pace: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan dev.Info, 1), make(chan error, 1)
	go func() { done <- s.Run(ctx, func(i dev.Info) { ready <- i }) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("stack: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	select {
	case info = <-ready:
	case err := <-done:
		t.Fatalf("the stack ended: %v", err)
	}
	return info, stop
}

// browser returns a real one, and what it complained of.
func browser(t *testing.T) (ctx context.Context, complaints func() []string) {
	t.Helper()
	var path string
	for _, name := range []string{"google-chrome", "chromium-browser", "chromium"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
		}
	}
	if path == "" {
		t.Fatal("chromium is not installed: make test installs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true))...)
	t.Cleanup(cancel)
	var mu sync.Mutex
	var list []string
	complain := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		list = append(list, s)
	}
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			complain(e.ExceptionDetails.Text)
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError {
				complain(e.Entry.Text)
			}
		case *network.EventRequestWillBeSent:
			if u := e.Request.URL; !strings.HasPrefix(u, "http://localhost:") && !strings.HasPrefix(u, "data:") {
				complain("request to another origin: " + u)
			}
		}
	}))
	t.Cleanup(cancel)
	return ctx, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), list...)
	}
}

// until waits for a JavaScript expression to hold.
func until(expression string) chromedp.Action[chromedp.Void] {
	return chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(deadline))
}

const (
	live  = `document.getElementById("connection").dataset.state === "live"`
	shown = `document.querySelectorAll(".card:not([data-status=none])").length`
)

func TestDashboardShowsEverySampleLive(t *testing.T) {
	info, _ := stack(t, "127.0.0.1:0")
	ctx, complaints := browser(t)
	err := chromedp.Do(ctx,
		chromedp.Navigate(info.Dashboard),
		until(live),
		until(shown+" === 5"),
		until(`+document.getElementById("count-pushes").textContent > 20`),
		until(`[...document.querySelectorAll(".bar i")].some((part) => part.style.getPropertyValue("--fill") > 0)`),
		until(`[...document.querySelectorAll(".card time")].every((time) => /^changed .* ago$/.test(time.textContent))`),
	)
	var text string
	if err == nil {
		text, err = chromedp.Run(ctx, chromedp.Text(chromedp.CSS("main")))
	}
	if err != nil {
		t.Fatal(errors.Join(err, errors.New(strings.Join(complaints(), "; "))))
	}
	for _, sample := range info.Samples {
		if !strings.Contains(text, sample.InstanceID) {
			t.Errorf("%s is not shown", sample.InstanceID)
		}
	}
	if c := complaints(); len(c) > 0 {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestDashboardShowsWhatAppears(t *testing.T) {
	info, _ := stack(t, "127.0.0.1:0")
	ctx, complaints := browser(t)
	if err := chromedp.Do(ctx, chromedp.Navigate(info.Dashboard), until(live), until(shown+" === 5")); err != nil {
		t.Fatal(errors.Join(err, errors.New(strings.Join(complaints(), "; "))))
	}
	for _, status := range []string{"Running", "Completed"} {
		body := `{"hub":"demo","instanceId":"just-started","runtimeStatus":"` + status + `"}`
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, info.Notifier+"/v1/updates", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+info.Tokens.Publisher)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		card := `[...document.querySelectorAll(".card")].find((card) => card.querySelector("h2").textContent === "just-started")?.dataset.status`
		if err := chromedp.Do(ctx, until(card+` === "`+status+`"`)); err != nil {
			t.Fatalf("%s: %v; %q", status, err, complaints())
		}
	}
}

func TestDashboardOfACustomerGetsNothingHidden(t *testing.T) {
	info, _ := stack(t, "127.0.0.1:0")
	ctx, complaints := browser(t)
	err := chromedp.Do(ctx,
		chromedp.Navigate(info.Dashboard),
		until(live), until(shown+" === 5"),
		chromedp.Click(chromedp.CSS(`input[value="customer"] + span`)),
		until(live), until(shown+" === 3"),
		until(`[...document.querySelectorAll("pre")].filter((pre) => pre.textContent.includes("percent")).length === 3`),
	)
	var views string
	if err == nil {
		views, err = chromedp.Run(ctx, chromedp.Evaluate[string](`[...document.querySelectorAll("pre")].map((pre) => pre.textContent).join()`))
	}
	if err != nil {
		t.Fatal(errors.Join(err, errors.New(strings.Join(complaints(), "; "))))
	}
	for _, hidden := range []string{"internalCost", "email", "approverNotes", "labels", "failure", "output"} {
		if strings.Contains(views, hidden) {
			t.Errorf("a customer gets %s: %s", hidden, views)
		}
	}
}

// What a status says is shown as the text that it is, wherever it says it: nothing of it runs, loads or changes the page.
func TestB5StatusIsShownAsText(t *testing.T) {
	info, _ := stack(t, "127.0.0.1:0")
	ctx, complaints := browser(t)
	if err := chromedp.Do(ctx, chromedp.Navigate(info.Dashboard), until(live), until(shown+" === 5")); err != nil {
		t.Fatal(errors.Join(err, errors.New(strings.Join(complaints(), "; "))))
	}
	const attack = `<img src=x onerror="window.attacked=1"><script>window.attacked=1</script><svg onload=window.attacked=1>` +
		`</pre></template><a href="javascript:window.attacked=1">x</a>{{7*7}}${7*7}<style>*{display:none}</style>`
	quoted, err := json.Marshal(attack)
	if err != nil {
		t.Fatal(err)
	}
	a := string(quoted)
	id, err := json.Marshal(`<img src=x onerror=window.attacked=1>`)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"hub":"demo","instanceId":` + string(id) + `,"name":` + a + `,"runtimeStatus":"Failed","failure":{"type":` + a + `,"message":` + a + `},"output":{` + a + `:` + a + `},` +
		`"labels":{"owner":` + a + `},"customStatus":{"step":` + a + `,"message":` + a + `,"percent":50,"segments":[{"name":` + a + `,"percent":` + a + `}],` + a + `:` + a + `}}`
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, info.Notifier+"/v1/updates", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+info.Tokens.Publisher)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusAccepted {
		t.Fatalf("publishing was answered with %d", answer.StatusCode)
	}
	const card = `[...document.querySelectorAll(".card")].find((card) => card.querySelector("h2").textContent.includes("onerror"))`
	if err := chromedp.Do(ctx, until(card+`?.querySelector("pre").textContent.includes("javascript:")`), until(card+`.querySelector(".message").textContent.includes("<img")`)); err != nil {
		t.Fatalf("it is not shown: %v; %q", err, complaints())
	}
	for what, expression := range map[string]string{
		"something ran":           `window.attacked !== undefined`,
		"an image is in the page": card + `.querySelector("img, script, style, a, svg[onload]") !== null`,
		"a handler is in it":      `document.querySelector("[onerror], [onload], [onclick]") !== null`,
		"the page is hidden":      `getComputedStyle(document.body).display === "none"`,
	} {
		if got, err := chromedp.Run(ctx, chromedp.Evaluate[bool](expression)); err != nil || got {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
	if c := complaints(); len(c) > 0 {
		t.Errorf("the browser complained: %q", c)
	}
}

func TestDashboardReconnectsByItself(t *testing.T) {
	info, stop := stack(t, "127.0.0.1:0")
	ctx, _ := browser(t) // which complains while nobody answers
	if err := chromedp.Do(ctx, chromedp.Navigate(info.Dashboard), until(live), until(shown+" === 5")); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := chromedp.Do(ctx, until("!("+live+")")); err != nil {
		t.Fatalf("the page does not notice that the relay is gone: %v", err)
	}
	again, _ := stack(t, strings.TrimPrefix(info.Relay, "http://"))
	if again.Dashboard != info.Dashboard {
		t.Fatalf("the second stack is at %s, want %s", again.Dashboard, info.Dashboard)
	}
	if err := chromedp.Do(ctx, until(live), until(`[...document.querySelectorAll(".card")].some((card) => card.classList.contains("pushed"))`)); err != nil {
		t.Fatalf("the page does not come back: %v", err)
	}
}

func TestPagesForbidOtherOrigins(t *testing.T) {
	w := httptest.NewRecorder()
	web.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	policy := w.Header().Get("Content-Security-Policy")
	for _, directive := range []string{"default-src 'none'", "frame-ancestors 'none'", "script-src 'self'"} {
		if w.Code != http.StatusOK || !strings.Contains(policy, directive) {
			t.Errorf("got %d with %q, want it to have %s", w.Code, policy, directive)
		}
	}
}
