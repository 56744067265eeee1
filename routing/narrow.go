package routing

import "github.com/warmpath/warmpath/routing/pool"

// Narrowing. Of many endpoints most hold nothing of a prompt, and among those
// only the cheapest few can be chosen or listed. So candidates are made of the
// endpoints that are expected to hold something, and of the cheapest others,
// which one pass finds that keeps nothing of the rest. What is decided is what
// it would be with a candidate for every endpoint, but that block sizes count
// that only endpoints which cool down have reported.

// narrowFrom is the number of endpoints from which on the pass is cheaper than
// the candidates it saves.
const narrowFrom = 32

// narrows tells whether the candidates of a request may be narrowed. They are
// not where all of the model's endpoints cool down: then all are candidates.
func (r *Router) narrows(p *prospect, req *Request, m *pool.Model) bool {
	if !p.alone || m.Name == "" || req.Subset != nil || req.Filter != "" || len(m.Endpoints) < r.narrowFrom {
		return false
	}
	for _, e := range m.Endpoints {
		if !e.Cooling(req.Arrived) {
			return true
		}
	}
	return false
}

// count returns how many candidates there are, narrowed or not.
func (sc *scratch) count() int {
	if sc.model != nil {
		return sc.considered
	}
	return len(sc.candidates)
}

// ranked is an endpoint in the pass of narrow.
type ranked struct {
	cost float64
	// draw orders equal costs.
	draw     uint64
	endpoint *pool.Endpoint
}

func (a *ranked) before(b *ranked) bool {
	return a.cost < b.cost || a.cost == b.cost && a.draw < b.draw
}

// narrow adds those n endpoints of the model to the candidates that cost least
// under s, of those that are not among them yet. The router's lock is held.
func (sc *scratch) narrow(s *strategy, n int, draw uint64) {
	best := sc.ranked[:0]
	sc.considered = len(sc.candidates)
	c, cost := &sc.unmatched, s.cost
	if s.unmatched != nil {
		cost = s.unmatched
	}
	for _, e := range sc.model.Endpoints {
		if e.Cooling(sc.now) || (int(e.ID) < len(sc.position) && sc.position[e.ID] >= 0) {
			continue
		}
		sc.considered++
		c.Endpoint = e
		s.look(c, sc.now)
		next := ranked{cost: cost(&sc.scene, c), endpoint: e}
		if len(best) == n && next.cost > best[n-1].cost {
			continue
		}
		next.draw = mix64(draw ^ uint64(e.ID))
		if len(best) < n {
			best = append(best, next)
		} else if !next.before(&best[n-1]) {
			continue
		}
		at := len(best) - 1
		for ; at > 0 && next.before(&best[at-1]); at-- {
			best[at] = best[at-1]
		}
		best[at] = next
	}
	sc.unindex() // what follows is not in position
	for i := range best {
		sc.candidates = append(sc.candidates, Candidate{Endpoint: best[i].endpoint})
	}
	clear(best) // it must not keep endpoints that are gone
	sc.ranked, sc.unmatched = best, Candidate{}
	if len(sc.candidates) == 0 { // all of them failed a request just now
		for _, e := range sc.model.Endpoints {
			sc.candidates = append(sc.candidates, Candidate{Endpoint: e, Cooling: true})
		}
		sc.considered = len(sc.candidates)
	}
}
