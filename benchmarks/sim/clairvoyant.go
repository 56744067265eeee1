package sim

import (
	"math"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// clairvoyantName is a strategy that knows the engines' exact state and, of the
// next arrivals (Scenario.Ahead of them), when each comes, and its prompt. It
// tries every endpoint for a request, places those arrivals one after the other
// where each would get its first token soonest, and takes the endpoint with the
// least sum of times to first token, of the request and of the arrivals.
//
// It shows what knowing the near future is worth, and is no bound. It is greedy
// in what it foresees. Its model of time is that of the engine core, but for a
// queue taken to be computed without gaps between prompts, of steps filled to
// their budget, and beside the answers that are being written now. It does not
// see what a placement evicts, and so nothing of the far future: past the knee,
// where cached tokens are capacity, a policy that prices them does better.
const clairvoyantName = "clairvoyant-greedy"

type clairvoyant struct {
	r *run
	// coming are the blocks, by endpoint, of prompts that it has yet to compute,
	// with the number of such prompts; at is where a request's are counted.
	coming []map[kvindex.EngineHash]int32
	at     map[int]int
	down   []bool

	engines []outlook
	// window is the request and the arrivals behind it, found what each finds
	// on each endpoint, shared how many tokens two have in common, row-major.
	window []int
	found  []find
	shared []int32
	// Scratch of rollouts.
	free     []float64
	foreseen []find
}

// outlook is an engine as a rollout sees it: times in seconds from now.
type outlook struct {
	// free is when it has computed the prompts that it has.
	free float64
	// floor is what a step takes besides prompts, token, pair and load what
	// tokens in it do, and budget how many fit.
	floor, token, pair, load, budget float64
}

// find is how many tokens of a prompt an endpoint has, and how many of them in
// its host tier.
type find struct{ tokens, host int32 }

func newClairvoyant(r *run) *clairvoyant {
	c := &clairvoyant{
		r: r, at: map[int]int{}, down: make([]bool, r.Endpoints),
		coming: make([]map[kvindex.EngineHash]int32, r.Endpoints), engines: make([]outlook, r.Endpoints),
	}
	for i := range c.coming {
		c.coming[i] = map[kvindex.EngineHash]int32{}
	}
	return c
}

func (c *clairvoyant) choose(_ time.Time, i int) (int, int, error) {
	c.look(i)
	best, least := -1, math.Inf(1)
	for e := range c.engines {
		if c.down[e] {
			continue
		}
		if sum := c.rollout(e); best < 0 || sum < least {
			best, least = e, sum
		}
	}
	if best < 0 {
		return 0, 0, errAllDown
	}
	for _, n := range c.prompt(i) {
		c.coming[best][n]++
	}
	c.at[i] = best
	return best, int(c.found[best].tokens), nil
}

// prompt is the blocks that request i's prompt fills.
func (c *clairvoyant) prompt(i int) []kvindex.EngineHash {
	p := &c.r.prompts[i]
	return p.names[:p.whole]
}

// look fills in what a decision about request i is made of.
func (c *clairvoyant) look(i int) {
	for k := range c.engines {
		e := &c.r.endpoints[k]
		if e.down {
			continue
		}
		prompts, step := e.prompts(c.r.now)
		cfg := e.core.Config()
		c.engines[k] = outlook{
			free: prompts.Seconds(), floor: step.Seconds(), token: cfg.Profile.PerPrefillToken / 1e3, pair: cfg.Profile.PerPrefillPair / 1e3,
			load: cfg.Profile.PerLoadedToken / 1e3, budget: float64(cfg.TokenBudget),
		}
	}
	order := c.r.order[min(c.r.next, len(c.r.order)):]
	c.window = append(append(c.window[:0], i), order[:min(c.r.Ahead, len(order))]...)
	c.found, c.shared = c.found[:0], c.shared[:0]
	for _, w := range c.window {
		for k := range c.engines {
			c.found = append(c.found, c.find(k, w))
		}
	}
	for _, w := range c.window {
		for _, v := range c.window {
			n := int32(0)
			if w != v {
				n = common(c.prompt(w), c.prompt(v))
			}
			c.shared = append(c.shared, n*blockTokens)
		}
	}
}

// find returns what request i finds on endpoint k once all prompts there are
// computed.
func (c *clairvoyant) find(k, i int) (f find) {
	core, names := c.r.endpoints[k].core, c.prompt(i)
	for _, n := range names[:c.usable(i)] {
		device, host := core.Holds(n)
		switch {
		case f.host == 0 && (device || c.coming[k][n] > 0):
		case host:
			f.host += blockTokens
		default:
			return f
		}
		f.tokens += blockTokens
	}
	return f
}

// usable is how many blocks of request i can be found: the last token is always
// computed.
func (c *clairvoyant) usable(i int) int { return (c.r.Requests[i].InputTokens - 1) / blockTokens }

// common is the number of first blocks that are equal.
func common(a, b []kvindex.EngineHash) int32 {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return int32(n)
}

// rollout places the request on an endpoint and all arrivals of the window
// greedily, and returns the sum of their times to first token.
func (c *clairvoyant) rollout(first int) (sum float64) {
	n, at := len(c.engines), c.r.requests[c.window[0]].arrived
	c.foreseen = append(c.foreseen[:0], c.found...)
	c.free = c.free[:0]
	for k := range c.engines {
		c.free = append(c.free, c.engines[k].free)
	}
	for j := range c.window {
		after := 0.0
		if j > 0 {
			after = (c.r.arrivals[c.r.next+j-1] - c.r.now).Seconds()
		}
		best, soonest := first, math.Inf(1)
		for k := range c.engines {
			if c.down[k] || j == 0 && k != first {
				continue
			}
			if done := c.done(k, j, after); done < soonest {
				best, soonest = k, done
			}
		}
		c.free[best] = soonest
		sum += soonest - after
		for later := j + 1; later < len(c.window); later++ {
			f := &c.foreseen[later*n+best]
			if s := min(c.shared[j*len(c.window)+later], int32(c.usable(c.window[later])*blockTokens)); s > f.tokens-f.host {
				f.tokens = max(f.tokens, s)
				f.host = f.tokens - s
			}
		}
	}
	return sum + (c.r.now - at).Seconds()
}

// done is when endpoint k has computed the prompt of the window's jth request,
// which comes after some time.
func (c *clairvoyant) done(k, j int, after float64) float64 {
	e, f := &c.engines[k], c.foreseen[j*len(c.engines)+k]
	all := float64(c.r.Requests[c.window[j]].InputTokens)
	held, host := float64(f.tokens), float64(f.host)
	tokens := all - held
	work := tokens*e.token + tokens*(held+tokens/2)*e.pair + host*e.load
	if free := c.free[k]; free > after {
		// It fills up the steps of those before it.
		return free + work + e.floor*tokens/e.budget
	}
	return after + work + e.floor*math.Ceil(tokens/e.budget)
}

// started and failed take the blocks off that are not coming any more.
func (c *clairvoyant) started(_ time.Time, i int) {
	k, ok := c.at[i]
	if !ok {
		return
	}
	delete(c.at, i)
	for _, n := range c.prompt(i) {
		if c.coming[k][n]--; c.coming[k][n] == 0 {
			delete(c.coming[k], n)
		}
	}
}

func (c *clairvoyant) finished(now time.Time, i int) { c.started(now, i) }

func (c *clairvoyant) failed(now time.Time, i int) { c.started(now, i) }

func (c *clairvoyant) absent(_ time.Time, down []bool) { copy(c.down, down) }
