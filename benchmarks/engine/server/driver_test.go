package server

import (
	"context"
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
			st, err := d.submit(ctx, engine.Request{Prompt: make([]kvindex.TokenID, 20), OutputTokens: 3})
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
		if _, err := d.submit(ctx, engine.Request{Prompt: make([]kvindex.TokenID, 20), OutputTokens: 2}); err != nil {
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
