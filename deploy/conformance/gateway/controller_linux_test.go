package gateway

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

// The environment of the tests, beside that of package cluster.
const (
	envEnvoy   = "WARMPATH_TEST_ENVOY"
	envGateway = "WARMPATH_TEST_ENVOY_GATEWAY"
)

const (
	// manifests are those under test, below this folder one folder for each way
	// to attach.
	manifests = "../../manifests"
	// system is the namespace of Envoy Gateway.
	system = "envoy-gateway-system"
	// tool is the folder of the module that requires Envoy Gateway.
	tool = "../tools/gateway"
)

var shared *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(cluster.Main(m, &shared)) }

// bounded returns a context for one step of a test.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls ok, which says what is missing, until nothing is.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	ctx := bounded(t)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s: %v", what, err)
		case <-tick.C:
		}
	}
}

// programs returns the paths of Envoy and Envoy Gateway.
func programs(t *testing.T) (envoy, gateway string) {
	t.Helper()
	envoy, gateway = os.Getenv(envEnvoy), os.Getenv(envGateway)
	if shared == nil || envoy == "" || gateway == "" {
		t.Skipf("no API server, Envoy or Envoy Gateway: run make test-deploy, or set %s and %s", envEnvoy, envGateway)
	}
	return envoy, gateway
}

// crds says that those of Gateway API, InferencePool and Envoy Gateway are
// installed.
var crds bool

func installCRDs(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if crds {
		return
	}
	crds = true
	if err := c.InstallCRDs(bounded(t), cluster.CRDs...); err != nil {
		t.Fatal(err)
	}
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/envoyproxy/gateway")
	list.Dir = tool
	dir, err := list.Output()
	if err != nil {
		t.Fatalf("module of Envoy Gateway: %v", err)
	}
	apply(t, c, filepath.Join(strings.TrimSpace(string(dir)), "charts/gateway-helm/charts/crds/crds/generated"))
}

// apply applies every manifest of a folder.
func apply(t *testing.T, c *cluster.Cluster, dir string) {
	t.Helper()
	each(t, dir, func(file string, text []byte) {
		if err := c.Apply(bounded(t), metav1.NamespaceDefault, text); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	})
}

// each calls do with every manifest of a folder.
func each(t *testing.T, dir string, do func(file string, text []byte)) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no manifests: %v", dir, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		do(f, text)
	}
}

// startController runs Envoy Gateway for the cluster until the test ends. It
// reads its certificates from /certs, as in its pod, so it runs with a folder of
// its own as its root.
func startController(t *testing.T, c *cluster.Cluster, client kubernetes.Interface, program string) *stack.Process {
	t.Helper()
	lock, err := stack.LockGateway(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(lock.Unlock)
	admin, err := stack.FreeAddresses(1)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(admin[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"certs", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	copyProgram(t, program, filepath.Join(root, "envoy-gateway"))
	access := c.Admin()
	authority, err := os.ReadFile(access.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	access.CAFile = "/authority.crt"
	if err := os.WriteFile(filepath.Join(root, access.CAFile), authority, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WriteKubeconfig(filepath.Join(root, "kubeconfig"), access, system); err != nil {
		t.Fatal(err)
	}
	// Envoy has the ports of its pod to itself there. Here the ones of Envoy
	// Gateway that can move make room.
	config := fmt.Sprintf(`
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyGateway
gateway: {controllerName: gateway.envoyproxy.io/gatewayclass-controller}
admin: {address: {host: 127.0.0.1, port: %s}}
telemetry: {metrics: {prometheus: {disable: true}}}
provider:
  type: Kubernetes
  kubernetes:
    leaderElection: {disable: true}
    proxyTopologyInjector: {disabled: true}
extensionApis: {enableEnvoyPatchPolicy: true}
`, port)
	if err := os.WriteFile(filepath.Join(root, "gateway.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("/envoy-gateway", args...)
		cmd.Dir = "/"
		cmd.Env = []string{"KUBECONFIG=/kubeconfig", "ENVOY_GATEWAY_NAMESPACE=" + system, "HOME=/", "TMPDIR=/tmp"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		if uid := os.Getuid(); uid != 0 { // only root may choose a root, but may be so in a namespace of its own
			cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		return cmd
	}
	if out, err := command("certgen", "--disable-topology-injector").CombinedOutput(); err != nil {
		t.Fatalf("envoy-gateway certgen (it needs root, or user namespaces): %v\n%s", err, out)
	}
	secret, err := client.CoreV1().Secrets(system).Get(bounded(t), "envoy-gateway", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range secret.Data {
		if err := os.WriteFile(filepath.Join(root, "certs", name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := stack.StartCommand("envoy-gateway", dir, command("server", "--config-path", "/gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("the end of Envoy Gateway's log:\n%s", p.Tail(30))
		}
	})
	return p
}

// copyProgram makes a program appear at another path, without a copy if both
// are on one file system.
func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		t.Fatal(err)
	}
	if os.Link(from, to) == nil {
		return
	}
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// proxy is the Envoy of a Gateway, run by the test in place of a kubelet.
type proxy struct {
	*stack.Process
	// admin is the base URL of its administration.
	admin string
	began time.Time
}

// startProxy waits for the Deployment of a Gateway's Envoy, runs what it says
// until the test ends, and reports its Deployment, pod and Service as running.
func startProxy(t *testing.T, client kubernetes.Interface, gateway, program string) *proxy {
	t.Helper()
	label := metav1.ListOptions{LabelSelector: "gateway.envoyproxy.io/owning-gateway-name=" + gateway}
	var name string
	eventually(t, "Envoy Gateway makes a Deployment for the Gateway", func() error {
		all, err := client.AppsV1().Deployments(system).List(bounded(t), label)
		if err == nil && len(all.Items) != 1 {
			err = fmt.Errorf("%d Deployments", len(all.Items))
		}
		if err == nil {
			name = all.Items[0].Name
		}
		return err
	})
	deployment, err := client.AppsV1().Deployments(system).Get(bounded(t), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: deployment.Spec.Template.ObjectMeta, Spec: deployment.Spec.Template.Spec}
	pod.Name, pod.Spec.NodeName = name+"-0", "node"
	if pod, err = client.CoreV1().Pods(system).Create(bounded(t), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := runPod(t, client, pod, program)
	report(t, client, label, pod, name)
	return p
}

// report says that a pod runs, and its Deployment, and that their Service has an
// address.
func report(t *testing.T, client kubernetes.Interface, label metav1.ListOptions, pod *corev1.Pod, deployment string) {
	t.Helper()
	ctx := bounded(t)
	pod.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ownAddress(t), PodIPs: []corev1.PodIP{{IP: ownAddress(t)}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	if _, err := client.CoreV1().Pods(system).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the status of the Deployment is written", func() error {
		d, err := client.AppsV1().Deployments(system).Get(ctx, deployment, metav1.GetOptions{})
		if err != nil {
			return err
		}
		d.Status.Replicas, d.Status.ReadyReplicas, d.Status.AvailableReplicas = 1, 1, 1
		d.Status.ObservedGeneration = d.Generation
		_, err = client.AppsV1().Deployments(system).UpdateStatus(ctx, d, metav1.UpdateOptions{})
		return err
	})
	eventually(t, "the status of the Service is written", func() error {
		all, err := client.CoreV1().Services(system).List(ctx, label)
		if err != nil || len(all.Items) != 1 {
			return fmt.Errorf("%d Services: %w", len(all.Items), err)
		}
		s := &all.Items[0]
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ownAddress(t)}}
		_, err = client.CoreV1().Services(system).UpdateStatus(ctx, s, metav1.UpdateOptions{})
		return err
	})
}

// runPod runs the container envoy of a pod, with its volumes in a folder.
func runPod(t *testing.T, client kubernetes.Interface, pod *corev1.Pod, program string) *proxy {
	t.Helper()
	dir := t.TempDir()
	var container corev1.Container
	for _, c := range pod.Spec.Containers {
		if c.Name == "envoy" {
			container = c
		}
	}
	// What DNS and the downward API say in a cluster.
	known := []string{
		"envoy-gateway." + system + ".svc.cluster.local.", "127.0.0.1",
		"$(ENVOY_POD_NAME)", pod.Name, "$(ENVOY_POD_NAMESPACE)", pod.Namespace, "$(ENVOY_SERVICE_ZONE)", "",
	}
	for _, m := range container.VolumeMounts {
		known = append(known, m.MountPath+"/", filepath.Join(dir, m.MountPath)+"/")
	}
	local := strings.NewReplacer(known...)
	for _, m := range container.VolumeMounts {
		if err := os.MkdirAll(filepath.Join(dir, m.MountPath), 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range volume(t, client, pod, m.Name) {
			if err := os.WriteFile(filepath.Join(dir, m.MountPath, file), []byte(local.Replace(text)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var args []string
	for _, a := range container.Args {
		args = append(args, local.Replace(a))
	}
	p, err := stack.StartProcess("envoy", dir, program, append(args, "--disable-hot-restart"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			t.Logf("the end of Envoy's log:\n%s", p.Tail(20))
		}
	})
	return &proxy{p, "http://" + adminAddress(t, container.Args), time.Now()}
}

// volume returns the files of a pod's volume that is a Secret or a ConfigMap.
func volume(t *testing.T, client kubernetes.Interface, pod *corev1.Pod, name string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.Name != name:
		case v.Secret != nil:
			s, err := client.CoreV1().Secrets(pod.Namespace).Get(bounded(t), v.Secret.SecretName, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for file, b := range s.Data {
				files[file] = string(b)
			}
		case v.ConfigMap != nil:
			m, err := client.CoreV1().ConfigMaps(pod.Namespace).Get(bounded(t), v.ConfigMap.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for file, text := range m.Data {
				files[file] = text
			}
		}
	}
	return files
}

// adminAddress finds the address of the administration in Envoy's bootstrap.
func adminAddress(t *testing.T, args []string) string {
	t.Helper()
	for i, a := range args {
		if a != "--config-yaml" || i+1 == len(args) {
			continue
		}
		var bootstrap struct {
			Admin struct {
				Address struct {
					Socket struct {
						Address string `json:"address"`
						Port    int    `json:"port_value"`
					} `json:"socket_address"`
				} `json:"address"`
			} `json:"admin"`
		}
		if err := yaml.Unmarshal([]byte(args[i+1]), &bootstrap); err != nil {
			t.Fatal(err)
		}
		s := bootstrap.Admin.Address.Socket
		return net.JoinHostPort(s.Address, fmt.Sprint(s.Port))
	}
	t.Fatalf("Envoy's arguments have no --config-yaml: %q", args)
	return ""
}

// ownAddress returns an address of this machine that EndpointSlices may have:
// not a loopback one.
func ownAddress(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	t.Skip("this machine has no address but the loopback one, which EndpointSlices may not have")
	return ""
}

// namespace makes a namespace unless it exists.
func namespace(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	if err := c.Namespace(bounded(t), name); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}
