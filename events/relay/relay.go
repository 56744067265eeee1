package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/warmpath/warmpath/events"
	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
	"github.com/warmpath/warmpath/kvindex"
)

// Relay is the process beside an engine: it taps the publishers of one
// endpoint, and tells routers what they hold. It implements [events.Taps].
type Relay struct {
	pb.UnimplementedRelayServer
	cfg    Config
	hasher kvindex.Hasher
	seed   uint64
	out    outgoing
	access access
	log    *slog.Logger
	m      *metrics

	mu    sync.Mutex
	rand  *rand.Rand    // guarded by mu
	feeds map[int]*feed // by rank; guarded by mu
	// opened tells Run of new feeds.
	opened chan *feed
}

// New returns a relay that hashes with hasher.
func New(cfg Config, hasher kvindex.Hasher, log *slog.Logger, reg prometheus.Registerer, random *rand.Rand, network Network) (*Relay, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Relay{
		cfg: cfg, hasher: hasher, seed: hasher.Fingerprint(), log: log.With("component", "relay"), m: newMetrics(reg), rand: random,
		out:    outgoing{tls: cfg.TLS, tokenFile: cfg.TokenFile, network: network},
		access: access{mtls: cfg.TLS.ClientCA != "", tokensFile: cfg.TokensFile},
		feeds:  map[int]*feed{}, opened: make(chan *feed, 1024),
	}, nil
}

// Open implements [events.Taps].
func (r *Relay) Open(of events.Subject, w *kvindex.Writer) events.Tap {
	id := Identity{Endpoint: cmp.Or(r.cfg.Endpoint, of.Address), Rank: of.Publisher.Rank, Model: of.Model, Seed: r.seed}
	f := newFeed(r.cfg, id, r.hasher, w, r.m)
	r.mu.Lock()
	r.feeds[id.Rank] = f
	r.mu.Unlock()
	if len(r.cfg.ReportTo) > 0 {
		r.opened <- f
	}
	return f
}

func (r *Relay) feed(rank int) *feed {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.feeds[rank]
}

// jitter returns d changed by up to half of it.
func (r *Relay) jitter(d time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return d/2 + time.Duration(r.rand.Float64()*float64(d))
}

// Run serves on ln, which it closes and which is nil if nothing is served, and
// reports to routers, until ctx ends. What is buffered then is still
// delivered, within the drain timeout: by that time the taps should be closed.
func (r *Relay) Run(ctx context.Context, ln net.Listener) error {
	var served chan error
	var srv *grpc.Server
	if ln != nil {
		creds, err := r.cfg.TLS.server()
		if err != nil {
			_ = ln.Close()
			return err
		}
		srv = grpc.NewServer(append(serverOptions(), grpc.Creds(creds))...)
		pb.RegisterRelayServer(srv, r)
		hs := health.NewServer()
		grpc_health_v1.RegisterHealthServer(srv, hs)
		reflection.Register(srv)
		served = make(chan error, 1)
		go func() { served <- srv.Serve(ln) }()
	}
	reports, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	var failed error
	for running := true; running; {
		select {
		case f := <-r.opened:
			for _, to := range r.cfg.ReportTo {
				wg.Go(func() { r.reportAll(reports, f, to) })
			}
		case failed = <-served:
			running = false
		case <-ctx.Done():
			running = false
		}
	}
	late := time.AfterFunc(r.cfg.DrainTimeout, func() {
		stop()
		if srv != nil {
			srv.Stop()
		}
	})
	defer late.Stop()
	if srv != nil {
		srv.GracefulStop()
	}
	wg.Wait()
	return failed
}

// Subscribe implements the service.
func (r *Relay) Subscribe(req *pb.SubscribeRequest, to grpc.ServerStreamingServer[pb.SubscribeResponse]) error {
	if err := r.access.reader(callerOf(to.Context())); err != nil {
		r.m.refused.Inc()
		r.log.Warn("subscriber refused", "err", err)
		return status.Error(codes.PermissionDenied, err.Error())
	}
	f := r.feed(int(req.GetIdentity().GetRank()))
	if f == nil {
		return status.Error(codes.Unavailable, "the engine is not followed yet: its model is not known, or it has no such rank")
	}
	if err := f.identity.check(req.Identity); err != nil {
		r.m.refused.Inc()
		r.log.Warn("subscriber refused", "err", err, "fingerprint", fmt.Sprintf("%016x", r.seed))
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	r.m.subscribers.Inc()
	defer r.m.subscribers.Dec()
	return r.serve(f, cursorFromWire(req.Cursor), to)
}

// atOnce is how many changes are taken from the log for one follower before
// it is looked whether it has fallen behind.
const atOnce = 64

// errEnded ends the stream of a publisher that is followed no more.
var errEnded = status.Error(codes.Unavailable, "the relay no longer follows the engine")

// serve follows f from c on for one subscriber. Whatever waits for a slow one
// waits here, in one message: the log goes on, and once it has dropped what
// comes next the subscriber gets a snapshot.
func (r *Relay) serve(f *feed, c cursor, to grpc.ServerStreamingServer[pb.SubscribeResponse]) error {
	head := f.head()
	hello := &pb.Hello{Identity: f.identity.wire(head.incarnation), Cursor: head.wire(), HeartbeatMs: uint32(r.cfg.Heartbeat.Milliseconds())}
	if err := to.Send(&pb.SubscribeResponse{Message: &pb.SubscribeResponse_Hello{Hello: hello}}); err != nil {
		return err
	}
	beat := time.NewTicker(r.cfg.Heartbeat)
	defer beat.Stop()
	for {
		v := f.next(c, atOnce)
		switch {
		case v.snapshot != nil:
			for _, m := range v.snapshot.responses() {
				if err := to.Send(m); err != nil {
					return err
				}
			}
			c = v.snapshot.cursor()
			continue
		case len(v.deltas) > 0:
			for _, d := range v.deltas {
				if err := to.Send(&pb.SubscribeResponse{Message: &pb.SubscribeResponse_Delta{Delta: d}}); err != nil {
					return err
				}
			}
			c.sequence = v.deltas[len(v.deltas)-1].Sequence
			continue
		case v.closed:
			return errEnded
		}
		select {
		case <-v.changed:
		case <-beat.C:
			h := &pb.Heartbeat{Cursor: v.head.wire(), EngineSequence: v.engine}
			if err := to.Send(&pb.SubscribeResponse{Message: &pb.SubscribeResponse_Heartbeat{Heartbeat: h}}); err != nil {
				return err
			}
		case <-to.Context().Done():
			return to.Context().Err()
		}
	}
}

func (s *snapshot) cursor() cursor { return cursorFromWire(s.begin.Cursor) }

func (s *snapshot) responses() []*pb.SubscribeResponse {
	out := []*pb.SubscribeResponse{{Message: &pb.SubscribeResponse_SnapshotBegin{SnapshotBegin: s.begin}}}
	for _, p := range s.parts {
		out = append(out, &pb.SubscribeResponse{Message: &pb.SubscribeResponse_SnapshotPart{SnapshotPart: p}})
	}
	return append(out, &pb.SubscribeResponse{Message: &pb.SubscribeResponse_SnapshotEnd{SnapshotEnd: s.end}})
}

func (s *snapshot) reports() []*pb.CacheStateReport {
	out := []*pb.CacheStateReport{{Message: &pb.CacheStateReport_SnapshotBegin{SnapshotBegin: s.begin}}}
	for _, p := range s.parts {
		out = append(out, &pb.CacheStateReport{Message: &pb.CacheStateReport_SnapshotPart{SnapshotPart: p}})
	}
	return append(out, &pb.CacheStateReport{Message: &pb.CacheStateReport_SnapshotEnd{SnapshotEnd: s.end}})
}

// errDrained: everything was delivered and nothing more will come.
var errDrained = errors.New("relay: all is delivered")
