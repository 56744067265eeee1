package tokenizer

import (
	"slices"
	"unsafe"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// group is servers that tokenize a model alike.
type group struct {
	// identity is nil as long as it is not known; then nothing is remembered.
	identity *identity
	lanes    []*lane
	// endpoints are the engines that this holds for; nil: all.
	endpoints []*pool.Endpoint
}

// fleet is the grouping of one model's servers at one instant. It is
// immutable.
type fleet struct {
	// first and n are the slice of serving endpoints that it was made from: a
	// snapshot of the pool keeps one for each model. first keeps its memory
	// from being used again.
	first   **pool.Endpoint
	n       int
	version uint64
	lanes   []*lane
	groups  []*group
}

// maxLanes bounds the (server, model) pairs: models that nobody lists are
// routed while the pool's model lists are incomplete.
const maxLanes = 1 << 14

// groups returns the servers to ask, the largest group first, and sees to it
// that they are examined.
func (t *Client) groups(q *routing.TokenQuery) []*group {
	f, _ := t.fleets.Load(q.Request.Model)
	version := t.version.Load()
	if f == nil || f.version != version || f.n != len(q.Serving) || f.first != unsafe.SliceData(q.Serving) {
		f = t.newFleet(q, version)
		if t.fleets.Size() < maxLanes {
			t.fleets.Store(q.Request.Model, f)
		}
	}
	due := t.due(t.now())
	for _, l := range f.lanes {
		if l.examined.Load() < due {
			t.enqueueExam(l)
		}
	}
	return f.groups
}

func (t *Client) newFleet(q *routing.TokenQuery, version uint64) *fleet {
	f := &fleet{first: unsafe.SliceData(q.Serving), n: len(q.Serving), version: version}
	model := q.Request.Model
	if len(t.cfg.Endpoints) > 0 {
		for _, e := range t.cfg.Endpoints {
			f.lanes = append(f.lanes, t.lane(trimmed(e), model))
		}
		f.groups = dedicated(f.lanes)
		return f
	}
	for _, e := range q.Serving {
		f.lanes = append(f.lanes, t.lane(base(e), model))
	}
	f.groups = byIdentity(f.lanes, q.Serving)
	return f
}

func (t *Client) lane(base, model string) *lane {
	k := laneKey{base, model}
	if l, ok := t.lanes.Load(k); ok {
		return l
	}
	s, _ := t.servers.LoadOrCompute(base, func() *server { return &server{base: base} })
	if t.lanes.Size() >= maxLanes {
		return &lane{server: s, model: model}
	}
	l, _ := t.lanes.LoadOrCompute(k, func() *lane { return &lane{server: s, model: model} })
	return l
}

// dedicated groups servers that are not the engines: there is one group, of
// the identity that most of them have. The others are left out until they are
// the most: a rolling upgrade must not mix two templates.
func dedicated(lanes []*lane) []*group {
	g := &group{identity: commonest(lanes)}
	for _, l := range lanes {
		if id := l.identity.Load(); id == g.identity || id == nil {
			g.lanes = append(g.lanes, l)
		}
	}
	return []*group{g}
}

// byIdentity groups engines: each holds blocks of its own template. One that
// was examined in vain, because it has no tokenizer or does not answer, is
// taken to be like most.
func byIdentity(lanes []*lane, serving []*pool.Endpoint) []*group {
	most := commonest(lanes)
	if most == nil {
		return []*group{{lanes: lanes}}
	}
	var groups []*group
	for i, l := range lanes {
		id := l.identity.Load()
		if id == nil {
			if l.examined.Load() == 0 {
				continue
			}
			id = most
		}
		at := slices.IndexFunc(groups, func(g *group) bool { return g.identity == id })
		if at < 0 {
			at = len(groups)
			groups = append(groups, &group{identity: id})
		}
		groups[at].endpoints = append(groups[at].endpoints, serving[i])
		groups[at].lanes = append(groups[at].lanes, l)
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return len(b.lanes) - len(a.lanes) })
	groups = groups[:min(len(groups), routing.MaxTokenGroups)]
	if len(groups[0].endpoints) == len(serving) {
		groups[0].endpoints = nil
	}
	return groups
}

// commonest returns the identity that most lanes have, nil if none is known.
func commonest(lanes []*lane) *identity {
	counts := map[*identity]int{}
	var best *identity
	for _, l := range lanes {
		if id := l.identity.Load(); id != nil {
			if counts[id]++; counts[id] > counts[best] {
				best = id
			}
		}
	}
	return best
}
