package kvindex

import (
	"maps"
	"math/bits"
	"slices"
)

// evict drops the coldest segments until a sixteenth of the bound is free. A
// segment is as cold as the last change that made it longer. The publishers
// that lose something become incomplete.
func (ix *Index) evict() {
	ix.world.Lock()
	defer ix.world.Unlock()
	held := int(ix.held.Load())
	if held <= int(ix.max) {
		return
	}
	excess := held - int(ix.max-ix.max/16)
	now := ix.age()
	size := map[uint16]int{} // by steps since
	ix.eachSegment(func(_ uint32, h *head) {
		n := 0
		ix.each(h, func(_ key, e entry) { n += bits.OnesCount64(*e.held) })
		size[now-span(h[hSpan]).age()] += n
	})
	steps := make([]uint16, 0, len(size))
	for s := range size {
		steps = append(steps, s)
	}
	slices.Sort(steps)
	coldest := uint16(0)
	for i, sum := len(steps)-1, 0; i >= 0 && sum < excess; i-- {
		coldest = steps[i]
		sum += size[coldest]
	}
	speaks := ix.speakers()
	gone := map[uint32]bool{}
	// Those beyond the limit first, then of the limit as many as needed.
	for _, least := range []uint16{coldest + 1, coldest} {
		if least == 0 {
			continue
		}
		ix.eachSegment(func(id uint32, h *head) {
			if excess > 0 && now-span(h[hSpan]).age() >= least {
				excess -= ix.evictSegment(id, h, speaks)
				gone[id] = true
			}
		})
	}
	for _, w := range speaks {
		w.lose(gone)
	}
	for _, e := range ix.endpoints {
		for i := range e.live {
			e.live[i].parts = slices.DeleteFunc(e.live[i].parts, func(p part) bool { return gone[p.id] })
		}
	}
}

// eachSegment calls f for every mapped segment. The caller holds the world.
func (ix *Index) eachSegment(f func(id uint32, h *head)) {
	ix.slab.mu.Lock()
	n := ix.slab.nextHead
	ix.slab.mu.Unlock()
	for id := uint32(1); id < n; id++ {
		if h := ix.slab.head(id); span(h[hSpan]).len() > 0 {
			f(id, h)
		}
	}
}

// speakers returns the Writers by slot.
func (ix *Index) speakers() map[uint32]*Writer {
	ix.mu.Lock()
	defer ix.mu.Unlock()
	m := make(map[uint32]*Writer, len(ix.publishers))
	for _, w := range ix.publishers {
		m[w.slot] = w
	}
	return m
}

// evictSegment empties a segment and returns how many mask bits it had.
func (ix *Index) evictSegment(id uint32, h *head, speaks map[uint32]*Writer) (lost int) {
	names := ix.names(span(h[hSpan]))
	ix.each(h, func(k key, e entry) {
		n := bits.OnesCount64(*e.held)
		lost += n
		if k.kind() == kindHint {
			if exp := ix.records.at(k.slot()).expected.Load(); exp != nil {
				exp.pairs -= n
			}
		} else if w := speaks[k.slot()]; w != nil {
			if w.pairs -= n; n > 0 {
				w.rec.lower(TrustIncomplete)
				w.evicted = true
				if w.journal != nil {
					w.note(h, k.kind(), *e.held, BlockGone)
				}
			}
			if w.journal != nil {
				if kept := w.spared(id, *e.second); kept != 0 {
					w.note(h, kindBase, kept, BlockLet)
				}
			}
			if k.kind() == kindBase && len(w.copies) > 0 {
				for m := *e.second; m != 0; m &= m - 1 {
					w.forgetCopies(EngineHash(names[bits.TrailingZeros64(m)]))
				}
			}
		}
		store(e.held, 0)
		store(e.second, 0)
	})
	ix.held.Add(int64(-lost))
	ix.settle(id, h, ^uint64(0))
	return lost
}

func (w *Writer) forgetCopies(name EngineHash) {
	for kind := range kindHint {
		delete(w.copies, copyKey{name, kind})
	}
}

// lose drops what the Writer itself knows of evicted segments.
func (w *Writer) lose(gone map[uint32]bool) {
	if gone[refSegment(w.last)] {
		w.last = 0
	}
	w.segs = slices.DeleteFunc(w.segs, func(id uint32) bool { return gone[id] })
	maps.DeleteFunc(w.spares, func(k spareKey, _ uint8) bool { return gone[refSegment(k.ref)] })
	w.recent.runs = slices.DeleteFunc(w.recent.runs, func(r run) bool { return gone[r.id] })
	w.recent.blocks = 0
	for _, r := range w.recent.runs {
		w.recent.blocks += bits.OnesCount64(r.mask)
	}
	for ref, names := range w.several {
		if gone[refSegment(ref)] {
			for _, n := range names {
				w.forgetCopies(n)
			}
			delete(w.several, ref)
		}
	}
	if w.own.n == 0 {
		return
	}
	old := w.own
	w.own = ownNames{}
	for i, ref := range old.refs {
		switch {
		case ref == 0:
		case gone[refSegment(ref)]:
			w.forgetCopies(old.names[i])
		default:
			w.own.put(old.names[i], ref)
		}
	}
}

// bytes is the memory of the shared structures.
func (ix *Index) bytes() int {
	const bucket, entry = 64, 16 // of xsync.MapOf
	m := ix.segs.Stats()
	return ix.slab.bytes() + ix.shared.bytes() + bucket*m.TotalBuckets + entry*m.Size
}
