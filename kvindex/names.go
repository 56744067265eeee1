package kvindex

import (
	"sync/atomic"
)

// A ref denotes a block: segment<<6 | offset. 0 denotes none: segment 0 is
// never used.
func makeRef(id uint32, off int) uint32 { return id<<6 | uint32(off) }
func refSegment(ref uint32) uint32      { return ref >> 6 }
func refOffset(ref uint32) int          { return int(ref & 63) }

// hashName spreads an engine's name over 64 bits. Names are hashes in most
// engines, but nothing promises it. Both steps are bijections.
func hashName(n EngineHash) uint64 {
	x := uint64(n)
	x = (x ^ x>>32) * mixB
	x = (x ^ x>>29) * mixA
	return x ^ x>>32
}

const (
	nameShards = 4
	// Every nameSample-th name, by its hash, is counted: cheap, and without
	// drift because a name is counted both in and out or not at all.
	nameSample = 16
)

// sharedNames maps an engine's name to the one block that it denotes for all
// publishers that agree. It does not say who agrees: that is an entry's named
// mask. The name itself stands beside the block's hash in the segment. It is
// changed under the index's world lock held for reading and grows under it
// held for writing.
type sharedNames struct {
	shards [nameShards]struct {
		*table
		want atomic.Bool // the table should grow
	}
	wanting atomic.Bool // some shard's want is set
}

func (n *sharedNames) init() {
	for i := range n.shards {
		n.shards[i].table = newTable(16)
	}
}

func (n *sharedNames) count(hash uint64, by int64) {
	if hash>>8%nameSample != 0 {
		return
	}
	s := &n.shards[hash%nameShards]
	if s.used.Add(by * nameSample); s.full() {
		n.ask(hash)
	}
}

func (n *sharedNames) ask(hash uint64) {
	n.shards[hash%nameShards].want.Store(true)
	n.wanting.Store(true)
}

func (n *sharedNames) remove(hash uint64, ref uint32) {
	if n.shards[hash%nameShards].remove(tagOf(hash), ref) {
		n.count(hash, -1)
	}
}

// touch loads a name's line; see [table.touch].
func (n *sharedNames) touch(hash uint64) {
	n.shards[hash%nameShards].touch(tagOf(hash))
}

// grow replaces tables that asked for it. The caller holds the world lock.
func (n *sharedNames) grow() {
	n.wanting.Store(false)
	for i := range n.shards {
		s := &n.shards[i]
		if !s.want.Load() {
			continue
		}
		used := s.used.Load()
		s.table = s.grown()
		s.used.Store(used)
		s.want.Store(false)
	}
}

func (n *sharedNames) bytes() (b int) {
	for i := range n.shards {
		b += 8 * len(n.shards[i].slots)
	}
	return b
}

// share files a name for a block of a locked segment whose name slot is free,
// or reports that the name denotes another block or finds no room.
func (ix *Index) share(name EngineHash, hash uint64, ref uint32, slot *uint64) bool {
	s := &ix.shared.shards[hash%nameShards]
	tag := tagOf(hash)
	if name == 0 {
		return false
	}
	store(slot, uint64(name))
	if s.insertAlone(tag, ref) {
		ix.shared.count(hash, 1)
		return true
	}
	store(slot, 0)
	if ix.denotes(s.table, tag, name, ref) {
		return false
	}
	// The slot is written before the entry and looked at behind it: of two
	// writers that file one name for two blocks, one at least sees the other.
	store(slot, uint64(name))
	if !s.insert(tag, ref) {
		store(slot, 0)
		ix.shared.ask(hash)
		return false
	}
	yield(gapNamed)
	if ix.denotes(s.table, tag, name, ref) {
		s.remove(tag, ref)
		store(slot, 0)
		return false
	}
	ix.shared.count(hash, 1)
	return true
}

// denotes says whether the table has the name for a block other than ref.
func (ix *Index) denotes(t *table, tag uint64, name EngineHash, ref uint32) bool {
	var c cursor
	for {
		r := t.find(tag, &c)
		if r == 0 {
			return false
		}
		if r != ref && ix.nameAt(r) == name {
			return true
		}
	}
}

// nameAt reads a block's shared name without a lock.
func (ix *Index) nameAt(ref uint32) EngineHash {
	h := ix.slab.head(refSegment(ref))
	for {
		v := atomic.LoadUint64(&h[hVersion])
		s := span(atomic.LoadUint64(&h[hSpan]))
		if s.ref() == 0 || refOffset(ref) >= s.cap() {
			return 0
		}
		n := atomic.LoadUint64(&ix.names(s)[refOffset(ref)])
		if atomic.LoadUint64(&h[hVersion]) == v {
			return EngineHash(n)
		}
	}
}

// announced says whether the holder announced the block's shared name in this
// generation and the index still remembers it. It takes no lock; only the
// holder's own Writer changes the answer.
func (ix *Index) announced(slot uint32, ref uint32) bool {
	h := ix.slab.head(refSegment(ref))
	k := makeKey(slot, kindBase)
	for {
		v := atomic.LoadUint64(&h[hVersion])
		l := list(atomic.LoadUint64(&h[hList]))
		mask := uint64(0)
		if l&listInline != 0 && key(atomic.LoadUint64(&h[hKey])) == k {
			mask = atomic.LoadUint64(&h[hNamed])
		} else if l.len() > 0 {
			es := ix.entries(l)
			for i := range es.n {
				if es.key(i) == k {
					mask = atomic.LoadUint64(&es.second[i])
					break
				}
			}
		}
		if atomic.LoadUint64(&h[hVersion]) == v {
			return mask>>refOffset(ref)&1 == 1
		}
	}
}

// locate returns the block that a name denotes for this publisher, 0 if it
// never announced the name or no longer has it.
func (w *Writer) locate(name EngineHash) uint32 {
	ix := w.ix
	if w.last != 0 && name != 0 { // events mostly go on where the last one ended
		id, off := refSegment(w.last), refOffset(w.last)
		for _, o := range [...]int{off, off + 1, off - 1} {
			if o < 0 || o >= segmentBlocks {
				continue
			}
			if r := makeRef(id, o); ix.nameAt(r) == name && ix.announced(w.slot, r) {
				return r
			}
		}
	}
	if w.own.n > 0 {
		if r := w.own.get(name); r != 0 {
			return r
		}
	}
	return w.locateShared(name)
}

func (w *Writer) locateShared(name EngineHash) uint32 {
	if name == 0 {
		return 0
	}
	hash := hashName(name)
	t := w.ix.shared.shards[hash%nameShards].table
	var c cursor
	for {
		r := t.find(tagOf(hash), &c)
		if r == 0 || (w.ix.nameAt(r) == name && w.ix.announced(w.slot, r)) {
			return r
		}
	}
}

// ownNames is one publisher's table of names that it does not share: another
// publisher's name stands in the block's slot, or the name denotes something
// else for others. Only its Writer uses it. Linear probing, deletion by
// shifting back.
type ownNames struct {
	names []EngineHash
	refs  []uint32 // 0 is a free slot
	n     int
}

func (o *ownNames) home(name EngineHash) int {
	return int(hashName(name) & uint64(len(o.refs)-1))
}

func (o *ownNames) get(name EngineHash) uint32 {
	if o.n == 0 {
		return 0
	}
	for i := o.home(name); ; i = (i + 1) & (len(o.refs) - 1) {
		if r := o.refs[i]; r == 0 || o.names[i] == name {
			return r
		}
	}
}

// put files a name that is not in the table.
func (o *ownNames) put(name EngineHash, ref uint32) {
	if (o.n+1)*5 > len(o.refs)*4 {
		old := *o
		size := max(8, 2*len(o.refs))
		*o = ownNames{names: make([]EngineHash, size), refs: make([]uint32, size), n: old.n}
		for i, r := range old.refs {
			if r != 0 {
				o.place(old.names[i], r)
			}
		}
	}
	o.place(name, ref)
	o.n++
}

func (o *ownNames) place(name EngineHash, ref uint32) {
	i := o.home(name)
	for o.refs[i] != 0 {
		i = (i + 1) & (len(o.refs) - 1)
	}
	o.names[i], o.refs[i] = name, ref
}

func (o *ownNames) remove(name EngineHash) {
	mask := len(o.refs) - 1
	i := o.home(name)
	for o.names[i] != name || o.refs[i] == 0 {
		if o.refs[i] == 0 {
			return
		}
		i = (i + 1) & mask
	}
	o.n--
	for j := i; ; {
		j = (j + 1) & mask
		if o.refs[j] == 0 {
			break
		}
		if h := o.home(o.names[j]); (j-h)&mask >= (j-i)&mask {
			o.names[i], o.refs[i] = o.names[j], o.refs[j]
			i = j
		}
	}
	o.refs[i] = 0
}

// of returns a name that denotes the block. It looks at every slot: only a
// block's second name asks for it.
func (o *ownNames) of(ref uint32) (EngineHash, bool) {
	for i, r := range o.refs {
		if r == ref {
			return o.names[i], true
		}
	}
	return 0, false
}
