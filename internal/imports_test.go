// Package internal_test holds the rules of the tree: who may import whom, who
// may read the environment, and that no package hides state. "make imports"
// runs it.
package internal_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A pkg is one row of the tree: a package and what it may import beyond the
// standard library, package status and the libraries in everywhere. Tests may
// import any package of ours besides, and the libraries in testsToo.
type pkg struct{ name, imports, testsToo string }

// tree lists every package. Imports only point up this list. An edge is the only
// importer of its technology's library and imports no other edge.
var tree = []pkg{
	// what the rest is about
	{"status", "", ""},
	{"schemas", "", "jsonschema openapi yaml"},
	{"wire", "", "jsonschema"},
	{"policy", "schemas cel yaml jsonschema text", ""},
	{"hub", "", ""},
	{"interest", "", ""},
	{"auth", "jose lru yaml3", ""},
	{"auth/devissuer", "auth jose", ""},
	{"reader", "policy hub auth", ""},
	{"ingest", "wire policy rate", ""},
	{"limit", "lru rate", ""},
	{"claim", "lru", ""},
	{"problem", "auth limit", ""},
	{"documents", "schemas problem", ""},
	{"watcher", "backoff", ""},                         // a client of the relay
	{"apitest", "schemas openapi yaml jsonschema", ""}, // help for tests: none of the others may import it

	// edges: one technology each
	{"servicebus", "azservicebus azure amqp backoff uuid", ""},
	{"redisstore", "limit claim go-redis lru", "miniredis"},
	{"httpapi", "auth policy hub reader limit problem", "interest openapi"},
	{"wsapi", "auth reader limit problem gorilla", ""},
	{"bridge/eventgrid", "auth policy wire limit problem", "openapi"},
	{"ingestapi", "auth policy wire limit claim problem", "openapi"},
	{"bridge/durablehttp", "wire backoff rate", ""},
	{"bridge/*", "wire", ""},
	{"web", "", "chromedp"},

	{"certtest", "", ""}, // help for tests: none of the others may import it
	{"functest", "", ""}, // help for tests: none of the others may import it

	// test help, which dev runs on as well
	{"devbus", "amqp", "azservicebus azure"},
	{"storetest", "limit claim redisstore go-redis", "miniredis"},

	{"doctor", "wire watcher servicebus", ""}, // of a root's way to the topic and beyond

	// roots: wiring only
	{"settings", "cobra koanf yaml3", "yaml"},
	{"telemetry", "", ""},
	{"shell", "settings telemetry auth policy servicebus redisstore cobra", ""},
	{"relay", "wire policy hub interest reader auth ingest limit problem documents servicebus redisstore httpapi wsapi web settings telemetry shell cors", ""},
	{"notifier", "wire doctor policy auth claim limit problem documents servicebus redisstore ingestapi bridge/* settings telemetry shell", ""},
	{"dev", "wire policy auth auth/devissuer devbus web settings telemetry shell relay notifier miniredis", ""},
	{"cmd/relay", "auth settings telemetry shell relay dev cobra", ""},
	{"cmd/notifier", "wire watcher doctor servicebus settings telemetry shell notifier cobra", ""},

	// tests only
	{"docs", "", "yaml"},
	{"e2e", "", "yaml azservicebus gorilla go-redis miniredis chromedp"},
	{"bench", "", "azservicebus gorilla go-redis miniredis"},
}

// libraries gives the import paths that a word of the tree stands for.
var libraries = map[string][]string{
	"amqp":         {"github.com/Azure/go-amqp"},
	"azservicebus": {"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"},
	"azure":        {"github.com/Azure/azure-sdk-for-go/sdk/azcore", "github.com/Azure/azure-sdk-for-go/sdk/azidentity"},
	"backoff":      {"github.com/cenkalti/backoff"},
	"cel":          {"cel.dev/cel-go", "github.com/google/cel-go"},
	"chromedp":     {"github.com/chromedp"},
	"cobra":        {"github.com/spf13/cobra", "github.com/spf13/pflag"},
	"cors":         {"github.com/rs/cors"},
	"go-redis":     {"github.com/redis/go-redis"},
	"gorilla":      {"github.com/gorilla/websocket"},
	"jose":         {"github.com/go-jose/go-jose"},
	"jsonschema":   {"github.com/santhosh-tekuri/jsonschema"},
	"koanf":        {"github.com/knadh/koanf", "github.com/go-viper/mapstructure"},
	"lru":          {"github.com/hashicorp/golang-lru"},
	"miniredis":    {"github.com/alicebob/miniredis"},
	"openapi":      {"github.com/getkin/kin-openapi"},
	"rate":         {"golang.org/x/time/rate"},
	"text":         {"golang.org/x/text"},
	"uuid":         {"github.com/google/uuid"},
	"yaml":         {"github.com/goccy/go-yaml"},
	"yaml3":        {"go.yaml.in/yaml/v3"},
}

// everywhere lists what any package may import.
var everywhere = []string{
	"statusrelay/internal/status",
	"github.com/go-json-experiment/json",
	"github.com/prometheus", // client_golang, and its model in tests
	"golang.org/x/sync",
}

// readers may read the environment: package settings for the programs, and the
// roots.
var readers = []string{"settings", "telemetry", "shell", "relay", "notifier", "dev", "cmd/relay", "cmd/notifier"}

// immutable lists the functions whose results may be kept in a package's
// variable. A sync.Pool may be, too: nobody can observe its state.
var immutable = []string{"errors.New", "fmt.Errorf", "regexp.MustCompile", "json.JoinOptions", "jsontext."}

const module = "statusrelay"

func TestTreeOnlyPointsUp(t *testing.T) {
	edges := words("servicebus redisstore httpapi wsapi ingestapi bridge/eventgrid bridge/durablehttp web")
	above := map[string]bool{}
	for _, p := range tree {
		for _, word := range words(p.imports + " " + p.testsToo) {
			if libraries[word] == nil && !above[word] {
				t.Errorf("%s: %s is neither above it nor a library", p.name, word)
			}
			if slices.Contains(edges, p.name) && slices.Contains(edges, word) {
				t.Errorf("%s: an edge may not import another, %s", p.name, word)
			}
		}
		above[p.name] = true
	}
}

func TestEveryImportIsAllowed(t *testing.T) {
	for _, d := range sources(t) {
		p, ok := rowOf(d.name)
		if !ok {
			t.Errorf("%s is not in the tree: add it to the table in this file", d.name)
			continue
		}
		allowed := append([]string{}, everywhere...)
		for _, word := range words(p.imports) {
			allowed = append(allowed, paths(word)...)
		}
		allowedInTests := append([]string{module}, allowed...)
		for _, word := range words(p.testsToo) {
			allowedInTests = append(allowedInTests, paths(word)...)
		}
		for _, f := range d.files {
			for _, spec := range f.syntax.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				list := allowed
				if f.test {
					list = allowedInTests
				}
				if !isStandard(path) && !slices.ContainsFunc(list, func(root string) bool { return within(path, root) }) {
					t.Errorf("%s: %s may not import %s", f.at(spec), d.name, path)
				}
			}
		}
	}
}

func TestOnlyRootsReadTheEnvironment(t *testing.T) {
	for _, d := range sources(t) {
		if slices.Contains(readers, d.name) {
			continue
		}
		for _, f := range d.files {
			if f.test {
				continue
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					switch name := qualified(sel); name {
					case "os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv":
						t.Errorf("%s: %s calls %s: hand it in through Options", f.at(n), d.name, name)
					}
				}
				return true
			})
		}
	}
}

// What a caller may see is decided by Source.Audience of package reader, which
// asks the policy after the grant: whoever asks the policy alone forgets that.
func TestOnlyReaderAsksThePolicyForAnAudience(t *testing.T) {
	asked := 0
	for _, d := range sources(t) {
		if d.name == "policy" {
			continue
		}
		for _, f := range d.files {
			if f.test {
				continue
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Audience" && sel.Sel.Name != "Named" {
					return true
				}
				if of := receiver(sel.X); of == "Source" || of == "source" {
					return true
				}
				if asked++; d.name != "reader" {
					t.Errorf("%s: %s asks a policy for an audience: that is for Source.Audience of package reader", f.at(n), d.name)
				}
				return true
			})
		}
	}
	if asked != 2 {
		t.Errorf("the policy is asked in %d places, want 2: by claims, and by name", asked)
	}
}

// receiver is the last name of an expression that a method is called on.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	case *ast.CallExpr:
		return receiver(e.Fun)
	}
	return ""
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, d := range sources(t) {
		if !slices.ContainsFunc(d.files, func(f file) bool { return f.syntax.Doc != nil }) {
			t.Errorf("%s has no package comment", d.name)
		}
	}
}

func TestNoPackageHasInitOrState(t *testing.T) {
	for _, d := range sources(t) {
		for _, f := range d.files {
			if f.test {
				continue
			}
			for _, decl := range f.syntax.Decls {
				switch decl := decl.(type) {
				case *ast.FuncDecl:
					if decl.Name.Name == "init" && decl.Recv == nil {
						t.Errorf("%s: %s has a func init", f.at(decl), d.name)
					}
				case *ast.GenDecl:
					for _, spec := range decl.Specs {
						if spec, ok := spec.(*ast.ValueSpec); ok && decl.Tok == token.VAR && !embedded(decl.Doc) && !embedded(spec.Doc) {
							checkVar(t, d, f, spec)
						}
					}
				}
			}
		}
	}
}

// checkVar complains about a variable that is not a constant in all but name:
// made once, of immutable parts, and never written to.
func checkVar(t *testing.T, d dir, f file, spec *ast.ValueSpec) {
	for i, name := range spec.Names {
		if name.Name == "_" { // an assertion that a type implements an interface
			continue
		}
		if i >= len(spec.Values) {
			t.Errorf("%s: %s.%s has no value yet, so it is state", f.at(name), d.name, name)
			continue
		}
		ast.Inspect(spec.Values[i], func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit:
				return false
			case *ast.CallExpr:
				if fun, ok := n.Fun.(*ast.SelectorExpr); ok {
					if q := qualified(fun); !slices.ContainsFunc(immutable, func(prefix string) bool { return strings.HasPrefix(q, prefix) }) {
						t.Errorf("%s: %s.%s is made by %s, which is not on the list of what makes immutable things", f.at(name), d.name, name, q)
					}
				} else if _, conversion := n.Fun.(*ast.ArrayType); !conversion {
					t.Errorf("%s: %s.%s is computed at start-up", f.at(name), d.name, name)
				}
			case *ast.SelectorExpr:
				if q := qualified(n); strings.HasPrefix(q, "sync.") && q != "sync.Pool" || strings.HasPrefix(q, "atomic.") {
					t.Errorf("%s: %s.%s holds a %s, so it is state", f.at(name), d.name, name, q)
				}
			}
			return true
		})
		for _, other := range d.files {
			if other.test {
				continue
			}
			ast.Inspect(other.syntax, func(n ast.Node) bool {
				for _, target := range written(n) {
					if id := root(target); id != nil && id.Name == name.Name && (id.Obj == nil || id.Obj.Decl == spec) {
						t.Errorf("%s: writes to %s.%s, so that is state", other.at(n), d.name, name)
					}
				}
				return true
			})
		}
	}
}

// written lists what a statement or expression changes, or lets others change.
func written(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		return n.Lhs
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.UnaryExpr:
		if n.Op == token.AND {
			return []ast.Expr{n.X}
		}
	case *ast.CallExpr:
		if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear" || id.Name == "copy") {
			return n.Args[:1]
		}
	}
	return nil
}

// root is the variable that an element or field belongs to.
func root(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.IndexExpr:
		return root(e.X)
	case *ast.SelectorExpr:
		return root(e.X)
	case *ast.StarExpr:
		return root(e.X)
	case *ast.ParenExpr:
		return root(e.X)
	}
	return nil
}

// A dir is the source of one package.
type dir struct {
	name  string // as in the tree
	files []file
}

type file struct {
	path   string
	test   bool
	syntax *ast.File
	fset   *token.FileSet
}

func (f file) at(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.fset.Position(n.Pos()).Line)
}

// sources parses every Go file of this module but those in testdata.
func sources(t *testing.T) []dir {
	t.Helper()
	fset := token.NewFileSet()
	byName := map[string]*dir{}
	err := fs.WalkDir(os.DirFS(".."), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if path == "." {
				return nil
			}
			_, err := os.Stat(filepath.Join("..", path, "go.mod"))
			if base := entry.Name(); err == nil || base == "testdata" || base == "node_modules" || base[0] == '.' || base[0] == '_' {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" || filepath.Dir(path) == "internal" {
			return nil
		}
		syntax, err := parser.ParseFile(fset, filepath.Join("..", path), nil, parser.ParseComments)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Dir(path), "internal/")
		if byName[name] == nil {
			byName[name] = &dir{name: name}
		}
		byName[name].files = append(byName[name].files, file{path, strings.HasSuffix(path, "_test.go"), syntax, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if byName["status"] == nil {
		t.Fatal("package status was not found: this test looks in the wrong place")
	}
	var dirs []dir
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		dirs = append(dirs, *byName[name])
	}
	return dirs
}

func rowOf(name string) (pkg, bool) {
	for _, p := range tree {
		if parent, ok := strings.CutSuffix(p.name, "/*"); p.name == name || ok && within(name, parent) {
			return p, true
		}
	}
	return pkg{}, false
}

func words(s string) []string { return strings.Fields(s) }

// paths gives the import paths of a word in the tree.
func paths(word string) []string {
	if library, ok := libraries[word]; ok {
		return library
	}
	switch {
	case word == "schemas" || strings.HasPrefix(word, "cmd/"):
		return []string{module + "/" + word}
	default:
		return []string{module + "/internal/" + word}
	}
}

// within reports whether an import path is one that is listed: a package of ours
// exactly, anything below with /*, and any package of a library.
func within(path, listed string) bool {
	if ours := strings.HasPrefix(listed, module+"/"); ours && !strings.HasSuffix(listed, "/*") {
		return path == listed
	}
	listed = strings.TrimSuffix(listed, "/*")
	return path == listed || strings.HasPrefix(path, listed+"/")
}

// isStandard tells the standard library from modules, whose first element is a
// host or ours.
func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return first != module && !strings.Contains(first, ".")
}

func qualified(sel *ast.SelectorExpr) string {
	if id, ok := sel.X.(*ast.Ident); ok {
		return id.Name + "." + sel.Sel.Name
	}
	return sel.Sel.Name
}

func embedded(doc *ast.CommentGroup) bool {
	return doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed") })
}
