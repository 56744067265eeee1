package kvindex

import "sync/atomic"

// record is what a match needs to know of a holder. Slots of records are
// small and dense, unlike publisher ids; a record's words change under
// Index.mu or by the publisher's Writer.
type record struct {
	who   atomic.Uint64 // PublisherID | EndpointID<<32
	state atomic.Uint64 // incarnation | trust<<32 | groups<<40
	// generation counts the clears and the publishers that used the slot.
	generation atomic.Uint64
	// expected is set for the holder of an endpoint's predicted blocks.
	expected atomic.Pointer[expected]
}

const (
	recordsPerChunk = 256
	maxRecords      = 1 << 18
)

type recordChunk [recordsPerChunk]record

// records finds records by slot without a lock. Slot 0 is not used.
type records struct {
	chunks [maxRecords / recordsPerChunk]atomic.Pointer[recordChunk]
	n      atomic.Uint32 // slots ever used; written under Index.mu
	free   []uint32
}

func (r *records) chunk(slot uint32) *recordChunk {
	return r.chunks[slot/recordsPerChunk%(maxRecords/recordsPerChunk)].Load()
}

func (r *records) at(slot uint32) *record { return &r.chunk(slot)[slot%recordsPerChunk] }

// slot returns an unused record.
func (r *records) slot() (uint32, *record) {
	if n := len(r.free); n > 0 {
		s := r.free[0] // the one that rested longest
		r.free = r.free[1:]
		return s, r.at(s)
	}
	s := r.n.Load() + 1
	if s == maxRecords {
		panic("kvindex: more than 262,143 publishers and endpoints at once")
	}
	if c := &r.chunks[s/recordsPerChunk]; c.Load() == nil {
		c.Store(new(recordChunk))
	}
	if s == 1 {
		r.chunks[0].CompareAndSwap(nil, new(recordChunk))
	}
	r.n.Store(s)
	return s, r.at(s)
}

func (r *records) open(p Publisher) (uint32, *record) {
	slot, rec := r.slot()
	rec.generation.Add(1)
	rec.expected.Store(nil)
	rec.who.Store(uint64(p.ID) | uint64(p.Endpoint)<<32)
	rec.state.Store(uint64(p.Incarnation) | uint64(TrustSilent)<<32)
	return slot, rec
}

func (r *record) publisher() Publisher {
	who := r.who.Load()
	return Publisher{ID: PublisherID(who), Endpoint: EndpointID(who >> 32), Incarnation: uint32(r.state.Load())}
}

func (r *record) trust() Trust { return Trust(r.state.Load() >> 32) }

// groups returns how many cache groups the publisher announced.
func (r *record) groups() int { return int(r.state.Load() >> 40 & 0xff) }

// change sets the bits of state under mask.
func (r *record) change(mask, bits uint64) {
	for {
		s := r.state.Load()
		if r.state.CompareAndSwap(s, s&^mask|bits) {
			return
		}
	}
}

func (r *record) setTrust(t Trust) { r.change(0xff<<32, uint64(t)<<32) }
func (r *record) setGroups(n int)  { r.change(0xff<<40, uint64(n)<<40) }

// lower sets a trust state unless the present one is lower.
func (r *record) lower(t Trust) {
	if r.trust() > t {
		r.setTrust(t)
	}
}

func (r *record) nextGeneration() { r.generation.Add(1) }
