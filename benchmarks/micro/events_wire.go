package micro

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/zmtp"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// fleetFigures tell whether one process keeps up with many publishers.
type fleetFigures struct {
	Publishers int `json:"publishers"`
	// IdleKB is the growth of the heap and the stacks for each idle publisher:
	// the subscriber, and the fake engine's end of the connection.
	IdleKB float64 `json:"idle_kb_per_publisher"`
	// Blocks stored and removed in all and a second, and the publishers' side
	// of it included, the processors that it took.
	BlocksPerSecond float64 `json:"blocks_per_second"`
	Processors      float64 `json:"processors"`
	Missed          uint64  `json:"missed_batches"`
	// DrainMillis is how long the last events took to be applied.
	DrainMillis float64 `json:"drain_ms"`
}

const (
	latencySamples = 1000
	fleetSize      = 1000
	fleetRate      = 200_000 // blocks a second in all
	fleetTime      = 5 * time.Second
)

// endpointOf names publisher i at a PUB socket.
func endpointOf(i int, pub *zmtp.Pub) pool.Spec {
	return pool.Spec{Name: fmt.Sprint("e", i), Address: fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), Models: []string{"m"}, Events: pub.Endpoint()}
}

// measureLatency publishes one block at a time and asks for it until it is
// there.
func measureLatency(ctx context.Context) (l latencyFigures, err error) {
	pub, err := zmtp.ListenPub(ctx, "tcp://127.0.0.1:0")
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, pub.Close()) }()
	cfg := events.DefaultConfig()
	f, err := follow(ctx, cfg, events.ZMQ(cfg), []pool.Spec{endpointOf(0, pub)})
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	if err := pub.WaitSubscribers(ctx, 1); err != nil {
		return l, err
	}
	g := generator{format: engine.FormatMap, random: rand.New(rand.NewPCG(4, 4))}
	root := f.hasher.Root(kvindex.Scope{Model: "m", BlockSize: eventBlock})
	var took []time.Duration
	var ms []kvindex.Match
	for range latencySamples {
		e := g.store(4)
		chain := kvindex.AppendChain(nil, root, f.hasher.AppendContents(nil, e.Tokens, eventBlock))
		frames := g.frames([]engine.Event{e})
		began := time.Now()
		if err := pub.Send(frames...); err != nil {
			return l, err
		}
		for {
			if ms = f.index.Match(ms[:0], chain, began, nil); len(ms) == 1 && ms[0].Device == 4 {
				break
			}
			if time.Since(began) > 10*time.Second {
				return l, errors.New("an event never arrived")
			}
			pause(ctx, 20*time.Microsecond) // spinning would keep the receivers from running
		}
		took = append(took, time.Since(began))
		pause(ctx, time.Millisecond) // an engine's step, at the least
	}
	us := sortedMicros(took)
	return latencyFigures{len(us), percentile(us, 0.5), percentile(us, 0.99)}, nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// settledMemory is what the heap and the stacks take after a collection.
func settledMemory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// measureFleet follows many publishers at once over loopback.
func measureFleet(ctx context.Context) (l fleetFigures, err error) {
	l.Publishers = fleetSize
	pubs := make([]*zmtp.Pub, fleetSize)
	specs := make([]pool.Spec, fleetSize)
	for i := range pubs {
		if pubs[i], err = zmtp.ListenPub(ctx, "tcp://127.0.0.1:0"); err != nil {
			return l, err
		}
		defer pubs[i].Close()
		specs[i] = endpointOf(i, pubs[i])
	}
	before := settledMemory()
	cfg := events.DefaultConfig()
	f, err := follow(ctx, cfg, events.ZMQ(cfg), specs)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	for _, p := range pubs {
		if err := p.WaitSubscribers(ctx, 1); err != nil {
			return l, err
		}
	}
	l.IdleKB = float64(settledMemory()-before) / 1024 / fleetSize

	// Batches are written in advance, so that their making is not measured: of
	// 16 blocks stored and as many removed.
	rounds := int(fleetRate*fleetTime.Seconds()) / (32 * fleetSize)
	frames := make([][][][]byte, fleetSize)
	held := 0
	for i := range frames {
		g := generator{format: engine.FormatMap, random: rand.New(rand.NewPCG(5, uint64(i)))}
		for range rounds {
			evs := []engine.Event{g.store(16)}
			if g.held > 64 {
				evs = append(evs, engine.BlockRemoved{Hashes: g.evict(16), Medium: engine.MediumGPU})
			}
			frames[i] = append(frames[i], g.frames(evs))
		}
		held += g.held
	}
	runtime.GC()
	began, cpu := time.Now(), cpuTime()
	for r := range rounds {
		for i, p := range pubs {
			if err := p.Send(frames[i][r]...); err != nil {
				return l, err
			}
			due := began.Add(time.Duration(r*fleetSize+i) * fleetTime / time.Duration(rounds*fleetSize))
			if wait := time.Until(due); wait > time.Millisecond {
				pause(ctx, wait)
			}
		}
	}
	sent := time.Now()
	for {
		l.Missed = 0
		applied := 0
		for _, st := range f.manager.Status() {
			l.Missed += st.Missed
			if st.Sequenced && st.Sequence == uint64(rounds-1) {
				applied++
			}
		}
		if applied == fleetSize {
			break
		}
		if time.Since(sent) > 30*time.Second {
			return l, fmt.Errorf("%d of %d publishers never caught up", fleetSize-applied, fleetSize)
		}
		pause(ctx, 5*time.Millisecond)
	}
	l.DrainMillis = float64(time.Since(sent).Microseconds()) / 1e3
	took := time.Since(began)
	l.BlocksPerSecond = float64(rounds*32*fleetSize) / took.Seconds()
	l.Processors = (cpuTime() - cpu).Seconds() / took.Seconds()
	if got := f.index.Stats().Held; got != held {
		return l, fmt.Errorf("the index holds %d blocks, want %d", got, held)
	}
	return l, nil
}
