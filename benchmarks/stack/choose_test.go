package stack_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/routing"
)

// strategyOf is the strategy that an answer says decided.
func strategyOf(r reply) string { return r.header.Get("x-warmpath-strategy") }

// configure rewrites the configuration and starts the router anew with it.
func configure(t *testing.T, s *stack.Stack, change func(string) string) {
	t.Helper()
	b, err := os.ReadFile(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Config(), []byte(change(string(b))), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Router.Stop()
	if err := s.StartRouter(bounded(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy asks the router again", func() bool { return complete(t, s, ids(1, 20)).endpoint() != "" })
}

func TestEveryStrategyByHeader(t *testing.T) {
	s := start(t, nil)
	names := append(routing.Strategies(), "prefix-cache:2,least-request:1")
	for i, name := range names {
		r := complete(t, s, ids(uint64(100+i), 100), "routing-strategy", name, "x-session-id", "a session")
		if strategyOf(r) != name {
			t.Errorf("%s was asked for, %q decided", name, strategyOf(r))
		}
	}
	for _, name := range []string{"pd", "vtc-basic", "prefix-cache-preble", "slo-least-load"} {
		r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 20), 1), "routing-strategy", name)
		if r.status != http.StatusBadRequest || !strings.Contains(string(r.body), "not offered here") {
			t.Errorf("%s: status %d, %s; want a 400 that says it is not offered", name, r.status, r.body)
		}
	}
}

// The headers of an AIBrix client do what they did.
func TestAIBrixHeaders(t *testing.T) {
	s := start(t, func(c *stack.Config) {
		c.Extra += "routing: {profiles: {spread: {strategy: least-request}, fixed: {strategy: random, locked: true}}}\n"
		c.RouterArgs = append(c.RouterArgs, "--extproc.aibrix_headers=true")
	})
	said := complete(t, s, ids(1, 50), "routing-strategy", "random", "x-request-id", "r-1").header
	if said.Get("target-pod-ip") != said.Get("x-warmpath-endpoint") || said.Get("target-pod") != engineAt(t, s, said.Get("target-pod-ip")).Name ||
		said.Get("request-id") == "" || said.Get("routing-strategy") != "random" {
		t.Errorf("an answer says %v", said)
	}
	configure(t, s, func(text string) string {
		return strings.Replace(text, "{name: engine-0,", "{name: engine-0, labels: {tier: gold},", 1)
	})
	gold := s.Engines[0].HTTP
	for range 10 {
		if r := complete(t, s, ids(1, 50), "external-filter", "tier=gold", "routing-strategy", "random"); r.endpoint() != gold {
			t.Errorf("with external-filter tier=gold a request went to %s, want %s", r.endpoint(), gold)
		}
		if r := complete(t, s, ids(1, 50), "external-filter", "tier!=gold", "routing-strategy", "random"); r.endpoint() == gold {
			t.Error("with external-filter tier!=gold a request went to the endpoint that has the label")
		}
	}
	bad := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 50), 1), "external-filter", "tier in gold")
	if bad.status != http.StatusBadRequest || !strings.Contains(string(bad.body), "external-filter") {
		t.Errorf("a malformed external-filter: status %d, %s", bad.status, bad.body)
	}
	for _, tt := range []struct{ profile, header, want string }{
		{"spread", "", "least-request"}, {"spread", "throughput", "throughput"}, {"fixed", "throughput", "random"},
	} {
		headers := []string{"config-profile", tt.profile}
		if tt.header != "" {
			headers = append(headers, "routing-strategy", tt.header)
		}
		if got := strategyOf(complete(t, s, ids(1, 50), headers...)); got != tt.want {
			t.Errorf("profile %s and header %q: %s decided, want %s", tt.profile, tt.header, got, tt.want)
		}
	}
	if r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 50), 1), "config-profile", "none"); r.status != http.StatusBadRequest {
		t.Errorf("an unknown profile: status %d, %s", r.status, r.body)
	}
	homes := map[string]bool{}
	for i := range 12 {
		session := []string{"routing-strategy", "session-affinity", "x-session-id", string(rune('a' + i))}
		home := complete(t, s, ids(uint64(i), 50), session...).endpoint()
		homes[home] = true
		if again := complete(t, s, ids(uint64(50+i), 50), session...).endpoint(); again != home {
			t.Errorf("session %d moved from %s to %s", i, home, again)
		}
	}
	if len(homes) < 2 { // 12 of 3 are all equal once in 3^11
		t.Errorf("all sessions live on %v", homes)
	}
}

// An endpoint that answers 503, is gone or hangs is soon left, and comes back. Session affinity shows it: it would go there every time.
func TestFailingEndpointIsLeftAndComesBack(t *testing.T) {
	s := start(t, func(c *stack.Config) {
		c.Health = 0 // the default: it must do without a setting
		c.Extra += "routing: {strategy: session-affinity}\n"
	})
	session := []string{"x-session-id", "a session"}
	home := engineAt(t, s, complete(t, s, ids(1, 50), session...).endpoint())
	index := slices.Index(s.Engines, home)
	// ask sends a request and gives up after a while; it returns who answered with
	// what.
	ask := func(patience time.Duration) (string, int) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/completions", bytes.NewReader(completion(ids(1, 50), 1)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set(session[0], session[1])
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", 0
		}
		defer resp.Body.Close()
		return resp.Header.Get("x-warmpath-endpoint"), resp.StatusCode
	}
	left := func(how string, since time.Time) {
		t.Helper()
		// It is left when request after request is answered elsewhere. One alone may
		// be because the endpoint has more than its share of requests in flight.
		// The time it takes to give up is a part of the time that is measured.
		last := since
		for elsewhere := 0; elsewhere < 6; elsewhere++ {
			if endpoint, status := ask(100 * time.Millisecond); status != http.StatusOK || endpoint == home.HTTP {
				elsewhere, last = -1, time.Now()
			}
			if time.Since(since) > 20*time.Second {
				t.Fatalf("an endpoint that %s was never left", how)
			}
		}
		took := last.Sub(since)
		t.Logf("an endpoint that %s was left after %v", how, took.Round(time.Millisecond))
		// The second is held in virtual time, by routing/pool's tests; here the
		// machine may be busy, and gets three.
		if took > 3*time.Second && !raceEnabled {
			t.Errorf("an endpoint that %s was left after %v, want a second on an idle machine", how, took)
		}
	}
	back := func(how string) {
		t.Helper()
		eventually(t, "an endpoint that "+how+" is used again", func() bool {
			endpoint, status := ask(time.Second)
			return status == http.StatusOK && endpoint == home.HTTP
		})
	}

	if err := home.Fault(bounded(t), map[string]any{"fail_next": 1}); err != nil {
		t.Fatal(err)
	}
	left("answered 503", time.Now())
	back("answered 503")

	home.Kill()
	left("was killed", time.Now())
	if err := s.RestartEngine(index); err != nil {
		t.Fatal(err)
	}
	home = s.Engines[index]
	back("was killed")

	if err := home.Freeze(bounded(t)); err != nil {
		t.Fatal(err)
	}
	left("hangs", time.Now())
	if err := home.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back("hangs")
}

// The routing section follows the file without a restart; a wrong file changes
// nothing.
func TestRoutingFollowsTheFile(t *testing.T) {
	s := start(t, nil)
	b, err := os.ReadFile(s.Config())
	if err != nil {
		t.Fatal(err)
	}
	write := func(section string) {
		if err := os.WriteFile(s.Config(), append(slices.Clone(b), section...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := strategyOf(complete(t, s, ids(1, 50))); got != "prefix-cache" {
		t.Fatalf("at first %s decides, want prefix-cache", got)
	}
	write("routing: {strategy: round-robin}\n")
	eventually(t, "the file's strategy decides", func() bool { return strategyOf(complete(t, s, ids(1, 50))) == "round-robin" })
	write("routing: {strategy: fastest}\n")
	eventually(t, "the wrong file is refused", func() bool {
		return metric(t, s, "warmpath_config_reloads_total", map[string]string{"result": "refused"}) == 1
	})
	if got := strategyOf(complete(t, s, ids(1, 50))); got != "round-robin" {
		t.Errorf("after a wrong file %s decides, want round-robin", got)
	}
	write("routing: {strategy: least-request}\n")
	if err := s.Router.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file's strategy decides after SIGHUP", func() bool { return strategyOf(complete(t, s, ids(1, 50))) == "least-request" })
}

// The engines' own load is read, fresh, and shown with every candidate.
func TestExplainShowsTheEnginesLoad(t *testing.T) {
	s := start(t, nil)
	prompt := ids(1, 400)
	warm := complete(t, s, prompt).endpoint()
	quiet(t, s)
	file := filepath.Join(t.TempDir(), "request.json")
	if err := os.WriteFile(file, completion(prompt, 4), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(bounded(t), filepath.Join(built.dir, "warmpath"), "explain", "--admin", s.Admin, "--json", file)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("explain: %v: %s", err, stderr.String())
	}
	var d routing.Decision
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Candidates) != 3 || d.Candidates[0].Address != warm || d.Candidates[0].MatchedTokens != 384 || d.Reason != "prefix" {
		t.Errorf("explained: %s", out)
	}
	for _, c := range d.Candidates {
		if c.Load == nil || c.Load.Stale || c.Load.AgeSeconds > 1.6 {
			t.Errorf("%s: load %+v, want one that was read a moment ago", c.Name, c.Load)
		}
	}
}
