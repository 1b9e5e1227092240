package settings

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

const redacted = "[redacted]"

// maxSecret bounds what is read of a file: a secret is a line of text, and a path
// that names something else must not fill the memory.
const maxSecret = 64 << 10

// Secret is a value that only Reveal shows. The text is behind a pointer, so
// that not even a formatter that ignores methods, as fmt does for unexported
// fields, can print it. The zero value is a secret that was not given.
type Secret struct {
	text *string
	path string // of the file that it came from, "" for none
}

// NewSecret wraps a text; the empty one makes the zero Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: &text}
}

// ReadSecret reads a secret from a file, without the newlines at its end.
func ReadSecret(path string) (Secret, error) {
	text, err := readSecret(path)
	if err != nil {
		return Secret{}, err
	}
	s := NewSecret(text)
	// What can be read only once, such as a shell's <(…), is kept as it was.
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
		s.path = path
	}
	return s, nil
}

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxSecret {
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxSecret)
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return text, nil
}

// FromFile reports that the secret came from a file, in which another may stand
// later.
func (s Secret) FromFile() bool { return s.path != "" }

// Current returns what the file holds now, for a secret that came from one, and
// else what Reveal does. Secrets are rotated by replacing their files: whoever
// logs in again and again asks here each time.
func (s Secret) Current() (string, error) {
	switch {
	case s.path != "":
		return readSecret(s.path)
	case s.IsZero():
		return "", errors.New("no secret was given")
	}
	return *s.text, nil
}

// Reveal returns the text, "" if none was given.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports that no secret was given.
func (s Secret) IsZero() bool { return s.text == nil }

// String returns a mask, "" if no secret was given.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// Format writes the mask whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText gives the mask to JSON, YAML and whatever else encodes.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue gives the mask to slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
