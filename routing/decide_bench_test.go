package routing

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// busy gives every endpoint of a pool a load that an engine in production has,
// no two of them the same.
func busy(p *pool.Pool, random *rand.Rand) {
	for _, e := range p.Snapshot().Endpoints {
		e.State.ObserveBlockSize(blockSize)
		running := float64(random.IntN(30))
		e.State.SetLoad(fresh(pool.Load{
			Has: 1<<31 - 1, KVUsage: random.Float64(), Running: running, InFlight: int64(running), Capacity: 400_000, Computed: 1e9,
			PrefillRate: 9000 + 1000*random.Float64(), PrefillSeconds: .2, DecodeSeconds: 3, BlockSize: blockSize,
		}))
		e.State.Place(now, int64(random.IntN(100_000)))
		e.State.Enqueue(now, time.Duration(random.IntN(1e8)))
		for range int(running) {
			e.State.Reserve(0)
		}
	}
}

// cpu returns the processor time that the process has used. The time of day
// says little on a machine that others use as well.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// A whole decision, with what it keeps. held says how many endpoints hold the
// prompt's first half: none, one, or all of them, as they do of a system prompt
// that all requests share.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000} {
		for _, held := range []int{0, 1, n} {
			w := newWorld(b, static(n), nil)
			busy(w.pool, rand.New(rand.NewPCG(5, 5)))
			prompt := tokens(0, 64*blockSize)
			for i := range held {
				w.hold(i, kvindex.Scope{Model: "m"}, prompt[:len(prompt)/2])
			}
			for _, name := range []string{"random", "least-request", "prefix-cache"} {
				if name != "prefix-cache" && held > 0 {
					continue
				}
				req := ids("m", prompt)
				req.Strategy = name
				b.Run(fmt.Sprintf("%s/endpoints=%d/held=%d", name, n, held), func(b *testing.B) {
					b.ReportAllocs()
					began := cpu(b)
					for b.Loop() {
						c := NewContext(context.Background(), req)
						w.router.Route(c)
						c.Finish()
					}
					b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
				})
			}
		}
	}
}
