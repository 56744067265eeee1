package sim

import (
	"bytes"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEstimate(t *testing.T) {
	got := estimate([]float64{1, 2, 3, 4, 5})
	// The textbook example: s = 1.5811, t(4) = 2.7764.
	want := Estimate{Mean: 3, CI95: 2.7764 * 1.5811388 / math.Sqrt(5)}
	if math.Abs(got.Mean-want.Mean) > 1e-12 || math.Abs(got.CI95-want.CI95) > 1e-6 {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := studentT(60); math.Abs(got-2.0003) > 1e-4 {
		t.Errorf("t(60) = %v, want 2.0003", got)
	}
}

func TestResult_WriteRead(t *testing.T) {
	want := Result{Cells: []Cell{
		{Workload: "w", Strategy: "random", Endpoints: 8, Load: 0.5, Seeds: 2, MeanTTFT: Estimate{1.5, 0.25}, Imbalance: 1},
		{Workload: "w", Strategy: "prefix-cache", CeilingHit: 0.25, PooledTTFT: 0.125},
	}}
	var b bytes.Buffer
	if err := want.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
