package routing

import "github.com/warmpath/warmpath/routing/pool"

// strategyPrefixCache takes the candidate that is expected to answer the first
// token soonest, prices what that takes from others, and keeps prompts where
// they are cached as long as that costs little.
//
// Formula, in seconds:
//
//	  wait       the longer of the backlog (prefill work sent and not done by
//	             estimate) and the engine's own queue (waiting requests × mean
//	             time of a request ÷ running ones)
//	+ requests   (own requests in flight + those of others that the engine
//	             reports) × price of a request
//	+ prefill    uncached prompt tokens ÷ prefill rate
//	+ load       tokens cached below the device ÷ load rate
//	+ evictions  price × churn × tokens evicted ÷ prefill rate
//	− affinity   the release, for a candidate that holds at least the affinity
//	             floor's share of the prompt
//
// Uncached are the prompt's tokens without those that the endpoint's events
// report, times faith, and those expected of requests in flight. Faith is the
// configured share for events that are not exact, and falls as the engine's own cached_tokens
// refute predictions. The prefill rate is learned from the engine's counters.
//
// Evicted are the uncached tokens that do not fit beside what the engine has
// computed since it started; evicting costs others as much prefill if the
// blocks are wanted again, which is the likelier the faster the cache turns
// over: churn is min(1, reuse horizon × tokens placed a second ÷ capacity), so
// that a cache that is large for its load is free of charge.
//
// To take the release off the cost is the same as: the best holder wins unless
// somebody else is better by more than the release. It is at most a multiple
// (release_savings) of the prefill that the cached tokens save, so that a chat template's first
// block ties nothing to an endpoint. Cold prompts have no holder and spread by
// wait and requests.
//
// Source: the estimate of Mooncake (Qin et al., 2024) with in-flight blocks;
// the affinity threshold and its release in time of llm-d's
// prefix-cache-affinity-filter; an eviction price. Missing data: without
// tokens, events or a match every candidate's prefill is the same and load
// decides, with the reason; without engine metrics the configured prefill rate
// stands in and queue, requests of others and evictions count as 0.
func strategyPrefixCache() strategy {
	return strategy{
		name: "prefix-cache", doc: "the soonest first token: cached prefix, work ahead and evictions, in seconds",
		formula: "wait + requests + prefill + load + evictions − affinity", unit: UnitSeconds,
		needs: "KV events, own accounting; better with engine metrics", missing: "what is unknown counts as 0; no prefix known: load decides",
		seconds: func(*settings) float64 { return 1 },
		matches: true, alone: true,
		cost: func(sc *scene, c *Candidate) float64 {
			var e estimated
			e.fill(sc, c)
			return e.wait + e.requests + e.prefill + e.load + e.evictions - e.affinity
		},
		unmatched: func(sc *scene, c *Candidate) float64 {
			prompt, rate := float64(sc.promptTokens), sc.prefillRate(c)
			return sc.wait(c) + sc.requestCost(c) + prompt/rate + sc.evictions(c, prompt, rate)
		},
		terms: func(sc *scene, c *Candidate, dst []Term) []Term {
			var e estimated
			e.fill(sc, c)
			return append(dst, Term{"wait", e.wait, UnitSeconds}, Term{"requests", e.requests, UnitSeconds},
				Term{"prefill", e.prefill, UnitSeconds}, Term{"load", e.load, UnitSeconds},
				Term{"evictions", e.evictions, UnitSeconds}, Term{"affinity", -e.affinity, UnitSeconds})
		},
		reason: ReasonPrefix,
	}
}

// estimated are the terms of prefix-cache, in seconds.
type estimated struct{ wait, requests, prefill, load, evictions, affinity float64 }

func (e *estimated) fill(sc *scene, c *Candidate) {
	cfg := &sc.settings.cfg.PrefixCache
	faith := sc.faith(c)
	below := faith * float64(c.MatchedTokens-c.DeviceTokens)
	cached := sc.cached(c)
	prompt := float64(sc.promptTokens)
	uncached := max(0, prompt-cached)
	rate := sc.prefillRate(c)
	e.wait, e.requests, e.prefill, e.load = sc.wait(c), sc.requestCost(c), uncached/rate, below/cfg.LoadRate
	e.evictions = sc.evictions(c, uncached, rate)
	if cached > 0 && cached >= cfg.AffinityFloor*prompt {
		e.affinity = min(inSeconds(cfg.Release), cfg.ReleaseSavings*cached/rate)
	}
}

// evictions returns the price of what a candidate has to evict for uncached
// tokens that it computes at a rate.
func (sc *scene) evictions(c *Candidate, uncached, rate float64) float64 {
	if c.Fresh&pool.FieldCapacity == 0 || c.Load.Capacity <= 0 {
		return 0
	}
	computed := max(c.Load.Computed, float64(c.Endpoint.State.Placed()))
	evicted := min(uncached, max(0, computed+uncached-c.Load.Capacity))
	if evicted <= 0 {
		return 0
	}
	cfg := &sc.settings.cfg.PrefixCache
	churn := min(1, inSeconds(cfg.ReuseHorizon)*c.Endpoint.State.Churn(sc.now)/c.Load.Capacity)
	return cfg.EvictionPrice * churn * evicted / rate
}
