package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/warmpath/warmpath/events"
	"github.com/warmpath/warmpath/kvindex"
	"github.com/warmpath/warmpath/routing/pool"
)

// level is how bad a finding is.
type level string

const (
	levelOK   level = "ok"
	levelSkip level = "skip"
	levelWarn level = "warn"
	levelFail level = "FAIL"
)

// finding is what one check of one thing said.
type finding struct {
	Level level `json:"level"`
	// Check is the kind of check, About what was looked at: an endpoint, a
	// namespace, a part of Envoy.
	Check string `json:"check"`
	About string `json:"about,omitempty"`
	Text  string `json:"text"`
	// Mend is the command or setting that mends it.
	Mend string `json:"mend,omitempty"`
}

// doctor looks for what keeps a deployment from working as it should.
type doctor struct {
	cfg      Config
	client   *http.Client
	progress io.Writer
	verbose  io.Writer
	// envoy is the base URL of Envoy's admin server, empty: not looked at.
	envoy string
	// wait bounds each thing that is waited for. sample is how many engines of a
	// model get requests, 0 for none.
	wait   time.Duration
	sample int
	// clusterless: there is no way to the cluster, which has been found.
	clusterless bool

	findings []finding
}

func (d *doctor) add(l level, check, about, mend, format string, args ...any) {
	d.findings = append(d.findings, finding{l, check, about, fmt.Sprintf(format, args...), mend})
}

// step tells who waits what is done.
func (d *doctor) step(format string, args ...any) {
	fmt.Fprintf(d.progress, "… "+format+"\n", args...)
}

func cmdDoctor(ctx context.Context, p process) int {
	c := newCommand(p, "doctor", "Looks for what keeps a deployment from working as it should, and says how to mend it.\n"+
		"It runs beside a router, in the cluster or out of it, with the router's own configuration.\n"+
		"The exit code is 0 if nothing failed, 1 if something did.")
	envoy := c.flags.String("envoy", "", "base `URL` of Envoy's admin server, whose limits and timeouts are checked too; empty: they are not")
	passive := c.flags.Bool("passive", false, "send no requests to the engines; by default --sample of each model get a few short completions")
	sample := c.flags.Int("sample", 3, "`NUMBER` of engines of each model that get requests")
	wait := c.flags.Duration("wait", 10*time.Second, "longest `TIME` that one thing is waited for")
	asJSON := c.flags.Bool("json", false, "print findings as JSON, one object with a list")
	strict := c.flags.Bool("strict", false, "let warnings fail too")
	verbose := c.flags.Bool("verbose", false, "print what the parts log")
	cfg, code, ok := c.config()
	if !ok {
		return code
	}
	if *wait <= 0 || *sample < 0 {
		return c.misuse("--wait must be above 0, and --sample not below")
	}
	d := &doctor{cfg: cfg, client: &http.Client{Transport: transport()}, progress: p.stderr, verbose: io.Discard, envoy: *envoy, wait: *wait, sample: *sample}
	defer d.client.CloseIdleConnections()
	if *asJSON {
		d.progress = io.Discard
	}
	if *passive {
		d.sample = 0
	}
	if *verbose {
		d.verbose = p.stderr
	}
	if err := d.run(ctx); err != nil {
		return c.fail(err)
	}
	if *asJSON {
		if err := printFindingsJSON(p.stdout, d.findings); err != nil {
			return c.fail(err)
		}
	} else {
		printFindings(p.stdout, d.findings)
	}
	for _, f := range d.findings {
		if f.Level == levelFail || *strict && f.Level == levelWarn {
			return exitFault
		}
	}
	return exitOK
}

// run makes every check. An error means that the checks could not be made.
func (d *doctor) run(ctx context.Context) error {
	for _, w := range d.cfg.Warnings() {
		d.add(levelWarn, "configuration", "", "", "%s", w)
	}
	if len(d.findings) == 0 {
		d.add(levelOK, "configuration", "", "", "valid")
	}
	d.checkCluster(ctx)
	if err := d.checkEngines(ctx); err != nil {
		return err
	}
	if d.envoy == "" {
		d.add(levelSkip, "envoy", "", "warmpath doctor --envoy http://ENVOY:9901 …", "limits and timeouts: not looked at without --envoy")
	} else {
		d.step("reading the configuration of Envoy at %s", d.envoy)
		d.checkEnvoy(ctx)
	}
	return ctx.Err()
}

// checkEngines runs the router's own parts, without its servers, and looks at
// what they see.
func (d *doctor) checkEngines(ctx context.Context) error {
	cfg := d.cfg
	cfg.Events.Listen = "" // the router has it
	cfg.Routing.Lock = ""  // so that every strategy can be asked
	cfg.Pool.SyncTimeout = d.wait
	cfg.CacheState.PeersTimeout = min(cfg.CacheState.PeersTimeout, d.wait)
	if d.clusterless {
		if cfg.Pool.Kubernetes = (pool.KubernetesConfig{}); len(cfg.Pool.Static.Endpoints) == 0 && !cfg.Pool.Discovers() {
			return nil
		}
	}
	reg := prometheus.NewRegistry()
	r, err := build(cfg, newLogger(d.verbose, LogConfig{Level: "warn", Format: "text"}), reg, d.client)
	if err != nil {
		d.add(levelFail, "parts", "", "", "%v", err)
		return nil
	}
	parts, stop := context.WithCancel(ctx)
	g, failed := errgroup.WithContext(parts)
	g.Go(func() error { return r.routing.Run(failed) })
	g.Go(func() error { return r.pool.Run(failed) })
	g.Go(func() error { return r.follow(failed) })
	if r.tokenizer != nil {
		g.Go(func() error { return r.tokenizer.Run(failed) })
	}
	defer func() {
		stop()
		if err := g.Wait(); err != nil {
			d.add(levelFail, "parts", "", "", "%v", err)
		}
	}()
	d.step("waiting for the endpoints to be listed and probed, %s at most", d.wait)
	if !d.await(failed, r.pool.Synced()) {
		then := fmt.Sprintf("routers start without it after %s, if there is anything else (pool.sync_timeout)", d.cfg.Pool.SyncTimeout)
		if d.cfg.Pool.SyncTimeout == 0 {
			then = "routers wait for it (pool.sync_timeout is 0s)"
		}
		for _, what := range r.pool.SyncState().Unlisted {
			d.add(levelFail, "endpoints", "", "warmpath doctor --verbose …", "not listed within %s: %s; %s", d.wait, what, then)
		}
		if len(r.pool.Snapshot().Endpoints) == 0 {
			return nil
		}
	}
	d.await(failed, r.pool.Probed())
	// One probe may fail for no reason that lasts.
	d.until(failed, d.wait, func() bool {
		return !slices.ContainsFunc(r.pool.Snapshot().Endpoints, func(e *pool.Endpoint) bool { return e.Health == pool.HealthFailed || e.Health == pool.HealthUnknown })
	})
	d.checkEndpoints(r)
	d.step("waiting for the event streams, %s at most", d.wait)
	d.await(failed, r.events.Ready())
	d.until(failed, d.wait, func() bool {
		return !slices.ContainsFunc(r.events.Status(), func(s events.Status) bool {
			return s.Error == "" && s.Replay != "" && s.Trust != kvindex.TrustExact.String()
		})
	})
	d.checkEvents(r)
	if r.peers {
		d.checkWarmStart(r.events.WarmStart(), warmCondition(r.warm, r.peers, r.events.WarmStart()).Detail, sumOf(reg, "warmpath_relay_peers_total"))
	}
	d.checkMetrics(failed, r)
	d.checkRequests(failed, r)
	d.checkBlockSizes(r)
	return nil
}

// checkWarmStart looks at what other routers told. peers is how many were found,
// names that could not be looked up included.
func (d *doctor) checkWarmStart(w events.WarmStart, detail string, peers float64) {
	if w.Unasked > 0 {
		l, mend := levelWarn, fmt.Sprintf("raise cachestate.peers_timeout (%s)", d.cfg.CacheState.PeersTimeout)
		if d.wait < d.cfg.CacheState.PeersTimeout {
			l, mend = levelSkip, fmt.Sprintf("warmpath doctor --wait %s …", d.cfg.CacheState.PeersTimeout)
		}
		d.add(l, "warm start", "", mend, "%d event streams were found so late after the first that other routers were not asked for them", w.Unasked)
	}
	switch {
	case w.Asked == 0 || w.FromPeers > 0:
		d.add(levelOK, "warm start", "", "", "%s", detail)
	case w.Asking > 0:
		d.add(levelSkip, "warm start", "", fmt.Sprintf("warmpath doctor --wait %s …", max(d.cfg.CacheState.PeersTimeout, 2*d.wait)), "other routers are still being asked: %s", detail)
	case peers == 0:
		d.add(levelSkip, "warm start", "", "if there are others, see that cachestate.peers leads to them", "there is no other router than the one here to ask: %s", detail)
	default:
		d.add(levelWarn, "warm start", "", "see that another router runs, that cachestate.peers leads to its cachestate.listen, and that it takes cachestate.peers_token_file or the certificate; warmpath doctor --verbose says what each of them answered",
			"no other router told anything, so a router that starts has only what engines still keep: %s", detail)
	}
}

// sumOf returns the sum of a counter's series, 0 if there is none of the name.
func sumOf(from prometheus.Gatherer, name string) (sum float64) {
	families, err := from.Gather()
	if err != nil {
		return 0
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// await waits for done, and reports whether it came in time.
func (d *doctor) await(ctx context.Context, done <-chan struct{}) bool {
	timer := time.NewTimer(d.wait)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// until waits until ok holds, for no longer than most, and reports whether it
// did.
func (d *doctor) until(ctx context.Context, most time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// printFindings prints one finding a line, aligned, and below it what mends it.
func printFindings(w io.Writer, all []finding) {
	check, about := 0, 0
	counts := map[level]int{}
	for _, f := range all {
		check, about = max(check, len(f.Check)), max(about, len(f.About))
		counts[f.Level]++
	}
	for _, f := range all {
		fmt.Fprintf(w, "%-4s  %-*s  %-*s  %s\n", f.Level, check, f.Check, about, f.About, f.Text)
		if f.Mend != "" && f.Level != levelOK {
			indent := strings.Repeat(" ", 4+2+check+2+about+2)
			fmt.Fprintf(w, "%s→ %s\n", indent, f.Mend)
		}
	}
	fmt.Fprintf(w, "\n%d ok, %d warnings, %d failed, %d skipped\n", counts[levelOK], counts[levelWarn], counts[levelFail], counts[levelSkip])
}
