package kvindex

// Stats is the size of an Index at one instant.
type Stats struct {
	// Blocks counts distinct blocks, Held (publisher, block) pairs.
	Blocks, Held int
	Publishers   []PublisherStats
}

// PublisherStats is one publisher's share of [Stats].
type PublisherStats struct {
	Publisher
	Trust Trust
	// Held counts blocks held on any tier, Names the engine names known.
	Held, Names int
}

// Stats returns the index's size.
func (ix *Index) Stats() Stats {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	s := Stats{Blocks: len(ix.holders)}
	for _, w := range ix.publishers {
		s.Held += len(w.blocks)
		s.Publishers = append(s.Publishers, PublisherStats{
			Publisher: w.pub, Trust: w.trust, Held: len(w.blocks), Names: len(w.names),
		})
	}
	return s
}

// AppendHeld appends the chain hash of every block that the publisher holds
// on any tier to dst, in no order.
func (ix *Index) AppendHeld(dst []BlockHash, id PublisherID) []BlockHash {
	ix.mu.RLock()
	defer ix.mu.RUnlock()
	if w := ix.publishers[id]; w != nil {
		for b := range w.blocks {
			dst = append(dst, b)
		}
	}
	return dst
}
