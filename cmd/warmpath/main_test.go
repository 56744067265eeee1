package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// invoke runs the program and returns what it printed.
func invoke(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = dispatch(t.Context(), process{args: args, env: env, stdout: &out, stderr: &errOut})
	return code, out.String(), errOut.String()
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "w.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDispatch(t *testing.T) {
	good, bad := writeConfig(t, valid), writeConfig(t, "log: {level: loud}\n")
	replayless := writeConfig(t, `pool: {static: {endpoints: [{name: a, address: "10.0.0.1:8000", models: [m], events: "tcp://10.0.0.1:1"}]}}`)
	for _, tt := range []struct {
		name   string
		args   []string
		env    []string
		code   int
		stdout []string // parts of it, in order; none: nothing is printed
		stderr []string
	}{
		{name: "nothing", code: exitUsage, stderr: []string{"usage: warmpath COMMAND"}},
		{name: "help", args: []string{"help"}, stdout: []string{"usage: warmpath COMMAND", "envoy-config"}},
		{name: "-h", args: []string{"-h"}, stdout: []string{"usage: warmpath COMMAND"}},
		{name: "--help", args: []string{"--help"}, stdout: []string{"usage: warmpath COMMAND"}},
		{name: "version", args: []string{"--version"}, stdout: []string{"warmpath ", "go1."}},
		{name: "misspelt", args: []string{"serv"}, code: exitUsage, stderr: []string{`"serv" is not a command; did you mean serve?`, "usage:"}},
		{name: "unknown", args: []string{"quux"}, code: exitUsage, stderr: []string{"\"quux\" is not a command\n"}},
		{name: "no file", args: []string{"check"}, code: exitUsage, stderr: []string{"--config is missing", "warmpath check --help"}},
		{name: "missing file", args: []string{"check", "--config", "/nowhere/w.yaml"}, code: exitFault, stderr: []string{"--config: open /nowhere/w.yaml: no such file"}},
		{name: "misspelt flag", args: []string{"check", "--confg", good}, code: exitUsage, stderr: []string{"--confg: no such flag; did you mean --config?"}},
		{name: "flag without a value", args: []string{"check", "--config"}, code: exitUsage, stderr: []string{"flag needs an argument"}},
		{name: "stray word", args: []string{"check", "--config", good, "random"}, code: exitUsage, stderr: []string{`"random" is not expected here`}},
		{name: "flags of a command", args: []string{"serve", "--help"}, stdout: []string{"Runs the router", "--config", "--extproc.listen=127.0.0.1:9002\n        host:port", "--log.level=info"}},
		{
			name: "check", args: []string{"check", "--config", good, "--routing.strategy=random"},
			stdout: []string{"extproc    127.0.0.1:9002, decides within 2s, bodies up to 32 MiB\n", "envoy      127.0.0.1:8080, reaches the router at 127.0.0.1:9002 and waits 3s", "routing    random, with 2 endpoints after", "1 endpoint, 0 with events, 0 with replay, for m\n"},
		},
		{name: "check warns", args: []string{"check", "--config", replayless}, stdout: []string{"1 endpoint, 1 with events", "warning: pool.static.endpoints[0].replay: empty", "--kv-events-config", "replay_endpoint"}},
		{
			name: "check finds all faults", args: []string{"check", "--config", bad, "--admin.listen=x"}, env: []string{"WARMPATH_TYPO=1"},
			code: exitFault, stderr: []string{"WARMPATH_TYPO: no such setting", `--admin.listen: "x"`, "pool.static.endpoints: empty", `w.yaml:1: log.level: "loud"`, "4 faults\n"},
		},
		{name: "bool flag without a value", args: []string{"check", "--print", "--config", good, "--tokenizer.disabled"}, stdout: []string{"disabled: true"}},
		{name: "print", args: []string{"check", "--config", good, "--print"}, stdout: []string{"extproc:\n    listen: 127.0.0.1:9002\n", "address: 10.0.0.1:8000\n"}},
		{name: "reference", args: []string{"check", "--reference"}, stdout: []string{"| key | default | what |", "| `extproc.listen` | `127.0.0.1:9002` |"}},
		{name: "envoy-config", args: []string{"envoy-config", "--config", good}, stdout: []string{"static_resources:", `{address: "10.0.0.1", port_value: 8000}`}},
		{name: "envoy-config of a free port", args: []string{"envoy-config", "--config", good, "--extproc.listen=127.0.0.1:0"}, code: exitFault, stderr: []string{`extproc.listen: "127.0.0.1:0" has no port from 1 to 65535`}},
		{name: "serve refuses what check refuses", args: []string{"serve", "--config", bad}, code: exitFault, stderr: []string{"pool.static.endpoints: empty", `w.yaml:1: log.level`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := invoke(t, tt.env, tt.args...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			wantParts(t, "stdout", stdout, tt.stdout)
			wantParts(t, "stderr", stderr, tt.stderr)
		})
	}
}

func wantParts(t *testing.T, stream, got string, parts []string) {
	t.Helper()
	if len(parts) == 0 && got != "" {
		t.Errorf("%s: %q, want nothing", stream, got)
	}
	rest := got
	for _, p := range parts {
		_, after, ok := strings.Cut(rest, p)
		if !ok {
			t.Fatalf("%s lacks %q, or has it in another place:\n%s", stream, p, got)
		}
		rest = after
	}
}

func TestReadSeed(t *testing.T) {
	for _, tt := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{"0123456789abcdef", 0x0123456789abcdef, true},
		{"FFFFFFFFFFFFFFFF\n", 1<<64 - 1, true},
		{"123", 0, false},
		{"0123456789abcdef0", 0, false},
		{"0x23456789abcdef", 0, false},
		{"", 0, false},
	} {
		file := writeConfig(t, tt.text)
		got, err := readSeed(file)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("readSeed of %q = %#x, %v", tt.text, got, err)
		}
		if err != nil && tt.text != "" && strings.Contains(err.Error(), tt.text) {
			t.Errorf("the error shows the seed: %v", err)
		}
	}
	cfg := mustParse(t, valid)
	cfg.Index.SeedFile = "/nowhere/seed"
	if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), "index.seed_file: open /nowhere/seed: ") {
		t.Errorf("a missing seed file gives %v", err)
	}
}
