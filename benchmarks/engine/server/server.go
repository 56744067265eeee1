package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/warmpath/warmpath/benchmarks/engine"
	"golang.org/x/sync/errgroup"
)

// shutdownTimeout bounds the wait for handlers at the end of Run.
const shutdownTimeout = 5 * time.Second

// Server is one fake inference engine. It is run once.
type Server struct {
	cfg       Config
	logger    *slog.Logger
	engine    engine.Config // with defaults
	tokenizer *engine.Tokenizer
	driver    *driver
	metrics   *metrics
	registry  *prometheus.Registry
	faults    faultState

	// What follows is written by Run before ready is closed.
	started   time.Time
	listener  net.Listener
	publisher *publisher // nil without events
	ready     chan struct{}
}

// New returns a server that is not listening yet.
func New(cfg Config, logger *slog.Logger) (*Server, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tokenizer := engine.NewTokenizer()
	if cfg.Engine.Output == nil {
		cfg.Engine.Output = tokenizer.Continue
	}
	core, err := engine.New(cfg.Engine)
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		logger:    logger,
		engine:    core.Config(),
		tokenizer: tokenizer,
		registry:  prometheus.NewRegistry(),
		ready:     make(chan struct{}),
	}
	s.metrics = newMetrics(s.registry, cfg)
	s.driver = newDriver(core, cfg.TimeScale, s.metrics, func(events []engine.Event, now time.Time) {
		s.publisher.publish(events, now)
	})
	err = s.registry.Register(newCoreCollector(cfg, s.driver.state.Load))
	return s, err
}

// Ready is closed when the server listens on all its addresses.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is the HTTP address, host:port. It is valid once Ready is closed, as
// are the other addresses.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// EventsEndpoint is the KV-event endpoint, tcp://host:port, or "".
func (s *Server) EventsEndpoint() string {
	if s.publisher == nil {
		return ""
	}
	events, _ := s.publisher.endpoints()
	return events
}

// ReplayEndpoint is the replay endpoint, tcp://host:port, or "".
func (s *Server) ReplayEndpoint() string {
	if s.publisher == nil {
		return ""
	}
	_, replay := s.publisher.endpoints()
	return replay
}

// WaitSubscribers returns when at least n subscriptions to the KV events are
// in force, or with ctx's error. The server must be ready and have events.
func (s *Server) WaitSubscribers(ctx context.Context, n int) error {
	s.publisher.mu.Lock()
	pub := s.publisher.pub
	s.publisher.mu.Unlock()
	return pub.WaitSubscribers(ctx, n)
}

// Run serves until ctx ends, and returns when nothing runs any more. Requests
// in flight are cut off then, as by vLLM without a shutdown timeout.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	var err error
	if s.listener, err = lc.Listen(ctx, "tcp", s.cfg.Listen); err != nil {
		return fmt.Errorf("listen %s: %w", s.cfg.Listen, err)
	}
	s.started = time.Now()
	if s.cfg.Events != "" {
		if s.publisher, err = listenPublisher(ctx, s.cfg, s.logger); err != nil {
			_ = s.listener.Close()
			return err
		}
	}
	close(s.ready)

	web := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		s.driver.run(ctx)
		return nil
	})
	group.Go(func() error {
		if err := web.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", s.Addr(), err)
		}
		return nil
	})
	if s.cfg.Replay != "" {
		group.Go(func() error { return s.publisher.serveReplay(ctx) })
	}
	group.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		<-s.driver.stopped
		if s.publisher != nil {
			s.publisher.close()
		}
		if web.Shutdown(stop) != nil {
			return web.Close()
		}
		return nil
	})
	return group.Wait()
}

// handler routes requests. Faults apply to what a client or a router uses,
// not to /metrics and /debug.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	api := func(pattern string, h http.HandlerFunc) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if s.faults.admit(w, r, s.driver.stopped) {
				h(w, r)
			}
		})
	}
	api("POST /v1/completions", s.completions)
	api("POST /v1/chat/completions", s.chatCompletions)
	api("POST /tokenize", s.tokenize)
	api("GET /v1/models", s.models)
	api("GET /health", s.health)
	mux.HandleFunc("POST /reset_prefix_cache", s.resetPrefixCache)
	mux.HandleFunc("GET /kv_event_sources", s.kvEventSources)
	mux.HandleFunc("GET /debug/pool", s.debugPool)
	mux.HandleFunc("POST /debug/faults", s.debugFaults)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	return mux
}
