package routing

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

const blockSize = 4

// world is a router over a real pool and a real index.
type world struct {
	tb      rapid.TB
	pool    *pool.Pool
	index   *kvindex.Index
	hasher  kvindex.Hasher
	router  *Router
	writers []*kvindex.Writer
}

// static returns n endpoints that serve the model "m".
func static(n int) pool.Config {
	cfg := pool.DefaultConfig()
	for i := range n {
		cfg.Static.Endpoints = append(cfg.Static.Endpoints, pool.Spec{
			Name: fmt.Sprintf("e%d", i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i),
			Models: []string{"m", "alias"}, Adapters: []string{"lora"}, Events: fmt.Sprintf("tcp://127.0.0.1:%d", 2000+i),
		})
	}
	return cfg
}

func newWorld(tb rapid.TB, pc pool.Config, tokenizer Tokenizer) *world {
	tb.Helper()
	w := &world{tb: tb, hasher: kvindex.NewHasher(7)}
	w.pool = pool.New(pc, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
	var err error
	if w.index, err = kvindex.New(kvindex.Config{}); err != nil {
		tb.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.PrefixCache.RequestCost = 5e6 // 5 ms: less than the prefill of a block
	cfg.PrefixCache.PrefillRate = 100 // the prompts of tests are short, their prefill is not
	if w.router, err = New(cfg, w.pool, w.index, tokenizer, w.hasher, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(2, 2))); err != nil {
		tb.Fatal(err)
	}
	for _, e := range w.pool.Snapshot().Endpoints {
		for _, p := range e.Publishers {
			wr, err := w.index.Open(p.Publisher)
			if err != nil {
				tb.Fatal(err)
			}
			w.writers = append(w.writers, wr)
		}
	}
	return w
}

// hold makes endpoint i hold the full blocks of tokens.
func (w *world) hold(i int, scope kvindex.Scope, tokens []kvindex.TokenID) {
	scope.BlockSize = blockSize
	contents := w.hasher.AppendContents(nil, tokens, blockSize)
	names := make([]kvindex.EngineHash, len(contents))
	for j, b := range kvindex.AppendChain(nil, w.hasher.Root(scope), contents) {
		names[j] = kvindex.EngineHash(b)
	}
	w.pool.Snapshot().Endpoints[i].State.ObserveBlockSize(blockSize)
	w.writers[i].Store(kvindex.Stored{Root: w.hasher.Root(scope), Names: names, Contents: contents})
	w.writers[i].SetTrust(kvindex.TrustExact)
}

// route decides a request and returns its promise, still in flight.
func (w *world) route(r Request) (*Context, Target, *Error) {
	c := NewContext(context.Background(), r)
	w.router.Route(c)
	t, err := c.Target(context.Background())
	return c, t, err
}

func tokens(from, n int) []kvindex.TokenID {
	var ts []kvindex.TokenID
	for i := range n {
		ts = append(ts, kvindex.TokenID(from+i))
	}
	return ts
}

func ids(model string, ts []kvindex.TokenID) Request {
	return Request{Model: model, Prompt: Prompt{Kind: PromptTokens, Tokens: ts}, Arrived: now}
}

func TestRoute_Errors(t *testing.T) {
	w := newWorld(t, static(2), nil)
	empty := newWorld(t, pool.DefaultConfig(), nil)
	tests := []struct {
		name string
		w    *world
		req  Request
		want Reason
		says string
	}{
		{"unknown strategy", w, Request{Model: "m", Strategy: "fastest"}, ReasonUnknownStrategy, "prefix-cache, queue, random, round-robin"},
		{"long strategy", w, Request{Model: "m", Strategy: strings.Repeat("x", 5000)}, ReasonUnknownStrategy, "x…"},
		{"unknown model", w, Request{Model: "nope"}, ReasonModelNotFound, `"nope" does not exist; this gateway serves alias, lora, m`},
		{"subset without a candidate", w, Request{Model: "m", Subset: []string{"10.0.0.1:1"}}, ReasonNoEndpoint, "subset"},
		{"empty subset", w, Request{Model: "m", Subset: []string{}}, ReasonNoEndpoint, "subset"},
		{"no endpoint at all", empty, Request{Model: "m"}, ReasonNoEndpoint, `"m"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := tt.w.route(tt.req)
			if err == nil || err.Reason != tt.want || !strings.Contains(err.Message, tt.says) {
				t.Errorf("Route: %v, want reason %v and %q", err, tt.want, tt.says)
			}
			if err != nil && len(err.Message) > 500 {
				t.Errorf("a message of %d bytes echoes the client's input", len(err.Message))
			}
		})
	}
}

func TestRoute_PrefixCacheTakesTheLongestMatch(t *testing.T) {
	prompt := tokens(100, 20) // five blocks, of which the last is never reused
	base := kvindex.Scope{Model: "m"}
	tests := []struct {
		name    string
		prepare func(w *world)
		req     Request
		want    string // "" = any
		matched int
		reason  Reason
	}{
		{"longest wins", func(w *world) { w.hold(0, base, prompt[:8]); w.hold(2, base, prompt[:12]) }, ids("m", prompt), "e2", 12, ReasonPrefix},
		{"the block of the last token does not count", func(w *world) { w.hold(1, base, prompt) }, ids("m", prompt), "e1", 16, ReasonPrefix},
		{"an alias shares the blocks", func(w *world) { w.hold(1, base, prompt) }, ids("alias", prompt), "e1", 16, ReasonPrefix},
		{"an adapter does not", func(w *world) { w.hold(1, base, prompt) }, ids("lora", prompt), "", 0, ReasonCold},
		{"an adapter finds its own", func(w *world) { w.hold(1, kvindex.Scope{Model: "m", Adapter: "lora"}, prompt) }, ids("lora", prompt), "e1", 16, ReasonPrefix},
		{"another salt does not match", func(w *world) { w.hold(1, kvindex.Scope{Model: "m", Salt: "s"}, prompt) }, ids("m", prompt), "", 0, ReasonCold},
		{"nobody holds any", func(w *world) { w.hold(0, base, tokens(900, 8)) }, ids("m", prompt), "", 0, ReasonCold},
		{"prompt of one block", func(w *world) { w.hold(0, base, prompt) }, ids("m", prompt[:4]), "", 0, ReasonShort},
		{"empty prompt", func(w *world) { w.hold(0, base, prompt) }, ids("m", nil), "", 0, ReasonShort},
		{"no events yet", func(*world) {}, ids("m", prompt), "", 0, ReasonNoEvents},
		{"no tokenizer", func(w *world) { w.hold(0, base, prompt) }, Request{Model: "m", Prompt: Prompt{Kind: PromptText, Text: "x"}}, "", 0, ReasonTokenizerDown},
		{"no prompt", func(w *world) { w.hold(0, base, prompt) }, Request{Model: "m"}, "", 0, ReasonNoPrompt},
		{"subset leaves the best out", func(w *world) { w.hold(0, base, prompt[:8]); w.hold(2, base, prompt[:12]) }, func() Request {
			r := ids("m", prompt)
			r.Subset = []string{"127.0.0.1:1000", "127.0.0.1:1001"}
			return r
		}(), "e0", 8, ReasonPrefix},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, static(3), nil)
			tt.prepare(w)
			_, target, err := w.route(tt.req)
			if err != nil {
				t.Fatal(err)
			}
			won := target.Endpoints[0]
			if (tt.want != "" && won.Name != tt.want) || target.MatchedTokens != tt.matched || target.Reason != tt.reason {
				t.Errorf("got %s, %d tokens, %v; want %s, %d tokens, %v", won.Name, target.MatchedTokens, target.Reason, tt.want, tt.matched, tt.reason)
			}
			if len(target.Endpoints) != min(3, 1+DefaultConfig().Fallbacks) && tt.req.Subset == nil {
				t.Errorf("%d endpoints in the list, want the chosen one and two fallbacks", len(target.Endpoints))
			}
		})
	}
}

func TestRoute_TiesOfMatchGoToTheLessLoaded(t *testing.T) {
	w := newWorld(t, static(3), nil)
	prompt := tokens(0, 20)
	for i := range 2 {
		w.hold(i, kvindex.Scope{Model: "m"}, prompt)
	}
	counts := map[string]int{}
	for range 10 {
		_, target, err := w.route(ids("m", prompt))
		if err != nil {
			t.Fatal(err)
		}
		counts[target.Endpoints[0].Name]++
	}
	if counts["e0"] != 5 || counts["e1"] != 5 {
		t.Errorf("requests went to %v, want 5 each to e0 and e1", counts)
	}
}

// A match that belongs to a predecessor of an endpoint must not count for it.
func TestRoute_IncarnationsDoNotInherit(t *testing.T) {
	w := newWorld(t, static(2), nil)
	prompt := tokens(0, 20)
	w.hold(0, kvindex.Scope{Model: "m"}, prompt)
	old := w.writers[0].Publisher()
	w.writers[0].Close()
	old.Incarnation += 100
	var err error
	if w.writers[0], err = w.index.Open(old); err != nil {
		t.Fatal(err)
	}
	w.hold(0, kvindex.Scope{Model: "m"}, prompt)
	if _, target, err := w.route(ids("m", prompt)); err != nil || target.Reason != ReasonCold {
		t.Errorf("routed by %v (%v), want %v", target.Reason, err, ReasonCold)
	}
}

// An endpoint with two ranks holds what both hold, whether endpoints are
// candidates from the start or are narrowed down to some later.
func TestMerge_TakesTheWorstRank(t *testing.T) {
	cfg := pool.DefaultConfig()
	for i, ranks := range []int{2, 1, 1} {
		cfg.Static.Endpoints = append(cfg.Static.Endpoints, pool.Spec{
			Name: fmt.Sprint(i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i), Models: []string{"m"}, Events: "tcp://127.0.0.1:5000", Ranks: ranks,
		})
	}
	snap := newWorld(t, cfg, nil).pool.Snapshot()
	m, _ := snap.Model("m")
	two, one, other := m.Endpoints[0], m.Endpoints[1], m.Endpoints[2]
	match := func(e *pool.Endpoint, n uint32, trust kvindex.Trust) kvindex.Match {
		return kvindex.Match{Publisher: kvindex.Publisher{Endpoint: e.ID, Incarnation: e.Incarnation}, Confirmed: n, Trust: trust}
	}
	stranger := match(one, 50, kvindex.TrustExact)
	stranger.Incarnation++
	gone := match(one, 50, kvindex.TrustExact)
	gone.Endpoint = 77
	for _, narrowed := range []bool{false, true} {
		begin := func() *scratch {
			if narrowed {
				return &scratch{model: m}
			}
			return &scratch{candidates: []Candidate{{Endpoint: two}, {Endpoint: one}, {Endpoint: other}}}
		}
		type what struct {
			matched int
			trust   kvindex.Trust
		}
		merged := func(sc *scratch, e *pool.Endpoint) what {
			h, _ := sc.find(e.ID)
			return what{h.matched, h.trust}
		}
		sc := begin()
		sc.matches = []kvindex.Match{
			match(two, 9, kvindex.TrustExact), match(one, 3, kvindex.TrustExact), match(two, 5, kvindex.TrustIncomplete), gone, stranger,
		}
		sc.merge(10, nil)
		if got, want := merged(sc, two), (what{50, kvindex.TrustIncomplete}); got != want {
			t.Errorf("narrowed %v, two ranks: %v, want %v", narrowed, got, want)
		}
		if got, want := merged(sc, one), (what{30, kvindex.TrustExact}); got != want {
			t.Errorf("narrowed %v, one rank: %v, want %v", narrowed, got, want)
		}
		sc.matches = []kvindex.Match{match(two, 30, kvindex.TrustExact)} // of one rank only
		sc.merge(10, nil)
		sc.matches = []kvindex.Match{match(one, 2, kvindex.TrustExact)} // less than before
		sc.merge(10, nil)
		if a, b := merged(sc, two), merged(sc, one); a.matched != 50 || b.matched != 30 {
			t.Errorf("narrowed %v, after matches of another block size: %v and %v, want 50 and 30 tokens", narrowed, a, b)
		}
		sc.matches = []kvindex.Match{match(two, 9, 0), match(one, 9, 0), match(other, 9, 0), match(two, 9, 0)}
		sc.merge(10, []*pool.Endpoint{other})
		if a, b, c := merged(sc, two), merged(sc, one), merged(sc, other); a.matched != 50 || b.matched != 30 || c.matched != 90 {
			t.Errorf("narrowed %v, of a group of one endpoint: %v, %v and %v; want 50, 30 and 90 tokens", narrowed, a, b, c)
		}
		sc.unindex()
		if slices.ContainsFunc(sc.position, func(p int32) bool { return p != -1 }) {
			t.Errorf("narrowed %v, position after unindex: %v, want all -1", narrowed, sc.position)
		}
	}
}

// No two requests see the same idle endpoint.
func TestRoute_LeastRequestReservesAsItSelects(t *testing.T) {
	w := newWorld(t, static(10), nil)
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			c := NewContext(context.Background(), Request{Model: "m", Strategy: "least-request"})
			w.router.Route(c)
			if _, err := c.Target(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, e := range w.pool.Snapshot().Endpoints {
		if n := e.State.InFlight(); n != 100 {
			t.Errorf("%s has %d requests in flight, want 100", e.Name, n)
		}
	}
}

func TestRoute_RandomReachesAllEvenly(t *testing.T) {
	w := newWorld(t, static(4), nil)
	counts := map[string]int{}
	for range 4000 {
		_, target, err := w.route(Request{Model: "m", Strategy: "random"})
		if err != nil {
			t.Fatal(err)
		}
		counts[target.Endpoints[0].Name]++
	}
	for name, n := range counts {
		if n < 850 || n > 1150 { // 1000 ± 5.5 standard deviations
			t.Errorf("%s was drawn %d times of 4000, want about 1000", name, n)
		}
	}
}

// Against a dumb model: the chosen endpoint is one with the longest match and,
// among those, the fewest requests; the list continues in that order.
func TestRoute_PrefixCacheAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 6).Draw(t, "endpoints")
		w := newWorld(t, static(n), nil)
		prompt := tokens(0, rapid.IntRange(1, 40).Draw(t, "prompt"))
		held := make([]int, n)
		for i := range n {
			if blocks := rapid.IntRange(0, len(prompt)/blockSize).Draw(t, "blocks"); blocks > 0 {
				w.hold(i, kvindex.Scope{Model: "m"}, prompt[:blocks*blockSize])
				held[i] = min(blocks*blockSize, (len(prompt)-1)/blockSize*blockSize)
			}
			for range rapid.IntRange(0, 3).Draw(t, "in flight") {
				w.pool.Snapshot().Endpoints[i].State.Reserve(0)
			}
		}
		type key struct{ held, inFlight int }
		keyOf := func(e *pool.Endpoint, before int64) key {
			return key{-held[e.ID], int(e.State.InFlight() - before)}
		}
		_, target, err := w.route(ids("m", prompt))
		if err != nil {
			t.Fatal(err)
		}
		less := func(a, b key) bool { return a.held < b.held || (a.held == b.held && a.inFlight < b.inFlight) }
		for i, e := range target.Endpoints {
			k := keyOf(e, map[bool]int64{true: 1}[i == 0])
			better := 0
			for _, o := range w.pool.Snapshot().Endpoints {
				if o != e && less(keyOf(o, map[bool]int64{true: 1}[o == target.Endpoints[0]]), k) {
					better++
				}
			}
			if better > i {
				t.Fatalf("place %d of the list has %d better endpoints", i, better)
			}
		}
		if target.MatchedTokens != held[target.Endpoints[0].ID] {
			t.Fatalf("matched %d tokens, the endpoint holds %d", target.MatchedTokens, held[target.Endpoints[0].ID])
		}
	})
}

// fixedTokenizer answers with tokens or an error.
type fixedTokenizer struct {
	tokens []kvindex.TokenID
	err    *Error
}

func (f fixedTokenizer) Tokenize(_ context.Context, q *TokenQuery, dst []Tokens) ([]Tokens, *Error) {
	if f.err != nil {
		return dst, f.err
	}
	t := Tokens{Source: TokensRemote, Count: len(f.tokens)}
	for _, size := range q.BlockSizes {
		t.Blocks = append(t.Blocks, TokenBlocks{Size: size, Contents: q.Hasher.AppendContents(nil, f.tokens, size)})
	}
	return append(dst, t), nil
}

func TestRoute_AsksTheTokenizer(t *testing.T) {
	prompt := tokens(0, 20)
	text := Request{Model: "m", Prompt: Prompt{Kind: PromptText, Text: "…"}}
	w := newWorld(t, static(3), fixedTokenizer{tokens: prompt})
	w.hold(1, kvindex.Scope{Model: "m"}, prompt)
	if _, target, err := w.route(text); err != nil || target.Endpoints[0].Name != "e1" {
		t.Errorf("routed to %v (%v), want e1", target.Endpoints, err)
	}
	image := text
	image.Prompt.Multimodal = true
	if _, target, err := w.route(image); err != nil || target.Reason != ReasonNoPrompt {
		t.Errorf("a multimodal prompt was routed by %v (%v), want %v", target.Reason, err, ReasonNoPrompt)
	}
	cut := ids("m", prompt)
	cut.Prompt.Options = []PromptOption{{Name: "truncate_prompt_tokens", Value: []byte("4")}}
	if _, target, err := w.route(cut); err != nil || target.Reason != ReasonPromptOptions {
		t.Errorf("ids of which the engine cuts some were routed by %v (%v), want %v", target.Reason, err, ReasonPromptOptions)
	}
	slow := newWorld(t, static(3), fixedTokenizer{err: &Error{Reason: ReasonTokenizerTimeout}})
	slow.hold(1, kvindex.Scope{Model: "m"}, prompt)
	if _, target, err := slow.route(text); err != nil || target.Reason != ReasonTokenizerTimeout {
		t.Errorf("routed by %v (%v), want %v", target.Reason, err, ReasonTokenizerTimeout)
	}
}

func TestDecisions_AreKeptNewestFirst(t *testing.T) {
	w := newWorld(t, static(3), nil)
	prompt := tokens(0, 20)
	w.hold(1, kvindex.Scope{Model: "m"}, prompt)
	for i := range DefaultConfig().Decisions + 3 {
		r := ids("m", prompt)
		r.ID = fmt.Sprint(i)
		c, _, err := w.route(r)
		if err != nil {
			t.Fatal(err)
		}
		c.Finish()
	}
	got := w.router.Decisions(nil)
	if len(got) != DefaultConfig().Decisions {
		t.Fatalf("%d decisions kept, want %d", len(got), DefaultConfig().Decisions)
	}
	if first, last := got[0].RequestID, got[len(got)-1].RequestID; first != "258" || last != "3" {
		t.Errorf("kept %s … %s, want 258 … 3", first, last)
	}
	words := got[0].Words()
	for _, part := range []string{"e1 (127.0.0.1:1001) was chosen by prefix-cache out of 3 candidates", "16 of the prompt's 20 tokens (80 %)", "0 requests in flight there", "e0 holds 0 tokens"} {
		if !strings.Contains(words, part) {
			t.Errorf("the words %q lack %q", words, part)
		}
	}
}
