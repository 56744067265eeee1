package discovery_test

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/warmpath/warmpath/deploy/conformance/cluster"
	"github.com/warmpath/warmpath/routing/pool"
)

// What `warmpath doctor` asks of the API server is answered to an identity that
// may do nothing but what it is asked about.
func TestAccess_IsKnownToTheServer(t *testing.T) {
	c, namespace := cluster.Of(t, shared)
	identity, err := c.ServiceAccount(t.Context(), namespace, "doctor", []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"get", "list", "watch"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := pool.DefaultConfig().Kubernetes
	cfg.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := cluster.WriteKubeconfig(cfg.Kubeconfig, identity, namespace); err != nil {
		t.Fatal(err)
	}
	cfg.PodSelector, cfg.Services = "app=vllm", []string{"engines"}
	k, err := pool.NewKubernetes(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, a := range k.Access() {
		if got[a.Resource], err = k.Denied(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string][]string{"pods": {"watch"}, "endpointslices": nil}, got); diff != "" {
		t.Errorf("verbs that are denied (-want +got):\n%s", diff)
	}
	missing, err := k.Missing(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"Service engines"}, missing); diff != "" {
		t.Errorf("what the cluster does not have (-want +got):\n%s", diff)
	}
}
