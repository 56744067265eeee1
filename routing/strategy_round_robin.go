package routing

// strategyRoundRobin takes the candidate that was chosen longest ago. Over a
// constant set that is a strict rotation, and it remains fair when the set
// differs from request to request.
//
// Formula: number of the decision that last chose the endpoint, 0 if none did;
// decisions of this router under any strategy count. Source: the classic
// rotation, stated as least recently used. Missing data: needs none.
func strategyRoundRobin() strategy {
	return strategy{
		counts: true, alone: true,
		name: "round-robin", doc: "the endpoint that was chosen longest ago",
		formula: "number of the decision that last chose it", unit: UnitTurns, needs: "own accounting", missing: "–",
		cost:   func(_ *scene, r *row, _ *held) float64 { return float64(r.turn) },
		reason: ReasonTurn,
	}
}
