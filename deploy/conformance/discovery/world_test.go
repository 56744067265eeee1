package discovery_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

// The labels that pods have or lack.
const (
	labelSelected = "app"
	labelModel    = "model.aibrix.ai/name"
	labelPort     = "model.aibrix.ai/port"
	labelEvents   = "model.aibrix.ai/kv-events-enabled"
	labelNeutral  = "version"
	drain         = "warmpath.dev/drain"
)

// world is the cluster as the test has made it: pods, and engines behind
// them.
type world struct {
	t         *testing.T
	pods      cluster.Pods
	namespace string
	client    *http.Client
	nextIP    func() string

	// mu guards what follows. Engines stop and start, and pods change, without
	// it being held, but each pod belongs to one goroutine at a time.
	mu      sync.Mutex
	slots   []*slot
	engines map[string]*fakeEngine // by address
}

// slot is a pod that may be there or not.
type slot struct {
	cluster.Pod
	there, terminating bool
	engine             *fakeEngine
	// process counts the processes behind the pod, changes what else may end
	// what the router knows of the endpoint.
	process, changes int
}

func newWorld(t *testing.T, c *cluster.Cluster, namespace string, pods int) *world {
	t.Helper()
	p, err := c.Pods(namespace)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 2}
	w := &world{
		t: t, pods: p, namespace: namespace, client: &http.Client{Transport: transport},
		nextIP: addresses(), engines: map[string]*fakeEngine{},
	}
	for i := range pods {
		w.slots = append(w.slots, &slot{Pod: cluster.Pod{Name: fmt.Sprintf("engine-%04d", i)}})
	}
	t.Cleanup(func() {
		for _, s := range w.slots {
			w.stop(s)
		}
		transport.CloseIdleConnections()
	})
	return w
}

// addresses returns a function that returns loopback addresses, each once.
func addresses() func() string {
	var mu sync.Mutex
	n := 0
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		n++
		return fmt.Sprintf("127.1.%d.%d", n/250, n%250+1)
	}
}

// start puts an engine behind a slot: at the address of the one before, which
// has ended, or at a new one.
func (w *world) start(s *slot, address string) error {
	e, err := startEngine(address, w.client)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.engines[e.Addr()] = e
	s.engine = e
	s.process++
	s.IP = e.ip()
	return nil
}

func (w *world) stop(s *slot) {
	w.mu.Lock()
	e := s.engine
	s.engine = nil
	if e != nil {
		delete(w.engines, e.Addr())
	}
	w.mu.Unlock()
	if e != nil {
		e.stop(w.t)
	}
}

// running returns the engines that run.
func (w *world) running() []*fakeEngine {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*fakeEngine
	for _, s := range w.slots {
		if s.engine != nil {
			out = append(out, s.engine)
		}
	}
	return out
}

// act does one thing to a slot, what the slot's state and random say.
func (w *world) act(ctx context.Context, s *slot, random *rand.Rand) error {
	if !s.there {
		return w.appear(ctx, s, random)
	}
	if s.terminating {
		return w.vanish(ctx, s)
	}
	switch random.IntN(12) {
	case 0:
		if err := w.vanish(ctx, s); err != nil {
			return err
		}
		return w.appear(ctx, s, random) // the same name, another pod
	case 1:
		return w.vanish(ctx, s)
	case 2:
		s.terminating = true
		return w.pods.Terminate(ctx, s.Name)
	case 3: // moves: another address, without a new pod
		port := s.engine.port()
		w.stop(s)
		if err := w.start(s, fmt.Sprintf("%s:%d", w.nextIP(), port)); err != nil {
			return err
		}
		return w.pods.Report(ctx, s.Pod)
	case 4: // restarts at its address, empty
		return w.restart(ctx, s)
	case 5, 6:
		s.Ready = !s.Ready
		return w.pods.Report(ctx, s.Pod)
	case 7:
		s.changes++
		return w.toggle(ctx, s, labelSelected, "engine", "other")
	case 8:
		s.changes++
		return w.toggle(ctx, s, labelEvents, "true", "false")
	case 9:
		return w.toggle(ctx, s, drain, "false", "true")
	case 10:
		s.changes++
		if s.Phase == corev1.PodRunning {
			s.Phase = corev1.PodPending
		} else {
			s.Phase = corev1.PodRunning
		}
		return w.pods.Report(ctx, s.Pod)
	}
	s.Labels[labelNeutral] = fmt.Sprint(random.IntN(1000))
	return w.pods.Label(ctx, s.Pod)
}

func (w *world) toggle(ctx context.Context, s *slot, label, a, b string) error {
	if s.Labels[label] == a {
		s.Labels[label] = b
	} else {
		s.Labels[label] = a
	}
	return w.pods.Label(ctx, s.Pod)
}

// appear creates a pod: one of eight tells that its engine publishes nothing,
// and one of eight is not ready.
func (w *world) appear(ctx context.Context, s *slot, random *rand.Rand) error {
	return w.create(ctx, s, random.IntN(8) > 0, random.IntN(8) > 0)
}

// create creates a pod and starts its engine.
func (w *world) create(ctx context.Context, s *slot, publishes, ready bool) error {
	if err := w.start(s, w.nextIP()+":0"); err != nil {
		return err
	}
	ip := s.IP
	s.Pod = cluster.Pod{Name: s.Name, Labels: map[string]string{
		labelSelected: "engine", labelModel: model, labelPort: fmt.Sprint(s.engine.port()), labelEvents: fmt.Sprint(publishes),
	}}
	s.there, s.terminating = true, false
	if err := w.pods.Create(ctx, s.Pod); err != nil {
		return err
	}
	s.IP, s.Phase, s.Ready = ip, corev1.PodRunning, ready
	return w.pods.Report(ctx, s.Pod)
}

func (w *world) restart(ctx context.Context, s *slot) error {
	address := s.engine.Addr()
	w.stop(s)
	if err := w.start(s, address); err != nil {
		return err
	}
	s.Restarts++
	return w.pods.Report(ctx, s.Pod)
}

// vanish takes a pod away, then its engine.
func (w *world) vanish(ctx context.Context, s *slot) error {
	if err := w.pods.Remove(ctx, s.Name); err != nil {
		return err
	}
	s.there, s.terminating = false, false
	w.stop(s)
	return nil
}

// expected returns what discovery must have found.
func (w *world) expected() []expected {
	var out []expected
	for _, s := range w.slots {
		if !s.there || s.Phase != corev1.PodRunning || s.Labels[labelSelected] != "engine" {
			continue
		}
		out = append(out, expected{
			Name: w.name(s), Address: s.engine.Addr(),
			Withheld:  !s.Ready || s.terminating || s.Labels[drain] == "true",
			Published: s.Labels[labelEvents] != "false",
		})
	}
	return out
}

// name is the name of a slot's endpoint.
func (w *world) name(s *slot) string {
	return fmt.Sprintf("%s/%s:%d", w.namespace, s.Name, s.engine.port())
}

// storm does n things to the pods, several at a time, each pod in order.
func (w *world) storm(random *rand.Rand, n int) {
	seed := random.Uint64()
	w.share(func(mine []*slot, worker uint64) error {
		random := rand.New(rand.NewPCG(seed, worker))
		for range n / workers {
			s := mine[random.IntN(len(mine))]
			if err := w.act(w.t.Context(), s, random); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
		}
		return nil
	})
}

// workers is how many pods change at a time.
const workers = 8

// share gives every worker its part of the slots.
func (w *world) share(do func(mine []*slot, worker uint64) error) {
	w.t.Helper()
	var wg sync.WaitGroup
	for i := range workers {
		var mine []*slot
		for j := i; j < len(w.slots); j += workers {
			mine = append(mine, w.slots[j])
		}
		wg.Go(func() {
			if err := do(mine, uint64(i)); err != nil {
				w.t.Error(err)
			}
		})
	}
	wg.Wait()
}
