package events

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// A restored publisher that leaves the pool before its engine has proven
// anything counts as dropped: nobody waits for it any more.
func TestWarmStart_LeavesBeforeItIsProven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		index, err := kvindex.New(kvindex.Config{})
		if err != nil {
			t.Fatal(err)
		}
		spec := pool.Spec{Name: "e", Address: "127.0.0.1:1", Models: []string{"m"}, Events: "tcp://127.0.0.1:2", Replay: "tcp://127.0.0.1:3"}
		saved := []Saved{{Address: spec.Address, Model: "m", Next: 3}}
		m, err := New(DefaultConfig(), index, kvindex.NewHasher(1), &fakeEngine{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), WithSaved(saved))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for _, step := range []struct {
			specs []pool.Spec
			want  WarmStart
		}{
			{[]pool.Spec{spec}, WarmStart{Restored: 1}},
			{nil, WarmStart{Restored: 1, Reset: 1}},
			{[]pool.Spec{spec}, WarmStart{Restored: 1, Reset: 1}}, // the same again has nothing to restore
			{nil, WarmStart{Restored: 1, Reset: 1}},
		} {
			if err := m.follow(ctx, staticPool(step.specs...).Snapshot()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := m.WarmStart(); got != step.want {
				t.Errorf("with %d endpoints: %+v, want %+v", len(step.specs), got, step.want)
			}
		}
	})
}
