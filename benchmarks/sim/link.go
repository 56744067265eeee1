package sim

import (
	"fmt"
	"time"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/workload"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

const (
	blockTokens = workload.BlockTokens
	// modelName is the base model of every endpoint.
	modelName = "sim"
	// busyInterval and idleInterval are how often the router reads the metrics
	// of an engine, with and without work: pool.LoadConfig's default.
	idleInterval = time.Second
	busyInterval = idleInterval / 4
)

// link is what one replica learns of one endpoint: its KV events and its
// metrics.
type link struct {
	hasher kvindex.Hasher
	writer *kvindex.Writer // nil: the chooser keeps no index
	state  *pool.State
	wire   *events.Applier // nil without Scenario.Wire
	meter  *pool.Meter

	// queue are batches on their way, in the order in which they are applied.
	queue []batch
	// missing are batches that were lost and not yet noticed.
	missing []batch
	// last is when the last batch in queue arrives: batches stay in order.
	last time.Duration

	contents []kvindex.ContentHash
}

// batch is the events of one step.
type batch struct {
	events  []engine.Event
	payload []byte
	// at is when it is applied.
	at time.Duration
	// gap: batches before this one are lost for good. repaired: they were lost
	// and have been sent again.
	gap, repaired bool
}

// publish sends an endpoint's events to all replicas.
func (r *run) publish(at int, evs []engine.Event) {
	b := batch{events: evs}
	if r.Wire {
		b = batch{payload: engine.AppendBatch(nil, engine.FormatMap, float64(r.now)/1e9, evs, 0)}
	}
	for replica := range r.Replicas {
		n := at*r.Replicas + replica
		l := &r.links[n]
		if l.writer == nil {
			continue
		}
		if r.Lag == 0 && r.Loss == 0 {
			l.apply(b)
			continue
		}
		r.carry(n, l, b)
	}
}

// carry takes a batch over the link, or loses it.
func (r *run) carry(n int, l *link, b batch) {
	if r.Loss > 0 && r.random.Float64() < r.Loss {
		l.missing = append(l.missing, b)
		return
	}
	arrives := max(l.last, r.now+r.Lag)
	switch {
	case len(l.missing) == 0:
	case r.Replay:
		r.agenda.add(arrives, notice, n)
		arrives += 2 * r.Lag
		b.repaired = true
		for _, m := range l.missing {
			m.at = arrives
			l.queue = append(l.queue, m)
			r.agenda.add(arrives, deliver, n)
		}
	default:
		b.gap = true
	}
	l.missing = l.missing[:0]
	l.last, b.at = arrives, arrives
	l.queue = append(l.queue, b)
	r.agenda.add(arrives, deliver, n)
}

// deliver applies the next batch. It may be for nothing: what is on its way
// when an endpoint crashes does not arrive.
func (l *link) deliver(now time.Duration) {
	if len(l.queue) == 0 || l.queue[0].at > now || l.writer == nil {
		return
	}
	b := l.queue[0]
	l.queue = l.queue[1:]
	switch {
	case b.gap:
		l.writer.Clear()
		l.writer.SetTrust(kvindex.TrustIncomplete)
	case b.repaired:
		l.writer.SetTrust(kvindex.TrustExact)
	}
	l.apply(b)
}

func (l *link) trust(t kvindex.Trust) {
	if l.writer != nil {
		l.writer.SetTrust(t)
	}
}

// close forgets what is on its way from an endpoint that crashed. Its Writer
// belongs to the chooser.
func (l *link) close() { l.queue, l.missing, l.writer, l.last = nil, nil, nil, 0 }

// apply applies a batch.
func (l *link) apply(b batch) {
	if l.wire != nil {
		if !l.wire.Apply(b.payload) {
			panic("sim: the decoder does not understand the engine")
		}
		return
	}
	for _, e := range b.events {
		switch e := e.(type) {
		case engine.BlockStored:
			l.store(&e)
		case engine.BlockRemoved:
			l.writer.Remove(e.Hashes, tierOf(e.Medium), 0)
		case engine.AllBlocksCleared:
			l.writer.Clear()
		default:
			panic(fmt.Sprintf("sim: event %T", e))
		}
	}
}

func (l *link) store(e *engine.BlockStored) {
	s := kvindex.Stored{Parent: e.Parent, HasParent: !e.Root, Names: e.Hashes, Tier: tierOf(e.Medium)}
	if s.Tier == kvindex.TierDevice { // other tiers name blocks that are known
		l.contents = l.contents[:0]
		for _, n := range e.Hashes {
			l.contents = append(l.contents, contentOf(n))
		}
		s.Contents = l.contents
		if e.Root {
			s.Root = l.hasher.Root(kvindex.Scope{Model: modelName, Adapter: e.LoRAName, BlockSize: e.BlockSize})
		}
		l.state.ObserveBlockSize(e.BlockSize)
	}
	l.writer.Store(s)
}

func tierOf(medium string) kvindex.Tier {
	if medium == engine.MediumCPU {
		return kvindex.TierHost
	}
	return kvindex.TierDevice
}

// readMetrics has replica and endpoint of link n meet once, and again when the
// interval has passed.
func (r *run) readMetrics(n int) {
	at := n / r.Replicas
	l, e := &r.links[n], &r.endpoints[at]
	next := idleInterval
	if l.meter != nil && !e.down {
		now := r.time()
		r.buf = e.appendMetrics(r.buf[:0], now)
		load, err := l.meter.Read(now, r.buf, l.state)
		if err != nil {
			panic(err)
		}
		if load.InFlight > 0 || load.Running+load.Waiting > 0 {
			next = busyInterval
		}
	}
	next += time.Duration(r.random.Int64N(int64(next)/10+1)) - next/10
	r.agenda.add(r.now+next, read, n)
}
