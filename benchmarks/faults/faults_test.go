package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/engine/server"
	"github.com/warmpath/warmpath/kvindex"
)

// What must be true after every fault of an event stream: when all is quiet,
// the index holds what the engine's own block pool holds, or less and says so.

func ptr[T any](v T) *T { return &v }

func TestFaults_OnePercentOfMessagesLost(t *testing.T) {
	r := newRig(t, eventConfig())
	e := r.engine(server.Config{})
	r.run(e)
	e.fault(server.Faults{LoseShare: ptr(0.01), LoseSeed: ptr(uint64(7))})
	e.load(rand.New(rand.NewPCG(1, 1)), 400)
	r.awaitEqual(e, kvindex.TrustExact)
	if st := r.status(e); st.Missed == 0 {
		t.Error("no batch was missed: the test tests nothing")
	}
}

// What the messages are that must not matter: twice, out of order, of a later
// engine, or none at all.
func TestFaults_OddMessages(t *testing.T) {
	for _, format := range []engine.Format{engine.FormatMap, engine.FormatArray, engine.FormatArray12} {
		t.Run(string(format), func(t *testing.T) {
			r := newRig(t, eventConfig())
			e := r.engine(server.Config{EventFormat: format, LegacyReplay: format != engine.FormatMap})
			r.run(e)
			random := rand.New(rand.NewPCG(2, 2))
			for _, q := range []server.Faults{
				{DuplicateNext: ptr(20)},
				{ReorderNext: ptr(2)},
				{UnknownNext: ptr(20), GarbageNext: ptr(5)},
				{SlowJoiner: ptr(3), Restart: server.RestartConnection},
			} {
				e.fault(q)
				e.load(random, 60)
				r.awaitEqual(e, kvindex.TrustExact)
			}
		})
	}
}

func TestFaults_EngineRestart(t *testing.T) {
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy=%t", busy), func(t *testing.T) {
			r := newRig(t, eventConfig())
			e := r.engine(server.Config{})
			r.run(e)
			random := rand.New(rand.NewPCG(3, 3))
			e.load(random, 60)
			r.awaitEqual(e, kvindex.TrustExact)
			for range 3 {
				var wg sync.WaitGroup
				if busy {
					seed := random.Uint64()
					wg.Go(func() { e.load(rand.New(rand.NewPCG(seed, 3)), 60) })
				}
				e.fault(server.Faults{Restart: server.RestartProcess})
				wg.Wait()
				r.awaitEqual(e, kvindex.TrustExact)
			}
		})
	}
}

func TestFaults_RouterRestart(t *testing.T) {
	e := startPublisher(t, server.Config{})
	e.load(rand.New(rand.NewPCG(4, 4)), 100)
	for range 2 {
		r := newRig(t, eventConfig())
		r.run(e)
		r.awaitEqual(e, kvindex.TrustExact)
		r.stop()
	}
	e.fault(server.Faults{BufferSteps: ptr(20)})
	r := newRig(t, eventConfig())
	r.run(e)
	r.awaitLess(e, kvindex.TrustIncomplete)
	e.clear()
	r.awaitEqual(e, kvindex.TrustExact)
}

func TestFaults_ReplayWithHoles(t *testing.T) {
	for _, noMarker := range []bool{false, true} {
		t.Run(fmt.Sprintf("noMarker=%t", noMarker), func(t *testing.T) {
			e := startPublisher(t, server.Config{})
			e.load(rand.New(rand.NewPCG(5, 5)), 100)
			e.fault(server.Faults{ReplayHole: ptr(4), ReplayHoleAfter: ptr(60), ReplayNoMarker: &noMarker})
			r := newRig(t, eventConfig())
			r.run(e)
			r.awaitEqual(e, kvindex.TrustExact)
		})
	}
}

func TestFaults_BufferShorterThanTheGap(t *testing.T) {
	cfg := eventConfig()
	cfg.Probe = time.Hour // on a slow machine probes would bring what is lost before the buffer forgets it
	r := newRig(t, cfg)
	e := r.engine(server.Config{BufferSteps: 10})
	r.run(e)
	r.awaitEqual(e, kvindex.TrustExact) // what comes before that is more than the buffer holds
	random := rand.New(rand.NewPCG(6, 6))
	e.load(random, 30)
	r.awaitEqual(e, kvindex.TrustExact)
	const lost = 40
	from := e.pool().NextSeq
	e.fault(server.Faults{LoseNext: ptr(lost)})
	for e.pool().NextSeq <= from+lost { // until one arrives again
		e.load(random, 20)
	}
	r.awaitLess(e, kvindex.TrustIncomplete)
	e.clear()
	r.awaitEqual(e, kvindex.TrustExact)
}

func TestFaults_WithoutReplay(t *testing.T) {
	r := newRig(t, eventConfig())
	e := r.engine(server.Config{Replay: "none"})
	r.run(e)
	random := rand.New(rand.NewPCG(7, 7))
	e.subscribed()
	e.load(random, 30)
	r.awaitEqual(e, kvindex.TrustExact) // the first batch was seen
	for _, tt := range []struct {
		fault server.Faults
		trust kvindex.Trust
	}{
		{server.Faults{LoseNext: ptr(1)}, kvindex.TrustIncomplete},
		{server.Faults{Restart: server.RestartConnection}, kvindex.TrustIncomplete},
		{server.Faults{Restart: server.RestartProcess}, kvindex.TrustExact}, // from its first batch on
	} {
		e.fault(tt.fault)
		e.subscribed()
		e.load(random, 30)
		r.awaitLess(e, tt.trust)
		e.clear()
		r.awaitEqual(e, kvindex.TrustExact)
	}
}

func TestFaults_StalledPublisher(t *testing.T) {
	r := newRig(t, eventConfig())
	e := r.engine(server.Config{})
	r.run(e)
	random := rand.New(rand.NewPCG(8, 8))
	e.load(random, 30)
	r.awaitEqual(e, kvindex.TrustExact)
	e.fault(server.Faults{Stall: ptr(true)})
	e.load(random, 60)
	e.fault(server.Faults{Stall: ptr(false)})
	r.awaitEqual(e, kvindex.TrustExact)
}

// The clear is late by design of the engine: what it emptied looks held until
// its next step.
func TestFaults_LateClear(t *testing.T) {
	r := newRig(t, eventConfig())
	e := r.engine(server.Config{})
	r.run(e)
	random := rand.New(rand.NewPCG(9, 9))
	e.load(random, 30)
	r.awaitEqual(e, kvindex.TrustExact)
	e.post("/reset_prefix_cache", "")
	if p := e.pool(); p.Pending != 1 || len(p.Blocks) != 0 {
		t.Fatalf("pool after the reset: %d events pending, %d blocks", p.Pending, len(p.Blocks))
	}
	e.load(random, 1)
	r.awaitEqual(e, kvindex.TrustExact)
}

func TestFaults_PodAddressChanges(t *testing.T) {
	r := newRig(t, eventConfig())
	e, successor := r.engine(server.Config{}), r.engine(server.Config{Events: "tcp://127.0.0.2:0", Replay: "tcp://127.0.0.2:0"})
	r.run(e)
	e.load(rand.New(rand.NewPCG(10, 10)), 30)
	successor.load(rand.New(rand.NewPCG(11, 11)), 30)
	r.awaitEqual(e, kvindex.TrustExact)
	successor.name = e.name
	r.pool.Set(specs(successor))
	r.awaitEqual(successor, kvindex.TrustExact)
	r.pool.Set(nil)
	r.awaitEmpty()
}

func TestFaults_FlappingPod(t *testing.T) {
	r := newRig(t, eventConfig())
	e, steady := r.engine(server.Config{}), r.engine(server.Config{})
	r.run(e, steady)
	random := rand.New(rand.NewPCG(12, 12))
	for i := range 12 {
		switch i % 3 {
		case 0:
			r.pool.Set(specs(steady))
		case 1:
			r.pool.Set(specs(steady, e))
		default:
			e.fault(server.Faults{Restart: []string{server.RestartConnection, server.RestartProcess}[i%2]})
		}
		e.load(random, 5)
		steady.load(random, 5)
	}
	r.pool.Set(specs(steady, e))
	r.awaitEqual(e, kvindex.TrustExact)
	r.awaitEqual(steady, kvindex.TrustExact)
}

func TestFaults_ManyPublishersAtOnce(t *testing.T) {
	const n = 64
	r := newRig(t, eventConfig())
	engines := make([]*publisher, n)
	for i := range engines {
		engines[i] = r.engine(server.Config{})
		engines[i].load(rand.New(rand.NewPCG(13, uint64(i))), 4)
	}
	r.run(engines...)
	var wg sync.WaitGroup
	for i, e := range engines {
		wg.Go(func() { e.load(rand.New(rand.NewPCG(14, uint64(i))), 4) })
	}
	wg.Wait()
	for _, e := range engines {
		r.awaitEqual(e, kvindex.TrustExact)
	}
	// What one engine holds is nothing to another.
	held := map[kvindex.BlockHash]int{}
	for _, e := range engines {
		for h := range r.truth(e.pool()) {
			held[h]++
		}
	}
	for h, want := range held {
		got := 0
		for _, e := range engines {
			if _, ok := r.held(e)[h]; ok {
				got++
			}
		}
		if got > want {
			t.Errorf("block %x: held by %d, index says %d", h, want, got)
		}
	}
}

// subscribed returns when a subscription is in force.
func (e *publisher) subscribed() {
	e.t.Helper()
	if err := e.WaitSubscribers(e.t.Context(), 1); err != nil {
		e.t.Fatal(err)
	}
}

// Interrupted requests to restarted engines are expected: a busy engine's
// clients see their requests fail.
func (e *publisher) post(path, body string) int {
	req, err := http.NewRequestWithContext(context.WithoutCancel(e.t.Context()), http.MethodPost, "http://"+e.Addr()+path, reader(body))
	if err != nil {
		e.t.Error(err)
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		e.t.Error(err)
		return 0
	}
	return statusOf(e.t, resp)
}
