package fidelity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/warmpath/warmpath/benchmarks/engine"
	"github.com/warmpath/warmpath/benchmarks/origin"
	"github.com/warmpath/warmpath/benchmarks/workload"
)

// Result is what the command prints.
type Result struct {
	Origin    origin.Origin `json:"origin"`
	Workload  string        `json:"workload"`
	SHA256    string        `json:"sha256"`
	Requests  int           `json:"requests"`
	Endpoints int           `json:"endpoints"`
	Profile   string        `json:"profile"`
	Capacity  float64       `json:"capacity"`
	Speed     float64       `json:"speed"`
	Seeds     int           `json:"simulations"`
	Rows      []Row         `json:"strategies"`
}

// options are what the command line says.
type options struct {
	Config
	workload, profile, strategies, save string
	requests                            int
	seed                                uint64
	limit                               float64
	json                                bool
}

func (o *options) flags(errOut io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("real", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.StringVar(&o.workload, "workload", "tools", "workload to generate, see gen --list; one without adapters")
	fs.IntVar(&o.requests, "requests", 1000, "`number` of requests")
	fs.Uint64Var(&o.seed, "seed", 1, "of the workload")
	fs.Float64Var(&o.Speed, "speed", 0.4, "multiple of the workload's rate")
	fs.StringVar(&o.strategies, "strategies", "prefix-cache,least-request,random", "the product's strategies, comma-separated; blends as 'a:2+b'")
	fs.IntVar(&o.Endpoints, "endpoints", 4, "`number` of engines, each a process")
	fs.StringVar(&o.profile, "profile", "8b", "engine profile: 8b, 32b or 70b")
	fs.Float64Var(&o.Capacity, "capacity", 1, "multiple of the profile's cache")
	fs.IntVar(&o.Simulations, "simulations", 10, "`number` of seeds that the simulator is run with")
	fs.Float64Var(&o.limit, "limit", 2, "percent `points` by which token hits may differ")
	fs.Float64Var(&o.Scale, "scale", 1, "how many times as long everything takes, in both worlds")
	fs.Float64Var(&o.MaxScale, "max-scale", 8, "up to which the scale is doubled where the machine sends requests late")
	fs.StringVar(&o.Warmpath, "warmpath", "bin/warmpath", "the warmpath `program`")
	fs.StringVar(&o.Enginesim, "enginesim", "bin/enginesim", "the enginesim `program`")
	fs.StringVar(&o.Envoy, "envoy", "envoy", "the Envoy `program`")
	fs.BoolVar(&o.json, "json", false, "print JSON in place of a table")
	fs.StringVar(&o.save, "save", "", "also write the report to `PREFIX`.txt and PREFIX.json")
	return fs
}

// parse reads the command line and makes the workload.
func parse(args []string, errOut io.Writer) (*options, error) {
	o := &options{}
	fs := o.flags(errOut)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	spec, err := workload.Preset(o.workload)
	if err != nil {
		return nil, fmt.Errorf("--workload %w", err)
	}
	spec.Requests = o.requests
	if o.requests < 1 || o.requests > 100_000 {
		return nil, fmt.Errorf("--requests: %d is out of range; use 1 to 100000", o.requests)
	}
	if !(o.limit > 0 && o.limit <= 100) {
		return nil, fmt.Errorf("--limit: %v is out of range; use more than 0, up to 100", o.limit)
	}
	if o.Profile, err = engine.ProfileByName(o.profile); err != nil {
		return nil, fmt.Errorf("--profile: %w", err)
	}
	for s := range strings.SplitSeq(o.strategies, ",") {
		o.Strategies = append(o.Strategies, strings.ReplaceAll(strings.TrimSpace(s), "+", ","))
	}
	if o.Workload, err = spec.Generate(o.seed); err != nil {
		return nil, err
	}
	if o.save != "" {
		if st, err := os.Stat(filepath.Dir(o.save)); err != nil {
			return nil, fmt.Errorf("--save: %w; make the directory first", err)
		} else if !st.IsDir() {
			return nil, fmt.Errorf("--save: %s is not a directory", filepath.Dir(o.save))
		}
	}
	return o, o.Validate()
}

// programs finds the programs.
func (o *options) programs() error {
	var errs []error
	for _, p := range []struct {
		flag string
		path *string
		from string
	}{{"warmpath", &o.Warmpath, "make build"}, {"enginesim", &o.Enginesim, "make build"}, {"envoy", &o.Envoy, "make envoy"}} {
		found, err := exec.LookPath(*p.path)
		if err == nil {
			*p.path = found
			continue
		}
		errs = append(errs, fmt.Errorf("--%s: %w; %s makes one", p.flag, err, p.from))
	}
	return errors.Join(errs...)
}

// Run is the real command. It prints what there is when ctx ends, and returns
// an error if a strategy's token hits are too far apart.
func Run(ctx context.Context, args []string, out *os.File) error {
	o, err := parse(args, os.Stderr)
	if err != nil {
		return err
	}
	if err := o.programs(); err != nil {
		return err
	}
	if o.Dir, err = os.MkdirTemp("", "warmpath-real-"); err != nil {
		return err
	}
	from := origin.Now(ctx, append([]string{"go run ./benchmarks real"}, args...)...)
	line := newProgress(os.Stderr)
	o.Progress = line.show
	rows, err := o.Compare(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w\nlogs are kept in %s", err, o.Dir)
	} else {
		_ = os.RemoveAll(o.Dir)
	}
	if len(rows) == 0 {
		return err
	}
	r := Result{
		Origin: from, Workload: o.Workload.Name, SHA256: o.Workload.SHA256, Requests: len(o.Workload.Requests),
		Endpoints: o.Endpoints, Profile: o.Profile.Name, Capacity: o.Capacity, Speed: o.Speed, Seeds: o.Simulations, Rows: rows,
	}
	if o.json {
		err = errors.Join(err, r.Write(out))
	} else {
		err = errors.Join(err, r.Table(out))
	}
	if o.save != "" {
		err = errors.Join(err, r.save(o.save))
	}
	return errors.Join(err, Judge(rows, o.limit))
}

// Write writes r as JSON.
func (r Result) Write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// save writes both forms of the report.
func (r Result) save(prefix string) error {
	var text, data bytes.Buffer
	if err := errors.Join(r.Table(&text), r.Write(&data)); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(prefix+".txt", text.Bytes(), 0o644), os.WriteFile(prefix+".json", data.Bytes(), 0o644))
}
