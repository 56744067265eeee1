package fidelity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/sim"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

// Config says what is compared.
type Config struct {
	Workload *workload.Workload
	// Strategies are those of the product, or blends of them.
	Strategies []string
	// Endpoints is the number of engines, Profile their step model, Capacity a
	// multiple of its cache.
	Endpoints int
	Profile   engine.Profile
	Capacity  float64
	// Speed is how many times as fast as recorded the requests arrive.
	Speed float64
	// Simulations is how many seeds the simulator is run with: 1, 2, …
	Simulations int
	// Scale is how many times as long everything takes, in both worlds, MaxScale
	// what it may be doubled to where the machine is too slow: a strategy whose
	// requests were sent late is begun anew. At MaxScale lateness is only told.
	Scale, MaxScale float64
	// Warmpath, Enginesim and Envoy are paths of the programs; Dir keeps their
	// configuration and logs.
	Warmpath, Enginesim, Envoy string
	Dir                        string
	// Progress, which may be nil, is told how far a run in real time is, about
	// ten times a second and at its end. It is not called concurrently.
	Progress func(Progress)
}

// Figures are what one world measured. Times are in seconds.
type Figures struct {
	// TokenHit is the share of prompt tokens that the engines found in their
	// caches, as they count it.
	TokenHit float64 `json:"token_hit"`
	MeanTTFT float64 `json:"mean_ttft_s"`
	P90TTFT  float64 `json:"p90_ttft_s"`
	// Requests is how many each endpoint answered, the most first: endpoints are
	// alike, and which one is busiest is chance.
	Requests []int `json:"requests_per_endpoint"`
}

// Simulated are the figures of the simulator: means over its seeds.
type Simulated struct {
	Figures
	// LowestHit and HighestHit bound the token hit of the seeds.
	LowestHit  float64 `json:"lowest_token_hit"`
	HighestHit float64 `json:"highest_token_hit"`
}

// Real are the figures of real time.
type Real struct {
	Figures
	// EngineTTFT is the mean time to first token that the engines measured
	// themselves, which is without network, Envoy and router.
	EngineTTFT float64 `json:"engines_mean_ttft_s"`
	// Late is the 95th percentile of how late requests were sent, LateMax the
	// most.
	Late    float64 `json:"late_p95_s"`
	LateMax float64 `json:"late_max_s"`
}

// Row is one strategy in both worlds.
type Row struct {
	Strategy string `json:"strategy"`
	// Scale is how many times as long everything took, in both.
	Scale     float64   `json:"scale"`
	Simulated Simulated `json:"simulated"`
	Real      Real      `json:"real"`
	// HitPoints is real minus simulated token hit in percent points; MeanPercent
	// and P90Percent are how much longer the times were in reality.
	HitPoints   float64 `json:"token_hit_difference_points"`
	MeanPercent float64 `json:"mean_ttft_difference_percent"`
	P90Percent  float64 `json:"p90_ttft_difference_percent"`
}

// Validate reports every value that cannot be used.
func (c Config) Validate() error {
	var errs []error
	bad := func(ok bool, field string, value any, rule string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %v: %s", field, value, rule))
		}
	}
	// Every engine is a process of this machine.
	bad(c.Endpoints >= 1 && c.Endpoints <= 32, "endpoints", c.Endpoints, "use 1 to 32")
	bad(c.Capacity >= 0.001 && c.Capacity <= 1000, "capacity", c.Capacity, "use a multiple of the profile's cache, 0.001 to 1000")
	bad(c.Speed >= 1e-6 && c.Speed <= 1e6, "speed", c.Speed, "use a multiple of the recorded rate, such as 0.5")
	bad(c.Simulations >= 1 && c.Simulations <= 1000, "simulations", c.Simulations, "use 1 to 1000")
	bad(c.Scale >= 0.01 && c.Scale <= 100, "scale", c.Scale, "use 0.01 to 100; 1 is real time")
	bad(c.MaxScale >= c.Scale && c.MaxScale <= 100, "max scale", c.MaxScale, "use the scale or more, up to 100")
	bad(len(c.Strategies) > 0, "strategies", c.Strategies, "name at least one")
	for i, s := range c.Strategies {
		if slices.Contains(c.Strategies[:i], s) {
			errs = append(errs, fmt.Errorf("strategies: %q is there twice; remove one", s))
		}
		if err := sim.CheckProduct(s); err != nil {
			errs = append(errs, fmt.Errorf("strategies: %w", err))
		}
	}
	for i := range c.Workload.Requests {
		if a := c.Workload.Requests[i].Adapter; a != "" {
			errs = append(errs, fmt.Errorf("workload %s: it has the adapter %q; the engines here have none: use a workload without", c.Workload.Name, a))
			break
		}
	}
	return errors.Join(errs...)
}

// Compare runs every strategy in both worlds. When ctx ends early, or a
// strategy fails, it returns the rows before and the error.
func (c Config) Compare(ctx context.Context) ([]Row, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return c.compare(ctx, c.play)
}

// world runs a strategy at a scale.
type world func(ctx context.Context, strategy string, scale float64) (Real, error)

func (c Config) compare(ctx context.Context, play world) ([]Row, error) {
	rows := []Row{}
	for _, strategy := range c.Strategies {
		row, err := c.row(ctx, play, strategy)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", strategy, err)
		}
		// A machine that was too slow once is not tried at that speed again.
		c.Scale = row.Scale
		rows = append(rows, row)
	}
	return rows, nil
}

// row compares one strategy, at the scale of c or, if the machine is too slow
// for that, above.
func (c Config) row(ctx context.Context, play world, strategy string) (Row, error) {
	r := Row{Strategy: strategy, Scale: c.Scale}
	var err error
	for {
		r.Real, err = play(ctx, strategy, r.Scale)
		if !errors.Is(err, errLate) {
			break
		}
		r.Scale = min(2*r.Scale, c.MaxScale)
	}
	if err != nil {
		return r, err
	}
	if r.Simulated, err = c.simulate(ctx, strategy, r.Scale); err != nil {
		return r, err
	}
	percent := func(real, simulated float64) float64 { return 100 * (real/simulated - 1) }
	r.HitPoints = 100 * (r.Real.TokenHit - r.Simulated.TokenHit)
	r.MeanPercent = percent(r.Real.MeanTTFT, r.Simulated.MeanTTFT)
	r.P90Percent = percent(r.Real.P90TTFT, r.Simulated.P90TTFT)
	return r, nil
}

// scenario is what the simulator runs.
func (c Config) scenario(strategy string, scale float64) sim.Scenario {
	return sim.Scenario{
		Strategy: strategy, Endpoints: c.Endpoints, Profile: c.Profile.Slower(scale), Capacity: c.Capacity,
		Speed: c.Speed / scale, Wire: true,
	}
}

// simulate runs a strategy in virtual time.
func (c Config) simulate(ctx context.Context, strategy string, scale float64) (Simulated, error) {
	out := Simulated{Figures: Figures{Requests: make([]int, c.Endpoints)}}
	n := float64(c.Simulations)
	for seed := range c.Simulations {
		o, err := sim.Simulate(ctx, c.scenario(strategy, scale), c.Workload, uint64(seed)+1)
		if err != nil {
			return out, fmt.Errorf("simulate: %w", err)
		}
		if o.Refused > 0 {
			return out, fmt.Errorf("simulate: %d requests are too large for an engine's cache; use more --capacity", o.Refused)
		}
		out.TokenHit += o.TokenHit / n
		out.MeanTTFT += o.MeanTTFT / n
		out.P90TTFT += o.P90TTFT / n
		if seed == 0 {
			out.LowestHit = o.TokenHit
		}
		out.LowestHit, out.HighestHit = min(out.LowestHit, o.TokenHit), max(out.HighestHit, o.TokenHit)
		for i, served := range descending(o.Served) {
			out.Requests[i] += served
		}
	}
	for i := range out.Requests {
		out.Requests[i] = (out.Requests[i] + c.Simulations/2) / c.Simulations
	}
	return out, nil
}

func descending(n []int) []int {
	n = slices.Clone(n)
	slices.SortFunc(n, func(a, b int) int { return cmp.Compare(b, a) })
	return n
}

// Judge returns an error that names the strategies whose token hits differ by
// more than limit percent points. Times are not judged: they are the machine's.
func Judge(rows []Row, limit float64) error {
	var apart []string
	for _, r := range rows {
		if d := r.HitPoints; !(d <= limit && d >= -limit) {
			apart = append(apart, fmt.Sprintf("%s by %+.1f", r.Strategy, d))
		}
	}
	if apart == nil {
		return nil
	}
	return fmt.Errorf("simulator and real time differ in token hit by more than %v points: %s", limit, strings.Join(apart, ", "))
}
