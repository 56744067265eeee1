package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/routing/pool"
)

// valid is the smallest configuration that is valid.
const valid = `pool: {static: {endpoints: [{name: a, address: "10.0.0.1:8000", models: [m]}]}}
`

func TestParse_Values(t *testing.T) {
	for _, tt := range []struct {
		name  string
		yaml  string
		env   []string
		flags []override
		want  func(c *Config) // applied to what valid gives
	}{
		{name: "defaults", want: func(*Config) {}},
		{
			name: "file over default",
			yaml: "extproc: {listen: \"127.0.0.1:1\", decision_timeout: 1m30s, max_body_bytes: 0x100_000, response_headers: false}\ntokenizer: {endpoints: [\"http://t:1\", \"http://u:2\"]}",
			want: func(c *Config) {
				c.ExtProc.Listen, c.ExtProc.DecisionTimeout, c.ExtProc.MaxBodyBytes = "127.0.0.1:1", 90*time.Second, 1<<20
				c.ExtProc.ResponseHeaders = false
				c.Tokenizer.Endpoints = []string{"http://t:1", "http://u:2"}
			},
		},
		{
			name: "environment over file",
			yaml: "extproc: {listen: \"127.0.0.1:1\"}",
			env:  []string{"WARMPATH_EXTPROC_LISTEN=127.0.0.1:2", "WARMPATH_INDEX_MAX_BLOCKS=7", "PATH=/bin"},
			want: func(c *Config) { c.ExtProc.Listen, c.Index.MaxBlocks = "127.0.0.1:2", 7 },
		},
		{
			name:  "flag over environment",
			env:   []string{"WARMPATH_EXTPROC_LISTEN=127.0.0.1:2", "WARMPATH_TOKENIZER_ENDPOINTS=http://t:1"},
			flags: []override{{"extproc.listen", "127.0.0.1:3"}, {"tokenizer.endpoints", "http://u:1, http://v:1"}, {"extproc.response_headers", "false"}},
			want: func(c *Config) {
				c.ExtProc.Listen, c.ExtProc.ResponseHeaders = "127.0.0.1:3", false
				c.Tokenizer.Endpoints = []string{"http://u:1", "http://v:1"}
			},
		},
		{
			name:  "a later flag over a wrong one",
			flags: []override{{"extproc.decision_timeout", "3s"}, {"extproc.decision_timeout", "4s"}},
			want:  func(c *Config) { c.ExtProc.DecisionTimeout = 4 * time.Second },
		},
		{
			name: "an empty list by environment",
			yaml: "tokenizer: {endpoints: [\"http://t:1\"]}",
			env:  []string{"WARMPATH_TOKENIZER_ENDPOINTS="},
			want: func(*Config) {},
		},
		{name: "null keeps the default", yaml: "extproc:\nadmin: {listen: }\nlog: ~", want: func(*Config) {}},
		{
			name: "aliases",
			yaml: "log: {level: &l warn, format: text}\nrouting: {strategy: random}\nadmin: {listen: &a \"127.0.0.1:5\"}\nenvoy: {listen: \"127.0.0.1:6\", router: *a}",
			want: func(c *Config) {
				c.Log.Level, c.Routing.Strategy = "warn", "random"
				c.Admin.Listen, c.Envoy.Listen, c.Envoy.Router = "127.0.0.1:5", "127.0.0.1:6", "127.0.0.1:5"
			},
		},
		{
			name: "variables of Kubernetes and of tests are not settings",
			env: []string{
				"WARMPATH_SERVICE_HOST=10.96.0.7", "WARMPATH_SERVICE_PORT=9002", "WARMPATH_SERVICE_PORT_EXT_PROC=9002",
				"WARMPATH_PORT=tcp://10.96.0.7:9002", "WARMPATH_PORT_9002_TCP=tcp://10.96.0.7:9002", "WARMPATH_PORT_9002_TCP_PROTO=tcp",
				"WARMPATH_PORT_9002_TCP_PORT=9002", "WARMPATH_PORT_9002_TCP_ADDR=10.96.0.7",
				"WARMPATH_ADMIN_SERVICE_HOST=10.96.0.8", "WARMPATH_ADMIN_PORT=tcp://10.96.0.8:9090", "WARMPATH_TEST_ENVOY=/envoy",
			},
			want: func(*Config) {},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := mustParse(t, valid)
			tt.want(&want)
			got, err := parse("w.yaml", []byte(valid+tt.yaml), tt.env, tt.flags)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParse_Faults(t *testing.T) {
	for _, tt := range []struct {
		name  string
		yaml  string
		env   []string
		flags []override
		want  string
	}{
		{
			name: "unknown keys, with a suggestion or all that is known",
			yaml: valid + "log: {\n  levl: debug,\n  zzzzzzzz: 1}\nextprok: {}",
			want: `w.yaml:3: log.levl: no such key; did you mean level?
w.yaml:4: log.zzzzzzzz: no such key; known here: level, format
w.yaml:5: extprok: no such key; did you mean extproc?`,
		},
		{
			name: "a misspelt key hides the fault it would cause",
			yaml: "pool:\n  static:\n    endpoints:\n    - name: a\n      adress: 10.0.0.1:8000",
			want: `w.yaml:5: pool.static.endpoints[0].adress: no such key; did you mean address?`,
		},
		{
			name: "wrong shapes",
			yaml: valid + "log: x\nrouting: [a]\ntokenizer: {endpoints: http://a, budget: {a: b}}\nadmin: {listen: !!binary aGVsbG8=}",
			want: `w.yaml:2: log: "x", where keys are expected (level, format)
w.yaml:3: routing: a list, where keys are expected (strategy, lock, profiles, default_profile, fallbacks, decisions, prefix_cache, queue)
w.yaml:4: tokenizer.endpoints: "http://a", where a list is expected, [one, two]
w.yaml:4: tokenizer.budget: a mapping, where one value is expected
w.yaml:5: admin.listen: !!binary is not supported; write the value itself`,
		},
		{
			name: "wrong values",
			yaml: valid + "extproc:\n  decision_timeout: 2\n  max_body_bytes: 1e6\n  response_headers: perhaps\n  drain_delay: soon\n",
			want: `w.yaml:3: extproc.decision_timeout: "2" has no unit; use for example 2s or 2ms
w.yaml:4: extproc.max_body_bytes: "1e6" is not a whole number that fits
w.yaml:5: extproc.response_headers: "perhaps" is neither true nor false
w.yaml:6: extproc.drain_delay: "soon" is not a duration; use for example 500ms, 2s or 1m30s`,
		},
		{
			name: "twice, and merged",
			yaml: valid + "log: {level: info}\nlog: {level: warn}\nadmin: {<<: {listen: x}}",
			want: `w.yaml:3: log: set before, in line 2; remove one of them
w.yaml:4: admin: keys must be plain words; merging with << is not supported`,
		},
		{
			name: "not YAML",
			yaml: "pool: {\n  static: ]",
			want: "w.yaml:1: not YAML: did not find expected node content",
		},
		{
			name: "two documents",
			yaml: valid + "---\nlog: {level: info}",
			want: "w.yaml:2: a second document (---); write one document a file",
		},
		{
			name: "an alias inside itself",
			yaml: valid + "pool2: &a [*a]\ntokenizer: {endpoints: &b [*b]}",
			want: `w.yaml:2: pool2: no such key; did you mean pool?
w.yaml:3: tokenizer.endpoints[0]: a list, where one value is expected`,
		},
		{
			name: "nothing configured",
			yaml: "",
			want: "w.yaml: pool.static.endpoints: empty; list at least one endpoint, or let them be found: set file.path, or kubernetes.pod_selector, services or inference_pools",
		},
		{
			name: "faults of every section, found by their packages",
			yaml: "pool: {static: {endpoints: [\n  {name: a, address: \"h:1\"},\n  {name: a, address: \"10.0.0.1:1\", events: \"ipc://x\"}]},\n  health: {path: x}}\n" +
				"extproc: {listen: x}\nrouting: {strategy: fastest}\ntokenizer: {endpoints: [\n  \"http://ok:1\",\n  \"nope\"]}\nindex: {max_blocks: -1}\nevents: {replays: 0}\nlog: {level: loud, format: xml}\n" +
				"admin: {listen: \":9\"}\nenvoy: {listen: x, router: y, message_timeout: -1s}\n",
			want: `w.yaml:2: pool.static.endpoints[0].address: "h:1" is not ip:port; use for example 10.0.0.7:8000 (Envoy's override takes no host names)
w.yaml:3: pool.static.endpoints[1].events: "ipc://x" is not a TCP endpoint; use tcp://HOST:PORT
w.yaml:3: pool.static.endpoints[1].name: "a" is also the name of static.endpoints[0]; names must be unique
w.yaml:4: pool.health.path: "x" does not start with a slash; use for example /health
w.yaml:5: extproc.listen: "x" is not host:port; use for example 127.0.0.1:9002, or unix:PATH
w.yaml:6: routing.strategy: "fastest" is not a strategy; use one of consistent-hash, least-busy-time, least-gpu-cache, least-kv-cache, least-latency, least-request, least-utilization, lora-affinity, power-of-two, prefix-cache, queue, random, round-robin, session-affinity, throughput
w.yaml:9: tokenizer.endpoints[1]: "nope" is not an http URL; use for example http://10.0.0.7:8000
w.yaml:10: index.max_blocks: -1 is negative; use 0 for the default of 4194304
w.yaml:11: events.replays: 0 allows no replay; use 1 or more
w.yaml:12: log.level: "loud" is unknown; use one of debug, info, warn, error
w.yaml:12: log.format: "xml" is unknown; use one of text, json
w.yaml:13: admin.listen: ":9" names no address; use 127.0.0.1:9 for this machine only or 0.0.0.0:9 for all interfaces
w.yaml:14: envoy.listen: "x" is not ip:port; use for example 127.0.0.1:9090
w.yaml:14: envoy.router: "y" is not host:port; use for example 127.0.0.1:9002
w.yaml:14: envoy.message_timeout: -1s is negative; use 0s for the default`,
		},
		{
			name: "unknown variables and flags",
			yaml: valid,
			env:  []string{"WARMPATH_EXTPROC_LISTN=x", "WARMPATH_ADMIN_PORT=9090", "WARMPATH_SERVICE_HOST=me", "WARMPATH_POOL_STATIC_ENDPOINTS=x"},
			flags: []override{
				{"extproc.listn", "x"},
			},
			want: `WARMPATH_ADMIN_PORT: no such setting; did you mean WARMPATH_ADMIN_LISTEN?
WARMPATH_EXTPROC_LISTN: no such setting; did you mean WARMPATH_EXTPROC_LISTEN?
WARMPATH_POOL_STATIC_ENDPOINTS: no such setting; did you mean WARMPATH_RELAY_ENDPOINT?
WARMPATH_SERVICE_HOST: no such setting
--extproc.listn: no such setting; did you mean extproc.listen?`,
		},
		{
			name:  "wrong values point to where they come from",
			yaml:  valid + "log: {level: loud}",
			env:   []string{"WARMPATH_LOG_LEVEL=louder", "WARMPATH_EXTPROC_DECISION_TIMEOUT=3"},
			flags: []override{{"log.format", "xml"}},
			want: `WARMPATH_EXTPROC_DECISION_TIMEOUT: extproc.decision_timeout: "3" has no unit; use for example 3s or 3ms
WARMPATH_LOG_LEVEL: log.level: "louder" is unknown; use one of debug, info, warn, error
--log.format: "xml" is unknown; use one of text, json`,
		},
		{
			name: "one port for two",
			yaml: valid + "extproc: {listen: \":1\"}\nadmin: {listen: \"127.0.0.1:1\"}\nenvoy: {listen: \"[::1]:2\", admin: \"[::1]:2\"}",
			want: `w.yaml:3: admin.listen: "127.0.0.1:1" is taken by extproc.listen (":1"); use another port
w.yaml:4: envoy.admin: "[::1]:2" is taken by envoy.listen ("[::1]:2"); use another port`,
		},
		{
			name: "a pool of ourselves",
			yaml: "pool: {static: {endpoints: [{name: a, address: \"127.0.0.1:8080\"}]}}",
			want: `w.yaml:1: pool.static.endpoints[0].address: "127.0.0.1:8080" is envoy.listen, not an engine; use the address the engine listens on`,
		},
		{
			name: "timeouts that contradict each other",
			yaml: valid + "extproc: {decision_timeout: 400ms}\nenvoy: {message_timeout: 400ms}",
			want: `w.yaml: tokenizer.budget: 500ms leaves nothing of extproc.decision_timeout (400ms) to fall back when no tokenizer answers; use less than 400ms
w.yaml:3: envoy.message_timeout: 400ms is not above extproc.decision_timeout (400ms), so Envoy would answer 504 before the router decides; use 1.4s, or 0s for the default`,
		},
		{
			name: "a queue that Envoy does not wait for",
			yaml: valid + "routing: {queue: {max_in_flight: 4, deadline: 10s}}\nenvoy: {message_timeout: 12s}",
			want: `w.yaml:3: envoy.message_timeout: 12s is not above extproc.decision_timeout and routing.queue.deadline together (12s), so Envoy would answer 504 while requests wait for room; use 13s, or 0s for the default`,
		},
		{
			name: "a queue without a limit",
			yaml: valid + "routing: {strategy: queue}",
			want: `w.yaml:2: routing.strategy: queue without routing.queue.max_in_flight lets no request wait; set it to how many requests an endpoint may run at a time`,
		},
		{
			name: "events without any tokenizer",
			yaml: "pool: {static: {endpoints: [{name: a, address: \"10.0.0.1:1\", events: \"tcp://10.0.0.1:2\"}]}}\ntokenizer: {disabled: true}",
			want: `w.yaml:2: tokenizer.disabled: true, but pool.static.endpoints[0] has events, which speak of token ids, and prompts are text; use disabled: false, or remove events from every endpoint`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse("w.yaml", []byte(tt.yaml), tt.env, tt.flags)
			if err == nil {
				t.Fatal("no error")
			}
			got := err.Error()
			if diff := cmp.Diff(strings.Split(tt.want, "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestConfig_Warnings(t *testing.T) {
	cfg := mustParse(t, `pool: {static: {endpoints: [
  {name: a, address: "10.0.0.1:1", models: [m], events: "tcp://10.0.0.1:2", replay: "tcp://10.0.0.1:3"},
  {name: b, address: "10.0.0.2:1", models: [m], events: "tcp://10.0.0.2:2", replay: "tcp://10.0.0.2:3"}]}}`)
	if ws := cfg.Warnings(); len(ws) > 0 {
		t.Errorf("warnings about a sound configuration: %q", ws)
	}
	for _, tt := range []struct {
		name   string
		change func(c *Config)
		want   []string // a part of each warning
	}{
		{"no replay", func(c *Config) { c.Pool.Static.Endpoints[1].Replay = "" }, []string{`endpoints[1].replay: empty`}},
		{"no events", func(c *Config) {
			for i := range c.Pool.Static.Endpoints {
				c.Pool.Static.Endpoints[i].Events = ""
			}
		}, []string{"routing.strategy: prefix-cache, but no endpoint has events"}},
		{"two models", func(c *Config) { c.Pool.Static.Endpoints[1].Models = []string{"other"} }, []string{"pool.static.endpoints: 2 base models in one pool: while this router is down Envoy keeps only those requests"}},
		{"two models and no header", func(c *Config) {
			c.Pool.Static.Endpoints[1].Models, c.Envoy.ModelHeader = []string{"other"}, ""
		}, []string{"envoy.model_header: empty, with 2 base models"}},
		{"a model that is learned", func(c *Config) { c.Pool.Static.Endpoints[1].Models = nil }, []string{"some list their models and some do not"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := cfg
			c.Pool.Static.Endpoints = append([]pool.Spec(nil), cfg.Pool.Static.Endpoints...)
			tt.change(&c)
			got := c.Warnings()
			if len(got) != len(tt.want) {
				t.Fatalf("got %d warnings %q, want %d", len(got), got, len(tt.want))
			}
			for i := range got {
				if !strings.Contains(got[i], tt.want[i]) {
					t.Errorf("got %q, want one with %q", got[i], tt.want[i])
				}
			}
		})
	}
}

// What check --print prints is the same configuration again.
func TestParse_ReadsWhatMarshalWrites(t *testing.T) {
	words := []string{"", "a", "yes", "~", "null", "0x10", "1e3", "a: b", "- c", "#d", "é\n", "2001-01-01", "<<", "*x", "12:30:45"}
	rapid.Check(t, func(t *rapid.T) {
		want := mustParse(t, valid)
		for _, s := range settings(&want) {
			if !s.Loose || rapid.Bool().Draw(t, "keep "+s.Key) {
				continue
			}
			text := rapid.SampledFrom(words).Draw(t, s.Key)
			if setText(s.Value, text) != nil {
				_ = setText(s.Value, rapid.SampledFrom([]string{"true", "3", "3s"}).Draw(t, "typed "+s.Key))
			}
		}
		want.Pool.Static.Endpoints[0].Labels = rapid.MapOf(rapid.SampledFrom(words), rapid.SampledFrom(words)).Draw(t, "labels")
		b, err := yaml.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse("w.yaml", b, nil, nil)
		for _, f := range asFaults(err) { // of meaning, perhaps: values are random
			if !strings.HasPrefix(f.text, "pool.static") && strings.Contains(want.Validate().Error(), f.text) {
				continue
			}
			t.Fatalf("%s\n%s", f.text, b)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("-want +got:\n%s\n%s", diff, b)
		}
	})
}

// The yaml package's own decoder is the model: what it and we accept, we read
// alike.
func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte("extproc: {decision_timeout: 5s, max_body_bytes: 010, response_headers: on}\nlog:\n- a\n"))
	f.Add([]byte("tokenizer: {endpoints: &a [*a]}\nindex: {<<: {max_blocks: 1}}\npool: {static: {endpoints: [{labels: {a: b, ? [c] : d}}]}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := &loader{file: "f", origin: map[string]fault{}, broken: map[string]bool{}}
		got := DefaultConfig()
		l.readYAML(data, &got)
		if len(l.faults) > 0 {
			return
		}
		want := DefaultConfig()
		dec := yaml.NewDecoder(bytes.NewReader(data))
		dec.KnownFields(true)
		if err := dec.Decode(&want); err != nil {
			return
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestUnjoin(t *testing.T) {
	a, b, c := errors.New("a"), errors.New("b"), errors.New("c")
	both := errors.Join(a, errors.Join(b, nil, c))
	if diff := cmp.Diff([]error{a, b, c}, unjoin(both), cmpopts.EquateErrors()); diff != "" {
		t.Error(diff)
	}
	if unjoin(nil) != nil {
		t.Error("something from nothing")
	}
}

func TestDistance(t *testing.T) {
	alphabet := rapid.StringOfN(rapid.SampledFrom([]rune("abc")), 0, 6, -1)
	rapid.Check(t, func(t *rapid.T) {
		a, b := alphabet.Draw(t, "a"), alphabet.Draw(t, "b")
		if got, want := distance(a, b), slowDistance(a, b); got != want {
			t.Fatalf("distance(%q, %q) = %d, want %d", a, b, got, want)
		}
	})
	for _, tt := range []struct{ word, want string }{
		{"lsiten", "listen"}, {"listen", "listen"}, {"address", ""}, {"l", ""}, {"", ""},
	} {
		if got := nearest(tt.word, []string{"admin", "listen", "replay"}); got != tt.want {
			t.Errorf("nearest(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

// slowDistance is the definition, from the ends of both words.
func slowDistance(a, b string) int {
	if a == "" || b == "" {
		return len(a) + len(b)
	}
	la, lb := a[len(a)-1], b[len(b)-1]
	sub := slowDistance(a[:len(a)-1], b[:len(b)-1])
	if la != lb {
		sub++
	}
	d := min(sub, slowDistance(a[:len(a)-1], b)+1, slowDistance(a, b[:len(b)-1])+1)
	if len(a) > 1 && len(b) > 1 && la == b[len(b)-2] && lb == a[len(a)-2] {
		d = min(d, slowDistance(a[:len(a)-2], b[:len(b)-2])+1)
	}
	return d
}

type fataler interface {
	Helper()
	Fatal(args ...any)
}

func mustParse(t fataler, text string) Config {
	t.Helper()
	cfg, err := parse("test.yaml", []byte(text), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Discovery is checked together with the rest.
func TestParse_Discovery(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"pool: {kubernetes: {pod_selector: app=vllm}}", ""},
		{"pool: {kubernetes: {pod_selector: app=vllm, topic: \"kv@{pod}@{model}\"}}", "events.listen: empty, but pool.kubernetes.topic"},
		{"events: {listen: \"tcp://*:5557\"}\npool: {kubernetes: {pod_selector: app=vllm, topic: \"kv@{pod}@{model}\"}}", ""},
		{"pool: {kubernetes: {services: [a, a/b/c]}}", "w.yaml:1: pool.kubernetes.services[1]: \"a/b/c\" has no valid name"},
		{"pool: {file: {path: /nowhere/e.yaml}}", "w.yaml:1: pool.file.path: open /nowhere/e.yaml: no such file"},
	} {
		_, err := parse("w.yaml", []byte(tt.text), nil, nil)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error %v, want %q", tt.text, err, tt.want)
		}
	}
	cfg, err := parse("w.yaml", []byte("pool: {kubernetes: {pod_selector: app=vllm, namespaces: [llm], inference_pools: [p]}}"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := cfg.summary(); !strings.Contains(s, "pods with app=vllm; InferencePools p, in namespaces llm of Kubernetes\n") || len(cfg.Warnings()) > 0 {
		t.Errorf("summed up as\n%s%v", s, cfg.Warnings())
	}
}
