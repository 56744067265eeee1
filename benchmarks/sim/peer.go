package sim

import (
	"math/rand/v2"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// peer runs a baseline: a policy of another project, re-implemented from its
// published description. It is given the product's index of events and, where
// the original counts its own requests, exact figures without delay: the work
// it sent, the tokens that were answered.
type peer struct {
	r       *run
	replica int
	policy  baseline
	random  *rand.Rand
	index   *kvindex.Index
	hasher  kvindex.Hasher
	root    map[string]kvindex.BlockHash
	writers []*kvindex.Writer

	views   []view
	matches []kvindex.Match
	chain   []kvindex.BlockHash
	// flights are the requests that it has in flight.
	flights map[int]flight
	turn    uint64
}

// flight is what a peer keeps of a request in flight.
type flight struct {
	endpoint int
	uncached int // prefill work, 0 once the first token is there
	blocks   int
	turn     uint64
}

// view is what a policy knows of an endpoint.
type view struct {
	down bool
	// requests are in flight, uncached their prompt tokens that are still to be
	// computed, blocks those of their prompts.
	requests, uncached, blocks int
	// device and matched are how many tokens of the current prompt are cached
	// on the device and on any tier; expected counts what requests in flight
	// will leave as well.
	device, matched, expected int
	// waiting, running and usage are the engine's own figures, read now.
	waiting, running int
	usage            float64
	// draw breaks ties.
	draw uint64
}

// ask is the request that a policy places.
type ask struct {
	tokens int
	// prefill is the time that a prompt token takes to compute, in seconds.
	prefill float64
	// load is the time that a token takes to come from the host tier.
	load float64
}

// baseline is a policy by name. The endpoint with the least cost wins; equal
// costs are drawn from.
type baseline struct {
	name string
	// doc says what it is after, for documentation.
	doc string
	// place returns the costs of views.
	place func(a *ask, views []view, costs []float64)
	// predicts: it counts blocks of requests in flight, in an index of its own.
	predicts bool
}

func newPeer(r *run, replica int, b baseline) *peer {
	p := &peer{
		r: r, replica: replica, policy: b, hasher: kvindex.NewHasher(mix(r.seed)),
		random:  rand.New(rand.NewPCG(r.seed, 3<<32|uint64(replica))),
		writers: make([]*kvindex.Writer, r.Endpoints), views: make([]view, r.Endpoints),
		flights: map[int]flight{}, root: map[string]kvindex.BlockHash{},
	}
	p.index, _ = kvindex.New(kvindex.Config{}) // the zero value is valid
	for i := range r.Endpoints {
		p.open(i)
	}
	return p
}

func (p *peer) open(i int) {
	w, err := p.index.Open(kvindex.Publisher{ID: kvindex.PublisherID(i), Endpoint: kvindex.EndpointID(i)})
	if err != nil {
		panic(err)
	}
	p.writers[i] = w
	l := &p.r.links[i*p.r.Replicas+p.replica]
	l.hasher, l.writer, l.state = p.hasher, w, new(pool.State)
}

func (p *peer) choose(now time.Time, i int) (int, int, error) {
	w := &p.r.Requests[i]
	a := ask{tokens: w.InputTokens, prefill: p.r.Profile.PerPrefillToken / 1e3, load: p.r.Profile.PerLoadedToken / 1e3}
	p.look(now, i)
	costs := make([]float64, len(p.views))
	p.policy.place(&a, p.views, costs)
	best := -1
	for j := range p.views {
		if p.views[j].down {
			continue
		}
		if best < 0 || costs[j] < costs[best] || costs[j] == costs[best] && p.views[j].draw < p.views[best].draw {
			best = j
		}
	}
	if best < 0 {
		return 0, 0, errAllDown
	}
	v := &p.views[best]
	p.turn++
	f := flight{best, w.InputTokens - v.matched, len(w.Blocks), p.turn}
	if p.policy.predicts {
		f.uncached = w.InputTokens - v.expected
		p.index.Predict(kvindex.EndpointID(best), p.turn, p.chain, now)
	}
	v.requests++
	v.uncached += f.uncached
	v.blocks += f.blocks
	p.flights[i] = f
	return best, v.matched, nil
}

// look fills the views in for request i.
func (p *peer) look(now time.Time, i int) {
	w, q := &p.r.Requests[i], &p.r.prompts[i]
	root, ok := p.root[w.Adapter]
	if !ok {
		root = p.hasher.Root(kvindex.Scope{Model: modelName, Adapter: w.Adapter, BlockSize: blockTokens})
		p.root[w.Adapter] = root
	}
	// The last token is always computed.
	usable := (w.InputTokens - 1) / blockTokens
	p.chain = kvindex.AppendChain(p.chain[:0], root, q.contents[:usable])
	p.matches = p.index.Match(p.matches[:0], p.chain, now, nil)
	for j := range p.views {
		v, s := &p.views[j], p.r.endpoints[j].core.Stats()
		v.device, v.matched, v.expected = 0, 0, 0
		v.waiting, v.running, v.usage = s.Waiting, s.Running, s.KVUsage()
		v.draw = p.random.Uint64()
	}
	for _, m := range p.matches {
		v := &p.views[m.Endpoint]
		v.device, v.matched = int(m.Device)*blockTokens, int(m.Confirmed)*blockTokens
		v.expected = max(v.matched, int(m.Predicted)*blockTokens)
	}
}

func (p *peer) started(_ time.Time, i int) {
	f := p.flights[i]
	p.views[f.endpoint].uncached -= f.uncached
	f.uncached = 0
	p.flights[i] = f
}

func (p *peer) finished(now time.Time, i int) {
	p.started(now, i)
	f := p.flights[i]
	p.views[f.endpoint].requests--
	p.views[f.endpoint].blocks -= f.blocks
	if p.policy.predicts {
		p.index.Drop(kvindex.EndpointID(f.endpoint), f.turn)
	}
	delete(p.flights, i)
}

func (p *peer) failed(now time.Time, i int) { p.finished(now, i) }

func (p *peer) absent(_ time.Time, down []bool) {
	for i, d := range down {
		p.views[i].down = d
		switch {
		case d && p.writers[i] != nil:
			p.writers[i].Close()
			p.writers[i] = nil
		case !d && p.writers[i] == nil:
			p.open(i)
		}
	}
}
