package sim

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResult_Summary(t *testing.T) {
	cell := func(strategy string, load, mean float64, seeds int) Cell {
		return Cell{
			Workload: "chat", Strategy: strategy, Endpoints: 8, Load: load, Speed: 2 * load, Seeds: seeds,
			MeanTTFT: Estimate{mean, mean / 50}, P90TTFT: Estimate{2 * mean, mean / 10}, TPOT: Estimate{Mean: 0.0125},
			TokenHit: Estimate{Mean: 0.3}, CeilingHit: 0.4, PooledTTFT: 0.25, PooledP90: 0.5,
		}
	}
	r := Result{Cells: []Cell{
		cell("prefix-cache", 0.5, 0.8, 5), cell("least-request", 0.5, 2, 5), cell("lmetric", 0.5, 1, 5), cell("clairvoyant-greedy", 0.5, 0.5, 5),
		cell("prefix-cache", 1.25, 25, 3), cell("lmetric", 1.25, 20, 2),
	}}
	lag := cell("prefix-cache", 0.5, 123, 1)
	lag.Setting, lag.CeilingHit = "lag 2s", 0
	r.Cells = append(r.Cells, lag)
	var b bytes.Buffer
	if err := r.Summary(&b); err != nil {
		t.Fatal(err)
	}
	want := `chat, 8 endpoints, load 0.5 of the knee (1 × the recorded rate), 5 seeds
  strategy                      mean TTFT, s   p90, s       TPOT, ms  token hit  of the ceiling  of the best baseline
  clairvoyant-greedy (a bound)  0.500 ± 0.010  1.00 ± 0.05  12.5      0.300      75 %            0.50 × better
  prefix-cache                  0.800 ± 0.016  1.60 ± 0.08  12.5      0.300      75 %            0.80 × better
  lmetric                       1.00 ± 0.02    2.00 ± 0.10  12.5      0.300      75 %            1.00 ×
  least-request                 2.00 ± 0.04    4.00 ± 0.20  12.5      0.300      75 %            2.00 × worse
  (all pooled)                  0.250          0.500                  0.400      100 %

chat, 8 endpoints, load 1.25 of the knee (2.5 × the recorded rate), 3 seeds
  strategy           mean TTFT, s  p90, s      TPOT, ms  token hit  of the ceiling  of the best baseline
  lmetric (2 seeds)  20.0 ± 0.4    40.0 ± 2.0  12.5      0.300      75 %            1.00 ×
  prefix-cache       25.0 ± 0.5    50.0 ± 2.5  12.5      0.300      75 %            1.25 × worse
  (all pooled)       0.250         0.500                 0.400      100 %

chat, 8 endpoints, load 0.5 of the knee (1 × the recorded rate), 1 seed, lag 2s
  strategy      mean TTFT, s  p90, s    TPOT, ms  token hit  of the ceiling  of the best baseline
  prefix-cache  123 ± 2       246 ± 12  12.5      0.300      –               –
  (all pooled)  0.250         0.500               0.000      100 %

prefix-cache beside the best baseline, by mean TTFT, in 2 tables: 1 better, 0 same, 1 worse, 0 too noisy (95 % intervals, margin 2 %)
`
	var got strings.Builder
	for line := range strings.Lines(b.String()) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if d := cmp.Diff(want, got.String()); d != "" {
		t.Error(d)
	}
}
