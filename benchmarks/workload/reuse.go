package workload

import (
	"cmp"
	"slices"
)

// Reuse is how much of a workload's prompts a cache could answer.
type Reuse struct {
	// Tokens is that of all prompts, Blocks the number of different blocks.
	Tokens, Blocks int
	// points are the tokens that a cache of a capacity in blocks finds, and one
	// of less does not.
	points []reusePoint
}

type reusePoint struct {
	blocks int // the least capacity
	tokens int // found by it and not by less
}

// ReuseOf replays w, in order of arrival, into one cache of blocks that
// forgets the least recently used, for every capacity at once, by stack
// distance (Mattson et al., "Evaluation techniques for storage hierarchies",
// IBM Systems Journal 9:2, 1970). A prompt finds a block only with all blocks
// before it; its last blocks are forgotten first. Answers stay in the cache.
func ReuseOf(w *Workload) Reuse {
	refs := 0
	for i := range w.Requests {
		refs += len(w.Requests[i].Blocks) + len(w.Requests[i].OutputBlocks)
	}
	c := stack{last: map[uint64]int{}, live: make([]int, refs+1)}
	var out Reuse
	found := map[int]int{}
	for i := range w.Requests {
		r := &w.Requests[i]
		out.Tokens += r.InputTokens
		whole := r.Blocks[:r.WholeBlocks()]
		for j, b := range whole {
			// The last token is always computed, so a prompt of whole blocks
			// finds its last one in vain.
			if (j+1)*BlockTokens >= r.InputTokens {
				break
			}
			depth, ok := c.depth(b)
			if !ok {
				break
			}
			// Whoever touches a block touches those before it right after, so
			// depths grow along a prompt, and a block that a cache still has is
			// not alone.
			found[depth] += BlockTokens
		}
		for _, b := range slices.Backward(r.OutputBlocks) {
			c.touch(b)
		}
		for _, b := range slices.Backward(whole) {
			c.touch(b)
		}
	}
	out.Blocks = len(c.last)
	for blocks, tokens := range found {
		out.points = append(out.points, reusePoint{blocks, tokens})
	}
	slices.SortFunc(out.points, func(a, b reusePoint) int { return cmp.Compare(a.blocks, b.blocks) })
	return out
}

// Hit is the share of all prompt tokens that a cache of that many blocks
// finds.
func (r Reuse) Hit(blocks int) float64 {
	tokens := 0
	for _, p := range r.points {
		if p.blocks > blocks {
			break
		}
		tokens += p.tokens
	}
	return float64(tokens) / float64(max(r.Tokens, 1))
}

// Unbounded is the share that a cache without bound finds.
func (r Reuse) Unbounded() float64 { return r.Hit(r.Blocks) }

// stack counts the different blocks that were touched since a block was: a
// Fenwick tree over the touches marks the last one of each block.
type stack struct {
	last map[uint64]int
	live []int
	now  int
}

func (s *stack) add(at, n int) {
	for ; at < len(s.live); at += at & -at {
		s.live[at] += n
	}
}

func (s *stack) upTo(at int) int {
	n := 0
	for ; at > 0; at -= at & -at {
		n += s.live[at]
	}
	return n
}

// depth is the number of blocks touched since b was, b included: the least
// capacity that still has it.
func (s *stack) depth(b uint64) (int, bool) {
	at, ok := s.last[b]
	if !ok {
		return 0, false
	}
	return s.upTo(s.now) - s.upTo(at-1), true
}

func (s *stack) touch(b uint64) {
	if at, ok := s.last[b]; ok {
		s.add(at, -1)
	}
	s.now++
	s.last[b] = s.now
	s.add(s.now, 1)
}
