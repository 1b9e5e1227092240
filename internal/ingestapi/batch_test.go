package ingestapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"statusrelay/internal/claim"
	"statusrelay/internal/ingestapi"
	"statusrelay/internal/limit"
	"statusrelay/internal/status"
)

// event is an event with a name, about an instance.
func event(id, instance, runtimeStatus string) string {
	return fmt.Sprintf(`{"specversion":"1.0","type":"durable.status.v1","source":"/orders","id":%q,"data":{"instanceId":%q,"runtimeStatus":%q}}`,
		id, instance, runtimeStatus)
}

// remembering gives the handler a memory of events.
func remembering(t testing.TB) func(*ingestapi.Options) {
	t.Helper()
	l, err := claim.NewLedger(claim.Options{Memory: claim.NewLocal(nil)})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *ingestapi.Options) { o.Claims = l }
}

func wantCode(t *testing.T, what string, w *httptest.ResponseRecorder, code int) {
	t.Helper()
	if w.Code != code {
		t.Errorf("%s: got %d %s, want %d", what, w.Code, w.Body, code)
	}
	if again := w.Code == http.StatusServiceUnavailable || w.Code == http.StatusTooManyRequests; again != (w.Header().Get("Retry-After") != "") && w.Code != http.StatusMultiStatus {
		t.Errorf("%s: got %d with Retry-After %q", what, w.Code, w.Header().Get("Retry-After"))
	}
}

func wantPublished(t *testing.T, a *api, want ...string) {
	t.Helper()
	if got := a.ids(); !slices.Equal(got, want) {
		t.Errorf("published %v, want %v", got, want)
	}
}

func TestEventIsAcceptedAgainAndPublishedOnce(t *testing.T) {
	a := newAPI(t, remembering(t))
	for range 3 {
		wantCode(t, "an event", a.post("publisher", event("1", "a", "Running")), 202)
	}
	// White space, order of names and the clothes of a value are not its content.
	wantCode(t, "in other clothes", a.post("publisher",
		`{"data": {"runtimeStatus":"ORCHESTRATION_STATUS_RUNNING", "instanceId":"\u0061"}, "id":"1", "source":"/orders", "type":"x", "time":"2026-01-02T03:04:05Z"}`), 202)
	wantPublished(t, a, "default/a")
	if m := a.published[0]; m.ID != "1" || m.Source != "/orders" {
		t.Errorf("published as %q of %q", m.ID, m.Source)
	}
}

// A publisher that gives every event the same id hears of it, instead of losing all
// but the first.
func TestAnotherEventOfTheSameNameIsRefused(t *testing.T) {
	a := newAPI(t, remembering(t))
	wantCode(t, "the first", a.post("publisher", event("1", "a", "Running")), 202)
	for _, other := range []string{event("1", "a", "Completed"), event("1", "b", "Running")} {
		w := a.post("publisher", other)
		wantCode(t, "another", w, 422)
		if got := read(t, w); got.Detail != "id: used for another event of this source" {
			t.Errorf("got %+v", got)
		}
	}
	wantPublished(t, a, "default/a")
}

// An activity that is retried may say something else at the same position, under an id that is made of that: the merge decides
// between the two. Only what it says again is published once.
func TestPositionsDecideBetweenEventsOfOneName(t *testing.T) {
	a := newAPI(t, remembering(t))
	at := func(state string) string {
		return strings.Replace(event("1", "a", state), `"instanceId"`, `"generation":1,"sequence":1000,"instanceId"`, 1)
	}
	for _, body := range []string{at("Running"), at("Completed"), at("Running"), at("Completed"), "[" + at("Failed") + "," + at("Failed") + "," + at("Running") + "]"} {
		wantCode(t, body, a.post("publisher", body), 202)
	}
	wantPublished(t, a, "default/a", "default/a", "default/a")
}

// Names are the caller's own: nobody can use up those of another.
func TestCallersDoNotShareNames(t *testing.T) {
	a := newAPI(t, remembering(t))
	team := strings.Replace(event("1", "a", "Running"), `"instanceId"`, `"hub":"team","instanceId"`, 1)
	wantCode(t, "the team", a.post("team", team), 202)
	wantCode(t, "another caller", a.post("publisher", event("1", "b", "Completed")), 202)
	wantCode(t, "another source", a.post("publisher", strings.Replace(event("1", "c", "Running"), "/orders", "/others", 1)), 202)
	wantPublished(t, a, "team/a", "default/b", "default/c")
	// Who may not publish it learns nothing of it.
	wantCode(t, "who may not", a.post("nobody", event("1", "a", "Running")), 403)
}

// Without both source and id, or without an envelope, an update has no name.
func TestUpdatesWithoutANameArePublishedAsOftenAsTheyCome(t *testing.T) {
	a := newAPI(t, remembering(t))
	long := strings.Repeat("x", 2049)
	for _, body := range []string{
		`{"instanceId":"a"}`, `{"data":{"instanceId":"a"}}`, `{"id":"1","data":{"instanceId":"a"}}`, `{"source":"/","data":{"instanceId":"a"}}`,
		`{"id":"","source":"/","data":{"instanceId":"a"}}`, `{"id":7,"source":"/","data":{"instanceId":"a"}}`, `{"id":"` + long + `","source":"/","data":{"instanceId":"a"}}`,
	} {
		a.published = nil
		wantCode(t, body, a.post("publisher", body), 202)
		wantCode(t, body, a.post("publisher", body), 202)
		if len(a.published) != 2 || a.published[0].MessageID != "" {
			t.Errorf("%.60s: published %d times, with the message id %q", body, len(a.published), a.published[0].MessageID)
		}
	}
}

func TestDuplicatesInOneBatch(t *testing.T) {
	a := newAPI(t, remembering(t))
	w := a.post("publisher", "["+strings.Join([]string{
		event("1", "a", "Running"), event("2", "b", "Running"), event("1", "a", "Running"), event("1", "a", "Failed"), event("2", "b", "Running"),
	}, ",")+"]")
	wantCode(t, "a batch", w, 207)
	var codes []int
	for _, it := range read(t, w).Items {
		codes = append(codes, it.Status)
	}
	if want := []int{202, 202, 202, 422, 202}; !slices.Equal(codes, want) {
		t.Errorf("got %v, want %v", codes, want)
	}
	wantPublished(t, a, "default/a", "default/b")

	// What becomes of the first becomes of its twin.
	a = newAPI(t, remembering(t))
	a.refuse = func(ingestapi.Message) error { return status.ErrUnavailable }
	w = a.post("publisher", "["+event("1", "a", "Running")+","+event("1", "a", "Running")+"]")
	wantCode(t, "while the broker is away", w, 503)
	for _, it := range read(t, w).Items {
		if it.Status != 503 {
			t.Errorf("got %+v", it)
		}
	}
}

// What the broker did not take may be sent again, whatever kept it from taking it.
func TestEventThatWasNotPublishedMayComeAgain(t *testing.T) {
	for name, refusal := range map[string]struct {
		err  error
		code int
	}{
		"Away": {status.ErrUnavailable, 503}, "Broken": {errors.New("x"), 500}, "TooLarge": {&status.InvalidError{Reason: status.ReasonTooLarge}, 413},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, remembering(t))
			a.refuse = func(ingestapi.Message) error { return refusal.err }
			wantCode(t, "refused", a.post("publisher", event("1", "a", "Running")), refusal.code)
			a.refuse = nil
			wantCode(t, "again", a.post("publisher", event("1", "a", "Running")), 202)
			wantCode(t, "and again", a.post("publisher", event("1", "a", "Running")), 202)
			wantPublished(t, a, "default/a")
		})
	}
}

// Of two requests with one event at the same time, the second is accepted only when
// the first was: until then it is told to come back.
func TestSecondIsNotAcceptedBeforeTheFirst(t *testing.T) {
	for _, first := range []error{nil, status.ErrUnavailable} {
		begun, outcome := make(chan struct{}), make(chan error)
		a := newAPI(t, remembering(t), func(o *ingestapi.Options) {
			publish := o.Publish
			o.Publish = func(ctx context.Context, messages []ingestapi.Message) []error {
				close(begun)
				if err := <-outcome; err != nil {
					return []error{err}
				}
				return publish(ctx, messages)
			}
		})
		answers := make(chan *httptest.ResponseRecorder)
		go func() { answers <- a.post("publisher", event("1", "a", "Running")) }()
		<-begun
		w := a.post("publisher", event("1", "a", "Running"))
		wantCode(t, "the second", w, 503)
		if !strings.Contains(read(t, w).Detail, "being published") {
			t.Errorf("got %s", w.Body)
		}
		outcome <- first
		want := 202
		if first != nil {
			want = 503
		}
		wantCode(t, "the first", <-answers, want)
		begun = make(chan struct{})
		if first != nil {
			go func() { outcome <- nil }()
		}
		wantCode(t, "the second again", a.post("publisher", event("1", "a", "Running")), 202)
		wantPublished(t, a, "default/a")
	}
}

// A publisher whose memory is away publishes all the same: what comes twice is merged
// away, what does not come is lost.
func TestMemoryAwayDoesNotKeepFromPublishing(t *testing.T) {
	l, err := claim.NewLedger(claim.Options{Memory: away{}})
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(t, func(o *ingestapi.Options) { o.Claims = l })
	for range 2 {
		wantCode(t, "an event", a.post("publisher", event("1", "a", "Running")), 202)
	}
	wantPublished(t, a, "default/a", "default/a")
	if x, y := a.published[0].MessageID, a.published[1].MessageID; x != y || x == "" {
		t.Errorf("the broker cannot know it again: got message ids %q and %q", x, y)
	}
}

type away struct{}

func (away) Swap(_ context.Context, swaps []*claim.Swap) {
	for _, s := range swaps {
		s.Err = status.ErrUnavailable
	}
}

// The broker gets a name for an event without a position of its own, the same for the
// same content; a position is a better one.
func TestEventWithoutAPositionNamesItsMessage(t *testing.T) {
	a := newAPI(t)
	at := func(position string) string {
		return strings.Replace(event("1", "a", "Running"), `"runtimeStatus"`, position+`"runtimeStatus"`, 1)
	}
	for _, body := range []string{event("1", "a", "Running"), event("1", "a", "Running"), event("1", "a", "Failed"), at(`"generation":1,`), at(`"generation":1,"sequence":2,`)} {
		wantCode(t, body, a.post("publisher", body), 202)
	}
	ids := map[string]bool{}
	for _, m := range a.published {
		ids[m.MessageID] = true
	}
	if a.published[0].MessageID != a.published[1].MessageID || len(ids) != 4 || !ids[""] || len(a.published[0].MessageID) > 128 {
		t.Errorf("got message ids %v", ids)
	}
}

// stamping gives the handler a counter, and an error for those that it refuses.
func stamping(refuse func() error) func(*ingestapi.Options) {
	sequence := int64(0)
	return func(o *ingestapi.Options) {
		o.Stamp = func(_ context.Context, updates []*status.Update) []error {
			errs := make([]error, len(updates))
			for i, u := range updates {
				if errs[i] = refuse(); errs[i] == nil {
					sequence++
					generation, n := int64(5), sequence
					u.Generation, u.Sequence = &generation, &n
				}
			}
			return errs
		}
	}
}

// positions are those of what was published: generation/sequence, - for none.
func (a *api) positions() (all []string) {
	text := func(n *int64) string {
		if n == nil {
			return "-"
		}
		return strconv.FormatInt(*n, 10)
	}
	for _, m := range a.published {
		all = append(all, text(m.Update.Generation)+"/"+text(m.Update.Sequence))
	}
	return all
}

func TestOnlyUpdatesWithNeitherAreStamped(t *testing.T) {
	a := newAPI(t, stamping(func() error { return nil }))
	w := a.post("publisher", `[
		{"instanceId":"a"},
		{"instanceId":"a","generation":1,"sequence":2},
		{"instanceId":"a","generation":1},
		{"instanceId":"a","sequence":2},
		{"instanceId":"a","kind":"purged"},
		{"instanceId":"a","kind":"purged","sequence":1},
		{"instanceId":"a"}
	]`)
	wantCode(t, "a batch", w, 207)
	if it := read(t, w).Items[5]; it.Status != 422 || !strings.Contains(it.Detail, "generation: required") {
		t.Errorf("a purge with a sequence only: got %+v", it)
	}
	if got, want := a.positions(), []string{"5/1", "1/2", "1/-", "-/2", "5/2", "5/3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	a = newAPI(t)
	wantCode(t, "a purge without a generation, where nobody stamps", a.post("publisher", `{"instanceId":"a","kind":"purged"}`), 422)
}

// What can get no position is not published without one.
func TestNothingIsPublishedWithoutItsStamp(t *testing.T) {
	a := newAPI(t, remembering(t), stamping(func() error { return fmt.Errorf("redis: %w", status.ErrUnavailable) }))
	wantCode(t, "alone", a.post("publisher", event("1", "a", "Running")), 503)
	w := a.post("publisher", `[{"instanceId":"a"},{"instanceId":"b","generation":1,"sequence":2}]`)
	wantCode(t, "beside another", w, 207)
	if w.Header().Get("Retry-After") == "" {
		t.Error("a batch of which a part is to come again does not say when")
	}
	wantPublished(t, a, "default/b")
}

// An event keeps the stamp of its first attempt: with a new one it would overtake what
// was published meanwhile, if the broker had it all the same.
func TestEventThatComesAgainKeepsItsStamp(t *testing.T) {
	a := newAPI(t, remembering(t), stamping(func() error { return nil }))
	a.refuse = func(ingestapi.Message) error { return status.ErrUnavailable }
	wantCode(t, "refused", a.post("publisher", event("1", "a", "Running")), 503)
	a.refuse = nil
	wantCode(t, "newer", a.post("publisher", event("2", "a", "Running")), 202)
	wantCode(t, "again", a.post("publisher", event("1", "a", "Running")), 202)
	wantCode(t, "and again", a.post("publisher", event("1", "a", "Running")), 202)
	wantCode(t, "newest", a.post("publisher", event("3", "a", "Running")), 202)
	if got, want := a.positions(), []string{"5/2", "5/1", "5/3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Whoever is refused hears what the broker's state is.
func TestRetryAfterFollowsTheBroker(t *testing.T) {
	wait := 10 * time.Second
	a := newAPI(t, func(o *ingestapi.Options) { o.RetryAfter = func() time.Duration { return wait } })
	a.refuse = func(m ingestapi.Message) error {
		if m.Update.InstanceID == "a" {
			return status.ErrUnavailable
		}
		return nil
	}
	for _, body := range []string{`{"instanceId":"a"}`, `[{"instanceId":"a"},{"instanceId":"a"}]`, `[{"instanceId":"a"},{"instanceId":"b"}]`, `[{"instanceId":""},{"instanceId":"a"}]`} {
		w := a.post("publisher", body)
		if s, err := strconv.Atoi(w.Header().Get("Retry-After")); err != nil || s < 10 || s > 20 {
			t.Errorf("%s: got %d with Retry-After %q", body, w.Code, w.Header().Get("Retry-After"))
		}
	}
	w := a.post("publisher", `[{"instanceId":"b"},{"instanceId":""}]`)
	if w.Code != 207 || w.Header().Get("Retry-After") != "" {
		t.Errorf("nothing to come again: got %d with Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}

// A batch of which nothing was accepted is to be sent again if that makes sense for
// any of it: what can never be accepted is then told so.
func TestBatchIsToBeSentAgainIfAnyOfItIs(t *testing.T) {
	a := newAPI(t)
	a.refuse = func(ingestapi.Message) error { return status.ErrUnavailable }
	w := a.post("publisher", `[{"instanceId":""},{"instanceId":"a"}]`)
	wantCode(t, "invalid and unavailable", w, 503)
	if got := read(t, w); len(got.Items) != 2 || got.Items[0].Status != 422 || got.Items[1].Status != 503 || strings.Contains(got.Detail, "instanceId") {
		t.Errorf("got %+v", got)
	}
}

// A broker that says nothing is not waited for without end.
func TestBrokerThatSaysNothingIs503(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(t, remembering(t), func(o *ingestapi.Options) {
			o.Publish = func(ctx context.Context, messages []ingestapi.Message) []error {
				<-ctx.Done()
				return []error{fmt.Errorf("%w: %w", status.ErrUnavailable, ctx.Err())}
			}
		})
		began := time.Now()
		wantCode(t, "an event", a.post("publisher", event("1", "a", "Running")), 503)
		if d := time.Since(began); d != 20*time.Second {
			t.Errorf("it took %s", d)
		}
	})
}

// What requests hold together is bounded. Who comes beyond that is told to come
// back, and may when others have left.
func TestWhatIsInHandIsBounded(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	body := `{"instanceId":"a","customStatus":"` + strings.Repeat("x", 10_000) + `"}`
	a := newAPI(t, func(o *ingestapi.Options) {
		o.Room = limit.NewRoom(3*limit.Holds(int64(len(body)), 1), nil)
		o.Publish = func(_ context.Context, messages []ingestapi.Message) []error {
			begun <- struct{}{}
			<-end
			return make([]error, len(messages))
		}
	})
	answers := make(chan *httptest.ResponseRecorder, 3)
	for range 3 {
		go func() { answers <- a.post("publisher", body) }()
		<-begun
	}
	for range 10 {
		wantCode(t, "beyond", a.post("publisher", body), 503)
		wantCode(t, "beyond, however small", a.post("publisher", `{"instanceId":"a"}`), 503)
	}
	close(end)
	for range 3 {
		wantCode(t, "in hand", <-answers, 202)
	}
	go func() { <-begun }()
	wantCode(t, "afterwards", a.post("publisher", body), 202)
}

// A body that was announced and does not come holds nothing.
func TestSlowBodiesKeepNobodyOut(t *testing.T) {
	small := `{"instanceId":"a"}`
	a := newAPI(t, func(o *ingestapi.Options) { o.Room = limit.NewRoom(limit.Holds(1<<10, 1)+200*limit.Holds(0, 0), nil) })
	var slow []*slowBody
	done := make(chan int)
	for range 100 {
		b := &slowBody{text: strings.NewReader(small), reading: make(chan struct{}), send: make(chan struct{})}
		slow = append(slow, b)
		go func() {
			r := httptest.NewRequest(http.MethodPost, "/v1/updates", b)
			r.ContentLength = 1 << 20
			r.Header.Set("Authorization", "Bearer nobody")
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r)
			done <- w.Code
		}()
		<-b.reading
	}
	wantCode(t, "beside 100 MiB that were announced", a.post("publisher", small), 202)
	for _, b := range slow {
		close(b.send)
		if code := <-done; code != 403 {
			t.Errorf("a slow one got %d", code)
		}
	}
}

// slowBody says when it is read and is sent when told to.
type slowBody struct {
	text    *strings.Reader
	reading chan struct{}
	send    chan struct{}
	began   bool
}

func (b *slowBody) Read(p []byte) (int, error) {
	if !b.began {
		b.began = true
		close(b.reading)
	}
	<-b.send
	return b.text.Read(p)
}

// The trace of the request is that of updates that have none of their own, as far as
// it is one.
func TestTraceOfTheRequestIsPassedOn(t *testing.T) {
	const own, request = "00-11111111111111111111111111111111-1111111111111111-01", "00-22222222222222222222222222222222-2222222222222222-01"
	a := newAPI(t)
	two := `[{"instanceId":"a"},{"specversion":"1.0","traceparent":"` + own + `","tracestate":"o=1","data":{"instanceId":"b"}}]`
	trace := func(m ingestapi.Message) string { return m.Traceparent + " " + m.Tracestate }
	for _, c := range []struct{ parent, state, want string }{
		{request, "r=1", request + " r=1"},
		{request, "=", request + " "},
		{request, "", request + " "},
		{"", "r=1", " "},
		{"x", "r=1", " "},
		{strings.Replace(request, "2", "0", 16), "r=1", strings.Replace(request, "2", "0", 16) + " r=1"},
		{"ff" + request[2:], "r=1", " "},
		{request + "\u00e9", "r=1", " "},
	} {
		a.published = nil
		a.post("publisher", two, "Traceparent", c.parent, "Tracestate", c.state)
		if len(a.published) != 2 || trace(a.published[0]) != c.want || trace(a.published[1]) != own+" o=1" {
			t.Errorf("%q %q: published %+v", c.parent, c.state, a.published)
		}
	}
}

// Whatever the headers say, content decides; but a body in a content encoding is none.
func TestHeadersThatLie(t *testing.T) {
	const body = `{"instanceId":"a"}`
	for _, c := range []struct {
		name   string
		values []string
		code   int
	}{
		{"Content-Encoding", []string{"gzip"}, 415},
		{"Content-Encoding", []string{"identity", "gzip"}, 415},
		{"Content-Encoding", []string{"identity, br"}, 415},
		{"Content-Encoding", []string{"IDENTITY"}, 202},
		{"Content-Encoding", []string{""}, 202},
		{"Content-Encoding", []string{"utf-8"}, 415},
		{"Content-Type", []string{"text/html; charset=utf-16"}, 202},
		{"Content-Type", []string{"multipart/form-data"}, 202},
		{"Content-Type", []string{strings.Repeat("x", 30_000)}, 202},
		{"Content-Type", []string{"application/x-ndjson", "image/png"}, 202},
		{"Content-Length", []string{"-7"}, 202},
		{"Tracestate", slices.Repeat([]string{"a=1"}, 3000), 202},
		{"Traceparent", []string{"\x00"}, 202},
		{"Expect", []string{"the unexpected"}, 202},
	} {
		a := newAPI(t)
		r := httptest.NewRequest(http.MethodPost, "/v1/updates", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer publisher")
		r.Header[c.name] = c.values
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != c.code || c.code == 415 && w.Header().Get("Accept-Encoding") != "identity" {
			t.Errorf("%s: %.50q: got %d %s, want %d", c.name, c.values, w.Code, w.Body, c.code)
		}
	}
}

// Bodies of every size and depth are answered, and with what is wrong.
func TestAbsurdBodies(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, c := range map[string]struct {
		body string
		code int
	}{
		"TenThousand":        {"[" + strings.Repeat(`{"instanceId":"a"},`, 9_999) + `{"instanceId":"a"}]`, 413},
		"MoreThanTheSplit":   {strings.Repeat("1\n", 20_000), 413},
		"TenThousandLines":   {strings.Repeat(`{"instanceId":"a"}`+"\n", 10_000), 413},
		"DeepArrays":         {deep(9_000), 422},
		"TooDeepToRead":      {deep(500_000), 400},
		"DeepStatus":         {`{"instanceId":"a","customStatus":` + deep(5_000) + `}`, 422},
		"DeepOutput":         {`{"instanceId":"a","output":` + deep(5_000) + `}`, 202}, // costs the output only
		"NumberOfManyDigits": {`{"instanceId":"a","sequence":` + strings.Repeat("9", 100_000) + `}`, 422},
		"ManyLabels":         {`{"instanceId":"a","labels":{` + strings.TrimSuffix(strings.Repeat(`"x":"y",`, 1), ",") + `}}`, 202},
		"NULs":               {strings.Repeat("\x00", 1000), 400},
		"UTF16":              {"\xff\xfe{\x00}\x00", 400},
		"ByteOrderMark":      {"\ufeff" + `{"instanceId":"a"}`, 400},
		"HTML":               {"<html><body>502 Bad Gateway</body></html>", 400},
		"AString":            {`"{\"instanceId\":\"a\"}"`, 422},
		"EventInEvent":       {`{"id":"1","source":"/","data":{"id":"2","source":"/","data":{"instanceId":"a"}}}`, 422},
		"Gzip":               {"\x1f\x8b\x08\x00\x00\x00\x00\x00", 400},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, remembering(t))
			wantCode(t, name, a.post("publisher", c.body), c.code)
			if (len(a.published) > 0) != (c.code == 202) {
				t.Errorf("published %d", len(a.published))
			}
		})
	}
}

// Whatever is sent is answered as documented, what counts as accepted was published
// or had been, and no request leaves anything in hand.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{
		event("1", "a", "Running"), "[" + event("1", "a", "Running") + "," + event("1", "a", "Failed") + "]", `{"instanceId":"a"}` + "\n" + `{"instanceId":"b","kind":"purged"}`,
		`[{"instanceId":"a","generation":1},{"instanceId":"a","sequence":1}]`, `{"data":{"instanceId":"a"},"id":"\u0000","source":"/","traceparent":"00-1-1-0"}`, "[]", "[[]]", "{}", "",
	} {
		f.Add([]byte(body), "application/json", "", "00-11111111111111111111111111111111-1111111111111111-01", "a=1")
	}
	f.Add([]byte("1\n2"), "application/x-ndjson; charset=\"", "gzip", "x", "x")
	f.Fuzz(func(t *testing.T, body []byte, mediaType, encoding, parent, state string) {
		metrics := prometheus.NewRegistry()
		a := newAPI(t, remembering(t), stamping(func() error { return nil }), func(o *ingestapi.Options) {
			o.MaxUpdates, o.Metrics, o.Room = 50, metrics, limit.NewRoom(64<<20, metrics)
		})
		for attempt := range 2 {
			r := httptest.NewRequest(http.MethodPost, "/v1/updates", bytes.NewReader(body))
			r.Header = http.Header{
				"Authorization": {"Bearer publisher"}, "Content-Type": {mediaType}, "Content-Encoding": {encoding}, "Traceparent": {parent}, "Tracestate": {state},
			}
			before := len(a.published)
			w := httptest.NewRecorder()
			a.ServeHTTP(w, r) // which is held against the document
			accepted, published := 0, len(a.published)-before
			switch w.Code {
			case 202, 207:
				accepted = read(t, w).Accepted
			case 400, 413, 415, 422:
			default:
				t.Fatalf("got %d %s", w.Code, w.Body)
			}
			if published > accepted || attempt == 0 && accepted > 0 && published == 0 {
				t.Errorf("accepted %d, published %d", accepted, published)
			}
			for _, m := range a.published[before:] {
				if err := m.Update.Validate(time.Now()); err != nil || m.Update.Hub == "" {
					t.Errorf("published an update that is not valid: %v", err)
				}
			}
			if n := inFlight(t, metrics); n != 0 {
				t.Errorf("%v bytes are still in hand", n)
			}
		}
	})
}

// inFlight is what the handler says it has in hand.
func inFlight(t *testing.T, metrics *prometheus.Registry) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "statusrelay_limit_in_flight_bytes" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("there is no such metric")
	return 0
}
