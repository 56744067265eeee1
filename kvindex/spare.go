package kvindex

import "math/bits"

// A block on the device tier counts as held until its first removal. A second
// store may say two things, and events do not tell which: that the engine has
// another physical copy, whose removal it will announce as well (vLLM, where
// two requests compute the same block, or one computes the last block of a
// prompt again), or that it repeats what it holds (vLLM's kv_cache_report_mode
// "full"). To count the latter would invent blocks. But an engine that removed
// one copy of two goes on with the other one, for as long as it is asked for
// it, and names it as the parent of what follows. So the copies that may be
// left are counted here for the sake of the names alone: a block with spares
// is not forgotten, however long ago it was removed.

// spareKey is a block on the device tier in a cache group.
type spareKey struct {
	ref  uint32
	kind key
}

// fewSpares is how many blocks with spares a publisher may always have, and
// besides them two for each block that it holds. Only an engine that repeats
// itself has more.
const fewSpares = 1 << 12

// addSpares records that blocks of a locked segment were stored once more than
// they count as held.
func (w *Writer) addSpares(id uint32, h *head, mask uint64, kind key) {
	if w.once || kind.tier() != TierDevice {
		return
	}
	if w.spares == nil {
		w.spares = map[spareKey]uint8{}
	}
	if w.journal != nil {
		if first := mask &^ w.spared(id, mask); first != 0 {
			w.note(h, kindBase, first, BlockKept)
		}
	}
	for ; mask != 0; mask &= mask - 1 {
		k := spareKey{makeRef(id, bits.TrailingZeros64(mask)), kind}
		if n := w.spares[k]; n < 255 {
			w.spares[k] = n + 1
		}
	}
}

// spend takes a spare from a block of a locked segment, if it has one: a
// removal came under a name that holds nothing any more.
func (w *Writer) spend(id uint32, h *head, off int, name EngineHash, kind key) {
	if len(w.spares) == 0 {
		return
	}
	ref := makeRef(id, off)
	k := spareKey{ref, kind}
	switch n := w.spares[k]; n {
	case 0:
		return
	case 1:
		delete(w.spares, k)
	default:
		w.spares[k] = n - 1
		return
	}
	if !w.fade(id, h, off) {
		return
	}
	names := w.several[ref]
	if names == nil {
		names = []EngineHash{name}
	}
	for _, n := range names {
		if w.own.get(n) == ref {
			w.recent.addName(n)
		}
	}
}

// fade lets a block of a locked segment be forgotten in time, unless it has
// spares, which it reports by false. Its own names are the caller's matter.
func (w *Writer) fade(id uint32, h *head, off int) bool {
	bit := uint64(1) << off
	if w.spared(id, bit) != 0 {
		return false
	}
	if w.journal != nil {
		w.note(h, kindBase, bit, BlockLet)
	}
	if w.heldAny(h)&bit == 0 {
		w.recent.add(id, bit)
	}
	return true
}

// spared is the mask of those of a segment's blocks that have spares.
func (w *Writer) spared(id uint32, mask uint64) (some uint64) {
	if len(w.spares) == 0 {
		return 0
	}
	for ; mask != 0; mask &= mask - 1 {
		off := bits.TrailingZeros64(mask)
		for g := range w.groups {
			if w.spares[spareKey{makeRef(id, off), key(g<<2) | key(TierDevice)}] > 0 {
				some |= 1 << off
				break
			}
		}
	}
	return some
}

// unspare drops the spares of a block of a locked segment that has no name
// any more.
func (w *Writer) unspare(id uint32, h *head, off int) {
	if w.spared(id, 1<<off) == 0 {
		return
	}
	for g := range w.groups {
		delete(w.spares, spareKey{makeRef(id, off), key(g<<2) | key(TierDevice)})
	}
	if w.journal != nil {
		w.note(h, kindBase, 1<<off, BlockLet)
	}
}

// shed drops the spares of blocks that are not held if there are too many. No
// segment is locked by the caller.
func (w *Writer) shed(few int) {
	if len(w.spares) <= few+2*w.pairs {
		return
	}
	faded := map[uint32]bool{}
	for k := range w.spares {
		id, off := refSegment(k.ref), refOffset(k.ref)
		mu := w.ix.lock(id)
		mu.Lock()
		h := w.ix.slab.head(id)
		if e, ok := w.ix.entry(h, w.key|k.kind); !ok || *e.held>>off&1 == 0 {
			delete(w.spares, k)
			if w.fade(id, h, off) {
				faded[k.ref] = true
			}
		}
		mu.Unlock()
	}
	for i, ref := range w.own.refs {
		if ref != 0 && faded[ref] {
			w.recent.addName(w.own.names[i])
		}
	}
}
