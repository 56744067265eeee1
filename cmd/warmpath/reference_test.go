package main

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files and the generated part of README.md")

// Every setting is described, in one place.
func TestSettings_AreDescribed(t *testing.T) {
	cfg := DefaultConfig()
	texts := helpTexts()
	seen := map[string]bool{}
	for _, s := range settings(&cfg) {
		if seen[s.Key] {
			t.Errorf("%s is declared twice", s.Key)
		}
		seen[s.Key] = true
		if s.help() == "" {
			t.Errorf("%s has no help; give its field a help tag", s.Key)
		}
		if s.Help != "" && texts[s.Key] != "" {
			t.Errorf("%s has a help tag and an entry in helpTexts", s.Key)
		}
		delete(texts, s.Key)
	}
	for key := range texts {
		t.Errorf("helpTexts describes %s, which is no setting", key)
	}
	for _, key := range []string{
		"extproc.listen", "admin.listen", "envoy.listen", "envoy.admin", "routing.strategy", "tokenizer.endpoints",
		"pool.static.endpoints[].address", "index.max_blocks", "index.seed_file", "log.level", "log.format",
	} {
		if !seen[key] {
			t.Errorf("%s is not a setting any more", key)
		}
	}
}

const (
	referenceBegin = "<!-- config:begin -->\n"
	referenceEnd   = "<!-- config:end -->"
)

// README.md holds what `warmpath check --reference` prints. After a change:
// go test ./cmd/warmpath -run Reference -update.
func TestReference_IsInReadme(t *testing.T) {
	const file = "../../README.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), referenceBegin)
	got, after, ok2 := strings.Cut(rest, referenceEnd)
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines %s%s", file, referenceBegin, referenceEnd)
	}
	want := "\n" + configReference() + "\n"
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what `warmpath check --reference` prints; run: go test ./cmd/warmpath -run Reference -update", file)
	}
	if err := os.WriteFile(file, []byte(before+referenceBegin+want+referenceEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
