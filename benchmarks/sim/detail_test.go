package sim

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// With one endpoint nobody can choose wrong; with several, sending in turn
// costs what following the cache does not.
func TestDetail_Regret(t *testing.T) {
	spec, err := workload.Preset("shared-prefix")
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = 400
	w, err := spec.Generate(1)
	if err != nil {
		t.Fatal(err)
	}
	regretted := func(strategy string, endpoints int) float64 {
		o, err := Simulate(t.Context(), Scenario{Strategy: strategy, Endpoints: endpoints, Speed: 0.2, Detail: true}, w, 1)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, c := range o.Regrets {
			n += c
		}
		if n != len(w.Requests) {
			t.Fatalf("%s: %d decisions, want %d", strategy, n, len(w.Requests))
		}
		return 1 - float64(o.Regrets[0])/float64(n)
	}
	if got := regretted("round-robin", 1); got != 0 {
		t.Errorf("one endpoint: %v of decisions are regretted", got)
	}
	blind, knowing := regretted("round-robin", 4), regretted("prefix-cache", 4)
	if blind < 0.3 || knowing > blind/2 {
		t.Errorf("regretted: %v of decisions in turn, %v by prefix", blind, knowing)
	}
}

// A prompt that no engine ever takes is nobody's work.
func TestDetail_RegretsNothingRefused(t *testing.T) {
	w := generate(t, "no-reuse", 200, 1)
	w.Requests[0].InputTokens = 600_000 // the cache has 430,000
	w.Requests[0].Blocks = nil
	for b := range uint64(600_000 / workload.BlockTokens) {
		w.Requests[0].Blocks = append(w.Requests[0].Blocks, 1<<60+b)
	}
	w.Requests[0].Blocks = append(w.Requests[0].Blocks, 1<<61)
	o := simulate(t, Scenario{Strategy: "round-robin", Endpoints: 2, Speed: 0.1, Detail: true}, w, 1)
	if o.Refused != 1 {
		t.Fatalf("%d requests are refused, want 1", o.Refused)
	}
	if late := o.Regrets[len(o.Regrets)-1]; late > 1 {
		t.Errorf("%d decisions are regretted by more than 10 s on idle engines", late)
	}
}

// What endpoints show waiting adds up to the time that requests waited.
func TestDetail_Waiting(t *testing.T) {
	spec, err := workload.Preset("tools")
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = 500
	w, err := spec.Generate(1)
	if err != nil {
		t.Fatal(err)
	}
	o, err := Simulate(t.Context(), Scenario{Strategy: "least-request", Endpoints: 3, Speed: 2, Detail: true}, w, 1)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, row := range o.Waiting {
		if len(row) != parts {
			t.Fatalf("%d parts, want %d", len(row), parts)
		}
		for _, v := range row {
			sum += v
		}
	}
	if got, want := sum*o.Span/parts, o.MeanTTFT*float64(o.Requests); math.Abs(got-want) > 1e-3*want {
		t.Errorf("%v request-seconds are shown, want %v", got, want)
	}
	without, err := Simulate(t.Context(), Scenario{Strategy: "least-request", Endpoints: 3, Speed: 2}, w, 1)
	if err != nil {
		t.Fatal(err)
	}
	if without.Waiting != nil || without.MeanTTFT != o.MeanTTFT {
		t.Error("asking for detail changes the run")
	}
}

func TestRegretBin(t *testing.T) {
	var got []int
	for _, d := range []time.Duration{-1, 0, time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, time.Second, 2 * time.Second, time.Minute} {
		got = append(got, regretBin(d.Seconds()))
	}
	if want := []int{0, 0, 1, 1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("bins %v, want %v", got, want)
	}
}
