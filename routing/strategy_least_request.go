package routing

// strategyLeastRequest takes the candidate with the fewest requests in flight.
// The count is this router's own: exact and immediate.
//
// Formula: requests in flight. Source: AIBrix least-request. Missing data:
// needs none, so every strategy that cannot decide falls back to this one.
func strategyLeastRequest() strategy {
	return strategy{
		counts: true, alone: true,
		name: "least-request", doc: "the fewest requests in flight from this router",
		formula: "requests in flight", unit: UnitRequests, needs: "own accounting", missing: "–",
		seconds: func(st *settings) float64 { return st.cfg.PrefixCache.RequestCost.Seconds() },
		cost:    costInFlight,
		reason:  ReasonLoad,
	}
}

func costInFlight(_ *scene, r *row, _ *held) float64 { return float64(r.inFlight) }
