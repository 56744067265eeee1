package main

import (
	"slices"
	"strings"
	"testing"
)

// With peers.enabled routers listen to each other, ask those that the headless
// Service leads to, may reach them and nobody else does, and the configuration
// is one that warmpath takes.
func TestPeers_Enabled(t *testing.T) {
	all := release(t, parseValues(t, "{peers: {enabled: true, port: 9105, tokens: {existingSecret: p, key: list, routerKey: mine}}, seed: {existingSecret: s}, attach: standalone}"))
	config := routerConfig(t, all)
	for _, want := range []string{"listen: 0.0.0.0:9105", "- warmpath-peers.default.svc:9105", "tokens_file: /etc/warmpath-peers/tokens", "\n  peers_token_file: /etc/warmpath-peers/token\n"} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in\n%s", want, config)
		}
	}
	if strings.Contains(config, " token_file:") {
		t.Errorf("relays are shown a token:\n%s", config)
	}
	if out := checkConfig(t, all); strings.Contains(out, "cachestate") {
		t.Errorf("warmpath check warns:\n%s", out)
	}
	router := only(t, all, "Deployment", "")
	labels := router.at("spec", "selector", "matchLabels")
	service := only(t, all, "Service", "warmpath-peers")
	if service.at("spec", "clusterIP") != "None" || service.at("spec", "ports", 0, "port") != 9105 || !same(service.at("spec", "selector"), labels) {
		t.Errorf("the Service is %v", service)
	}
	target := service.at("spec", "ports", 0, "targetPort")
	ports := router.at("spec", "template", "spec", "containers", 0, "ports").([]any)
	if !slices.ContainsFunc(ports, func(p any) bool {
		o := object(p.(map[string]any))
		return o["name"] == target && o["containerPort"] == 9105
	}) {
		t.Errorf("no port of the router is called %v: %v", target, ports)
	}
	volumes := router.at("spec", "template", "spec", "volumes").([]any)
	at := slices.IndexFunc(volumes, func(v any) bool { return object(v.(map[string]any))["name"] == "peers" })
	if v := object(volumes[at].(map[string]any)); v.at("secret", "secretName") != "p" || v.at("secret", "items", 0, "key") != "list" || v.at("secret", "items", 1, "key") != "mine" {
		t.Errorf("the router mounts %v", v)
	}
	policy := only(t, all, "NetworkPolicy", "warmpath")
	for _, way := range [][2]string{{"ingress", "from"}, {"egress", "to"}} {
		found := false
		for _, rule := range policy.at("spec", way[0]).([]any) {
			r := object(rule.(map[string]any))
			if !opens(r["ports"], 9105) {
				continue
			}
			found = true
			if peers, ok := r[way[1]].([]any); !ok || len(peers) != 1 || !same(r.at(way[1], 0, "podSelector", "matchLabels"), labels) {
				t.Errorf("%s of the port: %v", way[0], r)
			}
		}
		if !found {
			t.Errorf("no rule for %s of the port", way[0])
		}
	}
}

// same tells whether two maps of strings are the same.
func same(a, b any) bool {
	x, y := object(a.(map[string]any)), object(b.(map[string]any))
	return x.String() == y.String()
}

// Relays are shown one token, routers another.
func TestPeers_WithRelays(t *testing.T) {
	all := release(t, parseValues(t, "{peers: {enabled: true, tokens: {existingSecret: p}}, relay: {enabled: true, tokens: {existingSecret: r}}, seed: {existingSecret: s}}"))
	config := routerConfig(t, all)
	for _, want := range []string{" token_file: /etc/warmpath-relay-token/token\n", " peers_token_file: /etc/warmpath-peers/token\n", " tokens_file: /etc/warmpath-peers/tokens\n"} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in\n%s", want, config)
		}
	}
	checkConfig(t, all)
}

// Who mounts a token for relays without relay.tokens may name it beside the
// token of peers.
func TestPeers_WithATokenForRelays(t *testing.T) {
	config := routerConfig(t, release(t, parseValues(t, "{peers: {enabled: true, tokens: {existingSecret: p}}, seed: {existingSecret: s}, config: {cachestate: {token_file: /mine}}}")))
	for _, want := range []string{" token_file: /mine\n", " peers_token_file: /etc/warmpath-peers/token\n"} {
		if !strings.Contains(config, want) {
			t.Errorf("no %q in\n%s", want, config)
		}
	}
}

func TestPeers_Disabled(t *testing.T) {
	for _, o := range release(t, values{}) {
		if text := o.String(); strings.Contains(text, "peers") || strings.Contains(text, "9005") {
			t.Errorf("a trace of peers without them:\n%s", text)
		}
	}
}
