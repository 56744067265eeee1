package routing

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// scene is what all candidates of one decision have in common.
type scene struct {
	now          time.Time
	req          *Request
	settings     *settings
	adapter      string
	promptTokens int
	// rand may be used under the router's lock only.
	rand *rand.Rand

	// What strategies prepare: the two that power-of-two drew, the key and the
	// bound of the hashing ones.
	drawn [2]*pool.Endpoint
	key   uint64
	bound int64
}

// leastShare is the share that one request is taken to use at least: that of
// one of 256, vLLM's default number of sequences.
const leastShare = 1.0 / 256

// corrected adds to a share the requests that this router has sent since it
// was read, and takes away those that ended.
func corrected(c *Candidate, share float64) float64 {
	per := leastShare
	if n := c.Load.Running; c.Fresh&pool.FieldRequests != 0 && n >= 1 {
		per = max(per, share/n)
	}
	return max(0, share+float64(c.InFlight-c.Load.InFlight)*per)
}

// loadBound is how many times the mean of requests in flight an endpoint may
// have before keys spill to their next one.
const loadBound = 1.25

// prepareHash computes the bound: with the request that is being placed, the
// mean is (in flight + 1) / candidates.
func (sc *scene) prepareHash(key uint64, cands []Candidate) {
	var total int64
	for i := range cands {
		total += cands[i].InFlight
	}
	sc.key = key
	sc.bound = int64(math.Ceil(loadBound * float64(total+1) / float64(len(cands))))
}

func costHash(sc *scene, c *Candidate) float64 {
	// 53 bits fit a float64 exactly. The name, not the address, so that a pod
	// that comes back elsewhere gets its sessions back.
	cost := float64(xxh3.HashStringSeed(c.Endpoint.Name, sc.key)>>11) / (1 << 53)
	if over := c.InFlight + 1 - sc.bound; over > 0 {
		cost += 1 + float64(over)
	}
	return cost
}

// cached returns how many of the prompt's tokens the candidate is believed to
// hold.
func (sc *scene) cached(c *Candidate) float64 {
	reported := float64(c.MatchedTokens)
	return sc.faith(c)*reported + c.Endpoint.State.Faith()*max(0, float64(c.ExpectedTokens)-reported)
}

// faith returns the share of the candidate's reported tokens that is believed.
func (sc *scene) faith(c *Candidate) float64 {
	f := c.Endpoint.State.Faith()
	if c.Trust != kvindex.TrustExact {
		f *= sc.settings.cfg.PrefixCache.InexactFaith
	}
	return f
}

// prefillRate returns how many prompt tokens the candidate computes a second.
func (sc *scene) prefillRate(c *Candidate) float64 {
	if c.Fresh&pool.FieldPrefillRate != 0 {
		return max(1, c.Load.PrefillRate)
	}
	return sc.settings.cfg.PrefixCache.PrefillRate
}

// requestCost returns the price of the requests that the candidate works on:
// own ones, and those of others as of the last read.
func (sc *scene) requestCost(c *Candidate) float64 {
	n := float64(c.InFlight)
	if c.Fresh&pool.FieldRequests != 0 {
		n += max(0, c.Load.Running+c.Load.Waiting-float64(c.Load.InFlight))
	}
	return n * inSeconds(sc.settings.cfg.PrefixCache.RequestCost)
}

// wait returns how long a new request waits for those before it.
func (sc *scene) wait(c *Candidate) float64 {
	wait := inSeconds(c.Backlog)
	const queue = pool.FieldRequests | pool.FieldLatency
	if c.Fresh&queue == queue && c.Load.Waiting > 0 {
		wait = math.Max(wait, c.Load.Waiting*(c.Load.PrefillSeconds+c.Load.DecodeSeconds)/max(1, c.Load.Running))
	}
	return wait
}

// inSeconds is d.Seconds() without its two integer divisions, which count in
// what is done for every candidate.
func inSeconds(d time.Duration) float64 { return float64(d) / 1e9 }
