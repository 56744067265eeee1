package routing

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// strategy is one way to choose. Every candidate gets a cost in an absolute
// unit, and the smallest cost wins; equal costs are drawn from at random. A
// strategy is one file, strategy_NAME.go, and one line in [strategies].
type strategy struct {
	// name is what the routing-strategy header says.
	name string
	// doc says in one line which candidate wins.
	doc string
	// formula is the cost, unit what it is measured in.
	formula string
	unit    Unit
	// needs says in a few words what the cost is made of, missing what happens
	// without it. Both are documentation.
	needs, missing string
	// seconds returns what one unit of the cost is worth in seconds, for blends;
	// nil: the strategy cannot be a part of one.
	seconds func(*settings) float64
	// matches: candidates need to know how much of the prompt they hold.
	matches bool
	// counts: requests in flight are all that it reads of an endpoint.
	counts bool
	// alone: the cost of a candidate depends on no other one, and is never
	// missing. Only then not all candidates need to be looked at closely.
	alone bool
	// prepare sees all candidates before the first of them gets a cost; nil: no
	// need to. It may return a reason why the strategy cannot decide; then the
	// fewest requests in flight decide.
	prepare func(*scene, []Candidate) Reason
	// cost returns a candidate's cost; NaN: its data is missing. nil for blends.
	cost func(*scene, *row, *held) float64
	// terms appends what the cost is the sum of; nil: it is of one piece.
	terms func(*scene, *Candidate, []Term) []Term
	// blend are the parts of a blend.
	blend []part
	// queues: requests wait for an endpoint with room, see queue.go.
	queues bool
	// reason is the reason of a decision that nothing degraded.
	reason Reason
}

// strategies is the table of all strategies.
func strategies() []strategy {
	return []strategy{
		strategyPrefixCache(),
		strategyRandom(),
		strategyRoundRobin(),
		strategyLeastRequest(),
		strategyPowerOfTwo(),
		strategyThroughput(),
		strategyLeastKVCache(),
		strategyLeastGPUCache(),
		strategyLeastBusyTime(),
		strategyLeastLatency(),
		strategyLeastUtilization(),
		strategySessionAffinity(),
		strategyConsistentHash(),
		strategyLoRAAffinity(),
		strategyQueue(),
	}
}

// notOffered are strategies of AIBrix that this router does not have, and why.
func notOffered() map[string]string {
	const queue = "it needs a central queue and profiles of the GPUs"
	return map[string]string{
		"vtc-basic":              "fairness between users is not a question of placement",
		"slo":                    queue,
		"slo-pack-load":          queue,
		"slo-least-load":         queue,
		"slo-least-load-pulling": queue,
		"pd":                     "prefill and decode are not separated",
		"prefix-cache-preble":    "use prefix-cache",
	}
}

// Strategies returns the names that a request or the configuration may use,
// sorted. A blend of them may be used as well, see [Config.Strategy].
func Strategies() []string {
	var names []string
	for _, s := range strategies() {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}

// Unit is what a cost is measured in.
type Unit string

// The units of costs and terms.
const (
	UnitNone     Unit = ""
	UnitRequests Unit = "requests"
	UnitSeconds  Unit = "s"
	UnitShare    Unit = "share"
	UnitRate     Unit = "tokens/s"
	UnitTurns    Unit = "turns"
	UnitHash     Unit = "hash"
)

// Term is one summand of a cost.
type Term struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  Unit    `json:"unit"`
}

// termsOf appends what c's cost under s is the sum of.
func (s *strategy) termsOf(sc *scene, c *Candidate, dst []Term) []Term {
	switch {
	case s.blend != nil:
		return blendTerms(s, sc, c, dst)
	case s.terms != nil:
		return s.terms(sc, c, dst)
	}
	return append(dst, Term{s.name, s.cost(sc, &c.row, &c.held), s.unit})
}

// lookUp returns the strategy that text names, a blend perhaps.
func lookUp(table map[string]*strategy, text string) (*strategy, error) {
	text = strings.TrimSpace(text)
	if s := table[text]; s != nil {
		return s, nil
	}
	if strings.ContainsAny(text, ":,") {
		return parseBlend(table, text)
	}
	return nil, unknownStrategy(text)
}

func unknownStrategy(name string) error {
	if why, ok := notOffered()[name]; ok {
		return fmt.Errorf("%q is a strategy of AIBrix that is not offered here (%s); use one of %s", name, why, strings.Join(Strategies(), ", "))
	}
	return fmt.Errorf("%q is not a strategy; use one of %s", clip(name), strings.Join(Strategies(), ", "))
}

// missing tells whether a cost says that the data for it is missing.
func missing(cost float64) bool { return math.IsNaN(cost) }
