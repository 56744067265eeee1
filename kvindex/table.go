package kvindex

import (
	"math/bits"
	"sync/atomic"
)

// table is an open-addressing hash table of words: a 32-bit tag and a 31-bit
// value, both chosen by the caller, who verifies a candidate by what its
// value denotes. Buckets are one cache line. Any number of goroutines may
// find, insert and remove at once; only [table.grown] needs them all out.
// It holds the names that publishers share: one a block, where an entry of
// [xsync.MapOf] would cost more than all else about the block.
//
// A tag is the upper half of a hash and alone decides the bucket (multiply
// and shift, so that any number of buckets serves and a larger table is
// filled in the order of the old one).
type table struct {
	slots []uint64
	// used counts entries. Callers keep it, in batches: an atomic add per entry
	// costs as much as the rest of an insert.
	used atomic.Int64
}

const (
	bucketSlots = 8
	maxProbes   = 32
	// passed is a bit of a bucket's first slot: once an entry found the bucket
	// full and went on, lookups go on too. It stays until the table is rebuilt.
	passed = 1 << 31
)

func newTable(buckets int) *table {
	t := &table{slots: make([]uint64, buckets*bucketSlots)}
	hugePages(t.slots)
	return t
}

func tagOf(hash uint64) uint64 { return hash >> 32 }

// bucket returns the first slot of a tag's home.
func (t *table) bucket(tag uint64) int {
	hi, _ := bits.Mul64(tag<<32, uint64(len(t.slots)/bucketSlots))
	return int(hi) * bucketSlots
}

func (t *table) next(b int) int {
	if b += bucketSlots; b == len(t.slots) {
		return 0
	}
	return b
}

// full says that the table should grow: beyond 27/32 the probes get long.
func (t *table) full() bool { return int(t.used.Load())*32 > len(t.slots)*27 }

// touch loads a tag's line, so that the misses of many overlap; the compiler
// keeps atomic loads.
func (t *table) touch(tag uint64) { atomic.LoadUint64(&t.slots[t.bucket(tag)]) }

// insert adds an entry, or reports that there is no room near its home.
func (t *table) insert(tag uint64, value uint32) bool {
	b := t.bucket(tag)
	entry := tag<<32 | uint64(value)
	for range min(maxProbes, len(t.slots)/bucketSlots) {
		line := t.slots[b : b+bucketSlots : b+bucketSlots]
		for i := range line {
			for {
				s := atomic.LoadUint64(&line[i])
				if s&^passed != 0 {
					break
				}
				if atomic.CompareAndSwapUint64(&line[i], s, entry|s) {
					return true
				}
			}
		}
		for {
			s := atomic.LoadUint64(&line[0])
			if s&passed != 0 || atomic.CompareAndSwapUint64(&line[0], s, s|passed) {
				break
			}
		}
		b = t.next(b)
	}
	return false
}

// remove deletes the entry of exactly this tag and value.
func (t *table) remove(tag uint64, value uint32) bool {
	b := t.bucket(tag)
	entry := tag<<32 | uint64(value)
	for range min(maxProbes, len(t.slots)/bucketSlots) {
		line := t.slots[b : b+bucketSlots : b+bucketSlots]
		for i := range line {
			for {
				s := atomic.LoadUint64(&line[i])
				if s&^passed != entry {
					break
				}
				if atomic.CompareAndSwapUint64(&line[i], s, s&passed) {
					return true
				}
			}
		}
		if atomic.LoadUint64(&line[0])&passed == 0 {
			return false
		}
		b = t.next(b)
	}
	return false
}

// lineHas says whether a slot of a bucket has the tag, entry or not.
func lineHas(line *[bucketSlots]uint64, tag uint64) bool {
	return atomic.LoadUint64(&line[0])>>32 == tag || atomic.LoadUint64(&line[1])>>32 == tag ||
		atomic.LoadUint64(&line[2])>>32 == tag || atomic.LoadUint64(&line[3])>>32 == tag ||
		atomic.LoadUint64(&line[4])>>32 == tag || atomic.LoadUint64(&line[5])>>32 == tag ||
		atomic.LoadUint64(&line[6])>>32 == tag || atomic.LoadUint64(&line[7])>>32 == tag
}

// insertAlone inserts an entry where one line tells that no other has its
// tag, before and after. It reports false, with nothing changed, where the
// line does not tell.
func (t *table) insertAlone(tag uint64, value uint32) bool {
	b := t.bucket(tag)
	line := (*[bucketSlots]uint64)(t.slots[b:])
	if atomic.LoadUint64(&line[0])&passed != 0 || lineHas(line, tag) {
		return false
	}
	i := 0
	for ; i < bucketSlots; i++ {
		if atomic.LoadUint64(&line[i]) == 0 {
			break
		}
	}
	if i == bucketSlots || !atomic.CompareAndSwapUint64(&line[i], 0, tag<<32|uint64(value)) {
		return false
	}
	yield(gapNamed)
	others := 0
	for j := range line {
		if atomic.LoadUint64(&line[j])>>32 == tag {
			others++
		}
	}
	if others == 1 && atomic.LoadUint64(&line[0])&passed == 0 {
		return true
	}
	t.remove(tag, value)
	return false
}

// cursor walks the candidates of a tag.
type cursor struct {
	b, i, probes int
}

// find returns the next value whose tag is tag, 0 at the end. The zero cursor
// starts.
func (t *table) find(tag uint64, c *cursor) uint32 {
	if c.probes == 0 {
		*c = cursor{b: t.bucket(tag), probes: 1}
	}
	for {
		line := (*[bucketSlots]uint64)(t.slots[c.b:])
		if c.i == 0 && !lineHas(line, tag) {
			c.i = bucketSlots
		}
		for c.i < bucketSlots {
			s := atomic.LoadUint64(&line[c.i&(bucketSlots-1)])
			c.i++
			if s>>32 == tag && s&^passed&0xffffffff != 0 {
				return uint32(s &^ passed)
			}
		}
		if atomic.LoadUint64(&line[0])&passed == 0 || c.probes >= maxProbes || c.probes*bucketSlots >= len(t.slots) {
			return 0
		}
		c.b, c.i = t.next(c.b), 0
		c.probes++
	}
}

// grown returns a larger table with the same entries. Nobody may change t
// meanwhile; lookups may go on in t.
func (t *table) grown() *table {
	for buckets := len(t.slots)/bucketSlots + 1; ; {
		buckets += buckets / 4
		n := newTable(buckets)
		if n.fill(t.slots) {
			return n
		}
	}
}

// fill inserts the entries of another table into one that nobody else sees.
// Both are in the order of their tags, so this streams.
func (t *table) fill(from []uint64) bool {
	taken := make([]uint8, len(t.slots)/bucketSlots)
	for _, s := range from {
		if s &^= passed; s == 0 {
			continue
		}
		b := t.bucket(s >> 32)
		for probes := 1; taken[b/bucketSlots] == bucketSlots; probes++ {
			if probes == maxProbes {
				return false
			}
			t.slots[b] |= passed
			b = t.next(b)
		}
		t.slots[b+int(taken[b/bucketSlots])] |= s
		taken[b/bucketSlots]++
	}
	return true
}
