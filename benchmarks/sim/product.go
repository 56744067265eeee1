package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// product is a replica of the product's router: its pool, index and decisions,
// on virtual time.
type product struct {
	r       *run
	replica int
	exact   bool // it is a [twin]
	specs   []pool.Spec
	pool    *pool.Pool
	index   *kvindex.Index
	hasher  kvindex.Hasher
	router  *routing.Router
	writers []*kvindex.Writer // nil where the endpoint is down
	// at finds an endpoint of the fleet by its id in the pool.
	at map[kvindex.EndpointID]int
	// promises are those of requests in flight.
	promises map[int]*routing.Context
	// current is the request being routed: what the tokenizer is asked about.
	current int
	blocks  [1]routing.TokenBlocks
	tokens  []kvindex.TokenID
}

func newProduct(r *run, replica int) (*product, error) {
	p := &product{
		r: r, replica: replica, exact: r.Strategy == twin, hasher: kvindex.NewHasher(mix(r.seed)),
		writers: make([]*kvindex.Writer, r.Endpoints), promises: map[int]*routing.Context{},
	}
	for i := range r.Endpoints {
		p.specs = append(p.specs, pool.Spec{
			Name: fmt.Sprintf("e%04d", i), Address: fmt.Sprintf("10.0.%d.%d:8000", i/250, i%250+1),
			Models: []string{modelName}, Adapters: r.adapters,
			Events: fmt.Sprintf("tcp://10.0.%d.%d:5557", i/250, i%250+1),
		})
	}
	random := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(r.seed, n<<32|uint64(replica))) }
	reg := prometheus.NewRegistry()
	p.pool = pool.New(pool.Config{Static: pool.StaticConfig{Endpoints: p.specs}}, slog.New(slog.DiscardHandler), reg, nil, random(1))
	var err error
	if p.index, err = kvindex.New(kvindex.Config{}); err != nil {
		return nil, err
	}
	cfg := r.Routing
	if cfg.Strategy = r.Strategy; p.exact {
		cfg.Strategy = tested
	}
	if p.router, err = routing.New(cfg, p.pool, p.index, p, p.hasher, slog.New(slog.DiscardHandler), reg, random(2)); err != nil {
		return nil, err
	}
	return p, p.open()
}

// open opens a writer for every endpoint of the pool that has none.
func (p *product) open() error {
	p.at = map[kvindex.EndpointID]int{}
	snap := p.pool.Snapshot()
	for i, s := range p.specs {
		e := snap.ByAddress(s.Address)
		if e == nil {
			continue
		}
		p.at[e.ID] = i
		if p.writers[i] != nil {
			continue
		}
		w, err := p.index.Open(e.Publishers[0].Publisher)
		if err != nil {
			return err
		}
		w.SetTrust(kvindex.TrustExact)
		p.writers[i] = w
		l := &p.r.links[i*p.r.Replicas+p.replica]
		l.hasher, l.writer, l.state, l.meter = p.hasher, w, e.State, pool.NewMeter(pool.DefaultConfig().Load.StaleAfter)
		if p.r.Wire {
			l.wire = events.NewApplier(p.hasher, modelName, e.State, w)
		}
	}
	return nil
}

// Tokenize implements [routing.Tokenizer]: without tokens the blocks' names
// stand for them.
func (p *product) Tokenize(_ context.Context, _ *routing.TokenQuery, dst []routing.Tokens) ([]routing.Tokens, *routing.Error) {
	p.blocks[0] = routing.TokenBlocks{Size: blockTokens, Contents: p.r.prompts[p.current].contents}
	return append(dst, routing.Tokens{
		Source: routing.TokensL0, Count: p.r.Requests[p.current].InputTokens, Blocks: p.blocks[:],
	}), nil
}

func (p *product) choose(now time.Time, i int) (int, int, error) {
	w := &p.r.Requests[i]
	req := routing.Request{Arrived: now, Model: modelName, Stream: true, Session: w.Session}
	if w.Adapter != "" {
		req.Model = w.Adapter
	}
	if p.r.Wire {
		p.tokens = AppendPrompt(p.tokens[:0], w)
		req.Prompt = routing.Prompt{Kind: routing.PromptTokens, Tokens: p.tokens}
	} else {
		req.Prompt = routing.Prompt{Kind: routing.PromptText, Text: p.r.prompts[i].key}
	}
	if p.exact {
		p.inform(now)
	}
	p.current = i
	c := routing.NewContext(context.Background(), req)
	p.router.Route(c)
	target, fault := c.Target(context.Background())
	if fault != nil {
		return 0, 0, fault
	}
	e := target.Endpoints[0]
	c.Served(e)
	c.Answered(200, now) // the headers of a streamed answer come at once
	c.Request.Prompt = routing.Prompt{}
	p.promises[i] = c
	return p.at[e.ID], target.MatchedTokens, nil
}

func (p *product) started(time.Time, int) {}

func (p *product) finished(_ time.Time, i int) {
	p.promises[i].Finish()
	delete(p.promises, i)
}

func (p *product) failed(now time.Time, i int) { p.finished(now, i) }

func (p *product) absent(_ time.Time, down []bool) {
	var specs []pool.Spec
	for i, s := range p.specs {
		if !down[i] {
			specs = append(specs, s)
		} else if p.writers[i] != nil {
			p.writers[i].Close()
			p.writers[i] = nil
		}
	}
	p.pool.Set(specs)
	if err := p.open(); err != nil {
		panic(err)
	}
}
