package wire

import "strings"

// Trace returns a W3C trace context as far as it is well-formed: what is not is "",
// and a state without a parent means nothing.
func Trace(traceparent, tracestate string) (parent, state string) {
	if !isTraceparent(traceparent) {
		return "", ""
	}
	if !isTracestate(tracestate) {
		return traceparent, ""
	}
	return traceparent, tracestate
}

// isTraceparent reports whether a text is version-traceid-parentid-flags, neither id of
// zeros only and the version not ff (W3C Trace Context, section 3.2.2).
func isTraceparent(text string) bool {
	const form = "00-00000000000000000000000000000000-0000000000000000-00"
	if len(text) != len(form) {
		return false
	}
	for i := range len(form) {
		if form[i] == '-' && text[i] != '-' || form[i] == '0' && !isHex(text[i]) {
			return false
		}
	}
	return text[:2] != "ff" && strings.Trim(text[3:35], "0") != "" && strings.Trim(text[36:52], "0") != ""
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }

// isTracestate reports whether a text is a list of at most 32 members key=value, in at
// most the 512 bytes that everybody has to pass on (section 3.3).
func isTracestate(text string) bool {
	if len(text) > 512 {
		return false
	}
	members := strings.Split(text, ",")
	if len(members) > 32 {
		return false
	}
	for _, m := range members {
		if m = strings.Trim(m, " \t"); m == "" {
			continue // allowed, for whoever appends
		}
		key, value, found := strings.Cut(m, "=")
		if !found || key == "" || value == "" || strings.TrimLeft(key, "abcdefghijklmnopqrstuvwxyz0123456789_-*/@") != "" {
			return false
		}
		for _, c := range []byte(value) {
			if c < ' ' || c > '~' || c == '=' {
				return false
			}
		}
	}
	return true
}
