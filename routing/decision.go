package routing

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/warmpath/warmpath/routing/pool"
)

// Decision is what is kept of a decision for explanation. It holds no prompt
// and no token ids.
type Decision struct {
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id"`
	Model     string    `json:"model"`
	Strategy  string    `json:"strategy"`
	// ChosenBy says what named the strategy, Profile which profile was in use.
	ChosenBy Chooser `json:"chosen_by"`
	Profile  string  `json:"profile,omitempty"`
	Reason   string  `json:"reason"`
	// PromptTokens is 0 if the prompt was not tokenized.
	PromptTokens int `json:"prompt_tokens"`
	// Tokens says where the tokens came from, see [TokenView.String].
	Tokens string `json:"tokens"`
	// Unit is what costs are measured in; the smallest cost wins.
	Unit Unit `json:"unit"`
	// Margin is by how much the runner-up's cost is larger than the winner's;
	// nil without a runner-up.
	Margin *float64 `json:"margin,omitempty"`
	// Considered is the number of candidates; Candidates are the best of them
	// in the order of preference, the first being the one chosen.
	Considered int             `json:"considered"`
	Candidates []CandidateView `json:"candidates"`
	// LeftOut are the endpoints that were no candidates. Only an explanation has
	// them.
	LeftOut []LeftOut `json:"left_out,omitempty"`

	view      TokenView
	margin    float64
	hasMargin bool
}

// LeftOut is an endpoint that was no candidate, and why.
type LeftOut struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Why     string `json:"why"`
}

// CandidateView is one candidate of a [Decision].
type CandidateView struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Cost is nil where it is infinite.
	Cost  *float64 `json:"cost"`
	Terms []Term   `json:"terms"`
	// Missing: data for the cost is missing or stale.
	Missing bool `json:"missing,omitempty"`
	// Cooling: it failed a short time ago.
	Cooling        bool  `json:"cooling,omitempty"`
	MatchedTokens  int   `json:"matched_tokens"`
	DeviceTokens   int   `json:"device_tokens"`
	ExpectedTokens int   `json:"expected_tokens"`
	InFlight       int64 `json:"in_flight"`
	PrefillTokens  int64 `json:"prefill_tokens"`
	ContextTokens  int64 `json:"context_tokens"`
	// BacklogSeconds is how long the prefill work sent there will take.
	BacklogSeconds float64 `json:"backlog_seconds"`
	// Source says what is known of its cache: events, or approximate where it
	// has none and only what this router sent there is.
	Source string `json:"source"`
	Trust  string `json:"trust"`
	// Faith is the share of predicted cached tokens that its engine confirmed.
	Faith float64 `json:"faith"`
	// Load is nil if the engine's metrics never could be read.
	Load *LoadView `json:"load"`

	cost float64
	load LoadView
}

// LoadView is what an engine's metrics said.
type LoadView struct {
	AgeSeconds float64 `json:"age_seconds"`
	Stale      bool    `json:"stale"`
	Running    float64 `json:"running"`
	Waiting    float64 `json:"waiting"`
	KVUsage    float64 `json:"kv_usage"`
	// PrefillRate is in tokens a second, 0 if it was not learned.
	PrefillRate float64 `json:"prefill_rate"`
	// StepSeconds is the mean time between two tokens, 0 if it was not learned.
	StepSeconds float64 `json:"step_seconds"`
}

// ViewLoad returns what l says at now, nil if l is nil.
func ViewLoad(l *pool.Load, now time.Time) *LoadView {
	if l == nil {
		return nil
	}
	v := viewLoad(l, now)
	return &v
}

func viewLoad(l *pool.Load, now time.Time) LoadView {
	return LoadView{
		AgeSeconds: now.Sub(l.At).Seconds(), Stale: l.Fresh(now) == 0, Running: l.Running, Waiting: l.Waiting,
		KVUsage: l.KVUsage, PrefillRate: l.PrefillRate, StepSeconds: l.StepSeconds,
	}
}

const (
	sourceEvents      = "events"
	sourceApproximate = "approximate"
)

// maxViews bounds the candidates kept of one decision; maxTerms is how many
// terms most strategies have at most.
const (
	maxViews = 8
	maxTerms = 6
)

// decisionLog is a ring of the newest decisions. It keeps copies in memory
// that is used again.
type decisionLog struct {
	ring []Decision
	next int
	full bool
}

func newDecisionLog(n int) decisionLog {
	l := decisionLog{ring: make([]Decision, n)}
	for i := range l.ring {
		views, terms := make([]CandidateView, maxViews), make([]Term, maxViews*maxTerms)
		for j := range views {
			views[j].Terms = terms[j*maxTerms : j*maxTerms : (j+1)*maxTerms]
		}
		l.ring[i].Candidates = views[:0]
	}
	return l
}

// resized returns a log of n decisions with the newest of l.
func (l *decisionLog) resized(n int) decisionLog {
	to := newDecisionLog(n)
	old := l.appendTo(nil)
	old = old[:min(len(old), n)]
	slices.Reverse(old)
	copy(to.ring, old)
	if n > 0 {
		to.next, to.full = len(old)%n, len(old) == n
	}
	return to
}

// record keeps one decision; the candidates of sc are in the order of
// preference as far as the target's list reaches.
func (l *decisionLog) record(sc *scratch, t *Target, p *prospect) {
	if len(l.ring) == 0 {
		return
	}
	l.ring[l.next].fill(sc, t, p, maxViews)
	l.next++
	if l.next == len(l.ring) {
		l.next, l.full = 0, true
	}
}

// fill makes d the decision that sc's first n candidates tell, using its
// memory again.
func (d *Decision) fill(sc *scratch, t *Target, p *prospect, n int) {
	req, cands := sc.scene.req, sc.candidates
	views := d.Candidates[:0]
	for i := range min(len(cands), n) {
		if len(views) < cap(views) {
			views = views[:len(views)+1] // with the memory of an older view
		} else {
			views = append(views, CandidateView{})
		}
		views[i].fill(sc, &cands[i], p.strategy)
	}
	*d = Decision{
		Time: req.Arrived, RequestID: req.ID, Model: req.Model, Strategy: t.Strategy, ChosenBy: p.by, Profile: p.profile,
		Reason: t.Reason.String(), PromptTokens: t.PromptTokens, view: t.Tokens, Unit: p.unit,
		Considered: sc.count(), Candidates: views,
	}
	if t.Reason == ReasonMetricMissing && p.blend == nil || t.Reason == ReasonNoKey {
		d.Unit = UnitRequests // what decided instead
	}
	if len(t.Endpoints) > 1 && !math.IsInf(cands[1].Cost, 0) {
		d.margin, d.hasMargin = cands[1].Cost-cands[0].Cost, true
	}
}

func (v *CandidateView) fill(sc *scratch, c *Candidate, s *strategy) {
	if s.counts && sc.model == nil {
		c.look(&sc.scene) // the strategy did not need it
	}
	state := c.Endpoint.State
	terms := v.Terms[:0]
	if !c.Missing && !math.IsInf(c.Cost, 0) {
		terms = s.termsOf(&sc.scene, c, terms)
	}
	*v = CandidateView{
		Name: c.Endpoint.Name, Address: c.Endpoint.Address, Terms: terms, Missing: c.Missing, Cooling: c.Cooling,
		MatchedTokens: c.matched, DeviceTokens: c.device, ExpectedTokens: c.expected,
		InFlight: c.inFlight, PrefillTokens: state.PrefillTokens(), ContextTokens: state.ContextTokens(),
		BacklogSeconds: sc.scene.backlog(&c.row), Source: sourceEvents, Trust: c.trust.String(),
		Faith: c.faith, cost: c.Cost,
	}
	if len(c.Endpoint.Publishers) == 0 {
		v.Source = sourceApproximate
	}
	if c.load != nil {
		v.load = viewLoad(c.load, sc.scene.now)
		v.Load = &v.load
	}
}

// detached returns a copy of d that shares no memory with it.
func (d *Decision) detached() Decision {
	c := *d
	c.Tokens = d.view.String()
	if d.hasMargin {
		m := d.margin
		c.Margin = &m
	}
	c.Candidates = slices.Clone(d.Candidates)
	for i := range c.Candidates {
		v := &c.Candidates[i]
		v.Terms = append([]Term{}, v.Terms...)
		if !math.IsInf(v.cost, 0) {
			cost := v.cost
			v.Cost = &cost
		}
		if v.Load != nil {
			load := v.load
			v.Load = &load
		}
	}
	return c
}

func (l *decisionLog) appendTo(dst []Decision) []Decision {
	n := l.next
	if l.full {
		n = len(l.ring)
	}
	for i := range n {
		dst = append(dst, l.ring[(l.next-1-i+len(l.ring))%len(l.ring)].detached())
	}
	return dst
}

// debug writes one line about a decision if debug lines are written at all.
func (r *Router) debug(ctx context.Context, sc *scratch, t *Target, p *prospect) {
	if !r.logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	c := &sc.candidates[0]
	r.logger.LogAttrs(ctx, slog.LevelDebug, "decided",
		slog.String("request_id", sc.scene.req.ID), slog.String("model", sc.scene.req.Model),
		slog.String("strategy", t.Strategy), slog.String("chosen_by", string(p.by)), slog.String("reason", t.Reason.String()),
		slog.String("endpoint", c.Endpoint.Name), slog.String("address", c.Endpoint.Address),
		slog.Int("candidates", sc.count()), slog.Float64("cost", c.Cost), slog.String("unit", string(p.unit)),
		slog.Int("prompt_tokens", t.PromptTokens), slog.Int("matched_tokens", t.MatchedTokens), slog.Int64("in_flight", c.inFlight))
}
