package routing

import (
	"math"

	"github.com/warmpath/warmpath/routing/pool"
)

// strategyLeastUtilization takes the candidate whose engine calls itself the
// least utilized.
//
// Formula: engine_utilization, 0 to 1, or the share of the device's KV cache
// in use where the engine has no such metric, + requests sent since the
// metrics were read × share per request. Source: AIBrix least-utilization
// (xLLM). Missing data: an endpoint with neither metric, or with stale ones,
// counts as the most loaded known one; if all do, the fewest requests in
// flight decide.
func strategyLeastUtilization() strategy {
	return strategy{
		name: "least-utilization", doc: "the lowest engine utilization; KV-cache use where the engine does not tell",
		formula: "utilization + correction for requests since the read", unit: UnitShare, needs: "engine metrics", missing: missingRule,
		seconds: func(*settings) float64 { return fullSeconds },
		cost: func(_ *scene, r *row, _ *held) float64 {
			switch {
			case r.fresh&pool.FieldUtilization != 0:
				return corrected(r, r.load.Utilization)
			case r.fresh&pool.FieldKVUsage != 0:
				return corrected(r, r.load.KVUsage)
			}
			return math.NaN()
		},
		reason: ReasonLoad,
	}
}
