package sim

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"time"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// calibrated is how many requests a calibration runs: enough to fill caches in
// part, and a fraction of a second.
const calibrated = 400

// kneeRuns is how many pooled runs it takes to find a knee, about.
const kneeRuns = 12

// costs tells how much processor time it takes to simulate one request of a
// scenario.
type costs func(ctx context.Context, s Scenario, t *traffic) (time.Duration, error)

// measured returns the costs by a clock: those of the first requests of the
// workload, the least of three tries, for others who use the machine's caches
// make some of them longer and none shorter.
func measured(now func() time.Duration) costs {
	return func(ctx context.Context, s Scenario, t *traffic) (time.Duration, error) {
		n := min(calibrated, len(t.Requests))
		part := *t
		part.Workload = &workload.Workload{Name: t.Name, Requests: t.Requests[:n]}
		part.prompts = t.prompts[:n]
		least := time.Duration(math.MaxInt64)
		for range 3 {
			began := now()
			if _, err := runWith(ctx, s, &part, 1); err != nil {
				return 0, err
			}
			least = min(least, now()-began)
		}
		return least / time.Duration(n), nil
	}
}

// Estimate returns about how long a plan takes on this machine while nothing else
// runs on it, from short runs for each strategy and reference on each workload.
// Queues that grow past the knee, and caches that a short run does not fill, make
// the real thing take longer.
func (p Plan) Estimate(ctx context.Context) (time.Duration, error) {
	return p.estimate(ctx, measured(cpuTime))
}

func (p Plan) estimate(ctx context.Context, cost costs) (time.Duration, error) {
	x := newExecution(p)
	x.ctx = ctx
	type kind struct {
		workload, strategy  string
		endpoints, replicas int
		wire, detail        bool
	}
	known := map[kind]time.Duration{}
	var total time.Duration
	run := func(name string, s Scenario, load float64) (time.Duration, error) {
		t, err := x.traffic[name][0]()
		if err != nil {
			return 0, err
		}
		k := kind{name, s.Strategy, s.Endpoints * max(1, s.pool), s.Replicas, s.Wire, s.Detail}
		if s.pool > 0 {
			k.strategy = "" // the reference
		}
		each, ok := known[k]
		if !ok {
			if load > 0 {
				s.Speed = load * s.capacity(t)
			}
			if each, err = cost(ctx, s, t); err != nil {
				return 0, fmt.Errorf("%s: %w", s.Strategy, err)
			}
			known[k] = each
		}
		return each * time.Duration(len(t.Requests)), nil
	}
	knees := map[place]bool{}
	for _, it := range x.Items {
		d, err := run(it.Name, it.Scenario, it.Load)
		if err != nil {
			return 0, err
		}
		total += d * time.Duration(p.Seeds)
		at := it.place()
		at.load = 0
		if it.Load != 0 && !knees[at] {
			knees[at] = true
			if d, err = run(it.Name, it.pooled(), it.Load); err != nil {
				return 0, err
			}
			total += kneeRuns * d
		}
	}
	for i := range x.places {
		it := x.at(x.places[i])
		d, err := run(it.Name, it.pooled(), it.Load)
		if err != nil {
			return 0, err
		}
		total += d * time.Duration(p.Seeds)
	}
	return total / time.Duration(x.workers()), nil
}

// at returns the first item at a place.
func (x *execution) at(p place) *Item {
	for i := range x.Items {
		if x.Items[i].place() == p {
			return &x.Items[i]
		}
	}
	return nil
}

// workers is how many runs go side by side.
func (x *execution) workers() int {
	n := x.Workers
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return max(1, min(n, (len(x.places)+len(x.Items))*x.Seeds))
}

// capacity is the speed at which the fleet would be busy all the time if no
// prompt token were cached: near enough to the knee to see how long a request
// takes to simulate.
func (s Scenario) capacity(t *traffic) float64 {
	work := 0.0
	for i := range t.Requests {
		n := float64(t.Requests[i].InputTokens)
		work += n*s.Profile.PerPrefillToken + n*n/2*s.Profile.PerPrefillPair
	}
	span := t.Span().Seconds()
	if work == 0 || span == 0 {
		return 1
	}
	return span * float64(s.Endpoints) / (work / 1e3)
}
