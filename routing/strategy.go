package routing

import (
	"cmp"
	"slices"
)

// strategy is one way to choose.
type strategy struct {
	name string
	// doc is one line for documentation and errors.
	doc string
	// matches tells whether candidates need their matched tokens.
	matches bool
	// compare orders candidates: negative if a is the better choice. Ties are
	// broken at random. nil: all candidates tie.
	compare func(a, b *Candidate) int
	// reason is the reason of a decision that nothing degraded.
	reason Reason
}

// strategies is the table of all strategies, by name.
func strategies() []strategy {
	return []strategy{
		{
			name:   "random",
			doc:    "any candidate, with equal chances",
			reason: ReasonRandom,
		},
		{
			name:    "least-request",
			doc:     "the candidate with the fewest requests in flight from this router",
			compare: compareInFlight,
			reason:  ReasonLoad,
		},
		{
			name:    "prefix-cache",
			doc:     "the candidate that holds the longest prefix of the prompt; fewest requests in flight among equals",
			matches: true,
			compare: func(a, b *Candidate) int {
				return cmp.Or(cmp.Compare(b.MatchedTokens, a.MatchedTokens), compareInFlight(a, b))
			},
			reason: ReasonPrefix,
		},
	}
}

func compareInFlight(a, b *Candidate) int { return cmp.Compare(a.InFlight, b.InFlight) }

// Strategies returns the names that a request or the configuration may use,
// sorted.
func Strategies() []string {
	var names []string
	for _, s := range strategies() {
		names = append(names, s.name)
	}
	slices.Sort(names)
	return names
}
