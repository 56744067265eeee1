package pool

import (
	"slices"
	"sync/atomic"

	"github.com/warmpath/warmpath/kvindex"
)

// changes counts, for every endpoint id of a pool, how often the state of an
// endpoint with that id has changed. The counts of many ids share few cache
// lines, so that who keeps a copy of the states finds out quickly which of
// them to read again. Ids are added in chunks that never move: states point
// into them.
type changes []*[changeChunk]atomic.Uint32

// changeChunk is how many ids are added at a time.
const changeChunk = 256

// of returns the count of an id, and a longer list if there was none.
func (c changes) of(id uint32) (*atomic.Uint32, changes) {
	for int(id) >= len(c)*changeChunk {
		c = append(c, new([changeChunk]atomic.Uint32))
	}
	return &c[id/changeChunk][id%changeChunk], c
}

// IDs returns a number above the ids of all endpoints.
func (s *Snapshot) IDs() int { return len(s.changes) * changeChunk }

// AppendChanged appends to dst the ids whose state may have changed since the
// call before with the same seen, which must have [Snapshot.IDs] elements or more, and
// remembers in seen what is so reported. Ids without an endpoint may be among
// them. What is read of a state after it was reported is as new as the report
// or newer, and a change that comes later is reported by the next call. Calls
// with different seen do not disturb each other.
func (s *Snapshot) AppendChanged(dst []kvindex.EndpointID, seen []uint32) []kvindex.EndpointID {
	for i, chunk := range s.changes {
		at := seen[i*changeChunk : (i+1)*changeChunk]
		for j := range chunk {
			if n := chunk[j].Load(); n != at[j] {
				at[j] = n
				dst = append(dst, kvindex.EndpointID(i*changeChunk+j))
			}
		}
	}
	return dst
}

// maxMoves is how many snapshots back [Snapshot.AppendMoved] can tell what has
// changed. Who comes later than that looks at every endpoint, which costs no
// more than the pool has spent on that many snapshots.
const maxMoves = 32

// follows notes which endpoints differ between s and the snapshot before it.
// It is called before s is published.
func (s *Snapshot) follows(before *Snapshot) {
	s.number = before.number + 1
	var ids []kvindex.EndpointID
	for i := range max(len(s.byID), len(before.byID)) {
		id := kvindex.EndpointID(i)
		if s.Endpoint(id) != before.Endpoint(id) {
			ids = append(ids, id)
		}
	}
	recent := before.moves[max(0, len(before.moves)-(maxMoves-1)):]
	s.moves = append(slices.Clone(recent), ids)
}

// AppendMoved appends to dst the ids whose endpoints may differ between two
// snapshots of one pool, whichever is the newer; an id can be among them more
// than once. ok is false if they are too far apart to tell.
func (s *Snapshot) AppendMoved(dst []kvindex.EndpointID, from *Snapshot) (ids []kvindex.EndpointID, ok bool) {
	newer, older := s, from
	if newer.number < older.number {
		newer, older = older, newer
	}
	apart := newer.number - older.number
	if apart > uint64(len(newer.moves)) {
		return dst, false
	}
	for _, ids := range newer.moves[uint64(len(newer.moves))-apart:] {
		dst = append(dst, ids...)
	}
	return dst, true
}
