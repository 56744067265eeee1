package events

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
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

// What was saved of a publisher and not yet proven when the router is stopped is
// there for the next one, as it was and as old as it was; what was dropped, or
// is of a publisher that is gone, is not.
func TestWarmStart_StopsBeforeItIsProven(t *testing.T) {
	silent := askFunc(func(ctx context.Context, _ []Subject, _ func(Subject, Saved)) { <-ctx.Done() })
	unlisted, gone := warmSpec(), warmSpec()
	unlisted.Models, gone.Address = nil, "127.0.0.1:9"
	for _, tt := range []struct {
		name    string
		spec    pool.Spec
		options []Option
		after   time.Duration
		kept    bool
	}{
		{"while other routers are asked", warmSpec(), []Option{WithPeers(silent, time.Hour)}, time.Second, true},
		{"while the engine cannot be reached", warmSpec(), nil, time.Second, true},
		{"before its model is listed", unlisted, nil, time.Second, true},
		{"once it was given up", warmSpec(), nil, DefaultConfig().GiveUp + time.Minute, false},
		{"without the publisher", gone, nil, time.Second, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := kvindex.BlockHash(7)
			saved := []Saved{{
				Address: "127.0.0.1:1", Model: "m", Heard: time.Unix(1, 0), Next: 3, Last: [32]byte{1}, Roots: []kvindex.BlockHash{root},
				State: kvindex.Export{Groups: []uint8{0}, Blocks: []kvindex.ExportedBlock{{Block: 8, Parent: root, Root: true, Name: 9, Named: true, Held: 1}}},
			}}
			var m *Manager
			underPeers(t, tt.spec, func(running *Manager, _ *fakeEngine) {
				m = running
				<-time.After(tt.after)
				synctest.Wait()
			}, append(tt.options, WithSaved(saved))...)
			var want []Saved
			if tt.kept {
				want = saved
			}
			if d := cmp.Diff(want, m.Saved()); d != "" {
				t.Errorf("saved again (-want +got):\n%s", d)
			}
		})
	}
}
