package sim

import (
	"math"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// script returns requests of whole blocks and one token more, each at a time in
// seconds, from the names of their blocks.
func script(requests ...[]float64) *workload.Workload {
	w := &workload.Workload{}
	for i, r := range requests {
		q := workload.Request{Arrival: time.Duration(r[0] * 1e9), OutputTokens: 1, InputTokens: (len(r)-1)*blockTokens + 1}
		for _, b := range r[1:] {
			q.Blocks = append(q.Blocks, uint64(b))
		}
		q.Blocks = append(q.Blocks, uint64(1000+i)) // the partial one
		w.Requests = append(w.Requests, q)
	}
	return w
}

// Of two idle endpoints the clairvoyant leaves the one alone that the next
// arrival will want, and only if it knows of it.
func TestClairvoyant_Foresees(t *testing.T) {
	w := script(
		[]float64{0, 1, 2, 3, 4, 5, 6, 7, 8}, // on the first, for both are alike
		[]float64{5, 21, 22, 23, 24, 25, 26, 27, 28},
		[]float64{5.001, 99},
		[]float64{5.002, 98},
		[]float64{5.003, 1, 2, 3, 4, 5, 6, 7, 8, 9},
	)
	mean := map[int]float64{}
	for _, ahead := range []int{1, 3} {
		o := simulate(t, Scenario{Strategy: clairvoyantName, Endpoints: 2, Ahead: ahead}, w, 1)
		mean[ahead] = o.MeanTTFT
		if want := 8.0 * blockTokens; ahead == 3 && math.Abs(o.TokenHit*float64(tokens(w))-want) > 0.5 {
			t.Errorf("%v tokens are found cached, want %v", o.TokenHit*float64(tokens(w)), want)
		}
	}
	if mean[3] > 0.9*mean[1] {
		t.Errorf("three arrivals ahead %v s, one ahead %v s", mean[3], mean[1])
	}
}

func tokens(w *workload.Workload) (n int) {
	for i := range w.Requests {
		n += w.Requests[i].InputTokens
	}
	return n
}

// What it takes a first token to need is what the engine needs: alone to a step's
// floor, behind others to a tenth.
func TestClairvoyant_Time(t *testing.T) {
	w := generate(t, "rag", 60, 1)
	for _, speed := range []float64{0.01, 3} {
		s := Scenario{Strategy: clairvoyantName, Endpoints: 2, Ahead: 1, Speed: speed}.WithDefaults()
		r, err := newRun(s, newTraffic(w), 1)
		if err != nil {
			t.Fatal(err)
		}
		r.left = len(r.order)
		r.agenda.add(r.arrivals[0], arrive, 0)
		c := r.choosers[0].(*clairvoyant)
		foretold := make([]float64, len(r.requests))
		for r.left > 0 {
			e := r.agenda.next()
			r.now = e.at
			if err := r.happen(e); err != nil {
				t.Fatal(err)
			}
			if e.kind == arrive {
				i := r.order[e.n]
				at := int(r.requests[i].endpoint)
				c.free, c.foreseen = c.free[:0], append(c.foreseen[:0], c.found...)
				for k := range c.engines {
					c.free = append(c.free, c.engines[k].free)
				}
				foretold[i] = c.done(at, 0, 0)
			}
		}
		sum, wrong := 0.0, 0.0
		for i := range r.requests {
			got := (r.requests[i].first - r.requests[i].arrived).Seconds()
			sum += got
			wrong += math.Abs(got - foretold[i])
		}
		if limit := map[float64]float64{0.01: 0.01, 3: 0.1}[speed]; wrong > limit*sum {
			t.Errorf("speed %v: forecasts are wrong by %.1f %% of %v s on average", speed, 100*wrong/sum, sum/float64(len(r.requests)))
		} else {
			t.Logf("speed %v: wrong by %.2f %% of %v s", speed, 100*wrong/sum, sum/float64(len(r.requests)))
		}
	}
}

// It does better than any policy that does not know what comes, where there is
// something to be gained and the fleet is not saturated.
func TestClairvoyant_AheadOfPolicies(t *testing.T) {
	w := generate(t, "rag", 1200, 1)
	bound := simulate(t, Scenario{Strategy: clairvoyantName, Endpoints: 4, Speed: 0.9}, w, 1).MeanTTFT
	for _, strategy := range []string{tested, "mooncake-est-ttft", "llm-d-blend", "least-request"} {
		got := simulate(t, Scenario{Strategy: strategy, Endpoints: 4, Speed: 0.9}, w, 1).MeanTTFT
		if got < bound {
			t.Errorf("%s takes %v s, with knowledge of what comes %v s", strategy, got, bound)
		}
	}
}
