package routing

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/routing/pool"
)

// Explain tells what would be chosen for req now and why, with all candidates
// and all endpoints that are none. It reserves nothing and nothing remembers
// it. Candidates of equal cost are in the order of their names, where a
// decision would draw one.
func (r *Router) Explain(ctx context.Context, req Request) (Decision, *Error) {
	sc := &scratch{} // as large as the pool, and seldom needed
	st := r.settings.Load()
	var out []LeftOut
	p, err := r.prospect(ctx, st, &req, sc, func(e *pool.Endpoint, why left) {
		out = append(out, LeftOut{e.Name, e.Address, leftNames[why]})
	})
	if err != nil {
		return Decision{}, err
	}
	r.mu.Lock()
	reason, _ := r.judge(st, &req, sc, &p, 0)
	r.mu.Unlock()
	slices.SortStableFunc(sc.candidates, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(a.Cost, b.Cost), strings.Compare(a.Endpoint.Name, b.Endpoint.Name))
	})
	t := Target{Strategy: p.name, Reason: reason, Tokens: p.tokens, PromptTokens: p.promptTokens}
	considered := map[string]bool{}
	for i := range sc.candidates {
		e := sc.candidates[i].Endpoint
		t.Endpoints = append(t.Endpoints, e)
		considered[e.Name] = true
	}
	if reason == ReasonPrefix && sc.candidates[0].expected < sc.most {
		t.Reason = ReasonSpill
	}
	var d Decision
	d.fill(sc, &t, &p, len(sc.candidates))
	d = d.detached()
	for _, l := range out {
		considered[l.Name] = true
		if i := slices.IndexFunc(d.Candidates, func(v CandidateView) bool { return v.Name == l.Name }); i < 0 {
			d.LeftOut = append(d.LeftOut, l)
		}
	}
	for _, e := range r.pool.Snapshot().Endpoints {
		if considered[e.Name] {
			continue
		}
		why := leftNames[leftModel]
		if !e.Candidate() {
			why = cmp.Or(e.Withheld, leftNames[leftHealth])
		}
		d.LeftOut = append(d.LeftOut, LeftOut{e.Name, e.Address, why})
	}
	return d, nil
}
