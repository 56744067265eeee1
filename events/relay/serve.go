package relay

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	pb "github.com/warmpath/warmpath/events/relay/cachestatepb"
)

// Server is what a router serves to relays, to routers that start, and to tools.
type Server struct {
	pb.UnimplementedCacheStateServer
	pb.UnimplementedPeerServer
	cfg    RouterConfig
	source *Source
	reader *reader
	access access
	log    *slog.Logger
	// telling has room for the routers that are told at once; tellers counts the
	// goroutines that do.
	telling chan struct{}
	tellers sync.WaitGroup
	// tellLimit bounds how long one router is told: it could be one that reads
	// nothing.
	tellLimit time.Duration
}

// NewServer returns the server of a router whose publishers source feeds, and
// of which view shows the state.
func NewServer(cfg RouterConfig, source *Source, view View, log *slog.Logger) *Server {
	a := access{mtls: cfg.TLS.ClientCA != "", tokensFile: cfg.TokensFile}
	return &Server{
		cfg: cfg, source: source, log: log.With("component", "cachestate"), access: a,
		reader: &reader{View: view, access: a, m: source.m}, telling: make(chan struct{}, maxTelling), tellLimit: time.Minute,
	}
}

// stopWait bounds how long Run waits for calls at its end: streams have no end
// of their own.
const stopWait = time.Second

// Run serves on ln, which it closes, until ctx ends.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	creds, err := s.cfg.TLS.server()
	if err != nil {
		_ = ln.Close()
		return err
	}
	srv := grpc.NewServer(append(serverOptions(), grpc.Creds(creds))...)
	pb.RegisterCacheStateServer(srv, s)
	pb.RegisterReaderServer(srv, s.reader)
	pb.RegisterPeerServer(srv, s)
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	reflection.Register(srv)
	defer s.tellers.Wait()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	late := time.AfterFunc(stopWait, srv.Stop)
	defer late.Stop()
	srv.GracefulStop()
	return <-served
}
