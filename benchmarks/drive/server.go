package drive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/warmpath/warmpath/extproc"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing"
	"github.com/warmpath/warmpath/routing/pool"
	"github.com/warmpath/warmpath/routing/tokenizer"
)

// serverCommand is the subcommand of drive that runs one server. It is not for
// people: the driver starts it and talks to it through its standard input and
// output, one JSON value a line.
const serverCommand = "server"

// serverConfig is the first line that a server reads.
type serverConfig struct {
	Kind     serverKind `json:"kind"`
	Strategy string     `json:"strategy"`
	// Addresses are the endpoints' ip:port. They are never dialed by the server.
	Addresses []string `json:"addresses"`
	// Tokenizer is the tokenizer's base URL.
	Tokenizer string   `json:"tokenizer"`
	Workload  workload `json:"workload"`
	// Profile begins the names of profiles to write, empty for none.
	Profile string `json:"profile"`
}

// serverReady is the first line that a server writes.
type serverReady struct {
	Address string `json:"address"`
}

// order is every further line that a server reads. It ends with its input.
type order string

const (
	// orderBegin begins a slice.
	orderBegin order = "begin"
	// orderEnd ends it.
	orderEnd order = "end"
)

// GCPercent is what the routers ask of the garbage collector: the default of
// the program's configuration, memory.gc_percent. The null server leaves it to
// Go, as every yardstick.
const GCPercent = 50

// usage is every further line that a server writes, one an order: what it has
// used since it started.
type usage struct {
	CPU        time.Duration `json:"cpu_ns"`
	Allocs     uint64        `json:"allocs"`
	AllocBytes uint64        `json:"alloc_bytes"`
	// Messages are those received from Envoy, or from who plays its part.
	Messages uint64 `json:"messages"`
	// Resident and PeakResident are bytes of physical memory, all of the
	// process's: pages of the program file, the heap with what the collector has
	// not freed yet, and caches. The peak is that since the first order. 0 where
	// the system does not tell.
	Resident     int64 `json:"resident"`
	PeakResident int64 `json:"peak_resident"`
	// TokenCache is what the tokenizer's cache holds, which has a bound of its
	// own (tokenizer.cache_bytes): in lanes whose every text is new it grows with
	// the requests made, not with those in flight.
	TokenCache int64 `json:"token_cache"`
}

// serve is the subcommand server.
func serve(ctx context.Context, in io.Reader, out io.Writer) error {
	// The driver decides when to stop, also after Ctrl-C.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	lines := json.NewDecoder(bufio.NewReader(in))
	var cfg serverConfig
	if err := lines.Decode(&cfg); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	run, count, err := cfg.build()
	if err != nil {
		l.Close()
		return err
	}
	served := make(chan error, 1)
	go func() { served <- run(ctx, l) }()
	answers := json.NewEncoder(out)
	err = answers.Encode(serverReady{Address: l.Addr().String()})
	if err == nil {
		err = cfg.obey(lines, answers, count)
	}
	cancel()
	return errors.Join(err, <-served)
}

// build wires a server. count fills in what the server itself knows of its
// usage.
func (cfg serverConfig) build() (run func(context.Context, net.Listener) error, count func(*usage), err error) {
	if len(cfg.Addresses) == 0 {
		return nil, nil, errors.New("addresses: empty")
	}
	if cfg.Kind == serverNull {
		s := &nullServer{destination: cfg.Addresses[0]}
		return s.run, func(u *usage) { u.Messages = s.messages.Load() }, nil
	}
	debug.SetGCPercent(GCPercent)
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	reg := prometheus.NewRegistry()
	random := rand.New(rand.NewPCG(cfg.Workload.Seed, 1<<34))
	p := cfg.pool(log, reg, random)
	index, err := kvindex.New(kvindex.Config{})
	if err != nil {
		return nil, nil, err
	}
	hasher := kvindex.NewHasher(cfg.Workload.Seed)
	if err := cfg.Workload.hold(index, hasher, publishers(p.Snapshot())); err != nil {
		return nil, nil, err
	}
	tc := tokenizer.DefaultConfig()
	tc.Endpoints = []string{cfg.Tokenizer}
	// A stall of the machine must not turn a lane into another one.
	tc.Budget, tc.Attempt = requestTimeout, requestTimeout
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	tok, err := tokenizer.New(tc, client, log, reg)
	if err != nil {
		return nil, nil, err
	}
	rc := routing.DefaultConfig()
	rc.Strategy = cfg.Strategy
	router, err := routing.New(rc, p, index, tok, hasher, log, reg, random)
	if err != nil {
		return nil, nil, err
	}
	ec := extproc.DefaultConfig()
	ec.DrainDelay, ec.DrainTimeout = 0, time.Second
	s, err := extproc.New(ec, router, p, log, reg)
	if err != nil {
		return nil, nil, err
	}
	s.SetReady(true)
	run = func(ctx context.Context, l net.Listener) error {
		defer client.CloseIdleConnections()
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return tok.Run(ctx) })
		g.Go(func() error { return s.Run(ctx, l) })
		return g.Wait()
	}
	return run, func(u *usage) {
		u.Messages = counted(reg, "warmpath_extproc_messages_total")
		u.TokenCache = int64(counted(reg, "warmpath_tokenizer_cache_bytes"))
	}, nil
}

// pool makes a pool that is never probed, whose endpoints have all reported
// blocks.
func (cfg serverConfig) pool(log *slog.Logger, reg prometheus.Registerer, random *rand.Rand) *pool.Pool {
	pc := pool.DefaultConfig()
	for i, a := range cfg.Addresses {
		host, _, _ := strings.Cut(a, ":")
		pc.Static.Endpoints = append(pc.Static.Endpoints, pool.Spec{
			Name: fmt.Sprintf("engine-%d", i), Address: a, Models: []string{model},
			Events: "tcp://" + host + ":5557",
		})
	}
	p := pool.New(pc, log, reg, http.DefaultClient, random)
	for _, e := range p.Snapshot().Endpoints {
		e.State.ObserveBlockSize(blockSize)
	}
	return p
}

func publishers(s *pool.Snapshot) []kvindex.Publisher {
	var all []kvindex.Publisher
	for _, e := range s.Endpoints {
		for _, p := range e.Publishers {
			all = append(all, p.Publisher)
		}
	}
	return all
}

// counted returns the sum of a counter or gauge over all its labels.
func counted(g prometheus.Gatherer, name string) uint64 {
	families, err := g.Gather()
	if err != nil {
		return 0
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return uint64(sum)
}

// obey answers orders until there are no more. Counting costs something itself,
// so it is done outside of what the slice is charged with.
func (cfg serverConfig) obey(lines *json.Decoder, answers *json.Encoder, count func(*usage)) (err error) {
	var profile *os.File
	defer func() {
		if profile != nil {
			pprof.StopCPUProfile()
			err = errors.Join(err, profile.Close(), writeAllocs(cfg.Profile+".allocs.pprof"))
		}
	}()
	for first := true; ; first = false {
		var o order
		if err := lines.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		if first {
			debug.FreeOSMemory()
			resetPeak()
			if cfg.Profile != "" {
				if profile, err = os.Create(cfg.Profile + ".cpu.pprof"); err != nil {
					return err
				}
				if err := pprof.StartCPUProfile(profile); err != nil {
					return err
				}
			}
		}
		var u usage
		switch o {
		case orderBegin:
			count(&u)
			u.measure()
		case orderEnd:
			u.measure()
			count(&u)
		default:
			return fmt.Errorf("unknown order %q", o)
		}
		if err := answers.Encode(u); err != nil {
			return err
		}
	}
}

func writeAllocs(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	runtime.GC() // the profile is of the last collection
	return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}

// measure fills in what the process has used, less what only the server knows.
func (u *usage) measure() {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:objects"}, {Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(samples)
	u.Allocs, u.AllocBytes = samples[0].Value.Uint64(), samples[1].Value.Uint64()
	u.Resident, u.PeakResident = resident()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err == nil {
		u.CPU = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
}

// resetPeak has the kernel forget the peak of resident memory (proc(5),
// clear_refs). Where it cannot, the peak is that since the start.
func resetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

// resident returns resident memory and its peak (proc(5), status).
func resident() (now, peak int64) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, 0
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":")
		kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		switch {
		case err != nil:
		case name == "VmRSS":
			now = kb << 10
		case name == "VmHWM":
			peak = kb << 10
		}
	}
	return now, peak
}
