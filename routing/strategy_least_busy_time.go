package routing

import (
	"math"

	"github.com/warmpath/warmpath/routing/pool"
)

// strategyLeastBusyTime takes the candidate whose engine was busy for the
// smallest part of the last seconds.
//
// Formula: share of recent time with work, 0 to 1: gpu_busy_time_ratio where
// it is exported, else the mean of "running + waiting > 0" over the reads of
// some seconds, + requests sent since the last read × 1/256. Source: AIBrix
// least-busy-time, whose metric no engine exports; the second way is ours.
// Missing data: an endpoint whose metrics are unknown or stale counts as the
// busiest known one; if all are, the fewest requests in flight decide.
func strategyLeastBusyTime() strategy {
	return strategy{
		name: "least-busy-time", doc: "the engine that had work for the smallest part of the last seconds",
		formula: "share of time with work + correction for requests since the read", unit: UnitShare, needs: "engine metrics", missing: missingRule,
		seconds: func(*settings) float64 { return fullSeconds },
		cost: func(_ *scene, r *row, _ *held) float64 {
			if r.fresh&pool.FieldBusy == 0 {
				return math.NaN()
			}
			return max(0, r.load.Busy+float64(r.inFlight-r.load.InFlight)*leastShare)
		},
		reason: ReasonLoad,
	}
}
