package discovery_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
	"github.com/warmpath/warmpath/routing/pool"
)

// ports returns n ports that were free a moment ago.
func ports(t *testing.T, n int) []string {
	t.Helper()
	addresses, err := stack.FreeAddresses(n)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range addresses {
		_, addresses[i], _ = net.SplitHostPort(a)
	}
	return addresses
}

// engines starts an engine at every port of every host, until the test ends,
// and gives each something to publish. They are found by their addresses.
func startEngines(t *testing.T, hosts, ports []string) map[string]*fakeEngine {
	t.Helper()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	random := rand.New(rand.NewPCG(7, 7))
	all := map[string]*fakeEngine{}
	for _, host := range hosts {
		for _, port := range ports {
			e, err := startEngine(net.JoinHostPort(host, port), &http.Client{Transport: transport})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { e.stop(t) })
			all[e.Addr()] = e
			for range 5 {
				if err := e.complete(t.Context(), prompt(random)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return all
}

func (r *rig) apply(format string, args ...any) {
	r.t.Helper()
	if err := r.cluster.Apply(r.t.Context(), r.namespace, fmt.Appendf(nil, format, args...)); err != nil {
		r.t.Fatal(err)
	}
}

const inferencePool = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama}
spec:
  selector: {matchLabels: {app: %s}}
  targetPorts: [%s]
  endpointPickerRef: {name: warmpath, port: {number: 9002}}
`

// Each target port of each pod that an InferencePool selects is an endpoint.
func TestInferencePool(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	if err := c.InstallCRDs(t.Context(), cluster.CRDs...); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, c, namespace, nil, func(k *pool.KubernetesConfig) { k.InferencePools = []string{"llama"} })
	pods, err := c.Pods(namespace)
	if err != nil {
		t.Fatal(err)
	}
	p := ports(t, 2)
	one, two := fmt.Sprintf("{number: %s}", p[0]), fmt.Sprintf("{number: %s}, {number: %s}", p[0], p[1])
	hosts := []string{"127.2.0.1", "127.2.0.2", "127.2.0.3"}
	engines := startEngines(t, hosts, p)
	for i, host := range hosts {
		app := "vllm"
		if i == 2 {
			app = "sglang"
		}
		err := pods.Create(t.Context(), cluster.Pod{
			Name: fmt.Sprintf("pod-%d", i), IP: host, Phase: corev1.PodRunning, Ready: true,
			Labels: map[string]string{"app": app, labelModel: model},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(pods []int, ports ...string) (want []expected) {
		for _, i := range pods {
			for _, port := range ports {
				want = append(want, expected{
					Name:    fmt.Sprintf("%s/pod-%d:%s", namespace, i, port),
					Address: net.JoinHostPort(hosts[i], port), Published: true,
				})
			}
		}
		return want
	}
	check := func(want []expected) {
		t.Helper()
		r.awaitPool(want)
		r.awaitIndex(engines)
	}
	r.awaitPool(nil) // there is no InferencePool yet
	r.apply(inferencePool, "vllm", two)
	check(at([]int{0, 1}, p...))
	kept := r.pool.Snapshot().ByAddress(net.JoinHostPort(hosts[0], p[0])).Incarnation
	r.apply(inferencePool, "vllm", one)
	check(at([]int{0, 1}, p[0]))
	if now := r.pool.Snapshot().ByAddress(net.JoinHostPort(hosts[0], p[0])).Incarnation; now != kept {
		t.Errorf("the endpoint of a port that stayed has incarnation %d, and had %d", now, kept)
	}
	r.apply(inferencePool, "sglang", two)
	check(at([]int{2}, p...))

	// What changes while nothing is heard is seen afterwards.
	r.proxy.Down()
	r.apply(inferencePool, "vllm", two)
	if err := pods.Remove(t.Context(), "pod-1"); err != nil {
		t.Fatal(err)
	}
	r.expire()
	r.proxy.Up()
	check(at([]int{0}, p...))

	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		t.Fatal(err)
	}
	remove := client.RESTClient().Delete().AbsPath("/apis/inference.networking.k8s.io/v1/namespaces", namespace, "inferencepools", "llama")
	if err := remove.Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	check(nil)
}

const slice = `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, labels: {kubernetes.io/service-name: engines}}
addressType: IPv4
ports: [{name: http, port: %s, protocol: TCP}]
endpoints: [%s]
`

// The EndpointSlices of a Service say which engines there are.
func TestService(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	// Kubernetes takes no loopback addresses here, and no others are dialed.
	dialed := func(address string) string { return strings.Replace(address, "10.3.", "127.3.", 1) }
	r := newRig(t, c, namespace, dialed, func(k *pool.KubernetesConfig) { k.Services = []string{"engines"} })
	port := ports(t, 1)[0]
	started := startEngines(t, []string{"127.3.0.1", "127.3.0.2", "127.3.0.3"}, []string{port})
	engines := map[string]*fakeEngine{}
	for address, e := range started {
		engines[strings.Replace(address, "127.3.", "10.3.", 1)] = e
	}
	endpoint := func(i int, conditions string) string {
		return fmt.Sprintf("{addresses: [10.3.0.%d], conditions: {%s}, targetRef: {kind: Pod, name: pod-%d, uid: u%[1]d}}", i, conditions, i)
	}
	want := func(i int, withheld bool) expected {
		return expected{
			Name: fmt.Sprintf("%s/pod-%d:%s", namespace, i, port), Address: fmt.Sprintf("10.3.0.%d:%s", i, port),
			Withheld: withheld, Published: true,
		}
	}
	check := func(want ...expected) {
		t.Helper()
		r.awaitPool(want)
		r.awaitIndex(engines)
	}
	const ready = "ready: true"
	r.apply(slice, "engines-a", port, endpoint(1, ready)+","+endpoint(2, "ready: false"))
	check(want(1, false), want(2, true))
	r.apply(slice, "engines-b", port, endpoint(3, ready))
	check(want(1, false), want(2, true), want(3, false))
	kept := r.pool.Snapshot().ByAddress("10.3.0.3:" + port).Incarnation
	// An endpoint moves from one slice to the other; for a moment both have it.
	r.apply(slice, "engines-a", port, endpoint(1, ready)+","+endpoint(2, ready)+","+endpoint(3, ready))
	r.apply(slice, "engines-b", port, "")
	check(want(1, false), want(2, false), want(3, false))
	if now := r.pool.Snapshot().ByAddress("10.3.0.3:" + port).Incarnation; now != kept {
		t.Errorf("an endpoint that moved to another slice has incarnation %d, and had %d", now, kept)
	}
	r.apply(slice, "engines-a", port, endpoint(1, "ready: true, serving: true, terminating: true"))
	check(want(1, true))

	r.proxy.Down()
	r.apply(slice, "engines-a", port, endpoint(2, ready))
	r.expire()
	r.proxy.Up()
	check(want(2, false))

	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"engines-a", "engines-b"} {
		if err := client.DiscoveryV1().EndpointSlices(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	check()
}

// Without permission nothing is found, which is counted; given it, everything.
func TestForbidden(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, c, namespace, 1)
	if err := w.appear(t.Context(), w.slots[0], rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Fatal(err)
	}
	r := newRigAs(t, c, namespace, nil, nil, func(k *pool.KubernetesConfig) { k.PodSelector = labelSelected + "=engine" })
	r.await("the refusal is counted", func() string {
		if r.counter("warmpath_pool_kubernetes_errors_total") == 0 {
			return "no error is"
		}
		return ""
	})
	select {
	case <-r.pool.Synced():
		t.Error("the pool is synced although it may not list")
	default:
	}
	role, err := client.RbacV1().Roles(namespace).Get(t.Context(), "warmpath", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	role.Rules = readOnly()
	if _, err := client.RbacV1().Roles(namespace).Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-r.pool.Synced()
	r.awaitPool(w.expected())
}
