package kvindex

import (
	"math/bits"
	"sync"
)

// ChangeKind says what a [Change] is.
type ChangeKind uint8

const (
	// BlockHeld: the publisher holds the block there from now on.
	BlockHeld ChangeKind = iota
	// BlockGone: it no longer does.
	BlockGone
	// BlockKnown: the publisher spoke of the block without holding it; others
	// may follow it in a chain. Tier and Group mean nothing.
	BlockKnown
	// BlockKept: the publisher may name the block as a parent for as long as it
	// likes, held or not, until BlockLet. Tier and Group mean nothing.
	BlockKept
	// BlockLet: it may so only for a while after it last held or named it, as
	// with any block. Tier and Group mean nothing.
	BlockLet
)

// Change is one change of what a publisher holds on one tier in one cache
// group: not an event, but what came of it.
type Change struct {
	// Block and Parent are chain hashes, Parent that of the block before or the
	// root.
	Block, Parent BlockHash
	Kind          ChangeKind
	Tier          Tier
	Group         uint8
}

// Notes is what a [Journal] noted, in this order: Cleared, then Groups, then
// Changes.
type Notes struct {
	// Cleared: everything before was forgotten.
	Cleared bool
	// Groups are cache groups that were announced. A block counts on a tier
	// only where every announced group holds it.
	Groups []uint8
	// Changes are in the order in which they happened.
	Changes []Change
}

// Journal notes what becomes of one publisher's blocks, for whoever keeps a
// copy of them. It belongs to the goroutine of the Writer that it follows;
// but evictions, which another publisher's Writer may cause, are noted too.
type Journal struct {
	mu    sync.Mutex
	notes Notes // guarded by mu
}

// Take moves what was noted since the last call to n, whose slices are used
// again.
func (j *Journal) Take(n *Notes) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n.Cleared, n.Groups, n.Changes = false, n.Groups[:0], n.Changes[:0]
	*n, j.notes = j.notes, *n
}

// Follow has j note every change from now on, which must be the first: a
// Writer that has just been opened or cleared. nil ends that. A Writer without
// a journal pays one comparison for each run of blocks.
func (w *Writer) Follow(j *Journal) { w.journal = j }

// note tells the journal of blocks of a locked segment.
func (w *Writer) note(h *head, kind key, mask uint64, what ChangeKind) {
	hashes := w.ix.hashes(span(h[hSpan]))
	c := Change{Kind: what, Tier: kind.tier()}
	if what == BlockHeld || what == BlockGone {
		c.Group = w.groups[kind.group()]
	}
	j := w.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	for ; mask != 0; mask &= mask - 1 {
		i := bits.TrailingZeros64(mask)
		c.Block, c.Parent = BlockHash(hashes[i]), BlockHash(h[hParent])
		if i > 0 {
			c.Parent = BlockHash(hashes[i-1])
		}
		j.notes.Changes = append(j.notes.Changes, c)
	}
}

func (j *Journal) group(g uint8) {
	j.mu.Lock()
	j.notes.Groups = append(j.notes.Groups, g)
	j.mu.Unlock()
}

// clear supersedes whatever was noted before.
func (j *Journal) clear() {
	j.mu.Lock()
	j.notes = Notes{Cleared: true, Groups: j.notes.Groups[:0], Changes: j.notes.Changes[:0]}
	j.mu.Unlock()
}
