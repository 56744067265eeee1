package kvindex

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// Match is how much of a chain one publisher holds, in blocks from the
// chain's start without a gap.
type Match struct {
	Publisher
	Trust Trust
	// Device counts blocks held on the device tier, Confirmed those held on any
	// tier, Predicted those held or expected from requests in flight. A block
	// is held on a tier if it is in every cache group that the publisher
	// announced.
	Device, Confirmed, Predicted uint32
}

// scratch is what one match needs beside its result.
type scratch struct {
	// active lists the holders whose prefix goes on; place[slot] is a holder's
	// index there, valid only if that element says the same slot.
	active []active
	place  []uint32
	steps  []step
	// accounts and accountOf do the same for the masks of a rich segment.
	accounts  []account
	accountOf []uint32
	// generations and slots serve the careful way.
	generations []uint64
	slots       []uint32
	careful     bool
	// again are the blocks of segments that were removed again later, while a
	// Writer forgets.
	again map[uint32]uint64
	// next[:nextLen] are the segments that start at nextFrom and every 64
	// blocks behind, as far as a match looked ahead; a last 0 for none.
	next              [lookahead]uint32
	nextFrom, nextLen int
	// limit is the highest slot in use when the match began. A key read from an
	// extent that was given away meanwhile may say anything; what it leads to
	// is thrown away with the version, but it must not lead out of bounds.
	limit uint32
}

// active is a holder whose prefix goes on in the next segment.
type active struct {
	slot, at uint32 // at: index in the result
	ended    ended
}

// ended says which prefixes have ended: a bit each.
type ended uint8

const (
	endedDevice ended = 1 << iota
	endedConfirmed
	endedPredicted
)

// step is what a segment adds to a holder's prefixes.
type step struct {
	active
	device, confirmed, predicted uint8
}

// carefulAfter is how many times a match starts anew because publishers were
// cleared meanwhile, before it leaves out just those.
const carefulAfter = 3

// Match appends to dst one Match for every publisher that holds, or is
// expected to hold, at least the first block of chain and that want accepts
// (nil accepts all), and returns the extended slice, in no order. It stops at
// the first block that nobody holds. now decides which predictions still
// count. It takes no lock and allocates only to grow dst.
func (ix *Index) Match(dst []Match, chain []BlockHash, now time.Time, want func(Publisher) bool) []Match {
	if len(chain) == 0 {
		return dst
	}
	s := ix.pool.Get().(*scratch)
	ix.lookAhead(chain, 0, s) // before the first segment, so that the misses overlap
	h, n, version := ix.seek(chain)
	if h == nil {
		ix.pool.Put(s)
		return dst
	}
	s.limit = ix.records.n.Load()
	if slots := int(s.limit) + 1; len(s.place) < slots {
		s.place, s.accountOf = make([]uint32, slots+slots/4), make([]uint32, slots+slots/4)
	}
	base := len(dst)
	for try := 0; ; try++ {
		cleared := ix.cleared.Load()
		s.careful = try == carefulAfter
		if s.careful {
			ix.snapGenerations(s)
		}
		dst = ix.walk(dst[:base], chain, now, want, s, h, n, version)
		if ix.cleared.Load() == cleared {
			break
		}
		if s.careful {
			dst = ix.dropCleared(dst, base, s)
			break
		}
		if h, n, version = ix.seek(chain); h == nil {
			dst = dst[:base]
			break
		}
	}
	ix.pool.Put(s)
	return dst
}

// seek finds the segment that starts with the chain's first block, and how
// many blocks they have in common. What it says stands if the version is
// still the same afterwards.
func (ix *Index) seek(chain []BlockHash) (h *head, n int, version uint64) {
	for {
		id, ok := ix.segs.Load(chain[0])
		if !ok {
			return nil, 0, 0
		}
		h := ix.slab.head(id)
		v := atomic.LoadUint64(&h[hVersion])
		if n := ix.common(h, chain); n > 0 {
			return h, n, v
		}
		// Gone, or read while its blocks moved.
	}
}

// walk goes along the chain, segment by segment. h, n and version are those
// of the first.
func (ix *Index) walk(dst []Match, chain []BlockHash, now time.Time, want func(Publisher) bool, s *scratch, h *head, n int, version uint64) []Match {
	base, ns := len(dst), now.UnixNano()
	for {
		s.active, s.slots = s.active[:0], s.slots[:0]
		ix.loadAhead(s)
		l := list(atomic.LoadUint64(&h[hList]))
		yield(gapList)
		if l&listRich != 0 {
			dst = ix.beginRich(dst, h, l, n, ns, want, s)
		} else {
			dst = ix.beginPlain(dst, h, l, n, want, s)
		}
		yield(gapMask)
		if atomic.LoadUint64(&h[hVersion]) == version {
			ix.goOn(dst, base, chain, n, ns, s)
			return dst
		}
		dst = dst[:base]
		if h, n, version = ix.seek(chain); h == nil {
			return dst
		}
	}
}

// lookahead is how many segments a match looks up before it comes to them.
const lookahead = 16

// lookAhead looks up the segments of a chain that follow its first 64 blocks,
// up to one that does not exist. It takes each to have 64 blocks, as runs
// without a fork have; elsewhere the guess is wrong and costs a little. pos is
// the place in the whole chain where chain begins.
func (ix *Index) lookAhead(chain []BlockHash, pos int, s *scratch) {
	n, last := 0, uint32(1)
	for k := segmentBlocks; k < len(chain) && n < lookahead && last != 0; k += segmentBlocks {
		last, _ = ix.segs.Load(chain[k])
		s.next[n] = last
		n++
	}
	s.nextFrom, s.nextLen = pos+segmentBlocks, n
}

// loadAhead loads what the segments found by lookAhead are matched with, so
// that their cache misses overlap.
func (ix *Index) loadAhead(s *scratch) {
	found := s.next[:s.nextLen]
	if n := len(found); n > 0 && found[n-1] == 0 {
		found = found[:n-1]
	}
	for _, id := range found {
		atomic.LoadUint64(&ix.slab.head(id)[hList])
	}
	for _, id := range found {
		if l := list(atomic.LoadUint64(&ix.slab.head(id)[hList])); l.len() > 0 {
			atomic.LoadUint64(&ix.slab.extent(l.ref(), 1)[0])
		}
	}
}

// follow is [Index.seek] for what stands at pos, with the help of what
// lookAhead found.
func (ix *Index) follow(chain []BlockHash, pos int, s *scratch) (h *head, n int, version uint64) {
	i := pos - s.nextFrom
	if i < 0 || i%segmentBlocks != 0 || i/segmentBlocks >= s.nextLen {
		return ix.seek(chain[pos:])
	}
	id := s.next[i/segmentBlocks]
	if id == 0 {
		return nil, 0, 0 // missing at that instant
	}
	h = ix.slab.head(id)
	version = atomic.LoadUint64(&h[hVersion])
	if n = ix.common(h, chain[pos:]); n == 0 {
		return ix.seek(chain[pos:])
	}
	return h, n, version
}

// goOn extends the results in dst from base on along the chain, of which
// their segment covers n blocks.
func (ix *Index) goOn(dst []Match, base int, chain []BlockHash, n int, ns int64, s *scratch) {
	phase := 0 // where in a row of 64 blocks the segments begin
	for pos := n; pos < len(chain); pos += n {
		yield(gapWalk)
		var h *head
		var version uint64
		if h, n, version = ix.follow(chain, pos, s); h == nil {
			return
		}
		if len(s.active) == 0 {
			if s.activate(dst, base, uint32(pos)); len(s.active) == 0 {
				return
			}
		}
		if pos%segmentBlocks != phase {
			phase = pos % segmentBlocks
			ix.lookAhead(chain[pos:], pos, s)
			ix.loadAhead(s)
		}
		l := list(atomic.LoadUint64(&h[hList]))
		if yield(gapList); l&listRich != 0 {
			ix.goOnRich(h, l, n, ns, s)
		} else {
			ix.goOnPlain(h, l, n, s)
		}
		yield(gapMask)
		if atomic.LoadUint64(&h[hVersion]) != version {
			n = 0 // again
			continue
		}
		s.active = s.active[:0]
		for i := range s.steps {
			st := &s.steps[i]
			m := &dst[st.at]
			m.Device += uint32(st.device)
			m.Confirmed += uint32(st.confirmed)
			m.Predicted += uint32(st.predicted)
			if st.ended&endedPredicted == 0 {
				s.place[st.slot] = uint32(len(s.active))
				s.active = append(s.active, st.active)
			}
		}
		if len(s.active) == 0 {
			return
		}
	}
}

// activate lists the results that cover all of the first n blocks.
func (s *scratch) activate(dst []Match, base int, n uint32) {
	s.active = slices.Grow(s.active, len(s.slots))
	for i, slot := range s.slots {
		m := &dst[base+i]
		if m.Predicted != n || slot > s.limit {
			continue // ended, or opened during the call
		}
		e := ended(0)
		if m.Device < n {
			e |= endedDevice
		}
		if m.Confirmed < n {
			e |= endedConfirmed
		}
		s.place[slot] = uint32(len(s.active))
		s.active = append(s.active, active{slot, uint32(base + i), e})
	}
}

// ones is the number of leading blocks in a mask, at most n.
func ones(mask uint64, n int) int { return min(bits.TrailingZeros64(^mask), n) }

// begin opens a holder's result from its masks in the first segment.
func (ix *Index) begin(dst []Match, slot uint32, device, confirmed, predicted uint64, n int, want func(Publisher) bool, s *scratch) []Match {
	rec := ix.records.at(slot)
	p := rec.publisher()
	if want != nil && !want(p) {
		return dst
	}
	s.slots = append(s.slots, slot)
	return append(dst, Match{p, rec.trust(), uint32(ones(device, n)), uint32(ones(confirmed, n)), uint32(ones(predicted, n))})
}

// extend adds a segment to an active holder's prefixes.
func (s *scratch) extend(a active, device, confirmed, predicted uint64, n int) {
	st := step{active: a}
	if a.ended&endedDevice == 0 {
		d := ones(device, n)
		if st.device = uint8(d); d < n {
			st.ended |= endedDevice
		}
	}
	if a.ended&endedConfirmed == 0 {
		c := ones(confirmed, n)
		if st.confirmed = uint8(c); c < n {
			st.ended |= endedConfirmed
		}
	}
	p := ones(predicted, n)
	if st.predicted = uint8(p); p < n {
		st.ended |= endedPredicted
	}
	if p > 0 {
		s.steps = append(s.steps, st)
	}
}

// find returns an active holder.
func (s *scratch) find(slot uint32) (active, bool) {
	if slot <= s.limit {
		if i := s.place[slot]; int(i) < len(s.active) && s.active[i].slot == slot {
			return s.active[i], true
		}
	}
	return active{}, false
}

// beginPlain opens results from a segment whose every mask is (device, first
// group).
func (ix *Index) beginPlain(dst []Match, h *head, l list, n int, want func(Publisher) bool, s *scratch) []Match {
	if l&listInline != 0 {
		slot := key(atomic.LoadUint64(&h[hKey])).slot()
		if held := atomic.LoadUint64(&h[hHeld]); held&1 != 0 && slot <= s.limit && ix.records.at(slot).groups() == 1 {
			dst = ix.begin(dst, slot, held, held, held, n, want, s)
		}
	}
	if l.len() == 0 {
		return dst
	}
	es := ix.entries(l)
	s.slots = slices.Grow(s.slots, es.n)
	dst = slices.Grow(dst, es.n)
	at, base := len(s.slots), len(dst)
	k := 0
	for i := 0; i < es.n; {
		slot := es.key(i).slot()
		if slot > s.limit {
			i++
			continue
		}
		which := slot / recordsPerChunk
		var more int
		i, more = ix.records.chunk(slot).results(dst[base+k:cap(dst)], s.slots[at+k:cap(s.slots)], es.held[:es.n], es.keys, i, which, uint32(n))
		k += more
	}
	dst, s.slots = dst[:base+k], s.slots[:at+k]
	if want == nil {
		return dst
	}
	kept := 0
	for i, m := range dst[base:] {
		if want(m.Publisher) {
			dst[base+kept], s.slots[at+kept] = m, s.slots[at+i]
			kept++
		}
	}
	s.slots = s.slots[:at+kept]
	return dst[:base+kept]
}

// results opens the results of a plain segment's entries from i on, n blocks
// of it, up to the first whose record is in another chunk than which. It
// returns where it stopped and how many there are; out and slots have room. A
// shared prompt has every endpoint here, so this loop is most of its match: it
// makes no call and keeps to few variables.
func (c *recordChunk) results(out []Match, slots []uint32, held, keys []uint64, i int, which, n uint32) (next, k int) {
	all := uint64(1)<<n - 1
	for ; i < len(held); i++ {
		slot := uint32(atomic.LoadUint64(&keys[i>>1])>>(uint(i)&1<<5)) >> 8
		if slot/recordsPerChunk != which {
			break
		}
		mask := atomic.LoadUint64(&held[i])
		rec := &c[slot%recordsPerChunk]
		state := rec.state.Load()
		if mask&1 == 0 || uint8(state>>40) != 1 {
			continue
		}
		run := n
		if mask&all != all { // not without need: BSF takes several cycles
			run = uint32(bits.TrailingZeros64(^mask))
		}
		who := rec.who.Load()
		m := &out[k]
		m.ID, m.Endpoint, m.Incarnation = PublisherID(who), EndpointID(who>>32), uint32(state)
		m.Trust, m.Device, m.Confirmed, m.Predicted = Trust(state>>32), run, run, run
		slots[k] = slot
		k++
	}
	return i, k
}

func (ix *Index) goOnPlain(h *head, l list, n int, s *scratch) {
	s.steps = s.steps[:0]
	if l&listInline != 0 {
		if a, ok := s.find(key(atomic.LoadUint64(&h[hKey])).slot()); ok && ix.records.at(a.slot).groups() == 1 {
			if held := atomic.LoadUint64(&h[hHeld]); held&1 != 0 {
				s.extend(a, held, held, held, n)
			}
		}
	}
	if l.len() == 0 {
		return
	}
	es := ix.entries(l)
	for i := range es.n {
		a, ok := s.find(es.key(i).slot())
		if !ok || ix.records.at(a.slot).groups() != 1 {
			continue
		}
		if held := atomic.LoadUint64(&es.held[i]); held&1 != 0 {
			s.extend(a, held, held, held, n)
		}
	}
}

// snapGenerations notes every holder's generation before a careful walk.
func (ix *Index) snapGenerations(s *scratch) {
	n := ix.records.n.Load() + 1
	s.generations = slices.Grow(s.generations[:0], int(n))[:n]
	for slot := uint32(1); slot < n; slot++ {
		s.generations[slot] = ix.records.at(slot).generation.Load()
	}
}

// dropCleared leaves out the holders whose generation ended during a careful
// walk.
func (ix *Index) dropCleared(dst []Match, base int, s *scratch) []Match {
	kept := dst[:base]
	for i, m := range dst[base:] {
		if slot := s.slots[i]; int(slot) < len(s.generations) && ix.records.at(slot).generation.Load() == s.generations[slot] {
			kept = append(kept, m)
		}
	}
	return kept
}
