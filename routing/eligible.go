package routing

import (
	"fmt"
	"slices"
	"strings"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// left is why an endpoint is no candidate.
type left uint8

const (
	leftNot left = iota
	leftHealth
	leftModel
	leftSubset
	leftFilter
	leftCooling
)

var leftNames = [...]string{
	leftNot: "", leftHealth: "it fails its health probe", leftModel: "it does not serve the model",
	leftSubset: "it is not in the subset that the gateway allows", leftFilter: "its labels do not meet external-filter",
	leftCooling: "it failed requests a short time ago",
}

// serving returns the model that the request asks for, one without a name if
// no endpoint lists it yet, and the scope of its blocks, less the block size.
func (r *Router) serving(snap *pool.Snapshot, req *Request) (*pool.Model, kvindex.Scope, *Error) {
	if req.Model != "" {
		if m, ok := snap.Model(req.Model); ok {
			return m, kvindex.Scope{Model: m.Base, Adapter: m.Adapter, Salt: req.Prompt.Salt}, nil
		}
		if snap.Complete() && len(snap.Endpoints) > 0 {
			return nil, kvindex.Scope{}, &Error{
				Reason: ReasonModelNotFound, Param: "model",
				Message: fmt.Sprintf("the model %q does not exist; this gateway serves %s", clip(req.Model), strings.Join(snap.Models(), ", ")),
			}
		}
	}
	var all []*pool.Endpoint
	for _, e := range snap.Endpoints {
		if e.Candidate() {
			all = append(all, e)
		}
	}
	return &pool.Model{Endpoints: all}, kvindex.Scope{Model: req.Model, Salt: req.Prompt.Salt}, nil
}

// eligible fills sc.candidates with the endpoints of serving that the request
// may go to. Endpoints that failed a short time ago are left out unless there
// are no others: a request that may fail is better than one that does. left,
// which may be nil, is told about those left out.
func (sc *scratch) eligible(req *Request, serving []*pool.Endpoint, leftOut func(*pool.Endpoint, left)) *Error {
	var filter selector
	if req.Filter != "" {
		var err error
		if filter, err = parseSelector(req.Filter); err != nil {
			return &Error{Reason: ReasonBadRequest, Param: "external-filter", Message: "external-filter: " + err.Error()}
		}
	}
	sc.candidates = slices.Grow(sc.candidates[:0], len(serving))
	sc.allow(req.Subset)
	cooling := 0
	last := leftNot
	tell := func(e *pool.Endpoint, why left) {
		last = why
		if leftOut != nil {
			leftOut(e, why)
		}
	}
	for _, e := range serving {
		switch {
		case req.Subset != nil && !sc.allowed(e.Address):
			tell(e, leftSubset)
		case !filter.matches(e.Labels):
			tell(e, leftFilter)
		case e.Cooling(req.Arrived):
			cooling++
			tell(e, leftCooling)
		default:
			n := len(sc.candidates)
			sc.candidates = sc.candidates[:n+1]
			c := &sc.candidates[n] // in place: a thousand copies take their time
			*c = Candidate{}
			c.Endpoint = e
		}
	}
	if len(sc.candidates) > 0 {
		return nil
	}
	if cooling == 0 {
		return noEndpoint(req, len(serving), last)
	}
	for _, e := range serving {
		if (req.Subset == nil || sc.allowed(e.Address)) && filter.matches(e.Labels) {
			sc.candidates = append(sc.candidates, Candidate{Endpoint: e, Cooling: true})
		}
	}
	return nil
}

// manyAllowed is how many addresses a subset may have before a map is faster
// than a search.
const manyAllowed = 8

func (sc *scratch) allow(subset []string) {
	sc.subset = subset
	clear(sc.inSubset)
	if len(subset) <= manyAllowed {
		return
	}
	if sc.inSubset == nil {
		sc.inSubset = make(map[string]struct{}, len(subset))
	}
	for _, a := range subset {
		sc.inSubset[a] = struct{}{}
	}
}

func (sc *scratch) allowed(address string) bool {
	if len(sc.inSubset) > 0 {
		_, ok := sc.inSubset[address]
		return ok
	}
	for _, a := range sc.subset {
		if a == address {
			return true
		}
	}
	return false
}

func noEndpoint(req *Request, serving int, last left) *Error {
	e := &Error{Reason: ReasonNoEndpoint, Message: "no endpoint is ready"}
	if req.Model != "" {
		e.Message = fmt.Sprintf("no endpoint that serves the model %q is ready", clip(req.Model))
	}
	switch {
	case serving > 0 && last == leftFilter:
		e.Message = fmt.Sprintf("none of the %d ready endpoints has labels that meet external-filter %q", serving, clip(req.Filter))
	case serving > 0:
		e.Message = fmt.Sprintf("none of the %d ready endpoints is in the subset that the gateway allows", serving)
	}
	return e
}

// clip bounds what of a client's value goes into a message.
func clip(s string) string {
	const limit = 128
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
