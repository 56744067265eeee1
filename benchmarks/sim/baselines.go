package sim

import "math"

// baselines returns the policies of other projects, re-implemented from their
// published descriptions. What they share is in [peer]; what each leaves out is
// said beside it.
func baselines() []baseline {
	return []baseline{
		{
			// AIBrix docs, "prefix-cache": if requests in flight differ by more than
			// 16, only the least loaded are looked at; then the longest match among
			// endpoints with at most mean + 2 standard deviations, as its manifests
			// set them; else the fewest requests. Fed by events, not by its own guess.
			name: "aibrix-prefix", doc: "AIBrix prefix-cache: longest match within two standard deviations of requests",
			place: aibrixPrefix,
		},
		{
			// llm-d, precise prefix cache guide: prefix 3, queue 2, KV utilization 2,
			// each from 0 to 1; the queue's by minimum and maximum.
			name: "llm-d-blend", doc: "llm-d 3-2-2: prefix share, waiting requests and KV utilization, weighted",
			place: llmdBlend,
		},
		{
			// llm-d blog, August 2026, "sticky until saturated": of endpoints that hold
			// 80 % of the prompt the one with the fewest uncached tokens in flight,
			// unless the least loaded one is 18 s of prefill ahead.
			name: "llm-d-sticky", doc: "llm-d affinity filter: holders of 80 % first, released after 18 s of prefill",
			place: llmdSticky,
		},
		{
			// Dynamo docs, KV router: uncached blocks in flight and of this request,
			// and blocks of requests in flight; each block counts alike. Without
			// temperature, shared blocks of requests are counted for each.
			name: "dynamo-cost", doc: "Dynamo: prefill blocks plus active blocks", predicts: true,
			place: dynamoCost,
		},
		{
			// Mooncake (Qin et al., FAST 2025), section 5: queue time and prefill time,
			// here linear in tokens, with the profile's own coefficient.
			name: "mooncake-est-ttft", doc: "Mooncake: least estimated time to first token",
			place: mooncake,
		},
		{
			// LMetric (arXiv 2603.15202): tokens to prefill, queued and new, times the
			// requests of the batch.
			name: "lmetric", doc: "LMetric: tokens to prefill times batch size",
			place: func(a *ask, views []view, costs []float64) {
				for i := range views {
					v := &views[i]
					costs[i] = float64(v.uncached+a.tokens-v.matched) * float64(v.requests+1)
				}
			},
		},
	}
}

func mooncake(a *ask, views []view, costs []float64) {
	for i := range views {
		v := &views[i]
		costs[i] = a.prefill*float64(v.uncached+a.tokens-v.matched) + a.load*float64(v.matched-v.device)
	}
}

func dynamoCost(a *ask, views []view, costs []float64) {
	for i := range views {
		v := &views[i]
		costs[i] = float64(v.uncached+a.tokens-v.matched)/blockTokens + float64(v.blocks)
	}
}

func aibrixPrefix(_ *ask, views []view, costs []float64) {
	const imbalance, deviations = 16, 2
	least, most, n, sum, squares := math.MaxInt, 0, 0.0, 0.0, 0.0
	for i := range views {
		if v := &views[i]; !v.down {
			least, most = min(least, v.requests), max(most, v.requests)
			n++
			sum += float64(v.requests)
			squares += float64(v.requests) * float64(v.requests)
		}
	}
	mean := sum / n
	bound := mean
	if n > 1 {
		bound += deviations * math.Sqrt(max(0, (squares-n*mean*mean)/(n-1)))
	}
	const never = 1e12
	for i := range views {
		v := &views[i]
		costs[i] = never + float64(v.requests) // least request, if nobody else passes
		if v.matched == 0 || float64(v.requests) > bound || (most-least > imbalance && v.requests > least) {
			continue
		}
		costs[i] = -float64(v.matched) + float64(v.requests)/1e6
	}
}

func llmdBlend(a *ask, views []view, costs []float64) {
	least, most := math.MaxInt, 0
	for i := range views {
		if v := &views[i]; !v.down {
			least, most = min(least, v.waiting), max(most, v.waiting)
		}
	}
	for i := range views {
		v := &views[i]
		queue := 1.0
		if most > least {
			queue = float64(most-v.waiting) / float64(most-least)
		}
		costs[i] = -(3*float64(v.matched)/float64(a.tokens) + 2*queue + 2*(1-v.usage))
	}
}

func llmdSticky(a *ask, views []view, costs []float64) {
	const threshold, penalty = 0.8, 18.0
	// Cold and warm prompts alike count the tokens that are still to be computed.
	work := func(v *view) float64 { return float64(v.uncached + a.tokens - v.matched) }
	holder, other := math.Inf(1), math.Inf(1)
	holds := func(v *view) bool { return float64(v.matched) >= threshold*float64(a.tokens) }
	for i := range views {
		v := &views[i]
		switch {
		case v.down:
		case holds(v):
			holder = min(holder, work(v))
			fallthrough
		default:
			other = min(other, work(v))
		}
	}
	sticky := (holder-other)*a.prefill <= penalty
	for i := range views {
		v := &views[i]
		if costs[i] = work(v); sticky && !holds(v) {
			costs[i] += 1e12
		}
	}
}
