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
