package extproc

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// TestServer_DrainClosesStreamsWithOK has one stream in each state in which
// Envoy may leave it, and a health watch, which never ends by itself.
func TestServer_DrainClosesStreamsWithOK(t *testing.T) {
	p := newPool(t, 1)
	cfg := testConfig()
	cfg.DrainTimeout = 50 * time.Millisecond
	r := start(t, cfg, toFirst(p), p)
	r.SetReady(true)
	watch, err := r.health.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if w, err := watch.Recv(); err != nil || w.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Fatalf("watch: %v, %v", w, err)
	}
	var streams []extprocv3.ExternalProcessor_ProcessClient
	silent := r.open(t) // opened, nothing sent yet
	waiting := r.open(t)
	exchange(t, waiting, post())
	routed := r.open(t)
	exchange(t, routed, get())
	streams = append(streams, silent, waiting, routed)
	eventually(t, "all streams have reached the server", func() bool { return testutil.ToFloat64(r.metrics.streams) == 3 })

	r.stop()
	for err == nil { // at most one more message, and then the end
		var w *grpc_health_v1.HealthCheckResponse
		if w, err = watch.Recv(); err == nil && w.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("watch during the drain: %v", w)
		}
	}
	for i, st := range streams {
		if m, err := st.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("stream %d ended with %v, %v; want OK", i, m, err)
		}
	}
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if n := p.Snapshot().Endpoints[0].State.InFlight(); n != 0 {
		t.Errorf("in flight after the drain: %d", n)
	}
	r.SetReady(true)
	resp, err := r.Server.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || resp.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health after the drain: %v, %v", resp, err)
	}
}

func TestServer_DrainLetsStreamsEnd(t *testing.T) {
	p := newPool(t, 1)
	r := start(t, testConfig(), toFirst(p), p)
	st := r.open(t)
	exchange(t, st, post())
	r.stop()
	eventually(t, "the drain has begun", func() bool { return r.draining.Err() != nil })
	reply := exchange(t, st, bodyOf([]byte(`{"model":"demo"}`)))
	if reply.GetRequestBody() == nil {
		t.Fatalf("reply during the drain: %v", reply)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("stream ended with %v, want OK", err)
	}
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		begin := time.Now()
		if within(done, time.Second) {
			t.Error("within: true before the channel was closed")
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("within took %s, want 1s", d)
		}
		close(done)
		if !within(done, time.Second) {
			t.Error("within: false for a closed channel")
		}
	})
}
