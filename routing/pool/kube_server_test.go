package pool

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// apiServer speaks the list and watch protocol of a Kubernetes API server
// (Kubernetes API concepts, "Efficient detection of changes"), so that its
// faults can be made at will.
type apiServer struct {
	t   *testing.T
	srv *httptest.Server

	mu      sync.Mutex
	version int
	// oldest is the version from which a watch can begin; an earlier one is
	// answered with 410 Gone.
	oldest int
	// changed is closed and replaced at every change.
	changed chan struct{}
	objects map[string]metav1.Object // by path and name
	log     []apiEvent
	// cut ends the watches that run, with 410 as the last event if gone.
	cut chan struct{}
	// gone: watches that are cut end with 410 Gone instead of just so.
	gone bool
	// down and forbidden refuse every request; noInitial those that list by
	// watching, as servers before 1.32 do.
	down, forbidden, noInitial bool
	// unknown is a kind that the server does not know, empty for none.
	unknown  string
	requests []string
	watches  int
}

type apiEvent struct {
	version int
	typ     string
	path    string
	object  metav1.Object
}

func newAPIServer(t *testing.T) *apiServer {
	a := &apiServer{t: t, version: 1, changed: make(chan struct{}), cut: make(chan struct{}), objects: map[string]metav1.Object{}}
	a.srv = httptest.NewServer(a)
	t.Cleanup(func() {
		a.srv.CloseClientConnections()
		a.srv.Close()
	})
	return a
}

// kubeconfig writes one that leads to the server, with namespace ns.
func (a *apiServer) kubeconfig() string {
	path := filepath.Join(a.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: {token: secret}}]
contexts: [{name: test, context: {cluster: c, user: u, namespace: ns}}]
`, a.srv.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func pathOf(o metav1.Object) string {
	switch o.(type) {
	case *corev1.Pod:
		return "/api/v1/namespaces/" + o.GetNamespace() + "/pods"
	case *discoveryv1.EndpointSlice:
		return "/apis/discovery.k8s.io/v1/namespaces/" + o.GetNamespace() + "/endpointslices"
	}
	return "/apis/inference.networking.k8s.io/v1/namespaces/" + o.GetNamespace() + "/inferencepools"
}

// put adds or changes an object.
func (a *apiServer) put(o metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := pathOf(o) + "/" + o.GetName()
	typ := "ADDED"
	if _, ok := a.objects[key]; ok {
		typ = "MODIFIED"
	}
	a.version++
	o.SetResourceVersion(strconv.Itoa(a.version))
	a.objects[key] = o
	a.event(apiEvent{a.version, typ, pathOf(o), o})
}

func (a *apiServer) event(e apiEvent) {
	a.log = append(a.log, e)
	close(a.changed)
	a.changed = make(chan struct{})
}

// remove deletes an object.
func (a *apiServer) remove(o metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.objects, pathOf(o)+"/"+o.GetName())
	a.version++
	o.SetResourceVersion(strconv.Itoa(a.version))
	a.event(apiEvent{a.version, "DELETED", pathOf(o), o})
}

// set changes how the server behaves.
func (a *apiServer) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// cutWatches ends every watch. With gone, their last event is 410 Gone, and
// none can be resumed.
func (a *apiServer) cutWatches(gone bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = gone
	if gone {
		a.version++
		a.oldest = a.version
	}
	close(a.cut)
	a.cut = make(chan struct{})
}

func status(code int32, reason metav1.StatusReason, message string) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: code, Reason: reason, Message: message,
	}
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	a.mu.Lock()
	verb := "list"
	if q.Get("watch") != "" {
		verb = "watch"
	}
	a.requests = append(a.requests, r.Method+" "+verb+" "+r.URL.Path)
	down, forbidden := a.down, a.forbidden
	unknown := a.unknown != "" && strings.HasSuffix(r.URL.Path, "/"+a.unknown)
	noInitial := a.noInitial && q.Get("sendInitialEvents") != ""
	a.mu.Unlock()
	selector, err := labels.Parse(q.Get("labelSelector"))
	if err != nil {
		a.t.Errorf("label selector: %v", err)
	}
	field, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		a.t.Errorf("field selector: %v", err)
	}
	picks := func(o metav1.Object) bool {
		return selector.Matches(labels.Set(o.GetLabels())) && field.Matches(fields.Set{"metadata.name": o.GetName()})
	}
	switch {
	case down:
		answer(w, 503, status(503, metav1.StatusReasonServiceUnavailable, "down"))
	case forbidden:
		answer(w, 403, status(403, metav1.StatusReasonForbidden, "forbidden"))
	case unknown:
		answer(w, 404, status(404, metav1.StatusReasonNotFound, "no such kind"))
	case noInitial:
		answer(w, 422, status(422, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden"))
	case verb == "list":
		a.list(w, r, picks)
	default:
		a.watch(r.Context(), w, r, picks)
	}
}

func (a *apiServer) list(w http.ResponseWriter, r *http.Request, picks func(metav1.Object) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items := []any{}
	for key, o := range a.objects {
		if strings.HasPrefix(key, r.URL.Path+"/") && picks(o) {
			items = append(items, o)
		}
	}
	kind, version := kindOf(r.URL.Path)
	answer(w, 200, map[string]any{
		"kind": kind + "List", "apiVersion": version, "metadata": map[string]any{"resourceVersion": strconv.Itoa(a.version)}, "items": items,
	})
}

func kindOf(path string) (kind, version string) {
	switch {
	case strings.HasSuffix(path, "/pods"):
		return "Pod", "v1"
	case strings.HasSuffix(path, "/endpointslices"):
		return "EndpointSlice", "discovery.k8s.io/v1"
	}
	return "InferencePool", "inference.networking.k8s.io/v1"
}

func (a *apiServer) watch(ctx context.Context, w http.ResponseWriter, r *http.Request, picks func(metav1.Object) bool) {
	q := r.URL.Query()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	a.mu.Lock()
	a.watches++
	cut, at := a.cut, a.version
	if q.Get("resourceVersion") != "" && from != 0 && from < a.oldest {
		a.mu.Unlock()
		answer(w, 410, status(410, metav1.StatusReasonExpired, "too old resource version"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	kind, version := kindOf(r.URL.Path)
	bookmark := func(at int, last bool) {
		meta := map[string]any{"resourceVersion": strconv.Itoa(at)}
		if last {
			meta["annotations"] = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		}
		_ = enc.Encode(map[string]any{"type": "BOOKMARK", "object": map[string]any{"kind": kind, "apiVersion": version, "metadata": meta}})
	}
	if q.Get("sendInitialEvents") == "true" {
		for key, o := range a.objects {
			if strings.HasPrefix(key, r.URL.Path+"/") && picks(o) {
				_ = enc.Encode(map[string]any{"type": "ADDED", "object": o})
			}
		}
		bookmark(at, true)
		from = at
	}
	a.mu.Unlock()
	sent := map[string]bool{}
	for {
		a.mu.Lock()
		for _, e := range a.log {
			if e.version <= from || e.path != r.URL.Path {
				continue
			}
			// An object that the selector no longer picks is gone for this watch.
			typ := e.typ
			if !picks(e.object) {
				typ = "DELETED"
			}
			sent[e.object.GetName()] = true
			_ = enc.Encode(map[string]any{"type": typ, "object": e.object})
		}
		from = max(from, a.version)
		bookmark(from, false)
		changed := a.changed
		a.mu.Unlock()
		w.(http.Flusher).Flush()
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-cut:
			a.mu.Lock()
			gone := a.gone
			a.mu.Unlock()
			if gone {
				_ = enc.Encode(map[string]any{"type": "ERROR", "object": status(410, metav1.StatusReasonExpired, "gone")})
			}
			return
		}
	}
}

// pod returns a pod that runs and is ready.
func pod(name, ip string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid-" + "1", Labels: map[string]string{"app": "vllm"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "engine", Ports: []corev1.ContainerPort{{ContainerPort: 8000}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: ip,
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "engine"}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func inferencePoolObject(name string, match map[string]any, ports ...int64) *unstructured.Unstructured {
	var list []any
	for _, p := range ports {
		list = append(list, map[string]any{"number": p})
	}
	u := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"selector": map[string]any{"matchLabels": match}, "targetPorts": list}}}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: inferenceGroup, Version: "v1", Kind: "InferencePool"})
	u.SetNamespace("ns")
	u.SetName(name)
	return u
}
