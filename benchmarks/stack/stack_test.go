package stack_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/kvindex"
)

// fleetSeed is the hash seed of the routers under test, so that the tests can
// compute the hashes that an index should hold.
const fleetSeed = 0x5eed

// programs builds the programs once for all tests and names Envoy.
type programs struct {
	once sync.Once
	dir  string
	err  error
}

var built programs

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func (p *programs) build() {
	if p.dir, p.err = os.MkdirTemp("", "warmpath-test-"); p.err != nil {
		return
	}
	args := []string{"build", "-o", p.dir + string(filepath.Separator)}
	if raceEnabled {
		args = append(args, "-race")
	}
	args = append(args, "github.com/warmpath/warmpath/cmd/warmpath", "github.com/warmpath/warmpath/cmd/enginesim")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		p.err = fmt.Errorf("go build: %w\n%s", err, out)
	}
}

// start runs a stack of three engines until the test ends.
func start(t *testing.T, change func(*stack.Config)) *stack.Stack {
	t.Helper()
	envoy := os.Getenv("WARMPATH_TEST_ENVOY")
	if envoy == "" {
		t.Skip("WARMPATH_TEST_ENVOY does not name an Envoy program; make test sets it")
	}
	built.once.Do(built.build)
	if built.err != nil {
		t.Fatal(built.err)
	}
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed")
	if err := os.WriteFile(seed, fmt.Appendf(nil, "%016x\n", uint64(fleetSeed)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := stack.Config{
		Warmpath: filepath.Join(built.dir, "warmpath"), Enginesim: filepath.Join(built.dir, "enginesim"), Envoy: envoy,
		Dir: dir, Engines: 3, Model: "demo", Health: 100 * time.Millisecond,
		EngineArgs: []string{"--blocks", "400", "--block-size", "16", "--time-scale", "0.02"},
		RouterArgs: []string{"--extproc.drain_delay=0s"},
		Extra:      fmt.Sprintf("index: {seed_file: %q}\n", seed),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := stack.Start(t.Context(), cfg)
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() && s.Router != nil {
			t.Logf("the end of warmpath's log:\n%s", s.Router.Tail(30))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bounded returns a context for one step of a test.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// reply is what a request got.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) endpoint() string { return r.header.Get("x-warmpath-endpoint") }
func (r reply) reason() string   { return r.header.Get("x-warmpath-reason") }

func (r reply) matched(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(r.header.Get("x-warmpath-matched-tokens"))
	if err != nil {
		t.Fatalf("x-warmpath-matched-tokens: %v", err)
	}
	return n
}

func (r reply) cached(t *testing.T) int {
	t.Helper()
	var answer struct {
		Usage struct {
			Details struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	if err := json.Unmarshal(r.body, &answer); err != nil {
		t.Fatalf("answer %q: %v", r.body, err)
	}
	return answer.Usage.Details.Cached
}

// do sends a request to url and reads the whole answer.
func do(t *testing.T, method, url string, body []byte, header ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(bounded(t), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, b}
}

// completion returns a completion request for token ids.
func completion(tokens []kvindex.TokenID, maxTokens int) []byte {
	b, err := json.Marshal(map[string]any{"model": "demo", "prompt": tokens, "max_tokens": maxTokens})
	if err != nil {
		panic(err)
	}
	return b
}

// ids returns n token ids that only this seed gives.
func ids(seed uint64, n int) []kvindex.TokenID {
	r := rand.New(rand.NewPCG(seed, 99))
	ts := make([]kvindex.TokenID, n)
	for i := range ts {
		ts[i] = kvindex.TokenID(1000 + r.IntN(100_000))
	}
	return ts
}

func complete(t *testing.T, s *stack.Stack, tokens []kvindex.TokenID, header ...string) reply {
	t.Helper()
	r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(tokens, 4), header...)
	if r.status != http.StatusOK {
		t.Fatalf("status %d: %s", r.status, r.body)
	}
	return r
}

func quiet(t *testing.T, s *stack.Stack) {
	t.Helper()
	if err := s.Quiet(bounded(t)); err != nil {
		t.Fatal(err)
	}
}

// engineAt returns the engine at ip:port.
func engineAt(t *testing.T, s *stack.Stack, address string) *stack.Engine {
	t.Helper()
	i := slices.IndexFunc(s.Engines, func(e *stack.Engine) bool { return e.HTTP == address })
	if i < 0 {
		t.Fatalf("no engine at %q", address)
	}
	return s.Engines[i]
}

// eventually polls ok until it holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("it never came that %s", what)
		case <-tick.C:
		}
	}
}

func TestWarmPrefixWinsUntilItIsEvicted(t *testing.T) { warmPrefixWins(t, nil) }

func warmPrefixWins(t *testing.T, change func(*stack.Config)) {
	s := start(t, change)
	prompt := ids(1, 1000)
	first := complete(t, s, prompt)
	if first.matched(t) != 0 {
		t.Errorf("the first request matched %d tokens, want 0", first.matched(t))
	}
	quiet(t, s)
	warm := engineAt(t, s, first.endpoint())
	for i := range 6 {
		again := complete(t, s, append(slices.Clone(prompt), ids(uint64(10+i), 40)...))
		if again.endpoint() != warm.HTTP || again.reason() != "prefix" {
			t.Fatalf("a request with a warm prefix went to %s by %q, want %s by prefix", again.endpoint(), again.reason(), warm.HTTP)
		}
		if got, want := again.matched(t), 992; got != want { // 62 whole blocks
			t.Errorf("matched %d tokens, want %d", got, want)
		}
		if again.matched(t) != again.cached(t) {
			t.Errorf("predicted %d cached tokens, the engine reused %d", again.matched(t), again.cached(t))
		}
		quiet(t, s)
	}

	// The engine alone is filled with other prompts until the first is gone.
	for i := uint64(0); ; i++ {
		p, err := warm.Pool(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		if !p.Holds(prompt[:16]) {
			break
		}
		if i == 20 {
			t.Fatal("20 prompts of 1,600 tokens did not evict the first one from a pool of 400 blocks")
		}
		if r := do(t, http.MethodPost, "http://"+warm.HTTP+"/v1/completions", completion(ids(100+i, 1600), 1)); r.status != http.StatusOK {
			t.Fatalf("status %d: %s", r.status, r.body)
		}
	}
	quiet(t, s)
	if cold := complete(t, s, prompt); cold.matched(t) != 0 || cold.reason() != "cold" {
		t.Errorf("after the eviction %d tokens matched by %q, want 0 by cold", cold.matched(t), cold.reason())
	}
}

// workload sends a seeded mix of prompts that share prefixes, some of whole
// blocks, through Envoy under strategies that spread them over the engines.
func workload(t *testing.T, s *stack.Stack, seed uint64, requests int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	prefixes := make([][]kvindex.TokenID, 6)
	for i := range prefixes {
		prefixes[i] = ids(seed*100+uint64(i), 16*(5+r.IntN(40)))
	}
	strategies := []string{"random", "least-request", "prefix-cache"}
	work := make(chan []byte)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for body := range work {
				resp := do(t, http.MethodPost, s.URL+"/v1/completions", body, "routing-strategy", strategies[len(body)%3])
				if resp.status != http.StatusOK {
					t.Errorf("status %d: %s", resp.status, resp.body)
				}
			}
		})
	}
	for range requests {
		prompt := slices.Clone(prefixes[r.IntN(len(prefixes))])
		prompt = append(prompt, ids(r.Uint64(), r.IntN(5)*16+r.IntN(2)*r.IntN(16))...)
		work <- completion(prompt, 1+r.IntN(40))
	}
	close(work)
	wg.Wait()
}

// differences compares every endpoint's index with its engine's own pool.
func differences(t *testing.T, s *stack.Stack) []stack.Difference {
	t.Helper()
	var all []stack.Difference
	for _, e := range s.Engines {
		d, err := s.Compare(bounded(t), e, kvindex.NewHasher(fleetSeed))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s holds %d blocks; index: %d over, %d under, %d of them second copies", e.Name, d.Held, d.Over, d.Under, d.UnderCopies)
		all = append(all, d)
	}
	return all
}

func TestIndexEqualsTheEnginesOwnPools(t *testing.T) {
	s := start(t, nil)
	for round := range uint64(3) {
		workload(t, s, round+1, 120)
		quiet(t, s)
		for i, d := range differences(t, s) {
			if d.Held == 0 {
				t.Errorf("engine %d holds nothing: the workload proves nothing", i)
			}
			if !d.Equal() {
				t.Errorf("round %d, engine %d: %+v", round, i, d)
			}
		}
	}
}

// The comparison above would not notice much if a lost event did not make it
// fail.
func TestIndexDiffersOnceAnEventIsLost(t *testing.T) {
	s := start(t, nil)
	workload(t, s, 1, 60)
	quiet(t, s)
	e := s.Engines[1]
	if err := e.Fault(bounded(t), map[string]any{"drop_next": 1}); err != nil {
		t.Fatal(err)
	}
	// The store of this prompt is lost; the next one shows the gap.
	for seed := range uint64(2) {
		if r := do(t, http.MethodPost, "http://"+e.HTTP+"/v1/completions", completion(ids(9000+seed, 320), 1)); r.status != http.StatusOK {
			t.Fatalf("status %d: %s", r.status, r.body)
		}
	}
	quiet(t, s)
	d := differences(t, s)[1]
	if d.Equal() {
		t.Error("a batch was lost for good and the index still equals the pool")
	}
	if d.Over > 0 {
		t.Errorf("the index over-counts by %d blocks after a lost batch", d.Over)
	}
	st, err := s.State(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	ep, err := st.Endpoint(e.Name)
	if err != nil {
		t.Fatal(err)
	}
	if trust := ep.Publishers[0].Trust; trust == "exact" {
		t.Error("the publisher is still called exact")
	}
}

func TestKilledEngineIsLeft(t *testing.T) {
	s := start(t, nil)
	prompt := ids(1, 400)
	warm := engineAt(t, s, complete(t, s, prompt).endpoint())
	quiet(t, s)
	warm.Kill()
	// The router may not know yet; Envoy then goes down the list.
	for range 3 {
		r := complete(t, s, prompt)
		if r.endpoint() == warm.HTTP {
			t.Fatal("a killed engine is said to have answered")
		}
	}
	eventually(t, "the killed engine is no candidate", func() bool {
		st, err := s.State(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		ep, err := st.Endpoint(warm.Name)
		if err != nil {
			t.Fatal(err)
		}
		return ep.Health == "failed"
	})
	for range 3 {
		if r := complete(t, s, prompt); r.endpoint() == warm.HTTP {
			t.Error("a request went to the killed engine")
		}
	}
	if err := s.RestartEngine(slices.Index(s.Engines, warm)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restarted engine is used again", func() bool {
		return complete(t, s, prompt, "routing-strategy", "random").endpoint() == warm.HTTP
	})
}

// metric sums the samples of a metric of warmpath whose labels include all of
// labels.
func metric(t *testing.T, s *stack.Stack, name string, labels map[string]string) float64 {
	t.Helper()
	r := do(t, http.MethodGet, s.Admin+"/metrics", nil)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	f := families[name]
	if f == nil {
		t.Fatalf("there is no metric %s", name)
	}
	sum := 0.0
	for _, m := range f.Metric {
		matches := 0
		for _, l := range m.Label {
			if labels[l.GetName()] == l.GetValue() {
				matches++
			}
		}
		if matches == len(labels) {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

func TestTokenizerDownRoutesByLoad(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	s := start(t, func(c *stack.Config) { c.Extra += fmt.Sprintf("tokenizer: {endpoints: [%q]}\n", gone.URL) })
	for range 3 { // the first one teaches the router that there are blocks to match
		complete(t, s, ids(1, 100))
		quiet(t, s)
	}
	before := metric(t, s, "warmpath_routing_degraded_total", map[string]string{"reason": "tokenizer_unavailable"})
	body := []byte(`{"model":"demo","messages":[{"role":"user","content":"Hello, is anybody there who can count?"}],"max_tokens":3}`)
	r := do(t, http.MethodPost, s.URL+"/v1/chat/completions", body)
	if r.status != http.StatusOK || r.reason() != "tokenizer_unavailable" {
		t.Errorf("status %d, reason %q; want 200, tokenizer_unavailable", r.status, r.reason())
	}
	after := metric(t, s, "warmpath_routing_degraded_total", map[string]string{"reason": "tokenizer_unavailable"})
	if after-before != 1 {
		t.Errorf("the metric rose by %v, want 1", after-before)
	}
}

func TestKilledRouterFailsNothing(t *testing.T) {
	s := start(t, nil)
	s.Router.Kill()
	for i := range 20 {
		if r := complete(t, s, ids(uint64(i), 50)); r.endpoint() != "" {
			t.Error("an answer carries the decision of a router that is dead")
		}
	}
	// The forged header stays without effect when nobody overwrites it.
	for range 10 {
		complete(t, s, ids(1, 50), "x-gateway-destination-endpoint", s.Engines[0].HTTP)
	}
	p, err := s.Engines[0].Pool(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	others := 0
	for _, e := range s.Engines[1:] {
		q, err := e.Pool(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		others += len(q.Blocks)
	}
	if others == 0 {
		t.Errorf("all requests went to the forged engine, which holds %d blocks", len(p.Blocks))
	}
	if err := s.StartRouter(bounded(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a restarted router is asked again", func() bool { return complete(t, s, ids(1, 50)).endpoint() != "" })
}

func TestForgedHeadersNeverChooseAnAddress(t *testing.T) { forgedHeaders(t, nil) }

func forgedHeaders(t *testing.T, change func(*stack.Config)) {
	s := start(t, change)
	hit := make(chan string, 100)
	trap := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hit <- r.Method + " " + r.URL.Path }))
	defer trap.Close()
	prompt := ids(1, 200)
	warm := complete(t, s, prompt).endpoint()
	quiet(t, s)
	var other string
	for _, e := range s.Engines {
		if e.HTTP != warm {
			other = e.HTTP
		}
	}
	for _, forged := range []string{strings.TrimPrefix(trap.URL, "http://"), other, "nonsense", other + "," + other} {
		headers := []string{"target-pod", forged, "x-gateway-destination-endpoint", forged, "x-warmpath-endpoint", forged, "x-data-parallel-rank", "7"}
		if r := complete(t, s, prompt, headers...); r.endpoint() != warm {
			t.Errorf("with %q forged, a POST went to %s, want %s", forged, r.endpoint(), warm)
		}
		seen := map[string]bool{}
		for range 30 {
			r := do(t, http.MethodGet, s.URL+"/v1/models", nil, append(headers, "routing-strategy", "random")...)
			if r.status != http.StatusOK {
				t.Fatalf("GET: status %d: %s", r.status, r.body)
			}
			seen[r.endpoint()] = true
		}
		if len(seen) < 2 { // 30 draws of 3 are all equal once in 3^29
			t.Errorf("with %q forged, every GET went to %v", forged, seen)
		}
	}
	select {
	case what := <-hit:
		t.Errorf("the forged address was reached: %s", what)
	default:
	}
}

func TestLargeBodyPasses(t *testing.T) {
	s := start(t, func(c *stack.Config) { c.EngineArgs = append(c.EngineArgs, "--max-model-len", "4096") })
	text := strings.Repeat("many words ", 100_000) // 1.1 MB; too long for the engine, which says so
	body, err := json.Marshal(map[string]any{"model": "demo", "prompt": text, "max_tokens": 1})
	if err != nil {
		t.Fatal(err)
	}
	r := do(t, http.MethodPost, s.URL+"/v1/completions", body)
	if r.status != http.StatusBadRequest || r.endpoint() == "" || !strings.Contains(string(r.body), "4096") {
		t.Errorf("status %d from %q: %.200s; want the engine's own 400 about its 4096 tokens", r.status, r.endpoint(), r.body)
	}
	// And one that the engine can answer: the prompt is short, the rest is not.
	body, err = json.Marshal(map[string]any{"model": "demo", "prompt": "short", "max_tokens": 1, "user": text})
	if err != nil {
		t.Fatal(err)
	}
	if r := do(t, http.MethodPost, s.URL+"/v1/completions", body); r.status != http.StatusOK || r.endpoint() == "" {
		t.Errorf("status %d: %.200s; want 200", r.status, r.body)
	}
}

func TestAbortReleasesTheInFlightCount(t *testing.T) { abortReleases(t, nil) }

func abortReleases(t *testing.T, change func(*stack.Config)) {
	s := start(t, func(c *stack.Config) {
		c.EngineArgs = append(c.EngineArgs, "--time-scale", "1")
		if change != nil {
			change(c)
		}
	})
	eventually(t, "nothing is in flight before", func() bool { return inFlight(t, s) == 0 })
	ctx, abort := context.WithCancel(bounded(t))
	defer abort()
	body := []byte(`{"model":"demo","prompt":"tell me a very long story","max_tokens":4000,"stream":true}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if n := inFlight(t, s); n != 1 {
		t.Errorf("%d requests in flight while one answer streams, want 1", n)
	}
	abort()
	eventually(t, "the aborted request is released", func() bool { return inFlight(t, s) == 0 })
	if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, context.Canceled) {
		t.Errorf("the aborted answer ended with %v", err)
	}
}

func TestBadRequestsAreAnsweredUsefully(t *testing.T) {
	s := start(t, nil)
	tests := []struct {
		name, body string
		header     []string
		status     int
		says       []string
	}{
		{"not JSON", `{"model": "demo", "prompt": `, nil, 400, []string{"JSON"}},
		{"no model", `{"prompt": "x"}`, nil, 400, []string{"model"}},
		{"model of a wrong type", `{"model": 3, "prompt": "x"}`, nil, 400, []string{"model", "string"}},
		{"unknown model", `{"model": "gpt-nope", "prompt": "x"}`, nil, 404, []string{"gpt-nope", "demo"}},
		{"unknown strategy", `{"model": "demo", "prompt": "x"}`, []string{"routing-strategy", "fastest"}, 400, []string{"fastest", "prefix-cache, queue, random, round-robin"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := do(t, http.MethodPost, s.URL+"/v1/completions", []byte(tt.body), tt.header...)
			var answer struct {
				Error struct{ Message, Type string } `json:"error"`
			}
			if err := json.Unmarshal(r.body, &answer); err != nil || answer.Error.Message == "" || answer.Error.Type == "" {
				t.Fatalf("the answer %q is not an OpenAI error: %v", r.body, err)
			}
			if r.status != tt.status {
				t.Errorf("status %d, want %d", r.status, tt.status)
			}
			for _, part := range tt.says {
				if !strings.Contains(answer.Error.Message, part) {
					t.Errorf("the message %q does not mention %q", answer.Error.Message, part)
				}
			}
		})
	}
}

// With every engine dead there is nothing left but to say so.
func TestNoReadyEndpointIs503(t *testing.T) {
	s := start(t, nil)
	for _, e := range s.Engines {
		e.Kill()
	}
	eventually(t, "the router answers 503 itself", func() bool {
		r := do(t, http.MethodPost, s.URL+"/v1/completions", completion(ids(1, 50), 1))
		return r.status == http.StatusServiceUnavailable && strings.Contains(string(r.body), "no endpoint that serves the model")
	})
}

// Without events the router goes by what it sent where, and does not call it
// exact.
func TestEnginesWithoutEventsAreGuessed(t *testing.T) {
	s := start(t, func(c *stack.Config) { c.Silent = true })
	prompt := ids(1, 400)
	first := complete(t, s, prompt)
	for i := range 4 {
		again := complete(t, s, append(slices.Clone(prompt), ids(uint64(10+i), 40)...))
		if again.endpoint() != first.endpoint() || again.reason() != "prefix" {
			t.Errorf("request %d went to %s by %q, want %s by prefix", i, again.endpoint(), again.reason(), first.endpoint())
		}
		if again.matched(t) != 0 {
			t.Errorf("request %d is said to match %d tokens, which nobody has confirmed", i, again.matched(t))
		}
	}
	if r := do(t, http.MethodGet, s.Admin+"/debug/decisions", nil); !strings.Contains(string(r.body), `"approximate"`) || strings.Contains(string(r.body), `"exact"`) {
		t.Errorf("the decisions do not say that they were guessed: %.600s", r.body)
	}
}

// Envoy must see nothing of us that it has to ignore.
func TestEnvoyFindsNoFault(t *testing.T) {
	s := start(t, nil)
	workload(t, s, 1, 30)
	for range 5 {
		do(t, http.MethodGet, s.URL+"/v1/models", nil)
	}
	r := do(t, http.MethodGet, s.EnvoyAdmin+"/stats?filter=ext_proc", nil)
	seen := 0
	for line := range strings.Lines(string(r.body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		for _, bad := range []string{"spurious_msgs_received", "rejected_header_mutations", "clear_route_cache_ignored", "streams_failed", "message_timeouts"} {
			if strings.HasSuffix(name, bad) {
				seen++
				if value != "0" {
					t.Errorf("%s is %s, want 0", name, value)
				}
			}
		}
	}
	if seen < 5 {
		t.Errorf("%d of Envoy's statistics found, want 5:\n%s", seen, r.body)
	}
}

func TestStartSaysWhatFailed(t *testing.T) {
	s, err := stack.Start(t.Context(), stack.Config{Dir: t.TempDir(), Engines: 1, Enginesim: "/does/not/exist"})
	s.Stop()
	if err == nil || !strings.Contains(err.Error(), "engine-0") {
		t.Errorf("Start: %v, want an error that names engine-0", err)
	}
}
