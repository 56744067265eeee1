package routing

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Predictor is told which blocks requests in flight will leave on endpoints.
// An [Index] that is one as well counts them in its matches as predicted, and
// never as held.
type Predictor interface {
	// Predict records that an endpoint will soon hold a chain. It reports false
	// where the endpoint is not known.
	Predict(e kvindex.EndpointID, request uint64, chain []kvindex.BlockHash, now time.Time) bool
	// Move gives a request's prediction to the endpoint where it went in the end.
	Move(request uint64, from, to kvindex.EndpointID, now time.Time) bool
	// Drop takes a prediction back.
	Drop(e kvindex.EndpointID, request uint64) bool
}

// Approximator keeps predictions of endpoints without events as the only
// thing that is known of their caches: what was sent there last, up to a
// capacity.
type Approximator interface {
	Open(p kvindex.Publisher) (*kvindex.Writer, error)
	Approximate(e kvindex.EndpointID, blocks int)
}

// maxChains is how many chains of one request are predicted; their requests
// are numbered within the decision's number.
const maxChains = 4

// prediction is what was predicted for one request.
type prediction struct {
	predictor Predictor
	// first numbers the first of n chains.
	first uint64
	n     int
}

// predict tells the predictor what the winner of a decision will hold. It
// takes no lock of the router's: until it is done, [recent] knows.
func (r *Router) predict(sc *scratch, t *Target, turn uint64) {
	if r.predictor == nil {
		return
	}
	e := t.Endpoints[0]
	t.prediction = prediction{predictor: r.predictor, first: turn * maxChains}
	for _, k := range sc.chains {
		if t.n < maxChains && serves(e, k) && r.predictor.Predict(e.ID, t.first+uint64(t.n), k.blocks, sc.scene.now) {
			t.n++
		}
	}
}

func (p *prediction) move(from, to *pool.Endpoint, now time.Time) {
	for i := range p.n {
		p.predictor.Move(p.first+uint64(i), from.ID, to.ID, now)
	}
}

func (p *prediction) drop(e *pool.Endpoint) {
	for i := range p.n {
		p.predictor.Drop(e.ID, p.first+uint64(i))
	}
	p.n = 0
}

const (
	// approximateBlock is the block size that prompts are cut into for engines
	// that do not tell theirs, in tokens.
	approximateBlock = 16
	// approximateTokens is the capacity of such engines: cautious, because what
	// is taken to be there and is not makes a request wait in the wrong place.
	approximateTokens = 100_000
	// approximateEvery is how often learned capacities are looked at.
	approximateEvery = 10 * time.Second
)

// approximate opens a writer for every endpoint that has no events, so that
// predictions for it are kept, bounded by what its cache can hold.
type approximate struct {
	index Approximator

	// attended: [Router.Run] follows the pool, and decisions need not.
	attended atomic.Bool

	mu      sync.Mutex // guards what follows
	snap    *pool.Snapshot
	next    time.Time
	writers map[kvindex.EndpointID]*kvindex.Writer
}

// follow makes the writers those of snap. It does something only where the
// snapshot is new or some seconds have passed, but then it looks at every
// endpoint: Run calls it, and where there is none every decision.
func (a *approximate) follow(snap *pool.Snapshot, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.snap == snap && now.Before(a.next) {
		return
	}
	a.snap, a.next = snap, now.Add(approximateEvery)
	for id, w := range a.writers {
		if e := snap.Endpoint(id); e == nil || e.Incarnation != w.Publisher().Incarnation || len(e.Publishers) > 0 {
			w.Close()
			delete(a.writers, id)
		}
	}
	for _, e := range snap.Endpoints {
		if len(e.Publishers) > 0 {
			continue
		}
		if a.writers[e.ID] == nil {
			// The pool numbers publishers from 0 up, so these ids are free.
			w, err := a.index.Open(kvindex.Publisher{ID: ^kvindex.PublisherID(e.ID), Endpoint: e.ID, Incarnation: e.Incarnation})
			if err != nil {
				a.next = now.Add(time.Second)
				continue
			}
			a.writers[e.ID] = w
		}
		size, tokens := approximateBlock, float64(approximateTokens)
		if l := e.State.Load(); l != nil {
			if l.BlockSize > 0 {
				size = l.BlockSize
			}
			if l.Capacity > 0 {
				tokens = l.Capacity
			}
		}
		if e.State.ObserveBlockSize(size) {
			a.index.Approximate(e.ID, int(tokens)/size)
		}
	}
}
