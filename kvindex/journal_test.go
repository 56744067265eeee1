package kvindex

import (
	"cmp"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// replica keeps what a journal tells, in maps, and passes it on to a Writer of
// another index as runs.
type replica struct {
	journal Journal
	notes   Notes
	parent  map[BlockHash]BlockHash
	held    map[BlockHash]map[[2]uint8]bool
	kept    map[BlockHash]bool
	to      *Writer
}

func (r *replica) reset() {
	r.parent, r.held = map[BlockHash]BlockHash{}, map[BlockHash]map[[2]uint8]bool{}
	r.kept = map[BlockHash]bool{}
	r.to.Clear()
}

// lead passes over what lies between a block and the nearest one that is held.
func (r *replica) lead(t *rapid.T, parent BlockHash) (root bool) {
	if parent == machineRoot {
		return true
	}
	if len(r.held[parent]) > 0 {
		return false
	}
	before, ok := r.parent[parent]
	if !ok {
		t.Fatalf("block %x was never spoken of", parent)
	}
	root = r.lead(t, before)
	if !r.to.StoreRun(Run{Parent: before, Root: root, Contents: []ContentHash{Unmix(before, parent)}, Passing: true}) {
		t.Fatalf("no place behind %x", before)
	}
	return false
}

func (r *replica) sync(t *rapid.T) {
	r.journal.Take(&r.notes)
	if r.notes.Cleared {
		r.reset()
	}
	for _, g := range r.notes.Groups {
		r.to.Announce(g)
	}
	for _, c := range r.notes.Changes {
		r.parent[c.Block] = c.Parent
		at := [2]uint8{uint8(c.Tier), c.Group}
		switch c.Kind {
		case BlockHeld:
			if r.held[c.Block][at] {
				t.Fatalf("block %x is held on %v twice", c.Block, at)
			}
			run := Run{Parent: c.Parent, Root: r.lead(t, c.Parent), Contents: []ContentHash{Unmix(c.Parent, c.Block)}, Tier: c.Tier, Group: c.Group}
			for range 2 { // what is told twice is held once
				if !r.to.StoreRun(run) {
					t.Fatalf("no place for %x", c.Block)
				}
			}
			if r.held[c.Block] == nil {
				r.held[c.Block] = map[[2]uint8]bool{}
			}
			r.held[c.Block][at] = true
		case BlockGone:
			if !r.held[c.Block][at] {
				t.Fatalf("block %x is gone from %v and was not there", c.Block, at)
			}
			if delete(r.held[c.Block], at); len(r.held[c.Block]) == 0 {
				delete(r.held, c.Block)
			}
			if n := r.to.RemoveBlocks([]BlockHash{c.Block}, c.Tier, c.Group); n != 0 {
				t.Fatalf("block %x was not held on %v in the copy", c.Block, at)
			}
		case BlockKept, BlockLet:
			if kept := c.Kind == BlockKept; r.kept[c.Block] == kept {
				t.Fatalf("block %x is kept: %t, which it was before", c.Block, kept)
			}
			if r.kept[c.Block] = c.Kind == BlockKept; c.Kind == BlockLet {
				delete(r.kept, c.Block)
			}
		}
	}
}

// sparedBlocks returns the blocks that have spares.
func (w *Writer) sparedBlocks() map[BlockHash]bool {
	blocks := map[BlockHash]bool{}
	for k := range w.spares {
		s := span(w.ix.slab.head(refSegment(k.ref))[hSpan])
		blocks[BlockHash(w.ix.hashes(s)[refOffset(k.ref)])] = true
	}
	return blocks
}

// heldBlocks returns what a publisher holds, sorted.
func heldBlocks(ix *Index, id PublisherID) []HeldBlock {
	held := ix.AppendHeldBlocks(nil, id)
	slices.SortFunc(held, func(a, b HeldBlock) int { return cmp.Compare(a.Hash, b.Hash) })
	return held
}

// What a journal tells is what the Writer did: an index fed by it as runs, with
// publishers beside it that name the same blocks in their own way, holds the
// same and answers the same.
func TestJournal_CopiesAnIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		copied, err := New(Config{PredictionTTL: machineTTL})
		if err != nil {
			t.Fatal(err)
		}
		copied.remember = m.ix.remember
		replicas := map[PublisherID]*replica{}
		twin := map[PublisherID]*Writer{}
		open := func(id PublisherID) {
			w, err := copied.Open(m.writers[id].Publisher())
			if err != nil {
				t.Fatal(err)
			}
			if twin[id] = w; id%2 == 0 {
				r := &replica{to: w}
				r.reset()
				m.writers[id].Follow(&r.journal)
				replicas[id] = r
			}
		}
		for id := range PublisherID(machinePublishers) {
			open(id)
		}
		m.also = func(id PublisherID, do func(*Writer)) {
			if id%2 == 1 {
				do(twin[id])
			}
		}
		m.reopened = func(id PublisherID) {
			twin[id].Close()
			open(id)
		}
		t.Repeat(map[string]func(*rapid.T){
			"store": m.store, "store more": m.store, "remove": m.removed, "clear": m.clear,
			"": func(t *rapid.T) {
				for id := range PublisherID(machinePublishers) {
					if r := replicas[id]; r != nil {
						r.sync(t)
						if d := gocmp.Diff(m.writers[id].sparedBlocks(), r.kept); d != "" {
							t.Fatalf("publisher %d: blocks with spares (-index +journal):\n%s", id, d)
						}
					}
					if d := gocmp.Diff(heldBlocks(m.ix, id), heldBlocks(copied, id)); d != "" {
						t.Fatalf("publisher %d (-index +copy):\n%s", id, d)
					}
				}
				for _, contents := range m.chains[max(0, len(m.chains)-8):] {
					chain := AppendChain(nil, machineRoot, contents)
					if d := gocmp.Diff(matches(m.ix, chain), matches(copied, chain)); d != "" {
						t.Fatalf("match of %d blocks (-index +copy):\n%s", len(chain), d)
					}
				}
				if err := copied.audit(); err != nil {
					t.Fatal(err)
				}
			},
		})
	})
}

func matches(ix *Index, chain []BlockHash) map[PublisherID]Match {
	out := map[PublisherID]Match{}
	for _, m := range ix.Match(nil, chain, time.Unix(1000, 0), nil) {
		out[m.ID] = m
	}
	return out
}

// Blocks that another publisher's store evicts are noted as well.
func TestJournal_NotesEvictions(t *testing.T) {
	ix := newIndex(t, Config{MaxBlocks: 1024})
	a, b := open(t, ix, 1), open(t, ix, 2)
	var j Journal
	a.Follow(&j)
	held, kept := map[BlockHash]bool{}, map[BlockHash]bool{}
	var notes Notes
	for i := range 40 {
		w := a
		if i%2 == 1 {
			w = b
		}
		p := newPrompt(uint64(i), 64)
		w.Store(p.stored(0, 64))
		w.Store(p.stored(0, 5))
		w.Remove(p.names[:2], TierDevice, 0)
		j.Take(&notes)
		for _, c := range notes.Changes {
			switch c.Kind {
			case BlockHeld:
				held[c.Block] = true
			case BlockGone:
				delete(held, c.Block)
			case BlockKept:
				kept[c.Block] = true
			case BlockLet:
				delete(kept, c.Block)
			}
		}
	}
	if d := gocmp.Diff(a.sparedBlocks(), kept); d != "" {
		t.Errorf("blocks with spares (-index +journal):\n%s", d)
	}
	if !a.Evicted() {
		t.Fatal("nothing was evicted: the test tests nothing")
	}
	want := map[BlockHash]bool{}
	for _, h := range ix.AppendHeld(nil, 1) {
		want[h] = true
	}
	if d := gocmp.Diff(want, held); d != "" {
		t.Errorf("held (-index +journal):\n%s", d)
	}
	if a.Clear(); a.Evicted() {
		t.Error("evicted, after a clear")
	}
}

func TestStoreRun_UnknownParent(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	p := newPrompt(1, 4)
	if w.StoreRun(Run{Parent: p.chain[0], Contents: p.contents[1:]}) {
		t.Error("a run was placed behind a block that nobody spoke of")
	}
	if !w.StoreRun(Run{Parent: machineRoot, Root: true, Contents: p.contents[:1], Passing: true}) ||
		!w.StoreRun(Run{Parent: p.chain[0], Contents: p.contents[1:]}) {
		t.Error("a run was not placed behind a block that is passed over")
	}
	if got := ix.AppendHeld(nil, 1); len(got) != 3 {
		t.Errorf("%d blocks held, want 3", len(got))
	}
	if n := device(ix, p.chain, 1); n != 0 {
		t.Errorf("%d blocks matched, want 0: the first is not held", n)
	}
	if n := w.RemoveBlocks(p.chain, TierDevice, 0); n != 1 {
		t.Errorf("%d blocks were not held, want 1", n)
	}
}

func TestStoreRun_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	p := newPrompt(1, 64)
	w.StoreRun(Run{Parent: machineRoot, Root: true, Contents: p.contents})
	if n := testing.AllocsPerRun(100, func() {
		w.RemoveBlocks(p.chain[32:], TierDevice, 0)
		w.StoreRun(Run{Parent: p.chain[31], Contents: p.contents[32:]})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A block that loses its last name is let go with its copies.
func TestJournal_LetsGoOfWhatIsDisowned(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	var j Journal
	w.Follow(&j)
	p := newPrompt(1, 2)
	w.Store(p.stored(0, 2))
	w.Store(p.stored(1, 2))
	w.Store(Stored{HasParent: true, Parent: 7, Names: p.names[1:], Contents: p.contents[1:]})
	var notes Notes
	j.Take(&notes)
	var got []ChangeKind
	for _, c := range notes.Changes {
		if c.Block == p.chain[1] {
			got = append(got, c.Kind)
		}
	}
	if want := []ChangeKind{BlockHeld, BlockKept, BlockGone, BlockLet}; !slices.Equal(got, want) {
		t.Errorf("noted %v, want %v", got, want)
	}
}
