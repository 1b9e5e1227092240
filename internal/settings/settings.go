// Package settings turns one struct into a program's whole configuration:
// flags, environment variables, a YAML file, and the table of them all in the
// documentation.
//
// It promises one precedence for every setting (default, then file, then
// environment, then flag), that everything wrong is reported at once and with
// where it came from, that a misspelt key in the file is a mistake and not a
// silence, and that a Secret neither enters through a flag or the file nor
// leaves through a log, an error or the printed configuration.
//
// A setting's key is the path of its koanf tags; its other names follow:
//
//	redis.dial_timeout   --redis-dial-timeout    STATUSRELAY_REDIS_DIAL_TIMEOUT
//
// A Secret is given in a variable, or in a file that a variable, a flag or a
// key names:
//
//	                                             STATUSRELAY_REDIS_PASSWORD
//	redis.password_file  --redis-password-file   STATUSRELAY_REDIS_PASSWORD_FILE
//
// The YAML file is named by --config or STATUSRELAY_CONFIG. A list is written
// a,b,c in a flag or a variable. A variable that is set to nothing counts as not
// set: that is what compose makes of a variable it does not know.
//
//	set := settings.Bind(cmd, relay.Defaults())
//	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
//		cfg, err := set.Load()
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

const (
	envPrefix  = "STATUSRELAY_"
	configFlag = "config"
	configEnv  = envPrefix + "CONFIG"
)

// Set is a configuration struct bound to the flags of a command. It belongs to
// one goroutine.
type Set[T any] struct {
	flags    *pflag.FlagSet
	defaults T
	fields   []field
	sources  map[string]string // by key: what the last Load took it from; absent = default
	paths    map[string]string // by key: the file that the last Load read a secret from
}

// Bind registers --config, and for each setting in T the flag that it has.
//
// Every exported field of T has a koanf tag and, unless it is a section (a
// struct), a usage tag; the fields of an embedded struct without a koanf tag count as
// those of the struct that embeds it. A setting is a string, bool, number, time.Duration,
// []string, Secret or encoding.TextUnmarshaler; of any other type (a map, a list
// of structs) it can be set in the file only. A T that breaks these rules, and
// two settings that share a name, are mistakes of the programmer: Bind panics.
func Bind[T any](cmd *cobra.Command, defaults T) *Set[T] {
	s := &Set[T]{flags: cmd.Flags(), defaults: defaults, fields: fieldsOf(reflect.TypeFor[T]())}
	s.flags.String(configFlag, "", "YAML file with settings ["+configEnv+"]")
	for _, f := range s.fields {
		if !f.textual() {
			continue
		}
		value := &flagValue{field: f}
		if !f.secret() {
			value.text = f.text(reflect.ValueOf(defaults))
		}
		flag := s.flags.VarPF(value, f.flag(), "", f.describe()+" ["+f.env()+"]")
		if f.kind() == kindBool {
			flag.NoOptDefVal = "true"
		}
	}
	return s
}

// Load reads the file, the environment and the flags into a copy of the
// defaults and asks its method Validate() error, if it has one. The error joins
// every mistake that was found, one a line.
func (s *Set[T]) Load() (T, error) {
	cfg := s.defaults
	l := loader{flags: s.flags, values: koanf.New("."), sources: map[string]string{}, paths: map[string]string{}}
	l.readFile(s.fields)
	for _, f := range s.fields {
		if f.secret() {
			if secret := l.secret(f); !secret.IsZero() {
				f.in(&cfg).Set(reflect.ValueOf(secret))
			}
		} else {
			l.merge(f)
		}
	}
	l.decode(&cfg, s.fields)
	if v, ok := any(&cfg).(interface{ Validate() error }); ok {
		l.report(v.Validate())
	}
	s.sources, s.paths = l.sources, l.paths
	return cfg, errors.Join(l.mistakes...)
}

// loader is one Load under way.
type loader struct {
	flags    *pflag.FlagSet
	path     string // of the YAML file, "" without one
	values   *koanf.Koanf
	sources  map[string]string
	paths    map[string]string
	mistakes []error
}

func (l *loader) report(err error) {
	if err != nil {
		l.mistakes = append(l.mistakes, err)
	}
}

func (l *loader) readFile(fields []field) {
	l.path = cmp.Or(l.flags.Lookup(configFlag).Value.String(), os.Getenv(configEnv))
	if l.path == "" {
		return
	}
	b, err := os.ReadFile(l.path)
	if err != nil {
		l.report(err)
		return
	}
	var file map[string]any
	if err := yaml.Unmarshal(b, &file); err != nil {
		l.report(fmt.Errorf("%s: %w", l.path, err))
		return
	}
	l.take(file, "", fields)
}

// take collects the settings in a section of the file and reports what is none.
func (l *loader) take(section map[string]any, prefix string, fields []field) {
	for _, name := range slices.Sorted(maps.Keys(section)) {
		key, value := prefix+name, section[name]
		i := slices.IndexFunc(fields, func(f field) bool {
			return !strings.Contains(name, ".") && (f.key == key || f.valueKey() == key || strings.HasPrefix(f.key, key+"."))
		})
		switch sub, isSection := value.(map[string]any); {
		case i < 0:
			l.report(fmt.Errorf("%s (%s): unknown setting", key, l.path))
		case value == nil:
		case fields[i].key == key:
			l.sources[key] = l.path
			l.report(l.values.Set(key, value))
		case fields[i].valueKey() == key:
			l.report(fmt.Errorf("%s (%s): a secret does not belong in the file: set %s, or name a file in %s", key, l.path, fields[i].valueEnv(), fields[i].key))
		case isSection:
			l.take(sub, key+".", fields)
		default:
			l.report(fmt.Errorf("%s (%s): want a section", key, l.path))
		}
	}
}

// merge puts the variable and the flag of a setting over what the file says.
func (l *loader) merge(f field) {
	if !f.textual() {
		return
	}
	if text := os.Getenv(f.env()); text != "" {
		l.set(f, text, f.env())
	}
	if flag := l.flags.Lookup(f.flag()); flag.Changed {
		l.set(f, flag.Value.String(), "--"+f.flag())
	}
}

func (l *loader) set(f field, text, source string) {
	l.sources[f.key] = source
	if f.kind() == kindList {
		l.report(l.values.Set(f.key, splitList(text)))
	} else {
		l.report(l.values.Set(f.key, text))
	}
}

// secret reads a secret and takes every trace of it out of what will be
// decoded.
func (l *loader) secret(f field) Secret {
	l.merge(f)
	named := l.values.Get(f.key)
	l.values.Delete(f.key)
	path, ok := named.(string)
	if named != nil && !ok {
		l.report(fmt.Errorf("%s (%s): want a path, have %q", f.key, l.sources[f.key], fmt.Sprint(named)))
	}

	value := os.Getenv(f.valueEnv())
	switch {
	case value != "" && path != "":
		l.report(fmt.Errorf("%s: given twice, by %s and by %s", f.valueKey(), f.valueEnv(), l.sources[f.key]))
	case value != "":
		l.sources[f.key] = f.valueEnv()
	case path != "":
		secret, err := ReadSecret(path)
		if err != nil {
			l.report(fmt.Errorf("%s (%s): %w", f.key, l.sources[f.key], err))
			break
		}
		l.paths[f.key] = path
		return secret
	}
	return NewSecret(value)
}

// decode puts what was collected into *cfg. A setting whose value is wrong
// keeps its default, lest Validate report the same mistake again.
func (l *loader) decode(cfg any, fields []field) {
	defaults := map[string]reflect.Value{}
	for _, f := range fields {
		v := f.in(cfg)
		defaults[f.key] = reflect.ValueOf(v.Interface())
		if l.sources[f.key] != "" && !f.secret() && (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) {
			v.SetZero() // else mapstructure writes over the default's elements
		}
	}
	err := l.values.UnmarshalWithConf("", cfg, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		ErrorUnused: true, // inside a list
		Squash:      true, // embedded structs
		MatchName:   func(key, name string) bool { return key == name },
		DecodeHook: mapstructure.ComposeDecodeHookFunc(scalarToText, mapstructure.TextUnmarshallerHookFunc(),
			mapstructure.StringToTimeDurationHookFunc(), mapstructure.StringToBasicTypeHookFunc()),
	}})
	for _, e := range leaves(err) {
		source, reason := "", e.Unwrap()
		for _, f := range fields {
			if !f.covers(e.Name()) {
				continue
			}
			f.in(cfg).Set(defaults[f.key])
			source = l.sources[f.key]
			if hint := f.kind().hint(); hint != "" && e.Name() == f.key {
				reason = fmt.Errorf("want %s, have %q", hint, fmt.Sprint(l.values.Get(f.key)))
			}
		}
		l.report(fmt.Errorf("%s (%s): %w", e.Name(), source, reason))
	}
}

// scalarToText makes every number and bool of the file go through the same
// parser as flags and variables. mapstructure alone would cut 1.5 to 1, wrap
// what is too large, and read a duration without a unit as nanoseconds.
func scalarToText(from, to reflect.Value) (any, error) {
	switch kindOf(to.Type()) {
	case kindBool, kindInt, kindFloat, kindDuration, kindText:
		switch from.Kind() {
		case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Float64, reflect.Bool:
			return fmt.Sprint(from.Interface()), nil
		}
	}
	return from.Interface(), nil
}

// leaves takes mapstructure's tree of joined errors apart.
func leaves(err error) []*mapstructure.DecodeError {
	switch e := err.(type) { //nolint:errorlint // this is what unwraps
	case *mapstructure.DecodeError:
		return []*mapstructure.DecodeError{e}
	case interface{ Unwrap() error }:
		return leaves(e.Unwrap())
	case interface{ Unwrap() []error }:
		var all []*mapstructure.DecodeError
		for _, inner := range e.Unwrap() {
			all = append(all, leaves(inner)...)
		}
		return all
	}
	return nil
}
