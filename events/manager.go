package events

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// SnapshotSource tells which endpoints there are. A snapshot's Superseded
// channel is closed when there is a newer one.
type SnapshotSource interface {
	Snapshot() *pool.Snapshot
}

// Status is one publisher at one instant, for people to read.
type Status struct {
	Endpoint string `json:"endpoint"`
	Rank     int    `json:"rank"`
	Events   string `json:"events"`
	Replay   string `json:"replay,omitempty"`
	Relay    string `json:"relay,omitempty"`
	// Source is who feeds the publisher: the engine's own stream, or a relay.
	Source string `json:"source"`
	// Phase is where the publisher's history stands, Trust how far its state
	// can be believed, Since when the trust last changed.
	Phase string    `json:"phase"`
	Trust string    `json:"trust"`
	Since time.Time `json:"since"`
	// Blind: the engine's events cannot tell salted or image prompts from plain
	// ones, so that the publisher is never exact.
	Blind bool `json:"blind,omitempty"`
	// Sequence is that of the last batch applied, if Sequenced.
	Sequence  uint64 `json:"sequence"`
	Sequenced bool   `json:"sequenced"`
	// Missed counts batches that were missing live, replayed later or not.
	Missed    uint64    `json:"missed"`
	LastEvent time.Time `json:"last_event,omitzero"`
	// Error is why there is no connection, empty if there is one.
	Error string `json:"error,omitempty"`
}

// Manager follows the pool: one subscriber for each publisher in it, and no
// state of a publisher that is not.
type Manager struct {
	cfg       Config
	index     *kvindex.Index
	hasher    kvindex.Hasher
	transport Transport
	log       *slog.Logger
	metrics   *metrics
	rand      *rand.Rand
	slots     chan struct{}
	ready     chan struct{}
	taps      Taps   // nil: nobody is told
	relays    Relays // nil: relays are ignored
	peers     Peers  // nil: no other router is asked
	askFor    time.Duration
	asks      asks

	mu sync.Mutex
	// saved are the publishers of the process before, each until it is taken;
	// guarded by mu.
	saved   map[savedKey]*Saved
	running map[kvindex.PublisherID]*running // guarded by mu; changed by Run only
	// waiting are the publishers present at start that neither are live nor
	// have failed. It is nil before the first snapshot. Guarded by mu.
	waiting map[kvindex.Publisher]bool
	// ended is what publishers knew when Run ended, warm how those of the
	// process before are doing; guarded by mu.
	ended []Saved
	warm  WarmStart
}

// running is a subscriber and what it was started for.
type running struct {
	Subject
	sub    *subscriber
	cancel context.CancelFunc
	done   chan struct{}
}

// New returns a manager that writes to index with the hashes of hasher. random
// spreads retries in time.
func New(cfg Config, index *kvindex.Index, hasher kvindex.Hasher, transport Transport, log *slog.Logger, reg prometheus.Registerer, random *rand.Rand, options ...Option) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Manager{
		cfg: cfg, index: index, hasher: hasher, transport: transport, log: log.With("component", "events"),
		metrics: newMetrics(reg), rand: random, slots: make(chan struct{}, cfg.Replays),
		ready: make(chan struct{}), running: map[kvindex.PublisherID]*running{}, saved: map[savedKey]*Saved{},
	}
	for _, o := range options {
		o(m)
	}
	return m, nil
}

// Ready returns a channel that is closed once every publisher that the first
// snapshot had is live or has failed its first attempt.
func (m *Manager) Ready() <-chan struct{} { return m.ready }

// Run follows p until ctx ends, then stops all subscribers and returns nil.
// It may be called once.
func (m *Manager) Run(ctx context.Context, p SnapshotSource) error {
	if m.cfg.Listen != "" {
		in, err := listenInbound(ctx, m.cfg.Listen, m.cfg.MaxFrameBytes, m.transport)
		if err != nil {
			return err
		}
		defer in.close()
		m.transport = in
		m.log.Info("waiting for engines to connect", "listen", in.socket.Endpoint())
	}
	defer m.asks.end()
	defer m.stop(func(kvindex.PublisherID) bool { return true })
	for {
		snap := p.Snapshot()
		if err := m.follow(ctx, snap); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			m.saveUntaken(snap)
			return nil
		case <-snap.Superseded():
		}
	}
}

// Status returns the state of every publisher, by endpoint and rank.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	subs := make([]*subscriber, 0, len(m.running))
	for _, r := range m.running {
		subs = append(subs, r.sub)
	}
	m.mu.Unlock()
	out := make([]Status, 0, len(subs))
	for _, s := range subs {
		s.mu.Lock()
		out = append(out, s.status)
		s.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Rank, b.Rank))
	})
	return out
}

// follow starts and stops subscribers so that they are those of snap.
func (m *Manager) follow(ctx context.Context, snap *pool.Snapshot) error {
	want := map[kvindex.PublisherID]Subject{}
	present := map[kvindex.Publisher]bool{}
	for _, e := range snap.Endpoints {
		for _, p := range e.Publishers {
			// Without its model's id the blocks have no root: wait for the list.
			if len(e.Models) > 0 {
				want[p.ID] = Subject{p, e.Name, e.Address, e.Models[0], e.State}
			}
			present[p.Publisher] = len(e.Models) > 0 || e.Health < pool.HealthFailed
		}
	}
	m.stop(func(id kvindex.PublisherID) bool {
		s, ok := want[id]
		return !ok || s != m.running[id].Subject
	})
	m.await(present)
	var fresh []Subject
	for id, s := range want {
		if m.running[id] == nil {
			fresh = append(fresh, s)
		}
	}
	coming := m.ask(ctx, fresh)
	for _, s := range fresh {
		if err := m.start(ctx, s, coming[s.Publisher.ID]); err != nil {
			return err
		}
	}
	return nil
}

// await keeps account of the publishers that Ready waits for. present tells
// which there are, true if an attempt is to be expected.
func (m *Manager) await(present map[kvindex.Publisher]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == nil {
		m.waiting = map[kvindex.Publisher]bool{}
		for p := range present {
			m.waiting[p] = true
		}
	}
	for p := range m.waiting {
		if !present[p] {
			delete(m.waiting, p)
		}
	}
	m.tellReady()
}

func (m *Manager) settled(p kvindex.Publisher) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waiting, p)
	m.tellReady()
}

func (m *Manager) tellReady() {
	if len(m.waiting) > 0 {
		return
	}
	select {
	case <-m.ready:
	default:
		close(m.ready)
	}
}

// start follows a publisher. coming brings what another router knows of it, nil
// if none is asked.
func (m *Manager) start(ctx context.Context, of Subject, coming <-chan *Saved) error {
	p := of.Publisher
	w, err := m.index.Open(p.Publisher)
	if err != nil {
		return fmt.Errorf("publisher of %s: %w", of.Endpoint, err)
	}
	log := m.log.With("endpoint", of.Endpoint, "rank", p.Rank)
	s := &subscriber{
		cfg: m.cfg, transport: m.transport, slots: m.slots, log: log, m: m.metrics,
		rand:      rand.New(rand.NewPCG(m.rand.Uint64(), m.rand.Uint64())),
		publisher: p, writer: w, settled: sync.OnceFunc(func() { m.settled(p.Publisher) }),
		series: m.metrics.series(of.Endpoint, p.Rank), seq: NewSequence(p.Replay != ""),
		applier: applier{hasher: m.hasher, model: of.Model, state: of.State, to: w},
		pauses:  newPauses(m.cfg), roots: map[kvindex.BlockHash]struct{}{}, questions: make(chan question),
		status: Status{
			Endpoint: of.Endpoint, Rank: p.Rank, Events: p.Events, Replay: p.Replay, Relay: p.Relay, Source: SourceEngine,
			Phase: Connecting.String(), Trust: kvindex.TrustSilent.String(), Since: time.Now(),
		},
	}
	if m.taps != nil {
		s.tap = m.taps.Open(of, w)
		s.applier.root = s.tap.Root
	}
	if s.publisher.Replay != "" && s.tap == nil {
		s.applier.root = func(root kvindex.BlockHash, _ kvindex.Scope) { s.remember(root) }
	}
	if p.Replay == "" && p.Events != "" {
		log.Warn("no replay endpoint: what is missed cannot be had again; set replay_endpoint in the engine's --kv-events-config and replay here")
	}
	all := ctx
	ctx, cancel := context.WithCancel(ctx)
	r := &running{Subject: of, sub: s, cancel: cancel, done: make(chan struct{})}
	m.mu.Lock()
	m.running[p.ID] = r
	m.mu.Unlock()
	go func() {
		defer close(r.done)
		m.warmUp(ctx, s, of, coming)
		m.feed(ctx, s, of)
		if all.Err() != nil { // the process ends, not the publisher
			m.save(s, of)
		}
		s.proven(false) // what was restored and is still to be proven is dropped with the rest
		if s.tap != nil {
			s.tap.Close()
		}
		w.Close()
		s.series.remove()
	}()
	return nil
}

// stop ends the subscribers that which names, together, and waits for them.
func (m *Manager) stop(which func(kvindex.PublisherID) bool) {
	var stopped []*running
	for id, r := range m.running {
		if which(id) {
			r.cancel()
			stopped = append(stopped, r)
		}
	}
	for _, r := range stopped {
		<-r.done
		m.mu.Lock()
		delete(m.running, r.Publisher.ID)
		m.mu.Unlock()
	}
}
