package kvindex

import (
	"math/bits"
	"sync/atomic"
)

// batch is a run of blocks to place one behind the other.
type batch struct {
	names    []EngineHash
	contents []ContentHash
	kind     key
	hold     bool // false: announce the names only
	i        int  // the next block
	at       BlockHash
	parent   EngineHash // the name by which the block before the first is known
}

// extend places a batch behind a block that the publisher announced, or
// behind the root b.at where parent is 0. The parent stays where it is: only
// this publisher can take back that it announced it.
func (w *Writer) extend(parent uint32, b *batch) {
	ix := w.ix
	id, off, version := after(parent)
	disowned := false
	for {
		if id == 0 {
			id, version = ix.segment(Mix(b.at, b.contents[b.i]), b.at, len(b.names)-b.i)
		}
		yield(gapFound)
		h := ix.slab.head(id)
		mu := ix.lock(id)
		mu.Lock()
		if off == 0 && h[hVersion] != version {
			mu.Unlock() // taken apart since it was found
			id, off, version = after(parent)
			continue
		}
		if s := span(h[hSpan]); disowned && off > 0 && (off > s.len() || ix.hashes(s)[off-1] != uint64(b.at)) {
			// A store that gives one name to two blocks took it from the block before,
			// which went. What follows begins a segment, as behind any missing block.
			mu.Unlock()
			parent, id, off = 0, 0, 0
			continue
		}
		if off > 0 {
			b.at = BlockHash(ix.hashes(span(h[hSpan]))[off-1])
		}
		placed := b.i
		ok := w.fill(id, h, off, b)
		if b.i > placed {
			parent = w.last
		}
		if !ok || b.i == len(b.names) {
			mu.Unlock()
			if ok {
				return
			}
			w.disown(b.names[b.i])
			disowned = true
			id, off, version = after(parent)
			continue
		}
		id, version = ix.segment(Mix(b.at, b.contents[b.i]), b.at, len(b.names)-b.i)
		off = 0
		mu.Unlock()
		yield(gapFound)
	}
}

// after returns where the block behind parent would be.
func after(parent uint32) (id uint32, off int, version uint64) {
	if parent == 0 {
		return 0, 0, 0
	}
	return refSegment(parent), refOffset(parent) + 1, 0
}

// filling is the state of one fill: bits that wait to be written at once.
type filling struct {
	base, held         entry
	s                  span
	hashes, names      []uint64
	own                uint64 // blocks for which the publisher has names of its own
	named, holds, grew uint64
}

// open looks up what a fill writes to; again after anything moved.
func (w *Writer) open(id uint32, h *head, kind key, f *filling) {
	ix := w.ix
	var ok bool
	if f.base, ok = ix.entry(h, w.key); !ok {
		f.base = ix.addEntry(h, w.key)
	}
	if *f.base.held|*f.base.second == 0 {
		w.list(id) // new here, or away for so long that it was tidied up
	}
	f.held = f.base
	if kind != kindBase {
		if f.held, ok = ix.entry(h, w.key|kind); !ok {
			f.held = ix.addEntry(h, w.key|kind)
			f.base, _ = ix.entry(h, w.key) // it may have moved
		}
	}
	f.own = 0
	if w.own.n > 0 {
		if own, ok := ix.entry(h, w.key|kindOwn); ok {
			f.own = *own.second
		}
	}
	f.s = span(h[hSpan])
	f.hashes, f.names = ix.hashes(f.s), ix.names(f.s)
}

// flush writes what a fill gathered: blocks before the length that admits
// them, and that before the masks.
func (w *Writer) flush(id uint32, h *head, b *batch, f *filling) {
	if f.grew != 0 {
		f.grew = 0
		store(&h[hLast], f.hashes[f.s.len()-1])
		atomic.StoreUint64(&h[hSpan], uint64(f.s.withAge(w.ix.age())))
	}
	if f.named != 0 {
		store(f.base.second, *f.base.second|f.named)
		if !b.hold {
			w.recent.add(id, f.named)
			if w.journal != nil {
				w.note(h, kindBase, f.named, BlockKnown)
			}
		}
		f.named = 0
	}
	if again := f.holds & *f.held.held; again != 0 {
		w.addSpares(id, h, again, b.kind)
	}
	if more := f.holds &^ *f.held.held; more != 0 {
		store(f.held.held, *f.held.held|more)
		w.pairs += bits.OnesCount64(more)
		if w.journal != nil {
			w.note(h, b.kind, more, BlockHeld)
		}
	}
	f.holds = 0
}

// fill places as many blocks of the batch as belong into the locked segment
// from offset off on. It stops early, with false, at a block whose name the
// publisher uses for another block.
func (w *Writer) fill(id uint32, h *head, off int, b *batch) (ok bool) {
	ix := w.ix
	var f filling
	w.open(id, h, b.kind, &f)
	if off == 0 && h[hParent] == 0 {
		h[hParent] = uint64(b.at) // a prediction made it
	}
	if off > 0 {
		// A parent that was removed, and still is used, is remembered from now on.
		if bit := uint64(1) << (off - 1); *f.base.held&bit == 0 && w.heldAny(h)&bit == 0 {
			w.recent.add(id, bit)
			if w.own.n > 0 && w.own.get(b.parent) == makeRef(id, off-1) {
				w.recent.addName(b.parent)
			}
		}
	}
	// The cache misses of all blocks at once: each would cost as much as the
	// rest of its work.
	room := min(segmentBlocks-off, len(b.names)-b.i)
	var hashes, chain [segmentBlocks]uint64
	at := b.at
	for i, n := range b.names[b.i : b.i+room] {
		hashes[i] = hashName(n)
	}
	for _, x := range hashes[:room] {
		ix.shared.touch(x)
	}
	for i, c := range b.contents[b.i : b.i+room] {
		at = Mix(at, c)
		chain[i] = uint64(at)
	}
	// New blocks up to one that exists already, as a child made before this
	// segment got here, or again. Nobody can make one of them meanwhile: that
	// takes the lock of the block before.
	fork := max(0, f.s.len()-off)
	for fork < room && !ix.mapped(BlockHash(chain[fork])) {
		fork++
	}
	first := b.i
	for ; b.i < first+room; b.i++ {
		name, bit := b.names[b.i], uint64(1)<<off
		next := BlockHash(chain[b.i-first])
		if off < f.s.len() {
			if f.hashes[off] != uint64(next) {
				break
			}
		} else {
			if b.i-first >= fork {
				break
			}
			if off >= f.s.cap() {
				w.flush(id, h, b, &f)
				f.s = ix.room(h, min(segmentBlocks, off+first+room-b.i))
				f.hashes, f.names = ix.hashes(f.s), ix.names(f.s)
			}
			store(&f.hashes[off], uint64(next))
			store(&f.names[off], 0)
			f.s = f.s.withLen(off + 1)
			f.grew |= bit
		}
		mine := (*f.base.second | f.named) & bit
		plain := mine == 0 && f.own&bit == 0 && (w.own.n == 0 || w.own.get(name) == 0)
		switch {
		case plain && f.names[off] == 0 && ix.share(name, hashes[b.i-first], makeRef(id, off), &f.names[off]),
			plain && f.names[off] == uint64(name) && name != 0,
			mine != 0 && f.names[off] == uint64(name) && (b.kind.tier() == TierDevice || w.once) && w.several == nil:
			f.named |= bit
			if b.hold {
				f.holds |= bit
			}
		default:
			w.flush(id, h, b, &f)
			if !w.announce(id, h, off, name, hashes[b.i-first], b) {
				return false
			}
			w.open(id, h, b.kind, &f)
		}
		w.last = makeRef(id, off)
		b.at = next
		off++
	}
	w.flush(id, h, b, &f)
	return true
}
