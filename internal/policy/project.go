package policy

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// projectors lends projectors, whose buffers are worth keeping.
type projectors struct{ pool sync.Pool }

// project appends to dst what a set of fields has of a JSON value:
//
//   - A value that a pointer names is copied as it stands, with all below it.
//   - An object on the way to a named value stays an object, with those members
//     of which something is kept; it may be empty.
//   - An array on the way stays an array if a token can name an element of it.
//     Its elements keep their positions, or else /items/3 would name another
//     one after the second projection: one of which nothing is kept is null.
//     Those behind the last that a token names are left out.
//   - Anything else is left out: as a member it is absent, as an element or as
//     the whole value it is null.
//
// So what is disclosed of the way is only that it exists, readers find objects
// and arrays where they expect them, and projecting twice is projecting once.
// Member names and values keep the bytes they had. A value that is not JSON
// becomes null.
func (ps *projectors) project(dst []byte, f *fields, raw json.RawMessage) []byte {
	if f.sees() {
		return append(dst, raw...)
	}
	p, _ := ps.pool.Get().(*projector)
	if p == nil {
		p = new(projector)
	}
	defer ps.pool.Put(p)
	return p.project(dst, f, raw)
}

// projector is the state of one projection.
type projector struct {
	in  bytes.Buffer
	dec jsontext.Decoder
	out []byte
	// active has, level upon level, the sets that still apply to the value being
	// read. They are several where names and * meet: /*/a beside /b/c.
	active  []*fields
	scratch []byte
}

func (p *projector) project(dst []byte, f *fields, raw json.RawMessage) []byte {
	p.in = *bytes.NewBuffer(raw)
	// Names are unique in canonical JSON. Where they are not, each of them
	// passes or fails by its own name, so that checking would protect nothing.
	p.dec.Reset(&p.in, jsontext.AllowDuplicateNames(true))
	p.active = p.active[:0]
	if f != nil {
		p.active = append(p.active, f)
	}

	start := len(dst)
	p.out = dst
	shown, err := p.value(0)
	dst, p.out, p.in = p.out, nil, bytes.Buffer{}
	if err != nil || !shown {
		return append(dst[:start], "null"...)
	}
	return dst
}

// value reads the next value and appends what the sets active[from:] have of
// it. It reports whether that is anything: if not, nothing was appended.
func (p *projector) value(from int) (shown bool, err error) {
	sets := p.active[from:]
	if slices.ContainsFunc(sets, (*fields).sees) {
		v, err := p.dec.ReadValue()
		p.out = append(p.out, v...)
		return err == nil, err
	}
	switch kind := p.dec.PeekKind(); {
	case kind == '{':
		return true, p.object(from)
	case kind == '[' && slices.ContainsFunc(sets, func(f *fields) bool { return f.elements }):
		return true, p.array(from)
	}
	return false, p.dec.SkipValue()
}

// below reads the next value, which is the member or element key of a value to
// which the sets active[from:to] apply, as value does. It reports besides
// whether any token names it.
func (p *projector) below(from, to int, key []byte) (named, shown bool, err error) {
	for i := from; i < to; i++ {
		f := p.active[i]
		if f.each != nil {
			p.active = append(p.active, f.each)
		}
		if next := f.named[string(key)]; next != nil {
			p.active = append(p.active, next)
		}
	}
	named = len(p.active) > to
	shown, err = p.value(to)
	p.active = p.active[:to]
	return named, shown, err
}

func (p *projector) object(from int) error {
	if _, err := p.dec.ReadToken(); err != nil {
		return err
	}
	p.out = append(p.out, '{')
	first := true
	to := len(p.active)
	for p.dec.PeekKind() != '}' {
		name, err := p.dec.ReadValue()
		if err != nil {
			return err
		}
		mark := len(p.out)
		if !first {
			p.out = append(p.out, ',')
		}
		p.out = append(append(p.out, name...), ':')

		key := name[1 : len(name)-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			if p.scratch, err = jsontext.AppendUnquote(p.scratch[:0], name); err != nil {
				return err
			}
			key = p.scratch
		}
		_, shown, err := p.below(from, to, key)
		if err != nil {
			return err
		}
		if shown {
			first = false
		} else {
			p.out = p.out[:mark]
		}
	}
	p.out = append(p.out, '}')
	_, err := p.dec.ReadToken()
	return err
}

func (p *projector) array(from int) error {
	if _, err := p.dec.ReadToken(); err != nil {
		return err
	}
	p.out = append(p.out, '[')
	end := len(p.out) // behind the last element that a token names
	to := len(p.active)
	for i := 0; p.dec.PeekKind() != ']'; i++ {
		p.scratch = strconv.AppendInt(p.scratch[:0], int64(i), 10)
		if i > 0 {
			p.out = append(p.out, ',')
		}
		named, shown, err := p.below(from, to, p.scratch)
		if err != nil {
			return err
		}
		if !shown {
			p.out = append(p.out, "null"...)
		}
		if named {
			end = len(p.out)
		}
	}
	p.out = append(p.out[:end], ']')
	_, err := p.dec.ReadToken()
	return err
}
