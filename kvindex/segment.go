package kvindex

import (
	"math/bits"
	"sync/atomic"
)

// head is a segment: up to 64 consecutive blocks of a chain and who holds
// which of them. It fills one cache line, and a segment with one holder needs
// no other line to be matched whole. DESIGN.md draws it.
//
// Every write happens under the segment's lock (or while the segment is not
// yet in the segment map). Readers take no lock. What they rely on:
//
//   - hVersion is raised after a change that lets memory be used for something
//     else: extents replaced, blocks cut off, an entry given to somebody else,
//     the segment given up. Memory is used anew only after that. A reader loads
//     the version before and after, and starts again where it changed.
//   - hSpan and hList are single words that say which blocks and which entries
//     there are. A slot is written before the word that admits it.
//   - A mask is one word, so a reader sees a set of blocks that the holder did
//     hold.
//   - Chain hashes are cumulative: a block that equals a request's block
//     stands for the whole prefix before it.
type head [unitWords]uint64

const (
	hVersion = iota
	hLast    // chain hash of the last block
	hSpan    // span
	hHeld    // the inline entry's mask
	hKey     // the inline entry's key
	hList    // list
	hNamed   // the inline entry's named mask; for writers only
	hParent  // chain hash before the first block, 0 if unknown; for writers only
)

const segmentBlocks = 64

// span tells where a segment's blocks are: extent | blocks<<32 | class<<40 |
// age<<48. The extent has 4<<class chain hashes, then as many names.
type span uint64

func makeSpan(ref uint32, n, class int, age uint16) span {
	return span(ref) | span(n)<<32 | span(class)<<40 | span(age)<<48
}
func (s span) ref() uint32               { return uint32(s) }
func (s span) len() int                  { return int(s >> 32 & 0xff) }
func (s span) class() int                { return int(s >> 40 & 0xff) }
func (s span) age() uint16               { return uint16(s >> 48) }
func (s span) cap() int                  { return 4 << s.class() }
func (s span) withLen(n int) span        { return s&^(0xff<<32) | span(n)<<32 }
func (s span) withAge(a uint16) span     { return s&^(0xffff<<48) | span(a)<<48 }
func spanClass(blocks int) int           { return max(0, bits.Len(uint(blocks-1))-2) }
func (ix *Index) hashes(s span) []uint64 { return ix.slab.extent(s.ref(), s.cap()) }
func (ix *Index) names(s span) []uint64 {
	return ix.slab.extent(s.ref(), 2*s.cap())[s.cap():]
}

// list tells where a segment's entries are: extent | entries<<32 | class<<52,
// listRich, listInline. The inline entry counts only where listInline is set.
type list uint64

const (
	listInline list = 1 << 63
	// listRich says that some entry is not (device, first group): a match then
	// takes the longer way.
	listRich list = 1 << 62
)

func makeList(ref uint32, n, class int) list { return list(ref) | list(n)<<32 | list(class)<<52 }
func (l list) ref() uint32                   { return uint32(l) }
func (l list) len() int                      { return int(l >> 32 & 0xfffff) }
func (l list) class() int                    { return int(l >> 52 & 0x1f) }
func (l list) flags() list                   { return l & (listInline | listRich) }

// listCap is the number of entries in an extent: masks, then keys two a word,
// then the second words.
func listCap(class int) int { return unitWords << class * 2 / 5 }

// key names an entry: holder slot<<8 | kind.
type key uint32

// The kinds: below kindHint, group index<<2 | tier; the entry's first word is
// the mask of held blocks. The second word of kind 0 is the mask of blocks
// whose shared name the holder announced and the index remembers.
const (
	kindBase key = 0
	// kindHint: blocks expected on an endpoint. First word mask, second word
	// the time after which they are not, in Unix ns.
	kindHint key = 0x40
	// kindOwn: first word 0, second word the mask of blocks for which the
	// holder announced names that are in its own table.
	kindOwn key = 0x80
)

func makeKey(slot uint32, kind key) key { return key(slot)<<8 | kind }
func (k key) slot() uint32              { return uint32(k >> 8) }
func (k key) kind() key                 { return k & 0xff }
func (k key) tier() Tier                { return Tier(k & 3) }
func (k key) group() int                { return int(k >> 2 & 7) }

// entryList is an entry extent laid out.
type entryList struct {
	held, keys, second []uint64
	n                  int
}

func (ix *Index) entries(l list) entryList {
	n := listCap(l.class())
	kw := (n + 1) / 2
	w := ix.slab.extent(l.ref(), unitWords<<l.class())
	return entryList{w[:n], w[n : n+kw], w[n+kw : n+kw+n], l.len()}
}

func (e *entryList) key(i int) key { return key(atomic.LoadUint64(&e.keys[i>>1]) >> (i & 1 * 32)) }

func (e *entryList) setKey(i int, k key) {
	w := &e.keys[i>>1]
	shift := i & 1 * 32
	store(w, *w&^(0xffffffff<<shift)|uint64(k)<<shift)
}

// entry is a holder's words in a locked segment; invalid once another entry
// is added.
type entry struct{ held, second *uint64 }

// each calls f for every entry of a locked segment, dead ones included.
func (ix *Index) each(h *head, f func(k key, e entry)) {
	l := list(atomic.LoadUint64(&h[hList]))
	if l&listInline != 0 {
		f(key(h[hKey]), entry{&h[hHeld], &h[hNamed]})
	}
	if l.len() == 0 {
		return
	}
	es := ix.entries(l)
	for i := range es.n {
		f(es.key(i), entry{&es.held[i], &es.second[i]})
	}
}

// entry finds a holder's entry in a locked segment.
func (ix *Index) entry(h *head, k key) (entry, bool) {
	l := list(h[hList])
	if l&listInline != 0 && key(h[hKey]) == k {
		return entry{&h[hHeld], &h[hNamed]}, true
	}
	if l.len() == 0 {
		return entry{}, false
	}
	es := ix.entries(l)
	for i := range es.n {
		if es.key(i) == k {
			return entry{&es.held[i], &es.second[i]}, true
		}
	}
	return entry{}, false
}

// bump tells readers that what they saw of the segment may be used anew.
func (h *head) bump() { atomic.StoreUint64(&h[hVersion], h[hVersion]+1) }

// addEntry adds an empty entry for a key that the locked segment lacks.
func (ix *Index) addEntry(h *head, k key) entry {
	l := list(h[hList])
	rich := list(0)
	if k.kind() != kindBase && k.kind() != kindOwn {
		rich = listRich
	}
	if l&listInline == 0 || (rich == 0 && h[hHeld] == 0 && h[hNamed] == 0 && key(h[hKey]).slot() != k.slot()) {
		if l&listInline != 0 { // of a holder that left
			store(&h[hList], uint64(l&^listInline))
			h.bump()
		}
		store(&h[hHeld], 0)
		store(&h[hNamed], 0)
		store(&h[hKey], uint64(k))
		atomic.StoreUint64(&h[hList], uint64(l|listInline|rich))
		return entry{&h[hHeld], &h[hNamed]}
	}
	if l.ref() == 0 || l.len() == listCap(l.class()) {
		l = ix.moveEntries(h, l, k.slot())
	}
	es := ix.entries(l)
	i := es.n
	store(&es.held[i], 0)
	store(&es.second[i], 0)
	es.setKey(i, k)
	atomic.StoreUint64(&h[hList], uint64(makeList(l.ref(), i+1, l.class())|l.flags()|rich))
	return entry{&es.held[i], &es.second[i]}
}

// moveEntries copies the entries that say anything, and those of the holder
// that is at work, to an extent with room for one more.
func (ix *Index) moveEntries(h *head, l list, worker uint32) list {
	var from entryList
	live := 0
	if l.ref() != 0 {
		from = ix.entries(l)
		for i := range from.n {
			if from.held[i]|from.second[i] != 0 || from.key(i).slot() == worker {
				live++
			}
		}
	}
	class := 0
	for listCap(class) < live+1+live/4 {
		class++
	}
	ref := ix.slab.alloc(class)
	to := ix.entries(makeList(ref, 0, class))
	n := 0
	for i := range from.n {
		if from.held[i]|from.second[i] == 0 && from.key(i).slot() != worker {
			continue
		}
		store(&to.held[n], from.held[i])
		store(&to.second[n], from.second[i])
		to.setKey(n, from.key(i))
		n++
	}
	next := makeList(ref, n, class) | l.flags()
	yield(gapMoved)
	atomic.StoreUint64(&h[hList], uint64(next))
	if l.ref() != 0 {
		yield(gapMoved)
		h.bump()
		ix.slab.release(l.ref(), l.class())
	}
	return next
}

// room makes the locked segment's extent hold n blocks.
func (ix *Index) room(h *head, n int) span {
	s := span(h[hSpan])
	if n <= s.cap() {
		return s
	}
	class := spanClass(n)
	ref := ix.slab.alloc(class)
	next := makeSpan(ref, s.len(), class, s.age())
	toHash, toName := ix.hashes(next), ix.names(next)
	fromHash, fromName := ix.hashes(s), ix.names(s)
	for i := range s.len() {
		store(&toHash[i], fromHash[i])
		store(&toName[i], fromName[i])
	}
	atomic.StoreUint64(&h[hSpan], uint64(next))
	yield(gapMoved)
	h.bump()
	ix.slab.release(s.ref(), s.class())
	return next
}

// newSegment makes a segment of one block that nobody sees yet.
func (ix *Index) newSegment(first, parent BlockHash, room int) uint32 {
	id := ix.slab.newHead()
	h := ix.slab.head(id)
	class := spanClass(min(room, segmentBlocks))
	s := makeSpan(ix.slab.alloc(class), 1, class, ix.age())
	store(&ix.hashes(s)[0], uint64(first))
	store(&ix.names(s)[0], 0)
	store(&h[hLast], uint64(first))
	store(&h[hHeld], 0)
	store(&h[hKey], 0)
	store(&h[hNamed], 0)
	h[hParent] = uint64(parent)
	store(&h[hList], 0)
	atomic.StoreUint64(&h[hSpan], uint64(s))
	return id
}

// settle tidies a locked segment after bits were taken from its entries:
// names that nobody announces any more are freed, blocks that nobody speaks of
// are cut off the end, and a segment without blocks is given up. took covers
// at least the blocks that lost something.
func (ix *Index) settle(id uint32, h *head, took uint64) {
	var live, named uint64
	ix.each(h, func(k key, e entry) {
		live |= *e.held
		switch k.kind() {
		case kindBase:
			named |= *e.second
		case kindOwn:
			live |= *e.second
		}
	})
	live |= named
	s := span(h[hSpan])
	names := ix.names(s)
	free := took &^ named & (1<<s.len() - 1)
	for gone := free; gone != 0; gone &= gone - 1 {
		i := bits.TrailingZeros64(gone)
		if n := names[i]; n != 0 {
			store(&names[i], 0)
			ix.shared.remove(hashName(EngineHash(n)), makeRef(id, i))
		}
	}
	n := bits.Len64(live)
	if n == s.len() {
		return
	}
	if n > 0 {
		store(&h[hLast], ix.hashes(s)[n-1])
		atomic.StoreUint64(&h[hSpan], uint64(s.withLen(n)))
		h.bump()
		return
	}
	ix.giveUp(id, h, s)
}

// giveUp returns an empty, locked segment's memory.
func (ix *Index) giveUp(id uint32, h *head, s span) {
	ix.segs.Delete(BlockHash(ix.hashes(s)[0]))
	l := list(h[hList])
	atomic.StoreUint64(&h[hSpan], 0)
	atomic.StoreUint64(&h[hList], 0)
	h.bump()
	ix.slab.release(s.ref(), s.class())
	if l.ref() != 0 {
		ix.slab.release(l.ref(), l.class())
	}
	ix.slab.freeHead(id)
}

// common returns how many of a segment's blocks the chain starts with, 0 where
// the segment is not of this chain. It takes no lock: the answer stands if the
// version did not change.
func (ix *Index) common(h *head, chain []BlockHash) int {
	s := span(atomic.LoadUint64(&h[hSpan]))
	n := s.len()
	if n == 0 {
		return 0
	}
	if len(chain) >= n && uint64(chain[n-1]) == atomic.LoadUint64(&h[hLast]) {
		return n
	}
	hashes := ix.hashes(s)
	yield(gapSpan)
	if uint64(chain[0]) != atomic.LoadUint64(&hashes[0]) {
		return 0
	}
	// Hashes are cumulative: up to some block all agree, behind it none.
	lo, hi := 1, min(n, len(chain), len(hashes))+1
	for lo+1 < hi {
		if mid := (lo + hi) / 2; atomic.LoadUint64(&hashes[mid-1]) == uint64(chain[mid-1]) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// strike takes everything that a holder has in a locked segment, which may
// long be another one.
func (ix *Index) strike(id uint32, h *head, slot uint32) {
	var took uint64
	ix.each(h, func(k key, e entry) {
		if k.slot() != slot {
			return
		}
		took |= *e.held
		if k.kind() != kindHint {
			took |= *e.second
		}
		store(e.held, 0)
		store(e.second, 0)
	})
	if took != 0 {
		ix.settle(id, h, took)
	}
}

// hasHolder says without a lock whether a holder has a live entry.
func (ix *Index) hasHolder(id, slot uint32) bool {
	h := ix.slab.head(id)
	for {
		v := atomic.LoadUint64(&h[hVersion])
		l := list(atomic.LoadUint64(&h[hList]))
		has := l&listInline != 0 && key(atomic.LoadUint64(&h[hKey])).slot() == slot &&
			atomic.LoadUint64(&h[hHeld])|atomic.LoadUint64(&h[hNamed]) != 0
		if l.len() > 0 {
			es := ix.entries(l)
			for i := 0; i < es.n && !has; i++ {
				has = es.key(i).slot() == slot && atomic.LoadUint64(&es.held[i])|atomic.LoadUint64(&es.second[i]) != 0
			}
		}
		if atomic.LoadUint64(&h[hVersion]) == v {
			return has
		}
	}
}
