package policy

import (
	"errors"
	"strings"

	"statusrelay/internal/status"
)

// step is one token of a pointer: into the member or element of that name, or
// into each of them.
type step struct {
	name string
	each bool
}

// parsePointer reads a JSON Pointer (RFC 6901) with one extension: a token "*"
// names every member or element of its level, and ~2 stands for a literal *, as
// ~1 does for / and ~0 for ~. The pointer "" names the whole value.
func parsePointer(s string) ([]step, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] != '/' {
		return nil, errors.New("a pointer starts with /")
	}
	parts := strings.Split(s[1:], "/")
	if len(parts) > status.MaxDepth {
		return nil, errors.New("deeper than a custom status can be")
	}
	steps := make([]step, len(parts))
	for i, part := range parts {
		switch part {
		case wildcard:
			steps[i].each = true
			continue
		case "**":
			return nil, errors.New("** is not known: a pointer shows everything below it, and * is one level (a member of this name is ~2~2)")
		}
		name, ok := unescape(part)
		if !ok {
			return nil, errors.New("~ is followed by none of 0 (for ~), 1 (for /) and 2 (for *)")
		}
		steps[i].name = name
	}
	return steps, nil
}

func unescape(part string) (string, bool) {
	if !strings.Contains(part, "~") {
		return part, true
	}
	var b strings.Builder
	for i := 0; i < len(part); i++ {
		if part[i] != '~' {
			b.WriteByte(part[i])
			continue
		}
		if i++; i == len(part) || part[i] < '0' || part[i] > '2' {
			return "", false
		}
		b.WriteByte("~/*"[part[i]-'0'])
	}
	return b.String(), true
}

// fields is a set of pointers, as a tree. A nil or zero set has none.
type fields struct {
	all      bool // a pointer ends here: everything below may be seen
	named    map[string]*fields
	each     *fields
	elements bool // some token here can name an element of an array
}

// sees reports whether the set has the whole value.
func (f *fields) sees() bool { return f != nil && f.all }

// add puts a pointer into the set.
func (f *fields) add(pointer []step) {
	for _, t := range pointer {
		next := f.each
		if !t.each {
			next = f.named[t.name]
		}
		if next == nil {
			next = new(fields)
		}
		switch {
		case t.each:
			f.each, f.elements = next, true
		default:
			if f.named == nil {
				f.named = make(map[string]*fields)
			}
			f.named[t.name] = next
			if isIndex(t.name) {
				f.elements = true
			}
		}
		f = next
	}
	f.all = true
}

// isIndex reports whether a token can name an array's element (RFC 6901,
// section 4: no leading zeros; its "-" names none that exists).
func isIndex(s string) bool {
	if s == "" || s[0] == '0' && len(s) > 1 {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
