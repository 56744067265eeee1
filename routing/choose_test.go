package routing

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// choose routes req on r and returns the target; the request stays in flight.
func choose(t testing.TB, r *Router, req Request) (*Context, Target) {
	t.Helper()
	if req.Arrived.IsZero() {
		req.Arrived = now
	}
	c := NewContext(context.Background(), req)
	r.Route(c)
	target, err := c.Target(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c, target
}

func refused(t testing.TB, r *Router, req Request) *Error {
	t.Helper()
	req.Arrived = now
	c := NewContext(context.Background(), req)
	r.Route(c)
	_, err := c.Target(context.Background())
	if err == nil {
		t.Fatalf("%+v was routed, want an error", req)
	}
	return err
}

func engines(n int) []pool.Spec {
	var specs []pool.Spec
	for i := range n {
		specs = append(specs, pool.Spec{Name: fmt.Sprintf("e%d", i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i), Models: []string{"m"}, Events: fmt.Sprintf("tcp://127.0.0.1:%d", 3000+i)})
	}
	return specs
}

// prefixFleet is n engines that have reported blocks of 16 tokens.
func prefixFleet(tb testing.TB, n int) *Router {
	r := fleet(tb, engines(n)...)
	for _, e := range r.pool.Snapshot().Endpoints {
		e.State.ObserveBlockSize(16)
	}
	return r
}

func counts(r *Router) (n []int64) {
	for _, e := range r.pool.Snapshot().Endpoints {
		n = append(n, e.State.InFlight())
	}
	slices.Sort(n)
	return n
}

// Simultaneous requests with one new prefix. Nobody has answered yet and no
// event has come, so all that can keep them together is what this router knows
// of its own decisions, and all that can part them is the load it has given.
//
// The bound: a holder is left once its cost is above an idle endpoint's by the
// release and the prefill that has to be done again there. Each request costs
// the price of a request, so a holder is at most
// (release + prefill) / price requests ahead of the least loaded endpoint, and
// n requests compute the prefix at most 1 + n × price / release times.
func TestRoute_OneNewPrefixNeitherPilesUpNorScatters(t *testing.T) {
	cfg := DefaultConfig().PrefixCache
	const prompt = 2048
	release := min(cfg.Release.Seconds(), cfg.ReleaseSavings*prompt/cfg.PrefillRate)
	ahead := int64((cfg.Release.Seconds()+prompt/cfg.PrefillRate)/cfg.RequestCost.Seconds()) + 2
	for _, n := range []int{20, 100, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r := prefixFleet(t, 10)
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() { choose(t, r, ids("m", tokens(0, prompt))) })
			}
			wg.Wait()
			got := counts(r)
			if most, least := got[len(got)-1], got[0]; most-least > ahead {
				t.Errorf("%v requests: the most loaded endpoint is %d ahead of the least loaded, want at most %d", got, most-least, ahead)
			}
			used := 0
			for _, k := range got {
				if k > 0 {
					used++
				}
			}
			if most := 1 + int(float64(n)*cfg.RequestCost.Seconds()/release); used > most {
				t.Errorf("%v requests: %d endpoints compute the prefix, want at most %d", got, used, most)
			}
			t.Logf("%d requests of one new prefix over 10 endpoints: %v", n, got)
		})
	}
}

// Cold prompts that have nothing in common spread as least-request does.
func TestRoute_ColdPromptsSpread(t *testing.T) {
	r := prefixFleet(t, 10)
	for i := range 100 {
		choose(t, r, ids("m", tokens(100_000*i, 2048)))
	}
	if got := counts(r); got[0] != 10 || got[9] != 10 {
		t.Errorf("100 different prompts over 10 endpoints: %v, want 10 each", got)
	}
}

// What was decided a moment ago is known to the next decision before any
// index is, until a second has passed or the request has ended.
func TestRecent_CountsForASecond(t *testing.T) {
	r := prefixFleet(t, 4)
	prompt := tokens(0, 4096)
	c, first := choose(t, r, ids("m", prompt))
	same := ids("m", append(slices.Clone(prompt[:2048]), tokens(900_000, 2048)...))
	same.Arrived = now.Add(recentFor)
	d, err := r.Explain(t.Context(), same)
	if err != nil {
		t.Fatal(err)
	}
	if c := d.Candidates[0]; c.Name != first.Endpoints[0].Name || c.ExpectedTokens != 2048 || d.Reason != ReasonPrefix.String() {
		t.Errorf("a second later %s is first, %d tokens expected by %s; want %s, 2048 by prefix", c.Name, c.ExpectedTokens, d.Reason, first.Endpoints[0].Name)
	}
	same.Arrived = now.Add(recentFor + 1)
	if d, _ = r.Explain(t.Context(), same); d.Reason != ReasonCold.String() {
		t.Errorf("later the reason is %s, want cold", d.Reason)
	}
	same.Arrived = now
	c.Finish()
	if d, _ = r.Explain(t.Context(), same); d.Reason != ReasonCold.String() {
		t.Errorf("after the request ended the reason is %s, want cold", d.Reason)
	}
}

func TestCommon_AgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		block := rapid.Uint64Range(0, 1)
		h := kvindex.NewHasher(1)
		chain := func(label string) []kvindex.BlockHash {
			var contents []kvindex.ContentHash
			for _, b := range rapid.SliceOfN(block, 0, 9).Draw(t, label) {
				contents = append(contents, kvindex.ContentHash(b))
			}
			return kvindex.AppendChain(nil, h.Root(kvindex.Scope{}), contents)
		}
		a, b := chain("a"), chain("b")
		want := 0
		for want < min(len(a), len(b)) && a[want] == b[want] {
			want++
		}
		if got := common(a, b); got != want {
			t.Fatalf("common = %d, want %d", got, want)
		}
	})
}

func TestRoute_RoundRobinRotates(t *testing.T) {
	r := fleet(t, engines(3)...)
	req := Request{Model: "m", Strategy: "round-robin"}
	var first []string
	for i := range 12 {
		_, target := choose(t, r, req)
		name := target.Endpoints[0].Name
		if i < 3 {
			first = append(first, name)
		}
		if name != first[i%3] {
			t.Fatalf("request %d went to %s, want the rotation %v", i, name, first)
		}
	}
	sorted := slices.Sorted(slices.Values(first))
	if diff := cmp.Diff([]string{"e0", "e1", "e2"}, sorted); diff != "" {
		t.Errorf("the first three (-want +got):\n%s", diff)
	}
}

func TestRoute_SessionsStaySpillAndReturn(t *testing.T) {
	for _, name := range []string{"session-affinity", "consistent-hash"} {
		t.Run(name, func(t *testing.T) {
			r := fleet(t, engines(5)...)
			req := Request{Model: "m", Strategy: name, Session: "a session"}
			c, target := choose(t, r, req)
			home := target.Endpoints[0]
			c.Finish()
			for range 20 {
				c, target := choose(t, r, req)
				if target.Endpoints[0] != home || target.Reason != ReasonAffinity {
					t.Fatalf("an idle session moved from %s to %s by %v", home.Name, target.Endpoints[0].Name, target.Reason)
				}
				c.Finish()
			}
			// Load-bounded: of many requests of one session the home takes no more
			// than 1.25 times the mean, rounded up.
			for i := range 200 {
				choose(t, r, req)
				if most := int64(math.Ceil(1.25 * float64(i+1) / 5)); home.State.InFlight() > most {
					t.Fatalf("after %d requests the home has %d, want at most %d", i+1, home.State.InFlight(), most)
				}
			}
			// Spilled to the next of the session's own order, not at random.
			second := target.Endpoints[1]
			if second.State.InFlight() < home.State.InFlight() {
				t.Errorf("the second choice has %d requests, the home %d", second.State.InFlight(), home.State.InFlight())
			}
		})
	}
	// A vanished endpoint moves only its own sessions.
	r, smaller := fleet(t, engines(5)...), fleet(t, engines(5)[1:]...)
	moved := 0
	for i := range 200 {
		req := Request{Model: "m", Strategy: "session-affinity", Session: fmt.Sprint(i)}
		c, before := choose(t, r, req)
		c.Finish()
		c, after := choose(t, smaller, req)
		c.Finish()
		switch b, a := before.Endpoints[0].Name, after.Endpoints[0].Name; {
		case b == "e0":
			moved++
		case a != b:
			t.Fatalf("session %d moved from %s to %s though %s is there", i, b, a, b)
		}
	}
	if moved < 20 || moved > 65 { // 40 ± 4.4 standard deviations
		t.Errorf("%d of 200 sessions lived on one of five endpoints", moved)
	}
}

func TestConsistentHash_Keys(t *testing.T) {
	long := strings.Repeat("a", keyBytes)
	key := func(r Request) uint64 {
		k, ok := promptKey(&r)
		if !ok {
			t.Fatalf("%+v has no key", r)
		}
		return k
	}
	text := func(s string) Request { return Request{Session: "s", Prompt: Prompt{Kind: PromptText, Text: s}} }
	chat := func(s string) Request { return Request{Prompt: Prompt{Kind: PromptChat, Messages: []byte(s)}} }
	for name, same := range map[string][2]Request{
		"text that differs behind the beginning": {text(long + "x"), text(long + "y")},
		"chat that differs behind the beginning": {chat(long + "x"), chat(long + "y")},
		"ids that differ behind the beginning":   {ids("m", append(tokens(0, keyTokens), 1)), ids("m", append(tokens(0, keyTokens), 2))},
	} {
		if key(same[0]) != key(same[1]) {
			t.Errorf("%s: two keys", name)
		}
	}
	all := map[uint64]string{}
	for name, r := range map[string]Request{
		"text": text("b"), "other text": text("c"), "chat": chat("[1]"), "ids": ids("m", tokens(0, 9)), "other ids": ids("m", tokens(1, 9)),
		"session": {Session: "s1", User: "u"}, "user": {User: "u"},
	} {
		if other, dup := all[key(r)]; dup {
			t.Errorf("%s and %s have one key", name, other)
		}
		all[key(r)] = name
	}
	if _, ok := promptKey(&Request{Prompt: Prompt{Kind: PromptChat}}); ok {
		t.Error("a request with nothing has a key")
	}
}

func TestBlend_Parse(t *testing.T) {
	table := strategyTable()
	good := map[string]string{
		"prefix-cache:2,least-request:1":           "prefix-cache:2,least-request:1",
		" least-request , prefix-cache : 0.5 ":     "least-request:1,prefix-cache:0.5",
		"least-request:1000000,throughput:0":       "least-request:1e+06",
		"least-request,":                           "",
		"least-request:":                           "",
		"least-request:-1":                         "",
		"least-request:1000001":                    "",
		"least-request:NaN":                        "",
		"least-request:one":                        "",
		"least-request:0,prefix-cache:0":           "",
		"least-request,least-request":              "",
		"random,least-request":                     "",
		"session-affinity:1,least-request":         "",
		"pd,least-request":                         "",
		"nope:1":                                   "",
		strings.Repeat("least-request,", 60) + "x": "",
	}
	says := map[string]string{
		"least-request,": "empty part", "least-request:-1": `the weight "-1" of "least-request"`, "least-request:0,prefix-cache:0": "every weight",
		"least-request,least-request": "twice", "random,least-request": `"random" cannot be a part of a blend`, "pd,least-request": "not offered here",
		"nope:1": `"nope" is not a strategy`, strings.Repeat("least-request,", 60) + "x": "too long",
	}
	for text, want := range good {
		s, err := lookUp(table, text)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q was taken as %s", clip(text), s.name)
		case want == "" && !strings.Contains(err.Error(), says[text]):
			t.Errorf("%q: %v, want it to say %q", clip(text), err, says[text])
		case want != "" && (err != nil || s.name != want):
			t.Errorf("%q: %v, %v; want %s", text, s, err, want)
		}
		if err == nil {
			sum := 0.0
			for _, p := range s.blend {
				sum += p.weight
			}
			if math.Abs(sum-1) > 1e-12 {
				t.Errorf("%q: the weights sum up to %v", text, sum)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("prefix-cache:2,least-request:1")
	f.Add("tier in (gold,lead),!old,zone!=a")
	table := strategyTable()
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := lookUp(table, text); err == nil {
			if again, err := lookUp(table, s.name); err != nil || again.name != s.name {
				t.Errorf("%q gives %q, and that gives %v, %v", text, s.name, again, err)
			}
		}
		if sel, err := parseSelector(text); err == nil {
			sel.matches(map[string]string{"tier": "gold"})
		}
	})
}

func TestExpressions_AreBounded(t *testing.T) {
	table := strategyTable()
	var e expressions
	for i := range 10 * maxExpressions {
		s, err := e.lookUp(table, fmt.Sprintf("prefix-cache:%d,least-request", i+1))
		if err != nil || len(s.blend) != 2 {
			t.Fatal(s, err)
		}
		if len(e.parsed) > maxExpressions {
			t.Fatalf("%d expressions are remembered, want at most %d", len(e.parsed), maxExpressions)
		}
	}
	text := fmt.Sprintf("prefix-cache:%d,least-request", 10*maxExpressions)
	a, _ := e.lookUp(table, text)
	b, _ := e.lookUp(table, text)
	if a != b {
		t.Error("an expression was parsed twice")
	}
	if _, err := e.lookUp(table, "no:1"); err == nil || e.parsed["no:1"] != nil {
		t.Error("a wrong expression is remembered")
	}
}

func TestStrategies_OfAIBrixThatAreNotOffered(t *testing.T) {
	r := fleet(t, engines(1)...)
	for _, name := range []string{"vtc-basic", "slo", "slo-pack-load", "slo-least-load", "slo-least-load-pulling", "pd", "prefix-cache-preble"} {
		err := refused(t, r, Request{Model: "m", Strategy: name})
		if err.Reason != ReasonUnknownStrategy || !strings.Contains(err.Message, "not offered here") || !strings.Contains(err.Message, "prefix-cache") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSelector(t *testing.T) {
	labels := map[string]string{"tier": "gold", "zone": "a", "empty": "", "example.com/x": "1"}
	tests := map[string]bool{
		"tier=gold": true, "tier==gold": true, "tier=lead": false, "tier!=lead": true, "tier!=gold": false, "none!=x": true,
		"tier": true, "!tier": false, "!none": true, "none": false, "tier in (gold, lead)": true, "tier in(lead)": false,
		"tier notin (gold)": false, "tier notin (lead),zone=a": true, "none notin (x)": true, "tier=gold,zone=b": false,
		"example.com/x=1": true, " tier = gold , zone ": true, "empty=": true, "tier=": false, "empty in ()": true, "tier in (,gold)": true,
	}
	for text, want := range tests {
		sel, err := parseSelector(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := sel.matches(labels); got != want {
			t.Errorf("%q matches: %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{"=a", "tier gold", "tier in gold", "tier in (gold", "tier=gold zone=a", "tier=gold,", "tier>1", "(a)", "tier in (a b)", strings.Repeat("a,", 3000) + "a"} {
		if sel, err := parseSelector(text); err == nil {
			t.Errorf("%q was taken as %+v", clip(text), sel)
		}
	}
	r := fleet(t, engines(2)...)
	if err := refused(t, r, Request{Model: "m", Filter: "tier in gold"}); err.Reason != ReasonBadRequest || err.Param != "external-filter" {
		t.Errorf("a malformed filter: %+v", err)
	}
	if err := refused(t, r, Request{Model: "m", Filter: "tier=gold"}); err.Reason != ReasonNoEndpoint || !strings.Contains(err.Message, "tier=gold") {
		t.Errorf("a filter that nothing meets: %+v", err)
	}
}

// A lock goes before the header before the profile before the default.
func TestChoose_Precedence(t *testing.T) {
	annotated := engines(2)
	annotated[0].Annotations = map[string]string{pool.AnnotationProfiles: `{"defaultProfile":"pod","profiles":{"pod":{"routingStrategy":"throughput","requestsPerSecond":3},"batch":{"routingStrategy":"least-kv-cache"}}}`}
	locked := engines(2)
	locked[1].Annotations = map[string]string{pool.AnnotationProfiles: `{"lockedRoutingStrategy":"random"}`}
	broken := engines(2)
	broken[0].Annotations = map[string]string{pool.AnnotationProfiles: `{"lockedRoutingStrategy":"pd"}`}
	cfg := DefaultConfig()
	cfg.Profiles = map[string]Profile{"fast": {Strategy: "least-latency"}, "fixed": {Strategy: "round-robin", Locked: true}, "batch": {Strategy: "least-request"}}
	withDefault, withLock := cfg, cfg
	withDefault.DefaultProfile = "fast"
	withLock.Lock = "power-of-two"
	tests := []struct {
		name            string
		specs           []pool.Spec
		cfg             Config
		header, profile string
		strategy        string
		by              Chooser
	}{
		{"nothing said", engines(2), cfg, "", "", "prefix-cache", ByDefault},
		{"header", engines(2), cfg, "random", "", "random", ByHeader},
		{"profile", engines(2), cfg, "", "fast", "least-latency", ByProfile},
		{"header before profile", engines(2), cfg, "random", "fast", "random", ByHeader},
		{"locked profile before header", engines(2), cfg, "random", "fixed", "round-robin", ByLock},
		{"default profile", engines(2), withDefault, "", "", "least-latency", ByProfile},
		{"lock before all", engines(2), withLock, "random", "fixed", "power-of-two", ByLock},
		{"annotation's default", annotated, withDefault, "", "", "throughput", ByProfile},
		{"annotation's profile before the file's", annotated, cfg, "", "batch", "least-kv-cache", ByProfile},
		{"the file's profile beside an annotation", annotated, cfg, "", "fast", "least-latency", ByProfile},
		{"annotation's lock", locked, cfg, "least-request", "", "random", ByLock},
		{"annotation with a fault", broken, cfg, "", "", "prefix-cache", ByDefault},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := fleet(t, tt.specs...)
			if err := r.Reload(tt.cfg); err != nil {
				t.Fatal(err)
			}
			choose(t, r, Request{Model: "m", Strategy: tt.header, Profile: tt.profile})
			d := r.Decisions(nil)[0]
			if d.Strategy != tt.strategy || d.ChosenBy != tt.by {
				t.Errorf("%s chosen by %s, want %s by %s", d.Strategy, d.ChosenBy, tt.strategy, tt.by)
			}
		})
	}
	r := fleet(t, annotated...)
	if err := refused(t, r, Request{Model: "m", Profile: "nope"}); err.Reason != ReasonBadRequest || err.Param != "config-profile" || !strings.Contains(err.Message, "batch, pod") {
		t.Errorf("an unknown profile: %+v", err)
	}
}

func TestReload_ReplacesAllOrNothing(t *testing.T) {
	r := fleet(t, engines(3)...)
	for i := range 5 {
		c, _ := choose(t, r, Request{Model: "m", ID: fmt.Sprint(i)})
		c.Finish()
	}
	bad := DefaultConfig()
	bad.Strategy, bad.Fallbacks = "random", 99
	if err := r.Reload(bad); err == nil || !strings.Contains(err.Error(), "fallbacks: 99") {
		t.Errorf("Reload of a wrong configuration: %v", err)
	}
	if _, target := choose(t, r, Request{Model: "m", ID: "5"}); target.Strategy != "prefix-cache" || len(target.Endpoints) != 3 {
		t.Errorf("after a refused reload: %s, %d endpoints", target.Strategy, len(target.Endpoints))
	}
	good := DefaultConfig()
	good.Strategy, good.Fallbacks, good.Decisions = "random", 0, 3
	if err := r.Reload(good); err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, d := range r.Decisions(nil) {
		kept = append(kept, d.RequestID)
	}
	if diff := cmp.Diff([]string{"5", "4", "3"}, kept); diff != "" {
		t.Errorf("decisions kept (-want +got):\n%s", diff)
	}
	if _, target := choose(t, r, Request{Model: "m", ID: "6"}); target.Strategy != "random" || len(target.Endpoints) != 1 {
		t.Errorf("after a reload: %s, %d endpoints", target.Strategy, len(target.Endpoints))
	}
	if got := r.Decisions(nil); len(got) != 3 || got[0].RequestID != "6" || got[2].RequestID != "4" {
		t.Errorf("decisions after the next one: %d, newest %s", len(got), got[0].RequestID)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				if i%2 == 0 {
					c, _ := choose(t, r, Request{Model: "m", Strategy: "least-request"})
					c.Finish()
				} else if err := r.Reload(map[bool]Config{true: good, false: DefaultConfig()}[i%4 == 1]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// Endpoints that fail requests are left within one request and come back.
func TestAnswered_CoolsDownAndProbesBack(t *testing.T) {
	req := func(at time.Duration) Request {
		return Request{Model: "m", Strategy: "session-affinity", Session: "s", Arrived: now.Add(at)}
	}
	r := fleet(t, engines(3)...)
	c, target := choose(t, r, req(0))
	home, next := target.Endpoints[0], target.Endpoints[1]
	c.Answered(503, now)
	c.Finish()
	c, target = choose(t, r, req(time.Millisecond))
	if target.Endpoints[0] != next {
		t.Errorf("after a 503 the next request goes to %s, want %s", target.Endpoints[0].Name, next.Name)
	}
	c.Finish()
	// On trial after a second: one request probes, the others stay away.
	trial, target := choose(t, r, req(time.Second))
	if target.Endpoints[0] != home {
		t.Fatalf("the trial goes to %s, want %s", target.Endpoints[0].Name, home.Name)
	}
	if _, target := choose(t, r, req(1100*time.Millisecond)); target.Endpoints[0] == home {
		t.Error("a second request follows the trial before it has ended")
	}
	trial.Answered(200, now.Add(1200*time.Millisecond))
	trial.Finish()
	if _, target := choose(t, r, req(1300*time.Millisecond)); target.Endpoints[0] != home {
		t.Errorf("after a good answer the next request goes to %s, want %s again", target.Endpoints[0].Name, home.Name)
	}

	// Passed over by the proxy: the endpoints before the one that answered.
	r = fleet(t, engines(3)...)
	c, target = choose(t, r, Request{Model: "m", Strategy: "least-request"})
	c.Served(target.Endpoints[2])
	c.Answered(200, now)
	for i, e := range target.Endpoints {
		if got, want := e.Cooling(now), i < 2; got != want {
			t.Errorf("place %d cools down: %v, want %v", i, got, want)
		}
	}
	// All that is left are endpoints that failed: they are used.
	target.Endpoints[2].State.Observe(now, pool.OutcomeFailure)
	c, _ = choose(t, r, Request{Model: "m"})
	c.Finish()
	if d := r.Decisions(nil)[0]; !d.Candidates[0].Cooling || d.Considered != 3 {
		t.Errorf("with all cooling down %d are considered, the first as cooling: %v", d.Considered, d.Candidates[0].Cooling)
	}

	// Ends without an answer count once they were waited for, three in a row.
	r = fleet(t, engines(1)...)
	e := r.pool.Snapshot().Endpoints[0]
	for i, wait := range []time.Duration{time.Second, 10 * time.Millisecond, time.Second, time.Second} {
		c, _ := choose(t, r, Request{Model: "m"})
		c.Unanswered(now.Add(wait))
		c.Finish()
		if got, want := e.Cooling(now.Add(time.Second)), i == 3; got != want {
			t.Errorf("after %d ends without an answer: cooling %v, want %v", i+1, got, want)
		}
	}
}

// Whatever happens to requests, nothing stays reserved.
func TestContext_ReleasesWhatItReserved(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := prefixFleet(t, 3)
		es := r.pool.Snapshot().Endpoints
		for range rapid.IntRange(1, 10).Draw(rt, "requests") {
			req := ids("m", tokens(rapid.IntRange(0, 3).Draw(rt, "prompt")*5000, 500))
			req.Stream = rapid.Bool().Draw(rt, "stream")
			c, _ := choose(t, r, req)
			if rapid.Bool().Draw(rt, "retried") {
				c.Served(es[rapid.IntRange(0, 2).Draw(rt, "served")])
			}
			if rapid.Bool().Draw(rt, "answered") {
				c.Answered(rapid.SampledFrom([]int{200, 429, 500, 503}).Draw(rt, "status"), now.Add(time.Millisecond))
				if rapid.Bool().Draw(rt, "done") {
					c.PrefillDone()
				}
			}
			if rapid.Bool().Draw(rt, "compared") {
				c.Cached(rapid.IntRange(0, 600).Draw(rt, "cached"))
			}
			c.Finish()
		}
		for _, e := range es {
			if s := e.State; s.InFlight() != 0 || s.PrefillTokens() != 0 || s.ContextTokens() != 0 || s.Backlog(now.Add(time.Hour)) != 0 {
				rt.Fatalf("%s: %d requests, %d prefill tokens, %d context tokens are left", e.Name, s.InFlight(), s.PrefillTokens(), s.ContextTokens())
			}
		}
	})
}

// The answer's headers end the prefill unless the answer is streamed.
func TestAnswered_EndsThePrefillOfWholeAnswers(t *testing.T) {
	for stream, left := range map[bool]time.Duration{false: 0, true: time.Second} {
		r := prefixFleet(t, 1)
		req := ids("m", tokens(0, int(DefaultConfig().PrefixCache.PrefillRate)))
		req.Stream = stream
		c, target := choose(t, r, req)
		c.Answered(200, now)
		if got := target.Endpoints[0].State.Backlog(now); got != left {
			t.Errorf("stream %v: %v of a second's prefill is left, want %v", stream, got, left)
		}
		c.Finish()
	}
}

func TestCached_LowersFaith(t *testing.T) {
	w := newWorld(t, static(2), nil)
	prompt := tokens(0, 400)
	w.hold(0, kvindex.Scope{Model: "m"}, prompt)
	for range 30 {
		c, _, err := w.route(ids("m", prompt))
		if err != nil {
			t.Fatal(err)
		}
		c.Cached(0)
		c.Finish()
	}
	// It falls until the endpoint is no longer chosen for what it reports.
	if f := w.pool.Snapshot().Endpoints[0].State.Faith(); f > .2 {
		t.Errorf("after 30 refuted predictions faith is %v", f)
	}
}

func TestRoute_SpillsWhenTheHolderIsBusy(t *testing.T) {
	w := newWorld(t, static(2), nil)
	prompt := tokens(0, 200) // 2 s of prefill at the 100 tokens/s of these tests
	w.hold(0, kvindex.Scope{Model: "m"}, prompt)
	holder := w.pool.Snapshot().Endpoints[0].State
	req := ids("m", prompt)
	req.Arrived = now
	holder.Enqueue(now, 2*time.Second) // less than prefill and release together
	if c, target, _ := w.route(req); target.Endpoints[0].Name != "e0" || target.Reason != ReasonPrefix {
		t.Errorf("went to %s by %v, want the holder", target.Endpoints[0].Name, target.Reason)
	} else {
		c.Finish()
	}
	// More than the release, and than prefill under the pressure of that wait.
	holder.Enqueue(now, 8*time.Second)
	if _, target, _ := w.route(req); target.Endpoints[0].Name != "e1" || target.Reason != ReasonSpill {
		t.Errorf("went to %s by %v, want the other by spill", target.Endpoints[0].Name, target.Reason)
	}
}

// Subsets of many addresses are looked up in another way than short ones.
func TestSubset_ManyAddresses(t *testing.T) {
	r := fleet(t, engines(40)...)
	req := Request{Model: "m", Strategy: "random"}
	for i := range 20 {
		req.Subset = append(req.Subset, fmt.Sprintf("127.0.0.1:%d", 1010+i))
	}
	for range 50 {
		_, target := choose(t, r, req)
		for _, e := range target.Endpoints {
			if !slices.Contains(req.Subset, e.Address) {
				t.Fatalf("%s is not in the subset", e.Address)
			}
		}
	}
	choose(t, r, Request{Model: "m", Subset: []string{"127.0.0.1:1000"}})
}

// Against a dumb model: sort.
func TestFirst_AgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sc := &scratch{}
		for i := range rapid.IntRange(1, 12).Draw(t, "candidates") {
			cost := float64(rapid.IntRange(0, 3).Draw(t, "cost"))
			if cost == 3 {
				cost = math.Inf(1)
			}
			sc.candidates = append(sc.candidates, Candidate{Endpoint: &pool.Endpoint{ID: kvindex.EndpointID(i)}, Cost: cost})
		}
		n, draw := rapid.IntRange(1, len(sc.candidates)).Draw(t, "n"), rapid.Uint64().Draw(t, "draw")
		want := slices.Clone(sc.candidates)
		slices.SortFunc(want, func(a, b Candidate) int {
			return order(a.Cost, b.Cost, mix64(draw^uint64(a.Endpoint.ID)), mix64(draw^uint64(b.Endpoint.ID)))
		})
		sc.first(n, draw)
		seen := map[kvindex.EndpointID]bool{}
		for i, c := range sc.candidates {
			if i < n && c.Endpoint != want[i].Endpoint {
				t.Fatalf("place %d has endpoint %d, want %d", i, c.Endpoint.ID, want[i].Endpoint.ID)
			}
			seen[c.Endpoint.ID] = true
		}
		if len(seen) != len(want) {
			t.Fatal("a candidate was lost")
		}
	})
}

// order compares costs and, where they are equal, draws.
func order(a, b float64, x, y uint64) int {
	switch {
	case a < b, a == b && x < y:
		return -1
	case a == b && x == y:
		return 0
	}
	return 1
}

func benchmarkFleet(tb testing.TB, n int) (*Router, *scratch) {
	r := fleet(tb, engines(n)...)
	random := rand.New(rand.NewPCG(5, 5))
	sc := &scratch{}
	for _, e := range r.pool.Snapshot().Endpoints {
		e.State.SetLoad(fresh(pool.Load{
			Has: 1<<31 - 1, KVUsage: random.Float64(), Running: 4, Capacity: 100_000, PrefillRate: 9000, Adapters: []string{"l"},
		}))
		e.State.Place(now, 1000)
		e.State.Enqueue(now, time.Duration(random.IntN(1e9)))
		matched := random.IntN(2000)
		sc.candidates = append(sc.candidates, Candidate{Endpoint: e, held: held{trust: kvindex.TrustExact, matched: matched, expected: matched}})
	}
	return r, sc
}

func judged(tb testing.TB, r *Router, name string) *prospect {
	st := r.settings.Load()
	s, err := lookUp(st.table, name)
	if err != nil {
		tb.Fatal(err)
	}
	return &prospect{choice: choice{strategy: s}, reason: ReasonPrefix, promptTokens: 2048, adapter: "l"}
}

func TestJudge_AllocatesNothing(t *testing.T) {
	r, sc := benchmarkFleet(t, 1000)
	req := &Request{Arrived: now, Session: "s", Prompt: Prompt{Kind: PromptText, Text: "text"}}
	for _, name := range allNames() {
		p := judged(t, r, name)
		st := r.settings.Load()
		if n := testing.AllocsPerRun(5, func() { r.judge(st, req, sc, p, 0); sc.first(3, r.rand.Uint64()) }); n != 0 {
			t.Errorf("%s: judging 1,000 endpoints allocates %v times, want 0", name, n)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	for _, n := range []int{16, 1000} {
		r, sc := benchmarkFleet(b, n)
		req := &Request{Arrived: now, Session: "s", Prompt: Prompt{Kind: PromptText, Text: "text"}}
		for _, name := range allNames() {
			p := judged(b, r, name)
			st := r.settings.Load()
			b.Run(fmt.Sprintf("%s/endpoints=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					r.judge(st, req, sc, p, 0)
					sc.first(3, r.rand.Uint64())
				}
			})
		}
	}
}

// A whole decision, with what it keeps, over many endpoints.
func BenchmarkRoute(b *testing.B) {
	for _, n := range []int{10, 1000} {
		r, _ := benchmarkFleet(b, n)
		for _, e := range r.pool.Snapshot().Endpoints {
			e.State.ObserveBlockSize(16)
		}
		for _, name := range []string{"random", "least-request", "least-kv-cache", "prefix-cache"} {
			req := ids("m", tokens(0, 256))
			req.Strategy = name
			b.Run(fmt.Sprintf("%s/endpoints=%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					c := NewContext(context.Background(), req)
					r.Route(c)
					c.Finish()
				}
			})
		}
	}
}
