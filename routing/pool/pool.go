package pool

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
)

// Pool publishes snapshots of the endpoints.
type Pool struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	client  *http.Client
	rand    *rand.Rand
	names   map[string]metric
	buffers sync.Pool

	snapshot atomic.Pointer[Snapshot]
	// sizesChanged counts the block sizes that became known of any endpoint.
	sizesChanged atomic.Uint64

	// mu guards what snapshots are made from.
	mu      sync.Mutex
	members []*member
	nextID  uint32
	freeIDs []uint32
	// Publishers have ids of their own.
	nextPublisher  uint32
	freePublishers []uint32
	admitted       uint32
	probed         chan struct{}
	waiting        int
	// begin starts the probing of a member, nil while Run does not run.
	begin func(*member)
}

// member is the mutable record behind one Endpoint.
type member struct {
	spec    Spec
	id      uint32
	inc     uint32
	state   *State
	health  Health
	models  []string
	adapts  []string
	learned bool
	// sources are its event streams, and publishers their ids, which are kept
	// as long as the member is there. located: they need not be learned (any
	// more), until the engine fails.
	sources    []eventSource
	publishers []uint32
	located    bool
	unlocated  bool // the last attempt failed, which is logged once
	stop       context.CancelFunc
	// initial: Probed waits for it. gone: it is no longer in the pool.
	initial, gone bool
}

// New returns a pool that holds the static endpoints of cfg, none of them
// probed. client sends the probes; random spreads them in time.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer, client *http.Client, random *rand.Rand) *Pool {
	p := &Pool{
		cfg: cfg, log: log.With("component", "pool"), metrics: newMetrics(reg), client: client, rand: random,
		names: metricNames(), probed: make(chan struct{}),
	}
	p.buffers.New = func() any { return new(bytes.Buffer) }
	p.snapshot.Store(newSnapshot(nil, &p.sizesChanged))
	p.Set(cfg.Static.Endpoints)
	return p
}

// Snapshot returns the newest snapshot. It never blocks.
func (p *Pool) Snapshot() *Snapshot { return p.snapshot.Load() }

// Probed returns a channel that is closed once every endpoint that the pool
// started with has been probed.
func (p *Pool) Probed() <-chan struct{} { return p.probed }

// Run probes the endpoints until ctx ends, and returns nil then. It may be
// called once.
func (p *Pool) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	p.mu.Lock()
	p.waiting = len(p.members)
	if p.waiting == 0 {
		close(p.probed)
	}
	p.begin = func(m *member) { p.watchMember(ctx, &wg, m) }
	for _, m := range p.members {
		m.initial = true
		p.begin(m)
	}
	p.mu.Unlock()
	<-ctx.Done()
	p.mu.Lock()
	p.begin = nil
	p.mu.Unlock()
	wg.Wait()
	return nil
}

// watchMember starts the goroutines that probe m. The caller holds mu.
func (p *Pool) watchMember(ctx context.Context, wg *sync.WaitGroup, m *member) {
	ctx, m.stop = context.WithCancel(ctx)
	first := time.Duration(p.rand.Int64N(int64(p.cfg.Health.Interval) / 4))
	seed := p.rand.Uint64()
	wg.Go(func() { p.watch(ctx, m, first, rand.New(rand.NewPCG(seed, 1))) })
	if url := p.metricsURL(m.spec); url != "" {
		wg.Go(func() { p.follow(ctx, m, url, first, rand.New(rand.NewPCG(seed, 2))) })
	}
}

// Set replaces the endpoints by specs, which must be valid. Those that did not
// change keep their state; a changed one keeps its id in another incarnation.
func (p *Pool) Set(specs []Spec) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := map[string]*member{}
	for _, m := range p.members {
		old[m.spec.Name] = m
	}
	var members []*member
	for _, s := range specs {
		m := old[s.Name]
		if m != nil && reflect.DeepEqual(m.spec, s) {
			delete(old, s.Name)
			members = append(members, m)
			continue
		}
		if m != nil {
			p.dismiss(m)
			delete(old, s.Name)
		}
		m = p.admit(s, m)
		members = append(members, m)
		if p.begin != nil {
			p.begin(m)
		}
	}
	for _, m := range old {
		p.dismiss(m)
		p.freeIDs = append(p.freeIDs, m.id)
	}
	p.members = members
	p.publish()
}

// dismiss ends the probing of m. The caller holds mu.
func (p *Pool) dismiss(m *member) {
	m.gone = true
	p.freePublishers = append(p.freePublishers, m.publishers...)
	if m.stop != nil {
		m.stop()
	}
	if m.initial {
		p.probedOne(m)
	}
}

// probedOne takes m off the endpoints that Probed waits for. The caller holds
// mu.
func (p *Pool) probedOne(m *member) {
	m.initial = false
	if p.waiting--; p.waiting == 0 {
		close(p.probed)
	}
}

// admit makes the member of a spec. A changed spec keeps its id, but every
// member has an incarnation of its own, so that nothing of a predecessor
// counts for it.
func (p *Pool) admit(s Spec, predecessor *member) *member {
	m := &member{spec: s, state: &State{sizesChanged: &p.sizesChanged}, models: s.Models, adapts: s.Adapters, learned: len(s.Models) > 0, located: s.Events != EventsAuto}
	p.locate(m, s.sources())
	switch {
	case predecessor != nil:
		m.id = predecessor.id
	case len(p.freeIDs) > 0:
		m.id = p.freeIDs[len(p.freeIDs)-1]
		p.freeIDs = p.freeIDs[:len(p.freeIDs)-1]
	default:
		m.id = p.nextID
		p.nextID++
	}
	p.admitted++
	m.inc = p.admitted
	return m
}

// locate says where m publishes. The caller holds mu.
func (p *Pool) locate(m *member, sources []eventSource) {
	for len(m.publishers) < len(sources) {
		id := p.nextPublisher
		if n := len(p.freePublishers); n > 0 {
			id, p.freePublishers = p.freePublishers[n-1], p.freePublishers[:n-1]
		} else {
			p.nextPublisher++
		}
		m.publishers = append(m.publishers, id)
	}
	m.sources = sources
}

// publish stores a new snapshot. The caller holds mu.
func (p *Pool) publish() {
	endpoints := make([]*Endpoint, 0, len(p.members))
	counts := map[Health]int{HealthUnknown: 0, HealthReady: 0, HealthFailed: 0}
	for _, m := range p.members {
		e := &Endpoint{
			Spec: m.spec, ID: kvindex.EndpointID(m.id), Incarnation: m.inc,
			Health: m.health, State: m.state, modelsKnown: m.learned,
		}
		e.Models, e.Adapters, e.Labels = slices.Clone(m.models), slices.Clone(m.adapts), maps.Clone(m.spec.Labels)
		for i, s := range m.sources {
			e.Publishers = append(e.Publishers, Publisher{
				Publisher: kvindex.Publisher{ID: kvindex.PublisherID(m.publishers[i]), Endpoint: e.ID, Incarnation: m.inc},
				Rank:      s.rank, Events: s.events, Replay: s.replay,
			})
		}
		endpoints = append(endpoints, e)
		counts[m.health]++
	}
	for h, n := range counts {
		p.metrics.endpoints[h].Set(float64(n))
	}
	old := p.snapshot.Swap(newSnapshot(endpoints, &p.sizesChanged))
	close(old.superseded)
}
