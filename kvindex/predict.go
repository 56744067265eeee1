package kvindex

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// expected is the holder of the blocks that requests in flight will leave on
// an endpoint. It exists while the endpoint has an open publisher.
type expected struct {
	slot  uint32
	ranks atomic.Pointer[[]uint32] // slots of the endpoint's publishers

	mu sync.Mutex // guards what follows; before segment locks
	// live is in the order of making, which is the order of expiry.
	live     []prediction
	pairs    int // mask bits set
	capacity int // blocks kept without a deadline; 0: kept until the deadline
	closed   bool
}

// prediction is one request's blocks: a prefix of each of some segments.
type prediction struct {
	request  uint64
	deadline int64 // Unix ns
	parts    []part
}

// part is the first n blocks of a segment.
type part struct {
	id uint32
	n  uint8
}

const never = 1<<63 - 1

// join makes a publisher one of its endpoint's ranks. The caller holds mu.
func (ix *Index) join(w *Writer) {
	e := ix.endpoints[w.pub.Endpoint]
	if e == nil {
		e = &expected{}
		var rec *record
		e.slot, rec = ix.records.open(Publisher{Endpoint: w.pub.Endpoint})
		e.ranks.Store(new([]uint32))
		rec.expected.Store(e)
		ix.endpoints[w.pub.Endpoint] = e
	}
	ranks := append(slices.Clone(*e.ranks.Load()), w.slot)
	e.ranks.Store(&ranks)
}

// leave undoes join. The caller holds world for reading and mu.
func (ix *Index) leave(w *Writer) {
	e := ix.endpoints[w.pub.Endpoint]
	ranks := slices.DeleteFunc(slices.Clone(*e.ranks.Load()), func(s uint32) bool { return s == w.slot })
	e.ranks.Store(&ranks)
	if len(ranks) > 0 {
		return
	}
	delete(ix.endpoints, w.pub.Endpoint)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for len(e.live) > 0 {
		ix.dropPrediction(e, 0)
	}
	ix.cleared.Add(1)
	ix.records.free = append(ix.records.free, e.slot)
}

// endpoint returns an endpoint's predictions, locked; nil if it has no open
// publisher.
func (ix *Index) endpoint(id EndpointID) *expected {
	ix.mu.Lock()
	e := ix.endpoints[id]
	ix.mu.Unlock()
	if e == nil {
		return nil
	}
	if e.mu.Lock(); e.closed {
		e.mu.Unlock()
		return nil
	}
	return e
}

// Approximate says how an endpoint's predictions end. With 0 blocks, which is
// the default, after the configured time. With more they stay and the oldest
// give way beyond that many blocks: an endpoint without events is then taken
// to hold what was sent to it last.
func (ix *Index) Approximate(id EndpointID, blocks int) {
	ix.world.RLock()
	defer ix.world.RUnlock()
	if e := ix.endpoint(id); e != nil {
		e.capacity = max(blocks, 0)
		ix.shrink(e)
		e.mu.Unlock()
	}
}

// Predict records that an endpoint will soon hold a chain, because a request
// is on its way there. It reports false where the endpoint has no open
// publisher. Any number of goroutines may call it.
func (ix *Index) Predict(id EndpointID, request uint64, chain []BlockHash, now time.Time) bool {
	ix.world.RLock()
	e := ix.endpoint(id)
	if e == nil {
		ix.world.RUnlock()
		return false
	}
	ix.expire(e, now)
	p := prediction{request: request, deadline: now.Add(ix.ttl).UnixNano()}
	if e.capacity > 0 {
		p.deadline = never
	}
	ix.expect(e, chain, &p)
	e.live = append(e.live, p)
	ix.shrink(e)
	e.mu.Unlock()
	ix.world.RUnlock()
	ix.maintain()
	return true
}

// Drop takes back what Predict recorded for a request.
func (ix *Index) Drop(id EndpointID, request uint64) bool {
	ix.world.RLock()
	defer ix.world.RUnlock()
	e := ix.endpoint(id)
	if e == nil {
		return false
	}
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.live, func(p prediction) bool { return p.request == request })
	if i < 0 {
		return false
	}
	ix.dropPrediction(e, i)
	return true
}

// Move gives a request's prediction to another endpoint, where the request
// went in the end.
func (ix *Index) Move(request uint64, from, to EndpointID, now time.Time) bool {
	chain := ix.predicted(from, request)
	if chain == nil || !ix.Drop(from, request) {
		return false
	}
	return ix.Predict(to, request, chain, now)
}

// predicted returns the chain of a prediction.
func (ix *Index) predicted(id EndpointID, request uint64) (chain []BlockHash) {
	ix.world.RLock()
	defer ix.world.RUnlock()
	e := ix.endpoint(id)
	if e == nil {
		return nil
	}
	defer e.mu.Unlock()
	for _, p := range e.live {
		if p.request != request {
			continue
		}
		for _, part := range p.parts {
			mu := ix.lock(part.id)
			mu.Lock()
			h := ix.slab.head(part.id)
			for _, b := range ix.hashes(span(h[hSpan]))[:part.n] {
				chain = append(chain, BlockHash(b))
			}
			mu.Unlock()
		}
		break
	}
	return chain
}

// expire drops predictions whose time is over.
func (ix *Index) expire(e *expected, now time.Time) {
	for len(e.live) > 0 && e.live[0].deadline <= now.UnixNano() {
		ix.dropPrediction(e, 0)
	}
}

// shrink drops the oldest predictions beyond the capacity.
func (ix *Index) shrink(e *expected) {
	for e.capacity > 0 && e.pairs > e.capacity && len(e.live) > 0 {
		ix.dropPrediction(e, 0)
	}
}

// expect marks a chain's blocks, making those that nobody holds yet. The
// marks keep the segments behind it in place.
func (ix *Index) expect(e *expected, chain []BlockHash, p *prediction) {
	var parent *head
	var parentID uint32
	for len(chain) > 0 {
		var id uint32
		var version uint64
		if parent == nil {
			id, version = ix.segment(chain[0], 0, len(chain))
		} else {
			mu := ix.lock(parentID)
			mu.Lock()
			s := span(parent[hSpan])
			n := int(p.parts[len(p.parts)-1].n)
			if n == s.len() && n < segmentBlocks && !ix.mapped(chain[0]) {
				// The chain goes on in this segment.
				more := ix.appendExpected(parent, chain)
				ix.mark(e, parent, n+more, p)
				p.parts[len(p.parts)-1].n += uint8(more)
				mu.Unlock()
				chain = chain[more:]
				continue
			}
			id, version = ix.segment(chain[0], BlockHash(ix.hashes(s)[n-1]), len(chain))
			mu.Unlock()
		}
		yield(gapFound)
		h := ix.slab.head(id)
		mu := ix.lock(id)
		mu.Lock()
		if h[hVersion] != version {
			mu.Unlock()
			continue
		}
		n := ix.common(h, chain)
		ix.mark(e, h, n, p)
		mu.Unlock()
		p.parts = append(p.parts, part{id, uint8(n)})
		parent, parentID, chain = h, id, chain[n:]
	}
}

// appendExpected adds blocks to a locked segment up to its end or to a block
// that exists, and returns how many. There is at least one.
func (ix *Index) appendExpected(h *head, chain []BlockHash) int {
	old := span(h[hSpan]).len()
	n := 1
	for n < min(len(chain), segmentBlocks-old) && !ix.mapped(chain[n]) {
		n++
	}
	s := ix.room(h, old+n)
	hashes, names := ix.hashes(s), ix.names(s)
	for i, b := range chain[:n] {
		store(&hashes[old+i], uint64(b))
		store(&names[old+i], 0)
	}
	store(&h[hLast], uint64(chain[n-1]))
	atomic.StoreUint64(&h[hSpan], uint64(s.withLen(old+n).withAge(ix.age())))
	return n
}

// mark makes the first n blocks of a locked segment expected.
func (ix *Index) mark(e *expected, h *head, n int, p *prediction) {
	k := makeKey(e.slot, kindHint)
	en, ok := ix.entry(h, k)
	if !ok {
		en = ix.addEntry(h, k)
	}
	store(en.second, max(*en.second, uint64(p.deadline)))
	e.set(ix, en, *en.held|(1<<n-1))
}

func (e *expected) set(ix *Index, en entry, mask uint64) {
	by := bits.OnesCount64(mask) - bits.OnesCount64(*en.held)
	store(en.held, mask)
	e.pairs += by
	ix.held.Add(int64(by))
}

// dropPrediction removes a prediction and takes back the marks that no other
// of the endpoint needs.
func (ix *Index) dropPrediction(e *expected, i int) {
	gone := e.live[i]
	e.live = slices.Delete(e.live, i, i+1)
	for _, part := range gone.parts {
		n, deadline := uint8(0), int64(0)
		for _, other := range e.live {
			for _, o := range other.parts {
				if o.id == part.id {
					n, deadline = max(n, o.n), max(deadline, other.deadline)
				}
			}
		}
		mu := ix.lock(part.id)
		mu.Lock()
		h := ix.slab.head(part.id)
		if en, ok := ix.entry(h, makeKey(e.slot, kindHint)); ok {
			old := *en.held
			e.set(ix, en, 1<<n-1)
			store(en.second, uint64(deadline))
			if took := old &^ *en.held; took != 0 {
				ix.settle(part.id, h, took)
			}
		}
		mu.Unlock()
	}
}
