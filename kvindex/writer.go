package kvindex

import (
	"math/bits"
	"slices"
)

// Writer is one publisher's hand on the index. It is not safe for concurrent
// use: one goroutine owns it, and the order of its calls is the publisher's
// history. Writers of different publishers run side by side.
type Writer struct {
	ix   *Index
	pub  Publisher
	slot uint32
	rec  *record
	key  key // of the base entry

	// groups are the cache groups announced since the last clear; a kind's
	// group index points here.
	groups []uint8
	// segs lists the segments where the publisher has entries; with repeats
	// and some where it no longer has one.
	segs []uint32
	// last is the block that the latest call ended at, 0 for none.
	last uint32
	own  ownNames
	// several lists the names of the blocks that the publisher gave more than
	// one name. For these every copy is counted in copies; for a block with
	// one name copies has only what goes beyond the first.
	several map[uint32][]EngineHash
	copies  map[copyKey]uint8
	// spares counts, for blocks of the device tier, what may be left besides the
	// copy that counts; see spare.go.
	spares  map[spareKey]uint8
	orphans orphanage
	recent  recent
	counts  counters
	// journal is told of changes; nil: nobody is.
	journal *Journal
	// once: the publisher is fed by runs, see StoreRun, whose blocks have no
	// copies. names is what StoreRun and RemoveBlocks work in.
	once  bool
	names []EngineHash
	// evicted: blocks were dropped for want of room. Written under the world
	// lock.
	evicted bool
	// pairs is the number of mask bits the publisher has set.
	pairs int
	// stored counts blocks not yet added to the index's count.
	stored int
}

// storedStep is how many stored blocks a Writer counts by itself: less traffic
// on the line that gives segments their age.
const storedStep = 256

// copyKey is a name's copies of one kind.
type copyKey struct {
	name EngineHash
	kind key
}

// counters are what a Writer reports in [PublisherStats].
type counters struct {
	forwarded, suppressed, unknown, parked, dropped uint64
}

// Publisher returns whom the Writer speaks for.
func (w *Writer) Publisher() Publisher { return w.pub }

// SetTrust records how far the publisher's state can be believed.
func (w *Writer) SetTrust(t Trust) { w.rec.setTrust(t) }

// maxGroups is how many cache groups of a publisher are kept apart; stores of
// further ones are not placed.
const maxGroups = 8

// kind returns the entry kind of a tier and group.
func (w *Writer) kind(t Tier, group uint8, announce bool) (key, bool) {
	for i, g := range w.groups {
		if g == group {
			return key(i<<2) | key(t&3), true
		}
	}
	if !announce || len(w.groups) == maxGroups {
		return 0, false
	}
	w.groups = append(w.groups, group)
	if w.journal != nil {
		w.journal.group(group)
	}
	w.rec.setGroups(len(w.groups))
	return key((len(w.groups)-1)<<2) | key(t&3), true
}

// Store records the blocks of s. It reports how many of them could not be
// placed at once: their parent is unknown, or, for a tier update, the name
// itself. Blocks of an unknown parent are parked and placed when it arrives,
// unless there are too many; see [Writer.Lacks].
func (w *Writer) Store(s Stored) (unplaced int) { return w.placeAll(&s, true) }

// placeAll is Store, and lets it be chosen whether the names of blocks removed
// long ago are forgotten.
func (w *Writer) placeAll(s *Stored, forget bool) (unplaced int) {
	w.ix.world.RLock()
	before := w.pairs
	unplaced = w.store(s)
	w.shed(fewSpares)
	if forget {
		w.forget(w.ix.remember)
	}
	w.ix.held.Add(int64(w.pairs - before))
	w.ix.world.RUnlock()
	if w.stored += len(s.Names); w.stored >= storedStep {
		w.ix.stored.Add(uint64(w.stored))
		w.stored = 0
	}
	w.ix.maintain()
	return unplaced
}

func (w *Writer) store(s *Stored) (unplaced int) {
	kind, ok := w.kind(s.Tier, s.Group, true)
	if !ok {
		w.counts.dropped += uint64(len(s.Names))
		return len(s.Names)
	}
	if len(s.Contents) == 0 {
		return w.update(s.Names, kind)
	}
	n := min(len(s.Names), len(s.Contents))
	b := batch{names: s.Names[:n], contents: s.Contents[:n], kind: kind, at: s.Root, parent: s.Parent, hold: true}
	parent := uint32(0)
	if s.HasParent {
		if parent = w.locate(s.Parent); parent == 0 {
			return w.park(s.Parent, &b)
		}
	}
	w.extend(parent, &b)
	if w.orphans.any() {
		w.attach(&b)
	}
	return 0
}

// list notes that the publisher has an entry in a segment.
func (w *Writer) list(id uint32) {
	if len(w.segs) == cap(w.segs) && len(w.segs) >= 64 {
		w.tidySegments()
	}
	w.segs = append(w.segs, id)
}

// tidySegments drops repeats and segments that are gone, so that the list
// does not grow for ever. A segment given to another chain may stay; whoever
// uses the list looks for the entry.
func (w *Writer) tidySegments() {
	slices.Sort(w.segs)
	w.segs = slices.Compact(w.segs)
	w.segs = slices.DeleteFunc(w.segs, func(id uint32) bool { return !w.ix.hasHolder(id, w.slot) })
}

// update records that blocks known by name now also exist as this kind.
func (w *Writer) update(names []EngineHash, kind key) (unplaced int) {
	for _, name := range names {
		if w.orphans.hold(name, kind) {
			continue
		}
		ref := w.locate(name)
		if ref == 0 {
			unplaced++
			continue
		}
		id := refSegment(ref)
		mu := w.ix.lock(id)
		mu.Lock()
		w.hold(w.ix.slab.head(id), refOffset(ref), ref, name, kind)
		mu.Unlock()
		w.last = ref
	}
	return unplaced
}

// Remove records that the publisher no longer holds the named blocks on a
// tier, and reports how many of them it did not hold.
func (w *Writer) Remove(names []EngineHash, t Tier, g uint8) (unknown int) {
	w.ix.world.RLock()
	defer w.ix.world.RUnlock()
	kind, ok := w.kind(t, g, false)
	if !ok {
		w.counts.unknown += uint64(len(names))
		return len(names)
	}
	before := w.pairs
	for i := 0; i < len(names); {
		if done, known := w.orphans.remove(names[i], kind); done {
			if !known {
				unknown++
			}
			i++
			continue
		}
		ref := w.locate(names[i])
		if ref == 0 {
			unknown++
			i++
			continue
		}
		n, miss := w.take(ref, names[i:], kind)
		i += n
		unknown += miss
	}
	w.counts.unknown += uint64(unknown)
	w.ix.held.Add(int64(w.pairs - before))
	w.forget(w.ix.remember)
	return unknown
}

// take removes the first name, which denotes ref, and every further name that
// stands for a neighbour of the block before it in the same segment: engines
// remove leaf first. It returns how many names it dealt with and how many of
// them were not held.
func (w *Writer) take(ref uint32, names []EngineHash, kind key) (n, miss int) {
	ix := w.ix
	id, off := refSegment(ref), refOffset(ref)
	h := ix.slab.head(id)
	mu := ix.lock(id)
	mu.Lock()
	defer mu.Unlock()
	w.last = ref
	base, hasBase := ix.entry(h, w.key)
	if !hasBase || w.several != nil || len(w.copies) > 0 || *base.second>>off&1 == 0 {
		return 1, w.takeOne(id, h, off, names[0], kind)
	}
	e, ok := ix.entry(h, w.key|kind)
	if !ok {
		w.spend(id, h, off, names[0], kind)
		return 1, 1
	}
	s := span(h[hSpan])
	slots := ix.names(s)[:s.len()]
	var gone uint64
	for {
		if bit := uint64(1) << off; *e.held&^gone&bit != 0 {
			gone |= bit
		} else {
			miss++
			w.spend(id, h, off, names[n], kind)
		}
		n++
		if n == len(names) || w.orphans.any() {
			break
		}
		next := off - 1
		if next < 0 || slots[next] != uint64(names[n]) {
			next = off + 1
		}
		if next >= len(slots) || slots[next] != uint64(names[n]) || *base.second>>next&1 == 0 {
			break
		}
		off = next
	}
	w.last = makeRef(id, off)
	store(e.held, *e.held&^gone)
	if w.journal != nil {
		w.note(h, kind, gone, BlockGone)
	}
	c := bits.OnesCount64(gone)
	w.pairs -= c
	w.counts.forwarded += uint64(c)
	if rest := gone &^ w.heldAny(h); rest != 0 {
		w.recent.add(id, rest)
	}
	return n, miss
}

// takeOne removes one name in the longer way.
func (w *Writer) takeOne(id uint32, h *head, off int, name EngineHash, kind key) (miss int) {
	ref, bit := makeRef(id, off), uint64(1)<<off
	known, still := w.unhold(h, off, ref, name, kind)
	switch {
	case !known:
		w.spend(id, h, off, name, kind)
		return 1
	case still:
		w.counts.suppressed++
	default:
		w.counts.forwarded++
	}
	if w.own.get(name) == ref {
		w.recent.addName(name)
	}
	if w.heldAny(h)&bit == 0 {
		w.recent.add(id, bit)
	}
	return 0
}

// Clear forgets everything that the publisher holds or waits for, names
// included.
func (w *Writer) Clear() {
	w.ix.world.RLock()
	defer w.ix.world.RUnlock()
	w.clear()
}

func (w *Writer) clear() {
	ix := w.ix
	for _, id := range w.segs {
		mu := ix.lock(id)
		mu.Lock()
		ix.strike(id, ix.slab.head(id), w.slot)
		mu.Unlock()
	}
	yield(gapCleared)
	w.rec.nextGeneration()
	ix.cleared.Add(1)
	w.reset()
}

// reset empties what the Writer keeps for itself.
func (w *Writer) reset() {
	w.groups, w.segs, w.last = w.groups[:0], nil, 0
	w.rec.setGroups(0)
	w.ix.held.Add(int64(-w.pairs))
	w.own, w.several, w.copies, w.spares = ownNames{}, nil, nil, nil
	w.orphans, w.recent = orphanage{}, recent{}
	w.pairs, w.once, w.evicted = 0, false, false
	if w.journal != nil {
		w.journal.clear()
	}
}

// Close clears the publisher's state and frees its id. The Writer must not be
// used afterwards.
func (w *Writer) Close() {
	w.Clear()
	w.ix.closeSlot(w)
}
