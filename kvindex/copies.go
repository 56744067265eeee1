package kvindex

import "slices"

// This file has the longer way of announcing and removing names: several
// names of one block, names of the publisher's own, copies that are counted.

// announce records that the publisher gave the block at off of a locked
// segment this name, and that it holds a copy. It reports false where the
// publisher uses the name for another block; nothing is changed then.
func (w *Writer) announce(id uint32, h *head, off int, name EngineHash, hash uint64, b *batch) bool {
	ix := w.ix
	bit, ref := uint64(1)<<off, makeRef(id, off)
	base, _ := ix.entry(h, w.key)
	ownMask := uint64(0)
	if own, ok := ix.entry(h, w.key|kindOwn); ok {
		ownMask = *own.second
	}
	slot := &ix.names(span(h[hSpan]))[off]
	mine := w.own.get(name)
	switch {
	case mine == ref, *base.second&bit != 0 && EngineHash(*slot) == name && name != 0:
		// known by this name
	case mine != 0:
		return false
	case EngineHash(*slot) == name && name != 0:
		if ownMask&bit != 0 {
			w.addName(h, off, ref, name)
		}
		store(base.second, *base.second|bit)
	case w.locateShared(name) != 0:
		return false
	case *slot == 0 && ownMask&bit == 0 && ix.share(name, hash, ref, slot):
		store(base.second, *base.second|bit)
	default:
		if (*base.second|ownMask)&bit != 0 {
			w.addName(h, off, ref, name)
		}
		w.own.put(name, ref)
		own, ok := ix.entry(h, w.key|kindOwn)
		if !ok {
			own = ix.addEntry(h, w.key|kindOwn)
		}
		store(own.second, *own.second|bit)
	}
	if b.hold {
		w.hold(h, off, ref, name, b.kind)
		return true
	}
	if w.own.get(name) == ref {
		w.recent.addName(name)
	} else {
		w.recent.add(id, bit)
	}
	if w.journal != nil {
		w.note(h, kindBase, bit, BlockKnown)
	}
	return true
}

// addName records that a block gets another name; from now on the copies of
// each of its names are counted.
func (w *Writer) addName(h *head, off int, ref uint32, name EngineHash) {
	if w.several == nil {
		w.several = map[uint32][]EngineHash{}
	}
	names := w.several[ref]
	if names == nil {
		first := EngineHash(w.ix.names(span(h[hSpan]))[off])
		if base, _ := w.ix.entry(h, w.key); *base.second>>off&1 == 0 {
			first, _ = w.own.of(ref)
		}
		names = []EngineHash{first}
		w.kinds(h, func(k key, held *uint64) {
			if *held>>off&1 == 1 {
				w.addCopies(copyKey{first, k}, 1)
			}
		})
	}
	w.several[ref] = append(names, name)
}

// kinds calls f for the publisher's entries with held blocks.
func (w *Writer) kinds(h *head, f func(k key, held *uint64)) {
	w.ix.each(h, func(k key, e entry) {
		if k.slot() == w.slot && k.kind() < kindHint {
			f(k.kind(), e.held)
		}
	})
}

// heldAny is the mask of blocks that the publisher holds on any tier in any
// group.
func (w *Writer) heldAny(h *head) (mask uint64) {
	w.kinds(h, func(_ key, held *uint64) { mask |= *held })
	return mask
}

func (w *Writer) addCopies(k copyKey, n uint8) {
	if w.copies == nil {
		w.copies = map[copyKey]uint8{}
	}
	if c := w.copies[k]; c <= 255-n {
		w.copies[k] = c + n
	}
}

// hold records one more copy of a block under a name. On the device tier a
// name is held or not, for engines announce again what they hold; on the
// others copies are counted, up to a bound that loses copies and never invents
// one.
func (w *Writer) hold(h *head, off int, ref uint32, name EngineHash, kind key) {
	e, ok := w.ix.entry(h, w.key|kind)
	if !ok {
		e = w.ix.addEntry(h, w.key|kind)
	}
	k, bit := copyKey{name, kind}, uint64(1)<<off
	switch {
	case w.several[ref] != nil:
		if kind.tier() != TierDevice || w.copies[k] == 0 {
			w.addCopies(k, 1)
		} else {
			w.addSpares(refSegment(ref), h, bit, kind)
		}
	case *e.held&bit != 0:
		if kind.tier() != TierDevice && !w.once {
			w.addCopies(k, 1)
		}
		w.addSpares(refSegment(ref), h, bit, kind)
	}
	if *e.held&bit == 0 {
		store(e.held, *e.held|bit)
		w.pairs++
		if w.journal != nil {
			w.note(h, kind, bit, BlockHeld)
		}
	}
}

// unhold takes back one copy of a block under a name, and reports whether
// there was one and whether the block is still held on that tier.
func (w *Writer) unhold(h *head, off int, ref uint32, name EngineHash, kind key) (known, still bool) {
	e, ok := w.ix.entry(h, w.key|kind)
	bit := uint64(1) << off
	if !ok || *e.held&bit == 0 {
		return false, false
	}
	k := copyKey{name, kind}
	names := w.several[ref]
	c := w.copies[k]
	if names != nil && c == 0 {
		return false, true
	}
	if c > 1 {
		w.copies[k] = c - 1
		return true, true
	}
	delete(w.copies, k)
	if names == nil && c == 1 {
		return true, true // one beyond the first
	}
	for _, n := range names {
		if w.copies[copyKey{n, kind}] > 0 {
			return true, true
		}
	}
	store(e.held, *e.held&^bit)
	w.pairs--
	if w.journal != nil {
		w.note(h, kind, bit, BlockGone)
	}
	return true, false
}

// disown makes the publisher forget a name, with every copy under it.
func (w *Writer) disown(name EngineHash) {
	ref := w.own.get(name)
	if ref == 0 {
		ref = w.locateShared(name)
	}
	if ref == 0 {
		return
	}
	id := refSegment(ref)
	mu := w.ix.lock(id)
	mu.Lock()
	w.drop(id, w.ix.slab.head(id), refOffset(ref), name)
	mu.Unlock()
}

// drop takes a name from a block of a locked segment, with every copy under
// it.
func (w *Writer) drop(id uint32, h *head, off int, name EngineHash) {
	ix := w.ix
	ref, bit := makeRef(id, off), uint64(1)<<off
	w.kinds(h, func(k key, held *uint64) {
		for {
			known, still := w.unhold(h, off, ref, name, k)
			if !known || !still || w.several[ref] != nil && w.copies[copyKey{name, k}] == 0 {
				break
			}
		}
	})
	names := w.several[ref]
	if names != nil {
		names = slices.DeleteFunc(names, func(n EngineHash) bool { return n == name })
		w.several[ref] = names
		if len(names) == 1 {
			w.kinds(h, func(k key, _ *uint64) {
				if c := (copyKey{names[0], k}); w.copies[c] > 1 {
					w.copies[c]--
				} else {
					delete(w.copies, c)
				}
			})
			delete(w.several, ref)
		}
	}
	if w.own.get(name) == ref {
		w.own.remove(name)
		left := slices.ContainsFunc(names, func(n EngineHash) bool { return w.own.get(n) == ref })
		if !left {
			if own, ok := ix.entry(h, w.key|kindOwn); ok {
				store(own.second, *own.second&^bit)
			}
		}
	} else if base, ok := ix.entry(h, w.key); ok {
		store(base.second, *base.second&^bit)
	}
	if len(w.spares) > 0 && !w.knows(h, off) {
		w.unspare(id, h, off)
	}
	ix.settle(id, h, bit)
	if refSegment(w.last) == id {
		w.last = 0
	}
}

// knows tells whether the publisher has a name for a block of a locked
// segment.
func (w *Writer) knows(h *head, off int) bool {
	var mask uint64
	for _, kind := range [...]key{kindBase, kindOwn} {
		if e, ok := w.ix.entry(h, w.key|kind); ok {
			mask |= *e.second
		}
	}
	return mask>>off&1 == 1
}
