package engine

import (
	"github.com/warmpath/warmpath/kvindex"
)

// node is the content of a cached block: its tokens and the chain before it.
// Nodes are immutable; a node outlives its block for as long as a descendant
// is cached, so that the prefix of every held block stays known.
type node struct {
	parent *node // nil for the block at token 0
	digest Digest
	tokens []kvindex.TokenID // one block
	scope  *scope
}

// scope is what separates chains besides tokens; one value per sequence.
type scope struct {
	adapter string
	salt    string
}

// noBlock marks the absence of a block in links between blocks.
const noBlock = -1

// block is one physical KV block.
type block struct {
	// refs counts the sequences that use the block. At 0 it is in the free
	// list, with or without content.
	refs int32
	// prev and next link the free list.
	prev, next int32
	// sibling is the next physical copy with the same digest, in the order in
	// which the copies were computed.
	sibling int32
	// node is the cached content, nil while the block is not visible.
	node *node
}

// blockPool is the KV cache of one engine: reference-counted blocks, a free
// list in least-recently-used order, and an index of cached contents. A free
// block keeps its content until it is taken for another use.
//
// The free list's head is reused first. Sequences return their blocks last
// block first, so a chain is eaten from its tail.
type blockPool struct {
	blocks []block // the last element is the free list's sentinel
	free   int
	cached map[Digest]int32 // first copy
	// halved has the contents of which a copy was removed, and none stored
	// since, while another one stayed: the removal's event does not tell.
	halved map[Digest]struct{}
	// emptyFirst has blocks without content go to the free list's head.
	emptyFirst bool
}

func newBlockPool(capacity int) *blockPool {
	p := &blockPool{
		blocks: make([]block, capacity+1),
		cached: make(map[Digest]int32),
		halved: make(map[Digest]struct{}),
	}
	s := p.sentinel()
	p.blocks[s].prev, p.blocks[s].next = s, s
	for i := range int32(capacity) {
		p.blocks[i].sibling = noBlock
		p.insertFree(i, p.blocks[s].prev)
	}
	return p
}

func (p *blockPool) sentinel() int32 { return int32(len(p.blocks) - 1) }

// capacity is the number of blocks.
func (p *blockPool) capacity() int { return len(p.blocks) - 1 }

// inUse is the number of blocks with references.
func (p *blockPool) inUse() int { return p.capacity() - p.free }

// lookup returns the first copy of a cached content.
func (p *blockPool) lookup(d Digest) (int32, bool) {
	id, ok := p.cached[d]
	return id, ok
}

// touch takes a reference to a cached block.
func (p *blockPool) touch(id int32) {
	b := &p.blocks[id]
	if b.refs == 0 {
		p.unlinkFree(id)
	}
	b.refs++
}

// take removes the least recently used free block from the free list and
// gives it to the caller with one reference. If the block still had a cached
// content, that is evicted and returned. It must not be called without a free
// block.
func (p *blockPool) take() (id int32, evicted *node) {
	id = p.blocks[p.sentinel()].next
	p.unlinkFree(id)
	b := &p.blocks[id]
	b.refs = 1
	if b.node != nil {
		evicted = b.node
		p.forget(id)
	}
	return id, evicted
}

// publish makes the content of a block in use visible. A content that is
// cached already gets another physical copy, behind the existing ones.
func (p *blockPool) publish(id int32, n *node) {
	p.blocks[id].node = n
	p.blocks[id].sibling = noBlock
	delete(p.halved, n.digest)
	at, ok := p.cached[n.digest]
	if !ok {
		p.cached[n.digest] = id
		return
	}
	for p.blocks[at].sibling != noBlock {
		at = p.blocks[at].sibling
	}
	p.blocks[at].sibling = id
}

// release returns one reference of each block, last block first. Blocks
// without references go to the end of the free list with their content; those
// that have none too, unless emptyFirst is set.
func (p *blockPool) release(ids []int32) {
	for i := len(ids) - 1; i >= 0; i-- {
		b := &p.blocks[ids[i]]
		b.refs--
		if b.refs == 0 {
			after := p.blocks[p.sentinel()].prev
			if p.emptyFirst && b.node == nil {
				after = p.sentinel()
			}
			p.insertFree(ids[i], after)
		}
	}
}

// reset forgets all contents. It reports false and does nothing while a block
// is in use.
func (p *blockPool) reset() bool {
	if p.inUse() > 0 {
		return false
	}
	clear(p.cached)
	clear(p.halved)
	for i := range p.capacity() {
		p.blocks[i].node = nil
		p.blocks[i].sibling = noBlock
	}
	return true
}

// forget removes one copy from the index.
func (p *blockPool) forget(id int32) {
	b := &p.blocks[id]
	d := b.node.digest
	first := p.cached[d]
	p.halved[d] = struct{}{}
	switch {
	case first != id:
		at := first
		for p.blocks[at].sibling != id {
			at = p.blocks[at].sibling
		}
		p.blocks[at].sibling = b.sibling
	case b.sibling != noBlock:
		p.cached[d] = b.sibling
	default:
		delete(p.cached, d)
		delete(p.halved, d)
	}
	b.node = nil
	b.sibling = noBlock
}

// insertFree puts a block into the free list behind another one, or behind the
// sentinel at its head.
func (p *blockPool) insertFree(id, after int32) {
	next := p.blocks[after].next
	p.blocks[id].prev, p.blocks[id].next = after, next
	p.blocks[after].next, p.blocks[next].prev = id, id
	p.free++
}

func (p *blockPool) unlinkFree(id int32) {
	b := &p.blocks[id]
	p.blocks[b.prev].next = b.next
	p.blocks[b.next].prev = b.prev
	p.free--
}
