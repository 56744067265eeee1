package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Kubernetes is the [Source] of a cluster's engines. It keeps no copy of the
// objects it watches: each becomes its listings as it arrives.
//
// It reads and never writes: get, list and watch of pods, of EndpointSlices
// and of InferencePools, each only where the configuration asks for it, and
// namespace by namespace unless that is *. [Kubernetes.Access] lists what it
// needs.
type Kubernetes struct {
	cfg        KubernetesConfig
	log        *slog.Logger
	metrics    *kubeMetrics
	core       rest.Interface // pods
	discovery  rest.Interface // EndpointSlices
	dynamic    dynamic.Interface
	namespaces []string
	// server is the API server's URL.
	server string
	// watch is the running source, nil before Run.
	watch atomic.Pointer[kubeWatch]
}

// NewKubernetes returns the source that cfg, which is valid, describes. It
// reads the kubeconfig or the service account's files, and connects to
// nothing.
func NewKubernetes(cfg KubernetesConfig, log *slog.Logger, reg prometheus.Registerer) (*Kubernetes, error) {
	to, namespace, err := clusterOf(cfg)
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{cfg: cfg, log: log.With("component", "kubernetes"), metrics: newKubeMetrics(reg), namespaces: cfg.Namespaces, server: to.Host}
	if len(k.namespaces) == 0 {
		k.namespaces = []string{namespace}
	}
	to.UserAgent = "warmpath"
	to.QPS, to.Burst = 50, 100 // a request or two for each thing that is watched, after a restart of the API server
	to.WarningHandler = rest.NoWarnings{}
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	if err := errors.Join(corev1.AddToScheme(scheme), discoveryv1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	client := func(gv schema.GroupVersion, path string) (rest.Interface, error) {
		c := rest.CopyConfig(to)
		c.GroupVersion, c.APIPath = &gv, path
		c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
		return rest.RESTClientFor(c)
	}
	if k.core, err = client(corev1.SchemeGroupVersion, "/api"); err != nil {
		return nil, err
	}
	if k.discovery, err = client(discoveryv1.SchemeGroupVersion, "/apis"); err != nil {
		return nil, err
	}
	if k.dynamic, err = dynamic.NewForConfig(to); err != nil {
		return nil, err
	}
	return k, nil
}

// namespaceFile is where a pod finds its own namespace (Kubernetes
// documentation, "Accessing the Kubernetes API from a Pod").
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// clusterOf returns how to reach the cluster, and the namespace to use where
// none is configured.
func clusterOf(cfg KubernetesConfig) (*rest.Config, string, error) {
	if cfg.Kubeconfig == "" {
		to, err := rest.InClusterConfig()
		if err != nil {
			return nil, "", fmt.Errorf("pool.kubernetes.kubeconfig: empty, and this is no pod of a cluster (%w); name a kubeconfig file", err)
		}
		b, err := os.ReadFile(namespaceFile)
		if err != nil {
			return nil, "", fmt.Errorf("pool.kubernetes.namespaces: empty, and the pod's own namespace is not known: %w", err)
		}
		return to, strings.TrimSpace(string(b)), nil
	}
	load := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: cfg.Kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: cfg.Context})
	to, err := load.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("pool.kubernetes.kubeconfig: %s: %w", cfg.Kubeconfig, err)
	}
	namespace, _, err := load.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("pool.kubernetes.kubeconfig: %s: %w", cfg.Kubeconfig, err)
	}
	return to, namespace, nil
}

// Access returns the permissions that the source needs.
func (k *Kubernetes) Access() []Access { return k.cfg.access(k.namespaces) }

// Server returns the API server's URL.
func (k *Kubernetes) Server() string { return k.server }

// Name implements [Source].
func (k *Kubernetes) Name() string { return "kubernetes" }

// Run implements [Source]. What cannot be listed or watched is tried again,
// with pauses that grow, and what was known of it stays.
func (k *Kubernetes) Run(ctx context.Context, tell func([]Change), synced func()) error {
	// client-go logs every attempt; what matters of that is logged here, once.
	ctx = klog.NewContext(ctx, klog.Logger{})
	w := &kubeWatch{Kubernetes: k, ctx: ctx, wake: make(chan struct{}, 1), pending: 1, faults: map[string]string{}, unlisted: map[*kubeStore]string{}}
	k.watch.Store(w)
	for _, ns := range k.namespaces {
		if k.cfg.PodSelector != "" {
			w.pods(ctx, ns, "", inferencePool{selector: k.cfg.PodSelector}, newKubeStore(), rankPod)
		}
	}
	for _, text := range k.cfg.Services {
		for _, r := range parseRef(text).in(k.namespaces) {
			w.slices(r)
		}
	}
	for _, text := range k.cfg.InferencePools {
		for _, r := range parseRef(text).in(k.namespaces) {
			w.inferencePools(r)
		}
	}
	w.listed(nil) // all that is known from the start is on its way
	w.deliver(tell, func() {
		k.log.Info("the cluster's endpoints are listed", "server", k.server)
		k.metrics.synced.Set(1)
		synced()
	})
	w.running.Wait()
	k.metrics.synced.Set(0)
	return nil
}

// kubeWatch is a running source.
type kubeWatch struct {
	*Kubernetes
	ctx     context.Context // ends every watch
	running sync.WaitGroup
	wake    chan struct{}

	mu sync.Mutex
	// queue are changes to be told, pending the watches that have not listed
	// anything yet. faults are what was last logged about an object.
	queue   []Change
	pending int
	faults  map[string]string
	// unlisted says what the watches are of that have not listed anything, and
	// why.
	unlisted map[*kubeStore]string
}

// push queues changes.
func (w *kubeWatch) push(changes []Change) {
	w.mu.Lock()
	w.queue = append(w.queue, changes...)
	w.mu.Unlock()
	w.signal()
}

func (w *kubeWatch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// listed counts a watch that has listed what there is, nil being that of the
// configuration.
func (w *kubeWatch) listed(store *kubeStore) {
	w.mu.Lock()
	w.pending--
	delete(w.unlisted, store)
	w.mu.Unlock()
	w.signal()
}

// deliver tells what is queued until the source ends. What comes while the
// pool is busy with one batch is told as one batch too.
func (w *kubeWatch) deliver(tell func([]Change), synced func()) {
	for done := false; ; {
		select {
		case <-w.ctx.Done():
			return
		case <-w.wake:
		}
		w.mu.Lock()
		changes, all := w.queue, w.pending == 0
		w.queue = nil
		w.mu.Unlock()
		if len(changes) > 0 {
			tell(changes)
		}
		if all && !done {
			done = true
			synced()
		}
	}
}

// fault logs what is wrong with an object, once as long as it stays the same.
func (w *kubeWatch) fault(kind, key string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	w.mu.Lock()
	was := w.faults[kind+key]
	if text == "" {
		delete(w.faults, kind+key)
	} else {
		w.faults[kind+key] = text
	}
	w.mu.Unlock()
	if text != "" && text != was {
		w.metrics.faults.Inc()
		w.log.Warn("what an object of the cluster says is not understood", "kind", kind, "object", key, "err", text)
	}
}

// pods watches the pods of a namespace that a selector selects, at the ports
// that are given or that they name. prefix keeps their keys apart from those of
// other watches; store outlives the watch.
func (w *kubeWatch) pods(ctx context.Context, namespace, prefix string, of inferencePool, store *kubeStore, rank int) {
	store.tell = func(objects []kubeObject) { w.push(w.podChanges(objects, prefix, of.ports, rank)) }
	w.start(ctx, watched{
		resource: resourcePods, namespace: namespace, selector: of.selector, kind: &corev1.Pod{}, store: store,
		from: fromREST(w.core, "pods", namespace),
	})
}

// podChanges says what pods mean for the pool.
func (w *kubeWatch) podChanges(objects []kubeObject, prefix string, ports []int, rank int) []Change {
	changes := make([]Change, 0, len(objects))
	for _, o := range objects {
		c := Change{Key: fmt.Sprintf("%d %s%s", rank, prefix, o.key)}
		var err error
		if pod, ok := o.object.(*corev1.Pod); ok {
			c.Listings, err = w.cfg.podListings(pod, ports, rank)
		}
		w.fault("pod", o.key, err)
		changes = append(changes, c)
	}
	return changes
}

// slices watches the EndpointSlices of a Service.
func (w *kubeWatch) slices(of ref) {
	store := newKubeStore()
	store.tell = func(objects []kubeObject) {
		changes := make([]Change, 0, len(objects))
		for _, o := range objects {
			c := Change{Key: fmt.Sprintf("%d %s %s", rankSlice, of.name, o.key)}
			var err error
			if s, ok := o.object.(*discoveryv1.EndpointSlice); ok {
				c.Listings, err = w.cfg.sliceListings(s, of)
			}
			w.fault("endpointslice", o.key, err)
			changes = append(changes, c)
		}
		w.push(changes)
	}
	w.start(w.ctx, watched{
		resource: resourceSlices, namespace: of.namespace, selector: labels.Set{discoveryv1.LabelServiceName: of.name}.String(),
		kind: &discoveryv1.EndpointSlice{}, store: store, from: fromREST(w.discovery, "endpointslices", of.namespace),
	})
}

// inferencePools watches an InferencePool, in all namespaces if it has none,
// and the pods that it selects.
func (w *kubeWatch) inferencePools(of ref) {
	type following struct {
		pool   inferencePool
		store  *kubeStore
		cancel context.CancelFunc
	}
	// Only the watch's own goroutine calls tell.
	all := map[string]*following{}
	store := newKubeStore()
	store.tell = func(objects []kubeObject) {
		for _, o := range objects {
			f := all[o.key]
			var pool inferencePool
			var err error
			u, ok := o.object.(*unstructured.Unstructured)
			if ok {
				pool, err = readInferencePool(u)
			}
			w.fault("inferencepool", o.key, err)
			switch {
			case ok && err == nil && f != nil && f.pool.equal(pool):
				continue
			case f == nil && (!ok || err != nil):
				continue
			case f == nil:
				f = &following{store: newKubeStore()}
				all[o.key] = f
			default:
				f.cancel()
				f.store.ended.Wait()
			}
			if !ok || err != nil {
				f.store.drop()
				delete(all, o.key)
				continue
			}
			// The pods stay as they are until those of the new selector are listed.
			var ctx context.Context
			ctx, f.cancel = context.WithCancel(w.ctx)
			f.pool = pool
			namespace, _, _ := strings.Cut(o.key, "/")
			w.pods(ctx, namespace, "pool "+o.key+" ", pool, f.store, rankPoolPod)
		}
	}
	resource := w.dynamic.Resource(schema.GroupVersionResource{Group: inferenceGroup, Version: "v1", Resource: "inferencepools"})
	var in dynamic.ResourceInterface = resource
	if of.namespace != allNamespaces {
		in = resource.Namespace(of.namespace)
	}
	w.start(w.ctx, watched{
		resource: resourcePools, namespace: of.namespace, field: fields.OneTermEqualSelector("metadata.name", of.name).String(),
		kind: &unstructured.Unstructured{}, store: store, from: fromDynamic(in),
	})
}

func (p inferencePool) equal(q inferencePool) bool {
	if p.selector != q.selector || len(p.ports) != len(q.ports) {
		return false
	}
	for i := range p.ports {
		if p.ports[i] != q.ports[i] {
			return false
		}
	}
	return true
}

// watched is one kind of object in one namespace.
type watched struct {
	resource        kubeResource
	namespace       string
	selector, field string
	kind            runtime.Object
	store           *kubeStore
	from            lister
}

// start follows what t says until ctx ends.
func (w *kubeWatch) start(ctx context.Context, t watched) {
	w.mu.Lock()
	w.pending++
	w.unlisted[t.store] = t.String()
	w.mu.Unlock()
	t.store.listed = sync.OnceFunc(func() { w.listed(t.store) })
	t.store.lists = w.metrics.lists[t.resource]
	r := cache.NewReflectorWithOptions(w.observed(t), t.kind, t.store, cache.ReflectorOptions{
		Name: string(t.resource), Logger: &klog.Logger{}, Backoff: kubeBackoff(),
	})
	t.store.ended.Add(1)
	w.running.Go(func() {
		defer t.store.ended.Done()
		// A watch that ends before it has listed anything is waited for no more.
		defer t.store.listed()
		r.RunWithContext(ctx)
	})
}

// The pauses between attempts.
const (
	watchPauseFirst = 200 * time.Millisecond
	watchPauseMost  = 10 * time.Second
)
