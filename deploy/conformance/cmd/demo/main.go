// Command demo is the demo of benchmarks with a Kubernetes API server in it:
// warmpath finds the engines by their pods, with an identity that may only
// read pods, and follows a pod that goes and comes back.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/warmpath/warmpath/benchmarks/demo"
	"github.com/warmpath/warmpath/benchmarks/stack"
	"github.com/warmpath/warmpath/deploy/conformance/cluster"
)

const (
	namespace = "models"
	selector  = "model.aibrix.ai/name"
	portLabel = "model.aibrix.ai/port"
	// followed is how long warmpath may take to see a change.
	followed = 20 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out *os.File) error {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	var o demo.Options
	var d discovery
	o.Flags(fs)
	fs.StringVar(&d.cfg.APIServer, "kube-apiserver", "kube-apiserver", "the kube-apiserver `program`")
	fs.StringVar(&d.cfg.Etcd, "etcd", "etcd", "the etcd `program`")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	d.out, d.keep = out, o.Keep
	o.Discover, o.Finale = d.discover, d.finale
	defer d.stop()
	return demo.Show(ctx, o, out)
}

// discovery is the cluster in which warmpath finds the engines.
type discovery struct {
	cfg     cluster.Config
	out     io.Writer
	keep    bool
	cluster *cluster.Cluster
	pods    cluster.Pods
	engines []cluster.Pod
}

func (d *discovery) stop() {
	if d.cluster != nil {
		d.cluster.Stop()
	}
}

// discover runs the API server, makes a pod for each engine, and returns the
// pool's configuration.
func (d *discovery) discover(ctx context.Context, dir string, engines []*stack.Engine) (string, error) {
	began := time.Now()
	d.cfg.Dir = dir
	var err error
	if d.cluster, err = cluster.Start(ctx, d.cfg); err != nil {
		return "", err
	}
	fmt.Fprintf(d.out, "A Kubernetes API server is ready at %s after %.1f s\n", d.cluster.Address(), time.Since(began).Seconds())
	if err := d.cluster.Namespace(ctx, namespace); err != nil {
		return "", err
	}
	if d.pods, err = d.cluster.Pods(namespace); err != nil {
		return "", err
	}
	for _, e := range engines {
		pod, err := podOf(e)
		if err != nil {
			return "", err
		}
		if err := d.pods.Create(ctx, pod); err != nil {
			return "", err
		}
		d.engines = append(d.engines, pod)
	}
	identity, err := d.cluster.ServiceAccount(ctx, namespace, "warmpath", []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}},
	})
	if err != nil {
		return "", err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := cluster.WriteKubeconfig(kubeconfig, identity, namespace); err != nil {
		return "", err
	}
	if d.keep {
		if err := cluster.WriteKubeconfig(filepath.Join(dir, "admin.kubeconfig"), d.cluster.Admin(), namespace); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("kubernetes: {kubeconfig: %q, pod_selector: %q}", kubeconfig, selector), nil
}

// podOf returns the pod of an engine, which all are at one address here.
func podOf(e *stack.Engine) (cluster.Pod, error) {
	host, port, err := net.SplitHostPort(e.HTTP)
	if err != nil {
		return cluster.Pod{}, err
	}
	return cluster.Pod{
		Name: e.Name, IP: host, Phase: corev1.PodRunning, Ready: true,
		Labels: map[string]string{selector: e.Model, portLabel: port, "model.aibrix.ai/kv-events-enabled": "true"},
	}, nil
}

// finale takes a pod away and gives it back, and shows that warmpath follows.
func (d *discovery) finale(ctx context.Context, s *stack.Stack, out io.Writer) error {
	pod := d.engines[len(d.engines)-1]
	fmt.Fprintf(out, "\nThe endpoints were found in the API server. One goes and comes back:\n")
	for _, step := range []struct {
		what  string
		do    func() error
		there bool
	}{
		{"deleted", func() error { return d.pods.Remove(ctx, pod.Name) }, false},
		{"created", func() error { return d.pods.Create(ctx, pod) }, true},
	} {
		began := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		if err := await(ctx, s.Admin, pod, step.there); err != nil {
			return fmt.Errorf("pod %s %s: %w", pod.Name, step.what, err)
		}
		state := "gone from the pool"
		if step.there {
			state = "ready"
		}
		fmt.Fprintf(out, "  pod %s %s: %s after %d ms\n", pod.Name, step.what, state, time.Since(began).Milliseconds())
	}
	if d.keep {
		fmt.Fprintf(out, "\nLook at the pods, or change them:\n  kubectl --kubeconfig %s get pods\n", filepath.Join(filepath.Dir(s.Config()), "admin.kubeconfig"))
	}
	return nil
}

// await waits until warmpath has a pod's endpoint ready, or has none.
func await(ctx context.Context, admin string, pod cluster.Pod, there bool) error {
	ctx, cancel := context.WithTimeout(ctx, followed)
	defer cancel()
	name := namespace + "/" + pod.Name + ":" + pod.Labels[portLabel]
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		health, err := healthOf(ctx, admin, name)
		if err != nil {
			return err
		}
		if there && health == "ready" || !there && health == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not seen in time: endpoint %s is %s", name, strconv.Quote(health))
		case <-tick.C:
		}
	}
}

// healthOf returns the health of an endpoint, empty if there is none.
func healthOf(ctx context.Context, admin, name string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/debug/state", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var st stack.State
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return "", fmt.Errorf("GET %s: %w", req.URL, err)
	}
	for _, e := range st.Endpoints {
		if e.Name == name {
			return e.Health, nil
		}
	}
	return "", nil
}
