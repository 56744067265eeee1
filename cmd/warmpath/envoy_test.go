package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/warmpath/warmpath/extproc"
)

const twoEngines = `pool: {health: {interval: 200ms}, static: {endpoints: [
  {name: engine-0, address: "127.0.0.1:8001", models: [demo]},
  {name: "engine \"1\"", address: "[::1]:8002", models: [demo]}]}}
`

// manyModels has models and adapters of which not every engine serves all.
const manyModels = `pool: {static: {endpoints: [
  {name: a, address: "127.0.0.1:8001", models: [org/llama-3.1, llama], adapters: [sql]},
  {name: b, address: "127.0.0.1:8002", models: [org/llama-3.1, llama], adapters: [sql, "c++"]},
  {name: c, address: "127.0.0.1:8003", models: [qwen]},
  {name: d, address: "127.0.0.1:8004"}]}}
`

func TestModelClusters(t *testing.T) {
	show := func(cfg Config) (lines []string) {
		routes, clusters := modelClusters(cfg.Pool.Static.Endpoints)
		for i, c := range clusters {
			line := c.Name + ":"
			for _, e := range c.Engines {
				line += " " + e.Name
			}
			if i > 0 {
				line += " for " + routes[i-1].Pattern()
				if routes[i-1].Cluster != c.Name {
					t.Errorf("route %d goes to %s", i-1, routes[i-1].Cluster)
				}
			}
			lines = append(lines, line)
		}
		return lines
	}
	want := []string{
		"engines: a b c d",
		`engines/org/llama-3.1: a b d for org/llama-3\.1|llama|sql`,
		`engines/c++: b d for c\+\+`,
		"engines/qwen: c d for qwen",
	}
	if diff := cmp.Diff(want, show(mustParse(t, manyModels))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{`engines: engine-0 engine "1"`}, show(mustParse(t, twoEngines))); diff != "" {
		t.Errorf("one model: -want +got:\n%s", diff)
	}
}

func TestEnvoyBootstrap_Golden(t *testing.T) {
	for _, tt := range []struct {
		file, text string
	}{
		{"bootstrap.golden.yaml", twoEngines},
		{"bootstrap.duplex.golden.yaml", twoEngines + "envoy: {body_mode: full_duplex_streamed}\n"},
		{"bootstrap.models.golden.yaml", manyModels},
		{"bootstrap.names.golden.yaml", manyModels + "envoy: {engines: [\"engines.default.svc:8000\", \"engines.default.svc:8001\"]}\n"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			got, err := envoyBootstrap(mustParse(t, tt.text))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tt.file)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("after a wanted change: go test ./cmd/warmpath -run Golden -update\n-want +got:\n%s", diff)
			}
		})
	}
}

func TestEnvoyBootstrap_FollowsConfig(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(c *Config)
		path   []any // into the bootstrap
		want   string
	}{
		{"buffer", func(c *Config) { c.ExtProc.MaxBodyBytes = 12345 }, []any{"static_resources", "listeners", 0, "per_connection_buffer_limit_bytes"}, "12345"},
		{"message timeout by default", func(c *Config) { c.ExtProc.DecisionTimeout = 1500 * time.Millisecond }, extProcPath("message_timeout"), "2.5s"},
		{"message timeout with a queue", func(c *Config) { c.Routing.Queue.MaxInFlight, c.Routing.Queue.Deadline = 1, 7*time.Second }, extProcPath("message_timeout"), "10s"},
		{"message timeout", func(c *Config) { c.Envoy.MessageTimeout = 7 * time.Second }, extProcPath("message_timeout"), "7s"},
		{"retries walk the list", func(c *Config) { c.Routing.Fallbacks = 4 }, retryPath("num_retries"), "4"},
		{"a retry without a list", func(c *Config) { c.Routing.Fallbacks = 0 }, retryPath("num_retries"), "1"},
		{"router on all interfaces", func(c *Config) { c.ExtProc.Listen = "0.0.0.0:9" }, routerPath("socket_address", "address"), "127.0.0.1"},
		{"router on any IPv6 interface", func(c *Config) { c.ExtProc.Listen = "[::]:9" }, routerPath("socket_address", "address"), "::1"},
		{"router on a port", func(c *Config) { c.ExtProc.Listen = ":9" }, routerPath("socket_address", "address"), "127.0.0.1"},
		{"router on a socket", func(c *Config) { c.ExtProc.Listen = "unix:/run/w.sock" }, routerPath("pipe", "path"), "/run/w.sock"},
		{"router elsewhere", func(c *Config) { c.Envoy.Router = "router.example:9" }, routerPath("socket_address", "address"), "router.example"},
		{"router by name", func(c *Config) { c.Envoy.Router = "router.example:9" }, []any{"static_resources", "clusters", 0, "type"}, "STRICT_DNS"},
		{"router by address", func(*Config) {}, []any{"static_resources", "clusters", 0, "type"}, "STATIC"},
		{"engines are probed as we do", func(c *Config) { c.Pool.Health.Path = "/up" }, []any{"static_resources", "clusters", 1, "health_checks", 0, "http_health_check", "path"}, "/up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := mustParse(t, twoEngines)
			tt.change(&cfg)
			b, err := envoyBootstrap(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(lookup(t, b, tt.path)); got != tt.want {
				t.Errorf("%v is %q, want %q", tt.path, got, tt.want)
			}
		})
	}
}

func TestEnvoyBootstrap_NoEngines(t *testing.T) {
	cfg := mustParse(t, twoEngines)
	cfg.Pool.Static.Endpoints = nil
	if _, err := envoyBootstrap(cfg); err == nil || !strings.HasPrefix(err.Error(), "envoy.engines: empty") {
		t.Errorf("no engines at all give %v", err)
	}
	cfg.Envoy.Engines = []string{"engines.default.svc:8000"}
	if _, err := envoyBootstrap(cfg); err != nil {
		t.Errorf("engines behind a name give %v", err)
	}
	for _, bad := range []string{"", "engines", "10.0.0.7:8000", "unix:/run/e.sock", "engines:0", "http://engines:8000"} {
		if _, err := parse("w.yaml", []byte(valid+"envoy: {engines: ["+fmt.Sprintf("%q", bad)+"]}"), nil, nil); err == nil || !strings.Contains(err.Error(), "w.yaml:2: envoy.engines[0]: ") {
			t.Errorf("envoy.engines %q gives %v", bad, err)
		}
	}
}

// The bootstrap is written to a file where there is no shell to redirect it.
func TestEnvoyConfig_Output(t *testing.T) {
	config, out := writeConfig(t, twoEngines), filepath.Join(t.TempDir(), "envoy.yaml")
	var stdout, stderr bytes.Buffer
	p := process{args: []string{"envoy-config", "--config", config, "--output", out}, stdout: &stdout, stderr: &stderr}
	if code := dispatch(t.Context(), p); code != exitOK || stdout.Len() > 0 {
		t.Fatalf("exit code %d, %s%s", code, &stdout, &stderr)
	}
	want, err := envoyBootstrap(mustParse(t, twoEngines))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: wrote %d bytes, want %d", err, len(got), len(want))
	}
	p.args = []string{"envoy-config", "--config", config, "--output", filepath.Join(out, "x")}
	if code := dispatch(t.Context(), p); code != exitFault || !strings.Contains(stderr.String(), "envoy.yaml") {
		t.Errorf("a file that cannot be written: exit code %d, %s", code, &stderr)
	}
}

func managerPath(rest ...any) []any {
	return append([]any{"static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config"}, rest...)
}

func extProcPath(rest ...any) []any {
	return append(managerPath("http_filters", 0, "typed_config"), rest...)
}

func retryPath(rest ...any) []any {
	return append(managerPath("route_config", "virtual_hosts", 0, "retry_policy"), rest...)
}

func routerPath(rest ...any) []any {
	return append([]any{"static_resources", "clusters", 0, "load_assignment", "endpoints", 0, "lb_endpoints", 0, "endpoint", "address"}, rest...)
}

func lookup(t *testing.T, document []byte, path []any) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(document, &v); err != nil {
		t.Fatal(err)
	}
	for _, p := range path {
		switch p := p.(type) {
		case string:
			v = v.(map[string]any)[p]
		case int:
			v = v.([]any)[p]
		}
	}
	return v
}

// testEnvoy returns the Envoy to test with: the one that is named, which must
// work, or else the one that `make envoy` has installed.
func testEnvoy(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("WARMPATH_TEST_ENVOY")
	if binary == "" {
		installed, err := filepath.Glob("../../.venv/envoy-[0-9]*")
		if err != nil || len(installed) == 0 {
			t.Skip("no Envoy: run `make envoy`, or set WARMPATH_TEST_ENVOY to the path of an envoy binary")
		}
		binary = installed[len(installed)-1]
	}
	if out, err := exec.CommandContext(t.Context(), binary, "--version").CombinedOutput(); err != nil {
		t.Fatalf("%s --version: %v\n%s", binary, err, out)
	}
	return binary
}

func TestEnvoyBootstrap_IsAccepted(t *testing.T) {
	binary := testEnvoy(t)
	for _, tt := range []struct {
		name   string
		change func(c *Config)
	}{
		{"defaults", func(*Config) {}},
		{"socket", func(c *Config) { c.ExtProc.Listen = "unix:/run/w.sock" }},
		{"name", func(c *Config) { c.Envoy.Router = "localhost:9002" }},
		{"models", func(c *Config) { c.Pool.Static.Endpoints = mustParse(t, manyModels).Pool.Static.Endpoints }},
		{"models without a header", func(c *Config) {
			c.Pool.Static.Endpoints, c.Envoy.ModelHeader = mustParse(t, manyModels).Pool.Static.Endpoints, ""
		}},
		{"duplex", func(c *Config) { c.Envoy.BodyMode = bodyDuplex }},
		{"engines by name", func(c *Config) { c.Envoy.Engines = []string{"localhost:8001", "localhost:8002"} }},
		{"odd values", func(c *Config) {
			c.Pool.Health.Path = "/a \"b\": {{#é"
			c.Pool.Health.Interval, c.Envoy.MessageTimeout = 1234567*time.Microsecond, 2*time.Minute
			c.Envoy.Listen, c.Envoy.Admin = "[::]:8080", "0.0.0.0:9901"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := mustParse(t, twoEngines)
			tt.change(&cfg)
			b, err := envoyBootstrap(cfg)
			if err != nil {
				t.Fatal(err)
			}
			file := writeConfig(t, string(b))
			out, err := exec.CommandContext(t.Context(), binary, "--mode", "validate", "--log-level", "warning", "-c", file).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if warning := bytes.Contains(out, []byte("[warning]")); warning || !bytes.Contains(out, []byte("OK")) {
				t.Errorf("Envoy accepts it, but says\n%s", out)
			}
		})
	}
}

// An Envoy that has never seen a router serves requests, and keeps to itself
// what only a router may say.
func TestEnvoyBootstrap_WithoutRouter(t *testing.T) {
	binary := testEnvoy(t)
	engine := newRecordingEngine(t)
	cfg := mustParse(t, valid)
	addrs := freeAddresses(t, 4)
	cfg.ExtProc.Listen, cfg.Envoy.Listen, cfg.Envoy.Admin = addrs[0], addrs[1], addrs[2]
	dead := cfg.Pool.Static.Endpoints[0]
	dead.Name, dead.Address = "dead", addrs[3]
	cfg.Pool.Static.Endpoints[0].Address = engine.address
	cfg.Pool.Static.Endpoints = append(cfg.Pool.Static.Endpoints, dead)
	startEnvoy(t, binary, cfg)
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

	send := func(method string, body []byte, header http.Header) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+cfg.Envoy.Listen+"/v1/models", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}

	// Half of the endpoints are dead, and no request sees it.
	for i := range 20 {
		if status, text := send("POST", []byte("hello"), nil); status != http.StatusOK || text != "5 bytes" {
			t.Fatalf("request %d: %d %q", i, status, text)
		}
	}
	if status, text := send("POST", make([]byte, 2<<20), nil); status != http.StatusOK || text != "2097152 bytes" {
		t.Errorf("a large body: %d %q", status, text)
	}
	if status, _ := send("GET", nil, http.Header{"Connection": {"upgrade"}, "Upgrade": {"websocket"}}); status != http.StatusForbidden {
		t.Errorf("an upgrade: %d", status)
	}

	// What a client says about routing reaches nobody.
	forged := http.Header{"X-Request-Id": {"mine"}, "X-Envoy-Upstream-Rq-Timeout-Ms": {"1"}}
	for _, name := range extproc.RoutingHeaders() {
		forged.Set(name, dead.Address)
	}
	for _, method := range []string{"GET", "POST"} {
		var body []byte
		if method == "POST" {
			body = []byte("hello")
		}
		if status, text := send(method, body, forged); status != http.StatusOK {
			t.Errorf("%s with forged headers: %d %q", method, status, text)
		}
		got := engine.last()
		// A trusted client would be marked as internal, and its timeout obeyed.
		for _, name := range append(extproc.RoutingHeaders(), "x-envoy-upstream-rq-timeout-ms", "x-envoy-expected-rq-timeout-ms", "x-envoy-internal") {
			if v := got.Get(name); v != "" {
				t.Errorf("%s: the engine sees %s: %s", method, name, v)
			}
		}
		if id := got.Get("X-Request-Id"); id != "mine" {
			t.Errorf("%s: the request id has become %q", method, id)
		}
	}

	// Health checks that all fail condemn the checks, not the engines.
	engine.setHealthy(false)
	waitFor(t, client, "http://"+cfg.Envoy.Admin+"/clusters", "engines::"+engine.address+"::health_flags::/failed_active_hc")
	if status, text := send("POST", []byte("hello"), nil); status != http.StatusOK {
		t.Errorf("with every health check failing: %d %q", status, text)
	}
}

// recordingEngine answers with the size of the body.
type recordingEngine struct {
	address string

	mu      sync.Mutex
	healthy bool
	header  http.Header
}

func newRecordingEngine(t *testing.T) *recordingEngine {
	e := &recordingEngine{healthy: true}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.URL.Path == "/health" {
			if !e.healthy {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return
		}
		e.header = r.Header.Clone()
		fmt.Fprintf(w, "%d bytes", n)
	}))
	t.Cleanup(srv.Close)
	e.address = srv.Listener.Addr().String()
	return e
}

func (e *recordingEngine) last() http.Header {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.header
}

func (e *recordingEngine) setHealthy(healthy bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.healthy = healthy
}

// freeAddresses returns loopback addresses on which nobody listened just now.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close() // all at the end, so that they differ
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

// startEnvoy runs Envoy with what cfg gives until the test ends, and returns
// when it takes requests.
func startEnvoy(t *testing.T, binary string, cfg Config) {
	t.Helper()
	b, err := envoyBootstrap(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "-c", writeConfig(t, string(b)), "--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("Envoy:\n%s", &out)
		}
	})
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	waitFor(t, client, "http://"+cfg.Envoy.Admin+"/ready", "LIVE")
}

// waitFor asks url until the answer has part in it.
func waitFor(t *testing.T, client *http.Client, url, part string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		var text []byte
		resp, err := client.Do(req)
		if err == nil {
			text, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if strings.Contains(string(text), part) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s has no %q: %v\n%s", url, part, err, text)
		}
	}
}
