package relays

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/routing/pool"
)

// rate is the blocks a second that one engine stores, and evicts.
const rate = 20_000

// load measures one relay with one router behind it: what it needs while its
// engine stores and evicts, and what the changes cost on the wire.
func load(ctx context.Context, blocks int, long time.Duration, out io.Writer) (err error) {
	f, err := startFake(ctx, 1<<32)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	alone := f.drive(ctx, blocks, long) // nobody listens
	f.forget()
	before := heap()
	spec := pool.Spec{Name: "e", Address: "127.0.0.1:10000", Models: []string{"m"}, Events: f.pub.Endpoint(), Replay: f.router.Endpoint()}
	address, s, stop, err := beside(ctx, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := f.pub.WaitSubscribers(ctx, 1); err != nil {
		return err
	}
	with := f.drive(ctx, blocks, long)
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := s.exact(waiting, len(f.stored)); err != nil {
		return fmt.Errorf("one relay: %w", err)
	}
	after := heap()
	fmt.Fprintf(out, "\none relay, %d blocks a second stored and as many evicted, %d held\n", rate, len(f.stored))
	fmt.Fprintf(out, "  processor   %.3f of one (the engine's sockets included; the engine alone %.3f)\n", with.cpu.Seconds()/with.took.Seconds(), alone.cpu.Seconds()/alone.took.Seconds())
	fmt.Fprintf(out, "  heap        %.1f MB more than without it\n", float64(after-before-f.kept())/1e6)

	var received atomic.Int64
	option, err := relayed(&received)
	if err != nil {
		return err
	}
	r, err := startSide(ctx, []pool.Spec{{Name: "e", Address: spec.Address, Models: spec.Models, Relay: address}}, option)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if _, err := r.exact(waiting, len(f.stored)); err != nil {
		return err
	}
	relayedBytes, engineBytes := received.Load(), f.published()
	live := f.drive(ctx, blocks, long)
	if err := r.caughtUp(waiting, f.seq-1); err != nil {
		return err
	}
	perBlock := func(n int64) float64 { return float64(n) / float64(live.blocks) }
	a, b := perBlock(int64(f.published()-engineBytes)), perBlock(received.Load()-relayedBytes)
	fmt.Fprintf(out, "  wire        %.1f bytes a block stored and evicted again, HTTP/2 and heartbeats included; the engine's own messages %.1f (%.2f)\n", b, a, b/a)
	return nil
}

// figures are those of one drive.
type figures struct {
	took, cpu time.Duration
	blocks    int
}

// drive publishes at the rate for a while.
func (f *fake) drive(ctx context.Context, hold int, long time.Duration) figures {
	begun, busy := time.Now(), cpuTime()
	n := 0
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for time.Since(begun) < long && ctx.Err() == nil {
		for n < int(time.Since(begun).Seconds()*rate) {
			n += f.request(hold)
		}
		<-tick.C
	}
	return figures{time.Since(begun), cpuTime() - busy, n}
}

// forget makes the engine another process, with nothing cached.
func (f *fake) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches, f.stored, f.seq = nil, nil, 0
}

// kept is the memory of what the engine keeps for a replay.
func (f *fake) kept() (n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.batches {
		n += int64(cap(b))
	}
	return n
}

// caughtUp waits until the router has heard of a batch.
func (s *side) caughtUp(ctx context.Context, seq uint64) error {
	for {
		if st := s.manager.Status(); len(st) == 1 && st[0].Sequenced && st[0].Sequence >= seq {
			return nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// heap is the memory in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
