package cluster_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

var shared *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(cluster.Main(m, &shared)) }

func clientset(t *testing.T, cfg *rest.Config) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestServiceAccount(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	cfg, err := c.ServiceAccount(t.Context(), namespace, "reader", []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pods := clientset(t, cfg).CoreV1().Pods(namespace)
	if _, err := pods.List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("list: %v", err)
	}
	if err := pods.Delete(t.Context(), "any", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("delete: %v, want it forbidden", err)
	}
	if _, err := clientset(t, cfg).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list in another namespace: %v, want it forbidden", err)
	}
	if _, err := clientset(t, cfg).CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("list of secrets: %v, want it forbidden", err)
	}
}

func TestPods(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	pods, err := c.Pods(namespace)
	if err != nil {
		t.Fatal(err)
	}
	pod := cluster.Pod{Name: "p", Labels: map[string]string{"a": "b"}, IP: "127.0.0.9", Phase: corev1.PodRunning, Ready: true, Restarts: 2}
	if err := pods.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	get := func() *corev1.Pod {
		p, err := clientset(t, c.Admin()).CoreV1().Pods(namespace).Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return p
	}
	if p := get(); p.Status.PodIP != pod.IP || p.Status.Phase != pod.Phase || p.Status.ContainerStatuses[0].RestartCount != 2 || p.DeletionTimestamp != nil {
		t.Errorf("created: %+v", p.Status)
	}
	if err := pods.Terminate(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if p := get(); p.DeletionTimestamp == nil {
		t.Error("a terminated pod has no deletion time")
	}
	if err := pods.Remove(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if p := get(); p.Name != "" {
		t.Error("a removed pod is there")
	}
}

func TestApply(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	if err := c.InstallCRDs(t.Context(), cluster.CRDs...); err != nil {
		t.Fatal(err)
	}
	const pool = `
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool}
spec:
  selector: {matchLabels: {app: engine}}
  targetPorts: [{number: 8000}, {number: 8001}]
  endpointPickerRef: {name: warmpath, port: {number: 9002}}
`
	const route = `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: route}
spec:
  rules: [{backendRefs: [{name: engines, port: 80}]}]
`
	for _, tt := range []struct{ name, manifest, want string }{
		{"pool and route", pool + "---" + route, ""},
		{"nothing", "---\n# a comment\n---\n", ""},
		{"list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n- {apiVersion: v1, kind: Oddity, metadata: {name: b}}", "Oddity"},
		{"unknown field", strings.Replace(pool, "spec:", "spec:\n  sort: of", 1), "spec.sort"},
		{"unknown field of a built-in kind", "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {sort: of, ports: [{port: 80}]}}", "spec.sort"},
		{"value out of range", strings.Replace(pool, "8001", "80010", 1), "targetPorts[1].number"},
		{"required field", strings.Replace(pool, "targetPorts: [{number: 8000}, {number: 8001}]", "appProtocol: http", 1), "targetPorts"},
	} {
		err := c.Validate(t.Context(), namespace, []byte(tt.manifest))
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if err := c.Apply(t.Context(), namespace, []byte(`{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: "1"}}`)); err != nil {
		t.Fatal(err)
	}
	maps, err := clientset(t, c.Admin()).CoreV1().ConfigMaps(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(maps.Items) != 1 || maps.Items[0].Data["a"] != "1" {
		t.Errorf("applied and validated objects: %v, want only the applied one", maps.Items)
	}
}

// What a client may know is too old after Expire, and was not before.
func TestExpire(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	list, err := clientset(t, c.Admin()).CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if e := firstEvent(t, c, namespace, list.ResourceVersion, true); e.Type != watch.Added {
		t.Fatalf("before: %+v", e)
	}
	if err := c.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	e := firstEvent(t, c, namespace, list.ResourceVersion, false)
	if err := apierrors.FromObject(e.Object); e.Type != watch.Error || !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("after: %+v: %v, want 410 Gone", e, err)
	}
	if _, err := clientset(t, c.Admin()).CoreV1().Pods(namespace).Get(t.Context(), "p", metav1.GetOptions{}); err != nil {
		t.Errorf("what was there is lost: %v", err)
	}
}

// firstEvent watches pods from a resource version. create makes a pod
// meanwhile.
func firstEvent(t *testing.T, c *cluster.Cluster, namespace, from string, create bool) watch.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := clientset(t, c.Admin()).CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{ResourceVersion: from})
	if status := apierrors.APIStatus(nil); err != nil {
		if s, ok := err.(apierrors.APIStatus); ok {
			status = s
			st := status.Status()
			return watch.Event{Type: watch.Error, Object: &st}
		}
		t.Fatal(err)
	}
	defer w.Stop()
	if create {
		pods, err := c.Pods(namespace)
		if err != nil {
			t.Fatal(err)
		}
		if err := pods.Create(ctx, cluster.Pod{Name: "p"}); err != nil {
			t.Fatal(err)
		}
	}
	e, ok := <-w.ResultChan()
	if !ok {
		t.Fatal("the watch ended")
	}
	return e
}

func TestProxy(t *testing.T) {
	held := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begin")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/hold" {
			select {
			case <-held:
			case <-r.Context().Done():
			}
		}
	}))
	defer s.Close()
	defer close(held)
	p, err := cluster.NewProxy(t.Context(), s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	url := strings.Replace(p.Through(&rest.Config{}).Host, "https:", "http:", 1)
	get := func(path string) (*http.Response, error) { return client.Get(url + path) }

	resp, err := get("/hold")
	if err != nil {
		t.Fatal(err)
	}
	if n := p.Cut(); n != 1 {
		t.Errorf("%d connections cut, want 1", n)
	}
	if body, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a cut connection ended well after %q", body)
	}
	resp.Body.Close()

	p.Down()
	if resp, err := get("/"); err == nil {
		resp.Body.Close()
		t.Error("answered while down")
	}
	p.Up()
	const delay = 50 * time.Millisecond
	p.Delay(delay)
	began := time.Now()
	if resp, err = get("/"); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if took := time.Since(began); took < delay {
		t.Errorf("answered after %s in spite of a delay of %s", took, delay)
	}
	if n := p.Accepted(); n != 2 {
		t.Errorf("%d connections accepted, want 2: those that were passed on", n)
	}
	p.Close()
	if conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
		conn.Close()
		t.Error("a closed proxy listens")
	}
}
