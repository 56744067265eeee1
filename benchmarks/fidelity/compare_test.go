package fidelity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

func TestMain(m *testing.M) {
	code := m.Run()
	http.DefaultClient.CloseIdleConnections() // those to programs that have ended
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// config returns a comparison of a workload whose token hit depends on the
// decisions and on the capacity, and little on timing: eight prefixes of four
// blocks, asked for so often that each engine soon has those that it is sent,
// and engines that hold all of them beside the requests that run, but not in half
// of their blocks.
func config(t *testing.T, requests int) Config {
	t.Helper()
	const blocks = 48
	fixed := func(v float64) workload.Dist { return workload.Dist{Mean: v} }
	w, err := workload.Spec{
		Name: "test", Requests: requests, Rate: 40, ArrivalCV: 1, Prefixes: 8,
		PrefixTokens: fixed(4 * workload.BlockTokens), Message: fixed(200), Output: fixed(8), Turns: fixed(1),
	}.Generate(1)
	if err != nil {
		t.Fatal(err)
	}
	p := engine.Profiles()[0]
	return Config{
		Workload: w, Strategies: []string{"prefix-cache", "random"}, Endpoints: 4, Profile: p,
		Capacity: (blocks + 0.5) * workload.BlockTokens / float64(p.KVTokens),
		Speed:    1, Simulations: 3, Scale: 1, MaxScale: 4,
	}
}

// TestCompare_SimulatorAndRealTimeAgree is the whole product in both worlds.
func TestCompare_SimulatorAndRealTimeAgree(t *testing.T) {
	c := config(t, 240)
	c.Envoy = os.Getenv("WARMPATH_TEST_ENVOY")
	if c.Envoy == "" {
		t.Skip("WARMPATH_TEST_ENVOY does not name an Envoy program; make test sets it")
	}
	c.Dir = t.TempDir()
	c.Warmpath, c.Enginesim = filepath.Join(c.Dir, "warmpath"), filepath.Join(c.Dir, "enginesim")
	out, err := exec.Command("go", "build", "-o", c.Dir+string(filepath.Separator),
		"github.com/warmpath/warmpath/cmd/warmpath", "github.com/warmpath/warmpath/cmd/enginesim").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	c.Progress = func(p Progress) {
		if p.Ended {
			t.Log(p)
		}
	}
	rows, err := c.Compare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := (Result{Workload: c.Workload.Name, Seeds: c.Simulations, Rows: rows}).Table(&table); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + table.String())
	if err := Judge(rows, 2); err != nil {
		t.Error(err)
	}
	if len(rows) != 2 || rows[0].Simulated.TokenHit < rows[1].Simulated.TokenHit+0.05 {
		t.Error("the workload does not tell the strategies apart")
	}
}

// What the comparison would find of engines with half the cache.
func TestConfig_WorkloadTellsHalfTheCacheApart(t *testing.T) {
	c := config(t, 240)
	c.Simulations = 2
	whole, err := c.simulate(t.Context(), "random", 1)
	if err != nil {
		t.Fatal(err)
	}
	c.Capacity /= 2
	half, err := c.simulate(t.Context(), "random", 1)
	if err != nil {
		t.Fatal(err)
	}
	if half.HighestHit > whole.LowestHit-0.05 {
		t.Errorf("token hit %v to %v with half the cache, %v to %v with all of it", half.LowestHit, half.HighestHit, whole.LowestHit, whole.HighestHit)
	}
}

// A clock that is half as fast changes nothing but times, where the strategy
// reads no clock.
func TestSimulate_ScalesTime(t *testing.T) {
	c := config(t, 60)
	c.Simulations = 2
	one, err := c.simulate(t.Context(), "random", 1)
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.simulate(t.Context(), "random", 2)
	if err != nil {
		t.Fatal(err)
	}
	if one.TokenHit != two.TokenHit || cmp.Diff(one.Requests, two.Requests) != "" {
		t.Errorf("decisions differ: %+v and %+v", one, two)
	}
	if r := two.MeanTTFT / one.MeanTTFT; r < 1.999 || r > 2.001 {
		t.Errorf("mean TTFT %v and %v, want twice as much", one.MeanTTFT, two.MeanTTFT)
	}
}

// slowMachine keeps its times from a scale on.
func slowMachine(from float64, asked *[]float64) world {
	return func(_ context.Context, _ string, scale float64) (Real, error) {
		*asked = append(*asked, scale)
		if scale < from {
			return Real{}, errLate
		}
		return Real{Figures: Figures{TokenHit: 0.5, MeanTTFT: 1, P90TTFT: 1}}, nil
	}
}

func TestCompare_SlowsDownOnASlowMachine(t *testing.T) {
	c := config(t, 20)
	c.Simulations, c.MaxScale = 1, 5
	for _, tt := range []struct {
		from   float64
		asked  []float64
		scales []float64
	}{
		{1, []float64{1, 1}, []float64{1, 1}},
		{3, []float64{1, 2, 4, 4}, []float64{4, 4}}, // the second strategy begins where the first one ended
		{5, []float64{1, 2, 4, 5, 5}, []float64{5, 5}},
	} {
		var asked, scales []float64
		rows, err := c.compare(t.Context(), slowMachine(tt.from, &asked))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			scales = append(scales, r.Scale)
			if want := 100 * (0.5 - r.Simulated.TokenHit); r.HitPoints != want {
				t.Errorf("difference of %v points, want %v", r.HitPoints, want)
			}
		}
		if d := cmp.Diff(tt.asked, asked) + cmp.Diff(tt.scales, scales); d != "" {
			t.Errorf("times kept from scale %v: (-want +got) %s", tt.from, d)
		}
	}
}

func TestCompare_KeepsRowsBeforeAFailure(t *testing.T) {
	c := config(t, 20)
	broken := errors.New("broken")
	rows, err := c.compare(t.Context(), func(_ context.Context, strategy string, _ float64) (Real, error) {
		if strategy == "random" {
			return Real{}, broken
		}
		return Real{}, nil
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "random") || len(rows) != 1 {
		t.Errorf("%d rows, error %v", len(rows), err)
	}
}

func TestJudge(t *testing.T) {
	nan := 0.0
	nan /= nan
	for _, tt := range []struct {
		points []float64
		want   string
	}{
		{[]float64{2, -2, 0}, ""},
		{[]float64{2.1, 0}, "a by +2.1"},
		{[]float64{0, -3.44}, "b by -3.4"},
		{[]float64{9, -9}, "a by +9.0, b by -9.0"},
		{[]float64{nan}, "a by"}, // nothing was measured
	} {
		var rows []Row
		for i, p := range tt.points {
			rows = append(rows, Row{Strategy: string(rune('a' + i)), HitPoints: p})
		}
		err := Judge(rows, 2)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q", tt.points, err, tt.want)
		}
	}
}

func TestParse_Refuses(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--workload=chatt", "did you mean chat?"},
		{"--workload=lora --requests=50", `it has the adapter "`},
		{"--requests=0", "--requests: 0 is out of range"},
		{"--strategies=prefix-cache,mooncake-est-ttft", "is not one of the product"},
		{"--strategies=prefix-cache-twin", "is not one of the product"},
		{"--strategies=queue", "cannot run in virtual time"},
		{"--strategies=random,randon", "did you mean random?"},
		{"--strategies=random,random", "there twice"},
		{"--endpoints=0", "endpoints: 0: use 1 to 32"},
		{"--profile=9b", "use 8b, 32b or 70b"},
		{"--limit=0", "--limit: 0 is out of range"},
		{"--scale=4 --max-scale=2", "max scale: 2: use the scale or more"},
		{"--speed=0", "speed: 0: use a multiple"},
		{"--capacity=NaN", "capacity: NaN"},
		{"--save=/does/not/exist/x", "make the directory first"},
		{"more", "unexpected argument"},
	} {
		var text strings.Builder
		if _, err := parse(strings.Fields(tt.args), &text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.want)
		}
	}
	o, err := parse([]string{"--requests=30", "--strategies=random, prefix-cache:2+least-request"}, &strings.Builder{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"random", "prefix-cache:2,least-request"}, o.Strategies); d != "" || len(o.Workload.Requests) != 30 {
		t.Error(d, len(o.Workload.Requests))
	}
}
