package routing

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Pool gives the newest snapshot of the endpoints, without blocking.
type Pool interface {
	Snapshot() *pool.Snapshot
}

// Index tells which publishers hold how much of a chain.
type Index interface {
	Match(dst []kvindex.Match, chain []kvindex.BlockHash, now time.Time, want func(kvindex.Publisher) bool) []kvindex.Match
}

// Router decides. Its methods are safe for concurrent use.
type Router struct {
	cfg        Config
	pool       Pool
	index      Index
	tokenizer  Tokenizer
	hasher     kvindex.Hasher
	strategies map[string]*strategy
	metrics    *metrics
	scratch    sync.Pool

	// mu makes select and reserve one step. It guards rand and the log, and is
	// held for one pass over the candidates.
	mu   sync.Mutex
	rand *rand.Rand
	log  decisionLog
}

// New returns a router. tokenizer may be nil: then only prompts that come as
// token ids are matched. random breaks ties.
func New(cfg Config, p Pool, index Index, tokenizer Tokenizer, hasher kvindex.Hasher, reg prometheus.Registerer, random *rand.Rand) (*Router, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Router{
		cfg: cfg, pool: p, index: index, tokenizer: tokenizer, hasher: hasher, rand: random,
		strategies: map[string]*strategy{}, log: newDecisionLog(cfg.Decisions),
	}
	var names []string
	for _, s := range strategies() {
		r.strategies[s.name] = &s
		names = append(names, s.name)
	}
	r.metrics = newMetrics(reg, names)
	r.scratch.New = func() any { return &scratch{} }
	return r, nil
}

// scratch is the memory of one decision, used again by later ones.
type scratch struct {
	candidates []Candidate
	query      TokenQuery
	tokens     []Tokens
	blocks     []TokenBlocks
	contents   []kvindex.ContentHash
	chain      []kvindex.BlockHash
	matches    []kvindex.Match
	// position finds a candidate by its endpoint id; -1: not a candidate.
	position []int32
}

// Route resolves c: before it returns, for every strategy there is today. It
// waits for the tokenizer as long as that one's time budget and c allow.
func (r *Router) Route(c *Context) {
	name := c.Request.Strategy
	if name == "" {
		name = r.cfg.Strategy
	}
	s := r.strategies[name]
	if s == nil {
		r.fail(c, &Error{
			Reason: ReasonUnknownStrategy, Param: "routing-strategy",
			Message: fmt.Sprintf("routing-strategy %q is unknown; use one of %s", clip(name), strings.Join(Strategies(), ", ")),
		})
		return
	}
	serving, scope, err := r.serving(c)
	if err != nil {
		r.fail(c, err)
		return
	}
	sc := r.scratch.Get().(*scratch)
	defer r.scratch.Put(sc)
	sc.candidates = sc.candidates[:0]
	for _, e := range serving {
		if c.Request.Subset == nil || slices.Contains(c.Request.Subset, e.Address) {
			sc.candidates = append(sc.candidates, Candidate{Endpoint: e})
		}
	}
	if len(sc.candidates) == 0 {
		r.fail(c, noEndpoint(&c.Request, len(serving)))
		return
	}
	reason, promptTokens, tokens := s.reason, 0, TokenView{}
	if s.matches {
		reason, promptTokens, tokens = r.match(c, sc, scope, serving)
	}
	t := r.selectAndReserve(c, s, sc, reason, promptTokens, tokens)
	if c.SetTarget(t) {
		r.metrics.decided(s.name, t)
	}
}

// serving returns the endpoints that may serve the request and the scope of
// its blocks, less the block size.
func (r *Router) serving(c *Context) ([]*pool.Endpoint, kvindex.Scope, *Error) {
	snap := r.pool.Snapshot()
	req := &c.Request
	if req.Model != "" {
		if m, ok := snap.Model(req.Model); ok {
			return m.Endpoints, kvindex.Scope{Model: m.Base, Adapter: m.Adapter, Salt: req.Prompt.Salt}, nil
		}
		if snap.Complete() && len(snap.Endpoints) > 0 {
			return nil, kvindex.Scope{}, &Error{
				Reason: ReasonModelNotFound, Param: "model",
				Message: fmt.Sprintf("the model %q does not exist; this gateway serves %s", clip(req.Model), strings.Join(snap.Models(), ", ")),
			}
		}
	}
	var all []*pool.Endpoint
	for _, e := range snap.Endpoints {
		if e.Candidate() {
			all = append(all, e)
		}
	}
	return all, kvindex.Scope{Model: req.Model, Salt: req.Prompt.Salt}, nil
}

func noEndpoint(req *Request, serving int) *Error {
	e := &Error{Reason: ReasonNoEndpoint, Message: "no endpoint is ready"}
	if req.Model != "" {
		e.Message = fmt.Sprintf("no endpoint that serves the model %q is ready", clip(req.Model))
	}
	if serving > 0 {
		e.Message = fmt.Sprintf("none of the %d ready endpoints is in the subset that the gateway allows", serving)
	}
	return e
}

// clip bounds what of a client's value goes into a message.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// selectAndReserve picks the best candidate and counts the request on it, in
// one step, and lists the next best behind it.
func (r *Router) selectAndReserve(c *Context, s *strategy, sc *scratch, reason Reason, promptTokens int, tokens TokenView) Target {
	cands := sc.candidates
	n := min(1+r.cfg.Fallbacks, len(cands))
	endpoints := make([]*pool.Endpoint, n)

	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range cands {
		cands[i].InFlight = cands[i].Endpoint.State.InFlight()
		cands[i].PrefillTokens = cands[i].Endpoint.State.PrefillTokens()
	}
	// A partial selection sort: n is 3 by default.
	for i := range n {
		best := r.best(s, cands[i:]) + i
		cands[i], cands[best] = cands[best], cands[i]
		endpoints[i] = cands[i].Endpoint
	}
	t := Target{
		Endpoints: endpoints, Strategy: s.name, Reason: reason, Tokens: tokens,
		PromptTokens: promptTokens, MatchedTokens: cands[0].MatchedTokens,
		work: int64(promptTokens - cands[0].MatchedTokens),
	}
	endpoints[0].State.Reserve(t.work)
	r.log.record(&c.Request, &t, cands)
	return t
}

// best returns the index of the best candidate, one of the best at random.
// The caller holds mu.
func (r *Router) best(s *strategy, cands []Candidate) int {
	best, ties := 0, 1
	for i := 1; i < len(cands); i++ {
		order := 0
		if s.compare != nil {
			order = s.compare(&cands[i], &cands[best])
		}
		switch {
		case order < 0:
			best, ties = i, 1
		case order == 0:
			if ties++; r.rand.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best
}

func (r *Router) fail(c *Context, err *Error) {
	if c.SetError(err) {
		r.metrics.failed(err.Reason)
	}
}

// Decisions appends the kept decisions to dst, newest first.
func (r *Router) Decisions(dst []Decision) []Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.appendTo(dst)
}

// blockSizes returns the distinct block sizes that the candidates reported.
func blockSizes(cands []Candidate) []int {
	var first []int
	for i := range cands {
		sizes := cands[i].Endpoint.State.BlockSizes()
		if len(sizes) == 0 || slices.Equal(sizes, first) {
			continue
		}
		if first == nil {
			first = sizes
			continue
		}
		for _, n := range sizes {
			if !slices.Contains(first, n) {
				first = append(slices.Clone(first), n)
			}
		}
	}
	return first
}
