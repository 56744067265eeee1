package pool

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// kubeObject is an object of the cluster, nil if it is gone.
type kubeObject struct {
	key    string // namespace/name
	object any
}

// kubeStore is where client-go's reflector puts what it sees. It remembers the
// names alone, so that a new list tells what has gone in between.
type kubeStore struct {
	known map[string]struct{}
	tell  func([]kubeObject)
	// listed is called after every list.
	listed func()
	lists  prometheus.Counter
	// ended waits for the reflector.
	ended sync.WaitGroup
}

var _ cache.ReflectorStore = (*kubeStore)(nil)

func newKubeStore() *kubeStore { return &kubeStore{known: map[string]struct{}{}} }

// Add implements [cache.ReflectorStore].
func (s *kubeStore) Add(obj any) error {
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	s.known[key] = struct{}{}
	s.tell([]kubeObject{{key, obj}})
	return nil
}

// Update implements [cache.ReflectorStore].
func (s *kubeStore) Update(obj any) error { return s.Add(obj) }

// Delete implements [cache.ReflectorStore].
func (s *kubeStore) Delete(obj any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	delete(s.known, key)
	s.tell([]kubeObject{{key: key}})
	return nil
}

// Replace implements [cache.ReflectorStore].
func (s *kubeStore) Replace(list []any, _ string) error {
	s.lists.Inc()
	now := make(map[string]struct{}, len(list))
	objects := make([]kubeObject, 0, len(list))
	for _, obj := range list {
		key, err := cache.MetaNamespaceKeyFunc(obj)
		if err != nil {
			return err
		}
		now[key] = struct{}{}
		objects = append(objects, kubeObject{key, obj})
	}
	for key := range s.known {
		if _, ok := now[key]; !ok {
			objects = append(objects, kubeObject{key: key})
		}
	}
	s.known = now
	s.tell(objects)
	s.listed()
	return nil
}

// Resync implements [cache.ReflectorStore]. Nothing here has to be seen twice.
func (s *kubeStore) Resync() error { return nil }

// drop forgets every object, as if all were gone.
func (s *kubeStore) drop() {
	objects := make([]kubeObject, 0, len(s.known))
	for key := range s.known {
		objects = append(objects, kubeObject{key: key})
	}
	clear(s.known)
	s.tell(objects)
}

// lister lists and watches one kind of object in one namespace.
type lister struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func fromREST(c rest.Interface, resource, namespace string) lister {
	if namespace == allNamespaces {
		namespace = metav1.NamespaceAll
	}
	lw := cache.NewFilteredListWatchFromClient(c, resource, namespace, func(*metav1.ListOptions) {})
	return lister{lw.ListWithContext, lw.WatchWithContext}
}

func fromDynamic(in dynamic.ResourceInterface) lister {
	return lister{
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return in.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return in.Watch(ctx, o) },
	}
}

// observed returns t's lister, whose failures are counted, and logged when they
// begin and end.
func (w *kubeWatch) observed(t watched) *cache.ListWatch {
	failing := map[string]bool{} // by verb; the reflector's own goroutines, one after the other
	var mu sync.Mutex
	report := func(ctx context.Context, verb string, err error) {
		mu.Lock()
		defer mu.Unlock()
		log := w.log.With("resource", string(t.resource), "namespace", t.namespace, "selector", t.selector+t.field)
		switch {
		case err != nil && ctx.Err() != nil: // the watch is over
		case err != nil:
			w.metrics.errors[t.resource].Inc()
			w.unlistedBecause(t, err)
			if !failing[verb] {
				log.Warn("the cluster cannot be asked; what is known of it stays, and it is tried again", "verb", verb, "err", err, "hint", accessHint(t, verb, err))
			}
			failing[verb] = true
		case failing[verb]:
			log.Info("the cluster can be asked again", "verb", verb)
			failing[verb] = false
		}
	}
	options := func(o *metav1.ListOptions) { o.LabelSelector, o.FieldSelector = t.selector, t.field }
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			options(&o)
			list, err := t.from.list(ctx, o)
			report(ctx, "list", err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			options(&o)
			in, err := t.from.watch(ctx, o)
			if o.SendInitialEvents == nil || err == nil || !listedInstead(err) {
				report(ctx, "watch", err)
			}
			return in, err
		},
	}
}

// Unlisted implements [Source].
func (k *Kubernetes) Unlisted() []string {
	w := k.watch.Load()
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Values(w.unlisted))
}

// unlistedBecause says why a watch has not listed anything, if it has not.
func (w *kubeWatch) unlistedBecause(t watched, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.unlisted[t.store]; ok {
		w.unlisted[t.store] = t.String() + ": " + err.Error()
	}
}

// String names it for people.
func (t watched) String() string {
	where := "in namespace " + t.namespace
	if t.namespace == allNamespaces {
		where = "in all namespaces"
	}
	return fmt.Sprintf("%s (%s) %s", t.resource, t.selector+t.field, where)
}

// listedInstead tells whether client-go's reflector lists after an attempt to
// list by watching has failed with err, which is then no fault by itself: servers
// before 1.32 cannot do that. After other errors it tries the same again.
func listedInstead(err error) bool {
	return !apierrors.IsForbidden(err) && !utilnet.IsConnectionRefused(err) && !apierrors.IsTooManyRequests(err)
}

// accessHint says what would mend an error, where that is known.
func accessHint(t watched, verb string, err error) string {
	switch {
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return fmt.Sprintf("let the service account get, list and watch %s in namespace %s, or change pool.kubernetes.namespaces", t.resource, t.namespace)
	case apierrors.IsNotFound(err) && t.resource == resourcePools:
		return "install the CRD of InferencePool v1 (inference.networking.k8s.io), or clear pool.kubernetes.inference_pools"
	}
	return ""
}

func kubeBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: watchPauseFirst, Cap: watchPauseMost, Steps: 12, Factor: 2, Jitter: 0.5}
}

// kubeResource is a kind of object, a metric label.
type kubeResource string

const (
	resourcePods   kubeResource = "pods"
	resourceSlices kubeResource = "endpointslices"
	resourcePools  kubeResource = "inferencepools"
)

type kubeMetrics struct {
	synced prometheus.Gauge
	lists  map[kubeResource]prometheus.Counter
	errors map[kubeResource]prometheus.Counter
	faults prometheus.Counter
}

func newKubeMetrics(reg prometheus.Registerer) *kubeMetrics {
	f := promauto.With(reg)
	m := &kubeMetrics{
		synced: f.NewGauge(prometheus.GaugeOpts{
			Name: "warmpath_pool_kubernetes_synced",
			Help: "1 once everything that is looked at in the cluster has been listed, else 0.",
		}),
		lists: map[kubeResource]prometheus.Counter{}, errors: map[kubeResource]prometheus.Counter{},
		faults: f.NewCounter(prometheus.CounterOpts{
			Name: "warmpath_pool_kubernetes_faults_total",
			Help: "Objects of the cluster that said something that is not understood, such as a label with a port that is none.",
		}),
	}
	lists := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_pool_kubernetes_lists_total",
		Help: "Complete lists taken from the cluster: the first of each namespace, and those after a watch that could not be resumed.",
	}, []string{"resource"})
	errs := f.NewCounterVec(prometheus.CounterOpts{
		Name: "warmpath_pool_kubernetes_errors_total",
		Help: "Requests to list or to watch that the cluster did not answer, or refused.",
	}, []string{"resource"})
	for _, r := range []kubeResource{resourcePods, resourceSlices, resourcePools} {
		m.lists[r], m.errors[r] = lists.WithLabelValues(string(r)), errs.WithLabelValues(string(r))
	}
	return m
}
