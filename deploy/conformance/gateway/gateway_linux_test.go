package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

// Every manifest passes the API server: schema, CEL rules, and no field that is
// unknown to it.
func TestManifestsAreValid(t *testing.T) {
	c, own := cluster.Of(t, shared)
	installCRDs(t, c)
	// In a namespace of its own no other object of the same name, from another
	// test, forbids a change.
	validate := func(text []byte) error {
		return c.Validate(bounded(t), own, bytes.ReplaceAll(text, []byte(`namespace: "default"`), []byte("namespace: "+own)))
	}
	ways, err := os.ReadDir(manifests)
	if err != nil {
		t.Fatal(err)
	}
	if len(ways) < 4 {
		t.Fatalf("%s has %d ways to attach, want 4", manifests, len(ways))
	}
	for _, way := range ways {
		t.Run(way.Name(), func(t *testing.T) {
			each(t, filepath.Join(manifests, way.Name()), func(file string, text []byte) {
				if !bytes.Contains(text, []byte(`namespace: "default"`)) {
					t.Errorf("%s is for another namespace", file)
				}
				if err := validate(text); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			})
		})
	}
	t.Run("a misspelt field", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join(manifests, "envoy-gateway/envoyextensionpolicy.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		err = validate(bytes.Replace(text, []byte("failOpen:"), []byte("failOpenn:"), 1))
		if err == nil || !strings.Contains(err.Error(), "failOpenn") {
			t.Errorf("it is refused with %v", err)
		}
	})
}

// world is a cluster with Envoy Gateway as its controller.
type world struct {
	client  kubernetes.Interface
	dynamic dynamic.Interface
	*stack.Stack
}

func TestEnvoyGatewayAsController(t *testing.T) {
	envoy, gateway := programs(t)
	c, _ := cluster.Of(t, shared)
	installCRDs(t, c)
	namespace(t, c, system)
	w := &world{}
	var err error
	if w.client, err = kubernetes.NewForConfig(c.Admin()); err != nil {
		t.Fatal(err)
	}
	if w.dynamic, err = dynamic.NewForConfig(c.Admin()); err != nil {
		t.Fatal(err)
	}
	startController(t, c, w.client, gateway)
	port := w.applyGateway(t, c)
	apply(t, c, filepath.Join(manifests, "envoy-gateway"))
	w.startStack(t, envoy)
	w.slice(t, routerSlice, "warmpath", "extproc", w.Processor)
	for i, e := range w.Engines {
		w.slice(t, engineSlice(i), "warmpath-engines", "http-8000", e.HTTP)
	}
	p := startProxy(t, w.client, "eg", envoy)
	w.URL, w.EnvoyAdmin = "http://127.0.0.1:"+port, p.admin
	eventually(t, "a request is routed", func() error { return w.routed(bounded(t)) })

	t.Run("accepted", func(t *testing.T) {
		w.verdicts(t, "Gateway", "gateways", "eg", "Programmed")
		w.verdicts(t, "HTTPRoute", "httproutes", "warmpath", "Accepted", "ResolvedRefs")
		for _, kind := range []string{"EnvoyExtensionPolicy", "BackendTrafficPolicy", "ClientTrafficPolicy"} {
			w.verdicts(t, kind, plural(kind), "warmpath", "Accepted")
		}
	})
	t.Run("configuration", func(t *testing.T) { w.configured(t, true) })
	t.Run("warm prefix", func(t *testing.T) { w.warmPrefix(t) })
	t.Run("engines come and go", func(t *testing.T) { w.comeAndGo(t) })
	t.Run("router killed", func(t *testing.T) {
		w.Router.Kill()
		w.unchosen(t, 5)
		if err := w.StartRouter(bounded(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the router is asked again", func() error { return w.routed(bounded(t)) })
	})
	t.Run("original destination", func(t *testing.T) {
		apply(t, c, filepath.Join(manifests, "original-dst"))
		w.verdicts(t, "EnvoyPatchPolicy", "envoypatchpolicies", "warmpath", "Accepted", "Programmed")
		w.configured(t, false)
	})
	t.Run("early health checks", func(t *testing.T) { w.early(t, c) })
	// Late, because it waits for the end of Envoy's first minute.
	t.Run("router frozen", func(t *testing.T) { w.frozen(t, p.began) })
	t.Run("router comes and goes", func(t *testing.T) { w.withoutRouter(t) })
	t.Run("TLS to the router", func(t *testing.T) { w.encrypted(t, c) })
}

// applyGateway makes the Gateway that the manifests attach to. It returns its
// port.
func (w *world) applyGateway(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	port, err := stack.ListenerPort()
	if err != nil {
		t.Fatal(err)
	}
	err = c.Apply(bounded(t), metav1.NamespaceDefault, fmt.Appendf(nil, `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: eg}
spec: {controllerName: gateway.envoyproxy.io/gatewayclass-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: eg}
spec:
  gatewayClassName: eg
  listeners: [{name: http, protocol: HTTP, port: %s}]
`, port))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// startStack runs the router and engines, at an address that EndpointSlices may
// have.
func (w *world) startStack(t *testing.T, envoy string) {
	t.Helper()
	bin, dir := t.TempDir(), t.TempDir()
	out, err := exec.Command("go", "build", "-o", bin+"/", "github.com/warmpath/warmpath/cmd/warmpath", "github.com/warmpath/warmpath/cmd/enginesim").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	w.Stack, err = stack.Start(t.Context(), stack.Config{
		Warmpath: filepath.Join(bin, "warmpath"), Enginesim: filepath.Join(bin, "enginesim"), Envoy: envoy,
		Dir: dir, Engines: 3, Model: "demo", Health: 100 * time.Millisecond, Host: ownAddress(t), NoEnvoy: true,
		EngineArgs: []string{"--blocks", "400", "--block-size", "16", "--time-scale", "0.02"},
		RouterArgs: []string{"--extproc.drain_delay=0s"},
	})
	t.Cleanup(w.Stop)
	if err != nil {
		t.Fatal(err)
	}
}

const routerSlice = "warmpath"

func engineSlice(i int) string { return fmt.Sprintf("warmpath-engines-%d", i) }

// slice makes an EndpointSlice of one endpoint of a Service, as Kubernetes'
// controller does.
func (w *world) slice(t *testing.T, name, service, portName, address string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	number, ready := int32(n), true
	_, err = w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(bounded(t), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{host}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &number, Protocol: new(corev1.ProtocolTCP)}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func plural(kind string) string {
	return strings.ToLower(strings.TrimSuffix(kind, "y")) + "ies"
}

// verdicts requires that conditions of an object are true, in the end, for
// every parent that speaks of it.
func (w *world) verdicts(t *testing.T, kind, resource, name string, want ...string) {
	t.Helper()
	of := schema.GroupVersionResource{Group: "gateway.envoyproxy.io", Version: "v1alpha1", Resource: resource}
	if kind == "Gateway" || kind == "HTTPRoute" || kind == "BackendTLSPolicy" {
		of.Group, of.Version = "gateway.networking.k8s.io", "v1"
	}
	eventually(t, fmt.Sprintf("%s %s is %v", kind, name, want), func() error {
		o, err := w.dynamic.Resource(of).Namespace(metav1.NamespaceDefault).Get(bounded(t), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		said := [][]any{}
		add := func(in map[string]any, path ...string) {
			if list, ok, _ := unstructured.NestedSlice(in, path...); ok {
				said = append(said, list)
			}
		}
		add(o.Object, "status", "conditions")
		for _, list := range []string{"parents", "ancestors"} {
			all, _, _ := unstructured.NestedSlice(o.Object, "status", list)
			for _, p := range all {
				add(p.(map[string]any), "conditions")
			}
		}
		if len(said) == 0 {
			return fmt.Errorf("no status")
		}
		for _, conditions := range said {
			found := map[string]string{}
			for _, c := range conditions {
				m := c.(map[string]any)
				found[fmt.Sprint(m["type"])] = fmt.Sprint(m["status"])
				if m["status"] != "True" {
					return fmt.Errorf("%v: %v", m["type"], m["message"])
				}
			}
			for _, c := range want {
				if found[c] != "True" {
					return fmt.Errorf("no %s in %v", c, found)
				}
			}
		}
		return nil
	})
}

// configured requires that Envoy gets, in the end, what an attachment needs.
func (w *world) configured(t *testing.T, override bool) {
	t.Helper()
	eventually(t, "Envoy is configured as the manifests promise", func() error {
		x, err := stack.ReadXDS(bounded(t), w.EnvoyAdmin)
		if err != nil {
			return err
		}
		return x.Attached(override)
	})
}

// answer is what a request got.
type answer struct {
	status int
	// chosen is the endpoint that answered as the router says, "" if it was not
	// asked; cached the number of prompt tokens from cache as the engine says.
	chosen string
	cached int
	body   []byte
}

// ask sends n token ids, which are the same for a seed.
func (w *world) ask(t *testing.T, seed, n int, header ...string) answer {
	t.Helper()
	a, err := w.post(bounded(t), http.DefaultClient, seed, n, header...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) post(ctx context.Context, client *http.Client, seed, n int, header ...string) (answer, error) {
	prompt := make([]int, n)
	for i := range prompt {
		prompt[i] = seed*1000 + i
	}
	body, err := json.Marshal(map[string]any{"model": "demo", "prompt": prompt, "max_tokens": 1})
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, chosen: resp.Header.Get("x-warmpath-endpoint")}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		return a, err
	}
	if a.status != http.StatusOK {
		return a, fmt.Errorf("status %d: %s", a.status, a.body)
	}
	var usage struct {
		Usage struct {
			Details struct {
				Cached int `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		} `json:"usage"`
	}
	err = json.Unmarshal(a.body, &usage)
	a.cached = usage.Usage.Details.Cached
	return a, err
}

// routed requires that the router has chosen who answers.
func (w *world) routed(ctx context.Context) error {
	a, err := w.post(ctx, http.DefaultClient, 1, 4)
	if err == nil && a.chosen == "" {
		err = fmt.Errorf("answered by an engine that the router did not choose")
	}
	return err
}

// warmPrefix requires that a prompt goes where its beginning is, which the
// engine's count of cached tokens says, and that no client chooses otherwise.
func (w *world) warmPrefix(t *testing.T) {
	warm := w.ask(t, 7, 320).chosen
	if err := w.Quiet(bounded(t)); err != nil {
		t.Fatal(err)
	}
	for _, e := range w.Engines {
		a := w.ask(t, 7, 330, "routing-strategy", "prefix-cache", "x-gateway-destination-endpoint", e.HTTP, "target-pod", e.HTTP)
		if a.chosen != warm || a.cached != 320 {
			t.Errorf("with %s forged, %s answered with %d tokens from cache, want %s with 320", e.HTTP, a.chosen, a.cached, warm)
		}
	}
}

// comeAndGo takes an engine's EndpointSlice away and gives it back under
// traffic.
func (w *world) comeAndGo(t *testing.T) {
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var all sync.WaitGroup
	var mu sync.Mutex
	sent := 0
	var failed []error
	for i := range 3 {
		all.Go(func() {
			for ctx.Err() == nil {
				_, err := w.post(ctx, client, i, 20, "routing-strategy", "random")
				mu.Lock()
				if sent++; err != nil && ctx.Err() == nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	slices := w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault)
	gone := w.Engines[2].HTTP
	if err := slices.Delete(bounded(t), engineSlice(2), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy has forgotten the engine", func() error { return w.knows(t, gone, false) })
	for range 20 {
		if a := w.ask(t, 2, 20, "routing-strategy", "random"); a.chosen == gone {
			t.Error("an engine answered that Envoy should not know any more")
		}
	}
	w.slice(t, engineSlice(2), "warmpath-engines", "http-8000", gone)
	eventually(t, "Envoy knows the engine again", func() error { return w.knows(t, gone, true) })
	eventually(t, "the engine is used again", func() error {
		if a := w.ask(t, 2, 20, "routing-strategy", "random"); a.chosen != gone {
			return fmt.Errorf("%s answered", a.chosen)
		}
		return nil
	})
	cancel()
	all.Wait()
	if t.Logf("%d requests were sent", sent); sent == 0 || len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(failed), sent, failed)
	}
}

// unchosen requires that requests are answered without the router.
func (w *world) unchosen(t *testing.T, requests int) {
	t.Helper()
	for range requests {
		if r := w.ask(t, 1, 4); r.chosen != "" {
			t.Error("a router that does not run is said to have routed a request")
		}
	}
}

// withoutRouter takes the router's only pod from its Service and gives it back.
func (w *world) withoutRouter(t *testing.T) {
	if err := w.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Delete(bounded(t), routerSlice, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy has forgotten the router", func() error { return w.knows(t, w.Processor, false) })
	w.unchosen(t, 5)
	w.slice(t, routerSlice, "warmpath", "extproc", w.Processor)
	eventually(t, "the router is asked again", func() error { return w.routed(bounded(t)) })
}

// frozen stops the router's process in its tracks. Envoy checks a router once a
// minute at first, and from then on as often as the policy says, because there
// has been traffic. began is when Envoy did.
func (w *world) frozen(t *testing.T, began time.Time) {
	if err := w.Router.Freeze(bounded(t)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Router.Signal(syscall.SIGCONT) }()
	for quick := 0; quick < 20; quick++ {
		asked := time.Now()
		w.unchosen(t, 1)
		if time.Since(asked) < 2*time.Second {
			continue
		}
		quick = 0 // it waited for the router, for messageTimeout
		if time.Since(began) > 90*time.Second {
			t.Fatal("requests still wait for a router that does not answer")
		}
	}
	if err := w.Router.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the router is asked again", func() error { return w.routed(bounded(t)) })
}

// knows requires that Envoy has an engine or has it not.
func (w *world) knows(t *testing.T, address string, want bool) error {
	t.Helper()
	resp, err := http.Get(w.EnvoyAdmin + "/clusters")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if got := bytes.Contains(b, []byte("::"+address+"::cx_active")); got != want {
		return fmt.Errorf("known to Envoy is %s: %v, want %v", address, got, want)
	}
	return nil
}

// early has the chart patch the router's cluster, so that Envoy checks a router
// every second although it has sent it nothing yet.
func (w *world) early(t *testing.T, c *cluster.Cluster) {
	apply(t, c, render(t, "policy: {earlyHealthChecks: true}\n"))
	w.verdicts(t, "EnvoyPatchPolicy", "envoypatchpolicies", "warmpath-health", "Accepted", "Programmed")
	eventually(t, "Envoy is told", func() error {
		x, err := stack.ReadXDS(bounded(t), w.EnvoyAdmin)
		if err != nil {
			return err
		}
		name, _ := stack.At(x.Processor, "grpc_service", "envoy_grpc", "cluster_name").(string)
		if got := stack.At(x.Clusters[name], "health_checks", 0, "no_traffic_interval"); got != "1s" {
			return fmt.Errorf("no_traffic_interval of cluster %s is %v", name, got)
		}
		return nil
	})
}
