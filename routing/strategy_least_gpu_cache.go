package routing

import (
	"math"

	"github.com/warmpath/warmpath/routing/pool"
)

// strategyLeastGPUCache takes the candidate that uses the least of its
// device's KV cache.
//
// Formula: share of the device's KV cache in use, 0 to 1, + requests sent
// since the metrics were read × share per request. Source: AIBrix
// least-gpu-cache, under every name that vLLM, SGLang and TensorRT-LLM gave
// the metric. Missing data: as in least-kv-cache.
func strategyLeastGPUCache() strategy {
	return strategy{
		name: "least-gpu-cache", doc: "the least KV cache in use on the device",
		formula: "device share + correction for requests since the read", unit: UnitShare, needs: "engine metrics", missing: missingRule,
		seconds: func(*settings) float64 { return fullSeconds },
		cost: func(_ *scene, r *row, _ *held) float64 {
			if r.fresh&pool.FieldKVUsage == 0 {
				return math.NaN()
			}
			return corrected(r, r.load.KVUsage)
		},
		reason: ReasonLoad,
	}
}
