package stack_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/warmpath/warmpath/benchmarks/demo"
	"github.com/warmpath/warmpath/benchmarks/stack"
)

// The manifests under test, rendered from the chart.
const manifests = "../../deploy/manifests"

// attachment is a way to attach warmpath to Envoy Gateway.
type attachment struct {
	// name is that of its folder.
	name string
	// override: Envoy picks out of the engines that it knows; otherwise it dials
	// the address that it is told.
	override bool
}

var attachments = []attachment{
	{name: "envoy-gateway", override: true},
	{name: "original-dst"},
}

// through has Envoy Gateway run Envoy.
func (a attachment) through(t *testing.T) func(*stack.Config) {
	t.Helper()
	program := os.Getenv("WARMPATH_TEST_ENVOY_GATEWAY")
	if program == "" {
		t.Skip("WARMPATH_TEST_ENVOY_GATEWAY does not name an Envoy Gateway program; make test-deploy sets it")
	}
	return func(c *stack.Config) {
		c.Gateway, c.Manifests = program, filepath.Join(manifests, a.name)
	}
}

func TestGateway(t *testing.T) {
	for _, a := range attachments {
		t.Run(a.name, func(t *testing.T) {
			through := a.through(t)
			t.Run("stack", func(t *testing.T) { a.attached(t, through) })
			t.Run("warm prefix", func(t *testing.T) { warmPrefixWins(t, through) })
			t.Run("forged headers", func(t *testing.T) { forgedHeaders(t, through) })
			t.Run("abort", func(t *testing.T) { abortReleases(t, through) })
			if a.override { // the other one has one address, so nothing to retry on
				t.Run("16 MiB retried", func(t *testing.T) { retriedOnNext(t, through) })
			}
		})
	}
}

// attached checks what Envoy Gateway made of the manifests, and sends traffic.
func (a attachment) attached(t *testing.T, through func(*stack.Config)) {
	s := start(t, func(c *stack.Config) { slow(c); through(c) })
	t.Run("accepted", func(t *testing.T) { accepted(t, s, a) })
	t.Run("configuration", func(t *testing.T) {
		x, err := stack.ReadXDS(bounded(t), s.EnvoyAdmin)
		if err == nil {
			err = x.Attached(a.override)
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("strategy by header", func(t *testing.T) {
		for _, name := range []string{"random", "least-request", "prefix-cache"} {
			r := complete(t, s, ids(1, 50), "routing-strategy", name)
			if got := strategyOf(r); got != name {
				t.Errorf("chosen by %q, want %q", got, name)
			}
		}
		r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 4), 1), "routing-strategy", "nonsense")
		openAIError(t, r, http.StatusBadRequest, "unknown_strategy")
	})
	t.Run("bodies", func(t *testing.T) {
		if r := do(t, http.MethodPost, s.URL+"/v1/completions", large(t, 16*MiB)); r.status != http.StatusOK || r.endpoint() == "" {
			t.Errorf("16 MiB: status %d from %q: %.200s", r.status, r.endpoint(), r.body)
		}
		if r := do(t, http.MethodPost, s.URL+"/v1/completions", large(t, 33*MiB)); r.status != http.StatusRequestEntityTooLarge {
			t.Errorf("33 MiB: status %d: %.200s, want 413", r.status, r.body)
		}
	})
	t.Run("upgrade", func(t *testing.T) {
		r := do(t, http.MethodGet, s.URL+"/v1/realtime", nil, "Connection", "Upgrade", "Upgrade", "websocket",
			"Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
		if r.status != http.StatusForbidden {
			t.Errorf("status %d: %.200s, want 403", r.status, r.body)
		}
	})
	t.Run("endpoints come and go", func(t *testing.T) { comeAndGo(t, s) })
	t.Run("router killed", func(t *testing.T) { killed(t, s) })
	t.Run("router frozen", func(t *testing.T) { frozen(t, s) })
	faultless(t, s)
}

var statusInLog = regexp.MustCompile(`(?s)Got new status for (\w+)\n(.*?)\n\t\{[^\n]*"key": "([^"]*)"`)

// accepted reads Envoy Gateway's verdicts, which it logs where there is no API
// server to write them to.
func accepted(t *testing.T, s *stack.Stack, a attachment) {
	want := map[string]string{
		"GatewayClass": "Accepted", "Gateway": "Accepted", "HTTPRoute": "Accepted", "EnvoyExtensionPolicy": "Accepted",
		"BackendTrafficPolicy": "Accepted", "ClientTrafficPolicy": "Accepted",
	}
	if !a.override {
		want["EnvoyPatchPolicy"] = "Programmed"
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(s.Config()), "gateway.log"))
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]any{}
	for _, m := range statusInLog.FindAllStringSubmatch(string(text), -1) {
		var status any
		if err := yaml.Unmarshal([]byte(m[2]), &status); err != nil {
			t.Fatalf("status of %s %s: %v", m[1], m[3], err)
		}
		last[m[1]] = status
	}
	for kind, condition := range want {
		found := conditions(last[kind])
		if found[condition] != "True" {
			t.Errorf("%s is not %s: %v", kind, condition, found)
		}
		for c, status := range found {
			// No address is assigned to a Gateway outside of Kubernetes.
			if status != "True" && (kind != "Gateway" || c != "Programmed") {
				t.Errorf("%s: %s is %s", kind, c, status)
			}
		}
	}
}

// conditions returns the conditions in a status, wherever they are: what was
// said last of each type.
func conditions(v any) map[string]string {
	found := map[string]string{}
	var look func(any)
	look = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				look(e)
			}
		case map[string]any:
			if kind, ok := v["type"].(string); ok && v["reason"] != nil {
				found[kind] = fmt.Sprint(v["status"])
			}
			for _, e := range v {
				look(e)
			}
		}
	}
	look(v)
	return found
}

// traffic sends requests without a pause until the function that it returns is
// called, which requires that none has failed.
func traffic(t *testing.T, s *stack.Stack) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(bounded(t))
	client := manyClients(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	sent, failed := 0, []error{}
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				r, err := post(ctx, client, s.URL+"/v1/completions", completion(ids(1, 4), 1), "routing-strategy", "random")
				if err == nil && r.status != http.StatusOK {
					err = fmt.Errorf("status %d: %s", r.status, r.body)
				}
				mu.Lock()
				if sent++; err != nil && ctx.Err() == nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	return func() {
		t.Helper()
		cancel()
		all.Wait()
		if t.Logf("%d requests were sent", sent); sent == 0 || len(failed) > 0 {
			t.Errorf("%d of %d requests failed, the first: %v", len(failed), sent, failed)
		}
	}
}

// comeAndGo takes an engine away from the gateway, while an answer of it and
// other requests are running, and gives it back.
func comeAndGo(t *testing.T, s *stack.Stack) {
	const tokens = 40 // 4.4 s
	known := func(want int) func() bool {
		return func() bool {
			r := do(t, http.MethodGet, s.EnvoyAdmin+"/clusters", nil)
			n := 0
			for _, e := range s.Engines {
				if strings.Contains(string(r.body), "rule/0::"+e.HTTP+"::cx_active") {
					n++
				}
			}
			return n == want
		}
	}
	eventually(t, "Envoy knows three engines", known(3))
	long := streams(t, s, 6, tokens)
	stop := traffic(t, s)
	if err := s.Attach(s.Engines[:2]...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy knows two engines", known(2))
	served := map[string]int{}
	for i := range 20 {
		served[complete(t, s, ids(uint64(i), 4), "routing-strategy", "random").endpoint()]++
	}
	t.Logf("with two of three engines known to Envoy: %v", served)
	if err := s.Attach(s.Engines...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy knows three engines again", known(3))
	stop()
	unbroken(t, long, tokens)
	on := map[string]bool{}
	for _, a := range long {
		on[a.endpoint] = true
	}
	if !on[s.Engines[2].HTTP] {
		t.Error("no answer ran on the engine that went, so nothing is shown")
	}
}

// frozen stops the router's process in its tracks, in the first minute, when
// Envoy does not check its health yet: requests wait for it for message_timeout,
// and go on without it.
func frozen(t *testing.T, s *stack.Stack) {
	long := streams(t, s, 3, 60)
	if err := s.Router.Freeze(bounded(t)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Router.Signal(syscall.SIGCONT) }()
	for range 2 {
		if r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 4), 1)); r.status != http.StatusOK || r.endpoint() != "" {
			t.Errorf("status %d, chosen by the router: %q: %s", r.status, r.endpoint(), r.body)
		}
	}
	if err := s.Router.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the router is asked again", func() bool { return complete(t, s, ids(1, 4)).endpoint() != "" })
	unbroken(t, long, 60)
}

// killed ends the router while answers run, and starts it again.
func killed(t *testing.T, s *stack.Stack) {
	outlived(t, s, s.Router.Kill)
	for i := range 5 {
		if r := complete(t, s, ids(uint64(i), 4)); r.endpoint() != "" {
			t.Error("a router that is dead is said to have routed a request")
		}
	}
	if err := s.StartRouter(bounded(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a restarted router is asked again", func() bool { return complete(t, s, ids(1, 4)).endpoint() != "" })
}

// The demo fails unless prefix-cache serves clearly more prompt tokens from
// cache than the other strategies.
func TestGatewayDemo(t *testing.T) {
	through := attachments[0].through(t)
	var cfg stack.Config
	through(&cfg)
	built.once.Do(built.build)
	if built.err != nil {
		t.Fatal(built.err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "demo.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = demo.Run(t.Context(), []string{
		"--warmpath", filepath.Join(built.dir, "warmpath"), "--enginesim", filepath.Join(built.dir, "enginesim"),
		"--envoy", os.Getenv("WARMPATH_TEST_ENVOY"), "--envoy-gateway", cfg.Gateway, "--manifests", cfg.Manifests,
	}, out)
	text, _ := os.ReadFile(out.Name())
	if t.Logf("%s", text); err != nil {
		t.Error(err)
	}
}
