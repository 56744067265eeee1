package events

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

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
	underPool(t, func(m *Manager, e *fakeEngine, _ *pool.Pool) { f(m, e) }, []pool.Spec{spec}, options...)
}

// underPool is underPeers with endpoints that may change.
func underPool(t *testing.T, f func(m *Manager, e *fakeEngine, p *pool.Pool), specs []pool.Spec, options ...Option) {
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
		p := staticPool(specs...)
		go func() { done <- m.Run(ctx, p) }()
		synctest.Wait()
		f(m, e, p)
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

// The time for asking begins with the first publisher to ask for, however long
// it takes to find one; whoever comes after it is counted, and said once.
func TestPeers_TimeBeginsWithTheFirst(t *testing.T) {
	var said bytes.Buffer
	var asked int
	counting := askFunc(func(ctx context.Context, wanted []Subject, _ func(Subject, Saved)) {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) != 10*time.Second {
			t.Errorf("there are %s for it, want 10s", time.Until(end))
		}
		asked += len(wanted)
	})
	underPool(t, func(m *Manager, _ *fakeEngine, p *pool.Pool) {
		m.log = slog.New(slog.NewTextHandler(&said, nil))
		<-time.After(time.Hour)
		specs := []pool.Spec{specOf(1)}
		p.Set(specs)
		<-time.After(5 * time.Second)
		synctest.Wait()
		if got := m.WarmStart(); got != (WarmStart{Asked: 1}) || asked != 1 {
			t.Errorf("%+v, and others were asked for %d", got, asked)
		}
		for i := range 2 {
			<-time.After(10 * time.Second)
			specs = append(specs, specOf(2+i))
			p.Set(specs)
			synctest.Wait()
		}
		if got := m.WarmStart(); got != (WarmStart{Asked: 1, Unasked: 2}) || asked != 1 || testutil.ToFloat64(m.metrics.unasked) != 2 {
			t.Errorf("%+v after the time was over, and others were asked for %d", got, asked)
		}
		if n := strings.Count(said.String(), "time for asking other routers is over"); n != 1 {
			t.Errorf("it was said %d times:\n%s", n, said.String())
		}
	}, nil, WithPeers(counting, 10*time.Second))
}

// However many snapshots publishers come with, one Ask runs at a time, and the
// next is for all that came meanwhile.
func TestPeers_OneAskAtATime(t *testing.T) {
	type ask struct {
		wanted []string
		end    chan struct{}
	}
	asks := make(chan ask, 10)
	peers := askFunc(func(ctx context.Context, wanted []Subject, take func(Subject, Saved)) {
		a := ask{end: make(chan struct{})}
		for _, of := range wanted {
			a.wanted = append(a.wanted, of.Endpoint)
			take(of, Saved{Address: of.Address, Model: "m", Next: 5, Heard: time.Now()})
		}
		slices.Sort(a.wanted)
		asks <- a
		select {
		case <-a.end:
		case <-ctx.Done():
		}
	})
	underPool(t, func(m *Manager, _ *fakeEngine, p *pool.Pool) {
		for i := 2; i <= 4; i++ {
			var specs []pool.Spec
			for j := 1; j <= i; j++ {
				if i < 4 || j != 2 { // the second goes
					specs = append(specs, specOf(j))
				}
			}
			<-time.After(time.Second)
			p.Set(specs)
			synctest.Wait()
		}
		first := <-asks
		if d := cmp.Diff([]string{"e1"}, first.wanted); d != "" || len(asks) > 0 {
			t.Errorf("the first ask, and %d beside it (-want +got):\n%s", len(asks), d)
		}
		if got := m.WarmStart(); got != (WarmStart{Asked: 4, Asking: 2, Restored: 1, FromPeers: 1}) {
			t.Errorf("%+v while two are still to be asked for", got)
		}
		close(first.end)
		second := <-asks
		synctest.Wait()
		if len(asks) > 0 || !slices.Contains(second.wanted, "e3") || !slices.Contains(second.wanted, "e4") {
			t.Errorf("the second is for %v, and there are %d beside it", second.wanted, len(asks))
		}
		if got := m.WarmStart(); got != (WarmStart{Asked: 4, Restored: 3, FromPeers: 3}) {
			t.Errorf("%+v when all are told", got)
		}
		p.Set([]pool.Spec{specOf(1), specOf(3), specOf(4), specOf(5)}) // which has to wait for the second
		synctest.Wait()
		if got := m.WarmStart(); got.Asked != 5 || got.Asking != 1 {
			t.Errorf("%+v while the second is told", got)
		}
		<-time.After(time.Minute)
		synctest.Wait()
		if got := m.WarmStart(); got.Asked != 4 || got.Asking != 0 || got.Unasked != 1 || len(asks) > 0 {
			t.Errorf("%+v when the time is over", got)
		}
	}, []pool.Spec{specOf(1)}, WithPeers(peers, time.Minute))
}

// specOf is warmSpec with another name and address.
func specOf(i int) pool.Spec {
	s := warmSpec()
	s.Name, s.Address = fmt.Sprintf("e%d", i), fmt.Sprintf("127.0.0.1:10%d", i)
	return s
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
