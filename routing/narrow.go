package routing

import (
	"math"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Narrowing. Of many endpoints only the cheapest few can be chosen or listed.
// So candidates are made of those, which one pass over the [board] finds that
// keeps nothing of the rest. What is decided is what it would be with a
// candidate for every endpoint, but that block sizes count that only endpoints
// which cool down have reported.

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
	draw uint64
	id   kvindex.EndpointID
}

func (a *ranked) before(b *ranked) bool {
	return a.cost < b.cost || a.cost == b.cost && a.draw < b.draw
}

// narrow makes candidates of those n endpoints of the model that cost least
// under s. The router's lock is held, and b has the rows of the snapshot.
func (sc *scratch) narrow(b *board, s *strategy, n int, draw uint64) {
	best, scene, rows := sc.ranked[:0], &sc.scene, b.rows
	ns, cooling, holders := scene.ns, 0, len(sc.holders) > 0
	sc.most, sc.reported = 0, 0
	last := ranked{cost: math.Inf(1), draw: math.MaxUint64} // of those in best
	for i := range sc.model.Refs {
		id := sc.model.Refs[i].ID
		r := &rows[id]
		if r.cools > ns {
			cooling++
			continue
		}
		if r.until < ns {
			r.read(b.endpoints[id], scene.now, b.base)
		}
		h := &sc.nothing
		if holders {
			if of := sc.holds(id); of != nil {
				h = of
				sc.most, sc.reported = max(sc.most, h.expected), max(sc.reported, h.matched)
			}
		}
		cost := s.cost(scene, r, h)
		if cost > last.cost {
			continue
		}
		next := ranked{cost, mix64(draw ^ uint64(id)), id}
		if !next.before(&last) {
			continue
		}
		if len(best) < n {
			best = append(best, next)
		}
		at := len(best) - 1
		for ; at > 0 && next.before(&best[at-1]); at-- {
			best[at] = best[at-1]
		}
		best[at] = next
		if len(best) == n {
			last = best[n-1]
			scene.limit = last.cost
		}
	}
	scene.limit = math.Inf(1)
	sc.ranked, sc.considered = best, len(sc.model.Refs)-cooling
	for i := range best {
		sc.admit(b, best[i].id, false)
	}
	if len(best) == 0 { // all of them failed a request just now
		for i := range sc.model.Refs {
			sc.admit(b, sc.model.Refs[i].ID, true)
		}
		sc.considered = len(sc.candidates)
		sc.longest()
	}
}

// admit makes a candidate of an endpoint.
func (sc *scratch) admit(b *board, id kvindex.EndpointID, cooling bool) {
	c := Candidate{Endpoint: sc.model.Endpoint(id), Cooling: cooling, row: b.rows[id]}
	if h := sc.holds(id); h != nil {
		c.held = *h
	}
	sc.candidates = append(sc.candidates, c)
}
