package routing

import (
	"math"

	"github.com/warmpath/warmpath/routing/pool"
)

// strategyThroughput takes the candidate whose engine processed the fewest
// tokens lately. A prompt token counts twice.
//
// Formula: 2 × prompt tokens/s + generated tokens/s, means over some seconds.
// Source: AIBrix throughput, with rates in place of its averages per request,
// which do not tell a busy engine from an idle one. Missing data: an endpoint
// whose token counters are unknown or stale counts as the most loaded known
// one; if all are, the fewest requests in flight decide.
func strategyThroughput() strategy {
	return strategy{
		name: "throughput", doc: "the engine that processed the fewest tokens lately",
		formula: "2 × prompt tokens/s + generated tokens/s", unit: UnitRate, needs: "engine metrics", missing: missingRule,
		seconds: func(st *settings) float64 { return fullSeconds / st.cfg.PrefixCache.PrefillRate },
		cost: func(_ *scene, r *row, _ *held) float64 {
			if r.fresh&pool.FieldThroughput == 0 {
				return math.NaN()
			}
			return 2*r.load.PromptRate + r.load.GenerationRate
		},
		reason: ReasonLoad,
	}
}
