package sim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/workload"
	"github.com/warmpath/warmpath/routing"
)

// options are what the command line says.
type options struct {
	trace, workloads, strategies, profile, preset string
	endpoints, loads, speeds, capacities, hosts   string
	lags, losses, replays, replicas, set, out     string
	seeds, workers, requests, ahead               int
	restart                                       time.Duration
	slow                                          float64
	warmup                                        int
	first                                         uint64
	wire, detail, json, dryRun, list              bool
}

func (o *options) flags() *flag.FlagSet {
	fs := flag.NewFlagSet("sim", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // faults are printed once, with a suggestion
	fs.StringVar(&o.trace, "trace", "", "file in the Mooncake format, plain or .gz")
	fs.StringVar(&o.workloads, "workload", "", "workloads to generate, comma-separated, see gen --list")
	fs.StringVar(&o.preset, "preset", "", "a matrix by name, see --list; other flags override it")
	fs.StringVar(&o.strategies, "strategies", "prefix-cache,least-request,round-robin", "strategies, comma-separated, or all; blends as 'a:2+b'")
	fs.StringVar(&o.endpoints, "endpoints", "8", "numbers of endpoints, comma-separated")
	fs.StringVar(&o.loads, "load", "", "loads as shares of the knee, comma-separated (default 0.9, unless --speed is given)")
	fs.StringVar(&o.speeds, "speed", "", "loads as multiples of the recorded rate instead, comma-separated")
	fs.IntVar(&o.seeds, "seeds", 5, "seeds of every cell")
	fs.Uint64Var(&o.first, "first-seed", 1, "the first of them")
	fs.StringVar(&o.profile, "profile", "8b", "engine profile: 8b, 32b or 70b")
	fs.StringVar(&o.capacities, "capacity", "1", "multiples of the profile's cache, comma-separated")
	fs.StringVar(&o.hosts, "host", "0", "host tiers as multiples of the cache, comma-separated; 0 is none")
	fs.StringVar(&o.lags, "lag", "0s", "delays of KV events, comma-separated")
	fs.StringVar(&o.losses, "loss", "0", "shares of event batches that are lost, comma-separated")
	fs.StringVar(&o.replays, "replay", "true", "lost batches are asked for again; false: the endpoint's state is dropped; true,false: both")
	fs.StringVar(&o.replicas, "replicas", "1", "numbers of routers that share nothing, comma-separated")
	fs.DurationVar(&o.restart, "restart", 0, "time after which the next endpoint crashes and comes back empty; 0: none does")
	fs.Float64Var(&o.slow, "slow", 0, "share of endpoints that are half as fast")
	fs.IntVar(&o.ahead, "ahead", defaultAhead, "arrivals that clairvoyant-greedy knows before they come")
	fs.BoolVar(&o.wire, "wire", false, "encode KV events as engines do and decode them as serve does")
	fs.BoolVar(&o.detail, "detail", false, "measure who waited where and what decisions cost, for report")
	fs.StringVar(&o.set, "set", "", "constants of prefix-cache, as release=1s,eviction_price=2")
	fs.IntVar(&o.requests, "requests", 0, "use only the first requests of the workload; 0: all")
	fs.IntVar(&o.warmup, "warmup", 0, "requests at the beginning that fill the caches and are not measured")
	fs.IntVar(&o.workers, "workers", 0, "runs side by side; 0: one for each core. Results do not depend on it")
	fs.BoolVar(&o.json, "json", false, "print JSON")
	fs.StringVar(&o.out, "out", "", "write JSON to this file as well")
	fs.BoolVar(&o.dryRun, "dry-run", false, "print what would be run, and about how long it takes")
	fs.BoolVar(&o.list, "list", false, "list strategies, workloads and presets")
	return fs
}

// Run is the command that simulates.
func Run(ctx context.Context, args []string, out *os.File) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.list {
		return list(out)
	}
	plan, err := o.plan()
	if err != nil {
		return err
	}
	if err := plan.Validate(); err != nil {
		return err
	}
	if o.dryRun {
		return dryRun(ctx, out, plan)
	}
	line := newProgress(os.Stderr)
	plan.Progress = line.update
	result, runErr := plan.Execute(ctx)
	line.end()
	if runErr != nil && !errors.Is(runErr, context.Canceled) {
		return runErr
	}
	if o.out != "" {
		if err := write(o.out, result); err != nil {
			return err
		}
	}
	if o.json {
		err = result.Write(out)
	} else {
		err = result.Summary(out)
	}
	return errors.Join(err, runErr)
}

func write(path string, r Result) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(r.Write(f), f.Close())
}

// parse reads the command line. A preset is read first, so that flags override
// it.
func parse(args []string) (*options, error) {
	o := &options{}
	fs := o.flags()
	if err := parseFlags(fs, args); err != nil {
		return nil, err
	}
	if o.preset == "" {
		return o, nil
	}
	p, err := presetByName(o.preset)
	if err != nil {
		return nil, err
	}
	o = &options{}
	fs = o.flags()
	return o, parseFlags(fs, append(slices.Clone(p.args), args...))
}

// parseFlags is fs.Parse with a suggestion for what is not a flag.
func parseFlags(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fs.SetOutput(os.Stderr)
		fs.Usage()
		return err
	}
	if err != nil {
		var names []string
		fs.VisitAll(func(f *flag.Flag) { names = append(names, "--"+f.Name) })
		if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
			return fmt.Errorf("--%s: no such flag%s", name, workload.DidYouMean("--"+name, names))
		}
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q: not a flag; values follow their flag", fs.Arg(0))
	}
	return nil
}

// plan returns the cells that o asks for: every combination.
func (o *options) plan() (Plan, error) {
	sources, err := o.sources()
	if err != nil {
		return Plan{}, err
	}
	base := Scenario{Restart: o.restart, Slow: o.slow, Warmup: o.warmup, Wire: o.wire, Detail: o.detail, Ahead: o.ahead}
	if base.Profile, err = engine.ProfileByName(o.profile); err != nil {
		return Plan{}, fmt.Errorf("--profile: %w", err)
	}
	if base.Routing, err = o.routing(); err != nil {
		return Plan{}, err
	}
	if o.loads == "" && o.speeds == "" {
		o.loads = "0.9"
	}
	if o.loads != "" && o.speeds != "" {
		return Plan{}, errors.New("--load and --speed: both say how fast requests arrive; use one of them")
	}
	items := []Item{{Scenario: base}}
	each := func(flag, list string, set func(it *Item, v string) error) {
		if err != nil || list == "" {
			return
		}
		var more []Item
		for _, it := range items {
			for v := range strings.SplitSeq(list, ",") {
				it := it
				if fault := set(&it, strings.TrimSpace(v)); fault != nil {
					err = fmt.Errorf("--%s: %w", flag, fault)
					return
				}
				more = append(more, it)
			}
		}
		items = more
	}
	float := func(at func(*Item) *float64) func(*Item, string) error {
		return func(it *Item, v string) (err error) {
			*at(it), err = strconv.ParseFloat(v, 64)
			return err
		}
	}
	integer := func(at func(*Item) *int) func(*Item, string) error {
		return func(it *Item, v string) (err error) {
			*at(it), err = strconv.Atoi(v)
			return err
		}
	}
	more := make([]Item, 0, len(sources))
	for _, s := range sources {
		it := items[0]
		it.Name, it.Source = s.name, s.Source
		more = append(more, it)
	}
	items = more
	each("endpoints", o.endpoints, integer(func(it *Item) *int { return &it.Endpoints }))
	each("capacity", o.capacities, float(func(it *Item) *float64 { return &it.Capacity }))
	each("host", o.hosts, float(func(it *Item) *float64 { return &it.Host }))
	each("load", o.loads, float(func(it *Item) *float64 { return &it.Load }))
	each("speed", o.speeds, float(func(it *Item) *float64 { return &it.Speed }))
	each("lag", o.lags, func(it *Item, v string) (err error) {
		it.Lag, err = time.ParseDuration(v)
		return err
	})
	each("loss", o.losses, float(func(it *Item) *float64 { return &it.Loss }))
	each("replay", o.replays, func(it *Item, v string) (err error) {
		it.Replay, err = strconv.ParseBool(v)
		return err
	})
	if o.replays != "false" { // where nothing is lost, nothing is replayed
		items = slices.DeleteFunc(items, func(it Item) bool { return it.Loss == 0 && !it.Replay })
	}
	each("replicas", o.replicas, integer(func(it *Item) *int { return &it.Replicas }))
	strategies := o.strategies
	if strategies == "all" {
		strategies = strings.Join(Strategies(), ",")
	}
	each("strategies", strategies, func(it *Item, v string) error {
		it.Strategy = strings.ReplaceAll(v, "+", ",")
		return nil
	})
	return Plan{Items: items, Seeds: o.seeds, First: o.first, Workers: o.workers}, err
}

// named is a source with its name.
type named struct {
	name string
	Source
}

// sources returns the workloads.
func (o *options) sources() ([]named, error) {
	var out []named
	if o.trace != "" {
		w, err := workload.Load(o.trace)
		if err != nil {
			return nil, fmt.Errorf("--trace: %w", err)
		}
		if o.requests > 0 && o.requests < len(w.Requests) {
			w.Requests = w.Requests[:o.requests]
		}
		out = append(out, named{w.Name, Trace{w}})
	}
	if o.workloads != "" {
		for name := range strings.SplitSeq(o.workloads, ",") {
			spec, err := workload.Preset(strings.TrimSpace(name))
			if err != nil {
				return nil, fmt.Errorf("--workload %w", err)
			}
			if o.requests > 0 {
				spec.Requests = o.requests
			}
			out = append(out, named{spec.Name, spec})
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no workload; name a file by --trace, a generated one by --workload or a matrix by --preset")
	}
	return out, nil
}

// routing returns the configuration of the product's strategies.
func (o *options) routing() (routing.Config, error) {
	cfg := routing.DefaultConfig()
	if o.set == "" {
		return cfg, nil
	}
	var text strings.Builder
	for kv := range strings.SplitSeq(o.set, ",") {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return cfg, fmt.Errorf("--set: %q has no value; write %s=VALUE", kv, kv)
		}
		if names := constants(); !slices.Contains(names, strings.TrimSpace(k)) {
			return cfg, fmt.Errorf("--set: %q is not a constant of prefix-cache%s; use one of %s", k, workload.DidYouMean(k, names), strings.Join(names, ", "))
		}
		fmt.Fprintf(&text, "%s: %s\n", k, v)
	}
	if err := yaml.Unmarshal([]byte(text.String()), &cfg.PrefixCache); err != nil {
		return cfg, fmt.Errorf("--set: %w", err)
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("--set: %w", err)
	}
	return cfg, nil
}

// constants are the names of prefix-cache's constants in the configuration.
func constants() []string {
	var names []string
	text, err := yaml.Marshal(routing.DefaultConfig().PrefixCache)
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		if k, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, k)
		}
	}
	return names
}

func list(out io.Writer) error {
	fmt.Fprintf(out, "strategies of the product: %s\n", strings.Join(productStrategies(), ", "))
	fmt.Fprintln(out, "\nbaselines:")
	for _, b := range baselines() {
		fmt.Fprintf(out, "  %-18s %s\n", b.name, b.doc)
	}
	fmt.Fprintf(out, "\nbounds, which know what no router can and are not part of all: %s\n", strings.Join(Bounds(), ", "))
	fmt.Fprintln(out, "\nworkloads:")
	for _, s := range workload.Presets() {
		fmt.Fprintf(out, "  %-18s %s\n", s.Name, s.Doc)
	}
	fmt.Fprintln(out, "\npresets:")
	for _, p := range presets() {
		fmt.Fprintf(out, "  %-18s %s\n", p.name, p.doc)
	}
	return nil
}
