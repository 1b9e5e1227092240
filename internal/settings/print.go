package settings

import (
	"cmp"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Print writes a loaded configuration as YAML, each line with what it was taken
// from. What is printed can be used as a file and then says the same; a secret
// is represented by the file it came from, or masked in a comment.
func (s *Set[T]) Print(w io.Writer, cfg T) error {
	var b strings.Builder
	var section []string
	for _, f := range s.fields {
		path := strings.Split(f.key, ".")
		name, parents := path[len(path)-1], path[:len(path)-1]
		same := 0
		for same < len(parents) && same < len(section) && parents[same] == section[same] {
			same++
		}
		for depth := same; depth < len(parents); depth++ {
			fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), parents[depth])
		}
		section = parents
		fmt.Fprintf(&b, "%s%s\n", strings.Repeat("  ", len(parents)), s.line(f, name, cfg))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Set[T]) line(f field, name string, cfg T) string {
	value, source := f.in(&cfg).Interface(), s.sources[f.key]
	if secret, ok := value.(Secret); ok {
		if s.paths[f.key] == "" && !secret.IsZero() {
			return fmt.Sprintf("# %s: %s # %s", strings.TrimSuffix(name, "_file"), secret, source)
		}
		value = s.paths[f.key]
	}
	return fmt.Sprintf("%s: %s # %s", name, flow(value), cmp.Or(source, "default"))
}

// Markdown writes the table of every setting in T for the documentation.
func Markdown[T any](defaults T) string {
	var b strings.Builder
	b.WriteString("| key | flag | environment | default | meaning |\n| --- | --- | --- | --- | --- |\n")
	for _, f := range fieldsOf(reflect.TypeFor[T]()) {
		flag, env, def := code("--"+f.flag()), code(f.env()), code(f.text(reflect.ValueOf(defaults)))
		switch {
		case f.secret():
			env = code(f.valueEnv()) + " or " + env
		case !f.textual():
			flag, env = "", ""
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(f.key), flag, env, def, strings.ReplaceAll(f.describe(), "|", `\|`))
	}
	return b.String()
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}
