package main

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// chartOwned are the settings, and sections of them, that the Helm chart sets
// from values of its own. Its value config does not take them.
var chartOwned = []string{
	"extproc.listen", "extproc.tls", "extproc.max_body_bytes", "extproc.clear_route_cache",
	"admin", "envoy", "index.seed_file", "pool.health.path", "routing.fallbacks",
	"pool.kubernetes.kubeconfig", "pool.kubernetes.context", "pool.kubernetes.namespaces", "pool.kubernetes.pod_selector",
	"pool.kubernetes.services", "pool.kubernetes.inference_pools", "pool.kubernetes.port", "pool.kubernetes.events_port", "pool.kubernetes.replay_port",
}

func ownedByChart(key string) bool {
	for _, o := range chartOwned {
		if key == o || strings.HasPrefix(key, o+".") {
			return true
		}
	}
	return false
}

// chartConfigSchema is the JSON schema of the chart's value config: the
// settings that there are, and what kind of value each has.
func chartConfigSchema() map[string]any {
	cfg, top := DefaultConfig(), schemaSection()
	for _, s := range settings(&cfg) {
		if ownedByChart(s.Key) {
			continue
		}
		at, words := top, strings.Split(s.Key, ".")
		for _, w := range words[:len(words)-1] {
			at = schemaBelow(at, w)
		}
		leaf := schemaOf(s.Value.Type())
		leaf["description"] = s.help()
		at["properties"].(map[string]any)[words[len(words)-1]] = leaf
	}
	return top
}

func schemaSection() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
}

// schemaBelow returns the schema of the section called word below at, or of the
// elements of a list, if word ends in [].
func schemaBelow(at map[string]any, word string) map[string]any {
	props := at["properties"].(map[string]any)
	name, list := strings.CutSuffix(word, "[]")
	found, ok := props[name].(map[string]any)
	if !ok {
		if found = schemaSection(); list {
			found = map[string]any{"type": "array", "items": found}
		}
		props[name] = found
	}
	if list {
		return found["items"].(map[string]any)
	}
	return found
}

func schemaOf(t reflect.Type) map[string]any {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$`}
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean"}
	case t.Kind() == reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem())}
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object"}
	case t.Kind() == reflect.Float64:
		return map[string]any{"type": "number"}
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return map[string]any{"type": "integer"}
	}
	return map[string]any{"type": "string"}
}

// Below config the Helm chart knows the settings that there are, no more and
// no less. After a change: go test ./cmd/warmpath -run Reference -update.
func TestReference_IsInChart(t *testing.T) {
	const file = "../../deploy/chart/values.schema.json"
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(have, &schema); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	schema["$defs"].(map[string]any)["config"] = chartConfigSchema()
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(schema); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want.String(), string(have)); diff != "" {
		t.Errorf("%s is about other settings; run: go test ./cmd/warmpath -run Reference -update\n-settings +chart:\n%s", file, diff)
	}
}

// What the chart is said to set are settings.
func TestReference_OwnedByChart(t *testing.T) {
	cfg := DefaultConfig()
	for _, o := range chartOwned {
		found := false
		for _, s := range settings(&cfg) {
			found = found || s.Key == o || strings.HasPrefix(s.Key, o+".")
		}
		if !found {
			t.Errorf("%s is no setting", o)
		}
	}
}
