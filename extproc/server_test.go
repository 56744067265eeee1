package extproc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// routerFunc is a router made of one function.
type routerFunc func(*routing.Context)

func (f routerFunc) Route(c *routing.Context) { f(c) }

// toFirst sends every request to the first endpoint of p.
func toFirst(p *pool.Pool) routerFunc {
	return func(c *routing.Context) {
		e := p.Snapshot().Endpoints[0]
		e.State.Reserve(0)
		c.SetTarget(routing.Target{Endpoints: []*pool.Endpoint{e}, Strategy: "first", Reason: routing.ReasonLoad})
	}
}

// running is a server under test on loopback, and a client of it.
type running struct {
	*Server
	client extprocv3.ExternalProcessorClient
	health grpc_health_v1.HealthClient
	// stop begins the drain, done brings what Run returned.
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, cfg Config, router Router, p *pool.Pool) *running {
	t.Helper()
	return startWith(t, cfg, router, p, insecure.NewCredentials())
}

func startWith(t *testing.T, cfg Config, router Router, p *pool.Pool, creds credentials.TransportCredentials) *running {
	t.Helper()
	s, err := New(cfg, router, p, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(1<<30), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{
		Server: s, client: extprocv3.NewExternalProcessorClient(conn), health: grpc_health_v1.NewHealthClient(conn),
		stop: cancel, done: make(chan error, 1),
	}
	exited := make(chan struct{})
	go func() {
		r.done <- s.Run(ctx, l)
		close(exited)
	}()
	t.Cleanup(func() {
		conn.Close()
		cancel()
		<-exited
	})
	return r
}

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.DrainDelay = 0
	return cfg
}

func (r *running) open(t *testing.T) extprocv3.ExternalProcessor_ProcessClient {
	t.Helper()
	st, err := r.client.Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// exchange sends one message and returns the reply.
func exchange(t *testing.T, st extprocv3.ExternalProcessor_ProcessClient, req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	t.Helper()
	if err := st.Send(req); err != nil {
		t.Fatal(err)
	}
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func headersOf(eos bool, kv ...string) *extprocv3.ProcessingRequest {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(kv); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: kv[i], RawValue: []byte(kv[i+1])})
	}
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{
			RequestHeaders: &extprocv3.HttpHeaders{Headers: m, EndOfStream: eos},
		},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: modev3.ProcessingMode_BUFFERED},
	}
}

func get() *extprocv3.ProcessingRequest {
	return headersOf(true, ":method", "GET", ":path", "/v1/models")
}

func post() *extprocv3.ProcessingRequest {
	return headersOf(false, ":method", "POST", ":path", "/v1/completions", "content-type", "application/json")
}

func bodyOf(body []byte) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: body, EndOfStream: true},
	}}
}

// eventually waits for a condition that another goroutine is about to make
// true, at most for a few seconds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (r *running) check(t *testing.T, service string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	t.Helper()
	resp, err := r.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		t.Fatalf("health of %q: %v", service, err)
	}
	return resp.GetStatus()
}

func TestServer_ReleasesInFlightAtEveryEnd(t *testing.T) {
	ends := map[string]func(st extprocv3.ExternalProcessor_ProcessClient, cancel context.CancelFunc){
		"end":   func(st extprocv3.ExternalProcessor_ProcessClient, _ context.CancelFunc) { st.CloseSend() },
		"abort": func(_ extprocv3.ExternalProcessor_ProcessClient, cancel context.CancelFunc) { cancel() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, 1)
			r := start(t, testConfig(), toFirst(p), p)
			state := p.Snapshot().Endpoints[0].State
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			st, err := r.client.Process(ctx)
			if err != nil {
				t.Fatal(err)
			}
			reply := exchange(t, st, get())
			if reply.GetRequestHeaders() == nil {
				t.Fatalf("reply to a GET: %v", reply)
			}
			if n := state.InFlight(); n != 1 {
				t.Fatalf("in flight while the answer runs: %d, want 1", n)
			}
			if n := testutil.ToFloat64(r.metrics.streams); n != 1 {
				t.Fatalf("streams gauge: %v, want 1", n)
			}
			end(st, cancel)
			eventually(t, "in flight is 0", func() bool { return state.InFlight() == 0 })
			eventually(t, "streams gauge is 0", func() bool { return testutil.ToFloat64(r.metrics.streams) == 0 })
		})
	}
}

func TestServer_AbortWhileUndecidedLeavesNothing(t *testing.T) {
	p := newPool(t, 1)
	asked := make(chan *routing.Context, 1)
	r := start(t, testConfig(), routerFunc(func(c *routing.Context) { asked <- c }), p)
	ctx, cancel := context.WithCancel(t.Context())
	st, err := r.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(get()); err != nil {
		t.Fatal(err)
	}
	promise := <-asked
	cancel()
	<-promise.Done()
	eventually(t, "the stream is gone", func() bool { return testutil.ToFloat64(r.metrics.streams) == 0 })
	e := p.Snapshot().Endpoints[0]
	e.State.Reserve(7)
	if promise.SetTarget(routing.Target{Endpoints: []*pool.Endpoint{e}}) {
		t.Error("a promise was resolved after its request had ended")
	}
	if n := e.State.InFlight(); n != 0 {
		t.Errorf("in flight after a late resolver: %d, want 0", n)
	}
	if n := testutil.ToFloat64(r.metrics.requests[routing.ReasonCanceled]); n != 1 {
		t.Errorf("canceled requests: %v, want 1", n)
	}
}

func TestServer_AnswersBeforeTheDeadline(t *testing.T) {
	p := newPool(t, 1)
	cfg := testConfig()
	cfg.DecisionTimeout = 20 * time.Millisecond
	r := start(t, cfg, routerFunc(func(*routing.Context) {}), p)
	i := exchange(t, r.open(t), get()).GetImmediateResponse()
	if i.GetStatus().GetCode() != 503 || i.GetDetails() != "timeout" {
		t.Fatalf("reply without a decision: %v", i)
	}
}

func TestServer_DecidesLater(t *testing.T) {
	p := newPool(t, 1)
	asked := make(chan *routing.Context, 1)
	r := start(t, testConfig(), routerFunc(func(c *routing.Context) { asked <- c }), p)
	st := r.open(t)
	if err := st.Send(get()); err != nil {
		t.Fatal(err)
	}
	toFirst(p)(<-asked)
	reply, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if reply.GetRequestHeaders() == nil || reply.GetDynamicMetadata() == nil {
		t.Fatalf("reply after a late decision: %v", reply)
	}
}

func TestServer_SamplesAnswers(t *testing.T) {
	p := newPool(t, 1)
	cfg := testConfig()
	cfg.SampleResponses = 0.5
	r := start(t, cfg, toFirst(p), p)
	streamed := 0
	for range 20 {
		st := r.open(t)
		exchange(t, st, get())
		reply := exchange(t, st, &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
			ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(":status: 200\ncontent-type: application/json")},
		}})
		if reply.GetModeOverride().GetResponseBodyMode() == modev3.ProcessingMode_STREAMED {
			streamed++
		}
		if err := st.CloseSend(); err != nil {
			t.Fatal(err)
		}
	}
	if streamed < 9 || streamed > 11 {
		t.Errorf("%d of 20 answers were sampled, want half of them", streamed)
	}
}

func TestServer_SurvivesPanics(t *testing.T) {
	p := newPool(t, 1)
	first := true
	r := start(t, testConfig(), routerFunc(func(c *routing.Context) {
		if first {
			first = false
			panic("planted")
		}
		toFirst(p)(c)
	}), p)
	st := r.open(t)
	if err := st.Send(get()); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("stream with a fault ended with %v, want OK", err)
	}
	if n := testutil.ToFloat64(r.metrics.panics); n != 1 {
		t.Errorf("panics: %v, want 1", n)
	}
	if exchange(t, r.open(t), get()).GetRequestHeaders() == nil {
		t.Error("the next request was not routed")
	}
}

func TestServer_LimitsBodies(t *testing.T) {
	p := newPool(t, 1)
	cfg := testConfig()
	cfg.MaxBodyBytes = 1 << 20
	r := start(t, cfg, toFirst(p), p)
	body := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = ' '
		}
		copy(b, `{"model":"demo"}`)
		return b
	}
	for _, tc := range []struct {
		name string
		size int
		ok   bool
	}{
		{"at the limit", cfg.MaxBodyBytes, true},
		{"above the limit", cfg.MaxBodyBytes + 1, false},
		{"the largest message", cfg.MaxBodyBytes + framing - 4096, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := r.open(t)
			exchange(t, st, post())
			reply := exchange(t, st, bodyOf(body(tc.size)))
			if tc.ok {
				if reply.GetRequestBody() == nil {
					t.Fatalf("reply: %v", reply)
				}
			} else if i := reply.GetImmediateResponse(); i.GetStatus().GetCode() != 413 || i.GetDetails() != "body_too_large" {
				t.Fatalf("reply: %v", reply)
			}
		})
	}
}

func TestServer_Health(t *testing.T) {
	p := newPool(t, 1)
	r := start(t, testConfig(), toFirst(p), p)
	names := []string{"", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"}
	for _, ready := range []bool{false, true, false} {
		r.SetReady(ready)
		want := grpc_health_v1.HealthCheckResponse_NOT_SERVING
		if ready {
			want = grpc_health_v1.HealthCheckResponse_SERVING
		}
		for _, n := range names {
			if got := r.check(t, n); got != want {
				t.Errorf("ready %v: %q is %s, want %s", ready, n, got, want)
			}
		}
		if got := r.check(t, "liveness"); got != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("ready %v: liveness is %s", ready, got)
		}
	}
	if _, err := r.health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: %v, want NotFound", err)
	}
}
