package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A value that is wrong is refused, and the error names it.
func TestValues_Hostile(t *testing.T) {
	c := loadChart(t)
	for _, tt := range []struct {
		values string
		want   []string // each is in the error
	}{
		{"replica: 3", []string{"'replica' not allowed"}},
		{"replicas: 0", []string{"'/replicas'"}},
		{`replicas: "2"`, []string{"'/replicas'"}},
		{"replicas: 2.5", []string{"'/replicas'"}},
		{"attach: envoygateway", []string{"'/attach'", "'original-dst'"}},
		{"attach: [standalone]", []string{"'/attach'"}},
		{"image: {repository: \"\"}", []string{"'/image/repository'"}},
		{"image: {repository: \"warmpath:1.0\\nprivileged\"}", []string{"'/image/repository'"}},
		{"image: {tag: 1.0}", []string{"'/image/tag'"}},
		{"image: {tag: \"a b\"}", []string{"'/image/tag'"}},
		{"image: {digest: sha256:abc}", []string{"'/image/digest'"}},
		{"image: {pullPolicy: always}", []string{"'/image/pullPolicy'"}},
		{"image: {pullSecrets: [{name: x}]}", []string{"'/image/pullSecrets/0'"}},
		{"fullnameOverride: Warm_Path", []string{"'/fullnameOverride'"}},
		{"fullnameOverride: a-name-that-is-longer-than-the-fifty-two-characters-of-it", []string{"'/fullnameOverride'"}},
		{"autoscaling: {enabled: \"yes\"}", []string{"'/autoscaling/enabled'"}},
		{"autoscaling: {minReplicas: 4, maxReplicas: 3}", []string{"autoscaling.minReplicas: 4"}},
		{"autoscaling: {targetCPUUtilizationPercentage: 0}", []string{"'/autoscaling/targetCPUUtilizationPercentage'"}},
		{"resources: {limits: {memory: 2 GB}}", []string{"'/resources/limits/memory'"}},
		{"resources: {limit: {}}", []string{"'/resources'", "'limit' not allowed"}},
		{"goMemLimit: 85%", []string{"'/goMemLimit'"}},
		{"podDisruptionBudget: {maxUnavailable: half}", []string{"'/podDisruptionBudget/maxUnavailable'"}},
		{"terminationGracePeriodSeconds: 30s", []string{"'/terminationGracePeriodSeconds'"}},
		{"listenAddress: 127.0.0.1", []string{"'/listenAddress'"}},
		{"maxBodyBytes: 32Mi", []string{"'/maxBodyBytes'"}},
		{"maxBodyBytes: 2147483648", []string{"'/maxBodyBytes'"}},
		{"engines: {selector: {app: null}}", []string{"'/engines/selector'"}},
		{"engines: {selector: {app: 1}}", []string{"'/engines/selector/app'"}},
		{"engines: {selector: {app: \"a,b=c\"}}", []string{"'/engines/selector/app'"}},
		{"engines: {discovery: labels}", []string{"'/engines/discovery'"}},
		{"engines: {discovery: none}", []string{"engines.discovery: none", "config.pool.static.endpoints"}},
		{"engines: {namespaces: [a, a]}", []string{"'/engines/namespaces'"}},
		{"engines: {namespaces: [\"*\"]}", []string{"'/engines/namespaces/0'"}},
		{"engines: {namespaces: [a, b]}", []string{"engines.namespaces: a, b", "original-dst"}},
		{"engines: {discovery: service, namespaces: [default]}", []string{"engines.namespaces: set", "service"}},
		{"engines: {ports: []}", []string{"'/engines/ports'"}},
		{"engines: {ports: [http]}", []string{"'/engines/ports/0'"}},
		{"engines: {ports: [70000]}", []string{"'/engines/ports/0'"}},
		{"engines: {ports: [8000, 8001]}", []string{"engines.ports: several", "engines.discovery: service"}},
		{"relay: {enabled: true}", []string{"seed.existingSecret: empty"}},
		{"relay: {enabled: true, port: 5557}\nseed: {existingSecret: s}", []string{"relay.port: 5557"}},
		{"relay: {enabled: true, port: 8000}\nseed: {existingSecret: s}", []string{"relay.port: 8000"}},
		{"relay: {port: 0}", []string{"'/relay/port'"}},
		{"relay: {enabled: true, adminPort: 5560}\nseed: {existingSecret: s}", []string{"relay.adminPort: 5560"}},
		{"relay: {enabled: true, adminPort: 8000}\nseed: {existingSecret: s}", []string{"relay.adminPort: 8000"}},
		{"relay: {enabled: true, inject: true}\nseed: {existingSecret: s}", []string{"relay.inject: true", "1.36"}},
		{"relay: {models: llama}", []string{"'/relay/models'"}},
		{"relay: {tokens: a-secret}", []string{"'/relay/tokens'"}},
		{"relay: {tokens: {existingSecret: A_Secret}}", []string{"'/relay/tokens/existingSecret'"}},
		{"relay: {tokens: {key: a/b}}", []string{"'/relay/tokens/key'"}},
		{"relay: {tokens: {file: x}}", []string{"'/relay/tokens'", "'file' not allowed"}},
		{"relay: {resources: {limits: {memory: 2 GB}}}", []string{"'/relay/resources/limits/memory'"}},
		{"peers: {enabled: true}", []string{"seed.existingSecret: empty, with peers.enabled", "peers.tokens.existingSecret: empty"}},
		{"peers: {enabled: true, port: 9090, tokens: {existingSecret: p}}\nseed: {existingSecret: s}", []string{"peers.port: 9090"}},
		{"peers: {enabled: true, tokens: {existingSecret: p}}\nseed: {existingSecret: s}\nconfig: {cachestate: {listen: \"0.0.0.0:1\"}}", []string{"config.cachestate.listen: set"}},
		{"peers: {enabled: true, tokens: {existingSecret: p}}\nseed: {existingSecret: s}\nconfig: {cachestate: {peers_token_file: x}}", []string{"config.cachestate.peers_token_file: set"}},
		{"peers: {enabled: true, tokens: {existingSecret: r, key: k}}\nseed: {existingSecret: s}\nrelay: {enabled: true, tokens: {existingSecret: r}}", []string{"peers.tokens: of Secret r"}},
		{"peers: {enabled: true, tokens: {existingSecret: r, routerKey: k}}\nseed: {existingSecret: s}\nrelay: {enabled: true, tokens: {existingSecret: r}}", []string{"peers.tokens: of Secret r"}},
		{"seed: {existingSecret: s}\nrelay: {enabled: true, tokens: {existingSecret: r}}\nconfig: {cachestate: {token_file: x}}", []string{"config.cachestate.token_file: set, but relay.tokens"}},
		{"peers: {port: 0}", []string{"'/peers/port'"}},
		{"peers: {tokens: {file: x}}", []string{"'/peers/tokens'", "'file' not allowed"}},
		{"engines: {healthPath: health}", []string{"'/engines/healthPath'"}},
		{"engines: {healthPath: \"/a\\n  b: c\"}", []string{"'/engines/healthPath'"}},
		{"engines: {events: {port: 0}}", []string{"'/engines/events/port'"}},
		{"engines: {events: {ranks: 2}}", []string{"engines.events.ranks: 2", "engines.events.replayPort"}},
		{"engines: {networkPolicy: {otherPorts: closed}}", []string{"'/engines/networkPolicy/otherPorts'"}},
		{"engines: {service: {create: false}}", []string{"engines.service.name: empty"}},
		{"gateway: {name: \"\"}", []string{"'/gateway/name'"}},
		{"gateway: {name: Eg}", []string{"'/gateway/name'"}},
		{"gateway: {namespace: a/b}", []string{"'/gateway/namespace'"}},
		{"attach: original-dst", []string{"gateway.listener: empty"}},
		{"route: {create: false}", []string{"route.name: empty"}},
		{"route: {paths: [v1]}", []string{"'/route/paths/0'"}},
		{"route: {paths: []}", []string{"'/route/paths'"}},
		{"route: {hostnames: [\"http://a\"]}", []string{"'/route/hostnames/0'"}},
		{"policy: {messageTimeout: 3}", []string{"'/policy/messageTimeout'"}},
		{"policy: {messageTimeout: 1.5s}", []string{"'/policy/messageTimeout'"}},
		{"policy: {streamIdleTimeout: 1h}", []string{"'/policy/streamIdleTimeout'"}},
		{"policy: {failOpen: null, retries: -1}", []string{"'/policy/retries'"}},
		{"policy: {clientTrafficPolicy: false}", []string{"'/policy/clientTrafficPolicy'"}},
		{"policy: {earlyHealthChecks: 1s}", []string{"'/policy/earlyHealthChecks'"}},
		{"attach: inference-pool", []string{"tls.existingSecret: empty"}},
		{"tls: {existingSecret: x}", []string{"tls.caConfigMap: empty"}},
		{"tls: {clientCASecret: x}", []string{"tls.clientCASecret: set without tls.existingSecret"}},
		{"{attach: standalone, tls: {existingSecret: x}}", []string{"tls.existingSecret: set"}},
		{"inferencePool: {failureMode: failopen}", []string{"'/inferencePool/failureMode'"}},
		{"standalone: {image: \"envoy proxy\"}", []string{"'/standalone/image'"}},
		{"standalone: {drainSeconds: -1}", []string{"'/standalone/drainSeconds'"}},
		{"seed: {key: a/b}", []string{"'/seed/key'"}},
		{"config: {routing: {stratagy: random}}", []string{"'/config/routing'", "'stratagy' not allowed"}},
		{"config: {extproc: {listen: \"0.0.0.0:1\"}}", []string{"'/config/extproc'", "'listen' not allowed"}},
		{"config: {envoy: {message_timeout: 1s}}", []string{"'/config'", "'envoy' not allowed"}},
		{"config: {pool: {kubernetes: {pod_selector: a}}}", []string{"'/config/pool/kubernetes'", "'pod_selector' not allowed"}},
		{"config: {pool: {static: {endpoints: [{adress: \"1.2.3.4:5\"}]}}}", []string{"'/config/pool/static/endpoints/0'", "'adress' not allowed"}},
		{"config: {extproc: {decision_timeout: 2}}", []string{"'/config/extproc/decision_timeout'"}},
		{"config: {tokenizer: {disabled: \"true\"}}", []string{"'/config/tokenizer/disabled'"}},
		{"serviceAccount: {annotations: {a: 1}}", []string{"'/serviceAccount/annotations/a'"}},
		{"networkPolicy: {apiServerPorts: []}", []string{"'/networkPolicy/apiServerPorts'"}},
		{"networkPolicy: {metricsFrom: [prometheus]}", []string{"'/networkPolicy/metricsFrom/0'"}},
		{"serviceMonitor: {interval: 15}", []string{"'/serviceMonitor/interval'"}},
		{"topologySpreadConstraints: [{maxSkew: 1}]", []string{"'/topologySpreadConstraints/0'"}},
		{"nodeSelector: {pool: true}", []string{"'/nodeSelector/pool'"}},
		{"env: [GOGC=400]", []string{"'/env/0'"}},
		{"podLabels: {\"a b\": c}", []string{"'/podLabels'"}},
	} {
		_, err := render(c, parseValues(t, tt.values))
		if err == nil {
			t.Errorf("%s: accepted", tt.values)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the error does not say %s:\n%v", tt.values, want, err)
			}
		}
	}
}

// Several values that do not go together are told at once.
func TestValues_AllFaultsAtOnce(t *testing.T) {
	_, err := render(loadChart(t), parseValues(t, `{attach: original-dst, route: {create: false}, autoscaling: {minReplicas: 9}}`))
	for _, want := range []string{"gateway.listener", "route.name", "autoscaling.minReplicas"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not in the error: %v", want, err)
		}
	}
}

// The schema knows every value of values.yaml, and every value of the schema
// stands there, with its default, to be read about.
func TestSchema_MatchesValues(t *testing.T) {
	text, err := os.ReadFile(chartDir + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	var inSchema, inValues []string
	var walk func(path string, schema map[string]any)
	walk = func(path string, schema map[string]any) {
		props, ok := schema["properties"].(map[string]any)
		if !ok {
			inSchema = append(inSchema, path)
			return
		}
		for key, s := range props {
			walk(path+"/"+key, s.(map[string]any))
		}
	}
	walk("", schema)
	var values func(path string, v any)
	values = func(path string, v any) {
		if m, ok := v.(map[string]any); ok && !slices.Contains(inSchema, path) {
			for key, v := range m {
				values(path+"/"+key, v)
			}
			return
		}
		inValues = append(inValues, path)
	}
	values("", map[string]any(loadChart(t).Values))
	inSchema = slices.DeleteFunc(inSchema, func(p string) bool { return p == "/global" }) // Helm's own
	slices.Sort(inSchema)
	slices.Sort(inValues)
	if diff := cmp.Diff(inSchema, inValues); diff != "" {
		t.Errorf("-schema +values.yaml:\n%s", diff)
	}
}

// Values that look like something else stay what they are.
func TestValues_Odd(t *testing.T) {
	for _, text := range []string{
		`{fullnameOverride: "123", gateway: {name: "1e3", namespace: "0x10", listener: "80"}, route: {name: "007"}, serviceAccount: {name: "12"}, priorityClassName: "1"}`,
		`{fullnameOverride: "true", nameOverride: "null", image: {tag: "1.10", pullSecrets: ["5"]}, engines: {selector: {app: "1", "a.b/c": "true"}, service: {name: "9"}}}`,
		`{attach: original-dst, engines: {namespaces: ["1", "2"]}, gateway: {listener: "80", create: true, namespace: "0"}}`,
		`{attach: inference-pool, fullnameOverride: "0", tls: {existingSecret: "1"}, engines: {ports: [1, 65535]}}`,
		`{attach: standalone, engines: {discovery: service, ports: [8000, 8001], events: {replayPort: 5657, ranks: 2}}}`,
		`{attach: none, engines: {discovery: none}, config: {pool: {static: {endpoints: [{name: a, address: "10.0.0.7:8000"}]}}}, rbac: {create: false}, serviceAccount: {create: false}}`,
		`{tls: {existingSecret: a, caConfigMap: b, hostname: c.d, clientCASecret: e}, seed: {existingSecret: "1", key: "2"}}`,
		`{relay: {enabled: true, models: ["1"], tokens: {existingSecret: "1", key: "2", routerKey: "true"}, resources: {}}, seed: {existingSecret: "1"}, nameOverride: "0"}`,
		`{listenAddress: "[::]", autoscaling: {enabled: false}, goMemLimit: "", env: [{name: GOGC, value: "400"}], podAnnotations: {a: "1"}, podLabels: {b: "2"}}`,
		`{resources: {limits: {memory: 1Gi, cpu: 2}}, tolerations: [{key: a, operator: Exists}], nodeSelector: {a: b}, affinity: {nodeAffinity: {}}, topologySpreadConstraints: []}`,
		`{serviceMonitor: {enabled: true, labels: {release: "1"}}, networkPolicy: {metricsFrom: [{podSelector: {}}], routerFrom: [{podSelector: {}}], apiServerTo: [{ipBlock: {cidr: 10.0.0.1/32}}], extraEgress: [{}]}}`,
	} {
		all := release(t, parseValues(t, text))
		for _, o := range all {
			checkShape(t, text, o)
		}
		checkConfig(t, all)
	}
}

// checkShape tells what no object of Kubernetes may be.
func checkShape(t *testing.T, from string, o object) {
	t.Helper()
	for _, key := range []string{"apiVersion", "kind"} {
		if s, ok := o[key].(string); !ok || s == "" {
			t.Errorf("%s: %v: %s is %v", from, o, key, o[key])
		}
	}
	for _, key := range []string{"name", "namespace"} {
		if s, ok := o.at("metadata", key).(string); !ok || s == "" {
			t.Errorf("%s: %v: metadata.%s is %v", from, o, key, o.at("metadata", key))
		}
	}
	var visit func(path string, v any)
	visit = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				p := path + "." + k
				if strings.HasSuffix(path, "abels") || strings.HasSuffix(path, "annotations") || strings.HasSuffix(path, "elector") {
					if _, isMap := e.(map[string]any); !isMap && k != "matchExpressions" {
						if _, ok := e.(string); !ok {
							t.Errorf("%s: %v: %s is %v, not a text", from, o, p, e)
						}
					}
				}
				if k == "name" || k == "namespace" || k == "image" || k == "value" && strings.Contains(path, "env") {
					switch e.(type) {
					case string, map[string]any:
					default:
						t.Errorf("%s: %v: %s is %v, not a text", from, o, p, e)
					}
				}
				visit(p, e)
			}
		case []any:
			for _, e := range v {
				visit(path, e)
			}
		case string:
			if strings.Contains(v, "<no value>") || strings.Contains(v, "%!") {
				t.Errorf("%s: %v: %s is %q", from, o, path, v)
			}
		case nil:
			t.Errorf("%s: %v: %s is nothing", from, o, path)
		}
	}
	visit("", map[string]any(o))
}
