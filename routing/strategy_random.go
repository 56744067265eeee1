package routing

// strategyRandom gives every candidate the same cost, so that chance decides.
//
// Formula: 0. Source: AIBrix random. Missing data: needs none.
func strategyRandom() strategy {
	return strategy{
		counts: true, alone: true,
		name: "random", doc: "any endpoint, with equal chances",
		formula: "0", unit: UnitNone, needs: "nothing", missing: "–",
		cost:   func(*scene, *row, *held) float64 { return 0 },
		reason: ReasonRandom,
	}
}
