package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/kvindex"
)

// What must be true of a router that starts from what another router knows:
// once all is quiet it holds what the engines hold, and it never held more.

// telling is what a router tells of a publisher.
type telling func(ctx context.Context, address string, rank int, model string) (events.Saved, error)

// tells serves what a router tells, through a wire.
func tells(t *testing.T, what telling) *wire {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, routerConfig(), relaySource(t, routerConfig(), kvindex.NewHasher(fleetSeed)), relay.View{Snapshot: what}, ln)
	w := newWire(t)
	w.to(ln.Addr().String())
	return w
}

// startsFrom is a router that asks peers when it runs.
func startsFrom(t *testing.T, within time.Duration, peers ...*wire) *rig {
	t.Helper()
	cfg := routerConfig()
	cfg.PeersTimeout = within
	for _, p := range peers {
		cfg.Peers = append(cfg.Peers, p.addr())
	}
	src := relaySource(t, cfg, kvindex.NewHasher(fleetSeed))
	return newRig(t, eventConfig(), events.WithRelays(src), events.WithPeers(src, within))
}

// forgetful starts engines that no longer have the history that the router
// knows: only what it tells can make another one exact.
func forgetful(t *testing.T, n int, random *rand.Rand) (old *rig, engines []*publisher) {
	t.Helper()
	old = relayRig(t, routerConfig())
	for range n {
		engines = append(engines, old.engine(server.Config{BufferSteps: 100}))
	}
	old.run(engines...)
	for _, e := range engines {
		for range 10 { // more than the buffer holds
			e.load(random, 30)
			old.awaitEqual(e, kvindex.TrustExact)
		}
	}
	return old, engines
}

// warmStart waits until nobody waits for peers or proofs any more.
func (r *rig) warmStart() events.WarmStart {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		w := r.manager.WarmStart()
		if w.Asked > 0 && w.Asking == 0 && w.Resumed+w.Reset == w.Restored {
			return w
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("the warm start does not end: %+v", w)
		}
	}
}

// A router that starts while engines are busy is exact with what its peer
// knows, although the engines have lost most of it; one of them has a relay,
// which needs no peer.
func TestPeers_DuringChurn(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 20))
			old, engines := forgetful(t, 3, random)
			for _, e := range engines {
				e.fault(server.Faults{BufferSteps: ptr(1000)}) // from now on, so that a slow machine has the time
			}
			relayed := old.engine(server.Config{BufferSteps: 100})
			relayed.mute = true
			relayOf(t, relayed, relayConfig())
			engines = append(engines, relayed)
			old.pool.Set(specs(engines...))
			old.awaitEqual(relayed, kvindex.TrustExact)
			peer := tells(t, old.manager.Snapshot)
			var quiets, looks []func()
			next := startsFrom(t, 10*time.Second, peer)
			for _, e := range engines {
				quiets = append(quiets, e.gentle(seed))
			}
			next.run(engines...)
			for _, e := range engines {
				looked := next.neverOver(e)
				looks = append(looks, func() { t.Logf("%s: looked %d times", e.name, looked()) })
			}
			if d := cmp.Diff(events.WarmStart{Asked: 3, FromPeers: 3, Restored: 3, Resumed: 3}, next.warmStart()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			for _, e := range engines {
				next.awaitExact(e)
			}
			for _, quiet := range quiets {
				quiet()
			}
			for _, e := range engines {
				next.awaitEqual(e, kvindex.TrustExact)
			}
			for _, look := range looks {
				look()
			}
		})
	}
}

// gentle sends a request now and then until the function returned is called.
func (e *publisher) gentle(seed uint64) (quiet func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		random := rand.New(rand.NewPCG(seed, seed))
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				e.load(random, 1)
			}
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// A peer may die at any byte of what it tells. What was told whole counts, the
// rest comes from the next peer, or the publisher is incomplete.
func TestPeers_DiesInMidSnapshot(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 21))
	old, engines := forgetful(t, 4, random)
	whole := tells(t, old.manager.Snapshot)
	whole.record()
	first := startsFrom(t, 10*time.Second, whole)
	first.run(engines...)
	first.warmStart()
	parts := 0
	for i := range 16 {
		second := i%4 == 0
		n := random.IntN(len(whole.recorded()))
		t.Run(fmt.Sprintf("%d bytes, second=%t", n, second), func(t *testing.T) {
			dies := tells(t, old.manager.Snapshot)
			dies.cutAfter(n)
			peers := []*wire{dies}
			if second {
				peers = append(peers, tells(t, old.manager.Snapshot))
			}
			next := startsFrom(t, 10*time.Second, peers...)
			next.run(engines...)
			got := next.warmStart()
			t.Logf("%+v", got)
			if got.Resumed != got.FromPeers || got.Restored != got.FromPeers || second && got.Resumed != len(engines) {
				t.Errorf("%+v: not all that was told was taken", got)
			}
			exact := 0
			for _, e := range engines {
				e.load(random, 2)
				next.await(e, "followed", func(st events.Status, _ stack.EnginePool) bool {
					return st.Trust == kvindex.TrustExact.String() || st.Trust == kvindex.TrustIncomplete.String()
				})
				if st := next.status(e); st.Trust == kvindex.TrustExact.String() {
					next.awaitEqual(e, kvindex.TrustExact)
					exact++
				} else {
					next.awaitLess(e, kvindex.TrustIncomplete)
				}
			}
			if exact != got.Resumed {
				t.Errorf("%d publishers are exact, %d were resumed", exact, got.Resumed)
			}
			if got.Resumed > 0 && !second {
				parts++
			}
		})
	}
	if parts == 0 {
		t.Error("no peer died between two publishers: the test tests little")
	}
}

// What a peer knows may be of a process that is no more, or older than all that
// the engine still has: it is dropped.
func TestPeers_Stale(t *testing.T) {
	for _, tt := range []struct {
		name      string
		meanwhile func(e *publisher, random *rand.Rand, known events.Saved)
		trust     kvindex.Trust
		want      events.WarmStart
	}{
		{"a little", func(e *publisher, random *rand.Rand, _ events.Saved) { e.load(random, 3) }, kvindex.TrustExact, events.WarmStart{Asked: 1, FromPeers: 1, Restored: 1, Resumed: 1}},
		{"another process", func(e *publisher, random *rand.Rand, _ events.Saved) {
			e.fault(server.Faults{Restart: server.RestartProcess})
			e.load(random, 2)
		}, kvindex.TrustExact, events.WarmStart{Asked: 1, FromPeers: 1, Restored: 1, Reset: 1}},
		{"another process that has come as far", func(e *publisher, random *rand.Rand, known events.Saved) {
			e.fault(server.Faults{Restart: server.RestartProcess, BufferSteps: ptr(100_000)})
			for e.pool().NextSeq < int64(known.Next)+3 {
				e.load(random, 30)
			}
		}, kvindex.TrustExact, events.WarmStart{Asked: 1, FromPeers: 1, Restored: 1, Reset: 1}},
		{"too far behind", func(e *publisher, random *rand.Rand, _ events.Saved) { e.load(random, 200) }, kvindex.TrustIncomplete, events.WarmStart{Asked: 1, FromPeers: 1, Restored: 1, Reset: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(2, 22))
			old, engines := forgetful(t, 1, random)
			e := engines[0]
			stale, err := old.manager.Snapshot(t.Context(), e.Addr(), 0, "m")
			if err != nil {
				t.Fatal(err)
			}
			tt.meanwhile(e, random, stale)
			next := startsFrom(t, 10*time.Second, tells(t, func(context.Context, string, int, string) (events.Saved, error) { return stale, nil }))
			next.run(e)
			if d := cmp.Diff(tt.want, next.warmStart()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if tt.trust == kvindex.TrustExact {
				next.awaitEqual(e, kvindex.TrustExact)
			} else {
				next.awaitLess(e, tt.trust)
			}
		})
	}
}

// A peer that is slow, refuses or is not there costs time, and no more than is
// allowed: the router starts with what the engine has.
func TestPeers_NoHelp(t *testing.T) {
	for name, peer := range map[string]func(t *testing.T, old *rig) *wire{
		"stalled": func(t *testing.T, old *rig) *wire {
			w := tells(t, old.manager.Snapshot)
			w.stall(true)
			return w
		},
		"slow": func(t *testing.T, old *rig) *wire {
			return tells(t, func(ctx context.Context, _ string, _ int, _ string) (events.Saved, error) {
				<-ctx.Done()
				return events.Saved{}, ctx.Err()
			})
		},
		"not there": func(t *testing.T, _ *rig) *wire { return newWire(t) },
		"another seed": func(t *testing.T, old *rig) *wire {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, routerConfig(), relaySource(t, routerConfig(), kvindex.NewHasher(fleetSeed+1)), relay.View{Snapshot: old.manager.Snapshot}, ln)
			w := newWire(t)
			w.to(ln.Addr().String())
			return w
		},
		"knows nothing": func(t *testing.T, _ *rig) *wire {
			empty := newRig(t, eventConfig())
			return tells(t, empty.manager.Snapshot)
		},
	} {
		t.Run(name, func(t *testing.T) {
			old := relayRig(t, routerConfig())
			e := old.engine(server.Config{})
			old.run(e)
			e.load(rand.New(rand.NewPCG(3, 23)), 60)
			old.awaitEqual(e, kvindex.TrustExact)
			begun := time.Now()
			next := startsFrom(t, 300*time.Millisecond, peer(t, old))
			next.run(e)
			if d := cmp.Diff(events.WarmStart{Asked: 1}, next.warmStart()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			next.awaitEqual(e, kvindex.TrustExact)
			t.Logf("exact after %s", time.Since(begun))
		})
	}
}

// Routers that start from each other again and again stay equal to the
// engines.
func TestPeers_AgainAndAgain(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 24))
			r, engines := forgetful(t, 2, random)
			for range 4 {
				next := startsFrom(t, 10*time.Second, tells(t, r.manager.Snapshot))
				next.run(engines...)
				if got := next.warmStart(); got.Resumed != len(engines) {
					t.Errorf("not resumed: %+v", got)
				}
				r.stop()
				r = next
				for _, e := range engines {
					e.load(random, 30)
					r.awaitEqual(e, kvindex.TrustExact)
				}
			}
		})
	}
}

// What routers tell each other has neither tokens nor text.
func TestPeers_WireHasNoTokensAndNoText(t *testing.T) {
	old := relayRig(t, routerConfig())
	e := old.engine(server.Config{})
	old.run(e)
	const salt = "salt-of-a-tenant"
	var prompt []int
	for i := range 32 {
		prompt = append(prompt, 70001+3*i)
	}
	for _, body := range []map[string]any{
		{"model": "m", "prompt": prompt, "max_tokens": 1}, {"model": "ad", "prompt": prompt, "max_tokens": 1, "cache_salt": salt},
	} {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if status := e.post("/v1/completions", string(b)); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
	}
	old.awaitEqual(e, kvindex.TrustExact)
	w := tells(t, old.manager.Snapshot)
	w.record()
	next := startsFrom(t, 10*time.Second, w)
	next.run(e)
	if got := next.warmStart(); got.Resumed != 1 {
		t.Fatalf("not resumed: %+v", got)
	}
	next.awaitEqual(e, kvindex.TrustExact)
	wire := w.recorded()
	if !bytes.Contains(wire, []byte(relay.Scheme)) {
		t.Fatalf("the scheme is not in the %d bytes recorded: they are not what was sent", len(wire))
	}
	if bytes.Contains(wire, []byte(salt)) {
		t.Error("the salt is on the wire")
	}
	noTokens(t, wire, prompt)
}
