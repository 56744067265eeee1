package kvindex

import (
	"slices"
	"testing"
)

// removeElse has a publisher store and remove n other blocks, one by one.
func removeElse(w *Writer, n int) {
	other := newPrompt(99, n)
	w.Store(other.stored(0, n))
	for i := range other.names {
		w.Remove(other.names[n-1-i:n-i], TierDevice, 0)
	}
}

// nameFirst has another publisher hold p, and the blocks of removeElse, under
// other names, so that whoever comes next has names of its own.
func nameFirst(t *testing.T, ix *Index, p prompt) {
	t.Helper()
	w := open(t, ix, 1000)
	for _, p := range []prompt{p, newPrompt(99, 3*remembered)} {
		p.names = slices.Clone(p.names)
		for i := range p.names {
			p.names[i]++
		}
		for i := range p.names { // one by one, so that the table grows in time
			w.Store(p.stored(i, i+1))
		}
	}
}

// behind stores blocks behind the last one of p, and tells whether they found
// their place.
func (p prompt) behind(ix *Index, w *Writer, seed uint64) bool {
	kid := newPrompt(seed, 3)
	parked := ix.Stats().Publishers[0].Parked
	w.Store(Stored{HasParent: true, Parent: p.names[len(p.names)-1], Names: kid.names, Contents: kid.contents})
	return ix.Stats().Publishers[0].Parked == parked
}

// An engine that stored a block twice and removed it once goes on with the
// other copy: however much it removes meanwhile, it may name the block as a
// parent, until that copy has gone, too. The block does not count as held.
func TestStore_BehindAParentWithACopy(t *testing.T) {
	for _, ownNames := range []bool{false, true} {
		ix := newIndex(t, Config{})
		p := newPrompt(1, 5)
		w := open(t, ix, 1)
		if ownNames {
			nameFirst(t, ix, p)
		}
		w.Store(p.stored(0, 5))
		w.Store(p.stored(4, 5))
		for i := range 3 {
			if w.Remove(p.names[4:], TierDevice, 0); device(ix, p.chain, 1) != 4 {
				t.Fatalf("%d blocks after a removal, want 4", device(ix, p.chain, 1))
			}
			removeElse(w, 3*remembered)
			if !p.behind(ix, w, uint64(10+i)) {
				t.Fatalf("own names %t, round %d: a block behind one with a copy waits", ownNames, i)
			}
			w.Store(p.stored(4, 5))
		}
		w.Remove(p.names[4:], TierDevice, 0) // the copy that counts
		removeElse(w, 3*remembered)
		w.Remove(p.names[4:], TierDevice, 0) // and the other one
		if !p.behind(ix, w, 20) {
			t.Error("a block behind one just removed waits")
		}
		removeElse(w, 3*remembered)
		if p.behind(ix, w, 21) {
			t.Error("a block that has no copy is remembered for ever")
		}
		if n := ix.Stats().Publishers[0].Spares; n != 0 {
			t.Errorf("%d blocks have spares, want none", n)
		}
	}
}

// What is removed, stored and removed again is remembered as of the last time,
// at whichever of the removals the first is forgotten.
func TestStore_BehindAParentRemovedAgain(t *testing.T) {
	for _, ownNames := range []bool{false, true} {
		for others := 2*remembered - 5; others < 2*remembered+25; others++ {
			ix := newIndex(t, Config{})
			p := newPrompt(1, 5)
			if ownNames {
				nameFirst(t, ix, p)
			}
			w := open(t, ix, 1)
			w.Store(p.stored(0, 5))
			w.Remove(p.names[4:], TierDevice, 0)
			removeElse(w, others)
			w.Store(p.stored(4, 5))
			if w.Remove(p.names[4:], TierDevice, 0); !p.behind(ix, w, 5) {
				t.Errorf("own names %t: a block behind one just removed, which had been before %d others, waits", ownNames, others)
			}
		}
	}
}

// Blocks that an engine names as parents long after their only removal stay
// known for as long as it does.
func TestStore_AParentInUseIsNotForgotten(t *testing.T) {
	for _, ownNames := range []bool{false, true} {
		ix := newIndex(t, Config{})
		w := open(t, ix, 1)
		p := newPrompt(1, 5)
		if ownNames {
			nameFirst(t, ix, p)
		}
		w.Store(p.stored(0, 5))
		w.Remove(p.names[4:], TierDevice, 0)
		for i := range 10 {
			removeElse(w, remembered-5)
			if !p.behind(ix, w, uint64(10+i)) {
				t.Fatalf("own names %t, round %d: a block behind a parent in use waits", ownNames, i)
			}
		}
	}
}

// Naming removed blocks as parents, and nothing else, takes bounded memory.
func TestStore_UsesOfRemovedParentsAreBounded(t *testing.T) {
	for _, ownNames := range []bool{false, true} {
		ix := newIndex(t, Config{})
		w := open(t, ix, 1)
		p := newPrompt(1, 2*segmentBlocks)
		if ownNames {
			nameFirst(t, ix, p)
		}
		w.Store(p.stored(0, len(p.names)))
		// Of two segments, so that one run does not stand for all.
		parents := []EngineHash{p.names[4], p.names[segmentBlocks+4]}
		w.Remove(parents, TierDevice, 0)
		for i := range 5 * remembered {
			kid := newPrompt(uint64(10+i%2), 1)
			if w.Store(Stored{HasParent: true, Parent: parents[i%2], Names: kid.names, Contents: kid.contents}) != 0 {
				t.Fatalf("own names %t, use %d: the block waits", ownNames, i)
			}
		}
		if r := w.recent; len(r.runs) > 2*remembered || len(r.names) > 2*remembered {
			t.Errorf("own names %t: %d runs and %d names are remembered", ownNames, len(r.runs), len(r.names))
		}
	}
}

// An engine that repeats what it holds, and so never takes a spare back, costs
// bounded memory.
func TestStore_SparesAreBounded(t *testing.T) {
	ix := newIndex(t, Config{})
	first := open(t, ix, 2)
	for id := range PublisherID(2) { // the second has names of its own
		w := open(t, ix, id)
		for seed := range uint64(200) {
			p := newPrompt(seed, 100)
			if id == 1 {
				first.Store(p.stored(0, 100))
				for i := range p.names {
					p.names[i]++
				}
			}
			for range 3 {
				w.Store(p.stored(0, 100))
			}
			slices.Reverse(p.names)
			w.Remove(p.names, TierDevice, 0)
		}
		s := ix.Stats().Publishers[id]
		if s.Spares > fewSpares+200 || s.Names > 2*fewSpares+2*remembered || s.Held != 0 {
			t.Errorf("publisher %d: %+v", id, s)
		}
	}
	if err := ix.audit(); err != nil {
		t.Error(err)
	}
}

// A publisher lacks blocks while some that it holds wait for their parent.
func TestLacks_WhileBlocksWait(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	p := newPrompt(1, 6)
	steps := []struct {
		name  string
		do    func()
		lacks bool
	}{
		{"nothing", func() {}, false},
		{"blocks without their parent", func() { w.Store(p.stored(2, 5)) }, true},
		{"the same again", func() { w.Store(p.stored(2, 5)) }, true},
		{"one is removed", func() { w.Remove(p.names[4:5], TierDevice, 0) }, true},
		{"the others are", func() { w.Remove(p.names[2:4], TierDevice, 0) }, false},
		{"one is back in host memory", func() { w.Store(Stored{Names: p.names[3:4], Tier: TierHost}) }, true},
		{"their parent came", func() { w.Store(p.stored(0, 2)) }, false},
		{"another one waits", func() {
			w.Store(Stored{HasParent: true, Parent: 7, Names: []EngineHash{8}, Contents: []ContentHash{9}})
		}, true},
		{"all is cleared", func() { w.Clear() }, false},
	}
	for _, s := range steps {
		if s.do(); w.Lacks() != s.lacks {
			t.Errorf("%s: lacks blocks: %t, want %t", s.name, w.Lacks(), s.lacks)
		}
	}
}

// What is exported goes on with the copies that it may have.
func TestExport_KeepsSpares(t *testing.T) {
	ix, copied := newIndex(t, Config{}), newIndex(t, Config{})
	w, twin := open(t, ix, 1), open(t, copied, 1)
	p := newPrompt(1, 5)
	w.Store(p.stored(0, 5))
	w.Store(p.stored(0, 5))
	w.Store(p.stored(3, 4))
	w.Remove(p.names[4:], TierDevice, 0)
	e, ok := w.Export(func(h BlockHash) bool { return h == machineRoot })
	if !ok || !twin.Restore(e) {
		t.Fatalf("exported: %t; and then not restored", ok)
	}
	for _, ix := range []*Index{ix, copied} {
		if s := ix.Stats().Publishers[0]; s.Held != 4 || s.Spares != 5 {
			t.Fatalf("%+v", s)
		}
	}
	for i := range 3 { // block 3 has the copy that counts and two spares
		w.Remove(p.names[3:4], TierDevice, 0)
		twin.Remove(p.names[3:4], TierDevice, 0)
		if a, b := ix.Stats().Publishers[0].Spares, copied.Stats().Publishers[0].Spares; a != b || a != 5-i/2 {
			t.Errorf("after %d removals %d blocks have spares, in the copy %d", i+1, a, b)
		}
	}
	removeElse(twin, 3*remembered)
	if !p.behind(copied, twin, 7) {
		t.Error("a block behind one with a copy waits")
	}
}

// Where parents are never told of, as of prompts that came from another engine,
// what waited and was removed makes room for what comes.
func TestStore_OrphansThatWereRemovedMakeRoom(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	kept := newPrompt(1, 4)
	w.Store(kept.stored(1, 4))
	w.Remove(kept.names[2:3], TierDevice, 0) // others are behind it
	for seed := range uint64(2 * maxOrphans / 100) {
		p := newPrompt(10+seed, 100)
		w.Store(p.stored(1, 100))
		w.Remove(p.names[1:], TierDevice, 0)
	}
	if s := ix.Stats().Publishers[0]; s.Dropped != 0 || s.Orphans > maxOrphans {
		t.Errorf("%+v", s)
	}
	w.Store(kept.stored(0, 1))
	if got := ix.AppendHeld(nil, 1); len(got) != 3 || device(ix, kept.chain, 1) != 2 || w.Lacks() {
		t.Errorf("%d blocks held, %d in a row, lacks blocks: %t; want 3, 2, false", len(got), device(ix, kept.chain, 1), w.Lacks())
	}
}
