package routing

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Against a dumb model: every endpoint's state, read anew for each decision.
// Whatever changes a state, endpoints that come and go and ids that are used
// again, must reach a board before the next decision, and each of two boards.
func TestBoard_KnowsEveryChange(t *testing.T) {
	settings, err := newSettings(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		specs := func() (out []pool.Spec) {
			for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 400), 1, 6, rapid.ID).Draw(rt, "endpoints") {
				out = append(out, pool.Spec{Name: fmt.Sprint("e", i), Address: fmt.Sprintf("127.0.0.1:%d", 1000+i), Models: []string{"m"}})
			}
			return out
		}
		p := pool.New(pool.Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
		p.Set(specs())
		at := now
		var boards [2]board
		check := func(b *board) {
			snap := p.Snapshot()
			sc := scene{settings: settings}
			b.begin(&sc, at)
			b.sync(snap, at)
			for _, e := range snap.Endpoints {
				var want row
				want.read(e, at, sc.base)
				got := b.rows[e.ID]
				if got.until < sc.ns {
					got.read(e, at, sc.base) // as decisions do
				}
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(row{})); diff != "" {
					rt.Fatalf("%s (-state +board):\n%s", e.Name, diff)
				}
			}
			for id, e := range b.endpoints {
				if want := snap.Endpoint(kvindex.EndpointID(id)); e != want {
					rt.Fatalf("id %d: the board has %v, the snapshot %v", id, e, want)
				}
			}
		}
		var earlier *pool.Snapshot
		rt.Repeat(map[string]func(*rapid.T){
			"":                func(*rapid.T) { check(&boards[0]) },
			"the other looks": func(*rapid.T) { check(&boards[1]) },
			"time passes":     func(rt *rapid.T) { at = at.Add(time.Duration(rapid.Int64Range(0, int64(2*rebase)).Draw(rt, "time"))) },
			"endpoints":       func(*rapid.T) { p.Set(specs()) },
			"many endpoints": func(rt *rapid.T) { // more snapshots than are remembered
				for range rapid.IntRange(20, 50).Draw(rt, "snapshots") {
					p.Set(specs())
				}
			},
			// A request that began before another can be decided after it.
			"a late request": func(*rapid.T) {
				if earlier != nil {
					sc := scene{settings: settings}
					boards[0].begin(&sc, at)
					boards[0].sync(earlier, at)
				}
				earlier = p.Snapshot()
			},
			"state": func(rt *rapid.T) {
				e := rapid.SampledFrom(p.Snapshot().Endpoints).Draw(rt, "endpoint")
				s, n := e.State, int64(rapid.IntRange(1, 1000).Draw(rt, "amount"))
				switch rapid.IntRange(0, 17).Draw(rt, "change") {
				case 0:
					s.Reserve(n)
				case 1:
					s.Release(n)
				case 2:
					s.Enqueue(at, time.Duration(n)*time.Millisecond)
				case 3:
					s.Dequeue(at, at.Add(time.Second), time.Duration(n)*time.Millisecond)
				case 4:
					s.Place(at, n)
				case 5:
					s.ObserveCached(1000, int(n)-1)
				case 6:
					s.SetLoad(&pool.Load{
						Has: 1<<31 - 1, Until: at.Add(time.Duration(n) * time.Second), Running: float64(n), Waiting: 1,
						Capacity: 500, Computed: float64(n), PrefillRate: float64(n), PrefillSeconds: 1,
					})
				case 7, 10, 11, 12, 13: // each needs one of the others before it
					s.Observe(at, rapid.SampledFrom([]pool.Outcome{pool.OutcomeFailure, pool.OutcomeSuccess}).Draw(rt, "outcome"))
				case 8, 14, 15, 16, 17:
					s.Try(at.Add(time.Duration(n) * 10 * time.Millisecond))
				case 9:
					s.SetTurn(uint64(n))
				}
			},
		})
	})
}
