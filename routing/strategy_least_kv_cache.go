package routing

import (
	"math"

	"github.com/warmpath/warmpath/routing/pool"
)

// strategyLeastKVCache takes the candidate that uses the least of its KV
// cache, host memory included.
//
// Formula: share of the device's KV cache in use + share of the host's, each
// 0 to 1, + requests sent since the metrics were read × share per request.
// Source: AIBrix least-kv-cache (kv_cache_usage_perc + cpu_cache_usage_perc);
// the correction is ours: without it every request between two reads goes to
// the same endpoint. Missing data: the host's share is 0 where the engine has
// no such metric (vLLM V1 has none); an endpoint whose device share is unknown
// or stale counts as the most loaded known one; if all are, the fewest
// requests in flight decide.
func strategyLeastKVCache() strategy {
	return strategy{
		name: "least-kv-cache", doc: "the least KV cache in use, on the device and in host memory",
		formula: "device share + host share + correction for requests since the read", unit: UnitShare, needs: "engine metrics", missing: missingRule,
		seconds: func(*settings) float64 { return fullSeconds },
		cost: func(_ *scene, r *row, _ *held) float64 {
			if r.fresh&pool.FieldKVUsage == 0 {
				return math.NaN()
			}
			return corrected(r, r.load.KVUsage) + r.load.HostUsage
		},
		reason: ReasonLoad,
	}
}
