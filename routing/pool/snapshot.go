package pool

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/warmpath/warmpath/kvindex"
)

// Health is what the pool's last probe of an endpoint said.
type Health uint8

const (
	// HealthUnknown: not probed yet. Such an endpoint is a candidate, because a
	// router that has just started must not fail requests.
	HealthUnknown Health = iota
	// HealthReady: the last probe was answered with 200.
	HealthReady
	// HealthFailed: the last probe failed. Never a candidate.
	HealthFailed
	// HealthWithheld: its source says that it must get no requests, for example
	// because its pod is not ready or is terminating. Never a candidate. Probes
	// go on.
	HealthWithheld

	healthStates = iota
)

// String returns the state's name as used in metrics.
func (h Health) String() string {
	switch h {
	case HealthUnknown:
		return "unknown"
	case HealthReady:
		return "ready"
	case HealthFailed:
		return "failed"
	case HealthWithheld:
		return "withheld"
	}
	return "invalid"
}

// Publisher is one KV-event stream of an endpoint.
type Publisher struct {
	kvindex.Publisher
	// Rank is the data-parallel rank, 0 on engines without ranks.
	Rank int
	// Events is the ZMQ endpoint of the live stream, Replay that of the replay
	// socket, empty where the engine has none.
	Events, Replay string
	// Relay is the [Spec]'s: where a relay tells of the publisher, which is
	// preferred to Events, which may then be empty.
	Relay string
}

// Endpoint is one routable address in a [Snapshot]. It is immutable but for
// its State.
type Endpoint struct {
	Spec
	ID          kvindex.EndpointID
	Incarnation uint32
	Health      Health
	// Withheld says why the endpoint gets no requests, if it is withheld.
	Withheld   string
	Publishers []Publisher
	// State outlives the snapshot: all snapshots of one incarnation share it.
	State *State

	// modelsKnown is false while the model list is still to be learned.
	modelsKnown bool
}

// Candidate tells whether requests may be sent to the endpoint, as far as its
// health probe and its source say. Whether it fails requests is for
// [Endpoint.Cooling].
func (e *Endpoint) Candidate() bool { return e.Health < HealthFailed }

// Cooling tells whether the endpoint failed requests a short time ago, so that
// others should be preferred at now.
func (e *Endpoint) Cooling(now time.Time) bool { return e.State.Cooling(now) }

// Model is one model name that requests may ask for.
type Model struct {
	// Name is the name requests use.
	Name string
	// Base is the pool's id of the base model, Adapter the LoRA adapter, empty
	// for the base model itself. Aliases of one model share both, so that they
	// share cached blocks.
	Base, Adapter string
	// Endpoints serve the model and are candidates.
	Endpoints []*Endpoint
	// Refs has, for each of Endpoints, what a pass over all of them needs of it,
	// without the endpoints' memory.
	Refs []Ref

	// place[id] is 1 + the index in Endpoints of the endpoint of an id, 0 where
	// there is none.
	place []int32
	// sizes is what BlockSizes returned last, changed the pool's count of sizes
	// that became known; nil outside a pool.
	sizes   atomic.Pointer[blockSizes]
	changed *atomic.Uint64
}

// Ref tells an endpoint in few bytes.
type Ref struct {
	ID          kvindex.EndpointID
	Incarnation uint32
	// Publishers is how many event streams it has.
	Publishers int32
}

// blockSizes is a list of distinct block sizes that was true when the pool's
// count of changes was at.
type blockSizes struct {
	at    uint64
	sizes []int
}

// Endpoint returns the one of m.Endpoints that has the id, nil if none has.
func (m *Model) Endpoint(id kvindex.EndpointID) *Endpoint {
	if i := m.index(id); i >= 0 {
		return m.Endpoints[i]
	}
	return nil
}

// Ref is [Model.Endpoint] for m.Refs.
func (m *Model) Ref(id kvindex.EndpointID) *Ref {
	if i := m.index(id); i >= 0 {
		return &m.Refs[i]
	}
	return nil
}

func (m *Model) index(id kvindex.EndpointID) int {
	if int(id) >= len(m.place) {
		return -1
	}
	return int(m.place[id]) - 1
}

// BlockSizes returns the distinct block sizes that the model's endpoints have
// reported until now. It looks at the endpoints only if any has reported a new
// one since the last call. The slice must not be changed. Safe for concurrent
// use.
func (m *Model) BlockSizes() []int {
	at := uint64(0)
	if m.changed != nil {
		at = m.changed.Load() // before the sizes: they may be newer, never older
		if s := m.sizes.Load(); s != nil && s.at == at {
			return s.sizes
		}
	}
	var sizes []int
	for _, e := range m.Endpoints {
		for _, n := range e.State.BlockSizes() {
			if !slices.Contains(sizes, n) {
				sizes = append(sizes, n)
			}
		}
	}
	if m.changed != nil {
		m.sizes.Store(&blockSizes{at, sizes})
	}
	return sizes
}

func (m *Model) add(e *Endpoint) {
	if m.Endpoint(e.ID) == e {
		return
	}
	m.Endpoints = append(m.Endpoints, e)
	m.Refs = append(m.Refs, Ref{e.ID, e.Incarnation, int32(len(e.Publishers))})
	for len(m.place) <= int(e.ID) {
		m.place = append(m.place, 0)
	}
	m.place[e.ID] = int32(len(m.Endpoints))
}

// Snapshot is the pool at one instant. It is immutable but for what it remembers
// of its endpoints' block sizes.
type Snapshot struct {
	// Endpoints are all endpoints, in the order in which they were listed. Those
	// that did not change are shared with the snapshot before.
	Endpoints []*Endpoint
	// Profiled are those whose annotation AnnotationProfiles has to be read: one
	// of each base model and text, in the order of Endpoints.
	Profiled []*Endpoint

	byID       []*Endpoint // nil where no endpoint has the id
	byAddress  map[string]*Endpoint
	models     map[string]*Model
	complete   bool
	superseded chan struct{}
	changed    *atomic.Uint64
	changes    changes
	// number counts the pool's snapshots. moves are the ids whose endpoints
	// differ from one of the latest of them to the next, the last being this one.
	number uint64
	moves  [][]kvindex.EndpointID
}

// Model returns the model of a name, also one whose endpoints all fail at the
// moment; ok is false if no endpoint lists it.
func (s *Snapshot) Model(name string) (m *Model, ok bool) {
	m, ok = s.models[name]
	return m, ok
}

// Models returns the names of all models, sorted.
func (s *Snapshot) Models() []string {
	names := make([]string, 0, len(s.models))
	for n := range s.models {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Complete tells whether the model lists of all endpoints are known, so that
// a model in none of them does not exist.
func (s *Snapshot) Complete() bool { return s.complete }

// Endpoint returns the endpoint of an id, nil if the snapshot has none.
func (s *Snapshot) Endpoint(id kvindex.EndpointID) *Endpoint {
	if int(id) >= len(s.byID) {
		return nil
	}
	return s.byID[id]
}

// ByAddress returns the endpoint at ip:port, nil if the snapshot has none.
func (s *Snapshot) ByAddress(addr string) *Endpoint { return s.byAddress[addr] }

// Superseded returns a channel that is closed when the pool has published a
// newer snapshot.
func (s *Snapshot) Superseded() <-chan struct{} { return s.superseded }

// AnnotationProfiles is AIBrix's annotation with the routing profiles of a
// model (AIBrix documentation, "Config Profiles").
const AnnotationProfiles = "model.aibrix.ai/config"

// newSnapshot returns a snapshot of endpoints whose states count in changed the
// block sizes that become known, and in changes all else.
func newSnapshot(endpoints []*Endpoint, changed *atomic.Uint64, changes changes) *Snapshot {
	s := &Snapshot{
		Endpoints:  endpoints,
		byAddress:  make(map[string]*Endpoint, len(endpoints)),
		models:     map[string]*Model{},
		complete:   true,
		superseded: make(chan struct{}),
		changed:    changed,
		changes:    changes,
	}
	type profile struct{ base, text string }
	profiled := map[profile]bool{}
	for _, e := range endpoints {
		if text := e.Annotations[AnnotationProfiles]; text != "" {
			p := profile{text: text}
			if len(e.Models) > 0 {
				p.base = e.Models[0]
			}
			if !profiled[p] {
				profiled[p] = true
				s.Profiled = append(s.Profiled, e)
			}
		}
		for len(s.byID) <= int(e.ID) {
			s.byID = append(s.byID, nil)
		}
		s.byID[e.ID] = e
		if old := s.byAddress[e.Address]; old == nil || e.Health != HealthWithheld {
			s.byAddress[e.Address] = e
		}
		s.complete = s.complete && e.modelsKnown
		if len(e.Models) == 0 {
			continue
		}
		base := e.Models[0]
		for _, name := range e.Models {
			s.serve(e, name, base, "")
		}
		for _, name := range e.Adapters {
			s.serve(e, name, base, name)
		}
	}
	for _, m := range s.models {
		m.BlockSizes() // here, so that no request looks at every endpoint
	}
	return s
}

// serve lists e under a model name. The first endpoint that lists a name says
// what it means; one that disagrees is still routed to, and its blocks simply
// never match.
func (s *Snapshot) serve(e *Endpoint, name, base, adapter string) {
	m := s.models[name]
	if m == nil {
		m = &Model{Name: name, Base: base, Adapter: adapter, changed: s.changed}
		s.models[name] = m
	}
	if e.Candidate() {
		m.add(e)
	}
}
