package events

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

var errRefused = errors.New("connection refused")

// block is the event that stores block i of a chain of one-token blocks.
func block(i int) map[string]any {
	e := map[string]any{
		"type": "BlockStored", "block_hashes": []int{i + 100}, "parent_block_hash": nil,
		"token_ids": []int{i}, "block_size": 1, "lora_id": nil, "medium": "GPU", "lora_name": nil, "extra_keys": []any{nil},
	}
	if i > 0 {
		e["parent_block_hash"] = i + 99
	}
	return e
}

func removed(i int) map[string]any {
	return map[string]any{"type": "BlockRemoved", "block_hashes": []int{i + 100}, "medium": "GPU"}
}

var cleared = map[string]any{"type": "AllBlocksCleared"}

// fakeStream is a connection whose messages come from the test.
type fakeStream struct {
	c    chan [][]byte
	gone chan struct{}
	once sync.Once
}

func newFakeStream() *fakeStream {
	return &fakeStream{c: make(chan [][]byte), gone: make(chan struct{})}
}

func (s *fakeStream) Recv() ([][]byte, error) {
	select {
	case f := <-s.c:
		return f, nil
	case <-s.gone:
		return nil, io.EOF
	}
}

func (s *fakeStream) Close() error {
	s.once.Do(func() { close(s.gone) })
	return nil
}

// fakeEngine is a Transport: one engine whose faults the test chooses.
type fakeEngine struct {
	mu     sync.Mutex
	down   bool
	live   *fakeStream
	dials  []time.Time
	asked  []uint64
	buffer []batchFrame
	// answer writes a replay; nil answers nothing at all.
	answer func(s *fakeStream, from uint64)
}

func (e *fakeEngine) DialLive(context.Context, string) (Stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dials = append(e.dials, time.Now())
	if e.down {
		return nil, errRefused
	}
	e.live = newFakeStream()
	return e.live, nil
}

func (e *fakeEngine) DialReplay(_ context.Context, _ string, request [][]byte) (Stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	from := binary.BigEndian.Uint64(request[1])
	e.asked = append(e.asked, from)
	s := newFakeStream()
	if e.answer != nil {
		go e.answer(s, from)
	}
	return s, nil
}

func (s *fakeStream) put(seq uint64, payload []byte) {
	select {
	case s.c <- [][]byte{{}, binary.BigEndian.AppendUint64(nil, seq), payload}:
	case <-s.gone:
	}
}

// whole answers with the buffer and an end marker.
func (e *fakeEngine) whole(s *fakeStream, from uint64) { e.part(s, from, 1<<62, true) }

// part answers with at most n batches.
func (e *fakeEngine) part(s *fakeStream, from uint64, n int, marker bool) {
	e.mu.Lock()
	buffer := e.buffer
	e.mu.Unlock()
	for _, f := range buffer {
		if f.seq >= from && n > 0 {
			n--
			s.put(f.seq, f.payload)
		}
	}
	if marker {
		s.put(EndMarker, nil)
	}
}

// publish appends a batch, and sends it live if asked to.
func (e *fakeEngine) publish(t *testing.T, send bool, events ...any) {
	t.Helper()
	e.mu.Lock()
	f := batchFrame{uint64(len(e.buffer)), encode(t, a{float64(time.Now().UnixNano()) / 1e9, events, 0})}
	e.buffer = append(e.buffer, f)
	live := e.live
	e.mu.Unlock()
	if send {
		live.put(f.seq, f.payload)
	}
}

// bench is a subscriber under fake time.
type bench struct {
	t     *testing.T
	e     *fakeEngine
	index *kvindex.Index
	m     *Manager
	reg   *prometheus.Registry
}

// underFakeTime runs f beside a manager that follows one endpoint of e.
func underFakeTime(t *testing.T, e *fakeEngine, replay bool, f func(*bench)) {
	underFakeTimeIn(t, kvindex.Config{}, e, replay, f)
}

// underFakeTimeIn is underFakeTime with such an index.
func underFakeTimeIn(t *testing.T, cfg kvindex.Config, e *fakeEngine, replay bool, f func(*bench)) {
	synctest.Test(t, func(t *testing.T) {
		index, err := kvindex.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		b := &bench{t: t, e: e, index: index, reg: prometheus.NewRegistry()}
		b.m, err = New(DefaultConfig(), index, kvindex.NewHasher(1), e, slog.New(slog.DiscardHandler), b.reg, rand.New(rand.NewPCG(1, 1)))
		if err != nil {
			t.Fatal(err)
		}
		s := pool.Spec{Name: "e", Address: "127.0.0.1:1", Models: []string{"m"}, Events: "tcp://127.0.0.1:2"}
		if replay {
			s.Replay = "tcp://127.0.0.1:3"
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.m.Run(ctx, staticPool(s)) }()
		synctest.Wait()
		f(b)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if st := index.Stats(); st.Held != 0 || len(st.Publishers) != 0 {
			t.Errorf("after the end the index still holds %+v", st)
		}
	})
}

func staticPool(specs ...pool.Spec) *pool.Pool {
	cfg := pool.DefaultConfig()
	cfg.Static.Endpoints = specs
	return pool.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &http.Client{Transport: allHealthy{}}, rand.New(rand.NewPCG(1, 2)))
}

// allHealthy answers every probe with 200.
type allHealthy struct{}

func (allHealthy) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

// wait lets fake time pass.
func (b *bench) wait(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (b *bench) want(at string, held int, phase Phase, trust kvindex.Trust) {
	b.t.Helper()
	synctest.Wait()
	st := b.m.Status()[0]
	if n := b.index.Stats().Held; n != held || st.Phase != phase.String() || st.Trust != trust.String() {
		b.t.Errorf("%s: %d blocks, %s, %s; want %d, %s, %s", at, n, st.Phase, st.Trust, held, phase, trust)
	}
}

func TestSubscriber_ReplayWithoutEndMarker(t *testing.T) {
	e := &fakeEngine{}
	for i := range 3 {
		e.publish(t, false, block(i))
	}
	e.answer = func(s *fakeStream, from uint64) { e.part(s, from, 2, false) }
	underFakeTime(t, e, true, func(b *bench) {
		b.want("first answer", 2, Replaying, kvindex.TrustRecovering)
		b.wait(2 * time.Second) // quiet: asked again from the last
		b.want("second answer", 3, Verifying, kvindex.TrustRecovering)
		b.wait(4 * time.Second) // and a third time, which brings nothing new
		b.want("third answer", 3, Live, kvindex.TrustRecovering)
		e.publish(t, true, block(3))
		b.want("live", 4, Live, kvindex.TrustExact)
	})
}

func TestSubscriber_UnansweredReplayIsGivenUpAndRetriedLater(t *testing.T) {
	e := &fakeEngine{}
	e.publish(t, false, block(0))
	underFakeTime(t, e, true, func(b *bench) {
		select {
		case <-b.m.Ready():
			t.Error("ready before the first attempt has failed")
		default:
		}
		b.wait(6 * time.Second)
		<-b.m.Ready()
		e.publish(t, true, block(1)) // held; its parent is unknown
		b.want("asking", 0, Replaying, kvindex.TrustRecovering)
		b.wait(30 * time.Second)
		b.want("given up", 0, Stale, kvindex.TrustIncomplete)
		e.mu.Lock()
		e.answer = e.whole
		e.mu.Unlock()
		b.wait(40 * time.Second) // the next probe rebuilds
		b.want("rebuilt", 2, Live, kvindex.TrustExact)
	})
}

// A publisher of which the index had to drop blocks is incomplete until its
// cache is cleared, however complete its history is.
func TestSubscriber_NoRoomIsIncomplete(t *testing.T) {
	const room = 1024
	e := &fakeEngine{}
	for range 2 {
		e.publish(t, false, block(0))
	}
	e.answer = e.whole
	underFakeTimeIn(t, kvindex.Config{MaxBlocks: room}, e, true, func(b *bench) {
		b.wait(time.Second)
		b.want("small", 1, Live, kvindex.TrustExact)
		for i := range 2 * room {
			e.publish(t, true, block(i+1))
		}
		synctest.Wait()
		if n := b.index.Stats().Held; n > room {
			t.Fatalf("%d blocks held: the test tests nothing", n)
		}
		b.want("no room", b.index.Stats().Held, Live, kvindex.TrustIncomplete)
		b.wait(time.Minute) // probed meanwhile
		e.publish(t, true, removed(2*room))
		synctest.Wait()
		b.want("and later", b.index.Stats().Held, Live, kvindex.TrustIncomplete)
		if got := b.index.Stats().Publishers[0].Trust; got != kvindex.TrustIncomplete {
			t.Errorf("the index has %v, want incomplete", got)
		}
		e.publish(t, true, cleared)
		b.want("cleared", 0, Live, kvindex.TrustExact)
	})
}

func TestSubscriber_QuietPublisherIsProbed(t *testing.T) {
	e := &fakeEngine{}
	e.answer = e.whole
	underFakeTime(t, e, true, func(b *bench) {
		b.want("empty history", 0, Live, kvindex.TrustRecovering)
		b.wait(time.Second)
		b.want("confirmed", 0, Live, kvindex.TrustExact)
		e.publish(t, true, block(0))
		e.publish(t, false, block(1)) // lost, and nothing follows
		b.want("blind", 1, Live, kvindex.TrustExact)
		b.wait(40 * time.Second)
		b.want("probed", 2, Live, kvindex.TrustExact)
	})
}

func TestSubscriber_RedialsWithGrowingPauses(t *testing.T) {
	e := &fakeEngine{down: true}
	underFakeTime(t, e, true, func(b *bench) {
		<-b.m.Ready() // the first attempt has failed
		b.wait(time.Minute)
		e.mu.Lock()
		defer e.mu.Unlock()
		if n := len(e.dials); n < 12 || n > 40 {
			t.Errorf("%d dials in a minute, want about 17", n)
		}
		for i := 1; i < len(e.dials); i++ {
			d := e.dials[i].Sub(e.dials[i-1])
			if d > 8*time.Second || d < 100*time.Millisecond {
				t.Errorf("pause %d is %s", i, d)
			}
		}
		if st := b.m.Status()[0]; st.Error == "" || st.Trust != "silent" {
			t.Errorf("status %+v", st)
		}
	})
}

func TestSubscriber_DisconnectedStateIsDroppedInTime(t *testing.T) {
	e := &fakeEngine{}
	e.answer = e.whole
	e.publish(t, false, block(0))
	underFakeTime(t, e, true, func(b *bench) {
		b.wait(time.Second)
		b.want("up", 1, Live, kvindex.TrustExact)
		e.mu.Lock()
		e.down = true
		_ = e.live.Close()
		e.mu.Unlock()
		b.want("down", 1, Connecting, kvindex.TrustRecovering)
		b.wait(29 * time.Second)
		b.want("still down", 1, Connecting, kvindex.TrustRecovering)
		b.wait(5 * time.Second)
		b.want("too long", 0, Connecting, kvindex.TrustIncomplete)
	})
}

// An event that may have been a removal drops the state; one that may have
// been a store costs the exactness only.
func TestSubscriber_FaultyEvents(t *testing.T) {
	e := &fakeEngine{}
	e.answer = e.whole
	underFakeTime(t, e, true, func(b *bench) {
		e.publish(t, true, block(0), stored(m{"block_size": 0}))
		b.want("bad store", 1, Stale, kvindex.TrustIncomplete)
		e.publish(t, true, cleared, block(0))
		b.want("cleared", 1, Live, kvindex.TrustExact)
		e.publish(t, true, m{"type": "BlockRemoved", "block_hashes": a{"?"}})
		b.want("bad removal", 0, Stale, kvindex.TrustIncomplete)
		e.publish(t, true, cleared, block(0), m{"type": "BlockMoved"})
		b.want("unknown type", 1, Live, kvindex.TrustExact)
		e.live.put(4, []byte{0xc1})
		b.want("garbage", 0, Stale, kvindex.TrustIncomplete)
		e.publish(t, false)
		e.publish(t, true, cleared)
		b.want("cleared again", 0, Live, kvindex.TrustExact)
	})
}

// What is held back during a replay is bounded; what does not fit is a gap.
func TestSubscriber_HeldBatchesAreBounded(t *testing.T) {
	e := &fakeEngine{}
	var hold chan struct{} // made under fake time, so that waiting for it is
	e.answer = func(s *fakeStream, from uint64) {
		if hold == nil {
			hold = make(chan struct{})
			<-hold
		}
		e.whole(s, from)
	}
	underFakeTime(t, e, true, func(b *bench) {
		big := m{"type": "BlockMoved", "padding": make([]byte, 30<<20)}
		e.publish(t, true, block(0), big)
		e.publish(t, true, block(1), big)
		e.publish(t, true, block(2), big) // over 64 MiB
		synctest.Wait()
		if got := counter(t, b.reg, "warmpath_events_frames_total", "dropped"); got != 1 {
			t.Errorf("%v messages dropped, want 1", got)
		}
		close(hold)
		b.want("after the replay", 3, Live, kvindex.TrustExact)
	})
}

// counter returns the value of a counter with one label value.
func counter(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			if f.GetName() == name && len(s.GetLabel()) == 1 && s.GetLabel()[0].GetValue() == label {
				return s.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no counter %s{%s}", name, label)
	return 0
}

func TestSubscriber_BlindEngineIsNeverExact(t *testing.T) {
	e := &fakeEngine{}
	e.answer = e.whole
	underFakeTime(t, e, true, func(b *bench) {
		e.publish(t, true, a{"BlockStored", a{7}, nil, a{1}, 1, nil, "GPU"})
		b.want("blind", 1, Live, kvindex.TrustIncomplete)
		if !b.m.Status()[0].Blind {
			t.Error("status does not say blind")
		}
	})
}

// switching is a source that changes from one pool to another.
type switching struct {
	mu   sync.Mutex
	pool *pool.Pool
}

func (s *switching) Snapshot() *pool.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool.Snapshot()
}

func TestManager_FollowsThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &fakeEngine{}
		e.answer = e.whole
		e.publish(t, false, block(0))
		index, err := kvindex.New(kvindex.Config{})
		if err != nil {
			t.Fatal(err)
		}
		reg := prometheus.NewRegistry()
		mgr, err := New(DefaultConfig(), index, kvindex.NewHasher(1), e, slog.New(slog.DiscardHandler), reg, rand.New(rand.NewPCG(1, 1)))
		if err != nil {
			t.Fatal(err)
		}
		spec := func(name, port string, models ...string) pool.Spec {
			return pool.Spec{Name: name, Address: "127.0.0.1:" + port, Models: models, Events: "tcp://127.0.0.1:1" + port, Replay: "tcp://127.0.0.1:2" + port}
		}
		first := staticPool(spec("a", "100", "m"), spec("b", "101", "m"), spec("c", "102"))
		second := staticPool(spec("a", "100", "m"), spec("b", "103", "m"))
		src := &switching{pool: first}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- mgr.Run(ctx, src) }()
		synctest.Wait()

		names := func() (out []string) {
			for _, s := range mgr.Status() {
				out = append(out, s.Endpoint+" "+s.Events)
			}
			return out
		}
		series := func() int {
			n := 0
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "warmpath_events_publisher_trust" {
					n = len(f.GetMetric())
				}
			}
			return n
		}
		// c's models are not known, so that its blocks have no root yet.
		if got := names(); len(got) != 2 || got[0] != "a tcp://127.0.0.1:1100" || got[1] != "b tcp://127.0.0.1:1101" {
			t.Errorf("publishers %q", got)
		}
		if n := index.Stats().Held; n != 2 {
			t.Errorf("%d blocks held by two publishers, want 2", n)
		}
		if n := series(); n != 2 {
			t.Errorf("%d trust series, want 2", n)
		}
		dials := len(e.dials)

		src.mu.Lock()
		src.pool = second
		src.mu.Unlock()
		probing, stop := context.WithCancel(ctx)
		go func() { _ = first.Run(probing) }() // its first probe supersedes the snapshot
		<-first.Probed()
		stop()
		synctest.Wait()
		if got := names(); len(got) != 2 || got[0] != "a tcp://127.0.0.1:1100" || got[1] != "b tcp://127.0.0.1:1103" {
			t.Errorf("publishers after the change %q", got)
		}
		// Another pool is another State, so that even a is a new subject.
		if n := len(e.dials) - dials; n != 2 {
			t.Errorf("%d dials, want 2", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if st := index.Stats(); st.Held != 0 || len(st.Publishers) != 0 {
			t.Errorf("the index still holds %+v", st)
		}
		if n := series(); n != 0 {
			t.Errorf("%d trust series are left", n)
		}
	})
}

func TestConfig_ValidateNamesEveryFault(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults are faulty: %v", err)
	}
	err := Config{Probe: -1, BackoffMin: time.Second, BackoffMax: time.Millisecond}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	const want = `replay_timeout: 0s is too short; use a duration of 1ms or more, such as 2s
quiet: 0s is too short; use a duration of 1ms or more, such as 2s
give_up: 0s is too short; use a duration of 1ms or more, such as 2s
confirm: 0s is too short; use a duration of 1ms or more, such as 2s
probe: -1ns is too short; use 100ms or more, or 0 to switch probes off
backoff_max: 1ms is less than backoff_min, 1s; use a longer duration
max_frame_bytes: 0 would cut ordinary batches; use 65536 or more
max_held_bytes: 0 is too small to bridge a replay; use 1048576 or more
replays: 0 allows no replay; use 1 or more`
	if err.Error() != want {
		t.Errorf("got:\n%s\nwant:\n%s", err, want)
	}
}

// A publisher whose blocks wait for a parent that nobody knows is incomplete as
// long as it holds them, however complete its history is.
func TestSubscriber_BlocksThatWaitAreIncomplete(t *testing.T) {
	e := &fakeEngine{}
	e.answer = e.whole
	underFakeTime(t, e, true, func(b *bench) {
		b.wait(time.Second)
		e.publish(t, true, block(0))
		b.want("placed", 1, Live, kvindex.TrustExact)
		e.publish(t, true, block(2))
		b.want("waiting", 1, Live, kvindex.TrustIncomplete)
		b.wait(time.Minute) // probed meanwhile
		b.want("probed", 1, Live, kvindex.TrustIncomplete)
		if got := b.index.Stats().Publishers[0].Trust; got != kvindex.TrustIncomplete {
			t.Errorf("the index has %v, want incomplete", got)
		}
		e.publish(t, true, removed(2))
		b.want("removed", 1, Live, kvindex.TrustExact)
		e.publish(t, true, block(3))
		b.want("waiting again", 1, Live, kvindex.TrustIncomplete)
		e.publish(t, true, block(1), block(2))
		b.want("its parent came", 4, Live, kvindex.TrustExact)
	})
}
