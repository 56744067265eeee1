package pool

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
)

// sliceListings returns the endpoints of a slice of a Service. Slices tell no
// labels and no restarts; if the pod behind an endpoint is looked at too, its
// word counts.
func (c KubernetesConfig) sliceListings(s *discoveryv1.EndpointSlice, of ref) ([]Listing, error) {
	if s.AddressType != discoveryv1.AddressTypeIPv4 && s.AddressType != discoveryv1.AddressTypeIPv6 {
		return nil, fmt.Errorf("it lists addresses of type %s, which Envoy's override cannot use", s.AddressType)
	}
	port, err := c.slicePort(s.Ports, of.port)
	if port == 0 {
		return nil, err
	}
	var out []Listing
	for _, e := range s.Endpoints {
		if len(e.Addresses) == 0 {
			continue
		}
		address := hostPort(e.Addresses[0], port) // the others may not be used (EndpointSlice API, addresses)
		l := Listing{
			Spec:        Spec{Name: s.Namespace + "/" + of.name + "/" + address, Address: address},
			LearnModels: true, rank: rankSlice,
		}
		if c.Events == EventsAuto {
			l.Events = EventsAuto
		}
		if t := e.TargetRef; t != nil && t.Kind == "Pod" {
			l.Name = fmt.Sprintf("%s/%s:%d", s.Namespace, t.Name, port)
			l.Process = string(t.UID)
		}
		switch {
		case e.Conditions.Terminating != nil && *e.Conditions.Terminating:
			l.Withheld = "its EndpointSlice says that it is terminating"
		case e.Conditions.Ready != nil && !*e.Conditions.Ready:
			l.Withheld = "its EndpointSlice says that it is not ready"
		}
		out = append(out, l)
	}
	return out, err
}

// slicePort returns the port called want, or, if that is empty, the only one,
// the one called http, the configured one or the first. 0: there is none.
func (c KubernetesConfig) slicePort(ports []discoveryv1.EndpointPort, want string) (int, error) {
	var tcp []int
	named := map[string]int{}
	for _, p := range ports {
		if p.Port == nil || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
			continue
		}
		n := int(*p.Port)
		tcp = append(tcp, n)
		named[strconv.Itoa(n)] = n
		if p.Name != nil {
			named[*p.Name] = n
		}
	}
	switch {
	case want != "":
		if named[want] == 0 && len(tcp) > 0 {
			return 0, fmt.Errorf("it has no TCP port %s; name one that it has in pool.kubernetes.services", want)
		}
		return named[want], nil
	case len(tcp) == 0:
		return 0, nil
	case len(tcp) == 1:
		return tcp[0], nil
	case named["http"] != 0:
		return named["http"], nil
	case named[strconv.Itoa(c.Port)] != 0:
		return c.Port, nil
	}
	return tcp[0], fmt.Errorf("it has %d ports and none is called http; %d is taken, name the right one in pool.kubernetes.services as NAME:PORT", len(tcp), tcp[0])
}

const (
	inferenceGroup = "inference.networking.k8s.io"
	// maxTargetPorts is the API's own bound (InferencePool v1, targetPorts).
	maxTargetPorts = 8
)

// inferencePool is what counts of an InferencePool.
type inferencePool struct {
	selector string
	ports    []int
}

// readInferencePool reads spec.selector.matchLabels and spec.targetPorts of
// version v1. Each target port of each pod is an endpoint.
func readInferencePool(u *unstructured.Unstructured) (inferencePool, error) {
	match, _, err := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
	if err != nil {
		return inferencePool{}, err
	}
	if len(match) == 0 {
		return inferencePool{}, fmt.Errorf("spec.selector.matchLabels is empty, which would select every pod")
	}
	p := inferencePool{selector: labels.SelectorFromSet(match).String()}
	list, _, err := unstructured.NestedSlice(u.Object, "spec", "targetPorts")
	if err != nil {
		return inferencePool{}, err
	}
	for i, item := range list {
		m, _ := item.(map[string]any)
		n, ok := m["number"].(int64)
		if !ok || n < 1 || n > 65535 || i >= maxTargetPorts {
			return inferencePool{}, fmt.Errorf("spec.targetPorts[%d]: no port from 1 to 65535 among the first %d", i, maxTargetPorts)
		}
		p.ports = append(p.ports, int(n))
	}
	if len(p.ports) == 0 {
		return inferencePool{}, fmt.Errorf("spec.targetPorts is empty")
	}
	return p, nil
}
