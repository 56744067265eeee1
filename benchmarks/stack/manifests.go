package stack

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// hosted rewrites manifests that were made for Kubernetes for an Envoy Gateway
// that reads them from a file and runs Envoy on this machine. It changes only
// what such a gateway has not:
//
//   - Objects of other APIs than Gateway API and Envoy Gateway's are left out.
//   - A Service becomes a Backend of the same name, with the address of the
//     router where an extension policy refers to it, else those of the engines.
//   - Listeners take requests on a given port.
//   - Envoy runs on the host, in a given version. The class of a gateway, and
//     the gateway itself, are added where the manifests rely on existing ones.
//   - Patches find ext_proc by the name that it has without Kubernetes, where
//     Envoy Gateway leaves the kind of the policy out of it.
type hosted struct {
	// Port is where the gateways listen; Version is Envoy's.
	Port, Version string
	// Router is the ip:port of the router, Engines those of the engines.
	Router  string
	Engines []string
}

// object is a Kubernetes object as YAML has it.
type object = map[string]any

// The parts of Gateway API and Envoy Gateway that rewriting needs to know.
const (
	groupGateway      = "gateway.networking.k8s.io"
	groupEnvoy        = "gateway.envoyproxy.io"
	controllerOfEnvoy = groupEnvoy + "/gatewayclass-controller"
	hostProxy         = "warmpath-host"
	hostNamespace     = "envoy-gateway-system"
	protocolHTTP2     = groupEnvoy + "/h2c"
	filterOfPolicy    = "envoy.filters.http.ext_proc/envoyextensionpolicy/"
	filterOfFile      = "envoy.filters.http.ext_proc//"
)

func (h hosted) rewrite(dir string) ([]byte, error) {
	all, err := readManifests(dir)
	if err != nil {
		return nil, err
	}
	if all, err = h.objects(all); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	for _, o := range all {
		if err := enc.Encode(o); err != nil {
			return nil, err
		}
	}
	if err := enc.Close(); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(out.Bytes(), []byte(filterOfPolicy), []byte(filterOfFile)), nil
}

// readManifests reads every manifest in a folder.
func readManifests(dir string) (all []object, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no manifests", dir)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		some, err := objects(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// extprocSettings returns the section extproc of the router's configuration in
// a folder of manifests.
func extprocSettings(dir string) (object, error) {
	all, err := readManifests(dir)
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		file := text(o, "data", "warmpath.yaml")
		if text(o, "kind") != "ConfigMap" || file == "" {
			continue
		}
		config := object{}
		if err := yaml.Unmarshal([]byte(file), &config); err != nil {
			return nil, fmt.Errorf("%s: ConfigMap %s: warmpath.yaml: %w", dir, text(o, "metadata", "name"), err)
		}
		return inside(config, "extproc"), nil
	}
	return nil, fmt.Errorf("%s has no ConfigMap with a warmpath.yaml", dir)
}

// objects reads a file of objects.
func objects(b []byte) (all []object, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var o object
		err := dec.Decode(&o)
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, err
		case o != nil: // a document may be a comment only
			all = append(all, o)
		}
	}
}

func (h hosted) objects(in []object) (out []object, err error) {
	backends := map[string]object{}
	var gateways, classes []string
	var parents []parent
	for _, o := range in {
		group, _, _ := strings.Cut(text(o, "apiVersion"), "/")
		if group != groupGateway && group != groupEnvoy {
			continue
		}
		namespace := namespaceOf(o)
		if err := h.refer(o, namespace, text(o, "kind"), backends); err != nil {
			return nil, fmt.Errorf("%s %s/%s: %w", text(o, "kind"), namespace, text(o, "metadata", "name"), err)
		}
		switch text(o, "kind") {
		case "GatewayClass":
			classes = append(classes, text(o, "metadata", "name"))
			inside(o, "spec")["parametersRef"] = h.parameters()
		case "Gateway":
			gateways = append(gateways, namespace+"/"+text(o, "metadata", "name"))
			if err := h.listen(o); err != nil {
				return nil, err
			}
		case "EnvoyProxy":
			inside(o, "spec")["provider"] = h.provider()
		case "HTTPRoute":
			parents = append(parents, parentsOf(o, namespace)...)
		}
		out = append(out, o)
	}
	for _, p := range parents {
		if slices.Contains(gateways, p.name()) {
			continue
		}
		g, err := h.gateway(p)
		if err != nil {
			return nil, err
		}
		gateways, out = append(gateways, p.name()), append(out, g)
	}
	for _, o := range out {
		name := text(o, "spec", "gatewayClassName")
		if name != "" && !slices.Contains(classes, name) {
			classes = append(classes, name)
			out = append(out, object{
				"apiVersion": groupGateway + "/v1", "kind": "GatewayClass", "metadata": object{"name": name},
				"spec": object{"controllerName": controllerOfEnvoy, "parametersRef": h.parameters()},
			})
		}
	}
	out = append(out, object{
		"apiVersion": groupEnvoy + "/v1alpha1", "kind": "EnvoyProxy",
		"metadata": object{"name": hostProxy, "namespace": hostNamespace},
		"spec":     object{"provider": h.provider()},
	})
	for _, key := range slices.Sorted(maps.Keys(backends)) {
		out = append(out, backends[key])
	}
	return out, nil
}

// parameters points to the EnvoyProxy that runs Envoy on this machine.
func (h hosted) parameters() object {
	return object{"group": groupEnvoy, "kind": "EnvoyProxy", "name": hostProxy, "namespace": hostNamespace}
}

func (h hosted) provider() object {
	return object{"type": "Host", "host": object{"envoyVersion": h.Version}}
}

// gateway returns one that the manifests expect to exist.
func (h hosted) gateway(p parent) (object, error) {
	o := object{
		"apiVersion": groupGateway + "/v1", "kind": "Gateway", "metadata": object{"name": p.gateway, "namespace": p.namespace},
		"spec": object{"gatewayClassName": "eg", "listeners": []any{object{
			"name": p.listener, "protocol": "HTTP", "port": 80, "allowedRoutes": object{"namespaces": object{"from": "All"}},
		}}},
	}
	return o, h.listen(o)
}

func (h hosted) listen(gateway object) error {
	port, err := strconv.Atoi(h.Port)
	if err != nil {
		return err
	}
	listeners, _ := inside(gateway, "spec")["listeners"].([]any)
	if len(listeners) != 1 {
		return fmt.Errorf("gateway %s has %d listeners; one port is known, so it may have one", text(gateway, "metadata", "name"), len(listeners))
	}
	listeners[0].(object)["port"] = port
	return nil
}

// parent is what an HTTPRoute attaches to.
type parent struct{ namespace, gateway, listener string }

func (p parent) name() string { return p.namespace + "/" + p.gateway }

func parentsOf(route object, namespace string) (all []parent) {
	refs, _ := inside(route, "spec")["parentRefs"].([]any)
	for _, r := range refs {
		ref := r.(object)
		all = append(all, parent{
			cmp.Or(text(ref, "namespace"), namespace), text(ref, "name"), cmp.Or(text(ref, "sectionName"), "http"),
		})
	}
	return all
}

// refer turns references to Services, wherever they are in v, into ones to
// Backends, which it adds.
func (h hosted) refer(v any, namespace, kind string, backends map[string]object) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := h.refer(e, namespace, kind, backends); err != nil {
				return err
			}
		}
	case object:
		for key, e := range v {
			if err := h.refer(e, namespace, kind, backends); err != nil {
				return err
			}
			refs, ok := e.([]any)
			if key != "backendRefs" || !ok {
				continue
			}
			for _, r := range refs {
				if err := h.backend(r.(object), namespace, kind, backends); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (h hosted) backend(ref object, namespace, kind string, backends map[string]object) error {
	if k := text(ref, "kind"); k != "" && k != "Service" {
		return nil
	}
	key := cmp.Or(text(ref, "namespace"), namespace) + "/" + text(ref, "name")
	addresses := h.Engines
	if kind == "EnvoyExtensionPolicy" {
		addresses = []string{h.Router}
	}
	ref["group"], ref["kind"] = groupEnvoy, "Backend"
	delete(ref, "port")
	endpoints := []any{}
	for _, a := range addresses {
		host, port, err := net.SplitHostPort(a)
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		endpoints = append(endpoints, object{"ip": object{"address": host, "port": n}})
	}
	spec := object{"endpoints": endpoints}
	if kind == "EnvoyExtensionPolicy" {
		spec["appProtocols"] = []any{protocolHTTP2} // as the Service's port says by its appProtocol
	}
	backends[key] = object{
		"apiVersion": groupEnvoy + "/v1alpha1", "kind": "Backend",
		"metadata": object{"name": text(ref, "name"), "namespace": cmp.Or(text(ref, "namespace"), namespace)}, "spec": spec,
	}
	return nil
}

func namespaceOf(o object) string {
	return cmp.Or(text(o, "metadata", "namespace"), "default")
}

// text returns the text at a path, "" if there is none.
func text(o object, path ...string) string {
	for i, key := range path {
		if i == len(path)-1 {
			s, _ := o[key].(string)
			return s
		}
		o, _ = o[key].(object)
	}
	return ""
}

// inside returns the object at key, which it adds if it is missing.
func inside(o object, key string) object {
	in, ok := o[key].(object)
	if !ok {
		in = object{}
		o[key] = in
	}
	return in
}
