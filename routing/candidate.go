package routing

import (
	"slices"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Candidate is an endpoint that a request may go to, with what the decision
// knows about it.
type Candidate struct {
	Endpoint *pool.Endpoint
	// Cost is what the strategy gave it; the smallest wins. Missing: the data
	// for it is missing, and it counts as the worst of those known.
	Cost    float64
	Missing bool
	// Cooling: it failed a short time ago, and so did all others.
	Cooling bool
	// MatchedTokens is how much of the prompt, from its start, the endpoint
	// holds on any tier as far as its events say, DeviceTokens how much of that
	// on the device; 0 where the strategy did not ask. ExpectedTokens, at least
	// MatchedTokens, counts what requests in flight will have it hold as well.
	MatchedTokens, DeviceTokens, ExpectedTokens int
	// Trust is how far its events can be believed: the least of its publishers,
	// silent where none of them matched.
	Trust kvindex.Trust
	// InFlight is the number of requests that this router has in flight there,
	// at the instant of the choice; Backlog is how long the prefill work sent
	// there will still take.
	InFlight int64
	Backlog  time.Duration
	// Load is what the engine's metrics said, nil if they never did, and Fresh
	// which of it still counts.
	Load  *pool.Load
	Fresh pool.Field

	// ranks, blocks, device and expected gather matches of one block size: how
	// many publishers matched, and the least of their matches.
	ranks                    int
	blocks, device, expected uint32
}

// look reads what is known of the endpoint's load.
func (c *Candidate) look(now time.Time) {
	s := c.Endpoint.State
	c.InFlight = s.InFlight()
	c.Backlog = s.Backlog(now)
	c.Load = s.Load()
	c.Fresh = c.Load.Fresh(now)
}

// find returns the candidate of an endpoint id, nil if there is none. Where
// candidates are narrowed, an endpoint that is asked for becomes one.
func (sc *scratch) find(id kvindex.EndpointID) *Candidate {
	sc.index()
	if int(id) < len(sc.position) && sc.position[id] >= 0 {
		return &sc.candidates[sc.position[id]]
	}
	if sc.model == nil {
		return nil
	}
	e := sc.model.Endpoint(id)
	if e == nil || e.Cooling(sc.now) {
		return nil
	}
	sc.place(id, len(sc.candidates))
	sc.candidates = append(sc.candidates, Candidate{Endpoint: e})
	return &sc.candidates[len(sc.candidates)-1]
}

func (sc *scratch) place(id kvindex.EndpointID, at int) {
	for len(sc.position) <= int(id) {
		sc.position = append(sc.position, -1)
	}
	sc.position[id] = int32(at)
}

// index prepares position for the current candidates, if it is not.
func (sc *scratch) index() {
	if sc.indexed {
		return
	}
	sc.indexed = true
	for i := range sc.candidates {
		sc.place(sc.candidates[i].Endpoint.ID, i)
	}
}

// unindex undoes index, so that position is all -1 between decisions and when
// candidates move.
func (sc *scratch) unindex() {
	if !sc.indexed {
		return
	}
	sc.indexed = false
	for i := range sc.candidates {
		sc.position[sc.candidates[i].Endpoint.ID] = -1
	}
}

// merge adds the matches of one block size to the candidates and returns the
// longest match in tokens. An endpoint of several ranks holds what all of them
// hold, for nothing steers a request to one rank. Matches of an endpoint that
// is no candidate, of a predecessor of one, or not in only (nil: any) do not
// count.
func (sc *scratch) merge(blockSize int, only []*pool.Endpoint) int {
	if len(sc.matches) == 0 {
		return 0
	}
	for i := range sc.matches {
		m := &sc.matches[i]
		c := sc.find(m.Endpoint)
		if c == nil || c.Endpoint.Incarnation != m.Incarnation || (only != nil && !slices.Contains(only, c.Endpoint)) {
			continue
		}
		if c.ranks == 0 {
			c.blocks, c.device, c.expected = m.Confirmed, m.Device, m.Predicted
		}
		c.blocks, c.device, c.expected = min(c.blocks, m.Confirmed), min(c.device, m.Device), min(c.expected, m.Predicted)
		if c.ranks == 0 || m.Trust < c.Trust {
			c.Trust = m.Trust
		}
		c.ranks++
	}
	best := 0
	for i := range sc.candidates {
		c := &sc.candidates[i]
		// An endpoint without events has a single holder of predictions.
		if c.ranks > 0 && c.ranks == max(1, len(c.Endpoint.Publishers)) {
			c.MatchedTokens = max(c.MatchedTokens, int(c.blocks)*blockSize)
			c.DeviceTokens = max(c.DeviceTokens, int(c.device)*blockSize)
			c.ExpectedTokens = max(c.ExpectedTokens, c.MatchedTokens, int(c.expected)*blockSize)
		}
		c.ranks, c.blocks, c.device, c.expected = 0, 0, 0, 0
		best = max(best, c.MatchedTokens)
	}
	return best
}
