package server

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/kvindex"
)

// A sequence takes the time of its steps, times the scale.
func TestDriverKeepsModelTime(t *testing.T) {
	for _, scale := range []float64{1, 0.1, 3} {
		synctest.Test(t, func(t *testing.T) {
			profile := engine.Profile{Name: "test", Base: 10, PerPrefillToken: 0.5, PerDecodeContext: 0.1}
			cfg := Config{Engine: engine.Config{Profile: profile, Blocks: 100}, TimeScale: scale}.WithDefaults()
			core, err := engine.New(cfg.Engine)
			if err != nil {
				t.Fatal(err)
			}
			d := newDriver(core, scale, newMetrics(prometheus.NewRegistry(), cfg), func([]engine.Event, time.Time) {})
			ctx, stop := context.WithCancel(t.Context())
			go d.run(ctx)
			defer func() { stop(); <-d.stopped }()

			s := &Server{driver: d}
			began := time.Now()
			st, err := d.submit(ctx, engine.Request{Prompt: make([]kvindex.TokenID, 20), OutputTokens: 3}, finishLength)
			if err != nil {
				t.Fatal(err)
			}
			var at []time.Duration
			if _, err := s.collect(ctx, st, func([]kvindex.TokenID) error {
				at = append(at, time.Since(began))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			// 20 prompt tokens, then contexts of 21 and 22.
			for i, ms := range []float64{20, 20 + 12.1, 20 + 12.1 + 12.2} {
				want := time.Duration(ms * scale * float64(time.Millisecond))
				if diff := at[i] - want; diff.Abs() > time.Microsecond {
					t.Errorf("scale %v: token %d after %v, want %v", scale, i, at[i], want)
				}
			}
		})
	}
}

// After a pause an engine takes as long as ever: it catches up with delays of
// its steps, and a pause is none.
func TestDriverKeepsModelTimeAfterAPause(t *testing.T) {
	for _, pause := range []time.Duration{0, time.Millisecond, maxLag, maxLag + 1, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			profile := engine.Profile{Name: "test", Base: 10, PerPrefillToken: 0.5}
			cfg := Config{Engine: engine.Config{Profile: profile, Blocks: 100}}.WithDefaults()
			core, err := engine.New(cfg.Engine)
			if err != nil {
				t.Fatal(err)
			}
			d := newDriver(core, 1, newMetrics(prometheus.NewRegistry(), cfg), func([]engine.Event, time.Time) {})
			ctx, stop := context.WithCancel(t.Context())
			go d.run(ctx)
			defer func() { stop(); <-d.stopped }()
			s := &Server{driver: d}
			for i := range 3 {
				began := time.Now()
				st, err := d.submit(ctx, engine.Request{Prompt: make([]kvindex.TokenID, 10), OutputTokens: 2}, finishLength)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.collect(ctx, st, func([]kvindex.TokenID) error { return nil }); err != nil {
					t.Fatal(err)
				}
				if got, want := time.Since(began), 25*time.Millisecond; got != want {
					t.Errorf("pause %v: request %d took %v, want %v", pause, i, got, want)
				}
				<-time.After(pause)
			}
		})
	}
}

// The metrics of a request's phases are their times, and the driver counts it
// as ended by itself: no handler has to run in between.
func TestDriverMeasuresPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		profile := engine.Profile{Name: "test", Base: 10, PerPrefillToken: 0.5}
		cfg := Config{Engine: engine.Config{Profile: profile, Blocks: 100, MaxSeqs: 1}}.WithDefaults()
		core, err := engine.New(cfg.Engine)
		if err != nil {
			t.Fatal(err)
		}
		reg := prometheus.NewRegistry()
		d := newDriver(core, 1, newMetrics(reg, cfg), func([]engine.Event, time.Time) {})
		ctx, stop := context.WithCancel(t.Context())
		go d.run(ctx)
		defer func() { stop(); <-d.stopped }()
		for range 2 { // 20 ms of prefill and twice 10 of decoding each; the second waits for the first
			prompt := make([]kvindex.TokenID, 20)
			if _, err := d.submit(ctx, engine.Request{Prompt: prompt, OutputTokens: 3, Salt: time.Now().String()}, finishLength); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Millisecond)
		}
		<-time.After(time.Second)
		synctest.Wait()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if h := m.GetHistogram(); h != nil {
					got[f.GetName()] = math.Round(h.GetSampleSum()*1e6) / 1e3 // ms
				} else if c := m.GetCounter(); c != nil {
					got[f.GetName()] += c.GetValue()
				}
			}
		}
		want := map[string]float64{
			"vllm:request_queue_time_seconds": 39, "vllm:request_prefill_time_seconds": 40,
			"vllm:request_decode_time_seconds": 40, "vllm:request_inference_time_seconds": 80,
			"vllm:e2e_request_latency_seconds": 119, "vllm:request_success_total": 2,
		}
		for name, v := range want {
			if got[name] != v {
				t.Errorf("%s: %v, want %v", name, got[name], v)
			}
		}
	})
}

// What must run between steps waits for the end of the step in flight, and
// what comes after the driver's end is refused.
func TestBoundaryCallsWaitForTheStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		profile := engine.Profile{Name: "test", Base: 1000}
		cfg := Config{Engine: engine.Config{Profile: profile, Blocks: 100}}.WithDefaults()
		core, err := engine.New(cfg.Engine)
		if err != nil {
			t.Fatal(err)
		}
		d := newDriver(core, 1, newMetrics(prometheus.NewRegistry(), cfg), func([]engine.Event, time.Time) {})
		ctx, stop := context.WithCancel(t.Context())
		go d.run(ctx)
		if _, err := d.submit(ctx, engine.Request{Prompt: make([]kvindex.TokenID, 20), OutputTokens: 2}, finishLength); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for i, tt := range []struct {
			when chan<- func()
			want time.Duration
		}{{d.calls, 0}, {d.boundary, time.Second}} {
			flying := false
			if err := d.call(ctx, tt.when, func() { flying = core.InFlight() }); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(began); got != tt.want || flying != (tt.want == 0) {
				t.Errorf("call %d ran after %v, in flight: %t", i, got, flying)
			}
		}
		stop()
		<-d.stopped
		if err := d.call(t.Context(), d.calls, func() { t.Error("called after the end") }); err != errStopped {
			t.Errorf("error %v after the end", err)
		}
	})
}
