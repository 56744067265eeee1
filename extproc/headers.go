package extproc

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
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
	headerProfile  = "config-profile"
	headerFilter   = "external-filter"

	// prefixOwn begins every header that is ours alone.
	prefixOwn           = "x-warmpath-"
	headerEndpoint      = prefixOwn + "endpoint"
	headerUsedStrategy  = prefixOwn + "strategy"
	headerMatchedTokens = prefixOwn + "matched-tokens"
	headerReason        = prefixOwn + "reason"
	headerTokens        = prefixOwn + "tokens"

	attributeNamespace = "envoy.filters.http.ext_proc"
	attributeUpstream  = "upstream.address"
)

// guarded are the request headers that steer a request. Copies sent by a
// client are removed or overwritten by every reply, seen or not: forward_rules
// may hide a header from us that Envoy still obeys.
var guarded = []string{
	headerDestination, keyServed, headerTargetPod, headerRank,
	headerEndpoint, headerUsedStrategy, headerMatchedTokens, headerReason, headerTokens,
}

// RoutingHeaders returns the names of the request headers that choose an
// endpoint, or say who chose it, for Envoy or for an engine. The proxy should
// remove a client's copies of them before anything reads them.
func RoutingHeaders() []string { return slices.Clone(guarded) }

// head is what we need of a request's headers.
type head struct {
	method, path, mediaType, contentType, encoding string
	strategy, profile, filter, id, user, session   string
	// selection is that of the conformance suite.
	selection string
	// length is the content-length, -1 if there is none.
	length int64
	// forged are the names of headers with our prefix that are not in guarded.
	forged []string
}

// readHead reads the headers of a request. A header that occurs twice has the
// value of its first occurrence. The result borrows nothing: its texts share
// one allocation.
func readHead(headers []header) head {
	h := head{length: -1}
	// The headers that are kept, and where they go.
	wanted := [...]struct {
		to    *string
		value []byte
	}{
		{to: &h.method},
		{to: &h.path},
		{to: &h.contentType},
		{to: &h.encoding},
		{to: &h.strategy},
		{to: &h.id},
		{to: &h.user},
		{to: &h.session},
		{to: &h.profile},
		{to: &h.filter},
		{to: &h.selection},
	}
	for _, kv := range headers {
		name := kv.name
		// Envoy's names are in lower case; others may not be that careful.
		if !isLower(name) {
			name = bytes.ToLower(name)
		}
		i := -1
		switch string(name) {
		case ":method":
			i = 0
		case ":path":
			i = 1
		case "content-type":
			i = 2
		case "content-encoding":
			i = 3
		case headerStrategy:
			i = 4
		case "x-request-id":
			i = 5
		case "user":
			i = 6
		case "x-session-id":
			i = 7
		case headerProfile:
			i = 8
		case headerFilter:
			i = 9
		case headerSelection:
			i = 10
		case "content-length":
			if n, err := strconv.ParseInt(string(kv.value), 10, 64); err == nil && n >= 0 {
				h.length = n
			}
		case headerEndpoint, headerUsedStrategy, headerMatchedTokens, headerReason, headerTokens:
		default:
			if bytes.HasPrefix(name, []byte(prefixOwn)) {
				h.forged = append(h.forged, string(kv.name))
			}
		}
		if i >= 0 && len(wanted[i].value) == 0 {
			wanted[i].value = kv.value
		}
	}
	size := 0
	for _, w := range wanted {
		size += len(w.value)
	}
	var texts strings.Builder
	texts.Grow(size)
	for _, w := range wanted {
		texts.Write(w.value)
	}
	rest := texts.String()
	for _, w := range wanted {
		*w.to, rest = rest[:len(w.value)], rest[len(w.value):]
	}
	if i := strings.IndexAny(h.path, "?#"); i >= 0 {
		h.path = h.path[:i]
	}
	media, _, _ := strings.Cut(h.contentType, ";")
	h.mediaType = strings.ToLower(strings.TrimSpace(media))
	h.encoding = strings.ToLower(strings.TrimSpace(h.encoding))
	return h
}

// isLower tells whether a name has nothing that [bytes.ToLower] could change.
func isLower(name []byte) bool {
	for _, c := range name {
		if c >= 'A' && c <= 'Z' || c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
