package kvindex

// Writer is one publisher's hand on the index. It is not safe for concurrent
// use: one goroutine owns it, and that order is the publisher's history.
type Writer struct {
	ix    *Index
	pub   Publisher
	trust Trust
	// names maps what the engine calls a block to the block. A name outlives
	// its removal, because a child may name a parent removed just before it; it
	// then denotes but does not hold.
	names  map[EngineHash]BlockHash
	held   map[copyKey]struct{}
	blocks map[BlockHash]tierCounts
}

// copyKey is one announced and not yet removed copy.
type copyKey struct {
	name  EngineHash
	tier  Tier
	group uint8
}

// tierCounts counts the names that hold a block on each tier.
type tierCounts [NumTiers]uint16

func (c tierCounts) any() bool      { return c != tierCounts{} }
func (c tierCounts) on(t Tier) bool { return c[t] > 0 }

func (w *Writer) reset() {
	w.names = map[EngineHash]BlockHash{}
	w.held = map[copyKey]struct{}{}
	w.blocks = map[BlockHash]tierCounts{}
}

// Publisher returns whom the Writer speaks for.
func (w *Writer) Publisher() Publisher { return w.pub }

// Store records the blocks of s. It reports how many of them could not be
// placed because their parent, or for a tier update the name itself, is
// unknown.
func (w *Writer) Store(s Stored) (unplaced int) {
	w.ix.mu.Lock()
	defer w.ix.mu.Unlock()
	if len(s.Contents) == 0 {
		for _, n := range s.Names {
			if b, ok := w.names[n]; ok {
				w.hold(n, b, s.Tier, s.Group)
			} else {
				unplaced++
			}
		}
		return unplaced
	}
	at := s.Root
	if s.HasParent {
		p, ok := w.names[s.Parent]
		if !ok {
			return len(s.Names)
		}
		at = p
	}
	for i, n := range s.Names {
		at = Mix(at, s.Contents[i])
		w.names[n] = at
		w.hold(n, at, s.Tier, s.Group)
	}
	return 0
}

func (w *Writer) hold(n EngineHash, b BlockHash, t Tier, g uint8) {
	k := copyKey{n, t, g}
	if _, dup := w.held[k]; dup {
		return
	}
	w.held[k] = struct{}{}
	c := w.blocks[b]
	if !c.any() {
		w.ix.holders[b] = append(w.ix.holders[b], w)
	}
	c[t]++
	w.blocks[b] = c
}

// Remove records that the publisher no longer holds the named blocks on a
// tier, and reports how many of them it did not hold.
func (w *Writer) Remove(names []EngineHash, t Tier, g uint8) (unknown int) {
	w.ix.mu.Lock()
	defer w.ix.mu.Unlock()
	for _, n := range names {
		k := copyKey{n, t, g}
		if _, ok := w.held[k]; !ok {
			unknown++
			continue
		}
		delete(w.held, k)
		b := w.names[n]
		c := w.blocks[b]
		c[t]--
		if c.any() {
			w.blocks[b] = c
			continue
		}
		w.drop(b)
	}
	return unknown
}

func (w *Writer) drop(b BlockHash) {
	delete(w.blocks, b)
	hs := w.ix.holders[b]
	for i, h := range hs {
		if h != w {
			continue
		}
		hs[i] = hs[len(hs)-1]
		hs = hs[:len(hs)-1]
		break
	}
	if len(hs) == 0 {
		delete(w.ix.holders, b)
		return
	}
	w.ix.holders[b] = hs
}

// Clear forgets everything that the publisher holds, names included.
func (w *Writer) Clear() {
	w.ix.mu.Lock()
	defer w.ix.mu.Unlock()
	for b := range w.blocks {
		w.drop(b)
	}
	w.reset()
}

// SetTrust records how far the publisher's state can be believed.
func (w *Writer) SetTrust(t Trust) {
	w.ix.mu.Lock()
	defer w.ix.mu.Unlock()
	w.trust = t
}

// Close clears the publisher's state and frees its id. The Writer must not be
// used afterwards.
func (w *Writer) Close() {
	w.Clear()
	w.ix.mu.Lock()
	defer w.ix.mu.Unlock()
	delete(w.ix.publishers, w.pub.ID)
}
