package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/routing/pool"
)

// checkCluster asks the API server for what the configuration needs of it.
func (d *doctor) checkCluster(ctx context.Context) {
	if !d.cfg.Pool.Kubernetes.Enabled() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.wait)
	defer cancel()
	k, err := pool.NewKubernetes(d.cfg.Pool.Kubernetes, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		d.add(levelFail, "cluster", "", "set pool.kubernetes.kubeconfig, or run this in the cluster: kubectl exec deploy/warmpath -- warmpath doctor …", "%v", err)
		d.clusterless = true
		return
	}
	d.step("asking the cluster at %s for permissions", k.Server())
	all := true
	for _, a := range k.Access() {
		denied, err := k.Denied(ctx, a)
		switch {
		case err != nil:
			d.add(levelFail, "cluster", a.Resource, "kubectl --server "+k.Server()+" version", "the API server does not say what may be done: %v", err)
			return
		case len(denied) > 0:
			all = false
			d.add(levelFail, "cluster", a.Resource, grant(a), "must not %s; discovery needs to %s", strings.Join(denied, ", "), a)
		default:
			d.add(levelOK, "cluster", a.Resource, "", "may %s", a)
		}
	}
	if !all {
		return
	}
	missing, err := k.Missing(ctx)
	if err != nil {
		d.add(levelFail, "cluster", "", "kubectl get crd inferencepools.inference.networking.k8s.io", "%v", err)
	}
	for _, m := range missing {
		kind, name, _ := strings.Cut(m, " ")
		d.add(levelFail, "cluster", name, "kubectl get "+strings.ToLower(kind)+" -A", "there is no such %s, or it lists nothing", kind)
	}
}

// grant returns commands that give a permission.
func grant(a pool.Access) string {
	resource := a.Resource
	if a.Group != "" {
		resource += "." + a.Group
	}
	role, where := "role", " -n "+a.Namespace
	if a.Namespace == "" {
		role, where = "clusterrole", ""
	}
	name := "warmpath-" + a.Resource
	return fmt.Sprintf("kubectl create %s %s --verb=%s --resource=%s%s && kubectl create %sbinding %s --%s=%s --serviceaccount=NAMESPACE:SERVICEACCOUNT%s",
		role, name, strings.Join(a.Verbs, ","), resource, where, role, name, role, name, where)
}

// podOf returns how kubectl names the pod of an endpoint, empty if it is none.
func podOf(e *pool.Endpoint) string {
	namespace, rest, ok := strings.Cut(e.Name, "/")
	name, _, ported := strings.Cut(rest, ":")
	if !ok || !ported || strings.Contains(name, "/") {
		return ""
	}
	return "-n " + namespace + " pod/" + name
}

// listCommand returns how to see what the configuration looks for.
func (d *doctor) listCommand() string {
	k := d.cfg.Pool.Kubernetes
	where := ""
	if len(k.Namespaces) > 0 && k.Namespaces[0] != "*" {
		where = " -n " + k.Namespaces[0]
	} else if len(k.Namespaces) > 0 {
		where = " -A"
	}
	switch {
	case k.PodSelector != "":
		return fmt.Sprintf("kubectl get pods%s -l '%s' -o wide", where, k.PodSelector)
	case len(k.Services) > 0:
		return "kubectl get endpointslices" + where
	case len(k.InferencePools) > 0:
		return "kubectl get inferencepools" + where + " -o yaml"
	}
	return "add endpoints to " + d.cfg.Pool.File.Path
}
