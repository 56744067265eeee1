package extproc

import (
	"strings"

	"github.com/warmpath/warmpath/routing/pool"
)

// Response headers of AIBrix's gateway plugin (AIBrix documentation, "Gateway
// Routing"), for clients that read them, beside routing-strategy. target-pod
// means another thing in a request, where it is an address.
const (
	headerRequestID   = "request-id"
	headerTargetPodIP = "target-pod-ip"
)

// legacy is what clients of AIBrix's gateway read of an answer. What is empty
// is left out.
type legacy struct {
	request, strategy, pod, address string
}

// podName returns the name of an endpoint's pod, which for endpoints from
// Kubernetes is a part of theirs, NAMESPACE/POD:PORT; "" for nil.
func podName(e *pool.Endpoint) string {
	if e == nil {
		return ""
	}
	_, pod, found := strings.Cut(e.Name, "/")
	if !found {
		return e.Name
	}
	pod, _, _ = strings.Cut(pod, ":")
	return pod
}

func (e *encoder) legacy(l *legacy) {
	for _, h := range [...]struct{ name, value string }{
		{headerRequestID, l.request}, {headerStrategy, l.strategy}, {headerTargetPod, l.pod}, {headerTargetPodIP, l.address},
	} {
		if h.value != "" {
			e.setHeader(h.name, h.value)
		}
	}
}
