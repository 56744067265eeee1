package kvindex

import (
	"cmp"
	"math/bits"
	"slices"
)

// Stats is the size of an Index at one instant. Writers stand still while it
// is counted; matches do not.
type Stats struct {
	// Blocks counts distinct blocks held by any publisher on any tier, Held
	// (publisher, block) pairs.
	Blocks, Held int
	// Segments counts the runs of blocks that they are kept in, Bytes the
	// memory of all but the publishers' own names and orphans.
	Segments, Bytes int
	// Predicted counts (endpoint, block) pairs expected, expired ones that
	// nobody has dropped yet included.
	Predicted  int
	Publishers []PublisherStats // by ID
}

// PublisherStats is one publisher's share of [Stats].
type PublisherStats struct {
	Publisher
	Trust Trust
	// Held counts blocks held on any tier, Tiers those on each; Names the
	// engine names known, those of blocks removed lately included; Orphans the
	// blocks parked for want of their parent, Spares the blocks of which the
	// engine may have another copy than the one that counts, or counted.
	Held, Names, Orphans, Spares int
	Tiers                        [NumTiers]int
	// Forwarded counts removals that took effect, Suppressed those absorbed by
	// another copy, Unknown those of blocks not held.
	Forwarded, Suppressed, Unknown uint64
	// Parked and Dropped count blocks that could not be placed when they came,
	// and of these the ones that were not even kept.
	Parked, Dropped uint64
}

// masks returns what the publisher holds of a segment that stands still, by
// the rule of [Match].
func (w *Writer) masks(h *head) (tiers [NumTiers]uint64, any uint64) {
	a := account{}
	w.ix.each(h, func(k key, e entry) {
		if k.slot() != w.slot || k.kind() >= kindHint || *e.held == 0 {
			return
		}
		t := k.tier()
		if a.seen[t] == 0 {
			a.tier[t] = *e.held
		}
		a.tier[t] &= *e.held
		a.seen[t] |= 1 << k.group()
	})
	all := uint8(1)<<len(w.groups) - 1
	for t := range tiers {
		if a.seen[t] == all && all != 0 {
			tiers[t] = a.tier[t]
			any |= tiers[t]
		}
	}
	return tiers, any
}

// Stats counts what the index holds.
func (ix *Index) Stats() Stats {
	ix.world.Lock()
	defer ix.world.Unlock()
	ix.mu.Lock()
	defer ix.mu.Unlock()
	s := Stats{Segments: ix.segs.Size(), Bytes: ix.bytes()}
	anyone := map[uint32]uint64{} // segments with blocks held, by id
	for _, w := range ix.publishers {
		p := PublisherStats{
			Publisher: w.pub, Trust: w.rec.trust(), Names: w.own.n, Orphans: len(w.orphans.parked), Spares: len(w.spares),
			Forwarded: w.counts.forwarded, Suppressed: w.counts.suppressed, Unknown: w.counts.unknown,
			Parked: w.counts.parked, Dropped: w.counts.dropped,
		}
		w.tidySegments()
		for _, id := range w.segs {
			h := ix.slab.head(id)
			if base, ok := ix.entry(h, w.key); ok {
				p.Names += bits.OnesCount64(*base.second)
			}
			tiers, any := w.masks(h)
			for t, m := range tiers {
				p.Tiers[t] += bits.OnesCount64(m)
			}
			p.Held += bits.OnesCount64(any)
			anyone[id] |= any
		}
		s.Held += p.Held
		s.Publishers = append(s.Publishers, p)
	}
	for _, m := range anyone {
		s.Blocks += bits.OnesCount64(m)
	}
	for _, e := range ix.endpoints {
		s.Predicted += e.pairs
	}
	slices.SortFunc(s.Publishers, func(a, b PublisherStats) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

// HeldBlock is one block of a publisher's held set.
type HeldBlock struct {
	Hash BlockHash
	// Parent is the chain hash before the block: of its parent, or the root.
	Parent BlockHash
	// Tiers has a bit per [Tier].
	Tiers uint8
}

// Content returns the block's content hash.
func (b HeldBlock) Content() ContentHash { return Unmix(b.Parent, b.Hash) }

// AppendHeldBlocks appends every block that the publisher holds on any tier to
// dst: the state at one instant. Within a chain parents mostly come before
// children, but nothing promises it.
func (ix *Index) AppendHeldBlocks(dst []HeldBlock, id PublisherID) []HeldBlock {
	ix.eachHeld(id, func(b HeldBlock) { dst = append(dst, b) })
	return dst
}

// AppendHeld appends the chain hash of every block that the publisher holds
// on any tier to dst, in no order.
func (ix *Index) AppendHeld(dst []BlockHash, id PublisherID) []BlockHash {
	ix.eachHeld(id, func(b HeldBlock) { dst = append(dst, b.Hash) })
	return dst
}

func (ix *Index) eachHeld(id PublisherID, f func(HeldBlock)) {
	ix.world.Lock()
	defer ix.world.Unlock()
	ix.mu.Lock()
	w := ix.publishers[id]
	ix.mu.Unlock()
	if w == nil {
		return
	}
	w.tidySegments()
	for _, id := range w.segs {
		h := ix.slab.head(id)
		tiers, any := w.masks(h)
		hashes := ix.hashes(span(h[hSpan]))
		for ; any != 0; any &= any - 1 {
			i := bits.TrailingZeros64(any)
			b := HeldBlock{Hash: BlockHash(hashes[i]), Parent: BlockHash(h[hParent])}
			if i > 0 {
				b.Parent = BlockHash(hashes[i-1])
			}
			for t, m := range tiers {
				b.Tiers |= uint8(m>>i&1) << t
			}
			f(b)
		}
	}
}
