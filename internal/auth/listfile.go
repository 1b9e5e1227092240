package auth

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxListFile = 4 << 20 // bytes
	maxEntries  = 10_000
	maxKeyName  = 64 // bytes of the id of an API key or a link key
)

// A Mistake is one thing that is wrong with a file of keys or of issuers.
type Mistake struct {
	Line, Column int // 1-based
	Text         string
}

func (m Mistake) String() string {
	return fmt.Sprintf("line %d, column %d: %s", m.Line, m.Column, m.Text)
}

// A FileError has every mistake of such a file, in the order of their places. It repeats no value of the file, since a
// secret may stand wherever it does not belong. A file that is not YAML has one mistake: what follows it cannot be read.
type FileError struct{ Mistakes []Mistake }

func (e *FileError) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// Discreet is Error, which never quotes the file.
func (e *FileError) Discreet() string { return e.Error() }

// A listFile is a YAML file under way: one member, such as "keys:", that is a list of mappings. Values stand where they are used: there are no
// aliases, merges and tags, and so nothing to expand.
type listFile struct{ wrong []Mistake }

func (f *listFile) complain(at *yaml.Node, format string, args ...any) {
	f.wrong = append(f.wrong, Mistake{max(at.Line, 1), max(at.Column, 1), fmt.Sprintf(format, args...)})
}

// err returns what was found wrong as a *FileError, or nil.
func (f *listFile) err() error {
	if len(f.wrong) == 0 {
		return nil
	}
	slices.SortStableFunc(f.wrong, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &FileError{f.wrong}
}

var lineOfError = regexp.MustCompile(`line ([0-9]+)`)

// read returns the entries of a file's only member. Nothing is to be made of them when it has found mistakes.
func (f *listFile) read(file []byte, member string) []*yaml.Node {
	start := &yaml.Node{}
	if len(file) > maxListFile {
		f.complain(start, "larger than %d bytes", maxListFile)
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(file))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		f.complain(start, "the file is empty: it begins with '%s:'", member)
		return nil
	case err != nil: // its text may quote the file
		if m := lineOfError.FindStringSubmatch(err.Error()); m != nil {
			start.Line, _ = strconv.Atoi(m[1]) // digits, and at worst too many
		}
		f.complain(start, "not YAML")
		return nil
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		f.complain(start, "more than one YAML document, or something that is none")
	}
	root := document.Content[0]
	list := f.members(root, member)[member]
	if list == nil {
		if root.Kind == yaml.MappingNode {
			f.complain(root, "%s missing here", member)
		}
		return nil
	}
	entries := f.list(list)
	if len(entries) > maxEntries {
		f.complain(list, "more than %d %s", maxEntries, member)
		return nil
	}
	return entries
}

// members returns the members of a mapping, of which there are no others than those that are known.
func (f *listFile) members(n *yaml.Node, known ...string) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		f.complain(n, "%s where a mapping belongs", kindOf(n))
		return nil
	}
	members := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, ok := f.name(n.Content[i], members)
		switch {
		case !ok:
		case !slices.Contains(known, name):
			if len(name) > maxKeyName/2 || !consistsOf(name, "_") {
				name = "this"
			}
			f.complain(n.Content[i], "%s is not known here: what is, is %s", name, strings.Join(known, ", "))
		default:
			members[name] = n.Content[i+1]
		}
	}
	return members
}

// name returns the key of a mapping's member that is a text, and not there yet.
func (f *listFile) name(n *yaml.Node, taken map[string]*yaml.Node) (string, bool) {
	name, ok := f.text(n)
	if _, twice := taken[name]; ok && twice {
		f.complain(n, "a second time in this mapping")
		return "", false
	}
	return name, ok
}

// required returns a member, and complains of one that is not there.
func (f *listFile) required(entry *yaml.Node, members map[string]*yaml.Node, name string) (*yaml.Node, bool) {
	n, ok := members[name]
	if !ok && members != nil {
		f.complain(entry, "%s missing here", name)
	}
	return n, ok
}

func (f *listFile) list(n *yaml.Node) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		f.complain(n, "%s where a list belongs", kindOf(n))
		return nil
	}
	return n.Content
}

// text returns a text, to which belongs what YAML might take for a time and JSON would not.
func (f *listFile) text(n *yaml.Node) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" && n.ShortTag() != "!!timestamp" {
		f.complain(n, "%s where a text belongs", kindOf(n))
		return "", false
	}
	return n.Value, true
}

// some returns the texts of a list, of which there is at least one, and none twice. check says what is wrong with one.
func (f *listFile) some(n *yaml.Node, check func(string) error) (texts []string) {
	for _, item := range f.list(n) {
		text, ok := f.text(item)
		if !ok {
			continue
		}
		if err := check(text); err != nil {
			f.complain(item, "%v", err)
		}
		if slices.Contains(texts, text) {
			f.complain(item, "a second time in this list")
		}
		texts = append(texts, text)
	}
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		f.complain(n, "nothing in this list") // none, all, or the default: nobody knows what is meant
	}
	return texts
}

func (f *listFile) boolean(n *yaml.Node) (b bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(&b) != nil {
		f.complain(n, "%s where true or false belongs", kindOf(n))
	}
	return b
}

// id returns the id of an entry, which no other may have.
func (f *listFile) id(n *yaml.Node, taken map[string]bool) string {
	id, ok := f.text(n)
	if !ok {
		return ""
	}
	if err := checkKeyName(id); err != nil {
		f.complain(n, "%v", err)
	}
	if taken[id] {
		f.complain(n, "the id of another key")
	}
	taken[id] = true
	return id
}

func checkKeyName(id string) error {
	if len(id) > maxKeyName || !consistsOf(id, "._-") {
		return fmt.Errorf("an id is 1 to %d characters long, of A-Z a-z 0-9 . _ -", maxKeyName)
	}
	return nil
}

// claim returns a value as decodeClaims would have read it from JSON.
func (f *listFile) claim(n *yaml.Node) (value any) {
	switch n.Kind {
	case yaml.MappingNode:
		members := make(map[string]any, len(n.Content)/2)
		seen := map[string]*yaml.Node{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if name, ok := f.name(n.Content[i], seen); ok {
				seen[name] = n.Content[i+1]
				members[name] = f.claim(n.Content[i+1])
			}
		}
		return members
	case yaml.SequenceNode:
		items := make([]any, len(n.Content))
		for i := range items {
			items[i] = f.claim(n.Content[i])
		}
		return items
	case yaml.ScalarNode:
		return f.scalar(n)
	}
	f.complain(n, "%s where a claim belongs", kindOf(n))
	return nil
}

func (f *listFile) scalar(n *yaml.Node) any {
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		var b bool
		if n.Decode(&b) == nil {
			return b
		}
	case "!!int":
		var i int64
		if n.Decode(&i) == nil {
			return i
		}
		f.complain(n, "a number that is too large") // rounded, different identifiers would be equal
		return nil
	case "!!float":
		var x float64
		if n.Decode(&x) == nil && !math.IsInf(x, 0) && !math.IsNaN(x) {
			return x
		}
		f.complain(n, "a number that is too large, or none")
		return nil
	}
	text, _ := f.text(n)
	return text
}

// kindOf names what stands at a place, and not its value.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return "a text"
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!merge":
		return "<<"
	}
	return "a tag"
}
