package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// owned are the keys of the router's configuration that the chart sets from
// other values. The schema does not allow them below config.
var owned = []string{
	"extproc.listen", "extproc.tls", "extproc.max_body_bytes", "extproc.clear_route_cache",
	"admin", "envoy", "index.seed_file", "pool.health.path", "routing.fallbacks",
	"pool.kubernetes.kubeconfig", "pool.kubernetes.context", "pool.kubernetes.namespaces", "pool.kubernetes.pod_selector",
	"pool.kubernetes.services", "pool.kubernetes.inference_pools", "pool.kubernetes.port", "pool.kubernetes.events_port", "pool.kubernetes.replay_port",
}

// isOwned tells whether a key, or a section around it, is in owned.
func isOwned(key string) bool {
	for _, o := range owned {
		if key == o || strings.HasPrefix(key, o+".") {
			return true
		}
	}
	return false
}

// setting is a row of the table that `warmpath check --reference` prints.
var setting = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (?:`([^`]*)`)? *\\| (.*) \\|$")

var (
	durationValue = regexp.MustCompile(`^([0-9.]+(ns|us|µs|ms|s|m|h))+$`)
	numberValue   = regexp.MustCompile(`^-?[0-9.]+$`)
)

// configSchema returns the JSON schema of the chart's value config, made of the
// table of the router's settings: the keys that exist, with the kind of value
// that their default has.
func configSchema(reference string) (map[string]any, error) {
	top := section()
	rows := setting.FindAllStringSubmatch(reference, -1)
	if len(rows) == 0 {
		return nil, fmt.Errorf("no table of settings: %.80q", reference)
	}
	for _, row := range rows {
		key, def, help := row[1], row[2], row[3]
		if isOwned(key) {
			continue
		}
		at, words := top, strings.Split(key, ".")
		for _, w := range words[:len(words)-1] {
			at = descend(at, w)
		}
		leaf := leafSchema(def)
		if strings.Contains(key, "[]") {
			leaf = map[string]any{} // the table tells no kind of value
		}
		leaf["description"] = help
		at["properties"].(map[string]any)[words[len(words)-1]] = leaf
	}
	return top, nil
}

func section() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
}

// descend returns the schema of the section called word below at; of the
// elements of a list, if it ends in [].
func descend(at map[string]any, word string) map[string]any {
	props := at["properties"].(map[string]any)
	name, list := strings.CutSuffix(word, "[]")
	found, ok := props[name].(map[string]any)
	if !ok {
		if found = section(); list {
			found = map[string]any{"type": "array", "items": found}
		}
		props[name] = found
	}
	if list {
		return found["items"].(map[string]any)
	}
	return found
}

// leafSchema returns what a value must be whose default is def.
func leafSchema(def string) map[string]any {
	switch {
	case def == "true" || def == "false":
		return map[string]any{"type": "boolean"}
	case def == "[]":
		return map[string]any{"type": "array", "items": map[string]any{"type": "string"}}
	case def == "{}":
		return map[string]any{"type": "object"}
	case durationValue.MatchString(def):
		return map[string]any{"type": "string", "pattern": "^([0-9.]+(ns|us|µs|ms|s|m|h))+$"}
	case numberValue.MatchString(def):
		return map[string]any{"type": "number"}
	}
	return map[string]any{"type": "string"}
}

// withConfig returns the chart's schema, in JSON, with what it says about
// config taken from the router's reference.
func withConfig(schema []byte, reference string) ([]byte, error) {
	var s map[string]any
	if err := json.Unmarshal(schema, &s); err != nil {
		return nil, err
	}
	defs, ok := s["$defs"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the schema has no $defs")
	}
	config, err := configSchema(reference)
	if err != nil {
		return nil, err
	}
	defs["config"] = config
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err = enc.Encode(s)
	return out.Bytes(), err
}

// schemaFile is the chart's schema.
func schemaFile(chartDir string) string { return path.Join(chartDir, "values.schema.json") }
