package routing

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/warmpath/warmpath/kvindex"
)

// Words explains the decision in a few sentences.
func (d Decision) Words() string {
	if len(d.Candidates) == 0 {
		return "Nothing was chosen."
	}
	var b strings.Builder
	won := &d.Candidates[0]
	fmt.Fprintf(&b, "%s (%s) was chosen by %s out of %s: %s.", won.Name, won.Address, d.Strategy, count(int64(d.Considered), "candidate"), d.because())
	b.WriteString(d.chooserWords())
	b.WriteString(d.costWords())
	if d.PromptTokens > 0 && won.MatchedTokens > 0 {
		fmt.Fprintf(&b, " It holds %d of the prompt's %d tokens (%.0f %%)", won.MatchedTokens, d.PromptTokens, 100*float64(won.MatchedTokens)/float64(d.PromptTokens))
		if won.Trust != kvindex.TrustExact.String() {
			fmt.Fprintf(&b, ", as far as its %s event history says", won.Trust)
		}
		b.WriteByte('.')
	}
	if more := won.ExpectedTokens - won.MatchedTokens; d.PromptTokens > 0 && more > 0 {
		fmt.Fprintf(&b, " %s more are expected there from requests in flight.", count(int64(more), "token"))
	}
	fmt.Fprintf(&b, " This router has %s in flight there.", count(won.InFlight, "request"))
	b.WriteString(won.loadWords("Its"))
	if won.Cooling {
		b.WriteString(" It failed a short time ago, and so did every other endpoint, so none was left out.")
	}
	if w := d.view.words(); w != "" {
		b.WriteString(" " + w)
	}
	for i := range d.Candidates[1:] {
		c := &d.Candidates[1+i]
		fmt.Fprintf(&b, " %s", c.Name)
		if d.PromptTokens > 0 {
			fmt.Fprintf(&b, " holds %s and", count(int64(c.MatchedTokens), "token"))
		}
		fmt.Fprintf(&b, " has %s in flight", count(c.InFlight, "request"))
		if cost := d.cost(c); cost != "" {
			fmt.Fprintf(&b, "; its cost is %s", cost)
		}
		b.WriteByte('.')
		b.WriteString(c.loadWords(c.Name + "'s"))
	}
	for _, l := range d.LeftOut {
		fmt.Fprintf(&b, " %s was left out: %s.", l.Name, l.Why)
	}
	return b.String()
}

func (d *Decision) chooserWords() string {
	switch d.ChosenBy {
	case ByHeader:
		return " The request's header named the strategy."
	case ByProfile:
		return fmt.Sprintf(" The profile %s names the strategy.", d.Profile)
	case ByLock:
		return " The strategy is locked."
	case ByDefault:
	}
	return ""
}

// costWords tells the winner's cost and the margin.
func (d *Decision) costWords() string {
	cost := d.cost(&d.Candidates[0])
	if cost == "" {
		return ""
	}
	s := " Its cost is " + cost
	if d.Margin != nil && len(d.Candidates) > 1 {
		if *d.Margin == 0 {
			s += fmt.Sprintf(", the same as that of %s: chance decided", d.Candidates[1].Name)
		} else {
			s += fmt.Sprintf(", %s less than that of %s", amount(*d.Margin, d.Unit), d.Candidates[1].Name)
		}
	}
	return s + "."
}

// cost returns a candidate's cost and what it is the sum of, empty where a
// cost has no meaning of its own.
func (d *Decision) cost(c *CandidateView) string {
	if d.Unit == UnitNone || d.Unit == UnitTurns || d.Unit == UnitHash || math.IsInf(c.cost, 0) {
		return ""
	}
	s := amount(c.cost, d.Unit)
	if c.Missing {
		return s + ", that of the worst known, for its data is missing or stale"
	}
	var parts []string
	for _, t := range c.Terms {
		if t.Value != 0 && len(c.Terms) > 1 {
			parts = append(parts, t.Name+" "+amount(t.Value, t.Unit))
		}
	}
	if len(parts) > 0 {
		s += " (" + strings.Join(parts, ", ") + ")"
	}
	return s
}

// amount returns a figure with its unit, rounded to what a person reads.
func amount(v float64, u Unit) string {
	s := strconv.FormatFloat(v, 'g', 3, 64)
	if v == math.Trunc(v) || math.Abs(v) >= 1000 {
		s = strconv.FormatFloat(v, 'f', 0, 64)
	}
	switch u {
	case UnitShare:
		return strconv.FormatFloat(100*v, 'f', 1, 64) + " %"
	case UnitRequests:
		return strings.TrimSuffix(s+" requests", map[bool]string{true: "s"}[v == 1])
	case UnitSeconds:
		if a := math.Abs(v); a > 0 && a < 0.1 {
			return strconv.FormatFloat(1000*v, 'f', 1, 64) + " ms"
		}
	case UnitNone, UnitRate, UnitTurns, UnitHash:
	}
	return s + " " + string(u)
}

// loadWords tells how old the engine's metrics are, where that is worth
// telling.
func (v *CandidateView) loadWords(whose string) string {
	switch {
	case v.Load == nil:
		return fmt.Sprintf(" %s engine's metrics were never read.", whose)
	case v.Load.Stale:
		return fmt.Sprintf(" %s engine's metrics are %.1f s old and do not count.", whose, v.Load.AgeSeconds)
	}
	return fmt.Sprintf(" %s engine reported %s running and %.0f waiting, %.0f %% of its KV cache in use, %.1f s ago.",
		whose, count(int64(v.Load.Running), "request"), v.Load.Waiting, 100*v.Load.KVUsage, v.Load.AgeSeconds)
}

func count(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// because says in half a sentence what the reason means.
func (d *Decision) because() string {
	const byLoad = "so that the fewest requests in flight decided"
	switch d.Reason {
	case ReasonPrefix.String():
		return "it holds as much of the prompt as any candidate, and none is faster by enough to leave it"
	case ReasonSpill.String():
		return "another candidate holds more of the prompt, but waiting for that one would cost more"
	case ReasonLoad.String():
		return "no candidate has a lower load"
	case ReasonQueued.String():
		return "the request had waited for an endpoint with room, and no other with room has fewer requests in flight"
	case ReasonRandom.String():
		return "it was drawn at random"
	case ReasonTurn.String():
		return "it was its turn"
	case ReasonAffinity.String():
		return "the request's key belongs there, as far as the load allows"
	case ReasonBlend.String():
		return "no candidate has a lower sum of the weighted costs"
	case ReasonCold.String():
		return "no candidate holds any of the prompt, and none answers sooner"
	case ReasonShort.String():
		return "the prompt is too short to be cached, and no candidate answers sooner"
	case ReasonNoPrompt.String():
		return "the request has no prompt that can be looked up, and no candidate answers sooner"
	case ReasonNoEvents.String():
		return "no candidate has reported a cached block yet, and none answers sooner"
	case ReasonTokenizerDown.String():
		return "no tokenizer answered, so that cached prefixes could not be looked up, and no candidate answers sooner"
	case ReasonTokenizerTimeout.String():
		return "the tokenizer took too long, so that cached prefixes could not be looked up, and no candidate answers sooner"
	case ReasonTokenizerRefused.String():
		return "the tokenizer refused the prompt, and no candidate answers sooner"
	case ReasonTokenizerForm.String():
		return "the tokenizers have no form for such a prompt, and no candidate answers sooner"
	case ReasonPromptOptions.String():
		return "the request has options that change the prompt and that the tokenizers cannot be told of, and no candidate answers sooner"
	case ReasonNoKey.String():
		return "the request has no key that the strategy could use, " + byLoad
	case ReasonMetricMissing.String():
		return "the strategy's metric is missing or stale for every candidate, " + byLoad
	}
	return d.Reason
}
