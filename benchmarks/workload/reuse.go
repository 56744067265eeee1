package workload

import (
	"cmp"
	"slices"
)

// Reuse is how much of a workload's prompts a cache could answer.
type Reuse struct {
	// Tokens is that of all prompts, Blocks the number of different blocks, those
	// of answers included.
	Tokens, Blocks int
	// points are the tokens that a cache of a capacity in blocks finds, and one
	// of less does not.
	points []reusePoint
}

type reusePoint struct {
	blocks int // the least capacity
	tokens int // found by it and not by less
}

// ReuseOf replays w into one cache of blocks that forgets the least recently
// used, for every capacity at once, by stack distance (Mattson et al.,
// "Evaluation techniques for storage hierarchies", IBM Systems Journal 9:2,
// 1970). order, as of [Workload.Arrivals], is that of the requests; nil is the
// recorded one. The first warmup requests fill the cache and do not count. A prompt finds a block only with all blocks before it; its last
// blocks are forgotten first. What answers fill is in the cache, whether later
// prompts contain it or not. Adapters share no blocks.
//
// That is a practical ceiling for any number of caches as large together: it
// holds nothing twice, and nothing in the wrong place. It is no bound, for least
// recently used is not the best rule, only the usual one.
func ReuseOf(w *Workload, order []int, warmup int) Reuse {
	refs := 0
	for i := range w.Requests {
		r := &w.Requests[i]
		refs += len(r.Blocks) + len(r.OutputBlocks) + r.answerBlocks()
	}
	c := stack{last: map[block]int{}, live: make([]int, refs+1)}
	var out Reuse
	found := map[int]int{}
	for n := range w.Requests {
		i := n
		if order != nil {
			i = order[n]
		}
		r := &w.Requests[i]
		if n >= warmup {
			out.Tokens += r.InputTokens
		}
		whole := r.Blocks[:r.WholeBlocks()]
		// The last token is always computed, so a prompt of whole blocks would
		// find its last one in vain.
		for _, id := range whole[:min(len(whole), (r.InputTokens-1)/BlockTokens)] {
			depth, ok := c.depth(block{id, r.Adapter})
			if !ok {
				break
			}
			// Whoever touches a block touches those before it right after, so
			// depths grow along a prompt, and a block that a cache still has is
			// not alone.
			if n >= warmup {
				found[depth] += BlockTokens
			}
		}
		out.Blocks += c.fill(r.answerBlocks())
		for _, id := range slices.Backward(r.OutputBlocks) {
			c.touch(block{id, r.Adapter})
		}
		for _, id := range slices.Backward(whole) {
			c.touch(block{id, r.Adapter})
		}
	}
	out.Blocks += len(c.last)
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

// answerBlocks is how many blocks the answer fills that nobody will ask for. The
// last token is sampled and never fed back.
func (r *Request) answerBlocks() int {
	return max(0, (r.InputTokens+r.OutputTokens-1)/BlockTokens-r.WholeBlocks()-len(r.OutputBlocks))
}

// block is a block's identity.
type block struct {
	id      uint64
	adapter string
}

// stack counts the different blocks that were touched since a block was: a
// Fenwick tree over the touches marks the last one of each block.
type stack struct {
	last map[block]int
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
func (s *stack) depth(b block) (int, bool) {
	at, ok := s.last[b]
	if !ok {
		return 0, false
	}
	return s.upTo(s.now) - s.upTo(at-1), true
}

func (s *stack) touch(b block) {
	if at, ok := s.last[b]; ok {
		s.add(at, -1)
	}
	s.now++
	s.last[b] = s.now
	s.add(s.now, 1)
}

// fill touches n blocks that will not be touched again, and returns n.
func (s *stack) fill(n int) int {
	for range n {
		s.now++
		s.add(s.now, 1)
	}
	return n
}
