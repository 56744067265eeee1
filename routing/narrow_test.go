package routing

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Against a dumb model: a router that makes candidates of all endpoints. Both
// see the same requests, loads and failures and draw the same numbers.
func TestNarrow_DecidesAsWithAllCandidates(t *testing.T) {
	var alone []string
	for _, s := range strategies() {
		if s.alone {
			alone = append(alone, s.name)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(rt, "endpoints")
		narrowed, all := newWorld(rt, static(n), nil), newWorld(rt, static(n), nil)
		narrowed.router.narrowFrom, all.router.narrowFrom = 1, math.MaxInt
		worlds := [...]*world{narrowed, all}
		for i := range n {
			for _, w := range worlds {
				w.pool.Snapshot().Endpoints[i].State.ObserveBlockSize(blockSize)
			}
		}
		endpoint := rapid.IntRange(0, n-1)
		prompts := [][]kvindex.TokenID{tokens(0, 40), tokens(0, 200), append(tokens(0, 100), tokens(7000, 100)...), tokens(900_000, 30)}
		for range rapid.IntRange(0, 12).Draw(rt, "loads") {
			i := endpoint.Draw(rt, "endpoint")
			l := pool.Load{
				Has:     pool.Field(rapid.Uint32Range(0, 1<<11-1).Draw(rt, "has")),
				Running: float64(rapid.IntRange(0, 3).Draw(rt, "running")), Waiting: float64(rapid.IntRange(0, 2).Draw(rt, "waiting")),
				PrefillRate: 50, PrefillSeconds: .1, Capacity: 300, Computed: float64(rapid.IntRange(0, 400).Draw(rt, "computed")),
			}
			for _, w := range worlds {
				s := w.pool.Snapshot().Endpoints[i].State
				s.SetLoad(fresh(l))
				s.Place(now, 100)
			}
		}
		var open [2][]*Context
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			i := endpoint.Draw(rt, "endpoint")
			prompt := prompts[rapid.IntRange(0, len(prompts)-1).Draw(rt, "prompt")]
			switch rapid.IntRange(0, 5).Draw(rt, "step") {
			case 0:
				held := prompt[:rapid.IntRange(blockSize, len(prompt)).Draw(rt, "held")]
				for _, w := range worlds {
					w.hold(i, kvindex.Scope{Model: "m"}, held)
				}
				continue
			case 1:
				for _, w := range worlds {
					w.pool.Snapshot().Endpoints[i].State.Observe(now, pool.OutcomeFailure)
				}
				continue
			case 2:
				work := time.Duration(rapid.IntRange(0, 3).Draw(rt, "seconds")) * time.Second
				for _, w := range worlds {
					w.pool.Snapshot().Endpoints[i].State.Enqueue(now, work)
				}
				continue
			}
			req := ids("m", prompt)
			req.Strategy = rapid.SampledFrom(alone).Draw(rt, "strategy")
			ends := rapid.Bool().Draw(rt, "ends")
			var told [2]string
			for k, w := range worlds {
				c, target, err := w.route(req)
				if err != nil {
					rt.Fatal(err)
				}
				for _, e := range target.Endpoints {
					told[k] += e.Name + " "
				}
				d := w.router.Decisions(nil)[0]
				told[k] += fmt.Sprint(target.Reason, target.MatchedTokens, target.expected, target.work, d.Considered, len(d.Candidates), d.margin)
				for _, v := range d.Candidates[:len(target.Endpoints)] {
					told[k] += fmt.Sprint(" ", v.Name, v.cost, v.Cooling, v.ExpectedTokens, v.Terms)
				}
				if ends {
					c.Finish()
				} else {
					open[k] = append(open[k], c)
				}
			}
			if diff := cmp.Diff(told[1], told[0]); diff != "" {
				rt.Fatalf("%s (-all +narrowed):\n%s", req.Strategy, diff)
			}
		}
		for _, cs := range open {
			for _, c := range cs {
				c.Finish()
			}
		}
	})
}

// The scratch of a decision must be as good as new for the next one, narrowed
// or not, and over other endpoints.
func TestNarrow_LeavesNothingBehind(t *testing.T) {
	w := newWorld(t, static(50), nil)
	prompt := tokens(0, 40)
	for i := range 50 {
		w.hold(i, kvindex.Scope{Model: "m"}, prompt)
	}
	sc := &scratch{}
	st := w.router.settings.Load()
	for i := range 6 {
		req := ids("m", prompt)
		if i%2 == 1 {
			req.Subset = []string{"127.0.0.1:1003", "127.0.0.1:1049"}
		}
		p, err := w.router.prospect(t.Context(), st, &req, sc, nil)
		if err != nil {
			t.Fatal(err)
		}
		target, _ := w.router.selectAndReserve(st, &req, sc, &p)
		if want := 50 - 48*(i%2); sc.count() != want || target.MatchedTokens != 36 {
			t.Errorf("decision %d: %d candidates, %d tokens matched; want %d and 36", i, sc.count(), target.MatchedTokens, want)
		}
		for id, at := range sc.position {
			if at != -1 {
				t.Errorf("decision %d leaves endpoint %d at %d", i, id, at)
			}
		}
	}
}
