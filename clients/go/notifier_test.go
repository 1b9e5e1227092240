package statusrelay_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	statusrelay "statusrelay/clients/go"
)

// A reply is what a notifier answers to one request.
type reply struct {
	status     int
	retryAfter string
	body       string
	err        error // instead of an answer
}

// scripted is a notifier that answers with one reply after the other, then with 202, and keeps what it was sent.
type scripted struct {
	replies  []reply
	requests []*http.Request
	bodies   [][]byte
	times    []time.Time
}

func (s *scripted) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	s.requests, s.bodies, s.times = append(s.requests, r), append(s.bodies, body), append(s.times, time.Now())
	next := reply{status: http.StatusAccepted, body: `{"accepted":1}`}
	if len(s.replies) > 0 {
		next, s.replies = s.replies[0], s.replies[1:]
	}
	if next.err != nil {
		return nil, next.err
	}
	h := http.Header{}
	if next.retryAfter != "" {
		h.Set("Retry-After", next.retryAfter)
	}
	return &http.Response{StatusCode: next.status, Header: h, Body: io.NopCloser(strings.NewReader(next.body)), Request: r}, nil
}

// instances lists the instances that each request was about.
func (s *scripted) instances(t *testing.T) (all [][]string) {
	t.Helper()
	for _, body := range s.bodies {
		var events []struct{ Subject string }
		if err := json.Unmarshal(body, &events); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, e := range events {
			ids = append(ids, e.Subject)
		}
		all = append(all, ids)
	}
	return all
}

func notifier(t *testing.T, s *scripted, change func(*statusrelay.NotifierOptions)) *statusrelay.Notifier {
	t.Helper()
	o := statusrelay.NotifierOptions{URL: "https://notifier.test/base/", APIKey: "srk_secret", Client: &http.Client{Transport: s}}
	if change != nil {
		change(&o)
	}
	n, err := statusrelay.NewNotifier(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func several(ids ...string) (all []statusrelay.Update) {
	for _, id := range ids {
		all = append(all, statusrelay.Update{InstanceID: id, RuntimeStatus: statusrelay.Running})
	}
	return all
}

func TestRequestIsABatchOfCloudEvents(t *testing.T) {
	s := &scripted{}
	now := time.Date(2026, 11, 22, 7, 35, 21, 5e6, time.FixedZone("", 3600))
	n := notifier(t, s, func(o *statusrelay.NotifierOptions) { o.Now, o.Name = func() time.Time { return now }, "activity" })
	err := n.Publish(t.Context(), statusrelay.Update{
		Hub: "orders", InstanceID: "order-4711", Position: statusrelay.Position{Generation: 7, Sequence: 2000},
		CustomStatus: json.RawMessage(`{ "step": "caf\u00e9 <1>", "big": 12345678901234567890, "A": 1.0 }`),
		Traceparent:  "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"specversion":"1.0","type":"durable.status.v1","source":"/hubs/orders/activity","subject":"order-4711",` +
		`"id":"orders/order-4711/7/progress/2000","time":"2026-11-22T06:35:21.005Z","datacontenttype":"application/json",` +
		`"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",` +
		`"data":{"hub":"orders","instanceId":"order-4711","generation":7,"sequence":2000,"kind":"progress",` +
		`"customStatus":{"A":1.0,"big":12345678901234567890,"step":"café <1>"},"lastUpdatedTime":"2026-11-22T06:35:21.005Z"}}]`
	if got := string(s.bodies[0]); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	r := s.requests[0]
	if got, want := fmt.Sprint(r.Method, r.URL, r.Header), "POST https://notifier.test/base/v1/updates "+
		"map[Authorization:[Bearer srk_secret] Content-Type:[application/cloudevents-batch+json]]"; strings.ReplaceAll(got, "POSThttps", "POST https") != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Until its patience ends, Publish waits as long as it is told to, and sends the same events again.
func TestNotifierThatIsBusyIsAskedAgainWhenItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{replies: []reply{
			{status: 429, retryAfter: "7"},
			{status: 503, retryAfter: time.Now().Add(12 * time.Second).UTC().Format(http.TimeFormat), body: `{"title":"Unavailable"}`},
			{err: errors.New("connection refused")},
			{status: 502, body: "<html>"},
		}}
		if err := notifier(t, s, nil).Publish(t.Context(), several("a", "b")...); err != nil {
			t.Fatal(err)
		}
		if got, want := len(s.bodies), 5; got != want {
			t.Fatalf("%d requests, want %d", got, want)
		}
		for i, body := range s.bodies {
			if !bytes.Equal(body, s.bodies[0]) {
				t.Errorf("request %d is another one:\n%s\n%s", i, body, s.bodies[0])
			}
		}
		if first, second := s.times[1].Sub(s.times[0]), s.times[2].Sub(s.times[1]); first != 7*time.Second || second != 5*time.Second {
			t.Errorf("waited for %v and %v, want 7s and 5s", first, second)
		}
	})
}

func TestPatienceIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		always := slices.Repeat([]reply{{status: 503, body: `{"title":"A part is away"}`}}, 1000)
		began := time.Now()
		err := notifier(t, &scripted{replies: always}, nil).Publish(t.Context(), several("a")...)
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "503 A part is away") || took > 30*time.Second || took < 20*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
		// What would come too late is not waited for.
		s := &scripted{replies: []reply{{status: 429, retryAfter: "3600", body: `{"title":"Too many requests"}`}}}
		began = time.Now()
		if err := notifier(t, s, nil).Publish(t.Context(), several("a")...); err == nil || !time.Now().Equal(began) {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
		s = &scripted{replies: always}
		impatient := notifier(t, s, func(o *statusrelay.NotifierOptions) { o.Patience = -1 })
		if err := impatient.Publish(t.Context(), several("a")...); err == nil || len(s.bodies) != 1 {
			t.Errorf("got %v after %d requests", err, len(s.bodies))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := notifier(t, &scripted{replies: always}, nil).Publish(ctx, several("a")...); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's end", err)
		}
	})
}

// Of a batch, what is refused is named by its index, what may pass is sent again, and nothing else is.
func TestRefusedUpdatesAreNamedAndOthersTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{replies: []reply{
			{status: 207, body: `{"accepted":1,"items":[{"index":0,"status":422,"title":"Invalid","detail":"labels: too many in all"},` +
				`{"index":1,"status":202,"title":"Accepted"},{"index":2,"status":503,"title":"Unavailable"},{"index":3,"status":503,"title":"Unavailable"}]}`},
			{status: 207, body: `{"accepted":1,"items":[{"index":0,"status":202,"title":"Accepted"},{"index":1,"status":403,"title":"Forbidden"}]}`},
		}}
		err := notifier(t, s, nil).Publish(t.Context(), several("a", "b", "c", "d")...)
		if got, want := fmt.Sprint(err), "update 0: 422 Invalid: labels: too many in all\nupdate 3: 403 Forbidden"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if refused := (*statusrelay.RefusedError)(nil); !errors.As(err, &refused) || refused.Index != 0 || refused.Status != 422 {
			t.Errorf("got %+v", refused)
		}
		if got, want := fmt.Sprint(s.instances(t)), "[[a b c d] [c d]]"; got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
	})
}

func TestRefusalOfARequestIsNotRepeated(t *testing.T) {
	for _, tt := range []struct {
		reply reply
		ids   []string
		want  string
	}{
		{reply{status: 401, body: `{"title":"Unauthenticated"}`}, []string{"a", "b"}, "all updates: 401 Unauthenticated"},
		{reply{status: 403, body: `{"title":"Forbidden"}`}, []string{"a"}, "update 0: 403 Forbidden"},
		{reply{status: 422, body: `{"title":"Invalid","detail":"hub: not allowed"}`}, []string{"a"}, "update 0: 422 Invalid: hub: not allowed"},
		{reply{status: 200, body: "<html>a login page</html>"}, []string{"a"}, "update 0: 200 OK"},
		{reply{status: 413}, []string{"a"}, "update 0: 413 Request Entity Too Large"},
	} {
		s := &scripted{replies: []reply{tt.reply}}
		if got := fmt.Sprint(notifier(t, s, nil).Publish(t.Context(), several(tt.ids...)...)); got != tt.want || len(s.bodies) != 1 {
			t.Errorf("%d: got %q after %d requests, want %q", tt.reply.status, got, len(s.bodies), tt.want)
		}
	}
}

func TestManyUpdatesAreSplit(t *testing.T) {
	var ids []string
	for i := range 1201 {
		ids = append(ids, fmt.Sprint("i", i))
	}
	s := &scripted{}
	if err := notifier(t, s, nil).Publish(t.Context(), several(ids...)...); err != nil {
		t.Fatal(err)
	}
	var sent []string
	for _, request := range s.instances(t) {
		sent = append(sent, request...)
	}
	if len(s.bodies) != 3 || !slices.Equal(sent, ids) {
		t.Errorf("%d requests with %d updates", len(s.bodies), len(sent))
	}
	// By size, too: 20 of 60 kB.
	s = &scripted{}
	var large []statusrelay.Update
	for range 20 {
		large = append(large, statusrelay.Update{InstanceID: "i", CustomStatus: strings.Repeat("x", 60_000)})
	}
	if err := notifier(t, s, nil).Publish(t.Context(), large...); err != nil || len(s.bodies) != 3 {
		t.Errorf("%v, %d requests, want 3", err, len(s.bodies))
	}
	// A notifier may be told to take less than others do.
	s = &scripted{replies: []reply{{status: 413}, {status: 413}, {status: 202}, {status: 202}, {status: 202}}}
	if err := notifier(t, s, nil).Publish(t.Context(), several("a", "b", "c", "d")...); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(s.instances(t)), "[[a b c d] [a b] [a] [b] [c d]]"; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
}

func TestTokenIsAskedForWithEachRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{replies: []reply{{status: 503}}}
		asked := 0
		n := notifier(t, s, func(o *statusrelay.NotifierOptions) {
			o.APIKey, o.Token = "", func(context.Context) (string, error) { asked++; return fmt.Sprint("token-", asked), nil }
		})
		if err := n.Publish(t.Context(), several("a")...); err != nil {
			t.Fatal(err)
		}
		if got := s.requests[1].Header.Get("Authorization"); got != "Bearer token-2" {
			t.Errorf("got %s", got)
		}
	})
	failing := notifier(t, &scripted{}, func(o *statusrelay.NotifierOptions) {
		o.APIKey, o.Token = "", func(context.Context) (string, error) { return "", errors.New("no identity here") }
	})
	if err := failing.Publish(t.Context(), several("a")...); err == nil || !strings.Contains(err.Error(), "no identity here") {
		t.Errorf("got %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, tt := range []struct {
		o    statusrelay.NotifierOptions
		want string
	}{
		{statusrelay.NotifierOptions{APIKey: "k"}, "notifier options: URL: not of the form https://HOST"},
		{statusrelay.NotifierOptions{URL: "https://user:secret@h", APIKey: "k"}, "notifier options: URL: not of the form https://HOST"},
		{statusrelay.NotifierOptions{URL: "https://h"}, "notifier options: APIKey, Token: exactly one is required"},
		{statusrelay.NotifierOptions{URL: "https://h", APIKey: "k", Name: "a/b"}, "notifier options: Name: a character that is none of A-Z a-z 0-9 _ -"},
	} {
		if _, err := statusrelay.NewNotifier(tt.o); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
	const good = "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=k"
	for _, tt := range []struct {
		o    statusrelay.ServiceBusOptions
		want string
	}{
		{statusrelay.ServiceBusOptions{}, "Sender, ConnectionString, Namespace with Credential: exactly one is required"},
		{statusrelay.ServiceBusOptions{ConnectionString: good}, "Entity: required"},
		{statusrelay.ServiceBusOptions{Namespace: "n", Entity: "e"}, "Namespace, Credential: they need each other"},
		{statusrelay.ServiceBusOptions{ConnectionString: good, Namespace: "n", Entity: "e"}, "Sender, ConnectionString, Namespace with Credential: exactly one is required"},
		{statusrelay.ServiceBusOptions{ConnectionString: "secret", Entity: "e"}, "ConnectionString: not of the form Endpoint=sb://HOST;SharedAccessKeyName=NAME;SharedAccessKey=KEY"},
		{statusrelay.ServiceBusOptions{ConnectionString: good, Entity: "e", Name: "ü"}, "Name: a character that is none of A-Z a-z 0-9 _ -"},
	} {
		if _, err := statusrelay.NewServiceBus(tt.o); err == nil || err.Error() != "service bus options: "+tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}
