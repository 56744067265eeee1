package routing

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// scene is what all candidates of one decision have in common.
type scene struct {
	now time.Time
	// ns is now in Unix nanoseconds, base the time of the rows' turnover.
	ns   int64
	base time.Time
	// request is the price of one request in flight in seconds, perToken how many
	// seconds the prefill of a token takes where that is not learned. reuse times
	// a row's turnover is the share of the cache that is replaced within the
	// horizon of reuse.
	request, perToken, reuse float64
	// limit is the cost above which an endpoint is not chosen: the cost of such a
	// one may be told as any number above it.
	limit float64

	// pressure is how long requests lately waited for their prefill to begin, in
	// multiples of the configured Pressure.
	pressure float64

	req          *Request
	settings     *settings
	adapter      string
	promptTokens int
	// rand may be used under the router's lock only.
	rand *rand.Rand

	// What strategies prepare: the names of the two that power-of-two drew, the
	// key and the bound of the hashing ones.
	drawn [2]uint64
	key   uint64
	bound int64
}

// leastShare is the share that one request is taken to use at least: that of
// one of 256, vLLM's default number of sequences.
const leastShare = 1.0 / 256

// corrected adds to a share the requests that this router has sent since it
// was read, and takes away those that ended.
func corrected(r *row, share float64) float64 {
	per := leastShare
	if n := r.load.Running; r.fresh&pool.FieldRequests != 0 && n >= 1 {
		per = max(per, share/n)
	}
	return max(0, share+float64(r.inFlight-r.load.InFlight)*per)
}

// loadBound is how many times the mean of requests in flight an endpoint may
// have before keys spill to their next one.
const loadBound = 1.25

// prepareHash computes the bound: with the request that is being placed, the
// mean is (in flight + 1) / candidates.
func (sc *scene) prepareHash(key uint64, cands []Candidate) {
	var total int64
	for i := range cands {
		total += cands[i].inFlight
	}
	sc.key = key
	sc.bound = int64(math.Ceil(loadBound * float64(total+1) / float64(len(cands))))
}

func costHash(sc *scene, r *row, _ *held) float64 {
	// 53 bits fit a float64 exactly. The name, not the address, so that a pod
	// that comes back elsewhere gets its sessions back.
	cost := float64(mix64(r.name^sc.key)>>11) / (1 << 53)
	if over := r.inFlight + 1 - sc.bound; over > 0 {
		cost += 1 + float64(over)
	}
	return cost
}

// cached returns how many of the prompt's tokens an endpoint is believed to
// hold.
func (sc *scene) cached(r *row, h *held) float64 {
	reported := float64(h.matched)
	return sc.faith(r, h)*reported + r.faith*max(0, float64(h.expected)-reported)
}

// faith returns the share of the endpoint's reported tokens that is believed.
func (sc *scene) faith(r *row, h *held) float64 {
	f := r.faith
	if h.trust != kvindex.TrustExact {
		f *= sc.settings.cfg.PrefixCache.InexactFaith
	}
	return f
}

// prefill returns how many seconds the prefill of a token takes.
func (sc *scene) prefill(r *row) float64 {
	if r.perToken > 0 {
		return r.perToken
	}
	return sc.perToken
}

// requestCost returns the price of the requests that the endpoint works on.
func (sc *scene) requestCost(r *row) float64 { return r.requests * sc.request }

// wait returns how long a new request waits for those before it.
func (sc *scene) wait(r *row) float64 {
	wait := sc.backlog(r)
	if queue := float64(r.queue) + float64(r.perPrompt)*float64(sc.promptTokens); queue > wait {
		return queue
	}
	return wait
}
