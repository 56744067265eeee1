package tokenizer

import (
	"slices"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
)

// prompt is what is kept of a prompt that was tokenized. It is immutable once
// it is recorded.
type prompt struct {
	// count is its length in tokens.
	count  int
	blocks []routing.TokenBlocks
	// tail are its last tokens, from position tailAt, which is a multiple of
	// the first block size.
	tail   []kvindex.TokenID
	tailAt int
	// proves: the last message is long enough for a proof.
	proves bool
}

func (p *prompt) weight() int {
	n := 4 * len(p.tail)
	for _, b := range p.blocks {
		n += 40 + 8*len(b.Contents)
	}
	return n
}

// covers tells whether blocks of all sizes are known.
func covers(blocks []routing.TokenBlocks, sizes []int) bool {
	for _, size := range sizes {
		if !slices.ContainsFunc(blocks, func(b routing.TokenBlocks) bool { return b.Size == size }) {
			return false
		}
	}
	return true
}

// common is how many leading blocks b shares with the blocks of its size.
func common(b routing.TokenBlocks, blocks []routing.TokenBlocks) int {
	for _, o := range blocks {
		if o.Size != b.Size {
			continue
		}
		n := 0
		for n < len(b.Contents) && n < len(o.Contents) && b.Contents[n] == o.Contents[n] {
			n++
		}
		return n
	}
	return 0
}
