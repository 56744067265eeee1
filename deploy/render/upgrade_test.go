package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// git runs git at the root of the repository.
func git(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	return exec.CommandContext(t.Context(), "git", append([]string{"-C", root}, args...)...).Output()
}

// chartAt returns the chart as it was committed at a revision.
func chartAt(t *testing.T, revision string) *chart.Chart {
	t.Helper()
	text, err := git(t, "archive", revision, "deploy/chart")
	if err != nil {
		t.Fatalf("git archive %s: %v", revision, err)
	}
	var files []*archive.BufferedFile
	for r := tar.NewReader(bytes.NewReader(text)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name, ok := strings.CutPrefix(h.Name, "deploy/chart/")
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, &archive.BufferedFile{Name: name, Data: data})
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		t.Fatalf("the chart at %s: %v", revision, err)
	}
	return c
}

// previous returns the last commit whose chart has another version than the
// current one, empty if there is none.
func previous(t *testing.T, current string) string {
	t.Helper()
	log, err := git(t, "log", "--format=%H", "--", "deploy/chart/Chart.yaml")
	if err != nil {
		t.Skipf("no history to look for an older chart in: %v", err)
	}
	for commit := range strings.FieldsSeq(string(log)) {
		text, err := git(t, "show", commit+":deploy/chart/Chart.yaml")
		if err != nil {
			continue // the commit that removed it
		}
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "version: "); ok && v != current {
				return commit
			}
		}
	}
	return ""
}

// upgrade tells what keeps a release of the old chart, with these values, from
// being upgraded to the new one: values that it does not take, and fields that
// Kubernetes does not let change.
func upgrade(t *testing.T, old, current *chart.Chart, vals values) error {
	t.Helper()
	before, err := render(old, vals)
	if err != nil {
		return fmt.Errorf("the old chart: %w", err)
	}
	after, err := render(current, vals)
	if err != nil {
		return fmt.Errorf("the new chart: %w", err)
	}
	all := func(files map[string]string) (found []object) {
		for name, text := range files {
			if name != "NOTES.txt" {
				found = append(found, objects(t, name, text)...)
			}
		}
		return found
	}
	for _, was := range all(before) {
		for _, is := range all(after) {
			if was.String() != is.String() {
				continue
			}
			for _, path := range immutable[was["kind"].(string)] {
				if a, b := fmt.Sprint(was.at(path...)), fmt.Sprint(is.at(path...)); a != b {
					return fmt.Errorf("%v: %v cannot change from %s to %s", was, path, a, b)
				}
			}
		}
	}
	return nil
}

// immutable are the fields that the API server refuses to change, by kind.
var immutable = map[string][][]any{
	"Deployment":  {{"spec", "selector"}},
	"RoleBinding": {{"roleRef"}},
	"Service":     {{"spec", "clusterIP"}},
}

// A release of the last version that was committed can be upgraded to this
// one, with the examples' values of then.
func TestUpgrade(t *testing.T) {
	current := loadChart(t)
	commit := previous(t, current.Metadata.Version)
	if commit == "" {
		t.Skipf("no chart of another version than %s was ever committed", current.Metadata.Version)
	}
	old := chartAt(t, commit)
	t.Logf("from %s (%.12s) to %s", old.Metadata.Version, commit, current.Metadata.Version)
	for _, f := range old.Files {
		if !strings.HasPrefix(f.Name, "examples/") {
			continue
		}
		vals, err := loader.LoadValues(bytes.NewReader(f.Data))
		if err != nil {
			t.Fatal(err)
		}
		if err := upgrade(t, old, current, vals); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

// The check of upgrades finds what it is there to find.
func TestUpgrade_FindsFaults(t *testing.T) {
	head, err := git(t, "rev-parse", "HEAD")
	if err != nil {
		t.Skipf("not in a clone: %v", err)
	}
	old := chartAt(t, strings.TrimSpace(string(head)))
	if err := upgrade(t, old, loadChart(t), values{"gateway": map[string]any{"listener": "http"}}); err != nil {
		t.Fatalf("the chart cannot follow its own last commit: %v", err)
	}
	for _, tt := range []struct {
		change func(c *chart.Chart)
		want   string
	}{
		{func(c *chart.Chart) {
			edit(t, c, "deployment.yaml", `    matchLabels: {{- include "warmpath.selectorLabels" . | nindent 6 }}`+"\n  template", "    matchLabels: {a: b}\n  template")
		}, "[spec selector] cannot change"},
		{func(c *chart.Chart) { edit(t, c, "rolebinding.yaml", "kind: Role,", "kind: ClusterRole,") }, "[roleRef] cannot change"},
		{func(c *chart.Chart) { c.Schema = bytes.Replace(c.Schema, []byte(`"listener"`), []byte(`"port2"`), 1) }, "'listener' not allowed"},
	} {
		c := loadChart(t)
		tt.change(c)
		if err := upgrade(t, old, c, values{"gateway": map[string]any{"listener": "http"}}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

// edit replaces text in a template, which must have it.
func edit(t *testing.T, c *chart.Chart, name, from, to string) {
	t.Helper()
	for _, f := range c.Templates {
		if strings.HasSuffix(f.Name, "/"+name) && bytes.Contains(f.Data, []byte(from)) {
			f.Data = bytes.Replace(f.Data, []byte(from), []byte(to), 1)
			return
		}
	}
	t.Fatalf("%s has no %q", name, from)
}
