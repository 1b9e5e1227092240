package policy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

func TestProjection(t *testing.T) {
	for _, c := range []struct {
		name     string
		pointers []string
		in, want string
	}{
		{"nothing of an object", nil, `{"a":1}`, `{}`},
		{"nothing of objects below", nil, `{"a":{"b":1},"c":{}}`, `{}`},
		{"nothing of objects beside", []string{"/a/x"}, `{"a":{"x":1},"b":{"x":1},"c":{},"d":[{}]}`, `{"a":{"x":1}}`},
		{"nothing of objects in arrays beside", []string{"/0", "/2"}, `[1,{"a":2},3,{"a":4}]`, `[1,null,3]`},
		{"nothing of an array", nil, `[1,{"a":2}]`, `null`},
		{"nothing of a text", nil, `"secret"`, `null`},
		{"nothing of null", nil, `null`, `null`},
		{"everything", []string{""}, `{"a":[1,"x"]}`, `{"a":[1,"x"]}`},
		{"everything of a text", []string{""}, `"x"`, `"x"`},
		{"members", []string{"/a", "/c"}, `{"a":1,"b":2,"c":3}`, `{"a":1,"c":3}`},
		{"order of pointers", []string{"/c", "/a"}, `{"a":1,"b":2,"c":3}`, `{"a":1,"c":3}`},
		{"all below", []string{"/a"}, `{"a":{"x":[{"y":1}]},"b":2}`, `{"a":{"x":[{"y":1}]}}`},
		{"a null", []string{"/a"}, `{"a":null}`, `{"a":null}`},
		{"deep", []string{"/a/b/c"}, `{"a":{"b":{"c":1,"d":2},"e":3}}`, `{"a":{"b":{"c":1}}}`},
		{"a pointer under another", []string{"/a/b", "/a"}, `{"a":{"b":1,"c":2}}`, `{"a":{"b":1,"c":2}}`},
		{"text on the way", []string{"/a/b"}, `{"a":"secret","c":1}`, `{}`},
		{"number on the way", []string{"/a/b"}, `{"a":7}`, `{}`},
		{"null on the way", []string{"/a/b"}, `{"a":null}`, `{}`},
		{"empty object on the way", []string{"/a/b"}, `{"a":{"x":1}}`, `{"a":{}}`},
		{"array where a member is named", []string{"/a/b"}, `{"a":["secret"]}`, `{}`},
		{"pointers into a text", []string{"/percent"}, `"50 percent"`, `null`},
		{"pointers into an array", []string{"/percent"}, `[1,2]`, `null`},
		{"each member", []string{"/*/state"}, `{"a":{"state":1,"cost":2},"b":{"state":3},"c":4}`, `{"a":{"state":1},"b":{"state":3}}`},
		{"each element", []string{"/items/*/sku"}, `{"items":[{"sku":"a","cost":1},{"cost":2},"x",{"sku":"b"}]}`, `{"items":[{"sku":"a"},{},null,{"sku":"b"}]}`},
		{"each element of nothing", []string{"/items/*/sku"}, `{"items":[]}`, `{"items":[]}`},
		{"each of a top array", []string{"/*/sku"}, `[{"sku":1,"x":2}]`, `[{"sku":1}]`},
		{"an element", []string{"/items/2"}, `{"items":["a","b","c","d","e"]}`, `{"items":[null,null,"c"]}`},
		{"an element that is not there", []string{"/items/7"}, `{"items":["a","b"]}`, `{"items":[]}`},
		{"two elements", []string{"/items/2/a", "/items/0"}, `{"items":["a","b",{"a":1,"b":2},"d"]}`, `{"items":["a",null,{"a":1}]}`},
		{"element number as a member", []string{"/items/2"}, `{"items":{"2":"c","3":"d"}}`, `{"items":{"2":"c"}}`},
		{"no leading zeros", []string{"/items/01"}, `{"items":["a","b"]}`, `{}`},
		{"no end of array", []string{"/items/-"}, `{"items":["a","b"]}`, `{}`},
		{"each and a name", []string{"/*/x", "/b/y"}, `{"a":{"x":1,"y":2},"b":{"x":3,"y":4,"z":5}}`, `{"a":{"x":1},"b":{"x":3,"y":4}}`},
		{"each at two levels", []string{"/*/*"}, `{"a":{"x":1},"b":[2],"c":3}`, `{"a":{"x":1},"b":[2]}`},
		{"arrays of arrays", []string{"/*/0"}, `[[1,2],[3],[],4]`, `[[1],[3],[],null]`},
		{"the empty name", []string{"/"}, `{"":1,"a":2}`, `{"":1}`},
		{"escaped tilde, slash, star", []string{"/~0", "/~1", "/~2"}, `{"*":3,"/":2,"x":4,"~":1}`, `{"*":3,"/":2,"~":1}`},
		{"a star within a name", []string{"/a*"}, `{"a*":1,"ab":2}`, `{"a*":1}`},
		{"~01 is ~1", []string{"/~01"}, `{"/":1,"~1":2}`, `{"~1":2}`},
		{"names escaped in JSON", []string{"/a\"b", "/\n", "/ä"}, `{"\n":2,"\u00e4":3,"a\"b":1,"x":4}`, `{"\n":2,"\u00e4":3,"a\"b":1}`},
		{"an escaped name is no way around", []string{"/b"}, `{"\u0061":1,"b":2}`, `{"b":2}`},
		{"numbers as written", []string{"/n"}, `{"n":12345678901234567890.10e5,"o":1}`, `{"n":12345678901234567890.10e5}`},
		{"a name that comes twice", []string{"/a"}, `{"a":1,"b":2,"a":3}`, `{"a":1,"a":3}`},
		{"not JSON", []string{"/a"}, `{"a":1,`, `null`},
		{"not JSON below", []string{"/a"}, `{"a":{"b":]}}`, `null`},
		{"no JSON at all", []string{"/a"}, ``, `null`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := policy.Project(c.pointers, []byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("projecting %s by %q\n got %s\nwant %s", c.in, c.pointers, got, c.want)
			}
			again, err := policy.Project(c.pointers, got)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again, got) {
				t.Errorf("projecting twice: %s, once: %s", again, got)
			}
		})
	}
}

// FuzzProject holds that whatever comes in, JSON goes out, with nothing in it
// that no pointer names, and everything that one does.
func FuzzProject(f *testing.F) {
	f.Add("/a\n/b/*/c", `{"a":1,"b":[{"c":2,"d":3},4],"e":"secret"}`)
	f.Add("/*/*\n/b/1", `{"a":{"x":[]},"b":[1,2,3]}`)
	f.Add("/~2/~01\n/", `{"*":{"~1":1},"":{"":null}}`)
	f.Add("", `[[[[]]]]`)
	f.Add("/0\n/2/x", `[1,2,{"x":"\u0061","y":1e999}]`)
	f.Fuzz(func(t *testing.T, lines, in string) {
		pointers := strings.Split(lines, "\n")
		out, err := policy.Project(pointers, []byte(in))
		if err != nil {
			return // no pointer
		}
		value := jsontext.Value(in)
		valid := value.IsValid() // rejects names that come twice, of which a map would keep one
		if valid && !jsontext.Value(out).IsValid() || !json.Valid(out) && json.Valid([]byte(in)) {
			t.Fatalf("projecting %s by %q gives %s", in, pointers, out)
		}
		if !valid {
			return
		}
		want := project(patterns(pointers), decode(t, value))
		if got := decode(t, out); !equal(got, want) {
			t.Errorf("projecting %s by %q\n got %v\nwant %v", in, pointers, got, want)
		}
		again, err := policy.Project(pointers, out)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again, out) {
			t.Errorf("projecting %s by %q twice: %s, once: %s", in, pointers, again, out)
		}
	})
}

// What follows is the projection once more, for the tests: on decoded values
// and without a tree.

func decode(t *testing.T, raw []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("decode %s: %v", raw, err)
	}
	return v
}

func equal(a, b any) bool { return fmt.Sprintf("%#v", a) == fmt.Sprintf("%#v", b) }

// patterns splits pointers; a wildcard is the token "\x00", which no token of a
// pointer under test is.
func patterns(pointers []string) [][]string {
	var all [][]string
	for _, p := range pointers {
		tokens := strings.Split(p, "/")[1:]
		if p == "" {
			tokens = nil
		}
		for i, token := range tokens {
			if token == "*" {
				tokens[i] = "\x00"
				continue
			}
			tokens[i] = strings.NewReplacer("~0", "~", "~1", "/", "~2", "*").Replace(token)
		}
		all = append(all, tokens)
	}
	return all
}

// absent is what nothing is left of.
type absent struct{}

func project(patterns [][]string, v any) any {
	if got := projectPart(patterns, v); got != any(absent{}) {
		return got
	}
	return nil
}

func projectPart(patterns [][]string, v any) any {
	for _, p := range patterns {
		if len(p) == 0 {
			return v
		}
	}
	under := func(key string) (rest [][]string) {
		for _, p := range patterns {
			if p[0] == "\x00" || p[0] == key {
				rest = append(rest, p[1:])
			}
		}
		return rest
	}
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for key, below := range v {
			rest := under(key)
			if len(rest) == 0 {
				continue
			}
			if got := projectPart(rest, below); got != any(absent{}) {
				out[key] = got
			}
		}
		return out
	case []any:
		if !slices.ContainsFunc(patterns, func(p []string) bool {
			n, err := strconv.ParseUint(p[0], 10, 64)
			return p[0] == "\x00" || err == nil && strconv.FormatUint(n, 10) == p[0]
		}) {
			return absent{}
		}
		out, end := []any{}, 0
		for i, below := range v {
			out = append(out, nil)
			if rest := under(strconv.Itoa(i)); len(rest) > 0 {
				end = i + 1
				if got := projectPart(rest, below); got != any(absent{}) {
					out[i] = got
				}
			}
		}
		return out[:end]
	}
	return absent{}
}

// TestFilterBeforeStoreLeavesViewsAlone (promise 2): for random policies and
// values, what a reader sees is the same whether or not the update was filtered
// on the way in, and filtering twice is filtering once.
func TestFilterBeforeStoreLeavesViewsAlone(t *testing.T) {
	const policies, values = 60, 60
	for seed := range uint64(policies) {
		g := generator{rand.New(rand.NewPCG(seed, 7))}
		file := g.policy()
		p := parse(t, file)
		for range values {
			u := g.update()
			filtered := *u
			p.Filter(&filtered)
			twice := filtered
			p.Filter(&twice)
			if a, b := record(&filtered), record(&twice); encode(t, a) != encode(t, b) {
				t.Fatalf("filtered twice: %s\nfiltered once: %s\n%s", encode(t, b), encode(t, a), file)
			}
			if u.CustomStatus != nil && filtered.CustomStatus == nil {
				t.Fatalf("the filter silenced the progress lane of %s\n%s", u.CustomStatus, file)
			}
			for who := range audiences {
				claims := map[string]any{"who": float64(who)}
				a := p.Audience(claims, record(u))
				if b := p.Audience(claims, record(&filtered)); a != b {
					t.Fatalf("filtering changes the audience of %d\n%s", who, file)
				}
				if a == nil {
					continue
				}
				raw, stored := a.View(record(u)), a.View(record(&filtered))
				if string(raw.JSON) != string(stored.JSON) || raw.ETag != stored.ETag {
					t.Fatalf("audience %s of %s\n sees %s\n or after the filter %s\n%s", a.Name(), u.CustomStatus, raw.JSON, stored.JSON, file)
				}
			}
		}
	}
}

func record(u *status.Update) *status.Record {
	r, _ := status.Merge(nil, u)
	return r
}

func encode(t *testing.T, r *status.Record) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// audiences is how many each generated policy has.
const audiences = 3

// generator makes random policies and updates out of few names, so that they
// have to do with each other.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) policy() string {
	var b strings.Builder
	b.WriteString("version: 1\nhubs:\n  '*':\n    orchestrators:\n      '*':\n        audiences:\n")
	for i := range audiences {
		custom := `"all"`
		if g.IntN(5) > 0 {
			pointers := map[string]bool{}
			for range g.IntN(5) {
				pointers[g.pointer()] = true
			}
			sorted := slices.AppendSeq([]string{}, maps.Keys(pointers))
			slices.Sort(sorted)
			list, _ := json.Marshal(sorted)
			custom = string(list)
		}
		fmt.Fprintf(&b, "          - {name: a%d, when: claims.who == %d, see: {customStatus: %s, output: %v, failure: %v, labels: %v}}\n",
			i, i, custom, g.IntN(2) == 0, g.IntN(2) == 0, g.IntN(2) == 0)
	}
	return b.String()
}

func (g generator) pointer() string {
	var b strings.Builder
	for range 1 + g.IntN(4) {
		b.WriteString("/" + g.pick("a", "b", "c", "*", "*", "0", "1", "2", "~2", "~0"))
	}
	return b.String()
}

func (g generator) update() *status.Update {
	u := &status.Update{
		Hub: "h", InstanceID: "i", Kind: status.KindSnapshot, RuntimeStatus: status.Failed,
		Labels: map[string]string{"owner": "u-1"},
	}
	if g.IntN(8) > 0 {
		u.CustomStatus = g.json(4)
	}
	if g.IntN(2) == 0 {
		u.Output = g.json(2)
	}
	if g.IntN(2) == 0 {
		u.Failure = &status.Failure{Type: g.pick("", "Oops"), Message: g.pick("", "no \"luck\"")}
	}
	return u
}

func (g generator) json(depth int) json.RawMessage {
	raw, _ := json.Marshal(g.value(depth))
	return raw
}

func (g generator) value(depth int) any {
	switch n := g.IntN(8); {
	case depth > 0 && n < 4:
		m := map[string]any{}
		for range g.IntN(5) {
			m[g.pick("a", "b", "c", "0", "1", "*", "~", "d")] = g.value(depth - 1)
		}
		return m
	case depth > 0 && n < 6:
		s := make([]any, g.IntN(5))
		for i := range s {
			s[i] = g.value(depth - 1)
		}
		return s
	case n == 6:
		return nil
	}
	return []any{g.IntN(100), "text", true}[g.IntN(3)]
}
