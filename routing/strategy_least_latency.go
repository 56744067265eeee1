package routing

import (
	"math"

	"github.com/warmpath/warmpath/routing/pool"
)

// strategyLeastLatency takes the candidate whose recent requests took the
// shortest time from arrival to end.
//
// Formula: mean queue time + mean prefill time + mean decode time of requests
// that ended lately + backlog, in seconds. The means come from differences of
// the engine's histograms, so they are of the last seconds and not of its
// whole life; the backlog, prefill work that this router has sent and that is
// not done by its estimate, keeps requests from herding between two reads.
// Source: AIBrix least-latency. Missing data: an endpoint whose histograms are
// unknown (SGLang and TensorRT-LLM have no such ones) or stale counts as the
// slowest known one; if all do, the fewest requests in flight decide.
func strategyLeastLatency() strategy {
	return strategy{
		name: "least-latency", doc: "the shortest recent time of requests, with the backlog",
		formula: "queue + prefill + decode + backlog", unit: UnitSeconds, needs: "vLLM metrics", missing: missingRule,
		seconds: func(*settings) float64 { return 1 },
		cost: func(_ *scene, c *Candidate) float64 {
			if c.Fresh&pool.FieldLatency == 0 {
				return math.NaN()
			}
			return c.Load.QueueSeconds + c.Load.PrefillSeconds + c.Load.DecodeSeconds + c.Backlog.Seconds()
		},
		terms: func(_ *scene, c *Candidate, dst []Term) []Term {
			if c.Fresh&pool.FieldLatency == 0 {
				return dst
			}
			return append(dst,
				Term{"queue", c.Load.QueueSeconds, UnitSeconds}, Term{"prefill", c.Load.PrefillSeconds, UnitSeconds},
				Term{"decode", c.Load.DecodeSeconds, UnitSeconds}, Term{"backlog", c.Backlog.Seconds(), UnitSeconds})
		},
		reason: ReasonLoad,
	}
}
