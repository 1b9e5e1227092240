package shell_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"statusrelay/internal/auth"
	"statusrelay/internal/auth/devissuer"
	"statusrelay/internal/policy"
	"statusrelay/internal/shell"
)

// issuer is a real one on this machine.
func issuer(t *testing.T) (*devissuer.Issuer, string) {
	t.Helper()
	handler := http.NewServeMux()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	i, err := devissuer.New(devissuer.Options{URL: server.URL + "/issuer"})
	if err != nil {
		t.Fatal(err)
	}
	handler.Handle("/", i)
	return i, server.URL + "/issuer"
}

func withoutIssuers(t *testing.T) shell.BaseConfig {
	t.Helper()
	c := valid()
	c.Auth.Issuers, c.Auth.Audiences = nil, nil
	c.Policy = filepath.Join(t.TempDir(), "policy.yaml")
	put(t, c.Policy, string(policy.Development()))
	return c
}

// wants holds a base to whether it accepts a token or a key.
func (s *served) wants(accepted bool, what, credential string) {
	s.Helper()
	who, err := s.Verify(s.Context(), credential)
	if (err == nil) != accepted || (who != nil) != accepted || err != nil && !errors.Is(err, auth.ErrUnauthenticated) {
		s.Errorf("%s: got %v, %v; want accepted: %v", what, who, err, accepted)
	}
}

// Issuers of the file stand beside the others, and each keeps to its own audiences.
func TestIssuersOfTheFileStandBesideTheOthers(t *testing.T) {
	here, hereURL := issuer(t)
	there, thereURL := issuer(t)
	c := withoutIssuers(t)
	c.Auth.IssuersFile = filepath.Join(t.TempDir(), "issuers.yaml")
	put(t, c.Auth.IssuersFile, "issuers: [{url: '"+thereURL+"', audiences: [there], require_one_of: [roles]}]")
	token := func(i *devissuer.Issuer, audience string, claims map[string]any) string {
		t.Helper()
		token, err := i.Token("u-1", audience, claims, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	roles := map[string]any{"roles": []string{"reader"}}
	for _, both := range []bool{true, false} {
		if both {
			c.Auth.Issuers, c.Auth.Audiences = []string{hereURL}, []string{"here"}
		} else {
			c.Auth.Issuers, c.Auth.Audiences = nil, nil
		}
		for what, err := range map[string]error{"Validate": c.Validate(), "Check": c.Check()} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		s := serve(t, c, shell.Given{})
		s.wants(both, "here for here", token(here, "here", nil))
		s.wants(false, "here for there", token(here, "there", roles))
		s.wants(true, "there for there", token(there, "there", roles))
		s.wants(false, "there without roles", token(there, "there", nil))
		s.wants(false, "there for here", token(there, "here", roles))
	}
}

func TestMistakesInTheFileOfIssuersAreTold(t *testing.T) {
	c := valid()
	c.Policy = withoutIssuers(t).Policy
	c.Auth.IssuersFile = filepath.Join(t.TempDir(), "issuers.yaml")
	c.Auth.EntraTenant = "11111111-2222-3333-4444-555555555555"
	for _, test := range []struct {
		text string // empty: there is no file
		want []string
	}{
		{"", []string{"auth.issuers_file: ", "no such file"}},
		{
			"issuers:\n- {url: 'https://issuer.example', audiences: [a]}\n- {url: https://login.microsoftonline.com/" + c.Auth.EntraTenant + "/v2.0, audience: [a]}\n",
			[]string{
				"auth.issuers_file " + c.Auth.IssuersFile + ": line 2, column 9: an issuer that is configured elsewhere",
				"line 3, column 3: audiences missing", "line 3, column 9: an issuer that is configured elsewhere", "audience is not known",
			},
		},
		{"issuers: [{url: https://other.example, audiences: [a]}]", nil},
	} {
		if test.text != "" {
			put(t, c.Auth.IssuersFile, test.text)
		}
		wantMistakes(t, c.Validate(), nil) // which reads no file
		wantMistakes(t, c.Check(), test.want)
		b, err := shell.NewBase(t.Context(), c, shell.Given{})
		wantMistakes(t, err, test.want)
		if err == nil {
			b.Release()
		}
	}
}

// Whoever has API keys needs no issuer: every token is refused, and nothing has to be fetched before the program is ready.
func TestAPIKeysNeedNoIssuer(t *testing.T) {
	text, kept, err := auth.NewAPIKey(auth.APIKey{ID: "portal", Rights: []auth.Right{auth.Read}})
	if err != nil {
		t.Fatal(err)
	}
	c := withoutIssuers(t)
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "auth.issuers: required") {
		t.Errorf("without keys: got %v", err)
	}
	if b, err := shell.NewBase(t.Context(), c, shell.Given{}); err == nil {
		b.Release()
		t.Error("without keys it starts")
	}
	c.Auth.APIKeys = filepath.Join(t.TempDir(), "keys.yaml")
	put(t, c.Auth.APIKeys, "keys:\n"+kept.Entry())
	for what, err := range map[string]error{"Validate": c.Validate(), "Check": c.Check()} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	s := serve(t, c, shell.Given{})
	i, _ := issuer(t)
	token, err := i.Token("u-1", "statusrelay", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	s.wants(true, "the key", text)
	s.wants(false, "a token", token)
	if err := s.Verifier.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
}
