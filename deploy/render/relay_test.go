package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// relayParts returns the relays' configuration file and the patch of engines,
// and the namespace that they are in.
func relayParts(t *testing.T, all []object) (file string, patch object, namespace any) {
	t.Helper()
	for _, o := range all {
		text, ok := o.at("data", "relay.yaml").(string)
		if !ok {
			continue
		}
		found := objects(t, "patch.yaml", o.at("data", "patch.yaml").(string))
		if len(found) != 1 {
			t.Fatalf("%d documents in the patch", len(found))
		}
		return text, found[0], o.at("metadata", "namespace")
	}
	t.Fatal("no configuration of the relays")
	return "", nil, nil
}

// checkRelay has warmpath check the relays' configuration with the environment
// of the container, and everything that it names where the patch mounts it.
func checkRelay(t *testing.T, text string, patch object) {
	t.Helper()
	c := object(patch.at("spec", "template", "spec", "initContainers", 0).(map[string]any))
	dir := t.TempDir()
	mounted := map[any]string{}
	for _, m := range c["volumeMounts"].([]any) {
		m := object(m.(map[string]any))
		mounted[m["name"]] = dir + m["mountPath"].(string)
	}
	contents := map[string]string{"relay.yaml": strings.ReplaceAll(text, "/etc/warmpath", dir+"/etc/warmpath"), "seed": "0123456789abcdef\n", "tokens": "read 0123456789abcdef\n"}
	for _, v := range patch.at("spec", "template", "spec", "volumes").([]any) {
		v := object(v.(map[string]any))
		from, to := v.at("configMap", "items", 0, "path"), mounted[v["name"]]
		if from == nil {
			from = v.at("secret", "items", 0, "path")
		}
		if to == "" {
			t.Fatalf("volume %v is mounted nowhere", v["name"])
		}
		if err := os.MkdirAll(to, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, from.(string)), []byte(contents[from.(string)]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := c["args"].([]any)
	if args[0] != "relay" {
		t.Fatalf("args %v", args)
	}
	env := map[string]string{}
	for _, e := range c["env"].([]any) {
		e := object(e.(map[string]any))
		if v, ok := e["value"].(string); ok {
			env[e["name"].(string)] = v
		} else if e.at("valueFrom", "fieldRef", "fieldPath") == "status.podIP" {
			env[e["name"].(string)] = "10.0.0.7"
		}
	}
	endpoint := strings.ReplaceAll(env["WARMPATH_RELAY_ENDPOINT"], "$(POD_IP)", env["POD_IP"])
	if !strings.Contains(endpoint, "10.0.0.7") {
		t.Errorf("the relay speaks for %q", endpoint)
	}
	// Every file that it names is one that is mounted.
	var named struct {
		Index struct {
			Seed string `yaml:"seed_file"`
		} `yaml:"index"`
		Relay struct {
			Tokens string `yaml:"tokens_file"`
		} `yaml:"relay"`
	}
	if err := yaml.Unmarshal([]byte(contents["relay.yaml"]), &named); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{named.Index.Seed, named.Relay.Tokens} {
		if _, err := os.Stat(file); file != "" && err != nil {
			t.Error(err)
		}
	}
	config := strings.TrimPrefix(args[1].(string), "--config=")
	if out, err := run(t, "check", "--config="+dir+config, "--relay.endpoint="+strings.NewReplacer("[10.0.0.7]", "[fd00::7]").Replace(endpoint)); err != nil {
		t.Errorf("warmpath check: %v\n%s\n%s", err, out, text)
	}
}

// With relay.enabled routers look for relays where pods say so, may reach them,
// nobody else does, and what the patch makes of a pod is one that warmpath
// relay starts in.
func TestRelay_Enabled(t *testing.T) {
	all := release(t, values{
		"relay": map[string]any{"enabled": true, "port": 5570, "adminPort": 9191, "models": []any{"llama"}}, "seed": map[string]any{"existingSecret": "fleet"},
		"engines": map[string]any{"namespaces": []any{"models"}}, "attach": "original-dst", "gateway": map[string]any{"listener": "http"},
		"networkPolicy": map[string]any{"metricsFrom": []any{map[string]any{"podSelector": map[string]any{}}}},
	})
	// Pods without a relay are followed over ZMQ at once.
	if text := routerConfig(t, all); strings.Contains(text, "relay_port") || strings.Contains(text, "cachestate") {
		t.Errorf("the router looks for relays beside every engine, or shows a token:\n%s", text)
	}
	text, patch, namespace := relayParts(t, all)
	if namespace != "models" {
		t.Errorf("the relays' configuration is in namespace %v", namespace)
	}
	if got := patch.at("spec", "template", "metadata", "annotations", "warmpath.dev/relay"); got != "5570" {
		t.Errorf("engines say that their relay is at %v", got)
	}
	if !strings.Contains(text, "llama") || strings.Contains(text, "tokens_file") {
		t.Errorf("the relays' configuration is\n%s", text)
	}
	checkRelay(t, text, patch)
	for _, o := range all {
		if o["kind"] != "NetworkPolicy" {
			continue
		}
		name, _ := o.at("metadata", "name").(string)
		if strings.HasSuffix(name, "-engines") {
			routers, metrics, rest := o.at("spec", "ingress", 0, "ports"), o.at("spec", "ingress", 1, "ports"), o.at("spec", "ingress", 2, "ports")
			if !opens(routers, 5570) || opens(metrics, 5570) || opens(rest, 5570) {
				t.Error("the relays' port is not the router's alone")
			}
			if opens(routers, 9191) || !opens(metrics, 9191) || opens(rest, 9191) {
				t.Error("the relays' admin port is not metricsFrom's alone")
			}
		} else if !opens(o.at("spec", "egress", 0, "ports"), 5570) {
			t.Error("the router may not reach the relays")
		}
	}
}

// Without relays nothing of the engines' admin ports is closed.
func TestRelay_Disabled(t *testing.T) {
	all := release(t, parseValues(t, "networkPolicy: {metricsFrom: [{podSelector: {}}]}"))
	if rules := only(t, all, "NetworkPolicy", "warmpath-engines").at("spec", "ingress").([]any); len(rules) != 2 || !opens(object(rules[1].(map[string]any))["ports"], 9091) {
		t.Errorf("the engines' policy is %v", rules)
	}
}

// EndpointSlices carry no annotations: the router is told the port.
func TestRelay_OfAService(t *testing.T) {
	all := release(t, parseValues(t, "{relay: {enabled: true, port: 5570}, seed: {existingSecret: s}, engines: {discovery: service}}"))
	if text := routerConfig(t, all); !strings.Contains(text, "relay_port: 5570") {
		t.Errorf("the router does not look for relays:\n%s", text)
	}
}

// An IPv6 address needs brackets before a port.
func TestRelay_IPv6(t *testing.T) {
	text, patch, _ := relayParts(t, release(t, parseValues(t, `{listenAddress: "[::]", relay: {enabled: true}, seed: {existingSecret: s}}`)))
	checkRelay(t, text, patch)
	if got := patch.at("spec", "template", "spec", "initContainers", 0, "env", 1, "value"); got != "[$(POD_IP)]:8000" {
		t.Errorf("the relay speaks for %v", got)
	}
}

// relay.tokens: relays get the list, routers their token, of the keys that were
// named, and both are told where it is.
func TestRelay_Tokens(t *testing.T) {
	all := release(t, parseValues(t, "{relay: {enabled: true, tokens: {existingSecret: t, key: list, routerKey: mine}}, seed: {existingSecret: s}, image: {pullSecrets: [p]}}"))
	text, patch, _ := relayParts(t, all)
	if !strings.Contains(text, "tokens_file: /etc/warmpath-relay-tokens/tokens") {
		t.Errorf("relays are told of no tokens:\n%s", text)
	}
	checkRelay(t, text, patch)
	if got := patch.at("spec", "template", "spec", "imagePullSecrets", 0, "name"); got != "p" {
		t.Errorf("relays are pulled with Secret %v", got)
	}
	volume := func(spec any, name string) object {
		for _, v := range spec.([]any) {
			if v := object(v.(map[string]any)); v["name"] == name {
				return v
			}
		}
		t.Fatalf("no volume %s in %v", name, spec)
		return nil
	}
	v := volume(patch.at("spec", "template", "spec", "volumes"), "warmpath-relay-tokens")
	if v.at("secret", "secretName") != "t" || v.at("secret", "items", 0, "key") != "list" {
		t.Errorf("relays mount %v", v)
	}
	if config := routerConfig(t, all); !strings.Contains(config, "token_file: /etc/warmpath-relay-token/token") {
		t.Errorf("the router shows no token:\n%s", config)
	}
	checkConfig(t, all)
	for _, pod := range []object{object(only(t, all, "Deployment", "").at("spec", "template").(map[string]any)), only(t, all, "Pod", "")} {
		v := volume(pod.at("spec", "volumes"), "relay-token")
		if v.at("secret", "secretName") != "t" || v.at("secret", "items", 0, "key") != "mine" {
			t.Errorf("the router mounts %v", v)
		}
		mounts := pod.at("spec", "containers", 0, "volumeMounts").([]any)
		if !slices.ContainsFunc(mounts, func(m any) bool { return object(m.(map[string]any))["mountPath"] == "/etc/warmpath-relay-token" }) {
			t.Errorf("the router's mounts are %v", mounts)
		}
	}
}

// The relay is a sidecar that can take no engine out of service, and is what the
// restricted Pod Security Standard asks for whatever the pod is.
func TestRelay_Container(t *testing.T) {
	_, patch, _ := relayParts(t, release(t, parseValues(t, "{relay: {enabled: true}, seed: {existingSecret: s}}")))
	c := object(patch.at("spec", "template", "spec", "initContainers", 0).(map[string]any))
	if c["restartPolicy"] != "Always" || c["readinessProbe"] != nil || c["startupProbe"] != nil || c.at("livenessProbe", "httpGet", "path") != "/healthz" {
		t.Errorf("the container is %v", c)
	}
	want := map[string]any{
		"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": map[string]any{"drop": []any{"ALL"}},
		"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": map[string]any{"type": "RuntimeDefault"},
	}
	if diff := cmp.Diff(any(want), c["securityContext"]); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if pod := patch.at("spec", "template", "spec").(map[string]any); pod["containers"] != nil || pod["securityContext"] != nil {
		t.Errorf("the patch changes the engine: %v", pod)
	}
}

// A chart of engines that has this one among its dependencies puts the relay
// into its own pods.
func TestRelay_FromAnotherChart(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Chart.yaml":  "apiVersion: v2\nname: engines\nversion: 0.1.0\ndependencies: [{name: warmpath, version: 0.1.0}]\n",
		"values.yaml": "warmpath: {relay: {enabled: true, port: 5570}, seed: {existingSecret: s}}\n",
		"templates/engine.yaml": `apiVersion: v1
kind: Pod
metadata:
  name: engine
  annotations: {{- include "warmpath.relay.annotations" .Subcharts.warmpath | nindent 4 }}
spec:
  initContainers:
    - {{ include "warmpath.relay.container" .Subcharts.warmpath | indent 6 | trim }}
  volumes: {{- include "warmpath.relay.volumes" .Subcharts.warmpath | nindent 4 }}
`,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "charts/warmpath"), os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	c, err := loader.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, err := render(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	pod := objects(t, "engine.yaml", files["engine.yaml"])[0]
	_, patch, _ := relayParts(t, objects(t, "relay-configmap.yaml", files["engines/charts/warmpath/templates/relay-configmap.yaml"]))
	for _, key := range []string{"initContainers", "volumes"} {
		if diff := cmp.Diff(patch.at("spec", "template", "spec", key), pod.at("spec", key)); diff != "" {
			t.Errorf("%s: -patch +pod:\n%s", key, diff)
		}
	}
	if diff := cmp.Diff(patch.at("spec", "template", "metadata"), map[string]any{"annotations": pod.at("metadata", "annotations")}); diff != "" {
		t.Errorf("-patch +pod:\n%s", diff)
	}
}

// relay.inject: MutatingAdmissionPolicies are there from Kubernetes 1.36 on.
// What the API server makes of them is tested with one.
func TestRelay_Inject(t *testing.T) {
	vals := parseValues(t, "{relay: {enabled: true, inject: true}, seed: {existingSecret: s}, engines: {selector: {app: vllm, tier: gpu}}}")
	if _, err := renderFor("v1.35.4", loadChart(t), vals); err == nil || !strings.Contains(err.Error(), "relay.inject") || !strings.Contains(err.Error(), "v1.35.4") {
		t.Errorf("Kubernetes 1.35: %v", err)
	}
	for _, version := range []string{"v1.36.0-gke.100", "v1.36.3", "v1.40.0"} {
		files, err := renderFor(version, loadChart(t), vals)
		if err != nil {
			t.Fatal(err)
		}
		all := objects(t, "relay-injection.yaml", files["relay-injection.yaml"])
		policy, binding := only(t, all, "MutatingAdmissionPolicy", ""), only(t, all, "MutatingAdmissionPolicyBinding", "")
		if binding.at("spec", "policyName") != policy.at("metadata", "name") || policy.at("spec", "failurePolicy") != "Ignore" {
			t.Errorf("policy %v, binding %v", policy, binding)
		}
		constraints := object(policy.at("spec", "matchConstraints").(map[string]any))
		if diff := cmp.Diff(any(map[string]any{"app": "vllm", "tier": "gpu"}), constraints.at("objectSelector", "matchLabels")); diff != "" {
			t.Errorf("it means other pods: -want +got:\n%s", diff)
		}
		if diff := cmp.Diff(any([]any{releaseNamespace}), constraints.at("namespaceSelector", "matchExpressions", 0, "values")); diff != "" {
			t.Errorf("it means other namespaces: -want +got:\n%s", diff)
		}
	}
}

// opens tells whether a list of ports of a NetworkPolicy has a TCP port.
func opens(ports any, port int) bool {
	return slices.ContainsFunc(ports.([]any), func(p any) bool {
		o := object(p.(map[string]any))
		from, _ := o["port"].(int)
		to, ok := o["endPort"].(int)
		if !ok {
			to = from
		}
		return o["protocol"] == "TCP" && from <= port && port <= to
	})
}
