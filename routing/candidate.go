package routing

import (
	"slices"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// Candidate is an endpoint that a request may go to, with what the decision
// knows about it.
type Candidate struct {
	Endpoint *pool.Endpoint
	// MatchedTokens is how much of the prompt, from its start, the endpoint
	// holds; 0 where the strategy did not ask.
	MatchedTokens int
	// Trust is how far its events can be believed: the least of its publishers,
	// silent where none of them matched.
	Trust kvindex.Trust
	// InFlight and PrefillTokens are the requests that this router has in flight
	// there and the prefill tokens reserved by them, at the instant of the
	// choice.
	InFlight, PrefillTokens int64

	// ranks and blocks gather matches of one block size: how many publishers
	// matched, and the least of their matches.
	ranks  int
	blocks uint32
}

// index prepares position for the current candidates.
func (sc *scratch) index() {
	for i := range sc.candidates {
		id := int(sc.candidates[i].Endpoint.ID)
		for len(sc.position) <= id {
			sc.position = append(sc.position, -1)
		}
		sc.position[id] = int32(i)
	}
}

// unindex undoes index, so that position is all -1 between decisions.
func (sc *scratch) unindex() {
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
	for i := range sc.matches {
		m := &sc.matches[i]
		if int(m.Endpoint) >= len(sc.position) || sc.position[m.Endpoint] < 0 {
			continue
		}
		c := &sc.candidates[sc.position[m.Endpoint]]
		if c.Endpoint.Incarnation != m.Incarnation || (only != nil && !slices.Contains(only, c.Endpoint)) {
			continue
		}
		if c.ranks == 0 || m.Confirmed < c.blocks {
			c.blocks = m.Confirmed
		}
		if c.ranks == 0 || m.Trust < c.Trust {
			c.Trust = m.Trust
		}
		c.ranks++
	}
	best := 0
	for i := range sc.candidates {
		c := &sc.candidates[i]
		if c.ranks > 0 && c.ranks == len(c.Endpoint.Publishers) {
			c.MatchedTokens = max(c.MatchedTokens, int(c.blocks)*blockSize)
		}
		c.ranks, c.blocks = 0, 0
		best = max(best, c.MatchedTokens)
	}
	return best
}
