package sidecar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

var shared *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(cluster.Main(m, &shared)) }

// relay is the container's name.
const relay = "warmpath-relay"

// world is a namespace of engines, and the chart's release in it.
type world struct {
	*cluster.Cluster
	client    kubernetes.Interface
	namespace string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	c, namespace := cluster.Of(t, shared)
	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		t.Fatal(err)
	}
	return &world{c, client, namespace}
}

// bounded returns a context for one step of a test. The first one builds Helm.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// template returns what users' Helm makes of a template of the chart with the
// values of its example.
func (w *world) template(t *testing.T, name string, set ...string) []byte {
	t.Helper()
	version, err := w.client.Discovery().ServerVersion()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-C", "../../render", "tool", "helm", "template", "warmpath", "../chart", "-f", "../chart/examples/relay.yaml",
		"--namespace", w.namespace, "--kube-version", version.GitVersion, "-s", "templates/" + name,
	}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	text, err := exec.CommandContext(bounded(t), "go", args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		t.Fatalf("helm template: %v\n%s", err, exit.Stderr)
	}
	return text
}

// patch applies the ConfigMap of relays and returns the patch in it, in JSON.
func (w *world) patch(t *testing.T, set ...string) []byte {
	t.Helper()
	w.apply(t, w.template(t, "relay-configmap.yaml", set...))
	m, err := w.client.CoreV1().ConfigMaps(w.namespace).Get(bounded(t), "warmpath-relay", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch, err := yaml.YAMLToJSONStrict([]byte(m.Data["patch.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	return patch
}

func (w *world) apply(t *testing.T, text []byte) {
	t.Helper()
	if err := w.Apply(bounded(t), w.namespace, text); err != nil {
		t.Fatal(err)
	}
}

// engines applies an example of engines and returns what became of it.
func (w *world) engines(t *testing.T, example string) *appsv1.Deployment {
	t.Helper()
	text, err := os.ReadFile("../../examples/" + example)
	if err != nil {
		t.Fatal(err)
	}
	w.apply(t, text)
	objects, err := cluster.Parse(text)
	if err != nil || len(objects) != 1 {
		t.Fatalf("%s: %v, %d objects", example, err, len(objects))
	}
	d, err := w.client.AppsV1().Deployments(w.namespace).Get(bounded(t), objects[0].GetName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// patched is what kubectl patch makes of engines.
func (w *world) patched(t *testing.T, d *appsv1.Deployment, patch []byte) *appsv1.Deployment {
	t.Helper()
	d, err := w.client.AppsV1().Deployments(w.namespace).Patch(bounded(t), d.Name, apitypes.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// anyOrder compares volumes without their order, which means nothing.
var anyOrder = cmpopts.SortSlices(func(a, b corev1.Volume) bool { return a.Name < b.Name })

// relayOf returns the relay among a pod's init containers, nil if there is none.
func relayOf(pod corev1.PodSpec) *corev1.Container {
	i := slices.IndexFunc(pod.InitContainers, func(c corev1.Container) bool { return c.Name == relay })
	if i < 0 {
		return nil
	}
	return &pod.InitContainers[i]
}

// The patch adds a sidecar to a Deployment and changes nothing that was there;
// the second time it changes nothing at all. Every volume of the relay is one of
// the pod, which the API server checks.
func TestPatch(t *testing.T) {
	w := newWorld(t)
	patch := w.patch(t)
	for _, example := range []string{"vllm.yaml", "sglang.yaml"} {
		before := w.engines(t, example)
		after := w.patched(t, before, patch)
		c := relayOf(after.Spec.Template.Spec)
		if c == nil || c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Fatalf("%s: no sidecar: %+v", example, after.Spec.Template.Spec.InitContainers)
		}
		if got := after.Spec.Template.Annotations["warmpath.dev/relay"]; got != fmt.Sprint(c.Ports[0].ContainerPort) {
			t.Errorf("%s: its pods say that the relay is at %q, and it is at %d", example, got, c.Ports[0].ContainerPort)
		}
		left := after.Spec.DeepCopy()
		left.Template.Spec.InitContainers = nil
		left.Template.Spec.Volumes = slices.DeleteFunc(left.Template.Spec.Volumes, func(v corev1.Volume) bool {
			return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		})
		maps.DeleteFunc(left.Template.Annotations, func(k, _ string) bool { return k == "warmpath.dev/relay" || k == "checksum/warmpath-relay" })
		if diff := cmp.Diff(before.Spec, *left); diff != "" {
			t.Errorf("%s: the engine is another: -before +after:\n%s", example, diff)
		}
		if again := w.patched(t, after, patch); again.Generation != after.Generation {
			t.Errorf("%s: the second time it changes the Deployment: %s", example, cmp.Diff(after.Spec, again.Spec))
		}
	}
}

// A patch for a field that does not exist would be refused: Strict means it.
func TestPatch_UnknownField(t *testing.T) {
	w := newWorld(t)
	d := w.engines(t, "vllm.yaml")
	_, err := w.client.AppsV1().Deployments(w.namespace).Patch(bounded(t), d.Name, apitypes.StrategicMergePatchType,
		[]byte(`{"spec": {"template": {"spec": {"initContainer": []}}}}`), metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict})
	if err == nil {
		t.Error("accepted")
	}
}

// The example with a relay is the one without, patched.
func TestExample(t *testing.T) {
	w := newWorld(t)
	want := w.patched(t, w.engines(t, "vllm.yaml"), w.patch(t)).Spec
	other := newWorld(t)
	got := other.engines(t, "vllm-relay.yaml").Spec
	// It goes with whatever the configuration is.
	delete(want.Template.Annotations, "checksum/warmpath-relay")
	if diff := cmp.Diff(want, got, anyOrder); diff != "" {
		t.Errorf("-vllm.yaml, patched +vllm-relay.yaml:\n%s", diff)
	}
}

// With relay.inject the API server makes of a pod of engines what the patch
// makes of their Deployment, and leaves others alone.
func TestInject(t *testing.T) {
	w := newWorld(t)
	const secret = "image.pullSecrets[0]=registry"
	patch := w.patch(t, secret)
	plain := w.engines(t, "vllm.yaml").Spec.Template
	want := w.patched(t, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "vllm"}}, patch).Spec.Template
	policy := w.template(t, "relay-injection.yaml", secret, "relay.inject=true")
	w.apply(t, policy)
	t.Cleanup(func() { w.remove(t, policy) })

	// create returns what a pod would be in a namespace.
	create := func(namespace string, from corev1.PodTemplateSpec) *corev1.Pod {
		t.Helper()
		pod := &corev1.Pod{ObjectMeta: *from.ObjectMeta.DeepCopy(), Spec: *from.Spec.DeepCopy()}
		pod.Name = "engine"
		pod, err := w.client.CoreV1().Pods(namespace).Create(bounded(t), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	// The API server follows policies with a delay.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for relayOf(create(w.namespace, plain).Spec) == nil {
		select {
		case <-ctx.Done():
			t.Fatal("no pod gets a relay")
		case <-tick.C:
		}
	}
	got, patched := create(w.namespace, plain), create(w.namespace, want)
	if diff := cmp.Diff(patched.Spec, got.Spec, anyOrder); diff != "" {
		t.Errorf("-pod of the patched Deployment +injected:\n%s", diff)
	}
	if diff := cmp.Diff(patched.Annotations, got.Annotations); diff != "" {
		t.Errorf("-pod of the patched Deployment +injected:\n%s", diff)
	}

	without := func(what, namespace string, change func(*corev1.PodTemplateSpec)) {
		t.Helper()
		from := *plain.DeepCopy()
		change(&from)
		if pod := create(namespace, from); relayOf(pod.Spec) != nil || len(pod.Spec.Volumes) != len(from.Spec.Volumes) {
			t.Errorf("%s gets a relay", what)
		}
	}
	without("a pod that wants none", w.namespace, func(p *corev1.PodTemplateSpec) { p.Annotations["warmpath.dev/relay"] = "none" })
	without("a pod of something else", w.namespace, func(p *corev1.PodTemplateSpec) { p.Labels["app"] = "database" })
	without("a pod of another namespace", newWorld(t).namespace, func(*corev1.PodTemplateSpec) {})

	// A pod without any of the lists, and one with an init container of its own.
	bare := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: plain.Labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "engine", Image: "engine:1"}}}}
	slow := *bare.DeepCopy()
	slow.Spec.InitContainers = []corev1.Container{{Name: "download", Image: "models:1"}}
	for _, from := range []corev1.PodTemplateSpec{bare, slow} {
		pod := create(w.namespace, from)
		if c := relayOf(pod.Spec); c == nil || pod.Spec.InitContainers[0].Name != relay || len(pod.Spec.Volumes) != len(c.VolumeMounts) || len(pod.Spec.ImagePullSecrets) != 1 || pod.Annotations["warmpath.dev/relay"] == "" {
			t.Errorf("%+v\nbecomes %+v, %v", from, pod.Spec, pod.Annotations)
		}
		if want := len(from.Spec.InitContainers) + 1; len(pod.Spec.InitContainers) != want {
			t.Errorf("%d init containers, want %d", len(pod.Spec.InitContainers), want)
		}
	}
}

// remove deletes what manifests made.
func (w *world) remove(t *testing.T, text []byte) {
	t.Helper()
	objects, err := cluster.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if err := w.delete(context.WithoutCancel(t.Context()), o); err != nil {
			t.Error(err)
		}
	}
}

func (w *world) delete(ctx context.Context, o *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	api := w.client.AdmissionregistrationV1()
	if o.GetKind() == "MutatingAdmissionPolicy" {
		return api.MutatingAdmissionPolicies().Delete(ctx, o.GetName(), metav1.DeleteOptions{})
	}
	return api.MutatingAdmissionPolicyBindings().Delete(ctx, o.GetName(), metav1.DeleteOptions{})
}
