package routing

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
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
	settings  atomic.Pointer[settings]
	pool      Pool
	index     Index
	tokenizer Tokenizer
	hasher    kvindex.Hasher
	metrics   *metrics
	logger    *slog.Logger
	scratch   sync.Pool
	// predictor and approximate are nil if the index cannot predict.
	predictor   Predictor
	approximate *approximate
	queue       *queue
	// narrowFrom is how many endpoints a model must have for its candidates to be
	// narrowed.
	narrowFrom int
	// observer is observe, made a value once.
	observer func(*pool.Endpoint, time.Time, pool.Outcome)

	// mu makes select and reserve one step. It guards what follows, and is held
	// for one pass over the candidates.
	mu     sync.Mutex
	rand   *rand.Rand
	recent recent
	board  board
	turn   uint64
	log    decisionLog
	waits  waits
}

// New returns a router. tokenizer may be nil: then only prompts that come as
// token ids are matched. random breaks ties.
func New(cfg Config, p Pool, index Index, tokenizer Tokenizer, hasher kvindex.Hasher, log *slog.Logger, reg prometheus.Registerer, random *rand.Rand) (*Router, error) {
	st, err := newSettings(cfg)
	if err != nil {
		return nil, err
	}
	r := &Router{
		pool: p, index: index, tokenizer: tokenizer, hasher: hasher, rand: random,
		metrics: newMetrics(reg, append(Strategies(), blendMetric)), logger: log.With("component", "routing"),
		log: newDecisionLog(cfg.Decisions), queue: newQueue(reg), narrowFrom: narrowFrom,
	}
	r.settings.Store(st)
	r.observer = r.observe
	r.predictor, _ = index.(Predictor)
	if a, ok := index.(Approximator); ok && r.predictor != nil {
		r.approximate = &approximate{index: a, writers: map[kvindex.EndpointID]*kvindex.Writer{}}
	}
	r.scratch.New = func() any { return &scratch{} }
	return r, nil
}

// Reload replaces the configuration. If cfg is not valid, the old one stays in
// force and the error says why. Requests being decided finish under the one
// they began with.
func (r *Router) Reload(cfg Config) error {
	st, err := newSettings(cfg)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.settings.Swap(st); old.cfg.Decisions != cfg.Decisions {
		r.log = r.log.resized(cfg.Decisions)
	}
	return nil
}

// scratch is the memory of one decision, used again by later ones.
type scratch struct {
	scene      scene
	candidates []Candidate
	costs      []float64
	best       []int32
	subset     []string
	inSubset   map[string]struct{}
	query      TokenQuery
	tokens     []Tokens
	// known is what was found out about the prompt's tokens before, nil if that
	// is to be done now.
	known    *knownTokens
	blocks   []TokenBlocks
	contents []kvindex.ContentHash
	chain    []kvindex.BlockHash
	// chains are the parts of chain: one for each block size of each group of
	// endpoints that tokenize alike.
	chains  []chain
	matches []kvindex.Match
	// position finds a candidate by its endpoint id, or a holder where candidates
	// are narrowed; -1: there is none. placed are the ids that it finds.
	position []int32
	placed   []kvindex.EndpointID
	// group are the endpoints that a tokenization is for.
	group endpointSet
	// most is the most tokens that any candidate is expected to hold, reported
	// the most that any holds by its events.
	most, reported int

	// model is not nil where candidates are narrowed, see narrow.go; considered
	// is then how many endpoints were, and snap is where they are from.
	model      *pool.Model
	snap       *pool.Snapshot
	considered int
	holders    []holder
	ranked     []ranked
	nothing    held
}

// chain is the blocks of the prompt for endpoints that tokenize alike.
type chain struct {
	size      int
	blocks    []kvindex.BlockHash
	endpoints []*pool.Endpoint
}

// serves tells whether k is how e sees the prompt.
func serves(e *pool.Endpoint, k chain) bool {
	return slices.Contains(e.State.BlockSizes(), k.size) && (k.endpoints == nil || slices.Contains(k.endpoints, e))
}

// Route has c resolved: before it returns, or later where the strategy lets
// requests wait for room. It waits for the tokenizer as long as that one's time
// budget and c allow.
func (r *Router) Route(c *Context) {
	sc := r.scratch.Get().(*scratch)
	defer r.put(sc)
	st := r.settings.Load()
	p, err := r.prospect(c, st, &c.Request, sc, nil)
	if err != nil {
		r.fail(c, err)
		return
	}
	if p.queues {
		r.routeQueued(st, c, sc, &p)
		return
	}
	t, turn := r.selectAndReserve(st, &c.Request, sc, &p)
	r.resolve(c, sc, &t, turn, &p)
}

// resolve hands c a target that is reserved, and tells whoever has to know.
func (r *Router) resolve(c *Context, sc *scratch, t *Target, turn uint64, p *prospect) {
	r.predict(sc, t, turn)
	r.debug(c, sc, t, p)
	if c.SetTarget(*t) {
		r.metrics.decided(p.metricName(), *t)
	}
}

// put returns sc to the pool, without what would keep a request alive.
func (r *Router) put(sc *scratch) {
	sc.scene, sc.subset, sc.model, sc.snap = scene{}, nil, nil, nil
	r.scratch.Put(sc)
}

// prospect finds the strategy and the candidates of a request and how much of
// its prompt they hold. leftOut, which may be nil, is told about endpoints that
// are no candidates.
func (r *Router) prospect(ctx context.Context, st *settings, req *Request, sc *scratch, leftOut func(*pool.Endpoint, left)) (prospect, *Error) {
	snap := r.pool.Snapshot()
	model, scope, err := r.serving(snap, req)
	if err != nil {
		return prospect{}, err
	}
	p := prospect{adapter: scope.Adapter}
	if p.choice, err = st.choose(req, snap, scope.Model, r.logger); err != nil {
		return p, err
	}
	sc.unindex()
	sc.model, sc.snap = nil, snap
	if leftOut == nil && r.narrows(&p, req, model) {
		sc.model, sc.candidates = model, sc.candidates[:0]
	} else if err := sc.eligible(req, model.Endpoints, leftOut); err != nil {
		return p, err
	}
	sc.chain, sc.chains = sc.chain[:0], sc.chains[:0]
	if p.matches {
		if r.approximate != nil && !r.approximate.attended.Load() {
			r.approximate.follow(snap, req.Arrived)
		}
		p.reason, p.promptTokens, p.tokens = r.match(ctx, req, sc, scope, model.Endpoints)
	}
	return p, nil
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

// blockSizes returns the distinct block sizes that the candidates reported,
// or where they are narrowed, those that the model's endpoints did.
func (sc *scratch) blockSizes() []int {
	if sc.model != nil {
		return sc.model.BlockSizes()
	}
	var first []int
	for i := range sc.candidates {
		sizes := sc.candidates[i].Endpoint.State.BlockSizes()
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
