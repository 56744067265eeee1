package main

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// help returns the setting's description, from its help tag or, where the
// package that declares it has none, from helpTexts.
func (s setting) help() string {
	if s.Help != "" {
		return s.Help
	}
	return helpTexts()[s.Key]
}

// isBool tells whether the setting is a boolean.
func (s setting) isBool() bool { return s.Value.Kind() == reflect.Bool }

// text returns the setting's value as it is written in the file, on one line.
func (s setting) text() string {
	switch v := s.Value.Interface().(type) {
	case time.Duration:
		return v.String()
	case fmt.Stringer:
		return v.String()
	}
	switch s.Value.Kind() {
	case reflect.Slice:
		words := make([]string, s.Value.Len())
		for i := range words {
			words[i] = fmt.Sprint(s.Value.Index(i))
		}
		return "[" + strings.Join(words, ", ") + "]"
	case reflect.Map:
		return "{}"
	case reflect.String:
		if s.Value.Len() == 0 {
			return `""`
		}
	}
	return fmt.Sprint(s.Value)
}

// configReference returns a Markdown table of every setting.
func configReference() string {
	var b strings.Builder
	b.WriteString("| key | default | what |\n| --- | --- | --- |\n")
	cfg := DefaultConfig()
	for _, s := range settings(&cfg) {
		def := "`" + s.text() + "`"
		if strings.Contains(s.Key, "[]") && s.Value.IsZero() {
			def = ""
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Key, def, strings.ReplaceAll(s.help(), "|", `\|`))
	}
	return b.String()
}

// helpTexts describes settings whose packages keep no help tags.
func helpTexts() map[string]string {
	return map[string]string{
		"pool.static.endpoints[].name":        "unique name, for logs and metrics",
		"pool.static.endpoints[].address":     "ip:port of the engine's HTTP server, no host name; IPv6 in brackets",
		"pool.static.endpoints[].models":      "names of the base model, its id first; empty: learned from the engine's /v1/models",
		"pool.static.endpoints[].adapters":    "LoRA adapters of that base model",
		"pool.static.endpoints[].events":      "ZMQ endpoint of the engine's KV events, tcp://HOST:PORT; auto: asked of the engine (vLLM 0.31 and later, SGLang), with replay and ranks; empty: none",
		"pool.static.endpoints[].replay":      "ZMQ endpoint of its replay socket, tcp://HOST:PORT; empty: none",
		"pool.static.endpoints[].metrics":     "URL of its Prometheus metrics; empty: pool.load.path on its address",
		"pool.static.endpoints[].labels":      "free-form; the external-filter header selects by them",
		"pool.static.endpoints[].annotations": "free-form",
		"pool.health.path":                    "requested on every endpoint; 200 means ready",
		"pool.health.interval":                "time between two probes of an endpoint, jittered by a tenth",
		"pool.health.timeout":                 "time for one probe",
		"index.max_blocks":                    "bound on the blocks held by all publishers together; 0: the default",
		"index.prediction_ttl":                "how long a routed request's blocks count as expected where no event confirms them; 0s: the default",
		"events.replay_timeout":               "how long a replay request may go unanswered",
		"events.quiet":                        "silence that ends a replay answer which has no end marker",
		"events.give_up":                      "how long a disconnected or unanswered engine keeps its state, which is not trusted meanwhile",
		"events.probe":                        "silence after which an engine with a replay endpoint is asked for its last batch again; 0s: never",
		"events.confirm":                      "pause after the first replay of a connection before it is repeated, for what came in between",
		"events.backoff_min":                  "shortest pause before a connection or a replay is tried again",
		"events.backoff_max":                  "longest such pause",
		"events.max_frame_bytes":              "largest message that is taken from an engine",
		"events.max_held_bytes":               "live messages of one engine that may wait for a replay to end, in bytes",
		"events.replays":                      "replays that run at the same time, over all engines",
	}
}
