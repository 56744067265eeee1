package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// With relay.enabled the router looks for relays, may reach them, nobody else
// does, and the relays' own configuration is one that warmpath takes.
func TestRelay_Enabled(t *testing.T) {
	vals := values{
		"relay": map[string]any{"enabled": true, "port": 5570}, "seed": map[string]any{"existingSecret": "fleet"},
		"engines": map[string]any{"namespaces": []any{"models"}}, "attach": "original-dst", "gateway": map[string]any{"listener": "http"},
	}
	all := release(t, vals)
	var text string
	for _, o := range all {
		if o["kind"] != "ConfigMap" {
			continue
		}
		if s, ok := o.at("data", "warmpath.yaml").(string); ok && !strings.Contains(s, "relay_port: 5570") {
			t.Errorf("the router does not look for relays:\n%s", s)
		}
		if s, ok := o.at("data", "relay.yaml").(string); ok {
			text = s
			if ns := o.at("metadata", "namespace"); ns != "models" {
				t.Errorf("the relays' configuration is in namespace %v", ns)
			}
		}
	}
	if text == "" {
		t.Fatal("no configuration of the relays")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "seed"), []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "relay.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "/etc/warmpath-seed", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "check", "--config", file, "--relay.endpoint=10.0.0.7:8000"); err != nil {
		t.Errorf("warmpath check: %v\n%s\n%s", err, out, text)
	}
	for _, o := range all {
		if o["kind"] != "NetworkPolicy" {
			continue
		}
		name, _ := o.at("metadata", "name").(string)
		if strings.HasSuffix(name, "-engines") {
			if !opens(o.at("spec", "ingress", 0, "ports"), 5570) || opens(o.at("spec", "ingress", 1, "ports"), 5570) {
				t.Error("the relays' port is not the router's alone")
			}
		} else if !opens(o.at("spec", "egress", 0, "ports"), 5570) {
			t.Error("the router may not reach the relays")
		}
	}
}

// opens tells whether a list of ports of a NetworkPolicy has a TCP port.
func opens(ports any, port int) bool {
	return slices.ContainsFunc(ports.([]any), func(p any) bool {
		o := object(p.(map[string]any))
		from, _ := o["port"].(int)
		to, ok := o["endPort"].(int)
		if !ok {
			to = from
		}
		return o["protocol"] == "TCP" && from <= port && port <= to
	})
}
