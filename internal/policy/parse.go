package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"statusrelay/internal/status"
	"statusrelay/schemas"
)

// maxFile bounds a policy file.
const maxFile = 1 << 20

// What staleAfter may say: a duration within these, or that nothing is stale.
const (
	minStaleAfter = time.Second
	maxStaleAfter = 365 * 24 * time.Hour
	never         = "never"
)

// Parse reads a policy file (YAML, schemas/policy.schema.json). Its error is a
// *ParseError with every mistake in the file, each with its place.
func Parse(file []byte) (*Policy, error) {
	var wrong mistakes
	if len(file) > maxFile {
		wrong.add(place{1, 1}, "larger than %d bytes", maxFile)
		return nil, wrong.err()
	}
	root := read(file, &wrong)
	if root == nil {
		return nil, wrong.err()
	}
	if err := checkSchema(root, &wrong); err != nil {
		return nil, err
	}
	env, err := conditions()
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	c := compiler{env: env, wrong: &wrong, projectors: new(projectors)}
	p := c.policy(root)
	if err := wrong.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// checkSchema adds what the schema finds wrong.
func checkSchema(root *value, wrong *mistakes) error {
	const url = "policy.schema.json"
	file, err := schemas.Schemas.Open(url)
	if err != nil {
		return fmt.Errorf("read schema: %w", err)
	}
	defer file.Close()
	doc, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(url, doc); err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	schema, err := compiler.Compile(url)
	if err != nil {
		return fmt.Errorf("compile %s: %w", url, err)
	}
	if e, ok := errors.AsType[*jsonschema.ValidationError](schema.Validate(root.plain())); ok {
		explain(e, root, message.NewPrinter(language.English), wrong)
	}
	return nil
}

// explain adds the leaves of the validator's tree of errors, which are what is
// wrong; its inner nodes only say where the schema says so.
func explain(e *jsonschema.ValidationError, root *value, english *message.Printer, wrong *mistakes) {
	for _, cause := range e.Causes {
		explain(cause, root, english, wrong)
	}
	if len(e.Causes) > 0 {
		return
	}
	v := root.find(e.InstanceLocation)
	switch k := e.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			wrong.add(v.placeOf(name), "%q is not known here", name)
		}
	case *kind.Required:
		wrong.add(v.at, "%s missing here", strings.Join(k.Missing, ", "))
	case *kind.Type:
		wrong.add(v.at, "%s where %s belongs", k.Got, strings.Join(k.Want, " or "))
	case *kind.Const:
		wrong.add(v.at, "must be %v", k.Want)
	case *kind.UniqueItems:
		wrong.add(v.items[k.Duplicates[1]].at, "a second time in this list")
	default:
		wrong.add(v.at, "%s", k.LocalizedString(english))
	}
}

// compiler turns values into a policy. It goes on where a value is missing or of
// another type, which the schema has said already.
type compiler struct {
	env        *cel.Env
	wrong      *mistakes
	projectors *projectors
}

func (c *compiler) policy(root *value) *Policy {
	p := &Policy{hubs: map[string]map[string]*rule{}, common: new(sync.Map), projectors: c.projectors}
	for _, hub := range root.get("hubs").each() {
		c.hub(hub.name, hub.at)
		section := map[string]*rule{}
		staleAfter := c.staleAfter(hub.value.get("staleAfter"), 0)
		for _, o := range hub.value.get("orchestrators").each() {
			c.orchestrator(o.name, o.at)
			r := c.rule(o.value)
			r.staleAfter = c.staleAfter(o.value.get("staleAfter"), staleAfter)
			section[o.name] = r
		}
		p.hubs[hub.name] = section
	}
	for _, v := range root.get("publishers").list() {
		e := publisher{when: c.condition(v.get("when"))}
		for _, h := range v.get("hubs").list() {
			if hub, ok := h.text(); ok {
				c.hub(hub, h.at)
				e.hubs = append(e.hubs, hub)
			}
		}
		p.publishers = append(p.publishers, e)
	}
	return p
}

func (c *compiler) hub(name string, at place) {
	if name == wildcard {
		return
	}
	if err := status.ValidHub(name); err != nil {
		c.wrong.add(at, "%v (or %q alone, for every other)", err, wildcard)
	}
}

func (c *compiler) orchestrator(name string, at place) {
	switch n := utf8.RuneCountInString(name); {
	case n == 0 || n > status.MaxName:
		c.wrong.add(at, "an orchestrator's name is 1 to %d characters long", status.MaxName)
	case name != wildcard && strings.Contains(name, wildcard):
		c.wrong.add(at, "%q is neither a name nor %q: there are no patterns", name, wildcard)
	}
}

// staleAfter reads how long the silence may be; where nothing is said it is as
// otherwise.
func (c *compiler) staleAfter(v *value, otherwise time.Duration) time.Duration {
	s, ok := v.text()
	if !ok {
		return otherwise
	}
	if s == never {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < minStaleAfter || d > maxStaleAfter {
		c.wrong.add(v.at, "neither %s nor a duration such as 90s, 15m or 24h, from %v to %.0fh", never, minStaleAfter, maxStaleAfter.Hours())
	}
	return d
}

func (c *compiler) rule(v *value) *rule {
	r := &rule{union: sight{customStatus: new(fields)}}
	seen := map[string]bool{}
	for _, a := range v.get("audiences").list() {
		name, _ := a.get("name").text()
		if name != "" && seen[name] {
			c.wrong.add(a.get("name").at, "a second audience %q in this list", name)
		}
		seen[name] = true

		see := a.get("see")
		sees := sight{
			customStatus: new(fields),
			output:       see.get("output").is(),
			failure:      see.get("failure").is(),
			labels:       see.get("labels").is(),
		}
		for _, pointer := range c.pointers(see.get("customStatus")) {
			sees.customStatus.add(pointer)
			r.union.customStatus.add(pointer)
		}
		r.union.output = r.union.output || sees.output
		r.union.failure = r.union.failure || sees.failure
		r.audiences = append(r.audiences, &Audience{name: name, when: c.condition(a.get("when")), sees: sees, projectors: c.projectors})
	}
	return r
}

// pointers reads what an audience sees of the custom status.
func (c *compiler) pointers(v *value) [][]step {
	if s, ok := v.text(); ok && s == "all" {
		return [][]step{nil}
	}
	var pointers [][]step
	for _, item := range v.list() {
		s, ok := item.text()
		if !ok {
			continue
		}
		pointer, err := parsePointer(s)
		if err != nil {
			c.wrong.add(item.at, "%q: %v", s, err)
			continue
		}
		pointers = append(pointers, pointer)
	}
	return pointers
}

// condition compiles an expression. Its result is of no use if it adds mistakes.
func (c *compiler) condition(v *value) *condition {
	source, ok := v.text()
	if !ok || source == "" {
		return nil
	}
	ast, issues := c.env.Compile(source)
	if issues.Err() != nil {
		for _, e := range issues.Errors() {
			c.wrong.add(v.inside(e.Location.Line(), e.Location.Column()), "%s", e.Message)
		}
		return nil
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		c.wrong.add(v.at, "a condition is true or false, and this is %s", ast.OutputType())
		return nil
	}
	program, err := compile(c.env, source, ast)
	if err != nil {
		c.wrong.add(v.at, "%v", err)
	}
	return program
}
