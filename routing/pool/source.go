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
	// Run tells what there is until ctx ends, and returns nil then. tell takes
	// changes in the order in which they happened, and returns when requests
	// follow them; synced is called once, when everything that there was at the
	// beginning has been told. An error ends the pool.
	Run(ctx context.Context, tell func([]Change), synced func()) error
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
		l.Events == m.Events && l.Topic == m.Topic && l.Replay == m.Replay && l.Ranks == m.Ranks &&
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

func newListed() listed { return listed{byName: map[string][]claim{}} }

// put replaces what a source claims under key, and calls touched with every
// name for which that may matter.
func (l *listed) put(source int, key string, listings []Listing, touched func(name string)) {
	for len(l.names) <= source {
		l.names = append(l.names, map[string][]string{})
	}
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
	return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.rank, b.rank), cmp.Compare(a.key, b.key))
}

// of returns what is believed of an endpoint, ok false if nobody lists it. One
// that anybody who knows it at this address withholds is withheld.
func (l *listed) of(name string) (listing Listing, ok bool) {
	claims := l.byName[name]
	if len(claims) == 0 {
		return Listing{}, false
	}
	listing = claims[0].Listing
	for _, c := range claims[1:] {
		if listing.Withheld == "" && c.Address == listing.Address && c.source == claims[0].source {
			listing.Withheld = c.Withheld
		}
	}
	return listing, true
}

// runSource runs s, whose claims have the number i.
func (p *Pool) runSource(ctx context.Context, i int, s Source) error {
	told := false
	synced := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if told {
			return
		}
		told = true
		p.waitForLess()
		if p.unsynced--; p.unsynced == 0 {
			close(p.synced)
		}
	}
	if err := s.Run(ctx, func(changes []Change) { p.apply(i, changes) }, synced); err != nil && ctx.Err() == nil {
		return fmt.Errorf("pool: %w", err)
	}
	return nil
}

// apply takes what a source says. It costs in proportion to the changes, and
// the snapshot that follows in proportion to all endpoints.
func (p *Pool) apply(source int, changes []Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fewer := false
	for _, c := range changes {
		p.listed.put(source, c.Key, c.Listings, func(name string) { fewer = p.settle(name) || fewer })
	}
	p.changed(fewer)
}

// replace makes the claims of a source those of changes, and no others.
func (p *Pool) replace(source int, changes []Change) {
	there := make(map[string]bool, len(changes))
	for _, c := range changes {
		there[c.Key] = true
	}
	p.mu.Lock()
	var gone []Change
	if source < len(p.listed.names) {
		for key := range p.listed.names[source] {
			if !there[key] {
				gone = append(gone, Change{Key: key})
			}
		}
	}
	p.mu.Unlock()
	slices.SortFunc(gone, func(a, b Change) int { return cmp.Compare(a.Key, b.Key) })
	p.apply(source, append(gone, changes...))
}

// settle makes the member called name what is listed of it. It reports whether
// an endpoint is gone, or is withheld now. The caller holds mu.
func (p *Pool) settle(name string) (fewer bool) {
	m := p.byName[name]
	l, ok := p.listed.of(name)
	switch {
	case !ok && m == nil:
		return false
	case !ok:
		p.dismiss(m)
		p.freeIDs = append(p.freeIDs, m.id)
		delete(p.byName, name)
		i := slices.Index(p.members, m)
		p.members = slices.Delete(p.members, i, i+1)
	case m == nil:
		m = p.admit(l, nil)
		p.byName[name] = m
		p.members = append(p.members, m)
		return false
	case !m.listing.sameProcess(l):
		p.dismiss(m)
		next := p.admit(l, m)
		p.byName[name] = next
		p.members[slices.Index(p.members, m)] = next
	case reflect.DeepEqual(m.listing, l):
		return false
	default:
		fewer = m.listing.Withheld == "" && l.Withheld != ""
		named := !slices.Equal(m.listing.Models, l.Models) || !slices.Equal(m.listing.Adapters, l.Adapters)
		m.listing, m.endpoint = l, nil
		if named {
			m.serveListed()
			m.learnAt = time.Time{}
		}
		return fewer
	}
	return true
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
			m.endpoint = m.publishable()
		}
		endpoints = append(endpoints, m.endpoint)
		counts[m.endpoint.Health]++
	}
	for h, n := range counts {
		p.metrics.endpoints[Health(h)].Set(float64(n))
	}
	old := p.snapshot.Swap(newSnapshot(endpoints, &p.sizesChanged, p.changes))
	close(old.superseded)
	p.dirty = false
	now := time.Now()
	p.rested = now.Add(restShare * now.Sub(begin))
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
			Rank:      s.rank, Events: s.events, Replay: s.replay,
		})
	}
	return e
}
