package kvindex

import "math/bits"

// remembered is how many removals ago a publisher may at least still name a
// block as a parent; of names of its own table it is as many. Naming a removed
// block counts like removing it again. Engines remove a parent and store its
// child in one batch. What an engine has copies of is remembered for longer, see
// spare.go.
const remembered = 1024

// recent is what a publisher removed lately, or named as a parent although it
// was removed, oldest first.
type recent struct {
	runs   []run
	blocks int // in runs
	// names are those of the publisher's own table.
	names []EngineHash
}

// run is a set of blocks of one segment.
type run struct {
	id   uint32
	mask uint64
}

func (r *recent) add(id uint32, mask uint64) {
	r.blocks += bits.OnesCount64(mask)
	if n := len(r.runs); n > 0 && r.runs[n-1].id == id {
		r.blocks -= bits.OnesCount64(r.runs[n-1].mask & mask)
		r.runs[n-1].mask |= mask
		return
	}
	r.runs = append(r.runs, run{id, mask})
}

func (r *recent) addName(n EngineHash) { r.names = append(r.names, n) }

// forget drops what is remembered beyond keep, oldest first. It waits until
// that is as much again, so that the rest is moved once for many calls. No
// segment is locked by the caller.
func (w *Writer) forget(keep int) {
	r := &w.recent
	if r.blocks > 2*keep {
		n := 0
		for ; r.blocks > keep; n++ {
			r.blocks -= bits.OnesCount64(r.runs[n].mask)
		}
		s := w.ix.pool.Get().(*scratch)
		for _, later := range r.runs[n:] {
			s.again[later.id] |= later.mask
		}
		for _, old := range r.runs[:n] {
			w.forgetRun(run{old.id, old.mask &^ s.again[old.id]})
		}
		clear(s.again)
		w.ix.pool.Put(s)
		r.runs = append(r.runs[:0], r.runs[n:]...)
	}
	if len(r.names) > 2*keep {
		n := len(r.names) - keep
		again := make(map[EngineHash]bool, keep)
		for _, later := range r.names[n:] {
			again[later] = true
		}
		for _, name := range r.names[:n] {
			if !again[name] {
				w.forgetName(name)
			}
		}
		r.names = append(r.names[:0], r.names[n:]...)
	}
}

// forgetRun drops the shared names of blocks that the publisher still does
// not hold.
func (w *Writer) forgetRun(r run) {
	ix := w.ix
	mu := ix.lock(r.id)
	mu.Lock()
	defer mu.Unlock()
	h := ix.slab.head(r.id)
	base, ok := ix.entry(h, w.key)
	if !ok {
		return
	}
	mask := r.mask & *base.second &^ w.heldAny(h)
	mask &^= w.spared(r.id, mask)
	if w.several != nil {
		for m := mask; m != 0; m &= m - 1 {
			off := bits.TrailingZeros64(m)
			if w.several[makeRef(r.id, off)] != nil {
				w.drop(r.id, h, off, EngineHash(ix.names(span(h[hSpan]))[off]))
				mask &^= 1 << off
			}
		}
	}
	if mask == 0 {
		return
	}
	// Not through base: drop may have given the entry's place away.
	if base, ok = ix.entry(h, w.key); !ok {
		return
	}
	store(base.second, *base.second&^mask)
	if refSegment(w.last) == r.id {
		w.last = 0
	}
	ix.settle(r.id, h, mask)
}

// forgetName drops one of the publisher's own names if it holds nothing.
func (w *Writer) forgetName(name EngineHash) {
	ref := w.own.get(name)
	if ref == 0 {
		return
	}
	ix, id, off := w.ix, refSegment(ref), refOffset(ref)
	mu := ix.lock(id)
	mu.Lock()
	defer mu.Unlock()
	h := ix.slab.head(id)
	holds := w.heldAny(h)>>off&1 == 1
	if holds && w.several[ref] != nil {
		holds = false
		w.kinds(h, func(k key, _ *uint64) { holds = holds || w.copies[copyKey{name, k}] > 0 })
	}
	if !holds && w.spared(id, 1<<off) == 0 {
		w.drop(id, h, off, name)
	}
}
