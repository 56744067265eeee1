package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

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
	ceiling := workload.ReuseOf(t.Workload, order, it.Warmup).Hit(it.Endpoints * max(it.Blocks(), it.hostBlocks()))
	return Reference{ceiling, o}, nil
}

// job is a run.
type job struct {
	what string
	run  func() error
}

// jobs returns all runs: for each place its references, then its cells, so that
// what is finished when somebody loses patience are whole places.
func (x *execution) jobs() (out []job) {
	cells := map[place][]int{}
	for i := range x.Items {
		at := x.Items[i].place()
		cells[at] = append(cells[at], i)
	}
	for _, at := range x.places {
		for seed := range x.Seeds {
			out = append(out, job{fmt.Sprintf("reference of %s, seed %d", at.workload, x.seed(seed)), func() error {
				_, err := x.refs[at].seeds[seed]()
				return err
			}})
		}
		for _, i := range cells[at] {
			for seed := range x.Seeds {
				it := &x.Items[i]
				out = append(out, job{fmt.Sprintf("%s, %s, seed %d", it.Name, it.Strategy, x.seed(seed)), func() error { return x.cell(i, seed) }})
			}
		}
	}
	return out
}

// run runs all jobs.
func (x *execution) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	x.ctx = ctx
	all := x.jobs()
	done := 0
	jobs := make(chan job)
	var wg sync.WaitGroup
	for range x.workers() {
		wg.Go(func() {
			for j := range jobs {
				if ctx.Err() != nil {
					continue
				}
				if err := j.run(); err != nil {
					stop(err)
					continue
				}
				x.mu.Lock()
				done++
				if x.Progress != nil {
					x.Progress(Step{done, len(all), j.what})
				}
				x.mu.Unlock()
			}
		})
	}
	for _, j := range all {
		select {
		case jobs <- j:
		case <-ctx.Done():
		}
	}
	close(jobs)
	wg.Wait()
	return context.Cause(ctx)
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
