package pool

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Source lists endpoints that come and go.
type Source interface {
	// Name is the source's kind, a metric label.
	Name() string
	// Run tells what there is until ctx ends, and returns nil then. tell takes
	// changes in the order in which they happened, and returns when requests
	// follow them; synced is called once, when everything that there was at the
	// beginning has been told. An error ends the pool.
	Run(ctx context.Context, tell func([]Change), synced func()) error
	// Unlisted names what Run has not listed yet, and says why where that is
	// known. It may be called at any time.
	Unlisted() []string
}

// Change is what a source has to say about one of the things that it looks
// at, such as a pod.
type Change struct {
	// Key is the source's own name of the thing.
	Key string
	// Listings are the endpoints there, each with a name of its own; none if it
	// is gone.
	Listings []Listing
}

// Listing is one endpoint as a source lists it.
type Listing struct {
	Spec
	// Process tells one process behind the address from the next: of a pod its
	// UID and the restarts of its container. Another process holds nothing of
	// what the one before had cached.
	Process string
	// Withheld says why the endpoint must get no requests although it is there,
	// such as that its pod is not ready; empty: it may get them.
	Withheld string
	// LearnModels: Models are not all the names of the base model, and Adapters
	// not all adapters: the engine is asked for the others.
	LearnModels bool
	// guess is where the engine publishes if it does not say so itself.
	guess []eventSource
	// rank orders the listings that a source has of one endpoint: the lowest is
	// believed.
	rank int
}

// sameProcess tells whether l is the same process as m at the same place, so
// that what is known of it still holds.
func (l Listing) sameProcess(m Listing) bool {
	return l.Process == m.Process && l.Address == m.Address && l.Metrics == m.Metrics &&
		l.Events == m.Events && l.Topic == m.Topic && l.Replay == m.Replay && l.Relay == m.Relay && l.Ranks == m.Ranks &&
		slices.Equal(l.guess, m.guess) && l.LearnModels == m.LearnModels && slices.Equal(firstOf(l.Models), firstOf(m.Models))
}

// firstOf returns the id of a base model that has several names.
func firstOf(names []string) []string { return names[:min(1, len(names))] }

// claim is a listing and who made it.
type claim struct {
	source int // 0 is the configuration
	key    string
	Listing
}

// listed are all claims.
type listed struct {
	// byName has what is claimed of an endpoint, the most believed claim first.
	byName map[string][]claim
	// names are those that a source's key claims.
	names []map[string][]string
}

func newListed(sources int) listed {
	l := listed{byName: map[string][]claim{}}
	for range sources {
		l.names = append(l.names, map[string][]string{})
	}
	return l
}

// put replaces what a source claims under key, and calls touched with every
// name for which that may matter.
func (l *listed) put(source int, key string, listings []Listing, touched func(name string)) {
	old := l.names[source][key]
	for _, name := range old {
		claims := slices.DeleteFunc(l.byName[name], func(c claim) bool { return c.source == source && c.key == key })
		if len(claims) == 0 {
			delete(l.byName, name)
		} else {
			l.byName[name] = claims
		}
	}
	var names []string
	for _, li := range listings {
		names = append(names, li.Name)
		c := claim{source, key, li}
		at, _ := slices.BinarySearchFunc(l.byName[li.Name], c, compareClaims)
		l.byName[li.Name] = slices.Insert(l.byName[li.Name], at, c)
		touched(li.Name)
	}
	if names == nil {
		delete(l.names[source], key)
	} else {
		l.names[source][key] = names
	}
	for _, name := range old {
		if !slices.Contains(names, name) {
			touched(name)
		}
	}
}

func compareClaims(a, b claim) int {
	held := func(c claim) int { return min(1, len(c.Withheld)) }
	return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.rank, b.rank), cmp.Compare(held(a), held(b)), cmp.Compare(a.key, b.key))
}

// of returns what is believed of an endpoint, ok false if nobody lists it. One
// that the same source also knows in another way, and withholds there, is
// withheld: a pod that is ready gets no requests while its Service says that it
// is not. Of several listings of one rank the first is believed.
func (l *listed) of(name string) (c claim, ok bool) {
	claims := l.byName[name]
	if len(claims) == 0 {
		return claim{}, false
	}
	c = claims[0]
	rank := c.rank
	for _, d := range claims[1:] {
		if d.source == c.source && d.rank > rank && d.Address == c.Address && c.Withheld == "" {
			c.Withheld = d.Withheld
		}
		rank = d.rank
	}
	return c, true
}

// runSource runs s, whose claims have the number i.
func (p *Pool) runSource(ctx context.Context, i int, s Source) error {
	if err := s.Run(ctx, func(changes []Change) { p.apply(i, changes) }, func() { p.sourceSynced(i) }); err != nil && ctx.Err() == nil {
		return fmt.Errorf("pool: %w", err)
	}
	return nil
}

// apply takes what a source says. It costs in proportion to the changes, and
// the snapshot that follows in proportion to all endpoints.
func (p *Pool) apply(source int, changes []Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := effectNone
	for _, c := range changes {
		p.listed.put(source, c.Key, c.Listings, func(name string) { all = max(all, p.settle(name)) })
	}
	p.metrics.listed(source, len(p.listed.names[source]))
	if all != effectNone {
		p.changed(all == effectFewer)
	}
	p.giveUpLate()
}

// replace makes the claims of a source those of changes, and no others.
func (p *Pool) replace(source int, changes []Change) {
	there := make(map[string]bool, len(changes))
	for _, c := range changes {
		there[c.Key] = true
	}
	p.mu.Lock()
	var gone []Change
	for key := range p.listed.names[source] {
		if !there[key] {
			gone = append(gone, Change{Key: key})
		}
	}
	p.mu.Unlock()
	slices.SortFunc(gone, func(a, b Change) int { return cmp.Compare(a.Key, b.Key) })
	p.apply(source, append(gone, changes...))
}

// effect is what a change meant for the endpoints.
type effect uint8

const (
	// effectNone: nothing that a snapshot shows has changed.
	effectNone effect = iota
	// effectSome: there is something new, which may wait a moment.
	effectSome
	// effectFewer: an endpoint is gone, is another, or is withheld now: no
	// request may go there any more.
	effectFewer
)

// settle makes the member called name what is listed of it. The caller holds
// mu.
func (p *Pool) settle(name string) effect {
	m := p.byName[name]
	l, ok := p.listed.of(name)
	switch {
	case !ok && m == nil:
		return effectNone
	case !ok:
		p.dismiss(m)
		p.freeIDs = append(p.freeIDs, m.id)
		delete(p.byName, name)
		i := slices.Index(p.members, m)
		p.members = slices.Delete(p.members, i, i+1)
		return effectFewer
	case m == nil:
		m = p.admit(l, nil)
		p.byName[name] = m
		p.members = append(p.members, m)
		return effectSome
	case !m.listing.sameProcess(l.Listing):
		p.dismiss(m)
		next := p.admit(l, m)
		p.byName[name] = next
		p.members[slices.Index(p.members, m)] = next
		return effectFewer
	}
	m.source = l.source
	if reflect.DeepEqual(m.listing, l.Listing) {
		return effectNone
	}
	was := m.listing
	m.listing, m.endpoint = l.Listing, nil
	if !slices.Equal(was.Models, l.Models) || !slices.Equal(was.Adapters, l.Adapters) {
		m.serveListed()
		m.learnAt = time.Time{}
	}
	if was.Withheld == "" && l.Withheld != "" {
		return effectFewer
	}
	return effectSome
}

// restShare is how many times longer than a snapshot takes to make the pool rests
// before it makes another one: a storm of changes costs a fifth of one CPU at
// most, and a single change waits for nothing.
const restShare = 4

// changed publishes, now if it must or is not resting, else as soon as it has
// rested. The caller holds mu.
func (p *Pool) changed(now bool) {
	if now || p.begin == nil || !time.Now().Before(p.rested) {
		p.publish()
		return
	}
	p.dirty = true
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// publishLate publishes what [Pool.changed] put off, until ctx ends.
func (p *Pool) publishLate(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
			p.mu.Lock()
			timer.Reset(time.Until(p.rested))
			p.mu.Unlock()
		case <-timer.C:
			p.mu.Lock()
			if p.dirty {
				p.publish()
			}
			p.mu.Unlock()
		}
	}
}

// publish stores a new snapshot. The caller holds mu.
func (p *Pool) publish() {
	begin := time.Now()
	endpoints := make([]*Endpoint, 0, len(p.members))
	var counts [healthStates]int
	for _, m := range p.members {
		if m.endpoint == nil {
			m.state.fleet.Store(p.fleetOf(m))
			m.endpoint = m.publishable()
		}
		endpoints = append(endpoints, m.endpoint)
		counts[m.endpoint.Health]++
	}
	if p.crowded > 0 {
		p.withholdNeighbours(endpoints)
	}
	for h, n := range counts {
		p.metrics.endpoints[Health(h)].Set(float64(n))
	}
	next := newSnapshot(endpoints, &p.sizesChanged, p.changes)
	next.follows(p.snapshot.Load())
	old := p.snapshot.Swap(next)
	close(old.superseded)
	p.dirty = false
	now := time.Now()
	p.rested = now.Add(restShare * now.Sub(begin))
}

// withholdNeighbours leaves one candidate at each address: an address that was
// given to a new pod before the old one is known to be gone must not be two
// endpoints. The configuration's word counts first, then an endpoint that is
// not withheld, then the newest.
func (p *Pool) withholdNeighbours(endpoints []*Endpoint) {
	best := map[string]int{}
	better := func(a, b *member) bool {
		free := func(m *member) int { return min(1, len(m.listing.Withheld)) }
		return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(free(a), free(b)), cmp.Compare(b.inc, a.inc)) < 0
	}
	for i, m := range p.members {
		if j, ok := best[m.spec.Address]; !ok || better(m, p.members[j]) {
			best[m.spec.Address] = i
		}
	}
	for i, e := range endpoints {
		if j := best[e.Address]; j != i {
			c := *e
			c.Health, c.Withheld = HealthWithheld, endpoints[j].Name+" is at its address"
			endpoints[i] = &c
		}
	}
}

// publishable returns what snapshots show of m.
func (m *member) publishable() *Endpoint {
	e := &Endpoint{
		Spec: m.listing.Spec, ID: kvindex.EndpointID(m.id), Incarnation: m.inc,
		Health: m.health, Withheld: m.listing.Withheld, State: m.state, modelsKnown: m.learned,
	}
	if m.listing.Withheld != "" {
		e.Health = HealthWithheld
	}
	e.Models, e.Adapters = slices.Clone(m.models), slices.Clone(m.adapts)
	e.Labels, e.Annotations = maps.Clone(e.Labels), maps.Clone(e.Annotations)
	for i, s := range m.sources {
		e.Publishers = append(e.Publishers, Publisher{
			Publisher: kvindex.Publisher{ID: kvindex.PublisherID(m.publishers[i]), Endpoint: e.ID, Incarnation: m.inc},
			Rank:      s.rank, Events: s.events, Replay: s.replay, Relay: m.listing.Relay,
		})
	}
	return e
}
