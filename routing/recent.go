package routing

import (
	"sort"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// recent are the newest decisions about prompts, with the blocks that each
// will have its endpoint hold. A prompt is looked up before the router's lock
// is taken, and what is predicted for it reaches the index after the lock is
// released; of simultaneous requests with one new prefix each would be blind
// to the others. This closes the gap: it is read and written under the lock,
// but for end. Requests that have ended do not count: what they left is for
// the endpoint's events to say.
type recent struct {
	ring [recentDecisions]recentDecision
	next int
}

const (
	recentDecisions = 64
	// recentFor is how long a decision counts here. By then the index knows.
	recentFor = time.Second
	// recentBlocks bounds what is kept of one prompt.
	recentBlocks = 4096
)

type recentDecision struct {
	// turn is the decision's number, 0 once its request has ended.
	turn        atomic.Uint64
	at          time.Time
	endpoint    kvindex.EndpointID
	incarnation uint32
	size        int
	chain       []kvindex.BlockHash
}

// add keeps that a prompt's blocks were sent to c.
func (r *recent) add(turn uint64, now time.Time, c *Candidate, size int, chain []kvindex.BlockHash) {
	d := &r.ring[r.next]
	r.next = (r.next + 1) % recentDecisions
	d.at, d.endpoint, d.incarnation, d.size = now, c.Endpoint.ID, c.Endpoint.Incarnation, size
	d.chain = append(d.chain[:0], chain[:min(len(chain), recentBlocks)]...)
	d.turn.Store(turn)
}

// end forgets a decision, because its request has ended. Any goroutine may
// call it.
func (r *recent) end(turn uint64) {
	for i := range r.ring {
		r.ring[i].turn.CompareAndSwap(turn, 0)
	}
}

// expect raises the expected tokens of the candidates that prompts like the
// current one were sent to.
func (r *recent) expect(now time.Time, sc *scratch) {
	for i := range r.ring {
		d := &r.ring[i]
		if d.turn.Load() == 0 || now.Sub(d.at) > recentFor {
			continue
		}
		for _, k := range sc.chains {
			if k.size != d.size || len(k.blocks) == 0 || k.blocks[0] != d.chain[0] {
				continue
			}
			if h, ref := sc.find(d.endpoint); h != nil && ref.Incarnation == d.incarnation {
				h.expected = max(h.expected, common(k.blocks, d.chain)*d.size)
			}
		}
	}
}

// common returns how many leading blocks two chains share. A chain hash
// depends on all blocks before it, so once they differ they never agree again.
func common(a, b []kvindex.BlockHash) int {
	return sort.Search(min(len(a), len(b)), func(i int) bool { return a[i] != b[i] })
}
