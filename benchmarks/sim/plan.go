package sim

import (
	"context"
	"fmt"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

// Source gives the workload of a seed.
type Source interface {
	// Generate returns the workload of a seed. It may be called concurrently.
	Generate(seed uint64) (*workload.Workload, error)
}

// Trace is the source that gives one workload for all seeds; only what happens
// within the steps of its timestamps differs between them.
type Trace struct{ *workload.Workload }

// Generate implements [Source].
func (t Trace) Generate(uint64) (*workload.Workload, error) { return t.Workload, nil }

// Item is a cell to run: a scenario, without its Workload, and where that comes
// from.
type Item struct {
	Scenario
	// Name is the workload's, Source what gives it. Items of one name must have
	// equal sources.
	Name   string
	Source Source
	// Load is the share of the knee; 0: Speed says it.
	Load float64
}

// Plan is cells to run, each with Seeds seeds from First on.
type Plan struct {
	Items []Item
	Seeds int
	// First is the first seed; 0 means 1.
	First uint64
	// Workers is how many runs go side by side; 0: one for each core. It does
	// not change results.
	Workers int
	// Progress, which may be nil, is told after each run. It is not called
	// concurrently.
	Progress func(Step)
}

// Step says that a run has ended.
type Step struct {
	// Done runs of Total have ended; those of references count.
	Done, Total int
	// What was run last, for people.
	What string
}

// place is what decides a reference, but for the seed.
type place struct {
	workload, profile    string
	endpoints            int
	load, speed          float64
	capacity, host, slow float64
}

func (it *Item) place() place {
	p := place{it.Name, it.Profile.Name, it.Endpoints, it.Load, it.Speed, it.Capacity, it.Host, it.Slow}
	if it.Load != 0 {
		p.speed = 0
	}
	return p
}

// reference is what all strategies at one place are compared with, one element
// a seed.
type reference struct {
	speed func() (float64, error)
	seeds []func() (Reference, error)
}

// Reference is what the strategies are compared with under one seed.
type Reference struct {
	// Ceiling is the token hit of one cache as large as all together.
	Ceiling float64
	// Pooled is one engine as large and as fast as all together.
	Pooled *Outcome
}

// Validate reports the first fault of a plan.
func (p Plan) Validate() error {
	for i := range p.Items {
		it := &p.Items[i]
		if err := it.WithDefaults().Validate(); err != nil {
			return fmt.Errorf("cell %d: %w", i+1, err)
		}
		if !known(it.Strategy) {
			return unknownStrategy(it.Strategy)
		}
		if it.Load < 0 || it.Load > 100 {
			return fmt.Errorf("load: %v is out of range; use a share of the knee, such as 0.7 or 1.3", it.Load)
		}
	}
	if p.Seeds < 1 || p.Seeds > 10_000 {
		return fmt.Errorf("seeds: %d is out of range; use 1 to 10000", p.Seeds)
	}
	return nil
}

// Execute runs a plan. When ctx ends early, the result has what was finished
// by then: cells with fewer seeds, and the error of ctx.
func (p Plan) Execute(ctx context.Context) (Result, error) {
	if err := p.Validate(); err != nil {
		return Result{}, err
	}
	x := newExecution(p)
	err := x.run(ctx)
	out, fault := x.result()
	if err == nil {
		err = fault
	}
	return out, err
}

// setting names what is not the default of the scenario.
func (s *Scenario) setting() string {
	var parts []string
	note := func(differs bool, format string, args ...any) {
		if differs {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	note(s.Profile.Name != engine.Profiles()[0].Name, "profile %s", s.Profile.Name)
	note(s.Capacity != 1, "capacity %v", s.Capacity)
	note(s.Host != 0, "host %v", s.Host)
	note(s.Lag != 0, "lag %v", s.Lag)
	note(s.Loss != 0, "loss %v", s.Loss)
	note(s.Loss != 0 && !s.Replay, "no replay")
	note(s.Replicas != 1, "replicas %d", s.Replicas)
	note(s.Restart != 0, "restart %v", s.Restart)
	note(s.Warmup != 0, "warmup %d", s.Warmup)
	note(s.Slow != 0, "slow %v", s.Slow)
	note(s.Wire, "wire")
	note(s.Strategy == clairvoyantName && s.Ahead != defaultAhead, "ahead %d", s.Ahead)
	return strings.Join(parts, ", ")
}
