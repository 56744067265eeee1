package drive

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// slice is what one cell did in one turn.
type slice struct {
	requests, failures int
	// used is what the server used in it; its residents are those at its end.
	used usage
	// envoy is the processor time of Envoy.
	envoy time.Duration
	// tokenized is how often the tokenizer was asked.
	tokenized uint64
	// latencies are those of the requests that did not fail.
	latencies []time.Duration
	// fault is the first failure.
	fault error
}

// cpu is the server's processor time for one request, in microseconds.
func (s *slice) cpu() float64 {
	return float64(s.used.CPU) / float64(time.Microsecond) / float64(s.requests)
}

// bound ends a slice: after a number of requests if that is not 0, else after
// a time. Requests that have begun are finished.
type bound struct {
	requests int
	time     time.Duration
}

// load sends requests from number first on, concurrency at a time, until the
// bound or the end of ctx, and returns what came of them. A request that ctx
// has cut short counts neither as done nor as failed.
func load(ctx context.Context, c client, first uint64, concurrency int, b bound) slice {
	var out slice
	var mu sync.Mutex
	var next atomic.Int64
	deadline := time.Now().Add(b.time)
	var workers sync.WaitGroup
	for range concurrency {
		workers.Go(func() {
			var own slice
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if b.requests > 0 && i >= int64(b.requests) || b.requests == 0 && !time.Now().Before(deadline) {
					break
				}
				took, err := c.do(ctx, first+uint64(i))
				if err != nil && ctx.Err() != nil {
					break
				}
				own.requests++
				if err != nil {
					own.failures++
					own.fault = cmp.Or(own.fault, err)
					continue
				}
				own.latencies = append(own.latencies, took)
			}
			mu.Lock()
			defer mu.Unlock()
			out.requests += own.requests
			out.failures += own.failures
			out.latencies = append(out.latencies, own.latencies...)
			if out.fault == nil {
				out.fault = own.fault
			}
		})
	}
	workers.Wait()
	return out
}

// sub returns what was used since before.
func (u usage) sub(before usage) usage {
	u.CPU -= before.CPU
	u.Allocs -= before.Allocs
	u.AllocBytes -= before.AllocBytes
	u.Messages -= before.Messages
	return u
}

// result is what the report says of one cell. Its JSON form is the output of
// --json.
type result struct {
	Name           string `json:"name"`
	BodyBytes      int    `json:"body_bytes"`
	Endpoints      int    `json:"endpoints"`
	ResponseChunks int    `json:"response_chunks"`
	Requests       int    `json:"requests"`
	Failures       int    `json:"failures"`
	// CPU is the median of the rounds, Ratio that of the rounds' ratios. Both
	// are 0 where there is nothing to tell: a lane without a server, or a round
	// that was cut short.
	CPU   float64 `json:"cpu_us_per_request"`
	Ratio float64 `json:"ratio_to_null"`
	// RatioLow and RatioHigh bound the median ratio with a confidence of 95 %.
	RatioLow  float64 `json:"ratio_to_null_low"`
	RatioHigh float64 `json:"ratio_to_null_high"`
	Allocs    float64 `json:"allocs_per_request"`
	Bytes     float64 `json:"alloc_bytes_per_request"`
	Messages  float64 `json:"messages_per_request"`
	// Tokenized is how often the tokenizer was asked: 0 where tokens are known.
	Tokenized float64 `json:"tokenizer_requests_per_request"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	// NullP50 and NullP99 are those of the null lane of the same row.
	NullP50 float64 `json:"null_p50_ms"`
	NullP99 float64 `json:"null_p99_ms"`
	// PeakResident is the server's, in bytes, Idle what it was before the first
	// request; PeakRatio is the peak in units of body times concurrency.
	PeakResident int64   `json:"peak_resident_bytes"`
	Idle         int64   `json:"idle_resident_bytes"`
	PeakRatio    float64 `json:"peak_resident_ratio"`
	// TokenCache is the part of it that the tokenizer's cache had in the end.
	TokenCache int64 `json:"token_cache_bytes"`
	// EnvoyCPU is 0 without an Envoy.
	EnvoyCPU     float64 `json:"envoy_cpu_us_per_request"`
	FirstFailure string  `json:"first_failure,omitempty"`
}

// summarize makes the results of a row out of its rounds: rounds[i][j] is what
// cell j did in round i; the last round may be short of cells. null is the
// number of the null lane's cell.
func summarize(r row, rounds [][]slice, null, concurrency int) []result {
	results := make([]result, len(r.cells))
	for j, c := range r.cells {
		var cpu, ratio []float64
		var all slice
		out := &results[j]
		for _, round := range rounds {
			if j >= len(round) || round[j].requests == 0 {
				continue
			}
			s := &round[j]
			all.requests += s.requests
			all.failures += s.failures
			all.envoy += s.envoy
			all.tokenized += s.tokenized
			all.used.Allocs += s.used.Allocs
			all.used.AllocBytes += s.used.AllocBytes
			all.used.Messages += s.used.Messages
			all.latencies = append(all.latencies, s.latencies...)
			out.PeakResident = max(out.PeakResident, s.used.PeakResident)
			out.TokenCache = max(out.TokenCache, s.used.TokenCache)
			if s.fault != nil && out.FirstFailure == "" {
				out.FirstFailure = s.fault.Error()
			}
			cpu = append(cpu, s.cpu())
			if c.server != serverNone && round[null].requests > 0 && round[null].used.CPU > 0 {
				ratio = append(ratio, s.cpu()/round[null].cpu())
			}
		}
		out.Name, out.BodyBytes, out.Endpoints, out.ResponseChunks = c.name, r.body, c.endpoints, r.chunks
		out.Requests, out.Failures = all.requests, all.failures
		out.CPU, _, _ = median(cpu)
		out.Ratio, out.RatioLow, out.RatioHigh = median(ratio)
		if n := float64(all.requests); n > 0 {
			out.Allocs, out.Bytes = float64(all.used.Allocs)/n, float64(all.used.AllocBytes)/n
			out.Messages = float64(all.used.Messages) / n
			out.Tokenized = float64(all.tokenized) / n
			out.EnvoyCPU = float64(all.envoy) / float64(time.Microsecond) / n
		}
		out.P50, out.P99 = milliseconds(quantile(all.latencies, 0.5)), milliseconds(quantile(all.latencies, 0.99))
		out.PeakRatio = float64(out.PeakResident) / float64(r.body*concurrency)
	}
	for j := range results {
		results[j].NullP50, results[j].NullP99 = results[null].P50, results[null].P99
	}
	return results
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// median returns the median of values and bounds for that of all the rounds
// there could have been, with a confidence of 95 %: the order statistics 0.98
// times the root of n away, after the normal approximation of the binomial
// distribution. It sorts values; all are 0 if there are none.
func median(values []float64) (mid, low, high float64) {
	n := len(values)
	if n == 0 {
		return 0, 0, 0
	}
	slices.Sort(values)
	half, away := float64(n)/2, 0.98*math.Sqrt(float64(n))
	low = values[max(0, int(half-away))]
	high = values[min(n-1, int(math.Ceil(half+away)))]
	return (values[(n-1)/2] + values[n/2]) / 2, low, high
}

// quantile returns the q-quantile of values by nearest rank, 0 if there are
// none. It sorts values.
func quantile[T cmp.Ordered](values []T, q float64) T {
	if len(values) == 0 {
		var zero T
		return zero
	}
	slices.Sort(values)
	return values[min(len(values)-1, int(q*float64(len(values))))]
}
