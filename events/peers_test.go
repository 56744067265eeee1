package events

import (
	"context"
	"crypto/sha256"
	"errors"
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

// askFunc is a Peers.
type askFunc func(ctx context.Context, wanted []Subject, take func(Subject, Saved))

func (f askFunc) Ask(ctx context.Context, wanted []Subject, take func(Subject, Saved)) {
	f(ctx, wanted, take)
}

// tellAll answers for every publisher at once.
func tellAll(known Saved) askFunc {
	return func(_ context.Context, wanted []Subject, take func(Subject, Saved)) {
		for _, of := range wanted {
			take(of, known)
		}
	}
}

func warmSpec() pool.Spec {
	return pool.Spec{Name: "e", Address: "127.0.0.1:1", Models: []string{"m"}, Events: "tcp://127.0.0.1:2", Replay: "tcp://127.0.0.1:3"}
}

// underPeers runs f beside a manager whose engine cannot be reached.
func underPeers(t *testing.T, spec pool.Spec, f func(m *Manager, e *fakeEngine), options ...Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		index, err := kvindex.New(kvindex.Config{})
		if err != nil {
			t.Fatal(err)
		}
		e := &fakeEngine{down: true}
		m, err := New(DefaultConfig(), index, kvindex.NewHasher(1), e, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 1)), options...)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, staticPool(spec)) }()
		synctest.Wait()
		f(m, e)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// Of what was saved and what another router knows that counts which heard from
// the engine later; and where one cannot be restored, the other does.
func TestPeers_TheLaterOneCounts(t *testing.T) {
	now := time.Now()
	known := func(heard time.Time, next uint64) Saved {
		return Saved{Address: "127.0.0.1:1", Model: "m", Next: next, Heard: heard}
	}
	broken := known(now.Add(time.Hour), 9)
	broken.State.Blocks = []kvindex.ExportedBlock{{Block: 2, Parent: 1}} // whose parent is unknown
	for _, tt := range []struct {
		name       string
		file, peer *Saved
		sequence   uint64
		want       WarmStart
	}{
		{"only the file", ptr(known(now, 3)), nil, 2, WarmStart{Asked: 1, Restored: 1}},
		{"only the peer", nil, ptr(known(now, 5)), 4, WarmStart{Asked: 1, Restored: 1, FromPeers: 1}},
		{"the file is later", ptr(known(now.Add(time.Second), 3)), ptr(known(now, 5)), 2, WarmStart{Asked: 1, Restored: 1}},
		{"the peer is later", ptr(known(now, 3)), ptr(known(now.Add(time.Second), 5)), 4, WarmStart{Asked: 1, Restored: 1, FromPeers: 1}},
		{"the peer's cannot be restored", ptr(known(now, 3)), &broken, 2, WarmStart{Asked: 1, Restored: 1}},
		{"neither", nil, nil, 0, WarmStart{Asked: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var saved []Saved
			if tt.file != nil {
				saved = append(saved, *tt.file)
			}
			peers := askFunc(func(context.Context, []Subject, func(Subject, Saved)) {})
			if tt.peer != nil {
				peers = tellAll(*tt.peer)
			}
			underPeers(t, warmSpec(), func(m *Manager, _ *fakeEngine) {
				if d := cmp.Diff(tt.want, m.WarmStart()); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
				if st := m.Status()[0]; st.Sequence != tt.sequence {
					t.Errorf("it goes on after batch %d, want %d", st.Sequence, tt.sequence)
				}
			}, WithSaved(saved), WithPeers(peers, time.Minute))
		})
	}
}

func ptr[T any](v T) *T { return &v }

// A publisher waits for other routers no longer than it may, and is then
// followed as if there were none.
func TestPeers_WaitsNoLongerThanAllowed(t *testing.T) {
	silent := askFunc(func(ctx context.Context, _ []Subject, _ func(Subject, Saved)) { <-ctx.Done() })
	underPeers(t, warmSpec(), func(m *Manager, e *fakeEngine) {
		dials := func() int {
			e.mu.Lock()
			defer e.mu.Unlock()
			return len(e.dials)
		}
		if got := m.WarmStart(); got != (WarmStart{Asked: 1, Asking: 1}) || dials() > 0 {
			t.Errorf("%+v and %d dials while others are asked", got, dials())
		}
		select {
		case <-m.Ready():
			t.Error("ready while others are asked")
		default:
		}
		<-time.After(9 * time.Second)
		synctest.Wait()
		if dials() > 0 {
			t.Errorf("dialed before the time was over")
		}
		<-time.After(2 * time.Second)
		synctest.Wait()
		if got := m.WarmStart(); got != (WarmStart{Asked: 1}) || dials() == 0 {
			t.Errorf("%+v and %d dials after the time was over", got, dials())
		}
		<-m.Ready()
	}, WithPeers(silent, 10*time.Second))
}

// Nobody is asked for publishers that nothing could be proven of, or that a
// relay tells all of.
func TestPeers_NotAskedForAll(t *testing.T) {
	for name, change := range map[string]func(*pool.Spec){
		"no replay": func(s *pool.Spec) { s.Replay = "" },
		"a relay":   func(s *pool.Spec) { s.Relay = "127.0.0.1:4" },
	} {
		t.Run(name, func(t *testing.T) {
			spec := warmSpec()
			change(&spec)
			asked := askFunc(func(_ context.Context, wanted []Subject, _ func(Subject, Saved)) { t.Errorf("asked for %+v", wanted) })
			underPeers(t, spec, func(m *Manager, _ *fakeEngine) {
				if got := m.WarmStart(); got != (WarmStart{}) {
					t.Errorf("%+v", got)
				}
			}, WithPeers(asked, time.Minute))
		})
	}
}

// What is told of a publisher is its state between two batches; and there are
// reasons for telling nothing.
func TestManager_Snapshot(t *testing.T) {
	e := &fakeEngine{}
	e.answer = e.whole
	e.publish(t, false, block(0), block(1))
	underFakeTime(t, e, true, func(b *bench) {
		b.wait(time.Second)
		e.publish(t, true, block(2), removed(1))
		b.wait(time.Second)
		got, err := b.m.Snapshot(b.t.Context(), "127.0.0.1:1", 0, "m")
		if err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256(e.buffer[1].payload); got.Next != 2 || got.Last != want || len(got.State.Blocks) != 3 || time.Since(got.Heard) > 2*time.Second {
			t.Errorf("next %d, %d blocks, heard %s ago", got.Next, len(got.State.Blocks), time.Since(got.Heard))
		}
		for _, tt := range []struct {
			address, model string
			rank           int
			want           error
		}{
			{"127.0.0.1:9", "m", 0, errFollowed}, {"127.0.0.1:1", "m", 1, errFollowed}, {"127.0.0.1:1", "other", 0, errOtherModel},
		} {
			if _, err := b.m.Snapshot(b.t.Context(), tt.address, tt.rank, tt.model); !errors.Is(err, tt.want) {
				t.Errorf("%s rank %d of %s: %v, want %v", tt.address, tt.rank, tt.model, err, tt.want)
			}
		}
		e.mu.Lock()
		e.down = true
		e.mu.Unlock()
		e.live.Close()
		b.wait(time.Second)
		if _, err := b.m.Snapshot(b.t.Context(), "127.0.0.1:1", 0, "m"); !errors.Is(err, errConnecting) {
			t.Errorf("%v, want %v", err, errConnecting)
		}
	})
	part := &fakeEngine{buffer: []batchFrame{{7, encode(t, a{1.5, a{block(0)}, 0})}}}
	part.answer = part.whole
	underFakeTime(t, part, true, func(b *bench) {
		b.wait(time.Second)
		if _, err := b.m.Snapshot(b.t.Context(), "127.0.0.1:1", 0, "m"); !errors.Is(err, errHistory) {
			t.Errorf("%v, want %v", err, errHistory)
		}
	})
	underFakeTime(t, e, false, func(b *bench) {
		if _, err := b.m.Snapshot(b.t.Context(), "127.0.0.1:1", 0, "m"); !errors.Is(err, errNoReplay) {
			t.Errorf("%v, want %v", err, errNoReplay)
		}
	})
}
