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
		cost: func(sc *scene, r *row, _ *held) float64 {
			if r.fresh&pool.FieldLatency == 0 {
				return math.NaN()
			}
			return r.load.QueueSeconds + r.load.PrefillSeconds + r.load.DecodeSeconds + sc.backlog(r)
		},
		terms: func(sc *scene, c *Candidate, dst []Term) []Term {
			r := &c.row
			if r.fresh&pool.FieldLatency == 0 {
				return dst
			}
			return append(dst,
				Term{"queue", r.load.QueueSeconds, UnitSeconds}, Term{"prefill", r.load.PrefillSeconds, UnitSeconds},
				Term{"decode", r.load.DecodeSeconds, UnitSeconds}, Term{"backlog", sc.backlog(r), UnitSeconds})
		},
		reason: ReasonLoad,
	}
}
