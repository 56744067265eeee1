package kvindex

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// A Writer restored from an export goes on as the one that was exported: the
// same events lead both to the same blocks, with other publishers beside them.
func TestExport_GoesOnAsBefore(t *testing.T) {
	exported := 0
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		m.many = false // such blocks are not exported
		copied, err := New(Config{PredictionTTL: machineTTL})
		if err != nil {
			t.Fatal(err)
		}
		copied.remember = m.ix.remember
		steps := func(n int) {
			for range n {
				switch rapid.IntRange(0, 9).Draw(t, "step") {
				case 0:
					m.clear(t)
				case 1, 2, 3:
					m.removed(t)
				default:
					m.store(t)
				}
			}
		}
		steps(rapid.IntRange(0, 40).Draw(t, "before"))
		twin := map[PublisherID]*Writer{}
		restore := func(id PublisherID) {
			w, err := copied.Open(m.writers[id].Publisher())
			if err != nil {
				t.Fatal(err)
			}
			e, ok := m.writers[id].Export(func(h BlockHash) bool { return h == machineRoot })
			if !ok {
				w.Close()
				return
			}
			if exported++; !w.Restore(e) {
				t.Fatalf("publisher %d: an export that cannot be restored", id)
			}
			twin[id] = w
			// Removed blocks that wait are not exported.
			m.writers[id].orphans = orphanage{}
			m.model.pubs[id].orphans, m.model.pubs[id].waiting = map[EngineHash]*modelOrphan{}, map[EngineHash][]EngineHash{}
		}
		for id := range PublisherID(machinePublishers) {
			restore(id)
		}
		m.also = func(id PublisherID, do func(*Writer)) {
			if w := twin[id]; w != nil {
				do(w)
			}
		}
		m.reopened = func(id PublisherID) {
			if w := twin[id]; w != nil {
				w.Clear()
			}
		}
		steps(rapid.IntRange(0, 40).Draw(t, "after"))
		for id := range twin {
			if d := gocmp.Diff(heldBlocks(m.ix, id), heldBlocks(copied, id)); d != "" {
				t.Fatalf("publisher %d (-index +restored):\n%s", id, d)
			}
		}
		if err := copied.audit(); err != nil {
			t.Fatal(err)
		}
	})
	if exported == 0 {
		t.Error("nothing could be exported: the test tests nothing")
	}
}

// What waited in vain is lost also when the parent came later: such a state
// must not pass for all that there is.
func TestExport_NotAfterBlocksWereLost(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	p := newPrompt(1, maxOrphans+2)
	isRoot := func(h BlockHash) bool { return h == machineRoot }
	w.Store(p.stored(1, maxOrphans+2))
	w.Store(p.stored(0, 1))
	if s := ix.Stats().Publishers[0]; s.Orphans != 0 || s.Dropped != 1 {
		t.Fatalf("%d blocks wait, %d were lost; want 0 and 1", s.Orphans, s.Dropped)
	}
	if _, ok := w.Export(isRoot); ok {
		t.Error("exported without the block that was lost")
	}
	w.Clear()
	w.Store(p.stored(0, 2))
	if _, ok := w.Export(isRoot); !ok {
		t.Error("not exported although a clear left nothing to lack")
	}
}

// Blocks that wait for their parent and are held no more keep nobody from
// exporting. Whoever goes on without them says so when it matters.
func TestExport_WithoutRemovedBlocksThatWait(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	held, late := newPrompt(1, 3), newPrompt(2, 5)
	isRoot := func(h BlockHash) bool { return h == machineRoot }
	w.Store(held.stored(0, 3))
	w.Store(late.stored(1, 4))
	if _, ok := w.Export(isRoot); ok {
		t.Error("exported while held blocks wait")
	}
	w.Remove(late.names[1:4], TierDevice, 0)
	e, ok := w.Export(isRoot)
	if !ok {
		t.Fatal("not exported although what waits is held no more")
	}
	other := newIndex(t, Config{})
	next := open(t, other, 1)
	if !next.Restore(e) {
		t.Fatal("an export that cannot be restored")
	}
	if d := gocmp.Diff(heldBlocks(ix, 1), heldBlocks(other, 1)); d != "" || next.Lacks() {
		t.Errorf("lacks blocks: %t (-index +restored):\n%s", next.Lacks(), d)
	}
	next.Store(late.stored(0, 1)) // the parent, behind which the old one places what waits
	next.Store(late.stored(4, 5))
	if !next.Lacks() {
		t.Error("a block behind one that was left out is not missed")
	}
}

// Blocks that only lead to others are there until those are, however many there
// are.
func TestRestore_ForgetsNothingOnTheWay(t *testing.T) {
	ix := newIndex(t, Config{})
	w := open(t, ix, 1)
	const chains = 2*remembered/segmentBlocks + 8
	var last []EngineHash // of the first segments, which the publisher still may name
	for i := range uint64(chains) {
		p := newPrompt(1+i, 2*segmentBlocks)
		w.Store(p.stored(0, len(p.names)))
		w.Remove(p.names[:segmentBlocks-1], TierDevice, 0)
		w.Remove(p.names[segmentBlocks:len(p.names)-1], TierDevice, 0)
		last = append(last, p.names[segmentBlocks-1])
	}
	w.Remove(last, TierDevice, 0)
	e, ok := w.Export(func(h BlockHash) bool { return h == machineRoot })
	if !ok {
		t.Fatal("not exported")
	}
	other := newIndex(t, Config{})
	if !open(t, other, 1).Restore(e) {
		t.Fatal("an export that cannot be restored")
	}
	want := heldBlocks(ix, 1)
	if d := gocmp.Diff(want, heldBlocks(other, 1)); d != "" || len(want) != chains {
		t.Errorf("%d blocks held, want %d (-index +restored):\n%s", len(want), chains, d)
	}
}
