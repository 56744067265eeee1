package pool

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine answers health probes with a status that tests change.
type engine struct {
	*httptest.Server
	status atomic.Int32
	models atomic.Value // string
}

func newEngine(t *testing.T, models string) *engine {
	e := &engine{}
	e.models.Store(models)
	e.status.Store(http.StatusOK)
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/health":
			w.WriteHeader(int(e.status.Load()))
		case "/v1/models":
			_, _ = w.Write([]byte(e.models.Load().(string)))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *engine) address() string { return strings.TrimPrefix(e.URL, "http://") }

// running returns a pool over specs that probes until the test ends.
func running(t *testing.T, specs ...Spec) *Pool {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Health.Interval = 10 * time.Millisecond
	cfg.Health.Timeout = 5 * time.Second
	cfg.Load.Interval, cfg.Load.Timeout = 40*time.Millisecond, time.Second
	cfg.Static.Endpoints = specs
	client := &http.Client{Transport: &http.Transport{}}
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), client, rand.New(rand.NewPCG(1, 1)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		client.CloseIdleConnections()
	})
	return p
}

// await returns the first snapshot for which ok holds.
func await(t *testing.T, p *Pool, ok func(*Snapshot) bool) *Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		s := p.Snapshot()
		if ok(s) {
			return s
		}
		select {
		case <-s.Superseded():
		case <-ctx.Done():
			t.Fatal("the pool never came to the awaited state")
		}
	}
}

func TestPool_DrainsAndRestoresByHealth(t *testing.T) {
	a, b := newEngine(t, ""), newEngine(t, "")
	p := running(t, Spec{Name: "a", Address: a.address(), Models: []string{"m"}}, Spec{Name: "b", Address: b.address(), Models: []string{"m"}})
	serving := func(s *Snapshot) string {
		m, ok := s.Model("m")
		if !ok {
			t.Fatal("the model vanished")
		}
		var names []string
		for _, e := range m.Endpoints {
			names = append(names, e.Name)
		}
		return strings.Join(names, ",")
	}
	if got := serving(p.Snapshot()); got != "a,b" {
		t.Errorf("before any probe %q are candidates, want a,b: unknown is not failed", got)
	}
	<-p.Probed()
	a.status.Store(http.StatusServiceUnavailable)
	await(t, p, func(s *Snapshot) bool { return serving(s) == "b" })
	b.status.Store(http.StatusServiceUnavailable)
	s := await(t, p, func(s *Snapshot) bool { return serving(s) == "" })
	if !s.Complete() {
		t.Error("failing endpoints made their known model lists unknown")
	}
	a.status.Store(http.StatusOK)
	await(t, p, func(s *Snapshot) bool { return serving(s) == "a" })
}

func TestPool_LearnsModels(t *testing.T) {
	e := newEngine(t, `{"data":[{"id":"base","parent":null},{"id":"alias"},{"id":"lora-a","parent":"base"}]}`)
	p := running(t, Spec{Name: "a", Address: e.address()})
	if first := p.Snapshot(); first.Complete() && len(first.Models()) == 0 {
		t.Error("a pool that has yet to learn its models calls its list complete")
	}
	s := await(t, p, func(s *Snapshot) bool { return s.Complete() })
	if diff := cmp.Diff([]string{"alias", "base", "lora-a"}, s.Models()); diff != "" {
		t.Errorf("models (-want +got):\n%s", diff)
	}
	for name, want := range map[string][2]string{"base": {"base", ""}, "alias": {"base", ""}, "lora-a": {"base", "lora-a"}} {
		m, _ := s.Model(name)
		if m == nil || m.Base != want[0] || m.Adapter != want[1] {
			t.Errorf("Model(%q) = %+v, want base and adapter %q", name, m, want)
		}
	}
}

func TestPool_ModelListWithoutABaseModelIsAFailedProbe(t *testing.T) {
	e := newEngine(t, `{"data":[]}`)
	p := running(t, Spec{Name: "a", Address: e.address()})
	s := await(t, p, func(s *Snapshot) bool { return s.Endpoints[0].Health == HealthFailed })
	if s.Complete() {
		t.Error("an endpoint whose models are unknown makes a complete list")
	}
}

// A changed spec is another incarnation with counters of its own; an unchanged
// one keeps them; ids of vanished endpoints are used again.
func TestPool_SetKeepsWhatDidNotChange(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Static.Endpoints = []Spec{{Name: "a", Address: "127.0.0.1:1"}, {Name: "b", Address: "127.0.0.1:2"}}
	p := New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), nil, rand.New(rand.NewPCG(1, 1)))
	before := p.Snapshot()
	before.Endpoints[0].State.Reserve(5)
	before.Endpoints[1].State.Reserve(5)
	p.Set([]Spec{{Name: "a", Address: "127.0.0.1:1"}, {Name: "b", Address: "127.0.0.1:3"}, {Name: "c", Address: "127.0.0.1:4"}})
	after := p.Snapshot()
	select {
	case <-before.Superseded():
	default:
		t.Error("the old snapshot does not say that it is superseded")
	}
	if a := after.Endpoints[0]; a.State != before.Endpoints[0].State || a.Incarnation != before.Endpoints[0].Incarnation {
		t.Error("an unchanged endpoint lost its state")
	}
	b := after.Endpoints[1]
	if b.ID != before.Endpoints[1].ID || b.Incarnation == before.Endpoints[1].Incarnation || b.State.InFlight() != 0 {
		t.Errorf("a moved endpoint has id %d, incarnation %d, %d in flight; want the old id, a new incarnation, none", b.ID, b.Incarnation, b.State.InFlight())
	}
	p.Set([]Spec{{Name: "d", Address: "127.0.0.1:5"}})
	p.Set([]Spec{{Name: "d", Address: "127.0.0.1:5"}, {Name: "e", Address: "127.0.0.1:6"}})
	seen := map[uint32]bool{before.Endpoints[0].Incarnation: true, before.Endpoints[1].Incarnation: true}
	for _, e := range append(after.Endpoints[1:], p.Snapshot().Endpoints...) {
		if seen[e.Incarnation] {
			t.Errorf("%s has incarnation %d, which was used before", e.Name, e.Incarnation)
		}
		seen[e.Incarnation] = true
	}
	if e := p.Snapshot().Endpoints[1]; e.ID > 2 {
		t.Errorf("the newest endpoint has id %d; want one of those that became free", e.ID)
	}
}

func TestState_BlockSizesAreBounded(t *testing.T) {
	var s State
	for i := range 2 * maxBlockSizes { // each of them twice
		if n := 1 + i%maxBlockSizes; !s.ObserveBlockSize(n) {
			t.Errorf("block size %d was refused", n)
		}
	}
	if s.ObserveBlockSize(100) {
		t.Error("one block size too many was taken")
	}
	if diff := cmp.Diff([]int{1, 2, 3, 4}, s.BlockSizes()); diff != "" {
		t.Errorf("block sizes (-want +got):\n%s", diff)
	}
}

func TestConfig_Validate(t *testing.T) {
	good := DefaultConfig()
	good.Static.Endpoints = []Spec{{Name: "a", Address: "[::1]:80", Models: []string{"m"}, Events: "tcp://h:1", Replay: "tcp://[::1]:2", Metrics: "http://h/metrics"}}
	if err := good.Validate(); err != nil {
		t.Errorf("a good configuration is refused: %v", err)
	}
	bad := Config{}
	bad.Static.Endpoints = []Spec{
		{Name: "", Address: "engine:80", Models: []string{""}},
		{Name: "b", Address: "127.0.0.1:0", Adapters: []string{"x"}, Events: "ipc:///tmp/x"},
		{Name: "b", Address: "127.0.0.1:080", Replay: "tcp://*:5558", Metrics: "h/metrics"},
		{Name: "c", Address: "127.0.0.1:080", Events: "tcp://host"},
	}
	want := strings.TrimSpace(`
static.endpoints[0].name: empty; give the endpoint a name
static.endpoints[0].address: "engine:80" is not ip:port; use for example 10.0.0.7:8000 (Envoy's override takes no host names)
static.endpoints[0].models[0]: empty; remove it or name a model
static.endpoints[1].address: "127.0.0.1:0" has port 0; use the port the engine listens on
static.endpoints[1].adapters: set without models; name the base model in models too
static.endpoints[1].events: "ipc:///tmp/x" is not a TCP endpoint; use tcp://HOST:PORT
static.endpoints[2].address: "127.0.0.1:080" is not in canonical form; use 127.0.0.1:80
static.endpoints[2].replay: "tcp://*:5558" is what the engine binds; use the address to dial, tcp://HOST:5558
static.endpoints[2].replay: "tcp://*:5558" is set but events is not; set events to the engine's live stream
static.endpoints[2].metrics: "h/metrics" is not an http URL; use for example http://10.0.0.7:8000/metrics
static.endpoints[2].name: "b" is also the name of static.endpoints[1]; names must be unique
static.endpoints[3].address: "127.0.0.1:080" is not in canonical form; use 127.0.0.1:80
static.endpoints[3].events: "tcp://host" lacks a host or a port; use tcp://HOST:PORT
static.endpoints[3].address: "127.0.0.1:080" is also the address of static.endpoints[2]; remove one of them
health.path: "" does not start with a slash; use for example /health
health.interval: 0s is too short; use 10ms or more
health.timeout: 0s is not positive; use for example 500ms`)
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(bad.Validate().Error(), "\n")); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

// poll waits until ok holds.
func poll(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it never came to the awaited state")
		}
	}
}

func counter(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}
