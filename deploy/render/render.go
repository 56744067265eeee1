package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
)

// The release that the manifests are of.
const (
	releaseName      = "warmpath"
	releaseNamespace = "default"
	// kubeVersion is the oldest one that the chart accepts.
	kubeVersion = "v1.30.0"
)

// values of a chart, as YAML gives them.
type values = map[string]any

// render is renderFor the oldest Kubernetes.
func render(c *chart.Chart, vals values) (map[string]string, error) {
	return renderFor(kubeVersion, c, vals)
}

// renderFor returns what the chart makes of vals as a release in a version of
// Kubernetes, by the name of the template without its folder. Values are checked
// against the chart's schema. Templates that give nothing are left out.
func renderFor(version string, c *chart.Chart, vals values) (map[string]string, error) {
	kube, err := common.ParseKubeVersion(version)
	if err != nil {
		return nil, err
	}
	release := common.ReleaseOptions{Name: releaseName, Namespace: releaseNamespace, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(c, vals, release, &common.Capabilities{KubeVersion: *kube, APIVersions: common.DefaultVersionSet})
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(c, all)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for name, text := range files {
		name = strings.TrimPrefix(name, c.Name()+"/templates/")
		if strings.HasPrefix(path.Base(name), "_") || strings.TrimSpace(text) == "" {
			continue
		}
		found[name] = text
	}
	return found, nil
}

// manifest returns a rendered template as a file to apply: without empty
// documents and without the blank lines that templates leave.
func manifest(text string) string {
	var docs []string
	for doc := range strings.SplitSeq("\n"+text, "\n---") {
		if doc = strings.Trim(doc, "\n"); doc != "" {
			docs = append(docs, doc+"\n")
		}
	}
	return strings.Join(docs, "---\n")
}

// variants returns the values of each folder of manifests, by its name: the
// files of the chart's folder examples.
func variants(chartDir string) (map[string]values, error) {
	files, err := filepath.Glob(filepath.Join(chartDir, "examples", "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(err, fmt.Errorf("%s: no examples; is this the chart?", chartDir))
	}
	found := map[string]values{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		vals, err := loader.LoadValues(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		found[strings.TrimSuffix(filepath.Base(f), ".yaml")] = vals
	}
	return found, nil
}

// manifests returns every file below deploy/manifests, by its path.
func manifests(chartDir string) (map[string]string, error) {
	c, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	all, err := variants(chartDir)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for variant, vals := range all {
		files, err := render(c, vals)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", variant, err)
		}
		for name, text := range files {
			if strings.HasPrefix(name, "tests/") || name == "NOTES.txt" {
				continue
			}
			out[variant+"/"+name] = "# Generated from deploy/chart by `make manifests`; do not edit.\n" + manifest(text)
		}
	}
	return out, nil
}

// read returns every file below dir, by its path.
func read(dir string) (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		out[filepath.ToSlash(rel)] = string(b)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return out, err
}

// write makes dir hold what the chart gives, and nothing else.
func write(chartDir, dir string) error {
	want, err := manifests(chartDir)
	if err != nil {
		return err
	}
	have, err := read(dir)
	if err != nil {
		return err
	}
	for name := range have {
		if _, keep := want[name]; !keep {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(want[name]), 0o644); err != nil {
			return err
		}
	}
	return nil
}
