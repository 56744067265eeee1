package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command runs gen and returns what it printed.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	failed := Run(t.Context(), args, out)
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), failed
}

func TestRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tools.jsonl.gz")
	made, err := command(t, "--workload", "tools", "--requests", "500", "--out", path)
	if err != nil {
		t.Fatal(err)
	}
	read, err := command(t, "--trace", path)
	if err != nil {
		t.Fatal(err)
	}
	if made != read {
		t.Errorf("made:\n%s\nread again:\n%s", made, read)
	}
	for _, want := range []string{"sha256", "500 in ", "cache tokens", "#"} {
		if !strings.Contains(made, want) {
			t.Errorf("no %q in\n%s", want, made)
		}
	}
	list, err := command(t, "--list")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range Presets() {
		if !strings.Contains(list, "\n"+s.Name+" ") || s.Doc == "" || s.Source == "" {
			t.Errorf("%s is not listed, or lacks a description or a source", s.Name)
		}
	}
}

func TestRun_Faults(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--workload", "agentik"}, `--workload "agentik": no such workload; did you mean agentic?`},
		{[]string{"--requests", "-1"}, "requests: -1"},
		{[]string{"--rate", "-1"}, "rate: -1"},
		{[]string{"chat"}, "chosen by --workload"},
		{[]string{"--trace", "no/such/file"}, "no such file"},
		{[]string{"--out", "no/such/folder/x"}, "no such file"},
	} {
		if _, err := command(t, c.args...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}
