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

func (ps *projectors) borrow() *projector {
	if p, ok := ps.pool.Get().(*projector); ok {
		return p
	}
	return new(projector)
}

func (ps *projectors) giveBack(p *projector) { ps.pool.Put(p) }

// projector is the state of one projection.
type projector struct {
	in  bytes.Buffer
	dec jsontext.Decoder
	out []byte
	// active has, level upon level, the sets that still apply to the value being
	// read. They are several where names and * meet: /*/a beside /b/c.
	active []*fields
	key    []byte // the name of a member or index of an element, unquoted
}

// project returns what a set of fields has of a JSON value:
//
//   - A value that a pointer names is copied as it stands, with all below it.
//   - An object on the way to a named value stays an object, with those members
//     of which something is kept; it may be empty.
//   - An array on the way stays an array if a token can name an element of it.
//     Its elements keep their positions, or else /items/3 would name another
//     one after the second projection: one of which nothing is kept is null.
//     Those behind the last that a token names are left out.
//   - Anything else is left out: as a member it is absent, as an element or as
//     the whole value it is null. Only the whole value is always on the way, so
//     that an object of which nothing is kept is {}.
//
// So what is disclosed of the way is only that it exists, readers find objects
// and arrays where they expect them, and projecting twice is projecting once.
// Member names and values keep the bytes they had. A value that is not JSON
// becomes null. The result is the projector's: it holds until the next use.
func (p *projector) project(f *fields, raw json.RawMessage) []byte {
	p.in = *bytes.NewBuffer(raw)
	// Names are unique in canonical JSON. Where they are not, each of them
	// passes or fails by its own name, so that checking would protect nothing.
	p.dec.Reset(&p.in, jsontext.AllowDuplicateNames(true))
	p.active = p.active[:0]
	if f != nil {
		p.active = append(p.active, f)
	}
	p.out = p.out[:0]
	shown, err := p.value(0)
	p.in = bytes.Buffer{} // or the pool would keep the value alive
	if err != nil || !shown {
		p.out = append(p.out[:0], "null"...)
	}
	return p.out
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

// below reads the next value, which is the member or element p.key of a value
// to which the sets active[from:to] apply, as value does. It reports besides
// whether any token names it.
func (p *projector) below(from, to int) (named, shown bool, err error) {
	for _, f := range p.active[from:to] {
		if f.each != nil {
			p.active = append(p.active, f.each)
		}
		if next := f.named[string(p.key)]; next != nil {
			p.active = append(p.active, next)
		}
	}
	if len(p.active) == to {
		return false, false, p.dec.SkipValue()
	}
	shown, err = p.value(to)
	p.active = p.active[:to]
	return true, shown, err
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

		if bytes.IndexByte(name, '\\') < 0 {
			p.key = append(p.key[:0], name[1:len(name)-1]...)
		} else if p.key, err = jsontext.AppendUnquote(p.key[:0], name); err != nil {
			return err
		}
		_, shown, err := p.below(from, to)
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
		p.key = strconv.AppendInt(p.key[:0], int64(i), 10)
		if i > 0 {
			p.out = append(p.out, ',')
		}
		named, shown, err := p.below(from, to)
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
