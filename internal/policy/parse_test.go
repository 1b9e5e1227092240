package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"statusrelay/internal/policy"
	"statusrelay/internal/status"
)

// mistakes parses a file that has some.
func mistakes(t testing.TB, file string) []policy.Mistake {
	t.Helper()
	p, err := policy.Parse([]byte(file))
	if err == nil {
		t.Fatalf("no error in\n%s", file)
	}
	if p != nil {
		t.Errorf("a policy in spite of the error %v", err)
	}
	parse, ok := errors.AsType[*policy.ParseError](err)
	if !ok {
		t.Fatalf("error %T %v, want a ParseError", err, err)
	}
	return parse.Mistakes
}

const frame = `version: 1
hubs:
  "*":
    orchestrators:
      "*":
        audiences:
          - name: operator
            when: "true"
            see: { customStatus: all }
`

// TestEveryMistakeHasItsPlace has one mistake per file; § marks its place.
func TestEveryMistakeHasItsPlace(t *testing.T) {
	audience := func(s string) string {
		return strings.Replace(frame, `          - name: operator
            when: "true"
            see: { customStatus: all }
`, s, 1)
	}
	for _, c := range []struct{ name, file, text string }{
		{"no file", "§", "the file is empty"},
		{"comments alone", "§# nothing\n", "the file is empty"},
		{"no YAML", "version: 1\nhubs: §[\n", "not YAML"},
		{"bad indentation", "version: §1\n hubs: 2\n", "not YAML"},
		{"two documents", frame + "---\n§version: 1\n", "second YAML document"},
		{"not a mapping", "§- 1\n", "array where object belongs"},
		{"a number", "§1\n", "number where object belongs"},
		{"an unknown field", frame + "§extra: 1\n", `"extra" is not known here`},
		{"a field twice", frame + "§version: 1\n", `"version" a second time`},
		{"no version", strings.Replace(frame, "version: 1\nhubs", "§hubs", 1), "version missing"},
		{"another version", strings.Replace(frame, "1", "§2", 1), "must be 1"},
		{"no hubs", "§version: 1\n", "hubs missing"},
		{"empty hubs", "version: 1\nhubs: §{}\n", "minProperties"},
		{"hubs without a value", "version: 1\n§hubs:\n", "null where object belongs"},
		{"no orchestrators", "version: 1\nhubs:\n  a: §{}\n", "orchestrators missing"},
		{"empty orchestrators", "version: 1\nhubs:\n  a: {orchestrators: §{}}\n", "minProperties"},
		{"no audiences", "version: 1\nhubs:\n  a: {orchestrators: {b: §{}}}\n", "audiences missing"},
		{"a bad hub name", "version: 1\nhubs:\n  §a.b: {orchestrators: {b: {audiences: []}}}\n", "hub: a character"},
		{"a hub pattern", "version: 1\nhubs:\n  §\"a*\": {orchestrators: {b: {audiences: []}}}\n", "hub: a character"},
		{"an orchestrator pattern", "version: 1\nhubs:\n  a: {orchestrators: {§\"b*\": {audiences: []}}}\n", "there are no patterns"},
		{"an empty orchestrator name", "version: 1\nhubs:\n  a: {orchestrators: {§\"\": {audiences: []}}}\n", "1 to 256"},
		{"a hub twice", "version: 1\nhubs:\n  a: {orchestrators: {b: {audiences: []}}}\n  §a: {orchestrators: {b: {audiences: []}}}\n", "second time"},
		{"a key that is a number", "version: 1\nhubs:\n  §1: {orchestrators: {b: {audiences: []}}}\n  b: {orchestrators: {b: {audiences: []}}}\n", "put it in quotes"},
		{"audiences as a mapping", "version: 1\nhubs:\n  a: {orchestrators: {b: {audiences: §{a: 1}}}}\n", "object where array belongs"},
		{"an audience that is a text", audience("          - §operator\n"), "string where object belongs"},
		{"an audience without a name", audience("          - §when: \"true\"\n            see: {}\n"), "name missing"},
		{"an audience without a condition", audience("          - §name: a\n            see: {}\n"), "when missing"},
		{"an audience without rights", audience("          - §name: a\n            when: \"true\"\n"), "see missing"},
		{"an empty name", audience("          - name: §\"\"\n            when: \"true\"\n            see: {}\n"), "minLength"},
		{"a name twice", audience("          - {name: a, when: \"true\", see: {}}\n          - {name: §a, when: \"true\", see: {}}\n"), `second audience "a"`},
		{"an unknown right", audience("          - {name: a, when: \"true\", see: {§input: true}}\n"), `"input" is not known here`},
		{"a right that is no boolean", audience("          - {name: a, when: \"true\", see: {output: §\"yes\"}}\n"), "string where boolean belongs"},
		{"YAML 1.1's booleans", audience("          - {name: a, when: \"true\", see: {output: §yes}}\n"), "string where boolean belongs"},
		{"a word for pointers", audience("          - {name: a, when: \"true\", see: {customStatus: §everything}}\n"), "must be all"},
		{"pointers as a boolean", audience("          - {name: a, when: \"true\", see: {customStatus: §true}}\n"), "boolean where array belongs"},
		{"a pointer that is a number", audience("          - {name: a, when: \"true\", see: {customStatus: [§1]}}\n"), "number where string belongs"},
		{"a pointer twice", audience("          - {name: a, when: \"true\", see: {customStatus: [/a, /b, §/a]}}\n"), "second time in this list"},
		{"a pointer without slash", audience("          - {name: a, when: \"true\", see: {customStatus: [/a, §percent]}}\n"), "starts with /"},
		{"a dotted path", audience("          - name: a\n            when: \"true\"\n            see:\n              customStatus:\n                - /a\n                - §$.percent\n"), "starts with /"},
		{"a bad escape", audience("          - {name: a, when: \"true\", see: {customStatus: [§/a~3]}}\n"), "~ is followed by"},
		{"a tilde at the end", audience("          - {name: a, when: \"true\", see: {customStatus: [§/a~]}}\n"), "~ is followed by"},
		{"two stars", audience("          - {name: a, when: \"true\", see: {customStatus: [§/**]}}\n"), "** is not known"},
		{"a pointer too deep", audience("          - {name: a, when: \"true\", see: {customStatus: [§" + strings.Repeat("/a", 33) + "]}}\n"), "deeper"},
		{"an empty condition", audience("          - {name: a, when: §\"\", see: {}}\n"), "minLength"},
		{"a condition that is a boolean", audience("          - {name: a, when: §true, see: {}}\n"), "boolean where string belongs"},
		{"a syntax error in CEL", audience("          - name: a\n            when: claims.sub == §= 1\n            see: {}\n"), "Syntax error"},
		{"an unknown variable", audience("          - name: a\n            when: labels.owner == §user.sub\n            see: {}\n"), "undeclared reference to 'user'"},
		{"an unknown variable in quotes", audience("          - name: a\n            when: \"labels.owner == §user.sub\"\n            see: {}\n"), "undeclared reference to 'user'"},
		{"an unknown variable in a block", audience("          - name: a\n            when: |\n              'a' in claims.roles ||\n              labels.owner == §user.sub\n            see: {}\n"), "undeclared reference to 'user'"},
		{"an unknown variable in a folded block", audience("          - name: a\n            when: §>\n              'a' in claims.roles ||\n              labels.owner == user.sub\n            see: {}\n"), "undeclared reference to 'user'"},
		{"an unknown function", audience("          - name: a\n            when: labels.owner.soundsLike§('x')\n            see: {}\n"), "soundsLike"},
		{"a type error in CEL", audience("          - name: a\n            when: labels.owner §== 1\n            see: {}\n"), "no matching overload"},
		{"a bad regular expression", audience("          - name: a\n            when: labels.owner.matches(§'(')\n            see: {}\n"), "invalid matches argument"},
		{"loops in loops in loops", audience("          - name: a\n            when: claims.a.all(x, x.all(y, y.all§(z, z)))\n            see: {}\n"), "nesting"},
		{"a condition that is a text", audience("          - name: a\n            when: §labels.owner\n            see: {}\n"), "is true or false, and this is string"},
		{"a condition that is anything", audience("          - name: a\n            when: §claims.admin\n            see: {}\n"), "is true or false, and this is dyn"},
		{"a silence that is a number", "version: 1\nhubs:\n  a: {staleAfter: §15, orchestrators: {b: {audiences: []}}}\n", "number where string belongs"},
		{"a silence that is left out", "version: 1\nhubs:\n  a:\n    §staleAfter:\n    orchestrators: {b: {audiences: []}}\n", "null where string belongs"},
		{"a silence without unit", "version: 1\nhubs:\n  a: {staleAfter: §\"15\", orchestrators: {b: {audiences: []}}}\n", "neither never nor a duration"},
		{"a silence in days", "version: 1\nhubs:\n  a: {staleAfter: §2d, orchestrators: {b: {audiences: []}}}\n", "neither never nor a duration"},
		{"a silence in words", "version: 1\nhubs:\n  a: {staleAfter: §Never, orchestrators: {b: {audiences: []}}}\n", "neither never nor a duration"},
		{"a silence of nothing", "version: 1\nhubs:\n  a: {staleAfter: §0s, orchestrators: {b: {audiences: []}}}\n", "from 1s to 8760h"},
		{"a silence below nothing", "version: 1\nhubs:\n  a: {staleAfter: §-15m, orchestrators: {b: {audiences: []}}}\n", "from 1s to 8760h"},
		{"a silence too short", "version: 1\nhubs:\n  a: {staleAfter: §999ms, orchestrators: {b: {audiences: []}}}\n", "from 1s to 8760h"},
		{"a silence too long", "version: 1\nhubs:\n  a: {staleAfter: §8760h1s, orchestrators: {b: {audiences: []}}}\n", "from 1s to 8760h"},
		{"an orchestrator's silence", frame + "  a:\n    orchestrators:\n      b:\n        audiences: []\n        staleAfter: §soon\n", "neither never nor a duration"},
		{"an audience's silence", audience("          - {name: a, when: \"true\", see: {}, §staleAfter: 15m}\n"), `"staleAfter" is not known here`},
		{"a silence of everything", frame + "§staleAfter: 15m\n", `"staleAfter" is not known here`},
		{"publishers as a mapping", frame + "publishers: §{}\n", "object where array belongs"},
		{"a publisher without hubs", frame + "publishers:\n  - §when: \"true\"\n", "hubs missing"},
		{"a publisher without any hub", frame + "publishers:\n  - {when: \"true\", hubs: §[]}\n", "minItems"},
		{"a publisher without condition", frame + "publishers:\n  - §hubs: [a]\n", "when missing"},
		{"a publisher of a bad hub", frame + "publishers:\n  - {when: \"true\", hubs: [a, §b*]}\n", "hub: a character"},
		{"a publisher's condition", frame + "publishers:\n  - {when: §who, hubs: [a]}\n", "undeclared reference to 'who'"},
		{"an alias of nothing", "version: 1\nhubs: §*a\n", ""},
		{"a merge key", "version: 1\nhubs:\n  a: &a {orchestrators: {b: {audiences: []}}}\n  b:\n    §<<: *a\n    orchestrators: {b: {audiences: []}}\n", "<< is not for policies"},
		{"a tag", "version: §!!int 1\nhubs: {}\n", "tags are not for policies"},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := strings.Index(c.file, "§")
			line := 1 + strings.Count(c.file[:at], "\n")
			column := 1 + at - (strings.LastIndex(c.file[:at], "\n") + 1)
			got := mistakes(t, strings.Replace(c.file, "§", "", 1))
			for _, m := range got {
				if m.Line == line && m.Column == column && strings.Contains(m.Text, c.text) {
					return
				}
			}
			t.Errorf("got\n%v\nwant line %d, column %d: … %s …\n%s", got, line, column, c.text, c.file)
		})
	}
}

func TestEveryMistakeIsReportedAtOnce(t *testing.T) {
	const file = `version: 2
hubs:
  "bad hub":
    orchestrators:
      Order*:
        audiences:
          - name: operator
            when: "'operator' in claim.roles"
            see: { customStatus: [percent, /a~b], outputs: true }
          - name: operator
            when: labels.owner
            see: { failure: 1 }
            if: x
      "*":
        audiences: none
publishers:
  - when: nobody
`
	want := []struct{ line, column int }{
		{1, 10},  // version
		{3, 3},   // hub name
		{5, 7},   // orchestrator pattern
		{8, 34},  // claim
		{9, 35},  // percent
		{9, 44},  // /a~b
		{9, 51},  // outputs
		{10, 19}, // operator again
		{11, 19}, // not a bool
		{12, 29}, // failure: 1
		{13, 13}, // if
		{15, 20}, // audiences: none
		{17, 5},  // hubs missing
		{17, 11}, // nobody
	}
	got := mistakes(t, file)
	for i, m := range got {
		if i >= len(want) || m.Line != want[i].line || m.Column != want[i].column {
			t.Errorf("mistake %d is %v", i, m)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d mistakes, want %d: %v", len(got), len(want), got)
	}
	_, err := policy.Parse([]byte(file))
	if lines := strings.Split(err.Error(), "\n"); len(lines) != len(want) || lines[0] != "line 1, column 10: must be 1" {
		t.Errorf("the error's text is\n%v", err)
	}
}

// TestAliasesStandForWhatTheyName: audiences may be written once, and what is
// wrong in them is said once.
func TestAliasesStandForWhatTheyName(t *testing.T) {
	const file = `version: 1
hubs:
  a:
    orchestrators:
      A:
        audiences:
          - &operator
            name: operator
            when: "true"
            see: { customStatus: [/percent] }
      B:
        audiences: [*operator]
`
	p := parse(t, file)
	for _, n := range []string{"A", "B"} {
		r := full()
		r.Hub, r.Name = "a", n
		if got := name(p.Audience(nil, r)); got != "operator" {
			t.Errorf("orchestrator %s: audience %q", n, got)
		}
	}
	if got := mistakes(t, strings.Replace(file, "/percent", "percent", 1)); len(got) != 1 {
		t.Errorf("%d mistakes, want 1: %v", len(got), got)
	}
}

func TestAliasesCannotBlowUp(t *testing.T) {
	var b strings.Builder
	b.WriteString("version: 1\nx0: &x0 [1,1,1,1,1,1,1,1,1,1]\n")
	for i := range 12 {
		fmt.Fprintf(&b, "x%d: &x%[1]d [%s*x%d]\n", i+1, strings.Repeat(fmt.Sprintf("*x%d,", i), 9), i)
	}
	got := mistakes(t, b.String())
	if len(got) != 1 || !strings.Contains(got[0].Text, "when every alias is written out") {
		t.Errorf("got %v", got)
	}
}

func TestFileSizeIsBounded(t *testing.T) {
	got := mistakes(t, frame+strings.Repeat("# long\n", 200_000))
	if len(got) != 1 || !strings.Contains(got[0].Text, "larger than") {
		t.Errorf("got %v", got)
	}
}

func TestCallersCannotChangeTheDevelopmentPolicy(t *testing.T) {
	first := policy.Development()
	want := bytes.Clone(first)
	clear(first)
	if !bytes.Equal(policy.Development(), want) {
		t.Error("writing into the answer changes the next one")
	}
}

// FuzzParse holds that no file makes the parser panic, that mistakes lie in the
// file, and that a good policy denies what its file does not grant.
func FuzzParse(f *testing.F) {
	f.Add(string(policy.Development()))
	f.Add(frame)
	f.Add("version: 1\nhubs: &a {x: *a}\n")
	f.Add("version: 1\nhubs:\n  a: {orchestrators: {b: {audiences: [{name: a, when: 'x', see: {customStatus: [a]}}]}}}\n")
	f.Add("a: |\n\n  b\n? [c]\n: !!set {}\n")
	f.Fuzz(func(t *testing.T, file string) {
		p, err := policy.Parse([]byte(file))
		if err != nil {
			parse, ok := errors.AsType[*policy.ParseError](err)
			if !ok {
				t.Fatalf("error %T %v", err, err)
			}
			for _, m := range parse.Mistakes {
				if m.Line < 1 || m.Column < 1 || m.Line > 1+strings.Count(file, "\n")+strings.Count(file, "\r") {
					t.Errorf("%v is not in\n%s", m, file)
				}
			}
			return
		}
		r := full()
		if a := p.Audience(customer, r); a != nil && !json.Valid(a.View(r).JSON) {
			t.Errorf("no JSON: %s", a.View(r).JSON)
		}
	})
}

// TestDocumentedExample holds docs/policy.md to its word: every complete file in
// it is a good policy, and the worked example shows what the table says.
func TestDocumentedExample(t *testing.T) {
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	block := func(language string) string {
		_, rest, _ := strings.Cut(string(doc), "\n```"+language+"\n")
		text, _, _ := strings.Cut(rest, "\n```")
		return text
	}
	for line := range strings.Lines(block("text")) {
		when, _, _ := strings.Cut(line, "   ")
		admitting(t, when)
	}
	for _, rest := range strings.Split(string(doc), "\n```yaml\n")[1:] {
		file, _, _ := strings.Cut(rest, "\n```")
		parse(t, file)
	}
	p := parse(t, block("yaml"))
	for name, want := range map[string]time.Duration{"OrderFulfilment": 30 * time.Minute, "ReturnApproval": 0, "Other": 5 * time.Minute} {
		if got := p.StaleAfter(&status.Record{Hub: "orders", Name: name}); got != want {
			t.Errorf("%s is stale after %v, want %v", name, got, want)
		}
	}
	custom := jsontext.Value(block("json"))
	if err := custom.Canonicalize(jsontext.CanonicalizeRawFloats(false)); err != nil {
		t.Fatal(err)
	}
	r := &status.Record{
		Hub: "orders", Name: "OrderFulfilment", InstanceID: "i",
		Labels:   map[string]string{"owner": "u-1001", "region": "eu-west"},
		Progress: status.Progress{CustomStatus: json.RawMessage(custom)},
	}
	for _, c := range []struct {
		claims map[string]any
		want   string
	}{
		{map[string]any{"roles": []any{"status-operator"}}, string(custom)},
		{map[string]any{"roles": []any{"status-support"}, "regions": []any{"eu-west"}}, "in the table"},
		{map[string]any{"roles": []any{"status-support"}, "regions": []any{"us-east"}}, ""},
		{map[string]any{"sub": "u-1001"}, "in the table"},
		{map[string]any{"sub": "u-1002"}, ""},
	} {
		a := p.Audience(c.claims, r)
		if a == nil {
			if c.want != "" {
				t.Errorf("%v: not admitted", c.claims)
			}
			continue
		}
		var view struct {
			CustomStatus json.RawMessage `json:"customStatus"`
		}
		if err := json.Unmarshal(a.View(r).JSON, &view); err != nil {
			t.Fatal(err)
		}
		got := string(view.CustomStatus)
		if got != c.want && (c.want != "in the table" || !strings.Contains(string(doc), "| `"+got+"` |")) {
			t.Errorf("%v sees %s, want %q", c.claims, got, c.want)
		}
	}
}
