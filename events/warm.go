package events

import (
	"bytes"
	"context"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Saved is what a publisher's subscriber knew when it ended, or what that of
// another router knows: enough to go on where it stood, once the engine has
// proven by its last batch that it is still the same process. Only a complete
// history is saved, and only of a publisher with a replay endpoint, without
// which nothing can be proven.
type Saved struct {
	// Address, Rank and Model say whose it is. Blocks are hashes under the fleet
	// seed.
	Address string
	Rank    int
	Model   string
	// Heard is when the engine was heard from last.
	Heard time.Time
	// Next is the sequence that follows, Last the SHA-256 of the batch before.
	Next uint64
	Last [sha256.Size]byte
	// OtherGroups are the cache groups that are not indexed, Sizes the block
	// sizes by tier and group, Roots those of the chains.
	OtherGroups []uint8
	Sizes       [kvindex.NumTiers]map[uint8]int
	Roots       []kvindex.BlockHash
	State       kvindex.Export
}

// WarmStart counts what became of the publishers that a router started with.
type WarmStart struct {
	// Asked are those that other routers were asked for, Asking those of them
	// for which that is not over.
	Asked, Asking int
	// Unasked are those that came when the time for that was over.
	Unasked int
	// Restored were saved, or are known to another router, FromPeers of them,
	// and are there again. Of these, Resumed are proven to be of the same
	// process, and Reset are not.
	Restored, FromPeers, Resumed, Reset int
}

// The indices of metrics.warm.
const (
	warmRestored = iota
	warmResumed
	warmReset
)

// maxRoots bounds the roots that are remembered of a publisher with a replay
// endpoint; one with more is not saved.
const maxRoots = 1 << 12

// WithSaved has publishers go on where they stood.
func WithSaved(saved []Saved) Option {
	return func(m *Manager) {
		for i := range saved {
			m.saved[savedKey{saved[i].Address, saved[i].Rank, saved[i].Model}] = &saved[i]
		}
	}
}

type savedKey struct {
	address string
	rank    int
	model   string
}

// Saved returns what publishers knew when Run ended, and what was saved before
// of those that had not come to prove it.
func (m *Manager) Saved() []Saved {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.ended)
}

// WarmStart tells how the publishers that were saved are doing.
func (m *Manager) WarmStart() WarmStart {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.warm
}

// warmUp restores a publisher's state if it was saved, once, or if another
// router knows it, whichever heard from the engine later. coming brings what
// another router knows, if anything, and is closed; nil if none is asked.
func (m *Manager) warmUp(ctx context.Context, s *subscriber, of Subject, coming <-chan *Saved) {
	if s.publisher.Replay == "" || s.tap != nil {
		return
	}
	var known []*Saved
	if from := m.takeSaved(of); from != nil {
		known = append(known, from)
	}
	var peer *Saved
	if coming != nil {
		select {
		case peer = <-coming:
		case <-ctx.Done():
		}
		defer func() { // once it is counted what came of it
			m.mu.Lock()
			defer m.mu.Unlock()
			m.warm.Asking--
		}()
	}
	if peer != nil {
		known = append(known, peer)
	}
	slices.SortFunc(known, func(a, b *Saved) int { return b.Heard.Compare(a.Heard) })
	if i := slices.IndexFunc(known, s.restore); i >= 0 {
		m.restored(s, known[i] == peer)
	}
}

// takeSaved returns what was saved of a publisher, once.
func (m *Manager) takeSaved(of Subject) *Saved {
	if of.Publisher.Relay != "" {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := savedKey{of.Address, of.Publisher.Rank, of.Model}
	from := m.saved[key]
	delete(m.saved, key)
	return from
}

// restored counts a publisher that was restored, and what will become of it.
func (m *Manager) restored(s *subscriber, fromPeer bool) {
	s.warmed = func(same bool) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if same {
			m.warm.Resumed++
			m.metrics.warm[warmResumed].Inc()
		} else {
			m.warm.Reset++
			m.metrics.warm[warmReset].Inc()
		}
	}
	m.metrics.warm[warmRestored].Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.warm.Restored++
	if fromPeer {
		m.warm.FromPeers++
	}
}

// save keeps what a subscriber knew at its end, or what it was restored from if
// that is neither proven nor dropped yet: the next process may prove it.
func (m *Manager) save(s *subscriber, of Subject) {
	if s.source() == SourceRelay {
		return // the relay will tell it all
	}
	saved, ok := s.save(of)
	if s.resuming != nil {
		saved, ok = *s.resuming, true
	}
	if ok {
		m.mu.Lock()
		m.ended = append(m.ended, saved)
		m.mu.Unlock()
	}
}

// saveUntaken keeps, at the end, what was saved of publishers that are there and
// were not followed yet, because their model is still to be listed.
func (m *Manager) saveUntaken(snap *pool.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range snap.Endpoints {
		if len(e.Models) > 0 {
			continue
		}
		for _, p := range e.Publishers {
			for key, from := range m.saved {
				if key.address == e.Address && key.rank == p.Rank && p.Relay == "" {
					m.ended = append(m.ended, *from)
				}
			}
		}
	}
}

// remember keeps a root, so that the state can be saved.
func (s *subscriber) remember(root kvindex.BlockHash) {
	if len(s.roots) <= maxRoots {
		s.roots[root] = struct{}{}
	}
}

// save returns what the subscriber knows after its end, unless that is not all.
func (s *subscriber) save(of Subject) (Saved, bool) {
	next, ok := s.seq.Next()
	if !ok || next == 0 || s.publisher.Replay == "" || !s.seq.complete || s.last == nil || s.applier.blind || len(s.roots) > maxRoots {
		return Saved{}, false
	}
	out := Saved{
		Address: of.Address, Rank: of.Publisher.Rank, Model: of.Model, Heard: s.heardAt, Next: next, Last: sha256.Sum256(s.last),
		Roots: slices.Sorted(maps.Keys(s.roots)),
	}
	for g, other := range s.applier.other {
		if other {
			out.OtherGroups = append(out.OtherGroups, uint8(g))
		}
	}
	for t := range out.Sizes {
		out.Sizes[t] = map[uint8]int{}
		for g, size := range s.applier.sizes[t] {
			if size > 0 {
				out.Sizes[t][uint8(g)] = size
			}
		}
	}
	out.State, ok = s.writer.Export(func(h kvindex.BlockHash) bool {
		_, is := s.roots[h]
		return is
	})
	return out, ok
}

// restore makes a new subscriber stand where the saved one did. It is not
// trusted before the engine's last batch has come back unchanged.
func (s *subscriber) restore(from *Saved) bool {
	if s.publisher.Replay == "" || from.Next == 0 {
		return false
	}
	for _, sizes := range from.Sizes {
		for _, size := range sizes {
			if !s.applier.state.ObserveBlockSize(size) {
				return false
			}
		}
	}
	if !s.writer.Restore(from.State) {
		s.writer.Clear()
		return false
	}
	for _, g := range from.OtherGroups {
		s.applier.other[g] = true
	}
	for t, sizes := range from.Sizes {
		for g, size := range sizes {
			s.applier.sizes[t][g] = size
		}
	}
	for _, root := range from.Roots {
		s.remember(root)
	}
	s.seq.Resume(from.Next)
	s.resuming = from
	s.mu.Lock()
	s.status.Sequence, s.status.Sequenced = from.Next-1, true
	s.mu.Unlock()
	return true
}

// same tells whether a replayed batch is, byte for byte, the last one applied.
func (s *subscriber) same(payload []byte) bool {
	if s.last != nil || s.resuming == nil {
		return bytes.Equal(payload, s.last)
	}
	ok := sha256.Sum256(payload) == s.resuming.Last
	if ok {
		s.last = payload
		s.proven(true)
	}
	return ok
}

// proven says whether the saved state is that of the process that answers.
func (s *subscriber) proven(same bool) {
	if s.resuming != nil {
		s.resuming = nil
		s.warmed(same)
	}
}
