package routing

// strategyPrefixCache takes the candidate that is expected to answer the first
// token soonest, prices what that takes from others, and keeps prompts where
// they are cached as long as that costs little.
//
// Formula, in seconds:
//
//	  wait       the longer of two. The backlog: prefill work sent and not done;
//	             where the engine does not say how many requests wait for their
//	             first token, an estimate that drains with time. And the time
//	             until the engine's cache has room for the prompt: (tokens that
//	             running requests hold + those that waiting ones and this one
//	             need − full) × mean time of a request ÷ full, full being 0.9 ×
//	             capacity. Where the engine says neither what it holds nor who waits
//	             for a first token: waiting requests × mean time of a request ÷
//	             running ones
//	+ requests   (own requests in flight + those of others that the engine
//	             reports) × price of a request
//	+ prefill    uncached prompt tokens ÷ prefill rate × (1 + pressure)
//	+ load       tokens cached below the device ÷ load rate × (1 + pressure)
//	+ evictions  price × pressure × churn × tokens evicted ÷ prefill rate
//	− affinity   the release × the share of the prompt that is cached, for a
//	             candidate that holds at least the affinity floor's share of it
//
// Uncached are the prompt's tokens without those that the endpoint's events
// report, times faith, and those expected of requests in flight. Faith is the
// configured share for events that are not exact, and falls as the engine's own cached_tokens
// refute predictions. The prefill rate is learned from the engine's counters.
//
// Pressure is the mean wait of requests that were placed lately, in multiples of
// the configured one. Work that nobody waits for costs only the request that
// causes it. Where all endpoints have queues, it costs everybody behind it as
// well, and what it evicts will have to be computed while others wait: then
// cached tokens are capacity.
//
// Evicted are the uncached tokens that do not fit beside what the engine has
// computed since it started. The blocks are the likelier wanted again the faster
// the cache turns over: churn is min(1, reuse horizon × tokens placed a second ÷
// capacity), so that a cache that is large for its load is free of charge.
//
// To take the affinity off the cost is the same as: the best holder wins unless
// somebody else is better by more than the release. It is at most a multiple
// (release_savings) of the prefill that the cached tokens save, so that a chat template's first
// block ties nothing to an endpoint. Cold prompts have no holder and spread by
// wait and requests.
//
// Source: the estimate of Mooncake (Qin et al., 2024) with in-flight blocks;
// the affinity threshold and its release in time of llm-d's
// prefix-cache-affinity-filter; a price of work that follows the queues. Missing
// data: without tokens, events or a match every candidate's prefill is the same
// and load decides, with the reason; without engine metrics the configured
// prefill rate stands in and queue, requests of others and evictions count as 0.
func strategyPrefixCache() strategy {
	return strategy{
		name: "prefix-cache", doc: "the soonest first token: cached prefix, work ahead and evictions, in seconds",
		formula: "wait + requests + (prefill + load) × (1 + pressure) + evictions × pressure − affinity", unit: UnitSeconds,
		needs: "KV events, own accounting; better with engine metrics", missing: "what is unknown counts as 0; no prefix known: load decides",
		seconds: func(*settings) float64 { return 1 },
		matches: true, alone: true,
		cost: func(sc *scene, r *row, h *held) float64 {
			busy, perToken := sc.wait(r)+sc.requestCost(r), sc.prefill(r)
			if h.expected == 0 { // most endpoints of many: a short way to the same sum
				prompt := float64(sc.promptTokens)
				cost := busy + sc.urgent(prompt*perToken)
				if cost > sc.limit || prompt+r.over <= 0 {
					return cost
				}
				return cost + sc.evictions(r, prompt, perToken)
			}
			uncached, load, affinity := sc.saved(r, h, perToken)
			return busy + sc.urgent(uncached*perToken) + sc.urgent(load) + sc.evictions(r, uncached, perToken) - affinity
		},
		terms: func(sc *scene, c *Candidate, dst []Term) []Term {
			r, perToken := &c.row, sc.prefill(&c.row)
			uncached, load, affinity := sc.saved(r, &c.held, perToken)
			return append(dst, Term{"wait", sc.wait(r), UnitSeconds}, Term{"requests", sc.requestCost(r), UnitSeconds},
				Term{"prefill", sc.urgent(uncached * perToken), UnitSeconds}, Term{"load", sc.urgent(load), UnitSeconds},
				Term{"evictions", sc.evictions(r, uncached, perToken), UnitSeconds}, Term{"affinity", -affinity, UnitSeconds})
		},
		reason: ReasonPrefix,
	}
}

// saved returns how many of the prompt's tokens an endpoint that prefills one in
// perToken seconds has to compute, how many seconds it takes to load what it
// holds below the device, and how many affinity is worth.
func (sc *scene) saved(r *row, h *held, perToken float64) (uncached, load, affinity float64) {
	prompt := float64(sc.promptTokens)
	if h.expected == 0 {
		return prompt, 0, 0
	}
	cfg := &sc.settings.cfg.PrefixCache
	cached := sc.cached(r, h)
	if cached > 0 && cached >= cfg.AffinityFloor*prompt {
		affinity = min(cfg.Release.Seconds()*cached/prompt, cfg.ReleaseSavings*cached*perToken)
	}
	return max(0, prompt-cached), sc.faith(r, h) * float64(h.matched-h.device) / cfg.LoadRate, affinity
}

// urgent returns what seconds of an endpoint's work count under pressure: those
// who wait behind it wait as much longer.
func (sc *scene) urgent(work float64) float64 { return work * (1 + sc.pressure) }

// evictions returns the price of what an endpoint has to evict for uncached
// tokens.
func (sc *scene) evictions(r *row, uncached, perToken float64) float64 {
	// Comparisons, not min, which minds numbers that these are never.
	evicted := uncached
	if r.over < 0 {
		evicted += r.over
	}
	if evicted <= 0 {
		return 0
	}
	churn := sc.reuse * r.turnover
	if churn > 1 {
		churn = 1
	}
	return sc.settings.cfg.PrefixCache.EvictionPrice * sc.pressure * churn * evicted * perToken
}
