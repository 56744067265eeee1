package engine

import (
	"github.com/warmpath/warmpath/kvindex"
)

// hostTier is the second tier of a cache: contents in host memory, the least
// recently used one out. It holds copies of what is, or was, on the device.
type hostTier struct {
	// entries form a ring in order of use; the last is its sentinel, behind
	// which is the oldest.
	entries []hostEntry
	at      map[Digest]int32
	used    int
}

type hostEntry struct {
	prev, next int32
	digest     Digest
}

func newHostTier(capacity int) *hostTier {
	h := &hostTier{entries: make([]hostEntry, capacity+1), at: make(map[Digest]int32)}
	s := int32(capacity)
	h.entries[s].prev, h.entries[s].next = s, s
	return h
}

func (h *hostTier) unlink(i int32) {
	e := &h.entries[i]
	h.entries[e.prev].next = e.next
	h.entries[e.next].prev = e.prev
}

func (h *hostTier) pushNewest(i int32) {
	s := int32(len(h.entries) - 1)
	last := h.entries[s].prev
	h.entries[i].prev, h.entries[i].next = last, s
	h.entries[last].next, h.entries[s].prev = i, i
}

// use makes a content the newest and reports whether it is held.
func (h *hostTier) use(d Digest) bool {
	i, ok := h.at[d]
	if ok {
		h.unlink(i)
		h.pushNewest(i)
	}
	return ok
}

// put adds a content that is not held, and returns the one that made room.
func (h *hostTier) put(d Digest) (evicted Digest, full bool) {
	i := int32(h.used)
	if full = h.used == len(h.entries)-1; full {
		i = h.entries[len(h.entries)-1].next
		evicted = h.entries[i].digest
		delete(h.at, evicted)
		h.unlink(i)
	} else {
		h.used++
	}
	h.entries[i].digest = d
	h.at[d] = i
	h.pushNewest(i)
	return evicted, full
}

// offload copies blocks that became visible to the host tier. The last is
// used first, so that chains are eaten from their tails.
func (c *Core) offload(nodes []*node) {
	var stored, removed []kvindex.EngineHash
	for i := len(nodes) - 1; i >= 0; i-- {
		d := nodes[i].digest
		if c.host.use(d) {
			continue
		}
		if evicted, full := c.host.put(d); full {
			removed = append(removed, evicted.Wire())
		}
		stored = append(stored, d.Wire())
	}
	if len(removed) > 0 {
		c.emit(BlockRemoved{Hashes: removed, Medium: MediumCPU})
	}
	if len(stored) > 0 {
		c.emit(BlockStored{Hashes: stored, Root: true, BlockSize: c.cfg.BlockSize, Medium: MediumCPU, GroupIdx: 0})
	}
}

// matchHost returns how many blocks behind the first n the host tier has, and
// marks all of the prefix as used there.
func (c *Core) matchHost(s *sequence, n int) int {
	if c.host == nil {
		return 0
	}
	limit := (s.length - 1) / c.cfg.BlockSize
	end := n
	for end < limit {
		if _, ok := c.host.at[s.digests[end]]; !ok {
			break
		}
		end++
	}
	for i := end - 1; i >= 0; i-- {
		c.host.use(s.digests[i])
	}
	return end - n
}
