package policy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxValues bounds what aliases may expand a file to.
const maxValues = 100_000

// Mistake is one thing that is wrong with a policy file.
type Mistake struct {
	Line, Column int // 1-based; the column counts characters
	Text         string
}

func (m Mistake) String() string {
	return fmt.Sprintf("line %d, column %d: %s", m.Line, m.Column, m.Text)
}

// ParseError has every mistake of a policy file, in the order of their places.
// A file that is not YAML has one: what follows it cannot be read.
type ParseError struct{ Mistakes []Mistake }

func (e *ParseError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// place is where something stands in the file.
type place struct{ line, column int }

// mistakes collects what is wrong.
type mistakes []Mistake

func (ms *mistakes) add(at place, format string, args ...any) {
	*ms = append(*ms, Mistake{at.line, at.column, fmt.Sprintf(format, args...)})
}

// err returns what was collected as a *ParseError, or nil. What is wrong in a
// value that has aliases was found at each of them and is said once.
func (ms mistakes) err() error {
	if len(ms) == 0 {
		return nil
	}
	slices.SortFunc(ms, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Text, b.Text))
	})
	return &ParseError{slices.Compact(ms)}
}

// value is a YAML value that knows its place. The methods that look into it
// answer for a nil value as for one of another type.
type value struct {
	at      place
	scalar  any // string, bool, int64, uint64, float64 or nil; for a mapping or sequence nil
	members []member
	items   []*value
	shape   shape
	size    int // values in it, itself included, every alias expanded

	// first is the place of the first character of a text that stands in the
	// file as it is, line by line; zero for one that YAML folded.
	first place
}

type shape uint8

const (
	scalar shape = iota
	mapping
	sequence
)

// member is one entry of a mapping.
type member struct {
	name  string
	at    place
	value *value
}

// get returns a mapping's member, or nil.
func (v *value) get(name string) *value {
	if v == nil {
		return nil
	}
	for _, m := range v.members {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// each returns the members of a mapping.
func (v *value) each() []member {
	if v == nil {
		return nil
	}
	return v.members
}

// list returns the items of a sequence.
func (v *value) list() []*value {
	if v == nil {
		return nil
	}
	return v.items
}

// text returns a text.
func (v *value) text() (string, bool) {
	if v == nil {
		return "", false
	}
	s, ok := v.scalar.(string)
	return s, ok
}

// inside returns the place of a character of a text, given its line (from 1) and
// its column (from 0) in the text.
func (v *value) inside(line, column int) place {
	switch {
	case v.first == place{}:
		return v.at
	case line == 1 || v.first.line > v.at.line: // one line, or a block
		return place{v.first.line + line - 1, v.first.column + column}
	}
	return v.at
}

// is reports whether it is the boolean true.
func (v *value) is() bool { return v != nil && v.scalar == true }

// plain returns it as encoding/json would decode it, for the schema.
func (v *value) plain() any {
	switch v.shape {
	case mapping:
		m := make(map[string]any, len(v.members))
		for _, e := range v.members {
			m[e.name] = e.value.plain()
		}
		return m
	case sequence:
		s := make([]any, len(v.items))
		for i, e := range v.items {
			s[i] = e.plain()
		}
		return s
	}
	return v.scalar
}

// find returns the value at a location that the schema's validator gave.
func (v *value) find(location []string) *value {
	for _, step := range location {
		if v.shape == sequence {
			i, _ := strconv.Atoi(step)
			v = v.items[i]
		} else {
			v = v.get(step)
		}
	}
	return v
}

// placeOf returns the place of a mapping's key.
func (v *value) placeOf(name string) place {
	for _, m := range v.members {
		if m.name == name {
			return m.at
		}
	}
	return v.at
}

// reader turns the syntax tree of a YAML file into values.
type reader struct {
	lines   []string
	anchors map[string]*value
	wrong   *mistakes
}

// read reads a file of one YAML document. What it finds wrong it adds to wrong;
// nil means that there is nothing to go on with.
func read(file []byte, wrong *mistakes) *value {
	tree, err := parser.ParseBytes(file, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		at := place{1, 1}
		text := err.Error()
		if e, ok := errors.AsType[*yaml.SyntaxError](err); ok {
			at, text = placeOf(e.Token), e.Message
		}
		wrong.add(at, "not YAML: %s", text)
		return nil
	}
	docs := slices.DeleteFunc(tree.Docs, func(d *ast.DocumentNode) bool { return d.Body == nil })
	if len(docs) == 0 {
		wrong.add(place{1, 1}, "the file is empty")
		return nil
	}
	r := &reader{strings.Split(string(file), "\n"), map[string]*value{}, wrong}
	if len(docs) > 1 {
		wrong.add(r.value(docs[1].Body).at, "a second YAML document: a policy is one")
	}
	v := r.value(docs[0].Body)
	if v.size > maxValues {
		wrong.add(place{1, 1}, "more than %d values when every alias is written out", maxValues)
		return nil
	}
	return v
}

func placeOf(t *token.Token) place { return place{t.Position.Line, t.Position.Column} }

func (r *reader) value(n ast.Node) *value {
	v := &value{at: placeOf(n.GetToken()), size: 1}
	switch n := n.(type) {
	case *ast.MappingNode:
		v.shape = mapping
		for _, e := range n.Values {
			r.member(v, e)
		}
		if len(v.members) > 0 && !n.IsFlowStyle {
			v.at = v.members[0].at // else it is that of the first colon
		}
	case *ast.MappingValueNode: // a mapping of one, in older forms of the tree
		v.shape = mapping
		r.member(v, n)
	case *ast.SequenceNode:
		v.shape = sequence
		for _, e := range n.Values {
			item := r.value(e)
			v.items = append(v.items, item)
			v.size += item.size
		}
	case *ast.AnchorNode:
		v = r.value(n.Value)
		r.anchors[n.Name.GetToken().Value] = v
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		if known, ok := r.anchors[name]; ok {
			return known
		}
		r.wrong.add(v.at, "no anchor &%s before this alias", name)
	case *ast.LiteralNode:
		v.scalar = n.Value.Value
		if n.Start.Type == token.LiteralType && v.at.line < len(r.lines) {
			line := r.lines[v.at.line]
			v.first = place{v.at.line + 1, 1 + len(line) - len(strings.TrimLeft(line, " "))}
		}
	case *ast.StringNode:
		v.scalar = n.Value
		v.first = v.at
		if n.Token.Type != token.StringType {
			v.first.column++ // the quote
		}
	case *ast.TagNode:
		r.wrong.add(v.at, "tags are not for policies")
	case ast.ScalarNode:
		v.scalar = n.GetValue()
	default:
		r.wrong.add(v.at, "not for policies")
	}
	return v
}

func (r *reader) member(v *value, e *ast.MappingValueNode) {
	at := placeOf(e.Key.GetToken())
	name, ok := e.Key.(*ast.StringNode)
	switch {
	case e.Key.IsMergeKey():
		r.wrong.add(at, "<< is not for policies: what holds must stand where it holds")
		return
	case !ok:
		r.wrong.add(at, "a key that is not a text: put it in quotes")
		return
	case slices.ContainsFunc(v.members, func(m member) bool { return m.name == name.Value }):
		r.wrong.add(at, "%q a second time", name.Value)
		return
	}
	m := member{name.Value, at, r.value(e.Value)}
	if e.Value.Type() == ast.NullType {
		m.value.at = at // nothing stands where the value should
	}
	v.members = append(v.members, m)
	v.size += m.value.size
}
