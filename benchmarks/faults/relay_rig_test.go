package faults

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// relayConfig lets nothing wait longer than a test should.
func relayConfig() relay.Config {
	cfg := relay.DefaultConfig()
	cfg.Window, cfg.Heartbeat, cfg.LogBytes = 5*time.Millisecond, 20*time.Millisecond, 64<<10
	cfg.BackoffMin, cfg.BackoffMax = 2*time.Millisecond, 20*time.Millisecond
	cfg.Timeout, cfg.DrainTimeout = 2*time.Second, 2*time.Second
	return cfg
}

func routerConfig() relay.RouterConfig {
	cfg := relay.DefaultRouterConfig()
	cfg.GiveUp, cfg.Timeout = 20*time.Second, 2*time.Second
	cfg.BackoffMin, cfg.BackoffMax = 2*time.Millisecond, 20*time.Millisecond
	return cfg
}

// relayed is the relay of one engine, reached by routers through a wire that
// can be spoiled.
type relayed struct {
	t    *testing.T
	e    *publisher
	cfg  relay.Config
	own  events.Config // how it follows its engine
	wire *wire
	// stop ends the relay as an operator does, kill as a crash does.
	stop, kill func()
	manager    *events.Manager
}

// caughtUp returns when the relay has heard of a batch.
func (r *relayed) caughtUp(seq int64) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		if st := r.manager.Status(); len(st) == 1 && st[0].Sequenced && int64(st[0].Sequence) >= seq {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("the relay has not heard of batch %d: %+v", seq, r.manager.Status())
		}
	}
}

// relayOf starts a relay beside an engine, and the wire to it.
func relayOf(t *testing.T, e *publisher, cfg relay.Config) *relayed {
	t.Helper()
	return relayFollowing(t, e, cfg, eventConfig())
}

// relayFollowing is relayOf with such a way to follow the engine.
func relayFollowing(t *testing.T, e *publisher, cfg relay.Config, own events.Config) *relayed {
	t.Helper()
	r := &relayed{t: t, e: e, cfg: cfg, own: own, wire: newWire(t)}
	e.relay = r.wire.addr()
	r.start()
	return r
}

// start starts the relay, again after it ended.
func (r *relayed) start() {
	t := r.t
	t.Helper()
	index, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	log, reg, hasher := slog.New(slog.DiscardHandler), prometheus.NewRegistry(), kvindex.NewHasher(fleetSeed)
	rl, err := relay.New(r.cfg, hasher, log, reg, rand.New(rand.NewPCG(5, 6)), relay.Network{})
	if err != nil {
		t.Fatal(err)
	}
	p := pool.New(pool.DefaultConfig(), log, prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 2)))
	own := *r.e
	own.relay, own.mute = "", false
	p.Set(specs(&own))
	m, err := events.New(r.own, index, hasher, events.ZMQ(r.own), log, reg, rand.New(rand.NewPCG(7, 8)), events.WithTaps(rl))
	if err != nil {
		t.Fatal(err)
	}
	r.manager = m
	var ln net.Listener
	if r.cfg.Listen != "" {
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		r.wire.to(ln.Addr().String())
	}
	following, stopFollowing := context.WithCancel(context.WithoutCancel(t.Context()))
	serving, stopServing := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.Run(following, p); err != nil {
			t.Errorf("relay's manager: %v", err)
		}
		stopServing()
	})
	wg.Go(func() {
		if err := rl.Run(serving, ln); err != nil {
			t.Errorf("relay: %v", err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		stopFollowing()
		wg.Wait()
	})
	stop := r.stop
	r.kill = func() {
		r.wire.to("") // nothing that it still sends arrives
		stop()
	}
	t.Cleanup(stop)
}

// wire passes connections on, as long as it is told to.
type wire struct {
	ln net.Listener
	wg sync.WaitGroup

	mu sync.Mutex
	// target is where connections lead, empty: they are closed. All below are
	// guarded by mu; moved is closed and replaced when something changes.
	target  string
	stalled bool
	// allowed is how much may pass from the target before all is cut; negative:
	// anything.
	allowed int
	delay   time.Duration // for every piece
	open    map[net.Conn]bool
	moved   chan struct{}
	// copied, if it is not nil, gets a copy of all that passes.
	copied *bytes.Buffer
}

// record keeps what passes from now on, both ways.
func (w *wire) record() { w.set(func() { w.copied = new(bytes.Buffer) }) }

func (w *wire) recorded() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return bytes.Clone(w.copied.Bytes())
}

func newWire(t *testing.T) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{ln: ln, allowed: -1, open: map[net.Conn]bool{}, moved: make(chan struct{})}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		w.set(func() { w.stalled = false })
		w.to("")
		_ = ln.Close()
		w.wg.Wait()
	})
	return w
}

func (w *wire) addr() string { return w.ln.Addr().String() }

func (w *wire) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	close(w.moved)
	w.moved = make(chan struct{})
}

// to leads new connections to an address and cuts the old ones.
func (w *wire) to(target string) {
	w.set(func() {
		w.target = target
		for c := range w.open {
			_ = c.Close()
		}
		clear(w.open)
	})
}

// stall lets nothing pass, and keeps the connections.
func (w *wire) stall(on bool) { w.set(func() { w.stalled = on }) }

// cutAfter lets n bytes pass from the target, over all connections, and then
// nothing any more.
func (w *wire) cutAfter(n int) { w.set(func() { w.allowed = n }) }

// passes takes what may pass off what is allowed, and tells whether all of n
// may.
func (w *wire) passes(n int) (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.allowed < 0 {
		return n, true
	}
	n = min(n, w.allowed)
	w.allowed -= n
	return n, w.allowed > 0
}

// slow delays every piece of at most 4 KiB.
func (w *wire) slow(d time.Duration) { w.set(func() { w.delay = d }) }

func (w *wire) accept() {
	for {
		in, err := w.ln.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		target := w.target
		w.mu.Unlock()
		if target == "" {
			_ = in.Close()
			continue
		}
		out, err := net.Dial("tcp", target)
		if err != nil {
			_ = in.Close()
			continue
		}
		w.mu.Lock()
		w.open[in], w.open[out] = true, true
		w.mu.Unlock()
		w.wg.Go(func() { w.pass(in, out, func(n int) (int, bool) { return n, true }) })
		w.wg.Go(func() { w.pass(out, in, w.passes) })
	}
}

// pass copies until an end closes, or no more may pass.
func (w *wire) pass(from, to net.Conn, may func(int) (int, bool)) {
	defer func() {
		_ = from.Close()
		_ = to.Close()
		w.mu.Lock()
		delete(w.open, from)
		delete(w.open, to)
		w.mu.Unlock()
	}()
	buf := make([]byte, 4<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			for {
				w.mu.Lock()
				stalled, delay, moved := w.stalled, w.delay, w.moved
				w.mu.Unlock()
				if delay > 0 { // a slow network is what is tested
					<-time.After(delay)
				}
				if !stalled {
					break
				}
				<-moved
			}
			w.mu.Lock()
			if w.copied != nil {
				w.copied.Write(buf[:n])
			}
			w.mu.Unlock()
			n, more := may(n)
			if _, err := to.Write(buf[:n]); err != nil || !more {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// relayRig is a router whose publishers are fed by relays.
func relayRig(t *testing.T, cfg relay.RouterConfig) *rig {
	t.Helper()
	return newRig(t, eventConfig(), events.WithRelays(relaySource(t, cfg, kvindex.NewHasher(fleetSeed))))
}

func relaySource(t *testing.T, cfg relay.RouterConfig, hasher kvindex.Hasher) *relay.Source {
	t.Helper()
	src, err := relay.NewSource(cfg, hasher, false, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(9, 10)), relay.Network{})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// serve serves what relays report to by themselves, and view.
func serve(t *testing.T, cfg relay.RouterConfig, src *relay.Source, view relay.View, ln net.Listener) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	srv := relay.NewServer(cfg, src, view, slog.New(slog.DiscardHandler))
	go func() { ended <- srv.Run(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("cache state server: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// neverOver looks, until the function returned is called, at every moment at
// which the router says that it is exact and has heard of the engine's last
// batch: it must not hold a block then that the engine does not.
func (r *rig) neverOver(e *publisher) (looked func() int) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan int, 1)
	go func() {
		n := 0
		defer func() { done <- n }()
		for ctx.Err() == nil {
			before := e.pool()
			st := r.status(e)
			over, _, _ := r.difference(e, before)
			after, still := e.pool(), r.status(e)
			if before.NextSeq != after.NextSeq || before.Pending+after.Pending > 0 || !sameBlocks(before, after) ||
				st.Trust != kvindex.TrustExact.String() || !st.Sequenced || st.Sequence != still.Sequence || int64(st.Sequence) != before.NextSeq-1 {
				continue
			}
			if n++; over > 0 {
				r.t.Errorf("the router is exact at batch %d and holds %d blocks that the engine does not", st.Sequence, over)
				return
			}
		}
	}()
	return sync.OnceValue(func() int {
		cancel()
		return <-done
	})
}

func sameBlocks(a, b stack.EnginePool) bool {
	if len(a.Blocks) != len(b.Blocks) {
		return false
	}
	for i := range a.Blocks {
		if a.Blocks[i].Hash != b.Blocks[i].Hash {
			return false
		}
	}
	return true
}
