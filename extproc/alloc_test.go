//go:build !race

package extproc

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"
)

// The race detector makes pools forget, so these do not run under it.

// Reading messages and writing replies allocates nothing.
func TestCodec_Allocations(t *testing.T) {
	raw := requestMessages(t, chatBody(t, 1000), "/v1/chat/completions")
	d := destination{first: "10.0.0.1:8000", all: "10.0.0.1:8000,10.0.0.2:8000,10.0.0.3:8000"}
	o := outcome{strategy: "prefix-cache", reason: "prefix", tokens: "l0", endpoint: d.first, matched: 99}
	var m message
	var reply mem.Buffer
	for name, f := range map[string]func(){
		"request_headers":  func() { _ = m.decode(raw[0]) },
		"request_body":     func() { _ = m.decode(raw[1]) },
		"response_headers": func() { _ = m.decode(raw[2]) },
		"steer":            func() { reply = steer(toRequestBody, d, nil, true); reply.Free() },
		"outcome":          func() { reply = responseHeaders(&o, keepOpen(2, 0)); reply.Free() },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

// A whole request with a real router costs ten allocations: the stream, its
// head's texts, the body, the model, the ids, the promise and its channel, the
// decision, and the target's list of endpoints with the text that names them.
// Of a long prompt the index keeps what it predicts, in pieces.
func TestRequest_Allocations(t *testing.T) {
	p := newPool(t, 3)
	router := newRouter(t, p)
	cfg, m, x := DefaultConfig(), newMetrics(prometheus.NewRegistry()), new(mailbox)
	for ids, most := range map[int]float64{100: 10, 20_000: 16} {
		messages := wire(requestMessages(t, idsBody(ids), "/v1/completions"))
		if n := testing.AllocsPerRun(100, func() { request(t, messages, &cfg, m, p, router, x) }); n > most {
			t.Errorf("%d ids: %v allocations, want at most %v", ids, n, most)
		}
	}
	for _, e := range p.Snapshot().Endpoints {
		if n := e.State.InFlight(); n != 0 {
			t.Errorf("%s: %d in flight after all requests", e.Name, n)
		}
	}
}
