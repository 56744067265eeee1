//go:build mutants

package kvindex

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMutants plants bugs, one at a time, and demands that the package's own
// tests fail, or hang, which takes them a minute:
//
//	go test -tags mutants -run Mutants -timeout 30m ./kvindex
//
// The first plants nothing and must pass: tests that fail by themselves would
// find every bug.
func TestMutants(t *testing.T) {
	for _, m := range []struct {
		name, file, old, new string
	}{
		{"no bug", "writer.go", "package kvindex", "package kvindex"},
		{"a removal is lost while a segment changes", "writer.go", "	mu.Lock()\n	defer mu.Unlock()\n	w.last = ref\n", "	w.last = ref\n	_ = mu\n"},
		{"a mask is copied wrongly to a larger extent", "segment.go", "store(&to.held[n], from.held[i])", "store(&to.held[n], from.held[i]|1)"},
		{"the generation is checked only once", "match.go", "if ix.cleared.Load() == cleared {", "if ix.cleared.Load() >= cleared {"},
		{"the careful way forgets to look again", "match.go", "ix.records.at(slot).generation.Load() == s.generations[slot]", "true"},
		{"a reused id inherits", "writer.go", "	w.Clear()\n	w.ix.closeSlot(w)", "	w.ix.closeSlot(w)"},
		{"a shared name speaks for whoever never announced it", "names.go", "if r == 0 || (w.ix.nameAt(r) == name && w.ix.announced(w.slot, r)) {", "if r == 0 || w.ix.nameAt(r) == name {"},
		{"the removal of an orphan is forgotten", "orphan.go", "	known = p.held>>kind&1 == 1\n	p.held &^= 1 << kind\n", "	known = p.held>>kind&1 == 1\n"},
		{"an orphan keeps its old parent", "orphan.go", "if !ok || p.parent != parent {", "if !ok {"},
		{"a match does not look at the version again", "match.go", "if atomic.LoadUint64(&h[hVersion]) == version {", "if true {"},
		{"an entry's place is given away in silence", "segment.go", "		yield(gapMoved)\n		h.bump()\n		ix.slab.release(l.ref(), l.class())", "		ix.slab.release(l.ref(), l.class())"},
		{"a clear misses a segment", "writer.go", "for _, id := range w.segs {\n		mu :=", "for _, id := range w.segs[min(1, len(w.segs)):] {\n		mu :="},
		{"a block is made twice", "place.go", "if b.i-first >= fork {", "if false {"},
		{"names of held blocks are forgotten", "recent.go", "mask := r.mask & *base.second &^ w.heldAny(h)", "mask := r.mask & *base.second"},
		{"copies on offload tiers are not counted", "copies.go", "		if kind.tier() != TierDevice && !w.once {\n			w.addCopies(k, 1)\n		}", ""},
		{"what a run tells twice is held twice", "copies.go", "if kind.tier() != TierDevice && !w.once {", "if kind.tier() != TierDevice {"},
		{"the journal misses a removal", "writer.go", "		w.note(h, kind, gone, BlockGone)\n", ""},
		{"the journal misses a removal of one of several names", "copies.go", "		w.note(h, kind, bit, BlockGone)\n", ""},
		{"the journal misses a block that is only passed over", "place.go", "				w.note(h, kindBase, f.named, BlockKnown)\n", ""},
		{"the journal misses a clear", "writer.go", "		w.journal.clear()\n", ""},
		{"the journal misses an eviction", "evict.go", "					w.note(h, k.kind(), *e.held, BlockGone)\n", ""},
		{"a second name does not keep a block", "copies.go", "		if w.copies[copyKey{n, kind}] > 0 {", "		if n == n+1 {"},
		{"one cache group is enough", "match_rich.go", "if a.seen[t] != all || groups == 0 {", "if a.seen[t]&all == 0 {"},
		{"a prediction never ends", "match_rich.go", "k.kind() != kindHint || ns >= int64(second)", "k.kind() != kindHint"},
		{"a dropped prediction takes another's blocks along", "predict.go", "n, deadline = max(n, o.n), max(deadline, other.deadline)", "_ = o"},
		{"a segment given up stays in the map", "segment.go", "	ix.segs.Delete(BlockHash(ix.hashes(s)[0]))\n", ""},
		{"eviction forgets the publisher's own names", "evict.go", "		case gone[refSegment(ref)]:\n			w.forgetCopies(old.names[i])\n", ""},
		{"eviction leaves trust as it was", "evict.go", "				w.rec.lower(TrustIncomplete)\n", ""},
		{"a segment whose blocks moved is taken for gone", "match.go", "		// Gone, or read while its blocks moved.\n", "		return nil, 0, 0\n"},
		{"a first block is made twice", "index.go", "		if !found {\n			return id, version\n		}\n", "		if found {\n			version = 0\n			id = ix.newSegment(first, before, room)\n			ix.segs.Store(first, id)\n		}\n		return id, version\n"},
		{"what was looked up ahead is believed unread", "match.go", "if n = ix.common(h, chain[pos:]); n == 0 {", "if n = min(segmentBlocks, len(chain)-pos); n == 0 {"},
		{"a block with a copy is forgotten", "recent.go", "	mask &^= w.spared(r.id, mask)\n", ""},
		{"a copy is never taken back", "spare.go", "		delete(w.spares, k)\n	default:", "	default:"},
		{"what was removed again is forgotten as of the first time", "recent.go", "old.mask &^ s.again[old.id]", "old.mask"},
		{"blocks that wait are not counted", "orphan.go", "	if p.held != 0 {\n		o.held++\n	}\n", ""},
		{"cut-off blocks are still last", "segment.go", "		store(&h[hLast], ix.hashes(s)[n-1])\n", ""},
	} {
		t.Run(strings.ReplaceAll(m.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			src, err := os.ReadFile(m.file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Count(string(src), m.old) == 0 {
				t.Fatalf("%s has no %q", m.file, m.old)
			}
			dir := t.TempDir()
			planted := filepath.Join(dir, m.file)
			if err := os.WriteFile(planted, []byte(strings.ReplaceAll(string(src), m.old, m.new)), 0o600); err != nil {
				t.Fatal(err)
			}
			abs, err := filepath.Abs(m.file)
			if err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{abs: planted}})
			if err != nil {
				t.Fatal(err)
			}
			list := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(list, overlay, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("go", "test", "-overlay", list, "-tags", "kvyield", "-vet=off", "-failfast", "-timeout", "1m", "-rapid.checks=400", "-rapid.shrinktime=1s", "-rapid.nofailfile", ".").CombinedOutput()
			switch {
			case m.old == m.new:
				if err != nil {
					t.Errorf("found without a bug:\n%s", out)
				}
			case err == nil:
				t.Error("survived")
			case strings.Contains(string(out), "[build failed]"):
				t.Errorf("does not build:\n%s", out)
			}
		})
	}
}
