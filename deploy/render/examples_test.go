package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// eventsConfig is what --kv-events-config takes, in vLLM (vLLM docs,
// KVEventsConfig) and, but for the first, in SGLang.
type eventsConfig struct {
	Enable    *bool  `json:"enable_kv_cache_events"`
	Publisher string `json:"publisher"`
	Endpoint  string `json:"endpoint"`
	Replay    string `json:"replay_endpoint"`
}

func parseEvents(t *testing.T, from, text string) eventsConfig {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	var c eventsConfig
	if err := dec.Decode(&c); err != nil {
		t.Fatalf("%s: --kv-events-config %s: %v", from, text, err)
	}
	return c
}

// flags returns what --name=value and --name value say.
func flags(args []any) map[string]string {
	found := map[string]string{}
	for i := 0; i < len(args); i++ {
		name, value, ok := strings.Cut(fmt.Sprint(args[i]), "=")
		if !ok && i+1 < len(args) && !strings.HasPrefix(fmt.Sprint(args[i+1]), "--") {
			i++
			value = fmt.Sprint(args[i])
		}
		found[name] = value
	}
	return found
}

func readPage(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The example engines publish where the chart looks, as README.md says they
// must, and are the pods that the chart means.
func TestExamples(t *testing.T) {
	readme := readPage(t, root+"/README.md")
	said := regexp.MustCompile(`(?s)vllm serve MODEL --kv-events-config '(\{.*?\})'`).FindStringSubmatch(readme)
	if said == nil {
		t.Fatal("README.md does not tell how vLLM publishes events")
	}
	for engine, model := range map[string]string{"vllm": "", "sglang": "--model-path"} {
		file := "../examples/" + engine + ".yaml"
		d := only(t, objects(t, file, readPage(t, file)), "Deployment", engine)
		pod := object(d.at("spec", "template").(map[string]any))
		c := object(pod.at("spec", "containers", 0).(map[string]any))
		set := flags(c["args"].([]any))

		events := parseEvents(t, file, set["--kv-events-config"])
		want := parseEvents(t, "README.md", said[1])
		if engine == "sglang" {
			want.Enable = nil // it has no such key
		}
		if diff := cmp.Diff(want, events); diff != "" {
			t.Errorf("%s: -README.md +example:\n%s", file, diff)
		}

		// What the router of a chart for these pods is told is true of them.
		vals := parseValues(t, fmt.Sprintf("engines: {selector: {app: %s}}", engine))
		all := release(t, vals)
		chartValues := object(loadChart(t).Values)
		service := only(t, all, "Service", "warmpath-engines")
		labels := pod.at("metadata", "labels").(map[string]any)
		for k, v := range service.at("spec", "selector").(map[string]any) {
			if labels[k] != v || d.at("spec", "selector", "matchLabels", k) != v {
				t.Errorf("%s: the pods have %v, the chart looks for %s=%v", file, labels, k, v)
			}
		}
		ports := map[string]any{}
		for _, p := range c["ports"].([]any) {
			ports[object(p.(map[string]any))["name"].(string)] = object(p.(map[string]any))["containerPort"]
		}
		wantPorts := map[string]any{}
		for name, at := range map[string][]any{"http": {"engines", "ports", 0}, "events": {"engines", "events", "port"}, "replay": {"engines", "events", "replayPort"}} {
			var n int
			if _, err := fmt.Sscan(fmt.Sprint(chartValues.at(at...)), &n); err != nil {
				t.Fatal(err)
			}
			wantPorts[name] = n
		}
		if diff := cmp.Diff(wantPorts, ports); diff != "" {
			t.Errorf("%s: -chart +example:\n%s", file, diff)
		}
		for flag, port := range map[string]string{"--port": fmt.Sprint(ports["http"]), "endpoint": strings.TrimPrefix(events.Endpoint, "tcp://*:"), "replay_endpoint": strings.TrimPrefix(events.Replay, "tcp://*:")} {
			want := map[string]any{"--port": ports["http"], "endpoint": ports["events"], "replay_endpoint": ports["replay"]}[flag]
			if flag == "--port" {
				port = set["--port"]
			}
			if port != fmt.Sprint(want) {
				t.Errorf("%s: %s is %s, the container's port %v", file, flag, port, want)
			}
		}
		for _, probe := range []string{"startupProbe", "readinessProbe", "livenessProbe"} {
			if got := c.at(probe, "httpGet", "path"); got != chartValues.at("engines", "healthPath") {
				t.Errorf("%s: %s asks for %v", file, probe, got)
			}
		}
		if grace, sleep := pod.at("spec", "terminationGracePeriodSeconds").(int), c.at("lifecycle", "preStop", "sleep", "seconds").(int); grace <= sleep {
			t.Errorf("%s: killed after %d s, of which %d s are waiting", file, grace, sleep)
		}
		if model != "" && set[model] == "" {
			t.Errorf("%s: no %s in %v", file, model, set)
		}
		for key := range pod.at("metadata", "annotations").(map[string]any) {
			if !strings.Contains(readme, "`"+key+"`") {
				t.Errorf("%s: README.md does not know the annotation %s", file, key)
			}
		}
		checkShapeOf(t, file, d)
	}
}

// checkShapeOf is checkShape for objects that leave their namespace to whoever
// applies them.
func checkShapeOf(t *testing.T, file string, o object) {
	t.Helper()
	m := o["metadata"].(map[string]any)
	if _, ok := m["namespace"]; ok {
		t.Errorf("%s: it has a namespace of its own", file)
	}
	m["namespace"] = releaseNamespace
	checkShape(t, file, o)
	if !slices.Contains([]any{"apps/v1"}, o["apiVersion"]) {
		t.Errorf("%s: apiVersion %v", file, o["apiVersion"])
	}
}
