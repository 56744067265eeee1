package pool

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// offline answers no probe: what is tested here is what the cluster says.
type offline struct{}

func (offline) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("offline") }

// discovering runs a pool that finds its endpoints in a.
func discovering(t *testing.T, a *apiServer, change func(*KubernetesConfig)) *Pool {
	t.Helper()
	return discoveringWith(t, a, slog.New(slog.DiscardHandler), change)
}

func discoveringWith(t *testing.T, a *apiServer, log *slog.Logger, change func(*KubernetesConfig)) *Pool {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Load.Interval = 0
	cfg.Kubernetes.Kubeconfig = a.kubeconfig()
	change(&cfg.Kubernetes)
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	k, err := NewKubernetes(cfg.Kubernetes, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	p := New(cfg, log, reg, &http.Client{Transport: offline{}}, rand.New(rand.NewPCG(1, 1)), k)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return p
}

// view is what a snapshot shows of its endpoints, one a line, sorted.
func view(s *Snapshot) string {
	var lines []string
	for _, e := range s.Endpoints {
		line := e.Name + " " + e.Address
		if e.Withheld != "" {
			line += " (" + e.Withheld + ")"
		}
		if e.Candidate() == (e.Withheld != "" || e.Health == HealthFailed) {
			line += " is a candidate"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// sees waits until the pool shows those endpoints.
func sees(t *testing.T, p *Pool, want ...string) *Snapshot {
	t.Helper()
	slices.Sort(want)
	text := strings.Join(want, "\n")
	defer func() {
		if t.Failed() {
			t.Logf("the pool shows\n%s\nwant\n%s", view(p.Snapshot()), text)
		}
	}()
	return await(t, p, func(s *Snapshot) bool { return view(s) == text })
}

func TestKubernetes_Pods(t *testing.T) {
	for _, noInitial := range []bool{false, true} {
		a := newAPIServer(t)
		a.noInitial = noInitial
		a.put(pod("a", "10.0.0.1"))
		a.put(pod("other", "10.0.0.9", func(p *corev1.Pod) { p.Labels["app"] = "web" }))
		p := discovering(t, a, func(c *KubernetesConfig) { c.PodSelector = "app=vllm" })
		<-p.Synced()
		sees(t, p, "ns/a:8000 10.0.0.1:8000")
		a.put(pod("b", "10.0.0.2", func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }))
		sees(t, p, "ns/a:8000 10.0.0.1:8000", "ns/b:8000 10.0.0.2:8000 (its pod is not ready)")
		a.put(pod("b", "10.0.0.2"))
		a.put(pod("a", "10.0.0.1", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }))
		sees(t, p, "ns/a:8000 10.0.0.1:8000 (its pod is terminating)", "ns/b:8000 10.0.0.2:8000")
		a.remove(pod("a", "10.0.0.1"))
		a.put(pod("b", "10.0.0.3"))
		sees(t, p, "ns/b:8000 10.0.0.3:8000")
		a.put(pod("b", "10.0.0.3", func(p *corev1.Pod) { p.Labels["app"] = "web" }))
		sees(t, p)
	}
}

func TestKubernetes_SlicesOfAService(t *testing.T) {
	a := newAPIServer(t)
	port, yes, no := int32(8080), true, false
	s := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{Kind: "EndpointSlice", APIVersion: "discovery.k8s.io/v1"},
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "engines-x", Labels: map[string]string{discoveryv1.LabelServiceName: "engines"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "a", UID: "1"}},
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
			{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no, Terminating: &yes}},
		},
	}
	a.put(s)
	p := discovering(t, a, func(c *KubernetesConfig) { c.Services = []string{"engines"} })
	sees(t, p, "ns/a:8080 10.0.0.1:8080", "ns/engines/10.0.0.2:8080 10.0.0.2:8080 (its EndpointSlice says that it is not ready)",
		"ns/engines/10.0.0.3:8080 10.0.0.3:8080 (its EndpointSlice says that it is terminating)")
	a.remove(s)
	sees(t, p)
}

func TestKubernetes_InferencePool(t *testing.T) {
	a := newAPIServer(t)
	a.put(pod("a", "10.0.0.1"))
	a.put(pod("b", "10.0.0.2", func(p *corev1.Pod) { p.Labels["app"] = "sglang" }))
	a.put(inferencePoolObject("llama", map[string]any{"app": "vllm"}, 8000, 8001))
	a.put(inferencePoolObject("other", map[string]any{"app": "sglang"}, 1))
	p := discovering(t, a, func(c *KubernetesConfig) { c.InferencePools = []string{"llama"} })
	<-p.Synced()
	before := sees(t, p, "ns/a:8000 10.0.0.1:8000", "ns/a:8001 10.0.0.1:8001")
	a.put(inferencePoolObject("llama", map[string]any{"app": "vllm"}, 8000))
	after := sees(t, p, "ns/a:8000 10.0.0.1:8000")
	if after.Endpoints[0].Incarnation != before.ByAddress("10.0.0.1:8000").Incarnation {
		t.Error("the endpoint of a port that stayed lost its state when another port went")
	}
	a.put(inferencePoolObject("llama", map[string]any{"app": "sglang"}, 8000))
	sees(t, p, "ns/b:8000 10.0.0.2:8000")
	a.remove(inferencePoolObject("llama", nil))
	sees(t, p)
}

// Watches that are cut, that cannot be resumed and that fail lose nothing.
func TestKubernetes_WatchesThatFail(t *testing.T) {
	a := newAPIServer(t)
	a.put(pod("a", "10.0.0.1"))
	a.put(pod("b", "10.0.0.2"))
	p := discovering(t, a, func(c *KubernetesConfig) { c.PodSelector = "app=vllm" })
	sees(t, p, "ns/a:8000 10.0.0.1:8000", "ns/b:8000 10.0.0.2:8000")
	for i, gone := range []bool{false, true} {
		a.set(func() { a.down = true })
		a.cutWatches(gone)
		was := p.Snapshot()
		a.remove(pod("b", ""))
		a.put(pod("c", "10.0.0.3"))
		if p.Snapshot() != was {
			t.Error("an API server that is away changed the pool")
		}
		a.set(func() { a.down = false })
		sees(t, p, "ns/a:8000 10.0.0.1:8000", "ns/c:8000 10.0.0.3:8000")
		if i == 0 {
			a.remove(pod("c", ""))
			a.put(pod("b", "10.0.0.2"))
			sees(t, p, "ns/a:8000 10.0.0.1:8000", "ns/b:8000 10.0.0.2:8000")
		}
	}
}

// A service account that may not list is told so in words; once it may, all
// goes on. Nothing is ever asked for but lists and watches of what is
// configured, in the namespaces that are.
func TestKubernetes_Forbidden(t *testing.T) {
	a := newAPIServer(t)
	a.forbidden = true
	a.put(pod("a", "10.0.0.1"))
	a.put(inferencePoolObject("llama", map[string]any{"app": "vllm"}, 8000))
	var text lockedBuffer
	p := discoveringWith(t, a, slog.New(slog.NewTextHandler(&text, nil)), func(c *KubernetesConfig) {
		c.PodSelector, c.Services, c.InferencePools, c.Namespaces = "app=vllm", []string{"other/s"}, []string{"llama"}, []string{"ns", "more"}
	})
	poll(t, func() bool {
		return strings.Contains(text.String(), "let the service account get, list and watch pods in namespace ns")
	})
	if closedNow(p.Synced()) {
		t.Error("synced without permission")
	}
	a.set(func() { a.forbidden = false })
	sees(t, p, "ns/a:8000 10.0.0.1:8000")
	<-p.Synced()
	a.mu.Lock()
	defer a.mu.Unlock()
	allowed := map[string]bool{}
	for _, path := range []string{
		"/api/v1/namespaces/ns/pods", "/api/v1/namespaces/more/pods", "/apis/discovery.k8s.io/v1/namespaces/other/endpointslices",
		"/apis/inference.networking.k8s.io/v1/namespaces/ns/inferencepools", "/apis/inference.networking.k8s.io/v1/namespaces/more/inferencepools",
	} {
		allowed["GET list "+path], allowed["GET watch "+path] = true, true
	}
	for _, r := range a.requests {
		if !allowed[r] {
			t.Errorf("the API server was asked to %s", r)
		}
	}
}

// lockedBuffer takes what many goroutines log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
