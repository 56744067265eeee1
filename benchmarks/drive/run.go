package drive

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// options is what the flags say.
type options struct {
	lanes                     []lane
	bodies, endpoints, chunks []int
	// requests bounds a cell in number if it is not 0, seconds in time else.
	requests    int
	seconds     time.Duration
	slice       time.Duration
	concurrency int
	seed        uint64
	envoy       string
	profile     string
	save        string
	json        bool
}

// rounds returns the number of turns of each cell and what bounds one.
func (o options) rounds() (int, bound) {
	if o.requests > 0 {
		const least = 50 // requests a turn, for fewer say little
		n := min(max(o.requests/least, 1), 30)
		return n, bound{requests: o.requests / n}
	}
	n := max(1, int(o.seconds/o.slice))
	return n, bound{time: min(o.slice, o.seconds)}
}

// driver runs rows.
type driver struct {
	options
	// program is this program, which also is the servers'.
	program string
	// dir keeps the children's logs while they run.
	dir      string
	progress *progress
}

// station is a running cell.
type station struct {
	cell
	// server is nil for a lane without one.
	server *remote
	// envoy is nil without one; the cells of a row share it.
	envoy     *envoy
	tokenizer *stub
	client    client
	next      uint64
	idle      int64
}

// run measures rows in turn. When ctx ends it returns what there is.
func (d *driver) run(ctx context.Context, rows []row) ([]result, error) {
	var all []result
	for i, r := range rows {
		d.progress.row(i, len(rows), r)
		results, err := d.row(ctx, r)
		all = append(all, results...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// row starts what the cells of r need, drives them and stops it all.
func (d *driver) row(ctx context.Context, r row) (results []result, err error) {
	stations, stop, err := d.start(ctx, r)
	defer stop()
	if err != nil {
		return nil, err
	}
	null := 0
	for j, s := range stations {
		if s.name == laneNull {
			null = j
		}
		if err := s.warmUp(ctx, r, d.concurrency); err != nil {
			return nil, err
		}
	}
	turns, b := d.rounds()
	var rounds [][]slice
	for turn := range turns {
		// Each round begins with another cell, so that none is always the one
		// after an expensive one.
		round := make([]slice, len(stations))
		rounds = append(rounds, round)
		for k := range stations {
			j := (turn + k) % len(stations)
			if round[j], err = stations[j].turn(ctx, d.concurrency, b); err != nil {
				break
			}
			d.progress.turn(turn*len(stations)+k+1, turns*len(stations), round[j].failures)
		}
		if err != nil || ctx.Err() != nil {
			break
		}
	}
	results = summarize(r, rounds, null, d.concurrency)
	for j := range results {
		results[j].Idle = stations[j].idle
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return results, err
}

// warmUp sends every prompt, so that what is used for the first time is paid
// for: connections, pools and caches. A router learns tokens behind its
// decisions, so prompts that can be known are sent until the tokenizer is no
// longer asked; if that never happens the report says so.
func (s *station) warmUp(ctx context.Context, r row, concurrency int) error {
	const most = 30
	n, _ := workload{Body: r.body}.prompts()
	for range most {
		got, err := s.turn(ctx, concurrency, bound{requests: max(n, 2*concurrency)})
		if err != nil {
			return err
		}
		if got.failures > 0 {
			return fmt.Errorf("lane %s at %d bytes: %d of %d requests failed while warming up, first: %w", s.label(), r.body, got.failures, got.requests, got.fault)
		}
		if got.tokenized == 0 || s.prompt == promptUnseen {
			return nil
		}
	}
	return nil
}

// turn drives a station for one slice. The server is asked before and after,
// also if ctx ends in between.
func (s *station) turn(ctx context.Context, concurrency int, b bound) (slice, error) {
	if err := ctx.Err(); err != nil {
		return slice{}, err
	}
	talk, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	var before, after usage
	var envoyBefore time.Duration
	var err error
	if s.server != nil {
		if before, err = s.server.usage(talk, orderBegin); err != nil {
			return slice{}, err
		}
		if s.idle == 0 {
			s.idle = before.Resident
		}
	}
	if s.envoy != nil {
		envoyBefore = s.envoy.cpu()
	}
	asked := s.tokenizer.asked.Load()
	out := load(ctx, s.client, s.next, concurrency, b)
	out.tokenized = s.tokenizer.asked.Load() - asked
	s.next += uint64(out.requests + concurrency)
	if s.envoy != nil {
		out.envoy = s.envoy.cpu() - envoyBefore
	}
	if s.server != nil {
		talk, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		if after, err = s.server.usage(talk, orderEnd); err != nil {
			return slice{}, errors.Join(err, out.fault)
		}
		out.used = after.sub(before)
	}
	return out, nil
}

// start starts the tokenizers, servers and clients of a row, and an Envoy if
// there is to be one. stop must be called, also after an error.
func (d *driver) start(ctx context.Context, r row) (stations []*station, stop func(), err error) {
	var stops []func()
	stop = func() {
		for i := len(stops) - 1; i >= 0; i-- {
			stops[i]()
		}
	}
	most := 0
	for _, c := range r.cells {
		most = max(most, c.endpoints)
	}
	addresses := imaginary(most)
	if d.envoy != "" {
		backend, err := startLocal(engines{r.chunks}, most)
		if err != nil {
			return nil, stop, err
		}
		stops = append(stops, backend.stop)
		addresses = backend.addresses
	}
	var gateways []gateway
	for _, c := range r.cells {
		s := &station{cell: c, tokenizer: &stub{delay: c.delay}}
		l, err := startLocal(s.tokenizer, 1)
		if err != nil {
			return nil, stop, err
		}
		stops = append(stops, l.stop)
		g := gateway{Name: c.label(), Engines: addresses[:c.endpoints]}
		if c.server != serverNone {
			if s.server, err = startRemote(ctx, d.program, fmt.Sprintf("%s-%d-%d", c.label(), r.body, r.chunks), d.dir, d.server(r, c, addresses, "http://"+l.addresses[0])); err != nil {
				return nil, stop, err
			}
			stops = append(stops, s.server.stop)
			g.Router = s.server.address
		}
		stations, gateways = append(stations, s), append(gateways, g)
	}
	var proxy *envoy
	if d.envoy != "" {
		if proxy, err = startEnvoy(ctx, d.envoy, d.dir, gateways); err != nil {
			return nil, stop, err
		}
		stops = append(stops, proxy.stop)
	}
	for _, s := range stations {
		w := d.workload(r, s.cell)
		src := source{kind: s.prompt, bodies: w.bodies()}
		for _, reason := range s.reasons {
			src.reasons = append(src.reasons, reason.String())
		}
		if proxy != nil {
			s.envoy = proxy
			s.client = newProxied(proxy.listeners[s.label()], w, src, d.concurrency)
		} else if s.client, err = newBare(s.server.address, w, src, r.chunks); err != nil {
			return nil, stop, err
		}
		stops = append(stops, s.client.close)
	}
	return stations, stop, nil
}

func (d *driver) workload(r row, c cell) workload {
	return workload{Seed: d.seed, Body: r.body, Kind: c.prompt}
}

func (d *driver) server(r row, c cell, addresses []string, tokenizer string) serverConfig {
	cfg := serverConfig{
		Kind: c.server, Strategy: c.strategy, Addresses: addresses[:c.endpoints],
		Tokenizer: tokenizer, Workload: d.workload(r, c),
	}
	if d.profile != "" {
		cfg.Profile = filepath.Join(d.profile, fmt.Sprintf("%s-%d-%d", c.label(), r.body, r.chunks))
	}
	return cfg
}

// imaginary returns n addresses that nobody dials.
func imaginary(n int) []string {
	addresses := make([]string, n)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("10.64.%d.%d:8000", i>>8, i&255)
	}
	return addresses
}

// measure runs the whole plan with a directory of its own for logs.
func (d *driver) measure(ctx context.Context) (results []result, err error) {
	if d.program, err = os.Executable(); err != nil {
		return nil, err
	}
	if d.profile != "" {
		if d.profile, err = filepath.Abs(d.profile); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(d.profile, 0o700); err != nil {
			return nil, fmt.Errorf("--profile: %w", err)
		}
	}
	if d.dir, err = os.MkdirTemp("", "warmpath-drive-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(d.dir) // the tail of a log is in the error that wants it
	return d.run(ctx, plan(d.lanes, d.bodies, d.endpoints, d.chunks))
}
