package micro

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// eventBlock is the block size of the event lanes.
const eventBlock = 16

// eventReport is what micro --events prints.
type eventReport struct {
	Machine string `json:"machine"`
	Commit  string `json:"commit"`
	// Streams are from raw frames in memory to the index, through the router's
	// own subscriber, on one processor; by the layout of the events.
	Streams map[string]streamFigures `json:"streams"`
	// Latency is from the publisher's send call to the first match, over
	// loopback TCP.
	Latency latencyFigures `json:"event_to_match"`
	Fleet   fleetFigures   `json:"fleet"`
}

// streamFigures are minima, and for rates maxima, over passes. Times are
// processor time of the whole process, the collector's included.
type streamFigures struct {
	StoredPerSecond float64 `json:"stored_blocks_per_second"`
	// ChurnPerSecond counts blocks stored and removed where every batch stores
	// 16 and removes 16.
	ChurnPerSecond float64 `json:"churned_blocks_per_second"`
	// WorstBatchMicros is one batch that stores a prompt of 128 blocks and
	// evicts as many, one event each.
	WorstBatchMicros float64 `json:"worst_batch_us"`
	WorstBatchBytes  int     `json:"worst_batch_bytes"`
	// AllocsPerEvent counts everything that is allocated between the
	// transport and the index.
	AllocsPerEvent float64 `json:"allocs_per_event"`
}

type latencyFigures struct {
	Samples   int     `json:"samples"`
	P50Micros float64 `json:"p50_us"`
	P99Micros float64 `json:"p99_us"`
}

// runEvents measures the event side.
func runEvents(ctx context.Context, passes int, out io.Writer) error {
	rep := eventReport{Machine: machine(), Commit: commit(), Streams: map[string]streamFigures{}}
	for _, f := range []engine.Format{engine.FormatMap, engine.FormatArray12} {
		var best streamFigures
		for range passes {
			s, err := measureStream(ctx, f)
			if err != nil {
				return fmt.Errorf("stream of %s events: %w", f, err)
			}
			if best.StoredPerSecond == 0 {
				best = s
			}
			best.StoredPerSecond = max(best.StoredPerSecond, s.StoredPerSecond)
			best.ChurnPerSecond = max(best.ChurnPerSecond, s.ChurnPerSecond)
			best.WorstBatchMicros = min(best.WorstBatchMicros, s.WorstBatchMicros)
			best.AllocsPerEvent = min(best.AllocsPerEvent, s.AllocsPerEvent)
		}
		rep.Streams[string(f)] = best
	}
	var err error
	if rep.Latency, err = measureLatency(ctx); err != nil {
		return fmt.Errorf("event to match: %w", err)
	}
	if rep.Fleet, err = measureFleet(ctx); err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(rep)
}

// follower is the event side of a router in this process.
type follower struct {
	index   *kvindex.Index
	hasher  kvindex.Hasher
	pool    *pool.Pool
	manager *events.Manager
	stop    func() error
}

// follow starts a manager on the publishers that specs name.
func follow(ctx context.Context, cfg events.Config, t events.Transport, specs []pool.Spec) (*follower, error) {
	f := &follower{hasher: kvindex.NewHasher(1)}
	var err error
	if f.index, err = kvindex.New(kvindex.Config{}); err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	pc := pool.DefaultConfig()
	pc.Static.Endpoints = specs
	f.pool = pool.New(pc, log, prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
	f.manager, err = events.New(cfg, f.index, f.hasher, t, log, prometheus.NewRegistry(), rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- f.manager.Run(ctx, f.pool) }()
	f.stop = func() error { cancel(); return <-done }
	return f, nil
}

// tape is a transport that plays frames from memory as fast as they are taken.
type tape struct {
	frames [][][]byte
	at     atomic.Int64 // the next frame
	limit  atomic.Int64 // frames that may be taken
	more   chan struct{}
	closed chan struct{}
}

func (t *tape) DialLive(context.Context, string) (events.Stream, error) { return t, nil }

func (t *tape) DialReplay(context.Context, string, [][]byte) (events.Stream, error) {
	return nil, errors.New("a tape has no replay")
}

// Recv implements [events.Stream].
func (t *tape) Recv() ([][]byte, error) {
	for {
		if n := t.at.Load(); n < t.limit.Load() {
			t.at.Store(n + 1)
			return t.frames[n], nil
		}
		select {
		case <-t.more:
		case <-t.closed:
			return nil, io.EOF
		}
	}
}

// Close implements [events.Stream].
func (t *tape) Close() error { close(t.closed); return nil }

// play lets the tape run up to frame n and waits until its last is applied.
func (t *tape) play(f *follower, n int) {
	t.limit.Store(int64(n))
	t.more <- struct{}{}
	for {
		if st := f.manager.Status(); len(st) == 1 && st[0].Sequenced && st[0].Sequence == uint64(n-1) {
			return
		}
		pause(context.Background(), 200*time.Microsecond) // cheap against what is measured
	}
}

// Frames of the stream lanes: some to warm up, those that only store, those
// that also remove, and the worst batches.
const (
	warmFrames  = 2000
	storeFrames = 20000
	churnFrames = 20000
	worstFrames = 600
)

// measureStream plays events of 16 blocks of 16 tokens, and then also the
// removal of the oldest.
func measureStream(ctx context.Context, format engine.Format) (s streamFigures, err error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t := &tape{more: make(chan struct{}, 1), closed: make(chan struct{})}
	g := generator{format: format, random: rand.New(rand.NewPCG(3, 3))}
	for range warmFrames + storeFrames {
		t.frames = append(t.frames, g.stream(0))
	}
	for range churnFrames {
		t.frames = append(t.frames, g.stream(16))
	}
	for range worstFrames {
		t.frames = append(t.frames, g.worst())
	}
	s.WorstBatchBytes = len(t.frames[len(t.frames)-1][2])
	f, err := follow(ctx, events.DefaultConfig(), t, []pool.Spec{{Name: "e", Address: "127.0.0.1:1", Models: []string{"m"}, Events: "tcp://tape:1"}})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	t.play(f, warmFrames)
	runtime.GC()
	var before, after runtime.MemStats
	began := cpuTime()
	t.play(f, warmFrames+storeFrames)
	s.StoredPerSecond = 16 * storeFrames / (cpuTime() - began).Seconds()
	runtime.ReadMemStats(&before)
	began = cpuTime()
	t.play(f, warmFrames+storeFrames+churnFrames)
	s.ChurnPerSecond = 32 * churnFrames / (cpuTime() - began).Seconds()
	runtime.ReadMemStats(&after)
	s.AllocsPerEvent = float64(after.Mallocs-before.Mallocs) / (2 * churnFrames)
	began = cpuTime()
	t.play(f, len(t.frames))
	s.WorstBatchMicros = float64((cpuTime() - began).Microseconds()) / worstFrames
	st := f.manager.Status()[0]
	if held := f.index.Stats().Held; held != g.held || st.Trust != kvindex.TrustExact.String() {
		return s, fmt.Errorf("the index holds %d blocks and is %s, want %d and exact", held, st.Trust, g.held)
	}
	return s, nil
}

// generator writes the frames of an engine.
type generator struct {
	format engine.Format
	random *rand.Rand
	seq    uint64
	name   kvindex.EngineHash
	// stored are the blocks that are held, oldest first, held their number.
	stored []kvindex.EngineHash
	held   int
}

func (g *generator) store(blocks int) engine.BlockStored {
	e := engine.BlockStored{Root: true, BlockSize: eventBlock, Medium: engine.MediumGPU, Kind: engine.KindFullAttention, ExtraKeys: make([][]string, blocks)}
	for range blocks {
		// As hashes do, names spread over all bits.
		g.name++
		e.Hashes = append(e.Hashes, kvindex.EngineHash(spread(uint64(g.name))))
	}
	for range blocks * eventBlock {
		e.Tokens = append(e.Tokens, kvindex.TokenID(g.random.IntN(128_000)))
	}
	g.stored = append(g.stored, e.Hashes...)
	g.held += blocks
	return e
}

// evict takes the n oldest blocks.
func (g *generator) evict(n int) []kvindex.EngineHash {
	names := g.stored[:n]
	g.stored = g.stored[n:]
	g.held -= n
	return names
}

// stream stores 16 blocks, and removes the n oldest.
func (g *generator) stream(n int) [][]byte {
	evs := []engine.Event{g.store(16)}
	if n > 0 {
		evs = append(evs, engine.BlockRemoved{Hashes: g.evict(n), Medium: engine.MediumGPU})
	}
	return g.frames(evs)
}

func (g *generator) worst() [][]byte {
	evs := []engine.Event{g.store(128)}
	for _, name := range g.evict(128) {
		evs = append(evs, engine.BlockRemoved{Hashes: []kvindex.EngineHash{name}, Medium: engine.MediumGPU})
	}
	return g.frames(evs)
}

func (g *generator) frames(evs []engine.Event) [][]byte {
	seq := g.seq
	g.seq++
	now := float64(time.Now().UnixMicro()) / 1e6
	return [][]byte{[]byte("kv@pod@model"), binary.BigEndian.AppendUint64(nil, seq), engine.AppendBatch(nil, g.format, now, evs, 0)}
}

func percentile(sorted []float64, p float64) float64 {
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func sortedMicros(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = float64(d.Nanoseconds()) / 1e3
	}
	slices.Sort(out)
	return out
}
