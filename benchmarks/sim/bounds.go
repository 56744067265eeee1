package sim

import (
	"context"
	"errors"
	"math"

	"github.com/warmpath/warmpath/kvindex"
)

// ceilingHit returns the token hit of one cache of a number of blocks that
// sees all requests in the order of their arrival, the least recently used
// block out, a chain's last block first. It holds nothing twice, and nothing
// in it is on the wrong endpoint. A practical ceiling and not a bound: least
// recently used is not the best rule, only the usual one.
func ceilingHit(t *traffic, order []int, blocks int) float64 {
	// In terms of stack distances: a block is in the cache if fewer than blocks
	// distinct others were used since its last use. uses counts, by a Fenwick
	// tree over time, the blocks whose last use is at each time.
	total := 0
	for i := range t.prompts {
		total += len(t.prompts[i].names) + t.answerBlocks(i)
	}
	uses := make([]int32, total+1)
	add := func(at int, v int32) {
		for at++; at < len(uses); at += at & -at {
			uses[at] += v
		}
	}
	after := func(at int) (n int32) { // uses later than at
		for at++; at > 0; at -= at & -at {
			n -= uses[at]
		}
		return n
	}
	last := make(map[kvindex.EngineHash]int, total)
	distinct := int32(0)
	now := 0
	use := func(name kvindex.EngineHash) {
		if at, ok := last[name]; ok {
			add(at, -1)
		} else {
			distinct++
		}
		last[name] = now
		add(now, 1)
		now++
	}
	prompt, cached := 0, 0
	unnamed := uint64(math.MaxUint64)
	for _, i := range order {
		w, p := &t.Requests[i], &t.prompts[i]
		usable := min(p.whole, (w.InputTokens-1)/blockTokens)
		hits := 0
		for _, n := range p.names[:usable] {
			at, ok := last[n]
			if !ok || int(distinct+after(at)) >= blocks {
				break
			}
			hits++
		}
		prompt += w.InputTokens
		cached += hits * blockTokens
		for range t.answerBlocks(i) {
			use(kvindex.EngineHash(unnamed))
			unnamed--
		}
		for j := len(p.names) - 1; j >= 0; j-- {
			use(p.names[j])
		}
	}
	return float64(cached) / float64(prompt)
}

// answerBlocks is how many blocks request i's answer fills that nobody will
// ask for.
func (t *traffic) answerBlocks(i int) int {
	w := &t.Requests[i]
	// The last token is sampled and never fed back.
	return max(0, (w.InputTokens+w.OutputTokens-1)/blockTokens-len(t.prompts[i].names))
}

// pooled returns the scenario of one engine as large and as fast as all
// endpoints together: what a step computes and the cache are multiplied, its
// floor stays. That is a reference and not a bound: its steps are as long as
// those of one endpoint.
func (s Scenario) pooled() Scenario {
	n := float64(s.Endpoints)
	n = n - math.Round(s.Slow*n)/2 // a slow one is worth half
	s.Profile.PerPrefillToken /= n
	s.Profile.PerPrefillPair /= n
	s.Profile.PerDecodeContext /= n
	s.Profile.PerLoadedToken /= n
	s.pool, s.Detail = s.Endpoints, false
	s.Strategy, s.Endpoints, s.Replicas, s.Wire, s.Slow, s.Restart, s.Lag, s.Loss = "round-robin", 1, 1, false, 0, 0, 0, 0
	return s
}

// kneeTTFT is the mean TTFT of the pooled reference at the knee, in seconds.
const kneeTTFT = 2.0

// knee returns the speed of the workload, to 1 %, up to which one engine as
// large and as fast as all endpoints answers with a mean TTFT of at most 2 s:
// what lies beyond is more than the fleet can do however well it is routed. It
// depends on no strategy. s is a pooled scenario.
func (s Scenario) knee(ctx context.Context, t *traffic) (float64, error) {
	saturated := func(speed float64) (bool, error) {
		s.Speed = speed
		o, err := runWith(ctx, s, t, 1)
		return err != nil || o.MeanTTFT > kneeTTFT, err
	}
	low, high := 1.0, 1.0
	for {
		over, err := saturated(high)
		if err != nil {
			return 0, err
		}
		if over {
			break
		}
		if low, high = high, high*2; high > 1e9 {
			return 0, errors.New("the workload does not saturate at any speed; give the speed instead of the load")
		}
	}
	for low == high { // saturated from the start
		over, err := saturated(low / 2)
		if err != nil {
			return 0, err
		}
		if low /= 2; over {
			high = low
		}
		if low < 1e-9 {
			return 0, errors.New("the workload saturates at every speed; give the speed instead of the load")
		}
	}
	for high > low*1.01 {
		mid := math.Sqrt(low * high)
		over, err := saturated(mid)
		if err != nil {
			return 0, err
		}
		if over {
			high = mid
		} else {
			low = mid
		}
	}
	return low, nil
}
