package routing

import (
	"fmt"
	"strings"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Decision is what is kept of a decision for explanation. It holds no prompt
// and no token ids.
type Decision struct {
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id"`
	Model     string    `json:"model"`
	Strategy  string    `json:"strategy"`
	Reason    string    `json:"reason"`
	// PromptTokens is 0 if the prompt was not tokenized.
	PromptTokens int `json:"prompt_tokens"`
	// Tokens says where the prompt's tokens came from.
	Tokens TokenView `json:"tokens"`
	// Considered is the number of candidates; Candidates are the best of them
	// in the order of preference, the first being the one chosen.
	Considered int             `json:"considered"`
	Candidates []CandidateView `json:"candidates"`
}

// CandidateView is one candidate of a [Decision].
type CandidateView struct {
	Name          string `json:"name"`
	Address       string `json:"address"`
	MatchedTokens int    `json:"matched_tokens"`
	Trust         string `json:"trust"`
	InFlight      int64  `json:"in_flight"`
	PrefillTokens int64  `json:"prefill_tokens"`
}

// maxViews bounds the candidates kept of one decision.
const maxViews = 8

// decisionLog is a ring of the newest decisions. It keeps copies in memory
// that is allocated once.
type decisionLog struct {
	ring []Decision
	next int
	full bool
}

func newDecisionLog(n int) decisionLog {
	l := decisionLog{ring: make([]Decision, n)}
	for i := range l.ring {
		l.ring[i].Candidates = make([]CandidateView, 0, maxViews)
	}
	return l
}

// record keeps one decision; cands are in the order of preference as far as
// the target's list reaches.
func (l *decisionLog) record(req *Request, t *Target, cands []Candidate) {
	if len(l.ring) == 0 {
		return
	}
	d := &l.ring[l.next]
	views := d.Candidates[:0]
	for i := range min(len(cands), maxViews) {
		c := &cands[i]
		views = append(views, CandidateView{
			Name: c.Endpoint.Name, Address: c.Endpoint.Address, MatchedTokens: c.MatchedTokens,
			Trust: c.Trust.String(), InFlight: c.InFlight, PrefillTokens: c.PrefillTokens,
		})
	}
	*d = Decision{
		Time: req.Arrived, RequestID: req.ID, Model: req.Model, Strategy: t.Strategy, Reason: t.Reason.String(),
		PromptTokens: t.PromptTokens, Tokens: t.Tokens, Considered: len(cands), Candidates: views,
	}
	l.next++
	if l.next == len(l.ring) {
		l.next, l.full = 0, true
	}
}

func (l *decisionLog) appendTo(dst []Decision) []Decision {
	n := l.next
	if l.full {
		n = len(l.ring)
	}
	for i := range n {
		d := l.ring[(l.next-1-i+len(l.ring))%len(l.ring)]
		d.Candidates = append([]CandidateView(nil), d.Candidates...)
		dst = append(dst, d)
	}
	return dst
}

// Words explains the decision in a few sentences.
func (d Decision) Words() string {
	if len(d.Candidates) == 0 {
		return "Nothing was chosen."
	}
	var b strings.Builder
	won := d.Candidates[0]
	fmt.Fprintf(&b, "%s (%s) was chosen by %s out of %d candidates: %s.", won.Name, won.Address, d.Strategy, d.Considered, d.because())
	if d.PromptTokens > 0 && won.MatchedTokens > 0 {
		fmt.Fprintf(&b, " It holds %d of the prompt's %d tokens (%.0f %%)", won.MatchedTokens, d.PromptTokens, 100*float64(won.MatchedTokens)/float64(d.PromptTokens))
		if won.Trust != kvindex.TrustExact.String() {
			fmt.Fprintf(&b, ", as far as its %s event history says", won.Trust)
		}
		b.WriteByte('.')
	}
	if w := d.Tokens.words(); w != "" {
		b.WriteString(" " + w)
	}
	fmt.Fprintf(&b, " This router has %s in flight there.", requests(won.InFlight))
	for _, c := range d.Candidates[1:] {
		fmt.Fprintf(&b, " %s", c.Name)
		if d.PromptTokens > 0 {
			fmt.Fprintf(&b, " holds %d tokens and", c.MatchedTokens)
		}
		fmt.Fprintf(&b, " has %s in flight.", requests(c.InFlight))
	}
	return b.String()
}

func requests(n int64) string {
	if n == 1 {
		return "1 request"
	}
	return fmt.Sprintf("%d requests", n)
}

func (d Decision) because() string {
	switch d.Reason {
	case ReasonPrefix.String():
		return "no candidate holds a longer prefix of the prompt"
	case ReasonLoad.String():
		return "no candidate has fewer requests in flight"
	case ReasonRandom.String():
		return "it was drawn at random"
	case ReasonCold.String():
		return "no candidate holds any of the prompt, and none has fewer requests in flight"
	case ReasonShort.String():
		return "the prompt is too short to be cached, and no candidate has fewer requests in flight"
	case ReasonNoPrompt.String():
		return "the request has no prompt that can be looked up, and no candidate has fewer requests in flight"
	case ReasonNoEvents.String():
		return "no candidate has reported a cached block yet, and none has fewer requests in flight"
	case ReasonTokenizerDown.String():
		return "no tokenizer answered, so that cached prefixes could not be looked up, and no candidate has fewer requests in flight"
	case ReasonTokenizerTimeout.String():
		return "the tokenizer took too long, so that cached prefixes could not be looked up, and no candidate has fewer requests in flight"
	case ReasonTokenizerRefused.String():
		return "the tokenizer refused the prompt, and no candidate has fewer requests in flight"
	case ReasonTokenizerForm.String():
		return "the tokenizer has no form for such a prompt, and no candidate has fewer requests in flight"
	}
	return d.Reason
}
