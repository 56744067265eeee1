package kvindex

import (
	"math/bits"
	"slices"
)

// Export is what one publisher holds, with its names: enough for
// [Writer.Restore] to make a Writer that goes on where this one stood.
type Export struct {
	// Groups are the cache groups announced, in their order.
	Groups []uint8
	// Blocks come after their parents.
	Blocks []ExportedBlock
}

// ExportedBlock is a block that the publisher holds or speaks of, or that
// leads to one.
type ExportedBlock struct {
	// Block and Parent are chain hashes, Parent a root if Root is set.
	Block, Parent BlockHash
	Root          bool
	// Name is the publisher's, if Named.
	Name  EngineHash
	Named bool
	// Held has a bit for each place: index in Groups times [NumTiers], plus the
	// tier.
	Held uint32
	// Spares counts, for each place in Groups, what the publisher may have left
	// on the device tier besides a copy that counts; nil: nothing.
	Spares []uint8
}

// Export returns the publisher's state. isRoot tells roots from other hashes.
// It is not ok where the state is more than names and blocks: a block with
// several names, copies on a tier, held blocks that wait for their parent or
// were lost waiting, or a chain whose beginning is not known. Removed blocks
// that still wait are left out, as where there is no more room for them: what
// comes behind one waits again, see [Writer.Lacks]. It belongs to the Writer's
// goroutine.
func (w *Writer) Export(isRoot func(BlockHash) bool) (e Export, ok bool) {
	all, ok := w.exportSegments(&e)
	if !ok {
		return e, false
	}
	runs := make(map[BlockHash][][]ExportedBlock, len(all)) // of one segment each, by the hash before
	n := 0
	for _, blocks := range all {
		runs[blocks[0].Parent] = append(runs[blocks[0].Parent], blocks)
		n += len(blocks)
	}
	// From the roots on, so that parents come first.
	var queue []BlockHash
	for before := range runs {
		if isRoot(before) {
			queue = append(queue, before)
		}
	}
	e.Blocks = make([]ExportedBlock, 0, n)
	for len(queue) > 0 {
		before := queue[0]
		queue = queue[1:]
		segments := runs[before]
		delete(runs, before)
		for _, blocks := range segments {
			for _, b := range blocks {
				b.Root = isRoot(b.Parent)
				e.Blocks = append(e.Blocks, b)
				if _, more := runs[b.Block]; more {
					queue = append(queue, b.Block)
				}
			}
		}
	}
	return e, len(runs) == 0
}

// exportSegments returns the blocks of each segment that has any, and the
// groups. It is the part of an export in which the index stands still, and all
// writers and predictions wait.
func (w *Writer) exportSegments(e *Export) (all [][]ExportedBlock, ok bool) {
	w.ix.world.Lock()
	defer w.ix.world.Unlock()
	if w.once || w.evicted || len(w.several) > 0 || len(w.copies) > 0 || w.orphans.lacks() {
		return nil, false
	}
	w.tidySegments()
	e.Groups = slices.Clone(w.groups)
	own := map[uint32]EngineHash{}
	for i, ref := range w.own.refs {
		if ref != 0 {
			own[ref] = w.own.names[i]
		}
	}
	all = make([][]ExportedBlock, 0, len(w.segs))
	for _, id := range w.segs {
		if blocks := w.exportSegment(id, own); len(blocks) > 0 {
			all = append(all, blocks)
		}
	}
	return all, true
}

// exportSegment returns the blocks of a segment that stands still up to the
// last one that the publisher speaks of.
func (w *Writer) exportSegment(id uint32, own map[uint32]EngineHash) (blocks []ExportedBlock) {
	h := w.ix.slab.head(id)
	s := span(h[hSpan])
	hashes, names := w.ix.hashes(s), w.ix.names(s)
	var named, mine uint64
	if base, ok := w.ix.entry(h, w.key); ok {
		named = *base.second
	}
	if o, ok := w.ix.entry(h, w.key|kindOwn); ok {
		mine = *o.second
	}
	var places [32]uint64 // by bit of ExportedBlock.Held
	var used uint32
	w.kinds(h, func(k key, held *uint64) {
		place := k.group()*NumTiers + int(k.tier())
		places[place] |= *held
		used |= 1 << place
	})
	before := BlockHash(h[hParent])
	n := bits.Len64(named | mine | w.heldAny(h))
	blocks = make([]ExportedBlock, 0, n)
	for i := range n {
		b := ExportedBlock{Block: BlockHash(hashes[i]), Parent: before}
		switch bit := uint64(1) << i; {
		case named&bit != 0:
			b.Name, b.Named = EngineHash(names[i]), true
		case mine&bit != 0:
			b.Name, b.Named = own[makeRef(id, i)], true
		}
		for rest := used; rest != 0; rest &= rest - 1 {
			place := bits.TrailingZeros32(rest)
			b.Held |= uint32(places[place]>>i&1) << place
		}
		if w.spared(id, 1<<i) != 0 {
			b.Spares = make([]uint8, len(w.groups))
			for g := range b.Spares {
				b.Spares[g] = w.spares[spareKey{makeRef(id, i), key(g<<2) | key(TierDevice)}]
			}
		}
		blocks = append(blocks, b)
		before = b.Block
	}
	return blocks
}

// Restore makes the publisher of a Writer that has just been opened or cleared
// hold and know what was exported, and reports whether it could.
func (w *Writer) Restore(e Export) bool {
	for _, g := range e.Groups {
		w.Announce(g)
	}
	names := make(map[BlockHash]EngineHash, len(e.Blocks))
	for i := 0; i < len(e.Blocks); {
		n := i + 1
		for n < len(e.Blocks) && e.Blocks[n].Parent == e.Blocks[n-1].Block && e.Blocks[n].Held == e.Blocks[i].Held && n-i < segmentBlocks {
			n++
		}
		if !w.restoreRun(e.Blocks[i:n], names) {
			return false
		}
		i = n
	}
	return true
}

func (w *Writer) restoreRun(run []ExportedBlock, names map[BlockHash]EngineHash) bool {
	first := run[0]
	s := Stored{Root: first.Parent, HasParent: !first.Root, Parent: names[first.Parent]}
	if _, known := names[first.Parent]; s.HasParent && !known {
		return false
	}
	for _, b := range run {
		name := b.Name
		if !b.Named {
			name = EngineHash(b.Block) // it only leads to others
		}
		names[b.Block] = name
		s.Names, s.Contents = append(s.Names, name), append(s.Contents, Unmix(b.Parent, b.Block))
	}
	if first.Held == 0 {
		return w.pass(&s) && w.restoreSpares(run)
	}
	for held := first.Held; held != 0; held &= held - 1 {
		place := bits.TrailingZeros32(held)
		if place/NumTiers >= len(w.groups) {
			return false
		}
		s.Tier, s.Group = Tier(place%NumTiers), w.groups[place/NumTiers]
		// What only leads to others is not held, and needed until the end.
		if w.placeAll(&s, false) != 0 {
			return false
		}
		s.Contents = nil // the rest only says where else they are
	}
	return w.restoreSpares(run)
}

// restoreSpares gives blocks that were just placed their spares.
func (w *Writer) restoreSpares(run []ExportedBlock) bool {
	w.ix.world.RLock()
	defer w.ix.world.RUnlock()
	for _, b := range run {
		if len(b.Spares) == 0 {
			continue
		}
		ref := w.locate(b.Name)
		if ref == 0 || !b.Named || len(b.Spares) > len(w.groups) {
			return false
		}
		id := refSegment(ref)
		mu := w.ix.lock(id)
		mu.Lock()
		for g, n := range b.Spares {
			for range n {
				w.addSpares(id, w.ix.slab.head(id), 1<<refOffset(ref), key(g<<2)|key(TierDevice))
			}
		}
		mu.Unlock()
	}
	return true
}

// pass announces the names of blocks that are not held.
func (w *Writer) pass(s *Stored) bool {
	w.ix.world.RLock()
	parent := uint32(0)
	if s.HasParent {
		parent = w.locate(s.Parent)
	}
	ok := !s.HasParent || parent != 0
	if ok {
		w.extend(parent, &batch{names: s.Names, contents: s.Contents, at: s.Root, parent: s.Parent})
	}
	w.ix.world.RUnlock()
	w.ix.maintain()
	return ok
}
