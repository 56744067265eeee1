package sim

import (
	"math"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
)

// Detail is what sets a cell apart, and what is drawn of it, beyond its
// figures.
type Detail struct {
	// Setting names what is not the default of [Scenario], for example "host 5,
	// lag 200ms"; empty if all is.
	Setting string `json:"setting,omitempty"`
	// Capacity is [Scenario.Capacity].
	Capacity float64 `json:"capacity,omitempty"`
	// Waiting is, for each endpoint, how many requests waited there for their
	// first token, on average over each of equal parts of the run, of the first
	// seed.
	Waiting [][]float64 `json:"waiting,omitempty"`
	// Regret is the share of decisions in each of [RegretLabels], over all seeds.
	Regret []float64 `json:"regret,omitempty"`
}

// parts is the number of parts that a run is divided into for [Detail].
const parts = 48

// RegretLabels names the bins of [Detail.Regret] by their upper bounds, in
// seconds.
func RegretLabels() []string { return []string{"0", ".01", ".1", "1", "10", "more"} }

// regretBin is the bin of a regret in seconds.
func regretBin(seconds float64) int {
	bin := 0
	for _, bound := range [...]float64{1e-9, 0.01, 0.1, 1, 10} {
		if seconds > bound {
			bin++
		}
	}
	return bin
}

// detail sums up what [Detail] says of outcomes.
func (s *Scenario) detail(seeds []*Outcome) Detail {
	d := Detail{Setting: s.setting(), Capacity: s.Capacity}
	if !s.Detail {
		return d
	}
	for _, row := range seeds[0].Waiting {
		rounded := make([]float64, len(row))
		for i, v := range row {
			rounded[i] = math.Round(v*100) / 100
		}
		d.Waiting = append(d.Waiting, rounded)
	}
	total := 0
	d.Regret = make([]float64, len(RegretLabels()))
	for _, o := range seeds {
		for bin, n := range o.Regrets {
			d.Regret[bin] += float64(n)
			total += n
		}
	}
	for bin := range d.Regret {
		d.Regret[bin] = math.Round(d.Regret[bin]/float64(max(total, 1))*1e6) / 1e6
	}
	return d
}

// regret notes what the decision to send request i to an endpoint costs: how
// much later its answer begins than on the endpoint where it would begin
// soonest, by what the engines really hold and have to do. An endpoint's work
// is the time to compute what the prompts before lack, and this one, each as it
// was when it was sent; what the decoding of answers takes away is left out.
func (r *run) regret(i, at int, req engine.Request) {
	least := math.Inf(1)
	var mine float64
	for k := range r.endpoints {
		e := &r.endpoints[k]
		if e.down {
			continue
		}
		device, host := e.core.Cached(req)
		p := e.core.Config().Profile
		uncached := r.Requests[i].InputTokens - device - host
		work := (float64(uncached)*p.PerPrefillToken + float64(host)*p.PerLoadedToken) / 1e3
		least = min(least, e.backlog+work)
		if k == at {
			mine = e.backlog + work
			r.requests[i].work = work
		}
	}
	if r.regrets == nil {
		r.regrets = make([]int, len(RegretLabels()))
	}
	r.regrets[regretBin(mine-least)]++
	r.endpoints[at].backlog += r.requests[i].work
}

// waiting is [Detail.Waiting] of a run that ended.
func (r *run) waiting() [][]float64 {
	out := make([][]float64, len(r.endpoints))
	for i := range out {
		out[i] = make([]float64, parts)
	}
	part := max(r.now/parts, 1)
	for i := range r.requests {
		q := &r.requests[i]
		if q.state != ended {
			continue
		}
		row := out[q.endpoint]
		for k := min(q.arrived/part, parts-1); k < parts && time.Duration(k)*part < q.first; k++ {
			from, to := max(q.arrived, k*part), min(q.first, (k+1)*part)
			row[k] += float64(to-from) / float64(part)
		}
	}
	return out
}
