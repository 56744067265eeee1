//go:build !race

package extproc

import (
	"runtime/debug"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"

	"github.com/warmpath/warmpath/routing"
)

// The race detector makes pools forget, so these do not run under it.

// Reading messages and writing replies allocates nothing.
func TestCodec_Allocations(t *testing.T) {
	raw := requestMessages(t, chatBody(t, 1000), "/v1/chat/completions")
	d := destination{first: "10.0.0.1:8000", all: "10.0.0.1:8000,10.0.0.2:8000,10.0.0.3:8000"}
	o := outcome{strategy: "prefix-cache", reason: "prefix", tokens: "l0", endpoint: d.first, matched: 99}
	named := legacy{request: "6b0f3c54-6f0e-4d0b-9f5e-2f6f0f8a9b1c", strategy: "prefix-cache", pod: "llama-0", address: d.first}
	var m message
	var reply mem.Buffer
	for name, f := range map[string]func(){
		"request_headers":  func() { _ = m.decode(raw[0]) },
		"request_body":     func() { _ = m.decode(raw[1]) },
		"response_headers": func() { _ = m.decode(raw[2]) },
		"steer":            func() { reply = steer(toRequestBody, d, nil, true); reply.Free() },
		"aibrix":           func() { reply = responseHeaders(&o, &named, "", keepOpen(2, 0)); reply.Free() },
		"outcome":          func() { reply = responseHeaders(&o, nil, "", keepOpen(2, 0)); reply.Free() },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

// A whole request costs seven allocations besides those of the router's own
// decision, whatever its size: the stream, its head's texts, the model, the
// promise and its channel, the resolution, and the text that names several
// endpoints. With a real router and a short prompt they are ten at most.
func TestRequest_Allocations(t *testing.T) {
	// A collection empties pools, which are then filled again.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	p := newPool(t, 3)
	endpoints := p.Snapshot().Endpoints
	decided := routerFunc(func(c *routing.Context) {
		endpoints[0].State.Reserve(0)
		c.SetTarget(routing.Target{Endpoints: endpoints, Strategy: "first", Reason: routing.ReasonLoad})
	})
	router := newRouter(t, p)
	cfg, m, x := DefaultConfig(), newMetrics(prometheus.NewRegistry()), &mailbox{memories: new(memories)}
	for _, tc := range []struct {
		name   string
		router Router
		ids    int
		most   float64
	}{
		{"a decided request", decided, 100, 7},
		{"a long one", decided, 20_000, 7},
		{"a real router", router, 100, 10},
	} {
		messages := wire(requestMessages(t, idsBody(tc.ids), "/v1/completions"))
		if n := testing.AllocsPerRun(100, func() { request(t, messages, &cfg, m, p, tc.router, x) }); n > tc.most {
			t.Errorf("%s: %v allocations, want at most %v", tc.name, n, tc.most)
		}
	}
	for _, e := range endpoints {
		if n := e.State.InFlight(); n != 0 {
			t.Errorf("%s: %d in flight after all requests", e.Name, n)
		}
	}
}
