package workload

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// cacheHits is the dumb way: a list, the most recently used block first, cut
// at the capacity.
func cacheHits(w *Workload, capacity int) int {
	var list []uint64
	use := func(b uint64) {
		if i := slices.Index(list, b); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
		list = slices.Insert(list, 0, b)
	}
	tokens := 0
	for i := range w.Requests {
		r := &w.Requests[i]
		held := list[:min(len(list), capacity)]
		for j, b := range r.Blocks[:r.WholeBlocks()] {
			if !slices.Contains(held, b) || (j+1)*BlockTokens == r.InputTokens {
				break
			}
			tokens += BlockTokens
		}
		for _, b := range slices.Backward(r.OutputBlocks) {
			use(b)
		}
		for _, b := range slices.Backward(r.Blocks[:r.WholeBlocks()]) {
			use(b)
		}
	}
	return tokens
}

func TestReuseOf_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &Workload{}
		total := 0
		for range rapid.IntRange(1, 30).Draw(t, "requests") {
			// Blocks of a tree, so that equal names have equal histories.
			blocks := []uint64{uint64(rapid.IntRange(1, 3).Draw(t, "root"))}
			for range rapid.IntRange(0, 5).Draw(t, "more") {
				blocks = append(blocks, blocks[len(blocks)-1]*4+uint64(rapid.IntRange(0, 2).Draw(t, "child")))
			}
			split := rapid.IntRange(1, len(blocks)).Draw(t, "split")
			r := Request{InputTokens: split * BlockTokens, OutputTokens: 1, Blocks: blocks[:split], OutputBlocks: blocks[split:]}
			if rapid.Bool().Draw(t, "partial") {
				r.InputTokens++
				r.Blocks = append(slices.Clone(r.Blocks), 1<<40)
			}
			total += r.InputTokens
			w.Requests = append(w.Requests, r)
		}
		reuse := ReuseOf(w)
		for capacity := range reuse.Blocks + 2 {
			want := float64(cacheHits(w, capacity)) / float64(total)
			if got := reuse.Hit(capacity); math.Abs(got-want) > 1e-12 {
				t.Fatalf("%d blocks find %v, want %v", capacity, got, want)
			}
		}
		if reuse.Unbounded() != reuse.Hit(math.MaxInt) {
			t.Fatal("a cache of all blocks is not unbounded")
		}
	})
}
