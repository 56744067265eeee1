package routing

import (
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Candidate is an endpoint that a request may go to, with what the decision
// knows about it: row its load, held how much of the prompt it holds.
type Candidate struct {
	Endpoint *pool.Endpoint
	// Cost is what the strategy gave it; the smallest wins. Missing: the data
	// for it is missing, and it counts as the worst of those known.
	Cost    float64
	Missing bool
	// Cooling: it failed a short time ago, and so did all others.
	Cooling bool
	row
	held
}

// held is how much of the prompt an endpoint holds; nothing where the strategy
// did not ask.
type held struct {
	// matched is how many tokens of the prompt, from its start, it holds on any
	// tier as far as its events say, device how many of them on the device.
	// expected, at least matched, counts what requests in flight will have it
	// hold as well.
	matched, device, expected int
	// trust is how far its events can be believed: the least of its publishers,
	// silent where none of them matched.
	trust kvindex.Trust

	// ranks, blocks, onDevice and predicted gather matches of one block size: how
	// many publishers of how many matched, and the least of their matches.
	ranks, of                   int32
	blocks, onDevice, predicted uint32
}

// look reads what is known of the endpoint's load.
func (c *Candidate) look(sc *scene) { c.read(c.Endpoint, sc.now, sc.base) }

// holder is an endpoint of a narrowed decision that holds some of the prompt.
type holder struct {
	id kvindex.EndpointID
	held
}

// find returns what is known to be held by the endpoint of an id, and the
// endpoint in few words; nil if requests may not go there.
func (sc *scratch) find(id kvindex.EndpointID) (*held, pool.Ref) {
	if sc.model == nil {
		sc.index()
		if int(id) >= len(sc.position) || sc.position[id] < 0 {
			return nil, pool.Ref{}
		}
		c := &sc.candidates[sc.position[id]]
		return &c.held, pool.Ref{ID: id, Incarnation: c.Endpoint.Incarnation, Publishers: int32(len(c.Endpoint.Publishers))}
	}
	ref := sc.model.Ref(id)
	if ref == nil {
		return nil, pool.Ref{}
	}
	if int(id) >= len(sc.position) || sc.position[id] < 0 {
		sc.place(id, len(sc.holders))
		sc.holders = append(sc.holders, holder{id: id})
	}
	return &sc.holders[sc.position[id]].held, *ref
}

// holds returns what the endpoint of an id is known to hold, nil if nothing.
// Candidates are narrowed.
func (sc *scratch) holds(id kvindex.EndpointID) *held {
	if int(id) < len(sc.position) {
		if at := sc.position[id]; at >= 0 {
			return &sc.holders[at].held
		}
	}
	return nil
}

func (sc *scratch) place(id kvindex.EndpointID, at int) {
	for len(sc.position) <= int(id) {
		sc.position = append(sc.position, -1)
	}
	sc.position[id] = int32(at)
	sc.placed = append(sc.placed, id)
}

// index prepares position for the current candidates, if it is not.
func (sc *scratch) index() {
	if len(sc.placed) > 0 {
		return
	}
	for i := range sc.candidates {
		sc.place(sc.candidates[i].Endpoint.ID, i)
	}
}

// unindex undoes index and forgets who holds what, so that position is all -1
// between decisions and when candidates move.
func (sc *scratch) unindex() {
	for _, id := range sc.placed {
		sc.position[id] = -1
	}
	sc.placed, sc.holders = sc.placed[:0], sc.holders[:0]
}

// merge adds the matches of one block size. An endpoint of several ranks holds
// what all of them hold, for nothing steers a request to one rank. Matches of
// an endpoint that is no candidate, of a predecessor of one, or not in only
// (nil: any) do not count.
func (sc *scratch) merge(blockSize int, only []*pool.Endpoint) {
	if len(sc.matches) == 0 {
		return
	}
	sc.group.set(only)
	for i := range sc.matches {
		m := &sc.matches[i]
		if only != nil && !sc.group.has(m.Endpoint) {
			continue
		}
		h, ref := sc.find(m.Endpoint)
		if h == nil || ref.Incarnation != m.Incarnation {
			continue
		}
		if h.ranks == 0 {
			h.blocks, h.onDevice, h.predicted, h.trust = m.Confirmed, m.Device, m.Predicted, m.Trust
			h.of = max(1, ref.Publishers) // one without events has a single holder of predictions
		}
		h.blocks, h.onDevice, h.predicted = min(h.blocks, m.Confirmed), min(h.onDevice, m.Device), min(h.predicted, m.Predicted)
		h.trust = min(h.trust, m.Trust)
		h.ranks++
	}
	if sc.model == nil {
		for i := range sc.candidates {
			sc.candidates[i].gather(blockSize)
		}
		return
	}
	for i := range sc.holders {
		sc.holders[i].gather(blockSize)
	}
}

// gather counts what all of the endpoint's publishers hold.
func (h *held) gather(blockSize int) {
	if h.ranks > 0 && h.ranks == h.of {
		h.matched = max(h.matched, int(h.blocks)*blockSize)
		h.device = max(h.device, int(h.onDevice)*blockSize)
		h.expected = max(h.expected, h.matched, int(h.predicted)*blockSize)
	}
	h.ranks = 0
}

// endpointSet is a set of endpoints by their ids.
type endpointSet []uint64

// set makes s those of endpoints.
func (s *endpointSet) set(endpoints []*pool.Endpoint) {
	clear(*s)
	for _, e := range endpoints {
		for int(e.ID/64) >= len(*s) {
			*s = append(*s, 0)
		}
		(*s)[e.ID/64] |= 1 << (e.ID % 64)
	}
}

func (s endpointSet) has(id kvindex.EndpointID) bool {
	return int(id/64) < len(s) && s[id/64]&(1<<(id%64)) != 0
}
