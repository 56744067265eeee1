package faults

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
)

// warm ends a router and starts another one with what it knew.
func warm(t *testing.T, old *rig) *rig {
	t.Helper()
	old.stop()
	saved := old.manager.Saved()
	if len(saved) != 1 {
		t.Fatalf("%d publishers were saved, want 1", len(saved))
	}
	return newRig(t, eventConfig(), events.WithSaved(saved))
}

// A router that goes on where the one before stood is exact although the
// engine no longer has its history; and if the engine went on meanwhile, or
// is another process, it is what the engine holds, or less and says so.
func TestWarmStart(t *testing.T) {
	for _, tt := range []struct {
		name      string
		meanwhile func(e *publisher, random *rand.Rand)
		trust     kvindex.Trust
		want      events.WarmStart
	}{
		{"nothing happened", func(*publisher, *rand.Rand) {}, kvindex.TrustExact, events.WarmStart{Restored: 1, Resumed: 1}},
		{"the engine went on", func(e *publisher, random *rand.Rand) { e.load(random, 5) }, kvindex.TrustExact, events.WarmStart{Restored: 1, Resumed: 1}},
		{"the engine restarted", func(e *publisher, random *rand.Rand) {
			e.fault(server.Faults{Restart: server.RestartProcess})
			e.load(random, 2)
		}, kvindex.TrustExact, events.WarmStart{Restored: 1, Reset: 1}},
		{"the last batch left the buffer", func(e *publisher, random *rand.Rand) { e.load(random, 200) }, kvindex.TrustIncomplete, events.WarmStart{Restored: 1, Reset: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, eventConfig())
			e := r.engine(server.Config{BufferSteps: 100})
			r.run(e)
			r.awaitEqual(e, kvindex.TrustExact)
			random := rand.New(rand.NewPCG(1, 1))
			for range 10 { // more than the buffer holds
				e.load(random, 30)
				r.awaitEqual(e, kvindex.TrustExact)
			}
			next := warm(t, r)
			tt.meanwhile(e, random)
			next.run(e)
			if tt.trust == kvindex.TrustExact {
				next.awaitEqual(e, kvindex.TrustExact)
			} else {
				next.awaitLess(e, tt.trust)
			}
			if got := next.manager.WarmStart(); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			e.load(random, 30)
			if tt.trust == kvindex.TrustExact {
				next.awaitEqual(e, kvindex.TrustExact)
			}
		})
	}
}

// Routers that go on again and again stay equal to the engine.
func TestWarmStart_AgainAndAgain(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 2))
			r := newRig(t, eventConfig())
			e := r.engine(server.Config{BufferSteps: 200})
			r.run(e)
			for range 5 {
				e.load(random, 40)
				r.awaitEqual(e, kvindex.TrustExact)
				next := warm(t, r)
				e.load(random, random.IntN(10))
				next.run(e)
				r = next
				r.awaitEqual(e, kvindex.TrustExact)
				if got := r.manager.WarmStart(); got.Resumed != 1 {
					t.Errorf("not resumed: %+v", got)
				}
			}
		})
	}
}
