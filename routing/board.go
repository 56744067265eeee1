package routing

import (
	"math"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// row is what decisions read of one endpoint's state, at one instant. The
// first eight words are what prefix-cache looks at of every endpoint: they share
// a cache line.
type row struct {
	// cools is when a cool-down ends, drains when the prefill work sent there
	// will be done, both in Unix nanoseconds; the least number if there never
	// was any.
	cools, drains int64
	// until is when the metrics below no longer count, in Unix nanoseconds; the
	// largest number if none do.
	until int64
	// requests is how many requests the endpoint works on: own ones, and those
	// of others as of the last read.
	requests float64
	// The engine's own queue takes queue + perPrompt × the prompt's tokens, in
	// seconds: the time until its cache has room for that prompt behind those who
	// wait, below 0 if it has, or an estimate that does not depend on the prompt.
	// Both are 0 if unknown.
	queue, perPrompt float32
	// perToken is how many seconds the prefill of one token takes, 0 if that was
	// not learned.
	perToken float64
	// over is by how many tokens what the engine has computed since it started
	// exceeds its cache, below 0 if it does not, minus infinity if unknown.
	over float64
	// turnover is the share of its cache that is replaced in a second, at the
	// scene's base time.
	turnover float64

	// inFlight is the number of requests that this router has in flight there.
	inFlight int64
	turn     uint64
	// name is a hash of the endpoint's name.
	name  uint64
	faith float64
	// load is what the engine's metrics said, nil if they never did, and fresh
	// which of it still counts.
	load  *pool.Load
	fresh pool.Field
	// Rows of 128 bytes begin on a cache line.
	_ [20]byte
}

// read fills r with the state of e at now. base is the time of r.turnover.
func (r *row) read(e *pool.Endpoint, now, base time.Time) {
	s := e.State
	*r = row{
		cools: math.MinInt64, drains: math.MinInt64, until: math.MaxInt64, over: math.Inf(-1),
		inFlight: s.InFlight(), turn: s.Turn(), name: xxh3.HashString(e.Name), faith: s.Faith(), load: s.Load(),
	}
	r.requests = float64(r.inFlight)
	if t := s.Cools(); t != 0 {
		r.cools = t
	}
	if t := s.Drains(); t != 0 {
		r.drains = t
	}
	l := r.load
	if r.fresh = l.Fresh(now); r.fresh == 0 {
		return
	}
	r.until = l.Until.UnixNano()
	if r.fresh&pool.FieldRequests != 0 {
		r.requests += max(0, l.Running+l.Waiting-float64(l.InFlight))
	}
	const queue = pool.FieldRequests | pool.FieldLatency
	if r.fresh&(queue|pool.FieldUnanswered) == queue && l.Waiting > 0 {
		r.queue = float32(l.Waiting * (l.PrefillSeconds + l.DecodeSeconds) / max(1, l.Running))
	}
	if r.fresh&pool.FieldMemory != 0 && l.Capacity > 0 {
		full := fullShare * l.Capacity
		release := l.StaySeconds / full
		r.queue = float32((l.Demand + float64(s.Placed()-l.Placed) - full) * release)
		r.perPrompt = float32(release)
	}
	if r.fresh&pool.FieldPrefillRate != 0 {
		r.perToken = 1 / max(1, l.PrefillRate)
	}
	if r.fresh&pool.FieldCapacity != 0 && l.Capacity > 0 {
		r.over = max(l.Computed, float64(s.Placed())) - l.Capacity
		r.turnover = s.Churn(base) / l.Capacity
	}
}

// fullShare is the share of its cache that an engine fills with running
// requests: it admits a prompt only when all of it fits, and answers grow. Found by
// simulation, where .85 and .95 are as good.
const fullShare = 0.9

// count is read for decisions that look at nothing but requests in flight.
func (r *row) count(e *pool.Endpoint) {
	r.name, r.inFlight, r.turn = xxh3.HashString(e.Name), e.State.InFlight(), e.State.Turn()
}

// backlog returns how long the prefill work sent there will still take, in
// seconds.
func (sc *scene) backlog(r *row) float64 {
	return float64(max(r.drains, sc.ns)-sc.ns) / 1e9
}

// board keeps the rows of all endpoints of a snapshot, so that a decision over
// a thousand of them reads one piece of memory and not a thousand. A row is
// read again when its state has changed: requests, loads and failures change
// a few between two decisions. The router's lock guards it.
type board struct {
	snap *pool.Snapshot
	// rows and endpoints are by endpoint id; endpoints is nil where there is none.
	rows      []row
	endpoints []*pool.Endpoint
	// seen is for [pool.Snapshot.AppendChanged], changed its result.
	seen    []uint32
	changed []kvindex.EndpointID
	// moved is the result of [pool.Snapshot.AppendMoved].
	moved []kvindex.EndpointID
	// base is the time of all rows' turnover.
	base time.Time
}

// rebase is how far from base a decision may be: what a rate of churn has
// decayed to by then can still be told.
const rebase = 5 * time.Minute

// begin makes sc, whose settings are set, a scene at now. It is called once a
// decision, before sync.
func (b *board) begin(sc *scene, now time.Time) {
	cfg := &sc.settings.cfg.PrefixCache
	if d := now.Sub(b.base); d < -rebase || d > rebase {
		b.base, b.snap = now, nil
	}
	sc.limit = math.Inf(1)
	sc.now, sc.ns, sc.base = now, now.UnixNano(), b.base
	sc.request, sc.perToken = cfg.RequestCost.Seconds(), 1/cfg.PrefillRate
	sc.reuse = cfg.ReuseHorizon.Seconds() * pool.ChurnDecay(now.Sub(b.base))
}

// sync makes the rows those of snap.
func (b *board) sync(snap *pool.Snapshot, now time.Time) {
	if more := snap.IDs() - len(b.rows); more > 0 {
		b.rows = append(b.rows, make([]row, more)...)
		b.endpoints = append(b.endpoints, make([]*pool.Endpoint, more)...)
		b.seen = append(b.seen, make([]uint32, more)...)
	}
	b.changed = snap.AppendChanged(b.changed[:0], b.seen) // before the states are read
	if b.snap != snap {
		b.follow(snap, now)
	}
	for _, id := range b.changed {
		if e := b.endpoints[id]; e != nil {
			b.rows[id].read(e, now, b.base)
		}
	}
}

// follow goes over to another snapshot. What it costs is in proportion to the
// endpoints that differ, so that no request pays for a fleet of which one
// endpoint has changed.
func (b *board) follow(snap *pool.Snapshot, now time.Time) {
	old := b.snap
	b.snap = snap
	if old != nil {
		if moved, ok := snap.AppendMoved(b.moved[:0], old); ok {
			b.moved = moved
			for _, id := range moved {
				b.put(id, snap.Endpoint(id), now)
			}
			return
		}
	}
	for id := range b.endpoints {
		if old == nil {
			b.endpoints[id] = nil // every row is read
		}
		b.put(kvindex.EndpointID(id), snap.Endpoint(kvindex.EndpointID(id)), now)
	}
}

// put makes e, nil for none, the endpoint with an id.
func (b *board) put(id kvindex.EndpointID, e *pool.Endpoint, now time.Time) {
	old := b.endpoints[id]
	b.endpoints[id] = e // the old one must not be kept alive
	if e != nil && (old == nil || old.State != e.State) {
		b.rows[id].read(e, now, b.base)
	}
}
