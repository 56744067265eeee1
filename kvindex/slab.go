package kvindex

import (
	"errors"
	"sync"
	"sync/atomic"
)

// The index's memory: two arenas of pointer-free words that the collector
// never scans. Chunks are allocated as needed and never returned or moved, so
// a reference stays readable for ever; what it means is checked by a
// segment's version (see segment.go).
const (
	// An extent is a power of two of units; a unit is one cache line.
	unitWords  = 8
	chunkUnits = 1 << 14 // 1 MiB
	maxChunks  = 1 << 14 // 16 GiB
	numClasses = 15      // up to a whole chunk

	headsPerChunk = 1 << 12 // 256 KiB
	maxSegments   = 1 << 25 // a block reference is 31 bits: segment and offset
	maxHeadChunks = maxSegments / headsPerChunk
)

// errFull is the panic value for an index beyond its address space, which
// Config.Validate keeps out of reach.
var errFull = errors.New("kvindex: out of segments")

type (
	extentChunk [chunkUnits * unitWords]uint64
	headChunk   [headsPerChunk]head
)

// slab hands out segment heads and extents. Reading through a reference needs
// no lock.
type slab struct {
	extents [maxChunks]atomic.Pointer[extentChunk]
	heads   [maxHeadChunks]atomic.Pointer[headChunk]

	mu        sync.Mutex // guards all below
	nextUnit  uint32     // first unit never handed out; 0 is never handed out
	nextHead  uint32     // likewise
	freeUnits [numClasses][]uint32
	freeHeads []uint32
	live      int // words in live extents
}

func (s *slab) init() {
	s.extents[0].Store(new(extentChunk))
	s.heads[0].Store(new(headChunk))
	s.nextUnit, s.nextHead = 1, 1
}

// head returns a segment's head.
func (s *slab) head(id uint32) *head {
	return &s.heads[id/headsPerChunk%maxHeadChunks].Load()[id%headsPerChunk]
}

// extent returns the n words that start at ref.
func (s *slab) extent(ref uint32, n int) []uint64 {
	c := s.extents[ref/chunkUnits%maxChunks].Load()
	at := int(ref%chunkUnits) * unitWords
	return c[at : at+n : at+n]
}

// newHead returns an unused head. Its words are those of its last use but for
// the version, which never goes back.
func (s *slab) newHead() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.freeHeads); n > 0 {
		id := s.freeHeads[n-1]
		s.freeHeads = s.freeHeads[:n-1]
		return id
	}
	id := s.nextHead
	if id >= maxSegments {
		panic(errFull)
	}
	s.nextHead++
	if c := &s.heads[id/headsPerChunk]; c.Load() == nil {
		c.Store(new(headChunk))
	}
	return id
}

func (s *slab) freeHead(id uint32) {
	s.mu.Lock()
	s.freeHeads = append(s.freeHeads, id)
	s.mu.Unlock()
}

// alloc returns an extent of 1<<class units with arbitrary content.
func (s *slab) alloc(class int) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live += unitWords << class
	for c := class; c < numClasses; c++ {
		n := len(s.freeUnits[c])
		if n == 0 {
			continue
		}
		ref := s.freeUnits[c][n-1]
		s.freeUnits[c] = s.freeUnits[c][:n-1]
		for ; c > class; c-- { // keep the first half
			s.freeUnits[c-1] = append(s.freeUnits[c-1], ref+1<<(c-1))
		}
		return ref
	}
	// Extents do not cross chunks and are aligned to their size.
	for s.nextUnit%(1<<class) != 0 {
		c := 0
		for s.nextUnit>>c&1 == 0 {
			c++
		}
		s.freeUnits[c] = append(s.freeUnits[c], s.nextUnit)
		s.nextUnit += 1 << c
	}
	ref := s.nextUnit
	s.nextUnit += 1 << class
	if c := &s.extents[ref/chunkUnits]; c.Load() == nil {
		c.Store(new(extentChunk))
	}
	return ref
}

func (s *slab) release(ref uint32, class int) {
	s.mu.Lock()
	s.live -= unitWords << class
	s.freeUnits[class] = append(s.freeUnits[class], ref)
	s.mu.Unlock()
}

// bytes is the memory held from the system, free parts included.
func (s *slab) bytes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i := range s.extents {
		if s.extents[i].Load() == nil {
			break
		}
		n += chunkUnits * unitWords * 8
	}
	for i := range s.heads {
		if s.heads[i].Load() == nil {
			break
		}
		n += headsPerChunk * 64
	}
	for _, f := range s.freeUnits {
		n += 4 * cap(f)
	}
	return n + 4*cap(s.freeHeads)
}
