package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/common"
	"pgregory.net/rapid"

	"github.com/warmpath/warmpath/routing/pool"
)

// eachVariant calls test with the objects of every example.
func eachVariant(t *testing.T, test func(t *testing.T, name string, all []object)) {
	t.Helper()
	found, err := variants(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, vals := range found {
		t.Run(name, func(t *testing.T) { test(t, name, release(t, vals)) })
	}
}

func TestVariants_Shape(t *testing.T) {
	eachVariant(t, func(t *testing.T, name string, all []object) {
		seen := map[string]bool{}
		for _, o := range all {
			checkShape(t, name, o)
			if seen[o.String()] {
				t.Errorf("%v is there twice", o)
			}
			seen[o.String()] = true
		}
	})
}

// What each way of attaching consists of.
func TestVariants_Kinds(t *testing.T) {
	base := []string{
		"ConfigMap warmpath", "Deployment warmpath", "HorizontalPodAutoscaler warmpath", "NetworkPolicy warmpath", "NetworkPolicy warmpath-engines",
		"Pod warmpath-doctor", "PodDisruptionBudget warmpath", "Role warmpath", "RoleBinding warmpath", "Service warmpath", "ServiceAccount warmpath",
	}
	gateway := []string{"BackendTrafficPolicy warmpath", "ClientTrafficPolicy warmpath", "EnvoyExtensionPolicy warmpath", "HTTPRoute warmpath", "Service warmpath-engines"}
	want := map[string][]string{
		"envoy-gateway":  slices.Concat(base, gateway),
		"engine-ports":   slices.Concat(base, gateway),
		"original-dst":   slices.Concat(base, gateway, []string{"EnvoyPatchPolicy warmpath"}),
		"inference-pool": slices.Concat(base, []string{"HTTPRoute warmpath", "InferencePool warmpath"}),
		"relay":          slices.Concat(base, gateway, []string{"ConfigMap warmpath-relay"}),
		"standalone":     slices.Concat(base, []string{"Service warmpath-engines", "Service warmpath-gateway"}),
	}
	got := map[string][]string{}
	eachVariant(t, func(_ *testing.T, name string, all []object) {
		for _, o := range all {
			got[name] = append(got[name], fmt.Sprintf("%v %v", o["kind"], o.at("metadata", "name")))
		}
	})
	for _, kinds := range []map[string][]string{want, got} {
		for _, list := range kinds {
			slices.Sort(list)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Every pod is what the restricted Pod Security Standard asks for, with a file
// system that cannot be written.
func TestVariants_PodsAreRestricted(t *testing.T) {
	eachVariant(t, func(t *testing.T, _ string, all []object) {
		pods := []object{only(t, all, "Deployment", "").at("spec", "template").(map[string]any), only(t, all, "Pod", "")}
		for _, p := range pods {
			sc := object(p.at("spec", "securityContext").(map[string]any))
			if sc["runAsNonRoot"] != true || sc["runAsUser"] == 0 || sc.at("seccompProfile", "type") != "RuntimeDefault" {
				t.Errorf("a pod's securityContext is %v", sc)
			}
			for _, key := range []string{"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} {
				if p.at("spec", key) != nil {
					t.Errorf("%s is set", key)
				}
			}
			containers, _ := p.at("spec", "containers").([]any)
			inits, _ := p.at("spec", "initContainers").([]any)
			if len(containers) == 0 {
				t.Fatal("a pod without containers")
			}
			for _, c := range append(containers, inits...) {
				c := object(c.(map[string]any))
				want := map[string]any{"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": map[string]any{"drop": []any{"ALL"}}}
				if diff := cmp.Diff(any(want), c["securityContext"]); diff != "" {
					t.Errorf("container %v: -want +got:\n%s", c["name"], diff)
				}
			}
			for _, v := range p.at("spec", "volumes").([]any) {
				if object(v.(map[string]any))["hostPath"] != nil {
					t.Errorf("volume %v", v)
				}
			}
		}
	})
}

// Everything that means the router's pods means them, and not the test's pod.
func TestVariants_SelectorsMeanTheRouter(t *testing.T) {
	matches := func(selector, labels any) bool {
		s, _ := selector.(map[string]any)
		l, _ := labels.(map[string]any)
		for k, v := range s {
			if l[k] != v {
				return false
			}
		}
		return len(s) > 0
	}
	eachVariant(t, func(t *testing.T, _ string, all []object) {
		d := only(t, all, "Deployment", "")
		router, test := d.at("spec", "template", "metadata", "labels"), only(t, all, "Pod", "").at("metadata", "labels")
		selectors := map[string]any{
			"Deployment":          d.at("spec", "selector", "matchLabels"),
			"PodDisruptionBudget": only(t, all, "PodDisruptionBudget", "").at("spec", "selector", "matchLabels"),
			"NetworkPolicy":       only(t, all, "NetworkPolicy", "warmpath").at("spec", "podSelector", "matchLabels"),
			"Service":             only(t, all, "Service", "warmpath").at("spec", "selector"),
			"engines' policy":     only(t, all, "NetworkPolicy", "warmpath-engines").at("spec", "ingress", 0, "from", 0, "podSelector", "matchLabels"),
			"spread":              d.at("spec", "template", "spec", "topologySpreadConstraints", 0, "labelSelector", "matchLabels"),
			"spread over zones":   d.at("spec", "template", "spec", "topologySpreadConstraints", 1, "labelSelector", "matchLabels"),
		}
		for who, s := range selectors {
			if !matches(s, router) {
				t.Errorf("%s selects %v, and the router has %v", who, s, router)
			}
			if matches(s, test) {
				t.Errorf("%s selects the test's pod: %v", who, s)
			}
		}
		// The test's pod reads the engines' events, too.
		if s := only(t, all, "NetworkPolicy", "warmpath-engines").at("spec", "ingress", 0, "from", 1, "podSelector", "matchLabels"); !matches(s, test) || matches(s, router) {
			t.Errorf("the engines' policy lets %v in, and the test's pod has %v", s, test)
		}
		hpa := only(t, all, "HorizontalPodAutoscaler", "")
		if hpa.at("spec", "scaleTargetRef", "name") != d.at("metadata", "name") || hpa.at("spec", "minReplicas").(int) < 2 {
			t.Errorf("the autoscaler is %v", hpa["spec"])
		}
	})
}

// The pod lives for as long as the router takes to drain, and Go's memory limit
// leaves room below the container's.
func TestDefaults_Agree(t *testing.T) {
	all := release(t, nil)
	text := only(t, all, "ConfigMap", "").at("data", "warmpath.yaml").(string)
	file := filepath.Join(t.TempDir(), "warmpath.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, "check", "--print", "--config", file)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var cfg struct {
		ExtProc struct {
			DrainDelay   time.Duration `yaml:"drain_delay"`
			DrainTimeout time.Duration `yaml:"drain_timeout"`
			MaxBodyBytes int           `yaml:"max_body_bytes"`
		} `yaml:"extproc"`
	}
	if err := yaml.Unmarshal([]byte(out), &cfg); err != nil {
		t.Fatal(err)
	}
	pod := object(only(t, all, "Deployment", "").at("spec", "template", "spec").(map[string]any))
	grace := time.Duration(pod["terminationGracePeriodSeconds"].(int)) * time.Second
	if drain := cfg.ExtProc.DrainDelay + cfg.ExtProc.DrainTimeout; cfg.ExtProc.DrainTimeout == 0 || grace < drain+5*time.Second {
		t.Errorf("a pod is killed after %s, and the router takes up to %s to end", grace, drain)
	}
	if limit := only(t, all, "ClientTrafficPolicy", "").at("spec", "connection", "bufferLimit"); limit != fmt.Sprint(cfg.ExtProc.MaxBodyBytes) {
		t.Errorf("Envoy buffers %v bytes and the router takes %d", limit, cfg.ExtProc.MaxBodyBytes)
	}
	var memory, limit int
	if _, err := fmt.Sscanf(fmt.Sprint(object(pod).at("containers", 0, "env", 0, "value")), "%dMiB", &limit); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(fmt.Sprint(object(pod).at("containers", 0, "resources", "limits", "memory")), "%dGi", &memory); err != nil {
		t.Fatal(err)
	}
	if share := float64(limit) / float64(memory<<10); share < 0.8 || share > 0.9 {
		t.Errorf("GOMEMLIMIT is %d MiB of %d GiB", limit, memory)
	}
}

// The Roles allow what discovery asks for, nothing less and nothing more.
func TestRole_IsWhatDiscoveryNeeds(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{apiVersion: v1, kind: Config, current-context: c,
		clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}], users: [{name: c}], contexts: [{name: c, context: {cluster: c, user: c}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"{}",
		"attach: standalone",
		"{attach: original-dst, gateway: {listener: http}, engines: {namespaces: [b, a, default]}}",
		"{attach: inference-pool, tls: {existingSecret: x}}",
		"{engines: {discovery: service, ports: [8000, 8001]}}",
		"{engines: {discovery: service, service: {create: false, name: mine}}}",
		"{attach: inference-pool, tls: {existingSecret: x}, engines: {discovery: service}}",
	} {
		all := release(t, parseValues(t, text))
		var cfg struct {
			Pool struct {
				Kubernetes pool.KubernetesConfig `yaml:"kubernetes"`
			} `yaml:"pool"`
		}
		if err := yaml.Unmarshal([]byte(only(t, all, "ConfigMap", "").at("data", "warmpath.yaml").(string)), &cfg); err != nil {
			t.Fatal(err)
		}
		cfg.Pool.Kubernetes.Kubeconfig = kubeconfig
		k, err := pool.NewKubernetes(cfg.Pool.Kubernetes, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, a := range k.Access() {
			want = append(want, a.String())
		}
		for _, o := range all {
			if o["kind"] == "ClusterRole" || o["kind"] == "ClusterRoleBinding" {
				t.Errorf("%s: %v", text, o)
			}
			if o["kind"] != "Role" {
				continue
			}
			for _, r := range o["rules"].([]any) {
				r := object(r.(map[string]any))
				for _, group := range r["apiGroups"].([]any) {
					for _, resource := range r["resources"].([]any) {
						a := pool.Access{Namespace: o.at("metadata", "namespace").(string), Group: group.(string), Resource: resource.(string)}
						for _, v := range r["verbs"].([]any) {
							a.Verbs = append(a.Verbs, v.(string))
						}
						got = append(got, a.String())
					}
				}
			}
			b := only(t, slices.DeleteFunc(slices.Clone(all), func(b object) bool {
				return b.at("metadata", "namespace") != o.at("metadata", "namespace")
			}), "RoleBinding", "")
			if b.at("roleRef", "name") != o.at("metadata", "name") || b.at("subjects", 0, "name") != "warmpath" || b.at("subjects", 0, "namespace") != "default" {
				t.Errorf("%s: %v binds %v", text, b, b["subjects"])
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
			t.Errorf("%s: -needed +allowed:\n%s", text, diff)
		}
	}
}

// A router that looks at no cluster can do nothing there.
func TestRole_WithoutDiscovery(t *testing.T) {
	all := release(t, parseValues(t, `{engines: {discovery: none}, config: {pool: {file: {path: /etc/engines.yaml}}}}`))
	for _, o := range all {
		if strings.HasPrefix(o["kind"].(string), "Role") {
			t.Errorf("%v", o)
		}
	}
	if token := only(t, all, "Deployment", "").at("spec", "template", "spec", "automountServiceAccountToken"); token != false {
		t.Errorf("automountServiceAccountToken is %v", token)
	}
}

// The engines' policy lets the router reach every event port and everyone
// every other port: compared, port by port, with what the values say.
func TestEnginesPolicy_Ports(t *testing.T) {
	c := loadChart(t)
	c.Schema = nil // this template alone, for speed
	c.Templates = slices.DeleteFunc(c.Templates, func(f *common.File) bool {
		return !strings.HasSuffix(f.Name, ".tpl") && !strings.HasSuffix(f.Name, "/engines-networkpolicy.yaml")
	})
	rapid.Check(t, func(rt *rapid.T) {
		port := rapid.OneOf(rapid.IntRange(1, 65535), rapid.SampledFrom([]int{1, 2, 9, 10, 99, 100, 5557, 9999, 10000, 65533, 65534, 65535}))
		events, replay := port.Draw(rt, "events"), port.Draw(rt, "replay")
		if rapid.Bool().Draw(rt, "no replay") {
			replay = 0
		}
		ranks := rapid.IntRange(1, 5).Draw(rt, "ranks")
		guarded := map[int]bool{}
		for r := range ranks {
			guarded[events+r] = true
			if replay != 0 {
				guarded[replay+r] = true
			}
		}
		most := max(events, replay) + ranks - 1
		overlap := replay != 0 && len(guarded) < 2*ranks
		vals := values{"engines": map[string]any{"events": map[string]any{"port": events, "replayPort": replay, "ranks": ranks}}}
		files, err := render(c, vals)
		if overlap || most > 65535 {
			if err == nil {
				rt.Fatalf("%v was accepted", vals)
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		policy := objects(t, "engines-networkpolicy.yaml", files["engines-networkpolicy.yaml"])[0]
		open, router := make([]bool, 65536), map[int]bool{}
		for _, p := range policy.at("spec", "ingress", 1, "ports").([]any) {
			p := object(p.(map[string]any))
			if p["protocol"] != "TCP" {
				continue
			}
			for i := p["port"].(int); i <= p["endPort"].(int); i++ {
				if open[i] {
					rt.Fatalf("port %d is opened twice", i)
				}
				open[i] = true
			}
		}
		for _, p := range policy.at("spec", "ingress", 0, "ports").([]any) {
			router[object(p.(map[string]any))["port"].(int)] = true
		}
		for i := 1; i <= 65535; i++ {
			if open[i] == guarded[i] {
				rt.Fatalf("events %d, replay %d, %d ranks: port %d open to everyone: %v", events, replay, ranks, i, open[i])
			}
			if guarded[i] && !router[i] {
				rt.Fatalf("the router cannot reach port %d", i)
			}
		}
	})
}

// The init container of the standalone variant writes a bootstrap that Envoy
// takes, with the engines behind their Service.
func TestStandalone_Bootstrap(t *testing.T) {
	all := release(t, parseValues(t, "{attach: standalone, engines: {discovery: service, ports: [8000, 8001]}}"))
	init := object(only(t, all, "Deployment", "").at("spec", "template", "spec", "initContainers", 0).(map[string]any))
	dir := t.TempDir()
	config, out := filepath.Join(dir, "warmpath.yaml"), filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte(only(t, all, "ConfigMap", "").at("data", "warmpath.yaml").(string)), 0o600); err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, a := range init["args"].([]any) {
		args = append(args, strings.NewReplacer("/etc/warmpath/warmpath.yaml", config, "/etc/envoy/envoy.yaml", out).Replace(a.(string)))
	}
	if text, err := run(t, args...); err != nil {
		t.Fatalf("warmpath %v: %v\n%s", args, err, text)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{address: "warmpath-engines.default.svc", port_value: 8000}`, `port_value: 8001}`, `{address: "0.0.0.0", port_value: 8080}`, `{address: "127.0.0.1", port_value: 9002}`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the bootstrap has no %s", want)
		}
	}
	service := only(t, all, "Service", "warmpath-engines")
	if service.at("spec", "clusterIP") != "None" {
		t.Errorf("the engines' Service has clusterIP %v, and its name resolves to that alone", service.at("spec", "clusterIP"))
	}
	envoy := os.Getenv("WARMPATH_TEST_ENVOY")
	if envoy == "" {
		t.Skip("no Envoy: set WARMPATH_TEST_ENVOY to the path of an envoy binary")
	}
	if said, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "--log-level", "warning", "-c", out).CombinedOutput(); err != nil || strings.Contains(string(said), "[warning]") {
		t.Errorf("envoy: %v\n%s", err, said)
	}
}

// NOTES.txt tells what was installed.
func TestNotes(t *testing.T) {
	found, err := variants(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	found["unguarded"] = parseValues(t, "engines: {networkPolicy: {enabled: false}}")
	for name, vals := range found {
		files, err := render(loadChart(t), vals)
		if err != nil {
			t.Fatal(err)
		}
		notes := files["NOTES.txt"]
		if strings.Contains(notes, "<no value>") || !strings.Contains(notes, "rollout status deployment/warmpath") {
			t.Errorf("%s:\n%s", name, notes)
		}
		if warned := strings.Contains(notes, "WARNING"); warned != (name == "unguarded") {
			t.Errorf("%s: a warning: %v\n%s", name, warned, notes)
		}
		if guarded := strings.Contains(notes, "lets only the router reach ports 5557, "); guarded == (name == "unguarded") {
			t.Errorf("%s:\n%s", name, notes)
		}
	}
}

// policy.earlyHealthChecks patches the router's cluster, and is nowhere else.
func TestPolicy_EarlyHealthChecks(t *testing.T) {
	for text, want := range map[string]bool{
		"policy: {earlyHealthChecks: true}":                                                     true,
		"{attach: original-dst, gateway: {listener: http}, policy: {earlyHealthChecks: true}}":  true,
		"{attach: standalone, policy: {earlyHealthChecks: true}}":                               false,
		"{attach: original-dst, gateway: {listener: http}, policy: {earlyHealthChecks: false}}": false,
	} {
		found := false
		for _, o := range release(t, parseValues(t, text)) {
			if o["kind"] != "EnvoyPatchPolicy" || o.at("metadata", "name") != "warmpath-health" {
				continue
			}
			found = true
			patch := object(o.at("spec", "jsonPatches", 0).(map[string]any))
			if patch["name"] != "envoyextensionpolicy/default/warmpath/extproc/0" || patch.at("operation", "path") != "/health_checks/0/no_traffic_interval" || patch.at("operation", "value") != "1s" {
				t.Errorf("%s: the patch is %v", text, patch)
			}
		}
		if found != want {
			t.Errorf("%s: patched %v, want %v", text, found, want)
		}
	}
}
