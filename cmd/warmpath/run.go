package main

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/extproc"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
	"github.com/warmpath/warmpath/routing/tokenizer"
)

// router is the running product: every part, wired. It is the only place that
// knows all of them.
type router struct {
	pool   *pool.Pool
	index  *kvindex.Index
	events *events.Manager
	// cachestate is nil where it is not served.
	cachestate *relay.Server
	// warm is what the process before left, nil if nothing is read or written.
	warm *warmFile
	// peers tells whether other routers are asked at the start.
	peers bool
	// warmed is set once the router has been ready with its warm start.
	warmed  atomic.Bool
	routing *routing.Router
	// tokenizer is nil where prompts are never tokenized.
	tokenizer *tokenizer.Client
	extproc   *extproc.Server
	admin     *admin
	// maxBody bounds the body of a request that is to be explained.
	maxBody int
}

// serve runs the router until ctx ends. Its routing section and
// static endpoints follow src.
func serve(ctx context.Context, cfg Config, src source, log *slog.Logger) error {
	cfg.Memory.apply()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	client := &http.Client{Transport: transport()}
	defer client.CloseIdleConnections()
	r, err := build(cfg, log, reg, client)
	if err != nil {
		return err
	}
	adminListener, err := net.Listen("tcp", cfg.Admin.Listen)
	if err != nil {
		return fmt.Errorf("admin.listen: %w", err)
	}
	defer adminListener.Close()
	extprocListener, err := listen(cfg.ExtProc.Listen)
	if err != nil {
		return fmt.Errorf("extproc.listen: %w", err)
	}
	defer extprocListener.Close()
	var cachestateListener net.Listener
	if r.cachestate != nil {
		if cachestateListener, err = net.Listen("tcp", cfg.CacheState.Listen); err != nil {
			return fmt.Errorf("cachestate.listen: %w", err)
		}
		defer cachestateListener.Close()
		log.Info("listening for relays and tools", "cachestate", cachestateListener.Addr().String())
	}
	log.Info("listening", "extproc", extprocListener.Addr().String(), "admin", adminListener.Addr().String(), "version", versionText())

	// Requests are drained first: until the last of them has ended, the pool,
	// the events and the admin server go on.
	rest, stopRest := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRest()
	g, failed := errgroup.WithContext(rest)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	reloads := newReloader(src, cfg, r.reload, log, reg)
	g.Go(func() error { return reloads.Run(failed, hup) })
	g.Go(func() error { return r.routing.Run(failed) })
	g.Go(func() error { return r.pool.Run(failed) })
	g.Go(func() error { return r.follow(failed) })
	g.Go(func() error { return r.admin.Run(failed, adminListener) })
	if r.cachestate != nil {
		g.Go(func() error { return r.cachestate.Run(failed, cachestateListener) })
	}
	if r.tokenizer != nil {
		g.Go(func() error { return r.tokenizer.Run(failed) })
	}
	g.Go(func() error {
		select {
		case <-r.pool.Probed():
		case <-failed.Done():
			return nil
		}
		select {
		case <-r.events.Ready():
			r.extproc.SetReady(true)
		case <-failed.Done():
		}
		return nil
	})
	g.Go(func() error {
		defer stopRest()
		stop, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(failed, cancel)()
		return r.extproc.Run(stop, extprocListener)
	})
	err = g.Wait()
	if r.warm != nil {
		err = errors.Join(err, r.warm.write(time.Now(), r.events.Saved()))
	}
	return err
}

// reload puts into force what can be while the router runs.
func (r *router) reload(cfg Config) error {
	if err := r.routing.Reload(cfg.Routing); err != nil {
		return err
	}
	r.pool.Set(cfg.Pool.Static.Endpoints)
	return nil
}

// follow follows the events of the pool's endpoints, once they have been listed
// and probed: only then is it known which there are and where they publish, and
// the first snapshot that the events see says what their readiness waits for.
func (r *router) follow(ctx context.Context) error {
	select {
	case <-r.pool.Probed():
		return r.events.Run(ctx, r.pool)
	case <-ctx.Done():
		return nil
	}
}

// build makes every part, without starting any.
func build(cfg Config, log *slog.Logger, reg prometheus.Registerer, client *http.Client) (*router, error) {
	seed, err := fleetSeed(cfg.Index)
	if err != nil {
		return nil, err
	}
	hasher := kvindex.NewHasher(seed)
	sources, err := sourcesOf(cfg.Pool, log, reg)
	if err != nil {
		return nil, err
	}
	r := &router{pool: pool.New(cfg.Pool, log, reg, client, random(), sources...), maxBody: cfg.ExtProc.MaxBodyBytes}
	if r.index, err = kvindex.New(cfg.Index.Config); err != nil {
		return nil, err
	}
	reg.MustRegister(newIndexCollector(r.index, r.pool))
	relays, err := relay.NewSource(cfg.CacheState, hasher, cfg.Index.SeedFile == "", log, reg, random(), relay.Network{})
	if err != nil {
		return nil, err
	}
	options := []events.Option{events.WithRelays(relays)}
	if cfg.CacheState.SnapshotFile != "" {
		r.warm = &warmFile{path: cfg.CacheState.SnapshotFile, seed: hasher.Fingerprint(), log: log}
		options = append(options, events.WithSaved(r.warm.read(time.Now())))
	}
	if r.peers = len(cfg.CacheState.Peers) > 0; r.peers {
		options = append(options, events.WithPeers(relays, cfg.CacheState.PeersTimeout))
	}
	if r.events, err = events.New(cfg.Events, r.index, hasher, events.ZMQ(cfg.Events), log, reg, random(), options...); err != nil {
		return nil, err
	}
	if cfg.CacheState.Listen != "" {
		view := relay.View{Pool: r.pool, Index: r.index, Hasher: hasher, Status: r.events.Status, Snapshot: r.events.Snapshot}
		r.cachestate = relay.NewServer(cfg.CacheState, relays, view, log)
	}
	var tok routing.Tokenizer
	if !cfg.Tokenizer.Disabled {
		if r.tokenizer, err = tokenizer.New(cfg.Tokenizer, client, log, reg); err != nil {
			return nil, err
		}
		tok = r.tokenizer
	}
	if r.routing, err = routing.New(cfg.Routing, r.pool, r.index, tok, hasher, log, reg, random()); err != nil {
		return nil, err
	}
	if r.extproc, err = extproc.New(cfg.ExtProc, r.routing, r.pool, log, reg); err != nil {
		return nil, err
	}
	r.admin = newAdmin(adminSources{
		Gatherer: reg.(prometheus.Gatherer),
		Ready:    r.ready,
		State:    r.state,
		Pages: []adminPage{
			{Path: "debug/decisions", About: "recent decisions, newest first; ?id= picks those of one request", Handler: http.HandlerFunc(r.serveDecisions)},
			{Method: http.MethodPost, Path: "debug/explain", About: "POST a request body: what would be chosen now, and why", Handler: http.HandlerFunc(r.serveExplain)},
			{Path: "debug/held/{endpoint...}", About: "hashes of the blocks that an endpoint holds", Handler: http.HandlerFunc(r.serveHeld)},
		},
	}, log)
	return r, nil
}

// sourcesOf returns what finds the endpoints that the configuration does not
// list.
func sourcesOf(cfg pool.Config, log *slog.Logger, reg prometheus.Registerer) ([]pool.Source, error) {
	var sources []pool.Source
	if cfg.File.Path != "" {
		sources = append(sources, pool.NewFile(cfg.File, log, reg))
	}
	if cfg.Kubernetes.Enabled() {
		k, err := pool.NewKubernetes(cfg.Kubernetes, log, reg)
		if err != nil {
			return nil, err
		}
		sources = append(sources, k)
	}
	return sources, nil
}

// fleetSeed returns the configured seed, or one that only this process knows.
func fleetSeed(cfg IndexConfig) (uint64, error) {
	if cfg.SeedFile != "" {
		return readSeed(cfg.SeedFile)
	}
	return secret(), nil
}

func secret() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails, see its documentation
	return binary.LittleEndian.Uint64(b[:])
}

// random returns a generator for ties and jitter. The part that gets it guards
// it.
func random() *rand.Rand { return rand.New(rand.NewPCG(secret(), secret())) }

// transport is for probes and the tokenizer: many small requests to few hosts.
func transport() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
	}
}

// listen opens host:port or unix:PATH. The socket file of a process that has
// ended is removed first.
func listen(address string) (net.Listener, error) {
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return net.Listen("tcp", address)
	}
	if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, fmt.Errorf("%s: another process listens there", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return net.Listen("unix", path)
}
