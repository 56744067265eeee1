package extproc

import (
	"net"
	"strings"

	"github.com/warmpath/warmpath/routing/pool"
)

// The hooks by which the conformance suite of the Gateway API Inference
// Extension tests a gateway through an endpoint picker (its conformance tests,
// and the README of its pkg/lwepp). With them a client chooses its endpoint, so
// they are off unless Config.Conformance is set.
const (
	// headerSelection is a request header: a list of IP or IP:port, separated by
	// commas, to which the candidates are restricted. If it names no candidate it
	// counts for nothing.
	headerSelection = "test-epp-endpoint-selection"
	// headerTestServed is a response header: the endpoint that answered as the
	// gateway reports it in its metadata, or servedMissing. The suite fails a
	// gateway that does not report it, so nothing else stands in for that.
	headerTestServed = "x-conformance-test-served-endpoint"
	servedMissing    = "fail: missing destination endpoint served metadata"
)

// selection restricts allow, a subset as in [message], to the endpoints that a
// value of headerSelection names.
func selection(value string, endpoints []*pool.Endpoint, allow []string) []string {
	named := map[string]bool{}
	for a := range strings.SplitSeq(value, ",") {
		named[strings.TrimSpace(a)] = true
	}
	candidates := allow
	if allow == nil {
		for _, e := range endpoints {
			candidates = append(candidates, e.Address)
		}
	}
	var chosen []string
	for _, a := range candidates {
		ip, _, err := net.SplitHostPort(a)
		if named[a] || err == nil && named[ip] {
			chosen = append(chosen, a)
		}
	}
	if len(chosen) == 0 {
		return allow
	}
	return chosen
}
