//go:build !nozmq

package events

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/warmpath/warmpath/events/zmtp"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// engine is the least that publishes events as vLLM does: a numbered stream on
// PUB and its buffer on ROUTER.
type engine struct {
	pub    *zmtp.Pub
	router *zmtp.Router

	mu     sync.Mutex
	next   uint64
	buffer []batchFrame
	// withhold keeps a batch from the live stream.
	withhold map[uint64]bool
	wg       sync.WaitGroup
}

// startEngine starts an engine at the given endpoints; port 0 picks ports.
func startEngine(t *testing.T, events, replay string) *engine {
	t.Helper()
	ctx := t.Context()
	pub, err := zmtp.ListenPub(ctx, events)
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{pub: pub, withhold: map[uint64]bool{}}
	if e.router, err = zmtp.ListenRouter(ctx, replay); err != nil {
		t.Fatal(err)
	}
	e.wg.Go(e.serveReplays)
	t.Cleanup(func() { e.kill(t) })
	return e
}

func (e *engine) kill(t *testing.T) {
	t.Helper()
	if err := errors.Join(e.pub.Close(), e.router.Close()); err != nil {
		t.Error(err)
	}
	e.wg.Wait()
}

func (e *engine) serveReplays() {
	for {
		req, err := e.router.Recv()
		if err != nil {
			return
		}
		if len(req) != 3 || len(req[1]) != 0 || len(req[2]) != 8 {
			continue
		}
		from := binary.BigEndian.Uint64(req[2])
		e.mu.Lock()
		buffer := e.buffer
		e.mu.Unlock()
		for _, f := range buffer {
			if f.seq >= from {
				_ = e.router.Send(req[0], nil, []byte("topic"), binary.BigEndian.AppendUint64(nil, f.seq), f.payload)
			}
		}
		_ = e.router.Send(req[0], nil, nil, binary.BigEndian.AppendUint64(nil, EndMarker), nil)
	}
}

// publish sends one batch of events.
func (e *engine) publish(t *testing.T, events ...any) {
	t.Helper()
	payload, err := msgpack.Marshal([]any{float64(time.Now().UnixMicro()) / 1e6, events, 0})
	if err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f := batchFrame{e.next, payload}
	e.next++
	e.buffer = append(e.buffer, f)
	if !e.withhold[f.seq] {
		if err := e.pub.Send([]byte("topic"), binary.BigEndian.AppendUint64(nil, f.seq), payload); err != nil {
			t.Error(err)
		}
	}
}

// router is a manager over real sockets with one static endpoint.
type router struct {
	index   *kvindex.Index
	hasher  kvindex.Hasher
	manager *Manager
	pool    *pool.Pool
	first   int // token of the chain's first block
}

func startRouter(t *testing.T, cfg Config, spec pool.Spec) *router {
	t.Helper()
	index, err := kvindex.New(kvindex.Config{})
	if err != nil {
		t.Fatal(err)
	}
	pc := pool.DefaultConfig()
	pc.Static.Endpoints = []pool.Spec{spec}
	p := pool.New(pc, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 2)))
	r := &router{index: index, hasher: kvindex.NewHasher(5), pool: p}
	r.manager, err = New(cfg, index, r.hasher, ZMQ(cfg), slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(3, 4)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.manager.Run(ctx, p) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if s := index.Stats(); s.Held != 0 || len(s.Publishers) != 0 {
			t.Errorf("after the end the index still holds %+v", s)
		}
	})
	return r
}

// await polls until the index holds exactly blocks 0 to n-1 of the chain with
// the given trust. Events are asynchronous; the limit only ends a hanging test.
func (r *router) await(t *testing.T, n int, trust kvindex.Trust) {
	t.Helper()
	chain := []kvindex.BlockHash{}
	at := r.hasher.Root(kvindex.Scope{Model: "m", BlockSize: 1})
	for i := range n + 1 {
		at = kvindex.Mix(at, r.hasher.Content([]kvindex.TokenID{kvindex.TokenID(r.first + i)}))
		chain = append(chain, at)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for {
		ms := r.index.Match(nil, chain, time.Now(), nil)
		got := "nothing"
		if len(ms) == 1 {
			got = fmt.Sprintf("%d blocks, %s", ms[0].Device, ms[0].Trust)
			if int(ms[0].Device) == n && ms[0].Trust == trust {
				return
			}
		}
		if n == 0 && len(ms) == 0 {
			if st := r.manager.Status(); len(st) == 1 && st[0].Trust == trust.String() {
				return
			}
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("the index has %s; want %d blocks, %s; status %+v", got, n, trust, r.manager.Status())
		}
	}
}

func quick() Config {
	cfg := DefaultConfig()
	cfg.BackoffMin, cfg.BackoffMax = 2*time.Millisecond, 20*time.Millisecond
	cfg.Confirm, cfg.Probe = 10*time.Millisecond, 100*time.Millisecond
	return cfg
}

func spec(e *engine, replay bool) pool.Spec {
	s := pool.Spec{Name: "e", Address: "127.0.0.1:1", Models: []string{"m"}, Events: e.pub.Endpoint()}
	if replay {
		s.Replay = e.router.Endpoint()
	}
	return s
}

const anyPort = "tcp://127.0.0.1:0"

func TestSockets_HistoryBeforeTheStartIsReplayed(t *testing.T) {
	e := startEngine(t, anyPort, anyPort)
	for i := range 5 {
		e.publish(t, block(i))
	}
	r := startRouter(t, quick(), spec(e, true))
	r.await(t, 5, kvindex.TrustExact)
	<-r.manager.Ready()
	e.publish(t, block(5), removed(5), block(5), block(6))
	r.await(t, 7, kvindex.TrustExact)
	e.publish(t, removed(6), removed(5))
	r.await(t, 5, kvindex.TrustExact)
	e.publish(t, cleared)
	r.await(t, 0, kvindex.TrustExact)
}

func TestSockets_LostBatchIsReplayed(t *testing.T) {
	e := startEngine(t, anyPort, anyPort)
	cfg := quick()
	cfg.Probe = 0 // the gap must be found by itself
	r := startRouter(t, cfg, spec(e, true))
	r.await(t, 0, kvindex.TrustExact)
	if err := e.pub.WaitSubscribers(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	e.withhold[1] = true
	e.publish(t, block(0))
	e.publish(t, block(1))
	e.publish(t, block(2))
	r.await(t, 3, kvindex.TrustExact)
	if st := r.manager.Status(); st[0].Missed != 1 {
		t.Errorf("missed %d, want 1", st[0].Missed)
	}
}

func TestSockets_RestartIsANewGeneration(t *testing.T) {
	for _, batches := range []int{0, 2, 9} {
		t.Run(fmt.Sprint(batches), func(t *testing.T) {
			e := startEngine(t, anyPort, anyPort)
			r := startRouter(t, quick(), spec(e, true))
			for i := range 4 {
				e.publish(t, block(i))
			}
			r.await(t, 4, kvindex.TrustExact)
			events, replay := e.pub.Endpoint(), e.router.Endpoint()
			e.kill(t)
			e = startEngine(t, events, replay)
			for i := range batches {
				e.publish(t, block(i))
			}
			r.await(t, batches, kvindex.TrustExact)
		})
	}
}

// A connection that breaks while the engine lives costs nothing.
func TestSockets_BrokenConnectionResumes(t *testing.T) {
	e := startEngine(t, anyPort, anyPort)
	cut := startRelay(t, e.pub.Endpoint())
	s := spec(e, true)
	s.Events = cut.endpoint
	r := startRouter(t, quick(), s)
	for i := range 4 {
		e.publish(t, block(i))
	}
	r.await(t, 4, kvindex.TrustExact)
	cut.cut()
	e.publish(t, block(4))
	r.await(t, 5, kvindex.TrustExact)
}

func TestSockets_WithoutReplay(t *testing.T) {
	e := startEngine(t, anyPort, anyPort)
	cut := startRelay(t, e.pub.Endpoint())
	s := spec(e, false)
	s.Events = cut.endpoint
	r := startRouter(t, quick(), s)
	if err := e.pub.WaitSubscribers(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	r.await(t, 0, kvindex.TrustSilent)
	e.publish(t, block(0)) // the first of all: nothing can be missing
	r.await(t, 1, kvindex.TrustExact)
	e.withhold[1] = true
	e.publish(t, block(1))
	e.publish(t, block(0)) // a gap drops the state
	r.await(t, 1, kvindex.TrustIncomplete)
	e.publish(t, cleared, block(0), block(1))
	r.await(t, 2, kvindex.TrustExact)
	cut.cut()
	r.await(t, 0, kvindex.TrustIncomplete)
}

// relay forwards TCP connections that the test can cut.
type relay struct {
	endpoint string
	mu       sync.Mutex
	conns    []net.Conn
}

func startRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{endpoint: "tcp://" + l.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to[len("tcp://"):])
			if err != nil {
				_ = in.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, in, out)
			r.mu.Unlock()
			wg.Go(func() { copyClose(in, out) })
			wg.Go(func() { copyClose(out, in) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.cut()
		wg.Wait()
	})
	return r
}

func copyClose(to, from net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = to.Close()
	_ = from.Close()
}

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

// The new process has published more batches than the old one, so that only
// what was in the last one tells them apart.
func TestSockets_AnotherProcessIsToldByItsBatches(t *testing.T) {
	e := startEngine(t, anyPort, anyPort)
	r := startRouter(t, quick(), spec(e, true))
	for i := range 4 {
		e.publish(t, block(i))
	}
	r.await(t, 4, kvindex.TrustExact)
	events, replay := e.pub.Endpoint(), e.router.Endpoint()
	e.kill(t)
	e = startEngine(t, events, replay)
	for range 6 {
		e.publish(t, block(0))
	}
	r.await(t, 1, kvindex.TrustExact)
}
