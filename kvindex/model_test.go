package kvindex

import (
	"slices"
	"time"
)

// model is the dumb twin: maps only, and every rule written once.
type model struct {
	pubs     map[PublisherID]*modelPub
	expected map[EndpointID][]modelPrediction
}

type modelPub struct {
	Publisher
	groups  []uint8
	known   map[EngineHash]BlockHash
	copies  map[modelCopy]int
	spares  map[modelSpare]int
	orphans map[EngineHash]*modelOrphan
	waiting map[EngineHash][]EngineHash
	fading  []EngineHash // removed lately; forgotten where nothing is remembered
}

type modelCopy struct {
	name  EngineHash
	tier  Tier
	group uint8
}

// modelSpare is a block of the device tier.
type modelSpare struct {
	block BlockHash
	group uint8
}

type modelOrphan struct {
	parent  EngineHash
	content ContentHash
	held    map[modelCopy]bool
}

type modelPrediction struct {
	request uint64
	chain   []BlockHash
	until   time.Time
}

func newModel() *model {
	return &model{pubs: map[PublisherID]*modelPub{}, expected: map[EndpointID][]modelPrediction{}}
}

func (p *modelPub) clear() {
	*p = modelPub{Publisher: p.Publisher, known: map[EngineHash]BlockHash{}, copies: map[modelCopy]int{}, spares: map[modelSpare]int{}, orphans: map[EngineHash]*modelOrphan{}, waiting: map[EngineHash][]EngineHash{}}
}

func (p *modelPub) disown(n EngineHash) {
	block, was := p.known[n]
	delete(p.known, n)
	for _, b := range p.known {
		was = was && b != block
	}
	if was { // its last name
		for _, g := range p.groups {
			delete(p.spares, modelSpare{block, g})
		}
	}
	for c := range p.copies {
		if c.name == n {
			delete(p.copies, c)
		}
	}
}

func (p *modelPub) hold(c modelCopy) {
	if c.tier == TierDevice {
		if p.copies[c] > 0 {
			p.spares[modelSpare{p.known[c.name], c.group}]++
		}
		p.copies[c] = 1
	} else {
		p.copies[c]++
	}
}

func (p *modelPub) place(n EngineHash, b BlockHash, c modelCopy) {
	if at, ok := p.known[n]; ok && at != b {
		p.disown(n)
	}
	p.known[n] = b
	p.hold(c)
}

func (p *modelPub) store(s Stored) (unplaced int) {
	if !slices.Contains(p.groups, s.Group) {
		p.groups = append(p.groups, s.Group)
	}
	if len(s.Contents) == 0 {
		for _, n := range s.Names {
			c := modelCopy{n, s.Tier, s.Group}
			if o := p.orphans[n]; o != nil {
				o.held[c] = true
			} else if _, ok := p.known[n]; ok {
				p.hold(c)
			} else {
				unplaced++
			}
		}
		return unplaced
	}
	at, ok := s.Root, true
	if s.HasParent {
		at, ok = p.known[s.Parent]
	}
	if !ok {
		parent := s.Parent
		for i, n := range s.Names {
			p.disown(n)
			c := modelCopy{n, s.Tier, s.Group}
			if o := p.orphans[n]; o != nil && o.parent == parent && o.content == s.Contents[i] {
				o.held[c] = true
			} else {
				p.orphans[n] = &modelOrphan{parent, s.Contents[i], map[modelCopy]bool{c: true}}
				p.waiting[parent] = append(p.waiting[parent], n)
			}
			parent = n
		}
		return len(s.Names)
	}
	for i, n := range s.Names {
		at = Mix(at, s.Contents[i])
		p.place(n, at, modelCopy{n, s.Tier, s.Group})
	}
	for i, n := range s.Names {
		if o := p.orphans[n]; o != nil {
			delete(p.orphans, n)
			if _, ok := p.known[n]; ok && o.content == s.Contents[i] {
				for c := range o.held {
					if c.tier != s.Tier || c.group != s.Group {
						p.hold(c)
					}
				}
			}
		}
	}
	for queue := slices.Clone(s.Names); len(queue) > 0; queue = queue[1:] {
		at, ok := p.known[queue[0]]
		if !ok {
			continue
		}
		kids := p.waiting[queue[0]]
		delete(p.waiting, queue[0])
		for _, kid := range kids {
			o := p.orphans[kid]
			if o == nil || o.parent != queue[0] {
				continue
			}
			delete(p.orphans, kid)
			if b := Mix(at, o.content); p.known[kid] != b {
				p.disown(kid)
				p.known[kid] = b
			}
			for c := range o.held {
				p.hold(c)
			}
			if len(o.held) == 0 {
				p.fading = append(p.fading, kid)
			}
			queue = append(queue, kid)
		}
	}
	return 0
}

func (p *modelPub) remove(names []EngineHash, t Tier, g uint8, remember bool) (unknown int) {
	if !slices.Contains(p.groups, g) {
		return len(names)
	}
	for _, n := range names {
		c := modelCopy{n, t, g}
		if o := p.orphans[n]; o != nil {
			if !o.held[c] {
				unknown++
			}
			delete(o.held, c)
			continue
		}
		if p.copies[c] == 0 {
			unknown++
			if spare := (modelSpare{p.known[n], g}); t == TierDevice && p.spares[spare] > 0 {
				if p.spares[spare]--; p.spares[spare] == 0 {
					delete(p.spares, spare)
				}
				p.fading = append(p.fading, n)
			}
			continue
		}
		if p.copies[c]--; p.copies[c] == 0 {
			delete(p.copies, c)
		}
		p.fading = append(p.fading, n)
	}
	p.forget(remember)
	return unknown
}

// forget drops the names that hold nothing any more.
func (p *modelPub) forget(remember bool) {
	if remember {
		return
	}
	for _, n := range p.fading {
		if !p.holdsAny(n) && !p.spared(n) {
			delete(p.known, n)
		}
	}
	p.fading = nil
}

// spared tells whether the block that a name denotes has spares.
func (p *modelPub) spared(n EngineHash) bool {
	b, ok := p.known[n]
	for _, g := range p.groups {
		ok = ok && p.spares[modelSpare{b, g}] == 0
	}
	return !ok && b != 0
}

func (p *modelPub) holdsAny(n EngineHash) bool {
	for c := range p.copies {
		if c.name == n {
			return true
		}
	}
	return false
}

// tiers tells on which tiers the publisher holds each block.
func (p *modelPub) tiers() map[BlockHash]*[NumTiers]bool {
	groups := map[BlockHash]*[NumTiers]map[uint8]bool{}
	for c := range p.copies {
		b, ok := p.known[c.name]
		if !ok {
			panic("copy of an unknown name")
		}
		if groups[b] == nil {
			groups[b] = &[NumTiers]map[uint8]bool{}
		}
		if groups[b][c.tier] == nil {
			groups[b][c.tier] = map[uint8]bool{}
		}
		groups[b][c.tier][c.group] = true
	}
	out := map[BlockHash]*[NumTiers]bool{}
	for b, g := range groups {
		for t := range g {
			if len(g[t]) == len(p.groups) {
				if out[b] == nil {
					out[b] = &[NumTiers]bool{}
				}
				out[b][t] = true
			}
		}
	}
	return out
}

func (m *model) match(chain []BlockHash, now time.Time) map[PublisherID]Match {
	out := map[PublisherID]Match{}
	for id, p := range m.pubs {
		tiers := p.tiers()
		expected := map[BlockHash]bool{}
		for _, e := range m.expected[p.Endpoint] {
			if now.Before(e.until) {
				for _, b := range e.chain {
					expected[b] = true
				}
			}
		}
		r := Match{Publisher: p.Publisher}
		device, confirmed := true, true
		for _, b := range chain {
			on := tiers[b]
			device = device && on != nil && on[TierDevice]
			confirmed = confirmed && on != nil
			if on == nil && !expected[b] {
				break
			}
			if device {
				r.Device++
			}
			if confirmed {
				r.Confirmed++
			}
			r.Predicted++
		}
		if r.Predicted > 0 {
			out[id] = r
		}
	}
	return out
}
