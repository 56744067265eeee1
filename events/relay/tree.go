package relay

import (
	"slices"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

// tree is what one publisher holds, as the chains that it stands in: exactly
// what its Writer's journal told. A block that is not held stays as long as one
// behind it is, so that every block can be told of from its root on, or as the
// publisher may name it as a parent.
type tree struct {
	// nodes[0] is not used: 0 stands for none. free lists unused ones.
	nodes []node
	free  []int32
	index map[kvindex.BlockHash]int32
	// groups are the cache groups announced; a node's held bits go by the place
	// in it.
	groups []uint8
	held   int // nodes that are held anywhere
	ghosts ghosts
}

// node is a block, or the root of a scope.
type node struct {
	hash                kvindex.BlockHash
	parent              int32 // 0 of a root
	child               int32 // the first one
	next, prev          int32 // children of one parent, prev 0 of the first
	held                uint32
	kept                bool // see kvindex.BlockKept
	scope               uint32
	lastChild, children int32
}

// bitsPerGroup is the number of tiers, a bit each.
const bitsPerGroup = kvindex.NumTiers

func newTree() *tree {
	return &tree{nodes: make([]node, 1), index: map[kvindex.BlockHash]int32{}}
}

// clear empties the tree.
func (t *tree) clear() {
	t.nodes, t.free = t.nodes[:1], t.free[:0]
	clear(t.index)
	t.groups, t.held = t.groups[:0], 0
	t.ghosts = ghosts{}
}

// bit returns the held bit of a place; the group must have been announced.
func (t *tree) bit(tier kvindex.Tier, group uint8) uint32 {
	for i, g := range t.groups {
		if g == group {
			return 1 << (i*bitsPerGroup + int(tier))
		}
	}
	return 0
}

// places spells held bits out.
func (t *tree) places(held uint32) []*pb.Place {
	var out []*pb.Place
	for i, g := range t.groups {
		for tier := range kvindex.Tier(bitsPerGroup) {
			if held>>(i*bitsPerGroup+int(tier))&1 == 1 {
				out = append(out, &pb.Place{Tier: tierToWire(tier), Group: uint32(g)})
			}
		}
	}
	return out
}

// root returns the node of a scope's root, new if need be.
func (t *tree) root(hash kvindex.BlockHash, scope uint32) int32 {
	if i, ok := t.index[hash]; ok {
		return i
	}
	return t.add(hash, 0, scope)
}

// add makes a node, which must not exist.
func (t *tree) add(hash kvindex.BlockHash, parent int32, scope uint32) int32 {
	var i int32
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		i = int32(len(t.nodes))
		t.nodes = append(t.nodes, node{})
	}
	t.nodes[i] = node{hash: hash, parent: parent, scope: scope}
	t.index[hash] = i
	if parent != 0 {
		p := &t.nodes[parent]
		if t.nodes[i].prev = p.lastChild; p.lastChild == 0 {
			p.child = i
		} else {
			t.nodes[p.lastChild].next = i
		}
		p.lastChild = i
		p.children++
	}
	return i
}

// find returns the node of a block that was spoken of, made again from what is
// remembered if it has left the tree. 0: nothing is known of it.
func (t *tree) find(hash kvindex.BlockHash) int32 {
	if i, ok := t.index[hash]; ok {
		return i
	}
	var path []ghost
	for {
		g, ok := t.ghosts.get(hash)
		if !ok {
			return 0
		}
		path = append(path, g)
		i, ok := t.index[g.parent]
		if !ok && g.root {
			i, ok = t.add(g.parent, 0, g.scope), true
		}
		if !ok {
			hash = g.parent
			continue
		}
		for n := len(path) - 1; n >= 0; n-- {
			i = t.add(path[n].hash, i, path[n].scope)
		}
		return i
	}
}

// touch makes sure that a block has a node behind its parent. 0: the parent is
// not known.
func (t *tree) touch(block, parent kvindex.BlockHash) int32 {
	if i, ok := t.index[block]; ok {
		return i
	}
	p := t.find(parent)
	if p == 0 {
		return 0
	}
	return t.add(block, p, t.nodes[p].scope)
}

// hold sets a bit of a node and reports whether that is new.
func (t *tree) hold(i int32, bit uint32) bool {
	n := &t.nodes[i]
	if n.held&bit != 0 {
		return false
	}
	if n.held == 0 {
		t.held++
	}
	n.held |= bit
	return true
}

// drop clears a bit of a node and reports whether it was set.
func (t *tree) drop(i int32, bit uint32) bool {
	n := &t.nodes[i]
	if n.held&bit == 0 {
		return false
	}
	if n.held &^= bit; n.held == 0 {
		t.held--
		t.release(i)
	}
	return true
}

// keep has a node stay whether it is held or not, or no longer.
func (t *tree) keep(i int32, kept bool) {
	t.nodes[i].kept = kept
	t.release(i)
}

// release removes a node that nothing needs, and then those before it. What
// goes is remembered for a while, for a publisher may name as a parent what it
// removed a short time ago. Roots go too.
func (t *tree) release(i int32) {
	for i != 0 {
		n := &t.nodes[i]
		if n.held != 0 || n.kept || n.children > 0 {
			return
		}
		parent := n.parent
		if parent != 0 {
			p := &t.nodes[parent]
			t.ghosts.put(ghost{hash: n.hash, parent: p.hash, scope: n.scope, root: p.parent == 0})
			if n.prev != 0 {
				t.nodes[n.prev].next = n.next
			} else {
				p.child = n.next
			}
			if n.next != 0 {
				t.nodes[n.next].prev = n.prev
			} else {
				p.lastChild = n.prev
			}
			p.children--
		}
		delete(t.index, n.hash)
		*n = node{}
		t.free = append(t.free, i)
		i = parent
	}
}

// lead returns the runs that lead to a block that is not held, from the last
// one before it that is, or from the root, none longer than maxRun.
func (t *tree) lead(i int32) (runs []*pb.Run) {
	var back []int32
	for !t.isRoot(i) && t.nodes[i].held == 0 {
		back = append(back, i)
		i = t.nodes[i].parent
	}
	slices.Reverse(back)
	for path := range slices.Chunk(back, maxRun) {
		run := &pb.Run{Parent: uint64(t.nodes[t.nodes[path[0]].parent].hash), Scope: t.nodes[path[0]].scope}
		for _, i := range path {
			run.Contents = append(run.Contents, uint64(t.content(i)))
		}
		runs = append(runs, run)
	}
	return runs
}

// isRoot tells whether a node is that of a scope.
func (t *tree) isRoot(i int32) bool { return t.nodes[i].parent == 0 }

// content returns the content hash of a block.
func (t *tree) content(i int32) kvindex.ContentHash {
	n := &t.nodes[i]
	return kvindex.Unmix(t.nodes[n.parent].hash, n.hash)
}

// appendRuns appends the whole tree as runs, a block behind its parent, none
// longer than maxRun.
func (t *tree) appendRuns(dst []*pb.Run) []*pb.Run {
	var stack []int32
	for i := range t.nodes {
		if i > 0 && t.nodes[i].hash != 0 && t.nodes[i].parent == 0 {
			stack = t.pushChildren(stack, t.nodes[i].child)
		}
	}
	for len(stack) > 0 {
		i := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		n := t.nodes[i]
		run := &pb.Run{Parent: uint64(t.nodes[n.parent].hash), Scope: n.scope, Places: t.places(n.held)}
		for {
			run.Contents = append(run.Contents, uint64(t.content(i)))
			next := t.nodes[i].child
			if next == 0 {
				break
			}
			stack = t.pushChildren(stack, t.nodes[next].next)
			if t.nodes[next].held != n.held || len(run.Contents) == maxRun {
				stack = append(stack, next)
				break
			}
			i = next
		}
		dst = append(dst, run)
	}
	return dst
}

// pushChildren pushes a child and those after it.
func (t *tree) pushChildren(stack []int32, i int32) []int32 {
	for ; i != 0; i = t.nodes[i].next {
		stack = append(stack, i)
	}
	return stack
}

// ghostMemory is how many blocks are remembered that left the tree. A Writer
// remembers up to 2,048 as parents; blocks that only led to others leave the
// tree after they left its memory, hence the margin.
const ghostMemory = 1 << 13

// ghost is a block that has left the tree.
type ghost struct {
	hash, parent kvindex.BlockHash
	scope        uint32
	root         bool // parent is a root
}

// ghosts remember the last blocks that left, oldest first out.
type ghosts struct {
	ring  []ghost
	next  int
	index map[kvindex.BlockHash]int32 // to the latest place in ring
}

func (g *ghosts) put(x ghost) {
	if g.index == nil {
		g.index = map[kvindex.BlockHash]int32{}
	}
	at := g.next
	if len(g.ring) < ghostMemory {
		g.ring = append(g.ring, x)
	} else {
		if old := g.ring[at].hash; g.index[old] == int32(at) {
			delete(g.index, old)
		}
		g.ring[at] = x
	}
	g.index[x.hash] = int32(at)
	g.next = (at + 1) % ghostMemory
}

func (g *ghosts) get(h kvindex.BlockHash) (ghost, bool) {
	i, ok := g.index[h]
	if !ok {
		return ghost{}, false
	}
	return g.ring[i], true
}
