package routing

import "math"

// strategyPowerOfTwo draws two candidates and takes the one with fewer
// requests in flight. It spreads nearly as evenly as least-request and, where
// several routers do not see each other's requests, does not herd.
//
// Formula: requests in flight of the two that were drawn, infinite for the
// others. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load
// Balancing", 2001; AIBrix power-of-two. Missing data: needs none.
func strategyPowerOfTwo() strategy {
	return strategy{
		counts: true,
		name:   "power-of-two", doc: "the one with fewer requests in flight of two that are drawn at random",
		formula: "requests in flight; infinite unless drawn", unit: UnitRequests, needs: "own accounting", missing: "–",
		prepare: func(sc *scene, cands []Candidate) Reason {
			sc.drawn = [2]uint64{}
			if n := len(cands); n > 1 {
				i := sc.rand.IntN(n)
				j := sc.rand.IntN(n - 1)
				if j >= i {
					j++
				}
				sc.drawn[0], sc.drawn[1] = cands[i].name, cands[j].name
			}
			return ReasonNone
		},
		cost: func(sc *scene, r *row, _ *held) float64 {
			if sc.drawn[0] != sc.drawn[1] && r.name != sc.drawn[0] && r.name != sc.drawn[1] {
				return math.Inf(1)
			}
			return float64(r.inFlight)
		},
		reason: ReasonLoad,
	}
}
