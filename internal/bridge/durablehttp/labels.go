package durablehttp

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/status"
)

// Labels are what instances are labelled with: a name's text is the label itself or,
// where it starts with /, a JSON Pointer (RFC 6901) to it in the custom status.
type Labels map[string]string

// Validate reports every mistake.
func (l Labels) Validate() error {
	var errs []error
	if len(l) > status.MaxLabels {
		errs = append(errs, fmt.Errorf("more than %d", status.MaxLabels))
	}
	for _, name := range slices.Sorted(maps.Keys(l)) {
		text := l[name]
		switch {
		case name == "" || utf8.RuneCountInString(name) > status.MaxLabelKey:
			errs = append(errs, fmt.Errorf("%q: not 1 to %d characters long", name, status.MaxLabelKey))
		case strings.HasPrefix(text, "/") && !jsontext.Pointer(text).IsValid():
			errs = append(errs, fmt.Errorf("%s: %q is no JSON Pointer", name, text))
		case text == "":
			errs = append(errs, fmt.Errorf("%s: neither a text nor a JSON Pointer", name))
		case !strings.HasPrefix(text, "/") && utf8.RuneCountInString(text) > status.MaxLabelValue:
			errs = append(errs, fmt.Errorf("%s: longer than %d characters", name, status.MaxLabelValue))
		}
	}
	return errors.Join(errs...)
}

// of are the labels of an instance with that custom status. One that it has not, or
// not as a text or a number, is left out.
func (l Labels) of(custom json.RawMessage) map[string]string {
	if len(l) == 0 {
		return nil
	}
	var value any
	if len(custom) > 0 {
		d := json.NewDecoder(strings.NewReader(string(custom)))
		d.UseNumber()
		if d.Decode(&value) != nil {
			value = nil
		}
	}
	labels := make(map[string]string, len(l))
	for name, text := range l {
		if strings.HasPrefix(text, "/") {
			var ok bool
			if text, ok = find(value, jsontext.Pointer(text)); !ok {
				continue
			}
		}
		labels[name] = text
	}
	return labels
}

func find(value any, p jsontext.Pointer) (text string, ok bool) {
	for token := range p.Tokens() {
		switch v := value.(type) {
		case map[string]any:
			value = v[token]
		case []any:
			i, err := strconv.Atoi(token)
			if err != nil || i < 0 || i >= len(v) || strconv.Itoa(i) != token {
				return "", false
			}
			value = v[i]
		default:
			return "", false
		}
	}
	switch v := value.(type) {
	case string:
		text = v
	case json.Number:
		text = v.String()
	}
	return text, text != "" && utf8.RuneCountInString(text) <= status.MaxLabelValue
}
