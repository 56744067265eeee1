package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/events"
)

const captures = "../../events/testdata/captures"

func TestReplay_CapturesAgainstTheEnginesPools(t *testing.T) {
	for file, want := range map[string]string{
		"sglang-0.5.23-default.jsonl": `{"after_seq":57,"truth":37,"held":37,"over":0,"under":0}
{"after_seq":107,"truth":40,"held":40,"over":0,"under":0}
{"after_seq":108,"truth":0,"held":0,"over":0,"under":0}
{"after_seq":165,"truth":35,"held":35,"over":0,"under":0}
{"messages":168,"trust":"exact","prefixes":811,"prefixes_over":0,"prefixes_under":0}
`,
		"vllm-0.19.1.jsonl": `{"after_seq":74,"truth":32,"held":32,"over":0,"under":0}
{"after_seq":139,"truth":32,"held":32,"over":0,"under":0}
{"after_seq":140,"truth":0,"held":0,"over":0,"under":0}
{"after_seq":213,"truth":31,"held":31,"over":0,"under":0}
{"messages":217,"trust":"exact","prefixes":811,"prefixes_over":0,"prefixes_under":0}
`,
		"vllm-0.30.0.jsonl": `{"after_seq":72,"truth":38,"held":38,"over":0,"under":0}
{"after_seq":135,"truth":38,"held":38,"over":0,"under":0}
{"after_seq":136,"truth":0,"held":0,"over":0,"under":0}
{"after_seq":206,"truth":38,"held":38,"over":0,"under":0}
{"messages":210,"trust":"exact","prefixes":811,"prefixes_over":0,"prefixes_under":0}
`,
	} {
		t.Run(file, func(t *testing.T) {
			code, got, faults := invoke(t, nil, "replay", filepath.Join(captures, file), "--json")
			if diff := cmp.Diff(want, got); diff != "" || code != exitOK || faults != "" {
				t.Errorf("exit code %d, stderr %q, output (-want +got):\n%s", code, faults, diff)
			}
		})
	}
}

// What the engine is said to hold is compared for what it is, not for what
// the events say.
func TestReplay_TellsWhatDiffers(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(captures, "vllm-0.30.0.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	truth := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, `{"truth"`) })
	var line struct {
		Truth struct {
			AfterSeq int               `json:"after_seq"`
			Blocks   []json.RawMessage `json:"blocks"`
		} `json:"truth"`
	}
	if err := json.Unmarshal([]byte(lines[truth]), &line); err != nil {
		t.Fatal(err)
	}
	line.Truth.Blocks = append(line.Truth.Blocks[2:], json.RawMessage(`[0,1]`))
	changed, err := json.Marshal(line)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "capture.jsonl")
	lines = append(slices.Clone(lines[:truth]), string(changed)+"\n")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	code, got, faults := invoke(t, nil, "replay", "--json", file)
	if want := `{"after_seq":72,"truth":37,"held":38,"over":2,"under":1}`; !strings.HasPrefix(got, want+"\n") {
		t.Errorf("got %s, want %s", got, want)
	}
	if code != exitFault || !strings.Contains(faults, "differs") {
		t.Errorf("exit code %d, stderr %q", code, faults)
	}
}

// A batch that is missing in a capture must not make the index hold too much.
func TestReplay_CaptureWithAHole(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(captures, "vllm-0.19.1.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Delete(strings.SplitAfter(string(raw), "\n"), 70, 72)
	file := filepath.Join(t.TempDir(), "capture.jsonl")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	_, got, _ := invoke(t, nil, "replay", "--json", file)
	var first, afterClear comparison
	printed := strings.Split(got, "\n")
	if err := json.Unmarshal([]byte(printed[0]), &first); err != nil {
		t.Fatalf("%v in %s", err, got)
	}
	if err := json.Unmarshal([]byte(printed[3]), &afterClear); err != nil {
		t.Fatal(err)
	}
	if first.Over != 0 || first.Under == 0 {
		t.Errorf("after the hole: %+v, want nothing over and something under", first)
	}
	if diff := cmp.Diff(comparison{AfterSeq: 213, Truth: 31, Held: 31}, afterClear); diff != "" {
		t.Errorf("after the engine's clear (-want +got):\n%s", diff)
	}
}

func TestDecode_Golden(t *testing.T) {
	code, got, faults := invoke(t, nil, "decode", "--hex", "testdata/events.hex")
	if code != exitOK || faults != "" {
		t.Errorf("exit code %d, stderr %q", code, faults)
	}
	want, err := os.ReadFile("testdata/events.golden")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDecode_Captures(t *testing.T) {
	keys := []string{"block_size", "group", "hashes", "kind", "lora", "medium", "parent", "rank", "salt", "skipped", "tier", "tokens", "type"}
	for file, want := range map[string]string{
		"sglang-0.5.23-default.jsonl": "cleared:2 removed:88 stored:164",
		"vllm-0.19.1.jsonl":           "cleared:1 removed:451 stored:172",
		"vllm-0.30.0.jsonl":           "cleared:1 removed:416 stored:171",
	} {
		t.Run(file, func(t *testing.T) {
			code, got, faults := invoke(t, nil, "decode", filepath.Join(captures, file))
			if code != exitOK || faults != "" {
				t.Fatalf("exit code %d, stderr %q", code, faults)
			}
			types := map[string]int{}
			for line := range strings.Lines(got) {
				var e map[string]any
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					t.Fatalf("%v in %s", err, line)
				}
				if diff := cmp.Diff(keys, slices.Sorted(maps.Keys(e))); diff != "" {
					t.Fatalf("keys (-want +got):\n%s", diff)
				}
				if e["skipped"] != "" {
					t.Errorf("skipped: %s", line)
				}
				types[e["type"].(string)]++
			}
			var tally []string
			for _, typ := range slices.Sorted(maps.Keys(types)) {
				tally = append(tally, fmt.Sprintf("%s:%d", typ, types[typ]))
			}
			if diff := cmp.Diff(want, strings.Join(tally, " ")); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecode_OnePayloadAsOnTheWire(t *testing.T) {
	raw, err := hex.DecodeString("93cb3ff80000000000009181a474797065b0416c6c426c6f636b73436c656172656400")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, got, _ := invoke(t, nil, "decode", file)
	want := `{"type":"cleared","hashes":[],"parent":null,"tokens":0,"block_size":0,"tier":"device","medium":"","lora":"","salt":"","group":0,"kind":"","rank":0,"skipped":""}` + "\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestEventTools_Faults(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	record, err := json.Marshal(events.Record{Live: events.Frames{nil, {1}, nil}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"decode"}, exitUsage, "FILE is missing"},
		{[]string{"decode", "a", "b"}, exitUsage, `"b" is one operand too many`},
		{[]string{"decode", "--hxe", "a"}, exitUsage, "--hxe: no such flag; did you mean --hex?"},
		{[]string{"decode", filepath.Join(dir, "none")}, exitFault, "no such file"},
		{[]string{"decode", write("empty", "")}, exitFault, "empty"},
		{[]string{"decode", write("hex", "93c09000\n")}, exitFault, "add --hex"},
		{[]string{"decode", "--hex", write("bad", "93c09000\nzz\n92\n")}, exitFault, "line 2: encoding/hex"},
		{[]string{"decode", "--hex", write("cut", "93c09000\n\n92\n")}, exitFault, "line 3: batch is not readable"},
		{[]string{"decode", write("json", `{"live":["zz"]}`)}, exitFault, "line 1: frame 0"},
		{[]string{"decode", write("frames", string(record))}, exitFault, "no sequence"},
		{[]string{"replay", write("other", `{}`)}, exitFault, "no object with meta, live, replay or truth"},
		{[]string{"replay", write("truth", `{"truth":{"after_seq":1,"blocks":[[300,1]]}}`)}, exitFault, "block [300,1]: group"},
		{[]string{"events"}, exitUsage, "tcp://HOST:PORT, is missing"},
		{[]string{"events", "127.0.0.1:1"}, exitFault, "use tcp://HOST:PORT"},
		{[]string{"events", "tcp://127.0.0.1:1", "--for", "-1s"}, exitUsage, "--for: -1s is negative"},
	} {
		t.Run(strings.Join(tt.args[:1], " ")+" "+tt.text, func(t *testing.T) {
			code, _, faults := invoke(t, nil, tt.args...)
			if code != tt.code || !strings.Contains(faults, tt.text) {
				t.Errorf("exit code %d, stderr %q; want %d and %q", code, faults, tt.code, tt.text)
			}
		})
	}
}

// An endpoint that is known by its topic needs somebody who listens.
func TestCheck_TopicNeedsListen(t *testing.T) {
	endpoint := `pool: {static: {endpoints: [{name: a, address: "10.0.0.1:8000", models: [m], topic: "kv@a@m"}]}}`
	code, _, faults := invoke(t, nil, "check", "--config", writeConfig(t, endpoint))
	if code != exitFault || !strings.Contains(faults, "events.listen: empty, but pool.static.endpoints[0].topic") {
		t.Errorf("exit code %d, %s", code, faults)
	}
	code, out, faults := invoke(t, nil, "check", "--config", writeConfig(t, endpoint), "--events.listen=tcp://127.0.0.1:5557")
	if code != exitOK || !strings.Contains(out, "1 with events") {
		t.Errorf("exit code %d, %s%s", code, out, faults)
	}
}

func TestEventTools_Help(t *testing.T) {
	for command, part := range map[string]string{"events": "--record FILE", "decode": "--hex", "replay": "--json"} {
		code, got, _ := invoke(t, nil, command, "--help")
		if code != exitOK || !strings.Contains(got, part) || !strings.Contains(got, "usage: warmpath "+command) {
			t.Errorf("%s --help: exit code %d, %s", command, code, got)
		}
		if _, all, _ := invoke(t, nil, "help"); !strings.Contains(all, "\n  "+command+" ") {
			t.Errorf("help does not list %s", command)
		}
	}
}
