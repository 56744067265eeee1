package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

func cmdRelay(ctx context.Context, p process) int {
	c := newCommand(p, "relay", "Runs beside one engine and tells routers which blocks it holds. The pool has that\nengine alone; of the rest of the configuration only relay, index, events, admin\nand log count.")
	cfg, code, ok := c.config()
	if !ok {
		return code
	}
	if err := cfg.relayFaults(); err != nil {
		return c.fail(err)
	}
	log := newLogger(p.stderr, cfg.Log)
	for _, w := range cfg.relayWarnings() {
		log.Warn(w)
	}
	if err := serveRelay(ctx, cfg, log); err != nil {
		log.Error("stopped", "err", err)
		return exitFault
	}
	return exitOK
}

// relayFaults reports what is right for a router and not for a relay.
func (c Config) relayFaults() error {
	var errs []error
	if n := len(c.Pool.Static.Endpoints); n != 1 {
		errs = append(errs, fmt.Errorf("pool.static.endpoints: %d endpoints; a relay has the one engine that it stands beside", n))
	} else if e := c.Pool.Static.Endpoints[0]; e.Events == "" && e.Topic == "" {
		errs = append(errs, errors.New("pool.static.endpoints[0].events: empty; set it to the engine's own stream, such as tcp://127.0.0.1:5557, or auto"))
	}
	if c.Index.SeedFile == "" {
		errs = append(errs, errors.New("index.seed_file: empty, so that nobody would understand this relay's hashes; give every router and relay the same file"))
	}
	if c.Relay.Listen == "" && len(c.Relay.ReportTo) == 0 {
		errs = append(errs, errors.New("relay.listen: empty, and relay.report_to too, so that nobody would hear of anything; set one of them"))
	}
	return errors.Join(errs...)
}

// serveRelay runs the relay until ctx ends, and then until what is buffered is
// delivered.
func serveRelay(ctx context.Context, cfg Config, log *slog.Logger) error {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	client := &http.Client{Transport: transport()}
	defer client.CloseIdleConnections()
	seed, err := readSeed(cfg.Index.SeedFile)
	if err != nil {
		return fmt.Errorf("index.seed_file: %w", err)
	}
	hasher := kvindex.NewHasher(seed)
	cfg.Pool.Static.Endpoints[0].Relay = "" // it is this process
	p := pool.New(cfg.Pool, log, reg, client, random())
	index, err := kvindex.New(cfg.Index.Config)
	if err != nil {
		return err
	}
	reg.MustRegister(newIndexCollector(index, p))
	r, err := relay.New(cfg.Relay, hasher, log, reg, random(), relay.Network{})
	if err != nil {
		return err
	}
	manager, err := events.New(cfg.Events, index, hasher, events.ZMQ(cfg.Events), log, reg, random(), events.WithTaps(r))
	if err != nil {
		return err
	}
	a := newAdmin(adminSources{
		Gatherer: reg,
		Ready: func() []condition {
			return []condition{{"events", closed(manager.Ready()), "the engine's event stream is live or has failed once"}}
		},
		State: func() any {
			return map[string]any{"version": versionText(), "publishers": manager.Status(), "index": viewIndex(index.Stats())}
		},
	}, log)
	return runRelay(ctx, cfg, log, p, manager, r, a)
}

// runRelay starts the parts of a relay, and stops them in order: first the
// events, so that nothing new comes, then the relay, which delivers what it
// has.
func runRelay(ctx context.Context, cfg Config, log *slog.Logger, p *pool.Pool, manager *events.Manager, r *relay.Relay, a *admin) error {
	adminListener, err := net.Listen("tcp", cfg.Admin.Listen)
	if err != nil {
		return fmt.Errorf("admin.listen: %w", err)
	}
	defer adminListener.Close()
	var ln net.Listener
	if cfg.Relay.Listen != "" {
		if ln, err = net.Listen("tcp", cfg.Relay.Listen); err != nil {
			return fmt.Errorf("relay.listen: %w", err)
		}
		defer ln.Close()
		log.Info("listening", "relay", ln.Addr().String(), "admin", adminListener.Addr().String(), "version", versionText())
	}
	rest, stopRest := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRest()
	g, failed := errgroup.WithContext(rest)
	following, stopFollowing := context.WithCancel(failed)
	defer stopFollowing()
	defer context.AfterFunc(ctx, stopFollowing)()
	serving, stopServing := context.WithCancel(failed)
	defer stopServing()
	g.Go(func() error { return p.Run(failed) })
	g.Go(func() error { return a.Run(failed, adminListener) })
	g.Go(func() error {
		defer stopServing()
		return manager.Run(following, p)
	})
	g.Go(func() error {
		defer stopRest()
		return r.Run(serving, ln)
	})
	return g.Wait()
}
