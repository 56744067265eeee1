package sim

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/benchmarks/workload"
)

// generate returns a small workload of a preset.
func generate(t testing.TB, preset string, requests int, seed uint64) *workload.Workload {
	t.Helper()
	spec, err := workload.Preset(preset)
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = requests
	w, err := spec.Generate(seed)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func simulate(t testing.TB, s Scenario, w *workload.Workload, seed uint64) *Outcome {
	t.Helper()
	o, err := Simulate(context.Background(), s, w, seed)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestPlan_Deterministic demands equal bytes however many runs go side by
// side, with everything that draws random numbers.
func TestPlan_Deterministic(t *testing.T) {
	spec, err := workload.Preset("agentic")
	if err != nil {
		t.Fatal(err)
	}
	spec.Requests = 300
	var want []byte
	for _, workers := range []int{1, 4, 1} {
		p := Plan{Seeds: 2, Workers: workers}
		for _, s := range []string{"prefix-cache", "random", "mooncake-est-ttft", twin, clairvoyantName} {
			p.Items = append(p.Items,
				Item{Name: spec.Name, Source: spec, Load: 0.9, Scenario: Scenario{
					Strategy: s, Endpoints: 3, Replicas: 2, Lag: 50 * time.Millisecond, Loss: 0.05, Restart: 20 * time.Second,
				}})
		}
		r, err := p.Execute(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := r.Write(&b); err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = b.Bytes()
		}
		if d := cmp.Diff(string(want), b.String()); d != "" {
			t.Fatalf("%d workers: %s", workers, d)
		}
	}
}

// TestSimulate_Wire demands that events through the production decoder, and
// prompts as token ids, lead to the very same decisions as names do.
func TestSimulate_Wire(t *testing.T) {
	w := generate(t, "agentic", 200, 1)
	for i := range w.Requests { // answers' tokens cannot be chosen on the wire
		w.Requests[i].OutputBlocks = nil
	}
	for _, host := range []float64{0, 4} {
		s := Scenario{Strategy: "prefix-cache", Endpoints: 3, Speed: 4, Capacity: 0.3, Host: host, Lag: 20 * time.Millisecond}
		want := simulate(t, s, w, 3)
		s.Wire = true
		if d := cmp.Diff(want, simulate(t, s, w, 3)); d != "" {
			t.Errorf("host %v: %s", host, d)
		}
		if want.TokenHit < 0.2 {
			t.Errorf("token hit %v: the workload should hit more", want.TokenHit)
		}
	}
}

// TestSimulate_Warmup demands that requests of the warm-up run and do not count:
// the same run is measured over fewer requests, whose hits are more.
func TestSimulate_Warmup(t *testing.T) {
	w := generate(t, "shared-prefix", 400, 1)
	s := Scenario{Strategy: "prefix-cache", Endpoints: 3, Speed: 0.2}
	cold := simulate(t, s, w, 1)
	s.Warmup = 150
	warm := simulate(t, s, w, 1)
	if cold.Requests != 400 || warm.Requests != 250 {
		t.Errorf("%d and %d requests are measured, want 400 and 250", cold.Requests, warm.Requests)
	}
	if d := cmp.Diff(cold.Prefill, warm.Prefill); d != "" || cold.Span != warm.Span {
		t.Errorf("the warm-up changes the run itself: %s", d)
	}
	if warm.TokenHit < cold.TokenHit+0.05 || warm.MeanTTFT > cold.MeanTTFT {
		t.Errorf("warm: hit %v, TTFT %v s; cold: %v, %v s", warm.TokenHit, warm.MeanTTFT, cold.TokenHit, cold.MeanTTFT)
	}
	s.Warmup = 400
	if _, err := Simulate(context.Background(), s, w, 1); err == nil || !strings.Contains(err.Error(), "warmup: 400 ") {
		t.Errorf("a warm-up as long as the workload: %v", err)
	}
}

// TestSimulate_Conserves demands that every request ends once, and every
// prompt token is either found in the cache or computed, or lost in a crash.
func TestSimulate_Conserves(t *testing.T) {
	w := generate(t, "chat", 400, 1)
	prompt := 0
	for i := range w.Requests {
		prompt += w.Requests[i].InputTokens
	}
	for _, strategy := range append(Strategies(), Bounds()...) {
		o := simulate(t, Scenario{Strategy: strategy, Endpoints: 4, Speed: 2, Capacity: 0.5}, w, 1)
		computed := 0
		for _, n := range o.Prefill {
			computed += n
		}
		if o.Requests != len(w.Requests) || o.Refused != 0 {
			t.Errorf("%s: %d requests ended, %d refused, of %d", strategy, o.Requests, o.Refused, len(w.Requests))
		}
		cached := int(o.TokenHit*float64(prompt) + 0.5)
		if o.Preempted == 0 && computed+cached != prompt {
			t.Errorf("%s: %d tokens computed and %d cached, of %d", strategy, computed, cached, prompt)
		}
	}
}

// Where every endpoint is down there is an error, whatever chooses.
func TestSimulate_AllDown(t *testing.T) {
	w := generate(t, "chat", 400, 1)
	for _, strategy := range []string{"prefix-cache", "lmetric", clairvoyantName} {
		s := Scenario{Strategy: strategy, Endpoints: 2, Restart: 2 * time.Second}
		if _, err := Simulate(context.Background(), s, w, 1); err == nil {
			t.Errorf("%s: no error with no endpoint", strategy)
		}
	}
}
