package drive

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// turnOf is a slice that cost cpu in all.
func turnOf(requests int, cpu time.Duration) slice {
	return slice{requests: requests, used: usage{CPU: cpu, Allocs: uint64(10 * requests), AllocBytes: uint64(100 * requests), Messages: uint64(3 * requests), PeakResident: int64(cpu)}}
}

func TestSummarize_RatiosAreOfTheSameRound(t *testing.T) {
	chosen, err := selectLanes("random", false)
	if err != nil {
		t.Fatal(err)
	}
	r := plan(chosen, []int{1000}, []int{10}, []int{0})[0]
	// A machine that slows down threefold: the ratio stays 2. The last round was
	// cut short after its first cell.
	rounds := [][]slice{
		{turnOf(10, 100*time.Microsecond), turnOf(20, 400*time.Microsecond)},
		{turnOf(10, 300*time.Microsecond), turnOf(20, 1200*time.Microsecond)},
		{turnOf(10, 200*time.Microsecond), turnOf(10, 400*time.Microsecond)},
		{turnOf(10, 900*time.Microsecond), {}},
	}
	rounds[0][1].failures, rounds[0][1].fault = 1, errors.New("first")
	rounds[0][1].latencies = []time.Duration{time.Millisecond, 3 * time.Millisecond, 2 * time.Millisecond}
	rounds[1][0].latencies = []time.Duration{5 * time.Millisecond}
	got := summarize(r, rounds, 0, 2)
	want := []result{
		{
			Name: "null", BodyBytes: 1000, Endpoints: 10, Requests: 40, CPU: 25, Ratio: 1, RatioLow: 1, RatioHigh: 1,
			Allocs: 10, Bytes: 100, Messages: 3, P50: 5, P99: 5, NullP50: 5, NullP99: 5, PeakResident: 900_000, PeakRatio: 450,
		},
		{
			Name: "random", BodyBytes: 1000, Endpoints: 10, Requests: 50, Failures: 1, CPU: 40, Ratio: 2, RatioLow: 2, RatioHigh: 2,
			Allocs: 10, Bytes: 100, Messages: 3, P50: 2, P99: 3, NullP50: 5, NullP99: 5, PeakResident: 1_200_000, PeakRatio: 600,
			FirstFailure: "first",
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func TestSummarize_Nothing(t *testing.T) {
	chosen, err := selectLanes("random", false)
	if err != nil {
		t.Fatal(err)
	}
	r := plan(chosen, []int{1000}, []int{10}, []int{0})[0]
	for _, res := range summarize(r, nil, 0, 1) {
		if res.Requests != 0 || res.CPU != 0 || res.Ratio != 0 || res.P99 != 0 {
			t.Errorf("out of no rounds: %+v", res)
		}
	}
}

func TestMedian_AgainstSorting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0.1, 100), 1, 200).Draw(t, "values")
		below, above := 0, 0
		mid, low, high := median(slices.Clone(values))
		for _, v := range values {
			if v < mid {
				below++
			}
			if v > mid {
				above++
			}
		}
		if 2*below > len(values) || 2*above > len(values) {
			t.Fatalf("median %v has %d of %d values below and %d above", mid, below, len(values), above)
		}
		if low > mid || high < mid || low < slices.Min(values) || high > slices.Max(values) {
			t.Fatalf("bounds %v and %v of median %v of %v", low, high, mid, values)
		}
	})
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(i)
	}
	if mid, low, high := median(values); mid != 49.5 || low != 40 || high != 60 {
		t.Errorf("median of 0 to 99: %v, %v, %v; want 49.5, 40, 60", mid, low, high)
	}
}

func TestQuantile_NearestRank(t *testing.T) {
	values := []int{5, 1, 4, 2, 3}
	for q, want := range map[float64]int{0: 1, 0.5: 3, 0.99: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("%v-quantile: %d, want %d", q, got, want)
		}
	}
	if got := quantile[float64](nil, 0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

// fake is a client that answers after a time.
type fake struct {
	takes time.Duration
	fail  func(i uint64) error
	mu    sync.Mutex
	seen  []uint64
}

func (f *fake) do(ctx context.Context, i uint64) (time.Duration, error) {
	f.mu.Lock()
	f.seen = append(f.seen, i)
	f.mu.Unlock()
	select {
	case <-time.After(f.takes):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if f.fail != nil {
		return f.takes, f.fail(i)
	}
	return f.takes, nil
}

func (f *fake) close() {}

func TestLoad_IsAClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{takes: 10 * time.Millisecond}
		began := time.Now()
		got := load(t.Context(), f, 100, 4, bound{time: 95 * time.Millisecond})
		// Little's law: 4 at a time of 10 ms each; those begun are finished.
		if got.requests != 40 || got.failures != 0 || time.Since(began) != 100*time.Millisecond {
			t.Errorf("%d requests and %d failures in %s, want 40 and 0 in 100ms", got.requests, got.failures, time.Since(began))
		}
		slices.Sort(f.seen)
		for i, n := range f.seen {
			if n != uint64(100+i) {
				t.Fatalf("request %d has number %d, want %d", i, n, 100+i)
			}
		}
	})
}

func TestLoad_CountsExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		f := &fake{takes: time.Millisecond, fail: func(i uint64) error {
			if i%5 == 0 {
				return boom
			}
			return nil
		}}
		got := load(t.Context(), f, 0, 3, bound{requests: 20})
		if got.requests != 20 || got.failures != 4 || len(got.latencies) != 16 || !errors.Is(got.fault, boom) {
			t.Errorf("%d requests, %d failures (%v), %d latencies; want 20, 4 (boom), 16", got.requests, got.failures, got.fault, len(got.latencies))
		}
	})
}

func TestLoad_WhatIsCutShortIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Millisecond)
		defer cancel()
		got := load(ctx, &fake{takes: 10 * time.Millisecond}, 0, 4, bound{requests: 1000})
		if got.requests != 8 || got.failures != 0 {
			t.Errorf("%d requests and %d failures, want 8 and none", got.requests, got.failures)
		}
	})
}

func TestGrade(t *testing.T) {
	for _, tt := range []struct {
		got  span
		want string
	}{
		{span{1, 0.9, 1.1}, "goal met"},
		{span{1.1, 1, 1.3}, "≤ 2, goal 1.2: met"},
		{span{1.9, 1.8, 2.1}, "undecided"},
		{span{2.2, 2.1, 2.3}, "MISSED"},
		{span{}, "not measured"},
	} {
		if got := grade(tt.got, 2, 1.2); !strings.HasSuffix(got, tt.want) {
			t.Errorf("grade(%v): %q, want %q", tt.got, got, tt.want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	got := verdicts([]result{
		{Name: "random", BodyBytes: 1024, Endpoints: 10, Ratio: 2, RatioLow: 1.9, RatioHigh: 2.1, Messages: 3},
		{Name: "random", BodyBytes: 1024, Endpoints: 1000, Ratio: 4, RatioLow: 3.8, RatioHigh: 4.2, Messages: 3},
		{Name: "random", BodyBytes: 1024, Endpoints: 10, ResponseChunks: 100, Ratio: 2, RatioLow: 2, RatioHigh: 2, Messages: 103},
		{Name: "random", BodyBytes: 1 << 20, Endpoints: 10, Ratio: 2, RatioLow: 2, RatioHigh: 2, PeakResident: 300, Idle: 100, TokenCache: 50, PeakRatio: 3, Messages: 3},
	})
	want := []string{
		"random, 10 endpoints, 1K body, 0 chunks: 2.00 × null (≤ 2.4, goal 1.2: met)",
		"random, 1000 endpoints, 1K body, 0 chunks: 2.00 × its cost at 10 endpoints (≤ 1.5, goal 1.1: MISSED)",
		"random, 10 endpoints, 1K body, 100 chunks: 1.00 messages per chunk (0: MISSED)",
		"random, 10 endpoints, 1M body, 0 chunks: peak resident 3.00 × body × concurrency (≤ 4, goal 2: met), of which 1.00 before the first request and 0.50 in the token cache",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
}
