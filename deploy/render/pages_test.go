package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/strvals"
)

// pages are the pages of deploy, from there.
var pages = []string{"README.md", "aibrix.md", "operations.md"}

// eachPage calls test with each page.
func eachPage(t *testing.T, test func(t *testing.T, page, text string)) {
	t.Helper()
	for _, page := range pages {
		t.Run(page, func(t *testing.T) { test(t, page, readPage(t, "../"+page)) })
	}
}

// fence is a block of code and the comment before it that says what it is.
var fence = regexp.MustCompile("(?ms)^( *)(?:<!-- ([^\n]*) -->\n *)?```([a-z]+)\n(.*?)^ *```$")

type block struct{ about, language, text string }

func blocks(text string) []block {
	var found []block
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		b := block{about: m[2], language: m[3]}
		for line := range strings.Lines(m[4]) {
			b.text += strings.TrimPrefix(line, m[1])
		}
		found = append(found, b)
	}
	return found
}

// Every YAML of the pages is what it is said to be: values that render and
// give a valid configuration, or a part of a manifest of the chart.
func TestPages_YAML(t *testing.T) {
	seen := 0
	eachPage(t, func(t *testing.T, _, text string) {
		for _, b := range blocks(text) {
			if b.language != "yaml" {
				continue
			}
			seen++
			kind, isManifest := strings.CutPrefix(b.about, "manifest ")
			switch {
			case b.about == "values":
				checkConfig(t, release(t, parseValues(t, b.text)))
			case isManifest:
				var part map[string]any
				if err := yaml.Unmarshal([]byte(b.text), &part); err != nil {
					t.Fatalf("%v\n%s", err, b.text)
				}
				if diff := missing("", part, map[string]any(only(t, release(t, nil), kind, ""))); diff != "" {
					t.Errorf("the chart's %s says otherwise:\n%s", kind, diff)
				}
			default:
				t.Errorf("nothing says what this is:\n%s", b.text)
			}
		}
	})
	if seen < 5 {
		t.Errorf("%d blocks of YAML found", seen)
	}
}

// missing tells where part is not in whole.
func missing(path string, part, whole any) string {
	p, ok := part.(map[string]any)
	w, ok2 := whole.(map[string]any)
	if !ok || !ok2 {
		if diff := cmp.Diff(whole, part); diff != "" {
			return path + ": -chart +page:\n" + diff
		}
		return ""
	}
	var all string
	for k, v := range p {
		all += missing(path+"."+k, v, w[k])
	}
	return all
}

// Every helm command of the pages, and of the examples, renders.
func TestPages_HelmCommands(t *testing.T) {
	seen := 0
	set := regexp.MustCompile(`--set ([^\s` + "`" + `]+)`)
	file := regexp.MustCompile(`-f (\S+)`)
	check := func(command string) {
		seen++
		vals := values{}
		for _, m := range file.FindAllStringSubmatch(command, -1) {
			vals = parseValues(t, readPage(t, filepath.Join(root, m[1])))
		}
		for _, m := range set.FindAllStringSubmatch(command, -1) {
			value := strings.TrimSuffix(strings.ReplaceAll(m[1], "REGISTRY", "registry.example.com"), ".")
			if err := strvals.ParseInto(value, vals); err != nil {
				t.Errorf("%s: %v", command, err)
			}
		}
		checkConfig(t, release(t, vals))
	}
	eachPage(t, func(_ *testing.T, _, text string) {
		for _, b := range blocks(text) {
			for command := range strings.SplitSeq(strings.ReplaceAll(b.text, "\\\n", " "), "\n") {
				if strings.HasPrefix(command, "helm install") {
					check(command)
				}
			}
		}
		for _, m := range regexp.MustCompile("`(--set [^`]+)`").FindAllStringSubmatch(text, -1) {
			check(m[1])
		}
	})
	check(readPage(t, "../examples/sglang.yaml")) // says what to install with
	if seen < 4 {
		t.Errorf("%d commands found", seen)
	}
}

// What stands in code marks and looks like a value, a setting or a metric is
// one; and every link leads somewhere.
func TestPages_Names(t *testing.T) {
	reference, err := run(t, "check", "--reference")
	if err != nil {
		t.Fatal(err)
	}
	metrics := definedMetrics(t)
	chartValues := loadChart(t).Values
	dotted := regexp.MustCompile("`([a-z][A-Za-z_]*(?:\\.[A-Za-z_]+)+)`")
	metric := regexp.MustCompile("`(warmpath_[a-z_]+)`")
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	counts := map[string]int{}
	eachPage(t, func(t *testing.T, page, text string) {
		for _, m := range dotted.FindAllStringSubmatch(text, -1) {
			words := strings.Split(m[1], ".")
			if _, ours := chartValues[words[0]]; !ours {
				continue // of Kubernetes or of Envoy Gateway
			}
			counts["values"]++
			if words[0] == "config" {
				if key := strings.TrimPrefix(m[1], "config."); !strings.Contains(reference, "| `"+key+"`") && !strings.Contains(reference, "| `"+key+".") && !strings.Contains(reference, "| `"+key+"[]") {
					t.Errorf("%s is no setting", key)
				}
				continue
			}
			at := any(chartValues)
			for _, w := range words {
				m, _ := at.(map[string]any)
				at = m[w]
			}
			if at == nil {
				t.Errorf("%s is no value of the chart", m[1])
			}
		}
		for _, m := range metric.FindAllStringSubmatch(text, -1) {
			counts["metrics"]++
			if !slices.Contains(metrics, m[1]) {
				t.Errorf("%s is no metric", m[1])
			}
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			counts["links"]++
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("a link of %s: %v", page, err)
			}
		}
	})
	for what, least := range map[string]int{"values": 20, "metrics": 5, "links": 10} {
		if counts[what] < least {
			t.Errorf("only %d %s found", counts[what], what)
		}
	}
}

// definedMetrics returns the names in the sources of the product, whole or as
// beginnings that are completed there.
func definedMetrics(t *testing.T) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "grep", "-rhoE", "--include=*.go", "--exclude=*_test.go", `"warmpath_[a-z_]+"`,
		root+"/cmd/warmpath", root+"/events", root+"/extproc", root+"/routing").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.ReplaceAll(strings.TrimSpace(string(out)), `"`, ""), "\n")
}

// The strategies that AIBrix' users know are there or are not, as the page
// says.
func TestAIBrix_Strategies(t *testing.T) {
	text := readPage(t, "../aibrix.md")
	config := filepath.Join(t.TempDir(), "warmpath.yaml")
	if err := os.WriteFile(config, []byte(`pool: {static: {endpoints: [{name: e, address: "127.0.0.1:1"}]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for list, offered := range map[string]bool{"strategies": true, "not strategies": false} {
		m := regexp.MustCompile(`(?s)<!-- ` + list + ` -->\n(.*?)\n\n`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no list of %s", list)
		}
		names := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(m[1], -1)
		if len(names) < 4 {
			t.Fatalf("%s: %q", list, m[1])
		}
		for _, name := range names {
			out, err := run(t, "check", "--config", config, "--routing.strategy="+name[1])
			if (err == nil) != offered {
				t.Errorf("%s: offered: %v, on the page %v\n%s", name[1], err == nil, offered, out)
			}
		}
	}
}

// AIBrix' labels and annotations on the page are those that README.md says are
// read.
func TestAIBrix_Labels(t *testing.T) {
	readme := readPage(t, root+"/README.md")
	named := regexp.MustCompile("`(model\\.aibrix\\.ai/[a-z-]+)`")
	var want, got []string
	for _, m := range named.FindAllStringSubmatch(readme, -1) {
		want = append(want, m[1])
	}
	for _, m := range named.FindAllStringSubmatch(readPage(t, "../aibrix.md"), -1) {
		got = append(got, m[1])
	}
	for _, list := range []*[]string{&want, &got} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 5 {
		t.Errorf("-README.md +aibrix.md:\n%s", diff)
	}
}

// What the page says of AIBrix' profiles holds: the chart passes routing
// settings through.
func TestPages_RoutingReachesTheRouter(t *testing.T) {
	all := release(t, parseValues(t, `config: {routing: {strategy: "prefix-cache:2,least-request", queue: {max_in_flight: 4, deadline: 500ms}}}`))
	var cfg map[string]any
	if err := yaml.Unmarshal([]byte(only(t, all, "ConfigMap", "").at("data", "warmpath.yaml").(string)), &cfg); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(cfg["routing"])
	if want := `{"fallbacks":2,"queue":{"deadline":"500ms","max_in_flight":4},"strategy":"prefix-cache:2,least-request"}`; err != nil || string(b) != want {
		t.Errorf("%v: the router is told %s, want %s", err, b, want)
	}
	checkConfig(t, all)
}

// Timeouts that do not agree are refused by name, and a change of the routing
// section alone starts no new pods.
func TestOperations_Claims(t *testing.T) {
	refused := func(text, want string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "warmpath.yaml")
		config := only(t, release(t, parseValues(t, text)), "ConfigMap", "").at("data", "warmpath.yaml").(string)
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := run(t, "check", "--config", file); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", text, err, out)
		}
	}
	refused(`policy: {messageTimeout: 2s}`, "envoy.message_timeout")
	refused(`config: {routing: {queue: {max_in_flight: 1, deadline: 1s}}}`, "routing.queue.deadline")
	refused(`config: {tokenizer: {budget: 2s}}`, "tokenizer.budget")

	sum := func(text string) any {
		return only(t, release(t, parseValues(t, text)), "Deployment", "").at("spec", "template", "metadata", "annotations", "checksum/config")
	}
	base := sum("{}")
	const static = "engines: {discovery: none}\nconfig: {pool: {static: {endpoints: [{name: %s, address: \"10.0.0.7:8000\"}]}}}"
	if sum("config: {routing: {strategy: random}}") != base || sum(fmt.Sprintf(static, "a")) != sum(fmt.Sprintf(static, "b")) {
		t.Error("a change that the router follows starts new pods")
	}
	if sum("config: {log: {level: debug}}") == base || sum("maxBodyBytes: 65536") == base {
		t.Error("a change that takes a restart starts no new pods")
	}
}
