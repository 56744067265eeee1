package sim

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

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

type execution struct {
	Plan
	ctx      context.Context // of run; a field because sync.OnceValues takes none
	traffic  map[string][]func() (*traffic, error)
	refs     map[place]*reference
	places   []place
	outcomes [][]*Outcome // by item and seed
	mu       sync.Mutex   // guards outcomes and what Progress is told
}

// seed returns the nth seed, from 0.
func (x *execution) seed(n int) uint64 { return max(1, x.First) + uint64(n) }

func newExecution(p Plan) *execution {
	x := &execution{
		Plan: p, traffic: map[string][]func() (*traffic, error){}, refs: map[place]*reference{},
		outcomes: make([][]*Outcome, len(p.Items)),
	}
	x.Items = slices.Clone(p.Items)
	knees := map[place]func() (float64, error){}
	for i := range x.Items {
		it := &x.Items[i]
		it.Scenario = it.WithDefaults()
		x.outcomes[i] = make([]*Outcome, p.Seeds)
		if x.traffic[it.Name] == nil {
			x.traffic[it.Name] = x.trafficOf(it.Source)
		}
		at := it.place()
		if x.refs[at] != nil {
			continue
		}
		x.places = append(x.places, at)
		ref := &reference{speed: func() (float64, error) { return it.Speed, nil }}
		if it.Load != 0 {
			any := at
			any.load = 0
			if knees[any] == nil {
				knees[any] = sync.OnceValues(func() (float64, error) { return x.knee(it) })
			}
			find := knees[any]
			ref.speed = func() (float64, error) {
				knee, err := find()
				return knee * it.Load, err
			}
		}
		for seed := range p.Seeds {
			ref.seeds = append(ref.seeds, sync.OnceValues(func() (Reference, error) { return x.refer(it, ref, seed) }))
		}
		x.refs[at] = ref
	}
	return x
}

// trafficOf returns what gives a source's traffic, by seed.
func (x *execution) trafficOf(s Source) []func() (*traffic, error) {
	make := func(seed int) func() (*traffic, error) {
		return sync.OnceValues(func() (*traffic, error) {
			w, err := s.Generate(x.seed(seed))
			if err != nil {
				return nil, err
			}
			return newTraffic(w), nil
		})
	}
	var out []func() (*traffic, error)
	for seed := range x.Seeds {
		if _, same := s.(Trace); same && seed > 0 {
			out = append(out, out[0])
			continue
		}
		out = append(out, make(seed))
	}
	return out
}

func (x *execution) knee(it *Item) (float64, error) {
	t, err := x.traffic[it.Name][0]()
	if err != nil {
		return 0, err
	}
	return it.pooled().knee(x.ctx, t)
}

func (x *execution) refer(it *Item, ref *reference, seed int) (Reference, error) {
	speed, err := ref.speed()
	if err != nil {
		return Reference{}, err
	}
	t, err := x.traffic[it.Name][seed]()
	if err != nil {
		return Reference{}, err
	}
	s := it.pooled()
	s.Speed = speed
	o, err := runWith(x.ctx, s, t, x.seed(seed))
	if err != nil {
		return Reference{}, err
	}
	_, order := t.Arrivals(speed, x.seed(seed))
	ceiling := workload.ReuseOf(t.Workload, order).Hit(it.Endpoints * max(it.Blocks(), it.hostBlocks()))
	return Reference{ceiling, o}, nil
}

// run runs all cells: first the references of all places, one seed after the
// other, then the cells.
func (x *execution) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	x.ctx = ctx
	refs, total := len(x.places)*x.Seeds, (len(x.places)+len(x.Items))*x.Seeds
	done := 0
	job := func(n int) error {
		if n < refs {
			_, err := x.refs[x.places[n/x.Seeds]].seeds[n%x.Seeds]()
			return err
		}
		n -= refs
		return x.cell(n/x.Seeds, n%x.Seeds)
	}
	jobs := make(chan int)
	var wg sync.WaitGroup
	for range x.workers() {
		wg.Go(func() {
			for n := range jobs {
				if ctx.Err() != nil {
					continue
				}
				if err := job(n); err != nil {
					stop(err)
					continue
				}
				x.mu.Lock()
				done++
				if x.Progress != nil {
					x.Progress(Step{done, total, x.name(n)})
				}
				x.mu.Unlock()
			}
		})
	}
	for n := range total {
		select {
		case jobs <- n:
		case <-ctx.Done():
		}
	}
	close(jobs)
	wg.Wait()
	return context.Cause(ctx)
}

// name says what job n of run is.
func (x *execution) name(n int) string {
	refs := len(x.places) * x.Seeds
	if n < refs {
		at := x.places[n/x.Seeds]
		return fmt.Sprintf("reference of %s, seed %d", at.workload, x.seed(n%x.Seeds))
	}
	n -= refs
	it := &x.Items[n/x.Seeds]
	return fmt.Sprintf("%s, %s, seed %d", it.Name, it.Strategy, x.seed(n%x.Seeds))
}

// cell runs one item with one seed.
func (x *execution) cell(i, seed int) error {
	it := &x.Items[i]
	s := it.Scenario
	t, err := x.traffic[it.Name][seed]()
	if err != nil {
		return err
	}
	if s.Speed, err = x.refs[it.place()].speed(); err != nil {
		return err
	}
	o, err := runWith(x.ctx, s, t, x.seed(seed))
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.outcomes[i][seed] = o
	return nil
}

// result sums up the cells of which at least one seed has ended.
func (x *execution) result() (Result, error) {
	out := Result{Cells: []Cell{}}
	for i := range x.Items {
		it := &x.Items[i]
		ref := x.refs[it.place()]
		var seeds []*Outcome
		var refs []Reference
		for seed, o := range x.outcomes[i] {
			if o == nil {
				continue
			}
			r, err := ref.seeds[seed]() // it ran before o
			if err != nil {
				return out, err
			}
			seeds, refs = append(seeds, o), append(refs, r)
		}
		if len(seeds) == 0 {
			continue
		}
		speed, err := ref.speed()
		if err != nil {
			return out, err
		}
		out.Cells = append(out.Cells, newCell(it, seeds, refs, speed))
	}
	return out, nil
}

func newCell(it *Item, seeds []*Outcome, refs []Reference, speed float64) Cell {
	of := func(value func(*Outcome) float64) Estimate {
		values := make([]float64, 0, len(seeds))
		for _, o := range seeds {
			values = append(values, value(o))
		}
		return estimate(values)
	}
	c := Cell{
		Workload: it.Name, Strategy: it.Strategy, Endpoints: it.Endpoints, Load: it.Load, Seeds: len(seeds),
		MeanTTFT:  of(func(o *Outcome) float64 { return o.MeanTTFT }),
		P90TTFT:   of(func(o *Outcome) float64 { return o.P90TTFT }),
		TPOT:      of(func(o *Outcome) float64 { return o.TPOT }),
		TokenHit:  of(func(o *Outcome) float64 { return o.TokenHit }),
		Imbalance: of(func(o *Outcome) float64 { return o.Imbalance }).Mean,
		Speed:     speed,
		Detail:    it.detail(seeds),
	}
	for k, r := range refs {
		n := float64(len(refs))
		c.CeilingHit += r.Ceiling / n
		c.PooledTTFT += r.Pooled.MeanTTFT / n
		c.PooledP90 += r.Pooled.P90TTFT / n
		if pooled := r.Pooled.P90TTFT; pooled > 0 {
			c.WorstP90 = max(c.WorstP90, seeds[k].P90TTFT/pooled)
		}
	}
	return c.rounded()
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
	note(s.Slow != 0, "slow %v", s.Slow)
	note(s.Wire, "wire")
	note(s.Strategy == clairvoyantName && s.Ahead != defaultAhead, "ahead %d", s.Ahead)
	return strings.Join(parts, ", ")
}

// rounded returns c with figures of at most seven digits: more are noise.
func (c Cell) rounded() Cell {
	for _, v := range []*float64{
		&c.Load, &c.MeanTTFT.Mean, &c.MeanTTFT.CI95, &c.P90TTFT.Mean, &c.P90TTFT.CI95, &c.TPOT.Mean, &c.TPOT.CI95,
		&c.TokenHit.Mean, &c.TokenHit.CI95, &c.CeilingHit, &c.PooledTTFT, &c.PooledP90, &c.WorstP90, &c.Imbalance, &c.Speed,
	} {
		if *v != 0 {
			scale := math.Pow(10, 6-math.Floor(math.Log10(math.Abs(*v))))
			*v = math.Round(*v*scale) / scale
		}
	}
	return c
}
