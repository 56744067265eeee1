package kvindex

// Run is consecutive blocks of a chain by their contents alone, as one process
// that knows a publisher's blocks tells another. See [Writer.StoreRun].
type Run struct {
	// Parent is the chain hash before the first block: of a block that the
	// publisher is known to have or to pass over, or the root if Root is set.
	Parent   BlockHash
	Root     bool
	Contents []ContentHash
	// Passing: the publisher does not hold these blocks, they only lead to
	// others. Tier and Group mean nothing then.
	Passing bool
	Tier    Tier
	Group   uint8
}

// StoreRun records that the publisher holds a run of blocks, or passes over
// it, and reports whether it could be placed: it cannot where the parent is
// unknown. A Writer is fed either by runs or by events between two clears,
// never by both: here a block's name is its chain hash, so that the telling
// side needs to send none, and copies are not counted, so that what is told
// twice is held once.
func (w *Writer) StoreRun(r Run) bool {
	if len(r.Contents) == 0 {
		return true
	}
	w.ix.world.RLock()
	before := w.pairs
	ok := w.storeRun(&r)
	w.ix.held.Add(int64(w.pairs - before))
	w.ix.world.RUnlock()
	if w.stored += len(r.Contents); w.stored >= storedStep {
		w.ix.stored.Add(uint64(w.stored))
		w.stored = 0
	}
	w.ix.maintain()
	return ok
}

func (w *Writer) storeRun(r *Run) bool {
	w.once = true
	b := batch{contents: r.Contents, at: r.Parent, hold: !r.Passing}
	if b.hold {
		var ok bool
		if b.kind, ok = w.kind(r.Tier, r.Group, true); !ok {
			w.counts.dropped += uint64(len(r.Contents))
			return true // a group too many: kept apart from a parent too few
		}
	}
	parent := uint32(0)
	if !r.Root {
		if parent = w.locate(EngineHash(r.Parent)); parent == 0 {
			return false
		}
	}
	names := w.names[:0]
	at := r.Parent
	for _, c := range r.Contents {
		at = Mix(at, c)
		names = append(names, EngineHash(at))
	}
	w.names, b.names = names, names
	w.extend(parent, &b)
	return true
}

// RemoveBlocks records that the publisher no longer holds blocks, given by
// chain hash, on a tier in a cache group. It reports how many of them it did
// not hold there. It is for what [Writer.StoreRun] placed.
func (w *Writer) RemoveBlocks(blocks []BlockHash, t Tier, g uint8) (unknown int) {
	names := w.names[:0]
	for _, b := range blocks {
		names = append(names, EngineHash(b))
	}
	w.names = names
	return w.Remove(names, t, g)
}

// Announce records that the publisher has a cache group, before any block of
// it is stored: a block counts only where every announced group holds it.
func (w *Writer) Announce(g uint8) {
	w.ix.world.RLock()
	defer w.ix.world.RUnlock()
	w.kind(TierDevice, g, true)
}

// Lacks tells whether the index lacks blocks that the publisher announced and
// did not remove: they wait for their parent, or were dropped for want of room
// since it was cleared. The publisher is incomplete then, whatever its history
// is.
func (w *Writer) Lacks() bool { return w.orphans.lacks() || w.Evicted() }

// Evicted tells whether the index dropped blocks of the publisher for want of
// room since it was cleared.
func (w *Writer) Evicted() bool {
	w.ix.world.RLock()
	defer w.ix.world.RUnlock()
	return w.evicted
}
