package routing

import (
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// now is the time of all decisions in these tests.
var now = time.Unix(1_700_000_000, 0)

// fresh returns a load that was read a second ago.
func fresh(l pool.Load) *pool.Load {
	l.At, l.Until = now.Add(-time.Second), now.Add(2*time.Second)
	return &l
}

// stale returns a load that no longer counts.
func stale(l pool.Load) *pool.Load {
	l.At, l.Until = now.Add(-12*time.Second), now.Add(-9*time.Second)
	return &l
}

// with returns a candidate whose endpoint has n requests in flight and that
// load.
func with(name string, n int, l *pool.Load) Candidate {
	e := &pool.Endpoint{Spec: pool.Spec{Name: name, Address: name}, State: &pool.State{}, Publishers: make([]pool.Publisher, 1)}
	for range n {
		e.State.Reserve(0)
	}
	if l != nil {
		e.State.SetLoad(l)
	}
	return Candidate{Endpoint: e, held: held{trust: kvindex.TrustExact}}
}

// weighed returns the costs of cands under a strategy.
func weighed(t testing.TB, name string, req Request, cands []Candidate, change func(*scene)) ([]float64, Reason) {
	t.Helper()
	st, err := newSettings(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	s, err := lookUp(st.table, name)
	if err != nil {
		t.Fatal(err)
	}
	sc := &scratch{candidates: cands}
	sc.scene = scene{req: &req, settings: st, rand: rand.New(rand.NewPCG(1, 1))}
	if change != nil {
		change(&sc.scene)
	}
	(&board{}).begin(&sc.scene, now)
	for i := range cands {
		cands[i].look(&sc.scene)
	}
	reason, _ := s.weigh(sc)
	var costs []float64
	for i := range cands {
		c := &cands[i]
		costs = append(costs, c.Cost)
		if !c.Missing && !math.IsInf(c.Cost, 0) && reason == ReasonNone {
			sum := 0.0
			for _, term := range s.termsOf(&sc.scene, c, nil) {
				sum += term.Value
			}
			if math.Abs(sum-c.Cost) > 1e-9*max(1, math.Abs(c.Cost)) {
				t.Errorf("the terms of %s under %s sum up to %v, its cost is %v", c.Endpoint.Name, name, sum, c.Cost)
			}
		}
	}
	return costs, reason
}

func TestStrategies_Formulas(t *testing.T) {
	usage := func(kv, running float64, inFlightThen int64) *pool.Load {
		return fresh(pool.Load{Has: pool.FieldKVUsage | pool.FieldRequests, KVUsage: kv, Running: running, InFlight: inFlightThen})
	}
	latency := func(q, p, d float64) *pool.Load {
		return fresh(pool.Load{Has: pool.FieldLatency, QueueSeconds: q, PrefillSeconds: p, DecodeSeconds: d})
	}
	rates := func(prompt, generated float64) *pool.Load {
		return fresh(pool.Load{Has: pool.FieldThroughput, PromptRate: prompt, GenerationRate: generated})
	}
	turn := func(name string, n uint64) Candidate {
		c := with(name, 0, nil)
		c.Endpoint.State.SetTurn(n)
		return c
	}
	lora := func(max int, names ...string) *pool.Load {
		return fresh(pool.Load{Has: pool.FieldAdapters, Adapters: names, MaxAdapters: max})
	}
	busy := func(name string, backlog time.Duration, n int, l *pool.Load) Candidate {
		c := with(name, n, l)
		c.Endpoint.State.Enqueue(now, backlog)
		return c
	}
	tests := []struct {
		strategy string
		cands    []Candidate
		change   func(*scene)
		want     []float64
	}{
		{"random", []Candidate{with("a", 3, nil), with("b", 0, nil)}, nil, []float64{0, 0}},
		{"round-robin", []Candidate{turn("a", 7), turn("b", 0), turn("c", 3)}, nil, []float64{7, 0, 3}},
		{"least-request", []Candidate{with("a", 3, nil), with("b", 0, nil)}, nil, []float64{3, 0}},
		{"throughput", []Candidate{with("a", 0, rates(100, 5)), with("b", 9, rates(0, 5))}, nil, []float64{205, 5}},
		// 2 requests more than at the read, each of a fourth of what 4 use.
		{"least-gpu-cache", []Candidate{with("a", 3, usage(.4, 4, 1)), with("b", 0, usage(.4, 4, 0))}, nil, []float64{.6, .4}},
		// Requests that ended are taken away, down to nothing; an idle engine's
		// requests are taken to use 1/256.
		{"least-gpu-cache", []Candidate{with("a", 0, usage(.4, 1, 2)), with("b", 2, usage(0, 0, 0))}, nil, []float64{0, 2. / 256}},
		{"least-kv-cache", []Candidate{
			with("a", 0, fresh(pool.Load{Has: pool.FieldKVUsage | pool.FieldHostUsage, KVUsage: .25, HostUsage: .5})),
			with("b", 0, fresh(pool.Load{Has: pool.FieldKVUsage, KVUsage: .5})),
		}, nil, []float64{.75, .5}},
		{"least-busy-time", []Candidate{
			with("a", 0, fresh(pool.Load{Has: pool.FieldBusy, Busy: .5})), with("b", 64, fresh(pool.Load{Has: pool.FieldBusy, Busy: .5})),
		}, nil, []float64{.5, .75}},
		{"least-utilization", []Candidate{
			with("a", 0, fresh(pool.Load{Has: pool.FieldUtilization | pool.FieldKVUsage, Utilization: .25, KVUsage: .9})),
			with("b", 0, fresh(pool.Load{Has: pool.FieldKVUsage, KVUsage: .5})),
		}, nil, []float64{.25, .5}},
		{"least-latency", []Candidate{busy("a", time.Second, 0, latency(.1, .2, .3)), with("b", 9, latency(.5, .5, .5))}, nil, []float64{1.6, 1.5}},
		// Loaded; a slot is free; all slots are taken; and the work there.
		{"lora-affinity", []Candidate{
			busy("a", 2*time.Second, 2, lora(2, "x", "l")), with("b", 0, lora(2, "x")), with("c", 0, lora(1, "x")), with("d", 0, lora(0, "x")),
		}, func(s *scene) { s.adapter = "l" }, []float64{2.1, .5, 1, .5}},
		{"lora-affinity", []Candidate{with("a", 2, nil), with("b", 0, lora(1, "x"))}, nil, []float64{.1, 0}},
		// 2 × 1 s of latency and one of 50 ms a request, over 3.
		{"least-latency:2,least-request", []Candidate{with("a", 3, latency(1, 0, 0)), with("b", 0, latency(0, 4, 0))}, nil, []float64{2.15 / 3, 8. / 3}},
	}
	for _, tt := range tests {
		t.Run(tt.strategy, func(t *testing.T) {
			got, reason := weighed(t, tt.strategy, Request{Model: "m"}, tt.cands, tt.change)
			if reason != ReasonNone {
				t.Errorf("fell back: %v", reason)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateApprox(1e-9, 1e-12)); diff != "" {
				t.Errorf("costs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPowerOfTwo_ComparesTheTwoDrawn(t *testing.T) {
	pairs := map[string]int{}
	for seed := range uint64(3000) {
		cands := []Candidate{with("a", 4, nil), with("b", 1, nil), with("c", 7, nil)}
		costs, _ := weighed(t, "power-of-two", Request{}, cands, func(s *scene) { s.rand = rand.New(rand.NewPCG(seed, 3)) })
		drawn := ""
		for i, cost := range costs {
			if math.IsInf(cost, 1) {
				continue
			}
			drawn += cands[i].Endpoint.Name
			if cost != float64(cands[i].inFlight) {
				t.Fatalf("%s costs %v, it has %d requests", cands[i].Endpoint.Name, cost, cands[i].inFlight)
			}
		}
		pairs[drawn]++
	}
	for _, pair := range []string{"ab", "ac", "bc"} {
		if n := pairs[pair]; n < 850 || n > 1150 { // 1000 ± 5.8 standard deviations
			t.Errorf("%s was drawn %d times of 3000: %v", pair, n, pairs)
		}
	}
	if costs, _ := weighed(t, "power-of-two", Request{}, []Candidate{with("a", 4, nil)}, nil); costs[0] != 4 {
		t.Errorf("a single candidate costs %v, want 4", costs[0])
	}
}

// prefixCost is the formula of prefix-cache, written down once more.
func prefixCost(cfg PrefixCacheConfig, prompt, matched, device, expected, trusted, faith, rate, backlog, queue, requests, capacity, computed, churn, pressure float64) float64 {
	believed := faith * trusted
	cached := believed*matched + faith*(expected-matched)
	uncached := prompt - cached
	cost := math.Max(backlog, queue) + requests*cfg.RequestCost.Seconds() + (1+pressure)*(uncached/rate+believed*(matched-device)/cfg.LoadRate)
	if capacity > 0 {
		if over := math.Min(uncached, computed+uncached-capacity); over > 0 {
			cost += pressure * cfg.EvictionPrice * math.Min(1, cfg.ReuseHorizon.Seconds()*churn/capacity) * over / rate
		}
	}
	if cached > 0 && cached >= cfg.AffinityFloor*prompt {
		cost -= math.Min(cfg.Release.Seconds()*cached/prompt, cfg.ReleaseSavings*cached/rate)
	}
	return cost
}

func TestPrefixCache_AgreesWithTheFormula(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		token := func(name string, most int) int { return rapid.IntRange(0, most).Draw(rt, name) }
		share := func(name string) float64 { return float64(token(name, 100)) / 100 }
		cfg := DefaultConfig().PrefixCache
		if rapid.Bool().Draw(rt, "other constants") {
			cfg = PrefixCacheConfig{
				AffinityFloor: share("floor"), Release: time.Duration(token("release", 2000)) * time.Millisecond, ReleaseSavings: 20 * share("savings"),
				EvictionPrice: 10 * share("price"), ReuseHorizon: time.Duration(token("horizon", 600)) * time.Second, InexactFaith: share("faith"),
				PrefillRate: float64(1 + token("prefill rate", 50_000)), LoadRate: float64(1 + token("load rate", 500_000)),
				RequestCost: time.Duration(token("request", 100)) * time.Millisecond,
			}
		}
		prompt := 1 + token("prompt", 100_000)
		expected := token("expected", prompt)
		matched := token("matched", expected)
		device := token("device", matched)
		own := token("in flight", 20)
		c := with("a", own, nil)
		c.matched, c.device, c.expected = matched, device, expected
		trusted := 1.0
		if rapid.Bool().Draw(rt, "inexact") {
			c.trust, trusted = kvindex.TrustIncomplete, cfg.InexactFaith
		}
		state := c.Endpoint.State
		for range token("refutations", 5) {
			state.ObserveCached(100, 50)
		}
		backlog := time.Duration(token("backlog", 5000)) * time.Millisecond
		state.Enqueue(now, backlog)
		churn := 0.0
		if placed := token("placed", 1_000_000); placed > 0 {
			state.Place(now, int64(placed))
			churn = state.Churn(now)
		}
		rate, queue, requests, capacity, computed := cfg.PrefillRate, 0.0, float64(own), 0.0, float64(state.Placed())
		if rapid.Bool().Draw(rt, "metrics") {
			l := pool.Load{
				Has:     pool.FieldRequests | pool.FieldLatency | pool.FieldPrefillRate | pool.FieldCapacity,
				Running: float64(token("running", 30)), Waiting: float64(token("waiting", 30)), InFlight: int64(token("in flight then", 20)),
				PrefillSeconds: .25, DecodeSeconds: .5, PrefillRate: float64(1 + token("rate", 50_000)),
				Capacity: float64(1000 * token("capacity", 500)), Computed: float64(token("computed", 500_000)),
			}
			state.SetLoad(fresh(l))
			rate, capacity, computed = l.PrefillRate, l.Capacity, math.Max(computed, l.Computed)
			queue = l.Waiting * .75 / math.Max(1, l.Running)
			if rapid.Bool().Draw(rt, "told who waits") { // then the backlog is right already
				l.Has |= pool.FieldUnanswered
				state.SetLoad(fresh(l))
				queue = 0
			}
			if rapid.Bool().Draw(rt, "told what is held") && l.Capacity > 0 {
				l.Has |= pool.FieldMemory
				l.Demand, l.StaySeconds = float64(token("demand", 1_000_000)), float64(token("stay", 60))
				l.Placed = int64(token("placed then", int(state.Placed())))
				state.SetLoad(fresh(l))
				missing := l.Demand + float64(state.Placed()-l.Placed+int64(prompt)) - .9*l.Capacity
				queue = missing / (.9 * l.Capacity) * l.StaySeconds
			}
			requests += math.Max(0, l.Running+l.Waiting-float64(l.InFlight))
		}
		pressure := 10 * share("pressure")
		want := prefixCost(cfg, float64(prompt), float64(matched), float64(device), float64(expected), trusted, state.Faith(), rate,
			backlog.Seconds(), queue, requests, capacity, computed, churn, pressure)
		got, _ := weighed(t, "prefix-cache", Request{}, []Candidate{c}, func(s *scene) {
			s.promptTokens, s.pressure = prompt, pressure
			s.settings.cfg.PrefixCache = cfg
		})
		if math.Abs(got[0]-want) > 1e-6*math.Max(1, math.Abs(want)) {
			rt.Fatalf("cost %v, want %v", got[0], want)
		}
	})
}

// Whatever metric is missing, stale or of the wrong kind, a strategy says so
// and goes by requests in flight.
func TestStrategies_MissingData(t *testing.T) {
	all := pool.Load{Has: 1<<31 - 1, KVUsage: .9, Utilization: .9, Busy: .9, PromptRate: 9, QueueSeconds: 9}
	needMetrics := []string{"throughput", "least-kv-cache", "least-gpu-cache", "least-busy-time", "least-latency", "least-utilization", "lora-affinity"}
	adapter := func(s *scene) { s.adapter = "l" }
	for _, s := range strategies() {
		needs := slices.Contains(needMetrics, s.name)
		if rule := s.missing == missingRule; rule != needs {
			t.Errorf("%s: the rule %q, and it needs metrics: %v", s.name, s.missing, needs)
		}
		if !needs {
			continue
		}
		for what, l := range map[string]*pool.Load{"never read": nil, "stale": stale(all), "of another kind": fresh(pool.Load{})} {
			got, reason := weighed(t, s.name, Request{}, []Candidate{with("a", 3, l), with("b", 1, l)}, adapter)
			if reason != ReasonMetricMissing || !reason.Degraded() {
				t.Errorf("%s, metrics %s: reason %v, want %v", s.name, what, reason, ReasonMetricMissing)
			}
			if diff := cmp.Diff([]float64{3, 1}, got); diff != "" {
				t.Errorf("%s, metrics %s, costs (-want +got):\n%s", s.name, what, diff)
			}
			// One of them: as bad as the worst known one, never better.
			low := all
			low.KVUsage, low.Utilization, low.Busy, low.PromptRate, low.QueueSeconds = .1, .1, .1, 1, 1
			cands := []Candidate{with("a", 0, l), with("b", 0, fresh(all)), with("c", 0, fresh(low))}
			got, reason = weighed(t, s.name, Request{}, cands, adapter)
			if reason != ReasonNone || !cands[0].Missing || cands[1].Missing {
				t.Errorf("%s, one's metrics %s: reason %v, missing %v and %v", s.name, what, reason, cands[0].Missing, cands[1].Missing)
			}
			if got[0] != got[1] || (s.name != "lora-affinity" && got[0] <= got[2]) {
				t.Errorf("%s, one's metrics %s: costs %v, want the first equal to the second, the worst", s.name, what, got)
			}
		}
	}
	for _, name := range []string{"session-affinity", "consistent-hash"} {
		got, reason := weighed(t, name, Request{}, []Candidate{with("a", 3, nil), with("b", 1, nil)}, nil)
		if diff := cmp.Diff([]float64{3, 1}, got); reason != ReasonNoKey || diff != "" {
			t.Errorf("%s without a key: %v, costs (-want +got):\n%s", name, reason, diff)
		}
	}
	// A part of a blend that is missing leaves the others to decide.
	got, reason := weighed(t, "least-request:1,least-kv-cache:1", Request{}, []Candidate{with("a", 4, nil), with("b", 2, nil)}, nil)
	if diff := cmp.Diff([]float64{.1, .05}, got, cmpopts.EquateApprox(1e-9, 0)); reason != ReasonMetricMissing || diff != "" {
		t.Errorf("a blend with a missing part: %v, costs (-want +got):\n%s", reason, diff)
	}
	got, reason = weighed(t, "throughput:1,least-kv-cache:1", Request{}, []Candidate{with("a", 4, nil), with("b", 2, nil)}, nil)
	if diff := cmp.Diff([]float64{4, 2}, got); reason != ReasonMetricMissing || diff != "" {
		t.Errorf("a blend without any data: %v, costs (-want +got):\n%s", reason, diff)
	}
}

// drawn returns candidates of any load, for properties.
func drawCandidates(t *rapid.T) []Candidate {
	var cands []Candidate
	for i := range rapid.IntRange(1, 8).Draw(t, "candidates") {
		l := &pool.Load{
			Has: pool.Field(rapid.Uint32Range(0, 1<<11-1).Draw(t, "fields")), KVUsage: float64(rapid.IntRange(0, 4).Draw(t, "kv")) / 4,
			PromptRate: float64(rapid.IntRange(0, 3).Draw(t, "rate")), Busy: .5, Running: 1, PrefillRate: 1000,
			Adapters: []string{"x"}[:rapid.IntRange(0, 1).Draw(t, "adapters")], MaxAdapters: 1, Capacity: 1000,
		}
		if rapid.Bool().Draw(t, "is fresh") {
			l = fresh(*l)
		} else {
			l = stale(*l)
		}
		c := with(fmt.Sprintf("e%d", i), rapid.IntRange(0, 3).Draw(t, "in flight"), l)
		c.matched = rapid.IntRange(0, 100).Draw(t, "matched")
		c.expected = c.matched
		cands = append(cands, c)
	}
	return cands
}

// The order in which candidates come says nothing.
func TestStrategies_ArePermutationInvariant(t *testing.T) {
	for _, s := range append(strategies(), strategy{name: "prefix-cache:2,least-request,least-kv-cache:.5"}) {
		if s.name == "power-of-two" {
			continue // draws places; TestPowerOfTwo_ComparesTheTwoDrawn shows that all are drawn alike
		}
		t.Run(s.name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				cands := drawCandidates(rt)
				req := Request{Session: "s", Prompt: Prompt{Kind: PromptText, Text: "text"}}
				change := func(sc *scene) { sc.promptTokens, sc.adapter = 120, "x" }
				costs, reason := weighed(t, s.name, req, cands, change)
				want := map[string]float64{}
				for i := range cands {
					want[cands[i].Endpoint.Name] = costs[i]
				}
				shuffled := rapid.Permutation(cands).Draw(rt, "order")
				for i := range shuffled {
					shuffled[i].Missing, shuffled[i].Cost = false, 0
				}
				costs, again := weighed(t, s.name, req, shuffled, change)
				if again != reason {
					rt.Fatalf("reasons %v and %v", reason, again)
				}
				for i := range shuffled {
					if got, want := costs[i], want[shuffled[i].Endpoint.Name]; got != want {
						rt.Fatalf("%s costs %v in one order and %v in another", shuffled[i].Endpoint.Name, want, got)
					}
				}
			})
		})
	}
}

// fleet is a pool for whole decisions.
func fleet(tb testing.TB, specs ...pool.Spec) *Router {
	tb.Helper()
	pc := pool.DefaultConfig()
	pc.Static.Endpoints = specs
	p := pool.New(pc, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
	index, err := kvindex.New(kvindex.Config{})
	if err != nil {
		tb.Fatal(err)
	}
	r, err := New(DefaultConfig(), p, index, nil, kvindex.NewHasher(7), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(2, 2)))
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// names of all strategies and a blend.
func allNames() []string { return append(Strategies(), "prefix-cache:2,least-request:1") }

// No strategy chooses or lists an endpoint that is not eligible.
func TestStrategies_NeverChooseAnIneligibleEndpoint(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(rt, "endpoints")
		var specs []pool.Spec
		for i := range n {
			specs = append(specs, pool.Spec{
				Name: fmt.Sprintf("e%d", i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i),
				Models: []string{rapid.SampledFrom([]string{"m", "other"}).Draw(rt, "model")},
				Labels: map[string]string{"tier": rapid.SampledFrom([]string{"gold", "lead"}).Draw(rt, "tier")},
			})
		}
		r := fleet(t, specs...)
		req := Request{Model: "m", Arrived: now, Session: "s", Strategy: rapid.SampledFrom(allNames()).Draw(rt, "strategy")}
		if rapid.Bool().Draw(rt, "filtered") {
			req.Filter = "tier=gold"
		}
		if rapid.Bool().Draw(rt, "restricted") {
			req.Subset = []string{}
			for range rapid.IntRange(0, 20).Draw(rt, "subset") {
				req.Subset = append(req.Subset, fmt.Sprintf("127.0.0.1:%d", 1000+rapid.IntRange(0, 8).Draw(rt, "address")))
			}
		}
		eligible, cooling := map[string]bool{}, map[string]bool{}
		for _, e := range r.pool.Snapshot().Endpoints {
			if e.Models[0] != "m" || (req.Filter != "" && e.Labels["tier"] != "gold") || (req.Subset != nil && !slices.Contains(req.Subset, e.Address)) {
				continue
			}
			if rapid.Bool().Draw(rt, "failed") {
				e.State.Observe(now, pool.OutcomeFailure)
				cooling[e.Name] = true
			} else {
				eligible[e.Name] = true
			}
		}
		if len(eligible) == 0 {
			eligible = cooling
		}
		c := NewContext(t.Context(), req)
		r.Route(c)
		target, err := c.Target(t.Context())
		if len(eligible) == 0 {
			if err == nil {
				rt.Fatalf("no endpoint is eligible, and %s was chosen", target.Endpoints[0].Name)
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		seen := map[string]bool{}
		for _, e := range target.Endpoints {
			if !eligible[e.Name] || seen[e.Name] {
				rt.Fatalf("%s is in the list, eligible are %v, seen %v", e.Name, eligible, seen)
			}
			seen[e.Name] = true
		}
		if want := min(3, len(eligible)); len(seen) != want {
			rt.Fatalf("%d endpoints in the list, want %d", len(seen), want)
		}
	})
}

// Equal candidates are drawn from by the injected randomness: all are reached,
// and the same seed draws the same.
func TestStrategies_DrawAmongEquals(t *testing.T) {
	var specs []pool.Spec
	for i := range 4 {
		specs = append(specs, pool.Spec{Name: fmt.Sprintf("e%d", i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i), Models: []string{"m"}})
	}
	for _, name := range allNames() {
		if name == "session-affinity" || name == "consistent-hash" {
			continue // no two candidates have the same hash
		}
		t.Run(name, func(t *testing.T) {
			draw := func() (string, map[string]int) {
				var order strings.Builder
				counts := map[string]int{}
				r := fleet(t, specs...)
				for _, e := range r.pool.Snapshot().Endpoints {
					e.State.SetLoad(fresh(pool.Load{Has: 1<<31 - 1}))
				}
				for range 400 {
					for _, e := range r.pool.Snapshot().Endpoints {
						e.State.SetTurn(0)
					}
					c := NewContext(t.Context(), Request{Model: "m", Arrived: now, Strategy: name})
					r.Route(c)
					target, err := c.Target(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					c.Finish()
					counts[target.Endpoints[0].Name]++
					order.WriteString(target.Endpoints[0].Name)
				}
				return order.String(), counts
			}
			one, counts := draw()
			two, _ := draw()
			if one != two {
				t.Error("the same seed draws differently")
			}
			for _, s := range specs {
				if n := counts[s.Name]; n < 50 || n > 150 { // 100 ± 5.8 standard deviations
					t.Errorf("%s was chosen %d times of 400, want about 100", s.Name, n)
				}
			}
		})
	}
}
