package routing

import (
	"math"
	"slices"

	"github.com/warmpath/warmpath/routing/pool"
)

// adapterSeconds is what it takes to load one LoRA adapter from disk: some
// hundred megabytes. It has to be waited for, and it evicts another if the
// engine's slots are full, which then has to be loaded again.
const adapterSeconds = 0.5

// strategyLoRAAffinity takes the candidate that has the request's LoRA adapter
// loaded, unless waiting for it takes longer than loading it elsewhere.
//
// Formula: backlog + requests in flight × price of a request + adapter loads
// × 0.5 s, where loads is 0 if running or waiting requests use the adapter, 1
// if a slot is free, 2 if all are taken. Source: the classes of the Gateway
// API inference extension's lora-affinity scorer, priced in seconds. Missing
// data: a request for a base model needs no adapter, so only load counts; an
// endpoint whose adapters are unknown (only vLLM tells) or stale counts as the
// worst known one; if all do, the fewest requests in flight decide.
func strategyLoRAAffinity() strategy {
	return strategy{
		name: "lora-affinity", doc: "an engine that has the LoRA adapter loaded, unless waiting takes longer than loading it",
		formula: "backlog + requests × price + adapter loads × 0.5 s", unit: UnitSeconds, needs: "vLLM metrics", missing: missingRule,
		seconds: func(*settings) float64 { return 1 },
		cost: func(sc *scene, r *row, _ *held) float64 {
			return sc.backlog(r) + sc.requestCost(r) + adapterLoads(sc, r)*adapterSeconds
		},
		terms: func(sc *scene, c *Candidate, dst []Term) []Term {
			r := &c.row
			return append(dst, Term{"backlog", sc.backlog(r), UnitSeconds},
				Term{"requests", sc.requestCost(r), UnitSeconds}, Term{"adapter", adapterLoads(sc, r) * adapterSeconds, UnitSeconds})
		},
		reason: ReasonLoad,
	}
}

func adapterLoads(sc *scene, r *row) float64 {
	switch {
	case sc.adapter == "":
		return 0
	case r.fresh&pool.FieldAdapters == 0:
		return math.NaN()
	case slices.Contains(r.load.Adapters, sc.adapter):
		return 0
	case r.load.MaxAdapters == 0 || len(r.load.Adapters) < r.load.MaxAdapters:
		return 1
	}
	return 2
}
