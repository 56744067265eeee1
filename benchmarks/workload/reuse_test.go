package workload

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// cacheHits is the dumb way: a list, the most recently used block first, cut
// at the capacity.
func cacheHits(w *Workload, order []int, capacity, warmup int) int {
	type name struct {
		id      uint64
		adapter string
	}
	var list []name
	use := func(b name) {
		if i := slices.Index(list, b); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
		list = slices.Insert(list, 0, b)
	}
	tokens, answers := 0, uint64(1<<50)
	for at, i := range order {
		r := &w.Requests[i]
		held := list[:min(len(list), capacity)]
		for j, b := range r.Blocks[:r.WholeBlocks()] {
			if !slices.Contains(held, name{b, r.Adapter}) || (j+1)*BlockTokens == r.InputTokens {
				break
			}
			if at >= warmup {
				tokens += BlockTokens
			}
		}
		for n := r.WholeBlocks() + len(r.OutputBlocks); n < (r.InputTokens+r.OutputTokens-1)/BlockTokens; n++ {
			answers++
			use(name{answers, ""})
		}
		for _, b := range slices.Backward(r.OutputBlocks) {
			use(name{b, r.Adapter})
		}
		for _, b := range slices.Backward(r.Blocks[:r.WholeBlocks()]) {
			use(name{b, r.Adapter})
		}
	}
	return tokens
}

func TestReuseOf_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &Workload{}
		for range rapid.IntRange(1, 30).Draw(t, "requests") {
			// Blocks of a tree, so that equal names have equal histories.
			blocks := []uint64{uint64(rapid.IntRange(1, 3).Draw(t, "root"))}
			for range rapid.IntRange(0, 5).Draw(t, "more") {
				blocks = append(blocks, blocks[len(blocks)-1]*4+uint64(rapid.IntRange(0, 2).Draw(t, "child")))
			}
			split := rapid.IntRange(1, len(blocks)).Draw(t, "split")
			r := Request{InputTokens: split * BlockTokens, OutputTokens: rapid.IntRange(1, 4*BlockTokens).Draw(t, "output"), Blocks: blocks[:split], OutputBlocks: blocks[split:]}
			r.Adapter = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "adapter")
			if rapid.Bool().Draw(t, "partial") {
				r.InputTokens++
				r.Blocks = append(slices.Clone(r.Blocks), 1<<40)
			}
			w.Requests = append(w.Requests, r)
		}
		order := rapid.Permutation(first(len(w.Requests))).Draw(t, "order")
		warmup, total := rapid.IntRange(0, len(w.Requests)).Draw(t, "warmup"), 0
		for _, i := range order[warmup:] {
			total += w.Requests[i].InputTokens
		}
		reuse := ReuseOf(w, order, warmup)
		for capacity := range reuse.Blocks + 2 {
			want := float64(cacheHits(w, order, capacity, warmup)) / float64(max(1, total))
			if got := reuse.Hit(capacity); math.Abs(got-want) > 1e-12 {
				t.Fatalf("%d blocks find %v, want %v", capacity, got, want)
			}
		}
		if reuse.Unbounded() != reuse.Hit(math.MaxInt) {
			t.Fatal("a cache of all blocks is not unbounded")
		}
		if recorded := ReuseOf(w, nil, 0); recorded.Hit(7) != ReuseOf(w, first(len(w.Requests)), 0).Hit(7) {
			t.Fatal("no order is not that of the workload")
		}
	})
}

// first returns the whole numbers below n.
func first(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}
