package settings_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
	goccy "github.com/goccy/go-yaml"
	yaml "go.yaml.in/yaml/v3"

	"statusrelay/internal/settings"
)

const value = "s3cret"

func TestSecretComesFromAVariableOrAFileThatAnythingMayName(t *testing.T) {
	path := write(t, "password", value+"\n")
	tests := []struct {
		name string
		env  map[string]string
		file string
		args []string
	}{
		{"variable", map[string]string{"STATUSRELAY_REDIS_PASSWORD": value}, "", nil},
		{"file named by a variable", map[string]string{"STATUSRELAY_REDIS_PASSWORD_FILE": path}, "", nil},
		{"file named by a key", nil, "redis: {password_file: " + path + "}", nil},
		{"file named by a flag", nil, "", []string{"--redis-password-file", path}},
		{"flag beats the rest", map[string]string{"STATUSRELAY_REDIS_PASSWORD_FILE": "/none"}, "redis: {password_file: /none}", []string{"--redis-password-file", path}},
		{"newline of Windows", map[string]string{"STATUSRELAY_REDIS_PASSWORD_FILE": write(t, "crlf", value+"\r\n")}, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			cfg, _, err := load(t, append(tt.args, "--config", write(t, "relay.yaml", tt.file))...)
			if err != nil {
				t.Fatal(err)
			}
			if got := cfg.Redis.Password.Reveal(); got != value {
				t.Errorf("got %q, want %q", got, value)
			}
		})
	}
}

func TestSecretThatCannotBeReadIsAMistake(t *testing.T) {
	empty, missing := write(t, "empty", "\n"), filepath.Join(t.TempDir(), "none")
	tests := []struct {
		name, file, want string
		args             []string
	}{
		{"missing", "", "token_file (--token-file): open " + missing, []string{"--token-file", missing}},
		{"empty", "", "token_file (--token-file): " + empty + " is empty", []string{"--token-file", empty}},
		{"path is none", "token_file: [a]", "want a path", nil},
		{"in the YAML file", "token: " + value, "a secret does not belong in the file", nil},
		{"in the YAML file, inside a map", "token: {a: " + value + "}", "a secret does not belong in the file", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := load(t, append(tt.args, "--config", write(t, "relay.yaml", tt.file))...)
			if err == nil {
				t.Fatal("no error")
			}
			if got := err.Error(); !strings.Contains(got, tt.want) || strings.Contains(got, value) || strings.Contains(got, "\n") {
				t.Errorf("got %q, want one mistake that has %q and not the value", got, tt.want)
			}
		})
	}
}

func TestSecretShowsNowhere(t *testing.T) {
	type hidden struct{ secret settings.Secret }
	type shown struct {
		Secret settings.Secret
		List   []settings.Secret
	}
	s := settings.NewSecret(value)
	values := []any{s, &s, []any{s}, map[string]any{"a": s}, shown{s, []settings.Secret{s}}, &shown{Secret: s}, hidden{s}, &hidden{s}}
	writers := map[string]func(any) string{
		"encoding/json": func(v any) string { b, _ := json.Marshal(v); return string(b) },
		"json/v2":       func(v any) string { b, _ := jsonv2.Marshal(v); return string(b) },
		"yaml":          func(v any) string { b, _ := yaml.Marshal(v); return string(b) },
		"goccy yaml":    func(v any) string { b, _ := goccy.Marshal(v); return string(b) },
		"slog text": func(v any) string {
			var b bytes.Buffer
			slog.New(slog.NewTextHandler(&b, nil)).Info("m", "v", v)
			return b.String()
		},
		"slog json": func(v any) string {
			var b bytes.Buffer
			slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "v", v)
			return b.String()
		},
		"fmt.Sprint": func(v any) string { return fmt.Sprint(v) },
	}
	for _, verb := range "vsqxXdcbtTpeUw" {
		for _, flag := range []string{"", "+", "#", "10", "# "} {
			format := "%" + flag + string(verb)
			writers[format] = func(v any) string { return fmt.Sprintf(format, v) }
		}
	}
	for name, write := range writers {
		for _, v := range values {
			got := write(v)
			// %x and %d would show it in hexadecimal or as a list of bytes.
			for _, leak := range []string{value, "733363726574", "115 51 99"} {
				if strings.Contains(strings.ToLower(got), leak) {
					t.Errorf("%s of %T shows the secret: %s", name, v, got)
				}
			}
		}
	}
	for _, name := range []string{"encoding/json", "json/v2", "yaml", "goccy yaml", "slog text", "slog json", "%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		if got := writers[name](s); !strings.Contains(got, "[redacted]") {
			t.Errorf("%s: got %q, want the mask", name, got)
		}
	}
	if got := settings.NewSecret("").String(); got != "" {
		t.Errorf("a secret that was not given shows as %q, want nothing", got)
	}
}

// A secret's file that is replaced is read again by whoever asks for what is
// current, within bounds; what can be read only once is kept.
func TestSecretIsCurrentWhenItsFileIsReplaced(t *testing.T) {
	path := write(t, "password", "old\n")
	s, err := settings.ReadSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	is := func(want string) {
		t.Helper()
		if got, err := s.Current(); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	is("old")
	for content, want := range map[string]string{"new\r\n": "new", "\n": "", strings.Repeat("x", 1<<20): ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if want != "" {
			is(want)
		} else if got, err := s.Current(); err == nil || strings.Contains(err.Error(), "xx") {
			t.Errorf("got %d bytes and %v, want an error without them", len(got), err)
		}
	}
	if s.Reveal() != "old" || !s.FromFile() {
		t.Errorf("the secret itself has become %q", s.Reveal())
	}

	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(pipe, []byte("once\n"), 0) }()
	if s, err = settings.ReadSecret(pipe); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	is("once")
	s = settings.NewSecret("given")
	is("given")
	if s.FromFile() {
		t.Error("a secret that was given came from a file")
	}
	if _, err := (settings.Secret{}).Current(); err == nil {
		t.Error("there is a current secret where none was given")
	}
}
