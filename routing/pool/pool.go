package pool

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
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
	byName  map[string]*member
	// at counts the members at each address, crowded the addresses that several
	// share.
	at      map[string]int
	crowded int
	// listed is what the sources list, by name, see source.go.
	listed  listed
	nextID  uint32
	freeIDs []uint32
	changes changes
	// fleets are by model.
	fleets map[string]*fleet
	// Publishers have ids of their own.
	nextPublisher  uint32
	freePublishers []uint32
	admitted       uint32
	probed         chan struct{}
	waiting        int
	// begin starts the probing of a member, nil while Run does not run.
	begin func(*member)
	// dirty: a member has changed since the last snapshot. kick wakes the
	// goroutine that publishes it, rested is when that is due.
	dirty  bool
	kick   chan struct{}
	rested time.Time

	sources []Source
	synced  chan struct{}
	// unsynced counts the sources that have not listed their endpoints yet;
	// sourceListed says which have. overdue: [Config].SyncTimeout has passed;
	// givenUp: probed does not wait for them.
	unsynced         int
	sourceListed     []bool
	overdue, givenUp bool
}

// member is the mutable record behind one Endpoint.
type member struct {
	// spec and guess are those of the first listing: the name, address, events
	// and metrics in them stay true, and they never change. listing is the
	// newest, guarded by mu as all that follows.
	spec    Spec
	guess   []eventSource
	listing Listing
	// source is that of the listing, 0 being the configuration.
	source int
	id     uint32
	inc    uint32
	state  *State
	health Health
	// models and adapts are what it serves, learned: as its engine says.
	models  []string
	adapts  []string
	learned bool
	// learnAt is when the engine is asked for its models again.
	learnAt time.Time
	// sources are its event streams, and publishers their ids, which are kept
	// as long as the member is there. located: they need not be learned (any
	// more), until the engine fails. Until locateAt it is not asked again.
	sources    []eventSource
	publishers []uint32
	located    bool
	unlocated  int // failed attempts in a row, of which the first is logged
	locateAt   time.Time
	stop       context.CancelFunc
	// initial: Probed waits for it. gone: it is no longer in the pool.
	initial, gone bool
	// readSoon asks for a read of the metrics without waiting for the next.
	readSoon chan struct{}
	// endpoint is the member in the last snapshot, nil if it has changed since.
	endpoint *Endpoint
}

// New returns a pool that holds the static endpoints of cfg, none of them
// probed. client sends the probes; random spreads them in time. Run runs the
// sources, which list further endpoints; of an endpoint that several list, the
// configuration's word counts first, then that of the first source.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer, client *http.Client, random *rand.Rand, sources ...Source) *Pool {
	p := &Pool{
		cfg: cfg, log: log.With("component", "pool"), metrics: newMetrics(reg, sources), client: client, rand: random,
		names: metricNames(), probed: make(chan struct{}), synced: make(chan struct{}), kick: make(chan struct{}, 1),
		byName: map[string]*member{}, fleets: map[string]*fleet{}, at: map[string]int{}, listed: newListed(1 + len(sources)), sources: sources, unsynced: len(sources),
		sourceListed: make([]bool, len(sources)),
	}
	p.metrics.unlisted.Set(float64(len(sources)))
	p.buffers.New = func() any { return new(bytes.Buffer) }
	p.snapshot.Store(newSnapshot(nil, &p.sizesChanged, nil))
	if len(sources) == 0 {
		close(p.synced)
	}
	p.Set(cfg.Static.Endpoints)
	return p
}

// Snapshot returns the newest snapshot. It never blocks.
func (p *Pool) Snapshot() *Snapshot { return p.snapshot.Load() }

// Probed returns a channel that is closed once every source has listed its
// endpoints, or [Config].SyncTimeout has passed and there are some, and each of
// those has been probed.
func (p *Pool) Probed() <-chan struct{} { return p.probed }

// Synced returns a channel that is closed once every source has listed its
// endpoints.
func (p *Pool) Synced() <-chan struct{} { return p.synced }

// Run runs the sources and probes the endpoints until ctx ends, and returns
// nil then. It may be called once.
func (p *Pool) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	p.mu.Lock()
	p.waiting = len(p.members) + len(p.sources)
	if p.waiting == 0 {
		close(p.probed)
	}
	p.begin = func(m *member) { p.watchMember(ctx, &wg, m) }
	for _, m := range p.members {
		m.initial = true
		p.begin(m)
	}
	p.mu.Unlock()
	g, failed := errgroup.WithContext(ctx)
	for i, s := range p.sources {
		g.Go(func() error { return p.runSource(failed, i+1, s) })
	}
	g.Go(func() error { p.publishLate(failed); return nil })
	if p.cfg.SyncTimeout > 0 {
		g.Go(func() error { p.awaitSources(failed); return nil })
	}
	err := g.Wait()
	p.mu.Lock()
	p.begin = nil
	for _, m := range p.members {
		m.stop()
	}
	p.mu.Unlock()
	wg.Wait()
	return err
}

// watchMember starts the goroutines that probe m. The caller holds mu.
func (p *Pool) watchMember(ctx context.Context, wg *sync.WaitGroup, m *member) {
	ctx, m.stop = context.WithCancel(ctx)
	first := time.Duration(p.rand.Int64N(int64(p.cfg.Health.Interval) / 4))
	seed := p.rand.Uint64()
	wg.Go(func() { p.watch(ctx, m, first, rand.New(rand.NewPCG(seed, 1))) })
	if u := p.metricsURL(m.spec); u != nil {
		wg.Go(func() { p.follow(ctx, m, u, first, rand.New(rand.NewPCG(seed, 2))) })
	}
}

// Set replaces the endpoints of the configuration by specs, which must be
// valid. Those that did not change keep their state; a changed one keeps its
// id in another incarnation.
func (p *Pool) Set(specs []Spec) {
	changes := make([]Change, 0, len(specs))
	for _, spec := range specs {
		changes = append(changes, Change{spec.Name, []Listing{{Spec: spec}}})
	}
	p.replace(0, changes)
}

// dismiss ends the probing of m. The caller holds mu.
func (p *Pool) dismiss(m *member) {
	m.gone = true
	if p.at[m.spec.Address]--; p.at[m.spec.Address] == 1 {
		p.crowded--
	} else if p.at[m.spec.Address] == 0 {
		delete(p.at, m.spec.Address)
	}
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
	p.waitForLess(1)
}

// admit makes the member of a listing. A changed one keeps its id, but every
// member has an incarnation of its own, so that nothing of a predecessor
// counts for it. The caller holds mu.
func (p *Pool) admit(l claim, predecessor *member) *member {
	m := &member{source: l.source, spec: l.Spec, guess: l.guess, listing: l.Listing, state: &State{sizesChanged: &p.sizesChanged}, located: l.Events != EventsAuto}
	m.serveListed()
	p.locate(m, l.sources())
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
	m.state.changed, p.changes = p.changes.of(m.id)
	m.state.wake, m.readSoon = make(chan struct{}, 1), make(chan struct{}, 1)
	p.admitted++
	m.inc = p.admitted
	if p.at[l.Address]++; p.at[l.Address] == 2 {
		p.crowded++
	}
	if p.begin != nil {
		if p.unsynced > 0 && !p.givenUp {
			m.initial = true
			p.waiting++
		}
		p.begin(m)
	}
	return m
}

// serveListed takes the models from the listing, as far as it tells them.
func (m *member) serveListed() {
	m.models, m.adapts = m.listing.Models, m.listing.Adapters
	m.learned = len(m.models) > 0 && !m.listing.LearnModels
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
	m.endpoint = nil
}
