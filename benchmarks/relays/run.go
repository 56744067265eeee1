package relays

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/events/relay"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

var hasher = kvindex.NewHasher(0x5eed)

// side is the event side of a router, or of a relay.
type side struct {
	index   *kvindex.Index
	pool    *pool.Pool
	manager *events.Manager
	stop    func() error
}

func startSide(ctx context.Context, specs []pool.Spec, options ...events.Option) (*side, error) {
	s := &side{}
	var err error
	if s.index, err = kvindex.New(kvindex.Config{}); err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	s.pool = pool.New(pool.DefaultConfig(), log, prometheus.NewRegistry(), http.DefaultClient, rand.New(rand.NewPCG(1, 1)))
	s.pool.Set(specs)
	cfg := events.DefaultConfig()
	if s.manager, err = events.New(cfg, s.index, hasher, events.ZMQ(cfg), log, prometheus.NewRegistry(), rand.New(rand.NewPCG(2, 2)), options...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.manager.Run(ctx, s.pool) }()
	s.stop = func() error {
		cancel()
		return <-ended
	}
	return s, nil
}

// exact waits until every publisher is exact and all blocks are held, and
// returns how long it took.
func (s *side) exact(ctx context.Context, held int) (time.Duration, error) {
	begun := time.Now()
	for {
		n := 0
		status := s.manager.Status()
		for _, st := range status {
			if st.Trust == kvindex.TrustExact.String() {
				n++
			}
		}
		if n > 0 && n == len(s.pool.Snapshot().Endpoints) {
			if got := s.index.Stats().Held; got != held {
				return 0, fmt.Errorf("exact with %d blocks held, want %d", got, held)
			}
			return time.Since(begun), nil
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return 0, fmt.Errorf("%d of %d publishers exact: %w", n, len(status), ctx.Err())
		}
	}
}

// beside runs a relay beside a fake engine and returns where it listens.
func beside(ctx context.Context, spec pool.Spec) (address string, s *side, stop func() error, err error) {
	r, err := relay.New(relay.DefaultConfig(), hasher, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(3, 3)), relay.Network{})
	if err != nil {
		return "", nil, nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, nil, err
	}
	serving, stopServing := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(serving, ln) }()
	if s, err = startSide(ctx, []pool.Spec{spec}, events.WithTaps(r)); err != nil {
		stopServing()
		return "", nil, nil, errors.Join(err, <-ended)
	}
	return ln.Addr().String(), s, func() error {
		err := s.stop()
		stopServing()
		return errors.Join(err, <-ended)
	}, nil
}

// counted is a connection whose received bytes are counted.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// relayed returns the option that has a router fed by relays, counting what it
// receives.
func relayed(received *atomic.Int64) (events.Option, error) {
	src, err := source(relay.DefaultRouterConfig(), received)
	if err != nil {
		return nil, err
	}
	return events.WithRelays(src), nil
}

// source is where a router gets what others tell, counting what it receives.
func source(cfg relay.RouterConfig, received *atomic.Int64) (*relay.Source, error) {
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return counted{c, received}, nil
	}
	return relay.NewSource(cfg, hasher, false, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), rand.New(rand.NewPCG(4, 4)), relay.Network{Dial: dial})
}

// telling runs a router that follows engines and tells others what it knows,
// and returns where, once it is exact.
func telling(ctx context.Context, specs []pool.Spec, held int) (address string, stop func() error, err error) {
	s, err := startSide(ctx, specs)
	if err != nil {
		return "", nil, err
	}
	if _, err := s.exact(ctx, held); err != nil {
		return "", nil, errors.Join(err, s.stop())
	}
	src, err := source(relay.DefaultRouterConfig(), new(atomic.Int64))
	if err != nil {
		return "", nil, errors.Join(err, s.stop())
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, errors.Join(err, s.stop())
	}
	serving, stopServing := context.WithCancel(ctx)
	ended := make(chan error, 1)
	srv := relay.NewServer(relay.DefaultRouterConfig(), src, relay.View{Snapshot: s.manager.Snapshot}, slog.New(slog.DiscardHandler))
	go func() { ended <- srv.Run(serving, ln) }()
	return ln.Addr().String(), func() error {
		stopServing()
		return errors.Join(<-ended, s.stop())
	}, nil
}

// fromPeer measures a router that starts from what another one knows.
func fromPeer(ctx context.Context, specs []pool.Spec, held int, out io.Writer) (err error) {
	address, stop, err := telling(ctx, specs, held)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var received atomic.Int64
	cfg := relay.DefaultRouterConfig()
	cfg.Peers = []string{address}
	src, err := source(cfg, &received)
	if err != nil {
		return err
	}
	got, err := cold(ctx, specs, held, events.WithPeers(src, cfg.PeersTimeout))
	if err != nil {
		return err
	}
	got.print(out, "peer", int(received.Load()), held)
	if w := got.warm; w.Resumed != len(specs) {
		return fmt.Errorf("not all publishers went on from what the peer knows: %+v", w)
	}
	return nil
}

// serving asks the index for a prompt a thousand times a second, as decisions
// do, until the function returned is called, which tells how long that took.
func serving(ix *kvindex.Index) (stop func() (median, p99 time.Duration)) {
	ctx, cancel := context.WithCancel(context.Background())
	var took []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		chain := make([]kvindex.BlockHash, 128)
		rng := rand.New(rand.NewPCG(5, 5))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		var out []kvindex.Match
		for {
			for i := range chain {
				chain[i] = kvindex.BlockHash(rng.Uint64())
			}
			begun := time.Now()
			out = ix.Match(out[:0], chain, begun, nil)
			took = append(took, time.Since(begun))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() (time.Duration, time.Duration) {
		cancel()
		wg.Wait()
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
}

// Run measures and prints.
func Run(ctx context.Context, args []string, out *os.File) error {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	engines := fs.Int("engines", 100, "engines of the cold start")
	blocks := fs.Int("blocks", 20_000, "blocks that each of them holds")
	seconds := fs.Int("seconds", 5, "how long one relay is loaded with 20,000 blocks a second")
	if err := fs.Parse(args); err != nil {
		return err
	}
	fmt.Fprintln(out, machine())
	if err := coldStart(ctx, *engines, *blocks, out); err != nil {
		return err
	}
	return load(ctx, *blocks, time.Duration(*seconds)*time.Second, out)
}

func coldStart(ctx context.Context, n, blocks int, out io.Writer) (err error) {
	var stops []func() error
	defer func() {
		for _, stop := range slices.Backward(stops) {
			err = errors.Join(err, stop())
		}
	}()
	requests := blocks / (promptBlocks + decodeBlocks)
	held := n * requests * (promptBlocks + decodeBlocks)
	own := make([]pool.Spec, n)
	wire := 0
	for i := range own {
		f, err := startFake(ctx, uint64(i))
		if err != nil {
			return err
		}
		stops = append(stops, f.close)
		for range requests {
			f.request(1 << 30)
		}
		wire += f.published()
		own[i] = pool.Spec{
			Name: fmt.Sprint("e", i), Address: fmt.Sprintf("127.0.0.1:%d", 10_000+i), Models: []string{"m"}, Events: f.pub.Endpoint(), Replay: f.router.Endpoint(),
		}
	}
	fmt.Fprintf(out, "\ncold router, %d engines, %d blocks each (%d in all), prompts of %d blocks and %d decoded blocks behind each\n", n, held/n, held, promptBlocks, decodeBlocks)
	zmq, err := cold(ctx, own, held)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	zmq.print(out, "ZMQ replay", wire, held)
	if err := fromPeer(ctx, own, held, out); err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	behind := make([]pool.Spec, n)
	for i, spec := range own {
		address, s, stop, err := beside(ctx, spec)
		if err != nil {
			return err
		}
		stops = append(stops, stop)
		if _, err := s.exact(ctx, held/n); err != nil {
			return fmt.Errorf("relay %d: %w", i, err)
		}
		behind[i] = pool.Spec{Name: spec.Name, Address: spec.Address, Models: spec.Models, Relay: address}
	}
	var received atomic.Int64
	option, err := relayed(&received)
	if err != nil {
		return err
	}
	got, err := cold(ctx, behind, held, option)
	if err != nil {
		return fmt.Errorf("relays: %w", err)
	}
	got.print(out, "relays", int(received.Load()), held)
	return nil
}

// coldFigures are those of one cold start; cpu is that of the whole process,
// the engines and relays in it included.
type coldFigures struct {
	took, cpu, median, p99 time.Duration
	// memory is the growth of heap and stacks for each publisher: the router,
	// its index, and the other ends of its connections.
	memory int64
	warm   events.WarmStart
}

// print prints the figures of a way in which so many bytes were received for so
// many blocks.
func (c coldFigures) print(out io.Writer, way string, received, blocks int) {
	fmt.Fprintf(out, "  %-10s  exact after %6.2f s, %4.1f s of processor time, %5.1f MB (%.1f bytes a block), lookups meanwhile: median %s, p99 %s, %.0f KB a publisher\n",
		way, c.took.Seconds(), c.cpu.Seconds(), float64(received)/1e6, float64(received)/float64(blocks), c.median, c.p99, float64(c.memory)/1e3)
}

func cold(ctx context.Context, specs []pool.Spec, held int, options ...events.Option) (c coldFigures, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	before := heap()
	busy := cpuTime()
	r, err := startSide(ctx, specs, options...)
	if err != nil {
		return c, err
	}
	stop := serving(r.index)
	c.took, err = r.exact(ctx, held)
	c.median, c.p99 = stop()
	c.cpu, c.warm = cpuTime()-busy, r.manager.WarmStart()
	c.memory = (heap() - before) / int64(len(specs))
	return c, errors.Join(err, r.stop())
}

// machine says what this runs on, and which commit.
func machine() string {
	commit := "unknown"
	if id, err := exec.Command("git", "rev-parse", "--short=12", "HEAD").Output(); err == nil {
		commit = strings.TrimSpace(string(id))
	}
	load, _ := os.ReadFile("/proc/loadavg")
	cpu := ""
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			cpu = strings.Trim(name, " \t:\n") + ", "
			break
		}
	}
	return fmt.Sprintf("%s%d CPUs, %s, commit %s, load before %s", cpu, runtime.NumCPU(), runtime.Version(), commit, strings.TrimSpace(string(load)))
}
