package extproc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protobuf "google.golang.org/grpc/encoding/proto"
	experimental "google.golang.org/grpc/experimental/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
)

// Router decides where requests go.
type Router interface {
	// Route has the promise resolved, before it returns or later. It must
	// bound its own work: the decision's deadline is enforced after it returns.
	// The request's prompt is lent until the promise is resolved.
	Route(*routing.Context)
}

// Snapshots gives the newest snapshot of the endpoints, without blocking.
type Snapshots interface {
	Snapshot() *pool.Snapshot
}

// framing is how much larger than its body a message may be: its framing,
// metadata and attributes.
const framing = 1 << 20

// Server answers Envoy's external processing streams. Its methods are safe for
// concurrent use, but Run may be called only once.
type Server struct {
	cfg       Config
	router    Router
	snapshots Snapshots
	log       *slog.Logger
	metrics   *metrics
	health    *health.Server
	sampler   sampler
	// mailboxes has those that no stream uses, memories the memory of bodies
	// that no request uses.
	mailboxes sync.Pool
	memories  memories
	turns     *turns
	// certificates is nil without TLS.
	certificates *certificates
	// answers numbers the streams, for the sampler.
	answers atomic.Uint64
	// readiness guards what SetReady does against the begin of the drain.
	readiness sync.Mutex

	// draining ends when Run begins to drain: the server is unready for good.
	draining context.Context
	drainNow context.CancelFunc

	// closing ends when running streams are to be closed; closeStreams ends it.
	closing      context.Context
	closeStreams context.CancelFunc
	// streams are the goroutines of all streams; one may outlive its handler
	// for a moment.
	streams sync.WaitGroup
}

// New returns a server that reports itself as not ready. It takes no
// connections before Run.
func New(cfg Config, router Router, snapshots Snapshots, log *slog.Logger, reg prometheus.Registerer) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, router: router, snapshots: snapshots,
		log: log.With("component", "extproc"), metrics: newMetrics(reg), health: health.NewServer(),
		sampler: newSampler(cfg.SampleResponses),
	}
	s.mailboxes.New = func() any { return &mailbox{memories: &s.memories} }
	s.turns = newTurns(cfg.concurrentBodyBytes(), cfg.DecisionTimeout, s.metrics)
	if cfg.TLS.enabled() {
		var err error
		if s.certificates, err = newCertificates(cfg.TLS, s.log); err != nil {
			return nil, err
		}
	}
	if cfg.Conformance {
		s.log.Warn("clients may choose endpoints by the header " + headerSelection + ": extproc.conformance is meant for the conformance suite only")
	}
	s.draining, s.drainNow = context.WithCancel(context.Background())
	s.closing, s.closeStreams = context.WithCancel(context.Background())
	s.health.SetServingStatus(serviceLiveness, grpc_health_v1.HealthCheckResponse_SERVING)
	s.SetReady(false)
	return s, nil
}

// Run serves on listener, which it closes, until ctx ends. Then it drains: it
// reports itself as not ready, serves on for the drain delay, takes no new
// requests and waits for the running ones. Those that are left after the drain
// timeout have their streams closed without an error, which Envoy takes as
// leave to go on without us. Run returns nil after a drain.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.cfg.MaxBodyBytes + framing),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(protobuf.Name)}),
	}
	if s.certificates != nil {
		// Envoy negotiates no protocol (ALPN) unless it is told to, and Envoy
		// Gateway does not tell it by a BackendTLSPolicy.
		options = append(options, grpc.Creds(experimental.NewTLSWithALPNDisabled(s.certificates.server())))
	}
	g := grpc.NewServer(options...)
	g.RegisterService(&service, s)
	grpc_health_v1.RegisterHealthServer(g, &watchable{Server: s.health, ended: s.draining})

	var tidying sync.WaitGroup
	defer tidying.Wait()
	tidying.Go(s.tidy)
	served := make(chan error, 1)
	go func() { served <- g.Serve(listener) }()
	select {
	case err := <-served:
		s.drainNow()
		s.closeStreams()
		g.Stop()
		s.streams.Wait()
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	s.drain(g)
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", listener.Addr(), err)
	}
	return nil
}

// tidy deletes the series of endpoints that leave the pool, until the server
// closes its streams.
func (s *Server) tidy() {
	for {
		snapshot := s.snapshots.Snapshot()
		s.metrics.retain(snapshot.Endpoints)
		select {
		case <-snapshot.Superseded():
		case <-s.closing.Done():
			return
		}
	}
}

// stopGrace is how long closed streams may take to be gone.
const stopGrace = 5 * time.Second

func (s *Server) drain(g *grpc.Server) {
	s.drainNow()
	s.SetReady(false)
	s.log.Info("draining", "delay", s.cfg.DrainDelay, "timeout", s.cfg.DrainTimeout)
	time.Sleep(s.cfg.DrainDelay)
	ended := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(ended)
	}()
	if !within(ended, s.cfg.DrainTimeout) {
		s.log.Info("closing the streams that are left")
		s.closeStreams()
		if !within(ended, stopGrace) {
			s.log.Warn("cutting connections whose streams do not end")
			g.Stop()
			<-ended
		}
	}
	s.closeStreams()
	s.streams.Wait()
	s.log.Info("drained")
}

// within reports whether done is closed before d has passed.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// service describes envoy.service.ext_proc.v3.ExternalProcessor without the
// generated API, which would decode and encode every message.
var service = grpc.ServiceDesc{
	ServiceName: extprocv3.ExternalProcessor_ServiceDesc.ServiceName,
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{{
		StreamName:    "Process",
		Handler:       func(s any, g grpc.ServerStream) error { return s.(*Server).process(g) },
		ServerStreams: true,
		ClientStreams: true,
	}},
	Metadata: extprocv3.ExternalProcessor_ServiceDesc.Metadata,
}

// process runs one stream. It always returns nil: an error status would make
// Envoy fail the request, or cut its answer, where it is configured to fail
// closed.
//
// The stream runs on a goroutine of its own, because a stream can be ended with
// OK only by its handler's return, and nothing else than the end of the stream
// wakes a call of Recv.
func (s *Server) process(g grpc.ServerStream) error {
	ended := make(chan struct{})
	s.streams.Go(func() {
		defer close(ended)
		s.serve(g)
	})
	select {
	case <-ended:
	case <-s.closing.Done():
	}
	return nil
}

// serve runs one stream until it ends.
func (s *Server) serve(g grpc.ServerStream) {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	defer func() {
		if p := recover(); p != nil {
			s.metrics.panics.Inc()
			s.log.Error("panic: the request goes on unrouted", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	st := stream{cfg: &s.cfg, snapshots: s.snapshots, metrics: s.metrics, ctx: g.Context()}
	if s.cfg.SampleResponses > 0 {
		st.sampled = s.sampler.picks(s.answers.Add(1))
	}
	defer func() { st.end(time.Now(), s.closing.Err() != nil) }()
	x := s.mailboxes.Get().(*mailbox)
	defer func() { x.abandon(); s.mailboxes.Put(x) }()
	for {
		before := st.phase
		turn := s.turns.next(g.Context(), st.expected())
		now, ok := s.handle(g, &st, x, turn.waited)
		turn.done()
		if !ok {
			return
		}
		for _, r := range st.take() {
			x.sent.data = r
			if g.SendMsg(&x.sent) != nil {
				return
			}
		}
		if before <= phaseBody && st.phase > phaseDeciding {
			s.metrics.decision.Observe(time.Since(now).Seconds())
		}
	}
}

// handle receives one message, and decides on the request if that is called
// for. It returns when the message came, and false at the end of the stream.
// The message may have waited here for some time already.
func (s *Server) handle(g grpc.ServerStream, st *stream, x *mailbox, waited time.Duration) (now time.Time, ok bool) {
	if g.RecvMsg(&x.received) != nil {
		return now, false
	}
	now = time.Now()
	decide, err := s.step(st, x, now)
	if err != nil {
		return now, false
	}
	settled := true
	if decide {
		s.router.Route(st.promise)
		// Who resolves a promise later may still be reading the prompt.
		settled = st.promise.HasRouted()
		st.decided(s.await(st.promise, now.Add(-waited)))
	}
	if settled && !st.refers() {
		x.recycle()
	}
	x.abandon()
	return now, true
}

// step hands the message that has been received to st.
func (s *Server) step(st *stream, x *mailbox, now time.Time) (decide bool, err error) {
	defer x.close()
	if err := x.open(); err != nil {
		s.metrics.message(kindMalformed)
		return false, err
	}
	return st.receive(&x.message, now), nil
}

// await waits for the promise until the deadline of a decision on a request
// that arrived at start, or was let wait by its strategy until the promise says.
func (s *Server) await(p *routing.Context, start time.Time) (routing.Target, *routing.Error) {
	if p.HasRouted() {
		return p.Target(p)
	}
	if until := p.Until(); until.After(start) {
		start = until
	}
	ctx, cancel := context.WithDeadline(context.Background(), start.Add(s.cfg.DecisionTimeout))
	defer cancel()
	return p.Target(ctx)
}
