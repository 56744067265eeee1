package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// Outcome is what one run measured, in seconds and shares.
type Outcome struct {
	MeanTTFT, P50TTFT, P90TTFT, P99TTFT float64
	// TPOT is the mean over requests of the time between two tokens.
	TPOT float64
	// TokenHit is the share of prompt tokens that engines found cached.
	TokenHit float64
	// FalseHit is the share of prompt tokens that the router took to be cached
	// where the engine found them not to be; FalseMiss the other way round.
	FalseHit, FalseMiss float64
	// Prefill is how many prompt tokens each endpoint computed, Served how many
	// requests it answered to the end.
	Prefill, Served []int
	// Imbalance is the most of them over the mean.
	Imbalance float64
	// Span is the time from the first arrival to the last token.
	Span float64
	// Waiting is [Detail.Waiting] and Regrets how many decisions are in each
	// of [RegretLabels], if the scenario asks for detail.
	Waiting [][]float64
	Regrets []int
	// Requests ended that were measured, Refused never fitted, Crashes happened.
	Requests, Refused, Crashes int
	// Preempted counts the sequences that engines threw back to their queues.
	Preempted int
}

// Simulate runs a scenario on a workload with a seed. Equal arguments give
// equal outcomes.
func Simulate(ctx context.Context, s Scenario, w *workload.Workload, seed uint64) (*Outcome, error) {
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return runWith(ctx, s, newTraffic(w), seed)
}

func runWith(ctx context.Context, s Scenario, t *traffic, seed uint64) (*Outcome, error) {
	r, err := newRun(s, t, seed)
	if err != nil {
		return nil, err
	}
	if err := r.play(ctx); err != nil {
		return nil, fmt.Errorf("%s, seed %d: %w", s.Strategy, seed, err)
	}
	return r.outcome(), nil
}

func (r *run) outcome() *Outcome {
	o := &Outcome{Span: r.now.Seconds(), Crashes: r.crashes, Served: make([]int, len(r.endpoints))}
	ttft := make([]float64, 0, len(r.requests))
	var sum, tpot float64
	var several int
	var prompt, cached, over, under int
	var from time.Duration
	if r.Warmup > 0 {
		from = r.arrivals[r.Warmup]
	}
	for i := range r.requests {
		q, w := &r.requests[i], &r.Requests[i]
		if q.state == refused {
			o.Refused++
			continue
		}
		o.Served[q.endpoint]++
		if q.arrived < from {
			continue
		}
		t := (q.first - q.arrived).Seconds()
		ttft = append(ttft, t)
		sum += t
		if w.OutputTokens > 1 {
			several++
			tpot += (q.done - q.first).Seconds() / float64(w.OutputTokens-1)
		}
		prompt += w.InputTokens
		cached += int(q.cached)
		over += max(0, int(q.matched-q.cached))
		under += max(0, int(q.cached-q.matched))
	}
	o.Requests = len(ttft)
	if o.Requests == 0 {
		return o
	}
	slices.Sort(ttft)
	o.MeanTTFT = sum / float64(len(ttft))
	o.P50TTFT, o.P90TTFT, o.P99TTFT = quantile(ttft, 0.5), quantile(ttft, 0.9), quantile(ttft, 0.99)
	if several > 0 {
		o.TPOT = tpot / float64(several)
	}
	total := float64(prompt)
	o.TokenHit, o.FalseHit, o.FalseMiss = float64(cached)/total, float64(over)/total, float64(under)/total
	most, all := 0, 0
	for i := range r.endpoints {
		o.Preempted += int(r.endpoints[i].core.Stats().Preemptions)
		n := r.endpoints[i].computed
		o.Prefill = append(o.Prefill, n)
		most, all = max(most, n), all+n
	}
	if r.Detail {
		o.Waiting, o.Regrets = r.waiting(), r.regrets
	}
	if all > 0 {
		o.Imbalance = float64(most) * float64(len(r.endpoints)) / float64(all)
	}
	return o
}

// quantile returns the value of sorted below or at which a share of it lies.
func quantile(sorted []float64, share float64) float64 {
	n := int(share*float64(len(sorted)) + 0.999999)
	return sorted[min(max(n, 1), len(sorted))-1]
}
