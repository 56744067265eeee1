package routing

import (
	"math"
	"time"

	"github.com/warmpath/warmpath/routing/pool"
)

// missingRule is the missing-data rule of the strategies that need metrics.
const missingRule = "counts as the worst known; all missing: fewest requests in flight"

// weigh gives every candidate of sc its cost under s. It returns why s could
// not decide by its own rule, [ReasonNone] if it could, and for how many
// candidates data was missing. The router's lock is held.
func (s *strategy) weigh(sc *scratch) (Reason, int) {
	cands := sc.candidates
	if s.blend == nil {
		reason, n := s.fill(sc, func(c *Candidate, cost float64) { c.Cost = cost })
		if reason != ReasonNone {
			byInFlight(cands)
		}
		return reason, n
	}
	for i := range cands {
		cands[i].Cost = 0
	}
	faults, most := 0, 0
	for _, p := range s.blend {
		factor := p.weight * p.seconds(sc.scene.settings)
		reason, n := p.fill(sc, func(c *Candidate, cost float64) { c.Cost += factor * cost })
		most = max(most, n)
		if reason != ReasonNone {
			faults++
		}
	}
	switch {
	case faults == len(s.blend):
		byInFlight(cands)
		return ReasonMetricMissing, most
	case faults > 0:
		return ReasonMetricMissing, most
	}
	return ReasonNone, most
}

// fill computes the cost of every candidate under s and gives it to add, the
// worst known one where data is missing. It adds nothing if it returns a
// reason.
func (s *strategy) fill(sc *scratch, add func(*Candidate, float64)) (Reason, int) {
	cands := sc.candidates
	if s.prepare != nil {
		if reason := s.prepare(&sc.scene, cands); reason != ReasonNone {
			return reason, 0
		}
	}
	sc.costs = sc.costs[:0]
	worst, n := math.Inf(-1), 0
	for i := range cands {
		cost := s.cost(&sc.scene, &cands[i].row, &cands[i].held)
		if missing(cost) {
			n++
			cands[i].Missing = true
		} else {
			worst = max(worst, cost)
		}
		sc.costs = append(sc.costs, cost)
	}
	if n == len(cands) {
		return ReasonMetricMissing, n
	}
	for i, cost := range sc.costs {
		if missing(cost) {
			cost = worst
		}
		add(&cands[i], cost)
	}
	return ReasonNone, n
}

func byInFlight(cands []Candidate) {
	for i := range cands {
		cands[i].Cost = float64(cands[i].inFlight)
	}
}

// prospect is what is known of a request when its candidates are.
type prospect struct {
	choice
	// reason is why the prompt's cached prefix is or is not known.
	reason       Reason
	promptTokens int
	tokens       TokenView
	adapter      string
}

// judge reads the load of all candidates and weighs them. It returns the
// reason of the decision, less what depends on the winner. The router's lock
// is held. draw orders equal costs, see [scratch.first].
func (r *Router) judge(st *settings, req *Request, sc *scratch, p *prospect, draw uint64) (Reason, int) {
	sc.scene = scene{req: req, settings: st, adapter: p.adapter, promptTokens: p.promptTokens, rand: r.rand}
	r.board.begin(&sc.scene, req.Arrived)
	sc.scene.pressure = r.waits.seconds / st.cfg.PrefixCache.Pressure.Seconds()
	if p.matches {
		r.recent.expect(req.Arrived, sc)
	}
	if sc.model != nil {
		r.board.sync(sc.snap, req.Arrived)
		sc.narrow(&r.board, p.strategy, max(1+st.cfg.Fallbacks, maxViews), draw)
	} else {
		for i := range sc.candidates {
			p.look(&sc.scene, &sc.candidates[i])
		}
		if p.matches {
			sc.longest()
		}
	}
	sc.unindex()
	reason := p.strategy.reason
	if p.matches {
		reason = p.reason
		if sc.reported > 0 || reason == ReasonCold && sc.most > 0 {
			reason = ReasonPrefix
		}
		if p.blend != nil && (reason == ReasonPrefix || reason == ReasonCold || reason == ReasonShort) {
			reason = ReasonBlend
		}
	}
	fault, missing := p.weigh(sc)
	if fault != ReasonNone {
		reason = fault
	}
	return reason, missing
}

// look reads what s needs to know of a candidate's load.
func (s *strategy) look(sc *scene, c *Candidate) {
	if s.counts {
		c.count(c.Endpoint)
		return
	}
	c.look(sc)
}

// longest finds out the most tokens that any candidate holds.
func (sc *scratch) longest() {
	sc.most, sc.reported = 0, 0
	for i := range sc.candidates {
		h := &sc.candidates[i].held
		sc.most, sc.reported = max(sc.most, h.expected), max(sc.reported, h.matched)
	}
}

// selectAndReserve picks the best candidate and counts the request on it, in
// one step, and lists the next best behind it. It returns the decision's
// number as well.
func (r *Router) selectAndReserve(st *settings, req *Request, sc *scratch, p *prospect) (Target, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.choose(st, req, sc, p)
}

// choose is selectAndReserve for those who hold the router's lock.
func (r *Router) choose(st *settings, req *Request, sc *scratch, p *prospect) (Target, uint64) {
	now, draw := req.Arrived, r.rand.Uint64()
	reason, missing := r.judge(st, req, sc, p, draw)
	cands := sc.candidates // judge may have narrowed them
	n := min(1+st.cfg.Fallbacks, len(cands))
	endpoints := make([]*pool.Endpoint, n)
	sc.first(n, draw)
	for i := range n {
		endpoints[i] = cands[i].Endpoint
	}
	won := &cands[0]
	if reason == ReasonPrefix && won.expected < sc.most {
		reason = ReasonSpill
	}
	t := Target{
		Endpoints: endpoints, Strategy: p.name, Reason: reason, Tokens: p.tokens,
		PromptTokens: p.promptTokens, MatchedTokens: won.matched,
	}
	r.log.record(sc, &t, p)
	if !p.counts {
		r.waits.add(now, sc.scene.wait(&won.row))
	}
	r.turn++
	r.reserve(sc, won, &t)
	won.Endpoint.State.SetTurn(r.turn)
	won.Endpoint.State.Try(now)
	t.observe, t.freed = r.observer, r.queue.release
	if missing > 0 {
		r.metrics.missing[p.metricName()].Inc()
	}
	return t, r.turn
}

// reserve counts the request on the winner.
func (r *Router) reserve(sc *scratch, won *Candidate, t *Target) {
	s := &sc.scene
	t.expected = int(s.cached(&won.row, &won.held))
	t.context = int64(s.promptTokens)
	if t.context == 0 {
		t.context = guessTokens(s.req)
	}
	t.work = max(0, t.context-int64(t.expected))
	t.queued = time.Duration(float64(t.work) * s.prefill(&won.row) * float64(time.Second))
	state := won.Endpoint.State
	state.Reserve(t.work)
	state.AddContext(t.context)
	state.Place(s.now, t.work)
	state.Send(r.turn, t.work)
	t.until = state.Enqueue(s.now, t.queued)
	t.recent, t.turn = &r.recent, r.turn
	for _, k := range sc.chains {
		if serves(won.Endpoint, k) {
			r.recent.add(r.turn, s.now, won, k.size, k.blocks)
		}
	}
}

// bytesPerToken is what a token of English text takes.
const bytesPerToken = 4

// guessTokens estimates the length of a prompt that was not tokenized.
func guessTokens(r *Request) int64 {
	p := &r.Prompt
	switch p.Kind {
	case PromptText:
		return int64(len(p.Text) / bytesPerToken)
	case PromptTokens:
		return int64(len(p.Tokens))
	case PromptChat:
		if !p.Multimodal { // an image is bytes and few tokens
			return int64((len(p.Messages) + len(p.Tools)) / bytesPerToken)
		}
	case PromptNone:
	}
	return 0
}

// first moves the n best candidates to the front, best first. Equal costs are
// ordered by chance, which draw is: every endpoint's draw is a hash of it.
func (sc *scratch) first(n int, draw uint64) {
	cands := sc.candidates
	before := func(a, b *Candidate) bool {
		if a.Cost != b.Cost {
			return a.Cost < b.Cost
		}
		return mix64(draw^uint64(a.Endpoint.ID)) < mix64(draw^uint64(b.Endpoint.ID))
	}
	// The best so far, as indices. n is 3 by default, and few candidates are
	// better than the last of them.
	best := sc.best[:0]
	for i := range cands {
		if len(best) == n && !before(&cands[i], &cands[best[n-1]]) {
			continue
		}
		if len(best) < n {
			best = append(best, int32(i))
		}
		at := len(best) - 1
		for ; at > 0 && before(&cands[i], &cands[best[at-1]]); at-- {
			best[at] = best[at-1]
		}
		best[at] = int32(i)
	}
	for i, from := range best {
		cands[i], cands[from] = cands[from], cands[i]
		// What was at i has moved.
		for j := i + 1; j < n; j++ {
			if best[j] == int32(i) {
				best[j] = from
			}
		}
	}
	sc.best = best
}

// observe records what a request told about an endpoint.
func (r *Router) observe(e *pool.Endpoint, now time.Time, o pool.Outcome) {
	if e.State.Observe(now, o) {
		r.metrics.cooldowns.Inc()
		r.logger.Warn("endpoint failed a request; others are preferred for a while",
			"endpoint", e.Name, "address", e.Address, "until", e.State.CoolUntil())
	}
}

// metricName returns the name of s in metrics.
func (s *strategy) metricName() string {
	if s.blend != nil && !s.queues {
		return blendMetric
	}
	return s.name
}
