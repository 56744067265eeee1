// Package discovery_test tests that a router which finds its endpoints in a
// real Kubernetes API server always ends up with what the cluster has: the
// same endpoints, subscriptions to the events of those that publish, and an
// index that holds what their engines hold.
package discovery_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

const (
	// fleetSeed is any: the truth is hashed with it as well.
	fleetSeed = 0x5eed
	model     = "m"
	// quietLimit only ends a hanging test.
	quietLimit = 2 * time.Minute
)

var shared *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(cluster.Main(m, &shared)) }

// readOnly is what discovery may do, and nothing else.
func readOnly() []rbacv1.PolicyRule {
	verbs := []string{"get", "list", "watch"}
	return []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: verbs},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: verbs},
		{APIGroups: []string{"inference.networking.k8s.io"}, Resources: []string{"inferencepools"}, Verbs: verbs},
	}
}

// chartRules are what the Helm chart's Roles allow a router that is configured
// like this, read from the manifests that it renders.
func chartRules(t *testing.T, cfg pool.KubernetesConfig) []rbacv1.PolicyRule {
	t.Helper()
	var rules []rbacv1.PolicyRule
	for variant, asked := range map[string]bool{"envoy-gateway": cfg.PodSelector != "", "engine-ports": len(cfg.Services) > 0, "inference-pool": len(cfg.InferencePools) > 0} {
		if !asked {
			continue
		}
		text, err := os.ReadFile(filepath.Join("../../manifests", variant, "role.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var role rbacv1.Role
		if err := yaml.UnmarshalStrict(text, &role); err != nil || len(role.Rules) == 0 {
			t.Fatalf("%s: %v: %v", variant, role, err)
		}
		rules = append(rules, role.Rules...)
	}
	return rules
}

// rig is a router, without its ext_proc server, that finds its endpoints in
// the cluster with an identity that may only read, through a proxy.
type rig struct {
	t         *testing.T
	cluster   *cluster.Cluster
	namespace string
	proxy     *cluster.Proxy
	registry  *prometheus.Registry
	source    *telling
	pool      *pool.Pool
	index     *kvindex.Index
	hasher    kvindex.Hasher
	events    *events.Manager
	router    *routing.Router
}

// newRig runs a router until the test ends, with the permissions that the chart
// would give it. addresses, which may be nil, translates the addresses that the cluster
// has into those that are dialed.
func newRig(t *testing.T, c *cluster.Cluster, namespace string, addresses func(string) string, change func(*pool.KubernetesConfig)) *rig {
	t.Helper()
	asked := pool.DefaultConfig().Kubernetes
	change(&asked)
	return newRigAs(t, c, namespace, chartRules(t, asked), addresses, change)
}

// newRigAs is newRig with an identity that may do what rules say.
func newRigAs(t *testing.T, c *cluster.Cluster, namespace string, rules []rbacv1.PolicyRule, addresses func(string) string, change func(*pool.KubernetesConfig)) *rig {
	t.Helper()
	r := &rig{t: t, cluster: c, namespace: namespace, registry: prometheus.NewRegistry(), hasher: kvindex.NewHasher(fleetSeed)}
	var err error
	if r.proxy, err = cluster.NewProxy(t.Context(), c.Address()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.proxy.Close)
	identity, err := c.ServiceAccount(t.Context(), namespace, "warmpath", rules)
	if err != nil {
		t.Fatal(err)
	}
	cfg := pool.DefaultConfig()
	cfg.Health.Interval, cfg.Health.Timeout = 100*time.Millisecond, 5*time.Second
	cfg.Load.Interval = 0
	cfg.Kubernetes.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	change(&cfg.Kubernetes)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WriteKubeconfig(cfg.Kubernetes.Kubeconfig, r.proxy.Through(identity), namespace); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	kube, err := pool.NewKubernetes(cfg.Kubernetes, log, r.registry)
	if err != nil {
		t.Fatal(err)
	}
	r.source = newTelling(kube)
	transport := &http.Transport{MaxIdleConnsPerHost: 2}
	t.Cleanup(transport.CloseIdleConnections)
	quiet := slog.New(slog.DiscardHandler) // engines come and go
	r.pool = pool.New(cfg, quiet, r.registry, &http.Client{Transport: transport}, rand.New(rand.NewPCG(1, 2)), r.source)
	if r.index, err = kvindex.New(kvindex.Config{}); err != nil {
		t.Fatal(err)
	}
	ec := eventConfig()
	var dial events.Transport = events.ZMQ(ec)
	if addresses != nil {
		dial = translated{dial, addresses}
		transport.DialContext = dialTranslated(addresses)
	}
	if r.events, err = events.New(ec, r.index, r.hasher, dial, quiet, r.registry, rand.New(rand.NewPCG(3, 4))); err != nil {
		t.Fatal(err)
	}
	if r.router, err = routing.New(routing.DefaultConfig(), r.pool, r.index, nil, r.hasher, quiet, r.registry, rand.New(rand.NewPCG(5, 6))); err != nil {
		t.Fatal(err)
	}
	r.run()
	return r
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	var wg sync.WaitGroup
	for _, part := range []func() error{
		func() error { return r.pool.Run(ctx) },
		func() error { return r.events.Run(ctx, r.pool) },
		func() error { return r.router.Run(ctx) },
	} {
		wg.Go(func() {
			if err := part(); err != nil {
				r.t.Errorf("run: %v", err)
			}
		})
	}
	r.t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, e := range r.pool.Snapshot().Endpoints {
			if held := r.held(e); len(held) > 0 {
				r.t.Errorf("after the end the index still holds %d blocks of %s", len(held), e.Name)
			}
		}
	})
}

// eventConfig lets nothing wait longer than a test should.
func eventConfig() events.Config {
	cfg := events.DefaultConfig()
	cfg.BackoffMin, cfg.BackoffMax = 10*time.Millisecond, 200*time.Millisecond
	cfg.Confirm, cfg.Probe, cfg.Quiet = 50*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	cfg.ReplayTimeout = 10 * time.Second
	return cfg
}

// testLog writes to the test's log, which is printed if it fails.
type testLog struct {
	t *testing.T

	mu   sync.Mutex
	done bool // guarded by mu: a test that has ended takes no more
	once sync.Once
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.once.Do(func() {
		l.t.Cleanup(func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.done = true
		})
	})
	if !l.done {
		l.t.Logf("%s", b)
	}
	return len(b), nil
}

// counter returns the sum of a metric's series.
func (r *rig) counter(name string) (sum float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	r.t.Fatalf("there is no metric %s", name)
	return 0
}

// await polls until check finds nothing wrong. What happens in a cluster is
// asynchronous; the limit only ends a hanging test.
func (r *rig) await(what string, check func() string) {
	r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(quietLimit)
	for {
		wrong := check()
		if wrong == "" {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("%s: not so in time:\n%s", what, wrong)
		}
	}
}

// expected is one endpoint that the cluster has.
type expected struct {
	Name, Address string
	Withheld      bool
	// Published: its events are to be followed.
	Published bool
}

// shown is what the pool shows and what is subscribed to, by name.
func (r *rig) shown() []expected {
	subscribed := map[string]bool{}
	for _, s := range r.events.Status() {
		subscribed[s.Endpoint] = true
	}
	var out []expected
	for _, e := range r.pool.Snapshot().Endpoints {
		out = append(out, expected{e.Name, e.Address, !e.Candidate(), subscribed[e.Name]})
		delete(subscribed, e.Name)
	}
	for name := range subscribed {
		out = append(out, expected{Name: name, Published: true}) // of no endpoint
	}
	slices.SortFunc(out, func(a, b expected) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// awaitPool waits until the pool and the subscriptions are those of the
// cluster.
func (r *rig) awaitPool(want []expected) {
	r.t.Helper()
	slices.SortFunc(want, func(a, b expected) int { return strings.Compare(a.Name, b.Name) })
	r.await("the pool is the cluster", func() string { return cmp.Diff(want, r.shown()) })
}

// held returns what the index says that an endpoint holds.
func (r *rig) held(e *pool.Endpoint) map[kvindex.BlockHash]bool {
	out := map[kvindex.BlockHash]bool{}
	for _, p := range e.Publishers {
		for _, h := range r.index.AppendHeld(nil, p.ID) {
			out[h] = true
		}
	}
	return out
}

// awaitIndex waits until the index holds what every engine holds whose events
// are followed. Nothing may be running on the engines.
func (r *rig) awaitIndex(engines map[string]*fakeEngine) {
	r.t.Helper()
	r.await("the index is what the engines hold", func() string {
		status := map[string]events.Status{}
		for _, s := range r.events.Status() {
			status[s.Endpoint] = s
		}
		var wrong []string
		for _, e := range r.pool.Snapshot().Endpoints {
			st, ok := status[e.Name]
			if !ok {
				continue
			}
			if text := r.differs(e, engines[e.Address], st); text != "" {
				wrong = append(wrong, e.Name+": "+text)
			}
		}
		return strings.Join(wrong[:min(5, len(wrong))], "\n")
	})
}

func (r *rig) differs(e *pool.Endpoint, engine *fakeEngine, st events.Status) string {
	if engine == nil {
		return "no engine is at " + e.Address
	}
	p, err := engine.pool(r.t.Context())
	if err != nil {
		return err.Error()
	}
	if p.Running+p.Waiting > 0 {
		return "it is busy"
	}
	if p.NextSeq > 0 && (!st.Sequenced || int64(st.Sequence) != p.NextSeq-1) {
		return fmt.Sprintf("published up to %d, applied %+v", p.NextSeq-1, st)
	}
	truth, err := p.Chains(r.hasher, model)
	if err != nil {
		return err.Error()
	}
	if d := stack.Differ(r.held(e), truth); !d.Equal() || st.Trust != kvindex.TrustExact.String() {
		return fmt.Sprintf("%+v, %+v", d, st)
	}
	return ""
}
