package notifier_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/doctor"
	"statusrelay/internal/notifier"
	"statusrelay/internal/policy"
	"statusrelay/internal/settings"
)

// examined gives the findings about a configuration by their checks.
func examined(t *testing.T, c notifier.Config, mistakes error) map[string]doctor.Finding {
	t.Helper()
	found := map[string]doctor.Finding{}
	for _, f := range c.Examine(t.Context(), mistakes) {
		found[f.Check] = f
		if (f.Outcome == doctor.Fail || f.Outcome == doctor.Warn) != (f.Remedy != "") || strings.Contains(f.Detail, "\n") || strings.Contains(f.Detail, "c4n4ry") {
			t.Errorf("got %+v", f)
		}
	}
	if len(found) != 3 {
		t.Errorf("got %v, want 3 findings", found)
	}
	return found
}

func wantFinding(t *testing.T, f doctor.Finding, outcome doctor.Outcome, words ...string) {
	t.Helper()
	for _, word := range append(words, "") {
		if f.Outcome != outcome || !strings.Contains(f.Detail, word) {
			t.Errorf("got %+v, want %s with %q", f, outcome, word)
		}
	}
}

func sender() notifier.Config {
	c := notifier.Defaults()
	c.ServiceBus.ConnectionString = settings.NewSecret("Endpoint=sb://ns.example.net;SharedAccessKeyName=n;SharedAccessKey=c4n4ry")
	return c
}

// Who only sends has no use for a policy and issuers, and is not told to have them.
func TestExaminationOfASender(t *testing.T) {
	found := examined(t, sender(), nil)
	wantFinding(t, found["configuration"], doctor.OK, "valid for sending")
	wantFinding(t, found["ingest-issuers"], doctor.Skip)
	wantFinding(t, found["ingest-keys"], doctor.Skip)
	found = examined(t, notifier.Defaults(), errors.New("one\ntwo"))
	wantFinding(t, found["configuration"], doctor.Fail, "one; two; service_bus: exactly one is required")
}

func TestExaminationOfIngestCredentials(t *testing.T) {
	handler := http.NewServeMux()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	issuer, err := devissuer.New(devissuer.Options{URL: server.URL + "/issuer"})
	if err != nil {
		t.Fatal(err)
	}
	handler.Handle("/issuer/", issuer)
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	entries := func(keys ...auth.APIKey) []byte {
		t.Helper()
		text := "keys:\n"
		for _, k := range keys {
			_, kept, err := auth.NewAPIKey(k)
			if err != nil {
				t.Fatal(err)
			}
			text += kept.Entry()
		}
		return []byte(text)
	}
	publisher := map[string]any{"roles": []any{"publisher"}}
	good := auth.APIKey{ID: "good", Rights: []auth.Right{auth.Publish}, Claims: publisher}
	elsewhere := auth.APIKey{ID: "elsewhere", Rights: []auth.Right{auth.Publish}, Claims: publisher, Hubs: []string{"other"}}
	reader := auth.APIKey{ID: "reader", Rights: []auth.Right{auth.Read}, Claims: publisher}
	old := auth.APIKey{ID: "old", Rights: []auth.Right{auth.Publish}, Claims: publisher, Expires: time.Now().Add(-time.Hour).UTC().Truncate(time.Second)}
	stranger := auth.APIKey{ID: "stranger", Rights: []auth.Right{auth.Publish}, Claims: map[string]any{"roles": []any{"nobody"}}}

	c := sender()
	c.Policy = write("policy.yaml", policy.Development())
	c.Auth.Issuers, c.Auth.Audiences = []string{server.URL + "/issuer"}, []string{"statusrelay"}
	c.Auth.APIKeys = write("keys.yaml", entries(good, elsewhere, reader))
	c.Listen = "127.0.0.1:0"
	found := examined(t, c, nil)
	wantFinding(t, found["configuration"], doctor.OK)
	wantFinding(t, found["ingest-issuers"], doctor.OK, server.URL+"/issuer")
	wantFinding(t, found["ingest-keys"], doctor.OK, "may publish: good, elsewhere (to other hubs)")

	// One issuer that cannot be asked is told, though the keys of another are there.
	c.Auth.Issuers = append(c.Auth.Issuers, server.URL+"/nobody")
	c.Auth.APIKeys = write("keys.yaml", entries(old, stranger, reader))
	found = examined(t, c, nil)
	wantFinding(t, found["ingest-issuers"], doctor.Fail, server.URL+"/nobody", "discovery")
	if strings.Contains(found["ingest-issuers"].Detail, server.URL+"/issuer\"") {
		t.Errorf("an issuer is blamed whose keys are there: %+v", found["ingest-issuers"])
	}
	wantFinding(t, found["ingest-keys"], doctor.Warn, "may publish: none", "old has expired", "stranger is admitted to hub default by no publishers entry")

	c.Auth.Issuers = c.Auth.Issuers[:1]
	c.Auth.APIKeys = write("keys.yaml", entries(reader))
	wantFinding(t, examined(t, c, nil)["ingest-keys"], doctor.Warn, "none; no key has the right")
	c.Auth.APIKeys = write("keys.yaml", []byte("keys: c4n4ry"))
	found = examined(t, c, nil)
	wantFinding(t, found["configuration"], doctor.Fail, "auth.api_keys")
	wantFinding(t, found["ingest-keys"], doctor.Skip, "see configuration")
	c.Auth.APIKeys, c.Auth.Issuers, c.Auth.Audiences = "", nil, nil
	c.Auth.IssuersFile = filepath.Join(dir, "missing.yaml")
	found = examined(t, c, nil)
	wantFinding(t, found["configuration"], doctor.Fail, "auth.issuers_file")
	wantFinding(t, found["ingest-issuers"], doctor.Fail, "missing.yaml")
	wantFinding(t, found["ingest-keys"], doctor.Skip, "no file of API keys")
}
