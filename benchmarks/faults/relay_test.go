package faults

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/kvindex"
)

// What must be true of routers that relays feed, after every fault: when all
// is quiet, the index holds what the engine's own block pool holds.

// sourceIs waits until a publisher is fed by a source.
func (r *rig) sourceIs(e *publisher, source string) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for r.status(e).Source != source {
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("not fed by the %s: %+v", source, r.status(e))
		}
	}
}

// busy sends requests until the function returned is called.
func (e *publisher) busy(seed uint64) (quiet func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		random := rand.New(rand.NewPCG(seed, seed))
		for {
			select {
			case <-stop:
				return
			default:
				e.load(random, 8)
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
}

func TestRelay_IsExact(t *testing.T) {
	for _, window := range []time.Duration{0, 5 * time.Millisecond, 100 * time.Millisecond} {
		t.Run(window.String(), func(t *testing.T) {
			r := relayRig(t, routerConfig())
			e := r.engine(server.Config{})
			e.mute = true
			cfg := relayConfig()
			cfg.Window = window
			relayOf(t, e, cfg)
			r.run(e)
			looked := r.neverOver(e)
			e.load(rand.New(rand.NewPCG(1, 1)), 400)
			r.awaitEqual(e, kvindex.TrustExact)
			t.Logf("looked %d times", looked())
			e.clear()
			r.awaitEqual(e, kvindex.TrustExact)
		})
	}
}

// A router that comes later is exact after one snapshot, although the engine
// kept nothing for a replay.
func TestRelay_ExactWhateverTheEnginesBuffer(t *testing.T) {
	first := relayRig(t, routerConfig())
	e := first.engine(server.Config{BufferSteps: 5})
	e.mute = true
	// A probe on a busy machine is answered when five batches more are there, and
	// then the last one applied is not: nothing would prove the process, and
	// nothing could be had again.
	own := eventConfig()
	own.Probe = 0
	relayFollowing(t, e, relayConfig(), own)
	first.run(e)
	first.awaitEqual(e, kvindex.TrustExact)
	e.load(rand.New(rand.NewPCG(2, 2)), 200)
	first.awaitEqual(e, kvindex.TrustExact)
	late := relayRig(t, routerConfig())
	late.run(e)
	late.awaitEqual(e, kvindex.TrustExact)
}

func TestRelay_Killed(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := relayRig(t, routerConfig())
			e := r.engine(server.Config{})
			e.mute = true
			rl := relayOf(t, e, relayConfig())
			r.run(e)
			looked := r.neverOver(e)
			quiet := e.busy(seed)
			random := rand.New(rand.NewPCG(seed, 1))
			for range 4 {
				e.load(random, 20)
				rl.kill()
				e.load(random, 10)
				rl.start()
			}
			quiet()
			r.awaitEqual(e, kvindex.TrustExact)
			t.Logf("looked %d times", looked())
		})
	}
}

func TestRelay_RouterAndBothKilled(t *testing.T) {
	e := startPublisher(t, server.Config{})
	e.mute = true
	rl := relayOf(t, e, relayConfig())
	quiet := e.busy(7)
	random := rand.New(rand.NewPCG(3, 3))
	for i := range 4 {
		r := relayRig(t, routerConfig())
		r.run(e)
		e.load(random, 20)
		r.awaitExact(e)
		if i%2 == 1 {
			rl.kill()
		}
		r.stop()
		if i%2 == 1 {
			rl.start()
		}
	}
	quiet()
	r := relayRig(t, routerConfig())
	r.run(e)
	r.awaitEqual(e, kvindex.TrustExact)
}

// awaitExact waits until the router is exact at some moment of a busy
// engine.
func (r *rig) awaitExact(e *publisher) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for r.status(e).Trust != kvindex.TrustExact.String() {
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("never exact: %+v", r.status(e))
		}
	}
}

func TestRelay_NetworkStalls(t *testing.T) {
	r := relayRig(t, routerConfig())
	e := r.engine(server.Config{})
	e.mute = true
	rl := relayOf(t, e, relayConfig())
	r.run(e)
	looked := r.neverOver(e)
	random := rand.New(rand.NewPCG(4, 4))
	e.load(random, 50)
	r.awaitEqual(e, kvindex.TrustExact)
	for range 3 {
		rl.wire.stall(true)
		e.load(random, 100)
		r.awaitStatus(e, "recovering", func(st events.Status) bool { return st.Trust == kvindex.TrustRecovering.String() })
		rl.wire.stall(false)
		r.awaitEqual(e, kvindex.TrustExact)
	}
	t.Logf("looked %d times", looked())
}

// awaitStatus waits until the status is as wanted.
func (r *rig) awaitStatus(e *publisher, what string, ok func(events.Status) bool) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !ok(r.status(e)) {
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("not %s: %+v", what, r.status(e))
		}
	}
}

// A router slower than the stream is not queued for: it falls behind the log
// and gets a snapshot.
func TestRelay_RouterSlowerThanTheStream(t *testing.T) {
	r := relayRig(t, routerConfig())
	e := r.engine(server.Config{})
	e.mute = true
	cfg := relayConfig()
	cfg.Window, cfg.Heartbeat = 0, time.Second
	rl := relayOf(t, e, cfg)
	r.run(e)
	looked := r.neverOver(e)
	e.load(rand.New(rand.NewPCG(5, 5)), 20)
	r.awaitEqual(e, kvindex.TrustExact)
	rl.wire.slow(20 * time.Millisecond)
	e.load(rand.New(rand.NewPCG(6, 6)), 600)
	rl.wire.slow(0)
	r.awaitEqual(e, kvindex.TrustExact)
	t.Logf("looked %d times", looked())
}

func TestRelay_EngineRestarts(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%t", busy), func(t *testing.T) {
			r := relayRig(t, routerConfig())
			e := r.engine(server.Config{})
			e.mute = true
			rl := relayOf(t, e, relayConfig())
			r.run(e)
			looked := r.neverOver(e)
			random := rand.New(rand.NewPCG(7, 7))
			e.load(random, 60)
			r.awaitEqual(e, kvindex.TrustExact)
			for range 3 {
				quiet := func() {}
				if busy {
					quiet = e.busy(random.Uint64())
				}
				rl.wire.to("") // so that the restart falls into a snapshot
				e.fault(server.Faults{Restart: server.RestartProcess})
				rl.kill()
				rl.start()
				e.load(random, 10)
				quiet()
				r.awaitEqual(e, kvindex.TrustExact)
			}
			t.Logf("looked %d times", looked())
		})
	}
}

// Snapshots are taken again and again while the engine is busy and restarts.
func TestRelay_SnapshotsDuringChurn(t *testing.T) {
	r := relayRig(t, routerConfig())
	e := r.engine(server.Config{})
	e.mute = true
	cfg := relayConfig()
	rl := relayOf(t, e, cfg)
	r.run(e)
	looked := r.neverOver(e)
	quiet := e.busy(8)
	random := rand.New(rand.NewPCG(8, 8))
	for i := range 20 {
		late := relayRig(t, routerConfig())
		late.run(e)
		e.load(random, 5)
		if i%4 == 3 {
			e.fault(server.Faults{Restart: server.RestartProcess})
		}
		if i%5 == 4 {
			quiet()
			late.awaitEqual(e, kvindex.TrustExact)
			r.awaitEqual(e, kvindex.TrustExact)
			quiet = e.busy(uint64(i))
		}
		late.stop()
		rl.wire.to(rl.wire.target) // and so does the other one
	}
	quiet()
	r.awaitEqual(e, kvindex.TrustExact)
	t.Logf("looked %d times", looked())
}

// Lost and doubled batches between engine and relay stay there.
func TestRelay_OddMessagesOfTheEngine(t *testing.T) {
	r := relayRig(t, routerConfig())
	e := r.engine(server.Config{})
	e.mute = true
	relayOf(t, e, relayConfig())
	r.run(e)
	random := rand.New(rand.NewPCG(9, 9))
	for _, q := range []server.Faults{
		{DuplicateNext: ptr(20)},
		{ReorderNext: ptr(2)},
		{GarbageNext: ptr(5)},
		{LoseNext: ptr(3)},
		{SlowJoiner: ptr(3), Restart: server.RestartConnection},
	} {
		e.fault(q)
		e.load(random, 60)
		r.awaitEqual(e, kvindex.TrustExact)
	}
}

// One source at a time: the relay first, the engine's own stream while the
// relay is away, and the relay again.
func TestRelay_FallsBackToTheEngine(t *testing.T) {
	cfg := routerConfig()
	cfg.GiveUp = 50 * time.Millisecond
	r := relayRig(t, cfg)
	e := r.engine(server.Config{})
	rl := relayOf(t, e, relayConfig())
	r.run(e)
	looked := r.neverOver(e)
	random := rand.New(rand.NewPCG(10, 10))
	for range 2 {
		r.sourceIs(e, "relay")
		e.load(random, 40)
		r.awaitEqual(e, kvindex.TrustExact)
		rl.kill()
		r.sourceIs(e, "engine")
		e.load(random, 40)
		r.awaitEqual(e, kvindex.TrustExact)
		rl.start()
	}
	r.sourceIs(e, "relay")
	r.awaitEqual(e, kvindex.TrustExact)
	t.Logf("looked %d times", looked())
}

// pushRig is a router that relays report to by themselves, through a wire.
func pushRig(t *testing.T, cfg relay.RouterConfig) (*rig, *wire, func()) {
	t.Helper()
	src := relaySource(t, cfg, kvindex.NewHasher(fleetSeed))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := serve(t, cfg, src, relay.View{}, ln)
	w := newWire(t)
	w.to(ln.Addr().String())
	return newRig(t, eventConfig(), events.WithRelays(src)), w, stop
}

func TestRelay_ReportsByItself(t *testing.T) {
	for _, window := range []time.Duration{0, 20 * time.Millisecond} {
		t.Run(window.String(), func(t *testing.T) {
			r, w, _ := pushRig(t, routerConfig())
			second, w2, _ := pushRig(t, routerConfig())
			e := r.engine(server.Config{})
			e.relay, e.mute = "push", true
			cfg := relayConfig()
			cfg.Listen, cfg.Window, cfg.ReportTo = "", window, []string{w.addr(), w2.addr()}
			rl := &relayed{t: t, e: e, cfg: cfg, own: eventConfig(), wire: newWire(t)}
			rl.start()
			r.run(e)
			second.run(e)
			looked := r.neverOver(e)
			random := rand.New(rand.NewPCG(11, 11))
			e.load(random, 200)
			r.awaitEqual(e, kvindex.TrustExact)
			second.awaitEqual(e, kvindex.TrustExact)
			for _, spoil := range []func(){
				func() { w.to(w.target) },
				func() { w.stall(true) },
				func() { e.fault(server.Faults{Restart: server.RestartProcess}) },
				func() { rl.stop(); rl.start() },
				func() { w.slow(10 * time.Millisecond) },
			} {
				quiet := e.busy(random.Uint64())
				spoil()
				e.load(random, 60)
				w.stall(false)
				w.slow(0)
				quiet()
				r.awaitEqual(e, kvindex.TrustExact)
				second.awaitEqual(e, kvindex.TrustExact)
			}
			e.clear()
			r.awaitEqual(e, kvindex.TrustExact)
			t.Logf("looked %d times", looked())
		})
	}
}

// A relay that is stopped during traffic delivers what is buffered: what the
// router holds then is what the relay held.
func TestRelay_StopDeliversWhatIsBuffered(t *testing.T) {
	for _, push := range []bool{false, true} {
		t.Run(fmt.Sprintf("push=%t", push), func(t *testing.T) {
			r, w, _ := pushRig(t, routerConfig())
			e := r.engine(server.Config{})
			e.mute = true
			cfg := relayConfig()
			cfg.Window = time.Minute // it does not end by itself
			var rl *relayed
			if push {
				e.relay, cfg.Listen, cfg.ReportTo = "push", "", []string{w.addr()}
				rl = &relayed{t: t, e: e, cfg: cfg, own: eventConfig(), wire: newWire(t)}
				rl.start()
			} else {
				rl = relayOf(t, e, cfg)
			}
			r.run(e)
			r.awaitEqual(e, kvindex.TrustExact) // and empty
			e.load(rand.New(rand.NewPCG(12, 12)), 3)
			if over, under, _ := r.difference(e, e.pool()); over > 0 || under == 0 {
				t.Fatalf("over %d, under %d: the window did not hold anything back", over, under)
			}
			quietAt := e.pool().NextSeq - 1
			rl.caughtUp(quietAt)
			rl.stop()
			r.awaitStatus(e, "at the last batch", func(st events.Status) bool { return st.Sequenced && int64(st.Sequence) == quietAt })
			if over, under, _ := r.difference(e, e.pool()); over+under > 0 {
				t.Errorf("over %d, under %d", over, under)
			}
		})
	}
}

// What goes over the wire is read byte by byte: the prompt's token ids are in
// it in no encoding that is in use, nor the salt, nor the engine's own names.
func TestRelay_WireHasNoTokensAndNoText(t *testing.T) {
	for _, push := range []bool{false, true} {
		t.Run(fmt.Sprintf("push=%t", push), func(t *testing.T) {
			r, w, _ := pushRig(t, routerConfig())
			e := r.engine(server.Config{})
			e.mute = true
			cfg := relayConfig()
			if push {
				e.relay, cfg.Listen, cfg.ReportTo = "push", "", []string{w.addr()}
				rl := &relayed{t: t, e: e, cfg: cfg, own: eventConfig(), wire: newWire(t)}
				w.record()
				rl.start()
			} else {
				e.relay = w.addr()
				rl := &relayed{t: t, e: e, cfg: cfg, own: eventConfig(), wire: w}
				w.record()
				rl.start()
			}
			r.run(e)
			r.awaitEqual(e, kvindex.TrustExact)
			const first, n, salt = 70001, 32, "salt-of-a-tenant"
			var prompt []int
			for i := range n {
				prompt = append(prompt, first+3*i)
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
			p := e.pool()
			r.awaitEqual(e, kvindex.TrustExact)
			wire := w.recorded()
			if !bytes.Contains(wire, []byte("ad")) || !bytes.Contains(wire, []byte(relay.Scheme)) {
				t.Fatalf("the adapter or the scheme is not in the %d bytes recorded: they are not what was sent", len(wire))
			}
			if bytes.Contains(wire, []byte(salt)) {
				t.Error("the salt is on the wire")
			}
			noTokens(t, wire, prompt)
			for _, b := range p.Blocks {
				h, err := strconv.ParseUint(b.Hash, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Contains(wire, binary.LittleEndian.AppendUint64(nil, h)) || bytes.Contains(wire, binary.BigEndian.AppendUint64(nil, h)) {
					t.Errorf("the engine's own name %s is on the wire", b.Hash)
				}
			}
		})
	}
}

// noTokens checks that a prompt's tokens are not on a wire in any encoding that
// is in use.
func noTokens(t *testing.T, wire []byte, prompt []int) {
	t.Helper()
	for name, encode := range map[string]func([]byte, uint64) []byte{
		"varint":        binary.AppendUvarint,
		"little-endian": func(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint32(b, uint32(v)) },
		"big-endian":    func(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) },
		"msgpack":       func(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v)) },
		"64 bits":       binary.LittleEndian.AppendUint64,
		"text":          func(b []byte, v uint64) []byte { return fmt.Appendf(b, "%d", v) },
	} {
		for i := range len(prompt) - 1 {
			if bytes.Contains(wire, encode(encode(nil, uint64(prompt[i])), uint64(prompt[i+1]))) {
				t.Errorf("tokens %d and %d are on the wire, as %s", i, i+1, name)
			}
		}
	}
}
