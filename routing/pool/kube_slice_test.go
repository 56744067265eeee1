package pool

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestSlicePort(t *testing.T) {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	port := func(name string, n int32, protocol *corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &n, Protocol: protocol}
	}
	http, metrics, other := port("http", 80, &tcp), port("metrics", 8000, &tcp), port("grpc", 9000, nil)
	for _, tt := range []struct {
		name  string
		ports []discoveryv1.EndpointPort
		want  string
		port  int
		err   string
	}{
		{"none", nil, "", 0, ""},
		{"none yet of that name", nil, "http", 0, ""},
		{"one", []discoveryv1.EndpointPort{other}, "", 9000, ""},
		{"one that is not TCP", []discoveryv1.EndpointPort{port("dns", 53, &udp)}, "", 0, ""},
		{"the one called http", []discoveryv1.EndpointPort{metrics, http}, "", 80, ""},
		{"the configured one", []discoveryv1.EndpointPort{other, metrics}, "", 8000, ""},
		{"the first", []discoveryv1.EndpointPort{other, port("x", 1, &tcp)}, "", 9000, "9000 is taken"},
		{"by name", []discoveryv1.EndpointPort{http, metrics}, "metrics", 8000, ""},
		{"by number", []discoveryv1.EndpointPort{http, metrics}, "8000", 8000, ""},
		{"by a wrong name", []discoveryv1.EndpointPort{http, metrics}, "api", 0, "no TCP port api"},
	} {
		got, err := DefaultConfig().Kubernetes.slicePort(tt.ports, tt.want)
		if got != tt.port || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: port %d, error %v; want %d, %q", tt.name, got, err, tt.port, tt.err)
		}
	}
}

// An endpoint that its pod lists too is one endpoint: the pod's facts, less
// what its Service withholds.
func TestKubernetes_ASliceAndItsPod(t *testing.T) {
	cfg := DefaultConfig().Kubernetes
	p := still(told{name: "kubernetes"})
	q := pod("a", "10.0.0.1", says("warmpath.dev/models", "m"))
	pods, err := cfg.podListings(q, nil, rankPod)
	if err != nil {
		t.Fatal(err)
	}
	n, no := int32(8000), false
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &n}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}, TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "a", UID: q.UID}}},
	}
	slices, err := cfg.sliceListings(slice, ref{"ns", "engines", ""})
	if err != nil {
		t.Fatal(err)
	}
	p.apply(1, []Change{{"slice", slices}, {"pod", pods}})
	s := p.Snapshot()
	if diff := cmp.Diff("ns/a:8000 10.0.0.1:8000 (its EndpointSlice says that it is not ready)", view(s)); diff != "" || s.Endpoints[0].Models[0] != "m" {
		t.Errorf("(-want +got):\n%s\n%+v", diff, s.Endpoints[0])
	}
	slice.AddressType = discoveryv1.AddressTypeFQDN
	if _, err := cfg.sliceListings(slice, ref{}); err == nil || !strings.Contains(err.Error(), "FQDN") {
		t.Errorf("names instead of addresses: error %v", err)
	}
}

func TestReadInferencePool_Faults(t *testing.T) {
	good := map[string]any{"app": "vllm"}
	for _, tt := range []struct {
		pool *unstructured.Unstructured
		want string
	}{
		{inferencePoolObject("p", good, 8000, 8001), ""},
		{inferencePoolObject("p", nil, 8000), "matchLabels is empty"},
		{inferencePoolObject("p", map[string]any{"app": 5.0}, 8000), "matchLabels"},
		{inferencePoolObject("p", good), "targetPorts is empty"},
		{inferencePoolObject("p", good, 8000, 70000), "targetPorts[1]"},
		{inferencePoolObject("p", good, 1, 2, 3, 4, 5, 6, 7, 8, 9), "targetPorts[8]"},
	} {
		p, err := readInferencePool(tt.pool)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v, error %v; want %q", p, err, tt.want)
		}
		if err == nil && (p.selector != "app=vllm" || len(p.ports) != 2) {
			t.Errorf("read as %+v", p)
		}
	}
}
