package sim

import (
	"context"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// An estimate is requests × seeds × cost of each cell and reference, and what it
// takes to find each knee, over the workers.
func TestPlan_Estimate(t *testing.T) {
	spec, err := workload.Preset("chat")
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = 100
	p := Plan{Seeds: 3, Workers: 2}
	for _, load := range []float64{0.5, 0.9} {
		for _, s := range []string{"prefix-cache", "random"} {
			p.Items = append(p.Items, Item{Name: "chat", Source: spec, Load: load, Scenario: Scenario{Strategy: s, Endpoints: 4}})
		}
	}
	asked := 0
	got, err := p.estimate(t.Context(), func(_ context.Context, s Scenario, tr *traffic) (time.Duration, error) {
		asked++
		if s.Speed <= 0 {
			t.Errorf("%s at speed %v", s.Strategy, s.Speed)
		}
		switch {
		case s.pool > 0:
			return 1 * time.Millisecond, nil
		case s.Strategy == "random":
			return 2 * time.Millisecond, nil
		}
		return 7 * time.Millisecond, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const requests, seeds, loads = 100, 3, 2
	want := (requests*seeds*loads*(1+2+7) + requests*kneeRuns) * time.Millisecond / 2
	if got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if asked != 3 {
		t.Errorf("%d calibrations, want one for each strategy and one for the reference", asked)
	}
}

// A calibration runs the first requests and divides the time by their number.
func TestMeasured(t *testing.T) {
	w := newTraffic(generate(t, "chat", 2*calibrated, 1))
	clock, asked := time.Duration(0), 0
	now := func() time.Duration {
		asked++
		if asked <= 2 { // the first try is disturbed
			clock += time.Minute
		}
		clock += calibrated * time.Millisecond
		return clock
	}
	got, err := measured(now)(t.Context(), Scenario{Strategy: "random"}.WithDefaults(), w)
	if err != nil {
		t.Fatal(err)
	}
	if got != time.Millisecond {
		t.Errorf("%v a request, want 1ms", got)
	}
}
