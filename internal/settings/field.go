package settings

import (
	"encoding"
	"fmt"
	"reflect"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// kind is how a setting is written.
type kind string

// The values double as the name of the type in a command's --help.
const (
	kindString   kind = "string"
	kindBool     kind = "bool"
	kindInt      kind = "int"
	kindFloat    kind = "float"
	kindDuration kind = "duration"
	kindText     kind = "text" // an encoding.TextUnmarshaler
	kindList     kind = "strings"
	kindSecret   kind = "file"
	kindFileOnly kind = "" // has no textual form
)

func kindOf(t reflect.Type) kind {
	switch {
	case t == reflect.TypeFor[Secret]():
		return kindSecret
	case t == reflect.TypeFor[time.Duration]():
		return kindDuration
	case t == reflect.TypeFor[[]string]():
		return kindList
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		return kindText
	}
	switch k := t.Kind(); {
	case k == reflect.String:
		return kindString
	case k == reflect.Bool:
		return kindBool
	case k >= reflect.Int && k <= reflect.Uint64:
		return kindInt
	case k == reflect.Float32 || k == reflect.Float64:
		return kindFloat
	}
	return kindFileOnly
}

// hint says what a value of this kind looks like, "" if its own parser says it
// better.
func (k kind) hint() string {
	switch k {
	case kindString:
		return "text (in quotes if it looks like something else)"
	case kindBool:
		return "true or false"
	case kindInt:
		return "a whole number"
	case kindFloat:
		return "a number"
	case kindDuration:
		return `a duration with its unit, such as "30s"`
	}
	return ""
}

// field is one setting of a configuration struct.
type field struct {
	key   string // path of koanf tags; of a Secret the key that names its file
	usage string
	index []int
	typ   reflect.Type
}

// fieldsOf lists the settings of a struct in the order of their declaration.
func fieldsOf(t reflect.Type) []field {
	return appendFields(nil, t, "", nil)
}

func appendFields(fields []field, t reflect.Type, prefix string, index []int) []field {
	for sf := range t.Fields() {
		if !sf.IsExported() {
			continue
		}
		key := sf.Tag.Get("koanf")
		if sf.Anonymous && key == "" && sf.Type.Kind() == reflect.Struct {
			fields = appendFields(fields, sf.Type, prefix, append(index[:len(index):len(index)], sf.Index...))
			continue
		}
		if key == "" {
			panic(fmt.Sprintf("settings: %s.%s has no koanf tag", t, sf.Name))
		}
		f := field{
			key:   prefix + key,
			usage: sf.Tag.Get("usage"),
			index: append(index[:len(index):len(index)], sf.Index...),
			typ:   sf.Type,
		}
		switch {
		case f.kind() == kindFileOnly && f.typ.Kind() == reflect.Struct:
			fields = appendFields(fields, f.typ, f.key+".", f.index)
			continue
		case f.usage == "":
			panic(fmt.Sprintf("settings: %s.%s has no usage tag", t, sf.Name))
		case f.secret():
			f.key += "_file"
		}
		fields = append(fields, f)
	}
	return fields
}

func (f field) kind() kind    { return kindOf(f.typ) }
func (f field) secret() bool  { return f.kind() == kindSecret }
func (f field) textual() bool { return f.kind() != kindFileOnly }

func (f field) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(f.key) }
func (f field) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(f.key, ".", "_"))
}

// valueKey and valueEnv name what would hold a Secret itself: a key that is
// refused, and a variable.
func (f field) valueKey() string {
	if !f.secret() {
		return ""
	}
	return strings.TrimSuffix(f.key, "_file")
}
func (f field) valueEnv() string { return strings.TrimSuffix(f.env(), "_FILE") }

func (f field) describe() string {
	if f.secret() {
		return "file with the " + f.usage
	}
	return f.usage
}

// covers reports whether a path of mapstructure's lies in this setting.
func (f field) covers(path string) bool {
	rest, ok := strings.CutPrefix(path, f.key)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// in is the field within the struct that cfg points to.
func (f field) in(cfg any) reflect.Value {
	return reflect.ValueOf(cfg).Elem().FieldByIndex(f.index)
}

// text writes the setting of a configuration struct as a flag takes it, and in
// YAML's flow style if no flag takes it.
func (f field) text(cfg reflect.Value) string {
	switch v := cfg.FieldByIndex(f.index).Interface().(type) {
	case []string:
		return strings.Join(v, ",")
	case time.Duration:
		return formatDuration(v)
	case encoding.TextMarshaler:
		b, err := v.MarshalText()
		if err != nil {
			panic(fmt.Sprintf("settings: %s cannot be written: %v", f.key, err))
		}
		return string(b)
	default:
		if f.textual() {
			return fmt.Sprint(v)
		}
		return flow(v)
	}
}

// formatDuration leaves out the zeros that String writes after 24h.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func splitList(text string) []string {
	if text == "" {
		return []string{}
	}
	items := strings.Split(text, ",")
	for i, item := range items {
		items[i] = strings.TrimSpace(item)
	}
	return items
}

// flow writes a value as YAML on one line.
func flow(v any) string {
	var node yaml.Node
	if err := node.Encode(v); err != nil {
		panic(fmt.Sprintf("settings: a %T cannot be written: %v", v, err))
	}
	node.Style = yaml.FlowStyle
	b, err := yaml.Marshal(&node)
	if err != nil {
		panic(fmt.Sprintf("settings: a %T cannot be written: %v", v, err))
	}
	return strings.TrimSpace(string(b))
}

// flagValue keeps the text of a flag: parsing it is left to Load, which reports
// all mistakes and not just the first.
type flagValue struct {
	field field
	text  string
	set   bool
}

func (v *flagValue) String() string { return v.text }
func (v *flagValue) Type() string   { return string(v.field.kind()) }

// Set adds to a list that was started by the same flag.
func (v *flagValue) Set(text string) error {
	if v.set && v.field.kind() == kindList {
		text = v.text + "," + text
	}
	v.text, v.set = text, true
	return nil
}
