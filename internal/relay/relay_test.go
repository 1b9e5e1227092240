package relay_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"statusrelay/internal/policy"
	"statusrelay/internal/relay"
	"statusrelay/internal/settings"
)

// What serves behind the public listener is told who has really called.
func TestH9HandlersAreToldTheCaller(t *testing.T) {
	rules, err := policy.Parse(policy.Development())
	if err != nil {
		t.Fatal(err)
	}
	const away = "127.0.0.1:1" // nothing listens there
	c := relay.Defaults()
	c.Listen, c.PrivateListen, c.Redis.Addrs, c.TrustedProxies = "127.0.0.1:0", "127.0.0.1:0", []string{away}, []string{"127.0.0.0/8"}
	c.Auth.Issuers, c.Auth.Audiences = []string{"http://" + away + "/issuer"}, []string{"statusrelay"}
	c.ServiceBus.ConnectionString = settings.NewSecret("Endpoint=sb://" + away + ";SharedAccessKeyName=n;SharedAccessKey=k;UseDevelopmentEmulator=true")
	r, err := relay.New(t.Context(), c, relay.Options{
		Policy: rules, Logger: slog.New(slog.DiscardHandler),
		Pages: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.URL.Scheme+" "+r.RemoteAddr)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Addr().String()+"/who", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("X-Forwarded-For", "198.51.100.1, 192.0.2.1")
	request.Header.Set("X-Forwarded-Proto", "https")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if got, err := io.ReadAll(answer.Body); err != nil || string(got) != "https 192.0.2.1:0" {
		t.Errorf("got %q, %v", got, err)
	}
}
