package extproc

import (
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// The names of the endpoint picker protocol (Gateway API Inference Extension,
// proposal 004).
const (
	// headerDestination carries the chosen endpoint and its fallbacks, as a
	// header and as a key of the dynamic metadata namespaceLB.
	headerDestination = "x-gateway-destination-endpoint"
	// keyServed is what the proxy reports in namespaceLB: who answered.
	keyServed   = "x-gateway-destination-endpoint-served"
	namespaceLB = "envoy.lb"
	// keySubset in namespaceSubset restricts the candidates.
	keySubset       = "x-gateway-destination-endpoint-subset"
	namespaceSubset = "envoy.lb.subset_hint"
)

// Other names of headers and attributes.
const (
	// headerTargetPod carries the first endpoint alone, for clusters of type
	// ORIGINAL_DST, which take no list.
	headerTargetPod = "target-pod"
	// headerRank selects a data-parallel rank inside an endpoint.
	headerRank     = "x-data-parallel-rank"
	headerStrategy = "routing-strategy"

	// prefixOwn begins every header that is ours alone.
	prefixOwn           = "x-warmpath-"
	headerEndpoint      = prefixOwn + "endpoint"
	headerUsedStrategy  = prefixOwn + "strategy"
	headerMatchedTokens = prefixOwn + "matched-tokens"
	headerReason        = prefixOwn + "reason"

	attributeNamespace = "envoy.filters.http.ext_proc"
	attributeUpstream  = "upstream.address"
)

// guarded are the request headers that steer a request. Copies sent by a
// client are removed or overwritten by every reply, seen or not: forward_rules
// may hide a header from us that Envoy still obeys.
var guarded = []string{
	headerDestination, headerTargetPod, headerRank,
	headerEndpoint, headerUsedStrategy, headerMatchedTokens, headerReason,
}

// head is what we need of a request's headers.
type head struct {
	method, path, mediaType, contentType, encoding string
	strategy, id, user, session                    string
	// length is the content-length, -1 if there is none.
	length int64
	// forged are the names of headers with our prefix that are not in guarded.
	forged []string
}

// readHead reads the headers of a request. A header that occurs twice has the
// value of its first occurrence.
func readHead(headers *corev3.HeaderMap) head {
	h := head{length: -1}
	for _, kv := range headers.GetHeaders() {
		name := kv.GetKey()
		// Envoy's names are in lower case; others may not be that careful.
		switch lower := strings.ToLower(name); lower {
		case ":method":
			first(&h.method, kv)
		case ":path":
			first(&h.path, kv)
		case "content-type":
			first(&h.contentType, kv)
		case "content-encoding":
			first(&h.encoding, kv)
		case "content-length":
			if n, err := strconv.ParseInt(text(kv), 10, 64); err == nil && n >= 0 {
				h.length = n
			}
		case headerStrategy:
			first(&h.strategy, kv)
		case "x-request-id":
			first(&h.id, kv)
		case "user":
			first(&h.user, kv)
		case "x-session-id":
			first(&h.session, kv)
		case headerEndpoint, headerUsedStrategy, headerMatchedTokens, headerReason:
		default:
			if strings.HasPrefix(lower, prefixOwn) {
				h.forged = append(h.forged, name)
			}
		}
	}
	if i := strings.IndexAny(h.path, "?#"); i >= 0 {
		h.path = h.path[:i]
	}
	media, _, _ := strings.Cut(h.contentType, ";")
	h.mediaType = strings.ToLower(strings.TrimSpace(media))
	h.encoding = strings.ToLower(strings.TrimSpace(h.encoding))
	return h
}

func first(dst *string, kv *corev3.HeaderValue) {
	if *dst == "" {
		*dst = text(kv)
	}
}

// text returns a header's value: Envoy sends it as raw bytes, older versions
// as a string.
func text(kv *corev3.HeaderValue) string {
	if raw := kv.GetRawValue(); len(raw) > 0 {
		return string(raw)
	}
	return kv.GetValue()
}

// subset returns the endpoints to which the metadata of a request restricts
// it: nil if it does not, and not nil but empty if it allows none. A key that
// is set to something unreadable allows none: the protocol says that a set key
// must be obeyed.
func subset(m *corev3.Metadata) []string {
	v, ok := m.GetFilterMetadata()[namespaceSubset].GetFields()[keySubset]
	if !ok {
		return nil
	}
	allowed := []string{}
	switch v := v.GetKind().(type) {
	case *structpb.Value_ListValue:
		for _, e := range v.ListValue.GetValues() {
			if s := strings.TrimSpace(e.GetStringValue()); s != "" {
				allowed = append(allowed, s)
			}
		}
	case *structpb.Value_StringValue:
		for s := range strings.SplitSeq(v.StringValue, ",") {
			if s = strings.TrimSpace(s); s != "" {
				allowed = append(allowed, s)
			}
		}
	}
	return allowed
}

// served returns the ip:port that answered, empty if Envoy does not say.
func served(req *extprocv3.ProcessingRequest) string {
	lb := req.GetMetadataContext().GetFilterMetadata()[namespaceLB]
	if s := lb.GetFields()[keyServed].GetStringValue(); s != "" {
		return s
	}
	return req.GetAttributes()[attributeNamespace].GetFields()[attributeUpstream].GetStringValue()
}
