package sim

import (
	"context"
	"errors"
	"math"
)

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
