package engine

import (
	"cmp"
	"slices"

	"github.com/warmpath/warmpath/kvindex"
)

// HeldBlock is one cached content of the block pool. It stays valid after
// later steps: it describes the moment of the call to [Core.Held].
type HeldBlock struct {
	// Hash is the block's name in KV events.
	Hash kvindex.EngineHash
	// Adapter and Salt are the LoRA adapter and the cache salt of the chain.
	Adapter, Salt string
	// Copies is the number of physical blocks with this content, at least 1.
	Copies int
	// CopyRemoved: the last event about this content announced the removal of
	// one of several copies. Who counts names and not copies takes it for gone.
	CopyRemoved bool

	node *node
}

// Blocks returns the number of blocks from token 0 to the block's end.
func (h HeldBlock) Blocks() int {
	n := 0
	for at := h.node; at != nil; at = at.parent {
		n++
	}
	return n
}

// AppendPrefix appends the token ids that the block stands for: those from
// position 0 to the block's end, whether the blocks before it are still held
// or not.
func (h HeldBlock) AppendPrefix(dst []kvindex.TokenID) []kvindex.TokenID {
	total := 0
	for at := h.node; at != nil; at = at.parent {
		total += len(at.tokens)
	}
	end := len(dst) + total
	dst = slices.Grow(dst, total)[:end]
	for at := h.node; at != nil; at = at.parent {
		end -= len(at.tokens)
		copy(dst[end:], at.tokens)
	}
	return dst
}

// Held returns every content that a new request could reuse now, from the
// block pool itself and not from the events, ordered by hash.
func (c *Core) Held() []HeldBlock {
	held := make([]HeldBlock, 0, len(c.pool.cached))
	for _, id := range c.pool.cached {
		n := c.pool.blocks[id].node
		copies := 0
		for at := id; at != noBlock; at = c.pool.blocks[at].sibling {
			copies++
		}
		_, halved := c.pool.halved[n.digest]
		held = append(held, HeldBlock{
			Hash:        n.digest.Wire(),
			Adapter:     n.scope.adapter,
			Salt:        n.scope.salt,
			Copies:      copies,
			CopyRemoved: halved,
			node:        n,
		})
	}
	slices.SortFunc(held, func(a, b HeldBlock) int { return cmp.Compare(a.Hash, b.Hash) })
	return held
}
