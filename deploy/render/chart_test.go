package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// Where things are, seen from here.
const (
	root         = "../.."
	chartDir     = "../chart"
	manifestsDir = "../manifests"
)

// warmpath is the program, built once for all tests.
var warmpath string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "render")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	warmpath = filepath.Join(dir, "warmpath")
	build := exec.CommandContext(context.Background(), "go", "build", "-C", root, "-o", warmpath, "./cmd/warmpath")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build ./cmd/warmpath: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// run runs warmpath in a file system of its own and returns what it printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), warmpath, args...).CombinedOutput()
	return string(out), err
}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// parseValues reads values that a test is written with.
func parseValues(t *testing.T, text string) values {
	t.Helper()
	v, err := loader.LoadValues(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// object is a Kubernetes object of a rendered template.
type object map[string]any

// at returns what is at a path of keys and indices, nil if there is nothing.
func (o object) at(path ...any) any {
	v := any(map[string]any(o))
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func (o object) String() string {
	return fmt.Sprintf("%v %v/%v", o["kind"], o.at("metadata", "namespace"), o.at("metadata", "name"))
}

// objects returns what a file of manifests holds, in its order.
func objects(t *testing.T, file, text string) []object {
	t.Helper()
	var found []object
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var o map[string]any
		err := dec.Decode(&o)
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", file, err, text)
		}
		if o != nil {
			found = append(found, o)
		}
	}
}

// release is what the chart makes of values: all objects, hooks included.
func release(t *testing.T, vals values) []object {
	t.Helper()
	files, err := render(loadChart(t), vals)
	if err != nil {
		t.Fatal(err)
	}
	var all []object
	for name, text := range files {
		if name != "NOTES.txt" {
			all = append(all, objects(t, name, text)...)
		}
	}
	return all
}

// only returns the one object of a kind, and name if that is not empty.
func only(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	var found []object
	for _, o := range all {
		if o["kind"] == kind && (name == "" || o.at("metadata", "name") == name) {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d objects are a %s %s: %v", len(found), kind, name, all)
	}
	return found[0]
}

func TestManifests_AreWhatTheChartGives(t *testing.T) {
	want, err := manifests(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	have, err := read(manifestsDir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("deploy/manifests is not what deploy/chart gives; run: make manifests\n-chart +manifests:\n%s", diff)
	}
}

func TestChart_Lint(t *testing.T) {
	all, err := variants(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, vals := range all {
		for _, m := range lint.RunAll(chartDir, vals, releaseNamespace).Messages {
			if m.Severity > support.InfoSev {
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}

// The configuration of every variant is one that the router starts with.
func TestChart_ConfigIsValid(t *testing.T) {
	all, err := variants(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, vals := range all {
		t.Run(name, func(t *testing.T) {
			checkConfig(t, release(t, vals))
		})
	}
}

// routerConfig returns the router's configuration file.
func routerConfig(t *testing.T, all []object) string {
	t.Helper()
	for _, o := range all {
		if text, ok := o.at("data", "warmpath.yaml").(string); ok {
			return text
		}
	}
	t.Fatalf("no ConfigMap has a warmpath.yaml: %v", all)
	return ""
}

// checkConfig has warmpath check the configuration in the ConfigMap, with the
// files that it names in their place.
func checkConfig(t *testing.T, all []object) string {
	t.Helper()
	text := routerConfig(t, all)
	dir := t.TempDir()
	text = strings.ReplaceAll(text, "/etc/warmpath-", dir+"/")
	file := filepath.Join(dir, "warmpath.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "seed"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "seed/seed"), []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, "check", "--config", file)
	if err != nil {
		t.Fatalf("warmpath check: %v\n%s\n%s", err, out, text)
	}
	return out
}

// The headers that are removed at the edge are those that steer a request.
func TestChart_RemovesEveryRoutingHeader(t *testing.T) {
	file := filepath.Join(t.TempDir(), "warmpath.yaml")
	if err := os.WriteFile(file, []byte(`pool: {static: {endpoints: [{name: e, address: "127.0.0.1:1"}]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, "envoy-config", "--config", file)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var want []string
	for line := range bytes.Lines([]byte(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(string(line)), `- remove: "`); ok {
			want = append(want, strings.TrimSuffix(name, `"`))
		}
	}
	if !slices.Contains(want, "x-gateway-destination-endpoint") {
		t.Fatalf("the bootstrap removes %q; is this the right list?", want)
	}
	var got []string
	policy := only(t, release(t, nil), "ClientTrafficPolicy", "")
	for _, name := range policy.at("spec", "headers", "earlyRequestHeaders", "remove").([]any) {
		got = append(got, name.(string))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-bootstrap +chart:\n%s", diff)
	}
}
