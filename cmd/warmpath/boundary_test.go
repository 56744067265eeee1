package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	modulePath = "github.com/warmpath/warmpath/"
	moduleRoot = "../.."
)

// only lists what a package may use of another one; nil is everything.
type only []string

// ours says which package of this module may import which other one. The key
// is a package, or a folder and all below it, "/..."; the longest key that
// fits counts. Tests may import more, but never cmd.
var ours = map[string]map[string]only{
	"kvindex":      {},
	"routing/pool": {"kvindex": nil},
	"events/zmtp":  {},
	"events":       {"kvindex": nil, "routing/pool": nil, "events/zmtp": nil},
	"events/relay": {"kvindex": nil, "routing/pool": nil, "events": nil, "events/relay/cachestatepb": nil},
	// Generated from its .proto.
	"events/relay/cachestatepb": {},
	"routing":                   {"kvindex": nil, "routing/pool": nil},
	// Which endpoints there are to ask is in the request's candidates.
	"routing/tokenizer": {"kvindex": nil, "routing": nil, "routing/pool": {"Endpoint"}},
	// extproc decides nothing: it names endpoints, and reads token ids of bodies.
	"extproc":        {"kvindex": {"TokenID"}, "routing": nil, "routing/pool": {"Endpoint", "Snapshot"}},
	"deploy/envoy":   {},
	"cmd/warmpath":   {"deploy/envoy": nil, "events": nil, "events/relay": nil, "extproc": nil, "kvindex": nil, "routing": nil, "routing/pool": nil, "routing/tokenizer": nil},
	"cmd/enginesim":  {"benchmarks/engine": nil, "benchmarks/engine/server": nil},
	"benchmarks/...": {"benchmarks/...": nil, "events": nil, "events/relay": nil, "events/relay/cachestatepb": nil, "events/zmtp": nil, "extproc": nil, "kvindex": nil, "routing": nil, "routing/pool": nil, "routing/tokenizer": nil},
}

// theirs says where a module of others may be imported, by prefixes of import
// paths and of files. Nothing else of this repository may.
var theirs = map[string][]string{
	"github.com/envoyproxy/go-control-plane": {"extproc/", "benchmarks/"},
	"github.com/go-zeromq":                   {"events/zmtp/"},
	"k8s.io":                                 {"routing/pool/kube"},
	"sigs.k8s.io":                            {},
	"go.opentelemetry.io/otel/sdk":           {"cmd/"},
	"go.opentelemetry.io/otel/exporters":     {"cmd/"},
	"google.golang.org/grpc":                 {"extproc/", "events/relay/", "benchmarks/", "cmd/"},
	"github.com/stretchr/testify":            {},
}

// pure packages do no input or output and report to nobody.
var pure = map[string][]string{
	"kvindex": {"log/slog", "net", "net/http", "os", "github.com/prometheus/client_golang", "go.opentelemetry.io/otel"},
	"routing": {"net", "net/http", "os"},
}

// testLibraries must not be in a program.
var testLibraries = []string{
	"testing", "net/http/httptest", "pgregory.net/rapid", "github.com/google/go-cmp", "github.com/cockroachdb/datadriven", "go.uber.org/goleak",
}

// vague are names that say nothing about what is inside.
var vague = []string{"util", "utils", "common", "types", "helpers", "helper", "base", "misc"}

// under tells whether import path p is prefix or below it.
func under(p, prefix string) bool { return p == prefix || strings.HasPrefix(p, prefix+"/") }

// fit returns the value of table whose key fits package pkg best.
func fit[T any](table map[string]T, pkg string) (value T, ok bool) {
	if value, ok = table[pkg]; ok {
		return value, true
	}
	for dir := pkg; dir != "."; dir = path.Dir(dir) {
		if value, ok = table[dir+"/..."]; ok {
			return value, true
		}
	}
	return value, false
}

// violations returns what is wrong with a file, given its path from the root
// of the module.
func violations(file string, f *ast.File) []string {
	pkg, isTest := path.Dir(file), strings.HasSuffix(file, "_test.go")
	var found []string
	report := func(format string, args ...any) { found = append(found, file+": "+fmt.Sprintf(format, args...)) }
	names := []string{strings.TrimSuffix(strings.TrimSuffix(path.Base(file), ".go"), "_test"), f.Name.Name}
	for _, n := range names {
		if slices.Contains(vague, n) {
			report("%s says nothing about what is inside", n)
		}
	}
	allowed, known := fit(ours, pkg)
	if !known {
		report("package %s is not in the table of imports", pkg)
		return found
	}
	for _, spec := range f.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		if own, ok := strings.CutPrefix(p, modulePath); ok {
			uses, may := fit(allowed, own)
			switch {
			case under(own, "cmd"):
				report("imports %s; nothing imports cmd", own)
			case isTest, own == pkg:
			case !may:
				report("%s must not import %s", pkg, own)
			case uses != nil:
				for _, name := range selectors(f, localName(spec, p)) {
					if !slices.Contains(uses, name) {
						report("of %s only %s may be used, not %s", own, strings.Join(uses, ", "), name)
					}
				}
			}
			continue
		}
		for prefix, where := range theirs {
			if under(p, prefix) && !slices.ContainsFunc(where, func(w string) bool { return strings.HasPrefix(file, w) }) {
				report("%s may be imported only in %s", p, strings.Join(where, ", "))
			}
		}
		for _, prefix := range pure[pkg] {
			if !isTest && (p == prefix || strings.Contains(prefix, ".") && under(p, prefix)) {
				report("%s must not import %s", pkg, p)
			}
		}
	}
	if isTest || ast.IsGenerated(f) {
		return found
	}
	for _, name := range selectors(f, "os") {
		if slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}, name) && file != "cmd/warmpath/main.go" {
			report("reads the environment; settings come from the configuration")
		}
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			report("has an init function; build in a constructor")
		}
	}
	return found
}

// localName returns what file-local name an import has.
func localName(spec *ast.ImportSpec, importPath string) string {
	if spec.Name != nil {
		return spec.Name.Name
	}
	return path.Base(importPath)
}

// selectors returns the names that f takes from the package called name.
func selectors(f *ast.File, name string) []string {
	var names []string
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			// An identifier with an object is a variable of that name.
			if x, ok := s.X.(*ast.Ident); ok && x.Name == name && x.Obj == nil {
				names = append(names, s.Sel.Name)
			}
		}
		return true
	})
	return names
}

// goFiles calls visit with every Go file of the module.
func goFiles(t *testing.T, visit func(file string, f *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(moduleRoot, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(moduleRoot, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			// A folder with its own go.mod is another module.
			nested, _ := filepath.Glob(filepath.Join(p, "go.mod"))
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || len(nested) > 0) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(rel), f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBoundaries(t *testing.T) {
	documented := map[string]bool{}
	goFiles(t, func(file string, f *ast.File) {
		for _, v := range violations(file, f) {
			t.Error(v)
		}
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		documented[path.Dir(file)] = documented[path.Dir(file)] || f.Doc != nil
	})
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no comment that says what it is for", pkg)
		}
	}
	if len(documented) < 8 {
		t.Errorf("only %d packages found; is this the module's root?", len(documented))
	}
}

func TestBoundaries_ExportedIsDocumented(t *testing.T) {
	goFiles(t, func(file string, f *ast.File) {
		if strings.HasSuffix(file, "_test.go") || f.Name.Name == "main" || ast.IsGenerated(f) {
			return
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && (d.Recv == nil || exportedReceiver(d.Recv)) {
					t.Errorf("%s: %s has no comment", file, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if s, ok := s.(*ast.TypeSpec); ok && s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
						t.Errorf("%s: %s has no comment", file, s.Name.Name)
					}
				}
			}
		}
	})
}

func exportedReceiver(recv *ast.FieldList) bool {
	typ := recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		typ = s.X
	}
	switch g := typ.(type) {
	case *ast.IndexExpr:
		typ = g.X
	case *ast.IndexListExpr:
		typ = g.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// The rules find what they are there to find.
func TestBoundaries_Violations(t *testing.T) {
	for _, tt := range []struct {
		file, source string
		want         string // part of the violation; empty: none
	}{
		{"kvindex/a.go", `import "slices"`, ""},
		{"kvindex/a.go", `import "github.com/warmpath/warmpath/routing"`, "kvindex must not import routing"},
		{"kvindex/a.go", `import "log/slog"`, "kvindex must not import log/slog"},
		{"kvindex/a.go", `import "github.com/prometheus/client_golang/prometheus"`, "kvindex must not import"},
		{"routing/pool/a.go", `import "net/http"`, ""},
		{"routing/a.go", `import "net/http"`, "routing must not import net/http"},
		{"routing/a.go", `import "github.com/warmpath/warmpath/events"`, "routing must not import events"},
		{"routing/a_test.go", `import "github.com/warmpath/warmpath/events"`, ""},
		{"routing/a_test.go", `import "github.com/warmpath/warmpath/cmd/warmpath"`, "nothing imports cmd"},
		{"routing/pool/kube.go", `import "k8s.io/client-go/kubernetes"`, ""},
		{"routing/pool/kube_pod.go", `import "k8s.io/api/core/v1"`, ""},
		{"routing/pool/pool.go", `import "k8s.io/client-go/kubernetes"`, "may be imported only in routing/pool/kube"},
		{"events/a.go", `import "github.com/go-zeromq/zmq4"`, "only in events/zmtp/"},
		{"events/zmtp/a.go", `import "github.com/go-zeromq/zmq4"`, ""},
		{"events/a_test.go", `import "github.com/envoyproxy/go-control-plane/envoy/type/v3"`, "only in extproc/, benchmarks/"},
		{"extproc/a.go", "import \"github.com/warmpath/warmpath/kvindex\"\nvar x kvindex.TokenID", ""},
		{"extproc/a.go", "import k \"github.com/warmpath/warmpath/kvindex\"\nvar x k.Index", "only TokenID may be used, not Index"},
		{"benchmarks/drive/a.go", `import "github.com/warmpath/warmpath/benchmarks/engine"`, ""},
		{"benchmarks/drive/a.go", `import "github.com/warmpath/warmpath/cmd/warmpath"`, "nothing imports cmd"},
		{"cmd/warmpath/a.go", `import "github.com/warmpath/warmpath/benchmarks/engine"`, "cmd/warmpath must not import benchmarks/engine"},
		{"newcomer/a.go", ``, "not in the table"},
		{"routing/a.go", "import \"github.com/stretchr/testify/require\"", "may be imported only in"},
		{"routing/a.go", "import \"os\"\nvar x = os.Getenv(\"X\")", "reads the environment"},
		{"events/a.go", "import \"os\"\nvar x = os.Getenv(\"X\")", "reads the environment"},
		{"events/a_test.go", "import \"os\"\nvar x = os.Getenv(\"X\")", ""},
		{"events/a.go", "func init() {}", "init function"},
		{"events/util.go", "", "util says nothing"},
		{"events/types_test.go", "", "types says nothing"},
	} {
		f, err := parser.ParseFile(token.NewFileSet(), tt.file, "package p\n"+tt.source, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(violations(tt.file, f), "\n")
		if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s with %q: got %q, want %q", tt.file, tt.source, got, tt.want)
		}
	}
}

func TestBoundaries_NoTestLibraryInPrograms(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", modulePath+"cmd/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, modulePath+"kvindex") {
		t.Fatalf("the programs do not depend on kvindex; is this the right list?\n%s", out)
	}
	for _, d := range deps {
		if slices.ContainsFunc(testLibraries, func(lib string) bool { return under(d, lib) }) {
			t.Errorf("a program depends on %s, which is for tests", d)
		}
	}
}
