package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// node is the node that pods say they run on. There is none: a pod without a
// node would be deleted at once, one with a node waits for its kubelet.
const node = "node"

// Pod is a pod of one container as its kubelet would report it.
type Pod struct {
	Name                string
	Labels, Annotations map[string]string
	// Ports are the container's named ports.
	Ports map[string]int32
	// IP is empty until the pod has one.
	IP string
	// Phase is Pending if it is empty.
	Phase corev1.PodPhase
	Ready bool
	// Restarts counts the restarts of the container.
	Restarts int32
}

// Pods does in a namespace what a scheduler, a controller and kubelets do.
type Pods struct{ client typedcorev1.PodInterface }

// Pods returns the pods of a namespace.
func (c *Cluster) Pods(namespace string) (Pods, error) {
	client, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		return Pods{}, err
	}
	return Pods{client.CoreV1().Pods(namespace)}, nil
}

// Create makes a pod and reports its status.
func (p Pods) Create(ctx context.Context, pod Pod) error {
	container := corev1.Container{Name: "engine", Image: "engine"}
	for name, port := range pod.Ports {
		container.Ports = append(container.Ports, corev1.ContainerPort{Name: name, ContainerPort: port})
	}
	_, err := p.client.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Labels: pod.Labels, Annotations: pod.Annotations},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{container}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return p.Report(ctx, pod)
}

// Report writes a pod's status.
func (p Pods) Report(ctx context.Context, pod Pod) error {
	o, err := p.client.Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	o.Status = pod.status()
	_, err = p.client.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

func (pod Pod) status() corev1.PodStatus {
	ready := corev1.ConditionFalse
	if pod.Ready {
		ready = corev1.ConditionTrue
	}
	container := corev1.ContainerStatus{
		Name: "engine", Image: "engine", Ready: pod.Ready, RestartCount: pod.Restarts,
		ContainerID: fmt.Sprintf("containerd://%s-%d", pod.Name, pod.Restarts),
	}
	if pod.Phase == corev1.PodRunning {
		container.State.Running = &corev1.ContainerStateRunning{}
	}
	st := corev1.PodStatus{
		Phase: pod.Phase, PodIP: pod.IP,
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}, {Type: corev1.ContainersReady, Status: ready}},
		ContainerStatuses: []corev1.ContainerStatus{container},
	}
	if st.Phase == "" {
		st.Phase = corev1.PodPending
	}
	if pod.IP != "" {
		st.PodIPs = []corev1.PodIP{{IP: pod.IP}}
	}
	return st
}

// Label replaces a pod's labels and annotations.
func (p Pods) Label(ctx context.Context, pod Pod) error {
	o, err := p.client.Get(ctx, pod.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	o.Labels, o.Annotations = pod.Labels, pod.Annotations
	_, err = p.client.Update(ctx, o, metav1.UpdateOptions{})
	return err
}

// Terminate begins a pod's graceful end: it has a deletion time from now on,
// and stays until [Pods.Remove].
func (p Pods) Terminate(ctx context.Context, name string) error {
	return p.client.Delete(ctx, name, metav1.DeleteOptions{})
}

// Remove takes a pod away at once.
func (p Pods) Remove(ctx context.Context, name string) error {
	return p.client.Delete(ctx, name, *metav1.NewDeleteOptions(0))
}
